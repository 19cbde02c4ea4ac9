"""What a compiled function reads of Python outside of its arguments: variables of closures and modules, and
attributes of objects. A call looks whether they are as they were when it was traced; another tensor of the
same type takes the place of the one before. Used by compile_trace.py and specialization.py.
"""

from __future__ import annotations

import dis
import threading
import types
from typing import Any

from .callers import is_ours
from .recording import STATE
from .tensor import Tensor

_MISSING = object()
_NUMBERS = (bool, int, float, complex, str, bytes)
_CONTENTS = 16  # containers of numbers of up to so many entries are compared by what they hold
_FUNCTIONS = 64

#: Classes that note what is read of their objects' attributes while functions are traced (nn.Module).
TRACKED: list[type] = []
#: (id of a `__dict__`, name) of attributes of modules that programs rely on.
RELIED: set[tuple[int, str]] = set()


class Read:
    """One thing that was read: `table.get(key)`.

    Attributes:
        value: what it was; of equal numbers and of tensors of one type, what it is now.
        copy: of a small container of numbers, what it held.
        followed: another tensor may take the place of the one that is there.
    """

    __slots__ = ("copy", "followed", "key", "owner", "table", "value")

    def __init__(self, owner: str, table: Any, key: str, value: Any) -> None:
        self.owner, self.table, self.key, self.value = owner, table, key, value
        self.copy = _copied(value)
        self.followed = False

    def tensors(self) -> list[Tensor]:
        """The tensor it is, if it is one."""
        return [self.value] if isinstance(self.value, Tensor) else []

    def now(self) -> Any:
        """What it is now."""
        return self.table.get(self.key, _MISSING)

    def accepts(self, now: Any) -> bool:
        """Whether a program serves for this value too."""
        old = self.value
        if now is old:
            return self.copy is None or self.copy == now
        if isinstance(old, Tensor):
            if not self.followed or now.__class__ is not old.__class__:
                return False
            a, b = old._value(), now._value()
            if a.type != b.type or a.requires_grad != b.requires_grad:
                return False
        elif now.__class__ is not old.__class__:
            return False
        elif isinstance(old, _NUMBERS):
            if now != old or repr(now) != repr(old):  # 0.0 and -0.0
                return False
        elif self.copy is None or self.copy != now:
            return False
        self.value = now
        return True

    def __str__(self) -> str:
        now = self.now()
        what = f"{self.owner}.{self.key}" if self.owner else repr(self.key)
        change = ""
        if isinstance(now, _NUMBERS) or isinstance(self.value, _NUMBERS):
            change = f" from {self.value!r:.40} to {now!r:.40}"
        return f"{what} changed{change}"


class Cell:
    """The variable of a closure as a table."""

    __slots__ = ("cell",)

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def get(self, key: str, default: Any = None) -> Any:
        """Its contents."""
        try:
            return self.cell.cell_contents
        except ValueError:
            return default


def _copied(value: Any) -> Any:
    if value.__class__ in (list, dict, set) and len(value) <= _CONTENTS:
        items = [*value, *value.values()] if isinstance(value, dict) else value
        if all(x is None or isinstance(x, _NUMBERS) for x in items):
            return value.copy()
    return None


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The global names that code reads, and the names of attributes."""
    variables: set[str] = set()
    attributes: set[str] = set()
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            variables.add(i.argval)
        elif i.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(i.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _names(inner)
            variables |= more[0]
            attributes |= more[1]
    return variables, attributes


def _is_library(value: Any) -> bool:
    """Whether a class or function is this package's, which nobody replaces."""
    return (value.__module__ or "").split(".")[0] == __name__.split(".")[0]


class Reads:
    """What one trace reads.

    Attributes:
        always: looked at by each call.
        tracked: of objects that say when they change; looked at when one did.
        cells, others: `always` in the form that takes least time: variables of closures with what they must
            hold; and the rest, with how to get at it.
    """

    def __init__(self) -> None:
        self.always: list[Read] = []
        self.tracked: list[Read] = []
        self.cells: list[tuple[Any, Read]] = []
        self.others: list[tuple[Any, Read]] = []
        self._known: set[tuple[int, str]] = set()
        self._objects: list[Any] = []
        self._attributes: set[str] = set()
        self._functions: set[Any] = set()

    # --- while tracing

    def of_function(self, fn: Any) -> None:
        """Notes the variables of a function of the user, and of those that it calls."""
        if isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif not isinstance(fn, types.FunctionType):  # what `compile` wrapped
            fn = getattr(fn, "__dict__", {}).get("fn")
        if not isinstance(fn, types.FunctionType) or is_ours(fn.__code__.co_filename):
            return
        if fn in self._functions or len(self._functions) >= _FUNCTIONS:
            return
        self._functions.add(fn)
        variables, attributes = _names(fn.__code__)
        self._attributes |= attributes
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
            self._variable(Cell(cell), name, id(cell))
        for name in sorted(variables):
            if name in fn.__globals__:
                self._variable(fn.__globals__, name, id(fn.__globals__))

    def _variable(self, table: Any, name: str, identity: int) -> None:
        value = table.get(name, _MISSING)
        fixed = isinstance(value, (types.ModuleType, types.BuiltinFunctionType))
        if fixed or (identity, name) in self._known:
            return
        if isinstance(value, (type, types.FunctionType)) and _is_library(value):
            return
        self._known.add((identity, name))
        self.always.append(Read("", table, name, value))
        self.of_function(value)
        self.of_object(value)

    def of_object(self, owner: Any) -> None:
        """Notes an object whose attributes the function may read."""
        if isinstance(owner, types.MethodType):
            owner = owner.__self__
        table = getattr(owner, "__dict__", None)
        if table.__class__ is not dict or isinstance(owner, (type, Tensor, types.FunctionType, *TRACKED)):
            return
        if not any(o is owner for o in self._objects) and not hasattr(owner, "_trace_state"):
            self._objects.append(owner)

    def of_attribute(self, owner: Any, table: dict[str, Any], key: str, value: Any) -> None:
        """Notes an attribute that was read, of an object of a tracked class."""
        if (id(table), key) in self._known:
            return
        self._known.add((id(table), key))
        self.tracked.append(Read(type(owner).__name__, table, key, value))

    def prepare(self) -> None:
        """Called before the function runs, when all is known that it begins with."""
        done = 0
        while done < len(self._objects):
            owner = self._objects[done]
            done += 1
            for name in sorted(self._attributes):  # methods that it calls may read more
                self.of_function(getattr(type(owner), name, None))
        for owner in self._objects:
            for name in sorted(self._attributes & set(owner.__dict__)):
                if not isinstance(owner.__dict__[name], (types.FunctionType, types.MethodType)):
                    read = Read(type(owner).__name__, owner.__dict__, name, owner.__dict__[name])
                    self._known.add((id(owner.__dict__), name))
                    self.always.append(read)

    def finish(self, assigned: set[tuple[int, str]]) -> list[Read]:
        """Called after the trace: drops what the function itself changed. Gives all that is left."""

        def kept(r: Read) -> bool:
            if (id(r.table), r.key) in assigned:
                return False
            now = r.now()
            return now is r.value and (r.copy is None or r.copy == now)

        self.always = [r for r in self.always if kept(r)]
        self.tracked = [r for r in self.tracked if kept(r)]
        RELIED.update((id(r.table), r.key) for r in self.tracked)
        for r in self.always:
            if isinstance(r.table, Cell) and r.copy is None:
                self.cells.append((r.table.cell, r))
            else:
                self.others.append((r.table.get, r))
        self._objects.clear()
        return [*self.always, *self.tracked]

    # --- at each call

    def same(self) -> bool:
        """Whether nothing was touched that each call looks at."""
        try:
            for cell, r in self.cells:
                if cell.cell_contents is not r.value:
                    return False
        except ValueError:  # deleted
            return False
        return self.others_same()

    def others_same(self) -> bool:
        """The same of all but variables of closures."""
        for get, r in self.others:  # noqa: SIM110 - a generator takes longer
            if get(r.key, _MISSING) is not r.value or r.copy is not None:
                return False
        return True

    def changed(self, reads: list[Read]) -> Read | None:
        """The first of these for which the program does not serve any more."""
        return next((r for r in reads if not r.accepts(r.now())), None)


_PATCHING = threading.Lock()
_ACTIVE = [0]


class noting:
    """While one is entered, objects of tracked classes note what is read of them."""

    def __enter__(self) -> None:
        with _PATCHING:
            _ACTIVE[0] += 1
            if _ACTIVE[0] == 1:
                for cls in TRACKED:
                    cls.__getattribute__ = _noted  # type: ignore[method-assign]

    def __exit__(self, *exc: Any) -> None:
        with _PATCHING:
            _ACTIVE[0] -= 1
            if not _ACTIVE[0]:
                for cls in TRACKED:
                    del cls.__getattribute__


def _noted(self: Any, name: str) -> Any:
    trace = STATE.trace
    try:
        value = object.__getattribute__(self, name)
    except AttributeError:
        if trace is not STATE.lazy and "_parameters" in object.__getattribute__(self, "__dict__"):
            trace.guard_module(self, self._trace_state())  # a parameter, a buffer or a module in it
        raise
    if name[:2] != "__" and trace is not STATE.lazy and not (name[0] == "_" and isinstance(value, dict)):
        table = object.__getattribute__(self, "__dict__")
        if name in table and name != "training":
            reads = _of(trace)
            if reads is not None:
                reads.of_attribute(self, table, name, value)
    return value


def _of(trace: Any) -> Reads | None:
    while trace is not None:
        reads = getattr(trace, "reads", None)
        if reads is not None:
            return reads
        trace = getattr(trace, "parent", None)
    return None
