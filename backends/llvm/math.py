"""Vector math: elementary functions emitted as inline LLVM IR, for any lane count, without libm in the usual
path.

`emit(builder, name, *args)` is the one entry point for code generation; `MATH` lists the functions, `ULP`
their error bounds. C99's (and so PyTorch's) results for NaN, infinities, signed zeros, subnormals, overflow
and domain errors hold for every function, and a lane's result depends on that lane alone, whatever the vector
length.

sin, cos, tan (huge arguments) and fmod (quotients beyond 2**22) call the C library lane by lane behind a
branch that is taken only when such a lane exists; they add basic blocks, so use `builder.block` after `emit`,
not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import math_erf, math_exp, math_log, math_trig
from .math_core import MathContext, Real


def _through_f64(fn: Callable[..., Real]) -> Callable[..., Real]:
    """Run the f64 version for f32 lanes too: half an ulp, at the price of twice the vector length."""

    def call(cx: MathContext, *args: Real) -> Real:
        if not cx.is32:
            return fn(cx, *args)
        wide = cx.double()
        return cx.narrow(fn(wide, *(cx.widen(a, wide) for a in args)))

    return call


def _fmod(cx: MathContext, x: Real, y: Real) -> Real:
    """x - trunc(x / y) y, exactly, with the sign of x.

    For a quotient below 2**22 the rounded quotient is off by one at most, and the remainder by either is
    representable, hence exact. Other lanes call the C library, as do, without fma, those where splitting
    overflows or the low part of the product underflows.
    """
    a, b = abs(x), abs(y)
    quotient = a / b
    slow = ~((quotient < 2.0**22) & (a < float("inf")))
    whole = cx.call("trunc", quotient)
    if cx.fma:
        r = cx.mad(-whole, b, a)
    else:
        high, low = cx.two_product(whole, b)
        r = (a - high) - low
        top, bottom = (2.0**100, 2.0**-76) if cx.is32 else (2.0**990, 2.0**-900)
        slow = slow | (a > top) | (b < bottom)
    r = (r < 0.0).pick(r + b, r)
    r = (a < b).pick(a, r)
    return cx.patch(r.signed_as(x), slow, "fmod", x, y)


MATH: dict[str, Callable[..., Real]] = {
    "exp": math_exp.exp,
    "exp2": math_exp.exp2,
    "expm1": math_exp.expm1,
    "sigmoid": math_exp.sigmoid,
    "sinh": math_exp.sinh,
    "cosh": math_exp.cosh,
    "tanh": math_exp.tanh,
    "log": math_log.log,
    "log2": math_log.log2,
    "log10": _through_f64(math_log.log10),
    "log1p": math_log.log1p,
    "asinh": _through_f64(math_log.asinh),
    "acosh": _through_f64(math_log.acosh),
    "atanh": _through_f64(math_log.atanh),
    "pow": math_log.pow,
    "sin": math_trig.sin,
    "cos": math_trig.cos,
    "tan": _through_f64(math_trig.tan),
    "asin": math_trig.asin,
    "acos": math_trig.acos,
    "atan": math_trig.atan,
    "atan2": math_trig.atan2,
    "erf": math_erf.erf,
    "erfc": _through_f64(math_erf.erfc),
    "fmod": _fmod,
}

# Largest error in units in the last place of the exact result, (f32, f64). Where f32 runs in f64, 0.51 is the
# two roundings; the rest are measured maxima (all f32 arguments at a stride, random f64) plus a margin.
ULP: dict[str, tuple[float, float]] = {
    "exp": (1.25, 1.25),
    "exp2": (1.25, 1.25),
    "expm1": (2.0, 2.5),
    "sigmoid": (2.5, 2.5),
    "sinh": (2.0, 2.5),
    "cosh": (2.25, 2.5),
    "tanh": (2.0, 3.0),
    "log": (1.25, 1.25),
    "log2": (2.5, 2.5),
    "log10": (0.51, 2.5),
    "log1p": (2.0, 1.5),
    "asinh": (0.51, 3.0),
    "acosh": (0.51, 3.5),
    "atanh": (0.51, 2.5),
    "pow": (0.51, 1.5),
    "sin": (2.0, 2.0),
    "cos": (2.0, 2.0),
    "tan": (0.51, 3.5),
    "asin": (2.25, 2.25),
    "acos": (1.5, 1.5),
    "atan": (2.0, 2.0),
    "atan2": (2.25, 2.25),
    "erf": (1.75, 1.75),
    "erfc": (0.51, 4.5),
    "fmod": (0.0, 0.0),
}


def emit(builder: Any, name: str, *args: Any, fma: bool = True) -> Any:
    """Emit `name(*args)` at the builder's position and return the value, of the arguments' type.

    args: LLVM values, all of one type: float, double, or a vector of either of any length.
    fma: whether the target has fused multiply-add; without it the same bounds hold with other instructions.
    Raises KeyError for a name not in `MATH`, TypeError for other or mixed types.
    """
    fn = MATH[name]
    if any(a.type != args[0].type for a in args):
        raise TypeError(f"{name}: arguments of different types: {', '.join(str(a.type) for a in args)}")
    cx = MathContext(builder, args[0].type, fma)
    return fn(cx, *(Real(cx, a) for a in args)).v
