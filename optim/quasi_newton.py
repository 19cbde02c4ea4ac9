"""The iterations of LBFGS (Liu and Nocedal 1989) as a machine that lbfgs.py feeds one evaluation at a time.

Numbers are of two kinds, see line_search.py. Vectors are tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.dataclass import dataclass
from ..ir.dtypes import int64
from ..tracer.control import cond, while_loop
from ..tracer.creation import arange, tensor, zeros
from ..tracer.methods import FUNCTIONS
from ..tracer.recording import STATE
from ..tracer.tensor import Tensor
from .line_search import BRACKET, PLAIN, START, Point, Search, pick, picked, smaller

_CURVED = 1e-10  # a pair of steps and gradients' changes with less curvature is not remembered


def scalar(t: Any) -> Any:
    """The number in a tensor, of its precision or f32's."""
    value = t.detach()._array()[()]
    return value if value.dtype.itemsize > 2 else np.float32(value)


def _dot(x: Any, y: Any) -> Any:
    return (x * y).sum()


def _largest(x: Any) -> Any:
    return x.abs().max()


@dataclass
class State:
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

    def having(self, **fields: Any) -> State:
        return State(**{**vars(self), **fields})


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


class Run:
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
        return list(tensors) if self.traced else [scalar(t) for t in tensors]

    def times(self, d: Any, t: Any) -> Any:
        """A vector times a number."""
        return d * (t if self.traced else float(t))

    def consume(self, c: State, loss: Any, g: Any) -> State:
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

    def choose(self, condition: Any, then: Callable[[], State], other: Callable[[], State]) -> State:
        """One of two states; the other is not computed."""
        if not self.traced:
            return then() if condition else other()
        return unpacked(cond(condition, lambda: packed(then()), lambda: packed(other())))

    def iterate(self, c: State, p: Point, begins: Any) -> State:
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

    def direct(self, c: State) -> State:
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

    def quasi_newton(self, c: State, count: Any, H: Any) -> tuple[Any, Any, Any]:
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
        d, slope, width = [Tensor(v) for v in made]
        return d, slope, width

    def whole(self, n: int) -> Any:
        """A whole number."""
        return tensor(n) if self.traced else np.int64(n)

    def remembered(self, c: State, keep: Any, s: Any, y: Any, curvature: Any) -> State:
        """Puts a step and the gradient's change into the ring."""
        m = c.S.shape[0]
        count, head = smaller(c.count + 1, m), (c.head + 1) % m
        if not self.traced:
            if not keep:
                return c
            for ring, new in ((c.S, s._array()), (c.Y, y._array()), (c.ro, 1.0 / curvature)):
                if ring.is_cuda:
                    ring[int(c.head)] = tensor(new, dtype=ring.dtype)
                else:
                    ring._buffer().array[int(c.head)] = new
            return c.having(count=count, head=head)
        here = (arange(m) == c.head) & keep
        column = here.unsqueeze(1)
        return c.having(
            S=pick(column, s, c.S), Y=pick(column, y, c.Y), ro=pick(here, 1.0 / curvature, c.ro),
            count=pick(keep, count, c.count), head=pick(keep, head, c.head),
        )  # fmt: skip


def packed(c: State) -> dict[str, Any]:
    """A state as nested dicts of tensors."""

    def pack(x: Any) -> Any:
        return {k: pack(v) for k, v in vars(x).items()} if isinstance(x, (Search, Point)) else x

    return {k: pack(v) for k, v in vars(c).items()}


def unpacked(d: dict[str, Any]) -> State:
    search = d["search"]
    if search is not None:
        search = Search(**{k: Point(**v) if isinstance(v, dict) else v for k, v in search.items()})
    return State(**{**d, "search": search})
