"""Powers and roots."""

from __future__ import annotations

from typing import Any

from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Type
from .elementwise import by_number, kind, zero_where
from .records import ALL, NUMERIC, binary, f32, i64, unary, zeros_like


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
    grad_name=by_number("Pow", 0, 2, 1),
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
        raise OpError(
            f"an integer tensor takes exponents 0, 1, 2, ..., got {exponent}; cast it to float first"
        )
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
        *(
            Sample((f32(3, 5),), {"exponent": e}, domain=(0.2, 2.0))
            for e in (0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5, -3.0)
        ),
        Sample((f32(0, 2),), {"exponent": 2}),
        Sample((f32(),), {"exponent": 3}),
        *(Sample((i64(4),), {"exponent": e}, smooth=False) for e in (0, 1, 2, 5, 6)),
    ],
    doc="x to a constant power; 2, 3, -1, -2 and +-1/2 by products, quotients and square roots.",
)
unary(
    "sqrt",
    lambda s, x: s.sqrt(x),
    lambda b, n, g: b.div(g, b.mul(n.out, b.const(2, g))),
    domain=(0.2, 3),
    doc="The square root.",
)
unary(
    "rsqrt",
    lambda s, x: s.div(s.one(x), s.sqrt(x)),
    lambda b, n, g: b.mul(b.mul(g, b.const(-0.5, g)), b.pow_scalar(n.out, exponent=3)),
    domain=(0.2, 3),
    doc="1 / sqrt(x).",
)
