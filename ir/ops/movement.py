"""Ops that move elements without computing: each says where an element of its result comes from
(`pull`), so that a scheduler folds it into its readers' indices. PyTorch's named views over these are in
views.py.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import batch_rules
from ..errors import OpError
from ..expr import EXPR_SCALAR, Const, as_index
from ..op import Op, Piece, Sample, register
from ..types import Shape, Type
from .records import check_axes, check_dim, check_same_dtype, f32, i64

S = EXPR_SCALAR
Ints = tuple[int, ...]


def _move(name: str, infer: Any, numpy: Any, pull: Any, grad: Any, samples: list[Sample], **extra: Any) -> Op:
    return register(
        Op(
            name,
            infer,
            kernel="movement",
            numpy=numpy,
            pull=pull,
            grad=grad,
            samples=lambda: samples,
            **extra,
        )
    )


# --- reshape, permute, expand ---------------------------------------------------------------------


def reshape_infer(x: Type, *, shape: Shape) -> Type:
    if not isinstance(shape, tuple) or any(not isinstance(n, int) or n < 0 for n in shape):
        raise OpError(f"shape must be a tuple of sizes >= 0, got {shape!r}")
    out = Type(x.dtype, shape)
    if out.numel != x.numel:
        raise OpError(f"shape {list(shape)} has {out.numel} elements, the operand has {x.numel}")
    return out


def flat_index(index: tuple[Any, ...], shape: Shape) -> Any:
    """The row-major position of `index`."""
    out = as_index(0)
    for i, n in zip(index, shape):
        out = out * n + i
    return out


def split_index(flat: Any, shape: Shape) -> tuple[Any, ...]:
    """The inverse of `flat_index`."""
    out: list[Any] = []
    below = prod(shape)
    for k, n in enumerate(shape):
        below //= max(n, 1)
        if n <= 1:
            out.append(as_index(0))
            continue
        i = flat // below
        out.append(i if all(m == 1 for m in shape[:k]) else i % n)
    return tuple(out)


def _reshape_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, shape: Shape) -> list[Piece]:
    """Equal runs of dimensions map to each other directly; only regrouped ones need a division."""
    source, out = in_types[0].shape, out_type.shape
    if 0 in source:  # never read; runs of dimensions need not match
        return [Piece(0, tuple(as_index(0) for _ in source))]
    result: list[Any] = []
    i = j = 0
    while i < len(source) or j < len(out):
        # The shortest runs from here with the same number of elements.
        a, b = i, j
        na = nb = 1
        while True:
            if na == nb and (a > i or b > j):
                break
            if (na <= nb and a < len(source)) or b == len(out):
                na *= source[a]
                a += 1
            else:
                nb *= out[b]
                b += 1
        result.extend(split_index(flat_index(index[j:b], out[j:b]), source[i:a]))
        i, j = a, b
    return [Piece(0, tuple(result))]


_move(
    "reshape",
    reshape_infer,
    lambda x, *, shape: x.reshape(shape),
    _reshape_pull,
    lambda b, n, g: (b.reshape(g, shape=n.type(0).shape),),
    [
        Sample((f32(2, 6),), {"shape": (3, 4)}),
        Sample((f32(1, 1),), {"shape": ()}),
        Sample((f32(2, 3, 5),), {"shape": (6, 5)}),
        Sample((f32(2, 3, 4),), {"shape": (2, 2, 1, 6)}),
        Sample((f32(0, 3),), {"shape": (3, 0, 2)}),
        Sample((f32(4, 1, 3),), {"shape": (1, 4, 3, 1)}),
    ],
    grad_name="ViewBackward0",
    unview=lambda b, base, new, *, shape: b.reshape(new, shape=base.type.shape),
    doc="The same elements in row-major order under another shape.",
)


def _permute(x: Type, *, dims: Ints) -> Type:
    check_axes(dims, x.rank)
    if len(dims) != x.rank:
        raise OpError(f"dims must name each of the {x.rank} dimensions once, got {dims}")
    return Type(x.dtype, (x.shape[d] for d in dims))


def inverse(dims: Ints) -> Ints:
    """The permutation that undoes `dims`."""
    return tuple(dims.index(i) for i in range(len(dims)))


_move(
    "permute",
    _permute,
    lambda x, *, dims: x.transpose(dims),
    lambda index, in_types, out_type, read, *, dims: [Piece(0, tuple(index[i] for i in inverse(dims)))],
    lambda b, n, g: (b.permute(g, dims=inverse(n.attrs["dims"])),),
    [
        Sample((f32(2, 3),), {"dims": (1, 0)}),
        Sample((f32(2, 3, 4),), {"dims": (2, 0, 1)}),
        Sample((f32(),), {"dims": ()}),
        Sample((f32(0, 3, 1),), {"dims": (1, 2, 0)}),
    ],
    unview=lambda b, base, new, *, dims: b.permute(new, dims=inverse(dims)),
    batch=batch_rules.permute,
    doc="Dimension i of the result is dimension dims[i] of the operand.",
)


def _expand(x: Type, *, shape: Shape) -> Type:
    if not isinstance(shape, tuple) or len(shape) < x.rank:
        raise OpError(f"shape must be a tuple of at least {x.rank} sizes, got {shape!r}")
    extra = len(shape) - x.rank
    for i, (n, m) in enumerate(zip(x.shape, shape[extra:])):
        if n not in (m, 1) or m < 0:
            raise OpError(f"dimension {i} has size {n} and can't be expanded to {m}; only size 1 can")
    return Type(x.dtype, shape)


def _expand_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, shape: Shape) -> list[Piece]:
    source = in_types[0].shape
    tail = index[len(shape) - len(source) :]
    return [Piece(0, tuple(as_index(0) if n == 1 else i for n, i in zip(source, tail)))]


def _no_unview(b: Any, base: Any, new: Any, **_: Any) -> Any:
    raise OpError(
        "can't write through an expanded tensor, several of its elements are one in memory; clone() it first"
    )


_move(
    "expand",
    _expand,
    lambda x, *, shape: np.broadcast_to(x, shape),
    _expand_pull,
    lambda b, n, g: (g,),
    [
        Sample((f32(3, 1),), {"shape": (3, 4)}),
        Sample((f32(),), {"shape": (2, 2)}),
        Sample((f32(1, 3),), {"shape": (2, 5, 3)}),
        Sample((f32(1, 2),), {"shape": (0, 2)}),
    ],
    unview=_no_unview,
    batch=batch_rules.expand,
    doc="Repeats dimensions of size 1 and adds leading ones.",
)

# --- slice, pad, flip, concat ---------------------------------------------------------------------


def slice_infer(x: Type, *, start: Ints, stop: Ints, step: Ints) -> Type:
    if not len(start) == len(stop) == len(step) == x.rank:
        raise OpError(f"start, stop and step must have one entry for each of {x.rank} dimensions")
    shape = []
    for d, (n, lo, hi, k) in enumerate(zip(x.shape, start, stop, step)):
        if not 0 <= lo <= hi <= n or k < 1:
            raise OpError(
                f"slice {lo}:{hi}:{k} of dimension {d} of size {n}: need 0 <= start <= stop <= size, step > 0"
            )
        shape.append(-(-(hi - lo) // k))
    return Type(x.dtype, shape)


def _slices(start: Ints, stop: Ints, step: Ints) -> tuple[slice, ...]:
    return tuple(slice(*t) for t in zip(start, stop, step))


def _slice_grad(b: Any, n: Any, g: Any) -> Any:
    start, step, shape = n.attrs["start"], n.attrs["step"], n.type(0).shape
    if all(k == 1 for k in step):
        high = tuple(size - hi for size, hi in zip(shape, n.attrs["stop"]))
        return (b.pad(g, low=start, high=high, value=0.0),)
    zeros = b.full(shape=shape, value=0.0, dtype=g.type.dtype)
    return (b.slice_put(zeros, g, start=start, stop=n.attrs["stop"], step=step),)


_move(
    "slice",
    slice_infer,
    lambda x, *, start, stop, step: x[_slices(start, stop, step)],
    lambda index, in_types, out_type, read, *, start, stop, step: [
        Piece(0, tuple(i * k + lo for i, lo, k in zip(index, start, step)))
    ],
    _slice_grad,
    [
        Sample((f32(5, 4),), {"start": (1, 0), "stop": (4, 4), "step": (1, 1)}),
        Sample((f32(7, 3),), {"start": (1, 1), "stop": (7, 3), "step": (3, 1)}),
        Sample(
            (
                f32(
                    5,
                ),
            ),
            {"start": (2,), "stop": (2,), "step": (1,)},
        ),
        Sample((f32(),), {"start": (), "stop": (), "step": ()}),
    ],
    unview=lambda b, base, new, **attrs: b.slice_put(base, new, **attrs),
    doc="x[start:stop:step] in every dimension.",
)


def _slice_put_infer(base: Type, new: Type, *, start: Ints, stop: Ints, step: Ints) -> Type:
    check_same_dtype(base, new)
    part = slice_infer(base, start=start, stop=stop, step=step)
    if part.shape != new.shape:
        raise OpError(f"expected a replacement of shape {list(part.shape)}, got {new}")
    return base


def _slice_put_numpy(base: np.ndarray, new: np.ndarray, *, start: Ints, stop: Ints, step: Ints) -> np.ndarray:
    out = base.copy()
    out[_slices(start, stop, step)] = new
    return out


def both(cond: Any, other: Any) -> Any:
    """The conjunction of two conditions, None being always true."""
    return other if cond is None else S.and_(cond, other)


def _slice_put_pull(
    index: Any, in_types: Any, out_type: Type, read: Any, *, start: Ints, stop: Ints, step: Ints
) -> list[Piece]:
    where, inner = None, []
    for i, lo, hi, k, n in zip(index, start, stop, step, out_type.shape):
        if lo > 0:
            where = both(where, S.ge(i, Const(lo)))
        if hi < n:
            where = both(where, S.lt(i, Const(hi)))
        if k > 1:
            where = both(where, S.eq((i - lo) % k, Const(0)))
        inner.append((i - lo) // k)
    put = Piece(1, tuple(inner), where)
    return [put] if where is None else [put, Piece(0, tuple(index))]


def _slice_put_grad(b: Any, n: Any, g: Any) -> Any:
    attrs = n.attrs

    def base() -> Any:
        zeros = b.full(shape=n.type(1).shape, value=0.0, dtype=g.type.dtype)
        return b.slice_put(g, zeros, **attrs)

    return base, lambda: b.slice(g, **attrs)


_move(
    "slice_put",
    _slice_put_infer,
    _slice_put_numpy,
    _slice_put_pull,
    _slice_put_grad,
    [
        Sample((f32(5, 4), f32(3, 4)), {"start": (1, 0), "stop": (4, 4), "step": (1, 1)}),
        Sample((f32(7, 3), f32(2, 2)), {"start": (1, 1), "stop": (7, 3), "step": (3, 1)}),
        Sample(
            (
                f32(
                    4,
                ),
                f32(
                    4,
                ),
            ),
            {"start": (0,), "stop": (4,), "step": (1,)},
        ),
        Sample(
            (
                f32(
                    4,
                ),
                f32(
                    0,
                ),
            ),
            {"start": (2,), "stop": (2,), "step": (1,)},
        ),
        Sample((f32(), f32()), {"start": (), "stop": (), "step": ()}),
    ],
    grad_name="CopySlices",
    doc="The base with one slice replaced.",
)


def _pad_infer(x: Type, *, low: Ints, high: Ints, value: float = 0.0) -> Type:
    if not len(low) == len(high) == x.rank:
        raise OpError(f"low and high must have one entry for each of {x.rank} dimensions")
    if any(n < 0 for n in (*low, *high)):
        raise OpError(f"padding must be >= 0, got low={low}, high={high}; slice to crop")
    return Type(x.dtype, (lo + n + hi for lo, n, hi in zip(low, x.shape, high)))


def _pad_numpy(x: np.ndarray, *, low: Ints, high: Ints, value: float = 0.0) -> np.ndarray:
    shape = tuple(lo + n + hi for lo, n, hi in zip(low, x.shape, high))
    out = np.empty(shape, x.dtype)
    out[...] = np.asarray(value).astype(x.dtype)
    out[tuple(slice(lo, lo + n) for lo, n in zip(low, x.shape))] = x
    return out


def _pad_pull(
    index: Any, in_types: Any, out_type: Type, read: Any, *, low: Ints, high: Ints, value: float = 0.0
) -> list[Piece]:
    where = None
    for i, lo, hi, n in zip(index, low, high, in_types[0].shape):
        if lo > 0:
            where = both(where, S.ge(i, Const(lo)))
        if hi > 0:
            where = both(where, S.lt(i, Const(lo + n)))
    return [Piece(0, tuple(i - lo for i, lo in zip(index, low)), where)]


def _pad_grad(b: Any, n: Any, g: Any) -> Any:
    low, shape = n.attrs["low"], n.type(0).shape
    stop = tuple(lo + size for lo, size in zip(low, shape))
    return (b.slice(g, start=low, stop=stop, step=(1,) * len(low)),)


_move(
    "pad",
    _pad_infer,
    _pad_numpy,
    _pad_pull,
    _pad_grad,
    [
        Sample((f32(3, 2),), {"low": (1, 0), "high": (2, 1)}),
        Sample((f32(3, 2),), {"low": (0, 0), "high": (0, 2), "value": -1.5}),
        Sample((i64(2),), {"low": (1,), "high": (1,), "value": 7}, smooth=False),
        Sample((f32(0, 2),), {"low": (1, 0), "high": (1, 0)}),
    ],
    grad_name="ConstantPadNdBackward0",
    doc="Adds `low` elements before and `high` after, all equal to `value`.",
)


def _flip_infer(x: Type, *, dims: Ints) -> Type:
    check_axes(dims, x.rank)
    return x


_move(
    "flip",
    _flip_infer,
    lambda x, *, dims: np.flip(x, dims),
    lambda index, in_types, out_type, read, *, dims: [
        Piece(
            0, tuple((n - 1) - i if d in dims else i for d, (i, n) in enumerate(zip(index, out_type.shape)))
        )
    ],
    lambda b, n, g: (b.flip(g, dims=n.attrs["dims"]),),
    [
        Sample((f32(3, 4),), {"dims": (1,)}),
        Sample((f32(3, 4),), {"dims": (0, 1)}),
        Sample(
            (
                f32(
                    0,
                ),
            ),
            {"dims": (0,)},
        ),
    ],
    doc="Reverses the order along `dims`.",
)


def concat_infer(*xs: Type, dim: int) -> Type:
    if not xs:
        raise OpError("expected at least one operand")
    check_same_dtype(*xs)
    first = xs[0]
    check_dim(dim, first.rank)
    for x in xs:
        if x.rank != first.rank or any(x.shape[d] != n for d, n in enumerate(first.shape) if d != dim):
            raise OpError(f"expected operands of equal shapes but for dimension {dim}, got {first} and {x}")
    return Type(
        first.dtype, (sum(x.shape[d] for x in xs) if d == dim else n for d, n in enumerate(first.shape))
    )


def _concat_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dim: int) -> list[Piece]:
    pieces, at = [], 0
    for k, t in enumerate(in_types):
        inner = (*index[:dim], index[dim] - at, *index[dim + 1 :])
        at += t.shape[dim]
        if t.shape[dim]:
            pieces.append(Piece(k, inner, None if at == out_type.shape[dim] else S.lt(index[dim], Const(at))))
    return pieces or [Piece(0, tuple(index))]


def _concat_grad(b: Any, n: Any, g: Any) -> Any:
    dim, shape, at, out = n.attrs["dim"], g.type.shape, 0, []
    for k in range(len(n)):
        lo, at = at, at + n.type(k).shape[dim]
        start = tuple(lo if d == dim else 0 for d in range(len(shape)))
        stop = tuple(at if d == dim else m for d, m in enumerate(shape))
        out.append(lambda start=start, stop=stop: b.slice(g, start=start, stop=stop, step=(1,) * len(start)))
    return tuple(out)


_move(
    "concat",
    concat_infer,
    lambda *xs, dim: np.concatenate(xs, dim),
    _concat_pull,
    _concat_grad,
    [
        Sample((f32(2, 3), f32(4, 3)), {"dim": 0}),
        Sample((f32(2, 3), f32(2, 1), f32(2, 0), f32(2, 2)), {"dim": 1}),
        Sample((f32(3),), {"dim": 0}),
        Sample((f32(0), f32(0)), {"dim": 0}),
    ],
    grad_name="CatBackward0",
    doc="Joins the operands along `dim`.",
)
