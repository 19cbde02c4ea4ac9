"""Cumulative functions and differences along a dimension, with PyTorch's arguments and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.errors import DTypeError, OpError
from ...ir.types import normalize_axis
from ..results import result_class
from ..tensor import Tensor
from . import elementwise
from .rowwise import along, start
from .shaping import cat, narrow

FUNCTIONS: dict[str, Callable[..., Any]] = {}
_E = elementwise.FUNCTIONS
#: elementwise functions of PyTorch's names that are rows of a table there
_sub, _add, _mul, _ne = _E["sub"], _E["add"], _E["mul"], _E["ne"]


def _accumulation(name: str) -> None:
    def fn(input: Tensor, dim: int, *, dtype: DType | None = None) -> Tensor:
        start(name, input)
        d = dtype or (input.dtype if input.dtype.kind == "f" else dtypes.int64)
        x = input if input.dtype is d else input.to(d)
        if d is dtypes.bool_:
            raise DTypeError(f"{name}(): sums and products are numbers; dtype can't be bool")
        return along(name, x, dim)

    fn.__name__ = fn.__qualname__ = name
    what = "sum" if name == "cumsum" else "product"
    fn.__doc__ = f"The {what} of the elements up to each along `dim`. Integers and bools become i64."
    FUNCTIONS[name] = fn


for _name in ("cumsum", "cumprod"):
    _accumulation(_name)


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """log(cumsum(exp(input))) along `dim`, without overflow; floating-point types only."""
    return along("logcumsumexp", input, dim)


def _extremum(name: str) -> None:
    results = result_class(name)

    def fn(input: Tensor, dim: int) -> Any:
        return results(*along(name, input, dim))

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (
        f"(values, indices) of the {name[3:]}imum of the elements so far along `dim`: the last of equals."
    )
    FUNCTIONS[name] = fn


for _name in ("cummax", "cummin"):
    _extremum(_name)


def diff(
    input: Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """The `n`-th difference of neighbours along `dim`; of bools, whether they differ."""
    start("diff", input)
    if not input.dim():
        raise OpError("diff(): expected at least one dimension, got a tensor without")
    if n < 0:
        raise OpError(f"diff(): n must not be negative, got {n}")
    axis = normalize_axis(dim, input.dim())
    if not n:
        return input.clone()
    parts = [t for t in (prepend, input, append) if t is not None]
    x = cat(parts, axis) if len(parts) > 1 else input
    for _ in range(n):
        size = x.shape[axis]
        if not size:
            break
        first, second = (narrow(x, axis, at, size - 1) for at in (0, 1 if size > 1 else 0))
        x = _ne(second, first) if x.dtype is dtypes.bool_ else _sub(second, first)
    return x.clone() if x is input else x


def _slabs(y: Tensor, x: Any, dx: Any, dim: int, name: str) -> tuple[Any, int]:
    """Sums of neighbours along `dim`, times the distances where `x` gives the places: twice the areas."""
    start(name, y)
    if not y.dim():
        raise OpError(f"{name}(): expected at least one dimension, got a tensor without")
    axis = normalize_axis(dim, y.dim())
    n = y.shape[axis]
    if x is not None and dx is not None:
        raise OpError(f"{name}(): give x or dx, not both")
    if not n:
        return y, axis
    both = _add(narrow(y, axis, 0, n - 1), narrow(y, axis, 1 if n > 1 else 0, n - 1))
    if x is None:
        return both, axis
    if x.dim() == 1:
        if x.shape[0] != n:
            raise OpError(f"{name}(): x has {x.shape[0]} places, y has {n} values along dimension {dim}")
        shape = [n - 1 if d == axis else 1 for d in range(y.dim())]
        width = diff(x).reshape(shape)
    else:
        width = diff(x, dim=axis - y.dim())
    return _mul(both, width), axis


def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """The integral of `y` along `dim` by the trapezoidal rule, at places `x` or `dx` apart."""
    areas, axis = _slabs(y, x, dx, dim, "trapezoid")
    total = areas.sum(axis)
    return _mul(total, (1 if dx is None else dx) / 2) if x is None else _E["div"](total, 2)


def cumulative_trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Any = None, dim: int = -1) -> Tensor:
    """The integral up to each place along `dim`, as `trapezoid`."""
    areas, axis = _slabs(y, x, dx, dim, "cumulative_trapezoid")
    cumsum = FUNCTIONS["cumsum"]
    if x is None:
        return cumsum(_mul(areas, (1 if dx is None else dx) / 2), axis)
    return _E["div"](cumsum(areas, axis), 2)


for _fn in (logcumsumexp, diff, trapezoid, cumulative_trapezoid):
    FUNCTIONS[_fn.__name__] = _fn
FUNCTIONS["trapz"] = trapezoid
