"""Binds functions to `Tensor`: methods, operators, in-place variants. Importing this module completes the
class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir import dtypes
from ..ir.dtypes import DType
from ..ir.errors import DTypeError, OpError
from ..ir.op import REGISTRY
from ..ir.types import broadcast_shapes
from ..runtime.buffers import copy_of
from . import creation, mt19937
from .functions import elementwise, indexing, linear, queries, reductions, shaping
from .operands import as_value
from .random import generator_of
from .recording import STATE
from .tensor import Tensor, concrete, device

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **elementwise.FUNCTIONS,
    **reductions.FUNCTIONS,
    **shaping.FUNCTIONS,
    **linear.FUNCTIONS,
    **indexing.FUNCTIONS,
    **queries.FUNCTIONS,
}
_NOT_METHODS = set(
    "cat concat stack where linear is_tensor promote_types can_cast rsub numel is_floating_point".split()
)
_NO_INPLACE = {"where", "rsub", "clone", "isnan", "isinf", "isfinite"}
_INPLACE = [n for n in elementwise.FUNCTIONS if n not in _NO_INPLACE]
_INPLACE += ["masked_fill", "scatter", "scatter_add", "index_put"]


def inplace(self: Tensor, result: Tensor) -> Tensor:
    """Writes an out-of-place result into `self`: same shape, cast to its dtype where that loses no
    category.
    """
    new: Any = result._value()
    old = self._value().type
    if new.type.shape != old.shape:
        raise OpError(
            f"the result of an in-place op has type {new.type}, which does not fit the tensor's {old}"
        )
    if new.type.dtype is not old.dtype:
        if "biuf".index(new.type.dtype.kind) > max("biuf".index(old.dtype.kind), 0) and not (
            new.type.dtype.kind in "iu" and old.dtype.kind in "iu"
        ):
            raise DTypeError(
                f"the result of type {new.type} can't be written in place into a tensor of {old}"
            )
        new = STATE.trace.emit(REGISTRY["cast"], (new,), {"dtype": old.dtype})
    return self._put(new)


def _make_inplace(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return inplace(self, fn(self, *args, **kwargs))

    method.__name__ = method.__qualname__ = name + "_"
    method.__doc__ = f"In-place `{name}`."
    return method


for _name, _fn in FUNCTIONS.items():
    if _name not in _NOT_METHODS:
        setattr(Tensor, _name, _fn)
for _name in _INPLACE:
    setattr(Tensor, _name + "_", _make_inplace(_name, FUNCTIONS[_name]))


def _copy(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Writes `src`, broadcast and cast, into this tensor."""
    trace: Any = STATE.trace
    t = self._value().type
    v: Any = as_value(trace, src, t.dtype)
    if v.type.shape != t.shape:
        broadcast_shapes(v.type.shape, t.shape)
        v = trace.expand(v, shape=t.shape)
    else:
        v = trace.emit(REGISTRY["alias"], (v,), {})
    return self._put(v)


def _fill(self: Tensor, value: Any) -> Tensor:
    """Writes one number everywhere."""
    trace: Any = STATE.trace
    t = self._value().type
    v = as_value(trace, value, t.dtype)
    return self._put(
        trace.emit(REGISTRY["expand"], (v,), {"shape": t.shape}) if t.shape else _fresh(trace, v)
    )


def _fresh(trace: Any, v: Any) -> Any:
    return trace.emit(REGISTRY["alias"], (v,), {})


def _to(self: Tensor, *args: Any, dtype: DType | None = None, copy: bool = False, **kwargs: Any) -> Tensor:
    """The tensor in another dtype (and on another device); itself if nothing changes and `copy` is False."""
    for a in (*args, kwargs.pop("device", None)):
        if isinstance(a, DType):
            dtype = a
        elif isinstance(a, Tensor):
            dtype = a.dtype
        elif isinstance(a, (str, device)) and device(a).type != "cpu":
            raise DTypeError(f"device {a!r} is not available here; tensors live on 'cpu'")
    if dtype is None or dtype is self.dtype:
        return self.clone() if copy else self
    return Tensor(STATE.trace.emit(REGISTRY["cast"], (self._value(),), {"dtype": dtype}))


_CLASS_NAMES = {
    dtypes.float32: "Float",
    dtypes.float64: "Double",
    dtypes.float16: "Half",
    dtypes.bfloat16: "BFloat16",
    dtypes.int64: "Long",
    dtypes.int32: "Int",
    dtypes.int16: "Short",
    dtypes.int8: "Char",
    dtypes.uint8: "Byte",
    dtypes.bool_: "Bool",
}


def _type(self: Tensor, dtype: Any = None) -> Any:
    """The dtype's PyTorch class name, or the tensor converted."""
    if dtype is None:
        return f"tracegrad.{_CLASS_NAMES[self.dtype]}Tensor"
    if isinstance(dtype, str):
        named = {f"tracegrad.{name}Tensor": d for d, name in _CLASS_NAMES.items()}
        if dtype not in named:
            raise DTypeError(f"type(): no tensor type {dtype!r}; there are {', '.join(named)}")
        dtype = named[dtype]
    return _to(self, dtype)


def _caster(dtype: DType) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return _to(self, dtype)

    method.__doc__ = f"The tensor as {dtype.torch_name}."
    return method


def _iterate(self: Tensor) -> Any:
    if not self.dim():
        raise TypeError("iteration over a 0-d tensor")
    return iter(self.unbind(0))  # type: ignore[attr-defined]


def _numpy_transposed(self: Tensor) -> Tensor:
    return self.permute(*reversed(range(self.dim())))  # type: ignore[attr-defined]


def _uniform(self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of U[a, b), from PyTorch's generator."""
    return _overwrite(
        self, mt19937.uniform(generator_of(generator), tuple(self.shape), self.dtype.numpy, a, b)
    )


def _normal(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of N(mean, std^2), from PyTorch's generator."""
    return _overwrite(
        self, mt19937.normal(generator_of(generator), tuple(self.shape), self.dtype.numpy, mean, std)
    )


def _overwrite(self: Tensor, array: Any) -> Tensor:
    return _copy(self, concrete(copy_of(array, self.dtype)))


_METHODS: dict[str, Any] = {
    "where": lambda self, condition, other: FUNCTIONS["where"](condition, self, other),
    "copy_": _copy, "fill_": _fill, "zero_": lambda self: _fill(self, 0), "to": _to, "type": _type,
    "double": _caster(dtypes.float64), "float": _caster(dtypes.float32), "half": _caster(dtypes.float16),
    "bfloat16": _caster(dtypes.bfloat16), "long": _caster(dtypes.int64), "int": _caster(dtypes.int32),
    "short": _caster(dtypes.int16), "char": _caster(dtypes.int8), "byte": _caster(dtypes.uint8),
    "bool": _caster(dtypes.bool_), "cpu": lambda self: self, "uniform_": _uniform, "normal_": _normal,
    "T": property(_numpy_transposed), "mT": property(lambda self: self.transpose(-2, -1)),
    "mH": property(lambda self: self.transpose(-2, -1)),
    "H": property(lambda self: self.transpose(-2, -1)),
    "is_same_size": lambda self, other: self.shape == other.shape,
    "view_as": lambda self, other: self.view(*other.shape),
    "reshape_as": lambda self, other: self.reshape(*other.shape),
    "type_as": lambda self, other: _to(self, other.dtype),
    "new_zeros": lambda self, *size, **k: _new("zeros", self, size, k),
    "new_ones": lambda self, *size, **k: _new("ones", self, size, k),
    "new_empty": lambda self, *size, **k: _new("empty", self, size, k),
    "new_tensor": lambda self, data, **k: _new("tensor", self, (data,), k),
    "new_full": lambda self, size, value, **k: _new("full", self, (size, value), k),
    "__getitem__": indexing.getitem, "__setitem__": indexing.setitem,
    "__iter__": _iterate,
}  # fmt: skip


def _new(name: str, self: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    kwargs.setdefault("dtype", self.dtype)
    return getattr(creation, name)(*args, **kwargs)


for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)


def _operator(fn: Callable[..., Any], *, reflected: bool = False) -> Callable[..., Any]:
    def op(self: Tensor, other: Any) -> Any:
        if not isinstance(other, (Tensor, int, float)) and not hasattr(other, "dtype"):
            return NotImplemented
        return fn(other, self) if reflected else fn(self, other)

    return op


_F = FUNCTIONS
_OPERATORS = {
    "add": _F["add"],
    "sub": _F["sub"],
    "mul": _F["mul"],
    "truediv": _F["div"],
    "floordiv": _F["floor_divide"],
    "mod": _F["remainder"],
    "pow": _F["pow"],
    "matmul": _F["matmul"],
    "and": _F["bitwise_and"],
    "or": _F["bitwise_or"],
    "xor": _F["bitwise_xor"],
    "lshift": _F["bitwise_left_shift"],
    "rshift": _F["bitwise_right_shift"],
}
for _name, _fn in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _operator(_fn))
    setattr(Tensor, f"__r{_name}__", _operator(_fn, reflected=True))
    setattr(Tensor, f"__i{_name}__", (lambda f: lambda self, other: inplace(self, f(self, other)))(_fn))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Tensor, f"__{_name}__", _operator(_F[_name]))
Tensor.__neg__ = _F["neg"]  # type: ignore[attr-defined]
Tensor.__pos__ = lambda self: self  # type: ignore[attr-defined]
Tensor.__abs__ = _F["abs"]  # type: ignore[attr-defined]
Tensor.__invert__ = _F["bitwise_not"]  # type: ignore[attr-defined]
Tensor.__hash__ = lambda self: id(self)  # type: ignore[method-assign]
