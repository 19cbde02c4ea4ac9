"""Activation layers: a table. A row is a class of `nn.functional`'s function with the same arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..tracer.creation import full
from ..tracer.library import ArgumentError
from ..tracer.tensor import Tensor
from . import functional as F
from . import record
from .module import Module
from .parameter import Parameter
from .record import REQUIRED

_layer = partial(record.layer, module=__name__)


def _check_hardtanh(m: Any) -> None:
    if not m.min_val < m.max_val:
        raise ArgumentError(f"Hardtanh: min_val must be below max_val, got {m.min_val} and {m.max_val}")


ReLU: Any = _layer("ReLU", F.relu, {"inplace": False}, shows="?inplace")
LeakyReLU: Any = _layer(
    "LeakyReLU", F.leaky_relu, {"negative_slope": 0.01, "inplace": False}, shows="negative_slope ?inplace"
)
ELU: Any = _layer("ELU", F.elu, {"alpha": 1.0, "inplace": False}, shows="alpha ?inplace")
CELU: Any = _layer("CELU", F.celu, {"alpha": 1.0, "inplace": False}, shows="alpha ?inplace")
SELU: Any = _layer("SELU", F.selu, {"inplace": False}, shows="?inplace")
GELU: Any = _layer("GELU", F.gelu, {"approximate": "none"}, shows="approximate")
SiLU: Any = _layer("SiLU", F.silu, {"inplace": False}, shows="?inplace")
Mish: Any = _layer("Mish", F.mish, {"inplace": False}, shows="?inplace")
Softplus: Any = _layer("Softplus", F.softplus, {"beta": 1.0, "threshold": 20.0}, shows="beta threshold")
Sigmoid: Any = _layer("Sigmoid", F.sigmoid, {})
Tanh: Any = _layer("Tanh", F.tanh, {})
Hardtanh: Any = _layer(
    "Hardtanh", F.hardtanh, {"min_val": -1.0, "max_val": 1.0, "inplace": False},
    shows="min_val max_val ?inplace", setup=_check_hardtanh,
)  # fmt: skip
ReLU6: Any = _layer("ReLU6", F.relu6, {"inplace": False}, shows="?inplace")
Hardswish: Any = _layer("Hardswish", F.hardswish, {"inplace": False})
Hardsigmoid: Any = _layer("Hardsigmoid", F.hardsigmoid, {"inplace": False})
Softsign: Any = _layer("Softsign", F.softsign, {})
Tanhshrink: Any = _layer("Tanhshrink", F.tanhshrink, {})
Hardshrink: Any = _layer("Hardshrink", F.hardshrink, {"lambd": 0.5}, shows="=lambd")
Softshrink: Any = _layer("Softshrink", F.softshrink, {"lambd": 0.5}, shows="=lambd")
Threshold: Any = _layer(
    "Threshold", F.threshold, {"threshold": REQUIRED, "value": REQUIRED, "inplace": False},
    shows="threshold value ?inplace",
)  # fmt: skip
LogSigmoid: Any = _layer("LogSigmoid", F.logsigmoid, {})
GLU: Any = _layer("GLU", F.glu, {"dim": -1}, shows="dim")
Softmax: Any = _layer("Softmax", F.softmax, {"dim": None}, shows="dim")
LogSoftmax: Any = _layer("LogSoftmax", F.log_softmax, {"dim": None}, shows="dim")
Softmin: Any = _layer("Softmin", F.softmin, {"dim": None}, shows="dim")


class Softmax2d(Module):
    """Softmax over the channels of `[N, C, H, W]` or `[C, H, W]`."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ArgumentError(f"Softmax2d takes [N, C, H, W] or [C, H, W], got {input._value().type}")
        return F.softmax(input, -3)


class PReLU(Module):
    """`x` above 0, `weight * x` below, with a learned weight.

    Attributes:
        weight: `[num_parameters]`: one for all, or one per channel.
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.init = init
        self.weight = Parameter(full((num_parameters,), float(init), device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


__all__ = [
    "CELU", "ELU", "GELU", "GLU", "SELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU",
    "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softmax", "Softmax2d",
    "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
]  # fmt: skip
