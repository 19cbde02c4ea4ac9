"""Step sizes from sums of squared gradients: Adagrad (Duchi et al. 2011), RMSprop (Hinton 2012; centred:
Graves 2013), Adadelta (Zeiler 2012)."""

from __future__ import annotations

from typing import Any

from . import checks
from .arithmetic import Num, lerp, sqrt
from .param_group import ParamGroup
from .rule import Hypers, Rule, Slots


class Adagrad(Rule):
    """`p -= lr / (1 + (t - 1) * lr_decay) * grad / (sqrt(sum of squares) + eps)`.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: learning rate.
        lr_decay: how fast it falls.
        weight_decay: L2 penalty.
        initial_accumulator_value: what the sums of squares start with.
        eps: added to the denominator.
        maximize: go up instead of down.
    """

    def __init__(
        self, params: Any, lr: Any = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            self._make_state(group, group["params"], self.slots(group))

    def _check_group(self, group: dict[str, Any]) -> None:
        names = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        checks.not_negative("Adagrad", group, *names)
        checks.flags("Adagrad", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"sum": self.defaults["initial_accumulator_value"]}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        return {"size": -(h.lr / (1 + (clock.wide("step") - 1) * h.lr_decay)), "eps": h.eps}

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        total = s.sum = s.sum + g * g
        return p + c.size * g / (sqrt(total) + c.eps)


class RMSprop(Rule):
    """`p -= lr * grad / (sqrt(v) + eps)` with the running mean v of the squared gradient.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: learning rate.
        alpha: how much of the running means is kept.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        momentum: how much of the last update is kept.
        centered: divide by the standard deviation of the gradient instead.
        maximize: go up instead of down.
    """

    def __init__(
        self, params: Any, lr: Any = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "capturable": capturable, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("RMSprop", group, "lr", "eps", "momentum", "weight_decay", "alpha")
        checks.flags("RMSprop", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        wanted = {"square_avg": True, "momentum_buffer": group["momentum"] > 0, "grad_avg": group["centered"]}
        return {name: 0.0 for name, there in wanted.items() if there}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        out = {"alpha": h.alpha, "rest": 1 - h.alpha, "eps": h.eps, "lr": h.lr}
        if group["momentum"] > 0:
            out["momentum"] = h.momentum
        return out

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        v = s.square_avg = s.square_avg * c.alpha + c.rest * g * g
        if group["centered"]:
            m = s.grad_avg = lerp(s.grad_avg, g, c.rest)
            v = v - m * m
        scaled = g / (sqrt(v) + c.eps)
        if group["momentum"] > 0:
            scaled = s.momentum_buffer = s.momentum_buffer * c.momentum + scaled
        return p - c.lr * scaled


class Adadelta(Rule):
    """`p -= lr * d`, `d = grad * sqrt(u + eps) / sqrt(v + eps)` with running means v of grad**2 and u of
    d**2.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: factor of the updates.
        rho: how much of the running means is kept.
        eps: added under both roots.
        weight_decay: L2 penalty.
        maximize: go up instead of down.
    """

    def __init__(
        self, params: Any, lr: Any = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0,
        foreach: bool | None = None, *, capturable: bool = False, maximize: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "capturable": capturable, "foreach": foreach, "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("Adadelta", group, "lr", "eps", "weight_decay")
        checks.fraction("Adadelta", group, "rho")
        checks.flags("Adadelta", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        return {"rho": h.rho, "rest": 1 - h.rho, "eps": h.eps, "lr": h.lr}

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        v = s.square_avg = s.square_avg * c.rho + c.rest * g * g
        d = sqrt(s.acc_delta + c.eps) / sqrt(v + c.eps) * g
        s.acc_delta = s.acc_delta * c.rho + c.rest * d * d
        return p - c.lr * d
