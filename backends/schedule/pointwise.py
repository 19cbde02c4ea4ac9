"""Loops of elementwise groups, copies and tiny groups. Used by schedule/__init__.py only."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Expr, Load, Local, Prim, Var
from ...ir.loops import Buffer, Stmt
from ...ir.scalar import PRIMITIVES
from ..machine import MachineModel
from .crossing import crossing, transposing_tiles
from .groups import PointwiseGroup
from .indexing import Numbering, is_index, ravel
from .nests import Split, StoreSpec, lanes_for, loads_of, needed_exprs, resplit, vector_blocks
from .other_groups import TinyGroup
from .scopes import Lowering, Scope

Place = Callable[[Buffer], Buffer]
#: a parallel loop has at most about this many iterations; fixed, so that results never depend on threads
CHUNKS = 64


def work(exprs: list[Expr]) -> float:
    """Cycles per element of evaluating expressions once, in a vector's lane."""
    cost = 0.0
    seen: set[int] = set()
    stack = list(exprs)
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if isinstance(e, Load):
            cost += 1
            continue
        if is_index(e):
            continue
        if isinstance(e, Prim):
            cost += PRIMITIVES[e.name].cost
        stack.extend(e.args)
    return cost


def emit_pointwise(
    group: PointwiseGroup, specs: list[StoreSpec], machine: MachineModel, place: Place, number: Numbering
) -> list[Stmt]:
    """One nest that computes every stored value of the group."""
    return flat_nest(group.elements.bindings, specs, group.f, group.n, machine, place, number)


def flat_nest(
    bindings: dict[Local, Expr],
    specs: list[StoreSpec],
    flat: Expr,
    n: int,
    machine: MachineModel,
    place: Place,
    number: Numbering,
) -> list[Stmt]:
    """`specs` for every value of `flat` in [0, n): as few loops as index arithmetic allows, vectors along
    the last."""
    exprs = needed_exprs(bindings, [e for _, i, v in specs for e in (i, v)])
    split = Split.of(flat, n, exprs)
    bindings, specs = resplit(bindings, specs, [split])
    lanes = lanes_for(machine, [b.dtype for b, _, _ in specs])
    low = Lowering(bindings, number, place)
    top = Scope(low)
    cycles = n * (len(specs) + work(exprs)) / max(lanes, 1)
    parallel = machine.threads > 1 and cycles > machine.parallel_cycles
    if parallel and len(split.sizes) == 1:
        done = parallel_chunks(top, split.vars[0], n, lanes, machine, lambda s: s.stores(specs))
        if done < n:
            low.floor = 0
            vector_blocks(top, split.vars[0], done, n, lanes, machine, lambda s: s.stores(specs))
        return top.stmts
    across = crossing(split, loads_of([e for _, i, v in specs for e in (i, v)] + list(bindings.values())))
    scope = top
    for k, (var, size) in enumerate(zip(split.vars[:-1], split.sizes[:-1])):
        if isinstance(var, Var) and k != across:
            here = parallel and scope is top
            loop = Var(var.name, size)
            scope = scope.loop(loop, size, "parallel" if here else "serial")
            scope.define(var, loop)
            if here:
                low.floor = scope.depth
    if across is None:
        vector_blocks(scope, split.vars[-1], 0, split.sizes[-1], lanes, machine, lambda s: s.stores(specs))
    else:
        transposing_tiles(scope, split, across, machine, parallel and scope is top, lambda s: s.stores(specs))
    while scope is not top:
        scope.close()
        assert scope.parent is not None
        scope = scope.parent
    return top.stmts


def parallel_chunks(
    top: Scope, var: Expr, n: int, lanes: int, machine: MachineModel, body: Callable[[Scope], None]
) -> int:
    """A parallel loop over equal chunks of whole vectors; gives how many elements it covers."""
    assert isinstance(var, Var)
    chunk = max(n // CHUNKS // lanes, 1) * lanes
    count = n // chunk
    p = Var("chunk", count)
    outer = top.loop(p, count, "parallel")
    top.lowering.floor = outer.depth
    v = Var(var.name, chunk)
    loop = outer.loop(v, chunk, "serial", lanes)
    lane = Var(f"{var.name}v", lanes)
    inner = loop.loop(lane, lanes, "vector")
    inner.define(var, p * chunk + v + lane)
    body(inner)
    inner.close()
    loop.close()
    outer.close()
    return count * chunk


def emit_tiny(
    group: TinyGroup, machine: MachineModel, place: Place, number: Numbering, targets: list[tuple]
) -> list[Stmt]:
    """Straight-line code: every element a let, then the stores. `targets` are (buffer, value)."""
    low = Lowering(group.elements.bindings, number, place)
    scope = Scope(low)
    specs: list[StoreSpec] = []
    for buffer, v in targets:
        for index in group.positions(v):
            specs.append((buffer, ravel(index, v.type.shape), group.elements.at(v, index)))
    scope.stores(specs)
    return scope.stmts
