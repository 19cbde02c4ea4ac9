"""Recorded nodes as a graph: what a trace hands to the compiler. Used by the traces."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Graph, Node, Value
from ..ir.op import REGISTRY
from ..ir.types import placed_type
from .placement import TO_DEVICE

_ALIAS = REGISTRY["alias"]


def freeze(
    name: str,
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    updates: Sequence[tuple[Value, Value]] = (),
    names: dict[Value, str] | None = None,
) -> Graph:
    """A Graph of plain IR values from recorded nodes: only what outputs and updates need. It says nothing of
    devices."""
    needed: set[Node] = set()
    wanted = {v.node for v in [*outputs, *(new for _, new in updates)] if v.node is not None}
    env: dict[Value, Value] = {}
    graph = Graph(name)
    for v in inputs:
        env[v] = graph.add_input(v.type, (names or {}).get(v))
    for node in reversed(nodes):
        if node in wanted and not all(r in env for r in node.results):
            needed.add(node)
            wanted.update(v.node for v in node.operands if v.node is not None and v not in env)
    for node in nodes:
        if node not in needed:
            continue
        op, attrs = (_ALIAS, {}) if node.op is TO_DEVICE else (node.op, node.attrs)
        copy = Node(op, tuple(env[v] for v in node.operands), attrs, node.loc, node.phase, node.regions)
        copy.results = tuple(Value(placed_type(r.type, None), copy, i) for i, r in enumerate(node.results))
        for r, c in zip(node.results, copy.results):
            env.setdefault(r, c)
        graph.nodes.append(copy)
    graph.outputs = [env[v] for v in outputs]
    graph.updates = {env[old]: env[new] for old, new in updates}
    return graph
