"""Hooks of tensors and nodes, anomaly mode, histories of detached tensors, and walking a graph again."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import GradError
from tracegrad.tracer import hooks

X = np.random.default_rng(0).standard_normal((3, 4))


def leaf() -> tg.Tensor:
    return tg.tensor(X, requires_grad=True)


def close(a: Any, b: Any, tol: float = 1e-9) -> None:
    a, b = (np.array(t.detach().numpy()) if isinstance(t, tg.Tensor) else np.asarray(t) for t in (a, b))
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


# --- hooks --------------------------------------------------------------------------------------------------


def test_hooks_that_look_at_gradients_do_not_lose_others() -> None:
    x, seen = leaf(), []
    a, b = x * 2, x.sin()
    a.register_hook(lambda g: seen.append(float(g.sum())))
    b.register_hook(lambda g: seen.append(float(g.sum())))
    (a * b + b * b * a).sum().backward()
    s, c = np.sin(X), np.cos(X)
    close(x.grad, 2 * s + 2 * s * s + (2 * X + 4 * s * X) * c)
    assert sorted(seen) == pytest.approx(sorted([np.sum(s + s * s), np.sum(2 * X + 4 * s * X)]))


def test_a_hook_stays_with_the_value_it_was_set_on() -> None:
    x = leaf()
    y = x * 3
    y.register_hook(lambda g: g * 10)
    y.mul_(2)
    y.register_hook(lambda g: g + 1)
    y.sum().backward()
    close(x.grad, np.full_like(X, (1 + 1) * 2 * 10 * 3))


def test_hooks_of_a_leaf_see_the_sum() -> None:
    x, seen = leaf(), []
    x.register_hook(lambda g: seen.append(float(g.sum())))
    loss = (x * 2).sum()
    with tg.no_grad():
        x.mul_(0.5)
    (loss + (x * 3).sum()).backward()
    assert seen == [5 * X.size]
    after: list[Any] = []
    handle = x.register_post_accumulate_grad_hook(lambda t: after.append(float(t.grad.sum())))
    (x * 1).sum().backward()
    assert after == [6 * X.size]
    with handle:
        pass
    (x * 1).sum().backward()
    assert len(after) == 1
    with pytest.raises(GradError, match="leaf"):
        (x * 1).register_post_accumulate_grad_hook(lambda t: None)


def test_hooks_of_nodes() -> None:
    x = leaf()
    y = x * 3
    calls: list[Any] = []
    y.grad_fn.register_prehook(lambda outs: (outs[0] * 2,))
    y.grad_fn.register_hook(
        lambda ins, outs: calls.append((float(ins[0][0, 0]), ins[1], float(outs[0][0, 0])))
    )
    y.sum().backward()
    assert calls == [(6.0, None, 2.0)]
    close(x.grad, np.full_like(X, 6))
    z = leaf()
    w = z.exp()
    handle = w.grad_fn.register_hook(lambda ins, outs: (ins[0] * 0,))
    w.sum().backward(retain_graph=True)
    close(z.grad, 0 * X)
    handle.remove()
    w.sum().backward()
    close(z.grad, np.exp(X))


def test_hooks_go_when_they_are_removed_or_die() -> None:
    gc.collect()
    before = len(hooks.LIVE)
    x = leaf()
    handle = x.register_hook(lambda g: g * 2)
    y = (x * 2).exp()
    y.register_hook(lambda g: g)
    assert len(hooks.LIVE) == before + 2
    handle.remove()
    handle.remove()
    del y
    float((x * 1).sum())  # a pending program holds its values
    gc.collect()
    assert len(hooks.LIVE) == before
    with pytest.raises(GradError, match=r"replaced a gradient of type f64\[3,4\] by one of type f64\[4\]"):
        x.register_hook(lambda g: g[0])
        (x * 2).sum().backward()
    with pytest.raises(GradError, match="callable"):
        x.register_hook(3)


def test_hooks_and_higher_derivatives() -> None:
    x = tg.tensor([0.5], dtype=tg.float64, requires_grad=True)
    y = x.exp()
    y.register_hook(lambda g: g * 3)
    (g,) = tg.autograd.grad((y * y).sum(), x, create_graph=True)
    close(g, 6 * np.exp(1.0))
    (h,) = tg.autograd.grad(g.sum(), x)
    # g = 3 * 2y * y: the derivative with respect to y is 12 y, and goes through the hook once more.
    close(h, 3 * 12 * np.exp(1.0))


def test_hooks_under_transformations() -> None:
    def f(a: tg.Tensor) -> tg.Tensor:
        b = a.sin()
        b.register_hook(lambda g: g * 2)
        return b.sum()

    close(tg.func.grad(f)(tg.tensor(X)), 2 * np.cos(X))
    close(tg.func.vmap(tg.func.grad(f))(tg.tensor(X)), 2 * np.cos(X))


# --- walking again ------------------------------------------------------------------------------------------


def test_a_graph_that_saved_nothing_can_be_walked_again() -> None:
    x = leaf()
    y = (x + 1).sum()
    y.backward()
    y.backward()
    x.grad.tolist()
    y.backward()
    close(x.grad, np.full_like(X, 3))
    h = x * 2.0
    (h * h).sum().backward()
    h.sum().backward()  # of `mul` by a number nothing is kept
    with pytest.raises(GradError, match=r"mul .*second time.*retain_graph"):
        z = (x * x).sum()
        z.backward()
        z.backward()


def test_memory_of_a_walked_graph() -> None:
    """A loss that is kept does not keep old parameters."""
    w = tg.zeros(5, requires_grad=True)
    losses = []
    for _ in range(3):
        loss = (w + 1).sum()
        losses.append(loss)
        loss.backward()
        with tg.no_grad():
            w -= 0.1 * w.grad
            w.grad = None
        w.tolist()
    node = losses[0]._value().node.operands[0].node
    assert node.op.name == "add" and node.operands[0].leaf is not None and node.operands[0].buffer is None


def test_detached_tensors_have_a_history_of_their_own() -> None:
    x = leaf()
    base = x * 1.0
    d = base.detach()
    d[0] = x[1] * 2
    assert d.requires_grad and not d.is_leaf and base.requires_grad
    close(base[0], 2 * X[1])  # one memory
    (d * d).sum().backward()
    want = np.zeros_like(X)
    want[1] = 2 * 2 * X[1] * 2
    close(x.grad, want)
    x.grad = None
    base.sum().backward()  # whose gradient's path is the old one
    close(x.grad, np.ones_like(X))


def test_anomaly_mode_names_the_line() -> None:
    x = tg.tensor([0.0, 1.0], requires_grad=True)
    with tg.autograd.set_detect_anomaly(True):
        y = (x * 0).sqrt() * 0
        with pytest.raises(
            GradError,
            match=r"SqrtBackward0 returned NaN as gradient 0 of sqrt\(f32\[2\]\) at test_hooks.py:\d+",
        ):
            y.sum().backward()
        assert x.grad is None and tg.autograd.is_anomaly_enabled()
        (x * 2).sum().backward()
        assert x.grad.tolist() == [2, 2]
    assert not tg.autograd.is_anomaly_enabled()
    with pytest.warns(UserWarning, match="slows"), tg.autograd.detect_anomaly(check_nan=False):
        (x * 0).sqrt().sum().backward()


def test_batched_gradients() -> None:
    x = tg.tensor(X[0], requires_grad=True)
    y = x.sin() * x.sum()
    (rows,) = tg.autograd.grad(y, x, tg.eye(4, dtype=tg.float64), is_grads_batched=True)
    close(rows, tg.func.jacrev(lambda a: a.sin() * a.sum())(x.detach()))
    unused = tg.zeros(2, requires_grad=True)
    got = tg.autograd.grad(
        y, [x, unused], tg.eye(4, dtype=tg.float64), is_grads_batched=True, allow_unused=True
    )
    assert got[1] is None
    zero = tg.autograd.grad(y.sum(), [unused], materialize_grads=True)[0]
    assert zero.tolist() == [0, 0]


def test_names_of_squeeze() -> None:
    x = tg.ones(1, 2, 1, requires_grad=True)
    made = (x.squeeze(), x.squeeze(0), x.squeeze(1), x.squeeze((0, 2)), x.squeeze((0,)))
    assert [y.grad_fn.name()[15:] for y in made] == ["0", "1", "1", "2", "2"]
    assert [tuple(y.shape) for y in made] == [(2,), (2, 1), (1, 2, 1), (2,), (2, 1)]


def test_hooks_of_the_node_that_adds_to_a_leaf() -> None:
    x = tg.ones(3, requires_grad=True)
    node = x.view_as(x).grad_fn.next_functions[0][0]
    seen: list[float] = []
    before = node.register_prehook(lambda g: (g[0] * 5,))
    after = node.register_hook(lambda i, o: seen.append(o[0][0].item()))
    (x * 2).sum().backward()
    (x * 3).sum().backward()
    assert seen == [10, 15] and x.grad.tolist() == [25] * 3
    before.remove()
    after.remove()
    (x * 3).sum().backward()
    assert len(seen) == 2 and x.grad.tolist() == [28] * 3
