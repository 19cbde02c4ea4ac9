"""A GPU that is emulated: the functions of NVIDIA's driver that runtime/cuda_driver.py calls, under the names
and with the arguments of `cuda.bindings.driver`, over the CPU's memory.

    TRACEGRAD_CUDA=emulate         one device, sm_80, on any machine with g++
    TRACEGRAD_CUDA_MEMORY=<bytes>  its size; a gibibyte if not set

The emitted text is built by g++ with emulate.h, so that all that uses a GPU can be run and tested
without one. It is slow. Streams do what they are told at once; a copy that leaves the memory it was given is
an error.
"""

from __future__ import annotations

import bisect
import ctypes
import enum
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..backends.cuda.emit import CudaUnit
from ..backends.cuda.emulate import available, build
from . import cuda_driver as low

#: what `cuModuleLoadData` takes here: the path of a shared library
_PACKED = """
#include <type_traits>
#include <utility>

// Launches with arguments as the driver's cuLaunchKernel takes them: an array of their addresses.
template <typename... A, size_t... I>
void launch_packed(const char* name, void (*kernel)(A...), const unsigned* sizes, void** given,
                   std::index_sequence<I...>) {
  emulated::start(name, kernel, dim3(sizes[0], sizes[1], sizes[2]), dim3(sizes[3], sizes[4], sizes[5]),
                  *static_cast<std::remove_cv_t<A>*>(given[I])...);
}
template <typename... A>
void launch_packed(const char* name, void (*kernel)(A...), const unsigned* sizes, void** given) {
  launch_packed(name, kernel, sizes, given, std::index_sequence_for<A...>{});
}
"""
_DEFAULT_BYTES = 1 << 30
_ALIGN = 256
_NAME = "Tracegrad's emulated GPU"


class CUresult(enum.IntEnum):
    """The driver's statuses that occur here."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


_OK = CUresult.CUDA_SUCCESS


class _Attributes(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class _StreamFlags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class _CaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class _Stream:
    """A stream: what it was told while capturing, or None."""

    def __init__(self) -> None:
        self.captured: list[Callable[[], None]] | None = None


class EmulatedDriver:
    """Stands for the module `cuda.bindings.driver`. Functions give a status, and results behind it."""

    emulated = True
    CUresult = CUresult
    CUdevice_attribute = _Attributes
    CUstream_flags = _StreamFlags
    CUstreamCaptureMode = _CaptureMode

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.memory: dict[int, tuple[np.ndarray, int]] = {}
        self.places: list[int] = []
        self.said = ""

    # --- devices

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        return (_OK,)

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return _OK, 1

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return (_OK, 0) if ordinal == 0 else (CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def cuDeviceGetName(self, length: int, dev: int) -> tuple[Any, ...]:
        return _OK, _NAME.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib: Any, dev: int) -> tuple[Any, ...]:
        return _OK, {75: 8, 76: 0, 16: 1}[int(attrib)]

    def cuDevicePrimaryCtxRetain(self, dev: int) -> tuple[Any, ...]:
        return _OK, "context"

    def cuCtxSetCurrent(self, ctx: Any) -> tuple[Any, ...]:
        return (_OK,)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:
        return (_OK,)

    def cuGetErrorString(self, error: CUresult) -> tuple[Any, ...]:
        said, self.said = self.said, ""
        return _OK, (said or error.name.removeprefix("CUDA_ERROR_").lower().replace("_", " ")).encode()

    # --- memory

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return _OK, self.total - self.used, self.total

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        if not bytesize:
            return CUresult.CUDA_ERROR_INVALID_VALUE, None
        if self.used + bytesize > self.total:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        try:
            raw = np.empty(bytesize + _ALIGN, np.uint8)
        except MemoryError:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        ptr = raw.ctypes.data + -raw.ctypes.data % _ALIGN
        raw[:] = 0xA5  # nothing may rely on zeroed memory
        self.memory[ptr] = raw, bytesize
        bisect.insort(self.places, ptr)
        self.used += bytesize
        return _OK, ptr

    def cuMemFree(self, dptr: int) -> tuple[Any, ...]:
        found = self.memory.pop(dptr, None)
        if found is None:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.places.remove(dptr)
        self.used -= found[1]
        return (_OK,)

    def _inside(self, ptr: int, nbytes: int) -> bool:
        """Whether bytes lie in one block of the device's memory."""
        i = bisect.bisect_right(self.places, ptr) - 1
        if i < 0:
            return False
        start = self.places[i]
        return ptr + nbytes <= start + self.memory[start][1]

    def _copy(self, to: int, source: int, nbytes: int, stream: _Stream, *ours: int) -> tuple[Any, ...]:
        if not all(self._inside(p, nbytes) for p in ours):
            return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
        if stream.captured is not None:
            if len(ours) < 2:  # the host's memory would be read at every replay
                return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
            stream.captured.append(lambda: _move(to, source, nbytes))
        else:
            _move(to, source, nbytes)
        return (_OK,)

    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: _Stream) -> Any:
        return self._copy(dstDevice, srcHost, ByteCount, hStream, dstDevice)

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: _Stream) -> Any:
        return self._copy(dstHost, srcDevice, ByteCount, hStream, srcDevice)

    def cuMemcpyDtoDAsync(self, dstDevice: int, srcDevice: int, ByteCount: int, hStream: _Stream) -> Any:
        return self._copy(dstDevice, srcDevice, ByteCount, hStream, dstDevice, srcDevice)

    # --- streams and graphs

    def cuStreamCreate(self, Flags: int) -> tuple[Any, ...]:
        return _OK, _Stream()

    def cuStreamSynchronize(self, hStream: _Stream) -> tuple[Any, ...]:
        if hStream.captured is not None:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        return (_OK,)

    def cuStreamBeginCapture(self, hStream: _Stream, mode: Any) -> tuple[Any, ...]:
        hStream.captured = []
        return (_OK,)

    def cuStreamEndCapture(self, hStream: _Stream) -> tuple[Any, ...]:
        done, hStream.captured = hStream.captured, None
        return _OK, done

    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> tuple[Any, ...]:
        return _OK, list(hGraph)

    def cuGraphDestroy(self, hGraph: Any) -> tuple[Any, ...]:
        return (_OK,)

    def cuGraphExecDestroy(self, hGraphExec: Any) -> tuple[Any, ...]:
        return (_OK,)

    def cuGraphLaunch(self, hGraphExec: Any, hStream: _Stream) -> tuple[Any, ...]:
        for work in hGraphExec:
            work()
        return (_OK,)

    # --- code

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        library = ctypes.CDLL(image.decode())
        library.emulated_error.restype = ctypes.c_char_p
        return _OK, library

    def cuModuleUnload(self, hmod: Any) -> tuple[Any, ...]:
        return (_OK,)

    def cuModuleGetFunction(self, hmod: Any, name: bytes) -> tuple[Any, ...]:
        try:
            return _OK, (hmod, hmod[f"packed_{name.decode()}"])
        except AttributeError:
            return CUresult.CUDA_ERROR_NOT_FOUND, None

    def cuLaunchKernel(
        self, f: Any, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int,
        blockDimZ: int, sharedMemBytes: int, hStream: _Stream, kernelParams: Any, extra: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        library, function = f
        values, kinds = kernelParams
        cells = [kind(value) for kind, value in zip(kinds, values)]
        addresses = (ctypes.c_void_p * max(len(cells), 1))(*map(ctypes.addressof, cells))
        sizes = (ctypes.c_uint * 6)(gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ)

        def launch(cells: Any = cells) -> None:  # which keeps the arguments alive
            function(sizes, addresses)

        if hStream.captured is not None:
            hStream.captured.append(launch)
            return (_OK,)
        library.emulated_clear()
        launch()
        error = library.emulated_error()
        if error:
            self.said = error.decode()
            return (CUresult.CUDA_ERROR_LAUNCH_FAILED,)
        return (_OK,)


def _move(to: int, source: int, nbytes: int) -> None:
    ctypes.memmove(to, source, nbytes)


def load() -> tuple[Any, str | None]:
    """The driver, or None and what is missing."""
    if not available():
        return None, "emulating one takes g++, which is not installed"
    given = os.environ.get("TRACEGRAD_CUDA_MEMORY", "")
    if given and not given.isdecimal():
        return None, f"TRACEGRAD_CUDA_MEMORY must be a number of bytes, not {given!r}"
    return EmulatedDriver(int(given) if given else _DEFAULT_BYTES), None


#: the device that `emulated` puts in place, one for all its uses
_KEPT: list[Any] = []


@contextmanager
def emulated() -> Iterator[EmulatedDriver]:
    """Inside, the emulated device is the only one, whatever the environment says; for tests. Tensors on it
    must not be used outside.

    Raises CudaError without g++.
    """
    if not _KEPT:
        state = low.State()
        state.driver, state.reason = load()
        if state.driver is None:
            raise low.CudaError(f"no GPU can be used: {state.reason}")
        state.count = 1
        _KEPT.append(state)
    before = low.swap(_KEPT[0])
    try:
        yield _KEPT[0].driver
    finally:
        low.swap(before)


def image(unit: CudaUnit) -> bytes:
    """What `cuModuleLoadData` takes of a unit: the path of a library in which every kernel can be launched
    by its name.

    Raises EmulationError if g++ refuses the text.
    """
    entries = [
        f'extern "C" void packed_{f.name}(const unsigned* sizes, void** given) {{\n'
        f'  launch_packed("{f.name}", {f.name}, sizes, given);\n}}\n'
        for f in unit.functions
    ]
    return str(build(unit.text + _PACKED + "\n".join(entries))).encode()
