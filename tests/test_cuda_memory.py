"""Memory and order of a GPU's work, on the emulated device (see test_cuda_device.py): pinned memory and
copies that run beside the program, streams and events, what is counted of memory, several devices, graphs
that are captured and dropped, processes that are forked."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from test_cuda_device import close, emulated_gpu  # noqa: F401 - a fixture for each test
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.ir.errors import DeviceError
from tracegrad.runtime import cuda_buffers, cuda_driver, cuda_memory
from tracegrad.runtime.cuda_emulated import emulated
from tracegrad.runtime.cuda_program import _GRAPHS, LoadedProgram, kernel_times
from tracegrad.runtime.cuda_streams import stream
from tracegrad.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.skipif(not emulation.available(), reason="emulating takes g++")

# --- pinned memory and copies -------------------------------------------------------------------------------


def test_pinned_memory_holds_what_was_there() -> None:
    made = (tg.randn(3, 4), tg.tensor(2.5), tg.arange(5), tg.ones(2, 0), tg.ones(3).bool())
    for x in (*made, tg.ones(3).bfloat16()):
        p = x.pin_memory()
        assert not x.is_pinned() and p.is_pinned() and p.pin_memory() is p and p.dtype is x.dtype
        assert p.tolist() == x.tolist() == p.clone().tolist() and p.shape == x.shape and p.is_cpu
        assert p.to("cuda").tolist() == x.tolist() and p.cuda(non_blocking=True).tolist() == x.tolist()
    y = tg.zeros(3, pin_memory=True)
    assert y.is_pinned() and (y + 1).tolist() == [1, 1, 1] and tg.empty(4, pin_memory=True).is_pinned()
    assert y.numpy().sum() == 0 and tg.ones(2, device="cuda").is_cpu is False
    with pytest.raises(TypeError, match=r"only memory of the CPU.*a tensor of f32\[3\]@cuda:0"):
        tg.ones(3, device="cuda").pin_memory()


def test_loaders_and_libraries_pin() -> None:
    loader = DataLoader(TensorDataset(tg.randn(6, 2), tg.arange(6)), batch_size=3, pin_memory=True)
    for x, y in loader:
        assert x.is_pinned() and y.is_pinned()
        assert x.to("cuda", non_blocking=True).tolist() == x.tolist()
    named = DataLoader([{"a": tg.ones(2), "b": ("s", 3)}] * 2, batch_size=2, pin_memory=True)
    (batch,) = named
    assert batch["a"].is_pinned() and batch["b"][0] == ("s", "s") and batch["b"][1].is_pinned()
    packed = tg.nn.utils.rnn.pack_sequence([tg.ones(3, 1), tg.ones(2, 1)])
    assert packed.pin_memory().is_pinned() and not packed.is_pinned()


def test_a_plain_upload_has_read_its_source_when_it_returns() -> None:
    """Also of large arrays, which are not staged; the device does its work later."""
    for n in (10, cuda_buffers._STAGED // 4 + 1):
        a = np.ones(n, np.float32)
        x = tg.from_numpy(a)
        y, z = x.to("cuda"), x.pin_memory().to("cuda")
        a[:] = 5
        del x
        gc.collect()
        assert float(y.sum()) == n == float(z.sum())


def test_what_is_pinned_is_read_by_the_device_itself() -> None:
    """What `non_blocking` promises not to change, changed: the device reads it when it gets there."""
    p = tg.ones(100).pin_memory()
    y = p.to("cuda", non_blocking=True)
    p.numpy()[:] = 3
    assert y.tolist() == [3] * 100
    block = cuda_memory.pinned_block(p._buffer().array)
    assert block is not None and list(block.busy) == [0]


def test_pinned_memory_is_handed_out_again_when_copies_are_done() -> None:
    pool = cuda_memory.host_pool()
    p = tg.ones(1 << 18).pin_memory()
    address = p.data_ptr()
    y = p.to("cuda", non_blocking=True)
    del p
    q = tg.zeros(1 << 18).pin_memory()
    assert q.data_ptr() != address  # the device has not read it yet
    assert float(y.sum()) == 1 << 18
    assert tg.zeros(1 << 18).pin_memory().data_ptr() == address
    before = pool.reserved
    tg.cuda.empty_cache()
    assert pool.reserved <= before - (1 << 20)
    assert address not in cuda_driver.driver().pinned and q.data_ptr() in cuda_driver.driver().pinned


def test_a_download_that_is_not_waited_for_arrives_before_it_is_read() -> None:
    x = tg.arange(1000.0, device="cuda") * 2
    driver = cuda_driver.driver()
    tg.cuda.synchronize()
    y = x.to("cpu", non_blocking=True)
    assert not y.is_cuda and any(s.queue for s in driver.streams)  # not copied yet
    x.zero_()
    assert y[3].item() == 6 and y.sum().item() == 999000
    z = (x + 1).to("cpu", non_blocking=True)
    assert (
        (z * 2).sum().item() == 2000
        and z.numpy()[5] == 1
        and tg.tensor(3.0, device="cuda").to("cpu", non_blocking=True).item() == 3
    )


# --- streams and events -------------------------------------------------------------------------------------


def test_streams_and_events() -> None:
    main, side = tg.cuda.current_stream(), tg.cuda.Stream(priority=-1)
    assert main.device == tg.device("cuda", 0) == side.device
    assert isinstance(tg.cuda.default_stream().cuda_stream, int)
    assert main.__cuda_stream__() == (0, main.cuda_stream)
    start, end = tg.cuda.Event(enable_timing=True), tg.cuda.Event(enable_timing=True)
    assert end.query()
    x = tg.ones(64, 64, device="cuda")
    start.record()
    with tg.cuda.stream(side):
        assert tg.cuda.current_stream() is side
        side.wait_stream(main)
        y = x @ x
        mark = side.record_event()
    assert tg.cuda.current_stream() is not side
    main.wait_event(mark)
    mark.wait()
    end.record(main)
    assert not end.query() and not main.query()
    with pytest.raises(tg.cuda.CudaError, match="work before the events is not done"):
        start.elapsed_time(end)
    end.synchronize()
    assert end.query() and start.query() and 0 < start.elapsed_time(end) < 60_000
    y.record_stream(side)
    side.synchronize()
    assert main.query() and y[0, 0].item() == 64
    with side as inside, tg.cuda.StreamContext(None):
        assert tg.cuda.current_stream() is inside is side
    tg.cuda.set_stream(side)
    tg.cuda.set_stream(None)
    assert tg.cuda.current_stream() is side
    tg.cuda.set_stream(main)
    assert "cuda:0" in repr(main) and "uninitialized" in repr(tg.cuda.Event())
    with pytest.raises(tg.cuda.CudaError, match="enable_timing=True"):
        start.elapsed_time(mark)
    with pytest.raises(tg.cuda.CudaError, match="must be recorded first"):
        start.elapsed_time(tg.cuda.Event(enable_timing=True))
    with pytest.raises(TypeError, match=r"Stream\(\) takes device and priority, not color"):
        tg.cuda.Stream(color=3)


def test_synchronize_runs_what_is_pending() -> None:
    runs: list[Any] = []
    x = tg.ones(8, device="cuda")
    for _ in range(3):
        y = x * 3 + 1
        tg.cuda.synchronize()
        runs.append(y._value().buffer)
    assert all(b is not None for b in runs)


def test_events_time_what_was_recorded_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that the work moves."""
    driver = cuda_driver.driver()
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    original = type(driver)._give

    def give(self: Any, s: Any, work: Any) -> Any:
        def slower() -> Any:
            now[0] += 0.25
            return work()

        return original(self, s, slower)

    monkeypatch.setattr(type(driver), "_give", give)
    start, end = (tg.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    stream().copy(cuda_memory.pool().take(8).ptr, cuda_memory.pool().take(8).ptr, 8)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) == 500.0  # the copy, and the event itself


def test_kernels_are_timed() -> None:
    x = tg.ones(32, device="cuda")

    def timed(x: Any) -> Any:
        return x.exp().sum() * x

    step = tg.compile(timed)
    for _ in range(3):
        want = step(x).tolist()
    with kernel_times() as times:
        assert step(x).tolist() == want and not times
        step(x)
    assert len(times) >= 2 and all(us >= 0 for _, us in times) and len(times) % 2 == 0
    assert any("exp" in k.comment for k, _ in times)
    close(step(x).tolist(), want)


# --- what is counted ----------------------------------------------------------------------------------------


def test_memory_is_counted_as_it_was_asked_for() -> None:
    tg.cuda.empty_cache()
    tg.cuda.reset_accumulated_memory_stats()
    before = tg.cuda.memory_stats()
    x = tg.empty(100, device="cuda")
    stats = tg.cuda.memory_stats("cuda:0")
    for key, more in (
        ("requested_bytes.all.current", 400), ("allocated_bytes.all.current", 512),
        ("allocation.all.current", 1), ("allocation.all.allocated", 1), ("num_device_alloc", 1),
    ):  # fmt: skip
        assert stats[key] - before[key] == more, key
    del x
    assert tg.cuda.memory_stats()["allocation.all.freed"] == before["allocation.all.freed"] + 1
    tg.cuda.reset_max_memory_allocated()
    said = tg.cuda.memory_summary()
    assert "memory of GPU 0" in said and "in use" in said and "out of memory" in said and "pinned" in said
    assert len(tg.cuda.memory_summary(abbreviated=True)) < len(said)
    assert tg.cuda.is_bf16_supported(False) and "sm_80" in tg.cuda.get_arch_list()
    assert tg.cuda.get_device_properties().L2_cache_size > 0
    with tg.cuda.device_of(tg.ones(1, device="cuda")):
        assert tg.cuda.current_device() == 0


def test_out_of_memory_is_counted_after_idle_memory_was_given_back(monkeypatch: Any) -> None:
    tg.cuda.empty_cache()
    driver = cuda_driver.driver()
    kept = tg.empty(1 << 20, device="cuda")
    del kept  # idle, not the driver's
    before = tg.cuda.memory_stats()
    monkeypatch.setattr(driver, "total", driver.used + 4096)
    x = tg.empty(1 << 19, device="cuda")  # of another size than what is idle
    with pytest.raises(tg.cuda.OutOfMemoryError, match="asked for 8388608 bytes"):
        tg.empty(1 << 21, device="cuda")
    stats = tg.cuda.memory_stats()
    assert stats["num_alloc_retries"] - before["num_alloc_retries"] == 2
    assert stats["num_ooms"] - before["num_ooms"] == 1 and x.numel() == 1 << 19


# --- graphs -------------------------------------------------------------------------------------------------


def test_graphs_are_not_captured_for_addresses_that_keep_changing() -> None:
    def step_of_many(x: Any) -> Any:
        return x * 2 + 1

    step = tg.compile(step_of_many)
    held = [tg.ones(4, device="cuda") * i for i in range(40)]
    for t in held:
        t.tolist()
    step(held[0])
    (loaded,) = [
        o for o in gc.get_objects() if isinstance(o, LoadedProgram) and o.program.name == "step_of_many"
    ]
    captures = [0]
    original = loaded._captured

    def captured(key: Any) -> Any:
        captures[0] += 1
        return original(key)

    loaded._captured = captured
    arena = cuda_memory.pool().take(loaded.program.arena_bytes)
    out = cuda_memory.pool().take(1024)
    for _ in range(4):  # each address comes back after all the others
        for t in held[:20]:
            loaded.run([t.data_ptr(), out.ptr], arena.ptr)
    assert 0 < captures[0] < 30 and len(loaded.graphs) <= _GRAPHS and loaded.often > 1
    many = captures[0]
    for _ in range(80):  # one that stays is worth it
        loaded.run([held[30].data_ptr(), out.ptr], arena.ptr)
    assert captures[0] == many + 1 and max(g.replays for g in loaded.graphs.values()) >= 10


def test_small_inputs_of_the_cpu_are_copied_when_they_change() -> None:
    """A learning rate, say: one place on the device, one graph."""
    x, rate = tg.ones(4).to("cuda"), tg.tensor([0.5, 2.0])
    assert x.tolist() == [1] * 4
    copies = [0]
    driver = cuda_driver.driver()
    original = type(driver).cuMemcpyHtoDAsync

    def copy(self: Any, *args: Any) -> Any:
        copies[0] += 1
        return original(self, *args)

    def scaled(x: Any, r: Any) -> Any:
        return (x * r.sum()).sum()

    step = tg.compile(scaled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(driver), "cuMemcpyHtoDAsync", copy)
        for want in (10.0, 10.0, 10.0):
            assert step(x, rate).item() == want
        assert copies[0] == 1
        for k in range(5):
            rate[0] = k
            assert step(x, rate).item() == 4 * (k + 2)
        assert copies[0] == 6
    (loaded,) = [o for o in gc.get_objects() if isinstance(o, LoadedProgram) and o.program.name == "scaled"]
    assert 1 <= len(loaded.graphs) <= 2


def test_programs_are_unloaded_later_and_not_amid_a_capture() -> None:
    driver = cuda_driver.driver()
    x = tg.ones(4, device="cuda")
    step = tg.compile(lambda x: (x * 7).sin())
    for _ in range(3):
        step(x).tolist()
    queue, loaded = stream(), driver.loaded
    with queue.lock:
        queue.begin_capture()
        del step
        gc.collect()
        queue.copy(x.data_ptr(), x.data_ptr(), 4)
        assert driver.loaded == loaded and queue.retired  # nothing was called
        graph = queue.end_capture()
    queue.retire("cuGraphExecDestroy", graph)
    queue.tidy()
    assert driver.loaded < loaded and not queue.retired


def test_a_capture_that_fails_leaves_the_stream_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = cuda_driver.driver()
    x = tg.ones(4, device="cuda")
    step = tg.compile(lambda x: (x * 5).cos())
    want = step(x).tolist()
    original = type(driver).cuLaunchKernel
    failing = [True]

    def launch(self: Any, *args: Any) -> Any:
        if failing[0] and stream().handle.captured is not None:
            return (driver.CUresult.CUDA_ERROR_LAUNCH_FAILED,)
        return original(self, *args)

    monkeypatch.setattr(type(driver), "cuLaunchKernel", launch)
    with pytest.raises(tg.cuda.CudaError, match=r"kernel \w+ .*test_cuda_memory\.py:\d+.*LAUNCH_FAILED"):
        for _ in range(3):
            y = step(x)
            y.tolist()
            del y
    failing[0] = False
    for _ in range(3):
        close(step(x).tolist(), want)


def test_blocking_launches_name_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a kernel is seen when somebody waits; with the variable set, at once."""
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    driver = cuda_driver.driver()
    x = tg.ones(4, device="cuda")
    step = tg.compile(lambda x: (x * 9).exp())
    step(x)
    original = type(driver)._finish
    monkeypatch.setattr(type(driver), "_finish", lambda self, *s: driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(tg.cuda.CudaError, match=r"kernel \w+ .*test_cuda_memory\.py:\d+.*ILLEGAL_ADDRESS"):
        step(x)
    monkeypatch.setattr(type(driver), "_finish", original)
    assert not [o for o in gc.get_objects() if isinstance(o, LoadedProgram) and o.blocking and o.graphs]


# --- several devices, threads, processes --------------------------------------------------------------------


def test_several_devices() -> None:
    with emulated(devices=2):
        assert tg.cuda.device_count() == 2
        a, b = tg.arange(3.0, device="cuda:0"), tg.ones(3, device="cuda:1")
        assert b.device.index == 1 and a.to("cuda:1").tolist() == [0, 1, 2] and b.to(0).device.index == 0
        assert (a.to(b.device) + b).tolist() == [1, 2, 3]
        for f in (lambda: a + b, lambda: tg.compile(lambda x, y: x * y)(a, b)):
            with pytest.raises(DeviceError, match=r"f32\[3\] on cuda:0 and .* is f32\[3\] on cuda:1") as e:
                f()
            assert "test_cuda_memory.py" in str(e.value)
        with pytest.raises(DeviceError, match=r"a program runs on one GPU, .* are on cuda:0, cuda:1"):
            tg.compile(lambda x, y: (x + 1, y * 2))(a, b)
        x, y = a + 1, b * 2  # two programs in ordinary code
        assert x.tolist() == [1, 2, 3] and y.tolist() == [2, 2, 2]
        with tg.cuda.device(1):
            assert tg.zeros(2, device="cuda").device.index == 1 and tg.cuda.current_stream().device.index == 1
            assert tg.cuda.memory_allocated() and tg.cuda.memory_allocated() == tg.cuda.memory_allocated(1)
        with tg.cuda.device_of(b):
            assert tg.cuda.current_device() == 1
        assert len(tg.cuda.get_rng_state_all()) == 2
        with pytest.raises(tg.cuda.CudaError, match="no GPU number 2: there are 2"):
            tg.cuda.Stream(2)
        w = tg.ones(3, device="cuda:1", requires_grad=True)
        (w.to("cuda:0") * a).sum().backward()
        assert w.grad.device.index == 1 and w.grad.tolist() == [0, 1, 2]


def test_threads_share_a_device() -> None:
    """Each thread needs the context; captures of one must not see the others' work."""
    failures: list[BaseException] = []
    step = tg.compile(lambda x: (x * 2 + 1).sum())

    def work(k: int) -> None:
        try:
            for i in range(6):
                x = tg.full((50,), float(k + i)).to("cuda", non_blocking=True)
                assert step(x).item() == 50 * (2 * (k + i) + 1)
                assert (x.cpu() + 1).sum().item() == 50 * (k + i + 1)
        except BaseException as e:  # shown by the main thread
            failures.append(e)

    threads = [threading.Thread(target=work, args=(10 * k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_says_why_it_has_no_gpu() -> None:
    program = """
import os, tracegrad as tg
x = tg.ones(3, device="cuda")
print(x.tolist(), flush=True)
pid = os.fork()
if pid == 0:
    y = (tg.ones(2) + 1).tolist()
    try:
        x.tolist()
    except tg.cuda.CudaError as e:
        print(y, "spawn" in str(e), tg.cuda.is_available(), flush=True)
    del x
    os._exit(0)
os.waitpid(pid, 0)
print(x.sum().item(), flush=True)
"""
    env = {**os.environ, "TRACEGRAD_CUDA": "emulate"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.splitlines() == ["[1.0, 1.0, 1.0]", "[2.0, 2.0] True False", "3.0"]


def test_a_process_ends_quietly_whatever_it_holds() -> None:
    program = """
import tracegrad as tg
x = tg.ones(3, device="cuda")
f = tg.compile(lambda x: x * 2)
for _ in range(3): y = f(x)
p = tg.ones(4, pin_memory=True)
z = p.to("cuda", non_blocking=True)
e = tg.cuda.Event(); e.record()
late = y.to("cpu", non_blocking=True)
class Holder: pass
h = Holder(); h.self = h; h.all = (x, f, p, z, e, late)
"""
    env = {**os.environ, "TRACEGRAD_CUDA": "emulate"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
