"""Memory of what a compiled call replaces is used again, unless somebody can see it; workspaces of programs
that are not running are lent."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad
from tracegrad.ir.dtypes import uint8
from tracegrad.ir.errors import OpError
from tracegrad.ir.types import Type
from tracegrad.runtime import buffers, workspace
from tracegrad.runtime.executable import Executable
from tracegrad.tracer import mt19937
from tracegrad.tracer.generator import generator_of

N = 1 << 15


def trainer() -> tuple[tracegrad.Tensor, tracegrad.Tensor, Callable[..., Any]]:
    """(leaf, a factor, a compiled step that leaves the factor's triple as the leaf's gradient)."""
    x = tracegrad.ones(N, requires_grad=True)
    c = tracegrad.ones(N)

    @tracegrad.compile
    def step() -> tracegrad.Tensor:
        x.grad = None
        loss = (x * c * 3).sum()
        loss.backward()
        return loss

    return x, c, step


def address(t: tracegrad.Tensor | None) -> int:
    assert t is not None
    return t._buffer().ptr


def test_the_next_gradient_is_written_where_the_last_one_was() -> None:
    x, c, step = trainer()
    step()
    first = address(x.grad)
    for i in range(2, 5):
        c.fill_(i)
        step()
        assert address(x.grad) == first
        assert x.grad.min().item() == x.grad.max().item() == 3 * i


def test_also_when_it_is_returned() -> None:
    x = tracegrad.ones(N, requires_grad=True)

    @tracegrad.compile
    def step() -> Any:
        x.grad = None
        (x * x).sum().backward()
        return x.grad

    first = step()
    where = address(first)
    second = step()  # the first is still ours
    assert address(second) != where
    del first, second
    where = address(x.grad)
    step()
    assert address(x.grad) == where


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda g: g,
    "detach": lambda g: g.detach(),
    "view": lambda g: g.view(2, -1),
    "slice": lambda g: g[5:],
    "numpy": lambda g: g.numpy(),
    "part of an array": lambda g: g.numpy()[3:],
    "dlpack": lambda g: np.from_dlpack(g),
    "memoryview": lambda g: memoryview(g.numpy()),
    "list": lambda g: [g],
    "data": lambda g: g.data,
    "pending": lambda g: g + 0,
    "view of pending": lambda g: (g.view(-1) + 0)[1:],
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_somebody_holds_is_left_alone(name: str) -> None:
    x, c, step = trainer()
    step()
    step()
    held = HOLDERS[name](x.grad)
    c.fill_(7)
    step()
    values = held[0] if name == "list" else held
    values = values.numpy() if isinstance(values, tracegrad.Tensor) else np.asarray(values)
    assert (values == 3).all()
    assert (x.grad.numpy() == 21).all()


def test_what_a_graph_saved_is_left_alone() -> None:
    x, c, step = trainer()
    step()
    w = tracegrad.full((N,), 2.0, requires_grad=True)
    y = (w * x.grad).sum()
    if y.item():
        c.fill_(7)
        step()
    y.backward()
    assert (w.grad.numpy() == 3).all()


def test_two_leaves_with_one_gradient() -> None:
    x, c, step = trainer()
    step()
    other = tracegrad.ones(N, requires_grad=True)
    other.grad = x.grad
    c.fill_(7)
    step()
    assert (other.grad.numpy() == 3).all()
    assert (x.grad.numpy() == 21).all()


def test_gradients_that_another_function_reads() -> None:
    x, c, step = trainer()
    norm = tracegrad.compile(lambda: (x.grad * x.grad).sum())
    for i in range(1, 5):
        c.fill_(i)
        step()
        assert norm().item() == 9 * i * i * N


def test_gradients_read_before_they_are_written() -> None:
    x = tracegrad.ones(N, requires_grad=True)
    x.grad = tracegrad.full((N,), 1.0)

    @tracegrad.compile
    def step() -> tracegrad.Tensor:
        old = x.grad
        x.grad = None
        (x * 2).sum().backward()
        x.grad = x.grad + old.flip(0) * 3
        return x.grad.sum()

    expected = 1
    for _ in range(4):
        step()
        expected = 2 + 3 * expected
        assert (x.grad.numpy() == expected).all()


def test_attributes() -> None:
    class Net(tracegrad.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tracegrad.ones(N)
            self.last: Any = None

        def forward(self, x: tracegrad.Tensor) -> tracegrad.Tensor:
            self.last = x * self.scale
            return self.last.sum()

    net = Net()
    call = tracegrad.compile(net)
    for i in range(4):
        call(tracegrad.full((N,), float(i)))
    where = address(net.last)
    call(tracegrad.full((N,), 8.0))
    assert address(net.last) == where and (net.last.numpy() == 8).all()
    held = net.last
    call(tracegrad.full((N,), 9.0))
    assert (held.numpy() == 8).all() and (net.last.numpy() == 9).all()


def test_a_call_that_fails_before_it_runs_changes_nothing() -> None:
    x, c, step = trainer()
    step()
    c.fill_(7)
    (spec,) = next(iter(step.specializations.values()))
    (binding,) = spec._idle
    whole = binding.allocators

    def none() -> Any:
        raise OpError("not enough memory")

    assert len(whole) == 2
    binding.allocators = [none if x._grad._buffer().ptr != a().ptr else a for a in whole]
    with pytest.raises(OpError):
        step()
    assert (x.grad.numpy() == 3).all()
    step()
    assert (x.grad.numpy() == 21).all()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_repeated_runs_keep_the_last_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracegrad.tracer import specialization

    def net() -> tuple[Any, Any]:
        w = tracegrad.linspace(-1, 1, 50, requires_grad=True)
        opt = tracegrad.optim.SGD([w], lr=0.1)

        @tracegrad.compile(keep_grads=True)
        def step() -> tracegrad.Tensor:
            opt.zero_grad()
            loss = (w * w).sum()
            loss.backward()
            opt.step()
            return loss

        return w, step

    w, step = net()
    singly = [step().item() for _ in range(20)]
    monkeypatch.setattr(specialization, "_PASSING", 200 * rows)
    again, step = net()
    assert step.repeat(20).tolist() == singly
    assert again.tolist() == w.tolist() and again.grad.tolist() == w.grad.tolist()
    assert again.grad.shape == (50,)


# --- workspaces -------------------------------------------------------------------------------------------


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No workspaces of earlier tests."""
    monkeypatch.setattr(workspace, "_lenders", weakref.WeakSet())


def large(k: float) -> Callable[[tracegrad.Tensor], tracegrad.Tensor]:
    """A program with some MiB of intermediates."""

    @tracegrad.compile
    def f(a: tracegrad.Tensor) -> tracegrad.Tensor:
        b = (a * k).cumsum(0)
        return (b.flip(0).cumsum(1) + b).sum()

    return f


@pytest.mark.usefixtures("only_ours")
def test_programs_share_one_workspace() -> None:
    a = tracegrad.ones(1024, 2048)
    programs = [large(k) for k in (1.0, 2.0, 3.0)]
    alone = [f(a).item() for f in programs]
    lowered = [f.lower(a) for f in programs]
    assert all(low.memory().arena >= workspace.LENT for low in lowered)
    for _ in range(3):
        assert [f(a).item() for f in programs] == alone
    idle = [s._idle for f in programs for s in next(iter(f.specializations.values()))]
    assert sum(map(len, idle)) == 1


def test_a_workspace_too_small_is_replaced() -> None:
    small, big = tracegrad.ones(1024, 1024), tracegrad.ones(2048, 1024)
    f = large(1.0)
    for _ in range(3):
        assert f(small).item() == f(small).item()
        assert f(big).item() == f(big).item()


def test_programs_that_run_at_once_have_their_own() -> None:
    a = tracegrad.ones(1024, 2048)
    programs = [large(float(k)) for k in range(1, 4)]
    expected = [f(a).item() for f in programs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(8):
            if programs[i](a).item() != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 2, 0)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.usefixtures("only_ours")
def test_executables_lend_theirs() -> None:
    from tracegrad.runtime.buffers import from_array
    from tracegrad.runtime.executable import Lowered

    a = tracegrad.ones(1024, 2048)
    made = [Executable(Lowered(large(k).lower(a).graph)) for k in (1.0, 2.0)]
    given = from_array(np.ones((1024, 2048), np.float32))
    first = [e([given])[0].number() for e in made]
    assert [e([given])[0].number() for e in made] == first
    assert sum(len(e._idle) for e in made) == 1


# --- idle memory ------------------------------------------------------------------------------------------


def idle() -> int:
    return sum(p.size * len(p.idle) for p in buffers._large.values())


def test_idle_memory_of_many_sizes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers._bound(0)
    assert idle() == 0
    monkeypatch.setattr(buffers, "_IDLE_IN_ALL", 16 << 20)
    for k in range(20):
        t = tracegrad.empty((2 << 20) + k * 4096, dtype=tracegrad.uint8)
        t.sum().item()
        del t
        gc.collect()
        assert idle() <= 16 << 20
    assert idle() > 8 << 20
    sizes = sorted(p.size for p in buffers._large.values() if p.idle)
    assert sizes[-1] > (2 << 20) + 19 * 4096  # the ones that were wanted last


def test_a_block_of_the_same_size_is_used_again() -> None:
    type = Type(uint8, (3 << 20,))
    b = buffers.empty(type)
    where = b.ptr
    del b
    assert buffers.empty(type).ptr == where


# --- random tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rand", "randn"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_large_random_tensors_are_the_generators(name: str, dtype: str) -> None:
    shape = (129, 257)
    d = getattr(tracegrad, dtype)
    tracegrad.manual_seed(3)
    made = getattr(tracegrad, name)(shape, dtype=d)
    after = tracegrad.rand(1).item()
    tracegrad.manual_seed(3)
    draw = {"rand": mt19937.uniform, "randn": mt19937.normal}[name]
    expected = draw(generator_of(None), shape, d.numpy)
    assert made.shape == shape and made.dtype is d
    assert (np.asarray(made._array()) == expected).all()
    assert tracegrad.rand(1).item() == after
