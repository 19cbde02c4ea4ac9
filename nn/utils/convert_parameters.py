"""Parameters as one vector and back. Users call it as `tracegrad.nn.utils.parameters_to_vector`."""

from __future__ import annotations

from collections.abc import Iterable

from ...tracer.functions.shaping import cat
from ...tracer.library import ArgumentError
from ...tracer.tensor import Tensor

__all__ = ["parameters_to_vector", "vector_to_parameters"]


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of all parameters, one after the other, as a vector."""
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Writes consecutive pieces of a vector into the parameters."""
    params = list(parameters)
    if not isinstance(vec, Tensor) or vec.dim() != 1 or vec.numel() < sum(p.numel() for p in params):
        got = vec._value().type if isinstance(vec, Tensor) else type(vec).__name__
        raise ArgumentError(
            f"vector_to_parameters(): expected a vector of at least {sum(p.numel() for p in params)} "
            f"elements, got {got}"
        )
    at = 0
    for p in params:
        p.data = vec[at : at + p.numel()].view_as(p)
        at += p.numel()
