"""The part of `Module` that walks the tree of modules: iteration, look-up by path, and what applies to all of
it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..ir.dtypes import DType, bfloat16, float16, float32, float64
from ..ir.errors import DTypeError
from ..tracer.devices import on_device, resolved
from ..tracer.library import ArgumentTypeError, MissingName
from ..tracer.tensor import Tensor, note_change
from ..tracer.tensor import device as Device
from .parameter import Parameter, is_floating, replace

if TYPE_CHECKING:
    from .module import Module


class TreeMixin:
    """See `Module`."""

    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    training: bool

    # --- iteration ------------------------------------------------------------------------------------------

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module under `prefix` and all below it with their dotted paths."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self  # type: ignore[misc]
        for name, child in self._modules.items():
            if child is not None:
                yield from child.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct submodules with their names, each once."""
        seen: set[Any] = set()
        for name, child in self._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        """Direct submodules."""
        for _, child in self.named_children():
            yield child

    def _named_members(
        self, members: Callable[[Module], Any], prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        found: Any = self.named_modules(None, prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, module in found:
            for name, t in members(module):
                if t is None or id(t) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(t))
                yield f"{path}.{name}" if path else name, t

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Parameters with their dotted paths; shared ones once."""
        return self._named_members(lambda m: m._parameters.items(), prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Parameters, for an optimiser."""
        for _, p in self.named_parameters(recurse=recurse):
            yield p

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Buffers with their dotted paths; shared ones once."""
        return self._named_members(lambda m: m._buffers.items(), prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Buffers."""
        for _, b in self.named_buffers(recurse=recurse):
            yield b

    # --- look-up --------------------------------------------------------------------------------------------

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; itself for ""."""
        at: Any = self
        for name in target.split(".") if target else ():
            child = at._modules.get(name)
            if child is None:
                raise MissingName(f"{type(at).__name__} has no submodule {name!r} (looking for {target!r})")
            at = child
        return at

    def set_submodule(self, target: str, module: Module) -> None:
        """Puts a module at a dotted path whose parent exists."""
        path, _, name = target.rpartition(".")
        setattr(self.get_submodule(path), name, module)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        return self._get_member(target, "_parameters", "parameter")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path."""
        return self._get_member(target, "_buffers", "buffer")

    def _get_member(self, target: str, registry: str, what: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        found = getattr(module, registry).get(name)
        if found is None:
            raise MissingName(f"{type(module).__name__} has no {what} {name!r} (looking for {target!r})")
        return found

    # --- the whole tree -------------------------------------------------------------------------------------

    def apply(self, fn: Callable[[Module], Any]) -> Any:
        """Calls `fn` on every submodule, then on this module."""
        for child in self.children():
            child.apply(fn)
        fn(self)  # type: ignore[arg-type]
        return self

    def train(self, mode: bool = True) -> Any:
        """Sets training mode here and below."""
        if not isinstance(mode, bool):
            raise ArgumentTypeError(f"train() takes a bool, got {type(mode).__name__}: {mode!r:.60}")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Any:
        """Sets evaluation mode here and below."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Switches gradients of all parameters on or off."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients, or sets them to zero."""
        for p in self.parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad = p.grad.detach()
                p.grad.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Replaces the contents of every parameter, gradient and buffer by `fn` of them."""
        if recurse:
            for child in self.children():
                child._apply(fn)
        for p in self._parameters.values():
            if p is None:
                continue
            new = fn(p.detach())
            grad = p._grad if isinstance(p._grad, Tensor) else None  # a compiled step may have used it up
            if new._value().type != p._value().type:
                p.grad = None
                replace(p, new)
                if grad is not None:
                    p.grad = fn(grad.detach())
        for name, b in self._buffers.items():
            if b is not None:
                self._buffers[name] = fn(b)
        note_change()
        return self

    def to(self, *args: Any, dtype: DType | None = None, **kwargs: Any) -> Any:
        """Converts floating-point parameters and buffers to a dtype, and moves all to a device. Takes
        `to(device)`, `to(dtype)`, `to(device, dtype)` and `to(tensor)`, as PyTorch."""
        where: Any = None
        for a in (*args, kwargs.pop("device", None)):
            if isinstance(a, DType):
                dtype = a
            elif isinstance(a, Tensor):
                dtype, where = a.dtype, a.device
            elif isinstance(a, (str, Device)) or (isinstance(a, int) and not isinstance(a, bool)):
                where = a
        if dtype is not None and dtype.kind != "f":
            raise DTypeError(f"a module can only be converted to floating-point types, not {dtype}")
        place = None if where is None else resolved(where)

        def changed(t: Any) -> Any:
            if where is not None:
                t = on_device(t, place)
            return t.to(dtype) if dtype is not None and is_floating(t) else t

        return self if dtype is None and where is None else self._apply(changed)

    def type(self, dst_type: DType) -> Any:
        """Converts all parameters and buffers to a dtype."""
        return self._apply(lambda t: t.to(dst_type))

    def float(self) -> Any:
        """Converts floating-point parameters and buffers to float32."""
        return self.to(float32)

    def double(self) -> Any:
        """Converts floating-point parameters and buffers to float64."""
        return self.to(float64)

    def half(self) -> Any:
        """Converts floating-point parameters and buffers to float16."""
        return self.to(float16)

    def bfloat16(self) -> Any:
        """Converts floating-point parameters and buffers to bfloat16."""
        return self.to(bfloat16)

    def cpu(self) -> Any:
        """Moves all parameters and buffers to the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Any:
        """Moves all parameters and buffers to a GPU. Raises DTypeError where there is none."""
        return self.to("cuda" if device is None else device)
