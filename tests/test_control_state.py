"""Control flow and Python: state written in bodies, what recording makes of them, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from control_steps import close, gradients, leaf, traced
from tracegrad import nn
from tracegrad.ir.errors import DTypeError, GradError, OpError, TraceError
from tracegrad.ir.passes import optimize
from tracegrad.ir.regions import deep_nodes
from tracegrad.tracer.recording import STATE


@pytest.fixture(autouse=True)
def seeded() -> None:
    tg.manual_seed(3)


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
        graph = traced(
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

    graph = traced(f, tg.ones(2))
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
    (
        lambda: tg.while_loop(lambda i: i < 3, lambda i: (i + 0.5,), (0,)),
        OpError,
        r"\(i64\[\],\).*\(f32\[\],\)",
    ),
    (lambda: tg.while_loop(lambda i: X < 3, lambda i: (i,), (0,)), OpError, r"cond_fn gives bool\[4,3\]"),
    (lambda: tg.while_loop(lambda: True, lambda: (), ()), OpError, "no tensor"),
    (lambda: tg.while_loop(lambda i: i < 3, lambda i: (i,), (0,), max_trips=-1), OpError, "max_trips"),
]


@pytest.mark.parametrize(("call", "kind", "words"), WRONG, ids=range(len(WRONG)))
def test_errors_show_both_types_and_the_line(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as e:
        call()
    assert "test_control_state.py:" in str(e.value)


def test_a_test_that_writes_is_refused() -> None:
    a = tg.zeros(())
    with pytest.raises(OpError, match="cond_fn writes a tensor in place"):
        tg.while_loop(lambda i: a.add_(1) < 3, lambda i: (i + 1,), (0,))
    assert a.item() == 0


def test_an_unbounded_loop_has_no_gradient_and_says_what_to_do() -> None:
    w = leaf(2)
    (v,) = tg.while_loop(lambda v: v.sum() < 9, lambda v: (v + w.exp(),), (tg.zeros(2),))
    assert v.requires_grad and v.sum().item() >= 9
    with pytest.raises(GradError, match="max_trips=N") as e:
        v.sum().backward()
    assert "test_control_state.py" in str(e.value)


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
    with pytest.raises(TraceError, match=r"test_control_state.py:\d+") as e:
        traced(fn, tg.ones(2))
    for text in words:
        assert text in str(e.value)
    with pytest.raises(TraceError, match=r"the body of tracegrad\.scan is traced"):
        tg.map(fn, tg.ones(3, 2))


# --- under compile ------------------------------------------------------------------------------------------


def test_compiled_functions_carry_state_and_gradients() -> None:
    w, steps = leaf(3, 3), tg.zeros((), dtype=tg.int64)
    x = tg.randn(5, 3)

    def run(x: tg.Tensor) -> tg.Tensor:
        def step(h: tg.Tensor, v: tg.Tensor) -> Any:
            steps.add_(1)
            h = tg.cond(v.sum() > 0, lambda h: (h @ w + v).tanh(), lambda h: h - v, (h,))
            return h, h

        return (tg.scan(step, tg.zeros(3), x)[1] ** 2).sum()

    plain = run(x)
    plain.backward()
    expected, w.grad = w.grad, None
    fast = tg.compile(run)
    for calls in (1, 2):
        out = fast(x)
        close(out, plain)
        assert steps.item() == 5 + 5 * calls
    out.backward()
    close(w.grad, expected)


def test_adam_in_a_loop_in_a_compiled_function() -> None:
    def run(loop: bool) -> Any:
        tg.manual_seed(1)
        layer = nn.Linear(3, 1)
        opt = tg.optim.Adam(layer.parameters(), lr=0.1)
        xs = tg.randn(6, 4, 3)

        def step(_: Any, x: tg.Tensor) -> Any:
            opt.zero_grad()
            loss = (layer(x) ** 2).mean()
            loss.backward()
            opt.step()
            return None, loss.detach()

        if not loop:
            return [step(None, x)[1].item() for x in [*xs.unbind(0)] * 2]
        epoch = tg.compile(lambda: tg.scan(step, None, xs)[1])
        return epoch().tolist() + epoch().tolist()

    np.testing.assert_allclose(run(True), run(False), rtol=1e-3)


def test_writes_in_nested_bodies() -> None:
    a = tg.zeros(2)

    def step(c: tg.Tensor, x: tg.Tensor) -> Any:
        tg.cond(x.sum() > 0, lambda: a.add_(x), lambda: a.mul_(2))

        def raise_a(i: tg.Tensor) -> Any:
            a.add_(1)
            return (i + 1,)

        tg.while_loop(lambda i: i < 2, raise_a, (0,))
        return c + a, a * 1

    last, ys = tg.scan(step, tg.zeros(2), tg.tensor([[1.0, 1], [-1, -1], [2, 2]]))
    assert ys[:, 0].tolist() == [3, 8, 12] and a.tolist() == [12, 12] and last.tolist() == [23, 23]
