"""`Num`: a traced value with Python's operators, so that an update rule reads like its formula and is
recorded at the cost of its ops. Only the rules of this package use it.

Hyper-parameters are Python numbers in ordinary code; under `compile`, and wherever the step count enters,
they are 0-d f64 values. A rule works with both. Where a f64 scalar meets a tensor of another dtype, it is
cast to that dtype.
"""

from __future__ import annotations

import math
from typing import Any

from ..ir.dtypes import DType, float64
from ..ir.op import REGISTRY
from ..tracer.recording import STATE

_ADD, _SUB, _MUL, _DIV = (REGISTRY[n] for n in ("add", "sub", "mul", "div"))
_NEG, _CAST, _WHERE, _LERP = (REGISTRY[n] for n in ("neg", "cast", "where", "lerp"))
_POW, _POW_SCALAR = REGISTRY["pow"], REGISTRY["pow_scalar"]


class Num:
    """One value. Its operators take other Nums and Python numbers."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    def to(self, dtype: DType) -> Num:
        """The value in another dtype."""
        if self.value.type.dtype is dtype:
            return self
        return Num(STATE.trace.emit(_CAST, (self.value,), {"dtype": dtype}))

    def __add__(self, other: Any) -> Num:
        return _binary(_ADD, self, other)

    def __radd__(self, other: Any) -> Num:
        return _binary(_ADD, other, self)

    def __sub__(self, other: Any) -> Num:
        return _binary(_SUB, self, other)

    def __rsub__(self, other: Any) -> Num:
        return _binary(_SUB, other, self)

    def __mul__(self, other: Any) -> Num:
        return _binary(_MUL, self, other)

    def __rmul__(self, other: Any) -> Num:
        return _binary(_MUL, other, self)

    def __truediv__(self, other: Any) -> Num:
        return _binary(_DIV, self, other)

    def __rtruediv__(self, other: Any) -> Num:
        return _binary(_DIV, other, self)

    def __pow__(self, other: Any) -> Num:
        if isinstance(other, (int, float)):
            return Num(STATE.trace.emit(_POW_SCALAR, (self.value,), {"exponent": other}))
        return _binary(_POW, self, other)

    def __rpow__(self, other: Any) -> Num:
        return _binary(_POW, other, self)

    def __neg__(self) -> Num:
        return Num(STATE.trace.emit(_NEG, (self.value,), {}))

    def __bool__(self) -> bool:
        raise TypeError("an update rule branches on a traced value; use where()")


def number(x: Any, dtype: DType) -> Num:
    """A Python number or a Num as a Num of the dtype."""
    return x.to(dtype) if isinstance(x, Num) else Num(STATE.trace.literal(x, dtype))


def _matched(x: Any, y: Any) -> tuple[Any, Any]:
    """The values of two operands, of one dtype."""
    if not isinstance(x, Num):
        return STATE.trace.literal(x, y.dtype), y.value
    if not isinstance(y, Num):
        return x.value, STATE.trace.literal(y, x.dtype)
    a, b = x.dtype, y.dtype
    if a is not b:
        return (x.to(b).value, y.value) if a is float64 else (x.value, y.to(a).value)
    return x.value, y.value


def _binary(op: Any, x: Any, y: Any) -> Num:
    return Num(STATE.trace.emit(op, _matched(x, y), {}))


def _either(name: str, plain: Any) -> Any:
    """A function of Nums that is `plain` for Python numbers."""
    op = REGISTRY[name]

    def function(*operands: Any) -> Any:
        if not any(isinstance(x, Num) for x in operands):
            return plain(*operands)
        values = _matched(*operands) if len(operands) == 2 else (operands[0].value,)
        return Num(STATE.trace.emit(op, values, {}))

    function.__name__ = name
    return function


sqrt = _either("sqrt", math.sqrt)
maximum = _either("maximum", max)
minimum = _either("minimum", min)
absolute = _either("abs", abs)
sign = _either("sign", lambda x: (x > 0) - (x < 0))
greater = _either("gt", lambda x, y: x > y)
less = _either("lt", lambda x, y: x < y)
equal = _either("eq", lambda x, y: x == y)


def lerp(x: Num, y: Num, weight: Num) -> Num:
    """`x + weight * (y - x)`, the weight of the tensors' dtype."""
    return Num(STATE.trace.emit(_LERP, (x.value, y.value, weight.value), {}))


def where(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition holds, else `y`; one of them may be a Python number."""
    if not isinstance(condition, Num):
        return x if condition else y
    return Num(STATE.trace.emit(_WHERE, (condition.value, *_matched(x, y)), {}))
