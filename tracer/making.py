"""Tensors made with few steps, for what is done once for every operation. What they are is in tensor.py and
values.py; a constructor of a Python class takes twice as long as `object.__new__` and the attributes.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..ir.op import Op
from .recording import STATE, LazyTrace
from .tensor import Tensor, ready
from .values import Pending, Storage, storage_of

_NEW: Any = object.__new__
_REF: Any = weakref.ref


def of_storage(storage: Storage) -> Tensor:
    """A tensor of all of a storage; takes half as long as `Tensor(value)`."""
    t = _NEW(Tensor)
    t._storage = storage
    t._view = None
    t._cached = None
    t._hold = None
    t._version_seen = 0
    t._grad = None
    t._hooks = None
    t._retains = False
    return t


def record(trace: Any, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    """A tensor of what one op on values gives, or a tuple of them: `Tensor(trace.emit(op, operands, attrs))`,
    in half the time where the last program of ordinary code did the same here."""
    if trace.__class__ is LazyTrace:
        # `emit`, `pending`, `storage_of` and `of_storage` in one: each call takes as long as what it does.
        place = trace.at_node.next
        if place.op is op and place.enabled is trace.grad_enabled and place.slot < trace.LIMIT:
            slots = trace.slots
            get = slots.get
            n = len(operands)
            if n == 2:
                a, b = operands
                found: tuple[Any, ...] = (get(a), get(b))
            elif n == 1:
                found = (get(operands[0]),)
            else:
                found = tuple(map(get, operands))
            types = place.types
            if place.operands == found and place.attrs == attrs and len(types) == 1 and not place.regions:
                trace.at_node = place
                value = _NEW(Pending)
                value.type = types[0]
                value.index = 0
                value.name = None
                value.trace = trace
                value.buffer = None
                value.requires_grad = place.grads[0]
                value.leaf = None
                value.freed = False
                slots[value] = place.slot
                trace.values.append(value)
                trace.record.append(place)
                storage = _NEW(Storage)
                storage.value = value
                storage.version = 0
                storage.leaf = None
                storage.shared = None
                storage.native = False
                storage.ref = value.storage = ref = _REF(storage)
                trace.handles.append(ref)
                t = _NEW(Tensor)
                t._storage = storage
                t._view = None
                t._cached = None
                t._hold = None
                t._version_seen = 0
                t._grad = None
                t._hooks = None
                t._retains = False
                return t
    out = trace.emit(op, operands, attrs)
    if out.__class__ is tuple:
        return tuple([of_storage(storage_of(v)) for v in out])
    return of_storage(storage_of(out))


def apply(op: Op, *tensors: Tensor, **attrs: Any) -> Any:
    """Records one op on tensors; gives a tensor, or a tuple of them."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    return record(trace, op, tuple([t._value() for t in tensors]), attrs)
