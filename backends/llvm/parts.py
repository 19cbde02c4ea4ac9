"""LLVM's long calls without llvmlite's lock, and the parts of a program compiled by several threads. Used by
the engine only.

llvmlite lets one thread at a time into LLVM. LLVM itself needs that only within one context, and every part
has a context of its own, so the three calls that take time (parse, optimise, emit) go past the lock; all
others take it as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import PriorityQueue
from typing import Any, TypeVar

from .target import llvm

T = TypeVar("T")
# Seconds after which the interpreter's lock changes hands while parts are compiled. A thread needs it for
# some microseconds between LLVM's calls, and would wait Python's 5 ms for it each time.
_SWITCH_INTERVAL = 0.0002


def _unlocked(name: str) -> Callable[..., Any]:
    function = getattr(llvm().ffi.lib, name)
    return getattr(function, "_cfn", function)  # with another llvmlite: slower, but right


def parse(text: str, context: Any) -> Any:
    """The module of an LLVM IR text.

    :raises RuntimeError: it is no LLVM IR.
    """
    binding = llvm()
    with binding.ffi.OutputString() as error:
        pointer = _unlocked("LLVMPY_ParseAssembly")(context, ctypes.c_char_p(text.encode()), error)
        module = binding.module.ModuleRef(pointer, context)
        if error:
            message = str(error)
            module.close()
            raise RuntimeError(message)
    return module


def run_passes(passes: Any, module: Any, builder: Any) -> None:
    """A module pass manager on a module."""
    _unlocked("LLVMPY_RunNewModulePassManager")(passes, module, builder)


def emit(machine: Any, module: Any) -> bytes:
    """The object file of a module.

    :raises RuntimeError: LLVM has no code for something in it.
    """
    lib = llvm().ffi.lib
    with llvm().ffi.OutputString() as error:
        memory = _unlocked("LLVMPY_TargetMachineEmitToMemory")(machine, module, 1, error)
        if not memory:
            raise RuntimeError(str(error))
    try:
        return ctypes.string_at(lib.LLVMPY_GetBufferStart(memory), lib.LLVMPY_GetBufferSize(memory))
    finally:
        lib.LLVMPY_DisposeMemoryBuffer(memory)


def each(parts: Iterable[str], work: Callable[[str], T], jobs: int) -> list[T]:
    """`work` of every part, in order, by `jobs` threads at most. This thread draws the parts, while others
    already work on the first ones, and then takes its share; a single part makes no thread. The longest of
    the waiting parts goes first, so that none is left for the end.

    An exception of the first part that failed is raised here when all threads have ended.
    """
    done: dict[int, T] = {}
    failed: dict[int, BaseException] = {}
    queue: PriorityQueue[tuple[int, int, str]] = PriorityQueue()
    threads: list[threading.Thread] = []

    def serve() -> None:
        while not failed:
            _, number, text = queue.get()
            if number < 0:
                return
            try:
                done[number] = work(text)
            except BaseException as error:
                failed[number] = error

    count = 0
    with _switching():
        try:
            for text in parts:
                queue.put((-len(text), count, text))
                count += 1
                if 1 < count <= jobs:
                    threads.append(threading.Thread(target=serve, name="tracegrad-compile", daemon=True))
                    threads[-1].start()
        except BaseException as error:
            failed[-1] = error
        for _ in range(len(threads) + 1):
            queue.put((1, -1, ""))
        serve()
        for thread in threads:
            thread.join()
    if failed:
        first = failed[min(failed)]
        failed.clear()  # or the traceback's frames and the exception would keep each other alive
        try:
            raise first
        finally:
            del first
    return [done[i] for i in range(count)]


@contextlib.contextmanager
def _switching() -> Iterator[None]:
    """The interpreter's lock changes hands soon."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_INTERVAL))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
