"""Tuning of contractions by measurement: what competes, that the choice is remembered, and that results stay
what they are without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tracegrad
from schedule_graphs import build, f32
from tracegrad.backends.machine import AVX512
from tracegrad.backends.schedule import contract
from tracegrad.backends.schedule.tiles import Problem, Strategy, choose, contenders
from tracegrad.ir.interpreter import evaluate
from tracegrad.runtime import tune

PROBLEM = Problem(40, 72, 56, 1, 56, 1, 72, 1, 72, 1, 4, (56,), k_last=56)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(40, 72, 56), (300, 500, 700), (1, 64, 9)])
def test_what_competes(threads: int, sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    p = replace(PROBLEM, M=m, N=n, K=k, am=k, bk=n, cm=n, inner=(k,), k_last=k)
    machine = replace(AVX512, threads=threads)
    ways = contenders(p, machine, 6)
    assert ways[0] == choose(p, machine)
    assert len(set(ways)) == len(ways) <= 6
    assert not any(s.dot for s in ways) or len(ways) == 1


@pytest.mark.parametrize("a", ["mk", "km"])
@pytest.mark.parametrize("b", ["kn", "nk"])
def test_the_product_is_the_problem(a: str, b: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that is measured plans into the problem it stands for."""
    seen: list[Problem] = []

    def look(p: Problem, machine: object) -> Strategy:
        seen.append(p)
        return choose(p, AVX512)

    sizes = {"m": 40, "n": 72, "k": 56}
    shapes = {"x": f32(*[sizes[c] for c in a]), "y": f32(*[sizes[c] for c in b])}
    graph = build("c", shapes, lambda g, x, y: g.contract(x, y, spec=f"{a},{b}->mn"))
    with contract.tuned(look):
        tune.schedule(graph, AVX512)
        again = tune.product(seen[0])
        assert again is not None
        tune.schedule(again, AVX512)
    assert seen[0] == seen[1]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype("f") for v in graph.inputs]
    for x, y in zip(evaluate(graph, arrays), evaluate(again, arrays)):
        np.testing.assert_array_equal(x, y)


def test_no_product_no_tuning() -> None:
    for other in (replace(PROBLEM, windows_b=True), replace(PROBLEM, batch=3), replace(PROBLEM, cn=40, cm=1)):
        assert tune.product(other) is None


def test_choices_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_TUNE", "1")
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune, "SECONDS", 0.0005)
    measured: list[int] = []
    fastest = tune.fastest

    def last(programs: list) -> Strategy:
        measured.append(len(programs))
        fastest(programs)
        return programs[-1][0]

    monkeypatch.setattr(tune, "fastest", last)
    x, y = tracegrad.randn(72, 56), tracegrad.randn(56, 65)
    got = []
    for _ in range(2):
        got.append(tracegrad.compile(lambda: tracegrad.relu(x @ y))().numpy())
    assert len(measured) == 1 and measured[0] > 2
    monkeypatch.delenv("TRACEGRAD_TUNE")
    got.append(tracegrad.compile(lambda: tracegrad.relu(x @ y))().numpy())
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])
