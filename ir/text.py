"""The graph IR as text: one line per op, `parse_graph(print_graph(g))` prints the same text again.

Anyone may print; errors, dumps, golden tests and reproducers do. The grammar is read back by ir/parser.py.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from .dtypes import DType
from .graph import Graph, Location, Node, Value
from .late import late as _late

if TYPE_CHECKING:
    from .parser import parse_graph
else:
    __getattr__, __dir__ = _late(globals(), {".parser": "parse_graph"})

__all__ = ["format_attrs", "format_literal", "parse_graph", "print_graph", "print_node"]

_COMMENT_COLUMN = 72
_WIDTH = 110
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.]")
_NOT_IN_IDENTIFIERS = re.compile(r"\W")


def print_graph(graph: Graph, *, full_paths: bool = False) -> str:
    """The whole graph, ending in a newline.

    Args:
        full_paths: write locations with their directories, not just the file's name.
    """
    return _Printer(full_paths).graph(graph)


def print_node(node: Node) -> str:
    """One op on its own, for messages: values without a name are numbered in the order they are met, and
    operands carry their types."""
    p = _Printer(False)
    operands = ", ".join(f"{p.name(v)}: {v.type}" for v in node.operands)
    results = ", ".join(f"{p.name(v)}: {v.type}" for v in node.results)
    attrs = format_attrs(node)
    text = f"{results} = {node.op.name} {operands}".rstrip() + (f" {attrs}" if attrs else "")
    return text + (f"   # {node.loc}" if node.loc is not None else "")


def format_literal(value: Any) -> str:
    """An attribute value as it is written: Python's literals, dtypes bare, `inf` and `nan` bare."""
    if isinstance(value, DType):
        return value.name
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else "nan" if value != value else str(float(value))
    if isinstance(value, tuple):
        inside = ", ".join(map(format_literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)


def format_attrs(node: Node) -> str:
    """`{axes=(0, 1)}` with the attributes that differ from the op's defaults, or `""`."""
    if not node.attrs:
        return ""
    defaults = node.op.attr_defaults
    parts = []
    for name in (*(n for n in defaults if n in node.attrs), *(n for n in node.attrs if n not in defaults)):
        text = format_literal(node.attrs[name])
        # Compared as text, because 0.0 == -0.0 and 1 == True.
        if name not in defaults or text != format_literal(defaults[name]):
            parts.append(f"{name}={text}")
    return f"{{{', '.join(parts)}}}" if parts else ""


class _Printer:
    def __init__(self, full_paths: bool) -> None:
        self.full_paths = full_paths
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.count = 0

    def name(self, v: Value) -> str:
        """`%x`: the value's own name made unique, or the next number."""
        known = self.names.get(v)
        if known is not None:
            return known
        base = _NOT_IN_NAMES.sub("_", v.name) if v.name else ""
        if not base or base.isdigit():  # bare numbers are the printer's, they parse as "unnamed"
            name = f"%{self.count}"
            self.count += 1
        else:
            unique, k = base, 0
            while unique in self.taken:
                k += 1
                unique = f"{base}_{k}"
            self.taken.add(unique)
            name = f"%{unique}"
        self.names[v] = name
        return name

    def graph(self, g: Graph) -> str:
        name = _NOT_IN_IDENTIFIERS.sub("_", g.name) or "main"
        if name[0].isdigit():
            name = f"_{name}"
        lines = self.block(g, f"graph {name}", "")
        widths = [len(text) for text, comment in lines if comment]
        column = min(max(widths, default=0), _COMMENT_COLUMN)
        return "".join(f"{text:<{column}}   # {c}\n" if c else f"{text}\n" for text, c in lines)

    def block(self, g: Graph, head: str, indent: str) -> list[tuple[str, str]]:
        """Lines and their comments, from `head(%x: f32[]) {` to `}`."""
        inputs = [f"{self.name(v)}: {v.type}" for v in g.inputs]
        first = f"{indent}{head}({', '.join(inputs)}) {{"
        if len(first) <= _WIDTH:
            lines = [(first, "")]
        else:
            lines = [(f"{indent}{head}(", "")]
            lines += [(f"{indent}    {text},", "") for text in inputs]
            lines.append((f"{indent}) {{", ""))
        inner = indent + "  "
        phase = "forward"
        for node in g.nodes:
            if node.phase != phase:
                phase = node.phase
                lines.append((f"{inner}// {phase}", ""))
            lines += self.node(node, inner)
        for v, new in g.updates.items():
            lines.append((f"{inner}update {self.name(v)} = {self.name(new)}", ""))
        lines.append((f"{inner}return {', '.join(map(self.name, g.outputs))}".rstrip(), ""))
        lines.append((f"{indent}}}", ""))
        return lines

    def node(self, node: Node, indent: str) -> list[tuple[str, str]]:
        operands = ", ".join(map(self.name, node.operands))
        results = ", ".join(f"{self.name(v)}: {v.type}" for v in node.results)
        text = f"{indent}{results} = {node.op.name}"
        for part in (operands, format_attrs(node)):
            if part:
                text += f" {part}"
        comment = self.location(node.loc) if node.loc is not None else ""
        if not node.regions:
            return [(text, comment)]
        lines = [(text, comment)]
        for region in node.regions:  # each opens on the line the one before it closes on
            block = self.block(region, "", indent)
            lines[-1] = (f"{lines[-1][0]} {block[0][0].lstrip()}", lines[-1][1])
            lines += block[1:]
            for v in (*region.inputs, *(r for n in region.nodes for r in n.results)):
                self.names.pop(v, None)  # two ops may share a region; in the text each has its own
        return lines

    def location(self, loc: Location) -> str:
        text = f"{loc.file}:{loc.line}" if self.full_paths else str(loc)
        return text.replace("\n", " ").strip()
