"""Runs one GPU kernel of the loop IR with NumPy: `run_grid(kernel, place, turns)`. Used by
ir/loop_interpreter.py only.

All threads of some blocks run in lock step, as arrays: values have shape (threads, 1), in vector loops
(threads, lanes). That is one order among many, so the memory model is checked besides: per element of all
that the kernel writes it is known who wrote and read it last, and since which barrier. A thread that reads or
writes what another one of its block wrote with no barrier between, or what one of another block touched at
all, is a race (two that write at the same time too, whatever they write). Barriers and warp operations that
only some threads reach are errors, as are accesses outside a buffer. Memory of blocks and threads starts as a
pattern, so that a read before a write shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from .errors import VerifyError
from .expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var, WarpReduce
from .loops import (
    MMA_DEPTH,
    Alloc,
    Barrier,
    Batch,
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
    grid_of,
    statements,
    thread_extents,
)
from .scalar import NUMPY_SCALAR, numpy_cast

#: threads that run at once, if blocks are small
AT_ONCE = 1 << 15
WARP = 32


def run_grid(kernel: Kernel, place: Callable[[Buffer], np.ndarray], turns: dict[Var, int]) -> None:
    """Runs a kernel.

    Args:
        place: the memory of a buffer of the program.
        turns: values of the loop variables around the kernel.

    :raises IndexError: an access outside a buffer.
    :raises VerifyError: a race, or a barrier that not all threads reach.
    """
    found = grid_of(kernel.body)
    assert found is not None
    loops, body = found
    threads = thread_extents(body)
    written = {id(s.buffer) for s in statements(body) if isinstance(s, Store)}
    trackers: dict[int, _Tracker] = {}
    total, size = prod(f.extent for f in loops), prod(threads)
    step = max(1, AT_ONCE // max(size, 1))
    for first in range(0, total, step):
        count = min(step, total - first)
        _Blocks(kernel, place, written, trackers, first, count, loops, threads, turns).block(body, None)


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """f32 values as an mma of that kind takes them: tf32 has 10 bits of mantissa, ties go away from zero;
    f16 and bf16 are what they are."""
    if kind != "tf32":
        return values
    bits = values.view(np.uint32)
    return np.where(np.isnan(values), values, ((bits + 0x1000) & 0xFFFFE000).view(np.float32))


class _Tracker:
    """Who touched each element of a buffer last, and in which phase (number of barriers passed)."""

    def __init__(self, size: int, name: str, per_block: int) -> None:
        self.name = name
        self.per_block = per_block
        self.writer = np.full(size, -1, np.int64)
        self.wrote = np.zeros(size, np.int64)
        self.reader = np.full(size, -1, np.int64)  # -2: several of one block, -3: of several blocks
        self.read = np.zeros(size, np.int64)
        self.read_block = np.full(size, -1, np.int64)

    def fail(
        self, what: str, kernel: str, at: np.ndarray, a: np.ndarray, b: np.ndarray, bad: Any
    ) -> VerifyError:
        k = int(np.argmax(bad))
        one, two = (f"thread {int(x[k]) % self.per_block} of block {int(x[k]) // self.per_block}" if x[k] >= 0
                    else "other threads" for x in (a, b))  # fmt: skip
        return VerifyError(f"kernel {kernel}: {one} {what} element {int(at[k])} of {self.name}, which {two} "
                           "touched with no barrier between")  # fmt: skip

    def load(self, kernel: str, at: np.ndarray, thread: np.ndarray, phase: int) -> None:
        block = thread // self.per_block
        w = self.writer[at]
        bad = (w >= 0) & (w != thread) & ((self.wrote[at] == phase) | (w // self.per_block != block))
        if bad.any():
            raise self.fail("reads", kernel, at, thread, w, bad)
        r, old = self.reader[at], self.read[at]
        other = (self.read_block[at] != block) & (r != -1)
        several = (r != -1) & (old == phase) & (r != thread)
        self.reader[at] = np.where(other | (r == -3), -3, np.where(several, -2, thread))
        # Those who read one element in the same statement: the last one of them is stored above.
        lost = self.reader[at]
        twice = (lost >= 0) & (lost != thread)
        self.reader[at[twice]] = -2
        self.read_block[at] = block
        apart = self.read_block[at] != block
        self.reader[at[apart]] = -3
        self.read[at] = phase

    def store(self, kernel: str, at: np.ndarray, thread: np.ndarray, phase: int) -> None:
        block = thread // self.per_block
        w, r = self.writer[at], self.reader[at]
        bad = (w >= 0) & (w != thread) & ((self.wrote[at] == phase) | (w // self.per_block != block))
        if bad.any():
            raise self.fail("writes", kernel, at, thread, w, bad)
        bad = (r != -1) & (
            (r == -3) | (self.read_block[at] != block) | ((self.read[at] == phase) & (r != thread))
        )
        if bad.any():
            raise self.fail("writes", kernel, at, thread, r, bad)
        self.writer[at] = thread
        now = self.writer[at]
        if (now != thread).any():
            raise self.fail("writes", kernel, at, thread, now, now != thread)
        self.wrote[at] = phase


class _Blocks:
    """Some blocks of a kernel, on their way."""

    def __init__(
        self, kernel: Kernel, place: Callable[[Buffer], np.ndarray], written: set[int],
        trackers: dict[int, _Tracker], first: int, count: int, loops: Sequence[For], threads: tuple[int, ...],
        turns: dict[Var, int],
    ) -> None:  # fmt: skip
        self.kernel, self.place, self.written, self.trackers = kernel, place, written, trackers
        self.blocks, self.size, self.threads = count, prod(threads), threads
        n = self.count = count * self.size
        self.own = np.arange(n)[:, None]
        self.block_of = self.own // max(self.size, 1)
        self.id = self.own + first * self.size
        self.phase = 1
        self.values: dict[int, Any] = {id(v): np.int64(i) for v, i in turns.items()}
        rest = self.block_of + first
        for f in reversed(loops):
            self.values[id(f.var)] = rest % f.extent
            rest = rest // f.extent
        self.coordinates: list[Any] = []
        rest = self.own % max(self.size, 1)
        for extent in reversed(threads):
            self.coordinates.insert(0, rest % extent)
            rest = rest // extent
        self.memory: dict[int, tuple[str, np.ndarray]] = {}
        # copies ahead, in batches: memory, places and values
        self.copies: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[]]

    def fail(self, message: str) -> VerifyError:
        return VerifyError(f"kernel {self.kernel.name}: {message}")

    # --- statements; `mask` says which threads run them (None: all)

    def block(self, body: list[Stmt], mask: Any, depth: int = 0) -> None:
        for s in body:
            if isinstance(s, Let):
                self.values[id(s.local)] = self.eval(s.value, mask, {})
            elif isinstance(s, Store):
                self.store(s, mask)
            elif isinstance(s, For):
                self.loop(s, mask, depth)
            elif isinstance(s, Alloc):
                self.alloc(s.buffer)
            elif isinstance(s, If):
                inner = self.both(mask, self.eval(s.cond, mask, {}))
                if inner.any():
                    self.block(s.body, inner, depth)
            elif isinstance(s, While):
                inner = self.both(mask, True)
                while True:
                    inner = self.both(inner, self.eval(s.cond, inner, {}))
                    if not inner.any():
                        break
                    self.block(s.body, inner, depth)
            elif isinstance(s, Barrier):
                if mask is not None and not np.all(mask):
                    raise self.fail("a barrier is reached by some threads only")
                self.phase += 1
                if s.copies:
                    there = self.copies[: max(len(self.copies) - 1 - s.left, 0)] if s.left else self.copies
                    for data, at, value in (c for batch in there for c in batch):
                        data[at] = value
                    self.copies = self.copies[len(there) :] or [[]]
            elif isinstance(s, Batch):
                if mask is not None and not np.all(mask):
                    raise self.fail("a batch is ended by some threads only")
                self.copies.append([])
            elif isinstance(s, Matrices):
                self.matrices(s, mask)
            elif isinstance(s, Mma):
                self.mma(s, mask)
            else:
                raise TypeError(f"unknown statement {type(s).__name__}")

    def loop(self, s: For, mask: Any, depth: int) -> None:
        key = id(s.var)
        if s.kind == "thread":
            if depth >= len(self.threads) or self.threads[depth] != s.extent:
                raise self.fail(f"the loops over threads are {self.threads}, not {s.extent} at depth {depth}")
            self.values[key] = self.coordinates[depth]
            self.block(s.body, mask, depth + 1)
        elif s.kind == "vector":
            self.values[key] = np.arange(s.extent)[None, :]
            self.block(s.body, mask, depth)
        else:
            for i in range(0, s.extent, s.step):
                self.values[key] = np.int64(i)
                self.block(s.body, mask, depth)

    def both(self, mask: Any, cond: Any) -> Any:
        cond = np.broadcast_to(cond, (self.count, 1))
        return cond if mask is None else mask & cond

    def alloc(self, b: Buffer) -> None:
        rows = self.blocks if b.space == "shared" else self.count
        data = np.full(rows * b.nbytes, 0x5A, np.uint8).view(b.dtype.numpy).reshape(rows, b.size)
        self.memory[id(b)] = b.space, data
        if b.space == "shared":
            self.trackers[id(b)] = _Tracker(data.size, b.name, self.size)

    # --- memory

    def access(
        self, b: Buffer, index: Any, mask: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
        """The buffer's memory, flat; the places there of all threads and lanes; which of them count; their
        shape."""
        shape = np.broadcast_shapes(np.shape(index), np.shape(mask), (self.count, 1))
        index, active = np.broadcast_to(index, shape), np.broadcast_to(mask, shape)
        bad = active & ((index < 0) | (index >= b.size))
        if bad.any():
            where = f"{b.name} of {b.size} elements"
            raise IndexError(f"kernel {self.kernel.name}: index {index[bad][0]} is outside {where}")
        index = np.where(active, index, 0)
        if id(b) in self.memory:
            space, data = self.memory[id(b)]
            rows = self.block_of if space == "shared" else self.own
            return data.reshape(-1), index + rows * b.size, active, shape
        return self.place(b), index, active, shape

    def track(
        self, b: Buffer, at: np.ndarray, active: np.ndarray
    ) -> tuple[_Tracker, np.ndarray, np.ndarray] | None:
        """Where races are possible: the buffer's tracker, the places touched and by which thread."""
        private = id(b) in self.memory and self.memory[id(b)][0] != "shared"
        if private or id(b) not in self.written or self.count * self.kernel_blocks <= 1:
            return None
        tracker = self.trackers.get(id(b))
        if tracker is None:
            tracker = self.trackers[id(b)] = _Tracker(b.size, b.name, self.size)
        return tracker, at[active], np.broadcast_to(self.id, at.shape)[active]

    @property
    def kernel_blocks(self) -> int:
        found = grid_of(self.kernel.body)
        return prod(f.extent for f in found[0]) if found else 1

    def index(self, b: Buffer, index: tuple[Expr, ...], mask: Any, memo: dict[int, Any]) -> Any:
        if len(index) == 1:
            return self.eval(index[0], mask, memo)
        out: Any = np.int64(0)
        for n, i in zip(b.shape, index):
            out = out * n + self.eval(i, mask, memo)
        return out

    def store(self, s: Store, mask: Any) -> None:
        memo: dict[int, Any] = {}
        active = True if mask is None else mask
        if s.mask is not None:
            active = np.logical_and(active, self.eval(s.mask, mask, memo))
        value = self.eval(s.value, active if s.mask is not None else mask, memo)
        data, at, active, shape = self.access(s.buffer, self.index(s.buffer, s.index, mask, memo), active)
        found = self.track(s.buffer, at, active)
        if found is not None:
            found[0].store(self.kernel.name, found[1], found[2], self.phase)
        value = np.broadcast_to(value, np.broadcast_shapes(shape, np.shape(value)))[active]
        if s.ahead:
            self.copies[-1].append((data, at[active], value))
        else:
            data[at[active]] = value

    def mma(self, s: Mma, mask: Any) -> None:
        if self.size % WARP or (mask is not None and not np.all(mask)):
            raise self.fail(f"mma.{s.kind} is reached by some threads of a warp only")
        depth = MMA_DEPTH[s.kind]
        warps, t = self.count // WARP, np.arange(WARP)[:, None]
        q, r = t % 4, t // 4

        def share(b: Buffer, at: Expr, count: int) -> tuple[np.ndarray, np.ndarray]:
            data = self.memory[id(b)][1]
            index = np.broadcast_to(self.eval(at, mask, {}), (self.count, 1)) + np.arange(count)
            return data, index

        def operand(b: Buffer, at: Expr, count: int, row: np.ndarray, term: np.ndarray) -> np.ndarray:
            data, index = share(b, at, count)
            values = data[self.own, index].astype(np.float32)
            out = np.zeros((warps, row.max() + 1, depth))
            out[:, row, term] = rounded(values, s.kind).reshape(warps, WARP, count)
            return out

        e = np.arange(depth // 2)
        if depth == 8:
            a_row, a_term, b_term = r + 8 * (e % 2), q + 4 * (e // 2), q + 4 * e[:2]
        else:
            a_row, a_term = r + 8 * (e // 2 % 2), 2 * q + e % 2 + 8 * (e // 4)
            b_term = 2 * q + e[:4] % 2 + 8 * (e[:4] // 2)
        a = operand(s.a, s.a_at, depth // 2, a_row, a_term)
        b = operand(s.b, s.b_at, depth // 4, np.broadcast_to(r, b_term.shape), b_term)
        total = (a @ b.swapaxes(1, 2))[:, r + 8 * (e[:4] // 2), 2 * q + e[:4] % 2]
        data, index = share(s.sums, s.sums_at, 4)
        data[self.own, index] += total.reshape(self.count, 4).astype(np.float32)

    def matrices(self, s: Matrices, mask: Any) -> None:
        if self.size % WARP or (mask is not None and not np.all(mask)):
            raise self.fail("matrices are reached by some threads of a warp only")
        width = 16 // s.source.dtype.itemsize
        named = np.arange(self.count)[:, None] % WARP < 8 * s.count
        index = np.broadcast_to(self.eval(s.source_at, mask, {}), (self.count, 1))
        if (named & (index % width != 0)).any():
            raise self.fail(f"a row of matrices in {s.source.name} is not aligned")
        data, at, active, _ = self.access(s.source, index + np.arange(width), named)
        found = self.track(s.source, at, active)
        if found is not None:
            found[0].load(self.kernel.name, found[1], found[2], self.phase)
        rows = data[at].reshape(-1, WARP, width)[:, : 8 * s.count].reshape(-1, s.count, 8, width)
        if s.turned:
            rows = rows.swapaxes(2, 3)
        each = width // 4
        t, e = np.arange(WARP)[:, None], np.arange(each)
        shares = rows[:, :, t // 4, t % 4 * each + e].transpose(0, 2, 1, 3).reshape(self.count, -1)
        target = self.memory[id(s.to)][1]
        to = np.broadcast_to(self.eval(s.to_at, mask, {}), (self.count, 1)) + np.arange(s.count * each)
        target[self.own, to] = shares

    def load(self, e: Load, mask: Any, memo: dict[int, Any]) -> Any:
        active = True if mask is None else mask
        other: Any = np.zeros((), e.dtype.numpy)
        if e.mask is not None:
            active = np.logical_and(active, self.eval(e.mask, mask, memo))
            other = self.eval(e.other, mask, memo) if e.other is not None else other
        if e.buffer.size == 0 and not np.any(active):
            return other
        data, at, active, _ = self.access(e.buffer, self.index(e.buffer, e.index, mask, memo), active)
        found = self.track(e.buffer, at, active)
        if found is not None:
            found[0].load(self.kernel.name, found[1], found[2], self.phase)
        values = data[at]
        return values if e.mask is None else np.where(active, values, other).astype(data.dtype)

    # --- expressions

    def eval(self, e: Expr, mask: Any, memo: dict[int, Any]) -> Any:
        if isinstance(e, Const):
            return np.asarray(e.value).astype(e.dtype.numpy)
        if isinstance(e, (Var, Local)):
            return self.values[id(e)]
        got = memo.get(id(e))
        if got is None:
            got = memo[id(e)] = self.compute(e, mask, memo)
        return got

    def compute(self, e: Expr, mask: Any, memo: dict[int, Any]) -> Any:
        if isinstance(e, Load):
            return self.load(e, mask, memo)
        if isinstance(e, LaneReduce):
            n = e.var.extent
            self.values[id(e.var)] = np.arange(n)[None, :]
            x = self.eval(e.x, mask, {})
            x = np.broadcast_to(x, (self.count, n))
            while n > 1:
                n //= 2
                x = NUMPY_SCALAR.prim(e.name, x[:, :n], x[:, n : 2 * n])
            return x
        if isinstance(e, WarpReduce):
            return self.warp(e, mask, memo)
        args = [np.asarray(self.eval(a, mask, memo)) for a in e.args]
        if isinstance(e, Cast):
            return NUMPY_SCALAR.bitcast(args[0], e.dtype) if e.bits else numpy_cast(args[0], e.dtype)
        assert isinstance(e, Prim), type(e)
        return np.asarray(NUMPY_SCALAR.prim(e.name, *args))

    def warp(self, e: WarpReduce, mask: Any, memo: dict[int, Any]) -> Any:
        n = min(WARP, self.size)
        if self.size % n or n & (n - 1):
            raise self.fail(f"warp.{e.name} in a block of {self.size} threads")
        if mask is not None:
            some = np.broadcast_to(mask, (self.count, 1)).reshape(-1, n)
            if (some.any(axis=1) != some.all(axis=1)).any():
                raise self.fail(f"warp.{e.name} is reached by some threads of a warp only")
        x = np.broadcast_to(self.eval(e.x, mask, memo), (self.count, 1)).reshape(-1, n)
        lane = np.arange(n)
        while n > 1:
            n //= 2
            x = np.asarray(NUMPY_SCALAR.prim(e.name, x, x[:, lane ^ n]))
        return x.reshape(self.count, 1)
