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
from dataclasses import dataclass
from math import prod

from ...ir.expr import Const, Expr, LaneReduce, Load, Var, from_terms, index_add, index_mul, terms
from ...ir.loops import Buffer, Stmt, Store
from ..machine import MachineModel
from .contract import ContractGroup, Dim
from .elements import S
from .indexing import ZERO, Numbering
from .nests import StoreSpec, less, needed_exprs, power_of_two
from .pointwise import work
from .scopes import Lowering, Scope
from .tiles import splits

#: epilogues costlier than this per element run as a loop over the rows of a spilled tile, to keep the code
#: small
LONG_EPILOGUE = 8.0


@dataclass
class Block:
    """A block of k: its start, its size, whether it is the first and the last (a condition where a loop
    decides)."""

    start: Expr
    size: int
    first: bool | Expr
    last: bool | Expr


class ContractEmitter:
    """One contraction on its way to statements."""

    def __init__(
        self,
        group: ContractGroup,
        specs: list[StoreSpec],
        machine: MachineModel,
        place: Callable[[Buffer], Buffer],
        number: Numbering,
    ) -> None:
        self.g = group
        self.specs = specs
        self.machine = machine
        self.place = place
        self.s = group.strategy
        self.m, self.n = group.rows[-1], group.cols[-1]
        self.K = prod(d.size for d in group.inner)
        self.outer: list[Dim] = [*group.batch, *group.rows[:-1], *group.cols[:-1]]
        self.low = Lowering(group.elements.bindings, number, place)
        exprs = needed_exprs(group.elements.bindings, [v for _, _, v in specs])
        self.long = work(exprs) > LONG_EPILOGUE
        self.lanes = self.s.lanes
        self.packed: dict[str, Buffer] = {}
        self._partial: Buffer | None = None
        self.pack_dims: dict[str, list[Dim]] = {}

    def emit(self) -> list[Stmt]:
        """The kernel's statements."""
        top = Scope(self.low)
        if self.s.pack_b:
            self.pack(top, "b")
        if self.s.pack_a:
            self.pack(top, "a")
        macs = self.m.size * self.n.size * self.K * prod(d.size for d in self.outer)
        cycles = 2 * macs / self.machine.flops_per_cycle
        self.parallel = self.machine.threads > 1 and cycles > self.machine.parallel_cycles
        scope = top
        for d in self.outer:
            if isinstance(d.var, Var):
                scope = self.open(scope, d.var, d.size, 1, self.take_parallel(scope, d.size))
        self.tile_loops(scope)
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent
        return top.stmts

    # --- loops over tiles

    def tile_loops(self, scope: Scope) -> None:
        """Column tiles around row tiles, or the other way round where only the latter can keep threads
        busy."""
        s = self.s
        width = s.nr if s.dot else s.nr * self.lanes

        def one(at: Scope, mb: Expr, mr: int, nb: Expr, columns: int, block: Block) -> None:
            inner = at.inline()
            if s.dot:
                self.dot_tile(inner, mb, mr, nb, columns, columns)
            else:
                self.outer_tile(inner, mb, mr, nb, -(-columns // self.lanes), columns, block)
            inner.close()

        if self.parallel and self.n.size // width < 4 <= self.m.size // s.mr:
            self.tiles(scope, self.m, s.mr, lambda o, mb, mr: self.tiles(o, self.n, width, lambda i, nb, n:
                self.k_blocks(i, lambda k, b: one(k, mb, mr, nb, n, b))))  # fmt: skip
        else:
            self.tiles(scope, self.n, width, lambda o, nb, n: self.k_blocks(o, lambda i, b:
                self.tiles(i, self.m, s.mr, lambda k, mb, mr: one(k, mb, mr, nb, n, b))))  # fmt: skip

    def k_blocks(self, scope: Scope, body: Callable[[Scope, Block], None]) -> None:
        """`body` for every block of k whose panels fit the cache; one block where all of k does."""
        size = self.s.kc
        if size >= self.K:
            body(scope, Block(ZERO, self.K, True, True))
            return
        start = 0
        for count, n in splits(self.K, size):
            if count > 1:
                v = Var("kb", count * n)
                inner = scope.loop(v, count * n, "serial", n)
                at = index_add(v, Const(start))
            else:
                inner, at = scope.inline(), Const(start)
            first = start == 0 and (S.eq(at, ZERO) if count > 1 else True)
            last = start + count * n == self.K and (S.eq(at, Const(self.K - n)) if count > 1 else True)
            body(inner, Block(at, n, first, last))
            inner.close()
            start += count * n

    def take_parallel(self, scope: Scope, count: int) -> bool:
        """Whether a loop of `count` iterations is the one to share among threads: an outermost one."""
        at: Scope | None = scope
        while at is not None:
            if at.header is not None:
                return False
            at = at.parent
        return self.parallel and count >= 4

    def open(self, scope: Scope, var: Var, extent: int, step: int, parallel: bool) -> Scope:
        v = Var(var.name, extent)
        inner = scope.loop(v, extent, "parallel" if parallel else "serial", step)
        inner.define(var, v)
        if parallel:
            self.low.floor = inner.depth
        return inner

    def tiles(self, scope: Scope, dim: Dim, tile: int, body: Callable[[Scope, Expr, int], None]) -> None:
        """`body(scope, start, size)` for every tile of a dimension."""
        start = 0
        for count, size in splits(dim.size, tile):
            if count > 1:
                v = Var(f"{dim.letters[:1]}t", count * size)
                shared = self.take_parallel(scope, count)
                inner = scope.loop(v, count * size, "parallel" if shared else "serial", size)
                floor = self.low.floor
                if shared:
                    self.low.floor = inner.depth
                body(inner, index_add(v, Const(start)), size)
                inner.close()
                self.low.floor = floor
            else:
                inner = scope.inline()
                body(inner, Const(start), size)
                inner.close()
            start += count * size

    # --- operands

    def load(
        self, which: str, m: Expr, n: Expr, k: dict[Expr, Expr], scope: Scope, mask: Expr | None = None
    ) -> Expr:
        """An element of A (row m) or B (column n) at the contracted position `k`, widened."""
        g = self.g
        dim, at = (self.m, m) if which == "a" else (self.n, n)
        dims = self.pack_dims.get(which)
        if dims is not None:
            return Load(self.packed[which], (self.panel_index(which, at, k, scope, dims),), None)
        index: Expr = g.offsets[0 if which == "a" else 1]
        for d in (*self.outer, *g.inner):
            stride = d.a if which == "a" else d.b
            if stride and isinstance(d.var, Var):
                value = k.get(d.var) or scope.find(self.low.number(d.var))
                assert value is not None
                index = index_add(index, index_mul(value, stride))
        index = index_add(index, index_mul(at, dim.a if which == "a" else dim.b))
        buffer = self.place(g.buffers[0 if which == "a" else 1])
        e: Expr = Load(buffer, (index,), mask)
        return S.cast(e, g.acc)

    def flat_k(self, k: dict[Expr, Expr]) -> Expr:
        out: Expr = ZERO
        for d in self.g.inner:
            out = index_add(index_mul(out, d.size), k.get(d.var, ZERO))
        return out

    def panel_index(self, which: str, at: Expr, k: dict[Expr, Expr], scope: Scope, dims: list[Dim]) -> Expr:
        """Position in a packed operand: [outer..., tile, k, within the tile]; `at` = tile start + position
        within."""
        width = self.width(which)
        size = (self.m if which == "a" else self.n).size
        tiles = -(-size // width)
        out: Expr = ZERO
        for d in dims:
            value = scope.find(self.low.number(d.var)) if isinstance(d.var, Var) else ZERO
            assert value is not None
            out = index_add(index_mul(out, d.size), value)
        start, inside = self.split_tile(at, width)
        # start is a multiple of width: start * K == tile * K * width
        out = index_add(index_mul(out, tiles * width * self.K), index_mul(start, self.K))
        return index_add(out, index_add(index_mul(self.flat_k(k), width), inside))

    def split_tile(self, at: Expr, width: int) -> tuple[Expr, Expr]:
        """`at` as (start of its tile, rest): the parts that step by whole tiles are the start."""
        items, const = terms(at)
        start = [(t, c) for t, c in items if c % width == 0 or t in self.tile_vars]
        rest = [(t, c) for t, c in items if not (c % width == 0 or t in self.tile_vars)]
        return from_terms(start, const // width * width), from_terms(rest, const % width)

    def width(self, which: str) -> int:
        return self.s.mr if which == "a" else self.s.nr * self.lanes

    def pack(self, top: Scope, which: str) -> None:
        """Copies an operand into panels: tile after tile, k after k, a tile's rows (columns) side by side."""
        g = self.g
        dim = self.m if which == "a" else self.n
        width = self.width(which)
        tiles = -(-dim.size // width)
        dims = [d for d in self.outer if (d.a if which == "a" else d.b)]
        count = prod(d.size for d in dims) * tiles * self.K * width
        buffer = Buffer(f"packed_{g.buffers[0 if which == 'a' else 1].name}", g.acc, (count,), "arena")
        scope = top
        outer_at: Expr = ZERO
        for d in dims:
            if isinstance(d.var, Var):
                scope = self.open(scope, d.var, d.size, 1, False)
            value = scope.find(self.low.number(d.var)) if isinstance(d.var, Var) else ZERO
            assert value is not None
            outer_at = index_add(index_mul(outer_at, d.size), value)
        done = 0
        for count_t, size in splits(dim.size, width):
            t_scope = scope
            at: Expr = Const(done)
            if count_t > 1:
                v = Var(f"{dim.letters[:1]}t", count_t * size)
                t_scope = scope.loop(v, count_t * size, "serial", size)
                at = index_add(at, v)
            k_scope, k = self.k_loops(t_scope, self.g.inner)
            base = index_add(index_mul(outer_at, tiles * width * self.K), index_mul(at, self.K))
            base = index_add(base, index_mul(self.flat_k(k), width))
            self.pack_row(k_scope, which, buffer, at, base, size, k)
            while k_scope is not t_scope:
                k_scope.close()
                assert k_scope.parent is not None
                k_scope = k_scope.parent
            if t_scope is not scope:
                t_scope.close()
            done += count_t * size
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent
        self.packed[which] = buffer
        self.pack_dims[which] = dims

    def pack_row(
        self, scope: Scope, which: str, buffer: Buffer, at: Expr, base: Expr, size: int, k: dict[Expr, Expr]
    ) -> None:
        """One row of a panel; lanes past the edge are zero in B, so that tiles need no mask to load them."""
        lanes = self.lanes if which == "b" else min(self.lanes, power_of_two(size))
        full = size // lanes * lanes
        for start in range(0, size, lanes):
            wide = lanes if start < full else (lanes if which == "b" else power_of_two(size - full))
            lane = Var("v", wide)
            inner = scope.loop(lane, wide, "vector")
            mask = less(lane, size - start) if start >= full and size - start < wide else None
            where = index_add(at, index_add(lane, Const(start)))
            value = self.load(which, where, where, k, inner, mask)
            store_mask = mask if which == "a" else None
            target = (index_add(base, index_add(lane, Const(start))),)
            inner.stmts.append(Store(buffer, target, value, store_mask))
            inner.close()

    def k_loops(self, scope: Scope, dims: list[Dim]) -> tuple[Scope, dict[Expr, Expr]]:
        k: dict[Expr, Expr] = {}
        for d in dims:
            if isinstance(d.var, Var):
                v = Var(d.var.name, d.size)
                scope = scope.loop(v, d.size, "serial")
                k[d.var] = v
        return scope, k

    # --- tiles

    def outer_tile(
        self, scope: Scope, mb: Expr, mr: int, nb: Expr, nr: int, columns: int, part: Block
    ) -> None:
        """An mr x (nr vectors) tile by outer products."""
        lanes, acc_type = self.lanes, self.g.acc
        self.tile_vars = {
            x for e in (mb, nb) for x in ([e] if isinstance(e, Var) else e.args) if isinstance(x, Var)
        }
        acc = scope.alloc("acc", acc_type, mr * nr * lanes, "register")
        row = scope.alloc("b", acc_type, nr * lanes, "register")
        zero = Const(0, acc_type)
        partial = self.partial_at(scope, mb, nb, nr)

        def begin(s: Scope, at: Expr) -> None:
            value: Expr = zero
            if part.first is not True:
                mask = S.prim("not_", part.first) if isinstance(part.first, Expr) else None
                value = Load(
                    self.partial(), (index_add(partial, at),), mask, zero if mask is not None else None
                )
            s.stmts.append(Store(acc, (at,), value))

        self.vectors(scope, mr * nr, begin)
        *outer, last = self.g.inner
        block, k = self.k_loops(scope, outer)

        def step(s: Scope, where: dict[Expr, Expr]) -> None:
            def load_row(inner: Scope, at: Expr) -> None:
                mask = None
                if columns < nr * lanes and "b" not in self.packed:
                    mask = less(at, columns)
                inner.stmts.append(
                    Store(row, (at,), self.load("b", ZERO, index_add(nb, at), where, inner, mask))
                )

            self.vectors(s, nr, load_row)
            i = Var("i", mr)
            rows = s.loop(i, mr, "unroll")
            a = rows.let(self.load("a", index_add(mb, i), ZERO, where, rows), "a")

            def multiply(inner: Scope, at: Expr) -> None:
                place = (index_add(index_mul(i, nr * lanes), at),)
                product = S.prim("mul", a, Load(row, (at,)))
                inner.stmts.append(Store(acc, place, S.prim("add", Load(acc, place), product)))

            self.vectors(rows, nr, multiply)
            rows.close()

        self.k_steps(block, last, mr * nr, k, step, part)
        while block is not scope:
            block.close()
            assert block.parent is not None
            block = block.parent
        if part.last is not True:
            kept = scope if part.last is False else scope.branch(S.prim("not_", part.last))
            target = self.partial()
            self.vectors(kept, mr * nr, lambda s, at: s.stmts.append(
                Store(target, (index_add(partial, at),), Load(acc, (at,)))))  # fmt: skip
            if kept is not scope:
                kept.close()
        if part.last is not False:
            done = scope if part.last is True else scope.branch(part.last)
            self.epilogue(done, acc, mb, mr, nb, nr * lanes, columns)
            if done is not scope:
                done.close()

    def partial(self) -> Buffer:
        """Sums over the blocks of k so far, tile after tile as the registers hold them."""
        if self._partial is None:
            width = self.s.nr * self.lanes
            rows = -(-self.m.size // self.s.mr) * self.s.mr
            size = prod(d.size for d in self.outer) * rows * -(-self.n.size // width) * width
            self._partial = Buffer("partial", self.g.acc, (size,), "arena")
        return self._partial

    def partial_at(self, scope: Scope, mb: Expr, nb: Expr, nr: int) -> Expr:
        """Where the tile at (mb, nb) starts there: [outer..., column tile, row tile, tile]."""
        if self.s.kc >= self.K:
            return ZERO
        rows = -(-self.m.size // self.s.mr) * self.s.mr
        width = self.s.nr * self.lanes
        out: Expr = ZERO
        for d in self.outer:
            value = scope.find(self.low.number(d.var)) if isinstance(d.var, Var) else ZERO
            assert value is not None
            out = index_add(index_mul(out, d.size), value)
        out = index_mul(out, -(-self.n.size // width) * width * rows)
        return index_add(index_add(out, index_mul(nb, rows)), index_mul(mb, nr * self.lanes))

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
        n = dim.size if self.s.kc >= self.K else part.size
        if not isinstance(dim.var, Var):
            step(scope, k)
            return
        most = 1 if accumulators > 24 else min(4, max(2, 32 // accumulators))
        unroll = n if n <= most else next((u for u in (4, 3, 2) if u <= most and n % u == 0), most)
        whole = n // unroll * unroll
        outer, base = scope, ZERO
        if whole > unroll:
            v = Var(dim.var.name, whole)
            outer, base = scope.loop(v, whole, "serial", unroll), v
        u = Var("u", unroll)
        inner = outer.loop(u, unroll, "unroll")
        step(inner, {**k, dim.var: index_add(index_add(base, u), part.start)})
        inner.close()
        if outer is not scope:
            outer.close()
        if whole < n:
            v = Var(dim.var.name, n - whole)
            inner = scope.loop(v, n - whole, "serial")
            step(inner, {**k, dim.var: index_add(index_add(v, Const(whole)), part.start)})
            inner.close()

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
        *outer, last = self.g.inner
        block, k = self.k_loops(scope, outer)

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
        while block is not scope:
            block.close()
            assert block.parent is not None
            block = block.parent
        wide = power_of_two(nr)
        tile = scope.alloc("tile", acc_type, mr * wide, "local")
        i, j = Var("i", mr), Var("j", nr)
        rows = scope.loop(i, mr, "unroll")
        columns_ = rows.loop(j, nr, "unroll")
        lane = Var("v", lanes)
        total = LaneReduce("add", lane, Load(acc, (index_add(index_add(i * (nr * lanes), j * lanes), lane),)))
        columns_.stmts.append(Store(tile, (i * wide + j,), total))
        columns_.close()
        rows.close()
        self.finish(scope, tile, mb, mr, nb, wide, columns, wide, serial=False)

    # --- epilogue

    def epilogue(
        self, scope: Scope, acc: Buffer, mb: Expr, mr: int, nb: Expr, width: int, columns: int
    ) -> None:
        if self.long and mr > 1:
            tile = scope.alloc("tile", acc.dtype, mr * width, "local")
            self.vectors(
                scope,
                mr * width // self.lanes,
                lambda s, at: s.stmts.append(Store(tile, (at,), Load(acc, (at,)))),
            )
            acc = tile
        self.finish(scope, acc, mb, mr, nb, width, columns, self.lanes, serial=self.long)

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
    ) -> None:
        """Stores of the tile held in `acc`, row by row in vectors."""
        rows = scope
        i: Expr = ZERO
        if mr > 1:
            v = Var("i", mr)
            rows, i = scope.loop(v, mr, "serial" if serial else "unroll"), v
        if isinstance(self.m.var, Var):
            rows.define(self.m.var, index_add(mb, i))
        whole = columns // lanes

        def block(s: Scope, j: Expr, left: int) -> None:
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
        if rows is not scope:
            rows.close()

    def store_at(self, scope: Scope, acc: Buffer, nb: Expr, j: Expr, i: Expr, width: int) -> None:
        if isinstance(self.n.var, Var):
            scope.define(self.n.var, index_add(nb, j))
        scope.anchor(self.g.local, Load(acc, (index_add(index_mul(i, width), j),)))
        scope.stores(self.specs)


def emit_contract(
    group: ContractGroup,
    specs: list[StoreSpec],
    machine: MachineModel,
    place: Callable[[Buffer], Buffer],
    number: Numbering,
) -> list[Stmt]:
    """All statements of a contraction."""
    return ContractEmitter(group, specs, machine, place, number).emit()
