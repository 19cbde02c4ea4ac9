"""Loops of contractions: packing, the register-tiled kernel, the epilogue on the tile. Used by
schedule/__init__.py.

    for column tile            the panel of B it needs stays in the first cache
      for row tile
        acc[MR, NR] = 0        registers
        for k: b[NR] = B[k, columns];  acc[i, :] += A[row i, k] * b      for every row of the tile
        epilogue(acc) --> stored values

Tiles at the edges are separate code with fewer rows, or with lanes masked off.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod

from ...ir.expr import Const, Expr, Var, index_add, index_mul
from ...ir.loops import Buffer, Stmt
from ..machine import MachineModel
from .contract import ContractGroup, Dim
from .contract_operands import Block, Packed
from .contract_turned import ContractTurned, fitting
from .elements import S
from .indexing import ZERO, Numbering
from .nests import StoreSpec
from .scopes import Scope
from .tiles import cover, rows_first, splits

#: rows after which bringing a block of B to the first cache again costs next to nothing
ENOUGH_ROWS = 256


class ContractEmitter(ContractTurned):
    """One contraction on its way to statements."""

    def emit(self) -> list[Stmt]:
        """The kernel's statements."""
        top = Scope(self.low)
        if self.turns and self.s.pack_a:
            self.again["a"] = False  # parts of the rows begin where panels do
        for which, wanted in (("b", self.s.pack_b), ("a", self.s.pack_a)):
            if wanted and self.g.reuse(which) > 1:
                once = Scope(self.low)
                self.pack(once, which)
                self.packed_once.append(Packed(once.stmts, self.source(which), self.packed[which]))
            elif wanted and not (which == "b" and self.s.nc):
                self.pack(top, which)
        macs = self.m.size * self.columns * self.K * prod(d.size for d in self.outer)
        cycles = 2 * macs / self.machine.flops_per_cycle
        self.parallel = self.machine.threads > 1 and cycles > self.machine.parallel_cycles
        scope = top
        inside = self.inside = self.inner_rows()
        for d in self.outer:
            if isinstance(d.var, Var) and d not in inside:
                scope = self.open(scope, d.var, d.size, 1, self.take_parallel(scope, d.size))
        if self.s.nc:
            self.blocked_loops(scope, inside)
        else:
            self.tile_loops(scope)
        scope.close_to(top)
        return top.stmts

    def inner_rows(self) -> list[Dim]:
        """Loops over rows of A that go inside those over blocks of B, so that a block is used for all of
        them; or over rows of a region, whose sums are turned together. Where A is windows, as many as leave
        partial sums in the second cache, and threads something to share."""
        if self.s.nc:
            return [d for d in self.outer if not d.b]
        rows = [d for d in self.outer if not d.b and isinstance(d.var, Var)]
        if self.turns and self.s.kc >= self.K:
            dims, _ = self.region_dims()
            return dims[:-1]
        if not self.blocked_windows or self.row is not None:
            return []
        alone = self.parallel and len(rows) == len(self.outer)  # threads share the first of them
        if self.turns and self.m.sub and self.columns_for_threads:
            alone = False  # what rows taken as one give lies among what the others do: some would leave gaps
        room = self.machine.l2_bytes // 2 // (self.m.size * self.s.nr * self.lanes * self.g.acc.itemsize)
        found: list[Dim] = []
        for d in reversed(rows):
            shared = alone and d is rows[0]
            if d.size <= room and not shared:
                found.insert(0, d)
                room //= d.size
                continue
            room = min(room, d.size // (2 * self.machine.threads)) if shared else room
            if self.turns and room > 1 and self.m.size * prod(f.size for f in found) < ENOUGH_ROWS:
                found.insert(0, d)
                self.chunk = fitting(d.size, room)
            break
        return found

    @property
    def blocked_windows(self) -> bool:
        """Whether A is windows, read again and again, and k is cut so that what is read stays in the first
        cache."""
        s = self.s
        return not s.dot and not s.nc and s.kc < self.K and self.g.windows[1 if s.swap else 0]

    # --- loops over tiles

    def tile_loops(self, scope: Scope) -> None:
        """Column tiles around row tiles, or the other way round where only the latter can keep threads
        busy."""
        s, one = self.s, self.one_tile
        width = s.nr if s.dot else s.nr * self.lanes
        # Rows first too where the row tile is the larger part of what is read and stays in the cache.
        b_bytes = self.K * self.n.size * self.g.acc.itemsize
        down = s.dot or rows_first(s.pack_b and s.kc >= self.K, b_bytes, self.machine)
        if self.blocked_windows and self.chunk:
            first = self.inside[0]
            self.tiles(scope, first.letters, first.size, self.chunk, lambda o, start, count:
                self.column_tiles(o, width, lambda i, nb, n:
                    self.window_blocks(i, nb, n, start, count)), again=self.again["b"])  # fmt: skip
        elif self.blocked_windows:
            self.column_tiles(scope, width, self.window_blocks)
        elif self.turns and s.kc >= self.K:
            _, size = self.region_dims()
            few = self.parallel and self.columns // width < 4
            self.region_tiles(scope, width, down or (few and self.m.size // size >= 4))
        elif down or (self.parallel and self.columns // width < 4 <= self.m.size // s.mr):
            self.row_tiles(scope, lambda o, mb, mr: self.column_tiles(o, width, lambda i, nb, n:
                self.k_blocks(i, lambda k, b: one(k, mb, mr, nb, n, b))))  # fmt: skip
        else:
            self.column_tiles(scope, width, lambda o, nb, n: self.k_blocks(o, lambda i, b:
                self.row_tiles(i, lambda k, mb, mr: one(k, mb, mr, nb, n, b))))  # fmt: skip

    def window_blocks(self, scope: Scope, nb: Expr, columns: int, start: Expr = ZERO, count: int = 0) -> None:
        """One column tile: a block of k after the other, each for all rows inside, or `count` from `start` on
        of the first dimension of them."""
        if self.turns:
            self.region = self.parts([*self.inside, self.m], start, count)
            self.local_sums(scope, columns)
        else:
            rows = -(-self.m.size // self.s.mr) * self.s.mr
            size = prod(d.size for d in self.inside) * rows * self.s.nr * self.lanes
            self._partial = scope.alloc("partial", self.g.acc, size, "local")

        def block(at: Scope, part: Block) -> None:
            inner = at
            for d in self.inside:
                assert isinstance(d.var, Var)
                if count and d is self.inside[0]:
                    v = Var(d.var.name, count)
                    inner = inner.loop(v, count, "serial")
                    inner.define(d.var, index_add(v, start))
                else:
                    inner = self.open(inner, d.var, d.size, 1, False)
            self.row_tiles(inner, lambda k, mb, mr: self.one_tile(k, mb, mr, nb, columns, part))
            inner.close_to(at)

        self.k_blocks(scope, block)
        if self.region:
            self.turn_region(scope, nb, columns)
            self.region = []

    def region_tiles(self, scope: Scope, width: int, down: bool) -> None:
        """Tiles region by region: the rows of one, for the same columns, one after the other, then what
        they have in store."""
        if down:
            self.regions(scope, lambda o, region: self.column_tiles(o, width, region))
        else:
            self.column_tiles(scope, width, lambda o, nb, n:
                self.regions(o, lambda i, region: region(i, nb, n)))  # fmt: skip

    def regions(
        self,
        scope: Scope,
        body: Callable[[Scope, Callable[[Scope, Expr, int], None]], None],
        part: Block | None = None,
    ) -> None:
        """`body(scope, region)` for every region, where `region(scope, nb, columns)` computes its columns
        [nb, nb + columns)."""
        dims, size = self.region_dims()
        outermost = dims[0]
        block = part or self.whole

        def chunk(at: Scope, start: Expr, count: int) -> None:
            def region(s: Scope, nb: Expr, columns: int) -> None:
                shared, self.parallel = self.parallel, False
                self.region = self.parts(dims, start, count)
                self.local_sums(s, columns)
                inner = s
                for d in dims[:-1]:
                    assert isinstance(d.var, Var)
                    extent, first = (count, start) if d is outermost else (d.size, ZERO)
                    v = Var(d.var.name, extent)
                    inner = inner.loop(v, extent, "serial")
                    inner.define(d.var, index_add(v, first))
                rows, first = (count, start) if self.m is outermost else (self.m.size, ZERO)

                def tile(k: Scope, mb: Expr, mr: int) -> None:
                    self.one_tile(k, index_add(first, mb), mr, nb, columns, block)

                self.tiles(inner, self.m.letters, rows, self.s.mr, tile, bool(self.m.sub), self.again["a"])
                inner.close_to(s)
                self.turn_region(s, nb, columns)
                self.region, self.parallel = [], shared

            body(at, region)

        again = self.again["a"] and not outermost.sub
        self.tiles(scope, outermost.letters, outermost.size, size, chunk, bool(outermost.sub), again)

    def one_tile(self, at: Scope, mb: Expr, mr: int, nb: Expr, columns: int, block: Block) -> None:
        inner = at.inline()
        if self.s.dot:
            self.dot_tile(inner, mb, mr, nb, columns, columns)
        else:
            self.outer_tile(inner, mb, mr, nb, -(-columns // self.lanes), columns, block)
        inner.close()

    def blocked_loops(self, scope: Scope, inside: list[Dim]) -> None:
        """Blocks of B, each used before the next is read. What is packed is so by the thread that uses it,
        right before it does."""
        width = self.width("b")
        letters = self.n.letters

        def panels(at: Scope, nb: Expr, columns: int) -> None:
            def block(b_scope: Scope, part: Block) -> None:
                if self.s.pack_b:
                    self.pack_block(b_scope, nb, columns, part)
                row_scope = b_scope
                for d in inside:
                    if isinstance(d.var, Var) and d not in dims:
                        row_scope = self.open(row_scope, d.var, d.size, 1, False)

                def each(at: Scope, body: Callable[[Scope, Expr, int], None]) -> None:
                    self.tiles(at, letters, columns, width, lambda i, at, n:
                        body(i, index_add(nb, at), n), self.s.flat, self.again["b"])  # fmt: skip

                if dims:
                    self.regions(row_scope, each, part)
                else:
                    self.row_tiles(row_scope, lambda o, mb, mr:
                        each(o, lambda i, at, n: self.one_tile(i, mb, mr, at, n, part)))  # fmt: skip
                row_scope.close_to(b_scope)

            if self.s.pack_b:
                size = -(-columns // width) * width * self.s.kc
                self.packed["b"] = at.alloc("panel", self.g.acc, size, "local")
            self.k_blocks(at, block)
            if self.region:
                self.tiles(at, letters, columns, width, lambda i, first, n:
                    self.turn_region(i, index_add(nb, first), n), self.s.flat, self.again["b"])  # fmt: skip

        # Turned are regions of rows; those of all rows where k is cut.
        dims: list[Dim] = []
        if self.turns and self.s.kc >= self.K:
            dims, _ = self.region_dims()
        elif self.turns:
            self.region = self.parts([*(d for d in inside if isinstance(d.var, Var)), self.m])
            self.far_sums()
        block = min(self.s.nc, self.n.size)
        self.tiles(scope, letters, self.n.size, block, panels, self.s.flat, self.again["b"])

    def k_blocks(
        self,
        scope: Scope,
        body: Callable[[Scope, Block], None],
        done: tuple[tuple[Expr, int], ...] = (),
        first: bool | Expr = True,
        last: bool | Expr = True,
    ) -> None:
        """`body` for every block of k whose panels fit the cache; one block where all of k does. Of several
        contracted dimensions the first are stepped through one by one and the last are whole."""
        dims = self.g.inner[len(done) :]
        all_k = prod(d.size for d in dims)
        if not dims or self.s.kc >= all_k:
            body(scope, Block((*done, *((ZERO, d.size) for d in dims)), first, last))
            return
        size, start = dims[0].size, 0
        for count, n in splits(size, max(1, self.s.kc * size // all_k)):
            inner, where = scope.inline(), Const(start)
            if count > 1:
                v = Var("kb", count * n)
                inner = scope.loop(v, count * n, "serial", n)
                where = index_add(v, where)
            begins = start == 0 and (S.eq(where, ZERO) if count > 1 else True)
            ends = start + count * n == size and (S.eq(where, Const(size - n)) if count > 1 else True)
            self.k_blocks(inner, body, (*done, (where, n)), _both(first, begins), _both(last, ends))
            inner.close()
            start += count * n

    def row_tiles(self, scope: Scope, body: Callable[[Scope, Expr, int], None]) -> None:
        self.tiles(scope, self.m.letters, self.m.size, self.s.mr, body, bool(self.m.sub), self.again["a"])

    def column_tiles(self, scope: Scope, width: int, body: Callable[[Scope, Expr, int], None]) -> None:
        """As `tiles`; where vectors are rows the loop counts those, so that a column's row needs no
        division."""
        if self.row is None:
            self.tiles(scope, self.n.letters, self.n.size, width, body, again=self.again["b"])
            return
        lanes = self.lanes
        self.tiles(scope, self.row.letters, self.row.size, width // lanes,
            lambda s, at, n: body(s, index_mul(at, lanes), n * lanes), again=self.again["b"])  # fmt: skip

    def tiles(
        self,
        scope: Scope,
        letters: str,
        extent: int,
        tile: int,
        body: Callable[[Scope, Expr, int], None],
        counted: bool = False,
        again: bool = False,
    ) -> None:
        """`body(scope, start, size)` for every tile of a dimension. With `counted` the loop counts tiles, so
        that divisions of the start can see what it is a multiple of. With `again` they may overlap."""
        start = 0
        for count, size in cover(extent, tile, again):
            if count > 1:
                unit = gcd(size, extent) if start + count * size > extent else size if counted else 1
                v = Var(f"{letters[:1]}t", count * (size // unit))
                floor = self.low.floor
                inner = self.share(scope, v, count, size // unit)
                at = self.clamped(inner, v, (extent - size - start) // unit)
                if at is not v:
                    self.homes[at] = v
                body(inner, index_add(index_mul(at, unit), Const(start)), size)
                inner.close()
                self.low.floor = floor
            else:
                inner = scope.inline()
                body(inner, Const(start), size)
                inner.close()
            start += count * size


def _both(a: bool | Expr, b: bool | Expr) -> bool | Expr:
    if a is True or b is False:
        return b
    if b is True or a is False:
        return a
    assert isinstance(a, Expr) and isinstance(b, Expr)
    return S.prim("and_", a, b)


def emit_contract(
    group: ContractGroup,
    specs: list[StoreSpec],
    machine: MachineModel,
    place: Callable[[Buffer], Buffer],
    number: Numbering,
    packed: list[Packed],
) -> list[Stmt]:
    """All statements of a contraction, but those that pack operands for a whole loop: they go to `packed`."""
    emitter = ContractEmitter(group, specs, machine, place, number)
    body = emitter.emit()
    packed += emitter.packed_once
    return body
