"""What a kernel's statements use, found before any of them is written. Used by emit_kernel."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.expr import Expr, LaneReduce, Load, Var, walk
from ...ir.loops import (
    Alloc,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Matrices,
    Mma,
    Stmt,
    Store,
    While,
    expressions,
    statements,
)
from .emit_vector import divisor


def nest(s: Stmt, kinds: tuple[str, ...]) -> tuple[list[For], list[Stmt]]:
    """The perfect nest of loops of these kinds that begins here, and what is inside."""
    loops: list[For] = []
    body: list[Stmt] = [s]
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind in kinds:
        loops.append(body[0])
        body = body[0].body
    return loops, body


def thread_nests(body: list[Stmt]) -> Iterator[list[For]]:
    """The nests of thread loops in a block's body."""
    for s in body:
        if isinstance(s, For) and s.kind == "thread":
            yield nest(s, ("thread",))[0]
        elif isinstance(s, (For, If, While)):
            yield from thread_nests(s.body)


def trips(loop: For) -> int:
    """How many turns a loop takes."""
    return -(-loop.extent // loop.step)


class Survey:
    """What is used, and how local buffers are indexed.

    Attributes:
        used: all nodes of expressions that something needs.
        dead: statements that nothing needs.
        loaded, stored: buffers that are.
        own: buffers allocated in the kernel.
        flat: those indexed by one number, whatever their shape; `plain`: single variables.
        steps: of each loop variable and named value, what it is a multiple of.
        free: what the kernel is passed: what is read, what is written, loop variables.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.used: set[Expr] = set()
        self.loaded: set[Buffer] = set()
        self.stored: set[Buffer] = set()
        self.own: set[Buffer] = set()
        self.steps: dict[Expr, int] = {}
        bound: set[Var] = set()
        flat: set[Buffer] = set()
        free: dict[Buffer | Var, None] = {}
        inner: set[Var] = set()
        seen: set[Expr] = set()
        listed = list(statements(kernel.body))
        dead: set[Stmt] = set()
        scratch = {s.buffer for s in listed if isinstance(s, Alloc)} - _loaded(listed)
        for s in reversed(listed):  # names are used after they are made
            if (isinstance(s, Let) and s.local not in self.used) or (
                isinstance(s, Store) and s.buffer in scratch
            ):
                dead.add(s)
                continue
            for root in expressions(s):
                if root not in self.used:
                    self.used.update(walk(root))
        for s in listed:
            if s in dead:
                continue
            if isinstance(s, For):
                bound.add(s.var)
                self.steps[s.var] = s.step
            elif isinstance(s, Let):
                self.steps[s.local] = divisor(s.value, self.steps)
            elif isinstance(s, Alloc):
                self.own.add(s.buffer)
            elif isinstance(s, Mma):
                self.stored.add(s.sums)
                self.loaded.update((s.sums, s.a, s.b))
                flat.update(b for b in (s.sums, s.a, s.b) if len(b.shape) != 1)
            elif isinstance(s, Matrices):
                self.stored.add(s.to)
                self.loaded.update((s.to, s.source))
                flat.update(b for b in (s.to, s.source) if len(b.shape) != 1)
            elif isinstance(s, Store):
                self.stored.add(s.buffer)
                free.setdefault(s.buffer)
                if len(s.index) != len(s.buffer.shape):
                    flat.add(s.buffer)
            for root in expressions(s):
                for e in walk(root):
                    if e in seen:
                        continue
                    seen.add(e)
                    if isinstance(e, Load):
                        self.loaded.add(e.buffer)
                        free.setdefault(e.buffer)
                        if len(e.index) != len(e.buffer.shape):
                            flat.add(e.buffer)
                    elif isinstance(e, Var):
                        free.setdefault(e)
                    elif isinstance(e, LaneReduce):
                        inner.add(e.var)
        self.dead = dead
        self.flat = flat
        self.plain = {b for b in self.own if b.size == 1 and b.space != "shared"}
        found: list[Buffer | Var] = [
            x
            for x in free
            if (isinstance(x, Var) and x not in bound and x not in inner)
            or (isinstance(x, Buffer) and x not in self.own and x.space != "const")
        ]
        # What is read, what is written, loop variables.
        self.free = sorted(found, key=lambda x: 2 if isinstance(x, Var) else int(x in self.stored))


def _loaded(listed: list[Stmt]) -> set[Buffer]:
    """The buffers that something is loaded from."""
    used = {b for s in listed if isinstance(s, Mma) for b in (s.sums, s.a, s.b)}
    used |= {b for s in listed if isinstance(s, Matrices) for b in (s.to, s.source)}
    return used | {
        e.buffer for s in listed for root in expressions(s) for e in walk(root) if isinstance(e, Load)
    }
