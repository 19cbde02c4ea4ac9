"""Kernels that hand on blocks become one loop over blocks; kernels whose blocks meet do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from codegen_tools import program
from control_tools import THREADED, build, check, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from tracegrad.backends.schedule import schedule
from tracegrad.backends.schedule.blockwise import in_blocks
from tracegrad.backends.schedule.ratio import Ratio
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.loops import Alloc, For, Kernel, LoopProgram, Stmt, statements

#: a first cache so small that everything is worth keeping in blocks
TIGHT = replace(THREADED, threads=2, l1_bytes=64)


def softmax(b: Any, x: Value) -> Value:
    e = b.exp(b.sub(x, b.amax(x, axes=(x.type.rank - 1,), keepdim=True)))
    return b.div(e, b.sum(e, axes=(x.type.rank - 1,), keepdim=True))


def chain(B: int, H: int, T: int, D: int, between: Callable[..., Value] | None = None) -> Graph:
    """Attention; `between(b, scores)` is done to the scores first."""

    def body(b: Any, q: Value, k: Value, v: Value) -> Value:
        scores = b.matmul(q, b.permute(k, dims=(0, 1, 3, 2)))
        p = softmax(b, scores if between is None else between(b, scores))
        return b.matmul(p, v)

    return build({n: f32(B, H, T, D) for n in "qkv"}, body)


def loops(program: LoopProgram) -> list[For]:
    return [s for k in program.kernels for s in k.body if isinstance(s, For)]


def scratch(body: list[Stmt]) -> dict[str, int]:
    """Elements of local buffers, by name."""
    return {s.buffer.name: s.buffer.size for s in statements(body) if isinstance(s, Alloc)}


@pytest.mark.parametrize(("B", "H", "T", "D"), [(4, 2, 32, 8), (2, 2, 33, 5), (2, 1, 40, 16)])
def test_attention_is_one_loop_and_its_scores_are_scratch(B: int, H: int, T: int, D: int) -> None:
    program = check(chain(B, H, T, D), machine=TIGHT)
    (kernel,) = program.kernels
    (loop,) = kernel.body
    assert isinstance(loop, For) and loop.kind == "parallel"
    assert not any(isinstance(s, For) and s.kind == "parallel" for s in statements(loop.body))
    (scores,) = [n for name, n in scratch(loop.body).items() if name.startswith("contract")]
    assert scores <= T * T and scores % T == 0
    assert not any(b.size >= B * H * T * T for b in program.temps)


def test_scores_that_are_read_later_are_stored_whole() -> None:
    def body(b: Any, q: Value, k: Value, v: Value) -> Any:
        p = softmax(b, b.matmul(q, b.permute(k, dims=(0, 2, 1))))
        return b.matmul(p, v), p

    program = check(build({n: f32(4, 32, 8) for n in "qkv"}, body), machine=TIGHT)
    (kernel,) = program.kernels
    assert program.outputs[1].size == 4 * 32 * 32
    assert isinstance(kernel.body[0], For) and kernel.body[0].extent == 4


def middle(b: Any, s: Value) -> Value:
    return b.sub(s, b.expand(b.mean(s, axes=(0,), keepdim=True), shape=s.type.shape))


MEETING = {
    "the mean of all blocks": middle,
    "blocks in the other order": lambda b, s: b.flip(s, dims=(0,)),
    "the next block": lambda b, s: b.concat(
        b.slice(s, start=(1, 0, 0, 0), stop=s.type.shape, step=(1,) * 4),
        b.slice(s, start=(0,) * 4, stop=(1, *s.type.shape[1:]), step=(1,) * 4),
        dim=0,
    ),
}


@pytest.mark.parametrize("between", MEETING.values(), ids=list(MEETING))
def test_blocks_that_meet_are_apart(between: Any) -> None:
    program = check(chain(3, 2, 32, 4, between), machine=TIGHT)
    assert len(program.kernels) > 1


def test_what_fits_the_first_cache_or_has_too_few_blocks_for_the_threads_stays_as_it_is() -> None:
    graph = chain(4, 1, 40, 8)
    assert len(schedule(graph, replace(TIGHT, l1_bytes=1 << 20)).kernels) > 1
    assert len(schedule(graph, TIGHT).kernels) == 1
    wide = chain(6, 1, 64, 32)
    assert len(schedule(wide, TIGHT).kernels) == 1
    assert len(schedule(wide, replace(TIGHT, threads=4)).kernels) > 1


def test_products_of_two_levels_are_cut_twice() -> None:
    """Whole blocks leave the first cache, so the heads in them are blocks of their own."""
    machine = replace(THREADED, threads=2, l1_bytes=4 << 10)
    program = check(chain(2, 4, 24, 8), machine=machine)
    (kernel,) = program.kernels
    outer = kernel.body[0]
    assert isinstance(outer, For) and outer.extent == 8
    program = check(_heads_inside(2, 4, 24, 8), machine=machine)
    (kernel,) = [k for k in program.kernels if "exp" in k.comment]
    outer = kernel.body[0]
    assert isinstance(outer, For) and outer.extent == 2
    inner = [s for s in outer.body if isinstance(s, For)]
    assert [s.extent for s in inner] == [4] and 24 * 24 in scratch(inner).values()


def _heads_inside(B: int, H: int, T: int, D: int) -> Graph:
    """The heads are side by side in rows, as a layer that makes all of them at once leaves them."""

    def body(b: Any, q: Value, k: Value, v: Value) -> Value:
        q, k, v = (b.permute(b.reshape(x, shape=(B, T, H, D)), dims=(0, 2, 1, 3)) for x in (q, k, v))
        p = softmax(b, b.matmul(q, b.permute(k, dims=(0, 1, 3, 2))))
        return b.reshape(b.permute(b.matmul(p, v), dims=(0, 2, 1, 3)), shape=(B, T, H * D))

    return build({n: f32(B, T, H * D) for n in "qkv"}, body)


CHAINED = """
  input x: f32[512,16]
  input at: i64[512]
  output out: f32[512]
  arena a: f32[512,16] @ 0
  returns out
  arena_bytes 32768
  kernel { for i in 512 parallel { for l in 16 vector { a[16*i + l] = x[16*i + l] * f32:2.0 } } }
  kernel { for j in 512 KIND { STORE } }
"""


@pytest.mark.parametrize(
    ("kind", "store", "one"),
    [
        ("parallel", "out[j] = a[16*j] + f32:1.0", True),
        ("serial", "out[j] = a[16*j] + f32:1.0", True),
        ("serial", "out[0] = out[0] + a[16*j]", False),
        ("serial", "out[at[j]] = a[16*j]", False),
        ("serial", "out[j] = a[16*j + 16]", False),
    ],
)
def test_a_loop_whose_order_matters_is_not_shared_by_threads(kind: str, store: str, one: bool) -> None:
    steps = in_blocks(program(CHAINED.replace("KIND", kind).replace("STORE", store)).steps, TIGHT)
    assert len(steps) == (1 if one else 2)
    assert isinstance(steps[0], Kernel)
    (loop, *_) = steps[0].body
    assert isinstance(loop, For) and loop.kind == "parallel"


def test_nothing_is_said_of_kernels_without_loops() -> None:
    program = check(build({"x": f32(3), "y": f32(3)}, lambda b, x, y: b.add(b.sum(x, axes=(0,)), y)))
    assert all(isinstance(s, Kernel) for s in program.steps)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_shape_is_right(data: st.DataObject) -> None:
    B, H = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    T, D = data.draw(st.integers(1, 36)), data.draw(st.integers(1, 8))
    between = data.draw(st.sampled_from([None, None, *MEETING.values()]))
    machine = replace(TIGHT, threads=data.draw(st.sampled_from([1, 2])))
    graph = _heads_inside(B, H, T, D) if data.draw(st.booleans()) else chain(B, H, T, D, between)
    check(graph, machine=machine, native=(B + T) % 2 == 0)


def test_ratios_are_exact() -> None:
    numbers = [(a, b) for a in (-6, 0, 1, 4, 35) for b in (-4, 1, 3, 10)]
    for a, b in numbers:
        x, wanted = Ratio(a, b), Fraction(a, b)
        assert (x.numerator, x.denominator) == (wanted.numerator, wanted.denominator)
        for c, d in numbers:
            y, other = Ratio(c, d), Fraction(c, d)
            assert (x == y) is (wanted == other) and (x == c) is (wanted == c)
            assert x != y or hash(x) == hash(y)
            pairs = [(x * y, wanted * other), (x * d, wanted * d), (d * x, d * wanted), (x / d, wanted / d)]
            pairs += [(x / y, wanted / other)] if c else []
            assert all((p.numerator, p.denominator) == (q.numerator, q.denominator) for p, q in pairs)
    for bad in (lambda: Ratio(1, 0), lambda: Ratio(2) / 0, lambda: Ratio(2) / Ratio(0)):
        with pytest.raises(ZeroDivisionError):
            bad()
