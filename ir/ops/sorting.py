"""Sorting and what is made of it: sort, topk, kthvalue, medians, mode, and binary search.

The kernels give positions: `argsort` all of them, `argtopk` the first few. Values are gathered by position,
so that gradients are scattered by it. The order is PyTorch's: NaN is larger than everything, -0.0 equals 0.0,
equals stay in order (also when descending).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import IndexOutOfRange, OpError
from ..op import Op, Sample, register
from ..types import Type
from .indexing import zeros_of
from .records import (
    I64,
    accumulate,
    boolean,
    check_dim,
    check_same_dtype,
    composite,
    f32,
    i64,
    keepdim_shape,
    reduced_shape,
)

#: up to so many out of at least `RARE` times as many, the k extreme elements are kept in a list while each
#: element is looked at once
FEW, RARE = 64, 16


def _argsort(x: Type, *, dim: int, descending: bool = False) -> Type:
    check_dim(dim, x.rank)
    return Type(I64, x.shape)


def _argsort_numpy(x: np.ndarray, *, dim: int, descending: bool = False) -> np.ndarray:
    x = accumulate(x)
    if not descending:
        return np.argsort(x, dim, kind="stable").astype(np.int64)
    last = x.shape[dim] - 1
    return last - np.flip(np.argsort(np.flip(x, dim), dim, kind="stable"), dim).astype(np.int64)


def _shapes(smooth: bool = True, **attrs: Any) -> list[Sample]:
    return [
        Sample((f32(3, 5),), {"dim": 1, **attrs}, smooth=smooth),
        Sample((f32(4, 3),), {"dim": 0, **attrs}, smooth=smooth),
        Sample((f32(2, 7, 3),), {"dim": 1, **attrs}, smooth=smooth),
        Sample((f32(1),), {"dim": 0, **attrs}, smooth=smooth),
    ]


def _many(x: Any = f32) -> list[Sample]:
    """Sizes at which other algorithms take over, and many equals."""
    return [
        Sample((x(2, 200),), {"dim": 1}, (-9, 9), smooth=False),
        Sample((x(700),), {"dim": 0, "descending": True}, (-300, 300), smooth=False),
        Sample((i64(3, 9),), {"dim": 1}, (-2, 2), smooth=False),
        Sample((i64(300),), {"dim": 0, "descending": True}, (-900, 900), smooth=False),
        Sample((boolean(9),), {"dim": 0}, smooth=False),
    ]


register(
    Op(
        "argsort",
        _argsort,
        kernel="sort",
        numpy=_argsort_numpy,
        differentiable=False,
        samples=lambda: [
            *_shapes(False),
            *_shapes(False, descending=True),
            Sample((f32(0, 3),), {"dim": 0}),
            *_many(),
        ],
        doc="The positions along `dim` in the order of their elements; stable, NaN last (or first).",
    )
)


def _argtopk(x: Type, *, k: int, dim: int, largest: bool = True) -> Type:
    check_dim(dim, x.rank)
    if not 0 <= k <= x.shape[dim]:
        raise OpError(f"k = {k} is not in [0, {x.shape[dim]}], the size of dimension {dim} of {x}")
    return Type(I64, (*x.shape[:dim], k, *x.shape[dim + 1 :]))


register(
    Op(
        "argtopk",
        _argtopk,
        kernel="sort",
        numpy=lambda x, *, k, dim, largest=True: np.take(
            _argsort_numpy(x, dim=dim, descending=largest), range(k), dim
        ),
        differentiable=False,
        samples=lambda: [
            *_shapes(False, k=1),
            Sample((f32(3, 50),), {"dim": 1, "k": 5}),
            Sample((f32(40, 3),), {"dim": 0, "k": 4, "largest": False}),
            Sample((i64(2, 33),), {"dim": 1, "k": 7}, (-3, 3)),
            Sample((boolean(9),), {"dim": 0, "k": 9}),
            Sample((f32(3),), {"dim": 0, "k": 0}),
        ],
        doc="The positions of the `k` largest (or smallest) elements along `dim`, the first one first.",
    )
)


def _put_back(b: Any, n: Any, g: Any, i: Any) -> Any:
    """Gradients to the elements that were picked: each position at most once."""
    return b.scatter(zeros_of(b, n.type(0), g), i, g, dim=n.attrs["dim"])


# --- sort and topk --------------------------------------------------------------------------------


def _sort(x: Type, *, dim: int, descending: bool = False) -> tuple[Type, Type]:
    return x, _argsort(x, dim=dim, descending=descending)


def _sort_of(b: Any, x: Any, *, dim: int, descending: bool = False) -> Any:
    i = b.argsort(x, dim=dim, descending=descending)
    return b.gather(x, i, dim=dim), i


composite(
    "sort",
    _sort,
    _sort_of,
    lambda b, n, g, _: (_put_back(b, n, g, n.outs[1]),),
    samples=lambda: [*_shapes(), *_shapes(descending=True), Sample((f32(2, 0),), {"dim": 1}), *_many()],
    doc="(elements in order, their positions) along `dim`; stable, NaN last (or first).",
)


def _topk(x: Type, *, k: int, dim: int, largest: bool = True) -> tuple[Type, Type]:
    i = _argtopk(x, k=k, dim=dim, largest=largest)
    return Type(x.dtype, i.shape), i


def _topk_of(b: Any, x: Any, *, k: int, dim: int, largest: bool = True) -> Any:
    shape = x.type.shape
    if 0 < k <= FEW and RARE * k <= shape[dim]:
        i = b.argtopk(x, k=k, dim=dim, largest=largest)
    else:
        i = b.argsort(x, dim=dim, descending=largest)
        stop = tuple(k if d == dim else m for d, m in enumerate(shape))
        i = b.slice(i, start=(0,) * len(shape), stop=stop, step=(1,) * len(shape))
    return b.gather(x, i, dim=dim), i


composite(
    "topk",
    _topk,
    _topk_of,
    lambda b, n, g, _: (_put_back(b, n, g, n.outs[1]),),
    samples=lambda: [
        *_shapes(k=1),
        Sample((f32(3, 8),), {"dim": 1, "k": 3, "largest": False}),
        Sample((f32(3, 70),), {"dim": 1, "k": 4}, (-9, 9)),
        Sample((f32(3, 5),), {"dim": 1, "k": 4}),
        Sample((f32(20, 3),), {"dim": 0, "k": 20}),
        Sample((f32(3, 5),), {"dim": 1, "k": 0}),
        Sample((i64(9),), {"dim": 0, "k": 2}, (-2, 2), smooth=False),
    ],
    doc="(the k largest or smallest elements in order, their positions) along `dim`.",
)

# --- one element of each row, found by sorting ----------------------------------------------------

Position = Callable[..., Any]


def _picked(name: str, infer: Any, position: Position, samples: Any, grad_name: str, doc: str) -> None:
    """An op that gives one element along `dim` and where it is; `position(b, x, dim, **attrs)` finds it, with
    the dimension kept."""

    def decompose(b: Any, x: Any, *, dim: int, keepdim: bool = False, **attrs: Any) -> Any:
        i = position(b, x, dim, **attrs)
        found = b.gather(x, i, dim=dim)
        if keepdim:
            return found, i
        shape = reduced_shape(x.type.shape, (dim,), False)
        return b.reshape(found, shape=shape), b.reshape(i, shape=shape)

    def grad(b: Any, n: Any, g: Any, _: Any) -> tuple[Any, ...]:
        kept = keepdim_shape(n.type(0).shape, (n.attrs["dim"],))
        return (_put_back(b, n, b.reshape(g, shape=kept), b.reshape(n.outs[1], shape=kept)),)

    composite(name, infer, decompose, grad, samples=samples, grad_name=grad_name, doc=doc)


def _one(x: Type, *, dim: int, keepdim: bool = False) -> tuple[Type, Type]:
    check_dim(dim, x.rank)
    if x.shape[dim] == 0:
        raise IndexOutOfRange(f"has no value over an empty dimension; dimension {dim} of {x}")
    shape = reduced_shape(x.shape, (dim,), keepdim)
    return Type(x.dtype, shape), Type(I64, shape)


def _kthvalue(x: Type, *, k: int, dim: int, keepdim: bool = False) -> tuple[Type, Type]:
    check_dim(dim, x.rank)
    if not 1 <= k <= x.shape[dim]:
        raise OpError(f"k = {k} is not in [1, {x.shape[dim]}], the size of dimension {dim} of {x}")
    return _one(x, dim=dim, keepdim=keepdim)


def _at(b: Any, x: Any, dim: int, k: int) -> Any:
    """`x[..., k, ...]` along `dim`, which stays."""
    shape = x.type.shape
    start = tuple(k if d == dim else 0 for d in range(len(shape)))
    stop = tuple(k + 1 if d == dim else n for d, n in enumerate(shape))
    return b.slice(x, start=start, stop=stop, step=(1,) * len(shape))


def _kth(b: Any, x: Any, dim: int, *, k: int) -> Any:
    return _at(b, b.argsort(x, dim=dim), dim, k - 1)


def _nans(b: Any, x: Any, dim: int) -> Any:
    return b.sum(b.cast(b.isnan(x), dtype=I64), axes=(dim,), keepdim=True)


def _median_position(b: Any, x: Any, dim: int) -> Any:
    """The lower median's, or the first NaN's."""
    order, n = b.argsort(x, dim=dim), x.type.shape[dim]
    if x.type.dtype.kind != "f":
        return _at(b, order, dim, (n - 1) // 2)
    nans = _nans(b, x, dim)
    zero = b.const(0, nans)
    place = b.where(b.gt(nans, zero), b.sub(b.const(n, nans), nans), b.const((n - 1) // 2, nans))
    return b.gather(order, place, dim=dim)


def _nanmedian_position(b: Any, x: Any, dim: int) -> Any:
    order, n = b.argsort(x, dim=dim), x.type.shape[dim]
    if x.type.dtype.kind != "f":
        return _at(b, order, dim, (n - 1) // 2)
    nans = _nans(b, x, dim)
    half = b.floor_divide(b.sub(b.const(n - 1, nans), nans), b.const(2, nans))
    return b.gather(order, b.maximum(half, b.const(0, nans)), dim=dim)


def _mode_position(b: Any, x: Any, dim: int) -> Any:
    """In sorted order: the last place of the longest run of equals, the first run of that length."""
    order, shape = b.argsort(x, dim=dim), x.type.shape
    v, n = b.gather(x, order, dim=dim), shape[dim]
    if n == 1:
        return order
    first = b.slice(v, start=(0,) * len(shape), stop=tuple(
        m - 1 if d == dim else m for d, m in enumerate(shape)), step=(1,) * len(shape))  # fmt: skip
    second = b.slice(v, start=tuple(int(d == dim) for d in range(len(shape))), stop=shape,
                     step=(1,) * len(shape))  # fmt: skip
    low = tuple(int(d == dim) for d in range(len(shape)))
    starts = b.pad(b.cast(b.ne(first, second), dtype=I64), low=low, high=(0,) * len(shape), value=1)
    place = b.iota(shape=shape, dim=dim, dtype=I64)
    length = b.sub(place, b.cumargmax(starts, dim=dim))
    return b.gather(order, b.argmax(length, dim=dim, keepdim=True), dim=dim)


def _row_samples(**attrs: Any) -> Callable[[], list[Sample]]:
    return lambda: [
        Sample((f32(3, 5),), {"dim": 1, **attrs}),
        Sample((f32(4, 2, 3),), {"dim": 0, "keepdim": True, **attrs}),
        Sample((f32(6),), {"dim": 0, **attrs}),
        Sample((f32(0, 3),), {"dim": 1, **attrs}),
        Sample((i64(3, 9),), {"dim": 1, **attrs}, (-2, 2), smooth=False),
    ]


_picked("kthvalue", _kthvalue, _kth, _row_samples(k=2), "KthvalueBackward0",
        "(the k-th smallest element along `dim`, its position).")  # fmt: skip
_picked("median_dim", _one, _median_position, _row_samples(), "MedianBackward1",
        "(the median along `dim`, the lower of two; its position); NaN if there is one.")  # fmt: skip
_picked("nanmedian_dim", _one, _nanmedian_position, _row_samples(), "NanmedianBackward1",
        "(the median along `dim` of what is not NaN, its position).")  # fmt: skip
_picked("mode", _one, _mode_position, _row_samples(), "ModeBackward0",
        "(the most frequent element along `dim`, the smallest of several; its last position).")  # fmt: skip


def _median_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    """Elements equal to the median share the gradient evenly; NaN equals NaN here."""
    x, m = n[0], n.out
    if n.type(0).numel == 0:
        return (zeros_of(b, n.type(0), g),)
    hit = b.logical_or(b.eq(x, m), b.logical_and(b.isnan(x), b.isnan(m)))
    hit = b.cast(hit, dtype=g.type.dtype)
    axes = tuple(range(x.type.rank))
    return (b.mul(hit, b.div(g, b.sum(hit, axes=axes))),)


def _median_all(name: str) -> Any:
    def decompose(b: Any, x: Any) -> Any:
        if x.type.numel == 0:
            return b.full(shape=(), value=float("nan") if x.type.dtype.kind == "f" else 0, dtype=x.type.dtype)
        flat = b.reshape(x, shape=(x.type.numel,))
        return getattr(b, name + "_dim")(flat, dim=0)[0]

    return decompose


for _name in ("median", "nanmedian"):
    composite(
        _name,
        lambda x: Type(x.dtype, ()),
        _median_all(_name),
        _median_grad,
        samples=lambda: [
            Sample((f32(3, 5),)), Sample((f32(),)), Sample((f32(0),), smooth=False),
            Sample((i64(2, 3),), {}, (-2, 2), smooth=False),
        ],
        doc=f"The {_name} of all elements, the lower of two.",
    )  # fmt: skip

# --- binary search --------------------------------------------------------------------------------


def _searchsorted(seq: Type, v: Type, *, right: bool = False) -> Type:
    check_same_dtype(seq, v)
    if seq.rank == 0 or (seq.rank > 1 and seq.shape[:-1] != v.shape[:-1]):
        raise OpError(
            f"expected a sorted sequence of one dimension, or of the values' shape but for the last, "
            f"got {seq} and values {v}"
        )
    return Type(I64, v.shape)


def _searchsorted_of(b: Any, seq: Any, v: Any, *, right: bool = False) -> Any:
    """The place is built from its highest bit down: a bit stays if the element before is still too small."""
    n = seq.type.shape[-1]
    place = b.full(shape=v.type.shape, value=0, dtype=I64)
    step = 1 << n.bit_length() >> 1
    known = b.logical_not(b.isnan(v)) if v.type.dtype.kind == "f" else None
    while step and v.type.numel:
        further = b.add(place, b.const(step, I64))
        before = b.minimum(b.sub(further, b.const(1, I64)), b.const(n - 1, I64))
        if seq.type.rank == 1:
            x = b.take(seq, before, dim=0)
        else:
            x = b.gather(seq, before, dim=seq.type.rank - 1)
        enough = b.gt(x, v) if right else b.ge(x, v)
        if known is not None:
            enough = b.logical_or(enough, b.logical_and(b.isnan(x), known))
        go = b.logical_and(b.le(further, b.const(n, I64)), b.logical_not(enough))
        place = b.where(go, further, place)
        step >>= 1
    return place


def _sorted_maker(rng: Any, types: tuple[Type, ...]) -> list[np.ndarray]:
    seq, v = (rng.integers(-9, 9, t.shape) for t in types)
    return [np.sort(seq, -1).astype(types[0].dtype.numpy), v.astype(types[1].dtype.numpy)]


composite(
    "searchsorted",
    _searchsorted,
    _searchsorted_of,
    differentiable=False,
    samples=lambda: [
        Sample((f32(7), f32(3, 5)), make=_sorted_maker),
        Sample((f32(8), f32(9)), {"right": True}, make=_sorted_maker),
        Sample((f32(2, 100), f32(2, 5)), make=_sorted_maker),
        Sample((i64(1), i64()), {"right": True}, make=_sorted_maker),
        Sample((f32(0), f32(3)), make=_sorted_maker),
    ],
    doc="Where each value would go in the sorted sequence: before its equals, or after them (`right`).",
)
