"""Conversions between element types, on scalars or vectors, as ir/scalar.py defines them. Used by
codegen_expr.

f16 and bf16 are integers holding the bit pattern. They become f32 by shifting (bf16) or by the target's
instruction (f16; integer arithmetic where it has none), and are rounded to nearest even on the way back.
"""

from __future__ import annotations

from ...ir.dtypes import DType, bfloat16, bool_, float16, float32
from .codegen_registers import RegisterWriter
from .codegen_text import Val, constant, float_literal, type_text, vector_text


class CastWriter(RegisterWriter):
    """Adds conversions."""

    def convert(self, v: Val, dtype: DType, bits: bool = False) -> Val:
        """`v` in another dtype: its value, or with `bits` its bit pattern."""
        if bits:
            return self._reinterpret(v, dtype)
        if v.dtype is dtype:
            return v
        source = v.dtype
        if source.kind == "f" and source.bits == 16:
            v = self._from_bf16(v) if source is bfloat16 else self._from_f16(v)
            return self.convert(v, dtype)
        if dtype.kind == "f" and dtype.bits == 16:
            v = self.convert(v, float32)
            return self._to_bf16(v) if dtype is bfloat16 else self._to_f16(v)
        if v.const is not None and dtype.kind in "iub" and source.kind in "iub":
            return constant(v.const, dtype)
        if (
            v.const is not None
            and dtype.kind == "f"
            and source.kind in "iub"
            and abs(int(v.const)) <= 1 << 24
        ):
            return constant(float(v.const), dtype)
        a, b = v.type, type_text(dtype, v.lanes)
        ref = v.ref
        if dtype.kind == "b":
            zero = self._of(
                "0" if source.kind != "f" else "0x0000000000000000", type_text(source, 0), v.lanes
            )
            ref = self.pure(f"{'fcmp une' if source.kind == 'f' else 'icmp ne'} {a} {ref}, {zero}", ref)
        elif source.kind == "b":
            if dtype.kind == "f":
                one, zero = (
                    self._of(float_literal(x, dtype), type_text(dtype, 0), v.lanes) for x in (1.0, 0.0)
                )
                ref = self.pure(f"select {a} {ref}, {b} {one}, {b} {zero}", ref)
            else:
                ref = self.pure(f"zext {a} {ref} to {b}", ref)
        elif source.kind == "f":
            if dtype.kind == "f":
                ref = self.pure(f"{'fpext' if dtype.bits > source.bits else 'fptrunc'} {a} {ref} to {b}", ref)
            else:
                ref = self._truncated(v, dtype)
        elif dtype.kind == "f":
            ref = self.pure(f"{'sitofp' if source.kind == 'i' else 'uitofp'} {a} {ref} to {b}", ref)
        elif dtype.bits > source.bits:
            ref = self.pure(f"{'sext' if source.kind == 'i' else 'zext'} {a} {ref} to {b}", ref)
        elif dtype.bits < source.bits:
            ref = self.pure(f"trunc {a} {ref} to {b}", ref)
        return Val(ref, dtype, v.lanes)

    def _reinterpret(self, v: Val, dtype: DType) -> Val:
        if v.dtype is bool_ or dtype is bool_:
            return self.convert(v, dtype)
        a, b = v.type, type_text(dtype, v.lanes)
        return Val(v.ref if a == b else self.pure(f"bitcast {a} {v.ref} to {b}", v.ref), dtype, v.lanes)

    def _of(self, text: str, element: str, lanes: int) -> str:
        """A literal as an operand of `lanes` lanes."""
        return self.splat(text, element, lanes, True) if lanes else text

    def _truncated(self, v: Val, dtype: DType) -> str:
        """Float to integer: towards zero, by way of i64; NaN and what no i64 holds give the lowest i64,
        wrapped."""
        element = type_text(v.dtype, 0)
        lanes, ty = v.lanes, v.type
        flag, wide, out = vector_text("i1", lanes), vector_text("i64", lanes), type_text(dtype, lanes)
        low = self._of(float_literal(-(2.0**63), v.dtype), element, lanes)
        high = self._of(float_literal(2.0**63, v.dtype), element, lanes)
        zero = self._of(float_literal(0.0, v.dtype), element, lanes)
        a = self.pure(f"fcmp oge {ty} {v.ref}, {low}", v.ref)
        b = self.pure(f"fcmp olt {ty} {v.ref}, {high}", v.ref)
        fits = self.pure(f"and {flag} {a}, {b}", a, b)
        safe = self.pure(f"select {flag} {fits}, {ty} {v.ref}, {ty} {zero}", fits, v.ref)
        whole = self.pure(f"fptosi {ty} {safe} to {wide}", safe)
        if dtype.bits == 64:
            lowest = self._of(str(-(1 << 63)), "i64", lanes)
            return self.pure(f"select {flag} {fits}, {wide} {whole}, {wide} {lowest}", fits, whole)
        return self.pure(f"trunc {wide} {whole} to {out}", whole)  # the lowest i64 wraps to 0

    # --- halves ---------------------------------------------------------------------------------------------

    def _ints(self, lanes: int) -> tuple[str, str, str, str]:
        """i16, i32, float and i1 of that many lanes."""
        i16, i32, f32, i1 = (vector_text(t, lanes) for t in ("i16", "i32", "float", "i1"))
        return i16, i32, f32, i1

    def _int(self, verb: str, ty: str, x: str, y: str | int) -> str:
        """An i32 operation with a literal or a name."""
        if isinstance(y, int):
            y = self._of(str(y), "i32", 0 if ty == "i32" else int(ty[1:].split()[0]))
        return self.pure(f"{verb} {ty} {x}, {y}", x, y)

    def _from_bf16(self, v: Val) -> Val:
        short, word, real, _ = self._ints(v.lanes)
        x = self.pure(f"zext {short} {v.ref} to {word}", v.ref)
        x = self._int("shl", word, x, 16)
        return Val(self.pure(f"bitcast {word} {x} to {real}", x), float32, v.lanes)

    def _to_bf16(self, v: Val) -> Val:
        short, word, real, flag = self._ints(v.lanes)
        x = self.pure(f"bitcast {real} {v.ref} to {word}", v.ref)
        high = self._int("lshr", word, x, 16)
        odd = self._int("and", word, high, 1)
        up = self._int("add", word, odd, 0x7FFF)
        sum_ = self._int("add", word, x, up)
        rounded = self._int("lshr", word, sum_, 16)
        quiet = self._int("or", word, high, 0x40)
        nan = self.pure(f"fcmp uno {real} {v.ref}, {v.ref}", v.ref)
        out = self.pure(f"select {flag} {nan}, {word} {quiet}, {word} {rounded}", nan, quiet, rounded)
        return Val(self.pure(f"trunc {word} {out} to {short}", out), bfloat16, v.lanes)

    def _from_f16(self, v: Val) -> Val:
        short, word, real, flag = self._ints(v.lanes)
        if self.module.f16:
            half = vector_text("half", v.lanes)
            x = self.pure(f"bitcast {short} {v.ref} to {half}", v.ref)
            return Val(self.pure(f"fpext {half} {x} to {real}", x), float32, v.lanes)
        x = self.pure(f"zext {short} {v.ref} to {word}", v.ref)
        sign = self._int("shl", word, self._int("and", word, x, 0x8000), 16)
        body = self._int("shl", word, self._int("and", word, x, 0x7FFF), 13)
        exponent = self._int("and", word, body, 0x1F << 23)
        normal = self._int("add", word, body, (127 - 15) << 23)
        special = self._int("add", word, body, (255 - 31) << 23)  # infinity and NaN
        # Subnormals: with 2**-14 added they are a normal number, whose subtraction is exact.
        padded = self._int("or", word, body, (127 - 14) << 23)
        base = self._of(float_literal(2.0**-14, float32), "float", v.lanes)
        tiny = self.pure(f"bitcast {word} {padded} to {real}", padded)
        tiny = self.pure(f"fsub {real} {tiny}, {base}", tiny)
        tiny = self.pure(f"bitcast {real} {tiny} to {word}", tiny)
        is_special = self._int("icmp eq", word, exponent, 0x1F << 23)
        is_tiny = self._int("icmp eq", word, exponent, 0)
        out = self.pure(
            f"select {flag} {is_special}, {word} {special}, {word} {normal}", is_special, special, normal
        )
        out = self.pure(f"select {flag} {is_tiny}, {word} {tiny}, {word} {out}", is_tiny, tiny, out)
        out = self._int("or", word, out, sign)
        return Val(self.pure(f"bitcast {word} {out} to {real}", out), float32, v.lanes)

    def _to_f16(self, v: Val) -> Val:
        short, word, real, flag = self._ints(v.lanes)
        if self.module.f16:
            half = vector_text("half", v.lanes)
            x = self.pure(f"fptrunc {real} {v.ref} to {half}", v.ref)
            return Val(self.pure(f"bitcast {half} {x} to {short}", x), float16, v.lanes)
        x = self.pure(f"bitcast {real} {v.ref} to {word}", v.ref)
        sign = self._int("lshr", word, self._int("and", word, x, -(1 << 31)), 16)
        body = self._int("and", word, x, 0x7FFFFFFF)
        odd = self._int("and", word, self._int("lshr", word, body, 13), 1)
        normal = self._int("add", word, body, 0xFFF - ((127 - 15) << 23))
        normal = self._int("lshr", word, self._int("add", word, normal, odd), 13)
        # Subnormals: added to 0.5, the last bit of the sum is worth 2**-24, so the addition rounds where f16
        # does.
        magic = self._of(float_literal(0.5, float32), "float", v.lanes)
        tiny = self.pure(f"bitcast {word} {body} to {real}", body)
        tiny = self.pure(f"fadd {real} {tiny}, {magic}", tiny)
        tiny = self.pure(f"bitcast {real} {tiny} to {word}", tiny)
        tiny = self._int("sub", word, tiny, 126 << 23)
        is_tiny = self._int("icmp ult", word, body, (127 - 14) << 23)
        is_large = self._int("icmp uge", word, body, (127 + 16) << 23)
        is_nan = self._int("icmp ugt", word, body, 255 << 23)
        infinity, nan = (self._of(str(n), "i32", v.lanes) for n in (0x7C00, 0x7E00))
        out = self.pure(f"select {flag} {is_tiny}, {word} {tiny}, {word} {normal}", is_tiny, tiny, normal)
        out = self.pure(f"select {flag} {is_large}, {word} {infinity}, {word} {out}", is_large, out)
        out = self.pure(f"select {flag} {is_nan}, {word} {nan}, {word} {out}", is_nan, out)
        out = self._int("or", word, out, sign)
        return Val(self.pure(f"trunc {word} {out} to {short}", out), float16, v.lanes)
