"""The pass that computes at compile time what depends on small constant tensors only. Numbers, broadcast or
not, are folded by the rewrite rules (ir/rules_scalar.py) already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import Graph, Node, Value
from .interpreter import evaluate
from .op import Op
from .pattern import splat
from .rewrite import Rewriter

if TYPE_CHECKING:
    from .passes import PassOptions

#: Results and everything on the way to them have at most this many elements.
LIMIT = 64
_KINDS = frozenset(("movement", "reduce", "contract", "gather", "scatter"))


def fold(graph: Graph, options: PassOptions | None = None) -> Graph:
    """Replaces ops on constants by constants of up to `LIMIT` elements.

    Positions (`iota`) and arithmetic on them stay: computing those is cheaper than reading them.
    """
    known: set[Value] = set()
    dense: set[Value] = set()  # of them, those that need memory: not numbers, not arithmetic on positions
    inside: list[Node] = []
    for node in graph.nodes:
        if len(node.results) != 1 or node.results[0].type.numel > LIMIT or node.regions:
            continue
        v, op = node.results[0], node.op
        if op.name in ("constant", "iota"):
            if splat(v) is None and op.name == "constant":
                dense.add(v)
        elif not node.operands or not all(x in known for x in node.operands) or not _can_run(op):
            continue
        elif v.type.numel == 1 or _computes(op) or any(x in dense for x in node.operands):
            dense.add(v)
        known.add(v)
        inside.append(node)
    if not any(x.node is not None and x.node.op.name != "constant" for x in dense):
        return graph
    wanted = _frontier(graph, known, dense)
    if not wanted:
        return graph
    program = Graph(graph.name)
    program.nodes, program.outputs = inside, wanted
    arrays, _ = evaluate(program, [])
    return _Constants(graph, dict(zip(wanted, arrays))).run()


def _can_run(op: Op) -> bool:
    return op.scalar is not None or op.kernel in _KINDS


def _computes(op: Op) -> bool:
    """More than arithmetic on positions."""
    return op.kernel not in (None, "movement")


def _frontier(graph: Graph, known: set[Value], dense: set[Value]) -> list[Value]:
    """The values worth computing that something else than their own kind reads."""
    read = dict.fromkeys(v for node in graph.nodes if node.results[0] not in known for v in node.operands)
    read.update(dict.fromkeys(graph.live_outs()))
    return [
        v
        for v in read
        if v in dense and v.node is not None and v.node.op.name != "constant" and splat(v) is None
    ]


class _Constants(Rewriter):
    def __init__(self, source: Graph, values: dict[Value, np.ndarray]) -> None:
        super().__init__(source)
        self.values = values

    def visit(self, node: Node) -> tuple[Value, ...]:
        array = self.values.get(node.results[0])
        if array is None:
            return self.place(node)
        t = node.results[0].type
        wide: Any = array.astype(np.float64) if t.dtype.kind == "f" else array
        if not t.shape:
            return (self.const(wide.item(), t.dtype),)
        return (self.constant(value=tuple(wide.ravel().tolist()), dtype=t.dtype, shape=t.shape),)
