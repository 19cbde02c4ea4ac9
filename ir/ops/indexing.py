"""Reading and writing at positions that are data. An index counts from the end where negative; out of
range the interpreter raises, compiled code stays within the operand (reads clamp).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes
from ..errors import DTypeError, IndexOutOfRange, OpError
from ..expr import EXPR_SCALAR as S
from ..expr import Const
from ..op import Op, Piece, Sample, register
from ..types import Shape, Type, broadcast_shapes
from .records import (
    I64,
    accumulate,
    boolean,
    check_axes,
    check_dim,
    check_same_dtype,
    composite,
    elementwise,
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


def _take(x: Type, i: Type, *, dim: int = 0) -> Type:
    check_index(i)
    check_dim(dim, x.rank)
    return Type(x.dtype, (*x.shape[:dim], *i.shape, *x.shape[dim + 1 :]))


def _take_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dim: int = 0) -> list[Piece]:
    x, i = in_types
    at = wrapped_expr(read(1, tuple(index[dim : dim + i.rank])), x.shape[dim])
    return [Piece(0, (*index[:dim], at, *index[dim + i.rank :]))]


def _zeros(b: Any, t: Type, g: Any) -> Any:
    return b.full(shape=t.shape, value=0.0, dtype=g.type.dtype)


def _take_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    return (
        lambda: b.index_put(_zeros(b, n.type(0), g), g, n[1], dims=(n.attr("dim"),), accumulate=True)
    ), None


register(
    Op(
        "take",
        _take,
        kernel="gather",
        numpy=lambda x, i, *, dim=0: np.take(x, wrapped(i, x.shape[dim], dim), dim),
        pull=_take_pull,
        grad=_take_grad,
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


def _grid(i: np.ndarray, n: int, dim: int) -> tuple[np.ndarray, ...]:
    """NumPy's index tuple for positions `i` along `dim`."""
    out = list(np.ogrid[tuple(slice(m) for m in i.shape)])
    out[dim] = wrapped(i, n, dim)
    return tuple(out)


def _gather_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dim: int) -> list[Piece]:
    at = wrapped_expr(read(1, tuple(index)), in_types[0].shape[dim])
    return [Piece(0, (*index[:dim], at, *index[dim + 1 :]))]


def _gather_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    return (lambda: b.scatter(_zeros(b, n.type(0), g), n[1], g, dim=n.attrs["dim"], reduce="add")), None


register(
    Op(
        "gather",
        _gather,
        kernel="gather",
        numpy=lambda x, i, *, dim: x[_grid(i, x.shape[dim], dim)],
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


def _index_plan(x: Type, ints: tuple[Type, ...], dims: Ints) -> tuple[Shape, int, Shape]:
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
    return Type(x.dtype, _index_plan(x, ints, dims)[2])


def _index_tuple(x: np.ndarray, ints: tuple[np.ndarray, ...], dims: Ints) -> tuple[Any, ...]:
    out: list[Any] = [slice(None)] * x.ndim
    shape = np.broadcast_shapes(*(i.shape for i in ints))
    for d, i in zip(dims, ints):
        out[d] = np.broadcast_to(wrapped(i, x.shape[d], d), shape)
    return tuple(out)


def _index_pull(index: Any, in_types: Any, out_type: Type, read: Any, *, dims: Ints) -> list[Piece]:
    x, ints = in_types[0], in_types[1:]
    shape, at, _ = _index_plan(x, tuple(ints), dims)
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
    put = lambda: b.index_put(_zeros(b, n.type(0), g), g, *ints, dims=n.attrs["dims"], accumulate=True)  # noqa: E731
    return (put, *(None for _ in ints))


register(
    Op(
        "index",
        _index,
        kernel="gather",
        numpy=lambda x, *ints, dims: x[_index_tuple(x, ints, dims)],
        pull=_index_pull,
        grad=_index_grad,
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

# --- writing --------------------------------------------------------------------------------------

_AT = {"add": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}


def _put(x: np.ndarray, where: tuple[Any, ...], v: np.ndarray, reduce: str) -> np.ndarray:
    if reduce == "none":
        out = x.copy()
        out[where] = v
        return out
    wide = accumulate(x)
    out = wide.astype(np.float64) if wide.dtype == np.float32 and reduce in ("add", "prod") else wide.copy()
    _AT[reduce].at(out, where, v.astype(out.dtype))
    return out.astype(x.dtype)


def _scatter(x: Type, i: Type, src: Type, *, dim: int, reduce: str = "none") -> Type:
    check_index(i)
    check_same_dtype(x, src)
    check_dim(dim, x.rank)
    if reduce not in ("none", *_AT):
        raise OpError(f"reduce must be one of none, add, prod, amax, amin, got {reduce!r}")
    if i.shape != src.shape:
        raise OpError(f"expected indices and source of one shape, got {i} and {src}")
    if i.rank != x.rank or any(i.shape[d] > n for d, n in enumerate(x.shape) if d != dim):
        raise OpError(f"expected indices no larger than the operand but in dimension {dim}, got {i} for {x}")
    return x


def _scatter_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    dim, reduce = n.attrs["dim"], n.attr("reduce")
    if reduce == "none":
        zeros = lambda: b.scatter(g, n[1], _zeros(b, n.type(2), g), dim=dim)  # noqa: E731
        return zeros, None, lambda: b.gather(g, n[1], dim=dim)
    if reduce == "add":
        return g, None, lambda: b.gather(g, n[1], dim=dim)
    return _scatter_extremum_grad(b, n, g, dim) if reduce != "prod" else _scatter_prod_grad(b, n, g, dim)


def _scatter_extremum_grad(b: Any, n: Any, g: Any, dim: int) -> tuple[Any, ...]:
    """All elements equal to the extremum, the one there before included, share the gradient evenly."""
    x, i, src, d = n[0], n[1], n[2], g.type.dtype
    kept = b.cast(b.eq(x, n.out), dtype=d)
    won = b.cast(b.eq(src, b.gather(n.out, i, dim=dim)), dtype=d)
    count = b.scatter(kept, i, won, dim=dim, reduce="add")
    share = b.div(g, count)
    return (lambda: b.mul(kept, share)), None, lambda: b.mul(won, b.gather(share, i, dim=dim))


def _scatter_prod_grad(b: Any, n: Any, g: Any, dim: int) -> tuple[Any, ...]:
    """Through the product of the factors that are not zero and their number, so that a single zero has
    its gradient."""
    x, i, src, d = n[0], n[1], n[2], g.type.dtype
    zero, one = b.const(0, g), b.const(1, g)
    x_zero, src_zero = b.eq(x, zero), b.eq(src, zero)
    x_safe, src_safe = b.where(x_zero, one, x), b.where(src_zero, one, src)
    whole = b.mul(g, b.scatter(x_safe, i, src_safe, dim=dim, reduce="prod"))
    count = b.scatter(b.cast(x_zero, dtype=d), i, b.cast(src_zero, dtype=d), dim=dim, reduce="add")

    def part(is_zero: Any, safe: Any, whole: Any, count: Any) -> Any:
        others = b.sub(count, b.cast(is_zero, dtype=d))  # zeros among the other factors
        return b.where(b.eq(others, zero), b.div(whole, safe), zero)

    return (
        (lambda: part(x_zero, x_safe, whole, count)),
        None,
        lambda: part(src_zero, src_safe, b.gather(whole, i, dim=dim), b.gather(count, i, dim=dim)),
    )


def _distinct(x: Shape, i: Shape, dim: int) -> Any:
    """Samples whose indices along `dim` differ: which of two writes stays is not for a derivative to ask."""

    def make(rng: Any, types: tuple[Type, ...]) -> list[np.ndarray]:
        order = np.argsort(rng.random((*i[:dim], x[dim], *i[dim + 1 :])), axis=dim)
        picked = np.take(order, range(i[dim]), axis=dim)
        return [
            rng.standard_normal(x).astype(types[0].dtype.numpy),
            picked.astype(types[1].dtype.numpy),
            rng.standard_normal(i).astype(types[2].dtype.numpy),
        ]

    return make


register(
    Op(
        "scatter",
        _scatter,
        kernel="scatter",
        numpy=lambda x, i, src, *, dim, reduce="none": _put(x, _grid(i, x.shape[dim], dim), src, reduce),
        grad=_scatter_grad,
        grad_name=lambda node: {"none": "ScatterBackward0", "add": "ScatterAddBackward0"}.get(
            node.attrs.get("reduce", "none"), "ScatterReduceBackward0"
        ),
        samples=lambda: [
            Sample((f32(3, 5), i64(3, 2), f32(3, 2)), {"dim": 1}, make=_distinct((3, 5), (3, 2), 1)),
            *(
                Sample(
                    (f32(3, 4), i64(3, 6), f32(3, 6)),
                    {"dim": 1, "reduce": r},
                    make=integer_maker(None, (-4, 4), None),
                )
                for r in _AT
            ),
            Sample(
                (f32(4), i64(0), f32(0)), {"dim": 0, "reduce": "add"}, make=integer_maker(None, (0, 4), None)
            ),
            Sample(
                (i64(4), i64(9), i64(9)),
                {"dim": 0, "reduce": "add"},
                make=integer_maker((0, 9), (0, 4), (0, 9)),
                smooth=False,
            ),
        ],
        doc="x with src[..., k, ...] written, or combined by `reduce`, at i[..., k, ...] along `dim`.",
    )
)


def _index_put(x: Type, v: Type, *ints: Type, dims: Ints, accumulate: bool = False) -> Type:
    check_same_dtype(x, v)
    shape = _index_plan(x, ints, dims)[2]
    if v.shape != shape:
        raise OpError(f"expected values of shape {list(shape)}, got {v}")
    return x


def _index_put_numpy(
    x: np.ndarray, v: np.ndarray, *ints: np.ndarray, dims: Ints, accumulate: bool = False
) -> np.ndarray:
    return _put(x, _index_tuple(x, ints, dims), v, "add" if accumulate else "none")


def _index_put_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    dims, ints = n.attrs["dims"], [n[k] for k in range(2, len(n))]
    zeros = lambda: b.index_put(g, _zeros(b, n.type(1), g), *ints, dims=dims)  # noqa: E731
    return (g if n.attr("accumulate") else zeros, lambda: b.index(g, *ints, dims=dims), *(None for _ in ints))


register(
    Op(
        "index_put",
        _index_put,
        kernel="scatter",
        numpy=_index_put_numpy,
        grad=_index_put_grad,
        samples=lambda: [
            Sample(
                (f32(5, 3), f32(4, 3), i64(4)),
                {"dims": (0,), "accumulate": True},
                make=integer_maker(None, None, (-5, 5)),
            ),
            Sample(
                (f32(3, 5, 4), f32(2, 5), i64(2), i64(2)),
                {"dims": (0, 2), "accumulate": True},
                make=integer_maker(None, None, (0, 3), (0, 4)),
            ),
            Sample((f32(3, 2), f32(2), i64()), {"dims": (0,)}, make=integer_maker(None, None, (0, 3))),
            Sample((f32(3, 2), f32(0, 2), i64(0)), {"dims": (0,)}, make=integer_maker(None, None, (0, 3))),
            Sample(
                (boolean(3), boolean(2), i64(2)),
                {"dims": (0,)},
                make=integer_maker((0, 2), (0, 2), (0, 3)),
                smooth=False,
            ),
        ],
        doc="x with v written at [..., i, ..., j, ...], or added (`accumulate`); of equals the last stays.",
    )
)

# --- composites -----------------------------------------------------------------------------------


def _masked_fill(x: Type, mask: Type, value: Type) -> Type:
    check_same_dtype(x, value)
    if mask.dtype.kind != "b" or value.rank:
        raise DTypeError(f"expected a bool mask and a scalar value, got {mask} and {value}")
    return Type(x.dtype, broadcast_shapes(x.shape, mask.shape))


elementwise(
    "masked_fill",
    lambda s, x, mask, value: s.select(mask, value, x),
    lambda b, n, g: (
        (lambda: b.where(n[1], b.const(0, g), g)),
        None,
        lambda: b.where(n[1], g, b.const(0, g)),
    ),
    infer=_masked_fill,
    samples=lambda: [Sample((f32(3, 4), boolean(4), f32())), Sample((f32(1, 2), boolean(3, 1), f32()))],
    doc="x with `value` where the mask holds.",
)


def _embedding(w: Type, i: Type, *, padding_idx: int | None = None) -> Type:
    if w.rank != 2:
        raise OpError(f"expected a weight [count, size], got {w}")
    return _take(w, i)


def _embedding_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    def weight() -> Any:
        i, pad, h = n[1], n.attr("padding_idx"), g
        if pad is not None:
            row = b.eq(i, b.const(pad % n.type(0).shape[0], i))
            h = b.where(b.reshape(row, shape=(*i.type.shape, 1)), b.const(0, g), g)
        return b.index_put(_zeros(b, n.type(0), g), h, i, dims=(0,), accumulate=True)

    return weight, None


composite(
    "embedding",
    _embedding,
    lambda b, w, i, *, padding_idx=None: b.take(w, i, dim=0),
    _embedding_grad,
    samples=lambda: [
        Sample((f32(5, 3), i64(2, 4)), make=integer_maker(None, (0, 5))),
        Sample((f32(5, 3), i64(0)), make=integer_maker(None, (0, 5))),
    ],
    doc="Rows of a weight; the row padding_idx gets no gradient.",
)


def _one_hot(i: Type, *, num_classes: int) -> Type:
    check_index(i)
    if num_classes < 1:
        raise OpError(f"num_classes must be >= 1, got {num_classes}")
    return Type(I64, (*i.shape, num_classes))


composite(
    "one_hot",
    _one_hot,
    lambda b, i, *, num_classes: b.cast(
        b.eq(b.unsqueeze(b.cast_to(i, I64), dim=-1), b.iota(shape=(num_classes,), dim=0, dtype=I64)),
        dtype=I64,
    ),
    differentiable=False,
    samples=lambda: [
        Sample((i64(3),), {"num_classes": 4}, make=integer_maker((0, 4))),
        Sample((i32(2, 0),), {"num_classes": 2}, make=integer_maker((0, 2))),
    ],
    doc="1 at the class, 0 elsewhere.",
)


def _index_add(x: Type, i: Type, src: Type, *, dim: int, alpha: float = 1) -> Type:
    check_dim(dim, x.rank)
    shape = _index_plan(x, (i,), (dim,))[2]
    check_same_dtype(x, src)
    if i.rank != 1 or src.shape != shape:
        raise OpError(f"expected a vector of indices and a source of shape {list(shape)}, got {i} and {src}")
    return x


def _index_add_of(b: Any, x: Any, i: Any, src: Any, *, dim: int, alpha: float = 1) -> Any:
    v = src if alpha == 1 else b.mul(src, b.const(alpha, src))
    return b.index_put(x, v, i, dims=(dim,), accumulate=True)


composite(
    "index_add",
    _index_add,
    _index_add_of,
    samples=lambda: [
        Sample((f32(3, 2), i64(5), f32(5, 2)), {"dim": 0}, make=integer_maker(None, (0, 3), None)),
        Sample(
            (f32(3, 2), i64(4), f32(3, 4)), {"dim": 1, "alpha": -2.0}, make=integer_maker(None, (0, 2), None)
        ),
    ],
    doc="x + alpha * src at positions `i` of `dim`.",
)


def _bincount(i: Type, w: Type | None = None, *, size: int) -> Type:
    check_index(i)
    if i.rank != 1 or (w is not None and w.shape != i.shape):
        raise OpError(f"expected a vector of indices and weights of its shape, got {i} and {w}")
    return Type(I64 if w is None else w.dtype, (size,))


def _bincount_of(b: Any, i: Any, w: Any = None, *, size: int) -> Any:
    v = b.full(shape=i.type.shape, value=1, dtype=I64) if w is None else w
    return b.index_put(b.full(shape=(size,), value=0, dtype=v.type.dtype), v, i, dims=(0,), accumulate=True)


composite(
    "bincount",
    _bincount,
    _bincount_of,
    differentiable=False,
    samples=lambda: [
        Sample((i64(9),), {"size": 4}, make=integer_maker((0, 4))),
        Sample((i64(5), f32(5)), {"size": 6}, make=integer_maker((0, 6), None)),
    ],
    doc="How often each of 0 ... size-1 occurs, or the sum of its weights.",
)
