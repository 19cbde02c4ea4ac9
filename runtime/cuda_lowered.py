"""A graph on its way to CUDA: `Lowered.cuda`, which `step.lower(..., backend="cuda")` gives. Stages `graph`,
`optimized`, `loops` and `cuda`; nothing of it needs a GPU.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..backends.cuda import nvcc, nvrtc
from ..backends.cuda.emit import CudaUnit, emit
from ..backends.cuda.emulate import Emulated, emulate
from ..backends.cuda.nvcc import Resources
from ..backends.gpu_schedule import schedule_gpu
from ..backends.machine import SM_75, SM_80, SM_90, GpuModel
from ..ir.dataclass import dataclass, replace
from .executable import Lowered
from .precision import get_float32_matmul_precision
from .report import Cost, cost_of

if TYPE_CHECKING:
    from ..ir.graph import Graph
    from ..ir.loops import LoopProgram
    from .cuda import CudaExecutable

#: what the scheduler knows of each architecture
MODELS: dict[str, GpuModel] = {"sm_75": SM_75, "sm_80": SM_80, "sm_90": SM_90}


@dataclass(frozen=True)
class CudaCost(Cost):
    """Static cost, with what each kernel takes of the GPU.

    Attributes:
        resources: one for each of `kernels`, as ptxas reports it; empty with neither NVRTC nor nvcc.
    """

    resources: tuple[Resources, ...] = ()

    def __str__(self) -> str:
        lines = [super().__str__()]
        lines += [f"  {k.name}: {r}" for k, r in zip(self.kernels, self.resources)]
        return "\n".join(lines)


class CudaLowered(Lowered):
    """One graph on its way to CUDA.

    Args:
        lowered: the same graph's lowering for the CPU, whose optimised graph is shared.
        architecture: `sm_75`, `sm_80` or `sm_90`: what is scheduled for, and compiled for by default.
        precision: of contractions of f32; what `set_float32_matmul_precision` set last, if left out.
    """

    backend = "cuda"
    stages = ("graph", "optimized", "loops", "cuda")

    def __init__(self, lowered: Lowered, architecture: str = "sm_80", precision: str | None = None) -> None:
        if architecture not in MODELS:
            raise nvcc.NvccError(f"no architecture {architecture!r}; there are {', '.join(MODELS)}")
        self.graph = lowered.graph
        self.cpu = lowered
        self.architecture = architecture
        self.precision = precision or get_float32_matmul_precision()
        self.records = lowered.records

    @cached_property
    def optimized(self) -> Graph:
        return self.cpu.optimized

    @cached_property
    def machine(self) -> Any:
        return replace(MODELS[self.architecture], matmul_precision=self.precision)

    @cached_property
    def loops(self) -> LoopProgram:
        return schedule_gpu(self.optimized, self.machine)

    @cached_property
    def unit(self) -> CudaUnit:
        """The translation unit."""
        return emit(self.loops)

    def as_text(self, stage: str = "cuda") -> str:
        """The program at `graph`, `optimized`, `loops` or `cuda`."""
        if stage == "graph":
            return str(self.graph)
        if stage == "optimized":
            return str(self.optimized)
        if stage == "loops":
            return str(self.loops)
        if stage == "cuda":
            return self.unit.text
        raise ValueError(f"no stage {stage!r}; there are {', '.join(self.stages)}")

    def cost(self) -> CudaCost:
        """Operations and bytes moved of one run, kernel by kernel; and, where NVRTC or nvcc is installed,
        registers, shared memory and spills, of the code that `cubin` gives. Nothing runs."""
        kernels = cost_of(self.loops).kernels
        if nvrtc.available():
            found = nvrtc.resources(self.unit.device_text, self.architecture)
        elif nvcc.available():
            found = nvcc.compile_cubin(self.unit.text, self.architecture)[1]
        else:
            return CudaCost(kernels)
        made = [self.unit.launches[k].function for k in self.loops.kernels]
        # ptxas does not know what a launch asks for besides.
        taken = [replace(found[f.name], shared=found[f.name].shared + f.dynamic_bytes) for f in made]
        return CudaCost(kernels, tuple(taken))

    def emulated(self, checked: bool = False) -> Emulated:
        """The same text built with g++, to run on the CPU; slow. With `checked`, all accesses are looked at.

        Raises EmulationError without g++.
        """
        return emulate(self.unit, checked)

    def cubin(self) -> bytes:
        """Machine code of the kernels, by NVRTC where it is installed, else by nvcc.

        Raises NvccError with neither of them."""
        if nvrtc.available():
            return nvrtc.compile_cubin(self.unit.device_text, self.architecture)
        return nvcc.compile_cubin(self.unit.text, self.architecture)[0]

    def code(self, capability: tuple[int, int]) -> bytes:
        """What a GPU of a compute capability loads: its own machine code, which only GPUs of the same major
        number run; or PTX, which its driver compiles, where the compiler at hand does not know it.

        Raises NvccError with neither NVRTC nor nvcc."""
        own = "sm_{}{}".format(*capability)
        if self.architecture.startswith(own):
            return self.cubin()
        virtual = self.architecture.replace("sm", "compute")
        if not nvrtc.available():
            return nvcc.compile_ptx(self.unit.text, virtual)
        if nvrtc.knows(capability):
            return nvrtc.compile_cubin(self.unit.device_text, own)
        return nvrtc.compile_ptx(self.unit.device_text, virtual)

    def compile(self) -> CudaExecutable:
        """Ready to run on the GPU of this machine. Raises CudaError where there is none, saying what is
        missing."""
        from .cuda import CudaExecutable

        return CudaExecutable(self)
