"""Named tuples that functions with several results give, as PyTorch's `torch.return_types`. Used by
`tracer/functions/`."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

#: the classes made so far, by function name
RETURN_TYPES: dict[str, type] = {}


def result_class(name: str, fields: str = "values indices") -> Any:
    """A named tuple class that prints as PyTorch's."""

    def show(self: Any) -> str:
        items = ",\n".join(f"{f}={x!r}" for f, x in zip(self._fields, self))
        return f"tracegrad.return_types.{name}(\n{items})"

    base = namedtuple(name, fields.split())
    made = type(name, (base,), {"__slots__": (), "__repr__": show, "__module__": "tracegrad.return_types"})
    RETURN_TYPES[name] = made
    return made
