"""How lanes meet memory: short strides, repeated and halved indices without gathers; concatenations written
part by part; steps of recurrent loops in two kernels. Results on all targets, and the shape of the code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from codegen_tools import targets
from schedule_graphs import arrays_for, build, f32
from tracegrad.backends.llvm.codegen_program import generate
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.machine import AVX512
from tracegrad.backends.schedule import schedule
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_text import print_program
from tracegrad.ir.loops import For, Kernel, LoopProgram, Repeat, Store, statements

TARGETS = targets()


def agree(graph: Graph) -> LoopProgram:
    """Schedules for vectors of 16 and runs natively on every target."""
    arrays = arrays_for(graph)
    want, _ = evaluate(graph, arrays)
    program = schedule(graph, AVX512)
    for target in TARGETS.values():
        got = compile_program(program, target, use_cache=False).call([np.array(a) for a in arrays])
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, 2e-6, 1e-6)
    return program


def gathers(program: LoopProgram) -> int:
    return generate(program, TARGETS["host"]).count("= call <16 x float> @llvm.masked.gather")


def vector_loops(program: LoopProgram) -> list[int]:
    return [s.extent for k in program.kernels for s in statements(k.body)
            if isinstance(s, For) and s.kind == "vector"]  # fmt: skip


@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("columns", [7, 16, 25, 96, 101])
def test_short_strides_are_loads_and_shuffles(step: int, columns: int) -> None:
    """Also in masked vectors, which must not read past the last element that is asked for."""

    def body(b: Any, x: Value) -> Value:
        return b.relu(b.slice(x, start=(0, step - 1), stop=(5, columns), step=(1, step)))

    assert gathers(agree(build("t", {"x": f32(5, columns)}, body))) == 0


@pytest.mark.parametrize("n, times", [(32, 2), (8, 4), (3, 2), (20, 2), (4, 4), (17, 2)])
def test_repeated_elements_are_loaded_once(n: int, times: int) -> None:
    def body(b: Any, x: Value, y: Value) -> Value:
        wide = b.expand(b.reshape(x, shape=(5, n, 1)), shape=(5, n, times))
        return b.add(b.reshape(wide, shape=(5, n * times)), y)

    program = agree(build("t", {"x": f32(5, n), "y": f32(5, n * times)}, body))
    if n * times % 16 == 0:
        assert gathers(program) == 0
        assert set(vector_loops(program)) == {16}


@pytest.mark.parametrize("h, w", [(8, 8), (4, 4), (6, 32), (2, 6)])
def test_images_twice_as_wide_and_high(h: int, w: int) -> None:
    """Gradients of pools: quotients and remainders in both directions, under a reduction."""

    def body(b: Any, x: Value, y: Value) -> list[Value]:
        wide = b.expand(b.reshape(x, shape=(3, h, 1, w, 1)), shape=(3, h, 2, w, 2))
        made = b.mul(b.reshape(wide, shape=(3, 2 * h, 2 * w)), y)
        return [made, b.sum(made, axes=(1, 2))]

    program = agree(build("t", {"x": f32(3, h, w), "y": f32(3, 2 * h, 2 * w)}, body))
    if 2 * w % 8 == 0:
        assert gathers(program) == 0


@pytest.mark.parametrize("shape, dim", [((6, 32), 1), ((5, 20), 1), ((4, 3, 16), 1), ((40,), 0)])
def test_equal_parts_are_written_by_one_loop(shape: tuple[int, ...], dim: int) -> None:
    """No part is computed for the places of the others."""

    def body(b: Any, x: Value, y: Value) -> list[Value]:
        e = b.exp(x)
        return [b.concat(e, b.mul(e, y), b.tanh(y), dim=dim), b.mul(e, e)]

    program = agree(build("t", {"x": f32(*shape), "y": f32(*shape)}, body))
    (kernel,) = program.kernels
    assert "select" not in print_program(program)
    stores = [s for s in statements(kernel.body) if isinstance(s, Store)]
    assert len(stores) % 4 == 0  # three parts and the other output, in every block


def test_a_concatenation_that_others_read() -> None:
    """Parts that are also used alone, before and after it is stored."""

    def body(b: Any, x: Value, w: Value) -> list[Value]:
        e = b.exp(x)
        t = b.tanh(x)
        both = b.concat(e, t, dim=1)
        return [b.matmul(both, w), b.sum(both, axes=(0,)), b.add(e, t)]

    agree(build("t", {"x": f32(24, 32), "w": f32(64, 20)}, body))


def test_rows_of_a_masked_softmax_are_read_once_for_their_maximum() -> None:
    """And a row with nothing in it is zeros."""

    def body(b: Any, x: Value) -> Value:
        return b.safe_softmax(x, dim=-1)

    program = schedule(build("t", {"x": f32(6, 64)}, body), AVX512)
    (kernel,) = program.kernels
    sweeps = [s for s in statements(kernel.body) if isinstance(s, For) and s.var.name.startswith("rv")]
    assert len(sweeps) == 3
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    x[2] = -np.inf
    x[3, 10:] = -np.inf
    (got,) = compile_program(program, use_cache=False).call([x])
    assert not got[2].any() and not got[3, 10:].any()
    np.testing.assert_allclose(got.sum(1), [1, 1, 0, 1, 1, 1], 1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_steps_are_two_kernels(kind: str) -> None:
    """Forward and backward: a product, and everything else."""
    tg.manual_seed(0)
    layer = getattr(tg.nn, kind)(16, 32)
    x = tg.randn(7, 24, 16)

    def step() -> tuple[tg.Tensor, ...]:
        layer.zero_grad()
        loss = layer(x)[0].square().mean()
        loss.backward()
        return loss, *[p.grad for p in layer.parameters()]

    steps = schedule(tg.compile(step).lower().optimized, AVX512).steps
    loops = [s for s in steps if isinstance(s, Repeat)]
    assert [s.reverse for s in loops] == [False, True]
    for s in loops:
        assert len(s.body) == 2 and all(isinstance(k, Kernel) for k in s.body)
