"""The gradient of an op that reads one value in two places is the sum of those of both places, whether the op
has a rule of its own or is differentiated through its decomposition. Derived from the samples of the ops."""

from __future__ import annotations

import numpy as np
import pytest
import tracegrad as tg
import tracegrad.ir.ops
from tracegrad.ir.builder import Builder
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op, Sample


def _pairs(s: Sample) -> list[tuple[int, int]]:
    floats = [i for i, t in enumerate(s.types) if t.dtype.kind == "f" and t.numel]
    return [(i, j) for i in floats for j in floats if i < j and s.types[i] == s.types[j]]


CASES = [
    (op, s, k)
    for op in REGISTRY.values()
    for k, s in enumerate(op.samples())
    if s.smooth and op.differentiable and s.make is None and not s.regions_for(s.types) and _pairs(s)
]


def gradients(op: Op, s: Sample, shared: tuple[int, int] | None) -> list[np.ndarray]:
    """Gradients of the inputs; with `shared`, the second of the two places reads the first's input."""
    rng = np.random.default_rng(0)
    i, j = shared or _pairs(s)[0]
    graph = Graph(op.name)
    b = Builder(graph)
    inputs = [graph.add_input(t) for t in s.types]
    arrays = []
    for k, t in enumerate(s.types):
        low, high = s.domain[k] if isinstance(s.domain[0], tuple) else s.domain
        a = rng.uniform(low, high, t.shape) if t.dtype.kind == "f" else rng.integers(0, 2, t.shape)
        arrays.append(np.asarray(a).astype(t.dtype.numpy))
    arrays[j] = arrays[i]
    operands = [inputs[i] if shared and k == j else v for k, v in enumerate(inputs)]
    made = b.emit(op, tuple(operands), s.attrs)
    outs: list[Value] = [
        v for v in (made if isinstance(made, tuple) else (made,)) if v.type.dtype.kind == "f"
    ]
    seeds = {v: b.full(shape=v.type.shape, value=0.5, dtype=v.type.dtype) for v in outs}
    found = backward(b, seeds, [inputs[i], inputs[j]])
    graph.outputs = [found[v] for v in (inputs[i], inputs[j]) if v in found]
    return [np.asarray(a, np.float64) for a in evaluate(graph, arrays)[0]]


@pytest.mark.parametrize(("op", "s", "k"), CASES, ids=[f"{op.name}-{k}" for op, _, k in CASES])
def test_both_places_count_once(op: Op, s: Sample, k: int) -> None:
    apart = gradients(op, s, None)
    together = gradients(op, s, _pairs(s)[0])
    assert len(together) == min(len(apart), 1)
    for got in together:
        np.testing.assert_allclose(got, sum(apart), rtol=1e-4, atol=1e-5)


def test_a_vector_times_itself() -> None:
    x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * 1
    (y @ y).backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 4.0, 6.0]
