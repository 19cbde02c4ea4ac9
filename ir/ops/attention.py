"""Scaled dot-product attention as one op."""

from __future__ import annotations

import math
from typing import Any

from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .records import boolean, check_float, check_same_dtype, composite, f32


def _infer(
    q: Type,
    k: Type,
    v: Type,
    mask: Type | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Type:
    check_same_dtype(q, k, v)
    check_float(q)
    if min(q.rank, k.rank, v.rank) < 2:
        raise OpError(f"expected operands of at least 2 dimensions, got {q}, {k} and {v}")
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise OpError(f"expected q [..., L, E], k [..., S, E], v [..., S, F], got {q}, {k} and {v}")
    lead = broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if mask is not None:
        if is_causal:
            raise OpError("expected a mask or is_causal, got both")
        if mask.dtype.kind != "b" and mask.dtype is not q.dtype:
            raise DTypeError(f"expected a bool mask or one of dtype {q.dtype.name}, got {mask}")
        scores = (*lead, q.shape[-2], k.shape[-2])
        if broadcast_shapes(mask.shape, scores) != scores:
            raise OpError(f"the mask {mask} does not broadcast to the scores' shape {list(scores)}")
    return Type(q.dtype, (*lead, q.shape[-2], v.shape[-1]))


def _attention(
    b: Any, q: Any, k: Any, v: Any, mask: Any = None, *, is_causal: bool = False, scale: float | None = None
) -> Any:
    by = scale if scale is not None else 1 / math.sqrt(max(q.type.shape[-1], 1))
    scores = b.matmul(b.mul(q, b.const(by, q)), b.transpose(k, dim0=-2, dim1=-1))
    if is_causal:
        ones = b.full(shape=scores.type.shape[-2:], value=True, dtype=_BOOL)
        mask = b.tril(ones)
    if mask is None:
        return b.matmul(b.softmax(scores, dim=-1), v)
    if mask.type.dtype.kind == "b":
        scores = b.where(mask, scores, b.const(-math.inf, scores))
    else:
        scores = b.add(scores, mask)
    # A row with nothing to attend to gives zeros, as PyTorch's kernels do.
    return b.matmul(b.safe_softmax(scores, dim=-1), v)


_BOOL = boolean().dtype
composite(
    "scaled_dot_product_attention",
    _infer,
    _attention,
    samples=lambda: [
        Sample((f32(2, 3, 4), f32(2, 5, 4), f32(2, 5, 6))),
        Sample((f32(2, 2, 3, 4), f32(2, 2, 3, 4), f32(2, 2, 3, 4)), {"is_causal": True}),
        Sample((f32(3, 4), f32(5, 4), f32(5, 2), f32(3, 5)), {"scale": 0.5}),
        Sample((f32(2, 3, 4), f32(2, 5, 4), f32(2, 5, 6), boolean(2, 1, 5))),
    ],
    doc="softmax(q @ k.T * scale + mask) @ v (Vaswani et al. 2017); a bool mask is True where to attend.",
)
