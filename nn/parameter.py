"""`Parameter` and `Buffer`: tensors that a module keeps under a name. Modules make them; anyone may."""

from __future__ import annotations

from typing import Any

from ..ir.errors import GradError
from ..ir.op import REGISTRY
from ..runtime.tensor_bytes import from_bytes, to_bytes
from ..tracer.creation import empty
from ..tracer.library import ArgumentTypeError
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor, concrete, note_change
from ..tracer.values import Storage, TracedValue


def _contents(data: Tensor) -> TracedValue:
    """`data`'s contents as a value of its own, with no history."""
    trace = STATE.trace
    if trace is STATE.lazy:
        value = data._value()
        if value.buffer is not None:
            return TracedValue(value.type, None, 0, None, value.buffer.copy())
    enabled, trace.grad_enabled = trace.grad_enabled, False
    try:
        return trace.emit(REGISTRY["alias"], (data._value(),), {})
    finally:
        trace.grad_enabled = enabled


class Parameter(Tensor):
    """A leaf tensor that a module trains.

    It starts with a copy of `data` (PyTorch's shares memory; here writes to `data` do not show in the
    parameter).

    Args:
        data: a tensor of any shape; an empty one if None.
        requires_grad: whether gradients are wanted. Only floating-point data can have them.
    """

    __slots__ = ()

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        if data is None:
            data = empty(0)
        if not isinstance(data, Tensor):
            raise ArgumentTypeError(
                f"Parameter() takes a tensor, got {type(data).__name__}; make one with tracegrad.tensor(data)"
            )
        if requires_grad and data.dtype.kind != "f":
            raise GradError(
                f"only floating-point tensors can require gradients, not {data._value().type}; "
                f"pass requires_grad=False or convert it with .float()"
            )
        super().__init__(_contents(data))
        if requires_grad:
            self.requires_grad_()

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        made = type(self)(self.detach(), self.requires_grad)
        made.__dict__.update(self.__dict__)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        args = (to_bytes(self._buffer()), self.requires_grad)
        place = self._storage.value.type.device
        return (_rebuild, args if place is None else (*args, place))


def _rebuild(contents: bytes, requires_grad: bool, place: str | None = None) -> Parameter:
    return Parameter(concrete(from_bytes(contents).on(place)), requires_grad)


class _BufferType(type(Tensor)):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Tensor) and getattr(instance, "_is_buffer", False)


class Buffer(Tensor, metaclass=_BufferType):
    """`Buffer(data)` is a plain tensor that becomes a buffer when assigned to a module's attribute.

    Args:
        data: a tensor; an empty one if None.
        persistent: whether it is part of the module's `state_dict`.
    """

    __slots__ = ()

    def __new__(cls, data: Tensor | None = None, *, persistent: bool = True) -> Any:
        made = (empty(0) if data is None else data).detach()
        made.__dict__.update(persistent=persistent, _is_buffer=True)
        return made


class UninitializedParameter(Parameter):
    """PyTorch's parameter of a lazy module, of unknown shape. There are no lazy modules here: making one is
    an error."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ArgumentTypeError(
            f"{cls.__name__}: a parameter needs a shape when it is made, since programs are compiled for "
            f"fixed shapes; make a Parameter(empty(...)) once the shape is known"
        )


class UninitializedBuffer(UninitializedParameter):
    """The same for buffers."""

    __slots__ = ()


def replace(t: Tensor, new: Tensor) -> None:
    """Makes `t` hold `new`'s contents, of whatever dtype and shape; `t` stays the same object and a leaf."""
    flag = t.requires_grad
    t._storage = Storage(_contents(new))
    t._view = None
    if flag and t.dtype.kind == "f":
        t.requires_grad_()
    note_change()


def is_floating(t: Tensor) -> bool:
    """Whether a dtype conversion of a module converts this tensor."""
    return t.dtype.kind == "f"


__all__ = [
    "Buffer", "Parameter", "UninitializedBuffer", "UninitializedParameter", "is_floating", "replace",
]  # fmt: skip
