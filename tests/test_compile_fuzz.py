"""Random functions with state: compiled calls do what plain ones do, `repeat(n)` what n calls do, and an
exception inside leaves everything as it was.

A function is Python source over captured tensors (`p` and `q` require grad, `m` with its views `row` and
`flat`, the counter `n`) and the arguments `x` and `y`, all of which it may write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tracegrad.ir.errors import TracegradError

VALUES = [
    "{a} * {b}", "{a} + {b}", "{a}.tanh()", "{a} @ {b}.t() @ {a}", "{a}.softmax(1)", "{a} + row", "{a} * n",
    "{a} - flat.view(3, 4)",
    "{a}.sum(0) + {b}", "{a}.detach()", "{a}[1] * {b}", "tg.where({a} > 0.1, {a}, {b})", "{a}.clone()",
    "{a} * 0.5 + m",
]  # fmt: skip
WRITES = [
    "m.add_({a}.detach())", "m[0] = {a}.detach()[1]", "row.mul_(0.5)", "flat[2:5] = 1.0", "n.add_(1)",
    "n.mul_({a}.detach().mean())",
    "m.copy_({a}.detach())", "x.mul_(0.5)", "x[0] = {a}.detach()[1]", "y.add_({a}.detach())",
    "y[:, 1].zero_()",
    "m.t()[1] = 2.0",
    "row.copy_({a}.detach()[0])", "m.zero_()",
]  # fmt: skip
GRADS = [
    "p.grad = None", "q.grad = None", "({a} * {b}).sum().backward()", "(p * {a}).tanh().sum().backward()",
    "(p * q).sum().backward()", "if p.grad is not None: p.grad.zero_()",
    "with tg.no_grad(): p.sub_(0.1 * p.grad if p.grad is not None else 0.0)",
    "with tg.no_grad(): q.mul_(0.9)",
    "with tg.no_grad(): p[0] = {a}[0]", "q.grad = {a}.detach() * 1.0", "p.data.mul_(0.5)",
]  # fmt: skip


@st.composite
def bodies(draw: Any) -> list[str]:
    tensors, lines = ["p", "q", "m", "x", "y"], []
    for i in range(draw(st.integers(1, 8))):
        kind = draw(st.integers(0, 3))
        names = {"a": draw(st.sampled_from(tensors)), "b": draw(st.sampled_from(tensors))}
        if kind == 0:
            lines.append(f"t{i} = " + draw(st.sampled_from(VALUES)).format(**names))
            tensors.append(f"t{i}")
        elif kind <= 2:
            lines.append(draw(st.sampled_from(WRITES)).format(**names))
        else:
            lines.append(draw(st.sampled_from(GRADS)).format(**names))
    results = draw(
        st.lists(st.sampled_from([*tensors, "row", "flat", "n", "m * 2", "x[0]", "p.sum()"]), max_size=3)
    )
    lines.append(f"return ({''.join(r + ', ' for r in results)})")
    return lines


class World:
    """Fresh state and the function of a body."""

    def __init__(self, lines: list[str]) -> None:
        rng = np.random.default_rng(0)
        self.state: dict[str, Any] = {
            k: tg.tensor(rng.uniform(-1, 1, (3, 4)).astype(np.float32)) for k in ("p", "q", "m", "x", "y")
        }
        self.state["n"] = tg.tensor(2.0)
        for k in "pq":
            self.state[k].requires_grad_()
        self.state["row"] = self.state["m"][1]
        self.state["flat"] = self.state["m"].view(-1)
        env: dict[str, Any] = {"tg": tg, **{k: v for k, v in self.state.items() if k not in "xy"}}
        exec("def f(x, y):\n" + "\n".join("    " + line for line in lines), env)
        self.f: Callable[..., Any] = env["f"]

    def call(self, f: Callable[..., Any]) -> Any:
        return f(self.state["x"], self.state["y"])

    def snapshot(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for k, t in self.state.items():
            out[k] = array(t)
            out[k + ".requires_grad"] = t.requires_grad
            with contextlib.suppress(TracegradError):  # used up inside the compiled function
                out[k + ".grad"] = None if t.grad is None else array(t.grad)
        return out


def array(t: Any) -> np.ndarray:
    return np.array(t.detach().numpy())


def agree(got: Any, want: Any, what: str) -> None:
    if isinstance(want, np.ndarray):
        assert isinstance(got, np.ndarray), f"{what}: {got} for {want}"
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5, err_msg=what)
    else:
        assert type(got) is type(want) and got == want, f"{what}: {got} for {want}"


def agree_all(got: dict[str, Any], want: dict[str, Any], what: str) -> None:
    for k in want:
        if k in got and k in want:
            agree(got[k], want[k], f"{k} {what}")


FUZZ = settings(max_examples=40, suppress_health_check=list(HealthCheck))


def plain_calls(lines: list[str], n: int) -> tuple[list[list[np.ndarray]], list[dict[str, Any]]]:
    world = World(lines)
    results, states = [], []
    try:
        for _ in range(n):
            results.append([array(r) for r in world.call(world.f)])
            states.append(world.snapshot())
    except TracegradError:
        assume(False)
    return results, states


@FUZZ
@given(bodies(), st.booleans())
def test_compiled_calls_do_what_plain_calls_do(lines: list[str], keep_grads: bool) -> None:
    results, states = plain_calls(lines, 3)
    world = World(lines)
    f = tg.compile(world.f, keep_grads=keep_grads)
    for i in range(3):
        what = f"after call {i} of\n" + "\n".join(lines)
        for got, want in zip(world.call(f), results[i]):
            agree(array(got), want, "a result " + what)
        agree_all(world.snapshot(), states[i], what)


@FUZZ
@given(bodies(), st.integers(1, 4))
def test_repeat_does_what_calls_do(lines: list[str], n: int) -> None:
    results, states = plain_calls(lines, n)
    world = World(lines)
    what = f"after repeat({n}) of\n" + "\n".join(lines)
    stacked = tg.compile(world.f).repeat(n, world.state["x"], world.state["y"])
    for k, got in enumerate(stacked):
        if got.dim() == results[0][k].ndim + 1:  # tensors of the state are returned themselves
            agree(array(got), np.stack([r[k] for r in results]), "a result " + what)
        else:
            agree(array(got), results[-1][k], "a returned state " + what)
    agree_all(world.snapshot(), states[-1], what)


class Boom(Exception):
    pass


@FUZZ
@given(
    bodies(),
    st.integers(0, 8),
    st.booleans(),
    st.sampled_from(["raise Boom", "x.sum().item()", "x @ x", "tg.nonsense"]),
)
def test_an_exception_inside_leaves_everything_as_it_was(
    lines: list[str], at: int, before: bool, trouble: str
) -> None:
    plain_calls(lines, 1)
    at = min(at, len(lines) - 1)
    world = World([*lines[:at], "with tg.no_grad():", "    " + trouble, *lines[at:]])
    world.f.__globals__["Boom"] = Boom
    if before:  # gradients that the function will overwrite
        (world.state["p"] * world.state["q"]).sum().backward()
    was = world.snapshot()
    grads = {k: t.grad for k, t in world.state.items()}
    with pytest.raises((Boom, TracegradError, AttributeError)):
        world.call(tg.compile(world.f))
    assert tg.is_grad_enabled()
    assert all(t.grad is grads[k] for k, t in world.state.items())
    agree_all(world.snapshot(), was, "after an exception in\n" + "\n".join(lines))


def test_views_see_what_compiled_calls_wrote() -> None:
    w, g = tg.zeros(4), tg.tensor([1.0, 2.0], requires_grad=True)
    v = w[1:3]
    step = tg.compile(lambda: w.add_(1))
    step()
    loss = (v * g).sum()
    loss.item()  # keeps the contents of v for backward
    step()
    assert v.tolist() == [2, 2] and w.tolist() == [2] * 4
    loss.backward()
    assert g.grad.tolist() == [1, 1]


def test_what_a_graph_saved_survives_compiled_updates() -> None:
    w = tg.ones(2, requires_grad=True)
    before = (w * w).sum()
    before.item()

    @tg.compile
    def grow() -> None:
        with tg.no_grad():
            w.mul_(10)

    grow()
    after = (w * w).sum()
    after.item()
    grow()
    before.backward()
    assert w.grad.tolist() == [2, 2]
    after.backward()
    assert w.grad.tolist() == [22, 22] and w.tolist() == [100, 100]


def test_arguments_that_would_be_baked_in_are_refused() -> None:
    f = tg.compile(lambda x, k: x)
    for bad in (np.ones(2), {1, 2}, bytearray(b"a")):
        with pytest.raises(TracegradError, match="as_tensor"):
            f(tg.ones(2), bad)
    g = tg.compile(lambda x, k: x * k)
    assert [str(g(tg.ones(1), k).item()) for k in (0.0, -0.0, 1, True)] == ["0.0", "-0.0", "1.0", "1.0"]


def test_repeat_with_guards_that_alternate() -> None:
    w = tg.tensor([1.0], requires_grad=True)

    def toggle() -> tg.Tensor:
        if w.grad is None:
            (w * 3).sum().backward()
            return w * 2
        w.grad = None
        return w * 5

    assert tg.compile(toggle).repeat(5).tolist() == [[2], [5], [2], [5], [2]]
    assert w.grad is not None and w.grad.tolist() == [3]
