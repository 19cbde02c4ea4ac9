"""Memory of tensors: 64-byte aligned blocks with a recycling allocator, seen as NumPy arrays when asked.

A `Buffer` is one tensor's contents. Executables pass `ptr` to native code; nothing here knows of graphs.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.errors import OpError
from ..ir.types import Type

ALIGN = 64
#: How the numbers that are read most often lie in memory.
_CELLS: dict[dtypes.DType, Any] = {
    dtypes.float32: ctypes.c_float, dtypes.float64: ctypes.c_double, dtypes.int64: ctypes.c_int64,
}  # fmt: skip
#: How much idle memory one block size may hold on to, and how many blocks of it at most.
_IDLE_BYTES, _IDLE_BLOCKS = 64 << 20, 64


def _idle_in_all() -> int:
    """How much idle memory large blocks may hold together."""
    try:
        return max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)
    except (AttributeError, ValueError, OSError):
        return 1 << 30


_IDLE_IN_ALL = _idle_in_all()
_clock = itertools.count()


class _Pool:
    """Idle blocks of one size."""

    __slots__ = ("idle", "limit", "size", "used")

    def __init__(self, size: int) -> None:
        self.size = size
        self.idle: list[_Block] = []
        self.limit = min(max(_IDLE_BYTES // size, 1), _IDLE_BLOCKS)
        self.used = 0

    def take(self) -> _Block:
        try:
            return self.idle.pop()
        except IndexError:
            return _Block(self)


class _LargePool(_Pool):
    """Blocks of which fewer than `_IDLE_BLOCKS` are kept. It knows when it was used last."""

    __slots__ = ()

    def take(self) -> _Block:
        self.used = next(_clock)
        return super().take()


def _bound(most: int) -> None:
    """Lets go of idle large blocks, those of sizes that were not wanted for longest first, until no more than
    so many bytes are left. No locks: it is called where an object goes, which may be anywhere."""
    pools = list(_large.values())
    total = sum([p.size * len(p.idle) for p in pools])
    if total <= most:
        return
    for p in sorted(pools, key=lambda p: p.used):
        while total > most:
            try:
                p.idle.pop()
            except IndexError:
                break
            total -= p.size


class _Block:
    """Raw memory; `ptr` is its first aligned address, `cell` a number there as it was last read."""

    __slots__ = ("base", "cell", "idle", "limit", "ptr", "raw")

    def __init__(self, pool: _Pool) -> None:
        try:
            self.raw = _raw(pool.size)
        except (MemoryError, ValueError):
            raise OpError(f"not enough memory for a tensor of {pool.size} bytes") from None
        self.base = _address(self.raw)
        self.ptr = (self.base + ALIGN - 1) & -ALIGN
        self.cell: Any = None
        self.idle = pool.idle
        self.limit = pool.limit


_NEW: Any = object.__new__
_pools: dict[int, _Pool] = {}
_large: dict[int, _Pool] = {}


def _raw(size: int) -> np.ndarray:
    try:
        return np.empty(size, np.uint8)
    except MemoryError:
        _bound(0)
        return np.empty(size, np.uint8)


def _pool(nbytes: int) -> _Pool:
    size = (nbytes + 2 * ALIGN - 1) & -ALIGN
    pool = _pools.get(size)
    if pool is None:
        pool = _pools[size] = (_LargePool if size > _IDLE_BYTES // _IDLE_BLOCKS else _Pool)(size)
        if pool.limit < _IDLE_BLOCKS:
            _large[size] = pool
    return pool


def _address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


class Buffer:
    """Contiguous row-major contents of one tensor.

    Attributes:
        type: dtype and shape.
        ptr: address of the first element.
    """

    __slots__ = ("_array", "_block", "ptr", "type")

    def __init__(self, type: Type, block: _Block | None, array: np.ndarray | None, ptr: int) -> None:
        self.type = type
        self._block = block
        self._array = array
        self.ptr = ptr

    @property
    def array(self) -> np.ndarray:
        """The contents as a NumPy array that shares the memory."""
        a = self._array
        if a is None:
            block = self._block
            assert block is not None
            start = self.ptr - block.base
            t = self.type
            a = block.raw[start : start + t.nbytes].view(t.dtype.numpy).reshape(t.shape)
            self._array = a
        return a

    def number(self) -> Any:
        """The Python number in a buffer of one element."""
        kind, block = _CELLS.get(self.type.dtype), self._block
        if kind is None or block is None:
            return scalar_at(self.array)
        cell = block.cell
        if cell.__class__ is not kind:
            cell = block.cell = kind.from_address(self.ptr)
        return cell.value

    def copy(self) -> Buffer:
        """The same contents in memory of their own."""
        return copy_of(self.array, self.type.dtype)

    def part(self, places: tuple[Any, ...], most: int) -> Buffer | None:
        """A copy of what is at `places` (ints and slices); None if it has more than so many bytes."""
        found = self.array[places]
        return None if found.nbytes > most else copy_of(found, self.type.dtype)

    def on(self, device: str | None, non_blocking: bool = False) -> Buffer:
        """The contents on a device (None: the CPU); itself if they are there. With `non_blocking` the copy
        may go on after this returns. Raises CudaError, OutOfMemoryError."""
        if self.type.device == device:
            return self
        from .cuda_buffers import moved

        return moved(self, device, non_blocking)

    def shared_outside(self) -> bool:
        """Whether memory that is not ours is still held by its owner (who may change it behind our back)."""
        return self._block is None and self._array is not None and sys.getrefcount(self._array) > 2

    def seen_outside(self) -> bool:
        """Whether a NumPy array over this memory is alive outside."""
        if self._array is None:
            return False
        if sys.getrefcount(self._array) > 2:
            return True
        # Three references are the block's, our array's and the call's.
        return self._block is None or sys.getrefcount(self._block.raw) > 3

    def __del__(self) -> None:
        try:
            block = self._block
        except AttributeError:  # an interrupt came while this was being made
            return
        if block is None:
            return
        if self._array is not None:
            self._array = None
            if sys.getrefcount(block.raw) > 2:  # a NumPy view of it lives on
                return
        if len(block.idle) < block.limit:
            block.idle.append(block)
            if block.limit < _IDLE_BLOCKS:
                _bound(_IDLE_IN_ALL)


def scalar_at(array: np.ndarray) -> Any:
    """The Python number in an array of one element."""
    return array.reshape(()).item()


def allocator(type: Type) -> Callable[[], Buffer]:
    """A function that gives uninitialised memory for a tensor of this type, for callers that do so often."""
    pool = _pool(type.nbytes)
    take = pool.take if pool.__class__ is _LargePool else pool.idle.pop

    def allocate() -> Buffer:
        try:
            block: Any = take()
        except IndexError:
            block = _Block(pool)
        b = _NEW(Buffer)
        b.type = type
        b._block = block
        b._array = None
        b.ptr = block.ptr
        return b

    return allocate


def empty(type: Type) -> Buffer:
    """Uninitialised memory for a tensor of this type; recycled blocks are handed out first."""
    block = _pool(type.nbytes).take()
    return Buffer(type, block, None, block.ptr)


def from_array(array: np.ndarray) -> Buffer:
    """Wraps a C-contiguous array without copying."""
    dtype = dtypes.from_numpy(array.dtype)
    assert dtype is not None and array.flags.c_contiguous
    return Buffer(Type(dtype, array.shape), None, array, _address(array))


def copy_of(array: Any, dtype: dtypes.DType) -> Buffer:
    """A fresh buffer with the converted contents of an array."""
    array = np.asarray(array)
    b = empty(Type(dtype, array.shape))
    b.array[...] = array
    return b
