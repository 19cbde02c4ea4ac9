"""Shared by the code generator's tests: small programs around an expression, and comparison with the
interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.target import Target, host_target, llvm
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.expr import Const, Expr, Load, Var
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program
from tracegrad.ir.loops import Buffer, For, Kernel, LoopProgram, Store

_HALF = (dtypes.float16, dtypes.bfloat16)


def x86(cpu: str, vector_bytes: int, registers: int, fma: bool) -> Target:
    """A smaller x86 than the host may be."""
    return Target(cpu, llvm().get_process_triple(), "-prefer-256-bit", vector_bytes, registers, fma)


def targets() -> dict[str, Target]:
    """The host and, on x86-64, what it can run of its ancestors."""
    host = host_target()
    found = {"host": host}
    if host.arch == "x86_64":
        found["sse2"] = x86("x86-64", 16, 16, False)
        if host.vector_bytes >= 32 and host.has_fma:
            found["avx2"] = x86("haswell", 32, 16, True)
    return found


def program(text: str) -> LoopProgram:
    """A program from its declarations and kernels; `kernel {` needs no names."""
    lines = text.replace("kernel {", 'kernel "k" "" flops=0 bytes=0 {')
    return parse_program(f'program "test" {{\n{lines}\n}}')


def elementwise(args: Sequence[DType], out: DType, make, n: int, lanes: int) -> LoopProgram:
    """`out[i] = make(loads of args)` over n elements: scalar (lanes 0), or in vectors whose last one is
    masked."""
    inputs = [Buffer(f"x{i}", d, (n,), "input") for i, d in enumerate(args)]
    y = Buffer("y", out, (n,), "output")
    i = Var("i", n)
    if not lanes:
        body: list = [For(i, n, "serial", [Store(y, (i,), make(*[Load(b, (i,)) for b in inputs]))])]
    else:
        lane = Var("l", lanes)
        at: Expr = i + lane
        mask = None if n % lanes == 0 else _below(at, n)
        zero = [None if mask is None else Const(0 if d.kind != "b" else False, d) for d in args]
        value = make(*[Load(b, (at,), mask, z) for b, z in zip(inputs, zero)])
        body = [For(i, n, "serial", [For(lane, lanes, "vector", [Store(y, (at,), value, mask)])], step=lanes)]
    return LoopProgram("elementwise", inputs, [y], [], [], [Kernel("k", body)])


def _below(at: Expr, n: int) -> Expr:
    from tracegrad.ir.expr import Prim

    return Prim("lt", (at, Const(n)), dtypes.bool_)


def draw(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...], span: float = 4.0) -> np.ndarray:
    """Random values of any dtype."""
    if dtype.kind == "f":
        return rng.uniform(-span, span, shape).astype(dtype.numpy)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    low, high = (0, 100) if dtype.kind == "u" else (-100, 100)
    return rng.integers(low, high, shape).astype(dtype.numpy)


def inputs_of(p: LoopProgram, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw(rng, b.dtype, b.shape) for b in p.inputs]


def assert_same(got: np.ndarray, want: np.ndarray, ulp: float = 0.0, what: str = "") -> None:
    """Equal bits, or for floats within `ulp` units in the last place; NaN equals NaN, signed zeros differ."""
    assert got.dtype == want.dtype and got.shape == want.shape
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    if ulp == 0:
        np.testing.assert_array_equal(a, b, err_msg=what)
        finite = ~np.isnan(b)
        np.testing.assert_array_equal(np.signbit(a[finite]), np.signbit(b[finite]), err_msg=what)
        return
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=what)
    bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[got.dtype.name]
    np.testing.assert_allclose(
        a, b, rtol=ulp * 2.0**-bits, atol=ulp * 1e-7 if bits > 10 else 1e-3, err_msg=what
    )


def check(
    p: LoopProgram,
    arrays: Sequence[np.ndarray] | None = None,
    *,
    ulp: float = 4.0,
    target: Target | None = None,
    serial: bool = False,
) -> list[np.ndarray]:
    """Compiles, runs, and compares outputs and updated inputs with the loop interpreter. Gives the outputs.
    """
    given = inputs_of(p) if arrays is None else list(arrays)
    mine, reference = [a.copy() for a in given], [a.copy() for a in given]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEGRAD_VERIFY", "1")
        native = compile_program(p, target, use_cache=False)
    got = native.call(mine, serial=serial)
    want = run_program(p, reference)
    for b, g, w in zip([*p.outputs, *p.inputs], [*got, *mine], [*want, *reference]):
        exact = b.dtype.kind != "f" or not ulp
        assert_same(g, w, 0.0 if exact else ulp, f"{b.name} of\n{p}")
    return got
