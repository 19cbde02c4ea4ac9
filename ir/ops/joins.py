"""Ops that take a tensor apart or put several together: split, unbind, stack, repeat, roll."""

from __future__ import annotations

from typing import Any

from ..errors import OpError
from ..op import Sample
from ..types import Shape, Type
from .movement import concat_infer
from .records import composite, f32
from .views import axis, part, select_of


def _split(x: Type, *, sizes: tuple[int, ...], dim: int = 0) -> tuple[Type, ...]:
    d = axis(dim, x.rank)
    if x.rank == 0 or sum(sizes) != x.shape[d] or any(n < 0 for n in sizes) or not sizes:
        raise OpError(f"sizes {sizes} must be >= 0 and add up to the size of dimension {dim}")
    return tuple(Type(x.dtype, (*x.shape[:d], n, *x.shape[d + 1 :])) for n in sizes)


def _split_of(b: Any, x: Any, *, sizes: tuple[int, ...], dim: int = 0) -> Any:
    d = axis(dim, x.type.rank)
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return tuple(b.slice(x, **part(x.type.shape, d, end - n, end)) for end, n in zip(ends, sizes))


composite(
    "split",
    _split,
    _split_of,
    lambda b, n, *g: (b.concat(*g, dim=axis(n.attr("dim"), n.type(0).rank)),),
    samples=lambda: [
        Sample((f32(5, 2),), {"sizes": (2, 3)}),
        Sample((f32(2, 4),), {"sizes": (1, 0, 3), "dim": -1}),
        Sample((f32(3),), {"sizes": (3,)}),
    ],
    doc="Consecutive parts of one dimension.",
)


def _unbind(x: Type, *, dim: int = 0) -> tuple[Type, ...]:
    if x.rank == 0:
        raise OpError("a scalar can't be unbound")
    d = axis(dim, x.rank)
    if x.shape[d] == 0:
        raise OpError(f"dimension {dim} is empty, so there is nothing to give")
    return (Type(x.dtype, (*x.shape[:d], *x.shape[d + 1 :])),) * x.shape[d]


composite(
    "unbind",
    _unbind,
    lambda b, x, *, dim=0: tuple(
        select_of(b, x, dim=dim, index=i) for i in range(x.type.shape[axis(dim, x.type.rank)])
    ),
    lambda b, n, *g: (b.stack(*g, dim=axis(n.attr("dim"), n.type(0).rank)),),
    samples=lambda: [Sample((f32(3, 2),)), Sample((f32(2, 3),), {"dim": -1}), Sample((f32(1),))],
    doc="Every position of one dimension.",
)


def _stack(*xs: Type, dim: int = 0) -> Type:
    if not xs:
        raise OpError("expected at least one operand")
    for x in xs:
        if x.shape != xs[0].shape:
            raise OpError(f"expected operands of one shape, got {xs[0]} and {x}")
    d = axis(dim, xs[0].rank + 1)
    return concat_infer(*(Type(x.dtype, (*x.shape[:d], 1, *x.shape[d:])) for x in xs), dim=d)


def _stack_of(b: Any, *xs: Any, dim: int = 0) -> Any:
    d = axis(dim, xs[0].type.rank + 1)
    return b.concat(*(b.unsqueeze(x, dim=d) for x in xs), dim=d)


composite(
    "stack",
    _stack,
    _stack_of,
    lambda b, n, g: tuple(
        (lambda k=k: b.select(g, dim=axis(n.attr("dim"), g.type.rank), index=k)) for k in range(len(n))
    ),
    samples=lambda: [
        Sample((f32(2, 3), f32(2, 3))),
        Sample((f32(2), f32(2), f32(2)), {"dim": -1}),
        Sample((f32(),), {"dim": 0}),
        Sample((f32(0), f32(0))),
    ],
    doc="Joins the operands along a new dimension.",
)


def _repeat(x: Type, *, repeats: tuple[int, ...]) -> Type:
    if len(repeats) < x.rank or any(n < 0 for n in repeats):
        raise OpError(f"repeats must have at least {x.rank} counts >= 0, got {repeats}")
    shape = (1,) * (len(repeats) - x.rank) + x.shape
    return Type(x.dtype, (n * k for n, k in zip(shape, repeats)))


def _interleaved(shape: Shape, repeats: tuple[int, ...]) -> tuple[Shape, Shape, tuple[int, ...]]:
    """Sizes as (1, n) and (k, n) pairs, and the axes of the ks."""
    shape = (1,) * (len(repeats) - len(shape)) + shape
    ones = tuple(m for n in shape for m in (1, n))
    return ones, tuple(m for n, k in zip(shape, repeats) for m in (k, n)), tuple(range(0, len(ones), 2))


def _repeat_of(b: Any, x: Any, *, repeats: tuple[int, ...]) -> Any:
    ones, pairs, _ = _interleaved(x.type.shape, repeats)
    wide = b.expand(b.reshape(x, shape=ones), shape=pairs)
    return b.reshape(wide, shape=_repeat(x.type, repeats=repeats).shape)


def _repeat_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    shape = n.type(0).shape
    _, pairs, axes = _interleaved(shape, n.attrs["repeats"])
    return (b.reshape(b.sum(b.reshape(g, shape=pairs), axes=axes), shape=shape),)


composite(
    "repeat",
    _repeat,
    _repeat_of,
    _repeat_grad,
    samples=lambda: [
        Sample((f32(2, 3),), {"repeats": (2, 1)}),
        Sample((f32(3),), {"repeats": (2, 2)}),
        Sample((f32(2),), {"repeats": (0,)}),
        Sample((f32(),), {"repeats": ()}),
    ],
    doc="Copies side by side along each dimension.",
)


def _repeat_interleave(x: Type, *, repeats: int, dim: int) -> Type:
    if x.rank == 0 or repeats < 0:
        raise OpError(f"expected at least 1 dimension and repeats >= 0, got repeats={repeats}")
    d = axis(dim, x.rank)
    return Type(x.dtype, (n * repeats if k == d else n for k, n in enumerate(x.shape)))


def _repeat_interleave_of(b: Any, x: Any, *, repeats: int, dim: int) -> Any:
    shape, d = x.type.shape, axis(dim, x.type.rank)
    wide = b.expand(b.unsqueeze(x, dim=d + 1), shape=(*shape[: d + 1], repeats, *shape[d + 1 :]))
    return b.reshape(wide, shape=_repeat_interleave(x.type, repeats=repeats, dim=dim).shape)


def _repeat_interleave_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    shape, d = n.type(0).shape, axis(n.attrs["dim"], n.type(0).rank)
    wide = b.reshape(g, shape=(*shape[: d + 1], n.attrs["repeats"], *shape[d + 1 :]))
    return (b.sum(wide, axes=(d + 1,)),)


composite(
    "repeat_interleave",
    _repeat_interleave,
    _repeat_interleave_of,
    _repeat_interleave_grad,
    samples=lambda: [
        Sample((f32(2, 3),), {"repeats": 2, "dim": 1}),
        Sample((f32(3),), {"repeats": 0, "dim": 0}),
    ],
    grad_name="IndexSelectBackward0",
    doc="Every position of one dimension several times in a row.",
)


def _roll(x: Type, *, shifts: tuple[int, ...], dims: tuple[int, ...]) -> Type:
    if len(shifts) != len(dims):
        raise OpError(f"expected one shift for each dimension, got shifts={shifts}, dims={dims}")
    for d in dims:
        axis(d, x.rank)
    return x


def _roll_of(b: Any, x: Any, *, shifts: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    shape = x.type.shape
    for shift, dim in zip(shifts, dims):
        d = axis(dim, len(shape))
        k = shift % shape[d] if shape and shape[d] else 0
        if k:
            cut = shape[d] - k
            x = b.concat(
                b.slice(x, **part(shape, d, cut, shape[d])), b.slice(x, **part(shape, d, 0, cut)), dim=d
            )
    return x


composite(
    "roll",
    _roll,
    lambda b, x, **attrs: _roll_of(b, b.clone(x), **attrs),
    lambda b, n, g: (b.roll(g, shifts=tuple(-k for k in n.attrs["shifts"]), dims=n.attrs["dims"]),),
    samples=lambda: [
        Sample((f32(5, 3),), {"shifts": (2, -1), "dims": (0, 1)}),
        Sample((f32(4),), {"shifts": (4,), "dims": (-1,)}),
        Sample((f32(0),), {"shifts": (1,), "dims": (0,)}),
    ],
    doc="Elements moved along dimensions, what falls off coming back at the other end.",
)
