"""What a forward computation keeps for its backward: the cheapest set of values, in bytes, from which
everything the backward reads can be computed with cheap ops. A minimum cut, used by ir/grad_control.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .dtypes import DType, bool_, opmath
from .graph import Graph, Node, Value
from .interpreter import decomposition
from .op import Op
from .scalar import PRIMITIVES, ScalarBuilder

#: Cycles per element up to which an op is computed again sooner than its result is written and read back.
CHEAP = 8.0
_ENDLESS = 1 << 62


class _Cost(ScalarBuilder):
    """Elements are dtypes; running an op's lambda adds up what its primitives cost."""

    def __init__(self) -> None:
        self.total = 0.0

    def prim(self, name: str, *args: Any) -> Any:
        p = PRIMITIVES[name]
        self.total += p.cost
        return bool_ if p.result == "bool" else args[-1]

    def const(self, value: Any, like: Any) -> Any:
        return like

    def cast(self, x: Any, dtype: DType) -> Any:
        return dtype

    def bitcast(self, x: Any, dtype: DType) -> Any:
        return dtype

    def dtype_of(self, x: Any) -> DType:
        return x


_COSTS: dict[Any, float] = {}


def _scalar_cost(op: Op, node: Node) -> float:
    dtypes = tuple([opmath(v.type.dtype) for v in node.operands])
    key = (op, dtypes, repr(sorted(node.attrs.items())))
    known = _COSTS.get(key)
    if known is None:
        s = _Cost()
        assert op.scalar is not None
        op.scalar(s, *dtypes, **node.attrs)
        known = _COSTS[key] = s.total
    return known


def cheap(node: Node) -> bool:
    """Whether computing a node again costs about as little as reading its result from memory."""
    op = node.op
    if op.scalar is not None:
        return _scalar_cost(op, node) <= CHEAP
    if op.decompose is not None:
        inner = decomposition(node).nodes
        return len(inner) <= 4 and all(map(cheap, inner))
    return op.kernel in ("movement", "source") and op.name != "concat"


def cut(
    graph: Graph, wanted: Iterable[Value], free: set[Value], primal: set[Value], invariant: set[Value]
) -> list[Value]:
    """The values of `primal` to keep so that `wanted` can be computed from them and `free` by cheap ops, the
    fewest bytes of them.

    Args:
        free: values that are at hand whatever happens.
        primal: values that can be kept at all; their producers are nodes of `graph` or none.
        invariant: values that are computed once, outside of the loop, at no cost worth a thought.
    """
    flow = _Flow()
    for v in primal:
        flow.edge((v, 0), (v, 1), 0 if v in free else max(v.type.nbytes, 1))
        if v in free:
            continue
        if v.node is None or not (v in invariant or cheap(v.node)):
            flow.edge("source", (v, 0), _ENDLESS)
        else:
            for o in v.node.operands:
                flow.edge((o, 1), (v, 0), _ENDLESS)
    for v in dict.fromkeys(wanted):
        flow.edge((v, 1), "sink", _ENDLESS)
    side = flow.source_side("source", "sink")
    order = [*graph.inputs, *(r for n in graph.nodes for r in n.results)]
    return [v for v in order if v in primal and (v, 0) in side and (v, 1) not in side and v not in free]


class _Flow:
    """Maximum flow by shortest augmenting paths; graphs are small and paths are few."""

    def __init__(self) -> None:
        self.left: dict[Any, dict[Any, int]] = {}

    def edge(self, a: Any, b: Any, capacity: int) -> None:
        row = self.left.setdefault(a, {})
        row[b] = max(row.get(b, 0), capacity)
        self.left.setdefault(b, {}).setdefault(a, 0)

    def _reach(self, source: Any, stop: Callable[[Any], bool]) -> dict[Any, Any]:
        """Nodes with capacity left from the source, each with the one before it."""
        before: dict[Any, Any] = {source: None}
        queue = deque([source])
        while queue:
            a = queue.popleft()
            if stop(a):
                break
            for b, capacity in self.left.get(a, {}).items():
                if capacity > 0 and b not in before:
                    before[b] = a
                    queue.append(b)
        return before

    def source_side(self, source: Any, sink: Any) -> set[Any]:
        """The nodes on the source's side of a minimum cut."""
        while True:
            before = self._reach(source, lambda a: a == sink)
            if sink not in before:
                return set(before)
            path, b = [], sink
            while before[b] is not None:
                path.append((before[b], b))
                b = before[b]
            amount = min(self.left[a][b] for a, b in path)
            if amount >= _ENDLESS:
                raise ValueError("no cut: a wanted value can neither be kept nor computed")
            for a, b in path:
                self.left[a][b] -= amount
                self.left[b][a] += amount
