"""Ctrl-C in the middle of a training step: an interrupt at any moment leaves a program that goes on.

Python raises KeyboardInterrupt where a function is entered or a call of native code returns. A profiler sees
the same moments, so it raises there: at the n-th of one step, for many n.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import tracegrad as tg
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.runtime.cuda_emulated import emulated
from tracegrad.tracer import generator
from tracegrad.tracer.callers import is_ours
from tracegrad.tracer.recording import LazyTrace

Step = Callable[[], Any]


class InterruptAt:
    """A profiler that raises at the n-th moment, of those inside the package, at which an interrupt can."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.count = 0

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        # What is raised in a finalizer, Python only prints; at the start of an `__exit__`, nobody can help.
        skipped = code.co_name in ("__del__", "__exit__", "<genexpr>")
        if event in ("call", "c_return") and is_ours(code.co_filename) and not skipped:
            self.count += 1
            if self.count == self.n:
                raise KeyboardInterrupt


def moments(step: Step) -> int:
    watch = InterruptAt(-1)
    sys.setprofile(watch)
    try:
        step()
    finally:
        sys.setprofile(None)
    return watch.count


def interrupted(step: Step, n: int) -> bool:
    """Runs a step that is interrupted at its n-th moment; False if it ended before."""
    try:
        sys.setprofile(InterruptAt(n))
        try:
            step()
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        return True
    return False


def training(compiled: bool) -> tuple[tg.nn.Module, Any, Step]:
    tg.manual_seed(0)
    nn = tg.nn
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(16), nn.Linear(16, 5))
    optimizer = tg.optim.Adam(model.parameters(), lr=1e-3)
    x, y = tg.randn(32, 12), tg.randint(0, 5, (32,))

    def step() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, tg.compile(step) if compiled else step


def check(model: Any, optimizer: Any, step: Step) -> None:
    """The next steps work, and everything can be read, as for a checkpoint."""
    losses = [float(step().item()) for _ in range(2)]
    assert all(0 < loss < 2.5 for loss in losses)
    tensors = [*model.state_dict().values()]
    tensors += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, tg.Tensor)]
    for t in tensors:
        assert math.isfinite(float(t.detach().double().sum().item()))


@pytest.mark.parametrize("compiled", [False, True])
def test_anywhere_in_a_step(compiled: bool) -> None:
    model, optimizer, step = training(compiled)
    for _ in range(4):
        step().item()
    total = moments(lambda: step().item())
    assert total > 10
    for n in range(1, total + 1, 1 if compiled else 3):
        interrupted(lambda: step().item(), n)
        check(model, optimizer, step)


def counting(device: str) -> tuple[tg.Tensor, Step]:
    """Weights of which every step takes one away, after some steps."""
    x = tg.zeros(4, device=device, requires_grad=True)
    optimizer = tg.optim.SGD([x], lr=1.0)

    def step() -> None:
        optimizer.zero_grad()
        x.sum().backward()
        optimizer.step()
        x.detach()[0].item()

    for _ in range(4):
        step()
    return x, step


def test_no_update_is_lost_or_done_twice() -> None:
    """An interrupted step was made or not: weights have moved by whole steps."""
    x, step = counting("cpu")
    total = moments(step)
    expected = x.tolist()[0]
    between = set()
    for n in range(1, total + 1):
        done = interrupted(step, n)
        computed = (x.detach() * 2).tolist()  # recorded after what may still be there of the step
        now = x.tolist()
        assert len(set(now)) == 1 and computed == [2 * v for v in now], n
        assert expected - now[0] in ((0, 1) if done else (1,)), n
        between.add(expected - now[0])
        step()
        assert x.tolist()[0] == now[0] - 1
        expected = now[0] - 1
    assert between == {0, 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # (in finalizers)
@pytest.mark.skipif(not emulation.available(), reason="emulating takes g++")
def test_anywhere_in_a_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update is there or not, but never pending still, to be done twice; and all can be read."""
    monkeypatch.setattr(generator, "_ON_DEVICES", {})
    with emulated():
        x, step = counting("cuda")
        for n in range(1, moments(step) + 1, 2):
            before = x.tolist()[0]
            done = interrupted(step, n)
            now = x.tolist()
            assert len(set(now)) == 1 and before - now[0] in ((0, 1) if done else (1,)), n
            step()
            assert x.tolist() == [now[0] - 1] * 4, n


def test_anywhere_in_the_first_steps() -> None:
    """Where programs are met for the first time, and the optimiser's state is made."""
    total = moments(lambda: training(False)[2]().item())
    reached = 0
    for n in range(50, total, max(total // 40, 1)):
        model, optimizer, step = training(False)
        reached += interrupted(lambda step=step: step().item(), n)
        check(model, optimizer, step)
    assert reached > 5


def test_values_of_before_are_still_computed() -> None:
    """Nothing that was pending is lost when the interrupt comes before it has run."""
    total = moments(lambda: (tg.arange(7.0) * 2 + 1).sum().item())
    reached = 0
    for n in range(1, total, max(total // 150, 1)):
        x = tg.arange(6.0)
        y = x * 2 + 1
        reached += interrupted(lambda y=y: y.sum().item(), n)
        assert y.tolist() == [1, 3, 5, 7, 9, 11]
        assert (y - x).sum().item() == 21
    assert reached > 20


def test_after_a_program_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its end and the moment that nothing is pending any more."""
    reset, calls = LazyTrace._reset, []

    def interrupted_once(trace: LazyTrace) -> None:
        calls.append(trace)
        if len(calls) == 1:
            raise KeyboardInterrupt
        reset(trace)

    x, y = tg.zeros(3), tg.ones(3)
    x.add_(y)
    doubled = x * 2
    monkeypatch.setattr(LazyTrace, "_reset", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        doubled.numpy()
    assert len(calls) == 2
    assert x.tolist() == [1, 1, 1] and doubled.tolist() == [2, 2, 2]
    x.add_(y)
    assert x.tolist() == [2, 2, 2]
