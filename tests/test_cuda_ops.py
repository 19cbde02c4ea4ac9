"""Every op's samples on the GPU's schedule: emitted in batches, taken by nvcc without a warning, and run
under emulation, with all accesses checked, against the graph interpreter."""

from __future__ import annotations

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
from tracegrad.backends.machine import SM_75, SM_80, GpuModel
from tracegrad.backends.schedule import plan as planning
from tracegrad.ir.builder import Builder
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op, Sample
from tracegrad.ir.passes import optimize

SAMPLES = [(op, s) for op in REGISTRY.values() for s in op.samples()]
BATCHES = 16
#: so small that small arrays fill it: vectors, split sums and tiles are used at once
SMALL = GpuModel((7, 5), 1, shared_bytes=4 << 10)


def sample_graph(op: Op, s: Sample) -> Graph:
    graph = Graph(op.name)
    b = Builder(graph)
    inputs = [graph.add_input(t) for t in s.types]
    made = b.emit(op, tuple(inputs), s.attrs, s.regions_for(s.types))
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    return graph


def unit_of(batch: int, monkeypatch: pytest.MonkeyPatch) -> tuple[CudaUnit, list[tuple[Graph, Sample]]]:
    """A sixteenth of all samples, strewn over the ops. Half of the batches give small values kernels of their
    own, as large ones have."""
    if batch % 2:
        monkeypatch.setattr(planning, "TINY", 0)
        monkeypatch.setattr(planning, "TINY_REDUCE", 0)
    chosen = [(sample_graph(op, s), s) for op, s in SAMPLES[batch::BATCHES]]
    machine = (SM_75, SMALL, SM_80)[batch % 3]
    return emit([schedule_gpu(optimize(g), machine) for g, _ in chosen], f"batch {batch}"), chosen


@pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_samples_emulated(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, chosen = unit_of(batch, monkeypatch)
    run = emulate(unit, checked=True)
    for i, (graph, s) in enumerate(chosen):
        arrays = draw(s, i)
        wanted, _ = evaluate(graph, arrays)
        got = run.call([np.array(a) for a in arrays], i)
        for g, w in zip(got, wanted, strict=True):
            w = np.asarray(w)
            near(g, w, f"{graph.name}, sample {i} of batch {batch}", 1e-4 if w.dtype.itemsize > 2 else 1e-2)


@pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_samples_compile(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc.check(unit_of(batch, monkeypatch)[0].text, nvcc.ARCHITECTURES[batch % 3])
