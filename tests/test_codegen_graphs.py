"""Graphs all the way to machine code: the samples of every op, and random programs, against the interpreters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from codegen_tools import assert_same, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.machine import AVX2, AVX512, SMALL, MachineModel
from tracegrad.backends.schedule import schedule
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.op import REGISTRY, Sample
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

TARGETS = targets()
THREADED = MachineModel(64, 32, True, 4, 48 << 10, 1 << 20, 0, 64)
MACHINES = {"small": SMALL, "avx2": AVX2, "avx512": AVX512, "threads": THREADED}
BATCH = 12
EUCLID = ("gcd", "lcm")  # dozens of unrolled steps for every element: tested on a few
SAMPLES = [(op, s) for op in REGISTRY.values() for s in op.samples() if op.name not in EUCLID]


def draw(s: Sample, seed: int) -> list[np.ndarray]:
    """Operands of a sample, as its record asks for them."""
    rng = np.random.default_rng(seed)
    if s.make is not None:
        return s.make(rng, s.types)
    out = []
    for k, t in enumerate(s.types):
        low, high = s.domain[k] if isinstance(s.domain[0], tuple) else s.domain
        if t.dtype.kind == "f":
            a = rng.uniform(low, high, t.shape)
        elif t.dtype.kind == "b":
            a = rng.random(t.shape) < 0.5
        else:
            a = rng.integers(max(int(low), 0) if t.dtype.kind == "u" else int(low), int(high) + 1, t.shape)
        out.append(np.asarray(a).astype(t.dtype.numpy))
    return out


def close(got: np.ndarray, want: Any, what: str, rtol: float = 2e-5) -> None:
    want = np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape, what
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, err_msg=what)
    else:
        loose = 1e-2 if got.dtype.itemsize == 2 else rtol
        np.testing.assert_allclose(
            got.astype(float), want.astype(float), rtol=loose, atol=loose / 10, err_msg=what
        )


@pytest.mark.parametrize("batch", range(-(-len(SAMPLES) // BATCH)))
def test_samples_of_every_op(batch: int) -> None:
    """Batches of samples as one program each; machine models and targets take turns."""
    graph = Graph("samples")
    b = Builder(graph)
    arrays: list[np.ndarray] = []
    names: list[str] = []
    for i, (op, s) in enumerate(SAMPLES[batch * BATCH : (batch + 1) * BATCH]):
        made = b.emit(op, tuple(graph.add_input(t) for t in s.types), s.attrs, s.regions_for(s.types))
        made = made if isinstance(made, tuple) else (made,)
        graph.outputs += made
        names += [f"{op.name} {s.types} {s.attrs}"] * len(made)
        arrays += [np.ascontiguousarray(a).reshape(t.shape) for a, t in zip(draw(s, i), s.types)]
    machine = list(MACHINES.values())[batch % len(MACHINES)]
    target = list(TARGETS.values())[batch % len(TARGETS)]  # narrower ones take the machine's vectors apart
    native = compile_program(schedule(optimize(graph), machine), target, use_cache=False)
    got = native.call([a.copy() for a in arrays])
    want, _ = evaluate(graph, arrays)
    for g, w, name in zip(got, want, names):
        close(g, w, name)


@pytest.mark.parametrize("name", EUCLID)
def test_common_divisors(name: str) -> None:
    graph = Graph(name)
    b = Builder(graph)
    x, y = (graph.add_input(Type(dtypes.int64, (3,))) for _ in range(2))
    graph.outputs = [getattr(b, name)(x, y)]
    arrays = [np.array([12, -18, 0]), np.array([-30, 27, 7])]
    (got,) = compile_program(schedule(optimize(graph), AVX512), use_cache=False).call(arrays)
    np.testing.assert_array_equal(got, getattr(np, name)(*arrays))


class Maker:
    """Draws a random graph, step by step."""

    def __init__(self, data: st.DataObject) -> None:
        self.pick = lambda options: data.draw(st.sampled_from(list(options)))
        self.graph = Graph("random")
        self.b = Builder(self.graph)
        self.values: list[Value] = []
        sizes = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33])
        for i in range(data.draw(st.integers(1, 3))):
            shape = tuple(data.draw(st.lists(sizes, min_size=1, max_size=3)))
            dtype = self.pick(
                [dtypes.float32, dtypes.float32, dtypes.float32, dtypes.float64, dtypes.float16]
            )
            self.values.append(self.graph.add_input(Type(dtype, shape), f"x{i}"))
        for _ in range(data.draw(st.integers(1, 9))):
            self.step()
        last = self.values[-1]
        self.graph.outputs = [last] + ([self.values[-2]] if len(self.values) > 2 else [])
        first = self.graph.inputs[0]
        if last.type == first.type and last is not first:
            self.graph.updates[first] = last

    def step(self) -> None:
        b, x = self.b, self.pick(self.values)
        kind = self.pick(
            [
                "unary",
                "binary",
                "where",
                "reduce",
                "matmul",
                "permute",
                "reshape",
                "slice",
                "pad",
                "flip",
                "concat",
                "cast",
                "argmax",
                "take",
                "softmax",
            ]
        )
        rank = x.type.rank
        if kind == "unary":
            y = getattr(b, self.pick(["relu", "tanh", "neg", "sigmoid", "abs", "square"]))(x)
        elif kind in ("binary", "where"):
            other = self.pick([v for v in self.values if v.type == x.type])
            if kind == "where":
                y = b.where(b.lt(x, other), x, b.mul(other, b.const(0.5, x)))
            else:
                y = getattr(b, self.pick(["add", "sub", "mul", "maximum", "minimum"]))(x, other)
        elif kind == "reduce" and rank:
            axes = tuple(sorted({self.pick(range(rank)), self.pick(range(rank))}))
            y = getattr(b, self.pick(["sum", "amax", "amin"]))(x, axes=axes, keepdim=self.pick([True, False]))
        elif kind == "matmul" and rank == 2 and x.type.numel < 600:
            y = b.mul(b.contract(x, x, spec="mk,nk->mn"), b.const(1 / x.shape[1], x))
        elif kind == "permute" and rank > 1:
            y = b.permute(x, dims=tuple(reversed(range(rank))))
        elif kind == "reshape":
            y = b.reshape(x, shape=(x.type.numel,))
        elif kind == "slice" and rank:
            start = tuple(self.pick(range(n)) if n else 0 for n in x.shape)
            y = b.slice(x, start=start, stop=x.shape, step=tuple(self.pick([1, 2]) for _ in x.shape))
        elif kind == "pad" and rank:
            y = b.pad(x, low=(1,) * rank, high=(2,) * rank, value=0.5)
        elif kind == "flip" and rank:
            y = b.flip(x, dims=(rank - 1,))
        elif kind == "concat" and rank:
            y = b.concat(x, x, dim=rank - 1)
        elif kind == "cast":
            y = b.cast_to(x, self.pick([dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16]))
        elif kind == "argmax" and rank:
            y = b.cast(b.argmax(x, dim=rank - 1), dtype=dtypes.float32)
        elif kind == "take" and rank and x.shape[0]:
            index = b.cast(b.floor(b.mul(b.sigmoid(x), b.const(x.shape[0] - 0.01, x))), dtype=dtypes.int64)
            y = b.take(x, b.reshape(index, shape=(index.type.numel,)), dim=0) if x.type.numel < 300 else x
        elif kind == "softmax" and rank:
            y = b.softmax(x, dim=rank - 1)
        else:
            return
        if y.type.numel < 5000:
            self.values.append(y)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_random_programs(data: st.DataObject) -> None:
    """Native code against the loop interpreter on the same schedule, to the last bits that functions allow.
    """
    graph = Maker(data).graph
    machine = MACHINES[data.draw(st.sampled_from(sorted(MACHINES)))]
    p = schedule(optimize(graph), machine)
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-2, 2, b.shape).astype(b.dtype.numpy) for b in p.inputs]
    mine, reference = [a.copy() for a in arrays], [a.copy() for a in arrays]
    got = compile_program(p, use_cache=False).call(mine)
    want = run_program(p, reference)
    for g, w in zip([*got, *mine], [*want, *reference]):
        close(g, w, str(p), 1e-4)


def test_updates_happen_in_place() -> None:
    """A step of gradient descent, run three times at once."""
    graph = Graph("step")
    b = Builder(graph)
    w = graph.add_input(Type(dtypes.float32, (37,)), "w")
    loss = b.sum(b.mul(w, w), axes=(0,))
    graph.outputs = [loss]
    graph.updates[w] = b.sub(w, b.mul(w, b.const(0.5)))
    native = compile_program(schedule(optimize(graph), AVX512), use_cache=False)
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    at = x.copy()
    (losses,) = native.call([at], repeat=3)
    assert_same(at, x / 8)
    np.testing.assert_allclose(losses, [(x * x).sum() / 4**i for i in range(3)], rtol=1e-5)
