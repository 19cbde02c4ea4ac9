"""Indexing: `x[...]` and `x[...] = v` with PyTorch's rules, masks, gather and scatter."""

from __future__ import annotations

from collections.abc import Callable
from operator import index as int_of
from typing import Any

import numpy as np

from ...ir import dtypes
from ...ir.errors import DTypeError, IndexKindError, IndexOutOfRange, OpError, TraceError
from ...ir.op import REGISTRY, Op
from ...ir.types import broadcast_shapes, normalize_axis
from ..creation import as_tensor, tensor
from ..library import ArgumentError
from ..operands import as_value, tensor_operand
from ..recording import STATE
from ..tensor import Tensor, make_view, ready
from ..values import TracedValue
from .shaping import clone_of, reshape, select, slice_dims, squeeze, unsqueeze

FUNCTIONS: dict[str, Callable[..., Any]] = {}
_SELECT = REGISTRY["select"]


_MASKS = (dtypes.bool_, dtypes.uint8)


def _is_advanced(i: Any) -> bool:
    return isinstance(i, (Tensor, np.ndarray, list, tuple, range))


def _index_tensor(i: Any) -> Tensor:
    if not isinstance(i, Tensor):
        i = np.asarray(i)
        i = i if i.size else i.astype(np.int64)  # an empty list has no dtype of its own
    t = i if isinstance(i, Tensor) else as_tensor(i)
    if t.dtype.kind == "f":
        raise IndexKindError(f"indices must be integers or bools, got a tensor of type {t._value().type}")
    return t


def _basic(x: Tensor, index: tuple[Any, ...]) -> tuple[Tensor, list[Tensor | None]]:
    """Applies ints, slices, None and Ellipsis as views; gives the view and its advanced index per
    dimension.
    """
    used = sum(
        (i.dim() if isinstance(i, Tensor) and i.dtype in _MASKS else 1)
        for i in index
        if i is not None and i is not Ellipsis and not isinstance(i, bool)
    )
    if used > x.dim():
        raise IndexOutOfRange(f"too many indices ({used}) for a tensor of type {x._value().type}")
    if sum(1 for i in index if i is Ellipsis) > 1:
        raise IndexOutOfRange("an index can hold only one Ellipsis (...)")
    if not any(i is Ellipsis for i in index):
        index = (*index, Ellipsis)
    out, advanced, dim = x, [], 0
    source = 0  # the dimension of x that `dim` of the view came from, for messages
    for i in index:
        if i is None:
            out = unsqueeze(out, dim)
            advanced.append(None)
            dim += 1
        elif i is Ellipsis:
            n = x.dim() - used
            advanced.extend([None] * n)
            dim += n
            source += n
        elif isinstance(i, slice):
            n = tuple(out.shape)[dim]
            try:
                first, last, step = (None if s is None else int_of(s) for s in (i.start, i.stop, i.step))
            except TypeError:
                raise DTypeError(f"a slice is of integers or None, not {i!r:.80}") from None
            step = 1 if step is None else step
            if step <= 0:
                raise ArgumentError(f"slice steps must be positive, got {step}; use flip() to reverse")
            start, stop, _ = slice(first, last, step).indices(n)
            if (start, stop, step) != (0, n, 1):
                out = slice_dims(out, {dim: (start, max(stop, start), step)})
            advanced.append(None)
            dim += 1
            source += 1
        elif isinstance(i, (bool, np.bool_)) or (
            isinstance(i, Tensor) and i.dim() == 0 and i.dtype in _MASKS
        ):
            out = unsqueeze(out, dim)
            advanced.append(tensor([0] if i else [], dtype=dtypes.int64))
            dim += 1
        elif isinstance(i, (int, np.integer)) or (
            isinstance(i, Tensor) and i.dim() == 0 and i.dtype.kind in "iu" and STATE.trace is STATE.lazy
        ):
            n, k = tuple(out.shape)[dim], int(i)
            if not -n <= k < n:
                raise IndexOutOfRange(f"index {k} is out of bounds for dimension {source} with size {n}")
            out = select(out, dim, k)
            source += 1
        elif _is_advanced(i):
            t = _index_tensor(i)
            if t.dtype in _MASKS:
                shape = tuple(out.shape)[dim : dim + t.dim()]
                if tuple(t.shape) != shape:
                    raise IndexOutOfRange(
                        f"a mask of shape {list(t.shape)} does not fit dimensions "
                        f"{list(shape)} of the indexed tensor"
                    )
                for k in _places(t):
                    advanced.append(k)
                    dim += 1
                    source += 1
            else:
                advanced.append(t)
                dim += 1
                source += 1
        else:
            raise IndexKindError(
                f"a tensor can't be indexed by {type(i).__name__}: {i!r:.60}; indices are integers, slices, "
                f"None, ..., and tensors or lists of integers or bools"
            )
    return out, advanced


_WRAPS = ("", "take", "put", "index_fill")


def checked_indices(trace: Any, index: Tensor, size: int, dim: int, name: str = "") -> Any:
    """An index tensor as an i64 value. Indices whose values are known are checked here; others wrap and are
    clamped natively. Of the named functions some, as in PyTorch, count no negative ones from the end."""
    if index.dtype.kind not in "iu":
        raise IndexKindError(f"{name}(): expected integer indices, got a tensor of {index._value().type}")
    v = as_value(trace, index, dtypes.int64)
    known = index._value().known
    if known is not None and known.type.numel:
        low, high = int(known.array.min()), int(known.array.max())
        least = -size if name in _WRAPS else 0
        if low < least or high >= size:
            bad = low if low < least else high
            where = f"{name}({v.type}): " if name else ""
            raise IndexOutOfRange(f"{where}index {bad} is out of bounds for dimension {dim} with size {size}")
    return v


def _normal(index: Any) -> tuple[Any, ...]:
    """The index of each dimension. A short list that holds lists, tensors, slices, None or `...` is a tuple
    of indices, as it was in NumPy and still is in PyTorch."""
    if isinstance(index, tuple):
        return index
    if index.__class__ is list and len(index) < 32 and any(_not_a_number(i) for i in index):
        return tuple(index)
    return (index,)


def _not_a_number(i: Any) -> bool:
    return i is None or i is Ellipsis or isinstance(i, (Tensor, np.ndarray, list, tuple, range, slice))


def _places(mask: Tensor) -> tuple[Tensor, ...]:
    """Where a mask holds, an index tensor per dimension."""
    a = contents_of(mask, "a mask as an index", "where(mask, x, 0), masked_fill() or a product with the mask")
    return tuple(tensor(f.astype(np.int64)) for f in np.nonzero(np.atleast_1d(a)))


def getitem(x: Tensor, index: Any) -> Tensor:
    """`x[index]`: a view for ints, slices, None and `...`; a copy for masks and integer tensors."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, x)
    kind = index.__class__
    value = x._value()
    plain = kind is int or kind is slice or kind is tuple
    if plain and not value.requires_grad and (trace is STATE.lazy or trace.loading):
        part = _part(x, index)
        if part is not None:
            return part
    if kind is int:
        shape = value.type.shape
        if shape and -shape[0] <= index < shape[0]:
            return make_view(x, _SELECT, {"dim": 0, "index": index % shape[0]})
    view, advanced = _basic(x, _normal(index))
    if not any(a is not None for a in advanced):
        return make_view(x, REGISTRY["alias"], {}) if view is x else view
    return Tensor(_gather_op(view, advanced))


#: bytes of a part of a known tensor that are copied when it is indexed
_COPIED = 1 << 26


def _part(x: Tensor, index: Any) -> Tensor | None:
    """`x[index]`, a view with known contents, for ints and slices; None where contents are not known, where
    gradients flow, or where the ordinary way has the message.

    Its contents are copied at once instead of recorded: in `for i in range(n): step(x[i:i + 32])` the places
    are never the same again, and each would be a program of its own.
    """
    value = x._value()
    buffer = value.buffer
    if buffer is None or value.requires_grad or x._storage.native:
        return None
    shape = value.type.shape
    places: tuple[Any, ...] = index if index.__class__ is tuple else (index,)
    if len(places) > len(shape):
        return None
    ranges = [(0, n, 1) for n in shape]
    selects: list[tuple[Op, dict[str, Any]]] = []
    for d, i in enumerate(places):
        n = shape[d]
        if i.__class__ is int:
            if not -n <= i < n:
                return None
            selects.append((_SELECT, {"dim": d - len(selects), "index": i % n}))
        elif i.__class__ is slice:
            if any(k is not None and k.__class__ is not int for k in (i.start, i.stop, i.step)):
                return None
            start, stop, step = i.indices(n) if i.step is None or i.step > 0 else (0, 0, 0)
            if not step:
                return None
            ranges[d] = (start, max(start, stop), step)
        else:
            return None
    view: list[tuple[Op, dict[str, Any]]] = []
    if any(r != (0, n, 1) for r, n in zip(ranges, shape)):
        begin, end, steps = zip(*ranges)
        view.append((_SLICE, {"start": begin, "stop": end, "step": steps}))
    view += selects
    contents = buffer.part(places, _COPIED) if view else None
    if contents is None:
        return None
    part = Tensor(TracedValue(contents.type, None, 0, None, contents))
    part._cached, part._storage, part._version_seen = part._storage.value, x._storage, x._storage.version
    part._hold, part._view = None, (*(x._view or ()), *view)
    return part


_SLICE = REGISTRY["slice"]


def _gather_op(view: Tensor, advanced: list[Tensor | None]) -> Any:
    dims = tuple(d for d, a in enumerate(advanced) if a is not None)
    trace = STATE.trace
    shape = tuple(view.shape)
    indices = tuple(checked_indices(trace, a, shape[d], d) for d, a in enumerate(advanced) if a is not None)
    _check_fit(indices)
    return trace.emit(REGISTRY["index"], (view._value(), *indices), {"dims": dims})


def _check_fit(indices: tuple[Any, ...]) -> None:
    """Index tensors must broadcast together; that they don't is an IndexError, as in PyTorch."""
    if len(indices) > 1:
        try:
            broadcast_shapes(*[i.type.shape for i in indices])
        except OpError:
            shapes = ", ".join(str(list(i.type.shape)) for i in indices)
            raise IndexOutOfRange(f"index tensors of shapes {shapes} do not broadcast together") from None


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """`x[index] = value`, in place; also through views."""
    trace = STATE.trace
    mask = _row_mask(x, index) if isinstance(value, (Tensor, int, float)) else None
    if mask is not None and (not isinstance(value, Tensor) or value.numel() == 1):
        masked_fill_(x, mask, value)
        return
    view, advanced = _basic(x, _normal(index))
    dtype = x.dtype
    if not isinstance(value, Tensor):
        value = tensor(value, dtype=dtype) if not isinstance(value, (int, float, bool)) else value
    v: Any = as_value(trace, value, dtype)
    if not any(a is not None for a in advanced):
        shape = tuple(view.shape)
        if v.type.shape != shape:
            v = broadcast_value(v, shape)
        else:
            v = trace.emit(REGISTRY["alias"], (v,), {})
        view._put(v)
        return
    dims = tuple(d for d, a in enumerate(advanced) if a is not None)
    shape = tuple(view.shape)
    indices = tuple(checked_indices(trace, a, shape[d], d) for d, a in enumerate(advanced) if a is not None)
    v = broadcast_value(v, _region(view._value(), indices, dims))
    out = trace.emit(REGISTRY["index_put"], (view._value(), v, *indices), {"dims": dims, "accumulate": False})
    view._put(out)


def _row_mask(x: Tensor, index: Any) -> Tensor | None:
    """Of `x[mask]` and `x[:, mask]` the mask, in as many dimensions as `x`: a number is written where it
    holds without asking for the places. None for other indices, and for a mask that does not fit."""
    whole = 0
    if index.__class__ is tuple:
        while whole < len(index) and index[whole] == slice(None) and index[whole].__class__ is slice:
            whole += 1
        if whole != len(index) - 1:
            return None
        index = index[whole]
    if not isinstance(index, Tensor) or index.dtype is not dtypes.bool_:
        return None
    shape, held = tuple(x.shape), tuple(index.shape)
    if not held or held != shape[whole : whole + len(held)]:
        return None
    rest = len(shape) - whole - len(held)
    return reshape(index, (*held, *(1,) * rest)) if rest else index


def broadcast_value(v: Any, shape: tuple[int, ...]) -> Any:
    trace: Any = STATE.trace
    if v.type.shape == shape:
        return v
    while v.type.rank > len(shape) and v.type.shape[0] == 1:
        v = trace.reshape(v, shape=v.type.shape[1:])
    return trace.expand(v, shape=shape)


def _region(x: Any, indices: tuple[Any, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `x[indices]`."""
    _check_fit(indices)
    types = (x.type, *(i.type for i in indices))
    return REGISTRY["index"].infer_types(types, {"dims": dims})[0].shape


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Indices of the elements that are not zero: i64 `[n, ndim]`, or a tuple of `[n]` per dimension."""
    a = contents_of(tensor_operand(input, "nonzero(): input"), "nonzero()", "a mask, x != 0")
    found = np.nonzero(np.atleast_1d(a))
    where = input.device
    if as_tuple:
        return tuple(tensor(f.astype(np.int64), device=where) for f in found)
    return tensor(np.stack(found, axis=1).astype(np.int64)[:, : input.dim()], device=where)


def contents_of(input: Tensor, what: str, instead: str) -> np.ndarray:
    """The elements of a tensor whose values decide the shape of a result. A function that is being compiled
    does not know them: the error there says what to write `instead`."""
    try:
        return input.detach()._array()
    except TraceError as e:
        raise TraceError(
            f"{what}: how many elements the result has is decided by the values of a tensor of type "
            f"{input._value().type}, and shapes must be known while a function is compiled; write {instead}, "
            f"or do this outside the compiled function"
        ) from e


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where `mask` holds, as a vector."""
    _check_mask("masked_select", mask)
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    return getitem(input.expand(shape), mask.expand(shape))


def _check_mask(name: str, mask: Any) -> None:
    if tensor_operand(mask, f"{name}(): mask").dtype is not dtypes.bool_:
        raise DTypeError(f"{name}(): the mask must be a bool tensor, got {mask._value().type}; use .bool()")


def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`input` with `value` where `mask` holds."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input)
    if isinstance(value, Tensor) and value.dim() != 0:
        raise OpError(f"masked_fill(): value must be a number or a 0-d tensor, got {value._value().type}")
    _check_mask("masked_fill", mask)
    x = input._value()
    v = as_value(trace, value, x.type.dtype)
    return Tensor(trace.emit(REGISTRY["where"], (as_value(trace, mask, dtypes.bool_), v, x), {}))


def masked_fill_(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`masked_fill` in place."""
    _check_mask("masked_fill_", mask)
    trace = STATE.trace
    v = value if not isinstance(value, Tensor) or value.dim() == 0 else value.reshape(())
    old = x._value()
    new: Any = trace.emit(
        REGISTRY["where"],
        (as_value(trace, mask, dtypes.bool_), as_value(trace, v, x.dtype), old),
        {},
    )
    if new.type.shape != old.type.shape:
        raise OpError(f"masked_fill_(): a mask of shape {list(mask.shape)} for a tensor of type {old.type}")
    return x._put(new)


def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """`out[i][j] = input[index[i][j]][j]` for dim 0, and so on."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input)
    d = normalize_axis(dim, input.dim())
    if not index.numel():  # of any shape
        return Tensor(trace.take_flat(input._value(), as_value(trace, index, dtypes.int64)))
    x, i = vectors(trace, input, checked_indices(trace, index, extent(input, d), d, "gather"))
    out = trace.emit(REGISTRY["gather"], (x, i), {"dim": d})
    return Tensor(
        out if out.type.shape == tuple(index.shape) else trace.reshape(out, shape=tuple(index.shape))
    )


def extent(t: Tensor, dim: int) -> int:
    """The size along `dim`; a scalar counts as a vector of one element."""
    return tuple(t.shape)[dim] if t.dim() else 1


def vectors(trace: Any, input: Tensor, *others: Any) -> tuple[Any, ...]:
    """The tensor and other values, scalars as vectors of one element."""
    return tuple(v if v.type.rank else trace.reshape(v, shape=(1,)) for v in (input._value(), *others))


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices along `dim` at the indices."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input)
    d = normalize_axis(dim, input.dim())
    x, i = vectors(trace, input, checked_indices(trace, index, extent(input, d), d, "index_select"))
    if i.type.rank != 1:
        raise IndexOutOfRange(f"index_select(): expected a vector of indices, got {index._value().type}")
    out: Any = trace.emit(REGISTRY["take"], (x, i), {"dim": d})
    return Tensor(out if input.dim() else trace.reshape(out, shape=()))


def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """`input` with `src` (a tensor or a number) written at `index` along `dim`, or combined with what is
    there: `reduce` is None, `"add"` or `"multiply"`."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input, src)
    src = value if src is None else src
    if reduce not in _SCATTER:
        raise OpError(f"scatter(): reduce must be None, 'add' or 'multiply', not {reduce!r}")
    if isinstance(src, Tensor) and src.dtype is not input.dtype:
        raise DTypeError(
            f"scatter(): expected a source of dtype {input.dtype}, got {src._value().type}; use .to()"
        )
    d = normalize_axis(dim, input.dim())
    if not index.numel():
        return clone_of(input)
    at = checked_indices(trace, index, extent(input, d), d, "scatter")
    x, i, s = vectors(trace, input, at, as_value(trace, src, input.dtype))
    if not isinstance(src, Tensor):
        s = broadcast_value(s, i.type.shape)
    elif s.type.shape != i.type.shape:  # PyTorch reads the leading part
        zero = (0,) * s.type.rank
        s = trace.slice(s, start=zero, stop=i.type.shape, step=(1,) * s.type.rank)
    out = trace.emit(REGISTRY["scatter"], (x, i, s), {"dim": d, "reduce": _SCATTER[reduce]})
    return Tensor(out if input.dim() else trace.reshape(out, shape=()))


_SCATTER = {None: "none", "add": "add", "multiply": "prod"}


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """`input` with `src` added at `index` along `dim`."""
    return scatter(input, dim, index, src, reduce="add")


def index_put(input: Tensor, indices: tuple[Tensor, ...], values: Tensor, accumulate: bool = False) -> Tensor:
    """`input` with `values` written (or added) at the indices of its leading dimensions."""
    trace = STATE.trace
    positions: list[Tensor] = []
    for i in indices:
        t = _index_tensor(i)
        positions.extend(_places(t) if t.dtype in _MASKS else [t])
    if len(positions) > input.dim():
        raise IndexOutOfRange(
            f"too many indices ({len(positions)}) for a tensor of type {input._value().type}"
        )
    ints = tuple(checked_indices(trace, i, n, d) for d, (i, n) in enumerate(zip(positions, input.shape)))
    dims = tuple(range(len(ints)))
    v = broadcast_value(as_value(trace, values, input.dtype), _region(input._value(), ints, dims))
    attrs = {"dims": dims, "accumulate": bool(accumulate)}
    return Tensor(trace.emit(REGISTRY["index_put"], (input._value(), v, *ints), attrs))


for _fn in (
    nonzero, masked_select, masked_fill, gather, index_select, scatter, scatter_add, index_put,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn

__all__ = ["FUNCTIONS", "getitem", "setitem", "squeeze"]
