"""LLVM code for statements: memory access patterns, loops, scratch, parallel loops, and the entry points."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from codegen_tools import check, draw, inputs_of, program, targets
from tracegrad.backends.llvm.codegen_program import generate, overlap_groups
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.pool import get_num_threads, set_num_threads
from tracegrad.backends.llvm.target import CompileError
from tracegrad.ir import dtypes

TARGETS = targets()


# --- addresses and lanes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["f32", "f64", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool", "u32", "u64"]
)
@pytest.mark.parametrize("stride", [0, 1, -1, 2, 3, -2, 4, 5, -7])
def test_strides_of_loads_and_stores(dtype: str, stride: int) -> None:
    """out[k*l] = in[k*l] and its mirror, 13 and 16 lanes, whole and masked."""
    n, base = 16 * 7 + 1, 15 * 7 if stride < 0 else 0
    at = f"{stride}*l + {base}" if stride else "3"
    to = at if stride else "l"  # lanes must not share an address
    unit = {"f": f"{dtype}:", "b": ""}.get(dtypes.BY_NAME[dtype].kind, f"{dtype}:" if dtype != "i64" else "")
    other = {"f": f"{unit}1.0", "b": "true"}.get(dtypes.BY_NAME[dtype].kind, f"{unit}1")
    check(
        program(f"""
      input x: {dtype}[{n}]
      input k: i64[1]
      output packed: {dtype}[16]
      output odd: {dtype}[13]
      output masked: {dtype}[16]
      output uniform: {dtype}[16]
      output spread: {dtype}[{n}]
      output partly: {dtype}[{n}]
      returns packed, odd, masked, uniform, spread, partly
      kernel {{
        for l in {n} serial {{ spread[l] = x[l]  partly[l] = x[l] }}
        for l in 16 vector {{ packed[l] = x[{at}] }}
        for l in 13 vector {{ odd[l] = x[{at}] }}
        for l in 16 vector {{ masked[l] = x[{at} ? l < 11 : {other}] }}
        for l in 16 vector {{ uniform[l] = x[{at} ? k[0] < 0 : {other}] }}
        for l in 16 vector {{ spread[{to}] = x[l] }}
        for l in 16 vector {{ partly[{to}] = x[l] if l > 4 }}
      }}""")
    )


def test_an_access_that_is_masked_off_is_not_made() -> None:
    """Index 10**12 in lanes and iterations whose mask is false."""
    p = program("""
      input x: f32[8]
      input on: i64[2]
      output a: f32[16]
      output b: f32[1]
      output c: f32[16]
      output d: f32[16]
      output e: f32[16]
      returns a, b, c, d, e
      kernel {
        for l in 16 vector { a[l] = x[l*1000000000000 ? l < 1 : f32:2.0] }
        b[0] = x[1000000000000 ? on[0] > 0 : f32:3.0]
        for l in 16 vector { c[l] = x[l + 1000000000000 ? on[0] > 0 : f32:4.0] }
        for l in 16 vector { d[l] = f32:5.0 }
        for l in 16 vector { d[l*1000000000000] = x[l ? l < 8 : f32:0.0] if l < 1 }
        for l in 16 vector { e[l] = f32:6.0 }
        for l in 16 vector { e[l + 1000000000000] = f32:0.0 if on[0] > 0 }
        for l in 16 vector { e[l + 1] = x[1000000000000*on[1] ? l == on[1] - 7 : f32:1.0] if l < 15 }
      }""")
    x = np.arange(8, dtype=np.float32)
    a, b, c, d, e = compile_program(p, use_cache=False).call([x, np.zeros(2, np.int64)])
    assert a.tolist() == [0.0] + [2.0] * 15 and b.tolist() == [3.0] and c.tolist() == [4.0] * 16
    assert d.tolist() == [0.0] + [5.0] * 15 and e.tolist() == [6.0] + [1.0] * 15


def test_gathers_and_scatters_by_data() -> None:
    rng = np.random.default_rng(0)
    p = program("""
      input x: f32[50]
      input i: i64[16]
      input j: i32[16]
      input k: u8[16]
      output a: f32[16]
      output b: f32[16]
      output c: f32[16]
      output s: f32[64]
      returns a, b, c, s
      kernel {
        for l in 16 vector { a[l] = x[i[l]] }
        for l in 16 vector { b[l] = x[i64(j[l]) + l] }
        for l in 16 vector { c[l] = x[i64(k[l])*2 ? i64(k[l]) < 25 : f32:0.5] }
        for l in 64 serial { s[l] = f32:0.0 }
        for l in 16 vector { s[i64(j[l]) + 4] = x[l] if l != 3 }
      }""")
    x = rng.standard_normal(50).astype(np.float32)
    i = rng.permutation(50)[:16].astype(np.int64)
    j = rng.permutation(34)[:16].astype(np.int32)
    k = rng.integers(0, 60, 16).astype(np.uint8)
    for target in TARGETS.values():
        check(p, [x, i, j, k], target=target, ulp=0)


@pytest.mark.parametrize(
    "shape,lanes", [((5, 7), 16), ((8, 64), 16), ((64, 3), 8), ((3, 4, 5), 11), ((2, 100), 16)]
)
def test_divisions_of_lane_indices(shape: tuple[int, ...], lanes: int) -> None:
    """A transposed copy through flat indices: quotients and remainders that do and don't vary by lane."""
    n = int(np.prod(shape))
    w = shape[-1]
    p = program(f"""
      input x: f32[{n}]
      output y: f32[{n}]
      output z: f32[{n}]
      output q: i64[{n}]
      output r: i64[{n}]
      returns y, z, q, r
      kernel {{
        for i in {n} step {lanes} serial {{ for l in {lanes} vector {{
          y[(i + l) % {w} * {n // w} + (i + l) // {w}] = x[i + l ? i + l < {n} : f32:0.0] if i + l < {n}
        }} }}
        for i in {n} step {lanes} serial {{ for l in {lanes} vector {{
          z[i + l] = x[(i + l) % {w} * {n // w} + (i + l) // {w} ? i + l < {n} : f32:0.0] if i + l < {n}
          q[i + l] = (i + l - 40) // 7 if i + l < {n}
          r[i + l] = (i + l - 40) % 8 if i + l < {n}
        }} }}
      }}""")
    y, _, q, r = check(p, ulp=0)
    (x,) = inputs_of(p)
    np.testing.assert_array_equal(y, x.reshape(-1, w).T.reshape(-1))
    np.testing.assert_array_equal(q, (np.arange(n) - 40) // 7)
    np.testing.assert_array_equal(r, (np.arange(n) - 40) % 8)


def test_lanes_that_share_a_quotient_divide_once() -> None:
    """(16*i + l) // 64 and % 64 are scalar in i: a contiguous load, no gather, no division of vectors."""
    p = program("""
      input x: f32[4,64]
      output y: f32[256]
      returns y
      kernel {
        for i in 16 serial { for l in 16 vector { y[i*16 + l] = x[(i*16 + l) // 64, (i*16 + l) % 64] } }
      }""")
    check(p, ulp=0)
    text = generate(p, TARGETS["host"])
    assert "gather" not in text and not re.search(r"(udiv|urem|sdiv|srem) <", text)


def test_the_lane_number_as_a_value() -> None:
    check(
        program("""
      output a: f32[48]
      output b: i64[48]
      output c: bool[48]
      output d: u32[48]
      returns a, b, c, d
      kernel {
        for i in 48 step 16 serial { for l in 16 vector {
          a[i + l] = f32(3*i + 2*l - 5)
          b[i + l] = minimum(i + l, 20) * 5000000000
          c[i + l] = (i + l) % 3 == 1
          d[i + l] = u32(i + l) * u32:2654435769
        } }
      }"""),
        ulp=0,
    )


def test_masks_the_ranges_decide_vanish() -> None:
    """A mask that always holds leaves no trace; one that never holds, no access."""
    text = generate(
        program("""
      input x: f32[64]
      output y: f32[64]
      returns y
      kernel {
        for i in 64 step 16 serial { for l in 16 vector {
          y[i + l] = x[i + l ? i + l < 64 : f32:0.0] if i + l >= 0
          y[i + l] = f32:7.0 if i + l > 63
        } }
      }"""),
        TARGETS["host"],
    )
    assert "masked" not in text and "icmp" not in text.split("define void @run")[0].replace(
        "icmp slt i64 %next", ""
    )


# --- loops --------------------------------------------------------------------------------------------------


def test_loops_of_every_kind_and_length() -> None:
    p = program("""
      output y: i64[4,5,6]
      output count: i64[4]
      returns y, count
      kernel {
        for i in 4 serial { for j in 5 unroll { for k in 6 step 2 serial { for u in 2 unroll {
          y[i, j, k + u] = i*100 + j*10 + k + u
        } } } }
        for c in 4 unroll { count[c] = 0 }
        for c in 7 step 3 serial { count[0] = count[0] + 1 }
        for c in 0 serial { count[1] = 9 }
        for c in 0 parallel { count[1] = 9 }
        for c in 1 serial { count[1] = count[1] + c + 1 }
        for c in 7 step 3 unroll { count[2] = count[2] + c }
        for c in 5 step 8 parallel { count[3] = count[3] + 1 }
      }""")
    y, count = check(p)
    assert count.tolist() == [3, 1, 9, 1]
    i, j, k = np.indices((4, 5, 6))
    np.testing.assert_array_equal(y, i * 100 + j * 10 + k)


def test_while_and_if() -> None:
    """Integer square roots by Newton; a loop that never runs; branches on data and on constants."""
    p = program("""
      input n: i64[1]
      output r: i64[1]
      output steps: i64[1]
      output branch: i64[3]
      returns r, steps, branch
      kernel {
        r[0] = n[0]
        steps[0] = 0
        while r[0] * r[0] > n[0] {
          r[0] = (r[0] + n[0] // r[0]) // 2
          steps[0] = steps[0] + 1
        }
        while n[0] < 0 { r[0] = -1 }
        for i in 3 unroll {
          for _ in 1 serial { branch[i] = 0 }
          for _ in 1 serial { if i == 1 { branch[i] = 1 } }
          if n[0] > 50 {
            for _ in 1 serial { branch[i] = branch[i] + 10 }
            if n[0] > 90 { branch[i] = branch[i] * 2 }
          }
        }
      }""")
    for n in (1, 7, 60, 99):
        r, _, branch = check(p, [np.array([n])])
        assert r[0] == int(n**0.5)
        assert branch.tolist() == [(b + 10 * (n > 50)) * (1 + (n > 90)) for b in (0, 1, 0)]


def test_loads_are_repeated_when_memory_changed() -> None:
    """Loop-carried values, in one statement sequence and around loops and branches, must not be read too
    early."""
    check(
        program("""
      input x: f32[16]
      input flag: i64[1]
      output a: f32[16]
      output s: f32[4]
      returns a, s
      kernel {
        s[0] = x[0]
        s[1] = s[0] + x[1]
        for i in 15 serial { s[0] = s[0] * f32:0.5 + x[i + 1] }
        s[1] = s[1] + s[0]
        for i in 4 serial {
          for _ in 1 serial { a[i] = s[0] }
          if flag[0] > i { s[0] = s[0] + f32:1.0 }
          a[i + 4] = s[0]
        }
        for i in 8 serial { a[i + 8] = a[i] + s[1]  s[1] = a[i + 8] }
        s[2] = s[1]
        s[3] = f32:0.0
        while s[3] < f32:3.0 { s[3] = s[3] + f32:1.0 }
        s[2] = s[2] + s[3]
      }"""),
        [np.arange(16, dtype=np.float32), np.array([2])],
    )


def test_loads_leave_loops_that_do_not_write_there() -> None:
    text = generate(
        program("""
      input x: f32[8]
      input y: f32[64]
      output z: f32[64]
      returns z
      kernel {
        for i in 64 serial { z[i] = y[i] * exp(x[3]) }
      }"""),
        TARGETS["host"],
    )
    kernel = text[: text.index("}\n")]
    before, loop = kernel.split("\nloop", 1)
    assert "load float" in before and "tg.exp" in before
    assert loop.count("load float") == 1 and "tg.exp" not in loop


def test_arena_buffers_that_overlap_are_not_told_apart() -> None:
    """A reversal in place through another name of the same bytes: reads and writes keep their order."""
    p = program("""
      input x: f32[32]
      output y: f32[32]
      arena a: f32[32] @ 0
      arena b: f32[16] @ 64
      arena c: f32[16] @ 128
      returns y
      arena_bytes 192
      kernel { for i in 32 serial { a[i] = x[i] } }
      kernel {
        for i in 16 serial { b[i] = b[15 - i] + a[i + 15] + f32:1.0 }
        for i in 16 serial { c[i] = f32:2.0 }
        for i in 32 serial { y[i] = a[i] + c[0] }
      }""")
    check(p)
    groups, single = overlap_groups([*p.inputs, *p.outputs, *p.temps])
    a, b, c = p.temps
    assert groups[a] == groups[b] != groups[c] and groups[c] in single and groups[a] not in single
    header = re.search(r"@k1_k\((.*)\) (?:alwaysinline )?#0", generate(p, TARGETS["host"]))
    assert (
        header
        and not re.search(r"noalias [^,]*%[ab]\.", header[1])
        and re.search(r"noalias [^,]*%c\.", header[1])
    )


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

    monkeypatch.setattr("tracegrad.backends.llvm.compile.generate", fail)
    second = compile_program(program(text))
    assert second.from_cache
    arrays = inputs_of(second.program)
    for a, b in zip(first.call(arrays), second.call(arrays)):
        np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    assert "define void @run" in second.llvm_ir() and "run:" in second.assembly()
    with pytest.raises(AssertionError, match="generated"):
        monkeypatch.setattr("tracegrad.backends.llvm.compile.generate", fail)
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
