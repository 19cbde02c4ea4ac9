"""Logarithms, inverse hyperbolic functions and powers on lanes. Used by `math` (the table).

x = 2**n m with m around 1, log x = n ln2 + log m. Coefficients are minimax fits made for this file; the
comment beside each gives the range and the largest error before rounding in evaluation.
"""

from __future__ import annotations

import math

from .math_core import LN2_200, LOG10_2_200, MathContext, Real, split_constant
from .math_exp import LN2, LOG2E, exp_sum

LOG10E = 0.4342944819032518
# m is in [2/3, 4/3) in f32 and in [sqrt(1/2), sqrt(2)) in f64: the bits of the lower ends
_OFFSET = {32: 0x3F2AAAAB, 64: 0x3FE6A09E667F3BCD}
# high parts leave room for an exact product with an exponent
_LN2 = split_constant(LN2_200, 200, (42, 53))
_LOG10_2 = split_constant(LOG10_2_200, 200, (42, 53))
# (log(1 + f) - f + f**2/2) / f**3 on |f| <= 1/3 in f32, error relative to f: 2**-27.5
_LOG_32 = (
    0.33333224, -0.24999717, 0.20010039, -0.16684225, 0.14010915, -0.12131945, 0.13962768, -0.13119927,
)  # fmt: skip
# (2 atanh s - 2s) / s**3 in s**2 on s <= 0.1716: log m = 2 atanh((m - 1) / (m + 1)); error relative to s:
# 2**-58.5
_ATANH = (
    0.6666666666666734, 0.3999999999941729, 0.2857142874183749, 0.22222198625444936, 0.18183561841571028,
    0.15314108224144105, 0.14795429896960668,
)  # fmt: skip
# the same to 2**-43.9, enough for powers in f32
_ATANH_SHORT = (
    0.6666666667580614,
    0.3999999562211545,
    0.285721090691682,
    0.22176192358702865,
    0.19584116248187422,
)
# (2 atanh s - 2s - 2s**3/3) / s**5 in s**2 on s <= 0.1716; error relative to s: 2**-72
_ATANH_TAIL = (
    0.3999999999999998, 0.28571428571443797, 0.22222222217805127, 0.18181818841883904, 0.15384558576202398,
    0.1333625889210999, 0.11675890752998183, 0.1198087772394983,
)  # fmt: skip
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)
# e**r on |r| <= 0.348 in f64 to 2**-32, for powers in f32
_EXP_SHORT = (
    1.0, 1.0, 0.5000000048026743, 0.16666666783684117, 0.041666348498488874, 0.008333280978009363,
    0.0013941485083855266, 0.00019909794334263225,
)  # fmt: skip


def _split(cx: MathContext, x: Real, subnormals: bool = True) -> tuple[Real, Real]:
    """(m, n) with x = 2**n m for positive finite x; garbage for the rest."""
    tiny = None
    if subnormals:
        tiny = x < (2.0**-126 if cx.is32 else 2.0**-1022)
        x = tiny.pick(x * 2.0 ** (cx.mant + 1), x)
    bits = x.bits()
    e = (bits - _OFFSET[cx.width]) & cx.exp_mask
    # int-to-float through the magic number: 64-bit conversions are not everywhere
    n = ((e >> cx.mant) + cx.magic_bits).real() - cx.magic
    if tiny is not None:
        n = n - tiny.pick(float(cx.mant + 1), 0.0)
    return (bits - e).real(), n


def _log1p_reduced(cx: MathContext, f: Real) -> Real:
    """log(1 + f) for 1 + f in the range that `_split` leaves."""
    if cx.is32:
        return cx.mad(f * f, cx.mad(f, cx.poly(f, _LOG_32), -0.5), f)
    half_square, tail = _atanh_parts(cx, f)
    return f - (half_square - tail)


def _atanh_parts(cx: MathContext, f: Real) -> tuple[Real, Real]:
    """(h, t) with log(1 + f) = f - (h - t), h = f**2/2; t = s (h + R(s)), s = f / (2 + f)."""
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    return half_square, s * cx.mad(z, cx.poly(z, _ATANH), half_square)


def _ln(cx: MathContext, f: Real, n: Real) -> Real:
    """n ln2 + log(1 + f)."""
    if cx.is32:
        return cx.mad(n, LN2, _log1p_reduced(cx, f))
    half_square, tail = _atanh_parts(cx, f)
    return cx.mad(n, _LN2[0], f - (half_square - cx.mad(n, _LN2[1], tail)))


def _special(x: Real, y: Real) -> Real:
    """y, with log's answers for what has no logarithm: 0 -> -inf, negative -> NaN, inf and NaN ->
    themselves."""
    other = (x < 0.0).pick(math.nan, x)
    return x.equals(0.0).pick(-math.inf, ((x > 0.0) & (x < math.inf)).pick(y, other))


def log(cx: MathContext, x: Real) -> Real:
    m, n = _split(cx, x)
    return _special(x, _ln(cx, m - 1.0, n))


def log2(cx: MathContext, x: Real) -> Real:
    m, n = _split(cx, x)
    return _special(x, cx.mad(_log1p_reduced(cx, m - 1.0), LOG2E, n))


def log10(cx: MathContext, x: Real) -> Real:
    """f64 only."""
    m, n = _split(cx, x)
    high, low = _LOG10_2
    return _special(x, cx.mad(n, high, cx.mad(_log1p_reduced(cx, m - 1.0), LOG10E, n * low)))


def log1p(cx: MathContext, x: Real) -> Real:
    """n and m from u = 1 + x, but f = m - 1 from x itself: 2**-n x + (2**-n - 1), so no rounding of u
    matters."""
    u = x + 1.0
    e = (u.bits() - _OFFSET[cx.width]) & cx.exp_mask
    n = ((e >> cx.mant) + cx.magic_bits).real() - cx.magic
    four = ((cx.one + (2 << cx.mant)) - e).real()  # 4 * 2**-n, which can't underflow
    f = (x.bits() - e).real() + cx.mad(four, 0.25, -1.0)
    y = _special(u, _ln(cx, f, n))
    return (abs(x) < (2.0**-26 if cx.is32 else 2.0**-55)).pick(x, y)


def asinh(cx: MathContext, x: Real) -> Real:
    """sign(x) log1p(a + a**2 / (1 + sqrt(1 + a**2))), and log(2a) for huge a = |x|. f64 only."""
    a = abs(x)
    square = a * a
    huge = a > 2.0**55
    w = a + square / (cx.sqrt(square + 1.0) + 1.0)
    return (log1p(cx, huge.pick(a, w)) + huge.pick(LN2, 0.0)).signed_as(x)


def acosh(cx: MathContext, x: Real) -> Real:
    """log1p(t + sqrt(t (t + 2))) with t = x - 1, and log(2x) for huge x. f64 only."""
    t = x - 1.0
    huge = x > 2.0**55
    y = log1p(cx, huge.pick(x, t + cx.sqrt(t * (t + 2.0)))) + huge.pick(LN2, 0.0)
    return (x < 1.0).pick(math.nan, y)


def atanh(cx: MathContext, x: Real) -> Real:
    """sign(x) log1p(2a / (1 - a)) / 2 with a = |x|. f64 only."""
    a = abs(x)
    return (log1p(cx, (a + a) / (1.0 - a)) * 0.5).signed_as(x)


def pow(cx: MathContext, x: Real, y: Real) -> Real:
    """|x|**y by e**(y log|x|) with enough extra bits, then C99's special cases (Annex F.10.4.4)."""
    ax = abs(x)
    magnitude = _pow32(cx, ax, y) if cx.is32 else _pow64(cx, ax, y)
    whole = cx.call("trunc", y).equals(y)
    half = y * 0.5
    odd = whole & ~cx.call("trunc", half).equals(half)
    r = odd.pick(magnitude.signed_as(x), magnitude)
    r = ((x < 0.0) & (ax < math.inf) & ~whole).pick(math.nan, r)
    one = x.equals(1.0) | y.equals(0.0) | (ax.equals(1.0) & abs(y).equals(math.inf))
    return one.pick(1.0, r)


def _log_of_edge(ax: Real, y: Real) -> Real:
    return ax.equals(0.0).pick(-math.inf, (ax < math.inf).pick(y, ax))


def _pow32(cx: MathContext, ax: Real, y: Real) -> Real:
    """In f64 lanes, where a plain logarithm has bits to spare and the last conversion rounds once."""
    wide = cx.double()
    a, e = cx.widen(ax, wide), cx.widen(y, wide)
    m, n = _split(wide, a, subnormals=False)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    ln_m = wide.mad(s * z, wide.poly(z, _ATANH_SHORT), s + s)
    power = e * _log_of_edge(a, wide.mad(ln_m, LOG2E, n))
    power = power.at_least(-1000.0).at_most(1000.0)
    t = power + wide.magic
    r = (power - (t - wide.magic)) * LN2
    scale = ((t.bits() << wide.mant) + wide.one).real()
    return cx.narrow(wide.poly(r, _EXP_SHORT) * scale)


def _pow64(cx: MathContext, ax: Real, y: Real) -> Real:
    """log in two doubles (Dekker) to about 2**-65, so that the error of y log x stays below 2**-54 up to
    overflow."""
    m, n = _split(cx, ax)
    f = m - 1.0
    d = m + 1.0
    d_low = f - (d - 2.0)
    inverse = 1.0 / d
    s = f * inverse
    p, p_low = cx.two_product(s, d)
    s_low = (((f - p) - p_low) - s * d_low) * inverse
    z, z_low = cx.two_product(s, s)
    z_low = z_low + (s + s) * s_low
    u = z * cx.poly(z, _ATANH_TAIL)
    v = u + _TWO_THIRDS[0]
    v_low = (_TWO_THIRDS[0] - v) + u + _TWO_THIRDS[1]
    w, w_low = cx.two_product(z, v)
    w_low = w_low + (z * v_low + z_low * v)
    q, q_low = cx.two_product(s, w)
    q_low = q_low + (s * w_low + s_low * w)
    two_s = s + s
    ln = two_s + q
    ln_low = ((two_s - ln) + q) + (q_low + (s_low + s_low))
    k = n * _LN2[0]
    total = k + ln
    low = ((k - total) + ln) + (ln_low + n * _LN2[1])
    finite = (ax > 0.0) & (ax < math.inf)
    total, low = _log_of_edge(ax, total), finite.pick(low, 0.0)
    power, power_low = cx.two_product(y, total)
    power_low = power_low + y * low
    # the low part is NaN where the product or (without fma) the splitting of y overflows
    ordinary = (abs(power) < 800.0) & (abs(y) < 2.0**990)
    return exp_sum(cx, power, ordinary.pick(power_low, 0.0))
