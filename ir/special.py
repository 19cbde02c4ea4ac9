"""Functions NumPy lacks, exact to the last place or so, for the interpreter. The coefficients are also those
of the code generators' vector math.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

# erf x / x - 1 in x**2; x <= 1, relative error 2**-56
ERF_64 = (
    0.12837916709551256, -0.3761263890318345, 0.11283791670942309, -0.02686617064288789,
    0.005223977604646302, -0.0008548325870140976, 0.00012055292048477637, -1.4924686396288592e-05,
    1.6446844961853325e-06, -1.6204320507296354e-07, 1.3703070685442839e-08, -7.765808956892395e-10,
)  # fmt: skip
# (1 + 2a) e**(a*a) erfc a in (a - 3) / (a + 3) on 0 <= a <= 27.5, relative error 2**-54.7
ERFCX_64 = (
    1.2530080582697296, -0.13562110612458117, -0.047562294353443946, 0.12964515870273932,
    -0.11927366341554901, 0.0683080273451093, -0.023770514914758012, 0.0025293917946626744,
    0.0018886903222567625, -0.0007798320672169336, -0.00010515956559387584, 0.00012509820957230032,
    4.948440685503799e-06, -2.0096596575209577e-05, -7.282353160172219e-07, 3.4635843680342885e-06,
    3.497767575583095e-07, -6.041529571015186e-07, -1.3152501800758213e-07, 9.107918013492859e-08,
    3.28634118303764e-08, -8.219762034089245e-09, -4.108623091933876e-09,
)  # fmt: skip
_BLOCK = 1 << 13  # elements at a time, so that temporaries stay in cache


def _mapped(f: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    """`f` of every element in f64, in the dtype and shape of `x`."""
    values: Iterable[float] = map(f, np.ravel(x).astype(np.float64).tolist())
    return np.fromiter(values, np.float64, np.size(x)).reshape(np.shape(x)).astype(x.dtype)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function."""
    return _narrow(x, False) if x.dtype.itemsize <= 4 else _mapped(math.erf, x)


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x), accurate in the right tail."""
    return _narrow(x, True) if x.dtype.itemsize <= 4 else _mapped(math.erfc, x)


def _narrow(x: np.ndarray, complement: bool) -> np.ndarray:
    """erf, or erfc, of f32 or narrower elements: in f64, a thousandth of their last place off at most."""
    flat = np.ravel(x)
    out = np.empty(flat.shape, x.dtype)
    for i in range(0, flat.size, _BLOCK):
        v = flat[i : i + _BLOCK].astype(np.float64)
        far = np.flatnonzero(~(np.abs(v) < 1.0))
        w = v[far]
        v[far] = 0.0
        y = v + v * _polynomial(ERF_64, v * v)
        if complement:
            y = 1.0 - y
        a = np.minimum(np.abs(w), 28.0)
        tail = np.exp(-a * a) * _polynomial(ERFCX_64, (a - 3.0) / (a + 3.0)) / (2.0 * a + 1.0)
        y[far] = np.where(w < 0.0, 2.0 - tail, tail) if complement else np.copysign(1.0 - tail, w)
        out[i : i + _BLOCK] = y
    return out.reshape(np.shape(x))


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    y = np.full(x.shape, coefficients[-1])
    for c in coefficients[-2::-1]:
        y *= x
        y += c
    return y
