"""`Rule`: what the optimisers with a formula share. A subclass is the formula of one parameter's update.

`step` is recorded like any other code, so a training step compiles as one program. The step count and other
numbers that are alike for all parameters ("clocks") are one tensor for all parameters that have always been
updated
together: bias corrections are then computed once a step, not once a parameter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

from ..ir.dtypes import float32, float64
from ..ir.errors import TraceError
from ..tracer.callers import user_location
from ..tracer.grad_mode import enable_grad
from ..tracer.library import ArgumentError, device_name, filled_state
from ..tracer.recording import STATE, LazyTrace, outside_traces
from ..tracer.segments import put_all, stand_in
from ..tracer.tensor import Tensor, note_change
from .arithmetic import Num, number
from .optimizer import Optimizer
from .param_group import ParamGroup


class _Visible(threading.local):
    """Storages written in this step whose memory is seen outside as a NumPy array. Such a write runs what is
    pending at once; within a step that has to wait until all of it is recorded."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, Any]] = []

    def release(self, trace: Any) -> None:
        """Shows what was written."""
        if self.held:
            held, self.held = self.held, []
            for storage, memory in held:
                storage.shared = memory
            trace.flush()


VISIBLE = _Visible()


def write(t: Tensor, value: Any) -> None:
    """Replaces the contents of a parameter or of state."""
    storage = t._storage
    if storage.shared is not None and STATE.trace is STATE.lazy:
        VISIBLE.held.append((storage, storage.shared))
        storage.shared = None
    t._put(value)


class Slots:
    """State tensors as attributes that are `Num`s; assigning writes in place."""

    __slots__ = ("_tensors",)

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        object.__setattr__(self, "_tensors", tensors)

    def __getattr__(self, name: str) -> Num:
        return Num(self._tensors[name]._value())

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def wide(self, name: str) -> Num:
        """A clock in f64."""
        return self.__getattr__(name).to(float64)

    def __setattr__(self, name: str, new: Num) -> None:
        t = self._tensors[name]
        value = new.to(t.dtype).value
        if value.type.shape != t._value().type.shape:
            raise ArgumentError(
                f"state {name!r} of type {t._value().type} can't take a value of type {value.type}"
            )
        write(t, value)


class Hypers:
    """A group's hyper-parameters as attributes: Python numbers, or Nums where the program reads them at each
    call."""

    __slots__ = ("_group", "_read", "_trace")

    def __init__(self, trace: Any, group: ParamGroup, given: dict[Any, Num] | None = None) -> None:
        self._trace = trace
        self._group = group
        self._read: dict[Any, Any] = dict(given or {})

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
        clock_key: the one that tells apart parameters whose `numbers` differ.
    """

    clocks: ClassVar[dict[str, float]] = {"step": 0.0}
    clock_key = "step"

    def _clock_values(self, group: ParamGroup) -> dict[str, float]:
        return self.clocks

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
        before = trace.grad_enabled, trace.loc, trace.phase
        lazy = trace is STATE.lazy  # which looks for the user's line only where an op is new
        trace.grad_enabled, trace.phase = False, "update"
        if not lazy:
            trace.loc = trace.loc or user_location()
        try:
            for group in self.param_groups:
                self._step_group(trace, group)
            if not lazy:
                trace.guard_module(self, self._trace_state())
        finally:
            trace.grad_enabled, trace.loc, trace.phase = before
            VISIBLE.release(trace)
        return loss

    # --- one group ------------------------------------------------------------------------------------------

    def _step_group(self, trace: Any, group: ParamGroup) -> None:
        if trace is STATE.lazy:  # where reading `.grad` has no effect
            found = [
                (p, g if g.__class__ is Tensor else p.grad)
                for p in group["params"]
                if (g := p._grad) is not None
            ]
        else:
            found = [(p, g) for p in group["params"] if (g := p.grad) is not None]
        if not found:
            return
        slots = self.slots(group)
        stateful = bool(slots or self.clocks)
        states = [self.state[p] for p, _ in found] if stateful else []
        if stateful:
            wanted = slots.keys()
            fresh = [p for (p, _), state in zip(found, states) if not state or not wanted <= state.keys()]
            if fresh:
                self._make_state(group, fresh, slots)
            if self.clocks and (len(found) != len(group["params"]) or 0 < len(fresh) < len(found)):
                self._separate_clocks(trace, group, [p for p, _ in found])
        formula = group.formula() if isinstance(trace, LazyTrace) else None
        if formula is None:
            self._update(trace, group, found, Hypers(trace, group), stateful)
            return
        fixed, read = formula
        numbers = tuple([trace.number(float(v), float64) for v in read.values()])
        held: dict[Any, None] = dict.fromkeys([p for p, _ in found])
        for state in states:
            held.update(dict.fromkeys([t for t in state.values() if isinstance(t, Tensor)]))
        tensors = [*held]
        before = [t._storage.value if t._view is None else t._value() for t in tensors]
        operands = before + [g._storage.value if g._view is None else g._value() for _, g in found]
        ran: list[bool] = []
        given_to = (trace, group, found, (read, numbers), stateful, tensors, before, ran)
        key = self._formula, fixed, len(found)
        made, _ = trace.segment(key, operands, self._recorded, *given_to, numbers=numbers)
        if not ran:
            for t, value in put_all(trace, tensors, made):
                write(t, value)

    def _recorded(
        self, trace: Any, group: ParamGroup, found: list[Any], given: Any, stateful: bool, tensors: list[Any],
        before: list[Any], ran: list[bool],
    ) -> tuple[list[Any], None]:  # fmt: skip
        """Updates, and gives the new values of those of the tensors that have one."""
        ran.append(True)
        read, numbers = given
        hypers = {k: Num(stand_in(trace, slot)) for k, slot in zip(read, numbers)}
        self._update(trace, group, found, Hypers(trace, group, hypers), stateful)
        after = (t._value() for t in tensors)
        return [None if a is b else a for a, b in zip(after, before)], None

    def _update(
        self, trace: Any, group: ParamGroup, found: list[Any], hypers: Hypers, stateful: bool
    ) -> None:
        """Writes the new parameters and their new state."""
        numbers: dict[Any, dict[str, Any]] = {}
        converted: dict[Any, Scalars] = {}
        for p, grad in found:
            state = self.state[p] if stateful else {}
            trace.note_state(p, state)
            clock = id(state.get(self.clock_key))
            if clock not in numbers:
                numbers[clock] = self._tick(hypers, Slots(state), group)
            value = p._value()
            dtype = value.type.dtype
            c = converted.get((clock, dtype))
            if c is None:
                c = converted[clock, dtype] = Scalars(numbers[clock], dtype)
            g = Num(grad._value()).to(dtype)
            x = Num(value)
            if group["maximize"]:
                g = -g
            if group.get("weight_decay", 0) != 0:
                if group.get("decoupled_weight_decay", False):
                    x = x * c.shrink
                else:
                    g = g + c.weight_decay * x
            write(p, self.update(x, g, Slots(state), c, group).value)

    def _tick(self, h: Hypers, clock: Slots, group: ParamGroup) -> dict[str, Any]:
        if self.clocks:
            clock.step = clock.step + 1
        numbers = self.numbers(h, clock, group)
        if group.get("weight_decay", 0) != 0:
            if group.get("decoupled_weight_decay", False):
                numbers["shrink"] = 1 - h.lr * h.weight_decay
            else:
                numbers["weight_decay"] = h.weight_decay
        return numbers

    def _make_state(self, group: ParamGroup, params: list[Any], slots: dict[str, float]) -> None:
        """State for parameters that lack it, or a part of it."""
        values, clocks = self._clock_values(group), {}
        for p in params:
            state = self.state[p]
            place = device_name(p)
            if place not in clocks:
                clocks[place] = {k: filled_state((), v, float32, place) for k, v in values.items()}
            for name, t in clocks[place].items():
                state.setdefault(name, t)
            for name, value in slots.items():
                if name not in state:
                    state[name] = filled_state(tuple(p.shape), value, p.dtype, place)

    def _separate_clocks(self, trace: Any, group: ParamGroup, updated: list[Any]) -> None:
        """Gives the parameters that are updated now clocks apart from those that are not."""
        stepping = {id(p) for p in updated}
        resting = {
            id(self.state[p]["step"]) for p in group["params"] if id(p) not in stepping and self.state.get(p)
        }
        made: dict[int, dict[str, Tensor]] = {}
        for p in updated:
            state = self.state[p]
            old = id(state["step"])
            if old in resting:
                if old not in made:
                    made[old] = self._copied_clocks(trace, state)
                    self._generation += 1
                    note_change()
                state.update(made[old])

    def _copied_clocks(self, trace: Any, state: dict[str, Any]) -> dict[str, Tensor]:
        if trace is not STATE.lazy and any(state[name]._value().trace is trace for name in self.clocks):
            raise TraceError(
                f"{type(self).__name__}.step() runs more than once in a compiled function, for different "
                f"parameters of "
                f"one group; give those that don't always have gradients a parameter group of their own"
            )
        with outside_traces():
            return {
                name: filled_state((), float(state[name].item()), float32, device_name(state[name]))
                for name in self.clocks
            }

    def _adopted(self, state: Any, groups: list[Any]) -> dict[str, Any]:
        """Equal clocks become one again after a load."""
        for group in groups:
            seen: dict[tuple[Any, ...], dict[str, Tensor]] = {}
            for p in group["params"]:
                entries = state.get(p)
                if not entries or any(name not in entries for name in self.clocks):
                    continue
                place = device_name(p)
                now = (place, *(float(entries[name]) for name in self.clocks))
                if now not in seen:
                    seen[now] = {k: filled_state((), v, float32, place) for k, v in zip(self.clocks, now[1:])}
                entries.update(seen[now])
        return {"state": state, "param_groups": groups}
