"""What a lazy program recorded, as nodes: made all at once, or only those behind a value that stays. And
segments, stretches of a program that are replayed as one step.

A program's record lists places of the trie, which know the op that leads to them; nodes are made only if
something looks at them: a program met for the first time, a walk back that is not known, a graph that
outlives its program.

A walk back through a graph and an optimiser's step record the same ops whenever they start at the same place
of the trie with the same operands. The first time the procedure runs and what it records is noted; from then
on its results appear without it.

Used by recording.py, which owns the trie, by past.py, and by the callers of `LazyTrace.segment`.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import Any

from ..ir.graph import Node
from .values import REPLACED, Pending, TracedValue, pending

_SLOT = attrgetter("slot")
_NEW: Any = object.__new__


class Segment:
    """What a procedure recorded. The same place of the trie numbers its values alike, so slots are absolute.

    Attributes:
        steps: the places of its ops in the trie.
        slot, size: how many values the program has before and after it.
        literals: its Python numbers: slot, value, place in the trie.
        outputs: slots of what it gave, None where it gave nothing.
        made: slot, type, index and `requires_grad` of what it gave, where nothing may stand for it yet.
        flags: `requires_grad` of values that got another one than their op gave them.
        note: what else it gave.
        end: where it leads in the trie.
    """

    __slots__ = ("end", "flags", "literals", "made", "note", "outputs", "size", "slot", "steps")

    def __init__(
        self, trace: Any, start: int, first: int, literals: int, outputs: list[Any], note: Any
    ) -> None:
        slots, values = trace.slots, trace.values
        self.note = note
        self.steps = [s for e in trace.record[start:] for s in (e.steps if e.__class__ is Segment else (e,))]
        self.literals = trace.literals[literals:]
        self.slot = first
        self.size = len(values)
        self.outputs = [None if v is None else slots[v] for v in outputs]
        self.flags: dict[int, bool] = {}
        for step in self.steps:
            for slot, flag in enumerate(step.grads, step.slot):
                if values[slot] is not None and values[slot].requires_grad is not flag:
                    self.flags[slot] = values[slot].requires_grad
        inputs = {slot for slot, _, _ in trace.inputs}
        self.made = [
            (s, values[s].type, values[s].index, values[s].requires_grad)
            for s in dict.fromkeys(self.outputs)
            if s is not None and s not in inputs
        ]
        self.end = trace.at_node

    def replay(self, trace: Any) -> list[TracedValue | None]:
        """Makes the outputs as if the procedure had run."""
        try:
            return self._replay(trace)
        except BaseException:  # an interrupt
            trace.repair()
            raise

    def _replay(self, trace: Any) -> list[TracedValue | None]:
        values, slots = trace.values, trace.slots
        values.extend([None] * (self.size - len(values)))
        trace.literals += self.literals
        for slot, type, index, flag in self.made:
            if values[slot] is None:
                value = values[slot] = _NEW(Pending)  # `pending`, in less time
                value.type = type
                value.index = index
                value.name = None
                value.trace = trace
                value.buffer = None
                value.requires_grad = flag
                value.leaf = None
                value.storage = None
                value.freed = False
                slots[value] = slot
        if self.flags:
            trace.flags.update(self.flags)
        trace.at_node = self.end
        trace.record.append(self)
        return [None if s is None else values[s] for s in self.outputs]


def put_all(trace: Any, tensors: list[Any], made: list[Any]) -> list[tuple[Any, Any]]:
    """Puts what a replay gave into tensors, as writes under `no_grad` do (`Storage.put`), where that is not
    None; gives the pairs that need another way."""
    slots, flags, handles, undo, left = trace.slots, trace.flags, trace.handles, trace.undo, []
    for t, value in zip(tensors, made):
        if value is None:
            continue
        storage = t._storage
        old = storage.value
        leaf = storage.leaf
        if t._view is not None or storage.shared is not None or (leaf is None and old.requires_grad):
            left.append((t, value))
            continue
        if leaf is not None:
            value.requires_grad = True
            value.leaf = leaf
            if flags.get(slots[value]) is not True:
                trace.flagged(value)
        storage.value = value
        REPLACED[0] += 1
        storage.version += 1
        value.storage = ref = storage.ref
        handles.append(ref)
        if old.trace is not trace:
            undo.append((storage, old))
    return left


def fill(trace: Any) -> None:
    """Makes the nodes of what was recorded since they were last made."""
    record = trace.record
    n = len(record)
    if trace.filled == n:
        return
    numbers = {slot: value for slot, value, _ in trace.literals}
    for entry in record[trace.filled : n]:
        if entry.__class__ is Segment:
            trace.made += [make_node(trace, step, numbers, entry.flags) for step in entry.steps]
        else:
            trace.made += [make_node(trace, entry, numbers, {})]
        trace.filled += 1  # (no call since the nodes were added: an interrupt can't come in between)


def end_of(entry: Any) -> int:
    """How many values a program has after an entry of its record."""
    return entry.size if entry.__class__ is Segment else entry.slot + len(entry.types)


def place_of(record: list[Any], slot: int) -> tuple[Any, dict[int, bool]]:
    """The place whose op made the value of a slot, and the flags of the segment it is in."""
    entry = record[bisect_right(record, slot, key=_SLOT) - 1]
    if entry.__class__ is Segment:
        return entry.steps[bisect_right(entry.steps, slot, key=_SLOT) - 1], entry.flags
    return entry, {}


def stand_in(trace: Any, slot: int) -> Pending:
    """Makes the value of a slot that a replay left out."""
    place, flags = place_of(trace.record, slot)
    i = slot - place.slot
    flag: Any = flags.get(slot, place.grads[i])
    value = trace.values[slot] = pending(place.types[i], trace, flag)
    value.index = i
    trace.slots[value] = slot
    return value


def make_node(trace: Any, place: Any, numbers: dict[int, Any], flags: dict[int, bool]) -> Node:
    """The node of a recorded op."""
    values, first = trace.values, place.slot
    attrs = trace.own_attrs.get(first, place.attrs)
    if first in numbers:
        attrs = {**attrs, "value": numbers[first]}
    operands = tuple([values[s] or stand_in(trace, s) for s in place.operands])
    node = Node(place.op, operands, attrs, place.loc, place.phase, place.regions)
    results = []
    for i in range(len(place.types)):
        value: Any = values[first + i] or stand_in(trace, first + i)
        value.node = node
        results.append(value)
    node.results = tuple(results)
    return node
