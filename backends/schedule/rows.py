"""Loops of row groups: reductions over rows with what comes before and after them fused in.

A group is emitted as passes over the row. Pass p accumulates the reductions that need the results of p
others, and stores the elements that need no later ones. Two ways to lay out the lanes:

- along the row (`inner`): vector accumulators, combined at the end of the pass;
- across rows (`column`): a lane for each of a block of neighbouring rows, where those are what is contiguous
  (sums over the first axis).

Used by schedule/__init__.py only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...ir.expr import Const, Expr, LaneReduce, Load, Local, Var, index_add, index_mul, substitute
from ...ir.loops import Buffer, Stmt, Store
from ..machine import MachineModel
from .elements import S
from .groups import Reduction, RowGroup, identity
from .indexing import ZERO, Numbering
from .nests import (
    Split,
    StoreSpec,
    lanes_for,
    less,
    loads_of,
    needed_exprs,
    power_of_two,
    resplit,
    strides,
    vector_blocks,
)  # fmt: skip
from .pointwise import work
from .scopes import Lowering, Scope

#: rows of at least four times this many elements may be summed up in pieces, at most so many
CHUNK, MAX_CHUNKS = 4096, 32
#: elements that cost this many cycles are kept from pass to pass, in a buffer of at most so many bytes
HEAVY, KEPT_BYTES = 8.0, 256 << 10


@dataclass
class Pass:
    """One sweep over the row."""

    reductions: list[Reduction] = field(default_factory=list)
    stores: list[StoreSpec] = field(default_factory=list)


class RowEmitter:
    """Everything about one group on its way to statements."""

    def __init__(
        self,
        group: RowGroup,
        specs: list[StoreSpec],
        machine: MachineModel,
        place: Callable[[Buffer], Buffer],
        number: Numbering,
    ) -> None:
        self.machine = machine
        self.O, self.R = group.O, group.R
        roots = [e for _, i, v in specs for e in (i, v)] + [r.element for r in group.reductions]
        exprs = needed_exprs(group.elements.bindings, roots)
        self.o = Split.of(group.o, group.O, exprs)
        self.r = Split.of(group.r, group.R, exprs)
        self.bindings, specs = resplit(group.elements.bindings, specs, [self.o, self.r])
        env: dict[Expr, Expr] = {s.flat: s.value() for s in (self.o, self.r) if s.changed}
        self.reductions = [Reduction(r.local, r.combine, substitute(r.element, env) if env else r.element)
                           for r in group.reductions]  # fmt: skip
        self.low = Lowering(self.bindings, number, place)
        self.number = number
        self.r_vars = {v for v in self.r.vars if isinstance(v, Var)}
        self.by_local = {r.local: r for r in self.reductions}
        self.stage_memo: dict[int, int] = {}
        self.row_stores: list[StoreSpec] = []
        self.passes = self.plan_passes(specs)
        exprs = needed_exprs(self.bindings, [r.element for r in self.reductions] + [v for _, _, v in specs])
        self.loads = loads_of(exprs)
        self.cycles = work(exprs) * self.O * self.R
        self.columns = self.prefers_columns()
        self.kept = self.plan_kept()
        self.range: tuple[Expr, int] | None = None  # of the outermost loop over the row, if not all of it
        self.sink: Callable[[Scope], None] | None = None  # called with the scope that knows the rows' values

    # --- passes

    def stage(self, e: Expr) -> int:
        """How many passes must be over before `e` is known."""
        memo = self.stage_memo
        stack: list[tuple[Expr, bool]] = [(e, False)]
        while stack:
            x, visited = stack.pop()
            if id(x) in memo:
                continue
            if isinstance(x, Local) and x in self.by_local:
                inner, add = (self.by_local[x].element,), 1
            elif isinstance(x, Local) and x in self.bindings:
                inner, add = (self.bindings[x],), 0
            else:
                inner, add = x.args, 0
            if visited:
                memo[id(x)] = max((memo[id(a)] for a in inner), default=0) + add
            else:
                stack.append((x, True))
                stack.extend((a, False) for a in inner)
        return memo[id(e)]

    def plan_passes(self, specs: list[StoreSpec]) -> list[Pass]:
        passes: list[Pass] = []

        def at(stage: int) -> Pass:
            while len(passes) <= stage:
                passes.append(Pass())
            return passes[stage]

        for r in self.reductions:
            at(self.stage(r.element)).reductions.append(r)
        for spec in specs:
            _, index, value = spec
            if any(v in self.r_vars for e in (index, value) for v in self.low.free(e)):
                at(self.stage(value)).stores.append(spec)
            else:
                self.row_stores.append(spec)
        return passes

    def plan_kept(self) -> dict[Local, int]:
        """Expensive elements that a later pass needs again are kept for the row: the pass that makes each."""
        kept: dict[Local, int] = {}
        width = (4 if 4 * self.lanes() <= self.O else 1) * self.lanes() if self.columns else 1
        if len(self.passes) < 2 or self.R * width * 4 > KEPT_BYTES:
            return kept

        def needs(p: Pass) -> set[Local]:
            roots = [r.element for r in p.reductions] + [v for _, _, v in p.stores]
            return set(self.low.needed(roots, lambda e: e in kept))

        for k, p in enumerate(self.passes[:-1]):
            for local in sorted(needs(p), key=self.low.order.__getitem__, reverse=True):
                if work([self.bindings[local]]) < HEAVY or not (self.low.free(local) & self.r_vars):
                    continue
                if any(local in needs(q) for q in self.passes[k + 1 :]):
                    kept[local] = k
        return kept

    def kept_before(
        self, k: int, inner: Scope, buffers: dict[Local, Buffer], width: int, place: Expr
    ) -> None:
        """Pass k reads what earlier ones kept."""
        for local, made in self.kept.items():
            if made < k:
                at = index_add(index_mul(inner.lower(self.r.value()), width), place)
                inner.anchor(local, Load(buffers[local], (at,)))

    def kept_after(self, k: int, inner: Scope, buffers: dict[Local, Buffer], width: int, place: Expr) -> None:
        """Pass k writes what later ones read; lanes past the row's end too, there is room."""
        for local, made in self.kept.items():
            if made == k:
                at = index_add(index_mul(inner.lower(self.r.value()), width), place)
                inner.stmts.append(Store(buffers[local], (at,), inner.lower(local)))

    def keep_buffers(self, scope: Scope, width: int) -> dict[Local, Buffer]:
        """Room for one block of rows, whole vectors."""
        lanes = self.lanes()
        size = self.R * width if width > 1 else -(-self.R // lanes) * lanes + lanes
        return {x: scope.alloc(x.name, x.dtype, size, "local") for x in self.kept}

    # --- choice of layout

    def prefers_columns(self) -> bool:
        """Whether lanes go across rows: where more of the loads, and the lanes, profit."""
        last_r, last_o = self.r.vars[-1], self.o.vars[-1]
        n_r, n_o = self.r.sizes[-1], self.o.sizes[-1]
        lanes = self.lanes()

        def cost(var: Expr, n: int, others: float) -> float:
            used = (
                -(-n // lanes) * lanes
                if self.machine.masked_memory
                else n // lanes * lanes + n % lanes * lanes
            )
            waste = max(used, 1) / max(n, 1)
            loads = sum(1.0 if s in (0, 1) else lanes * 1.5 for s in strides(self.loads, var))
            return waste * (loads + others)

        per_row = 10.0 * len(self.reductions) / max(1.0, self.R / lanes)
        return cost(last_o, n_o, 1.0) < cost(last_r, n_r, 1.0 + per_row)

    def lanes(self) -> int:
        kinds = [r.local.dtype for r in self.reductions if r.local.dtype.kind == "f"]
        return lanes_for(self.machine, kinds or [r.local.dtype for r in self.reductions])

    def emit(self) -> list[Stmt]:
        top = Scope(self.low)
        if self.O == 0:
            return top.stmts
        count = self.chunks()
        if count > 1:
            self.split_rows(top, count)
        else:
            heavy = self.cycles / self.lanes() > self.machine.parallel_cycles
            self.nest(top, self.machine.threads > 1 and heavy)
        return top.stmts

    def nest(self, top: Scope, parallel: bool) -> None:
        """All rows."""
        scope = top
        outer = list(zip(self.o.vars, self.o.sizes))
        inner = outer.pop() if self.columns else None
        for k, (var, size) in enumerate(outer):
            if isinstance(var, Var):
                here = parallel and k == 0
                v = Var(var.name, size)
                scope = scope.loop(v, size, "parallel" if here else "serial")
                scope.define(var, v)
                if here:
                    self.low.floor = scope.depth
        if inner is None:
            self.rows(scope)
        else:
            self.column_blocks(scope, *inner, parallel=parallel and scope is top)
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent

    # --- few long rows

    def chunks(self) -> int:
        """In how many pieces to sum up rows too long and too few to share: fixed by the shape, never by
        the threads."""
        simple = len(self.passes) == 1 and not self.passes[0].stores
        if not simple or self.R < 4 * CHUNK or 4 * self.lanes() < self.O or len(self.reductions) > 4:
            return 1
        return min(MAX_CHUNKS, self.R // CHUNK)

    def split_rows(self, top: Scope, count: int) -> None:
        """Pieces of rows into partial results, in parallel; then those, in order."""
        n = self.r.sizes[0]
        unit = 4 * self.lanes() if len(self.r.sizes) == 1 else 1
        size = max(n // count // unit, 1) * unit
        count = n // size
        left = n - count * size
        pieces = count + (1 if left else 0)
        partial = {r.local: Buffer(f"partial_{r.local.name}", r.local.dtype, (pieces * self.O,), "arena")
                   for r in self.reductions}  # fmt: skip
        row = self.o.value()

        def keep(scope: Scope, place: Expr) -> None:
            for r in self.reductions:
                at = index_add(place, scope.lower(row))
                scope.stmts.append(Store(partial[r.local], (at,), scope.lower(r.local), scope.mask))

        stores, self.row_stores = self.row_stores, []
        heavy = self.cycles / self.lanes() > self.machine.parallel_cycles
        c = Var("piece", count)
        inner = top.loop(c, count, "parallel" if self.machine.threads > 1 and heavy else "serial")
        self.low.floor = inner.depth
        self.range = (c * size, size)
        self.sink = lambda scope: keep(scope, c * self.O)
        self.nest(inner, False)
        inner.close()
        self.low.floor = 0
        if left:
            inner = top.inline()
            self.range = (Const(count * size), left)
            self.sink = lambda scope: keep(scope, Const(count * self.O))
            self.nest(inner, False)
            inner.close()
        self.row_stores, self.sink = stores, None
        self.combine(top, partial, pieces)

    def combine(self, top: Scope, partial: dict[Local, Buffer], pieces: int) -> None:
        """The rows' values from those of their pieces, and what is stored of them."""
        scope = top
        for var, size in list(zip(self.o.vars, self.o.sizes))[:-1]:
            if isinstance(var, Var):
                v = Var(var.name, size)
                scope = scope.loop(v, size, "serial")
                scope.define(var, v)

        def body(inner: Scope) -> None:
            row = inner.lower(self.o.value())
            for r in self.reductions:
                items: list[Expr] = [Load(partial[r.local], (index_add(row, Const(k * self.O)),), inner.mask)
                                     for k in range(pieces)]  # fmt: skip
                while len(items) > 1:
                    pairs = [S.prim(r.combine, a, b) for a, b in zip(items[::2], items[1::2])]
                    items = pairs + items[len(pairs) * 2 :]
                inner.anchor(r.local, inner.let(items[0], r.local.name))
            inner.stores(self.row_stores)

        one = scope.inline()
        vector_blocks(one, self.o.vars[-1], 0, self.o.sizes[-1], self.lanes(), self.machine, body)
        one.close()
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent

    def ranges(self) -> list[tuple[Expr, Expr, int]]:
        """(variable, start, size) of every loop over the row."""
        out: list[tuple[Expr, Expr, int]] = [(v, ZERO, n) for v, n in zip(self.r.vars, self.r.sizes)]
        if self.range is not None:
            out[0] = (self.r.vars[0], *self.range)
        return out

    # --- lanes along the row

    def rows(self, scope: Scope) -> None:
        lanes = self.lanes()
        size = self.ranges()[-1][2]
        buffers = self.keep_buffers(scope, 1)
        for k, p in enumerate(self.passes):
            unroll = 1
            if size >= 2 * lanes:
                unroll = min(4 if len(p.reductions) <= 2 else 2, max(1, size // lanes))
                unroll = 1 << (unroll.bit_length() - 1)
            width = min(lanes, power_of_two(size))
            accs = [
                scope.alloc(r.local.name, r.local.dtype, unroll * width, "register") for r in p.reductions
            ]
            for acc, r in zip(accs, p.reductions):
                fill(scope, acc, r, unroll, width)
            self.sweep(scope, k, accs, unroll, width, buffers)
            for acc, r in zip(accs, p.reductions):
                self.finish(scope, acc, r, unroll, width)
        if self.row_stores:
            scope.stores(self.row_stores)
        if self.sink is not None:
            self.sink(scope)

    def sweep(
        self, scope: Scope, k: int, accs: list[Buffer], unroll: int, width: int, buffers: dict[Local, Buffer]
    ) -> None:
        """The loops of pass k."""
        p = self.passes[k]
        block = scope
        *outer_ranges, (var, start, n) = self.ranges()
        for x, at, size in outer_ranges:
            if isinstance(x, Var):
                v = Var(x.name, size)
                block = block.loop(v, size, "serial")
                block.define(x, index_add(v, at))

        def body(inner: Scope, at: Expr, lane: Expr) -> None:
            self.kept_before(k, inner, buffers, 1, ZERO)
            elements = inner.roots([r.element for r in p.reductions])
            for acc, r, e in zip(accs, p.reductions, elements):
                where = index_add(at, lane)
                if inner.mask is not None:
                    e = S.select(inner.mask, e, Const(identity(r.combine, e.dtype), e.dtype))
                inner.stmts.append(Store(acc, (where,), S.prim(r.combine, Load(acc, (where,)), e)))
            if p.stores:
                inner.stores(p.stores)
            self.kept_after(k, inner, buffers, 1, ZERO)

        done = 0
        step = unroll * width
        if isinstance(var, Var) and unroll > 1 and n >= step:
            done = n // step * step
            outer, base = block, ZERO
            if done > step:
                v = Var(var.name, done)
                outer, base = block.loop(v, done, "serial", step), v
            u = Var("u", unroll)
            copies = outer.loop(u, unroll, "unroll")
            lane = Var(f"{var.name}v", width)
            inner = copies.loop(lane, width, "vector")
            inner.define(var, start + base + u * width + lane)
            body(inner, u * width, lane)
            inner.close()
            copies.close()
            if outer is not block:
                outer.close()
        if not isinstance(var, Var):
            inner = block.inline()
            body(inner, ZERO, ZERO)
            inner.close()
        else:
            rest = n - done
            whole = rest // width * width
            if whole:
                outer, base = block, ZERO
                if whole > width:
                    v = Var(var.name, whole)
                    outer, base = block.loop(v, whole, "serial", width), v
                lane = Var(f"{var.name}v", width)
                inner = outer.loop(lane, width, "vector")
                inner.define(var, start + base + lane + done)
                body(inner, ZERO, lane)
                inner.close()
                if outer is not block:
                    outer.close()
            self.tail(block, var, start + (done + whole), rest - whole, width, body)
        while block is not scope:
            block.close()
            assert block.parent is not None
            block = block.parent

    def tail(
        self,
        block: Scope,
        var: Var,
        start: Expr,
        left: int,
        width: int,
        body: Callable[[Scope, Expr, Expr], None],
    ) -> None:
        if left <= 0:
            return
        if left == 1:
            inner = block.inline()
            inner.define(var, start)
            body(inner, ZERO, ZERO)
            inner.close()
        elif self.machine.masked_memory or power_of_two(left) == left:
            lane = Var(f"{var.name}v", min(width, power_of_two(left)))
            mask = less(lane, left) if lane.extent > left else None
            inner = block.loop(
                lane, lane.extent, "vector", mask=mask, masked=var if mask is not None else None
            )
            inner.define(var, index_add(lane, start))
            body(inner, ZERO, lane)
            inner.close()
        else:
            v = Var(var.name, left)
            inner = block.loop(v, left, "unroll")
            inner.define(var, index_add(v, start))
            body(inner, ZERO, v)
            inner.close()

    def finish(self, scope: Scope, acc: Buffer, r: Reduction, unroll: int, width: int) -> None:
        """Combines the accumulators into the row's value."""
        while unroll > 1:
            unroll //= 2
            u, lane = Var("u", unroll), Var("v", width)
            copies = scope.loop(u, unroll, "unroll") if unroll > 1 else scope
            inner = copies.loop(lane, width, "vector")
            at = u * width + lane if unroll > 1 else lane
            both = S.prim(r.combine, Load(acc, (at,)), Load(acc, (at + unroll * width,)))
            inner.stmts.append(Store(acc, (at,), both))
            inner.close()
            if copies is not scope:
                copies.close()
        lane = Var("v", width)
        value = LaneReduce(r.combine, lane, Load(acc, (lane,))) if width > 1 else Load(acc, (ZERO,))
        scope.anchor(r.local, scope.let(value, r.local.name))

    # --- lanes across rows

    def column_blocks(self, scope: Scope, var: Expr, n: int, parallel: bool) -> None:
        lanes = self.lanes()
        if not isinstance(var, Var):
            inner = scope.inline()
            self.rows(inner)
            inner.close()
            return
        unroll = 4
        while unroll > 1 and (unroll * lanes > n or unroll * max(len(p.reductions) for p in self.passes) > 8):
            unroll //= 2
        done = 0
        for u in (unroll, 1) if unroll > 1 else (1,):
            step = u * lanes
            count = (n - done) // step
            if count:
                block, base = scope, ZERO
                if count > 1:
                    v = Var(var.name, count * step)
                    kind = "parallel" if parallel and done == 0 else "serial"
                    block = scope.loop(v, count * step, kind, step)
                    base = v
                    self.low.floor = block.depth if kind == "parallel" else self.low.floor
                self.column_block(block, var, index_add(base, Const(done)), u, lanes, None)
                if block is not scope:
                    block.close()
                    self.low.floor = 0 if parallel else self.low.floor
                done += count * step
        left = n - done
        if left:
            if self.machine.masked_memory or power_of_two(left) == left or left == 1:
                self.column_block(scope, var, Const(done), 1, power_of_two(left), left)
            else:
                for i in range(left):
                    self.column_block(scope, var, Const(done + i), 1, 1, None)

    def column_block(
        self, scope: Scope, var: Var, base: Expr, unroll: int, lanes: int, left: int | None
    ) -> None:
        """`unroll * lanes` neighbouring rows at once, `left` of them real."""
        low = self.low
        width = unroll * lanes
        registers: dict[Local, Buffer] = {}
        masked = left is not None and left < lanes

        def vectors(at: Scope, body: Callable[[Scope, Expr], None]) -> None:
            copies, where = at, ZERO
            if unroll > 1:
                u = Var("u", unroll)
                copies = at.loop(u, unroll, "unroll")
                where = u * lanes
            lane = Var(f"{var.name}v", lanes) if lanes > 1 else ZERO
            if isinstance(lane, Var):
                mask = less(lane, left) if masked and left is not None else None
                inner = copies.loop(lane, lanes, "vector", mask=mask, masked=var if masked else None)
            else:
                inner = copies.inline()
            place = index_add(where, lane)
            inner.define(var, index_add(base, place))
            for local, register in registers.items():
                inner.anchor(local, Load(register, (place,)))
            body(inner, place)
            inner.close()
            if copies is not at:
                copies.close()

        buffers = self.keep_buffers(scope, width)
        for k in range(len(self.passes)):
            self.column_pass(scope, k, width, vectors, registers, buffers)
            self.keep_row_values(scope, k, width, vectors, registers)
        if self.row_stores:
            vectors(scope, lambda inner, _: inner.stores(self.row_stores))
        if self.sink is not None:
            sink = self.sink
            vectors(scope, lambda inner, _: sink(inner))
        for x in [x for x in low.depth_of if x in registers]:
            del low.depth_of[x]

    def column_pass(
        self,
        scope: Scope,
        k: int,
        width: int,
        vectors: Callable[..., None],
        registers: dict[Local, Buffer],
        buffers: dict[Local, Buffer],
    ) -> None:
        p = self.passes[k]
        accs = [scope.alloc(r.local.name, r.local.dtype, width, "register") for r in p.reductions]
        for acc, r in zip(accs, p.reductions):
            fill(scope, acc, r, width // min(width, self.lanes()), min(width, self.lanes()))
        block = scope
        for var, start, size in self.ranges():
            if isinstance(var, Var):
                v = Var(var.name, size)
                block = block.loop(v, size, "serial")
                block.define(var, index_add(v, start))

        def body(inner: Scope, at: Expr) -> None:
            self.kept_before(k, inner, buffers, width, at)
            elements = inner.roots([r.element for r in p.reductions])
            for acc, r, e in zip(accs, p.reductions, elements):
                inner.stmts.append(Store(acc, (at,), S.prim(r.combine, Load(acc, (at,)), e)))
            if p.stores:
                inner.stores(p.stores)
            self.kept_after(k, inner, buffers, width, at)

        vectors(block, body)
        while block is not scope:
            block.close()
            assert block.parent is not None
            block = block.parent
        for acc, r in zip(accs, p.reductions):
            registers[r.local] = acc

    def keep_row_values(
        self,
        scope: Scope,
        done: int,
        width: int,
        vectors: Callable[..., None],
        registers: dict[Local, Buffer],
    ) -> None:
        """Values of whole rows that later passes use are computed once, into registers."""
        later = [p for p in self.passes[done + 1 :]]
        roots = [r.element for p in later for r in p.reductions] + [v for p in later for _, _, v in p.stores]
        wanted: list[Local] = []
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            e = stack.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            if isinstance(e, Local):
                if e in registers or e not in self.bindings:
                    continue
                if not (self.low.free(e) & self.r_vars) and self.stage(e) <= done + 1:
                    if self.stage(e) > 0:
                        wanted.append(e)
                        continue
                stack.append(self.bindings[e])
            else:
                stack.extend(e.args)
        wanted.sort(key=self.low.order.__getitem__)
        if not wanted:
            return
        buffers = [scope.alloc(x.name, x.dtype, width, "register") for x in wanted]

        def body(inner: Scope, at: Expr) -> None:
            for value, b in zip(inner.roots(list(wanted)), buffers):
                inner.stmts.append(Store(b, (at,), value))

        vectors(scope, body)
        registers.update(zip(wanted, buffers))


def plain_vectors(scope: Scope, width: int, lanes: int, body: Callable[[Scope, Expr], None]) -> None:
    """A register buffer, vector by vector."""
    lanes = min(lanes, width)
    copies, where = scope, ZERO
    if width > lanes:
        u = Var("u", width // lanes)
        copies, where = scope.loop(u, u.extent, "unroll"), u * lanes
    if lanes > 1:
        lane = Var("v", lanes)
        inner = copies.loop(lane, lanes, "vector")
        body(inner, index_add(where, lane))
        inner.close()
    else:
        body(copies, where)
    if copies is not scope:
        copies.close()


def fill(scope: Scope, acc: Buffer, r: Reduction, unroll: int, width: int) -> None:
    """Sets accumulators to the neutral element."""
    value = Const(identity(r.combine, acc.dtype), acc.dtype)
    plain_vectors(
        scope, unroll * width, width, lambda inner, at: inner.stmts.append(Store(acc, (at,), value))
    )


def emit_rows(
    group: RowGroup,
    specs: list[StoreSpec],
    machine: MachineModel,
    place: Callable[[Buffer], Buffer],
    number: Numbering,
) -> list[Stmt]:
    """All statements of a row group."""
    return RowEmitter(group, specs, machine, place, number).emit()
