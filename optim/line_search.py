"""A line search for the strong Wolfe conditions as a machine that is fed one evaluation at a time. For LBFGS.

Nocedal and Wright, "Numerical Optimization" (2006), algorithms 3.5 (bracketing) and 3.6 (zoom), with steps
from cubic interpolation. PyTorch's constants, tests and order of evaluations.

In ordinary code choices are made by Python: what comes from tensors are NumPy scalars of their precision, the
rest Python floats, as in PyTorch. Under `compile` all of them are 0-d tensors, all alternatives are computed
and one is picked. The formulas are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.dataclass import dataclass
from ..tracer.methods import FUNCTIONS
from ..tracer.tensor import Tensor

C1, C2 = 1e-4, 0.9

#: What the evaluation that comes next is for.
START, BRACKET, ZOOM, PLAIN = range(4)


def pick(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition holds, else `y`; numbers or vectors."""
    if not isinstance(condition, Tensor):
        return x if condition else y
    if x is y:
        return x
    if not isinstance(x, Tensor):
        x = y.new_tensor(x)
    elif not isinstance(y, Tensor):
        y = x.new_tensor(y)
    return FUNCTIONS["where"](condition, x, y)


def _chosen(tensors: str, numbers: Any) -> Any:
    op = FUNCTIONS[tensors]

    def function(*operands: Any) -> Any:
        tensor = next((x for x in operands if isinstance(x, Tensor)), None)
        if tensor is None:
            return numbers(*operands)
        return op(*[x if isinstance(x, Tensor) else tensor.new_tensor(x) for x in operands])

    return function


smaller = _chosen("minimum", min)
larger = _chosen("maximum", max)
root = _chosen("sqrt", np.sqrt)


def ratio(x: Any, y: Any) -> Any:
    """x / y, NaN for Python floats where y is 0."""
    try:
        return x / y
    except ZeroDivisionError:
        return np.float64(np.nan)


def cubic(x1: Any, f1: Any, g1: Any, x2: Any, f2: Any, g2: Any, low: Any, high: Any) -> Any:
    """The minimum in [low, high] of the cubic with values f and slopes g at two places (equation 3.59); the
    middle if it has none."""
    d1 = g1 + g2 - ratio(3 * (f1 - f2), x1 - x2)
    square = d1 * d1 - g1 * g2
    d2 = root(larger(square, 0.0))
    right = x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
    left = x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    inside = smaller(larger(pick(x1 <= x2, right, left), low), high)
    return pick(square >= 0, inside, (low + high) / 2)


@dataclass
class Point:
    """An evaluation on the line: step, value, slope and gradient (a vector)."""

    t: Any
    f: Any
    slope: Any
    g: Any


def picked(condition: Any, x: Point, y: Point) -> Point:
    """A point where the condition holds, else another."""
    if not isinstance(condition, Tensor):
        return x if condition else y
    if x is y:
        return x
    return Point(*[pick(condition, a, b) for a, b in zip(vars(x).values(), vars(y).values())])


@dataclass
class Search:
    """Where a line search stands. After `begin`, feed it evaluations until `ended`.

    Attributes:
        phase: BRACKET or ZOOM.
        origin: the point at step 0.
        t: the step to evaluate next.
        width: the largest element of the direction, absolutely.
        made: evaluations after the first.
        budget: how many there may be.
        last: the evaluation before, in bracketing.
        a, b: the bracket's ends.
        a_is_low: which of them has the lower value.
        stuck: the last step was too close to an end.
        ended: `best` is the result.
    """

    phase: Any
    origin: Point
    t: Any
    width: Any
    made: Any
    budget: Any
    last: Point
    a: Point
    b: Point
    a_is_low: Any
    stuck: Any
    ended: Any
    best: Point

    def feed(self, f: Any, slope: Any, g: Any, tolerance: float) -> Search:
        """The search after the evaluation at `t` gave value, slope and gradient."""
        here, origin = Point(self.t, f, slope, g), self.origin
        enough = f > origin.f + C1 * here.t * origin.slope  # too little decrease, that is
        flat = abs(slope) <= -C2 * origin.slope
        bracketing, spent = self.phase == BRACKET, self.made >= self.budget
        if isinstance(bracketing, Tensor):
            one = self._bracketed(here, enough, flat, spent, tolerance)
            two = self._zoomed(here, enough, flat, spent, tolerance)
            return _either(bracketing, one, two)
        if bracketing:
            return self._bracketed(here, enough, flat, spent, tolerance)
        return self._zoomed(here, enough, flat, spent, tolerance)

    def _bracketed(self, here: Point, enough: Any, flat: Any, spent: Any, tolerance: float) -> Search:
        """Algorithm 3.5: a minimum lies between the last point and this one, or steps grow."""
        last = self.last
        rises = enough | ((self.made > 1) & (here.f >= last.f))
        good = flat & ~rises & ~spent
        between = (rises | (here.slope >= 0)) & ~good & ~spent
        a = picked(spent, self.origin, last)
        bracket = self._with(phase=pick(between, ZOOM, self.phase), a=a, b=here, a_is_low=a.f <= here.f)
        lowest = picked(bracket.a_is_low, a, here)
        zoomed = bracket._next_in_bracket(spent, tolerance)
        least, most = here.t + 0.01 * (here.t - last.t), here.t * 10
        further = cubic(last.t, last.f, last.slope, here.t, here.f, here.slope, least, most)
        grown = ~(between | good | spent)
        return zoomed._with(
            t=pick(grown, further, zoomed.t),
            made=self.made + 1,
            last=picked(grown, here, last),
            stuck=zoomed.stuck & ~grown,
            ended=good | spent | (between & zoomed.ended),
            best=picked(good, here, lowest),
        )

    def _zoomed(self, here: Point, enough: Any, flat: Any, spent: Any, tolerance: float) -> Search:
        """Algorithm 3.6: this point takes the place of one end of the bracket."""
        low, high = picked(self.a_is_low, self.a, self.b), picked(self.a_is_low, self.b, self.a)
        worse = enough | (here.f >= low.f)
        good = flat & ~worse
        turned = ~worse & ~good & (here.slope * (high.t - low.t) >= 0)
        new_high = picked(worse, here, picked(turned, low, high))
        new_low = picked(worse, low, here)
        a, b = picked(self.a_is_low, new_low, new_high), picked(self.a_is_low, new_high, new_low)
        a_is_low = pick(worse, a.f <= b.f, self.a_is_low)
        bracket = self._with(a=a, b=b, a_is_low=a_is_low)
        following = bracket._next_in_bracket(good | spent, tolerance)
        return following._with(made=self.made + 1, best=picked(a_is_low, a, b))

    def _next_in_bracket(self, over: Any, tolerance: float) -> Search:
        """The next step to try, not too close to the bracket's ends, unless the search is over."""
        a, b = self.a, self.b
        least, most = smaller(a.t, b.t), larger(a.t, b.t)
        narrow = abs(b.t - a.t) * self.width < tolerance
        t = cubic(a.t, a.f, a.slope, b.t, b.f, b.slope, least, most)
        margin = 0.1 * (most - least)
        near = smaller(most - t, t - least) < margin
        push = near & (self.stuck | (t >= most) | (t <= least))
        pushed = pick(abs(t - most) < abs(t - least), most - margin, least + margin)
        return self._with(t=pick(push, pushed, t), stuck=near & ~push, ended=over | narrow)

    def _with(self, **fields: Any) -> Search:
        return Search(**{**vars(self), **fields})


def _either(condition: Any, x: Search, y: Search) -> Search:
    out = {}
    for name, a in vars(x).items():
        b = getattr(y, name)
        out[name] = picked(condition, a, b) if isinstance(a, Point) else pick(condition, a, b)
    return Search(**out)
