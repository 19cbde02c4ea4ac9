"""Operands of contractions: where an element of A or B is, in place or in panels, and the loops that pack
panels. Base of the classes that write the loops.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod

from ...ir.dataclass import dataclass
from ...ir.expr import (
    Const,
    Expr,
    Load,
    Local,
    Var,
    bounds,
    from_terms,
    index_add,
    index_div,
    index_mod,
    index_mul,
    stride_of,
    terms,
)
from ...ir.loops import Buffer, For, Let, Stmt, Store
from ..machine import MachineModel
from .contract import ContractGroup, Dim
from .elements import S
from .indexing import ZERO, Numbering, is_index, unravel
from .nests import StoreSpec, less, loads_of, needed_exprs, power_of_two
from .pointwise import work
from .scopes import Lowering, Scope
from .shared_loops import last_value
from .tiles import COPY, cover, splits

#: epilogues costlier than this per element run as a loop over the rows of a spilled tile, to keep the code
#: small
LONG_EPILOGUE = 8.0
#: columns of a square that are turned at a time
SHALLOW = 4
#: cache lines of a narrow panel that are packed at a time
ROWS = 12


@dataclass
class Packed:
    """An operand that is packed once for a whole loop: how, from where, and into what."""

    body: list[Stmt]
    source: Buffer
    panel: Buffer


@dataclass
class Block:
    """A block of k: for every contracted dimension where it starts and how many steps it has, and whether it
    is the first and the last block (a condition where a loop decides)."""

    ranges: tuple[tuple[Expr, int], ...]
    first: bool | Expr = True
    last: bool | Expr = True

    @property
    def size(self) -> int:
        """Steps in all."""
        return prod(n for _, n in self.ranges)


@dataclass
class Part:
    """A dimension of the rows, or what of it a region holds.

    Attributes:
        dim: whose variable it is; of several taken as one, `sub` says which.
        size, start: of the part.
        c: stride in the result.
        whole: size of the dimension.
    """

    dim: Dim
    size: int
    start: Expr
    c: int
    whole: int
    sub: int = 0


class ContractOperands:
    """One contraction on its way to statements: reading its operands."""

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
        # With `spread` a column is a lane of a vector, and there is one vector for each of `row`.
        self.row = self.outer.pop() if self.s.spread else None
        self.columns = self.n.size if self.row is None else self.row.size * self.s.lanes
        self.low = Lowering(group.elements.bindings, number, place)
        exprs = needed_exprs(group.elements.bindings, [v for _, _, v in specs])
        self.long = work(exprs) > LONG_EPILOGUE
        self.lanes = self.s.lanes
        self.far = self.far_places(exprs)
        self.packed: dict[str, Buffer] = {}
        self.packed_once: list[Packed] = []
        self._partial: Buffer | None = None
        self.inside: list[Dim] = []  # loops inside those over blocks of B
        self.chunk = 0  # of the first of them, so many at a time; 0: all
        # Where sums are kept until those of some rows are complete and turned (contract_turned.py): the
        # dimensions of these rows, and the distance of rows.
        self.region: list[Part] = []
        self.pitch = 0
        self.parallel = False  # whether the next outermost loop is shared among threads
        self.tile_vars: set[Var] = set()  # loop variables that step from tile to tile
        self.pack_dims: dict[str, list[Dim]] = {}
        self.whole = Block(tuple((ZERO, d.size) for d in group.inner))
        self.corner: tuple[Expr, Block] | None = None  # first column and rows of the block of B packed last
        # Whether tiles of rows (of columns) may overlap. What is computed twice is stored twice, which does
        # no harm if the epilogue reads nothing that it writes; else rows that have been are left out.
        written = {place(b) for b, _, _ in specs}
        read = {place(x.buffer) for x in loads_of(exprs)} | {place(b) for b in group.buffers}
        self.pure = written.isdisjoint(read)
        across = self.n.c != 1 and not self.n.parts
        self.again = {"a": self.pure or not (across or self.s.dot), "b": self.pure}
        self.homes: dict[Expr, Expr] = {}  # of a tile that overlaps: where it would begin if it did not
        # Blocks of B are packed inside the loops over what tells B's matrices apart.
        self.outer.sort(key=lambda d: d.b == 0 and self.s.nc > 0)

    def far_places(self, exprs: list[Expr]) -> list[tuple[Buffer, Expr, bool]]:
        """Places that the epilogue reads, one for every element of the result, next to each other along the
        columns and in buffers too large for the first cache: buffer, index, and whether it is written too.
        What is only written nobody waits for."""
        n, m = self.n.var, self.m.var
        if self.row is not None or self.n.parts or not (isinstance(n, Var) and isinstance(m, Var)):
            return []
        written = {self.place(b) for b, _, _ in self.specs}
        found: dict[Buffer, tuple[Buffer, Expr, bool]] = {}
        for x in loads_of(exprs):
            b, index = self.place(x.buffer), x.index[0]
            if len(x.index) > 1 or x.mask is not None or b.nbytes < self.machine.l1_bytes or b in found:
                continue
            if is_index(index) and stride_of(index, n) == 1 and stride_of(index, m):
                found[b] = (x.buffer, index, b in written)
        return list(found.values())

    def open(self, scope: Scope, var: Var, extent: int, step: int, parallel: bool) -> Scope:
        v = Var(var.name, extent)
        inner = scope.loop(v, extent, "parallel" if parallel else "serial", step)
        inner.define(var, v)
        if parallel:
            self.low.floor = inner.depth
        return inner

    def take_parallel(self, scope: Scope, count: int) -> bool:
        """Whether a loop of `count` iterations is the one to share among threads: an outermost one."""
        at: Scope | None = scope
        while at is not None:
            if at.header is not None:
                return False
            at = at.parent
        return self.parallel and count >= 2

    def share(self, scope: Scope, var: Var, count: int, step: int) -> Scope:
        """A loop of `count` iterations, shared among threads if it is the one to be."""
        shared = self.take_parallel(scope, count)
        inner = scope.loop(var, var.extent, "parallel" if shared else "serial", step)
        if shared:
            self.low.floor = inner.depth
        return inner

    def load(
        self, which: str, m: Expr, n: Expr, k: dict[Expr, Expr], scope: Scope, mask: Expr | None = None
    ) -> Expr:
        """An element of A (row m) or B (column n) at the contracted position `k`, widened."""
        g = self.g
        dim, at = (self.m, m) if which == "a" else (self.n, n)
        if which == "b" and self.corner is not None:
            column, block = self.corner
            width = self.width("b")
            tile, inside = self.split_tile(index_add(n, index_mul(column, -1)), width)
            row = index_mul(self.row_of(k, block), width)
            at = index_add(index_mul(tile, block.size), index_add(row, inside))
            return Load(self.packed["b"], (at,), None)
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
        if which == "b" and self.row is not None:
            index = index_add(index, index_mul(index_div(at, self.lanes), self.row.b))
            at = index_mod(at, self.lanes)
        if dim.parts:
            for i, (_, stride) in zip(unravel(at, tuple(n for n, _ in dim.parts)), dim.parts):
                index = index_add(index, index_mul(i, stride))
        elif dim.sub:
            for i, d in zip(unravel(at, tuple(d.size for d in dim.sub)), dim.sub):
                index = index_add(index, index_mul(i, d.a if which == "a" else d.b))
        else:
            index = index_add(index, index_mul(at, dim.a if which == "a" else dim.b))
        buffer = self.source(which)
        e: Expr = Load(buffer, (index,), mask)
        return S.cast(e, g.acc)

    def source(self, which: str) -> Buffer:
        """The operand's buffer."""
        return self.place(self.g.buffers[0 if which == "a" else 1])

    def row_of(self, k: dict[Expr, Expr], block: Block) -> Expr:
        """Which row of a block's panel a position in k is."""
        out: Expr = ZERO
        for d, (start, n) in zip(self.g.inner, block.ranges):
            out = index_add(index_mul(out, n), index_add(k.get(d.var, ZERO), index_mul(start, -1)))
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
        return index_add(out, index_add(index_mul(self.row_of(k, self.whole), width), inside))

    def home(self, at: Expr) -> Expr:
        """`at` if no tiles overlapped: where it is in what is kept tile by tile."""
        items, const = terms(at)
        if not any(t in self.homes for t, _ in items):
            return at
        out: Expr = Const(const)
        for t, c in items:
            out = index_add(out, index_mul(self.homes.get(t, t), c))
        return out

    def split_tile(self, at: Expr, width: int) -> tuple[Expr, Expr]:
        """`at` as (start of its tile, rest): the parts that step by whole tiles are the start."""
        items, const = terms(self.home(at))
        start = [(t, c) for t, c in items if c % width == 0 or t in self.tile_vars]
        rest = [(t, c) for t, c in items if not (c % width == 0 or t in self.tile_vars)]
        return from_terms(start, const // width * width), from_terms(rest, const % width)

    def width(self, which: str) -> int:
        return self.s.mr if which == "a" else self.s.nr * self.lanes

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

    def clamped(self, scope: Scope, v: Var, most: int) -> Expr:
        """The loop variable, or `most` where it is larger."""
        assert scope.header is not None and isinstance(scope.header, For)
        return v if last_value(scope.header) <= most else self.limited(scope, v, most)

    def limited(self, scope: Scope, at: Expr, most: int) -> Expr:
        """An index, or `most` where it is larger."""
        found = bounds(at)
        if found is not None and found[1] <= most:
            return at
        least = Local("at", at.dtype, most + 1)
        scope.stmts.append(Let(least, S.prim("minimum", at, Const(most))))
        return least

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

        done = 0
        for count, rows in splits(size, lanes):
            inner, start = outer_scope, Const(done)
            if count > 1:
                v = Var("s", count * rows)
                inner = outer_scope.loop(v, count * rows, "serial", rows)
                start = index_add(v, start)
            squares(inner, start, rows)
            if inner is not outer_scope:
                inner.close()
            done += count * rows
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

    def k_loops(self, scope: Scope, count: int, block: Block) -> tuple[Scope, dict[Expr, Expr]]:
        """Loops over the first `count` contracted dimensions of a block."""
        k: dict[Expr, Expr] = {}
        for d, (start, n) in zip(self.g.inner[:count], block.ranges):
            if isinstance(d.var, Var):
                value = start
                if n > 1:
                    v = Var(d.var.name, n)
                    scope = scope.loop(v, n, "serial")
                    value = index_add(v, start)
                k[d.var] = value
        return scope, k
