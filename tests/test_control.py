"""Control flow: what `cond`, `while_loop`, `scan` and `map` compute, and their gradients against unrolled
loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tracegrad as tg
from control_steps import both, close, gradients, leaf, loops, traced
from tracegrad.ir.graph import Graph
from tracegrad.ir.passes import optimize


@pytest.fixture(autouse=True)
def seeded() -> None:
    tg.manual_seed(3)


# --- values -------------------------------------------------------------------------------------------------


def test_scan_gives_the_last_carry_and_the_ys() -> None:
    x = tg.arange(12, dtype=tg.float32).reshape(4, 3)
    last, ys = both(lambda x: tg.scan(lambda c, v: (c + v, c * 2), tg.zeros(3), x), x)
    assert last.tolist() == [18, 22, 26]
    assert ys.tolist() == [[0, 0, 0], [0, 2, 4], [6, 10, 14], [18, 24, 30]]


def test_scan_in_reverse_stores_each_y_where_its_x_was() -> None:
    x = tg.tensor([1.0, 2.0, 4.0])
    last, ys = both(lambda x: tg.scan(lambda c, v: (c + v, c), tg.tensor(0.0), x, reverse=True), x)
    assert last.item() == 7 and ys.tolist() == [6, 4, 0]


def test_scan_along_another_dimension() -> None:
    x = tg.randn(2, 5, 3)
    last, ys = both(lambda x: tg.scan(lambda c, v: (c + v, c + v), tg.zeros(2, 3), x, dim=1), x)
    close(last, x.sum(1))
    close(ys, x.cumsum(1).permute(1, 0, 2) if hasattr(x, "cumsum") else ys)
    same, _ = tg.scan(lambda c, v: (c + v, v), tg.zeros(2, 3), x, dim=-2)
    close(same, last)


def test_scan_over_nothing_and_over_one() -> None:
    f = lambda c, v: (c + v, (c, {"y": v * 2}))  # noqa: E731
    last, (c, d) = tg.scan(f, tg.ones(2), tg.ones(0, 2))
    assert last.tolist() == [1, 1] and c.shape == (0, 2) and d["y"].shape == (0, 2)
    last, (c, d) = tg.scan(f, tg.ones(2), tg.ones(1, 2))
    assert last.tolist() == [2, 2] and c.tolist() == [[1, 1]] and d["y"].tolist() == [[2, 2]]


def test_scan_by_length_with_numbers_and_trees() -> None:
    def step(carry: Any, _: None) -> Any:
        return {"i": carry["i"] + 1, "p": (carry["p"][0] * 2,)}, carry["i"]

    last, ys = tg.scan(step, {"i": 0, "p": (1.0,)}, length=5)
    assert last["i"].item() == 5 and last["p"][0].item() == 32
    assert last["i"].dtype is tg.int64 and ys.tolist() == [0, 1, 2, 3, 4]


def test_a_body_is_traced_once() -> None:
    calls = []

    def step(c: tg.Tensor, x: tg.Tensor) -> Any:
        calls.append(1)
        return c + x, None

    last, ys = tg.scan(step, tg.tensor(0.0), tg.ones(1000))
    assert last.item() == 1000 and ys is None and len(calls) == 1


def test_map_is_a_scan_without_carry() -> None:
    x = tg.randn(4, 3)
    (y,) = both(lambda x: tg.map(lambda r, k: (r * k).sum(), x, 3.0), x)
    close(y, (x * 3).sum(1))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cond_takes_one_branch(sign: float) -> None:
    x = tg.tensor([2.0, 3.0]) * sign
    a, b = both(lambda x: tg.cond(x.sum() > 0, lambda v: (v * 2, v.sum()), lambda v: (v - 1, v[0]), (x,)), x)
    assert a.tolist() == ([4, 6] if sign > 0 else [-3, -4])
    assert b.item() == (5 if sign > 0 else -2)


def test_cond_on_python_values_calls_the_function() -> None:
    assert tg.cond(True, lambda: 7, lambda: "other") == 7
    assert tg.cond(0, lambda: 7, lambda: "other") == "other"


def test_numbers_in_branches_become_what_the_other_branch_has() -> None:
    p = tg.tensor([True])
    assert tg.cond(p, lambda: 1, lambda: tg.tensor(2.5)).dtype is tg.float32
    assert tg.cond(p, lambda: 1, lambda: 2.5).dtype is tg.float32
    assert tg.cond(p, lambda: 1, lambda: 2).dtype is tg.int64


def test_while_loop() -> None:
    x = tg.tensor([1.0, 3.0])
    i, v = both(lambda x: tg.while_loop(lambda i, v: v.sum() < 100, lambda i, v: (i + 1, v * 2), (0, x)), x)
    assert i.item() == 5 and v.tolist() == [32, 96]
    i, v = both(lambda x: tg.while_loop(lambda i, v: i < 0, lambda i, v: (i + 1, v * 2), (0, x)), x)
    assert i.item() == 0 and v.tolist() == [1, 3]
    i, v = tg.while_loop(lambda i, v: i < 100, lambda i, v: (i + 1, v * 2), (0, x), max_trips=3)
    assert i.item() == 3 and v.tolist() == [8, 24]


def test_a_loop_that_never_runs_and_one_bounded_by_nothing_but_its_bound() -> None:
    (v,) = tg.while_loop(lambda v: v == v, lambda v: (v + 1,), (tg.tensor(0),), max_trips=0)
    assert v.item() == 0
    (v,) = tg.while_loop(lambda v: True, lambda v: (v + 1,), (tg.tensor(0),), max_trips=4)
    assert v.item() == 4


# --- gradients against unrolled loops -----------------------------------------------------------------------


def same_gradients(loop: Callable[..., Any], unrolled: Callable[..., Any], *leaves: tg.Tensor) -> Graph:
    """First and second derivatives agree; gives the passes' graph of the first ones."""
    found = both(lambda *ls: gradients(loop, *ls), *leaves)
    for x, y in zip(found, gradients(unrolled, *leaves)):
        close(x, y, rtol=1e-4)

    def second(fn: Callable[..., tg.Tensor], *ls: tg.Tensor) -> list[Any]:
        first = tg.autograd.grad(fn(*ls), ls, create_graph=True)
        total = sum((g * g).sum() for g in first)
        return [g if g is not None else tg.zeros(()) for g in tg.autograd.grad(total, ls, allow_unused=True)]

    for x, y in zip(both(lambda *ls: second(loop, *ls), *leaves), second(unrolled, *leaves)):
        close(x, y, rtol=2e-3)
    graph = traced(lambda *ls: gradients(loop, *ls), *leaves)
    return optimize(graph, verify=True)


def rnn(h: Any, x: Any, w: Any, u: Any, b: Any) -> Any:
    return (h @ w + x @ u + b).tanh()


def test_gradients_of_an_rnn_become_large_contractions() -> None:
    leaves = leaf(2, 3), leaf(6, 2, 4), leaf(3, 3, scale=0.5), leaf(4, 3), leaf(3)

    def loop(h: Any, x: Any, w: Any, u: Any, b: Any) -> Any:
        last, ys = tg.scan(lambda h, v: (rnn(h, v, w, u, b),) * 2, h, x)
        return (ys * ys).sum() + last.sum()

    def unrolled(h: Any, x: Any, w: Any, u: Any, b: Any) -> Any:
        total: Any = 0
        for v in x.unbind(0):
            h = rnn(h, v, w, u, b)
            total = total + (h * h).sum()
        return total + h.sum()

    graph = same_gradients(loop, unrolled, *leaves)
    forward, backward = loops(graph)
    assert [n.op.name for n in forward.regions[0].nodes].count("contract") == 1
    assert [n.op.name for n in backward.regions[0].nodes].count("contract") == 1
    large = [n for n in graph.nodes if n.op.name == "contract"]
    assert len(large) == 4  # x @ u; and the gradients of x, w, u
    assert not any(n.op.name == "sum" for n in backward.regions[0].nodes)


def test_gradients_of_an_lstm() -> None:
    leaves = leaf(5, 2, 3), leaf(3, 16, scale=0.5), leaf(4, 16, scale=0.5), leaf(16)

    def cell(h: Any, c: Any, x: Any, u: Any, w: Any, b: Any) -> Any:
        i, f, g, o = (h @ w + x @ u + b).split(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def loop(x: Any, u: Any, w: Any, b: Any) -> Any:
        def step(carry: Any, v: Any) -> Any:
            h, c = cell(carry[0], carry[1], v, u, w, b)
            return (h, c), h

        (_, c), ys = tg.scan(step, (tg.zeros(2, 4), tg.zeros(2, 4)), x)
        return (ys * ys).sum() + c.sum()

    def unrolled(x: Any, u: Any, w: Any, b: Any) -> Any:
        h, c, total = tg.zeros(2, 4), tg.zeros(2, 4), 0.0
        for v in x.unbind(0):
            h, c = cell(h, c, v, u, w, b)
            total = total + (h * h).sum()
        return total + c.sum()

    graph = same_gradients(loop, unrolled, *leaves)
    forward, backward = loops(graph)
    for n in (forward, backward):
        assert [m.op.name for m in n.regions[0].nodes].count("contract") == 1
    # Transcendental functions of the forward are kept, not computed again.
    names = [m.op.name for m in backward.regions[0].nodes]
    assert "sigmoid" not in names and "tanh" not in names


def test_gradients_in_reverse_and_of_one_used_value_only() -> None:
    leaves = leaf(3), leaf(4, 3), leaf(3)

    def loop(c: Any, x: Any, k: Any) -> Any:
        _, (a, _) = tg.scan(lambda c, v: (c * k + v.sin(), (c * v, v.exp())), c, x, reverse=True)
        return (a * a).sum()

    def unrolled(c: Any, x: Any, k: Any) -> Any:
        total: Any = 0
        for i in (3, 2, 1, 0):
            total = total + ((c * x[i]) ** 2).sum()
            c = c * k + x[i].sin()
        return total

    same_gradients(loop, unrolled, *leaves)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_of_cond(sign: float) -> None:
    leaves = leaf(3), leaf(3)

    def then(x: Any, k: Any) -> Any:
        return (x * k).exp()

    def other(x: Any, k: Any) -> Any:
        return (x.sin() * k).tanh()

    p = tg.tensor(sign)
    same_gradients(
        lambda x, k: tg.cond(p > 0, lambda v: then(v, k), lambda v: other(v, k), (x,)).sum(),
        lambda x, k: (then if sign > 0 else other)(x, k).sum(),
        *leaves,
    )


def test_gradients_of_a_bounded_while() -> None:
    leaves = leaf(3), leaf(3, scale=0.3)

    def loop(x: Any, k: Any) -> Any:
        _, v = tg.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v.sin() + v * k), (0, x), max_trips=6)
        return v.sum()

    def unrolled(x: Any, k: Any) -> Any:
        for _ in range(3):
            x = x.sin() + x * k
        return x.sum()

    same_gradients(loop, unrolled, *leaves)


def test_steps_that_a_while_does_not_take_have_no_gradient_at_all() -> None:
    """The steps after the last are not run: what would be NaN there does no harm."""
    x = tg.tensor([4.0], requires_grad=True)
    (v,) = tg.while_loop(lambda v: v > 1, lambda v: ((v - 1).sqrt() * v,), (x,), max_trips=50)
    unrolled = tg.tensor([4.0], requires_grad=True)
    u: Any = unrolled
    for _ in range(50):
        if u.item() > 1:
            u = (u - 1).sqrt() * u
    v.sum().backward()
    u.sum().backward()
    close(v, u)
    close(x.grad, unrolled.grad)


def test_gradients_of_nested_loops_and_branches() -> None:
    leaves = leaf(3, 2, 4), leaf(4, 4, scale=0.4), leaf(4)

    def loop(x: Any, w: Any, b: Any) -> Any:
        def outer(h: Any, rows: Any) -> Any:
            def inner(g: Any, row: Any) -> Any:
                g = tg.cond(g.sum() > 0, lambda g: (g @ w).tanh(), lambda g: (g * b).sin(), (g,)) + row
                return g, g.sum()

            h, ys = tg.scan(inner, h, rows)
            return h, ys

        h, ys = tg.scan(outer, tg.ones(4), x)
        return (ys * ys).sum() + h.sum()

    def unrolled(x: Any, w: Any, b: Any) -> Any:
        g, total = tg.ones(4), 0.0
        for rows in x.unbind(0):
            for row in rows.unbind(0):
                g = ((g @ w).tanh() if g.sum().item() > 0 else (g * b).sin()) + row
                total = total + g.sum() ** 2
        return total + g.sum()

    found = both(lambda *ls: gradients(loop, *ls), *leaves)
    for x, y in zip(found, gradients(unrolled, *leaves)):
        close(x, y, rtol=1e-4)


def test_one_forward_loop_is_left_of_a_training_step() -> None:
    """...and of a second derivative one more, also where nothing was saved when it was recorded."""
    x, w = leaf(5, 3), leaf(3)

    def loss(x: Any, w: Any) -> Any:
        return tg.scan(lambda c, v: ((c * w + v).tanh(), c), tg.zeros(3), x)[1].pow(2).sum()

    graph = traced(lambda x, w: gradients(loss, x, w), x, w)
    assert len(loops(graph)) == 2
    graph = traced(
        lambda x, w: tg.autograd.grad(
            sum(g.pow(2).sum() for g in tg.autograd.grad(loss(x, w), (x, w), create_graph=True)), (x, w)
        ),
        x,
        w,
    )
    better = optimize(graph, verify=True)
    assert len(loops(better)) < len(loops(graph))
    assert len(loops(better)) == 4  # forward, backward, and the backwards of both


def test_backward_after_the_values_were_read() -> None:
    """What the backward reads was kept when the forward ran."""
    w = leaf(3, 3)
    x = tg.randn(4, 3)
    last, ys = tg.scan(lambda h, v: ((h @ w + v).tanh(),) * 2, tg.zeros(3), x)
    assert ys.shape == (4, 3) and last.tolist() == ys[3].tolist()
    ys.sum().backward()
    h, total = tg.zeros(3), 0.0
    u = w.detach().clone().requires_grad_()
    for v in x.unbind(0):
        h = (h @ u + v).tanh()
        total = total + h.sum()
    total.backward()
    close(w.grad, u.grad)


def test_grad_fn_names_and_requires_grad() -> None:
    w = leaf(3)
    i, last = tg.scan(lambda c, v: ((c[0] + 1, c[1] * w), c[0]), (0, tg.ones(3)), tg.ones(2, 3))[0]
    assert not i.requires_grad and last.grad_fn.name() == "ScanAutogradOpBackward"
    y = tg.cond(tg.tensor(True), lambda: w * 2, lambda: w)
    assert y.grad_fn.name() == "CondAutogradOpBackward"
    (v,) = tg.while_loop(lambda v: v.sum() < 9, lambda v: (v + w.exp(),), (tg.zeros(3),), max_trips=3)
    assert v.grad_fn.name() == "WhileLoopAutogradOpBackward"
    assert tg.map(lambda x: x * w, tg.ones(2, 3)).grad_fn.name() == "MapAutogradOpBackward"
    with tg.no_grad():
        assert not tg.map(lambda x: x * w, tg.ones(2, 3)).requires_grad
    assert not tg.map(lambda x: x * 2, tg.ones(2, 3)).requires_grad


def test_no_grad_inside_a_body_cuts_gradients_off() -> None:
    w = leaf(3)

    def step(c: tg.Tensor, x: tg.Tensor) -> Any:
        with tg.no_grad():
            k = w * x
        return c + k * w, None

    last, _ = tg.scan(step, tg.zeros(3), tg.ones(2, 3))
    last.sum().backward()
    close(w.grad, 2 * w)
