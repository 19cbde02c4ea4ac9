"""On a GPU: samples of every op, the examples' steps and what test_cuda_device.py and test_cuda_train.py do
on the emulated device. Skipped where there is none; with `TRACEGRAD_CUDA=emulate` in the environment they
run on the emulated one.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda_tools
import numpy as np
import pytest
import test_cuda_device as shared
import test_cuda_memory as memory
import test_cuda_train as training
import tracegrad as tg
from cuda_tools import near
from test_codegen_graphs import draw
from test_cuda_ops import BATCHES, SAMPLES, sample_graph
from test_cuda_steps import EXAMPLES, SCRIPTS
from tracegrad.backends.cuda.emit import CudaUnit, emit
from tracegrad.backends.gpu_schedule import schedule_gpu
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.passes import optimize
from tracegrad.runtime.cuda import CudaExecutable, architecture_of
from tracegrad.runtime.cuda_lowered import MODELS, CudaLowered

needs_gpu = pytest.mark.skipif(not tg.cuda.is_available(), reason=f"no GPU: {tg.cuda.why_not()}")


class Programs:
    """A unit of programs in the place of a lowering."""

    def __init__(self, unit: CudaUnit, architecture: str) -> None:
        self.unit = unit
        self.architecture = architecture
        self.loops = unit.programs[0]
        self.compiled = b""

    def code(self, capability: tuple[int, int]) -> bytes:
        """As of a lowering, compiled once."""
        if not self.compiled:
            self.compiled = CudaLowered.code(self, capability)
        return self.compiled

    def cubin(self) -> bytes:
        return CudaLowered.cubin(self)

    def call(self, inputs: Sequence[np.ndarray], program: int = 0, steps: int = 1) -> list[np.ndarray]:
        """As `Emulated.call`, on the GPU."""
        self.loops = self.unit.programs[program]
        run = CudaExecutable(self)
        run.upload(inputs)
        run.run(steps)
        updated = list(self.loops.updated)
        got = run.download([*self.loops.outputs, *updated])
        where = dict(zip(self.loops.inputs, inputs))
        for b, a in zip(updated, got[len(self.loops.outputs) :]):
            where[b][...] = a
        return got[: len(self.loops.outputs)]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("batch", range(BATCHES))
def test_samples(batch: int) -> None:
    """Each twice with the same memory, so that captured graphs run too."""
    architecture = architecture_of(0)
    chosen = [(sample_graph(op, s), s) for op, s in SAMPLES[batch::BATCHES]]
    unit = emit([schedule_gpu(optimize(g), MODELS[architecture]) for g, _ in chosen], f"batch {batch}")
    programs = Programs(unit, architecture)
    for i, (graph, s) in enumerate(chosen):
        arrays = draw(s, i)
        wanted, _ = evaluate(graph, arrays)
        got = programs.call([np.array(a) for a in arrays], i, steps=3)
        for g, w in zip(got, wanted, strict=True):
            w = np.asarray(w)
            near(g, w, f"{graph.name}, sample {i} of batch {batch}", 1e-4 if w.dtype.itemsize > 2 else 1e-2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_steps(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each compiled program of an example that updates something, at its first run."""
    words, needs = SCRIPTS[name]
    if needs:
        pytest.importorskip(needs)
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cuda_tools, "emulate", lambda unit, checked=False: Programs(unit, "sm_80"))
    with cuda_tools.compared(most=8) as done, contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert done.names


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["lazy", "compiled"])
@pytest.mark.parametrize("name", training.MODELS)
def test_training(name: str, compiled: bool) -> None:
    training.test_training_on_a_device_is_training_on_the_cpu(name, compiled)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", shared.MADE)
def test_creation(name: str) -> None:
    shared.test_creation_on_a_device_gives_what_it_gives_on_the_cpu(name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", shared.MIXED)
def test_mismatches(name: str) -> None:
    shared.test_a_mismatch_names_both_tensors_and_the_line(name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "test",
    [
        shared.test_tensors_know_where_they_are, shared.test_writes_in_place_and_views_stay_on_the_device,
        shared.test_gradients_flow_across_devices, shared.test_files_of_tensors_on_a_device,
        training.test_repeated_steps_and_captured_graphs,
        training.test_what_is_of_the_cpu_in_a_compiled_function, training.test_control_flow_on_a_device,
        training.test_masks_are_drawn_on_the_device_from_its_own_generator,
        memory.test_pinned_memory_holds_what_was_there, memory.test_loaders_and_libraries_pin,
        memory.test_a_plain_upload_has_read_its_source_when_it_returns, memory.test_threads_share_a_device,
        memory.test_graphs_are_not_captured_for_addresses_that_keep_changing, memory.test_kernels_are_timed,
    ],
)  # fmt: skip
def test_what_the_emulated_device_does(test: Any) -> None:
    test()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "use", [training._packed, training._lbfgs, training._attention, training._copies, training._transformed]
)
def test_libraries(use: Any) -> None:
    training.test_libraries_on_a_device(use)


@pytest.mark.gpu
@needs_gpu
def test_weights_go_between_devices(tmp_path: Path) -> None:
    training.test_weights_go_between_devices_with_their_optimiser(tmp_path)
