"""Pools: extrema and means over windows, at regular or adaptive places, and the inverse of max pooling.

All take `[..., S...]` with as many spatial dimensions S as their attributes have entries. Positions are i64
and count within the spatial dimensions, row-major, as PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product
from math import prod
from typing import Any

from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Shape, Type
from .indexing import check_index
from .records import I32, I64, NUMERIC, check_float, check_kind, composite, f32, i64, widen
from .windows import Ints, check_window, extent, fitted

#: windows of up to this many taps are compared tap by tap, with lanes along the result
UNROLLED = 32

# --- sizes ------------------------------------------------------------------------------------------


def pooled_counts(
    spatial: Shape, size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool
) -> Shape:
    """How many windows there are along each dimension. With `ceil` a last one may stick out, if it starts
    inside the input or its padding before."""
    check_window(size, stride, dilation)
    if not isinstance(padding, tuple) or len(padding) != len(size):
        raise OpError(f"padding must be a tuple of {len(size)} ints, got {padding!r}")
    out = []
    for n, k, s, p, d in zip(spatial, size, stride, padding, dilation):
        if not 0 <= 2 * p <= extent(k, d):
            raise OpError(f"padding should be at most half of the kernel {k} (dilation {d}), got {p}")
        room = n + 2 * p - extent(k, d)
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= n + p:
            count -= 1
        if count < 1:
            raise OpError(
                f"the kernel {list(size)} (dilation {list(dilation)}) does not fit the input {list(spatial)} "
                f"padded by {list(padding)}; the result would be empty"
            )
        out.append(count)
    return tuple(out)


def _spatial(x: Type, n: int) -> tuple[Shape, Shape]:
    if x.rank < n + 1:
        raise OpError(f"expected [N, C, S...] or [C, S...] with {n} spatial dimensions, got {x}")
    shape = x.shape[x.rank - n :]
    if 0 in shape or x.shape[x.rank - n - 1] == 0:
        raise OpError(f"expected channels and spatial dimensions that are not empty, got {x}")
    return x.shape[: x.rank - n], shape


def _framed(
    b: Any, x: Any, out: Shape, size: Ints, stride: Ints, padding: Ints, dilation: Ints, fill: Any
) -> Any:
    """`x` with just the elements that its windows cover, padding included."""
    used = tuple((o - 1) * s + extent(k, d) for o, s, k, d in zip(out, stride, size, dilation))
    return fitted(b, x, padding, used, fill)


def _numbered(name: str) -> Callable[[Any], str]:
    """PyTorch's names have the number of dimensions in them."""
    return lambda node: name.replace("#", str(len(node.attrs["size"])))


# --- max --------------------------------------------------------------------------------------------


def _max_infer(
    x: Type, *, size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> tuple[Type, Type, Type]:
    check_kind(x.dtype, NUMERIC)
    lead, spatial = _spatial(x, len(size))
    shape = (*lead, *pooled_counts(spatial, size, stride, padding, dilation, ceil_mode))
    return Type(x.dtype, shape), Type(I64, shape), Type(I32, shape)


def _lowest(t: Type) -> float:
    if t.dtype.kind == "f":
        return float("-inf")
    return 0 if t.dtype.kind == "u" else -(1 << (t.dtype.bits - 1))


def _iota(b: Any, n: int, dim: int, rank: int) -> Any:
    """0 ... n-1 along dimension `dim` of `rank`, to broadcast."""
    return b.iota(shape=tuple(n if d == dim else 1 for d in range(rank)), dim=dim, dtype=I64)


def _number(b: Any, k: int) -> Any:
    return b.const(k, I64)


def _positions(b: Any, tap: Any, size: Ints, spatial: Shape, place: Callable[[int, Any], Any]) -> Any:
    """Flat positions of the taps with the given numbers; `place(dim, tap)` is the one along a dimension."""
    tap = b.cast_to(tap, I64)
    position = None
    below = prod(size)
    for d, (k, m) in enumerate(zip(size, spatial)):
        below //= k
        mine = b.floor_divide(tap, _number(b, below)) if below > 1 else tap
        mine = b.remainder(mine, _number(b, k)) if d else mine
        at = place(d, mine)
        position = at if position is None else b.add(b.mul(position, _number(b, m)), at)
    return position


def _first_taps(
    b: Any, out: Shape, size: Ints, stride: Ints, padding: Ints, dilation: Ints, rank: int
) -> Any:
    """The number of each window's first tap that is not padding."""
    total = None
    below = prod(size)
    for d, (o, k) in enumerate(zip(out, size)):
        below //= k
        if not padding[d]:
            continue
        found = tuple(-(-max(padding[d] - i * stride[d], 0) // dilation[d]) * below for i in range(o))
        shape = tuple(o if e == rank - len(out) + d else 1 for e in range(rank))
        part = b.constant(value=found, dtype=I32, shape=shape)
        total = part if total is None else b.add(total, part)
    return b.const(0, I32) if total is None else total


def _max_pool(
    b: Any, x: Any, *, size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> tuple[Any, Any, Any]:
    """Tap after tap, each a strided slice, while a larger one or a NaN comes; many taps as a reduction."""
    n, rank = len(size), x.type.rank
    lead, spatial = _spatial(x.type, n)
    out = pooled_counts(spatial, size, stride, padding, dilation, ceil_mode)
    framed = _framed(b, x, out, size, stride, padding, dilation, _lowest(x.type))
    first = _first_taps(b, out, size, stride, padding, dilation, rank)
    if prod(size) <= UNROLLED:
        tap = b.expand(first, shape=(*lead, *out))
        values = None
        for k, v in enumerate(_tap_slices(b, framed, out, size, stride, dilation)):
            if values is None:
                values = v
                continue
            better = b.gt(v, values)
            if x.type.dtype.kind == "f":
                better = b.logical_or(better, b.ne(v, v))
            values = b.where(better, v, values)
            tap = b.where(better, b.const(k, I32), tap)
    else:
        w = b.windows(framed, size=size, stride=stride, dilation=dilation)
        flat = b.reshape(w, shape=(*lead, prod(size), *out))
        values = b.amax(flat, axes=(len(lead),))
        # Where nothing exceeds the padding's -inf the first element inside is meant.
        tap = b.maximum(b.cast(b.argmax(flat, dim=len(lead)), dtype=I32), first)

    def place(d: int, tap: Any) -> Any:
        start = b.sub(
            b.mul(_iota(b, out[d], rank - n + d, rank), _number(b, stride[d])), _number(b, padding[d])
        )
        return b.add(start, b.mul(tap, _number(b, dilation[d])))

    return values, _positions(b, tap, size, spatial, place), tap


def _max_grad(b: Any, n: Any, g: Any, *_: Any) -> tuple[Any, ...]:
    """Every window's gradient to the tap it chose: a sum over the windows an element is in, not a scatter."""
    size, stride, padding, dilation = (n.attr(k) for k in ("size", "stride", "padding", "dilation"))
    m, rank = len(size), n.type(0).rank
    spatial, out = n.type(0).shape[rank - m :], g.type.shape[rank - m :]
    one = (*g.type.shape[: rank - m], *(1,) * m, *out)
    taps = b.reshape(b.iota(shape=(prod(size),), dim=0, dtype=I32), shape=(*size, *(1,) * m))
    hit = b.eq(b.reshape(n.outs[2], shape=one), taps)
    spread = b.where(hit, b.reshape(g, shape=one), b.const(0, g))
    whole = tuple((o - 1) * s + extent(k, d) for o, s, k, d in zip(out, stride, size, dilation))
    summed = b.windows_sum(spread, size=whole, stride=stride, dilation=dilation)
    return (fitted(b, summed, tuple(-p for p in padding), spatial),)


def _attrs(
    size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> dict[str, Any]:
    return {"size": size, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}


composite(
    "max_pool",
    _max_infer,
    _max_pool,
    _max_grad,
    samples=lambda: [
        Sample((f32(2, 3, 6, 8),), _attrs((2, 2), (2, 2), (0, 0), (1, 1))),
        Sample((f32(1, 2, 7, 6),), _attrs((3, 3), (2, 1), (1, 1), (1, 2))),
        Sample((f32(2, 5, 7),), _attrs((3, 2), (2, 3), (1, 0), (1, 1), True)),
        Sample((f32(2, 9),), _attrs((4,), (1,), (2,), (1,))),
        Sample((f32(1, 1, 4, 4, 4),), _attrs((2, 2, 2), (2, 1, 2), (0, 1, 0), (1, 1, 1))),
        Sample((i64(1, 6),), _attrs((2,), (2,), (1,), (1,)), (-9, 9), smooth=False),
    ],
    grad_name=_numbered("MaxPool#DWithIndicesBackward0"),
    doc="(maxima, positions, taps) over windows: the first of equals. Padding counts as -inf.",
)

# --- mean -------------------------------------------------------------------------------------------


def _avg_infer(
    x: Type,
    *,
    size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Type:
    check_float(x)
    lead, spatial = _spatial(x, len(size))
    if divisor_override == 0:
        raise OpError("divisor_override must not be zero")
    return Type(x.dtype, (*lead, *pooled_counts(spatial, size, stride, padding, (1,) * len(size), ceil_mode)))


def _tap_slices(b: Any, framed: Any, out: Shape, size: Ints, stride: Ints, dilation: Ints) -> Iterator[Any]:
    """What each tap sees of a padded input, [lead, O...]: strided slices."""
    lead = framed.type.shape[: framed.type.rank - len(size)]
    for at in product(*map(range, size)):
        start = (*(0,) * len(lead), *(i * d for i, d in zip(at, dilation)))
        stop = (*lead, *(i * d + (o - 1) * s + 1 for i, d, o, s in zip(at, dilation, out, stride)))
        yield b.slice(framed, start=start, stop=stop, step=(*(1,) * len(lead), *stride))


def _avg_pool(
    b: Any,
    x: Any,
    *,
    size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    n = len(size)
    lead, spatial = _spatial(x.type, n)
    ones = (1,) * n
    out = pooled_counts(spatial, size, stride, padding, ones, ceil_mode)
    framed = _framed(b, widen(b, x), out, size, stride, padding, ones, 0.0)
    if prod(size) <= UNROLLED:
        total = reduce(b.add, _tap_slices(b, framed, out, size, stride, ones))
    else:
        w = b.windows(framed, size=size, stride=stride, dilation=ones)
        total = b.sum(w, axes=tuple(range(len(lead), len(lead) + n)))
    counts = _divisors(spatial, out, size, stride, padding, count_include_pad, divisor_override)
    return b.cast_to(_divided(b, total, counts), x.type.dtype)


def _avg_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    size, stride, padding = n.attrs["size"], n.attrs["stride"], n.attrs["padding"]
    m = len(size)
    lead, spatial = _spatial(n.type(0), m)
    out = g.type.shape[len(lead) :]
    counts = _divisors(
        spatial, out, size, stride, padding, n.attr("count_include_pad"), n.attr("divisor_override")
    )
    g = b.reshape(_divided(b, widen(b, g), counts), shape=(*lead, *(1,) * m, *out))
    spread = b.expand(g, shape=(*lead, *size, *out))
    whole = tuple((o - 1) * s + k for o, s, k in zip(out, stride, size))
    summed = b.windows_sum(spread, size=whole, stride=stride, dilation=(1,) * m)
    return (fitted(b, summed, tuple(-p for p in padding), spatial),)


def _divisors(
    spatial: Shape, out: Shape, size: Ints, stride: Ints, padding: Ints, with_pad: bool, override: int | None
) -> list[tuple[int, ...]]:
    """What sums are divided by: for each dimension a number for each of its windows."""
    if override is not None:
        return [(override,)]
    shape = zip(spatial, out, size, stride, padding)
    return [_counted(m, o, k, s, p, with_pad) for m, o, k, s, p in shape]


def _counted(n: int, out: int, size: int, stride: int, padding: int, with_pad: bool) -> tuple[int, ...]:
    """How many elements of each window count."""
    found = []
    for o in range(out):
        start = o * stride - padding
        stop = min(start + size, n + padding)
        found.append(stop - start if with_pad else min(stop, n) - max(start, 0))
    return tuple(found)


def _divided(b: Any, x: Any, counts: list[tuple[int, ...]]) -> Any:
    """`x` over the products of the counts of its last dimensions."""
    even = prod(c[0] for c in counts if len(set(c)) == 1)
    x = x if even == 1 else b.div(x, b.const(even, x))
    for d, by in enumerate(counts, x.type.rank - len(counts)):
        if len(set(by)) > 1:
            shape = tuple(len(by) if e == d else 1 for e in range(x.type.rank))
            line = b.constant(value=tuple(float(k) for k in by), dtype=x.type.dtype, shape=shape)
            x = b.div(x, line)
    return x


def _avg_attrs(size: Ints, stride: Ints, padding: Ints, **more: Any) -> dict[str, Any]:
    return {"size": size, "stride": stride, "padding": padding, **more}


composite(
    "avg_pool",
    _avg_infer,
    _avg_pool,
    _avg_grad,
    samples=lambda: [
        Sample((f32(2, 3, 6, 8),), _avg_attrs((2, 2), (2, 2), (0, 0))),
        Sample((f32(2, 7, 6),), _avg_attrs((3, 3), (2, 1), (1, 1), count_include_pad=False)),
        Sample((f32(2, 3, 7),), _avg_attrs((3,), (2,), (1,), ceil_mode=True)),
        Sample((f32(2, 6, 7),), _avg_attrs((3, 4), (2, 3), (1, 2), ceil_mode=True, count_include_pad=False)),
        Sample((f32(1, 2, 4, 4, 5),), _avg_attrs((2, 2, 3), (1, 2, 2), (0, 0, 0), divisor_override=3)),
    ],
    grad_name=_numbered("AvgPool#DBackward0"),
    doc="Means over windows; padding counts as zeros, and as elements unless count_include_pad is False.",
)

# --- adaptive ---------------------------------------------------------------------------------------


def _adaptive(x: Type, size: Ints) -> tuple[Shape, Shape]:
    lead, spatial = _spatial(x, len(size))
    if any(not isinstance(k, int) or k < 0 for k in size):
        raise OpError(f"output size must be ints >= 0, got {size}")
    return lead, spatial


def adaptive_bounds(n: int, out: int) -> list[tuple[int, int]]:
    """[start, stop) of each of `out` windows that cover n elements."""
    return [(o * n // out, -(-(o + 1) * n // out)) for o in range(out)]


def _adaptive_avg_infer(x: Type, *, size: Ints) -> Type:
    check_float(x)
    return Type(x.dtype, (*_adaptive(x, size)[0], *size))


def _adaptive_avg(b: Any, x: Any, *, size: Ints) -> Any:
    lead, spatial = _adaptive(x.type, size)
    if 0 in size:
        return b.full(shape=(*lead, *size), value=0.0, dtype=x.type.dtype)
    out = widen(b, x)
    if all(m % k == 0 for m, k in zip(spatial, size)):
        pairs = tuple(v for m, k in zip(spatial, size) for v in (k, m // k))
        split = b.reshape(out, shape=(*lead, *pairs))
        made = b.mean(split, axes=tuple(len(lead) + 2 * d + 1 for d in range(len(size))))
        return b.cast_to(made, x.type.dtype)
    for d, k in enumerate(size):
        out = b.resample(out, dim=len(lead) + d, size=k, mode="area")
    return b.cast_to(out, x.type.dtype)


def _adaptive_name(node: Any) -> str:
    size = node.attrs["size"]
    if len(size) == 1:
        return "SqueezeBackward1"
    return "MeanBackward1" if all(k == 1 for k in size) else f"AdaptiveAvgPool{len(size)}DBackward0"


composite(
    "adaptive_avg_pool",
    _adaptive_avg_infer,
    _adaptive_avg,
    samples=lambda: [
        Sample((f32(2, 3, 6, 8),), {"size": (3, 2)}),
        Sample((f32(2, 7, 5),), {"size": (3, 4)}),
        Sample((f32(2, 5),), {"size": (8,)}),
        Sample((f32(1, 2, 4, 5, 3),), {"size": (1, 1, 1)}),
    ],
    grad_name=_adaptive_name,
    doc="Means over `size` windows that cover each spatial dimension as evenly as they can.",
)


def _adaptive_max_infer(x: Type, *, size: Ints) -> tuple[Type, Type]:
    check_kind(x.dtype, NUMERIC)
    shape = (*_adaptive(x, size)[0], *size)
    return Type(x.dtype, shape), Type(I64, shape)


def _adaptive_max(b: Any, x: Any, *, size: Ints) -> tuple[Any, Any]:
    """Windows of the largest size, shorter ones having their last element more than once."""
    lead, spatial = _adaptive(x.type, size)
    n, rank = len(size), x.type.rank
    if 0 in size:
        shape = (*lead, *size)
        return b.full(shape=shape, value=0, dtype=x.type.dtype), b.full(shape=shape, value=0, dtype=I64)
    bounds = [adaptive_bounds(m, k) for m, k in zip(spatial, size)]
    taps = tuple(max(hi - lo for lo, hi in found) for found in bounds)
    w = x
    for d, found in enumerate(bounds):
        at = tuple(min(lo + k, hi - 1) for k in range(taps[d]) for lo, hi in found)
        w = b.take(w, b.constant(value=at, dtype=I64, shape=(taps[d], size[d])), dim=len(lead) + 2 * d)
    m = len(lead)
    order = (*range(m), *range(m, m + 2 * n, 2), *range(m + 1, m + 2 * n, 2))
    w = b.permute(w, dims=order)

    flat = b.reshape(w, shape=(*lead, prod(taps), *size))
    tap = b.argmax(flat, dim=len(lead))

    def place(d: int, tap: Any) -> Any:
        shape = tuple(size[d] if i == rank - n + d else 1 for i in range(rank))
        return b.add(b.constant(value=tuple(lo for lo, _ in bounds[d]), dtype=I64, shape=shape), tap)

    return b.amax(flat, axes=(len(lead),)), _positions(b, tap, taps, spatial, place)


def _adaptive_max_grad(b: Any, n: Any, g: Any, _: Any) -> tuple[Any, ...]:
    x, m = n.type(0), len(n.attrs["size"])
    lead, spatial = x.shape[: x.rank - m], x.shape[x.rank - m :]
    flat = (*lead, prod(n.attrs["size"]))
    zeros = b.full(shape=(*lead, prod(spatial)), value=0.0, dtype=g.type.dtype)
    at, new = b.reshape(n.outs[1], shape=flat), b.reshape(g, shape=flat)
    return (b.reshape(b.scatter(zeros, at, new, dim=len(lead), reduce="add"), shape=x.shape),)


composite(
    "adaptive_max_pool",
    _adaptive_max_infer,
    _adaptive_max,
    _adaptive_max_grad,
    samples=lambda: [
        Sample((f32(2, 3, 6, 8),), {"size": (3, 2)}),
        Sample((f32(2, 7, 5),), {"size": (3, 4)}),
        Sample((f32(2, 5),), {"size": (8,)}),
        Sample((f32(1, 2, 4, 5, 3),), {"size": (2, 1, 2)}),
    ],
    grad_name=_numbered("AdaptiveMaxPool#DBackward0"),
    doc="(maxima, positions) over `size` windows that cover each spatial dimension as evenly as they can.",
)

# --- unpooling --------------------------------------------------------------------------------------


def _unpool_infer(x: Type, i: Type, *, size: Ints) -> Type:
    check_index(i)
    lead, _ = _spatial(x, len(size))
    if i.dtype is not I64:
        raise DTypeError(f"expected i64 positions as max_pool gives them, got {i}")
    if i.shape != x.shape:
        raise OpError(f"expected positions of the input's shape {list(x.shape)}, got {i}")
    return Type(x.dtype, (*lead, *size))


def _unpool(b: Any, x: Any, i: Any, *, size: Ints) -> Any:
    lead, spatial = _spatial(x.type, len(size))
    flat = (*lead, prod(spatial))
    zeros = b.full(shape=(*lead, prod(size)), value=0, dtype=x.type.dtype)
    made = b.scatter(zeros, b.reshape(i, shape=flat), b.reshape(x, shape=flat), dim=len(lead))
    return b.reshape(made, shape=(*lead, *size))


def _unpool_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    x, size = n.type(0), n.attrs["size"]
    lead, spatial = _spatial(x, len(size))
    rows = b.reshape(g, shape=(*lead, prod(size)))
    at = b.reshape(n[1], shape=(*lead, prod(spatial)))
    return (lambda: b.reshape(b.gather(rows, at, dim=len(lead)), shape=x.shape)), None


def _distinct(rng: Any, types: tuple[Type, ...]) -> list[Any]:
    """Different positions in [0, 16) for each row."""
    x, i = types
    rows = rng.permuted(rng.random((*i.shape[:-2], 16)), axis=-1).argsort(-1)[..., : prod(i.shape[-2:])]
    return [rng.standard_normal(x.shape).astype(x.dtype.numpy), rows.reshape(i.shape)]


composite(
    "max_unpool",
    _unpool_infer,
    _unpool,
    _unpool_grad,
    samples=lambda: [
        Sample((f32(2, 3, 2, 3), i64(2, 3, 2, 3)), {"size": (4, 4)}, make=_distinct),
        Sample((f32(1, 2, 2), i64(1, 2, 2)), {"size": (2, 8)}, make=_distinct),
    ],
    grad_name=_numbered("MaxUnpool#DBackward0"),
    doc="Zeros of spatial `size` with the elements at their positions.",
)
