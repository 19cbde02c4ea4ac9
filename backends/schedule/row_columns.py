"""Row groups with lanes across rows: a lane for each of a block of neighbouring rows, where those are what is
contiguous (sums over the first axis). Used by rows.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Const, Expr, Load, Local, Var, index_add
from ...ir.loops import Buffer, Store
from .elements import S
from .indexing import ZERO
from .nests import (
    less,
    power_of_two,
)
from .row_inner import InnerRows, fill
from .scopes import Scope


class ColumnRows(InnerRows):
    """Adds the loops over blocks of rows."""

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
