"""Questions about tensors and dtypes: `equal`, `allclose`, `is_tensor`, `promote_types` and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.errors import DTypeError, OpError
from ..operands import tensor_operand
from ..tensor import Tensor
from .elementwise import FUNCTIONS as E

FUNCTIONS: dict[str, Callable[..., Any]] = {}
_CATEGORY = {"b": 0, "u": 1, "i": 1, "f": 2}


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and equal elements."""
    tensor_operand(input, "equal(): input")
    tensor_operand(other, "equal(): other")
    return input.shape == other.shape and bool((input == other).all())


def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """Elementwise `|input - other| <= atol + rtol * |other|`; equal infinities are close."""
    tensor_operand(input, "isclose(): input")
    tensor_operand(other, "isclose(): other")
    if rtol < 0 or atol < 0:
        raise OpError(f"isclose(): rtol and atol must not be negative, got {rtol} and {atol}")
    if input.dtype is not other.dtype:
        raise DTypeError(f"isclose(): expected tensors of one dtype, got {input.dtype} and {other.dtype}")
    near = input == other
    if dtypes.bool_ in (input.dtype, other.dtype):
        return near
    near = near | (E["isfinite"](input) & (E["sub"](input, other).abs() <= E["abs"](other) * rtol + atol))
    return near | (E["isnan"](input) & E["isnan"](other)) if equal_nan else near


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether all elements are close in the sense of `isclose`."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """Whether the dtype is a floating-point one."""
    return tensor_operand(input, "is_floating_point(): input").dtype.kind == "f"


def numel(input: Tensor) -> int:
    """Number of elements."""
    return tensor_operand(input, "numel(): input").numel()


def promote_types(type1: DType, type2: DType) -> DType:
    """The smallest dtype that both convert to without losing their category."""
    return dtypes.promote(type1, type2)


def can_cast(from_: DType, to: DType) -> bool:
    """Whether PyTorch's rules let a result of dtype `from_` be written into a tensor of `to`."""
    if from_ is not dtypes.bool_ and to is dtypes.bool_:
        return False
    return _CATEGORY[from_.kind] <= _CATEGORY[to.kind]


for _fn in (equal, isclose, allclose, is_tensor, is_floating_point, numel, promote_types, can_cast):
    FUNCTIONS[_fn.__name__] = _fn
