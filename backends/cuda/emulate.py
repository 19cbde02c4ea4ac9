"""Runs emitted CUDA on the CPU: `emulate(unit)` builds it with g++ and emulate.h, `.call` runs it on NumPy
arrays. For tests, and for looking at what a kernel does where there is no GPU; it is slow.

With `checked`, every access is looked at: outside of the kernel's buffers or of an array, shared memory read
before it was written, races (two threads touch one element, one of them writing, and no barrier is in
between), and what is not aligned. A finding raises EmulationError with kernel, block and thread. `counted`
runs count bank conflicts and sectors of memory as well (traffic.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ...ir.errors import TracegradError
from ...ir.loops import Buffer, LoopProgram
from ..llvm.cache import default_cache
from .emit import CudaUnit, emit
from .traffic import Traffic, parse

_HERE = Path(__file__).resolve().parent
_FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
_CHECKS = ["-fsanitize=thread", "-fsanitize=bounds"]
#: lines of the text for each access, and small functions where they are called
_COUNTS = ["-g1", "-finline-small-functions", "-finline-functions"]
_SOURCES = ("emulate.h", "emulate.cpp", "emulate_traffic.h", "emulate_warps.h")
_GUARD = 4096  # bytes around each buffer of a checked run


class EmulationError(TracegradError):
    """What the checks found, or a unit that g++ does not take."""


def available() -> bool:
    """Whether there is a g++ to build with."""
    return shutil.which("g++") is not None


class Emulated:
    """A unit as a shared library.

    Args:
        quick: built without optimisation: for what hardly runs.
        counted: checked, and what accesses would cost is counted.

    Attributes:
        unit: what was built.
        path: the library.
        checked: accesses are looked at.
    """

    def __init__(
        self, unit: CudaUnit, checked: bool = False, quick: bool = False, counted: bool = False
    ) -> None:
        self.unit = unit
        self.checked = checked = checked or counted
        self.path = build(unit.text, checked, quick=quick, counted=counted)
        self.library = ctypes.CDLL(str(self.path))
        self.library.emulated_error.restype = ctypes.c_char_p
        self.library.emulated_traffic.restype = ctypes.c_char_p
        self.library.emulated_count(int(counted))
        if checked:
            for launch in unit.launches.values():
                f = launch.function
                sizes = [b.nbytes if isinstance(b, Buffer) else 0 for b in f.parameters]
                self.library.emulated_describe(
                    f.name.encode(), len(sizes), (ctypes.c_longlong * max(len(sizes), 1))(*sizes)
                )

    def call(self, inputs: Sequence[np.ndarray], program: int = 0, steps: int = 1) -> list[np.ndarray]:
        """Outputs of one of the unit's programs; inputs that it updates are overwritten.

        :raises EmulationError: a finding of the checks.
        """
        p = self.unit.programs[program]
        given = [_placed(b, a) for b, a in zip(p.inputs, inputs, strict=True)]
        outputs = [_room(b.nbytes).view(b.dtype.numpy) for b in p.outputs]
        arena = _room(p.arena_bytes)
        arena[:] = 0xA5  # nothing may rely on zeroed memory
        pointers = [a.ctypes.data for a in (*given, *outputs)]
        table = (ctypes.c_void_p * max(len(pointers), 1))(*pointers)
        function = getattr(self.library, self.unit.entries[program])
        self.library.emulated_clear()
        for _ in range(steps):
            function(table, ctypes.c_void_p(arena.ctypes.data), None)
        error = self.library.emulated_error()
        if error:
            raise EmulationError(f"{p.name}: {error.decode()}")
        updated = set(p.updated)
        for b, mine, theirs in zip(p.inputs, given, inputs):
            if b in updated:
                theirs[...] = mine.reshape(theirs.shape)
        return [a.reshape(b.shape) for b, a in zip(p.outputs, outputs)]

    def traffic(self) -> list[Traffic]:
        """What the accesses of all calls so far would cost, by place in the text; empty unless `counted`."""
        return parse(self.library.emulated_traffic().decode(), self.path)


def emulate(
    program: LoopProgram | CudaUnit, checked: bool = False, quick: bool = False, counted: bool = False
) -> Emulated:
    """A program, ready to run on the CPU.

    :raises EmulationError: no g++, or it refuses the text (a bug of the emitter).
    """
    return Emulated(program if isinstance(program, CudaUnit) else emit(program), checked, quick, counted)


def _room(nbytes: int) -> np.ndarray:
    """Aligned bytes with a guard on both sides."""
    raw = np.empty(nbytes + 2 * _GUARD + 256, np.uint8)
    start = _GUARD + -(raw.ctypes.data + _GUARD) % 256
    return raw[start : start + nbytes]


def _placed(b: Buffer, a: np.ndarray) -> np.ndarray:
    if a.dtype != b.dtype.numpy or tuple(a.shape) != b.shape:
        raise EmulationError(f"input {b.name} takes {b.type}, given {a.dtype}{list(a.shape)}")
    out = _room(b.nbytes).view(b.dtype.numpy)
    out[...] = np.ascontiguousarray(a).reshape(-1)
    return out


# --- building -----------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where built libraries are kept: beside the object cache, or a temporary folder where that is off."""
    cache_ = default_cache()
    return Path(cache_.directory).parent / "cuda" if cache_ is not None else _temporary()


@cache
def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="tracegrad-cuda-"))


def build(
    text: str, checked: bool = False, main: bool = False, quick: bool = False, counted: bool = False
) -> Path:
    """The shared library (or with `main` the program) of a unit, from the cache if it was built before."""
    if not available():
        raise EmulationError("emulating CUDA takes g++, which is not installed")
    sources = [(_HERE / name).read_bytes() for name in _SOURCES]
    how = repr((checked, main, quick, counted, _FLAGS, _COUNTS)).encode()
    digest = hashlib.sha256(b"\0".join([*sources, text.encode(), how]))
    out = directory() / f"emulated-{digest.hexdigest()[:32]}{'' if main else '.so'}"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=out.parent) as work:
        place = Path(work)
        for header in ("cuda_fp16.h", "cuda_bf16.h", "cuda_runtime.h"):
            (place / header).write_text("")  # emulate.h has what is used of them
        (place / "unit.cu").write_text(text)
        flags = [*_FLAGS, *(["-O0"] if quick else []), *(_CHECKS if checked else [])]
        flags += _COUNTS if counted else []
        unit = [*flags, f"-I{place}", f"-I{_HERE}", "-include", "emulate.h", "-x", "c++", "-c"]
        _run(["g++", *unit, str(place / "unit.cu"), "-o", str(place / "unit.o")])
        link = [] if main else ["-shared", "-Wl,-Bsymbolic"]
        made = place / "out"
        _run(["g++", *link, str(place / "unit.o"), str(_machine()), "-o", str(made)])
        os.replace(made, out)
    return out


@cache
def _machine() -> Path:
    """The object file of emulate.cpp."""
    digest = hashlib.sha256(b"".join((_HERE / n).read_bytes() for n in _SOURCES))
    out = directory() / f"machine-{digest.hexdigest()[:32]}.o"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        made = out.with_suffix(f".{os.getpid()}.tmp")
        _run(["g++", *_FLAGS, f"-I{_HERE}", "-c", str(_HERE / "emulate.cpp"), "-o", str(made)])
        os.replace(made, out)
    return out


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"g++ failed:\n{done.stderr[:4000]}")
