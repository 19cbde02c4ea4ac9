"""Compiled functions as CUDA: training steps of the examples, gradients of gradients and control flow agree
with the CPU's under emulation; export as a program; what is said where there is no GPU; and, where there
is one, the same on it."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from cuda_tools import compared, near
from tracegrad import nn, optim
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc
from tracegrad.backends.cuda.emulate import build, emulate
from tracegrad.ir.errors import DTypeError, TraceError
from tracegrad.runtime.cuda_lowered import CudaLowered

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
needs_nvcc = pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")
needs_gpu = pytest.mark.skipif(not tg.cuda.is_available(), reason=f"no GPU: {tg.cuda.why_not()}")

#: words of a short run, what it needs, and which of its programs are looked at
SCRIPTS = {
    "digits_convnet": ("--epochs 1", "sklearn"),
    "sine_lstm": ("--steps 3", ""), "char_gpt": ("--steps 2", ""),
    "vae": ("--epochs 1", "sklearn"), "gan": ("--steps 2", ""), "graph_attention": ("", ""),
    "reinforce": ("--batches 2", ""), "gradient_penalty": ("--steps 2", ""), "wide_net": ("", ""),
    "two_layer_net": ("", ""), "modules_and_adam": ("", ""), "rosenbrock": ("", ""),
}  # fmt: skip


def test_every_example_with_a_step_is_here() -> None:
    assert {p.stem for p in EXAMPLES.glob("*.py")} - SCRIPTS.keys() <= {"autograd_walk"}


@needs_gxx
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_steps(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each compiled program of an example that updates something, at its first run."""
    words, needs = SCRIPTS[name]
    if needs:
        pytest.importorskip(needs)
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    monkeypatch.chdir(tmp_path)
    with compared(most=2) as done, contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert done.names
    if nvcc.available():
        nvcc.check(done.units[0], nvcc.ARCHITECTURES[len(name) % 3])


# --- gradients of gradients, control flow -------------------------------------------------------------------


def hessian_vector(x: tg.Tensor, v: tg.Tensor) -> tg.Tensor:
    x = x.detach().requires_grad_()
    y = (tg.tanh(x @ x.T).sum(dim=1).softmax(dim=0) * x.exp().mean(dim=1)).sum()
    (g,) = tg.autograd.grad(y, x, create_graph=True)
    (h,) = tg.autograd.grad((g * v).sum(), x)
    return h


def scanned(x: tg.Tensor, w: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
    w = w.detach().requires_grad_()

    def turn(h: tg.Tensor, row: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        h = tg.tanh(row + h @ w)
        return h, h.sum()

    h, sums = tg.scan(turn, tg.zeros(4), x)
    (g,) = tg.autograd.grad((h * h).sum() + sums.sum(), w)
    return g, sums


def looped(x: tg.Tensor) -> tg.Tensor:
    return tg.while_loop(
        lambda v, n: (v.norm() > 0.5) & (n < 20), lambda v, n: (v * 0.7, n + 1), (x, tg.tensor(0))
    )[0]


def branched(x: tg.Tensor) -> tg.Tensor:
    return tg.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v - 1, (x,))


def selected(x: tg.Tensor) -> tuple[tg.Tensor, ...]:
    values, places = x.sort(dim=1)
    return (
        values.cumsum(dim=0),
        places,
        x.topk(3, dim=1)[0],
        (x > 0).sum(dim=0),
        x.argmax(dim=1),
        x[x.argsort(0)[:, 0]],
    )


CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "second order": (hessian_vector, [(12, 5), (12, 5)]),
    "scan": (scanned, [(7, 4), (4, 4)]),
    "while": (looped, [(3, 3)]),
    "cond": (branched, [(40,)]),
    "sorting": (selected, [(9, 17)]),
}


@needs_gxx
@pytest.mark.parametrize("name", CASES)
def test_functions(name: str) -> None:
    fn, shapes = CASES[name]
    tg.manual_seed(1)
    with compared(updating=False, checked=True) as done:
        tg.compile(fn)(*[tg.randn(*s) for s in shapes])
    assert done.names == [fn.__name__]
    if nvcc.available():
        nvcc.check(done.units[0])


@needs_gxx
def test_dropout_draws_the_same_numbers() -> None:
    tg.manual_seed(3)
    layer = nn.Dropout(0.4)
    with compared(checked=True) as done:
        tg.compile(lambda x: layer(x) * 2, name="dropped")(tg.ones(33, 7))
    assert done.names == ["dropped"]


# --- lowering -----------------------------------------------------------------------------------------------


def training() -> tuple[Any, tg.Tensor, tg.Tensor, Any]:
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = optim.Adam(model.parameters(), lr=1e-2)

    @tg.compile
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step, tg.randn(32, 8), tg.randint(0, 4, (32,)), model


def test_stages_of_a_cuda_lowering() -> None:
    step, x, y, _ = training()
    lowered = step.lower(x, y, backend="cuda")
    assert isinstance(lowered, CudaLowered) and lowered.backend == "cuda"
    assert lowered.as_text("graph") == step.lower(x, y).as_text("graph")
    assert "thread {" in lowered.as_text("loops")
    text = lowered.as_text("cuda")
    assert text == lowered.as_text() == step.lower(x, y).as_text("cuda")
    assert 'extern "C" int run_step(' in text and "loss = nn.functional.cross_entropy(model(x), y)" in text
    with pytest.raises(ValueError, match="no stage 'llvm'; there are graph, optimized, loops, cuda"):
        lowered.as_text("llvm")
    with pytest.raises(TraceError, match="no backend 'tpu'; there are 'llvm' and 'cuda'"):
        step.lower(x, y, backend="tpu")


def test_the_page_shows_the_cuda_stage(tmp_path: Path) -> None:
    step, x, y, _ = training()
    page = step.lower(x, y, backend="cuda").show(tmp_path / "step.html").read_text()
    assert 'data-stage="cuda"' in page and "__global__" in page and 'data-stage="llvm"' not in page


@needs_nvcc
def test_cost_shows_what_each_kernel_takes() -> None:
    step, x, y, _ = training()
    cost = step.lower(x, y, backend="cuda").cost()
    assert len(cost.resources) == len(cost.kernels) > 3
    assert all(r.spills == 0 and r.registers > 0 for r in cost.resources)
    assert f"{cost.kernels[0].name}: {cost.resources[0].registers} registers" in str(cost)


# --- a program of its own -----------------------------------------------------------------------------------


@needs_gxx
def test_an_exported_program_trains_as_the_step_does(tmp_path: Path) -> None:
    """Compiled by g++ under emulation, run as a process, its losses and weights compared."""
    step, x, y, model = training()
    path = tg.export_cuda(step, tmp_path / "train.cu", x, y)
    program = build(path.read_text(), main=True)
    done = subprocess.run([program, "5"], cwd=tmp_path, capture_output=True, text=True, check=True)
    losses = [step(x, y).item() for _ in range(5)]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [int(n) for n, _ in rows] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([float(v) for _, v in rows], losses, rtol=1e-4)
    results = tg.load(tmp_path / "train.results.safetensors")
    near(results["linear1_weight"].numpy(), model[0].weight.detach().numpy(), "weights")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "train.cu", "train.results.safetensors", "train.safetensors",
    ]  # fmt: skip
    # It goes on from its own results, with what they lack from the first file.
    first = tg.load(tmp_path / "train.safetensors")
    tg.save({**first, **results}, tmp_path / "more.safetensors")
    again = subprocess.run(
        [program, "1", "more.safetensors"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    np.testing.assert_allclose(float(again.stdout.split()[1]), step(x, y).item(), rtol=1e-4)


@needs_gxx
def test_an_exported_program_says_what_is_wrong_with_its_file(tmp_path: Path) -> None:
    step, x, y, _ = training()
    program = build(tg.export_cuda(step, tmp_path / "train.cu", x, y).read_text(), main=True)
    good = tg.load(tmp_path / "train.safetensors")
    whole = (tmp_path / "train.safetensors").read_bytes()

    def said(*words: str) -> str:
        done = subprocess.run(
            [program, "1", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and not done.stdout
        return done.stderr.strip()

    assert said("none.safetensors") == "can't read none.safetensors"
    (tmp_path / "text.safetensors").write_text("not one")
    assert said("text.safetensors") == "text.safetensors is no safetensors file"
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    assert said("cut.safetensors") == "cut.safetensors is cut off"
    tg.save({k: v for k, v in good.items() if k != "x"}, tmp_path / "less.safetensors")
    assert said("less.safetensors") == "less.safetensors has no tensor 'x'"
    tg.save({**good, "x": good["x"].double()}, tmp_path / "wide.safetensors")
    assert said("wide.safetensors") == "wide.safetensors: tensor 'x' is not F32[32,8]"
    assert not (tmp_path / "train.results.safetensors").exists()


@needs_nvcc
def test_nvcc_builds_an_exported_program(tmp_path: Path) -> None:
    step, x, y, _ = training()
    path = tg.export_cuda(step, tmp_path / "train.cu", x, y, architecture="sm_75")
    nvcc.compile_program(path.read_text(), tmp_path / "train", "sm_75")
    usage = subprocess.run([tmp_path / "train", "-h"], capture_output=True, text=True, check=True)
    assert "[steps [inputs.safetensors [results.safetensors]]]" in usage.stdout


def test_export_takes_compiled_functions_only(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"tracegrad\.compile made, got function"):
        tg.export_cuda(lambda x: x, tmp_path / "f.cu")


# --- without a GPU ------------------------------------------------------------------------------------------


@pytest.mark.skipif(tg.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_what_is_missing() -> None:
    step, x, y, _ = training()
    missing = tg.cuda.why_not()
    assert missing and tg.cuda.device_count() == 0
    assert tg.cuda.memory_allocated() == tg.cuda.max_memory_allocated() == tg.cuda.memory_reserved() == 0
    for wrong in (
        lambda: x.to("cuda"), lambda: tg.zeros(2, device="cuda"), lambda: tg.rand(2, device="cuda:0"),
        lambda: tg.device("cuda").__enter__(), lambda: x.to(0),
    ):  # fmt: skip
        with pytest.raises((DTypeError, TraceError)) as error:
            wrong()
        assert missing in str(error.value) and "tensors live on 'cpu'" in str(error.value)
    for needs in (tg.cuda.synchronize, tg.cuda.current_device, tg.cuda.mem_get_info, tg.cuda.get_device_name):
        with pytest.raises(tg.cuda.CudaError, match="no GPU can be used"):
            needs()
    with pytest.raises(tg.cuda.CudaError, match="no GPU can be used"):
        step.lower(x, y, backend="cuda").compile()
    tg.cuda.empty_cache()
    tg.cuda.reset_peak_memory_stats()


# --- on a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
def test_a_step_on_the_gpu() -> None:
    """Steps one at a time and as a captured graph, against emulation; and memory given back."""
    step, x, y, _ = training()
    lowered = step.lower(x, y, backend="cuda")
    rng = np.random.default_rng(0)
    arrays = [
        np.asarray(
            rng.integers(0, 4, b.shape) if b.dtype.kind == "i" else rng.uniform(0.1, 1, b.shape)
        ).astype(b.dtype.numpy)
        for b in lowered.loops.inputs
    ]  # fmt: skip
    before = tg.cuda.memory_allocated()
    run = lowered.compile()
    mine, theirs = [a.copy() for a in arrays], [a.copy() for a in arrays]
    got, want = run(mine), emulate(lowered.unit).call(theirs)
    for g, w in zip([*got, *mine], [*want, *theirs]):
        near(g, w, "one step")
    run.upload(arrays)
    run.run(5)
    theirs = [a.copy() for a in arrays]
    want = emulate(lowered.unit).call(theirs, steps=5)
    near(run.download()[0], want[0], "five steps")
    assert run.graph is not None and tg.cuda.memory_allocated() > before
    del run
    tg.cuda.synchronize()
    assert tg.cuda.memory_allocated() == before


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["while", "cond", "scan"])
def test_control_flow_on_the_gpu(name: str) -> None:
    fn, shapes = CASES[name]
    tg.manual_seed(1)
    lowered = tg.compile(fn).lower(*[tg.randn(*s) for s in shapes], backend="cuda")
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.normal(size=b.shape)).astype(b.dtype.numpy) for b in lowered.loops.inputs]
    got = lowered.compile()([a.copy() for a in arrays])
    for g, w in zip(got, emulate(lowered.unit).call([a.copy() for a in arrays])):
        near(g, w, name)


@pytest.mark.gpu
@needs_gpu
def test_out_of_memory_says_how_much() -> None:
    _, total = tg.cuda.mem_get_info()
    big = tg.compile(lambda x: x.reshape(1, -1) + x.reshape(-1, 1), name="big")
    n = int((total * 2 / 4) ** 0.5)
    lowered = big.lower(tg.empty(n), backend="cuda")
    before = tg.cuda.memory_allocated()
    with pytest.raises(
        tg.cuda.OutOfMemoryError, match=r"asked for \d+ bytes, \d+ of \d+ are free.*at its peak"
    ):
        lowered.compile()
    assert tg.cuda.memory_allocated() == before
