"""Comparisons, predicates, boolean and bit operations; none has a gradient."""

from __future__ import annotations

import math
from typing import Any

from .elementwise import kind
from .records import ALL, BOOL, INTEGRAL, binary, unary

for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    binary(
        _name,
        (lambda p: lambda s, x, y: s.prim(p, x, y))(_name),
        kinds=ALL,
        result=BOOL,
        doc=f"Elementwise {_name}.",
    )


def _truth(s: Any, x: Any) -> Any:
    return x if kind(s, x) == "b" else s.ne(x, s.zero(x))


binary(
    "logical_and",
    lambda s, x, y: s.and_(_truth(s, x), _truth(s, y)),
    kinds=ALL,
    result=BOOL,
    doc="Both non-zero.",
)
binary(
    "logical_or",
    lambda s, x, y: s.or_(_truth(s, x), _truth(s, y)),
    kinds=ALL,
    result=BOOL,
    doc="Either non-zero.",
)
binary(
    "logical_xor",
    lambda s, x, y: s.ne(_truth(s, x), _truth(s, y)),
    kinds=ALL,
    result=BOOL,
    doc="One non-zero.",
)
unary("logical_not", lambda s, x: s.not_(_truth(s, x)), kinds=ALL, result=BOOL, doc="Whether x is zero.")
binary("bitwise_and", lambda s, x, y: s.and_(x, y), kinds=INTEGRAL, doc="Bits of both.")
binary("bitwise_or", lambda s, x, y: s.or_(x, y), kinds=INTEGRAL, doc="Bits of either.")
binary("bitwise_xor", lambda s, x, y: s.xor(x, y), kinds=INTEGRAL, doc="Bits of exactly one.")
unary("bitwise_not", lambda s, x: s.not_(x), kinds=INTEGRAL, doc="Bits inverted; for bool, not.")


def _in_range(s: Any, n: Any) -> Any:
    bits = s.dtype_of(n).bits
    low = s.lt(n, s.const(bits, n)) if bits > 7 else s.eq(n, n)
    return low if kind(s, n) == "u" else s.and_(s.ge(n, s.zero(n)), low)


def _shl(s: Any, x: Any, n: Any) -> Any:
    ok = _in_range(s, n)
    return s.select(ok, s.shl(x, s.select(ok, n, s.zero(n))), s.zero(x))


def _shr(s: Any, x: Any, n: Any) -> Any:
    # Counts out of range leave nothing but the sign, as shifting by all other bits does.
    bits = s.dtype_of(x).bits
    if kind(s, x) == "i":
        return s.shr(x, s.select(_in_range(s, n), n, s.const(bits - 1, n)))
    ok = _in_range(s, n)
    return s.select(ok, s.shr(x, s.select(ok, n, s.zero(n))), s.zero(x))


binary("bitwise_left_shift", _shl, kinds="iu", doc="x << n; 0 for counts out of range.")
binary("bitwise_right_shift", _shr, kinds="iu", doc="x >> n, keeping the sign.")

# x == x rather than a constant, so that the result depends on the operand's shape on every target.
unary("isnan", lambda s, x: s.ne(x, x), kinds=ALL, result=BOOL, doc="Whether x is NaN.")
unary(
    "isinf",
    lambda s, x: s.eq(s.abs(x), s.const(math.inf, x)) if kind(s, x) == "f" else s.ne(x, x),
    kinds=ALL,
    result=BOOL,
    doc="Whether x is infinite.",
)
unary(
    "isfinite",
    lambda s, x: s.lt(s.abs(x), s.const(math.inf, x)) if kind(s, x) == "f" else s.eq(x, x),
    kinds=ALL,
    result=BOOL,
    doc="Whether x is neither NaN nor infinite.",
)
for _name, _bound in (("isposinf", math.inf), ("isneginf", -math.inf)):
    unary(
        _name,
        (lambda v: lambda s, x: s.eq(x, s.const(v, x)) if kind(s, x) == "f" else s.ne(x, x))(_bound),
        kinds=ALL,
        result=BOOL,
        doc=f"Whether x is {_bound}.",
    )


def _gcd(s: Any, x: Any, y: Any) -> Any:
    signed = kind(s, x) == "i"
    a, b = (s.abs(x), s.abs(y)) if signed else (x, y)
    # Euclid's algorithm takes the most steps on Fibonacci numbers: log(2**bits) / log(golden ratio).
    for _ in range(int(s.dtype_of(x).bits * 1.4405) + 2):
        done = s.eq(b, s.zero(b))
        a, b = s.select(done, a, b), s.select(done, b, s.mod(a, s.select(done, s.one(b), b)))
    return s.abs(a) if signed else a


def _lcm(s: Any, x: Any, y: Any) -> Any:
    g = _gcd(s, x, y)
    out = s.mul(s.floordiv(x, s.select(s.eq(g, s.zero(g)), s.one(g), g)), y)
    return s.abs(out) if kind(s, x) == "i" else out


binary("gcd", _gcd, kinds="iu", doc="Greatest common divisor, not negative.")
binary("lcm", _lcm, kinds="iu", doc="Least common multiple, not negative.")
