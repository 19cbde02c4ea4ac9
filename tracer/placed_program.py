"""Compiled functions on a GPU. Used by compile.py.

A function that reads or gives a tensor on a GPU runs there as a whole. What it reads of the CPU is uploaded
at each run, what it gives to the CPU is downloaded.
"""

from __future__ import annotations

from typing import Any

from ..ir.op import REGISTRY
from ..runtime.buffers import Buffer
from ..runtime.executable import Executable
from .compile_trace import Place
from .lazy import scalar_buffer
from .recording import STATE
from .specialization import Specialization, contents_of
from .tensor import Tensor
from .values import TracedValue


class PlacedSpecialization(Specialization):
    """One traced signature of a compiled function whose tensors are on a GPU."""

    def __init__(self, traced: Any, epoch: int, grad_enabled: bool) -> None:
        super().__init__(traced, epoch, grad_enabled)
        self._placed: Any = None

    @property
    def placed(self) -> Any:
        """The program on its device, compiled at first use."""
        if self._placed is None:
            from ..runtime.cuda import DeviceExecutable

            device = self.traced.device
            assert device is not None
            places = [device if on else None for on in self.traced.placed]
            self._placed = DeviceExecutable(self.lowered, device, places)
        return self._placed

    @property
    def executable(self) -> Executable:
        raise NotImplementedError  # pragma: no cover - it runs by `placed`

    def direct(self, args: tuple[Any, ...]) -> None:
        """There is no shorter way."""

    def _gathered(self, tensors: list[Tensor]) -> tuple[list[Buffer], list[Buffer]]:
        """The inputs, and the arguments'; what an argument shares with what the program writes is copied."""
        arguments = [t._buffer() for t in tensors]
        written = self.written_states | {tensors[k]._storage for k in self.written_args}
        for _, index in self.args:
            t = tensors[index]
            if index not in self.written_args and t._storage in written:
                arguments[index] = arguments[index].copy()
            elif index in self.written_args:
                t._storage.claim()
        return [self._input(p, arguments) for p in self.traced.places], arguments

    def _input(self, p: Place, arguments: list[Buffer]) -> Buffer:
        if p.kind == "arg":
            return arguments[p.index]
        if p.kind == "scalar":
            assert p.read is not None
            return scalar_buffer(p.read(), p.value.type.dtype)
        return contents_of(p.storage.value if p.kind == "state" and p.storage is not None else p.value)

    def call(self, tensors: list[Tensor]) -> Any:
        """One run: outputs as the function's result."""
        saved = self._save_for_backward(tensors) if self.carries_grad else None
        inputs, arguments = self._gathered(tensors)
        outputs = self.placed(inputs)
        self._put_back(arguments, tensors)
        return self._deliver(outputs, tensors, saved)

    def _put_back(self, arguments: list[Buffer], tensors: list[Tensor]) -> None:
        for index in self.written_args:
            t, buffer = tensors[index], arguments[index]
            if t._view is not None:
                value = TracedValue(buffer.type, None, 0, None, buffer)
                t._put(STATE.trace.emit(REGISTRY["alias"], (value,), {}))

    def call_repeated(self, tensors: list[Tensor], n: int) -> tuple[list[Buffer], list[int]]:
        """n runs; outputs come stacked along a new first dimension, and with each the row of the last run."""
        inputs, arguments = self._gathered(tensors)
        outputs = self.placed.repeat(inputs, n)
        self._put_back(arguments, tensors)
        return outputs, [n - 1] * len(outputs)
