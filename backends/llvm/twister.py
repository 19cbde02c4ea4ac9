"""The Mersenne Twister and PyTorch's uniform floats as native code. Called by `tracer.mt19937*` for large
tensors.

    void twist(ptr words, ptr out, i64 vectors)
    void uniform(ptr words, ptr out, i64 vectors, float range, float low, float high)

Word k + 624 of the sequence depends on words k, k + 1 and k + 397, so up to 227 of them are made at once.
`uniform` is the low 24 bits of a word times `range` plus `low`, rounded once, and `low` where that is `high`.

Source: M. Matsumoto, T. Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .engine import default_engine
from .target import CompileError

LANES = 16
SIZE = 624  # words of state
_F, _I = f"<{LANES} x float>", f"<{LANES} x i32>"


def _word(value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * LANES) + ">"


def _function(name: str, parameters: str, body: str) -> str:
    """A loop over vectors: `%k` is the index of the first word of one. `parameters` are floats."""
    floats = "".join(f", float %{p}" for p in parameters.split())
    splat = f"{_F} poison, <{LANES} x i32> zeroinitializer"
    vectors = "".join(
        f"  %{p}.1 = insertelement {_F} poison, float %{p}, i32 0\n"
        f"  %{p}.v = shufflevector {_F} %{p}.1, {splat}\n"
        for p in parameters.split()
    )
    return f"""
define void @{name}(ptr %words, ptr %out, i64 %vectors{floats}) {{
entry:
  %count = mul i64 %vectors, {LANES}
{vectors}  %none = icmp eq i64 %vectors, 0
  br i1 %none, label %done, label %vector
vector:
  %k = phi i64 [ 0, %entry ], [ %next, %vector ]
  %to = getelementptr i32, ptr %out, i64 %k
{body}
  %next = add i64 %k, {LANES}
  %more = icmp ult i64 %next, %count
  br i1 %more, label %vector, label %done
done:
  ret void
}}
"""


def _twist() -> str:
    lines: list[str] = []

    def line(text: str) -> str:
        lines.append(f"  %v{len(lines)} = {text}")
        return f"%v{len(lines) - 1}"

    def word(ahead: int) -> str:
        lines.append(f"  %i{len(lines)} = add i64 %k, {ahead}")
        lines.append(f"  %p{len(lines)} = getelementptr i32, ptr %words, i64 %i{len(lines) - 1}")
        return f"%p{len(lines) - 1}"

    def load(ahead: int) -> str:
        return line(f"load {_I}, ptr {word(ahead)}, align 4")

    def op(name: str, a: str, b: str | int) -> str:
        return line(f"{name} {_I} {a}, {_word(b) if isinstance(b, int) else b}")

    first, second, third = load(0), load(1), load(397)
    mixed = op("or", op("and", first, -(1 << 31)), op("and", second, (1 << 31) - 1))
    odd = op("sub", _word(0), op("and", second, 1))
    made = op("xor", third, op("xor", op("lshr", mixed, 1), op("and", odd, 0x9908B0DF - (1 << 32))))
    lines.append(f"  store {_I} {made}, ptr {word(SIZE)}, align 4")
    y = op("xor", made, op("lshr", made, 11))
    y = op("xor", y, op("and", op("shl", y, 7), 0x9D2C5680 - (1 << 32)))
    y = op("xor", y, op("and", op("shl", y, 15), 0xEFC60000 - (1 << 32)))
    y = op("xor", y, op("lshr", y, 18))
    lines.append(f"  store {_I} {y}, ptr %to, align 4")
    return _function("twist", "", "\n".join(lines))


def _uniform() -> str:
    scale = "<" + ", ".join(["float 0x3E70000000000000"] * LANES) + ">"  # 2**-24
    return _function("uniform", "range low high", f"""
  %from = getelementptr i32, ptr %words, i64 %k
  %word = load {_I}, ptr %from, align 4
  %bits = and {_I} %word, {_word(0xFFFFFF)}
  %whole = sitofp {_I} %bits to {_F}
  %unit = fmul {_F} %whole, {scale}
  %sum = call {_F} @llvm.fma.v{LANES}f32({_F} %unit, {_F} %range.v, {_F} %low.v)
  %excluded = fcmp oeq {_F} %sum, %high.v
  %sample = select <{LANES} x i1> %excluded, {_F} %low.v, {_F} %sum
  store {_F} %sample, ptr %to, align 4""")


@functools.cache
def _native_twist() -> tuple[Any, Callable[..., Any]] | None:
    """The module, which must live on, and its function; None: there is none."""
    try:
        module = default_engine().compile(_twist())
    except CompileError:
        return None
    p, i = ctypes.c_void_p, ctypes.c_int64
    return module, module.function("twist", None, p, p, i)


@functools.cache
def _native_uniform() -> tuple[Any, Callable[..., Any]] | None:
    engine = default_engine()
    if not engine.target.has_fma:
        return None
    try:
        module = engine.compile(f"declare {_F} @llvm.fma.v{LANES}f32({_F}, {_F}, {_F})\n{_uniform()}")
    except CompileError:
        return None
    p, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    return module, module.function("uniform", None, p, p, i, f, f, f)


def twist(raw: np.ndarray, tempered: np.ndarray) -> bool:
    """Fills `raw`, contiguous uint32[n + 1, 624], from its first row on, and `tempered`, uint32[n, 624], with
    the draws. False, and nothing happened, where there is no native code."""
    native = _native_twist()
    if native is None:
        return False
    native[1](raw.ctypes.data, tempered.ctypes.data, tempered.size // LANES)
    return True


def available() -> bool:
    """Whether there is native code for `uniform`: the processor fuses multiply-add."""
    return _native_uniform() is not None


def uniform(words: np.ndarray, low: float, high: float, out: np.ndarray) -> None:
    """Fills `out`, contiguous float32[16 n], from `words`, contiguous uint32[16 n].

    :raises CompileError: it is not available.
    """
    native = _native_uniform()
    if native is None:
        raise CompileError("uniform: this processor does not fuse multiply-add")
    size = float(np.float32(high) - np.float32(low))
    native[1](words.ctypes.data, out.ctypes.data, out.size // LANES, size, low, high)
