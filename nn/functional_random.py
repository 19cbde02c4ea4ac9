"""Dropouts and other random activations of `nn.functional`. Import them from there.

Their masks are Philox numbers of the default generator (tracer/generator.py): the same whether code runs as
written or compiled, for any number of threads, and not PyTorch's. A backward uses the mask of its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..tracer.callers import warn
from ..tracer.library import ArgumentError
from ..tracer.methods import inplace as write
from ..tracer.operands import tensor_operand
from ..tracer.random import draw
from ..tracer.tensor import Tensor
from .functional_activation import leaky_relu, softmax

T = Any


def _drop(input: T, p: float, training: bool, inplace: bool, name: str, **options: Any) -> Tensor:
    """`input` itself, or with elements dropped; `options` are further attributes of the op."""
    tensor_operand(input, f"{name}(): input")
    if not 0 <= p <= 1:
        raise ArgumentError(f"{name}(): the probability p must be in [0, 1], got {p}")
    if not training or p == 0 or not input.numel():
        return input
    out = draw("dropout", input, p=float(p), **options)
    return write(input, out) if inplace else out


def dropout(input: T, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Elements are zero with probability `p` and else divided by 1 - p (Srivastava et al. 2014); `input`
    itself if not `training`."""
    return _drop(input, p, training, inplace, "dropout")


def alpha_dropout(input: T, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout to SELU's lower limit, scaled to keep mean and variance (Klambauer et al. 2017)."""
    return _drop(input, p, training, inplace, "alpha_dropout", alpha=True)


def _channel_mask(input: T, name: str) -> tuple[int, ...]:
    if tensor_operand(input, f"{name}(): input").dim() < 2:
        raise ArgumentError(
            f"{name}(): expected at least 2 dimensions [N, C, ...], got {input._value().type}"
        )
    return (*input.shape[:2], *(1 for _ in input.shape[2:]))


def _channels(
    input: T, p: float, training: bool, inplace: bool, name: str, unbatched: int, **options: Any
) -> Tensor:
    """Drops whole channels; an input of `unbatched` dimensions has no batch dimension."""
    if 0 <= p <= 1 and not (training and p):
        return input
    lone = input.dim() == unbatched
    x = input.unsqueeze(0) if lone else input
    out = _drop(x, p, training, False, name, shape=_channel_mask(x, name), **options)
    out: Any = out.squeeze(0) if lone else out
    return write(input, out) if inplace and training else out


def dropout1d(input: T, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Whole channels of `[N, C, L]` or `[C, L]` are dropped (Tompson et al. 2015)."""
    if tensor_operand(input, "dropout1d(): input").dim() not in (2, 3):
        raise ArgumentError(f"dropout1d(): expected [N, C, L] or [C, L], got {input._value().type}")
    return _channels(input, p, training, inplace, "dropout1d", 2)


def dropout2d(input: T, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Whole channels of `[N, C, H, W]` are dropped. As in PyTorch, three dimensions are `[N, C, L]`."""
    if tensor_operand(input, "dropout2d(): input").dim() not in (3, 4):
        warn(f"dropout2d(): expected [N, C, H, W], got {input._value().type}")
    if input.dim() == 3:
        warn(f"dropout2d(): {input._value().type} is taken as [N, C, L]; use dropout1d for that")
    return _channels(input, p, training, inplace, "dropout2d", -1)


def dropout3d(input: T, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Whole channels of `[N, C, D, H, W]` or `[C, D, H, W]` are dropped."""
    if tensor_operand(input, "dropout3d(): input").dim() not in (4, 5):
        warn(f"dropout3d(): expected [N, C, D, H, W], got {input._value().type}")
    return _channels(input, p, training, inplace, "dropout3d", 4)


def feature_alpha_dropout(input: T, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Alpha dropout of whole channels of `[N, C, ...]`."""
    return _channels(input, p, training, inplace, "feature_alpha_dropout", -1, alpha=True)


def rrelu(
    input: T, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """`input` where positive, else times a random slope of U[lower, upper) (their mean if not `training`)."""
    tensor_operand(input, "rrelu(): input")
    if lower > upper:
        raise ArgumentError(f"rrelu(): expected lower <= upper, got {lower} and {upper}")
    if training:
        out: Any = draw("rrelu", input, lower=float(lower), upper=float(upper))
    else:
        out = leaky_relu(input, (lower + upper) / 2)
    return write(input, out) if inplace else out


def _overwriting(function: Callable[..., Any]) -> Callable[..., Any]:
    def overwrite(input: T, *args: Any, **kwargs: Any) -> Tensor:
        return function(input, *args, inplace=True, **kwargs)

    overwrite.__name__ = overwrite.__qualname__ = function.__name__ + "_"
    overwrite.__doc__ = f"In-place `{function.__name__}`."
    return overwrite


rrelu_ = _overwriting(rrelu)
dropout_ = _overwriting(dropout)
alpha_dropout_ = _overwriting(alpha_dropout)
feature_alpha_dropout_ = _overwriting(feature_alpha_dropout)


def feature_dropout(input: T, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Whole channels of `[N, C, ...]` are dropped."""
    return _channels(input, p, training, inplace, "feature_dropout", -1)


def gumbel_softmax(
    logits: T, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """softmax((logits + Gumbel noise) / tau) (Jang et al. 2017); its one-hot argmax if `hard`, with the same
    gradient. `eps` is not used."""
    noise: Any = tensor_operand(logits, "gumbel_softmax(): logits").new_empty(logits.shape)
    soft: Any = softmax((logits - noise.exponential_().log()) / tau, dim)
    if not hard:
        return soft
    best = soft.argmax(dim, True)
    one_hot = logits.new_zeros(logits.shape).scatter(dim, best, 1.0)
    return one_hot - soft.detach() + soft
