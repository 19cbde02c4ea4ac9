"""Extrema with their positions, and both at once: PyTorch's `max(dim)`, `min(dim)` and `aminmax`."""

from __future__ import annotations

from typing import Any

from ..op import Sample
from ..types import Type
from .records import I64, composite, f32, i64, keepdim_shape, reduced_shape
from .reduction import Axes, arg_infer, extremum_infer


def _infer(x: Type, *, dim: int, keepdim: bool = False) -> tuple[Type, Type]:
    arg_infer(x, dim=dim, keepdim=keepdim)
    shape = reduced_shape(x.shape, (dim,), keepdim)
    return Type(x.dtype, shape), Type(I64, shape)


def _with_position(position: str) -> Any:
    def decompose(b: Any, x: Any, *, dim: int, keepdim: bool = False) -> Any:
        i = getattr(b, position)(x, dim=dim, keepdim=True)
        found = b.gather(x, i, dim=dim)
        if keepdim:
            return found, i
        shape = reduced_shape(x.type.shape, (dim,), False)
        return b.reshape(found, shape=shape), b.reshape(i, shape=shape)

    return decompose


def _grad(b: Any, n: Any, g: Any, _: Any) -> tuple[Any, ...]:
    """All to the element that was found, ties or not."""
    dim, shape = n.attrs["dim"], n.type(0).shape
    kept = keepdim_shape(shape, (dim,))
    zeros = b.full(shape=shape, value=0.0, dtype=g.type.dtype)
    return (b.scatter(zeros, b.reshape(n.outs[1], shape=kept), b.reshape(g, shape=kept), dim=dim),)


for _name, _position in (("max_dim", "argmax"), ("min_dim", "argmin")):
    composite(
        _name,
        _infer,
        _with_position(_position),
        _grad,
        samples=lambda: [
            Sample((f32(3, 5),), {"dim": 1}),
            Sample((f32(2, 3, 4),), {"dim": 0, "keepdim": True}),
            Sample((f32(0, 3),), {"dim": 1}),
            Sample((i64(7),), {"dim": 0}, (-2, 2), smooth=False),
        ],
        grad_name="MaxBackward0" if _name == "max_dim" else "MinBackward0",
        doc="(values, positions) of the extrema along `dim`: the first of equals or of NaNs.",
    )


def _both(x: Type, *, axes: Axes, keepdim: bool = False) -> tuple[Type, Type]:
    out = extremum_infer(x, axes=axes, keepdim=keepdim)
    return out, out


composite(
    "aminmax",
    _both,
    lambda b, x, **attrs: (b.amin(x, **attrs), b.amax(x, **attrs)),
    samples=lambda: [
        Sample((f32(3, 5),), {"axes": (1,)}),
        Sample((f32(3, 5),), {"axes": (0, 1), "keepdim": True}),
        Sample((i64(7),), {"axes": (0,)}, (-2, 2), smooth=False),
    ],
    doc="(the smallest, the largest element) over `axes`; elements equal to one share its gradient.",
)
