"""`ParamGroup`: the dict in `optimizer.param_groups`, which tells compiled functions of what changes.

A hyper-parameter is baked into compiled code at first and becomes a runtime scalar when it is seen to change;
`lr` is one from the start. Whatever else changes makes the compiled function look again.
"""

from __future__ import annotations

from typing import Any

from ..ir.dtypes import float64
from ..tracer.tensor import Tensor, note_change
from ..tracer.trace import Trace
from .arithmetic import Num

_MISSING = object()
#: What stands for fixed hyper-parameters: to look for it, nothing has to be compared.
_FORMULAS: dict[tuple[Any, ...], object] = {}


def _numeric(x: Any) -> bool:
    if isinstance(x, tuple):
        return all(_numeric(y) for y in x)
    return isinstance(x, (int, float)) and not isinstance(x, bool)


class _Entry:
    """An entry of a tuple in a group as a dict of one item, looked up at each read."""

    __slots__ = ("group", "index", "key")

    def __init__(self, group: dict[str, Any], key: str, index: int) -> None:
        self.group = group
        self.key = key
        self.index = index

    def __getitem__(self, name: str) -> Any:
        return self.group[self.key][self.index]


class ParamGroup(dict):
    """Parameters and their hyper-parameters.

    Attributes:
        lifted: names of hyper-parameters that compiled functions read at each call.
    """

    lifted: set[str]

    _formula: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> ParamGroup:
        made = super().__new__(cls)
        made.lifted = {"lr"}
        return made

    def __setitem__(self, key: str, value: Any) -> None:
        self._formula = None
        old = self.get(key, _MISSING)
        super().__setitem__(key, value)
        numbers = _numeric(old) and _numeric(value)
        if old is value or old is _MISSING or (numbers and old == value):
            return
        if numbers and (type(old) is not tuple or len(old) == len(value)):
            seen = key in self.lifted
            self.lifted.add(key)
            if seen and _shape_of(old) == _shape_of(value):
                return
        note_change()

    def __delitem__(self, key: str) -> None:
        self._formula = None
        super().__delitem__(key)
        note_change()

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def pop(self, key: str, *default: Any) -> Any:
        found = self.get(key, _MISSING)
        if found is not _MISSING:
            del self[key]
            return found
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def read(self, trace: Trace, key: str, index: int | None = None) -> Any:
        """A hyper-parameter (an entry of a tuple with `index`) as a Python number, or a Num the program
        reads."""
        value = self[key] if index is None else self[key][index]
        if isinstance(value, Tensor):
            return Num(value._value()).to(float64)
        if key in self.lifted:
            if index is None:
                value = trace.hyperparameter(self, key)
            else:
                entry: Any = _Entry(self, key, index)
                value = trace.hyperparameter(entry, f"{key}{index}")
            if isinstance(value, Tensor):
                return Num(value._value())
        return value

    def formula(self) -> tuple[object, dict[Any, float]] | None:
        """What the update's formula depends on (one object for all that is equal), and the numbers it reads
        as scalars of the program, by name and index. None where a hyper-parameter is a tensor."""
        if self._formula is not None:
            return self._formula
        fixed: list[Any] = []
        read: dict[Any, float] = {}
        for key, value in self.items():
            if isinstance(value, Tensor):
                return None
            if key in self.lifted and _numeric(value):
                fixed.append((key, _shape_of(value)))
                entries = enumerate(value) if isinstance(value, tuple) else ((None, value),)
                read.update(((key, i), v) for i, v in entries)
            elif key not in ("params", "param_names"):
                fixed.append((key, value))
        self._formula = _FORMULAS.setdefault(tuple(fixed), object()), read
        return self._formula

    def trace_state(self, keys: Any) -> tuple[Any, ...]:
        """What a trace of an update relies on."""
        entries = []
        for key in keys:
            value = self.get(key)
            if isinstance(value, Tensor):
                value = value._storage
            elif key in self.lifted:
                value = _shape_of(value) if key != "lr" else None
            entries.append((key, key in self.lifted, value))
        return (*entries, tuple([p._storage for p in self["params"]]))


def _shape_of(value: Any) -> Any:
    """What a formula may branch on: whether a number is 0."""
    return tuple(map(bool, value)) if isinstance(value, tuple) else bool(value)


__all__ = ["ParamGroup"]
