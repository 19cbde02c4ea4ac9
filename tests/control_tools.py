"""What the tests of native control flow share: graphs with regions, and one check of all ways to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.machine import AVX2, AVX512, SMALL, MachineModel
from tracegrad.backends.schedule import schedule
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program, print_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import LoopProgram
from tracegrad.ir.ops.control import region
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

THREADED = replace(AVX512, threads=4, parallel_cycles=50)
MACHINES = [AVX512, AVX2, SMALL, THREADED]


def f32(*shape: int) -> Type:
    return Type(dtypes.float32, shape)


I64, BOOL = Type(dtypes.int64, ()), Type(dtypes.bool_, ())


def draw(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        data = (
            rng.uniform(-1, 1, v.type.shape) if v.type.dtype.kind == "f" else rng.integers(0, 2, v.type.shape)
        )
        out.append(np.asarray(data).astype(v.type.dtype.numpy))
    return out


def same(got: list[np.ndarray], want: list[Any], what: str) -> None:
    for g, w in zip(got, want, strict=True):
        w = np.asarray(w)
        assert g.dtype == w.dtype and g.shape == w.shape, what
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5, err_msg=what)


def check(
    graph: Graph, arrays: list[np.ndarray] | None = None, machine: MachineModel = AVX512, native: bool = True
) -> LoopProgram:
    """Schedules, verifies, prints and parses; runs slowly and natively, with and without threads, and
    twice."""
    arrays = draw(graph) if arrays is None else arrays
    outputs, updates = evaluate(graph, arrays)
    changed = list(graph.updates)
    wanted = [
        *outputs,
        *(updates[changed.index(v)] if v in changed else a for v, a in zip(graph.inputs, arrays)),
    ]
    program = schedule(graph, machine)
    verify_program(program)
    text = print_program(program)
    assert print_program(parse_program(text)) == text
    for backwards in (False, True):
        mine = [np.array(a, order="C") for a in arrays]
        same([*run_program(program, mine, reverse_parallel=backwards), *mine], wanted, text)
    if not native:
        return program
    code = compile_program(program, use_cache=False)
    results = []
    for serial in (True, False):
        mine = [np.array(a, order="C") for a in arrays]
        results.append([*code.call(mine, serial=serial), *mine])
        same(results[-1], wanted, text)
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b, "results depend on threads")
    if not graph.updates:
        for got, w in zip(code.call([np.array(a, order="C") for a in arrays], repeat=2), outputs):
            same([got[0], got[1]], [w, w], text)
    return program


def build(types: dict[str, Type], body: Callable[..., Any]) -> Graph:
    """An optimised graph of `body(b, *inputs) -> outputs`."""
    graph = Graph("test")
    made = body(Builder(graph), *(graph.add_input(t, n) for n, t in types.items()))
    graph.outputs = list(made) if isinstance(made, (tuple, list)) else [made]
    return optimize(graph)


def scan(b: Any, inits: list[Value], xs: list[Value], consts: list[Value], body: Any, **attrs: Any) -> Any:
    length = attrs.pop("length", xs[0].type.shape[0] if xs else 0)
    types = [*(v.type for v in inits), *(f32(*v.type.shape[1:]) for v in xs), *(v.type for v in consts)]
    made = b.scan(*inits, *xs, *consts, length=length, carry=len(inits), xs=len(xs),
                  regions=(region(types, body, "body"),), **attrs)  # fmt: skip
    return made if isinstance(made, tuple) else (made,)


def loop(b: Any, inits: list[Value], consts: list[Value], test: Any, body: Any, **attrs: Any) -> Any:
    """A `while`; its name is a word of Python."""
    types = [v.type for v in (*inits, *consts)]
    regions = (region(types, test, "test"), region(types, body, "body"))
    return getattr(b, "while")(*inits, *consts, carry=len(inits), regions=regions, **attrs)
