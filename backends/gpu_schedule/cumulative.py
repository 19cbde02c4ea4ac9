"""Scans along a dimension (cumulative sums, products, extrema, recurrences) as kernels. Used by
gpu_schedule/__init__.py.

Many rows: a thread for each, which runs through it in order. Few long ones: a block for each. Every thread
finds what its part of the row does to a state, those are combined in log2(threads) steps (Hillis, Steele,
"Data parallel algorithms", CACM 29, 1986), and it runs through its part again from the state before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ir.dtypes import DType, opmath
from ...ir.expr import Const, Expr, Load, Var, index_add
from ...ir.graph import Node
from ...ir.loops import Barrier, Buffer, Stmt, Store
from ...ir.substitute import substitute
from ..schedule.cumulative import CumulativeGroup, ScanStep, scan_step
from ..schedule.elements import S
from ..schedule.indexing import ZERO
from ..schedule.nests import Split, less, needed_exprs
from ..schedule.scopes import Lowering, Scope
from .launch import Launch, Target, close, define_parts, flat_launch, index_let, serial_nest

#: rows of at least so many elements are a block's, where there are fewer than so many for a multiprocessor
LONG, FEW = 256, 64
#: threads of such a block
THREADS = 256

State = Sequence[Expr]


class Summary:
    """What a part of a row does to the state that comes to it, for each scan: how it starts, takes in an
    element, and follows on another one. Of a recurrence h -> a*h + b it is that map, (a, b); of all others,
    the state that the part alone leads to."""

    def __init__(self, node: Node, how: ScanStep) -> None:
        self.node, self.how = node, how
        self.maps = node.op.name == "recurrence"
        self.picks = node.op.name in ("cumargmax", "cumargmin")
        (_, acc), *_ = how.start
        self.types: list[DType] = [acc, acc] if self.maps else [d for _, d in how.start]
        self.start = [Const(1, acc), Const(0, acc)] if self.maps else [Const(v, d) for v, d in how.start]

    def taken(self, now: State, elements: State, k: Expr, first: Expr) -> State:
        """With one more element; `first` says whether it is the part's first."""
        if self.maps:
            a, b = (S.cast(x, self.types[0]) for x in elements)
            return S.mul(now[0], a), S.fma(now[1], a, b)
        new = self.how.step(now, elements, k)
        if self.picks:
            return S.select(first, elements[0], new[0]), S.select(first, k, new[1])
        return new

    def after(self, one: State, two: State) -> State:
        """Part `two` after part `one`."""
        if self.maps:
            return S.mul(one[0], two[0]), S.fma(one[1], two[0], two[1])
        if self.picks:
            wide = opmath(two[0].dtype)
            better = "ge" if self.node.op.name == "cumargmax" else "le"
            take = S.prim(better, S.cast(two[0], wide), S.cast(one[0], wide))
            if two[0].dtype.kind == "f":
                take = S.or_(take, S.isnan(S.cast(two[0], wide)))
                # Once there is a NaN it stays the extremum: only another NaN comes after it.
            return tuple(S.select(take, b, a) for a, b in zip(one, two))
        return self.how.step(one, [two[0]], ZERO)

    def state(self, summary: State) -> State:
        """The state behind a part that begins the row."""
        return [summary[1]] if self.maps else summary


class GpuScan:
    """One scan on its way to a kernel."""

    def __init__(self, group: CumulativeGroup, targets: list[Buffer], target: Target) -> None:
        self.node, self.target = group.node, target
        self.targets = [target.place(b) for b in targets]
        self.how = scan_step(group.node)
        self.dtype = group.node.results[0].type.dtype
        exprs = needed_exprs(group.elements.bindings, group.operands)
        self.o, self.k, self.i = (
            Split.of(v, n, exprs) for v, n in zip((group.o, group.k, group.i), group.sizes)
        )
        env: dict[Expr, Expr] = {s.flat: s.value() for s in (self.o, self.k, self.i) if s.changed}

        def moved(e: Expr) -> Expr:
            return substitute(e, env) if env else e

        self.operands, self.index = [moved(e) for e in group.operands], moved(group.place)
        self.low = Lowering(
            {x: moved(e) for x, e in group.elements.bindings.items()}, target.number, target.place
        )
        self.rows, self.length = group.sizes[0] * group.sizes[2], group.sizes[1]

    def emit(self) -> list[Stmt]:
        if not self.rows * self.length:
            return []
        if self.length >= LONG and self.rows < FEW * self.target.gpu.sms:
            return self.by_block()
        sizes = [*self.o.sizes, *self.i.sizes]
        launch, scope, at = flat_launch(self.low, prod(sizes), "row")
        define_parts(scope, [*self.o.vars, *self.i.vars], sizes, at)
        state = self.room(scope, "state", [d for _, d in self.how.start])
        self.put(scope, state, [Const(v, d) for v, d in self.how.start])
        inner = serial_nest(scope, self.k.vars, self.k.sizes)
        self.step(inner, state)
        close(inner, launch.scope)
        return launch.finish()

    @staticmethod
    def room(scope: Scope, name: str, types: Sequence[DType]) -> list[Buffer]:
        return [scope.alloc(name, d, 1, "register") for d in types]

    @staticmethod
    def put(scope: Scope, buffers: list[Buffer], values: State, at: Expr = ZERO) -> None:
        scope.stmts += [Store(b, (at,), e) for b, e in zip(buffers, values)]

    @staticmethod
    def get(buffers: list[Buffer], at: Expr = ZERO) -> list[Expr]:
        return [Load(b, (at,)) for b in buffers]

    def step(self, scope: Scope, state: list[Buffer]) -> None:
        """One element: the state goes on, its result is stored."""
        *elements, place, along = scope.roots([*self.operands, self.index, self.k.value()])
        new = [scope.let(e, "next") for e in self.how.step(self.get(state), elements, along)]
        self.put(scope, state, new)
        for t in self.targets:
            scope.stmts.append(Store(t, (place,), S.cast(new[self.how.result], self.dtype)))

    def by_block(self) -> list[Stmt]:
        """A block for each row."""
        n = self.length
        launch = Launch(self.low, [("row", self.rows)], [("tx", THREADS)])
        scope, (row,), (thread,) = launch.scope, launch.blocks, launch.threads
        define_parts(scope, [*self.o.vars, *self.i.vars], [*self.o.sizes, *self.i.sizes], row)
        part = -(-n // THREADS)
        parts = -(-n // part)
        how = Summary(self.node, self.how)
        # What each thread's part does.
        now = self.room(scope, "part", how.types)
        self.put(scope, now, how.start)
        inner, turn = self.places(scope, thread, part)
        *elements, along = inner.roots([*self.operands, self.k.value()])
        new = how.taken(self.get(now), elements, along, S.eq(turn, ZERO))
        self.put(inner, now, [inner.let(e, "next") for e in new])
        close(inner, scope)
        # What all parts up to each do.
        shared = [launch.shared("parts", d, 2 * THREADS) for d in how.types]
        self.put(scope, shared, self.get(now), thread)
        scope.stmts.append(Barrier())
        far, side = 1, 0
        while far < parts:
            mine = self.get(shared, index_add(thread, Const(side * THREADS)))
            last = scope.branch(less(thread, far))
            self.put(last, shared, mine, index_add(thread, Const((1 - side) * THREADS)))
            last.close()
            rest = scope.branch(S.ge(thread, Const(far)))
            one = [
                rest.let(e, "one") for e in self.get(shared, index_add(thread, Const(side * THREADS - far)))
            ]
            two = [rest.let(e, "two") for e in mine]
            self.put(rest, shared, how.after(one, two), index_add(thread, Const((1 - side) * THREADS)))
            rest.close()
            scope.stmts.append(Barrier())
            far, side = 2 * far, 1 - side
        # From the state before each part.
        state = self.room(scope, "state", [d for _, d in self.how.start])
        self.put(scope, state, [Const(v, d) for v, d in self.how.start])
        later = scope.branch(S.gt(thread, ZERO))
        self.put(later, state, how.state(self.get(shared, index_add(thread, Const(side * THREADS - 1)))))
        later.close()
        inner, _ = self.places(scope, thread, part)
        self.step(inner, state)
        close(inner, launch.scope)
        return launch.finish()

    def places(self, scope: Scope, thread: Expr, part: int) -> tuple[Scope, Expr]:
        """The scope of one element of a thread's part, and its number in the part."""
        v = Var("k", part)
        inner = scope.loop(v, part, "serial") if part > 1 else scope.inline()
        turn: Expr = v if part > 1 else ZERO
        at = index_add(thread * part, turn)
        if THREADS * part > self.length:
            inner = inner.branch(less(at, self.length))
        define_parts(inner, self.k.vars, self.k.sizes, index_let(inner, "at", at, self.length))
        return inner, turn


def cumulative_kernels(group: CumulativeGroup, targets: list[Buffer], target: Target) -> list[list[Stmt]]:
    """All kernels of a scan, in order; the result goes to every one of `targets`."""
    return [GpuScan(group, targets, target).emit()]
