"""Memory of tensors on a GPU: `DeviceBuffer` in the place of a `Buffer`, and copies between them. Used by the
tracer, through `runtime/buffers.py`'s interface, and by runtime/cuda.py.

A tensor's memory comes from its device's caching pool and goes back when nobody holds it. All work on a
device goes through one stream, so it may be handed out again at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.types import PlacedType, Type, placed_type
from . import cuda_driver as low
from .buffers import Buffer, empty, scalar_at


class DeviceBuffer(Buffer):
    """Contiguous row-major contents of one tensor on a GPU.

    Attributes:
        type: dtype, shape and device.
        ptr: address on the device.
    """

    __slots__ = ("memory",)

    def __init__(self, type: PlacedType, memory: low.Block) -> None:
        super().__init__(type, None, None, memory.ptr)
        self.memory = memory

    @property
    def array(self) -> np.ndarray:
        """A copy of the contents, when all work before is done; it can't be written."""
        out = np.empty(self.type.shape, self.type.dtype.numpy)
        fetch(self, out)
        out.flags.writeable = False
        return out

    def number(self) -> Any:
        """The Python number in a buffer of one element."""
        return scalar_at(self.array)

    def shared_outside(self) -> bool:
        return False

    def seen_outside(self) -> bool:
        return False

    def copy(self) -> DeviceBuffer:
        """The same contents in memory of their own."""
        made = device_empty(self.type)
        stream = low.stream(number(self.type.device))
        stream.copy(made.ptr, self.ptr, self.type.nbytes)
        return made

    def part(self, places: tuple[Any, ...], most: int) -> Buffer | None:
        """As of the CPU; None too for places that don't lie together, which a kernel gathers."""
        t = self.type
        one = np.empty(1, np.uint8)
        plan = np.lib.stride_tricks.as_strided(one, t.shape, _strides(t.shape))  # never read
        found = plan[(*places, ...)]
        nbytes = found.size * t.dtype.itemsize
        if nbytes > most or not found.flags.c_contiguous:
            return None
        assert isinstance(t, PlacedType)
        made = device_empty(PlacedType(t.dtype, found.shape, t.device))
        start = found.__array_interface__["data"][0] - plan.__array_interface__["data"][0]
        low.stream(number(t.device)).copy(made.ptr, self.ptr + start * t.dtype.itemsize, nbytes)
        return made

    def __del__(self) -> None:
        """Its block goes back by itself."""


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Of elements that lie in row-major order, in elements."""
    out = [1] * len(shape)
    for d in range(len(shape) - 1, 0, -1):
        out[d - 1] = out[d] * max(shape[d], 1)
    return out


def number(device: str | None) -> int:
    """The number of a device that is named `cuda:0`."""
    return int((device or "").partition(":")[2] or 0)


def device_empty(type: Type, planned: int = 0) -> DeviceBuffer:
    """Uninitialised memory for a tensor of a placed type. `planned`: what is needed in all, for the message.

    Raises OutOfMemoryError, CudaError.
    """
    assert isinstance(type, PlacedType)
    n = number(type.device)
    low.use(n)
    return DeviceBuffer(type, low.pool(n).take(type.nbytes, planned))


def send(array: np.ndarray, target: DeviceBuffer) -> None:
    """Copies an array of the buffer's dtype and size to it; the array may be changed afterwards."""
    stream = low.stream(number(target.type.device))
    held = np.ascontiguousarray(array)
    stream.upload(target.ptr, held.ctypes.data, target.type.nbytes)


def fetch(source: DeviceBuffer, array: np.ndarray) -> None:
    """Copies a buffer into a contiguous array, when all work before is done."""
    stream = low.stream(number(source.type.device))
    stream.download(array.ctypes.data, source.ptr, source.type.nbytes)
    stream.synchronize()


def moved(buffer: Buffer, device: str | None) -> Buffer:
    """The contents of a buffer on a device (None: the CPU); itself if they are there.

    Raises OutOfMemoryError, CudaError.
    """
    t = buffer.type
    if t.device == device:
        return buffer
    if device is None:
        made = empty(placed_type(t, None))
        assert isinstance(buffer, DeviceBuffer)
        fetch(buffer, made.array)
        return made
    out = device_empty(placed_type(t, device))
    send(buffer.array, out)
    return out


def uploaded(arrays: Sequence[np.ndarray], device: str) -> list[DeviceBuffer]:
    """Arrays as buffers on a device: all of them, or an error."""
    out = []
    for a in arrays:
        dtype = dtypes.from_numpy(a.dtype)
        assert dtype is not None
        made = device_empty(PlacedType(dtype, a.shape, device))
        send(a, made)
        out.append(made)
    return out
