"""The group of reductions over rows and of what is fused with them. Its loops are in rows.py."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ...ir import dtypes
from ...ir.dataclass import dataclass
from ...ir.dtypes import opmath
from ...ir.expr import Cast, Const, Expr, Local
from ...ir.graph import Node, Value
from ...ir.op import REGISTRY
from ...ir.scalar import apply_scalar
from ...ir.types import Type
from .elements import NotFusable, S, letter_sizes, split_spec
from .indexing import ravel, unravel

if TYPE_CHECKING:
    from .plan import Planner
from .groups import Group, ReduceSpec, domain_var, identity

#: reductions one after another that one group holds: each pass computes the row's elements again
MAX_STAGES = 6


@dataclass
class Reduction:
    """One accumulator of a row group.

    Attributes:
        local: its final value, known after its pass.
        combine: the primitive that combines two elements.
        element: what is accumulated, over `o` and `r`, of dtype `local.dtype`.
    """

    local: Local
    combine: str
    element: Expr


class RowGroup(Group):
    """Reductions over `r` in [0, R) for each `o` in [0, O), with everything around them."""

    kind = "row"
    multi = True

    def __init__(self, plan: Planner, id: int, O: int, R: int) -> None:
        super().__init__(plan, id)
        self.O, self.R = O, R
        self.o, self.r = domain_var("o", O), domain_var("r", R)
        self.element_flat: Expr | None = None  # the flat position of (o, r) in the reduced operand
        self.signature: tuple[Any, ...] | None = None
        self.reductions: list[Reduction] = []
        self.anchors: dict[Value, Expr] = {}
        self.by_shape: dict[tuple[int, ...], tuple[Expr, ...] | None] = {}

    def set_layout(self, spec: ReduceSpec) -> None:
        index = spec.operand_index(self.o, self.r)
        self.element_flat = ravel(index, spec.shape)
        self.signature = (spec.shape, spec.axes)
        self.by_shape = {spec.shape: index} if spec.O * spec.R != spec.O else {}

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        shape = v.type.shape
        if shape not in self.by_shape:
            got = None
            if v.type.numel == self.O:
                got = unravel(self.o, shape)
            elif self.element_flat is not None and v.type.numel == self.O * self.R:
                got = unravel(self.element_flat, shape)
            self.by_shape[shape] = got
        return self.by_shape[shape]

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        anchor = self.anchors.get(v)
        if anchor is None:
            return super().own(v, index, mask)
        if self.plan.number(ravel(index, v.type.shape)) != self.plan.number(self.o):
            raise NotFusable("reduction's result of another row")
        return anchor

    def try_reduce(self, node: Node) -> bool:
        """Adds a reduction node to this group if its rows are the group's."""
        spec = ReduceSpec.of(node)
        if (spec.O, spec.R) != (self.O, self.R):
            return False
        mark = self.begin()
        n = len(self.reductions)
        v, u = node.results[0], node.operands[0]
        try:
            x = self.elements.at(u, spec.operand_index(self.o, self.r))
            if node.op.combine:
                self.anchors[v] = self.reduction(x, node.op.combine, v)
            else:
                self.anchors[v] = self.arg_reduction(x, node, v)
            if len(self.reductions) > MAX_STAGES and self.stage_of(self.reductions[-1].element) >= MAX_STAGES:
                raise NotFusable("too many passes")
        except NotFusable:
            self.elements.rollback(mark)
            self.anchors.pop(v, None)
            del self.reductions[n:]
            return False
        if self.element_flat is None:
            self.set_layout(spec)
        self.accept(v)
        return True

    def reduction(self, x: Expr, combine: str, v: Value) -> Expr:
        """An accumulator over elements `x`; gives the result's element."""
        acc = opmath(v.type.dtype)
        if combine in ("add", "mul") and acc.kind == "b":
            combine = "or_" if combine == "add" else "and_"
        local = Local(v.name or f"{combine.strip('_')}", acc)
        self.reductions.append(Reduction(local, combine, S.cast(x, acc)))
        return local if acc is v.type.dtype else Cast(local, v.type.dtype)

    def arg_reduction(self, x: Expr, node: Node, v: Value) -> Expr:
        """The first position equal to the extremum (or NaN, if the extremum is): two reductions."""
        name = "maximum" if node.op.name == "argmax" else "minimum"
        wide = S.cast(x, opmath(x.dtype))
        best = Local("best", wide.dtype)
        self.reductions.append(Reduction(best, name, wide))
        hit = S.eq(wide, best)
        if wide.dtype.kind == "f":
            hit = S.or_(hit, S.ne(wide, wide))
        place = S.select(hit, self.r, Const(self.R))
        first = Local(v.name or node.op.name, dtypes.int64)
        self.reductions.append(Reduction(first, "minimum", place))
        return first

    def roots(self) -> list[Expr]:
        return [r.element for r in self.reductions]

    def stage_of(self, e: Expr) -> int:
        """How many passes over the row must be over before `e` is known."""
        by_local = {r.local: r for r in self.reductions}
        memo: dict[int, int] = {}
        stack: list[tuple[Expr, bool]] = [(e, False)]
        while stack:
            x, visited = stack.pop()
            if id(x) in memo:
                continue
            inner: tuple[Expr, ...] = x.args
            add = 0
            if isinstance(x, Local):
                r = by_local.get(x)
                inner = (r.element,) if r is not None else (self.elements.bindings[x],)
                add = 1 if r is not None else 0
            if visited:
                memo[id(x)] = max((memo[id(a)] for a in inner), default=0) + add
            else:
                stack.append((x, True))
                stack.extend((a, False) for a in inner)
        return memo[id(e)]

    def try_contract(self, node: Node) -> bool:
        """Adds a contraction as a sum of products; `o` is the result's flat position, `r` the contracted
        one's."""
        a, b, out = split_spec(node)
        sizes = letter_sizes(node)
        inner = "".join(c for c in a if c not in out)
        v = node.results[0]
        if (v.type.numel, prod(sizes[c] for c in inner)) != (self.O, self.R):
            return False
        where = dict(zip(out, unravel(self.o, v.type.shape)))
        where.update(zip(inner, unravel(self.r, tuple(sizes[c] for c in inner))))
        mark = self.begin()
        n = len(self.reductions)
        try:
            x, y = (
                self.elements.at(o, tuple(where[c] for c in letters))
                for o, letters in zip(node.operands, (a, b))
            )
            acc = opmath(v.type.dtype)
            product = apply_scalar(S, REGISTRY["mul"], Type(acc, ()), [S.cast(x, acc), S.cast(y, acc)], {})
            self.anchors[v] = self.reduction(self.elements.bind(product, "product"), "add", v)
        except NotFusable:
            self.elements.rollback(mark)
            del self.reductions[n:]
            return False
        self.accept(v)
        return True


__all__ = ["Reduction", "RowGroup", "identity"]
