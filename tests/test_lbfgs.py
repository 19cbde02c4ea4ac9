"""LBFGS: line search, history, state; in ordinary code, compiled, and like PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.optim import quasi_newton

SEARCH = {"line_search_fn": "strong_wolfe"}


def rosenbrock(lib: Any, compiled: bool = False, steps: int = 6, **options: Any) -> Any:
    """Losses and parameters after each step, calls of the closure, and the optimiser."""
    x = lib.tensor([-1.2, 1.0] * 3, dtype=lib.float64).requires_grad_()
    optimizer = lib.optim.LBFGS([x], **options)
    calls: list[int] = []

    def closure() -> Any:
        optimizer.zero_grad()
        a, b = x[::2], x[1::2]
        loss = ((1 - a) ** 2 + 100 * (b - a**2) ** 2).sum()
        loss.backward()
        calls.append(1)
        return loss

    def step() -> Any:
        return optimizer.step(closure)

    run = tg.compile(step) if compiled else step
    rows = []
    for _ in range(steps):
        loss = run().item()
        rows.append([loss, *x.detach().numpy().tolist()])
    return np.array(rows), len(calls), optimizer


def test_finds_the_minimum() -> None:
    for compiled in (False, True):
        rows, _, _ = rosenbrock(tg, compiled, steps=8, **SEARCH)
        np.testing.assert_allclose(rows[-1, 1:], 1, rtol=1e-5)


def test_two_loops_solve_a_quadratic() -> None:
    """With n pairs of steps and gradients of a quadratic in n dimensions, H is the inverse Hessian."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    hessian = a @ a.T + np.eye(4)
    steps = [np.linalg.qr(rng.normal(size=(4, 4)))[0][k] for k in range(4)]
    # Conjugate steps, by Gram and Schmidt in the Hessian's product.
    for k, s in enumerate(steps):
        for t in steps[:k]:
            s -= (s @ hessian @ t) / (t @ hessian @ t) * t
    S, Y, ro = np.zeros((6, 4)), np.zeros((6, 4)), np.zeros(6)
    for k, s in zip((4, 5, 0, 1), steps):  # the ring's end and beginning
        S[k], Y[k], ro[k] = s, hessian @ s, 1 / (s @ hessian @ s)
    g = rng.normal(size=4)
    d = quasi_newton.two_loops(*map(tg.tensor, (g, S, Y, ro)), tg.tensor(4), tg.tensor(2), 1.0)
    np.testing.assert_allclose(d.numpy(), -np.linalg.solve(hessian, g), rtol=1e-9)


def test_compiled_steps_call_the_closure_once() -> None:
    plain, calls, _ = rosenbrock(tg, **SEARCH)
    compiled, traced, _ = rosenbrock(tg, True, **SEARCH)
    assert traced == 1 and calls > 20
    np.testing.assert_allclose(compiled, plain, rtol=1e-9, atol=1e-12)


def test_ordinary_closures_may_look_at_values() -> None:
    x = tg.tensor([3.0]).requires_grad_()
    optimizer = tg.optim.LBFGS([x], **SEARCH)
    seen = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (x - 1).pow(4).sum()
        if loss.item() > 1e-9:
            seen.append(loss.item())
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 16.0
    assert len(seen) > 3 and abs(x.item() - 1) < 0.1


def test_learning_rate_changes_without_compiling_again() -> None:
    x = tg.tensor([5.0, -3.0]).requires_grad_()
    optimizer = tg.optim.LBFGS([x], lr=0.1, max_iter=2)
    traces = []

    def closure() -> Any:
        traces.append(1)
        optimizer.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss

    step = tg.compile(lambda: optimizer.step(closure))
    scheduler = tg.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    moves = []
    for _ in range(4):
        before = x.detach().numpy().copy()
        step()
        moves.append(float(np.abs(x.detach().numpy() - before).sum()))
        scheduler.step()
    assert len(traces) == 1 and moves[3] < 0.5 * moves[2] < 0.25 * moves[1]


def test_an_error_in_the_closure_keeps_what_was_reached() -> None:
    x = tg.tensor([-1.2, 1.0]).requires_grad_()
    optimizer = tg.optim.LBFGS([x], **SEARCH)
    left = [9]

    def closure() -> Any:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("out of data")
        optimizer.zero_grad()
        loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        loss.backward()
        return loss

    def value() -> float:
        a, b = x.detach().tolist()
        return (1 - a) ** 2 + 100 * (b - a * a) ** 2

    before = value()
    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(closure)
    reached = value()
    assert reached < before
    left[0] = 1000
    for _ in range(3):
        optimizer.step(closure)
    assert value() < 1e-3 < reached


def test_state_comes_back() -> None:
    def made() -> tuple[Any, Any, Any]:
        x = tg.tensor([-1.2, 1.0, 0.5], dtype=tg.float64).requires_grad_()
        optimizer = tg.optim.LBFGS([x], max_iter=6, history_size=4, **SEARCH)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2 + (x[2] - x[1]) ** 4
            loss.backward()
            return loss

        return x, optimizer, lambda: optimizer.step(closure)

    x, optimizer, step = made()
    for _ in range(3):
        step()
    state = optimizer.state_dict()
    entry = state["state"][0]
    assert entry["n_iter"] > 6 and [len(entry[k]) for k in ("old_dirs", "old_stps", "ro")] == [4, 4, 4]
    y, second, other = made()
    with tg.no_grad():
        y.copy_(x)
    second.load_state_dict(state)
    for _ in range(3):
        assert step().item() == other().item()
    assert x.tolist() == y.tolist()
    with pytest.raises(tg.TracegradError, match="elements"):
        tg.optim.LBFGS([tg.zeros(7).requires_grad_()]).load_state_dict(state)


def test_parameters_without_gradients_stay() -> None:
    a, b = (tg.ones(2).requires_grad_() for _ in range(2))
    optimizer = tg.optim.LBFGS([a, b])

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (a**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert b.tolist() == [1, 1] and np.abs(a.detach().numpy()).max() < 1e-3


def test_errors() -> None:
    x, y = (tg.ones(2).requires_grad_() for _ in range(2))
    for make, text in [
        (lambda: tg.optim.LBFGS([x], line_search_fn="armijo"), "strong_wolfe"),
        (lambda: tg.optim.LBFGS([x], lr=-1), "lr"),
        (lambda: tg.optim.LBFGS([x], history_size=0), "history_size"),
        (lambda: tg.optim.LBFGS([{"params": [x]}, {"params": [y]}]), "one group"),
        (lambda: tg.optim.LBFGS([x]).step(None), "closure"),
    ]:
        with pytest.raises(tg.TracegradError, match=text):
            make()


# --- against PyTorch ---


@pytest.mark.peer
@pytest.mark.parametrize("options", [
    SEARCH, {"lr": 1e-3}, {"lr": 0.5, "max_iter": 4, "history_size": 3, **SEARCH},
    {"max_iter": 6, "max_eval": 7, **SEARCH}, {"lr": 0.01, "max_iter": 3, "history_size": 2},
    {"tolerance_grad": 1e-2, **SEARCH}, {"tolerance_change": 1e-2, "lr": 1e-3},
])  # fmt: skip
def test_rosenbrock_like_pytorch(options: Any) -> None:
    torch = pytest.importorskip("torch")
    theirs, calls, _ = rosenbrock(torch, **options)
    mine, my_calls, _ = rosenbrock(tg, **options)
    assert my_calls == calls
    np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(rosenbrock(tg, True, **options)[0], theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.peer
def test_small_net_like_pytorch() -> None:
    torch = pytest.importorskip("torch")

    def losses(lib: Any, compiled: bool = False) -> list[float]:
        lib.manual_seed(0)
        n = lib.nn
        model = n.Sequential(n.Linear(3, 8), n.Tanh(), n.Linear(8, 1)).double()
        x = lib.from_numpy(np.random.default_rng(0).normal(size=(20, 3)))
        y = (x**2).sum(1, keepdim=True)
        optimizer = lib.optim.LBFGS(model.parameters(), max_iter=5, **SEARCH)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            return loss

        def step() -> Any:
            return optimizer.step(closure)

        run = tg.compile(step) if compiled else step
        return [run().item() for _ in range(6)]

    theirs = losses(torch)
    np.testing.assert_allclose(losses(tg), theirs, rtol=1e-7)
    np.testing.assert_allclose(losses(tg, True), theirs, rtol=1e-7)


@pytest.mark.peer
def test_state_of_pytorch_is_taken() -> None:
    torch = pytest.importorskip("torch")
    options = {"max_iter": 3, **SEARCH}
    _, _, theirs = rosenbrock(torch, steps=2, **options)
    _, _, mine = rosenbrock(tg, steps=2, **options)
    entry = dict(theirs.state_dict()["state"][0])

    def converted(v: Any) -> Any:
        if isinstance(v, torch.Tensor):
            return tg.from_numpy(v.numpy().copy())
        return [converted(x) for x in v] if isinstance(v, list) else v

    state = {**theirs.state_dict(), "state": {0: {k: converted(v) for k, v in entry.items()}}}
    mine.load_state_dict(state)
    back = mine.state_dict()["state"][0]
    assert set(back) <= set(entry) and back["n_iter"] == entry["n_iter"]
    assert back["func_evals"] == entry["func_evals"]
    for name in ("d", "prev_flat_grad", "H_diag"):
        np.testing.assert_allclose(back[name].numpy(), np.asarray(entry[name]))
    for a, b in zip(back["old_stps"], entry["old_stps"]):
        np.testing.assert_allclose(a.numpy(), b.numpy())
