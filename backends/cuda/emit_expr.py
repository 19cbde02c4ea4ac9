"""Expressions of the loop IR as CUDA C++ text. Used by emit_kernel, which writes the statements.

A node that a statement uses twice, and a text that grows long, gets a name on a line of its own before the
statement. What single primitives look like is in emit_prims.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...ir import dtypes
from ...ir.dtypes import bool_, int64
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
from .emit_math import float_function, warp_function
from .emit_names import EmitError, Names
from .emit_prims import PrimWriter
from .emit_text import ATOM, CHOICE, COMPARE, LAST_INT, MUL, UNARY, Text, UnitState, fits

#: texts longer than this get a name
_LONG = 64


class ExprWriter(PrimWriter):
    """Writes expressions, and the lines that name parts of them.

    Attributes:
        lines, pad: what is written so far, and the indentation of the next line.
        steps: of each loop variable and named value, what it is a multiple of.
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
        self.steps: dict[Expr, int] = {}
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
            return Text(self.names.get(e), ATOM, (0, max(e.extent - 1, 0)), e.extent > LAST_INT)
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

    # bits

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
