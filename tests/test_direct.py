"""The short way of a call of a compiled function (tracer/direct.py): results that are recycled, and arguments
that are not like the last call's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tracegrad as tg


def _counter() -> Callable[[], tg.Tensor]:
    x = tg.zeros(3)

    @tg.compile
    def step() -> tg.Tensor:
        with tg.no_grad():
            x.add_(1)
        return x * 1

    for _ in range(4):
        step()
    return step


KEEP: dict[str, Callable[[tg.Tensor], Any]] = {
    "tensor": lambda r: r,
    "view": lambda r: r[1:],
    "detached": lambda r: r.detach(),
    "array": lambda r: r.numpy(),
    "part of an array": lambda r: r.numpy()[1:],
    "pending": lambda r: r + 0,
    "storage": lambda r: r._storage,
    "value": lambda r: r._value(),
    "memory": lambda r: r._buffer(),
    "graph": lambda r: (leaf := tg.ones(3, requires_grad=True), leaf * r),
}


@pytest.mark.parametrize("what", KEEP)
def test_what_is_kept_of_a_result_stays_as_it_was(what: str) -> None:
    step = _counter()
    results = [KEEP[what](step()) for _ in range(6)]
    for i, r in enumerate(results):
        if what == "storage":
            r = tg.Tensor(r.value)
        elif what == "value":
            r = tg.Tensor(r)
        elif what == "memory":
            r = r.array
        elif what == "graph":
            (r,) = tg.autograd.grad(r[1].sum(), [r[0]])
        assert r.tolist() == [5.0 + i] * len(r)


def test_a_result_that_was_changed_leaves_the_next_alone() -> None:
    step = _counter()
    for i, change in enumerate(
        (
            lambda r: r.mul_(100),
            lambda r: r.requires_grad_(),
            lambda r: (r.requires_grad_() * 2).sum().backward(),
            lambda r: setattr(r, "mine", 1),
            lambda r: setattr(r, "data", tg.ones(3)),
            lambda r: setattr(r, "grad", tg.ones(3)),
            lambda r: r.numpy().fill(7),
            lambda r: r.resize_(5) if hasattr(r, "resize_") else r,
        )
    ):
        first = 5 + 5 * i
        change(step())
        for k in range(1, 5):
            r = step()
            assert r.tolist() == [first + k] * 3
            assert not r.requires_grad and r.grad is None and not hasattr(r, "mine")


def test_results_are_not_kept_alive() -> None:
    step = _counter()
    ref = weakref.ref(step())
    gc.collect()
    assert ref() is None


def test_arguments_unlike_the_last_ones() -> None:
    w = tg.tensor([1.0, 2.0])

    @tg.compile
    def f(x: tg.Tensor, y: Any) -> tg.Tensor:
        return x * w + y

    a, b = tg.ones(2), tg.full((2,), 5.0)
    for _ in range(3):
        assert f(a, b).tolist() == [6, 7]
    assert f(a, a).tolist() == [2, 3]
    assert f(a, b).tolist() == [6, 7]
    assert f(a, 5.0).tolist() == [6, 7]
    assert f(a, 6.0).tolist() == [7, 8]
    assert f(a, b).tolist() == [6, 7]
    assert f(a, y=b).tolist() == [6, 7]
    assert f(b, a).tolist() == [6, 11]
    assert f(w, b).tolist() == [6, 9]
    assert f(tg.ones(2, 2), b).tolist() == [[6, 7], [6, 7]]
    assert f(tg.ones(2, dtype=tg.float64), b).dtype is tg.float64
    assert f(tg.arange(4.0)[1:3], b).tolist() == [6, 9]
    assert f(a + 1, b).tolist() == [7, 9]
    assert f(tg.nn.Parameter(tg.ones(2)), b).requires_grad
    assert not f(a, b).requires_grad
    leaf = tg.ones(2, requires_grad=True)
    f(leaf, b).sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [1, 2]
    untyped: Any = f
    with pytest.raises(TypeError):
        untyped(a)
    with pytest.raises(TypeError):
        untyped(a, b, b)
    with tg.no_grad():
        assert f(leaf, b).tolist() == [6, 7]


def test_an_argument_that_is_written_elsewhere() -> None:
    w = tg.tensor([1.0, 2.0])

    @tg.compile
    def f(x: tg.Tensor) -> tg.Tensor:
        w.add_(1)
        return w * 10 + x

    a = tg.zeros(2)
    for i in range(2, 5):
        assert f(a).tolist() == [10 * i, 10 * i + 10]
    assert f(w).tolist() == [54, 65]  # as it was before the write
    assert f(a).tolist() == [60, 70]


@pytest.mark.parametrize("kind", [tuple, list, dict, type(None)])
def test_results_of_every_kind(kind: type) -> None:
    count = tg.zeros(())

    @tg.compile
    def f(x: tg.Tensor) -> Any:
        count.add_(1)
        if kind is dict:
            return {"sum": x + count, "rest": (x, [x - count])}
        return kind((x - count, x + count)) if kind in (tuple, list) else None

    for i in range(1, 6):
        x = tg.full((2,), float(10 * i))
        r: Any = f(x)
        assert count.item() == i and type(r) is kind
        if kind is dict:
            assert r["sum"].tolist() == [11 * i] * 2 and r["rest"][1][0].tolist() == [9 * i] * 2
            assert r["rest"][0].tolist() == [10 * i] * 2
        elif r is not None:
            assert [t.tolist() for t in r] == [[9 * i] * 2, [11 * i] * 2]


def test_guards_hold_with_arguments() -> None:
    scale = 2.0
    model = tg.nn.Sequential(tg.nn.Linear(2, 2), tg.nn.Dropout(1.0))

    @tg.compile
    def f(x: tg.Tensor) -> tg.Tensor:
        return model(x) * scale + 1

    x = tg.ones(2)
    with tg.no_grad():
        for _ in range(3):
            assert f(x).tolist() == [1, 1]
        model.eval()
        expected = (model(x) * 2 + 1).tolist()
        assert f(x).tolist() == f(x).tolist() == pytest.approx(expected, rel=1e-6)
        scale = 3.0
        expected = (model(x) * 3 + 1).tolist()
        assert f(x).tolist() == f(x).tolist() == pytest.approx(expected, rel=1e-6)
        model[0] = tg.nn.Linear(2, 2)
        expected = (model(x) * 3 + 1).tolist()
        assert f(x).tolist() == f(x).tolist() == pytest.approx(expected, rel=1e-6)
