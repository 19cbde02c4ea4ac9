"""Forward mode, derived from the op registry: every differentiable op's tangents against differences and
against its gradient, on its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from test_ops import SMOOTH, SMOOTH_IDS, as_dtype, draw, floats, program
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.forward import jvp
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import Op, Sample
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify


def pairing(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return sum(float(np.sum(x.astype(np.float64) * y)) for x, y in zip(a, b))


def tangents_of(op: Op, s: Sample, wrt: list[bool] | None = None) -> dict[str, Any]:
    """The op in f64 with random tangents of the operands that `wrt` holds for, and weights of its results."""
    types = as_dtype(s.types, dtypes.float64)
    graph, _, inputs = program(op, types, s.attrs, s)
    arrays = draw(s, types)
    rng = np.random.default_rng(2)
    moves = [v.type.dtype.kind == "f" for v in inputs]
    wrt = moves if wrt is None else wrt
    directions = [rng.standard_normal(v.type.shape) for v, moving in zip(inputs, wrt) if moving]
    forward = jvp(graph, wrt)
    verify(forward)
    made, _ = evaluate(forward, [*arrays, *directions])
    n = len(graph.outputs)
    values = [a for v, a in zip(graph.outputs, made[:n]) if v.type.dtype.kind == "f"]
    weights = [rng.standard_normal(a.shape) for a in values]
    return {"types": types, "graph": graph, "arrays": arrays, "wrt": wrt, "directions": directions,
            "tangents": made[n:], "weights": weights, "values": values}  # fmt: skip


@pytest.mark.parametrize(("op", "s", "i"), SMOOTH, ids=SMOOTH_IDS)
def test_tangents_are_transposed_gradients(op: Op, s: Sample, i: int) -> None:
    """<w, J v> == <J' w, v>, for all operands together and for each alone."""
    count = sum(t.dtype.kind == "f" for t in s.types)
    choices: list[Any] = [None]
    if count > 1:
        choices += [
            [k == j for k in range(len(s.types))] for j, t in enumerate(s.types) if t.dtype.kind == "f"
        ]
    for wrt in choices:
        found = tangents_of(op, s, wrt)
        if not found["values"]:
            continue
        for t, v in zip(found["tangents"], found["values"]):
            assert t.shape == v.shape and t.dtype == v.dtype
        graph, b, inputs = program(op, found["types"], s.attrs, s)
        outs = floats(graph.outputs)
        seeds = {v: graph.add_input(v.type) for v in outs}
        moving = [v for v, moves in zip(inputs, found["wrt"]) if moves]
        grads = backward(b, seeds, moving)
        graph.outputs = [grads[v] for v in moving if v in grads]
        back, _ = evaluate(graph, [*found["arrays"], *found["weights"]])
        kept = [d for v, d in zip(moving, found["directions"]) if v in grads]
        left = pairing(found["tangents"], found["weights"])
        assert left == pytest.approx(pairing(back, kept), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("op", "s", "i"), SMOOTH, ids=SMOOTH_IDS)
def test_tangents_are_slopes(op: Op, s: Sample, i: int) -> None:
    if op.name == "cast" and s.attrs["dtype"].bits < 64:
        pytest.skip("a step too small for the type")
    # Weights of classes are constants, as in PyTorch.
    still = {"nll_loss": 2, "cross_entropy": 2}.get(op.name)
    found = tangents_of(op, s, [t.dtype.kind == "f" and k != still for k, t in enumerate(s.types)])
    eps = 1e-6

    def value(sign: float) -> float:
        steps = iter(found["directions"])
        moved = [a + sign * eps * next(steps) if m else a for a, m in zip(found["arrays"], found["wrt"])]
        made, _ = evaluate(found["graph"], moved)
        kept = [a for v, a in zip(found["graph"].outputs, made) if v.type.dtype.kind == "f"]
        return pairing(kept, found["weights"])

    slope = pairing(found["tangents"], found["weights"])
    assert slope == pytest.approx((value(1) - value(-1)) / (2 * eps), rel=2e-5, abs=2e-6)


def test_tangents_of_tangents() -> None:
    """Twice forward gives the second directional derivative."""
    graph = Graph("f")
    b = Builder(graph)
    x = graph.add_input(Type(dtypes.float64, (4,)))
    graph.outputs = [b.sum(b.mul(b.sin(x), b.softmax(x, dim=0)), axes=(0,))]
    twice = jvp(jvp(graph))
    rng = np.random.default_rng(0)
    at, v, w = (rng.standard_normal(4) for _ in range(3))
    zero = np.zeros(4)
    made, _ = evaluate(twice, [at, v, w, zero])
    h = 1e-4
    values = {(i, j): evaluate(graph, [at + i * h * v + j * h * w])[0][0] for i in (1, -1) for j in (1, -1)}
    second = (values[1, 1] - values[1, -1] - values[-1, 1] + values[-1, -1]) / (4 * h * h)
    assert float(made[-1]) == pytest.approx(float(second), rel=1e-5)


def test_constants_do_not_move() -> None:
    graph = Graph("f")
    b = Builder(graph)
    x, i = graph.add_input(Type(dtypes.float32, (3,))), graph.add_input(Type(dtypes.int64, (2,)))
    graph.outputs = [b.detach(x), b.take(x, i), b.argmax(x, dim=0), b.unrecorded(x)]
    out = jvp(graph)
    assert [str(v.type) for v in out.outputs] == [
        "f32[3]", "f32[2]", "i64[]", "f32[3]", "f32[3]", "f32[2]", "f32[3]",
    ]  # fmt: skip
    at = np.array([1, 3, 2], np.float32)
    made, _ = evaluate(out, [at, np.array([2, 0]), np.array([10, 20, 30], np.float32)])
    assert [a.tolist() for a in made[4:]] == [[0, 0, 0], [30, 10], [10, 20, 30]]
