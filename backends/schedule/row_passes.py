"""The passes of a row group: which reductions and stores each sweep over the row makes, what is kept from one
to the next, and whether lanes go along the row or across rows. Base of the classes that write the loops.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.dataclass import dataclass, field
from ...ir.expr import Expr, Load, Local, Var, index_add, index_mul
from ...ir.loops import Buffer, Store
from ...ir.substitute import substitute
from ..machine import MachineModel
from .indexing import ZERO, Numbering, is_index
from .nests import (
    Split,
    StoreSpec,
    divisions,
    lanes_for,
    loads_of,
    needed_exprs,
    resplit,
    strides,
)
from .pointwise import work
from .row_group import Reduction, RowGroup
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


class RowPasses:
    """One row group on its way to statements, as far as it does not depend on the layout."""

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
        divided = divisions(exprs)
        self.o = Split.of(group.o, group.O, divided)
        self.r = Split.of(group.r, group.R, divided)
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
            if is_index(x):
                memo[id(x)] = 0
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
            if not all(self.low.free(e).isdisjoint(self.r_vars) for e in (index, value)):
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
            later: set[Local] | None = None
            for local in sorted(needs(p), key=self.low.order.__getitem__, reverse=True):
                if work([self.bindings[local]]) < HEAVY or not (self.low.free(local) & self.r_vars):
                    continue
                if later is None:
                    later = set().union(*[needs(q) for q in self.passes[k + 1 :]])
                if local in later:
                    kept[local] = k
                    later = None  # what it is made of may be needed no more
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

    def ranges(self) -> list[tuple[Expr, Expr, int]]:
        """(variable, start, size) of every loop over the row."""
        out: list[tuple[Expr, Expr, int]] = [(v, ZERO, n) for v, n in zip(self.r.vars, self.r.sizes)]
        if self.range is not None:
            out[0] = (self.r.vars[0], *self.range)
        return out
