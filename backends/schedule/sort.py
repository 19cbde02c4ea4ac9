"""Sorting rows: the group and its loops.

Elements become unsigned keys that compare as PyTorch orders the elements (NaN above all, -0.0 as 0.0; all
bits inverted to descend), computed once per row into scratch together with whatever leads to them. Then

- short rows: the place of each element is the number of those before it, counted in vectors;
- long rows: radix sort, a byte at a time from the lowest, bytes that are equal everywhere left out;
- the first k: a sorted list of k that is updated by the few elements that belong into it.

All are stable, and the length of the code depends neither on the size nor on the data. Rows are independent,
so results do not depend on the number of threads. Used by plan.py and schedule/__init__.py only.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.expr import Cast, Const, Expr, LaneReduce, Load, Var, index_add, index_mul
from ...ir.graph import Node, Value
from ...ir.loops import Buffer, Stmt, Store
from ...ir.substitute import substitute
from ..machine import MachineModel
from .elements import NotFusable, S
from .groups import Group, domain_var
from .indexing import ZERO, Numbering, ravel, unravel
from .nests import Split, less, needed_exprs, vector_blocks
from .pointwise import work
from .scopes import Lowering, Scope

#: rows up to this many bytes of keys are sorted by counting
SHORT_BYTES = 512
BINS = 256


def sort_key(x: Expr, descending: bool) -> Expr:
    """An unsigned number that orders as `x` does; 32 or 64 bits."""
    d = x.dtype
    wide = d.bits == 64
    key: DType = dtypes.uint64 if wide else dtypes.uint32
    if d.kind == "f":
        x = S.cast(x, dtypes.opmath(d))
        d = x.dtype
        x = S.select(S.isnan(x), S.const(float("nan"), x), S.select(S.eq(x, S.zero(x)), S.zero(x), x))
        bits = S.bitcast(x, key)
        sign = S.shr(bits, S.const(key.bits - 1, key))
        # Negative numbers order backwards: all their bits are inverted; of the others, the sign.
        flip = S.or_(S.sub(S.zero(key), sign), S.const(1 << (key.bits - 1), key))
        out = S.xor(bits, flip)
    elif d.kind == "i":
        # Moved up by 2**(bits-1): narrow types stay within as many bytes as they have.
        out = S.add(S.cast(S.cast(x, dtypes.int64 if wide else dtypes.int32), key),
                    S.const(1 << (d.bits - 1), key))  # fmt: skip
    else:
        out = S.cast(x, key)
    return S.not_(out) if descending else out


class SortGroup(Group):
    """The order of `k` along a dimension, for every `o` of the others."""

    kind = "sort"

    def take(self, node: Node) -> None:
        """Makes the group compute `node`."""
        self.node = node
        v, x = node.results[0], node.operands[0]
        shape, dim = x.type.shape, node.attrs["dim"]
        self.n = shape[dim]
        self.count = v.type.shape[dim]
        self.rows = prod(shape[:dim]) * prod(shape[dim + 1 :])
        self.stride = prod(shape[dim + 1 :])
        self.begin()
        self.o, self.k = domain_var("o", self.rows), domain_var("k", self.n)
        others = unravel(self.o, (*shape[:dim], *shape[dim + 1 :]))
        element = self.elements.at(x, (*others[:dim], self.k, *others[dim:]))
        if node.op.name == "argtopk":
            descending = node.attrs.get("largest", True)
        else:
            descending = node.attrs.get("descending", False)
        self.key = self.elements.bind(sort_key(element, descending), "key")
        self.base = ravel((*others[:dim], ZERO, *others[dim:]), v.type.shape)
        self.members.append(v)
        self.plan.home[v] = self
        self.finish()
        self.plan.demand(v)

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def roots(self) -> list[Expr]:
        return [self.key]

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        raise NotFusable("result of a sort")


class SortEmitter:
    """One sort on its way to statements."""

    def __init__(
        self,
        group: SortGroup,
        targets: list[Buffer],
        machine: MachineModel,
        place: Callable[[Buffer], Buffer],
        number: Numbering,
    ) -> None:
        self.group, self.machine = group, machine
        self.n = group.n
        exprs = needed_exprs(group.elements.bindings, [group.key])
        o, k = Split.of(group.o, group.rows, [*exprs, group.base]), Split.of(group.k, group.n, exprs)
        env: dict[Expr, Expr] = {s.flat: s.value() for s in (o, k) if s.changed}

        def moved(e: Expr) -> Expr:
            return substitute(e, env) if env else e

        self.key_expr, self.base_expr = moved(group.key), moved(group.base)
        self.key: DType = group.key.dtype
        self.o, self.along = o, k
        self.low = Lowering({x: moved(e) for x, e in group.elements.bindings.items()}, number, place)
        self.targets = [place(b) for b in targets]
        self.lanes = machine.lanes(self.key.itemsize)
        self.cycles = (work(exprs) / self.lanes + 20) * group.rows * group.n

    def emit(self) -> list[Stmt]:
        top = scope = Scope(self.low)
        heavy = self.machine.threads > 1 and self.cycles > self.machine.parallel_cycles
        for var, size in zip(self.o.vars, self.o.sizes):
            if isinstance(var, Var):
                here = heavy and scope is top
                loop = Var(var.name, size)
                scope = scope.loop(loop, size, "parallel" if here else "serial")
                scope.define(var, loop)
                if here:
                    self.low.floor = scope.depth
        self.row(scope)
        while scope is not top:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent
        return top.stmts

    def row(self, scope: Scope) -> None:
        self.base = scope.lower(self.base_expr)
        if self.group.node.op.name == "argtopk":
            self.select(scope)
        elif self.n * self.key.itemsize <= SHORT_BYTES:
            self.count(scope)
        else:
            self.radix(scope)

    # --- parts of all methods

    def number(self, value: int, dtype: DType | None = None) -> Const:
        return Const(value, dtype or self.key)

    def keys(self, scope: Scope, size: int) -> Buffer:
        """The row's keys in scratch of `size` elements."""
        keys = scope.alloc("keys", self.key, size, "local")
        block = scope
        for var, n in list(zip(self.along.vars, self.along.sizes))[:-1]:
            if isinstance(var, Var):
                loop = Var(var.name, n)
                block = block.loop(loop, n, "serial")
                block.define(var, loop)
        inner = block.inline()
        vector_blocks(
            inner, self.along.vars[-1], 0, self.along.sizes[-1], self.lanes, self.machine,
            lambda s: s.stores([(keys, self.along.value(), self.key_expr)]),
        )  # fmt: skip
        inner.close()
        while block is not scope:
            block.close()
            assert block.parent is not None
            block = block.parent
        return keys

    def each(self, scope: Scope, n: int, body: Callable[[Scope, Expr, Expr | None], None]) -> None:
        """`body(scope, at, mask)` for all places in [0, n), in vectors."""
        var = Var("j", n)

        def block(s: Scope) -> None:
            at = s.find(self.low.number(var))
            assert at is not None
            body(s, at, s.mask)

        if n == 1:
            one = scope.inline()
            body(one, ZERO, None)
            one.close()
        else:
            one = scope.inline()
            vector_blocks(one, var, 0, n, self.lanes, self.machine, block)
            one.close()

    def put(self, scope: Scope, at: Expr, value: Expr, mask: Expr | None) -> None:
        """`value` as the result's element at place `at` of the row."""
        index = index_add(self.base, index_mul(at, self.group.stride))
        for target in self.targets:
            scope.stmts.append(Store(target, (index,), S.cast(value, dtypes.int64), mask))

    # --- methods

    def count(self, scope: Scope) -> None:
        """The place of each element is the number of those that come before it."""
        n, lanes = self.n, self.lanes
        size = -(-n // lanes) * lanes
        keys = self.keys(scope, size)
        place = dtypes.int64 if self.key.bits == 64 else dtypes.int32
        v = Var("b", size)
        block = scope.loop(v, size, "serial", lanes) if size > lanes else scope.inline()
        base: Expr = v if size > lanes else ZERO
        mine = block.alloc("mine", self.key, lanes, "register")
        rank = block.alloc("rank", place, lanes, "register")

        def vector(parent: Scope, body: Callable[[Scope, Expr], None]) -> None:
            lane = Var("v", lanes)
            inner = parent.loop(lane, lanes, "vector") if lanes > 1 else parent.inline()
            body(inner, lane if lanes > 1 else ZERO)
            inner.close()

        def start(inner: Scope, lane: Expr) -> None:
            inner.stmts.append(Store(mine, (lane,), Load(keys, (index_add(base, lane),))))
            inner.stmts.append(Store(rank, (lane,), Const(0, place)))

        vector(block, start)
        j = Var("j", n)
        loop = block.loop(j, n, "serial")
        other = loop.let(Load(keys, (j,)), "other")

        def compare(inner: Scope, lane: Expr) -> None:
            own = Load(mine, (lane,))
            earlier = S.lt(S.cast(j, place), S.cast(index_add(base, lane), place))
            before = S.or_(S.lt(other, own), S.and_(S.eq(other, own), earlier))
            inner.stmts.append(Store(rank, (lane,), S.add(Load(rank, (lane,)), S.cast(before, place))))

        vector(loop, compare)
        loop.close()

        def finish(inner: Scope, lane: Expr) -> None:
            at = index_add(base, lane)
            mask = less(at, n) if size > n else None
            self.put(inner, S.cast(Load(rank, (lane,)), dtypes.int64), at, mask)

        vector(block, finish)
        block.close()

    def radix(self, scope: Scope) -> None:
        """Least significant byte first (Knuth, The Art of Computer Programming, vol. 3, section 5.2.5)."""
        n, key = self.n, self.key
        place = dtypes.int32 if n < 1 << 31 else dtypes.int64
        d = self.group.node.operands[0].type.dtype
        passes = key.itemsize if d.kind == "f" else d.itemsize
        keys = self.keys(scope, 2 * n)
        order = scope.alloc("order", place, 2 * n, "local")
        counts = scope.alloc("counts", place, passes * BINS, "local")
        side = scope.alloc("side", dtypes.int64, 1, "local")  # which half holds the row now: 0 or 1
        self.each(scope, n, lambda s, at, m: s.stmts.append(Store(order, (at,), S.cast(at, place), m)))
        self.each(
            scope, passes * BINS, lambda s, at, m: s.stmts.append(Store(counts, (at,), Const(0, place), m))
        )
        scope.stmts.append(Store(side, (ZERO,), Const(0)))

        def byte(x: Expr, shift: Expr) -> Expr:
            return Cast(S.and_(S.shr(x, shift), self.number(BINS - 1)), dtypes.int64)

        k = Var("k", n)
        loop = scope.loop(k, n, "serial")
        mine = loop.let(Load(keys, (k,)), "key")
        for p in range(passes):
            at = loop.let(index_add(byte(mine, self.number(8 * p)), Const(p * BINS)), "bin")
            loop.stmts.append(Store(counts, (at,), S.add(Load(counts, (at,)), Const(1, place))))
        loop.close()

        p = Var("pass", passes)
        one = scope.loop(p, passes, "serial")
        row = index_mul(p, BINS)
        shift = one.let(S.cast(index_mul(p, 8), key), "shift")
        now = one.let(Load(side, (ZERO,)), "now")
        source = one.let(index_mul(now, n), "source")
        target = one.let(index_add(Const(n), index_mul(source, -1)), "target")
        first = index_add(row, byte(Load(keys, (source,)), shift))
        work_ = one.branch(S.ne(Load(counts, (first,)), Const(n, place)))
        total = work_.alloc("total", place, 1, "register")
        work_.stmts.append(Store(total, (ZERO,), Const(0, place)))
        b = Var("bin", BINS)
        sums = work_.loop(b, BINS, "serial")
        here = sums.let(Load(counts, (index_add(row, b),)), "here")
        so_far = sums.let(Load(total, (ZERO,)), "so_far")
        sums.stmts.append(Store(counts, (index_add(row, b),), so_far))
        sums.stmts.append(Store(total, (ZERO,), S.add(so_far, here)))
        sums.close()
        m = Var("k", n)
        move = work_.loop(m, n, "serial")
        mine = move.let(Load(keys, (index_add(source, m),)), "key")
        at = move.let(index_add(row, byte(mine, shift)), "bin")
        to = move.let(Load(counts, (at,)), "to")
        move.stmts.append(Store(counts, (at,), S.add(to, Const(1, place))))
        there = move.let(index_add(target, S.cast(to, dtypes.int64)), "there")
        move.stmts.append(Store(keys, (there,), mine))
        move.stmts.append(Store(order, (there,), Load(order, (index_add(source, m),))))
        move.close()
        work_.stmts.append(Store(side, (ZERO,), index_add(Const(1), index_mul(now, -1))))
        work_.close()
        one.close()
        last = scope.let(index_mul(Load(side, (ZERO,)), n), "last")
        self.each(scope, n, lambda s, at, m: self.put(
            s, at, Load(order, (index_add(last, at),), m), m))  # fmt: skip

    def select(self, scope: Scope) -> None:
        """A sorted list of the first k, into which every element that precedes its last is inserted."""
        n, count, lanes = self.n, self.group.count, max(self.lanes, 1)
        keys = self.keys(scope, n)
        best = scope.alloc("best", self.key, count, "local")
        order = scope.alloc("order", dtypes.int64, count, "local")
        self.each(scope, count, lambda s, at, m: s.stmts.append(Store(best, (at,), self.number(0), m)))
        self.each(scope, count, lambda s, at, m: s.stmts.append(Store(order, (at,), Const(0), m)))

        def insert(parent: Scope, k: Expr) -> None:
            """Element `k`, if the list is not full yet or it precedes the last: those after it move on."""
            mine = parent.let(Load(keys, (k,)), "key")
            worst = Load(best, (Const(count - 1),))
            inner = parent.branch(S.or_(S.lt(k, Const(count)), S.lt(mine, worst)))
            t = Var("t", max(count - 1, 1))
            if count > 1:
                loop = inner.loop(t, count - 1, "serial")
                at = index_add(Const(count - 1), index_mul(t, -1))
                before = index_add(at, Const(-1))
                move = loop.let(S.or_(S.le(k, before), S.lt(mine, Load(best, (before,)))), "move")
                enter = loop.let(S.or_(S.le(k, at), S.lt(mine, Load(best, (at,)))), "enter")
                new: list[tuple[Buffer, Expr]] = []
                for b, x in ((best, mine), (order, k)):
                    e = S.select(move, Load(b, (before,)), S.select(enter, x, Load(b, (at,))))
                    new.append((b, loop.let(e, "new")))
                for b, e in new:
                    loop.stmts.append(Store(b, (at,), e))
                loop.close()
            first = inner.let(S.or_(S.eq(k, ZERO), S.lt(mine, Load(best, (ZERO,)))), "first")
            for b, x in ((best, mine), (order, k)):
                inner.stmts.append(Store(b, (ZERO,), S.select(first, x, Load(b, (ZERO,)))))
            inner.close()

        whole = n // lanes * lanes if lanes > 1 else 0
        if whole:
            v = Var("k", whole)
            block = scope.loop(v, whole, "serial", lanes)
            lane, one = Var("v", lanes), Var("u", lanes)
            worst = block.let(Load(best, (Const(count - 1),)), "worst")
            near = LaneReduce("or_", lane, S.lt(Load(keys, (index_add(v, lane),)), worst))
            some = block.branch(S.or_(S.lt(v, Const(count)), near))
            each = some.loop(one, lanes, "serial")
            insert(each, index_add(v, one))
            each.close()
            some.close()
            block.close()
        if n > whole:
            v = Var("k", n - whole)
            loop = scope.loop(v, n - whole, "serial")
            insert(loop, index_add(v, Const(whole)))
            loop.close()
        self.each(scope, count, lambda s, at, m: self.put(s, at, Load(order, (at,), m), m))


def emit_sort(
    group: SortGroup,
    targets: list[Buffer],
    machine: MachineModel,
    place: Callable[[Buffer], Buffer],
    number: Numbering,
) -> list[Stmt]:
    """All statements of a sort, whose result goes to every one of `targets`."""
    return SortEmitter(group, targets, machine, place, number).emit()
