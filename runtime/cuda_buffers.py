"""Memory of tensors on a GPU: `DeviceBuffer` in the place of a `Buffer`, and copies between them. Used by the
tracer, through `runtime/buffers.py`'s interface, and by runtime/cuda.py.

A tensor's memory comes from its device's caching pool and goes back when nobody holds it. All work on a
device goes through one stream, so it may be handed out again at once.

Copies to a device return before they are done: they read pinned memory (cuda_memory.py), or a copy of the
array there. Copies from a device wait, unless they are told not to; then what reads them waits
(`ArrivingBuffer`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.types import PlacedType, Type, placed_type
from . import cuda_driver as low
from .buffers import Buffer, empty, scalar_at
from .cuda_memory import Block, HostBlock, host_pool, pinned_block, pinned_empty, pool
from .cuda_streams import Event, Stream
from .cuda_streams import stream as stream_of

#: arrays of so many bytes are copied to pinned memory first, from where they go on by themselves; larger ones
#: are waited for
_STAGED = 8 << 20


class DeviceBuffer(Buffer):
    """Contiguous row-major contents of one tensor on a GPU.

    Attributes:
        type: dtype, shape and device.
        ptr: address on the device.
    """

    __slots__ = ("memory",)

    def __init__(self, type: PlacedType, memory: Block) -> None:
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
        stream = stream_of(number(self.type.device))
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
        stream_of(number(t.device)).copy(made.ptr, self.ptr + start * t.dtype.itemsize, nbytes)
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
    return DeviceBuffer(type, pool(n).take(type.nbytes, planned))


def send(array: np.ndarray, target: DeviceBuffer, wait: bool = True) -> None:
    """Copies an array of the buffer's dtype and size to it. The array may be changed afterwards; if it is in
    pinned memory and `wait` is False, only when the copy is done.

    Raises CudaError.
    """
    nbytes = target.type.nbytes
    if not nbytes:
        return
    stream = stream_of(number(target.type.device))
    held = np.ascontiguousarray(array)
    block = pinned_block(held)
    if block is None and nbytes <= _STAGED:
        block = host_pool().take(nbytes)
        np.asarray(block)[:nbytes] = held.reshape(-1).view(np.uint8)
        stream.upload(target.ptr, block.ptr, nbytes)
        _mark(block, stream)
        return
    stream.upload(target.ptr, held.ctypes.data, nbytes)
    if block is not None:
        _mark(block, stream)
    if wait or block is None:
        stream.synchronize()


def _mark(block: HostBlock, stream: Stream) -> None:
    """Says that the stream's work so far reads or writes a block of pinned memory."""
    event = Event(stream)
    event.record(stream)
    block.busy[stream.device] = event


def fetch(source: DeviceBuffer, array: np.ndarray) -> None:
    """Copies a buffer into a contiguous array, when all work before is done."""
    stream = stream_of(number(source.type.device))
    stream.download(array.ctypes.data, source.ptr, source.type.nbytes)
    stream.synchronize()


def write_back(source: DeviceBuffer, target: Buffer) -> None:
    """Copies what was changed on a device to where it came from: the CPU, or another device."""
    if isinstance(target, DeviceBuffer):
        send(source.array, target)
    else:
        fetch(source, target.array)


class PinnedBuffer(Buffer):
    """Contents of a tensor of the CPU in pinned memory."""

    __slots__ = ()

    def __init__(self, type: Type) -> None:
        raw = pinned_empty(max(type.nbytes, 1))
        array = raw[: type.nbytes].view(type.dtype.numpy).reshape(type.shape)
        super().__init__(type, None, array, raw.ctypes.data)

    def shared_outside(self) -> bool:
        return False

    def seen_outside(self) -> bool:
        assert self._array is not None
        return sys.getrefcount(self._array) > 2


class ArrivingBuffer(PinnedBuffer):
    """Contents of a tensor of the CPU that are on their way from a device. Who asks where they are waits for
    them; the device goes on meanwhile."""

    __slots__ = ("address", "event", "source")

    def __init__(self, source: DeviceBuffer) -> None:
        self.event: Event | None = None
        super().__init__(placed_type(source.type, None))
        stream = stream_of(number(source.type.device))
        stream.download(self.address, source.ptr, source.type.nbytes)
        assert self._array is not None
        block = pinned_block(self._array)
        assert block is not None
        _mark(block, stream)
        self.event = block.busy[stream.device]

    def _arrived(self) -> None:
        if self.event is not None:
            self.event.wait()
            self.event = None

    @property
    def ptr(self) -> int:
        """Address of the first element, when it is there."""
        self._arrived()
        return self.address

    @ptr.setter
    def ptr(self, value: int) -> None:
        self.address = value

    @property
    def array(self) -> np.ndarray:
        """The contents, when they are there."""
        self._arrived()
        return super().array


def pinned(buffer: Buffer) -> Buffer:
    """A tensor's contents in pinned memory; itself if they are. Raises CudaError without a GPU."""
    if is_pinned(buffer):
        return buffer
    made = PinnedBuffer(buffer.type)
    made.array[...] = buffer.array
    return made


def is_pinned(buffer: Buffer) -> bool:
    """Whether a tensor's contents are in pinned memory."""
    array = buffer._array
    return array is not None and pinned_block(array) is not None


def moved(buffer: Buffer, device: str | None, non_blocking: bool = False) -> Buffer:
    """The contents of a buffer on a device (None: the CPU); itself if they are there.

    Args:
        non_blocking: contents in pinned memory must not be changed until the copy is done; what comes to the
            CPU is waited for when it is read.

    Raises OutOfMemoryError, CudaError.
    """
    t = buffer.type
    if t.device == device:
        return buffer
    if device is None:
        assert isinstance(buffer, DeviceBuffer)
        if non_blocking and t.nbytes:
            return ArrivingBuffer(buffer)
        made = empty(placed_type(t, None))
        fetch(buffer, made.array)
        return made
    out = device_empty(placed_type(t, device))
    send(buffer.array, out, not non_blocking)
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
