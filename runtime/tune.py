"""Tuning by measurement, when asked for (`TRACEGRAD_TUNE=1`): the cost model's best few ways to do a matrix
product are run, the fastest is taken and remembered on disk beside the object code. Installed by
executable.py; the ways themselves are those of backends/schedule/tiles.py.

Only ways that add up in the same order as the model's choice compete, so tuning changes no result.
"""

from __future__ import annotations

import ctypes
import json
import time
from dataclasses import asdict, astuple

import numpy as np

from ..backends.llvm.cache import CachedObject, build_id, default_cache, object_key
from ..backends.llvm.compile import compile_program
from ..backends.llvm.native import NativeProgram
from ..backends.llvm.pool import parallel_for_address
from ..backends.llvm.target import host_target
from ..backends.machine import MachineModel
from ..backends.schedule import contract, schedule
from ..backends.schedule.tiles import Problem, Strategy, contenders
from ..ir import dtypes
from ..ir.builder import Builder
from ..ir.graph import Graph
from ..ir.loops import LoopProgram
from ..ir.types import Type

#: seconds of measuring for each way, and how many blocks they are cut into
SECONDS, BLOCKS = 0.02, 8
#: ways that are measured, the model's choice among them
MOST = 8


def schedule_tuned(graph: Graph, machine: MachineModel) -> LoopProgram:
    """As `schedule`, with products done the way that is fastest on this machine now."""
    with contract.tuned(pick):
        return schedule(graph, machine)


def pick(p: Problem, machine: MachineModel) -> Strategy:
    """The fastest way by measurement, from the cache where it has it. The model's choice for what is not a
    plain product of two matrices (windows, several dimensions as one), or too small to matter."""
    ways = contenders(p, machine, MOST)
    graph = product(p)
    if graph is None or len(ways) < 2 or ways[0].cycles < 1000:
        return ways[0]
    cache = default_cache()
    key = object_key("tune", build_id(), host_target().fingerprint(), repr(astuple(p)), repr(machine))
    entry = cache.load(key) if cache is not None else None
    if entry is not None:
        known = Strategy(**json.loads(entry.objects[0]))
        if known in ways:
            return known
    best = fastest([(way, _compiled(graph, machine, way)) for way in ways])
    if cache is not None:
        cache.store(key, CachedObject(("tuned",), (json.dumps(asdict(best)).encode(),)))
    return best


def product(p: Problem) -> Graph | None:
    """A graph of the problem's product alone; None where it is not one of two matrices laid out as such."""
    plain = p.batch == 1 and len(p.inner) == 1 and p.flat_m is None and p.flat_n is None and p.itemsize == 4
    if not plain or p.windows_a or p.windows_b or p.cn != 1:
        return None
    letters, types = [], []
    for which, outer, size, stride, k in (("m", p.M, p.M, p.am, p.ak), ("n", p.N, p.N, p.bn, p.bk)):
        if (k, stride) == (1, p.K):
            letters.append(which + "k")
            types.append((outer, p.K))
        elif (stride, k) == (1, size):
            letters.append("k" + which)
            types.append((p.K, outer))
        else:
            return None
    graph = Graph("tune")
    x, y = (graph.add_input(Type(dtypes.float32, shape), name) for name, shape in zip("xy", types))
    graph.outputs = [Builder(graph).contract(x, y, spec=f"{letters[0]},{letters[1]}->mn")]
    return graph


def _compiled(graph: Graph, machine: MachineModel, way: Strategy) -> NativeProgram:
    with contract.fixed(way):
        return compile_program(schedule(graph, machine))


def fastest(programs: list[tuple[Strategy, NativeProgram]]) -> Strategy:
    """Runs the programs in turn, in short blocks, and compares the minima."""
    runs = [_Run(program) for _, program in programs]
    once = [min(run(1), run(1)) for run in runs]
    counts = [max(1, int(SECONDS / BLOCKS / max(t, 1e-7))) for t in once]
    best = [run(1) for run in runs]
    for _ in range(BLOCKS):
        for i, run in enumerate(runs):
            best[i] = min(best[i], run(counts[i]))
    return programs[best.index(min(best))][0]


class _Run:
    """A program with arguments of its own."""

    def __init__(self, native: NativeProgram) -> None:
        p = native.program
        self.native = native
        self.arrays = [np.ones(b.shape, b.dtype.numpy) for b in (*p.inputs, *p.outputs)]
        self.arena = np.zeros(native.arena_bytes + 64, np.uint8)
        start = self.arena.ctypes.data
        pool = parallel_for_address() if native.threads else 0
        pointers = [a.ctypes.data for a in self.arrays]
        self.table = (ctypes.c_int64 * (len(pointers) + 2))(*pointers, start + -start % 64, pool)
        self.function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(native.run_address)

    def __call__(self, count: int) -> float:
        """Seconds of one run, the mean of `count`."""
        function, table = self.function, ctypes.addressof(self.table)
        begin = time.perf_counter()
        for _ in range(count):
            function(table)
        return (time.perf_counter() - begin) / count
