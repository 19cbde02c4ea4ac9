"""Elementwise arithmetic, comparison, selection and casting. A row gives the meaning and, below it, the
gradient.

Gradients follow PyTorch's conventions at kinks and ties; a rule reads only what it needs of the forward node.
"""

from __future__ import annotations

from typing import Any

from .records import (
    ALL,
    BOOL,
    I32,
    I64,
    NUMERIC,
    binary,
    unary,
    zeros_like,
)


def kind(s: Any, x: Any) -> str:
    return s.dtype_of(x).kind


def no_slope(b: Any, n: Any, g: Any) -> Any:
    """The gradient of piecewise constant functions: zeros, as PyTorch gives, not "no gradient"."""
    return zeros_like(b, g)


def keep_where(b: Any, cond: Any, g: Any) -> Any:
    return b.where(cond, g, b.const(0, g))


def zero_where(b: Any, cond: Any, g: Any) -> Any:
    return b.where(cond, b.const(0, g), g)


def by_number(base: str, operand: int, number: int = 0, tensor: int = 1) -> Any:
    """PyTorch numbers its overloads by whether an operand is a Python number, here a constant."""

    def name(node: Any) -> str:
        made_by = node.operands[operand].node
        return f"{base}Backward{number if made_by is not None and made_by.op.name == 'constant' else tensor}"

    return name


# --- arithmetic -----------------------------------------------------------------------------------

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
    grad_name="DivBackward2",
    doc="Rounds x / y down; integers by zero give 0.",
)
binary(
    "trunc_divide",
    _trunc_divide,
    lambda b, n, g: (zeros_like(b, g), zeros_like(b, g)),
    kinds=NUMERIC,
    domain=_DIVISOR,
    grad_name="DivBackward2",
    doc="Rounds x / y towards zero; integers by zero give 0.",
)
binary(
    "remainder",
    _remainder,
    lambda b, n, g: (g, lambda: b.mul(b.neg(g), b.floor_divide(n[0], n[1]))),
    kinds=NUMERIC,
    domain=_DIVISOR,
    grad_name=by_number("Remainder", 1),
    doc="x - y * floor(x / y): the sign of y; integers by zero give 0.",
)
binary(
    "fmod",
    _fmod,
    lambda b, n, g: (g, lambda: b.mul(b.neg(g), b.trunc_divide(n[0], n[1]))),
    kinds=NUMERIC,
    domain=_DIVISOR,
    grad_name=by_number("Fmod", 1),
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
unary(
    "reciprocal",
    lambda s, x: s.div(s.one(x), x),
    lambda b, n, g: b.mul(b.neg(g), b.mul(n.out, n.out)),
    domain=(0.5, 2),
    doc="1 / x.",
)
unary("square", lambda s, x: s.mul(x, x), lambda b, n, g: b.mul(g, b.mul(n[0], b.const(2, g))), kinds=NUMERIC,
      grad_name="PowBackward0", doc="x * x.")  # fmt: skip
# --- rounding and parts ---------------------------------------------------------------------------

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


unary(
    "round",
    _round,
    no_slope,
    kinds=NUMERIC,
    grad_name=lambda node: "RoundBackward1" if "decimals" in node.attrs else "RoundBackward0",
    attrs=({}, {"decimals": 1}, {"decimals": -1}),
    doc="Half to even.",
)
unary("frac", lambda s, x: s.sub(x, s.trunc(x)), lambda b, n, g: g, doc="x - trunc(x).")


def signbit_of(s: Any, x: Any) -> Any:
    d = s.dtype_of(x)
    if d.kind == "f":
        x = s.bitcast(x, I64 if d.bits == 64 else I32)
    return s.lt(x, s.zero(x))


def copysign_of(s: Any, x: Any, y: Any) -> Any:
    size = s.abs(x)
    return s.select(signbit_of(s, y), s.neg(size), size)


unary(
    "signbit",
    signbit_of,
    kinds=NUMERIC,
    result=BOOL,
    doc="Whether the sign is negative, of -0 and NaN as well.",
)
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
