"""What a graph computes, as one text: equal texts compile to the same code. The key under which the compile
cache finds a program before any pass has run; `fingerprint` is all there is.

Unlike ir/text.py's, the text is made to be quick to write and is never read. Names and source lines, which
decide nothing, are not in it.
"""

from __future__ import annotations

from typing import Any

from .dtypes import DType
from .graph import Graph, Value
from .op import REGISTRY, Op
from .rewrite import RULES
from .types import Type

_ROOM = __name__.rpartition(".")[0]
_PLAIN = frozenset((int, float, bool, str, bytes, complex, type(None)))
_ours: dict[Op, bool] = {}


class _Unknown(Exception):
    """The graph holds something whose meaning no text can tell."""


def fingerprint(graph: Graph) -> str | None:
    """The text of a graph; None where one would not tell all: ops and rewrite rules that were not defined in
    this package, whose meaning is in code that nobody has looked at, or attributes that are no literals."""
    if any(r.fn.__module__.rpartition(".")[0] != _ROOM for r in RULES.values()):
        return None
    out: list[str] = []
    try:
        _write(graph, out, {}, {})
    except _Unknown:
        return None
    return "\n".join(out)


def _write(graph: Graph, out: list[str], numbers: dict[Value, int], types: dict[Type, str]) -> None:
    def typed(t: Type) -> str:
        text = types.get(t)
        if text is None:
            text = types[t] = repr(t)
        return text

    for v in graph.inputs:
        numbers[v] = len(numbers)
    out.append(f"({','.join([typed(v.type) for v in graph.inputs])}){{")
    for node in graph.nodes:
        op = node.op
        if not _ours.get(op) and not _is_ours(op):
            raise _Unknown
        text = f"{op.name} {','.join([str(numbers[v]) for v in node.operands])}"
        if node.attrs:
            text += f" {_literal(tuple(node.attrs.items()))}"
        text += f" {node.phase}"
        for v in node.results:
            numbers[v] = len(numbers)
            text += f" {typed(v.type)}"
        out.append(text)
        for region in node.regions:
            _write(region, out, numbers, types)
    updates = [f"{numbers[v]}={numbers[new]}" for v, new in graph.updates.items()]
    out.append(f"}} {','.join([str(numbers[v]) for v in graph.outputs])} {','.join(updates)}")


def _literal(value: Any) -> str:
    kind = type(value)
    if kind is tuple:
        return f"({','.join([_literal(x) for x in value])})"
    if kind in _PLAIN:
        return repr(value)
    if kind is DType:
        return value.name
    raise _Unknown


def _is_ours(op: Op) -> bool:
    """Whether an op is the package's own: part of the sources that the cache knows the version of."""
    if REGISTRY.get(op.name) is not op:
        return False
    parts = (op.infer, op.scalar, op.decompose, op.pull)
    modules = [getattr(f, "__module__", "") or "" for f in parts if f is not None]
    ours = _ours[op] = all(m.startswith(f"{_ROOM}.") for m in modules)
    return ours
