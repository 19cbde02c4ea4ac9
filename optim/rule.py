"""`Rule`: what the optimisers with a formula share. A subclass is the formula of one parameter's update.

`step` is recorded like any other code, so a training step compiles as one program. The step count and other numbers
that are alike for all parameters ("clocks") are one tensor for all parameters that have always been updated together:
bias corrections are then computed once a step, not once a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.dtypes import float32, float64
from ..tracer.autograd import enable_grad
from ..tracer.library import ArgumentError, filled_state
from ..tracer.recording import STATE, outside_traces, user_location
from ..tracer.tensor import Tensor, note_change
from .arithmetic import Num, number
from .optimizer import Optimizer
from .param_group import ParamGroup


class Slots:
    """State tensors as attributes that are `Num`s; assigning writes in place."""

    __slots__ = ("_tensors",)

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        object.__setattr__(self, "_tensors", tensors)

    def __getattr__(self, name: str) -> Num:
        return Num(self._tensors[name]._value())

    def __setattr__(self, name: str, new: Num) -> None:
        t = self._tensors[name]
        value = new.to(t.dtype).value
        if value.type.shape != t._value().type.shape:
            raise ArgumentError(f"state {name!r} of type {t._value().type} can't take a value of type {value.type}")
        t._put(value)


class Hypers:
    """A group's hyper-parameters as attributes: Python numbers, or Nums where the program reads them at each call."""

    __slots__ = ("_group", "_read", "_trace")

    def __init__(self, trace: Any, group: ParamGroup) -> None:
        self._trace = trace
        self._group = group
        self._read: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return self.entry(name, None)

    def entry(self, name: str, index: int | None) -> Any:
        """A hyper-parameter, or an entry of one that is a tuple; read from the group once."""
        key = name, index
        if key not in self._read:
            self._read[key] = self._group.read(self._trace, name, index)
        return self._read[key]

    @property
    def beta1(self) -> Any:
        return self.entry("betas", 0)

    @property
    def beta2(self) -> Any:
        return self.entry("betas", 1)


class Scalars:
    """Numbers a formula uses, as attributes in the parameter's dtype."""

    def __init__(self, numbers: dict[str, Any], dtype: Any) -> None:
        self.__dict__.update({k: number(v, dtype) for k, v in numbers.items()})

    def __getattr__(self, name: str) -> Num:
        raise AttributeError(name)


class Rule(Optimizer):
    """Base of optimisers whose update of a parameter is a formula of it, its gradient and its state.

    Class attributes:
        clocks: names and initial values of state that is one number for all parameters.
    """

    clocks: dict[str, float] = {"step": 0.0}

    def slots(self, group: ParamGroup) -> dict[str, float]:
        """Names and initial values of a parameter's state tensors."""
        return {}

    def numbers(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        """Numbers that the formula uses, once a step; also advances clocks other than `step`."""
        return {}

    def update(self, p: Num, g: Num, s: Slots, c: Any, group: ParamGroup) -> Num:
        """The new parameter from the old one and its gradient; writes the new state to `s`."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: evaluates the model again and gives the loss, which `step` then returns.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        trace = STATE.trace
        enabled, trace.grad_enabled = trace.grad_enabled, False
        try:
            with trace.at(trace.loc or user_location(), "update"):
                lasting = True
                for group in self.param_groups:
                    lasting = self._step_group(trace, group) and lasting
            trace.guard_module(self, self._trace_state() if lasting else object())
        finally:
            trace.grad_enabled = enabled
        return loss

    # --- one group ------------------------------------------------------------------------------------------------

    def _step_group(self, trace: Any, group: ParamGroup) -> bool:
        """Updates a group. False if the next step will not be recorded alike."""
        found = [(p, g) for p in group["params"] if (g := p.grad) is not None]
        if not found:
            return True
        params = [p for p, _ in found]
        fresh = [p for p in params if not self.state[p]]
        if fresh:
            self._make_state(group, fresh)
        lasting = True
        if self.clocks and (len(params) != len(group["params"]) or len(fresh) != len(params)):
            lasting = self._separate_clocks(trace, group, params)
        hypers = Hypers(trace, group)
        ready: dict[Any, dict[str, Any]] = {}
        converted: dict[Any, Scalars] = {}
        for p, grad in found:
            state = self.state[p]
            clock = id(state["step"]) if self.clocks else 0
            if clock not in ready:
                ready[clock] = self._tick(hypers, Slots(state), group)
            value = p._value()
            dtype = value.type.dtype
            c = converted.get((clock, dtype))
            if c is None:
                c = converted[clock, dtype] = Scalars(ready[clock], dtype)
            g = Num(grad._value()).to(dtype)
            x = Num(value)
            if group["maximize"]:
                g = -g
            if group.get("weight_decay", 0) != 0:
                if group.get("decoupled_weight_decay", False):
                    x = x * c.shrink
                else:
                    g = g + c.weight_decay * x
            p._put(self.update(x, g, Slots(state), c, group).value)
        return lasting

    def _tick(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        if "step" in self.clocks:
            clock.step = clock.step + 1
        numbers = self.numbers(h, clock, group)
        if group.get("weight_decay", 0) != 0:
            if group.get("decoupled_weight_decay", False):
                numbers["shrink"] = 1 - h.lr * h.weight_decay
            else:
                numbers["weight_decay"] = h.weight_decay
        return numbers

    def _make_state(self, group: ParamGroup, params: list[Any]) -> None:
        clocks = {k: filled_state((), v, float32) for k, v in self.clocks.items()}
        slots = self.slots(group)
        for p in params:
            state = self.state[p]
            state.update(clocks)
            for name, value in slots.items():
                state[name] = filled_state(tuple(p.shape), value, p.dtype)

    def _separate_clocks(self, trace: Any, group: ParamGroup, updated: list[Any]) -> bool:
        """Gives the parameters that are updated now clocks apart from those that are not."""
        stepping = {id(p) for p in updated}
        resting = {id(self.state[p]["step"]) for p in group["params"] if id(p) not in stepping and self.state.get(p)}
        lasting = True
        made: dict[int, dict[str, Tensor]] = {}
        for p in updated:
            state = self.state[p]
            old = id(state["step"])
            if old not in resting:
                continue
            if old not in made:
                made[old], kept = self._copied_clocks(trace, state)
                lasting = lasting and kept
                self._generation += 1
                note_change()
            state.update(made[old])
        return lasting

    def _copied_clocks(self, trace: Any, state: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
        out: dict[str, Tensor] = {}
        lasting = True
        for name in self.clocks:
            t = state[name]
            if t._value().trace is None or trace is STATE.lazy:
                with outside_traces():
                    value = float(t.item())
                out[name] = filled_state((), value, float32)
            else:  # advanced earlier in this very trace: only the next call can tell how it goes on
                out[name] = filled_state((), 0.0, float32)
                out[name]._put((Num(t._value()) + 0.0).value)
                lasting = False
        return out, lasting

    def _adopted(self, state: Any, groups: list[Any]) -> dict[str, Any]:
        """Equal clocks become one again after a load."""
        for group in groups:
            seen: dict[tuple[float, ...], dict[str, Tensor]] = {}
            for p in group["params"]:
                entries = state.get(p)
                if not entries or any(name not in entries for name in self.clocks):
                    continue
                now = tuple(float(entries[name]) for name in self.clocks)
                if now not in seen:
                    seen[now] = {k: filled_state((), v, float32) for k, v in zip(self.clocks, now)}
                entries.update(seen[now])
        return {"state": state, "param_groups": groups}


def power(base: Any, exponent: Num) -> Num:
    """`base ** exponent` in f64."""
    return base ** exponent.to(float64)
