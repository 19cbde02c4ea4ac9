"""Loop programs that tests of CUDA share: short ones as text, and every primitive and every conversion."""

from __future__ import annotations

import numpy as np
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.expr import EXPR_SCALAR, Cast, Expr, Load, Var
from tracegrad.ir.loop_text import parse_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import Buffer, For, Kernel, LoopProgram, Store
from tracegrad.ir.scalar import PRIMITIVES, numpy_cast


def program(body: str) -> LoopProgram:
    """A program from its declarations and kernels."""
    p = parse_program(f'program "test" {{\n{body}\n}}')
    verify_program(p)
    return p


def one(body: str, head: str = "input x: f32[64]\n  output y: f32[64]\n  returns y") -> LoopProgram:
    """A program of one kernel."""
    return program(f'  {head}\n  kernel "k" "work" flops=0 bytes=0 {{\n{body}\n}}')


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
