"""Concatenations without loops: the contractions that make the parts write them to their places.

    q = contract a, b;  k = contract c, d;  j = concat q, permute(k)
    -->
    the tiles of `q` are stored into the first part of `j`, those of `k`, in the other order, into the second

Called by plan.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.expr import Const, Expr, Var, index_add, stride_of
from ...ir.graph import Node, Value
from ...ir.types import Shape
from .contract import ContractGroup
from .groups import Group
from .indexing import ravel, unravel

if TYPE_CHECKING:
    from .plan import Planner


class JoinedGroup(Group):
    """A value that other groups write, each a part. It has no loops, and comes after all of them."""

    kind = "joined"

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None


def join_parts(plan: Planner, node: Node) -> bool:
    """Has the groups that compute the parts of a concatenation store them in place, if all are contractions
    and vectors of their elements stay vectors there."""
    if node.op.name != "concat" or plan.contract_group is not ContractGroup:
        return False
    v, dim = node.results[0], node.attrs["dim"]
    found: dict[ContractGroup, tuple[Value, Expr]] = {}
    start = 0
    for part in node.operands:
        moved = _place_of(plan, part)
        if moved is None or moved[0] in found:
            return False
        group, u, index = moved
        place = (*index[:dim], index_add(index[dim], Const(start)), *index[dim + 1 :])
        flat = ravel(place, v.type.shape)
        if not _in_vectors(group, flat):
            return False
        found[group] = u, flat
        start += part.type.shape[dim]
    joined: JoinedGroup = plan.new_group(JoinedGroup)
    for group, share in found.items():
        group.shares[v] = share
        plan.add_dependence(joined, group)
    joined.members.append(v)
    plan.home[v] = joined
    plan.reach[v] = 1 << joined.id
    plan.demand(v)
    return True


def _place_of(plan: Planner, part: Value) -> tuple[ContractGroup, Value, tuple[Expr, ...]] | None:
    """The group that computes what `part` moves, and where in `part` its element goes."""
    moves: list[Node] = []
    u = part
    while u not in plan.home and u.node is not None and u.node.op.name in ("permute", "reshape"):
        moves.append(u.node)
        u = u.node.operands[0]
    group = plan.home.get(u)
    if not isinstance(group, ContractGroup) or group.scattered or u not in group.members:
        return None
    index = group.canonical(u)
    if index is None:
        return None
    for node in reversed(moves):
        if node.op.name == "permute":
            index = tuple([index[d] for d in node.attrs["dims"]])
        else:
            index = _reshaped(index, node.operands[0].type.shape, node.results[0].type.shape)
    return group, u, index


def _reshaped(index: tuple[Expr, ...], old: Shape, new: Shape) -> tuple[Expr, ...]:
    """An index after a reshape. Dimensions that are split up or joined among themselves are treated apart
    from the others, so that what an index was made of is not put together only to be taken apart again."""
    out: list[Expr] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b, size, other = i, j, 1, 1
        while True:
            if (size <= other and i < len(old)) or j == len(new):
                size *= old[i]
                i += 1
            else:
                other *= new[j]
                j += 1
            if size == other and i > a and j > b:
                break
            if i == len(old) and j == len(new):
                break
        out += unravel(ravel(index[a:i], old[a:i]), new[b:j])
    return tuple(out)


def _in_vectors(group: ContractGroup, flat: Expr) -> bool:
    """Whether elements of a tile that are neighbours in the result are neighbours there too."""
    m, n = group.rows[-1], group.cols[-1]
    if n.parts:
        return False
    for d in (m, n):
        stride = stride_of(flat, d.var) if isinstance(d.var, Var) else 0
        if stride is None or (d.c == 1 and d.size > 1 and stride != 1):
            return False
    return True
