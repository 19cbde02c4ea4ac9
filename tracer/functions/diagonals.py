"""Diagonals and triangles: diag, tril, tril_indices, trace; and writing into a slice or a diagonal of a
copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.errors import OpError
from ...ir.op import REGISTRY
from ...ir.types import normalize_axis
from ..creation import tensor
from ..operands import as_value, tensor_operand
from ..recording import STATE
from ..tensor import Tensor, ready
from .shaping import clone_of, diagonal, reshape, select, slice_dims

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _emit(name: str, input: Tensor, attrs: dict[str, Any]) -> Tensor:
    tensor_operand(input, f"{name}(): input")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input)
    return Tensor(trace.emit(REGISTRY[name], (input._value(),), attrs))


def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices with the last dimension of `input` on their diagonals, at dimensions `dim1` and `dim2`."""
    r = input.dim() + 1
    attrs = {"offset": int(offset), "dim1": normalize_axis(dim1, r), "dim2": normalize_axis(dim2, r)}
    return _emit("diag_embed", input, attrs)


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A vector as a diagonal matrix; of a matrix, a copy of its diagonal."""
    if input.dim() == 1:
        return diag_embed(input, diagonal)
    if input.dim() != 2:
        raise OpError(f"diag(): expected a vector or a matrix, got {input._value().type}")
    return clone_of(_diagonal(input, diagonal))


_diagonal = diagonal


def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """A diagonal matrix of all elements."""
    return diag_embed(reshape(input, -1), offset)


def _triangle(name: str) -> Callable[..., Tensor]:
    def fn(input: Tensor, diagonal: int = 0) -> Tensor:
        return _emit(name, input, {"diagonal": int(diagonal)} if diagonal else {})

    fn.__name__ = fn.__qualname__ = name
    below = name == "tril"
    fn.__doc__ = f"The elements on and {'below' if below else 'above'} the given diagonal, zeros elsewhere."
    return fn


tril = _triangle("tril")
triu = _triangle("triu")


def _triangle_indices(name: str, find: Callable[..., Any]) -> Callable[..., Tensor]:
    def fn(
        row: int,
        col: int,
        offset: int = 0,
        *,
        dtype: DType = dtypes.int64,
        device: Any = None,
        layout: Any = None,
        pin_memory: bool = False,
    ) -> Tensor:
        if row < 0 or col < 0:
            raise OpError(f"{name}(): row and col must not be negative, got {row} and {col}")
        return tensor(np.stack(find(row, offset, col)).astype(np.int64), dtype=dtype, device=device)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (
        "Rows and columns `[2, count]` of the triangle of a `row` x `col` matrix, in row-major order."
    )
    return fn


tril_indices = _triangle_indices("tril_indices", np.tril_indices)
triu_indices = _triangle_indices("triu_indices", np.triu_indices)


def matrix_trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix; of integers as i64."""
    tensor_operand(input, "trace(): input")
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, input)
    x = as_value(trace, input, input.dtype if input.dtype.kind == "f" else dtypes.int64)
    return Tensor(trace.emit(REGISTRY["trace"], (x,), {}))


def _written(input: Tensor, src: Tensor, view: Callable[[Tensor], Tensor], name: str) -> Tensor:
    """A copy of `input` with `src` written where `view` looks."""
    out = clone_of(input)
    part: Any = view(out)
    if tuple(part.shape) != tuple(src.shape):
        raise OpError(f"{name}(): expected a source of shape {list(part.shape)}, got {src._value().type}")
    part.copy_(src)
    return out


def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """A copy of `input` with `src` at `index` of `dim`."""
    return _written(input, src, lambda t: select(t, dim, index), "select_scatter")


def slice_scatter(
    input: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """A copy of `input` with `src` at `[start:end:step]` of `dim`."""
    d = normalize_axis(dim, input.dim())
    first, last, by = slice(start, end, step).indices(tuple(input.shape)[d])
    return _written(input, src, lambda t: slice_dims(t, {d: (first, max(first, last), by)}), "slice_scatter")


def diagonal_scatter(input: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A copy of `input` with `src` on a diagonal."""
    return _written(input, src, lambda t: diagonal(t, offset, dim1, dim2), "diagonal_scatter")


def fill_diagonal_(input: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    """Writes a number on the main diagonal, in place; with `wrap` a tall matrix starts again below."""
    x: Any = input
    shape = tuple(x.shape)
    if len(shape) < 2 or (len(shape) > 2 and len(set(shape)) > 1):
        raise OpError(f"fill_diagonal_(): expected a matrix, or equal dimensions, got {x._value().type}")
    n, m = shape[0], shape[-1]
    count = min(shape)
    if len(shape) == 2 and wrap and n > m + 1:
        count = -(-n * m // (m + 1))
    position = np.zeros(shape, bool)
    step = int(sum(np.cumprod((1, *shape[:0:-1]))))
    position.reshape(-1)[[step * k for k in range(count) if step * k < position.size]] = True
    return x.masked_fill_(tensor(position), fill_value)


def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """Powers of the elements of a vector, as rows `[len(x), N]`."""
    if x.dim() != 1:
        raise OpError(f"vander(): expected a vector, got {x._value().type}")
    n = int(x.shape[0]) if N is None else N
    base: Any = x if x.dtype.kind == "f" else x.to(dtypes.int64)
    powers = tensor(np.arange(n) if increasing else np.arange(n)[::-1].copy(), dtype=dtypes.int64)
    return base.unsqueeze(-1) ** powers


for _fn in (
    diag_embed, diag, diagflat, tril, triu, tril_indices, triu_indices, select_scatter, slice_scatter,
    diagonal_scatter, vander,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
FUNCTIONS["trace"] = matrix_trace
