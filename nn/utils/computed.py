"""Attributes of one module that are computed whenever they are read. Used by weight_norm.py and
spectral_norm.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..module import Module

Spec = tuple[Callable[..., Any], tuple[Any, ...]]


def computed(module: Module) -> dict[str, Spec]:
    """The module's computed attributes: for each name the function and its options."""
    return module.__dict__.get("_computed", {})


def compute(module: Module, name: str, read: Callable[..., Any], *options: Any) -> None:
    """Makes `module.name` mean `read(module, name, *options)`. `read` is a function of a module, so that the
    module can be copied and pickled."""
    _become(module, {**computed(module), name: (read, options)})


def plain(module: Module, name: str) -> None:
    """Undoes `compute`."""
    _become(module, {k: v for k, v in computed(module).items() if k != name})


def _become(module: Module, specs: dict[str, Spec]) -> None:
    base = type(module).__bases__[0] if computed(module) else type(module)
    module.__dict__.pop("_computed", None)
    module.__class__ = _class_of(base, specs)
    if specs:
        module.__dict__["_computed"] = specs


def _class_of(base: type[Any], specs: dict[str, Spec]) -> type[Any]:
    """A class of the same name with a property for each attribute."""
    if not specs:
        return base
    body: dict[str, Any] = {name: _property(name, *spec) for name, spec in specs.items()}
    body.update(__module__=base.__module__, __qualname__=base.__qualname__, __doc__=base.__doc__)
    return type(base.__name__, (base,), {**body, "__reduce_ex__": _reduce})


def _property(name: str, read: Callable[..., Any], options: tuple[Any, ...]) -> property:
    return property(lambda module: read(module, name, *options))


def _reduce(module: Any, protocol: Any) -> Any:
    return _rebuilt, (type(module).__bases__[0], computed(module)), module.__dict__


def _rebuilt(base: Any, specs: dict[str, Spec]) -> Any:
    made = base.__new__(base)
    made.__class__ = _class_of(base, specs)
    return made
