"""Pooling layers: max, average, power mean, adaptive, and max unpooling, each for 1 to 3 dimensions."""

from __future__ import annotations

from typing import Any

from ..tracer.tensor import Tensor
from . import functional as F
from .functional_conv import ints
from .module import Module
from .record import REQUIRED, layer


def _stride_is_kernel(self: Any) -> None:
    if self.stride is None:
        self.stride = self.kernel_size


def _singles(self: Any) -> None:
    """AvgPool1d keeps and shows tuples."""
    _stride_is_kernel(self)
    for name in ("kernel_size", "stride", "padding"):
        setattr(self, name, ints(getattr(self, name), 1, f"AvgPool1d: {name}"))


def _pools(name: str, function: str, parameters: dict[str, Any], **options: Any) -> tuple[Any, Any, Any]:
    return tuple(  # type: ignore[return-value]
        layer(f"{name}{n}d", getattr(F, f"{function}{n}d"), parameters, module=__name__, **options)
        for n in (1, 2, 3)
    )


_WINDOW: dict[str, Any] = {"kernel_size": REQUIRED, "stride": None}

MaxPool1d, MaxPool2d, MaxPool3d = _pools(
    "MaxPool",
    "max_pool",
    {**_WINDOW, "padding": 0, "dilation": 1, "return_indices": False, "ceil_mode": False},
    shows="kernel_size stride padding dilation ceil_mode",
    setup=_stride_is_kernel,
)
_AVG: dict[str, Any] = {**_WINDOW, "padding": 0, "ceil_mode": False, "count_include_pad": True}
_AVG_SHOWN = "kernel_size stride padding"
AvgPool1d: Any = layer("AvgPool1d", F.avg_pool1d, _AVG, shows=_AVG_SHOWN, setup=_singles, module=__name__)
_, AvgPool2d, AvgPool3d = (
    layer(
        f"AvgPool{n}d",
        getattr(F, f"avg_pool{n}d"),
        {**_AVG, "divisor_override": None},
        shows=_AVG_SHOWN,
        setup=_stride_is_kernel,
        module=__name__,
    )
    if n > 1
    else None
    for n in (1, 2, 3)
)
LPPool1d, LPPool2d, LPPool3d = _pools(
    "LPPool",
    "lp_pool",
    {"norm_type": REQUIRED, **_WINDOW, "ceil_mode": False},
    shows="norm_type kernel_size stride ceil_mode",
)
AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d = _pools(
    "AdaptiveAvgPool", "adaptive_avg_pool", {"output_size": REQUIRED}, shows="output_size"
)
AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d = _pools(
    "AdaptiveMaxPool",
    "adaptive_max_pool",
    {"output_size": REQUIRED, "return_indices": False},
    shows="output_size",
)


class _MaxUnpool(Module):
    _n = 0

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        n, name = self._n, type(self).__name__
        self.kernel_size = ints(kernel_size, n, f"{name}: kernel_size")
        self.stride = self.kernel_size if stride is None else ints(stride, n, f"{name}: stride")
        self.padding = ints(padding, n, f"{name}: padding")

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        unpool = getattr(F, f"max_unpool{self._n}d")
        return unpool(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def _unpool(n: int) -> Any:
    doc = f"""A partial inverse of MaxPool{n}d: zeros, with the elements where its positions say.

    `forward(input, indices, output_size=None)`; see `functional.max_unpool{n}d`."""
    return type(f"MaxUnpool{n}d", (_MaxUnpool,), {"_n": n, "__doc__": doc, "__module__": __name__})


MaxUnpool1d, MaxUnpool2d, MaxUnpool3d = (_unpool(n) for n in (1, 2, 3))
