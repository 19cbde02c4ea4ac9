"""The machine that code is generated for: CPU name, features, vector width, and the function attributes that
follow.

Used by the scheduler (tile sizes), the code generator (vector types, attributes) and the engine (target
machine). LLVM is loaded on first use, never at import.

`TRACEGRAD_CPU` (an LLVM name such as `haswell` or `x86-64-v2`) and `TRACEGRAD_VECTOR_BYTES` (16, 32 or 64)
override the host, so that the code of a smaller machine can be made and run on a larger one.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from types import ModuleType
from typing import Any

from ...ir.collector import collector_paused
from ...ir.dataclass import dataclass
from ...ir.errors import TracegradError
from .digest import blake2b

_init_lock = threading.Lock()
_llvm: ModuleType | None = None


class CompileError(TracegradError):
    """Native code could not be made or loaded: bad LLVM IR, an unknown symbol or an unusable target."""


def llvm() -> Any:
    """`llvmlite.binding` with the native target initialised (about 80 ms the first time, then free)."""
    global _llvm
    if _llvm is None:
        with _init_lock:
            if _llvm is None:
                with collector_paused():
                    import llvmlite.binding as binding  # slow: loads a library of 170 MB

                binding.initialize_native_target()
                binding.initialize_native_asmprinter()
                _llvm = binding
    return _llvm


@dataclass(frozen=True)
class Target:
    """A CPU as the code generator sees it.

    - `name`, `triple`, `features`: as LLVM spells them.
    - `vector_bytes`: width of the vectors to generate (16, 32 or 64).
    - `num_vector_registers`: architectural vector registers of that width.
    - `has_fma`: a fused multiply-add of vectors is one instruction.
    """

    name: str
    triple: str
    features: str
    vector_bytes: int
    num_vector_registers: int
    has_fma: bool

    @property
    def arch(self) -> str:
        """`x86_64`, `aarch64` or whatever the triple begins with."""
        arch = self.triple.split("-", 1)[0]
        return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)

    def lanes(self, itemsize: int) -> int:
        """Elements of `itemsize` bytes in one vector, at least 1."""
        return max(1, self.vector_bytes // itemsize)

    @property
    def function_attributes(self) -> dict[str, str]:
        """String attributes for every generated function.

        Server CPUs of Intel are tuned to prefer 256-bit vectors; without these attributes LLVM may split
        512-bit ones.
        """
        if self.arch != "x86_64":
            return {}
        bits = str(self.vector_bytes * 8)
        return {"prefer-vector-width": bits, "min-legal-vector-width": bits}

    def attribute_text(self) -> str:
        """`function_attributes` as LLVM IR text, for an `attributes #0 = { ... }` group."""
        return " ".join(f'"{key}"="{value}"' for key, value in self.function_attributes.items())

    def fingerprint(self) -> str:
        """A short hash of everything above and of LLVM's version: equal prints may share object code."""
        version = ".".join(map(str, llvm().llvm_version_info))
        text = "|".join((self.name, self.triple, self.features, str(self.vector_bytes),
                         str(self.num_vector_registers), str(self.has_fma), version))
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def machine(self, opt: int = 2) -> Any:
        """A new llvmlite `TargetMachine`. Position independent, small code model: one object is one mapping.

        :raises CompileError: LLVM has no such target.
        """
        binding = llvm()
        try:
            return binding.Target.from_triple(self.triple).create_target_machine(
                cpu=self.name, features=self.features, opt=opt, reloc="pic", codemodel="small", jit=True)
        except RuntimeError as error:
            raise CompileError(f"LLVM has no target {self.triple} ({self.name}): {error}") from None


def host_target() -> Target:
    """The target of this process: the host's CPU, or what the environment overrides it with.

    :raises CompileError: an override that makes no sense.
    """
    return _host_target(os.environ.get("TRACEGRAD_CPU", ""), os.environ.get("TRACEGRAD_VECTOR_BYTES", ""))


@functools.lru_cache(maxsize=16)
def _host_target(cpu: str, vector_bytes: str) -> Target:
    binding = llvm()
    triple = binding.get_process_triple()
    if cpu:
        target = _probe(cpu, triple)
    else:
        features = binding.get_host_cpu_features()
        arch = Target("", triple, "", 16, 16, False).arch
        width, registers, fma = _vector_unit(arch, features)
        text = features.flatten()
        if width == 64:
            text += ",-prefer-256-bit"
        target = Target(binding.get_host_cpu_name(), triple, text, width, registers, fma)
    if vector_bytes:
        if vector_bytes not in ("16", "32", "64"):
            raise CompileError(f"TRACEGRAD_VECTOR_BYTES={vector_bytes}: expected 16, 32 or 64")
        target = Target(target.name, triple, target.features, int(vector_bytes), target.num_vector_registers,
                        target.has_fma)
    return target


def _vector_unit(arch: str, features: dict[str, bool]) -> tuple[int, int, bool]:
    """(vector bytes, vector registers, fused multiply-add) from LLVM's feature names."""
    if arch == "x86_64":
        fma = bool(features.get("fma"))
        if features.get("avx512f") and features.get("avx512vl"):
            return 64, 32, True
        # AVX without AVX2 has 256-bit floats but 128-bit integers; LLVM splits the latter.
        return (32 if features.get("avx") else 16), 16, fma
    if arch == "aarch64":
        return 16, 32, True
    return 16, 16, False


_PROBE = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define void @probe(ptr %p) {
  %a = load <16 x float>, ptr %p
  %b = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %a, <16 x float> %a)
  %c = fadd <16 x float> %b, %a
  store <16 x float> %c, ptr %p
  ret void
}
"""


# An unknown name makes LLVM end the process, hence a process of its own; it is paid for by overrides only.
_PROBE_PROGRAM = """
import sys
import llvmlite.binding as binding
cpu, triple, features, text = sys.argv[1:]
binding.initialize_native_target()
binding.initialize_native_asmprinter()
module = binding.parse_assembly(text)
module.triple = triple
machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, reloc="pic")
print(machine.emit_assembly(module))
"""


def _probe(cpu: str, triple: str) -> Target:
    """The target of a named CPU: LLVM lists no features per name, so see what code it makes for one."""
    arch = Target(cpu, triple, "", 16, 16, False).arch
    features = "-prefer-256-bit" if arch == "x86_64" else ""
    import subprocess  # for overrides only

    done = subprocess.run([sys.executable, "-c", _PROBE_PROGRAM, cpu, triple, features, _PROBE],
                          capture_output=True, text=True)
    if done.returncode or "not a recognized processor" in done.stderr:
        raise CompileError(f"TRACEGRAD_CPU={cpu}: LLVM has no processor of that name for {triple}; "
                           "expected one like haswell, x86-64-v3 or apple-m1")
    if arch == "aarch64":
        return Target(cpu, triple, features, 16, 32, True)
    fma = "vfm" in done.stdout
    if "%zmm" in done.stdout:
        return Target(cpu, triple, features, 64, 32, True)
    return Target(cpu, triple, features, 32 if "%ymm" in done.stdout else 16, 16, fma)
