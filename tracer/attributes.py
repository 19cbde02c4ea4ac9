"""Attributes of Python objects that a function sets while `compile` traces it: `self.h = h` in a `forward`.

The trace notes what the objects it sees hold before; what they hold of its own tensors afterwards is taken
back, and done again by each call. Used by compile_trace.py and specialization.py.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from ..ir.dataclass import dataclass
from ..ir.errors import TracegradError
from ..ir.op import REGISTRY
from .callers import warn
from .outside import RELIED
from .tensor import Tensor, note_change
from .trace import Trace
from .tree import flatten, map_tensors

_MISSING = object()
_NO_STATE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, Tensor)


def is_whole(t: Tensor) -> bool:
    """Whether a tensor sees all of its storage, as it lies there."""
    return all(op.name == "detach" for op, _ in t._view or ())


@dataclass
class Assigned:
    """An attribute that each call sets.

    Attributes:
        table: the `__dict__`, or a module's table of buffers.
        key: its name there.
        held: the tensors it held when traced.
        new: what it is set to, with `Output`s for tensors; `_MISSING` deletes it.
        before: a description of what it held when traced; another one is another program.
        registered: whether it is a module's buffer, on which programs rely.
        pinned: the tensors it held, where another of their type can't take their place.
    """

    table: dict[str, Any]
    key: str
    new: Any
    before: Any
    registered: bool
    held: list[Tensor]
    pinned: list[Tensor] | None = None

    def tensors(self) -> list[Tensor] | None:
        """The tensors it holds now; None if it is no longer what the program was made for."""
        found: list[Tensor] = []
        if _description(self.table.get(self.key, _MISSING), found) != self.before:
            return None
        if self.pinned is not None and any(t is not p for t, p in zip(found, self.pinned)):
            return None
        return found

    def set(self, value: Any) -> None:
        """Sets it."""
        if value is _MISSING:
            self.table.pop(self.key, None)
        else:
            self.table[self.key] = value
        if self.registered or (id(self.table), self.key) in RELIED:
            note_change()


def _description(tree: Any, leaves: list[Tensor]) -> Any:
    """What must be equal for one program to serve: everything but the contents of tensors."""
    if tree is _MISSING:
        return _MISSING
    try:
        shape = flatten(tree, leaves)
    except TracegradError:  # an array, a set: nothing that a tensor takes the place of by chance
        shape = type(tree)
    return shape, tuple([(t._value().type, t.requires_grad) for t in leaves])


class Attributes:
    """What the objects that a trace sees held before it."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        self.tables: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []

    def watch(self, owner: Any) -> None:
        """Notes what an object holds, and the modules in it. Others, and objects seen before, do nothing."""
        table: Any = getattr(owner, "__dict__", None)
        if table.__class__ is not dict or id(owner) in self.seen or isinstance(owner, _NO_STATE):
            return
        if hasattr(owner, "_trace_state") and "_parameters" not in table:
            return  # an optimiser looks after itself
        self.seen[id(owner)] = owner
        self.tables.append((owner, table, dict(table)))
        if "_buffers" in table:
            self.tables.append((owner, table["_buffers"], dict(table["_buffers"])))
        for child in (table.get("_modules") or {}).values():
            self.watch(child)

    def changed(self, trace: Trace) -> Iterator[tuple[Any, dict[str, Any], str, Any, Any]]:
        """(object, table, name, old, new) where something with tensors of the trace was set, or tensors were
        taken away."""
        for owner, table, before in self.tables:
            for key in [*before, *(k for k in table if k not in before)]:
                old, new = before.get(key, _MISSING), table.get(key, _MISSING)
                if new is old:
                    continue
                if _made_by(trace, new) or ((new is None or new is _MISSING) and _any(old)):
                    yield owner, table, key, old, new

    def undo(self, trace: Trace) -> None:
        """Takes tensors of the trace out of the objects again."""
        for _, table, key, old, _ in list(self.changed(trace)):
            if old is _MISSING:
                table.pop(key, None)
            else:
                table[key] = old

    def shared(self) -> dict[Any, int]:
        """By storage, how many attributes, parameters and buffers hold it."""
        count: dict[Any, int] = {}
        for _, _, before in self.tables:
            leaves: list[Tensor] = []
            map_tensors(tuple(before.values()), leaves.append)
            map_tensors(tuple((before.get("_parameters") or {}).values()), leaves.append)
            for t in leaves:
                count[t._storage] = count.get(t._storage, 0) + 1
        return count

    def write_buffers(self, trace: Any) -> None:
        """A buffer of a module that was replaced by a tensor of its type is written in place."""
        for owner, table, key, old, new in list(self.changed(trace)):
            if table is owner.__dict__ or not isinstance(old, Tensor) or not isinstance(new, Tensor):
                continue
            if old.requires_grad or not is_whole(old) or old._value().type != new._value().type:
                continue
            enabled, trace.grad_enabled = trace.grad_enabled, False
            try:
                old._put(trace.emit(REGISTRY["detach"], (new._value(),), {}))
            finally:
                trace.grad_enabled = enabled
            table[key] = old

    def assigned(self, trace: Any, output: Any) -> list[Assigned]:
        """What each call sets; `output` makes an output of the program of a tensor."""
        count = self.shared()
        found = []
        for owner, table, key, old, new in list(self.changed(trace)):
            leaves: list[Tensor] = []
            before = _description(old, leaves)
            free = all(is_whole(t) and count.get(t._storage) == 1 for t in leaves)
            made = _MISSING if new is _MISSING else map_tensors(new, output)
            registered, pinned = table is not owner.__dict__, None if free else leaves
            found.append(Assigned(table, key, made, before, registered, leaves, pinned))
        self._warn_of_numbers(trace)
        return found

    def _warn_of_numbers(self, trace: Any) -> None:
        for owner, table, before in self.tables:
            for key, old in before.items():
                new = table.get(key, _MISSING)
                if new.__class__ in (int, float) and old.__class__ in (int, float) and new != old:
                    warn(
                        f"{type(owner).__name__}.{key} was set to {new!r} while {trace.name!r} was being "
                        f"compiled, which happens once, not at each call; make it a tensor, or set it outside"
                    )


def _any(tree: Any) -> bool:
    leaves: list[Tensor] = []
    map_tensors(tree, leaves.append)
    return bool(leaves)


def _made_by(trace: Any, tree: Any) -> bool:
    leaves: list[Tensor] = []
    map_tensors(tree, leaves.append)
    return any(
        (t._storage.value.trace is trace and t._storage not in trace.written)
        or (t._view is not None and t._cached is not None and t._cached.trace is trace)
        for t in leaves
    )
