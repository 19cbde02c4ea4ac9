"""Relatives of Adam: Adamax (Kingma and Ba 2015), NAdam (Dozat 2016), RAdam (Liu et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from . import checks
from .arithmetic import Num, absolute, greater, lerp, maximum, sqrt, where
from .param_group import ParamGroup
from .rule import Hypers, Rule, Slots


class Adamax(Rule):
    """Adam with the running maximum of |gradient| for the denominator.

    Args: as Adam's.
    """

    def __init__(
        self, params: Any, lr: Any = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, foreach: bool | None = None, *, maximize: bool = False,
        differentiable: bool = False, capturable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("Adamax", group, "lr", "eps", "weight_decay")
        checks.betas("Adamax", group)
        checks.flags("Adamax", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        size = -(h.lr / (1 - h.beta1 ** clock.wide("step")))
        return {"rest1": 1 - h.beta1, "beta2": h.beta2, "eps": h.eps, "size": size}

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        m = s.exp_avg = lerp(s.exp_avg, g, c.rest1)
        u = s.exp_inf = maximum(s.exp_inf * c.beta2, absolute(g) + c.eps)
        return p + c.size * m / u


class NAdam(Rule):
    """Adam with Nesterov momentum, on a schedule of its own.

    Args: as Adam's, and
        momentum_decay: how fast the momentum warms up.
        decoupled_weight_decay: shrink the parameters instead of adding to the gradient.
    """

    clocks: ClassVar[dict[str, float]] = {"step": 0.0, "mu_product": 1.0}

    def __init__(
        self, params: Any, lr: Any = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("NAdam", group, "lr", "eps", "weight_decay", "momentum_decay")
        checks.betas("NAdam", group)
        checks.flags("NAdam", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        t = clock.wide("step")
        mu = h.beta1 * (1.0 - 0.5 * 0.96 ** (t * h.momentum_decay))
        mu_next = h.beta1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * h.momentum_decay))
        clock.mu_product = clock.mu_product * mu
        product = clock.wide("mu_product")
        return {
            "rest1": 1 - h.beta1,
            "beta2": h.beta2,
            "rest2": 1 - h.beta2,
            "eps": h.eps,
            "correction": 1 - h.beta2**t,
            "now": -h.lr * (1.0 - mu) / (1.0 - product),
            "ahead": (-h.lr * mu_next) / (1.0 - product * mu_next),
        }

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        m = s.exp_avg = lerp(s.exp_avg, g, c.rest1)
        v = s.exp_avg_sq = s.exp_avg_sq * c.beta2 + c.rest2 * g * g
        d = sqrt(v / c.correction) + c.eps
        return p + c.now * g / d + c.ahead * m / d


class RAdam(Rule):
    """Adam that divides by the root of v only once v's variance is small enough, and then rectifies it.

    Args: as NAdam's.
    """

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "foreach": foreach, "capturable": capturable, "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("RAdam", group, "lr", "eps", "weight_decay")
        checks.betas("RAdam", group)
        checks.flags("RAdam", group)

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        t = clock.wide("step")
        correction2 = 1 - h.beta2**t
        longest = 2 / (1 - h.beta2) - 1
        length = longest - 2 * t * h.beta2**t / correction2
        rectified = greater(length, 5.0)
        # 1 where the length is too small for the root: its value there is not used.
        part = (
            where(rectified, (length - 4) * (length - 2) / length, 1.0)
            * longest
            / ((longest - 4) * (longest - 2))
        )
        return {
            "rest1": 1 - h.beta1,
            "beta2": h.beta2,
            "rest2": 1 - h.beta2,
            "eps": h.eps,
            "lr": h.lr,
            "correction1": 1 - h.beta1**t,
            "root": sqrt(correction2),
            "rectified": where(rectified, t, 0.0),
            "rectification": sqrt(part),
        }

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        m = s.exp_avg = lerp(s.exp_avg, g, c.rest1)
        v = s.exp_avg_sq = s.exp_avg_sq * c.beta2 + c.rest2 * g * g
        move = m / c.correction1 * c.lr
        adapted = move * (c.root / (sqrt(v) + c.eps)) * c.rectification
        return p - where(greater(c.rectified, 0.5), adapted, move)
