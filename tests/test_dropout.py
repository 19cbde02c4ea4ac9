"""Dropouts and RReLU: the right share of elements, one mask for forward and backward, the same numbers
however code runs."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from test_random import N, a, near_mean, seeded  # noqa: F401 - a fixture
from tracegrad import nn
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import TraceError
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.types import Type
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered, host_machine

F = nn.functional


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share(p: float) -> None:
    y = a(F.dropout(tg.ones(N), p)).astype(np.float64)
    values = np.unique(y)
    np.testing.assert_allclose(values, [0, 1 / (1 - p)], rtol=1e-6)
    near_mean(y == 0, p, math.sqrt(p * (1 - p)))
    # Neighbours, and elements that share a counter, are independent.
    kept = (y != 0) - (1 - p)
    for lag in (1, 16, 32, 64):
        near_mean(kept[lag:] * kept[:-lag], 0, p * (1 - p))


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    x = tg.randn(N)
    y = a(F.alpha_dropout(x, 0.2, training=True)).astype(np.float64)
    near_mean(y, 0, 1)
    assert abs(y.var() - 1) < 0.03


def test_gumbel_softmax() -> None:
    logits = tg.tensor([0.1, 0.6, 0.3]).log().expand(20_000, 3)
    y = a(F.gumbel_softmax(logits, hard=True))
    near_mean(y[:, 1], 0.6, math.sqrt(0.24))
    x = tg.randn(4, 3, requires_grad=True)
    soft = F.gumbel_softmax(x, tau=0.5)
    np.testing.assert_allclose(a(soft.sum(-1)), 1, rtol=1e-6)
    (F.gumbel_softmax(x, hard=True) * tg.arange(3)).sum().backward()
    assert np.abs(a(x.grad)).sum() > 0


# --- the same numbers however code runs ---------------------------------------------------------------------


def net() -> Any:
    tg.manual_seed(5)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 4), nn.Dropout(0.2))


def losses(run: str, steps: int = 6) -> tuple[list[float], list[np.ndarray]]:
    model = net()
    opt = tg.optim.SGD(model.parameters(), lr=0.1)
    tg.manual_seed(9)
    x, y = tg.randn(16, 20), tg.randn(16, 4)

    def step() -> Any:
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss

    tg.manual_seed(17)
    if run == "lazy":
        found = [step().item() for _ in range(steps)]
    elif run == "compiled":
        native = tg.compile(step)
        found = [native().item() for _ in range(steps)]
    else:
        found = tg.compile(step).repeat(steps).tolist()
    return found, [a(p) for p in model.parameters()]


def test_lazy_compiled_and_repeated_training_are_the_same() -> None:
    lazy, compiled_, repeated = losses("lazy"), losses("compiled"), losses("repeat")
    np.testing.assert_allclose(compiled_[0], lazy[0], rtol=1e-5)
    np.testing.assert_allclose(repeated[0], compiled_[0], rtol=0)
    for p, q, r in zip(lazy[1], compiled_[1], repeated[1]):
        np.testing.assert_allclose(q, p, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(r, q)


def test_every_step_draws_anew() -> None:
    step = tg.compile(lambda: (F.dropout(tg.ones(64), 0.5), tg.rand(3)))
    rows = [step() for _ in range(3)]
    assert len({a(r).tobytes() for r, _ in rows}) == 3 and len({a(r).tobytes() for _, r in rows}) == 3
    masks, numbers = step.repeat(4)
    assert len({m.tobytes() for m in a(masks)}) == 4 and len({n.tobytes() for n in a(numbers)}) == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_masks_do_not_depend_on_threads_or_grouping(threads: int) -> None:
    """A large mask alone, and inside a bigger loop nest of another shape."""
    state = np.array([3, 4])
    graph = Graph("mask")
    b = Builder(graph)
    x = graph.add_input(Type(dtypes.float32, (300, 700)), "x")
    s = graph.add_input(Type(dtypes.int64, (2,)), "s")
    bias = graph.add_input(Type(dtypes.float32, (700,)), "bias")
    graph.outputs = [b.dropout(b.add(x, bias), s, p=0.25)[0]]
    arrays = [np.ones((300, 700), np.float32), state, np.zeros(700, np.float32)]
    (wanted,), _ = evaluate(graph, arrays)
    lowered = Lowered(graph, replace(host_machine(), threads=threads))
    (got,) = Executable(lowered)([copy_of(v, t.type.dtype) for v, t in zip(arrays, graph.inputs)])
    np.testing.assert_array_equal(got.array, wanted)


def test_one_recorded_op_per_dropout() -> None:
    x = tg.ones(8)
    lazy = tg.tracer.recording.STATE.lazy
    lazy.flush()
    F.dropout(x, 0.5)
    assert [n.op.name for n in lazy.nodes] == ["dropout"]


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile_", [False, True])
@pytest.mark.parametrize(
    "function", ["dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "rrelu"]
)
def test_backward_uses_the_mask_of_its_forward(function: str, compile_: bool) -> None:
    x0 = tg.randn(4, 6, 5, 3)

    def both(x: Any) -> tuple[Any, Any]:
        y = (
            getattr(F, function)(x, training=True)
            if function == "rrelu"
            else getattr(F, function)(x, 0.4, True)
        )
        (g,) = tg.autograd.grad((y * y).sum() / 2, x)
        return y, g

    f = tg.compile(both) if compile_ else both
    y, g = map(a, f(x0.clone().requires_grad_()))
    x = a(x0)
    if "alpha" in function:
        slope = 1 / math.sqrt((1.7580993408473766**2 * 0.4 + 1) * 0.6)
        kept = np.abs(g) > 0
        np.testing.assert_allclose(g[kept], (y * slope)[kept], rtol=1e-5)
        assert 0.2 < kept.mean() < 0.9
    else:
        np.testing.assert_allclose(
            g, np.where(x == 0, 0, y * y / np.where(x == 0, 1, x)), rtol=1e-4, atol=1e-6
        )


def test_a_compiled_step_makes_each_mask_once() -> None:
    """Backward loads it, a byte an element, since that is cheaper than the rounds."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 4))
    x, y = tg.randn(128, 64), tg.randint(0, 4, (128,))
    opt = tg.optim.SGD(model.parameters(), lr=0.1)

    def step() -> Any:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    lowered = tg.compile(step).lower()
    assert lowered.as_text("optimized").count(" philox ") == 1
    loops = lowered.as_text("loops")
    assert len([line for line in loops.splitlines() if "kernel" in line and "philox" in line]) == 1
    assert re.search(r"arena \w+: bool\[", loops)


def test_second_derivatives_and_saved_graphs() -> None:
    x = tg.randn(50).requires_grad_()
    y = F.dropout(x**3, 0.5)
    F.dropout(x, 0.5)  # a later draw does not change what was saved
    (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), x)
    factor = a(y) / a(x) ** 3
    np.testing.assert_allclose(a(g), factor * 3 * a(x) ** 2, rtol=1e-5)
    np.testing.assert_allclose(a(h), factor * 6 * a(x), rtol=1e-5)


def test_a_mask_is_kept_apart_from_native_steps_in_between() -> None:
    x = tg.ones(100, requires_grad=True)
    y = F.dropout(x, 0.5)
    tg.compile(lambda: F.dropout(tg.ones(3), 0.5))()
    y.sum().backward()
    np.testing.assert_array_equal(a(x.grad), a(y))


def test_training_flags_are_guarded() -> None:
    layer = nn.Dropout(0.5)
    f = tg.compile(lambda x: layer(x))
    x = tg.ones(200)
    assert (a(f(x)) == 0).any()
    layer.eval()
    np.testing.assert_array_equal(a(f(x)), 1)
    layer.train()
    assert (a(f(x)) == 0).any()


def test_edge_cases() -> None:
    x = tg.tensor([1.0, float("nan"), -2.0])
    assert F.dropout(x, 0.0) is x and F.dropout(x, 0.5, training=False) is x
    np.testing.assert_array_equal(a(F.dropout(x, 1.0)), [0, np.nan, -0.0])
    y = tg.ones(100)
    assert F.dropout(y, 0.5, inplace=True) is y and set(a(y).tolist()) == {0.0, 2.0}
    channels = a(F.dropout1d(tg.ones(3, 8, 5), 0.5))
    assert (channels == channels[:, :, :1]).all() and len(np.unique(channels)) == 2
    assert tuple(F.dropout3d(tg.ones(8, 2, 2, 2)).shape) == (8, 2, 2, 2)
    assert tuple(F.dropout(tg.ones(0, 3)).shape) == (0, 3)
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(tg.TracegradError, match="probability"):
            F.dropout(x, p)
        with pytest.raises(ValueError, match="probability"):
            nn.Dropout(p)
    with pytest.raises(tg.TracegradError, match=r"dropout1d.*f32\[3\]"):
        F.dropout1d(x)
    with pytest.raises(tg.TracegradError, match="floating-point"):
        F.dropout(tg.ones(3, dtype=tg.int64))
    assert repr(nn.Dropout2d(0.25, True)) == "Dropout2d(p=0.25, inplace=True)"


# --- transformations and control flow -----------------------------------------------------------------------


def test_vmap_asks_what_random_means() -> None:
    x = tg.ones(4, 40)
    with pytest.raises(TraceError, match="randomness"):
        tg.func.vmap(lambda r: F.dropout(r, 0.5))(x)
    same = a(tg.func.vmap(lambda r: F.dropout(r, 0.5), randomness="same")(x))
    assert (same == same[0]).all()
    apart = a(tg.func.vmap(lambda r: F.dropout(r, 0.5), randomness="different")(x))
    assert len({r.tobytes() for r in apart}) == 4
    numbers = a(tg.func.vmap(lambda r: r.sum() + tg.rand(3), randomness="different")(x))
    assert len({r.tobytes() for r in numbers}) == 4


def test_func_grad_draws_the_same_mask() -> None:
    x = tg.randn(30)
    tg.manual_seed(2)
    g = tg.func.grad(lambda x: F.dropout(x, 0.5).sum())(x)
    tg.manual_seed(2)
    np.testing.assert_array_equal(a(g), a(F.dropout(tg.ones(30), 0.5)))


def test_scans_draw_anew_in_every_iteration() -> None:
    def body(c: Any, x: Any) -> Any:
        y = F.dropout(c + x, 0.5)
        return y, y

    c, xs = tg.ones(40), tg.ones(3, 40)
    tg.manual_seed(6)
    wanted = c
    for x in xs:
        wanted = F.dropout(wanted + x, 0.5)
    for run in (tg.scan, tg.compile(lambda *args: tg.scan(body, *args))):
        tg.manual_seed(6)
        args = (body, c, xs) if run is tg.scan else (c, xs)
        np.testing.assert_array_equal(a(run(*args)[0]), a(wanted))
    assert tg.default_generator.philox.tolist() == [6, 3]


# --- against PyTorch ----------------------------------------------------------------------------------------
@pytest.mark.peer
def test_layers_look_like_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    for name in (
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "AlphaDropout",
        "FeatureAlphaDropout",
        "RReLU",
    ):
        assert repr(getattr(nn, name)()) == repr(getattr(torch.nn, name)())
    for name in ("dropout", "dropout1d", "alpha_dropout", "feature_alpha_dropout", "rrelu"):
        made = []
        for lib in (tg, torch):
            y = getattr(lib.nn.functional, name)(lib.ones(2, 3, 4, requires_grad=True), training=True)
            made.append(y.grad_fn.name())
        assert made[0] == made[1]
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    np.testing.assert_allclose(a(F.rrelu(tg.tensor(x))), torch.nn.functional.rrelu(torch.tensor(x)).numpy())
