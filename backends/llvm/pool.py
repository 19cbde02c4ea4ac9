"""The process's native thread pool: how many threads, and the address that compiled kernels call.

    void tg_parallel_for(void (*fn)(void *ctx, int64_t task), void *ctx, int64_t n_tasks)

Runs `fn(ctx, 0) ... fn(ctx, n_tasks - 1)`, each exactly once, on the calling thread and the workers, and
returns when all have ended. Tasks are claimed by whoever is free, so a kernel must cut its work into tasks by
shape alone, never by the number of threads: then results are the same for any number. Nested calls, and calls
while another thread's job runs, run serially in the caller. The caller's floating-point modes hold in every
task.

The pool is LLVM IR (`pool_ir.py`) and is compiled on the first call of `parallel_for_address`. Workers start
with the first job, sleep when idle, and end before the interpreter does. After a fork the child starts its
own when it needs them.

Environment: `TRACEGRAD_NUM_THREADS` (default: the CPUs this process may run on), `TRACEGRAD_SPIN_US` (how
long an idle worker spins before it sleeps, default 100).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .engine import NativeModule, default_engine
from .pool_ir import MAX_THREADS, pool_ir
from .target import CompileError

_FOREVER = 1 << 62
_EXIT_PATIENCE = 20_000  # steps of 100 us: at exit, give up on a job that runs for longer than two seconds
_PTHREADS = ("pthread_create", "pthread_join", "pthread_attr_init", "pthread_attr_setstacksize",
             "pthread_attr_destroy", "pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock",
             "pthread_cond_init", "pthread_cond_wait", "pthread_cond_signal", "pthread_cond_broadcast",
             "pthread_sigmask", "getpid", "usleep", "sched_yield")

_lock = threading.RLock()
_num_threads: int | None = None
_native: _Native | None = None

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class _Native:
    """The compiled pool and its entry points."""

    def __init__(self, threads: int):
        engine = default_engine()
        self.threaded = has_pthreads()
        text = pool_ir(engine.target.arch, threads=self.threaded, darwin=sys.platform == "darwin")
        self.module: NativeModule = engine.compile(text, opt="quick")
        i64 = ctypes.c_int64
        self.address = self.module.address("tg_parallel_for")
        self.resize: Callable[..., Any] = self.module.function("tg_pool_resize", i64, i64, i64, i64)
        self.workers: Callable[..., Any] = self.module.function("tg_pool_workers", i64)
        self.pauses_per_us = self._pauses_per_us() if self.threaded else 0.0
        self.module.function("tg_pool_init", None, i64, i64)(threads, self.spins(threads))

    def _pauses_per_us(self) -> float:
        """A pause takes 10 to 140 cycles, depending on the CPU: measure."""
        pause = self.module.function("tg_pool_pause", None, ctypes.c_int64)
        best = 1.0
        for _ in range(5):
            begin = time.perf_counter()
            pause(500)
            best = min(best, time.perf_counter() - begin)
        return 500 / max(best * 1e6, 1e-3)

    def spins(self, threads: int) -> int:
        """How many pauses to spin for. More threads than CPUs must not spin: that keeps those with work from
        running.
        """
        if threads > available_cpus():
            return 0
        try:
            microseconds = float(os.environ.get("TRACEGRAD_SPIN_US") or 100.0)
        except ValueError:
            microseconds = 100.0
        return max(0, int(min(microseconds, 1e6) * self.pauses_per_us))


def has_pthreads() -> bool:
    """POSIX threads can be had from this process. Without them every parallel loop runs serially."""
    if os.name != "posix" or sys.platform in ("emscripten", "wasi"):
        return False
    try:
        process = ctypes.CDLL(None)
        return all(hasattr(process, name) for name in _PTHREADS)
    except OSError:
        return False


def available_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def get_num_threads() -> int:
    """How many threads a parallel loop uses, the caller's included.

    :raises CompileError: `TRACEGRAD_NUM_THREADS` is no positive number.
    """
    global _num_threads
    with _lock:
        if _num_threads is None:
            text = os.environ.get("TRACEGRAD_NUM_THREADS", "").strip()
            if text and not (text.isdecimal() and int(text) > 0):
                raise CompileError(f"TRACEGRAD_NUM_THREADS={text}: expected a positive number")
            _num_threads = min(int(text) if text else available_cpus(), MAX_THREADS)
        return _num_threads


def set_num_threads(n: int) -> None:
    """Sets how many threads parallel loops use from now on. Waits for a loop that is running.

    :raises ValueError: `n` is not a positive integer.
    """
    global _num_threads
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads({n!r}): expected a positive integer")
    with _lock:
        _num_threads = min(n, MAX_THREADS)
        if _native is not None:
            _native.resize(_num_threads, _native.spins(_num_threads), _FOREVER)


def parallel_for_address() -> int:
    """The address of `tg_parallel_for`, the same for the life of the process. Compiles the pool on first use.
    """
    return _pool().address


def prepare() -> None:
    """Compiles the pool in a thread of its own, if it is not there: while a program is scheduled, which is
    Python's work, another processor has nothing to do."""
    if _native is None and get_num_threads() > 1 and available_cpus() > 1:
        threading.Thread(target=_prepare, name="tracegrad-pool").start()


def _prepare() -> None:
    with contextlib.suppress(Exception):  # whoever needs it comes upon the same, and says so
        _pool()


def num_workers() -> int:
    """Worker threads that exist now (0 before the first parallel loop)."""
    with _lock:
        return 0 if _native is None else int(_native.workers())


def _pool() -> _Native:
    global _native
    if _native is None:
        with _lock:
            if _native is None:
                _native = _Native(get_num_threads())
                atexit.register(_shutdown)
    return _native


def _shutdown() -> None:
    """Ends the workers while their code is still mapped; loops that run later run serially."""
    if _native is not None:
        _native.resize(1, 0, _EXIT_PATIENCE)
