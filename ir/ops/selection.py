"""Extrema, limits, selection, casts and fused arithmetic, element by element."""

from __future__ import annotations

import math
from typing import Any

from .. import dtypes
from ..dtypes import DType
from ..errors import DTypeError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .elementwise import by_number, keep_where, zero_where
from .records import (
    ALL,
    F16,
    F32,
    F64,
    I32,
    NUMERIC,
    binary,
    boolean,
    check_same_dtype,
    composite,
    elementwise,
    f32,
    i64,
    unary,
)

# --- extrema --------------------------------------------------------------------------------------


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
for _name, _prim, _in, _out in (("clamp_min", "maximum", "ge", "lt"), ("clamp_max", "minimum", "le", "gt")):
    binary(
        _name,
        (lambda p: lambda s, x, bound: s.prim(p, x, bound))(_prim),
        (
            lambda inside, outside: (
                lambda b, n, g: (
                    lambda: keep_where(b, getattr(b, inside)(n[0], n[1]), g),
                    lambda: keep_where(b, getattr(b, outside)(n[0], n[1]), g),
                )
            )
        )(_in, _out),
        kinds=NUMERIC,
        grad_name="ClampBackward0",
        doc="Limits x on one side by a tensor; a tie counts as inside.",
    )


def at_least(s: Any, x: Any, low: float) -> Any:
    """max(x, low) for a number: keeps NaN and the sign of zero, and is one instruction on most targets."""
    k = s.const(low, x)
    return k if low != low else s.select(s.lt(x, k), k, x)


def at_most(s: Any, x: Any, high: float) -> Any:
    """min(x, high), likewise."""
    k = s.const(high, x)
    return k if high != high else s.select(s.gt(x, k), k, x)


def _clamp(s: Any, x: Any, *, min: float | None = None, max: float | None = None) -> Any:
    if min is not None:
        x = at_least(s, x, min)
    return x if max is None else at_most(s, x, max)


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
    grad_name="ClampBackward1",
    doc="Limits x to [min, max]; either may be None. The gradient passes at the bounds.",
)

# --- selection, casts, fused arithmetic -----------------------------------------------------------


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
        raise DTypeError(
            f"expected two dtypes of one width, 32 or 64 bits, got {x.dtype.name} and {dtype.name}"
        )
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
    grad_name=by_number("Lerp", 2),
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


def _nan_to_num(
    b: Any, x: Any, *, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Any:
    d = x.type.dtype
    if d.kind != "f":
        return b.clone(x)
    largest = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0}.get(
        d.name, 3.3895313892515355e38
    )
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
