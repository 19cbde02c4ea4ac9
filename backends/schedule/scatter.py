"""Loops of scatters: a copy of the base, then updates at places that data decide. Used by
schedule/__init__.py only."""

from __future__ import annotations

from ...ir import dtypes
from ...ir.expr import Const, Expr, Load, Local, Prim, Var, stride_of
from ...ir.loops import Buffer, Stmt
from ...ir.substitute import substitute
from ..machine import MachineModel
from .elements import S
from .indexing import Numbering
from .nests import Split, StoreSpec, lanes_for, needed_exprs, vector_blocks
from .other_groups import ScatterGroup
from .pointwise import Place, flat_nest, work
from .scopes import Lowering, Scope

#: from so many bytes of a row on, looking at every index costs a thread little beside its updates
ROW = 256
_COMBINE = {"add": "add", "prod": "mul", "amax": "maximum", "amin": "minimum"}
_COMBINE_BOOL = {"add": "or_", "mul": "and_"}


def emit_scatter(
    group: ScatterGroup, targets: list[Buffer], machine: MachineModel, place: Place, number: Numbering
) -> list[Stmt]:
    """The copy of the base, then the updates; all in the first of `targets`, copied to the others."""
    out = targets[0]
    stmts = _Scatter(group, out, machine, place, number).emit()
    for other in targets[1:]:
        copy: list[StoreSpec] = [(other, group.f, Load(out, (group.f,)))]
        stmts += flat_nest({}, copy, group.f, out.size, machine, place, number)
    return stmts


class _Scatter:
    """The loops of one scatter. Updates that may meet at one place are made one after another, in the order
    of the indices; vectors are only along what the places move with by themselves."""

    def __init__(
        self, group: ScatterGroup, out: Buffer, machine: MachineModel, place: Place, number: Numbering
    ) -> None:
        self.group, self.out, self.machine, self.place, self.number = group, out, machine, place, number
        self.lanes = lanes_for(machine, [out.dtype])
        self.count = group.g.extent if isinstance(group.g, Var) else 1
        bindings = group.elements.bindings
        exprs = needed_exprs(bindings, [group.target, group.value, *group.inside])
        self.split = split = Split.of(group.g, self.count, exprs)
        env: dict[Expr, Expr] = {split.flat: split.value()} if split.changed else {}
        bindings = {x: substitute(e, env) for x, e in bindings.items()} if env else bindings
        self.target, self.value, *self.inside = (
            substitute(e, env) for e in (group.target, group.value, *group.inside)
        )
        self.places = [substitute(e, env) for e in group.places]
        self.low = Lowering(bindings, number, place)
        #: of these no two values write to one place, whatever the indices are
        self.apart = [v for v in split.vars if isinstance(v, Var) and self._moves(v)]
        cycles = self.count * (1 + work(exprs)) / self.lanes
        self.shared = machine.threads > 1 and cycles > machine.parallel_cycles

    def _moves(self, v: Var) -> bool:
        return bool(stride_of(self.target, v)) and not any(v in self.low.free(c) for c in self.inside)

    def emit(self) -> list[Stmt]:
        """All loops."""
        group, out = self.group, self.out
        rows = self._rows_of_a_task()
        if rows:
            return self._by_rows(rows)
        stmts: list[Stmt] = []
        if not self._keeps():
            base = [(out, group.f, group.base)]
            bindings = group.elements.bindings
            stmts += flat_nest(bindings, base, group.f, out.size, self.machine, self.place, self.number)
        if self.count:
            top = Scope(self.low)
            self._updates(top, self.inside)
            stmts += top.stmts
        return stmts

    def _keeps(self) -> bool:
        """The base is in its place already."""
        base = self.group.base
        return isinstance(base, Load) and self.place(base.buffer) is self.place(self.out)

    def _rows_of_a_task(self) -> int:
        """How many rows of the result a thread takes, 0: the updates are not shared that way. For updates of
        whole rows, of nothing or what is there already."""
        last, width = self.split.vars[-1], self.split.sizes[-1]
        if not self.shared or self.apart != [last] or len(self.places) != 1:
            return 0
        if not (self._keeps() or isinstance(self.group.base, Const)):
            return 0
        if width * self.out.dtype.itemsize < ROW or stride_of(self.target, self.places[0]) != width:
            return 0
        rows = self.out.size // width
        return -(-rows // self.machine.threads)

    def _by_rows(self, rows: int) -> list[Stmt]:
        """Every thread looks at all indices and makes the updates of its own rows:

        for i in 20000 { for c in 64 { out[i, c] = 0 } }
        for j in 8192 { for c in 64 { out[row[j], c] += x[j, c] } }
        -->
        for t in 2 parallel {
          for i in 10000 { for c in 64 { out[10000 t + i, c] = 0 } }
          for j in 8192 { if row[j] >= 10000 t & row[j] < 10000 t + 10000 { for c in 64 { ... } } }
        }
        """
        width = self.split.sizes[-1]
        most = self.out.size // width
        tasks = -(-most // rows)
        even = tasks * rows == most
        top = Scope(self.low)
        t = Var("t", tasks)
        task = top.loop(t, tasks, "parallel")
        task.define(t, t)
        self.low.floor = task.depth
        begin = S.mul(t, Const(rows))
        if not self._keeps():
            r = Var("r", rows)
            row = task.loop(r, rows, "serial")
            row.define(r, r)
            at = S.add(begin, r)
            within = row if even else row.branch(S.lt(at, Const(most)))
            c = Var("c", width)
            spec = (self.out, S.add(S.mul(at, Const(width)), c), self.group.base)
            vector_blocks(within, c, 0, width, self.lanes, self.machine, lambda s: s.stores([spec]))
            within.close_to(task)
        end = S.add(begin, Const(rows))
        end = end if even else S.minimum(end, Const(most))
        self._updates(task, [S.ge(self.places[0], begin), S.lt(self.places[0], end)])
        task.close()
        return top.stmts

    def _updates(self, top: Scope, inside: list[Expr]) -> None:
        """The updates whose places meet the conditions."""
        sizes = dict(zip(self.split.vars, self.split.sizes))
        loops = [v for v in self.split.vars if isinstance(v, Var)]
        last = self.split.vars[-1]
        vectors = last in self.apart
        if vectors:
            loops.pop()
        around = self.shared and self.low.floor == 0 and any(v in self.apart for v in loops)
        if around:
            loops.sort(key=lambda v: v is not self.apart[0])
        scope = top
        for var in loops:
            loop = Var(var.name, sizes[var])
            here = around and scope is top
            scope = scope.loop(loop, sizes[var], "parallel" if here else "serial")
            scope.define(var, loop)
            if here:
                self.low.floor = scope.depth
        condition: Expr | None = None
        for c in inside:
            condition = c if condition is None else Prim("and_", (condition, c), dtypes.bool_)
        if vectors:
            if condition is not None:
                scope = scope.branch(scope.roots([condition])[0])
            width = sizes[last]
            vector_blocks(scope, last, 0, width, self.lanes, self.machine, lambda s: self._update(s, None))
        else:
            self._update(scope, condition)
        scope.close_to(top)

    def _update(self, s: Scope, condition: Expr | None) -> None:
        out, value = self.out, self.value
        how = self._reduction()
        if how is not None:
            combine = _COMBINE[how]
            # Anchored here: the place may be the same in every iteration, what is there is not.
            old = Local("old", out.dtype)
            s.anchor(old, s.let(s.load(Load(out, (self.target,), condition)), "old"))
            name = _COMBINE_BOOL.get(combine, combine) if out.dtype.kind == "b" else combine
            value = S.prim(name, old, value)
        s.stores([(out, self.target, value)], condition)

    def _reduction(self) -> str | None:
        """How an update joins what is there: a key of `_COMBINE`, or None: it takes its place."""
        attrs = self.group.node.attrs
        if self.group.node.op.name == "scatter":
            how = attrs.get("reduce", "none")
            return None if how == "none" else how
        return "add" if attrs.get("accumulate") else None
