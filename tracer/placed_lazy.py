"""Lazy programs on a GPU. Used by lazy.py.

A program with an input or an output on a GPU runs there as a whole (with tensors on several GPUs, on the one
that has most of them): what it reads of elsewhere comes there at each run, what it gives elsewhere is copied.
As on the CPU, a program met for the first time is interpreted (on the CPU, with its inputs downloaded), and
compiled when it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.graph import Graph
from ..ir.types import Type
from ..runtime.buffers import Buffer, empty
from ..runtime.executable import Lowered, interpret


class PlacedRuns:
    """How one lazy program runs on a device.

    Args:
        graph: the program.
        device: its name.
        outputs: the types of its outputs, which say where each goes.
    """

    __slots__ = ("device", "executable", "graph", "outputs")

    def __init__(self, graph: Graph, device: str, outputs: Sequence[Type]) -> None:
        self.graph = graph
        self.device = device
        self.outputs = list(outputs)
        self.executable: Any = None

    def interpreted(self, inputs: list[Buffer]) -> tuple[list[Buffer], list[Buffer]]:
        """Contents of the outputs and of the updated inputs, computed on the CPU."""
        outs, updates = interpret(self.graph, [b.array for b in inputs])
        made = [_placed(a, t) for a, t in zip(outs, self.outputs)]
        return made, [_placed(a, inputs[v.index].type) for a, v in zip(updates, self.graph.updates)]

    def run(self, inputs: list[Buffer]) -> list[Buffer]:
        """Contents of the outputs; inputs are updated in place."""
        if self.executable is None:
            from ..runtime.cuda import DeviceExecutable

            places = [t.device for t in self.outputs]
            self.executable = DeviceExecutable(Lowered(self.graph), self.device, places)
        return self.executable(inputs)


def _placed(array: np.ndarray, t: Type) -> Buffer:
    array = np.asarray(array)
    assert dtypes.from_numpy(array.dtype) is t.dtype
    b = empty(Type(t.dtype, t.shape))
    b.array[...] = array
    return b.on(t.device)
