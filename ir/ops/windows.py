"""Windows that slide over the last dimensions, and the sum that undoes them: what convolutions and pools are
made of. `windows` only changes indices, so no copy of the overlapping windows is ever made by itself.

PyTorch's `unfold` and `fold` (im2col, col2im) and `Tensor.unfold` are composites of the two.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..errors import OpError
from ..expr import EXPR_SCALAR as S
from ..expr import Const
from ..op import Op, Piece, Sample, register
from ..types import Shape, Type
from .movement import both
from .records import I64, composite, f32
from .views import axis

Ints = tuple[int, ...]


def extent(size: int, dilation: int) -> int:
    """How many elements `size` taps, `dilation` apart, span."""
    return (size - 1) * dilation + 1


def check_window(size: Ints, stride: Ints, dilation: Ints) -> None:
    """Raises OpError unless all three are tuples of n positive ints."""
    for what, v in (("size", size), ("stride", stride), ("dilation", dilation)):
        if not isinstance(v, tuple) or len(v) != len(size):
            raise OpError(f"{what} must be a tuple of {len(size)} ints, got {v!r}")
        if any(not isinstance(k, int) or k < 1 for k in v):
            raise OpError(f"{what} must be positive, got {v}")


def counts(spatial: Shape, size: Ints, stride: Ints, dilation: Ints) -> Shape:
    """How many windows fit along each dimension, 0 where one is longer than the dimension."""
    return tuple(max((n - extent(k, d)) // s + 1, 0) for n, k, s, d in zip(spatial, size, stride, dilation))


# --- windows ----------------------------------------------------------------------------------------


def _windows(x: Type, *, size: Ints, stride: Ints, dilation: Ints) -> Type:
    check_window(size, stride, dilation)
    n = len(size)
    if x.rank < n:
        raise OpError(f"expected at least {n} dimensions for windows of {n}, got {x}")
    lead, spatial = x.shape[: x.rank - n], x.shape[x.rank - n :]
    out = counts(spatial, size, stride, dilation)
    if 0 in out:
        raise OpError(f"a window of {list(size)} (dilation {list(dilation)}) does not fit {list(spatial)}")
    return Type(x.dtype, (*lead, *size, *out))


def _windows_numpy(x: np.ndarray, *, size: Ints, stride: Ints, dilation: Ints) -> np.ndarray:
    n = len(size)
    lead = x.ndim - n
    out = counts(x.shape[lead:], size, stride, dilation)
    steps = x.strides[lead:]
    taps = tuple(s * d for s, d in zip(steps, dilation))
    strides = (*x.strides[:lead], *taps, *(s * k for s, k in zip(steps, stride)))
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:lead], *size, *out), strides, writeable=False)


def _windows_pull(
    index: Any, in_types: Any, out_type: Type, read: Any, *, size: Ints, stride: Ints, dilation: Ints
) -> list[Piece]:
    n = len(size)
    lead = len(index) - 2 * n
    taps, places = index[lead : lead + n], index[lead + n :]
    inner = tuple(o * s + k * d for k, o, s, d in zip(taps, places, stride, dilation))
    return [Piece(0, (*index[:lead], *inner))]


def _windows_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    x, size = n.type(0), n.attrs["size"]
    return (
        b.windows_sum(
            g, size=x.shape[x.rank - len(size) :], stride=n.attrs["stride"], dilation=n.attrs["dilation"]
        ),
    )


def _attrs(size: Ints, stride: Ints, dilation: Ints) -> dict[str, Any]:
    return {"size": size, "stride": stride, "dilation": dilation}


register(
    Op(
        "windows",
        _windows,
        kernel="movement",
        numpy=_windows_numpy,
        pull=_windows_pull,
        grad=_windows_grad,
        samples=lambda: [
            Sample((f32(2, 7),), _attrs((3,), (1,), (1,))),
            Sample((f32(2, 3, 6, 5),), _attrs((3, 2), (2, 1), (1, 2))),
            Sample((f32(6, 6),), _attrs((2, 2), (2, 2), (1, 1))),
            Sample((f32(4),), _attrs((1,), (3,), (1,))),
            Sample((f32(0, 4),), _attrs((2,), (1,), (1,))),
            Sample((f32(2, 3, 4, 3),), _attrs((2, 2, 1), (1, 2, 1), (1, 1, 1))),
        ],
        grad_name="UnfoldBackward0",
        doc="[..., S...] as [..., K..., O...]: out[..., k, o] = x[..., o * stride + k * dilation].",
    )
)

# --- the terms of the sum over windows --------------------------------------------------------------


def _split(t: Type, n: int) -> tuple[Shape, Shape, Shape]:
    """(leading dimensions, taps, places) of a type with n of either of the latter."""
    if t.rank < 2 * n:
        raise OpError(f"expected at least {2 * n} dimensions [..., K..., O...], got {t}")
    lead = t.rank - 2 * n
    return t.shape[:lead], t.shape[lead : lead + n], t.shape[lead + n :]


def _check_sum(g: Type, size: Ints, stride: Ints, dilation: Ints) -> tuple[Shape, Shape, Shape]:
    check_window(stride, stride, dilation)
    if not isinstance(size, tuple) or len(size) != len(stride):
        raise OpError(f"size must be a tuple of {len(stride)} ints, got {size!r}")
    lead, taps, places = _split(g, len(size))
    for s, k, o, st, d in zip(size, taps, places, stride, dilation):
        if k == 0 or (o - 1) * st + extent(k, d) > s:
            raise OpError(f"{o} windows of {k} (stride {st}, dilation {d}) do not fit size {s}")
    return lead, taps, places


def _terms(g: Type, *, size: Ints, stride: Ints, dilation: Ints) -> Type:
    lead, taps, _ = _check_sum(g, size, stride, dilation)
    return Type(g.dtype, (*lead, *taps, *size))


def _places(shape: Shape, taps: Shape, stride: Ints, dilation: Ints) -> tuple[Any, ...]:
    """NumPy's index of (tap, position) pairs that window elements take."""
    lead, n = len(shape) - 2 * len(taps), len(taps)
    axes = np.ogrid[tuple(slice(m) for m in shape)]
    k, o = axes[lead : lead + n], axes[lead + n :]
    return (*axes[: lead + n], *(i * s + j * d for i, j, s, d in zip(o, k, stride, dilation)))


def _terms_numpy(g: np.ndarray, *, size: Ints, stride: Ints, dilation: Ints) -> np.ndarray:
    n = len(size)
    lead = g.ndim - 2 * n
    taps = g.shape[lead : lead + n]
    out = np.zeros((*g.shape[:lead], *taps, *size), g.dtype)
    out[_places(g.shape, taps, stride, dilation)] = g
    return out


def _terms_pull(
    index: Any, in_types: Any, out_type: Type, read: Any, *, size: Ints, stride: Ints, dilation: Ints
) -> list[Piece]:
    n = len(size)
    lead, _, places = _split(in_types[0], n)
    taps = index[len(lead) : len(lead) + n]
    where, inner = None, []
    for k, s, o, st, d in zip(taps, index[len(lead) + n :], places, stride, dilation):
        at = s - k * d
        where = both(where, S.ge(at, Const(0)))
        where = both(where, S.lt(at, Const((o - 1) * st + 1)))
        if st > 1:
            where = both(where, S.eq(at % st, Const(0)))
        inner.append(at // st)
    return [Piece(0, (*index[: len(lead) + n], *inner), where)]


def _terms_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    _, _, places = _split(n.type(0), len(n.attrs["size"]))
    return (b.window_picks(g, size=places, stride=n.attrs["stride"], dilation=n.attrs["dilation"]),)


register(
    Op(
        "window_terms",
        _terms,
        kernel="movement",
        numpy=_terms_numpy,
        pull=_terms_pull,
        grad=_terms_grad,
        samples=lambda: [
            Sample((f32(2, 3, 5),), _attrs((7,), (1,), (1,))),
            Sample((f32(3, 2, 2, 4),), _attrs((7, 6), (2, 1), (2, 2))),
            Sample((f32(2, 3),), _attrs((9,), (3,), (1,))),
            Sample((f32(0, 2, 2),), _attrs((4,), (2,), (1,))),
        ],
        doc="[..., K..., O...] as [..., K..., S...]: element (k, o) at (k, o * stride + k * dilation), zeros "
        "elsewhere.",
    )
)


def _picks(t: Type, *, size: Ints, stride: Ints, dilation: Ints) -> Type:
    check_window(stride, stride, dilation)
    lead, taps, spatial = _split(t, len(stride))
    _check_sum(Type(t.dtype, (*lead, *taps, *size)), spatial, stride, dilation)
    return Type(t.dtype, (*lead, *taps, *size))


def _picks_numpy(t: np.ndarray, *, size: Ints, stride: Ints, dilation: Ints) -> np.ndarray:
    n = len(size)
    lead = t.ndim - 2 * n
    taps = t.shape[lead : lead + n]
    return t[_places((*t.shape[: lead + n], *size), taps, stride, dilation)]


def _picks_pull(
    index: Any, in_types: Any, out_type: Type, read: Any, *, size: Ints, stride: Ints, dilation: Ints
) -> list[Piece]:
    n = len(size)
    lead = len(index) - 2 * n
    taps, places = index[lead : lead + n], index[lead + n :]
    inner = tuple(o * s + k * d for k, o, s, d in zip(taps, places, stride, dilation))
    return [Piece(0, (*index[: lead + n], *inner))]


def _picks_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    _, _, spatial = _split(n.type(0), len(n.attrs["size"]))
    return (b.window_terms(g, size=spatial, stride=n.attrs["stride"], dilation=n.attrs["dilation"]),)


register(
    Op(
        "window_picks",
        _picks,
        kernel="movement",
        numpy=_picks_numpy,
        pull=_picks_pull,
        grad=_picks_grad,
        samples=lambda: [
            Sample((f32(2, 3, 7),), _attrs((5,), (1,), (1,))),
            Sample((f32(3, 2, 7, 6),), _attrs((2, 4), (2, 1), (2, 2))),
            Sample((f32(2, 9),), _attrs((3,), (3,), (1,))),
        ],
        doc="The elements of [..., K..., S...] that `window_terms` writes, as [..., K..., O...].",
    )
)

# --- the sum ----------------------------------------------------------------------------------------


def _sum(g: Type, *, size: Ints, stride: Ints, dilation: Ints) -> Type:
    lead, _, _ = _check_sum(g, size, stride, dilation)
    return Type(g.dtype, (*lead, *size))


def _sum_of(b: Any, g: Any, *, size: Ints, stride: Ints, dilation: Ints) -> Any:
    """Where windows step by s > 1 the taps are s interleaved sets, tap j*s + r of place o going to position
    (o + j)*s + r: the sum is over j alone, and needs no division."""
    n = len(size)
    lead, taps, places = _check_sum(g.type, size, stride, dilation)
    at = len(lead)
    sets = [s if s > 1 and (d == 1 or k == 1) else 1 for s, d, k in zip(stride, dilation, taps)]
    shared = tuple(-(-k // r) for k, r in zip(taps, sets))
    rank = g.type.rank
    high = [0] * rank
    for i in range(n):
        high[at + i] = shared[i] * sets[i] - taps[i]
    g = b.pad(g, low=(0,) * rank, high=tuple(high), value=0.0 if g.type.dtype.kind == "f" else 0)
    pairs = tuple(m for j, r in zip(shared, sets) for m in (j, r))
    g = b.reshape(g, shape=(*lead, *pairs, *places))
    order = (*range(at), *(at + 2 * i + 1 for i in range(n)), *(at + 2 * i for i in range(n)))
    g = b.permute(g, dims=(*order, *range(at + 2 * n, at + 3 * n)))
    inner = tuple(o + j - 1 if r > 1 else s for o, j, r, s in zip(places, shared, sets, size))
    step = tuple(1 if r > 1 else s for r, s in zip(sets, stride))
    gap = tuple(1 if r > 1 else d for r, d in zip(sets, dilation))
    g = b.window_terms(g, size=inner, stride=step, dilation=gap)
    g = b.sum(g, axes=tuple(range(at + n, at + 2 * n)))
    back = (*range(at), *(d for i in range(n) for d in (at + n + i, at + i)))
    g = b.reshape(b.permute(g, dims=back), shape=(*lead, *(q * r for q, r in zip(inner, sets))))
    return fitted(b, g, (0,) * n, size)


def fitted(b: Any, x: Any, low: Ints, size: Shape, value: float = 0.0) -> Any:
    """The last dimensions padded by `low` before (cropped where negative) and to `size` in all."""
    n = len(size)
    lead = x.type.rank - n
    shape = x.type.shape[lead:]
    cut = tuple(max(-lo, 0) for lo in low)
    keep = tuple(min(c + m - max(lo, 0), s) for c, m, lo, s in zip(cut, size, low, shape))
    if any(c > k for c, k in zip(cut, keep)):  # nothing of x is left
        cut, keep = (0,) * n, (0,) * n
    full = x.type.shape[:lead]
    x = b.slice(x, start=(*(0,) * lead, *cut), stop=(*full, *keep), step=(1,) * (lead + n))
    front = tuple(max(lo, 0) for lo in low)
    after = tuple(m - lo - (k - c) for m, lo, k, c in zip(size, front, keep, cut))
    fill = value if x.type.dtype.kind == "f" else int(value)
    return b.pad(x, low=(*(0,) * lead, *front), high=(*(0,) * lead, *after), value=fill)


def _sum_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    _, taps, places = _split(n.type(0), len(n.attrs["size"]))
    stride, dilation = n.attrs["stride"], n.attrs["dilation"]
    used = tuple((o - 1) * s + extent(k, d) for o, s, k, d in zip(places, stride, taps, dilation))
    g = fitted(b, g, (0,) * len(taps), used)
    return (b.windows(g, size=taps, stride=stride, dilation=dilation),)


composite(
    "windows_sum",
    _sum,
    _sum_of,
    _sum_grad,
    samples=lambda: [
        Sample((f32(2, 3, 5),), _attrs((7,), (1,), (1,))),
        Sample((f32(3, 3, 2, 4),), _attrs((7, 9), (2, 2), (1, 1))),
        Sample((f32(3, 2, 2, 4),), _attrs((7, 6), (2, 1), (2, 2))),
        Sample((f32(2, 2, 2, 3),), _attrs((5, 6), (2, 2), (1, 1))),
        Sample((f32(2, 3),), _attrs((12,), (3,), (1,))),
        Sample((f32(1, 1, 2, 2),), _attrs((4, 5), (3, 2), (1, 1))),
        Sample((f32(0, 2, 2),), _attrs((4,), (2,), (1,))),
    ],
    grad_name="FoldBackward0",
    doc="[..., K..., O...] as [..., S...]: every position's sum over the windows it is in; the transpose of "
    "`windows`.",
)

# --- im2col, col2im, Tensor.unfold ------------------------------------------------------------------


def padded_counts(spatial: Shape, size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Shape:
    """`counts` with `padding` elements added on either side; raises OpError where no window fits."""
    if not isinstance(padding, tuple) or len(padding) != len(size) or any(p < 0 for p in padding):
        raise OpError(f"padding must be a tuple of {len(size)} ints >= 0, got {padding!r}")
    check_window(size, stride, dilation)
    out = counts(tuple(n + 2 * p for n, p in zip(spatial, padding)), size, stride, dilation)
    if 0 in out:
        raise OpError(
            f"the kernel {list(size)} (dilation {list(dilation)}) is larger than the padded input "
            f"{[n + 2 * p for n, p in zip(spatial, padding)]}; pad more or use a smaller kernel"
        )
    return out


def _im2col(x: Type, *, size: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Type:
    n = len(size)
    if x.rank < n + 1:
        raise OpError(f"expected [..., C, {'S, ' * n}] with {n} spatial dimensions, got {x}")
    lead = x.shape[: x.rank - n]
    out = padded_counts(x.shape[x.rank - n :], size, stride, padding, dilation)
    return Type(x.dtype, (*lead[:-1], lead[-1] * prod(size), prod(out)))


def _im2col_of(b: Any, x: Any, *, size: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Any:
    spatial = x.type.shape[x.type.rank - len(size) :]
    out = _im2col(x.type, size=size, dilation=dilation, padding=padding, stride=stride).shape
    x = fitted(b, x, padding, tuple(n + 2 * p for n, p in zip(spatial, padding)))
    return b.reshape(b.windows(x, size=size, stride=stride, dilation=dilation), shape=out)


def _col2im(g: Type, *, output: Ints, size: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Type:
    if g.rank < 2 or len(output) != len(size):
        raise OpError(f"expected [..., C * taps, places] and {len(size)} output sizes, got {g}, {output}")
    out = padded_counts(output, size, stride, padding, dilation)
    taps = prod(size)
    if g.shape[-2] % taps:
        raise OpError(f"dimension -2 is {g.shape[-2]}, which the kernel's {taps} taps do not divide")
    if g.shape[-1] != prod(out):
        raise OpError(
            f"output {list(output)} has {' x '.join(map(str, out))} = {prod(out)} windows, but dimension -1 "
            f"is {g.shape[-1]}"
        )
    return Type(g.dtype, (*g.shape[:-2], g.shape[-2] // taps, *output))


def _col2im_of(
    b: Any, g: Any, *, output: Ints, size: Ints, dilation: Ints, padding: Ints, stride: Ints
) -> Any:
    out = padded_counts(output, size, stride, padding, dilation)
    lead = (*g.type.shape[:-2], g.type.shape[-2] // prod(size))
    g = b.reshape(g, shape=(*lead, *size, *out))
    whole = tuple(n + 2 * p for n, p in zip(output, padding))
    g = b.windows_sum(g, size=whole, stride=stride, dilation=dilation)
    return fitted(b, g, tuple(-p for p in padding), output)


_FOLD = {"size": (2, 3), "dilation": (1, 2), "padding": (0, 1), "stride": (2, 1)}

composite(
    "im2col",
    _im2col,
    _im2col_of,
    lambda b, n, g: (
        b.col2im(g, output=n.type(0).shape[n.type(0).rank - len(n.attrs["size"]) :], **n.attrs),
    ),
    samples=lambda: [
        Sample((f32(2, 3, 4, 5),), _FOLD),
        Sample((f32(3, 4, 4),), {"size": (2, 2), "dilation": (1, 1), "padding": (0, 0), "stride": (1, 1)}),
    ],
    grad_name="Im2ColBackward0",
    doc="Every window as a column: [..., C, S...] as [..., C * taps, places] (PyTorch's unfold).",
)
composite(
    "col2im",
    _col2im,
    _col2im_of,
    lambda b, n, g: (b.im2col(g, **{k: v for k, v in n.attrs.items() if k != "output"}),),
    samples=lambda: [
        Sample((f32(2, 18, 6),), {"output": (4, 5), **_FOLD}),
        Sample(
            (f32(8, 9),),
            {"output": (4, 4), "size": (2, 2), "dilation": (1, 1), "padding": (0, 0), "stride": (1, 1)},
        ),
    ],
    grad_name="Col2ImBackward0",
    doc="Columns summed up where their windows overlap: the transpose of im2col (PyTorch's fold).",
)


def _unfold(x: Type, *, dim: int, size: int, step: int) -> Type:
    d = axis(dim, x.rank)
    n = x.shape[d] if x.rank else 1
    if not 0 <= size <= n:
        raise OpError(f"maximum size for a window of dimension {dim} is {n}, got {size}")
    if step < 1:
        raise OpError(f"step must be positive, got {step}")
    if not x.rank:
        return Type(x.dtype, (size,))
    return Type(x.dtype, (*x.shape[:d], (n - size) // step + 1, *x.shape[d + 1 :], size))


def _unfold_of(b: Any, x: Any, *, dim: int, size: int, step: int) -> Any:
    t = _unfold(x.type, dim=dim, size=size, step=step)
    if not size:
        return b.full(shape=t.shape, value=0, dtype=t.dtype)
    rank = max(x.type.rank, 1)
    x = b.reshape(x, shape=(1,)) if not x.type.rank else x
    d = axis(dim, rank)
    moved = b.permute(x, dims=(*(i for i in range(rank) if i != d), d))
    made = b.windows(moved, size=(size,), stride=(step,), dilation=(1,))  # [others, size, places]
    made = b.permute(made, dims=(*range(d), rank, *range(d, rank)))
    return b.reshape(made, shape=t.shape)


def _unfold_unview(b: Any, base: Any, new: Any, *, dim: int, size: int, step: int) -> Any:
    rank = base.type.rank
    if not rank or size == 0:
        return b.reshape(new, shape=base.type.shape) if size else base
    if step < size and new.type.shape[axis(dim, rank)] > 1:
        raise OpError("can't write through overlapping windows, elements are one in memory; clone() it first")
    d = axis(dim, rank)
    others = tuple(i for i in range(rank) if i != d)
    places = new.type.shape[d]
    at = tuple(o * step + k for o in range(places) for k in range(size))
    lead = tuple(base.type.shape[i] for i in others)
    rows = b.reshape(b.permute(new, dims=(*others, d, rank)), shape=(*lead, len(at)))
    moved = b.permute(base, dims=(*others, d))
    put = b.index_put(moved, rows, b.constant(value=at, dtype=I64, shape=(len(at),)), dims=(rank - 1,))
    return b.permute(put, dims=tuple((*others, d).index(i) for i in range(rank)))


def _unfold_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    x, size, step = n.type(0), n.attrs["size"], n.attrs["step"]
    if not x.rank or not size:
        return (b.reshape(g, shape=()) if size else b.full(shape=x.shape, value=0.0, dtype=g.type.dtype),)
    d = axis(n.attrs["dim"], x.rank)
    others = tuple(i for i in range(x.rank) if i != d)
    rows = b.permute(g, dims=(*others, x.rank, d))
    made = b.windows_sum(rows, size=(x.shape[d],), stride=(step,), dilation=(1,))
    return (b.permute(made, dims=tuple((*others, d).index(i) for i in range(x.rank))),)


composite(
    "unfold",
    _unfold,
    _unfold_of,
    _unfold_grad,
    samples=lambda: [
        Sample((f32(7, 3),), {"dim": 0, "size": 2, "step": 2}),
        Sample((f32(2, 5),), {"dim": -1, "size": 2, "step": 3}),
        Sample((f32(2, 5, 3),), {"dim": 1, "size": 3, "step": 3}),
        Sample((f32(),), {"dim": 0, "size": 1, "step": 1}),
    ],
    unview=_unfold_unview,
    doc="Windows of `size` elements every `step` along `dim`, as a new last dimension.",
)
