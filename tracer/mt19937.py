"""PyTorch's CPU sampling algorithms on NumPy: the same values from the same draws, bit for bit.

`uniform`, `normal`, `randint`, `random`, `randperm`, `bernoulli`, `exponential`, `log_normal`, `cauchy`,
`geometric` and `multinomial` take an `MT19937` generator and return NumPy arrays, as PyTorch 2.13 gives on
x86-64 with AVX2. No Tensor here: the tracer's random functions, the initialisers and the loaders call it.
Bad values raise TracegradError, bad dtypes DTypeError; the generator is then as it was.

Sources: Box and Muller (1958); Fisher and Yates; Gumbel's trick, in exponential form, for sampling without
replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import DTypeError, TracegradError
from .mt19937_engine import MT19937, NATIVE
from .mt19937_math import box_muller32, fma64, libm, round_sum32

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = [
    "MT19937", "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal",
    "randint", "random", "randperm", "uniform",
]  # fmt: skip

Shape = int | Sequence[int]

_U32, _U64, _F32, _F64 = np.uint32, np.uint64, np.float32, np.float64
_DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # of types by their names
_CHUNK = 1 << 14  # samples worked on at a time, so that temporaries stay in cache
_RANDPERM_SMALL = 0xFFFFFFFF // 20  # from here on PyTorch draws 64 bits per step, against modulo bias


# ---- shapes and dtypes ---------------------------------------------------------------------------


def _shape(shape: Shape) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if any(s < 0 for s in sizes):
        raise TracegradError(f"sizes must not be negative, got {sizes}")
    return tuple(int(s) for s in sizes)


def _float_dtype(dtype: DTypeLike, what: str) -> np.dtype:
    dt = np.dtype(dtype)
    if dt.name not in _DIGITS:
        raise DTypeError(f"{what}: expected float16, bfloat16, float32 or float64, got {dt}")
    return dt


def _finfo_max(dt: np.dtype) -> float:
    if dt.name != "bfloat16":
        return float(np.finfo(dt).max)
    return 2.0**127 * (2 - 2.0**-7)


def _iinfo(dt: np.dtype) -> np.iinfo:
    return np.iinfo(dt.type)


def _cast(values: np.ndarray, dt: np.dtype) -> np.ndarray:
    """float64 to `dt` as C++ does it: half types round through float32, bool is "not zero"."""
    return values.astype(_F32).astype(dt) if dt.itemsize == 2 and dt.name in _DIGITS else values.astype(dt)


def _unit32(words: np.ndarray) -> np.ndarray:
    """float32[n] in [0, 1): the low 24 bits of each word."""
    return (words & _U32(0xFFFFFF)).astype(_F32) * _F32(2.0**-24)


def _unit64(gen: MT19937, n: int) -> np.ndarray:
    """float64[n] in [0, 1): the low 53 bits of two words each."""
    return (gen.words64(n) & _U64((1 << 53) - 1)).astype(_F64) * 2.0**-53


# ---- real distributions --------------------------------------------------------------------------


def _room(out: np.ndarray | None, size: int, dt: np.dtype) -> np.ndarray:
    return np.empty(size, dt) if out is None else out.reshape(-1)


def uniform(
    gen: MT19937,
    shape: Shape,
    dtype: DTypeLike = _F32,
    low: float = 0.0,
    high: float = 1.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """`rand` and `uniform_`: [low, high), one word a sample, two for float64. Bad bounds raise. They are
    written into `out`, a contiguous array of that shape and dtype, if it is given."""
    dt, sizes, low, high = _float_dtype(dtype, "uniform"), _shape(shape), float(low), float(high)
    most = _finfo_max(dt)
    if not (-most <= low <= high <= most and high - low <= most):
        raise TracegradError(f"uniform: need low <= high with high - low in range of {dt}, got {low}, {high}")
    out = _room(out, math.prod(sizes), dt)
    wide = dt == _F64
    acc = _F64 if wide else _F32
    base, end = acc(low), acc(high)
    step = _F64(end - base) * 2.0**-24
    first, last = np.asarray(low, acc).astype(dt), np.asarray(high, acc).astype(dt)
    with gen.lock:
        gen.expect(2 * out.size if wide else out.size)
        native = out.size >= NATIVE and dt == _F32
        for start in range(0, out.size, _CHUNK):
            n = min(_CHUNK, out.size - start)
            if native and not n % 16 and _native_uniform(gen, low, high, out[start : start + n]):
                continue
            if wide:
                u = _unit64(gen, n)
                u = u if (base, end) == (0, 1) else fma64(u, float(end - base), low)
            elif (base, end) == (0, 1):
                u = _unit32(gen.words(n))
            else:  # the word's 24 bits times a float's are exact in float64
                k = gen.words(n)
                k &= _U32(0xFFFFFF)
                u = np.multiply(k, step, dtype=_F64)
                u += _F64(base)
                u = round_sum32(u, k, step, _F64(base))
            u = u.astype(dt, copy=False)
            # Rounding, of the product or to a half type, may reach the excluded bound: there PyTorch puts
            # `low`.
            u[u == last] = first
            out[start : start + n] = u
    return out.reshape(sizes)


def normal(
    gen: MT19937,
    shape: Shape,
    dtype: DTypeLike = _F32,
    mean: float = 0.0,
    std: float = 1.0,
    contiguous: bool = True,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """`randn` and `normal_`. TracegradError for a negative `std`. `out` as for `uniform`; a size of less than
    16 leaves it alone.

    From 16 samples on, blocks of 16 are made from 16 uniforms and the last 16 samples are drawn afresh when
    the size is not a multiple of 16. Below, or when PyTorch's tensor is not contiguous (`contiguous=False`),
    samples come one by one in float64, in pairs of which the second waits in the generator for the next call.
    """
    dt, sizes, mean, std = _float_dtype(dtype, "normal"), _shape(shape), float(mean), float(std)
    if not std >= 0:
        raise TracegradError(f"normal: expected std >= 0, got {std}")
    size = math.prod(sizes)
    with gen.lock:
        if size < 16 or not contiguous:
            return _cast(_normal_pairs(gen, size, mean, std), dt).reshape(sizes)
        out = _room(out, size, dt)
        whole = size - size % 16
        native = whole >= NATIVE and dt != _F64
        gen.expect(whole)
        for start in range(0, whole, _CHUNK):
            part = out[start : min(start + _CHUNK, whole)]
            if not native or not _native_blocks(gen, part, mean, std):
                part[...] = _normal_blocks(gen, part.size, dt, mean, std)
        if whole != size:
            if dt.itemsize >= 4:  # the half types never draw the uniforms that the last block replaces
                gen.words((size - whole) * (dt.itemsize // 4))
            out[-16:] = _normal_blocks(gen, 16, dt, mean, std)
    return out.reshape(sizes)


def _native_uniform(gen: MT19937, low: float, high: float, out: np.ndarray) -> bool:
    """Native code's samples; False, and nothing was drawn, where there is none."""
    from ..backends.llvm.twister import available, uniform

    if not available():
        return False
    uniform(gen.words(out.size), low, high, out)
    return True


def _native_blocks(gen: MT19937, out: np.ndarray, mean: float, std: float) -> bool:
    """Native code's samples; False, and nothing was drawn, where there is none."""
    from ..backends.llvm.box_muller import available, box_muller

    if not available():
        return False
    samples = out if out.dtype == _F32 else np.empty(out.size, _F32)
    box_muller(gen.words(out.size), mean, std, samples)
    if samples is not out:
        out[...] = samples
    return True


def _normal_blocks(gen: MT19937, n: int, dt: np.dtype, mean: float, std: float) -> np.ndarray:
    if dt != _F64:
        return box_muller32(_unit32(gen.words(n)).reshape(-1, 2, 8), mean, std).reshape(-1)
    u = _unit64(gen, n).reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * libm(math.log, 1.0 - u[:, 0]))
    theta = 2.0 * math.pi * u[:, 1]
    samples = np.stack([radius * libm(math.cos, theta), radius * libm(math.sin, theta)], axis=1)
    return fma64(samples.reshape(-1), std, mean)


def _normal_pairs(gen: MT19937, n: int, mean: float, std: float) -> np.ndarray:
    """float64[n] by the scalar Box-Muller with the cached second sample."""
    cached = [] if gen.normal_sample is None or n == 0 else [gen.normal_sample]
    pairs = (n - len(cached) + 1) // 2
    u = _unit64(gen, 2 * pairs).reshape(pairs, 2)
    radius = np.sqrt(-2.0 * libm(math.log1p, -u[:, 1]))
    theta = 2.0 * math.pi * u[:, 0]
    fresh = np.stack([radius * libm(math.cos, theta), radius * libm(math.sin, theta)], axis=1).reshape(-1)
    samples = np.concatenate([np.array(cached, _F64), fresh])
    if n:
        gen.normal_sample = float(samples[n]) if samples.size > n else None
    return fma64(samples[:n], std, mean)


def exponential(gen: MT19937, shape: Shape, dtype: DTypeLike = _F32, lambd: float = 1.0) -> np.ndarray:
    """`exponential_` with rate `lambd` > 0: -log1p(-u) / lambd of a float64 uniform, two words a sample."""
    dt, sizes, lambd = _float_dtype(dtype, "exponential"), _shape(shape), float(lambd)
    if not lambd > 0:
        raise TracegradError(f"exponential: expected lambd > 0, got {lambd}")
    u = _unit64(gen, math.prod(sizes))
    return _cast(-1.0 / lambd * libm(math.log1p, -u), dt).reshape(sizes)


def log_normal(
    gen: MT19937, shape: Shape, dtype: DTypeLike = _F32, mean: float = 1.0, std: float = 2.0
) -> np.ndarray:
    """`log_normal_`: exp of scalar-path normal samples (see `normal`). TracegradError unless std > 0."""
    dt, sizes, mean, std = _float_dtype(dtype, "log_normal"), _shape(shape), float(mean), float(std)
    if not std > 0:
        raise TracegradError(f"log_normal: expected std > 0, got {std}")
    with gen.lock:
        samples = _normal_pairs(gen, math.prod(sizes), mean, std)
    return _cast(libm(_exp, samples), dt).reshape(sizes)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def cauchy(
    gen: MT19937, shape: Shape, dtype: DTypeLike = _F32, median: float = 0.0, sigma: float = 1.0
) -> np.ndarray:
    """`cauchy_`: median + sigma tan(pi (u - 1/2)) of a float64 uniform. TracegradError unless sigma > 0."""
    dt, sizes, sigma = _float_dtype(dtype, "cauchy"), _shape(shape), float(sigma)
    if not sigma > 0:
        raise TracegradError(f"cauchy: expected sigma > 0, got {sigma}")
    u = _unit64(gen, math.prod(sizes))
    return _cast(fma64(libm(math.tan, math.pi * (u - 0.5)), sigma, float(median)), dt).reshape(sizes)


def geometric(gen: MT19937, shape: Shape, dtype: DTypeLike = _F32, p: float = 0.5) -> np.ndarray:
    """`geometric_`: ceil(log(u) / log1p(-p)), any real dtype. TracegradError unless 0 < p < 1."""
    sizes, p = _shape(shape), float(p)
    if not 0 < p < 1:
        raise TracegradError(f"geometric: expected p in (0, 1), got {p}")
    u = _unit64(gen, math.prod(sizes))
    log = libm(lambda v: math.log(v) if v else -math.inf, u)
    return _cast(np.ceil(log / math.log1p(-p)), np.dtype(dtype)).reshape(sizes)


# ---- integers ------------------------------------------------------------------------------------


def randint(
    gen: MT19937, low: int, high: int | None, shape: Shape, dtype: DTypeLike = np.int64
) -> np.ndarray:
    """`randint` and `random_(low, high)`: integers of [low, high) in any real dtype or bool.

    `high=None` means up to the largest value of `dtype` (2**mantissa for floats). One word a sample, two when
    the range has 2**28 values or more, reduced modulo the range. TracegradError if the range is empty or does
    not fit `dtype`.
    """
    dt, sizes, low = np.dtype(dtype), _shape(shape), int(low)
    limit = 1 << 63
    if not -limit <= low < limit or (high is not None and not -limit <= high < limit):
        raise TracegradError(f"randint: bounds must fit int64, got low={low}, high={high}")
    if high is not None and low >= high:
        raise TracegradError(f"randint: expected low < high, got low={low}, high={high}")
    n = math.prod(sizes)
    if high is None and low == -limit:
        if dt not in (np.int64, _F64, _F32) and dt.name != "bfloat16":
            raise DTypeError(f"randint: expected int64, float64, float32 or bfloat16 for 64 bits, got {dt}")
        return _from_int64(gen.words64(n).view(np.int64), dt).reshape(sizes)
    if dt.name in _DIGITS:
        last = (1 << _DIGITS[dt.name]) if high is None else int(high) - 1
        least, most = -_finfo_max(dt), _finfo_max(dt)
        if least <= low <= most and least <= last <= most:
            low = _round_low(low, dt)
            last = last if high is None else _round_high(int(high), dt) - 1
    elif dt == np.bool_:
        least, most = 0, 1
        last = 1 if high is None else int(high) - 1
    elif dt.kind in "iu":
        least, most = int(_iinfo(dt).min), min(int(_iinfo(dt).max), limit - 1)
        last = most if high is None else int(high) - 1
    else:
        raise DTypeError(f"randint: expected an integer, floating-point or bool dtype, got {dt}")
    if not (least <= low <= most and least <= last <= most and low <= last):
        raise TracegradError(f"randint: the range [{low}, {last}] does not fit {dt}")
    span = last - low + 1
    draws = gen.words64(n) if span >= 1 << 28 else gen.words(n).astype(_U64)
    values = (draws % _U64(span) + _U64(low & 0xFFFFFFFFFFFFFFFF)).view(np.int64)
    return _from_int64(values, dt).reshape(sizes)


def _from_int64(values: np.ndarray, dt: np.dtype) -> np.ndarray:
    return values.astype(_F32).astype(dt) if dt.itemsize == 2 and dt.name in _DIGITS else values.astype(dt)


def _rounded(value: int, dt: np.dtype) -> int:
    """`value` through `dt` and back; past int64 it wraps to the least one, as x86-64's conversion does."""
    there = int(_from_int64(np.array([value], np.int64), dt)[0])
    return there if there < 1 << 63 else -(1 << 63)


def _round_low(low: int, dt: np.dtype) -> int:
    """Move `low` up to a value of `dt` if the cast would take the first integer below it."""
    above = _rounded(low + 1, dt)
    if above >= low:
        return low
    return above + (1 << (abs(low + 1).bit_length() - _DIGITS[dt.name]))


def _round_high(high: int, dt: np.dtype) -> int:
    """Move `high` down to a value of `dt` if the cast would take the last integer up to it."""
    below = _rounded(high - 1, dt)
    if below < high:
        return high
    return below - (1 << (abs(high - 1).bit_length() - _DIGITS[dt.name]))


def random(gen: MT19937, shape: Shape, dtype: DTypeLike = np.int64) -> np.ndarray:
    """`random_()`: [0, max] of an integer dtype, {0, 1} of bool, [0, 2**mantissa] of a floating-point one."""
    dt, sizes = np.dtype(dtype), _shape(shape)
    n = math.prod(sizes)
    if dt.name in _DIGITS:
        span = (1 << _DIGITS[dt.name]) + 1
    elif dt == np.bool_:
        span = 2
    elif dt.kind == "i" or dt == np.uint8:
        span = int(_iinfo(dt).max) + 1
    else:
        raise DTypeError(f"random: expected a signed integer, uint8, floating-point or bool dtype, got {dt}")
    draws = gen.words64(n) if dt in (np.int64, _F64) else gen.words(n).astype(_U64)
    return _from_int64((draws % _U64(span)).view(np.int64), dt).reshape(sizes)


def randperm(gen: MT19937, n: int, dtype: DTypeLike = np.int64) -> np.ndarray:
    """`randperm`: a random permutation of 0 .. n-1 in `dtype`. TracegradError if n - 1 does not fit.

    Fisher-Yates forwards with n - 1 words; from 2**32 // 20 elements on, inside-out with n 64-bit draws.
    """
    dt = np.dtype(dtype)
    if n < 0:
        raise TracegradError(f"randperm: expected n >= 0, got {n}")
    most = 1 << _DIGITS[dt.name] if dt.name in _DIGITS else int(_iinfo(dt).max)
    if n - 1 > most:
        raise TracegradError(f"randperm: {n} elements do not fit {dt}")
    if n < _RANDPERM_SMALL:
        order = list(range(n))
        steps = np.arange(max(n - 1, 0))
        for i, j in enumerate((gen.words(steps.size) % (n - steps) + steps).tolist()):
            order[i], order[j] = order[j], order[i]
        return _from_int64(np.array(order, np.int64), dt)
    result = np.empty(n, np.int64)
    view = memoryview(result)  # type: ignore[arg-type]  # scalar access is faster than through NumPy
    with gen.lock:
        for start in range(0, n, _CHUNK):
            count = np.arange(start + 1, min(start + _CHUNK, n) + 1, dtype=_U64)
            for i, j in enumerate((gen.words64(count.size) % count).tolist(), start):
                view[i] = view[j] if j != i else i
                view[j] = i
    return _from_int64(result, dt)


# ---- discrete distributions ----------------------------------------------------------------------


def bernoulli(
    gen: MT19937, p: float | np.ndarray, shape: Shape | None = None, dtype: DTypeLike = _F32
) -> np.ndarray:
    """`bernoulli_`: 1 where a uniform is below `p`, else 0. TracegradError for p outside [0, 1].

    A Python number `p` (with `shape`) or a float64 array costs two words a sample, an array of another
    floating-point dtype one word. An array's own shape is the result's, unless `shape` broadcasts it.
    """
    dt = np.dtype(dtype)
    if isinstance(p, np.ndarray):
        _float_dtype(p.dtype, "bernoulli")
        sizes = p.shape if shape is None else _shape(shape)
        wide = p.dtype == _F64
        bound = np.broadcast_to(p if wide else p.astype(_F32), sizes)
    else:
        sizes, wide, bound = _shape(() if shape is None else shape), True, np.asarray(float(p))
    if not bool(((bound >= 0) & (bound <= 1)).all()):
        raise TracegradError("bernoulli: expected every p in [0, 1]")
    n = math.prod(sizes)
    u = (_unit64(gen, n) if wide else _unit32(gen.words(n))).reshape(sizes)
    return (u < bound).astype(dt)


def multinomial(gen: MT19937, probs: np.ndarray, num_samples: int, replacement: bool = False) -> np.ndarray:
    """`multinomial`: int64[..., num_samples] category indices for floating-point weights [k] or [rows, k].

    With replacement: search of a float64 uniform in the running sum. Without, or for a single sample: the
    largest of weights / Exp(1), in falling order; equal ones come in index order (PyTorch leaves that open).
    TracegradError for negative, infinite or all-zero weights, and for more samples than categories.
    """
    dt = _float_dtype(probs.dtype, "multinomial")
    if probs.ndim not in (1, 2):
        raise TracegradError(f"multinomial: expected 1 or 2 dimensions, got {probs.ndim}")
    k = probs.shape[-1]
    if num_samples <= 0 or (not replacement and num_samples > k):
        raise TracegradError(
            f"multinomial: cannot draw {num_samples} samples of {k} categories, {replacement=}"
        )
    rows = np.ascontiguousarray(probs if dt.itemsize >= 4 else probs.astype(_F32)).reshape(-1, k)
    sums = np.cumsum(rows, axis=1, dtype=rows.dtype)
    if not bool((np.isfinite(rows) & (rows >= 0)).all()) or (k and not bool((sums[:, -1] > 0).all())):
        raise TracegradError("multinomial: weights must be finite, not negative, and not all zero in a row")
    out_shape = (*probs.shape[:-1], num_samples)
    if replacement and num_samples > 1:
        sums /= sums[:, -1:]
        sums[:, -1] = 1
        u = _unit64(gen, len(rows) * num_samples).reshape(-1, num_samples)
        found = [np.searchsorted(s.astype(_F64), v, side="left") for s, v in zip(sums, u)]
        return np.array(found, np.int64).reshape(out_shape)
    q = exponential(gen, rows.shape, dt).astype(rows.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (rows / q).astype(dt).astype(_F64)
    order = np.argsort(-ratio, axis=1, kind="stable")
    return order[:, :num_samples].astype(np.int64).reshape(out_shape)
