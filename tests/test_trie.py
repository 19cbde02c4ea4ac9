"""The trie of recorded programs is bounded, and places of data that change are no programs of their own."""

from __future__ import annotations

from typing import Any

import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.tracer.recording import STATE, LazyTrace


def places(trace: LazyTrace) -> int:
    count, stack = 0, [trace.root]
    while stack:
        place = stack.pop()
        count += 1
        stack.extend(place.children.values())
    return count


def test_samples_of_known_data_share_one_program() -> None:
    data, model = tg.randn(40, 3), nn.Linear(3, 1)
    optimizer = tg.optim.SGD(model.parameters(), lr=0.01)

    def step(x: tg.Tensor) -> None:
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        optimizer.step()

    for k in range(4):
        step(data[k])
        step(data[2 * k : 2 * k + 2])
        step(data[1:, :][k, 0:3])
    tg.ones(1).sum().item()
    before = places(STATE.lazy)
    for k in range(4, 30):
        step(data[k])
        step(data[k : k + 2])
        step(data[1:, :][k, 0:3])
    tg.ones(1).sum().item()
    assert places(STATE.lazy) == before


@pytest.mark.parametrize(
    "index", [2, -1, slice(1, 3), slice(None, None, 2), (slice(1, 2), 0), (1, slice(0, 3, 2))]
)
def test_parts_of_known_data_are_views(index: object) -> None:
    x = tg.arange(12.0).reshape(4, 3)
    x.sum().item()
    part = x[index]
    expected = x.numpy()[index]
    assert part.tolist() == expected.tolist() and part._is_view()
    part += 100
    again: Any = x[index]
    assert again.tolist() == part.tolist()
    x.zero_()
    assert not part.any()
    assert (
        part.storage_offset() * 4
        == expected.__array_interface__["data"][0] - x.numpy().__array_interface__["data"][0]
    )


def test_the_trie_forgets_what_was_not_met_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyTrace, "PLACES", 200)
    kept = tg.ones(3, 3)

    def often() -> float:
        return (kept * 2 + 1).sum().item()

    assert often() == 27
    for k in range(2, 200):
        assert kept.reshape(1, 9).expand(k, 9).sum().item() == 9 * k
        assert often() == 27
        assert STATE.lazy.places <= 200 and places(STATE.lazy) <= 202


def test_programs_that_ran_once_do_not_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyTrace, "ONCE", 100)
    x = tg.ones(3, 3)

    def often() -> float:
        return (x * 3 + 1).exp().log().mean().item()

    for _ in range(3):
        assert often() == pytest.approx(4)
    for k in range(1, 100):
        assert x.clamp(0.0, float(k)).reshape(9, 1).expand(9, k + 1).sum().item() == 9 * (k + 1)
        assert places(STATE.lazy) <= STATE.lazy.tidy + 110
    assert STATE.lazy.tidy <= STATE.lazy.PLACES // 4
    before = sum(p.runs for p in programs_of(STATE.lazy))
    assert often() == pytest.approx(4)
    assert sum(p.runs for p in programs_of(STATE.lazy)) == before + 1 >= 4  # it was not forgotten


def test_a_long_program_that_ran_once_is_there_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyTrace, "ONCE", 20)
    x = tg.ones(3)

    def long() -> float:
        y = x
        for _ in range(60):
            y = (y * 2).sin()
        return y.sum().item()

    first = long()
    for _ in range(3):
        assert long() == pytest.approx(first)
    assert max(p.runs for p in programs_of(STATE.lazy)) >= 4


def programs_of(trace: LazyTrace) -> list[Any]:
    found, stack = [], [trace.root]
    while stack:
        place = stack.pop()
        found += (place.programs or {}).values()
        stack.extend(place.children.values())
    return found
