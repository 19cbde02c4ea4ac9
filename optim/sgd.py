"""Stochastic gradient descent with momentum (Polyak 1964; Nesterov 1983, as in Sutskever et al. 2013)."""

from __future__ import annotations

from typing import Any, ClassVar

from ..ir.dtypes import float32
from ..tracer.library import ArgumentError, device_name, filled_state
from . import checks
from .arithmetic import Num, greater, where
from .param_group import ParamGroup
from .rule import Hypers, Rule, Slots


class SGD(Rule):
    """`p -= lr * v`, `v = momentum * v + (1 - dampening) * (grad + weight_decay * p)`; the first v is the
    gradient.

    Args:
        params: tensors, or dicts of parameter groups.
        lr: learning rate.
        momentum: how much of the last update is kept.
        dampening: how much of the gradient is left out.
        weight_decay: L2 penalty.
        nesterov: look ahead: update by grad + momentum * v.
        maximize: go up instead of down.
    """

    clocks: ClassVar[dict[str, float]] = {}
    clock_key = "_first"
    _hidden = ("_first",)

    def __init__(
        self, params: Any, lr: Any = 1e-3, momentum: float = 0, dampening: float = 0, weight_decay: float = 0,
        nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach, "differentiable": differentiable,
            "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("SGD", group, "lr", "momentum", "weight_decay")
        checks.flags("SGD", group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ArgumentError(
                f"SGD: nesterov needs momentum > 0 and dampening 0, got {group['momentum']} and "
                f"{group['dampening']}"
            )

    def slots(self, group: ParamGroup) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] != 0 else {}

    def _make_state(self, group: ParamGroup, params: list[Any], slots: dict[str, float]) -> None:
        if group["dampening"] != 0:  # without it the first step from a buffer of zeros is right as it is
            firsts: dict[Any, Any] = {}
            for p in params:
                place = device_name(p)
                if place not in firsts:
                    firsts[place] = filled_state((), 1.0, float32, place)
                self.state[p]["_first"] = firsts[place]
        super()._make_state(group, params, slots)

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        out = {"lr": h.lr}
        if group["momentum"] != 0:
            out["momentum"] = h.momentum
            if group["dampening"] != 0:
                out["kept"] = 1 - h.dampening
            if "_first" in clock:
                out["first"] = clock._first
                clock._first = clock._first * 0.0
        return out

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        if group["momentum"] != 0:
            v = s.momentum_buffer * c.momentum + (g if group["dampening"] == 0 else c.kept * g)
            if "_first" in s:
                v = where(greater(c.first, 0.5), g, v)
            s.momentum_buffer = v
            g = g + c.momentum * v if group["nesterov"] else v
        return p - c.lr * g
