"""Graphs to loops: what comes out of the loop interpreter is what the graph interpreter says, for every
kernel op, for random graphs and for training steps; hazards of writing in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import arrays_for, build, f32, mlp_adam, mlp_sgd, rosenbrock
from tracegrad.backends.machine import AVX2, AVX512, SMALL, MachineModel
from tracegrad.backends.schedule import plan as planning
from tracegrad.backends.schedule import schedule
from tracegrad.backends.schedule.shared_loops import touched
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import float32, int64
from tracegrad.ir.errors import OpError
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program, print_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import For, LoopProgram, Store, statements
from tracegrad.ir.op import REGISTRY, Op, Sample
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

THREADED = replace(AVX512, threads=4, parallel_cycles=50)
MACHINES = [AVX512, AVX2, SMALL, THREADED]


def assert_close(got: np.ndarray, want: np.ndarray, what: str) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape, what
    if dtypes.from_numpy(want.dtype).kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    tolerance = 2e-5 if want.dtype.itemsize >= 4 else 2e-2
    a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=what)


def check(graph: Graph, arrays: list[np.ndarray], machine: MachineModel = AVX512) -> LoopProgram:
    """Schedules, verifies, prints and parses, runs, and compares outputs and updated inputs."""
    outputs, updates = evaluate(graph, arrays)
    program = schedule(graph, machine)
    verify_program(program)
    text = print_program(program)
    assert print_program(parse_program(text)) == text
    for reverse in (False, True):
        mine = [np.array(a, order="C") for a in arrays]
        got = run_program(program, mine, reverse_parallel=reverse)
        for g, w in zip(got, outputs, strict=True):
            assert_close(g, np.asarray(w), text)
        changed = list(graph.updates)
        for v, a, old in zip(graph.inputs, mine, arrays):
            want = updates[changed.index(v)] if v in changed else old
            assert_close(a, np.asarray(want), f"{v.name} of\n{text}")
    return program


@pytest.fixture
def only_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small values get loops too, so that the samples test those."""
    monkeypatch.setattr(planning, "TINY", 0)
    monkeypatch.setattr(planning, "TINY_REDUCE", 0)
    yield


# --- every op -----------------------------------------------------------------------------------------------

KERNELS = sorted(
    n
    for n, op in REGISTRY.items()
    if op.kernel in ("movement", "gather", "source", "reduce", "contract", "scatter", "scan", "sort")
)
SCALARS = ["add", "where", "relu", "sigmoid", "cast", "pow", "floor_divide", "eq"]


def draw_arrays(sample: Sample, rng: np.random.Generator) -> list[np.ndarray]:
    if sample.make is not None:
        return [np.asarray(a, t.dtype.numpy) for a, t in zip(sample.make(rng, sample.types), sample.types)]
    out = []
    for k, t in enumerate(sample.types):
        low, high = sample.domain[k] if isinstance(sample.domain[0], tuple) else sample.domain
        if t.dtype.kind == "b":
            low, high = 0, 2
        if t.dtype.kind == "f":
            out.append(rng.uniform(low, high, t.shape).astype(t.dtype.numpy))
        else:
            out.append(rng.integers(int(low), int(high), t.shape).astype(t.dtype.numpy))
    return out


def sample_graph(op: Op, sample: Sample) -> Graph:
    graph = Graph(op.name)
    b = Builder(graph)
    inputs = tuple(graph.add_input(t, f"x{i}") for i, t in enumerate(sample.types))
    made = b.emit(op, inputs, sample.attrs, sample.regions_for(sample.types))
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    return graph


@pytest.mark.parametrize("name", KERNELS + SCALARS)
@pytest.mark.parametrize("loops", [True, False], ids=["loops", "tiny"])
def test_op(name: str, loops: bool, request: pytest.FixtureRequest) -> None:
    if loops:
        request.getfixturevalue("only_loops")
    rng = np.random.default_rng(0)
    op = REGISTRY[name]
    for k, sample in enumerate(op.samples()):
        check(
            sample_graph(op, sample),
            draw_arrays(sample, rng),
            MACHINES[k % len(MACHINES)] if loops else AVX512,
        )


def test_composites_and_unknown_kernels_are_refused() -> None:
    sample = next(iter(REGISTRY["softmax"].samples()))
    with pytest.raises(OpError, match="composite"):
        schedule(sample_graph(REGISTRY["softmax"], sample))


# --- random graphs ------------------------------------------------------------------------------------------

SIZES = st.sampled_from([1, 1, 2, 3, 4, 5, 7, 16, 17, 20])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A few dozen ops over a growing pool of values: elementwise with broadcasting, movement, reductions,
    products, reads at data; some inputs updated."""
    graph = Graph("random")
    b: Any = Builder(graph)
    pool: list[Value] = []
    for i in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(SIZES, max_size=3)))
        while np.prod(shape, initial=1) > 600:
            shape = shape[1:]
        pool.append(graph.add_input(f32(*shape), f"x{i}"))
    index = graph.add_input(Type(int64, (draw(st.integers(1, 6)),)), "index")

    def pick() -> Value:
        return pool[draw(st.integers(max(0, len(pool) - 6), len(pool) - 1))]

    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["unary", "unary", "binary", "binary", "move", "reduce", "reduce",
                                     "contract",
                                     "softmax", "take", "arg"]))  # fmt: skip
        x = pick()
        shape = x.type.shape
        rank = len(shape)
        if kind == "unary":
            name = draw(st.sampled_from(["relu", "neg", "tanh", "sigmoid"]))
            pool.append(getattr(b, name)(x))
        elif kind == "binary":
            partners = [v for v in pool if fits(shape, v.type.shape)]
            y = draw(st.sampled_from(partners)) if partners else b.const(0.5)
            pool.append(draw(st.sampled_from([b.add, b.mul, b.sub, b.maximum]))(x, y))
        elif kind == "move":
            moved = draw(moves(shape))
            pool.append(
                b.concat(x, x, dim=moved[1]) if moved[0] == "concat" else getattr(b, moved[0])(x, **moved[1])
            )
        elif kind == "reduce" and rank:
            axes = tuple(sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1))))
            name = draw(st.sampled_from(["sum", "sum", "amax"]))
            y = getattr(b, name)(x, axes=axes, keepdim=draw(st.booleans()))
            pool.append(b.mul(y, b.const(0.1)) if name == "sum" else y)
        elif kind == "softmax" and rank:
            pool.append(b.softmax(x, dim=draw(st.integers(0, rank - 1))))
        elif kind == "contract" and 1 <= rank <= 4:
            y = draw(
                st.sampled_from([v for v in pool if 1 <= v.type.rank <= 4 and v.type.shape[-1] == shape[-1]])
            )
            left, right = "abc"[: rank - 1] + "k", "xyz"[: y.type.rank - 1] + "k"
            sizes = [*shape[:-1], *y.type.shape[:-1]]
            if np.prod(sizes, initial=1) <= 600:
                c = b.contract(x, y, spec=f"{left},{right}->{left[:-1]}{right[:-1]}")
                pool.append(b.mul(c, b.const(0.2)))
        elif kind == "take" and rank:
            pool.append(b.take(x, index, dim=draw(st.integers(0, rank - 1))))
        elif kind == "arg" and rank:
            pool.append(b.cast(b.argmax(x, dim=draw(st.integers(0, rank - 1))), dtype=float32))
        if np.prod(pool[-1].type.shape, initial=1) > 700:
            pool.pop()
    graph.outputs = [pool[-1], *draw(st.lists(st.sampled_from(pool), max_size=2))]
    for v in graph.inputs:
        same = [p for p in pool if p.type == v.type]
        if same and draw(st.booleans()):
            graph.updates[v] = draw(st.sampled_from(same))
    return graph


def fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether `other` broadcasts to `shape`."""
    return len(other) <= len(shape) and all(m in (1, n) for n, m in zip(reversed(shape), reversed(other)))


@st.composite
def moves(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[str, Any]:
    rank = len(shape)
    kind = draw(st.sampled_from(["permute", "reshape", "slice", "pad", "flip", "concat", "expand"]))
    if kind == "permute":
        return kind, {"dims": tuple(draw(st.permutations(range(rank))))}
    if kind == "slice":
        cuts = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
        start, stop = [c[0] for c in cuts], [max(c[1], c[0] + 1) for c in cuts]
        return kind, {
            "start": tuple(start),
            "stop": tuple(stop),
            "step": tuple(draw(st.integers(1, 3)) for _ in shape),
        }
    if kind == "pad":
        ends = [tuple(draw(st.integers(0, 2)) for _ in shape) for _ in range(2)]
        return kind, {"low": ends[0], "high": ends[1], "value": 0.5}
    if kind == "flip" and rank:
        return kind, {"dims": (draw(st.integers(0, rank - 1)),)}
    if kind == "concat" and rank:
        return kind, draw(st.integers(0, rank - 1))
    if kind == "expand":
        return kind, {"shape": (draw(st.integers(1, 3)), *shape)}
    n = int(np.prod(shape, initial=1))
    factor = draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]))
    return "reshape", {"shape": (factor, n // factor)}


@settings(max_examples=60)
@given(graphs(), st.sampled_from(MACHINES), st.booleans())
def test_random_graph(graph: Graph, machine: MachineModel, tiny: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.uniform(-1, 1, v.type.shape).astype(np.float32) if v.type.dtype is float32
        else rng.integers(0, 1, v.type.shape) for v in graph.inputs
    ]  # fmt: skip
    old = planning.TINY, planning.TINY_REDUCE
    try:
        if not tiny:
            planning.TINY = planning.TINY_REDUCE = 0
        check(optimize(graph), arrays, machine)
    finally:
        planning.TINY, planning.TINY_REDUCE = old


SPECS = ["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->nm", "mk,kn->nm", "bmk,bkn->bmn", "bmk,nk->bmn",
         "bhqd,bhkd->bhqk",
         "bhqk,bkhd->bqhd", "mab,abn->mn", "mba,abn->mn", "abm,cba->cm"]  # fmt: skip


@settings(max_examples=40)
@given(
    st.sampled_from(SPECS),
    st.data(),
    st.sampled_from(MACHINES),
    st.sampled_from(["plain", "relu", "several"]),
)
def test_contraction(spec: str, data: st.DataObject, machine: MachineModel, epilogue: str) -> None:
    operands, out = spec.split("->")
    x, y = operands.split(",")
    sizes = {
        c: data.draw(st.sampled_from([1, 2, 3, 5, 8, 14, 16, 17, 33]), label=c) for c in sorted(set(x + y))
    }
    while np.prod(list(sizes.values())) > 12000:
        sizes[max(sizes, key=lambda c: sizes[c])] = 3

    def body(b: Any, p: Value, q: Value, bias: Value) -> Any:
        c = b.contract(p, q, spec=spec)
        e = b.relu(b.add(c, bias))
        return {"plain": [c], "relu": [e], "several": [b.mul(e, c), b.sum(e, axes=(0,)), c]}[epilogue]

    types = {"x": f32(*[sizes[c] for c in x]), "y": f32(*[sizes[c] for c in y]), "bias": f32(sizes[out[-1]])}
    graph = build("c", types, body)
    check(graph, arrays_for(graph), machine)


@pytest.mark.parametrize("l2,panel", [(1024, "panel"), (1 << 20, "packed")])
def test_blocks_of_k_and_packed_panels(l2: int, panel: str) -> None:
    """Sizes at which k is split up, and B is packed in blocks or as a whole; tiles are cut off at every
    edge."""
    machine = replace(SMALL, l1_bytes=512, l2_bytes=l2, vector_registers=6)
    graph = build(
        "c", {"x": f32(130, 26), "y": f32(130, 25)}, lambda b, x, y: b.contract(x, y, spec="km,kn->mn")
    )
    program = check(graph, arrays_for(graph), machine)
    text = print_program(program)
    assert panel in text and ("partial" in text) == (l2 < 4096)


# --- training steps and rows --------------------------------------------------------------------------------


def test_sums_go_before_products_of_what_they_read() -> None:
    """Gradients of biases while what they sum up is in the cache."""
    program = schedule(optimize(mlp_sgd(9, 20, 11, 5)), AVX512)
    written = [{s.buffer.name for s in statements(k.body) if isinstance(s, Store)} for k in program.kernels]
    place = {name: n for n, names in enumerate(written) for name in names if name in ("w1", "b1", "w2", "b2")}
    assert place["b1"] < place["w1"] and place["b2"] < place["w2"]


@pytest.mark.parametrize("machine", MACHINES, ids=["avx512", "avx2", "small", "threads"])
def test_training_steps(machine: MachineModel) -> None:
    for graph in (mlp_adam(20, 3, 18), mlp_sgd(9, 20, 11, 5), rosenbrock()):
        check(graph, arrays_for(graph), machine)


def test_a_tiny_graph_is_straight_line_code() -> None:
    program = check(rosenbrock(), [np.array([0.3, -0.2], np.float32)])
    assert len(program.kernels) == 1 and program.arena_bytes == 0
    assert not any(isinstance(s, For) for s in statements(program.kernels[0].body))


def rows(n: int = 6, d: int = 21) -> dict[str, Graph]:
    x = {"x": f32(n, d)}
    return {
        "softmax": build("softmax", x, lambda b, x: b.softmax(x, dim=1)),
        "columns": build("columns", x, lambda b, x: b.softmax(x, dim=0)),
        "log_softmax": build("log_softmax", x, lambda b, x: b.log_softmax(x, dim=1)),
        "norm": build(
            "norm",
            {**x, "w": f32(d), "b": f32(d)},
            lambda b, x, w, c: b.layer_norm(x, w, c, normalized_shape=(d,)),
        ),
    }


@pytest.mark.parametrize("name", ["softmax", "columns", "log_softmax", "norm"])
@pytest.mark.parametrize("machine", MACHINES, ids=["avx512", "avx2", "small", "threads"])
def test_rows_are_one_kernel_without_temporaries(name: str, machine: MachineModel) -> None:
    graph = rows()[name]
    program = check(graph, arrays_for(graph), machine)
    assert len(program.kernels) == 1 and program.arena_bytes == 0


def test_the_update_of_a_weight_is_fused_into_its_gradient() -> None:
    program = schedule(mlp_sgd(8, 64, 48, 33), AVX512)
    stored = [b for b in program.temps if not b.name.startswith("packed")]
    assert not any("w1" in b.name or b.size == 48 * 64 for b in stored)
    assert {b.name for b in program.updated} == {"w1", "b1", "w2", "b2"}


@pytest.mark.parametrize("lookups", [1, 2])
def test_sums_of_looked_up_rows_are_stored_single_ones_looked_up_again(lookups: int) -> None:
    """Two gathers and their sum are as dear as a load; one is not."""
    places = Type(int64, (12,))
    types = {"w": f32(9, 32), "p": f32(9, 32), "i": places, "j": places, "m": f32(32, 32)}

    def body(b: Any, w: Value, p: Value, i: Value, j: Value, m: Value) -> Any:
        x = b.take(w, i, dim=0)
        x = b.add(x, b.take(p, j, dim=0)) if lookups == 2 else b.add(x, b.const(1.0))
        rows = b.softmax(x, dim=1)
        return b.add(b.matmul(rows, m), x)

    graph = optimize(build("lookups", types, body))
    program = check(graph, arrays_for(graph))
    reading = [k for k in program.kernels if any(b.name == "w" for b in touched(k.body))]
    assert len(reading) == (1 if lookups == 2 else 2)


# --- writing in place ---------------------------------------------------------------------------------------


def hazards() -> dict[str, Graph]:
    v, m = {"x": f32(40), "y": f32(40)}, {"x": f32(20, 20), "y": f32(20, 20)}
    rev = {"dims": (0,)}
    return {
        "swap": build("swap", v, lambda b, x, y: (
            [], {x: b.add(y, b.const(1.0)), y: b.mul(x, b.const(2.0))})),
        "plain swap": build("plain_swap", v, lambda b, x, y: ([], {x: y, y: x})),
        "reversed": build("reversed", v, lambda b, x, y: ([], {x: b.add(b.flip(x, **rev), y)})),
        "crossed": build("crossed", v, lambda b, x, y: ([], {x: b.add(x, b.flip(y, **rev)), y: b.add(x, y)})),
        "old value out": build("old", v, lambda b, x, y: ([x, b.add(x, y)], {x: b.add(x, y)})),
        "one value for two": build("two", v, lambda b, x, y: ([], {x: (s := b.add(x, y)), y: s})),
        "read later": build("later", v, lambda b, x, y: (
            [b.sum(b.mul(x, s), axes=(0,)) for s in [b.exp(b.add(x, b.sum(y, axes=(0,))))]],
            {x: b.mul(x, y)})),
        "new value used": build("used", v, lambda b, x, y: (
            [b.sum(n, axes=(0,)) for n in [b.add(x, y)]], {x: b.add(x, y)})),
        "matrix": build("matrix", m, lambda b, x, y: ([], {x: b.contract(x, y, spec="mk,kn->mn")})),
        "residual": build("residual", m, lambda b, x, y: (
            [], {y: b.sub(y, b.contract(x, x, spec="km,kn->mn")), x: b.add(x, y)})),
        "transposed": build("transposed", m, lambda b, x, y: ([], {x: b.permute(x, dims=(1, 0))})),
        "rows": build("rows", m, lambda b, x, y: ([], {x: b.softmax(x, dim=1), y: b.softmax(y, dim=0)})),
        "row sums": build("row_sums", {"x": f32(20, 20), "y": f32(20)}, lambda b, x, y: (
            [], {y: b.add(y, b.sum(x, axes=(1,))), x: b.add(x, y)})),
        "scatter": build("scatter", {"x": f32(40), "i": Type(int64, (7,)), "s": f32(7)}, lambda b, x, i, s: (
            [], {x: b.scatter(x, i, s, dim=0, reduce="add")})),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(hazards()))
@pytest.mark.parametrize("machine", [AVX512, SMALL, THREADED], ids=["avx512", "small", "threads"])
def test_updates_in_place(name: str, machine: MachineModel) -> None:
    graph = hazards()[name]
    check(graph, arrays_for(graph), machine)


@pytest.mark.parametrize("name", ["swap", "rows"])
def test_safe_updates_need_no_copy(name: str) -> None:
    program = schedule(hazards()[name], AVX512)
    assert program.arena_bytes == 0 and not any("copy" in k.comment for k in program.kernels)


def test_temporaries_share_their_place() -> None:
    """A chain of sums over whole tensors: each step's input dies where its output is made."""

    def body(b: Any, x: Value) -> Any:
        for _ in range(5):
            x = b.add(b.flip(x, dims=(0,)), b.sum(x, axes=(0,)))
        return x

    graph = build("chain", {"x": f32(1000)}, body)
    program = check(graph, arrays_for(graph))
    assert program.arena_bytes <= 2 * 4032 + 1024


def test_contiguous_dimensions_become_one_loop() -> None:
    graph = build(
        "flat", {"x": f32(4, 5, 8), "y": f32(4, 5, 8)}, lambda b, x, y: b.reshape(b.add(x, y), shape=(8, 20))
    )
    program = schedule(graph, AVX512)
    loops = [s for s in statements(program.kernels[0].body) if isinstance(s, For)]
    assert [(s.extent, s.step, s.kind) for s in loops] == [(160, 16, "serial"), (16, 1, "vector")]


def long_chain(kind: str, n: int) -> Graph:
    def body(b: Any, x: Value, w: Value) -> Value:
        for i in range(n):
            if kind == "elementwise":
                x = b.tanh(b.add(b.mul(x, w), b.const(0.1 * i)))
            elif kind == "movement":
                x = b.flip(x, dims=(i % 2,)) if i % 3 else b.permute(x, dims=(1, 0))
            else:
                x = b.mul(b.add(x, b.sum(x, axes=(0,))), b.const(0.04))
        return x

    return build(kind, {"x": f32(20, 20), "w": f32(20, 20)}, body)


@pytest.mark.parametrize("kind, n", [("elementwise", 300), ("movement", 400), ("sums", 40)])
def test_long_chains_neither_recurse_nor_explode(kind: str, n: int) -> None:
    graph = long_chain(kind, n)
    program = check(graph, arrays_for(graph))
    assert len(print_program(program).splitlines()) < 40 * n


def test_scheduling_is_deterministic() -> None:
    assert print_program(schedule(mlp_adam(20, 3, 18))) == print_program(schedule(mlp_adam(20, 3, 18)))


@pytest.mark.parametrize("machine", MACHINES, ids=["avx512", "avx2", "small", "threads"])
@pytest.mark.parametrize("shape", [(9, 20), (40, 16), (33, 8), (3, 17, 11)])
def test_transposed_operands_are_read_in_tiles(machine: MachineModel, shape: tuple[int, ...]) -> None:
    dims = tuple(reversed(range(len(shape))))
    graph = build("t", {"x": f32(*shape)}, lambda b, x: b.relu(b.permute(x, dims=dims)))
    check(graph, arrays_for(graph), machine)


@pytest.mark.parametrize("machine", MACHINES, ids=["avx512", "avx2", "small", "threads"])
def test_updates_that_all_go_to_one_place_add_up(machine: MachineModel, only_loops: None) -> None:
    """The place is the same in every iteration, what is there is not."""

    def body(b: Any, base: Value, new: Value, at: Value) -> Value:
        return b.index_put(base, new, b.expand(at, shape=(40,)), dims=(0,), accumulate=True)

    graph = build("t", {"base": f32(17), "new": f32(40), "at": Type(int64, ())}, body)
    check(graph, [np.ones(17, np.float32), np.arange(40, dtype=np.float32), np.asarray(3)], machine)


@pytest.mark.parametrize("machine", MACHINES, ids=["avx512", "avx2", "small", "threads"])
def test_a_loss_does_not_make_its_gradient_wait(machine: MachineModel) -> None:
    """Both divide by the sum of the weights. If the group of that sum took the loss as well, the gradient
    could not be stored by the rows that the loss comes from, and these would keep all they know for it."""

    def body(b: Any, x: Value, w: Value) -> tuple[Value, Value]:
        p = b.exp(b.sub(x, b.amax(x, axes=(1,), keepdim=True)))
        s = b.sum(p, axes=(1,), keepdim=True)
        loss = b.sum(b.mul(b.reshape(s, shape=(50,)), w), axes=(0,))
        total = b.sum(w, axes=(0,))
        loss = b.div(loss, total)
        return loss, b.mul(b.div(p, s), b.reshape(b.div(w, total), shape=(50, 1)))

    graph = build("t", {"x": f32(50, 70), "w": f32(50)}, body)
    check(graph, arrays_for(graph), machine)
    assert sum(b.nbytes for b in schedule(graph, machine).temps if b.space == "arena") < 50 * 70 * 4
