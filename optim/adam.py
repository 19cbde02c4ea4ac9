"""Adam (Kingma and Ba 2015), with AMSGrad (Reddi et al. 2018), and AdamW (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from typing import Any

from . import checks
from .arithmetic import Num, lerp, maximum, sqrt
from .param_group import ParamGroup
from .rule import Hypers, Rule, Slots


class Adam(Rule):
    """`p -= lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)` with running means m of the gradient
    and v of its square.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: learning rate.
        betas: how much of the running means is kept each step.
        eps: added to the denominator.
        weight_decay: L2 penalty.
        amsgrad: divide by the largest v so far.
        maximize: go up instead of down.
        decoupled_weight_decay: shrink the parameters instead of adding to the gradient, as AdamW.
    """

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None, decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable, "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        who = type(self).__name__
        checks.not_negative(who, group, "lr", "eps", "weight_decay")
        checks.betas(who, group)
        checks.flags(who, group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")
        return dict.fromkeys(names, 0.0)

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        t = clock.wide("step")
        return {
            "beta2": h.beta2,
            "rest1": 1 - h.beta1,
            "rest2": 1 - h.beta2,
            "eps": h.eps,
            "size": -(h.lr / (1 - h.beta1**t)),
            "scale": 1 / sqrt(1 - h.beta2**t),  # a product for every element, not a division
        }

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        m = s.exp_avg = lerp(s.exp_avg, g, c.rest1)
        v = s.exp_avg_sq = s.exp_avg_sq * c.beta2 + c.rest2 * g * g
        if group["amsgrad"]:
            v = s.max_exp_avg_sq = maximum(s.max_exp_avg_sq, v)
        return p + c.size * m / (sqrt(v) * c.scale + c.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay: `p *= 1 - lr * weight_decay` before the update. Arguments as
    Adam's."""

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused, decoupled_weight_decay=True,
        )  # fmt: skip
