"""Sorts as kernels: a block for each row, a bitonic network (Batcher, "Sorting networks and their
applications", AFIPS 1968) over pairs of key and place, which are all different, so that the sort is stable.
Pairs are in shared memory, or in the arena where rows are too long for that. Used by gpu_schedule/__init__.py.
"""

from __future__ import annotations

from ...ir import dtypes
from ...ir.expr import Const, Expr, Load, Var, index_add, index_mul, substitute
from ...ir.loops import Barrier, Buffer, Stmt, Store
from ..schedule.elements import S
from ..schedule.indexing import ZERO
from ..schedule.nests import Split, less, needed_exprs, power_of_two
from ..schedule.scopes import Lowering, Scope
from ..schedule.sort import SortGroup
from .launch import Launch, Target, close, define_parts, index_let


class GpuSort:
    """One sort on its way to a kernel."""

    def __init__(self, group: SortGroup, targets: list[Buffer], target: Target) -> None:
        self.group = group
        self.targets = [target.place(b) for b in targets]
        exprs = needed_exprs(group.elements.bindings, [group.key])
        self.o = Split.of(group.o, group.rows, [*exprs, group.base])
        self.along = Split.of(group.k, group.n, exprs)
        env: dict[Expr, Expr] = {s.flat: s.value() for s in (self.o, self.along) if s.changed}

        def moved(e: Expr) -> Expr:
            return substitute(e, env) if env else e

        self.key_expr, self.base_expr = moved(group.key), moved(group.base)
        bindings = {x: moved(e) for x, e in group.elements.bindings.items()}
        self.low = Lowering(bindings, target.number, target.place)
        self.key = group.key.dtype
        self.place = dtypes.int32 if group.n < 1 << 31 else dtypes.int64
        self.size = power_of_two(group.n)
        self.count = max(32, min(target.gpu.max_threads_per_block, self.size // 2))
        self.fits = self.size * (self.key.itemsize + self.place.itemsize) <= target.gpu.shared_bytes

    def emit(self) -> list[Stmt]:
        g, size = self.group, self.size
        k = Launch(self.low, [("row", g.rows)], [("tx", self.count)])
        scope, (row,), (self.thread,) = k.scope, k.blocks, k.threads
        self.start: Expr = ZERO
        if self.fits:
            self.keys, self.order = k.shared("keys", self.key, size), k.shared("order", self.place, size)
        else:
            self.keys = Buffer("keys", self.key, (g.rows * size,), "arena")
            self.order = Buffer("order", self.place, (g.rows * size,), "arena")
            self.start = row * size
        define_parts(scope, self.o.vars, self.o.sizes, row)
        base = scope.lower(self.base_expr)
        self.load(scope)
        scope.stmts.append(Barrier())
        if size > 1:
            self.network(scope)
        inner, at = self.each(scope, g.count)
        value = S.cast(Load(self.order, (index_add(self.start, at),)), dtypes.int64)
        for target in self.targets:
            inner.stmts.append(Store(target, (index_add(base, index_mul(at, g.stride)),), value))
        close(inner, k.scope)
        return k.finish()

    def each(self, scope: Scope, n: int) -> tuple[Scope, Expr]:
        """The scope of one of `n` places, which the threads share; the place."""
        v = Var("i", -(-n // self.count))
        inner = scope.loop(v, v.extent, "serial") if v.extent > 1 else scope.inline()
        at = index_add(v * self.count if v.extent > 1 else ZERO, self.thread)
        if n % self.count:
            inner = inner.branch(less(at, n))
        return inner, index_let(inner, "at", at, n)

    def load(self, scope: Scope) -> None:
        """Keys and places; past the end the largest key, at places behind all others."""
        n, size = self.group.n, self.size
        inner, at = self.each(scope, size)
        slot = (index_add(self.start, at),)
        inner.stmts.append(Store(self.order, slot, S.cast(at, self.place)))
        if size > n:
            most = Const((1 << self.key.bits) - 1, self.key)
            inner.stmts.append(Store(self.keys, slot, most, S.ge(at, Const(n))))
            inner = inner.branch(less(at, n))
        define_parts(inner, self.along.vars, self.along.sizes, at)
        inner.stmts.append(Store(self.keys, slot, inner.roots([self.key_expr])[0]))
        close(inner, scope)

    def network(self, scope: Scope) -> None:
        """All steps of the network in one loop: `span` is the size of what is being merged, `apart` how far
        apart the pairs of a step are."""
        size = self.size
        levels = size.bit_length() - 1
        span, apart = scope.alloc("span", dtypes.int64, 1, "register"), scope.alloc("apart", dtypes.int64, 1, "register")
        scope.stmts += [Store(span, (ZERO,), Const(2)), Store(apart, (ZERO,), Const(1))]
        v = Var("step", levels * (levels + 1) // 2)
        loop = scope.loop(v, v.extent, "serial")
        width, gap = loop.let(Load(span, (ZERO,)), "width"), loop.let(Load(apart, (ZERO,)), "gap")
        inner, pair = self.each(loop, size // 2)
        inside = S.and_(pair, S.sub(gap, Const(1)))
        first = inner.let(S.add(self.start, S.sub(S.add(pair, pair), inside)), "first")
        second = inner.let(S.add(first, gap), "second")
        a, b = (inner.let(Load(self.keys, (x,)), n) for x, n in ((first, "a"), (second, "b")))
        p, q = (inner.let(Load(self.order, (x,)), n) for x, n in ((first, "p"), (second, "q")))
        after = S.or_(S.gt(a, b), S.and_(S.eq(a, b), S.gt(p, q)))
        within = S.sub(first, self.start)
        rising = S.eq(S.and_(within, width), ZERO)
        swap = inner.let(S.eq(after, rising), "swap")
        for buffer, x, y in ((self.keys, a, b), (self.order, p, q)):
            inner.stmts += [Store(buffer, (first,), y, swap), Store(buffer, (second,), x, swap)]
        close(inner, loop)
        half = loop.let(S.shr(gap, Const(1)), "half")
        done = S.eq(half, ZERO)
        loop.stmts.append(Store(apart, (ZERO,), S.select(done, width, half)))
        loop.stmts.append(Store(span, (ZERO,), S.select(done, S.add(width, width), width)))
        loop.stmts.append(Barrier())
        loop.close()


def sort_kernels(group: SortGroup, targets: list[Buffer], target: Target) -> list[list[Stmt]]:
    """All kernels of a sort, whose result goes to every one of `targets`."""
    if not (group.rows and group.n and group.count):
        return []
    return [GpuSort(group, targets, target).emit()]
