"""NVIDIA's driver by way of the package cuda-bindings: devices, streams, a caching pool of memory, copies.
runtime/cuda.py builds on it. Importing it loads nothing of CUDA; `driver()` does, or says what is missing.

With `TRACEGRAD_CUDA=emulate` in the environment an emulated device takes the driver's place
(runtime/cuda_emulated.py), and with `TRACEGRAD_CUDA=off` there is none.

Written against the driver API's documentation; docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from typing import Any

from ..ir.errors import TracegradError

#: blocks of the pool are multiples of this
_GRAIN = 512


class CudaError(TracegradError, RuntimeError):
    """No GPU can be used, or one failed."""


class OutOfMemoryError(CudaError):
    """The GPU has no room left; nothing was changed."""


class State:
    """What is loaded once per process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.driver: Any = None
        self.reason: str | None = None
        self.count = 0
        self.current = 0
        self.contexts: dict[int, Any] = {}
        self.pools: dict[int, Pool] = {}
        self.streams: dict[int, Stream] = {}


def why_not() -> str | None:
    """What is missing to use a GPU; None if nothing is."""
    with _STATE.lock:
        if _STATE.driver is None and _STATE.reason is None:
            _STATE.reason = _load()
        return _STATE.reason


def _load() -> str | None:
    mode = os.environ.get("TRACEGRAD_CUDA", "")
    if mode == "emulate":
        from . import cuda_emulated

        _STATE.driver, missing = cuda_emulated.load()
        _STATE.count = int(missing is None)
        return missing
    if mode == "off":
        return "TRACEGRAD_CUDA=off in the environment"
    if mode:
        return f"TRACEGRAD_CUDA must be 'emulate' or 'off', not {mode!r}"
    try:
        from cuda.bindings import driver  # type: ignore[import-not-found]
    except ImportError:
        return "the package cuda-bindings is not installed: pip install 'tracegrad[cuda]'"
    try:
        (status,) = driver.cuInit(0)
        if status != driver.CUresult.CUDA_SUCCESS:
            return f"NVIDIA's driver does not start ({status.name})"
        status, count = driver.cuDeviceGetCount()
    except Exception as e:  # the package's loader has errors of its own kinds
        return f"NVIDIA's driver is not installed ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
    if status != driver.CUresult.CUDA_SUCCESS or not count:
        return "NVIDIA's driver sees no GPU"
    _STATE.driver, _STATE.count = driver, count
    return None


def driver() -> Any:
    """The module `cuda.bindings.driver`, started.

    Raises:
        CudaError: saying what is missing.
    """
    reason = why_not()
    if reason is not None:
        raise CudaError(f"no GPU can be used: {reason}")
    return _STATE.driver


def call(name: str, *args: Any) -> Any:
    """A function of the driver; its result without the status (a tuple if there are several).

    Raises:
        OutOfMemoryError, CudaError: by the status.
    """
    d = driver()
    status, *out = getattr(d, name)(*args)
    if status != d.CUresult.CUDA_SUCCESS:
        kind = OutOfMemoryError if status == d.CUresult.CUDA_ERROR_OUT_OF_MEMORY else CudaError
        _, text = d.cuGetErrorString(status)
        said = text.decode() if isinstance(text, bytes) else str(text)
        raise kind(f"{name}: {said} ({status.name})")
    return out[0] if len(out) == 1 else tuple(out) if out else None


def use(device: int = 0) -> Any:
    """Makes a device's primary context current on this thread; gives it.

    Raises:
        CudaError: no such device.
    """
    driver()
    if not 0 <= device < _STATE.count:
        raise CudaError(f"no GPU number {device}: there are {_STATE.count}")
    with _STATE.lock:
        context = _STATE.contexts.get(device)
        if context is None:
            context = call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", device))
            _STATE.contexts[device] = context
    call("cuCtxSetCurrent", context)
    return context


def current() -> int:
    """The number of the GPU that `"cuda"` means."""
    return _STATE.current


def is_started() -> bool:
    """Whether a device was used."""
    return bool(_STATE.contexts)


def memory(device: int = 0) -> tuple[int, int]:
    """(free, total) bytes. Raises CudaError without a device."""
    use(device)
    free, total = call("cuMemGetInfo")
    return int(free), int(total)


def multiprocessors(device: int = 0) -> int:
    """How many multiprocessors a GPU has."""
    kind = driver().CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    return int(call("cuDeviceGetAttribute", kind, call("cuDeviceGet", device)))


def set_current(device: int) -> None:
    """Says which GPU `"cuda"` means from now on. Raises CudaError where there is no such device."""
    use(device)
    _STATE.current = device


def count() -> int:
    """GPUs that can be used; 0 without a driver."""
    return 0 if why_not() else _STATE.count


def capability(device: int = 0) -> tuple[int, int]:
    """Compute capability, such as (9, 0)."""
    d = driver()
    handle = call("cuDeviceGet", device)
    major, minor = (
        call(
            "cuDeviceGetAttribute",
            getattr(d.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{x}"),
            handle,
        )
        for x in ("MAJOR", "MINOR")
    )  # fmt: skip
    return int(major), int(minor)


def name(device: int = 0) -> str:
    """The GPU's name."""
    raw = call("cuDeviceGetName", 128, call("cuDeviceGet", device))
    return raw.split(b"\0")[0].decode()


# --- memory -------------------------------------------------------------------------------------------------


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
        with contextlib.suppress(AttributeError, TypeError):  # the interpreter may be being shut down
            self.pool.give_back(self)


class Pool:
    """A caching allocator of one device. All work goes through one stream, so a block may be handed out again
    as soon as it is free.

    Attributes:
        allocated: bytes in use; `peak` the most there were; `reserved` with what is kept for later.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.idle: dict[int, list[int]] = {}
        self.allocated = self.peak = self.reserved = self.peak_reserved = 0

    def take(self, nbytes: int, planned: int = 0) -> Block:
        """Memory, contents undefined. `planned`: what the whole program takes, for the message.

        Raises:
            OutOfMemoryError: saying what was asked for, what is free and what was planned.
        """
        size = max(-(-nbytes // _GRAIN), 1) * _GRAIN
        with self.lock:
            held = self.idle.get(size)
            ptr = held.pop() if held else self._allocate(size, nbytes, planned)
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
            return Block(self, ptr, size, nbytes)

    def _allocate(self, size: int, nbytes: int, planned: int) -> int:
        use(self.device)
        try:
            ptr = call("cuMemAlloc", size)
        except OutOfMemoryError:
            gc.collect()  # what errors before held on to, say
            self.empty()
            try:
                ptr = call("cuMemAlloc", size)
            except OutOfMemoryError:
                free, total = call("cuMemGetInfo")
                plan = f"; the program takes {planned} bytes at its peak" if planned else ""
                raise OutOfMemoryError(
                    f"GPU {self.device} is out of memory: asked for {nbytes} bytes, {free} of {total} are "
                    f"free, {self.allocated} are in use here{plan}; nothing was changed"
                ) from None
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return int(ptr)

    def give_back(self, block: Block) -> None:
        """Keeps a block for the next who asks for its size."""
        with self.lock:
            self.idle.setdefault(block.size, []).append(block.ptr)
            self.allocated -= block.size

    def empty(self) -> None:
        """Gives idle memory back to the driver."""
        with self.lock:
            if not self.idle:
                return
            use(self.device)
            call("cuCtxSynchronize")
            for size, pointers in self.idle.items():
                for ptr in pointers:
                    call("cuMemFree", ptr)
                    self.reserved -= size
            self.idle.clear()


def pool(device: int = 0) -> Pool:
    """The pool of a device."""
    with _STATE.lock:
        found = _STATE.pools.get(device)
        if found is None:
            found = _STATE.pools[device] = Pool(device)
        return found


def known_pools() -> list[Pool]:
    """The pools of all devices that were used."""
    return list(_STATE.pools.values())


def known_pool(device: int = 0) -> Pool | None:
    """The pool of a device, if it was ever used."""
    return _STATE.pools.get(device)


# --- launches -----------------------------------------------------------------------------------------------


class Stream:
    """An order of work on a device, and CUDA graphs of it."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.lock = threading.RLock()
        use(device)
        self.handle = call("cuStreamCreate", int(driver().CUstream_flags.CU_STREAM_NON_BLOCKING))

    def upload(self, ptr: int, source: int, nbytes: int) -> None:
        """Copies from the host; asynchronous where that memory is pinned."""
        if nbytes:
            call("cuMemcpyHtoDAsync", ptr, source, nbytes, self.handle)

    def download(self, target: int, ptr: int, nbytes: int) -> None:
        """Copies to the host; done when the stream is."""
        if nbytes:
            call("cuMemcpyDtoHAsync", target, ptr, nbytes, self.handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copies on the device."""
        if nbytes:
            call("cuMemcpyDtoDAsync", target, source, nbytes, self.handle)

    def read_bool(self, ptr: int) -> bool:
        """A bool, when all before it is done."""
        value = ctypes.c_uint8()
        self.download(ctypes.addressof(value), ptr, 1)
        self.synchronize()
        return bool(value.value)

    def launch(
        self,
        function: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        values: list[int],
        kinds: list[Any],
    ) -> None:
        """One kernel."""
        call("cuLaunchKernel", function, *grid, *block, 0, self.handle, (tuple(values), tuple(kinds)), 0)

    def synchronize(self) -> None:
        """Waits for all work of the stream."""
        call("cuStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """From here on work is noted down, not done."""
        call(
            "cuStreamBeginCapture",
            self.handle,
            driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        )

    def end_capture(self) -> Any:
        """What was noted down, ready for `replay`."""
        graph = call("cuStreamEndCapture", self.handle)
        try:
            return call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def forget(self, graph: Any) -> None:
        """Frees a captured graph."""
        call("cuGraphExecDestroy", graph)

    def replay(self, graph: Any) -> None:
        """Runs a captured graph."""
        call("cuGraphLaunch", graph, self.handle)


def stream(device: int = 0) -> Stream:
    """The one stream of a device: what follows in it may reuse the memory of what is before."""
    with _STATE.lock:
        found = _STATE.streams.get(device)
        if found is None:
            found = _STATE.streams[device] = Stream(device)
        return found


_STATE = State()


def swap(new: State) -> State:
    """Puts another state in the place of the process's, which it gives."""
    global _STATE
    old, _STATE = _STATE, new
    return old
