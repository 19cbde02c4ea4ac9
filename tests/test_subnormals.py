"""Numbers too small to be normal: programs that train have zeros for them, as processors take a hundred times
as long; all others compute with them as IEEE 754 says, also when a training step ran before."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.loop_parser import parse_program
from tracegrad.ir.loop_text import print_program

SMALL = np.float32(1e-40)
on_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="about x86's modes")


def training(n: int) -> tuple[tg.Tensor, Any]:
    w = tg.tensor(np.full(n, SMALL), requires_grad=True)
    optimizer = tg.optim.SGD([w], lr=0.5, momentum=0.9)

    @tg.compile
    def step() -> tg.Tensor:
        optimizer.zero_grad()
        (w * 0.0).sum().backward()
        optimizer.step()
        return w.sum()

    return w, step


@on_x86
@pytest.mark.parametrize("threads", [1, 2])
def test_training_has_zeros_for_them_in_all_threads(threads: int) -> None:
    before = tg.get_num_threads()
    tg.set_num_threads(threads)
    try:
        w, step = training(1 << 20)
        step()
        assert not w.detach().numpy().any()
    finally:
        tg.set_num_threads(before)


def test_other_programs_keep_them_after_training() -> None:
    _, step = training(64)
    step()
    step.repeat(3)
    assert SMALL * np.float32(1) == SMALL  # the caller's modes are as they were
    x = tg.tensor(np.full(64, SMALL))
    kept = tg.compile(lambda x: x * 1.0)
    np.testing.assert_array_equal(kept(x).numpy(), x.numpy())
    assert "flushes" not in kept.lower(x).as_text("loops")


def test_the_text_of_a_program_says_so() -> None:
    _, step = training(64)
    step()
    text = step.lower().as_text("loops")
    assert "\n  flushes\n" in text and print_program(parse_program(text)) == text


@on_x86
def test_running_means_do_not_fade_into_them() -> None:
    """0.9 times the smallest number is rounded to itself: it would stay there."""
    w = tg.zeros(64, requires_grad=True)
    optimizer = tg.optim.Adam([w], lr=1e-3)

    @tg.compile
    def step(scale: tg.Tensor) -> None:
        optimizer.zero_grad()
        (w * scale).sum().backward()
        optimizer.step()

    step(tg.tensor(1.0))
    nothing = tg.tensor(0.0)
    for _ in range(900):
        step(nothing)
    mean = optimizer.state[w]["exp_avg"].numpy()
    assert not ((mean != 0) & (np.abs(mean) < np.finfo(np.float32).tiny)).any()
