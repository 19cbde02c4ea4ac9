"""Composites of indexing: masked_fill, one_hot, index_add, bincount."""

from __future__ import annotations

from typing import Any

from .. import batch_rules
from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .indexing import check_index, index_plan
from .records import (
    I64,
    boolean,
    check_dim,
    check_same_dtype,
    composite,
    elementwise,
    f32,
    i32,
    i64,
    integer_maker,
)


def _masked_fill(x: Type, mask: Type, value: Type) -> Type:
    check_same_dtype(x, value)
    if mask.dtype.kind != "b" or value.rank:
        raise DTypeError(f"expected a bool mask and a scalar value, got {mask} and {value}")
    return Type(x.dtype, broadcast_shapes(x.shape, mask.shape))


elementwise(
    "masked_fill",
    lambda s, x, mask, value: s.select(mask, value, x),
    lambda b, n, g: (
        (lambda: b.where(n[1], b.const(0, g), g)),
        None,
        lambda: b.where(n[1], g, b.const(0, g)),
    ),
    infer=_masked_fill,
    samples=lambda: [Sample((f32(3, 4), boolean(4), f32())), Sample((f32(1, 2), boolean(3, 1), f32()))],
    batch=batch_rules.masked_fill,
    doc="x with `value` where the mask holds.",
)


def _one_hot(i: Type, *, num_classes: int) -> Type:
    check_index(i)
    if num_classes < 1:
        raise OpError(f"num_classes must be >= 1, got {num_classes}")
    return Type(I64, (*i.shape, num_classes))


composite(
    "one_hot",
    _one_hot,
    lambda b, i, *, num_classes: b.cast(
        b.eq(b.unsqueeze(b.cast_to(i, I64), dim=-1), b.iota(shape=(num_classes,), dim=0, dtype=I64)),
        dtype=I64,
    ),
    differentiable=False,
    samples=lambda: [
        Sample((i64(3),), {"num_classes": 4}, make=integer_maker((0, 4))),
        Sample((i32(2, 0),), {"num_classes": 2}, make=integer_maker((0, 2))),
    ],
    doc="1 at the class, 0 elsewhere.",
)


def _index_add(x: Type, i: Type, src: Type, *, dim: int, alpha: float = 1) -> Type:
    check_dim(dim, x.rank)
    shape = index_plan(x, (i,), (dim,))[2]
    check_same_dtype(x, src)
    if i.rank != 1 or src.shape != shape:
        raise OpError(f"expected a vector of indices and a source of shape {list(shape)}, got {i} and {src}")
    return x


def _index_add_of(b: Any, x: Any, i: Any, src: Any, *, dim: int, alpha: float = 1) -> Any:
    v = src if alpha == 1 else b.mul(src, b.const(alpha, src))
    return b.index_put(x, v, i, dims=(dim,), accumulate=True)


composite(
    "index_add",
    _index_add,
    _index_add_of,
    samples=lambda: [
        Sample((f32(3, 2), i64(5), f32(5, 2)), {"dim": 0}, make=integer_maker(None, (0, 3), None)),
        Sample(
            (f32(3, 2), i64(4), f32(3, 4)), {"dim": 1, "alpha": -2.0}, make=integer_maker(None, (0, 2), None)
        ),
    ],
    doc="x + alpha * src at positions `i` of `dim`.",
)


def _bincount(i: Type, w: Type | None = None, *, size: int) -> Type:
    check_index(i)
    if i.rank != 1 or (w is not None and w.shape != i.shape):
        raise OpError(f"expected a vector of indices and weights of its shape, got {i} and {w}")
    return Type(I64 if w is None else w.dtype, (size,))


def _bincount_of(b: Any, i: Any, w: Any = None, *, size: int) -> Any:
    v = b.full(shape=i.type.shape, value=1, dtype=I64) if w is None else w
    return b.index_put(b.full(shape=(size,), value=0, dtype=v.type.dtype), v, i, dims=(0,), accumulate=True)


composite(
    "bincount",
    _bincount,
    _bincount_of,
    differentiable=False,
    samples=lambda: [
        Sample((i64(9),), {"size": 4}, make=integer_maker((0, 4))),
        Sample((i64(5), f32(5)), {"size": 6}, make=integer_maker((0, 6), None)),
    ],
    doc="How often each of 0 ... size-1 occurs, or the sum of its weights.",
)
