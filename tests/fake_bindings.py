"""NVIDIA's package `cuda.bindings` without a GPU, for tests: `with bindings() as fake:` puts modules `driver`
and `nvrtc` in its place, with its functions' names, arguments and results, over the emulated device. So what
runs where there is a GPU runs here, the search for the driver and the compilation by NVRTC included.

Arguments of wrong types are errors; machine code runs on GPUs of its own major number, PTX on all later ones.
"""

from __future__ import annotations

import ctypes
import enum
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tracegrad.runtime import cuda_driver
from tracegrad.runtime.cuda_emulated import image_of
from tracegrad.runtime.cuda_emulated_driver import IMAGE, CUresult, EmulatedDriver

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(')
#: what ptxas says of a kernel when it is asked to be verbose
_REPORT = b"""ptxas info    : Compiling entry function '%s' for 'sm_80'
ptxas info    : Function properties for %s
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4096 bytes smem, 368 bytes cmem[0]"""


class nvrtcResult(enum.IntEnum):
    NVRTC_SUCCESS = 0
    NVRTC_ERROR_COMPILATION = 6


_OK = nvrtcResult.NVRTC_SUCCESS


class nvrtcProgram:
    """A source, and what was made of it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.made = self.log = b""
        self.alive = True


class FakeNvrtc:
    """Stands for the module `cuda.bindings.nvrtc`. The "machine code" names the architecture and a library
    that g++ built.

    Attributes:
        version: as it says; `known`: the architectures that it writes machine code for.
        options: of each compilation.
        log: what it says of the next ones.
    """

    nvrtcResult = nvrtcResult

    def __init__(self) -> None:
        self.version = (13, 0)
        self.known = [75, 80, 86, 90]
        self.options: list[list[str]] = []
        self.log = b""

    def nvrtcVersion(self) -> tuple[Any, ...]:
        return _OK, *self.version

    def nvrtcGetSupportedArchs(self) -> tuple[Any, ...]:
        return _OK, list(self.known)

    def nvrtcCreateProgram(
        self, src: bytes, name: bytes, numHeaders: int, headers: list[bytes], includeNames: list[bytes]
    ) -> tuple[Any, ...]:
        assert isinstance(src, bytes) and isinstance(name, bytes) and numHeaders == 0
        assert headers == includeNames == []
        return _OK, nvrtcProgram(src.decode())

    def nvrtcCompileProgram(
        self, prog: nvrtcProgram, numOptions: int, options: list[bytes]
    ) -> tuple[Any, ...]:
        assert prog.alive and numOptions == len(options) and all(isinstance(o, bytes) for o in options)
        said = [o.decode() for o in options]
        self.options.append(said)
        prog.log = self.log
        if "--ptxas-options=-v" in said and not self.log:
            prog.log = b"\n".join(_REPORT % (k.encode(), k.encode()) for k in _KERNEL.findall(prog.source))
        (architecture,) = [o.partition("=")[2] for o in said if o.startswith("--gpu-architecture=")]
        kind, number = re.findall(r"^(sm|compute)_(\d+)a?$", architecture)[0]
        assert kind == "compute" or int(number) in self.known, f"NVRTC does not know {architecture}"
        assert "#ifndef __CUDACC_RTC__" not in prog.source, "the host part is not NVRTC's"
        prog.made = b"%s%s|%s\0" % (
            IMAGE,
            architecture.encode(),
            image_of(prog.source, _KERNEL.findall(prog.source)),
        )
        return (nvrtcResult.NVRTC_ERROR_COMPILATION if b"error" in self.log else _OK,)

    def nvrtcGetProgramLogSize(self, prog: nvrtcProgram) -> tuple[Any, ...]:
        return _OK, len(prog.log) + 1

    def nvrtcGetProgramLog(self, prog: nvrtcProgram, log: bytes) -> tuple[Any, ...]:
        return _written(prog, prog.log + b"\0", log)

    def nvrtcGetCUBINSize(self, prog: nvrtcProgram) -> tuple[Any, ...]:
        return _OK, len(prog.made)

    def nvrtcGetCUBIN(self, prog: nvrtcProgram, cubin: bytes) -> tuple[Any, ...]:
        return _written(prog, prog.made, cubin)

    def nvrtcGetPTXSize(self, prog: nvrtcProgram) -> tuple[Any, ...]:
        return _OK, len(prog.made)

    def nvrtcGetPTX(self, prog: nvrtcProgram, ptx: bytes) -> tuple[Any, ...]:
        return _written(prog, prog.made, ptx)

    def nvrtcDestroyProgram(self, prog: nvrtcProgram) -> tuple[Any, ...]:
        assert prog.alive
        prog.alive = False
        return (_OK,)


def _written(prog: nvrtcProgram, what: bytes, target: bytes) -> tuple[Any, ...]:
    """The package writes into the bytes that it is given."""
    assert prog.alive and type(target) is bytes and len(target) >= len(what)
    assert len(target) > 1, "of one byte Python has one object of each value, which was written to"
    at = ctypes.cast(ctypes.c_char_p(target), ctypes.c_void_p).value
    assert at is not None
    ctypes.memmove(at, what, len(what))
    return (_OK,)


class FakeDriver:
    """Stands for the module `cuda.bindings.driver`: the emulated driver, which nobody is told of. Machine
    code is checked for its architecture.

    Attributes:
        version: of CUDA, that it is for.
        absent: there is no GPU.
    """

    def __init__(self, inner: EmulatedDriver) -> None:
        self.inner = inner
        self.version = 13000
        self.absent = False

    def __getattr__(self, name: str) -> Any:
        if name == "emulated":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def cuInit(self, Flags: int) -> tuple[Any, ...]:
        return (CUresult.CUDA_ERROR_NO_DEVICE,) if self.absent else self.inner.cuInit(Flags)

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return CUresult.CUDA_SUCCESS, self.version

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        assert image.startswith(IMAGE) and image.endswith(b"\0")
        kind, number, path = re.findall(rb"^(sm|compute)_(\d+)a?\|(.*)\0$", image[len(IMAGE) :])[0]
        major, minor = divmod(int(number), 10)
        own = self.inner.capability
        if self.version < 13000:
            return CUresult.CUDA_ERROR_INVALID_IMAGE, None
        if (major, minor) > own or (kind == b"sm" and major != own[0]):
            return CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        return self.inner.cuModuleLoadData(path)


class Fake:
    """Both modules."""

    def __init__(self, driver: FakeDriver, nvrtc: FakeNvrtc) -> None:
        self.driver = driver
        self.nvrtc = nvrtc


@contextmanager
def bindings(capability: tuple[int, int] = (8, 0), devices: int = 1) -> Iterator[Fake]:
    """Inside, the package is the fake one and nothing of CUDA was loaded yet."""
    fake = Fake(FakeDriver(EmulatedDriver(1 << 30, devices, capability)), FakeNvrtc())
    names = ("cuda", "cuda.bindings", "cuda.bindings.driver", "cuda.bindings.nvrtc")
    saved = {n: sys.modules.get(n) for n in names}
    package, inner = ModuleType("cuda"), ModuleType("cuda.bindings")
    package.bindings, inner.driver, inner.nvrtc = inner, fake.driver, fake.nvrtc
    sys.modules.update(zip(names, (package, inner, fake.driver, fake.nvrtc)))  # type: ignore[arg-type]
    before = cuda_driver.swap(cuda_driver.State())
    try:
        yield fake
    finally:
        cuda_driver.swap(before)
        for n, module in saved.items():
            if module is None:
                sys.modules.pop(n, None)
            else:
                sys.modules[n] = module
