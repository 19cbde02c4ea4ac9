"""Groups: what will become one loop nest. A group has a domain of flat loop variables, the values computed in
it as bindings over those variables, and the ones among them that are stored to memory.

- `PointwiseGroup`: every stored value has the domain's number of elements.
- `RowGroup`: reductions over rows of `r` for every `o`, what leads to them, and what follows from them,
  element by element or row by row (softmax, layer norm and losses are one such group).
- `TinyGroup`: values of a few elements, each element a local; no loops at all.
- `ScatterGroup`: a copy, then writes at places that are data.

Used by the planner (plan.py) and the emitters of this folder only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ...ir import dtypes
from ...ir.dtypes import DType, opmath
from ...ir.expr import Cast, Const, Expr, Load, Local, Var
from ...ir.graph import Node, Value
from ...ir.op import REGISTRY
from ...ir.scalar import apply_scalar
from ...ir.types import Type
from .elements import Elements, NotFusable, S, letter_sizes, split_spec
from .indexing import ZERO, ravel, unravel

if TYPE_CHECKING:
    from .plan import Planner


def domain_var(name: str, extent: int) -> Expr:
    """A loop variable, or zero where there is nothing to loop over."""
    return Var(name, extent) if extent != 1 else ZERO


class Group:
    """Base of groups.

    Attributes:
        id: bit number in dependence masks.
        members: values computed here, in order.
        stored: the members that are written to memory.
    """

    kind = ""

    def __init__(self, plan: Planner, id: int) -> None:
        self.plan = plan
        self.id = id
        self.elements = Elements(self, plan.number)
        self.members: list[Value] = []
        self.stored: list[Value] = []
        self.pending: list[Value] = []
        self.pending_reads: list[Value] = []

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        """The index of `v` that one iteration of the domain computes, or None if `v` does not fit it."""
        raise NotImplementedError  # pragma: no cover - abstract

    def resolve(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        """The element of `v` if it is not computed here: a load, a constant, an index. None: compute it."""
        plan = self.plan
        if v.node is None:
            self.pending_reads.append(v)
            return Load(plan.input_buffer(v), (ravel(index, v.type.shape),), mask)
        home = plan.home.get(v)
        if home is self:
            return self.own(v, index, mask)
        if home is not None:
            return plan.reference(v, home, self, index, mask)
        node = v.node
        kernel = node.op.kernel
        if kernel == "source":
            return self.source(node, v, index)
        if kernel == "reduce":
            return self.trivial_reduce(node, v, index, mask)
        return None

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        """A member at an index it was not computed at yet."""
        if self.plan.inline_cost(v) > 4:
            raise NotFusable("expensive value at another index")
        return None

    def source(self, node: Node, v: Value, index: tuple[Expr, ...]) -> Expr | None:
        dtype = v.type.dtype
        if node.op.name == "iota":
            i = index[node.attrs["dim"]]
            return i if dtype is dtypes.int64 else Cast(i, dtype)
        if node.op.name != "constant":
            raise NotFusable(node.op.name)
        value = node.attrs["value"]
        if not isinstance(value, tuple):
            return Const(value, dtype)
        flat = ravel(index, v.type.shape)
        if isinstance(flat, Const):
            return Const(value[int(flat.value)] if value else 0, dtype)
        return Load(self.plan.const_buffer(v), (flat,))

    def trivial_reduce(self, node: Node, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr:
        """Reductions over no elements or single ones."""
        spec = ReduceSpec.of(node)
        if node.op.combine == "":
            return Const(0, v.type.dtype)
        if spec.R == 0:
            return Const(identity(node.op.combine, v.type.dtype), v.type.dtype)
        assert spec.R == 1
        e = self.elements.at(node.operands[0], spec.operand_index(ravel(index, v.type.shape), ZERO), mask)
        return S.cast(e, v.type.dtype)

    def begin(self) -> tuple[Any, ...]:
        self.pending = []
        self.pending_reads = []
        return self.elements.mark()

    def try_join(self, v: Value) -> bool:
        """Computes `v` here if that is possible."""
        index = self.canonical(v)
        if index is None:
            return False
        mark = self.begin()
        try:
            self.elements.at(v, index)
        except NotFusable:
            self.elements.rollback(mark)  # type: ignore[arg-type]
            return False
        self.accept(v)
        return True

    def accept(self, v: Value) -> None:
        """Makes the trial final: `v` lives here, and what it reads elsewhere is stored there."""
        self.members.append(v)
        self.plan.home[v] = self
        self.finish()
        if v in self.plan.live:
            self.plan.demand(v)

    def finish(self) -> None:
        for u in self.pending:
            self.plan.demand(u)
            self.plan.add_dependence(self, self.plan.home[u])
            self.plan.read(self, u)
        for u in self.pending_reads:
            self.plan.read(self, u)

    def roots(self) -> list[Expr]:
        """What the group evaluates besides its stored values."""
        return []

    def store_spec(self, v: Value) -> tuple[Expr, Expr]:
        """(flat index, element) of a stored member."""
        index = self.canonical(v)
        assert index is not None
        return ravel(index, v.type.shape), self.elements.at(v, index)


class PointwiseGroup(Group):
    """Elementwise over `n` elements; the domain is one flat variable, split up only when loops are made."""

    kind = "pointwise"

    def __init__(self, plan: Planner, id: int, n: int) -> None:
        super().__init__(plan, id)
        self.n = n
        self.f = domain_var("i", n)
        self.by_shape: dict[tuple[int, ...], tuple[Expr, ...]] = {}

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        if v.type.numel != self.n:
            return None
        got = self.by_shape.get(v.type.shape)
        if got is None:
            got = self.by_shape[v.type.shape] = unravel(self.f, v.type.shape)
        return got


@dataclass
class ReduceSpec:
    """A reduction's operand seen as rows: `O` kept positions, `R` reduced ones."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    O: int
    R: int

    @classmethod
    def of(cls, node: Node) -> ReduceSpec:
        shape = node.operands[0].type.shape
        axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["dim"],)
        if not shape:
            axes = ()
        kept = tuple(n for i, n in enumerate(shape) if i not in axes)
        reduced = tuple(n for i, n in enumerate(shape) if i in axes)
        return cls(shape, tuple(axes), kept, reduced, prod(kept), prod(reduced))

    def operand_index(self, o: Expr, r: Expr) -> tuple[Expr, ...]:
        kept, reduced = iter(unravel(o, self.kept)), iter(unravel(r, self.reduced))
        return tuple(next(reduced) if i in self.axes else next(kept) for i in range(len(self.shape)))


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
        except NotFusable:
            self.elements.rollback(mark)  # type: ignore[arg-type]
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
            self.elements.rollback(mark)  # type: ignore[arg-type]
            del self.reductions[n:]
            return False
        self.accept(v)
        return True


class TinyGroup(Group):
    """Values of a few elements, each element a scalar local."""

    kind = "tiny"

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def try_join(self, v: Value) -> bool:
        mark = self.begin()
        try:
            for index in self.positions(v):
                self.elements.at(v, index)
        except NotFusable:
            self.elements.rollback(mark)  # type: ignore[arg-type]
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
        self.inside += [S.ge(place, zero), S.lt(place, Const(n))]
        return place

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def roots(self) -> list[Expr]:
        return [self.base, self.value, self.target, *self.inside]

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        raise NotFusable("result of a scatter")


def identity(combine: str, dtype: DType) -> Any:
    """The neutral element of a reduction."""
    if combine in ("add", "or_", "xor"):
        return False if dtype.kind == "b" else 0
    if combine in ("mul", "and_"):
        return True if dtype.kind == "b" else (-1 if combine == "and_" else 1)
    low = combine == "maximum"
    if dtype.kind == "f":
        return float("-inf") if low else float("inf")
    if dtype.kind == "b":
        return not low
    if dtype.kind == "u":
        return 0 if low else (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)) if low else (1 << (dtype.bits - 1)) - 1


__all__ = [
    "Group", "PointwiseGroup", "ReduceSpec", "Reduction", "RowGroup", "ScatterGroup", "TinyGroup", "identity",
]  # fmt: skip
