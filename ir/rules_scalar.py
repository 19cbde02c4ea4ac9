"""Rewrite rules of elementwise ops: arithmetic, selection, casts, logic, and arithmetic on numbers known at
compile time. See ir/rewrite.py for what a rule is; ir/rules.py gathers them all.

Bodies say when a rule holds for integers only: x - x is 0 unless x may be NaN.
"""

from __future__ import annotations

import math

import numpy as np

from . import dtypes
from .dtypes import DType
from .graph import Node, Value
from .pattern import splat
from .rewrite import Rewriter, attr, rule
from .scalar import NUMPY_SCALAR, apply_scalar


def is_float(v: Value) -> bool:
    return v.type.dtype.kind == "f"


def is_bool(v: Value) -> bool:
    return v.type.dtype.kind == "b"


def number(v: Value) -> float:
    """The number of a value that a pattern's capitals bound."""
    value = splat(v)
    assert value is not None
    return value


def held(value: float, dtype: DType) -> float:
    """`value` as a float `dtype` holds it."""
    with np.errstate(all="ignore"):
        return float(np.asarray(value).astype(dtype.numpy))


def wrapped(value: int, dtype: DType) -> int:
    """An integer as it wraps around in `dtype`."""
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.kind == "i" and value >> (dtype.bits - 1) else value


# --- numbers ------------------------------------------------------------------------------------------------


@rule("any_scalar(x, ...)", some=("number",))
def fold_scalar(b: Rewriter, n: Node) -> Value | None:
    """op of numbers --> number"""
    values = []
    for v in n.operands:
        value = splat(v)
        if value is None:
            return None
        values.append(value)
    arrays = [np.asarray(x).astype(v.type.dtype.numpy) for x, v in zip(values, n.operands)]
    with np.errstate(all="ignore"):
        made = np.asarray(apply_scalar(NUMPY_SCALAR, n.op, n.results[0].type, arrays, n.attrs))
    dtype = n.results[0].type.dtype
    return b.const(float(made) if dtype.kind == "f" else made.item(), dtype)


@rule("constant()")
def constant_of_equals(b: Rewriter, n: Node) -> Value | None:
    """constant [c, c, c] --> expand(c)"""
    values, dtype = n.attrs["value"], n.results[0].type.dtype
    if not isinstance(values, tuple) or not values or values.count(values[0]) != len(values):
        return None
    if any(math.copysign(1, v) != math.copysign(1, values[0]) for v in values):
        return None
    return b.const(values[0], dtype)


# --- neutral elements ---------------------------------------------------------------------------------------


@rule("add(x, -0.0)", "sub(x, 0.0)", "add(x, False)")
def add_zero(b: Rewriter, x: Value) -> Value:
    """x + -0 --> x; x - 0 --> x (x + 0 is 0 for x = -0)"""
    return x


@rule("add(x, 0.0)", "sub(x, -0.0)", fast=True)
def add_plus_zero(b: Rewriter, x: Value) -> Value:
    """x + 0 --> x"""
    return x


_NEVER_MINUS_ZERO = frozenset(("abs", "square", "exp", "exp2", "sigmoid", "sum"))
_KEEPS_SIGNS = frozenset(("concat", "reshape", "permute", "slice", "expand", "flip", "cast"))


def never_minus_zero(v: Value, depth: int = 4) -> bool:
    """Whether no element of `v` is -0. A sum starts from +0."""
    node = v.node
    if node is None or depth == 0:
        return False
    name = node.op.name
    if name == "add":
        return any(splat(x) == 0 and math.copysign(1, number(x)) > 0 for x in node.operands)
    if name == "mul" and node.operands[0] is node.operands[1]:
        return True
    return name in _NEVER_MINUS_ZERO or (
        name in _KEEPS_SIGNS and all(never_minus_zero(x, depth - 1) for x in node.operands)
    )


@rule("add(x, 0.0)")
def add_zero_known(b: Rewriter, x: Value) -> Value | None:
    """abs(x) + 0 --> abs(x), and so on for what is never -0"""
    return x if never_minus_zero(x) else None


@rule("mul(x, 1)", "div(x, 1)", "mul(x, True)")
def mul_one(b: Rewriter, x: Value) -> Value:
    """x*1 --> x; x/1 --> x"""
    return x


@rule("mul(x, 0)")
def mul_zero(b: Rewriter, x: Value) -> Value | None:
    """x*0 --> 0, of integers"""
    return None if is_float(x) else b.const(0, x)


@rule("mul(x, 0.0)", "mul(x, -0.0)", fast=True)
def mul_zero_float(b: Rewriter, x: Value) -> Value:
    """x*0 --> 0"""
    return b.const(0, x)


@rule("maximum(x, C)", "minimum(x, C)", "clamp_min(x, C)", "clamp_max(x, C)")
def bound_is_infinite(b: Rewriter, n: Node, x: Value, C: Value) -> Value | None:
    """max(x, -inf) --> x; min(x, inf) --> x"""
    beyond = -math.inf if n.op.name in ("maximum", "clamp_min") else math.inf
    return x if number(C) == beyond else None


@rule("clamp(x)")
def clamp_nothing(b: Rewriter, n: Node, x: Value) -> Value | None:
    """clamp(x, -inf, inf) --> x"""
    low, high = attr(n, "min"), attr(n, "max")
    return x if low in (None, -math.inf) and high in (None, math.inf) else None


# --- signs --------------------------------------------------------------------------------------------------


@rule("neg(neg(x))")
def neg_neg(b: Rewriter, x: Value) -> Value:
    """-(-x) --> x"""
    return x


@rule("sub(-0.0, x)")
def minus_zero_sub(b: Rewriter, x: Value) -> Value:
    """-0 - x --> -x"""
    return b.neg(x)


@rule("sub(0.0, x)", fast=True)
def zero_sub(b: Rewriter, x: Value) -> Value:
    """0 - x --> -x"""
    return b.neg(x)


@rule("mul(x, -1)", "div(x, -1)")
def mul_minus_one(b: Rewriter, x: Value) -> Value:
    """x * -1 --> -x"""
    return b.neg(x)


@rule("add(x, neg(y))")
def add_neg(b: Rewriter, x: Value, y: Value) -> Value:
    """x + -y --> x - y"""
    return b.sub(x, y)


@rule("sub(x, neg(y))")
def sub_neg(b: Rewriter, x: Value, y: Value) -> Value:
    """x - -y --> x + y"""
    return b.add(x, y)


@rule("neg(d := sub(x, y))")
def neg_sub(b: Rewriter, d: Value, x: Value, y: Value) -> Value | None:
    """-(x - y) --> y - x, of integers"""
    return None if is_float(d) else b.sub(y, x)


@rule("neg(sub(x, y))", fast=True)
def neg_sub_float(b: Rewriter, x: Value, y: Value) -> Value:
    """-(x - y) --> y - x"""
    return b.sub(y, x)


@rule("mul(neg(x), neg(y))", "div(neg(x), neg(y))")
def mul_neg_neg(b: Rewriter, n: Node, x: Value, y: Value) -> Value:
    """-x * -y --> x*y; -x / -y --> x/y"""
    return b.mul(x, y) if n.op.name == "mul" else b.div(x, y)


@rule("mul(neg(x), C)", "div(neg(x), C)", "div(C, neg(x))")
def mul_neg_number(b: Rewriter, n: Node, x: Value, C: Value) -> Value | None:
    """-x * c --> x * -c; -x / c --> x / -c; c / -x --> -c / x"""
    if not is_float(x):
        return None
    c = b.const(-number(C), x)
    if n.op.name == "mul":
        return b.mul(x, c)
    return b.div(c, x) if n.operands[0] is C else b.div(x, c)


@rule("neg(m := mul(x, C))")
def neg_mul_number(b: Rewriter, m: Value, x: Value, C: Value) -> Value | None:
    """-(x * c) --> x * -c"""
    return b.mul(x, b.const(-number(C), x)) if is_float(x) and b.only_use(m) else None


@rule("abs(neg(x))", "abs(abs(x))")
def abs_of_sign(b: Rewriter, x: Value) -> Value:
    """abs(-x) --> abs(x)"""
    return b.abs(x)


@rule("square(neg(x))", "square(abs(x))", "mul(neg(x), neg(x))", "mul(abs(x), abs(x))")
def square_of_sign(b: Rewriter, x: Value) -> Value:
    """(-x)^2 --> x^2"""
    return b.square(x)


# --- equal operands -----------------------------------------------------------------------------------------


@rule(
    "maximum(x, x)",
    "minimum(x, x)",
    "clamp_min(x, x)",
    "clamp_max(x, x)",
    "bitwise_and(x, x)",
    "bitwise_or(x, x)",
)
def same_twice(b: Rewriter, x: Value) -> Value:
    """max(x, x) --> x"""
    return x


@rule(
    "relu(r := relu(x))",
    "floor(r := floor(x))",
    "ceil(r := ceil(x))",
    "trunc(r := trunc(x))",
    "abs(r := square(x))",
)
def done_already(b: Rewriter, r: Value) -> Value:
    """relu(relu(x)) --> relu(x)"""
    return r


@rule("sub(x, x)", "bitwise_xor(x, x)")
def sub_self(b: Rewriter, x: Value) -> Value | None:
    """x - x --> 0, of integers"""
    return None if is_float(x) else b.const(0, x)


@rule("sub(x, x)", fast=True)
def sub_self_float(b: Rewriter, x: Value) -> Value:
    """x - x --> 0"""
    return b.const(0, x)


@rule("lt(x, x)", "gt(x, x)")
def less_self(b: Rewriter) -> Value:
    """x < x --> False"""
    return b.const(False, dtypes.bool_)


@rule("eq(x, x)", "le(x, x)", "ge(x, x)", "ne(x, x)")
def equal_self(b: Rewriter, n: Node, x: Value) -> Value | None:
    """x == x --> True; x != x --> False, of integers"""
    return None if is_float(x) else b.const(n.op.name != "ne", dtypes.bool_)


# --- powers, divisions, functions ---------------------------------------------------------------------------


@rule("pow(x, C)")
def pow_number(b: Rewriter, x: Value, C: Value) -> Value | None:
    """x^c --> pow_scalar(x), for c = 0, 1, 2, 3, -1 where it is products and quotients"""
    c = number(C)
    return b.pow_scalar(x, exponent=int(c)) if is_float(x) and c in (0, 1, 2, 3, -1) else None


@rule("pow_scalar(x)")
def pow_one(b: Rewriter, n: Node, x: Value) -> Value | None:
    """x^1 --> x; x^0 --> 1"""
    e = n.attrs["exponent"]
    return x if e == 1 else b.const(1, x) if e == 0 else None


@rule("pow(2, x)")
def two_pow(b: Rewriter, x: Value) -> Value | None:
    """2^x --> exp2(x)"""
    return b.exp2(x) if is_float(x) else None


@rule("div(x, C)")
def div_power_of_two(b: Rewriter, x: Value, C: Value) -> Value | None:
    """x / 2^k --> x * 2^-k, which rounds the same"""
    c, dtype = number(C), x.type.dtype
    if c == 0 or not math.isfinite(c) or abs(math.frexp(c)[0]) != 0.5:
        return None
    # The reciprocal must be held exactly and not be subnormal.
    fits = (
        held(c, dtype) == c
        and held(1 / c, dtype) == 1 / c
        and abs(1 / c) >= (6.2e-5 if dtype.name == "f16" else 2e-38)
    )
    return b.mul(x, b.const(1 / c, x)) if fits else None


@rule("div(x, C)", fast=True)
def div_number(b: Rewriter, x: Value, C: Value) -> Value | None:
    """x / c --> x * (1/c)"""
    c = number(C)
    return b.mul(x, b.const(1 / c, x)) if c != 0 and math.isfinite(c) else None


@rule("mul(x, reciprocal(y))", fast=True)
def mul_reciprocal(b: Rewriter, x: Value, y: Value) -> Value:
    """x * (1/y) --> x / y"""
    return b.div(x, y)


@rule("reciprocal(reciprocal(x))", "log(exp(x))", "exp(log(x))", fast=True)
def inverse_twice(b: Rewriter, x: Value) -> Value:
    """1/(1/x) --> x; log(exp(x)) --> x"""
    return x


@rule("reciprocal(sqrt(x))", "div(1, sqrt(x))")
def reciprocal_sqrt(b: Rewriter, x: Value) -> Value:
    """1/sqrt(x) --> rsqrt(x), which is defined so"""
    return b.rsqrt(x)


@rule("sqrt(mul(x, x))", "sqrt(square(x))", fast=True)
def sqrt_square(b: Rewriter, x: Value) -> Value:
    """sqrt(x^2) --> abs(x)"""
    return b.abs(x)


# --- numbers gathered ---------------------------------------------------------------------------------------


@rule("mul(mul(x, C), D)", "add(add(x, C), D)")
def gather_integers(b: Rewriter, n: Node, x: Value, C: Value, D: Value) -> Value | None:
    """x*c*d --> x*(c*d); x+c+d --> x+(c+d), of integers"""
    dtype = x.type.dtype
    if dtype.kind not in "iu":
        return None
    c, d = int(number(C)), int(number(D))
    if n.op.name == "mul":
        return b.mul(x, b.const(wrapped(c * d, dtype), x))
    return b.add(x, b.const(wrapped(c + d, dtype), x))


@rule("mul(mul(x, C), D)", fast=True)
def gather_factors(b: Rewriter, x: Value, C: Value, D: Value) -> Value | None:
    """x*c*d --> x*(c*d)"""
    return b.mul(x, b.const(number(C) * number(D), x)) if is_float(x) else None


@rule("add(add(x, C), D)", fast=True)
def gather_terms(b: Rewriter, x: Value, C: Value, D: Value) -> Value | None:
    """x+c+d --> x+(c+d)"""
    return b.add(x, b.const(number(C) + number(D), x)) if is_float(x) else None
