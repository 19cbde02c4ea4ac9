"""Loops of row groups: reductions over rows with what comes before and after them fused in.

A group is emitted as passes over the row. Pass p accumulates the reductions that need the results of p
others, and stores the elements that need no later ones. Two ways to lay out the lanes:

- along the row (`inner`): vector accumulators, combined at the end of the pass;
- across rows (`column`): a lane for each of a block of neighbouring rows, where those are what is contiguous
  (sums over the first axis).

Used by schedule/__init__.py only.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Const, Expr, Load, Local, Var, index_add
from ...ir.loops import Buffer, Stmt, Store
from ..machine import MachineModel
from .elements import S
from .indexing import Numbering
from .nests import (
    StoreSpec,
    vector_blocks,
)
from .row_columns import ColumnRows
from .row_group import RowGroup
from .row_passes import CHUNK, MAX_CHUNKS
from .scopes import Scope


class RowEmitter(ColumnRows):
    """Everything about one group on its way to statements."""

    def emit(self) -> list[Stmt]:
        top = Scope(self.low)
        if self.O == 0:
            return top.stmts
        count = self.chunks()
        if count > 1:
            self.split_rows(top, count)
        else:
            heavy = self.cycles / self.lanes() > self.machine.parallel_cycles
            self.nest(top, self.machine.threads > 1 and heavy)
        return top.stmts

    def nest(self, top: Scope, parallel: bool) -> None:
        """All rows."""
        scope = top
        outer = list(zip(self.o.vars, self.o.sizes))
        inner = outer.pop() if self.columns else None
        for k, (var, size) in enumerate(outer):
            if isinstance(var, Var):
                here = parallel and k == 0
                v = Var(var.name, size)
                scope = scope.loop(v, size, "parallel" if here else "serial")
                scope.define(var, v)
                if here:
                    self.low.floor = scope.depth
        if inner is None:
            self.rows(scope)
        else:
            self.column_blocks(scope, *inner, parallel=parallel and scope is top)
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent

    # --- few long rows

    def chunks(self) -> int:
        """In how many pieces to sum up rows too long and too few to share: fixed by the shape, never by
        the threads."""
        simple = len(self.passes) == 1 and not self.passes[0].stores
        if not simple or self.R < 4 * CHUNK or 4 * self.lanes() < self.O or len(self.reductions) > 4:
            return 1
        return min(MAX_CHUNKS, self.R // CHUNK)

    def split_rows(self, top: Scope, count: int) -> None:
        """Pieces of rows into partial results, in parallel; then those, in order."""
        n = self.r.sizes[0]
        unit = 4 * self.lanes() if len(self.r.sizes) == 1 else 1
        count = _even(n, count, unit)
        size = max(n // count // unit, 1) * unit
        count = n // size
        left = n - count * size
        pieces = count + (1 if left else 0)
        partial = {r.local: Buffer(f"partial_{r.local.name}", r.local.dtype, (pieces * self.O,), "arena")
                   for r in self.reductions}  # fmt: skip
        row = self.o.value()

        def keep(scope: Scope, place: Expr) -> None:
            for r in self.reductions:
                at = index_add(place, scope.lower(row))
                scope.stmts.append(Store(partial[r.local], (at,), scope.lower(r.local), scope.mask))

        stores, self.row_stores = self.row_stores, []
        heavy = self.cycles / self.lanes() > self.machine.parallel_cycles
        c = Var("piece", count)
        inner = top.loop(c, count, "parallel" if self.machine.threads > 1 and heavy else "serial")
        self.low.floor = inner.depth
        self.range = (c * size, size)
        self.sink = lambda scope: keep(scope, c * self.O)
        self.nest(inner, False)
        inner.close()
        self.low.floor = 0
        if left:
            inner = top.inline()
            self.range = (Const(count * size), left)
            self.sink = lambda scope: keep(scope, Const(count * self.O))
            self.nest(inner, False)
            inner.close()
        self.row_stores, self.sink = stores, None
        self.combine(top, partial, pieces)

    def combine(self, top: Scope, partial: dict[Local, Buffer], pieces: int) -> None:
        """The rows' values from those of their pieces, and what is stored of them."""
        scope = top
        for var, size in list(zip(self.o.vars, self.o.sizes))[:-1]:
            if isinstance(var, Var):
                v = Var(var.name, size)
                scope = scope.loop(v, size, "serial")
                scope.define(var, v)

        def body(inner: Scope) -> None:
            row = inner.lower(self.o.value())
            for r in self.reductions:
                items: list[Expr] = [Load(partial[r.local], (index_add(row, Const(k * self.O)),), inner.mask)
                                     for k in range(pieces)]  # fmt: skip
                while len(items) > 1:
                    pairs = [S.prim(r.combine, a, b) for a, b in zip(items[::2], items[1::2])]
                    items = pairs + items[len(pairs) * 2 :]
                inner.anchor(r.local, inner.let(items[0], r.local.name))
            inner.stores(self.row_stores)

        one = scope.inline()
        vector_blocks(one, self.o.vars[-1], 0, self.o.sizes[-1], self.lanes(), self.machine, body)
        one.close()
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent


def emit_rows(
    group: RowGroup,
    specs: list[StoreSpec],
    machine: MachineModel,
    place: Callable[[Buffer], Buffer],
    number: Numbering,
) -> list[Stmt]:
    """All statements of a row group."""
    return RowEmitter(group, specs, machine, place, number).emit()


def _even(n: int, count: int, unit: int) -> int:
    """About `count` pieces of whole units that leave nothing over, for what is left over is the same code
    once more; `count` where there is no such number that threads can share as well."""
    for even in (4, 2):
        for k in range(count - count % even, count // 2, -even):
            if n % (k * unit) == 0:
                return k
    return count
