"""Control flow as native code: loops and branches of the loop IR run as the graph interpreter says, copy
nothing they need not, and keep apart what must be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from control_tools import BOOL, I64, build, check, draw, f32, loop, scan
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.machine import AVX512
from tracegrad.backends.memory import lifetimes
from tracegrad.backends.schedule import schedule
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import ParseError, VerifyError
from tracegrad.ir.expr import Const, Load, Var, walk
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.loop_text import parse_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import (
    Branch,
    Buffer,
    Kernel,
    LoopProgram,
    Repeat,
    Step,
    Store,
    WhileStep,
    expressions,
    statements,
    walk_steps,
)
from tracegrad.ir.ops.control import region
from tracegrad.ir.text import parse_graph
from tracegrad.ir.types import Type
from tracegrad.runtime.executable import Lowered
from tracegrad.runtime.report import cost_of


def inside(program: LoopProgram) -> list[Kernel]:
    """The kernels that run more than once."""
    loops = [s for s in walk_steps(program.steps) if isinstance(s, (Repeat, WhileStep))]
    return [k for s in loops for k in walk_steps([s]) if isinstance(k, Kernel)]


def comments(program: LoopProgram) -> list[str]:
    return [k.comment for k in inside(program)]


# --- loops that copy nothing --------------------------------------------------------------------------------


def lstm(T: int, B: int, H: int) -> Graph:
    """An LSTM layer over T steps of the input's width H."""

    def body(b: Any, h: Value, c: Value, x: Value, wi: Value, wh: Value, bias: Value) -> Any:
        z = b.add(b.add(b.contract(x, wi, spec="mk,nk->mn"), b.contract(h, wh, spec="mk,nk->mn")), bias)

        def part(k: int) -> Value:
            return b.slice(z, start=(0, k * H), stop=(B, (k + 1) * H), step=(1, 1))

        c = b.add(b.mul(b.sigmoid(part(1)), c), b.mul(b.sigmoid(part(0)), b.tanh(part(2))))
        h = b.mul(b.sigmoid(part(3)), b.tanh(c))
        return h, c, h

    return build(
        {"x": f32(T, B, H), "h": f32(B, H), "c": f32(B, H), "wi": f32(4 * H, H), "wh": f32(4 * H, H),
         "bias": f32(4 * H)},
        lambda b, x, h, c, *w: scan(b, [h, c], [x], list(w), body),
    )  # fmt: skip


@pytest.mark.parametrize(("T", "B", "H"), [(0, 2, 4), (1, 3, 16), (2, 1, 3), (7, 5, 17)])
def test_an_lstm_has_two_kernels_a_step_and_packs_its_weights_before(T: int, B: int, H: int) -> None:
    program = check(lstm(T, B, H))
    if T < 2 or B == 1:
        return
    (step,) = (s for s in program.steps if isinstance(s, Repeat))
    assert step.rotate == ()
    product, gates = comments(program)
    assert "contract" in product and gates.startswith("sigmoid")
    names = [k.comment for k in program.kernels]
    assert names.index("pack wh") < names.index(product)
    assert not any("reshape" in c or "copy" in c or "pack" in c for c in comments(program))


def test_code_does_not_grow_with_the_number_of_steps() -> None:
    short, long = (schedule(lstm(n, 4, 8), AVX512) for n in (10, 1000))
    assert [len(k.body) for k in inside(short)] == [len(k.body) for k in inside(long)]
    assert len(short.kernels) == len(long.kernels)
    # Around the loops, products of few rows may have tiles of what is left over.
    assert all(len(a.body) >= len(b.body) for a, b in zip(short.kernels, long.kernels))
    a, b = (compile_program(p, use_cache=False).llvm_ir() for p in (short, long))
    assert len(b) < len(a) + len(a) // 10


def test_a_carry_is_updated_in_place_where_only_its_own_place_is_read() -> None:
    graph = build({"c": f32(40), "x": f32(5, 40)}, lambda b, c, x: scan(
        b, [c], [x], [], lambda b, c, x: (b.add(b.mul(c, b.const(0.5, c)), x), b.mul(c, x))))  # fmt: skip
    program = check(graph)
    (step,) = (s for s in program.steps if isinstance(s, Repeat))
    assert not step.rotate and len(step.body) == 1
    assert program.arena_bytes == 0  # the carry lives in the output


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_carry_that_other_places_are_read_of_changes_places_with_its_successor(
    steps: int, reverse: bool
) -> None:
    graph = build({"h": f32(6, 16), "x": f32(steps, 6, 16), "w": f32(16, 16)}, lambda b, h, x, w: scan(
        b, [h], [x], [w], lambda b, h, x, w: (b.tanh(b.add(b.matmul(h, w), x)), b.sum(h, axes=(1,))),
        reverse=reverse))  # fmt: skip
    program = check(graph)
    loops = [s for s in program.steps if isinstance(s, Repeat)]
    for step in loops:
        ((a, b),) = step.rotate
        assert a is not b and step.reverse is reverse
    assert not any("reshape" in c or "copy" in c for c in comments(program))


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_values_passed_from_name_to_name_are_not_copied(steps: int) -> None:
    """A delay line: new, old, older."""
    graph = build({"x": f32(steps, 25), "a": f32(25), "b": f32(25), "c": f32(25)}, lambda b, x, *state: scan(
        b, list(state), [x], [], lambda b, p, q, r, x: (b.add(b.mul(p, r), x), p, q)))  # fmt: skip
    program = check(graph)
    (step,) = (s for s in program.steps if isinstance(s, Repeat))
    assert sorted(map(len, step.rotate)) == [4] and not any("reshape" in c for c in comments(program))
    swap = build({"a": f32(5), "b": f32(5)}, lambda b, *ab: scan(
        b, list(ab), [], [], lambda b, p, q: (q, p), length=steps))  # fmt: skip
    program = check(swap)
    for swapping in (s for s in program.steps if isinstance(s, Repeat)):
        assert not swapping.body and [len(names) for names in swapping.rotate] == [2]


def test_one_value_for_two_carries_and_a_row() -> None:
    graph = build({"a": f32(4), "b": f32(4), "x": f32(3, 4), "w": f32(4)}, lambda b, *v: scan(
        b, list(v[:2]), [v[2]], [v[3]], lambda b, p, q, x, w: (
            b.mul(p, x), b.mul(p, x), b.mul(p, x), p, q, x, w, b.mul(p, x))))  # fmt: skip
    check(graph)


def test_carries_that_become_inputs() -> None:
    """A carry left alone, one that becomes a slice, one that becomes a constant operand, one that becomes a
    number."""
    graph = build({"x": f32(3, 4), "w": f32(4), "c": f32(4)}, lambda b, x, w, c: scan(
        b, [c, c, c, w], [x], [w], lambda b, p, q, r, s, x, w: (
            p, x, w, b.full(shape=(4,), value=3.0, dtype=dtypes.float32), q, r)))  # fmt: skip
    check(graph)


def test_a_parameter_trained_by_a_scan_is_written_back() -> None:
    graph = build({"p": f32(8), "x": f32(5, 8)}, lambda b, p, x: scan(
        b, [p], [x], [], lambda b, p, x: (b.sub(p, b.mul(x, b.const(0.1))), b.sum(p, axes=(0,)))
    ))  # fmt: skip
    graph.updates = {graph.inputs[0]: graph.outputs[0]}
    check(graph)
    graph.outputs = graph.outputs[1:]
    check(graph)


def test_a_result_scattered_into_a_carry_stays_where_it_is() -> None:
    """`history[i] = x` does not copy the history."""

    def body(b: Any, history: Value, i: Value, x: Value) -> Any:
        at = b.reshape(i, shape=(1,))
        new = b.index_put(history, b.reshape(x, shape=(1, 20)), at, dims=(0,))
        return new, b.add(i, b.const(1, i))

    graph = build({"history": f32(6, 20), "i": I64, "x": f32(4, 20)}, lambda b, history, i, x: scan(
        b, [history, i], [x], [], body))  # fmt: skip
    arrays = draw(graph)
    program = check(graph, arrays)
    (step,) = (s for s in program.steps if isinstance(s, Repeat))
    assert not step.rotate
    (put,) = (k for k in inside(program) if "index_put" in k.comment)
    copied = [x for s in statements(put.body) for e in expressions(s) for x in walk(e)
              if isinstance(x, Load) and x.dtype is dtypes.float32 and x.buffer.size == 120]  # fmt: skip
    assert not copied


# --- while and cond -----------------------------------------------------------------------------------------


def _while(most: int | None, rotate: bool) -> Graph:
    """Newton's root of |a| + 1; with `rotate` the new value also depends on its neighbours."""

    def test(b: Any, x: Value, n: Value, a: Value) -> Any:
        gap = b.abs(b.sub(b.mul(x, x), a))
        return b.gt(b.amax(gap, axes=(0,)), b.const(1e-4))

    def body(b: Any, x: Value, n: Value, a: Value) -> Any:
        new = b.mul(b.add(x, b.div(a, x)), b.const(0.5, x))
        if rotate:
            new = b.add(new, b.mul(b.sub(b.flip(b.flip(x, dims=(0,)), dims=(0,)), x), b.const(0.1, x)))
            new = b.add(b.mul(new, b.const(0.99, x)), b.mul(b.flip(x, dims=(0,)), b.const(0.01, x)))
        return new, b.add(n, b.const(1, n))

    def make(b: Any, a: Value) -> Any:
        a = b.add(b.abs(a), b.const(1.0, a))
        one, zero = b.full(shape=(25,), value=1.0, dtype=dtypes.float32), b.const(0, dtypes.int64)
        return loop(b, [one, zero], [a], test, body, max_trips=most)

    return build({"a": f32(25)}, make)


@pytest.mark.parametrize("most", [None, 0, 1, 2, 3, 100])
def test_while_stops_by_its_test_or_at_most(most: int | None) -> None:
    program = check(_while(most, False))
    for step in (s for s in program.steps if isinstance(s, WhileStep)):
        assert step.most == most and not step.rotate and not step.results


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4])
def test_while_with_values_that_change_places_gives_them_wherever_they_are(most: int) -> None:
    program = check(_while(most, True))
    for step in (s for s in program.steps if isinstance(s, WhileStep)):
        assert len(step.rotate) == 1 and len(step.results) == 1


def test_cond_runs_one_branch() -> None:
    def make(b: Any, p: Value, x: Value, y: Value) -> Any:
        types = [x.type, y.type]
        then = region(types, lambda b, x, y: (b.matmul(x, y), x, x), "then")
        other = region(types, lambda b, x, y: (b.sub(y, b.sin(x)), y, b.add(x, y)), "else")
        r, s, t = b.cond(p, x, y, regions=(then, other))
        return b.add(r, x), s, t, y

    graph = build({"p": BOOL, "x": f32(9, 9), "y": f32(9, 9)}, make)
    arrays = draw(graph)
    for p in (False, True):
        arrays[0] = np.asarray(p)
        program = check(graph, arrays)
    (branch,) = (s for s in program.steps if isinstance(s, Branch))
    assert {k.name for k in walk_steps(branch.then) if isinstance(k, Kernel)}.isdisjoint(
        k.name for k in walk_steps(branch.other) if isinstance(k, Kernel)
    )


def test_a_branch_not_taken_costs_nothing_even_if_it_would_never_end() -> None:
    """The loop in the other branch has a test that always holds."""

    def make(b: Any, p: Value, x: Value) -> Any:
        then = region([x.type], lambda b, x: loop(
            b, [x], [], lambda b, x: b.const(True, dtypes.bool_), lambda b, x: b.sin(x)), "then")  # fmt: skip
        return b.cond(p, x, regions=(then, region([x.type], lambda b, x: b.neg(x), "else")))

    graph = build({"p": BOOL, "x": f32(3)}, make)
    check(graph, [np.asarray(False), np.ones(3, np.float32)])


# --- nests --------------------------------------------------------------------------------------------------


def test_scan_in_scan_reads_slices_of_slices() -> None:
    def inner(b: Any, c: Value, x: Value, w: Value) -> Any:
        c = b.tanh(b.add(b.matmul(c, w), x))
        return c, c, b.sum(c, axes=(0,))

    def outer(b: Any, c: Value, x: Value, w: Value) -> Any:
        c, rows, sums = scan(b, [c], [x], [w], inner)
        return b.mul(c, b.const(0.5, c)), rows, b.sum(sums, axes=(0,)), c

    graph = build({"c": f32(3, 8), "x": f32(4, 5, 3, 8), "w": f32(8, 8)}, lambda b, c, x, w: scan(
        b, [c], [x], [w], outer))  # fmt: skip
    program = check(graph)
    (step,) = (s for s in program.steps if isinstance(s, Repeat))
    (nested,) = (s for s in step.body if isinstance(s, Repeat))
    assert nested.rotate and nested.var is not step.var


def test_cond_and_while_in_scan() -> None:
    def body(b: Any, c: Value, i: Value, x: Value, p: Value) -> Any:
        types = [c.type, x.type]
        then = region(types, lambda b, c, x: (b.add(b.flip(c, dims=(0,)), x), b.sum(x, axes=(0,))), "then")
        other = region(types, lambda b, c, x: (c, b.sum(c, axes=(0,))), "else")
        c, s = b.cond(b.logical_and(b.gt(i, b.const(2, i)), p), c, x, regions=(then, other))
        c = loop(
            b, [c], [], lambda b, c: b.gt(b.sum(b.abs(c), axes=(0,)), b.const(1.0)),
            lambda b, c: b.mul(c, b.const(0.7, c)), max_trips=20,
        )  # fmt: skip
        return c, b.add(i, b.const(1, i)), s, c, i

    graph = build({"c": f32(7), "i": I64, "x": f32(6, 7), "p": BOOL}, lambda b, c, i, x, p: scan(
        b, [c, i], [x], [p], body))  # fmt: skip
    arrays = draw(graph)
    for p in (False, True):
        arrays[3] = np.asarray(p)
        check(graph, arrays)


def test_a_slice_may_be_a_condition() -> None:
    def body(b: Any, c: Value, p: Value) -> Any:
        types = [c.type]
        return b.cond(p, c, regions=(region(types, lambda b, c: b.add(c, c), "then"),
                                     region(types, lambda b, c: b.neg(c), "else")))  # fmt: skip

    graph = Graph("slices")
    b = Builder(graph)
    c, p = graph.add_input(f32(3), "c"), graph.add_input(Type(dtypes.bool_, (5,)), "p")
    graph.outputs = [b.scan(c, p, length=5, carry=1, xs=1, regions=(region([c.type, BOOL], body, "body"),))]
    check(graph, [np.ones(3, np.float32), np.array([1, 0, 0, 1, 1], bool)])


def test_graph_text_with_regions_runs_natively() -> None:
    graph = parse_graph(
        """graph main(%c: f32[4], %x: f32[3,4], %p: bool[]) {
  %a: f32[4], %s: f32[3] = scan %c, %x, %p {length=3, carry=1, xs=1, reverse=True} (
    %k: f32[4], %r: f32[4], %q: bool[]
  ) {
    %m: f32[4] = cond %q, %k, %r (%u: f32[4], %v: f32[4]) {
      %0: f32[4] = mul %u, %v
      return %0
    } (%u: f32[4], %v: f32[4]) {
      %0: f32[4] = sub %u, %v
      return %0
    }
    %t: f32[] = sum %m {axes=(0,)}
    return %m, %t
  }
  return %a, %s
}
"""
    )
    check(graph, [np.arange(4, dtype=np.float32), np.ones((3, 4), np.float32) * 2, np.asarray(True)])


# --- memory, costs, and the loop IR itself ------------------------------------------------------------------


def test_what_a_loop_needs_lives_through_it_and_what_a_turn_makes_does_not() -> None:
    program = schedule(lstm(7, 4, 16), AVX512)
    lives = {x.buffer.name: x for x in lifetimes(program)}
    loop = next(s for s in program.steps if isinstance(s, Repeat))
    first, last = (program.kernels.index(k) for k in (inside(program)[0], inside(program)[-1]))
    assert lives["packed_wh"].first < first and lives["packed_wh"].last >= last
    own = [x for x in lives.values() if first <= x.first and x.last <= last]
    assert own and loop.extent == 7  # the gates before their functions


def _program(steps: list[Step], buffers: list[Buffer]) -> LoopProgram:
    return LoopProgram("p", [], [b for b in buffers if b.space == "output"], steps=steps)


def _set(b: Buffer, value: float) -> Kernel:
    return Kernel("set", [Store(b, (Const(0),), Const(value, b.dtype))])


def test_the_verifier_holds_control_flow_to_its_rules() -> None:
    a, b, c = (Buffer(n, dtypes.float32, (k,), "output") for n, k in (("a", 1), ("b", 1), ("c", 2)))

    def verify(*steps: Step) -> None:
        verify_program(_program(list(steps), [a, b, c]))

    verify(Repeat(Var("t", 3), 3, [_set(a, 1.0)], rotate=((a, b),)))
    for bad in (
        Repeat(Var("t", 3), 2, []),
        Repeat(Var("t", 3), 3, [], rotate=((a, c),)),
        Repeat(Var("t", 3), 3, [], rotate=((a, b), (b, a))),
        Branch(a, [], []),
        WhileStep([], a, []),
    ):
        with pytest.raises(VerifyError):
            verify(bad)
    t = Var("t", 3)
    with pytest.raises(VerifyError, match="not in scope"):
        verify(Kernel("k", [Store(c, (t,), Const(0.0, dtypes.float32))]))


def test_the_parser_points_at_bad_steps() -> None:
    with pytest.raises(ParseError, match="expected a step"):
        parse_program('program "p" {\n  repeat t in 3 {\n    for\n  }\n}\n')
    with pytest.raises(ParseError, match="no buffer named"):
        parse_program('program "p" {\n  branch c {\n  } else {\n  }\n}\n')


def test_costs_count_every_turn() -> None:
    ten, twenty, thirty = (cost_of(schedule(lstm(n, 4, 8), AVX512)) for n in (10, 20, 30))
    assert thirty.flops - twenty.flops == twenty.flops - ten.flops >= 10 * 2 * 4 * 8 * 32 * 2
    assert {k.runs for k in ten.kernels} >= {1, 10}


def test_the_page_shows_programs_with_loops(tmp_path: Any) -> None:
    path = Lowered(lstm(3, 2, 4)).show(tmp_path / "page.html")
    text = path.read_text()
    assert "repeat" in text and "rotate" not in text


def test_every_way_to_pass_three_values_around() -> None:
    """All assignments of three carries to one another, and to a computed value."""
    for picks in itertools.product(range(4), repeat=3):

        def body(b: Any, *state: Value, picks: tuple[int, ...] = picks) -> Any:
            made = (*state, b.flip(b.add(state[0], state[2]), dims=(0,)))
            return tuple(made[k] for k in picks)

        graph = build({n: f32(20) for n in "abc"}, lambda b, *abc, body=body: scan(
            b, list(abc), [], [], body, length=5))  # fmt: skip
        check(graph, native=False)


def test_weights_are_packed_before_every_loop_that_leaves_them_alone() -> None:
    """One weight that both loops leave alone, and one that is a slice for the outer loop."""

    def inner(b: Any, h: Value, w: Value, u: Value) -> Any:
        return b.tanh(b.add(b.contract(h, w, spec="bmk,bnk->bmn"), b.contract(h, u, spec="bmk,nk->bmn")))

    def outer(b: Any, h: Value, u: Value, w: Value) -> Any:
        (h,) = scan(b, [h], [], [w, u], inner, length=3)
        return h

    graph = build({"h": f32(2, 5, 20), "w": f32(2, 20, 20), "u": f32(4, 20, 20)}, lambda b, h, w, u: scan(
        b, [h], [u], [w], outer))  # fmt: skip
    program = check(graph, [np.float32(0.2) * a for a in draw(graph)])
    (loop,) = (s for s in program.steps if isinstance(s, Repeat))
    packs = [(s.comment, s in program.steps) for s in walk_steps(program.steps)
             if isinstance(s, Kernel) and "pack" in s.comment]  # fmt: skip
    (nested,) = (s for s in loop.body if isinstance(s, Repeat))
    assert sorted(packs) == [("pack u", False), ("pack w", True)]
    assert not any("pack" in k.comment for k in walk_steps(nested.body) if isinstance(k, Kernel))
