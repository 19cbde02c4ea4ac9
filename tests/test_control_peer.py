"""Control flow against PyTorch: values, gradients and second derivatives of scans against unrolled loops, and
against `torch.cond`, `while_loop`, `scan` and `map` themselves where these run without compiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer


def leaves(*shapes: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(5)
    arrays = [(rng.standard_normal(s) * 0.5).astype(np.float32) for s in shapes]
    return [tg.tensor(a, requires_grad=True) for a in arrays], [
        torch.tensor(a, requires_grad=True) for a in arrays
    ]


def close(ours: Any, theirs: Any, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["lazy", "compiled"])
def test_lstm(compiled: bool) -> None:
    mine, peer = leaves((7, 3, 4), (20, 4), (20, 5), (20,))

    def step(carry: Any, v: Any, u: Any, w: Any, b: Any) -> Any:
        h, c = carry
        i, f, g, o = (v @ u.T + h @ w.T + b).split(5, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c), h

    def run(x: Any, u: Any, w: Any, b: Any) -> Any:
        (h, c), ys = tg.scan(lambda s, v: step(s, v, u, w, b), (tg.zeros(3, 5), tg.zeros(3, 5)), x)
        loss = (ys * ys).sum() + c.sum()
        return [ys, h, *tg.autograd.grad(loss, (x, u, w, b))]

    x, u, w, b = peer
    state: Any = (torch.zeros(3, 5), torch.zeros(3, 5))
    rows = []
    for v in x:
        state, y = step(state, v, u, w, b)
        rows.append(y)
    ys = torch.stack(rows)
    grads = torch.autograd.grad((ys * ys).sum() + state[1].sum(), peer)
    found = (tg.compile(run) if compiled else run)(*mine)
    for a, e in zip(found, [ys, state[0], *grads], strict=True):
        close(a, e)


def test_second_derivatives_of_a_recurrence() -> None:
    (x, w), (px, pw) = leaves((6, 4), (4, 4))
    last, _ = tg.scan(lambda h, v: ((h @ w + v).tanh(), None), tg.zeros(4), x)
    (g,) = tg.autograd.grad((last * last).sum(), (w,), create_graph=True)
    ours = tg.autograd.grad((g * g).sum(), (x, w))
    h = torch.zeros(4)
    for v in px:
        h = (h @ pw + v).tanh()
    (g,) = torch.autograd.grad((h * h).sum(), (pw,), create_graph=True)
    for a, e in zip(ours, torch.autograd.grad((g * g).sum(), (px, pw))):
        close(a, e, rtol=1e-3)


def test_cond_and_its_gradient() -> None:
    for sign in (1.0, -1.0):
        (x,), (px,) = leaves((3,))
        y = tg.cond(x.sum() * sign > 0, lambda v: v.sin() * 2, lambda v: v.exp(), (x,))
        e = torch.cond(px.sum() * sign > 0, lambda v: v.sin() * 2, lambda v: v.exp(), (px,))
        close(y, e)
        assert y.grad_fn.name() == type(e.grad_fn).__name__
        y.sum().backward()
        e.sum().backward()
        close(x.grad, px.grad)


def test_names_values_and_gradients_of_the_peers_own_loops() -> None:
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.while_loop import while_loop

    (c, x), (pc, px) = leaves((2,), (4, 2))
    last, ys = tg.scan(lambda c, v: (c * v.sin(), c + v), c, x, reverse=True)
    plast, pys = scan(lambda c, v: (c * v.sin(), c + v), pc, px, reverse=True)
    close(last, plast)
    close(ys, pys)
    assert last.grad_fn.name() == type(plast.grad_fn).__name__
    (last.sum() + (ys * ys).sum()).backward()
    (plast.sum() + (pys * pys).sum()).backward()
    close(c.grad, pc.grad)
    close(x.grad, px.grad)
    i, v = tg.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 2), (tg.tensor(0), tg.ones(2)))
    pi, pv = while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 2), (torch.tensor(0), torch.ones(2)))
    assert i.item() == pi.item() and v.tolist() == pv.tolist()


def test_map() -> None:
    from torch._higher_order_ops.map import map as peer_map

    (x, k), (px, pk) = leaves((4, 3), (3,))
    y = tg.map(lambda r, k: (r * k).sin(), x, k)
    e = peer_map(lambda r, k: (r * k).sin(), px, pk)
    close(y, e)
    assert y.grad_fn.name() == type(e.grad_fn).__name__
    (y * y).sum().backward()
    (e * e).sum().backward()
    close(x.grad, px.grad)
    close(k.grad, pk.grad)
