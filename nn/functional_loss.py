"""Losses of `nn.functional`. Import them from there.

`reduction` is `"mean"`, `"sum"` or `"none"`; `size_average` and `reduce` are PyTorch's old way to say it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..ir.errors import IndexOutOfRange
from ..ir.op import REGISTRY
from ..tracer.callers import warn
from ..tracer.creation import arange
from ..tracer.functions import elementwise as E
from ..tracer.library import ArgumentError
from ..tracer.making import apply
from ..tracer.operands import tensor_operand, values
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor
from .functional_activation import logsigmoid

#: A Tensor. Its operators are bound when the package is loaded, which type checkers don't see.
T = Any
_where: Callable[..., Any] = E.where


def _mode(reduction: str, size_average: bool | None = None, reduce: bool | None = None, *more: str) -> str:
    if size_average is not None or reduce is not None:
        warn("size_average and reduce are deprecated; pass reduction=")
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    if reduction not in ("mean", "sum", "none", *more):
        raise ArgumentError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return reduction


def _reduced(loss: T, reduction: str) -> Tensor:
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _warn_of_broadcast(name: str, input: T, target: T) -> None:
    tensor_operand(input, f"{name}(): input")
    tensor_operand(target, f"{name}(): target")
    a, b = input._value().type.shape, target._value().type.shape
    if a != b:
        warn(
            f"{name}(): a target of shape {list(b)} and an input of shape {list(a)} are broadcast against "
            f"each other; "
            f"this is rarely wanted: give them the same shape"
        )


def _pairwise(name: str, input: T, target: T, reduction: str, **attrs: Any) -> Tensor:
    trace, (x, y) = values(input, target)
    return Tensor(trace.emit(REGISTRY[name], (x, y), {"reduction": reduction, **attrs}))


def _weighted(name: str, input: T, target: T, weight: T, mode: str, normalized: bool, **attrs: Any) -> Tensor:
    if tuple(weight.shape) != tuple(input.shape):
        raise ArgumentError(
            f"{name}(): weight {weight._value().type} must have the shape of input {input._value().type}"
        )
    each: T = _pairwise(name, input, target, "none", **attrs)
    each = each * weight
    return each.sum() / weight.sum() if normalized and mode == "mean" else _reduced(each, mode)


def mse_loss(
    input: T, target: T, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", weight: T = None,
) -> Tensor:  # fmt: skip
    """(input - target)**2."""
    _warn_of_broadcast("mse_loss", input, target)
    mode = _mode(reduction, size_average, reduce)
    if weight is not None:
        return _weighted("mse_loss", input, target, weight, mode, True)
    return _pairwise("mse_loss", input, target, mode)


def l1_loss(
    input: T, target: T, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", weight: T = None,
) -> Tensor:  # fmt: skip
    """|input - target|."""
    _warn_of_broadcast("l1_loss", input, target)
    mode = _mode(reduction, size_average, reduce)
    if weight is not None:
        return _weighted("l1_loss", input, target, weight, mode, True)
    return _pairwise("l1_loss", input, target, mode)


def smooth_l1_loss(
    input: T, target: T, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", beta: float = 1.0,
) -> Tensor:  # fmt: skip
    """Quadratic where |input - target| < beta, linear beyond (Girshick 2015)."""
    _warn_of_broadcast("smooth_l1_loss", input, target)
    return _pairwise("smooth_l1_loss", input, target, _mode(reduction, size_average, reduce), beta=beta)


def huber_loss(input: T, target: T, reduction: str = "mean", delta: float = 1.0, weight: T = None) -> Tensor:
    """Quadratic where |input - target| <= delta, linear with slope delta beyond."""
    _warn_of_broadcast("huber_loss", input, target)
    if weight is not None:
        return _weighted("huber_loss", input, target, weight, _mode(reduction), False, delta=delta)
    return _pairwise("huber_loss", input, target, _mode(reduction), delta=delta)


def binary_cross_entropy(
    input: T, target: T, weight: T = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """-(target log(input) + (1 - target) log(1 - input)), logarithms limited to -100; all of one shape.

    `weight` broadcasts against the input.
    """
    mode = _mode(reduction, size_average, reduce)
    more = () if weight is None else (weight,)
    return apply(REGISTRY["binary_cross_entropy"], tensor_operand(input), target, *more, reduction=mode)


def binary_cross_entropy_with_logits(
    input: T, target: T, weight: T = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", pos_weight: T = None,
) -> Tensor:  # fmt: skip
    """binary_cross_entropy of sigmoid(input) without overflow; `pos_weight` weights the positive terms."""
    mode = _mode(reduction, size_average, reduce)
    more = [w for w in (weight, pos_weight) if w is not None]
    flags = {"weighted": weight is not None, "pos_weighted": pos_weight is not None}
    op = REGISTRY["binary_cross_entropy_with_logits"]
    return apply(op, tensor_operand(input), target, *more, reduction=mode, **flags)


def nll_loss(
    input: T, target: T, weight: T = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Minus the log-probability of the target class.

    Args:
        input: log-probabilities `[C]`, `[N, C]` or `[N, C, d...]`.
        target: integer classes `[]`, `[N]` or `[N, d...]`; those equal to `ignore_index` count nothing.
        weight: one per class, or None.
    """
    mode = _mode(reduction, size_average, reduce)
    more = () if weight is None else (weight,)
    op = REGISTRY["nll_loss"]
    _check_classes("nll_loss", input, target, ignore_index)
    return apply(op, tensor_operand(input), target, *more, reduction=mode, ignore_index=ignore_index)


#: Views that only give elements other places.
_REARRANGES = frozenset({"detach", "reshape", "view", "permute", "squeeze", "unsqueeze", "alias"})


def _known(t: T) -> Any:
    """A buffer with the tensor's elements, in whatever order, if they are known; else None."""
    value = t._value()
    if value.known is not None or not t._view or STATE.trace is not STATE.lazy:
        return value.known
    return t._storage.value.known if all(step[0].name in _REARRANGES for step in t._view) else None


def _check_classes(name: str, input: T, target: T, ignore_index: int | None, low: int = 0) -> None:
    """Raises for classes that are known and not there; the op knows nothing of values."""
    known = _known(tensor_operand(target, f"{name}(): target"))
    if known is None or known.type.dtype.kind == "f" or not known.type.numel:
        return
    count = tuple(tensor_operand(input, f"{name}(): input").shape)[1 if input.dim() > 1 else 0 : 2]
    if not count:
        return
    classes = known.array
    if classes.min() < low or classes.max() >= count[0]:
        wrong = (classes < low) | (classes >= count[0])
        wrong = classes[wrong if ignore_index is None else wrong & (classes != ignore_index)]
        if wrong.size:
            ignored = "" if ignore_index is None else f", and {ignore_index} is ignored"
            raise IndexOutOfRange(
                f"{name}({input._value().type}, {target._value().type}): target {wrong.flat[0]} is not one "
                f"of {count[0]} classes; they are counted from 0{ignored}"
            )


def cross_entropy(
    input: T, target: T, weight: T = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """nll_loss of log_softmax(input); targets may also be probabilities of the input's shape.

    Args:
        input: scores `[C]`, `[N, C]` or `[N, C, d...]`.
        target: integer classes `[]`, `[N]` or `[N, d...]`, or probabilities of the input's shape.
        weight: one per class, or None.
        label_smoothing: the part, 0 to 1, of every target that is spread over all classes.
    """
    mode = _mode(reduction, size_average, reduce)
    more = () if weight is None else (weight,)
    _check_classes("cross_entropy", input, target, ignore_index)
    return apply(
        REGISTRY["cross_entropy"], tensor_operand(input), target, *more, reduction=mode,
        ignore_index=ignore_index, label_smoothing=float(label_smoothing),
    )  # fmt: skip


def kl_div(
    input: T, target: T, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", log_target: bool = False,
) -> Tensor:  # fmt: skip
    """target (log target - input), for `input` a logarithm, and `target` too with `log_target`.

    `reduction="batchmean"` divides the sum by the size of the first dimension.
    """
    if reduction == "mean" and size_average is None and reduce is None:
        warn(
            "kl_div(): reduction='mean' divides by the number of elements, which is not the divergence; "
            "'batchmean' divides by the batch size"
        )
    return _pairwise(
        "kl_div", input, target, _mode(reduction, size_average, reduce, "batchmean"), log_target=log_target
    )


def poisson_nll_loss(
    input: T, target: T, log_input: bool = True, full: bool = False, size_average: bool | None = None,
    eps: float = 1e-8, reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """exp(input) - target * input, or input - target * log(input + eps); `full` adds Stirling's
    log(target!)."""
    mode = _mode(reduction, size_average, reduce)
    each: T = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if full:
        term = target * target.log() - target + 0.5 * (2 * math.pi * target).log()
        each = each + _where(target > 1, term, 0.0)
    return _reduced(each, mode)


def gaussian_nll_loss(
    input: T, target: T, var: T, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """(log var + (input - target)**2 / var) / 2, var limited to at least `eps`.

    Args:
        input: means, any shape.
        target: of the input's shape, or one that broadcasts.
        var: a number or a tensor: the input's shape, that without its last dimension, or with one dimension
            of size 1.
        full: add log(2 pi) / 2.
    """
    mode = _mode(reduction)
    if isinstance(var, (int, float)):
        if var < 0:
            raise ArgumentError(f"gaussian_nll_loss(): var must not be negative, got {var}")
        var = input.new_full(tuple(input.shape), var)
    known = tensor_operand(var, "gaussian_nll_loss(): var")._value().known
    if known is not None and (known.array < 0).any():
        raise ArgumentError(f"gaussian_nll_loss(): var {known.type} must not be negative; pass its square")
    size, have = tuple(input.shape), tuple(var.shape)
    if have != size:
        if have == size[:-1]:
            var = var.unsqueeze(-1)
        elif len(have) != len(size) or [(a, b) for a, b in zip(size, have) if a != b and b != 1]:
            raise ArgumentError(
                f"gaussian_nll_loss(): var of shape {list(have)} does not fit an input of {list(size)}"
            )
    # The limit passes no gradient on: as if var were written in place under no_grad.
    low = var + (var.clamp(min=eps) - var).detach()
    each: T = 0.5 * (low.log() + (input - target) ** 2 / low)
    if full:
        each = each + 0.5 * math.log(2 * math.pi)
    return _reduced(each, mode)


def hinge_embedding_loss(
    input: T, target: T, margin: float = 1.0, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """`input` where the target is 1, max(0, margin - input) where it is -1."""
    mode = _mode(reduction, size_average, reduce)
    far = _where(target != 1, (margin - input).clamp_min(0), 0.0)
    return _reduced(far + _where(target != -1, input, 0.0), mode)


def cosine_embedding_loss(
    input1: T, input2: T, target: T, margin: float = 0, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """1 - cosine where the target is 1, max(0, cosine - margin) where it is -1.

    Args:
        input1, input2: `[N, D]` or `[D]`.
        target: `[N]` or `[]`.
    """
    mode = _mode(reduction, size_average, reduce)
    if input1.dim() != target.dim() + 1 or tuple(input1.shape) != tuple(input2.shape):
        raise ArgumentError(
            f"cosine_embedding_loss(): expected two inputs [N, D] and a target [N], or [D] and [], got "
            f"{input1._value().type}, {input2._value().type} and {target._value().type}"
        )
    tiny = 1e-12
    product = (input1 * input2).sum(-1)
    lengths = (((input1 * input1).sum(-1) + tiny) * ((input2 * input2).sum(-1) + tiny)).sqrt()
    cosine = product / lengths
    near, far = (
        _where(target == 1, 1 - cosine, 0.0),
        _where(target == -1, (cosine - margin).clamp_min(0), 0.0),
    )
    return _reduced(near + far, mode)


def soft_margin_loss(
    input: T, target: T, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """log(1 + exp(-target * input)), targets 1 and -1."""
    return _reduced((-input * target).exp().log1p(), _mode(reduction, size_average, reduce))


def margin_ranking_loss(
    input1: T, input2: T, target: T, margin: float = 0, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, -target * (input1 - input2) + margin)."""
    mode = _mode(reduction, size_average, reduce)
    if not input1.dim() == input2.dim() == target.dim():
        raise ArgumentError(
            f"margin_ranking_loss(): the tensors must have equally many dimensions, got "
            f"{input1._value().type}, "
            f"{input2._value().type} and {target._value().type}"
        )
    return _reduced((-target * (input1 - input2) + margin).clamp_min(0), mode)


def _rows(name: str, input: T, target: T, target_dims: int) -> tuple[T, T]:
    """Input `[N, C]` or `[C]` and its target as a batch; a scalar counts as one class."""
    if input.dim() == 0 and target.dim() == 0:
        input, target = input.reshape(1), target.reshape(1) if target_dims else target
    if not target_dims and input.dim() == 1 and tuple(target.shape) == (1,):
        target = target.reshape(())
    if input.dim() not in (1, 2) or target.dim() != input.dim() - 1 + target_dims:
        raise ArgumentError(
            f"{name}(): expected an input [N, C] or [C] and its target, got {input._value().type}, "
            f"{target._value().type}"
        )
    return (input, target) if input.dim() == 2 else (input.unsqueeze(0), target.unsqueeze(0))


def multi_margin_loss(
    input: T, target: T, p: int = 1, margin: float = 1.0, weight: T = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """The sum over wrong classes i of max(0, margin - input[target] + input[i])**p, over the number of
    classes.

    Args:
        input: `[N, C]` or `[C]`.
        target: integer classes `[N]` or `[]`.
        p: 1 or 2.
        weight: one per class, or None.
    """
    mode = _mode(reduction, size_average, reduce)
    if p not in (1, 2):
        raise ArgumentError(f"multi_margin_loss(): p must be 1 or 2, got {p}")
    x, t = _rows("multi_margin_loss", input, target, 0)
    _check_classes("multi_margin_loss", x, t, None)
    classes = x.shape[1]
    z = (margin - x.gather(1, t.unsqueeze(1)) + x).clamp_min(0)
    z = z * z if p == 2 else z
    if weight is not None:
        z = z * weight.index_select(0, t).unsqueeze(1)
    z = _where(t.unsqueeze(1) == arange(classes), 0.0, z)
    each = z.sum(1) / classes
    return _reduced(each if input.dim() == 2 else each[0], mode)


def multilabel_margin_loss(
    input: T, target: T, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """The sum over labels y and other classes i of max(0, 1 - (input[y] - input[i])), over the number of
    classes.

    Args:
        input: `[N, C]` or `[C]`.
        target: labels of the input's shape; those from the first -1 on don't count.
    """
    mode = _mode(reduction, size_average, reduce)
    x, t = _rows("multilabel_margin_loss", input, target, 1)
    if tuple(x.shape) != tuple(t.shape):
        raise ArgumentError(
            f"multilabel_margin_loss(): the target must have the input's shape {list(input.shape)}"
        )
    _check_classes("multilabel_margin_loss", x, t, None, -1)
    classes = x.shape[1]
    k: T = arange(classes)
    ended = ((t < 0).unsqueeze(1) & (k.unsqueeze(0) <= k.unsqueeze(1))).any(2)  # [N, k]: a -1 at or before k
    label = _where(ended, -1, t)
    is_label = (label.unsqueeze(2) == k).any(1)
    margins = (1 - x.gather(1, label.clamp_min(0)).unsqueeze(2) + x.unsqueeze(1)).clamp_min(
        0
    )  # [N, label, class]
    counted = (label >= 0).unsqueeze(2) & is_label.logical_not().unsqueeze(1)
    each = _where(counted, margins, 0.0).sum((1, 2)) / classes
    return _reduced(each if input.dim() == 2 else each[0], mode)


def multilabel_soft_margin_loss(
    input: T, target: T, weight: T = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """binary_cross_entropy_with_logits, averaged over the last dimension."""
    mode = _mode(reduction, size_average, reduce)
    each: T = -(target * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    if weight is not None:
        each = each * weight
    return _reduced(each.sum(-1) / each.shape[-1], mode)


def pairwise_distance(x1: T, x2: T, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The p-norm of `x1 - x2 + eps` over the last dimension."""
    return (x1 - x2 + eps).norm(p, -1, keepdim)


def triplet_margin_loss(
    anchor: T, positive: T, negative: T, margin: float = 1.0, p: float = 2, eps: float = 1e-6,
    swap: bool = False, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """max(0, margin + d(anchor, positive) - d(anchor, negative)), d the p-norm (Balntas et al. 2016).

    `swap` takes d(positive, negative) where that is smaller than d(anchor, negative).
    """
    mode = _mode(reduction, size_average, reduce)

    def distance(x: T, y: T) -> Tensor:
        return pairwise_distance(x, y, p, eps)

    return _triplet("triplet_margin_loss", anchor, positive, negative, distance, margin, swap, mode)


def triplet_margin_with_distance_loss(
    anchor: T, positive: T, negative: T, *, distance_function: Callable[[T, T], T] | None = None,
    margin: float = 1.0, swap: bool = False, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """triplet_margin_loss with any distance; `pairwise_distance` by default."""
    distance = distance_function or pairwise_distance
    name = "triplet_margin_with_distance_loss"
    return _triplet(name, anchor, positive, negative, distance, margin, swap, _mode(reduction))


def _triplet(
    name: str, anchor: T, positive: T, negative: T, distance: Any, margin: float, swap: bool, mode: str
) -> T:
    if margin <= 0:
        raise ArgumentError(f"{name}(): margin must be positive, got {margin}")
    if not anchor.dim() == positive.dim() == negative.dim():
        raise ArgumentError(
            f"{name}(): the tensors must have equally many dimensions, got {anchor._value().type}, "
            f"{positive._value().type} and {negative._value().type}"
        )
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = far.minimum(distance(positive, negative))
    return _reduced((margin + near - far).clamp_min(0), mode)
