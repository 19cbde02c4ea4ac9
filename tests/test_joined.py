"""Concatenations of what contractions compute are written in place; and values are stored once where their
readers compute cheap functions of them again."""

from __future__ import annotations

from typing import Any

import pytest
from control_tools import MACHINES, THREADED, build, check, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from tracegrad.backends.machine import AVX512
from tracegrad.backends.schedule import schedule
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.loops import Kernel, LoopProgram, Store, statements


def stored(kernel: Kernel) -> set[str]:
    stores = [s.buffer for s in statements(kernel.body) if isinstance(s, Store)]
    return {b.name for b in stores if b.space != "register"}


def heads(B: int, H: int, T: int, D: int, parts: int = 3) -> Graph:
    """Products of heads, side by side in rows: the gradient of what makes queries, keys and values."""

    def body(b: Any, w: Value, x: Value, *more: Value) -> Value:
        made = [b.matmul(x, m) for m in more[:parts]]
        rows = [b.reshape(b.permute(m, dims=(0, 2, 1, 3)), shape=(B, T, H * D)) for m in made]
        return b.matmul(b.concat(*rows, dim=2), w)

    types = {"w": f32(parts * H * D, 5), "x": f32(B, H, T, T)}
    return build({**types, **{f"m{i}": f32(B, H, T, D) for i in range(parts)}}, body)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("B", "H", "T", "D"), [(2, 3, 17, 16), (2, 2, 24, 8)])
def test_parts_are_written_in_place(B: int, H: int, T: int, D: int, machine: Any) -> None:
    program = check(heads(B, H, T, D), machine=machine, native=machine is AVX512)
    assert not any("concat" in k.comment or "reshape" in k.comment for k in program.kernels)
    assert sum("concat" in stored(k) for k in program.kernels) in (1, 3)  # or the three are one kernel


def test_a_part_that_others_read_is_stored_twice() -> None:
    def body(b: Any, x: Value, y: Value, w: Value) -> Any:
        p, q = b.matmul(x, w), b.matmul(y, w)
        return b.concat(p, q, dim=0), b.relu(p)

    check(build({"x": f32(20, 24), "y": f32(8, 24), "w": f32(24, 32)}, body), machine=THREADED)


def test_parts_that_no_contraction_computes_are_not_waited_for() -> None:
    def body(b: Any, x: Value, y: Value, w: Value) -> Any:
        return b.concat(b.matmul(x, w), b.exp(y), dim=0)

    program = check(build({"x": f32(20, 24), "y": f32(20, 32), "w": f32(24, 32)}, body))
    assert any("concat" in k.comment for k in program.kernels)


def test_parts_whose_lanes_would_be_apart_are_not_written_in_place() -> None:
    def body(b: Any, x: Value, y: Value, w: Value) -> Any:
        p, q = (b.exp(b.matmul(v, w)) for v in (x, y))
        return b.concat(b.permute(p, dims=(1, 0)), b.permute(q, dims=(1, 0)), dim=1)

    program = check(build({"x": f32(40, 24), "y": f32(40, 24), "w": f32(24, 32)}, body))
    assert any("concat" in k.comment for k in program.kernels)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_shape_is_right(data: st.DataObject) -> None:
    B, H = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    T, D = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 18))
    machine = data.draw(st.sampled_from(MACHINES))
    native = machine is AVX512 and T % 3 == 0
    check(heads(B, H, T, D, data.draw(st.integers(1, 4))), machine=machine, native=native)


def norm_backward() -> LoopProgram:
    """What reads the gradient of a layer norm's result: three sums and products of it."""

    def body(b: Any, g: Value, w: Value, scale: Value, x: Value) -> Any:
        d = b.matmul(g, w)
        scaled = b.mul(d, scale)
        centred = b.sub(scaled, b.mul(x, b.mean(b.mul(scaled, x), axes=(1,), keepdim=True)))
        return centred, b.sum(b.mul(d, x), axes=(0,)), b.sum(d, axes=(0,))

    types = {"g": f32(64, 48), "w": f32(48, 32), "scale": f32(32), "x": f32(64, 32)}
    graph = build(types, body)
    check(graph)
    return schedule(graph, AVX512)


def test_cheap_functions_of_a_value_that_several_read_are_not_stored_beside_it() -> None:
    program = norm_backward()
    (product,) = [k for k in program.kernels if "contract" in k.comment]
    assert len(stored(product) - {b.name for b in program.outputs}) == 1 and "mul" not in product.comment


def test_a_function_that_is_all_that_is_read_is_stored_itself() -> None:
    def body(b: Any, g: Value, w: Value, scale: Value) -> Any:
        scaled = b.mul(b.matmul(g, w), scale)
        return b.sum(b.mul(scaled, scaled), axes=(1,))

    program = check(build({"g": f32(64, 48), "w": f32(48, 32), "scale": f32(32)}, body))
    (product,) = [k for k in program.kernels if "contract" in k.comment]
    assert "mul" in product.comment
