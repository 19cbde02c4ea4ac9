"""Sorts as kernels: a block for each row, a bitonic network (Batcher, "Sorting networks and their
applications", AFIPS 1968) over pairs of key and place, which are all different, so the sort is stable.
Pairs are in shared memory, or in the arena where rows are too long for that. Used by scatter.py too.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir import dtypes
from ...ir.expr import Const, Expr, Load, Local, Var, index_add, index_mul
from ...ir.loops import Barrier, Buffer, Stmt, Store
from ...ir.substitute import substitute
from ..schedule.elements import S
from ..schedule.indexing import ZERO
from ..schedule.nests import Split, less, needed_exprs, power_of_two
from ..schedule.scopes import Lowering, Scope
from ..schedule.sort import SortGroup
from .launch import Launch, Target, close, define_parts, index_let


class RowSort:
    """A sort of rows of keys on its way to a kernel: `key`, an unsigned number, over `o` and `k`.

    Attributes:
        keys, order: where the sorted keys and their places are when the network is through, from `start` on.
    """

    def __init__(
        self,
        bindings: dict[Local, Expr],
        key: Expr,
        o: tuple[Expr, int],
        k: tuple[Expr, int],
        target: Target,
        more: tuple[Expr, ...] = (),
    ) -> None:
        exprs = needed_exprs(bindings, [key])
        self.rows, self.n = o[1], k[1]
        self.o, self.along = Split.of(*o, [*exprs, *more]), Split.of(*k, exprs)
        self.env: dict[Expr, Expr] = {s.flat: s.value() for s in (self.o, self.along) if s.changed}
        self.key_expr = self.moved(key)
        self.low = Lowering({x: self.moved(e) for x, e in bindings.items()}, target.number, target.place)
        self.key = key.dtype
        self.place = dtypes.int32 if self.n < 1 << 31 else dtypes.int64
        self.size = power_of_two(self.n)
        self.count = max(32, min(target.gpu.max_threads_per_block, self.size // 2))
        self.fits = self.size * (self.key.itemsize + self.place.itemsize) <= target.gpu.shared_bytes

    def moved(self, e: Expr) -> Expr:
        return substitute(e, self.env) if self.env else e

    @property
    def most(self) -> Const:
        """The key that is behind all others, or among the last."""
        return Const((1 << self.key.bits) - 1, self.key)

    def emit(self, finish: Callable[[RowSort, Scope, Expr], None]) -> list[Stmt]:
        """The kernel; `finish` writes what is done with sorted rows, given the thread's scope and the row."""
        size = self.size
        k = Launch(self.low, [("row", self.rows)], [("tx", self.count)])
        scope, (row,), (self.thread,) = k.scope, k.blocks, k.threads
        self.start: Expr = ZERO
        if self.fits:
            self.keys, self.order = k.shared("keys", self.key, size), k.shared("order", self.place, size)
        else:
            self.keys = Buffer("keys", self.key, (self.rows * size,), "arena")
            self.order = Buffer("order", self.place, (self.rows * size,), "arena")
            self.start = row * size
        define_parts(scope, self.o.vars, self.o.sizes, row)
        self.load(scope)
        scope.stmts.append(Barrier())
        if size > 1:
            self.network(scope)
        finish(self, scope, row)
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
        inner, at = self.each(scope, self.size)
        slot = (index_add(self.start, at),)
        inner.stmts.append(Store(self.order, slot, S.cast(at, self.place)))
        if self.size > self.n:
            inner.stmts.append(Store(self.keys, slot, self.most, S.ge(at, Const(self.n))))
            inner = inner.branch(less(at, self.n))
        define_parts(inner, self.along.vars, self.along.sizes, at)
        inner.stmts.append(Store(self.keys, slot, inner.roots([self.key_expr])[0]))
        close(inner, scope)

    def network(self, scope: Scope) -> None:
        """All steps of the network in one loop: `span` is the size of what is being merged, `apart` how far
        apart the pairs of a step are."""
        levels = self.size.bit_length() - 1
        span, apart = (scope.alloc(n, dtypes.int64, 1, "register") for n in ("span", "apart"))
        scope.stmts += [Store(span, (ZERO,), Const(2)), Store(apart, (ZERO,), Const(1))]
        v = Var("step", levels * (levels + 1) // 2)
        loop = scope.loop(v, v.extent, "serial")
        width, gap = loop.let(Load(span, (ZERO,)), "width"), loop.let(Load(apart, (ZERO,)), "gap")
        inner, pair = self.each(loop, self.size // 2)
        within = inner.let(S.sub(S.add(pair, pair), S.and_(pair, S.sub(gap, Const(1)))), "within")
        first = inner.let(S.add(within, self.start), "first") if self.start is not ZERO else within
        second = inner.let(S.add(first, gap), "second")
        a, b = (inner.let(Load(self.keys, (x,)), n) for x, n in ((first, "a"), (second, "b")))
        p, q = (inner.let(Load(self.order, (x,)), n) for x, n in ((first, "p"), (second, "q")))
        after = S.or_(S.gt(a, b), S.and_(S.eq(a, b), S.gt(p, q)))
        rising = S.eq(S.and_(within, width), ZERO)
        swap = inner.let(S.eq(after, rising), "swap")
        for buffer, x, y in ((self.keys, a, b), (self.order, p, q)):
            inner.stmts += [Store(buffer, (first,), y, swap), Store(buffer, (second,), x, swap)]
        close(inner, loop)
        half = loop.let(S.shr(gap, Const(1)), "half")
        done = loop.let(S.eq(half, ZERO), "done")
        loop.stmts.append(Store(apart, (ZERO,), S.select(done, width, half)))
        loop.stmts.append(Store(span, (ZERO,), S.select(done, S.add(width, width), width)))
        loop.stmts.append(Barrier())
        loop.close()


def sort_kernels(group: SortGroup, targets: list[Buffer], target: Target) -> list[list[Stmt]]:
    """All kernels of a sort, whose result goes to every one of `targets`."""
    if not (group.rows and group.n and group.count):
        return []
    placed = [target.place(b) for b in targets]

    def finish(made: RowSort, scope: Scope, row: Expr) -> None:
        base = scope.lower(made.moved(group.base))
        inner, at = made.each(scope, group.count)
        value = S.cast(Load(made.order, (index_add(made.start, at),)), dtypes.int64)
        for b in placed:
            inner.stmts.append(Store(b, (index_add(base, index_mul(at, group.stride)),), value))
        close(inner, scope)

    o, k = (group.o, group.rows), (group.k, group.n)
    return [RowSort(group.elements.bindings, group.key, o, k, target, (group.base,)).emit(finish)]
