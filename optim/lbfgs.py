"""LBFGS (Liu and Nocedal 1989), with a line search for the strong Wolfe conditions (line_search.py).

A step feeds evaluations of the closure to a machine (quasi_newton.py). In ordinary code Python does, and each
evaluation is a program; under `compile` a `while_loop` does, the closure is traced once and the whole step is
native.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.dtypes import DType, int64
from ..runtime.buffers import from_array
from ..tracer.control import while_loop
from ..tracer.creation import tensor, zeros
from ..tracer.devices import on_device
from ..tracer.grad_mode import enable_grad, no_grad
from ..tracer.library import ArgumentError, ArgumentTypeError, device_name, overwrite
from ..tracer.methods import FUNCTIONS
from ..tracer.recording import STATE, outside_traces
from ..tracer.tensor import Tensor, concrete
from . import checks
from .arithmetic import Num
from .line_search import BRACKET, START, Point, Search, pick
from .optimizer import Optimizer
from .quasi_newton import Run, State, packed, scalar, unpacked
from .rule import write


class LBFGS(Optimizer):
    """The quasi-Newton method with limited memory. Needs a closure that resets gradients, computes the loss,
    calls `backward()` and returns the loss; it is called several times a step.

    Args:
        params: tensors, in one group.
        lr: the first step to try along each direction.
        max_iter: iterations a step.
        max_eval: evaluations of the closure a step; 5/4 `max_iter` if None.
        tolerance_grad: a step ends when no element of the gradient is larger,
        tolerance_change: or when loss or parameters change less.
        history_size: how many earlier steps are remembered.
        line_search_fn: None, to take steps of size `lr`, or `"strong_wolfe"`.

    Under `compile` a step is one native loop, in which the closure is traced once. Gradients exist only
    inside it, and it returns the loss it began with without history.
    """

    def __init__(
        self, params: Any, lr: Any = 1, max_iter: int = 20, max_eval: int | None = None,
        tolerance_grad: float = 1e-7, tolerance_change: float = 1e-9, history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "max_iter": max_iter, "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change,
            "history_size": history_size, "line_search_fn": line_search_fn,
        }  # fmt: skip
        super().__init__(params, defaults)
        if len(self.param_groups) != 1:
            raise ArgumentError("LBFGS: all parameters must be in one group")

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.not_negative("LBFGS", group, "lr", "max_iter", "max_eval")
        if group["history_size"] < 1:
            raise ArgumentError(f"LBFGS: history_size must be at least 1, got {group['history_size']}")
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ArgumentError(
                f"LBFGS: line_search_fn must be None or 'strong_wolfe', got {group['line_search_fn']!r}"
            )

    # --- parameters as one vector

    @property
    def _params(self) -> list[Any]:
        return self.param_groups[0]["params"]

    def _gradient(self) -> Any:
        parts = []
        for p in self._params:
            g = p.grad
            parts.append(zeros(p.numel(), dtype=p.dtype) if g is None else g.detach().reshape(-1))
        return FUNCTIONS["cat"](parts)

    def _set(self, x: Any) -> None:
        """Writes the vector's parts to the parameters."""
        start = 0
        for p in self._params:
            n = p.numel()
            part = x[start : start + n].reshape(tuple(p.shape)).to(p.dtype)
            write(p, part._value())
            start += n

    # --- one step

    def step(self, closure: Callable[[], Any]) -> Any:
        """Minimises until something ends the step (see the arguments of the class).

        Args:
            closure: evaluates the model again and gives the loss.

        Returns:
            The loss before the step.
        """
        if len(self.param_groups) != 1:
            raise ArgumentError("LBFGS: all parameters must be in one group")
        if not callable(closure):
            raise ArgumentTypeError(f"LBFGS.step() needs a closure, got {type(closure).__name__}")
        group: Any = self.param_groups[0]
        trace: Any = STATE.trace
        with no_grad():
            x = FUNCTIONS["cat"]([p.detach().reshape(-1) for p in self._params])
            state = self._started(group, x)
            if trace is STATE.lazy:
                return self._step(closure, group, state, x)
            lr = group.read(trace, "lr")
            lr = Tensor(lr.to(x.dtype).value) if isinstance(lr, Num) else tensor(float(lr), dtype=x.dtype)
            loss = self._step_traced(closure, group, state, x, lr)
            trace.guard_module(self, self._trace_state())
            return loss

    def _evaluated(self, closure: Callable[[], Any], dtype: DType) -> tuple[Any, Any, Any]:
        """What the closure gave, the loss as a number, and the gradient."""
        with enable_grad():
            loss = closure()
        number = loss if isinstance(loss, Tensor) else tensor(float(loss))
        return loss, number.detach().reshape(()).to(dtype), self._gradient()

    def _step(self, closure: Callable[[], Any], group: dict[str, Any], state: dict[str, Any], x: Any) -> Any:
        run = Run(group, False, float(group["lr"]))
        c = self._entered(run, state, x)
        first, loss, g = self._evaluated(closure, x.dtype)
        try:
            with np.errstate(all="ignore"):
                c = run.consume(c, loss, g)
                while not c.done:
                    self._set(c.x + c.d * float(c.t))
                    _, loss, g = self._evaluated(closure, x.dtype)
                    c = run.consume(c, loss, g)
        finally:  # an error in the closure leaves what was reached until then
            self._leave(c, state)
        return first

    def _leave(self, c: State, state: dict[str, Any]) -> None:
        overwrite(state["func_evals"], np.asarray(state["func_evals"].item() + c.evals))
        if c.n_iter == state["n_iter"].item():
            return
        self._set(c.x)
        for name in ("d", "prev_g"):
            write(state[name], getattr(c, name)._value())
        for name in ("t", "H", "prev_f", "count", "head", "n_iter"):
            overwrite(state[name], np.asarray(getattr(c, name)))

    def _step_traced(
        self, closure: Callable[[], Any], group: dict[str, Any], state: dict[str, Any], x: Any, lr: Any
    ) -> Any:
        run = Run(group, True, lr)
        begin = packed(self._entered(run, state, x))

        def body(c: Any, first: Any) -> Any:
            now = unpacked(c)
            starts = now.phase == START
            self._set(pick(starts, now.x, now.x + now.d * now.t))
            _, loss, g = self._evaluated(closure, x.dtype)
            return packed(run.consume(now, loss, g)), pick(starts, loss, first)

        end, first = while_loop(lambda c, first: ~c["done"], body, (begin, x.new_zeros(())))
        self._set(end["x"])
        for name in _KEPT:
            write(state[name], end[name]._value())
        write(state["func_evals"], (state["func_evals"] + end["evals"])._value())
        return first

    # --- state

    def _started(self, group: dict[str, Any], x: Any) -> dict[str, Any]:
        """State for the first parameter, in which PyTorch keeps that of all."""
        state = self.state[self._params[0]]
        if "S" not in state:
            state.update(_placed(_fresh(group["history_size"], x.numel(), x.dtype), x))
        return state

    def _entered(self, run: Run, state: dict[str, Any], x: Any) -> State:
        """The state at the beginning of a step."""
        traced = run.traced
        kept = {name: state[name] for name in _KEPT}
        if not traced:
            for name in ("count", "head", "n_iter"):
                kept[name] = np.int64(kept[name].item())
            kept |= {"t": scalar(kept["t"]), "H": scalar(kept["H"]), "prev_f": kept["prev_f"].item()}
        zero: Any = x.new_zeros(()) if traced else 0.0
        no: Any = tensor(False) if traced else np.bool_(False)
        nothing: Any = x.new_zeros(x.shape) if traced else None
        search = None
        if run.searches:
            o = Point(zero, zero, zero, nothing)
            search = Search(
                phase=run.whole(BRACKET), origin=o, t=zero, width=zero, made=run.whole(0),
                budget=run.whole(0), last=o, a=o, b=o, a_is_low=no, stuck=no, ended=no, best=o,
            )  # fmt: skip
        return State(
            phase=run.whole(START), x=x, f=zero, g=nothing, search=search, evals=run.whole(0),
            iters=run.whole(0), done=no, **kept,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """In PyTorch's format: the ring as lists, oldest first."""
        made = super().state_dict()
        made["state"] = {k: _listed(v) if "S" in v else v for k, v in made["state"].items()}
        return made

    def _loaded_state(self, p: Tensor, key: Any, entries: Any) -> Any:
        n = sum(q.numel() for q in self._params)
        return _placed(_ringed(entries, self.param_groups[0]["history_size"], n, p.dtype), p)


#: State that lasts from step to step.
_KEPT = ("d", "t", "S", "Y", "ro", "count", "head", "H", "prev_g", "prev_f", "n_iter")
_NUMBERS = {"count": int64, "head": int64, "n_iter": int64, "func_evals": int64}


def _fresh(m: int, n: int, dtype: DType) -> dict[str, Any]:
    """State before the first step. Rows of the ring take memory when they are first used."""
    shapes: dict[str, tuple[int, ...]] = {
        "d": (n,), "t": (), "S": (m, n), "Y": (m, n), "ro": (m,), "count": (), "head": (), "H": (),
        "prev_g": (n,), "prev_f": (), "n_iter": (), "func_evals": (),
    }  # fmt: skip
    with outside_traces():
        return {
            name: concrete(from_array(np.zeros(shape, _NUMBERS.get(name, dtype).numpy)))
            for name, shape in shapes.items()
        }


def _placed(state: dict[str, Any], like: Any) -> dict[str, Any]:
    """The same on another tensor's device."""
    place = device_name(like)
    with outside_traces():
        return {k: on_device(v, place) for k, v in state.items()}


def _listed(state: dict[str, Any]) -> dict[str, Any]:
    count, head, m = int(state["count"]), int(state["head"]), state["S"].shape[0]
    rows = [(head - count + i) % m for i in range(count)]
    out: dict[str, Any] = {"func_evals": int(state["func_evals"]), "n_iter": int(state["n_iter"])}
    if out["n_iter"]:
        out |= {"d": state["d"].detach(), "t": float(state["t"])}
        for name, ring in (("old_dirs", "Y"), ("old_stps", "S"), ("ro", "ro")):
            array = state[ring]._array()
            out[name] = [tensor(array[k].copy()) for k in rows]
        out |= {"H_diag": state["H"].detach(), "prev_flat_grad": state["prev_g"].detach()}
        out["prev_loss"] = float(state["prev_f"])
    return out


def _ringed(entries: dict[str, Any], m: int, n: int, dtype: DType) -> dict[str, Any]:
    """The state of what `_listed`, or PyTorch, gave."""
    state = _fresh(m, n, dtype)

    def put(name: str, value: Any) -> None:
        array = value.detach()._array() if isinstance(value, Tensor) else np.asarray(value)
        target = state[name]._array()
        if array.size != target.size:
            raise ArgumentError(
                f"LBFGS: {name!r} of the state has {array.size} elements, expected {target.size}"
            )
        target[...] = array.reshape(target.shape)

    for name in ("func_evals", "n_iter"):
        put(name, entries.get(name, 0))
    names = {"d": "d", "t": "t", "H_diag": "H", "prev_flat_grad": "prev_g", "prev_loss": "prev_f"}
    for theirs, mine in names.items():
        if entries.get(theirs) is not None:
            put(mine, entries[theirs])
    steps = list(entries.get("old_stps") or [])[-m:]
    changes = list(entries.get("old_dirs") or [])[-m:]
    products = list(entries.get("ro") or [])[-m:]
    for ring, rows in (("S", steps), ("Y", changes), ("ro", products)):
        array = state[ring]._array()
        for k, row in enumerate(rows):
            value = row.detach()._array() if isinstance(row, Tensor) else np.asarray(row)
            if value.size != array[k].size:
                raise ArgumentError(
                    f"LBFGS: a step of the state has {value.size} elements, the parameters {array[k].size}"
                )
            array[k] = value.reshape(array[k].shape)
    put("count", len(steps))
    put("head", len(steps) % m)
    return state


__all__ = ["LBFGS"]
