"""Sorting, selection, quantiles, unique elements and binary search, with PyTorch's arguments.

Results whose size is data (`unique`, `unique_consecutive`) need the values: under `compile` they are the same
error as `nonzero`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir import dtypes
from ...ir.errors import DTypeError, IndexOutOfRange, OpError
from ...ir.op import REGISTRY
from ...ir.types import normalize_axis
from ...runtime.buffers import copy_of
from ..library import device_name
from ..operands import as_value, result_type, tensor_operand
from ..results import result_class
from ..tensor import Tensor, concrete
from . import indexing
from .rowwise import along, start

FUNCTIONS: dict[str, Callable[..., Any]] = {}
_SORT, _TOPK = result_class("sort"), result_class("topk")


def sort(
    input: Tensor,
    dim: int = -1,
    descending: bool = False,
    stable: bool | None = None,
) -> Any:
    """(values in order, their indices) along `dim`; NaN counts as largest. Always stable."""
    return _SORT(*along("sort", input, dim, descending=bool(descending)))


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices that sort `input` along `dim`. Always stable."""
    return along("argsort", input, dim, descending=bool(descending))


def msort(input: Tensor) -> Tensor:
    """`input` sorted along its first dimension."""
    return sort(input, 0).values


def _place(name: str, input: Tensor, k: Any, dim: int, low: int) -> int:
    start(name, input)
    if not isinstance(k, (int, np.integer)):
        raise DTypeError(f"{name}(): k must be an integer, got {type(k).__name__}: {k!r:.40}")
    axis = normalize_axis(dim, input.dim())
    n = input.shape[axis] if input.dim() else 1
    if not low <= k <= n:
        raise (OpError if n else IndexOutOfRange)(
            f"{name}(): k = {k} is not in [{low}, {n}], the size of dimension {dim} of {input._value().type}"
        )
    return int(k)


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """(the `k` largest or smallest elements along `dim`, their indices), in order."""
    k = _place("topk", input, k, dim, 0)
    return _TOPK(*along("topk", input, dim, k=k, largest=bool(largest)))


def _picked(name: str, op: str) -> Callable[..., Any]:
    results = result_class(name)

    def pick(input: Tensor, dim: int, keepdim: bool, **attrs: Any) -> Any:
        start(name, input)
        if input.dim() and not input.shape[normalize_axis(dim, input.dim())]:
            raise IndexOutOfRange(
                f"{name}(): dimension {dim} of {input._value().type} is empty, so there is nothing to pick"
            )
        return results(*along(op, input, dim, keepdim=bool(keepdim), **attrs))

    return pick


_kth, _mode = _picked("kthvalue", "kthvalue"), _picked("mode", "mode")


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """(the `k`-th smallest element along `dim`, its index), k from 1."""
    return _kth(input, dim, keepdim, k=_place("kthvalue", input, k, dim, 1))


def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """(the most frequent element along `dim`, the smallest of several; the last index of it)."""
    return _mode(input, dim, keepdim)


def _median(name: str) -> None:
    pick = _picked(name, f"{name}_dim")

    def fn(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        trace = start(name, input)
        if input.dtype is dtypes.bool_:
            raise DTypeError(f"{name}(): bools have no median; convert with .int()")
        if dim is None:
            return Tensor(trace.emit(REGISTRY[name], (input._value(),), {}))
        return pick(input, dim, keepdim)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"The {name} of all elements; along `dim`, (values, indices). The lower of two; " + (
        "NaN if there is one." if name == "median" else "NaN does not count."
    )
    FUNCTIONS[name] = fn


for _name in ("median", "nanmedian"):
    _median(_name)

# --- quantiles ------------------------------------------------------------------------------------

_INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")


def _quantile(
    name: str, input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str, skip: bool
) -> Tensor:
    trace: Any = start(name, input)
    if input.dtype not in (dtypes.float32, dtypes.float64):
        raise DTypeError(f"{name}(): input must be of type f32 or f64, got {input._value().type}")
    if interpolation not in _INTERPOLATIONS:
        raise OpError(
            f"{name}(): interpolation must be one of {', '.join(_INTERPOLATIONS)}, not {interpolation!r}"
        )
    if isinstance(q, Tensor):
        if q.dim() > 1 or q.dtype is not input.dtype:
            raise OpError(
                f"{name}(): q must be a number, or a scalar or vector of input's type "
                f"{input.dtype.name}, got {q._value().type}"
            )
        known = q._value().buffer
        low_high = (known.array.min(), known.array.max()) if known is not None and known.array.size else ()
    else:
        low_high = (q,)
    if any(not 0 <= v <= 1 for v in low_high):
        raise OpError(f"{name}(): q must lie in [0, 1], got {q if not isinstance(q, Tensor) else low_high}")
    if not input.numel():
        raise OpError(f"{name}(): there is no quantile of no elements, got {input._value().type}")
    rank = input.dim()
    x = input._value()
    axis = normalize_axis(dim, rank) if dim is not None else 0
    if dim is None or not rank:
        x = trace.reshape(x, shape=(x.type.numel,))
        kept = (1,) * rank
    else:
        x = trace.permute(x, dims=tuple([d for d in range(rank) if d != axis] + [axis]))
        kept = tuple(1 if d == axis else n for d, n in enumerate(input.shape))
    rows, n = x.type.shape[:-1], x.type.shape[-1]
    if not n:
        raise OpError(f"{name}(): input of type {input._value().type} has no elements along dim {dim}")
    last = len(rows)
    order, _ = trace.sort(x, dim=last)
    wanted = as_value(trace, q, input.dtype)
    count = wanted.type.numel if wanted.type.rank else 1
    wanted = trace.reshape(wanted, shape=(1,) * last + (count,))
    nan = trace.isnan(x)
    b = trace
    if skip:
        there = b.sum(b.cast(b.logical_not(nan), dtype=input.dtype), axes=(last,), keepdim=True)
        place = b.mul(wanted, b.sub(there, b.const(1, there)))
        place = b.maximum(place, b.const(0, place))
    else:
        place = b.mul(wanted, b.const(n - 1, wanted))
        place = b.where(b.any(nan, axes=(last,), keepdim=True), b.const(n - 1, place), place)
    place = b.expand(place, shape=(*rows, count))
    out = _between(b, order, place, last, interpolation)
    out = b.permute(out, dims=(last, *range(last)))
    scalar = not isinstance(q, Tensor) or not q.dim()
    head = () if scalar else (count,)
    return Tensor(b.reshape(out, shape=(*head, *(kept if keepdim else rows))))


def _between(b: Any, order: Any, place: Any, last: int, interpolation: str) -> Any:
    """Elements of sorted rows at fractional places."""
    rounded = {"lower": "floor", "higher": "ceil", "nearest": "round"}.get(interpolation, "floor")
    below = getattr(b, rounded)(place)
    value = b.gather(order, b.cast(below, dtype=dtypes.int64), dim=last)
    if interpolation in ("lower", "higher", "nearest"):
        return value
    above = b.gather(order, b.cast(b.ceil(place), dtype=dtypes.int64), dim=last)
    weight = b.sub(place, below) if interpolation == "linear" else b.const(0.5, place)
    return b.lerp(value, above, weight)


def quantile(
    input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear",
) -> Tensor:  # fmt: skip
    """The `q`-quantiles (a number or a vector, which comes first in the result) over `dim` (None: all); NaN
    where there is one."""
    return _quantile("quantile", input, q, dim, keepdim, interpolation, False)


def nanquantile(
    input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear",
) -> Tensor:  # fmt: skip
    """`quantile` of what is not NaN."""
    return _quantile("nanquantile", input, q, dim, keepdim, interpolation, True)


# --- unique elements ------------------------------------------------------------------------------


def _fresh(array: Any, dtype: Any, like: Tensor) -> Tensor:
    return concrete(copy_of(np.asarray(array), dtype).on(device_name(like)))


def _chosen(values: Tensor, inverse: Any, counts: Any, return_inverse: bool, return_counts: bool) -> Any:
    made: list[Tensor] = [values]
    if return_inverse:
        made.append(_fresh(inverse, dtypes.int64, values))
    if return_counts:
        made.append(_fresh(counts, dtypes.int64, values))
    return tuple(made) if len(made) > 1 else values


def _known(input: Tensor, what: str) -> np.ndarray:
    tensor_operand(input, f"{what}: input")
    return indexing.contents_of(input, what, "sort(), and compare neighbours for a mask of the first of each")


def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The distinct elements in order (or slices along `dim`), and on demand for each element the index of
    its own among them, and how often each occurs."""
    a = _known(input, "unique()")
    axis = None if dim is None else normalize_axis(dim, input.dim())
    found, inverse, counts = np.unique(a, return_inverse=True, return_counts=True, axis=axis, equal_nan=False)
    inverse = inverse.reshape(a.shape if axis is None else (a.shape[axis],))
    return _chosen(_fresh(found, input.dtype, input), inverse, counts, return_inverse, return_counts)


def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The elements (or slices along `dim`) that differ from the one before, as `unique`."""
    a = _known(input, "unique_consecutive()")
    if dim is None:
        rows, shape = a.reshape(-1), a.shape
        new = rows[1:] != rows[:-1]
        axis = 0
    else:
        axis = normalize_axis(dim, input.dim())
        rows, shape = a, (a.shape[axis],)
        moved = np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1)
        new = (moved[1:] != moved[:-1]).any(1)
    n = rows.shape[axis]
    first = np.concatenate([np.ones(min(n, 1), bool), new])
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, n))
    inverse = (np.cumsum(first) - 1).reshape(shape)
    found = np.take(rows, starts, axis)
    return _chosen(_fresh(found, input.dtype, input), inverse, counts, return_inverse, return_counts)


# --- binary search --------------------------------------------------------------------------------


def _search(name: str, seq: Tensor, values: Any, right: bool, out_int32: bool) -> Tensor:
    trace: Any = start(name, seq)
    d = result_type(seq, values) if isinstance(values, Tensor) else result_type(values, seq)
    if isinstance(values, Tensor) and values.dtype is not seq.dtype and seq.dtype.kind == "f":
        d = seq.dtype if values.dtype.kind != "f" else d
    x, v = as_value(trace, seq, d), as_value(trace, values, d)
    if x.type.rank == 0 or (x.type.rank > 1 and x.type.shape[:-1] != v.type.shape[:-1]):
        raise OpError(
            f"{name}(): expected a sorted sequence of one dimension, or of the values' shape but for the "
            f"last dimension, got {seq._value().type} and values {v.type}"
        )
    place = trace.searchsorted(x, v, right=bool(right))
    return Tensor(trace.cast(place, dtype=dtypes.int32) if out_int32 else place)


def searchsorted(
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Where each element of `input` would go in the last dimension of `sorted_sequence` to keep it in order:
    before its equals, or after them (`right`, or `side="right"`)."""
    tensor_operand(sorted_sequence, "searchsorted(): sorted_sequence")
    if side not in (None, "left", "right"):
        raise OpError(f"searchsorted(): side must be 'left' or 'right', not {side!r}")
    if side == "left" and right:
        raise OpError("searchsorted(): side='left' contradicts right=True; give one of them")
    if sorter is not None:
        if tuple(sorter.shape) != tuple(sorted_sequence.shape):
            raise OpError(
                f"searchsorted(): sorter must have the sequence's shape, got {sorter._value().type} "
                f"for {sorted_sequence._value().type}"
            )
        sorted_sequence = indexing.FUNCTIONS["gather"](sorted_sequence, -1, sorter)
    found = _search("searchsorted", sorted_sequence, input, right or side == "right", out_int32)
    return found


def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """The bucket of each element between sorted `boundaries`; the right border of a bucket belongs to it, or
    with `right` the left one."""
    if tensor_operand(boundaries, "bucketize(): boundaries").dim() != 1:
        raise OpError(f"bucketize(): boundaries must have one dimension, got {boundaries._value().type}")
    return _search("bucketize", boundaries, input, right, out_int32)


for _fn in (
    sort, argsort, msort, topk, kthvalue, mode, quantile, nanquantile, unique, unique_consecutive,
    searchsorted, bucketize,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
