"""Programs that run on a GPU, on memory of tensors (`DeviceExecutable`) or on their own (`CudaExecutable`).

    run = step.lower(x, y, backend="cuda").compile()     # a CudaExecutable
    losses = run(run.example_inputs)                     # or upload(), run(), download() apart

What needs a GPU says what is missing. The emulated device (runtime/cuda_emulated.py) runs the same code;
docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.loops import Buffer
from ..ir.types import placed_type
from . import cuda_driver as low
from .buffers import Buffer as Contents
from .cuda_buffers import DeviceBuffer, device_empty, moved, number, send, write_back
from .cuda_driver import CudaError, OutOfMemoryError, why_not
from .cuda_lowered import MODELS, CudaLowered
from .cuda_memory import Block, pool
from .cuda_program import LoadedProgram, digits, kernel_times

if TYPE_CHECKING:
    from .executable import Lowered

__all__ = [
    "CudaError",
    "CudaExecutable",
    "DeviceExecutable",
    "LoadedProgram",
    "OutOfMemoryError",
    "kernel_times",
    "why_not",
]


#: inputs of the CPU of so many bytes keep their place on the device from run to run
_SMALL = 64


class DeviceExecutable:
    """A graph that runs on tensors' memory on a GPU. What comes from elsewhere is copied there, what goes
    elsewhere is copied back; `graph.updates` happen in place in the inputs' memory.

    Args:
        lowered: the graph's lowering for the CPU.
        device: its name, `cuda:0`.
        places: of each output, the device where it is wanted; None for the CPU.

    Raises:
        CudaError: no GPU. Errors of the compiler name the op and its line.
    """

    def __init__(self, lowered: Lowered, device: str, places: Sequence[str | None]) -> None:
        self.device = device
        self.number = number(device)
        self.cuda = lowered.cuda
        wanted = architecture_of(self.number)
        if self.cuda.architecture != wanted:
            self.cuda = CudaLowered(lowered, wanted, self.cuda.precision)
        self.loaded = LoadedProgram(self.cuda, self.number)
        graph = lowered.graph
        self.inputs = [placed_type(v.type, device) for v in graph.inputs]
        self.outputs = [placed_type(v.type, device) for v in graph.outputs]
        self.places = list(places)
        self.updated = [v.index for v in graph.updates]
        self.lock = threading.RLock()
        self.kept: dict[int, tuple[DeviceBuffer, bytes]] = {}

    def __call__(self, inputs: Sequence[Contents]) -> list[Contents]:
        """Runs once; gives new buffers for the outputs. Nothing has run if it raises OutOfMemoryError."""
        return self._run(inputs, [device_empty(t, self.loaded.peak) for t in self.outputs])

    def repeat(self, inputs: Sequence[Contents], n: int) -> list[Contents]:
        """Runs n times; outputs come stacked along a new first dimension."""
        made = [device_empty(t, self.loaded.peak) for t in self.outputs]
        stacked = [device_empty(t.with_shape((n, *t.shape)), self.loaded.peak) for t in self.outputs]
        return self._run(inputs, made, stacked, n)

    def _run(
        self,
        inputs: Sequence[Contents],
        made: list[DeviceBuffer],
        stacked: Sequence[DeviceBuffer] = (),
        n: int = 1,
    ) -> list[Contents]:
        loaded, stream = self.loaded, self.loaded.stream
        with self.lock:  # what is kept of one thread's call must be there when its kernels are given
            given = [self._there(i, b) for i, b in enumerate(inputs)]
            arena = pool(self.number).take(self.cuda.loops.arena_bytes, loaded.peak)
            pointers = [b.ptr for b in (*given, *made)]
            for step in range(n):
                loaded.run(pointers, arena.ptr)
                for whole, b in zip(stacked, made):
                    stream.copy(whole.ptr + step * b.type.nbytes, b.ptr, b.type.nbytes)
        for i in self.updated:
            if given[i] is not inputs[i]:
                write_back(given[i], inputs[i])
        return [moved(b, where) for b, where in zip(stacked or made, self.places)]

    def _there(self, i: int, b: Contents) -> DeviceBuffer:
        """An input on the device. Small ones of the CPU (learning rates, say) have a place of their own
        there, which is written when they change, so that neither is anything copied nor another graph
        captured for them each time."""
        if isinstance(b, DeviceBuffer) and b.type.device == self.device:
            return b
        t = self.inputs[i]
        small = t.nbytes <= _SMALL and i not in self.updated
        made, old = self.kept.get(i, (None, b"")) if small else (None, b"")
        array = b.array
        new = array.tobytes() if small else b""
        if made is None:
            made = device_empty(t, self.loaded.peak)
        elif new == old:
            return made
        send(array, made)
        if small:
            self.kept[i] = made, new
        return made


def architecture_of(device: int) -> str:
    """The newest architecture that is written for which a GPU runs.

    Raises CudaError for an older GPU than all of them.
    """
    major, minor = low.capability(device)
    fit = [name for name in MODELS if digits(name) <= 10 * major + minor]
    if not fit:
        raise CudaError(f"GPU {device} is an sm_{major}{minor}; programs need {next(iter(MODELS))} or newer")
    return fit[-1]


class CudaExecutable:
    """A compiled program with its memory on a GPU. Not for several threads at once.

    Inputs that the program updates stay on the device between runs: upload once, run many steps, download.

    Args:
        lowered: the program; compiled here, by NVRTC or else by nvcc, for its architecture.
        device: number of the GPU.

    Raises:
        CudaError: no GPU, or one of an older architecture.
        OutOfMemoryError: its buffers don't fit; nothing is held then.
    """

    def __init__(self, lowered: CudaLowered, device: int = 0) -> None:
        self.loaded = loaded = LoadedProgram(lowered, device)
        self.lowered = lowered
        self.program = program = lowered.loops
        self.stream = loaded.stream
        memory = pool(device)
        self.blocks: dict[Buffer, Block] = {b: memory.take(b.nbytes, loaded.peak) for b in loaded.firsts}
        self.copies: dict[int, Block] = {i: memory.take(b.nbytes, loaded.peak) for i, b in loaded.copies}
        self.arena = memory.take(program.arena_bytes, loaded.peak)
        slots = [*program.inputs, *program.outputs]
        self.pointers = [self.copies.get(i, self.blocks[b]).ptr for i, b in enumerate(slots)]

    @property
    def graph(self) -> Any:
        """The captured CUDA graph, once there is one."""
        found = next(iter(self.loaded.graphs.values()), None)
        return found.handle if found else None

    @property
    def example_inputs(self) -> list[np.ndarray]:
        """Arrays of zeros that `upload` takes."""
        return [np.zeros(b.shape, b.dtype.numpy) for b in self.program.inputs]

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
        for _ in range(steps):
            self.loaded.run(self.pointers, self.arena.ptr)

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
