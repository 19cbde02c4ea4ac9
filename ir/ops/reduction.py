"""Reductions over axes: the kernels a scheduler knows. Composites of them are in statistics.py and
softmax.py."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..errors import IndexOutOfRange
from ..op import Op, Sample, register
from ..types import Type
from .records import (
    ALL,
    I64,
    NUMERIC,
    accumulate,
    boolean,
    check_axes,
    check_dim,
    check_kind,
    f32,
    i64,
    reduced_shape,
    spread,
    spread_full,
)

Axes = tuple[int, ...]


def _infer(kinds: str, needs_elements: bool) -> Any:
    def infer(x: Type, *, axes: Axes, keepdim: bool = False) -> Type:
        check_kind(x.dtype, kinds)
        check_axes(axes, x.rank)
        if needs_elements and any(x.shape[a] == 0 for a in axes):
            raise IndexOutOfRange(f"has no value over an empty dimension; axes {axes} of {x}")
        return Type(x.dtype, reduced_shape(x.shape, axes, keepdim))

    return infer


def _whole(node: Any) -> bool:
    return len(node.attrs["axes"]) == node.operands[0].type.rank and not node.attrs.get("keepdim", False)


def numbered(base: str) -> Any:
    """PyTorch numbers the overloads: 0 over everything, 1 over given dimensions."""
    return lambda node: f"{base}Backward{0 if _whole(node) else 1}"


def _samples(x: Any = f32, *, empty: bool = True, domain: Any = (-2.0, 2.0), smooth: bool = True) -> Any:
    def samples() -> list[Sample]:
        shapes: list[tuple[tuple[int, ...], dict[str, Any]]] = [
            ((3, 5), {"axes": (0, 1)}),
            ((3, 5), {"axes": (0,)}),
            ((2, 3, 4), {"axes": (0, 2), "keepdim": True}),
            ((2, 1, 7), {"axes": (2,)}),
            ((), {"axes": ()}),
            ((0, 3), {"axes": (1,)}),
            ((2, 3), {"axes": ()}),
        ]
        if empty:
            shapes.append(((2, 0), {"axes": (1,)}))
        return [Sample((x(*s),), a, domain, smooth=smooth) for s, a in shapes]

    return samples


def _reduce(name: str, infer: Any, numpy: Any, combine: str, grad: Any, samples: Any, **extra: Any) -> Op:
    return register(
        Op(name, infer, kernel="reduce", numpy=numpy, combine=combine, grad=grad, samples=samples, **extra)
    )


def _sum_numpy(x: np.ndarray, *, axes: Axes, keepdim: bool = False) -> np.ndarray:
    # f64 partial sums: the reference should not be the less accurate of two answers.
    wide = np.float64 if x.dtype.kind not in "iub" else x.dtype
    return np.sum(x, axis=axes, keepdims=keepdim, dtype=wide).astype(x.dtype)


def _sum_grad(b: Any, n: Any, g: Any) -> Any:
    return (spread_full(b, g, n.type(0).shape, n.attrs["axes"], n.attr("keepdim")),)


_reduce(
    "sum", _infer(NUMERIC, False), _sum_numpy, "add", _sum_grad, _samples(), grad_name=numbered("Sum"),
    doc="The sum over `axes`; f16 and bf16 accumulate in f32. Integers keep their type and wrap.",
)  # fmt: skip


def _prod_numpy(x: np.ndarray, *, axes: Axes, keepdim: bool = False) -> np.ndarray:
    wide = np.float64 if x.dtype.kind not in "iub" else x.dtype
    return np.prod(x, axis=axes, keepdims=keepdim, dtype=wide).astype(x.dtype)


def others_product(b: Any, x: Any) -> Any:
    """For each element of the last dimension the product of all others there, by products alone: exact
    at zeros, and so are its own derivatives. Prefix products in log2(n) steps from either side."""
    shape, n = x.type.shape, x.type.shape[-1]
    rank = len(shape)

    def shifted(v: Any, by: int) -> Any:
        kept = b.slice(v, start=(0,) * rank, stop=(*shape[:-1], n - by), step=(1,) * rank)
        return b.pad(kept, low=(*(0,) * (rank - 1), by), high=(0,) * rank, value=1.0)

    def before(v: Any) -> Any:
        v, by = shifted(v, 1), 1
        while by < n:
            v, by = b.mul(v, shifted(v, by)), by * 2
        return v

    last = (rank - 1,)
    return b.mul(before(x), b.flip(before(b.flip(x, dims=last)), dims=last))


def _prod_grad(b: Any, n: Any, g: Any) -> Any:
    x, axes = n[0], n.attrs["axes"]
    shape = x.type.shape
    g = spread(b, g, shape, axes, n.attr("keepdim"))
    if x.type.numel == 0 or not axes:
        return (b.expand(g, shape=shape),)
    kept = tuple(i for i in range(len(shape)) if i not in axes)
    dims = (*kept, *axes)
    moved = b.permute(x, dims=dims)
    flat = b.reshape(moved, shape=(*(shape[i] for i in kept), prod(shape[a] for a in axes)))
    others = b.reshape(others_product(b, flat), shape=moved.type.shape)
    return (b.mul(g, b.permute(others, dims=tuple(dims.index(i) for i in range(len(shape))))),)


_reduce(
    "prod", _infer(NUMERIC, False), _prod_numpy, "mul", _prod_grad, _samples(), grad_name=numbered("Prod"),
    doc="The product over `axes`; its gradient holds where elements are zero.",
)  # fmt: skip


def _extremum_numpy(f: Any) -> Any:
    def numpy(x: np.ndarray, *, axes: Axes, keepdim: bool = False) -> np.ndarray:
        return np.asarray(f(accumulate(x), axis=axes, keepdims=keepdim)).astype(x.dtype)

    return numpy


def _extremum_grad(b: Any, n: Any, g: Any) -> Any:
    """Elements equal to the extremum share the gradient evenly."""
    x, axes, keepdim = n[0], n.attrs["axes"], n.attr("keepdim")
    shape = x.type.shape
    hit = b.cast_to(b.eq(x, spread(b, n.out, shape, axes, keepdim)), g.type.dtype)
    share = b.div(spread(b, g, shape, axes, keepdim), b.sum(hit, axes=axes, keepdim=True))
    return (b.mul(hit, share),)


extremum_infer = _infer(ALL, True)
for _name, _f, _prim in (("amax", np.max, "maximum"), ("amin", np.min, "minimum")):
    _reduce(
        _name, extremum_infer, _extremum_numpy(_f), _prim, _extremum_grad, _samples(empty=False),
        doc="The extremum over `axes`, NaN if any element is.",
    )  # fmt: skip


def _logical_numpy(f: Any) -> Any:
    return lambda x, *, axes, keepdim=False: f(x, axis=axes, keepdims=keepdim)


for _name, _f, _prim in (("any", np.any, "or_"), ("all", np.all, "and_")):
    _reduce(
        _name,
        _infer("b", False),
        _logical_numpy(_f),
        _prim,
        None,
        _samples(boolean, smooth=False),
        differentiable=False,
        doc=f"Whether {_name} of the elements hold; bool only.",
    )


def arg_infer(x: Type, *, dim: int, keepdim: bool = False) -> Type:
    check_dim(dim, x.rank)
    if x.shape[dim] == 0:
        raise IndexOutOfRange(f"has no value over an empty dimension; dimension {dim} of {x}")
    return Type(I64, reduced_shape(x.shape, (dim,), keepdim))


def _arg_numpy(f: Any) -> Any:
    def numpy(x: np.ndarray, *, dim: int, keepdim: bool = False) -> np.ndarray:
        return np.asarray(f(accumulate(x), axis=dim, keepdims=keepdim)).astype(np.int64)

    return numpy


for _name, _f in (("argmax", np.argmax), ("argmin", np.argmin)):
    _reduce(
        _name,
        arg_infer,
        _arg_numpy(_f),
        "",
        None,
        lambda: [
            Sample((f32(3, 5),), {"dim": 1}),
            Sample((f32(2, 3, 4),), {"dim": 0, "keepdim": True}),
            Sample((f32(0, 3),), {"dim": 1}),
            Sample((i64(7),), {"dim": 0}, (-2, 2)),
            Sample((boolean(7),), {"dim": 0}),
        ],
        differentiable=False,
        doc="The position of the extremum along `dim`: the first of equals, the first NaN if there is one.",
    )
