"""LLVM code for statements: memory access patterns and loops."""

from __future__ import annotations

import re

import numpy as np
import pytest
from codegen_tools import check, inputs_of, program, targets
from tracegrad.backends.llvm.codegen_program import generate, overlap_groups
from tracegrad.backends.llvm.compile import compile_program
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


@pytest.mark.parametrize("dtype,lanes", [("f32", 8), ("f32", 16), ("f64", 8), ("f64", 16), ("i64", 8)])
@pytest.mark.parametrize("low,high", [(0, 4), (1, 4), (4, 8), (5, 7), (0, 8), (3, 5)])
def test_lanes_that_are_never_set_are_not_read(dtype: str, lanes: int, low: int, high: int) -> None:
    """Rows in a border: masks of a condition and some lanes, in vectors that are wider than registers."""
    last, back = lanes - 1, f"{lanes - 1} - l"
    p = program(f"""
      input x: {dtype}[3,8]
      output y: {dtype}[5,{lanes}]
      output z: {dtype}[5,{lanes}]
      returns y, z
      kernel {{
        for r in 5 serial {{
          let row: bool = r >= 1 & r < 4
          for l in {lanes} vector {{
            y[{lanes}*r + l] = x[8*r + l - 8 ? row & l >= {low} & l < {high} : {dtype}:0]
            z[{lanes}*r + l] = x[8*r - l + {last - 8} ? row & {back} >= {low} & {back} < {high} : {dtype}:7]
          }}
        }}
      }}""")
    for target in TARGETS.values():
        check(p, target=target, ulp=0)


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
