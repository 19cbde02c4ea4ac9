"""Products: matmul and its kin, einsum, linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir.errors import DTypeError
from ...ir.op import REGISTRY
from ..operands import tensor_operand
from ..recording import STATE
from ..tensor import Tensor, ready

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _same_dtype(name: str, *tensors: Any) -> tuple[Any, ...]:
    """Operands' values; products don't promote, they raise, as in PyTorch."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    values = tuple(tensor_operand(t, f"{name}(): operand")._value() for t in tensors)
    if any(v.type.dtype is not values[0].type.dtype for v in values):
        raise DTypeError(
            f"{name}({', '.join(str(v.type) for v in values)}): operands must have one dtype; "
            f"convert with .to(dtype)"
        )
    return values


def _product(name: str) -> None:
    op = REGISTRY[name]

    def fn(input: Tensor, other: Tensor) -> Tensor:
        return Tensor(STATE.trace.emit(op, _same_dtype(name, input, other), {}))

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = op.doc or f"{name} of two tensors."
    FUNCTIONS[name] = fn


for _name in ("matmul", "mm", "bmm", "mv", "dot", "outer"):
    _product(_name)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ weight.T + bias`.

    Args:
        input: `[..., in_features]`.
        weight: `[out_features, in_features]`.
        bias: `[out_features]` or None.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    return Tensor(STATE.trace.emit(REGISTRY["linear"], _same_dtype("linear", *tensors), {}))


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """`beta * input + alpha * mat1 @ mat2`."""
    values = _same_dtype("addmm", input, mat1, mat2)
    trace: Any = STATE.trace
    if beta == 1 and alpha == 1:
        return Tensor(trace.emit(REGISTRY["addmm"], values, {}))
    d = values[0].type.dtype
    product = trace.mul(trace.mm(values[1], values[2]), trace.literal(alpha, d))
    return Tensor(trace.add(trace.mul(values[0], trace.literal(beta, d)), product))


for _fn in (linear, addmm):
    FUNCTIONS[_fn.__name__] = _fn
FUNCTIONS["ger"] = FUNCTIONS["outer"]
