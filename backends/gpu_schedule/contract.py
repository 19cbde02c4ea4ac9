"""Contractions and windowed convolutions as kernels. Used by gpu_schedule/__init__.py.

Small ones: a thread for each element of the result, which runs through the contracted dimensions.
"""

from __future__ import annotations

from math import prod

from ...ir.expr import Const, Expr, Load, Var, index_add, index_mul
from ...ir.loops import Buffer, Stmt, Store
from ..schedule.contract import Dim
from ..schedule.elements import S
from ..schedule.indexing import ZERO
from ..schedule.nests import StoreSpec
from ..schedule.scopes import Lowering, Scope
from .launch import Target, close, define_parts, flat_launch
from .plan import GpuContractGroup


class GpuContract:
    """One contraction on its way to kernels."""

    def __init__(self, group: GpuContractGroup, specs: list[StoreSpec], target: Target) -> None:
        self.g, self.specs, self.target = group, specs, target
        self.low = Lowering(group.elements.bindings, target.number, target.place)

    def source(self, which: str) -> Buffer:
        return self.target.place(self.g.buffers[0 if which == "a" else 1])

    def offset(self, which: str) -> Expr:
        return self.g.offsets[0 if which == "a" else 1]

    def along(self, which: str, dims: list[Dim], values: dict[Expr, Expr]) -> Expr:
        """How far into an operand the given places along `dims` are."""
        out: Expr = ZERO
        for d in dims:
            stride = d.a if which == "a" else d.b
            if stride and isinstance(d.var, Var):
                out = index_add(out, index_mul(values[d.var], stride))
        return out

    def value(self, scope: Scope, d: Dim) -> Expr:
        found = scope.find(self.low.number(d.var))
        assert found is not None
        return found

    def by_element(self) -> list[Stmt]:
        """A thread for each element."""
        g = self.g
        outer = [*g.batch, *g.rows, *g.cols]
        count = prod(d.size for d in outer)
        k, scope, at = flat_launch(self.low, count)
        define_parts(scope, [d.var for d in outer], [d.size for d in outer], at)
        acc = scope.alloc("acc", g.acc, 1, "register")
        scope.stmts.append(Store(acc, (ZERO,), Const(0, g.acc)))
        values = {d.var: self.value(scope, d) for d in outer if isinstance(d.var, Var)}
        inner = scope
        for d in g.inner:
            if isinstance(d.var, Var):
                v = Var(d.var.name, d.size)
                inner = inner.loop(v, d.size, "serial")
                values[d.var] = v
        terms = []
        for which in "ab":
            index = index_add(self.offset(which), self.along(which, [*outer, *g.inner], values))
            terms.append(S.cast(Load(self.source(which), (index,)), g.acc))
        inner.stmts.append(Store(acc, (ZERO,), S.fma(*terms, Load(acc, (ZERO,)))))
        close(inner, scope)
        scope.anchor(g.local, scope.let(Load(acc, (ZERO,)), g.local.name))
        scope.stores(self.specs)
        close(scope, k.scope)
        return k.finish()


def contract_kernels(group: GpuContractGroup, specs: list[StoreSpec], target: Target) -> list[list[Stmt]]:
    """All kernels of a contraction, in order."""
    return [GpuContract(group, specs, target).by_element()]
