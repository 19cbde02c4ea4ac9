"""Loop programs as CUDA C++: what the text looks like, that it means what the interpreter says (run by g++
under the emulation header), that nvcc takes it without a warning, and that the emulator finds what is
wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
from codegen_tools import assert_same
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc, nvrtc
from tracegrad.backends.cuda.emit import emit
from tracegrad.backends.cuda.emit_names import EmitError, Names
from tracegrad.backends.cuda.emulate import EmulationError, emulate
from tracegrad.backends.cuda.nvcc import NvccError, Resources, parse_resources
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.expr import EXPR_SCALAR, Cast, Const, Expr, Load, Var
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import Buffer, For, Kernel, LoopProgram, Store
from tracegrad.ir.scalar import PRIMITIVES, numpy_cast

needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
needs_nvcc = pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def program(body: str) -> LoopProgram:
    """A program from its declarations and kernels."""
    p = parse_program(f'program "test" {{\n{body}\n}}')
    verify_program(p)
    return p


def one(body: str, head: str = "input x: f32[64]\n  output y: f32[64]\n  returns y") -> LoopProgram:
    """A program of one kernel."""
    return program(f'  {head}\n  kernel "k" "work" flops=0 bytes=0 {{\n{body}\n}}')


def kernel_text(p: LoopProgram) -> str:
    """The first kernel's definition."""
    (text,) = re.findall(r'^extern "C" __global__.*?^}$', emit(p).text, re.M | re.S)[:1]
    return text


AXPY = """
  input x: f32[4096]
  input y: f32[4096]
  output z: f32[4096]
  returns z
  kernel "k0_axpy" "mul+add" "train.py:7" flops=8192 bytes=49152 {
    for b in 4 block {
      for t in 256 thread {
        for v in 4 vector {
          let twice: f32 = f32:2.0*x[1024*b + 4*t + v]
          z[1024*b + 4*t + v] = maximum(twice + y[1024*b + 4*t + v], f32:0.0)
        }
      }
    }
  }"""

TOTAL = """
  input x: f32[1000]
  output s: f32[]
  returns s
  kernel "k0_sum" "sum" flops=1000 bytes=4004 {
    for b in 1 block {
      alloc shared parts: f32[4]
      alloc register acc: f32[]
      for t in 128 thread {
        acc[0] = f32:0.0
        for i in 1000 step 128 serial {
          acc[0] = acc[0] + x[i + t ? i + t < 1000 : f32:0.0]
        }
        let sum: f32 = warp.add(acc[0])
        parts[t // 32] = sum if t % 32 == 0
      }
      barrier
      for t in 128 thread {
        if t == 0 {
          s[0] = parts[0] + parts[1] + (parts[2] + parts[3])
        }
      }
    }
  }"""

TURNS = """
  input n: f32[]
  output r: f32[]
  output last: f32[]
  arena a: f32[] @ 0
  arena b: f32[] @ 64
  arena more: bool[] @ 128
  returns r, last
  arena_bytes 192
  kernel "k0" "start" flops=0 bytes=0 {
    for g in 1 block { for t in 1 thread { a[0] = n[0] } }
  }
  repeat i in 3 reverse rotate (a, b) {
    kernel "k1" "next" flops=0 bytes=0 {
      for g in 1 block { for t in 1 thread { b[0] = a[0]*f32:2.0 + f32(i) } }
    }
  }
  kernel "k2" "copy" flops=0 bytes=0 {
    for g in 1 block { for t in 1 thread { r[0] = b[0] a[0] = b[0] } }
  }
  while more most 10 rotate (a, b) gives (last, a) {
    kernel "k3" "test" flops=0 bytes=0 {
      for g in 1 block { for t in 1 thread { more[0] = a[0] < f32:1000.0 } }
    }
  } do {
    kernel "k4" "double" flops=0 bytes=0 {
      for g in 1 block { for t in 1 thread { b[0] = a[0] + a[0] } }
    }
  }
  branch more {
    kernel "k5" "never" flops=0 bytes=0 {
      for g in 1 block { for t in 1 thread { r[0] = f32:0.0 } }
    }
  } else {
  }"""


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
        ("for b in 1 block { alloc shared s: f32[20000] for t in 1 thread { s[0] = x[0] } }", "80000 bytes"),
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


SPECIAL = [
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan),
    *(1e-40, 3e38, -3e38, 7, -3),
]
EXACT = "add sub mul div neg abs minimum maximum floor ceil trunc round sqrt fmod".split()


def values(dtype: DType, seed: int) -> np.ndarray:
    """33 values, the awkward ones among them."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        special = np.array(SPECIAL)
        return rng.permutation(np.concatenate([special, rng.uniform(-3, 3, 16)])).astype(dtype.numpy)
    if dtype.kind == "b":
        return rng.integers(0, 2, 33).astype(bool)
    info = np.iinfo(dtype.numpy)
    special = np.array([info.min, info.max, 0, 1, 2, info.max - 1, info.min + 1], dtype.numpy)
    more = np.array([-1, -2] if dtype.kind == "i" else [3, 4]).astype(dtype.numpy)
    rest = rng.integers(0 if dtype.kind == "u" else -20, 20, 24).astype(dtype.numpy)
    return rng.permutation(np.concatenate([special, more, rest]))


def elementwise(name: str, inputs: list[Buffer], out: Buffer, value: Expr, i: Var) -> Kernel:
    """One thread for each element."""
    thread = For(i, 33, "thread", [Store(out, (i,), value)])
    return Kernel(name, [For(Var("b", 1), 1, "block", [thread])])


def primitive_cases() -> tuple[LoopProgram, list[np.ndarray], list[tuple[str, DType, np.ndarray]]]:
    """Every primitive of every dtype it takes, as one program: its inputs, and what comes out."""
    p = LoopProgram("primitives")
    arrays: list[np.ndarray] = []
    wanted: list[tuple[str, DType, np.ndarray]] = []
    made: dict[tuple[DType, int, str], Buffer] = {}

    def operand(dtype: DType, seed: int, how: str = "") -> tuple[Buffer, np.ndarray]:
        b = made.get((dtype, seed, how))
        if b is None:
            a = values(dtype, seed)
            if how == "shift":
                a = (np.arange(33) % dtype.bits).astype(dtype.numpy)
            elif how == "positive":
                a = np.abs(a)
            b = made[dtype, seed, how] = Buffer(f"x{len(arrays)}", dtype, (33,), "input")
            p.inputs.append(b)
            arrays.append(a)
        return b, arrays[p.inputs.index(b)]

    for name, prim in PRIMITIVES.items():
        for d in dtypes.ALL:
            if d.kind not in prim.kinds or (name == "mulhi" and d is not dtypes.uint32):
                continue
            if d.kind == "f" and d.bits == 16:
                continue  # schedulers widen first
            given = []
            for k in range(prim.arity):
                kind = dtypes.bool_ if prim.result == "select" and k == 0 else d
                how = "shift" if name in ("shl", "shr") and k == 1 else ""
                how = "positive" if name in ("acosh", "pow", "log", "sqrt") and k == 0 else how
                given.append(operand(kind, k, how))
            with np.errstate(all="ignore"):
                args = [a for _, a in given]
                want = np.asarray(np.where(*args) if prim.result == "select" else prim.numpy(*args))
            out = Buffer(f"{name}_{d.name}", dtypes.bool_ if prim.result == "bool" else d, (33,), "output")
            i = Var("i", 33)
            loads = [Load(b, (i,)) for b, _ in given]
            p.outputs.append(out)
            value = EXPR_SCALAR.prim(name, *loads)
            p.steps.append(elementwise(f"k_{name}_{d.name}", [b for b, _ in given], out, value, i))
            wanted.append((name, d, want.astype(out.dtype.numpy)))
    return p, arrays, wanted


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


def conversion_program() -> tuple[LoopProgram, list[np.ndarray], list[np.ndarray]]:
    """Every dtype to every other, on values that don't fit, NaN and ties."""
    p = LoopProgram("conversions")
    arrays, wanted = [], []
    ties = [2049.0, 2051.0, 65519.0, 65520.0, 6e-8, 3e-8, 1e-7, 1.00390625, 9.3e18, -9.3e18, 3e9, -3e9, 300.5]
    for a in dtypes.ALL:
        x = Buffer(f"x_{a.name}", a, (33,), "input")
        p.inputs.append(x)
        array = values(a, 1)
        if a.kind == "f":
            array[: len(ties)] = np.array(ties).astype(a.numpy)
        arrays.append(array)
        for b in dtypes.ALL:
            y = Buffer(f"{a.name}_{b.name}", b, (33,), "output")
            p.outputs.append(y)
            i = Var("i", 33)
            value = Load(x, (i,)) if a is b else Cast(Load(x, (i,)), b)
            p.steps.append(elementwise(f"k_{a.name}_{b.name}", [x], y, value, i))
            with np.errstate(all="ignore"):
                narrow = array.astype(np.float32) if b.kind == "f" and b.bits == 16 else array
                wanted.append(numpy_cast(narrow, b))
    return p, arrays, wanted


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


# --- what the emulator finds --------------------------------------------------------------------------------


@needs_gxx
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("for b in 1 block { for t in 65 thread { y[t] = f32:1.0 } }", "outside of the kernel's buffers"),
        ("for b in 1 block { for t in 64 thread { y[t] = x[t + 1] } }", "outside of the kernel's buffers"),
        ("for b in 1 block { for t in 64 thread { y[t // 2] = x[t] } }", "race"),
        ("for b in 2 block { for t in 32 thread { y[t] = x[t] } }", "race with thread 0 of block 0"),
        (
            "for b in 1 block { alloc shared s: f32[64]\n"
            "for t in 64 thread { s[t] = x[t] y[t] = s[63 - t] } }",
            "reads shared memory that was not written|race",
        ),
        (
            "for b in 1 block { alloc shared s: f32[64] for t in 64 thread { s[t] = x[t] } barrier\n"
            "for t in 64 thread { y[t] = s[63 - t] s[t] = f32:0.0 } }",
            "race",
        ),
        (
            "for b in 1 block { alloc shared s: f32[64] for t in 32 thread { s[t] = x[t] } barrier\n"
            "for t in 32 thread { y[t] = s[t + 1] } }",
            "shared memory that was not written",
        ),
        (
            "for b in 1 block { for t in 64 thread { alloc local a: f32[4]\n"
            "for i in 4 serial { a[i] = x[t] }\n"
            "y[t] = a[t] } }",
            "is outside of its array",
        ),
    ],
    ids=["write", "read", "threads", "blocks", "barrier", "phase", "unwritten", "local"],
)
def test_the_emulator_finds(body: str, why: str) -> None:
    head = "input x: f32[64]\n  output y: f32[64]\n  returns y"
    p = parse_program(f'program "p" {{ {head} kernel "k" "c" flops=0 bytes=0 {{ {body} }} }}')
    with pytest.raises(EmulationError, match=why):
        emulate(p, checked=True).call([np.ones(64, np.float32)])


@needs_gxx
def test_after_a_finding_the_next_call_starts_anew() -> None:
    p = one("for b in 1 block { for t in 64 thread { y[t] = x[i64(x[t])] } }")
    run = emulate(p, checked=True)
    with pytest.raises(EmulationError, match="kernel k, block 0, thread 0: reads 4 bytes"):
        run.call([np.full(64, 99, np.float32)])
    (got,) = run.call([np.zeros(64, np.float32)])
    assert not got.any()


@needs_gxx
def test_text_that_does_not_compile_is_reported() -> None:
    with pytest.raises(EmulationError, match="g\\+\\+ failed"):
        emulation.build("extern int x = y;")


# --- nvcc ---------------------------------------------------------------------------------------------------


@needs_nvcc
def test_nvcc_takes_all_primitives_and_conversions_without_a_warning() -> None:
    programs = [primitive_cases()[0], conversion_program()[0], program(AXPY), program(TOTAL), program(TURNS)]
    nvcc.check(emit(programs).text)


@needs_nvcc
def test_nvcc_builds_the_host_part_too(tmp_path) -> None:
    nvcc.compile_library(emit([program(AXPY), program(TURNS)]).text, tmp_path / "unit.so", "sm_90")
    assert (tmp_path / "unit.so").stat().st_size > 0


@needs_nvcc
def test_resources_are_read_back() -> None:
    code, found = nvcc.compile_cubin(emit(program(TOTAL)).text, "sm_80")
    assert code[:4] == b"\x7fELF" and list(found) == ["k0_sum"]
    assert found["k0_sum"].shared == 16 and found["k0_sum"].registers > 0
    assert nvcc.compile_cubin(emit(program(TOTAL)).text, "sm_80") == (code, found)  # from the cache


@needs_nvcc
def test_a_warning_is_an_error() -> None:
    with pytest.raises(NvccError, match="never referenced"):
        nvcc.check("__global__ void k() { int unused; }\n")


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(NvccError, match="no architecture 'sm_10'; there are sm_75"):
        nvcc.check("", "sm_10")


def test_the_report_of_ptxas_is_read() -> None:
    report = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1' for 'sm_80'
ptxas info    : Function properties for k1
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'k0' for 'sm_80'
ptxas info    : Function properties for k0
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Function properties for __internal_accurate_pow
    64 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
    assert parse_resources(report) == {"k1": Resources(255, 4096, 20, 16), "k0": Resources(10, 0, 0, 0)}
    assert str(Resources(255, 4096, 20, 16)) == "255 registers, 4096 bytes shared, 20 bytes spilled"


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC (the extra [cuda]) is not installed")
def test_nvrtc_compiles_the_device_part() -> None:
    assert nvrtc.compile_cubin(emit(program(TOTAL)).device_text, "sm_80")[:4] == b"\x7fELF"
