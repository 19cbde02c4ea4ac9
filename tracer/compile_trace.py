"""Tracing one Python function for `compile`: what it reads becomes inputs, what it writes becomes updates.

The trace keeps Python's side of the state (storages, `.grad`) as it was: everything the function did to it
while being traced is undone at the end, and done again by each call of the compiled program.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from ..ir.dataclass import dataclass, field
from ..ir.dtypes import DType, float64
from ..ir.errors import TraceError
from ..ir.graph import Graph
from ..ir.op import REGISTRY, Op
from ..ir.types import Type
from ..runtime.buffers import Buffer
from .advice import needs_value
from .attributes import Assigned, Attributes, is_whole
from .callers import user_location
from .freezing import freeze
from .outside import Read, Reads, noting
from .placement import device_of
from .recording import STATE
from .tensor import Tensor
from .trace import Trace
from .tree import map_tensors
from .values import Storage, TracedValue, let_go


@dataclass
class Place:
    """Where an input of the compiled program comes from at each call.

    Attributes:
        kind: `arg` (position `index` among the tensor arguments), `state` (a captured storage), `constant` (a
            value nothing can change), `scalar` (a Python number read by `read`).
    """

    kind: str
    value: TracedValue
    index: int = 0
    storage: Storage | None = None
    read: Callable[[], float] | None = None
    name: str = ""


@dataclass
class Traced:
    """What tracing a function gave.

    Attributes:
        graph: the program; inputs in the order of `places`.
        places: sources of the inputs.
        outputs: one value per graph output.
        result: the function's return value with output tensors replaced by `Output`s.
        grads: `.grad` assignments that each call makes: (owner, Output or None or CONSUMED); the owner is a
            tensor or the position of a tensor argument.
        grad_guards: (owner, whether its `.grad` was None) for gradients read before they were written.
        assigned: attributes of Python objects that each call sets.
        followed: (owner, number of the input, the tensor if nothing can take its place) of inputs that are a
            `.grad` or an attribute (owner: record and number of the tensor): another tensor that is there by
            the time of a call takes the place.
        reads: what it relies on of Python's variables and attributes.
        arg_writes: which argument positions are updated in place.
        device: the GPU it runs on, None for the CPU; and of each output whether it is there.
    """

    graph: Graph
    places: list[Place]
    result: Any
    grads: list[tuple[Any, Any]] = field(default_factory=list)
    grad_guards: list[tuple[Any, bool]] = field(default_factory=list)
    assigned: list[Assigned] = field(default_factory=list)
    followed: list[tuple[Any, int, Any]] = field(default_factory=list)
    grad_outputs: list[bool] = field(default_factory=list)
    module_guards: list[tuple[Any, Any]] = field(default_factory=list)
    reads: Reads = field(default_factory=Reads)
    device: str | None = None
    placed: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Output:
    """Stands for output `index` in a result."""

    index: int


class Consumed:
    """What `.grad` holds after a compiled step that used the gradient up without keeping it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return (
            f"this gradient was used up inside the compiled function {self.name!r}, which updates its "
            f"parameter and resets the gradient when it starts; pass keep_grads=True to tracegrad.compile "
            f"to keep it"
        )


class CompileTrace(Trace):
    """Records one call of a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.places: dict[TracedValue, Place] = {}
        self.written: dict[Storage, TracedValue] = {}
        self.grads: dict[int, tuple[Tensor, Any, bool]] = {}
        self.guards: list[tuple[Tensor, bool]] = []
        self.modules: dict[int, tuple[Any, Any]] = {}
        self.names: dict[Storage, str] = {}
        self.kinds: dict[str, int] = {}
        self.argument_names: dict[int, str] = {}
        self.attributes = Attributes()
        self.reads = Reads()

    # --- recording

    def emit(
        self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> Any:
        for v in operands:
            if v.trace is not self:
                self.capture(v)
        types, grads, loc = self._infer(op, operands, attrs, regions)
        return self._append(op, operands, attrs, types, grads, loc, regions)

    def literal(self, value: Any, dtype: DType) -> TracedValue:
        attrs = {"value": dtype.number(value), "dtype": dtype}
        loc = self.loc or user_location()
        return self._append(REGISTRY["constant"], (), attrs, (Type(dtype, ()),), (False,), loc)

    def argument(self, value: TracedValue, index: int) -> TracedValue:
        """A fresh value that stands for tensor argument `index`."""
        made = TracedValue(value.type, None, 0, self, None, value.requires_grad)
        self.places[made] = Place("arg", made, index)
        return made

    def scalar(self, read: Callable[[], float], name: str = "", dtype: DType = float64) -> TracedValue:
        """A Python number that is read at each call (a learning rate) as a 0-d value."""
        made = TracedValue(Type(dtype, ()), None, 0, self)
        self.places[made] = Place("scalar", made, read=read, name=name)
        return made

    def hyperparameter(self, owner: dict[str, Any], key: str) -> Any:
        return Tensor(self.scalar(lambda: owner[key], key if isinstance(key, str) else ""))

    def capture(self, value: TracedValue) -> None:
        """Makes a concrete value from outside an input."""
        if value in self.places:
            return
        if value.buffer is None:
            if value.trace is None or isinstance(value.trace, CompileTrace):
                raise TraceError(
                    "a tensor made inside one compiled function was used in another without being returned"
                )
            STATE.lazy.materialize(value)
        storage = value.storage() if value.storage is not None else None
        if storage is not None and (storage.value is value or self.written.get(storage) is value):
            self.places[value] = Place("state", value, storage=storage)
        else:
            self.places[value] = Place("constant", value)

    def materialize(self, value: TracedValue) -> Buffer:
        # tensor([...]) in the function is known after all, also where it is told from those on a GPU.
        source: Any = value
        while source.node is not None and source.node.op.name in ("alias", "to_device"):
            source = source.node.operands[0]
        place = self.places.get(source)
        if value is not source and place is not None and place.kind == "constant":
            if place.value.buffer is not None and value.type.device is place.value.type.device is None:
                return place.value.buffer
        raise needs_value(value, f"{self.name!r} is being compiled")

    # --- state

    def wrote(self, storage: Storage, old: TracedValue) -> None:
        if storage not in self.written and old.trace is not self:
            self.written[storage] = old

    def read_grad(self, tensor: Any, grad: Any) -> Any:
        if id(tensor) not in self.grads:
            self.grads[id(tensor)] = (tensor, grad, True)
            self.guards.append((tensor, grad is None))
        return grad

    def write_grad(self, tensor: Any) -> None:
        if id(tensor) not in self.grads:
            self.grads[id(tensor)] = (tensor, tensor._grad, False)

    def guard_module(self, module: Any, state: Any) -> None:
        """Notes what of a module the trace relied on, and names its parameters for the dumps."""
        if id(module) in self.modules:
            return
        self.modules[id(module)] = (module, state)
        self.attributes.watch(module)
        self.reads.of_function(getattr(type(module), "forward", None))
        if not hasattr(module, "_parameters"):  # an optimiser
            return
        kind = type(module).__name__.lower()
        number = self.kinds[kind] = self.kinds.get(kind, 0) + 1
        for table in (module._parameters, module._buffers):
            for name, t in table.items():
                if t is not None:
                    self.names.setdefault(t._storage, f"{kind}{number}_{name}")

    def note_state(self, owner: Any, state: dict[str, Any]) -> None:
        base = self.names.get(owner._storage)
        for key, t in state.items():
            if isinstance(t, Tensor):
                many = base is not None and t.dim() > 0
                self.names.setdefault(t._storage, f"{base}_{key}" if many else key)

    def name_of(self, place: Place, number: int) -> str:
        """The name of an input in the text."""
        if place.kind == "arg":
            return self.argument_names.get(place.index, f"arg{place.index}")
        if place.kind == "scalar" and place.name:
            return place.name
        if place.storage is not None and place.storage in self.names:
            return self.names[place.storage]
        return f"{place.kind}{number}"

    def tensors_read(self, assigned: list[Assigned], count: dict[Any, int]) -> list[tuple[Read, Tensor]]:
        """The tensors that were read of Python; they are added to the count of places that hold a storage."""
        reads = self.reads.finish({(id(a.table), a.key) for a in assigned})
        counted = {id(table) for _, table, _ in self.attributes.tables}
        found = [(r, t) for r in reads for t in r.tensors()]
        for r, t in found:
            if id(r.table) not in counted:
                count[t._storage] = count.get(t._storage, 0) + 1
        return found

    def undo(self) -> None:
        """Puts attributes, storages and `.grad`s back as they were before the trace."""
        self.attributes.undo(self)
        for storage, old in self.written.items():
            storage.hold(old)
            storage.version += 1
        for tensor, old, _ in self.grads.values():
            tensor._grad = old

    def forget(self) -> None:
        """Lets go of the values that were read: nothing else may hold them when native code takes their
        memory, or they would be copied."""
        for node in self.nodes:
            let_go(node)
        self.nodes = []
        self.places = {}
        self.written = {}


def _free_variables(fn: Any) -> list[tuple[str, Any]]:
    """Names and values a function sees from outside, for the dumps."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return []
    try:
        cells = [(n, c.cell_contents) for n, c in zip(code.co_freevars, fn.__closure__ or ())]
    except ValueError:  # a cell that is not filled yet
        cells = []
    return cells + [(n, fn.__globals__[n]) for n in code.co_names if n in fn.__globals__]


def trace_function(
    fn: Callable[..., Any], args: Any, kwargs: Any, name: str, keep_grads: bool, grad_enabled: bool = True
) -> Traced:
    """Runs `fn` once, recording. State is left as it was; errors pass through."""
    STATE.lazy.flush()
    trace = CompileTrace(name)
    trace.grad_enabled = grad_enabled
    tensors: list[Tensor] = []
    known: dict[int, Tensor] = {}

    def stand_in(t: Tensor) -> Tensor:
        if id(t) in known:  # given twice: one argument
            tensors.append(known[id(t)])
            return known[id(t)]
        value = t._value()
        made = trace.argument(value, len(tensors))
        fresh = Tensor(made)
        if value.leaf is not None:
            fresh._storage.leaf = made.leaf = weakref.ref(fresh)
        if type(t) is not Tensor:
            fresh.__class__ = type(t)  # a Parameter stays one
        fresh._grad = t._grad
        known[id(t)] = fresh
        tensors.append(fresh)
        return fresh

    args, kwargs = map_tensors(args, stand_in), map_tensors(kwargs, stand_in)
    positions = {id(t): i for i, t in reversed([*enumerate(tensors)])}
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a builtin, or a call that will fail on its own terms
        bound = kwargs
    trace.argument_names = {positions[id(t)]: k for k, t in bound.items() if id(t) in positions}
    for owner in (fn, getattr(fn, "__self__", None), *args, *kwargs.values()):
        trace.attributes.watch(owner)
        trace.reads.of_object(owner)
    trace.reads.of_function(fn)
    trace.reads.prepare()
    for variable, t in _free_variables(fn):
        trace.attributes.watch(t)
        if isinstance(t, Tensor) and t._view is None:
            trace.names.setdefault(t._storage, variable)
    old, STATE.trace = STATE.trace, trace
    try:
        with noting():
            result = fn(*args, **kwargs)
        return _finish(trace, tensors, result, keep_grads)
    finally:
        STATE.trace = old
        trace.undo()
        trace.forget()


def _finish(trace: CompileTrace, arguments: list[Tensor], result: Any, keep_grads: bool) -> Traced:
    outputs: list[TracedValue] = []
    given: dict[int, tuple[Tensor, Output]] = {}  # a tensor that comes out twice is one tensor
    argument_ids = {id(t): i for i, t in reversed([*enumerate(arguments)])}

    def output(t: Tensor) -> Output:
        value = t._value()
        if value.trace is not trace:
            trace.capture(value)
        found = given.get(id(t))
        if found is None or value is not outputs[found[1].index]:
            outputs.append(value)
            found = given[id(t)] = (t, Output(len(outputs) - 1))
        return found[1]

    def returned(t: Tensor) -> Any:
        if id(t) in argument_ids or t._storage in trace.written or t._storage.value.trace is not trace:
            return t if id(t) not in argument_ids else output(t)
        return output(t)

    trace.attributes.write_buffers(trace)
    result = map_tensors(result, returned)
    assigned = trace.attributes.assigned(trace, output)
    grad_outputs = [v.requires_grad and not v.freed and v.leaf is None for v in outputs]
    grads: list[tuple[Any, Any]] = []
    for tensor, before, read_first in trace.grads.values():
        after = tensor._grad
        owner: Any = argument_ids.get(id(tensor), tensor)
        external = (
            owner is not tensor
            or tensor._storage in trace.written
            or tensor._storage.value.trace is not trace
        )
        if after is before or not external:
            continue
        if not isinstance(after, Tensor):
            grads.append((owner, None))
        elif not read_first and not keep_grads and tensor._storage in trace.written:
            grads.append((owner, Consumed(trace.name)))
        elif after._storage.value.trace is trace and after._storage not in trace.written:
            grads.append((owner, output(after)))
            grad_outputs += [False] * (len(outputs) - len(grad_outputs))
        else:
            grads.append((owner, after))
    updates: list[tuple[Any, Any]] = []
    for storage, old in trace.written.items():
        if storage.value is not old:
            trace.capture(old)
            updates.append((old, storage.value))
    for t in {id(t): t for t in arguments}.values():
        place = next(p for p in trace.places.values() if p.kind == "arg" and p.index == argument_ids[id(t)])
        if t._storage.value is not place.value:
            updates.append((place.value, t._storage.value))
    for _, new in updates:
        if new.trace is not trace:
            trace.capture(new)
    inputs: list[Any] = list(trace.places)
    names: dict[Any, str] = {v: trace.name_of(p, i) for i, (v, p) in enumerate(trace.places.items())}
    graph = freeze(trace.name, trace.nodes, inputs, outputs, updates, names)
    used = {v for n in graph.nodes for v in n.operands} | set(graph.live_outs()) | set(graph.updates)
    keep = [i for i, v in enumerate(graph.inputs) if v in used]
    graph.inputs = [graph.inputs[i] for i in keep]
    for i, v in enumerate(graph.inputs):
        v.index = i
    places = [trace.places[inputs[i]] for i in keep]
    guards = [(argument_ids.get(id(t), t), none) for t, none in trace.guards]
    at = [p.storage for p in places]
    followed: list[tuple[Any, int, Any]] = [
        ((a, k), at.index(t._storage), None)
        for a in assigned
        for k, t in enumerate(a.held)
        if a.pinned is None and t._storage in at
    ]
    for tensor, before, read_first in trace.grads.values():
        if read_first and isinstance(before, Tensor):
            owner = argument_ids.get(id(tensor), tensor)
            pinned = None if is_whole(before) else before
            followed += [(owner, i, pinned) for i, p in enumerate(places) if p.storage is before._storage]
    count = trace.attributes.shared()
    for r, t in trace.tensors_read(assigned, count):
        r.followed = t._storage in at and is_whole(t) and count[t._storage] == 1
        if r.followed:
            followed.append(((r, 0), at.index(t._storage), None))
    modules = list(trace.modules.values())
    made = Traced(graph, places, result, grads, guards, assigned, followed, grad_outputs, modules)
    made.reads = trace.reads
    made.device = device_of([v.type for v in (*(p.value for p in places), *outputs)], repr(trace.name))
    made.placed = [v.type.device is not None for v in outputs]
    return made
