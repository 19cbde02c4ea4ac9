"""Scatters as kernels: a copy of the base, then the updates. Used by gpu_schedule/__init__.py.

Updates that may meet at one place are made by one thread, in order, so results are the same every time (and
the CPU's): a thread for each combination of the grid's dimensions that the place moves with by itself, which
runs through those whose place is data.
"""

from __future__ import annotations

from math import prod

from ...ir import dtypes
from ...ir.expr import Expr, Load, Local, Prim, Var, substitute
from ...ir.graph import Node
from ...ir.loops import Buffer, Stmt
from ..schedule.elements import S
from ..schedule.groups import domain_var
from ..schedule.indexing import ZERO, ravel
from ..schedule.other_groups import ScatterGroup
from ..schedule.scopes import Lowering
from .launch import Target, close, define_parts, flat_launch
from .pointwise import copy_kernel, flat_kernel


def update_kind(node: Node) -> str:
    """none, add, prod, amax or amin."""
    if node.op.name == "scatter":
        return node.attrs.get("reduce", "none")
    return "add" if node.attrs.get("accumulate") else "none"


def grid_dims(node: Node) -> tuple[tuple[int, ...], list[bool]]:
    """The shape of the grid of updates, and for each of its dimensions whether places along it are data."""
    if node.op.name == "scatter":
        shape = node.operands[1].type.shape
        return shape, [d == node.attrs["dim"] for d in range(len(shape))]
    grid, dims = node.operands[1].type.shape, node.attrs["dims"]
    rank = max((i.type.rank for i in node.operands[2:]), default=0)
    consecutive = not dims or list(dims) == list(range(dims[0], dims[0] + len(dims)))
    first = dims[0] if dims and consecutive else 0
    return grid, [first <= d < first + rank for d in range(len(grid))]


def combined(how: str, old: Expr, new: Expr) -> Expr:
    """What is at a place after an update."""
    if how == "none":
        return new
    combine = {"add": "add", "prod": "mul", "amax": "maximum", "amin": "minimum"}[how]
    if old.dtype.kind == "b":
        combine = {"add": "or_", "mul": "and_"}.get(combine, combine)
    return S.prim(combine, old, new)


def scatter_kernels(group: ScatterGroup, targets: list[Buffer], target: Target) -> list[list[Stmt]]:
    """All kernels of a scatter, in order; the result goes to every one of `targets`."""
    out = targets[0]
    bodies: list[list[Stmt]] = []
    keeps = isinstance(group.base, Load) and target.place(group.base.buffer) is target.place(out)
    if not keeps:
        bodies.append(flat_kernel(group.elements.bindings, [(out, group.f, group.base)], group.f, out.size, target))
    if not isinstance(group.g, Var) or group.g.extent > 0:
        bodies.append(_updates(group, out, target))
    for other in targets[1:]:
        bodies.append(copy_kernel(target, other, out, group.f))
    return bodies


def _updates(group: ScatterGroup, out: Buffer, target: Target) -> list[Stmt]:
    node = group.node
    shape, data = grid_dims(node)
    how = update_kind(node)
    variables = [domain_var(f"j{d}", n) for d, n in enumerate(shape)]
    flat = ravel(tuple(variables), shape) if shape else ZERO
    env: dict[Expr, Expr] = {group.g: flat} if isinstance(group.g, Var) else {}

    def moved(e: Expr) -> Expr:
        return substitute(e, env) if env else e

    bindings = {x: moved(e) for x, e in group.elements.bindings.items()}
    place, value, *inside = (moved(e) for e in (group.target, group.value, *group.inside))
    low = Lowering(bindings, target.number, target.place)
    own = [(v, n) for v, n, d in zip(variables, shape, data) if not d]
    k, scope, at = flat_launch(low, prod(n for _, n in own), "j")
    define_parts(scope, [v for v, _ in own], [n for _, n in own], at)
    inner = scope
    for v, n, d in zip(variables, shape, data):
        if d and isinstance(v, Var):
            loop = Var(v.name, n)
            inner = inner.loop(loop, n, "serial")
            inner.define(v, loop)
    condition: Expr | None = None
    for c in inside:
        condition = c if condition is None else Prim("and_", (condition, c), dtypes.bool_)
    if condition is not None:
        inner = inner.branch(inner.lower(condition))
    new = value
    if how != "none":
        # Anchored here: the place may be the same in every turn, what is there is not.
        old = Local("old", out.dtype)
        inner.anchor(old, inner.let(inner.load(Load(out, (place,))), "old"))
        new = combined(how, old, value)
    inner.stores([(out, place, new)])
    close(inner, k.scope)
    return k.finish()
