"""The reference interpreter: runs a graph node by node in NumPy, straight from the op records. It is
what every backend is tested against, and what runs programs seen for the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import dtypes
from .builder import Builder
from .dtypes import DType
from .errors import OpError, TracegradError, VerifyError
from .graph import Graph, Node, Value
from .op import Op
from .scalar import NUMPY_SCALAR, apply_scalar
from .types import Type

Arrays = list[np.ndarray]


def evaluate(graph: Graph, arrays: Sequence[Any], *, dtype: DType | None = None) -> tuple[Arrays, Arrays]:
    """Runs `graph` on `arrays`, one per input, of its exact dtype and shape.

    Args:
        dtype: with `float64`, every f32 tensor is held and computed in f64 (inputs are converted,
        constants too), so
            that a result in f32 can be judged; None computes each op in its own types.

    Returns:
        (outputs, new values of the updated inputs in the order of `graph.updates`).

    Raises:
        OpError: arrays that don't fit the inputs, or an index out of range in the data.
    """
    if dtype is not None and dtype is not dtypes.float64:
        raise TracegradError(f"evaluate computes in each op's own types or in float64, not in {dtype}")
    wide = dtype is not None
    if len(arrays) != len(graph.inputs):
        raise OpError(f"graph {graph.name} takes {len(graph.inputs)} inputs, got {len(arrays)}")
    env: dict[Value, np.ndarray] = {}
    for value, array in zip(graph.inputs, arrays):
        env[value] = _input(value, array, wide)
    last = _last_uses(graph)
    with np.errstate(all="ignore"):
        for i, node in enumerate(graph.nodes):
            made = run_node(node, [env[v] for v in node.operands], wide=wide)
            env.update(zip(node.results, made))
            for v in last.get(i, ()):
                env.pop(v, None)
    return [env[v] for v in graph.outputs], [env[v] for v in graph.updates.values()]


def _input(value: Value, array: Any, wide: bool) -> np.ndarray:
    array = np.asarray(array)
    t = value.type
    if array.shape != t.shape or not (
        array.dtype == t.dtype.numpy or array.dtype == _held(t.dtype, wide).numpy
    ):
        raise OpError(
            f"input {value.index} ({value.name or 'unnamed'}) is {t}, got {array.dtype}{list(array.shape)}"
        )
    return array.astype(_held(t.dtype, wide).numpy, copy=False)


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """For each node position the values nothing reads after it, so that memory is given back."""
    last: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        for v in (*node.operands, *node.results):
            last[v] = i
    for v in graph.live_outs():
        last.pop(v, None)
    out: dict[int, list[Value]] = {}
    for v, i in last.items():
        out.setdefault(i, []).append(v)
    return out


def _held(d: DType, wide: bool) -> DType:
    return dtypes.float64 if wide and d is dtypes.float32 else d


def run_node(node: Node, arrays: Sequence[np.ndarray], *, wide: bool = False) -> Arrays:
    """The results of one node on its operands' values, each of exactly the node's result type (with
    `wide`, f64 for f32). May return views of `arrays`."""
    op, attrs = node.op, node.attrs
    if wide and any(a is dtypes.float32 for a in attrs.values()):
        attrs = {k: dtypes.float64 if a is dtypes.float32 else a for k, a in attrs.items()}
    if op.decompose is not None:
        return _run_decomposed(node, arrays, wide)
    types = [Type(_held(r.type.dtype, wide), r.type.shape) if wide else r.type for r in node.results]
    try:
        if op.scalar is not None:
            made = (apply_scalar(NUMPY_SCALAR, op, types[0], list(arrays), attrs),)
        elif node.regions:
            made = _call(op, arrays, {**attrs, "regions": node.regions, "run": RegionRunner(wide)})
        else:
            made = _call(op, arrays, attrs)
    except TracegradError as e:
        where = f" at {node.loc}" if node.loc is not None else ""
        raise type(e)(f"{op.name}({', '.join(str(v.type) for v in node.operands)}){where}: {e}") from None
    return [_exactly(op, np.asarray(m), t) for m, t in zip(made, types)]


def _call(op: Op, arrays: Sequence[np.ndarray], attrs: dict[str, Any]) -> tuple[Any, ...]:
    if op.numpy is None:
        raise OpError("has no NumPy meaning, so the interpreter can't run it")
    made = op.numpy(*arrays, **attrs)
    return made if isinstance(made, tuple) else (made,)


class RegionRunner:
    """What control-flow ops get as `run`: `run(region, arrays)` gives the region's outputs."""

    def __init__(self, wide: bool) -> None:
        self.wide = wide

    def __call__(self, region: Graph, arrays: Sequence[np.ndarray]) -> Arrays:
        return evaluate(region, arrays, dtype=dtypes.float64 if self.wide else None)[0]

    def stacked(self, rows: Sequence[np.ndarray], t: Type) -> np.ndarray:
        """Values of type `t`, one per step, along a new first dimension; there may be none."""
        out = np.empty((len(rows), *t.shape), _held(t.dtype, self.wide).numpy)
        for i, row in enumerate(rows):
            out[i] = row
        return out


def _exactly(op: Op, array: np.ndarray, t: Type) -> np.ndarray:
    if array.dtype != t.dtype.numpy:
        raise VerifyError(f"{op.name} gave {array.dtype} where its type is {t}: a fault in its record")
    if array.shape == t.shape:
        return array
    if op.scalar is None:
        raise VerifyError(
            f"{op.name} gave shape {list(array.shape)} where its type is {t}: a fault in its record"
        )
    return np.broadcast_to(array, t.shape)  # a lambda that ignores an operand


_DECOMPOSED: dict[Any, Graph] = {}


def decomposition(node: Node) -> Graph:
    """The graph an op with `decompose` stands for, with one input per operand; cached by types and
    attributes."""
    # repr, because equal attributes can mean different programs: 0.0 and -0.0, 1 and True
    key = (node.op.name, tuple(v.type for v in node.operands), repr(sorted(node.attrs.items())))
    found = _DECOMPOSED.get(key)
    if found is not None:
        return found
    graph = Graph(node.op.name)
    inputs = [graph.add_input(v.type) for v in node.operands]
    assert node.op.decompose is not None
    outs = node.op.decompose(Builder(graph), *inputs, **node.attrs)
    graph.outputs = list(outs) if isinstance(outs, tuple) else [outs]
    for made, result in zip(graph.outputs, node.results):
        if made.type != result.type:
            raise VerifyError(f"{node.op.name} decomposes to {made.type} where its type is {result.type}")
    if len(_DECOMPOSED) >= 4096:
        _DECOMPOSED.clear()
    _DECOMPOSED[key] = graph
    return graph


def _run_decomposed(node: Node, arrays: Sequence[np.ndarray], wide: bool) -> Arrays:
    return evaluate(decomposition(node), arrays, dtype=dtypes.float64 if wide else None)[0]
