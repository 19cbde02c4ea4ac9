"""`register` buffers of the code generator. Where an index is constant, a buffer's elements are followed as values, and
memory (a stack slot, which LLVM turns into registers) sees them only where control flow splits or joins. So an unrolled
accumulation is a chain of operations and nothing else. Used by codegen_expr (loads) and codegen (the rest).
"""

from __future__ import annotations

from ...ir.expr import Expr
from ...ir.loops import Buffer
from .codegen_index import LANE
from .codegen_memory import MemoryWriter
from .codegen_text import Module, Place, Val, memory_type, vector_text

Slot = tuple[int, int]  # first element, lanes (0: a scalar)


class Held:
    """What is known of one buffer's contents.

    Attributes:
        place: where it is in memory.
        values: by slot; slots don't overlap.
        dirty: slots that memory does not have yet.
    """

    __slots__ = ("dirty", "place", "values")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.values: dict[Slot, Val] = {}
        self.dirty: dict[Slot, None] = {}


class RegisterWriter(MemoryWriter):
    """Adds `register` buffers."""

    def __init__(self, module: Module) -> None:
        super().__init__(module)
        self._held: dict[str, Held] = {}

    def slot(self, buffer: Buffer, index: tuple[Expr, ...], place: Place) -> Slot | None:
        """What an access touches, if that is constant and its lanes are neighbours or one element."""
        env = self.env
        const, atoms = self.flat(buffer, index, place).linear
        stride = 0 if place.private is None else 1
        for atom, k in atoms:
            bound = env.get(atom)
            if type(bound) is int:
                const += k * bound
            elif bound is LANE:
                stride += k
            else:
                return None
        if not stride or not self.lanes:
            return const, 0
        return (const, self.lanes) if stride == 1 else None

    def register_load(self, buffer: Buffer, index: tuple[Expr, ...], place: Place) -> Val | None:
        """The value there; None if the index is not constant (then memory is up to date)."""
        slot = self.slot(buffer, index, place)
        held = self._held.get(place.ref)
        if slot is None:
            if held is not None:
                self._flush(held)
            return None
        if held is None:
            held = self._held[place.ref] = Held(place)
        v = held.values.get(slot)
        if v is None:
            self._make_room(held, slot)
            ref, ty, align = self._memory(place, slot)
            v = self._from_memory(self.load(f"load {ty}, ptr {ref}, align {align}", place.group, ref), place, slot[1])
            held.values[slot] = v
        return v

    def register_store(self, buffer: Buffer, index: tuple[Expr, ...], value: Val, condition: Val | None) -> bool:
        """Takes the value; False if it must go to memory (which is up to date then)."""
        place = self.place(buffer)
        slot = self.slot(buffer, index, place)
        held = self._held.get(place.ref)
        if slot is None or condition is not None:
            if held is not None:
                self._flush(held)
            return False
        if held is None:
            held = self._held[place.ref] = Held(place)
        if value.lanes and not slot[1]:  # every lane stores to one element: the last one wins
            ref = self.pure(f"extractelement {value.type} {value.ref}, i64 {value.lanes - 1}", value.ref)
            value = Val(ref, value.dtype)
        if slot not in held.values:
            self._make_room(held, slot)
        held.values[slot] = value
        held.dirty[slot] = None
        return True

    def drop(self, place: Place) -> None:
        """A buffer's contents are undefined from here on."""
        self._held.pop(place.ref, None)

    def flush(self) -> None:
        """Brings memory up to date and forgets: control flow splits or joins here."""
        for held in self._held.values():
            if held.dirty:
                self._flush(held)
        self._held.clear()

    def _make_room(self, held: Held, slot: Slot) -> None:
        """Slots that overlap a new one go to memory."""
        low, high = slot[0], slot[0] + max(slot[1], 1)
        for first, lanes in held.values:
            if first < high and low < first + max(lanes, 1):
                self._flush(held)
                return

    def _flush(self, held: Held) -> None:
        place = held.place
        for slot in held.dirty:
            ref, ty, align = self._memory(place, slot)
            x = self._to_memory(held.values[slot], slot[1])
            self.regions[-1].lines.append(f"  store {ty} {x}, ptr {ref}, align {align}")
        if held.dirty:
            self.forget((place.group,))
        held.values.clear()
        held.dirty.clear()

    def _memory(self, place: Place, slot: Slot) -> tuple[str, str, int]:
        """(pointer, type, alignment) of a slot."""
        first, lanes = slot
        element = memory_type(place.dtype)
        ty = vector_text(element, lanes)
        ref, offset = place.ref, first * place.dtype.itemsize
        if first:
            ref = self.pure(f"getelementptr {element}, ptr {ref}, i64 {first}", ref, hint="p")
        if place.slots is not None:
            place.slots[ref, ty] = None
        return ref, ty, (offset & -offset) if offset % place.align else place.align
