"""`tracegrad.cuda`: what GPUs there are and how much of their memory is used, and programs that run on them.

    run = step.lower(x, y, backend="cuda").compile()     # a CudaExecutable
    losses = run(run.example_inputs)                     # or upload(), run(), download() apart

Everything but running works without a GPU; what needs one says what is missing. Written against the driver
API's documentation; docs/gpu.md says what of it has run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.expr import Var
from ..ir.loops import Branch, Buffer, Kernel, Repeat, Rotation, Step, WhileStep, walk_steps
from . import cuda_driver as low
from .cuda_driver import Block, CudaError, OutOfMemoryError, why_not

if TYPE_CHECKING:
    from .cuda_lowered import CudaLowered

__all__ = [
    "CudaError", "CudaExecutable", "OutOfMemoryError", "current_device", "device_count", "empty_cache",
    "get_device_capability", "get_device_name", "is_available", "max_memory_allocated", "mem_get_info",
    "memory_allocated", "memory_reserved", "reset_peak_memory_stats", "synchronize", "why_not",
]  # fmt: skip


def _number(device: Any) -> int:
    """A device as PyTorch's functions take it: None, a number, `"cuda:1"` or a device object."""
    if device is None:
        return 0
    if isinstance(device, int):
        return device
    index = getattr(device, "index", None)
    if index is None:
        index = str(device).partition(":")[2] or 0
    return int(index)


def is_available() -> bool:
    """Whether programs can run on a GPU here; `why_not()` says what is missing."""
    return why_not() is None


def device_count() -> int:
    """How many GPUs there are; 0 without a driver."""
    return low.count()


def current_device() -> int:
    """The number of the GPU that is used by default: 0. Raises CudaError without one."""
    low.driver()
    return 0


def get_device_name(device: Any = None) -> str:
    """A GPU's name. Raises CudaError without one."""
    return low.name(_number(device))


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """A GPU's compute capability. Raises CudaError without one."""
    return low.capability(_number(device))


def synchronize(device: Any = None) -> None:
    """Waits for all work on a GPU. Raises CudaError without one."""
    low.use(_number(device))
    low.call("cuCtxSynchronize")


def memory_allocated(device: Any = None) -> int:
    """Bytes in use by this process; 0 if it never used the GPU."""
    pool = low.known_pool(_number(device))
    return pool.allocated if pool else 0


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that were in use since the start, or `reset_peak_memory_stats`."""
    pool = low.known_pool(_number(device))
    return pool.peak if pool else 0


def memory_reserved(device: Any = None) -> int:
    """Bytes held of the GPU, idle ones included."""
    pool = low.known_pool(_number(device))
    return pool.reserved if pool else 0


def reset_peak_memory_stats(device: Any = None) -> None:
    """Starts `max_memory_allocated` anew."""
    pool = low.known_pool(_number(device))
    if pool:
        pool.peak = pool.allocated


def empty_cache() -> None:
    """Gives idle memory back to the driver."""
    pool = low.known_pool()
    if pool:
        pool.empty()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of a GPU. Raises CudaError without one."""
    low.use(_number(device))
    free, total = low.call("cuMemGetInfo")
    return int(free), int(total)


class CudaExecutable:
    """A compiled program with its memory on a GPU. Not for several threads at once.

    Inputs that the program updates stay on the device between runs: upload once, run many steps, download.
    A program without loops and branches that wait for a value is captured as a CUDA graph at its first run.

    Args:
        lowered: the program; compiled here, by NVRTC or else by nvcc, for its architecture.
        device: number of the GPU.

    Raises:
        CudaError: no GPU, or one of an older architecture.
        OutOfMemoryError: its buffers don't fit; nothing is held then.
    """

    def __init__(self, lowered: CudaLowered, device: int = 0) -> None:
        low.driver()
        self.lowered = lowered
        self.program = program = lowered.loops
        wanted = int(lowered.architecture.removeprefix("sm_"))
        major, minor = low.capability(device)
        if 10 * major + minor < wanted:
            raise CudaError(f"compiled for {lowered.architecture}; GPU {device} is an sm_{major}{minor}")
        low.use(device)
        self.module = low.call("cuModuleLoadData", lowered.cubin())
        unit = lowered.unit
        self.functions = {
            f.name: low.call("cuModuleGetFunction", self.module, f.name.encode()) for f in unit.functions
        }
        self.stream = low.stream(device)
        self.slots = list(dict.fromkeys([*program.inputs, *program.outputs]))
        peak = sum(b.nbytes for b in self.slots) + program.arena_bytes
        pool = low.pool(device)
        self.blocks: dict[Buffer, Block] = {b: pool.take(b.nbytes, peak) for b in self.slots}
        self.arena = pool.take(program.arena_bytes, peak)
        self.pointers = {b: block.ptr for b, block in self.blocks.items()}
        self.turns: dict[Var, int] = {}
        self.capturable = not any(isinstance(s, (WhileStep, Branch)) for s in walk_steps(program.steps))
        self.graph: Any = None
        self.warm = False

    def upload(self, inputs: Sequence[np.ndarray]) -> None:
        """Copies all inputs to the device."""
        held = []  # until the copies are done
        for b, a in zip(self.program.inputs, inputs, strict=True):
            if a.dtype != b.dtype.numpy or tuple(a.shape) != b.shape:
                raise CudaError(f"input {b.name} takes {b.type}, given {a.dtype}{list(a.shape)}")
            held.append(np.ascontiguousarray(a))
            self.stream.upload(self.blocks[b].ptr, held[-1].ctypes.data, b.nbytes)
        self.stream.synchronize()

    def run(self, steps: int = 1) -> None:
        """Runs a number of times on what is on the device; returns before it is done."""
        low.use(self.stream.device)
        for _ in range(steps):
            if self.graph is not None:
                self.stream.replay(self.graph)
            elif self.warm and self.capturable:  # the first run loads what is loaded lazily
                self.stream.begin_capture()
                try:
                    self._steps(self.program.steps)
                finally:
                    graph = self.stream.end_capture()
                self.graph = graph
                self.stream.replay(graph)
            else:
                self._steps(self.program.steps)
                self.warm = True

    def download(self, buffers: Sequence[Buffer] | None = None) -> list[np.ndarray]:
        """Arrays of the outputs, or of other buffers of the program, when all runs are done."""
        wanted = self.program.outputs if buffers is None else buffers
        out = [np.empty(b.shape, b.dtype.numpy) for b in wanted]
        for b, a in zip(wanted, out):
            self.stream.download(a.ctypes.data, self.blocks[b].ptr, b.nbytes)
        self.stream.synchronize()
        return out

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Uploads, runs once and downloads; inputs that the program updates are overwritten."""
        self.upload(inputs)
        self.run()
        updated = list(self.program.updated)
        got = self.download([*self.program.outputs, *updated])
        where = {b: a for b, a in zip(self.program.inputs, inputs)}
        for b, a in zip(updated, got[len(self.program.outputs) :]):
            where[b][...] = a
        return got[: len(self.program.outputs)]

    # --- what a run does, as the unit's host function does it -----------------------------------------------

    def _place(self, b: Buffer) -> int:
        ptr = self.pointers.get(b)
        if ptr is None:
            ptr = self.pointers[b] = self.arena.ptr + b.offset
        return ptr

    def _steps(self, steps: list[Step]) -> None:
        for s in steps:
            if isinstance(s, Kernel):
                self._launch(s)
            elif isinstance(s, Repeat):
                own = self._named(s.rotate)
                for i in reversed(range(s.extent)) if s.reverse else range(s.extent):
                    self.turns[s.var] = i
                    self._steps(s.body)
                    self._rotate(s.rotate)
                self.pointers.update(own)
            elif isinstance(s, WhileStep):
                self._while(s)
            else:
                assert isinstance(s, Branch), type(s)
                self._steps(s.then if self.stream.read_bool(self._place(s.cond)) else s.other)

    def _launch(self, k: Kernel) -> None:
        made = self.lowered.unit.launches[k]
        f = made.function
        if 0 in f.grid:
            return
        values: list[int] = []
        kinds: list[Any] = []
        for x, own in zip(made.arguments, f.parameters):
            if isinstance(x, Buffer):
                values.append(self._place(x))
                kinds.append(ctypes.c_void_p)
            else:
                assert isinstance(own, Var)
                values.append(self.turns[x])
                kinds.append(ctypes.c_int if own.extent < 1 << 31 else ctypes.c_longlong)
        self.stream.launch(self.functions[f.name], f.grid, f.block, values, kinds)

    def _while(self, s: WhileStep) -> None:
        own = self._named(s.rotate)
        trips = 0
        while True:
            self._steps(s.test)
            if not self.stream.read_bool(self._place(s.cond)) or trips == s.most:
                break
            self._steps(s.body)
            self._rotate(s.rotate)
            trips += 1
        for target, source in s.results:
            if target is not source:
                self.stream.copy(self._place(target), self._place(source), source.nbytes)
        self.pointers.update(own)

    def _named(self, rotations: tuple[Rotation, ...]) -> dict[Buffer, int]:
        return {b: self._place(b) for names in rotations for b in names}

    def _rotate(self, rotations: tuple[Rotation, ...]) -> None:
        for names in rotations:
            held = [self._place(b) for b in names]
            self.pointers.update(zip(names, [*held[1:], held[0]]))
