"""Forward-mode differentiation, graph to graph: how a small change of the inputs changes every result.

The tangents of a node's results come from its op's `jvp`, where it has one. Nearly none needs one: of an
elementwise op the gradient rule is its diagonal Jacobian, what moves elements moves tangents, a composite is
its parts, and of any other op the gradient rule is linear in the gradient, so transposing it gives the
forward rule (Radul et al. 2022 go the other way). What is derived is kept, by op, attributes and types.

`push_forward` adds tangents to a program that is being built; `jvp` makes a new graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .builder import Builder
from .errors import GradError
from .grad import GradNode, backward, vjp
from .graph import Graph, Node, Value, toposort
from .regions import exact
from .regions import inline as inline
from .types import Type

Tangents = tuple["Value | None", ...]


def zeros(b: Builder, t: Type) -> Value:
    """A tensor of zeros."""
    return b.full(shape=t.shape, value=t.dtype.number(0), dtype=t.dtype)


def push(b: Builder, node: Node, tangents: Sequence[Value | None]) -> Tangents:
    """The tangents of one node's results, from those of its operands (None: zero). `node` is of the program
    that `b` builds.

    Raises GradError for a differentiable op that has neither a gradient nor a forward rule.
    """
    op = node.op
    none: Tangents = (None,) * len(node.results)
    needs = tuple(t is not None for t in tangents)
    if not any(needs) or (not op.differentiable and op.jvp is None):
        return none
    with b.at(node.loc, node.phase):
        if op.jvp is not None:
            made = op.jvp(b, GradNode(node, needs), *tangents)
            return made if isinstance(made, tuple) else (made,)
        if op.decompose is not None and op.grad is None:
            return _through_decomposition(b, node, tangents)
        attrs = tuple([(k, exact(v)) for k, v in node.attrs.items()])
        key = (op, attrs, tuple([v.type for v in node.operands]), needs)
        derived = _DERIVED.get(key)
        if derived is None:
            derived = _DERIVED[key] = derive(node, needs)
        graph, numbers = derived
        given = [t for t in tangents if t is not None]
        outs = inline(b, graph, [*node.operands, *node.results, *given])
        return tuple(None if k is None else outs[k] for k in numbers)


#: Forward rules that were derived: a graph of operands, results and tangents, and which of its outputs is
#: the tangent of which result.
_DERIVED: dict[Any, tuple[Graph, tuple[int | None, ...]]] = {}


def derive(node: Node, needs: tuple[bool, ...]) -> tuple[Graph, tuple[int | None, ...]]:
    """The forward rule that follows from a node's op: a graph on its operands, results and the tangents of
    the needed operands, and for each result which output is its tangent."""
    graph = Graph(node.op.name)
    b = Builder(graph)
    dry = Node(node.op, tuple([graph.add_input(v.type) for v in node.operands]), node.attrs, node.loc)
    dry.results = tuple([graph.add_input(r.type) for r in node.results])
    tangents: Tangents = tuple(
        graph.add_input(v.type) if need else None for v, need in zip(node.operands, needs)
    )
    if node.op.scalar is not None:
        found = (_diagonal(b, dry, needs, tangents),)
    elif node.op.kernel == "movement":
        found = (_moved(b, dry, tangents),)
    else:
        found = _transposed(b, dry, needs, tangents)
    numbers: list[int | None] = []
    for t in found:
        numbers.append(None if t is None else len(graph.outputs))
        if t is not None:
            graph.outputs.append(t)
    graph.nodes = toposort(graph.outputs)
    return graph, tuple(numbers)


def _diagonal(b: Builder, n: Node, needs: tuple[bool, ...], tangents: Tangents) -> Value | None:
    """An elementwise op: the rule that takes a gradient back along the diagonal takes a tangent along it."""
    op, out = n.op, n.results[0].type
    if op.grad is None or out.dtype.kind != "f":
        return None
    total: Value | None = None
    for k, t in enumerate(tangents):
        if t is None:
            continue
        t = b.cast_to(t, out.dtype)
        if t.type.shape != out.shape:
            t = b.expand(t, shape=out.shape)
        only = tuple(i == k for i in range(len(needs)))
        entry: Any = op.grad(b, GradNode(n, only), t)[k]
        if callable(entry):
            entry = entry()
        if entry is None:
            continue
        entry = b.cast_to(entry, out.dtype)
        total = entry if total is None else b.add(total, entry)
    if total is not None and total.type.shape != out.shape:
        total = b.expand(total, shape=out.shape)
    return total


def _moved(b: Builder, n: Node, tangents: Tangents) -> Value | None:
    """An op that moves elements, on the tangents; what it fills in does not change."""
    attrs = {**n.attrs, "value": 0.0} if "value" in n.op.attr_defaults else n.attrs
    given = tuple([zeros(b, v.type) if t is None else t for v, t in zip(n.operands, tangents)])
    made = b.emit(n.op, given, attrs)
    assert isinstance(made, Value)
    return made


def _transposed(b: Builder, n: Node, needs: tuple[bool, ...], tangents: Tangents) -> Tangents:
    """The derivative of <gradient(u), tangent> with respect to u, in which it is linear: u itself, a value
    that nothing makes, is in no program that remains."""
    us = tuple(Value(r.type) if r.type.dtype.kind == "f" else None for r in n.results)
    seeds: dict[Value, Value] = {}
    for g, t in zip(vjp(b, n, needs, us), tangents):
        if g is not None and t is not None:
            seeds[g] = b.add(seeds[g], t) if g in seeds else t
    found = backward(b, seeds, [u for u in us if u is not None])
    made = tuple(None if u is None else found.get(u) for u in us)
    if any(v in us for node in toposort(v for v in made if v is not None) for v in node.operands):
        raise GradError(
            f"the gradient rule of {n.op.name} is not linear in the gradient, so it has no forward mode"
        )
    return made


def _through_decomposition(b: Builder, node: Node, tangents: Sequence[Value | None]) -> Tangents:
    """A composite without a gradient rule of its own: its parts, emitted here with their tangents."""
    op = node.op
    assert op.decompose is not None
    graph = Graph(op.name)
    inputs = [graph.add_input(v.type) for v in node.operands]
    made = op.decompose(Builder(graph), *inputs, **node.attrs)
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    graph.nodes = toposort(graph.outputs)
    env = dict(zip(inputs, node.operands))
    moving = {i: t for i, t in zip(inputs, tangents) if t is not None}
    copy_with_tangents(b, graph, env, moving)
    return tuple(moving.get(v) for v in graph.outputs)


def copy_with_tangents(
    b: Builder, graph: Graph, env: dict[Value, Value], tangents: dict[Value, Value]
) -> None:
    """Emits a graph's nodes into `b`, and their tangents beside them, both found by the graph's values."""
    for node in graph.nodes:
        operands = tuple([env[v] for v in node.operands])
        with b.at(node.loc or b.loc, node.phase):
            made = b.emit(node.op, operands, node.attrs, node.regions)
        results = made if isinstance(made, tuple) else (made,)
        env.update(zip(node.results, results))
        given = [tangents.get(v) for v in node.operands]
        if any(t is not None for t in given):
            copy = Node(node.op, operands, node.attrs, node.loc, node.phase, node.regions)
            copy.results = results
            tangents.update((r, t) for r, t in zip(node.results, push(b, copy, given)) if t is not None)


def push_forward(
    b: Builder, nodes: Iterable[Node], roots: Sequence[Value], tangents: Mapping[Value, Value]
) -> list[Value | None]:
    """The tangents of `roots`, computed by `nodes` (in order, of the program `b` builds), where values of
    `tangents` have the given ones. None: zero."""
    nodes = list(nodes)
    depends = set(tangents)
    for node in nodes:
        if (node.op.differentiable or node.op.jvp is not None) and any(v in depends for v in node.operands):
            depends.update(node.results)
    wanted = {v for v in roots if v in depends}
    path: list[Node] = []
    for node in reversed(nodes):
        if any(r in wanted for r in node.results):
            path.append(node)
            wanted.update(v for v in node.operands if v in depends)
    found = dict(tangents)
    for node in reversed(path):
        given = [found.get(v) for v in node.operands]
        for r, t in zip(node.results, push(b, node, given)):
            if t is not None and r not in tangents:
                found[r] = t
    return [found.get(v) for v in roots]


def jvp(graph: Graph, wrt: Sequence[bool] | None = None) -> Graph:
    """A graph that also gives the tangents of the outputs.

    Inputs: those of `graph`, then the tangents of those that `wrt` holds for (default: all of floating
    point). Outputs: those of `graph`, then the tangents of those of floating point.
    """
    if wrt is None:
        wrt = [v.type.dtype.kind == "f" for v in graph.inputs]
    out = Graph(graph.name)
    b = Builder(out)
    env = {v: out.add_input(v.type, v.name) for v in graph.inputs}
    tangents = {v: out.add_input(v.type) for v, moves in zip(graph.inputs, wrt) if moves}
    copy_with_tangents(b, graph, env, tangents)
    out.outputs = [env[v] for v in graph.outputs]
    for v in graph.outputs:
        if v.type.dtype.kind == "f":
            t = tangents.get(v)
            out.outputs.append(zeros(b, v.type) if t is None else t)
    out.updates = {env[old]: env[new] for old, new in graph.updates.items()}
    return out
