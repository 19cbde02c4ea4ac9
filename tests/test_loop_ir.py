"""The loop IR: index arithmetic, text, parser errors, verifier, interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.schedule.indexing import forget, ravel
from tracegrad.backends.schedule.shared_loops import relocated
from tracegrad.ir import dtypes
from tracegrad.ir.errors import ParseError, VerifyError
from tracegrad.ir.expr import (
    Cast,
    Const,
    Expr,
    LaneReduce,
    Load,
    Local,
    Prim,
    Var,
    bounds,
    index_add,
    index_div,
    index_mod,
    index_mul,
    mentions,
    same,
    stride_of,
)  # fmt: skip
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program, print_expr, print_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import Buffer, For, Kernel, Let, LoopProgram, Stmt, Store

ROWS = """program "rows" {
  input x: f32[3,5]
  input w: f32[5]
  output y: f32[3]
  arena t0: f32[5] @ 0
  const c0: f32[2] = 0000803f00000040
  returns y
  updates w
  arena_bytes 64
  kernel "k0" "scale" "model.py:7" flops=5 bytes=40 {
    for i in 5 serial {
      t0[i] = w[i]*c0[i % 2] + f32:0.5
    }
  }
  kernel "k1" "sum" flops=15 bytes=100 {
    for o in 3 parallel {
      alloc register acc: f32[4]
      for l in 4 vector {
        acc[l] = f32:0.0
      }
      for r in 8 step 4 serial {
        for l_1 in 4 vector {
          let inside: bool = r + l_1 < 5
          let a: f32 = x[o, r + l_1 ? inside : f32:0.0]
          acc[l_1] = acc[l_1] + a*t0[r + l_1 ? inside : f32:0.0]
        }
      }
      let total: f32 = reduce.add(l_2 in 4: acc[l_2])
      y[o] = select(total < f32:0.0, -total, f32(i32(total)))
    }
    for i in 5 step 4 serial {
      for l_3 in 4 vector {
        w[i + l_3] = f32:-inf if i + l_3 < 5 & ~(i + l_3 == 2)
      }
    }
    if 1 < 2 {
      w[0] = bits.f32(u32:1065353216)
    }
  }
}
"""


def rows_result(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    total = x @ (w * np.array([1, 2, 1, 2, 1], np.float32) + np.float32(0.5))
    return np.where(total < 0, -total, np.trunc(total)).astype(np.float32)


def test_text_round_trip() -> None:
    program = parse_program(ROWS)
    verify_program(program)
    assert print_program(program) == ROWS


@pytest.mark.parametrize("reverse", [False, True])
def test_interpreter(reverse: bool) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    old = w.copy()
    (y,) = run_program(parse_program(ROWS), [x, w], reverse_parallel=reverse)
    np.testing.assert_allclose(y, rows_result(x, old), rtol=1e-6)
    np.testing.assert_array_equal(w, np.array([1, -np.inf, old[2], -np.inf, -np.inf], np.float32))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("for o in 3 parallel", "for o in 3 sideways", "expected a loop kind"),
        ("t0[i] = w[i]", "t0[i] = q[i]", "no buffer named 'q'"),
        ("a*t0[", "i32:1*t0[", "mul of i32, f32"),
        ("c0: f32[2] = 0000803f00000040", "c0: f32[2] = 0000803f", "holds 8 bytes, found 4"),
        ("returns y", "returns q", "no buffer named 'q'"),
        ("f32:0.5", "f32:half", "expected a number"),
        ("reduce.add(l_2 in 4: acc[l_2])", "reduce.add(l_2 in 4: acc[l_2]", "expected"),
    ],
)
def test_parse_errors_point_at_the_place(old: str, new: str, message: str) -> None:
    assert old in ROWS
    with pytest.raises(ParseError) as e:
        parse_program(ROWS.replace(old, new, 1))
    text = str(e.value)
    assert message in text and text.startswith("line ") and text.splitlines()[-1].strip() == "^"


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("for r in 8 step 4 serial", "for r in 8 step 4 parallel", "not outermost"),
        ("for l in 4 vector", "for l in 4 step 2 vector", "has step 2"),
        ("acc[l] = f32:0.0", "acc[o] = f32:0.0", "indexed by parallel variable"),
        ("y[o] = select(", "y[o] = o if true y[o] = select(", "store of i64 to y"),
        ("t0[i] = w[i]*c0", "x[i] = w[i]*c0", "store to x"),
        ("@ 0", "@ 60", "does not fit"),
        ("reduce.add(l_2 in 4", "reduce.add(l_2 in 3", "over 3 lanes"),
        ("updates w", "updates y", "not an input"),
    ],
)
def test_verifier_finds(old: str, new: str, message: str) -> None:
    assert old in ROWS
    program = parse_program(ROWS.replace(old, new, 1))
    with pytest.raises(VerifyError, match=message):
        verify_program(program)


def test_interpreter_checks_bounds_and_arguments() -> None:
    program = parse_program(ROWS.replace("? inside : f32:0.0]\n          acc", "]\n          acc", 1))
    x, w = np.zeros((3, 5), np.float32), np.zeros(5, np.float32)
    with pytest.raises(IndexError, match="outside x"):
        run_program(program, [x, w])
    with pytest.raises(ValueError, match="takes f32"):
        run_program(program, [x.astype(np.float64), w])
    with pytest.raises(ValueError, match="takes 2 arrays"):
        run_program(program, [x])


def test_while_runs_until_its_condition_fails() -> None:
    program = parse_program(
        """program "halve" { input x: f32[] output n: i64[] returns n updates x
        kernel "k" "" flops=0 bytes=0 {
          n[0] = 0
          while x[0] > f32:1.0 { x[0] = x[0]*f32:0.5 n[0] = n[0] + 1 }
        } }"""
    )
    x = np.array(20.0, np.float32)
    (n,) = run_program(program, [x])
    assert int(n) == 5 and float(x) == 0.625


def value_of(e: Expr, env: dict[Expr, int]) -> int:
    if isinstance(e, Const):
        return int(e.value)
    if isinstance(e, Var):
        return env[e]
    assert isinstance(e, Prim)
    a, b = (value_of(x, env) for x in e.args)
    return {"add": a + b, "mul": a * b, "floordiv": a // b if b else 0, "mod": a % b if b else 0}[e.name]


I, J, K = Var("i", 4), Var("j", 6), Var("k", 5)
LEAVES = st.sampled_from([I, J, K]) | st.integers(-7, 12).map(Const)
INDEX = st.recursive(
    LEAVES,
    lambda e: st.one_of(
        st.tuples(e, e).map(lambda t: ("add", *t)),
        st.tuples(e, st.integers(-3, 24)).map(lambda t: ("mul", *t)),
        st.tuples(e, st.sampled_from([1, 2, 3, 4, 6, 12, 24])).map(lambda t: ("floordiv", *t)),
        st.tuples(e, st.sampled_from([1, 2, 3, 4, 6, 12, 24])).map(lambda t: ("mod", *t)),
    ),
    max_leaves=8,
)


def plain(tree: object) -> tuple[Expr, object]:
    """(simplified expression, function of the environment computed without simplification)."""
    if isinstance(tree, Expr):
        return tree, lambda env: value_of(tree, env)
    name, a, b = tree  # type: ignore[misc]
    x, f = plain(a)
    if name == "add":
        y, g = plain(b)
        return index_add(x, y), lambda env: f(env) + g(env)  # type: ignore[operator]
    build = {"mul": index_mul, "floordiv": index_div, "mod": index_mod}[name]
    op = {"mul": lambda p: p * b, "floordiv": lambda p: p // b, "mod": lambda p: p % b}[name]
    return build(x, b), lambda env: op(f(env))  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(INDEX, st.integers(0, 3), st.integers(0, 5), st.integers(0, 4))
def test_index_simplification_keeps_values(tree: object, i: int, j: int, k: int) -> None:
    e, expected = plain(tree)
    env: dict[Expr, int] = {I: i, J: j, K: k}
    value = value_of(e, env)
    assert value == expected(env)  # type: ignore[operator]
    r = bounds(e)
    assert r is None or r[0] <= value <= r[1]


def test_index_arithmetic_is_remembered_until_it_is_forgotten() -> None:
    i, j = Var("i", 4), Var("j", 6)
    once = index_add(index_mul(i, 6), j)
    assert index_add(index_mul(i, 6), j) is once
    assert ravel((i, j), (4, 6)) is ravel((i, j), (4, 6))
    forget()
    again = index_add(index_mul(i, 6), j)
    assert again is not once and same(again, once)


def test_strides_of_what_divides_a_variable_are_unknown() -> None:
    i, j = Var("i", 4), Var("j", 6)
    e = i * 8 + j // 4
    assert stride_of(e, i) == 8
    assert stride_of(e, j) is None
    assert mentions(e, j) and not mentions(j // 4, i)


def test_relocated_statements_leave_the_old_ones_alone() -> None:
    i, k = Var("i", 8), Var("k", 2)
    x, y = Buffer("x", dtypes.float32, (8,), "arena"), Buffer("y", dtypes.float32, (8,), "output")
    here = Buffer("x", dtypes.float32, (4,), "local")
    body: list[Stmt] = [For(j := Var("j", 4), 4, "parallel", [Store(y, (i + j,), Load(x, (i + j,)))])]
    (loop,) = relocated(body, {i: k * 4}, {x: (here, k * -4)})
    assert isinstance(loop, For) and loop.kind == "serial"
    (store,) = loop.body
    assert isinstance(store, Store) and isinstance(store.value, Load)
    assert print_expr(store.index[0]) == print_expr(k * 4 + j)
    assert store.value.buffer is here and store.value.index == (j,)
    (old,) = body
    assert isinstance(old, For) and old.kind == "parallel"
    (kept,) = old.body
    assert isinstance(kept, Store) and isinstance(kept.value, Load) and kept.value.buffer is x


def test_reshapes_cost_nothing() -> None:
    f = Var("f", 24)
    assert index_add(index_mul(index_div(f, 6), 6), index_mod(f, 6)) is f
    split = index_add(index_mul(I, 6), J)
    assert index_div(split, 6) is I and index_mod(split, 6) is J
    inner = index_add(index_mul(index_mod(index_div(f, 2), 3), 2), index_mod(f, 2))
    assert print_expr(inner) == "f % 6"


VALUES = st.sampled_from([dtypes.float32, dtypes.int32, dtypes.bool_])


@st.composite
def expressions(draw: st.DrawFn, dtype: dtypes.DType, depth: int = 3) -> Expr:
    """Random scalar expressions over a buffer of each dtype and a lane."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            return Load(BUFFERS[dtype], (index_add(I, Const(draw(st.integers(0, 3)))),))
        v = draw(st.integers(0, 1) if dtype.kind == "b" else st.integers(-9, 9))
        return Const({"f": v / 4, "i": v, "b": bool(v)}[dtype.kind], dtype)
    sub = expressions(dtype, depth - 1)
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return Cast(draw(expressions(draw(VALUES), depth - 1)), dtype)
    if kind == 1:
        cond = draw(expressions(dtypes.bool_, depth - 1))
        return Prim("select", (cond, draw(sub), draw(sub)), dtype)
    if dtype.kind == "b":
        if kind == 2:
            return Prim("not_", (draw(sub),), dtype)
        if kind == 3:
            d = draw(VALUES)
            return Prim("lt", (draw(expressions(d, depth - 1)), draw(expressions(d, depth - 1))), dtype)
        return Prim("and_", (draw(sub), draw(sub)), dtype)
    if kind == 2:
        return Prim("neg", (draw(sub),), dtype)
    return Prim(draw(st.sampled_from(["add", "sub", "mul", "maximum"])), (draw(sub), draw(sub)), dtype)


BUFFERS = {d: Buffer(f"{d.name}s", d, (8,), "input") for d in (dtypes.float32, dtypes.int32, dtypes.bool_)}


@settings(max_examples=150, deadline=None)
@given(VALUES.flatmap(expressions))
def test_any_expression_prints_parses_and_runs_the_same(e: Expr) -> None:
    out = Buffer("y", e.dtype, (4,), "output")
    program = LoopProgram("p", list(BUFFERS.values()), [out], steps=[Kernel("k", [For(I, 4, "vector", [
        Store(out, (I,), e)])])])  # fmt: skip
    text = print_program(program)
    again = parse_program(text)
    verify_program(again)
    assert print_program(again) == text
    arrays = [(np.arange(8) % 3 - 1).astype(b.dtype.numpy) for b in BUFFERS.values()]
    (first,), (second,) = run_program(program, arrays), run_program(again, arrays)
    np.testing.assert_array_equal(first, second)


def test_one_lane_at_a_time_is_the_same_as_a_vector() -> None:
    x = Buffer("x", dtypes.float32, (8,), "input")
    y, z = Buffer("y", dtypes.float32, (), "output"), Buffer("z", dtypes.float32, (8,), "output")
    lane, other, total = Var("l", 8), Var("m", 8), Local("t", dtypes.float32)
    body = [
        For(other, 8, "serial", [Store(z, (other,), Prim("exp", (Load(x, (other,)),), dtypes.float32))]),
        Let(total, LaneReduce("maximum", lane, Load(z, (lane,)))),
        Store(y, (Const(0),), total),
    ]
    data = np.linspace(-1, 1, 8).astype(np.float32)
    got = run_program(LoopProgram("p", [x], [y, z], steps=[Kernel("k", body)]), [data])
    assert got[0] == np.exp(data).max()


PREFETCH = """program "near" {
  input x: f32[64]
  output y: f32[64]
  returns y
  kernel "k0" "" flops=0 bytes=0 {
    for i in 64 step 16 serial {
      prefetch x[i]
      prefetch write y[i]
      for l in 16 vector {
        y[i + l] = x[i + l] + f32:1.0
      }
    }
  }
}
"""


def test_prefetches_change_nothing() -> None:
    program = parse_program(PREFETCH)
    assert print_program(program) == PREFETCH
    verify_program(program)
    x = np.arange(64, dtype=np.float32)
    for y in (run_program(program, [x])[0], compile_program(program, use_cache=False).call([x])[0]):
        np.testing.assert_array_equal(y, x + 1)
    with pytest.raises(ParseError, match="z"):
        parse_program(PREFETCH.replace("prefetch x[i]", "prefetch z[i]"))
    with pytest.raises(VerifyError, match="indexed with"):
        verify_program(parse_program(PREFETCH.replace("prefetch x[i]", "prefetch x[i, i]")))
