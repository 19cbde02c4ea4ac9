"""Spelling of CUDA C++: types, literals, names that clash with nothing. Used by the emitters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.errors import TracegradError


class EmitError(TracegradError):
    """A loop program that has no CUDA form."""


#: C++ name of each element type; i64 is `long long` because NVRTC has no <cstdint>
C_TYPES: dict[DType, str] = {
    dtypes.float64: "double",
    dtypes.float32: "float",
    dtypes.float16: "__half",
    dtypes.bfloat16: "__nv_bfloat16",
    dtypes.int64: "long long",
    dtypes.int32: "int",
    dtypes.int16: "short",
    dtypes.int8: "signed char",
    dtypes.uint8: "unsigned char",
    dtypes.bool_: "bool",
    dtypes.uint32: "unsigned int",
    dtypes.uint64: "unsigned long long",
}

_KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t class compl
concept const const_cast constexpr continue decltype default delete do double dynamic_cast else enum explicit
export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
nullptr operator or or_eq private protected public register reinterpret_cast requires return short signed
sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef typeid
typename union unsigned using virtual void volatile wchar_t while xor xor_eq
blockIdx threadIdx blockDim gridDim warpSize dim3 uint3 float2 float4 int2 int4 half stdin stdout stderr
errno main unix linux NULL LAUNCH LAUNCH_SHARED DYNAMIC_SHARED dynamic_shared Pack pack_at INF_F32 INF_F64
NAN_F32 NAN_F64 arena buffers workspace stream
""".split()

#: functions that emitted code may call: a variable of the same name would hide them
_FUNCTIONS = """
abs acos acosh asin asinh atan atan2 atanh ceil cos cosh div erf erfc exp exp2 expm1 fabs floor fma fmax fmin
fmod log log10 log1p log2 max min pow rint round signbit sin sinh sqrt tan tanh trunc j0 j1 jn y0 y1 yn
gamma index lgamma tgamma time clock
minimum maximum sigmoid truncated floor_div floor_mod lesser greater wrap_add wrap_sub wrap_mul wrap_abs
""".split()

RESERVED = frozenset([*_KEYWORDS, *_FUNCTIONS])


class Names:
    """Unique identifiers of objects, as close to their own names as C++ allows."""

    def __init__(self, outer: Names | None = None) -> None:
        self.of: dict[Any, str] = dict(outer.of) if outer else {}
        self.taken: set[str] = set(outer.taken) if outer else set()

    def get(self, x: Any) -> str:
        name = self.of.get(x)
        return name if name is not None else self.define(x, x.name)

    def define(self, x: Any, wish: str) -> str:
        self.of[x] = name = self.fresh(wish)
        return name

    def fresh(self, wish: str) -> str:
        """A name nobody has."""
        base = re.sub(r"\W", "_", wish, flags=re.ASCII) or "v"
        base = re.sub(r"__+", "_", base)  # double underscores are the implementation's
        if base[0].isdigit() or (base[0] == "_" and (len(base) < 2 or base[1].isupper())):
            base = "v" + base
        base = base.lstrip("_") or "v"
        if base[0].isdigit():
            base = "v" + base
        if base in RESERVED:
            base += "_"
        name, n = base, 1
        while name in self.taken:
            name, n = f"{base.rstrip('_')}_{n}", n + 1
        self.taken.add(name)
        return name


def literal(value: Any, dtype: DType, need: Callable[[str], Any]) -> str:
    """A constant as C++ text of that type. `need` is told what must be defined for it."""
    if dtype.kind == "b":
        return "true" if value else "false"
    if dtype.kind == "f":
        return _float(float(value), dtype, need)
    n = int(dtype.number(int(value)))
    if dtype is dtypes.int64:
        if n == -(1 << 63):
            return "(-9223372036854775807LL - 1)"
        return f"{n}" if -(1 << 31) < n < 1 << 31 else f"{n}LL"
    if dtype is dtypes.int32 and n == -(1 << 31):
        return "(-2147483647 - 1)"
    return f"{n}" + ("u" if dtype is dtypes.uint32 else "ull" if dtype is dtypes.uint64 else "")


def _float(v: float, dtype: DType, need: Callable[[str], Any]) -> str:
    if dtype.bits == 16:
        rounded = float(np.asarray(v).astype(dtype.numpy))
        return f"{to_half(dtype)}({_float(rounded, dtypes.float32, need)})"
    narrow = dtype is dtypes.float32
    if narrow:
        with np.errstate(over="ignore"):
            v = float(np.float32(v))
    if not math.isfinite(v):
        name = f"{'NAN' if math.isnan(v) else 'INF'}_{'F32' if narrow else 'F64'}"
        need(name)
        return f"-{name}" if v < 0 else name
    text = str(np.float32(v)) if narrow else repr(v)
    if "." not in text and "e" not in text:
        text += ".0"
    return text + ("f" if narrow else "")


def to_half(dtype: DType) -> str:
    """The function that rounds a float to f16 or bf16."""
    return "__float2half_rn" if dtype is dtypes.float16 else "__float2bfloat16_rn"


def from_half(dtype: DType) -> str:
    """The function that widens f16 or bf16 to float."""
    return "__half2float" if dtype is dtypes.float16 else "__bfloat162float"
