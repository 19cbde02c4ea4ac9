"""Recorded nodes as a graph: what a trace hands to the compiler. Used by the traces."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Graph, Node, Value
from ..ir.interpreter import decomposition
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


def only_wanted(graph: Graph) -> Graph:
    """The graph without what composites compute for results that nobody wants: a generator's state after a
    dropout does not need what was dropped. For the interpreter, which runs ops as they are; passes do so
    anyway."""
    live = set(graph.live_outs())
    kept: list[Node] = []
    stands: dict[Value, Value] = {}  # what took the place of results of composites
    todo = list(graph.nodes)
    while todo:
        node = todo.pop()
        wanted = [r for r in node.results if r in live]
        if not wanted:
            continue
        if node.op.decompose is None or len(wanted) == len(node.results):
            kept.append(node)
            live.update(node.operands)
            continue
        parts = decomposition(node)
        env: dict[Value, Value] = dict(zip(parts.inputs, node.operands))
        for part in parts.nodes:
            operands = tuple([env[v] for v in part.operands])
            copy = part.over(operands)
            copy.loc, copy.phase = node.loc, node.phase
            env.update(zip(part.results, copy.results))
            todo.append(copy)
        stands.update({r: env[v] for r, v in zip(node.results, parts.outputs)})
        live.update([stands[r] for r in wanted])
    if stands:
        graph.nodes = kept[::-1]
        for node in graph.nodes:
            node.operands = tuple([_standing(v, stands) for v in node.operands])
        graph.outputs = [_standing(v, stands) for v in graph.outputs]
        graph.updates = {old: _standing(new, stands) for old, new in graph.updates.items()}
    return graph


def _standing(v: Value, stands: dict[Value, Value]) -> Value:
    while v in stands:
        v = stands[v]
    return v
