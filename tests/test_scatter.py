"""Loops of scatters: order where places meet, vectors and threads only where they can't."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tracegrad as tg
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import F32, I64, build, f32
from test_schedule import AVX512, MACHINES, check
from tracegrad.backends.machine import MachineModel
from tracegrad.backends.schedule import schedule
from tracegrad.ir import dtypes
from tracegrad.ir.graph import Graph
from tracegrad.ir.loop_text import print_program
from tracegrad.ir.types import Type

TWO, THREE = (replace(AVX512, threads=n, parallel_cycles=50) for n in (2, 3))


def table(rows: int, width: int, count: int, base: str, add: bool) -> Graph:
    """Rows of values written to rows of a table, as in an embedding's gradient."""
    types = {"at": Type(I64, (count,)), "new": f32(count, width), "old": f32(rows, width)}

    def body(b, at, new, old):
        if base == "input":
            made = b.index_put(old, b.neg(new), at, dims=(0,), accumulate=add)
            return [], {old: made}
        start = b.full(shape=(rows, width), value=0.5, dtype=F32) if base == "constant" else b.exp(old)
        return [b.index_put(start, b.neg(new), at, dims=(0,), accumulate=add)], {}

    return build("t", types, body)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([3, 16, 64, 70, 80]),
    count=st.integers(0, 40),
    base=st.sampled_from(["constant", "computed", "input"]),
    add=st.booleans(),
    machine=st.sampled_from([*MACHINES, TWO, THREE]),
    seed=st.integers(0, 99),
)
def test_rows_of_a_table(
    rows: int, width: int, count: int, base: str, add: bool, machine: MachineModel, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    graph = table(rows, width, count, base, add)
    arrays = [
        rng.integers(-rows, rows, count),
        rng.standard_normal((count, width), np.float32),
        rng.standard_normal((rows, width), np.float32),
    ]
    check(graph, arrays, machine)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)),
    dim=st.integers(0, 2),
    reduce=st.sampled_from(["none", "add", "amax"]),
    machine=st.sampled_from([*MACHINES, TWO]),
    seed=st.integers(0, 99),
)
def test_scatter_along_any_dimension(
    shape: tuple[int, ...], dim: int, reduce: str, machine: MachineModel, seed: int
) -> None:
    """The other dimensions move by themselves, and threads may share the first of them."""
    rng = np.random.default_rng(seed)
    grid = tuple(7 if d == dim else n for d, n in enumerate(shape))
    types = {"x": f32(*shape), "i": Type(I64, grid), "s": f32(*grid)}
    graph = build("t", types, lambda b, x, i, s: b.scatter(b.exp(x), i, s, dim=dim, reduce=reduce))
    arrays = [
        rng.standard_normal(shape, np.float32),
        rng.integers(-shape[dim], shape[dim], grid),
        rng.standard_normal(grid, np.float32),
    ]
    check(graph, arrays, machine)


def test_threads_take_rows_of_a_table() -> None:
    """One thread fills and updates a row; nothing is shared that is as cheap as looking at the indices."""
    text = print_program(schedule(table(10, 64, 40, "constant", True), THREE))
    assert text.count("parallel") == 1 and "for t in 3 parallel" in text
    assert "if 4*t + r < 10" in text and "minimum(4*t + 4, 10)" in text
    assert "parallel" not in print_program(schedule(table(10, 3, 40, "input", True), THREE))


@pytest.mark.parametrize("base", ["computed", "input"])
def test_a_base_that_is_no_constant_is_there_before(base: str) -> None:
    text = print_program(schedule(table(10, 64, 40, base, True), TWO))
    assert ("exp(" in text) == (base == "computed")
    assert "for t in 2 parallel" in text if base == "input" else "for chunk in 40 parallel" in text


def test_one_and_two_threads_agree() -> None:
    """Natively, on a table that is worth sharing; its last row is of a shorter task."""
    tg.manual_seed(0)
    weight, index = tg.randn(1999, 70), tg.randint(1999, (3000,))
    rows = tg.randn(3000, 70)
    before, made = tg.get_num_threads(), []
    try:
        for threads in (1, 2):
            tg.set_num_threads(threads)
            step = tg.compile(lambda w, i, r: tg.zeros(1999, 70).index_put((i,), r * 2, True) + w)
            made.append(step(weight, index, rows).numpy())
            assert ("parallel" in str(step.lower(weight, index, rows).loops)) == (threads == 2)
    finally:
        tg.set_num_threads(before)
    np.testing.assert_array_equal(made[0], made[1])
    want = weight.numpy().astype(np.float64)
    np.add.at(want, index.numpy(), rows.numpy() * 2.0)
    np.testing.assert_allclose(made[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", ["constant", "counted", "pairs"])
@pytest.mark.parametrize("machine", [*MACHINES, TWO], ids=["avx512", "avx2", "small", "threads", "two"])
def test_rows_that_are_known(index: str, machine: MachineModel) -> None:
    """Indices that are no data: all the same, counted up, or with a second one beside them."""

    def body(b, new):
        base = b.full(shape=(40, 64), value=0.0, dtype=F32)
        at = b.full(shape=(40,), value=3, dtype=dtypes.int64)
        if index == "counted":
            at = b.iota(shape=(40,), dim=0, dtype=dtypes.int64)
        if index == "pairs":
            base = b.full(shape=(40, 2, 64), value=0.0, dtype=F32)
            one = b.full(shape=(40,), value=1, dtype=dtypes.int64)
            return [b.index_put(base, new, at, one, dims=(0, 1), accumulate=True)], {}
        return [b.index_put(base, new, at, dims=(0,), accumulate=True)], {}

    check(build("t", {"new": f32(40, 64)}, body), [np.ones((40, 64), np.float32)], machine)
