"""Look-ups of rows of a weight: embedding, and embedding_bag, which reduces the rows of each bag."""

from __future__ import annotations

import math
from typing import Any

from .. import batch_rules
from ..dtypes import opmath
from ..errors import OpError
from ..op import Sample
from ..types import Type
from .indexing import check_index, take_infer, zeros_of
from .records import I64, check_float, composite, f32, i32, i64, integer_maker, widen


def _embedding(w: Type, i: Type, *, padding_idx: int | None = None, by_freq: bool = False) -> Type:
    if w.rank != 2:
        raise OpError(f"expected a weight [count, size], got {w}")
    return take_infer(w, i)


def _lookup(b: Any, w: Any, i: Any, *, padding_idx: int | None = None, by_freq: bool = False) -> Any:
    return b.take(w, i, dim=0)


def _embedding_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    def weight() -> Any:
        i, pad, h, count = n[1], n.attr("padding_idx"), g, n.type(0).shape[0]
        column = (*i.type.shape, 1)
        if pad is not None:
            row = b.eq(i, b.const(pad % count, i))
            h = b.where(b.reshape(row, shape=column), b.const(0, g), g)
        if n.attr("by_freq"):
            none = b.full(shape=(count,), value=0.0, dtype=g.type.dtype)
            one = b.full(shape=i.type.shape, value=1.0, dtype=g.type.dtype)
            often = b.index_put(none, one, i, dims=(0,), accumulate=True)
            h = b.div(h, b.reshape(b.take(often, i, dim=0), shape=column))
        return b.index_put(zeros_of(b, n.type(0), g), h, i, dims=(0,), accumulate=True)

    return weight, None


composite(
    "embedding",
    _embedding,
    _lookup,
    _embedding_grad,
    batch=batch_rules.embedding,
    samples=lambda: [
        Sample((f32(5, 3), i64(2, 4)), make=integer_maker(None, (0, 5))),
        Sample((f32(5, 3), i64(0)), make=integer_maker(None, (0, 5))),
    ],
    doc="Rows of a weight; the row padding_idx gets no gradient, others one over how often they occur.",
)

_MODES = ("sum", "mean", "max")


def _bag_infer(
    w: Type, i: Type, *more: Type, mode: str = "mean", last: bool = False, padding_idx: int | None = None,
    by_freq: bool = False,
) -> Type:  # fmt: skip
    check_index(i)
    check_float(w)
    if w.rank != 2 or i.rank not in (1, 2):
        raise OpError(f"expected a weight [count, size] and indices of 1 or 2 dimensions, got {w} and {i}")
    if mode not in _MODES:
        raise OpError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    bags, rest = i.shape[0], more
    if i.rank == 1:
        if not more or more[0].rank != 1 or more[0].dtype.kind != "i" or more[0].shape[0] < last:
            raise OpError("expected offsets, a vector of integers, after indices of 1 dimension")
        bags, rest = more[0].shape[0] - last, more[1:]
    if len(rest) > 1 or any(t.shape != i.shape or t.dtype is not w.dtype for t in rest):
        raise OpError(f"expected at most weights of type {w.with_shape(i.shape)} after them, got {rest}")
    if rest and mode != "sum":
        raise OpError(f"weights of single indices are for mode 'sum' only, got mode {mode!r}")
    return w.with_shape((bags, w.shape[1]))


def _bags(b: Any, i: Any, offsets: Any) -> tuple[Any, int]:
    """(the bag that each index is in, number of bags): how many offsets are not after it."""
    n, count = i.type.shape[0], offsets.type.shape[0]
    one = b.full(shape=(count,), value=1, dtype=I64)
    starts = b.index_put(b.full(shape=(n + 1,), value=0, dtype=I64), one, offsets, dims=(0,), accumulate=True)
    starts = b.slice(starts, start=(0,), stop=(n,), step=(1,))
    return b.sub(b.cumsum(starts, dim=0), b.const(1, I64)), count


def _embedding_bag(
    b: Any, w: Any, i: Any, *more: Any, mode: str = "mean", last: bool = False,
    padding_idx: int | None = None, by_freq: bool = False,
) -> Any:  # fmt: skip
    flat = i.type.rank == 1
    weights = more[1:] if flat else more
    d, size = opmath(w.type.dtype), w.type.shape[1]
    rows = widen(b, b.embedding(w, i, by_freq=by_freq))
    column = (*i.type.shape, 1)
    if weights:
        rows = b.mul(rows, b.reshape(widen(b, weights[0]), shape=column))
    keep = None
    if padding_idx is not None:
        keep = b.ne(i, b.const(padding_idx % w.type.shape[0], i))
        zero = b.const(-math.inf if mode == "max" else 0.0, d)
        rows = b.where(b.reshape(keep, shape=column), rows, zero)
    counted = b.full(shape=i.type.shape, value=1.0, dtype=d) if keep is None else b.cast(keep, dtype=d)

    if not flat:
        best = mode == "max" and i.type.shape[1] > 0
        out = b.amax(rows, axes=(1,)) if best else b.sum(rows, axes=(1,))
        count = b.sum(counted, axes=(1,))
    else:
        ids, bags = _bags(b, i, more[0])

        def put(v: Any, *tail: int) -> Any:
            empty = b.full(shape=(bags, *tail), value=0.0, dtype=d)
            return b.index_put(empty, v, ids, dims=(0,), accumulate=True)

        count = put(counted)
        if mode == "max":
            lowest = b.full(shape=(bags, size), value=-math.inf, dtype=d)
            at = b.expand(b.reshape(ids, shape=column), shape=rows.type.shape)
            out = b.scatter(lowest, at, rows, dim=0, reduce="amax")
        else:
            out = put(rows, size)
    count = b.reshape(count, shape=(*count.type.shape, 1))
    if mode == "mean":
        out = b.div(out, b.maximum(count, b.const(1.0, d)))
    elif mode == "max":
        out = b.where(b.gt(count, b.const(0.0, d)), out, b.const(0.0, d))
    if flat and last:
        out = b.slice(out, start=(0, 0), stop=(out.type.shape[0] - 1, size), step=(1, 1))
    return b.cast_to(out, w.type.dtype)


def _bag_samples() -> list[Sample]:
    fixed = [
        Sample((f32(5, 3), i64(4, 2)), {"mode": m}, make=integer_maker(None, (0, 5)), smooth=m != "max")
        for m in _MODES
    ]
    make = integer_maker(None, (0, 5), (0, 4), None)

    def ordered(rng: Any, types: tuple[Type, ...]) -> list[Any]:
        arrays = make(rng, types)
        arrays[2].sort()
        arrays[2][:1] = 0
        return arrays

    split = [
        Sample((f32(5, 3), i64(6), i64(3)), {"mode": m, "padding_idx": 1}, make=ordered, smooth=m != "max")
        for m in _MODES
    ]
    return [
        *fixed,
        *split,
        Sample((f32(5, 3), i64(6), i32(4)), {"mode": "sum", "last": True}, make=ordered),
        Sample((f32(5, 3), i64(6), i64(3), f32(6)), {"mode": "sum"}, make=ordered),
        Sample((f32(5, 3), i64(2, 4), f32(2, 4)), {"mode": "sum"}, make=integer_maker(None, (0, 5), None)),
    ]


composite(
    "embedding_bag",
    _bag_infer,
    _embedding_bag,
    samples=_bag_samples,
    doc="The sum, mean or maximum of the rows of each bag: a row of indices, or those from one offset on.",
)
