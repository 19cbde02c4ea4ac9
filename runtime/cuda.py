"""Programs that run on a GPU, on memory of tensors (`DeviceExecutable`) or on their own (`CudaExecutable`).

    run = step.lower(x, y, backend="cuda").compile()     # a CudaExecutable
    losses = run(run.example_inputs)                     # or upload(), run(), download() apart

What needs a GPU says what is missing. The emulated device (runtime/cuda_emulated.py) runs the same code;
docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.expr import Var
from ..ir.loops import Branch, Buffer, Kernel, Repeat, Rotation, Step, WhileStep, walk_steps
from ..ir.types import Type, placed_type
from . import cuda_driver as low
from .buffers import Buffer as Contents
from .cuda_buffers import DeviceBuffer, device_empty, fetch, moved, number, send
from .cuda_driver import Block, CudaError, OutOfMemoryError, why_not
from .cuda_emulated import image
from .cuda_lowered import MODELS, CudaLowered

if TYPE_CHECKING:
    from .executable import Lowered

__all__ = ["CudaError", "CudaExecutable", "DeviceExecutable", "LoadedProgram", "OutOfMemoryError", "why_not"]

#: captured graphs that a program keeps, each for the addresses it was captured with
_GRAPHS = 8


class LoadedProgram:
    """The code of one program on a device.

    When it runs a second time with the same addresses, what it launches is captured as a CUDA graph, which is
    replayed from then on, unless it has loops and branches that wait for a value.

    Args:
        lowered: the program; compiled here, by NVRTC or else by nvcc, for its architecture.
        device: number of the GPU.

    Attributes:
        peak: bytes of all inputs, outputs and the arena.
        graphs: what was captured, by addresses.

    Raises:
        CudaError: no GPU, or one of an older architecture.
    """

    def __init__(self, lowered: CudaLowered, device: int = 0) -> None:
        driver = low.driver()
        self.lowered = lowered
        self.program = program = lowered.loops
        wanted = int(lowered.architecture.removeprefix("sm_"))
        major, minor = low.capability(device)
        if 10 * major + minor < wanted:
            raise CudaError(f"compiled for {lowered.architecture}; GPU {device} is an sm_{major}{minor}")
        unit = lowered.unit
        if getattr(driver, "emulated", False):
            code = image(unit)
        else:
            code = lowered.cubin()
        low.use(device)
        self.module = low.call("cuModuleLoadData", code)
        self.functions = {
            f.name: low.call("cuModuleGetFunction", self.module, f.name.encode()) for f in unit.functions
        }
        self.stream = low.stream(device)
        slots = [*program.inputs, *program.outputs]
        self.firsts = {b: i for i, b in reversed(list(enumerate(slots)))}
        self.copies = [(i, b) for i, b in enumerate(slots) if self.firsts[b] != i and b.nbytes]
        self.peak = sum(b.nbytes for b in slots) + program.arena_bytes
        self.pointers: dict[Buffer, int] = {}
        self.arena = 0
        self.turns: dict[Var, int] = {}
        self.capturable = not any(isinstance(s, (WhileStep, Branch)) for s in walk_steps(program.steps))
        self.graphs: dict[tuple[int, ...], Any] = {}
        self.seen: dict[tuple[int, ...], None] = {}

    def __del__(self) -> None:
        # It may never have been loaded, or the interpreter may be being shut down.
        with contextlib.suppress(AttributeError, TypeError, CudaError):
            for graph in self.graphs.values():
                self.stream.forget(graph)
            low.call("cuModuleUnload", self.module)

    def run(self, pointers: Sequence[int], arena: int) -> None:
        """Runs once, on the addresses of the inputs, then the outputs; returns before it is done."""
        key = (*pointers, arena)
        with self.stream.lock:
            low.use(self.stream.device)
            graph = self.graphs.get(key)
            if graph is None and self.capturable and key in self.seen:
                graph = self._captured(key)
            if graph is not None:
                self.stream.replay(graph)
                return
            self.seen[key] = None  # the first run loads what is loaded lazily
            while len(self.seen) > 4 * _GRAPHS:
                del self.seen[next(iter(self.seen))]
            self._once(key)

    def _captured(self, key: tuple[int, ...]) -> Any:
        self.stream.begin_capture()
        try:
            self._once(key)
        finally:
            graph = self.stream.end_capture()
        while len(self.graphs) >= _GRAPHS:
            self.stream.forget(self.graphs.pop(next(iter(self.graphs))))
        self.graphs[key] = graph
        return graph

    def _once(self, key: tuple[int, ...]) -> None:
        self.pointers = {b: key[i] for b, i in self.firsts.items()}
        self.arena = key[-1]
        self._steps(self.program.steps)
        for i, b in self.copies:
            self.stream.copy(key[i], self._place(b), b.nbytes)

    # --- what a run does, as the unit's host function does it -----------------------------------------------

    def _place(self, b: Buffer) -> int:
        ptr = self.pointers.get(b)
        if ptr is None:
            ptr = self.pointers[b] = self.arena + b.offset
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

class DeviceExecutable:
    """A graph that runs on tensors' memory on a GPU. What comes from the CPU is uploaded, what goes there is
    downloaded; `graph.updates` happen in place in the inputs' memory.

    Args:
        lowered: the graph's lowering for the CPU.
        device: its name, `cuda:0`.
        placed: of each output, whether it is on the device.

    Raises:
        CudaError: no GPU. Errors of the compiler name the op and its line.
    """

    def __init__(self, lowered: Lowered, device: str, placed: Sequence[bool]) -> None:
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
        self.placed = list(placed)
        self.updated = [v.index for v in graph.updates]

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
        given = [self._there(b, t) for b, t in zip(inputs, self.inputs)]
        arena = low.pool(self.number).take(self.cuda.loops.arena_bytes, loaded.peak)
        pointers = [b.ptr for b in (*given, *made)]
        for step in range(n):
            loaded.run(pointers, arena.ptr)
            for whole, b in zip(stacked, made):
                stream.copy(whole.ptr + step * b.type.nbytes, b.ptr, b.type.nbytes)
        for i in self.updated:
            if inputs[i].type.device is None:
                fetch(given[i], inputs[i].array)
        return [b if on else moved(b, None) for b, on in zip(stacked or made, self.placed)]

    def _there(self, b: Contents, t: Type) -> DeviceBuffer:
        if isinstance(b, DeviceBuffer):
            return b
        made = device_empty(t, self.loaded.peak)
        send(b.array, made)
        return made


def architecture_of(device: int) -> str:
    """The newest architecture that is written for which a GPU runs.

    Raises CudaError for an older GPU than all of them.
    """
    major, minor = low.capability(device)
    fit = [name for name in MODELS if int(name.removeprefix("sm_")) <= 10 * major + minor]
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
        pool = low.pool(device)
        self.blocks: dict[Buffer, Block] = {b: pool.take(b.nbytes, loaded.peak) for b in loaded.firsts}
        self.copies: dict[int, Block] = {i: pool.take(b.nbytes, loaded.peak) for i, b in loaded.copies}
        self.arena = pool.take(program.arena_bytes, loaded.peak)
        slots = [*program.inputs, *program.outputs]
        self.pointers = [self.copies.get(i, self.blocks[b]).ptr for i, b in enumerate(slots)]

    @property
    def graph(self) -> Any:
        """The captured CUDA graph, once there is one."""
        return next(iter(self.loaded.graphs.values()), None)

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
