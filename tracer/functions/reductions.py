"""Reductions with PyTorch's arguments and dtypes: sum, mean, max, var, softmax and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.errors import DTypeError, OpError
from ...ir.op import REGISTRY
from ...ir.types import normalize_axis
from ..library import ArgumentError
from ..making import record
from ..operands import as_value, get_default_dtype, tensor_operand
from ..recording import STATE
from ..results import result_class
from ..tensor import Tensor, ready
from . import elementwise

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def axes_of(t: Tensor, dim: Any) -> tuple[int, ...]:
    """PyTorch's `dim` argument (None: all) as normalised axes."""
    rank = t.dim()
    if dim is None or (isinstance(dim, (tuple, list)) and len(dim) == 0):
        return tuple(range(rank))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    axes = tuple(normalize_axis(d, rank) for d in dims)
    if len(set(axes)) != len(axes):
        raise OpError(f"dimension given twice in {dims} for a tensor of type {t._value().type}")
    return tuple(a for a in axes if rank)


def _start(input: Any, name: str) -> Any:
    if not isinstance(input, Tensor):
        tensor_operand(input, f"{name}(): input")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input)
    return trace


def sum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """Sum over `dim` (all by default). Integers and bools sum as i64."""
    trace = _start(input, "sum")
    d = dtype or (dtypes.int64 if input.dtype.kind != "f" else input.dtype)
    x = as_value(trace, input, d)
    return record(trace, REGISTRY["sum"], (x,), {"axes": axes_of(input, dim), "keepdim": bool(keepdim)})


def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """Mean over `dim` (all by default) of floating-point elements."""
    trace = _start(input, "mean")
    d = dtype or input.dtype
    if d.kind != "f":
        raise DTypeError(
            f"mean() needs a floating-point tensor, got {input._value().type}; convert with .float()"
        )
    x = as_value(trace, input, d)
    return record(trace, REGISTRY["mean"], (x,), {"axes": axes_of(input, dim), "keepdim": bool(keepdim)})


def prod(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None) -> Tensor:
    """Product over `dim` (all by default)."""
    trace = _start(input, "prod")
    d = dtype or (dtypes.int64 if input.dtype.kind != "f" else input.dtype)
    x = as_value(trace, input, d)
    return record(trace, REGISTRY["prod"], (x,), {"axes": axes_of(input, dim), "keepdim": bool(keepdim)})


def _extreme(name: str, op_name: str, arg_name: str) -> Callable[..., Any]:
    made = result_class(name)

    def fn(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        trace = _start(input, name)
        if isinstance(dim, Tensor):
            return elementwise.FUNCTIONS[f"{name}imum"](input, dim)
        x = input._value()
        if dim is None:
            return Tensor(
                trace.emit(REGISTRY[op_name], (x,), {"axes": axes_of(input, None), "keepdim": False})
            )
        axis = normalize_axis(dim, input.dim())
        if not input.dim():
            zero = trace.emit(REGISTRY["expand"], (trace.literal(0, dtypes.int64),), {"shape": ()})
            return made(input.clone(), Tensor(zero))
        attrs = {"dim": axis, "keepdim": True}
        i = trace.emit(REGISTRY[arg_name], (x,), attrs)
        v = record(trace, REGISTRY["gather"], (x, i), {"dim": axis})
        index = Tensor(i)
        return made(v, index) if keepdim else made(v.squeeze(axis), index.squeeze(axis))

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (
        f"{name} of all elements; along `dim`, (values, indices); with a tensor, elementwise {name}imum."
    )
    return fn


max = _extreme("max", "amax", "argmax")
min = _extreme("min", "amin", "argmin")


def _axes_reduction(name: str) -> None:
    def fn(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        trace = _start(input, name)
        return Tensor(
            trace.emit(
                REGISTRY[name], (input._value(),), {"axes": axes_of(input, dim), "keepdim": bool(keepdim)}
            )
        )

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{name} over `dim` (all by default)."
    FUNCTIONS[name] = fn


for _name in ("amax", "amin"):
    _axes_reduction(_name)


def _bool_reduction(name: str) -> None:
    def fn(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        trace = _start(input, name)
        x = as_value(trace, input, dtypes.bool_)
        # Alone among PyTorch's reductions these take an empty list at its word: over no dimension.
        axes = () if isinstance(dim, (tuple, list)) and not dim else axes_of(input, dim)
        out = trace.emit(REGISTRY[name], (x,), {"axes": axes, "keepdim": bool(keepdim)})
        return Tensor(trace.cast_to(out, dtypes.uint8) if input.dtype is dtypes.uint8 else out)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"Whether {name} element over `dim` (all by default) is not zero."
    FUNCTIONS[name] = fn


for _name in ("any", "all"):
    _bool_reduction(_name)


def _arg(name: str) -> None:
    def fn(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        trace = _start(input, name)
        x = input._value()
        if dim is None or not input.dim():
            normalize_axis(dim or 0, input.dim())
            x = trace.emit(REGISTRY["reshape"], (x,), {"shape": (x.type.numel,)})
            out = record(trace, REGISTRY[name], (x,), {"dim": 0, "keepdim": False})
            return out.reshape((1,) * input.dim()) if keepdim else out
        attrs = {"dim": normalize_axis(dim, input.dim()), "keepdim": bool(keepdim)}
        return record(trace, REGISTRY[name], (x,), attrs)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"Index (i64) of the {name[3:]}imum along `dim`, or of the flattened tensor."
    FUNCTIONS[name] = fn


for _name in ("argmax", "argmin"):
    _arg(_name)


def _spread(op_name: str) -> None:
    def fn(
        input: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: Any = None,
    ) -> Tensor:
        trace = _start(input, op_name)
        if isinstance(dim, bool):  # var(unbiased)
            dim, unbiased = None, dim
        c = (1 if unbiased else 0) if correction is None else correction
        attrs = {"axes": axes_of(input, dim), "correction": c, "keepdim": bool(keepdim)}
        return record(trace, REGISTRY[op_name], (input._value(),), attrs)

    fn.__name__ = fn.__qualname__ = op_name
    fn.__doc__ = f"{op_name} over `dim` (all by default), divided by N - correction."
    FUNCTIONS[op_name] = fn


for _name in ("var", "std"):
    _spread(_name)


def _along(name: str) -> None:
    def fn(input: Tensor, dim: int | None = None, dtype: DType | None = None) -> Tensor:
        trace = _start(input, name)
        d = dtype or (input.dtype if input.dtype.kind == "f" else get_default_dtype())
        x = as_value(trace, input, d)
        if dim is None:
            dim = 0 if input.dim() in (0, 1, 3) else 1
        return record(trace, REGISTRY[name], (x,), {"dim": normalize_axis(dim, input.dim())})

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{name} along `dim`."
    FUNCTIONS[name] = fn


for _name in ("softmax", "log_softmax"):
    _along(_name)


def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log of the sum of exponentials over `dim`, without overflow."""
    trace = _start(input, "logsumexp")
    attrs = {"axes": axes_of(input, dim), "keepdim": bool(keepdim)}
    x = as_value(trace, input, input.dtype if input.dtype.kind == "f" else get_default_dtype())
    return record(trace, REGISTRY["logsumexp"], (x,), attrs)


def norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: DType | None = None
) -> Tensor:
    """The p-norm over `dim` (all by default) of floating-point elements, which are converted to `dtype`
    first."""
    trace = _start(input, "norm")
    if p == "nuc":
        raise ArgumentError("norm(): p='nuc' takes singular values, which there are none of here")
    order = 2.0 if p in ("fro", None) else float(p)
    attrs = {"p": order, "axes": axes_of(input, dim), "keepdim": bool(keepdim)}
    return record(trace, REGISTRY["norm"], (as_value(trace, input, dtype or input.dtype),), attrs)


for _fn in (sum, mean, prod, max, min, logsumexp, norm):
    FUNCTIONS[_fn.__name__] = _fn
