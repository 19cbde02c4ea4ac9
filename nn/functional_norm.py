"""Normalisation, products and encodings of `nn.functional`. Import them from there."""

from __future__ import annotations

from typing import Any

from ..ir.op import REGISTRY
from ..tracer.creation import arange, ones, zeros
from ..tracer.functions import linear as products
from ..tracer.library import ArgumentError, ArgumentTypeError
from ..tracer.making import apply
from ..tracer.operands import tensor_operand
from ..tracer.tensor import Tensor

T = Any
linear = products.linear


def _affine(input: T, weight: T, bias: T, shape: tuple[int, ...]) -> tuple[T, ...]:
    """Nothing, or both a weight and a bias."""
    if weight is None and bias is None:
        return ()
    weight = ones(shape, dtype=input.dtype) if weight is None else weight
    return weight, zeros(shape, dtype=input.dtype) if bias is None else bias


def checked_eps(name: str, eps: Any, optional: bool = False) -> Any:
    """`eps`, a number; it is used when the program runs, when the user's line is far."""
    if not hasattr(eps, "__float__") and not (optional and eps is None):
        raise ArgumentTypeError(f"{name}(): eps must be a number, got {type(eps).__name__}: {eps!r:.60}")
    return eps


def layer_norm(
    input: T, normalized_shape: Any, weight: T = None, bias: T = None, eps: float = 1e-5
) -> Tensor:
    """Each slice over the last dimensions standardised, times `weight`, plus `bias` (Ba et al. 2016).

    Args:
        input: ends in dimensions `normalized_shape`.
        weight, bias: of shape `normalized_shape`, or None.
    """
    shape = tuple(normalized_shape)
    tensor_operand(input)
    more = (weight,) if bias is None and weight is not None else _affine(input, weight, bias, shape)
    eps = checked_eps("layer_norm", eps)
    return apply(REGISTRY["layer_norm"], input, *more, normalized_shape=shape, eps=eps)


def rms_norm(input: T, normalized_shape: Any, weight: T = None, eps: float | None = None) -> Tensor:
    """Each slice over the last dimensions, divided by the root of its mean square, times `weight`.

    Args:
        input: ends in dimensions `normalized_shape`.
        eps: added to the mean square; the dtype's epsilon if None.
    """
    more = () if weight is None else (weight,)
    op = REGISTRY["rms_norm"]
    eps = checked_eps("rms_norm", eps, optional=True)
    return apply(op, tensor_operand(input), *more, normalized_shape=tuple(normalized_shape), eps=eps)


def group_norm(input: T, num_groups: int, weight: T = None, bias: T = None, eps: float = 1e-5) -> Tensor:
    """Each group of channels of each sample standardised, then `weight` and `bias` per channel (Wu and He
    2018).

    Args:
        input: `[N, C, ...]`, C divisible by `num_groups`.
        weight, bias: `[C]` or None.
    """
    more = _affine(tensor_operand(input), weight, bias, tuple(input.shape[1:2]))
    eps = checked_eps("group_norm", eps)
    return apply(REGISTRY["group_norm"], input, *more, num_groups=num_groups, eps=eps)


def bilinear(input1: T, input2: T, weight: T, bias: T = None) -> Tensor:
    """`input1 @ weight[k] @ input2 + bias[k]` for each k.

    Args:
        input1: `[..., I]`.
        input2: `[..., J]`.
        weight: `[K, I, J]`.
        bias: `[K]` or None.
    """
    lead = tuple(input1.shape[:-1])
    if (
        weight.dim() != 3
        or lead != tuple(input2.shape[:-1])
        or weight.shape[1:] != (input1.shape[-1], input2.shape[-1])
    ):
        raise ArgumentError(
            f"bilinear(): expected [..., I], [..., J] and a weight [K, I, J], got {input1._value().type}, "
            f"{input2._value().type} and {weight._value().type}"
        )
    x, y = input1.reshape(-1, input1.shape[-1]), input2.reshape(-1, input2.shape[-1])
    half = apply(REGISTRY["contract"], x, weight, spec="ni,kij->nkj")
    out = apply(REGISTRY["contract"], half, y, spec="nkj,nj->nk").reshape(*lead, weight.shape[0])
    return out if bias is None else out + bias


def normalize(input: T, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """Vectors along `dim` divided by their p-norm, or by `eps` where that is larger."""
    return input / input.norm(p, dim, True).clamp_min(eps)


cosine_similarity: Any = products.FUNCTIONS["cosine_similarity"]
pdist: Any = products.FUNCTIONS["pdist"]


def one_hot(tensor: T, num_classes: int = -1) -> Tensor:
    """Integer classes `[...]` as i64 `[..., num_classes]` with a 1 at the class; -1: one more than the
    largest."""
    if tensor_operand(tensor, "one_hot(): tensor").dtype.kind not in "iu":
        raise ArgumentError(f"one_hot(): expected integer classes, got {tensor._value().type}")
    if num_classes == -1:
        if tensor.numel() == 0:
            raise ArgumentError(
                "one_hot(): the number of classes of an empty tensor is unknown; pass num_classes"
            )
        num_classes = int(tensor.max().item()) + 1
    known = tensor._value().buffer
    if known is not None and known.type.numel:
        low, high = int(known.array.min()), int(known.array.max())
        if low < 0 or high >= num_classes:
            raise ArgumentError(
                f"one_hot(): class {low if low < 0 else high} is outside 0 .. {num_classes - 1}; the largest "
                f"class must be less than num_classes={num_classes}"
            )
    return (tensor.unsqueeze(-1) == arange(num_classes)).long()
