"""Reductions over rows with what comes before and after them, as kernels.

A block has A x B threads: A rows, and B threads that share each. Where a row's elements are neighbours in
memory so are the B threads (`inner`: one thread, one warp or one block for a row); where neighbouring rows
are (sums over the first axis), so are the A rows (`column`). Each thread runs through its share of the row
with accumulators in registers; shares are combined by warp shuffles or through shared memory, and all B
threads know the result, so that the next pass over the row goes on in the same kernel (softmax, norms,
losses). What that needs again stays in registers.

Rows too long and too few to fill the GPU are cut in chunks, a block for each: every pass becomes a kernel
that writes partial results, and one that combines them, in a fixed order. Used by gpu_schedule/__init__.py.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...ir import dtypes
from ...ir.dataclass import dataclass, replace
from ...ir.expr import Const, Expr, Load, Local, Prim, Var, index_add, index_mod
from ...ir.loops import Barrier, Buffer, Stmt, Store
from ..schedule.elements import S
from ..schedule.indexing import ZERO
from ..schedule.nests import StoreSpec, less, strides
from ..schedule.pointwise import work
from ..schedule.row_group import Reduction, RowGroup, identity
from ..schedule.row_passes import HEAVY, Pass, RowPasses
from ..schedule.scopes import Scope
from .launch import (
    Launch,
    Target,
    both,
    close,
    define_parts,
    flat_launch,
    grid_turns,
    index_let,
    power_below,
    serial_nest,
    warp_reduce,
)
from .pointwise import SCALAR

#: rows up to this long are one thread's; up to this long, one warp's
THREAD_ROW, WARP_ROW = 4, 512
#: rows are cut in chunks where threads would have so many elements; chunks leave them so many at least
LONG, SHARE = 96, 8
#: registers of a thread for what later passes use again
HELD = 32


@dataclass(frozen=True)
class Shape:
    """How threads are laid over rows.

    Attributes:
        rows, share: A and B.
        column: neighbouring threads are neighbouring rows.
        chunks: pieces that rows are cut into.
        lanes: neighbouring elements of a row that a thread takes at once.
    """

    rows: int
    share: int
    column: bool
    chunks: int = 1
    lanes: int = 1


class GpuRows(RowPasses):
    """One row group on its way to kernels."""

    def __init__(self, group: RowGroup, specs: list[StoreSpec], target: Target) -> None:
        self.target = target
        super().__init__(group, specs, SCALAR, target.place, target.number)
        self.shape = self.widened(self.choose())
        self.held = self.choose_held()
        self.rooms: dict[Expr, Buffer] = {}

    # --- layout

    def prefers_columns(self) -> bool:
        last_r, last_o = self.r.vars[-1], self.o.vars[-1]

        def cost(var: Expr, n: int) -> float:
            if not isinstance(var, Var):
                return float("inf")
            apart = sum(1.0 if s in (0, 1) else 8.0 for s in strides(self.loads, var))
            return (apart + 1.0) * (1.0 if n >= 8 else 4.0)

        return cost(last_o, self.o.sizes[-1]) < cost(last_r, self.r.sizes[-1])

    def plan_kept(self) -> dict[Local, int]:
        return {}

    def overwrites(self, specs: list[StoreSpec]) -> bool:
        """Whether something stored is also read here."""
        stored = {id(self.target.place(b)) for b, _, _ in specs}
        return any(id(self.target.place(x.buffer)) in stored for x in self.loads)

    def choose(self) -> Shape:
        O, R, sms = self.O, self.R, self.target.gpu.sms
        inside = self.overwrites([s for p in self.passes for s in p.stores])
        if self.columns:
            if sms * 512 <= O or R < 8:
                return Shape(min(256, -(-O // 32) * 32), 1, True)
            rows = 32 if O >= 32 or R < 256 else power_below(O)
            share = min(8 if sms * 64 <= O else 32, power_below(R // 2), 1024 // rows)
            if inside and O % rows:
                return Shape(128, 1, True)
            blocks = -(-O // rows)
            return Shape(rows, share, True, self.cut(blocks, share))
        if R <= THREAD_ROW:
            return Shape(min(256, -(-O // 32) * 32), 1, False)
        hazard = self.overwrites(self.row_stores)
        if (R <= 128 or (R <= WARP_ROW and 4 * sms <= O)) and not hazard:
            rows = 8 if 16 * sms <= O else (4 if 4 * sms <= O else 1)
            return Shape(min(rows, O), 32, False)
        share = max(32, min(256 if R <= 8192 or 8 * sms <= O else 1024, power_below(R // 4)))
        return Shape(1, share, False, self.cut(O, share))

    def cut(self, blocks: int, share: int) -> int:
        """In how many chunks to cut rows that keep just so many blocks busy."""
        if share * LONG > self.R or blocks >= self.target.gpu.sms:
            return 1
        return max(1, min(2 * self.target.gpu.sms // blocks, self.R // (share * SHARE)))

    def widened(self, shape: Shape) -> Shape:
        """With vectors, where they make wide accesses."""
        last, n = self.r.vars[-1], self.r.sizes[-1]
        if shape.column or shape.share == 1 or not isinstance(last, Var):
            return shape
        found = strides(self.loads, last)
        buffers = [x.buffer for x, s in zip(self.loads, found) if s] + [
            b for p in self.passes for b, _, _ in p.stores
        ]
        size = max([b.dtype.itemsize for b in buffers], default=16)
        if any(s not in (0, 1) for s in found) or not any(found):
            return shape
        for lanes in (4, 2):
            if n % lanes == 0 and lanes * size <= 16 and lanes * shape.share * 2 <= self.R:
                return replace(shape, lanes=lanes)
        return shape

    def choose_held(self) -> list[tuple[Expr, int]]:
        """What threads keep in registers for later passes, with the pass that makes it: elements that take
        work, and loads."""
        shape = self.shape
        room = HELD // (-(-self.R // (shape.share * shape.lanes)) * shape.lanes)
        if shape.chunks > 1 or shape.share == 1 or not room or len(self.passes) < 2:
            return []
        held: list[tuple[Expr, int]] = []
        for kind in (Local, Load):
            found: dict[int, list[int]] = {}  # the passes that need an expression
            exprs: dict[int, Expr] = {}
            for n, p in enumerate(self.passes):
                for e in self.met(p, {self.number(x) for x, made in held if made < n}):
                    if isinstance(e, kind) and (isinstance(e, Load) or self.heavy(e)):
                        exprs[self.number(e)] = e
                        found.setdefault(self.number(e), []).append(n)
            for n, passes in found.items():
                if len(passes) > 1 and len(held) < room and self.stage(exprs[n]) <= passes[0]:
                    held.append((exprs[n], passes[0]))
        return held

    def heavy(self, e: Expr) -> bool:
        """Whether an element is worth keeping."""
        return isinstance(e, Local) and work([self.bindings[e]]) >= HEAVY

    def met(self, p: Pass, known: set[int]) -> list[Expr]:
        """The elements' loads and locals that a pass computes, if it has what is `known`."""
        stack = [r.element for r in p.reductions] + [v for _, _, v in p.stores]
        seen: set[int] = set()
        out: list[Expr] = []
        while stack:
            e = stack.pop()
            n = self.number(e)
            if n in seen or n in known:
                continue
            seen.add(n)
            if isinstance(e, (Load, Local)) and self.low.free(e) & self.r_vars and e.dtype.kind == "f":
                out.append(e)
            if isinstance(e, Local):
                if e in self.bindings:
                    stack.append(self.bindings[e])
            elif not isinstance(e, Load):
                stack.extend(e.args)
        return out

    # --- kernels

    def emit(self) -> list[list[Stmt]]:
        if self.O == 0:
            return []
        if self.shape.chunks > 1:
            return self.emit_chunks()
        threads = self.thread_loops()
        count, size = -(-self.O // self.shape.rows), prod(n for _, n in threads)
        turns, blocks = grid_turns(count, size, self.target.gpu)
        k = Launch(self.low, [("rows", blocks)], threads)
        scope, _ = self.row_of(k, k.blocks[0], turns, blocks)
        shares = -(-self.R // (self.shape.share * self.shape.lanes))
        for e, _ in self.held:
            name = e.buffer.name if isinstance(e, Load) else getattr(e, "name", "element")
            self.rooms[e] = scope.alloc(f"{name}_kept", e.dtype, shares * self.shape.lanes, "register")
        for n, p in enumerate(self.passes):
            accs = self.sweep(scope, n, ZERO, self.R)
            for r, acc in zip(p.reductions, accs):
                scope.anchor(r.local, self.combined(k, scope, r, acc))
        if self.row_stores:
            if self.overwrites(self.row_stores) and self.shape.share > 1:
                scope.stmts.append(Barrier())
            self.first(scope, lambda s: s.stores(self.row_stores))
        if turns > 1 and self.waits:
            # The next row's shares go where those of this one are still read.
            scope.stmts.append(Barrier())
        close(scope, k.scope)
        return [k.finish()]

    @property
    def waits(self) -> bool:
        """Whether threads of a block wait for one another."""
        return self.shape.share > 1 and (self.shape.column or self.shape.share > 32)

    def thread_loops(self) -> list[tuple[str, int]]:
        a, b = ("row", self.shape.rows), ("lane", self.shape.share)
        loops = [b, a] if self.shape.column else [a, b]
        return [x for x in loops if x[1] > 1] or [a]

    def row_of(self, k: Launch, block: Expr, turns: int = 1, blocks: int = 1) -> tuple[Scope, Expr]:
        """The scope of a thread that has a row, and the row; with `turns`, `blocks` blocks loop over all of
        them. Where threads without one must go along, as others of their block wait for them, they do what
        those of the last row do, but for stores: `self.inside` is the condition for them."""
        threads = dict(zip([n for n, _ in self.thread_loops()], k.threads))
        self.lane = threads.get("lane", ZERO)
        self.slot = threads.get("row", ZERO)
        shape, scope = self.shape, k.scope
        if turns > 1:
            turn = Var("turn", turns)
            scope = scope.loop(turn, turns, "serial")
            block = index_add(turn * blocks, block)
        row = index_add(block * shape.rows, self.slot)
        self.inside: Expr | None = None
        whole = turns * blocks * shape.rows == self.O if turns > 1 else self.O % shape.rows == 0
        if not whole:
            if not self.waits:
                scope = scope.branch(less(row, self.O))
            else:
                self.inside = less(row, self.O)
                row = S.minimum(row, Const(self.O - 1))
        row = index_let(scope, "o", row, self.O)
        define_parts(scope, self.o.vars, self.o.sizes, row)
        return scope, row

    def first(self, scope: Scope, body: Callable[[Scope], None]) -> None:
        """`body` by one thread of each row."""
        cond = both(self.inside, S.eq(self.lane, ZERO) if self.shape.share > 1 else None)
        if cond is None:
            body(scope)
            return
        floor, inner = self.low.floor, scope.branch(cond)
        self.low.floor = inner.depth  # what others read early might be written over by then
        body(inner)
        inner.close()
        self.low.floor = floor

    def sweep(self, scope: Scope, n: int, start: Expr, length: int) -> list[Buffer]:
        """Pass n over positions [start, start + length) of the row: the accumulators of a thread."""
        p, lanes = self.passes[n], self.shape.lanes
        accs = [scope.alloc(r.local.name, r.local.dtype, lanes, "register") for r in p.reductions]
        for acc, r in zip(accs, p.reductions):
            neutral = Const(identity(r.combine, acc.dtype), acc.dtype)
            scope.stmts += [Store(acc, (Const(k),), neutral) for k in range(lanes)]
        if not p.reductions and not p.stores:
            return accs
        outer, inside = scope, self.inside
        if inside is not None and not p.reductions:  # nobody waits in here
            scope, inside = scope.branch(inside), None
        inner, at = self.share_of(scope, start, length)
        lane: Expr = ZERO
        if lanes > 1:
            lane = Var("v", lanes)
            inner = inner.loop(lane, lanes, "vector")
            last = self.r.vars[-1]
            inner.define(last, index_add(self.wide * lanes, lane))
        slot = (index_add(at * lanes, lane),)
        for e, made in self.held:
            if made < n:
                inner.memo[self.number(e)] = Load(self.rooms[e], slot)
        kept = [e for e, made in self.held if made == n]
        self.low.uses.update((self.number(e), 2) for e in kept)  # worth a name
        elements = inner.roots([*(r.element for r in p.reductions), *kept])
        for e, value in zip(kept, elements[len(p.reductions) :]):
            inner.stmts.append(Store(self.rooms[e], slot, value))
        for acc, r, e in zip(accs, p.reductions, elements):
            inner.stmts.append(Store(acc, (lane,), S.prim(r.combine, Load(acc, (lane,)), e)))
        if p.stores:
            if inside is not None:
                inner = inner.branch(inside)
            inner.stores(p.stores)
        close(inner, outer)
        return accs

    def share_of(self, scope: Scope, start: Expr, length: int) -> tuple[Scope, Expr]:
        """The scope of one element (or vector) of a thread's share of the row, and its number."""
        share, lanes = self.shape.share, self.shape.lanes
        whole = length == self.R
        if share == 1 and whole:
            return serial_nest(scope, self.r.vars, self.r.sizes), ZERO
        count, total = length // lanes, self.R // lanes
        v = Var("i", -(-count // share))
        kind = "unroll" if self.held else "serial"
        inner = scope.loop(v, v.extent, kind) if v.extent > 1 else scope.inline()
        turn: Expr = v if v.extent > 1 else ZERO
        at = index_add(turn * share, self.lane)
        cond = less(at, count) if count % share else None
        at = index_add(at, start // lanes)
        if not whole and total % count:
            cond = both(cond, less(at, total))
        if cond is not None:
            inner = inner.branch(cond)
        at = index_let(inner, "r", at, total)
        if lanes == 1:
            define_parts(inner, self.r.vars, self.r.sizes, at)
        else:
            sizes = [*self.r.sizes[:-1], self.r.sizes[-1] // lanes]
            define_parts(inner, self.r.vars[:-1], sizes[:-1], at // sizes[-1])
            self.wide = index_let(inner, "q", index_mod(at, sizes[-1]) if len(sizes) > 1 else at, sizes[-1])
        return inner, turn

    def folded(self, r: Reduction, acc: Buffer) -> Expr:
        """A thread's value from its lanes."""
        items: list[Expr] = [Load(acc, (Const(k),)) for k in range(acc.size)]
        while len(items) > 1:
            items = [S.prim(r.combine, a, b) for a, b in zip(items[::2], items[1::2])]
        return items[0]

    def combined(self, k: Launch, scope: Scope, r: Reduction, acc: Buffer) -> Expr:
        """The row's value from those of its threads; all of them get it."""
        rows, share = self.shape.rows, self.shape.share
        name, mine = r.local.name, self.folded(r, acc)
        if share == 1:
            return scope.let(mine, name)
        if self.shape.column:
            shared = k.shared(f"{name}_part", acc.dtype, rows * share)
            scope.stmts.append(Store(shared, (index_add(self.lane * rows, self.slot),), mine))
            scope.stmts.append(Barrier())
            total = scope.alloc(name, acc.dtype, 1, "register")
            scope.stmts.append(Store(total, (ZERO,), Load(shared, (self.slot,))))
            v = Var("j", share - 1)
            loop = scope.loop(v, v.extent, "serial")
            other = Load(shared, (index_add(index_add(v, Const(1)) * rows, self.slot),))
            loop.stmts.append(Store(total, (ZERO,), S.prim(r.combine, Load(total, (ZERO,)), other)))
            loop.close()
            return scope.let(Load(total, (ZERO,)), name)
        value = scope.let(warp_reduce(r.combine, mine), name)
        if share <= 32:
            return value
        warps = share // 32
        shared = k.shared(f"{name}_part", acc.dtype, warps)
        inner = scope.branch(S.eq(self.lane % 32, ZERO))
        inner.stmts.append(Store(shared, (self.lane // 32,), value))
        inner.close()
        scope.stmts.append(Barrier())
        lane = self.lane % 32
        neutral = Const(identity(r.combine, acc.dtype), acc.dtype)
        mask = less(lane, warps) if warps < 32 else None
        part = Load(shared, (lane,), mask, neutral if mask is not None else None)
        return scope.let(warp_reduce(r.combine, part), name)

    # --- rows in chunks

    def emit_chunks(self) -> list[list[Stmt]]:
        """Every pass a kernel over chunks of rows, followed by one that combines their results."""
        shape = self.shape
        unit = shape.share * shape.lanes
        length = -(-self.R // (shape.chunks * unit)) * unit
        chunks = -(-self.R // length)
        values: dict[Local, Buffer] = {}
        bodies: list[list[Stmt]] = []
        last = max(n for n, p in enumerate(self.passes) if p.reductions)
        # Passes still to come may read what is written over.
        early = last == len(self.passes) - 1 or not self.overwrites(self.row_stores)
        for n, p in enumerate(self.passes):
            blocks = [("chunk", chunks), ("rows", -(-self.O // shape.rows))]
            k = Launch(self.low, blocks, self.thread_loops())
            chunk, block = k.blocks
            scope, row = self.row_of(k, block)
            self.known(scope, row, values)
            accs = self.sweep(scope, n, chunk * length, length)
            partial: dict[Local, Buffer] = {}
            for r, acc in zip(p.reductions, accs):
                value = self.combined(k, scope, r, acc)
                b = partial[r.local] = Buffer(f"{r.local.name}_part", acc.dtype, (chunks * self.O,), "arena")
                values[r.local] = Buffer(r.local.name, acc.dtype, (self.O,), "arena")
                at = index_add(chunk * self.O, row)
                self.first(scope, self.put(b, at, value))
            close(scope, k.scope)
            bodies.append(k.finish())
            if p.reductions:
                stores = self.row_stores if n == last and early else []
                bodies.append(self.combine_kernel(p.reductions, partial, values, chunks, stores))
        if self.row_stores and not early:
            k, scope, row = flat_launch(self.low, self.O, "o")
            define_parts(scope, self.o.vars, self.o.sizes, row)
            self.known(scope, row, values)
            scope.stores(self.row_stores)
            close(scope, k.scope)
            bodies.append(k.finish())
        return bodies

    @staticmethod
    def put(b: Buffer, at: Expr, value: Expr) -> Callable[[Scope], None]:
        return lambda s: s.stmts.append(Store(b, (at,), value))

    def known(self, scope: Scope, row: Expr, values: dict[Local, Buffer]) -> None:
        """The results of earlier kernels."""
        for local, b in values.items():
            scope.anchor(local, scope.let(Load(b, (row,)), local.name))

    def combine_kernel(
        self,
        reductions: list[Reduction],
        partial: dict[Local, Buffer],
        values: dict[Local, Buffer],
        chunks: int,
        stores: list[StoreSpec],
    ) -> list[Stmt]:
        """The rows' values from those of their chunks, a warp for each row; and what is stored of them."""
        own = {r.local for r in reductions}
        k = Launch(self.low, [("o", self.O)], [("lane", 32)])
        scope, row, lane = k.scope, k.blocks[0], k.threads[0]
        define_parts(scope, self.o.vars, self.o.sizes, row)
        self.known(scope, row, {x: b for x, b in values.items() if x not in own})
        for r in reductions:
            d = r.local.dtype
            acc = scope.alloc(r.local.name, d, 1, "register")
            scope.stmts.append(Store(acc, (ZERO,), Const(identity(r.combine, d), d)))
            v = Var("c", -(-chunks // 32))
            loop = scope.loop(v, v.extent, "serial")
            at = index_add(v * 32, lane)
            mask = less(at, chunks) if chunks % 32 else None
            other = Const(identity(r.combine, d), d) if mask is not None else None
            item = Load(partial[r.local], (index_add(at * self.O, row),), mask, other)
            loop.stmts.append(Store(acc, (ZERO,), S.prim(r.combine, Load(acc, (ZERO,)), item)))
            loop.close()
            scope.anchor(r.local, scope.let(warp_reduce(r.combine, Load(acc, (ZERO,))), r.local.name))
        inner = scope.branch(Prim("eq", (lane, ZERO), dtypes.bool_))
        self.low.floor = inner.depth
        for r in reductions:
            inner.stmts.append(Store(values[r.local], (row,), inner.lower(r.local)))
        if stores:
            inner.stores(stores)
        inner.close()
        return k.finish()


def row_kernels(group: RowGroup, specs: list[StoreSpec], target: Target) -> list[list[Stmt]]:
    """All kernels of a row group, in order."""
    return GpuRows(group, specs, target).emit()
