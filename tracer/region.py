"""Recording the body of a control-flow op: a trace inside a trace.

What a body reads of the world around it becomes an input of its region. What it writes in place becomes a
value that is carried: the storage is put back as it was, and written once, with the op's result. Used by
tracer/control.py and tracer/control_tree.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.dtypes import DType
from ..ir.errors import TraceError
from ..ir.graph import Graph, Value
from ..ir.op import REGISTRY, Op
from ..ir.types import Type
from ..runtime.buffers import Buffer
from .advice import needs_value
from .callers import user_location
from .freezing import freeze
from .recording import STATE, LazyTrace
from .trace import Trace
from .values import Storage, TracedValue

_DETACH = REGISTRY["detach"]
_CONSTANT = REGISTRY["constant"]


class LostGrad:
    """What `.grad` holds after a loop whose body made and used gradients."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return (
            f"this gradient was made inside the body of {self.name} and existed only there; return it from "
            f"the body to see it"
        )


class RegionTrace(Trace):
    """Records one body.

    Attributes:
        parent: the trace that the op will be recorded in.
        captured: values from outside that the body read, and what stands for them inside.
        written: storages that the body wrote, and what they held before.
        finals: the same storages, and what they held at the end.
    """

    def __init__(self, parent: Trace, name: str) -> None:
        super().__init__()
        self.parent = parent
        self.name = name
        self.grad_enabled = self.outer_grad = parent.grad_enabled
        self.captured: dict[TracedValue, TracedValue] = {}
        self.written: dict[Storage, TracedValue] = {}
        self.finals: dict[Storage, TracedValue] = {}
        self.grads: dict[int, tuple[Any, Any]] = {}
        self.none_read: dict[int, Any] = {}
        self._detached: dict[TracedValue, Any] = {}
        root: Any = parent
        while isinstance(root, RegionTrace):
            root = root.parent
        self.lifts = isinstance(root, LazyTrace)

    # --- recording

    def input(self, type: Type, requires_grad: bool) -> TracedValue:
        """A value that the op binds."""
        return TracedValue(type, None, 0, self, None, requires_grad and type.dtype.kind == "f")

    def own(self, value: Any) -> Any:
        """What stands for a value here."""
        if value.trace is self:
            return value
        inner = self.captured.get(value)
        if inner is None:
            self._check_visible(value)
            self.parent.own(value)
            inner = self.captured[value] = self.input(value.type, value.requires_grad)
            inner.leaf = value.leaf
        return inner

    def _check_visible(self, value: TracedValue) -> None:
        if not isinstance(value.trace, RegionTrace):
            return
        outer: Any = self.parent
        while isinstance(outer, RegionTrace):
            if outer is value.trace:
                return
            outer = outer.parent
        raise TraceError(
            f"a tensor of type {value.type} made inside the body of {value.trace.name} was used outside of "
            f"it; a body hands tensors out by returning them"
        )

    def emit(
        self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> Any:
        inner = tuple([self.own(v) for v in operands])
        if self.outer_grad and not self.grad_enabled and op is not _DETACH:
            # The whole body is differentiated, so what is under no_grad() must say so in the graph.
            inner = tuple([self._cut_off(v) if v.requires_grad else v for v in inner])
        types, grads, loc = self._infer(op, inner, attrs, regions)
        return self._append(op, inner, attrs, types, grads, loc, regions)

    def _cut_off(self, value: Any) -> Any:
        made = self._detached.get(value)
        if made is None:
            made = self._detached[value] = self.emit(_DETACH, (value,), {})
        return made

    def literal(self, value: Any, dtype: DType) -> TracedValue:
        if self.lifts:  # a number that changes from call to call should not make a new program each time
            return self.own(self.parent.literal(value, dtype))
        attrs = {"value": dtype.number(value), "dtype": dtype}
        loc = self.loc or user_location()
        return self._append(_CONSTANT, (), attrs, (Type(dtype, ()),), (False,), loc)

    def materialize(self, value: TracedValue) -> Buffer:
        raise needs_value(value, f"the body of {self.name} is traced")

    # --- Python's side

    def wrote(self, storage: Storage, old: TracedValue) -> None:
        if storage not in self.written and old.trace is not self:
            self.own(old)
            self.written[storage] = old

    def read_grad(self, tensor: Any, grad: Any) -> Any:
        if grad is None and id(tensor) not in self.grads:
            self.none_read[id(tensor)] = tensor
        return self.parent.read_grad(tensor, grad)

    def write_grad(self, tensor: Any) -> None:
        if id(tensor) not in self.grads:
            self.grads[id(tensor)] = (tensor, tensor._grad)
            self.parent.write_grad(tensor)

    def hyperparameter(self, owner: dict[str, Any], key: str) -> Any:
        return self.parent.hyperparameter(owner, key)

    def guard_module(self, module: Any, state: Any) -> None:
        self.parent.guard_module(module, state)

    def note_state(self, owner: Any, state: dict[str, Any]) -> None:
        self.parent.note_state(owner, state)

    # --- the end

    def run(self, fn: Callable[[], Any]) -> Any:
        """What `fn` gives, recorded here; storages and gradients are as they were afterwards."""
        old, STATE.trace = STATE.trace, self
        done = False
        try:
            out = fn()
            self._check_grads()
            for storage in self.written:
                self.finals[storage] = self.own(storage.value)
            done = True
            return out
        finally:
            STATE.trace = old
            for storage, value in self.written.items():
                storage.hold(value)
                storage.version += 1
            for tensor, grad in self.grads.values():
                lost = done and grad is None and tensor._grad is not None
                tensor._grad = LostGrad(self.name) if lost else grad

    def _check_grads(self) -> None:
        for key, (tensor, before) in self.grads.items():
            after = tensor._grad
            if after is None or after is before:
                continue
            if key in self.none_read or before is not None:
                raise TraceError(
                    f"{user_location()}: the body of {self.name} leaves a gradient in .grad of a tensor of "
                    f"type {tensor._value().type}, which the next step would add to; reset it in the body "
                    f"before backward() (optimizer.zero_grad()), or use tracegrad.autograd.grad"
                )

    def graph(
        self, inputs: Sequence[TracedValue], outputs: Sequence[TracedValue], names: Any = None
    ) -> Graph:
        """The region. That ends the trace."""
        given: list[Value] = list(inputs)
        made = freeze(self.name.rpartition(".")[2], self.nodes, given, list(outputs), (), names)
        # This object is a cycle and lives on for a while; the values outside must not, or the same program
        # could not write over them, and would be another one, until the collector happens to have run.
        for names_of in (self.captured, self.written, self.finals, self._detached):
            names_of.clear()
        return made


class Body:
    """One traced region with its explicit inputs and outputs."""

    def __init__(self, trace: RegionTrace, inputs: Sequence[TracedValue]) -> None:
        self.trace = trace
        self.inputs = list(inputs)
        self.outputs: list[TracedValue] = []

    def bound(self, value: TracedValue) -> TracedValue:
        """The region's input for a value from outside, whether this body read it or not."""
        inner = self.trace.captured.get(value)
        return inner if inner is not None else self.trace.input(value.type, False)
