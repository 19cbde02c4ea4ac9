"""Regions as things: a key by content, inlining, and building new ones out of old. Used by the gradients
and the passes of control flow, and by the tracer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .builder import Builder
from .graph import Graph, Node, Value
from .types import Type

Key = tuple[Any, ...]


def exact(value: Any) -> Any:
    """A key that, unlike ==, tells 0.0 from -0.0 and 0, and has nan equal nan."""
    kind = type(value)
    if kind is float:
        return value.hex()
    if kind is bool:
        return (bool, value)
    if kind is tuple:
        return tuple(map(exact, value))
    return value


def structure(graph: Graph) -> Key:
    """Equal for graphs that compute the same in the same way: names, locations and phases are left out."""
    number = {v: i for i, v in enumerate(graph.inputs)}
    rows: list[Any] = []
    for node in graph.nodes:
        attrs = tuple([(k, exact(v)) for k, v in node.attrs.items()])
        row: Any = (node.op, tuple([number[v] for v in node.operands]), attrs)
        if node.regions:
            row = (*row, tuple(map(structure, node.regions)))
        rows.append(row)
        for r in node.results:
            number[r] = len(number)
    return (tuple([v.type for v in graph.inputs]), tuple(rows), tuple([number[v] for v in graph.outputs]))


def inline(
    b: Any, graph: Graph, operands: Sequence[Value], env: dict[Value, Value] | None = None
) -> list[Any]:
    """Emits the ops of `graph` on `operands`; gives its outputs.

    Args:
        env: filled with what every value of `graph` became.
    """
    env = {} if env is None else env
    env.update(zip(graph.inputs, operands, strict=True))
    for node in graph.nodes:
        with b.at(node.loc or b.loc, b.phase):
            made = b.emit(node.op, tuple([env[v] for v in node.operands]), node.attrs, node.regions)
        env.update(zip(node.results, made if isinstance(made, tuple) else (made,)))
    return [env[v] for v in graph.outputs]


def build(
    name: str, types: Iterable[Type], fn: Callable[..., Iterable[Value]], phase: str = "forward"
) -> Graph:
    """A region of `fn(b, inputs) -> outputs`."""
    graph = Graph(name)
    inputs = [graph.add_input(t) for t in types]
    b = Builder(graph)
    b.phase = phase
    graph.outputs = list(fn(b, inputs))
    return graph


def part(
    graph: Graph,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    name: str = "",
) -> Graph:
    """The part of `graph` that computes `outputs` from `inputs` (any of its values), as a graph of its
    own."""
    known = set(inputs)
    wanted = [v for v in outputs if v not in known]
    needed: set[Node] = set()
    while wanted:
        node = wanted.pop().node
        if node is None:
            raise ValueError("part() of a graph: an output depends on an input that is not given")
        if node not in needed:
            needed.add(node)
            wanted.extend(v for v in node.operands if v not in known)
    out = Graph(name or graph.name)
    env = {v: out.add_input(v.type, v.name) for v in inputs}
    graft(out, (node for node in graph.nodes if node in needed), env)
    out.outputs = [env[v] for v in outputs]
    return out


def graft(out: Graph, nodes: Iterable[Node], env: dict[Value, Value]) -> None:
    """Adds copies of `nodes` to `out`, with their locations, phases and names. `env` holds what their
    operands became, and gets their results; what it holds already stays."""
    for node in nodes:
        copy = Node(
            node.op, tuple([env[v] for v in node.operands]), node.attrs, node.loc, node.phase, node.regions
        )
        copy.results = tuple([Value(r.type, copy, r.index, r.name) for r in node.results])
        for r, c in zip(node.results, copy.results):
            env.setdefault(r, c)
        out.nodes.append(copy)


def dependent(graph: Graph, roots: Iterable[Value]) -> set[Value]:
    """The values of `graph` that depend on any of `roots`, those included."""
    found = set(roots)
    for node in graph.nodes:
        if any(v in found for v in node.operands):
            found.update(node.results)
    return found


def unshared(graph: Graph, seen: set[int] | None = None) -> Graph:
    """`graph` where no two ops have the same graph object for a region; itself where that is so."""
    seen = set() if seen is None else seen
    changed: dict[Node, tuple[Graph, ...]] = {}
    for node in graph.nodes:
        regions = []
        for region in node.regions:
            fresh = _copied(region) if id(region) in seen else region
            seen.add(id(fresh))
            regions.append(unshared(fresh, seen))
        if any(new is not old for new, old in zip(regions, node.regions)):
            changed[node] = tuple(regions)
    if not changed:
        return graph
    out = Graph(graph.name)
    out.inputs = graph.inputs
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        operands = tuple([env.get(v, v) for v in node.operands])
        if node in changed or operands != node.operands:
            copy = node.over(operands, changed.get(node))
            env.update(zip(node.results, copy.results))
            node = copy
        out.nodes.append(node)
    out.outputs = [env.get(v, v) for v in graph.outputs]
    out.updates = {k: env.get(v, v) for k, v in graph.updates.items()}
    return out


def _copied(graph: Graph) -> Graph:
    out = Graph(graph.name)
    env = {v: out.add_input(v.type, v.name) for v in graph.inputs}
    graft(out, graph.nodes, env)
    out.outputs = [env[v] for v in graph.outputs]
    return out


def deep_nodes(graph: Graph) -> Iterable[Node]:
    """All nodes, those of regions included."""
    for node in graph.nodes:
        yield node
        for region in node.regions:
            yield from deep_nodes(region)
