"""The part of `Module` that saves and loads: `state_dict`, `load_state_dict` and their hooks.

A load that fails leaves the module as it was.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..ir.errors import TracegradError
from ..tracer.conversions import from_outside
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentTypeError, RemovableHandle, add_hook
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor, note_change
from .parameter import Parameter

if TYPE_CHECKING:
    from .module import Module

_EXTRA = "_extra_state"


class _IncompatibleKeys(namedtuple("IncompatibleKeys", ["missing_keys", "unexpected_keys"])):
    """What `load_state_dict` did not find and did not use."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<All keys matched successfully>" if not any(self) else super().__repr__()

    __str__ = __repr__


class StateMixin:
    """See `Module`."""

    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _non_persistent_buffers_set: set[str]
    _state_dict_hooks: OrderedDict[int, Any]
    _state_dict_pre_hooks: OrderedDict[int, Any]
    _load_state_dict_pre_hooks: OrderedDict[int, Any]
    _load_state_dict_post_hooks: OrderedDict[int, Any]
    _version: int

    def get_extra_state(self) -> Any:
        """Anything else to save with this module; subclasses define it together with `set_extra_state`."""
        raise NotImplementedError(f"{type(self).__name__} defines no get_extra_state()")

    def set_extra_state(self, state: Any) -> None:
        """Restores what `get_extra_state` gave."""
        raise NotImplementedError(f"{type(self).__name__} defines no set_extra_state()")

    def _has_extra_state(self) -> bool:
        return type(self).get_extra_state is not StateMixin.get_extra_state

    # --- saving ---------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, p in self._parameters.items():
            if p is not None:
                destination[prefix + name] = p if keep_vars else p.detach()
        for name, b in self._buffers.items():
            if b is not None and name not in self._non_persistent_buffers_set:
                destination[prefix + name] = b if keep_vars else b.detach()
        if self._has_extra_state():
            destination[prefix + _EXTRA] = self.get_extra_state()

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """All parameters and persistent buffers by dotted path, as tensors that share the module's memory."""
        if args:  # PyTorch's old positional arguments
            given: list[Any] = [*args, *(destination, prefix, keep_vars)[len(args) :]]
            destination, prefix, keep_vars = given
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        local = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = local
        for hook in list(self._state_dict_pre_hooks.values()):
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, child in self._modules.items():
            if child is not None:
                child.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        for hook in list(self._state_dict_hooks.values()):
            made = hook(self, destination, prefix, local)
            destination = destination if made is None else made
        return destination

    def register_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls `hook(module, prefix, keep_vars)` before the module is saved."""
        return add_hook(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls `hook(module, state_dict, prefix, local_metadata)` after the module was saved."""
        return add_hook(self._state_dict_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls `hook(module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
        error_msgs)` before the module is loaded."""
        return add_hook(self._load_state_dict_pre_hooks, hook)

    def _register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], with_module: bool = False
    ) -> RemovableHandle:
        """The same, without the module as first argument unless asked for."""
        whole = hook if with_module else lambda module, *args: hook(*args)
        return add_hook(self._load_state_dict_pre_hooks, whole)

    _register_state_dict_hook = register_state_dict_post_hook

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls `hook(module, incompatible_keys)` after the module was loaded; it may edit the lists of
        keys."""
        return add_hook(self._load_state_dict_post_hooks, hook)

    # --- loading --------------------------------------------------------------------------------------------

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Loads this module's own tensors; collects what is wrong instead of raising."""
        for hook in list(self._load_state_dict_pre_hooks.values()):
            hook(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        buffers = {k: b for k, b in self._buffers.items() if k not in self._non_persistent_buffers_set}
        own = {k: t for k, t in [*self._parameters.items(), *buffers.items()] if t is not None}
        for name, t in own.items():
            key = prefix + name
            if key in state_dict:
                self._load_one(name, key, t, state_dict[key], local_metadata, error_msgs)
            elif strict:
                missing_keys.append(key)
        if self._has_extra_state():
            if prefix + _EXTRA in state_dict:
                self.set_extra_state(state_dict[prefix + _EXTRA])
            elif strict:
                missing_keys.append(prefix + _EXTRA)
        if strict:
            for key in state_dict:
                if key.startswith(prefix) and key != prefix + _EXTRA:
                    first, *deeper = key[len(prefix) :].split(".", 1)
                    if (deeper and first not in self._modules) or (not deeper and first not in own):
                        unexpected_keys.append(key)

    def _load_one(self, name: str, key: str, t: Tensor, new: Any, metadata: Any, errors: list[str]) -> None:
        new = from_outside(new)
        if not isinstance(new, Tensor):
            errors.append(f"{key!r} must be a tensor, got {type(new).__name__}")
            return
        if t.dim() == 0 and tuple(new.shape) == (1,):
            new = new[0]
        if tuple(new.shape) != tuple(t.shape):
            errors.append(
                f"size mismatch for {key}: the state has {list(new.shape)}, the module {list(t.shape)}"
            )
            return
        if not metadata.get("assign_to_params_buffers", False):
            with no_grad():
                t.copy_(new)
        elif isinstance(t, Parameter):
            made = new if isinstance(new, Parameter) else Parameter(new, t.requires_grad)
            setattr(self, name, made.requires_grad_(t.requires_grad))
        else:
            setattr(self, name, new)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copies tensors of `state_dict` into the module's parameters and buffers.

        Args:
            state_dict: tensors by dotted path, as `state_dict()` gives.
            strict: missing and unexpected keys are an error.
            assign: the tensors take the place of the module's own, keeping their dtype.

        Returns:
            A named tuple of `missing_keys` and `unexpected_keys`.

        Raises:
            TracegradError: keys or shapes don't fit; the module is then as it was.
        """
        if not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(f"load_state_dict() takes a dict, got {type(state_dict).__name__}")
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        metadata = getattr(state_dict, "_metadata", None)
        remaining: Any = OrderedDict(state_dict)
        restore = self._snapshot()

        def load(module: Any, prefix: str, part: Any) -> None:
            local = dict({} if metadata is None else metadata.get(prefix[:-1], {}))
            if assign:
                local["assign_to_params_buffers"] = True
            module._load_from_state_dict(part, prefix, local, True, missing, unexpected, errors)
            for name, child in module._modules.items():
                if child is not None:
                    start = f"{prefix}{name}."
                    load(child, start, OrderedDict((k, v) for k, v in part.items() if k.startswith(start)))
            keys = _IncompatibleKeys(missing, unexpected)
            for hook in list(module._load_state_dict_post_hooks.values()):
                hook(module, keys)

        try:
            load(self, "", remaining)
            if strict and unexpected:
                errors.insert(0, "unexpected keys in the state: " + ", ".join(map(repr, unexpected)))
            if strict and missing:
                errors.insert(0, "keys missing in the state: " + ", ".join(map(repr, missing)))
            if errors:
                hint = " (strict=False ignores keys that don't match)" if missing or unexpected else ""
                raise TracegradError(
                    f"Error(s) in loading state_dict for {type(self).__name__}{hint}:\n\t"
                    + "\n\t".join(errors)
                )
        except BaseException:
            restore()
            raise
        note_change()
        return _IncompatibleKeys(missing, unexpected)

    def _snapshot(self) -> Callable[[], None]:
        """A function that puts every tensor of the tree back to what it holds now. Values are immutable, so
        this copies nothing."""
        STATE.lazy.flush()
        modules: list[Any] = list(self.modules())  # type: ignore[attr-defined]
        registries = [(r, dict(r)) for m in modules for r in (m._parameters, m._buffers)]
        values = [
            (t._storage, t._storage.value) for _, old in registries for t in old.values() if t is not None
        ]

        def restore() -> None:
            for registry, old in registries:
                registry.clear()
                registry.update(old)
            for storage, value in values:
                if storage.value is not value:
                    storage.hold(value)
                    storage.version += 1

        return restore
