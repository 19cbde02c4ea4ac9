"""Graphs to GPU kernels: what the loop interpreter makes of them is what the graph interpreter says, for
every op, for random graphs, for training steps and for control flow. It runs all threads of a kernel and
fails on races, so a missing barrier shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
import test_control_native as native
from control_tools import draw as control_draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedule_graphs import arrays_for, build, f32, mlp_adam, mlp_sgd, rosenbrock
from test_schedule import SPECS, assert_close, draw_arrays, graphs, hazards, rows, sample_graph
from tracegrad.backends.gpu_schedule import contract_tiles, scatter, schedule_gpu
from tracegrad.backends.machine import AVX512, SM_75, GpuModel
from tracegrad.backends.schedule import plan as planning
from tracegrad.backends.schedule import schedule
from tracegrad.ir.dtypes import float32, int64
from tracegrad.ir.errors import VerifyError
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program, print_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import For, LoopProgram, grid_of, statements
from tracegrad.ir.op import REGISTRY
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

#: so small that small arrays fill it: vectors, split sums and tiles are used at once
SMALL = GpuModel((7, 5), 1, shared_bytes=4 << 10)
#: so large that rows are cut up early
LARGE = GpuModel((9, 0), 512)
MACHINES = [SM_75, SMALL, LARGE]


def check(graph: Graph, arrays: list[np.ndarray], machine: GpuModel = SM_75) -> LoopProgram:
    """Schedules, verifies, prints and parses, runs, and compares outputs and updated inputs."""
    outputs, updates = evaluate(graph, arrays)
    program = schedule_gpu(graph, machine)
    verify_program(program)
    text = print_program(program)
    assert print_program(parse_program(text)) == text
    mine = [np.array(a, order="C") for a in arrays]
    got = run_program(program, mine)
    for g, w in zip(got, outputs, strict=True):
        assert_close(g, np.asarray(w), text)
    changed = list(graph.updates)
    for v, a, old in zip(graph.inputs, mine, arrays):
        want = updates[changed.index(v)] if v in changed else old
        assert_close(a, np.asarray(want), f"{v.name} of\n{text}")
    return program


@pytest.fixture
def only_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small values get kernels of their own, so that the samples test those."""
    monkeypatch.setattr(planning, "TINY", 0)
    monkeypatch.setattr(planning, "TINY_REDUCE", 0)
    yield


# --- every op -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_op(name: str, only_loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    op = REGISTRY[name]
    for k, sample in enumerate(op.samples()):
        monkeypatch.setattr(contract_tiles, "SMALL", 0 if k % 2 else 1 << 17)
        monkeypatch.setattr(scatter, "RUN_THROUGH", 0 if k % 2 else 32)
        graph = optimize(sample_graph(op, sample))
        check(graph, draw_arrays(sample, rng), MACHINES[k % len(MACHINES)])


# --- random graphs ------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.sampled_from(MACHINES), st.booleans())
def test_random_graph(graph: Graph, machine: GpuModel, tiny: bool) -> None:
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


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SPECS),
    st.data(),
    st.sampled_from(MACHINES),
    st.sampled_from(["plain", "relu", "several"]),
    st.sampled_from([0, 0, 1 << 17]),
)
def test_contraction(spec: str, data: st.DataObject, machine: GpuModel, epilogue: str, small: int) -> None:
    operands, out = spec.split("->")
    x, y = operands.split(",")
    sizes = {
        c: data.draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33, 70]), label=c) for c in sorted(set(x + y))
    }
    while np.prod(list(sizes.values())) > 60000:
        sizes[max(sizes, key=lambda c: sizes[c])] = 3

    def body(b: Any, p: Any, q: Any, bias: Any) -> Any:
        c = b.contract(p, q, spec=spec)
        e = b.relu(b.add(c, bias))
        return {"plain": [c], "relu": [e], "several": [b.mul(e, c), b.sum(e, axes=(0,)), c]}[epilogue]

    types = {"x": f32(*[sizes[c] for c in x]), "y": f32(*[sizes[c] for c in y]), "bias": f32(sizes[out[-1]])}
    graph = build("c", types, body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract_tiles, "SMALL", small)
        check(graph, arrays_for(graph), machine)


@pytest.mark.parametrize("spec", ["mk,kn->mn", "mk,nk->nm", "km,kn->mn", "bmk,bnk->bmn"])
@pytest.mark.parametrize("size", [(130, 70, 65), (64, 128, 64), (36, 44, 1200)], ids=str)
@pytest.mark.parametrize("machine", MACHINES, ids=["sm_75", "small", "large"])
def test_tiles(spec: str, size: tuple[int, int, int], machine: GpuModel) -> None:
    """Tiles of several shapes, cut off at edges, with wide accesses and without, and sums in parts."""
    sizes = {**dict(zip("mnk", size)), "b": 2}
    operands, out = spec.split("->")
    x, y = operands.split(",")
    types = {"x": f32(*[sizes[c] for c in x]), "y": f32(*[sizes[c] for c in y]), "w": f32(sizes[out[-1]])}
    graph = build("c", types, lambda b, x, y, w: b.relu(b.add(b.contract(x, y, spec=spec), w)))
    check(graph, arrays_for(graph), machine)


# --- elementwise, scatters ----------------------------------------------------------------------------------


def test_few_long_products_are_shared_by_warps() -> None:
    """Where both operands lie along the terms, or there are very few sums."""
    for spec, size, warps in (
        ("mk,nk->mn", (6, 5, 200), True), ("mk,kn->mn", (6, 5, 1000), True),
        ("mk,kn->mn", (6, 5, 200), False), ("mk,nk->mn", (6, 5, 20), False),
        ("mhk,nhk->mn", (6, 5, 40), True),
    ):  # fmt: skip
        sizes = {**dict(zip("mnk", size)), "h": 3}
        x, y = spec.split("->")[0].split(",")
        types = {"x": f32(*(sizes[c] for c in x)), "y": f32(*(sizes[c] for c in y)), "z": f32(6, 5)}

        def body(b: Any, x: Any, y: Any, z: Any, spec: str = spec) -> Any:
            return b.relu(b.add(b.contract(x, y, spec=spec), z))

        graph = build("c", types, body)
        for machine in (SM_75, LARGE):
            text = print_program(check(graph, arrays_for(graph), machine))
            assert ("warp.add" in text) == warps, spec


@pytest.mark.parametrize("shape", [(64, 32), (33, 70), (3, 40, 50), (2, 16, 37)], ids=str)
def test_transposes_go_through_shared_memory(shape: tuple[int, ...]) -> None:
    last = len(shape) - 1
    dims = (*range(last - 1), last, last - 1)

    def body(b: Any, x: Any, y: Any) -> Any:
        t = b.permute(x, dims=dims)
        return b.add(b.mul(b.tanh(t), t), y)

    graph = build("t", {"x": f32(*shape), "y": f32(*[shape[d] for d in dims])}, body)
    program = check(graph, arrays_for(graph))
    assert "shared" in print_program(program)


@pytest.mark.parametrize("n", [1 << 16, 70_004])
def test_large_elementwise_kernels_loop_over_the_grid(n: int) -> None:
    """As many blocks as a GPU of one multiprocessor holds, and a loop."""
    graph = build("g", {"x": f32(n), "y": f32(n)}, lambda b, x, y: b.add(b.exp(x), y))
    rng = np.random.default_rng(1)
    program = check(optimize(graph), [rng.normal(size=n).astype(np.float32) for _ in range(2)], SMALL)
    (kernel,) = program.kernels
    loops, body = grid_of(kernel.body) or ([], [])
    assert [f.extent for f in loops] == [8]
    turns = [f.extent for f in statements(body) if isinstance(f, For) and f.kind == "serial"]
    assert turns == [-(-n // 8192)]


def test_vectors_where_memory_is_met_in_order() -> None:
    """Wide accesses along the last dimension; a broadcast row, a scalar, and one at another place."""
    for shape, wide in (((64, 36), 4), ((64, 38), 2), ((64, 37), 0)):
        types = {"x": f32(*shape), "y": f32(shape[1]), "z": f32(), "w": f32(*shape)}
        graph = build("v", types, lambda b, x, y, z, w: b.add(b.mul(b.add(x, y), z), b.flip(w, dims=(0,))))
        text = print_program(check(graph, arrays_for(graph), SMALL))
        assert ("vector" in text) == bool(wide) and (not wide or f"in {wide} vector" in text)


@pytest.mark.parametrize("reduce", ["none", "add", "prod", "amax", "amin"])
@pytest.mark.parametrize("dim", [0, 1])
def test_scatter_of_many_updates(reduce: str, dim: int) -> None:
    """Many updates of each place, in the CPU's order."""
    rng = np.random.default_rng(1)
    shape = (90, 7) if dim == 0 else (7, 90)
    types = {"x": f32(12, 12), "i": Type(int64, shape), "s": f32(*shape)}
    graph = build("s", types, lambda b, x, i, s: b.scatter(x, i, s, dim=dim, reduce=reduce))
    arrays = [rng.normal(size=(12, 12)).astype(np.float32), rng.integers(0, 12, shape),
              rng.uniform(0.5, 1.5, shape).astype(np.float32)]  # fmt: skip
    program = check(graph, arrays, SMALL)
    cpu = run_program(schedule(graph, AVX512), [np.array(a) for a in arrays])
    np.testing.assert_array_equal(run_program(program, [np.array(a) for a in arrays])[0], cpu[0])


@pytest.mark.parametrize("accumulate", [True, False])
def test_gradient_of_an_embedding(accumulate: bool) -> None:
    """Rows of a table, some met often, some never; an update of a table in place."""
    rng = np.random.default_rng(2)
    types = {"t": f32(20, 6), "i": Type(int64, (5, 23)), "g": f32(5, 23, 6)}

    def body(b: Any, t: Any, i: Any, g: Any) -> Any:
        new = b.index_put(t, b.tanh(g), i, dims=(0,), accumulate=accumulate)
        return [b.sum(new, axes=(0, 1))], {t: new}

    graph = build("e", types, body)
    index = rng.integers(-20, 20, (5, 23)) // 3 * 3 % 20
    index[0] = -1
    arrays = [a.astype(np.float32) for a in (rng.normal(size=(20, 6)), rng.normal(size=(5, 23, 6)))]
    check(graph, [arrays[0], index, arrays[1]])


@pytest.mark.parametrize(
    "name", ["cumsum", "cumprod", "logcumsumexp", "cumargmax", "cumargmin", "recurrence"]
)
@pytest.mark.parametrize("shape", [(3, 700), (260,), (2, 513, 2)], ids=str)
def test_long_scans_are_shared_by_a_block(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    dim = int(np.argmax(shape))
    two = name == "recurrence"
    types = {"x": f32(*shape), **({"y": f32(*shape)} if two else {})}
    graph = build(name, types, lambda b, x, *y: getattr(b, name)(x, *y, dim=dim))
    arrays = [rng.uniform(0.9, 1.1, shape).astype(np.float32) for _ in types]
    if two:
        arrays[0] -= 0.3
    program = check(graph, arrays)
    assert "barrier" in print_program(program)
    if name.startswith("cumarg"):
        arrays[0] = rng.integers(0, 9, shape).astype(np.float32)
        check(graph, arrays)
        arrays[0][rng.random(shape) < 0.01] = np.nan
        check(graph, arrays)


def test_the_update_of_many_parameters_is_one_kernel() -> None:
    """Momentum, with gradients that come from elsewhere; sizes as they are in models."""
    sizes = [(70, 9), (70,), (33, 70), (33,), (4, 3, 3, 3), (1,), ()]
    types: dict[str, Type] = {}
    for k, shape in enumerate(sizes):
        types.update({f"p{k}": f32(*shape), f"m{k}": f32(*shape), f"g{k}": f32(*shape)})

    def body(b: Any, *v: Any) -> Any:
        updates = {}
        for p, m, g in zip(v[::3], v[1::3], v[2::3]):
            updates[m] = b.add(b.mul(m, b.const(0.9)), g)
            updates[p] = b.sub(p, b.mul(updates[m], b.const(0.1)))
        return [], updates

    graph = build("sgd", types, body)
    assert len(check(graph, arrays_for(graph)).kernels) == 1
    assert len(check(graph, arrays_for(graph), SMALL).kernels) > 1  # the larger ones fill it


def test_kernels_that_depend_on_one_another_stay_apart() -> None:
    def body(b: Any, x: Any, y: Any) -> Any:
        for _ in range(3):
            x = b.tanh(b.contract(x, x, spec="mk,kn->mn"))
        return x, b.sum(y, axes=(0,)), b.exp(b.flip(y, dims=(0,)))

    graph = build("chain", {"x": f32(20, 20), "y": f32(70)}, body)
    program = check(graph, arrays_for(graph))
    assert len(program.kernels) == 3
    assert any(" | " in k.comment for k in program.kernels)


@pytest.mark.parametrize("shape", [(3, 40), (2, 300), (5, 1000)], ids=str)
def test_kernels_of_one_block_that_follow_one_another_are_one(shape: tuple[int, int]) -> None:
    """Blocks of different sizes, with shuffles and with shared memory, in order by barriers."""

    def body(b: Any, x: Any) -> Any:
        rows = b.softmax(b.sum(x, axes=(1,)), dim=0)
        total = b.sum(b.mul(x, b.sum(b.mul(rows, rows), axes=(0,))), axes=(0, 1))
        return b.cumsum(b.mul(b.sum(x, axes=(0,)), total), dim=0)

    graph = optimize(build("chain", {"x": f32(*shape)}, body))
    program = check(graph, [np.abs(a) for a in arrays_for(graph)])
    grids = [prod(f.extent for f in (grid_of(k.body) or ([], []))[0]) for k in program.kernels]
    assert not any(a == b == 1 for a, b in itertools.pairwise(grids)), grids
    assert any("; " in k.comment for k in program.kernels)


# --- training steps and rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES, ids=["sm_75", "small", "large"])
def test_training_steps(machine: GpuModel) -> None:
    for graph in (mlp_adam(20, 3, 18), mlp_adam(), mlp_sgd(9, 20, 11, 5), rosenbrock()):
        check(graph, arrays_for(graph), machine)


@pytest.mark.parametrize("name", ["softmax", "columns", "log_softmax", "norm"])
@pytest.mark.parametrize("shape", [(6, 21), (3, 1500), (300, 3), (70, 40)], ids=str)
def test_rows_are_one_kernel_without_temporaries(name: str, shape: tuple[int, int]) -> None:
    graph = rows(*shape)[name]
    program = check(graph, arrays_for(graph))
    assert len(program.kernels) == 1 and program.arena_bytes == 0


@pytest.mark.parametrize("name", list(hazards()))
@pytest.mark.parametrize("machine", MACHINES, ids=["sm_75", "small", "large"])
def test_updates_in_place(name: str, machine: GpuModel) -> None:
    graph = hazards()[name]
    check(graph, arrays_for(graph), machine)


LONG = {
    "sum": lambda b, x: [b.sum(x, axes=(0, 1))],
    "rows": lambda b, x: [b.softmax(x, dim=1), b.sum(x, axes=(1,))],
    "columns": lambda b, x: [b.sum(b.relu(x), axes=(0,)), b.relu(x)],
    "var": lambda b, x: [b.var(x, axes=(0, 1))],
    "norm": lambda b, x: [b.softmax(x, dim=0), b.argmax(x, dim=0), b.amax(x, axes=(0, 1))],
}


@pytest.mark.parametrize("name", list(LONG))
@pytest.mark.parametrize("shape", [(5, 9001), (9001, 5), (2500, 33)], ids=str)
def test_few_long_rows_are_cut_in_chunks(name: str, shape: tuple[int, int]) -> None:
    graph = build(name, {"x": f32(*shape)}, LONG[name])
    check(graph, arrays_for(graph), LARGE)


MANY = {
    "warps": ("softmax", (301, 48)), "vectors": ("softmax", (301, 256)), "blocks": ("log_softmax", (75, 600)),
    "threads": ("softmax", (8449, 3)), "columns": ("columns", (9, 8449)),
}  # fmt: skip


@pytest.mark.parametrize("way", MANY)
def test_many_rows_loop_over_the_grid(way: str) -> None:
    """As many blocks as a GPU of one multiprocessor holds, and a loop; wide stores stay wide."""
    name, shape = MANY[way]
    graph = rows(*shape)[name]
    program = check(graph, arrays_for(graph), SMALL)
    assert "for turn in" in (text := print_program(program)), text
    loops, _ = grid_of(program.kernels[0].body) or ([], [])
    assert prod(f.extent for f in loops) <= 16
    assert way not in ("vectors", "blocks") or "vector" in text.split("for turn")[-1], text


# --- windows ------------------------------------------------------------------------------------------------

PADDED = {
    "same": {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
    "uneven": {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2)},
    "groups": {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2},
}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("machine", MACHINES, ids=["sm_75", "small", "large"])
def test_padding_is_not_stored(name: str, machine: GpuModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros around a window are met where elements are fetched: by tiles, by threads and by warps."""
    attrs = PADDED[name]
    types = {"x": f32(3, 4, 9, 8), "w": f32(6, 4 // attrs.get("groups", 1), 3, 3)}

    def body(b: Any, x: Any, w: Any) -> Any:
        y = b.convolution(b.relu(x), w, **attrs)
        return [y, b.convolution_weight_grad(x, y, taps=(3, 3), **attrs)]

    graph = optimize(build("c", types, body))
    assert "pad" in str(graph)
    for small in (0, 1 << 30):
        monkeypatch.setattr(contract_tiles, "SMALL", small)
        program = check(graph, arrays_for(graph), machine)
        assert not any("pad" in k.comment for k in program.kernels), print_program(program)


# --- control flow -------------------------------------------------------------------------------------------

CONTROL = [
    (native.test_an_lstm_has_two_kernels_a_step_and_packs_its_weights_before, (7, 5, 17)),
    (native.test_a_carry_is_updated_in_place_where_only_its_own_place_is_read, ()),
    (native.test_a_carry_that_other_places_are_read_of_changes_places_with_its_successor, (7, True)),
    (native.test_values_passed_from_name_to_name_are_not_copied, (3,)),
    (native.test_one_value_for_two_carries_and_a_row, ()),
    (native.test_carries_that_become_inputs, ()),
    (native.test_a_parameter_trained_by_a_scan_is_written_back, ()),
    (native.test_a_result_scattered_into_a_carry_stays_where_it_is, ()),
    (native.test_while_stops_by_its_test_or_at_most, (100,)),
    (native.test_while_with_values_that_change_places_gives_them_wherever_they_are, (3,)),
    (native.test_cond_runs_one_branch, ()),
    (native.test_scan_in_scan_reads_slices_of_slices, ()),
    (native.test_cond_and_while_in_scan, ()),
    (native.test_a_slice_may_be_a_condition, ()),
    (native.test_graph_text_with_regions_runs_natively, ()),
]


@pytest.mark.parametrize(("graphs_of", "args"), CONTROL, ids=[f.__name__[5:30] for f, _ in CONTROL])
def test_control_flow(graphs_of: Any, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that the CPU's tests of control flow check."""
    seen: list[str] = []

    def instead(graph: Graph, arrays: list[np.ndarray] | None = None, **_: Any) -> LoopProgram:
        arrays = control_draw(graph) if arrays is None else arrays
        for machine in MACHINES:
            check(graph, [np.asarray(a) for a in arrays], machine)
        seen.append(graph.name)
        return schedule(graph, AVX512)  # what those tests then look at

    monkeypatch.setattr(native, "check", instead)
    graphs_of(*args)
    assert seen


# --- the checks ---------------------------------------------------------------------------------------------

RACE = """
program "race" {{
  input x: f32[64]
  output y: f32[64]
  returns y
  kernel "k" "" flops=0 bytes=0 {{
    for b in 2 block {{
      alloc shared s: f32[32]
      for t in 32 thread {{
        s[t] = x[32*b + t]
        {0}
        y[32*b + t] = s[{1}]
      }}
    }}
  }}
}}
"""


def test_the_interpreter_finds_a_missing_barrier() -> None:
    x = np.arange(64, dtype=np.float32)
    program = parse_program(RACE.format("barrier", "31 - t"))
    verify_program(program)
    (y,) = run_program(program, [x])
    np.testing.assert_array_equal(y, x.reshape(2, 32)[:, ::-1].reshape(-1))
    run_program(parse_program(RACE.format("", "t")), [x])  # its own element: no race
    with pytest.raises(VerifyError, match="thread 31 of block 0 touched with no barrier"):
        run_program(parse_program(RACE.format("", "31 - t")), [x])


@pytest.mark.parametrize("line", ["y[b] = x[32*b + t]", "y[0] = x[t] if t == 0", "y[(32*b + t) % 33] = x[t]"])
def test_the_interpreter_finds_two_writers(line: str) -> None:
    text = RACE.format("barrier", "t").replace("y[32*b + t] = s[t]", line)
    with pytest.raises(VerifyError, match="writes element"):
        run_program(parse_program(text), [np.zeros(64, np.float32)])


def test_the_interpreter_finds_a_read_of_what_another_block_writes() -> None:
    text = RACE.format("barrier", "t").replace("s[t] = x[32*b + t]", "s[t] = y[63 - 32*b - t]")
    with pytest.raises(VerifyError, match="block"):
        run_program(parse_program(text), [np.zeros(64, np.float32)])


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("barrier", "if t < 5 { barrier }", "not all threads"),
        ("for b in 2 block {", "for b in 2 serial {", "outermost"),
        ("for t in 32 thread {", "for t in 2048 thread {", "1 to 1024"),
        ("s[t] = x[32*b + t]", "alloc shared r: f32[4]\ns[t] = x[32*b + t]", "directly in the block"),
        ("for t in 32 thread {", "for t in 32 thread { }\nfor t in 16 thread {", "does not fit"),
    ],
)
def test_the_form_of_kernels_is_verified(old: str, new: str, message: str) -> None:
    text = RACE.format("barrier", "t").replace(old, new, 1)
    with pytest.raises(VerifyError, match=message):
        verify_program(parse_program(text))


def test_warp_reduce() -> None:
    text = RACE.format("barrier", "t").replace("s[t]\n", "warp.maximum(s[t])\n")
    program = parse_program(text)
    verify_program(program)
    assert print_program(parse_program(print_program(program))) == print_program(program)
    (y,) = run_program(program, [np.arange(64, dtype=np.float32)])
    np.testing.assert_array_equal(y, np.repeat([31, 63], 32).astype(np.float32))
    apart = text.replace("y[32*b", "if t > 3 { y[32*b").replace("s[t])\n", "s[t]) }\n")
    with pytest.raises(VerifyError, match="some threads of a warp"):
        run_program(parse_program(apart), [np.zeros(64, np.float32)])
