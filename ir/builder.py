"""`Builder` adds nodes to a graph: `b.mul(x, y)`, `b.sum(x, axes=(0,))`, `b.cond(p, x, regions=(f, g))`.
Gradient rules, decompositions, rewrites, the parser and the tracer all build through this interface, so a
rule does not know which of them it works for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .dtypes import DType, float32
from .errors import OpError
from .graph import Graph, Location, Node, Value
from .op import REGISTRY, Op
from .types import Type


def infer_or_explain(
    op: Op,
    operands: tuple[Value, ...],
    attrs: dict[str, Any],
    loc: Location | None,
    regions: tuple[Graph, ...] = (),
) -> tuple[Type, ...]:
    """Result types, or the op's error completed with op name, operand types and the user's line."""
    types = tuple(v.type for v in operands)
    try:
        return op.infer_types(types, attrs, regions)
    except OpError as e:
        where = f" at {loc}" if loc is not None else ""
        raise type(e)(f"{op.name}({', '.join(map(str, types))}){where}: {e}") from None
    except TypeError as e:  # wrong number of operands, unknown or missing attribute
        where = f" at {loc}" if loc is not None else ""
        raise OpError(
            f"{op.name}({', '.join(map(str, types))}){where}: expected {op.usage}, "
            f"got {len(types)} operands and attributes {attrs} ({e})"
        ) from None


class _NoSuchOp(AttributeError):
    """A name that is no op's. Close ones are sought when somebody reads the message: `hasattr` does not."""

    def __str__(self) -> str:
        import difflib  # takes a while to load

        name = self.args[0]
        near = difflib.get_close_matches(name, REGISTRY, 1)
        return f"no op named {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


class Builder:
    """Appends to `graph.nodes`. Subclasses override `emit` (the tracer records, the interpreter could
    run).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.loc: Location | None = None
        self.phase = "forward"

    def emit(
        self,
        op: Op,
        operands: tuple[Value, ...],
        attrs: dict[str, Any],
        regions: tuple[Graph, ...] = (),
    ) -> Value | tuple[Value, ...]:
        """Adds one node; gives its result, or the tuple of results if it has several."""
        types = infer_or_explain(op, operands, attrs, self.loc, regions)
        node = Node(op, operands, attrs, self.loc, self.phase, regions)
        node.results = tuple(Value(t, node, i) for i, t in enumerate(types))
        self.graph.nodes.append(node)
        return node.results[0] if len(types) == 1 else node.results

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = REGISTRY.get(name)
        if op is None:
            raise _NoSuchOp(name)

        def call(*operands: Value, **attrs: Any) -> Any:
            regions = attrs.pop("regions", None)
            if regions is None:
                return self.emit(op, operands, attrs)
            return self.emit(op, operands, attrs, regions)

        return call

    def const(self, value: float | int | bool, like: Value | DType = float32) -> Value:
        """A scalar constant of `like`'s dtype; broadcasts against anything."""
        dtype = like if isinstance(like, DType) else like.type.dtype
        return self.constant(value=dtype.number(value), dtype=dtype)

    def cast_to(self, x: Value, dtype: DType) -> Value:
        """`cast`, or `x` itself where it has the dtype already."""
        return x if x.type.dtype is dtype else self.cast(x, dtype=dtype)

    def at(self, loc: Location | None, phase: str) -> _Place:
        """Nodes emitted inside carry this location and phase."""
        return _Place(self, loc, phase)


class _Place:
    """What `Builder.at` gives."""

    __slots__ = ("_builder", "_new", "_old")

    def __init__(self, builder: Builder, loc: Location | None, phase: str) -> None:
        self._builder = builder
        self._new = loc, phase
        self._old = self._new

    def __enter__(self) -> None:
        b = self._builder
        self._old = b.loc, b.phase
        b.loc, b.phase = self._new

    def __exit__(self, *exc: object) -> None:
        self._builder.loc, self._builder.phase = self._old
