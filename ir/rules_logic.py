"""Rewrite rules of selection, casts and logic. See ir/rewrite.py for what a rule is; ir/rules.py gathers them
all.
"""

from __future__ import annotations

from . import dtypes
from .dtypes import DType
from .graph import Node, Value
from .rewrite import Rewriter, rule
from .rules_scalar import is_bool, is_float

# --- selection ----------------------------------------------------------------------------------------------


@rule("where(c, x, x)", "where(True, x, y)", "where(False, y, x)")
def where_known(b: Rewriter, x: Value) -> Value:
    """where(c, x, x) --> x; where(True, x, y) --> x"""
    return x


@rule("where(logical_not(c), x, y)", "where(bitwise_not(c), x, y)")
def where_not(b: Rewriter, c: Value, x: Value, y: Value) -> Value | None:
    """where(not c, x, y) --> where(c, y, x)"""
    return b.where(c, y, x) if is_bool(c) else None


@rule("where(c, True, False)")
def where_true_false(b: Rewriter, c: Value) -> Value:
    """where(c, True, False) --> c"""
    return c


@rule("where(c, False, True)")
def where_false_true(b: Rewriter, c: Value) -> Value:
    """where(c, False, True) --> not c"""
    return b.logical_not(c)


@rule("where(c, where(c, x, z), y)")
def where_where_true(b: Rewriter, c: Value, x: Value, y: Value) -> Value:
    """where(c, where(c, x, z), y) --> where(c, x, y)"""
    return b.where(c, x, y)


@rule("where(c, x, where(c, z, y))")
def where_where_false(b: Rewriter, c: Value, x: Value, y: Value) -> Value:
    """where(c, x, where(c, z, y)) --> where(c, x, y)"""
    return b.where(c, x, y)


# --- casts --------------------------------------------------------------------------------------------------

_MANTISSA = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
_EXPONENT = {"f64": 11, "f32": 8, "f16": 5, "bf16": 8}


def lossless(a: DType, b: DType) -> bool:
    """Whether every value of `a` is one of `b`, so that casting there and on is the same as casting on."""
    if a is b or a.kind == "b":
        return True
    if b.kind == "b":
        return False
    if a.kind == "f":
        return (
            b.kind == "f"
            and _MANTISSA[a.name] <= _MANTISSA[b.name]
            and _EXPONENT[a.name] <= _EXPONENT[b.name]
        )
    digits = a.bits - (a.kind == "i")
    if b.kind == "f":
        return digits <= _MANTISSA[b.name] and b.name != "f16"
    return digits <= b.bits - (b.kind == "i") and (a.kind == "u" or b.kind == "i")


@rule("cast(x)")
def cast_same(b: Rewriter, n: Node, x: Value) -> Value | None:
    """cast(x: T) to T --> x"""
    return x if n.attrs["dtype"] is x.type.dtype else None


@rule("cast(c := cast(x))")
def cast_cast(b: Rewriter, n: Node, c: Value, x: Value) -> Value | None:
    """cast(cast(x: T) to U) to V --> cast(x) to V, where U holds every T"""
    return b.cast_to(x, n.attrs["dtype"]) if lossless(x.type.dtype, c.type.dtype) else None


@rule("bitcast(x)")
def bitcast_same(b: Rewriter, n: Node, x: Value) -> Value | None:
    """bitcast(x: T) to T --> x"""
    return x if n.attrs["dtype"] is x.type.dtype else None


@rule("bitcast(bitcast(x))")
def bitcast_bitcast(b: Rewriter, n: Node, x: Value) -> Value:
    """bitcast(bitcast(x)) --> bitcast(x)"""
    return b.bitcast(x, dtype=n.attrs["dtype"])


@rule("ne(cast(c), 0)", "gt(cast(c), 0)", "eq(cast(c), 1)")
def bool_as_number(b: Rewriter, c: Value) -> Value | None:
    """cast(c: bool) != 0 --> c"""
    return c if is_bool(c) else None


@rule("eq(cast(c), 0)", "ne(cast(c), 1)")
def not_bool_as_number(b: Rewriter, c: Value) -> Value | None:
    """cast(c: bool) == 0 --> not c"""
    return b.logical_not(c) if is_bool(c) else None


# --- logic --------------------------------------------------------------------------------------------------


@rule("logical_not(logical_not(x))", "bitwise_not(bitwise_not(x))")
def not_not(b: Rewriter, n: Node, x: Value) -> Value | None:
    """not not x --> x"""
    return x if is_bool(x) or n.op.name == "bitwise_not" else None


@rule("logical_not(eq(x, y))")
def not_eq(b: Rewriter, x: Value, y: Value) -> Value:
    """not x == y --> x != y"""
    return b.ne(x, y)


@rule("logical_not(ne(x, y))")
def not_ne(b: Rewriter, x: Value, y: Value) -> Value:
    """not x != y --> x == y"""
    return b.eq(x, y)


_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


@rule(
    "logical_not(c := lt(x, y))",
    "logical_not(c := le(x, y))",
    "logical_not(c := gt(x, y))",
    "logical_not(c := ge(x, y))",
)
def not_less(b: Rewriter, c: Value, x: Value, y: Value) -> Value | None:
    """not x < y --> x >= y, of integers"""
    assert c.node is not None
    return None if is_float(x) else getattr(b, _OPPOSITE[c.node.op.name])(x, y)


@rule(
    "logical_and(x, True)", "logical_or(x, False)", "logical_xor(x, False)",
    "bitwise_and(x, True)", "bitwise_or(x, False)", "bitwise_xor(x, False)",
    "bitwise_or(x, 0)", "bitwise_xor(x, 0)",
)  # fmt: skip
def and_true(b: Rewriter, n: Node, x: Value) -> Value | None:
    """x and True --> x; x or False --> x"""
    return x if x.type.dtype is n.results[0].type.dtype else None


@rule("logical_and(x, False)", "bitwise_and(x, False)", "bitwise_and(x, 0)", "mul(x, False)")
def and_false(b: Rewriter, n: Node) -> Value:
    """x and False --> False"""
    return b.const(0, n.results[0])


@rule("logical_or(x, True)", "bitwise_or(x, True)", "add(x, True)")
def or_true(b: Rewriter) -> Value:
    """x or True --> True"""
    return b.const(True, dtypes.bool_)


@rule("logical_and(x, x)", "logical_or(x, x)")
def logical_same(b: Rewriter, x: Value) -> Value | None:
    """x and x --> x"""
    return x if is_bool(x) else None
