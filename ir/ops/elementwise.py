"""Elementwise arithmetic, comparison, selection and casting. A row gives the meaning and, below it, the gradient.

Gradients follow PyTorch's conventions at kinks and ties; a rule reads only what it needs of the forward node.
"""

from __future__ import annotations

import math
from typing import Any

from .. import dtypes
from ..dtypes import DType
from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .records import (
    ALL, BOOL, F16, F32, F64, I32, I64, NUMERIC, binary, boolean, check_same_dtype, composite, elementwise, f32, i64,
    unary, zeros_like,
)  # fmt: skip


def kind(s: Any, x: Any) -> str:
    return s.dtype_of(x).kind


def no_slope(b: Any, n: Any, g: Any) -> Any:
    """The gradient of piecewise constant functions: zeros, as PyTorch gives, not "no gradient"."""
    return zeros_like(b, g)


def keep_where(b: Any, cond: Any, g: Any) -> Any:
    return b.where(cond, g, b.const(0, g))


def zero_where(b: Any, cond: Any, g: Any) -> Any:
    return b.where(cond, b.const(0, g), g)


# --- arithmetic -----------------------------------------------------------------------------------------------------

binary(
    "add",
    lambda s, x, y: s.or_(x, y) if kind(s, x) == "b" else s.add(x, y),
    lambda b, n, g: (g, g),
    kinds=ALL,
    doc="x + y; for bool, or.",
)
binary("sub", lambda s, x, y: s.sub(x, y), lambda b, n, g: (g, lambda: b.neg(g)), kinds=NUMERIC, doc="x - y.")
binary(
    "mul",
    lambda s, x, y: s.and_(x, y) if kind(s, x) == "b" else s.mul(x, y),
    lambda b, n, g: (lambda: b.mul(g, n[1]), lambda: b.mul(g, n[0])),
    kinds=ALL,
    doc="x * y; for bool, and.",
)
binary(
    "div",
    lambda s, x, y: s.div(x, y),
    lambda b, n, g: (lambda: b.div(g, n[1]), lambda: b.mul(b.neg(g), b.div(b.div(n[0], n[1]), n[1]))),
    domain=((-2.0, 2.0), (0.5, 2.0)),
    doc="x / y of floats.",
)


def _signs_differ(s: Any, x: Any, y: Any) -> Any:
    return s.ne(s.lt(x, s.zero(x)), s.lt(y, s.zero(y)))


def _floor_divide(s: Any, x: Any, y: Any) -> Any:
    if kind(s, x) != "f":
        return s.floordiv(x, y)
    r = s.fmod(x, y)
    q = s.div(s.sub(x, r), y)
    q = s.select(s.and_(s.ne(r, s.zero(r)), _signs_differ(s, r, y)), s.sub(q, s.one(q)), q)
    low = s.floor(q)  # q is a whole number up to rounding
    low = s.select(s.gt(s.sub(q, low), s.const(0.5, q)), s.add(low, s.one(q)), low)
    low = s.select(s.eq(q, s.zero(q)), copysign_of(s, s.zero(q), s.div(x, y)), low)
    return s.select(s.eq(y, s.zero(y)), s.div(x, y), low)


def _trunc_divide(s: Any, x: Any, y: Any) -> Any:
    if kind(s, x) == "f":
        return s.trunc(s.div(x, y))
    q = s.floordiv(x, y)
    inexact = s.and_(s.ne(s.mod(x, y), s.zero(x)), _signs_differ(s, x, y))
    return s.select(inexact, s.add(q, s.one(q)), q)


def _remainder(s: Any, x: Any, y: Any) -> Any:
    if kind(s, x) != "f":
        return s.mod(x, y)
    r = s.fmod(x, y)
    return s.select(s.and_(s.ne(r, s.zero(r)), _signs_differ(s, r, y)), s.add(r, y), r)


def _fmod(s: Any, x: Any, y: Any) -> Any:
    if kind(s, x) == "f":
        return s.fmod(x, y)
    r = s.mod(x, y)
    return s.select(s.and_(s.ne(r, s.zero(r)), _signs_differ(s, x, y)), s.sub(r, y), r)


_DIVISOR = ((-4.0, 4.0), (0.7, 2.0))
binary(
    "floor_divide",
    _floor_divide,
    lambda b, n, g: (zeros_like(b, g), zeros_like(b, g)),
    kinds=NUMERIC,
    domain=_DIVISOR,
    doc="Rounds x / y down; integers by zero give 0.",
)
binary(
    "trunc_divide",
    _trunc_divide,
    lambda b, n, g: (zeros_like(b, g), zeros_like(b, g)),
    kinds=NUMERIC,
    domain=_DIVISOR,
    grad_name="DivBackward1",
    doc="Rounds x / y towards zero; integers by zero give 0.",
)
binary(
    "remainder",
    _remainder,
    lambda b, n, g: (g, lambda: b.mul(b.neg(g), b.floor_divide(n[0], n[1]))),
    kinds=NUMERIC,
    domain=_DIVISOR,
    doc="x - y * floor(x / y): the sign of y; integers by zero give 0.",
)
binary(
    "fmod",
    _fmod,
    lambda b, n, g: (g, lambda: b.mul(b.neg(g), b.trunc_divide(n[0], n[1]))),
    kinds=NUMERIC,
    domain=_DIVISOR,
    doc="x - y * trunc(x / y): the sign of x; integers by zero give 0.",
)
unary("neg", lambda s, x: s.neg(x), lambda b, n, g: b.neg(g), kinds=NUMERIC, doc="-x.")
unary(
    "abs",
    lambda s, x: x if kind(s, x) == "u" else s.abs(x),
    lambda b, n, g: b.mul(g, b.sign(n[0])),
    kinds=NUMERIC,
    doc="|x|.",
)


def _sign(s: Any, x: Any) -> Any:
    if kind(s, x) == "b":
        return x
    zero, one = s.zero(x), s.one(x)
    if kind(s, x) == "u":
        return s.select(s.gt(x, zero), one, zero)
    return s.select(s.gt(x, zero), one, s.select(s.lt(x, zero), s.const(-1, x), zero))


for _name in ("sign", "sgn"):
    unary(_name, _sign, no_slope, kinds=ALL, doc="-1, 0 or 1; 0 of NaN.")
unary("reciprocal", lambda s, x: s.div(s.one(x), x), lambda b, n, g: b.mul(b.neg(g), b.mul(n.out, n.out)), domain=(0.5, 2))
unary("square", lambda s, x: s.mul(x, x), lambda b, n, g: b.mul(g, b.mul(n[0], b.const(2, g))), kinds=NUMERIC,
      grad_name="PowBackward0", doc="x * x.")  # fmt: skip
# --- powers ---------------------------------------------------------------------------------------------------------


def _pow(s: Any, x: Any, y: Any) -> Any:
    d = s.dtype_of(x)
    if d.kind == "f":
        return s.pow(x, y)
    if d.kind == "b":
        return s.or_(x, s.not_(y))
    one, zero = s.one(x), s.zero(x)
    out, square = one, x
    for bit in range(d.bits - (d.kind == "i")):
        odd = s.ne(s.and_(s.shr(y, s.const(bit, y)), one), zero)
        out = s.select(odd, s.mul(out, square), out)
        square = s.mul(square, square)
    if d.kind == "i":  # a negative power of an integer is 0 but for 1 and -1
        minus = s.select(s.eq(s.and_(y, one), zero), one, s.const(-1, x))
        small = s.select(s.eq(x, one), one, s.select(s.eq(x, s.const(-1, x)), minus, zero))
        out = s.select(s.lt(y, zero), small, out)
    return out


def _pow_grad_exponent(b: Any, n: Any, g: Any) -> Any:
    x, y = n[0], n[1]
    flat = b.logical_and(b.eq(x, b.const(0, x)), b.ge(y, b.const(0, y)))
    return zero_where(b, flat, b.mul(g, b.mul(n.out, b.log(x))))


binary(
    "pow",
    _pow,
    lambda b, n, g: (
        lambda: zero_where(
            b, b.eq(n[1], b.const(0, g)), b.mul(g, b.mul(n[1], b.pow(n[0], b.sub(n[1], b.const(1, g)))))
        ),
        lambda: _pow_grad_exponent(b, n, g),
    ),
    kinds=ALL,
    domain=((0.2, 2.0), (-2.0, 2.0)),
    grad_name="PowBackward1",
    doc="x to the power y.",
)


def _pow_scalar(s: Any, x: Any, *, exponent: float) -> Any:
    e = exponent
    if e == 0:
        return s.select(s.eq(x, x), s.one(x), s.one(x))
    if e == 1:
        return x
    if e in (2, 3):
        return s.mul(x, x) if e == 2 else s.mul(s.mul(x, x), x)
    if kind(s, x) != "f":
        out, square, left = None, x, int(e)
        while left:
            if left & 1:
                out = square if out is None else s.mul(out, square)
            left >>= 1
            square = s.mul(square, square) if left else square
        return out
    if e == 0.5:
        return s.sqrt(x)
    if e in (-0.5, -1, -2):
        return s.div(s.one(x), {-0.5: s.sqrt, -1: lambda v: v, -2: lambda v: s.mul(v, v)}[e](x))
    return s.pow(x, s.const(e, x))


def _pow_scalar_infer(x: Type, *, exponent: float) -> Type:
    if not isinstance(exponent, (int, float)):
        raise OpError(f"exponent must be a number, got {exponent!r}")
    if x.dtype.kind == "b":
        raise DTypeError("expected a number tensor, got bool; cast first")
    if x.dtype.kind != "f" and (exponent < 0 or exponent != int(exponent)):
        raise OpError(f"an integer tensor takes exponents 0, 1, 2, ..., got {exponent}; cast it to float first")
    return x


def _pow_scalar_grad(b: Any, n: Any, g: Any) -> Any:
    e = n.attrs["exponent"]
    if e == 0:
        return zeros_like(b, g)
    return b.mul(g, b.mul(b.pow_scalar(n[0], exponent=e - 1), b.const(e, g)))


unary(
    "pow_scalar",
    _pow_scalar,
    _pow_scalar_grad,
    infer=_pow_scalar_infer,
    kinds=NUMERIC,
    grad_name="PowBackward0",
    samples=lambda: [
        *(Sample((f32(3, 5),), {"exponent": e}, domain=(0.2, 2.0)) for e in (0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5, -3.0)),
        Sample((f32(0, 2),), {"exponent": 2}),
        Sample((f32(),), {"exponent": 3}),
        *(Sample((i64(4),), {"exponent": e}, smooth=False) for e in (0, 1, 2, 5, 6)),
    ],
    doc="x to a constant power; 2, 3, -1, -2 and +-1/2 by products, quotients and square roots.",
)
unary("sqrt", lambda s, x: s.sqrt(x), lambda b, n, g: b.div(g, b.mul(n.out, b.const(2, g))), domain=(0.2, 3))
unary(
    "rsqrt",
    lambda s, x: s.div(s.one(x), s.sqrt(x)),
    lambda b, n, g: b.mul(b.mul(g, b.const(-0.5, g)), b.pow_scalar(n.out, exponent=3)),
    domain=(0.2, 3),
    doc="1 / sqrt(x).",
)

# --- rounding and parts ---------------------------------------------------------------------------------------------

for _name, _doc in (("floor", "Rounds down."), ("ceil", "Rounds up."), ("trunc", "Rounds towards zero.")):
    unary(
        _name,
        (lambda p: lambda s, x: s.prim(p, x) if kind(s, x) == "f" else x)(_name),
        no_slope,
        kinds=NUMERIC,
        doc=_doc,
    )


def _round(s: Any, x: Any, *, decimals: int = 0) -> Any:
    if kind(s, x) != "f":
        return x
    if decimals == 0:
        return s.round(x)
    p = s.const(10.0 ** abs(decimals), x)
    return s.div(s.round(s.mul(x, p)), p) if decimals > 0 else s.mul(s.round(s.div(x, p)), p)


unary("round", _round, no_slope, kinds=NUMERIC, attrs=({}, {"decimals": 1}, {"decimals": -1}), doc="Half to even.")
unary("frac", lambda s, x: s.sub(x, s.trunc(x)), lambda b, n, g: g, doc="x - trunc(x).")


def signbit_of(s: Any, x: Any) -> Any:
    d = s.dtype_of(x)
    if d.kind == "f":
        x = s.bitcast(x, I64 if d.bits == 64 else I32)
    return s.lt(x, s.zero(x))


def copysign_of(s: Any, x: Any, y: Any) -> Any:
    size = s.abs(x)
    return s.select(signbit_of(s, y), s.neg(size), size)


unary("signbit", signbit_of, kinds=NUMERIC, result=BOOL, doc="Whether the sign is negative, of -0 and NaN as well.")
binary(
    "copysign",
    copysign_of,
    lambda b, n, g: (
        lambda: zero_where(b, b.eq(n[0], b.const(0, g)), b.mul(g, b.div(n.out, n[0]))),
        lambda: zeros_like(b, g),
    ),
    doc="|x| with the sign of y.",
)
binary(
    "heaviside",
    lambda s, x, y: s.select(s.eq(x, s.zero(x)), y, s.select(s.gt(x, s.zero(x)), s.one(x), s.zero(x))),
    kinds=NUMERIC,
    doc="0 below zero, y at zero, 1 above.",
)

# --- extrema --------------------------------------------------------------------------------------------------------


def _extremum_grad(loses: str) -> Any:
    """Ties share the gradient in halves; the loser (`x < y` for maximum) gets none."""

    def rule(b: Any, n: Any, g: Any) -> tuple[Any, Any]:
        def part(x: Any, y: Any) -> Any:
            shared = b.where(b.eq(x, y), b.mul(g, b.const(0.5, g)), g)
            return zero_where(b, getattr(b, loses)(x, y), shared)

        return (lambda: part(n[0], n[1])), (lambda: part(n[1], n[0]))

    return rule


binary("maximum", lambda s, x, y: s.maximum(x, y), _extremum_grad("lt"), kinds=ALL, doc="NaN if either is.")
binary("minimum", lambda s, x, y: s.minimum(x, y), _extremum_grad("gt"), kinds=ALL, doc="NaN if either is.")
for _name, _prim, _beyond in (("clamp_min", "maximum", "lt"), ("clamp_max", "minimum", "gt")):
    binary(
        _name,
        (lambda p: lambda s, x, bound: s.prim(p, x, bound))(_prim),
        (
            lambda beyond: lambda b, n, g: (
                lambda: zero_where(b, getattr(b, beyond)(n[0], n[1]), g),
                lambda: keep_where(b, getattr(b, beyond)(n[0], n[1]), g),
            )
        )(_beyond),
        kinds=NUMERIC,
        grad_name="Clamp" + _name[6:].capitalize() + "Backward1",
        doc="Limits x on one side by a tensor; a tie counts as inside.",
    )


def _clamp(s: Any, x: Any, *, min: float | None = None, max: float | None = None) -> Any:
    if min is not None:
        x = s.maximum(x, s.const(min, x))
    if max is not None:
        x = s.minimum(x, s.const(max, x))
    return x


def _clamp_grad(b: Any, n: Any, g: Any) -> Any:
    x, low, high = n[0], n.attr("min"), n.attr("max")
    inside = None if low is None else b.ge(x, b.const(low, x))
    if high is not None:
        below = b.le(x, b.const(high, x))
        inside = below if inside is None else b.logical_and(inside, below)
    return g if inside is None else keep_where(b, inside, g)


unary(
    "clamp",
    _clamp,
    _clamp_grad,
    kinds=NUMERIC,
    attrs=({"min": -1, "max": 1}, {"min": 0}, {"max": 1}),
    grad_name=lambda node: (
        "ClampMinBackward0"
        if node.attrs.get("max") is None
        else "ClampMaxBackward0"
        if node.attrs.get("min") is None
        else "ClampBackward1"
    ),
    doc="Limits x to [min, max]; either may be None. The gradient passes at the bounds.",
)

# --- selection, casts, fused arithmetic ------------------------------------------------------------------------------


def _where_infer(cond: Type, x: Type, y: Type) -> Type:
    if cond.dtype.kind != "b":
        raise DTypeError(f"expected a bool condition, got {cond.dtype.name}; compare it first")
    check_same_dtype(x, y)
    if cond.shape == x.shape and y.shape in ((), x.shape):
        return x
    return Type(x.dtype, broadcast_shapes(cond.shape, x.shape, y.shape))


elementwise(
    "where",
    lambda s, cond, x, y: s.select(cond, x, y),
    lambda b, n, g: (None, lambda: keep_where(b, n[0], g), lambda: zero_where(b, n[0], g)),
    infer=_where_infer,
    samples=lambda: [
        Sample((boolean(3, 4), f32(4), f32())),
        Sample((boolean(), f32(2, 1), f32(1, 3))),
        Sample((boolean(0), f32(0), f32(1))),
        Sample((boolean(3), i64(3), i64(3)), smooth=False),
    ],
    doc="x where cond holds, else y.",
)


def _cast_infer(x: Type, *, dtype: DType) -> Type:
    if not isinstance(dtype, DType):
        raise DTypeError(f"dtype must be a tracegrad dtype, got {dtype!r}")
    return Type(dtype, x.shape)


elementwise(
    "cast",
    lambda s, x, *, dtype: s.cast(x, dtype),
    lambda b, n, g: (g,),
    infer=_cast_infer,
    grad_name="ToCopyBackward0",
    samples=lambda: [
        *(Sample((f32(3, 2),), {"dtype": d}, smooth=False) for d in dtypes.ALL if d.kind != "u"),
        Sample((f32(3, 2),), {"dtype": F64}),
        Sample((i64(3),), {"dtype": F32}, smooth=False),
        Sample((boolean(3),), {"dtype": F16}, smooth=False),
    ],
    doc="Value conversion: float to integer truncates, to bool is x != 0.",
)


def _bitcast_infer(x: Type, *, dtype: DType) -> Type:
    if x.dtype.bits != dtype.bits or dtype.bits < 32:
        raise DTypeError(f"expected two dtypes of one width, 32 or 64 bits, got {x.dtype.name} and {dtype.name}")
    return Type(dtype, x.shape)


elementwise(
    "bitcast",
    lambda s, x, *, dtype: s.bitcast(x, dtype),
    infer=_bitcast_infer,
    samples=lambda: [Sample((f32(3, 2),), {"dtype": I32}), Sample((f32(),), {"dtype": dtypes.uint32})],
    doc="The same bits as another type of the same width.",
)


def _lerp(s: Any, x: Any, y: Any, w: Any) -> Any:
    d = s.sub(y, x)
    near = s.add(x, s.mul(w, d))
    far = s.sub(y, s.mul(d, s.sub(s.one(w), w)))  # exact at w = 1
    return s.select(s.lt(s.abs(w), s.const(0.5, w)), near, far)


elementwise(
    "lerp",
    _lerp,
    lambda b, n, g: (
        lambda: b.mul(g, b.sub(b.const(1, g), n[2])),
        lambda: b.mul(g, n[2]),
        lambda: b.mul(g, b.sub(n[1], n[0])),
    ),
    grad_name=lambda node: (
        "LerpBackward0" if node.operands[2].node and node.operands[2].node.op.name == "constant" else "LerpBackward1"
    ),
    doc="x + w * (y - x).",
)
elementwise(
    "addcmul",
    lambda s, x, y, z, *, value=1: s.add(x, s.mul(s.mul(s.const(value, x), y), z)),
    lambda b, n, g: (
        g,
        lambda: b.mul(g, b.mul(n[2], b.const(n.attr("value"), g))),
        lambda: b.mul(g, b.mul(n[1], b.const(n.attr("value"), g))),
    ),
    kinds=NUMERIC,
    attrs=({}, {"value": 3}),
    doc="x + value * y * z.",
)
elementwise(
    "addcdiv",
    lambda s, x, y, z, *, value=1: s.add(x, s.mul(s.const(value, x), s.div(y, z))),
    lambda b, n, g: (
        g,
        lambda: b.mul(g, b.div(b.const(n.attr("value"), g), n[2])),
        lambda: b.mul(b.neg(g), b.div(b.div(b.mul(b.const(n.attr("value"), g), n[1]), n[2]), n[2])),
    ),
    attrs=({}, {"value": 0.5}),
    domain=((-2, 2), (-2, 2), (0.5, 2)),
    doc="x + value * y / z.",
)


def _nan_to_num_infer(
    x: Type, *, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Type:
    return x


def _nan_to_num(b: Any, x: Any, *, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    d = x.type.dtype
    if d.kind != "f":
        return b.clone(x)
    largest = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0}.get(d.name, 3.3895313892515355e38)
    out = b.where(b.isnan(x), b.const(nan, x), x)
    out = b.where(b.eq(x, b.const(math.inf, x)), b.const(largest if posinf is None else posinf, x), out)
    return b.where(b.eq(x, b.const(-math.inf, x)), b.const(-largest if neginf is None else neginf, x), out)


composite(
    "nan_to_num",
    _nan_to_num_infer,
    _nan_to_num,
    lambda b, n, g: (lambda: keep_where(b, b.isfinite(n[0]), g),),
    samples=lambda: [Sample((f32(3, 2),)), Sample((f32(3),), {"nan": 1.0, "posinf": 2.0, "neginf": 3.0})],
    doc="NaN and infinities replaced by numbers, by default 0 and the largest finite ones.",
)
