"""`LRScheduler`: the base of schedulers, and the simple schedules. Import them from lr_scheduler.py.

A scheduler sets `group["lr"]`, which compiled functions read at each call: nothing is traced again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ..tracer.callers import warn
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentError, ArgumentTypeError
from ..tracer.tensor import Tensor
from .optimizer import Optimizer


def set_lr(group: Any, lr: Any) -> None:
    """Sets a group's learning rate; one that is a tensor is written in place."""
    old = group["lr"]
    if isinstance(old, Tensor):
        with no_grad():
            old.fill_(float(lr))
    else:
        group["lr"] = lr


def lr_of(group: Any) -> Any:
    """A group's learning rate; a copy if it is a tensor."""
    lr = group["lr"]
    return lr.clone() if isinstance(lr, Tensor) else lr


def per_group(who: str, name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """One value for all groups, or one for each, as a list."""
    n = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * n
    if len(value) != n:
        raise ArgumentError(f"{who}: {name} has {len(value)} values for {n} parameter groups")
    return list(value)


class LRScheduler:
    """Base of schedulers: `step()` moves on by one epoch and sets the learning rate of every group.

    Subclasses define `get_lr()`, or `_next(lr, base, i)` for each group, and where there is one the formula
    `_closed(base, i)` that gives epoch `last_epoch` at once.

    Attributes:
        last_epoch: how many steps were taken.
        base_lrs: the learning rates at the start.
    """

    _not_saved: tuple[str, ...] = ("optimizer",)

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = self._checked(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", lr_of(group))
            elif "initial_lr" not in group:
                raise ArgumentError(
                    f"{type(self).__name__} resumes at last_epoch={last_epoch}, but group {i} has no "
                    f"'initial_lr'; load "
                    f"the optimiser's state first, or start with last_epoch=-1"
                )
        self.base_lrs: list[Any] = [g["initial_lr"] for g in optimizer.param_groups]
        self.last_epoch: Any = last_epoch
        self._last_lr: list[Any] = []
        self._first_step()

    def _checked(self, optimizer: Any) -> Optimizer:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentTypeError(
                f"{type(self).__name__} takes an Optimizer, got {type(optimizer).__name__}"
            )
        return optimizer

    def _first_step(self) -> None:
        self._step_count = 0
        self.step()

    def get_last_lr(self) -> list[Any]:
        """The learning rates set last, one per group."""
        return self._last_lr

    def get_lr(self) -> list[Any]:
        """The learning rates of epoch `last_epoch`, from those of the epoch before."""
        groups = self.optimizer.param_groups
        return [self._next(lr_of(g), base, i) for i, (g, base) in enumerate(zip(groups, self.base_lrs))]

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no get_lr()")

    _closed: Callable[[Any, int], Any] | None = None

    def step(self, epoch: Any = None) -> None:
        """Moves on by one epoch, or to a given one (deprecated)."""
        if self._step_count == 1 and not self.optimizer._opt_called:
            warn(
                f"{type(self).__name__}.step() was called before optimizer.step(), so that the first "
                f"learning rate was "
                f"never used; call the optimiser first"
            )
        self._step_count += 1
        if epoch is not None:
            warn("step(epoch) is deprecated; call step() once an epoch")
        self._move(epoch)

    def _move(self, epoch: Any = None) -> None:
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if epoch is None or self._closed is None:
            rates = self.get_lr()
        else:
            rates = [self._closed(base, i) for i, base in enumerate(self.base_lrs)]
        self._set(rates)

    def _set(self, rates: Iterable[Any]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates):
            set_lr(group, lr)
        self._last_lr = [lr_of(g) for g in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimiser, for `load_state_dict`."""
        return {k: v for k, v in self.__dict__.items() if k not in self._not_saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict()` gave."""
        self.__dict__.update({k: v for k, v in state_dict.items() if k not in self._not_saved})


class _Functions(LRScheduler):
    """Schedules made of one function per group; functions are saved only if they are objects with
    attributes."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        self.lr_lambdas = per_group(type(self).__name__, "lr_lambda", self._checked(optimizer), lr_lambda)
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "lr_lambdas")}
        state["lr_lambdas"] = [dict(f.__dict__) if hasattr(f, "__dict__") and not hasattr(f,
        "__code__") else None
                               for f in self.lr_lambdas]  # fmt: skip
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.__dict__.update({k: v for k, v in state_dict.items() if k not in ("optimizer", "lr_lambdas")})
        for f, saved in zip(self.lr_lambdas, state_dict.get("lr_lambdas", ())):
            if saved is not None:
                f.__dict__.update(saved)


class LambdaLR(_Functions):
    """The base rate times `lr_lambda(epoch)`; one function, or one per group."""

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        return base * self.lr_lambdas[i](self.last_epoch)


class MultiplicativeLR(_Functions):
    """The last rate times `lr_lambda(epoch)`; one function, or one per group."""

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        return lr * self.lr_lambdas[i](self.last_epoch) if self._step_count > 1 else lr


class StepLR(LRScheduler):
    """The rate times `gamma` every `step_size` epochs."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        return lr if self.last_epoch == 0 or self.last_epoch % self.step_size else lr * self.gamma

    def _closed(self, base: Any, i: int) -> Any:
        return base * self.gamma ** (self.last_epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """The rate times `gamma` at each of the `milestones`."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        return (
            lr * self.gamma ** self.milestones[self.last_epoch] if self.last_epoch in self.milestones else lr
        )

    def _closed(self, base: Any, i: int) -> Any:
        return base * self.gamma ** sum(m <= self.last_epoch for m in self.milestones.elements())


class ConstantLR(LRScheduler):
    """The base rate times `factor` for `total_iters` epochs, then the base rate."""

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        if not 0 <= factor <= 1.0:
            raise ArgumentError(f"ConstantLR: factor must be in [0, 1], got {factor}")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        if self.last_epoch == 0:
            return lr * self.factor
        return lr * (1.0 / self.factor) if self.last_epoch == self.total_iters else lr

    def _closed(self, base: Any, i: int) -> Any:
        return base * (self.factor + (self.last_epoch >= self.total_iters) * (1 - self.factor))


class LinearLR(LRScheduler):
    """The base rate times a factor that goes from `start_factor` to `end_factor` in `total_iters` epochs."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0,
        total_iters: int = 5, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if not 0 < start_factor <= 1.0:
            raise ArgumentError(f"LinearLR: start_factor must be in (0, 1], got {start_factor}")
        if not 0 <= end_factor <= 1.0:
            raise ArgumentError(f"LinearLR: end_factor must be in [0, 1], got {end_factor}")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        if self.last_epoch == 0:
            return lr * self.start_factor
        if self.last_epoch > self.total_iters:
            return lr
        rise = self.end_factor - self.start_factor
        return lr * (1.0 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise))

    def _closed(self, base: Any, i: int) -> Any:
        done = min(self.total_iters, self.last_epoch)
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done / self.total_iters)


class ExponentialLR(LRScheduler):
    """The rate times `gamma` every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        return lr if self.last_epoch == 0 else lr * self.gamma

    def _closed(self, base: Any, i: int) -> Any:
        return base * self.gamma**self.last_epoch


class PolynomialLR(LRScheduler):
    """The base rate times `(1 - epoch / total_iters)**power`, 0 from then on."""

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        e, n = self.last_epoch, self.total_iters
        if e == 0 or e > n:
            return lr
        return lr * ((1.0 - e / n) / (1.0 - (e - 1) / n)) ** self.power

    def _closed(self, base: Any, i: int) -> Any:
        return base * (1.0 - min(self.total_iters, self.last_epoch) / self.total_iters) ** self.power


class CosineAnnealingLR(LRScheduler):
    """`eta_min + (base - eta_min) * (1 + cos(pi * epoch / T_max)) / 2` (Loshchilov and Hutter 2017), step by
    step."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def _next(self, lr: Any, base: Any, i: int) -> Any:
        e, n, low = self.last_epoch, self.T_max, self.eta_min
        if e == 0:
            return lr
        if self._step_count == 1 and e > 0:
            return low + (base - low) * (1 + math.cos(e * math.pi / n)) / 2
        if (e - 1 - n) % (2 * n) == 0:
            return lr + (base - low) * (1 - math.cos(math.pi / n)) / 2
        return (1 + math.cos(math.pi * e / n)) / (1 + math.cos(math.pi * (e - 1) / n)) * (lr - low) + low

    def _closed(self, base: Any, i: int) -> Any:
        return (
            self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        )
