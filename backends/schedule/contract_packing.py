"""Packing operands of contractions into panels: along memory, or turned. Used by contract_steps.py."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod

from ...ir.expr import (
    Const,
    Expr,
    Load,
    Var,
    index_add,
    index_mul,
)
from ...ir.loops import Buffer, Store
from .contract_operands import SHALLOW, Block, ContractOperands
from .indexing import ZERO
from .nests import less, power_of_two
from .scopes import Scope
from .tiles import COPY, cover, splits

#: what the turns of loops over k begin with, given the scope, values of k so far, which turn of this loop and
#: those around it, how many there are, and how many without this loop
Turns = Callable[[Scope, dict[Expr, Expr], Expr, int, int], None]
#: cache lines of a narrow panel that are packed at a time
ROWS = 12


class ContractPacking(ContractOperands):
    """Adds the loops that pack panels."""

    def pack(self, top: Scope, which: str) -> None:
        """Copies an operand into panels: tile after tile, k after k, a tile's rows (columns) side by side."""
        g = self.g
        floor, shared = self.low.floor, self.parallel
        dim = self.m if which == "a" else self.n
        width = self.width(which)
        tiles = -(-dim.size // width)
        dims = [d for d in self.outer if (d.a if which == "a" else d.b)]
        count = prod(d.size for d in dims) * tiles * self.K * width
        buffer = Buffer(f"packed_{g.buffers[0 if which == 'a' else 1].name}", g.acc, (count,), "arena")
        self.parallel = self.machine.threads > 1 and 2 * COPY * count > self.machine.parallel_cycles
        scope = top
        outer_at: Expr = ZERO
        for d in dims:
            if isinstance(d.var, Var):
                scope = self.open(scope, d.var, d.size, 1, self.take_parallel(scope, d.size))
            value = scope.find(self.low.number(d.var)) if isinstance(d.var, Var) else ZERO
            assert value is not None
            outer_at = index_add(index_mul(outer_at, d.size), value)
        base = index_mul(outer_at, tiles * width * self.K)
        self.pack_panels(scope, which, buffer, ZERO, dim.size, base, self.whole)
        scope.close_to(top)
        self.low.floor, self.parallel = floor, shared
        self.packed[which] = buffer
        self.pack_dims[which] = dims

    def pack_panels(
        self, scope: Scope, which: str, buffer: Buffer, first: Expr, count: int, base: Expr, block: Block
    ) -> None:
        """Panels of `count` rows (columns) from `first` on and a block of k, to `base`. What is copied along
        memory is read some rows at a time, as it lies there."""
        width = self.width(which)
        turned = self.turned(which) and count > 1
        dim = self.m if which == "a" else self.n
        if turned or dim.parts:

            def whole(s: Scope, at: Expr, to: Expr, size: int) -> None:
                if turned:
                    self.pack_turned(s, which, buffer, at, to, size, block)
                    return
                deep, where = self.k_loops(s, len(self.g.inner), block)
                to = index_add(to, index_mul(self.row_of(where, block), width))
                self.pack_row(deep, which, buffer, at, to, size, where)
                deep.close_to(s)

            self.panels(scope, count, width, first, base, block, whole, self.again[which])
            return
        outer, k = self.k_loops(scope, len(self.g.inner) - 1, block)
        last, (begin, steps) = self.g.inner[-1], block.ranges[-1]
        # Narrow panels get several rows each, so that a line is written at once; wide ones row by row.
        chunk = max(1, min(steps, ROWS * 64 // (width * self.g.acc.itemsize) // 8 * 8))
        chunks = -(-steps // chunk)
        rows = -(-steps // chunks)
        inner, start = outer, ZERO
        if chunks > 1:
            v = Var("kp", chunks * rows)
            inner = self.share(outer, v, chunks, rows)
            start = self.clamped(inner, v, steps - rows)

        def some(s: Scope, at: Expr, to: Expr, size: int) -> None:
            deep, row = s, start
            if rows > 1:
                v = Var(last.var.name if isinstance(last.var, Var) else "k", rows)
                deep = s.loop(v, rows, "serial")
                row = index_add(v, start)
            where = {**k, last.var: index_add(begin, row)}
            to = index_add(to, index_mul(self.row_of(where, block), width))
            self.pack_row(deep, which, buffer, at, to, size, where)
            deep.close_to(s)

        self.panels(inner, count, width, first, base, block, some, self.again[which])
        inner.close_to(outer)
        outer.close_to(scope)

    def panels(
        self,
        scope: Scope,
        count: int,
        width: int,
        first: Expr,
        base: Expr,
        block: Block,
        body: Callable[[Scope, Expr, Expr, int], None],
        again: bool,
    ) -> None:
        """`body(scope, first row or column, where its panel starts, size)` for every panel."""
        done = 0
        for tiles, size in cover(count, width, again):
            inner, start, to = scope, Const(done), Const(done)
            if tiles > 1:
                unit = gcd(width, count) if done + tiles * size > count else size
                v = Var("t", tiles * (size // unit))
                inner = self.share(scope, v, tiles, size // unit)
                to = index_add(index_mul(v, unit), start)
                start = index_add(index_mul(self.clamped(inner, v, (count - size) // unit), unit), start)
            body(inner, index_add(first, start), index_add(base, index_mul(to, block.size)), size)
            inner.close_to(scope)
            done += tiles * size

    def turned(self, which: str) -> bool:
        """Whether an operand's rows (columns) are contiguous along k: turned in squares then."""
        dim, k = (self.m, self.g.inner[-1]) if which == "a" else (self.n, self.g.inner[-1])
        across, along = (dim.a, k.a) if which == "a" else (dim.b, k.b)
        return across != 1 and along == 1 and 2 * k.size >= self.lanes > 1

    def pack_turned(
        self,
        scope: Scope,
        which: str,
        buffer: Buffer,
        at: Expr,
        base: Expr,
        size: int,
        block: Block,
    ) -> None:
        """A panel of an operand that lies across: as many rows as lanes, a few steps of k loaded from each
        and stored as columns. Rows past the edge are zero in B."""
        lanes, acc, width = self.lanes, self.g.acc, self.width(which)
        last = self.g.inner[-1]
        dim = self.m if which == "a" else self.n
        most = self.depth((dim.a if which == "a" else dim.b) * self.source(which).dtype.itemsize)
        begin, steps = block.ranges[-1]
        outer_scope, outer_k = self.k_loops(scope, len(self.g.inner) - 1, block)

        def square(s: Scope, k0: Expr, start: Expr, rows: int, deep: int) -> None:
            tile = s.alloc("square", acc, lanes * most, "register")
            i, lane = Var("i", rows), Var("v", most)
            each = s.loop(i, rows, "unroll")
            inner = each.loop(lane, most, "vector")
            mask = less(lane, deep) if deep < most else None
            k = {**outer_k, last.var: index_add(index_add(begin, k0), lane)}
            where = index_add(at, index_add(i, start))
            value = self.load(which, where, where, k, inner, mask)
            inner.stmts.append(Store(tile, (index_add(index_mul(i, most), lane),), value))
            inner.close()
            each.close()
            if rows < lanes:
                i, lane = Var("i", lanes - rows), Var("v", most)
                each = s.loop(i, lanes - rows, "unroll")
                inner = each.loop(lane, most, "vector")
                put = index_add(index_add(index_mul(i, most), lane), Const(rows * most))
                inner.stmts.append(Store(tile, (put,), Const(0, acc)))
                inner.close()
                each.close()
            j, lane = Var("j", deep), Var("v", lanes)
            each = s.loop(j, deep, "unroll")
            inner = each.loop(lane, lanes, "vector")
            k = {**outer_k, last.var: index_add(index_add(begin, k0), j)}
            row = index_mul(self.row_of(k, block), width)
            target = index_add(index_add(base, row), index_add(lane, start))
            kept = less(lane, rows) if rows < lanes and which == "a" else None
            inner.stmts.append(
                Store(buffer, (target,), Load(tile, (index_add(index_mul(lane, most), j),)), kept)
            )
            inner.close()
            each.close()

        def squares(s: Scope, start: Expr, rows: int) -> None:
            if steps <= most:
                square(s, ZERO, start, rows, steps)
                return
            v = Var("k", -(-steps // most) * most)
            inner = s.loop(v, v.extent, "serial", most)
            square(inner, self.clamped(inner, v, steps - most), start, rows, most)
            inner.close()

        whole = size > lanes and not dim.parts  # of several dimensions, constant rows need no divisions
        if whole and size < width and which == "b":
            v, lane = Var("k", steps), Var("v", lanes)
            each = outer_scope.loop(v, steps, "serial")
            inner = each.loop(lane, lanes, "vector")
            row = index_mul(self.row_of({**outer_k, last.var: index_add(begin, v)}, block), width)
            target = index_add(index_add(base, row), index_add(lane, Const(width - lanes)))
            inner.stmts.append(Store(buffer, (target,), Const(0, acc)))
            inner.close()
            each.close()
        self.squares(outer_scope, "s", size, lanes, whole, squares)
        outer_scope.close_to(scope)

    def depth(self, stride: int) -> int:
        """How many columns of a square to turn at a time. Few are a quarter of the code and as fast, but come
        back to the same lines, which must be in the first cache still."""
        line_sets = 4096 // gcd(stride, 4096)  # that rows so far apart share
        stay = self.machine.l1_bytes // 4096 * min(line_sets, self.lanes) >= self.lanes
        return min(self.lanes, SHALLOW) if stay else self.lanes

    def pack_block(self, scope: Scope, at: Expr, columns: int, block: Block) -> None:
        """Copies columns [at, at + columns) of B and a block of its rows into panels of this thread."""
        self.corner = None
        shared, self.parallel = self.parallel, False
        self.pack_panels(scope, "b", self.packed["b"], at, columns, ZERO, block)
        self.parallel = shared
        self.corner = at, block

    def pack_row(
        self, scope: Scope, which: str, buffer: Buffer, at: Expr, base: Expr, size: int, k: dict[Expr, Expr]
    ) -> None:
        """One row of a panel; lanes past the edge are zero in B, so that tiles need no mask to load them."""
        lanes = self.lanes if which == "b" else min(self.lanes, power_of_two(size))
        full = size // lanes * lanes

        def vector(s: Scope, start: Expr, left: int) -> None:
            wide = lanes if left >= lanes or which == "b" else power_of_two(left)
            lane = Var("v", wide)
            inner = s.loop(lane, wide, "vector")
            mask = less(lane, left) if left < wide else None
            where = index_add(at, index_add(lane, start))
            value = self.load(which, where, where, k, inner, mask)
            store_mask = mask if which == "a" else None
            target = (index_add(base, index_add(lane, start)),)
            inner.stmts.append(Store(buffer, target, value, store_mask))
            inner.close()

        dim = self.m if which == "a" else self.n
        gather = (dim.a if which == "a" else dim.b) != 1 and not dim.parts
        if full > lanes and gather:  # which is much code
            v = Var("g", full)
            each = scope.loop(v, full, "serial", lanes)
            vector(each, v, lanes)
            each.close()
        else:
            for start in range(0, full, lanes):
                vector(scope, Const(start), lanes)
        if full < size:
            vector(scope, Const(full), size - full)

    def k_loops(
        self,
        scope: Scope,
        count: int,
        block: Block,
        begin: Turns | None = None,
    ) -> tuple[Scope, dict[Expr, Expr]]:
        """Loops over the first `count` contracted dimensions of a block; each begins with `begin`."""
        k: dict[Expr, Expr] = {}
        done, turn = 1, ZERO
        for d, (start, n) in zip(self.g.inner[:count], block.ranges):
            if isinstance(d.var, Var):
                value = start
                if n > 1:
                    v = Var(d.var.name, n)
                    scope = scope.loop(v, n, "serial")
                    value = index_add(v, start)
                k[d.var] = value
                if n > 1 and begin is not None:
                    turn = index_add(index_mul(turn, n), v)
                    begin(scope, k, turn, done * n, done)
                    done *= n
        return scope, k

    def squares(
        self,
        scope: Scope,
        name: str,
        size: int,
        step: int,
        again: bool,
        body: Callable[[Scope, Expr, int], None],
    ) -> None:
        """`body(scope, start, size)` for a square's rows or columns after the other's; with `again` the last
        may begin where the one before has been, so that all are whole."""
        done = 0
        for count, n in [(-(-size // step), step)] if again and size > step else splits(size, step):
            inner, at = scope.inline(), Const(done)
            if count > 1:
                v = Var(name, count * n)
                inner = scope.loop(v, count * n, "serial", n)
                at = index_add(self.clamped(inner, v, size - n - done), at)
            body(inner, at, n)
            inner.close()
            done += count * n
