"""Executables: a graph made runnable, by the interpreter or natively, and the texts of every stage on the
way.

`Lowered` carries one graph through optimise -> schedule -> LLVM lazily, so that asking for a stage costs no
more than reaching it. `Executable` calls the native code; safe to call from several threads at once.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from sys import getrefcount
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.collector import collector_paused
from ..ir.fingerprint import fingerprint
from ..ir.graph import Graph
from ..ir.interpreter import evaluate
from ..ir.types import Type
from .buffers import Buffer, allocator
from .precision import get_float32_matmul_precision
from .workspace import LENT, lend, workspace

if TYPE_CHECKING:
    from pathlib import Path

    from ..backends.llvm.native import NativeProgram
    from ..backends.machine import MachineModel
    from ..ir.loops import LoopProgram
    from ..ir.passes import PassRecord
    from .cuda_lowered import CudaLowered
    from .report import Cost, Memory

#: programs with values of so many elements have, likely, loops that threads share
_SHARED = 4096
STAGES = ("graph", "optimized", "loops", "llvm", "asm")
#: Called with every `Lowered` when it is made: how tools see what a script compiles.
LISTENERS: list[Callable[[Lowered], None]] = []


class Lowered:
    """One graph on its way to machine code. Each stage is made when first asked for.

    Attributes:
        graph: as traced.
        records: what each pass did, once `optimized` was made.
        cuda: the same graph on its way to CUDA.
        backend, stages: `llvm`, and what `as_text` takes.
    """

    backend = "llvm"
    stages = STAGES

    def __init__(
        self, graph: Graph, machine: MachineModel | None = None, native: NativeProgram | None = None
    ) -> None:
        self.graph = graph
        self._machine = machine
        self.records: list[PassRecord] = []
        if native is not None:  # as `cached` gave it
            self.__dict__["native"] = native
        for listener in LISTENERS:
            listener(self)

    # The compiler is imported when the first program is compiled: interpreting needs none of it.

    @cached_property
    def optimized(self) -> Graph:
        from ..ir.passes import optimize

        return optimize(self.graph, record=self.records)

    @cached_property
    def machine(self) -> MachineModel:
        return self._machine or host_machine()

    @cached_property
    def loops(self) -> LoopProgram:
        from ..backends.schedule import schedule

        if os.environ.get("TRACEGRAD_TUNE") == "1":
            from . import tune

            return tune.schedule_tuned(self.optimized, self.machine)
        return schedule(self.optimized, self.machine)

    @cached_property
    def native(self) -> NativeProgram:
        with collector_paused():
            return self._native()

    def _native(self) -> NativeProgram:
        graph, machine = self.graph, self.machine
        key = _key(graph, machine)
        found = cached(graph, machine, key)
        if found is not None:
            return found
        from ..backends.llvm.compile import compile_program
        from ..backends.llvm.pool import prepare

        if any(v.type.numel >= _SHARED for n in graph.nodes for v in (*n.operands, *n.results)):
            prepare()
        if key is None:
            return compile_program(self.loops)
        # Stages that nobody has asked for are not kept but made again for who asks: they are large, and the
        # collector would look through them ever after.
        loops = self.__dict__.get("loops") or _loops(graph, machine)
        return compile_program(loops, key=key, make=lambda: _loops(graph, machine))

    @cached_property
    def _cuda(self) -> dict[str, CudaLowered]:
        return {}

    @property
    def cuda(self) -> CudaLowered:
        """For the precision of contractions that is set now."""
        from .cuda_lowered import CudaLowered

        precision = get_float32_matmul_precision()
        made = self._cuda.get(precision)
        if made is None:
            made = self._cuda[precision] = CudaLowered(self, precision=precision)
        return made

    def compile(self) -> Any:
        """The program compiled: machine code of the CPU here, a `CudaExecutable` of a CUDA lowering."""
        return self.native

    def as_text(self, stage: str = "graph") -> str:
        """The program at `graph`, `optimized`, `loops`, `llvm`, `asm` or `cuda`."""
        if stage == "graph":
            return str(self.graph)
        if stage == "optimized":
            return str(self.optimized)
        if stage == "loops":
            return str(self.loops)
        if stage == "llvm":
            return self.native.llvm_ir()
        if stage == "asm":
            return self.native.assembly()
        if stage == "cuda":
            return self.cuda.as_text("cuda")
        raise ValueError(f"no stage {stage!r}; there are {', '.join(STAGES)}")

    def cost(self) -> Cost:
        """Operations and bytes moved of one run, kernel by kernel; nothing runs."""
        from .report import cost_of

        return cost_of(self.loops)

    def memory(self) -> Memory:
        """Bytes that one run needs, its peak included; nothing runs."""
        from .report import memory_of

        return memory_of(self.optimized, self.loops)

    def show(self, path: str | Path | None = None, open_browser: bool = False) -> Path:
        """Writes all stages as one HTML page and gives its path (default: a new temporary file)."""
        from .page import show  # the viewer is large and rarely wanted

        return show(self, path, open_browser)


def _key(graph: Graph, machine: MachineModel) -> str | None:
    """What the compile cache knows a program by before any pass has run; None where that cannot be told, or
    where the stages are to run all the same."""
    if any(os.environ.get(f"TRACEGRAD_{name}") == "1" for name in ("TUNE", "VERIFY")):
        return None
    text = fingerprint(graph)
    return None if text is None else f"graph for {machine}{' to train' * graph.trains}\n{text}"


def cached(graph: Graph, machine: MachineModel, key: str | None = None) -> NativeProgram | None:
    """The native program of a traced graph, if the compile cache has it."""
    from ..backends.llvm.native import load_program

    key = _key(graph, machine) if key is None else key
    return None if key is None else load_program(key, lambda: _loops(graph, machine))


def _loops(graph: Graph, machine: MachineModel) -> LoopProgram:
    """The loop program of a traced graph."""
    from ..backends.schedule import schedule
    from ..ir.passes import optimize

    return schedule(optimize(graph), machine)


def host_machine() -> MachineModel:
    """What the scheduler should know of this machine."""
    from ..backends.llvm.pool import get_num_threads
    from ..backends.llvm.target import host_target
    from ..backends.machine import MachineModel

    target = host_target()
    wide = target.vector_bytes == 64
    return MachineModel(
        vector_bytes=target.vector_bytes,
        vector_registers=target.num_vector_registers,
        masked_memory=target.vector_bytes >= 32,
        threads=get_num_threads(),
        l1_bytes=_cache_bytes(0, (48 if wide else 32) << 10),
        l2_bytes=_cache_bytes(2, 1 << 20),
        flops_per_cycle=target.vector_bytes,
    )


def _cache_bytes(index: int, default: int) -> int:
    """Size of a data cache of the first core as Linux tells it (index 0: first level, 2: second)."""
    try:
        with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size") as f:
            return int(f.read().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return default


def _lone() -> int:
    """What `getrefcount` gives for a result in `Executable.__call__` that only `last` holds."""
    last: list[Any] = [object()]
    for _, (b, _) in enumerate(zip(last, [None])):
        return getrefcount(b)
    return 0


_LONE = _lone()
#: results of so many bytes are kept for the next run, which then needs no new ones
RECYCLED = 4096


class Context:
    """The argument table and workspace of one call, and its small results; an executable keeps idle ones for
    the next."""

    __slots__ = ("address", "arena", "last", "pointer", "table")

    def __init__(self, slots: int, arena: Buffer | None, outputs: int) -> None:
        self.last: list[Buffer | None] = [None] * outputs
        self.table: Any = (ctypes.c_uint64 * slots)()
        self.address = ctypes.addressof(self.table)
        self.pointer = ctypes.c_void_p(self.address)
        self.arena = arena


class Executable:
    """Native code of a graph. Inputs are passed by address; `graph.updates` happen in place in them.

    Args:
        lowered: the graph's lowering; compiled here if it was not yet.
    """

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.native = native = lowered.native
        graph = lowered.graph
        self.input_types: list[Type] = [v.type for v in graph.inputs]
        self.output_types: list[Type] = [v.type for v in graph.outputs]
        self.allocators = [allocator(t) for t in self.output_types]
        self._small = [t.nbytes <= RECYCLED for t in self.output_types]
        self.n_inputs = len(self.input_types)
        self.n_slots = self.n_inputs + len(self.output_types) + 2
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(native.run_address)
        self.run_pointer = ctypes.CFUNCTYPE(None)(native.run_address)  # takes a c_void_p; converts nothing
        self.repeat = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_int64)(native.repeat_address)
        self.parallel = native.parallel
        self._idle: list[Context] = []

    def context(self) -> Context:
        """A call context; give it back with `release`."""
        if self._idle:
            try:
                return self._idle.pop()
            except IndexError:  # another thread took it in between
                pass
        nbytes = self.native.arena_bytes
        arena = workspace(nbytes) if nbytes else None
        if nbytes >= LENT:
            lend(self)
        ctx = Context(self.n_slots, arena, len(self._small))
        ctx.table[self.n_slots - 2] = arena.ptr if arena is not None else 0
        if self.parallel:
            from ..backends.llvm.pool import parallel_for_address

            ctx.table[self.n_slots - 1] = parallel_for_address()
        return ctx

    def release(self, ctx: Context) -> None:
        self._idle.append(ctx)

    def __call__(
        self, inputs: Sequence[Buffer], hand_out: Callable[[list[Buffer]], None] | None = None
    ) -> list[Buffer]:
        """Runs once. `inputs` in the graph's order; gives new buffers for the outputs.

        Args:
            hand_out: called with them once the code has run, also if an interrupt (Ctrl-C) came meanwhile;
                twice if one comes while it is being called.
        """
        ctx = self.context()
        table = ctx.table
        i = 0
        for b in inputs:
            table[i] = b.ptr
            i += 1
        outputs, last = [], ctx.last
        for k, (b, allocate) in enumerate(zip(last, self.allocators)):
            # A small result of the last run that nobody has any more is written again.
            if b is None or getrefcount(b) != _LONE or b._array is not None:
                b = allocate()
                table[i + k] = b.ptr
                if self._small[k]:
                    last[k] = b
            outputs.append(b)
        try:
            self.run_pointer(ctx.pointer)  # an interrupt is raised after this at the earliest
            self._idle.append(ctx)
            if hand_out is not None:
                hand_out(outputs)
        except BaseException:
            if hand_out is not None:
                hand_out(outputs)
            raise
        return outputs


def interpret(graph: Graph, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Runs a graph on the NumPy interpreter: outputs, and the new values of updated inputs."""
    outs, updates = evaluate(graph, inputs)
    return list(outs), list(updates)
