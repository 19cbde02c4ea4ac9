"""`Specialization`: one traced signature of a compiled function, ready to be called. Used by compile.py.

A call fills a table with addresses and runs native code; what does not change from call to call is looked up
before."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.builder import Builder
from ..ir.errors import TraceError
from ..ir.graph import Graph, Node, Value
from ..ir.op import REGISTRY, Op
from ..runtime.buffers import Buffer, empty
from ..runtime.executable import Context, Executable, Lowered
from ..runtime.workspace import LENT, lend
from .attributes import is_whole
from .callers import user_location
from .compile_trace import Consumed, Output, Place, Traced
from .direct import NOTHING, Direct, direct, has_direct
from .lazy import part_from_native, scalar_buffer
from .recording import STATE
from .replaced import allocators
from .tensor import EPOCH, Tensor
from .tree import map_tensors
from .values import REPLACED, TracedValue

#: Bytes of gradients and attributes that repeated runs keep, though only the last run's are looked at.
_PASSING = 64 << 20


class Specialization:
    """One traced signature of a compiled function, ready to be called.

    Attributes:
        traced: the graph and where its inputs and results come from and go.
        epoch: count of Python-side changes when tracing began.
        grad_enabled: the grad mode it was traced in.
        lowered: its stages.
    """

    def __init__(self, traced: Traced, epoch: int, grad_enabled: bool) -> None:
        self.traced = traced
        self.grad_enabled = grad_enabled
        self.lowered = Lowered(traced.graph)
        self.epoch = epoch
        self.args = [(i, p.index) for i, p in enumerate(traced.places) if p.kind == "arg"]
        self.state_slots = [i for i, p in enumerate(traced.places) if p.kind == "state"]
        self.states: list[Any] = [traced.places[i].storage for i in self.state_slots]
        self.scalars = [(i, p) for i, p in enumerate(traced.places) if p.kind == "scalar"]
        self.constants = [(i, p.value) for i, p in enumerate(traced.places) if p.kind == "constant"]
        self.requires = [(s, s.value.requires_grad) for s in self.states]
        updated = {v.index for v in traced.graph.updates}
        self.written_args = {p.index for i, p in enumerate(traced.places) if p.kind == "arg" and i in updated}
        self.written_states = {p.storage for i, p in enumerate(traced.places) if p.storage and i in updated}
        for p in traced.places:
            storage: Any = p.storage
            if storage in self.written_states:
                p.value = TracedValue(p.value.type)  # the one that was read is nobody's but a saved graph's
                storage.claim()
                p.value = storage.value
        # `.grad`s that every call sets to the same thing: one comparison says that they are so already.
        fixed = [isinstance(t, Tensor) and (g is None or isinstance(g, Consumed)) for t, g in traced.grads]
        self.fixed_owners = [t for (t, _), is_fixed in zip(traced.grads, fixed) if is_fixed]
        self.fixed_values = [g for (_, g), is_fixed in zip(traced.grads, fixed) if is_fixed]
        self.other_grads = [pair for pair, is_fixed in zip(traced.grads, fixed) if not is_fixed]
        self.single = traced.result == Output(0) and isinstance(traced.result, Output)
        self.carries_grad = True in traced.grad_outputs
        self.plain = (
            self.single
            and len(traced.graph.outputs) == 1
            and not (self.carries_grad or self.other_grads or traced.assigned)
        )
        self.why = ""  # the last call that this was not for was another one
        self._idle: list[_Binding] = []
        self._executable: Executable | None = None
        self._direct: Direct | None = None
        self._op: Op | None = None

    @property
    def executable(self) -> Executable:
        if self._executable is None:
            self._executable = Executable(self.lowered)
        return self._executable

    def valid(self, tensors: list[Tensor]) -> bool:
        """Whether everything the trace relied on is still so, for these tensor arguments."""
        for owner, was_none in self.traced.grad_guards:
            t = tensors[owner] if owner.__class__ is int else owner
            if (t._grad is None) != was_none:
                return self._not(f"a gradient that {'was' if was_none else 'was not'} None")
        for a in self.traced.assigned:
            if a.tensors() is None:
                return self._not(f"{a.key!r} holds something of another type or shape")
        reads = self.traced.reads
        if not reads.same() and (read := reads.changed(reads.always)) is not None:
            return self._not(read)
        if self.epoch != EPOCH[0]:
            for module, state in self.traced.module_guards:
                if module._trace_state() != state:
                    return self._not(f"{type(module).__name__} changed (mode, parameters, buffers, hooks)")
            if (read := reads.changed(reads.tracked)) is not None:
                return self._not(read)
            for storage, flag in self.requires:
                if storage.value.requires_grad != flag:
                    return self._not("the requires_grad of a tensor")
            self.epoch = EPOCH[0]
        return not self.traced.followed or self._follow(tensors)

    def _not(self, why: object) -> bool:
        self.why = str(why)
        return False

    def _followed_already(self, tensors: list[Tensor]) -> bool:
        places = self.traced.places
        for owner, i, _ in self.traced.followed:
            g = _held(owner, tensors)
            if g.__class__ is not Tensor or g._storage is not places[i].storage:
                return False
        return True

    def _follow(self, tensors: list[Tensor]) -> bool:
        """Takes what is `.grad` (or an attribute) now for what was it when traced: after `.grad = None` a
        backward leaves another tensor. False where that needs another program."""
        if self._followed_already(tensors):
            return True
        moved: dict[int, Any] = {}
        for owner, i, pinned in self.traced.followed:
            g: Any = _held(owner, tensors)
            if not isinstance(g, Tensor) or (pinned is not None and g is not pinned):
                return False
            value = g._storage.value
            if pinned is None and (not is_whole(g) or value.type != self.traced.places[i].value.type):
                return False
            if moved.setdefault(i, g._storage) is not g._storage:
                return False  # what was one tensor in two places is two
            if value.requires_grad != self.requires[self.state_slots.index(i)][1]:
                return False
        if len(set(moved.values())) < len(moved):
            return False  # what was two is one
        for i, storage in moved.items():
            p, j = self.traced.places[i], self.state_slots.index(i)
            if p.storage in self.written_states:
                self.written_states.discard(p.storage)
                self.written_states.add(storage)
                storage.claim()
            p.storage = self.states[j] = storage
            p.value, self.requires[j] = storage.value, (storage, self.requires[j][1])
        REPLACED[0] += 1  # what is bound is looked up again
        return True

    def stable(self) -> bool:
        """Whether a call leaves the guards as they are, so that calls can be repeated natively."""
        if self.traced.assigned:
            return False
        key = lambda owner: owner if owner.__class__ is int else id(owner)  # noqa: E731
        after = {key(owner): grad is None for owner, grad in self.traced.grads}
        return all(after.get(key(t), was_none) == was_none for t, was_none in self.traced.grad_guards)

    def bind(self, tensors: list[Tensor]) -> _Binding:
        """A call context whose table holds the addresses of all inputs."""
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = self.new_binding()
        if binding.replaced != REPLACED[0]:
            self._bind_state(binding)
        if self.args:
            self._bind_arguments(binding, tensors)
        for cell, read in binding.cells:
            cell.value = read()
        return binding

    def new_binding(self) -> _Binding:
        """A call context that nothing is in yet."""
        return _Binding(self, self.executable.context())

    def _bind_state(self, binding: _Binding) -> None:
        binding.replaced = REPLACED[0]
        for i, storage in zip(self.state_slots, self.states):
            binding.table[i] = contents_of(storage.value).ptr

    def direct(self, args: tuple[Any, ...]) -> Direct | None:
        """The short way of a call with such arguments as these, which this was found for; None where there
        is none."""
        if self._direct is None:
            plain = all([t.__class__ is Tensor and t._view is None for t in args])
            storages = {id(t._storage) for t in args} if plain else ()
            if not plain or len(storages) < len(args) or not has_direct(self):
                return None  # (arguments that are the same tensor have a program of their own)
            self._direct = direct(self, [(t._value().type, t.requires_grad) for t in args], fill)
        return self._direct

    def _bind_arguments(self, binding: _Binding, tensors: list[Tensor]) -> None:
        """Arguments' addresses. Native code takes what it writes to be its own: an argument that is also
        written elsewhere is passed as a copy, and a written view as a copy that `call` writes back.
        """
        binding.arguments = [t._buffer() for t in tensors]
        written = self.written_states | {tensors[k]._storage for k in self.written_args}
        for i, index in self.args:
            t, buffer = tensors[index], binding.arguments[index]
            if index not in self.written_args and t._storage in written:
                buffer = binding.arguments[index] = buffer.copy()
            elif index in self.written_args:
                t._storage.claim()
            binding.context.table[i] = buffer.ptr

    def allocators(self) -> list[Callable[[], Buffer]]:
        """Memory for each output; of gradients and attributes, that of what they replace if it can be."""
        sources: list[tuple[int, Any]] = [
            (grad.index, lambda t=owner: t._grad)
            for owner, grad in self.other_grads
            if owner.__class__ is not int and isinstance(grad, Output)
        ]
        for a in self.traced.assigned:
            if isinstance(a.new, Output):
                sources.append((a.new.index, lambda a=a: a.table.get(a.key)))
        executable = self.executable
        return allocators(executable.output_types, executable.allocators, sources)

    def call(self, tensors: list[Tensor]) -> Any:
        """One run: outputs as the function's result."""
        saved = self._save_for_backward(tensors) if self.carries_grad else None
        binding = self.bind(tensors)
        table, at, run = binding.table, binding.first_output, binding.run
        outputs = []
        for allocate in binding.allocators:
            b = allocate()
            table[at] = b.ptr
            outputs.append(b)
            at += 1
        run(binding.address)
        if self.written_args:
            self._write_back(binding, tensors)
        self._idle.append(binding)
        if self.plain:  # one tensor and nothing else to do, as most training steps
            if [t._grad for t in self.fixed_owners] != self.fixed_values:
                self._set_grads()
            b = outputs[0]
            return Tensor(TracedValue(b.type, None, 0, None, b))
        return self._deliver(outputs, tensors, saved)

    def _set_grads(self) -> None:
        for t, grad in zip(self.fixed_owners, self.fixed_values):
            t._grad = grad

    def _write_back(self, binding: _Binding, tensors: list[Tensor]) -> None:
        for index in self.written_args:
            t = tensors[index]
            if t._view is not None:
                value = TracedValue(binding.arguments[index].type, None, 0, None, binding.arguments[index])
                t._put(STATE.trace.emit(REGISTRY["alias"], (value,), {}))

    def call_repeated(self, tensors: list[Tensor], n: int) -> tuple[list[Buffer], list[int]]:
        """n runs natively; outputs come stacked along a new first dimension, and with each the row that the
        last run wrote. Gradients and attributes that are not in the result have rows for some runs only.

        Native calls are kept to about a tenth of a second each, so that Ctrl-C gets through between them;
        what ran until then has happened.
        """
        binding = self.bind(tensors)
        ctx = binding.context
        executable = self.executable
        types = executable.output_types
        wanted: set[int] = set()
        map_tensors(self.traced.result, lambda o: wanted.add(o.index), Output)
        passing = sum([t.nbytes for i, t in enumerate(types) if i not in wanted])
        most = max(_PASSING // passing, 1) if passing else n
        rows = [n if i in wanted else min(n, most) for i in range(len(types))]
        outputs = [empty(t.with_shape((m, *t.shape))) for m, t in zip(rows, types)]
        done, chunk, k = 0, 16, 0
        while done < n:
            k = min(chunk, n - done, most)
            for i, (b, t, m) in enumerate(zip(outputs, types, rows), executable.n_inputs):
                ctx.table[i] = b.ptr + (done * t.nbytes if m == n else 0)
            start = time.perf_counter()
            executable.repeat(ctx.address, k)
            if time.perf_counter() - start < 0.05:
                chunk *= 4
            done += k
        self._write_back(binding, tensors)
        self._idle.append(binding)
        return outputs, [n - 1 if m == n else k - 1 for m in rows]

    def _deliver(self, outputs: list[Buffer], tensors: list[Tensor], saved: Any) -> Any:
        if saved is not None:
            made = self._attach(outputs, saved)
        else:
            made = [Tensor(TracedValue(b.type, None, 0, None, b)) for b in outputs]
        self._set_grads()
        if self.other_grads:
            for owner, grad in self.other_grads:
                t = tensors[owner] if owner.__class__ is int else owner
                t._grad = made[grad.index] if isinstance(grad, Output) else grad
        for a in self.traced.assigned:
            a.set(fill(a.new, made))
        if self.single:
            return made[0]
        return fill(self.traced.result, made)

    def _save_for_backward(self, tensors: list[Tensor]) -> list[TracedValue]:
        """The inputs as values for the tape; what the call overwrites is copied first."""
        updated = set(self.traced.graph.updates)
        out = []
        for v, p in zip(self.traced.graph.inputs, self.traced.places):
            value = _current(p, tensors)
            if v in updated:
                buffer = (value.buffer or contents_of(value)).copy()
                value, old = TracedValue(value.type, None, 0, None, buffer, value.requires_grad), value
                value.leaf, value.node = old.leaf, old.node
            else:
                part_from_native(value)
            out.append(value)
        return out

    def _attach(self, outputs: list[Buffer], saved: list[TracedValue]) -> list[Tensor]:
        """Outputs whose gradient leads back through the whole compiled function, recomputed when backward
        runs.
        """
        if self._op is None:
            self._op = call_op(self.traced.graph)
        node = Node(self._op, tuple(saved), {}, user_location())
        values = []
        for i, (b, flag) in enumerate(zip(outputs, self.traced.grad_outputs)):
            values.append(TracedValue(b.type, node if flag else None, i, None, b, flag))
        node.results = tuple(values)
        return [Tensor(v) for v in values]


class _Binding:
    """A context with what its table was last filled from."""

    __slots__ = (
        "address",
        "allocators",
        "arena",
        "arguments",
        "cells",
        "context",
        "first_output",
        "keep",
        "outs",
        "replaced",
        "run",
        "table",
    )

    def __init__(self, spec: Specialization, ctx: Context) -> None:
        executable = spec.executable
        self.context = ctx
        self.arena = arena = ctx.arena
        if arena is not None and arena.type.nbytes >= LENT:
            lend(spec)
        self.table = ctx.table
        self.address = ctypes.c_void_p(ctx.address)
        self.run = executable.run_pointer
        self.allocators = spec.allocators()
        self.outs: list[Any] = [NOTHING, NOTHING]  # storages, values and memory of the last two results
        self.first_output = executable.n_inputs
        self.replaced = -1
        self.arguments: list[Buffer] = []
        self.cells = []
        for i, p in spec.scalars:
            cell = ctypes.c_double() if p.value.type.dtype.bits == 64 else ctypes.c_float()
            ctx.table[i] = ctypes.addressof(cell)
            self.cells.append((cell, p.read))
        self.keep = []
        for i, value in spec.constants:
            buffer = value.buffer or contents_of(value)
            self.keep.append(buffer)
            ctx.table[i] = buffer.ptr


def _held(owner: Any, tensors: list[Tensor]) -> Any:
    """What is now where `Traced.followed` says."""
    if owner.__class__ is tuple:
        held = owner[0].tensors()
        return held and held[owner[1]]
    return (tensors[owner] if owner.__class__ is int else owner)._grad


def contents_of(value: TracedValue) -> Buffer:
    if value.buffer is None:
        if value.trace is None:
            raise TraceError("state of a compiled function has lost its contents to an earlier error")
        return STATE.lazy.materialize(value)
    return value.buffer


def _current(p: Place, tensors: list[Tensor]) -> TracedValue:
    if p.kind == "arg":
        return tensors[p.index]._value()
    if p.kind == "state" and p.storage is not None:
        return p.storage.value
    if p.kind == "scalar":
        assert p.read is not None
        return TracedValue(p.value.type, None, 0, None, scalar_buffer(p.read(), p.value.type.dtype))
    return p.value


def current_contents(p: Place, tensors: list[Tensor]) -> np.ndarray:
    """What a program's input holds now."""
    value = _current(p, tensors)
    return (value.buffer or contents_of(value)).array


def fill(result: Any, outputs: list[Tensor]) -> Any:
    """A result with tensors for its `Output`s."""
    return map_tensors(result, lambda o: outputs[o.index], Output)


def call_op(graph: Graph) -> Op:
    """A graph as one op: its meaning is its nodes, so its gradient is theirs."""

    def infer(*types: Any) -> Any:
        return tuple(v.type for v in graph.outputs)

    def inline(b: Builder, *operands: Value) -> Any:
        env = dict(zip(graph.inputs, operands))
        for node in graph.nodes:
            made = b.emit(node.op, tuple(env[v] for v in node.operands), node.attrs, node.regions)
            env.update(zip(node.results, made if isinstance(made, tuple) else (made,)))
        return tuple(env[v] for v in graph.outputs)

    return Op("compiled_call", infer, decompose=inline, grad_name="CompiledFunctionBackward")
