"""Groups of values of a few elements, and of writes at places that are data. Their loops are in
pointwise.py."""

from __future__ import annotations

import itertools
from math import prod
from typing import TYPE_CHECKING

from ...ir import dtypes
from ...ir.dtypes import DType, opmath
from ...ir.expr import Const, Expr
from ...ir.graph import Node, Value
from .elements import NotFusable, S, letter_sizes, split_spec
from .indexing import ZERO, ravel, unravel

if TYPE_CHECKING:
    pass
from .groups import Group, ReduceSpec, domain_var, identity

#: values of at most this many elements join straight-line code
MOST = 64


class TinyGroup(Group):
    """Values of a few elements, each element a scalar local."""

    kind = "tiny"
    multi = True

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def try_join(self, v: Value) -> bool:
        if v.type.numel > MOST:
            return False
        mark = self.begin()
        try:
            for index in self.positions(v):
                self.elements.at(v, index)
        except NotFusable:
            self.elements.rollback(mark)
            return False
        self.accept(v)
        return True

    @staticmethod
    def positions(v: Value) -> list[tuple[Expr, ...]]:
        return [tuple(Const(i) for i in at) for at in itertools.product(*(range(n) for n in v.type.shape))]

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        return None

    def roots(self) -> list[Expr]:
        return [self.elements.at(v, index) for v in self.stored for index in self.positions(v)]

    def resolve(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        node = v.node
        home = self.plan.home.get(v)
        if node is not None and (home is None or home is self) and node.op.kernel in ("reduce", "contract"):
            if not all(isinstance(i, Const) for i in index):
                raise NotFusable("reduction's result at an index that is data")
            return self.unrolled(node, v, index)
        return super().resolve(v, index, mask)

    def unrolled(self, node: Node, v: Value, index: tuple[Expr, ...]) -> Expr:
        name = v.name or node.op.name
        acc = opmath(v.type.dtype)
        if node.op.kernel == "contract":
            return self.elements.bind(S.cast(self.dot(node, index, acc), v.type.dtype), name, node)
        spec = ReduceSpec.of(node)
        o = ravel(index, v.type.shape)
        items = [self.elements.at(node.operands[0], spec.operand_index(o, Const(r))) for r in range(spec.R)]
        if not node.op.combine:
            return self.elements.bind(_first_extremum(items, node.op.name == "argmax"), name, node)
        if not items:
            return Const(identity(node.op.combine, v.type.dtype), v.type.dtype)
        out = S.cast(items[0], acc)
        for x in items[1:]:
            out = S.prim(node.op.combine, out, S.cast(x, acc))
        return self.elements.bind(S.cast(out, v.type.dtype), name, node)

    def dot(self, node: Node, index: tuple[Expr, ...], acc: DType) -> Expr:
        a, b, out = split_spec(node)
        sizes = letter_sizes(node)
        inner = [c for c in a if c not in out]
        where: dict[str, Expr] = dict(zip(out, index))
        total: Expr | None = None
        for at in itertools.product(*(range(sizes[c]) for c in inner)):
            where.update(zip(inner, map(Const, at)))
            x, y = (
                S.cast(self.elements.at(o, tuple(where[c] for c in letters)), acc)
                for o, letters in zip(node.operands, (a, b))
            )
            term = S.prim("mul", x, y)
            total = term if total is None else S.prim("add", total, term)
        return total if total is not None else Const(0, acc)


def _first_extremum(items: list[Expr], largest: bool) -> Expr:
    best, place = items[0], Const(0)
    for k, x in enumerate(items[1:], 1):
        better = S.gt(x, best) if largest else S.lt(x, best)
        if x.dtype.kind == "f":
            better = S.or_(better, S.and_(S.ne(x, x), S.eq(best, best)))
        best, place = S.select(better, x, best), S.select(better, Const(k), place)
    return place


class ScatterGroup(Group):
    """`scatter` and `index_put`: a copy of the first operand (domain `f`), then one write per index
    (domain `g`)."""

    kind = "scatter"

    def take(self, node: Node) -> None:
        """Makes the group compute `node`. Operands are pulled in: zeros and computed sources need no
        buffer."""
        self.node = node
        v = node.results[0]
        base = node.operands[0]
        source, indices = (
            (node.operands[2], [node.operands[1]])
            if node.op.name == "scatter"
            else (node.operands[1], node.operands[2:])
        )
        grid = indices[0].type.shape if node.op.name == "scatter" else source.type.shape
        self.begin()
        self.f, self.g = domain_var("i", v.type.numel), domain_var("j", prod(grid))
        self.base = self.elements.at(base, unravel(self.f, v.type.shape))
        self.inside: list[Expr] = []  # conditions on the updates that are made at all
        self.places: list[Expr] = []  # where they go in the dimensions that have an index
        at = unravel(self.g, grid)
        self.target = self.positions(node, v.type.shape, at, list(indices))
        self.value = self.elements.at(source, at)
        self.members.append(v)
        self.plan.home[v] = self
        self.finish()
        self.plan.demand(v)

    def positions(
        self, node: Node, shape: tuple[int, ...], at: tuple[Expr, ...], indices: list[Value]
    ) -> Expr:
        """Where the update at grid position `at` goes: the flat position. Negative indices count from the
        end; updates out of range are not made."""
        if node.op.name == "scatter":
            dim = node.attrs["dim"]
            index: list[Expr] = list(at)
            if shape:
                index[dim] = self.wrapped(indices[0], at, shape[dim])
            return ravel(tuple(index), shape)
        dims = node.attrs["dims"]
        rank = max((i.type.rank for i in indices), default=0)
        kept = [d for d in range(len(shape)) if d not in dims]
        consecutive = not dims or list(dims) == list(range(dims[0], dims[0] + len(dims)))
        first = dims[0] if dims and consecutive else 0
        data = at[first : first + rank]
        rest = iter(at[:first] + at[first + rank :])
        index = [ZERO for _ in shape]
        for d in kept:
            index[d] = next(rest)
        for d, i in zip(dims, indices):
            skip = rank - i.type.rank
            where = tuple(ZERO if n == 1 else x for n, x in zip(i.type.shape, data[skip:]))
            index[d] = self.wrapped(i, where, shape[d])
        return ravel(tuple(index), shape)

    def wrapped(self, i: Value, at: tuple[Expr, ...], n: int) -> Expr:
        e = S.cast(self.elements.at(i, at), dtypes.int64)
        zero = Const(0)
        place = self.elements.bind(S.select(S.lt(e, zero), S.add(e, Const(n)), e), "place")
        self.places.append(place)
        self.inside += [S.ge(place, zero), S.lt(place, Const(n))]
        return place

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def roots(self) -> list[Expr]:
        return [self.base, self.value, self.target, *self.inside]

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        raise NotFusable("result of a scatter")
