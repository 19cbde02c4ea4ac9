"""What functions along one dimension share: their operands, their dimension, tensors without dimensions."""

from __future__ import annotations

from typing import Any

from ...ir.errors import DTypeError
from ...ir.op import REGISTRY
from ...ir.types import normalize_axis
from ..operands import tensor_operand
from ..recording import STATE
from ..tensor import Tensor, ready


def start(name: str, *operands: Any) -> Any:
    """The trace to record on, once all operands are known to be tensors."""
    for x in operands:
        tensor_operand(x, f"{name}(): input")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *operands)
    return trace


def along(op: str, input: Tensor, dim: int, **attrs: Any) -> Any:
    """`op` along `dim` of `input`, as a tensor or a tuple of them. A tensor without dimensions is taken for
    one of a single element, as PyTorch does."""
    trace = start(op, input)
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise DTypeError(f"{op}(): dim must be an integer, got {type(dim).__name__}: {dim!r:.40}")
    axis = normalize_axis(dim, input.dim())
    x = input._value()
    flat = not x.type.rank
    if flat:
        x = trace.reshape(x, shape=(1,))
    made = trace.emit(REGISTRY[op], (x,), {"dim": axis, **attrs})

    def finish(v: Any) -> Tensor:
        return Tensor(trace.reshape(v, shape=()) if flat and v.type.rank else v)

    return tuple(finish(v) for v in made) if isinstance(made, tuple) else finish(made)
