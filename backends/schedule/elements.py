"""Elements of graph values as loop-IR expressions, pulled from the inside out: the element of a value at an
index is its op's scalar meaning over the elements of its operands at their indices.

Movement ops only change the index, so they cost nothing. Every scalar op becomes one binding (a `Local` and
the expression it names), shared by everything that needs it at that index. What stops the recursion (stored
values, results of reductions) is decided by the group the elements belong to. Used by the other files of this
folder only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ...ir import dtypes
from ...ir.expr import EXPR_SCALAR, Cast, Const, Expr, Load, Local, Prim, bounds
from ...ir.graph import Node, Value
from ...ir.op import REGISTRY, Piece
from ...ir.scalar import PRIMITIVES, apply_scalar
from ...ir.types import Type
from .indexing import Numbering, broadcast_index, ravel

S = EXPR_SCALAR


class NotFusable(Exception):
    """A value can't be computed inside this group; it goes elsewhere."""


class Elements:
    """Bindings of one group.

    Attributes:
        bindings: what every local stands for, definitions before uses.
        origin: the graph's node that a local comes from.
        memo: elements by value, index and mask.
        work: cycles of all scalar ops bound here, each once.
        owner: the group; asked about values that are not simply computed (`owner.resolve`).
    """

    def __init__(self, owner: Any, number: Numbering) -> None:
        self.owner = owner
        self.number = number
        self.bindings: dict[Local, Expr] = {}
        self.origin: dict[Local, Node] = {}
        self.memo: dict[tuple[Any, ...], Expr] = {}
        self.work = 0.0

    # trial and error: everything after a mark can be taken back

    def mark(self) -> tuple[int, int, float]:
        return len(self.bindings), len(self.memo), self.work

    def rollback(self, mark: tuple[int, int, float]) -> None:
        self.work = mark[2]
        for _ in range(len(self.bindings) - mark[0]):
            self.bindings.popitem()
        for _ in range(len(self.memo) - mark[1]):
            self.memo.popitem()

    def key(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> tuple[Any, ...]:
        number = self.number
        return (v, *[number(i) for i in index], -1 if mask is None else -2 - number(mask))

    def at(self, v: Value, index: tuple[Expr, ...], mask: Expr | None = None) -> Expr:
        """The element of `v` at `index`. Where `mask` is false memory may not be read and any value will
        do."""
        key = self.key(v, index, mask)
        got = self.memo.get(key)
        if got is None:
            got = self.owner.resolve(v, index, mask)
            if got is None:
                got = self.define(v, index, mask)
            self.memo[key] = got
        return got

    def bind(self, e: Expr, name: str, node: Node | None = None) -> Expr:
        """A local for `e`, or `e` itself where that is as short."""
        if isinstance(e, (Const, Local)):
            return e
        local = Local(name, e.dtype)
        self.bindings[local] = e
        if node is not None:
            self.origin[local] = node
        return local

    def define(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr:
        """The element by the meaning of the op that makes `v`."""
        node = v.node
        assert node is not None
        op = node.op
        if op.scalar is not None:
            args = []
            for o in node.operands:
                shape = o.type.shape
                args.append(
                    self.at(o, index if shape == v.type.shape else broadcast_index(index, shape), mask)
                )
            self.work += 1 + scalar_cost(node)
            return self.bind(apply_scalar(S, op, v.type, args, node.attrs), v.name or op.name, node)
        if op.pull is not None:
            return self.pulled(node, v, index, mask)
        if op.kernel == "contract":
            return self.product(node, index, mask)
        raise NotFusable(op.name)

    def product(self, node: Node, index: tuple[Expr, ...], mask: Expr | None) -> Expr:
        """A contraction over nothing (or over dimensions of size one): the product of two elements."""
        a, b, out = split_spec(node)
        where = dict(zip(out, index))
        zero = Const(0)
        if any(n == 0 for n in letter_sizes(node).values()):
            return Const(0, node.results[0].type.dtype)
        x, y = (
            self.at(o, tuple(where.get(c, zero) for c in letters), mask)
            for o, letters in zip(node.operands, (a, b))
        )
        out_type = node.results[0].type
        return self.bind(
            apply_scalar(S, REGISTRY["mul"], out_type, [x, y], {}), node.results[0].name or "product", node
        )

    def pulled(self, node: Node, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr:
        op = node.op
        assert op.pull is not None
        in_types = tuple(o.type for o in node.operands)

        def read(k: int, at: tuple[Expr, ...]) -> Expr:
            e = self.at(node.operands[k], at, mask)
            return e if e.dtype is dtypes.int64 else Cast(e, dtypes.int64)

        pieces = decided(op.pull(index, in_types, v.type, read, **node.attrs))
        fill = node.attrs.get("value", op.attr_defaults.get("value", 0))
        fill = 0 if not isinstance(fill, (int, float, bool)) else fill
        out: Expr | None = None
        if not pieces or pieces[-1].where is not None:
            out = Const(fill, v.type.dtype)
        masks = [_needed_mask(pieces, k, in_types, mask) for k in range(len(pieces))]
        for p, inner in zip(reversed(pieces), reversed(masks)):
            where = p.where
            e = self.at(node.operands[p.operand], p.index, inner)
            if out is None or where is None:
                out = e
            elif isinstance(e, Load) and e.mask is where and e.other is None and isinstance(out, Const):
                out = Load(e.buffer, e.index, e.mask, out)
            else:
                out = S.prim("select", where, e, out)
        assert out is not None
        return out if isinstance(out, (Load, Const, Local)) else self.bind(out, v.name or op.name, node)


def decided(pieces: list[Piece]) -> list[Piece]:
    """Pieces whose conditions hold always or never, settled."""
    out: list[Piece] = []
    for p in pieces:
        where = None if p.where is None else decide(p.where)
        if isinstance(where, Const):
            if not where.value:
                continue
            where = None
        out.append(p if where is p.where else Piece(p.operand, p.index, where))
        if where is None:
            break
    return out


def decide(cond: Expr) -> Expr:
    """A condition on indices, less the parts that their ranges settle."""
    if not isinstance(cond, Prim):
        return cond
    if cond.name == "and_":
        a, b = decide(cond.args[0]), decide(cond.args[1])
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Const):
                return y if x.value else x
        return cond if a is cond.args[0] and b is cond.args[1] else Prim("and_", (a, b), dtypes.bool_)
    if cond.name in _NEGATED and cond.args[0].dtype is dtypes.int64:
        a, b = bounds(cond.args[0]), bounds(cond.args[1])
        if a is not None and b is not None:
            low, high = a[0] - b[0] if b[0] == b[1] else a[0] - b[1], a[1] - b[0]
            always = {"lt": high < 0, "le": high <= 0, "ge": low >= 0, "gt": low > 0, "eq": low == high == 0}
            never = {
                "lt": low >= 0,
                "le": low > 0,
                "ge": high < 0,
                "gt": high <= 0,
                "eq": low > 0 or high < 0,
            }
            if always.get(cond.name):
                return Const(True, dtypes.bool_)
            if never.get(cond.name):
                return Const(False, dtypes.bool_)
    return cond


def _needed_mask(pieces: list[Piece], k: int, in_types: tuple[Type, ...], mask: Expr | None) -> Expr | None:
    """When piece k may be read: always where its index is inside anyway, else where it is the piece that
    counts."""
    p = pieces[k]
    inside = True
    for i, n in zip(p.index, in_types[p.operand].shape):
        r = bounds(i)
        if r is None or r[0] < 0 or r[1] >= n:
            inside = False
            break
    if inside:
        return mask
    conditions = [] if mask is None else [mask]
    conditions += [negated(q.where) for q in pieces[:k] if q.where is not None]
    if p.where is not None:
        conditions.append(p.where)
    out = None
    for c in conditions:
        out = c if out is None else Prim("and_", (out, c), dtypes.bool_)
    return out


_NEGATED = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


def negated(cond: Expr) -> Expr:
    """The opposite of a condition on indices."""
    if isinstance(cond, Prim) and cond.name in _NEGATED and cond.args[0].dtype is dtypes.int64:
        return Prim(_NEGATED[cond.name], cond.args, dtypes.bool_)
    return Prim("not_", (cond,), dtypes.bool_)


def split_spec(node: Node) -> tuple[str, str, str]:
    """The letters of a contraction: first operand, second, result."""
    return _letters(node.attrs["spec"])


@cache
def _letters(spec: str) -> tuple[str, str, str]:
    operands, _, out = spec.partition("->")
    a, _, b = operands.partition(",")
    return a, b, out


def letter_sizes(node: Node) -> dict[str, int]:
    a, b, _ = split_spec(node)
    x, y = node.operands
    return {**dict(zip(a, x.type.shape)), **dict(zip(b, y.type.shape))}


_costs: dict[tuple[Any, ...], float] = {}
_last: tuple[Node | None, float] = (None, 0.0)


def scalar_cost(node: Node) -> float:
    """Rough cycles per element of a scalar op (in a vector, per lane, times the lanes)."""
    global _last
    last = _last
    if last[0] is not node:  # it is asked for every element of short values
        _last = last = (node, _scalar_cost(node))
    return last[1]


def _scalar_cost(node: Node) -> float:
    attrs = str(node.attrs) if node.attrs else ""
    key = (node.op.name, attrs, node.results[0].type.dtype, *[o.type.dtype for o in node.operands])
    got = _costs.get(key)
    if got is None:
        args = [Local("x", o.type.dtype) for o in node.operands]
        e = apply_scalar(S, node.op, Type(node.results[0].type.dtype, ()), args, node.attrs)
        got = 0.0
        seen: set[int] = set()
        stack = [e]
        while stack:
            x = stack.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if isinstance(x, Prim):
                got += PRIMITIVES[x.name].cost
            elif isinstance(x, Cast):
                got += 1
            stack.extend(x.args)
        _costs[key] = got
    return got


def flat_at(v: Value, index: tuple[Expr, ...]) -> Expr:
    return ravel(index, v.type.shape)
