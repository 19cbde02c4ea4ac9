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

from math import prod
from typing import TYPE_CHECKING, Any

from ...ir import dtypes
from ...ir.dataclass import dataclass
from ...ir.dtypes import DType
from ...ir.expr import Cast, Const, Expr, Load, Var, index_add
from ...ir.graph import Node, Value
from ...ir.loops import Buffer
from .elements import Elements, NotFusable, S
from .indexing import ZERO, ravel, unravel

if TYPE_CHECKING:
    from .plan import Planner


#: cycles of work that one group takes on: what LLVM needs for a function grows faster than the function
MOST_WORK = 1200.0


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
    #: its emitter writes a value to as many buffers as there are targets for it
    multi = False

    def __init__(self, plan: Planner, id: int) -> None:
        self.plan = plan
        self.id = id
        self.elements = Elements(self, plan.number)
        self.members: list[Value] = []
        self.stored: list[Value] = []
        self.pending: list[Value] = []
        self.pending_reads: list[Value] = []

    @property
    def full(self) -> bool:
        """Whether what comes next is better computed in another group."""
        return self.elements.work > MOST_WORK

    def owns(self, b: Buffer) -> bool:
        """Whether the group needs just this buffer, so that it can't be exchanged for another."""
        return False

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        """The index of `v` that one iteration of the domain computes, or None if `v` does not fit it."""
        raise NotImplementedError  # pragma: no cover - abstract

    def resolve(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        """The element of `v` if it is not computed here: a load, a constant, an index. None: compute it."""
        plan = self.plan
        if v.node is None and v in plan.sources:
            v = plan.sources[v]
            assert v.node is not None
            return self.source(v.node, v, index)
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
        if not v.type.numel:
            return Const(0, v.type.dtype)  # never computed: there is no such element
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
            self.elements.rollback(mark)
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

    def store_specs(self, v: Value) -> list[tuple[Expr, Expr]]:
        """All that one iteration writes of a stored member; nothing where stores are not made this way."""
        return [] if self.canonical(v) is None else [self.store_spec(v)]


class PointwiseGroup(Group):
    """Elementwise over `n` elements; the domain is one flat variable, split up only when loops are made."""

    kind = "pointwise"
    multi = True

    def __init__(self, plan: Planner, id: int, n: int) -> None:
        super().__init__(plan, id)
        self.n = n
        self.f = domain_var("i", n)
        self.by_shape: dict[tuple[int, ...], tuple[Expr, ...]] = {}
        self.joined: dict[Value, Node] = {}

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        if v.type.numel != self.n or v in self.joined:
            return None
        got = self.by_shape.get(v.type.shape)
        if got is None:
            got = self.by_shape[v.type.shape] = unravel(self.f, v.type.shape)
        return got

    def try_concat(self, node: Node) -> bool:
        """Computes a concatenation of values of the domain's size here: each iteration writes an element of
        every part."""
        v = node.results[0]
        indices = [self.canonical(o) for o in node.operands]
        mark = self.begin()
        try:
            for o, index in zip(node.operands, indices):
                if index is None:
                    raise NotFusable("part of another size")
                self.elements.at(o, index)
        except NotFusable:
            self.elements.rollback(mark)
            return False
        self.joined[v] = node
        self.accept(v)
        for o in node.operands:
            if o.node is not None and o not in self.plan.home:
                self.try_join(o)
        return True

    def store_specs(self, v: Value) -> list[tuple[Expr, Expr]]:
        node = self.joined.get(v)
        if node is None:
            return super().store_specs(v)
        out: list[tuple[Expr, Expr]] = []
        dim = node.attrs["dim"]
        start = 0
        for o in node.operands:
            index = self.canonical(o)
            assert index is not None
            place = (*index[:dim], index_add(index[dim], Const(start)), *index[dim + 1 :])
            out.append((ravel(place, v.type.shape), self.elements.at(o, index)))
            start += o.type.shape[dim]
        return out


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
