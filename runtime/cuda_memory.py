"""Memory for GPUs: a caching pool of each device's, and a pool of the host's pages that can't be swapped out
(pinned), from and to which copies run beside the program. Used by cuda_buffers.py, cuda.py and the tracer.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from typing import Any

import numpy as np

from . import cuda_driver as low
from .cuda_driver import OutOfMemoryError, call, use
from .cuda_streams import stream

#: blocks of a device's pool are multiples of this
_GRAIN = 512
#: the smallest block of pinned memory; sizes are powers of two
_PAGE = 4096
#: bytes of idle pinned memory that are kept
_IDLE_PINNED = 256 << 20
#: cuMemHostAlloc: pinned for all contexts
_PORTABLE = 1


class Block:
    """Memory of a GPU. It goes back to its pool when nobody holds it any more.

    Attributes:
        ptr: device address, 256-byte aligned.
        nbytes: as asked for; `size` is what it takes.
    """

    __slots__ = ("nbytes", "pool", "ptr", "size")

    def __init__(self, pool: Pool, ptr: int, size: int, nbytes: int) -> None:
        self.pool = pool
        self.ptr = ptr
        self.size = size
        self.nbytes = nbytes

    def __del__(self) -> None:
        self.pool.give_back(self)  # which takes nothing of this module: that may be gone already


class Pool:
    """A caching allocator of one device. All work goes through one stream, so a block may be handed out again
    as soon as it is free.

    Attributes:
        allocated: bytes in use; `peak` the most there were; `reserved` with what is kept for later.
        asked: bytes that were asked for of those in use; blocks are rounded up.
        taken: how many blocks were handed out; `made`: how many of them the driver was asked for.
        retries: how often idle memory was given back to make room; `failed`: how often there was none then.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.idle: dict[int, list[int]] = {}
        self.allocated = self.peak = self.reserved = self.peak_reserved = 0
        self.asked = self.taken = self.made = self.given_back = self.retries = self.failed = 0

    def take(self, nbytes: int, planned: int = 0) -> Block:
        """Memory, contents undefined. `planned`: what the whole program takes, for the message.

        Raises:
            OutOfMemoryError: saying what was asked for, what is free and what was planned.
        """
        size = max(-(-nbytes // _GRAIN), 1) * _GRAIN
        with self.lock:
            held = self.idle.get(size)
            ptr = held.pop() if held else None
        if ptr is None:  # without the lock: what is collected meanwhile takes others
            ptr = self._allocate(size, nbytes, planned)
        with self.lock:
            self.allocated += size
            self.asked += nbytes
            self.taken += 1
            self.peak = max(self.peak, self.allocated)
            return Block(self, ptr, size, nbytes)

    def _allocate(self, size: int, nbytes: int, planned: int) -> int:
        use(self.device)
        try:
            ptr = call("cuMemAlloc", size)
        except OutOfMemoryError:
            self.retries += 1
            gc.collect()  # what errors before held on to, say
            self.empty()
            try:
                ptr = call("cuMemAlloc", size)
            except OutOfMemoryError:
                self.failed += 1
                free, total = call("cuMemGetInfo")
                plan = f"; the program takes {planned} bytes at its peak" if planned else ""
                raise OutOfMemoryError(
                    f"GPU {self.device} is out of memory: asked for {nbytes} bytes, {free} of {total} are "
                    f"free, {self.allocated} are in use here{plan}; nothing was changed"
                ) from None
        with self.lock:
            self.made += 1
            self.reserved += size
            self.peak_reserved = max(self.peak_reserved, self.reserved)
        return int(ptr)

    def give_back(self, block: Block) -> None:
        """Keeps a block for the next who asks for its size."""
        with self.lock:
            self.idle.setdefault(block.size, []).append(block.ptr)
            self.allocated -= block.size
            self.asked -= block.nbytes
            self.given_back += 1

    def empty(self) -> None:
        """Gives idle memory back to the driver."""
        with self.lock:
            idle, self.idle = self.idle, {}
        if idle:
            use(self.device)
            stream(self.device).synchronize()
        for size, pointers in idle.items():
            for ptr in pointers:
                call("cuMemFree", ptr)
            with self.lock:
                self.reserved -= size * len(pointers)


def pool(device: int = 0) -> Pool:
    """The pool of a device."""
    state = low.state()
    with state.lock:
        found = state.pools.get(device)
        if found is None:
            found = state.pools[device] = Pool(device)
        return found


def known_pools() -> list[Pool]:
    """The pools of all devices that were used."""
    return list(low.state().pools.values())


def known_pool(device: int = 0) -> Pool | None:
    """The pool of a device, if it was ever used."""
    return low.state().pools.get(device)


# --- pinned memory of the host ------------------------------------------------------------------------------


class HostBlock:
    """Pinned memory of the host; NumPy sees it as bytes. It goes back to its pool when nobody holds it any
    more, and is handed out again when the last copy from or to it is done.

    Attributes:
        ptr, size: where it is, and how many bytes.
        busy: the event behind the last copy from or to each device.
    """

    __slots__ = ("__array_interface__", "busy", "pool", "ptr", "size")

    def __init__(self, pool: HostPool, ptr: int, size: int) -> None:
        self.pool = pool
        self.ptr = ptr
        self.size = size
        self.busy: dict[int, Any] = {}
        self.__array_interface__ = {"data": (ptr, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        self.pool.give_back(self)  # which takes nothing of this module: that may be gone already


class HostPool:
    """Pinned memory of the host, for all devices.

    Attributes:
        reserved: bytes that are pinned, idle ones included.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.idle: dict[int, list[int]] = {}
        self.waiting: deque[tuple[list[Any], int, int]] = deque()
        self.reserved = 0

    def take(self, nbytes: int) -> HostBlock:
        """Memory, contents undefined.

        Raises:
            CudaError: no GPU, or no memory that can be pinned.
        """
        size = max(_PAGE, 1 << max(nbytes - 1, 0).bit_length())
        with self.lock:
            self._collect()
            held = self.idle.get(size)
            if held:
                return HostBlock(self, held.pop(), size)
            use(low.current())
            ptr = int(call("cuMemHostAlloc", size, _PORTABLE))
            self.reserved += size
            return HostBlock(self, ptr, size)

    def give_back(self, block: HostBlock) -> None:
        """Keeps a block for the next who asks for its size, from when copies are done with it."""
        with self.lock:
            self.waiting.append((list(block.busy.values()), block.ptr, block.size))

    def _collect(self) -> None:
        """Moves blocks that copies are done with to those that are idle, or to the system if there are
        many."""
        for _ in range(len(self.waiting)):
            events, ptr, size = self.waiting.popleft()
            if not all([e.done() for e in events]):
                self.waiting.append((events, ptr, size))
            elif sum(s * len(p) for s, p in self.idle.items()) + size <= _IDLE_PINNED:
                self.idle.setdefault(size, []).append(ptr)
            else:
                self._free(ptr, size)

    def _free(self, ptr: int, size: int) -> None:
        use(low.current())
        call("cuMemFreeHost", ptr)
        self.reserved -= size

    def empty(self) -> None:
        """Gives idle memory back to the system."""
        with self.lock:
            self._collect()
            idle, self.idle = self.idle, {}
            for size, pointers in idle.items():
                for ptr in pointers:
                    self._free(ptr, size)


def host_pool() -> HostPool:
    """The process's pinned memory."""
    state = low.state()
    with state.lock:
        if state.host_pool is None:
            state.host_pool = HostPool()
        return state.host_pool


def pinned_empty(nbytes: int) -> np.ndarray:
    """So many bytes of pinned memory as an array that owns them. Raises CudaError."""
    return np.asarray(host_pool().take(nbytes))[:nbytes]


def pinned_block(array: np.ndarray) -> HostBlock | None:
    """The pinned memory that an array lies in; None for other memory."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, HostBlock) else None
