"""Clipping gradients. Users call it as `tracegrad.nn.utils.clip_grad_norm_` and so on."""

from __future__ import annotations

import math
from typing import Any

from ...tracer.creation import tensor
from ...tracer.functions.shaping import stack
from ...tracer.grad_mode import no_grad
from ...tracer.library import ArgumentError
from ...tracer.tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]


def _gradients(parameters: Any) -> list[Any]:
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [g for g in (p.grad for p in params) if g is not None]


def get_total_norm(
    tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """The norm of all elements of all tensors, as a 0-d tensor."""
    found: list[Any] = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    p = float(norm_type)
    if not found:
        return tensor(0.0)
    norms: Any = [g.norm(p) for g in found]
    total = stack(norms).norm(p)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise ArgumentError(
            f"the {p}-norm of the gradients is {total.item()}, so they can't be clipped; "
            f"pass error_if_nonfinite=False to scale them all the same"
        )
    return total


def clip_grads_with_norm_(
    parameters: Any, max_norm: float, total_norm: Any, foreach: bool | None = None
) -> None:
    """Scales all gradients in place by `max_norm / total_norm` where that is below 1."""
    factor = (float(max_norm) / (total_norm + 1e-6)).clamp(max=1.0)
    for g in _gradients(parameters):
        g.mul_(factor)


@no_grad
def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:  # fmt: skip
    """Scales all gradients in place so that their joint norm is at most `max_norm`; gives the norm before.

    Args:
        parameters: one tensor or several.
        norm_type: which p-norm; `inf` for the largest element.
        error_if_nonfinite: raise if the norm is NaN or infinite.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    total = get_total_norm(_gradients(params), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(params, max_norm, total)
    return total


@no_grad
def clip_grad_value_(parameters: Any, clip_value: float, foreach: bool | None = None) -> None:
    """Limits every element of every gradient in place to [-clip_value, clip_value]."""
    value = float(clip_value)
    for g in _gradients(parameters):
        g.clamp_(-value, value)
