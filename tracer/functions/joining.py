"""Putting tensors together and taking them apart: the stacks, meshgrid, tensor_split, repeat_interleave and
their kin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir import dtypes
from ...ir.errors import DTypeError, OpError
from ...ir.op import REGISTRY
from ...ir.types import broadcast_shapes, normalize_axis
from ..creation import tensor
from ..operands import as_value, result_type, tensor_operand
from ..recording import STATE
from ..tensor import Tensor, ready
from .indexing import contents_of
from .shaping import cat, chunk, expand, narrow, reshape, split, stack, unsqueeze

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def given(tensors: tuple[Any, ...], what: str) -> list[Tensor]:
    """Tensors passed one by one or as one sequence."""
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = tuple(tensors[0])
    return [tensor_operand(t, f"{what}(): every argument") for t in tensors]


def _at_least(rank: int, reshaped: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def fn(*tensors: Any) -> Any:
        name = f"atleast_{rank}d"
        single = len(tensors) == 1 and isinstance(tensors[0], Tensor)
        out = tuple(t if t.dim() >= rank else reshaped(t) for t in given(tensors, name))
        return out[0] if single else out

    fn.__name__ = fn.__qualname__ = f"atleast_{rank}d"
    fn.__doc__ = f"The tensors, seen with dimensions of size 1 added where they have fewer than {rank}."
    return fn


def _matrix(t: Tensor) -> Tensor:
    return reshape(t, 1, 1) if t.dim() == 0 else unsqueeze(t, 0)


def _cube(t: Tensor) -> Tensor:
    return reshape(t, 1, 1, 1) if t.dim() == 0 else unsqueeze(_matrix(t) if t.dim() == 1 else t, -1)


atleast_1d = _at_least(1, lambda t: reshape(t, 1))
atleast_2d = _at_least(2, _matrix)
atleast_3d = _at_least(3, _cube)


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along the columns: dimension 1, or 0 of vectors."""
    parts = [atleast_1d(t) for t in given((tensors,), "hstack")]
    return cat(parts, 0 if parts and parts[0].dim() == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined as rows, along dimension 0; vectors are rows."""
    return cat([atleast_2d(t) for t in given((tensors,), "vstack")], 0)


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along dimension 2; matrices are `[n, m, 1]`."""
    return cat([atleast_3d(t) for t in given((tensors,), "dstack")], 2)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined as columns; vectors are columns."""
    parts = given((tensors,), "column_stack")
    return cat([t if t.dim() > 1 else reshape(t, -1, 1) for t in parts], 1)


def block_diag(*tensors: Tensor) -> Tensor:
    """A matrix with the given matrices (vectors are rows) along its diagonal, zeros elsewhere."""
    parts = [atleast_2d(t) for t in given(tensors, "block_diag")]
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *parts)
    dtype = result_type(*parts)
    return Tensor(trace.emit(REGISTRY["block_diag"], tuple(as_value(trace, t, dtype) for t in parts), {}))


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Views of the tensors in the shape they broadcast to."""
    parts = given(tensors, "broadcast_tensors")
    shape = broadcast_shapes(*(tuple(t.shape) for t in parts))
    return tuple(expand(t, shape) for t in parts)


def broadcast_shapes_(*shapes: Any) -> Any:
    """The shape that shapes broadcast to."""
    from_ints = [(s,) if isinstance(s, int) else tuple(s) for s in shapes]
    return type(tensor(0).shape)(broadcast_shapes(*from_ints))


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Grids of coordinates from vectors: views of shape `[n0, n1, ...]`; with `indexing="xy"`
    the first two dimensions are swapped."""
    parts = given(tensors, "meshgrid")
    if indexing not in ("ij", "xy"):
        raise OpError(f"meshgrid(): indexing must be 'ij' or 'xy', not {indexing!r}")
    for t in parts:
        if t.dim() > 1:
            raise OpError(f"meshgrid(): expected vectors or scalars, got {t._value().type}")
    swap = indexing == "xy" and len(parts) > 1
    if swap:
        parts[:2] = parts[1::-1]
    shape = [t.numel() for t in parts]
    grids = []
    for d, t in enumerate(parts):
        grids.append(expand(reshape(t, [n if k == d else 1 for k, n in enumerate(shape)]), shape))
    if swap:
        grids[:2] = grids[1::-1]
    return tuple(grids)


def cartesian_prod(*tensors: Tensor) -> Tensor:
    """All combinations of one element of each vector, as rows."""
    parts = given(tensors, "cartesian_prod")
    for t in parts:
        if t.dim() != 1:
            raise OpError(f"cartesian_prod(): expected vectors, got {t._value().type}")
    if len(parts) == 1:
        return parts[0]
    return stack([reshape(g, -1) for g in meshgrid(*parts)], 1)


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """All combinations of `r` elements of a vector, as rows `[count, r]`."""
    if input.dim() != 1 or r < 0:
        raise OpError(f"combinations(): expected a vector and r >= 0, got {input._value().type} and r={r}")
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    picked = list(choose(range(input.numel()), r))
    if r == 0:
        return input[:0]
    index = tensor(np.array(picked, np.int64).reshape(len(picked), r))
    return Tensor(STATE.trace.emit(REGISTRY["take"], (input._value(), index._value()), {"dim": 0}))


def split_with_sizes(input: Tensor, split_sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts of the given sizes along `dim`."""
    return split(input, list(split_sizes), dim)


def tensor_split(
    input: Tensor, indices_or_sections: Any = None, dim: int = 0, **names: Any
) -> tuple[Tensor, ...]:
    """Views of `n` parts of nearly equal size along `dim`, or of the parts between the given indices."""
    spec = indices_or_sections
    for name in ("indices", "sections"):
        spec = names.get(name, spec)
    if isinstance(spec, Tensor):
        spec = spec.tolist()
    if not input.dim():
        raise OpError("tensor_split(): expected at least 1 dimension, got a scalar")
    d = normalize_axis(dim, input.dim())
    n = tuple(input.shape)[d]
    if isinstance(spec, int):
        if spec <= 0:
            raise OpError(f"tensor_split(): the number of parts must be positive, got {spec}")
        small, extra = divmod(n, spec)
        ends = [min(k, extra) + small * k for k in range(spec + 1)]
        return tuple(narrow(input, d, a, b - a) for a, b in itertools.pairwise(ends))
    ends = [slice(None, i).indices(n)[1] for i in spec]
    return tuple(narrow(input, d, min(a, n), max(b - a, 0)) for a, b in zip([0, *ends], [*ends, n]))


def _split_along(name: str, rank: int, dim: int) -> None:
    def fn(input: Tensor, indices_or_sections: Any = None, **names: Any) -> tuple[Tensor, ...]:
        at_least = 1 if name == "hsplit" else rank
        if input.dim() < at_least:
            raise OpError(f"{name}(): expected at least {at_least} dimensions, got {input._value().type}")
        spec = next(iter(names.values())) if names else indices_or_sections
        d = dim if input.dim() >= rank else 0
        n = tuple(input.shape)[d]
        if isinstance(spec, int) and (spec <= 0 or n % spec):
            raise OpError(f"{name}(): dimension {d} of size {n} does not split into {spec} equal parts")
        return tensor_split(input, spec, d)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"`tensor_split` along dimension {dim}; a number of parts must divide it."
    FUNCTIONS[name] = fn


_split_along("hsplit", 2, 1)
_split_along("vsplit", 2, 0)
_split_along("dsplit", 3, 2)


def unsafe_chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """`chunk`."""
    return chunk(input, chunks, dim)


def unsafe_split(tensor: Tensor, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """`split`."""
    return split(tensor, split_size, dim)


def repeat_interleave(
    input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Every position of `dim` (of the flattened tensor by default) several times in a row.

    Args:
        repeats: a number, or a vector with one for each position. Alone (`repeat_interleave(repeats)`), the
            positions themselves are repeated.
        output_size: the size of the result's dimension; with it, repeats that are not known yet will do.
    """
    tensor_operand(input, "repeat_interleave(): input")
    if repeats is None:
        counts = contents_of(input, "repeat_interleave()", "repeat_interleave(x, repeats, output_size=n)")
        positions = np.repeat(np.arange(input.numel()), counts)
        return tensor(positions.astype(np.int64))
    x = reshape(input, -1) if dim is None or not input.dim() else input
    d = normalize_axis(0 if dim is None else dim, x.dim())
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, x)
    if isinstance(repeats, (list, tuple)):
        repeats = tensor(list(repeats), dtype=dtypes.int64)
    if isinstance(repeats, Tensor) and repeats.dtype.kind not in "iu":
        raise DTypeError(f"repeat_interleave(): repeats must be integers, got {repeats._value().type}")
    if isinstance(repeats, Tensor) and repeats.numel() == 1 and x.shape[d] != 1:
        repeats = int(repeats.item())
    if isinstance(repeats, int):
        attrs = {"repeats": repeats, "dim": d}
        return Tensor(trace.emit(REGISTRY["repeat_interleave"], (x._value(),), attrs))
    if repeats.dim() > 1 or repeats.numel() != x.shape[d]:
        raise OpError(
            f"repeat_interleave(): expected one repeat for each of {x.shape[d]} positions, "
            f"got {repeats._value().type}"
        )
    if output_size is None or trace is STATE.lazy:
        counts = contents_of(repeats, "repeat_interleave()", "output_size=").reshape(-1)
        if counts.size and counts.min() < 0:
            raise OpError(f"repeat_interleave(): repeats must not be negative, got {int(counts.min())}")
        position = tensor(np.repeat(np.arange(counts.size), counts).astype(np.int64))._value()
        if output_size not in (None, position.type.numel):
            raise OpError(f"repeat_interleave(): repeats add up to {position.type.numel}, not {output_size}")
    else:
        position = _positions(trace, as_value(trace, repeats, dtypes.int64), output_size)
    return Tensor(trace.emit(REGISTRY["take"], (x._value(), position), {"dim": d}))


def _positions(trace: Any, repeats: Any, total: int) -> Any:
    """For each place of the result the position it repeats: how many runs have ended before it."""
    ends = trace.cumsum(trace.reshape(repeats, shape=(1, repeats.type.numel)), dim=1)
    place = trace.iota(shape=(total, 1), dim=0, dtype=dtypes.int64)
    return trace.sum(trace.cast(trace.ge(place, ends), dtype=dtypes.int64), axes=(1,))


for _fn in (
    atleast_1d, atleast_2d, atleast_3d, hstack, vstack, dstack, column_stack, block_diag, broadcast_tensors,
    meshgrid, cartesian_prod, combinations, split_with_sizes, tensor_split, unsafe_chunk, unsafe_split,
    repeat_interleave,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
FUNCTIONS["row_stack"] = vstack
FUNCTIONS["broadcast_shapes"] = broadcast_shapes_
