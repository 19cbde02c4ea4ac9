"""Results that take the place of others: memory of the old `.grad`, or of an old attribute, that nobody else
can see is where a compiled call writes the new one. Used by specialization.py.

Nothing is taken away before the call: old and new tensor share the memory until the old one goes, so a call
that fails before it runs has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import Any

from ..ir.dtypes import float32
from ..ir.types import Type
from ..runtime.buffers import Buffer, empty
from .tensor import Tensor
from .values import TracedValue

#: Results of fewer bytes are not worth looking.
_WORTH = 1 << 16

Allocator = Callable[[], Buffer]


def _references(look: Callable[[], Any]) -> tuple[int, int, int, int]:
    """Of the tensor found, its storage, value and memory."""
    t = look()
    storage = t._storage
    value = storage.value
    b = value.buffer
    return getrefcount(t), getrefcount(storage), getrefcount(value), getrefcount(b)


def _alone() -> tuple[int, int, int, int]:
    """`_references` of a tensor that only one attribute holds; interpreters differ."""
    type = Type(float32, ())
    held = {"grad": Tensor(TracedValue(type, None, 0, None, empty(type)))}
    return _references(lambda: held.get("grad"))


_ALONE = _alone()


def into_old(look: Callable[[], Any], type: Type, allocate: Allocator) -> Allocator:
    """An allocator that gives the memory of the tensor that `look` finds, if it is of that type and nobody
    else has the tensor, a view of it, its memory, or a graph that saved it."""

    def take() -> Buffer:
        t = look()
        # A subclass, and a view, is somebody's; so is what a trace has still to compute.
        if t.__class__ is not Tensor or t._view is not None or t._storage.shared is not None:
            return allocate()
        b = t._storage.value.buffer
        if b is None or b.__class__ is not Buffer or b._block is None or b.type != type:
            return allocate()
        if b._array is not None and b.seen_outside():
            return allocate()
        del t, b
        if _references(look) != _ALONE:
            return allocate()
        return look()._storage.value.buffer

    return take


def allocators(types: list[Type], fresh: list[Allocator], sources: list[tuple[int, Any]]) -> list[Allocator]:
    """Of each output; `sources` are (output, how to find the tensor that it replaces), of each output the
    first one counts."""
    out = list(fresh)
    for i, look in sources:
        if types[i].nbytes >= _WORTH and out[i] is fresh[i]:
            out[i] = into_old(look, types[i], fresh[i])
    return out
