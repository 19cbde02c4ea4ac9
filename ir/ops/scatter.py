"""Writing at positions that are data: scatter and index_put. Indices as in indexing.py; of writes to one
place the last stays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import batch_rules
from ..errors import OpError
from ..op import Op, Sample, register
from ..types import Shape, Type
from .indexing import Ints, check_index, grid, index_plan, index_tuple, zeros_of
from .records import (
    accumulate,
    boolean,
    check_dim,
    check_same_dtype,
    f32,
    i64,
    integer_maker,
)

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
        zeros = lambda: b.scatter(g, n[1], zeros_of(b, n.type(2), g), dim=dim)  # noqa: E731
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
        numpy=lambda x, i, src, *, dim, reduce="none": _put(x, grid(i, x.shape[dim], dim), src, reduce),
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
    shape = index_plan(x, ints, dims)[2]
    if v.shape != shape:
        raise OpError(f"expected values of shape {list(shape)}, got {v}")
    return x


def _index_put_numpy(
    x: np.ndarray, v: np.ndarray, *ints: np.ndarray, dims: Ints, accumulate: bool = False
) -> np.ndarray:
    return _put(x, index_tuple(x, ints, dims), v, "add" if accumulate else "none")


def _index_put_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    dims, ints = n.attrs["dims"], [n[k] for k in range(2, len(n))]
    zeros = lambda: b.index_put(g, zeros_of(b, n.type(1), g), *ints, dims=dims)  # noqa: E731
    return (g if n.attr("accumulate") else zeros, lambda: b.index(g, *ints, dims=dims), *(None for _ in ints))


register(
    Op(
        "index_put",
        _index_put,
        kernel="scatter",
        numpy=_index_put_numpy,
        grad=_index_put_grad,
        batch=batch_rules.index_put,
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
