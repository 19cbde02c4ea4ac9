"""`register` buffers of the code generator, as SSA values. Where every index of a buffer is constant (once
loops are unrolled and lanes expanded) its elements are followed as values, and a loop that writes them gets
phi instructions. So an unrolled accumulation is a chain of operations and nothing else, which keeps the text,
and LLVM's work, short. Other buffers live in memory. Used by codegen_expr (loads) and codegen (the rest).
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Expr, LaneReduce, Load, Var
from ...ir.loops import Alloc, Buffer, For, If, Stmt, Store, While
from .codegen_index import LANE, Linear
from .codegen_memory import MemoryWriter
from .codegen_text import Module, Val, type_text

Slot = tuple[int, int]  # first element, lanes (0: a scalar)


class Frame:
    """What one loop's body (or the function around all loops) knows of the buffers.

    Attributes:
        values: by buffer and slot; slots of a buffer don't overlap.
        phis: values from the iteration before, by buffer and slot.
        stored: buffers that the loop writes to.
        fresh: buffers that came into scope in the body.
    """

    __slots__ = ("fresh", "phis", "stored", "values")

    def __init__(self, stored: frozenset[Buffer] = frozenset()) -> None:
        self.values: dict[Buffer, dict[Slot, Val]] = {}
        self.phis: dict[tuple[Buffer, Slot], Val] = {}
        self.stored = stored
        self.fresh: set[Buffer] = set()


class RegisterWriter(MemoryWriter):
    """Adds `register` buffers.

    Attributes:
        held: the buffers that are values.
    """

    def __init__(self, module: Module) -> None:
        super().__init__(module)
        self.held: frozenset[Buffer] = frozenset()
        self._frames = [Frame()]
        self._loop_depths: list[int] = []  # region of each frame's loop, from frame 1 on

    # --- accesses -------------------------------------------------------------------------------------------

    def begin_registers(self, buffer: Buffer) -> None:
        """The buffer comes into scope, contents undefined."""
        frame = self._frames[-1]
        frame.fresh.add(buffer)
        frame.values[buffer] = {}

    def load_register(self, buffer: Buffer, index: tuple[Expr, ...]) -> Val:
        const, lanes, stride = self._slot_of(buffer, index)
        if stride > 1 and lanes:
            return self._column(buffer, const, lanes, stride)
        return self._read(buffer, (const, lanes if stride else 0), len(self._frames) - 1)

    def store_register(self, buffer: Buffer, index: tuple[Expr, ...], value: Val) -> None:
        slot = self._slot(buffer, index)
        if value.lanes and not slot[1]:  # every lane stores to one element: the last one wins
            ref = self.pure(f"extractelement {value.type} {value.ref}, i64 {value.lanes - 1}", value.ref)
            value = Val(ref, value.dtype)
        self._write(buffer, slot, value)

    def _slot(self, buffer: Buffer, index: tuple[Expr, ...]) -> Slot:
        const, lanes, stride = self._slot_of(buffer, index)
        return const, lanes if stride else 0

    def _slot_of(self, buffer: Buffer, index: tuple[Expr, ...]) -> tuple[int, int, int]:
        """First element, open lanes, and elements from lane to lane of an access."""
        flat = self._flat.get((buffer, 1, index)) or self.flat(buffer, index, 1)
        const, atoms = flat.linear
        env = self.env
        stride = 0
        for atom, k in atoms:
            bound = env[atom]
            if bound is LANE:
                stride += k
            else:
                const += k * bound
        return const, self.lanes, stride

    def _column(self, buffer: Buffer, first: int, lanes: int, stride: int) -> Val:
        """Lanes `stride` elements apart. Where these are in rows of so many lanes, the column of a square or
        of some squares, one below the other, it comes out of a network of two-operand shuffles that all
        columns share (n log n for n of them)."""
        level = len(self._frames) - 1
        column = first % stride
        rows = self._frames[level].values.get(buffer, {})
        starts = [first - column + i * stride for i in range(lanes)]
        if lanes % stride or any((s, stride) not in rows for s in starts):
            total = Val("poison", buffer.dtype, lanes)
            for i in range(lanes):
                x = self._read(buffer, (first + i * stride, 0), level)
                text = f"insertelement {total.type} {total.ref}, {x.type} {x.ref}, i64 {i}"
                total = Val(self.pure(text, total.ref, x.ref), buffer.dtype, lanes)
            return total
        return Val(self._turned([rows[s, stride] for s in starts], column, stride), buffer.dtype, lanes)

    def _turned(self, rows: list[Val], column: int, width: int) -> str:
        """A column of squares held as rows: in step h, rows h apart exchange the lanes h apart, and of each
        pair this column needs one. Rows of `width` lanes are first put side by side with those of the next
        squares."""
        n = len(rows)
        element = type_text(rows[0].dtype, 0)
        ty = f"<{n} x {element}>"
        # LLVM looks through chains of shuffles, at every shuffle through all before it, and finds nothing
        # better: a third of the time such a kernel takes to compile. It does not look through fences.
        floats = element in ("float", "double")
        fence = self.module.intrinsic("arithmetic.fence", element, n, 1) if floats else ""
        refs = [self.use(v, width) for v in rows]
        lanes = width
        while lanes < n:
            half, lanes = f"<{lanes} x {element}>", 2 * lanes
            mask = ", ".join([f"i32 {i}" for i in range(lanes)])
            refs = [
                self.pure(f"shufflevector {half} {a}, {half} {b}, <{lanes} x i32> <{mask}>", a, b)
                for k in range(0, len(refs), 2 * width)
                for a, b in zip(refs[k : k + width], refs[k + width : k + 2 * width])
            ]
        while len(refs) > 1:
            half = len(refs) // 2
            if column & half:
                picks = [i + n if i & half else i + half for i in range(n)]
            else:
                picks = [i + n - half if i & half else i for i in range(n)]
            mask = ", ".join([f"i32 {i}" for i in picks])
            refs = [
                self.pure(f"shufflevector {ty} {a}, {ty} {b}, <{n} x i32> <{mask}>", a, b)
                for a, b in zip(refs[:half], refs[half:])
            ]
            if fence and half > 1:
                refs = [self.pure(f"call {ty} {fence}({ty} {x})", x) for x in refs]
        return refs[0]

    def _read(self, buffer: Buffer, slot: Slot, level: int) -> Val:
        """A slot's value as the body of frame `level` knows it now."""
        frame = self._frames[level]
        values = frame.values.get(buffer)
        if values is None:
            values = frame.values[buffer] = {}
        v = values.get(slot)
        if v is not None:
            return v
        low, high = slot[0], slot[0] + (slot[1] or 1)
        for first, lanes in values:
            if first < high and low < first + (lanes or 1):
                return self._assemble(buffer, slot, level)
        if level == 0 or buffer in frame.fresh:
            return Val("poison", buffer.dtype, slot[1])
        if buffer not in frame.stored:
            return self._read(buffer, slot, level - 1)
        name = self.fresh("r")
        self.depth[name] = self._loop_depths[level - 1]
        v = frame.phis[buffer, slot] = values[slot] = Val(name, buffer.dtype, slot[1])
        return v

    def _write(self, buffer: Buffer, slot: Slot, value: Val) -> None:
        values = self._frames[-1].values.setdefault(buffer, {})
        if slot not in values:
            low, high = slot[0], slot[0] + (slot[1] or 1)
            for old in list(values):
                first, lanes = old
                if first < high and low < first + (lanes or 1):  # keep the rest of it, element by element
                    rest = [e for e in range(first, first + (lanes or 1)) if not low <= e < high]
                    kept = [((e, 0), self._element(buffer, e, len(self._frames) - 1)) for e in rest]
                    del values[old]
                    values.update(kept)
        values[slot] = value

    def _element(self, buffer: Buffer, e: int, level: int) -> Val:
        for (first, lanes), v in self._frames[level].values[buffer].items():
            if first <= e < first + (lanes or 1):
                if not v.lanes:
                    return v
                ref = self.pure(f"extractelement {v.type} {v.ref}, i64 {e - first}", v.ref)
                return Val(ref, v.dtype)
        return self._read(buffer, (e, 0), level)

    def _assemble(self, buffer: Buffer, slot: Slot, level: int) -> Val:
        """A slot whose elements were stored as others."""
        first, lanes = slot
        if not lanes:
            return self._element(buffer, first, level)
        total = Val("poison", buffer.dtype, lanes)
        for i in range(lanes):
            x = self._element(buffer, first + i, level)
            ref = self.pure(
                f"insertelement {total.type} {total.ref}, {x.type} {x.ref}, i64 {i}", total.ref, x.ref
            )
            total = Val(ref, buffer.dtype, lanes)
        return total

    # --- loops ----------------------------------------------------------------------------------------------

    def enter_frame(self, stored: frozenset[Buffer]) -> None:
        """The region of a loop's body was just opened."""
        self._frames.append(Frame(stored))
        self._loop_depths.append(len(self.regions) - 1)

    def end_body(self) -> dict[tuple[Buffer, Slot], str]:
        """At the end of the body: operands of the phis for the next iteration. Finding them can make more
        phis."""
        frame = self._frames[-1]
        level = len(self._frames) - 1
        following: dict[tuple[Buffer, Slot], str] = {}
        while len(following) < len(frame.phis):
            for key in list(frame.phis):
                if key not in following:
                    buffer, slot = key
                    following[key] = self.use(self._read(buffer, slot, level), slot[1])
        return following

    def leave_frame(
        self, following: dict[tuple[Buffer, Slot], str], before: Callable[[], str], last: str
    ) -> list[str]:
        """After the region was closed, before its text is placed: the phi instructions for the top of the
        loop.

        before: gives the label of the block before the loop; last: label of the body's last block.
        """
        frame = self._frames.pop()
        self._loop_depths.pop()
        starts = {key: self.use(self._read(*key, len(self._frames) - 1), key[1][1]) for key in frame.phis}
        block = before()
        lines = []
        for key, v in frame.phis.items():
            lines.append(
                f"  {v.ref} = phi {v.type} [ {starts[key]}, %{block} ], [ {following[key]}, %{last} ]"
            )
        here = len(self.regions) - 1
        for buffer, values in frame.values.items():
            if buffer in frame.fresh:
                continue
            for slot, v in values.items():
                if frame.phis.get((buffer, slot)) is not v:  # else the loop has not changed it
                    if self.depth.get(v.ref, 0) > here:
                        self.depth[v.ref] = here
                    self._write(buffer, slot, v)
        return lines


class Scan:
    """Finds the `register` buffers of a kernel that can be values: all accesses have constant places and
    stand in the same branch, while loop or task as the buffer's scope."""

    def __init__(
        self,
        nodes: Callable[[Stmt], list[Expr]],
        linear: Callable[[Expr], Linear],
        can_vectorize: Callable[[For], bool],
    ) -> None:
        self.nodes = nodes
        self.linear = linear
        self.can_vectorize = can_vectorize
        self.scopes: dict[Buffer, object] = {}
        self.bad: set[Buffer] = set()
        self.variables: set[Expr] = set()  # of loops that stay loops
        self.lanes: set[Expr] = set()
        self.scope: object = None
        self.vector = False

    def run(self, body: list[Stmt]) -> frozenset[Buffer]:
        self.block(body)
        return frozenset(b for b in self.scopes if b not in self.bad)

    def block(self, body: list[Stmt]) -> None:
        for s in body:
            if isinstance(s, For):
                self.loop(s)
                continue
            for e in self.nodes(s):
                if type(e) is Load:
                    if e.buffer.space == "register":
                        self.access(e.buffer, e.index)
                elif type(e) is LaneReduce:
                    self.lanes.add(e.var)
            if isinstance(s, Store):
                if s.buffer.space == "register":
                    self.access(s.buffer, s.index, most=1)
                    if s.mask is not None:
                        self.bad.add(s.buffer)
            elif isinstance(s, Alloc):
                if s.buffer.space == "register":
                    self.scopes[s.buffer] = self.scope
                    if self.vector:
                        self.bad.add(s.buffer)
            elif isinstance(s, (If, While)):
                outer, self.scope = self.scope, s
                self.block(s.body)
                self.scope = outer

    def loop(self, s: For) -> None:
        outer = self.scope, self.vector
        if -(-s.extent // s.step) > 1:
            if s.kind == "vector" and not self.vector and s.step == 1 and self.can_vectorize(s):
                self.vector = True
                self.lanes.add(s.var)
            elif s.kind != "unroll":
                self.variables.add(s.var)
            if s.kind == "parallel":
                self.scope = s
        self.block(s.body)
        self.scope, self.vector = outer

    def access(self, buffer: Buffer, index: tuple[Expr, ...], most: int = 1 << 30) -> None:
        """`most`: elements from lane to lane at most."""
        if self.scopes.get(buffer, self) is not self.scope:
            self.bad.add(buffer)
        sizes = (1,) if len(index) == 1 else buffer.shape
        stride, scale = 0, 1
        for e, n in zip(reversed(index), reversed(sizes)):
            for atom, k in self.linear(e)[1]:
                if not isinstance(atom, Var) or atom in self.variables:
                    self.bad.add(buffer)
                elif atom in self.lanes:
                    stride += k * scale
            scale *= n
        if not 0 <= stride <= most:
            self.bad.add(buffer)
