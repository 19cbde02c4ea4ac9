"""Tensors on devices: what a device is called, and tensors moved to it. Used by all that makes tensors."""

from __future__ import annotations

from typing import Any

from ..ir.errors import DTypeError
from ..ir.types import Type, placed_type
from ..runtime.buffers import Buffer
from ..runtime.cuda_driver import count, current, why_not
from ..runtime.cuda_driver import state as low_state
from .callers import called_by_user
from .meta import DEFAULT, device, unavailable
from .placement import TO_DEVICE, floating
from .recording import STATE
from .tensor import Tensor, concrete
from .values import TracedValue

#: whether tensors were ever made on a GPU
USED = [False]


def resolved(where: Any) -> str | None:
    """The name of a device, with its number; None for the CPU. Takes what PyTorch takes: a string, a number,
    a device.

    Raises DTypeError where there is no such device, saying what is missing.
    """
    if isinstance(where, int):
        where = device("cuda", where)
    d = where if isinstance(where, device) else device(where)
    if d.type != "cuda":
        return None
    if why_not() is not None:
        raise DTypeError(unavailable(d))
    number = current() if d.index is None else d.index
    if number >= count():
        raise DTypeError(f"device {str(d)!r} is not available here: there are {count()} GPUs")
    USED[0] = True
    return f"cuda:{number}"


def on_device(t: Tensor, name: str | None, non_blocking: bool = False) -> Tensor:
    """A tensor on a device; itself if it is there. Copied at once, unless gradients flow through or it is
    yet to be computed from constants. With `non_blocking` the copy may go on after this returns: pinned
    memory that it reads must stay as it is, and what comes to the CPU is waited for when it is read."""
    value = t._value()
    if value.type.device == name:
        return t
    trace = STATE.trace
    if trace is STATE.lazy and None not in (name, value.type.device) and value.buffer is None:
        trace.flush()  # what is computed on one GPU and on another are programs of their own
    if trace is STATE.lazy and not (value.requires_grad and trace.grad_enabled):
        if value.buffer is not None or not floating(value):
            return concrete(t._buffer().on(name, non_blocking))
    return Tensor(moved_value(value, name))


def moved_value(value: TracedValue, name: str | None) -> Any:
    """A value, recorded to be on a device."""
    attrs = {"device": name, "source": value.type.device}
    return STATE.trace.emit(TO_DEVICE, (value,), attrs)


def placed(t: Tensor, where: Any) -> Tensor:
    """A tensor that was just made, where its maker wants it: on `where`, or the default device if that is
    None."""
    if where is None:
        where = DEFAULT[0]
        if where is None:
            return _pinned(t) if USED[0] else t
    name = resolved(where)
    return _pinned(t) if name is None and USED[0] else on_device(t, name)


def _pinned(t: Tensor) -> Tensor:
    """Says that the user wanted it on the CPU, so that it is an error to use it with tensors elsewhere."""
    value = t._value()
    if value.buffer is not None or not value.type.shape or value.type.device:
        return t
    if not called_by_user("devices.py", "creation.py", "arguments.py", "public.py"):
        return t
    return Tensor(moved_value(value, None))


def pinned(t: Tensor) -> Tensor:
    """A tensor in memory of the CPU that can't be swapped out, from which copies to a GPU run beside the
    program; itself if it is there, where there is no GPU, and where gradients flow through.

    Raises DTypeError for a tensor on a GPU.
    """
    value = t._value()
    if value.type.device is not None:
        raise DTypeError(f"pin_memory(): only memory of the CPU can be pinned, not a tensor of {value.type}")
    trace = STATE.trace
    if trace is not STATE.lazy or (value.requires_grad and trace.grad_enabled) or why_not() is not None:
        return t
    from ..runtime.cuda_buffers import pinned as pinned_buffer

    buffer = t._buffer()
    made = pinned_buffer(buffer)
    return t if made is buffer else concrete(made)


def is_pinned(t: Tensor) -> bool:
    """Whether a tensor is in pinned memory."""
    buffer = t._value().buffer
    if buffer is None or buffer.type.device is not None or not low_state().host_pool:
        return False
    from ..runtime.cuda_buffers import is_pinned as buffer_is_pinned

    return buffer_is_pinned(buffer)


def device_empty_of(type: Type, name: str) -> Buffer:
    """Uninitialised memory on a device. Raises CudaError, OutOfMemoryError."""
    from ..runtime.cuda_buffers import device_empty

    return device_empty(placed_type(type, name))
