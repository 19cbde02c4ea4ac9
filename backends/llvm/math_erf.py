"""erf and erfc on lanes. Used by `math` (the table).

Coefficients are minimax fits made for this file; the comment beside each gives the range and the largest
error before rounding in evaluation.
"""

from __future__ import annotations

from .math_core import MathContext, Real
from .math_exp import EXP2_32, exp_sum

# erf x / x - 1 in x**2; x <= 0.9, relative error 2**-26.1 (f32); x <= 1, 2**-56 (f64)
_ERF = {
    32: (0.12837915, -0.3761252, 0.112821154, -0.026778297, 0.0050112866, -0.0006087542),
    64: (
        0.12837916709551256, -0.3761263890318345, 0.11283791670942309, -0.02686617064288789,
        0.005223977604646302, -0.0008548325870140976, 0.00012055292048477637, -1.4924686396288592e-05,
        1.6446844961853325e-06, -1.6204320507296354e-07, 1.3703070685442839e-08, -7.765808956892395e-10,
    ),
}  # fmt: skip
# log2(erfc a) on 0.9 <= a <= 4 in f32; 1 - 2**(this) has relative error 2**-29.1
_LOG2_ERFC_32 = (
    -0.00023966466, -1.6270697, -0.9189579, -0.15020876, 0.03219658, -0.0044233166, 0.00028606036,
)  # fmt: skip
# (1 + 2a) e**(a*a) erfc a in (a - 3) / (a + 3) on 0 <= a <= 27.5 in f64, relative error 2**-54.7
_ERFCX = (
    1.2530080582697296, -0.13562110612458117, -0.047562294353443946, 0.12964515870273932,
    -0.11927366341554901, 0.0683080273451093, -0.023770514914758012, 0.0025293917946626744,
    0.0018886903222567625, -0.0007798320672169336, -0.00010515956559387584, 0.00012509820957230032,
    4.948440685503799e-06, -2.0096596575209577e-05, -7.282353160172219e-07, 3.4635843680342885e-06,
    3.497767575583095e-07, -6.041529571015186e-07, -1.3152501800758213e-07, 9.107918013492859e-08,
    3.28634118303764e-08, -8.219762034089245e-09, -4.108623091933876e-09,
)  # fmt: skip


def _near_zero(cx: MathContext, x: Real) -> Real:
    return cx.mad(x, cx.poly(x * x, _ERF[cx.width]), x)


def _erfc_positive(cx: MathContext, a: Real) -> Real:
    """erfc a for a >= 0 in f64: e**(-a*a), the square in two doubles, times a slowly varying factor."""
    a = a.at_most(28.0)
    square, square_low = cx.two_product(a, a)
    factor = cx.poly((a - 3.0) / (a + 3.0), _ERFCX) / cx.mad(a, 2.0, 1.0)
    return exp_sum(cx, -square, -square_low, nonpositive=True) * factor


def erf(cx: MathContext, x: Real) -> Real:
    a = abs(x)
    if not cx.is32:
        return (a < 1.0).pick(_near_zero(cx, x), (1.0 - _erfc_positive(cx, a)).signed_as(x))
    c = a.at_most(4.0)
    g = cx.poly(c, _LOG2_ERFC_32)
    t = g + cx.magic
    power = ((t.bits() << cx.mant) + cx.one).real()
    large = cx.mad(cx.poly(g - (t - cx.magic), EXP2_32), -power, 1.0)
    return (a < 0.9).pick(_near_zero(cx, a), large).signed_as(x)


def erfc(cx: MathContext, x: Real) -> Real:
    """f64 only."""
    a = abs(x)
    far = _erfc_positive(cx, a)
    far = (x < 0.0).pick(2.0 - far, far)
    return (a < 0.5).pick(1.0 - _near_zero(cx, x), far)
