"""Graphs that the scheduler's and the code generators' tests share: small training steps and typical
blocks, built with Builder and ir.grad, expanded and simplified by the passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tracegrad.ir.ops  # noqa: F401  registers the ops
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

F32, I64 = dtypes.float32, dtypes.int64


def build(name: str, types: dict[str, Type], body: Callable[..., Any]) -> Graph:
    """A graph whose outputs (and updates, if `body` gives a pair) are what `body(b, *inputs)` returns,
    optimised."""
    graph = Graph(name)
    b = Builder(graph)
    made = body(b, *(graph.add_input(t, n) for n, t in types.items()))
    outputs, updates = (
        made if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict) else (made, {})
    )
    graph.outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    graph.updates = updates
    return optimize(graph)


def f32(*shape: int) -> Type:
    return Type(F32, shape)


def gradients(b: Builder, loss: Value, wrt: list[Value]) -> list[Value]:
    one = b.full(shape=loss.type.shape, value=1.0, dtype=loss.type.dtype)
    found = backward(b, {loss: one}, wrt)
    b.phase = "update"
    return [found[w] for w in wrt]


def adam(
    b: Builder, p: Value, g: Value, m: Value, v: Value, c1: Value, c2: Value, lr: float
) -> dict[Value, Value]:
    """One Adam step; c1 and c2 are the bias corrections."""
    m2 = b.add(b.mul(m, b.const(0.9)), b.mul(g, b.const(0.1)))
    v2 = b.add(b.mul(v, b.const(0.999)), b.mul(b.mul(g, g), b.const(0.001)))
    step = b.div(b.div(m2, c1), b.add(b.div(b.sqrt(v2), b.sqrt(c2)), b.const(1e-8)))
    return {p: b.sub(p, b.mul(step, b.const(lr))), m: m2, v: v2}


def mlp_adam(batch: int = 100, inputs: int = 3, hidden: int = 32, outputs: int = 1) -> Graph:
    """Training step of a two-layer perceptron: ReLU, summed squared error, Adam on four tensors."""
    shapes = {"w1": (hidden, inputs), "b1": (hidden,), "w2": (outputs, hidden), "b2": (outputs,)}
    types = {"x": f32(batch, inputs), "t": f32(batch, outputs), "step": f32()}
    for k, s in shapes.items():
        types |= {k: f32(*s), f"m_{k}": f32(*s), f"v_{k}": f32(*s)}

    def body(b: Any, x: Value, t: Value, step: Value, *state: Value) -> Any:
        params = list(state[0::3])
        h = b.relu(b.linear(x, params[0], params[1]))
        d = b.sub(b.linear(h, params[2], params[3]), t)
        loss = b.sum(b.mul(d, d), axes=(0, 1))
        grads = gradients(b, loss, params)
        now = b.add(step, b.const(1.0))
        c1, c2 = (b.sub(b.const(1.0), b.pow(b.const(beta), now)) for beta in (0.9, 0.999))
        updates = {step: now}
        for k, g in enumerate(grads):
            updates |= adam(b, params[k], g, state[3 * k + 1], state[3 * k + 2], c1, c2, 1e-2)
        return [loss], updates

    return build("mlp_adam", types, body)


def mlp_sgd(batch: int = 64, inputs: int = 1000, hidden: int = 100, outputs: int = 10) -> Graph:
    """Training step of a classifier: ReLU, cross entropy, plain SGD."""
    types = {
        "x": f32(batch, inputs), "t": Type(I64, (batch,)), "w1": f32(hidden, inputs), "b1": f32(hidden),
        "w2": f32(outputs, hidden), "b2": f32(outputs),
    }  # fmt: skip

    def body(b: Any, x: Value, t: Value, *params: Value) -> Any:
        h = b.relu(b.linear(x, params[0], params[1]))
        loss = b.cross_entropy(b.linear(h, params[2], params[3]), t)
        grads = gradients(b, loss, list(params))
        return [loss], {p: b.sub(p, b.mul(g, b.const(0.1))) for p, g in zip(params, grads)}

    return build("mlp_sgd", types, body)


def rosenbrock(lr: float = 1e-3) -> Graph:
    """Gradient descent on (1 - x)^2 + 100 (y - x^2)^2 over a vector of two."""

    def body(b: Any, p: Value) -> Any:
        x = b.select(p, dim=0, index=0)
        y = b.select(p, dim=0, index=1)
        d, e = b.sub(b.const(1.0), x), b.sub(y, b.mul(x, x))
        loss = b.add(b.mul(d, d), b.mul(b.const(100.0), b.mul(e, e)))
        (g,) = gradients(b, loss, [p])
        return [loss], {p: b.sub(p, b.mul(g, b.const(lr)))}

    return build("rosenbrock", {"p": f32(2)}, body)


def arrays_for(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Random inputs: floats in [-1, 1), positive where the name says so (v_*), small integers."""
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        d = v.type.dtype
        if d.kind == "f":
            a = rng.uniform(-1, 1, v.type.shape)
            if (v.name or "").startswith("w") and v.type.rank > 1:
                a /= v.type.shape[-1] ** 0.5
            if (v.name or "").startswith("v_"):
                a = np.abs(a)
            out.append(a.astype(d.numpy))
        elif d.kind == "b":
            out.append(rng.integers(0, 2, v.type.shape).astype(d.numpy))
        else:
            out.append(rng.integers(0, 4, v.type.shape).astype(d.numpy))
    return out
