"""Reductions that leave NaN out or give two results, counts and histograms, covariance: PyTorch's arguments.

Results whose size is data (`bincount`) need the values: under `compile` they are the same error as `nonzero`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.errors import DTypeError, OpError
from ...ir.op import REGISTRY
from ..making import record
from ..operands import as_value, get_default_dtype
from ..results import result_class
from ..tensor import Tensor
from . import elementwise, linear
from .indexing import contents_of
from .reductions import axes_of
from .rowwise import start

FUNCTIONS: dict[str, Callable[..., Any]] = {}
_E = elementwise.FUNCTIONS
_div, _mul, _sub, _clamp = _E["div"], _E["mul"], _E["sub"], _E["clamp"]
_AMINMAX = result_class("aminmax", "min max")


def nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """Sum over `dim` (all by default) of what is not NaN. Integers and bools sum as i64."""
    trace = start("nansum", input)
    d = dtype or (input.dtype if input.dtype.kind == "f" else dtypes.int64)
    x = as_value(trace, input, d)
    op = "nansum" if d.kind == "f" else "sum"
    attrs = {"axes": axes_of(input, dim), "keepdim": bool(keepdim)}
    return record(trace, REGISTRY[op], (x,), attrs)


def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """Mean over `dim` (all by default) of what is not NaN."""
    start("nanmean", input)
    if input.dtype.kind != "f":
        raise DTypeError(
            f"nanmean() needs a floating-point tensor, got {input._value().type}; convert with .float()"
        )
    there = _E["logical_not"](_E["isnan"](input.detach())).sum(dim, keepdim)
    return _div(nansum(input, dim, keepdim, dtype=dtype), there)


def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    """How many elements over `dim` (all by default) are not zero, as i64."""
    trace: Any = start("count_nonzero", input)
    found = trace.cast(as_value(trace, input, dtypes.bool_), dtype=dtypes.int64)
    return record(trace, REGISTRY["sum"], (found,), {"axes": axes_of(input, dim), "keepdim": False})


def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """(smallest, largest) element over `dim` (all by default)."""
    trace = start("aminmax", input)
    attrs = {"axes": axes_of(input, dim), "keepdim": bool(keepdim)}
    made = trace.emit(REGISTRY["aminmax"], (input._value(),), attrs)
    return _AMINMAX(*map(Tensor, made))


def _spread(name: str) -> None:
    def fn(
        input: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: Any = None,
    ) -> Any:
        trace = start(name, input)
        if isinstance(dim, bool):  # std_mean(input, unbiased)
            dim, unbiased = None, dim
        c = (1 if unbiased else 0) if correction is None else correction
        attrs = {"axes": axes_of(input, dim), "correction": c, "keepdim": bool(keepdim)}
        made = trace.emit(REGISTRY[name], (input._value(),), attrs)
        return tuple(map(Tensor, made))

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"({name[:3]}, mean) over `dim` (all by default); see `{name[:3]}`."
    FUNCTIONS[name] = fn


for _name in ("var_mean", "std_mean"):
    _spread(_name)


def nan_to_num(
    input: Tensor,
    nan: float | None = 0.0,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Tensor:
    """`input` with numbers for NaN (0) and the infinities (the largest finite numbers)."""
    trace = start("nan_to_num", input)
    nan, posinf, neginf = (None if v is None else float(v) for v in (nan, posinf, neginf))
    attrs = {"nan": 0.0 if nan is None else nan, "posinf": posinf, "neginf": neginf}
    return record(trace, REGISTRY["nan_to_num"], (input._value(),), attrs)


# --- histograms -----------------------------------------------------------------------------------


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each of 0, 1, ... occurs in a vector of integers, or the sum of its weights."""
    trace = start("bincount", input)
    if input.dim() != 1 or input.dtype.kind not in "iu":
        raise DTypeError(f"bincount(): input must be a vector of integers, got {input._value().type}")
    if minlength < 0:
        raise OpError(f"bincount(): minlength must not be negative, got {minlength}")
    a = contents_of(input, "bincount()", "zeros(n).index_add(0, x, weights) with a size n of your own")
    if a.size and a.min() < 0:
        raise OpError(f"bincount(): input must not be negative, got {int(a.min())}")
    size = max(int(a.max()) + 1 if a.size else 0, minlength)
    args = [input._value()]
    if weights is not None:
        if tuple(weights.shape) != tuple(input.shape):
            raise OpError(
                f"bincount(): weights must have input's shape, got {weights._value().type} "
                f"for {input._value().type}"
            )
        d = dtypes.float32 if weights.dtype is dtypes.float32 else dtypes.float64
        args.append(as_value(trace, weights, d))
    return record(trace, REGISTRY["bincount"], tuple(args), {"size": size})


def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many elements lie in each of `bins` equal bins from `min` to `max` (equal: the data's own range).
    What lies outside, and NaN, does not count."""
    trace: Any = start("histc", input)
    if input.dtype.kind != "f":
        raise DTypeError(f"histc() needs a floating-point tensor, got {input._value().type}; use .float()")
    if bins < 1:
        raise OpError(f"histc(): bins must be positive, got {bins}")
    if max < min:
        raise OpError(f"histc(): max must not be less than min, got {max} < {min}")
    d, n = input.dtype, input.numel()
    b, x = trace, trace.reshape(input.detach()._value(), shape=(n,))
    if min == max and n:
        low, high = b.amin(x, axes=(0,)), b.amax(x, axes=(0,))
    else:
        low, high = b.literal(min, d), b.literal(max, d)
    equal, one = b.eq(low, high), b.literal(1, d)
    low, high = b.where(equal, b.sub(low, one), low), b.where(equal, b.add(high, one), high)
    at = b.mul(b.div(b.sub(x, low), b.sub(high, low)), b.literal(bins, d))
    # Elements that do not count go to a bin past the end, which is left out.
    inside = b.logical_and(b.ge(x, low), b.le(x, high))
    at = b.where(inside, b.minimum(b.floor(at), b.literal(bins - 1, d)), b.literal(bins, d))
    at = b.cast(at, dtype=dtypes.int64)
    counts = b.index_put(
        b.full(shape=(bins + 1,), value=0.0, dtype=d), b.full(shape=(n,), value=1.0, dtype=d), at,
        dims=(0,), accumulate=True,
    )  # fmt: skip
    return Tensor(b.slice(counts, start=(0,), stop=(bins,), step=(1,)))


# --- covariance -----------------------------------------------------------------------------------


def _weights(name: str, w: Tensor | None, n: int, kinds: str) -> None:
    if w is not None and (w.dim() > 1 or w.numel() != n or w.dtype.kind not in kinds):
        what = "integers" if kinds == "iu" else "floats"
        raise OpError(f"cov(): {name} must be a vector of {n} {what}, got {w._value().type}")


def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """The covariances of the rows of `input` (variables, observations in columns), `[n, n]`; observations
    may have a frequency (`fweights`, integers) and a weight (`aweights`)."""
    start("cov", input)
    if input.dim() > 2:
        raise OpError(f"cov(): expected at most two dimensions, got {input._value().type}")
    if input.dtype is dtypes.bool_:
        raise DTypeError("cov(): bools have no covariance; convert with .float()")
    x: Any = input
    if x.dtype.kind != "f":
        x = x.to(get_default_dtype())
    x = x.reshape(1, -1) if x.dim() < 2 else x
    n = x.shape[1]
    _weights("fweights", fweights, n, "iu")
    _weights("aweights", aweights, n, "f")
    w: Any = None
    if fweights is not None:
        w = fweights if aweights is None else _mul(fweights, aweights)
    elif aweights is not None:
        w = aweights
    if w is None:
        total: Any = n
        mean = x.mean(1, keepdim=True)
        factor: Any = n - correction if n > correction else 0
    else:
        w = w.reshape(-1)
        total = w.sum()
        mean = _div(_mul(x, w).sum(1, keepdim=True), total)
        if correction and aweights is not None:
            factor = _sub(total, _div(_mul(_mul(w, aweights).sum(), correction), total))
        else:
            factor = _sub(total, correction)
        factor = _clamp(factor, min=0)
    centred = _sub(x, mean)
    right = centred if w is None else _mul(centred, w)
    product = linear.FUNCTIONS["matmul"](centred, right.transpose(0, 1))
    out = _div(product, factor)
    return out.reshape(()) if input.dim() < 2 else out.squeeze()


def corrcoef(input: Tensor) -> Tensor:
    """The correlation coefficients of the rows of `input` (see `cov`), limited to [-1, 1]."""
    c: Any = cov(input)
    if not c.dim():
        return _div(c, c)
    scale = _E["sqrt"](c.diagonal())
    return _clamp(_div(_div(c, scale.reshape(-1, 1)), scale.reshape(1, -1)), -1, 1)


for _fn in (nansum, nanmean, count_nonzero, aminmax, nan_to_num, bincount, histc, cov, corrcoef):
    FUNCTIONS[_fn.__name__] = _fn
