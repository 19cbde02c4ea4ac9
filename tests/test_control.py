"""Control flow: what `cond`, `while_loop`, `scan` and `map` compute, their gradients against unrolled loops, state
written in bodies, nesting, and what they say when something does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import DTypeError, GradError, OpError, TraceError
from tracegrad.ir.graph import Graph, Node
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.passes import optimize
from tracegrad.ir.regions import deep_nodes
from tracegrad.ir.text import parse_graph, print_graph
from tracegrad.ir.verifier import verify


def array(t: Any) -> np.ndarray:
    return t.detach().numpy()


def close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(array(a), array(b), rtol=rtol, atol=1e-6)


def leaf(*shape: int, scale: float = 1.0) -> tg.Tensor:
    return (tg.randn(*shape) * scale).requires_grad_()


@pytest.fixture(autouse=True)
def seeded() -> None:
    tg.manual_seed(3)


def both(fn: Callable[..., Any], *args: tg.Tensor) -> list[Any]:
    """`fn`'s results recorded as ordinary code, after checking that its traced graph, and the graph the passes
    make of it, compute the same."""
    plain = fn(*args)
    plain = list(plain) if isinstance(plain, (tuple, list)) else [plain]
    graph, arrays = traced(fn, *args)
    verify(graph)
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)
    better = optimize(graph, verify=True)
    for g in (graph, better):
        for x, y in zip(plain, evaluate(g, arrays)[0], strict=True):
            np.testing.assert_allclose(array(x), y, rtol=2e-5, atol=1e-5)
    return plain


def traced(fn: Callable[..., Any], *args: tg.Tensor) -> tuple[Graph, list[np.ndarray]]:
    """The graph of `fn`, and the contents of its inputs."""
    from tracegrad.tracer.compile_trace import trace_function

    found = trace_function(fn, args, {}, "f", True)
    arrays = []
    for p in found.places:
        t = args[p.index] if p.kind == "arg" else tg.Tensor(p.storage.value if p.storage else p.value)
        arrays.append(array(t))
    return found.graph, arrays


def loops(graph: Graph, name: str = "scan") -> list[Node]:
    return [n for n in graph.nodes if n.op.name == name]


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


def gradients(fn: Callable[..., tg.Tensor], *leaves: tg.Tensor) -> list[Any]:
    return list(tg.autograd.grad(fn(*leaves), leaves))


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
    graph, _ = traced(lambda *ls: gradients(loop, *ls), *leaves)
    return optimize(graph, verify=True)


def rnn(h: tg.Tensor, x: tg.Tensor, w: tg.Tensor, u: tg.Tensor, b: tg.Tensor) -> tg.Tensor:
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
            h, c = cell(*carry, v, u, w, b)
            return (h, c), h

        (h, c), ys = tg.scan(step, (tg.zeros(2, 4), tg.zeros(2, 4)), x)
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
        _, (a, b) = tg.scan(lambda c, v: (c * k + v.sin(), (c * v, v.exp())), c, x, reverse=True)
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

    graph, _ = traced(lambda x, w: gradients(loss, x, w), x, w)
    assert len(loops(graph)) == 2
    graph, _ = traced(
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


# --- state --------------------------------------------------------------------------------------------------


def test_tensors_written_in_a_body_are_carried_and_written_back() -> None:
    count, total = tg.zeros((), dtype=tg.int64), tg.zeros(3)

    def step(c: tg.Tensor, x: tg.Tensor) -> Any:
        count.add_(1)
        with tg.no_grad():
            total.mul_(0.5).add_(x)
        return c + count, total * 1

    last, ys = tg.scan(step, tg.zeros(3), tg.ones(3, 3))
    assert count.item() == 3 and total.tolist() == [1.75] * 3
    assert last.tolist() == [6, 6, 6] and ys[:, 0].tolist() == [1, 1.5, 1.75]
    tg.scan(step, tg.zeros(3), tg.ones(2, 3))
    assert count.item() == 5


def test_views_are_written_through() -> None:
    base = tg.zeros(4)
    part = base[1:3]

    def step(i: tg.Tensor, x: tg.Tensor) -> Any:
        part.add_(x)
        return i + base.sum(), None

    seen, _ = tg.scan(step, tg.tensor(0.0), tg.ones(3))
    assert base.tolist() == [0, 3, 3, 0] and part.tolist() == [3, 3] and seen.item() == 12


@pytest.mark.parametrize("flag", [True, False])
def test_branches_write_too(flag: bool) -> None:
    a, b = tg.zeros(2), tg.ones(2)

    def then() -> None:
        a.add_(1)

    def other() -> None:
        b.mul_(5)
        a.sub_(1)

    tg.cond(tg.tensor(flag), then, other)
    assert a.tolist() == ([1, 1] if flag else [-1, -1]) and b.tolist() == ([1, 1] if flag else [5, 5])


def test_a_while_body_writes_what_its_test_reads() -> None:
    left = tg.tensor(5)

    def body(n: tg.Tensor) -> Any:
        left.sub_(1)
        return (n + 1,)

    (n,) = tg.while_loop(lambda n: left > 2, body, (tg.tensor(0),))
    assert n.item() == 3 and left.item() == 2


def test_running_statistics_of_a_module_in_a_scan() -> None:
    norm, again = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = tg.randn(4, 5, 3)
    _, ys = tg.scan(lambda c, v: (c, norm(v)), None, x)
    outs = [again(v) for v in x.unbind(0)]
    close(ys[3], outs[3])
    close(norm.running_mean, again.running_mean)
    close(norm.running_var, again.running_var)
    assert norm.num_batches_tracked.item() == 4 and not norm.running_mean.requires_grad
    (ys * ys).sum().backward()
    sum((y * y).sum() for y in outs).backward()
    close(norm.weight.grad, again.weight.grad, rtol=1e-4)


def test_a_training_loop_inside_a_scan() -> None:
    def run(loop: bool) -> Any:
        tg.manual_seed(1)
        layer = nn.Linear(3, 1)
        xs, ys = tg.randn(6, 4, 3), tg.randn(6, 4, 1)

        def step(_: None, batch: Any) -> Any:
            x, y = batch
            loss = ((layer(x) - y) ** 2).mean()
            grads = tg.autograd.grad(loss, tuple(layer.parameters()))
            with tg.no_grad():
                for p, g in zip(layer.parameters(), grads):
                    p.sub_(0.1 * g)
            return None, loss.detach()

        if loop:
            losses = tg.scan(step, None, (xs, ys))[1].tolist()
        else:
            losses = [step(None, (xs[i], ys[i]))[1].item() for i in range(6)]
        return losses, [p.tolist() for p in layer.parameters()]

    (a, p), (b, q) = run(True), run(False)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    for x, y in zip(p, q):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_an_optimiser_inside_a_scan() -> None:
    def run(loop: bool) -> Any:
        tg.manual_seed(1)
        layer = nn.Linear(3, 1)
        opt = tg.optim.SGD(layer.parameters(), lr=0.1)
        xs = tg.randn(6, 4, 3)

        def step(_: None, x: tg.Tensor) -> Any:
            opt.zero_grad()
            loss = (layer(x) ** 2).mean()
            loss.backward()
            opt.step()
            return None, loss.detach()

        losses = tg.scan(step, None, xs)[1] if loop else tg.stack([step(None, x)[1] for x in xs.unbind(0)])
        return losses.tolist(), layer

    (a, layer), (b, other) = run(True), run(False)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    close(layer.weight, other.weight, rtol=1e-4)
    with pytest.raises(TraceError, match=r"inside the body of tracegrad.scan"):
        print(layer.weight.grad)


def test_gradients_left_over_from_step_to_step_are_refused() -> None:
    w = leaf(2)

    def step(_: None, x: tg.Tensor) -> Any:
        (w * x).sum().backward()
        return None, None

    with pytest.raises(TraceError, match="zero_grad"):
        tg.scan(step, None, tg.ones(3, 2))
    assert w.grad is None


def test_a_failed_body_leaves_everything_as_it_was() -> None:
    a = tg.zeros(2)

    def step(c: tg.Tensor, x: tg.Tensor) -> Any:
        a.add_(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        tg.scan(step, tg.zeros(2), tg.ones(2, 2))
    assert a.tolist() == [0, 0] and (a + 1).tolist() == [1, 1]


# --- recording ----------------------------------------------------------------------------------------------


def test_changing_numbers_do_not_make_new_programs() -> None:
    from tracegrad.tracer.recording import STATE

    x = tg.ones(4)

    def run(rate: float) -> float:
        return tg.scan(lambda c, v: (c + rate * v, None), tg.tensor(0.0), x)[0].item()

    def places(node: Any) -> int:
        found = [node]
        for n in found:
            found += n.children.values()
        return len(found)

    assert run(1.0) == 4 and run(2.0) == 8
    known = places(STATE.lazy.root)
    assert run(3.0) == 12 and run(0.5) == 2
    assert places(STATE.lazy.root) == known


def test_length_does_not_change_the_size_of_the_program() -> None:
    def size(n: int) -> int:
        x, w = leaf(n, 2), leaf(2, 2)
        graph, _ = traced(
            lambda x, w: gradients(
                lambda x, w: tg.scan(lambda h, v: ((h @ w + v).tanh(), None), tg.zeros(2), x)[0].sum(), x, w
            ),
            x,
            w,
        )
        return sum(1 for _ in deep_nodes(optimize(graph)))

    assert size(3) == size(3000)


def test_python_loops_over_ranges_unroll() -> None:
    def f(x: tg.Tensor) -> tg.Tensor:
        for _ in range(3):
            x = x * 2
        return x

    graph, _ = traced(f, tg.ones(2))
    assert [n.op.name for n in graph.nodes].count("mul") == 3


def test_bodies_see_views_made_outside() -> None:
    base = tg.arange(4, dtype=tg.float32)
    row = base[1:3]
    last, _ = tg.scan(lambda c, x: (c + row, None), tg.zeros(2), tg.ones(2))
    base.mul_(10)
    again, _ = tg.scan(lambda c, x: (c + row, None), tg.zeros(2), tg.ones(2))
    assert last.tolist() == [2, 4] and again.tolist() == [20, 40]


# --- errors -------------------------------------------------------------------------------------------------

X = tg.ones(4, 3)
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: tg.scan(lambda c, x: (c[:2], x), tg.zeros(3), X), OpError, r"carry is f32\[3\].*gives f32\[2\]"),
    (lambda: tg.scan(lambda c, x: (c.double(), x), tg.zeros(3), X), OpError, r"f32\[3\].*gives f64\[3\]"),
    (lambda: tg.scan(lambda c, x: ((c, c), x), tg.zeros(3), X), OpError, r"\(f32\[3\], f32\[3\]\)"),
    (lambda: tg.scan(lambda c, x: (0.5, x), tg.tensor(3), X), OpError, r"i64\[\].*0.5, a Python number"),
    (lambda: tg.scan(lambda c, x: c, tg.zeros(()), X), OpError, "pair"),
    (lambda: tg.scan(lambda c, x: (c, x), None, (X, tg.ones(3))), OpError, r"one size.*f32\[4,3\], f32\[3\]"),
    (lambda: tg.scan(lambda c, x: (c, x), None, X, length=5), OpError, "length=5"),
    (lambda: tg.scan(lambda c, x: (c, x), None), OpError, "pass length=n"),
    (lambda: tg.scan(lambda c, x: (c, x), None, tg.tensor(1.0)), OpError, "dimension to step along"),
    (lambda: tg.scan(lambda c, x: (c, "no"), None, X), DTypeError, "got str: 'no'"),
    (
        lambda: tg.cond(tg.tensor(True), lambda: tg.ones(2), lambda: tg.ones(3)),
        OpError,
        r"true_fn gives f32\[2\].*false_fn gives f32\[3\]",
    ),
    (lambda: tg.cond(tg.tensor(True), lambda: tg.ones(2), lambda: 1.5), OpError, "1.5, a Python number"),
    (lambda: tg.cond(tg.tensor(True), lambda: tg.tensor(1), lambda: 1.5), OpError, "1.5, a Python number"),
    (lambda: tg.cond(tg.tensor(True), lambda: X, lambda: (X,)), OpError, r"\(f32\[4,3\],\)"),
    (lambda: tg.cond(X > 0, lambda: 1, lambda: 2), OpError, r"bool\[4,3\], expected one element"),
    (lambda: tg.cond("yes", lambda: 1, lambda: 2), DTypeError, "pred"),
    (lambda: tg.while_loop(lambda i: i < 3, lambda i: (i + 0.5,), (0,)), OpError, r"\(i64\[\],\).*\(f32\[\],\)"),
    (lambda: tg.while_loop(lambda i: X < 3, lambda i: (i,), (0,)), OpError, r"cond_fn gives bool\[4,3\]"),
    (lambda: tg.while_loop(lambda: True, lambda: (), ()), OpError, "no tensor"),
    (lambda: tg.while_loop(lambda i: i < 3, lambda i: (i,), (0,), max_trips=-1), OpError, "max_trips"),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG, ids=range(len(WRONG)))
def test_errors_show_both_types_and_the_line(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as e:
        call()
    assert "test_control.py:" in str(e.value)


def test_a_test_that_writes_is_refused() -> None:
    a = tg.zeros(())
    with pytest.raises(OpError, match="cond_fn writes a tensor in place"):
        tg.while_loop(lambda i: a.add_(1) < 3, lambda i: (i + 1,), (0,))
    assert a.item() == 0


def test_an_unbounded_loop_has_no_gradient_and_says_what_to_do() -> None:
    w = leaf(2)
    (v,) = tg.while_loop(lambda v: v.sum() < 9, lambda v: (v + w.exp(),), (tg.zeros(2),))
    assert v.requires_grad and v.sum().item() >= 9
    with pytest.raises(GradError, match=r"max_trips=N.*") as e:
        v.sum().backward()
    assert "test_control.py" in str(e.value)


def test_what_a_body_made_does_not_leave_it() -> None:
    kept = []

    def step(c: tg.Tensor, x: tg.Tensor) -> Any:
        kept.append(c * 2)
        return c + x, None

    tg.scan(step, tg.zeros(3), X)
    with pytest.raises(TraceError, match="hands tensors out by returning them"):
        tg.scan(lambda c, x: (c + kept[0], None), tg.zeros(3), X)
    with pytest.raises(TraceError):
        kept[0].tolist()


def branching(x: tg.Tensor) -> Any:
    if x.sum() > 0:
        y = x * 2
    else:
        y = -x
    return y


def returning(x: tg.Tensor) -> Any:
    if x.sum() > 0:
        return x
    else:
        return -x


def many(x: tg.Tensor) -> Any:
    a = b = x
    if x.sum() > 0:
        a = x + 1
        b = a * 2
    return a, b


def looping(x: tg.Tensor) -> Any:
    i = 0
    while x.sum() < 100:
        x = x * 2
        i += 1
    return x, i


def asserting(x: tg.Tensor) -> Any:
    assert x.sum() > 0
    return x


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (branching, ["if x.sum() > 0:", "y = tracegrad.where(x.sum() > 0, x * 2, -x)"]),
        (returning, ["return tracegrad.cond(x.sum() > 0, lambda: x, lambda: -x)"]),
        (many, ["def then():", "    a = x + 1", "a, b = tracegrad.cond(x.sum() > 0, then, otherwise)"]),
        (
            looping,
            ["def body(x, i):", "x, i = tracegrad.while_loop(lambda x, i: x.sum() < 100, body, (x, i))"],
        ),
        (asserting, ["assert x.sum() > 0", "return x.sum() > 0"]),
        (lambda x: x if x.sum() > 0 else -x, ["tracegrad.where(x.sum() > 0, x, -x)"]),
        (lambda x: float(x.sum()), ["tracegrad.while_loop"]),
    ],
    ids=["if", "return", "several", "while", "assert", "expression", "number"],
)
def test_python_branches_on_traced_values_show_what_to_write(fn: Any, words: list[str]) -> None:
    with pytest.raises(TraceError, match=r"test_control.py:\d+") as e:
        traced(fn, tg.ones(2))
    for text in words:
        assert text in str(e.value)
    with pytest.raises(TraceError, match="the body of tracegrad.map is traced|the body of tracegrad.scan"):
        tg.map(fn, tg.ones(3, 2))
