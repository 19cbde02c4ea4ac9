"""Batching, graph to graph: a program of one example as a program of many, along a new first dimension of
whatever depends on the batch. What does not depend on it is computed once.

How an op runs on a batch is its record's `batch`, or follows from its kind: elementwise ops broadcast,
composites are their parts, and kernels and reductions whose attributes speak of dimensions speak of the next
ones (`shifted`). The rules that records name are in ir/batch_rules.py.

`batch_node` runs one node, `vmap` makes a new graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .builder import Builder
from .errors import OpError
from .graph import Graph, Node, Value, toposort
from .types import Type


class NoBatchRule(OpError):
    """An op that can't be batched."""


class BatchNode:
    """What a batch rule sees: the op, its operands in the program being built, and which of them are batched
    (first dimension of size `size`). Types are those of one example.
    """

    __slots__ = ("b", "flags", "node", "operands", "size")

    def __init__(
        self, b: Builder, node: Node, operands: Sequence[Value], flags: Sequence[bool], size: int
    ) -> None:
        self.b = b
        self.node = node
        self.operands = tuple(operands)
        self.flags = tuple(flags)
        self.size = size

    def __len__(self) -> int:
        return len(self.operands)

    @property
    def attrs(self) -> dict[str, Any]:
        return self.node.attrs

    def attr(self, name: str) -> Any:
        """An attribute, or its default where the node does not spell it."""
        return self.node.attrs.get(name, self.node.op.attr_defaults.get(name))

    def type(self, i: int) -> Type:
        """The type of operand i of one example."""
        return self.node.operands[i].type

    def full(self, i: int) -> Value:
        """Operand i with the batch dimension, repeated along it if it is not batched."""
        v = self.operands[i]
        return v if self.flags[i] else self.b.expand(v, shape=(self.size, *v.type.shape))

    def aligned(self, i: int, rank: int) -> Value:
        """Operand i so that it broadcasts against batched operands of `rank` dimensions per example."""
        v, t = self.operands[i], self.type(i)
        if not self.flags[i] or t.rank >= rank:
            return v
        return self.b.reshape(v, shape=(self.size, *(1,) * (rank - t.rank), *t.shape))

    def only(self, *batched: int) -> bool:
        """Whether these operands, and no others, are batched."""
        return all(flag == (i in batched) for i, flag in enumerate(self.flags))

    def again(self, *operands: Value, **attrs: Any) -> Any:
        """The op itself on other operands, with some attributes replaced."""
        return self.b.emit(self.node.op, operands, {**self.node.attrs, **attrs}, self.node.regions)


def batch_node(
    b: Builder, node: Node, operands: Sequence[Value], flags: Sequence[bool], size: int
) -> tuple[list[Value], list[bool]]:
    """One node of an example's program on batched operands: its results, and which of them are batched.

    Raises NoBatchRule for an op that has no way to run on a batch.
    """
    op = node.op
    if not any(flags):
        made: Any = b.emit(op, tuple(operands), node.attrs, node.regions)
        results = list(made) if isinstance(made, tuple) else [made]
        return results, [False] * len(results)
    reduces = op.grad is not None and "axes" in op.attr_defaults and len(operands) == 1
    if op.batch is None and op.decompose is not None and not reduces:
        return batch_parts(b, node, operands, flags, size)
    n = BatchNode(b, node, operands, flags, size)
    if op.batch is not None:
        made = op.batch(b, n)
    elif op.scalar is not None:
        made = n.again(*[n.aligned(i, node.results[0].type.rank) for i in range(len(n))])
    elif reduces or op.kernel in ("movement", "reduce", "gather", "scatter", "scan", "sort", "window"):
        made = shifted(b, n)
    else:
        made = None
    if made is None:
        types = ", ".join(str(v.type) for v in node.operands)
        raise NoBatchRule(
            f"{op.name}({types}) at {node.loc} can't run on a batch of operands {_which(flags)}: its record "
            f"has no `batch` rule; take it out of the function given to vmap, or loop over the examples"
        )
    results = list(made) if isinstance(made, (tuple, list)) else [made]
    return results, [True] * len(results)


def _which(flags: Sequence[bool]) -> str:
    return ", ".join(str(i) for i, flag in enumerate(flags) if flag)


def batch_parts(
    b: Builder, node: Node, operands: Sequence[Value], flags: Sequence[bool], size: int
) -> tuple[list[Value], list[bool]]:
    """A composite by its parts: results, and which of them are batched."""
    op = node.op
    assert op.decompose is not None
    graph = Graph(op.name)
    inputs = [graph.add_input(v.type) for v in node.operands]
    made = op.decompose(Builder(graph), *inputs, **node.attrs)
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    graph.nodes = toposort(graph.outputs)
    for inner in graph.nodes:
        inner.loc = inner.loc or node.loc
    env = {v: (o, flag) for v, o, flag in zip(inputs, operands, flags)}
    batch_nodes(b, graph.nodes, env, size)
    found = [env[v] for v in graph.outputs]
    return [v for v, _ in found], [flag for _, flag in found]


def batch_nodes(b: Builder, nodes: Sequence[Node], env: dict[Value, tuple[Value, bool]], size: int) -> None:
    """Emits nodes of an example's program into `b`; `env` holds the values made for its values, and whether
    they are batched."""
    for node in nodes:
        given = [env[v] for v in node.operands]
        with b.at(node.loc or b.loc, node.phase):
            made, flags = batch_node(b, node, [v for v, _ in given], [flag for _, flag in given], size)
        env.update((r, (v, flag)) for r, v, flag in zip(node.results, made, flags))


#: What an attribute becomes when every operand gets a new first dimension.
_SHIFTS: dict[str, Any] = {
    "dim": lambda v, size: v + 1,
    "dims": lambda v, size: tuple(d + 1 for d in v),
    "axes": lambda v, size: tuple(d + 1 for d in v),
    "shape": lambda v, size: (size, *v),
    "start": lambda v, size: (0, *v),
    "stop": lambda v, size: (size, *v),
    "step": lambda v, size: (1, *v),
    "low": lambda v, size: (0, *v),
    "high": lambda v, size: (0, *v),
}


def shifted(b: Builder, n: BatchNode) -> Any:
    """The op on operands that all have the batch dimension, its attributes one dimension further."""
    attrs = {}
    for name in n.node.op.attr_defaults:
        value, shift = n.attr(name), _SHIFTS.get(name)
        if shift is not None and value is not None:
            attrs[name] = shift(value, n.size)
    if n.node.op.kernel in ("scan", "sort") and n.type(0).rank == 0:
        return None
    return n.again(*[n.full(i) for i in range(len(n))], **attrs)


def vmap(
    graph: Graph, flags: Sequence[bool], size: int, out_flags: Sequence[bool] | None = None
) -> tuple[Graph, list[bool]]:
    """A graph over a batch of `size`: inputs with a flag get a first dimension of that size, and so do the
    outputs that depend on them, or that `out_flags` holds for. Gives which outputs have it.

    Raises OpError where an input that is updated is not batched and its new value is.
    """
    out = Graph(graph.name)
    b = Builder(out)
    env: dict[Value, tuple[Value, bool]] = {}
    for v, flag in zip(graph.inputs, flags):
        t = v.type.with_shape((size, *v.type.shape)) if flag else v.type
        env[v] = (out.add_input(t, v.name), flag)
    batch_nodes(b, graph.nodes, env, size)
    made = []
    for k, v in enumerate(graph.outputs):
        value, flag = env[v]
        if out_flags is not None and out_flags[k] and not flag:
            value, flag = b.expand(value, shape=(size, *v.type.shape)), True
        out.outputs.append(value)
        made.append(flag)
    for old, new in graph.updates.items():
        if env[new][1] and not env[old][1]:
            raise OpError(
                f"the input {old.name or old.index} of type {old.type} is updated with a batch of values"
            )
        value, flag = env[new]
        if env[old][1] and not flag:
            value = b.expand(value, shape=(size, *old.type.shape))
        out.updates[env[old][0]] = value
    return out, made
