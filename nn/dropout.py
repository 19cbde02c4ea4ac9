"""Dropout layers and RReLU: active in training mode, the identity (RReLU: a leaky ReLU) in evaluation
mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..tracer.library import ArgumentError
from . import functional as F
from .module import Module


class _Dropout(Module):
    """A layer that drops elements with probability `p` in training mode.

    Args:
        p: probability, in [0, 1].
        inplace: whether the input is overwritten.
    """

    __constants__ = ("p", "inplace")
    function: Callable[..., Any]

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ArgumentError(f"{type(self).__name__}: the probability p must be in [0, 1], got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Any) -> Any:
        return type(self).function(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


def _layer(name: str, function: Callable[..., Any]) -> Any:
    doc = f"{function.__doc__}\n{(_Dropout.__doc__ or '').partition('.')[2]}"
    return type(
        name, (_Dropout,), {"function": staticmethod(function), "__doc__": doc, "__module__": __name__}
    )


Dropout: Any = _layer("Dropout", F.dropout)
Dropout1d: Any = _layer("Dropout1d", F.dropout1d)
Dropout2d: Any = _layer("Dropout2d", F.dropout2d)
Dropout3d: Any = _layer("Dropout3d", F.dropout3d)
AlphaDropout: Any = _layer("AlphaDropout", F.alpha_dropout)
FeatureAlphaDropout: Any = _layer("FeatureAlphaDropout", F.feature_alpha_dropout)


class RReLU(Module):
    """x where positive, else x times a slope: random in training mode, the mean in evaluation (Xu et al.
    2015).

    Args:
        lower, upper: the slopes are from U[lower, upper).
        inplace: whether the input is overwritten.
    """

    def __init__(self, lower: float = 1.0 / 8, upper: float = 1.0 / 3, inplace: bool = False) -> None:
        super().__init__()
        self.lower = lower
        self.upper = upper
        self.inplace = inplace

    def forward(self, input: Any) -> Any:
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"lower={self.lower}, upper={self.upper}" + (", inplace=True" if self.inplace else "")
