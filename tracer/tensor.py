"""`Tensor`: PyTorch's tensor over a storage cell of traced values. Operations are bound to it in
tracer/methods.py.

A tensor is a storage and, for a view, the chain of view ops that leads from the storage's base to it. Reading
a view after its base was written replays the chain; writing through a view puts the new elements into the
base with each op's `unview`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.errors import DeviceError, DTypeError, GradError, TraceError
from ..ir.op import REGISTRY, Op
from ..runtime.buffers import Buffer
from ..runtime.tensor_bytes import from_bytes, to_bytes
from . import detached
from .description import Description
from .hooks import HookHandle, HookTable, own_hooks, retain
from .meta import GradFn, View
from .meta import Size as Size
from .meta import device as device
from .placement import TO_DEVICE
from .recording import STATE
from .trace import Trace
from .values import Storage, TracedValue, history, storage_of

_DETACH = REGISTRY["detach"]


class Tensor(Description):
    """A multi-dimensional array that records what is done to it. Made by `tracegrad.tensor` and the other
    creation functions; `Tensor(2, 3)` and `Tensor([1.0, 2.0])` work as in PyTorch."""

    __array_priority__ = 1000  # NumPy scalars leave operators to us

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_cached",
        "_grad",
        "_hold",
        "_storage",
        "_version_seen",
        "_view",
    )

    _storage: Storage
    _view: View | None
    _cached: TracedValue | None  # (these three are of views, others may lack them)
    _hold: Storage | None
    _version_seen: int
    _grad: Any
    _hooks: HookTable | None = None  # (hardly any tensor has one of its own)
    _retains: bool = False
    _from_data: Callable[..., Tensor]
    backward: Callable[..., None]

    def __init__(self, value: Any = None, *more: Any) -> None:
        try:
            self._storage = storage_of(value)
        except AttributeError:  # a user's call, with sizes or data
            given = () if value is None and not more else (value, *more)
            self._storage = self._from_data(*given)._storage
        self._view = None
        self._grad = None

    # --- values

    def _value(self) -> TracedValue:
        """The current SSA value; replays the view chain if the base was written since."""
        storage = self._storage
        view = self._view
        if view is None:
            return storage.value
        cached = self._cached
        trace = STATE.trace
        if cached is not None and self._version_seen == storage.version:
            # Compiled functions write native storages without a new version.
            if cached.trace is trace or (cached.buffer and trace is STATE.lazy and not storage.native):
                return cached
        # The view was made once: that it is read under no_grad() now does not cut it off.
        enabled, trace.grad_enabled = trace.grad_enabled, True
        try:
            value: Any = detached.read(trace, storage, view) if detached.WRITTEN else None
            if value is None:
                value = storage.value
                for op, attrs in view:
                    value = trace.emit(op, (value,), attrs)
        finally:
            trace.grad_enabled = enabled
        self._cache(value)
        return value

    def _cache(self, value: TracedValue | None) -> None:
        """Notes what this view sees of the base's current version. Where gradients flow, the value must
        outlive the pending program: it is the one that the graph knows."""
        self._cached = value
        self._version_seen = self._storage.version
        held = value is not None and value.requires_grad and STATE.trace is STATE.lazy
        self._hold = storage_of(value) if held else None  # type: ignore[arg-type]

    def _put(self, new: TracedValue) -> Tensor:
        """Replaces the contents in place (`new` freshly recorded, of this tensor's type)."""
        storage = self._storage
        trace = STATE.trace
        device = storage.value.type.device
        if new.type.device is not device and new.type.device != device:
            new = _across(trace, new, device)
        unseen = not trace.grad_enabled or _goes_through_detach(self._view)
        if storage.leaf is not None and not unseen:
            raise GradError(
                "a leaf tensor that requires grad is being written in place; do it under no_grad(), "
                "or write to a clone()"
            )
        if self._view is None:
            storage.put(_with_history(trace, storage, new) if unseen else new)
            return self
        apart = detached.write(trace, storage, self._view, new) if unseen else None
        value: Any = apart if apart is not None else detached.put_back(trace, storage.value, self._view, new)
        if unseen:
            value = _with_history(trace, storage, value)
        storage.put(value)
        # Where gradients flow, they flow through the base.
        self._cache(None if value.requires_grad or apart is not None else new)
        return self

    def _buffer(self) -> Buffer:
        """The contents, running what is pending. Under `compile` this is an error that names the line."""
        value = self._value()
        if value.buffer is not None and STATE.trace is STATE.lazy:
            return value.buffer
        if self._view is not None and value.buffer is None:
            # A view's contents are those of a fresh copy, which the flush must keep.
            keep = Tensor(STATE.trace.emit(REGISTRY["alias"], (value,), {}))
            return STATE.trace.materialize(keep._storage.value)
        return STATE.trace.materialize(value)

    def _memory(self) -> Buffer:
        """The contents of the storage's base, which its views share."""
        value = self._storage.value
        trace = STATE.trace
        return value.buffer if value.buffer is not None and trace is STATE.lazy else trace.materialize(value)

    def _array(self) -> np.ndarray:
        return self._buffer().array

    # --- out of the graph

    def item(self) -> Any:
        """The Python number in a tensor of one element."""
        value = self._value()
        if value.type.numel != 1:
            raise TraceError(
                f"item(): a tensor of type {value.type} has {value.type.numel} elements, not one"
            )
        return self._buffer().number()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        a = self._array()
        return (a.astype(np.float32) if self.dtype is dtypes.bfloat16 else a).tolist()

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The contents as a NumPy array that shares memory. Raises for tensors that require grad, as
        PyTorch.
        """
        if self._storage.value.type.device is not None:
            if not force:
                raise DeviceError(
                    f"can't convert a tensor of type {self._value().type} to numpy: it is not on the CPU; "
                    f"use tensor.cpu() to copy it there first"
                )
            return self.detach().cpu().numpy()
        if self.requires_grad and not force:
            raise GradError("can't call numpy() on a tensor that requires grad; use tensor.detach().numpy()")
        buffer = self._memory()
        self._storage.shared = buffer
        if self._view is None:
            return buffer.array
        shape, strides, offset = self._layout()
        item = self.dtype.itemsize
        memory = buffer.array.reshape(-1)[offset:]
        return np.lib.stride_tricks.as_strided(memory, shape, [s * item for s in strides])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        a = self.numpy()
        return a if dtype is None else a.astype(dtype, copy=bool(copy))

    def __repr__(self) -> str:
        from .printing import tensor_repr

        return tensor_repr(self)

    def __format__(self, spec: str) -> str:
        if self.dim() == 0 and type(self) is Tensor:
            return format(self.item(), spec)
        if spec and self.dim():
            raise DTypeError(
                f"a tensor of type {self._value().type} can't be formatted with {spec!r}; format its item()s"
            )
        return format(str(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy with memory of its own, its gradient included; only leaves have one."""
        if not self.is_leaf:
            raise GradError(
                "only leaf tensors can be deep-copied: the copy of a computed tensor would have no history; "
                "use clone() or detach()"
            )
        if id(self) in memo:
            return memo[id(self)]
        rebuild, args = self.__reduce_ex__(4)[:2]
        out = memo[id(self)] = rebuild(*args)
        if isinstance(self._grad, Tensor):
            out._grad = self._grad.__deepcopy__(memo)
        ours = ("_post_accumulate_grad_hooks", "_hooks", "_retains")
        kept = {k: v for k, v in self.__dict__.items() if k not in ours}
        out.__dict__.update(copy.deepcopy(kept, memo))
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        args = (type(self), to_bytes(self._buffer()), self.requires_grad)
        place = self._storage.value.type.device
        return (_rebuild, args if place is None else (*args, place))

    # --- autograd

    @property
    def requires_grad(self) -> bool:
        return self._value().requires_grad

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self.requires_grad_(flag)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Says whether gradients are wanted for this leaf. Only floating-point leaves can require grad."""
        value = self._value()
        if requires_grad == value.requires_grad:
            return self
        if requires_grad.__class__ is not bool:
            raise DTypeError(f"requires_grad must be a bool, got {requires_grad!r:.60}")
        if requires_grad and value.type.dtype.kind != "f":
            raise GradError(
                f"only floating-point tensors can require gradients, not {value.type}; convert it, "
                f"e.g. x.float()"
            )
        if not requires_grad and not self.is_leaf:
            raise GradError("requires_grad can only be switched off on leaves; use detach()")
        trace = STATE.trace
        if self._view is not None and requires_grad:
            # A detached view that becomes a leaf of its own keeps sharing memory only if nothing else does.
            fresh = Tensor(trace.emit(REGISTRY["alias"], (value,), {}))
            self._storage, self._view = fresh._storage, None
            value = self._storage.value
        storage = self._storage
        if value.buffer is not None:
            made = TracedValue(value.type, None, 0, None, value.buffer)
        else:
            made = trace.emit(REGISTRY["alias"], (value,), {})
        storage.leaf = weakref.ref(self) if requires_grad else None
        made.requires_grad = requires_grad
        made.leaf = storage.leaf
        made.storage = storage.ref
        storage.hold(made)
        if made.trace is not None:
            made.trace.handles.append(storage.ref)
        note_change()
        return self

    @property
    def is_leaf(self) -> bool:
        value = self._value()
        return not value.requires_grad or value.leaf is not None

    @property
    def grad_fn(self) -> Any:
        value = self._value()
        return GradFn(history(value)) if value.requires_grad and value.leaf is None else None

    @property
    def grad(self) -> Any:
        g = self._grad
        if g is None or isinstance(g, Tensor):
            return STATE.trace.read_grad(self, g)
        raise TraceError(str(g))

    @grad.setter
    def grad(self, new: Tensor | None) -> None:
        if new is not None:
            if not isinstance(new, Tensor):
                raise DTypeError(f"a gradient must be a tensor or None, got {type(new).__name__}")
            old = self._value().type
            if new._value().type != old:
                raise GradError(f"a gradient of type {new._value().type} assigned to a tensor of type {old}")
        STATE.trace.write_grad(self)
        self._grad = new

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    @property
    def retains_grad(self) -> bool:
        return self._retains

    def retain_grad(self) -> None:
        """Keeps `.grad` for this non-leaf in the next backward."""
        if not self.requires_grad:
            raise GradError("retain_grad() on a tensor that does not require grad")
        if not self.is_leaf:
            self._retains = True
            retain(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Any:
        """Calls `hook(grad)` when this tensor's gradient is computed; what it returns replaces the
        gradient.
        """
        if not self.requires_grad:
            raise GradError("register_hook() on a tensor that does not require grad")
        value = self._value()
        if value.leaf is None:
            return HookHandle(own_hooks(history(value)).gradient, hook)
        if self._hooks is None:
            self._hooks = HookTable()
        return HookHandle(self._hooks, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> HookHandle:
        """Calls `hook(tensor)` after a backward added to this leaf's `.grad`."""
        if not self.requires_grad or not self.is_leaf:
            raise GradError(
                "register_post_accumulate_grad_hook() on a tensor that is no leaf, or does not require grad"
            )
        return HookHandle(self.__dict__.setdefault("_post_accumulate_grad_hooks", HookTable()), hook)

    def detach(self) -> Tensor:
        """A view of the same contents that gradients do not flow through."""
        return make_view(self, REGISTRY["detach"], {})

    def detach_(self) -> Tensor:
        """Cuts this tensor off its history."""
        value = self._value()
        self._storage.leaf = None
        fresh = STATE.trace.emit(REGISTRY["detach"], (value,), {})
        self._storage.put(fresh)
        return self

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, Tensor):
            raise DTypeError(f".data must be set to a tensor, got {type(new).__name__}")
        trace = STATE.trace
        old, given = self._value(), new._value()
        if given.type != old.type:
            if trace is not STATE.lazy or (old.requires_grad and given.type.dtype.kind != "f"):
                raise GradError(f".data of type {old.type} set to a tensor of type {given.type}")
            self.__become(new.detach(), old.requires_grad and self.is_leaf)
            return
        enabled, trace.grad_enabled = trace.grad_enabled, False
        try:
            self._put(trace.emit(REGISTRY["alias"], (new._value(),), {}))
        finally:
            trace.grad_enabled = enabled

    def __become(self, other: Tensor, leaf: bool) -> None:
        """Makes this object see another tensor's storage, of another type."""
        self._see(other)
        note_change()
        if leaf:
            self.requires_grad_()

    def _see(self, other: Tensor) -> None:
        """Makes this object see what another does."""
        self._storage, self._view = other._storage, other._view
        if other._view is not None:
            self._cached, self._hold = other._cached, other._hold
            self._version_seen = other._version_seen


def _across(trace: Trace, value: Any, device: str | None) -> Any:
    """A value that is about to be written into a storage on another device, there."""
    if trace is STATE.lazy and value.buffer is not None and not (value.requires_grad and trace.grad_enabled):
        buffer = value.buffer.on(device)
        return TracedValue(buffer.type, None, 0, None, buffer)
    return trace.emit(TO_DEVICE, (value,), {"device": device, "source": value.type.device})


def _with_history(trace: Trace, storage: Storage, value: Any) -> Any:
    """What a write that autograd does not see (under no_grad, or through `detach`) puts into a storage:
    the new contents, and the gradient's path of the old."""
    if value.requires_grad:
        value = trace.emit(REGISTRY["detach"], (value,), {})
    old = storage.value
    if not old.requires_grad or storage.leaf is not None:
        return value
    enabled, trace.grad_enabled = trace.grad_enabled, True
    try:
        return trace.emit(REGISTRY["rebind"], (old, value), {})
    finally:
        trace.grad_enabled = enabled


def _goes_through_detach(view: View | None) -> bool:
    return view is not None and any(op.name == "detach" for op, _ in view)


def _rebuild(cls: type, contents: bytes, requires_grad: bool, place: str | None = None) -> Tensor:
    t = concrete(from_bytes(contents).on(place))
    return t.requires_grad_() if requires_grad else t


def note_change() -> None:
    """Called when Python changes what compiled functions must look at again (flags, parameters)."""
    EPOCH[0] += 1


#: Counts changes to train/eval flags, requires_grad flags and parameters; compiled functions re-check their
#: guards
#: only when it moved.
EPOCH = [0]


def concrete(buffer: Buffer) -> Tensor:
    """A leaf tensor over given memory. While a function is being compiled: a constant of its program."""
    value = TracedValue(buffer.type, None, 0, None, buffer)
    trace = STATE.trace
    return Tensor(value if trace is STATE.lazy else trace.emit(REGISTRY["alias"], (value,), {}))


def ready(trace: Trace, *tensors: Any) -> None:
    """Called with a user op's operands before it is recorded, where `walked_back`: a forward computation
    after a backward starts a new program, and so does anything after an overlong one."""
    if trace.overlong or (
        trace.walked_back
        and trace.grad_enabled
        and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    ):
        trace.flush()


class Number(Tensor):
    """A Python float that a compiled function takes as an argument and that was seen to change: it promotes
    as the number that it is."""

    __slots__ = ()


def make_view(t: Tensor, op: Op, attrs: dict[str, Any]) -> Tensor:
    """A tensor that shares `t`'s storage, seen through a view op."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, t)
    value = trace.emit(op, (t._value(),), attrs)
    out = _NEW(Tensor)
    out._storage = storage = t._storage
    step = detached.DetachPoint((op, attrs)) if op is _DETACH else (op, attrs)
    out._view = (step,) if t._view is None else (*t._view, step)
    out._cached = value
    out._version_seen = storage.version
    out._hold = storage_of(value) if value.requires_grad and trace is STATE.lazy else None  # as in `_cache`
    out._grad = None
    return out


_NEW: Any = object.__new__
