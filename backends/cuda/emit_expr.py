"""Expressions of the loop IR as CUDA C++ text. Used by emit_kernel, which writes the statements.

Index arithmetic with known bounds is plain `int` arithmetic; what may exceed 32 bits is done in `long long`,
and integers whose bounds nobody knows wrap by way of helpers. A node that a statement uses twice, and a text
that grows long, gets a name on a line of its own before the statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...ir import dtypes
from ...ir.dtypes import DType, bool_, float32, int64
from ...ir.expr import (
    Cast,
    Const,
    Expr,
    LaneReduce,
    Load,
    Local,
    Prim,
    Var,
    WarpReduce,
    index_add,
    index_mul,
)
from ...ir.loops import Buffer
from .emit_math import HELPERS, float_function, warp_function
from .emit_names import C_TYPES, EmitError, Names, from_half, literal, to_half

# Binding strength of operators; what is not arithmetic, comparison or `?:` is parenthesised where mixed.
ATOM, UNARY, MUL, ADD, SHIFT, COMPARE, AND, XOR, OR, ALL, ANY, CHOICE = range(12, 0, -1)
_INFIX = {"add": ("+", ADD), "sub": ("-", ADD), "mul": ("*", MUL), "div": ("/", MUL)}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITS = {"and_": ("&", AND), "or_": ("|", OR), "xor": ("^", XOR)}
_LONG = 64
_I32 = (-(1 << 31), (1 << 31) - 1)
Bounds = tuple[int, int] | None


class Text(NamedTuple):
    """A C++ expression.

    Attributes:
        level: how strongly its outermost operator binds.
        bounds: of an integer, if known.
        wide: an i64 that C++ has as `long long`; else as `int`.
    """

    text: str
    level: int = ATOM
    bounds: Bounds = None
    wide: bool = True

    def at(self, level: int) -> str:
        """As an operand of an operator that binds this strongly."""
        return self.text if self.level >= level else f"({self.text})"


@dataclass
class UnitState:
    """What the kernels of one unit share.

    Attributes:
        needs: helper functions that are used.
        warps: texts of warp reductions by name.
        half, bfloat: whether the types occur.
    """

    needs: set[str] = field(default_factory=set)
    warps: dict[str, str] = field(default_factory=dict)
    half: bool = False
    bfloat: bool = False

    def need(self, name: str) -> str:
        """Notes that a helper is used; gives its name."""
        assert name in HELPERS, name
        self.needs.add(name)
        return name

    def c_type(self, dtype: DType) -> str:
        """C++ name of an element type."""
        self.half |= dtype is dtypes.float16
        self.bfloat |= dtype is dtypes.bfloat16
        return C_TYPES[dtype]

    def literal(self, value: object, dtype: DType) -> str:
        return literal(value, dtype, self.need)


def fits(b: Bounds) -> bool:
    """Whether every value is an `int`."""
    return b is not None and _I32[0] <= b[0] and b[1] <= _I32[1]


class ExprWriter:
    """Writes expressions, and the lines that name parts of them.

    Attributes:
        lines, pad: what is written so far, and the indentation of the next line.
        steps: of each loop variable, what its values are multiples of.
        locals_: what is known of named values.
        packs: loads that stand for a lane of a vector that was loaded already.
        plain: local buffers written as a single variable.
        flat: local buffers that are declared without their dimensions.
        threads: threads of a block.
    """

    def __init__(self, unit: UnitState, names: Names) -> None:
        self.unit = unit
        self.names = names
        self.lines: list[str] = []
        self.pad = "  "
        self.steps: dict[Var, int] = {}
        self.locals_: dict[Local, Text] = {}
        self.packs: dict[Load, Text] = {}
        self.plain: set[Buffer] = set()
        self.flat: set[Buffer] = set()
        self.threads = 1
        self.memo: dict[Expr, Text] = {}
        self.values: set[Expr] = set()

    # --- statements' expressions ----------------------------------------------------------------------------

    def prepare(self, values: Iterable[Expr], indices: Iterable[Expr] = (), own_line: bool = False) -> None:
        """Starts a statement: texts of all nodes of its expressions, innermost first, with names for those
        used twice. `indices` are used as indices only, whose arithmetic never overflows. With `own_line`, the
        first value gets a name by the statement itself."""
        values = list(values)
        self.memo = {}
        self.values = set()
        count: dict[Expr, int] = {}
        order: list[Expr] = []
        stack: list[tuple[Expr, bool, bool]] = [
            *[(e, True, False) for e in indices],
            *[(e, False, False) for e in values],
        ]
        while stack:
            e, as_index, done = stack.pop()
            if done:
                order.append(e)
                continue
            known = e in count
            count[e] = count.get(e, 0) + 1
            if known and (as_index or e in self.values):
                continue
            if not as_index:
                self.values.add(e)
            if not known:
                stack.append((e, False, True))
            if isinstance(e, Load):
                if e in self.packs:
                    continue
                stack.extend((i, True, False) for i in e.index)
                stack.extend((a, False, False) for a in e.args[len(e.index) :])
            elif not isinstance(e, LaneReduce):
                inner = as_index and isinstance(e, Prim) and e.dtype is int64
                stack.extend((a, inner, False) for a in e.args)
        for e in order:
            made = self._compute(e)
            if values and e is values[0] and count[e] == 1 and (own_line or not isinstance(e, WarpReduce)):
                pass
            elif self._wants_name(e, made, count[e]):
                made = self._named(e, made)
            self.memo[e] = made

    def value(self, e: Expr) -> Text:
        """The text of an expression of the statement being written."""
        got = self.memo.get(e)
        if got is None:
            got = self.memo[e] = self._compute(e)
        return got

    def _wants_name(self, e: Expr, made: Text, uses: int) -> bool:
        if isinstance(e, (Const, Var, Local)) or e in self.packs:
            return False
        if isinstance(e, (WarpReduce, LaneReduce)):
            return not isinstance(e, LaneReduce) or uses > 1
        long = len(made.text) > _LONG
        if uses == 1:
            return long and not (isinstance(e, Prim) and e.name == "add" and e.dtype is int64)
        if isinstance(e, Load):
            return not (e.buffer in self.plain and e.mask is None)
        return long or len(made.text) > 20 or e.dtype is not int64

    def _named(self, e: Expr, made: Text) -> Text:
        c = self.unit.c_type(e.dtype) if e.dtype is not int64 or made.wide else "int"
        name = self.names.fresh(self._wish(e))
        self.lines.append(f"{self.pad}const {c} {name} = {made.text};")
        return Text(name, ATOM, made.bounds, made.wide)

    def _wish(self, e: Expr) -> str:
        if isinstance(e, Load):
            return f"{e.buffer.name}_v"
        if isinstance(e, (WarpReduce, LaneReduce)):
            return f"{e.name.rstrip('_')}_all"
        return f"{e.name.rstrip('_')}_v" if isinstance(e, Prim) else "v"

    # --- one node -------------------------------------------------------------------------------------------

    def _compute(self, e: Expr) -> Text:
        if isinstance(e, Const):
            return self._const(e)
        if isinstance(e, Var):
            return Text(self.names.get(e), ATOM, (0, max(e.extent - 1, 0)), e.extent > _I32[1])
        if isinstance(e, Local):
            got = self.locals_.get(e)
            if got is None:
                raise EmitError(f"local {e.name} is not in scope")
            return got
        if isinstance(e, Load):
            return self._load(e)
        if isinstance(e, Cast):
            return self._bits(e) if e.bits else self.convert(self.value(e.x), e.x.dtype, e.dtype)
        if isinstance(e, WarpReduce):
            return self._warp(e)
        if isinstance(e, LaneReduce):
            return self._lanes(e)
        assert isinstance(e, Prim), type(e)
        return self.primitive(e.name, e.dtype, [a.dtype for a in e.args], [self.value(a) for a in e.args], e)

    def _const(self, e: Const) -> Text:
        text = self.unit.literal(e.value, e.dtype)
        level = UNARY if text.startswith("-") else ATOM
        if e.dtype.kind != "i" and e.dtype.kind != "u":
            return Text(text, level)
        n = int(e.value)
        return Text(text, level, (n, n), not fits((n, n)))

    # loads

    def reference(self, b: Buffer, index: Sequence[Expr]) -> str:
        """`buffer[index]` as text."""
        name = self.names.get(b)
        if b in self.plain:
            return name
        if b.space in ("shared", "local", "register") and b not in self.flat and len(index) == len(b.shape):
            return name + "".join(f"[{self.value(i).text}]" for i in index)
        return f"{name}[{self.offset(b, index).text}]"

    def offset(self, b: Buffer, index: Sequence[Expr]) -> Text:
        """The flat index of an element."""
        if len(index) == 1:
            return self.value(index[0])
        return self.value(flat_index(b, index))

    def _load(self, e: Load) -> Text:
        pack = self.packs.get(e)
        if pack is not None:
            return pack
        if e.mask is None:
            return Text(self.reference(e.buffer, e.index))
        other = self.value(e.other) if e.other is not None else Text(self.unit.literal(0, e.dtype))
        mask = self.value(e.mask)
        return Text(
            f"{mask.at(COMPARE)} ? {self.reference(e.buffer, e.index)} : {other.at(CHOICE + 1)}", CHOICE
        )

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

    def _bits(self, e: Cast) -> Text:
        v, source, dtype = self.value(e.x), e.x.dtype, e.dtype
        if source is dtype:
            return v
        if bool_ in (source, dtype):
            return self.convert(v, source, dtype)
        if source.bits != dtype.bits:
            raise EmitError(f"bits of {source.name} as {dtype.name}")
        c = self.unit.c_type(dtype)
        if source.kind == "f" and dtype.kind == "f":  # f16 and bf16
            bits = "half" if source is dtypes.float16 else "bfloat16"
            back = "half" if dtype is dtypes.float16 else "bfloat16"
            return Text(f"__ushort_as_{back}(__{bits}_as_ushort({v.text}))")
        if source.kind == "f":
            names = {
                64: "__double_as_longlong",
                32: "__float_as_int",
                16: "__half_as_ushort" if source is dtypes.float16 else "__bfloat16_as_ushort",
            }
            inner = f"{names[source.bits]}({v.text})"
            same = dtype.kind == "i" and dtype.bits > 16
            return Text(inner) if same else Text(f"({c}){inner}", UNARY)
        if dtype.kind == "f":
            half = "half" if dtype is dtypes.float16 else "bfloat16"
            name = {64: "__longlong_as_double", 32: "__int_as_float", 16: f"__ushort_as_{half}"}[dtype.bits]
            given = {64: "long long", 32: "int", 16: "unsigned short"}[dtype.bits]
            signed = source.kind == "i" and source.bits > 16
            return Text(f"{name}({v.text})" if signed else f"{name}(({given}){v.at(UNARY)})")
        return Text(f"({c}){v.at(UNARY)}", UNARY)

    # reductions over lanes

    def _warp(self, e: WarpReduce) -> Text:
        lanes = min(self.threads, 32)
        if self.threads % 32 and (self.threads > 32 or self.threads & (self.threads - 1)):
            raise EmitError(f"a warp reduction in blocks of {self.threads} threads")
        if lanes == 1:
            return self.value(e.x)
        symbol, text, needs = warp_function(e.name, e.dtype, lanes)
        for name in needs:
            self.unit.need(name)
        self.unit.warps[symbol] = text
        return Text(f"{symbol}({self.value(e.x).text})")

    def _lanes(self, e: LaneReduce) -> Text:
        """An array of the lanes, halved until one is left."""
        n = e.var.extent
        c = self.unit.c_type(e.dtype)
        name = self.names.fresh("lanes")
        var = self.names.define(e.var, e.var.name)
        outer = self.memo, self.values
        self.lines += [
            f"{self.pad}{c} {name}[{n}];",
            "#pragma unroll",
            f"{self.pad}for (int {var} = 0; {var} < {n}; ++{var}) {{",
        ]
        self.pad += "  "
        self.prepare([e.x])
        self.lines.append(f"{self.pad}{name}[{var}] = {self.value(e.x).text};")
        self.pad = self.pad[:-2]
        self.lines.append(f"{self.pad}}}")
        self.memo, self.values = outer
        if n > 1:
            half = self.names.fresh("half_")
            a, b = Text(f"{name}[{var}]"), Text(f"{name}[{var} + {half}]")
            both = self.primitive(e.name, e.dtype, [e.dtype, e.dtype], [a, b], None)
            self.lines += [
                "#pragma unroll",
                f"{self.pad}for (int {half} = {n // 2}; {half} > 0; {half} /= 2) {{",
                "#pragma unroll",
                f"{self.pad}  for (int {var} = 0; {var} < {half}; ++{var}) {name}[{var}] = {both.text};",
                f"{self.pad}}}",
            ]
        return Text(f"{name}[0]")

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
            return Text(
                f"{c.at(COMPARE)} ? {a.at(CHOICE + 1)} : {b.at(CHOICE + 1)}", CHOICE, bounds, wide
            )
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

    # --- accumulation ---------------------------------------------------------------------------------------

    def accumulated(self, e: Expr) -> Text:
        """The value stored to an accumulator: products are added by one fused instruction."""
        chain: list[Prim] = []
        rest = e
        while (
            isinstance(rest, Prim) and rest.name == "add" and rest.dtype.kind == "f" and rest.dtype.bits > 16
        ):
            if rest is not e and self.memo[rest].level == ATOM:
                break  # it has a name
            a, b = rest.args
            if not self._product(b):
                a, b = b, a
            if not self._product(b):
                break
            assert isinstance(b, Prim)
            chain.append(b)
            rest = a
        total = self.value(rest)
        for product in reversed(chain):
            x, y = (self.value(f).text for f in product.args)
            total = Text(f"{float_function('fma', e.dtype)}({x}, {y}, {total.text})")
        return total

    def _product(self, e: Expr) -> bool:
        return isinstance(e, Prim) and e.name == "mul" and self.memo[e].level == MUL


def flat_index(b: Buffer, index: Sequence[Expr]) -> Expr:
    """The row-major index of an element."""
    if len(index) == 1:
        return index[0]
    if len(index) != len(b.shape):
        raise EmitError(f"{b.name} has {len(b.shape)} dimensions, indexed with {len(index)}")
    out: Expr = Const(0)
    for n, i in zip(b.shape, index):
        out = index_add(index_mul(out, n), i)
    return out


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
