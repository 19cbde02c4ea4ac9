"""The memory planner: every arena buffer of a LoopProgram gets an offset, so that buffers alive at the same
time never overlap and the arena is small. Called by the scheduler; anyone may call it again after changing a
program.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.expr import Const, Load, Local, Var
from ..ir.loops import Buffer, LoopProgram, Store, expressions, statements

#: arena offsets are multiples of this
ALIGNMENT = 64


@dataclass
class Lifetime:
    """The kernels from the first to the last that touches a buffer, both included."""

    buffer: Buffer
    first: int
    last: int


def lifetimes(program: LoopProgram) -> list[Lifetime]:
    """Of every arena buffer, in order of first use."""
    found: dict[Buffer, Lifetime] = {}
    seen: set[int] = set()

    def touch(b: Buffer, k: int) -> None:
        if b.space != "arena":
            return
        life = found.get(b)
        if life is None:
            found[b] = Lifetime(b, k, k)
        else:
            life.last = k

    for k, kernel in enumerate(program.kernels):
        seen.clear()
        for s in statements(kernel.body):
            if isinstance(s, Store):
                touch(s.buffer, k)
            stack = list(expressions(s))
            while stack:
                e = stack.pop()
                kind = type(e)
                if kind is Const or kind is Var or kind is Local or id(e) in seen:
                    continue
                seen.add(id(e))
                if kind is Load:
                    touch(e.buffer, k)  # type: ignore[attr-defined]
                stack.extend(e.args)
    return list(found.values())


def plan(program: LoopProgram) -> int:
    """Sets the offset of every arena buffer and `program.arena_bytes`; lists the buffers in `program.temps`.
    Gives the arena's size in bytes.

    Large buffers are placed first, each in the tightest gap that is free for its whole lifetime.
    """
    lives = lifetimes(program)
    placed: list[tuple[int, int, Lifetime]] = []  # start, end, whose
    size = 0
    for life in sorted(lives, key=lambda x: (-x.buffer.nbytes, x.first)):
        need = -(-max(life.buffer.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        busy = sorted(
            (s, e) for s, e, other in placed if other.first <= life.last and life.first <= other.last
        )
        best: tuple[int, int] | None = None  # gap, start
        at = 0
        for start, end in busy:
            if start - at >= need and (best is None or start - at < best[0]):
                best = (start - at, at)
            at = max(at, end)
        offset = best[1] if best is not None else at
        life.buffer.offset = offset
        placed.append((offset, offset + need, life))
        size = max(size, offset + need)
    program.temps = [b for b in program.temps if b.space != "arena"] + [x.buffer for x in lives]
    program.arena_bytes = size
    return size
