"""Spectral normalisation in its first form: a parameter `weight_orig` and buffers `weight_u` and `weight_v`
of the module itself (Miyato et al. 2018). `tracegrad.nn.utils.parametrizations.spectral_norm` is the newer
form.
"""

from __future__ import annotations

from typing import Any

from ...tracer.grad_mode import no_grad
from ...tracer.library import ArgumentError
from ...tracer.random import randn
from ..functional import normalize
from ..module import Module
from ..parameter import Parameter
from .computed import compute, computed, plain

__all__ = ["remove_spectral_norm", "spectral_norm"]


class _Iteration:
    """The hook that improves the estimate of the largest singular value before each forward in training."""

    def __init__(self, name: str, steps: int, dim: int, eps: float) -> None:
        self.name, self.steps, self.dim, self.eps = name, steps, dim, eps

    def __call__(self, module: Any, inputs: Any) -> None:
        if module.training:
            weight = _matrix(getattr(module, f"{self.name}_orig").detach(), self.dim)
            u, v = getattr(module, f"{self.name}_u"), getattr(module, f"{self.name}_v")
            with no_grad():
                for _ in range(self.steps):
                    v.copy_(normalize(weight.t().mv(u), dim=0, eps=self.eps))
                    u.copy_(normalize(weight.mv(v), dim=0, eps=self.eps))


def _matrix(weight: Any, dim: int) -> Any:
    if dim:
        weight = weight.permute(dim, *(d for d in range(weight.dim()) if d != dim))
    return weight.reshape(weight.shape[0], -1)


def _read(module: Any, name: str, dim: int) -> Any:
    weight, u, v = (getattr(module, f"{name}_{part}") for part in ("orig", "u", "v"))
    return weight / u.clone().dot(_matrix(weight, dim).mv(v.clone()))


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12,
    dim: int | None = None,
) -> Module:  # fmt: skip
    """Divides the parameter `name` by its largest singular value, as a matrix whose rows are its slices along
    `dim`. Each forward in training mode makes `n_power_iterations` steps of the estimate.

    Args:
        dim: 0 if None, 1 for transposed convolutions.

    Returns:
        The module.

    Raises:
        TracegradError: no such parameter, a parameter that is normalised already, or no steps.
    """
    who = type(module).__name__
    if name in computed(module):
        raise ArgumentError(f"spectral_norm(): {who}.{name} is normalised already")
    weight = module._parameters.get(name)
    if weight is None or not weight.dim():
        raise ArgumentError(f"spectral_norm(): {who} has no parameter {name!r} to normalise")
    if n_power_iterations < 1:
        raise ArgumentError(f"spectral_norm(): n_power_iterations must be >= 1, got {n_power_iterations}")
    if dim is None:
        dim = 1 if "ConvTranspose" in who else 0
    dim %= weight.dim()
    rows, columns = _matrix(weight.detach(), dim).shape
    u = normalize(randn(rows, dtype=weight.dtype), dim=0, eps=eps)
    v = normalize(randn(columns, dtype=weight.dtype), dim=0, eps=eps)
    delattr(module, name)
    module.register_parameter(f"{name}_orig", weight)
    module.register_buffer(f"{name}_u", u)
    module.register_buffer(f"{name}_v", v)
    compute(module, name, _read, dim)
    module.register_forward_pre_hook(_Iteration(name, n_power_iterations, dim, eps))
    return module


def remove_spectral_norm(module: Module, name: str = "weight") -> Module:
    """Makes `name` a plain parameter again, of its present value."""
    if computed(module).get(name, (None,))[0] is not _read:
        raise ArgumentError(f"{type(module).__name__}.{name} has no spectral normalisation to remove")
    original = getattr(module, f"{name}_orig")
    weight = Parameter(getattr(module, name).detach(), original.requires_grad)
    plain(module, name)
    for part in ("orig", "u", "v"):
        delattr(module, f"{name}_{part}")
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook[0], _Iteration) and hook[0].name == name:
            del module._forward_pre_hooks[key]
    module.register_parameter(name, weight)
    return module
