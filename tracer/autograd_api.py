"""The names of `tracegrad.autograd`. What is behind them: the walk back in autograd.py, functions with
their own gradient in function.py, anomaly mode in anomaly.py."""

from __future__ import annotations

from typing import Any

from . import autograd as _core
from . import forward_ad as forward_ad
from . import function as function
from . import functional_autograd as functional
from .anomaly import detect_anomaly, is_anomaly_check_nan_enabled, is_anomaly_enabled, set_detect_anomaly
from .arguments import check_names
from .autograd import backward
from .func.batching import vmap
from .function import Function
from .grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from .gradcheck import gradcheck, gradgradcheck
from .tensor import Tensor

__all__ = [
    "Function",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "forward_ad",
    "function",
    "functional",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_anomaly_check_nan_enabled",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Gradients of `outputs` with respect to `inputs`, without touching `.grad` (PyTorch's `autograd.grad`).

    Args:
        outputs: one tensor or a sequence, each a scalar unless its entry of `grad_outputs` is given.
        grad_outputs: gradients to start with; with `is_grads_batched` each has a first dimension of as many
            gradients, and so have the results.
        retain_graph: keep what was saved, so that it can be walked again; default `create_graph`.
        create_graph: record the walk, for higher derivatives.
        allow_unused: give None for inputs the outputs don't depend on, instead of an error.
        materialize_grads: give zeros for them.

    Returns: one tensor per input.
    """
    if not is_grads_batched:
        return _core.grad(
            outputs, inputs, grad_outputs, retain_graph, create_graph, allow_unused, False, materialize_grads
        )
    given = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs or ())
    unused: list[int] = []
    count = 0

    def each(*seeds: Tensor) -> tuple[Tensor, ...]:
        nonlocal count
        found = _core.grad(outputs, inputs, seeds, True, create_graph, allow_unused, False, materialize_grads)
        count = len(found)
        unused[:] = [i for i, g in enumerate(found) if g is None]
        return tuple(g for g in found if g is not None)

    made = iter(vmap(each)(*given))
    return tuple(None if i in unused else next(made) for i in range(count))


check_names(globals(), ["grad", "backward", "gradcheck", "gradgradcheck"])
