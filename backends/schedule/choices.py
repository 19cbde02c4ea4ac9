"""What the planner decides by estimated cost alone. Used by plan.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.graph import Value
from .elements import scalar_cost

if TYPE_CHECKING:
    from .plan import Planner

#: elementwise work cheaper than this (cycles per element) is done again rather than stored and loaded
CHEAP = 4.0


def again(plan: Planner, v: Value) -> bool:
    """Whether computing `v` again is cheaper than storing it: little work on few values that are
    stored anyway."""
    cost, new_bytes = 0.0, 0
    loads: set[Value] = set()
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
            loads.add(x)
        elif node.op.kernel == "source":
            continue
        elif node.op.scalar is None:
            if node.op.pull is not None:
                stack.extend(node.operands)
                cost += 1
                continue
            loads.add(x)
            new_bytes += x.type.nbytes
        else:
            cost += scalar_cost(node)
            stack.extend(node.operands)
        if cost > CHEAP or len(loads) > 2:
            return False
    return new_bytes * 4 <= v.type.nbytes
