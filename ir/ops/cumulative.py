"""Cumulative ops along one dimension: sums, products, extrema with their positions, log-sums of exponentials.

The kernels here are scans, which the scheduler runs in order along `dim`: each element of the result is made
from the one before and the next of the operand (`step`). Gradients of products and of log-sums are the linear
recurrence h[k] = a[k] h[k-1] + b[k], itself a kernel here, and its gradient is another one; so everything is
exact at zeros and differentiable to any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import OpError
from ..op import Op, Sample, register
from ..types import Type
from .indexing import zeros_of
from .records import (
    ALL,
    I64,
    NUMERIC,
    accumulate,
    boolean,
    check_dim,
    check_kind,
    check_same_dtype,
    composite,
    f32,
    i64,
)


def _along(kinds: str, result: Any = None) -> Callable[..., Type]:
    def infer(x: Type, *, dim: int) -> Type:
        check_kind(x.dtype, kinds)
        check_dim(dim, x.rank)
        return x if result is None else Type(result, x.shape)

    return infer


def _wide(x: np.ndarray) -> Any:
    """What is accumulated in: integers in their own type, f64 for all floats."""
    return x.dtype if x.dtype.kind in "iub" else np.float64


def _samples(x: Any = f32, *, domain: Any = (-2.0, 2.0), smooth: bool = True) -> Callable[[], list[Sample]]:
    shapes: tuple[tuple[tuple[int, ...], int], ...] = (
        ((3, 5), 1),
        ((4, 3), 0),
        ((2, 3, 4), 1),
        ((7,), 0),
        ((5, 37), 0),
        ((1, 3), 0),
        ((0, 3), 0),
        ((2, 0), 0),
    )
    return lambda: [Sample((x(*s),), {"dim": d}, domain, smooth=smooth) for s, d in shapes]


def _scan(name: str, infer: Any, numpy: Any, grad: Any, samples: Any, **extra: Any) -> Op:
    return register(Op(name, infer, kernel="scan", numpy=numpy, grad=grad, samples=samples, **extra))


# --- shifting and reversing -----------------------------------------------------------------------


def shifted(b: Any, x: Any, dim: int, by: int, value: float) -> Any:
    """`x` moved by one place along `dim` (`by` 1 or -1), with `value` where nothing moved to."""
    shape = x.type.shape
    first, last = [0] * len(shape), list(shape)
    low, high = [0] * len(shape), [0] * len(shape)
    if by > 0:
        last[dim], low[dim] = shape[dim] - 1, 1
    else:
        first[dim], high[dim] = 1, 1
    kept = b.slice(x, start=tuple(first), stop=tuple(last), step=(1,) * len(shape))
    return b.pad(kept, low=tuple(low), high=tuple(high), value=value)


def backwards(b: Any, op: str, *operands: Any, dim: int) -> Any:
    """The scan from the last element to the first."""
    turned = [b.flip(x, dims=(dim,)) for x in operands]
    return b.flip(getattr(b, op)(*turned, dim=dim), dims=(dim,))


def _suffix(b: Any, factors: Any, g: Any, dim: int) -> Any:
    """h[k] = g[k] + factors[k+1] h[k+1]."""
    if g.type.numel == 0:
        return g
    return backwards(b, "recurrence", shifted(b, factors, dim, -1, 0.0), g, dim=dim)


# --- sums, products, recurrences ------------------------------------------------------------------

_scan(
    "cumsum",
    _along(NUMERIC),
    lambda x, *, dim: np.cumsum(x, dim, dtype=_wide(x)).astype(x.dtype),
    lambda b, n, g: (backwards(b, "cumsum", g, dim=n.attrs["dim"]),),
    lambda: [*_samples()(), Sample((i64(3, 4),), {"dim": 1}, (-5, 9), smooth=False)],
    doc="Sums of the elements up to each along `dim`; f32 accumulates in f64, smaller floats in f32.",
)


def _recurrence(a: Type, b: Type, *, dim: int) -> Type:
    check_same_dtype(a, b)
    check_kind(a.dtype, "f")
    if a.shape != b.shape:
        raise OpError(f"expected factors and terms of one shape, got {a} and {b}")
    check_dim(dim, a.rank)
    return a


def _recurrence_numpy(a: np.ndarray, b: np.ndarray, *, dim: int) -> np.ndarray:
    factors, terms = (np.moveaxis(x.astype(np.float64), dim, -1) for x in (a, b))
    out = np.empty(factors.shape)
    if factors.size // max(a.shape[dim], 1) < 8:  # few long rows: Python's numbers are faster than arrays
        for at in np.ndindex(factors.shape[:-1]):
            pairs = zip(factors[at].tolist(), terms[at].tolist())
            values = itertools.accumulate(pairs, lambda h, ab: h * ab[0] + ab[1], initial=0.0)
            out[at] = list(values)[1:]
    else:
        h = np.zeros(factors.shape[:-1])
        for k in range(a.shape[dim]):
            out[..., k] = h = factors[..., k] * h + terms[..., k]
    return np.moveaxis(out, -1, dim).astype(a.dtype)


def _recurrence_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    dim = n.attrs["dim"]
    if g.type.numel == 0:
        return g, g
    h = _suffix(b, n[0], g, dim)
    return (lambda: b.mul(h, shifted(b, n.out, dim, 1, 0.0))), h


_scan(
    "recurrence",
    _recurrence,
    _recurrence_numpy,
    _recurrence_grad,
    lambda: [
        Sample((f32(3, 5), f32(3, 5)), {"dim": 1}),
        Sample((f32(4, 2, 3), f32(4, 2, 3)), {"dim": 0}),
        Sample((f32(6), f32(6)), {"dim": 0}),
        Sample((f32(0, 3), f32(0, 3)), {"dim": 1}),
    ],
    doc="h[k] = a[k] h[k-1] + b[k] along `dim`, from h[-1] = 0.",
)


def _cumprod_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    """The product before each element times what follows of it: no division, so zeros do no harm."""
    x, dim = n[0], n.attrs["dim"]
    if g.type.numel == 0:
        return (g,)
    return (b.mul(shifted(b, n.out, dim, 1, 1.0), _suffix(b, x, g, dim)),)


_scan(
    "cumprod",
    _along(NUMERIC),
    lambda x, *, dim: np.cumprod(x, dim, dtype=_wide(x)).astype(x.dtype),
    _cumprod_grad,
    lambda: [*_samples()(), Sample((i64(3, 4),), {"dim": 0}, (-3, 3), smooth=False)],
    doc="Products of the elements up to each along `dim`, accumulated as in cumsum.",
)


def _logcumsumexp_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    """x[i] weighs exp(x[i] - out[j]) in every later out[j]: as out never falls, all exponents are <= 0."""
    x, out, dim = n[0], n.out, n.attrs["dim"]
    if g.type.numel == 0:
        return (g,)
    before = shifted(b, out, dim, 1, 0.0)
    kept = b.where(b.eq(before, out), b.const(0, out), b.sub(before, out))  # infinities have no difference
    return (b.mul(_suffix(b, b.exp(kept), g, dim), b.exp(b.sub(x, out))),)


_scan(
    "logcumsumexp",
    _along("f"),
    lambda x, *, dim: np.logaddexp.accumulate(x.astype(np.float64), dim).astype(x.dtype),
    _logcumsumexp_grad,
    _samples(),
    doc="log(cumsum(exp(x))) along `dim` without overflow.",
)

# --- extrema --------------------------------------------------------------------------------------


def _position_numpy(extreme: Any) -> Callable[..., np.ndarray]:
    def numpy(x: np.ndarray, *, dim: int) -> np.ndarray:
        wide = accumulate(x)
        nan = np.isnan(wide) if wide.dtype.kind == "f" else np.zeros(x.shape, bool)
        hit = (wide == extreme.accumulate(wide, dim)) | nan
        places = np.arange(x.shape[dim]).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
        return np.maximum.accumulate(np.where(hit, places, 0), dim)

    return numpy


for _name, _f in (("cumargmax", np.maximum), ("cumargmin", np.minimum)):
    _scan(
        _name,
        _along(ALL, I64),
        _position_numpy(_f),
        None,
        lambda: [
            *_samples(smooth=False)(),
            Sample((i64(3, 9),), {"dim": 1}, (-2, 2)),
            Sample((boolean(9),), {"dim": 0}),
        ],
        differentiable=False,
        doc="Where the extremum of the elements so far along `dim` is: the last of equals, the last NaN.",
    )


def _extremum_grad(b: Any, n: Any, g: Any, _: Any) -> tuple[Any, ...]:
    return (b.scatter(zeros_of(b, n.type(0), g), n.outs[1], g, dim=n.attrs["dim"], reduce="add"),)


def _cumulative_extremum(position: str) -> Any:
    def decompose(b: Any, x: Any, *, dim: int) -> Any:
        i = getattr(b, position)(x, dim=dim)
        return b.gather(x, i, dim=dim), i

    return decompose


def _extremum_infer(x: Type, *, dim: int) -> tuple[Type, Type]:
    check_dim(dim, x.rank)
    return x, Type(I64, x.shape)


for _name in ("cummax", "cummin"):
    composite(
        _name,
        _extremum_infer,
        _cumulative_extremum(_name.replace("cum", "cumarg")),
        _extremum_grad,
        samples=lambda: [*_samples()(), Sample((i64(7),), {"dim": 0}, (-2, 2), smooth=False)],
        doc="(values, positions) of the extrema so far along `dim`: the last of equals or of NaNs.",
    )
