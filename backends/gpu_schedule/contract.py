"""Contractions and windowed convolutions as kernels. Used by gpu_schedule/__init__.py.

Large ones in tiles: a block computes `bm` x `bn` elements of the result. Strips of both operands, `bk` terms
deep, go through buffers in shared memory, two or more: while one is used, the next strips are copied to
the others (contract_strips.py). Each thread keeps `tm` x `tn` sums in registers, or each warp does, whose
tensor cores add up 16 x 8 of them at a time. The epilogue is computed from the sums. Dimensions that do not
follow from one another in memory (windows, heads) are taken apart where elements are fetched, so nothing is
copied first. Where there are too few tiles for the GPU, k is cut in parts whose sums a second kernel adds up.

    for bz { for by { for bx {  alloc A[2][bk][bm], B[2][bk][bn] shared
      for ty { for tx {
        acc[tm][tn] = 0;  copy A[0], B[0] = first strip
        for strip { barrier copies;  copy A[next], B[next] = next strip;  acc += A[now]^T B[now] }
        epilogue } } } } }

Small ones: a thread for each element of the result, which runs through the contracted dimensions, or a warp
where there are few elements of many terms each.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...ir.dataclass import dataclass, replace
from ...ir.expr import Const, Expr, Load, Var, index_add, index_mod, index_mul
from ...ir.loops import MMA_DEPTH, Barrier, Batch, Buffer, Matrices, Mma, Stmt, Store
from ..schedule.contract import Dim
from ..schedule.elements import S
from ..schedule.indexing import ZERO, unravel
from ..schedule.nests import StoreSpec, less
from ..schedule.scopes import Scope
from .contract_strips import Strip, Strips
from .contract_tiles import Tile, choose
from .launch import Launch, Target, close, define_parts, flat_launch, index_let, warp_reduce
from .plan import GpuContractGroup


@dataclass
class Held:
    """The sums that a thread has in registers: `rows` times `cols` groups of `lanes` neighbouring columns.

    Attributes:
        m, n: place in the result's rows (columns) of the i-th row (first lane of the j-th group).
        at: where that is in the registers.
    """

    rows: int
    cols: int
    lanes: int
    m: Callable[[Expr], Expr]
    n: Callable[[Expr], Expr]
    at: Callable[[Expr, Expr], Expr]


class GpuContract(Strips):
    """One contraction on its way to kernels."""

    def __init__(self, group: GpuContractGroup, specs: list[StoreSpec], target: Target) -> None:
        super().__init__(group, target)
        self.specs = specs
        self.M, self.N, self.K = (prod(d.size for d in x) for x in (group.rows, group.cols, group.inner))
        self.batch = prod(d.size for d in group.batch)

    def emit(self) -> list[list[Stmt]]:
        types = self.source("a").dtype, self.source("b").dtype
        tile, parts = choose(self.M, self.N, self.K, self.batch, types, self.g.acc, self.target.gpu)
        if tile is None:
            return [self.by_warp(None, self.K) if self.long() else self.by_element(None, 1)]
        if parts == 1:
            return [self.by_tile(tile, None, 1)]
        partial = Buffer("partial", self.g.acc, (parts * self.batch * self.M * self.N,), "arena")
        few = parts >= 16 and self.batch * self.M * self.N <= 8 * self.target.gpu.sms
        last = self.by_warp(partial, parts) if few and self.warps_add else self.by_element(partial, parts)
        return [self.by_tile(tile, partial, parts), last]

    def values(self, scope: Scope, dims: list[Dim]) -> dict[Expr, Expr]:
        """Where a scope is along `dims`."""
        out: dict[Expr, Expr] = {}
        for d in dims:
            if isinstance(d.var, Var):
                found = scope.find(self.low.number(d.var))
                assert found is not None
                out[d.var] = found
        return out

    def factor(self, which: str, dims: list[Dim], values: dict[Expr, Expr]) -> Expr:
        """An operand's element at a place along `dims`."""
        index = index_add(self.offset(which), self.along(which, dims, values))
        letters: dict[str, Expr] = {}
        for d in dims:
            letters |= self.letters(d.letters, values.get(d.var, ZERO))
        mask, source = self.mask(which, letters), self.source(which)
        other = None if mask is None else Const(0, source.dtype)
        return S.cast(Load(source, (index,), mask, other), self.g.acc)

    # --- a thread for each element

    def by_element(self, partial: Buffer | None, parts: int) -> list[Stmt]:
        """The sum of each element, or of its parts, and the epilogue."""
        g = self.g
        outer = [*g.batch, *g.rows, *g.cols]
        count = prod(d.size for d in outer)
        k, scope, at = flat_launch(self.low, count, gpu=self.target.gpu)
        define_parts(scope, [d.var for d in outer], [d.size for d in outer], at)
        acc = scope.alloc("acc", g.acc, 1, "register")
        scope.stmts.append(Store(acc, (ZERO,), Const(0, g.acc)))
        inner = scope
        if partial is not None:
            v = Var("part", parts)
            inner = scope.loop(v, parts, "serial")
            term = Load(partial, (index_add(v * count, at),))
            inner.stmts.append(Store(acc, (ZERO,), S.add(Load(acc, (ZERO,)), term)))
        else:
            values = self.values(scope, outer)
            for d in g.inner:
                if isinstance(d.var, Var):
                    v = Var(d.var.name, d.size)
                    inner = inner.loop(v, d.size, "serial")
                    values[d.var] = v
            a, b = (self.factor(which, [*outer, *g.inner], values) for which in "ab")
            inner.stmts.append(Store(acc, (ZERO,), S.fma(a, b, Load(acc, (ZERO,)))))
        close(inner, scope)
        scope.anchor(g.local, scope.let(Load(acc, (ZERO,)), g.local.name))
        scope.stores(self.specs)
        close(scope, k.scope)
        return k.finish()

    # --- a warp for each element

    def long(self) -> bool:
        """Whether warps share the terms of each element: where there are few elements and many terms, all the
        more if terms are neighbours in memory."""
        count, sms = self.batch * self.M * self.N, self.target.gpu.sms
        straight = self.g.inner[-1].a == 1 == self.g.inner[-1].b
        few = count <= 64 * sms and self.K >= 64 if straight else count <= 8 * sms and self.K >= 256
        return few and self.warps_add

    @property
    def warps_add(self) -> bool:
        return self.g.acc.kind in "fi" and self.g.acc.bits >= 32

    def by_warp(self, partial: Buffer | None, terms: int) -> list[Stmt]:
        """A warp for each element: lanes take turns along its terms, or its parts."""
        g = self.g
        outer = [*g.batch, *g.rows, *g.cols]
        count = prod(d.size for d in outer)
        warps = 4 if count >= 4 * self.target.gpu.sms else 1
        threads = [("w", warps), ("lane", 32)] if warps > 1 else [("lane", 32)]
        k = Launch(self.low, [("bx", -(-count // warps))], threads)
        scope, lane = k.scope, k.threads[-1]
        at = index_add(k.blocks[0] * warps, k.threads[0]) if warps > 1 else k.blocks[0]
        if count % warps:
            scope = scope.branch(less(at, count))
        at = index_let(scope, "i", at, count)
        define_parts(scope, [d.var for d in outer], [d.size for d in outer], at)
        acc = scope.alloc("acc", g.acc, 1, "register")
        scope.stmts.append(Store(acc, (ZERO,), Const(0, g.acc)))
        turn = Var("turn", -(-terms // 32))
        inner = scope.loop(turn, turn.extent, "serial")
        term = index_add(turn * 32, lane)
        if terms % 32:
            inner = inner.branch(less(term, terms))
        term = index_let(inner, "k", term, terms)
        if partial is not None:
            part = Load(partial, (index_add(term * count, at),))
            inner.stmts.append(Store(acc, (ZERO,), S.add(Load(acc, (ZERO,)), part)))
        else:
            values = self.values(scope, outer)
            for d, place in zip(g.inner, unravel(term, tuple(d.size for d in g.inner))):
                values[d.var] = index_let(inner, d.letters[:1] or "k", place, d.size)
            a, b = (self.factor(which, [*outer, *g.inner], values) for which in "ab")
            inner.stmts.append(Store(acc, (ZERO,), S.fma(a, b, Load(acc, (ZERO,)))))
        close(inner, scope)
        scope.anchor(g.local, scope.let(warp_reduce("add", Load(acc, (ZERO,))), g.local.name))
        first = scope.branch(S.eq(lane, ZERO))
        self.low.floor = first.depth
        first.stores(self.specs)
        close(first, k.scope)
        return k.finish()

    # --- tiles

    def by_tile(self, tile: Tile, partial: Buffer | None, parts: int) -> list[Stmt]:
        """The kernel of tiles; sums of parts go to `partial`, or through the epilogue."""
        g = self.g
        self.tile = tile
        if tile.stages > 2 and not all(self.way(w, d).copies for w, d in (("a", g.rows), ("b", g.cols))):
            self.tile = tile = replace(tile, stages=2)
        depth = -(-self.K // (parts * tile.bk)) * tile.bk  # terms of a part
        blocks = [("bz", self.batch * parts), ("by", -(-self.M // tile.bm)), ("bx", -(-self.N // tile.bn))]
        k = Launch(
            self.low, blocks, [("t", tile.threads)] if tile.mma else [("ty", tile.rows), ("tx", tile.cols)]
        )
        scope = k.scope
        bz, by, bx = k.blocks
        part = index_let(scope, "part", bz // self.batch, parts) if parts > 1 else ZERO
        one = index_let(scope, "z", index_mod(bz, self.batch), self.batch) if parts > 1 else bz
        define_parts(scope, [d.var for d in g.batch], [d.size for d in g.batch], one)
        values = self.values(scope, g.batch)
        self.base = {w: index_add(self.offset(w), self.along(w, g.batch, values)) for w in "ab"}
        self.base_letters = {}
        for d in g.batch:
            self.base_letters |= self.letters(d.letters, values.get(d.var, ZERO))
        self.place_thread(scope, k.threads)
        strips = [
            self.strip(k, "a", g.rows, self.M, by),
            self.strip(k, "b", g.cols, self.N, bx),
        ]
        ahead = tile.stages - 1
        pipeline = ahead > 1
        acc = scope.alloc("acc", g.acc, tile.bm * tile.bn // tile.threads, "register")
        zero = Var("i", acc.size)
        inner = scope.loop(zero, zero.extent, "unroll")
        inner.stmts.append(Store(acc, (zero,), Const(0, g.acc)))
        inner.close()
        first = index_let(scope, "k0", part * depth, max(self.K, 1)) if parts > 1 else ZERO
        self.ragged = self.K % (parts * depth) != 0
        count = depth // tile.bk
        v = Var("ahead", min(ahead, count))
        start, n = (scope.loop(v, v.extent, "serial"), v) if v.extent > 1 else (scope.inline(), ZERO)
        self.bring(start, strips, index_add(first, index_mul(n, tile.bk)), n)
        if pipeline:
            start.stmts.append(Batch())
        start.close()
        self.keep(scope, strips, ZERO)
        strip = Var("strip", count)
        loop, now = (scope.loop(strip, count, "serial"), strip) if count > 1 else (scope.inline(), ZERO)
        # All are through with the strip before, whose place the next one takes.
        loop.stmts.append(Barrier(any(s.registers is None for s in strips), min(ahead, count) - 1))
        if count > ahead:
            more = loop.branch(less(strip, count - ahead))
            follows = index_add(strip, Const(ahead))
            place = index_let(more, "next", index_mod(follows, tile.stages), tile.stages)
            self.bring(more, strips, index_add(first, follows * tile.bk), place)
            more.close()
        if pipeline and count > 1:
            loop.stmts.append(Batch())
        multiply = self.multiply_warp if tile.mma else self.multiply
        multiply(loop, strips, acc, index_mod(now, tile.stages))
        if count > 1 and not pipeline:
            more = loop.branch(less(strip, count - 1))
            self.keep(more, strips, index_mod(index_add(strip, Const(1)), 2))
            more.close()
        loop.close()
        held = self.held_by_lane(by, bx) if tile.mma else self.held_by_thread(by, bx)
        self.finish(scope, acc, held, partial, index_add(index_mul(part, self.batch), one))
        return k.finish()

    def place_thread(self, scope: Scope, threads: list[Expr]) -> None:
        """Where a thread is in the tile."""
        tile = self.tile
        if not tile.mma:
            self.ty, self.tx = threads
            self.thread = index_let(scope, "t", index_add(self.ty * tile.cols, self.tx), tile.threads)
            return
        self.thread = threads[0]
        warp, lane = self.thread // 32, index_mod(self.thread, 32)
        self.ty = index_let(scope, "warp_m", warp // tile.cols, tile.rows)
        self.tx = index_let(scope, "warp_n", index_mod(warp, tile.cols), tile.cols)
        self.r = index_let(scope, "group", lane // 4, 8)
        self.q = index_let(scope, "in_group", index_mod(lane, 4), 4)
        self.eighth = index_let(scope, "eighth", index_mod(lane, 8), 8)
        self.quarter = index_let(scope, "quarter", lane // 8, 4)

    # sums of threads

    def multiply(self, scope: Scope, strips: list[Strip], acc: Buffer, now: Expr) -> None:
        """All terms of a strip onto a thread's sums."""
        t, d = self.tile, self.g.acc
        kk = Var("kk", t.bk)
        loop = scope.loop(kk, t.bk, "unroll")
        held: list[Buffer] = []
        for s, own, thread, n in zip(strips, (t.tm, t.tn), (self.ty, self.tx), (t.rows, t.cols)):
            b = loop.alloc("ab"[len(held)], d, own, "register")
            held.append(b)
            wide = min(own, 4)
            j, lane = Var("j", own // wide), Var("v", wide)
            each = loop.loop(j, j.extent, "unroll") if j.extent > 1 else loop.inline()
            run: Expr = j if j.extent > 1 else ZERO
            inner = each.loop(lane, wide, "vector")
            place = index_add(index_mul(run, n * wide), index_add(index_mul(thread, wide), lane))
            at = s.at(place, kk, now)
            inner.stmts.append(Store(b, (index_add(index_mul(run, wide), lane),), Load(s.shared, (at,))))
            close(inner, loop)
        i, j = Var("i", t.tm), Var("j", t.tn)
        rows = loop.loop(i, t.tm, "unroll")
        cols = rows.loop(j, t.tn, "unroll")
        place = (index_add(i * t.tn, j),)
        a, b = held
        cols.stmts.append(Store(acc, place, S.fma(Load(a, (i,)), Load(b, (j,)), Load(acc, place))))
        close(cols, scope)

    def held_by_thread(self, by: Expr, bx: Expr) -> Held:
        t = self.tile
        wide_m, wide_n = min(t.tm, 4), min(t.tn, 4)

        def m(i: Expr) -> Expr:
            row = index_add(i // wide_m * (t.rows * wide_m), index_mod(i, wide_m))
            return index_add(index_add(by * t.bm, row), self.ty * wide_m)

        def n(j: Expr) -> Expr:
            return index_add(bx * t.bn, index_add(index_mul(j, t.cols * wide_n), self.tx * wide_n))

        def at(i: Expr, j: Expr) -> Expr:
            return index_add(i * t.tn, index_mul(j, wide_n))

        return Held(t.tm, t.tn // wide_n, wide_n, m, n, at)

    # sums of warps, on tensor cores: ir/loops.py says which thread has what

    def multiply_warp(self, scope: Scope, strips: list[Strip], acc: Buffer, now: Expr) -> None:
        """All terms of a strip onto a warp's sums."""
        t = self.tile
        depth = MMA_DEPTH[t.mma]
        count_m, count_n = t.tm // 16, t.tn // 8
        kk = Var("kk", t.bk // depth)
        loop = scope.loop(kk, kk.extent, "unroll")
        a = self.fragments(loop, strips[0], "a", count_m, kk * depth, now)
        b = self.fragments(loop, strips[1], "b", count_n, kk * depth, now)
        i, j = Var("i", count_m), Var("j", count_n)
        rows = loop.loop(i, count_m, "unroll")
        cols = rows.loop(j, count_n, "unroll")
        sums = index_add(i * (4 * count_n), j * 4)
        cols.stmts.append(Mma(t.mma, acc, sums, a, i * (depth // 2), b, j * (depth // 4)))
        close(cols, scope)

    def fragments(self, scope: Scope, s: Strip, which: str, count: int, first: Expr, now: Expr) -> Buffer:
        """A thread's shares of `count` small matrices, from term `first` of a strip on."""
        t = self.tile
        size = MMA_DEPTH[t.mma] // (2 if which == "a" else 4)
        out = scope.alloc(which, s.shared.dtype, count * size, "register")
        warp = self.ty * t.tm if which == "a" else self.tx * t.tn
        if s.rows or s.shared.dtype.itemsize == 2:
            self.shares(scope, s, which, out, warp, first, now)
            return out
        # f32 with a row for each term: nothing turns those.
        i = Var("i", count)
        loop = scope.loop(i, count, "unroll")
        own = index_add(warp, index_add(i * (16 if which == "a" else 8), self.r))
        for e in range(size):
            down, step = (e % 2, e // 2) if which == "a" else (0, e)
            term = index_add(first, index_add(self.q, Const(step * 4)))
            at = s.at(index_add(own, Const(8 * down)), term, now)
            loop.stmts.append(Store(out, (index_add(i * size, Const(e)),), Load(s.shared, (at,))))
        loop.close()
        return out

    def shares(
        self, scope: Scope, s: Strip, which: str, out: Buffer, warp: Expr, first: Expr, now: Expr
    ) -> None:
        """The same, four (or two) pieces of 8 rows at a time: `Matrices`."""
        word = 4 // s.shared.dtype.itemsize
        own_size = 16 if which == "a" or out.size % (4 * word) == 0 else 8
        each = own_size // 4 * word
        i = Var("i", out.size // each)
        loop = scope.loop(i, i.extent, "unroll") if i.extent > 1 else scope.inline()
        turn: Expr = i if i.extent > 1 else ZERO
        # Which of the four pieces a lane names: of a, first along rows, then along terms; of b the other way.
        low, high = index_mod(self.quarter, 2), self.quarter // 2
        down, deep = (low, high) if which == "a" else (high, low)
        if own_size == 8:
            down = ZERO
        own = index_add(warp, index_add(turn * own_size, index_mul(down, 8)))
        if s.rows:
            pieces = s.pitch // s.piece
            piece = index_mod(index_add(index_add(first // s.piece, deep), s.turn(self.eighth)), pieces)
            row, column = index_add(own, self.eighth), index_mul(piece, s.piece)
        else:
            row = index_add(first, index_add(index_mul(deep, 8), self.eighth))
            column = own
        at = index_add(index_add(index_mul(now, s.room), index_mul(row, s.pitch)), column)
        loop.stmts.append(Matrices(own_size // 4, not s.rows, out, turn * each, s.shared, at))
        close(loop, scope)

    def held_by_lane(self, by: Expr, bx: Expr) -> Held:
        t = self.tile
        count_n = t.tn // 8

        def m(i: Expr) -> Expr:
            row = index_add(index_add(i // 2 * 16, index_mod(i, 2) * 8), self.r)
            return index_add(index_add(by * t.bm, self.ty * t.tm), row)

        def n(j: Expr) -> Expr:
            return index_add(index_add(bx * t.bn, self.tx * t.tn), index_add(index_mul(j, 8), self.q * 2))

        def at(i: Expr, j: Expr) -> Expr:
            return index_add(index_add(i // 2 * (4 * count_n), index_mul(j, 4)), index_mod(i, 2) * 2)

        return Held(t.tm // 8, count_n, 2, m, n, at)

    # --- the end

    def finish(self, scope: Scope, acc: Buffer, held: Held, partial: Buffer | None, part: Expr) -> None:
        """What is stored of a thread's sums. Columns are outermost: what is read for each of them (a bias) is
        then in registers for one column at a time, and not for all while the sums are."""
        g, t, wide = self.g, self.tile, held.lanes
        last = g.cols[-1]
        together = (
            last.size % wide == 0 and (partial is not None or last.c == 1) and isinstance(last.var, Var)
        )
        i, j, lane = Var("i", held.rows), Var("j", held.cols), Var("v", wide)
        turn: Expr = j if held.cols > 1 else ZERO
        inner = scope.loop(j, j.extent, "unroll") if held.cols > 1 else scope.inline()
        start = held.n(turn)
        if not together:
            inner = inner.loop(lane, wide, "unroll")
            start = index_add(start, lane)
        n = index_let(inner, "n", start, -(-self.N // t.bn) * t.bn)
        if self.N % t.bn:
            inner = inner.branch(less(n, self.N))
        step = wide if together else 1
        parts = unravel(start // step, (*[d.size for d in g.cols[:-1]], last.size // step))
        if partial is None:
            for d, p in zip(g.cols[:-1], parts):
                if isinstance(d.var, Var):
                    inner.define(d.var, index_let(inner, d.letters[:1], p, d.size))
            p = index_let(inner, last.letters[:1] or "n", parts[-1], last.size // step)
        else:
            p = index_let(inner, "p", start // wide, -(-self.N // wide)) if together else n
        inner = inner.loop(i, held.rows, "unroll")
        m = index_let(inner, "m", held.m(i), -(-self.M // t.bm) * t.bm)
        if self.M % t.bm:
            inner = inner.branch(less(m, self.M))
        if partial is None:
            define_parts(inner, [d.var for d in g.rows], [d.size for d in g.rows], m)
        if together:
            inner = inner.loop(lane, wide, "vector")
            p = index_add(p * step, lane)
        place = (index_add(held.at(i, turn), lane),)
        if partial is None:
            if isinstance(last.var, Var):
                inner.define(last.var, p)
            inner.anchor(g.local, Load(acc, place))
            inner.stores(self.specs)
        else:
            where = index_add(index_mul(index_add(index_mul(part, self.M), m), self.N), p)
            inner.stmts.append(Store(partial, (where,), Load(acc, place)))
        close(inner, scope)


def contract_kernels(group: GpuContractGroup, specs: list[StoreSpec], target: Target) -> list[list[Stmt]]:
    """All kernels of a contraction, in order."""
    return GpuContract(group, specs, target).emit()
