"""Tensors of modules that are computed from others: `tracegrad.nn.utils.parametrize`.

A parametrised tensor becomes a property of a class made for that one module; what it is computed from is kept
in `module.parametrizations.<name>`, as `original` or `original0`, `original1` ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ...tracer.grad_mode import no_grad
from ...tracer.library import ArgumentError, ArgumentTypeError
from ...tracer.tensor import Tensor, note_change
from ..containers import ModuleDict, ModuleList
from ..module import Module
from ..parameter import Parameter, replace

__all__ = [
    "ParametrizationList", "cached", "is_parametrized", "register_parametrization", "remove_parametrizations",
    "type_before_parametrizations",
]  # fmt: skip

#: While `cached()` is on, the tensors by module and name.
_cache: dict[tuple[int, str], Tensor] = {}
_caching = [0]


@contextmanager
def cached() -> Iterator[None]:
    """Inside, each parametrised tensor is computed once."""
    _caching[0] += 1
    try:
        yield
    finally:
        _caching[0] -= 1
        if not _caching[0]:
            _cache.clear()


class ParametrizationList(ModuleList):
    """The parametrisations of one tensor in order, and the tensors they start from. Made by
    `register_parametrization`.

    Attributes:
        original: what the first is applied to; or `original0`, `original1` ... where its `right_inverse`
        gives a
            sequence.
        is_tensor: whether there is one.
    """

    def __init__(self, modules: Sequence[Module], original: Tensor, unsafe: bool = False) -> None:
        super().__init__(modules)
        self.unsafe = unsafe
        with no_grad():
            new: Any = original
            for module in reversed(list(self)):
                if hasattr(module, "right_inverse"):
                    with suppress(NotImplementedError):
                        new = module.right_inverse(new)
        if not isinstance(new, (Tensor, tuple, list)):
            raise ArgumentTypeError(
                f"right_inverse() must give a tensor or a sequence of tensors, got {type(new).__name__}"
            )
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if self.is_tensor else len(new)
        for name, t in [("original", new)] if self.is_tensor else self._numbered(new):
            self._keep(name, t, original, same=self.is_tensor)
        if not unsafe:
            made = self()
            if made.dtype is not original.dtype or tuple(made.shape) != tuple(original.shape):
                raise ArgumentError(
                    f"a parametrisation must keep dtype and shape (unsafe=True allows more): it makes "
                    f"{made._value().type} of {original._value().type}"
                )

    @staticmethod
    def _numbered(tensors: Any) -> list[tuple[str, Any]]:
        return [(f"original{i}", t) for i, t in enumerate(tensors)]

    def _keep(self, name: str, t: Any, original: Tensor, same: bool) -> None:
        """Registers a tensor to start from; a single one is the old parameter itself, so that optimisers that
        hold it go on."""
        if not isinstance(t, Tensor):
            raise ArgumentTypeError(f"right_inverse() must give tensors, got {type(t).__name__}")
        if not isinstance(original, Parameter):
            self.register_buffer(name, t)
            return
        if same:
            if t is not original:
                replace(original, t)
            self.register_parameter(name, original)
        else:
            self.register_parameter(name, Parameter(t, requires_grad=original.requires_grad))

    def originals(self) -> list[Tensor]:
        """The tensors to start from."""
        return [
            getattr(self, n)
            for n, _ in ([("original", 0)] if self.is_tensor else self._numbered(range(self.ntensors)))
        ]

    def right_inverse(self, value: Tensor) -> None:
        """Sets the tensors to start from so that the result is `value`, by the parametrisations'
        `right_inverse`."""
        with no_grad():
            new: Any = value
            for module in reversed(list(self)):
                if not hasattr(module, "right_inverse"):
                    raise ArgumentError(
                        f"{type(module).__name__} has no right_inverse(), so its tensor can't be assigned"
                    )
                new = module.right_inverse(new)
            new = [new] if isinstance(new, Tensor) else list(new)
            if len(new) != self.ntensors:
                raise ArgumentError(f"right_inverse() gave {len(new)} tensors, expected {self.ntensors}")
            for t, made in zip(self.originals(), new):
                replace(t, made)

    def forward(self) -> Any:
        """The parametrised tensor."""
        first, *rest = list(self)
        out = first(*self.originals())
        for module in rest:
            out = module(out)
        return out


def _read(module: Any, name: str) -> Any:
    if not _caching[0]:
        return module.parametrizations[name]()
    key = (id(module), name)
    if key not in _cache:
        _cache[key] = module.parametrizations[name]()
    return _cache[key]


def _inject(module: Module, name: str) -> None:
    """Makes `name` a property of a class of the module's own."""
    if not is_parametrized(module):
        cls = type(module)
        module.__class__ = type(f"Parametrized{cls.__name__}", (cls,), {"__module__": cls.__module__})
        module.parametrizations = ModuleDict()

    def get(self: Any) -> Any:
        return _read(self, name)

    def put(self: Any, value: Tensor) -> None:
        self.parametrizations[name].right_inverse(value)

    setattr(type(module), name, property(get, put))


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether a module has a parametrised tensor, or one of that name."""
    found = module.__dict__.get("_modules", {}).get("parametrizations")
    if not isinstance(found, ModuleDict):
        return False
    return len(found) > 0 if tensor_name is None else tensor_name in found


def type_before_parametrizations(module: Module) -> type[Any]:
    """The class a module had before its first parametrisation."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def register_parametrization(
    module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False
) -> Module:
    """Computes `module.<tensor_name>` by `parametrization` from now on; further ones are applied after it.

    Args:
        module: has a parameter or buffer of that name.
        parametrization: a module that takes the tensor (or what its `right_inverse` made of it) and gives one
        of
            the same dtype and shape.
        unsafe: dtype and shape may change.

    Returns:
        The module.
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        found: Any = module.parametrizations[tensor_name]
        before = getattr(module, tensor_name)
        made = parametrization(before)
        if not unsafe and (made.dtype is not before.dtype or tuple(made.shape) != tuple(before.shape)):
            raise ArgumentError(
                f"a parametrisation must keep dtype and shape (unsafe=True allows more): it makes "
                f"{made._value().type} of {before._value().type}"
            )
        if hasattr(parametrization, "right_inverse"):
            with no_grad():
                try:
                    value = parametrization.right_inverse(before)
                except NotImplementedError:
                    value = None
            if value is not None:
                found.right_inverse(value)
        found.append(parametrization)
        found.unsafe |= unsafe
        note_change()
        return module
    original = module._parameters.get(tensor_name)
    if original is None:
        original = module._buffers.get(tensor_name)
    if original is None:
        raise ArgumentError(
            f"{type(module).__name__} has no parameter, buffer or parametrised tensor {tensor_name!r}"
        )
    parts = ParametrizationList([parametrization], original, unsafe)
    delattr(module, tensor_name)
    _inject(module, tensor_name)
    module.parametrizations[tensor_name] = parts
    return module


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Makes `module.<tensor_name>` a plain parameter or buffer again.

    Args:
        leave_parametrized: it keeps its present value; else it is the original one.
    """
    if not is_parametrized(module, tensor_name):
        raise ArgumentError(f"{type(module).__name__} has no parametrised tensor {tensor_name!r}")
    found: Any = module.parametrizations[tensor_name]
    if not leave_parametrized and not found.is_tensor:
        raise ArgumentError(
            f"{tensor_name!r} is computed from {found.ntensors} tensors, so there is no original to go back "
            f"to; use leave_parametrized=True"
        )
    first = found.originals()[0]
    kept: Any = first
    if leave_parametrized:
        with no_grad():
            value = getattr(module, tensor_name).detach()
        if found.is_tensor:
            replace(first, value)
        else:
            kept = Parameter(value, first.requires_grad) if isinstance(first, Parameter) else value
    is_parameter = isinstance(first, Parameter)
    delattr(type(module), tensor_name)
    del module.parametrizations[tensor_name]
    if not is_parametrized(module):
        delattr(module, "parametrizations")
        module.__class__ = type(module).__bases__[0]
    if is_parameter:
        module.register_parameter(tensor_name, kept)
    else:
        module.register_buffer(tensor_name, kept)
    return module
