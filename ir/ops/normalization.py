"""Normalisation layers as ops: layer, group, batch and RMS normalisation, with their gradients.

All are (x - mean) * rstd over some axes, then an affine map; f16 and bf16 compute in f32. The forward
and the backward spell their statistics alike, so that a compiled program computes them once.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

from .. import batch_rules, dtypes
from ..errors import OpError
from ..op import Sample
from ..types import Shape, Type
from .records import check_float, check_same_dtype, composite, f32, is_zero, widen
from .statistics import mean_of

Axes = tuple[int, ...]


def _standardized(b: Any, x: Any, axes: Axes, eps: float) -> tuple[Any, Any, Any, Any]:
    """(x standardised over `axes`, mean, variance, 1 / sqrt(variance + eps)), the latter with `axes` of
    size 1."""
    mean = mean_of(b, x, axes, keepdim=True)
    d = b.sub(x, mean)
    var = mean_of(b, b.mul(d, d), axes, keepdim=True)
    rstd = b.rsqrt(b.add(var, b.const(eps, x)))
    return b.mul(d, rstd), mean, var, rstd


def _standardized_grad(b: Any, hat: Any, rstd: Any, g: Any, axes: Axes) -> Any:
    """The gradient of x from that of x standardised: what is left of it off the mean and off `hat` itself."""
    along = b.mul(hat, mean_of(b, b.mul(g, hat), axes, keepdim=True))
    return b.mul(rstd, b.sub(b.sub(g, mean_of(b, g, axes, keepdim=True)), along))


def _affine(b: Any, hat: Any, params: tuple[Any, ...], shape: Shape) -> Any:
    """hat * weight + bias, the parameters reshaped to `shape`."""
    for p, op in zip(params, (b.mul, b.add)):
        hat = op(hat, b.reshape(widen(b, p), shape=shape))
    return hat


def _check_params(x: Type, params: tuple[Type, ...], shape: Shape, least: int = 0) -> None:
    if len(params) > 2 or len(params) == least == 1:
        raise OpError(f"expected at most a weight and a bias after the input, got {len(params)} operands")
    check_float(x)
    check_same_dtype(x, *params)
    for p in params:
        if p.shape != shape:
            raise OpError(f"expected weight and bias of shape {list(shape)}, got {p}")


# --- layer and RMS norm ---------------------------------------------------------------------------


def _tail_axes(x: Type, normalized_shape: Shape) -> Axes:
    k = len(normalized_shape)
    if not k or x.shape[x.rank - k :] != tuple(normalized_shape) or k > x.rank:
        raise OpError(f"expected an input that ends in dimensions {list(normalized_shape)}, got {x}")
    return tuple(range(x.rank - k, x.rank))


def _layer_infer(x: Type, *params: Type, normalized_shape: Shape, eps: float = 1e-5) -> Type:
    _tail_axes(x, normalized_shape)
    _check_params(x, params, tuple(normalized_shape))
    return x


def _layer_norm(b: Any, x: Any, *params: Any, normalized_shape: Shape, eps: float = 1e-5) -> Any:
    hat = _standardized(b, widen(b, x), _tail_axes(x.type, normalized_shape), eps)[0]
    return b.cast_to(_affine(b, hat, params, normalized_shape), x.type.dtype)


def _layer_grad(b: Any, n: Any, g: Any) -> Any:
    shape = n.attrs["normalized_shape"]
    axes = _tail_axes(n.type(0), shape)
    g = widen(b, g)
    hat, _, _, rstd = _standardized(b, widen(b, n[0]), axes, n.attr("eps"))

    def x() -> Any:
        return _standardized_grad(b, hat, rstd, b.mul(g, widen(b, n[1])) if len(n) > 1 else g, axes)

    return (x, lambda: b.mul(g, hat), g)[: len(n)]


composite(
    "layer_norm",
    _layer_infer,
    _layer_norm,
    _layer_grad,
    batch=batch_rules.leading,
    samples=lambda: [
        Sample((f32(3, 4), f32(4), f32(4)), {"normalized_shape": (4,)}),
        Sample((f32(2, 3, 4), f32(3, 4)), {"normalized_shape": (3, 4), "eps": 1e-3}),
        Sample((f32(5, 7),), {"normalized_shape": (7,)}),
        Sample((f32(0, 4), f32(4), f32(4)), {"normalized_shape": (4,)}),
    ],
    grad_name="NativeLayerNormBackward0",
    doc="Each slice over the last dimensions standardised, times a weight, plus a bias (Ba et al. 2016).",
)


def _rms_infer(x: Type, *params: Type, normalized_shape: Shape, eps: float | None = None) -> Type:
    _tail_axes(x, normalized_shape)
    if len(params) > 1:
        raise OpError(f"expected at most a weight after the input, got {len(params)} operands")
    _check_params(x, params, tuple(normalized_shape))
    return x


def _rms(b: Any, x: Any, axes: Axes, eps: float | None, dtype: Any) -> tuple[Any, Any]:
    if eps is None:  # the machine epsilon
        eps = 2.0 ** {"f64": -52, "f32": -23, "f16": -10, "bf16": -7}[dtypes.opmath(dtype).name]
    r = b.rsqrt(b.add(mean_of(b, b.mul(x, x), axes, keepdim=True), b.const(eps, x)))
    return b.mul(x, r), r


def _rms_norm(b: Any, x: Any, *params: Any, normalized_shape: Shape, eps: float | None = None) -> Any:
    hat, _ = _rms(b, widen(b, x), _tail_axes(x.type, normalized_shape), eps, x.type.dtype)
    return b.cast_to(_affine(b, hat, params, normalized_shape), x.type.dtype)


def _rms_grad(b: Any, n: Any, g: Any) -> Any:
    axes = _tail_axes(n.type(0), n.attrs["normalized_shape"])
    g = widen(b, g)
    hat, r = _rms(b, widen(b, n[0]), axes, n.attr("eps"), n.type(0).dtype)

    def x() -> Any:
        h = b.mul(g, widen(b, n[1])) if len(n) > 1 else g
        return b.mul(r, b.sub(h, b.mul(hat, mean_of(b, b.mul(h, hat), axes, keepdim=True))))

    return (x, lambda: b.mul(g, hat))[: len(n)]


composite(
    "rms_norm",
    _rms_infer,
    _rms_norm,
    _rms_grad,
    batch=batch_rules.leading,
    samples=lambda: [
        Sample((f32(3, 4), f32(4)), {"normalized_shape": (4,)}),
        Sample((f32(2, 3, 4),), {"normalized_shape": (3, 4), "eps": 1e-3}),
        Sample((f32(0, 4), f32(4)), {"normalized_shape": (4,)}),
    ],
    grad_name="MulBackward0",
    doc="Each slice over the root of its mean square, times a weight (Zhang and Sennrich 2019).",
)

# --- group norm -----------------------------------------------------------------------------------


def _channels(x: Type) -> Shape:
    """The shape in which a parameter per channel broadcasts."""
    return (1, x.shape[1], *(1 for _ in x.shape[2:]))


def _group_infer(x: Type, *params: Type, num_groups: int, eps: float = 1e-5) -> Type:
    if x.rank < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise OpError(f"expected an input [N, C, ...] with C a multiple of num_groups={num_groups}, got {x}")
    _check_params(x, params, (x.shape[1],), least=1)
    return x


def _grouped(x: Type, num_groups: int) -> Shape:
    return (x.shape[0], num_groups, prod(x.shape[1:]) // num_groups)


def _group_norm(b: Any, x: Any, *params: Any, num_groups: int, eps: float = 1e-5) -> Any:
    hat = _standardized(b, b.reshape(widen(b, x), shape=_grouped(x.type, num_groups)), (2,), eps)[0]
    hat = b.reshape(hat, shape=x.type.shape)
    return b.cast_to(_affine(b, hat, params, _channels(x.type)), x.type.dtype)


def _group_grad(b: Any, n: Any, g: Any) -> Any:
    t = n.type(0)
    groups, g = _grouped(t, n.attrs["num_groups"]), widen(b, g)
    hat, _, _, rstd = _standardized(b, b.reshape(widen(b, n[0]), shape=groups), (2,), n.attr("eps"))

    def x() -> Any:
        h = _affine(b, g, (n[1],), _channels(t)) if len(n) > 1 else g
        made = _standardized_grad(b, hat, rstd, b.reshape(h, shape=groups), (2,))
        return b.reshape(made, shape=t.shape)

    return (x, *_channel_grads(b, n, g, b.reshape(hat, shape=t.shape), 1))


def _channel_grads(b: Any, n: Any, g: Any, hat: Any, at: int) -> tuple[Any, ...]:
    """Gradients of weight and bias, if operands from `at` on are those."""
    axes = tuple(d for d in range(g.type.rank) if d != 1)
    rules = (lambda: b.sum(b.mul(g, hat), axes=axes), lambda: b.sum(g, axes=axes))
    return rules[: len(n) - at]


composite(
    "group_norm",
    _group_infer,
    _group_norm,
    _group_grad,
    samples=lambda: [
        Sample((f32(2, 4, 3), f32(4), f32(4)), {"num_groups": 2}),
        Sample((f32(2, 3, 2, 2),), {"num_groups": 3}),
        Sample((f32(0, 2, 3), f32(2), f32(2)), {"num_groups": 1}),
    ],
    grad_name="NativeGroupNormBackward0",
    doc="Each sample's groups of channels standardised, then an affine map per channel (Wu and He 2018).",
)

# --- batch norm -----------------------------------------------------------------------------------


def _batch_axes(x: Type) -> Axes:
    return tuple(d for d in range(x.rank) if d != 1)


def _batch_infer(x: Type, *params: Type, eps: float = 1e-5) -> tuple[Type, Type, Type]:
    if x.rank < 2:
        raise OpError(f"expected an input [N, C, ...], got {x}")
    _check_params(x, params, (x.shape[1],), least=1)
    stat = Type(dtypes.opmath(x.dtype), (x.shape[1],))
    return x, stat, stat


def _batch_norm(b: Any, x: Any, *params: Any, eps: float = 1e-5) -> Any:
    hat, mean, var, _ = _standardized(b, widen(b, x), _batch_axes(x.type), eps)
    out = b.cast_to(_affine(b, hat, params, _channels(x.type)), x.type.dtype)
    channels = (x.type.shape[1],)
    return out, b.reshape(mean, shape=channels), b.reshape(var, shape=channels)


def _batch_grad(b: Any, n: Any, g: Any, g_mean: Any, g_var: Any) -> Any:
    t, axes = n.type(0), _batch_axes(n.type(0))
    g, per_channel = widen(b, g), _channels(t)
    # The saved statistics; derivatives of this derivative reach the input through their gradients.
    mean, var = (b.reshape(v, shape=per_channel) for v in n.outs[1:])
    rstd = b.rsqrt(b.add(var, b.const(n.attr("eps"), var)))
    hat = b.mul(b.sub(widen(b, n[0]), mean), rstd)
    size = prod(t.shape[a] for a in axes)

    def x() -> Any:
        h = _affine(b, g, (n[1],), per_channel) if len(n) > 1 else g
        out = _standardized_grad(b, hat, rstd, h, axes)
        if not is_zero(g_mean):
            out = b.add(out, b.reshape(b.div(g_mean, b.const(size, g_mean)), shape=per_channel))
        if not is_zero(g_var):
            slope = b.reshape(b.mul(g_var, b.const(2 / size if size else math.nan, g_var)), shape=per_channel)
            out = b.add(out, b.mul(slope, b.sub(widen(b, n[0]), mean)))
        return out

    return (x, *_channel_grads(b, n, g, hat, 1))


composite(
    "batch_norm",
    _batch_infer,
    _batch_norm,
    _batch_grad,
    samples=lambda: [
        Sample((f32(5, 3), f32(3), f32(3))),
        Sample((f32(2, 3, 4),), {"eps": 1e-3}),
        Sample((f32(2, 1, 2, 3), f32(1), f32(1))),
    ],
    grad_name="NativeBatchNormBackward0",
    doc="(y, mean, biased variance): channels standardised over the batch, then affine (Ioffe and Szegedy).",
)


def _eval_infer(x: Type, mean: Type, var: Type, *params: Type, eps: float = 1e-5) -> Type:
    if x.rank < 2:
        raise OpError(f"expected an input [N, C, ...], got {x}")
    _check_params(x, params, (x.shape[1],), least=1)
    _check_params(x.with_dtype(mean.dtype), (mean, var), (x.shape[1],))
    return x


def _batch_norm_eval(b: Any, x: Any, mean: Any, var: Any, *params: Any, eps: float = 1e-5) -> Any:
    shape, wide = _channels(x.type), widen(b, x)
    m, v = (b.reshape(b.cast_to(s, wide.type.dtype), shape=shape) for s in (mean, var))
    hat = b.mul(b.sub(wide, m), b.rsqrt(b.add(v, b.const(eps, wide))))
    return b.cast_to(_affine(b, hat, params, shape), x.type.dtype)


composite(
    "batch_norm_eval",
    _eval_infer,
    _batch_norm_eval,
    samples=lambda: [
        Sample((f32(5, 3), f32(3), f32(3), f32(3), f32(3)), {}, (0.2, 2)),
        Sample((f32(2, 3, 4), f32(3), f32(3)), {"eps": 1e-3}, (0.2, 2)),
        Sample((f32(0, 3), f32(3), f32(3)), {}, (0.2, 2)),
    ],
    grad_name="NativeBatchNormBackward0",
    doc="Batch normalisation with a given mean and variance.",
)

# --- weight norm ----------------------------------------------------------------------------------


def _weight_infer(v: Type, g: Type, *, dim: int | None) -> Type:
    check_float(v)
    check_same_dtype(v, g)
    if dim is not None and not 0 <= dim < v.rank:
        raise OpError(f"expected a dimension in [0, {v.rank}), got {dim}")
    want = () if dim is None else tuple(n if d == dim else 1 for d, n in enumerate(v.shape))
    if g.shape != want:
        raise OpError(f"expected norms of shape {list(want)} for {v} along {dim}, got {g}")
    return v


def _weight_norm(b: Any, v: Any, g: Any, *, dim: int | None) -> Any:
    wide = widen(b, v)
    axes = tuple(d for d in range(v.type.rank) if d != dim)
    norm = b.sqrt(b.sum(b.mul(wide, wide), axes=axes, keepdim=dim is not None))
    return b.cast_to(b.mul(wide, b.div(widen(b, g), norm)), v.type.dtype)


composite(
    "weight_norm_interface",
    _weight_infer,
    _weight_norm,
    samples=lambda: [
        Sample((f32(3, 4), f32(3, 1)), {"dim": 0}, (0.3, 2)),
        Sample((f32(2, 3, 4), f32(1, 1, 4)), {"dim": 2}, (0.3, 2)),
        Sample((f32(3, 4), f32()), {"dim": None}, (0.3, 2)),
    ],
    grad_name=lambda n: (
        "WeightNormInterface" if n.attrs["dim"] in (0, n.results[0].type.rank - 1) else "Mul"
    )
    + "Backward0",
    doc="v times g over the norm of v's slices along `dim`, or of all of v (Salimans and Kingma 2016).",
)
