"""Running the pending program of a thread: what must be kept, the program cache in the trie, interpret or
compile.

A program met for the first time runs on the interpreter, unless that takes about as long as compiling it; one
that comes back is compiled.
`TRACEGRAD_LAZY=interpret` never compiles, `TRACEGRAD_LAZY=compile` compiles at first sight (both for tests
and debugging).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any

import numpy as np

from ..ir.dtypes import float32
from ..ir.grad import reads
from ..ir.graph import Graph, Node
from ..ir.types import Type
from ..runtime.buffers import Buffer, empty
from ..runtime.executable import Executable, Lowered, cached, host_machine, interpret
from .freezing import freeze, only_wanted
from .past import Past, Plan, scalar_buffer
from .placed_lazy import PlacedRuns
from .placement import most_on
from .recording import LazyTrace
from .segments import stand_in
from .trie import TrieNode
from .values import Storage, TracedValue, let_go, without_contents

#: seconds of interpreting from which on the compile cache is asked first
_LOOKED_UP = 0.03
#: takes the contents of a program's outputs, and those of updated inputs if they were not written in place
HandOut = Callable[..., None]


class LazyProgram:
    """One program of the trie: which values it computes from which, and its code once compiled.

    Attributes:
        input_positions: indices into the trace's inputs that the graph reads.
        literal_positions: indices into the trace's literals that are runtime scalars of the graph.
        output_slots: slots of the values that get new memory.
        updates: indices into the trace's inputs whose memory is written, and slots of the values in it then.
        history: slots of values that outlive the program and whose gradients flow on into it.
        past: what is known of the nodes behind them, once they were looked for.
        dear: the interpreter would take half as long as the compiler, or longer; for a training step an
            eighth.
        slow: the interpreter takes so long that it is worth while to look into the compile cache first.
    """

    __slots__ = (
        "dear",
        "executable",
        "graph",
        "history",
        "input_positions",
        "literal_positions",
        "output_slots",
        "past",
        "placed",
        "runs",
        "scalars",
        "slow",
        "updates",
    )

    def __init__(
        self,
        graph: Graph,
        input_positions: list[int],
        literal_positions: list[int],
        output_slots: list[int],
        updates: list[tuple[int, int]],
        history: list[int],
    ) -> None:
        self.graph = graph
        self.input_positions = input_positions
        self.literal_positions = literal_positions
        self.output_slots = output_slots
        self.updates = updates
        self.history = history
        self.past: Plan | None = None
        self.scalars = [
            graph.inputs[len(input_positions) + i].type.dtype for i in range(len(literal_positions))
        ]
        self.executable: Executable | None = None
        self.placed: PlacedRuns | None = None
        self.runs = 0
        seconds = _interpreting(graph)
        steps = bool(graph.updates) and any(node.phase == "backward" for node in graph.nodes)
        self.dear = (8 if steps else 2) * seconds > _compiling(graph)  # a training step comes back
        self.slow = seconds > _LOOKED_UP

    def run(self, inputs: list[Buffer], interpreted: int, hand_out: HandOut) -> None:
        """Runs and hands out the contents of the outputs, and those of updated inputs unless they were
        written in place. The first runs are `interpreted` unless that is `dear`, the next compiles.

        An interrupt (Ctrl-C) leaves everything as it was, or comes when the results are handed out; then
        `hand_out` may be called a second time. That holds for the CPU: see `LazyTrace.unclear`.
        """
        self.runs += 1
        executable = self.executable
        if executable is None:
            mode = os.environ.get("TRACEGRAD_LAZY", "")
            first = mode != "compile" and self.runs <= interpreted and not self.dear
            first = first or mode == "interpret"
            if self.placed is not None:
                there = self.placed.interpreted(inputs) if first else (self.placed.run(inputs), None)
                return _completed(lambda: hand_out(*there))
            if first and self.slow and not mode:
                found = cached(self.graph, host_machine())
                if found is not None:
                    executable = self.executable = Executable(Lowered(self.graph, native=found))
            if first and executable is None:
                given = [b.array for b in inputs]
                outs, updates = interpret(self.graph, given)
                made = [_own(outs, v.type) for v in self.graph.outputs]
                ours = {id(a) for a in given}
                for i, new in enumerate(updates):
                    if id(new) in ours or not new.flags.owndata:  # it may show what another update changes
                        updates[i] = new.copy()

                def write() -> None:
                    for v, new in zip(self.graph.updates, updates):
                        given[v.index][...] = new
                    hand_out(made)

                return _completed(write)
            if executable is None:
                executable = self.executable = Executable(Lowered(self.graph))
        executable(inputs, hand_out)


def _completed(step: Callable[[], None]) -> None:
    """Does something that is not to be left half done; once more if an interrupt comes meanwhile."""
    try:
        step()
    except BaseException:
        step()
        raise


def _interpreting(graph: Graph) -> float:
    """Seconds that the interpreter takes for a graph, within a factor of two or three: some calls of NumPy
    for each op, a pass over memory for each operand and result, and what products multiply."""
    seconds = 0.0
    for node in graph.nodes:
        turns = node.attrs.get("length", 1) if node.regions else 1
        seconds += sum(map(_interpreting, node.regions)) * turns
        values = (*node.operands, *node.results)
        seconds += 1e-4 + 1.5e-9 * sum([v.type.numel for v in values])
        if node.op.name in _PRODUCTS:
            # m k, k n and m n elements: m n k multiplications.
            count = math.sqrt(math.prod([v.type.numel for v in (*node.operands[:2], node.results[0])]))
            seconds += _PRODUCTS[node.op.name] * count
    return seconds


def _compiling(graph: Graph) -> float:
    """Seconds that the compiler takes for a graph, as roughly."""

    def nodes(graph: Graph) -> int:
        return len(graph.nodes) + sum(nodes(r) for n in graph.nodes for r in n.regions)

    return 0.1 + 2e-3 * nodes(graph)


#: seconds a multiplication takes in ops that consist of them; kernels of convolutions are not in the count
_PRODUCTS = {name: 5e-11 for name in ("contract", "linear", "mm", "bmm", "addmm", "baddbmm")}
_PRODUCTS |= {f"convolution{what}": 5e-10 for what in ("", "_input_grad", "_weight_grad")}


def _own(arrays: list[np.ndarray], type: Type) -> Buffer:
    """The next array in memory of its own; each is let go of when it was copied."""
    b = empty(type)
    b.array[...] = arrays.pop(0)
    return b


def _saved_for_backward(
    live: list[TracedValue], trace: LazyTrace
) -> tuple[dict[TracedValue, None], set[Any]]:
    """Pending values that gradient rules of nodes behind `live` will read, and what else those nodes hold."""
    keep: dict[TracedValue, None] = {}
    held: set[Any] = set()
    seen: set[Any] = set()
    numbers = {slot for slot, _, _ in trace.literals}
    stack: list[Any] = [v for v in live if v.requires_grad]
    while stack:
        v = stack.pop()
        node = v.node
        if node is None or v.trace is not trace or v.freed is True or v.leaf is not None or node in seen:
            continue
        seen.add(node)
        if v.freed is False:
            held.update(node.operands)
        needs = tuple(o.requires_grad for o in node.operands)
        operands, results = reads(node, needs)
        for i in operands:
            operand: Any = node.operands[i]
            if operand.trace is trace and trace.slots[operand] not in numbers:  # whose contents we know
                keep[operand] = None
        for i in results:
            keep[node.results[i]] = None
        stack.extend(o for o in node.operands if o.requires_grad)
    return keep, held


def _references() -> tuple[int, int]:
    """How many references an overwritten value, and its memory, have that nobody but the trace holds. What an
    interpreter counts for its own sake differs, so that it is measured."""
    value = TracedValue(Type(float32, ()), buffer=empty(Type(float32, ())))
    undo = [(None, value)]
    held = [(0, value, value.buffer), {value: 0}, [value]]
    del value
    for _, old in undo:
        alone = getrefcount(old)
        memory = old.buffer
        return alone, getrefcount(memory)
    return len(held), 0


_ALONE = _references()


def _overwritten(trace: LazyTrace) -> dict[int, TracedValue]:
    """Slots of inputs whose contents nobody can see any more, and the values that took their place: these can
    be written into the same memory."""
    get, out = trace.slots.get, {}
    reading = Counter([id(v) for node in trace.made for v in node.operands]) if trace.made else None
    alone, shared = _ALONE
    for storage, old in trace.undo:
        memory, new = old.buffer, storage.value
        if memory is None or new.buffer is not None or new.trace is not trace:
            continue
        if getrefcount(old) - (reading[id(old)] if reading else 0) != alone:
            continue
        if old.type is not new.type and old.type != new.type:
            continue
        if getrefcount(memory) == shared and (memory._array is None or not memory.seen_outside()):
            slot = get(old)
            if slot is not None:
                out[slot] = new
    return out


def run_pending(trace: LazyTrace, at: TrieNode) -> None:
    """Computes what is alive of the pending program and hands the contents out."""
    slots = trace.slots
    live: list[int] = []
    shared: list[Storage] = []
    for ref in trace.handles:
        storage = ref()
        if storage is not None:
            value = storage.value
            if value.buffer is None and value.trace is trace:
                live.append(slots[value])
            if storage.shared is not None:
                shared.append(storage)
    lifted = trace.lifted()
    overwritten = _overwritten(trace) if trace.undo else {}
    written = list(overwritten)
    recent = at.recent
    if recent is not None and recent[0] == live and recent[1] == written and recent[2] is lifted:
        program: LazyProgram = recent[3]  # the same as last time, and no key to be made
    else:
        program = _program_of(trace, at, live, lifted, overwritten)
        at.recent = live, written, lifted, program
    inputs, values = trace.inputs, trace.values

    def hand_out(made: Sequence[Buffer] = (), changed: list[Buffer] | None = None) -> None:
        trace.ran = True
        for slot, buffer in zip(program.output_slots, made):
            value = values[slot] or stand_in(trace, slot)
            value.buffer = buffer
        for k, (i, slot) in enumerate(program.updates):
            _, old, buffer = inputs[i]
            old.buffer = None
            values[slot].buffer = buffer if changed is None else changed[k]
        _settle(trace, program)
        for storage in shared:  # memory that is seen outside
            new, seen = storage.value.buffer, storage.shared
            if new is not None and seen is not None and new is not seen:
                seen.array[...] = new.array
                storage.value.buffer = seen

    if program.output_slots or program.updates:
        buffers = [inputs[i][2] for i in program.input_positions]
        for i, dtype in zip(program.literal_positions, program.scalars):
            buffers.append(scalar_buffer(trace.literals[i][1], dtype))
        trace.unclear = program.placed is not None
        program.run(buffers, trace.interpreted, hand_out)
    else:
        _completed(hand_out)


def _program_of(
    trace: LazyTrace,
    at: TrieNode,
    live: list[int],
    lifted: tuple[int, ...],
    overwritten: dict[int, TracedValue],
) -> LazyProgram:
    """The program of a place that keeps these slots alive; made if it is not known."""
    # In one order, whether the optimiser's step was replayed or not.
    key = (tuple(sorted(set(live))), lifted, tuple(sorted(overwritten)))
    if at.programs is None:
        at.programs = {}
    program = at.programs.get(key)
    if program is None:
        values = [trace.values[slot] for slot in key[0]]
        program = at.programs[key] = _program(trace, values, lifted, {i: overwritten[i] for i in key[2]})
    return program


def _program(
    trace: LazyTrace,
    live: list[TracedValue],
    lifted: tuple[int, ...],
    overwritten: dict[int, TracedValue],
) -> LazyProgram:
    """The program that computes what is `live`; what is `overwritten` and not read by a later backward is
    updated in place."""
    slots, nodes = trace.slots, trace.nodes
    saved, held = _saved_for_backward(live, trace)
    updates: dict[TracedValue, TracedValue] = {}
    for slot, new in overwritten.items():
        old = trace.values[slot]
        if old not in held and new not in updates.values() and new not in saved:
            updates[old] = new
    outputs = dict.fromkeys([*live, *saved])
    for new in updates.values():
        outputs.pop(new, None)
    literals: list[Any] = [trace.values[trace.literals[i][0]] for i in lifted]
    inputs: list[Any] = [v for _, v, _ in trace.inputs]
    graph = only_wanted(freeze("lazy", nodes, [*inputs, *literals], list(outputs), list(updates.items())))
    used = {v for n in graph.nodes for v in n.operands} | set(graph.live_outs()) | set(graph.updates)
    keep = [i for i, v in enumerate(graph.inputs) if v in used]
    graph.inputs = [graph.inputs[i] for i in keep]
    for i, v in enumerate(graph.inputs):
        v.index = i
    n = len(inputs)
    position = {v: i for i, v in enumerate(inputs)}
    program = LazyProgram(
        graph,
        [i for i in keep if i < n],
        [lifted[i - n] for i in keep if i >= n],
        [slots[v] for v in outputs],
        [(position[old], slots[new]) for old, new in updates.items()],
        [slots[v] for v in (*outputs, *updates.values()) if v.requires_grad and v.leaf is None],
    )
    seen = [*(inputs[i].type for i in program.input_positions), *(v.type for v in outputs)]
    device = most_on(seen)
    if device is not None:
        program.placed = PlacedRuns(graph, device, [v.type for v in outputs])
    return program


def part_from_native(value: TracedValue) -> None:
    """Called for a value that a graph keeps for backward: if a compiled function may overwrite its memory,
    it gets contents of its own."""
    storage = value.storage() if value.storage is not None else None
    if storage is not None and storage.native and storage.value is value:
        storage.part()


def _behind(trace: LazyTrace, slots: list[int]) -> set[Any]:
    """The nodes of the program that values which outlive it can be walked back through."""
    own = set(trace.slots) - {v for _, v, _ in trace.inputs}
    found: set[Any] = set()
    stack: list[Any] = [trace.values[s] for s in slots]
    while stack:
        v = stack.pop()
        node = v.node if v.leaf is None and v in own else None
        if node is not None and node not in found:
            found.add(node)
            stack += node.operands
    return found


def _stays(trace: LazyTrace, program: LazyProgram) -> list[Node]:
    """The nodes that were made, and those a walk back may look at; what is known of the rest is noted."""
    nodes = trace.made
    if program.history:
        past = program.past
        if nodes or past is None:
            past = Plan(trace, program.history)
            program.past = None if nodes else past
        if nodes or past.entries is None:
            return [*nodes, *past.nodes(trace)]
        Past(trace, past, program.history)
    return nodes


def _settle(trace: LazyTrace, program: LazyProgram) -> None:
    """After a run: values are no longer pending; what backward won't walk is cut loose."""
    if trace.stays is None:  # (else an interrupt came when this had been done)
        trace.stays = _stays(trace, program)
    nodes = trace.stays
    for v in trace.values:
        if v is not None:
            v.trace = None
    numbers = {slot: number for slot, number, _ in trace.literals} if nodes else {}
    behind = _behind(trace, program.history) if nodes else set()
    for node in nodes:
        cut = True
        for v in node.results:
            if v.requires_grad and v.freed is not True and v.leaf is None:  # type: ignore[attr-defined]
                cut = False
        lost = node not in behind  # a node and its results hold each other, and what the node reads
        if cut or lost:
            for v in node.results:
                if lost or not v.requires_grad or v.leaf is not None:  # type: ignore[attr-defined]
                    v.node = None  # else it keeps the node for grad_fn's name
            let_go(node)
            continue
        if numbers:
            operands: Any = node.operands
            for v in operands:
                number = numbers.get(trace.slots.get(v, -1))
                if number is not None and v.buffer is None:
                    v.buffer = scalar_buffer(number, v.type.dtype)
        if node.results[0].freed:  # type: ignore[attr-defined]
            without_contents(node)
        else:
            for v in node.operands:
                part_from_native(v)  # type: ignore[arg-type]
