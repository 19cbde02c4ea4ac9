"""`gradcheck` and `gradgradcheck`: gradients against differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.errors import GradError
from .autograd import grad
from .callers import warn
from .grad_mode import no_grad
from .library import overwrite
from .random import randn
from .tensor import Tensor


class GradcheckError(GradError):
    """A gradient that is not the slope of its function."""


def _inputs(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _outputs(made: Any) -> list[Tensor]:
    found = list(made) if isinstance(made, (tuple, list)) else [made]
    return [t for t in found if isinstance(t, Tensor) and t.dtype.kind == "f"]


def _slopes(fn: Callable[..., Any], inputs: Sequence[Any], t: Tensor, eps: float) -> list[np.ndarray]:
    """For each output [numel of t, numel of the output] central differences."""
    at = np.array(t.detach().numpy())
    rows: list[list[np.ndarray]] = []
    try:
        for i in range(at.size):
            ends = []
            for sign in (1, -1):
                moved = at.copy()
                moved.flat[i] += sign * eps
                with no_grad():
                    overwrite(t, moved)
                ends.append([np.array(o.detach().numpy(), np.float64).ravel() for o in _outputs(fn(*inputs))])
            rows.append([(up - down) / (2 * eps) for up, down in zip(*ends)])
    finally:
        with no_grad():
            overwrite(t, at)
    return [np.stack([row[k] for row in rows]) for k in range(len(rows[0]))] if rows else []


def _gradients(outputs: Sequence[Tensor], k: int, t: Tensor) -> np.ndarray:
    """[numel of t, numel of output k] by backward."""
    out = outputs[k]
    columns = []
    for j in range(out.numel()):
        seed = np.zeros(tuple(out.shape), out.dtype.numpy)
        seed.flat[j] = 1
        weight = overwrite(out.detach().clone(), seed)
        (g,) = grad([out], [t], [weight], retain_graph=True, allow_unused=True)
        columns.append(np.zeros(t.numel()) if g is None else np.array(g.detach().numpy(), np.float64).ravel())
    return np.stack(columns, 1) if columns else np.zeros((t.numel(), 0))


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    **_: Any,
) -> bool:
    """Compares gradients of `func` at `inputs` with central differences of step `eps`.

    Args:
        func: takes the inputs, gives a tensor or several.
        inputs: tensors; those that require grad, of float64, are checked.
        raise_exception: a difference raises GradcheckError instead of giving False.

    Returns: whether |gradient - difference| <= atol + rtol * |difference| everywhere.
    """
    given = _inputs(inputs)
    checked = [t for t in given if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise GradError("gradcheck(): no input requires grad; make one with requires_grad=True")
    if any(t.dtype.bits < 64 for t in checked):
        warn("gradcheck(): an input is not of float64, differences of it are imprecise")
    outputs = _outputs(func(*given))
    for k, out in enumerate(outputs):
        if not out.requires_grad:
            continue
        for i, t in enumerate(checked):
            slopes = _slopes(func, given, t, eps)
            want = slopes[k] if slopes else np.zeros((0, out.numel()))
            got = _gradients(outputs, k, t)
            if got.shape != want.shape or not np.allclose(got, want, rtol, atol):
                if not raise_exception:
                    return False
                worst = float(np.abs(got - want).max()) if got.shape == want.shape else float("nan")
                raise GradcheckError(
                    f"gradcheck(): the Jacobian of output {k} with respect to input {i} is off by up to "
                    f"{worst:.3g}.\\nby differences:\\n{want}\\nby backward:\\n{got}"
                )
    return True


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    **_: Any,
) -> bool:
    """Compares second derivatives: `gradcheck` of the gradient, as a function of the inputs and of
    `grad_outputs` (random where not given)."""
    given = _inputs(inputs)
    outputs = _outputs(func(*given))
    if grad_outputs is None:
        weights = [randn(tuple(o.shape), dtype=o.dtype, requires_grad=True) for o in outputs]
    else:
        weights = list(_inputs(grad_outputs))
    count = len(given)

    def gradient(*args: Any) -> Any:
        values, seeds = args[:count], args[count:]
        outs = [o for o in _outputs(func(*values)) if o.requires_grad]
        wrt = [t for t in values if isinstance(t, Tensor) and t.requires_grad]
        found = grad(outs, wrt, list(seeds)[: len(outs)], create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(
        gradient, (*given, *weights), eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception
    )
