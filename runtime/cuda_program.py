"""The code of one program on a GPU: loaded, launched kernel by kernel, captured as a CUDA graph and replayed.
Used by cuda.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..backends.cuda import nvrtc
from ..ir.expr import Var
from ..ir.loops import Branch, Buffer, Kernel, Repeat, Rotation, Step, WhileStep, walk_steps
from . import cuda_driver as low
from .cuda_driver import CudaError, call
from .cuda_emulated import image
from .cuda_lowered import CudaLowered
from .cuda_streams import Event
from .cuda_streams import stream as stream_of

#: captured graphs that a program keeps, each for the addresses it was captured with
_GRAPHS = 8
#: replays that make up for a capture; and how often addresses must be seen before one, at most
_WORTH, _OFTEN = 4, 64
#: bytes of shared memory that a block may take without being allowed more
_SHARED = 48 << 10


#: where kernels are noted down with events around them while `kernel_times` is active
_TIMES: list[list[tuple[Kernel, Event, Event]]] = []


class Graph:
    """A captured CUDA graph, and how often it was replayed."""

    __slots__ = ("handle", "replays")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.replays = 0


class LoadedProgram:
    """The code of one program on a device.

    When it runs again with the same addresses, what it launches is captured as a CUDA graph, which is
    replayed from then on, unless it has loops and branches that wait for a value. A capture costs about as
    much as some runs; where addresses keep changing, so that graphs are dropped before they were replayed,
    they must be seen more often before the next capture.

    With `CUDA_LAUNCH_BLOCKING=1` in the environment nothing is captured and every kernel is waited for: an
    error names the kernel, with its lines.

    Args:
        lowered: the program; compiled here, by NVRTC or else by nvcc, for the GPU.
        device: number of the GPU.

    Attributes:
        peak: bytes of all inputs, outputs and the arena.
        graphs: what was captured, by addresses.

    Raises:
        CudaError: no GPU, or one of an older architecture, or a driver that is older than the compiler.
    """

    #: none until it is loaded, which may fail
    module: Any = None

    def __init__(self, lowered: CudaLowered, device: int = 0) -> None:
        driver = low.driver()
        self.lowered = lowered
        self.program = program = lowered.loops
        wanted = digits(lowered.architecture)
        capability = low.capability(device)
        if 10 * capability[0] + capability[1] < wanted:
            found = "sm_{}{}".format(*capability)
            raise CudaError(f"compiled for {lowered.architecture}; GPU {device} is an {found}")
        unit = lowered.unit
        if getattr(driver, "emulated", False):
            code = image(unit)
        else:
            code = lowered.code(capability)
        self.stream = stream_of(device)
        self.stream.tidy()
        self.graphs: dict[tuple[int, ...], Graph] = {}
        self.module = _loaded(code, device)
        self.functions = {f.name: self._function(f) for f in unit.functions}
        slots = [*program.inputs, *program.outputs]
        self.firsts = {b: i for i, b in reversed(list(enumerate(slots)))}
        self.copies = [(i, b) for i, b in enumerate(slots) if self.firsts[b] != i and b.nbytes]
        self.peak = sum(b.nbytes for b in slots) + program.arena_bytes
        self.pointers: dict[Buffer, int] = {}
        self.arena = 0
        self.turns: dict[Var, int] = {}
        self.blocking = os.environ.get("CUDA_LAUNCH_BLOCKING", "") == "1"
        self.capturable = not self.blocking and not any(
            isinstance(s, (WhileStep, Branch)) for s in walk_steps(program.steps)
        )
        self.seen: dict[tuple[int, ...], int] = {}
        self.often = 1

    def _function(self, f: Any) -> Any:
        """A kernel, allowed as much shared memory as it takes."""
        function = call("cuModuleGetFunction", self.module, f.name.encode())
        dynamic = f.dynamic_bytes
        if dynamic > _SHARED:
            kind = low.driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call("cuFuncSetAttribute", function, kind, dynamic)
        return function

    def __del__(self) -> None:
        # It may run on any thread, amid a capture: nothing is called here.
        if self.module is not None:
            for graph in self.graphs.values():
                self.stream.retire("cuGraphExecDestroy", graph.handle)
            self.stream.retire("cuModuleUnload", self.module)

    def run(self, pointers: Sequence[int], arena: int) -> None:
        """Runs once, on the addresses of the inputs, then the outputs; returns before it is done."""
        key = (*pointers, arena)
        with self.stream.lock:
            graph = None if _TIMES else self.graphs.get(key)
            if graph is None and self.capturable and not _TIMES and self.seen.get(key, 0) >= self.often:
                graph = self._captured(key)
            if graph is not None:
                graph.replays += 1
                self.stream.replay(graph.handle)
                return
            low.use(self.stream.device)
            self._once(key)
            self.seen[key] = self.seen.pop(key, 0) + 1  # the first run loads what is loaded lazily
            while len(self.seen) > 4 * _GRAPHS:
                del self.seen[next(iter(self.seen))]

    def _captured(self, key: tuple[int, ...]) -> Graph:
        if len(self.graphs) >= _GRAPHS:
            old = self.graphs.pop(next(iter(self.graphs)))
            if old.replays < _WORTH:
                self.often = min(2 * self.often, _OFTEN)
            self.stream.retire("cuGraphExecDestroy", old.handle)
        self.stream.tidy()
        low.use(self.stream.device)
        self.stream.begin_capture()
        try:
            self._once(key)
        except BaseException:
            self.stream.drop_capture()
            raise
        graph = self.graphs[key] = Graph(self.stream.end_capture())
        del self.seen[key]
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
        start = Event(self.stream, timed=True) if _TIMES else None
        try:
            if start is not None:
                start.record(self.stream)
            self.stream.launch(
                self.functions[f.name], f.grid, f.block, values, kinds, f.dynamic_bytes
            )
            if self.blocking:
                self.stream.synchronize()
        except CudaError as e:
            lines = ", ".join(map(str, k.locs[:3]))
            where = f"kernel {f.name} ({k.comment or k.name}){f' at {lines}' if lines else ''}"
            raise type(e)(f"{where}: {e}") from None
        if start is not None:
            end = Event(self.stream, timed=True)
            end.record(self.stream)
            _TIMES[-1].append((k, start, end))

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


@contextmanager
def kernel_times() -> Iterator[list[tuple[Kernel, float]]]:
    """Inside, programs run kernel by kernel; afterwards the list has each launch with its microseconds, in
    order.
    """
    out: list[tuple[Kernel, float]] = []
    _TIMES.append([])
    try:
        yield out
    finally:
        for kernel, start, end in _TIMES.pop():
            end.wait()
            out.append((kernel, 1e3 * start.elapsed(end)))


def digits(architecture: str) -> int:
    """90 of `sm_90`."""
    return int("".join(c for c in architecture if c.isdecimal()))


def _loaded(code: bytes, device: int) -> Any:
    """A module of machine code or PTX. Raises CudaError, with what to do where versions don't fit."""
    low.use(device)
    try:
        return call("cuModuleLoadData", code)
    except CudaError as e:
        with contextlib.suppress(nvrtc.NvrtcError):
            ours, theirs = nvrtc.version(), low.driver_version()
            if ours[0] > theirs[0] or "PTX" in str(e):
                raise CudaError(
                    f"GPU {device} does not take what NVRTC {ours[0]}.{ours[1]} compiled: its driver is for "
                    f"CUDA {theirs[0]}.{theirs[1]}; install a newer one, or tracegrad[cuda{theirs[0]}] ({e})"
                ) from None
        raise
