"""Random numbers inside programs: Philox 4x32-10, a counter-based generator (Salmon et al., SC 2011), and the
distributions made of it. The tracer's random functions record these ops.

A draw is a function of the generator's state, `i64[2]` of (seed, number of draws so far), and of the position
of the element alone: no order, no thread and no vector width shows in it. So it fuses into the loop that uses
it, and a backward makes the mask of its dropout again where that is cheaper than keeping it. Every op here
gives, as its last result, the state with one draw more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..dtypes import DType, bfloat16, float32, float64, int32, opmath, uint32, uint64
from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Shape, Type, broadcast_shapes
from .records import BOOL, F16, F32, F64, I64, check_float, composite, elementwise, f32, i64
from .source import _check_shape

STATE = Type(I64, (2,))
#: the multipliers and the steps of the key
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
#: Consecutive counters that lie next to each other. The 4 words of a counter are this many elements apart, so
#: that a loop over 64 elements computes each counter once, in vectors of up to this many lanes.
_ROW = 16
_SELU_NEGATIVE = 1.7580993408473766  # -(alpha * scale) of SELU, what alpha dropout sets elements to


def philox4x32(s: Any, counter: tuple[Any, ...], key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Ten rounds of Philox: four u32 elements from a counter of four and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for i in range(10):
        if i:
            k0, k1 = s.add(k0, s.const(_W0, uint32)), s.add(k1, s.const(_W1, uint32))
        m0, m1 = s.const(_M0, uint32), s.const(_M1, uint32)
        high0, low0, high1, low1 = s.mulhi(c0, m0), s.mul(c0, m0), s.mulhi(c2, m1), s.mul(c2, m1)
        c0, c1, c2, c3 = s.xor(s.xor(high1, c1), k0), low1, s.xor(s.xor(high0, c3), k1), low0
    return c0, c1, c2, c3


def _halves(s: Any, x: Any) -> tuple[Any, Any]:
    """An i64 as two u32, the low one first."""
    return s.cast(x, uint32), s.cast(s.shr(x, s.const(32, x)), uint32)


def _philox(s: Any, counter: Any, slot: Any, seed: Any, draw: Any, *, words: int, part: int) -> Any:
    zero = s.const(0, uint32)
    made = philox4x32(s, (s.cast(counter, uint32), zero, *_halves(s, draw)), _halves(s, seed))
    out = made[part]
    for k in range(1, 4 // words):
        out = s.select(s.eq(slot, s.const(k, slot)), made[k * words + part], out)
    return out


def _philox_infer(*types: Type, words: int, part: int) -> Type:
    if len(types) != 4 or any(t.dtype is not I64 for t in types):
        raise DTypeError("expected four i64 operands: counter, slot, seed and draw")
    if words not in (1, 2, 4) or not 0 <= part < words:
        raise OpError(f"expected words 1, 2 or 4 and part below it, got {words} and {part}")
    return Type(uint32, broadcast_shapes(*(t.shape for t in types)))


elementwise(
    "philox",
    _philox,
    infer=_philox_infer,
    samples=lambda: [
        Sample((i64(5, 3), i64(3), i64(), i64()), {"words": 1, "part": 0}, (0, 3), smooth=False),
        Sample((i64(40), i64(40), i64(), i64()), {"words": 2, "part": 1}, (0, 1), smooth=False),
        Sample((i64(0), i64(0), i64(), i64()), {"words": 4, "part": 3}, (0, 1), smooth=False),
    ],
    doc="A word of Philox 4x32-10 (Salmon et al. 2011): word slot * words + part of the counter's four.",
)


def _words(result: DType, arity: int) -> Callable[..., Type]:
    def infer(*types: Type) -> Type:
        if len(types) != arity or any(t.dtype is not uint32 for t in types):
            raise DTypeError(f"expected {arity} operands of u32")
        return Type(result, broadcast_shapes(*(t.shape for t in types)))

    return infer


def _high(s: Any, x: Any, bits: int, dtype: DType) -> Any:
    """The highest `bits` < 32 bits as a float, by way of i32: vector units convert that."""
    return s.cast(s.bitcast(s.shr(x, s.const(32 - bits, x)), int32), dtype)


def _bits_samples(count: int) -> Any:
    def make(rng: Any, types: tuple[Type, ...]) -> list[np.ndarray]:
        return [rng.integers(0, 1 << 32, t.shape, dtype=np.uint32) for t in types]

    return lambda: [
        Sample(tuple(Type(uint32, shape) for _ in range(count)), make=make, smooth=False)
        for shape in ((4, 5), (), (0,))
    ]


elementwise(
    "unit32",
    lambda s, x: s.mul(_high(s, x, 24, float32), s.const(2.0**-24, float32)),
    infer=_words(F32, 1),
    samples=_bits_samples(1),
    doc="The highest 24 of 32 random bits as a number of [0, 1).",
)
elementwise(
    "open_unit32",
    lambda s, x: s.mul(s.add(_high(s, x, 31, float32), s.const(0.5, float32)), s.const(2.0**-31, float32)),
    infer=_words(F32, 1),
    samples=_bits_samples(1),
    doc="31 of 32 random bits as a number of (0, 1], never 0, for logarithms.",
)
elementwise(
    "unit64",
    lambda s, x, y: s.mul(
        s.add(s.mul(_high(s, x, 27, float64), s.const(2.0**26, float64)), _high(s, y, 26, float64)),
        s.const(2.0**-53, float64),
    ),
    infer=_words(F64, 2),
    samples=_bits_samples(2),
    doc="53 of 64 random bits as a number of [0, 1).",
)


def _below(s: Any, x: Any, y: Any, *, high: int) -> Any:
    if high <= 1 << 32:
        return s.cast(x if high == 1 << 32 else s.mulhi(x, s.const(high, x)), I64)
    both = s.or_(s.shl(s.cast(x, uint64), s.const(32, uint64)), s.cast(y, uint64))
    return s.cast(both if high >= 1 << 64 else s.mod(both, s.const(high, both)), I64)


def _below_infer(*types: Type, high: int) -> Type:
    if high < 1:
        raise OpError(f"expected high >= 1, got {high}")
    return _words(I64, 2)(*types)


elementwise(
    "below",
    _below,
    infer=_below_infer,
    samples=lambda: [
        Sample(s.types, {"high": h}, make=s.make, smooth=False)
        for s in _bits_samples(2)()
        for h in (1, 10, 1 << 32, 3 << 40, 1 << 64)
    ],
    doc="64 random bits as an i64 of [0, high).",
)


def _draw(b: Any, state: Any, shape: Shape, words: int = 1) -> list[Any]:
    """`words` arrays of independent random bits, u32 of `shape`."""
    n, slots = prod(shape), 4 // words
    rows = -(-n // (slots * _ROW))
    if rows * _ROW > 1 << 32:
        raise OpError(f"a draw of {n} elements has more than 2^32 counters; draw it in parts")
    tiles = (rows, slots, _ROW)

    def arranged(v: Any) -> Any:
        flat = b.reshape(b.expand(v, shape=tiles), shape=(prod(tiles),))
        return b.reshape(b.slice(flat, start=(0,), stop=(n,), step=(1,)), shape=shape)

    counter = b.reshape(b.iota(shape=(rows * _ROW,), dim=0, dtype=I64), shape=(rows, 1, _ROW))
    slot = b.reshape(b.iota(shape=(slots,), dim=0, dtype=I64), shape=(1, slots, 1))
    seed, draw = (b.reshape(b.slice(state, start=(i,), stop=(i + 1,), step=(1,)), shape=()) for i in range(2))
    at = arranged(counter), arranged(slot), seed, draw
    return [b.philox(*at, words=words, part=k) for k in range(words)]


def _advanced(b: Any, state: Any) -> Any:
    """The state with one draw more."""
    return b.add(state, b.iota(shape=(2,), dim=0, dtype=I64))


def _uniform(b: Any, state: Any, shape: Shape, dtype: DType) -> Any:
    """Numbers of [0, 1), in f32 or f64."""
    return b.unit64(*_draw(b, state, shape, 2)) if dtype is F64 else b.unit32(*_draw(b, state, shape))


def _check_state(state: Type) -> None:
    if state.dtype is not I64 or state.shape != (2,):
        raise DTypeError(f"expected a generator's state of type {STATE}, got {state}")


def _states(rng: Any, types: tuple[Type, ...]) -> list[np.ndarray]:
    """Operands of samples: floats, then a state."""
    out = [rng.uniform(0.05, 0.95, t.shape).astype(t.dtype.numpy) for t in types[:-1]]
    return [*out, np.array([rng.integers(-(1 << 63), 1 << 63), rng.integers(0, 1 << 40)])]


def _source(
    name: str, decompose: Callable[..., Any], infer: Callable[..., Any], *attrs: dict[str, Any], doc: str
) -> None:
    """A tensor of random numbers from a state."""

    def checked(state: Type, **attributes: Any) -> tuple[Type, Type]:
        _check_state(state)
        _check_shape(attributes.get("shape", ()))
        return infer(**attributes), state

    defaults: dict[str, Any] = infer.__kwdefaults__  # type: ignore[attr-defined]
    checked.attributes = defaults
    composite(
        name,
        checked,
        lambda b, state, **attributes: (
            decompose(b, state, **{**defaults, **attributes}),
            _advanced(b, state),
        ),
        differentiable=False,
        samples=lambda: [Sample((STATE,), a, make=_states) for a in attrs],
        doc=doc,
    )


def _uniform_infer(*, shape: Shape = (), dtype: DType = F32) -> Type:
    t = Type(dtype, shape)
    check_float(t)
    return t


def _uniform_of(b: Any, state: Any, *, shape: Shape, dtype: DType = F32) -> Any:
    if dtype.bits >= 32:
        return _uniform(b, state, shape, dtype)
    # Fewer bits, so that rounding can't give 1.
    digits = 11 if dtype is F16 else 8
    whole = b.floor(b.mul(_uniform(b, state, shape, F32), b.const(2.0**digits, F32)))
    return b.cast(b.mul(whole, b.const(2.0**-digits, F32)), dtype=dtype)


_source(
    "random_uniform",
    _uniform_of,
    _uniform_infer,
    {"shape": (70,), "dtype": F32},
    {"shape": (3, 5), "dtype": F64},
    {"shape": (9,), "dtype": bfloat16},
    {"shape": (), "dtype": F32},
    {"shape": (0, 2), "dtype": F32},
    doc="Samples of U[0, 1), and the next state.",
)


def _normal_of(b: Any, state: Any, *, shape: Shape, dtype: DType = F32) -> Any:
    d = opmath(dtype)
    if d is F64:
        w = _draw(b, state, shape, 4)
        log, angle = b.log1p(b.neg(b.unit64(w[0], w[1]))), b.unit64(w[2], w[3])
    else:
        w = _draw(b, state, shape, 2)
        log, angle = b.log(b.open_unit32(w[0])), b.unit32(w[1])
    radius = b.sqrt(b.mul(log, b.const(-2.0, d)))
    return b.cast_to(b.mul(radius, b.cos(b.mul(angle, b.const(2 * math.pi, d)))), dtype)


_source(
    "random_normal",
    _normal_of,
    _uniform_infer,
    {"shape": (70,), "dtype": F32},
    {"shape": (3, 5), "dtype": F64},
    {"shape": (0, 2), "dtype": F32},
    doc="Samples of the standard normal distribution (Box and Muller 1958), and the next state.",
)


def _int_infer(*, shape: Shape = (), low: int = 0, high: int = 2, dtype: DType = I64) -> Type:
    if high <= low:
        raise OpError(f"expected low < high, got {low} and {high}")
    return Type(dtype, shape)


def _int_of(b: Any, state: Any, *, shape: Shape, low: int, high: int, dtype: DType = I64) -> Any:
    if high - low <= 1 << 32:
        (word,) = _draw(b, state, shape)
        made = b.below(word, word, high=high - low)
    else:
        made = b.below(*_draw(b, state, shape, 2), high=high - low)
    return b.cast_to(b.add(made, b.const(low, I64)), dtype)


_source(
    "random_int",
    _int_of,
    _int_infer,
    {"shape": (70,), "low": -3, "high": 5},
    {"shape": (4,), "low": -(1 << 63), "high": 1 << 62, "dtype": I64},
    {"shape": (5, 2), "low": 0, "high": 200, "dtype": F32},
    doc="Integers of [low, high), and the next state.",
)


def _bernoulli_infer(p: Type, state: Type, *, dtype: DType = BOOL) -> tuple[Type, Type]:
    check_float(p)
    _check_state(state)
    return p.with_dtype(dtype), state


def _bernoulli(b: Any, p: Any, state: Any, *, dtype: DType = BOOL) -> Any:
    d = opmath(p.type.dtype)
    hit = b.lt(_uniform(b, state, p.type.shape, d), b.cast_to(p, d))
    return b.cast_to(hit, dtype), _advanced(b, state)


composite(
    "random_bernoulli",
    _bernoulli_infer,
    _bernoulli,
    differentiable=False,
    samples=lambda: [
        Sample((f32(3, 5), STATE), make=_states),
        Sample((f32(70), STATE), {"dtype": F32}, make=_states),
        Sample((f32(0), STATE), make=_states),
    ],
    doc="True (or one) with the probabilities `p`, and the next state.",
)

# --- dropout ------------------------------------------------------------------------------------------------


def _dropout_infer(
    x: Type, state: Type, *, p: float, shape: Shape | None = None, alpha: bool = False
) -> tuple[Type, Type]:
    check_float(x)
    _check_state(state)
    if not 0 <= p <= 1:
        raise OpError(f"expected a probability p in [0, 1], got {p}")
    if shape is not None and broadcast_shapes(shape, x.shape) != x.shape:
        raise OpError(f"expected a mask shape that broadcasts to {x}, got {list(shape)}")
    return x, state


def _noise(b: Any, state: Any, t: Type, p: float, shape: Shape | None, alpha: bool) -> tuple[Any, Any]:
    """(factor, term or None): what dropout multiplies by and, in the alpha form, adds."""
    d = opmath(t.dtype)
    if p == 1:
        return b.const(0.0, d), None
    (bits,) = _draw(b, state, t.shape if shape is None else shape)
    # Kept with probability 1 - p, to the 32 bits that a word has.
    keep = b.ge(bits, b.constant(value=min(round(p * 2.0**32), (1 << 32) - 1), dtype=uint32))
    scale = 1 / math.sqrt((_SELU_NEGATIVE**2 * p + 1) * (1 - p)) if alpha else 1 / (1 - p)
    factor = b.where(keep, b.const(scale, d), b.const(0.0, d))
    if not alpha:
        return factor, None
    level = _SELU_NEGATIVE * scale
    return factor, b.where(keep, b.const(level * p, d), b.const(level * (p - 1), d))


def _dropout(
    b: Any, x: Any, state: Any, *, p: float, shape: Shape | None = None, alpha: bool = False
) -> tuple[Any, Any]:
    factor, term = _noise(b, state, x.type, p, shape, alpha)
    out = b.mul(b.cast_to(x, factor.type.dtype), factor)
    out = out if term is None else b.add(out, term)
    return b.cast_to(out, x.type.dtype), _advanced(b, state)


def _dropout_grad(b: Any, n: Any, g: Any, _: Any) -> tuple[Any, ...]:
    factor, _ = _noise(b, n[1], n.type(0), n.attr("p"), n.attr("shape"), n.attr("alpha"))
    return b.mul(b.cast_to(g, factor.type.dtype), factor), None


composite(
    "dropout",
    _dropout_infer,
    _dropout,
    _dropout_grad,
    samples=lambda: [
        Sample((f32(3, 5), STATE), {"p": 0.3}, make=_states),
        Sample((f32(2, 64), STATE), {"p": 0.5}, make=_states),
        Sample((f32(2, 3, 4), STATE), {"p": 0.5, "shape": (2, 3, 1)}, make=_states),
        Sample((f32(17), STATE), {"p": 0.2, "alpha": True}, make=_states),
        Sample((f32(3), STATE), {"p": 1.0}, make=_states),
        Sample((f32(0, 3), STATE), {"p": 0.5}, make=_states),
    ],
    grad_name=lambda n: "AddBackward0" if n.attrs.get("alpha") else "MulBackward0",
    doc="x with elements zeroed with probability p and the rest scaled by 1/(1-p), and the next state.",
)


def _rrelu_infer(x: Type, state: Type, *, lower: float, upper: float) -> tuple[Type, Type]:
    check_float(x)
    _check_state(state)
    if lower > upper:
        raise OpError(f"expected lower <= upper, got {lower} and {upper}")
    return x, state


def _slopes(b: Any, state: Any, x: Any, lower: float, upper: float) -> Any:
    """One where x is positive, else random slopes."""
    d = x.type.dtype
    u = _uniform(b, state, x.type.shape, d)
    slope = b.add(b.mul(u, b.const(upper - lower, d)), b.const(lower, d))
    return b.where(b.gt(x, b.const(0.0, d)), b.const(1.0, d), slope)


def _rrelu(b: Any, x: Any, state: Any, *, lower: float, upper: float) -> Any:
    wide = b.cast_to(x, opmath(x.type.dtype))
    out = b.mul(wide, _slopes(b, state, wide, lower, upper))
    return b.cast_to(out, x.type.dtype), _advanced(b, state)


def _rrelu_grad(b: Any, n: Any, g: Any, _: Any) -> tuple[Any, ...]:
    wide = b.cast_to(n[0], opmath(n.type(0).dtype))
    factor = _slopes(b, n[1], wide, n.attr("lower"), n.attr("upper"))
    return b.mul(b.cast_to(g, wide.type.dtype), factor), None


composite(
    "rrelu",
    _rrelu_infer,
    _rrelu,
    _rrelu_grad,
    samples=lambda: [
        Sample((f32(3, 5), STATE), {"lower": 0.1, "upper": 0.3}, make=_states),
        Sample((f32(0), STATE), {"lower": 0.1, "upper": 0.3}, make=_states),
    ],
    grad_name="RreluWithNoiseBackward0",
    doc="x where positive, else x times a slope of U[lower, upper) (Xu et al. 2015), and the next state.",
)

__all__ = ["STATE", "philox4x32"]
