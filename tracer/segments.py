"""Segments: stretches of a lazy program that are replayed as one step.

A walk back through a graph and an optimiser's step record the same ops whenever they start at the same place
of the trie with the same operands. The first time the procedure runs and what it records is noted; from then
on its results appear without it. The nodes between are made only if a program that holds them is new.

Used by recording.py, which owns the trie, and by the callers of `LazyTrace.segment`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ir.graph import Graph, Location, Node
from ..ir.op import Op
from ..ir.types import Type
from .values import TracedValue


class Step(NamedTuple):
    """One recorded op, in slots of the program."""

    op: Op
    operands: tuple[int, ...]
    attrs: dict[str, Any]
    results: tuple[int, ...]
    types: tuple[Type, ...]
    loc: Location | None
    phase: str
    regions: tuple[Graph, ...]


class Segment:
    """What a procedure recorded. The same place of the trie numbers its values alike, so slots are absolute.

    Attributes:
        steps: its ops.
        literals: its Python numbers: slot, value, place in the trie.
        size: how many values the program has after it.
        outputs: slots of what it gave, None where it gave nothing.
        note: what else it gave.
        end: where it leads in the trie.
    """

    __slots__ = ("end", "literals", "note", "outputs", "size", "steps", "types")

    def __init__(
        self, trace: Any, nodes: int, literals: int, outputs: list[TracedValue | None], note: Any
    ) -> None:
        slots = trace.slots
        self.note = note
        self.steps = [
            Step(
                n.op,
                tuple([slots[v] for v in n.operands]),
                n.attrs,
                tuple([slots[v] for v in n.results]),
                tuple([v.type for v in n.results]),
                n.loc,
                n.phase,
                n.regions,
            )
            for n in trace.nodes[nodes:]
        ]
        self.literals = trace.literals[literals:]
        self.size = len(trace.values)
        self.outputs = [None if v is None else slots[v] for v in outputs]
        made = {s for step in self.steps for s in step.results}
        self.types = {s: trace.values[s].type for s in self.outputs if s in made}
        self.end = trace.at_node

    def replay(self, trace: Any) -> list[TracedValue | None]:
        """Makes the outputs as if the procedure had run."""
        values, slots = trace.values, trace.slots
        trace.gaps.append((len(trace.nodes), self))
        values.extend([None] * (self.size - len(values)))
        trace.literals.extend(self.literals)
        for slot, type in self.types.items():
            value = values[slot] = TracedValue(type, None, 0, trace)
            slots[value] = slot
        trace.at_node = self.end
        return [None if s is None else values[s] for s in self.outputs]


def fill(trace: Any) -> None:
    """Makes the nodes that replays left out."""
    if not trace.gaps:
        return
    values, slots = trace.values, trace.slots
    nodes: list[Node] = []
    done = 0
    for position, segment in trace.gaps:
        nodes += trace.nodes[done:position]
        done = position
        for step in segment.steps:
            operands = tuple([values[s] for s in step.operands])
            node = Node(step.op, operands, step.attrs, step.loc, step.phase, step.regions)
            results = []
            for i, (slot, type) in enumerate(zip(step.results, step.types)):
                value = values[slot]
                if value is None:
                    value = values[slot] = TracedValue(type, None, i, trace)
                    slots[value] = slot
                value.node, value.index = node, i
                results.append(value)
            node.results = tuple(results)
            nodes.append(node)
    trace.nodes = nodes + trace.nodes[done:]
    trace.gaps = []
