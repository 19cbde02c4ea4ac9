"""The physical floor of a step: how fast this machine multiplies and moves, measured by loops that do nothing
else, and what a compiled step has to move.

`python -m benchmarks.floor THREADS BYTES` measures, in a process of its own, and prints JSON. `Machine` asks
it and keeps the best of all it was told, so that a floor is never above what the machine was seen to do.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

#: the ways to move memory: (arrays read, arrays written, stores that go past the caches)
WAYS = {
    "read": (1, 0, 0),
    "streams": (3, 0, 0),
    "fill": (0, 1, 0),
    "copy": (1, 1, 0),
    "add": (2, 1, 0),
    "streamed": (1, 1, 1),
}
_SECONDS, _TRIES, _LONGEST = 0.004, 25, 0.25  # short and many: some meet a quiet moment
_FEWEST = 4096  # bytes; less takes as long as the loop around it


def _arithmetic(vector: str, lanes: int, fused: bool, accumulators: int) -> str:
    """LLVM IR of `arithmetic(ptr p, i64 n)`: n turns of independent multiply-adds in registers."""
    each = range(accumulators)
    lines = [
        "define void @arithmetic(ptr %p, i64 %n) {",
        "entry:",
        f"  %x = load {vector}, ptr %p, align 4",
        f"  %q = getelementptr {vector}, ptr %p, i64 1",
        f"  %y = load {vector}, ptr %q, align 4",
        "  br label %turn",
        "turn:",
        "  %i = phi i64 [0, %entry], [%next, %turn]",
    ]
    lines += [f"  %a{k} = phi {vector} [%x, %entry], [%b{k}, %turn]" for k in each]
    for k in each:
        if fused:
            lines.append(
                f"  %b{k} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{k}, {vector} %x, {vector} %y)"
            )
        else:
            lines += [f"  %m{k} = fmul {vector} %a{k}, %x", f"  %b{k} = fadd {vector} %m{k}, %y"]
    lines += [
        "  %next = add i64 %i, 1",
        "  %more = icmp slt i64 %next, %n",
        "  br i1 %more, label %turn, label %end",
        "end:",
    ]
    for k in each:
        lines += [
            f"  %p{k} = getelementptr {vector}, ptr %p, i64 {k}",
            f"  store {vector} %b{k}, ptr %p{k}, align 4",
        ]
    fma = f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})\n" if fused else ""
    return fma + "\n".join([*lines, "  ret void", "}"])


def _moving(name: str, vector: str, size: int, reads: int, writes: int, streamed: bool) -> str:
    """LLVM IR of `name(ptr a, ptr b, ptr c, i64 n, i64 turns)`: passes over n bytes of each array; `a` is
    written if any is, and the others read. What is only read is added up, or nobody would, and the sums put
    where `a` begins."""
    unroll = 8
    each = range(unroll)
    sources = ["%a", "%b", "%c"][writes : writes + reads]
    lines = [
        f"define void @{name}(ptr %a, ptr %b, ptr %c, i64 %n, i64 %turns) {{",
        "entry:",
        "  br label %pass",
        "pass:",
        "  %t = phi i64 [0, %entry], [%t1, %done]",
        "  br label %turn",
        "turn:",
        "  %i = phi i64 [0, %pass], [%i1, %turn]",
    ]
    if not writes:
        lines += [f"  %s{k} = phi {vector} [zeroinitializer, %pass], [%r{k}, %turn]" for k in each]
    for k in each:
        lines.append(f"  %o{k} = add i64 %i, {k * size}")
        for j, source in enumerate(sources):
            lines.append(f"  %p{k}.{j} = getelementptr i8, ptr {source}, i64 %o{k}")
            lines.append(f"  %v{k}.{j} = load {vector}, ptr %p{k}.{j}, align {size}")
        value = f"%v{k}.0" if reads else "zeroinitializer"
        for j in range(1, reads):
            lines.append(f"  %w{k}.{j} = fadd {vector} {value}, %v{k}.{j}")
            value = f"%w{k}.{j}"
        if not writes:
            lines.append(f"  %r{k} = fadd {vector} %s{k}, {value}")
            continue
        past = ", !nontemporal !0" if streamed else ""
        lines.append(f"  %q{k} = getelementptr i8, ptr %a, i64 %o{k}")
        # volatile, or the loop is recognised as a copy and becomes a call
        word = "store" if streamed else "store volatile"
        lines.append(f"  {word} {vector} {value}, ptr %q{k}, align {size}{past}")
    lines += [
        f"  %i1 = add i64 %i, {unroll * size}",
        "  %more = icmp slt i64 %i1, %n",
        "  br i1 %more, label %turn, label %done",
        "done:",
    ]
    if not writes:
        lines += [f"  store volatile {vector} %r{k}, ptr %a, align {size}" for k in each]
    lines += [
        "  %t1 = add i64 %t, 1",
        "  %again = icmp slt i64 %t1, %turns",
        "  br i1 %again, label %pass, label %end",
        "end:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


class Loops:
    """The loops, compiled for this machine's widest vectors."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        wide = bool(features.get("avx512f"))
        self.size = 64 if wide else 32 if features.get("avx") else 16
        self.lanes = self.size // 4
        arm = llvm.get_process_triple().startswith(("aarch64", "arm64"))
        self.accumulators = 24 if wide or arm else 12
        vector = f"<{self.lanes} x float>"
        fused = bool(wide or features.get("fma") or arm)
        texts = [_arithmetic(vector, self.lanes, fused, self.accumulators)]
        texts += [_moving(n, vector, self.size, r, w, bool(s)) for n, (r, w, s) in WAYS.items()]
        module = llvm.parse_assembly("\n".join([*texts, "!0 = !{i32 1}"]))
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=features.flatten() + (",-prefer-256-bit" if wide else ""),
            opt=2,
        )
        self.assembly = machine.emit_assembly(module)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        c = ctypes.CFUNCTYPE
        address = self._engine.get_function_address
        self.arithmetic = c(None, ctypes.c_void_p, ctypes.c_int64)(address("arithmetic"))
        self.moving: dict[str, Any] = {
            n: c(None, *[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64)(address(n)) for n in WAYS
        }


def _together(works: list[Callable[[], Any]]) -> float:
    """Seconds from the start of the first to the end of the last of some works, each on a thread."""
    if len(works) == 1:
        start = time.perf_counter()
        works[0]()
        return time.perf_counter() - start
    barrier = threading.Barrier(len(works))
    times: list[tuple[float, float]] = []

    def run(work: Callable[[], Any]) -> None:
        barrier.wait()
        start = time.perf_counter()
        work()
        times.append((start, time.perf_counter()))

    threads = [threading.Thread(target=run, args=(w,)) for w in works]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return max(end for _, end in times) - min(start for start, _ in times)


def _best(works: Callable[[int], list[Callable[[], Any]]]) -> float:
    """The fewest seconds of one turn; `works(n)` makes the works of n turns."""
    n = 1
    while (seconds := _together(works(n))) < _SECONDS:
        n = max(2 * n, int(n * _SECONDS / max(seconds, 1e-7)))
    end = time.perf_counter() + _LONGEST
    for k in range(_TRIES):
        if k >= 5 and time.perf_counter() > end:
            break
        seconds = min(seconds, _together(works(n)))
    return seconds / n


def peak_flops(loops: Loops, threads: int) -> float:
    """Operations a second of as many threads, a multiply-add being two."""
    rooms = [(ctypes.c_float * (loops.lanes * loops.accumulators))(*[0.5] * 32) for _ in range(threads)]
    turns = 4096
    seconds = _best(lambda n: [partial(loops.arithmetic, r, n * turns) for r in rooms])
    return threads * turns * loops.accumulators * loops.lanes * 2 / seconds


def _passes(loop: Any, places: list[list[int]], part: int, n: int) -> list[Callable[[], Any]]:
    return [partial(loop, *p, part, n) for p in places]


def peak_bandwidth(loops: Loops, threads: int, nbytes: int) -> float:
    """Bytes a second that threads read and write of so many bytes, again and again: the best of `WAYS`. What
    the caches hold is moved at their speed, as it is in a step that is repeated."""
    import numpy as np

    step = 8 * loops.size
    best = 0.0
    for name, (reads, writes, _) in WAYS.items():
        arrays = reads + writes
        part = max(max(nbytes, _FEWEST) // (threads * arrays) // step, 1) * step
        # Apart by more than whole pages, or loads seem to depend on stores of the same place in a page.
        apart = part + 4096 - part % 4096 + 1024
        places = []
        rooms = [np.ones(3 * apart // 4 + 16, np.float32) for _ in range(threads)]
        for room in rooms:
            start = -(-room.ctypes.data // 64) * 64
            places.append([start + (k * apart if k < arrays else 0) for k in range(3)])
        seconds = _best(partial(_passes, loops.moving[name], places, part))
        best = max(best, threads * arrays * part / seconds)
    return best


class Machine:
    """The best that was measured so far. Workers that are asked at other times meet other clock rates; the
    more often it is measured, the nearer to the truth."""

    def __init__(self) -> None:
        self._flops: dict[int, float] = {}
        self._bandwidth: dict[tuple[int, int], float] = {}

    def measure(self, threads: int, nbytes: int) -> None:
        """Measures once more."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.floor", str(threads), str(nbytes)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        self._flops[threads] = max(self._flops.get(threads, 0.0), found["flops"])
        key = threads, nbytes
        self._bandwidth[key] = max(self._bandwidth.get(key, 0.0), found["bandwidth"])

    def flops(self, threads: int) -> float:
        """Operations a second."""
        return max(f for t, f in self._flops.items() if t <= threads)

    def bandwidth(self, threads: int, nbytes: int) -> float:
        """Bytes a second of so many bytes."""
        return max(f for (t, n), f in self._bandwidth.items() if t <= threads and n == nbytes)

    def floor(self, threads: int, flops: float, nbytes: int) -> tuple[float, float]:
        """Microseconds that so many operations, and so many bytes, take at least."""
        return flops / self.flops(threads) * 1e6, nbytes / self.bandwidth(threads, nbytes) * 1e6


def traffic(program: Any) -> int:
    """Bytes that a run of a `LoopProgram` has to read and write outside of its workspace: of each input what
    is loaded of it, and of what it gives what is stored, each element once. Of an input that is gathered from
    that is what the indices name, at most."""
    from tracegrad.ir.expr import Load, walk
    from tracegrad.ir.loops import For, If, Kernel, Repeat, Store, While, WhileStep, blocks_of, expressions

    loaded: Counter[Any] = Counter()
    stored: Counter[Any] = Counter()

    def body(statements: Iterable[Any], times: int) -> None:
        for s in statements:
            loads = {id(e): e for x in expressions(s) for e in walk(x) if isinstance(e, Load)}
            for e in loads.values():
                loaded[e.buffer] += times * e.buffer.dtype.itemsize
            if isinstance(s, Store):
                stored[s.buffer] += times * s.buffer.dtype.itemsize
            if isinstance(s, For):
                body(s.body, times * -(-s.extent // s.step))
            elif isinstance(s, If):
                body(s.body, times)
            elif isinstance(s, While):
                body(s.body, times << 40)

    def steps(some: Iterable[Any], times: int) -> None:
        for s in some:
            if isinstance(s, Kernel):
                body(s.body, times)
                continue
            turns = s.extent if isinstance(s, Repeat) else 1 << 40 if isinstance(s, WhileStep) else 1
            for block in blocks_of(s):
                steps(block, times * turns)

    steps(program.steps, 1)
    outside = dict.fromkeys([*program.inputs, *program.outputs])
    return sum(min(b.nbytes, loaded[b]) + min(b.nbytes, stored[b]) for b in outside)


def main() -> None:
    threads, nbytes = int(sys.argv[1]), int(sys.argv[2])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    loops = Loops()
    found = {"flops": peak_flops(loops, threads), "bandwidth": peak_bandwidth(loops, threads, nbytes)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
