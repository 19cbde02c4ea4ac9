"""Batching, derived from the op registry: an op on a batch is the op on each example, whichever operands are
batched, and so is its gradient."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from test_ops import CASES, IDS, SMOOTH, SMOOTH_IDS, as_dtype, draw, floats, program
from tracegrad.ir import dtypes
from tracegrad.ir.batch import NoBatchRule, vmap
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import OpError
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import Op, Sample
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

SIZE = 3


def patterns(n: int) -> list[tuple[bool, ...]]:
    """Which operands are batched: every choice of up to three, else each alone, all, and all but one."""
    if n <= 3:
        return [p for p in product((False, True), repeat=n) if any(p)]
    alone = [tuple(i == k for i in range(n)) for k in range(n)]
    return [*alone, (True,) * n, *(tuple(not flag for flag in p) for p in alone)]


def examples(
    s: Sample, types: tuple[Type, ...], flags: tuple[bool, ...]
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Operands of the batched op, and those of each example."""
    drawn = [draw(s, types, seed) for seed in range(SIZE)]
    rows = [[a[k] if flag else drawn[0][k] for k, flag in enumerate(flags)] for a in drawn]
    together = [np.stack([row[k] for row in rows]) if flag else drawn[0][k] for k, flag in enumerate(flags)]
    return together, rows


@pytest.mark.parametrize(("op", "s", "i"), CASES, ids=IDS)
def test_a_batch_is_its_examples(op: Op, s: Sample, i: int) -> None:
    # The bits of a type are what `bitcast` is about, so it keeps its samples' types.
    types = s.types if op.name == "bitcast" else as_dtype(s.types, dtypes.float64)
    if not types:
        return
    graph, _, _ = program(op, types, s.attrs, s)
    for flags in patterns(len(types)):
        batched, out_flags = vmap(graph, flags, SIZE)
        verify(batched)
        together, rows = examples(s, types, flags)
        made, _ = evaluate(batched, together)
        each = [evaluate(graph, row)[0] for row in rows]
        for k, (v, flag) in enumerate(zip(graph.outputs, out_flags)):
            assert made[k].dtype == v.type.dtype.numpy
            want = np.stack([e[k] for e in each]) if flag else each[0][k]
            assert made[k].shape == want.shape
            np.testing.assert_allclose(
                np.asarray(made[k], np.float64), np.asarray(want, np.float64), rtol=1e-9, atol=1e-10,
                err_msg=f"{op.name}{s.attrs} batched {flags}",
            )  # fmt: skip


@pytest.mark.parametrize(("op", "s", "i"), SMOOTH, ids=SMOOTH_IDS)
def test_the_gradient_of_a_batch_is_its_examples(op: Op, s: Sample, i: int) -> None:
    types = as_dtype(s.types, dtypes.float64)
    flags = (True,) * len(types)
    plain, b, inputs = program(op, types, s.attrs, s)
    outs = floats(plain.outputs)
    if not outs:
        return
    batched, out_flags = vmap(plain, flags, SIZE)
    if not all(out_flags):  # of an empty sum, say, which depends on nothing
        return
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal((SIZE, *v.type.shape)) for v in outs]
    found = backward(b, {v: plain.add_input(v.type) for v in outs}, floats(inputs))
    plain.outputs = [found[v] for v in floats(inputs) if v in found]

    wide = [v for v in batched.outputs if v.type.dtype.kind == "f"]
    seeds = {v: batched.add_input(v.type) for v in wide}
    wrt = floats(batched.inputs[: len(types)])
    back = backward(Builder(batched), seeds, wrt)
    # A gradient that is zero may be there for one and missing for the other.
    batched.outputs = [back[v] for v, u in zip(wrt, floats(inputs)) if v in back and u in found]
    plain.outputs = [found[u] for v, u in zip(wrt, floats(inputs)) if v in back and u in found]
    together, rows = examples(s, types, flags)
    made, _ = evaluate(batched, [*together, *weights])
    each = [evaluate(plain, [*row, *(w[k] for w in weights)])[0] for k, row in enumerate(rows)]
    for k, a in enumerate(made):
        want = np.stack([e[k] for e in each])
        np.testing.assert_allclose(a, want, rtol=1e-9, atol=1e-9, err_msg=f"{op.name}{s.attrs}")


def test_what_does_not_depend_on_the_batch_is_computed_once() -> None:
    graph = Graph("f")
    b = Builder(graph)
    x, w = (graph.add_input(Type(dtypes.float32, (4,))) for _ in range(2))
    graph.outputs = [b.mul(x, b.exp(w)), b.sin(w)]
    batched, flags = vmap(graph, [True, False], 5)
    assert flags == [True, False]
    assert [f"{n.op.name} {n.result.type}" for n in batched.nodes] == [
        "exp f32[4]", "mul f32[5,4]", "sin f32[4]",
    ]  # fmt: skip
    forced, flags = vmap(graph, [True, False], 5, [True, True])
    assert flags == [True, True] and str(forced.outputs[1].type) == "f32[5,4]"


def test_batches_of_batches() -> None:
    graph = Graph("f")
    b = Builder(graph)
    x, i = graph.add_input(Type(dtypes.float64, (4, 2))), graph.add_input(Type(dtypes.int64, (3,)))
    graph.outputs = [b.take(x, i, dim=0)]
    inner, _ = vmap(graph, [True, False], 2)
    outer, _ = vmap(inner, [False, True], 5)
    rng = np.random.default_rng(0)
    at, places = rng.standard_normal((2, 4, 2)), rng.integers(0, 4, (5, 3))
    (made,), _ = evaluate(outer, [at, places])
    want = np.stack([np.stack([x[p] for x in at]) for p in places])
    np.testing.assert_array_equal(made, want)


def test_an_op_without_a_rule_names_itself() -> None:
    op = Op("strange", lambda x: x, kernel="source", numpy=lambda x: x)
    graph = Graph("f")
    x = graph.add_input(Type(dtypes.float32, (4,)))
    out = Builder(graph).emit(op, (x,), {})
    graph.outputs = [out]
    with pytest.raises(NoBatchRule, match=r"strange\(f32\[4\]\) at None can't run on a batch .*`batch` rule"):
        vmap(graph, [True], 2)


def test_updates_of_state_by_a_batch_are_refused() -> None:
    graph = Graph("f")
    b = Builder(graph)
    x, s = graph.add_input(Type(dtypes.float32, (2,))), graph.add_input(Type(dtypes.float32, (2,)), "s")
    graph.updates = {s: b.add(s, x)}
    with pytest.raises(OpError, match=r"the input s of type f32\[2\] is updated with a batch"):
        vmap(graph, [True, False], 3)
    batched, _ = vmap(graph, [False, True], 3)
    assert [str(v.type) for v in batched.updates.values()] == ["f32[3,2]"]
