"""Ordinary code writes where nobody looks: optimiser steps stay in their memory, what is still seen is kept,
and a step met before makes no nodes, traces no loop again and allocates only what it gives."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.runtime import buffers
from tracegrad.tracer import control, past, segments


@pytest.fixture(autouse=True)
def compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_LAZY", "compile")


def training(kind: str = "Adam", **options: Any) -> tuple[Callable[[], Any], Any, Any]:
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    opt = getattr(tg.optim, kind)(model.parameters(), lr=0.01, **options)
    x, y = tg.randn(7, 3), tg.randn(7, 1)

    def step() -> Any:
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).sum()
        loss.backward()
        opt.step()
        return loss

    return step, model, opt


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    calls: list[int] = []
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


MAKES_NODES = ((segments, "make_node"), (past, "make_node"), (past, "Node"))


@pytest.mark.parametrize(
    ("kind", "options"), [("Adam", {}), ("SGD", {"momentum": 0.9}), ("AdamW", {"amsgrad": True})]
)
def test_parameters_and_state_stay_in_their_memory(kind: str, options: dict[str, Any]) -> None:
    step, model, opt = training(kind, **options)
    step().item()
    held = [*model.parameters(), *(t for s in opt.state.values() for t in s.values())]
    before = [t.data_ptr() for t in held]
    values = [t.detach().tolist() for t in model.parameters()]
    for _ in range(4):
        step().item()
    assert [t.data_ptr() for t in held] == before
    assert [t.detach().tolist() for t in model.parameters()] != values


def test_a_known_step_makes_no_nodes_and_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = training()[0]
    for _ in range(3):
        step().item()
    nodes = [counted(monkeypatch, module, name) for module, name in MAKES_NODES]
    taken = counted(monkeypatch, buffers, "Buffer")
    step().item()
    assert not any(nodes)  # the sum and the square that the loss hangs on are made when they are looked at
    assert not taken  # the loss and the gradients are written into those of the step before


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_that_loops_is_traced_once(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    tg.manual_seed(0)
    layer = getattr(nn, kind)(3, 4, num_layers=2, bidirectional=True)
    x = tg.randn(5, 2, 3)

    def step() -> list[float]:
        layer.zero_grad()
        out = layer(x)[0]
        (out * out).sum().backward()
        return [p.grad.sum().item() for p in layer.parameters()]

    first = step()
    step()
    traced = counted(monkeypatch, control, "_scan")
    again = step()
    assert not traced and again == first
    layer.zero_grad()
    with tg.no_grad():
        layer.weight_hh_l0.mul_(2)
    assert step() != first  # the weights are operands of what was recorded
    assert layer(x[:4])[0].shape == (4, 2, 8) and traced  # other shapes are traced


def test_no_tensors_wait_for_the_garbage_collector() -> None:
    layer, x = nn.LSTM(2, 3), tg.randn(4, 2, 2)
    for _ in range(3):
        layer.zero_grad()
        layer(x)[0].sum().backward()
        layer.weight_hh_l0.grad.sum().item()
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(o, tg.Tensor) for o in gc.get_objects())
        for _ in range(3):
            layer.zero_grad()
            layer(x)[0].sum().backward()
            layer.weight_hh_l0.grad.sum().item()
        assert sum(isinstance(o, tg.Tensor) for o in gc.get_objects()) == before
    finally:
        gc.enable()


# --- what is still seen


@pytest.mark.parametrize("ended", [False, True])
def test_a_graph_keeps_what_its_backward_reads(ended: bool) -> None:
    for _ in range(3):
        w = tg.tensor([1.0, 2.0], requires_grad=True)
        w.tolist()
        loss = (w * w * w).sum()
        if ended:
            loss.item()
        with tg.no_grad():
            w.mul_(10)
        assert w.tolist() == [10.0, 20.0]
        loss.backward()
        assert w.grad.tolist() == [3.0, 12.0]


def test_a_graph_of_an_earlier_program_keeps_its_values() -> None:
    w = tg.tensor([1.0, 2.0], requires_grad=True)
    losses = []
    for _ in range(4):
        loss = (w * w).sum()
        loss.item()
        losses.append(loss)
        with tg.no_grad():
            w.add_(1)
        w.detach().sum().item()
    for loss in losses:
        loss.backward()
    assert w.grad.tolist() == [2 * (1 + 2 + 3 + 4), 2 * (2 + 3 + 4 + 5)]


def test_copies_views_and_arrays_see_what_they_should() -> None:
    w = tg.tensor([1.0, 2.0])
    for k in range(4):
        kept, view = w.clone(), w[:1]
        _ = kept.tolist(), view.tolist()
        array = w.numpy()
        w.add_(1)
        assert w.tolist() == [k + 2.0, k + 3.0] and kept.tolist() == [k + 1.0, k + 2.0]
        assert view.tolist() == [k + 2.0] and array.tolist() == [k + 2.0, k + 3.0]


def test_old_contents_given_to_another_tensor_stay() -> None:
    a, b = tg.tensor([1.0, 2.0]), tg.tensor([0.0, 0.0])
    for k in range(4):
        b.copy_(a)
        a.add_(1)
        assert b.tolist() == [k + 1.0, k + 2.0] and a.tolist() == [k + 2.0, k + 3.0]
    a, b = tg.tensor([1.0, 2.0]), tg.tensor([3.0, 4.0])
    for _ in range(3):  # they change places
        t = a.clone()
        a.copy_(b)
        b.copy_(t)
        a.tolist()
    assert a.tolist() == [3.0, 4.0] and b.tolist() == [1.0, 2.0]


def test_results_of_compiled_calls_are_not_overwritten_while_seen() -> None:
    x = tg.tensor([1.0, 2.0])

    @tg.compile
    def step() -> Any:
        x.add_(1)
        return x.sum()

    held = [step() for _ in range(6)]
    assert [t.item() for t in held] == [5.0, 7.0, 9.0, 11.0, 13.0, 15.0]
    arrays = [step().numpy() for _ in range(4)]
    assert [float(a) for a in arrays] == [17.0, 19.0, 21.0, 23.0]
    view = step()[None]
    for _ in range(4):
        step()
    assert view.tolist() == [25.0]


def test_small_results_of_compiled_calls_use_their_memory_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tg.tensor([1.0, 2.0])

    @tg.compile
    def step() -> Any:
        x.add_(1)
        return x.sum()

    for _ in range(4):
        loss = step()
    taken = counted(monkeypatch, buffers, "Buffer")
    for _ in range(5):
        loss = step()
    assert not taken and loss.item() == 21.0


def test_a_compiled_step_takes_parameters_over_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tg.nn.Linear(3, 4)
    optimizer = tg.optim.Adam(model.parameters())
    x = tg.ones(2, 3)
    copies: list[int] = []
    copy = buffers.Buffer.copy

    def counted(buffer: buffers.Buffer) -> buffers.Buffer:
        copies.append(buffer.type.nbytes)
        return copy(buffer)

    monkeypatch.setattr(buffers.Buffer, "copy", counted)

    @tg.compile
    def step(x: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(x).item() for _ in range(5)]
    assert copies == [] and losses == sorted(losses, reverse=True)


def test_what_a_graph_saved_survives_a_compiled_step() -> None:
    w = tg.tensor([2.0, 3.0], requires_grad=True)
    y = (w * w).sum()
    assert y.item() == 13

    @tg.compile
    def step() -> None:
        with tg.no_grad():
            w.add_(1.0)

    step()
    step()
    assert w.tolist() == [4, 5]
    (g,) = tg.autograd.grad(y, w)
    assert g.tolist() == [4, 6]
