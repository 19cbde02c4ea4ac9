"""Losses of torch.nn.functional. Each is one op until a pass expands it, with a gradient written for
stability.

`reduction` is `"none"`, `"mean"` or `"sum"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import OpError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .records import check_float, check_same_dtype, composite, f32, spread_full, widen

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise OpError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def reduced(b: Any, x: Any, reduction: str) -> Any:
    """`x`, its mean or its sum."""
    if reduction == "none":
        return x
    axes = tuple(range(x.type.rank))
    return b.mean(x, axes=axes) if reduction == "mean" else b.sum(x, axes=axes)


def unreduced(b: Any, g: Any, shape: tuple[int, ...], reduction: str) -> Any:
    """The gradient of every element from the one of the reduced loss; broadcasts, so it may stay a scalar."""
    if reduction == "mean":
        n = math.prod(shape)
        return b.div(g, b.const(n, g)) if n else spread_full(b, g, shape, tuple(range(len(shape))), False)
    return g


def _pair_infer(x: Type, y: Type, reduction: str) -> Type:
    check_same_dtype(x, y)
    check_float(x)
    check_reduction(reduction)
    shape = broadcast_shapes(x.shape, y.shape)
    return Type(x.dtype, shape if reduction == "none" else ())


def _pair_samples(*attrs: dict[str, Any], domain: Any = (-2.0, 2.0)) -> Any:
    return lambda: [
        Sample((f32(*s), f32(*t)), {**a, "reduction": r}, domain)
        for a in attrs or ({},)
        for s, t, r in (
            ((3, 4), (3, 4), "mean"),
            ((3, 4), (4,), "sum"),
            ((3, 1), (3, 4), "none"),
            ((), (), "mean"),
            ((0, 2), (0, 2), "sum"),
        )
    ]


def _pairwise(
    name: str, infer: Any, loss: Callable[..., Any], slope: Callable[..., Any], **options: Any
) -> None:
    """A loss of corresponding elements: `loss(b, x, y, **attrs)`, and `slope(b, x, y, **attrs)`, its
    derivative in x and in -y."""

    def decompose(b: Any, x: Any, y: Any, *, reduction: str = "mean", **attrs: Any) -> Any:
        made = reduced(b, loss(b, widen(b, x), widen(b, y), **attrs), reduction)
        return b.cast_to(made, x.type.dtype)

    def grad(b: Any, n: Any, g: Any) -> tuple[Any, Any]:
        attrs = {k: n.attr(k) for k in n.node.op.attr_defaults}
        reduction = attrs.pop("reduction")
        shape = broadcast_shapes(n.type(0).shape, n.type(1).shape)
        each = b.mul(unreduced(b, g, shape, reduction), slope(b, n[0], n[1], **attrs))
        return each, lambda: b.neg(each)

    composite(name, infer, decompose, grad, **options)


def _mse_infer(x: Type, y: Type, *, reduction: str = "mean") -> Type:
    return _pair_infer(x, y, reduction)


def _squared(b: Any, x: Any, y: Any) -> Any:
    d = b.sub(x, y)
    return b.mul(d, d)


_pairwise(
    "mse_loss",
    _mse_infer,
    _squared,
    lambda b, x, y: b.mul(b.sub(x, y), b.const(2, x)),
    samples=_pair_samples(),
    doc="(x - y)**2.",
)
_pairwise(
    "l1_loss",
    _mse_infer,
    lambda b, x, y: b.abs(b.sub(x, y)),
    lambda b, x, y: b.sign(b.sub(x, y)),
    samples=_pair_samples(),
    grad_name=lambda node: {"none": "AbsBackward0", "sum": "SumBackward0"}.get(
        node.attrs.get("reduction", "mean"), "MeanBackward0"
    ),
    doc="|x - y|.",
)


def _smooth_infer(x: Type, y: Type, *, reduction: str = "mean", beta: float = 1.0) -> Type:
    if beta < 0:
        raise OpError(f"beta must be >= 0, got {beta}")
    return _pair_infer(x, y, reduction)


def _smooth(b: Any, x: Any, y: Any, *, beta: float = 1.0) -> Any:
    size = b.abs(b.sub(x, y))
    if beta == 0:
        return size
    near = b.mul(b.mul(size, size), b.const(0.5 / beta, x))
    return b.where(b.lt(size, b.const(beta, x)), near, b.sub(size, b.const(0.5 * beta, x)))


def _smooth_slope(b: Any, x: Any, y: Any, *, beta: float = 1.0) -> Any:
    d = b.sub(x, y)
    return b.sign(d) if beta == 0 else b.clamp(b.div(d, b.const(beta, x)), min=-1.0, max=1.0)


_pairwise(
    "smooth_l1_loss",
    _smooth_infer,
    _smooth,
    _smooth_slope,
    samples=_pair_samples({}, {"beta": 0.5}, {"beta": 0.0}),
    grad_name="SmoothL1LossBackward0",
    doc="Quadratic below beta, linear above (Girshick 2015).",
)


def _huber_infer(x: Type, y: Type, *, reduction: str = "mean", delta: float = 1.0) -> Type:
    if delta <= 0:
        raise OpError(f"delta must be > 0, got {delta}")
    return _pair_infer(x, y, reduction)


def _huber(b: Any, x: Any, y: Any, *, delta: float = 1.0) -> Any:
    size = b.abs(b.sub(x, y))
    near = b.mul(b.mul(size, size), b.const(0.5, x))
    far = b.mul(b.sub(size, b.const(0.5 * delta, x)), b.const(delta, x))
    return b.where(b.le(size, b.const(delta, x)), near, far)


_pairwise(
    "huber_loss",
    _huber_infer,
    _huber,
    lambda b, x, y, *, delta=1.0: b.clamp(b.sub(x, y), min=-delta, max=delta),
    samples=_pair_samples({}, {"delta": 0.5}),
    doc="Quadratic below delta, linear above with slope delta.",
)

# --- binary cross entropy, divergence -------------------------------------------------------------


def _weighted_infer(x: Type, y: Type, w: Type | None = None, *, reduction: str = "mean") -> Type:
    check_same_dtype(x, y, *(() if w is None else (w,)))
    check_float(x)
    check_reduction(reduction)
    if x.shape != y.shape:
        raise OpError(f"expected a target of the input's shape {list(x.shape)}, got {y}")
    if w is not None and broadcast_shapes(w.shape, x.shape) != x.shape:
        raise OpError(f"the weight {w} does not broadcast to the input's shape {list(x.shape)}")
    return Type(x.dtype, x.shape if reduction == "none" else ())


def _bce_each(b: Any, x: Any, y: Any) -> Any:
    """-(y log x + (1-y) log(1-x)), logarithms no less than -100, as PyTorch's."""
    low = b.const(-100.0, x)
    one = b.const(1, x)
    hit = b.maximum(b.log(x), low)
    miss = b.maximum(b.log1p(b.neg(x)), low)
    return b.sub(b.mul(b.sub(y, one), miss), b.mul(y, hit))


def _bce(b: Any, x: Any, y: Any, w: Any = None, *, reduction: str = "mean") -> Any:
    each = _bce_each(b, widen(b, x), widen(b, y))
    each = each if w is None else b.mul(each, widen(b, w))
    return b.cast_to(reduced(b, each, reduction), x.type.dtype)


def _bce_grad(b: Any, n: Any, g: Any) -> Any:
    x, y, shape = n[0], n[1], n.type(0).shape
    g = unreduced(b, g, shape, n.attr("reduction"))

    def slope() -> Any:
        room = b.maximum(b.mul(b.sub(b.const(1, x), x), x), b.const(1e-12, x))
        out = b.mul(g, b.div(b.sub(x, y), room))
        return out if len(n) == 2 else b.mul(out, n[2])

    def target() -> Any:
        out = b.mul(g, b.sub(b.log1p(b.neg(x)), b.log(x)))
        return out if len(n) == 2 else b.mul(out, n[2])

    weight = lambda: b.mul(g, _bce_each(b, x, y))  # noqa: E731
    return (slope, target, weight)[: len(n)]


composite(
    "binary_cross_entropy",
    _weighted_infer,
    _bce,
    _bce_grad,
    samples=lambda: [
        Sample((f32(3, 4), f32(3, 4)), {}, (0.1, 0.9)),
        Sample((f32(3, 4), f32(3, 4), f32(4)), {"reduction": "sum"}, (0.1, 0.9)),
        Sample((f32(3), f32(3), f32(3)), {"reduction": "none"}, (0.1, 0.9)),
        Sample((f32(0), f32(0)), {"reduction": "sum"}, (0.1, 0.9)),
    ],
    doc="-(y log x + (1 - y) log(1 - x)), weighted; logarithms are limited to -100.",
)


def _logits_infer(
    x: Type, y: Type, *more: Type, reduction: str = "mean", weighted: bool = False, pos_weighted: bool = False
) -> Type:
    if len(more) != weighted + pos_weighted:
        raise OpError(
            f"expected {weighted + pos_weighted} weight operands after input and target, got {len(more)}"
        )
    check_same_dtype(x, y, *more)
    if x.shape != y.shape:
        raise OpError(f"expected a target of the input's shape {list(x.shape)}, got {y}")
    for w in more:
        if broadcast_shapes(w.shape, x.shape) != x.shape:
            raise OpError(f"the weight {w} does not broadcast to the input's shape {list(x.shape)}")
    check_float(x)
    check_reduction(reduction)
    return Type(x.dtype, x.shape if reduction == "none" else ())


def _logits(
    b: Any,
    x: Any,
    y: Any,
    *more: Any,
    reduction: str = "mean",
    weighted: bool = False,
    pos_weighted: bool = False,
) -> Any:
    dtype, one = x.type.dtype, b.const(1, widen(b, x))
    x, y, *more = (widen(b, v) for v in (x, y, *more))  # type: ignore[assignment]
    # (1 - y) x - l log sigmoid(x), with l = 1 + (pos_weight - 1) y
    miss = b.mul(b.sub(one, y), x)
    soft = b.logsigmoid(x)
    if pos_weighted:
        soft = b.mul(soft, b.add(b.mul(b.sub(more[-1], one), y), one))
    each = b.sub(miss, soft)
    each = b.mul(each, more[0]) if weighted else each
    return b.cast_to(reduced(b, each, reduction), dtype)


def _logits_grad(b: Any, n: Any, g: Any) -> Any:
    x, y = n[0], n[1]
    weighted, pos_weighted = n.attr("weighted"), n.attr("pos_weighted")
    g = unreduced(b, g, n.type(0).shape, n.attr("reduction"))
    full = b.mul(g, n[2]) if weighted else g
    one = b.const(1, x)

    def slope() -> Any:
        if not pos_weighted:
            return b.mul(full, b.sub(b.sigmoid(x), y))
        t = b.mul(y, n[len(n) - 1])
        return b.mul(full, b.sub(b.mul(b.sub(b.add(t, one), y), b.sigmoid(x)), t))

    def target() -> Any:
        if not pos_weighted:
            return b.mul(full, b.neg(x))
        return b.mul(full, b.sub(b.logsigmoid(b.neg(x)), b.mul(n[len(n) - 1], b.logsigmoid(x))))

    def weight() -> Any:
        more = (n[len(n) - 1],) if pos_weighted else ()
        return b.mul(g, _logits(b, x, y, *more, reduction="none", pos_weighted=pos_weighted))

    pos = lambda: b.neg(b.mul(full, b.mul(y, b.logsigmoid(x))))  # noqa: E731
    return (slope, target, *((weight,) if weighted else ()), *((pos,) if pos_weighted else ()))


_LOGITS_DOMAIN = ((-3, 3), (0.1, 0.9), (0.2, 2), (0.2, 2))
composite(
    "binary_cross_entropy_with_logits",
    _logits_infer,
    _logits,
    _logits_grad,
    samples=lambda: [
        Sample((f32(3, 4), f32(3, 4)), {}, _LOGITS_DOMAIN),
        Sample((f32(3, 4), f32(3, 4), f32(4)), {"reduction": "sum", "weighted": True}, _LOGITS_DOMAIN),
        Sample((f32(3, 4), f32(3, 4), f32(4)), {"reduction": "none", "pos_weighted": True}, _LOGITS_DOMAIN),
        Sample(
            (f32(3, 4), f32(3, 4), f32(3, 1), f32(4)),
            {"weighted": True, "pos_weighted": True},
            _LOGITS_DOMAIN,
        ),
        Sample((f32(0), f32(0)), {"reduction": "sum"}, _LOGITS_DOMAIN),
    ],
    doc="binary_cross_entropy of sigmoid(x) without overflow; then weight and pos_weight where flagged.",
)


def _kl_infer(x: Type, y: Type, *, reduction: str = "mean", log_target: bool = False) -> Type:
    check_same_dtype(x, y)
    check_float(x)
    if reduction != "batchmean":
        check_reduction(reduction)
    return Type(x.dtype, broadcast_shapes(x.shape, y.shape) if reduction == "none" else ())


def _kl(b: Any, x: Any, y: Any, *, reduction: str = "mean", log_target: bool = False) -> Any:
    dtype = x.type.dtype
    x, y = widen(b, x), widen(b, y)
    each = b.mul(b.exp(y), b.sub(y, x)) if log_target else b.sub(b.xlogy(y, y), b.mul(y, x))
    made = reduced(b, each, "sum" if reduction == "batchmean" else reduction)
    if reduction == "batchmean":
        made = b.div(made, b.const(x.type.shape[0] if x.type.rank else 1, made))
    return b.cast_to(made, dtype)


composite(
    "kl_div",
    _kl_infer,
    _kl,
    samples=lambda: [
        Sample((f32(3, 4), f32(3, 4)), {"reduction": "batchmean"}, (0.1, 2)),
        Sample((f32(3, 4), f32(4)), {}, (0.1, 2)),
        Sample((f32(3, 4), f32(3, 4)), {"reduction": "none", "log_target": True}),
        Sample((f32(0, 2), f32(0, 2)), {"reduction": "sum"}, (0.1, 2)),
    ],
    grad_name=lambda node: {"none": "SubBackward0", "sum": "SumBackward0", "batchmean": "DivBackward0"}.get(
        node.attrs.get("reduction", "mean"), "MeanBackward0"
    ),
    doc="y (log y - x), for x a logarithm, and y too with log_target.",
)
