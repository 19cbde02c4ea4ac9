"""What the planner decides by estimated cost alone. Used by plan.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.graph import Node, Value
from .elements import scalar_cost

if TYPE_CHECKING:
    from .plan import Planner

#: elementwise work cheaper than this (cycles per element) is done again rather than stored and loaded
CHEAP = 4.0
#: cycles of a gather per element: its place is loaded and checked, and far from the last one
GATHER = 2.0
#: what is so many times smaller than the values computed of it comes from the nearest cache
SMALL = 8


def moving_cost(node: Node) -> float:
    """Cycles per element of a node that computes nothing, where another kernel takes it in."""
    return GATHER if node.op.kernel == "gather" else 0.5


def again(plan: Planner, v: Value) -> bool:
    """Whether computing `v` again is cheaper than storing it: little work on few values that are
    stored anyway, or that others read as well and so will be."""
    cost, new_bytes = 0.0, 0
    loads: set[Value] = set()
    new: dict[Value, int] = {}  # what would have to be stored, and how often `v` reads it
    stack = [v]
    while stack:
        x = stack.pop()
        while x not in plan.stored and x.node is not None and x.node.op.kernel == "movement":
            if len(x.node.operands) != 1:
                break
            x = x.node.operands[0]
            cost += 0.25
        node = x.node
        if node is None or x in plan.stored:
            if x.type.nbytes * SMALL > v.type.nbytes:
                loads.add(x)
        elif node.op.kernel == "source":
            continue
        elif node.op.scalar is None:
            if node.op.pull is not None:
                stack.extend(node.operands)
                cost += GATHER if node.op.kernel == "gather" else 1
                continue
            loads.add(x)
            new_bytes += 0 if x in new else x.type.nbytes
            new[x] = new.get(x, 0) + 1
        else:
            cost += scalar_cost(node)
            stack.extend(node.operands)
        if cost > CHEAP or len(loads) > 2:
            return False
    shared = v not in new and all(plan.uses.get(x, 0) > n for x, n in new.items())
    return new_bytes * (1 if shared else 4) <= v.type.nbytes


def narrow_part(plan: Planner, node: Node, cost: float) -> Value | None:
    """A condition that is most of the work of a value many read, and a quarter of its bytes: it is stored
    instead (the mask of a dropout, not its factors)."""
    v = node.results[0]
    for o in node.operands:
        work = plan.inline_cost(o) if o.node is not None and o not in plan.home else 0.0
        most = work > CHEAP and cost - work <= CHEAP
        if most and o.type.dtype.kind == "b" and 4 * o.type.nbytes <= v.type.nbytes:
            return o
    return None
