"""The register-tiled kernels of contractions and the epilogue on the tile. Used by contract_loops.py."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...ir.expr import (
    Const,
    Expr,
    LaneReduce,
    Load,
    Var,
    index_add,
    index_div,
    index_mod,
    index_mul,
    terms,
    walk,
)
from ...ir.loops import Buffer, Store
from .contract import LONG_SUM
from .contract_operands import SHALLOW, Block
from .contract_packing import Turns
from .contract_steps import ContractSteps
from .elements import S
from .indexing import ZERO
from .nests import less, power_of_two
from .scopes import Scope
from .tiles import cover


class ContractTile(ContractSteps):
    """Adds the loops of one tile."""

    def outer_tile(
        self, scope: Scope, mb: Expr, mr: int, nb: Expr, nr: int, columns: int, part: Block
    ) -> None:
        """An mr x (nr vectors) tile by outer products."""
        lanes, acc_type = self.lanes, self.g.acc
        self.tile_vars = {x for e in (mb, nb) for x, _ in terms(self.home(e))[0] if isinstance(x, Var)}
        acc = scope.alloc("acc", acc_type, mr * nr * lanes, "register")
        share = self.sharing(mr, nr, part)
        row = scope.alloc("b", acc_type, share * nr * lanes, "register")
        zero = Const(0, acc_type)
        sums = self.sums_at(scope, mb, nb, nr)

        def start(s: Scope, at: Expr) -> None:
            value: Expr = zero
            if part.first is not True:
                mask = S.prim("not_", part.first) if isinstance(part.first, Expr) else None
                value = Load(self.partial(), (sums(at),), mask, zero if mask is not None else None)
            s.stmts.append(Store(acc, (at,), value))

        self.vectors(scope, mr * nr, start)
        lines = -(-columns // lanes)
        ahead = self.s.ahead and len(self.g.inner) == 1 and "b" not in self.packed
        spread = not ahead and self.comes_row_by_row(mr, part)
        if self.far and part.last is not False and not spread:
            near = scope if part.last is True else scope.branch(part.last)
            self.bring(near, mb, mr, nb, lines)
            near.close_to(scope)
        block, k = self.k_loops(scope, len(self.g.inner) - 1, part, self.turns_of(mb, mr, nb, columns, part))

        def load_row(s: Scope, where: dict[Expr, Expr], to: int) -> None:
            def vector(inner: Scope, at: Expr) -> None:
                mask = None
                if self.row is not None:
                    mask = less(index_mod(at, lanes), self.n.size) if self.n.size < lanes else None
                elif columns < nr * lanes and "b" not in self.packed:
                    mask = less(at, columns)
                value = self.load("b", ZERO, index_add(nb, at), where, inner, mask)
                inner.stmts.append(Store(row, (index_add(at, Const(to)),), value))

            self.vectors(s, nr, vector)

        def multiply(s: Scope, a: Expr, i: Expr, where: int) -> None:
            def vector(inner: Scope, at: Expr) -> None:
                place = (index_add(index_mul(i, nr * lanes), at),)
                product = S.prim("mul", a, Load(row, (index_add(at, Const(where)),)))
                inner.stmts.append(Store(acc, place, S.prim("add", Load(acc, place), product)))

            self.vectors(s, nr, vector)

        def step(s: Scope, where: dict[Expr, Expr]) -> None:
            load_row(s, where, 0)
            i = Var("i", mr)
            rows = s.loop(i, mr, "unroll")
            multiply(rows, rows.let(self.load("a", index_add(mb, i), ZERO, where, rows), "a"), i, 0)
            rows.close()

        def together(s: Scope, steps: list[dict[Expr, Expr]]) -> None:
            users: dict[object, tuple[Expr, list[tuple[int, int]]]] = {}
            for u, where in enumerate(steps):
                load_row(s, where, u * nr * lanes)
            for i in range(mr):  # first users first: so every row takes its steps in order
                for u, where in enumerate(steps):
                    element = self.load("a", index_add(mb, Const(i)), ZERO, where, s)
                    at, const = terms(next(x for x in walk(element) if isinstance(x, Load)).index[0])
                    users.setdefault((const, *at), (element, []))[1].append((i, u))
            for element, found in users.values():
                a = s.let(element, "a")
                for i, u in found:
                    multiply(s, a, Const(i), u * nr * lanes)

        if ahead:
            self.k_ahead(block, mb, mr, nb, nr, step, part)
        elif self.far and spread:
            self.k_bringing(block, mb, mr, nb, nr, lines, step, part)
        else:
            several = together if share > 1 else None
            self.k_steps(block, self.g.inner[-1], mr * nr, k, step, part, share, several)
        block.close_to(scope)
        if part.last is not True or self.region:
            kept = scope
            if isinstance(part.last, Expr) and not self.region:
                kept = scope.branch(S.prim("not_", part.last))
            target, home = self.partial(), self.home(mb)
            i = Var("i", mr)
            rows = kept.loop(i, mr, "unroll")
            # Sums of all rows lie one after the other: of those that have been, this block of k is in them.
            late = self.region and home is not mb and part.size < self.K
            mask = S.ge(index_add(mb, i), home) if late else None

            def keep(s: Scope, at: Expr) -> None:
                at = index_add(index_mul(i, nr * lanes), at)
                s.stmts.append(Store(target, (sums(at),), Load(acc, (at,)), mask))

            self.vectors(rows, nr, keep)
            rows.close()
            if kept is not scope:
                kept.close()
        if part.last is not False and not self.region:
            done = scope if part.last is True else scope.branch(part.last)
            self.epilogue(done, acc, mb, mr, nb, nr * lanes, columns)
            if done is not scope:
                done.close()

    def partial(self) -> Buffer:
        """Sums over the blocks of k so far, tile after tile as the registers hold them."""
        if self._partial is None:
            rows = -(-self.m.size // self.s.mr) * self.s.mr
            size = prod(d.size for d in self.outer) * rows * self.reach
            self._partial = Buffer("partial", self.g.acc, (size,), "arena")
        return self._partial

    @property
    def reach(self) -> int:
        """Columns of all tiles, where none overlap."""
        width, nc = self.s.nr * self.lanes, min(self.s.nc, self.columns)
        count = self.columns
        if nc:
            count = sum(n * size for n, size in cover(self.columns, nc, self.again["b"]))
        return -(-count // width) * width

    def sums_at(self, scope: Scope, mb: Expr, nb: Expr, nr: int) -> Callable[[Expr], Expr]:
        """Where the vectors of the tile at (mb, nb) are in `partial`, from where they are in the tile."""
        if not self.region:
            start = self.partial_at(scope, mb, nb, nr)
            return lambda at: index_add(start, at)
        width, base = nr * self.lanes, self.region_base(scope, nb)

        def place(at: Expr) -> Expr:
            row = self.region_row(scope, index_add(mb, index_div(at, width)))
            return index_add(index_mul(row, self.pitch), index_add(base, index_mod(at, width)))

        return place

    def row_vars(self) -> tuple[Expr, ...]:
        """The scheduler's variables of rows that lanes may tell apart."""
        return (self.m.var, *(d.var for d in self.inside))

    def region_row(self, scope: Scope, m: Expr) -> Expr:
        """See contract_turned.py."""
        raise NotImplementedError  # pragma: no cover - abstract

    def turns_of(self, mb: Expr, mr: int, nb: Expr, columns: int, part: Block) -> Turns | None:
        """See contract_turned.py."""
        raise NotImplementedError  # pragma: no cover - abstract

    def region_base(self, scope: Scope, nb: Expr) -> Expr:
        """See contract_turned.py."""
        raise NotImplementedError  # pragma: no cover - abstract

    def partial_at(self, scope: Scope, mb: Expr, nb: Expr, nr: int) -> Expr:
        """Where the tile at (mb, nb) starts there: [outer..., column tile, row tile, tile]; where it is
        local, [rows inside..., row tile, tile]."""
        if self.s.kc >= self.K:
            return ZERO
        mb, nb = self.home(mb), self.home(nb)
        rows = -(-self.m.size // self.s.mr) * self.s.mr
        width = self.s.nr * self.lanes
        out: Expr = ZERO
        local = self._partial is not None and self._partial.space == "local"  # of one column tile
        for d in self.inside if local else self.outer:
            value = scope.find(self.low.number(d.var)) if isinstance(d.var, Var) else ZERO
            assert value is not None
            out = index_add(index_mul(out, d.size), value)
        if local:
            return index_add(index_mul(out, rows * width), index_mul(mb, nr * self.lanes))
        out = index_mul(out, self.reach * rows)
        return index_add(index_add(out, index_mul(nb, rows)), index_mul(mb, nr * self.lanes))

    def vectors(self, scope: Scope, count: int, body: Callable[[Scope, Expr], None]) -> None:
        """`count` vectors of a register buffer."""
        outer, base = scope, ZERO
        if count > 1:
            j = Var("j", count)
            outer, base = scope.loop(j, count, "unroll"), index_mul(j, self.lanes)
        lane = Var("v", self.lanes)
        inner = outer.loop(lane, self.lanes, "vector") if self.lanes > 1 else outer.inline()
        body(inner, index_add(base, lane) if self.lanes > 1 else base)
        inner.close()
        if outer is not scope:
            outer.close()

    def dot_tile(self, scope: Scope, mb: Expr, mr: int, nb: Expr, nr: int, columns: int) -> None:
        """An mr x nr tile of dot products, lanes along k."""
        lanes, acc_type = self.lanes, self.g.acc
        acc = scope.alloc("acc", acc_type, mr * nr * lanes, "register")
        row = scope.alloc("b", acc_type, nr * lanes, "register")
        zero = Const(0, acc_type)
        self.vectors(scope, mr * nr, lambda s, at: s.stmts.append(Store(acc, (at,), zero)))
        last = self.g.inner[-1]
        block, k = self.k_loops(scope, len(self.g.inner) - 1, self.whole)

        def step(s: Scope, base: Expr, left: int) -> None:
            j = Var("j", nr)
            columns_ = s.loop(j, nr, "unroll")
            lane = Var("v", lanes)
            inner = columns_.loop(lane, lanes, "vector")
            mask = less(lane, left) if left < lanes else None
            where = {**k, last.var: index_add(base, lane)}
            value = self.load("b", ZERO, index_add(nb, j), where, inner, mask)
            inner.stmts.append(Store(row, (j * lanes + lane,), value))
            inner.close()
            columns_.close()
            i = Var("i", mr)
            rows = s.loop(i, mr, "unroll")
            a_row = rows.alloc("a", acc_type, lanes, "register")
            lane2 = Var("v", lanes)
            inner = rows.loop(lane2, lanes, "vector")
            mask = less(lane2, left) if left < lanes else None
            value = self.load(
                "a", index_add(mb, i), ZERO, {**k, last.var: index_add(base, lane2)}, inner, mask
            )
            inner.stmts.append(Store(a_row, (lane2,), value))
            inner.close()
            j2 = Var("j", nr)
            columns_ = rows.loop(j2, nr, "unroll")
            lane3 = Var("v", lanes)
            inner = columns_.loop(lane3, lanes, "vector")
            at = (index_add(index_add(i * (nr * lanes), j2 * lanes), lane3),)
            product = S.prim("mul", Load(a_row, (lane3,)), Load(row, (j2 * lanes + lane3,)))
            inner.stmts.append(Store(acc, at, S.prim("add", Load(acc, at), product)))
            inner.close()
            columns_.close()
            rows.close()

        whole = last.size // lanes * lanes
        if whole > lanes:
            v = Var("k", whole)
            inner = block.loop(v, whole, "serial", lanes)
            step(inner, v, lanes)
            inner.close()
        elif whole:
            step(block, ZERO, lanes)
        if whole < last.size:
            step(block, Const(whole), last.size - whole)
        block.close_to(scope)
        if mr > 1 and self.K >= LONG_SUM:  # the code that adds up lanes is not repeated for every row
            sums = scope.alloc("sums", acc_type, mr * nr * lanes, "local")
            self.vectors(scope, mr * nr, lambda s, at: s.stmts.append(Store(sums, (at,), Load(acc, (at,)))))
            acc = sums
        wide = power_of_two(nr)
        tile = scope.alloc("tile", acc_type, mr * wide, "local")
        i, j = Var("i", mr), Var("j", nr)
        rows = scope.loop(i, mr, "unroll" if acc.space == "register" else "serial")
        columns_ = rows.loop(j, nr, "unroll")
        lane = Var("v", lanes)
        total = LaneReduce("add", lane, Load(acc, (index_add(index_add(i * (nr * lanes), j * lanes), lane),)))
        columns_.stmts.append(Store(tile, (i * wide + j,), total))
        columns_.close()
        rows.close()
        self.finish(scope, tile, mb, mr, nb, wide, columns, wide, serial=True)

    # --- epilogue

    def epilogue(
        self, scope: Scope, acc: Buffer, mb: Expr, mr: int, nb: Expr, width: int, columns: int
    ) -> None:
        if self.n.c != 1 and not self.n.parts and self.m.c == 1 and mr > 1 and self.machine.masked_memory:
            self.finish_turned(scope, acc, mb, mr, nb, width, columns)
            return
        home = self.home(mb)
        once = home is not mb and not self.pure
        if (self.long or once) and mr > 1:
            tile = scope.alloc("tile", acc.dtype, mr * width, "local")
            self.vectors(
                scope,
                mr * width // self.lanes,
                lambda s, at: s.stmts.append(Store(tile, (at,), Load(acc, (at,)))),
            )
            acc = tile
        self.finish(
            scope, acc, mb, mr, nb, width, columns, self.lanes, self.long or once, home if once else None
        )

    def finish_turned(
        self, scope: Scope, acc: Buffer, mb: Expr, mr: int, nb: Expr, width: int, columns: int
    ) -> None:
        """Stores of a tile whose rows, not columns, are neighbours in the result: squares of it are turned
        in registers, and vectors go along the rows. The tile is written down first: with all of it and a
        square in registers at once, LLVM would spill within the loop over k."""
        lanes = self.lanes
        tile = scope.alloc("tile", acc.dtype, -(-mr // lanes) * lanes * width, "local")
        self.vectors(
            scope,
            mr * width // lanes,
            lambda s, at: s.stmts.append(Store(tile, (at,), Load(acc, (at,)))),
        )
        down, row = scope, ZERO
        if mr > lanes:
            row = Var("r", -(-mr // lanes) * lanes)
            down = scope.loop(row, row.extent, "serial", lanes)

        def at_row(s: Scope, lane: Expr) -> None:
            s.define(self.m.var, index_add(index_add(mb, row), lane))

        def square(s: Scope, first: Expr, size: int) -> None:
            start = index_add(index_mul(row, width), first)
            kept = (row, mr) if mr % lanes else None
            self.turn(s, tile, start, width, min(mr, lanes), size, index_add(nb, first), at_row, kept)

        self.squares(down, "c", columns, min(lanes, SHALLOW), self.again["b"], square)
        if down is not scope:
            down.close()

    def turn(
        self,
        scope: Scope,
        tile: Buffer,
        start: Expr,
        width: int,
        rows: int,
        columns: int,
        column: Expr,
        at_row: Callable[[Scope, Expr], None],
        kept: tuple[Expr, int] | None,
    ) -> None:
        """Stores a few columns of `tile`, rows of `width`, whose first element is at `start`. The scheduler's
        variables of a lane's row are set by `at_row`. With `kept`, lanes whose row, counted from the first
        of the pair, is past the second count for nothing."""
        lanes, acc = self.lanes, tile.dtype
        deep = min(lanes, SHALLOW)
        square = scope.alloc("square", acc, lanes * deep, "register")

        def fill(first: int, count: int, value: Callable[[Expr], Expr]) -> None:
            i, lane = Var("i", count), Var("v", deep)
            each = scope.loop(i, count, "unroll")
            inner = each.loop(lane, deep, "vector")
            row = index_add(i, Const(first))
            put = index_add(index_mul(row, deep), lane)
            inner.stmts.append(Store(square, (put,), value(index_add(index_mul(row, width), lane))))
            inner.close()
            each.close()

        fill(0, rows, lambda at: Load(tile, (index_add(start, at),)))
        if rows < lanes:
            fill(rows, lanes - rows, lambda at: Const(0, acc))
        j, lane = Var("j", columns), Var("v", lanes)
        turned = Load(square, (index_add(index_mul(lane, deep), j),))
        if self.long and columns > 1:  # its code is not repeated for every column
            held = scope.alloc("turned", acc, columns * lanes, "local")
            each = scope.loop(j, columns, "unroll")
            inner = each.loop(lane, lanes, "vector")
            inner.stmts.append(Store(held, (index_add(index_mul(j, lanes), lane),), turned))
            inner.close()
            each.close()
            j, lane = Var("j", columns), Var("v", lanes)
            turned = Load(held, (index_add(index_mul(j, lanes), lane),))
        each = scope.loop(j, columns, "serial" if self.long else "unroll")
        if isinstance(self.n.var, Var):
            each.define(self.n.var, index_add(column, j))
        mask = None if kept is None else S.lt(index_add(kept[0], lane), Const(kept[1]))
        inner = each.loop(lane, lanes, "vector", mask=mask, masked=self.row_vars() if kept else None)
        at_row(inner, lane)
        inner.anchor(self.g.local, turned)
        inner.stores(self.specs)
        inner.close()
        each.close()

    def finish(
        self,
        scope: Scope,
        acc: Buffer,
        mb: Expr,
        mr: int,
        nb: Expr,
        width: int,
        columns: int,
        lanes: int,
        serial: bool,
        since: Expr | None = None,
    ) -> None:
        """Stores of the tile held in `acc`, row by row in vectors; of the rows from `since` on."""
        rows = scope
        i: Expr = ZERO
        if mr > 1:
            v = Var("i", mr)
            rows, i = scope.loop(v, mr, "serial" if serial else "unroll"), v
        if since is not None:
            rows = rows.branch(S.ge(index_add(mb, i), since))
        if isinstance(self.m.var, Var):
            rows.define(self.m.var, index_add(mb, i))
        whole = columns // lanes

        def block(s: Scope, j: Expr, left: int) -> None:
            left = left if self.row is None else self.n.size
            wide = lanes if left >= lanes or (self.machine.masked_memory and left > 1) else 0
            if not wide:
                for x in range(left):
                    one = s.inline()
                    self.store_at(one, acc, nb, index_add(j, Const(x)), i, width)
                    one.close()
                return
            lane = Var("v", wide)
            if wide > 1:
                mask = less(lane, left) if left < wide else None
                inner = s.loop(
                    lane, wide, "vector", mask=mask, masked=self.n.var if mask is not None else None
                )
            else:
                inner = s.inline()
            self.store_at(inner, acc, nb, index_add(j, lane) if wide > 1 else j, i, width)
            inner.close()

        if whole > 1:
            v = Var("j", whole)
            inner = rows.loop(v, whole, "unroll")
            block(inner, v * lanes, lanes)
            inner.close()
        elif whole:
            block(rows, ZERO, lanes)
        if columns % lanes:
            block(rows, Const(whole * lanes), columns % lanes)
        rows.close_to(scope)

    def store_at(self, scope: Scope, acc: Buffer, nb: Expr, j: Expr, i: Expr, width: int) -> None:
        at = index_add(nb, j)
        if self.row is not None:
            scope.define(self.row.var, index_div(at, self.lanes))
            at = index_mod(at, self.lanes)
        if isinstance(self.n.var, Var):
            scope.define(self.n.var, at)
        scope.anchor(self.g.local, Load(acc, (index_add(index_mul(i, width), j),)))
        scope.stores(self.specs)
