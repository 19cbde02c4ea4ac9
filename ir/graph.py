"""The graph IR: SSA values, op instances (nodes) and graphs. What a program is, before anything is decided
about how it runs. Nodes are built through a `Builder` (ir/builder.py), which infers the result types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from .types import Type, placed_type

if TYPE_CHECKING:
    from .op import Op

PHASES = ("forward", "backward", "update")


class Location(NamedTuple):
    """The user's frame an op came from; prints as `model.py:7`."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line}"


class Value:
    """One SSA value: an input of a graph (`node is None`) or a result of a node.

    Attributes:
        type: its tensor type.
        node: the op instance that makes it, or None for graph inputs.
        index: which result of the node (or which input of the graph) it is.
        name: the name in the text without `%`; None lets the printer number it.
    """

    __slots__ = ("index", "name", "node", "type")

    def __init__(self, type: Type, node: Node | None = None, index: int = 0, name: str | None = None) -> None:
        self.type = type
        self.node = node
        self.index = index
        self.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> Any:
        return self.type.dtype

    def __repr__(self) -> str:
        origin = f"{self.node.op.name}#{self.index}" if self.node is not None else "input"
        return f"<%{self.name or '?'}: {self.type} of {origin}>"


class Node:
    """One op instance.

    Attributes:
        op: the op's record.
        operands: SSA values read.
        attrs: attributes, Python literals, DTypes or tuples of them (hashable).
        results: SSA values made, at least one.
        regions: graphs run by control-flow ops; their inputs are bound from `operands` by the op.
        loc: the user's line, or None for hand-built graphs.
        phase: `forward`, `backward` or `update`.
    """

    __slots__ = ("attrs", "loc", "op", "operands", "phase", "regions", "results")

    def __init__(
        self,
        op: Op,
        operands: tuple[Value, ...],
        attrs: dict[str, Any],
        loc: Location | None = None,
        phase: str = "forward",
        regions: tuple[Graph, ...] = (),
    ) -> None:
        self.op = op
        self.operands = operands
        self.attrs = attrs
        self.results: tuple[Value, ...] = ()
        self.loc = loc
        self.phase = phase
        self.regions = regions

    @property
    def result(self) -> Value:
        """The only result; for ops with one."""
        return self.results[0]

    def over(self, operands: tuple[Value, ...], regions: tuple[Graph, ...] | None = None) -> Node:
        """The same op on other operands of the same types (and with other regions), with own results."""
        regions = self.regions if regions is None else regions
        new = Node(self.op, operands, self.attrs, self.loc, self.phase, regions)
        new.results = tuple([Value(r.type, new, r.index, r.name) for r in self.results])
        return new

    def __repr__(self) -> str:
        return f"<{self.op.name} {', '.join(str(v.type) for v in self.operands)} {self.attrs}>"


class Graph:
    """A program: inputs, nodes in an order where definitions precede uses, outputs, and state updates.

    `updates` maps an input that is state (a parameter, a running mean) to the value it holds after the run;
    the executable writes it back, in place where it can. The IR itself has no mutation.
    """

    __slots__ = ("inputs", "name", "nodes", "outputs", "updates")

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.outputs: list[Value] = []
        self.updates: dict[Value, Value] = {}

    def add_input(self, type: Type, name: str | None = None) -> Value:
        value = Value(placed_type(type, None), None, len(self.inputs), name)
        self.inputs.append(value)
        return value

    def live_outs(self) -> list[Value]:
        """Everything the graph must compute: outputs, then new values of updated inputs."""
        return [*self.outputs, *self.updates.values()]

    @property
    def trains(self) -> bool:
        """Whether an optimiser's step is part of it."""
        return any(n.phase == "update" or any(r.trains for r in n.regions) for n in self.nodes)

    def __str__(self) -> str:
        from .text import print_graph

        return print_graph(self)


def users(graph: Graph) -> dict[Value, list[Node]]:
    """Every value's readers, in node order (a node that reads a value twice is listed twice)."""
    out: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for v in node.operands:
            out.setdefault(v, []).append(node)
    return out


def toposort(roots: Iterable[Value]) -> list[Node]:
    """The nodes that `roots` depend on, definitions before uses; iterative, so depth is no limit."""
    order: list[Node] = []
    seen: set[int] = set()
    for root in roots:
        if root.node is None or id(root.node) in seen:
            continue
        stack: list[tuple[Node, int]] = [(root.node, 0)]
        seen.add(id(root.node))
        while stack:
            node, i = stack.pop()
            while i < len(node.operands):
                producer = node.operands[i].node
                i += 1
                if producer is not None and id(producer) not in seen:
                    seen.add(id(producer))
                    stack.append((node, i))
                    stack.append((producer, 0))
                    break
            else:
                order.append(node)
    return order
