"""Shared by the tests of CUDA: a script's compiled programs, each held against its CUDA form under emulation
when it first runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tracegrad.backends.cuda.emulate import emulate
from tracegrad.ir.dtypes import DType, float64
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.runtime.executable import Executable


def near(got: np.ndarray, want: np.ndarray, what: str, rtol: float = 1e-4, slack: float = 0.0) -> None:
    """Relative to the largest element, and `slack` more; integers are equal."""
    assert got.dtype == want.dtype and got.shape == want.shape, what
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    largest = np.abs(b[np.isfinite(b)]).max(initial=1e-6)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * largest + slack, err_msg=what)


def _at(address: int, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """A copy of an array in memory."""
    out = np.empty(shape, dtype.numpy)
    if out.nbytes:
        ctypes.memmove(out.ctypes.data, address, out.nbytes)
    return out


def _exact(graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs, and inputs after the updates, computed in f64."""
    outputs, updates = evaluate(graph, inputs, dtype=float64)
    new = dict(zip(graph.updates, updates))
    after = [new.get(v, a) for v, a in zip(graph.inputs, inputs)]
    return [np.asarray(a) for a in (*outputs, *after)]


class Compared:
    """What was held against its emulation.

    Attributes:
        names: of the programs.
        units: their texts.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.units: list[str] = []


@contextmanager
def compared(updating: bool = True, most: int = 4, checked: bool = False) -> Iterator[Compared]:
    """While it is active, the first run of every compiled program (with `updating`, of those that update
    something) is repeated by its CUDA form under emulation; results must agree."""
    done = Compared()
    original = Executable.__init__

    def init(self: Any, lowered: Any) -> None:
        original(self, lowered)
        program = self.native.program
        if len(done.names) >= most or (updating and not program.updated):
            return
        run, pointer, repeat, fresh = self.run, self.run_pointer, self.repeat, [True]

        def check(address: int, steps: int, real: Any) -> None:
            if not fresh[0]:
                real()
                return
            fresh[0] = False
            table = (ctypes.c_uint64 * self.n_slots).from_address(address)
            inputs = [_at(table[i], b.shape, b.dtype) for i, b in enumerate(program.inputs)]
            places = [table[self.n_inputs + i] for i in range(len(program.outputs))]
            real()
            unit = lowered.cuda.unit
            given = [a.copy() for a in inputs]
            got = emulate(unit, checked).call(given, steps=steps)
            want = [
                _at(p + (steps - 1) * b.nbytes, b.shape, b.dtype) for b, p in zip(program.outputs, places)
            ]
            want += [_at(table[i], b.shape, b.dtype) for i, b in enumerate(program.inputs)]
            names = [f"{program.name}: {b.name}" for b in (*program.outputs, *program.inputs)]
            try:
                for g, w, name in zip([*got, *given], want, names):
                    near(g, w, name)
            except AssertionError:
                # Some values are rounding errors and nothing else: a gradient that is zero but for them, and
                # what Adam makes of it. There the CUDA form may err as much as the CPU's does.
                assert steps == 1
                exact = _exact(lowered.graph, inputs)
                for g, w, e, name in zip([*got, *given], want, exact, names):
                    slack = 4 * np.abs(w.astype(np.float64) - e).max(initial=0.0)
                    near(g, w, name, slack=slack)
            done.names.append(program.name)
            done.units.append(unit.text)

        self.run = lambda address: check(address, 1, lambda: run(address))
        self.run_pointer = lambda address: check(address.value, 1, lambda: pointer(address))
        self.repeat = lambda address, n: check(address, n, lambda: repeat(address, n))

    Executable.__init__ = init
    try:
        yield done
    finally:
        Executable.__init__ = original
