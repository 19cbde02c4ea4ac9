"""The rewrites of control flow: for each a graph and what it makes of it, equal results, and random loops
through all of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.pass_control import REWRITES, apply, control, merge_equal
from tracegrad.ir.passes import PassOptions, optimize
from tracegrad.ir.regions import build, structure, unshared
from tracegrad.ir.text import parse_graph, print_graph
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

#: `== name: what it shows`, a graph, `--`, what the rewrite makes of it.
GOLDEN = (Path(__file__).parent / "control_rewrites.txt").read_text(encoding="utf-8")

CASES = []
for _case in GOLDEN.split("== ")[1:]:
    _head, _, _graphs = _case.partition("\n")
    CASES.append((_head.partition(":")[0], *_graphs.split("\n--\n")))
ALL = {**{f.__name__: f for f in REWRITES}, "merge_equal": None}


def rewritten(graph: Graph, name: str) -> Graph:
    rewrite = ALL[name]
    return merge_equal(graph) if rewrite is None else apply(graph, rewrite)


def arrays_for(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        a = (
            rng.standard_normal(v.type.shape)
            if v.type.dtype.kind == "f"
            else rng.integers(0, 2, v.type.shape)
        )
        out.append(np.asarray(a).astype(v.type.dtype.numpy))
    return out


def same_results(a: Graph, b: Graph) -> None:
    for seed in range(2):
        arrays = arrays_for(a, seed)
        for x, y in zip(evaluate(a, arrays)[0], evaluate(b, arrays)[0], strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "before", "after"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_golden(name: str, before: str, after: str) -> None:
    graph = parse_graph(before)
    verify(graph)
    text = print_graph(graph)
    made = rewritten(graph, name)
    verify(made, name)
    assert structure(made) == structure(parse_graph(after)), print_graph(made)
    assert print_graph(graph) == text
    same_results(graph, made)


@pytest.mark.parametrize("name", ALL)
def test_every_rewrite_has_a_golden_case(name: str) -> None:
    assert name in [case[0] for case in CASES]


@pytest.mark.parametrize(("name", "before", "after"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_what_a_rewrite_made_it_leaves_alone(name: str, before: str, after: str) -> None:
    graph = parse_graph(after)
    again = rewritten(graph, name)
    assert again is graph or structure(rewritten(again, name)) == structure(again)


DECLINES = [
    # the predicate is not known
    (
        "choose_branch",
        "%x: f32[2], %p: bool[]",
        "%y = cond %p, %x (%a: f32[2]) { return %a } (%a: f32[2]) { return %a }",
    ),
    # two steps
    (
        "unroll_one",
        "%x: f32[2]",
        "%y = scan %x {length=2, carry=1} (%a: f32[2]) { %e = exp %a return %e }",
    ),
    # equal at first, not afterwards
    (
        "prune_loop",
        "%x: f32[2]",
        "%y, %z = scan %x, %x {length=2, carry=2} (%a: f32[2], %b: f32[2]) "
        "{ %e = exp %a %f = sin %b return %e, %f }",
    ),
    # a loop whose test never changes is not taken apart
    (
        "prune_loop",
        "%x: bool[]",
        "%y = while %x {carry=1} (%a: bool[]) { return %a } (%a: bool[]) { %b = logical_not %a return %b }",
    ),
    # an embedding that may not be read at all
    (
        "hoist_invariants",
        "%x: f32[2,3], %w: f32[9,3], %i: i64[2]",
        "%y = while %x, %w, %i {carry=1, max_trips=3} (%x: f32[2,3], %w: f32[9,3], %i: i64[2]) "
        "{ %s = sum %x {axes=(0, 1)} %z = constant {value=0.0, dtype=f32} %l = lt %s, %z return %l } "
        "(%x: f32[2,3], %w: f32[9,3], %i: i64[2]) { %e = take %w, %i {dim=0} %m = add %x, %e return %m }",
    ),
    # the carried value is in it
    (
        "hoist_projections",
        "%c: f32[2,2], %x: f32[3,2,2], %w: f32[2,2]",
        "%y = scan %c, %x, %w {length=3, carry=1, xs=1} (%s: f32[2,2], %v: f32[2,2], %w: f32[2,2]) "
        "{ %0 = add %s, %v %1 = contract %0, %w {spec='mk,kn->mn'} return %1 }",
    ),
    # the running sum is read at each step
    (
        "hoist_sums",
        "%c: f32[2,2], %x: f32[3,2,2]",
        "%y, %ys = scan %c, %x {length=3, carry=1, xs=1} (%s: f32[2,2], %v: f32[2,2]) "
        "{ %0 = contract %v, %v {spec='mk,kn->mn'} %1 = add %s, %0 return %1, %s }",
    ),
    # what is added depends on the sum
    (
        "hoist_sums",
        "%c: f32[2,2], %x: f32[3,2,2]",
        "%y = scan %c, %x {length=3, carry=1, xs=1} (%s: f32[2,2], %v: f32[2,2]) "
        "{ %0 = contract %v, %s {spec='mk,kn->mn'} %1 = add %s, %0 return %1 }",
    ),
    # the next step reads it too
    (
        "sink_outputs",
        "%c: f32[2,2], %w: f32[2,2]",
        "%y, %ys = scan %c, %w {length=3, carry=1} (%s: f32[2,2], %w: f32[2,2]) "
        "{ %0 = contract %s, %w {spec='mk,kn->mn'} return %0, %0 }",
    ),
    # other operands
    (
        "merge_equal",
        "%c: f32[2], %d: f32[2]",
        "%y = scan %c {length=2, carry=1} (%s: f32[2]) { %e = exp %s return %e } "
        "%z = scan %d {length=2, carry=1} (%s: f32[2]) { %e = exp %s return %e }",
    ),
]


@pytest.mark.parametrize(("name", "inputs", "op"), DECLINES)
def test_declines(name: str, inputs: str, op: str) -> None:
    made = re.findall(r"(%\w+), (%\w+) = (?:scan|while)|(%\w) = (?:scan|while|cond)", op)
    outs = ", ".join(v for row in made for v in row if v)
    graph = parse_graph(f"graph g({inputs}) {{ {op} return {outs} }}")
    assert rewritten(graph, name) is graph


def test_the_pass_counts_what_fired() -> None:
    options = PassOptions()
    before = next(case[1] for case in CASES if case[0] == "hoist_sums")
    control(parse_graph(before), options)
    assert options.fired["hoist_sums"] == 1 and options.fired["choose_branch"] == 0


def test_regions_are_shared_by_nobody_after_the_passes() -> None:
    region = build("body", [Type(dtypes.float32, (2,))], lambda b, xs: [b.tanh(xs[0])])
    graph = Graph()
    b = Builder(graph)
    x, y = (graph.add_input(Type(dtypes.float32, (2,))) for _ in range(2))
    graph.outputs = [b.scan(v, length=3, carry=1, regions=(region,)) for v in (x, y)]
    verify(graph)
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)
    better = optimize(graph, verify=True)
    assert better.nodes[0].regions[0] is not better.nodes[1].regions[0]
    assert unshared(better) is better
    same_results(graph, better)


# --- random loops -------------------------------------------------------------------------------------------


def random_body(rng: np.random.Generator, b: Builder, inputs: list[Value], k: int, n_ys: int) -> list[Value]:
    """Ops drawn at random over f32[3,3] and f32[3] values; carried values stay bounded."""
    known = list(inputs)
    for _ in range(rng.integers(3, 12)):
        x, y = (known[i] for i in rng.integers(0, len(known), 2))
        kind = rng.integers(0, 7)
        if kind == 0:
            made = b.tanh(x)
        elif kind == 1 and x.type.rank == 2 and y.type.rank == 2:
            made = b.contract(x, y, spec=["mk,kn->mn", "mk,nk->mn", "km,kn->nm"][rng.integers(0, 3)])
        elif kind == 2 and x.type.rank == 2:
            made = b.sum(x, axes=(int(rng.integers(0, 2)),))
        elif kind == 3:
            made = b.add(x, y)
        elif kind == 4 and x.type.rank == 2:
            made = b.permute(x, dims=(1, 0))
        elif kind == 5:
            made = b.mul(x, b.const(0.5, x))
        else:
            made = b.mul(b.sin(x), y)
        known.append(made)

    def like(v: Value) -> Value:
        same = [w for w in known if w.type == v.type]
        pick = same[rng.integers(0, len(same))]
        kind = rng.integers(0, 4)
        return b.add(v, pick) if kind == 0 else v if kind == 1 else b.tanh(pick) if kind == 2 else pick

    return [*(like(v) for v in inputs[:k]), *(known[i] for i in rng.integers(0, len(known), n_ys))]


def random_loop(seed: int) -> Graph:
    """A scan, its gradients, and a second scan over the first one's results."""
    rng = np.random.default_rng(seed)
    graph = Graph("random")
    b = Builder(graph)
    length = int(rng.choice([0, 1, 2, 4], p=[0.05, 0.15, 0.4, 0.4]))
    pool: list[Value] = []

    def operand(shape: tuple[int, ...]) -> Value:
        same = [v for v in pool if v.type.shape == shape]
        if same and rng.random() < 0.4:
            return same[rng.integers(0, len(same))]
        v = graph.add_input(Type(dtypes.float32, shape))
        if rng.random() < 0.2:
            v = b.full(shape=shape, value=float(rng.integers(0, 2)), dtype=dtypes.float32)
        pool.append(v)
        return v

    def shape() -> tuple[int, ...]:
        return (3, 3) if rng.random() < 0.7 else (3,)

    outs: list[Value] = []
    for _ in range(2):
        k, m, c = (int(n) for n in rng.integers((1, 0, 0), (4, 3, 3)))
        operands = [operand(shape()) for _ in range(k)]
        operands += [operand((length, *shape())) for _ in range(m)]
        operands += [operand(shape()) for _ in range(c)]
        types = [v.type for v in operands]
        types[k : k + m] = [t.with_shape(t.shape[1:]) for t in types[k : k + m]]
        n_ys = int(rng.integers(0, 3))
        body = build("body", types, lambda bb, xs, k=k, n_ys=n_ys: random_body(rng, bb, xs, k, n_ys))
        attrs = {"length": length, "carry": k, "xs": m, "reverse": bool(rng.integers(0, 2))}
        made = b.scan(*operands, **attrs, regions=(body,))
        made = list(made) if isinstance(made, tuple) else [made]
        pool += made
        outs += [v for v in made if rng.random() < 0.7]
    outs = outs or pool[-1:]
    wrt = [v for v in graph.inputs if rng.random() < 0.8]
    seeds = {v: b.full(shape=v.type.shape, value=1.0, dtype=dtypes.float32) for v in outs}
    graph.outputs = [*outs, *backward(b, seeds, wrt).values()]
    return graph


@pytest.mark.parametrize("seed", range(60))
def test_random_loops_and_their_gradients_keep_their_results(seed: int) -> None:
    graph = random_loop(seed)
    verify(graph)
    better = optimize(graph, verify=True)
    arrays = [a * 0.5 for a in arrays_for(graph, seed)]
    for x, y in zip(evaluate(graph, arrays)[0], evaluate(better, arrays)[0], strict=True):
        wide = evaluate(graph, arrays, dtype=dtypes.float64)[0]
        scale = max(1.0, *(float(np.abs(w).max(initial=0)) for w in wide))
        if np.isfinite(scale) and scale < 1e4:
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 * scale)
