"""The functions of NVIDIA's driver that runtime/cuda_driver.py and what builds on it call, over the CPU's
memory: names, arguments and results are those of `cuda.bindings.driver`. Used by cuda_emulated.py, which says
what for.

It is as strict as the driver, or more. Work of a stream is done when somebody waits for it and no sooner, so
that host memory that was let go of too early is seen; calls need a current context and arguments of the types
that the package takes; a copy that leaves the memory it was given is an error.
"""

from __future__ import annotations

import bisect
import ctypes
import enum
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

#: how an image may begin: as machine code for a GPU does
IMAGE = b"\x7fELF"
_ALIGN = 256
_NAME = "Tracegrad's emulated GPU"


class CUresult(enum.IntEnum):
    """The driver's statuses that occur here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


_OK = CUresult.CUDA_SUCCESS


class CUdevice_attribute(enum.IntEnum):
    """What is asked of a device."""

    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13
    CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE = 36
    CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH = 37
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(enum.IntEnum):
    """What is said of a kernel."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class CUstream_flags(enum.IntEnum):
    """Of a new stream."""

    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(enum.IntEnum):
    """What may go on elsewhere while a stream is captured."""

    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class Handle:
    """What the driver gives and takes back unseen. As in the package it can be made an int, and is none."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value if isinstance(self.value, int) else id(self)


class CUdevice(Handle):
    """`value`: its number."""


class CUcontext(Handle):
    """`value`: the number of its device."""


class CUdeviceptr(Handle):
    """`value`: an address."""


class CUmodule(Handle):
    """`value`: the library."""


class CUfunction(Handle):
    """`value`: the library and its function. `parameters`: their sizes; `dynamic`: what it opted in to."""

    parameters: tuple[int, ...] = ()
    dynamic = 48 << 10


class CUstream(Handle):
    """`captured`: what it was told while capturing, or None; `queue`: what is yet to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[Callable[[], None]] | None = None
        self.queue: list[Callable[[], CUresult | None]] = []


class CUevent(Handle):
    """`at`: seconds when it was reached, None before; `pending`: how often it is in a queue."""

    at: float | None = None
    pending = 0
    stream: CUstream | None = None


class CUgraph(Handle):
    """`value`: what was captured."""


class CUgraphExec(Handle):
    """`value`: the same, ready to run."""


_POINTER = (int, CUdeviceptr)
#: what each parameter of the driver's functions takes, by its name
_TAKES: dict[str, Any] = {
    "hStream": CUstream, "hEvent": CUevent, "hStart": CUevent, "hEnd": CUevent, "hGraph": CUgraph,
    "hGraphExec": CUgraphExec, "hmod": CUmodule, "f": CUfunction, "hfunc": CUfunction, "ctx": CUcontext,
    "dev": CUdevice, "dptr": _POINTER, "dstDevice": _POINTER, "srcDevice": _POINTER,
    "mode": CUstreamCaptureMode, "attrib": (CUdevice_attribute, CUfunction_attribute), "error": CUresult,
    "image": bytes, "name": bytes, "kernelParams": (int, tuple),
}  # fmt: skip
#: functions that need no current context
_FREE = (
    "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
    "cuDriverGetVersion", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuGetErrorString",
)  # fmt: skip


def _strict(f: Callable[..., Any]) -> Callable[..., Any]:
    """One of the driver's functions with its arguments looked at; wrong ones are the caller's bug."""
    name = f.__name__
    names = f.__code__.co_varnames[1 : f.__code__.co_argcount]
    kinds = [(n, _TAKES.get(n, int)) for n in names]
    needs = name not in _FREE

    @functools.wraps(f)
    def checked(self: EmulatedDriver, *args: Any) -> Any:
        if len(args) != len(kinds):
            raise TypeError(f"{name}() takes {', '.join(names)}; given {len(args)} arguments")
        for (n, kind), x in zip(kinds, args):
            if not isinstance(x, kind) or isinstance(x, bool) or (kind is int and x < 0):
                raise TypeError(f"{name}(): {n} can't be {x!r}")
        if needs and getattr(self.thread, "context", None) is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT, *[None] * (name == "cuMemAlloc"))
        return f(self, *args)

    return checked


class EmulatedDriver:
    """Stands for the module `cuda.bindings.driver`. Functions give a status, and results behind it.

    Args:
        total: bytes of each device.
        devices: how many there are.
        capability: of all of them.
    """

    emulated = True
    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUfunction_attribute = CUfunction_attribute
    CUstream_flags = CUstream_flags
    CUstreamCaptureMode = CUstreamCaptureMode

    def __init__(self, total: int, devices: int = 1, capability: tuple[int, int] = (8, 0)) -> None:
        self.total = total
        self.devices = devices
        self.capability = capability
        self.used_on = [0] * devices
        self.memory: dict[int, tuple[np.ndarray, int, int]] = {}
        self.places: list[int] = []
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: list[CUstream] = []
        self.contexts = [CUcontext(i) for i in range(devices)]
        self.thread = threading.local()
        self.working = threading.RLock()
        self.said = ""
        self.loaded = 0  # modules that were not unloaded

    def __init_subclass__(cls) -> None:
        raise TypeError("there is one kind of it")

    @property
    def used(self) -> int:
        """Bytes in use on all devices."""
        return sum(self.used_on)

    # --- devices

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        return (_OK,)

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return _OK, 13000

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return _OK, self.devices

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        if ordinal >= self.devices:
            return CUresult.CUDA_ERROR_INVALID_DEVICE, None
        return _OK, CUdevice(ordinal)

    def cuDeviceGetName(self, length: int, dev: CUdevice) -> tuple[Any, ...]:
        return _OK, _NAME.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib: Any, dev: CUdevice) -> tuple[Any, ...]:
        numbers = {75: self.capability[0], 76: self.capability[1], 16: 1, 13: 1000, 36: 1000, 37: 64}
        return _OK, numbers.get(int(attrib), 1 << 20)

    def cuDevicePrimaryCtxRetain(self, dev: CUdevice) -> tuple[Any, ...]:
        return _OK, self.contexts[int(dev)]

    def cuCtxSetCurrent(self, ctx: CUcontext) -> tuple[Any, ...]:
        self.thread.context = int(ctx)
        return (_OK,)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        for s in self.streams:
            if s.captured is not None:
                return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        return (self._finish(),)

    def cuGetErrorString(self, error: CUresult) -> tuple[Any, ...]:
        said, self.said = self.said, ""
        return _OK, (said or error.name.removeprefix("CUDA_ERROR_").lower().replace("_", " ")).encode()

    # --- memory

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return _OK, self.total - self.used_on[self.thread.context], self.total

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        device = self.thread.context
        if not bytesize:
            return CUresult.CUDA_ERROR_INVALID_VALUE, None
        if self.used_on[device] + bytesize > self.total:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        try:
            raw = np.empty(bytesize + _ALIGN, np.uint8)
        except MemoryError:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        ptr = raw.ctypes.data + -raw.ctypes.data % _ALIGN
        raw[:] = 0xA5  # nothing may rely on zeroed memory
        self.memory[ptr] = raw, bytesize, device
        bisect.insort(self.places, ptr)
        self.used_on[device] += bytesize
        return _OK, CUdeviceptr(ptr)

    def cuMemFree(self, dptr: Any) -> tuple[Any, ...]:
        self._finish()
        found = self.memory.pop(int(dptr), None)
        if found is None:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.places.remove(int(dptr))
        self.used_on[found[2]] -= found[1]
        return (_OK,)

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> tuple[Any, ...]:
        raw = np.full(max(bytesize, 1), 0xA5, np.uint8)
        self.pinned[raw.ctypes.data] = raw
        return _OK, raw.ctypes.data

    def cuMemFreeHost(self, p: int) -> tuple[Any, ...]:
        self._finish()
        found = self.pinned.pop(p, None)
        return (_OK if found is not None else CUresult.CUDA_ERROR_INVALID_VALUE,)

    def _inside(self, ptr: int, nbytes: int) -> bool:
        """Whether bytes lie in one block of the current device's memory."""
        i = bisect.bisect_right(self.places, ptr) - 1
        if i < 0:
            return False
        start = self.places[i]
        return ptr + nbytes <= start + self.memory[start][1] and self.memory[start][2] == self.thread.context

    def _is_pinned(self, ptr: int, nbytes: int) -> bool:
        return any(start <= ptr and ptr + nbytes <= start + a.nbytes for start, a in self.pinned.items())

    def cuMemcpyHtoDAsync(self, dstDevice: Any, srcHost: int, ByteCount: int, hStream: CUstream) -> Any:
        if hStream.captured is not None:  # the host's memory would be read at every replay
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if not self._inside(int(dstDevice), ByteCount):
            return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
        return self._give(hStream, lambda: _move(int(dstDevice), srcHost, ByteCount))

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: Any, ByteCount: int, hStream: CUstream) -> Any:
        if hStream.captured is not None:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if not self._inside(int(srcDevice), ByteCount):
            return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
        done = self._give(hStream, lambda: _move(dstHost, int(srcDevice), ByteCount))
        return done if self._is_pinned(dstHost, ByteCount) else (self._finish(hStream),)

    def cuMemcpyDtoDAsync(self, dstDevice: Any, srcDevice: Any, ByteCount: int, hStream: CUstream) -> Any:
        if not (self._inside(int(dstDevice), ByteCount) and self._inside(int(srcDevice), ByteCount)):
            return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
        return self._give(hStream, lambda: _move(int(dstDevice), int(srcDevice), ByteCount))

    # --- streams, events and graphs

    def _give(self, stream: CUstream, work: Callable[[], Any]) -> tuple[Any, ...]:
        """Work for a stream, which is done when somebody waits for it."""
        (stream.queue if stream.captured is None else stream.captured).append(work)
        return (_OK,)

    def _finish(self, *streams: CUstream) -> CUresult:
        """Does what is to be done, of all streams if none are given."""
        with self.working:  # who waits returns when it is done, though another thread does it
            for s in streams or self.streams:
                queue, s.queue = s.queue, []
                for work in queue:
                    status = work()
                    if status is not None and status != _OK:
                        return status
        return _OK

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:
        self.streams.append(CUstream())
        return _OK, self.streams[-1]

    def cuStreamSynchronize(self, hStream: CUstream) -> tuple[Any, ...]:
        if hStream.captured is not None:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        return (self._finish(hStream),)

    def cuStreamQuery(self, hStream: CUstream) -> tuple[Any, ...]:
        return (CUresult.CUDA_ERROR_NOT_READY if hStream.queue else _OK,)

    def cuStreamBeginCapture(self, hStream: CUstream, mode: Any) -> tuple[Any, ...]:
        hStream.captured = []
        return (_OK,)

    def cuStreamEndCapture(self, hStream: CUstream) -> tuple[Any, ...]:
        done, hStream.captured = hStream.captured, None
        return _OK, CUgraph(done)

    def cuGraphInstantiate(self, hGraph: CUgraph, flags: int) -> tuple[Any, ...]:
        return _OK, CUgraphExec(list(hGraph.value))

    def cuGraphDestroy(self, hGraph: CUgraph) -> tuple[Any, ...]:
        return (_OK,)

    def cuGraphExecDestroy(self, hGraphExec: CUgraphExec) -> tuple[Any, ...]:
        hGraphExec.value = None
        return (_OK,)

    def cuGraphLaunch(self, hGraphExec: CUgraphExec, hStream: CUstream) -> tuple[Any, ...]:
        if hGraphExec.value is None:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        for work in hGraphExec.value:
            self._give(hStream, work)
        return (_OK,)

    def cuEventCreate(self, Flags: int) -> tuple[Any, ...]:
        return _OK, CUevent(Flags)

    def cuEventDestroy(self, hEvent: CUevent) -> tuple[Any, ...]:
        return (_OK,)

    def cuEventRecord(self, hEvent: CUevent, hStream: CUstream) -> tuple[Any, ...]:
        def reached() -> None:
            hEvent.pending -= 1
            hEvent.at = time.perf_counter()

        if hStream.captured is None:
            hEvent.pending += 1
            hEvent.stream = hStream
            return self._give(hStream, reached)
        return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)

    def cuEventQuery(self, hEvent: CUevent) -> tuple[Any, ...]:
        return (CUresult.CUDA_ERROR_NOT_READY if hEvent.pending else _OK,)

    def cuEventSynchronize(self, hEvent: CUevent) -> tuple[Any, ...]:
        return (self._finish(hEvent.stream) if hEvent.stream is not None else _OK,)

    def cuEventElapsedTime(self, hStart: CUevent, hEnd: CUevent) -> tuple[Any, ...]:
        if hStart.value & 2 or hEnd.value & 2 or hStart.at is None or hEnd.at is None:
            return CUresult.CUDA_ERROR_INVALID_HANDLE, None
        if hStart.pending or hEnd.pending:
            return CUresult.CUDA_ERROR_NOT_READY, None
        return _OK, 1e3 * (hEnd.at - hStart.at)

    # --- code

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        try:
            library = ctypes.CDLL(image.removeprefix(IMAGE).decode())
        except (OSError, UnicodeDecodeError):
            return CUresult.CUDA_ERROR_INVALID_IMAGE, None
        library.emulated_error.restype = ctypes.c_char_p
        self.loaded += 1
        return _OK, CUmodule(library)

    def cuModuleUnload(self, hmod: CUmodule) -> tuple[Any, ...]:
        self.loaded -= 1
        return (_OK,)

    def cuModuleGetFunction(self, hmod: CUmodule, name: bytes) -> tuple[Any, ...]:
        try:
            function = CUfunction((hmod.value, hmod.value[f"packed_{name.decode()}"]))
        except AttributeError:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        sizes = (ctypes.c_int * 4096)()
        count = hmod.value[f"parameters_{name.decode()}"](sizes)
        function.parameters = tuple(sizes[:count])
        return _OK, function

    def cuFuncSetAttribute(self, hfunc: CUfunction, attrib: Any, value: int) -> tuple[Any, ...]:
        hfunc.dynamic = value
        return (_OK if value <= 227 << 10 else CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuLaunchKernel(
        self, f: CUfunction, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int,
        blockDimZ: int, sharedMemBytes: int, hStream: CUstream, kernelParams: Any, extra: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        library, function = f.value
        values, kinds = kernelParams or ((), ())
        cells = [kind(value) for kind, value in zip(kinds, values, strict=True)]
        if tuple(map(ctypes.sizeof, cells)) != f.parameters:
            raise TypeError(f"a kernel with parameters of {f.parameters} bytes is given {kinds}")
        sizes = (gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ)
        threads = blockDimX * blockDimY * blockDimZ
        if 0 in sizes or threads > 1024 or max(gridDimY, gridDimZ) > 65535 or gridDimX >= 1 << 31:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        if sharedMemBytes > f.dynamic:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        addresses = (ctypes.c_void_p * max(len(cells), 1))(*map(ctypes.addressof, cells))
        extents = (ctypes.c_uint * 6)(*sizes)

        def launch(cells: Any = cells) -> CUresult:  # which keeps the arguments alive
            library.emulated_clear()
            function(extents, addresses)
            error = library.emulated_error()
            if not error:
                return _OK
            self.said = error.decode()
            return CUresult.CUDA_ERROR_LAUNCH_FAILED

        return self._give(hStream, launch)


for _name, _function in list(vars(EmulatedDriver).items()):
    if _name.startswith("cu"):
        setattr(EmulatedDriver, _name, _strict(_function))


def _move(to: int, source: int, nbytes: int) -> None:
    ctypes.memmove(to, source, nbytes)
