"""Derived from the op registry: the native backend against the interpreter, on every sample of every op.

All samples of an op in f32, and its first ones in every other type it takes, are one program, so that LLVM
runs once per op.
"""

from __future__ import annotations

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from test_ops import as_dtype, draw
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OpError
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered

#: Relative and absolute error allowed, against the interpreter in f64 for f32 and in its own type otherwise.
TOLERANCE = {"f64": 1e-12, "f32": 2e-6, "f16": 2e-3, "bf16": 2e-2}


def samples_program(op: Op) -> tuple[Graph, list[np.ndarray], list[DType]]:
    """One graph with a node per sample and dtype; its inputs; the float dtype each output was drawn in."""
    graph = Graph(op.name)
    b = Builder(graph)
    arrays: list[np.ndarray] = []
    drawn: list[DType] = []
    for k, s in enumerate(op.samples()):
        for dtype in (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16):
            types = as_dtype(s.types, dtype)
            if dtype is not dtypes.float32 and (types == s.types or op.name == "bitcast" or k > 1):
                continue
            data = draw(s, types)
            values = tuple(graph.add_input(t) for t in types)
            try:
                made = b.emit(op, values, s.attrs, s.regions_for(types))
            except OpError:
                if dtype is dtypes.float32:
                    raise
                del graph.inputs[len(arrays) :]
                continue
            arrays.extend(data)
            outs = made if isinstance(made, tuple) else (made,)
            graph.outputs.extend(outs)
            drawn.extend([dtype] * len(outs))
    return graph, arrays, drawn


@pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)
def test_native_agrees_with_the_interpreter(op: Op) -> None:
    graph, arrays, drawn = samples_program(op)
    own, _ = evaluate(graph, arrays)
    wide, _ = evaluate(graph, arrays, dtype=dtypes.float64 if op.name != "bitcast" else None)
    buffers = [copy_of(a, v.type.dtype) for a, v in zip(arrays, graph.inputs)]
    got = Executable(Lowered(graph))(buffers)
    for i, (v, b, o, w, dtype) in enumerate(zip(graph.outputs, got, own, wide, drawn)):
        label = f"output {i}: {v.type} from {dtype.name} samples"
        assert b.array.shape == v.type.shape
        if v.type.dtype.kind != "f":
            np.testing.assert_array_equal(b.array, o, err_msg=label)
            continue
        exact = w if dtype is dtypes.float32 and op.name != "cast" else o
        exact = exact.astype(np.float64)
        tolerance = TOLERANCE[max(dtype.name, v.type.dtype.name, key=lambda n: TOLERANCE[n])]
        scale = np.abs(exact[np.isfinite(exact)]).max(initial=1.0) if op.scalar is None else 1.0
        np.testing.assert_allclose(
            b.array.astype(np.float64), exact, rtol=tolerance, atol=tolerance * scale, err_msg=label
        )
