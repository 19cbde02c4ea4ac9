"""Optimised programs against the interpreter: random ones with NaN, infinities and both zeros, bit by bit;
and every op of the registry with its gradient.

Random programs are f64 on small whole numbers: every sum and product is exact in any order.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from tracegrad.ir import dtypes, ops
from tracegrad.ir.builder import Builder
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op, Sample
from tracegrad.ir.passes import PassRecord, optimize
from tracegrad.ir.text import parse_graph, print_graph
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.0, -3.0)

_F = dtypes.float64
_UNARY = ("neg", "abs", "relu", "square", "sign", "floor")
_BINARY = ("add", "add", "sub", "mul", "maximum", "minimum")
_REDUCE = ("sum", "sum", "amax", "amin")
_NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5)


class Maker:
    """Draws one program, op by op: mostly chains, because rules look at chains."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.graph = Graph("random")
        self.b = Builder(self.graph)
        self.values: list[Value] = []
        self.products = 0

    def pick(self, items: Any) -> Any:
        return self.random.choice(items)

    def shuffled(self, items: Any) -> list[Any]:
        return self.random.sample(list(items), len(items))

    def value(self) -> Value:
        return self.pick((self.values[-1], self.values[-1], *self.values[-4:], self.pick(self.values)))

    def make(self) -> Graph:
        for _ in range(self.pick((1, 2, 3))):
            shape = tuple(self.pick((1, 2, 2, 3)) for _ in range(self.pick((0, 1, 2, 2, 3))))
            self.values.append(self.graph.add_input(Type(_F, shape)))
        kind = self.pick(_KINDS)
        for _ in range(self.pick((3, 6, 12, 20))):
            kind = kind if self.random.random() < 0.3 else self.pick(_KINDS)
            made = getattr(self, kind)()
            if made is not None and made.type.numel <= 200 and made.type.rank <= 4:
                self.values.append(made)
        made = [v for v in self.values if v.node is not None] or self.values
        self.graph.outputs = [self.pick(made) for _ in range(self.pick((1, 2)))]
        for state in self.graph.inputs:
            new = next(
                (v for v in reversed(self.values) if v.node is not None and v.type == state.type), None
            )
            if new is not None:
                self.graph.updates[state] = new
        return self.graph

    def unary(self) -> Value:
        name = self.pick(_UNARY)
        self.products += name == "square"
        return getattr(self.b, name if self.products < 5 else "neg")(self.value())

    def fits(self, x: Value) -> Value:
        return self.pick([v for v in self.values if _broadcast(v.type.shape, x.type.shape)])

    def binary(self) -> Value:
        name = self.pick(_BINARY)
        self.products += name == "mul"
        x = self.value()
        return getattr(self.b, name if self.products < 5 else "add")(*self.shuffled([x, self.fits(x)]))

    def number(self) -> Value:
        x = self.value()
        c = self.b.const(self.pick(_NUMBERS), x)
        if self.pick((True, False)):
            c = self.b.expand(c, shape=x.type.shape)
        name = self.pick(("add", "sub", "mul", "div"))
        if name == "div" and self.pick((True, False)):
            return self.b.div(x, c)
        return getattr(self.b, name if name != "div" else "add")(*self.shuffled([x, c]))

    def select(self) -> Value:
        x = self.value()
        cond = getattr(self.b, self.pick(("lt", "eq", "ge", "ne")))(x, self.fits(x))
        if self.pick((True, False)):
            cond = self.b.logical_not(cond)
        return self.b.where(cond, x, self.pick((x, self.fits(cond), self.b.const(self.pick(_NUMBERS), x))))

    def casts(self) -> Value:
        x = self.b.cast(self.value(), dtype=dtypes.float32)
        x = self.b.neg(x) if self.pick((True, False)) else x
        return self.b.cast(x, dtype=_F)

    def reshape(self) -> Value:
        x = self.value()
        shape = [n for n in x.type.shape if n != 1]
        if len(shape) > 1 and self.pick((True, False)):
            shape[:2] = [shape[0] * shape[1]]
        for _ in range(self.pick((0, 1, 2))):
            shape.insert(self.pick(range(len(shape) + 1)), 1)
        return self.b.reshape(x, shape=tuple(shape))

    def permute(self) -> Value:
        x = self.value()
        return self.b.permute(x, dims=tuple(self.shuffled(range(x.type.rank))))

    def expand(self) -> Value:
        x = self.value()
        shape = tuple(self.pick((1, 3)) if n == 1 else n for n in x.type.shape)
        return self.b.expand(x, shape=(*self.pick(((), (2,), (1,))), *shape))

    def slice(self) -> Value:
        x = self.value()
        return self.b.slice(x, **self.range_of(x))

    def range_of(self, x: Value) -> dict[str, tuple[int, ...]]:
        start = tuple(self.pick(range(n)) for n in x.type.shape)
        stop = tuple(self.pick(range(s + 1, n + 1)) for s, n in zip(start, x.type.shape))
        return {"start": start, "stop": stop, "step": tuple(self.pick((1, 1, 2)) for _ in start)}

    def pad(self) -> Value:
        x = self.value()
        low, high = (tuple(self.pick((0, 0, 1)) for _ in x.type.shape) for _ in "lh")
        return self.b.pad(x, low=low, high=high, value=self.pick((0.0, 0.0, 1.0)))

    def put(self) -> Value:
        base = self.value()
        part = self.b.slice(base, **(where := self.range_of(base)))
        new = self.pick((part, self.b.neg(part)))
        return self.b.slice_put(base, new, **where)

    def split(self) -> Value | None:
        """The sum of both parts' padded copies, as gradients of slices are."""
        x = self.value()
        if not x.type.rank or x.type.shape[0] < 2:
            return None
        n, rest = x.type.shape[0], x.type.shape[1:]
        zeros, ones = (0,) * len(rest), (1,) * (len(rest) + 1)
        left = self.b.slice(x, start=(0, *zeros), stop=(1, *rest), step=ones)
        right = self.b.slice(x, start=(1, *zeros), stop=(n, *rest), step=ones)
        left = self.b.pad(left, low=(0, *zeros), high=(n - 1, *zeros), value=0.0)
        return self.b.add(left, self.b.pad(right, low=(1, *zeros), high=(0, *zeros), value=0.0))

    def flip(self) -> Value:
        x = self.value()
        return self.b.flip(x, dims=tuple(d for d in range(x.type.rank) if self.pick((True, False))))

    def concat(self) -> Value | None:
        x = self.value()
        if not x.type.rank:
            return None
        return self.b.concat(
            x, self.pick([v for v in self.values if v.type == x.type]), dim=self.pick(range(x.type.rank))
        )

    def reduce(self) -> Value:
        x = self.value()
        axes = tuple(d for d in range(x.type.rank) if self.pick((True, False)))
        return getattr(self.b, self.pick(_REDUCE))(x, axes=axes, keepdim=self.pick((True, False)))

    def contract(self) -> Value | None:
        x, y = self.value(), self.value()
        if self.products >= 5 or x.type.rank + y.type.rank > 5:
            return None
        self.products += 1
        xs = "abcd"[: x.type.rank]
        ys = ""
        for n in y.type.shape:
            same = [c for c, m in zip(xs, x.type.shape) if m == n and c not in ys]
            ys += self.pick(same) if same and self.pick((True, True, False)) else "efgh"[len(ys)]
        keep = [c for c in xs + ys if not (c in xs and c in ys)]
        keep += [c for c in xs if c in ys and self.pick((True, False, False))]
        return self.b.contract(x, y, spec=f"{xs},{ys}->{''.join(self.shuffled(keep))}")


_KINDS = (
    "unary", "binary", "binary", "number", "number", "select", "casts", "reshape", "permute", "expand",
    "slice",
    "pad", "put", "split", "flip", "concat", "reduce", "reduce", "contract", "contract",
)  # fmt: skip


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b)))


def assert_identical(got: list[np.ndarray], want: list[np.ndarray], text: str) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b, err_msg=text)
        zero = b == 0
        np.testing.assert_array_equal(
            np.signbit(a[zero]), np.signbit(b[zero]), err_msg=f"sign of zero\n{text}"
        )


@pytest.mark.parametrize("seed", range(250))
def test_random_programs_keep_their_results(seed: int) -> None:
    g = Maker(seed).make()
    verify(g)
    text = print_graph(g)
    record: list[PassRecord] = []
    made = optimize(g, verify=True, record=record)
    assert print_graph(g) == text
    assert made.inputs == g.inputs and list(made.updates) == list(g.updates)
    assert [v.type for v in made.outputs] == [v.type for v in g.outputs]
    assert all(n.op.decompose is None for n in made.nodes)
    assert optimize(made) is made
    rng = np.random.default_rng(seed)
    whole = rng.integers(-3, 4, 1000).astype(np.float64)
    for k in range(3):
        arrays = []
        for v in g.inputs:
            special = rng.choice(SPECIAL, v.type.shape)
            arrays.append(
                np.where(
                    rng.random(v.type.shape) < (0.0, 0.2, 1.0)[k], special, rng.choice(whole, v.type.shape)
                )
            )
        want, updates = evaluate(g, arrays)
        got, new = evaluate(made, arrays)
        assert_identical(got + new, want + updates, text + str(made))


@pytest.mark.parametrize("seed", range(1000, 1060))
def test_random_programs_print_and_parse(seed: int) -> None:
    g = Maker(seed).make()
    text = print_graph(g)
    again = parse_graph(text)
    verify(again)
    assert print_graph(again) == text
    assert print_graph(optimize(again)) == print_graph(optimize(g))


# --- every op of the registry -------------------------------------------------------------------------------


def arrays_of(sample: Sample) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    if sample.make is not None:
        return [np.asarray(a) for a in sample.make(rng, sample.types)]
    out = []
    for k, t in enumerate(sample.types):
        low, high = sample.domain[k] if isinstance(sample.domain[0], tuple) else sample.domain
        if t.dtype.kind == "f":
            drawn = rng.uniform(low, high, t.shape)
        else:
            drawn = rng.integers(
                max(int(low), 0 if t.dtype.kind in "ub" else -100), max(int(high), 2), t.shape
            )
        out.append(np.asarray(drawn).astype(t.dtype.numpy))
    return out


def program_of(op: Op, sample: Sample) -> Graph:
    """The op and, where it has them, the gradients of its operands from given ones of its first result."""
    g = Graph(op.name)
    b = Builder(g)
    inputs = [g.add_input(t) for t in sample.types]
    made = b.emit(op, tuple(inputs), dict(sample.attrs), sample.regions_for(sample.types))
    g.outputs = list(made) if isinstance(made, tuple) else [made]
    first = g.outputs[0]
    wanted = [v for v in inputs if v.type.dtype.kind == "f"]
    if op.differentiable and first.type.dtype.kind == "f" and wanted:
        seed = b.full(shape=first.type.shape, value=1.0, dtype=first.type.dtype)
        g.outputs += backward(b, {first: seed}, wanted).values()
    return g


assert ops  # registers


@pytest.mark.parametrize("op", list(REGISTRY.values()), ids=lambda op: op.name)
def test_every_op_and_gradient_keeps_its_results(op: Op) -> None:
    for sample in op.samples():
        g = program_of(op, sample)
        made = optimize(g, verify=True)
        assert all(n.op.decompose is None for n in made.nodes)
        arrays = arrays_of(sample)
        for a, b in zip(evaluate(made, arrays)[0], evaluate(g, arrays)[0], strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            rough = b.dtype.itemsize == 2 and b.dtype.kind not in "iub"
            wide = a.dtype if a.dtype.kind in "iub" else np.float64
            np.testing.assert_allclose(
                a.astype(wide),
                b.astype(wide),
                rtol=2e-2 if rough else 1e-4,
                atol=2e-2 if rough else 1e-5,
                err_msg=str(g),
            )
