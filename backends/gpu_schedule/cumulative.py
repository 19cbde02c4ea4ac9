"""Scans along a dimension (cumulative sums, products, extrema, recurrences) as kernels. Used by
gpu_schedule/__init__.py.

A thread for each row, which runs through it in order.
"""

from __future__ import annotations

from math import prod

from ...ir.expr import Const, Expr, Load, Var, substitute
from ...ir.loops import Buffer, Stmt, Store
from ..schedule.cumulative import CumulativeGroup, scan_step
from ..schedule.elements import S
from ..schedule.indexing import ZERO
from ..schedule.nests import Split, needed_exprs
from ..schedule.scopes import Lowering
from .launch import Target, close, define_parts, flat_launch


def cumulative_kernels(group: CumulativeGroup, targets: list[Buffer], target: Target) -> list[list[Stmt]]:
    """All kernels of a scan, in order; the result goes to every one of `targets`."""
    how = scan_step(group.node)
    dtype = group.node.results[0].type.dtype
    exprs = needed_exprs(group.elements.bindings, group.operands)
    o, k, i = (Split.of(v, n, exprs) for v, n in zip((group.o, group.k, group.i), group.sizes))
    env: dict[Expr, Expr] = {s.flat: s.value() for s in (o, k, i) if s.changed}

    def moved(e: Expr) -> Expr:
        return substitute(e, env) if env else e

    operands, index = [moved(e) for e in group.operands], moved(group.place)
    low = Lowering({x: moved(e) for x, e in group.elements.bindings.items()}, target.number, target.place)
    sizes = [*o.sizes, *i.sizes]
    launch, scope, at = flat_launch(low, prod(sizes), "row")
    define_parts(scope, [*o.vars, *i.vars], sizes, at)
    state = [scope.alloc("state", d, 1, "register") for _, d in how.start]
    for b, (value, d) in zip(state, how.start):
        scope.stmts.append(Store(b, (ZERO,), Const(value, d)))
    inner = scope
    for var, size in zip(k.vars, k.sizes):
        if isinstance(var, Var):
            loop = Var(var.name, size)
            inner = inner.loop(loop, size, "serial")
            inner.define(var, loop)
    *elements, place, along = inner.roots([*operands, index, k.value()])
    new = [inner.let(e, "next") for e in how.step([Load(b, (ZERO,)) for b in state], elements, along)]
    for b, e in zip(state, new):
        inner.stmts.append(Store(b, (ZERO,), e))
    value = S.cast(new[how.result], dtype)
    for t in targets:
        inner.stmts.append(Store(target.place(t), (place,), value))
    close(inner, launch.scope)
    return [launch.finish()]
