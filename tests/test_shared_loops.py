"""Loops whose rows never meet become one kernel that threads share; loops whose rows meet do not."""

from __future__ import annotations

from typing import Any

import pytest
from control_tools import THREADED, build, check, f32, scan
from hypothesis import given, settings
from hypothesis import strategies as st
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.loops import For, If, LoopProgram, Repeat, statements


def shared(program: LoopProgram) -> list[list[Any]]:
    """The bodies of kernels that are whole loops: what stands in their parallel loop."""
    return [k.body[0].body for k in program.kernels if " times " in k.comment and isinstance(k.body[0], For)]


def gated(T: int, B: int, H: int, reverse: bool = False, change: Any = None) -> Graph:
    """A recurrent layer of two states; `change(b, h)` is done to the first one first."""

    def body(b: Any, h: Value, c: Value, x: Value, w: Value) -> Any:
        z = b.add(b.matmul(h if change is None else change(b, h), w), x)
        gate = b.sigmoid(b.slice(z, start=(0, 0), stop=(B, H), step=(1, 1)))
        new = b.tanh(b.slice(z, start=(0, H), stop=(B, 2 * H), step=(1, 1)))
        c = b.add(b.mul(gate, c), new)
        h = b.mul(gate, b.tanh(c))
        return h, c, b.mul(h, gate)

    types = {"x": f32(T, B, 2 * H), "h": f32(B, H), "c": f32(B, H), "w": f32(H, 2 * H)}
    return build(types, lambda b, x, h, c, w: scan(b, [h, c], [x], [w], body, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("T", "B", "H"), [(2, 32, 16), (7, 60, 16), (5, 63, 16), (4, 30, 50)])
def test_rows_of_a_recurrent_layer_are_shared(T: int, B: int, H: int, reverse: bool) -> None:
    program = check(gated(T, B, H, reverse), machine=THREADED)
    assert not any(isinstance(s, Repeat) for s in program.steps)
    (body,) = shared(program)
    inner = body[0].body[0] if isinstance(body[0], If) else body[0]
    assert isinstance(inner, For) and inner.extent == T and inner.kind == "serial"
    assert not any(isinstance(s, For) and s.kind == "parallel" for s in statements(body))


MEETING = {
    "the mean of all rows": lambda b, h: b.add(
        h, b.expand(b.reshape(b.mean(h, axes=(0,)), shape=(1, h.type.shape[1])), shape=h.type.shape)
    ),
    "rows in the other order": lambda b, h: b.flip(h, dims=(0,)),
    "the row before": lambda b, h: b.concat(
        b.slice(h, start=(1, 0), stop=h.type.shape, step=(1, 1)),
        b.slice(h, start=(0, 0), stop=(1, h.type.shape[1]), step=(1, 1)),
        dim=0,
    ),
    "the first row": lambda b, h: b.expand(
        b.slice(h, start=(0, 0), stop=(1, h.type.shape[1]), step=(1, 1)), shape=h.type.shape
    ),
}


@pytest.mark.parametrize("change", MEETING.values(), ids=list(MEETING))
def test_rows_that_meet_are_not(change: Any) -> None:
    program = check(gated(4, 24, 16, change=change), machine=THREADED)
    assert not shared(program) and any(isinstance(s, Repeat) for s in program.steps)


def test_a_loop_in_a_loop_is_shared_where_its_rows_are_apart() -> None:
    def inner(b: Any, h: Value, x: Value) -> Any:
        return b.tanh(b.add(b.mul(h, x), x)), h

    def outer(b: Any, h: Value, x: Value) -> Any:
        h, ys = scan(b, [h], [x], [], inner)
        return h, ys

    graph = build({"h": f32(16, 40), "x": f32(3, 5, 16, 40)}, lambda b, h, x: scan(b, [h], [x], [], outer))
    check(graph, machine=THREADED)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_shape_is_right(data: st.DataObject) -> None:
    T, B, H = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 24))
    change = data.draw(st.sampled_from([None, None, *MEETING.values()]))
    check(gated(T, B, H, data.draw(st.booleans()), change), machine=THREADED, native=B % 2 == 0)
