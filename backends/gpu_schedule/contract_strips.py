"""Strips of a contraction's operands on their way to shared memory. Base of contract.py's emitter.

A strip is what a block needs of one operand for `bk` terms. Where the GPU can, threads copy it ahead, from
global to shared memory; else they fetch it into registers, and keep it in shared memory once they are through
with the strip before. There are two of each, or more where copies are ahead: one is used while others are
filled.

A strip for tensor cores lies in rows of terms where terms are neighbours in memory. The 16 bytes that
`Matrices` takes of each of 8 rows must be in different banks, so a row's pieces are turned by its number.
"""

from __future__ import annotations

from ...ir.dataclass import dataclass
from ...ir.dtypes import DType
from ...ir.expr import Const, Expr, Load, Var, index_add, index_mod, index_mul
from ...ir.loops import Buffer, Store
from ...ir.substitute import substitute
from ..schedule.contract import Dim
from ..schedule.elements import S
from ..schedule.indexing import ZERO, unravel
from ..schedule.nests import less
from ..schedule.scopes import Lowering, Scope
from .contract_tiles import AHEAD, Tile
from .launch import Launch, Target, both, close, index_let
from .plan import GpuContractGroup

#: copies that a thread starts in straight-line code: more make the compiler keep an address for each of them
STARTED = 4


@dataclass(frozen=True)
class Run:
    """Dimensions that follow one another in an operand's memory."""

    letters: str
    size: int
    stride: int


@dataclass(frozen=True)
class Way:
    """What is chosen first: see `Strip`. `copies`: it is copied ahead; `dtype`: of the strip."""

    along_k: bool
    rows: bool
    lanes: int
    copies: bool
    dtype: DType


@dataclass
class Strip:
    """How an operand's strip is brought to shared memory.

    Attributes:
        which: "a" or "b".
        dims: the operand's own dimensions (rows of A, columns of B).
        size, tile: their product; how many of it a tile has.
        along_k: neighbours in memory are neighbours in k.
        rows: in shared memory, a row for each of the operand's own places; else one for each term.
        lanes: elements of one access.
        count: how many accesses a thread makes.
        pitch: from one row in shared memory to the next.
        room: elements of one of the strips in shared memory.
        shared: all of them.
        registers: a thread's part of the next strip; None where it is copied ahead.
        start: where the tile begins in the operand's own dimensions.
    """

    which: str
    dims: list[Dim]
    size: int
    tile: int
    along_k: bool
    rows: bool
    lanes: int
    count: int
    pitch: int
    room: int
    shared: Buffer
    registers: Buffer | None
    start: Expr

    def at(self, own: Expr, deep: Expr, buffer: Expr) -> Expr:
        """Where an element is in `shared`."""
        row, column = (own, deep) if self.rows else (deep, own)
        if self.rows:
            wide, pieces = self.piece, self.pitch // self.piece
            turned = index_mod(index_add(deep // wide, self.turn(own)), pieces)
            column = index_add(index_mul(turned, wide), index_mod(deep, wide))
        return index_add(index_add(index_mul(buffer, self.room), index_mul(row, self.pitch)), column)


    @property
    def piece(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.shared.dtype.itemsize

    def turn(self, own: Expr) -> Expr:
        """By how many pieces a row of terms is turned: 8 neighbouring rows fill all banks."""
        pieces = self.pitch // self.piece
        if pieces >= 8:
            return index_mod(own, 8)
        return index_mod(own // (8 // pieces), pieces)


class Strips:
    """What a contraction's kernels do with memory.

    Attributes:
        base: where each operand begins for the block's place along the batch dimensions, whose letters are at
            `base_letters`.
        thread: the number of a thread.
        ragged: terms are cut off somewhere.
    """

    tile: Tile
    base: dict[str, Expr]
    base_letters: dict[str, Expr]
    thread: Expr
    ragged: bool

    def __init__(self, group: GpuContractGroup, target: Target) -> None:
        self.g, self.target = group, target
        self.low = Lowering(group.elements.bindings, target.number, target.place)

    def source(self, which: str) -> Buffer:
        return self.target.place(self.g.buffers[0 if which == "a" else 1])

    def offset(self, which: str) -> Expr:
        return self.g.offsets[0 if which == "a" else 1]

    def runs(self, which: str, dims: list[Dim]) -> list[Run]:
        """Dimensions as one operand has them in memory: of a convolution's weight all terms are one run."""
        out: list[Run] = []
        for d in dims:
            stride = d.a if which == "a" else d.b
            if out and out[-1].stride == stride * d.size:
                last = out.pop()
                out.append(Run(last.letters + d.letters, last.size * d.size, stride))
            else:
                out.append(Run(d.letters, d.size, stride))
        return out

    def mask(self, which: str, letters: dict[str, Expr]) -> Expr | None:
        """The condition that an operand is not zero, being padding, at the places of some letters (those left
        out have size 1)."""
        mask = self.g.masks[0 if which == "a" else 1]
        if mask is None:
            return None
        at: dict[Expr, Expr] = {self.g.vars[c]: place for c, place in letters.items()}
        return substitute(mask, at)

    def letters(self, names: str, place: Expr) -> dict[str, Expr]:
        """The places of the letters of a dimension or run."""
        return dict(zip(names, unravel(place, tuple(self.g.sizes[c] for c in names))))

    def along(self, which: str, dims: list[Dim], values: dict[Expr, Expr]) -> Expr:
        """How far into an operand the given places along `dims` are."""
        out: Expr = ZERO
        for d in dims:
            stride = d.a if which == "a" else d.b
            if stride and isinstance(d.var, Var):
                out = index_add(out, index_mul(values[d.var], stride))
        return out

    def way(self, which: str, dims: list[Dim]) -> Way:
        """Chooses the direction and the width of accesses."""
        own, inner = self.runs(which, dims)[-1], self.runs(which, self.g.inner)[-1]
        along_k = self.prefers_terms(inner.stride, inner.size, own.stride, own.size)
        source = self.source(which)
        rows = along_k and bool(self.tile.mma)
        dtype = source.dtype if self.tile.mma else self.g.acc
        copies = self.target.gpu.capability >= AHEAD and source.dtype is dtype
        straight = along_k == rows
        # What is turned on its way is copied one by one, if at all.
        turned = copies and not straight and dtype.itemsize >= 4
        lanes = 1 if turned else self.lanes(which, dims, inner if along_k else own, self.tile_of(which))
        copies = copies and (turned or (straight and lanes * dtype.itemsize >= 4))
        return Way(along_k, rows, lanes, copies, dtype)

    def tile_of(self, which: str) -> int:
        """The tile's extent along the operand's own dimensions."""
        return self.tile.bm if which == "a" else self.tile.bn

    def strip(self, k: Launch, which: str, dims: list[Dim], size: int, block: Expr) -> Strip:
        """How an operand comes to shared memory, and room for it there."""
        way, tile, bk = self.way(which, dims), self.tile_of(which), self.tile.bk
        rows, lanes, dtype = way.rows, way.lanes, way.dtype
        count = -(-tile * bk // (lanes * self.tile.threads))
        pitch = bk if rows else tile + self.tile.pad(dtype.itemsize)
        room = pitch * (tile if rows else bk)
        name = self.source(which).name
        shared = k.shared(f"{name}_strip", dtype, self.tile.stages * room)
        registers = None if way.copies else k.scope.alloc(f"{name}_next", dtype, count * lanes, "register")
        start = index_mul(block, tile)
        return Strip(
            which, dims, size, tile, way.along_k, rows, lanes, count, pitch, room, shared, registers, start
        )

    @staticmethod
    def prefers_terms(inner: int, count: int, own: int, size: int) -> bool:
        """Whether neighbouring accesses are neighbours in k, from the strides and lengths of the innermost
        dimensions: the smaller stride; where a window makes both 1, the longer run."""
        if inner == own == 1:
            return count >= size
        return inner == 1 or (own != 1 and abs(inner) < abs(own))

    def lanes(self, which: str, dims: list[Dim], run: Run, tile: int) -> int:
        """Elements of one access along `run`: aligned neighbours, of which no edge cuts off some."""
        mask = self.g.masks[0 if which == "a" else 1]
        if mask is not None and self.low.free(mask) & {self.g.vars[c] for c in run.letters}:
            return 1
        found = [r for part in (self.g.batch, dims, self.g.inner) for r in self.runs(which, part)]
        rest = [r for r in found if r != run]
        itemsize, start = self.source(which).dtype.itemsize, self.offset(which)
        for wide in (8, 4, 2):
            whole = run.stride == 1 and run.size % wide == 0 and wide * itemsize <= 16
            aligned = all(r.stride % wide == 0 for r in rest)
            fits = tile * self.tile.bk % (wide * self.tile.threads) == 0
            if whole and aligned and fits and isinstance(start, Const) and start.value % wide == 0:
                return wide
        return 1

    def places(self, scope: Scope, s: Strip, u: Expr) -> tuple[Expr, Expr, Expr | None]:
        """Access u of a thread: its place in the tile along the operand's own dimensions and along k (of the
        first lane); a condition that it is in the strip at all."""
        wide, bk, threads = s.lanes, self.tile.bk, self.tile.threads
        flat = index_let(scope, "e", index_add(index_mul(u, threads), self.thread), s.count * threads)
        inside = less(flat, s.tile * bk // wide) if s.tile * bk // wide < s.count * threads else None
        run = 32 // s.shared.dtype.itemsize  # a sector of global memory
        if s.along_k and not s.rows and wide == 1 and bk % run == s.tile % 4 == 0:
            # Turned on its way: a warp (half of one with f64) has whole sectors and all banks.
            column = index_add(index_mul(flat // (4 * run) % (bk // run), run), index_mod(flat, run))
            row = index_add(index_mul(flat // (4 * bk), 4), index_mod(flat // run, 4))
            return row, column, inside
        per = (bk if s.along_k else s.tile) // wide
        fast, slow = index_mul(index_mod(flat, per), wide), flat // per
        return (slow, fast, inside) if s.along_k else (fast, slow, inside)

    def bring(self, scope: Scope, strips: list[Strip], first: Expr, buffer: Expr) -> None:
        """The strips from term `first` on: copied ahead to one of the two buffers, or into registers."""
        for s in strips:
            ahead = s.registers is None
            loop, turn, most = scope, ZERO, s.count
            if ahead and s.count > STARTED and s.count % STARTED == 0:
                more = Var("w", s.count // STARTED)
                loop, turn, most = loop.loop(more, more.extent, "serial"), more * STARTED, STARTED
            u = Var("u", most)
            loop = loop.loop(u, most, "unroll") if most > 1 else loop.inline()
            turn = index_add(turn, u) if most > 1 else turn
            own, deep, inside = self.places(loop, s, turn)
            if ahead and inside is not None:
                loop = loop.branch(inside)
                inside = None
            lane = Var("v", s.lanes)
            index, inside = self.global_place(loop, s, own, index_add(first, deep), lane, inside)
            zero = None if inside is None else Const(0, self.source(s.which).dtype)
            value = Load(self.source(s.which), (index,), inside, zero)
            inner = loop.loop(lane, s.lanes, "vector") if s.lanes > 1 else loop.inline()
            across = lane if s.lanes > 1 else ZERO
            if s.registers is None:
                at = index_add(s.at(own, deep, buffer), across)
                inner.stmts.append(Store(s.shared, (at,), value, None, True))
            else:
                at = index_add(index_mul(turn, s.lanes), across)
                inner.stmts.append(Store(s.registers, (at,), S.cast(value, s.registers.dtype)))
            close(inner, scope)

    def global_place(
        self, loop: Scope, s: Strip, own: Expr, term: Expr, lane: Var, inside: Expr | None
    ) -> tuple[Expr, Expr | None]:
        """The index of an element of the operand, and the condition that there is one."""
        own = index_add(s.start, own)
        if s.size % s.tile:
            inside = both(inside, less(own, s.size))
        if self.ragged:
            inside = both(inside, less(term, self.terms))
        index, letters = self.base[s.which], dict(self.base_letters)
        for dims, flat, wide in ((s.dims, own, not s.along_k), (self.g.inner, term, s.along_k)):
            step = s.lanes if wide else 1
            runs = self.runs(s.which, dims)
            sizes = [*[r.size for r in runs[:-1]], runs[-1].size // step]
            for r, n, p in zip(runs, sizes, unravel(flat // step, tuple(sizes))):
                p = index_let(loop, r.letters[:1] or "e", p, n)
                place = index_add(p * step, lane) if r is runs[-1] and step > 1 else p
                letters |= self.letters(r.letters, place)
                index = index_add(index, index_mul(place, r.stride))
        return index, both(inside, self.mask(s.which, letters))

    @property
    def terms(self) -> int:
        out = 1
        for d in self.g.inner:
            out *= d.size
        return out

    def keep(self, scope: Scope, strips: list[Strip], buffer: Expr) -> None:
        """What is in registers, to one of the two strips in shared memory."""
        for s in strips:
            if s.registers is None:
                continue
            u = Var("u", s.count)
            loop = scope.loop(u, s.count, "unroll") if s.count > 1 else scope.inline()
            turn = u if s.count > 1 else ZERO
            own, deep, inside = self.places(loop, s, turn)
            lane = Var("v", s.lanes)
            inner = loop
            if inside is not None:
                inner = inner.branch(inside)
            if s.lanes > 1:
                # Across rows of the strip there is nothing wide about it.
                inner = inner.loop(lane, s.lanes, "vector" if s.along_k == s.rows else "unroll")
            across = lane if s.lanes > 1 else ZERO
            value = Load(s.registers, (index_add(index_mul(turn, s.lanes), across),))
            if s.along_k == s.rows:
                at = index_add(s.at(own, deep, buffer), across)
            elif s.along_k:
                at = s.at(own, index_add(deep, across), buffer)
            else:
                at = s.at(index_add(own, across), deep, buffer)
            inner.stmts.append(Store(s.shared, (at,), value))
            close(inner, scope)
