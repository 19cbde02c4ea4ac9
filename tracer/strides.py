"""Where the elements of a view lie in its storage, as PyTorch has it: strides and offset, from the chain of
view ops.

Programs don't need this (the graph has no strides). It decides what users can observe: whether `reshape`
and `contiguous` share memory or copy, where `view` is an error, and `stride()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .meta import View

Ints = tuple[int, ...]
#: (shape, strides, offset), in elements.
Layout = tuple[Ints, Ints, int]


def row_major(shape: Ints) -> Ints:
    """Strides of contiguous contents."""
    strides, n = [], 1
    for d in reversed(shape):
        strides.append(n)
        n *= max(d, 1)
    return tuple(reversed(strides))


def is_row_major(shape: Ints, strides: Ints) -> bool:
    """Whether elements lie one after the other in row-major order; strides of extents of 1 don't count."""
    if 0 in shape:
        return True
    return all(n == 1 or s == r for n, s, r in zip(shape, strides, row_major(shape)))


def regrouped(shape: Ints, strides: Ints, new: Ints) -> Ints | None:
    """Strides of the same elements in another shape, or None where only a copy has it.

    Dimensions that lie together (each stride is the next one's times its extent) form chunks; every chunk
    must be a product of new dimensions.
    """
    if 0 in shape:
        return row_major(new)
    out: list[int] = []
    d = len(new) - 1
    chunk = 1
    base = strides[-1] if strides else 1
    for i in range(len(shape) - 1, -1, -1):
        chunk *= shape[i]
        if i and (shape[i - 1] == 1 or strides[i - 1] == chunk * base):
            continue
        done = 1
        while d >= 0 and (done < chunk or new[d] == 1):
            out.append(done * base)
            done *= new[d]
            d -= 1
        if done != chunk:
            return None
        if i:
            base, chunk = strides[i - 1], 1
    while d >= 0:  # a scalar seen in dimensions of 1
        out.append(base)
        d -= 1
    return tuple(reversed(out))


def _picked(layout: Layout, dims: Any) -> Layout:
    shape, strides, offset = layout
    return tuple(shape[d] for d in dims), tuple(strides[d] for d in dims), offset


def _swapped(layout: Layout, dim0: int, dim1: int) -> Layout:
    order = list(range(len(layout[0])))
    if not order:
        return layout
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _picked(layout, order)


def _unsqueeze(layout: Layout, dim: int) -> Layout:
    shape, strides, offset = layout
    stride = shape[dim] * strides[dim] if dim < len(shape) else 1
    return (*shape[:dim], 1, *shape[dim:]), (*strides[:dim], stride, *strides[dim:]), offset


def _expand(layout: Layout, shape: Ints) -> Layout:
    old, strides, offset = layout
    extra = len(shape) - len(old)
    kept = tuple(0 if n != m else s for n, m, s in zip(old, shape[extra:], strides))
    return shape, (0,) * extra + kept, offset


def _slice(layout: Layout, start: Ints, stop: Ints, step: Ints) -> Layout:
    _, strides, offset = layout
    shape = tuple(max(0, -(-(b - a) // k)) for a, b, k in zip(start, stop, step))
    offset += sum(a * s for a, s in zip(start, strides))
    return shape, tuple(s * k for s, k in zip(strides, step)), offset


def _select(layout: Layout, dim: int, index: int) -> Layout:
    shape, strides, offset = layout
    rest = [d for d in range(len(shape)) if d != dim % len(shape)]
    at = offset + (index % shape[dim]) * strides[dim]
    return (*_picked(layout, rest)[:2], at)


def _diagonal(layout: Layout, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Layout:
    shape, strides, at = layout
    a, b = dim1 % len(shape), dim2 % len(shape)
    length = max(0, min(shape[a] + min(offset, 0), shape[b] - max(offset, 0)))
    if length:
        at += max(-offset, 0) * strides[a] + max(offset, 0) * strides[b]
    rest = [d for d in range(len(shape)) if d not in (a, b)]
    kept = _picked(layout, rest)
    return (*kept[0], length), (*kept[1], strides[a] + strides[b]), at


def _squeeze(layout: Layout, dims: Any = None) -> Layout:
    named = range(len(layout[0])) if dims is None else (dims,) if isinstance(dims, int) else dims
    return _picked(layout, [d for d, n in enumerate(layout[0]) if d not in named or n != 1])


def _view(layout: Layout, shape: Ints) -> Layout:
    strides = regrouped(layout[0], layout[1], shape)
    assert strides is not None  # `view` is not recorded otherwise
    return shape, strides, layout[2]


def _unfold(layout: Layout, dim: int, size: int, step: int) -> Layout:
    shape, strides, offset = layout
    if not shape:
        return (size,), (1,), offset
    count = (shape[dim] - size) // step + 1
    return (
        (*shape[:dim], count, *shape[dim + 1 :], size),
        (*strides[:dim], strides[dim] * step, *strides[dim + 1 :], strides[dim]),
        offset,
    )


_STEPS: dict[str, Callable[..., Layout]] = {
    "alias": lambda layout: layout,
    "detach": lambda layout: layout,
    "permute": _picked,
    "transpose": _swapped,
    "t": lambda layout: _picked(layout, range(len(layout[0]) - 1, -1, -1)),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "diagonal": _diagonal,
    "view": _view,
    "as_strided": lambda layout, size, stride, offset=0: (size, stride, offset),
    "unfold": _unfold,
}


def layout_of(shape: Ints, view: View | None) -> Layout:
    """The layout of a view of contiguous contents of the given shape."""
    layout: Layout = (shape, row_major(shape), 0)
    for op, attrs in view or ():
        layout = _STEPS[op.name](layout, **attrs)
    return layout
