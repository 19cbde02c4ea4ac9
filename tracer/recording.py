"""Recording: how operations on tensors become graphs.

`LazyTrace` (one per thread) is the pending program of
ordinary code: it walks a trie of everything ever recorded, so an op seen before in the same place costs a
comparison and a value, and finds its compiled program at the end of the walk. Its nodes are made only where
something looks at them (tracer/segments.py). `compile` records with its own subclass (tracer/compile.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from ..ir.dtypes import DType
from ..ir.errors import TraceError
from ..ir.graph import Graph, Node
from ..ir.op import REGISTRY, Op
from ..ir.regions import structure
from ..ir.types import Type
from ..runtime.buffers import Buffer
from .callers import user_location
from .elsewhere import computed_alone
from .segments import Segment, end_of, fill
from .trace import Trace
from .trie import LIFTED, TrieNode, numbers_of, prune, see_number
from .values import Storage, TracedValue, pending

_CONSTANT = REGISTRY["constant"]


class LazyTrace(Trace):
    """The pending program of one thread.

    Attributes:
        outside: it reads values whose graph goes on outside of it, where walks back depend on more than the
            way through the trie.
        ran: its results have been handed out, or are about to be.
        unclear: it runs where nobody can tell whether an interrupt came before or after (on a GPU), so it
            must not run again: it counts as failed, though it may have written its updates in place.

    A new forward computation after a `backward()` starts a new program (a training loop's body is one), as
    does a trace of `LIMIT` ops; otherwise it ends when a value is needed.
    """

    LIMIT = 4096
    PLACES = 1 << 16  # of the trie; past them, what was not met for longest is forgotten
    ONCE = 1 << 13  # so many new ones, and programs that ran once and not lately are forgotten
    interpreted = 1  # runs of a program before it is compiled

    def __init__(self, run: Callable[[LazyTrace, TrieNode], None]) -> None:
        self.root = TrieNode(None)
        self.places = self.tidy = self.runs = 0
        self.lock = threading.RLock()
        self._run = run
        self.undo: list[tuple[Storage, TracedValue]] = []
        self.own_attrs: dict[int, dict[str, Any]] = {}
        self.flags: dict[int, bool] = {}  # of values that segments gave another `requires_grad`
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self.at_node = self.root
        self.record: list[TrieNode | Segment] = []
        if self.made:
            self.made = []
        self.filled = 0
        self.stays: list[Node] | None = None  # see _settle in lazy.py
        self.handles = []
        self.slots: dict[Any, int] = {}
        self.values: list[Any] = []  # None where nobody looked for one
        self.inputs: list[tuple[int, TracedValue, Buffer]] = []
        self.literals: list[tuple[int, Any, TrieNode]] = []
        if self.undo:
            self.undo = []
        if self.own_attrs:
            self.own_attrs = {}
        if self.flags:
            self.flags = {}
        self.walked_back = self.overlong = self.transformed = self.outside = False
        self.ran = self.unclear = False

    @property
    def nodes(self) -> list[Node]:
        """The recorded ops as nodes, which are made when they are first looked at."""
        self.fill()
        return self.made

    @nodes.setter
    def nodes(self, nodes: list[Node]) -> None:
        self.made = nodes

    def fill(self) -> None:
        """Makes the nodes of all that was recorded."""
        with self.lock:
            fill(self)

    def _advance(self, key: Any) -> None:
        """Goes where `key` leads."""
        at = self.at_node
        place = at.next
        if place.key == key:
            self.at_node = place
            return
        place = at.children.get(key) or self._grow(key, TrieNode(key))
        at.next = self.at_node = place

    def _grow(self, key: Any, place: TrieNode) -> TrieNode:
        """Adds a place, of which everything else is known, to the trie."""
        place.slot = len(self.values)
        self.at_node.children[key] = place
        self.places += 1
        return place

    def repair(self) -> None:
        """Drops what was half recorded when an interrupt (Ctrl-C) came. The rest of the program goes on at a
        place that no other program finds."""
        record, inputs, literals = self.record, self.inputs, self.literals
        n = len(self.values)
        while record and end_of(record[-1]) > n:
            record.pop()
        while inputs and inputs[-1][0] >= n:
            inputs.pop()
        n = max(end_of(record[-1]) if record else 0, inputs[-1][0] + 1 if inputs else 0)
        while literals and literals[-1][0] >= n:
            literals.pop()
        del self.values[n:]
        self.slots = {v: slot for v, slot in self.slots.items() if slot < n}
        self.at_node = TrieNode(None)

    def enter(self, value: TracedValue) -> int:
        """Makes a concrete value an input of the pending program; gives its slot."""
        buffer = value.buffer or self._elsewhere(value)
        if buffer is None:
            raise TraceError(
                "a tensor's contents are gone: it was made inside a compiled function that did not return it"
            )
        if buffer._block is None and buffer.shared_outside():
            buffer = buffer.copy()
        key = (value.type, value.requires_grad, value.leaf is None)
        if value.requires_grad and value.leaf is None:
            self.outside = True
        try:
            place = self.at_node.next
            if place.key == key:
                self.at_node = place
            else:
                self._advance(key)
            values = self.values
            slot = self.slots[value] = len(values)
            values.append(value)
            self.inputs.append((slot, value, buffer))
        except BaseException:
            self.repair()
            raise
        return slot

    def _slots_of(self, operands: Iterable[Any]) -> tuple[int, ...]:
        """Numbers of values; those that are new become inputs."""
        get, found = self.slots.get, []
        for v in operands:
            slot = get(v)
            found.append(self.enter(v) if slot is None else slot)
        return tuple(found)

    def literal(self, value: Any, dtype: DType) -> TracedValue:
        slot = self.number(value, dtype)
        made = self.values[slot] = pending(self.at_node.types[0], self, False)
        self.slots[made] = slot
        return made

    def number(self, value: Any, dtype: DType) -> int:
        """A Python number as a scalar value that is not made yet (`stand_in` does so); gives its slot."""
        value = dtype.number(value)
        at = self.at_node
        place = at.next
        if place.key is not dtype:
            place = at.children.get(dtype) or self._constant(value, dtype)
            at.next = place
        if not place.lifted:
            see_number(place, value)
        slot = place.slot
        try:
            self.at_node = place
            self.values.append(None)
            self.literals.append((slot, value, place))
            self.record.append(place)
        except BaseException:
            self.repair()
            raise
        return slot

    def _constant(self, value: Any, dtype: DType) -> TrieNode:
        """A new place for a number."""
        place = TrieNode(dtype)
        place.op, place.attrs, place.baked = _CONSTANT, {"value": value, "dtype": dtype}, value
        place.types, place.grads = (Type(dtype, ()),), (False,)
        place.loc, place.phase = self.loc or user_location(), self.phase
        return self._grow(dtype, place)

    def lifted(self) -> tuple[int, ...]:
        """Positions of the numbers that are runtime scalars."""
        at = self.at_node
        if at.numbers != LIFTED[0]:
            at.lifts = tuple([i for i, (_, _, place) in enumerate(self.literals) if place.lifted])
            at.numbers = LIFTED[0]
        return at.lifts

    def emit(
        self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> Any:
        slots = self.slots
        found = numbers_of(slots.get, operands)
        if None in found:
            found = self._slots_of(operands)
        place = self.at_node.next
        if (
            place.op is not op
            or place.operands != found
            or place.attrs != attrs
            or place.enabled is not self.grad_enabled
            or place.regions != regions
        ):
            place = self._turn((op, found, attrs, self.grad_enabled), operands, regions)
        slot = place.slot
        try:
            if len(place.types) == 1:
                out: Any = pending(place.types[0], self, place.grads[0])  # (`record` does all this too)
                slots[out] = slot
                self.values.append(out)
            else:
                out = tuple([pending(t, self, g) for t, g in zip(place.types, place.grads)])
                for i, v in enumerate(out):
                    v.index = i
                    slots[v] = slot + i
                self.values += out
            self.at_node = place
            self.record.append(place)
        except BaseException:
            self.repair()
            raise
        if slot >= self.LIMIT and self.phase == "forward":
            self.overlong = self.walked_back = True
        return out

    def _turn(self, key: tuple[Any, ...], operands: tuple[Any, ...], regions: tuple[Graph, ...]) -> TrieNode:
        """The place an op leads to that is not where the last program went."""
        op, found, attrs, enabled = key
        long: Any = (op, found, tuple(attrs.items()), enabled)
        if regions:
            long = (*long, tuple(map(structure, regions)))
        at = self.at_node
        place = at.children.get(long)
        if place is None:
            types, grads, loc = self._infer(op, operands, attrs, regions)
            place = TrieNode(key)
            place.op, place.operands, place.attrs, place.regions = op, found, attrs, regions
            place.types, place.grads, place.loc, place.phase = types, grads, loc, self._phase()
            place.enabled = enabled
            self._grow(long, place)
        at.next = place
        return place

    def particular(self, value: TracedValue, attrs: dict[str, Any]) -> None:
        self.own_attrs[self.slots[value]] = attrs

    def mark(self, key: Any) -> None:
        self._advance(key)

    def segment(
        self,
        key: Any,
        operands: Sequence[TracedValue],
        procedure: Callable[..., Any],
        *given: Any,
        numbers: tuple[int, ...] = (),
    ) -> tuple[list[Any], Any]:
        """What `procedure(*given)` gives, which is run only the first time it is met at this place of the
        trie.

        Args:
            key: with the operands, all that the recorded ops depend on; hashable.
            operands: every value from outside the program that the procedure may read.
            numbers: slots of numbers that it may read.
            procedure: records ops and has no other effect. Gives values, or None, and a note. If one of the
                values is not of this program, it runs again next time.
        """
        key = (key, self._slots_of(operands) + numbers, self.grad_enabled, self.phase)
        begin = self.at_node
        known = begin.segments.get(key) if begin.segments is not None else None
        if known is not None:
            return known.replay(self), known.note
        record, start, first, literals = self.record, len(self.record), len(self.values), len(self.literals)
        inputs, own = len(self.inputs), len(self.own_attrs)
        outputs, note = procedure(*given)
        whole = self.record is record and len(self.inputs) == inputs and len(self.own_attrs) == own
        whole = whole and all(v is None or v in self.slots for v in outputs)
        if begin.segments is None:
            begin.segments = {}
        if whole and len(begin.segments) < TrieNode.SEGMENTS:
            begin.segments[key] = Segment(self, start, first, literals, outputs, note)
        return outputs, note

    def flagged(self, value: TracedValue) -> None:
        slot = self.slots[value]
        if self.flags.get(slot) is not value.requires_grad:  # else the way through the trie says so already
            self.mark(("requires_grad", slot, value.requires_grad))

    def wrote(self, storage: Storage, old: TracedValue) -> None:
        if storage.leaf is not None:
            self.flagged(storage.value)
        if old.trace is not self:
            self.undo.append((storage, old))
        if storage.shared is not None:
            if storage.shared.seen_outside():
                self.flush()
            else:
                storage.shared = None

    def flush(self) -> None:
        """Runs what is pending; every value a tensor holds, or backward will read, gets its contents."""
        with self.lock:
            if not self.record:
                self._reset()
                return
            self.runs += 1
            self.at_node.met = self.runs
            try:
                self._run(self, self.at_node)
                self.ran = True  # from here on it must not run again
                self._reset()
            except BaseException as error:
                if self.ran:
                    self._reset()
                elif self.unclear or isinstance(error, Exception):  # (else all is pending as before)
                    for storage, old in reversed(self.undo):  # a failed run leaves every tensor as it was
                        storage.hold(old)
                        storage.version += 1
                    self._reset()
                raise
            if self.places > min(self.PLACES, self.tidy + self.ONCE):
                keep = self.PLACES // 2 if self.places > self.PLACES else self.PLACES
                self.tidy = self.places = prune(self.root, keep, self.ONCE // 2)

    def materialize(self, value: TracedValue) -> Buffer:
        self.flush()
        buffer = value.buffer or self._elsewhere(value)
        if buffer is None:
            raise TraceError("a tensor's contents are gone: an earlier error kept them from being computed")
        return buffer

    def _elsewhere(self, value: TracedValue) -> Buffer | None:
        """The contents of a value that is pending in another trace; None where there is none."""
        trace = value.trace
        if trace is None or trace is self:  # (the other thread may have ended its program just now)
            return value.buffer
        if not isinstance(trace, LazyTrace):
            return trace.materialize(value)
        # It is the other thread's to end, at any moment: this value is computed here, on its own.
        while value.buffer is None and value.trace is trace:
            value.buffer = computed_alone(value)
        return value.buffer


@contextmanager
def recording_into(trace: Trace) -> Any:
    """Ops recorded inside go to `trace`."""
    old = STATE.trace
    STATE.trace = trace
    try:
        yield trace
    finally:
        STATE.trace = old


@contextmanager
def outside_traces() -> Any:
    """Ops inside go to the thread's ordinary lazy trace even while a function is being compiled (optimiser
    state made at the first step)."""
    with recording_into(STATE.lazy):
        yield


class ThreadState(threading.local):
    """Per-thread tracing state: the lazy trace and the trace that ops go to now."""

    def __init__(self) -> None:
        from .lazy import run_pending

        self.lazy = LazyTrace(run_pending)
        self.trace: Trace = self.lazy


STATE = ThreadState()
