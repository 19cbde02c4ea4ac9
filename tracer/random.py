"""Random tensors: creation functions, samplers and the methods that fill a tensor in place.

Ordinary code draws from PyTorch's CPU generator: same seed, same numbers (tracer/mt19937.py). Inside a
function that is being compiled the same names draw from the generator's Philox part (tracer/generator.py), so
that every call, and every step of `repeat(n)`, gets new numbers; those are not PyTorch's, but the same for
any number of threads. `DISTRIBUTIONS` says both ways for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.dtypes import DType
from ..ir.errors import DTypeError, OpError
from ..ir.op import REGISTRY
from ..ir.types import Type
from ..runtime.buffers import copy_of, empty
from . import mt19937
from .creation import shape_of
from .devices import on_device, resolved
from .functions import elementwise
from .generator import (
    Generator,
    default_generator,
    draw,
    fork_rng,
    generator_of,
    generator_on,
    get_rng_state,
    in_program,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from .library import ArgumentError, ArgumentTypeError, overwrite
from .meta import DEFAULT
from .operands import get_default_dtype, tensor_operand
from .recording import STATE
from .tensor import Tensor, concrete

_F: dict[str, Callable[..., Any]] = elementwise.FUNCTIONS
_Shape = tuple[int, ...]


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise OpError(message)


def _units(shape: _Shape, g: Any) -> Any:
    """Traced samples of U[0, 1) in f64: tails of distributions need the digits, as in PyTorch."""
    return draw("random_uniform", generator=g, shape=shape, dtype=dtypes.float64)


def _traced_uniform(shape: _Shape, dtype: DType, g: Any, low: float = 0.0, high: float = 1.0) -> Any:
    _check(low <= high, f"uniform: need low <= high, got {low} and {high}")
    u = draw("random_uniform", generator=g, shape=shape, dtype=dtype)
    return u if (low, high) == (0, 1) else u * (high - low) + low


def _traced_normal(shape: _Shape, dtype: DType, g: Any, mean: float = 0.0, std: float = 1.0) -> Any:
    _check(std >= 0, f"normal: expected std >= 0, got {std}")
    z = draw("random_normal", generator=g, shape=shape, dtype=dtype)
    return z if (mean, std) == (0, 1) else z * std + mean


def _traced_exponential(shape: _Shape, dtype: DType, g: Any, lambd: float = 1.0) -> Any:
    _check(lambd > 0, f"exponential: expected lambd > 0, got {lambd}")
    return _F["log1p"](-_units(shape, g)) * (-1.0 / lambd)


def _traced_log_normal(shape: _Shape, dtype: DType, g: Any, mean: float = 1.0, std: float = 2.0) -> Any:
    _check(std > 0, f"log_normal: expected std > 0, got {std}")
    return _F["exp"](_traced_normal(shape, dtype, g, mean, std))


def _traced_cauchy(shape: _Shape, dtype: DType, g: Any, median: float = 0.0, sigma: float = 1.0) -> Any:
    _check(sigma > 0, f"cauchy: expected sigma > 0, got {sigma}")
    return _F["tan"]((_units(shape, g) - 0.5) * math.pi) * sigma + median


def _traced_geometric(shape: _Shape, dtype: DType, g: Any, p: float = 0.5) -> Any:
    _check(0 < p < 1, f"geometric: expected p in (0, 1), got {p}")
    steps = _F["ceil"](_F["log1p"](-_units(shape, g)) * (1 / math.log1p(-p)))
    return _F["clamp"](steps, min=1)


def _traced_randint(shape: _Shape, dtype: DType, g: Any, low: int, high: int | None) -> Any:
    if high is None:
        high = _largest(dtype) + 1
    _check(low < high, f"randint: expected low < high, got {low} and {high}")
    return draw("random_int", generator=g, shape=shape, low=int(low), high=int(high), dtype=dtype)


def _traced_random(shape: _Shape, dtype: DType, g: Any) -> Any:
    return _traced_randint(shape, dtype, g, 0, None)


def _largest(dtype: DType) -> int:
    """The largest integer that `random_` draws for a dtype."""
    if dtype.kind == "f":
        return 1 << {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}[dtype.name]
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype.numpy).max)


def _traced_bernoulli(shape: _Shape, dtype: DType, g: Any, p: float = 0.5) -> Any:
    _check(0 <= p <= 1, f"bernoulli: expected p in [0, 1], got {p}")
    return _units(shape, g) < p


#: name: (by PyTorch's generator, `f(engine, shape, dtype, **parameters)`; inside programs, the same of the
#: generator's Philox part)
DISTRIBUTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "uniform": (mt19937.uniform, _traced_uniform),
    "normal": (mt19937.normal, _traced_normal),
    "exponential": (mt19937.exponential, _traced_exponential),
    "log_normal": (mt19937.log_normal, _traced_log_normal),
    "cauchy": (mt19937.cauchy, _traced_cauchy),
    "geometric": (mt19937.geometric, _traced_geometric),
    "randint": (lambda e, shape, dt, low, high: mt19937.randint(e, low, high, shape, dt), _traced_randint),
    "random": (mt19937.random, _traced_random),
    "bernoulli": (lambda e, shape, dtype, p=0.5: mt19937.bernoulli(e, p, shape, dtype), _traced_bernoulli),
}  # fmt: skip

#: Those that write large tensors where they stay, instead of being copied there.
_INTO: dict[str, Callable[..., Any]] = {"uniform": mt19937.uniform, "normal": mt19937.normal}
_LARGE = 1 << 14


def _sample(name: str, shape: _Shape, dtype: DType, generator: Generator | None, *args: Any) -> Any:
    """Samples of a distribution, as a NumPy array, or as a tensor of the program that is being compiled."""
    host, traced = DISTRIBUTIONS[name]
    if not in_program():
        return host(generator_of(generator), shape, dtype.numpy, *args)
    if name not in ("randint", "random", "bernoulli", "geometric") and dtype.kind != "f":
        raise DTypeError(f"{name}: expected a floating-point dtype, got {dtype}")
    made = traced(shape, dtype, generator, *args)
    return made if made.dtype is dtype else made.to(dtype)


def _create(
    name: str, shape: _Shape, dtype: DType, generator: Generator | None, requires_grad: bool, *args: Any,
    device: Any = None,
) -> Tensor:  # fmt: skip
    place = resolved(where) if (where := DEFAULT[0] if device is None else device) is not None else None
    if place is not None and generator is None and in_program():
        generator = generator_on(place)
    large = name in _INTO and dtype.kind == "f" and math.prod(shape) >= _LARGE and min(shape) >= 0
    if large and not in_program():
        b = empty(Type(dtype, tuple(shape)))
        _INTO[name](generator_of(generator), shape, dtype.numpy, *args, out=b.array)
        t = concrete(b)
    else:
        made = _sample(name, shape, dtype, generator, *args)
        t = made if isinstance(made, Tensor) else concrete(copy_of(made, dtype))
    t = on_device(t, place)
    return t.requires_grad_() if requires_grad else t


def _like_where(t: Tensor, where: Any) -> Any:
    return t.device if where is None and t.is_cuda else where


# --- creation -----------------------------------------------------------------------------------------------


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """Samples of U[0, 1)."""
    d = dtype or get_default_dtype()
    return _create("uniform", shape_of(size), d, generator, requires_grad, device=device)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """Samples of the standard normal distribution."""
    d = dtype or get_default_dtype()
    return _create("normal", shape_of(size), d, generator, requires_grad, device=device)


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """Integers of [low, high), i64 unless a dtype is given; `randint(high, size)` starts at 0."""
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if isinstance(size, int):
        raise ArgumentTypeError(f"randint(): size must be a sequence of integers, e.g. ({size},), not {size}")
    low, high = index(low), index(high)
    d = dtype or dtypes.int64
    return _create("randint", shape_of((size,)), d, generator, requires_grad, low, high, device=device)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """A random permutation of 0 .. n-1."""
    d = dtype or dtypes.int64
    place = resolved(where) if (where := DEFAULT[0] if device is None else device) is not None else None
    if not in_program():
        t = concrete(copy_of(mt19937.randperm(generator_of(generator), n, d.numpy), d))
    else:
        generator = generator_on(place) if generator is None and place is not None else generator
        keys: Any = draw(
            "random_int", generator=generator, shape=(n,), low=0, high=1 << 63, dtype=dtypes.int64
        )
        t = keys.argsort().to(d)
    t = on_device(t, place)
    return t.requires_grad_() if requires_grad else t


def _like(name: str) -> Callable[..., Tensor]:
    def like(
        input: Tensor,
        *args: Any,
        dtype: DType | None = None,
        device: Any = None,
        requires_grad: bool = False,
        generator: Generator | None = None,
        **_: Any,
    ) -> Tensor:
        shape = tuple(tensor_operand(input, "input").shape)
        where = _like_where(input, device)
        return _create(name, shape, dtype or input.dtype, generator, requires_grad, *args, device=where)

    return like


rand_like = _like("uniform")
rand_like.__name__, rand_like.__doc__ = "rand_like", "U[0, 1) samples of `input`'s shape and dtype."
randn_like = _like("normal")
randn_like.__name__, randn_like.__doc__ = (
    "randn_like",
    "Standard normal samples of `input`'s shape and dtype.",
)


def randint_like(input: Tensor, low: int, high: Any = None, **options: Any) -> Tensor:
    """Integers of [low, high) in `input`'s shape and dtype; `randint_like(input, high)` starts at 0."""
    if high is None:
        low, high = 0, low
    return _like("randint")(input, int(low), int(high), **options)


def normal(
    mean: Any = 0.0,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """Samples of N(mean, std^2): of a given `size` for two numbers, else of the tensors' broadcast shape."""
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    if not tensors:
        if size is None:
            raise ArgumentError("normal(): with two numbers, say which size, e.g. normal(0.0, 1.0, (2, 3))")
        d = dtype or get_default_dtype()
        return _create(
            "normal", shape_of((size,)), d, generator, requires_grad, float(mean), float(std), device=device
        )
    like: Any = tensors[0] if len(tensors) == 1 else mean + std
    scale = 1.0 if isinstance(std, Tensor) else float(std)
    made: Any = _create(
        "normal", tuple(like.shape), like.dtype, generator, False, 0.0, scale, device=like.device
    )
    if isinstance(std, Tensor):
        made = made * std.detach()
    made = made + (mean.detach() if isinstance(mean, Tensor) else mean)
    return _sampled("sampled_normal", made, *tensors)


def _sampled(op: str, made: Tensor, *parameters: Tensor) -> Tensor:
    """A draw with the history of its distribution's parameters, through which zeros flow."""
    if not any(t.requires_grad for t in parameters):
        return made
    return Tensor(STATE.trace.emit(REGISTRY[op], tuple(t._value() for t in (made, *parameters)), {}))


def bernoulli(
    input: Tensor, p: float | None = None, *, generator: Generator | None = None, out: None = None
) -> Tensor:
    """Ones with the probabilities in `input` (or `p`, in its shape), else zeros."""
    t = tensor_operand(input, "bernoulli(): input")
    if p is not None:
        return _create("bernoulli", tuple(t.shape), t.dtype, generator, False, float(p), device=t.device)
    if t.dtype.kind != "f":
        raise DTypeError(f"bernoulli() takes a floating-point tensor of probabilities, got {t._value().type}")
    return _sampled("sampled_bernoulli", _bernoulli_of(t, t.dtype, generator), t)


def _bernoulli_of(
    p: Tensor, dtype: DType, generator: Generator | None, shape: _Shape | None = None
) -> Tensor:
    if not in_program():
        made = mt19937.bernoulli(generator_of(generator), p.detach()._array(), shape, dtype=dtype.numpy)
        return on_device(concrete(copy_of(made, dtype)), p._storage.value.type.device)
    p = p.detach()
    if shape is not None and shape != tuple(p.shape):
        p = p.expand(shape)
    return draw("random_bernoulli", p, generator=generator, dtype=dtype)


def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Generator | None = None,
    out: None = None,
) -> Tensor:
    """Indices drawn with the (unnormalised) probabilities of a vector or of each row of a matrix."""
    p: Any = tensor_operand(input, "multinomial(): input").detach()
    if not in_program():
        made = mt19937.multinomial(generator_of(generator), p._array(), num_samples, replacement)
        return on_device(concrete(copy_of(made, dtypes.int64)), p._storage.value.type.device)
    k = p.shape[-1] if p.dim() else 0
    if p.dim() not in (1, 2) or num_samples < 1 or (not replacement and num_samples > k):
        raise OpError(
            f"multinomial(): can't draw {num_samples} of the categories of {p._value().type}, {replacement=}"
        )
    # The largest of weights / Exp(1): one race for all samples, or one each if they may be equal.
    p = p.to(dtypes.opmath(p.dtype))
    if replacement or num_samples == 1:
        races = (*p.shape[:-1], num_samples, k)
        return (p.unsqueeze(-2) / _race(races, p.dtype, generator)).argmax(-1)
    return (p / _race(tuple(p.shape), p.dtype, generator)).topk(num_samples, -1)[1]


def _race(shape: _Shape, dtype: DType, generator: Generator | None) -> Any:
    """Samples of Exp(1), none of them 0: a weight of 0 never wins."""
    return _F["clamp"](_traced_exponential(shape, dtype, generator).to(dtype), min=1e-30)


# --- filling in place ---------------------------------------------------------------------------------------


def _write(self: Tensor, made: Any) -> Tensor:
    """Puts samples into a tensor; autograd sees a write that does not depend on the old contents."""
    if not isinstance(made, Tensor):
        return overwrite(self, made)
    return self._put(STATE.trace.emit(REGISTRY["alias"], (made._value(),), {}))


def fill(self: Tensor, name: str, generator: Generator | None, *args: Any) -> Tensor:
    """Fills a tensor in place with samples of a row of `DISTRIBUTIONS`."""
    return _write(self, _sample(name, tuple(self.shape), self.dtype, generator, *args))


def _uniform_(
    self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Any = None, **bounds: Any
) -> Tensor:
    """Fills with samples of U[a, b); PyTorch's names of the bounds are `from` and `to`."""
    return fill(self, "uniform", generator, float(bounds.get("from", a)), float(bounds.get("to", b)))


def _normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of N(mean, std^2)."""
    return fill(self, "normal", generator, float(mean), float(std))


def _exponential_(self: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of the exponential distribution of rate `lambd`."""
    return fill(self, "exponential", generator, float(lambd))


def _log_normal_(self: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Any = None) -> Tensor:
    """Fills with exp of samples of N(mean, std^2)."""
    return fill(self, "log_normal", generator, float(mean), float(std))


def _cauchy_(self: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of the Cauchy distribution."""
    return fill(self, "cauchy", generator, float(median), float(sigma))


def _geometric_(self: Tensor, p: float, *, generator: Any = None) -> Tensor:
    """Fills with the numbers of trials up to the first success, each of probability `p`."""
    return fill(self, "geometric", generator, float(p))


def _bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Fills with ones of probability `p` (a number, or a tensor that broadcasts), else zeros."""
    if isinstance(p, Tensor):
        return _write(self, _bernoulli_of(p, self.dtype, generator, tuple(self.shape)))
    return fill(self, "bernoulli", generator, float(p))


def _random_(
    self: Tensor, low: Any = None, high: Any = None, *, generator: Any = None, **bounds: Any
) -> Tensor:
    """Fills with integers of [low, high), of [0, low) if that is alone, or of all that the dtype holds."""
    low, high = bounds.get("from", low), bounds.get("to", high)
    if low is None and high is None:
        return fill(self, "random", generator)
    if "from" not in bounds and high is None:
        low, high = 0, low
    return fill(self, "randint", generator, int(low or 0), None if high is None else int(high))


#: methods of Tensor
FILLS: dict[str, Callable[..., Tensor]] = {
    "uniform_": _uniform_,
    "normal_": _normal_,
    "exponential_": _exponential_,
    "log_normal_": _log_normal_,
    "cauchy_": _cauchy_,
    "geometric_": _geometric_,
    "bernoulli_": _bernoulli_,
    "random_": _random_,
}
METHODS: dict[str, Callable[..., Tensor]] = {**FILLS, "bernoulli": bernoulli, "multinomial": multinomial}
for _name, _method in FILLS.items():
    _method.__name__ = _method.__qualname__ = _name

__all__ = [
    "DISTRIBUTIONS", "METHODS", "Generator", "bernoulli", "default_generator", "draw", "fill", "fork_rng",
    "generator_of", "get_rng_state", "initial_seed", "manual_seed", "multinomial", "normal", "rand",
    "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "seed", "set_rng_state",
]  # fmt: skip
