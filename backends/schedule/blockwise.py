"""Kernels one after the other that go over the same blocks of what they hand on become one loop over blocks:

    for a parallel { s[a] = q[a] k[a] }  for r parallel { p[r] = softmax(s[r]) }  for a parallel { p[a] v[a] }
    -->
    for a parallel { s = q[a] k[a]  for r { p[r] = softmax(s[r]) }  p[a] v[a] }

So a block is read again while it is in the cache, threads meet once, and what nobody else reads (the
scores above) needs memory for one block and not for all. Attention is such a chain, forward and backward; so
are products, rows and elementwise work over a batch of any kind. Nothing is computed in another order, so
results are the same bits.

It is found in the indices of the finished loops: every access to a buffer that one loop writes and another
reads must stay within the block. Inside a block the same is tried again with the loops it has. Called by
schedule/__init__.py, before memory is laid out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import gcd, lcm

from ...ir.dataclass import dataclass
from ...ir.expr import Expr, Var, index_add, index_mul, mentions, terms
from ...ir.loops import (
    Alloc,
    Buffer,
    For,
    Kernel,
    Step,
    Stmt,
    control_buffers,
    statements,
    walk_steps,
)
from ..machine import MachineModel
from .ratio import Ratio
from .shared_loops import accesses, last_value, relocated, touched, value_range

#: at most so many kernels become one, since their code is one function then
MOST_KERNELS = 8
#: a block handles at least so many bytes of what is handed on
LEAST_BLOCK = 4 << 10
#: scratch of one thread: of one buffer, and of all of a loop
MOST_SCRATCH, ALL_SCRATCH = 64 << 10, 192 << 10


@dataclass
class _Use:
    """How a loop uses a buffer: an iteration's accesses lie `low` to `high` behind `stride` times the
    variable and `base`, a sum of variables of loops around. No stride: it is not known. `stores`: the indices
    and masks of what is written."""

    stride: int | None
    base: frozenset[tuple[Expr, int]]
    low: int
    high: int
    stores: list[tuple[Expr, Expr | None]]
    reads: bool

    @property
    def writes(self) -> bool:
        return bool(self.stores)


class _Nest:
    """A loop and what it does with buffers from outside of it."""

    def __init__(self, loop: For) -> None:
        self.loop = loop
        own: set[Buffer] = set()
        last: dict[Var, int] = {}
        for s in statements(loop.body):
            if isinstance(s, Alloc):
                own.add(s.buffer)
            elif isinstance(s, For):
                last[s.var] = last_value(s)
        self.uses: dict[Buffer, _Use] = {}
        places: dict[tuple[Expr, Expr | None], tuple[int | None, frozenset[tuple[Expr, int]], int, int]] = {}
        for buffer, index, mask, writes in accesses(loop.body):
            if buffer in own:
                continue
            place = places.get((index, mask))
            if place is None:
                place = places[index, mask] = _place(index, mask, loop.var, last)
            use = self.uses.get(buffer)
            if use is None:
                use = self.uses[buffer] = _Use(*place, [], False)
            else:
                stride, base, low, high = place
                if stride != use.stride or base != use.base:
                    use.stride = None
                use.low, use.high = min(low, use.low), max(high, use.high)
            if writes:
                use.stores.append((index, mask))
            else:
                use.reads = True
        self.last = {**last, loop.var: last_value(loop)}


def _place(
    index: Expr, mask: Expr | None, var: Var, last: dict[Var, int]
) -> tuple[int | None, frozenset[tuple[Expr, int]], int, int]:
    """Stride, base, low and high of one access. `last`: the largest values of the variables inside the
    loop."""
    items, const = terms(index)
    stride = sum(c for t, c in items if t is var)
    base = frozenset((t, c) for t, c in items if isinstance(t, Var) and t is not var and t not in last)
    rest = [(t, c) for t, c in items if t is not var and (t, c) not in base]
    found = value_range(rest, const, last, mask)
    if stride <= 0 or found is None or any(mentions(t, var) for t, _ in rest if t.args):
        return None, base, 0, 0
    return stride, base, *found


def _apart(b: Buffer, nests: Sequence[_Nest]) -> bool:
    """Whether loops only write the buffer, each to columns of its own: parts of a concatenation."""
    uses = [n.uses[b] for n in nests]
    if any(u.reads for u in uses):
        return False
    rows = {abs(c) for u in uses for index, _ in u.stores for _, c in terms(index)[0]}
    return any(_columns_apart(nests, uses, row) for row in sorted(rows, reverse=True) if row > 1)


def _columns_apart(nests: Sequence[_Nest], uses: Sequence[_Use], row: int) -> bool:
    """Whether, in rows of so many elements, each loop stores to columns of its own."""
    taken: list[tuple[int, int]] = []
    for n, u in zip(nests, uses):
        low, high = row, -1
        for index, mask in u.stores:
            items, const = terms(index)
            near = [(t, c) for t, c in items if c % row]
            found = value_range(near, const % row, n.last, mask)
            if found is None or found[0] < 0 or found[1] >= row:
                return False
            low, high = min(low, found[0]), max(high, found[1])
        if any(low <= b and a <= high for a, b in taken):
            return False
        taken.append((low, high))
    return True


@dataclass
class _Cut:
    """How loops are cut into `count` blocks: iterations of each, and elements of each buffer handed on."""

    count: int
    parts: list[int]
    spans: dict[Buffer, int]


def _cut(nests: Sequence[_Nest]) -> _Cut | bool | None:
    """The smallest blocks that hold what the loops hand on. None: there are none yet; False: there will be
    none with more loops either."""
    readers: dict[Buffer, list[int]] = {}
    for k, n in enumerate(nests):
        for b in n.uses:
            readers.setdefault(b, []).append(k)
    handed = [b for b, ks in readers.items() if len(ks) > 1 and any(nests[k].uses[b].writes for k in ks)]
    handed = [b for b in handed if not _apart(b, [nests[k] for k in readers[b]])]
    for b in handed:
        base = nests[readers[b][0]].uses[b].base
        for k in readers[b]:
            use, loop = nests[k].uses[b], nests[k].loop
            if use.stride is None or use.base != base:
                return False
            if use.low < 0 or use.high >= use.stride * loop.step:
                return False
    if any(n.loop.kind == "parallel" for n in nests) and not all(_independent(n) for n in nests):
        return False
    groups: list[dict[int, Ratio]] = []
    for k in range(len(nests)):
        if not any(k in g for g in groups):
            group = _group(nests, k, handed, readers)
            if group is None:
                return False
            groups.append(group)
    if len(nests) - 1 not in groups[0]:
        return None
    counts: list[Ratio] = []
    for group in groups:  # whole steps of every loop
        unit = lcm(*[(r / nests[k].loop.step).denominator for k, r in group.items()])
        blocks = {Ratio(nests[k].loop.extent) / (r * unit) for k, r in group.items()}
        if len(blocks) > 1:
            return False
        counts.append(blocks.pop())
    if any(c.denominator > 1 for c in counts):
        return False
    count = gcd(*[c.numerator for c in counts])
    spans = {b: nests[readers[b][0]].loop.extent // count * _stride(nests[readers[b][0]], b) for b in handed}
    size = sum(span * b.dtype.itemsize for b, span in spans.items())
    more = next((d for d in range(1, count + 1) if count % d == 0 and d * size >= LEAST_BLOCK), count)
    count //= more
    return _Cut(count, [n.loop.extent // count for n in nests], {b: s * more for b, s in spans.items()})


def _independent(n: _Nest) -> bool:
    """Whether iterations may run side by side: each writes, and of what is written reads, only its own."""
    if n.loop.kind == "parallel":
        return True
    return all(
        u.stride is not None and u.low >= 0 and u.high < u.stride * n.loop.step
        for u in n.uses.values()
        if u.writes
    )


def _group(
    nests: Sequence[_Nest], first: int, handed: list[Buffer], readers: dict[Buffer, list[int]]
) -> dict[int, Ratio] | None:
    """The loops that hand on to the first or get something from it, or from others of them, and how many
    iterations of each are as much of what is handed on as one of the first. None: this is not constant."""
    ratio = {first: Ratio(1)}
    work = [first]
    while work:
        k = work.pop()
        for b in handed:
            if k not in readers[b]:
                continue
            span = ratio[k] * _stride(nests[k], b)
            for other in readers[b]:
                wanted = span / _stride(nests[other], b)
                if other not in ratio:
                    ratio[other] = wanted
                    work.append(other)
                elif ratio[other] != wanted:
                    return None
    return ratio


def _stride(n: _Nest, b: Buffer) -> int:
    stride = n.uses[b].stride
    assert stride is not None
    return stride


def in_blocks(steps: list[Step], machine: MachineModel) -> list[Step]:
    """The same steps with runs of kernels that hand on blocks as single kernels."""
    nests = [_nests(s) for s in steps]
    out: list[Step] = []
    users: dict[Buffer, int] | None = None
    i = 0
    while i < len(steps):
        found = _longest([n or None for n in nests[i : i + MOST_KERNELS]])
        if found is not None and _worth(found[1], nests[i : i + found[0]], machine):
            users = _users(steps, nests) if users is None else users
            kernels = [s for s in steps[i : i + found[0]] if isinstance(s, Kernel)]
            out.append(_joined(kernels, nests[i : i + found[0]], found[1], users, machine))
            i += found[0]
        else:
            out.append(steps[i])
            i += 1
    return out


def _nests(s: Step) -> list[_Nest]:
    """A kernel's loops; nothing where it is more than loops that can be cut."""
    if not isinstance(s, Kernel) or not all(isinstance(x, For) and _cuttable(x) for x in s.body):
        return []
    return [_Nest(x) for x in s.body if isinstance(x, For)]


def _cuttable(loop: For) -> bool:
    return loop.kind in ("serial", "parallel") and loop.extent % loop.step == 0 and loop.extent > loop.step


def _longest(units: Sequence[list[_Nest] | None]) -> tuple[int, _Cut] | None:
    """The longest run of units from the first on that can be cut into blocks, and how."""
    best: tuple[int, _Cut] | None = None
    run: list[_Nest] = []
    for k, unit in enumerate(units):
        if unit is None:
            break
        run += unit
        cut = _cut(run) if len(run) > 1 else None
        if cut is False:
            break
        if isinstance(cut, _Cut) and k and cut.count > 1:
            best = k + 1, cut
    return best


def _worth(cut: _Cut, nests: Sequence[list[_Nest]], machine: MachineModel) -> bool:
    """Whether what is handed on leaves the first cache, a block of it does not leave the second nor what all
    blocks read (weights, which loops by themselves would keep there), and there are blocks enough for all
    threads."""
    uses = [x for unit in nests for n in unit for x in n.uses.items()]
    common = {b for b, use in uses if use.reads and use.stride is None}
    if sum(b.nbytes for b in common) > machine.l2_bytes // 2:
        return False
    whole = sum(b.nbytes for b in cut.spans)
    block = sum(span * b.dtype.itemsize for b, span in cut.spans.items())
    even = cut.count % machine.threads == 0 or cut.count >= 4 * machine.threads
    even = even or _kind(nests) != "parallel"
    return whole > machine.l1_bytes and 2 * block <= machine.l2_bytes and even


def _kind(nests: Sequence[list[_Nest]]) -> str:
    """Of a loop over blocks of all these."""
    return "parallel" if any(n.loop.kind == "parallel" for unit in nests for n in unit) else "serial"


def _users(steps: Sequence[Step], nests: Sequence[list[_Nest]]) -> dict[Buffer, int]:
    """Of buffers that only kernels of these steps use: how many of them do."""
    out: Counter[Buffer] = Counter()
    elsewhere: set[Buffer] = set()
    for s, unit in zip(steps, nests):
        if isinstance(s, Kernel):
            out.update({b for n in unit for b in n.uses} if unit else touched(s.body))
        else:
            elsewhere |= _all_buffers(s)
    return {b: n for b, n in out.items() if b.space == "arena" and b not in elsewhere}


def _all_buffers(step: Step) -> set[Buffer]:
    found: set[Buffer] = set()
    for s in walk_steps([step]):
        found.update(control_buffers(s))
        if isinstance(s, Kernel):
            found |= touched(s.body)
    return found


def _joined(
    kernels: list[Kernel],
    nests: Sequence[list[_Nest]],
    cut: _Cut,
    users: dict[Buffer, int],
    machine: MachineModel,
) -> Kernel:
    own = Counter(b for unit in nests for b in {b for n in unit for b in n.uses})
    private = {b for b, n in own.items() if users.get(b) == n}
    whole, _ = _fuse([n for unit in nests for n in unit], cut, _kind(nests), private, machine)
    gone = private.intersection(cut.spans)
    names = dict.fromkeys(name for k in kernels for name in k.comment.split("+"))
    moved = sum(k.bytes_moved for k in kernels) - 2 * sum(b.nbytes for b in gone)
    locs = tuple(dict.fromkeys(loc for k in kernels for loc in k.locs))
    flops = sum(k.flops for k in kernels)
    return Kernel(kernels[0].name, [whole], "+".join(names), locs, flops, max(moved, 0))


def _fuse(
    nests: Sequence[_Nest], cut: _Cut, kind: str, private: set[Buffer], machine: MachineModel
) -> tuple[For, set[Buffer]]:
    """One loop over blocks, and the buffers it needs no more: what is private to the loops is scratch of a
    block."""
    block = Var(f"{nests[0].loop.var.name}_block", cut.count)
    used = 0
    scratch: dict[Buffer, tuple[Buffer, Expr]] = {}
    for b, span in cut.spans.items():
        size = span * b.dtype.itemsize
        if b in private and size <= MOST_SCRATCH and used + size <= ALL_SCRATCH:
            used += size
            # Loops around these give each turn its own.
            base = next(n.uses[b].base for n in nests if b in n.uses)
            shift = index_mul(block, -span)
            for outer, step in base:
                shift = index_add(shift, index_mul(outer, -step))
            scratch[b] = Buffer(b.name, b.dtype, (span,), "local"), shift
    body: list[Stmt] = []
    for n, part in zip(nests, cut.parts):
        start = index_mul(block, part)
        if part == n.loop.step:
            body += relocated(n.loop.body, {n.loop.var: start}, scratch)
            continue
        var = Var(n.loop.var.name, part)
        inner = relocated(n.loop.body, {n.loop.var: index_add(start, var)}, scratch)
        body.append(For(var, part, "serial", inner, n.loop.step))
    private = private | {new for new, _ in scratch.values()}
    body, gone = _fuse_inside(body, private, machine)
    body[:0] = [Alloc(new) for new, _ in scratch.values() if new not in gone]
    return For(block, cut.count, kind, body), set(scratch)


def _fuse_inside(
    body: list[Stmt], private: set[Buffer], machine: MachineModel
) -> tuple[list[Stmt], set[Buffer]]:
    """Runs of a block's loops as loops over smaller blocks, where that brings what they hand on into the
    first cache; and the buffers these need no more."""
    out: list[Stmt] = []
    gone: set[Buffer] = set()
    all_units = [[_Nest(s)] if isinstance(s, For) and _cuttable(s) else None for s in body]
    i = 0
    while i < len(body):
        units = all_units[i:]
        found = _longest(units)
        if found is None or sum(n * b.dtype.itemsize for b, n in _whole(found[1])) <= machine.l1_bytes // 2:
            out.append(body[i])
            i += 1
            continue
        count, cut = found
        nests = [unit[0] for unit in units[:count] if unit is not None]
        beside: set[Buffer] = set()
        for k, unit in enumerate(all_units):
            if not i <= k < i + count:
                beside.update(unit[0].uses if unit is not None else touched([body[k]]))
        loop, scratch = _fuse(nests, cut, "serial", private - beside, machine)
        out.append(loop)
        gone |= scratch
        i += count
    return out, gone


def _whole(cut: _Cut) -> Iterator[tuple[Buffer, int]]:
    for b, span in cut.spans.items():
        yield b, span * cut.count
