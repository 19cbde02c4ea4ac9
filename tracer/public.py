"""The functions of the package's namespace: those of FUNCTIONS, with PyTorch's `out=` where they compute
something, and functions that work in place (`relu_`, `sin_`). tracegrad/__init__.py shows them; nothing else
imports this."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..ir.errors import DTypeError, GradError
from ..ir.op import REGISTRY
from . import control, creation, environment, operands, random
from .arguments import FOREIGN, again, checked, named_as
from .callers import warn
from .compile import trace as trace_function
from .conversions import CLASS_NAMES, adopt, from_dlpack
from .devices import pinned
from .functions.diagonals import matrix_trace
from .functions.queries import can_cast
from .methods import FUNCTIONS, inplace
from .recording import STATE
from .tensor import Tensor

#: Views, questions and what decides its own dtype: PyTorch's have no `out` either.
_WITHOUT_OUT = frozenset(
    """view reshape flatten unflatten permute transpose t movedim moveaxis swapaxes swapdims unsqueeze squeeze
    expand expand_as broadcast_to narrow select split chunk unbind diagonal contiguous ravel split_with_sizes
    tensor_split hsplit vsplit dsplit unsafe_chunk unsafe_split atleast_1d atleast_2d atleast_3d
    broadcast_tensors broadcast_shapes meshgrid equal allclose isclose is_tensor is_floating_point is_nonzero
    numel promote_types can_cast einsum clone positive trace linear as_strided""".split()
)


def _fill_out(name: str, out: Any, result: Any) -> Any:
    """Puts results into the tensors passed as `out`; they take the results' shape."""
    if isinstance(result, tuple):
        if len(out) != len(result):
            raise DTypeError(f"{name}(): out has {len(out)} tensors for {len(result)} results")
        for o, r in zip(out, result):
            _fill_out(name, o, r)
        return type(result)(*out) if hasattr(result, "_fields") else tuple(out)
    if not isinstance(out, Tensor):
        raise DTypeError(f"{name}(): out must be a tensor, got {type(out).__name__}")
    if STATE.trace.grad_enabled and (result.requires_grad or out.requires_grad):
        raise GradError(f"{name}(): results with history can't be written to out=; detach() the operands")
    if not can_cast(result.dtype, out.dtype):
        raise DTypeError(f"{name}(): a result of {result.dtype} can't be written to out= of {out.dtype}")
    value: Any = result._value()
    if value.type.dtype is not out.dtype:
        value = STATE.trace.emit(REGISTRY["cast"], (value,), {"dtype": out.dtype})
    if out.shape == result.shape:
        out._put(STATE.trace.emit(REGISTRY["alias"], (value,), {}))
        return out
    if out.numel():
        warn(
            f"{name}(): out= of shape {list(out.shape)} becomes one of {list(result.shape)}; pass empty(0)"
        )
    adopt(out, Tensor(STATE.trace.emit(REGISTRY["alias"], (value,), {})))
    return out


def _with_out(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        try:
            result = fn(*args, **kwargs)
            return result if out is None else _fill_out(name, out, result)
        except FOREIGN as e:
            return again(e, name, fn, args, kwargs)

    return named_as(function, fn)


def _factory(name: str) -> Callable[..., Any]:
    """A creation function with what PyTorch's take and means nothing here (layout), `pin_memory`, and `out`.
    """
    fn = getattr(creation, name)
    variadic = bool(fn.__code__.co_flags & 4)

    @functools.wraps(fn)
    def function(
        *args: Any, out: Any = None, layout: Any = None, pin_memory: bool = False, memory_format: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if variadic and "size" in kwargs:
            args = (kwargs.pop("size"), *args)
        try:
            if out is None:
                return pinned(fn(*args, **kwargs)) if pin_memory else fn(*args, **kwargs)
            if not isinstance(out, Tensor):
                raise DTypeError(f"{name}(): out must be a tensor, got {type(out).__name__}")
            kwargs.setdefault("dtype", out.dtype)
            return _fill_out(name, out, fn(*args, **kwargs))
        except FOREIGN as e:
            return again(e, name, fn, args, kwargs)

    return function


def _in_place(name: str) -> Callable[..., Tensor]:
    method = getattr(Tensor, name, None)
    if method is not None:
        return method
    fn = FUNCTIONS[name[:-1]]

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return inplace(input, fn(input, *args, **kwargs))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"In-place `{name[:-1]}`."
    return function


_IN_PLACE = """abs_ acos_ acosh_ addmv_ arccos_ arccosh_ arcsin_ arcsinh_ arctan_ arctanh_ asin_ asinh_ atan_
atanh_ ceil_ celu_ clamp_ clamp_max_ clamp_min_ clip_ cos_ cosh_ deg2rad_ detach_ erf_ erfc_ exp2_ exp_ expm1_
fill_ fix_ floor_ frac_ gcd_ index_put_ lcm_ ldexp_ log10_ log1p_ log2_ log_ logit_ nan_to_num_ neg_ negative_
rad2deg_ reciprocal_ relu_ round_ rsqrt_ selu_ sigmoid_ sin_ sinc_ sinh_ sqrt_ square_ tan_ tanh_ threshold_
trunc_ xlogy_ zero_"""


def trace(input: Any) -> Any:
    """The sum of the diagonal of a matrix; of a function, what gives its graph: `trace(fn)(*args)`, as
    traced, nothing runs."""
    return matrix_trace(input) if isinstance(input, Tensor) else trace_function(input)


PUBLIC: dict[str, Callable[..., Any]] = {
    n: checked(n, f) if n in _WITHOUT_OUT else _with_out(n, f) for n, f in FUNCTIONS.items()
}
PUBLIC |= {n: _in_place(n) for n in _IN_PLACE.split()}
PUBLIC |= environment.PUBLIC
PUBLIC |= {
    "trace": trace, "from_dlpack": from_dlpack,
    **{n: _factory(n) for n in "zeros ones empty full arange linspace logspace eye tensor".split()},
    "range": _factory("range_"),
}  # fmt: skip
PUBLIC |= {f"{name}Tensor": creation.typed(f"{name}Tensor", d) for d, name in CLASS_NAMES.items()}
PUBLIC |= {
    f.__name__: checked(f.__name__, f)
    for f in (
        creation.as_tensor, creation.asarray, creation.empty_like, creation.from_numpy, creation.full_like,
        creation.ones_like, creation.scalar_tensor, creation.zeros_like, random.bernoulli,
        random.initial_seed, random.manual_seed, random.multinomial, random.normal, random.rand,
        random.rand_like, random.randint, random.randint_like, random.randn, random.randn_like,
        random.randperm, random.set_rng_state, operands.result_type, operands.set_default_dtype, control.cond,
        control.map, control.scan, control.while_loop,
    )
}  # fmt: skip
