"""erf and erfc on lanes. Used by `math` (the table).

Coefficients are minimax fits made for this file; the comment beside each gives the range and the largest
error before rounding in evaluation. Those for f64 are in ir/special.py.
"""

from __future__ import annotations

from ...ir.special import ERF_64, ERFCX_64
from .math_core import MathContext, Real
from .math_exp import EXP2_32, exp_sum

# erf x / x - 1 in x**2; x <= 0.9, relative error 2**-26.1 (f32)
_ERF = {
    32: (0.12837915, -0.3761252, 0.112821154, -0.026778297, 0.0050112866, -0.0006087542),
    64: ERF_64,
}
# log2(erfc a) on 0.9 <= a <= 4 in f32; 1 - 2**(this) has relative error 2**-29.1
_LOG2_ERFC_32 = (
    -0.00023966466, -1.6270697, -0.9189579, -0.15020876, 0.03219658, -0.0044233166, 0.00028606036,
)  # fmt: skip


def _near_zero(cx: MathContext, x: Real) -> Real:
    return cx.mad(x, cx.poly(x * x, _ERF[cx.width]), x)


def _erfc_positive(cx: MathContext, a: Real) -> Real:
    """erfc a for a >= 0 in f64: e**(-a*a), the square in two doubles, times a slowly varying factor."""
    a = a.at_most(28.0)
    square, square_low = cx.two_product(a, a)
    factor = cx.poly((a - 3.0) / (a + 3.0), ERFCX_64) / cx.mad(a, 2.0, 1.0)
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
