"""Histories of detached tensors: what `t.detach()` has of its own when something that requires grad is
written into it. Memory is shared with `t`, gradients are not. Used by tensor.py only.

A view's chain holds a `DetachPoint` where it passes `detach`, shared with all views of the detached tensor.
After such a write the point keeps the detached tensor's value, with its history; when the memory was
written since by others, its contents are those of the storage.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..ir.errors import TraceError
from ..ir.op import REGISTRY
from .values import Storage, TracedValue

#: Cells of points that have a history; none in nearly all programs.
WRITTEN: weakref.WeakSet[Storage] = weakref.WeakSet()


class DetachPoint(tuple[Any, ...]):
    """The step `(detach, attributes)` of a view's chain."""

    cell: Storage | None = None
    version = -1

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _last(view: Any, with_history: bool) -> int | None:
    for i in range(len(view) - 1, -1, -1):
        step = view[i]
        if isinstance(step, DetachPoint) and (step.cell is not None or not with_history):
            return i
    return None


def _through(trace: Any, value: Any, steps: Any) -> Any:
    for op, attrs in steps:
        value = trace.emit(op, (value,), attrs)
    return value


def _at(trace: Any, storage: Storage, view: Any, i: int) -> TracedValue:
    """The value of the detached tensor whose point is step i."""
    point = view[i]
    if point.cell is None:
        return _through(trace, storage.value, view[: i + 1])
    if point.version == storage.version:
        return point.cell.value
    contents = _through(trace, storage.value, view[: i + 1])
    return trace.emit(REGISTRY["rebind"], (point.cell.value, contents), {})


def read(trace: Any, storage: Storage, view: Any) -> TracedValue | None:
    """The value seen through a chain with a detached tensor that has a history; None if there is none."""
    i = _last(view, True)
    return None if i is None else _through(trace, _at(trace, storage, view, i), view[i + 1 :])


def write(trace: Any, storage: Storage, view: Any, new: Any) -> Any:
    """For a write through a chain: where the detached tensor in it has a history, or gets one, notes that,
    and gives what the storage shall hold; None where there is nothing to note."""
    i = _last(view, False)
    if i is None or (view[i].cell is None and not (new.requires_grad and trace.grad_enabled)):
        return None
    point = view[i]
    before = _at(trace, storage, view, i)
    value = put_back(trace, before, view[i + 1 :], new)
    if not trace.grad_enabled and before.requires_grad:
        trace.grad_enabled = True
        try:
            value = trace.emit(REGISTRY["rebind"], (before, value), {})
        finally:
            trace.grad_enabled = False
    if value.storage is not None:
        value = trace.emit(REGISTRY["alias"], (value,), {})
    point.cell = Storage(value)
    WRITTEN.add(point.cell)
    contents = trace.emit(REGISTRY["detach"], (value,), {})
    point.version = storage.version + 1
    return put_back(trace, storage.value, view[:i], contents)


def put_back(trace: Any, base: Any, steps: Any, new: Any) -> Any:
    """`base` with the part that `steps` lead to replaced."""
    bases = [base]
    for op, attrs in steps[:-1]:
        bases.append(trace.emit(op, (bases[-1],), attrs))
    for (op, attrs), at in zip(reversed(steps), reversed(bases)):
        if op.unview is None:
            raise TraceError(
                f"writing in place through {op.name} is not possible: several elements share memory; "
                f"clone() it first"
            )
        new = op.unview(trace, at, new, **attrs)
    return new
