"""Levels: traces inside traces, which the transformations of functions (`tracegrad.func`) record into.

A function under `grad`, `jvp` or `vmap` is recorded into a `Level`. The transformation adds to what was
recorded (gradients, tangents), and what is wanted of it is then *lowered*: emitted into the trace outside,
which may be the pending program of ordinary code, a function that is being compiled, or another level.
Lowering a level with a batch size emits each op by its batch rule. So transformations compose, and what is
outside sees ordinary ops.

A value that Python needs while the function runs (`if x.sum() > 0`) is lowered at once, and asked for
outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..ir.batch import NoBatchRule, batch_node
from ..ir.dtypes import DType
from ..ir.errors import TraceError
from ..ir.graph import Graph, Node
from ..ir.op import REGISTRY, Op
from ..ir.types import Type
from ..runtime.buffers import Buffer
from .advice import advice
from .callers import user_location
from .lazy import part_from_native
from .recording import STATE
from .tensor import Tensor
from .trace import Trace
from .tree import map_tensors
from .values import Storage, TracedValue

_UNRECORDED = REGISTRY["unrecorded"]


class Kept:
    """A value of a trace that stays computable for as long as this lives."""

    __slots__ = ("_cell", "_value")

    def __init__(self, trace: Trace, value: TracedValue) -> None:
        self._value = value
        self._cell: Tensor | None = None
        if value.buffer is not None:
            part_from_native(value)
        else:
            self._cell = Tensor(trace.emit(REGISTRY["alias"], (value,), {}))

    @property
    def value(self) -> TracedValue:
        return self._value if self._cell is None else self._cell._storage.value


class Level(Trace):
    """One transformation of one call of a function. A context manager: inside, operations are recorded here.

    Attributes:
        name: what users call it, for errors.
        parent: where it is lowered to: the trace that was current when it began, or another builder.
        size: for `vmap`, the batch size; of values that depend on the batch the first dimension outside.
        randomness: for `vmap`, what random functions do: `error`, `different` or `same`.
    """

    def __init__(
        self,
        name: str,
        size: int | None = None,
        randomness: str = "error",
        grad: bool = False,
        parent: Any = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.parent: Any = STATE.trace if parent is None else parent
        self.before: Trace = STATE.trace
        self.forbids_backward = name
        self.size = size
        self.randomness = randomness
        self.began_enabled = self.grad_enabled = grad or self.parent.grad_enabled
        self.outside: dict[Any, TracedValue] = {}
        self.batched: set[Any] = set()
        self.captured: dict[Any, Any] = {}
        self.inputs: set[TracedValue] = set()
        self.written: dict[Storage, tuple[TracedValue, Storage | None]] = {}
        self.stand_ins: list[tuple[Tensor, Callable[[TracedValue], Any]]] = []
        self.finished = False
        self._held: list[Kept] = []

    # --- recording

    def emit(
        self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> Any:
        for v in operands:
            if v.trace is not self and v not in self.captured:
                self.capture(v)
        types, grads, loc = self._infer(op, operands, attrs, regions)
        made = self._append(op, operands, attrs, types, grads, loc, regions)
        hidden = self.began_enabled and not self.grad_enabled and op.differentiable
        if hidden and op is not _UNRECORDED and any(v.requires_grad for v in operands):
            # For the trace outside, which records: under no_grad() gradients stop, of any level.
            if made.__class__ is tuple:
                return tuple([self._unrecorded(v, loc) for v in made])
            return self._unrecorded(made, loc)
        return made

    def _unrecorded(self, v: TracedValue, loc: Any) -> TracedValue:
        if v.type.dtype.kind != "f":
            return v
        return self._append(_UNRECORDED, (v,), {}, (v.type,), (False,), loc)

    def capture(self, value: TracedValue) -> None:
        """Notes that a value from outside is read, and keeps the cell it lives in."""
        owner = value.trace
        if isinstance(owner, Level) and owner.finished:
            raise owner.leaked()
        self.captured[value] = value.storage() if value.storage is not None else None

    def leaked(self) -> TraceError:
        """The error for a tensor that outlives its level."""
        return TraceError(
            f"a tensor that was made inside a function under {self.name}() is used after the call "
            f"ended; return it from the function (has_aux=True takes more than the differentiated result)"
        )

    def literal(self, value: Any, dtype: DType) -> TracedValue:
        attrs = {"value": dtype.number(value), "dtype": dtype}
        loc = self.loc or user_location()
        return self._append(REGISTRY["constant"], (), attrs, (Type(dtype, ()),), (False,), loc)

    # --- inputs

    def input(self, type: Type, requires_grad: bool) -> TracedValue:
        """A value of this level whose value outside is given later."""
        made = TracedValue(type, None, 0, self, None, requires_grad)
        self.inputs.add(made)
        return made

    def bind(self, made: TracedValue, value: TracedValue) -> None:
        """Says what an input is outside, and keeps that for as long as this level is there."""
        self._held.append(Kept(self.parent, value))
        self.outside[made] = self._held[-1].value

    def seen_outside(self, t: Tensor) -> TracedValue:
        """The value of a tensor in the trace outside."""
        STATE.trace, old = self.parent, STATE.trace
        try:
            return t._value()
        finally:
            STATE.trace = old

    def stand_in(self, t: Tensor, requires_grad: bool | None = None) -> Tensor:
        """A tensor of this level in the place of `t`; what the function writes into it is written into
        `t`."""
        value = self.seen_outside(t)
        made = self.input(value.type, value.requires_grad if requires_grad is None else requires_grad)
        self.bind(made, value)
        return self.dressed(made, t, lambda new: t._put(new))

    def example_of(self, t: Tensor, dim: int) -> Tensor:
        """A tensor of this level that stands for one example of `t`, whose dimension `dim` counts them."""
        parent = self.parent
        value: Any = moved(parent, self.seen_outside(t), dim, 0)
        made = self.input(value.type.with_shape(value.type.shape[1:]), value.requires_grad)
        self.bind(made, value)
        self.batched.add(made)

        def write(new: Any) -> None:
            if new.type.rank < value.type.rank:
                new = parent.expand(new, shape=value.type.shape)
            t._put(self.free(moved(parent, new, 0, dim)))

        return self.dressed(made, t, write)

    def dressed(self, made: TracedValue, t: Tensor, write: Callable[[TracedValue], Any]) -> Tensor:
        """An input as a tensor of `t`'s class; `write` takes its new contents outside, if they are
        replaced."""
        fresh = Tensor(made)
        if type(t) is not Tensor:
            fresh.__class__ = type(t)  # a Parameter stays one
            fresh.__dict__.update(t.__dict__)
        self.stand_ins.append((fresh, write))
        return fresh

    # --- lowering

    def lower(self, values: Sequence[Any]) -> list[TracedValue]:
        """Values of this level as values of the trace outside; values from outside are themselves."""
        self._emit_outside(self._needed(values))
        return [self._outside(v) for v in values]

    def _outside(self, v: Any) -> TracedValue:
        if v.trace is not self:
            return v
        return self.outside[v]

    def _needed(self, values: Sequence[Any]) -> list[Node]:
        needed: set[Node] = set()
        stack = list(values)
        while stack:
            v = stack.pop()
            if v.trace is not self or v.node is None or v.node in needed or self._alive(v):
                continue
            needed.add(v.node)
            stack.extend(v.node.operands)
        return [n for n in self.nodes if n in needed] if needed else []

    def _alive(self, v: Any) -> bool:
        """Whether `v` was lowered, and what it became was not dropped when a pending program ended."""
        made = self.outside.get(v)
        return made is not None and (made.buffer is not None or made.trace is not None)

    def _emit_outside(self, nodes: Iterable[Node]) -> None:
        parent, outside, batched = self.parent, self.outside, self.batched
        for node in nodes:
            operands = tuple([self._outside(v) for v in node.operands])
            with parent.at(node.loc, node.phase):
                if self.size is not None and any(v in batched for v in node.operands):
                    flags = [v in batched for v in node.operands]
                    try:
                        made, out_flags = batch_node(parent, node, operands, flags, self.size)
                    except NoBatchRule as e:
                        raise TraceError(str(e)) from None
                    batched.update(r for r, flag in zip(node.results, out_flags) if flag)
                else:
                    got: Any = parent.emit(node.op, operands, node.attrs, node.regions)
                    made = got if got.__class__ is tuple else (got,)
            outside.update(zip(node.results, made))  # type: ignore[arg-type]

    def taking(self, tree: Any) -> Callable[[], Any]:
        """For what a function returned: called after `with`, gives the same containers with tensors
        outside."""
        values: dict[int, tuple[Tensor, TracedValue]] = {}

        def note(t: Tensor) -> Tensor:
            if self.owns(t):
                values[id(t)] = (t, t._value())
            return t

        map_tensors(tree, note)

        def take() -> Any:
            lowered = self.lower([v for _, v in values.values()])
            made = {key: self.tensor(v) for key, v in zip(values, lowered)}
            return map_tensors(tree, lambda t: made.get(id(t), t))

        return take

    def owns(self, t: Tensor) -> bool:
        """Whether a tensor was made here, as opposed to outside (and at most written here)."""
        return t._storage.value.trace is self and t._storage not in self.written

    def tensor(self, value: TracedValue) -> Tensor:
        """A value outside as a tensor with a storage of its own."""
        return Tensor(self.free(value))

    def free(self, value: TracedValue) -> TracedValue:
        """A value outside that no storage holds."""
        if value.storage is None and value.trace is self.parent:
            return value
        return self.parent.emit(REGISTRY["alias"], (value,), {})

    def materialize(self, value: TracedValue) -> Buffer:
        if value.buffer is not None:
            return value.buffer
        if self.finished and value.trace is self:
            raise self.leaked()
        (made,) = self.lower([value])
        if value in self.batched:
            raise self._differs(value)
        kept = Kept(self.parent, made)  # a program that ends keeps what tensors hold
        if value.trace is self:
            self.outside[value] = kept.value
        return self.parent.materialize(kept.value)

    def _differs(self, value: TracedValue) -> TraceError:
        loc = user_location()
        was = f", made by {value.node.op.name} at {value.node.loc}" if value.node is not None else ""
        head = (
            f"{loc}: the value of a tensor under {self.name}() ({value.type} for each of {self.size} examples"
            f"{was}) is needed, but it differs from example to example"
        )
        written = advice(loc) if loc is not None else ""
        if written:
            return TraceError(f"{head}.\n{written}")
        return TraceError(
            f"{head} (a branch on it, .item(), print, numpy()); write a branch as tracegrad.where or "
            f"tracegrad.cond, or return the tensor and read it outside"
        )

    # --- the call

    def __enter__(self) -> Level:
        STATE.trace = self
        return self

    def __exit__(self, kind: Any, *exc: Any) -> None:
        STATE.trace = self.before
        new = {storage: storage.value for storage in self.written}
        for storage, (old, _) in self.written.items():
            storage.hold(old)
            old.storage = storage.ref
            storage.version += 1
        if kind is None:
            self._write_outside(new)

    def _write_outside(self, new: dict[Storage, TracedValue]) -> None:
        """Does outside what the function wrote into tensors that are not of this level."""
        for storage, made in zip(new, self.lower(list(new.values()))):
            if new[storage] in self.batched:
                raise TraceError(
                    f"a function under {self.name}() writes values that differ between examples into a "
                    f"tensor of type {storage.value.type} that is one for all of them; pass the tensor as an "
                    f"argument with an example dimension, or return what is to be written"
                )
            storage.put(self.free(made))
        for t, write in self.stand_ins:
            value = t._storage.value
            if value not in self.inputs:
                write(self.free(self.lower([value])[0]))

    def finish(self) -> None:
        """Called when nothing of this level will be asked for again."""
        self.finished = True

    # --- state

    def wrote(self, storage: Storage, old: TracedValue) -> None:
        if storage in self.written or old.trace is self:
            return
        # A program may end meanwhile, and must know that the contents are still wanted.
        keep = Storage(old) if old.buffer is None else None
        self.written[storage] = (old, keep)

    def read_grad(self, tensor: Any, grad: Any) -> Any:
        return self.parent.read_grad(tensor, grad)

    def write_grad(self, tensor: Any) -> None:
        self.parent.write_grad(tensor)

    def hyperparameter(self, owner: dict[str, Any], key: str) -> Any:
        return self.parent.hyperparameter(owner, key)

    def guard_module(self, module: Any, state: Any) -> None:
        self.parent.guard_module(module, state)

    def note_state(self, owner: Any, state: dict[str, Any]) -> None:
        self.parent.note_state(owner, state)


def moved(trace: Any, v: Any, source: int, to: int) -> Any:
    """A value with dimension `source` at position `to`."""
    if source == to:
        return v
    order = [d for d in range(v.type.rank) if d != source]
    order.insert(to, source)
    return trace.permute(v, dims=tuple(order))
