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
from .ways import shared

#: what a tile's epilogue needs comes between so many steps of k at least
FEW_STEPS = 4
#: lines that a tile fetches ahead at a time, at most
AT_ONCE = 8


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
        share: int = 1,
        together: Callable[[Scope, list[dict[Expr, Expr]]], None] | None = None,
    ) -> None:
        """The innermost loop over k. Unrolled a little: more would have LLVM mix the steps and run out of
        registers. With `together`, so many steps at a time that `share` elements."""
        start, n = part.ranges[-1]
        if not isinstance(dim.var, Var):
            step(scope, k)
            return
        if together is not None:
            outer, base = scope, ZERO
            if n > share:
                v = Var(dim.var.name, n)
                outer, base = scope.loop(v, n, "serial", share), v
            at = index_add(base, start)
            together(outer, [{**k, dim.var: index_add(at, Const(u))} for u in range(share)])
            outer.close_to(scope)
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

    def sharing(self, mr: int, nr: int, part: Block) -> int:
        """How many steps of k to take together because they need the same elements of A."""
        rows = self.m.sub[-1] if self.m.sub else self.m
        if "a" in self.packed or rows.a != self.g.inner[-1].a:
            return 1
        return shared(mr, nr, rows.size, part.ranges[-1][1], self.machine.vector_registers)

    def k_ahead(
        self,
        scope: Scope,
        mb: Expr,
        mr: int,
        nb: Expr,
        nr: int,
        step: Callable[[Scope, dict[Expr, Expr]], None],
        part: Block,
    ) -> None:
        """The loop over k, in which every tile of rows prefetches its share of the rows of B that come next,
        those of the next block of k or else of the next tile of columns: they come from far apart, and
        nothing else would fetch them ahead."""
        dim = self.g.inner[-1]
        start, n = part.ranges[-1]
        share = rounds(n, -(-n // -(-self.m.size // self.s.mr)))
        crossing = dim.b * self.g.buffers[1].dtype.itemsize % self.machine.vector_bytes != 0
        skipped = nr if n == self.K else 0

        def ahead(inner: Scope, at: Expr) -> None:
            row = index_add(index_mul(index_div(self.home(mb), self.s.mr), share), at)
            row = index_add(self.limited(inner, row, n - 1), start)
            if n < self.K:
                row = self.limited(inner, index_add(row, Const(n)), self.K - 1)
            for j in range(nr + crossing):
                column = index_add(nb, Const((skipped + j) * self.lanes))
                for x in walk(self.load("b", ZERO, column, {dim.var: row}, inner)):
                    if isinstance(x, Load):
                        inner.stmts.append(Prefetch(x.buffer, x.index))

        self.k_rounds(scope, Var("row", share), mr * nr, step, part, ahead)

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

    def bring_image(self, scope: Scope, mb: Expr, k: dict[Expr, Expr], part: Block) -> None:
        """Where A is windows of more images than the second cache holds: prefetches the line that the tile
        begins with in the next image, at the values of k that are known."""
        g, half = self.g, self.machine.l2_bytes // 2
        images = max((d for d in self.outer if d not in self.inside), key=lambda d: d.a, default=None)
        buffer = g.buffers[0]
        size = buffer.dtype.itemsize
        if images is None or "a" in self.packed or not g.windows[1 if self.s.swap else 0]:
            return
        whole = sum((d.size - 1) * d.a for d in g.inner) < images.a  # else the next one is here already
        if not whole or images.a * size > half or self.source("a").nbytes <= 2 * half:
            return
        first = {d.var: start for d, (start, _) in zip(g.inner, part.ranges) if isinstance(d.var, Var)}
        for x in walk(self.load("a", mb, ZERO, {**first, **k}, scope)):
            if isinstance(x, Load):
                scope.stmts.append(Prefetch(x.buffer, (index_add(x.index[0], Const(images.a)),)))

    def bring_block(
        self, scope: Scope, mb: Expr, mr: int, nb: Expr, columns: int, k: dict[Expr, Expr], part: Block
    ) -> None:
        """Where blocks of B come from beyond the second cache to be packed: prefetches the share of
        this tile in what the next block has for these values of k but the last."""
        g, n, line = self.g, self.n, self.machine.vector_bytes // self.g.acc.itemsize
        last, (start, steps) = g.inner[-1], part.ranges[-1]
        panel, size = self.packed.get("b"), self.machine.l2_bytes
        if self.corner is None or panel is None or 3 * panel.nbytes > size or self.source("b").nbytes <= size:
            return
        if n.parts or (n.b != 1 and last.b != 1):
            return
        where: dict[Expr, Expr] = {**k, last.var: start}
        first = nb
        cut = [(d, size) for d, (_, size) in zip(g.inner, part.ranges) if size < d.size]
        if cut:
            where[cut[-1][0].var] = index_add(where[cut[-1][0].var], Const(cut[-1][1]))
        else:
            first = index_add(nb, Const(self.s.nc))
        turn, turns = ZERO, 1
        for d in self.inside:
            if isinstance(d.var, Var):
                value = scope.find(self.low.number(d.var))
                assert value is not None
                turn, turns = index_add(index_mul(turn, d.size), value), turns * d.size
        tiles = -(-self.m.size // mr)
        turn, turns = index_add(index_mul(turn, tiles), index_div(self.home(mb), mr)), turns * tiles
        count, lines = (steps, columns) if n.b == 1 else (columns, steps)
        each = -(-count // turns)
        if each * lines > AT_ONCE * line:
            return
        corner, self.corner = self.corner, None
        for j in range(each):
            one = scope.inline()
            at = self.limited(one, index_add(index_mul(turn, each), Const(j)), count - 1)
            for i in map(Const, range(0, lines, line)):
                step, column = (at, i) if n.b == 1 else (i, at)
                here = {**where, last.var: index_add(where[last.var], step)}
                for x in walk(self.load("b", ZERO, index_add(first, column), here, one)):
                    if isinstance(x, Load):
                        one.stmts.append(Prefetch(x.buffer, x.index))
            one.close()
        self.corner = corner

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
