"""Functions NumPy lacks, exact to the last place or so, for the interpreter. Nothing else calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np


def _mapped(f: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    """`f` of every element in f64, in the dtype and shape of `x`."""
    values: Iterable[float] = map(f, np.ravel(x).astype(np.float64).tolist())
    return np.fromiter(values, np.float64, np.size(x)).reshape(np.shape(x)).astype(x.dtype)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function."""
    return _mapped(math.erf, x)


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x), accurate in the right tail."""
    return _mapped(math.erfc, x)
