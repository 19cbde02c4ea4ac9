"""NVRTC, NVIDIA's compiler as a library, by way of the package cuda-bindings: the device part of a unit to
machine code without a CUDA toolkit, and what each kernel takes of the GPU. What it made is kept beside the
CPU's object code. Used by the runtime; it needs no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import Any

from ...ir.errors import TracegradError
from ..llvm.cache import CachedObject, default_cache, object_key
from .nvcc import Resources, parse_resources

_OPTIONS = ("--std=c++17", "--fmad=false", "-default-device")
#: makes ptxas say what each kernel takes
_VERBOSE = "--ptxas-options=-v"


class NvrtcError(TracegradError):
    """NVRTC is missing, or refuses a unit (a bug of the emitter)."""


def library() -> Any:
    """The module `cuda.bindings.nvrtc`, with its library loaded.

    :raises NvrtcError: saying which package is missing.
    """
    try:
        from cuda.bindings import nvrtc  # type: ignore[import-not-found]
    except ImportError:
        raise NvrtcError("NVRTC takes the package cuda-bindings: pip install 'tracegrad[cuda]'") from None
    try:
        nvrtc.nvrtcVersion()
    except Exception as e:  # its loader has errors of its own kinds
        raise NvrtcError(
            f"the library of NVRTC can't be loaded: pip install nvidia-cuda-nvrtc ({e})"
        ) from None
    return nvrtc


def available() -> bool:
    """Whether NVRTC can be used."""
    try:
        library()
    except NvrtcError:
        return False
    return True


def version() -> tuple[int, int]:
    """NVRTC's version, such as (13, 0).

    :raises NvrtcError: it is missing.
    """
    nvrtc = library()
    _, major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    return int(major), int(minor)


def knows(capability: tuple[int, int]) -> bool:
    """Whether NVRTC writes machine code for GPUs of a compute capability; for newer ones it writes PTX, which
    their driver compiles.

    :raises NvrtcError: it is missing.
    """
    nvrtc = library()
    _, found = _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    return 10 * capability[0] + capability[1] in [int(a) for a in found]


def compile_cubin(device_text: str, architecture: str) -> bytes:
    """Machine code of a unit's kernels for `sm_90`, say. A warning is an error, as with nvcc.

    :raises NvrtcError: its message.
    """
    return _kept(device_text, architecture, "CUBIN")[0]


def resources(device_text: str, architecture: str) -> dict[str, Resources]:
    """What each kernel of a unit takes of a GPU of `sm_90`, say, by name.

    :raises NvrtcError: its message.
    """
    return parse_resources(_kept(device_text, architecture, "CUBIN")[1].decode(errors="replace"))


def compile_ptx(device_text: str, architecture: str) -> bytes:
    """A unit's kernels as PTX for `compute_90`, say, which drivers of that architecture and later ones
    compile when it is loaded; with the zero that ends it.

    :raises NvrtcError: its message.
    """
    return _kept(device_text, architecture, "PTX")[0]


def _kept(device_text: str, architecture: str, kind: str) -> tuple[bytes, bytes]:
    """The code and what the compiler said; from the cache if it was compiled before, with these options by
    this version."""
    options = [*_OPTIONS, f"--gpu-architecture={architecture}", *[_VERBOSE] * (kind == "CUBIN")]
    headers = include_folders()
    cache = default_cache()
    if cache is None:
        return _compile(device_text, [*options, *(f"-I{p}" for p in headers)], kind)
    stamps = [_stamp(p / name) for p in headers for name in ("cuda_fp16.h", "cuda_bf16.h")]
    key = object_key("nvrtc", kind, repr(version()), *options, *stamps, device_text)
    found = cache.load(key)
    symbols = (kind, "LOG")
    if found is not None and found.symbols == symbols and len(found.objects) == 2:
        return found.objects[0], found.objects[1]
    made = _compile(device_text, [*options, *(f"-I{p}" for p in headers)], kind)
    cache.store(key, CachedObject(symbols, made))
    return made


def _stamp(header: Path) -> str:
    """What tells one header from another of the same name."""
    with contextlib.suppress(OSError):
        info = header.stat()
        return f"{header}:{info.st_size}:{info.st_mtime_ns}"
    return ""


def _compile(device_text: str, options: list[str], kind: str) -> tuple[bytes, bytes]:
    nvrtc = library()
    _, program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(device_text.encode(), b"unit.cu", 0, [], []))
    try:
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = _bytes(nvrtc, program, "ProgramLog").rstrip(b"\0 \n")
        said = log.decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS or "warning" in said:
            raise NvrtcError(f"NVRTC does not take the unit:\n{said[:6000]}")
        return _bytes(nvrtc, program, kind), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _bytes(nvrtc: Any, program: Any, what: str) -> bytes:
    """What `nvrtcGet<what>` writes. It writes into the bytes it is given; of one byte Python has but one
    object of each value, which nobody may write to, so that there is always a second one."""
    _, size = _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    out = bytes(max(int(size), 2))
    _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, out))
    return out[: int(size)]


@functools.lru_cache(maxsize=4)
def _headers(roots: tuple[Path, ...]) -> list[Path]:
    return [p for p in dict.fromkeys(roots) if (p / "cuda_fp16.h").is_file()][:1]


def include_folders() -> list[Path]:
    """Where CUDA's headers for halves may be."""
    roots = [
        Path(os.environ[name]) / "include" for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)
    ]
    for place in sys.path:
        nvidia = Path(place or ".") / "nvidia"
        if nvidia.is_dir():
            roots += [*sorted(nvidia.glob("cu*/include")), nvidia / "cuda_runtime" / "include"]
    roots += [
        Path("/usr/local/cuda/include"),
        *sorted(Path("/usr/local").glob("cuda-*/include"), reverse=True),
    ]
    return _headers(tuple(roots))


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise NvrtcError(f"NVRTC failed: {result[0]}")
    return result if len(result) > 1 else (*result, None)
