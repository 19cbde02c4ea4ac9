"""`Module`: named parameters, buffers and submodules, and the call. Saving and loading are in
module_state.py, iterating and converting in module_tree.py.

A call under `compile` tells the trace what it relied on (`_trace_state`), and whatever changes that notes the
change.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ..tracer.library import ArgumentError, ArgumentTypeError, MissingForward, MissingName
from ..tracer.outside import RELIED, TRACKED
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor, note_change
from .module_hooks import CALLS, REGISTRATIONS, HookMixin, registered
from .module_state import StateMixin
from .module_tree import TreeMixin
from .parameter import Buffer, Parameter


class Module(HookMixin, TreeMixin, StateMixin):
    """Base of all layers and models (PyTorch's `nn.Module`). Subclasses call `super().__init__()` first,
    assign parameters and submodules to attributes, and define `forward`.

    Attributes:
        training: whether the module is in training mode; set by `train()` and `eval()`.
    """

    training: bool
    _version: int = 1

    def __init__(self) -> None:
        put = self.__dict__.__setitem__
        put("training", True)
        put("_parameters", {})
        put("_buffers", {})
        put("_non_persistent_buffers_set", set())
        put("_modules", {})
        for name in (
            "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
            "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
            "_load_state_dict_post_hooks",
        ):  # fmt: skip
            put(name, OrderedDict())

    # --- calling --------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise MissingForward(f"{type(self).__name__} has no forward(); define it in the class")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        d = self.__dict__
        trace = STATE.trace
        if trace is not STATE.lazy:
            trace.guard_module(self, self._trace_state())
        if CALLS or d["_forward_hooks"] or d["_forward_pre_hooks"]:
            return self._call_with_hooks(args, kwargs)
        if d["_backward_hooks"] or d["_backward_pre_hooks"]:
            return self._call_with_hooks(args, kwargs)
        return self.forward(*args, **kwargs)

    def _trace_state(self) -> tuple[Any, ...]:
        """What a trace of this module relies on, compared with `==`. Holds the cells themselves, so that no
        new one can take an old one's identity."""
        d = self.__dict__
        return (
            d["training"],
            tuple([None if p is None else p._storage for p in d["_parameters"].values()]),
            tuple([None if b is None else b._storage for b in d["_buffers"].values()]),
            tuple(d["_modules"].items()),
            tuple(d["_forward_hooks"].items()),
            tuple(d["_forward_pre_hooks"].items()),
            tuple(d["_backward_hooks"].items()),
            tuple(d["_backward_pre_hooks"].items()),
            tuple(CALLS.items()),
        )

    # --- attributes -----------------------------------------------------------------------------------------

    def _check_name(self, name: Any, what: str, registry: dict[str, Any]) -> None:
        if "_parameters" not in self.__dict__:
            raise MissingName(
                f"{type(self).__name__} gets a {what} before Module.__init__ ran; "
                f"call super().__init__() first in its __init__"
            )
        if not isinstance(name, str):
            raise ArgumentTypeError(
                f"the name of a {what} must be a string, got {type(name).__name__}: {name!r:.60}"
            )
        if "." in name:
            raise ArgumentError(f"the name of a {what} can't contain a dot, got {name!r}")
        if not name:
            raise ArgumentError(f"the name of a {what} can't be empty")
        if hasattr(self, name) and name not in registry:
            raise ArgumentError(
                f"{type(self).__name__} already has an attribute {name!r}; choose another name"
            )

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter (or a name for one that is missing: None)."""
        self._check_name(name, "parameter", self.__dict__.get("_parameters", {}))
        if param is not None and not isinstance(param, Parameter):
            raise ArgumentTypeError(
                f"parameter {name!r} must be an nn.Parameter or None, got {type(param).__name__}; wrap it: "
                f"Parameter(t)"
            )
        if param is not None and param.grad_fn is not None:
            raise ArgumentError(
                f"parameter {name!r} must be a leaf, but was computed by {param.grad_fn.name()}; compute it "
                f"in forward()"
            )
        self._parameters[name] = registered("parameter", self, name, param) if REGISTRATIONS else param
        note_change()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Adds a tensor that is state but not trained. Persistent ones are part of the `state_dict`."""
        self._check_name(name, "buffer", self.__dict__.get("_buffers", {}))
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"buffer {name!r} must be a tensor or None, got {type(tensor).__name__}")
        self._buffers[name] = registered("buffer", self, name, tensor) if REGISTRATIONS else tensor
        (self._non_persistent_buffers_set.discard if persistent else self._non_persistent_buffers_set.add)(
            name
        )
        note_change()

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a submodule."""
        self._check_name(name, "module", self.__dict__.get("_modules", {}))
        if module is not None and not isinstance(module, Module):
            raise ArgumentTypeError(
                f"module {name!r} must be an nn.Module or None, got {type(module).__name__}"
            )
        self._modules[name] = registered("module", self, name, module) if REGISTRATIONS else module
        note_change()

    register_module = add_module

    def __getattr__(self, name: str) -> Any:
        d = self.__dict__
        for registry in ("_parameters", "_buffers", "_modules"):
            found = d.get(registry)
            if found is not None and name in found:
                return found[name]
        raise MissingName(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        d = self.__dict__
        params = d.get("_parameters")
        if isinstance(value, Parameter):
            self._forget(name, "_parameters")
            self.register_parameter(name, value)
        elif params is not None and name in params:
            if value is not None:
                raise ArgumentTypeError(
                    f"{name!r} is a parameter of {type(self).__name__}: assign an nn.Parameter or None, "
                    f"not {type(value).__name__}; to change its values write in place under no_grad()"
                )
            self.register_parameter(name, None)
        elif isinstance(value, Module):
            self._forget(name, "_modules")
            self.add_module(name, value)
        elif name in d.get("_modules", ()):
            if value is not None:
                raise ArgumentTypeError(
                    f"{name!r} is a submodule of {type(self).__name__}: assign an nn.Module or None, "
                    f"not {type(value).__name__}"
                )
            self.add_module(name, None)
        elif isinstance(value, Buffer) or name in d.get("_buffers", ()):
            if value is not None and not isinstance(value, Tensor):
                raise ArgumentTypeError(
                    f"{name!r} is a buffer of {type(self).__name__}: assign a tensor or None, not "
                    f"{type(value).__name__}"
                )
            known = name in d.get("_buffers", ())
            persistent = value.__dict__.get("persistent", True) if not known and value is not None else None
            if persistent is None:
                persistent = name not in d["_non_persistent_buffers_set"]
            self._forget(name, "_buffers")
            self.register_buffer(name, value, persistent)
        else:
            if (name == "training" and d.get("training") != value) or (id(d), name) in RELIED:
                note_change()
            object.__setattr__(self, name, value)

    def _forget(self, name: str, unless: str) -> None:
        """Drops `name` from every registry but one, so that an attribute can change its kind."""
        self.__dict__.pop(name, None)
        for registry in ("_parameters", "_buffers", "_modules"):
            if registry != unless:
                self.__dict__.get(registry, {}).pop(name, None)

    def __delattr__(self, name: str) -> None:
        for registry in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__.get(registry, ()):
                del self.__dict__[registry][name]
                self._non_persistent_buffers_set.discard(name)
                note_change()
                return
        if name not in self.__dict__:
            raise MissingName(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__delattr__(self, name)
        note_change()

    def __dir__(self) -> list[str]:
        names = {*dir(type(self)), *self.__dict__, *self._parameters, *self._buffers, *self._modules}
        return sorted(n for n in names if not n[0].isdigit())

    # --- text -----------------------------------------------------------------------------------------------

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """The text between the brackets of `repr`; subclasses define it."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = [f"({k}): " + _indented(repr(m)) for k, m in self._modules.items()]
        if not children and len(lines) <= 1:
            return f"{self._get_name()}({extra})"
        return f"{self._get_name()}(\n  " + "\n  ".join(lines + children) + "\n)"


TRACKED.append(Module)


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
