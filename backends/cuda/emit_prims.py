"""Primitives and conversions of the loop IR as CUDA C++ texts, from the texts of their operands. Base of
emit_expr's writer.

Index arithmetic with known bounds is plain `int` arithmetic; what may exceed 32 bits is done in `long long`,
and integers whose bounds nobody knows wrap by way of helpers.
"""

from __future__ import annotations

from ...ir import dtypes
from ...ir.dtypes import DType, bool_, float32, int64
from ...ir.expr import Expr, Prim
from .emit_math import float_function
from .emit_names import EmitError, from_half, to_half
from .emit_text import (
    ADD,
    ALL,
    AND,
    ANY,
    ATOM,
    CHOICE,
    COMPARE,
    MUL,
    OR,
    SHIFT,
    UNARY,
    XOR,
    Bounds,
    Text,
    UnitState,
    fits,
)  # fmt: skip

_INFIX = {"add": ("+", ADD), "sub": ("-", ADD), "mul": ("*", MUL), "div": ("/", MUL)}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITS = {"and_": ("&", AND), "or_": ("|", OR), "xor": ("^", XOR)}


class PrimWriter:
    """Writes primitives and conversions.

    Attributes:
        unit: notes what helpers are needed.
        values: nodes of the statement being written whose arithmetic must wrap; others are indices.
    """

    unit: UnitState
    values: set[Expr]

    # conversions

    def convert(self, v: Text, source: DType, dtype: DType) -> Text:
        """A value in another dtype."""
        c = self.unit.c_type(dtype)
        if source is dtype:
            return v
        if source.kind == "f" and source.bits == 16:
            return self.convert(Text(f"{from_half(source)}({v.text})"), float32, dtype)
        if dtype.kind == "f" and dtype.bits == 16:
            return Text(f"{to_half(dtype)}({self.convert(v, source, float32).text})")
        if dtype is bool_:
            return Text(f"{v.at(ADD)} != {self.unit.literal(0, source)}", COMPARE)
        if source.kind == "f" and dtype.kind != "f":
            whole = Text(f"{self.unit.need('truncated')}({v.text})")
            return whole if dtype is int64 else Text(f"({c}){whole.text}", UNARY, None)
        if dtype is int64:
            bounds = v.bounds if source is not bool_ else (0, 1)
            if source.kind == "i" or source is dtypes.uint8:
                low = -(1 << (source.bits - 1)) if source.kind == "i" else 0
                bounds = bounds or (low, low + (1 << source.bits) - 1)
            if bounds is not None and source.kind != "u":
                text = f"(int){v.at(UNARY)}" if source.bits < 32 or source is bool_ else v.text
                return Text(text, UNARY if text is not v.text else v.level, bounds, False)
            return Text(f"({c}){v.at(UNARY)}", UNARY, bounds)
        # `(type)-1` reads as a subtraction of a name in parentheses
        operand = v.at(UNARY) if not v.text.startswith("-") else f"({v.text})"
        return Text(f"({c}){operand}", UNARY, v.bounds if _holds(dtype, v.bounds) else None)

    # --- primitives -----------------------------------------------------------------------------------------

    def primitive(
        self, name: str, dtype: DType, kinds: list[DType], args: list[Text], e: Prim | None
    ) -> Text:
        """One primitive of ir/scalar.py on texts."""
        given = kinds[-1]
        if name == "select":
            c, a, b = args
            if c.text in ("true", "false"):
                return a if c.text == "true" else b
            wide = dtype is int64 and (a.wide or b.wide)
            bounds = (
                (min(a.bounds[0], b.bounds[0]), max(a.bounds[1], b.bounds[1]))
                if a.bounds and b.bounds
                else None
            )
            return Text(f"{c.at(COMPARE)} ? {a.at(CHOICE + 1)} : {b.at(CHOICE + 1)}", CHOICE, bounds, wide)
        if given.kind == "f" and given.bits == 16:
            widened = [self.convert(a, given, float32) for a in args]
            out = self.primitive(
                name, bool_ if name in _COMPARE else float32, [float32] * len(args), widened, e
            )
            return out if name in _COMPARE else self.convert(out, float32, dtype)
        if name in _COMPARE:
            a, b = args
            known = _against_zero(name, a, b) if given.kind == "u" else ""
            return Text(known) if known else Text(f"{a.at(ADD)} {_COMPARE[name]} {b.at(ADD)}", COMPARE)
        if given is bool_:
            return self._bool(name, args)
        if given.kind == "f":
            return self._float(name, given, args)
        return self._integer(name, given, args, e)

    def _bool(self, name: str, args: list[Text]) -> Text:
        if name == "not_":
            return Text(f"!{args[0].at(UNARY)}", UNARY)
        a, b = args
        if name in ("and_", "minimum"):
            return Text(f"{a.at(ALL) if a.level == ALL else a.at(COMPARE)} && {b.at(COMPARE)}", ALL)
        if name in ("or_", "maximum"):
            return Text(f"{a.at(ANY) if a.level == ANY else a.at(COMPARE)} || {b.at(COMPARE)}", ANY)
        if name == "xor":
            return Text(f"{a.at(ADD)} != {b.at(ADD)}", COMPARE)
        raise EmitError(f"primitive {name} of bool")

    def _float(self, name: str, dtype: DType, args: list[Text]) -> Text:
        if name in _INFIX:
            symbol, level = _INFIX[name]
            right = args[1].at(level + 1)
            return Text(f"{args[0].at(level)} {symbol} {_operand(right)}", level)
        if name == "neg":
            return Text(f"-{_operand(args[0].at(UNARY))}", UNARY)
        inner = ", ".join(a.text for a in args)
        if name in ("minimum", "maximum"):
            return self._extremum(name, args, dtype)
        if name == "sigmoid":
            return Text(f"{self.unit.need(name)}({inner})")
        return Text(f"{float_function(name, dtype)}({inner})")

    def _extremum(self, name: str, args: list[Text], dtype: DType) -> Text:
        """With a literal, one comparison does: a NaN fails it, and zeros are told apart by taking `=` or not.

        maximum(x, 0.0f)  -->  x <= 0.0f ? 0.0f : x
        """
        x, c = args
        if not _is_number(c.text) and _is_number(x.text):
            x, c = c, x
        if not _is_number(c.text) or not x.text.isidentifier():
            return Text(f"{self.unit.need(name)}({args[0].text}, {args[1].text})")
        negative = c.text.startswith("-")
        symbol = {"maximum": "<" if negative else "<=", "minimum": ">=" if negative else ">"}[name]
        return Text(f"{x.text} {symbol} {c.text} ? {c.text} : {x.text}", CHOICE)

    def _integer(self, name: str, dtype: DType, args: list[Text], e: Prim | None) -> Text:
        c = self.unit.c_type(dtype)
        a = args[0]
        b = args[1] if len(args) > 1 else a
        if name in ("add", "sub", "mul", "neg"):
            return self._arithmetic(name, dtype, c, args, e)
        if name in ("floordiv", "mod"):
            return self._divide(name, dtype, c, a, b)
        if name in ("minimum", "maximum"):
            helper = self.unit.need("lesser" if name == "minimum" else "greater")
            bounds = None
            if a.bounds and b.bounds:
                pick = min if name == "minimum" else max
                bounds = (pick(a.bounds[0], b.bounds[0]), pick(a.bounds[1], b.bounds[1]))
            narrow = dtype is int64 and fits(a.bounds) and fits(b.bounds)
            return Text(f"{helper}<{'int' if narrow else c}>({a.text}, {b.text})", ATOM, bounds, not narrow)
        if name == "abs":
            return a if dtype.kind == "u" else Text(f"{self.unit.need('wrap_abs')}<{c}>({a.text})")
        if name == "not_":
            return Text(f"({c})~{self._widened(a, dtype).at(UNARY)}", UNARY)
        if name in _BITS:
            symbol, level = _BITS[name]
            left = self._widened(a, dtype)
            return Text(
                f"{left.at(level) if left.level == level else left.at(UNARY)} {symbol} {b.at(UNARY)}", level
            )
        if name == "shl":
            unsigned = "unsigned long long" if dtype.bits == 64 else "unsigned int"
            if dtype.kind == "u" and dtype.bits >= 32:
                return Text(f"{a.at(UNARY)} << {b.at(UNARY)}", SHIFT)
            return Text(f"({c})(({unsigned}){a.at(UNARY)} << {b.at(UNARY)})", UNARY)
        if name == "shr":
            return Text(f"{self._widened(a, dtype).at(UNARY)} >> {b.at(UNARY)}", SHIFT)
        if name == "mulhi":
            return Text(f"__umulhi({a.text}, {b.text})")
        raise EmitError(f"primitive {name} of {dtype.name}")

    def _widened(self, v: Text, dtype: DType) -> Text:
        """An i64 as `long long`."""
        if dtype is not int64 or v.wide:
            return v
        return Text(f"(long long){_operand(v.at(UNARY))}", UNARY, v.bounds)

    def _arithmetic(self, name: str, dtype: DType, c: str, args: list[Text], e: Prim | None) -> Text:
        a = args[0]
        if name == "neg":
            if dtype is int64 and a.bounds is not None:
                return self._arithmetic("sub", dtype, c, [Text("0", ATOM, (0, 0), False), a], e)
            return Text(f"{self.unit.need('wrap_sub')}<{c}>(0, {a.text})")
        b = args[1]
        symbol, level = _INFIX[name]
        if dtype.kind == "u" and dtype.bits >= 32:  # unsigned numbers wrap by themselves
            return Text(f"{a.at(level)} {symbol} {b.at(level + 1)}", level)
        bounds = _combined(name, a.bounds, b.bounds)
        plain = dtype is int64 and (_holds(dtype, bounds) or (e is not None and e not in self.values))
        if not plain:
            return Text(f"{self.unit.need(f'wrap_{name}')}<{c}>({a.text}, {b.text})")
        narrow = fits(bounds) and not a.wide and not b.wide
        if not narrow and not a.wide and not b.wide:
            a = self._widened(a, dtype)
        right = b.at(level + 1)
        if name == "add" and right.startswith("-") and right[1:].isdigit():
            return Text(f"{a.at(level)} - {right[1:]}", level, bounds, not narrow)
        if name == "add" and b.level == MUL and b.text.endswith(tuple("0123456789")):
            body, star, factor = b.text.rpartition(" * -")
            if star and factor.isdigit():
                times = "" if factor == "1" else f" * {factor}"
                return Text(f"{a.at(level)} - {body}{times}", level, bounds, not narrow)
        return Text(f"{a.at(level)} {symbol} {_operand(right)}", level, bounds, not narrow)

    def _divide(self, name: str, dtype: DType, c: str, a: Text, b: Text) -> Text:
        symbol = "/" if name == "floordiv" else "%"
        known = b.bounds is not None and b.bounds[0] == b.bounds[1] and b.bounds[0] > 0
        if dtype.kind == "u":
            if known:
                return Text(f"{a.at(MUL)} {symbol} {b.at(UNARY)}", MUL)
            helper = self.unit.need("unsigned_div" if name == "floordiv" else "unsigned_mod")
            return Text(f"{helper}<{c}>({a.text}, {b.text})")
        bounds: Bounds = None
        if known and b.bounds is not None:
            k = b.bounds[0]
            if name == "mod":
                bounds = (0, k - 1)
            elif a.bounds is not None:
                bounds = (a.bounds[0] // k, a.bounds[1] // k)
        narrow = dtype is int64 and not a.wide and not b.wide
        if known and a.bounds is not None and a.bounds[0] >= 0:
            return Text(f"{a.at(MUL)} {symbol} {b.at(UNARY)}", MUL, bounds, not narrow)
        helper = self.unit.need("floor_div" if name == "floordiv" else "floor_mod")
        return Text(f"{helper}<{'int' if narrow else c}>({a.text}, {b.text})", ATOM, bounds, not narrow)


def _against_zero(name: str, a: Text, b: Text) -> str:
    """What is known of the comparison of unsigned numbers with 0."""
    if b.text.rstrip("ul") == "0":
        return {"lt": "false", "ge": "true"}.get(name, "")
    if a.text.rstrip("ul") == "0":
        return {"gt": "false", "le": "true"}.get(name, "")
    return ""


def _operand(text: str) -> str:
    """Behind an operator: no two minus signs in a row."""
    return f"({text})" if text.startswith("-") else text


def _is_number(text: str) -> bool:
    return text[-1:] in "0123456789f" and text.lstrip("-")[:1].isdigit()


def _holds(dtype: DType, b: Bounds) -> bool:
    if b is None or dtype.kind not in "iu":
        return False
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
    return low <= b[0] and b[1] < low + (1 << dtype.bits)


def _combined(name: str, a: Bounds, b: Bounds) -> Bounds:
    if a is None or b is None:
        return None
    if name == "add":
        return a[0] + b[0], a[1] + b[1]
    if name == "sub":
        return a[0] - b[1], a[1] - b[0]
    products = [x * y for x in a for y in b]
    return min(products), max(products)
