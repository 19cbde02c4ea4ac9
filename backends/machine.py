"""What the schedulers know of a machine: of a CPU vector width, registers, caches, threads; of a GPU its
multiprocessors and their memory. Targets make one from theirs; tests make one by hand. Nothing here asks the
operating system."""

from __future__ import annotations

from ..ir.dataclass import dataclass


@dataclass(frozen=True)
class MachineModel:
    """A CPU in the numbers that schedules depend on.

    Attributes:
        vector_bytes: width of a SIMD register; 16, 32 or 64.
        vector_registers: how many there are.
        masked_memory: masked vector loads and stores are about as cheap as whole ones (AVX-512, SVE; AVX2 at
            32 bits).
        threads: how many threads may share a kernel. Results never depend on it, only whether loops are
        parallel. l1_bytes, l2_bytes: data cache of one core.
        parallel_cycles: a kernel is worth sharing from this many estimated cycles on.
        flops_per_cycle: of f32 multiply-adds of one core, counted as two, for estimates.
    """

    vector_bytes: int = 32
    vector_registers: int = 16
    masked_memory: bool = True
    threads: int = 1
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    parallel_cycles: int = 12_000
    flops_per_cycle: int = 32

    def lanes(self, itemsize: int) -> int:
        """Elements of `itemsize` bytes in one vector, at least 1."""
        return max(1, self.vector_bytes // itemsize)


#: a machine of small vectors, for readable golden tests
SMALL = MachineModel(vector_bytes=16, vector_registers=16, masked_memory=False, flops_per_cycle=8)
AVX2 = MachineModel()
AVX512 = MachineModel(64, 32, True, 1, 48 << 10, 1280 << 10, 12_000, 64)


@dataclass(frozen=True)
class GpuModel:
    """A GPU in the numbers that schedules depend on. Results may depend on them in their last bits, since
    they decide how sums are split up.

    Attributes:
        capability: compute capability, (8, 0) for sm_80.
        sms: multiprocessors.
        warp: threads that run in lock step.
        max_threads_per_block: of a block.
        shared_bytes: shared memory of a block without opting in to more; `shared_bytes_most`: with.
        registers: 32-bit registers of a multiprocessor.
        l2_bytes: the cache all multiprocessors share.
        matmul_precision: "highest": contractions of f32 in f32; "high" or "medium": their factors rounded to
            tf32, on tensor cores.
    """

    capability: tuple[int, int] = (8, 0)
    sms: int = 108
    warp: int = 32
    max_threads_per_block: int = 1024
    shared_bytes: int = 48 << 10
    shared_bytes_most: int = 163 << 10
    registers: int = 64 << 10
    l2_bytes: int = 40 << 20
    matmul_precision: str = "highest"


SM_75 = GpuModel((7, 5), 40, shared_bytes_most=64 << 10, l2_bytes=4 << 20)
SM_80 = GpuModel()
SM_90 = GpuModel((9, 0), 132, shared_bytes_most=227 << 10, l2_bytes=50 << 20)
