"""Normalisations of `nn.functional` that keep or share statistics: batch, instance and local response. Import
them from there.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ..ir.op import REGISTRY
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentError
from ..tracer.making import apply
from ..tracer.operands import tensor_operand
from ..tracer.tensor import Tensor
from .functional_norm import _affine, checked_eps

T = Any


def _check_channels(name: str, input: T, tensors: dict[str, T]) -> None:
    if tensor_operand(input, f"{name}(): input").dim() < 2:
        raise ArgumentError(f"{name}(): expected an input [N, C, ...], got {input._value().type}")
    for what, t in tensors.items():
        if t is not None and tuple(t.shape) != (input.shape[1],):
            raise ArgumentError(
                f"{name}(): {what} must have shape [{input.shape[1]}], one entry per channel of the input "
                f"{input._value().type}, got {t._value().type}"
            )


def _moved(running: T, new: T, momentum: Any) -> None:
    """Writes the running average: `momentum` of the new statistic, the rest of the old."""
    running.copy_(running * (1 - momentum) + new * momentum)


def batch_norm(
    input: T, running_mean: T, running_var: T, weight: T = None, bias: T = None, training: bool = False,
    momentum: Any = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Each channel standardised over the batch, then `weight` and `bias` per channel (Ioffe and Szegedy
    2015).

    Args:
        input: `[N, C, ...]`.
        running_mean, running_var: `[C]`; the statistics if not `training`, else moved towards the batch's in
            place (the variance's unbiased estimate), if not None.
        weight, bias: `[C]` or None.
        momentum: the weight of the batch in the running statistics, a number or a 0-d tensor.
        eps: added to the variance.

    Raises:
        ArgumentError: shapes that don't fit; training with one value per channel.
    """
    if tuple(input.shape) == (0,):  # no channels of no batch
        row = input.unsqueeze(0)
        return batch_norm(row, running_mean, running_var, weight, bias, training, momentum, eps)[0]
    checked_eps("batch_norm", eps)
    running = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("batch_norm", input, {**running, "weight": weight, "bias": bias})
    more = _affine(input, weight, bias, (input.shape[1],))
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError(
                "batch_norm(): without training=True, running_mean and running_var must be given"
            )
        return apply(REGISTRY["batch_norm_eval"], input, running_mean, running_var, *more, eps=eps)
    n = prod(input.shape) // max(input.shape[1], 1)
    if n == 1:
        raise ArgumentError(
            f"batch_norm(): expected more than 1 value per channel when training, got an input of type "
            f"{input._value().type}; use a larger batch, or eval()"
        )
    out, mean, var = apply(REGISTRY["batch_norm"], input, *more, eps=eps)
    if running_mean is not None and n:  # no samples say nothing of the statistics
        with no_grad():
            _moved(running_mean, mean.detach(), momentum)
            if running_var is not None:
                _moved(running_var, var.detach() * (n / max(n - 1, 1)), momentum)
    return out


def instance_norm(
    input: T, running_mean: T = None, running_var: T = None, weight: T = None, bias: T = None,
    use_input_stats: bool = True, momentum: Any = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Each channel of each sample standardised, then `weight` and `bias` per channel (Ulyanov et al. 2017).

    Args:
        input: `[N, C, ...]`.
        running_mean, running_var: `[C]` or None; moved towards the samples' mean statistics in place, and
        used
            if not `use_input_stats`.
        weight, bias: `[C]` or None.
    """
    checked_eps("instance_norm", eps)
    running = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("instance_norm", input, {**running, "weight": weight, "bias": bias})
    if not use_input_stats:
        out = batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        return out.view(input.shape)
    count, channels, *rest = input.shape
    if prod(rest) == 1:
        raise ArgumentError(
            f"instance_norm(): expected more than 1 spatial element when training, got an input of type "
            f"{input._value().type}"
        )

    def per_sample(t: T) -> T:
        return None if t is None else t.unsqueeze(0).expand(count, channels).reshape(-1)

    # As channels of one sample.
    x = input.reshape(1, count * channels, *rest)
    more = _affine(input, weight, bias, (channels,))
    out: Any
    out, mean, var = apply(REGISTRY["batch_norm"], x, *(per_sample(t) for t in more), eps=eps)
    if running_mean is not None:
        n = prod(rest)
        with no_grad():
            _moved(running_mean, mean.detach().view(count, channels).mean(0), momentum)
            if running_var is not None:
                unbiased = var.detach().view(count, channels).mean(0) * (n / max(n - 1, 1))
                _moved(running_var, unbiased, momentum)
    return out.view(input.shape)


def local_response_norm(
    input: T, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Each element over `(k + alpha / size * sum of squares over size neighbouring channels) ** beta`
    (Krizhevsky et al. 2012).

    Args:
        input: `[N, C, ...]`, of at least three dimensions.
        size: channels in a neighbourhood; `size // 2` of them come before.
    """
    if tensor_operand(input, "local_response_norm(): input").dim() < 3:
        raise ArgumentError(
            f"local_response_norm(): expected at least 3 dimensions [N, C, ...], got {input._value().type}"
        )
    if not input.numel():
        return input
    squares = input * input
    edges = {"low": [0] * input.dim(), "high": [0] * input.dim()}
    edges["low"][1], edges["high"][1] = size // 2, (size - 1) // 2
    around: Any = apply(REGISTRY["pad"], squares, **{key: tuple(n) for key, n in edges.items()}, value=0.0)
    total = around.narrow(1, 0, input.shape[1])
    for i in range(1, size):
        total = total + around.narrow(1, i, input.shape[1])
    return input / (total * (alpha / size) + k) ** beta
