"""Tensors made with few steps, for what is done once for every operation. What they are is in tensor.py and
values.py; a constructor of a Python class takes twice as long as `object.__new__` and the attributes.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..ir.op import Op
from .recording import STATE, LazyTrace
from .tensor import Tensor, ready
from .trie import see_number
from .values import Pending, Storage, storage_of

_NEW: Any = object.__new__
_REF: Any = weakref.ref
LIMIT = LazyTrace.LIMIT


def of_storage(storage: Storage) -> Tensor:
    """A tensor of all of a storage; takes half as long as `Tensor(value)`."""
    t = _NEW(Tensor)
    t._storage = storage
    t._view = None
    t._grad = None
    return t


def record(trace: Any, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    """A tensor of what one op on values gives, or a tuple of them: `Tensor(trace.emit(op, operands, attrs))`,
    in half the time where the last program of ordinary code did the same here."""
    if trace.__class__ is LazyTrace:
        place = trace.at_node.next
        if place.op is op and place.enabled is trace.grad_enabled and place.slot < LIMIT:
            get = trace.slots.get
            n = len(operands)
            if n == 2:
                a, b = operands
                found: tuple[Any, ...] = (get(a), get(b))
            elif n == 1:
                found = (get(operands[0]),)
            else:
                found = tuple(map(get, operands))
            if (
                place.operands == found
                and place.attrs == attrs
                and len(place.types) == 1
                and not place.regions
            ):
                return _went(trace, place)
    out = trace.emit(op, operands, attrs)
    if out.__class__ is tuple:
        return tuple([of_storage(storage_of(v)) for v in out])
    return of_storage(storage_of(out))


def of_value(value: Any) -> Tensor:
    """A tensor of a pending value that no storage holds: `of_storage(storage_of(value))`."""
    storage = _NEW(Storage)
    storage.value = value
    storage.version = 0
    storage.leaf = None
    storage.shared = None
    storage.native = False
    storage.ref = value.storage = ref = _REF(storage)
    value.trace.handles.append(ref)
    t = _NEW(Tensor)
    t._storage = storage
    t._view = None
    t._grad = None
    return t


def _went(trace: Any, place: Any) -> Tensor:
    """A tensor of the one result at a place that is the next: what is left to do of `emit`, `pending`,
    `storage_of` and `of_storage`, each of which takes as long to call as to run."""
    try:
        value = _NEW(Pending)
        (value.type,) = place.types
        value.index = 0
        value.name = None
        value.trace = trace
        value.buffer = None
        (value.requires_grad,) = place.grads
        value.leaf = None
        value.freed = False
        trace.slots[value] = place.slot
        trace.values.append(value)
        trace.at_node = place
        trace.record.append(place)
    except BaseException:  # an interrupt
        trace.repair()
        raise
    return of_value(value)


def pass_number(trace: Any, at: Any, number: float) -> None:
    """What is left to do of `LazyTrace.number` for a number that the last program had here too."""
    if not at.lifted:
        see_number(at, number)
    try:
        trace.values.append(None)
        trace.literals.append((at.slot, number, at))
        trace.at_node = at
        trace.record.append(at)
    except BaseException:  # an interrupt
        trace.repair()
        raise


def binary(op: Op, a: Any, b: Any) -> Tensor | None:
    """One op without attributes on two tensors of one floating-point dtype, or on one and a Python number.
    None where it is something else, or the trace has more to do: then nothing was recorded."""
    trace: Any = STATE.trace
    if trace.walked_back and (trace.grad_enabled or trace.overlong):
        return None
    if a.__class__ is Tensor:
        x = a._storage.value if a._view is None else a._value()
        dtype = x.type.dtype
        if dtype.kind != "f":
            return None
        if b.__class__ is Tensor:
            y = b._storage.value if b._view is None else b._value()
            return record(trace, op, (x, y), {}) if y.type.dtype is dtype else None
        first, number = False, b
    elif b.__class__ is Tensor:
        x = b._storage.value if b._view is None else b._value()
        dtype = x.type.dtype
        if dtype.kind != "f":
            return None
        first, number = True, a
    else:
        return None
    if number.__class__ is not float and number.__class__ is not int:
        return None
    if trace.__class__ is LazyTrace:
        at = trace.at_node.next
        place = at.next
        if at.key is dtype and place.op is op and place.enabled is trace.grad_enabled and place.slot < LIMIT:
            slot = trace.slots.get(x)
            if place.operands == ((at.slot, slot) if first else (slot, at.slot)) and not place.attrs:
                # The number is not made a value of: nobody sees it.
                pass_number(trace, at, float(number))
                return _went(trace, place)
    number = trace.literal(number, dtype)
    return record(trace, op, (number, x) if first else (x, number), {})


def apply(op: Op, *tensors: Tensor, **attrs: Any) -> Any:
    """Records one op on tensors; gives a tensor, or a tuple of them."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    return record(trace, op, tuple([t._value() for t in tensors]), attrs)
