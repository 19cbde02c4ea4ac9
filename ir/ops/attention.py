"""Scaled dot-product attention as one op."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Type, broadcast_shapes
from .records import boolean, check_float, check_same_dtype, composite, f32

#: rows of a block of causal attention, at least, and blocks, at most: more of them save little, and every one
#: has kernels of its own to compile
BLOCK_ROWS, MOST_BLOCKS = 256, 8


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
    q = b.mul(q, b.const(by, q))
    return _causal(b, q, k, v) if is_causal else _attend(b, q, k, v, mask)


def _causal(b: Any, q: Any, k: Any, v: Any) -> Any:
    """Row i attends to columns 0 to i. Long ones in blocks of rows, each with the columns that it sees:

        attend(q, k, v)  -->  concat(attend(q[:n], k[:n], v[:n]), attend(q[n:], k, v))

    so that up to 7/16 of the scores, which the mask would hide, are never made.
    """
    rows, columns = q.type.shape[-2], k.type.shape[-2]
    count = max(1, min(MOST_BLOCKS, min(rows, columns) // BLOCK_ROWS))
    cuts = [rows * i // count for i in range(count + 1)]
    parts = []
    for start, stop in pairwise(cuts):
        seen = min(stop, columns)
        mask = b.tril(b.full(shape=(stop - start, seen), value=True, dtype=_BOOL), diagonal=start)
        parts.append(_attend(b, _rows(b, q, start, stop), _rows(b, k, 0, seen), _rows(b, v, 0, seen), mask))
    return parts[0] if count == 1 else b.concat(*parts, dim=q.type.rank - 2)


def _rows(b: Any, x: Any, start: int, stop: int) -> Any:
    """`x[..., start:stop, :]`."""
    *lead, rows, width = x.type.shape
    if (start, stop) == (0, rows):
        return x
    zeros, ones = (0,) * len(lead), (1,) * x.type.rank
    return b.slice(x, start=(*zeros, start, 0), stop=(*lead, stop, width), step=ones)


def _attend(b: Any, q: Any, k: Any, v: Any, mask: Any) -> Any:
    """softmax(q @ k.T + mask) @ v."""
    scores = b.matmul(q, b.transpose(k, dim0=-2, dim1=-1))
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
