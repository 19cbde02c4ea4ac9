"""Convolutions whose sums are cut into blocks, with partial sums kept in between, so that what rows of
windows read again stays in the first cache. Held against the interpreter, for one thread and two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tracegrad.backends import schedule as scheduling
from tracegrad.backends.machine import AVX2, AVX512, MachineModel
from tracegrad.backends.schedule import schedule
from tracegrad.backends.schedule.contract import ContractGroup
from tracegrad.backends.schedule.plan import Planner
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import float32
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered, host_machine

#: (batch, channels, height, width), output channels, taps
Case = tuple[tuple[int, int, int, int], int, tuple[int, int]]
#: caches so small that blocks pay with few channels
TINY_L1 = 2 << 10


@pytest.fixture(autouse=True, scope="module")
def windows_stay() -> Iterator[None]:
    """Windows of small images are cheaper to write out; here they are met where they are."""
    with mock.patch.multiple(scheduling.plan, COLUMN=1e3, FAR_COLUMN=1e3):
        yield


def convolution(case: Case, stride: int, padding: int) -> Graph:
    """A convolution and both its gradients."""
    shape, outs, taps = case
    graph = Graph("convolution")
    b = Builder(graph)
    attrs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1)}
    x = graph.add_input(Type(float32, shape))
    w = graph.add_input(Type(float32, (outs, shape[1], *taps)))
    out = b.convolution(x, w, **attrs)
    g = graph.add_input(out.type)
    graph.outputs = [
        b.relu(out),
        b.convolution_input_grad(g, w, size=shape[2:], **attrs),
        b.convolution_weight_grad(x, g, taps=taps, **attrs),
    ]
    return graph


def blocked(graph: Graph, machine: MachineModel) -> int:
    """How many contractions over windows are cut into blocks."""
    plan = Planner(optimize(graph), machine)
    plan.run()
    groups = [g for g in plan.groups if isinstance(g, ContractGroup)]
    cut = [g for g in groups if not g.strategy.nc and g.strategy.kc < np.prod([d.size for d in g.inner])]
    return sum(g.windows[1 if g.strategy.swap else 0] for g in cut)


def data(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs]


def native(graph: Graph, arrays: list[np.ndarray], machine: MachineModel) -> list[np.ndarray]:
    buffers = [copy_of(a, v.type.dtype) for a, v in zip(arrays, graph.inputs)]
    return [m.array.copy() for m in Executable(Lowered(graph, machine))(buffers)]


def close(found: list[np.ndarray], want: list[np.ndarray]) -> None:
    for a, e in zip(found, want, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("machine", [AVX2, AVX512], ids=["avx2", "avx512"])
def test_loops_of_blocks(machine: MachineModel, threads: int) -> None:
    """Rows and columns that tiles don't divide."""
    machine = replace(machine, threads=threads, parallel_cycles=10, l1_bytes=TINY_L1)
    graph = convolution(((2, 12, 2, 17), 24, (3, 3)), 1, 1)
    del graph.outputs[1:]
    assert blocked(graph, machine)
    arrays = data(graph)
    program = schedule(optimize(graph), machine)
    verify_program(program)
    close(run_program(program, arrays), list(evaluate(graph, arrays)[0]))


SIZES = st.tuples(st.integers(0, 3), st.integers(1, 24), st.integers(1, 8), st.integers(1, 20))
CASES = st.tuples(SIZES, st.integers(1, 40), st.tuples(st.integers(1, 3), st.integers(1, 3)))


@settings(max_examples=25)
@given(CASES, st.integers(1, 2), st.integers(0, 2))
@example(((2, 12, 3, 17), 32, (3, 3)), 1, 1)
@example(((2, 16, 8, 20), 32, (3, 3)), 1, 1)
@example(((1, 20, 7, 19), 35, (3, 3)), 1, 1)
@example(((2, 16, 40, 18), 33, (3, 3)), 1, 1)
@example(((3, 24, 1, 9), 17, (1, 3)), 2, 0)
def test_native_agrees_for_any_number_of_threads(case: Case, stride: int, padding: int) -> None:
    (_, _, height, width), _, taps = case
    if height + 2 * padding < taps[0] or width + 2 * padding < taps[1]:
        return
    graph = convolution(case, stride, padding)
    arrays = data(graph)
    small = replace(host_machine(), parallel_cycles=100, l1_bytes=TINY_L1, l2_bytes=64 << 10)
    one, two = (native(graph, arrays, replace(small, threads=n)) for n in (1, 2))
    for a, c in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, c)
    close(one, list(evaluate(graph, arrays)[0]))
