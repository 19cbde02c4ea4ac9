"""Layers that resample and rearrange images: Upsample, PixelShuffle, ChannelShuffle and their kin."""

from __future__ import annotations

from typing import Any

from ..tracer.tensor import Tensor
from . import functional as F
from .module import Module
from .record import REQUIRED, layer


class Upsample(Module):
    """`functional.interpolate` as a layer.

    Args:
        size: spatial sizes of the result; or
        scale_factor: what the sizes are multiplied by.
        mode: nearest, linear, bilinear, bicubic or trilinear.
        align_corners: whether the corner elements' centres are the corners.
        recompute_scale_factor: take the factor from the sizes, not as given.
    """

    def __init__(
        self, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
        align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name = type(self).__name__
        self.size = size
        if isinstance(scale_factor, tuple):
            self.scale_factor: Any = tuple(float(s) for s in scale_factor)
        else:
            self.scale_factor = float(scale_factor) if scale_factor else None
        self.mode = mode
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            recompute_scale_factor=self.recompute_scale_factor,
        )

    def extra_repr(self) -> str:
        what = "size" if self.scale_factor is None else "scale_factor"
        return f"{what}={getattr(self, what)!r}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """Nearest neighbours of `[N, C, H, W]`, to a `size` or by a `scale_factor`."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, mode="nearest")


class UpsamplingBilinear2d(Upsample):
    """Bilinear interpolation of `[N, C, H, W]` with aligned corners, to a `size` or by a `scale_factor`."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, mode="bilinear", align_corners=True)


def _rearranging(name: str, function: Any, parameter: str) -> Any:
    return layer(name, function, {parameter: REQUIRED}, shows=parameter, module=__name__)


PixelShuffle: Any = _rearranging("PixelShuffle", F.pixel_shuffle, "upscale_factor")
PixelUnshuffle: Any = _rearranging("PixelUnshuffle", F.pixel_unshuffle, "downscale_factor")
ChannelShuffle: Any = _rearranging("ChannelShuffle", F.channel_shuffle, "groups")
