"""A GPU kernel under construction: its block and thread loops, the coordinates of a thread, and the values of
domain variables in terms of them. Base of the emitters of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from ...ir import dtypes
from ...ir.dataclass import dataclass
from ...ir.expr import Const, Expr, Local, Prim, Var, WarpReduce, index_add
from ...ir.loops import Alloc, Buffer, For, Let, Stmt
from ..machine import GpuModel
from ..schedule.elements import S
from ..schedule.indexing import ZERO, Numbering, unravel
from ..schedule.nests import less
from ..schedule.scopes import Lowering, Scope

#: threads of a block where nothing asks for more or fewer
THREADS = 256
#: blocks of so many threads that a multiprocessor holds at once; how often they must fill the GPU for loops
RESIDENT, WAVES = 8, 4
#: of blocks of however few threads
MOST_RESIDENT = 32
#: of all block loops but the innermost
MOST_BLOCKS = 65535


@dataclass
class Target:
    """What emitters need to know: the GPU, where buffers are placed, how expressions are numbered."""

    gpu: GpuModel
    place: Callable[[Buffer], Buffer]
    number: Numbering


class Launch:
    """One kernel. Loops of a single turn have the variable zero.

    Attributes:
        block: the scope of a block: shared buffers.
        scope: the scope of a thread.
        blocks, threads: the loops' variables, outermost first.
    """

    def __init__(
        self, low: Lowering, blocks: Sequence[tuple[str, int]], threads: Sequence[tuple[str, int]]
    ) -> None:
        self.low = low
        self.top = scope = Scope(low)
        self.blocks: list[Expr] = []
        self.threads: list[Expr] = []
        sizes = [n for _, n in blocks]
        apart = any(n > MOST_BLOCKS for n in sizes[:-1])
        for name, n in [("bx", prod(sizes))] if apart else blocks:
            v = Var(name, n)
            scope = scope.loop(v, n, "block")
            self.blocks.append(v if n > 1 else ZERO)
        self.block = scope
        for name, n in threads:
            v = Var(name, n)
            scope = scope.loop(v, n, "thread")
            self.threads.append(v if n > 1 else ZERO)
        self.scope = scope
        low.floor = scope.depth
        if apart:
            parts = unravel(self.blocks[0], tuple(sizes))
            self.blocks = [index_let(scope, name, p, n) for (name, n), p in zip(blocks, parts)]

    def shared(self, name: str, dtype: dtypes.DType, size: int) -> Buffer:
        """A buffer of the block."""
        b = Buffer(name, dtype, (size,), "shared")
        self.block.stmts.append(Alloc(b))
        return b

    def finish(self) -> list[Stmt]:
        """Closes all loops; the kernel's body."""
        close(self.scope, self.top)
        self.low.floor = 0
        return self.top.stmts


def close(scope: Scope, outer: Scope) -> None:
    """Closes `scope` and all around it up to `outer`."""
    while scope is not outer:
        scope.close()
        assert scope.parent is not None
        scope = scope.parent


def index_let(scope: Scope, name: str, value: Expr, extent: int) -> Expr:
    """A name for an index in [0, extent)."""
    if isinstance(value, (Const, Var, Local)):
        return value
    local = Local(name, dtypes.int64, extent)
    scope.stmts.append(Let(local, value))
    return local


def define_parts(scope: Scope, variables: Sequence[Expr], sizes: Sequence[int], flat: Expr) -> None:
    """Gives the variables of a split their values at the flat position `flat`, which the scope knows to be
    inside."""
    for var, n, part in zip(variables, sizes, unravel(flat, tuple(sizes))):
        if isinstance(var, Var):
            scope.define(var, index_let(scope, var.name, part, n))


def serial_nest(scope: Scope, variables: Sequence[Expr], sizes: Sequence[int]) -> Scope:
    """Serial loops over the variables of a split."""
    for var, n in zip(variables, sizes):
        if isinstance(var, Var):
            v = Var(var.name, n)
            scope = scope.loop(v, n, "serial")
            scope.define(var, v)
    return scope


def split_count(count: int, threads: int = THREADS) -> tuple[int, int]:
    """(blocks, threads of a block) for `count` threads."""
    if count == 1:
        return 1, 1
    threads = min(threads, -(-count // 32) * 32)
    return -(-count // threads), threads


def grid_turns(blocks: int, threads: int, gpu: GpuModel) -> tuple[int, int]:
    """(turns, blocks of each): all in one, or, where they would fill the GPU more than a few times over, as
    many blocks as it holds at once, which loop over the grid."""
    room = max(min(RESIDENT * THREADS // threads, MOST_RESIDENT), 1) * gpu.sms
    if blocks <= WAVES * room:
        return 1, blocks
    turns = -(-blocks // room)
    return turns, -(-blocks // turns)


def flat_launch(
    low: Lowering, count: int, name: str = "i", threads: int = THREADS, gpu: GpuModel | None = None
) -> tuple[Launch, Scope, Expr]:
    """One thread for each of `count` positions: the kernel, the scope of those inside, the position. With
    `gpu`, more positions than fill it a few times over are met in turns by as many threads as it holds: no
    blocks are started for a few instructions each, and a thread has several loads on their way."""
    blocks, size = split_count(count, threads)
    turns, blocks = grid_turns(blocks, size, gpu) if gpu is not None else (1, blocks)
    k = Launch(low, [("bx", blocks)], [("tx", size)])
    flat = k.blocks[0] * size + k.threads[0]
    scope = k.scope
    if turns > 1:
        turn = Var("turn", turns)
        scope = scope.loop(turn, turns, "serial")
        flat = index_add(turn * (blocks * size), flat)
    if turns * blocks * size > count:
        scope = scope.branch(less(flat, count))
    return k, scope, index_let(scope, name, flat, count)


def warp_reduce(combine: str, x: Expr) -> Expr:
    """The combination over a warp, in a type that primitives take."""
    if combine in ("minimum", "maximum") and x.dtype.kind == "b":
        combine = "and_" if combine == "minimum" else "or_"
    return WarpReduce(combine, x)


def single_thread(body: list[Stmt]) -> list[Stmt]:
    """Straight-line or serial code as a kernel of one thread."""
    thread = For(Var("tx", 1), 1, "thread", body)
    return [For(Var("bx", 1), 1, "block", [thread])]


def both(a: Expr | None, b: Expr | None) -> Expr | None:
    """The conjunction of two conditions, None being true."""
    if a is None or b is None:
        return a if b is None else b
    return Prim("and_", (a, b), dtypes.bool_)


def power_below(n: int) -> int:
    """The largest power of two <= n, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


__all__ = [
    "THREADS", "Launch", "S", "Target", "both", "close", "define_parts", "flat_launch", "grid_turns",
    "index_let", "power_below", "serial_nest", "single_thread", "split_count", "warp_reduce",
]  # fmt: skip
