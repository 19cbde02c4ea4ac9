"""The short way of a call: what `Specialization.call` and its guards do, for functions whose arguments are
tensors, that give tensors and leave no new gradients, as most training steps do. Used by specialization.py.

It looks at everything that `valid` looks at, in the form that takes least time, and gives up (`MISSED`) where
something is not as it was at the last call; then the long way is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from ..ir.dtypes import uint8
from ..ir.types import Type
from ..runtime.buffers import empty
from .compile_trace import Output
from .making import of_storage
from .outside import Read
from .recording import LazyTrace
from .tensor import EPOCH, Tensor
from .values import REPLACED, Storage, TracedValue

if TYPE_CHECKING:
    from .specialization import Specialization

#: Results of up to so many bytes are written into the result before last, if nobody has it any more.
_RECYCLED = 4096

Direct = Callable[[LazyTrace, tuple[Any, ...]], Any]


def _references() -> tuple[int, int, int]:
    """How many references there are to a storage, its value and its memory that nobody but a list of results
    holds, counted as `direct` counts them."""
    v = TracedValue(Type(uint8, ()), buffer=empty(Type(uint8, ())))
    outs: list[Any] = [(Storage(v), v, v.buffer)]
    s, v, b = outs[0]
    return getrefcount(s), getrefcount(v), getrefcount(b)


_LONE, _LONE_VALUE, _LONE_MEMORY = _references()
#: In the place of a result that does not exist. None has many references.
NOTHING: Any = (None, None, None)
#: Given where the long way must be taken.
MISSED: Any = object()


def has_direct(spec: Specialization) -> bool:
    """Whether there is a short way."""
    traced = spec.traced
    if spec.carries_grad or spec.other_grads or traced.assigned or spec.written_args:
        return False
    owners = [t for t, _ in traced.grad_guards] + [o for o, _, _ in traced.followed]
    return not any(isinstance(owner, int) for owner in owners)


def _order(spec: Specialization) -> list[int] | None:
    """If the function gives a plain tuple or list of its outputs, their numbers in it."""
    result = spec.traced.result
    if result.__class__ in (tuple, list) and all(isinstance(o, Output) for o in result):
        return [o.index for o in result]
    return None


def direct(spec: Specialization, types: list[tuple[Type, bool]], fill: Callable[..., Any]) -> Direct:
    """A function that does a call with the tensors in a tuple, whose `types` and `requires_grad` these were.

    Args:
        fill: makes the function's result of its output tensors.
    """
    traced, enabled, idle = spec.traced, spec.grad_enabled, spec._idle
    guards, grads, reads = traced.grad_guards, list(zip(spec.fixed_owners, spec.fixed_values)), traced.reads
    # Variables of the function, tensors among them whose storage is state of the program, and the rest by
    # the general way.
    followed = traced.followed
    held = {id(o[0]): i for o, i, _ in followed if isinstance(o, tuple) and isinstance(o[0], Read)}
    variables = [(cell, r) for cell, r in reads.cells if id(r) not in held]
    tensors = [(cell, r, traced.places[held[id(r)]]) for cell, r in reads.cells if id(r) in held]
    look, follows = bool(reads.others), len(tensors) < len(followed)
    n = len(types)
    slots: list[int | None] = [None] * n  # of the arguments that the program reads
    for i, index in spec.args:
        slots[index] = i
    wanted = [(*t, i) for t, i in zip(types, slots)]
    outputs = spec.executable.output_types
    single, order, result = spec.single and len(outputs) == 1, _order(spec), traced.result
    out_type = outputs[0] if single else None
    recycled = out_type is not None and out_type.nbytes <= _RECYCLED

    def arguments(binding: Any, args: tuple[Any, ...]) -> bool:
        """Puts their addresses into the table; False where one is not like the last call's."""
        table, written, seen, kept = binding.table, spec.written_states, [], []
        for t, (type, flag, i) in zip(args, wanted):
            if t.__class__ is not Tensor or t._view is not None:
                return False
            s = t._storage
            v = s.value
            if (v.type is not type and v.type != type) or v.requires_grad is not flag:
                return False
            b = v.buffer
            if b is None or s in written or s in seen:
                return False
            seen.append(s)
            kept.append(b)
            if i is not None:
                table[i] = b.ptr
        binding.arguments = kept
        return True

    def call(trace: LazyTrace, args: tuple[Any, ...]) -> Any:
        if trace.record or trace.grad_enabled is not enabled or spec.epoch != EPOCH[0]:
            return MISSED
        for t, was_none in guards:
            if (t._grad is None) is not was_none:
                return MISSED
        try:
            for cell, r in variables:
                if cell.cell_contents is not r.value:
                    return MISSED
            for cell, r, p in tensors:
                x = r.value
                if cell.cell_contents is not x or x._storage is not p.storage:
                    return MISSED
        except ValueError:  # deleted
            return MISSED
        if (look and not reads.others_same()) or (follows and not spec._followed_already([])):
            return MISSED
        if len(args) != n:
            return MISSED
        try:
            binding = idle.pop()
        except IndexError:
            binding = spec.new_binding()
        if binding.replaced != REPLACED[0]:
            spec._bind_state(binding)
        if n and not arguments(binding, args):
            idle.append(binding)
            return MISSED
        for cell, read in binding.cells:
            cell.value = read()
        if not single:
            out = several(binding)
        else:
            outs = binding.outs
            s, v, b = made = outs[0]
            if (
                getrefcount(s) == _LONE
                and getrefcount(v) == _LONE_VALUE
                and getrefcount(b) == _LONE_MEMORY
                and s.value is v
                and b._array is None
            ):
                v.storage = s.ref  # nobody sees the result before last any more: this is the next
            else:
                b = binding.allocators[0]()
                v = TracedValue(out_type, None, 0, None, b)  # type: ignore[arg-type]
                s = Storage(v)
                made = (s, v, b) if recycled else NOTHING
            outs[0] = outs[1]
            outs[1] = made
            binding.table[binding.first_output] = b.ptr
            binding.run(binding.address)
            out = of_storage(s)
        idle.append(binding)
        for t, g in grads:
            if t._grad is not g:
                t._grad = g
        return out

    def several(binding: Any) -> Any:
        """Runs; gives the function's result."""
        made, at, table = [], binding.first_output, binding.table
        for allocate, type in zip(binding.allocators, outputs):
            b = allocate()
            table[at] = b.ptr
            at += 1
            made.append(of_storage(Storage(TracedValue(type, None, 0, None, b))))
        binding.run(binding.address)
        if order is None:
            return fill(result, made)
        found = [made[i] for i in order]
        return tuple(found) if result.__class__ is tuple else found

    return call
