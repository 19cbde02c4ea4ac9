"""Tensors with `device="cuda"`, on the emulated device: the same driver calls, memory pool, copies and
captured graphs as on a GPU, with kernels that g++ builds (runtime/cuda_emulated.py). What is computed there
is held against the CPU."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.ir.errors import DeviceError, TraceError, TracegradError
from tracegrad.runtime import cuda_driver as low
from tracegrad.runtime.cuda_memory import pool
from tracegrad.runtime.cuda_streams import stream
from tracegrad.tracer import generator

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating takes g++")


@pytest.fixture(autouse=True)
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An emulated GPU instead of whatever is here; its generators must not outlive it."""
    from tracegrad.runtime.cuda_emulated import emulated

    monkeypatch.setattr(generator, "_ON_DEVICES", {})
    with emulated():
        yield


def close(got: Any, want: Any, rtol: float = 1e-4) -> None:
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(initial=0.0), 1e-6))


# --- tensors ------------------------------------------------------------------------------------------------


def test_tensors_know_where_they_are() -> None:
    x = tg.randn(4, 3)
    y = x.to("cuda")
    assert y.device == tg.device("cuda", 0) and y.is_cuda and y.get_device() == 0
    assert x.device == tg.device("cpu") and not x.is_cuda and x.get_device() == -1
    assert y.to("cuda:0") is y and y.cuda() is y and x.cpu() is x and x.to(0).is_cuda
    assert "device='cuda:0'" in repr(y) and "device" not in repr(x)
    np.testing.assert_array_equal(y.cpu().numpy(), x.numpy())
    assert y.tolist() == x.tolist() and y[0, 0].item() == x[0, 0].item() and float(y.sum()) == float(x.sum())
    for z in (y + 1, y.T, y[1:], y.clone(), y.detach(), y.double(), y.new_zeros(2), y * tg.tensor(2.0)):
        assert z.device == y.device
    assert x.to(y).is_cuda and not y.to(x).is_cuda and y.to("cpu", tg.float64).dtype is tg.float64
    assert tg.as_tensor(y, device="cpu").device.type == "cpu" and tg.tensor(y).is_cuda


MADE: dict[str, Callable[..., Any]] = {
    "zeros": lambda **k: tg.zeros(2, 3, **k), "ones": lambda **k: tg.ones(3, **k),
    "full": lambda **k: tg.full((2,), 3.0, **k), "tensor": lambda **k: tg.tensor([1, 2], **k),
    "arange": lambda **k: tg.arange(5, **k), "eye": lambda **k: tg.eye(3, **k),
    "linspace": lambda **k: tg.linspace(0, 1, 5, **k), "rand": lambda **k: tg.rand(3, **k),
    "randn": lambda **k: tg.randn(3, 2, **k), "randint": lambda **k: tg.randint(0, 9, (4,), **k),
    "randperm": lambda **k: tg.randperm(6, **k), "normal": lambda **k: tg.normal(0.0, 1.0, (3,), **k),
    "as_tensor": lambda **k: tg.as_tensor([1.0], **k),
    "zeros_like": lambda **k: tg.zeros_like(tg.ones(3), **k),
    "rand_like": lambda **k: tg.rand_like(tg.ones(3), **k),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_creation_on_a_device_gives_what_it_gives_on_the_cpu(name: str) -> None:
    tg.manual_seed(3)
    want = MADE[name]()
    for options in ({"device": "cuda"}, {"device": tg.device("cuda:0")}, {}):
        tg.manual_seed(3)
        with tg.device("cpu" if options else "cuda"):
            got = MADE[name](**options)
        assert got.is_cuda or (not options and name.endswith("_like") and got.is_cuda), options
        assert got.dtype is want.dtype
        np.testing.assert_array_equal(got.cpu().numpy(), want.numpy())
    assert not MADE[name]().is_cuda and tg.empty(3, device="cuda").is_cuda
    assert tg.ones(2, device="cuda", requires_grad=True).is_leaf


def test_writes_in_place_and_views_stay_on_the_device() -> None:
    x, want = tg.arange(12.0, device="cuda").reshape(3, 4), tg.arange(12.0).reshape(3, 4)
    for t in (x, want):
        t[0] = 5
        t[1:, :2].mul_(3)
        t[2] = tg.tensor([1.0, 2.0, 3.0, 4.0])
        t[:, 3].copy_(tg.tensor([7.0, 8.0, 9.0]))
        t[tg.tensor([0, 2])] += 1
        t.T[0].zero_()
    assert x.is_cuda and x[1:].is_cuda
    np.testing.assert_array_equal(x.cpu().numpy(), want.numpy())
    host = tg.zeros(3, 4)
    host.copy_(x)
    np.testing.assert_array_equal(host.numpy(), want.numpy())
    assert not host.is_cuda


def test_parts_and_results_whose_shape_depends_on_values() -> None:
    """Those that lie together are copied at once, others by a kernel; what the CPU finds goes back."""
    want = tg.arange(24.0).reshape(4, 6)
    x = want.to("cuda")
    parts: list[Callable[[Any], Any]] = [
        lambda t: t[1:3], lambda t: t[2], lambda t: t[1, 2:4], lambda t: t[:, 1], lambda t: t[::2],
        lambda t: t[3, 5], lambda t: t[4:], lambda t: t[t > 7], lambda t: t.nonzero(), lambda t: t.unique(),
        lambda t: (t > 3).nonzero(as_tuple=True)[1], lambda t: t.int()[0].bincount(), lambda t: t.argmax(),
    ]  # fmt: skip
    for k, part in enumerate(parts):
        got = part(x)
        assert got.is_cuda, k
        assert got.tolist() == part(want).tolist() and got.dtype is part(want).dtype, k
    x[1:3].zero_()
    assert x.sum().item() == want.sum().item() - want[1:3].sum().item()
    rows = tg.utils.data.TensorDataset(x, x[:, 0])
    batch = next(iter(tg.utils.data.DataLoader(rows, batch_size=2)))
    assert all(t.is_cuda for t in batch) and batch[0].tolist() == x[:2].tolist()


def test_gradients_flow_across_devices() -> None:
    w = tg.randn(3, requires_grad=True)
    (w.to("cuda") ** 2).sum().backward()
    assert w.grad is not None and not w.grad.is_cuda
    close(w.grad.numpy(), 2 * w.detach().numpy())
    v = tg.randn(3, device="cuda", requires_grad=True)
    (v.cpu() ** 3).sum().backward()
    assert v.grad.is_cuda and v.to("cpu").grad_fn.name() == "ToCopyBackward0"
    close(v.grad.tolist(), 3 * np.square(v.tolist()))
    v.grad = None
    v.sum().backward()  # a gradient of ones, that reads nothing of the device
    assert v.grad.is_cuda and v.grad.tolist() == [1, 1, 1]
    (g,) = tg.autograd.grad((v**3).sum(), v, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), v)
    assert h.is_cuda
    close(h.tolist(), 6 * np.array(v.tolist()))


def test_files_of_tensors_on_a_device() -> None:
    file = io.BytesIO()
    x = tg.randn(3, device="cuda")
    tg.save({"x": x}, file)
    for where, cuda in ((None, False), ("cpu", False), ("cuda", True), (tg.device("cuda:0"), True)):
        file.seek(0)
        got = tg.load(file, map_location=where)["x"]
        assert got.is_cuda is cuda and got.tolist() == x.tolist()


# --- errors -------------------------------------------------------------------------------------------------

MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "mul": lambda a, b: a * b, "add_": lambda a, b: a.clone().add_(b), "linear": lambda a, b: F.linear(a, b),
    "cat": lambda a, b: tg.cat([a, b]), "made": lambda a, b: a + tg.zeros(4, 3),
    "where": lambda a, b: tg.where(a > 0, a, b), "reversed": lambda a, b: b - a,
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_a_mismatch_names_both_tensors_and_the_line(name: str) -> None:
    a, b = tg.randn(4, 3, device="cuda"), tg.randn(4, 3)
    for run in (MIXED[name], tg.compile(MIXED[name])):
        if name == "made" and run is not MIXED[name]:
            continue
        with pytest.raises(DeviceError, match="expected all tensors to be on the same device") as e:
            run(a, b)
        said = str(e.value)
        assert "f32[4,3] on cuda:0" in said and "f32[4,3] on cpu" in said and "test_cuda_device.py" in said
    assert (a * 2).is_cuda  # nothing is left behind
    assert (a + tg.tensor(1.0)).is_cuda and a[tg.tensor([0])].shape == (1, 3)  # numbers and indices may


def test_other_errors_of_devices() -> None:
    x = tg.randn(3, device="cuda")
    with pytest.raises(TypeError, match=r"can't convert a tensor of type f32\[3\]@cuda:0 to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="not available here: there are 1 GPUs"):
        x.to("cuda:3")
    with pytest.raises(TraceError, match="unknown device 'tpu'"):
        x.to("tpu")
    with pytest.raises(TracegradError, match=r"f32\[3\]@cuda:0"):
        tg.zeros(3, requires_grad=True).grad = x
    with pytest.raises(tg.cuda.CudaError, match="no GPU number 7: there are 1"):
        tg.cuda.synchronize(7)
    assert F.linear(x, tg.ones(2, 3, device="cuda")).is_cuda


@pytest.mark.parametrize("compiled", [False, True], ids=["lazy", "compiled"])
def test_out_of_memory_leaves_everything_as_it_was(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_LAZY", "compile")
    weight = tg.ones(512, device="cuda")
    x = tg.randn(512, device="cuda")

    def step(x: Any) -> Any:
        weight.add_(x)
        return (x.reshape(-1, 1) * x).exp()

    run = tg.compile(step) if compiled else step
    driver = low.driver()
    values = weight.tolist()
    gc.collect()
    tg.cuda.empty_cache()
    before, total = tg.cuda.memory_allocated(), driver.total
    monkeypatch.setattr(driver, "total", driver.used + 4096)
    message = r"asked for \d+ bytes, \d+ of \d+ are free, \d+ are in use here; the program takes \d+ bytes at"
    with pytest.raises(tg.cuda.OutOfMemoryError, match=message):
        y = run(x)
        y.tolist()
    with pytest.raises(tg.cuda.OutOfMemoryError, match=r"asked for 1048576 bytes"):
        tg.zeros(1 << 18).to("cuda")
    assert weight.tolist() == values
    gc.collect()  # tracebacks are cycles
    assert tg.cuda.memory_allocated() <= before + 4096 * compiled  # what is compiled keeps a copy of `weight`
    monkeypatch.setattr(driver, "total", total)
    assert np.isfinite(run(x).tolist()).all()
    close(weight.tolist(), np.array(values) + np.array(x.tolist()))


def test_an_op_that_cuda_lacks_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracegrad.backends.cuda import emit_expr
    from tracegrad.backends.cuda.emit_names import EmitError

    def refuse(self: Any, name: str, *rest: Any) -> Any:
        if name == "sin":
            raise EmitError("no CUDA function for primitive sin of f32")
        return original(self, name, *rest)

    f = tg.compile(lambda x: (x + 1).sin())
    original = emit_expr.ExprWriter.primitive
    monkeypatch.setattr(emit_expr.ExprWriter, "primitive", refuse)
    with pytest.raises(EmitError, match=r"sin.*test_cuda_device\.py:\d+.*no CUDA function for primitive sin"):
        f(tg.ones(3, device="cuda"))


# --- memory and the device itself ---------------------------------------------------------------------------


def test_memory_is_counted_and_kept_for_the_next() -> None:
    tg.cuda.empty_cache()
    before = tg.cuda.memory_allocated()
    tg.cuda.reset_peak_memory_stats()
    x = tg.empty(1000, device="cuda")
    assert tg.cuda.memory_allocated() == before + 4096
    address = x.data_ptr()
    del x
    assert tg.cuda.memory_allocated() == before and tg.cuda.max_memory_allocated() == before + 4096
    held = tg.cuda.memory_reserved()
    assert held >= before + 4096 and tg.empty(1001, device="cuda").data_ptr() == address
    tg.cuda.empty_cache()
    assert tg.cuda.memory_reserved() < held <= tg.cuda.max_memory_reserved()
    tg.cuda.reset_peak_memory_stats()
    assert tg.cuda.max_memory_allocated() == tg.cuda.memory_allocated()
    free, total = tg.cuda.mem_get_info()
    assert total - free == tg.cuda.memory_reserved() == tg.cuda.memory_stats()["reserved_bytes.all.current"]


def test_what_the_device_says_of_itself() -> None:
    assert tg.cuda.is_available() and tg.cuda.why_not() is None and tg.cuda.device_count() == 1
    assert tg.cuda.current_device() == 0 and "emulated" in tg.cuda.get_device_name()
    assert tg.cuda.get_device_capability("cuda:0") == (8, 0)
    properties = tg.cuda.get_device_properties(tg.device("cuda"))
    assert properties.major == 8 and properties.total_memory == tg.cuda.mem_get_info()[1]
    tg.cuda.set_device(0)
    tg.cuda.synchronize()
    tg.cuda.init()
    with tg.cuda.device(0):
        assert tg.ones(1, device="cuda").device.index == 0
    assert tg.cuda.is_initialized()


def test_the_environment_chooses_the_device(tmp_path: Path) -> None:
    """In processes of their own: emulated, of a given size; off; a typing error; nothing loaded by import."""
    program = (
        "import sys, tracegrad as tg\n"
        "late = ('cuda.bindings', 'runtime.cuda_', 'backends.cuda')\n"
        "loaded = [m for m in sys.modules if any(part in m for part in late)]\n"
        "small = {f'tracegrad.runtime.cuda_{x}' for x in ('driver', 'memory', 'streams')}\n"
        "assert set(loaded) <= small, loaded\n"
        "there = tg.cuda.is_available()\n"
        "print(there, tg.cuda.why_not(), there and tg.cuda.mem_get_info()[1])\n"
    )
    for mode, said in (
        ("emulate", "True None 65536"),
        ("off", "False TRACEGRAD_CUDA=off"),
        ("x", "False TRACEGRAD_CUDA must"),
    ):
        env = {**os.environ, "TRACEGRAD_CUDA": mode, "TRACEGRAD_CUDA_MEMORY": "65536"}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(said)


def test_the_emulated_driver_refuses_what_a_gpu_would() -> None:
    d = low.driver()
    queue = stream()
    block = pool().take(1024)
    host = np.zeros(512, np.float32)
    with pytest.raises(tg.cuda.CudaError, match="illegal address"):
        queue.upload(block.ptr, host.ctypes.data, 2048)
    with pytest.raises(tg.cuda.CudaError, match="illegal address"):
        queue.download(host.ctypes.data, block.ptr + 1020, 8)
    queue.begin_capture()
    try:
        with pytest.raises(tg.cuda.CudaError, match="capture"):
            queue.upload(block.ptr, host.ctypes.data, 64)
        with pytest.raises(tg.cuda.CudaError, match="capture"):
            queue.synchronize()
    finally:
        queue.end_capture()
    assert d.cuMemFree(12345)[0] != d.CUresult.CUDA_SUCCESS and d.cuMemAlloc(0)[0] != d.CUresult.CUDA_SUCCESS
    with pytest.raises(tg.cuda.CudaError, match="cuDeviceGet"):
        low.call("cuDeviceGet", 4)
