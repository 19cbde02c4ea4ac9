"""The native thread pool: every task once, from any thread, after forks and resizes, and a clean end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import llvmlite.binding as binding
import pytest
from tracegrad.backends.llvm import pool
from tracegrad.backends.llvm.engine import NativeModule, default_engine
from tracegrad.backends.llvm.pool_ir import pool_ir
from tracegrad.backends.llvm.target import CompileError

# task i adds i + 1 to element i; `nested` runs one inner loop per task, over rows of 8.
KERNELS = """
declare void @tg_parallel_for(ptr, ptr, i64)
define internal void @add(ptr %ctx, i64 %i) {
  %at = getelementptr i64, ptr %ctx, i64 %i
  %more = add i64 %i, 1
  %old = atomicrmw add ptr %at, i64 %more monotonic
  ret void
}
define internal void @row(ptr %ctx, i64 %i) {
  %first = mul i64 %i, 8
  %at = getelementptr i64, ptr %ctx, i64 %first
  call void @tg_parallel_for(ptr @add, ptr %at, i64 8)
  ret void
}
define void @flat(ptr %data, i64 %n, i64 %times) {
entry:
  br label %loop
loop:
  %t = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void @tg_parallel_for(ptr @add, ptr %data, i64 %n)
  %next = add i64 %t, 1
  %again = icmp slt i64 %next, %times
  br i1 %again, label %loop, label %exit
exit:
  ret void
}
define void @nested(ptr %data, i64 %rows) {
  call void @tg_parallel_for(ptr @row, ptr %data, i64 %rows)
  ret void
}
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_threads = pytest.mark.skipif(not pool.has_pthreads(), reason="needs POSIX threads")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = pool.get_num_threads()
    yield
    pool.set_num_threads(before)


@pytest.fixture(scope="module")
def kernels() -> NativeModule:
    return default_engine().compile(KERNELS, imports={"tg_parallel_for": pool.parallel_for_address()})


def run_flat(kernels: NativeModule, n: int, times: int) -> None:
    """Runs n tasks `times` times and checks that each ran exactly that often, and nothing beyond them."""
    data = (ctypes.c_int64 * (n + 2))()
    kernels.function("flat", None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(data, n, times)
    assert list(data) == [times * (i + 1) for i in range(n)] + [0, 0]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_task_runs_once(kernels: NativeModule, threads: int) -> None:
    pool.set_num_threads(threads)
    assert pool.get_num_threads() == threads
    for n in (0, 1, 2, 3, 5, 7, 8, 9, 31, 64, 100, 1023, 20_000):
        run_flat(kernels, n, 3)
    run_flat(kernels, 2, 5000)
    run_flat(kernels, 9, 2000)


@needs_threads
def test_workers_follow_the_number_of_threads(kernels: NativeModule) -> None:
    for threads in (4, 1, 2, 6, 2):
        pool.set_num_threads(threads)
        assert pool.num_workers() == 0  # made by the next loop that needs them
        run_flat(kernels, 50, 2)
        assert pool.num_workers() == threads - 1


@needs_threads
def test_tasks_really_run_on_several_threads() -> None:
    pool.set_num_threads(3)
    meeting = threading.Barrier(3)
    seen: set[int] = set()

    def task(_ctx: int, _i: int) -> None:
        meeting.wait(timeout=60)  # passes only if three tasks run at the same time
        seen.add(threading.get_ident())

    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    callback = ctypes.CFUNCTYPE(None, pointer, i64)(task)
    loop = ctypes.CFUNCTYPE(None, pointer, pointer, i64)(pool.parallel_for_address())
    loop(ctypes.cast(callback, ctypes.c_void_p), None, 3)
    assert len(seen) == 3 and threading.get_ident() in seen


def test_nested_loops(kernels: NativeModule) -> None:
    pool.set_num_threads(3)
    nested = kernels.function("nested", None, ctypes.c_void_p, ctypes.c_int64)
    for rows in (1, 2, 40):
        data = (ctypes.c_int64 * (8 * rows))()
        nested(data, rows)
        assert list(data) == list(range(1, 9)) * rows


def test_python_threads_at_once(kernels: NativeModule) -> None:
    pool.set_num_threads(3)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for n in (2, 3, 17, 400):
                run_flat(kernels, n, 500)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for threads_now in (1, 4, 2, 3):  # changes while loops run
        pool.set_num_threads(threads_now)
    for thread in threads:
        thread.join(timeout=120)
    assert not failures and not any(thread.is_alive() for thread in threads)


def _in_child(check) -> int:
    """The exit status of a forked child that runs `check`; a hang is killed by SIGALRM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads in the parent
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            import signal

            signal.alarm(60)
            check()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


@needs_fork
@needs_threads
def test_fork_then_use(kernels: NativeModule) -> None:
    pool.set_num_threads(3)
    run_flat(kernels, 30, 3)
    assert pool.num_workers() == 2

    def child() -> None:
        assert pool.num_workers() == 0
        run_flat(kernels, 30, 200)
        assert pool.num_workers() == 2
        assert _in_child(lambda: run_flat(kernels, 30, 200)) == 0  # and a grandchild
        pool.set_num_threads(2)
        run_flat(kernels, 30, 3)
        assert pool.num_workers() == 1

    assert _in_child(child) == 0
    assert _in_child(lambda: pool.set_num_threads(2)) == 0  # nobody to join
    assert pool.num_workers() == 2  # the parent's are untouched
    run_flat(kernels, 30, 3)


@needs_fork
@needs_threads
def test_fork_while_another_thread_is_in_a_loop(kernels: NativeModule) -> None:
    pool.set_num_threads(2)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            run_flat(kernels, 16, 500)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            assert _in_child(lambda: run_flat(kernels, 16, 100)) == 0
    finally:
        stop.set()
        thread.join()


_EXIT = """
import ctypes, sys, threading, time
from tracegrad.backends.llvm import pool
pool.set_num_threads(3)
kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
ran = []
task = kind(lambda ctx, i: ran.append(i))
loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(pool.parallel_for_address())
loop(ctypes.cast(task, ctypes.c_void_p), None, 100)
assert sorted(ran) == list(range(100)) and pool.num_workers() == 2
if sys.argv[1] == "asleep":
    time.sleep(0.05)
elif sys.argv[1] == "raise":
    raise SystemExit(7)
elif sys.argv[1] == "daemon":
    def forever():
        kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        noop = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p)
        while True:
            loop(noop, None, 50)
    threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.02)
"""


@needs_threads
@pytest.mark.parametrize("way, status", [("spinning", 0), ("asleep", 0), ("raise", 7), ("daemon", 0)])
def test_the_process_ends_cleanly(way: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", _EXIT, way], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, "")


def test_floating_point_modes_hold_in_every_task() -> None:
    if default_engine().target.arch != "x86_64" or not pool.has_pthreads():
        pytest.skip("sets x86's control register, and needs threads")
    text = """
    declare void @llvm.x86.sse.ldmxcsr(ptr)
    declare void @llvm.x86.sse.stmxcsr(ptr)
    define void @with_mode(ptr %mode, ptr %loop, ptr %fn, ptr %ctx, i64 %n) {
      %old = alloca i32
      call void @llvm.x86.sse.stmxcsr(ptr %old)
      call void @llvm.x86.sse.ldmxcsr(ptr %mode)
      call void %loop(ptr %fn, ptr %ctx, i64 %n)
      call void @llvm.x86.sse.ldmxcsr(ptr %old)
      ret void
    }
    define void @halve(ptr %ctx, i64 %i) {
      %at = getelementptr float, ptr %ctx, i64 %i
      %x = load volatile float, ptr %at
      %y = fmul float %x, 0.5
      store volatile float %y, ptr %at
      ret void
    }
    """
    module = default_engine().compile(text)
    pool.set_num_threads(3)
    n = 3000
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    run = module.function("with_mode", None, pointer, pointer, pointer, pointer, i64)
    tiny = 2.0**-126  # the smallest normal number: half of it is a denormal
    loop, halve = pool.parallel_for_address(), module.address("halve")
    for bits, expected in ((0x1F80, tiny / 2), (0x1F80 | 0x8040, 0.0), (0x1F80, tiny / 2)):
        for _ in range(20):
            data = (ctypes.c_float * n)(*[tiny] * n)
            run(ctypes.byref(ctypes.c_uint32(bits)), loop, halve, data, n)
            assert set(data) == {expected}


def test_bad_numbers_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in (0, -1, 1.5, "2", True, None):
        with pytest.raises(ValueError, match="positive integer"):
            pool.set_num_threads(bad)  # type: ignore[arg-type]
    monkeypatch.setattr(pool, "_num_threads", None)
    monkeypatch.setenv("TRACEGRAD_NUM_THREADS", "many")
    with pytest.raises(CompileError, match="TRACEGRAD_NUM_THREADS=many"):
        pool.get_num_threads()
    monkeypatch.setenv("TRACEGRAD_NUM_THREADS", "5")
    assert pool.get_num_threads() == 5
    monkeypatch.setattr(pool, "_num_threads", None)
    monkeypatch.delenv("TRACEGRAD_NUM_THREADS")
    assert pool.get_num_threads() == pool.available_cpus()


def test_serial_pool_keeps_the_interface() -> None:
    module = default_engine().compile(pool_ir("x86_64", threads=False, darwin=False))
    native = pool._native or pool._pool()
    assert set(module.symbols) == set(native.module.symbols)
    ran: list[int] = []
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(lambda _ctx, i: ran.append(i))
    loop = module.function("tg_parallel_for", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    for n in (-1, 0, 1, 4):
        ran.clear()
        loop(ctypes.cast(task, ctypes.c_void_p), None, n)
        assert ran == list(range(n))


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "riscv64"])
@pytest.mark.parametrize("darwin", [False, True])
def test_pool_text_is_valid_everywhere(arch: str, darwin: bool) -> None:
    text = pool_ir(arch, threads=True, darwin=darwin)
    assert "$" not in text
    binding.parse_assembly(text, binding.create_context()).verify()
