"""Weight normalisation in its first form: `weight_g` and `weight_v` as parameters of the module itself
(Salimans and Kingma 2016). `tracegrad.nn.utils.parametrizations.weight_norm` is the newer form.
"""

from __future__ import annotations

from typing import Any

from ...ir.op import REGISTRY
from ...tracer.library import ArgumentError
from ...tracer.making import apply
from ...tracer.tensor import Tensor
from ..module import Module
from ..parameter import Parameter
from .computed import compute, computed, plain

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


def _read(module: Any, name: str, dim: int | None) -> Tensor:
    return weight_of(getattr(module, f"{name}_v"), getattr(module, f"{name}_g"), dim)


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Computes the parameter `name` from `<name>_g`, norms, and `<name>_v`, directions, whenever it is read.

    Args:
        dim: the norms are those of slices along this dimension; None for one norm.

    Returns:
        The module.
    """
    if name in computed(module):
        raise ArgumentError(f"{type(module).__name__}.{name} has weight normalisation already")
    weight = module._parameters.get(name)
    if weight is None:
        raise ArgumentError(f"{type(module).__name__} has no parameter {name!r} to normalise")
    wanted = weight.requires_grad
    norms = norm_except_dim(weight.detach(), 2, dim)
    delattr(module, name)
    module.register_parameter(f"{name}_g", Parameter(norms, wanted))
    module.register_parameter(f"{name}_v", Parameter(weight.detach(), wanted))
    compute(module, name, _read, dim)
    return module


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Makes `name` a plain parameter again, of its present value."""
    if computed(module).get(name, (None,))[0] is not _read:
        raise ArgumentError(f"{type(module).__name__}.{name} has no weight normalisation to remove")
    weight = Parameter(getattr(module, name).detach(), getattr(module, f"{name}_v").requires_grad)
    plain(module, name)
    delattr(module, f"{name}_g")
    delattr(module, f"{name}_v")
    module.register_parameter(name, weight)
    return module
