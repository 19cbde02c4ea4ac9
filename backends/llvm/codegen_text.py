"""LLVM IR as text: types, literals, and a writer that places every instruction in the outermost region it can
live in. The bottom layer of the code generator; the other codegen modules use it, nobody else.

Text is written instead of building llvmlite.ir objects because that is several times faster, and compile time
counts.

A function body is a stack of *regions* (the entry, then one per open loop or branch). While a loop is open,
the text of its surroundings is still being written, so an instruction whose operands all come from outside is
simply appended there: loop-invariant code motion costs nothing. Equal instructions in a region are written
once.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ...ir.dtypes import DType, int64

_REGISTER = {
    "f64": "double",
    "f32": "float",
    "f16": "i16",
    "bf16": "i16",
    "i64": "i64",
    "i32": "i32",
    "i16": "i16",
    "i8": "i8",
    "u8": "i8",
    "u32": "i32",
    "u64": "i64",
    "bool": "i1",
}  # halves are bit patterns except inside conversions: no target then needs half arithmetic
_SUFFIX = {"double": "f64", "float": "f32", "half": "f16"}
#: what the math library says of branches to its slow paths
BRANCH_WEIGHTS = '!{ !"branch_weights", i32 1, i32 10000 }'
_BLOCK_LINES, LOOP_LINES = 300, 1500  # after which a basic block ends
_types: dict[tuple[str, int], str] = {}
_iotas: dict[tuple[int, str, int], str] = {}


def type_text(dtype: DType, lanes: int) -> str:
    """The LLVM type of a value in registers; `lanes` 0 is a scalar."""
    return vector_text(_REGISTER[dtype.name], lanes)


def memory_type(dtype: DType) -> str:
    """The LLVM type of one element in memory (bool is a byte there)."""
    return "i8" if dtype.kind == "b" else _REGISTER[dtype.name]


def vector_text(element: str, lanes: int) -> str:
    got = _types.get((element, lanes))
    if got is None:
        got = _types[element, lanes] = f"<{lanes} x {element}>" if lanes else element
    return got


def suffix(element: str, lanes: int) -> str:
    """How intrinsics spell a type in their names: `v16f32`."""
    scalar = _SUFFIX.get(element, element)
    return f"v{lanes}{scalar}" if lanes else scalar


def float_literal(value: float, dtype: DType) -> str:
    """An exact literal: LLVM writes floats of both widths as the bits of a double."""
    if dtype.bits == 32:
        try:
            (value,) = struct.unpack("<f", struct.pack("<f", value))
        except OverflowError:
            value = float(np.copysign(np.inf, value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def literal(value: Any, dtype: DType) -> str:
    """A scalar literal of a dtype, as it is held in registers."""
    if dtype.kind == "b":
        return "true" if value else "false"
    if dtype.kind == "f":
        if dtype.bits == 16:
            return str(int(np.asarray(value, dtype.numpy).view(np.int16)))
        return float_literal(float(value), dtype)
    return str(wrap(int(value), dtype.bits))


def wrap(value: int, bits: int) -> int:
    """`value` as a signed integer of that many bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class Val:
    """A value in registers.

    Attributes:
        ref: SSA name, or a scalar literal.
        dtype: element type.
        lanes: 0 for a scalar (equal in all lanes), else the vector length.
        const: the Python value of a literal, else None.
    """

    __slots__ = ("const", "dtype", "lanes", "ref")

    def __init__(self, ref: str, dtype: DType, lanes: int = 0, const: Any = None) -> None:
        self.ref = ref
        self.dtype = dtype
        self.lanes = lanes
        self.const = const

    @property
    def type(self) -> str:
        return type_text(self.dtype, self.lanes)


def constant(value: Any, dtype: DType) -> Val:
    """A literal as a value; `const` holds what the dtype can represent."""
    if dtype.kind == "b":
        value = bool(value)
    elif dtype.kind == "i":
        value = wrap(int(value), dtype.bits)
    elif dtype.kind == "u":
        value = int(value) & ((1 << dtype.bits) - 1)
    return Val(literal(value, dtype), dtype, 0, value)


class Place(NamedTuple):
    """Where a buffer is, inside one function.

    Attributes:
        ref: pointer, an SSA name or a global.
        group: buffers of different groups never overlap.
        align: bytes known of the pointer's alignment.
        dtype: element type.
        shape: for turning multi-dimensional indices into flat ones.
        private: for scratch declared inside a vector loop, that loop's variable: every lane has its own copy.
        lanes: how many copies there are, side by side (1: one).
        slots: for `register` buffers, collects the constant places that are accessed: (pointer, type).
        apart: metadata of its accesses, ready to append: what else they never touch.
    """

    ref: str
    group: int
    align: int
    dtype: DType
    shape: tuple[int, ...]
    private: Any = None
    lanes: int = 1
    slots: dict[tuple[str, str], None] | None = None
    apart: str = ""


class Region:
    """Straight-line text in the making.

    Attributes:
        lines: instructions and, once nested statements are closed, their blocks.
        block: label of the block now being written.
        known: right-hand side -> name of what was computed here.
        loads: group -> right-hand side -> name, of loads that are still valid.
        stores: groups that the loop whose body this is writes to.
        conditional: the region may not run at all, so no load may leave it.
        limit: when there are that many lines, a new block begins.
    """

    __slots__ = ("block", "conditional", "known", "limit", "lines", "loads", "stores")

    def __init__(self, block: str, stores: frozenset[int] = frozenset(), conditional: bool = False) -> None:
        self.lines: list[str] = []
        self.block = block
        self.known: dict[str, str] = {}
        self.loads: dict[int, dict[str, str]] = {}
        self.stores = stores
        self.conditional = conditional
        self.limit = LOOP_LINES


class Module:
    """What all functions of one LLVM module share.

    Attributes:
        functions: finished function texts.
        globals: definitions of constants, without repeats.
        declares: declarations, without repeats.
        zeros: the block of zeros that skipped loads read is needed.
        math: definitions of math functions, without repeats.
        metadata: definitions, !2 and on; !0 and !1 are the same in all modules.
        fma, f16: the target fuses multiply-add, and converts halves, in one instruction.
        vector_bytes: of the target's widest registers.
    """

    def __init__(self, fma: bool = True, f16: bool = True, vector_bytes: int = 64) -> None:
        self.fma = fma
        self.f16 = f16
        self.vector_bytes = vector_bytes
        self.functions: list[str] = []
        self.globals: dict[str, None] = {}
        self.declares: dict[str, None] = {}
        self.intrinsics: dict[tuple[str, str, int], str] = {}
        self.names = 0
        self.zeros = False
        self.math: dict[str, str] = {}
        self.metadata: list[str] = []

    def intrinsic(self, name: str, element: str, lanes: int, arity: int) -> str:
        """Declares an overloaded intrinsic of `arity` equal operands; its full name."""
        key = (name, element, lanes)
        got = self.intrinsics.get(key)
        if got is None:
            ty = vector_text(element, lanes)
            got = self.intrinsics[key] = f"@llvm.{name}.{suffix(element, lanes)}"
            self.declares[f"declare {ty} {got}({', '.join([ty] * arity)})"] = None
        return got

    def absorb(self, other: Module) -> None:
        """Takes over everything of another module; names of functions must differ."""
        self.functions += other.functions
        self.globals.update(other.globals)
        self.declares.update(other.declares)
        self.math.update(other.math)
        self.metadata += other.metadata
        self.zeros |= other.zeros

    def text(self) -> str:
        parts = ["\n".join(self.globals), *self.functions, *self.math.values(), "\n".join(self.declares)]
        if any("!prof !0" in m for m in self.math.values()):
            parts.append(f"!0 = {BRANCH_WEIGHTS}")
        if self.metadata:
            parts.append("\n".join(["!1 = distinct !{!1}", *self.metadata]))
        return "\n\n".join(filter(None, parts)) + "\n"


class Writer:
    """Writes one function.

    Attributes:
        regions: open regions, outermost first.
        depth: SSA name -> index of the region that defines it; names that are not there hold everywhere.
        entry: allocations, at the very top.
        exits: what to do before returning.
        later: lines that stand for others, decided when all is written.
        opaque: an i64 parameter that is never negative, and of which LLVM knows nothing.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.regions: list[Region] = [Region("entry")]
        self.regions[0].limit = _BLOCK_LINES  # straight-line code is scalar and long; loops are compact
        self.depth: dict[str, int] = {}
        self.entry: list[str] = []
        self.exits: list[str] = []
        self.later: dict[str, list[str]] = {}
        self.opaque = ""
        self._cuts = 0

    def fresh(self, hint: str) -> str:
        """A new SSA name."""
        self.module.names += 1
        return f"%{hint}v{self.module.names}"  # kernel parameters are `name.number`

    def label(self, hint: str) -> str:
        self.module.names += 1
        return f"{hint}{self.module.names}"

    def line(self, text: str) -> None:
        """An instruction right here."""
        self.regions[-1].lines.append("  " + text)

    def pure(self, text: str, *refs: str, hint: str = "v", costly: bool = False) -> str:
        """The name of an instruction without effects, written where its operands `refs` allow, once.

        `costly` ones don't leave branches: they would be paid for when the branch is not taken.
        """
        depth = self.depth
        d = 0
        for r in refs:
            here = depth.get(r, 0)
            if here > d:
                d = here
        regions = self.regions
        if costly:
            for i in range(len(regions) - 1, d, -1):
                if regions[i].conditional:
                    d = i
                    break
        region = regions[d]
        name = region.known.get(text)
        if name is None:
            self.module.names += 1
            name = f"%{hint}{self.module.names}"
            region.known[text] = name
            region.lines.append(f"  {name} = {text}")
            if len(region.lines) >= region.limit:
                self._cut(region)
            if d:
                depth[name] = d
        return name

    def load(self, text: str, group: int, *refs: str, hint: str = "x") -> str:
        """The name of a load, moved out of loops that don't write to its group, and not repeated while valid.
        """
        depth = self.depth
        low = 0
        for r in refs:
            if r in depth and depth[r] > low:
                low = depth[r]
        regions = self.regions
        d = len(regions) - 1
        while d > low and not regions[d].conditional and group not in regions[d].stores:
            d -= 1
        region = regions[d]
        known = region.loads.get(group)
        if known is None:
            known = region.loads[group] = {}
        name = known.get(text)
        if name is None:
            name = self.fresh(hint)
            known[text] = name
            region.lines.append(f"  {name} = {text}")
            if len(region.lines) >= region.limit:
                self._cut(region)
            if d:
                depth[name] = d
        return name

    def _cut(self, region: Region) -> None:
        """Ends a long basic block: LLVM's instruction selection takes time quadratic in their length. The
        branch is never taken, but LLVM can't know and join the blocks again."""
        region.limit = len(region.lines) + (_BLOCK_LINES if region is self.regions[0] else LOOP_LINES)
        if self.opaque:
            self._cuts += 1
            test, block = self.fresh("cut"), self.label("long")
            region.lines += [
                f"  {test} = icmp eq i64 {self.opaque}, {-self._cuts}",
                f"  br i1 {test}, label %never, label %{block}",
                f"{block}:",
            ]
            region.block = block

    def forget(self, groups: Iterable[int]) -> None:
        """Loads of these groups must be done again: something was, or in a loop will be, written there."""
        for region in self.regions:
            if region.loads:
                for g in groups:
                    region.loads.pop(g, None)

    # --- values ---------------------------------------------------------------------------------------------

    def splat(self, ref: str, element: str, lanes: int, const: bool = False) -> str:
        """A vector of equal lanes. `const`: `ref` is a literal, and so is the result."""
        if const:
            return "zeroinitializer" if ref in _ZEROS else f"splat ({element} {ref})"
        ty = vector_text(element, lanes)
        one = self.pure(f"insertelement {ty} poison, {element} {ref}, i64 0", ref)
        return self.pure(f"shufflevector {ty} {one}, {ty} poison, <{lanes} x i32> zeroinitializer", one)

    def use(self, v: Val, lanes: int) -> str:
        """An operand of `lanes` lanes (0: scalar) for a value that has as many, or is uniform."""
        if v.lanes == lanes:
            return v.ref
        return self.splat(v.ref, _REGISTER[v.dtype.name], lanes, v.const is not None)

    def iota(self, lanes: int, element: str = "i32", step: int = 1) -> str:
        """The literal <0, step, 2*step, ...>."""
        key = (lanes, element, step)
        got = _iotas.get(key)
        if got is None:
            got = _iotas[key] = "<" + ", ".join([f"{element} {i * step}" for i in range(lanes)]) + ">"
        return got

    def scale(self, ref: str, k: int) -> str:
        """i64 `ref * k`."""
        return ref if k == 1 else self.pure(f"mul i64 {ref}, {k}", ref)

    def sum_i64(self, terms: list[tuple[str, int]], const: int) -> Val:
        """`sum(ref * k) + const`, outer regions' terms first, so that partial sums leave inner loops."""
        if not terms:
            return constant(const, int64)
        depth = self.depth
        total = ""
        for ref, k in sorted(terms, key=lambda t: depth.get(t[0], 0)) if len(terms) > 1 else terms:
            term = self.scale(ref, k)
            total = self.pure(f"add i64 {total}, {term}", total, term) if total else term
        if const:
            total = self.pure(f"add i64 {total}, {const}", total)
        return Val(total, int64)

    def function_text(self, header: str) -> str:
        """The whole function; only the entry region may be open."""
        (region,) = self.regions
        lines = region.lines
        if self.later:
            later = self.later
            lines = [x for line in lines for x in later.get(line, (line,))]
        never = ["never:", "  ret void"] if self._cuts else []
        return "\n".join(
            [f"{header} {{", "entry:", *self.entry, *lines, *self.exits, "  ret void", *never, "}"]
        )


_ZEROS = frozenset(("0", "false", "0x0000000000000000"))


def reversed_lanes(lanes: int) -> str:
    """The shuffle mask that reverses a vector."""
    return "<" + ", ".join(f"i32 {i}" for i in range(lanes - 1, -1, -1)) + ">"


@functools.lru_cache(maxsize=4096)
def hint_of(name: str) -> str:
    """What of a name can begin an SSA name."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name) + "."
