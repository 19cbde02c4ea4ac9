"""Composites that write at positions that are data: index_fill, index_copy, put, masked_scatter,
scatter_reduce."""

from __future__ import annotations

import math
from typing import Any

from ..errors import OpError
from ..op import Sample
from ..types import Type
from .indexing import check_index, index_plan
from .records import (
    I64,
    NUMERIC,
    boolean,
    check_dim,
    check_kind,
    check_same_dtype,
    composite,
    f32,
    i64,
    integer_maker,
)


def _vector_of_indices(x: Type, i: Type, dim: int) -> tuple[int, ...]:
    check_index(i)
    check_dim(dim, x.rank)
    if i.rank != 1:
        raise OpError(f"expected a vector of indices, got {i}")
    return index_plan(x, (i,), (dim,))[2]


def _index_fill(x: Type, i: Type, value: Type, *, dim: int) -> Type:
    _vector_of_indices(x, i, dim)
    check_same_dtype(x, value)
    if value.rank:
        raise OpError(f"expected a scalar value, got {value}")
    return x


composite(
    "index_fill",
    _index_fill,
    lambda b, x, i, value, *, dim: b.index_put(
        x, b.expand(value, shape=_vector_of_indices(x.type, i.type, dim)), i, dims=(dim,), accumulate=False
    ),
    grad_name="IndexFillBackward0",
    samples=lambda: [
        Sample((f32(3, 4), i64(2), f32()), {"dim": 1}, make=integer_maker(None, (-4, 4), None)),
        Sample((f32(3), i64(0), f32()), {"dim": 0}, make=integer_maker(None, (0, 3), None)),
    ],
    doc="x with `value` at positions `i` of `dim`.",
)


def _index_copy(x: Type, i: Type, src: Type, *, dim: int) -> Type:
    shape = _vector_of_indices(x, i, dim)
    check_same_dtype(x, src)
    if src.shape != shape:
        raise OpError(f"expected a source of shape {list(shape)}, got {src}")
    return x


composite(
    "index_copy",
    _index_copy,
    lambda b, x, i, src, *, dim: b.index_put(x, src, i, dims=(dim,), accumulate=False),
    grad_name="IndexCopyBackward0",
    samples=lambda: [
        Sample((f32(4, 3), i64(1), f32(1, 3)), {"dim": 0}, make=integer_maker(None, (0, 4), None)),
        Sample((f32(4, 3), i64(0), f32(4, 0)), {"dim": 1}, make=integer_maker(None, (0, 3), None)),
    ],
    doc="x with the slices of `src` at positions `i` of `dim`.",
)


def _take_flat(x: Type, i: Type) -> Type:
    check_index(i)
    return Type(x.dtype, i.shape)


composite(
    "take_flat",
    _take_flat,
    lambda b, x, i: b.take(b.reshape(x, shape=(x.type.numel,)), i, dim=0),
    grad_name="TakeBackward0",
    samples=lambda: [
        Sample((f32(3, 4), i64(2, 2)), make=integer_maker(None, (-12, 12))),
        Sample((f32(), i64(3)), make=integer_maker(None, (0, 1))),
    ],
    doc="Elements at positions of the flattened operand.",
)


def _put(x: Type, i: Type, src: Type, *, accumulate: bool = False) -> Type:
    check_index(i)
    check_same_dtype(x, src)
    if i.numel != src.numel:
        raise OpError(f"expected as many indices as source elements, got {i} and {src}")
    return x


def _put_of(b: Any, x: Any, i: Any, src: Any, *, accumulate: bool = False) -> Any:
    flat, count = b.reshape(x, shape=(x.type.numel,)), (i.type.numel,)
    put = b.index_put(
        flat, b.reshape(src, shape=count), b.reshape(i, shape=count), dims=(0,), accumulate=accumulate
    )
    return b.reshape(put, shape=x.type.shape)


composite(
    "put",
    _put,
    _put_of,
    grad_name="PutBackward0",
    samples=lambda: [
        Sample((f32(3, 2), i64(4), f32(2, 2)), {"accumulate": True}, make=integer_maker(None, (0, 6), None)),
        Sample((f32(3, 2), i64(1), f32(1)), make=integer_maker(None, (-6, 6), None)),
    ],
    doc="x with `src` written, or added, at positions of the flattened operand.",
)


def _masked_scatter(x: Type, mask: Type, src: Type) -> Type:
    check_same_dtype(x, src)
    if mask.dtype.kind != "b" or mask.shape != x.shape:
        raise OpError(f"expected a bool mask of the operand's shape, got {mask} for {x}")
    return x


def _masked_scatter_of(b: Any, x: Any, mask: Any, src: Any) -> Any:
    """The k-th element under the mask is the k-th of the source: k counts the mask so far."""
    if not src.type.numel:
        return b.clone(x)
    count = b.cumsum(b.cast_to(b.reshape(mask, shape=(mask.type.numel,)), I64), dim=0)
    last = b.const(src.type.numel - 1, I64)
    k = b.minimum(b.maximum(b.sub(count, b.const(1, I64)), b.const(0, I64)), last)
    found = b.take(b.reshape(src, shape=(src.type.numel,)), k, dim=0)
    return b.where(mask, b.reshape(found, shape=x.type.shape), x)


composite(
    "masked_scatter",
    _masked_scatter,
    _masked_scatter_of,
    samples=lambda: [
        Sample((f32(3, 4), boolean(3, 4), f32(12)), make=integer_maker(None, (0, 2), None)),
        Sample((f32(2), boolean(2), f32(5)), make=integer_maker(None, (0, 2), None)),
    ],
    doc="x with the elements of `src`, in order, where the mask holds.",
)

_REDUCE = {"sum": "add", "prod": "prod", "mean": "add", "amax": "amax", "amin": "amin"}


def _scatter_reduce(x: Type, i: Type, src: Type, *, dim: int, reduce: str, include_self: bool = True) -> Type:
    check_index(i)
    check_same_dtype(x, src)
    check_kind(x.dtype, NUMERIC)
    check_dim(dim, x.rank)
    if reduce not in _REDUCE:
        raise OpError(f"reduce must be one of {', '.join(_REDUCE)}, got {reduce!r}")
    if i.shape != src.shape or i.rank != x.rank:
        raise OpError(f"expected indices and source of one shape for {x}, got {i} and {src}")
    return x


def _neutral(reduce: str, dtype: Any) -> Any:
    """What an element starts from that does not count."""
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if dtype.kind == "f":
        return -math.inf if reduce == "amax" else math.inf
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
    return low if reduce == "amax" else low + (1 << dtype.bits) - 1


def _scatter_reduce_of(
    b: Any, x: Any, i: Any, src: Any, *, dim: int, reduce: str, include_self: bool = True
) -> Any:
    d = x.type.dtype
    base = x
    if not include_self:
        start = b.full(shape=i.type.shape, value=_neutral(reduce, d), dtype=d)
        base = b.scatter(x, i, start, dim=dim, reduce="none")
    out = b.scatter(base, i, src, dim=dim, reduce=_REDUCE[reduce])
    if reduce != "mean":
        return out
    ones = b.full(shape=x.type.shape, value=1, dtype=d)
    if not include_self:
        zeros = b.full(shape=i.type.shape, value=0, dtype=d)
        ones = b.scatter(ones, i, zeros, dim=dim, reduce="none")
    each = b.full(shape=i.type.shape, value=1, dtype=d)
    count = b.scatter(ones, i, each, dim=dim, reduce="add")
    return b.div(out, count) if d.kind == "f" else b.floor_divide(out, count)


composite(
    "scatter_reduce",
    _scatter_reduce,
    _scatter_reduce_of,
    grad_name="ScatterReduceBackward0",
    samples=lambda: [
        Sample(
            (f32(3, 4), i64(3, 6), f32(3, 6)),
            {"dim": 1, "reduce": r, "include_self": s},
            make=integer_maker(None, (-4, 4), None),
        )
        for r in _REDUCE
        for s in (True, False)
    ],
    doc="x combined by `reduce` with src[..., k, ...] at i[..., k, ...] along `dim`.",
)
