"""Loads that shuffle: lanes a few elements apart, or at known places among neighbours, made of whole loads.
And what all loads share. Used by codegen_memory."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from ...ir.dtypes import bool_
from .codegen_index import IndexWriter
from .codegen_text import Place, Val, constant, memory_type, reversed_lanes, suffix, type_text, vector_text


class Address(NamedTuple):
    """Element addresses of all lanes.

    Attributes:
        ref: address of lane 0 (or the common part, if there is `offsets`).
        align: its known alignment in bytes.
        stride: elements from lane to lane.
        offsets: elements added per lane, or None.
        pattern: their numbers, where known.
    """

    ref: str
    align: int
    stride: int
    offsets: Val | None
    pattern: tuple[int, ...] | None = None


class ShuffleWriter(IndexWriter):
    """Adds loads by shuffles."""

    def _from_memory(self, x: str, place: Place, lanes: int) -> Val:
        if place.dtype is bool_:
            x = self.pure(f"icmp ne {vector_text('i8', lanes)} {x}, {'zeroinitializer' if lanes else 0}", x)
        return Val(x, place.dtype, lanes)

    def _strided(self, place: Place, at: Address, condition: Val | None, other: Val | None, hint: str) -> Val:
        """Lanes 2 to 4 elements apart: whole vectors over the span, none reaching past it, merged by
        shuffles."""
        lanes = self.lanes
        element = memory_type(place.dtype)
        ty = vector_text(element, lanes)
        step = abs(at.stride)
        if at.stride < 0:
            at = self._shifted(place, at, (lanes - 1) * at.stride)
        span = (lanes - 1) * step + 1
        starts = [min(i * lanes, span - lanes) for i in range(step)]
        got = ""
        for i, start in enumerate(starts):
            picks, asked = [], [lanes] * lanes
            for lane in range(lanes):
                offset = lane * step - start
                mine = 0 <= offset < lanes and (i == 0 or lane * step >= starts[i - 1] + lanes)
                picks.append(lanes + offset if mine else lane)
                if mine:
                    asked[offset] = lane
            mask = None if condition is None else self._picked(condition, asked)
            x = self._neighbours(place, self._shifted(place, at, start), mask, lanes, hint)
            if not got:
                indices = ", ".join(f"i32 {p - lanes}" if p >= lanes else "i32 poison" for p in picks)
                got = self.pure(f"shufflevector {ty} {x}, {ty} poison, <{lanes} x i32> <{indices}>", x)
            else:
                indices = ", ".join(f"i32 {p}" for p in picks)
                got = self.pure(f"shufflevector {ty} {got}, {ty} {x}, <{lanes} x i32> <{indices}>", got, x)
        if at.stride < 0:
            got = self._reverse(got, element)
        v = self._from_memory(got, place, lanes)
        if condition is not None and other is not None and other.const != 0:
            return self.select(condition, v, other)
        return v

    def _neighbours(self, place: Place, at: Address, mask: str | None, lanes: int, hint: str) -> str:
        """`lanes` neighbours; zero where there is a mask that is not set."""
        element = memory_type(place.dtype)
        ty = vector_text(element, lanes)
        align = gcd(at.align, place.dtype.itemsize)
        if mask is None:
            text = f"load {ty}, ptr {at.ref}, align {align}{place.apart}"
            return self.load(text, place.group, at.ref, hint=hint)
        return self.masked_load(place, at._replace(align=align), lanes, mask, "zeroinitializer", hint)

    def masked_load(self, place: Place, at: Address, lanes: int, mask: str, rest: str, hint: str) -> str:
        """`lanes` neighbours where the mask is set, else `rest`. In pieces as wide as registers; none where
        the mask is never set: LLVM 22, which would cut it so, reads those pieces all the same."""
        element, size = memory_type(place.dtype), place.dtype.itemsize
        width = min(lanes, self.module.vector_bytes // size)
        if power_of_two(lanes) != lanes:  # no scheduler asks for such vectors
            width = lanes
        part = vector_text(element, width)
        name = f"@llvm.masked.load.{suffix(element, width)}.p0"
        self.module.declares[f"declare {part} {name}(ptr, <{width} x i1>, {part})"] = None
        pieces = []
        for start in range(0, lanes, width):
            here = self._shifted(place, at, start)
            m, r = mask, rest
            if width < lanes:
                m = self._some_lanes(mask, "i1", lanes, start, width)
                if rest != "zeroinitializer":
                    r = self._some_lanes(rest, element, lanes, start, width)
                if self.never.get(mask, frozenset()).issuperset(range(start, start + width)):
                    pieces.append(r)
                    continue
            text = (
                f"call {part} {name}(ptr align {here.align} {here.ref}, <{width} x i1> {m}, {part} {r})"
                f"{place.apart}"
            )
            pieces.append(self.load(text, place.group, here.ref, m, r, hint=hint))
        while len(pieces) > 1:
            got, width = [], 2 * width
            half = vector_text(element, width // 2)
            indices = ", ".join([f"i32 {k}" for k in range(width)])
            for a, b in zip(pieces[::2], pieces[1::2]):
                text = f"shufflevector {half} {a}, {half} {b}, <{width} x i32> <{indices}>"
                got.append(self.pure(text, a, b))
            pieces = got
        return pieces[0]

    def _some_lanes(self, ref: str, element: str, lanes: int, start: int, count: int) -> str:
        """Some neighbouring lanes of a vector."""
        ty = vector_text(element, lanes)
        indices = ", ".join([f"i32 {k}" for k in range(start, start + count)])
        return self.pure(f"shufflevector {ty} {ref}, {ty} poison, <{count} x i32> <{indices}>", ref)

    def _picked(self, condition: Val, lanes: list[int]) -> str:
        """The named lanes of a condition; false for the number past the last."""
        n = self.lanes
        indices = ", ".join([f"i32 {k}" for k in lanes])
        # As numbers: LLVM takes single bits out of mask registers one by one.
        wide = self.pure(f"sext <{n} x i1> {condition.ref} to <{n} x i32>", condition.ref)
        moved = self.pure(
            f"shufflevector <{n} x i32> {wide}, <{n} x i32> zeroinitializer, "
            f"<{len(lanes)} x i32> <{indices}>",
            wide,
        )
        got = self.pure(f"icmp slt <{len(lanes)} x i32> {moved}, zeroinitializer", moved)
        never = self.never.get(condition.ref, frozenset())
        self.never[got] = frozenset([k for k, lane in enumerate(lanes) if lane >= n or lane in never])
        return got

    def _spread(self, place: Place, at: Address, condition: Val | None, other: Val | None, hint: str) -> Val:
        """Lanes that repeat or permute a few neighbours, in a known way: those in one load, and a shuffle."""
        assert at.pattern is not None
        low, lanes = min(at.pattern), self.lanes
        places = [p - low for p in at.pattern]
        span = max(places) + 1
        wide = power_of_two(span)
        at = self._shifted(place, at, low)
        mask = None
        if condition is not None:
            # A neighbour is read if any lane that wants it may read.
            condition = Val(self.use(condition, lanes), bool_, lanes)
            wanted = [[lane for lane, q in enumerate(places) if q == p] for p in range(wide)]
            for turn in range(max(map(len, wanted))):
                some = self._picked(condition, [w[turn] if turn < len(w) else lanes for w in wanted])
                if mask:
                    both = self.pure(f"or <{wide} x i1> {mask}, {some}", mask, some)
                    self.never[both] = self.never[mask] & self.never[some]
                    some = both
                mask = some
        elif wide > span:
            mask = f"<{', '.join([f'i1 {str(p < span).lower()}' for p in range(wide)])}>"
            self.never[mask] = frozenset(range(span, wide))
        x = self._neighbours(place, at, mask, wide, hint)
        ty = vector_text(memory_type(place.dtype), wide)
        indices = ", ".join([f"i32 {p}" for p in places])
        got = self.pure(f"shufflevector {ty} {x}, {ty} poison, <{lanes} x i32> <{indices}>", x)
        v = self._from_memory(got, place, lanes)
        return v if condition is None else self.select(condition, v, other or constant(0, place.dtype))

    def _shifted(self, place: Place, at: Address, elements: int) -> Address:
        if not elements:
            return at
        element, size = memory_type(place.dtype), place.dtype.itemsize
        ref = self.pure(f"getelementptr {element}, ptr {at.ref}, i64 {elements}", at.ref, hint="p")
        return at._replace(ref=ref, align=gcd(at.align, elements * size))

    def _reverse(self, ref: str, element: str) -> str:
        ty, n = vector_text(element, self.lanes), self.lanes
        return self.pure(f"shufflevector {ty} {ref}, {ty} poison, <{n} x i32> {reversed_lanes(n)}", ref)

    def select(self, condition: Val, yes: Val, no: Val) -> Val:
        """`yes` where the condition holds, else `no`."""
        if condition.const is not None:
            return yes if condition.const else no
        lanes = max(condition.lanes, yes.lanes, no.lanes)
        a, b = self.use(yes, lanes), self.use(no, lanes)
        if a == b:
            return yes
        ty = type_text(yes.dtype, lanes)
        ref = self.pure(f"select {condition.type} {condition.ref}, {ty} {a}, {ty} {b}", condition.ref, a, b)
        return Val(ref, yes.dtype, lanes)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()
