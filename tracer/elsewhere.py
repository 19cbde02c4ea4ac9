"""Values that are pending in another thread's trace, computed on their own. Used by the lazy trace."""

from __future__ import annotations

from typing import Any

from ..ir.graph import Graph, Node, Value
from ..ir.types import placed_type
from ..runtime.buffers import Buffer, copy_of
from ..runtime.executable import interpret
from .values import TracedValue


def computed_alone(value: TracedValue) -> Buffer | None:
    """The contents of a value that is pending in another thread's trace, computed from the recorded nodes
    that lead to it without touching that trace; None if the trace ended meanwhile."""
    trace: Any = value.trace
    if trace is not None:
        trace.fill()
    operands: dict[Node, tuple[Any, ...]] = {}
    inputs: dict[Any, Buffer] = {}
    order: list[Node] = []
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        v, visited = stack.pop()
        if visited:
            order.append(v.node)
        elif v not in inputs and v.node not in operands:
            buffer, node = getattr(v, "buffer", None), v.node  # a plain Value once it was let go
            if buffer is not None:
                inputs[v] = buffer
            elif node is None:
                return None
            else:
                operands[node] = node.operands
                stack.append((v, True))
                stack.extend((o, False) for o in node.operands)
    # Nodes are taken apart after their results left the trace: if all are still in it, all were whole.
    nodes: Any = order
    if any(not n.results or any(r.trace is not trace for r in n.results) for n in nodes):
        return None
    graph = Graph("elsewhere")
    env: dict[Any, Value] = {v: graph.add_input(v.type) for v in inputs}
    for node in order:
        copy = Node(
            node.op, tuple(env[o] for o in operands[node]), node.attrs, node.loc, node.phase, node.regions
        )
        copy.results = tuple(Value(placed_type(r.type, None), copy, i) for i, r in enumerate(node.results))
        for r, c in zip(node.results, copy.results):
            env.setdefault(r, c)
        graph.nodes.append(copy)
    graph.outputs = [env[value]]
    (out,), _ = interpret(graph, [b.array for b in inputs.values()])
    made = copy_of(out, value.type.dtype)
    device = value.type.device
    return made if device is None else made.on(device)
