"""Contractions and windowed convolutions as kernels. Used by gpu_schedule/__init__.py.

Large ones in tiles: a block computes `bm` x `bn` elements of the result. Strips of both operands, `bk` terms
deep, go through two buffers in shared memory (the next strip is fetched into registers while one is used);
each thread keeps `tm` x `tn` sums in registers, and computes the epilogue from them. Dimensions that do not
follow from one another in memory (windows, heads) are taken apart where elements are fetched, so nothing is
copied first. Where there are too few tiles for the GPU, k is cut in parts whose sums a second kernel adds up.

    for bz { for by { for bx {  alloc A[2][bk][bm], B[2][bk][bn] shared
      for ty { for tx {
        acc[tm][tn] = 0;  A[0], B[0] = first strip;  barrier
        for strip { registers = next strip;  acc += A[now]^T B[now];  A[next], B[next] = registers;  barrier }
        epilogue } } } } }

Small ones: a thread for each element of the result, which runs through the contracted dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ...ir.expr import Const, Expr, Load, Var, index_add, index_mod, index_mul
from ...ir.loops import Barrier, Buffer, Stmt, Store
from ..schedule.contract import Dim
from ..schedule.elements import S
from ..schedule.indexing import ZERO, unravel
from ..schedule.nests import StoreSpec, less
from ..schedule.scopes import Lowering, Scope
from .contract_tiles import PAD, Tile, choose
from .launch import Launch, Target, both, close, define_parts, flat_launch, index_let
from .plan import GpuContractGroup


@dataclass
class Strip:
    """How an operand's strip is brought to shared memory.

    Attributes:
        dims: the operand's own dimensions (rows of A, columns of B).
        size, tile: their product; how many of it a tile has.
        along_k: neighbours in memory are neighbours in k.
        lanes: elements of one access.
        shared, registers: the strip, twice, and a thread's part of the next one.
        count: how many accesses a thread makes.
        start: where the tile begins in the operand's own dimensions.
    """

    which: str
    dims: list[Dim]
    size: int
    tile: int
    along_k: bool
    lanes: int
    count: int
    shared: Buffer
    registers: Buffer
    start: Expr


class GpuContract:
    """One contraction on its way to kernels."""

    def __init__(self, group: GpuContractGroup, specs: list[StoreSpec], target: Target) -> None:
        self.g, self.specs, self.target = group, specs, target
        self.low = Lowering(group.elements.bindings, target.number, target.place)
        self.M, self.N, self.K = (prod(d.size for d in x) for x in (group.rows, group.cols, group.inner))
        self.batch = prod(d.size for d in group.batch)

    def emit(self) -> list[list[Stmt]]:
        tile, parts = choose(self.M, self.N, self.K, self.batch, self.g.acc.itemsize, self.target.gpu)
        if tile is None:
            return [self.by_element(None, 1)]
        if parts == 1:
            return [self.by_tile(tile, None, 1)]
        partial = Buffer("partial", self.g.acc, (parts * self.batch * self.M * self.N,), "arena")
        return [self.by_tile(tile, partial, parts), self.by_element(partial, parts)]

    # --- operands

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

    def values(self, scope: Scope, dims: list[Dim]) -> dict[Expr, Expr]:
        """Where a scope is along `dims`."""
        out: dict[Expr, Expr] = {}
        for d in dims:
            if isinstance(d.var, Var):
                found = scope.find(self.low.number(d.var))
                assert found is not None
                out[d.var] = found
        return out

    # --- a thread for each element

    def by_element(self, partial: Buffer | None, parts: int) -> list[Stmt]:
        """The sum of each element, or of its parts, and the epilogue."""
        g = self.g
        outer = [*g.batch, *g.rows, *g.cols]
        count = prod(d.size for d in outer)
        k, scope, at = flat_launch(self.low, count)
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
            terms = []
            for which in "ab":
                index = index_add(self.offset(which), self.along(which, [*outer, *g.inner], values))
                terms.append(S.cast(Load(self.source(which), (index,)), g.acc))
            inner.stmts.append(Store(acc, (ZERO,), S.fma(terms[0], terms[1], Load(acc, (ZERO,)))))
        close(inner, scope)
        scope.anchor(g.local, scope.let(Load(acc, (ZERO,)), g.local.name))
        scope.stores(self.specs)
        close(scope, k.scope)
        return k.finish()

    # --- tiles

    def by_tile(self, tile: Tile, partial: Buffer | None, parts: int) -> list[Stmt]:
        """The kernel of tiles; sums of parts go to `partial`, or through the epilogue."""
        g = self.g
        self.tile = tile
        depth = -(-self.K // (parts * tile.bk)) * tile.bk  # terms of a part
        tiles_m, tiles_n = -(-self.M // tile.bm), -(-self.N // tile.bn)
        k = Launch(
            self.low,
            [("bz", self.batch * parts), ("by", tiles_m), ("bx", tiles_n)],
            [("ty", tile.rows), ("tx", tile.cols)],
        )
        scope = k.scope
        bz, by, bx = k.blocks
        self.ty, self.tx = k.threads
        part = index_let(scope, "part", bz // self.batch, parts) if parts > 1 else ZERO
        one = index_let(scope, "z", index_mod(bz, self.batch), self.batch) if parts > 1 else bz
        define_parts(scope, [d.var for d in g.batch], [d.size for d in g.batch], one)
        self.base = {w: index_add(self.offset(w), self.along(w, g.batch, self.values(scope, g.batch)))
                     for w in "ab"}  # fmt: skip
        self.thread = index_let(scope, "t", index_add(self.ty * tile.cols, self.tx), tile.threads)
        strips = [
            self.strip(k, "a", g.rows, self.M, tile.bm, by),
            self.strip(k, "b", g.cols, self.N, tile.bn, bx),
        ]
        acc = scope.alloc("acc", g.acc, tile.tm * tile.tn, "register")
        zero = Var("i", tile.tm * tile.tn)
        inner = scope.loop(zero, zero.extent, "unroll")
        inner.stmts.append(Store(acc, (zero,), Const(0, g.acc)))
        inner.close()
        first = index_let(scope, "k0", part * depth, max(self.K, 1)) if parts > 1 else ZERO
        self.ragged = self.K % (parts * depth) != 0
        self.fetch(scope, strips, first)
        self.keep(scope, strips, ZERO)
        scope.stmts.append(Barrier())
        count = depth // tile.bk
        loop, strip = scope.inline(), ZERO
        if count > 1:
            v = Var("strip", count)
            loop, strip = scope.loop(v, count, "serial"), v
            more = loop.branch(less(v, count - 1))
            self.fetch(more, strips, index_add(first, index_add(v, Const(1)) * tile.bk))
            more.close()
        now = index_mod(strip, 2)
        self.multiply(loop, strips, acc, now)
        if count > 1:
            more = loop.branch(less(strip, count - 1))
            self.keep(more, strips, index_mod(index_add(strip, Const(1)), 2))
            more.close()
            loop.stmts.append(Barrier())
        loop.close()
        self.finish(scope, acc, by, bx, partial, index_add(index_mul(part, self.batch), one))
        return k.finish()

    def strip(self, k: Launch, which: str, dims: list[Dim], size: int, tile: int, block: Expr) -> Strip:
        """Chooses the direction and the width of accesses."""
        stride = (lambda d: d.a) if which == "a" else (lambda d: d.b)
        own, inner = dims[-1], self.g.inner[-1]
        along_k = stride(inner) == 1 or (stride(own) != 1 and abs(stride(inner)) < abs(stride(own)))
        run = inner if along_k else own
        rest = [*self.g.batch, *dims, *self.g.inner]
        source = self.source(which)
        lanes = 1
        for wide in (4, 2):
            whole = stride(run) == 1 and run.size % wide == 0 and wide * source.dtype.itemsize <= 16
            aligned = all(stride(d) % wide == 0 for d in rest if d is not run)
            start = self.offset(which)
            fits = tile * self.tile.bk % (wide * self.tile.threads) == 0
            if whole and aligned and fits and isinstance(start, Const) and start.value % wide == 0:
                lanes = wide
                break
        count = -(-tile * self.tile.bk // (lanes * self.tile.threads))
        name = source.name
        shared = k.shared(f"{name}_strip", self.g.acc, 2 * self.tile.bk * (tile + PAD))
        registers = k.scope.alloc(f"{name}_next", self.g.acc, count * lanes, "register")
        return Strip(which, dims, size, tile, along_k, lanes, count, shared, registers, block * tile)

    def places(self, scope: Scope, s: Strip, u: Expr) -> tuple[Expr, Expr, Expr | None]:
        """Access u of a thread: its place in the tile along the operand's own dimensions and along k (of the
        first lane); a condition that it is in the strip at all."""
        wide = s.lanes
        flat = index_let(
            scope, "e", index_add(u * self.tile.threads, self.thread), s.count * self.tile.threads
        )
        bk = self.tile.bk
        inside = None
        if s.tile * bk // wide < s.count * self.tile.threads:
            inside = less(flat, s.tile * bk // wide)
        if s.along_k:
            per = bk // wide
            return flat // per, index_mul(index_mod(flat, per), wide), inside
        per = s.tile // wide
        return index_mul(index_mod(flat, per), wide), flat // per, inside

    def fetch(self, scope: Scope, strips: list[Strip], first: Expr) -> None:
        """A thread's part of the strips from term `first` on, into registers."""
        for s in strips:
            u = Var("u", s.count)
            loop = scope.loop(u, s.count, "unroll") if s.count > 1 else scope.inline()
            own, deep, inside = self.places(loop, s, u if s.count > 1 else ZERO)
            own, term = index_add(s.start, own), index_add(first, deep)
            if s.size % s.tile:
                inside = both(inside, less(own, s.size))
            if self.ragged:
                inside = both(inside, less(term, self.K))
            index = self.base[s.which]
            lane = Var("v", s.lanes)
            for dims, flat, wide in ((s.dims, own, not s.along_k), (self.g.inner, term, s.along_k)):
                step = s.lanes if wide else 1
                sizes = [*[d.size for d in dims[:-1]], dims[-1].size // step]
                values: dict[Expr, Expr] = {}
                for d, n, p in zip(dims, sizes, unravel(flat // step, tuple(sizes))):
                    p = index_let(loop, d.letters[:1] or "e", p, n)
                    last = d is dims[-1]
                    values[d.var] = index_add(p * step, lane) if last and step > 1 else p
                index = index_add(index, self.along(s.which, dims, values))
            zero = Const(0, self.source(s.which).dtype)
            value = Load(self.source(s.which), (index,), inside, None if inside is None else zero)
            base = u * s.lanes if s.count > 1 else ZERO
            inner = loop.loop(lane, s.lanes, "vector") if s.lanes > 1 else loop.inline()
            at = index_add(base, lane) if s.lanes > 1 else base
            inner.stmts.append(Store(s.registers, (at,), S.cast(value, self.g.acc)))
            close(inner, loop)
            if loop.header is not None:
                loop.close()

    def keep(self, scope: Scope, strips: list[Strip], buffer: Expr) -> None:
        """From registers to one of the two strips in shared memory, rows along the operand's own
        dimensions."""
        for s in strips:
            u = Var("u", s.count)
            loop = scope.loop(u, s.count, "unroll") if s.count > 1 else scope.inline()
            own, deep, inside = self.places(loop, s, u if s.count > 1 else ZERO)
            lane = Var("v", s.lanes)
            inner = loop
            if inside is not None:
                inner = inner.branch(inside)
            if s.lanes > 1:
                # Across rows of the strip there is nothing wide about it.
                inner = inner.loop(lane, s.lanes, "unroll" if s.along_k else "vector")
                own, deep = (own, index_add(deep, lane)) if s.along_k else (index_add(own, lane), deep)
            pitch = s.tile + PAD
            at = index_add(index_add(buffer * (self.tile.bk * pitch), index_mul(deep, pitch)), own)
            base = u * s.lanes if s.count > 1 else ZERO
            value = Load(s.registers, (index_add(base, lane) if s.lanes > 1 else base,))
            inner.stmts.append(Store(s.shared, (at,), value))
            close(inner, loop)
            if loop.header is not None:
                loop.close()

    def multiply(self, scope: Scope, strips: list[Strip], acc: Buffer, now: Expr) -> None:
        """All terms of a strip onto the sums."""
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
            pitch = s.tile + PAD
            row = index_add(now * (t.bk * pitch), kk * pitch)
            at = index_add(index_add(row, index_mul(run, n * wide)), index_add(index_mul(thread, wide), lane))
            inner.stmts.append(Store(b, (index_add(index_mul(run, wide), lane),), Load(s.shared, (at,))))
            inner.close()
            if each.header is not None:
                each.close()
        i, j = Var("i", t.tm), Var("j", t.tn)
        rows = loop.loop(i, t.tm, "unroll")
        cols = rows.loop(j, t.tn, "unroll")
        place = (index_add(i * t.tn, j),)
        a, b = held
        cols.stmts.append(Store(acc, place, S.fma(Load(a, (i,)), Load(b, (j,)), Load(acc, place))))
        cols.close()
        rows.close()
        loop.close()

    def finish(
        self, scope: Scope, acc: Buffer, by: Expr, bx: Expr, partial: Buffer | None, part: Expr
    ) -> None:
        """What is stored of a thread's sums."""
        g, t = self.g, self.tile
        wide_m, wide_n = min(t.tm, 4), min(t.tn, 4)
        i = Var("i", t.tm)
        rows = scope.loop(i, t.tm, "unroll")
        m = index_add(by * t.bm, index_add(i // wide_m * (t.rows * wide_m), index_mod(i, wide_m)))
        m = index_let(rows, "m", index_add(m, self.ty * wide_m), -(-self.M // t.bm) * t.bm)
        outer = rows
        if self.M % t.bm:
            rows = rows.branch(less(m, self.M))
        if partial is None:
            define_parts(rows, [d.var for d in g.rows], [d.size for d in g.rows], m)
        last = g.cols[-1]
        together = (
            last.size % wide_n == 0 and (partial is not None or last.c == 1) and isinstance(last.var, Var)
        )
        j = Var("j", t.tn // wide_n)
        lane = Var("v", wide_n)
        cols = rows.loop(j, j.extent, "unroll") if j.extent > 1 else rows.inline()
        start = index_add(
            bx * t.bn, index_add((j if j.extent > 1 else ZERO) * (t.cols * wide_n), self.tx * wide_n)
        )
        at = index_add(i * t.tn, (j if j.extent > 1 else ZERO) * wide_n)
        inner = cols
        if not together:
            inner = inner.loop(lane, wide_n, "unroll")
            start = index_add(start, lane)
        n = index_let(inner, "n", start, -(-self.N // t.bn) * t.bn)
        if self.N % t.bn:
            inner = inner.branch(less(n, self.N))
        step = wide_n if together else 1
        parts = unravel(start // step, (*[d.size for d in g.cols[:-1]], last.size // step))
        if partial is None:
            for d, p in zip(g.cols[:-1], parts):
                if isinstance(d.var, Var):
                    inner.define(d.var, index_let(inner, d.letters[:1], p, d.size))
            p = index_let(inner, last.letters[:1] or "n", parts[-1], last.size // step)
        else:
            p = index_let(inner, "q", start // wide_n, -(-self.N // wide_n)) if together else n
        if together:
            inner = inner.loop(lane, wide_n, "vector")
            p = index_add(p * step, lane)
        place = (index_add(at, lane),)
        if partial is None:
            if isinstance(last.var, Var):
                inner.define(last.var, p)
            inner.anchor(g.local, Load(acc, place))
            inner.stores(self.specs)
        else:
            where = index_add(index_mul(index_add(index_mul(part, self.M), m), self.N), p)
            inner.stmts.append(Store(partial, (where,), Load(acc, place)))
        close(inner, outer)
        outer.close()


def contract_kernels(group: GpuContractGroup, specs: list[StoreSpec], target: Target) -> list[list[Stmt]]:
    """All kernels of a contraction, in order."""
    return GpuContract(group, specs, target).emit()
