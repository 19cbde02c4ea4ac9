"""Recording: how operations on tensors become graphs.

`Trace` is a Builder whose nodes hold `TracedValue`s. `LazyTrace` (one per thread) is the pending program of
ordinary code: it walks a trie of everything ever recorded, so an op seen before in the same place costs a
comparison and a value, and finds its compiled program at the end of the walk. Its nodes are made only where
something looks at them (tracer/segments.py). `compile` records with its own subclass (tracer/compile.py).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from ..ir import dtypes
from ..ir.builder import Builder, infer_or_explain
from ..ir.dtypes import DType
from ..ir.errors import TraceError
from ..ir.graph import Graph, Location, Node, Value
from ..ir.op import REGISTRY, Op
from ..ir.regions import structure
from ..ir.types import Type
from ..runtime.buffers import Buffer
from .callers import called_by_user as called_by_user
from .callers import is_ours as is_ours
from .callers import user_location
from .callers import warn as warn
from .elsewhere import computed_alone
from .placement import TO_DEVICE, infer_placed
from .segments import Segment, fill
from .trie import LIFTED, TrieNode, numbers_of, prune
from .values import Storage, TracedValue, pending

_CONSTANT = REGISTRY["constant"]


class Trace(Builder):
    """A program being recorded.

    Attributes:
        nodes: recorded nodes in order.
        handles: storages that were given values of this trace.
        grad_enabled: whether results of ops on values that require grad require it too.
        overlong: the program is long enough; it ends where the next user operation begins.
        walked_back: a backward that made no new graph has been recorded; see `ready` in tensor.py.
        transformed: a derivative of a function (tracer/func) has been recorded.
        loading: samples are being read one by one: indices are never the same again, so indexing by an int
            is done at once instead of recorded.
    """

    loading = False

    #: the name of the transformation whose function must not call `backward`
    forbids_backward = ""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.handles: list[weakref.ref[Storage]] = []
        self.grad_enabled = True
        self.walked_back = False
        self.overlong = False
        self.transformed = False
        self.loc: Location | None = None
        self.phase = "forward"

    def emit(
        self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> Any:
        """Records one op on values; gives its `TracedValue`, or a tuple of them."""
        raise NotImplementedError  # pragma: no cover - abstract

    def own(self, value: Any) -> Any:
        """What this trace knows a value by."""
        return value

    def flush(self) -> None:
        """Ends the pending program, where there is such a thing."""

    def wrote(self, storage: Storage, old: TracedValue) -> None:
        """Called after an in-place write to a storage that held `old`."""

    def flagged(self, value: TracedValue) -> None:
        """Called when a pending value's `requires_grad` became another than its op gave it."""

    def read_grad(self, tensor: Any, grad: Any) -> Any:
        """Called when `tensor.grad` is read; gives what the reader sees."""
        return grad

    def write_grad(self, tensor: Any) -> None:
        """Called before `tensor.grad` is assigned."""

    def hyperparameter(self, owner: dict[str, Any], key: str) -> Any:
        """A number that schedulers change (a learning rate): itself, or under `compile` a scalar read at each
        call.
        """
        return owner[key]

    def guard_module(self, module: Any, state: Any) -> None:
        """Called when a module is used, with what of it a trace relies on."""

    def note_state(self, owner: Any, state: dict[str, Any]) -> None:
        """Names the tensors of an optimiser's state of `owner` in dumps."""

    def mark(self, key: Any) -> None:
        """A step that is no op but changes what the program keeps (a freed graph)."""

    def particular(self, value: TracedValue, attrs: dict[str, Any]) -> None:
        """Says that the attributes of the op that made a value, though equal to others', are its own."""

    def literal(self, value: Any, dtype: DType) -> TracedValue:
        """A Python number as a scalar value."""
        raise NotImplementedError  # pragma: no cover - abstract

    def const(self, value: Any, like: Value | DType = dtypes.float32) -> Value:
        dtype = like if isinstance(like, DType) else like.type.dtype
        return self.literal(value, dtype)

    def materialize(self, value: TracedValue) -> Buffer:
        """The contents of a value, running what is pending."""
        raise NotImplementedError  # pragma: no cover - abstract

    def _append(
        self,
        op: Op,
        operands: tuple[Any, ...],
        attrs: dict[str, Any],
        types: Sequence[Type],
        grads: Sequence[bool],
        loc: Location | None,
        regions: tuple[Graph, ...] = (),
    ) -> Any:
        node = Node(op, operands, attrs, loc, self._phase(), regions)
        self.nodes.append(node)
        if len(types) == 1:
            value = TracedValue(types[0], node, 0, self, None, grads[0])
            node.results = (value,)
            return value
        node.results = results = tuple(
            TracedValue(t, node, i, self, None, g) for i, (t, g) in enumerate(zip(types, grads))
        )
        return results

    def _phase(self) -> str:
        if self.walked_back and not self.grad_enabled and self.phase == "forward":
            return "update"  # what is done without gradients after a backward is done to parameters
        return self.phase

    def _infer(
        self,
        op: Op,
        operands: tuple[Any, ...],
        attrs: dict[str, Any],
        regions: tuple[Graph, ...] = (),
    ) -> tuple[tuple[Type, ...], tuple[bool, ...], Location | None]:
        loc = self.loc or user_location()
        if op is TO_DEVICE or any([v.type.device is not None for v in operands]):
            types = infer_placed(op, operands, attrs, loc, regions)
        else:
            types = infer_or_explain(op, operands, attrs, loc, regions)
        grad = self.grad_enabled and op.differentiable and any(v.requires_grad for v in operands)
        return types, tuple(grad and t.dtype.kind == "f" for t in types), loc


def see_number(place: TrieNode, value: Any) -> None:
    """Makes a number of the program, that is `value` now, a runtime scalar if it was another before."""
    old = place.baked
    if old is not value and old != value:
        place.lifted = value == value or old == old  # NaN stays NaN
    elif not value and str(value) != str(old):  # 0.0 became -0.0
        place.lifted = True
    LIFTED[0] += place.lifted


class LazyTrace(Trace):
    """The pending program of one thread.

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
        self.walked_back = self.overlong = self.transformed = False

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

    def _advance(self, key: Any) -> bool:
        """Goes where `key` leads; gives whether that is a new place."""
        at = self.at_node
        place = at.next
        if place.key == key:
            self.at_node = place
            return False
        found = at.children.get(key)
        place = found or self._grow(key)
        at.next = self.at_node = place
        return found is None

    def _grow(self, key: Any) -> TrieNode:
        place = self.at_node.children[key] = TrieNode(key)
        place.slot = len(self.values)
        self.places += 1
        return place

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
        place = self.at_node.next
        if place.key == key:
            self.at_node = place
        else:
            self._advance(key)
        values = self.values
        slot = self.slots[value] = len(values)
        values.append(value)
        self.inputs.append((slot, value, buffer))
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
        place = self.at_node.next
        new = False
        if place.key is dtype:
            self.at_node = place
        else:
            new, place = self._advance(dtype), self.at_node
        if new:
            place.op, place.attrs, place.baked = _CONSTANT, {"value": value, "dtype": dtype}, value
            place.types, place.grads = (Type(dtype, ()),), (False,)
            place.loc, place.phase = self.loc or user_location(), self.phase
        elif not place.lifted:
            see_number(place, value)
        slot = place.slot
        self.values.append(None)
        self.literals.append((slot, value, place))
        self.record.append(place)
        return slot

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
        self.at_node = place
        slot = place.slot
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
        self.record.append(place)
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
            place = self._grow(long)
            place.key, place.op, place.operands, place.attrs, place.regions = key, op, found, attrs, regions
            place.types, place.grads, place.loc, place.phase = types, grads, loc, self._phase()
            place.enabled = enabled
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
            except BaseException:
                for storage, old in reversed(self.undo):  # a failed run leaves every tensor as it was
                    storage.hold(old)
                    storage.version += 1
                raise
            finally:
                self._reset()
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
