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
from math import prod

from ...ir.expr import Const, Expr, Var, index_add, index_mul
from ...ir.loops import Buffer, Stmt
from ..machine import MachineModel
from .contract import ContractGroup
from .contract_operands import Packed
from .contract_tile import Block, ContractTile
from .elements import S
from .indexing import ZERO, Numbering
from .nests import StoreSpec
from .scopes import Scope
from .tiles import splits


class ContractEmitter(ContractTile):
    """One contraction on its way to statements."""

    def emit(self) -> list[Stmt]:
        """The kernel's statements."""
        top = Scope(self.low)
        for which, wanted in (("b", self.s.pack_b), ("a", self.s.pack_a)):
            if wanted and self.g.reuse(which) > 1:
                once = Scope(self.low)
                self.pack(once, which)
                self.packed_once.append(Packed(once.stmts, self.source(which), self.packed[which]))
            elif wanted:
                self.pack(top, which)
        macs = self.m.size * self.columns * self.K * prod(d.size for d in self.outer)
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

        # Rows first where the row tile is the larger part of what is read and stays in the cache, or where
        # all of B stays in the second cache, so that A is read from memory only once.
        b_bytes = self.K * self.n.size * self.g.acc.itemsize
        rows_first = s.dot or (s.pack_b and s.kc >= self.K and b_bytes <= self.machine.l2_bytes * 7 // 8)
        if rows_first or (self.parallel and self.columns // width < 4 <= self.m.size // s.mr):
            self.row_tiles(scope, lambda o, mb, mr: self.column_tiles(o, width, lambda i, nb, n:
                self.k_blocks(i, lambda k, b: one(k, mb, mr, nb, n, b))))  # fmt: skip
        else:
            self.column_tiles(scope, width, lambda o, nb, n: self.k_blocks(o, lambda i, b:
                self.row_tiles(i, lambda k, mb, mr: one(k, mb, mr, nb, n, b))))  # fmt: skip

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

    def row_tiles(self, scope: Scope, body: Callable[[Scope, Expr, int], None]) -> None:
        self.tiles(scope, self.m.letters, self.m.size, self.s.mr, body)

    def column_tiles(self, scope: Scope, width: int, body: Callable[[Scope, Expr, int], None]) -> None:
        """As `tiles`; where vectors are rows the loop counts those, so that a column's row needs no
        division."""
        if self.row is None:
            self.tiles(scope, self.n.letters, self.n.size, width, body)
            return
        lanes = self.lanes
        self.tiles(scope, self.row.letters, self.row.size, width // lanes,
            lambda s, at, n: body(s, index_mul(at, lanes), n * lanes))  # fmt: skip

    def tiles(
        self, scope: Scope, letters: str, extent: int, tile: int, body: Callable[[Scope, Expr, int], None]
    ) -> None:
        """`body(scope, start, size)` for every tile of a dimension."""
        start = 0
        for count, size in splits(extent, tile):
            if count > 1:
                v = Var(f"{letters[:1]}t", count * size)
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
