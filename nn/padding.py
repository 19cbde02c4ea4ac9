"""Padding layers: constant, zero, reflection, replication and circular, each for 1 to 3 dimensions."""

from __future__ import annotations

from typing import Any

from ..tracer.library import ArgumentError
from ..tracer.tensor import Tensor
from . import functional as F
from .module import Module


class _Pad(Module):
    """The last `_n` dimensions padded by `padding`: (before, after) of the last one first, or one int."""

    _n = 0
    _mode = "constant"

    def __init__(self, padding: Any) -> None:
        super().__init__()
        n = self._n
        if isinstance(padding, int):
            self.padding = (padding,) * (2 * n)
        else:
            self.padding = tuple(padding)
        if len(self.padding) != 2 * n:
            name = type(self).__name__
            raise ArgumentError(f"{name}: padding must be an int or {2 * n} ints, got {padding!r}")

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self._mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPad(_Pad):
    def __init__(self, padding: Any, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class _ZeroPad(_ConstantPad):
    def __init__(self, padding: Any) -> None:
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return f"{self.padding}"


def _class(base: type[_Pad], name: str, n: int, mode: str = "constant") -> Any:
    doc = f"""The last {n} dimension{"s" * (n > 1)} padded: see `functional.pad` with mode "{mode}".

    Args:
        padding: one int for all sides, or {2 * n}: (before, after) of the last dimension first.
    """
    return type(f"{name}{n}d", (base,), {"_n": n, "_mode": mode, "__doc__": doc, "__module__": __name__})


_N = (1, 2, 3)
ConstantPad1d, ConstantPad2d, ConstantPad3d = (_class(_ConstantPad, "ConstantPad", n) for n in _N)
ZeroPad1d, ZeroPad2d, ZeroPad3d = (_class(_ZeroPad, "ZeroPad", n) for n in _N)
ReflectionPad1d, ReflectionPad2d, ReflectionPad3d = (_class(_Pad, "ReflectionPad", n, "reflect") for n in _N)
ReplicationPad1d, ReplicationPad2d, ReplicationPad3d = (
    _class(_Pad, "ReplicationPad", n, "replicate") for n in _N
)
CircularPad1d, CircularPad2d, CircularPad3d = (_class(_Pad, "CircularPad", n, "circular") for n in _N)
