"""Trigonometric functions and their inverses on lanes. Used by `math` (the table).

Arguments are reduced by pi cut into parts (Cody and Waite 1980); lanes too large for that call the C library
behind a branch that is taken only when there are such lanes. Coefficients are minimax fits made for this
file; the comment beside each gives the range and the largest error before rounding in evaluation.
"""

from __future__ import annotations

import math

from .math_core import PI_240, MathContext, Real, split_constant

_PI_2 = 1.5707963267948966
# pi/2 rounded to nearest, and the rest
_PI_2_PARTS = {32: (1.5707963705062866, -4.371139000186241e-08), 64: (_PI_2, 6.123233995736766e-17)}
# pi in parts, and the largest |x| for which k * part stays exact (without fma) or r accurate (with)
_PI_PARTS = {
    (32, True): (split_constant(PI_240, 240, (24, 24, 24)), 2.0**15 * math.pi),
    (32, False): (split_constant(PI_240, 240, (11, 11, 11, 11, 24)), 2.0**11 * math.pi),
    (64, True): (split_constant(PI_240, 240, (53, 53, 53)), 2.0**27 * math.pi),
    (64, False): (split_constant(PI_240, 240, (31, 31, 31, 53)), 2.0**20 * math.pi),
}
# (sin r - r) / r**3 in r**2 on r <= 1.574, error relative to r: 2**-31 (f32), 2**-61.9 (f64)
_SIN = {
    32: (-0.16666667, 0.008333351, -0.00019843288, 2.7639514e-06, -2.5751985e-08),
    64: (
        -0.16666666666666666, 0.008333333333333212, -0.00019841269841215151, 2.755731921208877e-06,
        -2.5052106954377686e-08, 1.605894354987249e-10, -7.643085385789624e-13, 2.7221040975040207e-15,
    ),
}  # fmt: skip
# (tan r - r) / r**3 in r**2 on r <= 0.787, error relative to r: 2**-29.3 (f32), 2**-59.6 (f64)
_TAN = {
    32: (0.33333352, 0.13332586, 0.054068144, 0.02124173, 0.010936628, -3.4172357e-05, 0.004435651),
    64: (
        0.33333333333333387, 0.13333333333324565, 0.05396825397329435, 0.021869488389254937,
        0.008863238076628017, 0.0035920993464460217, 0.0014560559843144773, 0.000588814495796018,
        0.00024392359446493155, 8.313093229406827e-05, 6.797975483544013e-05, -2.656792197950332e-05,
        4.939727647216781e-05, -2.4642683133491156e-05, 9.87940081501024e-06,
    ),
}  # fmt: skip
# (atan t - t) / t**3 in t**2 on t <= tan(pi/8), error relative to t: 2**-30.5 (f32), 2**-63.8 (f64)
_ATAN = {
    32: (-0.33333316, 0.19998534, -0.14244546, 0.10600434, -0.06093349),
    64: (
        -0.33333333333333326, 0.19999999999997228, -0.14285714285343212, 0.11111111085832766,
        -0.09090908071651288, 0.0769228131277137, -0.06666207754043235, 0.05876854291716336,
        -0.05217424790152193, 0.04499902826186783, -0.03339623079997413, 0.015121541301175214,
    ),
}  # fmt: skip
# (asin s - s) / s**3 in s**2 on s <= 1/2, error relative to s: 2**-27.6 (f32), 2**-55.8 (f64)
_ASIN = {
    32: (0.16666754, 0.07495259, 0.045474853, 0.024158683, 0.042200178),
    64: (
        0.16666666666665386, 0.07500000000340834, 0.0446428568258195, 0.030381959224899068,
        0.022371756181638256, 0.01735973045540595, 0.01388499952495347, 0.012170672535369197,
        0.006521953536118773, 0.019544098614616232, -0.01624827498578488, 0.03192826901107485,
    ),
}  # fmt: skip


def _subtract_multiple(cx: MathContext, x: Real, k: Real, fraction: float = 1.0) -> Real:
    """x - k * fraction * pi, `fraction` a power of two."""
    k = -k
    for part in _PI_PARTS[cx.width, cx.fma][0]:
        x = cx.mad(k, part * fraction, x)
    return x


def _too_large(cx: MathContext, x: Real, fraction: float = 1.0):
    return abs(x) > _PI_PARTS[cx.width, cx.fma][1] * fraction


def _sin_reduced(cx: MathContext, r: Real) -> Real:
    z = r * r
    # the last rounding may pass 1, and sqrt(1 - sin**2) must not be NaN
    return cx.mad(z * r, cx.poly(z, _SIN[cx.width]), r).at_least(-1.0).at_most(1.0)


def sin(cx: MathContext, x: Real) -> Real:
    """x = k pi + r, |r| <= pi/2: (-1)**k sin r."""
    t = cx.mad(x, 1.0 / math.pi, cx.magic)
    r = _subtract_multiple(cx, x, t - cx.magic)
    y = (_sin_reduced(cx, r).bits() ^ (t.bits() << (cx.width - 1))).real()
    y = x.equals(0.0).pick(x, y)
    return cx.patch(y, _too_large(cx, x), "sin", x)


def cos(cx: MathContext, x: Real) -> Real:
    """x = (j + 1/2) pi + r: (-1)**(j + 1) sin r, accurate where cos crosses zero."""
    t = cx.mad(x, 1.0 / math.pi, -0.5) + cx.magic
    r = _subtract_multiple(cx, x, (t - cx.magic) + 0.5)
    y = (_sin_reduced(cx, r).bits() ^ ((t.bits() + 1) << (cx.width - 1))).real()
    return cx.patch(y, _too_large(cx, x), "cos", x)


def tan(cx: MathContext, x: Real) -> Real:
    """x = k pi/2 + r, |r| <= pi/4: tan r, or -1/tan r for odd k."""
    t = cx.mad(x, 2.0 / math.pi, cx.magic)
    r = _subtract_multiple(cx, x, t - cx.magic, 0.5)
    z = r * r
    p = cx.mad(z * r, cx.poly(z, _TAN[cx.width]), r)
    odd = (t.bits() & 1).nonzero()
    y = odd.pick(-1.0, p) / odd.pick(p, 1.0)
    return cx.patch(y, _too_large(cx, x, 0.5), "tan", x)


def _asin_core(cx: MathContext, x: Real):
    """(big, s, t): s + t = asin s with s = sqrt((1 - a) / 2) where a = |x| > 1/2 (big), else s = x."""
    a = abs(x)
    big = a > 0.5
    folded = cx.mad(a, -0.5, 0.5)
    z = big.pick(folded, x * x)
    s = big.pick(cx.sqrt(folded), x)
    return big, s, s * z * cx.poly(z, _ASIN[cx.width])


def asin(cx: MathContext, x: Real) -> Real:
    big, s, tail = _asin_core(cx, x)
    high, low = _PI_2_PARTS[cx.width]
    folded = cx.mad(tail - low / 2.0, -2.0, cx.mad(s, -2.0, high))
    return big.pick(folded, s + tail).signed_as(x)


def acos(cx: MathContext, x: Real) -> Real:
    big, s, tail = _asin_core(cx, x)
    positive = x > 0.0
    factor = big.pick(positive.pick(2.0, -2.0), -1.0)
    return cx.mad(factor, s + tail, big.pick(positive.pick(0.0, math.pi), _PI_2))


def _atan_ratio(cx: MathContext, a: Real, b: Real) -> tuple[Real, Real]:
    """(base, p) with atan(a / b) = base + p for a, b >= 0 and one division; base is 0, pi/4 or pi/2."""
    over = a > b * 2.414213562373095
    middle = (a > b * 0.41421356237309503) | (a.equals(b) & (a > 0.0))  # the latter for inf/inf
    top = over.pick(-b, middle.pick(a - b, a))
    bottom = over.pick(a, middle.pick(a + b, b))
    t = a.equals(b).pick(0.0, top / bottom)  # also 0/0 and inf/inf
    z = t * t
    low = _PI_2_PARTS[cx.width][1]
    p = cx.mad(z * t, cx.poly(z, _ATAN[cx.width]), over.pick(low, middle.pick(low / 2.0, 0.0))) + t
    return over.pick(_PI_2, middle.pick(_PI_2 / 2.0, 0.0)), p


def atan(cx: MathContext, x: Real) -> Real:
    base, p = _atan_ratio(cx, abs(x), cx.real(1.0))
    return (base + p).signed_as(x)


def atan2(cx: MathContext, y: Real, x: Real) -> Real:
    """The angle of the point (x, y), with the sign of y; signed zeros and infinities as in C99 F.10.1.4."""
    a, b = abs(y), abs(x)
    near_overflow = 2.0**126 if cx.is32 else 2.0**1022
    scale = ((a > near_overflow) | (b > near_overflow)).pick(0.25, 1.0)
    a, b = a * scale, b * scale
    base, p = _atan_ratio(cx, a, b)
    # both infinite or both zero: a == b leaves p = 0, but 0 is not greater than 0, so base is 0 as it should
    # be
    left = x.bits().negative()
    return left.pick((math.pi - base) - p, base + p).signed_as(y)
