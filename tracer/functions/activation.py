"""Activations that PyTorch has at the top level too (`torch.celu`, `torch.logit`). The rest of
nn.functional's are in nn/functional_activation.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir.op import REGISTRY
from ..making import apply
from ..operands import get_default_dtype, tensor_operand
from ..tensor import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _floating(input: Any, name: str) -> Tensor:
    """The tensor, integers as floats."""
    t: Any = tensor_operand(input, f"{name}(): input")
    return t if t.dtype.kind == "f" else t.to(get_default_dtype())


def celu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return apply(REGISTRY["celu"], input, alpha=alpha)


def selu(input: Tensor) -> Tensor:
    """The scaled exponential linear unit (Klambauer et al. 2017)."""
    return apply(REGISTRY["selu"], input)


def threshold(input: Tensor, threshold: float, value: float) -> Tensor:
    """`input` where it is above `threshold`, else `value`."""
    return apply(REGISTRY["threshold"], input, threshold=threshold, value=value)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """`input` outside of [-lambd, lambd], 0 inside."""
    return apply(REGISTRY["hardshrink"], input, lambd=lambd)


def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)), x first limited to [eps, 1 - eps] where eps is given."""
    x = _floating(input, "logit")
    return apply(REGISTRY["logit"], x) if eps is None else apply(REGISTRY["logit"], x, eps=float(eps))


for _fn in (celu, selu, threshold, hardshrink, logit):
    FUNCTIONS[_fn.__name__] = _fn
