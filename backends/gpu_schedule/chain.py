"""Kernels of one block that run one after the other as one: `chain(steps)`. To start a kernel takes longer
than most of them run; a barrier keeps their order as well. Used by gpu_schedule/__init__.py, after merge.py
and before memory is planned.

    for bx in 1 block { for t in 32 thread { A } }   for bx in 1 block { for t in 256 thread { B } }   -->
    for bx in 1 block { for t in 256 thread { if t < 32 { A } }  barrier  for t in 256 thread { B } }
"""

from __future__ import annotations

from math import prod

from ...ir import dtypes
from ...ir.dataclass import dataclass
from ...ir.expr import Expr, Local, Var, WarpReduce, walk
from ...ir.loops import (
    Alloc,
    Barrier,
    Batch,
    For,
    If,
    Kernel,
    Let,
    Matrices,
    Mma,
    Step,
    Stmt,
    blocks_of,
    expressions,
    grid_of,
    statements,
)
from ..schedule.indexing import ZERO, unravel
from ..schedule.nests import less
from .merge import BUFFERS, MEMBERS, comments_of, rebind, touched

#: most statements of a chain, bytes of shared memory
STATEMENTS, SHARED = 600, 48 << 10


@dataclass
class Link:
    """One kernel of a single block: its shared buffers, its thread loops and what they run.

    Attributes:
        whole: it has barriers, so all threads of the block must run it.
        warps: it has shuffles, so whole warps must.
    """

    kernel: Kernel
    shared: list[Alloc]
    threads: list[For]
    body: list[Stmt]
    blocks: list[For]
    size: int
    whole: bool
    warps: bool

    @property
    def count(self) -> int:
        return prod(f.extent for f in self.threads)


def chain(steps: list[Step]) -> list[Step]:
    """The steps, with neighbours joined; those inside loops and branches are changed in place."""
    out: list[Step] = []
    links: list[Link] = []

    def flush() -> None:
        if links:
            out.append(_joined(links))
            links.clear()

    for s in steps:
        link = _link(s) if isinstance(s, Kernel) else None
        if link is not None:
            if not _fits([*links, link]):
                flush()
            links.append(link)
            continue
        flush()
        for block in blocks_of(s):
            block[:] = chain(block)
        out.append(s)
    flush()
    return out


def _link(k: Kernel) -> Link | None:
    """A kernel as part of a chain, if it may be one."""
    found = grid_of(k.body)
    if found is None or prod(f.extent for f in found[0]) != 1:
        return None
    loops, body = found
    shared = [s for s in body if isinstance(s, Alloc)]
    rest = [s for s in body if not isinstance(s, Alloc)]
    threads: list[For] = []
    while len(rest) == 1 and isinstance(rest[0], For) and rest[0].kind == "thread":
        threads.append(rest[0])
        rest = rest[0].body
    inside = list(statements(rest))
    if not threads or any(isinstance(s, For) and s.kind == "thread" for s in inside):
        return None
    if any(isinstance(s, (Mma, Matrices, Batch)) for s in inside):
        return None
    whole = any(isinstance(s, Barrier) for s in inside)
    warps = any(isinstance(e, WarpReduce) for s in inside for root in expressions(s) for e in walk(root))
    return Link(k, shared, threads, rest, loops, len(inside), whole, warps)


def _fits(links: list[Link]) -> bool:
    size = max(x.count for x in links)
    for x in links:
        if x.count != size and (x.whole or (x.warps and x.count % 32)):
            return False
    if any(x.warps for x in links) and size % 32 and size & (size - 1):
        return False
    if any(x.warps and x.count < 32 != size for x in links):
        return False
    room = sum(s.buffer.nbytes for x in links for s in x.shared)
    buffers = set().union(*(touched(x.kernel.body) for x in links))
    few = len(links) <= MEMBERS and len(buffers) <= BUFFERS and room <= SHARED
    return few and sum(x.size for x in links) <= STATEMENTS


def _joined(links: list[Link]) -> Kernel:
    first = links[0].kernel
    if len(links) == 1:
        return first
    size = max(x.count for x in links)
    body: list[Stmt] = [s for x in links for s in x.shared]
    for n, x in enumerate(links):
        t = Var("t", size)
        at: Expr = t if size > 1 else ZERO
        env: dict[Expr, Expr] = {f.var: ZERO for f in x.blocks}
        inner: list[Stmt] = []
        for loop, part in zip(x.threads, unravel(at, tuple(f.extent for f in x.threads))):
            if isinstance(part, Var) or loop.extent == 1:
                env[loop.var] = part if loop.extent > 1 else ZERO
                continue
            local = Local(loop.var.name, dtypes.int64, loop.extent)
            inner.append(Let(local, part))
            env[loop.var] = local
        rebind(x.body, env)
        inner += x.body
        guard = less(t, x.count) if x.count < size else None
        if n:
            body.append(Barrier())
        body.append(For(t, size, "thread", inner if guard is None else [If(guard, inner)]))
    locs = tuple(dict.fromkeys(loc for x in links for loc in x.kernel.locs))
    flops, moved = (sum(getattr(x.kernel, a) for x in links) for a in ("flops", "bytes_moved"))
    comment = comments_of([x.kernel for x in links], "; ")
    return Kernel(first.name, [For(Var("bx", 1), 1, "block", body)], comment, locs, flops, moved)
