"""What the tests of control flow in user code share: one function run in every way, gradients, graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tracegrad as tg
from tracegrad.ir.graph import Graph, Node
from tracegrad.tracer.tree import flatten


def leaf(*shape: int, scale: float = 1.0) -> tg.Tensor:
    """A random leaf that requires grad."""
    return (tg.randn(*shape) * scale).detach().requires_grad_()


def close(x: Any, y: Any, rtol: float = 1e-5) -> None:
    """Two tensors agree to rounding."""
    a, b = (np.asarray(t.detach().numpy()) for t in (x, y))
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (abs(b).max() if b.size else 0.0) + 1e-7)


def both(fn: Callable[..., Any], *args: Any) -> list[Any]:
    """The tensors that `fn` gives undecorated, which it also gives compiled."""
    plain, compiled = fn(*args), tg.compile(fn)(*args)
    ours: list[tg.Tensor] = []
    theirs: list[tg.Tensor] = []
    flatten(plain, ours)
    flatten(compiled, theirs)
    assert len(ours) == len(theirs) > 0
    for x, y in zip(ours, theirs):
        close(y, x, rtol=1e-4)
    return ours


def gradients(fn: Callable[..., Any], *leaves: tg.Tensor) -> Sequence[tg.Tensor]:
    """The gradients of the scalar that `fn` gives."""
    return tg.autograd.grad(fn(*leaves), leaves)


def traced(fn: Callable[..., Any], *args: Any) -> Graph:
    """The graph of a call, as traced."""
    return tg.trace(fn)(*args)


def loops(graph: Graph) -> list[Node]:
    """The loops of a graph, outermost only."""
    return [n for n in graph.nodes if n.op.name in ("scan", "while")]
