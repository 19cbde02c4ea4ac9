"""Every op's samples on the GPU's schedule: emitted in batches, taken by nvcc without a warning, and run
under emulation, with all accesses checked, against the graph interpreter."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from cuda_tools import near
from test_codegen_graphs import draw
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc
from tracegrad.backends.cuda.emit import CudaUnit, emit
from tracegrad.backends.cuda.emulate import emulate
from tracegrad.backends.gpu_schedule import schedule_gpu
from tracegrad.backends.machine import SM_75, SM_90, GpuModel
from tracegrad.backends.schedule import plan as planning
from tracegrad.ir.builder import Builder
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op, Sample
from tracegrad.ir.passes import optimize

SAMPLES = [(op, s) for op in REGISTRY.values() for s in op.samples()]
BATCHES = 10
#: so small that small arrays fill it: vectors, split sums and tiles are used at once
SMALL = GpuModel((7, 5), 1, shared_bytes=4 << 10)
#: what a batch is scheduled for, and compiled for
MACHINES = (SM_75, SMALL, replace(SM_90, matmul_precision="high"))
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")


def sample_graph(op: Op, s: Sample) -> Graph:
    graph = Graph(op.name)
    b = Builder(graph)
    inputs = [graph.add_input(t) for t in s.types]
    made = b.emit(op, tuple(inputs), s.attrs, s.regions_for(s.types))
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    return graph


@cache
def unit_of(batch: int) -> tuple[CudaUnit, list[tuple[Graph, Sample]]]:
    """Part of all samples, strewn over the ops. Half of the batches give small values kernels of their own,
    as large ones have."""
    chosen = [(sample_graph(op, s), s) for op, s in SAMPLES[batch::BATCHES]]
    with pytest.MonkeyPatch.context() as patch:
        if batch % 2:
            patch.setattr(planning, "TINY", 0)
            patch.setattr(planning, "TINY_REDUCE", 0)
        programs = [schedule_gpu(optimize(g), MACHINES[batch % 3]) for g, _ in chosen]
    return emit(programs, f"batch {batch}"), chosen


@pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_samples_emulated(batch: int) -> None:
    unit, chosen = unit_of(batch)
    run = emulate(unit, checked=True, quick=True)
    for i, (graph, s) in enumerate(chosen):
        arrays = draw(s, i)
        wanted, _ = evaluate(graph, arrays)
        got = run.call([np.array(a) for a in arrays], i)
        for g, w in zip(got, wanted, strict=True):
            w = np.asarray(w)
            near(g, w, f"{graph.name}, sample {i} of batch {batch}", 1e-4 if w.dtype.itemsize > 2 else 1e-2)


@pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_samples_compile(batch: int) -> None:
    nvcc.check(unit_of(batch)[0].text, ARCHITECTURES[batch % 3])
