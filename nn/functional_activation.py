"""Activations of `nn.functional`. Import them from there."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from ..ir.dtypes import DType
from ..ir.op import REGISTRY
from ..tracer.callers import warn
from ..tracer.functions import elementwise, reductions
from ..tracer.library import ArgumentError, ArgumentTypeError
from ..tracer.making import apply
from ..tracer.methods import inplace as write
from ..tracer.operands import get_default_dtype, tensor_operand
from ..tracer.tensor import Tensor


def _activation(
    name: str, takes_integers: bool = False, check: Callable[..., None] | None = None, **parameters: Any
) -> Callable[..., Any]:
    """`name(input, *parameters)` from the op of that name. `inplace`, where it is a parameter, overwrites the
    input; integers become floats where they are taken, and `check` sees the parameters."""
    op = REGISTRY[name]
    defaults, order = dict(parameters), tuple(parameters)
    can_overwrite = parameters.pop("inplace", None) is not None

    def function(input: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Tensor):
            tensor_operand(input, f"{name}(): input")
        attrs = dict(parameters)
        overwrite = False
        if args or (kwargs and kwargs != defaults):  # (layers give them all)
            if len(args) > len(order):
                raise ArgumentError(
                    f"{name}() takes an input and {', '.join(order)}, got {len(args) + 1} arguments"
                )
            given = dict(zip(order, args))
            for key, value in kwargs.items():
                if key not in order or key in given:
                    raise ArgumentError(f"{name}() takes an input and {', '.join(order)}, got {key!r}")
                given[key] = value
            overwrite = can_overwrite and given.pop("inplace", False)
            for key, value in given.items():
                if isinstance(parameters[key], (int, float)) and not hasattr(value, "__float__"):
                    raise ArgumentTypeError(
                        f"{name}(): {key} must be a number, got {type(value).__name__}: {value!r:.60}"
                    )
            attrs.update(given)
            if check is not None:
                check(**attrs)
        if takes_integers and input.dtype.kind != "f":
            input = input.to(get_default_dtype())
        out = apply(op, input, **attrs)
        return write(input, out) if overwrite else out

    function.__name__ = function.__qualname__ = name
    function.__signature__ = Signature(
        [
            Parameter("input", Parameter.POSITIONAL_OR_KEYWORD),
            *(Parameter(n, Parameter.POSITIONAL_OR_KEYWORD, default=d) for n, d in defaults.items()),
        ]
    )
    function.__doc__ = f"{op.doc} Parameters: {', '.join(order) or 'none'}."
    return function


def _overwriting(function: Callable[..., Any]) -> Callable[..., Any]:
    def overwrite(input: Any, *args: Any, **kwargs: Any) -> Any:
        return write(input, function(input, *args, **kwargs))

    overwrite.__name__ = overwrite.__qualname__ = function.__name__ + "_"
    overwrite.__doc__ = f"In-place `{function.__name__}`."
    return overwrite


def _check_bounds(min_val: float, max_val: float) -> None:
    if min_val > max_val:
        raise ArgumentError(f"hardtanh(): min_val {min_val} is above max_val {max_val}")


def _check_lambd(lambd: float) -> None:
    if lambd < 0:
        raise ArgumentError(f"softshrink(): lambd must not be negative, got {lambd}")


relu = _activation("relu", inplace=False)
relu6 = _activation("relu6", inplace=False)
leaky_relu = _activation("leaky_relu", negative_slope=0.01, inplace=False)
elu = _activation("elu", alpha=1.0, inplace=False)
celu = _activation("celu", alpha=1.0, inplace=False)
selu = _activation("selu", inplace=False)
gelu = _activation("gelu", approximate="none")
silu = _activation("silu", inplace=False)
mish = _activation("mish", inplace=False)
softplus = _activation("softplus", beta=1.0, threshold=20.0)
hardtanh = _activation("hardtanh", check=_check_bounds, min_val=-1.0, max_val=1.0, inplace=False)
hardswish = _activation("hardswish", inplace=False)
hardsigmoid = _activation("hardsigmoid", inplace=False)
softsign = _activation("softsign", takes_integers=True)
tanhshrink = _activation("tanhshrink", takes_integers=True)
hardshrink = _activation("hardshrink", lambd=0.5)
softshrink = _activation("softshrink", check=_check_lambd, lambd=0.5)
logsigmoid = _activation("logsigmoid")
glu = _activation("glu", dim=-1)
sigmoid: Callable[..., Any] = elementwise.FUNCTIONS["sigmoid"]
tanh: Callable[..., Any] = elementwise.FUNCTIONS["tanh"]
relu_ = _overwriting(relu)
leaky_relu_ = _overwriting(leaky_relu)
elu_ = _overwriting(elu)
celu_ = _overwriting(celu)
selu_ = _overwriting(selu)
hardtanh_ = _overwriting(hardtanh)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """`input` where it is above `threshold`, else `value`."""
    out = apply(REGISTRY["threshold"], tensor_operand(input), threshold=threshold, value=value)
    return write(input, out) if inplace else out


threshold_ = _overwriting(threshold)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """`input` above 0, `weight * input` below.

    Args:
        input: `[N, C, ...]`.
        weight: of one element, or one for each of the C channels.
    """
    w: Any = tensor_operand(weight, "prelu(): weight")
    if w.numel() != 1:
        channels = 1 if input.dim() < 2 else input.shape[1]
        if w.dim() != 1 or w.numel() != channels:
            raise ArgumentError(
                f"prelu(): expected a weight of 1 or {channels} elements for an input of type "
                f"{input._value().type}, "
                f"got {w._value().type}"
            )
        if input.dim() > 2:
            w = w.view((channels,) + (1,) * (input.dim() - 2))
    elif w.dim() != 0 or input.dim() == 0:
        w = w.view(())
    return apply(REGISTRY["prelu"], input, w)


def _dim(name: str, input: Tensor, dim: int | None) -> int:
    if dim is not None:
        return dim
    warn(f"{name}() without dim= guesses the dimension; pass it")
    return 0 if input.dim() in (0, 1, 3) else 1


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: DType | None = None
) -> Tensor:
    """exp(input), scaled to sum to 1 along `dim`."""
    return reductions.FUNCTIONS["softmax"](input, _dim("softmax", input, dim), dtype)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: DType | None = None
) -> Tensor:
    """softmax(-input)."""
    return reductions.FUNCTIONS["softmax"](
        elementwise.FUNCTIONS["neg"](input), _dim("softmin", input, dim), dtype
    )


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: DType | None = None
) -> Tensor:
    """log(softmax(input)) without underflow."""
    return reductions.FUNCTIONS["log_softmax"](input, _dim("log_softmax", input, dim), dtype)
