"""Scans along one dimension: cumulative sums, products, extrema, log-sums and linear recurrences. The group
and its loops.

Every row is run through in order, so results do not depend on the number of threads. Lanes go across rows:
vectors where the rows' elements are neighbours in memory, a few rows at once (for the latency of one
addition) where each row is contiguous. What leads to the operands is computed in the loop.

Used by plan.py and schedule/__init__.py only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ...ir import dtypes
from ...ir.dataclass import dataclass
from ...ir.dtypes import DType
from ...ir.expr import Const, Expr, Load, Var, index_add, index_mul
from ...ir.graph import Node, Value
from ...ir.loops import Buffer, Stmt, Store
from ...ir.op import REGISTRY
from ...ir.substitute import substitute
from ..machine import MachineModel
from .elements import NotFusable, S
from .groups import Group, domain_var
from .indexing import ZERO, Numbering, ravel, unravel
from .nests import Split, lanes_for, less, needed_exprs, power_of_two
from .pointwise import work
from .scopes import Lowering, Scope

#: rows run at once, or vectors of them
AT_ONCE = 4
#: steps dearer than this (cycles) have nothing to gain from several at once
LATENCY = 12.0


@dataclass(frozen=True)
class ScanStep:
    """How a scan goes on.

    Attributes:
        start: the state before the first element, for each component (number, dtype).
        step: the next state from `(state, elements, k)`, k being the place along the dimension.
        result: index of the component that is the scan's element.
    """

    start: tuple[tuple[float, DType], ...]
    step: Callable[[Sequence[Expr], Sequence[Expr], Expr], tuple[Expr, ...]]
    result: int = 0


def _wide(d: DType) -> DType:
    """f32 accumulates in f64, smaller floats in f32."""
    if d is dtypes.float32:
        return dtypes.float64
    return dtypes.opmath(d)


def _extremum(better: Any, d: DType) -> ScanStep:
    def step(state: Sequence[Expr], elements: Sequence[Expr], k: Expr) -> tuple[Expr, ...]:
        (best, place), (x,) = state, elements
        wide, old = (S.cast(e, dtypes.opmath(d)) for e in (x, best))
        take = S.or_(S.eq(k, ZERO), S.prim(better, wide, old))
        if d.kind == "f":
            take = S.or_(take, S.isnan(wide))
        return S.select(take, x, best), S.select(take, k, place)

    return ScanStep(((0, d), (0, dtypes.int64)), step, 1)


def scan_step(node: Node) -> ScanStep:
    """The step of a `scan` op."""
    name, d = node.op.name, node.operands[0].type.dtype
    if name in ("cumargmax", "cumargmin"):
        return _extremum("ge" if name == "cumargmax" else "le", d)
    acc = _wide(d)
    if name == "recurrence":
        return ScanStep(((0, acc),), lambda h, ab, k: (S.fma(S.cast(ab[0], acc), h[0], S.cast(ab[1], acc)),))
    start, combine = {
        "cumsum": (0, lambda h, x: S.add(h, x)),
        "cumprod": (1, lambda h, x: S.mul(h, x)),
        "logcumsumexp": (float("-inf"), lambda h, x: _scalar("logaddexp", h, x)),
    }[name]
    return ScanStep(((start, acc),), lambda h, x, k: (combine(h[0], S.cast(x[0], acc)),))


def _scalar(op: str, *args: Expr) -> Expr:
    meaning = REGISTRY[op].scalar
    assert meaning is not None
    return meaning(S, *args)


class CumulativeGroup(Group):
    """A scan over `k` for every `o` before and `i` behind its dimension."""

    kind = "scan"

    def take(self, node: Node) -> None:
        """Makes the group compute `node`."""
        self.node = node
        v = node.results[0]
        shape, dim = v.type.shape, node.attrs["dim"]
        self.sizes = prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :])
        self.begin()
        self.o, self.k, self.i = (domain_var(name, n) for name, n in zip("oki", self.sizes))
        index = (*unravel(self.o, shape[:dim]), self.k, *unravel(self.i, shape[dim + 1 :]))
        self.operands = [self.elements.at(x, index) for x in node.operands]
        self.place = ravel(index, shape)
        self.members.append(v)
        self.plan.home[v] = self
        self.finish()
        self.plan.demand(v)

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def roots(self) -> list[Expr]:
        return list(self.operands)

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        raise NotFusable("result of a scan")


class CumulativeEmitter:
    """One scan on its way to statements."""

    def __init__(
        self,
        group: CumulativeGroup,
        targets: list[Buffer],
        machine: MachineModel,
        place: Callable[[Buffer], Buffer],
        number: Numbering,
    ) -> None:
        self.machine = machine
        self.targets = targets
        self.how = scan_step(group.node)
        self.dtype = group.node.results[0].type.dtype
        exprs = needed_exprs(group.elements.bindings, group.operands)
        o, k, i = (Split.of(v, n, exprs) for v, n in zip((group.o, group.k, group.i), group.sizes))
        env: dict[Expr, Expr] = {s.flat: s.value() for s in (o, k, i) if s.changed}

        def moved(e: Expr) -> Expr:
            return substitute(e, env) if env else e

        self.operands = [moved(e) for e in group.operands]
        self.index = moved(group.place)
        self.along = k
        self.low = Lowering({x: moved(e) for x, e in group.elements.bindings.items()}, number, place)
        outer = [*zip(o.vars, o.sizes), *zip(i.vars, i.sizes)]
        outer = [(v, n) for v, n in outer if isinstance(v, Var)]
        self.rows: tuple[Expr, int] = outer.pop() if outer else (ZERO, 1)
        self.outer = outer
        self.lanes = lanes_for(machine, [self.dtype]) if group.sizes[2] > 1 else 1
        self.cycles = (work(exprs) + 4) * prod(group.sizes)

    def emit(self) -> list[Stmt]:
        top = scope = Scope(self.low)
        heavy = self.machine.threads > 1 and self.cycles > self.machine.parallel_cycles
        for var, size in self.outer:
            assert isinstance(var, Var)
            here = heavy and scope is top
            loop = Var(var.name, size)
            scope = scope.loop(loop, size, "parallel" if here else "serial")
            scope.define(var, loop)
            if here:
                self.low.floor = scope.depth
        self.blocks(scope, heavy and scope is top)
        scope.close_to(top)
        return top.stmts

    def blocks(self, scope: Scope, parallel: bool) -> None:
        """All rows of the innermost loop over rows, as many at once as pay."""
        var, size = self.rows
        lanes = self.lanes
        state = [Load(Buffer("state", d, (1,), "local"), (ZERO,)) for _, d in self.how.start]
        step = work(list(self.how.step(state, self.operands, ZERO)))
        count = AT_ONCE if step < LATENCY else 1
        width = count * lanes
        whole = size // width * width
        if whole:
            v = Var(var.name, whole) if isinstance(var, Var) else None
            inner = scope
            if v is not None and whole > width:
                inner = scope.loop(v, whole, "parallel" if parallel else "serial", width)
                if parallel:
                    self.low.floor = inner.depth
            self.block(inner, v if inner is not scope and v is not None else ZERO, count, lanes, None)
            if inner is not scope:
                inner.close()
                self.low.floor = min(self.low.floor, scope.depth)
        rest = size - whole
        if rest >= lanes:
            self.block(scope, Const(whole), rest // lanes, lanes, None)
            whole += rest // lanes * lanes
            rest = size - whole
        if not rest:
            return
        wide = power_of_two(rest)
        if wide == rest or self.machine.masked_memory:
            self.block(scope, Const(whole), 1, wide, rest if wide > rest else None)
        else:
            self.block(scope, Const(whole), rest, 1, None)

    def block(self, scope: Scope, base: Expr, count: int, lanes: int, valid: int | None) -> None:
        """`count` vectors of rows from `base` on, of whose lanes the first `valid` are rows."""
        state = [scope.alloc(self.targets[0].name, d, count * lanes, "register") for _, d in self.how.start]

        def each(parent: Scope, body: Callable[[Scope, Expr], None]) -> None:
            u = Var("u", count)
            one = parent.loop(u, count, "unroll") if count > 1 else parent.inline()
            at: Expr = index_mul(u, lanes) if count > 1 else ZERO
            lane = Var("v", lanes)
            mask = None if valid is None else less(lane, valid)
            inner = one.inline()
            if lanes > 1:
                inner = one.loop(lane, lanes, "vector", mask=mask, masked=self.rows[0])
                at = index_add(at, lane)
            inner.define(self.rows[0], index_add(base, at))
            body(inner, at)
            inner.close()
            one.close()

        def start(inner: Scope, at: Expr) -> None:
            for b, (value, d) in zip(state, self.how.start):
                inner.stmts.append(Store(b, (at,), Const(value, d)))

        def step(inner: Scope, at: Expr) -> None:
            *elements, index, k = inner.roots([*self.operands, self.index, self.along.value()])
            new = self.how.step([Load(b, (at,)) for b in state], elements, k)
            new = [inner.let(e, "next") for e in new]
            for b, e in zip(state, new):
                inner.stmts.append(Store(b, (at,), e))
            value = S.cast(new[self.how.result], self.dtype)
            for target in self.targets:
                inner.stmts.append(Store(self.low.place(target), (index,), value, inner.mask))

        each(scope, start)
        body = scope
        for var, size in zip(self.along.vars, self.along.sizes):
            if isinstance(var, Var):
                loop = Var(var.name, size)
                body = body.loop(loop, size, "serial")
                body.define(var, loop)
        each(body, step)
        body.close_to(scope)


def emit_cumulative(
    group: CumulativeGroup,
    targets: list[Buffer],
    machine: MachineModel,
    place: Callable[[Buffer], Buffer],
    number: Numbering,
) -> list[Stmt]:
    """All statements of a scan, whose result goes to every one of `targets`."""
    return CumulativeEmitter(group, targets, machine, place, number).emit()
