"""PyTorch's sampler of normal floats as native code: `box_muller`. Called by `tracer.mt19937_math`.

    void box_muller(ptr words, ptr out, i64 blocks, float mean, float std)

A block is 16 words of the Mersenne Twister: 8 for radii and 8 for angles give 8 cosine and 8 sine samples.
Every operation is one instruction that rounds once, multiply-add fused where PyTorch's kernels fuse it, so
the bits are PyTorch's; `mt19937_math.box_muller32` is the same in NumPy. It is not made from the loop IR
because loops leave fusing to the target.

Source: G. Box, M. Muller (1958).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import cephes
from .engine import default_engine
from .target import CompileError

LANES = 8
_F, _I = f"<{LANES} x float>", f"<{LANES} x i32>"


class _Vectors:
    """Lines of LLVM IR on vectors of eight floats or words; methods give the name of what they define."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> str:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def real(self, value: float) -> str:
        """A float32 constant; LLVM writes those as the bits of the equal double."""
        bits = int(np.float64(np.float32(value)).view(np.uint64))
        return "<" + ", ".join([f"float 0x{bits:016X}"] * LANES) + ">"

    def word(self, value: int) -> str:
        return "<" + ", ".join([f"i32 {value}"] * LANES) + ">"

    def f(self, op: str, a: str, b: str) -> str:
        return self.line(f"{op} {_F} {a}, {b}")

    def i(self, op: str, a: str, b: str) -> str:
        return self.line(f"{op} {_I} {a}, {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        return self.line(f"call {_F} @llvm.fma.v{LANES}f32({_F} {a}, {_F} {b}, {_F} {c})")

    def polynomial(self, x: str, coefficients: tuple[float, ...]) -> str:
        """Horner's scheme, from the highest power down."""
        y = self.real(coefficients[0])
        for c in coefficients[1:]:
            y = self.fma(y, x, self.real(c))
        return y

    def select(self, where: str, a: str, b: str, kind: str = _F) -> str:
        return self.line(f"select <{LANES} x i1> {where}, {kind} {a}, {kind} {b}")

    def to_float(self, x: str) -> str:
        return self.line(f"sitofp {_I} {x} to {_F}")

    def unit(self, words: str) -> str:
        """Uniform of [0, 1): 24 bits of a word."""
        return self.f("fmul", self.to_float(self.i("and", words, self.word(0xFFFFFF))), self.real(2.0**-24))

    def log(self, x: str) -> str:
        """Of positive normal numbers."""
        bits = self.line(f"bitcast {_F} {x} to {_I}")
        exponent = self.i("sub", self.i("lshr", bits, self.word(23)), self.word(126))
        mantissa = self.i("or", self.i("and", bits, self.word(0x7FFFFF)), self.word(0x3F000000))
        m = self.line(f"bitcast {_I} {mantissa} to {_F}")
        low = self.line(f"fcmp olt {_F} {m}, {self.real(cephes.SQRT_HALF)}")
        e = self.to_float(self.i("add", exponent, self.line(f"sext <{LANES} x i1> {low} to {_I}")))
        m = self.f("fsub", self.select(low, self.f("fadd", m, m), m), self.real(1.0))
        z = self.f("fmul", m, m)
        y = self.f("fmul", self.polynomial(m, cephes.LOG), m)
        y = self.fma(y, z, self.f("fmul", e, self.real(cephes.LN2_LOW)))
        y = self.f("fsub", y, self.f("fmul", z, self.real(0.5)))
        return self.fma(e, self.real(cephes.LN2_HIGH), self.f("fadd", m, y))

    def cos_sin(self, x: str) -> tuple[str, str]:
        """Of numbers in [0, 8192)."""
        octant = self.line(f"fptosi {_F} {self.f('fmul', x, self.real(cephes.FOUR_OVER_PI))} to {_I}")
        octant = self.i("and", self.i("add", octant, self.word(1)), self.word(-2))
        y = self.to_float(octant)
        for part in cephes.QUARTER_PI:
            x = self.fma(y, self.real(part), x)
        z = self.f("fmul", x, x)
        cos = self.f("fmul", self.polynomial(z, cephes.COS), z)
        cos = self.f("fadd", self.fma(cos, z, self.f("fmul", z, self.real(-0.5))), self.real(1.0))
        sin = self.f("fmul", self.polynomial(z, cephes.SIN), z)
        sin = self.fma(sin, x, x)
        swapped = self.line(f"icmp ne {_I} {self.i('and', octant, self.word(2))}, {self.word(0)}")
        c, s = self.select(swapped, sin, cos), self.select(swapped, cos, sin)
        # signs: of the sine bit 2 of the octant, of the cosine bit 2 of octant - 2, inverted
        sign_s = self.i("and", octant, self.word(4))
        before = self.i("sub", octant, self.word(2))
        sign_c = self.i("xor", self.i("and", before, self.word(4)), self.word(4))
        return self.signed(c, sign_c), self.signed(s, sign_s)

    def signed(self, x: str, bit2: str) -> str:
        flipped = self.i("xor", self.line(f"bitcast {_F} {x} to {_I}"), self.i("shl", bit2, self.word(29)))
        return self.line(f"bitcast {_I} {flipped} to {_F}")


def _text() -> str:
    v = _Vectors()
    radii = v.unit(v.line(f"load {_I}, ptr %radii, align 4"))
    log = v.log(v.f("fsub", v.real(1.0), radii))
    root = v.f("fmul", v.real(-2.0), log)
    radius = v.line(f"call {_F} @llvm.sqrt.v{LANES}f32({_F} {root})")
    angles = v.unit(v.line(f"load {_I}, ptr %angles, align 4"))
    stores = []
    for x, where in zip(v.cos_sin(v.f("fmul", angles, v.real(2 * np.pi))), ("%first", "%second")):
        sample = v.fma(v.f("fmul", radius, x), "%std8", "%mean8")
        stores.append(f"  store {_F} {sample}, ptr {where}, align 4")
    every = f"<{LANES} x i32> zeroinitializer"
    body = "\n".join([*v.lines, *stores])
    return f"""
declare {_F} @llvm.fma.v{LANES}f32({_F}, {_F}, {_F})
declare {_F} @llvm.sqrt.v{LANES}f32({_F})

define void @box_muller(ptr %words, ptr %out, i64 %blocks, float %mean, float %std) {{
entry:
  %mean1 = insertelement {_F} poison, float %mean, i32 0
  %mean8 = shufflevector {_F} %mean1, {_F} poison, {every}
  %std1 = insertelement {_F} poison, float %std, i32 0
  %std8 = shufflevector {_F} %std1, {_F} poison, {every}
  %none = icmp eq i64 %blocks, 0
  br i1 %none, label %done, label %block
block:
  %b = phi i64 [ 0, %entry ], [ %next, %block ]
  %at = mul i64 %b, 16
  %half = add i64 %at, 8
  %radii = getelementptr i32, ptr %words, i64 %at
  %angles = getelementptr i32, ptr %words, i64 %half
  %first = getelementptr float, ptr %out, i64 %at
  %second = getelementptr float, ptr %out, i64 %half
{body}
  %next = add i64 %b, 1
  %more = icmp ult i64 %next, %blocks
  br i1 %more, label %block, label %done
done:
  ret void
}}
"""


@functools.cache
def _native() -> tuple[Any, Callable[..., Any]] | None:
    engine = default_engine()
    if not engine.target.has_fma:
        return None
    try:
        module = engine.compile(_text())
    except CompileError:
        return None
    p, i, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    return module, module.function("box_muller", None, p, p, i, f, f)


def available() -> bool:
    """Whether there is native code: the processor fuses multiply-add."""
    return _native() is not None


def box_muller(words: np.ndarray, mean: float, std: float, out: np.ndarray) -> None:
    """Fills `out`, contiguous float32[16 n], from `words`, contiguous uint32[16 n].

    :raises CompileError: it is not available.
    """
    native = _native()
    if native is None:
        raise CompileError("box_muller: this processor does not fuse multiply-add")
    native[1](words.ctypes.data, out.ctypes.data, out.size // 16, mean, std)
