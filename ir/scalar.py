"""The abstract scalar builder: the primitives that elementwise meaning is written in, and NumPy's version of
it.

An op's `scalar` lambda receives a builder `s` and elements, and combines them with the primitives of
`PRIMITIVES`: `lambda s, x: s.div(s.one(x), s.add(s.one(x), s.exp(s.neg(x))))`. The lambda runs with
`NumpyScalar` in the interpreter, with `ExprScalar` (ir/expr.py) in scheduling; the code generators translate
primitives, never ops, so a new elementwise op touches no backend.

f16 and bf16 arithmetic is done in f32 and rounded once per op (`apply_scalar`), as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import dtypes
from .dataclass import dataclass
from .dtypes import DType
from .types import Type


@dataclass(frozen=True)
class Primitive:
    """One scalar operation.

    Attributes:
        arity: number of operands; all have the same dtype unless `result` says otherwise.
        result: `same` as the operands, `bool`, or `select` (bool, T, T -> T).
        kinds: dtype kinds it takes (`f`, `i`, `u`, `b`).
        numpy: meaning on arrays.
        cost: rough cycles per element in vector code, for cost models.
    """

    name: str
    arity: int
    result: str
    kinds: str
    numpy: Callable[..., Any]
    cost: float = 1.0


def _div(x: Any, y: Any) -> Any:
    return np.true_divide(x, y, dtype=x.dtype)


def _erf(x: np.ndarray) -> np.ndarray:
    from .special import erf

    return erf(x)


def _erfc(x: np.ndarray) -> np.ndarray:
    from .special import erfc

    return erfc(x)


def _floordiv(x: Any, y: Any) -> Any:
    return np.where(y == 0, 0, np.floor_divide(x, np.where(y == 0, 1, y))).astype(x.dtype)


def _mod(x: Any, y: Any) -> Any:
    return np.where(y == 0, 0, np.remainder(x, np.where(y == 0, 1, y))).astype(x.dtype)


def _mulhi(x: Any, y: Any) -> Any:
    return ((x.astype(np.uint64) * y.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)


_ROWS: list[tuple[str, int, str, str, Callable[..., Any], float]] = [
    # name, arity, result, kinds, NumPy, cost
    ("add", 2, "same", "fiu", np.add, 1),
    ("sub", 2, "same", "fiu", np.subtract, 1),
    ("mul", 2, "same", "fiu", np.multiply, 1),
    ("div", 2, "same", "f", _div, 6),
    ("neg", 1, "same", "fiu", np.negative, 1),
    ("abs", 1, "same", "fi", np.abs, 1),
    ("minimum", 2, "same", "fiub", np.minimum, 2),  # NaN if either is, as torch.minimum
    ("maximum", 2, "same", "fiub", np.maximum, 2),
    ("floordiv", 2, "same", "iu", _floordiv, 20),  # rounds down; by zero gives 0
    ("mod", 2, "same", "iu", _mod, 20),  # sign of the divisor; by zero gives 0
    ("fmod", 2, "same", "f", np.fmod, 30),  # sign of the dividend, exact
    ("floor", 1, "same", "f", np.floor, 1),
    ("ceil", 1, "same", "f", np.ceil, 1),
    ("trunc", 1, "same", "f", np.trunc, 1),
    ("round", 1, "same", "f", np.rint, 1),  # half to even
    ("sqrt", 1, "same", "f", np.sqrt, 8),
    ("exp", 1, "same", "f", np.exp, 12),
    ("exp2", 1, "same", "f", np.exp2, 10),
    ("expm1", 1, "same", "f", np.expm1, 16),
    ("log", 1, "same", "f", np.log, 12),
    ("log2", 1, "same", "f", np.log2, 12),
    ("log10", 1, "same", "f", np.log10, 12),
    ("log1p", 1, "same", "f", np.log1p, 16),
    ("sin", 1, "same", "f", np.sin, 16),
    ("cos", 1, "same", "f", np.cos, 16),
    ("tan", 1, "same", "f", np.tan, 24),
    ("asin", 1, "same", "f", np.arcsin, 20),
    ("acos", 1, "same", "f", np.arccos, 20),
    ("atan", 1, "same", "f", np.arctan, 20),
    ("atan2", 2, "same", "f", np.arctan2, 30),
    ("sinh", 1, "same", "f", np.sinh, 24),
    ("cosh", 1, "same", "f", np.cosh, 24),
    ("tanh", 1, "same", "f", np.tanh, 16),
    ("asinh", 1, "same", "f", np.arcsinh, 24),
    ("acosh", 1, "same", "f", np.arccosh, 24),
    ("atanh", 1, "same", "f", np.arctanh, 24),
    ("sigmoid", 1, "same", "f", lambda x: _sigmoid(x), 16),
    ("erf", 1, "same", "f", _erf, 20),
    ("erfc", 1, "same", "f", _erfc, 24),
    ("pow", 2, "same", "f", np.power, 40),
    ("eq", 2, "bool", "fiub", np.equal, 1),
    ("ne", 2, "bool", "fiub", np.not_equal, 1),
    ("lt", 2, "bool", "fiub", np.less, 1),
    ("le", 2, "bool", "fiub", np.less_equal, 1),
    ("gt", 2, "bool", "fiub", np.greater, 1),
    ("ge", 2, "bool", "fiub", np.greater_equal, 1),
    ("and_", 2, "same", "iub", np.bitwise_and, 1),
    ("or_", 2, "same", "iub", np.bitwise_or, 1),
    ("xor", 2, "same", "iub", np.bitwise_xor, 1),
    ("not_", 1, "same", "iub", np.invert, 1),
    ("shl", 2, "same", "iu", np.left_shift, 1),  # shift counts in [0, bits)
    ("shr", 2, "same", "iu", np.right_shift, 1),  # arithmetic for signed
    ("mulhi", 2, "same", "u", _mulhi, 4),  # u32 only: high half of the 64-bit product
    ("select", 3, "select", "fiub", np.where, 1),
]

PRIMITIVES: dict[str, Primitive] = {r[0]: Primitive(*r) for r in _ROWS}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


class ScalarBuilder:
    """What lambdas see. Subclasses implement `prim`, `const`, `cast`, `bitcast` and `dtype_of`; each
    primitive of the table is a method (`s.add(x, y)`)."""

    def prim(self, name: str, *args: Any) -> Any:
        raise NotImplementedError  # pragma: no cover - abstract

    def const(self, value: float | int | bool, like: Any) -> Any:
        """A constant of the dtype of `like` (an element or a DType)."""
        raise NotImplementedError  # pragma: no cover - abstract

    def cast(self, x: Any, dtype: DType) -> Any:
        """Value conversion; float to integer truncates, to bool is `!= 0`."""
        raise NotImplementedError  # pragma: no cover - abstract

    def bitcast(self, x: Any, dtype: DType) -> Any:
        """Reinterprets bits; same width."""
        raise NotImplementedError  # pragma: no cover - abstract

    def dtype_of(self, x: Any) -> DType:
        raise NotImplementedError  # pragma: no cover - abstract

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in PRIMITIVES:
            raise AttributeError(f"no scalar primitive {name!r}; there are: {', '.join(PRIMITIVES)}")
        return lambda *args: self.prim(name, *args)

    # What is composed of primitives and used all over; one definition for every target.

    def zero(self, like: Any) -> Any:
        return self.const(0, like)

    def one(self, like: Any) -> Any:
        return self.const(1, like)

    def isnan(self, x: Any) -> Any:
        return self.prim("ne", x, x)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x*y + z; a target may round once."""
        return self.prim("add", self.prim("mul", x, y), z)


class NumpyScalar(ScalarBuilder):
    """Elements are NumPy arrays; dtypes follow NumPy's arrays exactly (no promotion can happen)."""

    def prim(self, name: str, *args: Any) -> Any:
        p = PRIMITIVES[name]
        if p.result == "select":
            return np.where(args[0], args[1], args[2])
        out = p.numpy(*args)
        return out if p.result == "bool" or out.dtype == args[0].dtype else out.astype(args[0].dtype)

    def const(self, value: Any, like: Any) -> Any:
        dtype = like if isinstance(like, DType) else dtypes.from_numpy(like.dtype)
        assert dtype is not None
        return np.asarray(value).astype(dtype.numpy)

    def cast(self, x: Any, dtype: DType) -> Any:
        return numpy_cast(x, dtype)

    def bitcast(self, x: Any, dtype: DType) -> Any:
        return np.ascontiguousarray(x).view(dtype.numpy).reshape(np.shape(x))

    def dtype_of(self, x: Any) -> DType:
        d = dtypes.from_numpy(x.dtype)
        assert d is not None
        return d


def numpy_cast(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`x` as `dtype`: float to integer truncates (out of range: wraps from i64, NaN gives the minimum)."""
    if x.dtype == dtype.numpy:
        return x
    if dtype.kind in "iu" and x.dtype.kind not in "iub":
        with np.errstate(invalid="ignore"):
            return x.astype(np.float64).astype(np.int64).astype(dtype.numpy)
    return x.astype(dtype.numpy)


NUMPY_SCALAR = NumpyScalar()


def apply_scalar(s: ScalarBuilder, op: Any, out: Type, args: list[Any], attrs: dict[str, Any]) -> Any:
    """Runs an op's lambda on elements; f16/bf16 are widened to f32 before and rounded once after."""
    wide = []
    for a in args:
        d = s.dtype_of(a)
        wide.append(s.cast(a, dtypes.float32) if dtypes.opmath(d) is not d else a)
    r = op.scalar(s, *wide, **attrs)
    return r if s.dtype_of(r) is out.dtype else s.cast(r, out.dtype)
