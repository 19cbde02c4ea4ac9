"""Schedules that go up and down: warm restarts, cycles, one cycle. Import them from lr_scheduler.py.

Those that also move the momentum make it a runtime scalar of compiled functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..tracer.library import ArgumentError
from .lr_base import LRScheduler, per_group, set_lr
from .optimizer import Optimizer


class CosineAnnealingWarmRestarts(LRScheduler):
    """Cosine annealing that starts again every `T_0` epochs, each time `T_mult` times longer (Loshchilov and
    Hutter 2017). `step(epoch)` takes fractions."""

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        who = type(self).__name__
        if not isinstance(T_0, int) or T_0 <= 0:
            raise ArgumentError(f"{who}: T_0 must be a positive int, got {T_0!r}")
        if not isinstance(T_mult, int) or T_mult < 1:
            raise ArgumentError(f"{who}: T_mult must be an int >= 1, got {T_mult!r}")
        if not isinstance(eta_min, (int, float)):
            raise ArgumentError(f"{who}: eta_min must be a number, got {eta_min!r}")
        self.T_0 = T_0
        self.T_i = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2

    def step(self, epoch: Any = None) -> None:
        """Moves on by one epoch, or to a given one, which may be a fraction."""
        self._step_count += 1
        if epoch is None and self.last_epoch < 0:
            epoch = 0
        if epoch is None:
            epoch = self.last_epoch + 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur %= self.T_i
                self.T_i *= self.T_mult
        elif epoch < 0:
            raise ArgumentError(f"{type(self).__name__}.step(): the epoch must not be negative, got {epoch}")
        elif epoch < self.T_0:
            self.T_i, self.T_cur = self.T_0, epoch
        elif self.T_mult == 1:
            self.T_cur = epoch % self.T_0
        else:
            n = int(math.log(epoch / self.T_0 * (self.T_mult - 1) + 1, self.T_mult))
            self.T_cur = epoch - self.T_0 * (self.T_mult**n - 1) / (self.T_mult - 1)
            self.T_i = self.T_0 * self.T_mult**n
        self.last_epoch = math.floor(epoch)
        self._set(self.get_lr())


class _WithMomentum(LRScheduler):
    """Schedules that move the momentum (`momentum`, or the first of `betas`) against the learning rate."""

    cycle_momentum: bool
    use_beta1: bool

    def _start_momentum(
        self, optimizer: Optimizer, low: Any, high: Any, fresh: bool
    ) -> tuple[list[Any], list[Any]]:
        who = type(self).__name__
        self.use_beta1 = "betas" in optimizer.defaults
        if not self.use_beta1 and "momentum" not in optimizer.defaults:
            raise ArgumentError(
                f"{who}: {type(optimizer).__name__} has neither momentum nor betas; pass cycle_momentum=False"
            )
        lows = per_group(who, "base_momentum", optimizer, low)
        highs = per_group(who, "max_momentum", optimizer, high)
        if fresh:
            for group, a, b in zip(optimizer.param_groups, lows, highs):
                self._set_momentum(group, b)
                group["max_momentum"] = b
                group["base_momentum"] = a
        return lows, highs

    def _set_momentum(self, group: Any, value: float) -> None:
        if self.use_beta1:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value


class CyclicLR(_WithMomentum):
    """The rate goes from `base_lr` to `max_lr` in `step_size_up` steps and back in `step_size_down` (Smith
    2017).

    Args:
        optimizer: whose learning rates.
        base_lr, max_lr: bounds, one or one per group.
        step_size_up, step_size_down: steps of the two halves of a cycle; equal if the second is None.
        mode: `"triangular"`; `"triangular2"` halves the amplitude every cycle; `"exp_range"` scales it by
            gamma**step.
        gamma: for `exp_range`.
        scale_fn: a function of the cycle (`scale_mode="cycle"`) or step (`"iterations"`) instead of `mode`.
        cycle_momentum: move the momentum from `max_momentum` to `base_momentum` and back.
    """

    _not_saved = ("optimizer", "_scale_fn_custom")

    def __init__(
        self, optimizer: Optimizer, base_lr: Any, max_lr: Any, step_size_up: int = 2000,
        step_size_down: int | None = None, mode: str = "triangular", gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None, scale_mode: str = "cycle",
        cycle_momentum: bool = True, base_momentum: Any = 0.8, max_momentum: Any = 0.9, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
            raise ArgumentError(f"CyclicLR: mode must be triangular, triangular2 or exp_range, got {mode!r}")
        base_lrs = per_group("CyclicLR", "base_lr", self._checked(optimizer), base_lr)
        self.max_lrs = per_group("CyclicLR", "max_lr", optimizer, max_lr)
        if last_epoch == -1:
            for group, lr in zip(optimizer.param_groups, base_lrs):
                set_lr(group, lr)
        up = float(step_size_up)
        self.total_size = up + (up if step_size_down is None else float(step_size_down))
        self.step_ratio = up / self.total_size
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom = scale_fn
        self.scale_mode = (
            scale_mode if scale_fn is not None else "iterations" if mode == "exp_range" else "cycle"
        )
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            made = self._start_momentum(optimizer, base_momentum, max_momentum, last_epoch == -1)
            self.base_momentums, self.max_momentums = made
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """The factor of the amplitude in cycle (or at step) `x`."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom(x)
        if self.mode == "triangular2":
            return 1 / (2.0 ** (x - 1))
        return self.gamma**x if self.mode == "exp_range" else 1.0

    def get_lr(self) -> list[Any]:
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle
        height = x / self.step_ratio if x <= self.step_ratio else (x - 1) / (self.step_ratio - 1)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.cycle_momentum:
            for group, low, high in zip(self.optimizer.param_groups, self.base_momentums, self.max_momentums):
                self._set_momentum(group, high - (high - low) * height * scale)
        return [low + (high - low) * height * scale for low, high in zip(self.base_lrs, self.max_lrs)]


class OneCycleLR(_WithMomentum):
    """Up to `max_lr`, then down far below the start, in `total_steps` steps (Smith and Topin 2019).

    Args:
        optimizer: whose learning rates.
        max_lr: the highest rate, one or one per group.
        total_steps: or `epochs` and `steps_per_epoch`.
        pct_start: the part of the steps that goes up.
        anneal_strategy: `"cos"` or `"linear"`.
        cycle_momentum: move the momentum from `max_momentum` to `base_momentum` and back.
        div_factor: max_lr / first rate.
        final_div_factor: first rate / last rate.
        three_phase: go down to the first rate as fast as up, and only then further.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: Any, total_steps: int | None = None, epochs: int | None = None,
        steps_per_epoch: int | None = None, pct_start: float = 0.3, anneal_strategy: str = "cos",
        cycle_momentum: bool = True, base_momentum: Any = 0.85, max_momentum: Any = 0.95,
        div_factor: float = 25.0, final_div_factor: float = 1e4, three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self._checked(optimizer)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ArgumentError("OneCycleLR: pass total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        if not isinstance(total_steps, int) or total_steps <= 0:
            raise ArgumentError(
                f"OneCycleLR: the number of steps must be a positive int, got {total_steps!r}"
            )
        if not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
            raise ArgumentError(f"OneCycleLR: pct_start must be a float in [0, 1], got {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                f"OneCycleLR: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}"
            )
        self.total_steps = total_steps
        self._anneal_func_type = anneal_strategy
        up = float(pct_start * total_steps) - 1
        # (last step of the phase, learning rate from and to, momentum from and to)
        rise = (up, "initial_lr", "max_lr", "max_momentum", "base_momentum")
        if three_phase:
            down = (
                float(2 * pct_start * total_steps) - 2,
                "max_lr",
                "initial_lr",
                "base_momentum",
                "max_momentum",
            )
            rest = (total_steps - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum")
            self._phases: list[Any] = [rise, down, rest]
        else:
            self._phases = [rise, (total_steps - 1, "max_lr", "min_lr", "base_momentum", "max_momentum")]
        if last_epoch == -1:
            for group, high in zip(
                optimizer.param_groups, per_group("OneCycleLR", "max_lr", optimizer, max_lr)
            ):
                group["initial_lr"] = high / div_factor
                group["max_lr"] = high
                group["min_lr"] = group["initial_lr"] / final_div_factor
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self._start_momentum(optimizer, base_momentum, max_momentum, last_epoch == -1)
        super().__init__(optimizer, last_epoch)

    def _anneal(self, start: float, end: float, part: float) -> float:
        if self._anneal_func_type == "cos":
            return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)
        return (end - start) * part + start

    def get_lr(self) -> list[Any]:
        step = self.last_epoch
        if step > self.total_steps:
            raise ArgumentError(f"OneCycleLR: step {step} of a schedule of {self.total_steps} steps")
        rates = []
        for group in self.optimizer.param_groups:
            start = 0.0
            for phase in self._phases:
                end, from_lr, to_lr, from_momentum, to_momentum = phase
                if step <= end or phase is self._phases[-1]:
                    part = (step - start) / (end - start)
                    rates.append(self._anneal(group[from_lr], group[to_lr], part))
                    if self.cycle_momentum:
                        self._set_momentum(
                            group, self._anneal(group[from_momentum], group[to_momentum], part)
                        )
                    break
                start = end
        return rates
