"""Activation functions of torch.nn.functional as scalar ops, so that each fuses into what surrounds it."""

from __future__ import annotations

import math
from typing import Any

from ..errors import OpError
from ..types import Type
from .elementwise import keep_where, zero_where
from .records import NUMERIC, binary, check_kind, unary
from .selection import at_least, at_most

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def _c(b: Any, v: float, g: Any) -> Any:
    return b.const(v, g)


unary(
    "relu",
    lambda s, x: at_least(s, x, 0),
    lambda b, n, g: zero_where(b, b.le(n.out, _c(b, 0, g)), g),
    kinds=NUMERIC,
    doc="max(x, 0); the gradient at 0 is 0.",
)
unary(
    "relu6",
    lambda s, x: at_most(s, at_least(s, x, 0), 6),
    lambda b, n, g: keep_where(b, b.logical_and(b.gt(n.out, _c(b, 0, g)), b.lt(n.out, _c(b, 6, g))), g),
    grad_name="HardtanhBackward0",
    kinds=NUMERIC,
    domain=(-2, 8),
    doc="min(max(x, 0), 6).",
)
unary(
    "leaky_relu",
    lambda s, x, *, negative_slope=0.01: s.select(
        s.gt(x, s.zero(x)), x, s.mul(x, s.const(negative_slope, x))
    ),
    lambda b, n, g: b.where(b.gt(n[0], _c(b, 0, g)), g, b.mul(g, _c(b, n.attr("negative_slope"), g))),
    attrs=({}, {"negative_slope": 0.3}),
    doc="x above 0, negative_slope * x below.",
)
binary(
    "prelu",
    lambda s, x, w: s.select(s.gt(x, s.zero(x)), x, s.mul(w, x)),
    lambda b, n, g: (
        lambda: b.where(b.gt(n[0], _c(b, 0, g)), g, b.mul(g, n[1])),
        lambda: zero_where(b, b.gt(n[0], _c(b, 0, g)), b.mul(g, n[0])),
    ),
    grad_name="PreluKernelBackward0",
    doc="x above 0, w * x below; w broadcasts.",
)


def _elu(s: Any, x: Any, alpha: float, scale: float, inner: float) -> Any:
    k = s.const(scale, x)
    # The negative side sees no positive x, so that a lane not selected can't overflow.
    low = at_most(s, x, 0)
    low = s.expm1(low if inner == 1 else s.mul(low, s.const(inner, x)))
    return s.select(
        s.le(x, s.zero(x)), s.mul(low, s.const(alpha * scale, x)), x if scale == 1 else s.mul(x, k)
    )


def _elu_grad(b: Any, n: Any, g: Any, alpha: float, scale: float, inner: float) -> Any:
    x, zero = n[0], _c(b, 0, g)
    low = b.clamp(x, max=0.0)
    rise = b.exp(low if inner == 1 else b.mul(low, _c(b, inner, g)))
    low = b.mul(g, b.mul(rise, _c(b, alpha * scale * inner, g)))
    return b.where(b.gt(x, zero), g if scale == 1 else b.mul(g, _c(b, scale, g)), low)


unary(
    "elu",
    lambda s, x, *, alpha=1.0: _elu(s, x, alpha, 1.0, 1.0),
    lambda b, n, g: _elu_grad(b, n, g, n.attr("alpha"), 1.0, 1.0),
    attrs=({}, {"alpha": 0.7}),
    doc="x above 0, alpha * (exp(x) - 1) below.",
)
unary(
    "celu",
    lambda s, x, *, alpha=1.0: _elu(s, x, alpha, 1.0, 1.0 / alpha),
    lambda b, n, g: _elu_grad(b, n, g, n.attr("alpha"), 1.0, 1.0 / n.attr("alpha")),
    attrs=({}, {"alpha": 0.7}),
    doc="x above 0, alpha * (exp(x / alpha) - 1) below.",
)
unary(
    "selu",
    lambda s, x: _elu(s, x, SELU_ALPHA, SELU_SCALE, 1.0),
    lambda b, n, g: _elu_grad(b, n, g, SELU_ALPHA, SELU_SCALE, 1.0),
    grad_name="EluBackward0",
    doc="The self-normalising unit (Klambauer et al. 2017).",
)


def _gelu_infer(x: Type, *, approximate: str = "none") -> Type:
    check_kind(x.dtype, "f")
    if approximate not in ("none", "tanh"):
        raise OpError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return x


_GELU_CUBIC = 0.044715
_GELU_INNER = math.sqrt(2 / math.pi)


def _gelu(s: Any, x: Any, *, approximate: str = "none") -> Any:
    half, one = s.const(0.5, x), s.one(x)
    if approximate == "none":
        return s.mul(s.mul(x, half), s.add(one, s.erf(s.mul(x, s.const(math.sqrt(0.5), x)))))
    cubic = s.mul(s.const(_GELU_CUBIC, x), s.mul(s.mul(x, x), x))
    inner = s.mul(s.const(_GELU_INNER, x), s.add(x, cubic))
    return s.mul(s.mul(half, x), s.add(one, s.tanh(inner)))


def _gelu_grad(b: Any, n: Any, g: Any) -> Any:
    x = n[0]
    half, one = _c(b, 0.5, g), _c(b, 1, g)
    if n.attr("approximate") == "none":
        cdf = b.mul(half, b.add(one, b.erf(b.mul(x, _c(b, math.sqrt(0.5), g)))))
        pdf = b.mul(b.exp(b.mul(b.mul(x, x), _c(b, -0.5, g))), _c(b, 1 / math.sqrt(2 * math.pi), g))
        return b.mul(g, b.add(cdf, b.mul(x, pdf)))
    square = b.mul(x, x)
    t = b.tanh(b.mul(_c(b, _GELU_INNER, g), b.add(x, b.mul(_c(b, _GELU_CUBIC, g), b.mul(square, x)))))
    inner = b.mul(_c(b, _GELU_INNER, g), b.add(one, b.mul(_c(b, 3 * _GELU_CUBIC, g), square)))
    bend = b.mul(b.mul(b.mul(half, x), b.sub(one, b.mul(t, t))), inner)
    return b.mul(g, b.add(b.mul(half, b.add(one, t)), bend))


unary(
    "gelu",
    _gelu,
    _gelu_grad,
    infer=_gelu_infer,
    attrs=({}, {"approximate": "tanh"}),
    doc="x times the normal CDF of x.",
)
unary(
    "silu",
    lambda s, x: s.mul(x, s.sigmoid(x)),
    lambda b, n, g: _silu_grad(b, n[0], g),
    doc="x * sigmoid(x).",
)


def _silu_grad(b: Any, x: Any, g: Any) -> Any:
    one, sig = _c(b, 1, g), b.sigmoid(x)
    return b.mul(g, b.mul(sig, b.add(one, b.mul(x, b.sub(one, sig)))))


def _softplus(s: Any, x: Any, *, beta: float = 1.0, threshold: float = 20.0) -> Any:
    z = x if beta == 1 else s.mul(x, s.const(beta, x))
    top = s.const(threshold, x)
    soft = s.log1p(s.exp(at_most(s, z, threshold)))
    return s.select(s.gt(z, top), x, soft if beta == 1 else s.div(soft, s.const(beta, x)))


def _softplus_grad(b: Any, n: Any, g: Any) -> Any:
    z = b.mul(n[0], _c(b, n.attr("beta"), g)) if n.attr("beta") != 1 else n[0]
    return b.where(b.gt(z, _c(b, n.attr("threshold"), g)), g, b.mul(g, b.sigmoid(z)))


unary(
    "softplus",
    _softplus,
    _softplus_grad,
    attrs=({}, {"beta": 2.0, "threshold": 1.0}),
    doc="log(1 + exp(beta x)) / beta, x where beta x > threshold.",
)
unary(
    "mish",
    lambda s, x: s.mul(x, s.tanh(_softplus(s, x))),
    lambda b, n, g: _mish_grad(b, n[0], g),
    doc="x * tanh(softplus(x)).",
)


def _mish_grad(b: Any, x: Any, g: Any) -> Any:
    t = b.tanh(b.softplus(x))
    return b.mul(g, b.add(t, b.mul(b.mul(x, b.sigmoid(x)), b.sub(_c(b, 1, g), b.mul(t, t)))))


unary(
    "logsigmoid",
    lambda s, x: s.sub(s.minimum(x, s.zero(x)), s.log1p(s.exp(s.neg(s.abs(x))))),
    lambda b, n, g: b.mul(g, b.sigmoid(b.neg(n[0]))),
    grad_name="LogSigmoidBackward0",
    doc="log(sigmoid(x)) without overflow.",
)
def _hardtanh(s: Any, x: Any, *, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    low, high = (min_val, max_val) if s.dtype_of(x).kind == "f" else (int(min_val), int(max_val))
    return at_most(s, at_least(s, x, low), high)


unary(
    "hardtanh",
    _hardtanh,
    lambda b, n, g: keep_where(
        b,
        b.logical_and(b.gt(n[0], _c(b, n.attr("min_val"), g)), b.lt(n[0], _c(b, n.attr("max_val"), g))),
        g,
    ),
    kinds="fi",
    attrs=({}, {"min_val": -0.5, "max_val": 1.5}),
    doc="x limited to [min_val, max_val]; the gradient at the bounds is 0.",
)


def _six(s: Any, x: Any) -> Any:
    """clamp(x + 3, 0, 6)."""
    return at_most(s, at_least(s, s.add(x, s.const(3, x)), 0), 6)


unary(
    "hardsigmoid",
    lambda s, x: s.div(_six(s, x), s.const(6, x)),
    lambda b, n, g: keep_where(
        b, b.logical_and(b.gt(n[0], _c(b, -3, g)), b.lt(n[0], _c(b, 3, g))), b.mul(g, _c(b, 1 / 6, g))
    ),
    domain=(-5, 5),
    doc="clamp(x + 3, 0, 6) / 6.",
)
unary(
    "hardswish",
    lambda s, x: s.div(s.mul(x, _six(s, x)), s.const(6, x)),
    lambda b, n, g: b.where(
        b.le(n[0], _c(b, -3, g)),
        _c(b, 0, g),
        b.where(b.ge(n[0], _c(b, 3, g)), g, b.mul(g, b.add(b.div(n[0], _c(b, 3, g)), _c(b, 0.5, g)))),
    ),
    domain=(-5, 5),
    doc="x * clamp(x + 3, 0, 6) / 6.",
)
unary(
    "softsign",
    lambda s, x: s.div(x, s.add(s.one(x), s.abs(x))),
    lambda b, n, g: b.div(g, b.square(b.add(_c(b, 1, g), b.abs(n[0])))),
    grad_name="DivBackward0",
    doc="x / (1 + |x|).",
)
unary(
    "tanhshrink",
    lambda s, x: s.sub(x, s.tanh(x)),
    lambda b, n, g: b.mul(g, b.square(b.tanh(n[0]))),
    grad_name="SubBackward0",
    doc="x - tanh(x).",
)


def _outside(b: Any, n: Any, g: Any) -> Any:
    return b.logical_or(b.gt(n[0], _c(b, n.attr("lambd"), g)), b.lt(n[0], _c(b, -n.attr("lambd"), g)))


unary(
    "hardshrink",
    lambda s, x, *, lambd=0.5: s.select(
        s.and_(s.ge(x, s.const(-lambd, x)), s.le(x, s.const(lambd, x))), s.zero(x), x
    ),
    lambda b, n, g: keep_where(b, _outside(b, n, g), g),
    attrs=({}, {"lambd": 1.0}),
    doc="x outside [-lambd, lambd], else 0.",
)


def _softshrink(s: Any, x: Any, *, lambd: float = 0.5) -> Any:
    k = s.const(lambd, x)
    high = s.select(s.le(x, k), s.zero(x), s.sub(x, k))  # keeps NaN
    return s.select(s.lt(x, s.neg(k)), s.add(x, k), high)


unary(
    "softshrink",
    _softshrink,
    lambda b, n, g: keep_where(b, _outside(b, n, g), g),
    attrs=({}, {"lambd": 1.0}),
    doc="x moved towards 0 by lambd.",
)
unary(
    "threshold",
    lambda s, x, *, threshold, value: s.select(s.le(x, s.const(threshold, x)), s.const(value, x), x),
    lambda b, n, g: zero_where(b, b.le(n[0], _c(b, n.attr("threshold"), g)), g),
    attrs=({"threshold": 0.3, "value": -1.0},),
    kinds=NUMERIC,
    doc="x above the threshold, else value.",
)
