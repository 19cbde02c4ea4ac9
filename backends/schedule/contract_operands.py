"""Operands of contractions: where an element of A or B is, in place or in panels, and the loops that pack
panels. Base of the classes that write the loops.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

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
    index_sum,
    stride_of,
    terms,
)
from ...ir.loops import Buffer, For, Let, Stmt
from ..machine import MachineModel
from .contract import LONG_SUM, ContractGroup, Dim
from .elements import S
from .indexing import ZERO, Numbering, is_index, unravel
from .nests import StoreSpec, loads_of, needed_exprs
from .pointwise import work
from .scopes import Lowering, Scope
from .shared_loops import last_value

#: epilogues costlier than this per element run as a loop over the rows of a spilled tile, to keep the code
#: small; and where sums are long, so that this costs next to nothing
LONG_EPILOGUE, SHORT_EPILOGUE = 8.0, 3.0
#: columns of a square that are turned at a time
SHALLOW = 4


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
        self.long = work(exprs) > (LONG_EPILOGUE if self.K < LONG_SUM else SHORT_EPILOGUE)
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
        parts: list[tuple[Expr, int]] = [(g.offsets[0 if which == "a" else 1], 1)]
        for d in (*self.outer, *g.inner):
            stride = d.a if which == "a" else d.b
            if stride and isinstance(d.var, Var):
                value = k.get(d.var) or scope.find(self.low.number(d.var))
                assert value is not None
                parts.append((value, stride))
        if which == "b" and self.row is not None:
            parts.append((index_div(at, self.lanes), self.row.b))
            at = index_mod(at, self.lanes)
        if dim.parts:
            where = unravel(at, tuple([n for n, _ in dim.parts]))
            parts += [(i, stride) for i, (_, stride) in zip(where, dim.parts)]
        elif dim.sub:
            where = unravel(at, tuple([d.size for d in dim.sub]))
            parts += [(i, d.a if which == "a" else d.b) for i, d in zip(where, dim.sub)]
        else:
            parts.append((at, dim.a if which == "a" else dim.b))
        buffer = self.source(which)
        e: Expr = Load(buffer, (index_sum(parts, 0),), mask)
        return S.cast(e, g.acc)

    def source(self, which: str) -> Buffer:
        """The operand's buffer."""
        return self.place(self.g.buffers[0 if which == "a" else 1])

    def row_of(self, k: dict[Expr, Expr], block: Block) -> Expr:
        """Which row of a block's panel a position in k is."""
        parts: list[tuple[Expr, int]] = []
        for d, (start, n) in zip(self.g.inner, block.ranges):
            parts = [*[(e, c * n) for e, c in parts], (k.get(d.var, ZERO), 1), (start, -1)]
        return index_sum(parts, 0)

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
        return index_sum([(self.homes.get(t, t), c) for t, c in items], const)

    def split_tile(self, at: Expr, width: int) -> tuple[Expr, Expr]:
        """`at` as (start of its tile, rest): the parts that step by whole tiles are the start."""
        items, const = terms(self.home(at))
        start = [(t, c) for t, c in items if c % width == 0 or t in self.tile_vars]
        rest = [(t, c) for t, c in items if not (c % width == 0 or t in self.tile_vars)]
        return from_terms(start, const // width * width), from_terms(rest, const % width)

    def width(self, which: str) -> int:
        return self.s.mr if which == "a" else self.s.nr * self.lanes

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
