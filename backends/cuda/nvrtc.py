"""NVRTC, NVIDIA's compiler as a library, by way of the package cuda-bindings: the device part of a unit to
machine code without a CUDA toolkit. Used by the runtime; it needs no GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ...ir.errors import TracegradError

_OPTIONS = ("--std=c++17", "--fmad=false", "-default-device")


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


def compile_cubin(device_text: str, architecture: str) -> bytes:
    """Machine code of a unit's kernels. A warning is an error, as with nvcc.

    :raises NvrtcError: its message.
    """
    nvrtc = library()
    options = [*_OPTIONS, f"--gpu-architecture={architecture}", *(f"-I{p}" for p in include_folders())]
    _, program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(device_text.encode(), b"unit.cu", 0, [], []))
    try:
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        _, size = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        said = log.rstrip(b"\0 \n").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS or "warning" in said:
            raise NvrtcError(f"NVRTC does not take the unit:\n{said[:6000]}")
        _, size = _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        code = b" " * size
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


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
    return [p for p in dict.fromkeys(roots) if (p / "cuda_fp16.h").is_file()][:1]


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise NvrtcError(f"NVRTC failed: {result[0]}")
    return result if len(result) > 1 else (*result, None)
