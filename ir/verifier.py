"""The graph IR's rules, checked. Runs between passes in tests and under `TRACEGRAD_VERIFY=1`, and on files
that people edit; a failure is a bug in whatever made the graph.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .dtypes import DType
from .errors import OpError, VerifyError
from .graph import PHASES, Graph, Node, Value
from .op import REGISTRY
from .text import print_node
from .types import Type


def infer_node(node: Node) -> tuple[Type, ...]:
    """Result types by the op's own inference."""
    return node.op.infer_types(tuple(v.type for v in node.operands), node.attrs, node.regions)


def verify(graph: Graph, after: str = "") -> None:
    """Raises VerifyError unless `graph` is well-formed.

    Checked: definitions come before uses and happen once; every result's type is the one the op infers;
        operand and attribute values are legal; phases exist; outputs and updates are defined, updates keep
        their input's type; and all of that in regions, which may use nothing of the graph around them.

    Args:
        after: the pass that made the graph, named in the error.
    """
    _Verifier(after, graph.name).graph(graph)


class _Verifier:
    def __init__(self, after: str, name: str) -> None:
        self.after = after
        self.name = name
        self.outer: set[Value] = set()
        self.nodes: set[int] = set()
        self.regions: set[int] = set()

    def fail(self, message: str, node: Node | None = None) -> NoReturn:
        made = f" after pass '{self.after}'" if self.after else ""
        where = f"\n  {print_node(node)}" if node is not None else ""
        raise VerifyError(f"graph '{self.name}' is malformed{made}: {message}{where}")

    def graph(self, g: Graph) -> None:
        defined: set[Value] = set()
        for i, v in enumerate(g.inputs):
            if v.node is not None:
                self.fail(f"input {i} is the result of an op", v.node)
            if v in defined:
                self.fail(f"input {i}, {v!r}, is an input twice")
            if v.index != i:
                self.fail(f"input {i}, {v!r}, says it is input {v.index}")
            defined.add(v)
        inputs = set(defined)
        for node in g.nodes:
            self.node(node, defined)
        for i, v in enumerate(g.outputs):
            if v not in defined:
                self.fail(f"output {i}, {v!r}, is not defined in the graph{self._hint(v)}", v.node)
        for state, new in g.updates.items():
            if state not in inputs:
                self.fail(f"{state!r} is updated and is no input", state.node)
            if new not in defined:
                self.fail(
                    f"the update of {state!r}, {new!r}, is not defined in the graph{self._hint(new)}",
                    new.node,
                )
            if new.type != state.type:
                self.fail(f"the update of {state!r} has type {new.type}", new.node)

    def node(self, node: Node, defined: set[Value]) -> None:
        if id(node) in self.nodes:
            self.fail("an op is in the graph twice", node)
        self.nodes.add(id(node))
        if REGISTRY.get(node.op.name) is not node.op:
            self.fail(f"op {node.op.name} is not the registry's", node)
        if not isinstance(node.operands, tuple):
            self.fail(f"operands are a {type(node.operands).__name__}, not a tuple", node)
        for k, v in enumerate(node.operands):
            if v not in defined:
                self.fail(f"operand {k}, {v!r}, is not defined before its use{self._hint(v)}", node)
        if node.phase not in PHASES:
            self.fail(f"phase {node.phase!r} is none of {', '.join(PHASES)}", node)
        for name, value in node.attrs.items():
            if not _is_literal(value):
                self.fail(
                    f"attribute {name} is a {type(value).__name__}; they are int, float, bool, str, None, "
                    "dtypes and tuples of them",
                    node,
                )
        for region in node.regions:
            if id(region) in self.regions:
                continue  # ops may share a region
            self.regions.add(id(region))
            inner = _Verifier(self.after, f"{self.name}/{node.op.name}")
            inner.outer = self.outer | defined
            inner.nodes, inner.regions = self.nodes, self.regions
            inner.graph(region)
        self.types(node)
        for k, r in enumerate(node.results):
            if r.node is not node or r.index != k:
                self.fail(f"result {k}, {r!r}, does not point back to its op", node)
            if r in defined:
                self.fail(f"result {k}, {r!r}, is defined already", node)
            defined.add(r)

    def types(self, node: Node) -> None:
        try:
            types = infer_node(node)
        except OpError as e:
            self.fail(f"{node.op.name} does not take these operands and attributes: {e}", node)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as e:
            self.fail(f"{node.op.name} does not take these operands and attributes: {e}", node)
        got = tuple(r.type for r in node.results)
        if got != types:
            want = ", ".join(map(str, types))
            self.fail(
                f"results have types {', '.join(map(str, got)) or 'none'}, {node.op.name} gives {want}", node
            )

    def _hint(self, v: Value) -> str:
        return (
            "; it belongs to the graph around this region, pass it in as an operand"
            if v in self.outer
            else ""
        )


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    return value is None or type(value) in (int, float, bool, str, DType)
