"""Memory of tensors: 64-byte aligned blocks with a recycling allocator, seen as NumPy arrays when asked.

A `Buffer` is one tensor's contents. Executables pass `ptr` to native code; nothing here knows of graphs.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.types import Type

ALIGN = 64
_RECYCLE_LIMIT = 256 << 20
_free: dict[int, list[tuple[np.ndarray, int]]] = {}
_free_bytes = 0


def _address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


class Buffer:
    """Contiguous row-major contents of one tensor.

    Attributes:
        type: dtype and shape.
        ptr: address of the first element.
    """

    __slots__ = ("_array", "_block", "ptr", "type")

    def __init__(
        self, type: Type, block: tuple[np.ndarray, int] | None, array: np.ndarray | None, ptr: int
    ) -> None:
        self.type = type
        self._block = block
        self._array = array
        self.ptr = ptr

    @property
    def array(self) -> np.ndarray:
        """The contents as a NumPy array that shares the memory."""
        a = self._array
        if a is None:
            assert self._block is not None
            raw = self._block[0]
            start = self.ptr - self._block[1]
            t = self.type
            a = raw[start : start + t.nbytes].view(t.dtype.numpy).reshape(t.shape)
            self._array = a
        return a

    def shared_outside(self) -> bool:
        """Whether someone else holds the array (so that its contents may change behind our back)."""
        return self._block is None and self._array is not None and sys.getrefcount(self._array) > 2

    def __del__(self) -> None:
        global _free_bytes
        block = self._block
        if block is None:
            return
        self._array = None
        self._block = None
        # 3: the tuple, the argument of getrefcount ... and a borrowed NumPy view would make one more.
        size = block[0].nbytes
        if sys.getrefcount(block[0]) <= 2 and _free_bytes + size <= _RECYCLE_LIMIT:
            _free_bytes += size
            _free.setdefault(size, []).append(block)


def empty(type: Type) -> Buffer:
    """Uninitialised memory for a tensor of this type; recycled blocks are handed out first."""
    global _free_bytes
    size = (type.nbytes + ALIGN + ALIGN - 1) & -ALIGN
    pool = _free.get(size)
    if pool:
        block = pool.pop()
        _free_bytes -= size
    else:
        raw = np.empty(size, np.uint8)
        block = (raw, _address(raw))
    return Buffer(type, block, None, (block[1] + ALIGN - 1) & -ALIGN)


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
