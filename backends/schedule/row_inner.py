"""Row groups with lanes along the row: vector accumulators, combined at the end of each pass. Used by
rows.py."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Const, Expr, LaneReduce, Load, Local, Var, index_add
from ...ir.loops import Buffer, Store
from .elements import S
from .indexing import ZERO
from .nests import (
    less,
    power_of_two,
)
from .row_group import Reduction, identity
from .row_passes import RowPasses
from .scopes import Scope


class InnerRows(RowPasses):
    """Adds the loops along one row."""

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
