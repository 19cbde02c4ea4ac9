"""Resampling: interpolation along one dimension at a time, and rearrangements between channels and space.

Interpolation is a linear map of few taps a position, the same for every row: a table of (source, weight)
pairs made from the sizes alone. Its transpose, the gradient, is a table as well: both directions are gathers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import OpError
from ..op import Sample
from ..types import Type
from .records import I64, check_dim, composite, f32, widen
from .windows import Ints

#: For each position of the result, what it takes: (source position, weight) pairs.
Taps = tuple[tuple[tuple[int, float], ...], ...]

MODES = ("nearest", "nearest-exact", "linear", "cubic", "area")
#: up to this many taps are added up one by one, in the same kernel; more are a reduction
UNROLLED = 4


def _linear_weight(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic_weight(x: float, a: float) -> float:
    """Keys' kernel ("Cubic convolution interpolation for digital image processing", 1981)."""
    x = abs(x)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _source(o: int, scale: float, align_corners: bool, cubic: bool) -> float:
    if align_corners:
        return o * scale
    x = (o + 0.5) * scale - 0.5
    return x if cubic else max(x, 0.0)


def _ratio(n: int, size: int, align_corners: bool, scale: float) -> float:
    """Source elements for each of the result's; `scale` is the user's factor, or 0."""
    if align_corners:
        return (n - 1) / (size - 1) if size > 1 else 0.0
    return 1.0 / scale if scale > 0 else n / size


def _smoothed(n: int, size: int, ratio: float, weight: Callable[[float], float], support: float) -> Taps:
    """Taps of a kernel stretched by the ratio where it shrinks the input, normalised (antialiasing)."""
    wide = max(ratio, 1.0)
    out = []
    for o in range(size):
        centre = ratio * (o + 0.5)
        lo = max(int(centre - support * wide + 0.5), 0)
        hi = min(int(centre + support * wide + 0.5), n)
        found = [(i, weight((i - centre + 0.5) / wide)) for i in range(lo, hi)]
        total = sum(w for _, w in found)
        out.append(tuple((i, w / total) for i, w in found))
    return tuple(out)


@lru_cache(maxsize=512)
def taps_of(n: int, size: int, mode: str, align_corners: bool, scale: float, antialias: bool) -> Taps:
    """The table of one dimension: n elements resampled to `size`."""
    if mode == "area":
        bounds = [(o * n // size, -(-(o + 1) * n // size)) for o in range(size)]
        return tuple(tuple((i, 1.0 / (hi - lo)) for i in range(lo, hi)) for lo, hi in bounds)
    ratio = _ratio(n, size, align_corners, scale)
    if mode.startswith("nearest"):
        # In f32, as PyTorch: which neighbour is nearest may hang on the rounding.
        at = (np.arange(size, dtype=np.float32) + np.float32(mode == "nearest-exact") / 2) * np.float32(ratio)
        return tuple(((min(int(i), n - 1), 1.0),) for i in np.floor(at))
    if antialias:
        if mode == "linear":
            return _smoothed(n, size, ratio, _linear_weight, 1.0)
        return _smoothed(n, size, ratio, lambda x: _cubic_weight(x, -0.5), 2.0)
    out = []
    for o in range(size):
        x = _source(o, ratio, align_corners, mode == "cubic")
        i = math.floor(x)
        if mode == "linear":
            i = min(i, n - 1)
            t = min(max(x - i, 0.0), 1.0)
            found = [(i, 1.0 - t), (min(i + 1, n - 1), t)]
        else:
            found = [(min(max(i + k, 0), n - 1), _cubic_weight(x - i - k, -0.75)) for k in range(-1, 3)]
        out.append(tuple(found))
    return tuple(out)


@lru_cache(maxsize=512)
def transposed(taps: Taps, n: int) -> Taps:
    """The table of the transposed map, which gives n elements."""
    out: list[dict[int, float]] = [{} for _ in range(n)]
    for o, found in enumerate(taps):
        for i, w in found:
            out[i][o] = out[i].get(o, 0.0) + w
    return tuple(tuple(sorted(found.items())) for found in out)


def _infer(
    x: Type,
    *,
    dim: int,
    size: int,
    mode: str,
    align_corners: bool = False,
    scale: float = 0.0,
    antialias: bool = False,
    back: bool = False,
) -> Type:
    check_dim(dim, x.rank)
    if mode not in MODES:
        raise OpError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not isinstance(size, int) or size < 1 or x.shape[dim] < 1:
        raise OpError(f"expected sizes of at least 1, got {x.shape[dim]} to be resampled to {size}")
    if x.dtype.kind != "f" and not mode.startswith("nearest"):
        raise OpError(f"mode {mode!r} takes floating-point tensors, got {x}")
    return Type(x.dtype, tuple(size if d == dim else n for d, n in enumerate(x.shape)))


def _resample(
    b: Any,
    x: Any,
    *,
    dim: int,
    size: int,
    mode: str,
    align_corners: bool = False,
    scale: float = 0.0,
    antialias: bool = False,
    back: bool = False,
) -> Any:
    n = x.type.shape[dim]
    if back:
        taps = transposed(taps_of(size, n, mode, align_corners, scale, antialias), size)
    else:
        taps = taps_of(n, size, mode, align_corners, scale, antialias)
    most = max(max((len(found) for found in taps), default=1), 1)
    columns = [[found[k] if k < len(found) else (None, 0.0) for found in taps] for k in range(most)]
    wide = widen(b, x)

    def place(k: int) -> list[int]:
        """Sources of tap k; where a position has fewer, one that it reads anyway."""
        spare = [found[0][0] if found else 0 for found in taps]
        return [o if i is None else i for o, (i, _) in zip(spare, columns[k])]

    def line(values: list[float], taps_first: bool) -> Any:
        shape = tuple(size if d == dim else 1 for d in range(x.type.rank))
        shape = (*shape[:dim], most, *shape[dim:]) if taps_first else shape
        return b.constant(value=tuple(values), dtype=wide.type.dtype, shape=shape)

    if most <= UNROLLED:
        out = None
        for k in range(most):
            term = b.take(wide, b.constant(value=tuple(place(k)), dtype=I64, shape=(size,)), dim=dim)
            weights = [w for _, w in columns[k]]
            term = (
                term if all(w == 1.0 for w in weights) else _weighted(b, term, line(weights, False), weights)
            )
            out = term if out is None else b.add(out, term)
        return b.cast_to(out, x.type.dtype)
    flat = tuple(i for k in range(most) for i in place(k))
    seen = b.take(wide, b.constant(value=flat, dtype=I64, shape=(most, size)), dim=dim)
    weights = [w for column in columns for _, w in column]
    made = b.sum(_weighted(b, seen, line(weights, True), weights), axes=(dim,))
    return b.cast_to(made, x.type.dtype)


def _weighted(b: Any, x: Any, w: Any, weights: list[float]) -> Any:
    """`x * w`, and exactly 0 where a tap is not there: what it reads instead may be infinite."""
    made = b.mul(x, w)
    return made if all(weights) else b.where(b.eq(w, b.const(0, w)), b.const(0, made), made)


def _resample_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    attrs = {**n.attrs, "size": n.type(0).shape[n.attrs["dim"]], "back": not n.attr("back")}
    return (b.resample(g, **attrs),)


def _attrs(dim: int, size: int, mode: str, **more: Any) -> dict[str, Any]:
    return {"dim": dim, "size": size, "mode": mode, **more}


composite(
    "resample",
    _infer,
    _resample,
    _resample_grad,
    samples=lambda: [
        Sample((f32(2, 5),), _attrs(1, 8, "nearest")),
        Sample((f32(2, 5),), _attrs(0, 5, "nearest-exact")),
        Sample((f32(2, 5, 3),), _attrs(1, 9, "linear")),
        Sample((f32(2, 5),), _attrs(1, 3, "linear", align_corners=True)),
        Sample((f32(4, 5),), _attrs(0, 9, "cubic")),
        Sample((f32(7, 2),), _attrs(0, 3, "area")),
        Sample(
            (
                f32(
                    9,
                ),
            ),
            _attrs(0, 4, "linear", antialias=True),
        ),
        Sample((f32(2, 8),), _attrs(1, 5, "linear", back=True)),
        Sample((f32(3, 4),), _attrs(1, 8, "linear", scale=2.1)),
    ],
    doc="One dimension resampled to `size`; with `back` the transpose of the map from `size` elements.",
)

# --- several dimensions -----------------------------------------------------------------------------


def _upsample_infer(
    x: Type,
    *,
    size: Ints,
    mode: str,
    align_corners: bool = False,
    scales: tuple[float, ...] = (),
    antialias: bool = False,
) -> Type:
    n = len(size)
    if x.rank != n + 2:
        raise OpError(f"expected an input [N, C, S...] with {n} spatial dimensions, got {x}")
    for d, k in enumerate(size):
        _infer(x, dim=d + 2, size=k, mode=mode)
    return Type(x.dtype, (*x.shape[:2], *size))


def _upsample(
    b: Any,
    x: Any,
    *,
    size: Ints,
    mode: str,
    align_corners: bool = False,
    scales: tuple[float, ...] = (),
    antialias: bool = False,
) -> Any:
    dtype = x.type.dtype
    out = widen(b, x) if dtype.kind == "f" else x
    for d, k in enumerate(size):
        scale = scales[d] if scales else 0.0
        out = b.resample(
            out, dim=d + 2, size=k, mode=mode, align_corners=align_corners, scale=scale, antialias=antialias
        )
    return b.cast_to(out, dtype)


_TORCH = {"nearest": "Nearest", "nearest-exact": "NearestExact", "cubic": "Bicubic"}


def _upsample_name(node: Any) -> str:
    n, mode = len(node.attrs["size"]), node.attrs["mode"]
    if mode == "area":
        return _area_name(node)
    kind = ("Linear", "Bilinear", "Trilinear")[n - 1] if mode == "linear" else _TORCH[mode]
    dims = "2DAa" if node.attrs.get("antialias") else f"{n}D"
    return f"Upsample{kind}{dims}Backward0"


def _area_name(node: Any) -> str:
    n = len(node.attrs["size"])
    return f"AdaptiveAvgPool{n}DBackward0" if n > 1 else "SqueezeBackward1"


composite(
    "upsample",
    _upsample_infer,
    _upsample,
    samples=lambda: [
        Sample((f32(1, 2, 3, 4),), {"size": (6, 5), "mode": "linear"}),
        Sample((f32(1, 2, 3, 4),), {"size": (6, 8), "mode": "nearest", "scales": (2.0, 2.0)}),
        Sample((f32(2, 1, 3),), {"size": (7,), "mode": "linear", "align_corners": True}),
        Sample((f32(1, 1, 4, 4),), {"size": (3, 7), "mode": "cubic"}),
        Sample((f32(1, 1, 2, 2, 3),), {"size": (3, 3, 2), "mode": "linear"}),
    ],
    grad_name=_upsample_name,
    doc="Spatial dimensions of [N, C, S...] resampled to `size`, one after the other.",
)

# --- channels and space -----------------------------------------------------------------------------


def _shuffle_infer(x: Type, *, factor: int) -> Type:
    if x.rank < 3 or factor < 1 or x.shape[-3] % (factor * factor):
        raise OpError(
            f"expected [..., C, H, W] with channels divisible by the square of a factor >= 1, got {x} "
            f"with factor {factor}"
        )
    *lead, c, h, w = x.shape
    return Type(x.dtype, (*lead, c // factor**2, h * factor, w * factor))


def _shuffle(b: Any, x: Any, *, factor: int) -> Any:
    *lead, c, h, w = x.type.shape
    n = len(lead)
    x = b.reshape(x, shape=(*lead, c // factor**2, factor, factor, h, w))
    x = b.permute(x, dims=(*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return b.reshape(x, shape=(*lead, c // factor**2, h * factor, w * factor))


def _unshuffle_infer(x: Type, *, factor: int) -> Type:
    if x.rank < 3 or factor < 1 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise OpError(
            f"expected [..., C, H, W] with height and width divisible by a factor >= 1, got {x} with factor "
            f"{factor}"
        )
    *lead, c, h, w = x.shape
    return Type(x.dtype, (*lead, c * factor**2, h // factor, w // factor))


def _unshuffle(b: Any, x: Any, *, factor: int) -> Any:
    *lead, c, h, w = x.type.shape
    n = len(lead)
    x = b.reshape(x, shape=(*lead, c, h // factor, factor, w // factor, factor))
    x = b.permute(x, dims=(*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return b.reshape(x, shape=(*lead, c * factor**2, h // factor, w // factor))


composite(
    "pixel_shuffle",
    _shuffle_infer,
    _shuffle,
    lambda b, n, g: (b.pixel_unshuffle(g, factor=n.attrs["factor"]),),
    samples=lambda: [Sample((f32(2, 8, 2, 3),), {"factor": 2}), Sample((f32(9, 1, 2),), {"factor": 3})],
    doc="[..., C*r*r, H, W] as [..., C, H*r, W*r].",
)
composite(
    "pixel_unshuffle",
    _unshuffle_infer,
    _unshuffle,
    lambda b, n, g: (b.pixel_shuffle(g, factor=n.attrs["factor"]),),
    samples=lambda: [Sample((f32(2, 2, 4, 6),), {"factor": 2}), Sample((f32(1, 3, 6),), {"factor": 3})],
    doc="[..., C, H*r, W*r] as [..., C*r*r, H, W].",
)


def _channels_infer(x: Type, *, groups: int) -> Type:
    if x.rank < 3 or groups < 1 or x.shape[1] % groups:
        raise OpError(f"expected [N, C, S...] with channels divisible by groups={groups}, got {x}")
    return x


def _channels(b: Any, x: Any, *, groups: int) -> Any:
    n, c, *rest = x.type.shape
    split = b.reshape(x, shape=(n, groups, c // groups, *rest))
    return b.reshape(b.permute(split, dims=(0, 2, 1, *range(3, split.type.rank))), shape=x.type.shape)


composite(
    "channel_shuffle",
    _channels_infer,
    _channels,
    samples=lambda: [Sample((f32(2, 6, 2),), {"groups": 3})],
    grad_name="NativeChannelShuffleBackward0",
    doc="Channels of [N, C, S...] dealt out over groups, so that every group has some of each.",
)

# --- padding ----------------------------------------------------------------------------------------


def _frame_infer(x: Type, *, low: Ints, high: Ints, mode: str) -> Type:
    n = len(low)
    if mode not in ("reflect", "replicate", "circular"):
        raise OpError(f"mode must be reflect, replicate or circular, got {mode!r}")
    if len(high) != n or x.rank < n:
        raise OpError(f"expected low and high of one length, at most {x.rank}, got {low} and {high}")
    out = list(x.shape)
    for d, (lo, hi) in enumerate(zip(low, high), x.rank - n):
        m = x.shape[d]
        most = {"reflect": m - 1, "circular": m, "replicate": max(lo, hi)}[mode]
        if max(lo, hi) > most:
            raise OpError(f"{mode} padding of dimension {d} of {x} can be at most {most}, got ({lo}, {hi})")
        out[d] = m + lo + hi
        if out[d] < 1 or m == 0:
            raise OpError(f"padding dimension {d} of {x} by ({lo}, {hi}) leaves nothing")
    return Type(x.dtype, out)


def _frame(b: Any, x: Any, *, low: Ints, high: Ints, mode: str) -> Any:
    """Pieces of the operand, mirrored or repeated, joined before and after it."""
    rank = x.type.rank
    for d, (lo, hi) in enumerate(zip(low, high), rank - len(low)):
        shape = x.type.shape
        m = shape[d]

        def cut(start: int, stop: int, d: int = d, shape: Any = shape, x: Any = x) -> Any:
            return b.slice(
                x,
                start=tuple(start if i == d else 0 for i in range(rank)),
                stop=tuple(stop if i == d else k for i, k in enumerate(shape)),
                step=(1,) * rank,
            )

        def edge(at: int, count: int, d: int = d, shape: Any = shape, cut: Any = cut) -> Any:
            return b.expand(cut(at, at + 1), shape=(*shape[:d], count, *shape[d + 1 :]))

        # A negative amount crops: what is joined and the rest then both come from inside.
        inner = cut(max(-lo, 0), m - max(-hi, 0)) if min(lo, hi) < 0 else x
        parts = [inner]
        if lo > 0:
            before = {
                "reflect": lambda lo=lo, cut=cut, d=d: b.flip(cut(1, lo + 1), dims=(d,)),
                "replicate": lambda lo=lo, edge=edge: edge(0, lo),
                "circular": lambda lo=lo, cut=cut, m=m, hi=hi: cut(m - lo + min(hi, 0), m + min(hi, 0)),
            }[mode]()
            parts.insert(0, before)
        if hi > 0:
            after = {
                "reflect": lambda hi=hi, cut=cut, d=d, m=m: b.flip(cut(m - 1 - hi, m - 1), dims=(d,)),
                "replicate": lambda hi=hi, edge=edge, m=m: edge(m - 1, hi),
                "circular": lambda hi=hi, cut=cut, lo=lo: cut(max(-lo, 0), max(-lo, 0) + hi),
            }[mode]()
            parts.append(after)
        x = b.concat(*parts, dim=d) if len(parts) > 1 else inner
    return x


def _frame_name(node: Any) -> str:
    kind = {"reflect": "ReflectionPad", "replicate": "ReplicationPad"}.get(node.attrs["mode"])
    return f"{kind}{len(node.attrs['low'])}DBackward0" if kind else "CopySlices"


composite(
    "pad_around",
    _frame_infer,
    _frame,
    samples=lambda: [
        Sample((f32(2, 4, 5),), {"low": (1, 2), "high": (3, 0), "mode": "reflect"}),
        Sample((f32(2, 3),), {"low": (2,), "high": (4,), "mode": "replicate"}),
        Sample((f32(3, 4),), {"low": (1, 4), "high": (3, 2), "mode": "circular"}),
        Sample((f32(2, 5),), {"low": (-1,), "high": (2,), "mode": "replicate"}),
    ],
    grad_name=_frame_name,
    doc="The last dimensions continued on either side by mirror images, by their ends or by themselves.",
)
