"""Padding, interpolation and rearrangement of `nn.functional`. Import them from there."""

from __future__ import annotations

import math
from operator import index as int_of
from typing import Any

from ..ir.errors import OpError
from ..ir.op import REGISTRY
from ..tracer.callers import warn
from ..tracer.library import ArgumentError
from ..tracer.making import apply
from ..tracer.operands import tensor_operand
from ..tracer.tensor import Tensor

T = Any

# --- padding ----------------------------------------------------------------------------------------


def pad(input: T, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """The tensor continued at both ends of its last dimensions.

    Args:
        pad: (before, after) of the last dimension, then of the one before it, and so on. Negative: cropped.
        mode: "constant" (by `value`), or, for 1 to 3 dimensions of `[N, C, S...]` or `[C, S...]`, "reflect"
            (mirrored, the edge not repeated), "replicate" (the edge repeated) or "circular".
        value: 0 if None.
    """
    tensor_operand(input, "pad(): input")
    amounts = tuple(int_of(v) for v in pad)
    type_ = input._value().type
    if len(amounts) % 2:
        raise ArgumentError(f"pad(): padding length must be divisible by 2, got {len(amounts)}: {amounts}")
    n = len(amounts) // 2
    if n > type_.rank:
        raise ArgumentError(f"pad(): at most two amounts for each dimension of {type_}, got {amounts}")
    low, high = amounts[::2][::-1], amounts[1::2][::-1]
    if mode == "constant":
        return _pad_constant(input, low, high, 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise ArgumentError(f"pad(): unrecognised padding mode {mode!r}")
    if value is not None and value != 0:
        raise ArgumentError(f"pad(): padding mode {mode!r} doesn't take in value argument")
    if not (1 <= n <= 3 and type_.rank in (n + 1, n + 2)):
        raise OpError(
            f"pad(): only 2D, 3D, 4D, 5D padding with non-constant padding are supported for now: {n} "
            f"spatial dimensions of an input [N, C, S...] or [C, S...], got {type_} and pad={amounts}"
        )
    if not any(amounts):
        return input.clone()
    return apply(REGISTRY["pad_around"], input, low=low, high=high, mode=mode)


def _pad_constant(input: Any, low: tuple[int, ...], high: tuple[int, ...], value: float) -> Tensor:
    shape = tuple(input.shape)
    rank, lead = len(shape), len(shape) - len(low)
    low, high = ((*(0,) * lead, *v) for v in (low, high))
    for d, (m, lo, hi) in enumerate(zip(shape, low, high)):
        if m + lo + hi < 0 or m + min(lo, 0) < 0 or m + min(hi, 0) < 0:
            raise OpError(f"pad(): ({lo}, {hi}) leaves nothing of dimension {d} of {input._value().type}")
    if any(k < 0 for k in (*low, *high)):
        start = tuple(max(-lo, 0) for lo in low)
        stop = tuple(max(m - max(-hi, 0), a) for m, hi, a in zip(shape, high, start))
        input = apply(REGISTRY["slice"], input, start=start, stop=stop, step=(1,) * rank)
    dtype = input.dtype
    low, high = (tuple(max(k, 0) for k in v) for v in (low, high))
    return apply(REGISTRY["pad"], input, low=low, high=high, value=dtype.number(value))


# --- interpolation ----------------------------------------------------------------------------------

#: modes by the number of spatial dimensions, and what the op calls them
_MODES = {
    "nearest": ((1, 2, 3), "nearest"),
    "nearest-exact": ((1, 2, 3), "nearest-exact"),
    "area": ((1, 2, 3), "area"),
    "linear": ((1,), "linear"),
    "bilinear": ((2,), "linear"),
    "trilinear": ((3,), "linear"),
    "bicubic": ((2,), "cubic"),
}
_INTERPOLATING = ("linear", "bilinear", "bicubic", "trilinear")


def _each(value: Any, n: int, what: str) -> tuple[Any, ...]:
    found = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n
    if len(found) != n:
        raise ArgumentError(f"interpolate(): {what} must be a number or {n} numbers, got {value!r}")
    return found


def interpolate(
    input: T, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor:  # fmt: skip
    """Resamples the spatial dimensions of `[N, C, S...]`.

    Args:
        size: spatial sizes of the result; or
        scale_factor: what the sizes are multiplied by (and rounded down).
        mode: nearest, nearest-exact, area; linear (3D), bilinear, bicubic (4D), trilinear (5D).
        align_corners: whether the corner elements' centres are the corners, for the linear and cubic modes.
        recompute_scale_factor: take the factor from the sizes, not as given.
        antialias: widen the kernel where the result is smaller (bilinear and bicubic).
    """
    tensor_operand(input, "interpolate(): input")
    type_ = input._value().type
    n = type_.rank - 2
    if mode not in _MODES or n not in (1, 2, 3):
        raise ArgumentError(
            f"interpolate(): expected a 3D, 4D or 5D input [N, C, S...] and one of the modes "
            f"{', '.join(_MODES)}; got {type_} and mode={mode!r}"
        )
    ranks, name = _MODES[mode]
    if n not in ranks:
        fits = "linear" if n == 1 else "bilinear or bicubic" if n == 2 else "trilinear"
        needed = f"mode {mode!r} needs {ranks[0] + 2}D input; use {fits}"
        raise ArgumentError(f"interpolate(): got {type_} but {needed}")
    if mode not in _INTERPOLATING and align_corners is not None:
        raise ArgumentError(
            "interpolate(): align_corners option can only be set with the interpolating modes: linear | "
            "bilinear | bicubic | trilinear"
        )
    if antialias and mode not in ("bilinear", "bicubic"):
        raise ArgumentError(f"interpolate(): antialias is for bilinear and bicubic only, got mode={mode!r}")
    if (size is None) == (scale_factor is None):
        raise ArgumentError(
            "interpolate(): exactly one of size and scale_factor should be defined, got "
            f"size={size!r} and scale_factor={scale_factor!r}"
        )
    spatial = type_.shape[2:]
    scales: tuple[float, ...] = ()
    if size is not None:
        if recompute_scale_factor:
            raise ArgumentError("interpolate(): recompute_scale_factor needs a scale_factor, not a size")
        out = tuple(int(k) for k in _each(size, n, "size"))
    else:
        factors = tuple(float(s) for s in _each(scale_factor, n, "scale_factor"))
        out = tuple(math.floor(m * s) for m, s in zip(spatial, factors))
        if mode != "area" and not recompute_scale_factor:
            scales = factors
    if any(k < 1 for k in out):
        raise OpError(f"interpolate(): {type_} resampled to {list(out)}: sizes should be greater than 0")
    if mode == "area":
        return apply(REGISTRY["adaptive_avg_pool"], input, size=out)
    attrs: dict[str, Any] = {"size": out, "mode": name}
    if align_corners:
        attrs["align_corners"] = True
    if scales:
        attrs["scales"] = scales
    if antialias:
        attrs["antialias"] = True
    return apply(REGISTRY["upsample"], input, **attrs)


def upsample(
    input: T, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: Any = None
) -> Tensor:
    """`interpolate`, under its old name."""
    warn("upsample() is deprecated; use interpolate()")
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(input: T, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`interpolate(mode="nearest")`, under its old name."""
    warn("upsample_nearest() is deprecated; use interpolate()")
    return interpolate(input, size, scale_factor, mode="nearest")


def upsample_bilinear(input: T, size: Any = None, scale_factor: Any = None) -> Tensor:
    """`interpolate(mode="bilinear", align_corners=True)`, under its old name."""
    warn("upsample_bilinear() is deprecated; use interpolate()")
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


# --- channels and space -----------------------------------------------------------------------------


def pixel_shuffle(input: T, upscale_factor: int) -> Tensor:
    """`[..., C * r * r, H, W]` as `[..., C, H * r, W * r]`, r the factor (Shi et al. 2016)."""
    return apply(REGISTRY["pixel_shuffle"], tensor_operand(input), factor=int(upscale_factor))


def pixel_unshuffle(input: T, downscale_factor: int) -> Tensor:
    """`[..., C, H * r, W * r]` as `[..., C * r * r, H, W]`, r the factor: undoes `pixel_shuffle`."""
    return apply(REGISTRY["pixel_unshuffle"], tensor_operand(input), factor=int(downscale_factor))


def channel_shuffle(input: T, groups: int) -> Tensor:
    """The channels of `[N, C, S...]` dealt out over groups (Zhang et al., ShuffleNet, 2018)."""
    return apply(REGISTRY["channel_shuffle"], tensor_operand(input), groups=int(groups))
