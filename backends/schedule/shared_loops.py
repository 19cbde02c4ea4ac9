"""Loops over kernels whose rows never meet: threads share the rows, and each runs the whole loop on its own.

    repeat t { for r parallel { a[r] = f(h[r], t) }  for r { h[r] = g(a[r]) } }
    -->
    for block parallel { for t { for r in block { a[r] = f(h[r], t) }  for r in block { h[r] = g(a[r]) } } }

The batch of a recurrent network is such a loop. Threads then meet once and not twice a step, and what is
too small to be shared by itself is shared too. Nothing is computed in another order, so results are the same
bits. Called by schedule/__init__.py, before memory is laid out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd

from ...ir.accesses import loads_of
from ...ir.expr import (
    EXPR_SCALAR,
    Const,
    Expr,
    Load,
    Prim,
    Var,
    bounds,
    index_add,
    index_mul,
    stride_of,
    terms,
)
from ...ir.loops import (
    Alloc,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Repeat,
    Step,
    Stmt,
    Store,
    While,
    blocks_of,
    expressions,
    statements,
)
from ...ir.substitute import Memo, substitute
from ..machine import MachineModel
from .indexing import ravel
from .ratio import Ratio

#: at most so many kernels in a loop: their code is one function then
MOST_KERNELS = 16
#: at most so many steps of the first kernel's rows are one block
MOST_MULTIPLES = 16


def share_rows(steps: list[Step], machine: MachineModel) -> list[Step]:
    """The same steps with what loops can be shared as wholes as single kernels."""
    if machine.threads <= 1:
        return steps
    out: list[Step] = []
    for s in steps:
        for block in blocks_of(s):
            block[:] = share_rows(block, machine)
        shared = _shared(s, machine) if isinstance(s, Repeat) else None
        out.append(s if shared is None else shared)
    return out


def _shared(loop: Repeat, machine: MachineModel) -> Kernel | None:
    kernels = [k for k in loop.body if isinstance(k, Kernel)]
    if len(kernels) != len(loop.body) or loop.rotate or not 1 <= len(kernels) <= MOST_KERNELS:
        return None
    flops = loop.extent * sum(k.flops for k in kernels)
    if flops < machine.parallel_cycles * machine.flops_per_cycle:
        return None
    nests = [_Nest(k.body, k.body[0]) for k in kernels if isinstance(k.body[0], For)]
    if len(nests) != len(kernels) or any(n.loop.kind not in ("serial", "parallel") for n in nests):
        return None
    count = _blocks(nests)
    if count < 2:
        return None
    block = Var(f"{nests[0].loop.var.name}_block", count + 1)
    inside = _turns(loop, [s for n in nests for s in n.block(block)])
    rest = _turns(loop, [s for n in nests for s in n.rest(count)])
    body: list[Stmt] = [inside]
    if rest.body:  # rows that fill no block are one more task
        body = [
            If(EXPR_SCALAR.lt(block, Const(count)), [inside]), If(EXPR_SCALAR.ge(block, Const(count)), [rest])
        ]  # fmt: skip
    else:
        block.extent = count
    whole = For(block, block.extent, "parallel", body)
    comments = "; ".join(k.comment for k in kernels)
    locs = tuple(dict.fromkeys(loc for k in kernels for loc in k.locs))
    moved = loop.extent * sum(k.bytes_moved for k in kernels)
    return Kernel(kernels[0].name, [whole], f"{loop.extent} times {comments}", locs, flops, moved)


def _turns(loop: Repeat, body: list[Stmt]) -> For:
    """The body in a loop of its own."""
    turn = Var(loop.var.name, loop.extent)
    now: Expr = turn
    if loop.reverse:
        now = index_add(index_mul(turn, -1), Const(loop.extent - 1))
    return For(turn, loop.extent, "serial", relocated(body, {loop.var: now}))


class _Nest:
    """A kernel of the loop: an outermost loop over rows, or over all elements, and what else there is for
    rows that the first does not reach.

    Attributes:
        strides: of every written buffer, how far an iteration is from the next.
        part: iterations in a block.
    """

    def __init__(self, body: list[Stmt], loop: For) -> None:
        self.body = body
        self.loop = loop
        self.strides: dict[Buffer, int] = {}
        self.part = 0

    def block(self, block: Var) -> list[Stmt]:
        """The main loop's statements for one block."""
        loop = self.loop
        start = index_mul(block, self.part)
        if self.part == loop.step:
            return relocated(loop.body, {loop.var: start})
        inner = Var(loop.var.name, self.part)
        body = relocated(loop.body, {loop.var: index_add(start, inner)})
        return [For(inner, self.part, "serial", body, loop.step)]

    def rest(self, count: int) -> list[Stmt]:
        """The statements for what no block has."""
        loop = self.loop
        done = count * self.part
        out = relocated(self.body[1:], {})
        if done < loop.extent:
            inner = Var(loop.var.name, loop.extent - done)
            body = relocated(loop.body, {loop.var: index_add(inner, Const(done))})
            out.insert(0, For(inner, loop.extent - done, "serial", body, loop.step))
        return out


def _blocks(nests: list[_Nest]) -> int:
    """Into how many blocks the rows can be cut such that each writes, and of what is written reads, elements
    that no other block does, nor what is left over; 0 if they can't be. Sets `part` of the nests."""
    written: set[Buffer] = set()
    own: set[Buffer] = set()
    for n in nests:
        for s in statements(n.body):
            if isinstance(s, Store):
                written.add(s.buffer)
            elif isinstance(s, Alloc):
                own.add(s.buffer)
    written -= own
    for n in nests:
        for buffer, index, _, _ in accesses(n.loop.body):
            if buffer in written:
                stride = stride_of(index, n.loop.var)
                if not stride or stride < 0 or n.strides.setdefault(buffer, stride) != stride:
                    return 0
    parts = _parts(nests)
    if parts is None:
        return 0
    for n, part in zip(nests, parts):
        n.part = part
    count = min(n.loop.extent // n.part for n in nests)
    spans = {b: n.part * stride for n in nests for b, stride in n.strides.items()}
    rows = {b: b.size for b in written}
    for n in nests:
        within = {s.var for s in statements(n.body) if isinstance(s, For)}
        for buffer, index, _, _ in accesses(n.body):
            if buffer in written:
                far = [c for t, c in terms(index)[0] if isinstance(t, Var) and t not in within]
                rows[buffer] = gcd(rows[buffer], *far)
    if count < 2 or any(b not in spans or rows[b] < spans[b] * count for b in written):
        return 0
    return count if all(_apart(n, count, spans, rows) for n in nests) else 0


def _parts(nests: list[_Nest]) -> list[int] | None:
    """The fewest iterations of each nest that are the same rows of all buffers."""
    ratio: dict[int, Ratio] = {0: Ratio(1)}
    spans: dict[Buffer, Ratio] = {b: Ratio(s) for b, s in nests[0].strides.items()}
    changed = True
    while changed:
        changed = False
        for k, n in enumerate(nests):
            for b, stride in n.strides.items():
                if k in ratio and b not in spans:
                    spans[b] = stride * ratio[k]
                    changed = True
                elif k not in ratio and b in spans:
                    ratio[k] = spans[b] / stride
                    changed = True
                elif k in ratio and spans[b] != stride * ratio[k]:
                    return None
    if len(ratio) < len(nests):
        return None
    first = nests[0].loop.step
    for m in range(1, MOST_MULTIPLES + 1):
        parts = [ratio[k] * first * m for k in range(len(nests))]
        if all(p.denominator == 1 and p.numerator % n.loop.step == 0 for p, n in zip(parts, nests)):
            return [p.numerator for p in parts]
    return None


def _apart(n: _Nest, count: int, spans: dict[Buffer, int], rows: dict[Buffer, int]) -> bool:
    """Whether a block of the main loop stays within its span of every buffer, and what is left over behind
    the last block's and before the end of all rows. Whole multiples of all rows don't matter: the turns of
    the loop, and of loops around it, are so far from each other."""
    loop = n.loop
    last = {s.var: last_value(s) for s in statements(n.body) if isinstance(s, For)}
    if loop.extent % loop.step:
        return False
    for body, main in ((loop.body, True), (n.body[1:], False)):
        for buffer, index, mask, _ in accesses(body):
            if buffer not in spans:
                continue
            items, const = terms(index)
            near = [(t, c) for t, c in items if t is not loop.var and (t in last or not isinstance(t, Var))]
            found = value_range(near, const % rows[buffer], last, mask)
            if found is None:
                return False
            low, high = found
            if main:
                step = n.strides[buffer]
                if low < 0 or high + step * (n.part - loop.step) >= spans[buffer]:
                    return False
                high += step * (loop.extent - loop.step)
            elif low < spans[buffer] * count:
                return False
            if high >= rows[buffer]:
                return False
    return True


def accesses(body: list[Stmt]) -> Iterable[tuple[Buffer, Expr, Expr | None, bool]]:
    """Every load and store: the buffer, the flat index, the mask, whether it is a store."""
    for x in _touching(body):
        yield x.buffer, flat_index(x.index, x.buffer), x.mask, type(x) is Store


def touched(body: list[Stmt]) -> set[Buffer]:
    """The buffers that statements load from or store to."""
    return {x.buffer for x in _touching(body)}


def _touching(body: list[Stmt]) -> Iterator[Load | Store]:
    """Every load, the same object once, and every store."""
    seen: set[int] = set()
    for s in statements(body):
        yield from loads_of(expressions(s), seen)
        if type(s) is Store:
            yield s


def flat_index(index: tuple[Expr, ...], b: Buffer) -> Expr:
    return index[0] if len(index) == 1 else ravel(index, b.shape)


def last_value(loop: For) -> int:
    """The largest value of its variable."""
    return max(loop.extent - 1, 0) // loop.step * loop.step


def value_range(
    items: list[tuple[Expr, int]], const: int, last: dict[Var, int], mask: Expr | None
) -> tuple[int, int] | None:
    """The least and the largest value of a sum, where `mask` holds; None where that is unknown."""
    low = high = const
    for atom, n in items:
        r = (0, last[atom]) if isinstance(atom, Var) and atom in last else bounds(atom)
        if r is None:
            return None
        low += min(r[0] * n, r[1] * n)
        high += max(r[0] * n, r[1] * n)
    for limited, limit in _limits(mask):
        part, c = terms(limited)
        coefficients = {id(a): n for a, n in part}
        rest = [(a, n - coefficients.pop(id(a), 0)) for a, n in items]
        if not coefficients:  # the index is what the mask limits, and a rest
            beside = value_range([t for t in rest if t[1]], const - c, last, None)
            high = high if beside is None else min(high, beside[1] + limit - 1)
    return low, high


def _limits(mask: Expr | None) -> Iterable[tuple[Expr, int]]:
    """Of a conjunction, the parts `x < constant`."""
    if isinstance(mask, Prim) and mask.name == "and_":
        for a in mask.args:
            yield from _limits(a)
    elif isinstance(mask, Prim) and mask.name == "lt" and isinstance(mask.args[1], Const):
        yield mask.args[0], int(mask.args[1].value)


def relocated(
    body: list[Stmt], env: dict[Expr, Expr], scratch: dict[Buffer, tuple[Buffer, Expr]] | None = None
) -> list[Stmt]:
    """New statements with variables replaced, for a loop inside a parallel one. Accesses to buffers of
    `scratch` go to another one, so much further."""
    return _Relocation(env, scratch or {}).block(body)


class _Relocation:
    def __init__(self, env: dict[Expr, Expr], moved: dict[Buffer, tuple[Buffer, Expr]]) -> None:
        self.env = env
        self.moved = moved
        self.memo: Memo = {}

    def expr(self, e: Expr) -> Expr:
        return substitute(e, self.env, self.memo, self.load if self.moved else None)

    def load(self, e: Load) -> Expr:
        if e.buffer not in self.moved:
            return e
        new, shift = self.moved[e.buffer]
        return Load(new, (index_add(flat_index(e.index, e.buffer), shift),), e.mask, e.other)

    def block(self, body: list[Stmt]) -> list[Stmt]:
        out: list[Stmt] = []
        moved, expr = self.moved, self.expr
        for s in body:
            if isinstance(s, Prefetch) and s.buffer in moved:
                continue
            if isinstance(s, Store):
                buffer, index = s.buffer, tuple([expr(i) for i in s.index])
                mask = None if s.mask is None else expr(s.mask)
                if buffer in moved:
                    buffer, shift = moved[s.buffer]
                    index = (index_add(flat_index(index, s.buffer), shift),)
                s = Store(buffer, index, expr(s.value), mask, s.ahead)
            elif isinstance(s, Prefetch):
                s = Prefetch(s.buffer, tuple([expr(i) for i in s.index]), s.write)
            elif isinstance(s, Let):
                s = Let(s.local, expr(s.value))
            elif isinstance(s, For):
                kind = "serial" if s.kind == "parallel" else s.kind
                s = For(s.var, s.extent, kind, self.block(s.body), s.step)
            elif isinstance(s, (If, While)):
                s = type(s)(expr(s.cond), self.block(s.body))
            elif isinstance(s, Alloc):
                s = Alloc(s.buffer)
            out.append(s)
        return out
