"""Means, spreads and norms: composites of reductions with gradients of their own, and softmax and its kin."""

from __future__ import annotations

import math
from math import prod
from typing import Any

from .. import batch_rules
from ..errors import OpError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .records import (
    any_axis,
    check_axes,
    check_float,
    check_same_dtype,
    composite,
    f32,
    reduced_shape,
    spread,
    spread_full,
    widen,
    zeros_like,
)
from .reduction import numbered

Axes = tuple[int, ...]


def reduce_infer(x: Type, *, axes: Axes, keepdim: bool = False) -> Type:
    check_float(x)
    check_axes(axes, x.rank)
    return Type(x.dtype, reduced_shape(x.shape, axes, keepdim))


def count(x: Any, axes: Axes) -> int:
    """Elements that one element of the reduction is made of."""
    return prod(x.type.shape[a] for a in axes)


def _reduce_samples(*attrs: dict[str, Any], domain: Any = (-2.0, 2.0), empty: bool = True) -> Any:
    def samples() -> list[Sample]:
        out = []
        for a in attrs or ({},):
            for shape, where in (
                ((3, 5), {"axes": (0, 1)}),
                ((3, 5), {"axes": (1,)}),
                ((2, 3, 4), {"axes": (0, 2), "keepdim": True}),
                *((((0, 3), {"axes": (1,)}),) if empty else ()),
            ):
                out.append(Sample((f32(*shape),), {**where, **a}, domain))
        return out

    return samples


# --- mean, var, std -------------------------------------------------------------------------------


def mean_of(b: Any, x: Any, axes: Axes, keepdim: bool = False) -> Any:
    """The mean in `x`'s own type; NaN over nothing."""
    total = b.sum(x, axes=axes, keepdim=keepdim)
    return b.div(total, b.const(count(x, axes), total))


def _mean(b: Any, x: Any, *, axes: Axes, keepdim: bool = False) -> Any:
    return b.cast_to(mean_of(b, widen(b, x), axes, keepdim), x.type.dtype)


composite(
    "mean",
    reduce_infer,
    _mean,
    lambda b, n, g: (
        spread_full(
            b,
            b.div(g, b.const(prod(n.type(0).shape[a] for a in n.attrs["axes"]), g)),
            n.type(0).shape,
            n.attrs["axes"],
            n.attr("keepdim"),
        ),
    ),
    samples=_reduce_samples(),
    grad_name=numbered("Mean"),
    doc="The mean over `axes`.",
)


def _var_infer(x: Type, *, axes: Axes, correction: float = 1, keepdim: bool = False) -> Type:
    return reduce_infer(x, axes=axes, keepdim=keepdim)


def _freedom(x: Any, axes: Axes, correction: float) -> float:
    return max(count(x, axes) - correction, 0)


def _var(b: Any, x: Any, *, axes: Axes, correction: float = 1, keepdim: bool = False) -> Any:
    wide = widen(b, x)
    d = b.sub(wide, mean_of(b, wide, axes, keepdim=True))
    total = b.sum(b.mul(d, d), axes=axes, keepdim=keepdim)
    return b.cast_to(b.div(total, b.const(_freedom(x, axes, correction), total)), x.type.dtype)


def _var_grad(b: Any, n: Any, g: Any) -> Any:
    x, axes = n[0], n.attrs["axes"]
    g = spread(b, widen(b, g), x.type.shape, axes, n.attr("keepdim"))
    wide = widen(b, x)
    d = b.sub(wide, mean_of(b, wide, axes, keepdim=True))
    freedom = _freedom(x, axes, n.attr("correction"))
    return b.mul(b.mul(g, b.const(2 / freedom if freedom else math.inf, g)), d)


_SPREAD = _reduce_samples({}, {"correction": 0})
composite(
    "var",
    _var_infer,
    _var,
    lambda b, n, g: (_var_grad(b, n, g),),
    samples=_SPREAD,
    doc="The squared deviations from the mean summed, over (count - correction).",
)
composite(
    "std",
    _var_infer,
    lambda b, x, **attrs: b.cast_to(b.sqrt(_var(b, widen(b, x), **attrs)), x.type.dtype),
    lambda b, n, g: (
        _var_grad(
            b, n, b.where(b.eq(n.out, b.const(0, g)), b.const(0, g), b.div(g, b.mul(n.out, b.const(2, g))))
        ),
    ),
    samples=_SPREAD,
    doc="The square root of var; its gradient where it is 0 is 0.",
)

for _name, _first in (("var_mean", "var"), ("std_mean", "std")):
    composite(
        _name,
        lambda x, *, axes, correction=1, keepdim=False: (
            (_var_infer(x, axes=axes, correction=correction, keepdim=keepdim),) * 2
        ),
        (
            lambda first: (
                lambda b, x, *, axes, correction=1, keepdim=False: (
                    getattr(b, first)(x, axes=axes, correction=correction, keepdim=keepdim),
                    b.mean(x, axes=axes, keepdim=keepdim),
                )
            )
        )(_first),
        samples=_SPREAD,
        doc=f"({_first}, mean) over `axes`.",
    )


def _nansum(b: Any, x: Any, *, axes: Axes, keepdim: bool = False) -> Any:
    return b.sum(b.where(b.isnan(x), b.const(0, x), x), axes=axes, keepdim=keepdim)


composite(
    "nansum",
    reduce_infer,
    _nansum,
    lambda b, n, g: (
        b.where(
            b.isnan(n[0]), b.const(0, g),
            spread_full(b, g, n.type(0).shape, n.attrs["axes"], n.attr("keepdim")),
        ),
    ),
    samples=_reduce_samples(),
    doc="The sum over `axes` of what is not NaN.",
)  # fmt: skip

# --- norms ----------------------------------------------------------------------------------------


def _norm_infer(x: Type, *, p: float = 2.0, axes: Axes, keepdim: bool = False) -> Type:
    if not isinstance(p, (int, float)):
        raise OpError(f"p must be a number, got {p!r}")
    if p < 0 and any(x.shape[a] == 0 for a in axes):
        raise OpError(f"the norm of order {p} has no value over an empty dimension")
    return reduce_infer(x, axes=axes, keepdim=keepdim)


def _norm(b: Any, x: Any, *, p: float = 2.0, axes: Axes, keepdim: bool = False) -> Any:
    wide, at = widen(b, x), {"axes": axes, "keepdim": keepdim}
    if p == 2:
        out = b.sqrt(b.sum(b.mul(wide, wide), **at))
    elif p == 0:
        out = b.sum(b.cast_to(b.ne(wide, b.const(0, wide)), wide.type.dtype), **at)
    elif math.isinf(p):
        size = b.abs(wide)
        if count(x, axes) == 0:
            out = b.sum(size, **at)
        else:
            out = b.amax(size, **at) if p > 0 else b.amin(size, **at)
    elif p == 1:
        out = b.sum(b.abs(wide), **at)
    else:
        out = b.pow_scalar(b.sum(b.pow_scalar(b.abs(wide), exponent=p), **at), exponent=1 / p)
    return b.cast_to(out, x.type.dtype)


def _norm_grad(b: Any, n: Any, g: Any) -> Any:
    x, p, axes, keepdim = n[0], n.attr("p"), n.attrs["axes"], n.attr("keepdim")
    shape = x.type.shape
    if p == 0:
        return zeros_like(b, x)
    g, zero = spread(b, g, shape, axes, keepdim), b.const(0, g)
    if p == 1:
        return b.mul(g, b.sign(x))
    norm = spread(b, n.out, shape, axes, keepdim)
    if math.isinf(p):
        hit = b.cast_to(b.eq(b.abs(x), norm), g.type.dtype)
        return b.mul(b.mul(hit, b.sign(x)), b.div(g, b.sum(hit, axes=axes, keepdim=True)))
    # The zero vector gets a zero gradient rather than NaN.
    nowhere = b.eq(norm, zero)
    if p == 2:
        return b.mul(x, b.where(nowhere, zero, b.div(g, norm)))
    size = b.abs(x)
    slope = b.mul(b.sign(x), b.pow_scalar(size, exponent=p - 1))
    if p < 1:
        slope = b.where(b.eq(x, zero), zero, slope)
    return b.mul(slope, b.where(nowhere, zero, b.div(g, b.pow_scalar(norm, exponent=p - 1))))


composite(
    "norm",
    _norm_infer,
    _norm,
    lambda b, n, g: (_norm_grad(b, n, g),),
    samples=_reduce_samples(*({"p": p} for p in (2.0, 1.0, 0.0, 3.0, 1.5, 0.5, math.inf)), domain=(0.2, 2)),
    grad_name="LinalgVectorNormBackward0",
    doc="The p-norm over `axes`: the sum of |x|**p to the power 1/p; 0 counts, inf and -inf take extrema.",
)

# --- softmax and its kin --------------------------------------------------------------------------


def _finite_max(b: Any, x: Any, axes: Axes) -> Any:
    """The largest element, or 0 where that is infinite: what exponentials are taken relative to."""
    top = b.amax(x, axes=axes, keepdim=True)
    return b.where(b.isinf(top), b.const(0, top), top)


def _logsumexp(b: Any, x: Any, *, axes: Axes, keepdim: bool = False) -> Any:
    wide = widen(b, x)
    shape = reduced_shape(x.type.shape, axes, keepdim)
    if count(x, axes) == 0:
        return b.full(shape=shape, value=-math.inf, dtype=x.type.dtype)
    top = _finite_max(b, wide, axes)
    total = b.sum(b.exp(b.sub(wide, top)), axes=axes, keepdim=keepdim)
    return b.cast_to(b.add(b.log(total), top if keepdim else b.reshape(top, shape=shape)), x.type.dtype)


def _logsumexp_grad(b: Any, n: Any, g: Any) -> Any:
    x, axes, keepdim = n[0], n.attrs["axes"], n.attr("keepdim")
    shape = x.type.shape
    out = spread(b, n.out, shape, axes, keepdim)
    return (b.mul(spread(b, g, shape, axes, keepdim), b.exp(b.sub(x, out))),)


composite(
    "logsumexp",
    reduce_infer,
    _logsumexp,
    _logsumexp_grad,
    samples=_reduce_samples(),
    doc="log(sum(exp(x))) over `axes` without overflow.",
)


def _along(x: Type, *, dim: int) -> Type:
    check_float(x)
    any_axis(dim, x.rank)
    return x


def _along_samples() -> list[Sample]:
    return [
        Sample((f32(3, 5),), {"dim": 1}),
        Sample((f32(2, 3, 4),), {"dim": -2}),
        Sample((f32(),), {"dim": 0}),
        Sample((f32(4, 1),), {"dim": 1}),
        Sample((f32(0, 3),), {"dim": 1}),
        Sample((f32(3, 0),), {"dim": 1}),
    ]


def _softmax(b: Any, x: Any, *, dim: int) -> Any:
    axes = any_axis(dim, x.type.rank)
    if x.type.numel == 0:
        return x
    wide = widen(b, x)
    e = b.exp(b.sub(wide, b.amax(wide, axes=axes, keepdim=True)))
    return b.cast_to(_shares(b, e, b.sum(e, axes=axes, keepdim=True)), x.type.dtype)


def _shares(b: Any, e: Any, total: Any) -> Any:
    """What part of `total` each element is. Totals are at least 1, so that the one division that a row takes
    loses half a unit in the last place; a division of each element takes as long as its exponential."""
    return b.mul(e, b.reciprocal(total))


def _softmax_grad(b: Any, n: Any, g: Any) -> Any:
    y, axes = widen(b, n.out), any_axis(n.attrs["dim"], n.out.type.rank)
    gy = b.mul(widen(b, g), y)
    return (b.sub(gy, b.mul(y, b.sum(gy, axes=axes, keepdim=True))),)


composite(
    "softmax",
    _along,
    _softmax,
    _softmax_grad,
    batch=batch_rules.along("dim"),
    samples=_along_samples,
    doc="exp(x), scaled to sum to 1 along `dim`.",
)


def _safe_softmax(b: Any, x: Any, *, dim: int) -> Any:
    axes = any_axis(dim, x.type.rank)
    if x.type.numel == 0:
        return x
    wide = widen(b, x)
    top = b.amax(wide, axes=axes, keepdim=True)
    dead = b.eq(top, b.const(-math.inf, top))
    e = b.exp(b.sub(wide, b.where(dead, b.const(0, top), top)))
    total = b.sum(e, axes=axes, keepdim=True)
    return b.cast_to(_shares(b, e, b.where(dead, b.const(1, total), total)), x.type.dtype)


composite(
    "safe_softmax",
    _along,
    _safe_softmax,
    _softmax_grad,
    batch=batch_rules.along("dim"),
    samples=_along_samples,
    doc="softmax, but 0 where every element along `dim` is -inf.",
)


def log_softmax_of(b: Any, x: Any, axes: Axes) -> Any:
    """log softmax in `x`'s own type."""
    if x.type.numel == 0:
        return x
    d = b.sub(x, b.amax(x, axes=axes, keepdim=True))
    return b.sub(d, b.log(b.sum(b.exp(d), axes=axes, keepdim=True)))


composite(
    "log_softmax",
    _along,
    lambda b, x, *, dim: b.cast_to(log_softmax_of(b, widen(b, x), any_axis(dim, x.type.rank)), x.type.dtype),
    lambda b, n, g: (
        b.sub(
            widen(b, g),
            b.mul(
                b.exp(widen(b, n.out)),
                b.sum(widen(b, g), axes=any_axis(n.attrs["dim"], g.type.rank), keepdim=True),
            ),
        ),
    ),
    batch=batch_rules.along("dim"),
    samples=_along_samples,
    doc="log(softmax(x)) without underflow.",
)


def _glu(x: Type, *, dim: int = -1) -> Type:
    check_float(x)
    if x.rank == 0:
        raise OpError("expected at least 1 dimension")
    (d,) = any_axis(dim, x.rank)
    if x.shape[d] % 2:
        raise OpError(f"expected an even size in dimension {dim}, got {x}")
    return Type(x.dtype, (n // 2 if k == d else n for k, n in enumerate(x.shape)))


def _glu_of(b: Any, x: Any, *, dim: int = -1) -> Any:
    (d,) = any_axis(dim, x.type.rank)
    half = x.type.shape[d] // 2
    value, gate = b.split(x, sizes=(half, half), dim=d)
    return b.mul(value, b.sigmoid(gate))


composite(
    "glu",
    _glu,
    _glu_of,
    samples=lambda: [Sample((f32(3, 4),)), Sample((f32(2, 3),), {"dim": 0}), Sample((f32(0, 2),))],
    doc="The first half times the sigmoid of the second (Dauphin et al. 2017).",
)


def _cosine(x: Type, y: Type, *, dim: int = 1, eps: float = 1e-8) -> Type:
    check_same_dtype(x, y)
    check_float(x)
    shape = broadcast_shapes(x.shape, y.shape)
    return Type(x.dtype, reduced_shape(shape, any_axis(dim, len(shape)), False))


def _cosine_of(b: Any, x: Any, y: Any, *, dim: int = 1, eps: float = 1e-8) -> Any:
    shape = broadcast_shapes(x.type.shape, y.type.shape)
    axes = any_axis(dim, len(shape))

    def unit(v: Any) -> Any:
        v = b.expand(v, shape=shape) if v.type.shape != shape else v
        size = b.norm(v, p=2.0, axes=axes, keepdim=True)
        return b.div(v, b.clamp(size, min=eps))

    return b.sum(b.mul(unit(x), unit(y)), axes=axes)


composite(
    "cosine_similarity",
    _cosine,
    _cosine_of,
    samples=lambda: [
        Sample((f32(3, 4), f32(3, 4))),
        Sample((f32(2, 3, 4), f32(4)), {"dim": -1}),
        Sample((f32(0, 4), f32(0, 4))),
    ],
    grad_name="SumBackward1",
    doc="The product of the vectors along `dim`, each scaled to length 1.",
)
