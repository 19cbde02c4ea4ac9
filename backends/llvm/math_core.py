"""Lanes: operator-overloaded LLVM values that the vector math library is written in.

A `MathContext` fixes the builder, the floating type (float or double, scalar or vector of any length) and
whether the target has fused multiply-add. `Real`, `Bits` and `Mask` wrap float, integer and i1 values of that
shape, so that the formulas in `math_exp`, `math_log`, `math_trig` and `math_erf` read like formulas. Only
those modules and `math` use it.

No fast-math flag is ever set. Minimum and maximum are compare-and-select in the order that keeps a NaN first
operand, which x86 has as one instruction. Nothing here depends on neighbouring lanes, so results don't depend
on vector length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import __version__, ir

# LLVM 19's "splat (float 1.0)" constants are much less text to parse; llvmlite 0.45 is the first with such an
# LLVM.
_SPLAT_TEXT = tuple(int(p) for p in __version__.split(".")[:2] if p.isdigit()) >= (0, 45)

Value = Any  # an llvmlite.ir value: llvmlite has no types

PI_240 = 0x3243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E  # floor(pi * 2**240)
LN2_200 = 0xB17217F7D1CF79ABC9E3B39803F2F6AF40F343267298B62D8A  # floor(ln 2 * 2**200)
LOG10_2_200 = 0x4D104D427DE7FBCC47C4ACD605BE48BC13569862A1E8F9A4C5  # floor(log10 2 * 2**200)


def split_constant(digits: int, fraction_bits: int, sizes: Sequence[int]) -> tuple[float, ...]:
    """Cut `digits * 2**-fraction_bits` into floats of `sizes[i]` leading bits each, whose sum is the
    constant.

    All parts are truncated towards zero, so they are all positive and products of a part of s bits with an
    integer of 53 - s (24 - s in f32) bits are exact.
    """
    parts: list[float] = []
    for size in sizes:
        drop = max(digits.bit_length() - size, 0)
        head = digits >> drop << drop
        parts.append(head / (1 << fraction_bits))
        digits -= head
    return tuple(parts)


class _Splat(ir.Constant):
    """A vector constant printed as LLVM's `splat (float 1.0)`."""

    def __init__(self, type_: ir.Type, element: ir.Constant) -> None:
        self.type, self.constant = type_, element  # the base class would expand it to a list

    def _get_reference(self) -> str:
        return f"splat ({self.constant})"


class Mask:
    """An i1 per lane."""

    __slots__ = ("cx", "v")

    def __init__(self, cx: MathContext, v: Value) -> None:
        self.cx, self.v = cx, v

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.cx, self.cx.builder.and_(self.v, other.v))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.cx, self.cx.builder.or_(self.v, other.v))

    def __invert__(self) -> Mask:
        return Mask(self.cx, self.cx.builder.not_(self.v))

    def pick(self, yes: Real | float, no: Real | float) -> Real:
        """yes where set, else no, lane by lane."""
        cx = self.cx
        return Real(cx, cx.builder.select(self.v, cx.real(yes).v, cx.real(no).v))


class Bits:
    """The integer of the float's width per lane."""

    __slots__ = ("cx", "v")

    def __init__(self, cx: MathContext, v: Value) -> None:
        self.cx, self.v = cx, v

    def _of(self, other: Bits | int) -> Value:
        return other.v if isinstance(other, Bits) else self.cx.int_const(other)

    def __add__(self, other: Bits | int) -> Bits:
        return Bits(self.cx, self.cx.builder.add(self.v, self._of(other)))

    def __sub__(self, other: Bits | int) -> Bits:
        return Bits(self.cx, self.cx.builder.sub(self.v, self._of(other)))

    def __rsub__(self, other: int) -> Bits:
        return Bits(self.cx, self.cx.builder.sub(self._of(other), self.v))

    def __and__(self, other: Bits | int) -> Bits:
        return Bits(self.cx, self.cx.builder.and_(self.v, self._of(other)))

    def __xor__(self, other: Bits | int) -> Bits:
        return Bits(self.cx, self.cx.builder.xor(self.v, self._of(other)))

    def __lshift__(self, count: int) -> Bits:
        return Bits(self.cx, self.cx.builder.shl(self.v, self._of(count)))

    def __rshift__(self, count: int) -> Bits:
        return Bits(self.cx, self.cx.builder.ashr(self.v, self._of(count)))

    def negative(self) -> Mask:
        """The sign bit."""
        return Mask(self.cx, self.cx.builder.icmp_signed("<", self.v, self._of(0)))

    def nonzero(self) -> Mask:
        return Mask(self.cx, self.cx.builder.icmp_signed("!=", self.v, self._of(0)))

    def real(self) -> Real:
        """The same bits as a float."""
        return Real(self.cx, self.cx.builder.bitcast(self.v, self.cx.type))


class Real:
    """A float or double per lane."""

    __slots__ = ("cx", "v")

    def __init__(self, cx: MathContext, v: Value) -> None:
        self.cx, self.v = cx, v

    def __add__(self, other: Real | float) -> Real:
        return Real(self.cx, self.cx.builder.fadd(self.v, self.cx.real(other).v))

    __radd__ = __add__

    def __sub__(self, other: Real | float) -> Real:
        return Real(self.cx, self.cx.builder.fsub(self.v, self.cx.real(other).v))

    def __rsub__(self, other: float) -> Real:
        return Real(self.cx, self.cx.builder.fsub(self.cx.real(other).v, self.v))

    def __mul__(self, other: Real | float) -> Real:
        return Real(self.cx, self.cx.builder.fmul(self.v, self.cx.real(other).v))

    __rmul__ = __mul__

    def __truediv__(self, other: Real | float) -> Real:
        return Real(self.cx, self.cx.builder.fdiv(self.v, self.cx.real(other).v))

    def __rtruediv__(self, other: float) -> Real:
        return Real(self.cx, self.cx.builder.fdiv(self.cx.real(other).v, self.v))

    def __neg__(self) -> Real:
        return Real(self.cx, self.cx.builder.fneg(self.v))

    def __abs__(self) -> Real:
        return self.cx.call("fabs", self)

    def _cmp(self, op: str, other: Real | float) -> Mask:
        return Mask(self.cx, self.cx.builder.fcmp_ordered(op, self.v, self.cx.real(other).v))

    def __lt__(self, other: Real | float) -> Mask:
        return self._cmp("<", other)

    def __le__(self, other: Real | float) -> Mask:
        return self._cmp("<=", other)

    def __gt__(self, other: Real | float) -> Mask:
        return self._cmp(">", other)

    def __ge__(self, other: Real | float) -> Mask:
        return self._cmp(">=", other)

    def equals(self, other: Real | float) -> Mask:
        """Ordered equality: false for NaN."""
        return self._cmp("==", other)

    def at_most(self, limit: Real | float) -> Real:
        """min(self, limit), NaN kept."""
        return (self.cx.real(limit) < self).pick(limit, self)

    def at_least(self, limit: Real | float) -> Real:
        """max(self, limit), NaN kept."""
        return (self.cx.real(limit) > self).pick(limit, self)

    def signed_as(self, other: Real) -> Real:
        return self.cx.call("copysign", self, other)

    def bits(self) -> Bits:
        return Bits(self.cx, self.cx.builder.bitcast(self.v, self.cx.int_type))


class MathContext:
    """Where and for which type the library emits.

    Attributes: builder; `type` and `int_type` (LLVM types of a value and of its bits); `count` (lanes, 0 for
    a scalar); `width` (32 or 64); `mant` (stored mantissa bits); `magic` (1.5 * 2**mant: adding it rounds to
    nearest integer and leaves that integer in the low bits), `magic_bits`; `one` (the bits of 1.0);
    `exp_mask` (sign and exponent bits); `fma`.
    """

    def __init__(self, builder: Any, type_: ir.Type, fma: bool = True) -> None:
        vector = isinstance(type_, ir.VectorType)
        elem = type_.element if isinstance(type_, ir.VectorType) else type_
        if not isinstance(elem, ir.FloatType | ir.DoubleType):
            raise TypeError(f"vector math takes float, double or vectors of them, not {type_}")
        self.builder, self.type, self.fma = builder, type_, fma
        self.elem: ir.Type = elem
        self.count: int = type_.count if isinstance(type_, ir.VectorType) else 0
        self.width = 32 if isinstance(elem, ir.FloatType) else 64
        self.mant = 23 if self.width == 32 else 52
        self.magic = 1.5 * 2.0**self.mant
        self.magic_bits = 0x4B400000 if self.width == 32 else 0x4338 << 48
        self.one = 0x7F << 23 if self.width == 32 else 0x3FF << 52
        self.exp_mask = -(1 << self.mant)
        int_elem = ir.IntType(self.width)
        self.int_type: ir.Type = ir.VectorType(int_elem, self.count) if vector else int_elem

    @property
    def is32(self) -> bool:
        return self.width == 32

    def double(self) -> MathContext:
        """The context of the same lanes in f64."""
        elem = ir.DoubleType()
        return MathContext(self.builder, ir.VectorType(elem, self.count) if self.count else elem, self.fma)

    def real(self, x: Real | float) -> Real:
        """Lift a Python number to all lanes (rounded to the lane type)."""
        if isinstance(x, Real):
            return x
        if not self.count:
            return Real(self, ir.Constant(self.type, float(x)))
        return Real(self, self._splat(self.type, ir.Constant(self.elem, float(x))))

    def int_const(self, i: int) -> Value:
        elem = ir.IntType(self.width)
        i &= (1 << self.width) - 1
        i -= (i >> (self.width - 1)) << self.width
        return self._splat(self.int_type, ir.Constant(elem, i)) if self.count else ir.Constant(elem, i)

    def _splat(self, type_: ir.Type, c: ir.Constant) -> Value:
        if _SPLAT_TEXT:
            return _Splat(type_, c)
        return ir.Constant(type_, [c] * self.count)

    def intrinsic(self, name: str, *args: Value, result: ir.Type | None = None) -> Value:
        """Call `llvm.<name>.<lane type>`, declared on first use."""
        return self._called(f"llvm.{name}.{_mangled(args[0].type)}", result or args[0].type, args)

    def _called(self, full: str, result: ir.Type, args: tuple[Value, ...]) -> Value:
        fn = self.builder.module.globals.get(full)
        if fn is None:
            fn = ir.Function(self.builder.module, ir.FunctionType(result, [a.type for a in args]), full)
        return self.builder.call(fn, args)

    def call(self, name: str, *args: Real) -> Real:
        return Real(self, self.intrinsic(name, *(a.v for a in args)))

    def sqrt(self, x: Real) -> Real:
        return self.call("sqrt", x)

    def mad(self, a: Real | float, b: Real | float, c: Real | float) -> Real:
        """a * b + c, with one rounding where the target can."""
        a, b, c = self.real(a), self.real(b), self.real(c)
        return self.call("fma", a, b, c) if self.fma else a * b + c

    @property
    def scales(self) -> bool:
        """Whether one instruction multiplies by a power of two: of AVX-512, where vectors are as wide."""
        return self.is32 and self.fma and self.count * self.width == 512

    def scaled(self, x: Real, n: Bits) -> Real:
        """x * 2**n, rounded once."""
        name = f"llvm.ldexp.{_mangled(self.type)}.{_mangled(self.int_type)}"
        return Real(self, self._called(name, self.type, (x.v, n.v)))

    def poly(self, x: Real, coefficients: Sequence[float]) -> Real:
        """sum c[i] * x**i by Horner's rule."""
        acc = self.real(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            acc = self.mad(acc, x, c)
        return acc

    def two_product(self, a: Real, b: Real) -> tuple[Real, Real]:
        """a * b as an unevaluated exact sum (high, low); Veltkamp and Dekker's splitting without fma."""
        high = a * b
        if self.fma:
            return high, self.mad(a, b, -high)

        def halves(x: Real) -> tuple[Real, Real]:
            c = x * (2.0 ** (self.mant // 2 + 1) + 1.0)
            top = c - (c - x)
            return top, x - top

        (a1, a2), (b1, b2) = halves(a), halves(b)
        return high, a2 * b2 - (((high - a1 * b1) - a2 * b1) - a1 * b2)

    def any(self, mask: Mask) -> Value:
        """An i1: whether the mask is set in any lane."""
        if not self.count:
            return mask.v
        return self.intrinsic("vector.reduce.or", mask.v, result=ir.IntType(1))

    def patch(self, fast: Real, mask: Mask, libm: str, *args: Real) -> Real:
        """`fast` with the lanes in `mask` replaced by calls to the C library, lane by lane, behind a rare
        branch.

        Emits basic blocks and leaves the builder at the end of the last. `libm` is the double's name (`sin`);
        its float version (`sinf`) is called in f32.
        """
        b, name = self.builder, libm + ("f" if self.is32 else "")
        fn = b.module.globals.get(name)
        if fn is None:
            fn = ir.Function(b.module, ir.FunctionType(self.elem, [self.elem] * len(args)), name)
        entry = b.block
        slow = b.append_basic_block(f"{libm}.slow")
        done = b.append_basic_block(f"{libm}.done")
        b.cbranch(self.any(mask), slow, done).set_weights([1, 10000])
        b.position_at_end(slow)
        if not self.count:
            out = b.call(fn, [a.v for a in args])
            b.branch(done)
        else:
            i32 = ir.IntType(32)
            index, acc = b.phi(i32), b.phi(self.type)
            value = b.call(fn, [b.extract_element(a.v, index) for a in args])
            kept = b.extract_element(acc, index)
            out = b.insert_element(acc, b.select(b.extract_element(mask.v, index), value, kept), index)
            following = b.add(index, ir.Constant(i32, 1))
            index.add_incoming(ir.Constant(i32, 0), entry)
            index.add_incoming(following, slow)
            acc.add_incoming(fast.v, entry)
            acc.add_incoming(out, slow)
            b.cbranch(b.icmp_signed("<", following, ir.Constant(i32, self.count)), slow, done)
        b.position_at_end(done)
        result = b.phi(self.type)
        result.add_incoming(fast.v, entry)
        result.add_incoming(out, slow)
        return Real(self, result)

    def widen(self, x: Real, wide: MathContext) -> Real:
        """f32 lanes to the f64 lanes of `wide = self.double()`."""
        return Real(wide, self.builder.fpext(x.v, wide.type))

    def narrow(self, x: Real) -> Real:
        """f64 lanes to this context's f32 lanes, rounded once."""
        return Real(self, self.builder.fptrunc(x.v, self.type))


def _mangled(type_: ir.Type) -> str:
    if isinstance(type_, ir.VectorType):
        return f"v{type_.count}{_mangled(type_.element)}"
    if isinstance(type_, ir.IntType):
        return f"i{type_.width}"
    return "f32" if isinstance(type_, ir.FloatType) else "f64"
