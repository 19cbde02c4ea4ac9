"""Forward mode of control flow: regions that carry tangents beside their values. Used by the records in
ir/ops/control.py only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .builder import Builder
from .forward import copy_with_tangents, zeros
from .grad_control import active
from .graph import Graph, Node, Value
from .op import REGISTRY
from .regions import build, inline

Given = Sequence["Value | None"]


def _floats(flags: Sequence[bool], values: Sequence[Value]) -> list[bool]:
    return [flag and v.type.dtype.kind == "f" for flag, v in zip(flags, values)]


def _run(
    b: Builder, region: Graph, inputs: Sequence[Value], tangents: Given
) -> tuple[list[Value], list[Any]]:
    """A region's outputs and their tangents."""
    env = dict(zip(region.inputs, inputs))
    moving = {v: t for v, t in zip(region.inputs, tangents) if t is not None}
    copy_with_tangents(b, region, env, moving)
    return [env[v] for v in region.outputs], [moving.get(v) for v in region.outputs]


def _filled(b: Builder, values: Sequence[Value], tangents: Given, flags: Sequence[bool]) -> list[Value]:
    """The tangents of flagged values, zeros where there is none."""
    return [zeros(b, v.type) if t is None else t for v, t, flag in zip(values, tangents, flags) if flag]


def _spread(values: Sequence[Value], flags: Sequence[bool]) -> list[Value | None]:
    """One entry per flag, from the values of those that hold."""
    rest = iter(values)
    return [next(rest) if flag else None for flag in flags]


def _listed(made: Any) -> list[Value]:
    return list(made) if isinstance(made, tuple) else [made]


def cond_jvp(b: Any, n: Any, *tangents: Value | None) -> tuple[Value | None, ...]:
    """A cond of the branches' tangents."""
    node: Node = n.node
    flags = [t is not None for t in tangents[1:]]
    gives = [any(pair) for pair in zip(*(active(r, flags) for r in node.regions))]
    gives = _floats(gives, node.results)
    if not any(gives):
        return (None,) * len(node.results)
    given = [t for t in tangents[1:] if t is not None]
    types = [v.type for v in (*node.operands[1:], *given)]
    count = len(flags)

    def branch(region: Graph) -> Graph:
        def run(bb: Builder, inputs: list[Value]) -> list[Value]:
            outs, found = _run(bb, region, inputs[:count], _spread(inputs[count:], flags))
            return _filled(bb, outs, found, gives)

        return build(region.name, types, run)

    regions = tuple(branch(r) for r in node.regions)
    return tuple(_spread(_listed(b.emit(node.op, (*node.operands, *given), node.attrs, regions)), gives))


def _carried(node: Node, body: Graph, flags: list[bool], carry: int) -> list[bool]:
    """Which inputs of a body move, once those that are carried round are counted."""
    while True:
        outs = _floats(active(body, flags)[:carry], body.outputs)
        grown = [*(f or o for f, o in zip(flags[:carry], outs)), *flags[carry:]]
        if grown == flags:
            return flags
        flags = grown


def while_jvp(b: Any, n: Any, *tangents: Value | None) -> tuple[Value | None, ...]:
    """A while that carries tangents too; the test looks at the values alone."""
    node: Node = n.node
    test, body = node.regions
    k = node.attrs["carry"]
    flags = _carried(node, body, [t is not None for t in tangents], k)
    moving = sum(flags[:k])
    starts = _filled(b, node.operands[:k], tangents[:k], flags[:k])
    given = [t for t in tangents[k:] if t is not None]
    operands = (*node.operands[:k], *starts, *node.operands[k:], *given)
    types = [v.type for v in operands]
    rest = k + moving + len(node.operands) - k

    def values(inputs: list[Value]) -> list[Value]:
        return [*inputs[:k], *inputs[k + moving : rest]]

    def step(bb: Builder, inputs: list[Value]) -> list[Value]:
        moves = _spread([*inputs[k : k + moving], *inputs[rest:]], flags)
        outs, found = _run(bb, body, values(inputs), moves)
        return [*outs, *_filled(bb, outs, found, flags[:k])]

    regions = (
        build(test.name, types, lambda bb, inputs: inline(bb, test, values(inputs))),
        build(body.name, types, step),
    )
    made = _listed(b.emit(node.op, operands, {**node.attrs, "carry": k + moving}, regions))
    return tuple(_spread(made[k:], flags[:k]))


def scan_jvp(b: Any, n: Any, *tangents: Value | None) -> tuple[Value | None, ...]:
    """A scan that carries tangents and runs over those of the xs."""
    node: Node = n.node
    (body,) = node.regions
    k, m = node.attrs.get("carry", 0), node.attrs.get("xs", 0)
    flags = _carried(node, body, [t is not None for t in tangents], k)
    gives = _floats(active(body, flags), body.outputs)
    gives[:k] = flags[:k]
    if not any(gives):
        return (None,) * len(node.results)
    starts = _filled(b, node.operands[:k], tangents[:k], flags[:k])
    slices = [t for t in tangents[k : k + m] if t is not None]
    given = [t for t in tangents[k + m :] if t is not None]
    parts = (node.operands[:k], starts, node.operands[k : k + m], slices, node.operands[k + m :], given)
    operands = tuple(v for group in parts for v in group)
    ends = [sum(len(group) for group in parts[: i + 1]) for i in range(len(parts))]
    stacked = range(ends[1], ends[3])
    types = [v.type.with_shape(v.type.shape[1:]) if i in stacked else v.type for i, v in enumerate(operands)]

    def step(bb: Builder, inputs: list[Value]) -> list[Value]:
        c, dc, x, dx, w, dw = (inputs[lo:hi] for lo, hi in zip([0, *ends], ends))
        outs, found = _run(bb, body, [*c, *x, *w], _spread([*dc, *dx, *dw], flags))
        return [*outs[:k], *_filled(bb, outs, found, gives)]

    attrs = {**node.attrs, "carry": k + len(starts), "xs": m + len(slices)}
    made = _listed(b.emit(REGISTRY["scan"], operands, attrs, (build(body.name, types, step),)))
    return tuple(_spread(made[k:], gives))
