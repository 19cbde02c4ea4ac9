"""Operands of user operations: PyTorch's dtype promotion among tensors and Python numbers, and conversion to
values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.dtypes import DType, promote
from ..ir.errors import DTypeError
from ..ir.op import REGISTRY
from .recording import STATE
from .tensor import Number, Tensor, ready
from .trace import Trace
from .values import TracedValue

_DEFAULT: list[DType] = [dtypes.float32]
_CATEGORY = {"b": 0, "u": 1, "i": 1, "f": 2}
_NUMBERS = frozenset((float, int, bool))
#: Python's types as dtypes, as PyTorch takes them
PYTHON_TYPES: dict[Any, DType] = {float: dtypes.float64, int: dtypes.int64, bool: dtypes.bool_}
CAST = REGISTRY["cast"]


def get_default_dtype() -> DType:
    """The dtype of floating-point tensors made from Python numbers."""
    return _DEFAULT[0]


def set_default_dtype(d: DType) -> None:
    """Sets the default floating-point dtype."""
    if d.kind != "f":
        raise DTypeError(f"only floating-point types can be the default type, not {d}")
    _DEFAULT[0] = d


def number_dtype(x: Any) -> DType:
    """The dtype PyTorch gives a Python or NumPy scalar."""
    if isinstance(x, (bool, np.bool_)):
        return dtypes.bool_
    if isinstance(x, (int, np.integer)):
        return dtypes.int64
    if isinstance(x, (float, np.floating)):
        return _DEFAULT[0]
    raise DTypeError(f"expected a tensor or a number, got {type(x).__name__}: {x!r:.80}")


def result_type(*operands: Any) -> DType:
    """PyTorch's `result_type`: tensors with dimensions decide unless a 0-d tensor or a number is of a higher
    category (bool < integer < float)."""
    best: list[DType | None] = [None, None, None]  # with dimensions, 0-d, numbers
    for x in operands:
        if isinstance(x, Tensor):
            t = x._value().type
            rank, d = (0 if t.shape else 1), t.dtype
            if x.__class__ is Number:
                rank, d = 2, _DEFAULT[0]
        elif isinstance(x, DType):
            rank, d = 0, x
        else:
            rank, d = 2, number_dtype(x)
        old = best[rank]
        best[rank] = d if old is None else promote(old, d)
    out: DType | None = None
    for d in best:
        if d is None:
            continue
        if out is None:
            out = d
        elif _CATEGORY[d.kind] > _CATEGORY[out.kind]:
            out = promote(out, d) if out.kind != "b" else d
    assert out is not None
    return out


def as_value(trace: Trace, x: Any, dtype: DType) -> TracedValue:
    """A tensor or number as a value of the dtype."""
    if isinstance(x, Tensor):
        v = x._value()
        return v if v.type.dtype is dtype else trace.emit(CAST, (v,), {"dtype": dtype})
    if isinstance(x, np.generic):
        x = x.item()
    return trace.literal(x, dtype)


def pair(a: Any, b: Any) -> tuple[Trace, Any, Any]:
    """`values(a, b)`, with a short way for tensors of one dtype and for numbers beside a tensor of floats."""
    trace = STATE.trace
    if a.__class__ is Tensor and not trace.walked_back:
        x = a._storage.value if a._view is None else a._value()
        dtype = x.type.dtype
        if b.__class__ is Tensor:
            y = b._storage.value if b._view is None else b._value()
            if y.type.dtype is dtype:
                return trace, x, y
        elif b.__class__ in _NUMBERS and dtype.kind == "f":
            return trace, x, trace.literal(b, dtype)
    trace, (x, y) = values(a, b)
    return trace, x, y


def values(*operands: Any, floating: bool = False) -> tuple[Trace, list[TracedValue]]:
    """Operands promoted to their common dtype (a floating one if asked), as values of the current trace."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *operands)
    a = operands[0]
    if len(operands) == 2:  # (what follows is for most calls; the rules are below)
        b = operands[1]
        if isinstance(a, Tensor):
            x = a._value()
            dtype = x.type.dtype
            if isinstance(b, Tensor):
                y = b._value()
                if y.type.dtype is dtype and (not floating or dtype.kind == "f"):
                    return trace, [x, y]
            elif dtype.kind == "f" and b.__class__ in _NUMBERS:
                return trace, [x, trace.literal(b, dtype)]
        elif isinstance(b, Tensor) and a.__class__ in _NUMBERS:
            y = b._value()
            if y.type.dtype.kind == "f":
                return trace, [trace.literal(a, y.type.dtype), y]
    elif isinstance(a, Tensor) and len(operands) == 1:
        x = a._value()
        if not floating or x.type.dtype.kind == "f":
            return trace, [x]
    dtype = result_type(*operands)
    if floating and dtype.kind != "f":
        dtype = _DEFAULT[0]
    return trace, [as_value(trace, x, dtype) for x in operands]


def tensor_operand(x: Any, what: str = "operand") -> Tensor:
    """`x`, if it is a tensor; an error that says what was expected otherwise."""
    if not isinstance(x, Tensor):
        raise DTypeError(f"{what} must be a tensor, got {type(x).__name__}: {x!r:.80}")
    return x
