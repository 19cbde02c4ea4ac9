"""The memory planner: every arena buffer of a LoopProgram gets an offset, so that buffers alive at the same
time never overlap and the arena is small. Called by the scheduler; anyone may call it again after changing a
program.
"""

from __future__ import annotations

import numpy as np

from ..ir.accesses import loads_of
from ..ir.dataclass import dataclass
from ..ir.loops import (
    Branch,
    Buffer,
    Kernel,
    LoopProgram,
    Repeat,
    Step,
    Store,
    WhileStep,
    expressions,
    statements,
)

#: arena offsets are multiples of this
ALIGNMENT = 64


@dataclass
class Lifetime:
    """The places in the program from the first to the last that touches a buffer, both included. Kernels, and
    what loops and branches do by themselves, are numbered in the order they are written down."""

    buffer: Buffer
    first: int
    last: int


@dataclass
class _Loop:
    """The places that a loop covers."""

    first: int
    last: int
    parent: _Loop | None


def lifetimes(program: LoopProgram) -> list[Lifetime]:
    """Of every arena buffer, in order of first use.

    What a loop body writes before it reads it, and nothing outside touches, lives within one turn. All else
    that a loop touches lives as long as the loop: it comes from before, or from the turn before.
    """
    return _Lifetimes().run(program)


class _Lifetimes:
    def __init__(self) -> None:
        self.at = 0
        self.found: dict[Buffer, Lifetime] = {}
        self.loop: _Loop | None = None
        #: for each buffer the loops that touch it, and whether the first touch in them reads
        self.touched: dict[Buffer, dict[int, tuple[_Loop, bool]]] = {}

    def run(self, program: LoopProgram) -> list[Lifetime]:
        self.steps(program.steps)
        for b, loops in self.touched.items():
            life = self.found[b]
            # Inner loops first: what then lives as long as one may turn out to be from outside the next.
            for loop, reads in reversed(loops.values()):
                if reads or life.first < loop.first or life.last > loop.last:
                    life.first, life.last = min(life.first, loop.first), max(life.last, loop.last)
        return list(self.found.values())

    def touch(self, b: Buffer, reads: bool, around: bool | None = None) -> None:
        """`around`: whether the loops around the innermost one count it as read, if that differs."""
        if b.space != "arena":
            return
        life = self.found.get(b)
        if life is None:
            self.found[b] = Lifetime(b, self.at, self.at)
        else:
            life.last = self.at
        loop = self.loop
        if loop is not None:
            loops = self.touched.setdefault(b, {})
            chain = []
            while loop is not None and id(loop) not in loops:
                chain.append(loop)
                loop = loop.parent
            outside = reads if around is None else around
            loops.update((id(x), (x, reads if x is self.loop else outside)) for x in reversed(chain))

    def steps(self, steps: list[Step]) -> None:
        for s in steps:
            if isinstance(s, Kernel):
                self.kernel(s)
            elif isinstance(s, Branch):
                self.touch(s.cond, True)
                self.steps(s.then)
                self.steps(s.other)
                continue
            else:
                self.enter(s)
            self.at += 1

    def enter(self, s: Repeat | WhileStep) -> None:
        loop = self.loop = _Loop(self.at, self.at, self.loop)
        for names in s.rotate:
            for b in names:
                self.touch(b, True, around=False)
        if isinstance(s, WhileStep):
            self.steps(s.test)
            self.touch(s.cond, True)
        self.steps(s.body)
        loop.last = self.at
        self.loop = loop.parent
        if isinstance(s, WhileStep):
            for target, name in s.results:
                self.touch(name, True, around=False)
                self.touch(target, False)

    def kernel(self, kernel: Kernel) -> None:
        seen: set[int] = set()
        for s in statements(kernel.body):
            for e in loads_of(expressions(s), seen):
                self.touch(e.buffer, True)
            if isinstance(s, Store):
                self.touch(s.buffer, False)


def plan(program: LoopProgram) -> int:
    """Sets the offset of every arena buffer and `program.arena_bytes`; lists the buffers in `program.temps`.
    Gives the arena's size in bytes.

    Large buffers are placed first, each in the tightest gap that is free for its whole lifetime.
    """
    lives = lifetimes(program)
    order = sorted(lives, key=lambda x: (-x.buffer.nbytes, x.first))
    starts, ends, firsts, lasts = np.zeros((4, len(order)), np.int64)  # of what is placed
    size = 0
    for k, life in enumerate(order):
        need = -(-max(life.buffer.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        busy = np.flatnonzero((firsts[:k] <= life.last) & (lasts[:k] >= life.first))
        offset = 0
        if busy.size:
            busy = busy[np.argsort(starts[busy], kind="stable")]
            free = np.maximum.accumulate(ends[busy])  # from where on all below has ended
            gaps = starts[busy]
            gaps[1:] -= free[:-1]
            fits = np.flatnonzero(gaps >= need)
            best = fits[np.argmin(gaps[fits])] if fits.size else busy.size
            offset = int(free[best - 1]) if best else 0
        life.buffer.offset = offset
        starts[k], ends[k], firsts[k], lasts[k] = offset, offset + need, life.first, life.last
        size = max(size, offset + need)
    program.temps = [b for b in program.temps if b.space != "arena"] + [x.buffer for x in lives]
    program.arena_bytes = size
    return size
