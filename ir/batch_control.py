"""Batching of control flow. Used by the records in ir/ops/control.py only.

A loop's carried values are batched together with whatever they come to depend on. Where the examples disagree
about the way to go, both ways are gone, and `where` keeps each example's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .batch import BatchNode, batch_nodes
from .builder import Builder
from .graph import Graph, Value
from .regions import build


def _flow(region: Graph, flags: Sequence[bool]) -> list[bool]:
    """Which outputs depend on batched inputs."""
    found = {v for v, flag in zip(region.inputs, flags) if flag}
    for node in region.nodes:
        if any(v in found for v in node.operands):
            found.update(node.results)
    return [v in found for v in region.outputs]


def _run(
    b: Builder, region: Graph, inputs: Sequence[Value], flags: Sequence[bool], size: int, want: Sequence[bool]
) -> list[Value]:
    """A region's outputs, batched where `want` holds."""
    env = {v: (x, flag) for v, x, flag in zip(region.inputs, inputs, flags)}
    batch_nodes(b, region.nodes, env, size)
    outs = []
    for v, flag in zip(region.outputs, want):
        x, is_batched = env[v]
        outs.append(b.expand(x, shape=(size, *v.type.shape)) if flag and not is_batched else x)
    return outs


def _chosen(b: Builder, pred: Value, size: int, new: Sequence[Value], old: Sequence[Value]) -> list[Value]:
    """`new` for the examples that `pred: bool[size]` holds for, else `old`."""
    out = []
    for x, y in zip(new, old):
        cond = b.reshape(pred, shape=(size, *(1,) * (x.type.rank - 1))) if x.type.rank > 1 else pred
        out.append(b.where(cond, x, y))
    return out


def _listed(made: Any) -> list[Value]:
    return list(made) if isinstance(made, tuple) else [made]


def _repeated(b: Builder, outs: Sequence[Value], n: BatchNode, flags: Sequence[bool]) -> tuple[Value, ...]:
    """Results that all are batched."""
    return tuple(v if flag else b.expand(v, shape=(n.size, *v.type.shape)) for v, flag in zip(outs, flags))


def cond_batch(b: Builder, n: BatchNode) -> tuple[Value, ...]:
    """With one predicate a cond of batched branches, else both branches."""
    node, size = n.node, n.size
    flags = n.flags[1:]
    if n.flags[0]:
        every = [True] * len(node.results)
        then, other = (_run(b, r, n.operands[1:], flags, size, every) for r in node.regions)
        return tuple(_chosen(b, n.operands[0], size, then, other))
    want = [any(pair) for pair in zip(*(_flow(r, flags) for r in node.regions))]
    types = [v.type for v in n.operands[1:]]
    regions = tuple(
        build(r.name, types, lambda bb, inputs, r=r: _run(bb, r, inputs, flags, size, want))
        for r in node.regions
    )
    return _repeated(b, _listed(b.emit(node.op, n.operands, node.attrs, regions)), n, want)


def _grown(body: Graph, flags: list[bool], carry: int) -> list[bool]:
    while True:
        outs = _flow(body, flags)
        new = [*(f or o for f, o in zip(flags[:carry], outs)), *flags[carry:]]
        if new == flags:
            return flags
        flags = new


def _inits(n: BatchNode, flags: Sequence[bool], carry: int) -> list[Value]:
    return [n.full(i) if flags[i] else n.operands[i] for i in range(carry)]


def while_batch(b: Builder, n: BatchNode) -> tuple[Value, ...]:
    """Runs for as long as the test holds for any example; the others' values stay as they are."""
    node, size = n.node, n.size
    test, body = node.regions
    k = node.attrs["carry"]
    flags = _grown(body, list(n.flags), k)
    (each,) = _flow(test, flags)
    if each:  # every example stops at its own time, so all that is carried differs
        flags = [True] * k + flags[k:]
    operands = (*_inits(n, flags, k), *n.operands[k:])
    types = [v.type for v in operands]

    def go(bb: Builder, inputs: list[Value]) -> list[Value]:
        (pred,) = _run(bb, test, inputs, flags, size, [each])
        return [bb.any(pred, axes=(0,)) if each else pred]

    def step(bb: Builder, inputs: list[Value]) -> list[Value]:
        outs = _run(bb, body, inputs, flags, size, flags[:k])
        if not each:
            return outs
        (pred,) = _run(bb, test, inputs, flags, size, [True])
        return _chosen(bb, pred, size, outs, inputs[:k])

    regions = (build(test.name, types, go), build(body.name, types, step))
    return _repeated(b, _listed(b.emit(node.op, operands, node.attrs, regions)), n, flags[:k])


def scan_batch(b: Builder, n: BatchNode) -> tuple[Value, ...]:
    """A scan whose steps are batched; the xs come with the batch dimension second."""
    node, size = n.node, n.size
    (body,) = node.regions
    k, m = node.attrs.get("carry", 0), node.attrs.get("xs", 0)
    flags = _grown(body, list(n.flags), k)
    want = [*flags[:k], *_flow(body, flags)[k:]]

    def turned(v: Value) -> Value:
        return b.permute(v, dims=(1, 0, *range(2, v.type.rank)))

    stacks = [turned(n.operands[i]) if flags[i] else n.operands[i] for i in range(k, k + m)]
    operands = (*_inits(n, flags, k), *stacks, *n.operands[k + m :])
    types = [
        v.type.with_shape(v.type.shape[1:]) if k <= i < k + m else v.type for i, v in enumerate(operands)
    ]
    step = build(body.name, types, lambda bb, inputs: _run(bb, body, inputs, flags, size, want))
    outs = _listed(b.emit(node.op, operands, node.attrs, (step,)))
    outs = [turned(v) if i >= k and flag else v for i, (v, flag) in enumerate(zip(outs, want))]
    return _repeated(b, outs, n, want)
