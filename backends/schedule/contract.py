"""Groups around a contraction: its operands as affine loads, its result as the element that an epilogue of
pointwise values is computed from while it is still in registers. The loops are in contract_loops.py. Used by
plan.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from ...ir.dataclass import dataclass, replace
from ...ir.dtypes import float32, opmath
from ...ir.expr import Cast, Const, Expr, Load, Local, Var, stride_of
from ...ir.graph import Node, Value
from ...ir.loops import Buffer
from ...ir.substitute import substitute
from ..machine import MachineModel
from .elements import NotFusable, decided, letter_sizes, split_spec
from .groups import Group
from .indexing import ZERO, ravel, unravel
from .tiles import choose
from .ways import Flat, Problem, Strategy

if TYPE_CHECKING:
    from .plan import Planner


@dataclass
class Dim:
    """A run of letters that every operand steps through alike, as one loop variable.

    Attributes:
        var: the variable, or zero where the size is 1.
        a, b, c: strides in the operands and the result (0: does not occur).
        parts: where several dimensions are taken as one, (size, stride in B) of each. Then `b` is 0, and `c`
            is where it is not constant.
        sub: the dimensions that a tile's rows take as one.
    """

    letters: str
    size: int
    var: Expr
    a: int
    b: int
    c: int
    parts: tuple[tuple[int, int], ...] = ()
    sub: tuple[Dim, ...] = ()


def joined(letters: list[str], sizes: dict[str, int], strides: dict[str, tuple[int, int, int]]) -> list[Dim]:
    """Letters as dimensions without variables: those that lie behind each other in both operands and the
    result are one, and those of size 1 are gone unless there is no other."""
    runs: list[Dim] = []
    for c in letters:
        a, b, cs = strides[c]
        n = sizes[c]
        if n == 1 and len(letters) > 1:
            continue
        if runs:
            last = runs[-1]
            if (last.a, last.b, last.c) == (a * n, b * n, cs * n):
                runs[-1] = Dim(last.letters + c, last.size * n, ZERO, a, b, cs)
                continue
        runs.append(Dim(c, n, ZERO, a, b, cs))
    return runs


class ContractGroup(Group):
    """One contraction and its epilogue.

    Attributes:
        batch, rows, cols, inner: dimensions; the last of `rows`, `cols` is tiled, the others are outer loops.
        a, b: loads of the operands over the dimensions' variables (after `strategy.swap`).
        local: stands for the result's element.
        shares: values that this group writes a part of (joined.py): the member that is the part, and where an
            element of it goes.
    """

    kind = "contract"
    multi = True

    def __init__(self, plan: Planner, id: int, node: Node) -> None:
        super().__init__(plan, id)
        self.node = node
        self.result = node.results[0]
        self.acc = opmath(self.result.type.dtype)
        self.local = Local(self.result.name or "dot", self.acc)
        self.windows = (False, False)  # which operands have fewer elements in memory than in their type
        self.masks: list[Expr | None] = [None, None]  # where the operands are not zero, by letters' variables
        self.vars: dict[str, Expr] = {}  # of the letters
        self.by_shape: dict[tuple[int, ...], tuple[Expr, ...]] = {}
        self.shares: dict[Value, tuple[Value, Expr]] = {}
        self.machine = plan.machine

    def take(self) -> None:
        """Makes the group compute its node. Raises NotFusable where an operand is not one affine load."""
        node = self.node
        sizes = letter_sizes(node)
        spec_a, spec_b, out = split_spec(node)
        vars_: dict[str, Expr] = {c: Var(c, n) if n != 1 else ZERO for c, n in sizes.items()}
        self.begin()
        loads: list[Load] = []
        for o, letters in zip(node.operands, (spec_a, spec_b)):
            e = self.elements.at(o, tuple(vars_[c] for c in letters))
            if not isinstance(e, Load) or not self.takes(e) or len(e.index) != 1:
                raise NotFusable("operand is not a load")
            loads.append(e)
        strides: dict[str, tuple[int, int, int]] = {}
        c_stride = dict(zip(out, row_major([sizes[c] for c in out])))
        for letter, var in vars_.items():
            found = [stride_of(x.index[0], var) if isinstance(var, Var) else 0 for x in loads]
            if any(s is None for s in found):
                raise NotFusable("operand is not affine")
            strides[letter] = (found[0] or 0, found[1] or 0, c_stride.get(letter, 0))
        self.offsets = [_constant_part(x.index[0], vars_) for x in loads]
        self.buffers = [x.buffer for x in loads]
        self.masks = [x.mask for x in loads]
        self.vars = vars_
        self.windows = _overlapping(node, [prod(b.shape) for b in self.buffers])
        self.arrange(spec_a, spec_b, out, sizes, strides)
        self.members.append(self.result)
        self.plan.home[self.result] = self
        self.finish()
        if self.result in self.plan.live:
            self.plan.demand(self.result)

    def takes(self, e: Load) -> bool:
        """Whether an operand may be loaded so."""
        return e.mask is None

    def estimate(self, sources: tuple[tuple[Value, tuple[int, ...]], ...]) -> float:
        """Cycles of one thread if the operands were loads from `sources` (values and the operands' strides in
        them); for a group that is not used further."""
        self.machine = replace(self.plan.machine, threads=1)
        del self.elements  # they know the group, which so goes when it has been asked
        node = self.node
        sizes = letter_sizes(node)
        spec_a, spec_b, out = split_spec(node)
        a, b = (dict(zip(s, strides)) for s, (_, strides) in zip((spec_a, spec_b), sources))
        c = dict(zip(out, row_major([sizes[i] for i in out])))
        strides = {i: (a.get(i, 0), b.get(i, 0), c.get(i, 0)) for i in sizes}
        self.offsets, self.buffers = [ZERO, ZERO], [self.plan.buffers.get(v, _UNKNOWN) for v, _ in sources]
        self.windows = _overlapping(node, [v.type.numel for v, _ in sources])
        self.arrange(spec_a, spec_b, out, sizes, strides)
        return self.strategy.cycles

    def arrange(
        self,
        spec_a: str,
        spec_b: str,
        out: str,
        sizes: dict[str, int],
        strides: dict[str, tuple[int, int, int]],
    ) -> None:
        """Groups letters into dimensions and chooses the strategy."""

        def dims(letters: list[str]) -> list[Dim]:
            runs = joined(letters, sizes, strides)
            for k, d in enumerate(runs):
                runs[k] = Dim(
                    d.letters, d.size, Var(d.letters[0], d.size) if d.size != 1 else ZERO, d.a, d.b, d.c
                )
            return runs

        both = [c for c in out if c in spec_a and c in spec_b]
        self.batch = dims(both)
        self.rows = dims([c for c in out if c not in spec_b]) or [Dim("", 1, ZERO, 0, 0, 0)]
        self.cols = dims([c for c in out if c not in spec_a]) or [Dim("", 1, ZERO, 0, 0, 0)]
        inner = [c for c in spec_a if c not in out]
        self.inner = dims(sorted(inner, key=lambda c: -abs(strides[c][0]))) or [Dim("", 1, ZERO, 0, 0, 0)]
        flat_m, flat_n = _flattened(self.rows, "a"), _flattened(self.cols, "b")
        for runs in (self.rows, self.cols):
            # The tiled dimension is the one next to each other in the result, or else the longest; the others
            # stay as they are in memory.
            tiled = max(runs, key=lambda d: (d.c == 1, d.size))
            runs.sort(key=lambda d: d is tiled)
        m, n, k = self.rows[-1], self.cols[-1], self.inner[-1]
        outer = prod(d.size for d in (*self.batch, *self.rows[:-1], *self.cols[:-1]))
        problem = Problem(
            m.size, n.size, prod(d.size for d in self.inner), outer, m.a, k.a, k.b, n.b, m.c, n.c,
            self.acc.itemsize, tuple(d.size for d in self.inner),
            reuse_a=self.reuse("a"), reuse_b=self.reuse("b"), k_last=k.size,
            m_rows=self.rows[-2].size if len(self.rows) > 1 else 1,
            n_rows=self.cols[-2].size if len(self.cols) > 1 else 1,
            windows_a=self.windows[0], windows_b=self.windows[1],
            each_a=prod(d.size for d in (*self.batch, *self.rows[:-1]) if d.a),
            each_b=prod(d.size for d in (*self.batch, *self.cols[:-1]) if d.b),
            flat_m=flat_m and flat_m[0], flat_n=flat_n and flat_n[0],
            m_others=tuple(d.size for d in self.rows[:-1]), n_others=tuple(d.size for d in self.cols[:-1]),
        )  # fmt: skip
        self.strategy: Strategy = _choose(problem, self.machine)
        if self.strategy.swap:
            self.rows, self.cols = self.cols, self.rows
            for d in (*self.batch, *self.rows, *self.cols, *self.inner):
                d.a, d.b = d.b, d.a
            self.offsets.reverse()
            self.buffers.reverse()
            flat_n = flat_m
        if self.strategy.flat:
            assert flat_n is not None
            self.cols = [flat_n[1]]
        if self.strategy.merge:
            outer = self.rows.pop(self.strategy.merge - 1)
            m = self.rows[-1]
            letters_, size = outer.letters + m.letters, outer.size * m.size
            c = m.c if outer.c == m.c * m.size else 0
            self.rows[-1] = Dim(letters_, size, Var(letters_[0], size), 0, 0, c, sub=(outer, m))
        self.sizes = sizes
        letters: dict[str, Expr] = {}
        for d in (*self.batch, *self.rows, *self.cols):
            parts = unravel(d.var, tuple(sizes[c] for c in d.letters))
            letters.update(zip(d.letters, parts))
        zero: Expr = ZERO
        self.index = tuple(letters.get(c, zero) for c in out)
        self.flat = ravel(self.index, self.result.type.shape)
        self.by_shape[self.result.type.shape] = self.index

    def reuse(self, which: str) -> int:
        """How many runs of the group find an operand unchanged: in a loop, it can be packed once for all."""
        return self.plan.reuse.get(self.buffers[0 if which == "a" else 1], 1)

    @property
    def scattered(self) -> bool:
        """Whether neighbouring lanes are not neighbours in the result: no place for an epilogue."""
        n = self.cols[-1]
        if n.parts and not n.c:  # whole vectors are, mostly; else a long sum hides the rest
            return prod(d.size for d in self.inner) < LONG_SUM
        m = self.rows[-1]
        along = m.sub[-1].c if m.sub else m.c
        along_rows = along == 1 and m.size >= 4 and not self.strategy.dot and self.machine.masked_memory
        return n.c != 1 and n.size > 1 and not along_rows

    def element(self) -> Expr:
        dtype = self.result.type.dtype
        return self.local if dtype is self.acc else Cast(self.local, dtype)

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        shape = v.type.shape
        got = self.by_shape.get(shape)
        if got is None and v.type.numel == self.result.type.numel:
            got = self.by_shape[shape] = unravel(self.flat, shape)
        return got

    def try_join(self, v: Value) -> bool:
        return not self.scattered and super().try_join(v)

    def store_specs(self, v: Value) -> list[tuple[Expr, Expr]]:
        share = self.shares.get(v)
        return super().store_specs(v) if share is None else [(share[1], self.store_spec(share[0])[1])]

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        if v is not self.result:
            return super().own(v, index, mask)
        number = self.plan.number
        if number(ravel(index, v.type.shape)) != number(self.flat):
            raise NotFusable("contraction's result at another place")
        return self.element()


#: from this many terms on a sum costs more than an epilogue whose lanes are scattered
LONG_SUM = 256


def _flattened(dims: list[Dim], which: str) -> tuple[Flat, Dim] | None:
    """The dimensions, in the result's order, as one; None for a single one."""
    if len(dims) < 2:
        return None
    size = prod(d.size for d in dims)
    last = dims[-1]
    strides = [d.a if which == "a" else d.b for d in dims]
    together = all(d.c == e.c * e.size for d, e in pairwise(dims))
    letters = "".join(d.letters for d in dims)
    parts = tuple((d.size, s) for d, s in zip(dims, strides))
    whole = Dim(letters, size, Var(letters[0], size), 0, 0, last.c if together else 0, parts)
    run = last.size if strides[-1] == 1 else 1
    return Flat(size, whole.c, run), whole


#: stands for buffers that are not there yet
_UNKNOWN = Buffer("", float32, (), "arena")


def _overlapping(node: Node, counts: list[int]) -> tuple[bool, bool]:
    """Which operands are larger than the elements in memory they come from, by having some several times."""
    x, y = node.operands
    return x.type.numel > counts[0], y.type.numel > counts[1]


def affine_source(
    v: Value, home: dict[Value, Group], padded: bool = False
) -> tuple[Value, tuple[int, ...]]:
    """What to store so that elements of `v` are loads at places affine in its index: what the movement ops
    that make it move, or else the last of them that does more than reorder (padding). With the strides that
    `v` then has. `padded`: zeros around it are looked through, too; who loads sees where they are."""
    vars_ = [Var("i", n) for n in v.type.shape]
    index: tuple[Expr, ...] = tuple(i if i.extent != 1 else ZERO for i in vars_)
    found = at = v
    strides = row_major(v.type.shape)
    while at not in home and at.node is not None and at.node.op.kernel == "movement":
        node = at.node
        assert node.op.pull is not None
        types = tuple(o.type for o in node.operands)
        pieces = decided(node.op.pull(index, types, at.type, None, **node.attrs))
        zeros = padded and node.op.name == "pad" and node.attrs.get("value", 0) == 0
        if len(pieces) != 1 or not (pieces[0].where is None or zeros):
            break
        at, index = node.operands[pieces[0].operand], pieces[0].index
        flat = ravel(index, at.type.shape)
        steps = [stride_of(flat, i) for i in vars_]
        if None not in steps:
            found, strides = at, tuple(s or 0 for s in steps)
    return found, strides


_modelled = lru_cache(maxsize=4096)(choose)


class Tuning(threading.local):
    """Who chooses the ways of contractions, in this thread.

    Attributes:
        way: the one to take, whatever the problem.
        pick: asked, where set, instead of the model.
    """

    way: Strategy | None = None
    pick: Callable[[Problem, MachineModel], Strategy] | None = None


TUNING = Tuning()


@contextmanager
def fixed(way: Strategy) -> Iterator[None]:
    """Plans every contraction in this way, to measure it."""
    TUNING.way = way
    try:
        yield
    finally:
        TUNING.way = None


@contextmanager
def tuned(pick: Callable[[Problem, MachineModel], Strategy]) -> Iterator[None]:
    """Has `pick` choose the ways of contractions."""
    TUNING.pick = pick
    try:
        yield
    finally:
        TUNING.pick = None


def _choose(p: Problem, machine: MachineModel) -> Strategy:
    if TUNING.way is not None:
        return TUNING.way
    return TUNING.pick(p, machine) if TUNING.pick is not None else _modelled(p, machine)


def row_major(sizes: Sequence[int]) -> tuple[int, ...]:
    """Strides of contiguous contents."""
    out, stride = [], 1
    for n in reversed(sizes):
        out.append(stride)
        stride *= n
    return tuple(reversed(out))


def _constant_part(index: Expr, vars_: dict[str, Expr]) -> Expr:
    rest = substitute(index, {v: Const(0) for v in vars_.values() if isinstance(v, Var)})
    if not isinstance(rest, Const):
        raise NotFusable("operand starts at a place that is data")
    return rest
