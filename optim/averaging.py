"""Averaged SGD (Polyak and Juditsky 1992) and resilient backpropagation (Riedmiller and Braun 1993)."""

from __future__ import annotations

from typing import Any, ClassVar

from ..tracer.library import ArgumentError
from . import checks
from .arithmetic import Num, equal, greater, less, maximum, minimum, sign, where
from .param_group import ParamGroup
from .rule import Hypers, Rule, Slots


class ASGD(Rule):
    """SGD whose step size falls as `lr / (1 + lambd * lr * t)**alpha`, and the average `ax` of the
    parameters.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: learning rate.
        lambd: decay.
        alpha: power of the fall of the step size.
        t0: step at which averaging starts.
        weight_decay: L2 penalty.
        maximize: go up instead of down.
    """

    clocks: ClassVar[dict[str, float]] = {"step": 0.0, "eta": 0.0, "mu": 1.0}

    def __init__(
        self, params: Any, lr: Any = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6,
        weight_decay: float = 0, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay,
            "foreach": foreach, "maximize": maximize, "differentiable": differentiable,
            "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("ASGD", group, "lr", "weight_decay")
        checks.flags("ASGD", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"ax": 0.0}

    def _clock_values(self, group: ParamGroup) -> dict[str, float]:
        return {**self.clocks, "eta": float(group["lr"])}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        eta, mu, t = clock.wide("eta"), clock.wide("mu"), clock.wide("step")
        clock.eta = h.lr / (1 + h.lambd * h.lr * t) ** h.alpha
        clock.mu = 1 / maximum(t - h.t0, 1.0)
        return {"eta": eta, "shrunk": 1 - h.lambd * eta, "mu": mu}

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        p = p * c.shrunk - c.eta * g
        s.ax = where(equal(c.mu, 1.0), p, s.ax + (p - s.ax) * c.mu)
        return p


class Rprop(Rule):
    """Steps by the sign of the gradient; a step size per element grows while the sign stays and shrinks when
    it flips.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: the first step size.
        etas: factors by which step sizes shrink and grow.
        step_sizes: the smallest and the largest step size.
        maximize: go up instead of down.
    """

    def __init__(
        self, params: Any, lr: Any = 1e-2, etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50), *, capturable: bool = False,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "etas": tuple(etas), "step_sizes": tuple(step_sizes), "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("Rprop", group, "lr")
        checks.flags("Rprop", group)
        low, high = group["etas"]
        if not 0.0 < low < 1.0 < high:
            raise ArgumentError(f"Rprop: etas must be 0 < etas[0] < 1 < etas[1], got {group['etas']}")

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"prev": 0.0, "step_size": float(group["lr"])}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        names = {
            "minus": ("etas", 0),
            "plus": ("etas", 1),
            "low": ("step_sizes", 0),
            "high": ("step_sizes", 1),
        }
        return {k: h.entry(*v) for k, v in names.items()}

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        agreement = g * s.prev
        flipped = less(agreement, 0.0)
        factor = where(greater(agreement, 0.0), c.plus, where(flipped, c.minus, 1.0))
        size = s.step_size = minimum(maximum(s.step_size * factor, c.low), c.high)
        g = s.prev = where(flipped, 0.0, g)
        return p - sign(g) * size
