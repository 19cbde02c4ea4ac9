"""What the libraries written in the traced language (nn, optim, utils) share: removable hooks, errors for bad
arguments, and tensors made straight from memory."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.dtypes import DType
from ..ir.errors import TracegradError
from ..ir.types import Type
from ..runtime.buffers import copy_of, empty
from .recording import STATE, LazyTrace, outside_traces
from .tensor import Tensor, concrete, note_change, ready
from .values import TracedValue


class ArgumentError(TracegradError, ValueError):
    """An argument whose value a layer, an optimiser or a scheduler can't work with."""


class ArgumentTypeError(TracegradError, TypeError):
    """An argument of a type that is not taken."""


class MissingName(TracegradError, AttributeError):
    """A name that a module does not have."""


class MissingKey(TracegradError, KeyError):
    """A key that a container does not have."""

    __str__ = Exception.__str__  # KeyError's quotes its argument


class MissingForward(TracegradError, NotImplementedError):
    """A method that a subclass must define and does not: a module's `forward`, a dataset's `__getitem__`."""


class RemovableHandle:
    """What registering a hook gives: `remove()` takes it off again. Also a context manager."""

    _ids = itertools.count()

    def __init__(self, hooks: dict[int, Any]) -> None:
        self.id = next(RemovableHandle._ids)
        self._hooks = hooks

    def remove(self) -> None:
        """Takes the hook off; a second call does nothing."""
        self._hooks.pop(self.id, None)
        note_change()

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.remove()


def add_hook(
    hooks: OrderedDict[int, Any], hook: Callable[..., Any], *, first: bool = False
) -> RemovableHandle:
    """Puts `hook` last (or first) in `hooks`."""
    if not callable(hook):
        raise ArgumentTypeError(f"a hook must be callable, got {type(hook).__name__}: {hook!r:.60}")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    if first:
        hooks.move_to_end(handle.id, last=False)
    return handle


def filled_state(
    shape: tuple[int, ...], value: float, dtype: DType, device: str | None = None
) -> Tensor:
    """A concrete tensor of `value` on a device (None: the CPU), also while a function is being compiled: it
    becomes state of that function."""
    buffer = empty(Type(dtype, shape))
    buffer.array.fill(value)
    with outside_traces():
        return concrete(buffer.on(device))


def device_name(t: Tensor) -> str | None:
    """The device of a tensor as types name it: `cuda:0`, None for the CPU."""
    return t._storage.value.type.device


def recorded_once(
    key: Any, tensors: Sequence[Any], procedure: Callable[[], Sequence[Tensor]]
) -> list[Tensor]:
    """The tensors that `procedure` gives. In ordinary code its ops are recorded the first time only.

    Args:
        key: with the values of `tensors`, all that the procedure depends on; hashable.
        tensors: every tensor that it reads.
        procedure: only computes: it writes nothing in place, draws no random numbers and runs none of the
            user's functions.
    """
    trace = STATE.trace
    if not isinstance(trace, LazyTrace):
        return list(procedure())
    if trace.walked_back:
        ready(trace, *tensors)

    def record() -> tuple[list[Any], None]:
        return [t._value() for t in procedure()], None

    made: Any = trace.segment(key, [t._value() for t in tensors], record)[0]
    return [Tensor(v) for v in made]


def overwrite(t: Tensor, array: np.ndarray) -> Tensor:
    """Replaces all contents of `t` by a copy of `array`, which has its shape, without recording anything."""
    buffer = copy_of(array, t.dtype).on(t._storage.value.type.device)
    value = TracedValue(buffer.type, None, 0, None, buffer)
    if t._view is None and t._storage.shared is None and STATE.trace is STATE.lazy:
        return t._put(value)
    return t.copy_(Tensor(value))
