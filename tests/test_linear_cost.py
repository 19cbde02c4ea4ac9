"""Twice the program is twice the work to trace, optimise, schedule and write as code. Counted in calls, not
seconds: a pass that looks at everything for everything shows at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.backends.llvm.codegen_program import generate_parts
from tracegrad.backends.llvm.target import host_target

Step = Callable[[Any], Any]


def trained(model: Any) -> Step:
    optimizer = tg.optim.Adam(model.parameters())

    def step(x: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


def mlp(n: int) -> tuple[Step, tg.Tensor]:
    model = nn.Sequential(*[m for _ in range(n) for m in (nn.Linear(16, 16), nn.ReLU())])
    return trained(model), tg.randn(8, 16)


def convnet(n: int) -> tuple[Step, tg.Tensor]:
    layer = [(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(n)]
    return trained(nn.Sequential(*[m for row in layer for m in row])), tg.randn(2, 8, 8, 8)


def transformer(n: int) -> tuple[Step, tg.Tensor]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return trained(nn.TransformerEncoder(layer, n)), tg.randn(2, 8, 16)


def unrolled(shape: tuple[int, ...], n: int) -> tuple[Step, tg.Tensor]:
    """A loop written in Python: two cheap operations and a dear one in each turn."""
    w = tg.rand(shape, requires_grad=True)

    def step(x: tg.Tensor) -> tg.Tensor:
        w.grad = None
        y = x
        for _ in range(n):
            y = (y * w).sin() + x
        loss = y.sum()
        loss.backward()
        with tg.no_grad():
            w.sub_(0.1 * w.grad)
        return loss

    return step, tg.rand(shape)


def recurrent(n: int) -> tuple[Step, tg.Tensor]:
    """A recurrent net whose steps are unrolled and stacked."""
    cell = nn.Linear(8, 8)

    def step(x: tg.Tensor) -> tg.Tensor:
        cell.zero_grad()
        h, out = x[0], []
        for i in range(n):
            h = tg.tanh(cell(h) + x[i])
            out.append(h)
        loss = tg.stack(out).square().mean()
        loss.backward()
        with tg.no_grad():
            for p in cell.parameters():
                p.sub_(0.1 * p.grad)
        return loss

    return step, tg.randn(n, 4, 8)


def calls(fn: Callable[[], Any]) -> tuple[int, Any]:
    """How many functions, Python's and C's, were called, and the result."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        made = fn()
    finally:
        sys.setprofile(before)
    return count, made


def work(build: Callable[[int], tuple[Step, tg.Tensor]], n: int) -> dict[str, int]:
    step, x = build(n)
    compiled = tg.compile(step)
    counts: dict[str, int] = {}
    counts["trace"], lowered = calls(lambda: compiled.lower(x))
    counts["optimise"], _ = calls(lambda: lowered.optimized)
    counts["schedule"], loops = calls(lambda: lowered.loops)
    counts["generate"], texts = calls(lambda: list(generate_parts(loops, host_target(), False)))
    counts["text"] = sum(map(len, texts))
    return counts


CASES: dict[str, tuple[Callable[[int], tuple[Step, tg.Tensor]], int]] = {
    "mlp": (mlp, 8),
    "convnet": (convnet, 5),
    "transformer": (transformer, 2),
    "unrolled, a number": (lambda n: unrolled((), n), 100),
    "unrolled, a few numbers": (lambda n: unrolled((8,), n), 30),
    "unrolled, a vector": (lambda n: unrolled((100,), n), 50),
    "recurrent": (recurrent, 20),
}


@pytest.mark.parametrize("name", CASES)
def test_cost_grows_linearly(name: str) -> None:
    build, n = CASES[name]
    work(build, 2)  # what is made once for the process
    once, twice = work(build, n), work(build, 2 * n)
    assert {stage: count for stage, count in twice.items() if count > 2.2 * once[stage]} == {}, once


def largest_function(texts: list[str]) -> int:
    return max(part.count("\n") for text in texts for part in text.split("\ndefine ")[1:])


@pytest.mark.parametrize("shape", [(), (8,), (100,)])
def test_functions_do_not_grow_with_the_program(shape: tuple[int, ...]) -> None:
    """LLVM takes more than twice as long for a function twice as long."""

    def texts(n: int) -> list[str]:
        step, x = unrolled(shape, n)
        return list(generate_parts(tg.compile(step).lower(x).loops, host_target(), False))

    assert largest_function(texts(160)) <= 1.5 * largest_function(texts(80))


def test_many_parts_are_stacked_in_steps() -> None:
    """Who reads a concatenation must not look through all parts for each element."""

    @tg.compile
    def step(x: tg.Tensor) -> tg.Tensor:
        return tg.stack([x[i] * float(i) for i in range(100)]).square().sum(0)

    x = tg.randn(100, 40)
    expected = (x.numpy().astype("float64") * [[float(i)] for i in range(100)]) ** 2
    assert abs(step(x).numpy() - expected.sum(0)).max() <= 1e-5 * expected.sum(0).max()
    loops = step.lower(x).as_text("loops")
    assert max(line.count("select(") for line in loops.splitlines()) <= 8
