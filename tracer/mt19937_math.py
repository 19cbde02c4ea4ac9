"""Elementary functions on NumPy arrays whose every bit is fixed, for the sampling algorithms of `mt19937`.

PyTorch's CPU kernels are compiled with fused multiply-add, and its float32 normal sampler uses the Cephes
single precision polynomials (`backends/cephes.py`). NumPy's own `log`, `sin`
and `cos` differ from these in the last bit and from one processor to the next, so here float32 arithmetic is
carried out in float64 with one rounding where the hardware has one, and float64 functions come from the C
library through `math`. Only `tracer.mt19937` and tests call this file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..backends import cephes

_F32 = np.float32
_F64 = np.float64
_LOW29 = np.uint64(0x1FFFFFFF)
_TIE = np.uint64(0x10000000)


def round32(x: np.ndarray) -> np.ndarray:
    """Round float64 values to the nearest float32 values, kept in float64."""
    return x.astype(_F32).astype(_F64)


def round_sum32(s: np.ndarray, a, b, c) -> np.ndarray:
    """Round `s`, the float64 value of a*b + c for float32-valued a, b and c, as if from the exact sum.

    Rounding twice only differs from rounding once where the float64 sum was inexact and fell on the middle of
    two float32 values; those few are moved off the middle, to the side the lost part points to.
    """
    tie = (s.view(np.uint64) & _LOW29) == _TIE
    if tie.any():
        index = np.nonzero(tie)
        p = np.broadcast_to(a, s.shape)[index] * np.broadcast_to(b, s.shape)[index]
        lost = _two_sum_error(p, np.broadcast_to(c, s.shape)[index], s[index])
        s[index] = np.where(lost == 0, s[index], np.nextafter(s[index], np.copysign(np.inf, lost)))
    return s.astype(_F32)


def fma32(a, b, c) -> np.ndarray:
    """Fused a*b + c of float32 values held in float64 arrays (or scalars); so is the result."""
    s = np.multiply(a, b)
    s += c
    return round_sum32(s, a, b, c).astype(_F64)


def fma64(a: np.ndarray, b: float, c: float) -> np.ndarray:
    """Fused a*b + c in float64, correctly rounded barring overflow and underflow.

    Source: S. Boldo, G. Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Trans. Computers 57
    (2008).
    """
    if c == 0.0:
        return a * b + 0.0
    if b == 1.0:
        return a + c
    high, low = _two_product(a, b)
    t = low + c
    t_low = _two_sum_error(low, c, t)
    v = high + t
    v_low = _two_sum_error(high, t, v)
    z = t_low + v_low
    lost = _two_sum_error(t_low, v_low, z)
    even = (z.view(np.uint64) & np.uint64(1)) == 0
    z = np.where((lost != 0) & even, np.nextafter(z, np.copysign(np.inf, lost)), z)
    return v + z


def _two_sum_error(a, b, s):
    """The exact a + b - s where s is the rounded sum (Knuth)."""
    bb = s - a
    return (a - (s - bb)) + (b - bb)


def _split(x):
    big = x * 134217729.0  # 2**27 + 1 (Veltkamp)
    high = big - (big - x)
    return high, x - high


def _two_product(a: np.ndarray, b: float) -> tuple[np.ndarray, np.ndarray]:
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def libm(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    """The C library's scalar `function` on each element of a float64 array."""
    flat = x.ravel()
    return np.fromiter(map(function, flat.tolist()), _F64, flat.size).reshape(x.shape)


def _c(value: float) -> np.float64:
    return _F64(_F32(value))


_SQRT_HALF, _FOUR_OVER_PI = _c(cephes.SQRT_HALF), _c(cephes.FOUR_OVER_PI)
_LN2_LOW, _LN2_HIGH = _c(cephes.LN2_LOW), _c(cephes.LN2_HIGH)
_LOG_POLY, _QUARTER_PI = tuple(map(_c, cephes.LOG)), tuple(map(_c, cephes.QUARTER_PI))
_SIN_POLY, _COS_POLY = tuple(map(_c, cephes.SIN)), tuple(map(_c, cephes.COS))


def log32(x: np.ndarray) -> np.ndarray:
    """Cephes logf with fused steps. `x`: positive normal float32 values held in float64, as is the result."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    e = exponent - low.astype(_F64)
    x = np.where(low, mantissa + mantissa, mantissa) - 1.0
    z = round32(x * x)
    y = fma32(x, _LOG_POLY[0], _LOG_POLY[1])
    for p in _LOG_POLY[2:]:
        y = fma32(y, x, p)
    y = fma32(round32(y * x), z, round32(e * _LN2_LOW))
    y = round32(y - 0.5 * z)
    return fma32(e, _LN2_HIGH, round32(x + y))


def sincos32(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cephes sinf and cosf with fused steps. `x`: float32 in [0, 8192) held in float64, like the results."""
    octant = (round32(x * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(_F64)
    for part in _QUARTER_PI:
        x = fma32(y, part, x)
    z = round32(x * x)
    cos = fma32(z, _COS_POLY[0], _COS_POLY[1])
    cos = round32(fma32(cos, z, _COS_POLY[2]) * z)
    cos = round32(fma32(cos, z, -0.5 * z) + 1.0)
    sin = fma32(z, _SIN_POLY[0], _SIN_POLY[1])
    sin = round32(fma32(sin, z, _SIN_POLY[2]) * z)
    sin = fma32(sin, x, x)
    straight = (octant & 2) == 0
    s, c = np.where(straight, sin, cos), np.where(straight, cos, sin)
    np.negative(s, out=s, where=(octant & 4) != 0)
    np.negative(c, out=c, where=((octant - 2) & 4) == 0)
    return s, c


def box_muller32(u: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Normal float32 samples from uniforms, 16 at a time: 8 radii, 8 angles give 8 cosine, 8 sine samples.

    `u`: float32[n, 2, 8] in [0, 1). Returns float32[n, 2, 8].
    Source: G. Box, M. Muller (1958), in PyTorch's layout.
    """
    log = log32(1.0 - u[:, 0].astype(_F64))
    radius = np.sqrt(_F32(-2.0) * log.astype(_F32))
    s, c = sincos32((u[:, 1] * _F32(2 * np.pi)).astype(_F64))
    n = np.empty(u.shape, _F32)
    np.multiply(radius, c.astype(_F32), out=n[:, 0])
    np.multiply(radius, s.astype(_F32), out=n[:, 1])
    return scale32(n, _F32(std), _F32(mean))


def scale32(x: np.ndarray, scale: np.float32, shift: np.float32) -> np.ndarray:
    """Fused x*scale + shift of a float32 array, in float32."""
    if shift == 0:
        return x * scale + _F32(0.0)
    a, b, c = x.astype(_F64), _F64(scale), _F64(shift)
    return round_sum32(a * b + c, a, b, c)
