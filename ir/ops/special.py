"""Special functions and odd bits of floats: fmax, nextafter, erfinv, lgamma, digamma."""

from __future__ import annotations

import math
from typing import Any

from .elementwise import keep_where, kind, zero_where
from .records import ALL, F64, I32, I64, binary, unary


def _ignoring_nan(larger: str) -> Any:
    def scalar(s: Any, x: Any, y: Any) -> Any:
        best = s.prim(larger, x, y)
        if kind(s, x) != "f":
            return best
        return s.select(s.isnan(x), y, s.select(s.isnan(y), x, best))

    return scalar


def _ignoring_nan_grad(compare: str) -> Any:
    def rule(b: Any, n: Any, g: Any) -> Any:
        def first() -> Any:
            return b.logical_or(getattr(b, compare)(n[0], n[1]), b.isnan(n[1]))

        return lambda: keep_where(b, first(), g), lambda: zero_where(b, first(), g)

    return rule


for _name, _prim, _compare in (("fmax", "maximum", "ge"), ("fmin", "minimum", "le")):
    binary(
        _name,
        _ignoring_nan(_prim),
        _ignoring_nan_grad(_compare),
        kinds=ALL,
        doc=f"The {_prim} of two, or the other where one is NaN.",
    )


def _nextafter(s: Any, x: Any, y: Any) -> Any:
    d = s.dtype_of(x)
    bits = I64 if d.bits == 64 else I32
    i = s.bitcast(x, bits)
    # The bits of a float, as an integer, grow with its size.
    away = s.eq(s.lt(x, y), s.gt(x, s.zero(x)))
    step = s.select(away, s.one(i), s.const(-1, i))
    smallest = s.select(
        s.gt(y, s.zero(y)), s.one(i), s.add(s.const(1, i), s.const(-(1 << (bits.bits - 1)), i))
    )
    moved = s.bitcast(s.select(s.eq(x, s.zero(x)), smallest, s.add(i, step)), d)
    nan = s.or_(s.isnan(x), s.isnan(y))
    return s.select(nan, s.add(x, y), s.select(s.eq(x, y), y, moved))


binary("nextafter", _nextafter, smooth=False, doc="The float next to x in the direction of y.")


def _polynomial(s: Any, x: Any, coefficients: list[float]) -> Any:
    out = s.const(coefficients[0], x)
    for c in coefficients[1:]:
        out = s.add(s.mul(out, x), s.const(c, x))
    return out


_CENTRE = [
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
    -0.00417768164, 0.246640727, 1.50140941,
]  # fmt: skip
_TAIL = [
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
    0.00943887047, 1.00167406, 2.83297682,
]  # fmt: skip


def _erfinv(s: Any, y: Any) -> Any:
    """Giles' approximation (2012), then two steps of Newton's method on erf, in double precision."""
    d = s.dtype_of(y)
    y = s.cast(y, F64)
    one = s.one(y)
    w = s.neg(s.log(s.mul(s.sub(one, y), s.add(one, y))))
    inner = _polynomial(s, s.sub(w, s.const(2.5, y)), _CENTRE)
    outer = _polynomial(s, s.sub(s.sqrt(s.maximum(w, s.const(5.0, y))), s.const(3.0, y)), _TAIL)
    x = s.mul(s.select(s.lt(w, s.const(5.0, y)), inner, outer), y)
    for _ in range(2):
        # Through erfc where y is near 1: there erf has lost the digits that count.
        gap = s.select(
            s.gt(y, s.const(0.5, y)),
            s.sub(s.sub(one, y), s.erfc(x)),
            s.select(s.lt(y, s.const(-0.5, y)), s.sub(s.erfc(s.neg(x)), s.add(one, y)), s.sub(s.erf(x), y)),
        )
        slope = s.mul(s.const(2 / math.sqrt(math.pi), y), s.exp(s.neg(s.mul(x, x))))
        x = s.sub(x, s.div(gap, slope))
    inf = s.const(math.inf, y)
    x = s.select(s.eq(y, one), inf, s.select(s.eq(y, s.neg(one)), s.neg(inf), x))
    return s.cast(s.select(s.gt(s.abs(y), one), s.const(math.nan, y), x), d)


unary(
    "erfinv",
    _erfinv,
    lambda b, n, g: b.mul(g, b.mul(b.const(math.sqrt(math.pi) / 2, g), b.exp(b.mul(n.out, n.out)))),
    domain=(-0.9, 0.9),
    doc="The inverse of erf.",
)

#: Lanczos' coefficients for g = 7, n = 9.
_LANCZOS = [
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
]  # fmt: skip


def _log_gamma_above_half(s: Any, x: Any) -> Any:
    x = s.sub(x, s.one(x))
    total = s.const(_LANCZOS[0], x)
    for k, c in enumerate(_LANCZOS[1:], 1):
        total = s.add(total, s.div(s.const(c, x), s.add(x, s.const(k, x))))
    t = s.add(x, s.const(7.5, x))
    half_log = s.const(0.5 * math.log(2 * math.pi), x)
    return s.add(s.sub(s.add(half_log, s.mul(s.add(x, s.const(0.5, x)), s.log(t))), t), s.log(total))


def _sin_pi(s: Any, x: Any) -> Any:
    """sin(pi x) of the distance to the nearest whole number, up to its sign."""
    return s.sin(s.mul(s.const(math.pi, x), s.sub(x, s.round(x))))


def _lgamma(s: Any, x: Any) -> Any:
    d = s.dtype_of(x)
    x = s.cast(x, F64)
    below = s.lt(x, s.const(0.5, x))
    far = _log_gamma_above_half(s, s.select(below, s.sub(s.one(x), x), x))
    reflected = s.sub(s.log(s.div(s.const(math.pi, x), s.abs(_sin_pi(s, x)))), far)
    out = s.select(below, reflected, far)
    inf = s.const(math.inf, x)
    pole = s.and_(s.le(x, s.zero(x)), s.eq(x, s.floor(x)))
    return s.cast(s.select(s.or_(pole, s.eq(s.abs(x), inf)), inf, out), d)


def _digamma(s: Any, x: Any) -> Any:
    """Reflected to x >= 0.5, moved up by the recurrence to x >= 10, then the asymptotic series."""
    d = s.dtype_of(x)
    x = s.cast(x, F64)
    one, half = s.one(x), s.const(0.5, x)
    below = s.lt(x, half)
    y = s.select(below, s.sub(one, x), x)
    out = s.zero(y)
    for _ in range(10):
        small = s.lt(y, s.const(10, y))
        out = s.select(small, s.sub(out, s.div(one, y)), out)
        y = s.select(small, s.add(y, one), y)
    z = s.div(one, s.mul(y, y))
    series = _polynomial(s, z, [1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12])
    out = s.add(out, s.sub(s.sub(s.log(y), s.div(half, y)), s.mul(z, series)))
    fraction = s.sub(x, s.round(x))
    cotangent = s.div(s.const(math.pi, x), s.tan(s.mul(s.const(math.pi, x), fraction)))
    out = s.select(below, s.sub(out, cotangent), out)
    zero = s.eq(x, s.zero(x))
    pole = s.and_(s.lt(x, s.zero(x)), s.eq(x, s.floor(x)))
    out = s.select(zero, s.div(s.const(-1.0, x), x), s.select(pole, s.const(math.nan, x), out))
    return s.cast(out, d)


def _trigamma(s: Any, x: Any) -> Any:
    d = s.dtype_of(x)
    x = s.cast(x, F64)
    one, half = s.one(x), s.const(0.5, x)
    below = s.lt(x, half)
    y = s.select(below, s.sub(one, x), x)
    out = s.zero(y)
    for _ in range(10):
        small = s.lt(y, s.const(10, y))
        out = s.select(small, s.add(out, s.div(one, s.mul(y, y))), out)
        y = s.select(small, s.add(y, one), y)
    z = s.div(one, s.mul(y, y))
    series = _polynomial(s, z, [7 / 6, -691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6])
    out = s.add(out, s.add(s.div(s.add(one, s.div(half, y)), y), s.div(s.mul(z, series), y)))
    sine = _sin_pi(s, x)
    reflected = s.sub(s.div(s.const(math.pi**2, x), s.mul(sine, sine)), out)
    return s.cast(s.select(below, reflected, out), d)


unary(
    "trigamma",
    _trigamma,
    domain=(0.5, 3),
    doc="The derivative of digamma.",
)
unary(
    "digamma",
    _digamma,
    lambda b, n, g: b.mul(g, b.trigamma(n[0])),
    domain=(0.5, 3),
    doc="The derivative of lgamma.",
)
unary(
    "lgamma",
    _lgamma,
    lambda b, n, g: b.mul(g, b.digamma(n[0])),
    domain=(0.5, 3),
    doc="The logarithm of |gamma(x)|.",
)
