"""Training on the emulated device (see test_cuda_device.py): models, optimisers, compiled steps, control
flow, random masks and libraries, held against the CPU."""

from __future__ import annotations

import copy
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
import tracegrad.nn.functional as F
from test_cuda_device import close, emulated_gpu  # noqa: F401 - a fixture for each test
from tracegrad import nn
from tracegrad.backends.cuda import emulate as emulation

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating takes g++")


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.rnn(x)[0][:, -1])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def _convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),  # whose gradient would be rounding errors, of which Adam makes steps
        nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, (16, 6)), "convnet": (_convnet, (6, 1, 8, 8)), "lstm": (Recurrent, (4, 7, 5)),
}  # fmt: skip


def train(name: str, device: str, compiled: bool, steps: int = 4) -> tuple[list[float], nn.Module, Any]:
    make, shape = MODELS[name]
    tg.manual_seed(0)
    model = make().to(device)
    optimizer = tg.optim.Adam(model.parameters(), lr=1e-2)
    schedule = tg.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    x, y = tg.randn(*shape).to(device), tg.randint(0, 3, (shape[0],)).to(device)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    run = tg.compile(step) if compiled else step
    losses = []
    for _ in range(steps):
        losses.append(run(x, y).item())
        schedule.step()
    return losses, model, optimizer


@pytest.mark.parametrize("compiled", [False, True], ids=["lazy", "compiled"])
@pytest.mark.parametrize("name", MODELS)
def test_training_on_a_device_is_training_on_the_cpu(name: str, compiled: bool) -> None:
    want, cpu, _ = train(name, "cpu", compiled)
    got, model, optimizer = train(name, "cuda", compiled)
    close(got, want)
    assert want[-1] < want[0]
    for (key, a), b in zip(model.state_dict().items(), cpu.state_dict().values()):
        assert a.is_cuda and not b.is_cuda, key
        close(a.tolist(), b.tolist())
    state = [t for s in optimizer.state.values() for t in s.values()]
    assert state and all(t.is_cuda for t in state)


def test_weights_go_between_devices_with_their_optimiser(tmp_path: Path) -> None:
    _, model, optimizer = train("mlp", "cuda", True)
    tg.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "w")
    saved = tg.load(tmp_path / "w")
    other = _mlp().to("cuda")
    other.load_state_dict(saved["model"])
    again = tg.optim.Adam(other.parameters(), lr=1e-2)
    again.load_state_dict(saved["optimizer"])
    assert all(p.is_cuda for p in other.parameters())
    assert all(t.is_cuda for s in again.state.values() for t in s.values())
    host = model.cpu()
    assert not any(t.is_cuda for t in host.state_dict().values())
    for a, b in zip(host.state_dict().values(), other.state_dict().values()):
        assert a.tolist() == b.tolist()
    assert host.cuda() is host and next(host.parameters()).is_cuda


def test_repeated_steps_and_captured_graphs() -> None:
    def build(device: str) -> Any:
        tg.manual_seed(1)
        model = nn.Linear(4, 1).to(device)
        optimizer = tg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = tg.randn(8, 4).to(device), tg.randn(8, 1).to(device)

        @tg.compile
        def step() -> Any:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    cpu, gpu = build("cpu"), build("cuda")
    first = gpu().item(), cpu().item()
    losses = gpu.repeat(10)
    assert losses.is_cuda
    close(losses.tolist(), cpu.repeat(10).tolist())
    close(first[0], first[1])
    (spec,) = [s for found in gpu.specializations.values() for s in found if s._placed is not None][-1:]
    loaded = spec._placed.loaded
    assert loaded.graphs  # from the second run with equal addresses on
    for _ in range(3):
        close(gpu().item(), cpu().item())


def test_a_step_on_a_device_is_exported_as_it_is(tmp_path: Path) -> None:
    """The same steps by the program that stands alone, from the same weights."""
    tg.manual_seed(2)
    model = nn.Linear(4, 2).to("cuda")
    optimizer = tg.optim.Adam(model.parameters(), lr=0.1)
    x, y = tg.randn(8, 4).to("cuda"), tg.randn(8, 2).to("cuda")

    @tg.compile
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step(x, y)
    path = tg.export_cuda(step, tmp_path / "train.cu", x, y)
    program = emulation.build(path.read_text(), main=True)
    done = subprocess.run([program, "3"], cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = [float(line.split()[1]) for line in done.stdout.splitlines()]
    close(printed, [step(x, y).item() for _ in range(3)])
    written = tg.load(tmp_path / "train.results.safetensors")
    found = [t for t in written.values() if tuple(t.shape) == (2, 4)]
    assert any(np.allclose(t.tolist(), model.weight.tolist(), rtol=1e-4) for t in found)


def _packed() -> Any:
    x = nn.utils.rnn.pack_padded_sequence(tg.randn(2, 5, 3), tg.tensor([5, 3]), batch_first=True).cuda()
    out, h = nn.GRU(3, 4, batch_first=True).to("cuda")(x)
    assert x.is_cuda and not x.cpu().is_cuda
    return nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0].sum() + h.sum()


def _lbfgs() -> Any:
    w = tg.zeros(3, device="cuda", requires_grad=True)
    optimizer = tg.optim.LBFGS([w])

    def closure() -> Any:
        optimizer.zero_grad()
        loss = ((w - 1) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert abs(w - 1).max() < 1e-4
    return w


def _attention() -> Any:
    mask = nn.Transformer.generate_square_subsequent_mask(5).to("cuda")
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to("cuda")
    y = layer(tg.randn(2, 5, 8).cuda(), src_mask=mask, is_causal=True)
    y.sum().backward()
    assert all(p.grad.is_cuda for p in layer.parameters())
    nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    return y


def _copies() -> Any:
    layer = nn.Linear(3, 2).cuda()
    assert copy.deepcopy(layer).weight.is_cuda
    return pickle.loads(pickle.dumps(layer.weight))


def _transformed() -> Any:
    w, x = tg.randn(3, device="cuda"), tg.randn(5, 3, device="cuda")
    assert tg.func.hessian(lambda w: (w**3).sum())(w).is_cuda
    return tg.func.grad(lambda w: (x @ w).pow(2).sum())(w) + tg.func.vmap(lambda r: r.sum())(x).sum()


@pytest.mark.parametrize("use", [_packed, _lbfgs, _attention, _copies, _transformed])
def test_libraries_on_a_device(use: Callable[[], Any]) -> None:
    got = use()
    assert got.is_cuda and np.isfinite(got.detach().tolist()).all()


def test_what_is_of_the_cpu_in_a_compiled_function() -> None:
    """Numbers, 0-d tensors that are written, tensors that are moved inside, and results on both devices."""
    weight = tg.randn(3, device="cuda")
    count = tg.zeros((), dtype=tg.int64)

    @tg.compile
    def f(x: Any, scale: float) -> Any:
        count.add_(1)
        y = x.to("cuda") * weight * scale
        return y, y.sum().cpu(), x + 1

    for i, scale in enumerate((1.0, 2.0, 3.0)):
        x = tg.full((3,), float(i))
        y, total, moved = f(x, scale)
        assert y.is_cuda and not total.is_cuda and not moved.is_cuda
        close(y.tolist(), i * np.array(weight.tolist()) * scale)
        close(total.item(), sum(y.tolist()))
        assert moved.tolist() == [i + 1] * 3 and count.item() == i + 1


def test_control_flow_on_a_device() -> None:
    def newton(a: Any) -> Any:
        return tg.while_loop(lambda x, i: (i < 20) & ((x * x - a).abs() > 1e-5), lambda x, i: (
            (x + a / x) / 2, i + 1), (a, tg.zeros((), dtype=tg.int64)))[0]  # fmt: skip

    def choice(x: Any) -> Any:
        return tg.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))

    root, choose = tg.compile(newton), tg.compile(choice)
    for value in (2.0, 9.0):
        got = root(tg.tensor(value, device="cuda"))
        assert got.is_cuda
        close(got.item(), value**0.5)
    assert choose(tg.tensor([1.0], device="cuda")).tolist() == [2.0]
    assert choose(tg.tensor([-1.0], device="cuda")).tolist() == [-2.0]


def test_masks_are_drawn_on_the_device_from_its_own_generator() -> None:
    @tg.compile
    def noisy(x: Any) -> Any:
        return F.dropout(x, 0.5), tg.rand(4, device="cuda")

    x = tg.ones(64, device="cuda")
    tg.manual_seed(5)
    a, r = noisy(x)
    b, _ = noisy(x)
    assert a.is_cuda and r.is_cuda and a.tolist() != b.tolist()
    tg.manual_seed(5)
    assert noisy(x)[0].tolist() == a.tolist()
    tg.cuda.manual_seed(5)
    assert noisy(x)[0].tolist() == a.tolist()
    state = tg.cuda.get_rng_state()
    c = noisy(x)[0].tolist()
    tg.cuda.set_rng_state(state)
    assert noisy(x)[0].tolist() == c and tg.cuda.initial_seed() == 5
    tg.manual_seed(5)
    assert F.dropout(tg.ones(64), 0.5).tolist() == a.tolist()  # as on the CPU
