"""Small kernels that do not depend on one another as one: `merge(steps, gpu)`. Each takes its share of the
blocks (the update of many parameters is one kernel). Kernels with barriers stay by themselves, and so do
those that fill the GPU. Used by gpu_schedule/__init__.py, before memory is planned.

    for bx in 3 block { A }   for bx in 2 block { B }   -->
    for bx in 5 block { if bx < 3 { A }  if bx >= 3 { let b = bx - 3; B } }
"""

from __future__ import annotations

from math import prod

from ...ir import dtypes
from ...ir.dataclass import dataclass, field
from ...ir.expr import Const, Expr, Load, Local, Prim, Var, index_add, walk
from ...ir.loops import (
    Alloc,
    Barrier,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Step,
    Stmt,
    Store,
    While,
    blocks_of,
    expressions,
    grid_of,
    statements,
    thread_extents,
)
from ...ir.substitute import substitute
from ..machine import GpuModel
from ..schedule.indexing import unravel
from ..schedule.nests import less
from .launch import both

#: how many kernels back one may be joined to; most members, buffers and statements of a kernel
WINDOW, MEMBERS, BUFFERS, STATEMENTS = 8, 64, 200, 2000
#: a kernel of more blocks for each multiprocessor fills the GPU by itself
FULL = 4


@dataclass
class Member:
    """One kernel, and what it touches."""

    kernel: Kernel
    loops: list[For]
    threads: list[For]
    body: list[Stmt]
    reads: set[Buffer] = field(default_factory=set)
    writes: set[Buffer] = field(default_factory=set)
    size: int = 0
    alone: bool = False

    @property
    def blocks(self) -> int:
        return prod(f.extent for f in self.loops)

    def independent(self, other: Member) -> bool:
        return not (self.writes & (other.reads | other.writes) or other.writes & self.reads)


def merge(steps: list[Step], gpu: GpuModel) -> list[Step]:
    """The steps, with kernels joined; those inside loops and branches are changed in place."""
    out: list[Step] = []
    groups: list[list[Member]] = []

    def flush() -> None:
        out.extend(_joined(g) for g in groups)
        groups.clear()

    for s in steps:
        if isinstance(s, Kernel):
            _place(_member(s, gpu), groups)
            continue
        flush()
        for block in blocks_of(s):
            block[:] = merge(block, gpu)
        out.append(s)
    flush()
    return out


def _place(m: Member, groups: list[list[Member]]) -> None:
    """Into the nearest group that it may join, or a new one."""
    for g in reversed(groups[-WINDOW:]):
        if not all(m.independent(x) for x in g):
            break
        if not m.alone and not g[0].alone and _fits([*g, m]):
            g.append(m)
            return
    groups.append([m])


def _fits(members: list[Member]) -> bool:
    touched = set[Buffer]().union(*(m.reads | m.writes for m in members))
    few = len(members) <= MEMBERS and len(touched) <= BUFFERS
    return few and sum(m.size for m in members) <= STATEMENTS


def _member(k: Kernel, gpu: GpuModel) -> Member:
    found = grid_of(k.body)
    assert found is not None
    loops, body = found
    inner, threads = body, []
    while len(inner) == 1 and isinstance(inner[0], For) and inner[0].kind == "thread":
        threads.append(inner[0])
        inner = inner[0].body
    m = Member(k, loops, threads, inner)
    seen: set[int] = set()
    for s in statements(body):
        m.size += 1
        if isinstance(s, Barrier) or (isinstance(s, Alloc) and s.buffer.space == "shared"):
            m.alone = True
        if isinstance(s, For) and s.kind == "thread" and s not in threads:
            m.alone = True
        if isinstance(s, Store):
            m.writes.add(s.buffer)
        stack: list[Expr] = list(expressions(s))
        while stack:
            e = stack.pop()
            if id(e) in seen:
                continue
            seen.add(id(e))
            if isinstance(e, Load):
                m.reads.add(e.buffer)
            stack.extend(e.args)
    m.alone = m.alone or not threads or m.blocks > FULL * gpu.sms
    return m


def _joined(members: list[Member]) -> Kernel:
    first = members[0].kernel
    if len(members) == 1:
        return first
    sizes = [prod(thread_extents(m.loops[-1].body)) for m in members]
    bx, tx = Var("bx", sum(m.blocks for m in members)), Var("tx", max(sizes))
    body: list[Stmt] = []
    start = 0
    for m, size in zip(members, sizes):
        cond = _within(bx, start, start + m.blocks)
        if size < tx.extent:
            cond = both(cond, less(tx, size))
        assert cond is not None
        lets: list[Stmt] = []
        env: dict[Expr, Expr] = {}
        for loops, flat in ((m.loops, index_add(bx, Const(-start))), (m.threads, tx)):
            for loop, part in zip(loops, unravel(flat, tuple(f.extent for f in loops))):
                if not isinstance(part, (Const, Var)):
                    local = Local(loop.var.name, dtypes.int64, loop.extent)
                    lets.append(Let(local, part))
                    part = local
                env[loop.var] = part
        rebind(m.body, env)
        body.append(If(cond, [*lets, *m.body]))
        start += m.blocks
    comment = comments_of([m.kernel for m in members], " | ")
    locs = tuple(dict.fromkeys(loc for m in members for loc in m.kernel.locs))
    flops, moved = (sum(getattr(m.kernel, x) for m in members) for x in ("flops", "bytes_moved"))
    nest = For(bx, bx.extent, "block", [For(tx, tx.extent, "thread", body)])
    return Kernel(first.name, [nest], comment, locs, flops, moved)


def _within(x: Var, start: int, stop: int) -> Expr | None:
    low = None if start == 0 else Prim("ge", (x, Const(start)), dtypes.bool_)
    return both(low, less(x, stop) if stop < x.extent else None)


def comments_of(kernels: list[Kernel], between: str) -> str:
    """What is said of kernels that become one."""
    found = list(dict.fromkeys(k.comment for k in kernels if k.comment))
    shown = between.join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return f"{shown} ({len(kernels)} times)" if len(found) == 1 else shown


def touched(body: list[Stmt]) -> set[Buffer]:
    """The buffers that statements load or store."""
    found = {s.buffer for s in statements(body) if isinstance(s, Store)}
    roots = {id(e): e for s in statements(body) for e in expressions(s)}
    return found | {e.buffer for root in roots.values() for e in walk(root) if isinstance(e, Load)}


def rebind(body: list[Stmt], env: dict[Expr, Expr]) -> None:
    """Replaces variables everywhere in a block, in place."""
    for s in body:
        if isinstance(s, Store):
            s.index = tuple(substitute(i, env) for i in s.index)
            s.value = substitute(s.value, env)
            s.mask = None if s.mask is None else substitute(s.mask, env)
        elif isinstance(s, Let):
            s.value = substitute(s.value, env)
        elif isinstance(s, (If, While)):
            s.cond = substitute(s.cond, env)
            rebind(s.body, env)
        elif isinstance(s, For):
            rebind(s.body, env)
