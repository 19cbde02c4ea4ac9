"""PyTorch's views and joins under their own names, over the kernels of movement.py: they keep `grad_fn`
names and programs readable. Dimensions may be negative here; `unview` puts a changed view back into its base.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ..errors import IndexOutOfRange, OpError
from ..op import Sample
from ..types import Shape, Type, normalize_axis
from .movement import reshape_infer
from .records import composite, f32


def axis(dim: int, rank: int) -> int:
    if not isinstance(dim, int):
        raise OpError(f"a dimension must be an int, got {dim!r}")
    return normalize_axis(dim, rank)


def back_to_base(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    """The gradient of a reshaping view."""
    return (b.reshape(g, shape=n.type(0).shape),)


def _reshaped(b: Any, base: Any, new: Any, **_: Any) -> Any:
    return b.reshape(new, shape=base.type.shape)


def _reshaping(name: str, infer: Any, samples: list[Sample], doc: str, grad_name: Any = "") -> None:
    """A view that only regroups dimensions: its shape is what `infer` says."""

    def decompose(b: Any, x: Any, **attrs: Any) -> Any:
        return b.reshape(x, shape=infer(x.type, **attrs).shape)

    composite(
        name,
        infer,
        decompose,
        back_to_base,
        samples=lambda: samples,
        unview=_reshaped,
        grad_name=grad_name,
        doc=doc,
    )


_reshaping(
    "view",
    reshape_infer,
    [
        Sample((f32(2, 6),), {"shape": (3, 4)}),
        Sample((f32(0, 2),), {"shape": (0,)}),
        Sample((f32(),), {"shape": (1, 1)}),
    ],
    "Another shape of the same elements.",
)


def _unsqueeze(x: Type, *, dim: int) -> Type:
    d = axis(dim, x.rank + 1)
    return Type(x.dtype, (*x.shape[:d], 1, *x.shape[d:]))


_reshaping(
    "unsqueeze",
    _unsqueeze,
    [Sample((f32(2, 3),), {"dim": 1}), Sample((f32(),), {"dim": 0}), Sample((f32(0, 3),), {"dim": -1})],
    "A new dimension of size 1.",
)


def _squeeze(x: Type, *, dims: int | tuple[int, ...] | None = None) -> Type:
    named = range(x.rank) if dims is None else (dims,) if isinstance(dims, int) else dims
    drop = {axis(d, x.rank) for d in named}
    return Type(x.dtype, (n for d, n in enumerate(x.shape) if d not in drop or n != 1))


def _squeeze_name(node: Any) -> str:
    dims = node.attrs.get("dims")
    return f"SqueezeBackward{0 if dims is None else 1 if isinstance(dims, int) else 2}"


_reshaping(
    "squeeze",
    _squeeze,
    [
        Sample((f32(1, 3, 1),)),
        Sample((f32(1, 3, 1),), {"dims": -1}),
        Sample((f32(1, 3, 1),), {"dims": (0, 1)}),
        Sample((f32(),), {"dims": (0,)}),
    ],
    "Drops dimensions of size 1.",
    _squeeze_name,
)


def _flatten(x: Type, *, start_dim: int = 0, end_dim: int = -1) -> Type:
    if x.rank == 0:
        return Type(x.dtype, (1,))
    i, j = axis(start_dim, x.rank), axis(end_dim, x.rank)
    if i > j:
        raise OpError(f"start_dim {start_dim} comes after end_dim {end_dim}")
    return Type(x.dtype, (*x.shape[:i], prod(x.shape[i : j + 1]), *x.shape[j + 1 :]))


_reshaping(
    "flatten",
    _flatten,
    [
        Sample((f32(2, 3, 4),)),
        Sample((f32(2, 3, 4),), {"start_dim": 1}),
        Sample((f32(2, 3, 4),), {"end_dim": -2}),
        Sample((f32(),)),
        Sample((f32(0, 3),)),
    ],
    "Dimensions start_dim to end_dim as one.",
    "ViewBackward0",
)


def _unflatten(x: Type, *, dim: int, sizes: Shape) -> Type:
    d = axis(dim, x.rank)
    if prod(sizes) != x.shape[d]:
        raise OpError(f"sizes {sizes} do not multiply to {x.shape[d]}, the size of dimension {dim}")
    return Type(x.dtype, (*x.shape[:d], *sizes, *x.shape[d + 1 :]))


_reshaping(
    "unflatten",
    _unflatten,
    [
        Sample((f32(2, 6),), {"dim": 1, "sizes": (2, 3)}),
        Sample(
            (
                f32(
                    4,
                ),
            ),
            {"dim": -1, "sizes": (2, 1, 2)},
        ),
    ],
    "One dimension as several.",
    "ViewBackward0",
)


def _swapped(x: Type, dim0: int, dim1: int) -> tuple[int, ...]:
    i, j = axis(dim0, x.rank), axis(dim1, x.rank)
    dims = list(range(x.rank))
    if dims:
        dims[i], dims[j] = j, i
    return tuple(dims)


def _transpose(x: Type, *, dim0: int, dim1: int) -> Type:
    return Type(x.dtype, (x.shape[d] for d in _swapped(x, dim0, dim1)))


composite(
    "transpose",
    _transpose,
    lambda b, x, *, dim0, dim1: b.permute(x, dims=_swapped(x.type, dim0, dim1)),
    lambda b, n, g: (b.transpose(g, **n.attrs),),
    samples=lambda: [
        Sample((f32(2, 3),), {"dim0": 0, "dim1": 1}),
        Sample((f32(2, 3, 4),), {"dim0": -1, "dim1": 0}),
        Sample((f32(),), {"dim0": 0, "dim1": 0}),
    ],
    unview=lambda b, base, new, **attrs: b.transpose(new, **attrs),
    doc="Two dimensions swapped.",
)


def _t(x: Type) -> Type:
    if x.rank > 2:
        raise OpError(f"expected at most 2 dimensions, got {x}; use transpose or permute")
    return Type(x.dtype, x.shape[::-1])


composite(
    "t",
    _t,
    lambda b, x: b.permute(x, dims=tuple(reversed(range(x.type.rank)))),
    lambda b, n, g: (b.t(g),),
    samples=lambda: [Sample((f32(2, 3),)), Sample((f32(3),)), Sample((f32(),)), Sample((f32(0, 2),))],
    unview=lambda b, base, new: b.t(new),
    doc="The transposed matrix.",
)

# --- parts of one dimension -----------------------------------------------------------------------


def part(shape: Shape, dim: int, start: int, stop: int, step: int = 1) -> dict[str, Any]:
    """Attributes of `slice` that take start:stop:step of one dimension and all of the others."""
    return {
        "start": tuple(start if d == dim else 0 for d in range(len(shape))),
        "stop": tuple(stop if d == dim else n for d, n in enumerate(shape)),
        "step": tuple(step if d == dim else 1 for d in range(len(shape))),
    }


def _position(x: Type, dim: int, index: int) -> tuple[int, int]:
    if x.rank == 0:
        raise IndexOutOfRange("a scalar has no dimension to select from")
    d = axis(dim, x.rank)
    if not -x.shape[d] <= index < x.shape[d]:
        raise IndexOutOfRange(f"index {index} is out of range for dimension {dim} of size {x.shape[d]}")
    return d, index % x.shape[d]


def _select(x: Type, *, dim: int, index: int) -> Type:
    d, _ = _position(x, dim, index)
    return Type(x.dtype, (*x.shape[:d], *x.shape[d + 1 :]))


def select_of(b: Any, x: Any, *, dim: int, index: int) -> Any:
    d, i = _position(x.type, dim, index)
    shape = x.type.shape
    return b.reshape(b.slice(x, **part(shape, d, i, i + 1)), shape=(*shape[:d], *shape[d + 1 :]))


def _select_unview(b: Any, base: Any, new: Any, *, dim: int, index: int) -> Any:
    d, i = _position(base.type, dim, index)
    shape = base.type.shape
    new = b.reshape(new, shape=(*shape[:d], 1, *shape[d + 1 :]))
    return b.slice_put(base, new, **part(shape, d, i, i + 1))


def _padded_grad(bounds: Any) -> Any:
    """The gradient of taking a part along one dimension: zeros around it."""

    def rule(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
        x = n.type(0)
        d, lo, hi = bounds(x, **n.attrs)
        g = b.reshape(g, shape=(*x.shape[:d], hi - lo, *x.shape[d + 1 :]))
        low = tuple(lo if k == d else 0 for k in range(x.rank))
        high = tuple(x.shape[d] - hi if k == d else 0 for k in range(x.rank))
        return (b.pad(g, low=low, high=high, value=0.0),)

    return rule


def _select_bounds(x: Type, *, dim: int, index: int) -> tuple[int, int, int]:
    d, i = _position(x, dim, index)
    return d, i, i + 1


composite(
    "select",
    _select,
    select_of,
    _padded_grad(_select_bounds),
    samples=lambda: [
        Sample((f32(3, 4),), {"dim": 0, "index": 1}),
        Sample((f32(3, 4, 2),), {"dim": -2, "index": -1}),
        Sample((f32(1),), {"dim": 0, "index": 0}),
    ],
    unview=_select_unview,
    doc="One position of one dimension, which is dropped.",
)


def _narrow_bounds(x: Type, *, dim: int, start: int, length: int) -> tuple[int, int, int]:
    if x.rank == 0:
        raise IndexOutOfRange("a scalar has no dimension to narrow")
    d = axis(dim, x.rank)
    lo = start + x.shape[d] if start < 0 else start
    if length < 0 or not 0 <= lo <= x.shape[d] - length:
        raise IndexOutOfRange(
            f"{length} elements from {start} do not fit dimension {dim} of size {x.shape[d]}"
        )
    return d, lo, lo + length


def _narrow(x: Type, *, dim: int, start: int, length: int) -> Type:
    d, lo, hi = _narrow_bounds(x, dim=dim, start=start, length=length)
    return Type(x.dtype, (*x.shape[:d], hi - lo, *x.shape[d + 1 :]))


composite(
    "narrow",
    _narrow,
    lambda b, x, **attrs: b.slice(x, **part(x.type.shape, *_narrow_bounds(x.type, **attrs))),
    _padded_grad(_narrow_bounds),
    samples=lambda: [
        Sample((f32(5, 2),), {"dim": 0, "start": 1, "length": 3}),
        Sample((f32(2, 5),), {"dim": -1, "start": -2, "length": 2}),
        Sample((f32(3),), {"dim": 0, "start": 3, "length": 0}),
    ],
    unview=lambda b, base, new, **attrs: b.slice_put(
        base, new, **part(base.type.shape, *_narrow_bounds(base.type, **attrs))
    ),
    grad_name="SliceBackward0",
    doc="`length` positions of one dimension.",
)

# --- diagonals ------------------------------------------------------------------------------------


def _diagonal_plan(
    x: Type, offset: int, dim1: int, dim2: int
) -> tuple[tuple[int, ...], int, dict[str, Any], Shape]:
    """(dims with the two last, length, slice of the flattened matrix, lead shape): a diagonal is every
    (m+1)th element."""
    if x.rank < 2:
        raise OpError(f"expected at least 2 dimensions, got {x}")
    i, j = axis(dim1, x.rank), axis(dim2, x.rank)
    if i == j:
        raise OpError(f"dim1 and dim2 are the same dimension {dim1}")
    dims = (*(d for d in range(x.rank) if d not in (i, j)), i, j)
    n, m = x.shape[i], x.shape[j]
    row, col = max(-offset, 0), max(offset, 0)
    length = max(min(n - row, m - col), 0)
    start = row * m + col if length else 0
    stop = start + (length - 1) * (m + 1) + 1 if length else 0
    lead = tuple(x.shape[d] for d in dims[:-2])
    return dims, length, part((*lead, n * m), len(lead), start, stop, m + 1), lead


def _diagonal(x: Type, *, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Type:
    _, length, _, lead = _diagonal_plan(x, offset, dim1, dim2)
    return Type(x.dtype, (*lead, length))


def _diagonal_of(b: Any, x: Any, *, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    dims, _, where, lead = _diagonal_plan(x.type, offset, dim1, dim2)
    return b.slice(b.reshape(b.permute(x, dims=dims), shape=(*lead, where_size(x.type, dims))), **where)


def where_size(x: Type, dims: tuple[int, ...]) -> int:
    return x.shape[dims[-2]] * x.shape[dims[-1]]


def _diagonal_unview(b: Any, base: Any, new: Any, *, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    dims, _, where, lead = _diagonal_plan(base.type, offset, dim1, dim2)
    moved = b.permute(base, dims=dims)
    flat = b.slice_put(b.reshape(moved, shape=(*lead, where_size(base.type, dims))), new, **where)
    back = tuple(dims.index(d) for d in range(len(dims)))
    return b.permute(b.reshape(flat, shape=moved.type.shape), dims=back)


composite(
    "diagonal",
    _diagonal,
    _diagonal_of,
    lambda b, n, g: (
        _diagonal_unview(b, b.full(shape=n.type(0).shape, value=0.0, dtype=g.type.dtype), g, **n.attrs),
    ),
    samples=lambda: [
        Sample((f32(3, 4),)),
        Sample((f32(4, 3),), {"offset": -2}),
        Sample((f32(2, 3, 4),), {"offset": 1, "dim1": -1, "dim2": 0}),
        Sample((f32(2, 3),), {"offset": 5}),
    ],
    unview=_diagonal_unview,
    doc="The diagonal of two dimensions, as the last one.",
)


def _diag_embed(x: Type, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Type:
    if x.rank == 0:
        raise OpError("expected at least 1 dimension")
    i, j = axis(dim1, x.rank + 1), axis(dim2, x.rank + 1)
    if i == j:
        raise OpError(f"dim1 and dim2 are the same dimension {dim1}")
    n = x.shape[-1] + abs(offset)
    lead = iter(x.shape[:-1])
    return Type(x.dtype, (n if d in (i, j) else next(lead) for d in range(x.rank + 1)))


composite(
    "diag_embed",
    _diag_embed,
    lambda b, x, *, offset=0, dim1=-2, dim2=-1: _diagonal_unview(
        b,
        b.full(
            shape=_diag_embed(x.type, offset=offset, dim1=dim1, dim2=dim2).shape, value=0, dtype=x.type.dtype
        ),
        x,
        offset=offset,
        dim1=dim1,
        dim2=dim2,
    ),
    lambda b, n, g: (b.diagonal(g, offset=n.attr("offset"), dim1=n.attr("dim1"), dim2=n.attr("dim2")),),
    samples=lambda: [
        Sample((f32(3),)),
        Sample((f32(2, 3),), {"offset": 1, "dim1": 0}),
        Sample((f32(2),), {"offset": -1}),
    ],
    doc="A matrix with the last dimension on its diagonal.",
)
