"""Elementwise functions, as tables: PyTorch name -> op, with PyTorch's promotion. Bound as functions and
methods.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

from ...ir import dtypes
from ...ir.errors import DTypeError, OpError
from ...ir.op import REGISTRY
from ..making import binary, record
from ..operands import as_value, get_default_dtype, pair, result_type, tensor_operand, values
from ..recording import STATE
from ..tensor import Tensor, ready
from .indexing import nonzero

FUNCTIONS: dict[str, Callable[..., Any]] = {}

#: Take integers by converting them to the default floating type.
_UNARY_FLOAT = """sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh
cosh tanh asinh acosh atanh sigmoid erf erfc erfinv
lgamma digamma deg2rad rad2deg sinc"""
#: Keep the dtype they are given.
_UNARY_SAME = "neg abs sign sgn relu floor ceil trunc frac"
#: Give bool.
_UNARY_BOOL = "isnan isinf isfinite isposinf isneginf logical_not"
_BINARY = """maximum minimum floor_divide remainder fmod bitwise_and bitwise_or bitwise_xor bitwise_left_shift
bitwise_right_shift gcd lcm fmax fmin nextafter"""
_DIVIDES = ("floor_divide", "remainder", "fmod")
_BINARY_FLOAT = "atan2 logaddexp logaddexp2 hypot copysign xlogy"
_COMPARE = "eq ne lt le gt ge"
_ALIASES: dict[str, str] = {
    pair.partition("=")[0]: pair.partition("=")[2]
    for pair in """negative=neg absolute=abs arcsin=asin arccos=acos arctan=atan arcsinh=asinh arccosh=acosh
    arctanh=atanh fix=trunc multiply=mul subtract=sub divide=div true_divide=div greater=gt greater_equal=ge
    less=lt less_equal=le not_equal=ne clip=clamp arctan2=atan2""".split()
}


def _bind(name: str, fn: Callable[..., Any], doc: str) -> None:
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    FUNCTIONS[name] = fn


def _unary(name: str, *, floating: bool = False) -> None:
    op = REGISTRY[name]

    def fn(input: Tensor) -> Tensor:
        if input.__class__ is Tensor:
            trace = STATE.trace
            x: Any = input._storage.value if input._view is None else input._value()
            if x.type.dtype.kind == "f" and not trace.walked_back:
                return record(trace, op, (x,), {})
        else:
            tensor_operand(input, f"{name}(): input")
        trace, args = values(input, floating=floating)
        return record(trace, op, (args[0],), {})

    _bind(name, fn, f"Elementwise {name}." + (" Integers become floats." if floating else ""))


def _check_divisor(name: str, other: Any) -> None:
    """Integers divided by a zero are an error where it is known; by one that is only known later, 0."""
    if isinstance(other, Tensor):
        known = other._value().known
        zero = known is not None and not known.array.all()
    else:
        zero = other == 0
    if zero:
        raise OpError(
            f"{name}(): ZeroDivisionError: integers divided by zero; convert an operand with .float()"
        )


def _binary(name: str, *, floating: bool = False) -> None:
    op = REGISTRY[name]

    def fn(input: Any, other: Any) -> Tensor:
        if not isinstance(input, Tensor) and not isinstance(other, Tensor):
            raise DTypeError(f"{name}(): expected a tensor, got two numbers: {input!r:.40} and {other!r:.40}")
        trace, (x, y) = values(input, other, floating=floating)
        if name in _DIVIDES and y.type.dtype.kind in "iu":
            _check_divisor(name, other)
        return record(trace, op, (x, y), {})

    _bind(name, fn, f"Elementwise {name} of two tensors or a tensor and a number; broadcasts and promotes.")


for _name in _UNARY_FLOAT.split():
    _unary(_name, floating=True)
for _name in [*_UNARY_SAME.split(), *_UNARY_BOOL.split()]:
    _unary(_name)
for _name in [n for n in (*_BINARY.split(), *_COMPARE.split()) if n in REGISTRY]:
    _binary(_name)
for _name in _BINARY_FLOAT.split():
    _binary(_name, floating=True)


def _is_bool(x: Any) -> bool:
    return x._storage.value.type.dtype is dtypes.bool_ if isinstance(x, Tensor) else x.__class__ is bool


def _arith(name: str) -> Callable[..., Any]:
    op = REGISTRY[name]
    mul = REGISTRY["mul"]

    def fn(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
        if alpha.__class__ is int and alpha == 1 and (out := binary(op, input, other)) is not None:
            return out
        trace, x, y = pair(input, other)
        if name == "sub" and (_is_bool(input) or _is_bool(other)):
            raise DTypeError("bools can't be subtracted; invert a mask with ~, or take the difference with ^")
        if alpha != 1:
            if isinstance(alpha, float) and y.type.dtype.kind != "f":
                raise DTypeError(f"{name}(): alpha={alpha} must be an integer for operands of {y.type.dtype}")
            y = trace.emit(mul, (y, trace.literal(alpha, y.type.dtype)), {})
        return record(trace, op, (x, y), {})

    return fn


_bind("add", _arith("add"), "`input + alpha * other`, elementwise.")
_bind("sub", _arith("sub"), "`input - alpha * other`, elementwise.")


def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """`other - alpha * input`, elementwise."""
    return FUNCTIONS["sub"](other, input, alpha=alpha)


def mul(input: Any, other: Any) -> Tensor:
    """Elementwise product."""
    if (out := binary(_MUL, input, other)) is not None:
        return out
    trace, x, y = pair(input, other)
    return record(trace, _MUL, (x, y), {})


_MUL = REGISTRY["mul"]
_POW = REGISTRY["pow_scalar"]


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """Elementwise quotient: true division, or rounded `"trunc"` (towards zero) or `"floor"`."""
    if rounding_mode == "floor":
        return FUNCTIONS["floor_divide"](input, other)
    if rounding_mode not in (None, "trunc"):
        raise OpError(f"div(): rounding_mode must be None, 'trunc' or 'floor', not {rounding_mode!r}")
    if rounding_mode is None:
        trace, (x, y) = values(input, other, floating=True)
        return record(trace, REGISTRY["div"], (x, y), {})
    dtype = result_type(input, other)
    if dtype.kind != "f":
        _check_divisor("div", other)
    else:
        return FUNCTIONS["trunc"](div(input, other))
    trace = STATE.trace
    # Integer division towards zero: the floor quotient, plus one where it is inexact and negative.
    x, y = as_value(trace, input, dtype), as_value(trace, other, dtype)
    b: Any = trace
    q = b.floor_divide(x, y)
    r = b.sub(x, b.mul(q, y))
    zero = b.literal(0, dtype)
    inexact = b.logical_and(b.ne(r, zero), b.lt(q, zero))
    return Tensor(b.add(q, b.cast_to(inexact, dtype)))


def pow(input: Any, exponent: Any) -> Tensor:
    """`input ** exponent`, elementwise."""
    if input.__class__ is Tensor and exponent.__class__ in (int, float):
        trace = STATE.trace
        if trace.walked_back:
            ready(trace, input)
        x: Any = input._storage.value if input._view is None else input._value()
        if x.type.dtype.kind == "f":
            return record(trace, _POW, (x,), {"exponent": exponent})
    if isinstance(input, Tensor) and not isinstance(exponent, Tensor):
        trace, (x,) = values(input)
        if x.type.dtype.kind == "f" and exponent.__class__ in (int, float):
            return record(trace, _POW, (x,), {"exponent": exponent})
        dtype = result_type(input, exponent)
        if dtype.kind != "f" and exponent < 0:
            raise OpError(
                "pow(): integers to negative integer powers are not allowed; convert the base to float"
            )
        x = as_value(trace, input, dtype)
        if dtype.kind == "b":
            return record(trace, REGISTRY["pow"], (x, trace.literal(bool(exponent), dtype)), {})
        return record(trace, _POW, (x,), {"exponent": exponent})
    if not isinstance(exponent, Tensor):
        raise DTypeError(f"pow(): expected a tensor, got two numbers: {input!r:.40} and {exponent!r:.40}")
    trace, (x, y) = values(input, exponent)
    return record(trace, REGISTRY["pow"], (x, y), {})


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """`input` limited to [min, max], numbers or tensors; either may be None."""
    tensor_operand(input, "clamp(): input")
    if min is None and max is None:
        raise OpError("clamp(): at least one of min and max must be given")
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        out = input
        if min is not None:
            out = FUNCTIONS["maximum"](out, min)
        return out if max is None else FUNCTIONS["minimum"](out, max)
    dtype = result_type(input, *[m for m in (min, max) if m is not None])
    trace = STATE.trace
    if trace.walked_back:
        values(input)
    x = as_value(trace, input, dtype)
    return record(trace, REGISTRY["clamp"], (x,), {"min": min, "max": max})


def clamp_min(input: Tensor, min: Any) -> Tensor:
    """`input` with everything below `min` raised to it."""
    return clamp(input, min=min)


def clamp_max(input: Tensor, max: Any) -> Tensor:
    """`input` with everything above `max` lowered to it."""
    return clamp(input, max=max)


def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """Elements of `input` where `condition` holds, else of `other`; with one argument, the indices where it
    holds.
    """
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    tensor_operand(condition, "where(): condition")
    if condition.dtype.kind not in "bu":
        raise DTypeError(f"where(): the condition must be a bool tensor, got {condition._value().type}")
    trace, (x, y) = values(input, other)
    return record(trace, REGISTRY["where"], (as_value(trace, condition, dtypes.bool_), x, y), {})


def _logical(name: str) -> None:
    op = REGISTRY[name]

    def fn(input: Tensor, other: Tensor) -> Tensor:
        trace = STATE.trace
        x = as_value(trace, input, dtypes.bool_)
        y = as_value(trace, other, dtypes.bool_)
        return record(trace, op, (x, y), {})

    _bind(name, fn, f"Elementwise {name}; anything but zero counts as true.")


for _name in ("logical_and", "logical_or", "logical_xor"):
    _logical(_name)


def bitwise_not(input: Tensor) -> Tensor:
    """Elementwise complement of integers; logical not of bools."""
    return record(STATE.trace, REGISTRY["bitwise_not"], (input._value(),), {})


def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """Rounds half to even, at the given decimal place."""
    op = REGISTRY["round"]
    if decimals == 0 or input.dtype.kind != "f":
        return record(STATE.trace, op, (input._value(),), {}) if input.dtype.kind == "f" else input.clone()
    scale = 10.0 ** abs(decimals)
    if decimals > 0:
        return div(round(mul(input, scale)), scale)
    return mul(round(div(input, scale)), scale)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """`input + value * tensor1 * tensor2`."""
    product = mul(tensor1, tensor2)
    return FUNCTIONS["add"](input, product if value == 1 else mul(product, value))


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """`input + value * tensor1 / tensor2`."""
    if tensor1.dtype.kind != "f" and tensor2.dtype.kind != "f":
        raise DTypeError(
            f"addcdiv(): {tensor1._value().type} / {tensor2._value().type}: a true division of integers is "
            f"no integer; convert an operand with .float()"
        )
    quotient = div(tensor1 if value == 1 else mul(tensor1, value), tensor2)
    return FUNCTIONS["add"](input, quotient)


def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """`input + weight * (end - input)`, of one floating-point dtype."""
    if tensor_operand(input, "lerp(): input").dtype is not tensor_operand(end, "lerp(): end").dtype:
        raise DTypeError(f"lerp(): input is of {input.dtype}, end of {end.dtype}; convert one with .to()")
    if input.dtype.kind != "f":
        raise DTypeError(f"lerp(): expected a floating-point dtype, got {input.dtype}; use .float()")
    return FUNCTIONS["add"](input, mul(FUNCTIONS["sub"](end, input), weight))


def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy that gradients flow through."""
    return record(STATE.trace, REGISTRY["clone"], (input._value(),), {})


def square(input: Tensor) -> Tensor:
    """`input * input`; bools become integers."""
    trace, (x,) = values(tensor_operand(input, "square(): input"))
    x = trace.cast_to(x, dtypes.int64) if x.type.dtype.kind == "b" else x
    return record(trace, REGISTRY["square"], (x,), {})


def signbit(input: Tensor) -> Tensor:
    """Whether the sign is negative, of -0.0 as well."""
    trace, (x,) = values(tensor_operand(input, "signbit(): input"))
    if x.type.dtype.kind == "b":
        return record(trace, REGISTRY["ne"], (x, x), {})
    return record(trace, REGISTRY["signbit"], (x,), {})


def positive(input: Tensor) -> Tensor:
    """`input` itself; not for bools."""
    if tensor_operand(input, "positive(): input").dtype is dtypes.bool_:
        raise DTypeError("positive(): bools have no sign")
    return input


def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 below zero, `values` at zero, 1 above."""
    x, y = tensor_operand(input, "heaviside(): input"), tensor_operand(values, "heaviside(): values")
    if x.dtype is not y.dtype:
        raise DTypeError(f"heaviside(): expected operands of one dtype, got {x.dtype} and {y.dtype}")
    if x.dtype is dtypes.bool_:
        return FUNCTIONS["logical_or"](x, y)
    return record(STATE.trace, REGISTRY["heaviside"], (x._value(), y._value()), {})


def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """`input * 2**other`, of the dtype that the operands promote to, at least a floating-point one."""
    dtype = result_type(input, other)
    dtype = dtype if dtype.kind == "f" else get_default_dtype()
    power = Tensor(as_value(STATE.trace, other, dtype))
    if isinstance(other, Tensor) and other.dtype.kind == "f":
        return mul(input, FUNCTIONS["exp2"](power))
    half = FUNCTIONS["floor"](power * 0.5)  # in two steps: one power alone could overflow
    return mul(mul(input, FUNCTIONS["exp2"](half)), FUNCTIONS["exp2"](power - half))


def float_power(input: Any, exponent: Any) -> Tensor:
    """`input ** exponent` in double precision."""

    def wide(x: Any) -> Any:
        return x.to(dtypes.float64) if isinstance(x, Tensor) else float(x)

    return pow(wide(input), wide(exponent))


def frexp(input: Tensor) -> Any:
    """(mantissa, exponent): `input == mantissa * 2**exponent` with mantissas in [0.5, 1)."""
    x = tensor_operand(input, "frexp(): input")
    if x.dtype.kind != "f":
        raise DTypeError(f"frexp(): expected a floating-point tensor, got {x._value().type}")
    size = FUNCTIONS["abs"](x.detach())
    usable = FUNCTIONS["logical_and"](FUNCTIONS["isfinite"](x), size > 0)
    guess = FUNCTIONS["floor"](FUNCTIONS["log2"](where(usable, size, 1.0))) + 1
    # A logarithm next to a whole number may round to it: the mantissa says so.
    mantissa = _scaled_down(size, guess)
    guess = guess + (mantissa >= 1).to(x.dtype) - (mantissa < 0.5).to(x.dtype)
    guess = where(usable, guess, 0.0)
    return Frexp(_scaled_down(x, guess), guess.to(dtypes.int32))


def _scaled_down(x: Tensor, power: Tensor) -> Tensor:
    """`x / 2**power` for whole powers, in two steps: one alone could overflow."""
    half = FUNCTIONS["floor"](power / 2)
    return x * FUNCTIONS["exp2"](-half) * FUNCTIONS["exp2"](half - power)


Frexp = namedtuple("frexp", ["mantissa", "exponent"])

for _fn in (
    rsub, mul, div, pow, clamp, clamp_min, clamp_max, where, bitwise_not, round, addcmul, addcdiv, lerp,
    clone, square, signbit, positive, heaviside, ldexp, float_power, frexp,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
for _new, _old in _ALIASES.items():
    FUNCTIONS[_new] = FUNCTIONS[_old]
