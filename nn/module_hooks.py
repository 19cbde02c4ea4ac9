"""The part of `Module` that calls it, with the hooks of one module and those of all modules.

Backward hooks sit on two identity ops around `forward`, one over the inputs and one over the outputs: what
their nodes see of a walk back is what the hooks get.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..ir.op import REGISTRY
from ..tracer.callers import warn
from ..tracer.hooks import HookHandle, own_hooks
from ..tracer.library import ArgumentTypeError, RemovableHandle, add_hook
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor, note_change

#: Hooks of all modules around calls, and at registrations: (kind, hook, options ...).
CALLS: OrderedDict[int, Any] = OrderedDict()
REGISTRATIONS: OrderedDict[int, Any] = OrderedDict()


def _entries(kind: str, own: OrderedDict[int, Any]) -> list[tuple[int, tuple[Any, ...]]]:
    """The hooks of one kind in calling order: those of all modules, then the module's."""
    found = [(k, entry[1:]) for k, entry in CALLS.items() if entry[0] == kind] if CALLS else []
    return [*found, *own.items()]


class HookMixin:
    """See `Module`."""

    _forward_hooks: OrderedDict[int, Any]
    _forward_pre_hooks: OrderedDict[int, Any]
    _backward_hooks: OrderedDict[int, Any]
    _backward_pre_hooks: OrderedDict[int, Any]
    forward: Callable[..., Any]

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for _, (hook, with_kwargs) in _entries("forward_pre", self._forward_pre_hooks):
            made = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if made is None:
                continue
            if with_kwargs:
                if not (isinstance(made, tuple) and len(made) == 2):
                    raise ArgumentTypeError(
                        f"a forward pre-hook with kwargs must return None or (args, kwargs), got {made!r:.80}"
                    )
                args, kwargs = made
            else:
                args = made if isinstance(made, tuple) else (made,)
        before = [hook for _, (hook,) in _entries("backward_pre", self._backward_pre_hooks)]
        after = [hook for _, (hook,) in _entries("backward", self._backward_hooks)]
        watch = _BackwardCall(self, before, after) if before or after else None
        if watch is not None:
            args = watch.inputs(args)
        done: set[int] = set()
        try:
            result = self.forward(*args, **kwargs)
            for key, (hook, with_kwargs, _) in _entries("forward", self._forward_hooks):
                done.add(key)
                made = hook(self, args, kwargs, result) if with_kwargs else hook(self, args, result)
                result = result if made is None else made
            return result if watch is None else watch.outputs(result)
        except BaseException:
            for key, (hook, with_kwargs, always) in _entries("forward", self._forward_hooks):
                if always and key not in done:
                    hook(self, args, kwargs, None) if with_kwargs else hook(self, args, None)
            raise

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Calls `hook(module, args)` before `forward`; what it returns replaces the arguments."""
        return _add(self._forward_pre_hooks, hook, (with_kwargs,), prepend)

    def register_forward_hook(
        self,
        hook: Callable[..., Any],
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """Calls `hook(module, args, output)` after `forward`; what it returns replaces the output."""
        return _add(self._forward_hooks, hook, (with_kwargs, always_call), prepend)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Calls `hook(module, grad_input, grad_output)` when the gradients of the positional arguments are
        known; what it returns replaces them. Entries are None where there is no gradient."""
        return _add(self._backward_hooks, hook, (), prepend)

    register_backward_hook = register_full_backward_hook

    def register_full_backward_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Calls `hook(module, grad_output)` when the gradients of the outputs are known; what it returns
        replaces them."""
        return _add(self._backward_pre_hooks, hook, (), prepend)


def _add(
    hooks: OrderedDict[int, Any], hook: Callable[..., Any], options: tuple[Any, ...], first: bool = False,
    kind: tuple[str, ...] = (),
) -> RemovableHandle:  # fmt: skip
    handle = add_hook(hooks, hook, first=first)
    hooks[handle.id] = (*kind, hook, *options)
    note_change()
    return handle


class _BackwardCall:
    """One call of a module that has backward hooks."""

    def __init__(self, module: Any, before: list[Any], after: list[Any]) -> None:
        self.module, self.before, self.after = module, before, after
        self.places: list[int] = []
        self.count = 0
        self.seen: tuple[Any, ...] = ()

    def _through(self, tensors: list[Tensor]) -> list[Any]:
        """The tensors' values through an identity op."""
        made: Any = STATE.trace.emit(REGISTRY["backward_hook"], tuple([t._value() for t in tensors]), {})
        return list(made) if isinstance(made, tuple) else [made]

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, watched."""
        self.count = len(args)
        if not self.after or not STATE.trace.grad_enabled:
            return args
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        if not self.places:
            return args
        made = self._through([args[i] for i in self.places])
        HookHandle(own_hooks(made[0]).after, lambda grads, _: self._finished(grads))
        out = list(args)
        for i, v in zip(self.places, made):
            out[i] = Tensor(v)
        return tuple(out)

    def outputs(self, result: Any) -> Any:
        """The outputs, watched."""
        parts = [result] if isinstance(result, Tensor) else result
        if not isinstance(parts, (tuple, list)):
            warn(
                f"backward hooks of {type(self.module).__name__} see no gradients: forward() must return a "
                f"tensor or a tuple of tensors, got {type(result).__name__}"
            )
            return result
        places = [i for i, t in enumerate(parts) if isinstance(t, Tensor) and t.requires_grad]
        if not places or not STATE.trace.grad_enabled:
            return result
        made = self._through([parts[i] for i in places])
        hooks = own_hooks(made[0])

        def begin(grads: tuple[Any, ...]) -> Any:
            self.seen = self._spread(grads, places, len(parts))
            for hook in self.before:
                self.seen = self._replaced(hook(self.module, self.seen), self.seen, "pre-hook")
            return tuple([self.seen[i] for i in places])

        HookHandle(hooks.before, begin)
        if self.after and not self.places:

            def end(_: Any, grads: Any) -> None:
                self._finished(())

            HookHandle(hooks.after, end)
        out = list(parts)
        for i, v in zip(places, made):
            out[i] = Tensor(v)
        return out[0] if isinstance(result, Tensor) else type(result)(out)

    def _finished(self, grads: tuple[Any, ...]) -> Any:
        """The gradients of the watched inputs, after the hooks."""
        shown = self._spread(grads, self.places, self.count)
        for hook in self.after:
            shown = self._replaced(hook(self.module, shown, self.seen), shown, "hook")
        return tuple([shown[i] for i in self.places]) if self.places else None

    def _spread(self, grads: Any, places: list[int], count: int) -> tuple[Any, ...]:
        out: list[Any] = [None] * count
        for i, g in zip(places, grads):
            out[i] = g
        return tuple(out)

    def _replaced(self, new: Any, old: tuple[Any, ...], what: str) -> tuple[Any, ...]:
        if new is None:
            return old
        new = (new,) if isinstance(new, Tensor) else tuple(new)
        if len(new) != len(old):
            raise ArgumentTypeError(
                f"a backward {what} of {type(self.module).__name__} replaced {len(old)} gradients by "
                f"{len(new)}; return one for each, None where there is none"
            )
        return new


def registered(kind: str, module: Any, name: str, value: Any) -> Any:
    """What the hooks of all modules make of a parameter, buffer or submodule that is registered."""
    for what, hook in list(REGISTRATIONS.values()):
        if what == kind:
            made = hook(module, name, value)
            value = value if made is None else made
    return value


# --- hooks of all modules -----------------------------------------------------------------------------------


def register_module_forward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, args)` before every module's `forward`."""
    return _add(CALLS, hook, (False,), kind=("forward_pre",))


def register_module_forward_hook(
    hook: Callable[..., Any], *, with_kwargs: bool = False, always_call: bool = False
) -> RemovableHandle:
    """Calls `hook(module, args, output)` after every module's `forward`."""
    return _add(CALLS, hook, (with_kwargs, always_call), kind=("forward",))


def register_module_full_backward_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, grad_input, grad_output)` in every module's backward."""
    return _add(CALLS, hook, (), kind=("backward",))


register_module_backward_hook = register_module_full_backward_hook


def register_module_full_backward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, grad_output)` before every module's backward."""
    return _add(CALLS, hook, (), kind=("backward_pre",))


def register_module_parameter_registration_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, name, parameter)` at every `register_parameter`; what it returns replaces it."""
    return _add(REGISTRATIONS, hook, (), kind=("parameter",))


def register_module_buffer_registration_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, name, tensor)` at every `register_buffer`; what it returns replaces it."""
    return _add(REGISTRATIONS, hook, (), kind=("buffer",))


def register_module_module_registration_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Calls `hook(module, name, submodule)` at every `add_module`; what it returns replaces it."""
    return _add(REGISTRATIONS, hook, (), kind=("module",))
