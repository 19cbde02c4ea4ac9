"""Convolutions of 1 to any number of spatial dimensions. Three ops, closed under differentiation: the
convolution, its gradient by the input (which is also the transposed convolution) and that by the weight. Each
is one op until decomposition, and then a contraction over windows: implicit im2col, no buffer of columns.

Shapes: input `[N, C, S...]`, weight `[O, C / groups, K...]`, result `[N, O, P...]`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ..errors import OpError
from ..op import Sample
from ..types import Shape, Type
from .records import NUMERIC, check_kind, check_same_dtype, composite, f32, i64
from .windows import Ints, check_window, extent, fitted, padded_counts

_PLACE, _TAP = "xyzpqr", "uvwhst"


def _check(n: int, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> None:
    check_window(stride, stride, dilation)
    if len(stride) != n:
        raise OpError(f"stride must have {n} entries, one for each spatial dimension, got {stride}")
    if not isinstance(padding, tuple) or len(padding) != n:
        raise OpError(f"padding must be a tuple of {n} ints, got {padding!r}")
    if any(p < 0 for p in padding):
        raise OpError(f"padding must be >= 0, got {padding}; slice the input to crop it")
    if not isinstance(groups, int) or groups < 1:
        raise OpError(f"groups must be positive, got {groups!r}")


def _check_ranks(x: Type, w: Type, what: str, weight: str) -> int:
    n = w.rank - 2
    if n < 1 or x.rank != n + 2:
        raise OpError(f"expected {what} [N, C, S...] and {weight} of as many dimensions, got {x} and {w}")
    return n


def _check_bias(w: Type, bias: Type | None, channels: int) -> None:
    if bias is not None and bias.shape != (channels,):
        raise OpError(f"expected a bias of shape [{channels}], one for each output of {w}, got {bias}")


def _divided(channels: int, groups: int, what: str) -> int:
    if channels % groups:
        raise OpError(f"{channels} {what} channels can't be divided into groups={groups} equal groups")
    return channels // groups


def transposed_size(
    spatial: Shape, taps: Shape, stride: Ints, padding: Ints, dilation: Ints, output_padding: Ints
) -> Shape:
    """Sizes of a transposed convolution's result."""
    return tuple(
        (n - 1) * s - 2 * p + extent(k, d) + o
        for n, k, s, p, d, o in zip(spatial, taps, stride, padding, dilation, output_padding)
    )


# --- types ------------------------------------------------------------------------------------------


def _infer(
    x: Type,
    w: Type,
    bias: Type | None = None,
    *,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool = False,
    output_padding: Ints = (),
    groups: int = 1,
) -> Type:
    check_same_dtype(*(t for t in (x, w, bias) if t is not None))
    check_kind(x.dtype, NUMERIC)
    n = _check_ranks(x, w, "an input", "a weight")
    _check(n, stride, padding, dilation, groups)
    per_group = w.shape[0 if transposed else 1]
    if transposed:
        return _infer_transposed(x, w, bias, stride, padding, dilation, output_padding, groups)
    if w.shape[0] % groups or w.shape[0] == 0:
        raise OpError(f"{w.shape[0]} output channels can't be divided into groups={groups} equal groups")
    if x.shape[1] != per_group * groups:
        raise OpError(
            f"the weight {w} with groups={groups} takes inputs of {per_group * groups} channels, "
            f"got {x} with {x.shape[1]}"
        )
    _check_bias(w, bias, w.shape[0])
    return Type(
        x.dtype, (x.shape[0], w.shape[0], *padded_counts(x.shape[2:], w.shape[2:], stride, padding, dilation))
    )


def _infer_transposed(
    x: Type, w: Type, bias: Type | None, stride: Ints, padding: Ints, dilation: Ints, more: Ints, groups: int
) -> Type:
    if x.shape[1] != w.shape[0]:
        raise OpError(
            f"the weight {w} of a transposed convolution takes inputs of {w.shape[0]} channels, got {x} with "
            f"{x.shape[1]}"
        )
    _divided(x.shape[1], groups, "input")
    more = more or (0,) * len(stride)
    for o, s, d in zip(more, stride, dilation):
        if not 0 <= o < max(s, d):
            raise OpError(f"output_padding must be smaller than stride or dilation, got {more} for {stride}")
    size = transposed_size(x.shape[2:], w.shape[2:], stride, padding, dilation, more)
    if any(m < 1 for m in size):
        raise OpError(f"the result would have spatial size {list(size)}; lower the padding or pad less")
    _check_bias(w, bias, w.shape[1] * groups)
    return Type(x.dtype, (x.shape[0], w.shape[1] * groups, *size))


def _input_grad(
    g: Type, w: Type, *, size: Shape, stride: Ints, padding: Ints, dilation: Ints, groups: int = 1
) -> Type:
    check_same_dtype(g, w)
    check_kind(g.dtype, NUMERIC)
    n = _check_ranks(g, w, "a gradient", "a weight")
    _check(n, stride, padding, dilation, groups)
    _divided(w.shape[0], groups, "output")
    if g.shape[1] != w.shape[0]:
        raise OpError(f"the gradient {g} should have the weight's {w.shape[0]} output channels")
    _fits(g.shape[2:], size, w.shape[2:], stride, padding, dilation)
    return Type(g.dtype, (g.shape[0], w.shape[1] * groups, *size))


def _fits(places: Shape, size: Shape, taps: Shape, stride: Ints, padding: Ints, dilation: Ints) -> None:
    """There must be room for at least `places` windows (a transposed convolution may leave more)."""
    if len(size) != len(places):
        raise OpError(f"size must have {len(places)} entries, got {size}")
    there = padded_counts(size, taps, stride, padding, dilation)
    if any(p > t for p, t in zip(places, there)):
        raise OpError(f"an input of {list(size)} has {list(there)} windows, not {list(places)}")


def _weight_grad(
    x: Type, g: Type, *, taps: Shape, stride: Ints, padding: Ints, dilation: Ints, groups: int = 1
) -> Type:
    check_same_dtype(x, g)
    check_kind(g.dtype, NUMERIC)
    n = _check_ranks(x, g, "an input", "a gradient")
    _check(n, stride, padding, dilation, groups)
    if x.shape[0] != g.shape[0]:
        raise OpError(f"input and gradient should have one batch size, got {x} and {g}")
    _fits(g.shape[2:], x.shape[2:], taps, stride, padding, dilation)
    per_group = _divided(x.shape[1], groups, "input")
    _divided(g.shape[1], groups, "output")
    return Type(x.dtype, (g.shape[1], per_group, *taps))


# --- meaning ----------------------------------------------------------------------------------------


def _grouped(b: Any, x: Any, dim: int, groups: int) -> Any:
    """Dimension `dim` as [groups, channels of one]."""
    shape = x.type.shape
    return b.reshape(x, shape=(*shape[:dim], groups, shape[dim] // groups, *shape[dim + 1 :]))


def _taken(
    b: Any, x: Any, taps: Shape, places: Shape, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Any:
    """The windows [N, groups, C, taps..., places...] of an input [N, C, S...]."""
    n = len(taps)
    used = tuple((o - 1) * s + extent(k, d) for o, s, k, d in zip(places, stride, taps, dilation))
    x = _grouped(b, fitted(b, x, padding, used), 1, groups)
    if all(k == 1 for k in taps):  # no window: every so many elements
        step = (1, 1, 1, *stride)
        x = b.slice(x, start=(0,) * (n + 3), stop=x.type.shape, step=step)
        return b.reshape(x, shape=(*x.type.shape[:3], *taps, *places))
    return b.windows(x, size=taps, stride=stride, dilation=dilation)


def _letters(n: int) -> tuple[str, str]:
    return _TAP[:n], _PLACE[:n]


def _convolution(
    b: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool = False,
    output_padding: Ints = (),
    groups: int = 1,
) -> Any:
    n = len(stride)
    taps = w.type.shape[2:]
    if transposed:
        more = output_padding or (0,) * n
        size = transposed_size(x.type.shape[2:], taps, stride, padding, dilation, more)
        out = b.convolution_input_grad(
            x, w, size=size, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
    else:
        places = padded_counts(x.type.shape[2:], taps, stride, padding, dilation)
        k, o = _letters(n)
        seen = _taken(b, x, taps, places, stride, padding, dilation, groups)
        out = b.contract(_grouped(b, w, 0, groups), seen, spec=f"goc{k},ngc{k}{o}->ngo{o}")
        out = b.reshape(out, shape=(x.type.shape[0], w.type.shape[0], *places))
    if bias is None:
        return out
    return b.add(out, b.reshape(bias, shape=(bias.type.shape[0], *(1,) * n)))


def _input_grad_of(
    b: Any, g: Any, w: Any, *, size: Shape, stride: Ints, padding: Ints, dilation: Ints, groups: int = 1
) -> Any:
    """With stride 1 a convolution of the gradient with the flipped weight; else columns, summed up where the
    windows overlap. The weight is read along its rows for columns, and across them otherwise: where it is by
    far the largest operand, columns are less to move."""
    n = len(size)
    taps, places = w.type.shape[2:], g.type.shape[2:]
    k, o = _letters(n)
    ws = _grouped(b, w, 0, groups)
    channels = w.type.shape[1] * groups
    batch = g.type.shape[0]
    few = 8 * batch * channels * prod((*taps, *places)) <= prod(w.type.shape)
    if all(s == 1 for s in stride) and not few:
        low = tuple(d * (m - 1) - p for m, d, p in zip(taps, dilation, padding))
        whole = tuple(s + d * (m - 1) for s, m, d in zip(size, taps, dilation))
        g = _grouped(b, fitted(b, g, low, whole), 1, groups)
        seen = b.windows(g, size=taps, stride=(1,) * n, dilation=dilation)
        flipped = b.flip(ws, dims=tuple(range(3, 3 + n)))
        out = b.contract(flipped, seen, spec=f"goc{k},ngo{k}{o}->ngc{o}")
        return b.reshape(out, shape=(batch, channels, *size))
    columns = b.contract(ws, _grouped(b, g, 1, groups), spec=f"goc{k},ngo{o}->ngc{k}{o}")
    columns = b.reshape(columns, shape=(batch, channels, *taps, *places))
    padded = tuple(s + 2 * p for s, p in zip(size, padding))
    out = b.windows_sum(columns, size=padded, stride=stride, dilation=dilation)
    return fitted(b, out, tuple(-p for p in padding), size)


def _weight_grad_of(
    b: Any, x: Any, g: Any, *, taps: Shape, stride: Ints, padding: Ints, dilation: Ints, groups: int = 1
) -> Any:
    k, o = _letters(len(taps))
    seen = _taken(b, x, taps, g.type.shape[2:], stride, padding, dilation, groups)
    out = b.contract(_grouped(b, g, 1, groups), seen, spec=f"ngo{o},ngc{k}{o}->goc{k}")
    return b.reshape(out, shape=(g.type.shape[1], x.type.shape[1] // groups, *taps))


# --- gradients --------------------------------------------------------------------------------------


def _shared(n: Any) -> dict[str, Any]:
    return {name: n.attr(name) for name in ("stride", "padding", "dilation", "groups")}


def _cropped(b: Any, x: Any, spatial: Shape) -> Any:
    """The leading `spatial` positions."""
    return b.slice(x, start=(0,) * x.type.rank, stop=(*x.type.shape[:2], *spatial), step=(1,) * x.type.rank)


def _forward(b: Any, x: Any, w: Any, places: Shape, attrs: dict[str, Any]) -> Any:
    """A convolution of which the first `places` positions count."""
    out = b.convolution(x, w, **attrs)
    return out if out.type.shape[2:] == places else _cropped(b, out, places)


def _convolution_grad(b: Any, n: Any, g: Any) -> tuple[Any, ...]:
    attrs = _shared(n)
    spatial, taps = n.type(0).shape[2:], n.type(1).shape[2:]
    rules: list[Any]
    if n.attr("transposed"):
        rules = [
            lambda: _forward(b, g, n[1], spatial, attrs),
            lambda: b.convolution_weight_grad(g, n[0], taps=taps, **attrs),
        ]
    else:
        rules = [
            lambda: b.convolution_input_grad(g, n[1], size=spatial, **attrs),
            lambda: b.convolution_weight_grad(n[0], g, taps=taps, **attrs),
        ]
    rules.append(lambda: b.sum(g, axes=(0, *range(2, g.type.rank))))
    return tuple(rules[: len(n)])


composite(
    "convolution",
    _infer,
    _convolution,
    _convolution_grad,
    samples=lambda: [
        Sample((f32(2, 3, 6, 5), f32(4, 3, 3, 2), f32(4)), _sample((1, 1), (0, 0), (1, 1))),
        Sample((f32(2, 4, 7, 6), f32(6, 2, 3, 3)), {**_sample((2, 1), (1, 2), (1, 2)), "groups": 2}),
        Sample((f32(2, 3, 9), f32(4, 3, 4), f32(4)), _sample((3,), (1,), (2,))),
        Sample((f32(2, 4, 5, 5), f32(4, 1, 3, 3), f32(4)), {**_sample((1, 1), (1, 1), (1, 1)), "groups": 4}),
        Sample((f32(2, 5, 4, 3), f32(3, 5, 1, 1), f32(3)), _sample((1, 1), (0, 0), (1, 1))),
        Sample((f32(1, 2, 5, 6), f32(3, 2, 1, 1)), _sample((2, 2), (0, 1), (1, 1))),
        Sample((f32(1, 2, 3, 4, 3), f32(2, 2, 2, 2, 2), f32(2)), _sample((1, 2, 1), (0, 1, 0), (1, 1, 1))),
        Sample((f32(0, 3, 4), f32(2, 3, 2), f32(2)), _sample((1,), (0,), (1,))),
        Sample(
            (f32(2, 4, 3, 4), f32(4, 3, 3, 2), f32(6)),
            {**_sample((2, 3), (1, 0), (1, 2)), "transposed": True, "output_padding": (1, 2), "groups": 2},
        ),
        Sample((f32(2, 3, 5), f32(3, 2, 3)), {**_sample((1,), (3,), (2,)), "transposed": True}),
        Sample((f32(1, 2, 3, 3), f32(2, 3, 2, 2)), {**_sample((2, 2), (0, 0), (1, 1)), "transposed": True}),
        Sample((i64(1, 2, 5), i64(2, 2, 3)), _sample((1,), (1,), (1,)), (-4, 4), smooth=False),
    ],
    doc="Every output channel's sum over the taps and input channels of its group, plus a bias; with "
    "`transposed` the transpose of that map, of a weight [C, O / groups, K...].",
)


def _sample(stride: Ints, padding: Ints, dilation: Ints) -> dict[str, Any]:
    return {"stride": stride, "padding": padding, "dilation": dilation}


def _input_grad_grad(b: Any, n: Any, h: Any) -> tuple[Any, ...]:
    attrs = _shared(n)
    places, taps = n.type(0).shape[2:], n.type(1).shape[2:]
    return (
        lambda: _forward(b, h, n[1], places, attrs),
        lambda: b.convolution_weight_grad(h, n[0], taps=taps, **attrs),
    )


composite(
    "convolution_input_grad",
    _input_grad,
    _input_grad_of,
    _input_grad_grad,
    samples=lambda: [
        Sample((f32(2, 4, 4, 4), f32(4, 3, 3, 2)), {"size": (6, 5), **_sample((1, 1), (0, 0), (1, 1))}),
        Sample(
            (f32(2, 6, 4, 6), f32(6, 2, 3, 3)),
            {"size": (7, 6), **_sample((2, 1), (1, 2), (1, 2)), "groups": 2},
        ),
        Sample((f32(1, 2, 3, 3), f32(2, 1, 3, 3)), {"size": (6, 7), **_sample((2, 3), (1, 1), (1, 1))}),
        Sample((f32(2, 3, 5), f32(3, 2, 2)), {"size": (10,), **_sample((2,), (0,), (1,))}),
        Sample((f32(2, 3, 4, 3), f32(3, 5, 1, 1)), {"size": (4, 3), **_sample((1, 1), (0, 0), (1, 1))}),
        Sample((f32(1, 3, 9), f32(3, 2, 2)), {"size": (4,), **_sample((1,), (3,), (1,))}),
    ],
    grad_name="ConvolutionBackward0",
    doc="The gradient of a convolution by its input of spatial `size`: the transposed convolution.",
)


def _weight_grad_grad(b: Any, n: Any, h: Any) -> tuple[Any, ...]:
    attrs = _shared(n)
    return (
        lambda: b.convolution_input_grad(n[1], h, size=n.type(0).shape[2:], **attrs),
        lambda: _forward(b, n[0], h, n.type(1).shape[2:], attrs),
    )


composite(
    "convolution_weight_grad",
    _weight_grad,
    _weight_grad_of,
    _weight_grad_grad,
    samples=lambda: [
        Sample((f32(2, 3, 6, 5), f32(2, 4, 4, 4)), {"taps": (3, 2), **_sample((1, 1), (0, 0), (1, 1))}),
        Sample(
            (f32(2, 4, 7, 6), f32(2, 6, 4, 6)),
            {"taps": (3, 3), **_sample((2, 1), (1, 2), (1, 2)), "groups": 2},
        ),
        Sample((f32(2, 3, 9), f32(2, 4, 2)), {"taps": (4,), **_sample((3,), (1,), (2,))}),
        Sample((f32(3, 2, 4, 4), f32(3, 5, 4, 4)), {"taps": (1, 1), **_sample((1, 1), (0, 0), (1, 1))}),
    ],
    grad_name="ConvolutionBackward0",
    doc="The gradient of a convolution by its weight of `taps`.",
)
