"""Replayed walks and optimiser steps of ordinary code give what running them gives, and are replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir import grad as ir_grad
from tracegrad.ir.errors import GradError
from tracegrad.tracer import autograd
from tracegrad.tracer.recording import STATE, LazyTrace


@pytest.fixture(autouse=True)
def compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, which runs a program met for the first time, rounds differently."""
    monkeypatch.setenv("TRACEGRAD_LAZY", "compile")


def without_replay(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    with monkeypatch.context() as m:

        def run_it(self: Any, key: Any, operands: Any, procedure: Any, *given: Any, numbers: Any = ()) -> Any:
            return procedure(*given)

        m.setattr(LazyTrace, "segment", run_it)
        m.setattr(autograd, "backward_again", lambda t: False)
        return run()


def train(kind: str, steps: int = 8, **options: Any) -> list[float]:
    tg.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = getattr(tg.optim, kind)(model.parameters(), **options)
    x, y = tg.randn(5, 3), tg.randn(5, 1)
    seen = []
    for i in range(steps):
        if i == 3:
            opt.param_groups[0]["lr"] = 0.005
        if i == 5:
            model[0].weight.requires_grad_(False)
        if i == 6:
            model[0].weight.requires_grad_(True)
        opt.zero_grad(set_to_none=i % 2 == 0)
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        if i == 4:
            seen.append(model[0].bias.grad.sum().item())  # ends the program between backward and step
        opt.step()
        seen.append(loss.item())
    return [*seen, *(v for p in model.parameters() for v in p.flatten().tolist())]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {"lr": 0.01}),
        ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("Adam", {"lr": 0.01, "amsgrad": True}),
        ("AdamW", {"lr": 0.01}),
        ("RMSprop", {"lr": 0.01, "centered": True}),
        ("Rprop", {"lr": 0.01}),
        ("ASGD", {"lr": 0.01}),
        ("RAdam", {"lr": 0.01}),
    ],
)
def test_training_is_the_same(monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]) -> None:
    plain = without_replay(monkeypatch, lambda: train(kind, **options))
    assert train(kind, **options) == plain
    assert train(kind, **options) == plain  # everything replayed


def test_a_walk_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    real = ir_grad.vjp
    monkeypatch.setattr(ir_grad, "vjp", lambda *a: walks.append(1) or real(*a))
    w = tg.ones(1, 17, 3, requires_grad=True)  # a shape no other test has
    for i in range(6):
        if i == 3:
            walks.clear()
        w.grad = None
        (w * w).sum().backward()
        assert w.grad.sum().item() == 2 * 51
        assert walks or i >= 3
    assert not walks


def test_a_step_is_recorded_once() -> None:
    w = tg.tensor([1.0, 2.0], requires_grad=True)
    opt = tg.optim.Adam([w], lr=0.1)
    made = []
    for _ in range(4):
        opt.zero_grad()
        (w * w).sum().backward()
        opt.step()
        made.append(len(STATE.lazy.record))
        w.detach().sum().item()
    assert made[-1] < 10 < 20 < made[0]


def test_a_freed_graph_stays_freed() -> None:
    w = tg.tensor([1.0, 2.0], requires_grad=True)
    for _ in range(3):
        w.grad = None
        loss = (w * w).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(GradError, match="second time"):
            loss.backward()
        assert w.grad.tolist() == [4.0, 8.0]


def test_leaves_are_told_apart_from_older_results() -> None:
    """The same ops on a leaf and on a result of an earlier program."""
    for _ in range(2):
        w = tg.tensor([1.0, 2.0], requires_grad=True)
        (w * w).sum().backward()
        assert w.grad.tolist() == [2.0, 4.0]
        v = tg.tensor([1.0, 2.0], requires_grad=True)
        u = v * 1.0
        u.tolist()
        (u * u).sum().backward()
        assert v.grad.tolist() == [2.0, 4.0]


def test_hooks_set_later_are_called() -> None:
    w = tg.tensor([3.0], requires_grad=True)
    seen = []
    for i in range(4):
        if i == 2:
            handle = w.register_hook(lambda g: seen.append(g.item()))
        if i == 3:
            handle.remove()
        w.grad = None
        (w * w).sum().backward()
        assert w.grad.item() == 6.0
    assert seen == [6.0]


def test_a_new_program_after_a_replay_has_its_ops() -> None:
    w = tg.tensor([3.0, 4.0], requires_grad=True)
    for i in range(6):
        w.grad = None
        loss = (w * w).sum()
        loss.backward()
        g = w.grad * 2 if i < 3 else w.grad * w.detach()  # from the fourth round another program
        assert g.tolist() == ([12.0, 16.0] if i < 3 else [18.0, 32.0])
        assert loss.item() == 25.0


def test_shared_leaves_and_given_gradients() -> None:
    for scale in (1.0, 2.0, 5.0):
        w = tg.tensor([3.0, 4.0], requires_grad=True)
        y = w * w + w[:1] * w
        y.backward(tg.tensor([scale, 1.0]))
        assert w.grad.tolist() == [scale * 12.0 + 4.0, 11.0]


def _names(fn: Any) -> Any:
    return None if fn is None else (fn.name(), [_names(f) for f, _ in fn.next_functions])


def test_grad_fn_of_a_freed_graph_that_outlived_its_program() -> None:
    """Its nodes are made when they are looked at."""
    seen = []
    for _ in range(5):
        w, v = (tg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        a = w + v
        out = (a * w) + a
        loss = out.sum()
        loss.backward()
        loss.item()
        seen.append((_names(loss.grad_fn), _names(out.grad_fn), _names(a.grad_fn)))
        assert loss.grad_fn == loss.grad_fn
        ((left, _), (right, _)) = a.grad_fn.next_functions
        assert left.variable is w and right.variable is v
        assert loss.grad_fn.next_functions[0][0] == out.grad_fn
        with pytest.raises(GradError, match="second time"):
            loss.backward()
        a.sum().backward()  # nothing was saved for it
        assert w.grad.tolist() == [5.0, 8.0] and v.grad.tolist() == [3.0, 4.0]
    assert all(s == seen[0] for s in seen)
    assert seen[0][2] == ("AddBackward0", [("AccumulateGrad", []), ("AccumulateGrad", [])])


def test_what_was_freed_keeps_no_memory() -> None:
    x, w = tg.ones(3), tg.ones(3, requires_grad=True)
    kept, sizes = [], []
    for _ in range(4):
        h = w * x
        loss = (h + w).sum()
        loss.backward()
        value = h._value()
        del h
        loss.item()
        kept.append(loss)
        sizes.append(value.buffer is None)
        assert loss.grad_fn.name() == "SumBackward0"
    assert all(sizes)


def test_a_result_outlives_its_storage() -> None:
    """`t` was written in place after its graph was freed: what it was is still part of the path."""
    for _ in range(4):
        w = tg.ones(2, requires_grad=True)
        t = w + w
        t.sum().backward()
        t.tolist()
        t *= 3
        t.sum().backward()
        assert w.grad.tolist() == [8.0, 8.0]


def test_a_graph_that_goes_on_outside_the_program_is_walked_each_time() -> None:
    for name in ("exp", "exp", "sin", "sin"):
        x = tg.tensor([0.5, -1.0], requires_grad=True)
        y = getattr(x, name)()
        x.detach().tolist()  # ends the program
        (x * y).sum().backward()
        slope = y if name == "exp" else x.cos()
        assert tg.allclose(x.grad, y + x * slope)
