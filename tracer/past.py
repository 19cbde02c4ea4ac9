"""The nodes behind values that outlive their program: what a later backward, or `grad_fn`, looks at.

While something can still be walked back, its nodes are made when the program ends. Once a backward has freed
all of them, only names and the ways to the leaves are left; these are made when somebody looks, which hardly
anybody does: a training loop's loss outlives each of its steps.

Used by lazy.py, when a program has run, and by `Pending`, whose node is asked for.
"""

from __future__ import annotations

from typing import Any

from ..ir.dtypes import DType
from ..ir.graph import Node, Value
from ..ir.types import Type
from ..runtime.buffers import Buffer, empty
from .segments import make_node, place_of, stand_in
from .values import Pending, TracedValue, ghost, has_node


class Plan:
    """What is the same in every run of a program.

    Attributes:
        places: (place, flags of its segment) of the nodes, operands first.
        entries: if all of them were freed, of each: the place, its operands' types, `requires_grad` and
            `freed` of its results; else None.
        inputs: slots of the leaves, and of values from outside the program, that ways lead to.
        numbers: Python numbers that nodes hold: position among the trace's literals, slot, type.
    """

    __slots__ = ("entries", "inputs", "numbers", "places")

    def __init__(self, trace: Any, slots: list[int]) -> None:
        self.places = _behind(trace, slots)
        self.entries: list[tuple[Any, tuple[Type, ...], list[bool], list[Any]]] | None = []
        self.inputs: list[int] = []
        self.numbers: list[tuple[int, int, Type]] = []
        inside = {s for place, _ in self.places for s in range(place.slot, place.slot + len(place.types))}
        values = trace.values
        for place, _ in self.places:
            results = values[place.slot : place.slot + len(place.types)]
            freed = [v.freed for v in results]
            open_ = [v for v in results if v.requires_grad and v.freed is not True and v.leaf is None]
            if trace.own_attrs or (open_ and not freed[0]):
                self.entries = None
                break
            operands = [values[s] or stand_in(trace, s) for s in place.operands]
            types = tuple([v.type for v in operands])
            self.entries.append((place, types, [v.requires_grad for v in results], freed))
            if open_:
                ends = [s for s, v in zip(place.operands, operands) if s not in inside and v.requires_grad]
                self.inputs += ends
                held = set(place.operands)
                numbers = enumerate(trace.literals)
                self.numbers += [(i, s, number.types[0]) for i, (s, _, number) in numbers if s in held]

    def nodes(self, trace: Any) -> list[Node]:
        """The nodes themselves. Numbers have none."""
        return [make_node(trace, place, {}, flags) for place, flags in self.places]


class Past:
    """The freed nodes of one run, not made yet.

    Args:
        slots: of the values that outlive the program.
    """

    __slots__ = ("_entries", "_found", "_numbers", "_stores")

    def __init__(self, trace: Any, plan: Plan, slots: list[int]) -> None:
        values = trace.values
        self._entries: Any = plan.entries
        self._found = {s: _without_contents(values[s] or stand_in(trace, s)) for s in plan.inputs}
        self._numbers = [(s, trace.literals[i][1], t) for i, s, t in plan.numbers]
        self._stores: list[tuple[int, Any]] = []
        for slot in slots:
            v = values[slot]
            if not v.requires_grad or v.leaf is not None:
                v.node = None
            else:
                v.past = (self, slot)
                self._stores.append((slot, v.storage))  # (not the value, which holds this)

    def recall(self, slot: int, value: Pending) -> None:
        """Makes the nodes for those of the values that are still there, `value` among them."""
        known: dict[int, TracedValue] = dict(self._found)
        for s, number, type in self._numbers:
            known[s] = TracedValue(type, buffer=scalar_buffer(number, type.dtype))
        for s, ref in self._stores:
            store = ref() if ref is not None else None
            v: Any = store.value if store is not None else None
            if v.__class__ is Pending and v.past == (self, s) and not has_node(v):
                known[s] = v
        known[slot] = value
        for place, types, flags, freed in self._entries:
            results = []
            for i, (type, flag, free) in enumerate(zip(place.types, flags, freed)):
                v = known.get(place.slot + i)
                if v is None:
                    v = known[place.slot + i] = TracedValue(type, None, i, None, None, flag)
                    v.freed = free
                results.append(v)
            cut = all(f is True or not flag for flag, f in zip(flags, freed))
            if not cut:
                pairs = zip(place.operands, types)
                operands: Any = [known.get(s) or TracedValue(t) for s, t in pairs]
            else:
                operands = [Value(t) for t in types] if callable(place.op.grad_name) else ()
            node = Node(place.op, tuple(operands), place.attrs, place.loc, place.phase, place.regions)
            node.results = () if cut else tuple(results)
            for v in results:
                if v.requires_grad or not cut:
                    v.node = node
        for v in known.values():
            if v.__class__ is Pending and not has_node(v):
                v.node = None


def scalar_buffer(value: Any, dtype: DType) -> Buffer:
    """A Python number's memory."""
    b = empty(Type(dtype, ()))
    b.array[()] = value
    return b


def _without_contents(v: TracedValue) -> TracedValue:
    return ghost(v) if v.leaf or (v.type.shape and has_node(v) and v.node is None) else v


def _behind(trace: Any, slots: list[int]) -> list[tuple[Any, dict[int, bool]]]:
    """Where the nodes behind values that outlive the program were recorded, operands first, as far as a later
    backward or `grad_fn` may look and they were not made yet; each with the flags of its segment."""
    found: dict[int, Any] = {}
    stack = list(slots)
    while stack:
        slot = stack.pop()
        v: Any = trace.values[slot] or stand_in(trace, slot)
        if v.trace is not trace or not v.requires_grad or v.leaf is not None or has_node(v):
            continue
        place, flags = place_of(trace.record, slot)
        if place.slot not in found:
            found[place.slot] = place, flags
            if v.freed is not True:
                stack.extend(place.operands)
    return [found[slot] for slot in sorted(found)]
