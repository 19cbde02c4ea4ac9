"""Weight normalisation in its first form: `weight_g` and `weight_v` as parameters of the module itself
(Salimans and Kingma 2016). `tracegrad.nn.utils.parametrizations.weight_norm` is the newer form.
"""

from __future__ import annotations

from typing import Any

from ...ir.op import REGISTRY
from ...tracer.library import ArgumentError
from ...tracer.tensor import Tensor, apply
from ..module import Module
from ..parameter import Parameter

__all__ = ["norm_except_dim", "remove_weight_norm", "weight_norm", "weight_of"]


def norm_except_dim(v: Any, pow: int = 2, dim: int | None = 0) -> Any:
    """Norms of the slices of `v` along `dim`, of size 1 in every other dimension; of all of `v` if None or
    -1."""
    if dim is None or dim == -1:
        return v.norm(pow)
    return v.norm(pow, [d for d in range(v.dim()) if d != dim % v.dim()], True)


def weight_of(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """`v * g / norm`, with the norm of each slice along `dim` (of all of `v` if None or -1)."""
    axis = None if dim is None or dim == -1 else dim % v.dim()
    return apply(REGISTRY["weight_norm_interface"], v, g, dim=axis)


def _property(name: str) -> property:
    def get(self: Any) -> Tensor:
        return weight_of(getattr(self, f"{name}_v"), getattr(self, f"{name}_g"), self._weight_norms[name])

    return property(get)


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Computes the parameter `name` from `<name>_g`, norms, and `<name>_v`, directions, whenever it is read.

    Args:
        dim: the norms are those of slices along this dimension; None for one norm.

    Returns:
        The module.
    """
    present = module.__dict__.get("_weight_norms", {})
    if name in present:
        raise ArgumentError(f"{type(module).__name__}.{name} has weight normalisation already")
    weight = module._parameters.get(name)
    if weight is None:
        raise ArgumentError(f"{type(module).__name__} has no parameter {name!r} to normalise")
    wanted = weight.requires_grad
    norms = norm_except_dim(weight.detach(), 2, dim)
    delattr(module, name)
    module.register_parameter(f"{name}_g", Parameter(norms, wanted))
    module.register_parameter(f"{name}_v", Parameter(weight.detach(), wanted))
    if not present:
        cls = type(module)
        module.__class__ = type(
            cls.__name__, (cls,), {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        )
    module.__dict__["_weight_norms"] = {**present, name: dim}
    setattr(type(module), name, _property(name))
    return module


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Makes `name` a plain parameter again, of its present value."""
    present = module.__dict__.get("_weight_norms", {})
    if name not in present:
        raise ArgumentError(f"{type(module).__name__}.{name} has no weight normalisation to remove")
    weight = Parameter(getattr(module, name).detach(), getattr(module, f"{name}_v").requires_grad)
    delattr(type(module), name)
    delattr(module, f"{name}_g")
    delattr(module, f"{name}_v")
    module.__dict__["_weight_norms"] = rest = {k: d for k, d in present.items() if k != name}
    if not rest:
        del module.__dict__["_weight_norms"]
        module.__class__ = type(module).__bases__[0]
    module.register_parameter(name, weight)
    return module
