"""Elementwise mathematical functions of floats: exponentials, logarithms, trigonometry, error functions."""

from __future__ import annotations

import math
from typing import Any

from .elementwise import zero_where
from .records import binary, unary


def _one_minus_square(b: Any, x: Any) -> Any:
    return b.sub(b.const(1, x), b.mul(x, x))


def _square_plus(b: Any, x: Any, c: float) -> Any:
    return b.add(b.mul(x, x), b.const(c, x))


unary("exp", lambda s, x: s.exp(x), lambda b, n, g: b.mul(g, n.out), doc="e to the power x.")
unary(
    "exp2",
    lambda s, x: s.exp2(x),
    lambda b, n, g: b.mul(g, b.mul(n.out, b.const(math.log(2), g))),
    doc="2 to the power x.",
)
unary(
    "expm1",
    lambda s, x: s.expm1(x),
    lambda b, n, g: b.mul(g, b.add(n.out, b.const(1, g))),
    doc="exp(x) - 1, accurate near 0.",
)
unary(
    "log",
    lambda s, x: s.log(x),
    lambda b, n, g: b.div(g, n[0]),
    domain=(0.2, 3),
    doc="The natural logarithm.",
)
unary(
    "log2",
    lambda s, x: s.log2(x),
    lambda b, n, g: b.div(g, b.mul(n[0], b.const(math.log(2), g))),
    domain=(0.2, 3),
    doc="The logarithm to base 2.",
)
unary(
    "log10",
    lambda s, x: s.log10(x),
    lambda b, n, g: b.div(g, b.mul(n[0], b.const(math.log(10), g))),
    domain=(0.2, 3),
    doc="The logarithm to base 10.",
)
unary(
    "log1p",
    lambda s, x: s.log1p(x),
    lambda b, n, g: b.div(g, b.add(n[0], b.const(1, g))),
    domain=(-0.8, 3),
    grad_name="Log1PBackward0",
    doc="log(1 + x), accurate near 0.",
)
unary("sin", lambda s, x: s.sin(x), lambda b, n, g: b.mul(g, b.cos(n[0])), doc="The sine.")
unary("cos", lambda s, x: s.cos(x), lambda b, n, g: b.mul(g, b.neg(b.sin(n[0]))), doc="The cosine.")
unary(
    "tan",
    lambda s, x: s.tan(x),
    lambda b, n, g: b.mul(g, _square_plus(b, n.out, 1)),
    domain=(-1.2, 1.2),
    doc="The tangent.",
)
unary(
    "asin",
    lambda s, x: s.asin(x),
    lambda b, n, g: b.mul(g, b.rsqrt(_one_minus_square(b, n[0]))),
    domain=(-0.9, 0.9),
    doc="The inverse sine.",
)
unary(
    "acos",
    lambda s, x: s.acos(x),
    lambda b, n, g: b.mul(g, b.neg(b.rsqrt(_one_minus_square(b, n[0])))),
    domain=(-0.9, 0.9),
    doc="The inverse cosine.",
)
unary(
    "atan",
    lambda s, x: s.atan(x),
    lambda b, n, g: b.div(g, _square_plus(b, n[0], 1)),
    doc="The inverse tangent.",
)
unary("sinh", lambda s, x: s.sinh(x), lambda b, n, g: b.mul(g, b.cosh(n[0])), doc="The hyperbolic sine.")
unary("cosh", lambda s, x: s.cosh(x), lambda b, n, g: b.mul(g, b.sinh(n[0])), doc="The hyperbolic cosine.")
unary(
    "tanh",
    lambda s, x: s.tanh(x),
    lambda b, n, g: b.mul(g, _one_minus_square(b, n.out)),
    doc="The hyperbolic tangent.",
)
unary(
    "asinh",
    lambda s, x: s.asinh(x),
    lambda b, n, g: b.mul(g, b.rsqrt(_square_plus(b, n[0], 1))),
    doc="The inverse hyperbolic sine.",
)
unary(
    "acosh",
    lambda s, x: s.acosh(x),
    lambda b, n, g: b.mul(g, b.rsqrt(_square_plus(b, n[0], -1))),
    domain=(1.1, 3),
    doc="The inverse hyperbolic cosine.",
)
unary(
    "atanh",
    lambda s, x: s.atanh(x),
    lambda b, n, g: b.div(g, _one_minus_square(b, n[0])),
    domain=(-0.9, 0.9),
    doc="The inverse hyperbolic tangent.",
)
unary(
    "sigmoid",
    lambda s, x: s.sigmoid(x),
    lambda b, n, g: b.mul(g, b.mul(b.sub(b.const(1, g), n.out), n.out)),
    doc="1 / (1 + exp(-x)).",
)


def _bell(b: Any, x: Any, g: Any, scale: float) -> Any:
    return b.mul(g, b.mul(b.exp(b.neg(b.mul(x, x))), b.const(scale, g)))


unary(
    "erf",
    lambda s, x: s.erf(x),
    lambda b, n, g: _bell(b, n[0], g, 2 / math.sqrt(math.pi)),
    doc="The error function.",
)
unary(
    "erfc",
    lambda s, x: s.erfc(x),
    lambda b, n, g: _bell(b, n[0], g, -2 / math.sqrt(math.pi)),
    doc="1 - erf(x).",
)


def _squares(b: Any, y: Any, x: Any) -> Any:
    """x*x + y*y, or 1 at the origin, where the angle has no slope and PyTorch takes 0."""
    total = b.add(b.mul(y, y), b.mul(x, x))
    return b.where(b.eq(total, b.const(0, total)), b.const(1, total), total)


binary(
    "atan2",
    lambda s, y, x: s.atan2(y, x),
    lambda b, n, g: (
        lambda: b.mul(g, b.div(n[1], _squares(b, n[0], n[1]))),
        lambda: b.mul(g, b.div(b.neg(n[0]), _squares(b, n[0], n[1]))),
    ),
    domain=((0.3, 2), (-2, 2)),
    doc="The angle of (x, y).",
)


def _hypot(s: Any, x: Any, y: Any) -> Any:
    # Scaled by the larger side, so that squares neither overflow nor vanish; infinite sides win over NaN.
    x, y = s.abs(x), s.abs(y)
    big, small = s.maximum(x, y), s.minimum(x, y)
    safe = s.select(s.eq(big, s.zero(big)), s.one(big), big)
    r = s.div(small, safe)
    out = s.mul(big, s.sqrt(s.add(s.one(r), s.mul(r, r))))
    inf = s.const(math.inf, x)
    return s.select(s.or_(s.eq(x, inf), s.eq(y, inf)), inf, out)


binary(
    "hypot",
    _hypot,
    lambda b, n, g: (lambda: b.mul(g, b.div(n[0], n.out)), lambda: b.mul(g, b.div(n[1], n.out))),
    domain=(0.2, 2),
    doc="sqrt(x*x + y*y) without overflow.",
)


def _logaddexp(exp: str, base: float) -> Any:
    def scalar(s: Any, x: Any, y: Any) -> Any:
        # log(e^x + e^y) = m + log1p(e^-|x-y|); equal infinities have no difference.
        m = s.maximum(x, y)
        tail = s.log1p(s.prim(exp, s.neg(s.abs(s.sub(x, y)))))
        if base != math.e:
            tail = s.mul(tail, s.const(1 / math.log(base), x))
        same = s.and_(s.eq(x, y), s.eq(s.abs(x), s.const(math.inf, x)))
        return s.select(same, x, s.add(m, tail))

    return scalar


def _share(b: Any, exp: str, g: Any, x: Any, y: Any) -> Any:
    return b.div(g, b.add(b.const(1, g), getattr(b, exp)(b.sub(y, x))))


for _name, _exp, _base in (("logaddexp", "exp", math.e), ("logaddexp2", "exp2", 2.0)):
    binary(
        _name,
        _logaddexp(_exp, _base),
        (
            lambda e: (
                lambda b, n, g: (lambda: _share(b, e, g, n[0], n[1]), lambda: _share(b, e, g, n[1], n[0]))
            )
        )(_exp),
        doc=f"log of a sum of powers of {'e' if _exp == 'exp' else 2}.",
    )


def _logit(s: Any, x: Any, *, eps: float | None = None) -> Any:
    if eps is not None:
        x = s.minimum(s.maximum(x, s.const(eps, x)), s.const(1 - eps, x))
    return s.log(s.div(x, s.sub(s.one(x), x)))


def _logit_grad(b: Any, n: Any, g: Any) -> Any:
    x, eps = n[0], n.attr("eps")
    one = b.const(1, g)
    slope = b.div(g, b.mul(x, b.sub(one, x)))
    low, high = (0.0, 1.0) if eps is None else (eps, 1.0 - eps)
    inside = b.logical_and(b.ge(x, b.const(low, g)), b.le(x, b.const(high, g)))
    return b.where(inside, slope, b.const(math.nan if eps is None else 0.0, g))


unary(
    "logit",
    _logit,
    _logit_grad,
    domain=(0.1, 0.9),
    attrs=({}, {"eps": 0.3}),
    doc="log(x / (1 - x)), x clamped by eps.",
)


def _xlogy(s: Any, x: Any, y: Any) -> Any:
    return s.select(s.isnan(y), y, s.select(s.eq(x, s.zero(x)), s.zero(x), s.mul(x, s.log(y))))


binary(
    "xlogy",
    _xlogy,
    lambda b, n, g: (
        lambda: zero_where(
            b, b.logical_and(b.eq(n[0], b.const(0, g)), b.le(n[1], b.const(0, g))), b.mul(g, b.log(n[1]))
        ),
        lambda: b.mul(g, b.div(n[0], n[1])),
    ),
    domain=((-2, 2), (0.2, 2)),
    doc="x * log(y), 0 where x is 0.",
)
unary(
    "sinc",
    lambda s, x: s.select(
        s.eq(x, s.zero(x)),
        s.one(x),
        s.div(s.sin(s.mul(x, s.const(math.pi, x))), s.mul(x, s.const(math.pi, x))),
    ),
    lambda b, n, g: _sinc_grad(b, n[0], g),
    domain=(0.2, 2),
    doc="sin(pi x) / (pi x), 1 at 0.",
)


def _sinc_grad(b: Any, x: Any, g: Any) -> Any:
    p = b.mul(x, b.const(math.pi, g))
    slope = b.div(b.mul(g, b.sub(b.mul(b.cos(p), p), b.sin(p))), b.mul(p, x))
    return zero_where(b, b.eq(x, b.const(0, g)), slope)


for _name, _factor in (("deg2rad", math.pi / 180), ("rad2deg", 180 / math.pi)):
    unary(
        _name,
        (lambda k: lambda s, x: s.mul(x, s.const(k, x)))(_factor),
        (lambda k: lambda b, n, g: b.mul(g, b.const(k, g)))(_factor),
        grad_name={"deg2rad": "Deg2RadBackward0", "rad2deg": "Rad2DegBackward0"}[_name],
        doc="Degrees and radians.",
    )
binary(
    "ldexp",
    lambda s, x, y: s.mul(x, s.exp2(y)),
    lambda b, n, g: (
        lambda: b.mul(g, b.exp2(n[1])),
        lambda: b.mul(g, b.mul(n.out, b.const(math.log(2), g))),
    ),
    doc="x * 2**y.",
)
