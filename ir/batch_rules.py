"""How particular ops run on a batch, where it does not follow from their kind (ir/batch.py). Named by the
records in ir/ops/; a rule `rule(b, n)` gets a BatchNode with at least one batched operand and gives the
batched results, or None where it can't.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .batch import BatchNode, batch_parts
from .builder import Builder
from .dtypes import int64
from .graph import Value
from .types import LETTERS

Rule = Callable[[Builder, BatchNode], Any]


def _moved(b: Builder, x: Value, source: int, to: int) -> Value:
    """`x` with dimension `source` at position `to`."""
    order = [d for d in range(x.type.rank) if d != source]
    order.insert(to, source)
    return x if source == to else b.permute(x, dims=tuple(order))


def to_parts(b: Builder, n: BatchNode) -> Any:
    """The parts of a composite; for rules that hold in some cases only."""
    made, flags = batch_parts(b, n.node, n.operands, n.flags, n.size)
    shapes = [(n.size, *r.type.shape) for r in n.node.results]
    return tuple(v if f else b.expand(v, shape=s) for v, f, s in zip(made, flags, shapes))


def same(b: Builder, n: BatchNode) -> Any:
    """The op itself on batches of all its operands: an op that changes no element."""
    return n.again(*[n.full(i) for i in range(len(n))])


def leading(b: Builder, n: BatchNode) -> Any:
    """A composite that works on the last dimensions of its first operand, whatever comes before them."""
    return n.again(*n.operands) if n.only(0) and n.type(0).rank else to_parts(b, n)


def along(name: str) -> Rule:
    """A composite of one operand along the dimension that the attribute `name` gives."""

    def rule(b: Builder, n: BatchNode) -> Any:
        dim = n.attr(name)
        if not n.type(0).rank or not isinstance(dim, int) or not n.only(0):
            return to_parts(b, n)
        return n.again(*n.operands, **{name: dim + 1 if dim >= 0 else dim})

    return rule


# --- movement -----------------------------------------------------------------------------------------------


def permute(b: Builder, n: BatchNode) -> Any:
    return n.again(*n.operands, dims=(0, *(d + 1 for d in n.attrs["dims"])))


def expand(b: Builder, n: BatchNode) -> Any:
    shape = n.attrs["shape"]
    return n.again(n.aligned(0, len(shape)), shape=(n.size, *shape))


# --- contractions -------------------------------------------------------------------------------------------


def contract(b: Builder, n: BatchNode) -> Any:
    """A new letter for the batch, in front of the batched operands and the result."""
    spec = n.attrs["spec"]
    letter = next(c for c in LETTERS if c not in spec)
    operands, out = spec.split("->")
    parts = [letter + part if flag else part for part, flag in zip(operands.split(","), n.flags)]
    return n.again(*n.operands, spec=f"{','.join(parts)}->{letter}{out}")


# --- positions that are data --------------------------------------------------------------------------------


def _places(b: Builder, n: BatchNode, rank: int) -> Value:
    """The number of the example, to index the batch dimension with beside indices of `rank` dimensions."""
    line = b.iota(shape=(n.size,), dim=0, dtype=int64)
    return b.reshape(line, shape=(n.size, *(1,) * rank)) if rank else line


def take(b: Builder, n: BatchNode) -> Any:
    dim, rank = n.attr("dim"), n.type(1).rank
    if n.only(0):
        return n.again(*n.operands, dim=dim + 1)
    if n.only(1):
        return _moved(b, n.again(*n.operands, dim=dim), dim, 0)
    made = b.index(n.operands[0], _places(b, n, rank), n.operands[1], dims=(0, dim + 1))
    return _indices_to(b, made, rank, dim)


def _index_dims(b: Builder, n: BatchNode, first: int) -> tuple[list[Value], tuple[int, ...], int, int]:
    """For `index` and `index_put` whose base is batched: index operands that share the batch dimension with
    the base, their dims, how many dimensions they have together, and where the op puts those."""
    dims: tuple[int, ...] = n.attrs["dims"]
    rank = max(n.type(i).rank for i in range(first, len(n)))
    at = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    ints = [_places(b, n, rank), *(n.aligned(i, rank) for i in range(first, len(n)))]
    return ints, (0, *(d + 1 for d in dims)), rank, at


def _indices_to(b: Builder, x: Value, rank: int, at: int) -> Value:
    """(batch, indices, kept) with the indices where an example's op has them: after `at` kept dimensions."""
    for k in range(at):
        x = _moved(b, x, 1 + rank + k, 1 + k)
    return x


def _indices_from(b: Builder, x: Value, rank: int, at: int) -> Value:
    """The inverse of `_indices_to`."""
    if not at:
        return x
    order = [0, *range(1 + at, 1 + at + rank), *range(1, 1 + at), *range(1 + at + rank, x.type.rank)]
    return b.permute(x, dims=tuple(order))


def index(b: Builder, n: BatchNode) -> Any:
    dims = n.attrs["dims"]
    together = dims[-1] - dims[0] == len(dims) - 1
    if n.only(0):
        made = n.again(*n.operands, dims=tuple(d + 1 for d in dims))
        rank = max(n.type(i).rank for i in range(1, len(n)))
        return made if together else _moved(b, made, rank, 0)
    if not n.flags[0]:
        rank = max(n.type(i).rank for i in range(1, len(n)))
        made = b.index(n.operands[0], *[n.aligned(i, rank) for i in range(1, len(n))], dims=dims)
        return _moved(b, made, dims[0] if together else 0, 0)
    ints, dims, rank, at = _index_dims(b, n, 1)
    return _indices_to(b, b.index(n.operands[0], *ints, dims=dims), rank, at)


def index_put(b: Builder, n: BatchNode) -> Any:
    ints, dims, rank, at = _index_dims(b, n, 2)
    new = _indices_from(b, n.full(1), rank, at)
    return n.again(n.full(0), new, *ints, dims=dims)


def embedding(b: Builder, n: BatchNode) -> Any:
    return n.again(*n.operands) if n.only(1) else to_parts(b, n)


def masked_fill(b: Builder, n: BatchNode) -> Any:
    """The op takes one value; a value for each example is a `where`."""
    rank = max(n.type(0).rank, n.type(1).rank)
    x, mask, value = (n.aligned(i, rank) for i in range(3))
    return n.again(x, mask, value) if not n.flags[2] else b.where(mask, value, x)
