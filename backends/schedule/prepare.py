"""What a graph, or a region of one, must compute, in which order, and which values are copied first because
their memory changes. Used by plan.py only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.graph import Graph, Node, Value
from ...ir.op import REGISTRY

if TYPE_CHECKING:
    from .control import Frame
    from .plan import Planner


def scalars_first(nodes: list[Node]) -> list[Node]:
    """The nodes with scalar arithmetic on inputs (bias corrections, scaled rates) moved to the front, so that
    big groups come after what their epilogues read.

        contract, update(contract, s), s = f(step)  -->  s = f(step), contract, update(contract, s)
    """
    early: set[Node] = set()
    for n in nodes:
        if (n.results[0].type.numel <= 1 and n.op.scalar is not None) or n.op.kernel == "source":
            if all(o.node is None or o.node in early for o in n.operands):
                early.add(n)
    return [*(n for n in nodes if n in early), *(n for n in nodes if n not in early)]


def in_few_parts(graph: Graph, most: int) -> Graph:
    """The graph with concatenations of more than `most` values done in steps, in its regions too; itself
    where there are none.

        concat(a, b, c, d, e, f)  -->  concat(concat(a, b, c), concat(d, e, f)), for `most` = 3
    """
    out = Graph(graph.name)
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        operands = tuple([env.get(v, v) for v in node.operands])
        regions = tuple([in_few_parts(r, most) for r in node.regions])
        while node.op.name == "concat" and len(operands) > most:
            rows = [operands[i : i + most] for i in range(0, len(operands), most)]
            operands = tuple([_concat(out, node, row) for row in rows])
        if operands != node.operands or regions != node.regions:
            copy = node.over(operands, regions)
            env.update(zip(node.results, copy.results))
            node = copy
        out.nodes.append(node)
    if not env:
        return graph
    out.inputs = graph.inputs
    out.outputs = [env.get(v, v) for v in graph.outputs]
    out.updates = {k: env.get(v, v) for k, v in graph.updates.items()}
    return out


def _concat(graph: Graph, like: Node, parts: tuple[Value, ...]) -> Value:
    if len(parts) == 1:
        return parts[0]
    dim = like.attrs["dim"]
    shape = list(parts[0].type.shape)
    shape[dim] = sum(p.type.shape[dim] for p in parts)
    node = Node(like.op, parts, like.attrs, like.loc, like.phase)
    node.results = (Value(parts[0].type.with_shape(tuple(shape)), node, 0),)
    graph.nodes.append(node)
    return node.results[0]


def copy_node(v: Value) -> Node:
    """A node whose result is `v` in memory of its own."""
    node = Node(REGISTRY["reshape"], (v,), {"shape": v.type.shape})
    node.results = (Value(v.type, node, 0, v.name and f"{v.name}_copy"),)
    return node


def prepare(plan: Planner) -> list[Node]:
    """The live nodes in order; sets the plan's `updates`, `outputs`, `live` and `operands`."""
    extra: list[Node] = []
    if plan.frame is None:
        _whole(plan, extra)
    else:
        _region(plan, plan.frame, extra)
    wanted = (*plan.outputs, *plan.updates.values())
    plan.live = {v for v in wanted if v.node is not None}
    needed: set[Node] = set()
    stack = [v.node for v in plan.live]
    while stack:
        node = stack.pop()
        if node is not None and node not in needed:
            needed.add(node)
            stack.extend(o.node for o in node.operands)
    nodes = [n for n in (*plan.graph.nodes, *extra) if n in needed]
    return scalars_first(_copied_carries(plan, nodes))


def count_uses(plan: Planner) -> dict[Value, int]:
    """How many live nodes read each value. Who reads what is moved reads the operand, unless what is moved is
    written down before."""
    uses = dict.fromkeys(plan.live, 1)
    for node in reversed(plan.nodes):
        v = node.results[0]
        moves = node.op.kernel == "movement" and len(node.operands) == 1 and v not in plan.padded
        for o in plan.operands.get(node, node.operands):
            uses[o] = uses.get(o, 0) + (uses.get(v, 0) if moves else 1)
    return uses


def _copied(v: Value, extra: list[Node]) -> Value:
    extra.append(copy_node(v))
    return extra[-1].result


def _whole(plan: Planner, extra: list[Node]) -> None:
    """An input that is given out or written elsewhere while it changes is copied first."""
    graph = plan.graph
    taken: set[Value] = set()
    for i, v in graph.updates.items():
        if v is i:
            continue
        if v.node is None or v in taken:
            v = _copied(v, extra)
        taken.add(v)
        plan.updates[i] = v
    copies: dict[Value, Value] = {}
    for v in graph.outputs:
        if v in plan.updates and v.node is None:
            if v not in copies:
                copies[v] = _copied(v, extra)
            v = copies[v]
        plan.outputs.append(v)


def _region(plan: Planner, frame: Frame, extra: list[Node]) -> None:
    """Carried values are updates of the region's inputs; one that takes over another's just takes its
    memory."""
    changing = {i for i, v in frame.carries if v is not i}
    taken: set[Value] = set()
    for i, v in frame.carries:
        if v is i:
            continue
        if v in changing and v not in taken:
            frame.moved[i] = v
        else:
            if v.node is None or v in taken:
                v = _copied(v, extra)
            plan.updates[i] = v
        taken.add(v)
    copies: dict[Value, Value] = {}
    for v, target in frame.outlets:
        if v.node is None:
            if v not in copies:
                copies[v] = _copied(v, extra)
            v = copies[v]
        plan.outputs.append(v)
        frame.targets.append((v, target))


def _copied_carries(plan: Planner, nodes: list[Node]) -> list[Node]:
    """What a loop carries starts in memory that the loop may write to: the value's own where nothing else
    reads it."""
    if not any(n.op.kernel == "control" for n in nodes):
        return nodes
    uses: dict[Value, int] = {}
    for n in nodes:
        for o in n.operands:
            uses[o] = uses.get(o, 0) + 1
    out: list[Node] = []
    for n in nodes:
        if n.op.kernel == "control":
            operands = list(n.operands)
            for k in range(n.attrs.get("carry", 0)):
                o = operands[k]
                if o.node is None or o.node.op.kernel == "source" or uses[o] > 1 or o in plan.live:
                    out.append(copy_node(o))
                    operands[k] = out[-1].result
            plan.operands[n] = tuple(operands)
        out.append(n)
    return out
