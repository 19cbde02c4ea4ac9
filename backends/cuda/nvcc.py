"""nvcc: compiles units without tolerating a warning, and reads back what each kernel takes of the GPU. Used
by the runtime (`.compile()` and `.cost()` of a CUDA lowering) and by tests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from ...ir.dataclass import dataclass
from ...ir.errors import TracegradError
from .emulate import directory

#: architectures that units are written for
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
#: Contraction is off: sums of products are fused where the schedule says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-fmad=false")
_STRICT = ("-Xcompiler", "-Wall,-Wextra", "-Werror", "all-warnings")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\w+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class NvccError(TracegradError):
    """nvcc is missing, or refuses a unit (a bug of the emitter)."""


@dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel.

    Attributes:
        registers: of each thread.
        shared: bytes of shared memory of each block.
        spills: bytes stored to and loaded from local memory for lack of registers.
        stack: bytes of local memory of each thread.
    """

    registers: int
    shared: int
    spills: int
    stack: int

    def __str__(self) -> str:
        spilled = f", {self.spills} bytes spilled" if self.spills else ""
        return f"{self.registers} registers, {self.shared} bytes shared{spilled}"


def available() -> bool:
    """Whether nvcc is installed."""
    return shutil.which("nvcc") is not None


@lru_cache(maxsize=1)
def version() -> str:
    """nvcc's version line."""
    done = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout else ""


def compile_cubin(text: str, architecture: str = "sm_80") -> tuple[bytes, dict[str, Resources]]:
    """Machine code of a unit's kernels, and what each takes. Any warning is an error.

    :raises NvccError: no nvcc; or its message.
    """
    _check(architecture)
    key = hashlib.sha256("\0".join((text, architecture, version(), *FLAGS)).encode()).hexdigest()[:32]
    place = directory() / f"unit-{key}"
    code, figures = place.with_suffix(".cubin"), place.with_suffix(".json")
    if code.exists() and figures.exists():
        return code.read_bytes(), {k: Resources(**v) for k, v in json.loads(figures.read_text()).items()}
    report = _nvcc(text, ["-cubin", f"-arch={architecture}", "-Xptxas", "-v"], code)
    found = parse_resources(report)
    temporary = figures.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({k: asdict(v) for k, v in found.items()}))
    os.replace(temporary, figures)
    return code.read_bytes(), found


def compile_ptx(text: str, architecture: str = "compute_80") -> bytes:
    """A unit's kernels as PTX, which drivers compile for GPUs of that architecture and later ones; with the
    zero that ends it.

    :raises NvccError: no nvcc; or its message.
    """
    _check(architecture.replace("compute", "sm"))
    key = hashlib.sha256("\0".join((text, architecture, version(), *FLAGS)).encode()).hexdigest()[:32]
    out = directory() / f"unit-{key}.ptx"
    if not out.exists():
        _nvcc(text, ["-ptx", f"-arch={architecture}"], out)
    return out.read_bytes() + b"\0"


def check(text: str, architecture: str = "sm_80") -> None:
    """Whether nvcc takes a unit's kernels without a warning; quick, since nothing is optimised.

    :raises NvccError: no nvcc; or its message.
    """
    _check(architecture)
    with tempfile.TemporaryDirectory(prefix="tracegrad-") as work:
        quick = ["-Xcicc", "-O0", "-Xptxas", "-O0"]
        _nvcc(text, ["-cubin", f"-arch={architecture}", *quick], Path(work) / "unit.cubin")


def compile_library(text: str, out: str | os.PathLike[str], architecture: str = "sm_80") -> None:
    """A shared library with the unit's host functions in it.

    :raises NvccError: no nvcc; or its message.
    """
    _check(architecture)
    _nvcc(text, ["-shared", "-Xcompiler", "-fPIC", f"-arch={architecture}"], Path(out))


def compile_program(text: str, out: str | os.PathLike[str], architecture: str = "sm_80") -> None:
    """An executable of a unit that has a `main`.

    :raises NvccError: no nvcc; or its message.
    """
    _check(architecture)
    _nvcc(text, [f"-arch={architecture}"], Path(out))


def _check(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise NvccError(f"no architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}")
    if not available():
        raise NvccError("compiling CUDA takes nvcc (NVIDIA's CUDA toolkit), which is not on the PATH")


def _nvcc(text: str, words: list[str], out: Path) -> str:
    """Runs nvcc; gives what it said."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nvcc-", dir=out.parent) as work:
        source, made = Path(work) / "unit.cu", Path(work) / "out"
        source.write_text(text)
        command = ["nvcc", *FLAGS, *_STRICT, *words, str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode or re.search(r"\bwarning\b", said):
            raise NvccError(f"nvcc does not take the unit:\n{said[:6000]}")
        os.replace(made, out)
    return said


def parse_resources(report: str) -> dict[str, Resources]:
    """The figures of `ptxas -v`, by kernel."""
    found: dict[str, Resources] = {}
    entry, function = "", ""
    stack = spills = 0
    for line in report.splitlines():
        if m := _ENTRY.search(line):
            entry = function = m.group(1)
            stack = spills = 0
        elif m := _PROPERTIES.search(line):
            function = m.group(1)
        elif m := _STACK.search(line):
            if function == entry:
                stack, spills = int(m.group(1)), int(m.group(2)) + int(m.group(3))
        elif (m := _USED.search(line)) and entry:
            shared = _SHARED.search(line)
            found[entry] = Resources(int(m.group(1)), int(shared.group(1)) if shared else 0, spills, stack)
    return found
