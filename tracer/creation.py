"""Creation functions: `tensor`, `zeros`, `arange`, `from_numpy` and the rest, with PyTorch's arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from operator import index
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.dtypes import DType, promote
from ..ir.errors import DTypeError, GradError, OpError
from ..ir.op import REGISTRY
from ..ir.types import Type
from ..runtime.buffers import copy_of, from_array
from ..runtime.buffers import empty as empty_buffer
from .devices import USED, device_empty_of, on_device, placed, resolved
from .library import ArgumentError, ArgumentTypeError
from .meta import DEFAULT
from .operands import get_default_dtype, number_dtype
from .recording import STATE
from .tensor import Size, Tensor, concrete

_EXPAND = REGISTRY["expand"]


def shape_of(size: tuple[Any, ...]) -> tuple[int, ...]:
    """`zeros(2, 3)` and `zeros((2, 3))` alike."""
    if len(size) == 1 and not isinstance(size[0], (int, np.integer, Tensor)):
        size = tuple(size[0])
    elif not size:
        raise ArgumentTypeError("a size is missing: zeros(2, 3) or zeros((2, 3)); of a 0-d tensor it is ()")
    out = tuple([n if n.__class__ is int else index(n) for n in size])
    for n in out:
        if n < 0:
            raise OpError(f"a tensor can't have a negative dimension: shape {list(out)}")
    if math.prod(out) >= 1 << 60:
        raise OpError(f"a tensor of shape {list(out)} has more elements than any memory")
    return out


def _finish(t: Tensor, requires_grad: bool, device: Any = None) -> Tensor:
    if device is not None or USED[0] or DEFAULT[0] is not None:
        t = placed(t, device)
    return t.requires_grad_(requires_grad) if requires_grad else t


def _filled(shape: tuple[int, ...], value: Any, dtype: DType) -> Tensor:
    trace = STATE.trace
    scalar = trace.literal(value, dtype)
    return Tensor(trace.emit(_EXPAND, (scalar,), {"shape": shape}) if shape else scalar)


def _contents(data: Any) -> np.ndarray:
    """Nested sequences of numbers and tensors as an array."""
    if isinstance(data, Tensor):
        return data.detach()._array()
    if isinstance(data, np.ndarray):
        return data
    try:
        return np.asarray(_numbers(data) if isinstance(data, (list, tuple)) and _has_tensor(data) else data)
    except ValueError:
        raise ArgumentError(
            f"tensor(): nested sequences of unequal lengths, or of numbers and sequences: {data!r:.80}"
        ) from None


def _has_tensor(data: Any) -> bool:
    return any(isinstance(d, Tensor) or (isinstance(d, (list, tuple)) and _has_tensor(d)) for d in data)


def _numbers(data: Any) -> Any:
    """Nested sequences with the tensors in them, of one element each, as numbers."""
    if isinstance(data, Tensor):
        if data.numel() != 1:
            raise ArgumentError(
                f"tensor(): a sequence holds a tensor of type {data._value().type}; one of more than one "
                f"element is no number: use stack() or cat() of the tensors"
            )
        return data.detach()._array().reshape(())[()]
    return [_numbers(d) for d in data] if isinstance(data, (list, tuple)) else data


def _dtypes_in(data: Any) -> Iterator[DType]:
    """The dtypes of what nested sequences hold."""
    for d in data:
        if isinstance(d, (list, tuple)):
            yield from _dtypes_in(d)
        else:
            yield d.dtype if isinstance(d, Tensor) else number_dtype(d)


def _first_number(data: Any) -> Any:
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return data


def _dtype_for(data: Any, array: np.ndarray) -> DType:
    if isinstance(data, Tensor):
        return data.dtype
    if isinstance(data, (list, tuple)) and _has_tensor(data):
        return functools.reduce(promote, _dtypes_in(data))
    first = _first_number(data)
    if isinstance(data, (np.ndarray, np.generic)) or isinstance(first, (np.ndarray, np.generic, Tensor)):
        scalar = isinstance(data, (list, tuple)) and isinstance(first, np.generic)
        found = dtypes.from_numpy(first.dtype if scalar else array.dtype)
        if found is not None:
            return found
    kind = array.dtype.kind
    if kind == "f":
        return get_default_dtype()
    if kind in "iu" and array.size:
        return dtypes.int64
    if kind == "b":
        return dtypes.bool_
    if array.size == 0:
        return get_default_dtype()
    raise DTypeError(f"tensor(): can't make a tensor of {array.dtype} elements: {data!r:.80}")


def tensor(
    data: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A new leaf tensor with a copy of `data` (numbers, nested sequences, NumPy arrays, tensors)."""
    array = _contents(data)
    dtype = dtype or _dtype_for(data, array)
    if array.dtype.kind not in "fiub" and dtypes.from_numpy(array.dtype) is None:
        raise ArgumentTypeError(f"tensor(): can't make a tensor of {array.dtype} elements: {data!r:.80}")
    if dtype.kind in "iu" and array.dtype.kind in "iu" and not isinstance(data, (Tensor, np.ndarray)):
        limits = np.iinfo(dtype.numpy)
        low = limits.min if dtype.kind == "i" else -int(limits.max)  # -1 is a mask of ones
        if array.size and (int(array.min()) < low or int(array.max()) > limits.max):
            raise ArgumentError(f"tensor(): {data!r:.80} does not fit {dtype} ({limits.min} to {limits.max})")
    elif dtype.kind in "iu" and array.dtype.kind == "f" and not isinstance(data, (Tensor, np.ndarray)):
        if not np.isfinite(array).all():
            raise ArgumentError(f"tensor(): {data!r:.80} is not finite and has no value in {dtype}")
    if requires_grad and dtype.kind != "f":
        raise GradError(
            f"only floating-point tensors can require gradients, not {dtype.name}; "
            f"pass dtype=tracegrad.float32"
        )
    trace = STATE.trace
    if device is None and isinstance(data, Tensor):
        device = data.device  # as PyTorch does, which means the default device for numbers only
    if trace is not STATE.lazy and isinstance(data, (int, float, bool)):
        return _finish(Tensor(trace.literal(data, dtype)), requires_grad, device)
    return _finish(concrete(copy_of(array, dtype)), requires_grad, device)


def as_tensor(data: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
    """`data` as a tensor, sharing memory where it can."""
    if isinstance(data, Tensor):
        t = data if device is None else on_device(data, resolved(device))
        return t if dtype is None or dtype is t.dtype else t.to(dtype)
    if isinstance(data, np.ndarray):
        t = from_numpy(data)
        t = t if dtype is None or dtype is t.dtype else t.to(dtype)
        return t if device is None and DEFAULT[0] is None else placed(t, device)
    return tensor(data, dtype=dtype, device=device)


def asarray(
    obj: Any,
    *,
    dtype: DType | None = None,
    device: Any = None,
    copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """`obj` as a tensor, sharing memory where it can unless `copy` is True."""
    t: Any = tensor(obj, dtype=dtype, device=device) if copy else as_tensor(obj, dtype, device)
    return t.detach().requires_grad_() if requires_grad else t


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory (a non-contiguous or read-only one is copied)."""
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"from_numpy() takes a NumPy array, got {type(array).__name__}")
    if dtypes.from_numpy(array.dtype) is None:
        raise DTypeError(f"from_numpy(): no tensor of {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        return concrete(copy_of(array, _dtype_for(array, array)))
    t = concrete(from_array(array))
    t._storage.shared = t._storage.value.buffer
    return t


def full(
    size: Any, fill_value: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of `fill_value`; its dtype decides unless given."""
    shape = shape_of((size,))
    if isinstance(fill_value, Tensor):
        value = fill_value._value()
        trace = STATE.trace
        t = Tensor(trace.emit(_EXPAND, (trace.cast_to(value, dtype or value.type.dtype),), {"shape": shape}))
        return _finish(t, requires_grad, device)
    return _finish(_filled(shape, fill_value, dtype or number_dtype(fill_value)), requires_grad, device)


def zeros(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros."""
    return _finish(_filled(shape_of(size), 0, dtype or get_default_dtype()), requires_grad, device)


def ones(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones."""
    return _finish(_filled(shape_of(size), 1, dtype or get_default_dtype()), requires_grad, device)


def empty(*size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with undefined contents."""
    trace = STATE.trace
    if trace is not STATE.lazy:
        return zeros(*size, dtype=dtype, device=device, requires_grad=requires_grad)
    made = Type(dtype or get_default_dtype(), shape_of(size))
    where = DEFAULT[0] if device is None else device
    name = None if where is None else resolved(where)
    t = concrete(empty_buffer(made) if name is None else device_empty_of(made, name))
    return t.requires_grad_(requires_grad) if requires_grad else t


def _filled_like(
    input: Tensor, value: Any, dtype: DType | None, device: Any, requires_grad: bool
) -> Tensor:
    t = _filled(tuple(input.shape), value, dtype or input.dtype)
    name = input._storage.value.type.device if device is None else resolved(device)
    if name is not None or USED[0]:
        t = on_device(t, name) if name is not None else placed(t, "cpu")
    return t.requires_grad_(requires_grad) if requires_grad else t


def zeros_like(
    input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Zeros of `input`'s shape and dtype, on its device."""
    return _filled_like(input, 0, dtype, device, requires_grad)


def ones_like(
    input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Ones of `input`'s shape and dtype, on its device."""
    return _filled_like(input, 1, dtype, device, requires_grad)


def full_like(
    input: Tensor, fill_value: Any, *, dtype: DType | None = None, device: Any = None,
    requires_grad: bool = False, **_: Any,
) -> Tensor:  # fmt: skip
    """`fill_value` in `input`'s shape and dtype, on its device."""
    return _filled_like(input, fill_value, dtype, device, requires_grad)


def empty_like(
    input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Undefined contents of `input`'s shape and dtype, on its device."""
    where = input.device if device is None and input.is_cuda else device
    return empty(tuple(input.shape), dtype=dtype or input.dtype, device=where, requires_grad=requires_grad)


def scalar_tensor(s: Any, *, dtype: DType | None = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """A 0-d tensor; of the default dtype unless given."""
    return _finish(_filled((), s, dtype or get_default_dtype()), requires_grad)


def _iota(n: int, dtype: DType, start: Any, step: Any) -> Tensor:
    trace: Any = STATE.trace
    wide = dtypes.float64 if dtype.kind == "f" else dtypes.int64
    i = trace.iota(shape=(n,), dim=0, dtype=wide)
    x = trace.add(trace.mul(i, trace.literal(step, wide)), trace.literal(start, wide))
    return Tensor(trace.cast_to(x, dtype))


def arange(
    start: Any = None,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Values from `start` (0 if one argument) in steps up to, not including, `end`."""
    if end is None:
        start, end = 0, start
    if end is None:
        raise ArgumentTypeError("arange(): expected an end, e.g. arange(10)")
    if dtype is not None and dtype.kind == "b":
        raise DTypeError("arange(): no range of bools; take arange(n) != 0")
    start = 0 if start is None else start
    start, end, step = (x.item() if isinstance(x, Tensor) else x for x in (start, end, step))
    if step == 0 or (end - start) * step < 0:
        raise OpError(f"arange(): a step of {step} does not lead from {start} to {end}")
    if dtype is None:
        integral = all(isinstance(x, (int, np.integer)) for x in (start, end, step))
        dtype = dtypes.int64 if integral else get_default_dtype()
    if not all(math.isfinite(x) for x in (start, end, step)):
        raise OpError(f"arange(): {start} to {end} in steps of {step} is not a finite range")
    n = math.ceil((end - start) / step)
    return _finish(_iota(n, dtype, start, step), requires_grad, device)


def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` values from `start` to `end`, both included."""
    start, end = (x.item() if isinstance(x, Tensor) else x for x in (start, end))
    dtype = dtype or get_default_dtype()
    steps = index(steps)
    if steps < 0:
        raise OpError(f"linspace(): steps must not be negative, got {steps}")
    if steps <= 1:
        return _finish(_filled((steps,), start, dtype), requires_grad, device)
    d = np.float64 if dtype.kind != "f" else dtype.numpy
    step = (np.asarray(end).astype(d) - np.asarray(start).astype(d)) / np.asarray(steps - 1).astype(d)
    i = np.arange(steps)
    # Counted from the nearer end, as PyTorch does, so that both ends are exact.
    x = np.where(i < steps // 2, start + step * i.astype(d), end - step * (steps - 1 - i).astype(d))
    return _finish(concrete(copy_of(x, dtype)), requires_grad, device)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """`steps` powers of `base`, their exponents from `start` to `end`, both included."""
    dtype = dtype or get_default_dtype()
    exponents = linspace(start, end, steps, dtype=dtypes.float64)._array()
    return _finish(concrete(copy_of(np.power(float(base), exponents), dtype)), requires_grad, device)


def range_(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """Values from `start` (0 if one argument) in steps up to and including `end`; floats unless asked."""
    if end is None:
        start, end = 0, start
    start, end, step = (x.item() if isinstance(x, Tensor) else x for x in (start, end, step))
    if step == 0 or (end - start) * step < 0:
        raise OpError(f"range(): a step of {step} does not lead from {start} to {end}")
    n = math.floor((end - start) / step) + 1
    return _finish(_iota(n, dtype or get_default_dtype(), start, step), requires_grad, device)


def from_data(*data: Any) -> Tensor:
    """What calling the class does in PyTorch: `Tensor(2, 3)` is undefined contents of that shape,
    `Tensor([1, 2])` a copy, both of the default dtype."""
    return legacy(get_default_dtype(), data)


def legacy(dtype: DType, data: tuple[Any, ...]) -> Tensor:
    """Sizes, or one sequence of data."""
    only = data[0] if len(data) == 1 else None
    if isinstance(only, Tensor):
        return only.detach()
    if isinstance(only, (list, tuple, np.ndarray)) and not isinstance(only, Size):
        return tensor(only, dtype=dtype)
    return empty(data or (0,), dtype=dtype)


class TensorClass(type):
    """The type of PyTorch's `FloatTensor` and its kin: `f(2, 3)` is undefined contents, `f([1, 2])` a copy,
    and instances are the tensors of that dtype."""

    dtype: DType

    def __call__(cls, *data: Any) -> Tensor:
        return legacy(cls.dtype, data)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Tensor) and instance.dtype is cls.dtype


def typed(name: str, dtype: DType) -> TensorClass:
    """The class `name` of tensors of `dtype`."""
    return TensorClass(name, (), {"dtype": dtype, "__doc__": f"Tensors of {dtype.torch_name}."})


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The identity matrix."""
    trace: Any = STATE.trace
    shape = shape_of((n, n if m is None else m))
    i = trace.iota(shape=shape, dim=0, dtype=dtypes.int64)
    j = trace.iota(shape=shape, dim=1, dtype=dtypes.int64)
    t = Tensor(trace.cast(trace.eq(i, j), dtype=dtype or get_default_dtype()))
    return _finish(t, requires_grad, device)
