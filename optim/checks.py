"""Checks of hyper-parameters that several optimisers make."""

from __future__ import annotations

from typing import Any

from ..tracer.library import ArgumentError
from ..tracer.tensor import Tensor


def not_negative(who: str, group: dict[str, Any], *names: str) -> None:
    """Raises if one of the group's numbers is negative or NaN. A tensor must have one element."""
    for name in names:
        value = group[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ArgumentError(
                    f"{who}: {name} as a tensor must have one element, got {value._value().type}"
                )
        elif not value >= 0.0:
            raise ArgumentError(f"{who}: {name} must be >= 0, got {value}")


def betas(who: str, group: dict[str, Any]) -> None:
    """Raises unless both betas are in [0, 1)."""
    pair = group["betas"]
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ArgumentError(f"{who}: betas must be two numbers, got {pair!r}")
    for i, beta in enumerate(pair):
        if not isinstance(beta, Tensor) and not 0.0 <= beta < 1.0:
            raise ArgumentError(f"{who}: betas[{i}] must be in [0, 1), got {beta}")


def flags(who: str, group: dict[str, Any]) -> None:
    """Raises for flags that exclude each other, and for what is not there: gradients through the update."""
    if group.get("foreach") and group.get("fused"):
        raise ArgumentError(f"{who}: foreach and fused can't both be True; leave both out, updates are fused")
    if group["differentiable"]:
        raise ArgumentError(
            f"{who}: differentiable=True is not available; write the update as functions of tensors instead"
        )


def fraction(who: str, group: dict[str, Any], name: str) -> None:
    """Raises unless the group's number is in [0, 1]."""
    if not 0.0 <= group[name] <= 1.0:
        raise ArgumentError(f"{who}: {name} must be in [0, 1], got {group[name]}")
