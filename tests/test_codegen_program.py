"""Generated programs as a whole: parallel loops, entry points, outputs, caching, targets."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from codegen_tools import check, draw, inputs_of, program, targets
from tracegrad.backends.llvm.codegen_program import generate
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.pool import get_num_threads, set_num_threads

TARGETS = targets()


# --- parallel loops -----------------------------------------------------------------------------------------

PARALLEL = """
  input x: f32[1000,8]
  input scale: f32[1]
  output y: f32[1000,8]
  output s: f32[1000]
  returns y, s
  kernel {
    let k: f32 = scale[0] + f32:1.0
    for i in 1000 step 3 parallel {
      for j in 3 unroll { if i + j < 1000 {
        for l in 8 vector { y[i + j, l] = x[i + j, l] * k }
        s[i + j] = reduce.add(l in 8: y[i + j, l])
      } }
    }
  }
"""


def test_results_do_not_depend_on_threads() -> None:
    p = program(PARALLEL)
    arrays = inputs_of(p)
    want = check(p, arrays)
    native = compile_program(p, use_cache=False)
    before = get_num_threads()
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            for _ in range(20):
                for g, w in zip(native.call(arrays), want):
                    np.testing.assert_array_equal(g, w)
    finally:
        set_num_threads(before)
    for other in (native, compile_program(p, threads=False, use_cache=False)):
        for g, w in zip(other.call(arrays, serial=True), want):
            np.testing.assert_array_equal(g, w)


def test_code_without_threads_has_no_tasks() -> None:
    p = program(PARALLEL)
    assert "task" in generate(p, TARGETS["host"]) and "task" not in generate(
        p, TARGETS["host"], threads=False
    )


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 1001])
def test_every_iteration_runs_once(n: int) -> None:
    p = program(f"""
      output y: i64[{n}]
      returns y
      kernel {{ for i in {n} parallel {{ y[i] = y[i] + i }} }}""")
    y = np.zeros(n, np.int64)
    compile_program(p, use_cache=False).call([], [y])
    np.testing.assert_array_equal(y, np.arange(n))


def test_tasks_know_that_their_buffers_are_apart() -> None:
    p = program("""
      input x: f32[1000]
      output y: f32[1000]
      output z: f32[1000]
      returns y, z
      kernel { for i in 1000 parallel {
        y[i] = x[i] + f32:1.0
        z[i] = x[i] + y[i]
      } }""")
    check(p)
    text = generate(p, TARGETS["host"])
    (task,) = re.findall(r"^define[^\n]*\.task\(.*?^}", text, re.DOTALL | re.MULTILINE)
    scopes = {}
    for access in re.findall(r"^ *(.*(?:load|store) float.*)$", task, re.MULTILINE):
        own, others = re.findall(r"!alias\.scope (!\d+), !noalias (!\d+)", access)[0]
        scopes[own] = others
    assert len(scopes) == 3
    listed = dict(re.findall(r"^(!\d+) = !\{(.*)\}$", text, re.MULTILINE))
    for own, others in scopes.items():
        assert listed[own] not in listed[others].split(", ") and len(listed[others].split(", ")) == 2


# --- entry points -------------------------------------------------------------------------------------------

STEP = """
  input w: f32[10]
  input g: f32[10]
  output loss: f32[1]
  output same: f32[1]
  returns loss, w, loss, g
  updates w
  kernel {
    for i in 10 serial { w[i] = w[i] - g[i] * f32:0.5 }
    loss[0] = w[0] + w[9]
  }
"""


def test_outputs_that_are_other_buffers_are_copied() -> None:
    p = program(STEP)
    w, g = np.arange(10, dtype=np.float32), np.ones(10, np.float32)
    loss, new, again, same = compile_program(p, use_cache=False).call([w, g])
    np.testing.assert_array_equal(new, np.arange(10) - 0.5)
    np.testing.assert_array_equal(w, new)
    np.testing.assert_array_equal(same, g)
    assert loss == again == 8.0


def test_repeat_stacks_outputs() -> None:
    p = program(STEP)
    w, g = np.arange(10, dtype=np.float32), np.ones(10, np.float32)
    native = compile_program(p, use_cache=False)
    loss, new, again, _ = native.call([w, g], repeat=4)
    np.testing.assert_array_equal(loss[:, 0], [8.0, 7.0, 6.0, 5.0])
    np.testing.assert_array_equal(again, loss)
    np.testing.assert_array_equal(new, [np.arange(10) - 0.5 * (i + 1) for i in range(4)])
    np.testing.assert_array_equal(w, np.arange(10) - 2)
    assert [a.shape for a in native.call([w, g], repeat=0)] == [(0, 1), (0, 10), (0, 1), (0, 10)]


def test_null_slots_of_copied_outputs_are_skipped_and_the_table_is_kept() -> None:
    p = program(STEP)
    native = compile_program(p, use_cache=False)
    w, g, loss = np.zeros(10, np.float32), np.ones(10, np.float32), np.zeros((3, 1), np.float32)
    slots = [w.ctypes.data, g.ctypes.data, loss.ctypes.data, 0, 0, 0, 0, 0]
    table = (ctypes.c_int64 * 8)(*slots)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(native.repeat_address)(ctypes.addressof(table), 3)
    assert list(table) == slots and loss[:, 0].tolist() == [-1.0, -2.0, -3.0]


def test_inputs_need_only_element_alignment() -> None:
    p = program("""
      input x: f32[64]
      output y: f32[64]
      returns y
      kernel { for i in 64 step 16 serial { for l in 16 vector { y[i + l] = x[i + l] + f32:1.0 } } }""")
    for target in TARGETS.values():
        native = compile_program(p, target, use_cache=False)
        raw, out = np.zeros(65 * 4 + 64, np.uint8), np.zeros(65 * 4 + 64, np.uint8)
        x, y = raw[4:260].view(np.float32), out[4:260].view(np.float32)
        x[:] = np.arange(64)
        native.call([x], [y])
        np.testing.assert_array_equal(y, np.arange(64) + 1)


def test_constants_and_scalars() -> None:
    p = program("""
      input x: f32[1]
      output y: f64[2]
      const c: f64[2] = 000000000000f83f0000000000000040
      const b: bool[2] = 0100
      returns y, c
      kernel { for i in 2 unroll { y[i] = select(b[i], c[i], f64(x[0])) } }""")
    y, c = compile_program(p, use_cache=False).call([np.array([7.0], np.float32)])
    assert y.tolist() == [1.5, 7.0] and c.tolist() == [1.5, 2.0]


def test_wrong_arrays_are_refused() -> None:
    native = compile_program(program(STEP), use_cache=False)
    w = np.zeros(10, np.float32)
    for bad in (np.zeros(10), np.zeros(11, np.float32), np.zeros(20, np.float32)[::2]):
        with pytest.raises(ValueError, match="contiguous f32"):
            native.call([w, bad])


def test_a_warm_start_generates_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PARALLEL.replace("f32:1.0", f"f32:{np.random.default_rng().uniform()}")
    first = compile_program(program(text))
    assert not first.from_cache

    def fail(*_: object) -> str:
        raise AssertionError("generated")

    monkeypatch.setattr("tracegrad.backends.llvm.compile.generate_parts", fail)
    second = compile_program(program(text))
    assert second.from_cache
    arrays = inputs_of(second.program)
    for a, b in zip(first.call(arrays), second.call(arrays)):
        np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    assert "define void @run" in second.llvm_ir() and "run:" in second.assembly()
    with pytest.raises(AssertionError, match="generated"):
        monkeypatch.setattr("tracegrad.backends.llvm.compile.generate_parts", fail)
        compile_program(program(text), threads=False)


def test_targets_agree() -> None:
    """One program of many parts, on every target the host can run."""
    p = program("""
      input x: f32[70,9]
      input h: f16[70]
      output y: f32[70]
      output q: f16[70]
      output m: i64[1]
      returns y, q, m
      kernel {
        for i in 70 step 16 serial { for l in 16 vector {
          let a: f32 = x[i + l, 3 ? i + l < 70 : f32:0.0]
          let b: f32 = f32(h[i + l ? i + l < 70 : f16:0.0])
          y[i + l] = tanh(a) + maximum(b, a) if i + l < 70
          q[i + l] = f16(a * b) if i + l < 70
        } }
        m[0] = reduce.maximum(l in 16: i64(x[l, 2] * f32:10.0))
      }""")
    rng = np.random.default_rng(0)
    arrays = [draw(rng, b.dtype, b.shape) for b in p.inputs]
    for target in TARGETS.values():
        check(p, arrays, target=target)
