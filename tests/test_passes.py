"""The pass pipeline: each pass on small programs, results kept on random programs (NaN, infinities and both
zeros included), failures, records, regions, and whole training steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import TracegradError, VerifyError
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Node
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op
from tracegrad.ir.passes import (
    PASSES,
    PassOptions,
    PassRecord,
    cse,
    dce,
    decompose,
    fold,
    optimize,
    run_pass,
    simplify,
)
from tracegrad.ir.text import parse_graph, print_graph
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify


def graph(text: str) -> Graph:
    g = parse_graph(text)
    verify(g)
    return g


def same_text(g: Graph, text: str) -> None:
    assert print_graph(g) == print_graph(parse_graph(text))


# --- single passes ------------------------------------------------------------------------------------------


def test_dce_keeps_outputs_updates_and_inputs() -> None:
    g = graph(
        "graph g(%x: f32[2], %unused: f32[2], %s: f32[2]) { %0 = exp %x %1 = sin %x %2 = neg %1 %3 = cos %s "
        "update %s = %3 return %0 }"
    )
    made = dce(g)
    same_text(
        made,
        "graph g(%x: f32[2], %unused: f32[2], %s: f32[2]) { %0 = exp %x %1 = cos %s update %s = %1 "
        "return %0 }",
    )
    assert len(g.nodes) == 4
    assert dce(made) is made


def test_cse_merges_across_phases_and_keeps_the_first() -> None:
    g = graph(
        "graph g(%x: f32[2], %y: f32[2]) { %a = add %x, %y  # m.py:1\n// backward\n %b = add %y, %x "
        "%c = mul %a, %b return %a, %b, %c }"
    )
    made = cse(g)
    same_text(
        made,
        "graph g(%x: f32[2], %y: f32[2]) { %a = add %x, %y  # m.py:1\n// backward\n %c = mul %a, %a "
        "return %a, %a, %c }",
    )
    assert cse(made) is made


def test_cse_tells_zeros_apart() -> None:
    g = graph(
        "graph g() { %0 = constant {value=0.0, dtype=f32} %1 = constant {value=-0.0, dtype=f32} return "
        "%0, %1 }"
    )
    assert cse(g) is g


def test_decompose_leaves_scalar_and_kernel_ops_only() -> None:
    g = graph(
        "graph g(%x: f32[4,3], %w: f32[2,3], %b: f32[2]) { %h = linear %x, %w, %b  # m.py:7\n// backward\n"
        "%p = linear %h, %b return %p }"
    )
    made = decompose(g)
    verify(made)
    assert all(n.op.decompose is None for n in made.nodes)
    assert {(n.phase, str(n.loc)) for n in made.nodes} == {("forward", "m.py:7"), ("backward", "None")}
    assert [n.results[0].name for n in made.nodes][-1] == "p" and "h" in [
        n.results[0].name for n in made.nodes
    ]
    assert decompose(made) is made


def test_simplify_reports_rules() -> None:
    options = PassOptions()
    g = graph("graph g(%x: f32[2]) { %0 = neg %x %1 = neg %0 %2 = neg %1 return %2 }")
    made = simplify(g, options)
    same_text(made, "graph g(%x: f32[2]) { %0 = neg %x return %0 }")
    assert options.fired["neg_neg"] >= 1


def test_fast_rules_only_where_asked() -> None:
    g = graph("graph g(%x: f32[2]) { %c = constant {value=0.0, dtype=f32} %0 = mul %x, %c return %0 }")
    assert simplify(g) is g
    made = simplify(g, PassOptions(fast=True))
    assert [n.op.name for n in made.nodes] == ["constant", "expand"]


def test_fold_computes_small_constants() -> None:
    g = graph(
        "graph g(%x: f32[2]) { %c = constant {value=(1.0, 2.0, 3.0, 4.0), dtype=f32, shape=(2, 2)} "
        "%s = sum %c {axes=(0,)} %e = exp %c %t = amax %e {axes=(0, 1)} %0 = add %x, %s %1 = mul %0, %t "
        "return %1 }"
    )
    made = optimize(g, verify=True)
    assert sorted(n.op.name for n in made.nodes) == ["add", "constant", "constant", "mul"]
    assert made.nodes[0].attrs == {"value": (4.0, 6.0), "dtype": dtypes.float32, "shape": (2,)}
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(evaluate(made, [x])[0][0], evaluate(g, [x])[0][0])


def test_fold_leaves_positions_and_large_constants() -> None:
    n = 100
    values = tuple(float(i) for i in range(n))
    g = graph(
        f"graph g(%x: f32[3,3]) {{ %i = iota {{shape=(3, 3), dim=0, dtype=i64}} "
        f"%j = iota {{shape=(3, 3), dim=1, dtype=i64}} %m = le %j, %i %z = constant {{value=0.0, dtype=f32}} "
        f"%0 = where %m, %x, %z %c = constant {{value={values}, dtype=f32, shape=({n},)}} %e = exp %c "
        f"return %0, %e }}"
    )
    assert fold(g) is g


def test_fold_of_a_position_sum() -> None:
    g = graph(
        "graph g() { %i = iota {shape=(5,), dim=0, dtype=i64} %s = sum %i {axes=(0,)} "
        "%h = constant {value=(0.5, 1.5), dtype=bf16, shape=(2,)} %d = add %h, %h return %s, %d }"
    )
    made = dce(fold(g))
    same_text(
        made,
        "graph g() { %s = constant {value=10, dtype=i64} %d = constant {value=(1.0, 3.0), dtype=bf16, "
        "shape=(2,)} "
        "return %s, %d }",
    )


# --- the driver ---------------------------------------------------------------------------------------------


def test_record_says_what_made_each_graph() -> None:
    g = graph("graph g(%x: f32[2], %w: f32[2,2]) { %0 = linear %x, %w %1 = neg %0 %2 = neg %1 return %2 }")
    record: list[PassRecord] = []
    made = optimize(g, record=record)
    assert [r.name for r in record] == ["input", *(p.__name__ for p in PASSES)]
    assert record[-1].graph is made and record[0].graph is g
    simplified = next(r for r in record if r.name == "simplify")
    assert simplified.rules_fired == {"neg_neg": 1}
    assert re.match(r"// after simplify, [\d.]+ ms: neg_neg 1x\ngraph g\(", simplified.text)
    parse_graph(simplified.text)


def break_it(g: Graph, options: PassOptions) -> Graph:
    out = Graph(g.name)
    out.inputs, out.nodes, out.outputs = g.inputs, g.nodes[1:], g.outputs
    return out


def crash(g: Graph, options: PassOptions) -> Graph:
    raise KeyError("oops")


TEXT = "graph g(%x: f32[2]) { %0 = exp %x  # some/where.py:3\n%1 = sin %0 return %1 }"


@pytest.mark.parametrize(("bad", "kind"), [(break_it, VerifyError), (crash, TracegradError)])
def test_a_failing_pass_leaves_a_reproducer(
    bad: Callable[..., Graph], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(kind, match=f"pass '{bad.__name__}' failed") as caught:
        optimize(graph(TEXT), verify=True, passes=(dce, bad))
    path = Path(str(caught.value).rsplit(" ", 1)[1])
    text = path.read_text()
    assert path.name == f"{bad.__name__}.ir" and path.parent.parent == tmp_path
    assert text.startswith(f"// pass '{bad.__name__}' fails on this graph\n// ")
    assert print_graph(parse_graph(text)) == print_graph(graph(TEXT))
    assert "some/where.py:3" in text


def test_a_full_disk_does_not_hide_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(TracegradError, match=r"KeyError: 'oops'\n.*No space left"):
        optimize(graph(TEXT), passes=(crash,))


def test_verification_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_VERIFY", "1")
    with pytest.raises(VerifyError, match="break_it"):
        optimize(graph(TEXT), passes=(break_it,))
    monkeypatch.setenv("TRACEGRAD_VERIFY", "0")
    optimize(graph(TEXT), passes=(break_it,))


def test_passes_reach_into_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("test_twice", lambda x, *, regions=(): regions[0].outputs[0].type, kernel="control")
    monkeypatch.setitem(REGISTRY, op.name, op)
    text = (
        "graph g(%x: f32[2]) { %0: f32[2] = test_twice %x (%a: f32[2]) { %b = neg %a %c = neg %b %d = exp %a "
        "%z = sigmoid %c return %z } %1 = exp %0 return %1 }"
    )
    g = graph(text)
    before = print_graph(g)
    made = optimize(g, verify=True)
    same_text(
        made,
        "graph g(%x: f32[2]) { %0: f32[2] = test_twice %x (%a: f32[2]) { %z = sigmoid %a return %z } "
        "%1 = exp %0 return %1 }",
    )
    assert print_graph(g) == before
    assert run_pass(simplify, made, PassOptions()) is made


# --- training steps -----------------------------------------------------------------------------------------


def training_step(batch: int, sizes: tuple[int, ...]) -> Graph:
    """An MLP with squared error and gradient descent."""
    f32 = dtypes.float32
    g = Graph("step")
    b = Builder(g)
    h = g.add_input(Type(f32, (batch, sizes[0])), "x")
    y = g.add_input(Type(f32, (batch, sizes[-1])), "y")
    params = []
    for n, m in pairwise(sizes):
        params += [g.add_input(Type(f32, (m, n)), "w"), g.add_input(Type(f32, (m,)), "b")]
        h = b.linear(h, *params[-2:])
        h = b.tanh(h) if m != sizes[-1] else h
    d = b.sub(h, y)
    loss = b.div(b.sum(b.mul(d, d), axes=(0, 1)), b.const(batch * sizes[-1]))
    b.phase = "backward"
    grads = backward(b, {loss: b.full(shape=(), value=1.0, dtype=f32)}, params)
    b.phase = "update"
    for p in params:
        g.updates[p] = b.sub(p, b.mul(grads[p], b.const(0.1)))
    g.outputs = [loss]
    return g


@pytest.mark.parametrize(("batch", "sizes"), [(5, (4, 3, 2)), (1, (4, 3, 1)), (4, (1, 3, 1)), (1, (1, 1))])
@pytest.mark.parametrize("fast", [False, True])
def test_training_steps(batch: int, sizes: tuple[int, ...], fast: bool) -> None:
    g = training_step(batch, sizes)
    made = optimize(g, fast=fast, verify=True)
    assert list(made.updates) == list(g.updates)
    if batch > 1 and min(sizes) > 1:  # elsewhere contractions give way to several elementwise ops
        assert len(made.nodes) < len(decompose(g).nodes)
        assert not any(n.op.name in ("permute", "reshape", "expand") for n in made.nodes)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype(np.float32) for v in g.inputs]
    got, new = evaluate(made, arrays)
    want, updates = evaluate(g, arrays, dtype=dtypes.float64)
    for a, b in zip(got + new, want + updates, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_seed_gradients_vanish() -> None:
    """The gradient of a plain sum is ones, and the products with them go."""
    f32 = dtypes.float32
    g = Graph()
    b = Builder(g)
    x = g.add_input(Type(f32, (3, 4)), "x")
    w = g.add_input(Type(f32, (3, 4)), "w")
    loss = b.sum(b.mul(x, w), axes=(0, 1))
    grads = backward(b, {loss: b.full(shape=(), value=1.0, dtype=f32)}, [x, w])
    g.outputs = [grads[x], grads[w]]
    made = optimize(g, verify=True)
    assert made.outputs == [w, x] and not made.nodes


def nodes_of(g: Graph, name: str) -> list[Node]:
    return [n for n in g.nodes if n.op.name == name]


def test_transposed_weights_are_absorbed() -> None:
    """x @ w.T and its gradients need no permute."""
    f32 = dtypes.float32
    g = Graph()
    b = Builder(g)
    x, w = (g.add_input(Type(f32, s)) for s in ((5, 3), (4, 3)))
    y = b.contract(x, b.permute(w, dims=(1, 0)), spec="mk,kn->mn")
    grads = backward(b, {y: b.exp(y)}, [x, w])
    g.outputs = [y, grads[x], grads[w]]
    made = optimize(g, verify=True)
    assert not nodes_of(made, "permute") and len(nodes_of(made, "contract")) == 3
