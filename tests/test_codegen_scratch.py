"""Generated code for scratch memory: local buffers, register buffers, long code."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from codegen_tools import check, inputs_of, program, targets
from tracegrad.backends.llvm.codegen_program import generate
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.scratch import keep_scratch
from tracegrad.backends.llvm.target import CompileError

TARGETS = targets()


# --- scratch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 20000, 1 << 20])
def test_local_buffers_on_stack_and_heap(size: int) -> None:
    p = program(f"""
      input x: f32[{size}]
      output y: f32[{size}]
      returns y
      kernel {{
        for r in 2 serial {{
          alloc local t: f32[{size}]
          for i in {size} serial {{ t[i] = x[{size - 1} - i] + f32:1.0 }}
          for i in {size} serial {{ y[i] = t[i] }}
        }}
      }}""")
    (x,) = inputs_of(p)
    (y,) = compile_program(p, use_cache=False).call([x])
    np.testing.assert_array_equal(y, x[::-1] + 1)
    assert ("malloc" in generate(p, TARGETS["host"])) == (size > 16384)


REGISTERS = """
  input x: f32[40,16]
  output y: f32[8,16]
  output s: f32[20]
  returns y, s
  kernel {
    alloc register acc: f32[4,16]
    alloc register swap: f32[2]
    for m in 4 unroll { for l in 16 vector { acc[m, l] = x[m, l] } }
    for l in 16 vector { acc[3, l] = f32:0.5 }
    for i in 2 unroll { swap[i] = x[i, i] }
    for k in 40 step 2 serial {
      alloc register t: f32[16]
      for l in 16 vector { t[l] = x[k, l] }
      for u in 2 unroll { for m in 2 unroll { for l in 16 vector {
        acc[m, l] = acc[m, l] + t[l] * x[k + u, l] * acc[2, l]
      } } }
      for j in 3 serial {
        for l in 16 vector { acc[0, l] = acc[0, l] * f32:0.5 + acc[3, l] }
        acc[1, 5] = acc[0, 3] + f32:1.0
      }
      let a: f32 = swap[0]
      swap[0] = swap[1]
      swap[1] = a
      s[k // 2] = reduce.add(l in 16: acc[1, l])
    }
    for l in 8 vector { acc[3, l + 4] = acc[1, l + 4] }
    for m in 4 unroll { for l in 16 vector { y[m, l] = acc[m, l] } }
    for m in 4 unroll { for l in 16 vector { y[m + 4, l] = acc[m, l] + swap[0] - swap[1] * f32:2.0 } }
  }
"""


def test_register_buffers_are_values() -> None:
    """Loop-carried, nested, swapped, read-only, in slots of different sizes: no memory is left, and results
    hold."""
    p = program(REGISTERS)
    for target in TARGETS.values():
        check(p, target=target, ulp=4096)  # sums cancel, and products may be fused
    assert "alloca" not in generate(p, TARGETS["host"]).split("define void @run")[0]


def test_register_buffers_across_branches_are_memory() -> None:
    """A branch or a data-dependent loop in a buffer's scope, a varying index: right answers all the same."""
    p = program("""
      input x: f32[16]
      input n: i64[1]
      output y: f32[16]
      output z: f32[4]
      returns y, z
      kernel {
        alloc register acc: f32[16]
        alloc register v: f32[4]
        for r in 3 serial {
          for _ in 1 serial { for l in 16 vector { acc[l] = x[l] } }
          if n[0] > r { for l in 16 vector { acc[l] = acc[l] * f32:2.0 } }
          for l in 16 vector { y[l] = y[l] + acc[l] }
        }
        for i in 4 serial { v[i] = x[i] }
        for i in 2 unroll { v[i] = v[i + 2] }
        for i in 4 unroll { z[i] = v[i] }
        while z[0] < f32:9.0 { v[3] = f32:4.0  z[0] = z[0] + v[3] }
      }""")
    x = np.linspace(-1, 1, 16, dtype=np.float32)
    for n in (0, 2, 5):
        y, z = np.zeros(16, np.float32), np.zeros(4, np.float32)
        compile_program(p, use_cache=False).call([x, np.array([n])], [y, z])
        np.testing.assert_allclose(y, x * sum(2 if n > r else 1 for r in range(3)), rtol=1e-6)
        np.testing.assert_allclose(z[1:], [x[3], x[2], x[3]])


def test_scratch_in_parallel_loops_is_per_task() -> None:
    p = program("""
      input x: f32[300]
      output y: f32[300]
      returns y
      kernel {
        for i in 300 step 4 parallel {
          alloc local big: f32[30000]
          alloc register r: f32[4]
          for j in 4 serial { big[j*7000] = x[i + j] * f32:2.0 }
          for j in 4 unroll { r[j] = big[j*7000] }
          for j in 4 unroll { y[i + j] = r[j] + f32:1.0 }
        }
      }""")
    (x,) = inputs_of(p)
    native = compile_program(p, use_cache=False)
    for serial in (True, False):
        (y,) = native.call([x], serial=serial)
        np.testing.assert_array_equal(y, x * 2 + 1)


def test_scratch_that_tasks_share() -> None:
    """Packed once, on the stack and on the heap, then read by all tasks of a parallel loop."""
    p = program("""
      input x: f32[64,64]
      output y: f32[64,64]
      returns y
      kernel {
        alloc local t: f32[64,64]
        alloc local big: f32[512,64]
        for i in 64 serial { for j in 64 step 16 serial { for l in 16 vector { t[i, j + l] = x[j + l, i] } } }
        for i in 64 serial { for j in 64 serial { big[8*i, j] = t[i, j] + f32:1.0 } }
        for i in 64 parallel { for j in 64 step 16 serial { for l in 16 vector {
          y[i, j + l] = t[i, j + l] * big[8*i, j + l]
        } } }
      }""")
    (x,) = inputs_of(p)
    (y,) = compile_program(p, use_cache=False).call([x])
    np.testing.assert_array_equal(y, x.T * (x.T + 1))


@pytest.mark.parametrize("kind", ["serial", "parallel"])
def test_long_code_is_cut_into_blocks(kind: str) -> None:
    """Thousands of statements without a loop, in a kernel and in a task: LLVM takes time quadratic in a
    block's length."""
    steps = " ".join(
        f"y[i, {n}] = x[i, {n}] * f32:{n % 7 + 1}.5 + x[i, {(n * 31) % 900}]" for n in range(900)
    )
    p = program(f"""
      input x: f32[2,900]
      output y: f32[2,900]
      returns y
      kernel {{ for i in 2 {kind} {{ {steps} }} }}
      kernel {{ for i in 1 serial {{ {steps.replace("y[i, ", "y[0, ")} }} }}""")
    (x,) = inputs_of(p)
    text = generate(p, TARGETS["host"])
    assert "%never" in text
    assert max(len(b) for b in _blocks(text)) < 2000
    (y,) = compile_program(p, use_cache=False).call([x])
    n = np.arange(900)
    np.testing.assert_array_equal(y, x * (n % 7 + 1.5).astype(np.float32) + x[:, (n * 31) % 900])


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line and not line.startswith(" "):
            blocks.append([])
        else:
            blocks[-1].append(line)
    return blocks


def test_scratch_inside_a_vector_loop_is_per_lane() -> None:
    """Beyond what the scheduler makes: loops, branches and scratch inside a vector loop."""
    p = program("""
      input x: f32[16,5]
      output y: f32[16]
      output z: f32[16]
      returns y, z
      kernel {
        for l in 16 vector {
          alloc register acc: f32[1]
          acc[0] = f32:0.0
          for k in 5 serial { acc[0] = acc[0] + x[l, k] }
          for _ in 1 serial { y[l] = acc[0] }
          if l > 3 { for _ in 1 serial { y[l] = acc[0] * f32:2.0 } if x[l, 0] > f32:0.0 { y[l] = f32:9.0 } }
        }
        for l in 16 vector {
          z[l] = reduce.add(k in 4: x[l, k])
        }
      }""")
    (x,) = inputs_of(p)
    y, z = compile_program(p, use_cache=False).call([x])
    want = np.where(np.arange(16) > 3, x.sum(1) * 2, x.sum(1))
    want[(np.arange(16) > 3) & (x[:, 0] > 0)] = 9
    np.testing.assert_allclose(y, want, rtol=1e-5)
    np.testing.assert_array_equal(z, (x[:, 0] + x[:, 2]) + (x[:, 1] + x[:, 3]))


def test_gpu_parts_are_refused() -> None:
    for body in ("for i in 4 thread { y[i] = f32:0.0 }", "barrier", "alloc shared s: f32[4]"):
        p = program(f"output y: f32[4]\n returns y\n kernel {{ {body} }}")
        with pytest.raises(CompileError, match="GPU"):
            generate(p, TARGETS["host"])


_FAULTS = """
import ctypes, resource
import tracegrad as tg
tg.compile(lambda x: x + 1)(tg.ones(3))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    blocks = [ctypes.c_void_p(libc.malloc(400_000)) for _ in range(12)]
    for p in blocks:
        ctypes.memset(p, 1, 400_000)
    for p in blocks:
        libc.free(p)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 100)
"""


@pytest.mark.skipif(not keep_scratch(), reason="another C library, or its settings are in the environment")
def test_scratch_is_not_given_back_to_the_system() -> None:
    """Blocks as large as packed operands, taken again and again once code has been loaded: no new pages."""
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # the first of the hundred turns makes them all
