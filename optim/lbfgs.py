"""LBFGS (Liu and Nocedal 1989), with a line search for the strong Wolfe conditions (line_search.py).

A step is a machine that is fed one evaluation of the closure at a time, `_Run.consume`. In ordinary code
Python feeds it, and each evaluation is a program; under `compile` a `while_loop` does, the closure is traced
once and the whole step is native.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.dtypes import DType, int64
from ..runtime.buffers import from_array
from ..tracer.autograd import enable_grad, no_grad
from ..tracer.control import cond, while_loop
from ..tracer.creation import arange, tensor, zeros
from ..tracer.library import ArgumentError, ArgumentTypeError, overwrite
from ..tracer.methods import FUNCTIONS
from ..tracer.recording import STATE, outside_traces
from ..tracer.tensor import Tensor, concrete
from . import checks
from .arithmetic import Num
from .line_search import BRACKET, PLAIN, START, Point, Search, pick, picked, smaller
from .optimizer import Optimizer
from .rule import write

_CURVED = 1e-10  # a pair of steps and gradients' changes with less curvature is not remembered


def _scalar(t: Any) -> Any:
    """The number in a tensor, of its precision or f32's."""
    value = t.detach()._array()[()]
    return value if value.dtype.itemsize > 2 else np.float32(value)


def _dot(x: Any, y: Any) -> Any:
    return (x * y).sum()


def _largest(x: Any) -> Any:
    return x.abs().max()


@dataclass
class _State:
    """Where a step stands.

    Attributes:
        phase: what the next evaluation is for.
        x, f, g: the parameters of this iteration as one vector, the loss and the gradient there.
        d, t: the direction, and the step along it: the one to evaluate next, or else the last one taken.
        search: the line search, if there is one.
        evals, iters: evaluations and iterations of this step.
        n_iter: iterations of all steps.
        S, Y, ro, count, head: the last steps and changes of the gradient, a ring of rows; the reciprocals of
            their products; how many there are, and where the next goes.
        H: the scale of the inverse Hessian that the rows then correct.
        prev_g, prev_f: of the iteration before.
        done: this step is over.
    """

    phase: Any
    x: Any
    f: Any
    g: Any
    d: Any
    t: Any
    search: Search | None
    evals: Any
    iters: Any
    n_iter: Any
    S: Any
    Y: Any
    ro: Any
    count: Any
    head: Any
    H: Any
    prev_g: Any
    prev_f: Any
    done: Any

    def having(self, **fields: Any) -> _State:
        return _State(**{**vars(self), **fields})


def two_loops(g: Any, S: Any, Y: Any, ro: Any, count: Any, head: Any, H: Any) -> Any:
    """The direction `-H g` of a quasi-Newton method (Nocedal and Wright 2006, algorithm 7.4).

    Args:
        g: gradient `[n]`.
        S, Y: `[m, n]`, `count` rows of which, those before row `head`, are steps and changes of the gradient.
        ro: `[m]`, their reciprocal products.
        H: scale of the first inverse Hessian.
    """
    m = S.shape[0]
    places = arange(m)

    def row(matrix: Any, k: Any) -> Any:
        return matrix.index_select(0, k.reshape(1)).reshape(-1)

    def at(vector: Any, k: Any) -> Any:
        return vector.index_select(0, k.reshape(1)).reshape(())

    def back(i: Any, q: Any, al: Any) -> Any:
        k = (head + m - 1 - i) % m
        a = _dot(row(S, k), q) * at(ro, k)
        return i + 1, q - a * row(Y, k), FUNCTIONS["where"](places == k, a, al)

    def forth(i: Any, r: Any) -> Any:
        k = (head + m - count + i) % m
        b = _dot(row(Y, k), r) * at(ro, k)
        return i + 1, r + row(S, k) * (at(al, k) - b)

    start = zeros((), dtype=int64)
    _, q, al = while_loop(lambda i, q, al: i < count, back, (start, -g, zeros(m, dtype=g.dtype)))
    _, r = while_loop(lambda i, r: i < count, forth, (start, q * H))
    return r


class _Run:
    """One call of `step`.

    Args:
        traced: whether numbers are tensors, for a program that is being compiled.
        lr: learning rate.
    """

    def __init__(self, group: dict[str, Any], traced: bool, lr: Any) -> None:
        self.traced = traced
        self.lr = lr
        self.max_iter = group["max_iter"]
        self.max_eval = group["max_eval"]
        self.flat_enough = group["tolerance_grad"]
        self.tolerance = group["tolerance_change"]
        self.searches = group["line_search_fn"] is not None

    def numbers(self, *tensors: Any) -> list[Any]:
        """What choices are made by: the tensors when traced, else NumPy scalars."""
        return list(tensors) if self.traced else [_scalar(t) for t in tensors]

    def times(self, d: Any, t: Any) -> Any:
        """A vector times a number."""
        return d * (t if self.traced else float(t))

    def consume(self, c: _State, loss: Any, g: Any) -> _State:
        """The state after an evaluation at `x + t d`."""
        f, slope = loss if self.traced else loss.item(), *self.numbers(_dot(g, c.d))
        here = Point(c.t, f, slope, g)
        begins = c.phase == START
        c = c.having(evals=c.evals + 1)
        if c.search is None:
            return self.iterate(c, here, begins)
        if not self.traced:
            if begins:
                return self.iterate(c, here, begins)
            search = c.search.feed(f, slope, g, self.tolerance)
            if search.ended:
                return self.iterate(c, search.best, begins)
            return c.having(search=search, t=search.t)
        search = c.search.feed(f, slope, g, self.tolerance)
        best = picked(begins, here, search.best)
        return self.choose(
            begins | search.ended,
            lambda: self.iterate(c, best, begins),
            lambda: c.having(search=search, t=search.t),
        )

    def choose(self, condition: Any, then: Callable[[], _State], other: Callable[[], _State]) -> _State:
        """One of two states; the other is not computed."""
        if not self.traced:
            return then() if condition else other()
        return _unpacked(cond(condition, lambda: _packed(then()), lambda: _packed(other())))

    def iterate(self, c: _State, p: Point, begins: Any) -> _State:
        """Takes a step of the size of `p`, or none at the beginning, and begins the next iteration unless it
        was the last one."""
        x = pick(begins, c.x, c.x + self.times(c.d, p.t))
        steepest, move = self.numbers(_largest(p.g), _largest(self.times(c.d, p.t)))
        settled = (move <= self.tolerance) | (abs(p.f - c.prev_f) < self.tolerance)
        ran_out = (c.iters >= self.max_iter) | (c.evals >= self.max_eval)
        over = (steepest <= self.flat_enough) | (~begins & (settled | ran_out))
        if self.max_iter == 0:
            over = over | begins
        c = c.having(x=x, f=p.f, g=p.g, t=pick(begins, c.t, p.t), done=over)
        return self.choose(over, lambda: c, lambda: self.direct(c))

    def direct(self, c: _State) -> _State:
        """Finds a direction and the first step to try."""
        first = c.n_iter == 0
        y, s = c.g - c.prev_g, self.times(c.d, c.t)
        curvature, square, total = self.numbers(_dot(y, s), _dot(y, y), c.g.abs().sum())
        keep = (curvature > _CURVED) & ~first
        c = self.remembered(c, keep, s, y, curvature)
        count, H = pick(first, 0, c.count), pick(first, 1.0, pick(keep, curvature / square, c.H))
        d, slope, width = self.quasi_newton(c, count, H)
        slope, width = self.numbers(slope, width)
        t = pick(first, smaller(1.0 / total, 1.0) * self.lr, self.lr)
        iters, no = c.iters + 1, first & ~first
        x, done, search = c.x, slope > -self.tolerance, c.search
        phase = BRACKET
        if search is None:
            # The last iteration's step is taken unseen.
            phase, unseen = PLAIN, (iters >= self.max_iter) & ~done
            x, done = pick(unseen, c.x + self.times(d, t), c.x), done | unseen
        else:
            origin = Point(t * 0, c.f, slope, c.g)
            search = Search(
                phase=self.whole(BRACKET), origin=origin, t=t, width=width, made=self.whole(0),
                budget=self.max_eval - c.evals, last=origin, a=origin, b=origin, a_is_low=no, stuck=no,
                ended=no, best=origin,
            )  # fmt: skip
        return c.having(
            phase=self.whole(phase), x=x, d=d, t=t, search=search, iters=iters, n_iter=c.n_iter + 1,
            count=count, H=H, prev_g=c.g, prev_f=c.f, done=done,
        )  # fmt: skip

    def quasi_newton(self, c: _State, count: Any, H: Any) -> tuple[Any, Any, Any]:
        """The direction, its slope and its largest element."""
        numbers = (count, c.head, H)
        if not self.traced:
            numbers = (tensor(int(count)), tensor(int(c.head)), c.x.new_tensor(float(H)))
        operands = (c.g, c.S, c.Y, c.ro, *numbers)

        def record(*operands: Any) -> tuple[Any, Any, Any]:
            d = two_loops(*operands)
            return d, _dot(operands[0], d), _largest(d)

        if self.traced:
            return record(*operands)

        def procedure() -> tuple[list[Any], None]:
            return [t._value() for t in record(*operands)], None

        # Loops take long to record and are the same each time.
        made, _ = STATE.lazy.segment(two_loops, [t._value() for t in operands], procedure)
        d, slope, width = [Tensor(v) for v in made]  # type: ignore[arg-type]
        return d, slope, width

    def whole(self, n: int) -> Any:
        """A whole number."""
        return tensor(n) if self.traced else np.int64(n)

    def remembered(self, c: _State, keep: Any, s: Any, y: Any, curvature: Any) -> _State:
        """Puts a step and the gradient's change into the ring."""
        m = c.S.shape[0]
        count, head = smaller(c.count + 1, m), (c.head + 1) % m
        if not self.traced:
            if not keep:
                return c
            for ring, new in ((c.S, s._array()), (c.Y, y._array()), (c.ro, 1.0 / curvature)):
                ring._buffer().array[int(c.head)] = new
            return c.having(count=count, head=head)
        here = (arange(m) == c.head) & keep
        column = here.unsqueeze(1)  # type: ignore[attr-defined]
        return c.having(
            S=pick(column, s, c.S), Y=pick(column, y, c.Y), ro=pick(here, 1.0 / curvature, c.ro),
            count=pick(keep, count, c.count), head=pick(keep, head, c.head),
        )  # fmt: skip


def _packed(c: _State) -> dict[str, Any]:
    """A state as nested dicts of tensors."""

    def pack(x: Any) -> Any:
        return {k: pack(v) for k, v in vars(x).items()} if isinstance(x, (Search, Point)) else x

    return {k: pack(v) for k, v in vars(c).items()}


def _unpacked(d: dict[str, Any]) -> _State:
    search = d["search"]
    if search is not None:
        search = Search(**{k: Point(**v) if isinstance(v, dict) else v for k, v in search.items()})
    return _State(**{**d, "search": search})


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

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
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
            lr = Tensor(lr.to(x.dtype).value) if isinstance(lr, Num) else x.new_tensor(float(lr))  # type: ignore
            loss = self._step_traced(closure, group, state, x, lr)
            trace.guard_module(self, self._trace_state())
            return loss

    def _evaluated(self, closure: Callable[[], Any], dtype: DType) -> tuple[Any, Any, Any]:
        """What the closure gave, the loss as a number, and the gradient."""
        with enable_grad():
            loss = closure()
        number = loss if isinstance(loss, Tensor) else tensor(float(loss))
        return loss, number.detach().reshape(()).to(dtype), self._gradient()  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any], group: dict[str, Any], state: dict[str, Any], x: Any) -> Any:
        run = _Run(group, False, float(group["lr"]))
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

    def _leave(self, c: _State, state: dict[str, Any]) -> None:
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
        run = _Run(group, True, lr)
        begin = _packed(self._entered(run, state, x))

        def body(c: Any, first: Any) -> Any:
            now = _unpacked(c)
            starts = now.phase == START
            self._set(pick(starts, now.x, now.x + now.d * now.t))
            _, loss, g = self._evaluated(closure, x.dtype)
            return _packed(run.consume(now, loss, g)), pick(starts, loss, first)

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
            state.update(_fresh(group["history_size"], x.numel(), x.dtype))
        return state

    def _entered(self, run: _Run, state: dict[str, Any], x: Any) -> _State:
        """The state at the beginning of a step."""
        traced = run.traced
        kept = {name: state[name] for name in _KEPT}
        if not traced:
            for name in ("count", "head", "n_iter"):
                kept[name] = np.int64(kept[name].item())
            kept |= {"t": _scalar(kept["t"]), "H": _scalar(kept["H"]), "prev_f": kept["prev_f"].item()}
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
        return _State(
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
        return _ringed(entries, self.param_groups[0]["history_size"], n, p.dtype)


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
