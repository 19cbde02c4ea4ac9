"""Random graphs with loops and branches, nested, on every machine model: as the graph interpreter says."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from control_tools import I64, MACHINES, check, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from tracegrad.backends.machine import MachineModel
from tracegrad.backends.schedule import plan as planning
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.ops.control import region
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

SHAPES = [(3, 4), (4,), (17,), ()]


class Maker:
    """Draws ops of a graph or region from the values there are."""

    def __init__(self, rng: Random, b: Any, values: list[Value], depth: int) -> None:
        self.rng = rng
        self.b = b
        self.pool = list(values)
        self.depth = depth

    def pick(self, n: int) -> int:
        return self.rng.randrange(n)

    def any(self) -> Value:
        """The newest half the time, so that little is dead."""
        return self.rng.choice(self.pool if self.pick(2) else self.pool[-4:])

    def of(self, shape: tuple[int, ...]) -> Value:
        """A value of that shape: one that is there, or one made from another."""
        fitting = [v for v in self.pool if v.type.shape == shape and v.type.dtype is dtypes.float32]
        if fitting and self.pick(4):
            return fitting[self.pick(len(fitting))]
        b, v = self.b, self.any()
        if v.type.shape == shape:
            return v
        total = b.mean(v, axes=tuple(range(v.type.rank))) if v.type.rank else v
        return b.expand(total, shape=shape) if shape else total

    def ops(self, n: int) -> None:
        kinds = ["unary", "binary", "binary", "product", "reduce", "turn", "cut", "running", "put", "order"]
        if self.depth:
            kinds += ["scan", "scan", "cond", "until"]
        for _ in range(n):
            getattr(self, kinds[self.pick(len(kinds))])()

    def unary(self) -> None:
        b = self.b
        self.pool.append([b.tanh, b.sin, b.neg][self.pick(3)](self.any()))

    def binary(self) -> None:
        v = self.any()
        self.pool.append(
            self.b.tanh([self.b.add, self.b.mul, self.b.sub][self.pick(3)](v, self.of(v.type.shape)))
        )

    def product(self) -> None:
        b = self.b
        x, y = self.of((3, 4)), self.of((3, 4))
        self.pool.append(b.tanh(b.matmul(b.contract(x, y, spec="mk,nk->mn"), self.of((3, 4)))))

    def reduce(self) -> None:
        v = self.any()
        if v.type.rank:
            axis = self.pick(v.type.rank)
            kept = self.b.amax(v, axes=(axis,), keepdim=True)
            self.pool.append(self.b.sub(v, self.b.expand(kept, shape=v.type.shape)))
            if v.type.rank == 1 or axis == 0:
                self.pool.append(self.b.mean(v, axes=(0,)))

    def turn(self) -> None:
        v = self.any()
        if v.type.rank:
            self.pool.append(self.b.flip(v, dims=(self.pick(v.type.rank),)))

    def cut(self) -> None:
        b, v = self.b, self.of((17,))
        self.pool.append(b.slice(v, start=(2,), stop=(14,), step=(3,)))

    def running(self) -> None:
        v = self.any()
        if v.type.rank:
            self.pool.append(self.b.tanh(self.b.cumsum(v, dim=self.pick(v.type.rank))))

    def put(self) -> None:
        """A part written over, at places that are data."""
        b, base, new = self.b, self.of((17,)), self.of((4,))
        at = b.cast(b.mul(b.abs(b.sin(self.of((4,)))), b.const(16.0)), dtype=dtypes.int64)
        self.pool.append(b.index_put(base, new, at, dims=(0,), accumulate=True))

    def order(self) -> None:
        v = self.any()
        if v.type.rank:
            self.pool.append(self.b.sort(v, dim=self.pick(v.type.rank))[0])

    def values(self, most: int) -> list[Value]:
        return [self.any() for _ in range(self.pick(most + 1))]

    def inner(self, types: list[Type], results: Callable[[Maker], list[Value]], name: str) -> Graph:
        graph = Graph(name)
        inputs = [graph.add_input(t) for t in types]
        maker = Maker(self.rng, Builder(graph), [v for v in inputs if v.type.dtype is dtypes.float32],
                      self.depth - 1)  # fmt: skip
        maker.ops(1 + self.pick(4))
        graph.outputs = results(maker)
        return graph

    def scan(self) -> None:
        b = self.b
        length = self.rng.choice([0, 1, 2, 2, 3, 3, 7])
        inits, consts = [self.any(), *self.values(2)], self.values(2)
        xs = []
        for v in self.values(2):
            scale = b.reshape(
                b.iota(shape=(length,), dim=0, dtype=dtypes.float32), shape=(length, *[1] * v.type.rank)
            )
            shape = (length, *v.type.shape)
            xs.append(b.sin(b.add(b.expand(v, shape=shape), b.expand(scale, shape=shape))))
        rows: list[Type] = []

        def results(m: Maker) -> list[Value]:
            ys = m.values(3)
            rows.extend(v.type for v in ys)
            return [*(m.of(v.type.shape) for v in inits), *ys]

        types = [*(v.type for v in inits), *(f32(*x.type.shape[1:]) for x in xs), *(v.type for v in consts)]
        made = b.scan(*inits, *xs, *consts, length=length, carry=len(inits), xs=len(xs),
                      reverse=bool(self.pick(2)), regions=(self.inner(types, results, "body"),))  # fmt: skip
        made = made if isinstance(made, tuple) else (made,)
        self.pool += made[: len(inits)]
        for y in made[len(inits) :]:
            self.pool.append(b.sum(y, axes=(0,)))

    def cond(self) -> None:
        b, operands = self.b, [self.any(), *self.values(2)]
        shapes = [v.type.shape for v in (self.any(), *self.values(1))]
        holds = b.gt(self.of(()), b.const(0.05))
        types = [v.type for v in operands]
        regions = tuple(self.inner(types, lambda m: [m.of(s) for s in shapes], n) for n in ("then", "else"))
        made = b.cond(holds, *operands, regions=regions)
        self.pool += made if isinstance(made, tuple) else (made,)

    def until(self) -> None:
        b = self.b
        start = b.const(0, dtypes.int64)
        carried, consts = [self.any(), *self.values(1)], self.values(1)
        types = [I64, *(v.type for v in carried), *(v.type for v in consts)]
        turns, most = self.pick(5), self.rng.choice([None, None, 0, 2, 3])

        def test(b: Any, i: Value, *_: Value) -> Value:
            return b.lt(i, b.const(turns, i))

        def results(m: Maker) -> list[Value]:
            return [m.of(v.type.shape) for v in carried]

        body = self.inner(types, results, "body")
        i = body.inputs[0]
        body.outputs.insert(0, Builder(body).add(i, Builder(body).const(1, i)))
        made = getattr(b, "while")(start, *carried, *consts, carry=1 + len(carried), max_trips=most,
                                   regions=(region(types, test, "test"), body))  # fmt: skip
        self.pool += made[1:]


def random_graph(seed: int, depth: int = 2) -> Graph:
    rng = Random(seed)
    graph = Graph("random")
    inputs = [graph.add_input(f32(*s), f"x{k}") for k, s in enumerate(SHAPES)]
    m = Maker(rng, Builder(graph), inputs, depth)
    m.ops(2)
    m.scan()
    m.ops(rng.randrange(4))
    graph.outputs = [m.any() for _ in range(rng.randrange(1, 5))]
    graph.updates = {i: m.of(i.type.shape) for i in inputs if not m.pick(4)}
    return optimize(graph)


SEEDS = st.integers(0, 1 << 32)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(MACHINES), st.booleans())
def test_random_control_flow_in_the_loop_interpreter(seed: int, machine: MachineModel, tiny: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if tiny:  # small values get loops too
            patch.setattr(planning, "TINY", 0)
            patch.setattr(planning, "TINY_REDUCE", 0)
        check(random_graph(seed), machine=machine, native=False)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from(MACHINES))
def test_random_control_flow_natively(seed: int, machine: MachineModel) -> None:
    check(random_graph(seed), machine=machine)
