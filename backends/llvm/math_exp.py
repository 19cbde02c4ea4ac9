"""Exponentials and hyperbolic functions on lanes. Used by `math` (the table) and by `math_log`, `math_erf`.

All write x = n ln2 + r with |r| <= ln2/2 and scale a minimax polynomial in r by 2**n. Coefficients are
minimax fits made for this file; the comment beside each gives the range and the largest error before rounding
in evaluation.
"""

from __future__ import annotations

from .math_core import LN2_200, MathContext, Real, split_constant

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
# n * ln2_high is exact for every exponent n, so the reduction needs no fma to be accurate.
_LN2 = {32: split_constant(LN2_200, 200, (15, 24)), 64: split_constant(LN2_200, 200, (41, 53))}
# Beyond these exp is exactly inf or 0; n stays inside what the two-step scaling takes.
_EXP_LIMITS = {32: (-104.0, 89.0), 64: (-746.0, 710.0)}
_EXP2_LIMITS = {32: (-151.0, 129.0), 64: (-1076.0, 1025.0)}

# (e**r - 1 - r) / r**2 on |r| <= 0.348, error relative to r: 2**-26.1 (f32), 2**-55.6 (f64)
_EXP = {
    32: (0.5, 0.1666654, 0.041666474, 0.008366902, 0.0013934162),
    64: (
        0.5000000000000006, 0.16666666666666682, 0.041666666666572524, 0.00833333333331699,
        0.001388888893292556, 0.00019841269897719974, 2.480150363962781e-05, 2.7557232752683845e-06,
        2.762669143997832e-07, 2.5112946932953634e-08,
    ),
}  # fmt: skip
# (sinh r - r) / r**3 in r**2 on r <= 0.348, error relative to r: 2**-34 (f32), 2**-65 (f64)
_SINH = {
    32: (0.16666667, 0.008333179, 0.00019970142),
    64: (
        0.16666666666666666, 0.00833333333333438, 0.00019841269837387454, 2.7557325562070115e-06,
        2.5047379689100982e-08, 1.7387194235461438e-10,
    ),
}  # fmt: skip
# (cosh r - 1) / r**2 in r**2 on r <= 0.348, absolute error: 2**-33 (f32), 2**-70 (f64)
_COSH = {
    32: (0.5, 0.041666456, 0.0013935826),
    64: (
        0.5, 0.041666666666666685, 0.0013888888888873236, 2.4801587349386272e-05, 2.755725159424207e-07,
        2.0921858337762117e-09,
    ),
}  # fmt: skip
# 2**r on |r| <= 0.503 in f32, relative error 2**-28
EXP2_32 = (1.0, 0.6931472, 0.24022648, 0.055503584, 0.009618499, 0.0013391639, 0.00015330306)
# (tanh x - x) / x**3 in x**2 on x <= 0.55 in f32, relative error 2**-29.7
_TANH_32 = (-0.33333316, 0.13332556, -0.053849638, 0.021061935, -0.0062617185)


def _reduce(cx: MathContext, x: Real) -> tuple[Real, Real, Real]:
    """(n + magic, n, r) with x = n ln2 + r; the low bits of the first are the integer n."""
    high, low = _LN2[cx.width]
    t = cx.mad(x, LOG2E, cx.magic)
    n = t - cx.magic
    return t, n, cx.mad(n, -low, cx.mad(n, -high, x))


def _scale(cx: MathContext, p: Real, t: Real) -> Real:
    """p * 2**n, where `t` is n + magic. Rounded once, so that overflow, subnormals and NaN come out right."""
    if cx.scales:
        return cx.scaled(p, t.bits() - cx.magic_bits)
    # Two steps, the first of them exact.
    e = t.bits() << cx.mant
    half = (e >> 1) & cx.exp_mask
    return p * (half + cx.one).real() * (e - half + cx.one).real()


def exp_sum(cx: MathContext, x: Real, low: Real | None = None, nonpositive: bool = False) -> Real:
    """e**(x + low) with |low| far below |x|; without the upper clamp when x <= 0 is known."""
    floor, ceiling = _EXP_LIMITS[cx.width]
    gone = x < floor
    x = x.at_least(floor)
    if not nonpositive:
        x = x.at_most(ceiling)
    t, _, r = _reduce(cx, x)
    if low is not None:
        r = r + low
    # Zeros stay zeros. Scaling down to nothing would trap into microcode on x86, and masked scores are -inf.
    return _scale(cx, gone.pick(0.0, cx.poly(r, (1.0, 1.0, *_EXP[cx.width]))), t)


def exp(cx: MathContext, x: Real) -> Real:
    return exp_sum(cx, x)


def exp2(cx: MathContext, x: Real) -> Real:
    floor, ceiling = _EXP2_LIMITS[cx.width]
    gone = x < floor
    x = x.at_least(floor).at_most(ceiling)
    t = x + cx.magic
    r = (x - (t - cx.magic)) * LN2
    return _scale(cx, gone.pick(0.0, cx.poly(r, (1.0, 1.0, *_EXP[cx.width]))), t)


def expm1(cx: MathContext, x: Real) -> Real:
    """2**n (e**r - 1) + (2**n - 1): no cancellation, since |r| < ln2/2 keeps the second term dominant or
    zero."""
    floor, ceiling = (-18.0, 89.0) if cx.is32 else (-38.0, 710.0)
    t, _, r = _reduce(cx, x.at_least(floor).at_most(ceiling))
    p = cx.mad(r * r, cx.poly(r, _EXP[cx.width]), r)
    s = ((t.bits() << cx.mant) + (cx.one - (1 << cx.mant))).real()  # 2**(n-1): 2**n could overflow too early
    y = cx.mad(s, p, s - 0.5) * 2.0
    return (abs(x) < (2.0**-26 if cx.is32 else 2.0**-55)).pick(x, y)


def sigmoid(cx: MathContext, x: Real) -> Real:
    """1 / (1 + e**-x), with e**-|x| so that the left tail keeps its relative accuracy down to subnormals."""
    z = exp_sum(cx, -abs(x), nonpositive=True)
    return (x < 0.0).pick(z, 1.0) / (z + 1.0)


def _hyperbolic(cx: MathContext, a: Real, limit: float) -> tuple[Real, Real, Real, Real]:
    """For a >= 0: (A, B, O, E) with sinh a = 2 (A (1 + E) + B O) and cosh a = 2 (B (1 + E) + A O).

    O = sinh r, E = cosh r - 1, A = (2**n - 2**-n) / 4, B = (2**n + 2**-n) / 4.
    """
    t, n, r = _reduce(cx, a.at_most(limit))
    z = r * r
    odd = cx.mad(r * z, cx.poly(z, _SINH[cx.width]), r)
    even = z * cx.poly(z, _COSH[cx.width])
    quarter = cx.one - (2 << cx.mant)
    up = ((t.bits() << cx.mant) + quarter).real()
    # 2**-n no longer counts beyond n = 60, and its encoding must not run out of exponents.
    down = (((cx.magic - n.at_most(60.0)).bits() << cx.mant) + quarter).real()
    return up - down, up + down, odd, even


def sinh(cx: MathContext, x: Real) -> Real:
    a = abs(x)
    A, B, odd, even = _hyperbolic(cx, a, 89.5 if cx.is32 else 710.6)
    y = (A + cx.mad(B, odd, A * even)) * 2.0
    return (a < (2.0**-13 if cx.is32 else 2.0**-28)).pick(x, y.signed_as(x))


def cosh(cx: MathContext, x: Real) -> Real:
    A, B, odd, even = _hyperbolic(cx, abs(x), 89.5 if cx.is32 else 710.6)
    return (B + cx.mad(A, odd, B * even)) * 2.0


def tanh(cx: MathContext, x: Real) -> Real:
    a = abs(x)
    if not cx.is32:
        A, B, odd, even = _hyperbolic(cx, a, 22.0)
        y = (A + cx.mad(B, odd, A * even)) / (B + cx.mad(A, odd, B * even))
        return (a < 2.0**-28).pick(x, y.signed_as(x))
    # Large: 1 - 2 / (e**2a + 1), where the error of the exponential fades as it stops mattering.
    c = a.at_most(9.1)
    t = cx.mad(c, 2.0 * LOG2E, cx.magic)
    r = cx.mad(c, 2.0 * LOG2E, -(t - cx.magic))
    half = ((t.bits() << cx.mant) + (cx.one - (1 << cx.mant))).real()
    large = 1.0 - 1.0 / cx.mad(cx.poly(r, EXP2_32), half, 0.5)
    z = a * a
    small = cx.mad(z * a, cx.poly(z, _TANH_32), a)
    return (a < 0.55).pick(small, large).signed_as(x)
