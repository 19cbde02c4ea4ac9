"""Reading and writing at positions that are data. An index counts from the end where negative; out of
range the interpreter raises, compiled code stays within the operand (reads clamp).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import batch_rules, dtypes
from ..errors import DTypeError, IndexOutOfRange, OpError
from ..expr import EXPR_SCALAR as S
from ..expr import Const
from ..op import Op, Piece, Sample, register
from ..types import Shape, Type, broadcast_shapes
from .records import (
    check_axes,
    check_dim,
    f32,
    i32,
    i64,
    integer_maker,
)

Ints = tuple[int, ...]


def check_index(t: Type) -> None:
    if t.dtype.kind not in "iu":
        raise DTypeError(f"expected integer indices, got {t}")


def wrapped(i: np.ndarray, n: int, dim: int) -> np.ndarray:
    """Indices with negative ones counted from the end. Raises IndexOutOfRange."""
    i = i.astype(np.int64)
    bad = (i < -n) | (i >= n)
    if bad.any():
        raise IndexOutOfRange(f"index {int(i[bad].flat[0])} is out of range for dimension {dim} of size {n}")
    return np.where(i < 0, i + n, i)


def wrapped_expr(i: Any, n: int) -> Any:
    """The same in the loop IR, limited to the dimension."""
    i = S.cast(i, dtypes.int64)
    i = S.select(S.lt(i, Const(0)), S.add(i, Const(n)), i)
    return S.minimum(S.maximum(i, Const(0)), Const(max(n - 1, 0)))


# --- reading --------------------------------------------------------------------------------------


def take_infer(x: Type, i: Type, *, dim: int = 0) -> Type:
    check_index(i)
    check_dim(dim, x.rank)
    return Type(x.dtype, (*x.shape[:dim], *i.shape, *x.shape[dim + 1 :]))


def _take_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dim: int = 0) -> list[Piece]:
    x, i = in_types
    at = wrapped_expr(read(1, tuple(index[dim : dim + i.rank])), x.shape[dim])
    return [Piece(0, (*index[:dim], at, *index[dim + i.rank :]))]


def zeros_of(b: Any, t: Type, g: Any) -> Any:
    return b.full(shape=t.shape, value=0.0, dtype=g.type.dtype)


def _take_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    return (
        lambda: b.index_put(zeros_of(b, n.type(0), g), g, n[1], dims=(n.attr("dim"),), accumulate=True)
    ), None


register(
    Op(
        "take",
        take_infer,
        kernel="gather",
        numpy=lambda x, i, *, dim=0: np.take(x, wrapped(i, x.shape[dim], dim), dim),
        pull=_take_pull,
        grad=_take_grad,
        batch=batch_rules.take,
        grad_name="IndexSelectBackward0",
        samples=lambda: [
            Sample((f32(5, 3), i64(4)), {"dim": 0}, make=integer_maker(None, (-5, 5))),
            Sample((f32(2, 5), i32(2, 3)), {"dim": 1}, make=integer_maker(None, (0, 5))),
            Sample((f32(5), i64()), {"dim": 0}, make=integer_maker(None, (0, 5))),
            Sample((f32(5, 2), i64(0)), {"dim": 0}, make=integer_maker(None, (0, 5))),
        ],
        doc="The positions `i` of dimension `dim`, which the dimensions of `i` replace.",
    )
)


def _gather(x: Type, i: Type, *, dim: int) -> Type:
    check_index(i)
    check_dim(dim, x.rank)
    if i.rank != x.rank or any(i.shape[d] > n for d, n in enumerate(x.shape) if d != dim):
        raise OpError(f"expected indices no larger than the operand but in dimension {dim}, got {i} for {x}")
    return Type(x.dtype, i.shape)


def grid(i: np.ndarray, n: int, dim: int) -> tuple[np.ndarray, ...]:
    """NumPy's index tuple for positions `i` along `dim`."""
    out = list(np.ogrid[tuple(slice(m) for m in i.shape)])
    out[dim] = wrapped(i, n, dim)
    return tuple(out)


def _gather_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dim: int) -> list[Piece]:
    at = wrapped_expr(read(1, tuple(index)), in_types[0].shape[dim])
    return [Piece(0, (*index[:dim], at, *index[dim + 1 :]))]


def _gather_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    return (lambda: b.scatter(zeros_of(b, n.type(0), g), n[1], g, dim=n.attrs["dim"], reduce="add")), None


register(
    Op(
        "gather",
        _gather,
        kernel="gather",
        numpy=lambda x, i, *, dim: x[grid(i, x.shape[dim], dim)],
        pull=_gather_pull,
        grad=_gather_grad,
        samples=lambda: [
            Sample((f32(3, 4), i64(3, 2)), {"dim": 1}, make=integer_maker(None, (-4, 4))),
            Sample((f32(3, 4), i64(5, 2)), {"dim": 0}, make=integer_maker(None, (0, 3))),
            Sample((f32(4), i32(7)), {"dim": 0}, make=integer_maker(None, (0, 4))),
            Sample((f32(4, 2), i64(0, 2)), {"dim": 0}, make=integer_maker(None, (0, 4))),
        ],
        doc="out[..., k, ...] = x[..., i[..., k, ...], ...] along `dim`.",
    )
)


def index_plan(x: Type, ints: tuple[Type, ...], dims: Ints) -> tuple[Shape, int, Shape]:
    """(shape of the indices together, where it goes in the result, the result's shape): at the place of
    the indexed dimensions where they are neighbours, else first."""
    if not ints or len(ints) != len(dims):
        raise OpError(f"expected one index tensor for each of dims {dims}, got {len(ints)}")
    check_axes(dims, x.rank)
    if tuple(sorted(dims)) != dims:
        raise OpError(f"dims must increase, got {dims}")
    for t in ints:
        check_index(t)
    shape = broadcast_shapes(*(t.shape for t in ints))
    at = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    kept = [n for d, n in enumerate(x.shape) if d not in dims]
    return shape, at, (*kept[:at], *shape, *kept[at:])


def _index(x: Type, *ints: Type, dims: Ints) -> Type:
    return Type(x.dtype, index_plan(x, ints, dims)[2])


def index_tuple(x: np.ndarray, ints: tuple[np.ndarray, ...], dims: Ints) -> tuple[Any, ...]:
    out: list[Any] = [slice(None)] * x.ndim
    shape = np.broadcast_shapes(*(i.shape for i in ints))
    for d, i in zip(dims, ints):
        out[d] = np.broadcast_to(wrapped(i, x.shape[d], d), shape)
    return tuple(out)


def _index_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dims: Ints) -> list[Piece]:
    x, ints = in_types[0], in_types[1:]
    shape, at, _ = index_plan(x, tuple(ints), dims)
    place = index[at : at + len(shape)]
    kept = iter((*index[:at], *index[at + len(shape) :]))
    out = []
    for d, n in enumerate(x.shape):
        if d not in dims:
            out.append(next(kept))
            continue
        k = dims.index(d)
        tail = place[len(shape) - ints[k].rank :]
        inner = tuple(Const(0) if m == 1 else p for m, p in zip(ints[k].shape, tail))
        out.append(wrapped_expr(read(1 + k, inner), n))
    return [Piece(0, tuple(out))]


def _index_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    ints = [n[k] for k in range(1, len(n))]

    def put() -> Any:
        return b.index_put(zeros_of(b, n.type(0), g), g, *ints, dims=n.attrs["dims"], accumulate=True)

    return (put, *(None for _ in ints))


register(
    Op(
        "index",
        _index,
        kernel="gather",
        numpy=lambda x, *ints, dims: x[index_tuple(x, ints, dims)],
        pull=_index_pull,
        grad=_index_grad,
        batch=batch_rules.index,
        samples=lambda: [
            Sample((f32(5, 4), i64(3), i64(3)), {"dims": (0, 1)}, make=integer_maker(None, (-5, 5), (-4, 4))),
            Sample(
                (f32(3, 5, 4), i64(2, 1), i64(3)), {"dims": (1, 2)}, make=integer_maker(None, (0, 5), (0, 4))
            ),
            Sample(
                (f32(3, 5, 4), i64(2), i64(2)), {"dims": (0, 2)}, make=integer_maker(None, (0, 3), (0, 4))
            ),
            Sample((f32(5, 2), i64()), {"dims": (0,)}, make=integer_maker(None, (0, 5))),
            Sample((f32(5, 2), i64(0)), {"dims": (0,)}, make=integer_maker(None, (0, 5))),
        ],
        doc="x[..., i, ..., j, ...] with index tensors at `dims`, which broadcast against each other.",
    )
)
