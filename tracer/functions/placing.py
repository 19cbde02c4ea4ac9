"""Reading and writing at positions that are data: take, put, index_add and its kin, scatter_reduce,
masked_scatter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import dtypes
from ...ir.errors import DTypeError, OpError
from ...ir.op import REGISTRY
from ...ir.types import broadcast_shapes, normalize_axis
from ..operands import as_value, tensor_operand
from ..recording import STATE
from ..tensor import Tensor, ready
from .indexing import broadcast_value, checked_indices, extent, gather, vectors
from .shaping import expand, reshape

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _start(name: str, *tensors: Any) -> Any:
    for t in tensors:
        tensor_operand(t, f"{name}(): an operand")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    return trace


def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements at positions of the flattened tensor, in the shape of `index`."""
    trace = _start("take", input, index)
    i = checked_indices(trace, index, input.numel(), 0, "take")
    return Tensor(trace.emit(REGISTRY["take_flat"], (input._value(), i), {}))


def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """`input` with `source` written (or added) at positions of the flattened tensor."""
    trace = _start("put", input, index, source)
    _same_dtype("put", input, source)
    i = checked_indices(trace, index, input.numel(), 0, "put")
    attrs = {"accumulate": bool(accumulate)}
    return Tensor(trace.emit(REGISTRY["put"], (input._value(), i, source._value()), attrs))


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """Elements at `indices` along `dim`, the other dimensions broadcast; of the flattened tensor without
    `dim`."""
    if indices.dtype is not dtypes.int64:
        raise DTypeError(f"take_along_dim(): indices must be int64, got {indices._value().type}")
    if dim is None:
        return gather(reshape(input, -1), 0, reshape(indices, -1))
    d = normalize_axis(dim, input.dim())
    if input.dim() != indices.dim():
        raise OpError(
            f"take_along_dim(): expected as many dimensions, got {input._value().type} and "
            f"{indices._value().type}"
        )
    x, i = list(input.shape), list(indices.shape)
    size, count = x[d], i[d]
    x[d] = i[d] = 1
    shape = list(broadcast_shapes(tuple(x), tuple(i)))
    wide = [*shape[:d], size, *shape[d + 1 :]], [*shape[:d], count, *shape[d + 1 :]]
    return gather(expand(input, wide[0]), d, expand(indices, wide[1]))


def _same_dtype(name: str, input: Tensor, source: Tensor) -> None:
    if input.dtype is not source.dtype:
        raise DTypeError(
            f"{name}(): expected a source of dtype {input.dtype}, got {source._value().type}; use .to()"
        )


def _as_vectors(
    name: str, trace: Any, input: Tensor, dim: int, index: Tensor, source: Any
) -> tuple[Any, Any, Any, int]:
    """Values with scalars as vectors of one element, and the normalised dimension."""
    d = normalize_axis(dim, input.dim())
    i = checked_indices(trace, index, extent(input, d), d, name)
    if not isinstance(source, Tensor):
        return (*vectors(trace, input, i), None, d)
    s = source._value()
    if not i.type.rank and s.type.rank == input.dim() - 1:
        s = trace.unsqueeze(s, dim=d)
    return (*vectors(trace, input, i, s), d)


def _shaped(trace: Any, out: Any, input: Tensor) -> Tensor:
    return Tensor(out if input.dim() else trace.reshape(out, shape=()))


def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """`input` with `alpha * source` added at positions `index` of `dim`."""
    trace = _start("index_add", input, index, source)
    _same_dtype("index_add", input, source)
    x, i, s, d = _as_vectors("index_add", trace, input, dim, index, source)
    attrs = {"dim": d} if alpha == 1 else {"dim": d, "alpha": alpha}
    return _shaped(trace, trace.emit(REGISTRY["index_add"], (x, i, s), attrs), input)


def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`input` with the slices of `source` written at positions `index` of `dim`."""
    trace = _start("index_copy", input, index, source)
    _same_dtype("index_copy", input, source)
    x, i, s, d = _as_vectors("index_copy", trace, input, dim, index, source)
    return _shaped(trace, trace.emit(REGISTRY["index_copy"], (x, i, s), {"dim": d}), input)


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`input` with a number (or a 0-d tensor) at positions `index` of `dim`."""
    trace = _start("index_fill", input, index)
    if isinstance(value, Tensor) and value.dim():
        raise OpError(f"index_fill(): value must be a number or a 0-d tensor, got {value._value().type}")
    v = as_value(trace, value, input.dtype)
    x, i, _, d = _as_vectors("index_fill", trace, input, dim, index, None)
    return _shaped(trace, trace.emit(REGISTRY["index_fill"], (x, i, v), {"dim": d}), input)


_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


def scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """`input` combined with `src` at `index` along `dim`.

    Args:
        reduce: `"sum"`, `"prod"`, `"mean"`, `"amax"` or `"amin"`.
        include_self: whether the elements that were there count.
    """
    trace = _start("scatter_reduce", input, index, src)
    if reduce not in _REDUCTIONS:
        raise OpError(f"scatter_reduce(): reduce must be one of {', '.join(_REDUCTIONS)}, got {reduce!r}")
    _same_dtype("scatter_reduce", input, src)
    x, i, s, d = _as_vectors("scatter_reduce", trace, input, dim, index, src)
    if s.type.shape != i.type.shape:  # the leading part is read
        zero = (0,) * s.type.rank
        s = trace.slice(s, start=zero, stop=i.type.shape, step=(1,) * s.type.rank)
    attrs = {"dim": d, "reduce": reduce, "include_self": bool(include_self)}
    return _shaped(trace, trace.emit(REGISTRY["scatter_reduce"], (x, i, s), attrs), input)


def index_reduce(
    input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """`input` combined with the slices of `source` at positions `index` of `dim`; `reduce` as
    `scatter_reduce`."""
    d = normalize_axis(dim, input.dim())
    shape = [-1 if k == d else 1 for k in range(max(source.dim(), 1))]
    wide = expand(reshape(index, shape), tuple(source.shape)) if source.dim() else index
    return scatter_reduce(input, dim, wide, source, reduce, include_self=include_self)


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """`input` with the elements of `source`, in order, where `mask` holds."""
    trace = _start("masked_scatter", input, mask, source)
    _same_dtype("masked_scatter", input, source)
    if mask.dtype is not dtypes.bool_:
        raise DTypeError(f"masked_scatter(): expected a bool mask, got {mask._value().type}")
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    x, m = broadcast_value(input._value(), shape), broadcast_value(mask._value(), shape)
    known = m.buffer if m.buffer is not None else mask._value().buffer
    if known is not None:
        wanted = int(known.array.sum()) * (m.type.numel // max(known.array.size, 1))
        if wanted > source.numel():
            raise OpError(
                f"masked_scatter(): the mask holds at {wanted} places, the source of type "
                f"{source._value().type} has {source.numel()} elements"
            )
    return Tensor(trace.emit(REGISTRY["masked_scatter"], (x, m, source._value()), {}))


def argwhere(input: Tensor) -> Tensor:
    """Indices `[n, ndim]` of the elements that are not zero."""
    return input.nonzero()


for _fn in (
    take, put, take_along_dim, index_add, index_copy, index_fill, scatter_reduce, index_reduce,
    masked_scatter, argwhere,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
