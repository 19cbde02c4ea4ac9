"""The innermost loops over k of a tile, and what is fetched ahead in them. Used by contract_tile.py."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Const, Expr, Load, Var, index_add, index_div, index_mul, walk
from ...ir.loops import Prefetch
from .contract import Dim
from .contract_operands import Block
from .contract_packing import ContractPacking
from .indexing import ZERO
from .scopes import Scope

#: what a tile's epilogue needs comes between so many steps of k at least
FEW_STEPS = 4


def rounds(n: int, least: int) -> int:
    """Into how many parts, at least so many, to cut n steps: equal ones, if that is not many more."""
    return next((r for r in range(least, 2 * least) if n % r == 0), least)


class ContractSteps(ContractPacking):
    """Adds the loops over k. A `step` is given a scope and the value of each variable of k."""

    def k_steps(
        self,
        scope: Scope,
        dim: Dim,
        accumulators: int,
        k: dict[Expr, Expr],
        step: Callable[[Scope, dict[Expr, Expr]], None],
        part: Block,
    ) -> None:
        """The innermost loop over k. Unrolled a little: more would have LLVM mix the steps and run out of
        registers."""
        start, n = part.ranges[-1]
        if not isinstance(dim.var, Var):
            step(scope, k)
            return
        # LLVM loads the rows of B for all steps before it begins.
        registers = self.machine.vector_registers
        spare = registers - 4 - accumulators
        most = max(1, min(4, spare // (self.s.nr + 1), registers * 3 // 4 // accumulators))
        unroll = n if n <= most else next((u for u in (4, 3, 2) if u <= most and n % u == 0), most)
        whole = n // unroll * unroll
        outer, base = scope, ZERO
        if whole > unroll:
            v = Var(dim.var.name, whole)
            outer, base = scope.loop(v, whole, "serial", unroll), v
        u = Var("u", unroll)
        inner = outer.loop(u, unroll, "unroll")
        step(inner, {**k, dim.var: index_add(index_add(base, u), start)})
        inner.close()
        if outer is not scope:
            outer.close()
        if whole < n:
            v = Var(dim.var.name, n - whole)
            inner = scope.loop(v, n - whole, "serial")
            step(inner, {**k, dim.var: index_add(index_add(v, Const(whole)), start)})
            inner.close()

    def k_ahead(
        self,
        scope: Scope,
        mb: Expr,
        mr: int,
        nb: Expr,
        nr: int,
        step: Callable[[Scope, dict[Expr, Expr]], None],
    ) -> None:
        """The loop over k, in which every tile of rows prefetches its share of B's rows for the next tile of
        columns: they come from far apart, and nothing else would fetch them ahead."""
        dim = self.g.inner[-1]
        share = rounds(self.K, -(-self.K // -(-self.m.size // self.s.mr)))

        def ahead(inner: Scope, at: Expr) -> None:
            row = index_add(index_mul(index_div(self.home(mb), self.s.mr), share), at)
            row = self.limited(inner, row, self.K - 1)
            for j in range(nr + (dim.b * self.g.buffers[1].dtype.itemsize % self.machine.vector_bytes != 0)):
                column = index_add(nb, Const((nr + j) * self.lanes))
                for x in walk(self.load("b", ZERO, column, {dim.var: row}, inner)):
                    if isinstance(x, Load):
                        inner.stmts.append(Prefetch(x.buffer, x.index))

        self.k_rounds(scope, Var("row", share), mr * nr, step, self.whole, ahead)

    def k_rounds(
        self,
        scope: Scope,
        turn: Var,
        tile: int,
        step: Callable[[Scope, dict[Expr, Expr]], None],
        part: Block,
        first: Callable[[Scope, Expr], None],
    ) -> None:
        """The loop over k in as many rounds of equal length as `turn` counts, each of which begins with
        `first`; then what is left over. `tile`: vectors of the tile."""
        dim = self.g.inner[-1]
        start, n = part.ranges[-1]
        count = turn.extent
        steps = n // count
        outer = scope.loop(turn, count, "serial") if count > 1 else scope.inline()
        at: Expr = turn if count > 1 else ZERO
        first(outer, at)
        here = index_add(index_mul(at, steps), start)
        self.k_steps(outer, dim, tile, {}, step, Block(((here, steps),)))
        outer.close()
        if steps * count < n:
            rest = Block(((index_add(Const(steps * count), start), n - steps * count),))
            self.k_steps(scope, dim, tile, {}, step, rest)

    def comes_row_by_row(self, mr: int, part: Block) -> bool:
        """Whether k is long enough for `k_bringing`."""
        return part.last is True and mr > 1 and len(self.g.inner) == 1 and part.size >= mr * FEW_STEPS

    def k_bringing(
        self,
        scope: Scope,
        mb: Expr,
        mr: int,
        nb: Expr,
        nr: int,
        lines: int,
        step: Callable[[Scope, dict[Expr, Expr]], None],
        part: Block,
    ) -> None:
        """The loop over k, in which that comes row by row: all at once would wait for one another."""

        def bring(inner: Scope, at: Expr) -> None:
            row = inner.inline()
            self.bring_row(row, index_add(mb, self.limited(row, at, mr - 1)), nb, lines)
            row.close()

        turn = Var("i", rounds(part.ranges[-1][1], mr))
        self.k_rounds(scope, turn, mr * nr, step, part, bring)

    def bring(self, scope: Scope, mb: Expr, mr: int, nb: Expr, nr: int) -> None:
        """Prefetches what the epilogue of a tile will read and write, where that is large: it comes while
        the tile is computed."""
        outer, i = scope, ZERO
        if mr > 1:
            i = Var("i", mr)
            outer = scope.loop(i, mr, "serial")
        self.bring_row(outer, index_add(mb, i), nb, nr)
        outer.close_to(scope)

    def bring_row(self, scope: Scope, m: Expr, nb: Expr, nr: int) -> None:
        """Prefetches it for one row of a tile."""
        if isinstance(self.m.var, Var):
            scope.define(self.m.var, m)
        for j in range(nr):
            inner = scope.inline()
            if isinstance(self.n.var, Var):
                inner.define(self.n.var, index_add(nb, Const(j * self.lanes)))
            for buffer, index, write in self.far:
                inner.stmts.append(Prefetch(self.low.place(buffer), (inner.lower(index),), write))
            inner.close()
