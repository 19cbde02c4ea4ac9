"""Scatters as kernels: a copy of the base, then the updates. Used by gpu_schedule/__init__.py.

Updates that may meet at one place are made by one thread, in order, so results are the same every time (and
the CPU's). The grid's dimensions are of two kinds: along some, the place moves by itself; along others it is
data. A few updates along the latter are run through by a thread for each combination of the former. Many are
sorted by their places first (sort.py), and each run of equal places is a thread's.
"""

from __future__ import annotations

from math import prod

from ...ir import dtypes
from ...ir.expr import Const, Expr, Load, Local, Prim, Var, index_add
from ...ir.graph import Node
from ...ir.loops import Buffer, Stmt, Store, While
from ...ir.substitute import substitute
from ..schedule.elements import S
from ..schedule.groups import domain_var
from ..schedule.indexing import ZERO, ravel, unravel
from ..schedule.other_groups import ScatterGroup
from ..schedule.scopes import Lowering, Scope
from .launch import Target, close, define_parts, flat_launch, index_let
from .pointwise import copy_kernel, flat_kernel
from .sort import RowSort

#: more updates than this are sorted
RUN_THROUGH = 32


def update_kind(node: Node) -> str:
    """none, add, prod, amax or amin."""
    if node.op.name == "scatter":
        return node.attrs.get("reduce", "none")
    return "add" if node.attrs.get("accumulate") else "none"


def grid_dims(node: Node) -> tuple[tuple[int, ...], list[bool]]:
    """The shape of the grid of updates, and for each of its dimensions whether places along it are data."""
    if node.op.name == "scatter":
        shape = node.operands[1].type.shape
        return shape, [d == node.attrs["dim"] for d in range(len(shape))]
    grid, dims = node.operands[1].type.shape, node.attrs["dims"]
    rank = max((i.type.rank for i in node.operands[2:]), default=0)
    consecutive = not dims or list(dims) == list(range(dims[0], dims[0] + len(dims)))
    first = dims[0] if dims and consecutive else 0
    return grid, [first <= d < first + rank for d in range(len(grid))]


def combined(how: str, old: Expr, new: Expr) -> Expr:
    """What is at a place after an update."""
    if how == "none":
        return new
    combine = {"add": "add", "prod": "mul", "amax": "maximum", "amin": "minimum"}[how]
    if old.dtype.kind == "b":
        combine = {"add": "or_", "mul": "and_"}.get(combine, combine)
    return S.prim(combine, old, new)


def scatter_kernels(group: ScatterGroup, targets: list[Buffer], target: Target) -> list[list[Stmt]]:
    """All kernels of a scatter, in order; the result goes to every one of `targets`."""
    out = targets[0]
    bodies: list[list[Stmt]] = []
    keeps = isinstance(group.base, Load) and target.place(group.base.buffer) is target.place(out)
    if not keeps:
        specs = [(out, group.f, group.base)]
        bodies.append(flat_kernel(group.elements.bindings, specs, group.f, out.size, target))
    if not isinstance(group.g, Var) or group.g.extent > 0:
        bodies += Updates(group, out, target).emit()
    for other in targets[1:]:
        bodies.append(copy_kernel(target, other, out, group.f))
    return bodies


class Updates:
    """The updates of a scatter on their way to kernels."""

    def __init__(self, group: ScatterGroup, out: Buffer, target: Target) -> None:
        self.group, self.out, self.target = group, out, target
        shape, data = grid_dims(group.node)
        self.how = update_kind(group.node)
        self.grid = [(domain_var(f"j{d}", n), n) for d, n in enumerate(shape)]
        self.data = [x for x, d in zip(self.grid, data) if d]
        self.own = [x for x, d in zip(self.grid, data) if not d]
        self.bindings, self.place, self.value, self.inside = self.over([v for v, _ in self.grid])
        self.low = Lowering(self.bindings, target.number, target.place)

    def over(self, variables: list[Expr]) -> tuple[dict[Local, Expr], Expr, Expr, Expr | None]:
        """Bindings, place, value and condition of an update at a place of the grid."""
        g = self.group
        flat = ravel(tuple(variables), tuple(n for _, n in self.grid)) if variables else ZERO
        env: dict[Expr, Expr] = {g.g: flat} if isinstance(g.g, Var) else {}

        def moved(e: Expr) -> Expr:
            return substitute(e, env) if env else e

        condition: Expr | None = None
        for c in map(moved, g.inside):
            condition = c if condition is None else Prim("and_", (condition, c), dtypes.bool_)
        bindings = {x: moved(e) for x, e in g.elements.bindings.items()}
        return bindings, moved(g.target), moved(g.value), condition

    def emit(self) -> list[list[Stmt]]:
        if prod(n for _, n in self.data) <= RUN_THROUGH:
            return [self.in_order()]
        return self.sorted()

    def in_order(self) -> list[Stmt]:
        """One thread runs through all updates along dimensions that are data."""
        k, scope, at = flat_launch(self.low, prod(n for _, n in self.own), "j")
        define_parts(scope, [v for v, _ in self.own], [n for _, n in self.own], at)
        inner = scope
        for v, n in self.data:
            if isinstance(v, Var):
                loop = Var(v.name, n)
                inner = inner.loop(loop, n, "serial")
                inner.define(v, loop)
        if self.inside is not None:
            inner = inner.branch(inner.lower(self.inside))
        new = self.value
        if self.how != "none":
            # Anchored here: the place may be the same in every turn, what is there is not.
            old = Local("old", self.out.dtype)
            inner.anchor(old, inner.let(inner.load(Load(self.out, (self.place,))), "old"))
            new = combined(self.how, old, self.value)
        inner.stores([(self.out, self.place, new)])
        close(inner, k.scope)
        return k.finish()

    # --- sorted by place

    def sorted(self) -> list[list[Stmt]]:
        """A kernel that sorts the updates' numbers by their places, and one that makes them."""
        n = prod(m for _, m in self.data)
        by_row = self.group.node.op.name == "scatter"  # there, places of each row are data of their own
        rows = prod(m for _, m in self.own) if by_row else 1
        o, j = domain_var("o", rows), domain_var("j", n)
        key = dtypes.uint32 if self.out.size < (1 << 32) - 1 else dtypes.uint64
        bindings, place = self.keys(o if by_row else ZERO, j, key)
        keys = Buffer("places", key, (rows * n,), "arena")
        order = Buffer("order", dtypes.int32 if n < 1 << 31 else dtypes.int64, (rows * n,), "arena")

        def finish(made: RowSort, scope: Scope, row: Expr) -> None:
            inner, at = made.each(scope, n)
            source, to = (index_add(made.start, at),), (index_add(row * n, at),)
            inner.stmts += [
                Store(keys, to, Load(made.keys, source)),
                Store(order, to, Load(made.order, source)),
            ]
            close(inner, scope)

        first = RowSort(bindings, place, (o, rows), (j, n), self.target).emit(finish)
        return [first, self.runs(keys, order, n, rows)]

    def keys(self, row: Expr, j: Expr, key: dtypes.DType) -> tuple[dict[Local, Expr], Expr]:
        """The place of update `j` of a row as a number to sort by; those that are not made come last."""
        parts = dict(zip([v for v, _ in self.data], unravel(j, tuple(n for _, n in self.data))))
        parts.update(zip([v for v, _ in self.own], unravel(row, tuple(n for _, n in self.own))))
        bindings, place, _, inside = self.over([parts.get(v, ZERO) if n > 1 else ZERO for v, n in self.grid])
        out = S.cast(place, key)
        if inside is not None:
            out = S.select(inside, out, Const((1 << key.bits) - 1, key))
        return bindings, out

    def runs(self, keys: Buffer, order: Buffer, n: int, rows: int) -> list[Stmt]:
        """For each update the first of its place: it and those that follow."""
        free = prod(m for _, m in self.own) if rows == 1 else 1
        k, scope, at = flat_launch(self.low, rows * n * free, "j")
        slot = index_let(scope, "slot", at // free, rows * n) if free > 1 else at
        row = index_let(scope, "row", slot // n, rows) if rows > 1 else ZERO
        p = index_let(scope, "p", slot % n, n) if rows > 1 else slot
        define_parts(
            scope, [v for v, _ in self.own], [m for _, m in self.own], row if rows > 1 else at % free
        )
        mine = scope.let(Load(keys, (slot,)), "place")
        most = Const((1 << keys.dtype.bits) - 1, keys.dtype)
        starts = S.gt(p, ZERO)
        before = Load(keys, (index_add(slot, Const(-1)),), starts, most)
        inner = scope.branch(S.and_(S.ne(mine, most), S.ne(before, mine)))
        acc = inner.alloc("new", self.out.dtype, 1, "register")
        q = inner.alloc("q", dtypes.int64, 1, "register")
        inner.stmts.append(Store(q, (ZERO,), p))
        head = inner.inline()
        number = index_let(head, "first", S.cast(Load(order, (slot,)), dtypes.int64), n)
        define_parts(head, [v for v, _ in self.data], [m for _, m in self.data], number)
        place = index_let(head, "to", head.roots([self.place])[0], self.out.size)
        old: Expr = Const(0, self.out.dtype)
        if self.how != "none":
            old = Load(self.target.place(self.out), (place,))
        head.stmts.append(Store(acc, (ZERO,), old))
        head.close()
        here = Load(q, (ZERO,))
        inside = S.lt(here, Const(n))
        same = S.eq(Load(keys, (index_add(row * n, here),), inside, most), mine)
        loop = Scope(self.low, inner)
        loop.header = While(S.and_(inside, same), loop.stmts)
        now = loop.let(here, "now")
        number = index_let(loop, "update", S.cast(Load(order, (index_add(row * n, now),)), dtypes.int64), n)
        define_parts(loop, [v for v, _ in self.data], [m for _, m in self.data], number)
        value = loop.roots([self.value])[0]
        loop.stmts.append(Store(acc, (ZERO,), combined(self.how, Load(acc, (ZERO,)), value)))
        loop.stmts.append(Store(q, (ZERO,), S.add(now, Const(1))))
        loop.close()
        inner.stmts.append(Store(self.target.place(self.out), (place,), Load(acc, (ZERO,))))
        close(inner, k.scope)
        return k.finish()
