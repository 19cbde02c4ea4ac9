"""A second start finds its programs by what was traced, before any pass has run: the key tells programs apart
that differ, and what is found is what would have been compiled.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.backends.machine import AVX2
from tracegrad.ir import rewrite
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import float32, float64
from tracegrad.ir.fingerprint import _is_ours, fingerprint
from tracegrad.ir.graph import Graph
from tracegrad.ir.op import REGISTRY, Op
from tracegrad.ir.types import Type
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered


def graph_of(build: Callable[..., Any], *types: Type, update: bool = False) -> Graph:
    """The graph of a function of a builder and its inputs; `update` writes the result to the first input."""
    g = Graph("g")
    b = Builder(g)
    inputs = [g.add_input(t) for t in types]
    out = build(b, *inputs)
    if update:
        g.updates[inputs[0]] = out
    else:
        g.outputs = [out]
    return g


V, M = Type(float32, (8,)), Type(float32, (4, 8))


def test_equal_programs_have_equal_fingerprints() -> None:
    def build(b: Builder, x: Any, y: Any) -> Any:
        return b.sum(b.mul(x, y), axes=(0,))

    first, second = graph_of(build, M, M), graph_of(build, M, M)
    second.name = "other"
    second.inputs[0].name = "weights"
    assert fingerprint(first) == fingerprint(second) is not None


DIFFERENT: dict[str, Graph] = {
    "mul": graph_of(lambda b, x: b.mul(x, x), V),
    "add": graph_of(lambda b, x: b.add(x, x), V),
    "shape": graph_of(lambda b, x: b.mul(x, x), M),
    "dtype": graph_of(lambda b, x: b.mul(x, x), Type(float64, (8,))),
    "update": graph_of(lambda b, x: b.mul(x, x), V, update=True),
    "attribute": graph_of(lambda b, x: b.sum(x, axes=(0,)), M),
    "another attribute": graph_of(lambda b, x: b.sum(x, axes=(1,)), M),
    "zero": graph_of(lambda b, x: b.add(x, b.const(0.0, x)), V),
    "minus zero": graph_of(lambda b, x: b.add(x, b.const(-0.0, x)), V),
    "one": graph_of(lambda b, x: b.add(x, b.const(1.0, x)), V),
    "order": graph_of(lambda b, x, y: b.sub(x, y), V, V),
    "other order": graph_of(lambda b, x, y: b.sub(y, x), V, V),
    "twice": graph_of(lambda b, x, y: b.sub(x, x), V, V),
}


def test_different_programs_have_different_fingerprints() -> None:
    texts = {name: fingerprint(g) for name, g in DIFFERENT.items()}
    assert None not in texts.values()
    assert len(set(texts.values())) == len(texts)


def test_every_op_of_the_package_has_a_meaning_that_is_known() -> None:
    assert [op.name for op in REGISTRY.values() if not _is_ours(op)] == []


def test_code_of_others_is_not_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def infer(x: Type) -> Type:
        return x

    theirs = Op("their_op", infer, scalar=lambda s, x: s.mul(x, x))
    unknown = graph_of(lambda b, x: b.emit(theirs, (x,), {}), V)
    assert fingerprint(unknown) is None
    monkeypatch.setitem(REGISTRY, "their_op", theirs)
    assert fingerprint(unknown) is None  # registered, but its source is not part of the cache's version

    known = DIFFERENT["mul"]
    assert fingerprint(known) is not None

    def their_rule(b: Any, x: Any) -> Any:
        return None

    monkeypatch.setitem(rewrite.RULES, "their_rule", rewrite.Rule(("mul(x, x)",), their_rule, False))
    assert fingerprint(known) is None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path))
    return tmp_path


def run(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(size=v.type.shape).astype(v.type.dtype.numpy) for v in graph.inputs]
    made = Executable(Lowered(graph))([copy_of(a, v.type.dtype) for a, v in zip(inputs, graph.inputs)])
    return [b.array.copy() for b in made]


def layer() -> Graph:
    def build(b: Builder, x: Any, w: Any) -> Any:
        return b.sum(b.exp(b.contract(x, w, spec="ij,jk->ik")), axes=(1,))

    return graph_of(build, Type(float32, (64, 96)), Type(float32, (96, 80)))


def test_a_program_that_was_compiled_before_is_not_compiled_again(cache: Path) -> None:
    cold, warm = Lowered(layer()), Lowered(layer())
    assert not cold.native.from_cache and warm.native.from_cache
    assert not {"optimized", "loops"} & set(warm.__dict__), "no pass has run, nothing was scheduled"
    for name in ("arena_bytes", "parallel", "threads"):
        assert getattr(cold.native, name) == getattr(warm.native, name), name
    first, second = run(layer()), run(layer())
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]


def test_what_was_found_can_be_looked_at(cache: Path) -> None:
    cold, warm = Lowered(layer()), Lowered(layer())
    assert not cold.native.from_cache and warm.native.from_cache
    assert str(warm.native.program) == str(cold.native.program)
    assert warm.native.llvm_ir() == cold.native.llvm_ir()
    assert warm.as_text("asm") == cold.as_text("asm")


def test_another_machine_or_a_wish_to_see_the_passes_is_another_program(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = layer()
    assert not Lowered(graph).native.from_cache
    assert not Lowered(graph, AVX2).native.from_cache
    assert Lowered(graph, AVX2).native.from_cache
    monkeypatch.setenv("TRACEGRAD_VERIFY", "1")
    checked = Lowered(graph)
    assert checked.native and "optimized" in checked.__dict__


def test_a_corrupt_program_is_made_again(cache: Path) -> None:
    want = run(layer())
    for path in cache.glob("*.tgo"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(bytes(data))
    with pytest.warns(RuntimeWarning, match="corrupt"):
        got = run(layer())
    assert [a.tobytes() for a in want] == [a.tobytes() for a in got]


def test_compiled_steps_start_warm_with_the_same_results(cache: Path) -> None:
    def train() -> tuple[list[float], bool]:
        tg.manual_seed(0)
        net = tg.nn.Sequential(tg.nn.Linear(8, 16), tg.nn.Tanh(), tg.nn.Linear(16, 1))
        x, y = tg.randn(32, 8), tg.randn(32, 1)
        opt = tg.optim.Adam(net.parameters(), lr=0.01)

        @tg.compile
        def step() -> Any:
            opt.zero_grad()
            loss = tg.nn.functional.mse_loss(net(x), y)
            loss.backward()
            opt.step()
            return loss

        losses = [step().item() for _ in range(5)]
        return losses, step.lower().native.from_cache

    cold, warm = train(), train()
    assert not cold[1] and warm[1]
    assert cold[0] == warm[0]


def test_a_traced_body_lets_go_of_values_outside() -> None:
    """Else a parameter could not be written in place until the collector has run, and the first step of a
    loop would be a program of its own."""
    w = tg.ones(4)
    assert w.sum().item() == 4  # it has contents from here on
    value = w._storage.value
    gc.collect()
    before = sys.getrefcount(value)
    gc.disable()
    try:
        out = tg.map(lambda x: x * w, tg.ones(3, 4))
        assert out.sum().item() == 12
        del out
        assert sys.getrefcount(value) == before
    finally:
        gc.enable()
