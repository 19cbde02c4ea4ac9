"""Views and other functions that move elements without computing: view, transpose, cat, expand, flip, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from operator import index as int_of
from typing import Any

import numpy as np

from ...ir.dtypes import DType
from ...ir.errors import DTypeError, IndexOutOfRange, OpError
from ...ir.op import REGISTRY
from ...ir.types import broadcast_shapes, normalize_axis
from ...runtime.buffers import copy_of
from ..library import ArgumentError
from ..making import record
from ..operands import as_value, result_type, tensor_operand
from ..recording import STATE
from ..strides import regrouped
from ..tensor import Tensor, concrete, make_view, ready

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _dims(args: tuple[Any, ...], named: Any = None) -> tuple[int, ...]:
    """Numbers given one by one, as one sequence, or under PyTorch's name for it."""
    if named is not None:
        args = (named,)
    if len(args) == 1 and isinstance(args[0], (tuple, list)):
        args = tuple(args[0])
    try:
        return tuple([a if a.__class__ is int else int_of(a) for a in args])
    except TypeError:
        raise DTypeError(f"expected integers, got {args!r:.80}") from None


def resolve_shape(t: Tensor, shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """`shape` with its -1 worked out. Raises if the element counts differ."""
    n = t.numel()
    if -1 in shape:
        known = 1
        for d in shape:
            known *= 1 if d == -1 else d
        if shape.count(-1) > 1 or known == 0 or n % known:
            raise OpError(f"{what}(): shape {list(shape)} is invalid for a tensor of type {t._value().type}")
        shape = tuple(n // known if d == -1 else d for d in shape)
    size = 1
    for d in shape:
        size *= d
    if size != n or any(d < 0 for d in shape):
        raise OpError(f"{what}(): shape {list(shape)} is invalid for a tensor of type {t._value().type}")
    return shape


def view(input: Tensor, *shape: Any, size: Any = None, dtype: DType | None = None) -> Tensor:
    """The same elements in another shape; one dimension may be -1. Shares memory. `view(dtype)` reinterprets
    bits, as a copy that gradients do not flow through.
    """
    if dtype is not None or (len(shape) == 1 and isinstance(shape[0], DType)):
        return _bits_as(input, dtype or shape[0])
    size = resolve_shape(input, _dims(shape, size), "view")
    if not _shares(input, size):
        raise OpError(
            f"view(): the elements of this tensor of type {input._value().type} (strides {input.stride()}) "
            f"do not lie as a view of shape {list(size)} needs them; use reshape(), which copies if it must"
        )
    return make_view(input, REGISTRY["view"], {"shape": size})


def _shares(t: Tensor, size: tuple[int, ...]) -> bool:
    """Whether `t` can be seen in another shape without a copy."""
    if t._view is None:
        return True
    shape, strides, _ = t._layout()
    return regrouped(shape, strides, size) is not None


def _bits_as(input: Tensor, dtype: DType) -> Tensor:
    """Elements of one width as another type of that width."""
    if dtype is input.dtype:
        return make_view(input, REGISTRY["alias"], {})
    if dtype.bits == input.dtype.bits and "b" not in (dtype.kind, input.dtype.kind):
        return record(STATE.trace, REGISTRY["bitcast"], (input._value(),), {"dtype": dtype})
    array = np.ascontiguousarray(input.detach()._array())
    last = array.shape[-1] * array.itemsize if array.ndim else array.itemsize
    if last % dtype.itemsize or (not array.ndim and dtype.itemsize != array.itemsize):
        raise OpError(f"view(): the last dimension of {input._value().type} does not divide into {dtype}")
    return concrete(copy_of(array.view(dtype.numpy), dtype).on(input._storage.value.type.device))


def reshape(input: Tensor, *sizes: Any, shape: Any = None) -> Tensor:
    """The same elements in another shape; one dimension may be -1. Shares memory where strides allow it,
    else copies, as in PyTorch.
    """
    size = resolve_shape(input, _dims(sizes, shape), "reshape")
    source = input if _shares(input, size) else clone_of(input)
    return make_view(source, REGISTRY["view"], {"shape": size})


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions `start_dim` to `end_dim` as one."""
    shape = tuple(input.shape)
    a, b = normalize_axis(start_dim, len(shape)), normalize_axis(end_dim, len(shape))
    if a > b:
        raise OpError(f"flatten(): start_dim {start_dim} comes after end_dim {end_dim}")
    n = 1
    for d in shape[a : b + 1]:
        n *= d
    return reshape(input, (*shape[:a], n, *shape[b + 1 :]))


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` split into `sizes` (one may be -1)."""
    shape = tuple(input.shape)
    a = normalize_axis(dim, len(shape))
    sizes = list(sizes)
    if -1 in sizes:
        known = 1
        for s in sizes:
            known *= 1 if s == -1 else s
        sizes[sizes.index(-1)] = shape[a] // max(known, 1)
    if prod(sizes) != shape[a]:
        raise ArgumentError(
            f"unflatten(): sizes {list(sizes)} don't multiply up to {shape[a]}, the size of dimension {a} of "
            f"{input._value().type}"
        )
    return reshape(input, (*shape[:a], *sizes, *shape[a + 1 :]))


def permute(input: Tensor, *order: Any, dims: Any = None) -> Tensor:
    """Dimensions in a new order."""
    order = tuple(normalize_axis(d, input.dim()) for d in _dims(order, dims))
    return make_view(input, REGISTRY["permute"], {"dims": order})


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions swapped."""
    r = input.dim()
    return make_view(
        input, REGISTRY["transpose"], {"dim0": normalize_axis(dim0, r), "dim1": normalize_axis(dim1, r)}
    )


def swapaxes(input: Tensor, axis0: int, axis1: int) -> Tensor:
    """`transpose` under NumPy's name."""
    return transpose(input, axis0, axis1)


def t(input: Tensor) -> Tensor:
    """A matrix transposed; tensors of fewer dimensions as they are."""
    if input.dim() > 2:
        raise OpError(f"t() takes tensors of at most 2 dimensions, got {input._value().type}")
    return make_view(input, REGISTRY["t"], {})


def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions (one, or a sequence) moved to new positions, the others in order."""
    r = input.dim()
    src = [normalize_axis(d, r) for d in ([source] if isinstance(source, int) else source)]
    dst = [normalize_axis(d, r) for d in ([destination] if isinstance(destination, int) else destination)]
    if len(src) != len(dst) or len(set(src)) != len(src) or len(set(dst)) != len(dst):
        raise OpError(f"movedim(): can't move dimensions {source} to {destination}; name as many, none twice")
    if not r:
        return make_view(input, REGISTRY["alias"], {})
    order: list[int] = [-1] * r
    for s, d in zip(src, dst):
        order[d] = s
    rest = iter(i for i in range(r) if i not in src)
    return permute(input, [next(rest) if o < 0 else o for o in order])


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A dimension of size 1 put in at `dim`."""
    return make_view(input, REGISTRY["unsqueeze"], {"dim": normalize_axis(dim, input.dim() + 1)})


def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Dimensions of size 1 dropped: all, or those in `dim`."""
    if dim is None:
        return make_view(input, REGISTRY["squeeze"], {})
    rank = input.dim()
    dims = normalize_axis(dim, rank) if isinstance(dim, int) else tuple(normalize_axis(d, rank) for d in dim)
    return make_view(input, REGISTRY["squeeze"], {"dims": dims})


def expand(input: Tensor, *sizes: Any, size: Any = None, implicit: bool = False) -> Tensor:
    """Dimensions of size 1 stretched to `sizes` without copying; -1 keeps a size."""
    size = _dims(sizes, size)
    shape = tuple(input.shape)
    extra = len(size) - len(shape)
    if extra < 0:
        raise OpError(f"expand(): {list(size)} has fewer dimensions than {input._value().type}")
    full = tuple(shape[i - extra] if n == -1 and i >= extra else n for i, n in enumerate(size))
    if min(full, default=0) < 0:
        raise OpError(f"expand(): {list(size)}: -1 keeps a size of {input._value().type}; it has none there")
    return make_view(input, REGISTRY["expand"], {"shape": full})


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """`input` expanded to `other`'s shape."""
    return expand(input, tuple(other.shape))


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`length` elements from `start` along `dim`."""
    if not input.dim():
        raise OpError("narrow(): a scalar has no dimension to narrow")
    d = normalize_axis(dim, input.dim())
    n = input.shape[d]
    start = int(start)
    if start < 0:
        start += n
    if not 0 <= start <= n or length < 0 or start + length > n:
        raise OpError(
            f"narrow(): [{start}, {start + length}) is outside dimension {dim} of {input._value().type}"
        )
    return slice_dims(input, {d: (start, start + length, 1)})


def slice_dims(input: Tensor, ranges: dict[int, tuple[int, int, int]]) -> Tensor:
    """A view of `[start, stop)` in steps along the given dimensions; steps are positive."""
    shape = tuple(input.shape)
    full = [ranges.get(i, (0, n, 1)) for i, n in enumerate(shape)]
    if all(r == (0, n, 1) for r, n in zip(full, shape)):
        return make_view(input, REGISTRY["alias"], {})
    start, stop, step = (tuple(r[k] for r in full) for k in range(3))
    return make_view(input, REGISTRY["slice"], {"start": start, "stop": stop, "step": step})


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """The slice at `index` along `dim`, without that dimension."""
    d = normalize_axis(dim, input.dim())
    n = tuple(input.shape)[d]
    i = int(index)
    if not -n <= i < n:
        raise IndexOutOfRange(f"index {i} is out of bounds for dimension {d} with size {n}")
    return make_view(input, REGISTRY["select"], {"dim": d, "index": i % n})


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along an existing dimension."""
    if isinstance(tensors, Tensor):
        raise DTypeError(f"cat(): expected a sequence of tensors, got one of type {tensors._value().type}")
    tensors = list(tensors)
    if not tensors:
        raise ArgumentError("cat(): expected a non-empty sequence of tensors")
    for x in tensors:
        tensor_operand(x, "cat(): every element")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    dtype = result_type(*tensors)
    parts = [x for x in tensors if tuple(x.shape) != (0,)] or tensors[
        :1
    ]  # PyTorch skips legacy empty tensors
    values = tuple(as_value(trace, x, dtype) for x in parts)
    return record(trace, REGISTRY["concat"], values, {"dim": normalize_axis(dim, parts[0].dim())})


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new dimension."""
    if isinstance(tensors, Tensor):
        raise DTypeError(f"stack(): expected a sequence of tensors, got one of type {tensors._value().type}")
    tensors = [tensor_operand(x, "stack(): every element") for x in tensors]
    if not tensors:
        raise OpError("stack(): expected a non-empty sequence of tensors")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    dtype = result_type(*tensors)
    values = tuple(as_value(trace, x, dtype) for x in tensors)
    return record(trace, REGISTRY["stack"], values, {"dim": normalize_axis(dim, tensors[0].dim() + 1)})


def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of pieces of a given size (the last may be smaller) or of given sizes along `dim`."""
    d = normalize_axis(dim, tensor.dim())
    n = tuple(tensor.shape)[d]
    if isinstance(split_size_or_sections, int):
        k = split_size_or_sections
        if k <= 0 and n:
            raise OpError(f"split(): size must be positive, got {k}")
        sizes = [min(k, n - i) for i in range(0, n, k)] if n else [0]
    else:
        sizes = list(split_size_or_sections)
        if sum(sizes) != n:
            raise OpError(f"split(): sizes {sizes} do not add up to {n}, the size of dimension {dim}")
    out, at = [], 0
    for k in sizes:
        out.append(narrow(tensor, d, at, k))
        at += k
    return tuple(out)


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of equal size (the last may be smaller) along `dim`."""
    n = tuple(input.shape)[normalize_axis(dim, input.dim())]
    if chunks < 1:
        raise OpError(f"chunk(): there must be at least one chunk, not {chunks}")
    if not n:
        return split(input, [0] * chunks, dim)
    return split(input, max(-(-n // chunks), 1), dim)


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`."""
    d = normalize_axis(dim, input.dim())
    if not input.dim():
        raise IndexOutOfRange("unbind() of a 0-d tensor")
    return tuple(select(input, d, i) for i in range(tuple(input.shape)[d]))


def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of the diagonal of two dimensions, as the last dimension."""
    r = input.dim()
    attrs = {"offset": offset, "dim1": normalize_axis(dim1, r), "dim2": normalize_axis(dim2, r)}
    return make_view(input, REGISTRY["diagonal"], attrs)


def flip(input: Tensor, *axes: Any, dims: Any = None) -> Tensor:
    """Elements in reverse order along `dims`."""
    axes = tuple(normalize_axis(d, input.dim()) for d in _dims(axes, dims))
    if not input.dim():
        return clone_of(input)
    return record(STATE.trace, REGISTRY["flip"], (input._value(),), {"dims": axes})


def repeat(input: Tensor, *counts: Any, repeats: Any = None) -> Tensor:
    """The tensor tiled `repeats` times along each dimension."""
    r = _dims(counts, repeats)
    shape = tuple(input.shape)
    extra = len(r) - len(shape)
    if extra < 0:
        raise OpError(f"repeat(): {list(r)} has fewer dimensions than {input._value().type}")
    shape = (1,) * extra + shape
    x = reshape(input, [d for n in shape for d in (1, n)])
    x = expand(x, [d for k, n in zip(r, shape) for d in (k, n)])
    return reshape(clone_of(x), [k * n for k, n in zip(r, shape)])


def tile(input: Tensor, *counts: Any, dims: Any = None) -> Tensor:
    """`repeat` with missing leading factors taken as 1."""
    d = _dims(counts, dims)
    return repeat(input, *((1,) * (input.dim() - len(d)) + d))


def roll(input: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    """Elements moved by `shifts` along `dims` (of the flattened tensor by default), coming back at the other
    end."""
    by = (shifts,) if isinstance(shifts, int) else tuple(int(k) for k in shifts)
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    if not axes:
        if len(by) != 1:
            raise OpError(f"roll(): without dims there is one shift, got {by}")
        return reshape(roll(reshape(input, -1), by, (0,)), tuple(input.shape))
    if len(by) != len(axes):
        raise OpError(f"roll(): expected one shift for each dimension, got shifts={by} and dims={axes}")
    if not input.dim():
        raise IndexOutOfRange(f"roll(): a scalar has no dimension {axes[0]}")
    attrs = {"shifts": by, "dims": tuple(normalize_axis(d, input.dim()) for d in axes)}
    return record(STATE.trace, REGISTRY["roll"], (input._value(),), attrs)


def fliplr(input: Tensor) -> Tensor:
    """Columns in reverse order."""
    if input.dim() < 2:
        raise OpError(f"fliplr(): expected at least 2 dimensions, got {input._value().type}")
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    """Rows in reverse order."""
    if input.dim() < 1:
        raise OpError("flipud(): expected at least 1 dimension, got a scalar")
    return flip(input, 0)


def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """The plane of two dimensions turned by 90 degrees `k` times, from the first towards the second."""
    if len(dims) != 2 or input.dim() < 2:
        raise OpError(f"rot90(): expected a plane of 2 dimensions, got dims={dims} for {input._value().type}")
    a, b = (normalize_axis(d, input.dim()) for d in dims)
    if a == b:
        raise OpError(f"rot90(): dims {dims} are one dimension")
    turns = k % 4
    if turns == 1:
        return transpose(flip(input, b), a, b)
    if turns == 2:
        return flip(input, a, b)
    return clone_of(transpose(flip(input, a), a, b) if turns else input)


def as_strided(
    input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """A view of the tensor's memory: element `i` lies at `storage_offset + sum(i * stride)`, in elements,
    from where the memory (not this view) begins."""
    offset = input.storage_offset() if storage_offset is None else int(storage_offset)
    attrs = {"size": tuple(int(n) for n in size), "stride": tuple(int(n) for n in stride), "offset": offset}
    whole = input
    if input._view is not None:  # seen from the memory's base, through which gradients still flow
        whole = Tensor.__new__(Tensor)
        whole._storage, whole._view, whole._grad = input._storage, None, None
    return make_view(whole, REGISTRY["as_strided"], attrs)


def ravel(input: Tensor) -> Tensor:
    """All elements as a vector."""
    return reshape(input, -1)


def narrow_copy(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A copy of `length` elements from `start` along `dim`."""
    return clone_of(narrow(input, dim, start, length))


def sum_to_size(input: Tensor, *sizes: Any, size: Any = None) -> Tensor:
    """Sums over what broadcasting `size` to this shape stretched."""
    to = _dims(sizes, size)
    shape = tuple(input.shape)
    if broadcast_shapes(to, shape) != shape:
        raise OpError(f"sum_to_size(): {list(to)} does not broadcast to {list(shape)}")
    extra = len(shape) - len(to)
    axes = (*range(extra), *(d + extra for d, n in enumerate(to) if n == 1 and shape[d + extra] != 1))
    if not axes:
        return input
    summed = record(STATE.trace, REGISTRY["sum"], (input._value(),), {"axes": axes, "keepdim": True})
    return reshape(summed, to)


def clone_of(x: Tensor) -> Tensor:
    """A copy with memory of its own."""
    return record(STATE.trace, REGISTRY["clone"], (x._value(),), {})


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """`input` expanded to `size`."""
    return expand(input, *size)


def contiguous(input: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor itself if its elements lie in row-major order, else a copy."""
    return input if input.is_contiguous() else clone_of(input)


def unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """A view of the windows of `size` elements, every `step`, along `dimension`, as a new last dimension."""
    d = normalize_axis(dimension, input.dim())
    return make_view(input, REGISTRY["unfold"], {"dim": d, "size": int(size), "step": int(step)})


for _fn in (
    view, reshape, flatten, unflatten, permute, transpose, swapaxes, t, movedim, unsqueeze, squeeze, expand,
    expand_as, narrow, select, cat, stack, split, chunk, unbind, diagonal, flip, repeat, tile, broadcast_to,
    contiguous, roll, fliplr, flipud, rot90, ravel, narrow_copy, sum_to_size, as_strided,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
FUNCTIONS["concat"] = FUNCTIONS["concatenate"] = cat
FUNCTIONS["moveaxis"] = movedim
FUNCTIONS["swapdims"] = transpose
