"""Batch, instance and local response normalisation: state, gradients, kernels, and PyTorch's numbers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn

F = nn.functional


def a(t: Any) -> np.ndarray:
    return t.detach().numpy().copy()


def data(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def reference(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(standardised, mean, biased variance), in f64."""
    axes = (0, *range(2, x.ndim))
    wide = x.astype(np.float64)
    mean, var = wide.mean(axes), wide.var(axes)
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return (wide - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + eps), mean, var


@pytest.mark.parametrize("compile_", [False, True])
@pytest.mark.parametrize(("layer", "shape"), [("BatchNorm1d", (8, 3)), ("BatchNorm2d", (4, 3, 5, 2))])
def test_statistics_move_in_place(layer: str, shape: tuple[int, ...], compile_: bool) -> None:
    m = getattr(nn, layer)(3, momentum=0.3)
    where = m.running_mean
    step = tg.compile(m) if compile_ else m
    mean, var = np.zeros(3), np.ones(3)
    for i in range(4):
        x = data(shape, i)
        wanted, batch_mean, batch_var = reference(x, 1e-5)
        y = step(tg.tensor(x))
        np.testing.assert_allclose(a(y), wanted, rtol=1e-4, atol=1e-5)
        n = x.size // 3
        mean = 0.7 * mean + 0.3 * batch_mean
        var = 0.7 * var + 0.3 * batch_var * n / (n - 1)
    assert m.running_mean is where and m.num_batches_tracked.item() == 4
    np.testing.assert_allclose(a(m.running_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(a(m.running_var), var, rtol=1e-5)
    m.eval()
    x = data(shape, 9)
    per_channel = (1, -1, *(1 for _ in shape[2:]))
    wanted = (x - mean.reshape(per_channel)) / np.sqrt(var.reshape(per_channel) + 1e-5)
    np.testing.assert_allclose(a(step(tg.tensor(x))), wanted, rtol=1e-4, atol=1e-5)
    assert m.num_batches_tracked.item() == 4


def test_cumulative_average_and_repeat() -> None:
    """momentum=None averages all batches; native repetition moves the state at every step."""
    m = nn.BatchNorm1d(3, momentum=None)
    x = tg.tensor(data((16, 3)))
    step = tg.compile(lambda: m(x + m.num_batches_tracked).sum())
    step.repeat(3)
    # The count is read before the layer moves it, so the batches' means are mean(x) + 0, 1, 2.
    np.testing.assert_allclose(a(m.running_mean), a(x).mean(0) + 1, rtol=1e-5)
    assert m.num_batches_tracked.item() == 3


def test_a_training_forward_is_one_kernel() -> None:
    """Statistics, normalisation, what follows, and the running averages: one loop nest over the channels, in
    which each channel is read for the mean, the variance and the result."""
    m = nn.BatchNorm2d(64)
    x = tg.zeros(32, 64, 28, 28)
    text = tg.compile(lambda x: F.relu(m(x))).lower(x).as_text("loops")
    kernels = [k for k in re.findall(r'kernel "[^"]*" "([^"]*)"', text) if "relu" in k or "sum" in k]
    assert len(kernels) == 1 and "relu" in kernels[0]
    assert "arena" not in text.split("kernel")[0].replace("arena_bytes", "")


def test_backward_reads_the_saved_statistics() -> None:
    m = nn.BatchNorm1d(4)
    x = tg.tensor(data((6, 4)), requires_grad=True)
    graph = tg.trace(lambda x: tg.autograd.grad((m(x) ** 2).sum(), x)[0])(x)
    sums = [n for n in graph.nodes if n.phase == "backward" and n.op.name in ("sum", "mean")]
    forward = next(n for n in graph.nodes if n.op.name == "batch_norm")
    read = {v for n in graph.nodes if n.phase == "backward" for v in n.operands}
    assert set(forward.results[1:]) <= read
    assert all(n.operands[0] is not forward.operands[0] for n in sums)


def test_gradients_against_differences() -> None:
    x = tg.tensor(data((5, 2, 3)).astype(np.float64), requires_grad=True)
    w, b = (tg.tensor(data((2,), s).astype(np.float64), requires_grad=True) for s in (1, 2))
    weights = tg.tensor(data((5, 2, 3), 3).astype(np.float64))

    def loss(x: Any, w: Any, b: Any) -> Any:
        return (F.batch_norm(x, None, None, w, b, training=True) * weights).pow(3).sum()

    grads = tg.autograd.grad(loss(x, w, b), (x, w, b), create_graph=True)
    second = tg.autograd.grad((grads[0] ** 2).sum(), (x, w))
    h = 1e-5
    for k, t in enumerate((x, w, b)):
        d = tg.tensor(data(tuple(t.shape), 7).astype(np.float64))
        moved = [[s + sign * h * d if s is t else s for s in (x, w, b)] for sign in (1, -1)]
        slope = (loss(*moved[0]) - loss(*moved[1])).item() / (2 * h)
        assert (grads[k] * d).sum().item() == pytest.approx(slope, rel=1e-5)
        if k < 2:

            def norm(args: Any) -> float:
                return (tg.autograd.grad(loss(*args), args[0])[0] ** 2).sum().item()

            slope = (norm(moved[0]) - norm(moved[1])) / (2 * h)
            assert (second[k] * d).sum().item() == pytest.approx(slope, rel=1e-4)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm2d: expected an input of 4 dimensions, got f32\[2,3\]"):
        nn.BatchNorm2d(3)(tg.ones(2, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(3)(tg.ones(1, 3))
    with pytest.raises(ValueError, match=r"running_mean must have shape \[4\]"):
        nn.BatchNorm1d(3)(tg.ones(2, 4))
    with pytest.raises(ValueError, match="running_mean and running_var"):
        F.batch_norm(tg.ones(2, 3), None, None)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        F.instance_norm(tg.ones(2, 3, 1))
    with pytest.raises(ValueError, match="expected 3 channels"):
        nn.InstanceNorm1d(3, affine=True)(tg.ones(2, 4, 5))
    with pytest.raises(ValueError, match="at least 3 dimensions"):
        F.local_response_norm(tg.ones(2, 3), 2)


def test_states_without_counts_load() -> None:
    m = nn.BatchNorm1d(2)
    m.load_state_dict({k: t for k, t in m.state_dict().items() if k != "num_batches_tracked"})
    m.num_batches_tracked.add_(5)
    m.reset_running_stats()
    assert m.num_batches_tracked.item() == 0


# --- against PyTorch ----------------------------------------------------------------------------------------

SHAPES = {
    "BatchNorm1d": [(8, 3), (4, 3, 5)],
    "BatchNorm2d": [(4, 3, 5, 2)],
    "BatchNorm3d": [(2, 3, 2, 2, 2)],
    "InstanceNorm1d": [(4, 3, 5), (3, 6)],
    "InstanceNorm2d": [(4, 3, 5, 2)],
    "InstanceNorm3d": [(2, 3, 2, 2, 2)],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False},
    {"affine": True, "track_running_stats": True},
    {"affine": True, "bias": False},
    {"track_running_stats": False, "eps": 1e-3},
]


def run(lib: Any, layer: str, shape: tuple[int, ...], options: dict[str, Any], compile_: bool = False) -> Any:
    channels = shape[0] if len(shape) == 2 and layer == "InstanceNorm1d" else shape[1]
    m = getattr(lib.nn, layer)(channels, **options)
    with lib.no_grad():
        for k, p in enumerate(m.parameters()):
            p.copy_(lib.tensor(data((channels,), 50 + k)))

    def step(x: Any) -> Any:
        y = m(x)
        (y * y * y).sum().backward()
        return y

    native = tg.compile(step, keep_grads=True) if compile_ else step
    out = []
    for i in range(3):
        x = lib.tensor(data(shape, i), requires_grad=True)
        y = native(x)
        out += [a(t) for t in (y, x.grad, *(p.grad for p in m.parameters()), *m.buffers())]
    m.eval()
    x = lib.tensor(data(shape, 9), requires_grad=True)
    y = m(x)
    y.pow(2).sum().backward()
    return [*out, a(y), a(x.grad)], repr(m), list(m.state_dict()), y.grad_fn.name()


@pytest.mark.peer
@pytest.mark.parametrize("layer", SHAPES)
def test_layers_like_pytorch(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRACEGRAD_LAZY", "interpret")
    for shape in SHAPES[layer]:
        for options in OPTIONS:
            if layer[0] == "I" and "momentum" in options:
                continue
            wanted = run(torch, layer, shape, options)
            for compile_ in (False, True) if options in OPTIONS[:2] and layer[-2:] != "3d" else (False,):
                got = run(tg, layer, shape, options, compile_)
                assert got[1:3] == wanted[1:3]
                assert compile_ or got[3] == wanted[3]
                for i, (x, y) in enumerate(zip(got[0], wanted[0], strict=True)):
                    assert x.dtype == y.dtype and x.shape == y.shape
                    np.testing.assert_allclose(x, y, rtol=3e-4, atol=3e-4, err_msg=f"{shape} {options} {i}")


@pytest.mark.peer
def test_local_response_norm_like_pytorch() -> None:
    torch = pytest.importorskip("torch")
    for shape in ((2, 7, 5), (2, 7, 3, 2)):
        for size in (1, 2, 5, 9):
            made = []
            for lib in (tg, torch):
                x = lib.tensor(data(shape), requires_grad=True)
                y = lib.nn.LocalResponseNorm(size, alpha=0.1, beta=0.6, k=2.0)(x)
                (y * y).sum().backward()
                made.append((a(y), a(x.grad)))
            for mine, theirs in zip(*made):
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
