"""Reverse-mode differentiation, graph to graph: the one walk backwards that every gradient in Tracegrad is
made by.

The walk emits ordinary ops through a Builder, with the forward op's location and phase `backward`, so
gradients of gradients, passes, dumps and every backend work on them unchanged. It un-broadcasts, casts and
accumulates in one place; no rule does. The tracer runs the same walk on its recorded nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .builder import Builder
from .errors import GradError
from .graph import Graph, Node, Value
from .op import Op
from .regions import structure
from .types import Type, placed_type

Grads = tuple["Value | None", ...]


class GradNode:
    """What a gradient rule sees of the forward node: `n[i]` operands, `n.out` the result, attributes as
    fields.
    """

    __slots__ = ("needs", "node")

    def __init__(self, node: Node, needs: tuple[bool, ...]) -> None:
        self.node = node
        self.needs = needs

    def __getitem__(self, i: int) -> Value:
        return self.node.operands[i]

    def __len__(self) -> int:
        return len(self.node.operands)

    @property
    def out(self) -> Value:
        return self.node.results[0]

    @property
    def outs(self) -> tuple[Value, ...]:
        return self.node.results

    @property
    def attrs(self) -> dict[str, Any]:
        return self.node.attrs

    def type(self, i: int) -> Type:
        """The type of operand i, for rules that need no more of it (its value need not be kept)."""
        return self.node.operands[i].type

    def attr(self, name: str) -> Any:
        """An attribute, or its default where the node does not spell it."""
        return self.node.attrs.get(name, self.node.op.attr_defaults.get(name))


def unbroadcast(b: Builder, grad: Value, type: Type) -> Value:
    """Sums `grad` over the dimensions that broadcasting `type` to its shape added or stretched, and casts."""
    if grad.type.shape != type.shape:
        extra = grad.type.rank - type.rank
        axes = tuple(range(extra)) + tuple(
            i + extra for i, n in enumerate(type.shape) if n == 1 and grad.type.shape[i + extra] != 1
        )
        if extra < 0 or (not axes and type.numel != grad.type.numel):
            raise GradError(f"a gradient rule gave {grad.type} for an operand of type {type}")
        if axes:
            grad = b.sum(grad, axes=axes)
        if grad.type.shape != type.shape:
            grad = b.reshape(grad, shape=type.shape)
    return b.cast_to(grad, type.dtype)


def vjp(
    b: Builder, node: Node, needs: tuple[bool, ...], grads: tuple[Value | None, ...]
) -> list[Value | None]:
    """The gradients of one node's needed operands from those of its results (None: zero)."""
    op = node.op
    filled: list[Value] = []
    for r, g in zip(node.results, grads):
        if g is None:
            g = (
                b.full(shape=r.type.shape, value=0.0, dtype=r.type.dtype)
                if r.type.dtype.kind == "f"
                else None
            )
        filled.append(g)  # type: ignore[arg-type]
    rule = op.grad or _through_decomposition
    entries = rule(b, GradNode(node, needs), *filled)
    if len(entries) != len(node.operands):
        raise GradError(
            f"gradient rule of {op.name} gave {len(entries)} entries for {len(node.operands)} operands"
        )
    out: list[Value | None] = []
    entry: Any
    for operand, need, entry in zip(node.operands, needs, entries):
        if need and callable(entry):
            entry = entry()
        out.append(unbroadcast(b, entry, operand.type) if need and entry is not None else None)
    return out


def _through_decomposition(b: Builder, n: GradNode, *grads: Value) -> tuple[Any, ...]:
    """The gradient of an op without a rule of its own: that of its decomposition, re-emitted here."""
    op: Op = n.node.op
    if op.decompose is None:
        raise GradError(
            f"{op.name}({', '.join(str(v.type) for v in n.node.operands)}) at {n.node.loc} has no gradient; "
            f"detach() its operands if none is wanted"
        )
    graph = Graph(op.name)
    inner = Builder(graph)
    inputs = [graph.add_input(v.type) for v in n.node.operands]
    outs = op.decompose(inner, *inputs, **n.node.attrs)
    graph.outputs = list(outs) if isinstance(outs, tuple) else [outs]
    env: dict[Value, Value] = dict(zip(inputs, n.node.operands))
    for node in graph.nodes:
        made = b.emit(node.op, tuple(env[v] for v in node.operands), node.attrs, node.regions)
        env.update(zip(node.results, made if isinstance(made, tuple) else (made,)))
    seeds = {env[o]: g for o, g in zip(graph.outputs, grads) if g is not None}
    wanted = [v for v, need in zip(n.node.operands, n.needs) if need]
    # Operands end the walk: one that was computed from another must not pass its gradient on to it here.
    ends = set(n.node.operands)
    found = backward(b, seeds, wanted, stop=ends.__contains__)
    # An operand that occurs twice (`x @ x`) has one gradient, which is that of all its places.
    return tuple(found.pop(v, None) if need else None for v, need in zip(n.node.operands, n.needs))


def backward(
    b: Builder,
    seeds: Mapping[Value, Value],
    wrt: Iterable[Value],
    *,
    on_grad: Callable[[Value, Value], Value] | None = None,
    on_node: Callable[[Node, Grads, Callable[[Grads], Any]], Any] | None = None,
    keep: Callable[[Value], None] | None = None,
    stop: Callable[[Value], bool] | None = None,
) -> dict[Value, Value]:
    """Gradients of `sum(root * seed)` with respect to `wrt`.

    Args:
        seeds: roots and the gradients they start with, of the same type.
        wrt: values whose gradients are wanted; only what leads to them is computed.
        on_grad: called with a value and its whole gradient before it flows on (hooks); may replace it.
        on_node: called with a node, the gradients of its results, and what gives those of its operands.
        keep: called with every gradient that is found: what the other two do may end a pending program.
        stop: values whose producers are not walked (leaves, values without gradients).

    Returns:
        For every value of `wrt` that the roots depend on, its gradient.
    """
    wanted = list(dict.fromkeys(wrt))  # in order: equal programs must be recorded alike
    targets = set(wanted)
    order, needed = _between(seeds, targets, stop)
    grads: dict[Value, Value] = {}
    for root, seed in seeds.items():
        grads[root] = b.add(grads[root], seed) if root in grads else seed
        if keep is not None:
            keep(grads[root])

    def finish(value: Value) -> Value | None:
        g = grads.get(value)
        if g is not None and on_grad is not None:
            g = grads[value] = on_grad(value, g)
            if keep is not None:
                keep(g)
        return g

    for node in reversed(order):
        outs = tuple(finish(r) for r in node.results)
        if all(g is None for g in outs):
            continue
        needs = tuple(v in needed for v in node.operands)
        with b.at(node.loc, "backward"):
            if on_node is None:
                entries = vjp(b, node, needs, outs)
            else:
                entries = on_node(node, outs, lambda outs, n=node, flags=needs: vjp(b, n, flags, outs))
            for operand, g in zip(node.operands, entries):
                if g is not None:
                    grads[operand] = b.add(grads[operand], g) if operand in grads else g
            if keep is not None:
                for operand, g in zip(node.operands, entries):
                    if g is not None:
                        keep(grads[operand])
    walked = set(order)
    for value in wanted:
        if value.node is None or value.node not in walked:
            finish(value)
    return {v: grads[v] for v in wanted if v in grads}


def _between(
    seeds: Iterable[Value], targets: set[Value], stop: Callable[[Value], bool] | None
) -> tuple[list[Node], set[Value]]:
    """Nodes on a path from a target to a root in topological order, and the values such paths run through."""
    needed = set(targets)
    order: list[Node] = []
    done: set[Node] = set()
    for root in seeds:
        if root.node is None or (stop is not None and stop(root)):
            continue
        stack: list[tuple[Node, bool]] = [(root.node, False)]
        while stack:
            node, visited = stack.pop()
            if visited:
                if node.op.differentiable and any(v in needed for v in node.operands):
                    needed.update(r for r in node.results if r.type.dtype.kind == "f")
                    order.append(node)
            elif node not in done:
                done.add(node)
                stack.append((node, True))
                for v in node.operands:
                    if v.node is not None and v.node not in done and not (stop is not None and stop(v)):
                        stack.append((v.node, False))
    return order, needed


_READS: dict[Any, tuple[tuple[int, ...], tuple[int, ...]]] = {}


def reads(node: Node, needs: tuple[bool, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which operands and which results of a node its gradient rule reads, found by running the rule
    symbolically.

    What a run must keep for a later backward is exactly this; it is cached by op, attributes, types and
    `needs`.
    """
    if node.op.reads is not None:
        return node.op.reads(node)
    inside = tuple(map(structure, node.regions))
    key = (node.op, tuple(node.attrs.items()), tuple(v.type for v in node.operands), needs, inside)
    got = _READS.get(key)
    if got is None:
        graph = Graph("reads")
        b = Builder(graph)
        operands = tuple(Value(placed_type(v.type, None)) for v in node.operands)
        dry = Node(node.op, operands, node.attrs, node.loc, node.phase, node.regions)
        dry.results = tuple(Value(placed_type(r.type, None), dry, i) for i, r in enumerate(node.results))
        seeds = tuple(Value(r.type) if r.type.dtype.kind == "f" else None for r in dry.results)
        try:
            out = vjp(b, dry, needs, seeds)
        except GradError:  # the error of a backward that nobody may ask for
            out = []
        used = {v for n in graph.nodes for v in n.operands} | {v for v in out if v is not None}
        got = (
            tuple(i for i, v in enumerate(dry.operands) if v in used),
            tuple(i for i, r in enumerate(dry.results) if r in used),
        )
        _READS[key] = got
    return got
