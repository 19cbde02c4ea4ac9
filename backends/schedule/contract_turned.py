"""Contractions whose rows, not columns, are neighbours in the result, as pixels of a channel are: sums of a
*region* of rows are kept as the tiles make them, row after row, and when all are complete, whole squares of
them are turned and go through the epilogue. A tile has few rows; turned by itself it would cost the shuffles
of a whole square, and store parts of lines.

    for rows of the region, tile by tile:  sums[row, :] = acc
    for squares of sums:                   turn, epilogue --> whole vectors along the rows

Used by contract_loops.py.
"""

from __future__ import annotations

from math import lcm, prod

from ...ir.expr import Const, Expr, Var, index_add, index_div, index_mul
from ...ir.loops import Buffer, Prefetch
from .contract import Dim
from .contract_operands import SHALLOW, Block, Part
from .contract_packing import Turns
from .contract_steps import AT_ONCE
from .contract_tile import ContractTile
from .indexing import ZERO, is_index, ravel, unravel
from .scopes import Scope

#: how many squares of rows to turn before those of other columns, where their sums exceed the first cache
SQUARES = (4, 3, 5)


class ContractTurned(ContractTile):
    """Adds regions."""

    @property
    def turns(self) -> bool:
        """Whether what is stored is turned first."""
        n, m = self.n, self.m
        along = m.sub[-1].c if m.sub else m.c
        if self.s.dot or self.row is not None or n.parts or not self.machine.masked_memory:
            return False
        return n.c != 1 and along == 1 and m.size > 1 and self.lanes > 1

    @property
    def columns_for_threads(self) -> bool:
        """Whether there are tiles of columns for threads to share evenly."""
        tiles, threads = self.columns // (self.s.nr * self.lanes), self.machine.threads
        return tiles >= 2 * threads or (tiles > 0 and tiles % threads == 0)

    def parts(self, dims: list[Dim], start: Expr = ZERO, size: int = 0) -> list[Part]:
        """Dimensions as a region, in the result's order; of the first `size` from `start` on, where given."""
        found: list[Part] = []
        for k, d in enumerate(dims):
            if d.sub:
                first, m = d.sub
                some = k == 0 and size > 0
                part, at = (size // m.size, index_div(start, m.size)) if some else (first.size, ZERO)
                found.append(Part(d, part, at, first.c, first.size))
                found.append(Part(d, m.size, ZERO, m.c, m.size, 1))
            elif k == 0 and size:
                found.append(Part(d, size, start, d.c, d.size))
            else:
                found.append(Part(d, d.size, ZERO, d.c, d.size))
        return sorted(found, key=lambda p: -p.c)

    def region_dims(self) -> tuple[list[Dim], int]:
        """Dimensions of the rows, outermost first, whose sums stay in the first cache, and how much of the
        first of them."""
        s, m = self.s, self.m
        most = max(1, self.machine.l1_bytes * 2 // 3 // (s.nr * self.lanes * self.g.acc.itemsize))
        rows = [d for d in self.outer if not d.b and isinstance(d.var, Var) and d in self.g.rows]
        if self.parallel and len(rows) == len(self.outer) and self.columns <= s.nr * self.lanes:
            whole = m.size * prod(d.size for d in rows)
            most = min(most, max(s.mr, whole // (4 * self.machine.threads)))
        if m.sub:  # what they take as one is not behind each other in the result; all rows mostly are
            whole = m.size * prod(d.size for d in rows)
            near = whole * s.nr * self.lanes * self.g.acc.itemsize <= self.machine.l2_bytes // 2
            if near and (not self.parallel or self.columns_for_threads):
                return [*rows, m], rows[0].size if rows else m.size
        if m.size > most:
            step = lcm(s.mr, self.lanes)
            return [m], step if step <= most else max(1, most // s.mr) * s.mr
        dims, size = [m], m.size
        while True:
            first = dims[0]
            outer = next((d for d in rows if not first.sub and d.c == first.c * first.size), None)
            if outer is None or 2 * size > most:
                return dims, first.size
            dims.insert(0, outer)
            if outer.size * size > most:
                return dims, fitting(outer.size, most // size)
            size *= outer.size

    def region_row(self, scope: Scope, m: Expr) -> Expr:
        """The number, in the region, of row `m` at the other dimensions' present values."""
        out: Expr = ZERO
        for p in self.region:
            if p.dim.sub:
                value = unravel(m, tuple(s.size for s in p.dim.sub))[p.sub]
            elif p.dim is self.m:
                value = m
            else:
                found = scope.find(self.low.number(p.dim.var)) if isinstance(p.dim.var, Var) else ZERO
                assert found is not None
                value = found
            out = index_add(index_mul(out, p.size), index_add(value, index_mul(p.start, -1)))
        return out

    def turn_region(self, scope: Scope, nb: Expr, columns: int) -> None:
        """The epilogue of a region's columns from `nb` on."""
        lanes, region = self.lanes, self.region
        shared, self.parallel = self.parallel, False
        first = len(region) - 1
        while first and region[first].size == region[first].whole and (
            region[first - 1].c == region[first].c * region[first].size
        ):  # fmt: skip
            first -= 1
        leading, run = region[:first], region[first:]
        size = prod(p.size for p in run)
        each, row = scope, ZERO
        values: dict[int, Expr] = {}
        for p in leading:
            value: Expr = ZERO
            if p.size > 1:
                v = Var("r", p.size)
                each = each.loop(v, p.size, "serial")
                value = v
            row = index_add(index_mul(row, p.size), value)
            values[id(p)] = index_add(value, p.start)
        row, base = index_mul(row, size), self.region_base(scope, nb)
        sizes = tuple(p.size for p in run)
        tile = self.partial()

        def squares(s: Scope, first: Expr, width: int, at: Expr, rows: int) -> None:
            def at_row(inner: Scope, lane: Expr) -> None:
                for p, value in zip(run, unravel(index_add(at, lane), sizes)):
                    values[id(p)] = index_add(value, p.start)
                for d in {id(p.dim): p.dim for p in region}.values():
                    mine = sorted((p for p in region if p.dim is d), key=lambda p: p.sub)
                    index = tuple(values[id(p)] for p in mine)
                    inner.define(d.var, ravel(index, tuple(p.whole for p in mine)))

            start = index_add(index_mul(index_add(row, at), self.pitch), index_add(base, first))
            kept = (ZERO, rows) if rows < lanes else None
            self.turn(s, tile, start, self.pitch, rows, width, index_add(nb, first), at_row, kept)

        again = self.again["b"]
        part, start = each, ZERO
        many = -(-size // lanes)
        some = min(SQUARES, key=lambda q: -(-many // q) * q)
        apart = again and many > some and tile.nbytes > self.machine.l1_bytes
        if apart:
            start = Var("g", -(-many // some) * some * lanes)
            part = each.loop(start, start.extent, "serial", some * lanes)

        def rows_of(s: Scope, where: Expr, width: int) -> None:
            if apart:
                v = Var("p", some * lanes)
                inner = s.loop(v, some * lanes, "serial", lanes)
                at = index_add(start, v)
                if many % some or size % lanes:
                    at = self.limited(inner, at, size - lanes)
                squares(inner, where, width, at, lanes)
                inner.close()
            else:
                self.squares(s, "p", size, lanes, again, lambda inner, at, rows:
                    squares(inner, where, width, at, rows))  # fmt: skip

        self.squares(part, "c", columns, min(lanes, SHALLOW), again, rows_of)
        part.close_to(scope)
        self.parallel = shared

    def turns_of(self, mb: Expr, mr: int, nb: Expr, columns: int, part: Block) -> Turns | None:
        """Prefetching in a tile's loops over k: of the next image, and of what the region's epilogue will
        write of the tile, some columns at a time."""
        if mr < self.s.mr:  # that is mostly in lines of the tiles before
            return None
        written = [] if part.last is False else self.region_places()
        lines = -(-mr * self.g.acc.itemsize // self.machine.vector_bytes) * len(written)
        if part.size < columns * lines:
            written = []
        wanted = max(2, -(-columns * lines // AT_ONCE))

        def begin(scope: Scope, k: dict[Expr, Expr], turn: Expr, turns: int, around: int) -> None:
            if around == 1:
                self.bring_image(scope, mb, k, part)
            if len(k) == len(self.g.inner) - 1:
                self.bring_block(scope, mb, mr, nb, columns, k, part)
            if not written or not around < wanted <= turns:
                return
            near = scope.branch(part.last) if isinstance(part.last, Expr) else scope
            each = -(-columns // turns)
            for j in range(each):
                one = near.inline()
                column = index_add(index_mul(turn, each), Const(j))
                if turns * each > columns:
                    column = self.limited(one, column, columns - 1)
                if isinstance(self.n.var, Var):
                    one.define(self.n.var, index_add(nb, column))
                for i in range(0, mr, self.machine.vector_bytes // self.g.acc.itemsize):
                    inner = one.inline()
                    if isinstance(self.m.var, Var):
                        inner.define(self.m.var, index_add(mb, Const(i)))
                    for buffer, index in written:
                        inner.stmts.append(Prefetch(self.low.place(buffer), (inner.lower(index),), True))
                    inner.close()
                one.close()
            near.close_to(scope)

        return begin

    def region_places(self) -> list[tuple[Buffer, Expr]]:
        """Where in large buffers the region's epilogue writes, if lines of it stay in the second cache until
        then. A tile's rows must be neighbours there."""
        size, m = self.machine.l2_bytes, self.m
        if not self.region or 4 * self.partial().nbytes > size or len(self.g.inner) < 2:
            return []
        if m.sub and m.sub[0].c != m.sub[1].c * m.sub[1].size:
            return []
        return [(b, at) for b, at, _ in self.specs if 2 * self.place(b).nbytes > size and is_index(at)]

    def region_base(self, scope: Scope, nb: Expr) -> Expr:
        """Where the region's sums of the columns from `nb` on begin."""
        if self.partial().space == "local":
            return ZERO
        rows = prod(p.size for p in self.region)
        out: Expr = ZERO
        for d in self.outer:
            if isinstance(d.var, Var) and d not in self.inside:
                value = scope.find(self.low.number(d.var))
                assert value is not None
                out = index_add(index_mul(out, d.size), value)
        return index_mul(index_add(index_mul(out, self.reach), self.home(nb)), rows)

    def local_sums(self, scope: Scope, columns: int) -> None:
        """Room of this thread for the region's sums of a tile's columns."""
        self.pitch = -(-columns // self.lanes) * self.lanes
        self._partial = scope.alloc(
            "sums", self.g.acc, prod(p.size for p in self.region) * self.pitch, "local"
        )

    def far_sums(self) -> None:
        """Room for the sums of all regions, which hold all rows."""
        self.pitch = self.s.nr * self.lanes
        rows = prod(p.size for p in self.region)
        others = prod(d.size for d in self.outer if d not in self.inside)
        self._partial = Buffer("sums", self.g.acc, (others * rows * self.reach,), "arena")


def fitting(size: int, most: int) -> int:
    """How many of `size` to take at a time, at most `most`: as many each time, if that is not much less."""
    even = next(q for q in range(min(most, size), 0, -1) if size % q == 0)
    return even if 2 * even > most else most
