"""What a program costs, before it has run: floating-point operations, bytes moved, memory. Behind
`Lowered.cost()` and `Lowered.memory()`; the page, the command line and anyone who is curious may ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..ir.dataclass import dataclass
from ..ir.expr import Load, walk
from ..ir.graph import Graph, Location
from ..ir.loops import (
    Buffer,
    Kernel,
    LoopProgram,
    Repeat,
    Step,
    WhileStep,
    blocks_of,
    expressions,
    statements,
)

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class KernelCost:
    """One kernel's share.

    Attributes:
        name: as in the loop IR.
        comment: the graph ops it computes.
        flops: arithmetic operations on elements, a multiply-add being two.
        bytes_moved: bytes read and written, each buffer element once.
        locs: the user's lines it came from.
        runs: how often it runs, at most: the turns of the loops around it (a `while` without a bound counts
            as one). `flops` and `bytes_moved` are of one run.
    """

    name: str
    comment: str
    flops: int
    bytes_moved: int
    locs: tuple[Location, ...]
    runs: int = 1

    @property
    def intensity(self) -> float:
        """Operations per byte; low is bound by memory."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0


@dataclass(frozen=True)
class Cost:
    """Static cost of one run; both branches of a condition are counted."""

    kernels: tuple[KernelCost, ...]

    @property
    def flops(self) -> int:
        """Arithmetic operations of all kernels."""
        return sum(k.flops * k.runs for k in self.kernels)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written by all kernels."""
        return sum(k.bytes_moved * k.runs for k in self.kernels)

    def __str__(self) -> str:
        return (
            f"{count(self.flops)} operations, {size(self.bytes_moved)} moved in {len(self.kernels)} "
            f"kernel{'s' * (len(self.kernels) != 1)}"
        )


@dataclass(frozen=True)
class Memory:
    """Bytes one run needs.

    Attributes:
        inputs: inputs that are only read.
        state: inputs that are updated in place (parameters, optimiser state).
        outputs: made for the caller.
        arena: workspace of all intermediates, as the memory planner laid them out.
        unplanned: what the intermediates would take without sharing memory.
        constants: data baked into the program.
    """

    inputs: int
    state: int
    outputs: int
    arena: int
    unplanned: int
    constants: int

    @property
    def peak(self) -> int:
        """All of it: known before the first run, and never exceeded."""
        return self.inputs + self.state + self.outputs + self.arena + self.constants

    def __str__(self) -> str:
        return (
            f"peak {size(self.peak)}: inputs {size(self.inputs)}, state {size(self.state)}, outputs "
            f"{size(self.outputs)}, arena {size(self.arena)} (unplanned {size(self.unplanned)}), constants "
            f"{size(self.constants)}"
        )


def cost_of(program: LoopProgram) -> Cost:
    """The cost of a scheduled program, kernel by kernel."""
    return Cost(
        tuple(
            KernelCost(k.name, k.comment, k.flops, k.bytes_moved, k.locs, runs)
            for k, runs in _runs(program.steps, 1)
        )
    )


def _runs(steps: Iterable[Step], times: int) -> Iterator[tuple[Kernel, int]]:
    """Every kernel and how often it runs."""
    for s in steps:
        if isinstance(s, Kernel):
            yield s, times
            continue
        turns = s.extent if isinstance(s, Repeat) else 1
        if isinstance(s, WhileStep) and s.most is not None:
            turns = max(s.most, 1)
        for block in blocks_of(s):
            yield from _runs(block, times * turns)


def memory_of(graph: Graph, program: LoopProgram) -> Memory:
    """Bytes that a program and its caller hold during a run. `graph` is the one that was scheduled."""
    total = sum(v.type.nbytes for v in graph.inputs)
    state = sum(v.type.nbytes for v in graph.updates)
    buffers = set(program.temps) | _read(program)
    arena = [b for b in buffers if b.space == "arena"]
    constants = [b for b in buffers if b.space == "const"]
    return Memory(
        inputs=total - state,
        state=state,
        outputs=sum(v.type.nbytes for v in graph.outputs),
        arena=program.arena_bytes,
        unplanned=sum(b.nbytes for b in arena),
        constants=sum(len(b.data) for b in constants),
    )


def _read(program: LoopProgram) -> set[Buffer]:
    """Buffers that some expression loads from (a program need not list its constants)."""
    trees = (e for k in program.kernels for s in statements(k.body) for e in expressions(s))
    return {x.buffer for e in trees for x in walk(e) if isinstance(x, Load)}


def size(n: int) -> str:
    """Bytes for people: `1.5 MiB`."""
    x = float(n)
    for unit in _UNITS:
        if x < 1024 or unit == _UNITS[-1]:
            break
        x /= 1024
    return f"{n} {unit}" if unit == "B" else f"{x:.4g} {unit}"


def count(n: int) -> str:
    """A count for people: `2.1 G`."""
    x = float(n)
    for unit in ("", " k", " M", " G", " T"):
        if x < 1000 or unit == " T":
            break
        x /= 1000
    return f"{n}" if not unit else f"{x:.3g}{unit}"
