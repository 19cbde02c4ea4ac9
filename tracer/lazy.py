"""Running the pending program of a thread: what must be kept, the program cache in the trie, interpret or
compile.

A program met for the first time runs on the interpreter; one that comes back is compiled.
`TRACEGRAD_LAZY=interpret` never compiles, `TRACEGRAD_LAZY=compile` compiles at first sight (both for tests
and debugging).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..ir.dtypes import DType
from ..ir.grad import reads
from ..ir.graph import Graph
from ..ir.types import Type
from ..runtime.buffers import Buffer, empty
from ..runtime.executable import Executable, Lowered, interpret
from .freezing import freeze
from .recording import LazyTrace, TrieNode
from .segments import fill
from .values import TracedValue, let_go, without_contents


class LazyProgram:
    """One program of the trie: which values it computes from which, and its code once compiled.

    Attributes:
        input_positions: indices into the trace's inputs that the graph reads.
        literal_positions: indices into the trace's literals that are runtime scalars of the graph.
        output_slots: slots of the values that get contents.
    """

    __slots__ = (
        "executable",
        "graph",
        "input_positions",
        "literal_positions",
        "output_slots",
        "runs",
        "scalars",
    )

    def __init__(
        self, graph: Graph, input_positions: list[int], literal_positions: list[int], output_slots: list[int]
    ) -> None:
        self.graph = graph
        self.input_positions = input_positions
        self.literal_positions = literal_positions
        self.output_slots = output_slots
        self.scalars = [
            graph.inputs[len(input_positions) + i].type.dtype for i in range(len(literal_positions))
        ]
        self.executable: Executable | None = None
        self.runs = 0

    def run(self, inputs: list[Buffer], interpreted: int = 1) -> list[Buffer]:
        """Contents of the outputs. The first runs are `interpreted`, the next compiles."""
        self.runs += 1
        executable = self.executable
        if executable is None:
            mode = os.environ.get("TRACEGRAD_LAZY", "")
            if mode == "interpret" or (self.runs <= interpreted and mode != "compile"):
                outs, _ = interpret(self.graph, [b.array for b in inputs])
                return [_own(a, v.type) for a, v in zip(outs, self.graph.outputs)]
            executable = self.executable = Executable(Lowered(self.graph))
        return executable(inputs)


def _own(array: np.ndarray, type: Type) -> Buffer:
    b = empty(type)
    b.array[...] = array
    return b


def scalar_buffer(value: Any, dtype: DType) -> Buffer:
    """A runtime scalar's memory."""
    b = empty(Type(dtype, ()))
    b.array[()] = value
    return b


def _saved_for_backward(live: list[TracedValue], trace: LazyTrace) -> dict[TracedValue, None]:
    """Pending values that gradient rules of nodes behind `live` will read."""
    keep: dict[TracedValue, None] = {}
    seen: set[Any] = set()
    stack: list[Any] = [v for v in live if v.requires_grad]
    while stack:
        v = stack.pop()
        node = v.node
        if node is None or v.trace is not trace or v.freed is True or v.leaf is not None or node in seen:
            continue
        seen.add(node)
        needs = tuple(o.requires_grad for o in node.operands)
        operands, results = reads(node, needs)
        for i in operands:
            if node.operands[i].trace is trace:
                keep[node.operands[i]] = None
        for i in results:
            keep[node.results[i]] = None
        stack.extend(o for o in node.operands if o.requires_grad)
    return keep


def run_pending(trace: LazyTrace, at: TrieNode) -> None:
    """Computes what is alive of the pending program and hands the contents out."""
    slots = trace.slots
    live: dict[int, TracedValue] = {}
    for ref in trace.handles:
        storage = ref()
        if storage is not None:
            value = storage.value
            if value.trace is trace and value.buffer is None:
                live[slots[value]] = value
    lifted = tuple(i for i, (_, _, node) in enumerate(trace.literals) if node.lifted)
    key = (tuple(live), lifted)
    programs = at.programs
    if programs is None:
        programs = at.programs = {}
    program: LazyProgram | None = programs.get(key)
    if program is None:
        fill(trace)
        outputs = dict.fromkeys(live.values())
        outputs.update(_saved_for_backward(list(live.values()), trace))
        literals: list[Any] = [trace.values[trace.literals[i][0]] for i in lifted]
        inputs: list[Any] = [v for _, v, _ in trace.inputs]
        graph = freeze("lazy", trace.nodes, [*inputs, *literals], list(outputs))
        used = {v for n in graph.nodes for v in n.operands} | set(graph.outputs)
        keep = [i for i, v in enumerate(graph.inputs) if v in used]
        graph.inputs = [graph.inputs[i] for i in keep]
        for i, v in enumerate(graph.inputs):
            v.index = i
        n = len(inputs)
        program = LazyProgram(
            graph,
            [i for i in keep if i < n],
            [lifted[i - n] for i in keep if i >= n],
            [slots[v] for v in outputs],
        )
        programs[key] = program
    if program.output_slots:
        buffers = [trace.inputs[i][2] for i in program.input_positions]
        for i, dtype in zip(program.literal_positions, program.scalars):
            buffers.append(scalar_buffer(trace.literals[i][1], dtype))
        values = trace.values
        for slot, buffer in zip(program.output_slots, program.run(buffers, trace.interpreted)):
            values[slot].buffer = buffer
    _settle(trace)


def part_from_native(value: TracedValue) -> None:
    """Called for a value that a graph keeps for backward: if a compiled function may overwrite its memory,
    it gets contents of its own."""
    storage = value.storage() if value.storage is not None else None
    if storage is not None and storage.native and storage.value is value:
        storage.part()


def _settle(trace: LazyTrace) -> None:
    """After a run: values are no longer pending; what backward won't walk is cut loose; shared memory is
    refreshed.
    """
    for node in trace.nodes:
        cut = True
        for v in node.results:
            v.trace = None  # type: ignore[attr-defined]
            if v.requires_grad and v.freed is not True and v.leaf is None:  # type: ignore[attr-defined]
                cut = False
        if cut:
            for v in node.results:
                if not v.requires_grad or v.leaf is not None:  # type: ignore[attr-defined]
                    v.node = None  # else it keeps the node for grad_fn's name
            let_go(node)
        elif node.results[0].freed:  # type: ignore[attr-defined]
            without_contents(node)
        else:
            for v in node.operands:
                part_from_native(v)  # type: ignore[arg-type]
    for _, segment in trace.gaps:
        for slot in segment.types:
            trace.values[slot].trace = None
    for ref in trace.handles:
        storage = ref()
        if storage is not None and storage.shared is not None:
            made, shared = storage.value.buffer, storage.shared
            if made is not None and made is not shared:
                shared.array[...] = made.array
                storage.value.buffer = shared
