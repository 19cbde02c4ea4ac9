"""Gradients of random programs against PyTorch: views, writes in place, detach, no_grad, hooks, accumulation,
second order.

A program is Python source that is run twice, with `T` the package. Programs that PyTorch refuses (it checks
that nothing saved for backward was overwritten; here a value never changes) are skipped.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

UNARY = [
    "{a}.sin()",
    "{a}.tanh()",
    "{a} * 0.5 + 1.0",
    "{a}.sigmoid()",
    "{a} ** 2 * 0.1",
    "{a}.relu()",
    "-{a}",
    "{a}.abs()",
]
BINARY = [
    "{a} + {b}",
    "{a} * {b}",
    "{a} - {b}",
    "T.maximum({a}, {b})",
    "T.where({a} > {b}, {a}, {b})",
    "{a} * {b}.sum()",
]
MIXED = [
    "{a} @ {b}.t() @ {a}",
    "{a} + {b}.mean(0)",
    "{a} * {b}.softmax(1)",
    "T.cat([{a}[:1], {b}[1:]])",
    "{a}.flip(0)",
    "{a}[T.tensor([2, 0, 0])]",
    "{a}.t().reshape(3, 4)",
    "{a} / ({b}.abs() + 1.0)",
    "{a} + {b}.amax(1, keepdim=True)",
]
OTHER = ["{a}.detach()", "{a}.detach() * {b}", "{a}.clone()"]
VIEWS = [
    "{a}[1]",
    "{a}[:, 1:3]",
    "{a}.t()",
    "{a}.view(-1)",
    "{a}[::2]",
    "{a}.view(2, 6)",
    "{a}[None, :, 0]",
    "{a}.unsqueeze(0)[0, 1:]",
]
WRITES = [
    "{v}.mul_(0.5)",
    "{v}.add_(1.0)",
    "{v}.copy_({v}.sin())",
    "{v}.tanh_()",
    "{v}[0] = {a}.sum()",
    "{v}[..., 0] = 2.0",
    "{v}.add_({a}.mean())",
]
EVENTS = [
    "with T.no_grad(): {a}.mul_(0.5)",
    "with T.no_grad(): {b} = {a} * 2.0",
    "seen.append(float({a}.sum()))",
    "with T.no_grad(): seen.append(float({v}.sum()))",
    "{a}.sum().backward(retain_graph=True)",
    "y = {a} * 3.0; y.detach().mul_(1.5); {b} = {b} + y",
]
DETACHED = [
    "{v}.detach().mul_(0.5)",
    "d = {a}.detach(); d[0] = 2.0",
    "d = {v}.detach(); d.add_(1.0)",
]
HOOKS = ["{a}.register_hook(lambda g: g * 2.0)", "{a}.retain_grad()"]
#: After all writes: a view that is written is another node of PyTorch's graph afterwards, and its hooks stay
#: behind. (PyTorch crashes where a hook is set on a view before its grad_fn was asked for.)
LATE_HOOKS = ["{v}.grad_fn; {v}.register_hook(lambda g: g * 0.5)"]


@st.composite
def programs(draw: Any) -> list[str]:
    tensors, views, lines = ["p", "q", "x"], [], []
    pick = lambda names: draw(st.sampled_from(names))  # noqa: E731
    for i in range(draw(st.integers(2, 9))):
        kind = draw(st.integers(0, 9))
        names = {"a": pick(tensors), "b": pick(tensors), "v": pick(views or tensors)}
        if kind <= 4:
            lines.append(f"t{i} = " + pick(UNARY + BINARY + MIXED + OTHER).format(**names))
            tensors.append(f"t{i}")
        elif kind <= 6:
            lines.append(f"v{i} = " + pick(VIEWS).format(**names))
            views.append(f"v{i}")
        elif kind <= 8 and views:
            lines.append(pick(WRITES + DETACHED).format(**names))
        else:
            lines.append(pick(EVENTS + HOOKS).format(**names))
    for watch in draw(st.lists(st.sampled_from(HOOKS + LATE_HOOKS), max_size=2)):
        lines.append(watch.format(a=pick(tensors), v=pick(views or tensors)))
    used = draw(st.lists(st.sampled_from(tensors[1:] + views), min_size=1, max_size=3))
    lines.append(f"last = {tensors[-1]}")
    lines.append("loss = last.sum() + " + " + ".join(f"{u}.sin().sum()" for u in used))
    return lines


def run(T: Any, lines: list[str], backward: list[str]) -> dict[str, Any]:
    env: dict[str, Any] = {"T": T, "seen": []}
    rng = np.random.default_rng(0)
    for name in "pqx":
        env[name] = T.tensor(rng.uniform(-1, 1, (3, 4)), dtype=T.float64)
    env["p"].requires_grad_()
    env["q"].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("\n".join(lines + backward), env)
        out: dict[str, Any] = {"seen": env["seen"]}
        for name, t in sorted(env.items()):
            if hasattr(t, "requires_grad") and name != "T":
                out[name] = np.array(t.detach().numpy())
                out[name + ".requires_grad"] = t.requires_grad
                g = t.grad if t.is_leaf or t.retains_grad else None
                out[name + ".grad"] = None if g is None else np.array(g.detach().numpy())
    return out


def compare(lines: list[str], backward: list[str]) -> None:
    try:
        want = run(torch, lines, backward)
    except RuntimeError:
        assume(False)
        return
    got = run(tg, lines, backward)
    for key, value in want.items():
        mine = got[key]
        text = "\n".join(lines + backward)
        if isinstance(value, np.ndarray) and isinstance(mine, np.ndarray):
            np.testing.assert_allclose(mine, value, rtol=1e-9, atol=1e-9, err_msg=f"{key} of\n{text}")
        elif isinstance(value, list):
            assert mine == pytest.approx(value, nan_ok=True), f"{key} of\n{text}"
        elif value is None and mine is not None:
            raise AssertionError(f"{key} is set, PyTorch's is None, of\n{text}")
        elif mine is None and value is not None:
            assert not value.any(), f"{key} is None, PyTorch's is {value}, of\n{text}"
        elif key != "s.requires_grad":  # a zero gradient is a constant here
            assert mine == value, f"{key} is {mine}, PyTorch's is {value}, of\n{text}"


FUZZ = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@FUZZ
@given(programs())
def test_backward(lines: list[str]) -> None:
    compare(lines, ["loss.backward()"])


@FUZZ
@given(programs())
def test_accumulation_over_two_backwards(lines: list[str]) -> None:
    compare(
        lines, ["loss.backward(retain_graph=True)", "seen.append(float(loss))", "(loss * loss).backward()"]
    )


@FUZZ
@given(programs())
def test_second_order(lines: list[str]) -> None:
    # Which value the saved result of a write counts as, the op's or its tensor's, is the engine's to say.
    if any(re.match(r"v\d+[.\[]|with T.no_grad\(\): \w+.mul_", line) for line in lines):
        lines = [line for line in lines if "retain_grad" not in line and "register_hook" not in line]
    compare(
        lines,
        [
            "g = T.autograd.grad(loss, [p, q], create_graph=True, allow_unused=True)",
            "s = sum((h * h).sum() for h in g if h is not None)",
            "s.backward() if hasattr(s, 'backward') and s.requires_grad else None",
        ],
    )
