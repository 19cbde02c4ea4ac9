"""Tensors as other tensors: dtype and device conversions, `new_*`, copies into place,
and NumPy and DLPack.

Bound to Tensor in tracer/methods.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.dtypes import DType
from ..ir.errors import DTypeError, GradError, OpError
from ..ir.op import REGISTRY
from ..ir.types import Type, broadcast_shapes
from ..runtime.buffers import copy_of
from ..runtime.buffers import empty as empty_buffer
from . import creation
from .devices import is_pinned, on_device, pinned, resolved
from .operands import PYTHON_TYPES, as_value
from .recording import STATE
from .tensor import Tensor, concrete

# --- to, type, float ------------------------------------------------------------------------------------


def to(self: Tensor, *args: Any, dtype: DType | None = None, copy: bool = False, **kwargs: Any) -> Tensor:
    """The tensor in another dtype (and on another device, or as another tensor has it); itself if nothing
    changes and `copy` is False. Takes PyTorch's overloads: `to(dtype)`, `to(device, dtype)`, `to(other)`,
    each followed by `non_blocking` and `copy`."""
    flags = [a for a in args if isinstance(a, bool)]
    copy = copy or (len(flags) > 1 and flags[1])
    non_blocking = bool(kwargs.get("non_blocking") or (flags and flags[0]))
    before = place = self._storage.value.type.device
    for a in (*args, kwargs.pop("device", None), kwargs.pop("other", None)):
        if isinstance(a, DType):
            dtype = a
        elif isinstance(a, type) and a in PYTHON_TYPES:
            dtype = PYTHON_TYPES[a]
        elif isinstance(a, Tensor):
            dtype, place = a.dtype, a._storage.value.type.device
        elif a is not None and not isinstance(a, bool):
            place = resolved(a)
    unknown = kwargs.keys() - {"non_blocking", "memory_format"}
    if unknown:
        raise TypeError(
            f"to() takes dtype, device, other, non_blocking, copy and memory_format, not {unknown}"
        )
    if place != before:
        self, copy = on_device(self, place, non_blocking), False
    if dtype is None or dtype is self.dtype:
        return self.clone() if copy else self
    return Tensor(STATE.trace.emit(REGISTRY["cast"], (self._value(),), {"dtype": dtype}))


CLASS_NAMES = {
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


def type_name(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The dtype's PyTorch class name, or the tensor converted."""
    if dtype is None:
        return f"tracegrad.{CLASS_NAMES[self.dtype]}Tensor"
    if isinstance(dtype, creation.TensorClass):
        dtype = dtype.dtype
    if isinstance(dtype, str):
        named = {f"{name}Tensor": d for d, name in CLASS_NAMES.items()}
        short = dtype.removeprefix("tracegrad.").removeprefix("torch.")  # scripts say either
        if short not in named:
            raise DTypeError(f"type(): no tensor type {dtype!r}; there are {', '.join(named)}")
        dtype = named[short]
    return to(self, dtype)


def _caster(dtype: DType) -> Callable[..., Tensor]:
    def method(self: Tensor, memory_format: Any = None) -> Tensor:
        return to(self, dtype)

    method.__doc__ = f"The tensor as {dtype.torch_name}."
    return method


def shallow_copy(self: Tensor) -> Tensor:
    """Another object that sees the same memory, as `copy.copy` makes it; a leaf of its own where this one
    requires grad."""
    out = self.detach().requires_grad_(self.requires_grad)
    out.__class__ = self.__class__
    out.__dict__.update(self.__dict__)
    return out


# --- copies into place ------------------------------------------------------------------------------------


def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Writes `src`, broadcast and cast, into this tensor."""
    trace: Any = STATE.trace
    t = self._value().type
    v: Any = as_value(trace, src, t.dtype)
    if v.type.device != t.device and v.type.shape == t.shape:  # copied as it is written
        return self._put(v)
    if v.type.shape != t.shape:
        if broadcast_shapes(v.type.shape, t.shape) != t.shape:
            raise OpError(f"copy_(): {v.type} does not broadcast to the tensor's {t}")
        v = trace.expand(v, shape=t.shape)
    else:
        v = trace.emit(REGISTRY["alias"], (v,), {})
    return self._put(v)


def fill_(self: Tensor, value: Any) -> Tensor:
    """Writes one number everywhere."""
    trace: Any = STATE.trace
    t = self._value().type
    if isinstance(value, Tensor) and value.dim():
        raise OpError(f"fill_(): value must be a number or a 0-d tensor, got {value._value().type}")
    v = as_value(trace, value, t.dtype)
    op, attrs = ("expand", {"shape": t.shape}) if t.shape else ("alias", {})
    return self._put(trace.emit(REGISTRY[op], (v,), attrs))


def resize_(self: Tensor, *sizes: Any, memory_format: Any = None) -> Tensor:
    """Gives the tensor another size, in place: the first elements stay, further ones are undefined."""
    shape = creation.shape_of(sizes)
    old = self._value()
    if old.requires_grad:
        raise GradError("resize_() on a tensor that requires grad")
    made = empty_buffer(Type(self.dtype, shape))
    made.array[...] = 0
    flat = self._array().reshape(-1)
    count = min(flat.size, made.type.numel)
    made.array.reshape(-1)[:count] = flat[:count]
    adopt(self, concrete(made))
    return self


def adopt(self: Tensor, other: Tensor) -> None:
    """Makes this object another tensor, storage and view: for in-place changes of shape."""
    self._see(other)


def from_outside(x: Any) -> Any:
    """A NumPy array, or another library's tensor on the CPU, as a tensor of its own; what is neither is given
    back."""
    if isinstance(x, np.ndarray) and dtypes.from_numpy(x.dtype) is not None:
        return creation.tensor(x)
    if not isinstance(x, Tensor) and hasattr(x, "__dlpack__") and hasattr(x, "detach"):
        foreign: Any = x
        # Copied now: they may write to it before a lazy copy would run.
        theirs = from_dlpack(foreign.detach())._buffer()
        return concrete(copy_of(theirs.array, theirs.type.dtype))
    return x


# --- new_* --------------------------------------------------------------------------------------------------


def _new(name: str) -> Callable[..., Tensor]:
    make = getattr(creation, name)

    def method(self: Tensor, *args: Any, dtype: DType | None = None, **kwargs: Any) -> Tensor:
        for ignored in ("layout", "pin_memory"):
            kwargs.pop(ignored, None)
        if "size" in kwargs:
            args = (kwargs.pop("size"), *args)
        if self.is_cuda:
            kwargs.setdefault("device", self.device)
        return make(*args, dtype=dtype or self.dtype, **kwargs)

    method.__name__ = method.__qualname__ = f"new_{name}"
    method.__doc__ = f"`{name}` with this tensor's dtype."
    return method


# --- NumPy and DLPack ---------------------------------------------------------------------------------------


def array_wrap(self: Tensor, array: Any, context: Any = None, return_scalar: bool = False) -> Tensor:
    """What NumPy functions of tensors give: tensors."""
    return creation.tensor(np.asarray(array))


def dlpack(self: Tensor, *, stream: Any = None, max_version: Any = None, **kwargs: Any) -> Any:
    """A DLPack capsule of the tensor's own memory."""
    if self.requires_grad:
        raise BufferError("can't export a tensor that requires grad; use tensor.detach()")
    if self.dtype is dtypes.bfloat16:
        raise BufferError("NumPy, which makes the capsules, has no bfloat16; convert with .float()")
    if max_version is not None:
        kwargs["max_version"] = max_version
    return self.numpy().__dlpack__(**kwargs)


def dlpack_device(self: Tensor) -> tuple[int, int]:
    """(kDLCPU, 0), or of a tensor on a GPU (kDLCUDA, its number)."""
    return (2, self.get_device()) if self.is_cuda else (1, 0)


def from_dlpack(ext_tensor: Any, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor of anything with `__dlpack__` (NumPy, PyTorch, JAX arrays), sharing its memory where that is
    contiguous and can be written.

    Raises DTypeError for what is not on the CPU or of a type that tensors don't have.
    """
    if isinstance(ext_tensor, Tensor):
        return ext_tensor.clone() if copy else ext_tensor.detach()
    if device is not None and resolved(device) is not None:
        return on_device(from_dlpack(ext_tensor), resolved(device))
    try:
        array = ext_tensor if isinstance(ext_tensor, np.ndarray) else np.from_dlpack(ext_tensor)
    except (AttributeError, BufferError, RuntimeError, TypeError) as e:
        raise DTypeError(f"from_dlpack(): can't read a {type(ext_tensor).__name__}: {e}") from None
    if copy:
        array = array.copy()
    elif not array.flags.writeable and not isinstance(ext_tensor, np.ndarray):
        # NumPy marks what it imports read-only where the exporter said nothing; the memory is shared as it
        # is.
        array = _writable(array)
    return creation.from_numpy(array)


def _writable(array: np.ndarray) -> np.ndarray:
    """A writable array over the same memory, which keeps the original alive."""
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)

    class Shared:
        __array_interface__ = interface
        owner = array

    return np.asarray(Shared())


METHODS: dict[str, Any] = {
    "__copy__": shallow_copy, "to": to, "type": type_name, "copy_": copy_, "fill_": fill_, "resize_": resize_,
    "double": _caster(dtypes.float64), "float": _caster(dtypes.float32), "half": _caster(dtypes.float16),
    "bfloat16": _caster(dtypes.bfloat16), "long": _caster(dtypes.int64), "int": _caster(dtypes.int32),
    "short": _caster(dtypes.int16), "char": _caster(dtypes.int8), "byte": _caster(dtypes.uint8),
    "bool": _caster(dtypes.bool_), "type_as": lambda self, other: to(self, other),
    "cpu": lambda self, memory_format=None: on_device(self, None),
    "cuda": lambda self, device=None, non_blocking=False, memory_format=None: on_device(
        self, resolved("cuda" if device is None else device), bool(non_blocking)
    ),
    "pin_memory": lambda self, device=None: pinned(self),
    "is_pinned": lambda self, device=None: is_pinned(self),
    "is_cpu": property(lambda self: not self.is_cuda),
    "record_stream": lambda self, stream: None,  # there is one, so memory is never reused too early
    **{f"new_{name}": _new(name) for name in ("zeros", "ones", "empty", "tensor", "full")},
    "__array_wrap__": array_wrap, "__dlpack__": dlpack, "__dlpack_device__": dlpack_device,
}  # fmt: skip
