"""Loop programs as CUDA C++: what the text looks like, and that it means what the interpreter says (run by
g++ under the emulation header)."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from codegen_tools import assert_same
from cuda_programs import (
    AXPY,
    EXACT,
    TOTAL,
    TURNS,
    conversion_program,
    elementwise,
    one,
    primitive_cases,
    program,
    values,
)
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc
from tracegrad.backends.cuda.emit import emit
from tracegrad.backends.cuda.emit_names import EmitError, Names
from tracegrad.backends.cuda.emulate import emulate
from tracegrad.ir import dtypes
from tracegrad.ir.expr import Cast, Const, Load, Var
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program
from tracegrad.ir.loops import Buffer, LoopProgram

needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
needs_nvcc = pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def kernel_text(p: LoopProgram) -> str:
    """The first kernel's definition."""
    (text,) = re.findall(r'^extern "C" __global__.*?^}$', emit(p).text, re.M | re.S)[:1]
    return text


# --- what it looks like -------------------------------------------------------------------------------------


def test_a_vector_kernel_reads_as_one_would_write_it() -> None:
    text = emit(program(AXPY)).text
    assert "// mul+add\n//   train.py:7\n" in text
    assert (
        kernel_text(program(AXPY))
        == """\
extern "C" __global__ void __launch_bounds__(256) k0_axpy(const float* __restrict__ x,
        const float* __restrict__ y, float* __restrict__ z) {
  const int b = blockIdx.x;
  const int t = threadIdx.x;
  const Pack<float, 4> x_v = pack_at<4>(x + b * 1024 + t * 4);
  const Pack<float, 4> y_v = pack_at<4>(y + b * 1024 + t * 4);
  Pack<float, 4> z_v;
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const float twice = 2.0f * x_v.lane[v];
    z_v.lane[v] = maximum(twice + y_v.lane[v], 0.0f);
  }
  pack_at<4>(z + b * 1024 + t * 4) = z_v;
}"""
    )


def test_a_reduction_through_shared_memory() -> None:
    assert (
        kernel_text(program(TOTAL))
        == """\
extern "C" __global__ void __launch_bounds__(128) k0_sum(const float* __restrict__ x,
        float* __restrict__ s) {
  __shared__ __align__(16) float parts[4];
  float acc;
  {
    const int t = threadIdx.x;
    acc = 0.0f;
    for (int i = 0; i < 1000; i += 128) {
      acc = acc + (i + t < 1000 ? x[i + t] : 0.0f);
    }
    const float sum = warp_add_f32(acc);
    if (t % 32 == 0) parts[t / 32] = sum;
  }
  __syncthreads();
  {
    const int t = threadIdx.x;
    if (t == 0) {
      s[0] = parts[0] + parts[1] + (parts[2] + parts[3]);
    }
  }
}"""
    )


def test_control_flow_is_that_of_the_host() -> None:
    text = emit(program(TURNS)).text
    host = text[text.index('extern "C" int run_test') :]
    for line in (
        "float* a = reinterpret_cast<float*>(arena);      // f32[]",
        "for (int i = 2; i >= 0; --i) {",
        "LAUNCH(k1, dim3(1), dim3(1), stream, a, b, i);",
        "if (!more_now || trips == 10) break;",
        "cudaMemcpyAsync(last, a, 4, cudaMemcpyDeviceToDevice, stream);",
    ):
        assert re.sub(" +", " ", line) in re.sub(" +", " ", host)


def test_only_what_is_used_is_defined() -> None:
    text = emit(one("for b in 2 block { for t in 32 thread { y[32*b + t] = x[32*b + t] } }")).text
    assert "__device__" not in text and "#include" not in text and "template" not in text


def test_equal_kernels_are_one_function() -> None:
    body = "for b in 2 block { for t in 32 thread { %s[32*b + t] = %s[32*b + t] + f32:1.0 } }"
    p = program(
        "  input x: f32[64]\n  output y: f32[64]\n  arena h: f32[64] @ 0\n  returns y\n  arena_bytes 256\n"
        f'  kernel "k0" "a" flops=0 bytes=0 {{ {body % ("h", "x")} }}\n'
        f'  kernel "k1" "b" flops=0 bytes=0 {{ {body % ("y", "h")} }}'
    )
    unit = emit(p)
    assert [f.name for f in unit.functions] == ["k0"]
    assert "LAUNCH(k0, dim3(2), dim3(32), stream, x, h);" in unit.text
    assert "LAUNCH(k0, dim3(2), dim3(32), stream, h, y);" in unit.text


def test_the_text_depends_on_the_program_alone() -> None:
    assert emit(program(TOTAL)).text == emit(program(TOTAL)).text


def test_large_indices_are_wide_and_small_ones_are_not() -> None:
    text = kernel_text(
        program(
            "  input x: f32[65536,65536]\n  output y: f32[4]\n  returns y\n"
            '  kernel "k" "far" flops=0 bytes=0 { for b in 4 block { for t in 32 thread {\n'
            "    y[b] = x[b*16384, t + 65504] if t == 0\n  } } }"
        )
    )
    assert "y[b] = x[(long long)" in text


def test_accesses_that_are_not_aligned_runs_stay_single() -> None:
    p = one("for b in 1 block { for t in 15 thread { for v in 4 vector { y[4*t + v] = x[4*t + v + 1] } } }")
    text = kernel_text(p)
    assert "Pack<float, 4> y_v;" in text and "x[t * 4 + v + 1]" in text


def test_names_never_hide_what_is_called() -> None:
    names = Names()
    assert [names.fresh(n) for n in ("exp", "exp", "int", "a__b", "2x", "_X", "x.y", "threadIdx", "é")] == [
        "exp_", "exp_1", "int_", "a_b", "v2x", "v_X", "x_y", "threadIdx_", "v_",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("for t in 32 thread { for b in 2 block { y[b] = x[t] } }", "not part of the outermost nest"),
        ("for b in 1 block { for t in 2048 thread { y[0] = x[0] } }", "threads"),
        ("for b in 1 block { for t in 48 thread { y[t] = warp.add(x[t]) } }", "48 threads"),
        (
            "for b in 1 block { alloc shared s: f32[60000] for t in 1 thread { s[0] = x[0] y[0] = s[0] } }",
            "240000 bytes",
        ),
    ],
)
def test_what_has_no_cuda_form_is_an_error_that_says_so(body: str, why: str) -> None:
    head = "input x: f32[64]\n  output y: f32[64]\n  returns y"
    p = parse_program(f'program "p" {{ {head} kernel "k" "c" flops=0 bytes=0 {{ {body} }} }}')
    with pytest.raises(EmitError, match=why):
        emit(p)


# --- what it means ------------------------------------------------------------------------------------------


def compare(p: LoopProgram, *, checked: bool = True, ulp: float = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-2, 2, b.shape).astype(b.dtype.numpy) for b in p.inputs]
    mine, theirs = [a.copy() for a in arrays], [a.copy() for a in arrays]
    got, want = emulate(p, checked).call(mine), run_program(p, theirs)
    for g, w in zip([*got, *mine], [*want, *theirs]):
        assert_same(g, w, ulp)
    return got


@needs_gxx
@pytest.mark.parametrize("text", [AXPY, TOTAL, TURNS], ids=["vector", "shared", "control"])
def test_programs_run_as_the_interpreter_says(text: str) -> None:
    compare(program(text))


@needs_gxx
def test_the_workspaces_size_is_a_constant_of_the_library() -> None:
    run = emulate(program(TURNS), checked=True)
    (name,) = run.unit.workspaces
    assert name == "run_test_workspace" and f"{name} = 192ull;" in run.unit.text
    assert ctypes.c_ulonglong.in_dll(run.library, name).value == 192


@needs_gxx
def test_primitives() -> None:
    p, arrays, wanted = primitive_cases()
    got = emulate(p, checked=True).call(arrays)
    for (name, d, want), g in zip(wanted, got):
        if name in ("minimum", "maximum") and d.kind == "f":
            x, y = values(d, 0), values(d, 1)
            both = (x == 0) & (y == 0)  # NumPy takes either zero
            low, high = np.signbit(x) | np.signbit(y), np.signbit(x) & np.signbit(y)
            want = np.where(both, np.where(low if name == "minimum" else high, -0.0, 0.0), want).astype(
                want.dtype
            )
        exact = name in EXACT or d.kind != "f"
        assert_same(g, want, 0 if exact else 8, f"{name} {d.name}")


@needs_gxx
def test_conversions() -> None:
    p, arrays, wanted = conversion_program()
    for y, g, w in zip(p.outputs, emulate(p).call(arrays), wanted):
        assert_same(g, w, 0, y.name)


@needs_gxx
def test_bits_keep_their_pattern() -> None:
    pairs = [("f32", "u32"), ("u32", "f32"), ("f32", "i32"), ("f64", "i64"), ("i64", "f64"), ("u64", "f64"),
             ("f16", "bf16"), ("bf16", "i16"), ("i16", "f16"), ("i8", "u8"), ("i32", "u32")]  # fmt: skip
    p = LoopProgram("bits")
    arrays = []
    for a, b in pairs:
        source, target = dtypes.BY_NAME[a], dtypes.BY_NAME[b]
        x, y = Buffer(f"x_{a}_{b}", source, (33,), "input"), Buffer(f"y_{a}_{b}", target, (33,), "output")
        p.inputs.append(x)
        p.outputs.append(y)
        i = Var("i", 33)
        p.steps.append(elementwise(f"k_{a}_{b}", [x], y, Cast(Load(x, (i,)), target, bits=True), i))
        arrays.append(values(source, 3))
    for a, g in zip(arrays, emulate(p).call(arrays)):
        assert a.tobytes() == g.tobytes()


@needs_gxx
def test_constants_of_every_dtype() -> None:
    """Baked arrays and literals, infinities and halves among them."""
    p = LoopProgram("constants")
    wanted = []
    for d in dtypes.ALL:
        data = values(d, 5)
        c = Buffer(f"c_{d.name}", d, (33,), "const", data=data.tobytes())
        y = Buffer(f"y_{d.name}", d, (33,), "output")
        i = Var("i", 33)
        p.outputs.append(y)
        p.steps.append(elementwise(f"k_{d.name}", [c], y, Load(c, (i,)), i))
        wanted.append(data)
        for k in range(12):
            z = Buffer(f"z{k}_{d.name}", d, (33,), "output")
            p.outputs.append(z)
            j = Var("j", 33)
            p.steps.append(elementwise(f"k{k}_{d.name}", [], z, Const(data[k].item(), d), j))
            wanted.append(np.full(33, data[k], d.numpy))
    for y, g, w in zip(p.outputs, emulate(p).call([]), wanted):
        assert_same(g, w, 0, y.name)


@needs_gxx
def test_literals_beside_operators_keep_their_meaning() -> None:
    """Negative numbers, extrema with literals of both signs, wrapping, division that rounds down."""
    head = "input x: f32[64]\n  input n: i64[64]\n  output y: f32[64]\n  output m: i64[64]\n  returns y, m"
    p = one(
        """for b in 1 block { for t in 64 thread {
          let a: f32 = x[t]
          let k: i64 = n[t]
          y[t] = minimum(a, f32:-0.5) - f32:-1.0 - maximum(-a, f32:0.25)*f32:-2.0
            + minimum(maximum(a, f32:0.0), f32:1.0)
          m[t] = (k // 7)*3 + (k % -5) - (k // (t - 3)) + (k << 3) + (k >> 2)
            + (k & 255 ^ 17 | 64) + -k + abs(k)
        } }""",
        head,
    )
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, 64).astype(np.float32)
    x[:4] = [0.0, -0.0, np.nan, np.inf]
    n = rng.integers(-(1 << 62), 1 << 62, 64) >> rng.integers(0, 62, 64)
    n[:2] = [-(1 << 63), (1 << 63) - 1]
    got, want = emulate(p, checked=True).call([x, n]), run_program(p, [x, n])
    for g, w in zip(got, want):
        assert_same(g, w)


@needs_gxx
def test_three_dimensional_grids_and_blocks() -> None:
    p = program(
        "  input x: f32[2,3,4,2,4,8]\n  output y: f32[8,4,2,4,3,2]\n  returns y\n"
        '  kernel "k" "turn" flops=0 bytes=0 { for a in 2 block { for b in 3 block { for c in 4 block {\n'
        "    for d in 2 thread { for e in 4 thread { for f in 8 thread {\n"
        "      y[f, e, d, c, b, a] = x[a, b, c, d, e, f] } } } } } } }"
    )
    assert "dim3(4, 3, 2), dim3(8, 4, 2)" in emit(p).text
    compare(p)


@needs_gxx
def test_halves_are_computed_in_f32() -> None:
    head = "input x: f16[64]\n  input z: bf16[64]\n  output y: f16[64]\n  output w: bf16[64]\n  returns y, w"
    compare(
        one(
            """for b in 1 block { for t in 8 thread { for v in 8 vector {
              y[8*t + v] = f16(f32(x[8*t + v])*f32:3.0)
              w[8*t + v] = bf16(f32(z[8*t + v]) - f32:1.0)
            } } }""",
            head,
        )
    )
