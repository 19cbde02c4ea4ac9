"""Threads that record, train and read each other's pending tensors; what long loops keep alive."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import tracegrad as tg
from tracegrad.runtime.buffers import Buffer
from tracegrad.tracer.recording import STATE
from tracegrad.tracer.values import TracedValue


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads switch as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(*targets: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(t,)) for t in targets]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


@tg.no_grad()
def doubled(x: tg.Tensor) -> tg.Tensor:
    return x * 2


def training(seed: int, compiled: bool, shared: tg.Tensor) -> list[float]:
    w = tg.tensor([[0.1 * seed, -0.2], [0.3, 0.4]], requires_grad=True)
    opt = tg.optim.Adam([w], lr=0.01)
    x = tg.arange(6).float().reshape(3, 2) * 0.1

    def step() -> tg.Tensor:
        opt.zero_grad()
        loss = ((x @ w).tanh() ** 2).mean() + (shared * 0).sum()
        loss.backward()
        opt.step()
        return loss

    f = tg.compile(step) if compiled else step
    losses = []
    for i in range(25):
        losses.append(f().detach())
        doubled(w)
        assert tg.is_grad_enabled()
        if i % 7 == 0:
            losses[-1].item()
    return [v.item() for v in losses]


@pytest.mark.usefixtures("eager_switching")
def test_threads_train_lazily_and_compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_LAZY", "compile")  # NumPy, at first sight of a program, rounds differently
    jobs = [(seed, compiled) for seed in (1, 2) for compiled in (False, True)]
    alone = {job: training(*job, tg.ones(3)) for job in jobs}
    together: dict[tuple[int, bool], list[float]] = {}
    shared = tg.ones(3) * 2  # pending in this thread while the others read it

    def work(job: tuple[int, bool]) -> Callable[[], None]:
        return lambda: together.update({job: training(*job, shared)})

    in_threads(*(work(job) for job in jobs))
    assert together == alone


def test_hooks_of_other_threads_stay_out_of_the_way() -> None:
    def work() -> None:
        for _ in range(50):
            x = tg.ones(2, requires_grad=True)
            y = x[:1] * 2
            y.retain_grad()
            y.sum().backward()
            assert y.grad.tolist() == [1] and x.grad.tolist() == [2, 0]

    in_threads(work, work)


def census() -> int:
    gc.collect()
    return sum(type(o) in (Buffer, TracedValue) for o in gc.get_objects())


def trie_size() -> int:
    n, stack = 0, [STATE.lazy.root]
    while stack:
        node = stack.pop()
        n += 1
        stack.extend(node.children.values())
    return n


@pytest.mark.parametrize("every", [0, 1, 7])
def test_a_training_loop_keeps_nothing(every: int) -> None:
    model = tg.nn.Sequential(tg.nn.Linear(4, 8), tg.nn.ReLU(), tg.nn.Linear(8, 1))
    opt = tg.optim.Adam(model.parameters(), lr=1e-2)
    x, y = tg.randn(16, 4), tg.randn(16, 1)
    row = model[0].weight[0]  # a view that outlives the iterations
    sizes = []
    for i in range(113):
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).mean() + row.sum()
        loss.backward()
        opt.step()
        if every and i % every == 0:
            loss.item()
        if i in (28, 112):
            sizes.append((census(), trie_size()))
    assert sizes[0] == sizes[1]


def test_a_long_program_without_reads_is_cut() -> None:
    x = tg.zeros(3)
    sizes = []
    for i in range(9000):
        x.add_(1)
        if i in (5000, 8999):
            sizes.append(trie_size())
        assert len(STATE.lazy.nodes) <= STATE.lazy.LIMIT + 2
    assert sizes[0] == sizes[1]
    assert x.tolist() == [9000] * 3
