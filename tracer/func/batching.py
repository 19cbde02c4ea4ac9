"""`vmap`: a function of one example as a function of many. The call is recorded for one example, and
lowered with a new first dimension (ir/batch.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ...ir.op import REGISTRY
from ..callers import user_location
from ..functions.shaping import cat
from ..level import Level, moved
from ..library import ArgumentError
from ..tensor import Tensor
from ..values import TracedValue
from .transforms import begin, output_tensors, refilled, tensors_of

Dims = Any
RANDOMNESS = ("error", "different", "same")


def _where() -> str:
    return f"vmap() at {user_location()}"


def _spread(dims: Dims, tree: Any, what: str) -> list[int | None]:
    """`dims`, an int or None for all below it, or containers like those of `tree`: one entry per tensor."""
    if dims is None or (isinstance(dims, int) and not isinstance(dims, bool)):
        return [dims] * len(tensors_of(tree))
    if isinstance(tree, (tuple, list)) and isinstance(dims, (tuple, list)) and len(dims) == len(tree):
        return [d for x, y in zip(dims, tree) for d in _spread(x, y, what)]
    if isinstance(tree, dict) and isinstance(dims, dict) and list(dims) == list(tree):
        return [d for k in tree for d in _spread(dims[k], tree[k], what)]
    got = type(tree).__name__ + (f" of {len(tree)}" if isinstance(tree, (tuple, list, dict)) else "")
    raise ArgumentError(
        f"{_where()}: {what}={dims!r:.80} does not fit {got}; give an int, None, or the same containers"
    )


def _dim(d: int, rank: int, what: str, t: Any) -> int:
    if not -rank <= d < rank:
        raise ArgumentError(f"{_where()}: {what} {d} is out of range for a tensor of type {t}")
    return d % rank


def _batch_size(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> int:
    sizes: dict[int, int] = {}
    for k, (t, d) in enumerate(zip(tensors, dims)):
        if d is not None:
            sizes.setdefault(t.shape[_dim(d, t.dim(), "in_dims", t._value().type)], k)
    if not sizes:
        raise ArgumentError(
            f"{_where()}: no tensor is mapped over; at least one entry of in_dims must be an int"
        )
    if len(sizes) > 1:
        listed = ", ".join(f"{n} (tensor {k})" for n, k in sizes.items())
        raise ArgumentError(f"{_where()}: expected the mapped dimensions to have one size, got {listed}")
    return next(iter(sizes))


def vmap(
    func: Callable[..., Any],
    in_dims: Dims = 0,
    out_dims: Dims = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that maps `func` over a dimension of its positional arguments, without a loop.

    Args:
        func: takes and returns tensors, in any containers. Keyword arguments are not mapped over.
        in_dims: the dimension to map over: an int for all tensors, None for what is the same for every
            example, or containers like the arguments'.
        out_dims: where the mapped dimension is in the outputs, likewise.
        randomness: what random functions inside do: `error`, `different` numbers for each example, or the
            `same`.
        chunk_size: at most so many examples at a time.

    Raises:
        ArgumentError: dimensions that do not exist or differ in size.
        TraceError: something inside needs a value that differs from example to example.
    """
    if randomness not in RANDOMNESS:
        raise ArgumentError(f"vmap(): randomness must be one of {', '.join(RANDOMNESS)}, got {randomness!r}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ArgumentError(f"vmap(): chunk_size must be None or an int > 0, got {chunk_size!r}")

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begin(args, kwargs, derives=False)
        tensors = tensors_of(args)
        dims = _spread(in_dims if not isinstance(in_dims, list) else tuple(in_dims), args, "in_dims")
        size = _batch_size(tensors, dims)
        if chunk_size is None or chunk_size >= size:
            return _map(func, args, kwargs, tensors, dims, size, out_dims, randomness)
        trees = []
        for lo in range(0, size, chunk_size):
            n = min(chunk_size, size - lo)
            parts = [t if d is None else t.narrow(d, lo, n) for t, d in zip(tensors, dims)]
            trees.append(_map(func, refilled(args, parts), kwargs, parts, dims, n, out_dims, randomness))
        rows = [tensors_of(tree) for tree in trees]
        spread = _spread(out_dims, trees[0], "out_dims")
        joined = [column[0] if d is None else cat(column, d) for column, d in zip(zip(*rows), spread)]
        return refilled(trees[0], joined)

    return wrapper


def _map(
    func: Callable[..., Any],
    args: Any,
    kwargs: Any,
    tensors: Sequence[Tensor],
    dims: Sequence[int | None],
    size: int,
    out_dims: Dims,
    randomness: str,
) -> Any:
    with Level("vmap", size, randomness) as level:
        stand_ins = [
            t if d is None else level.example_of(t, d % max(t.dim(), 1)) for t, d in zip(tensors, dims)
        ]
        output = func(*refilled(args, stand_ins), **kwargs)
        found = output_tensors("vmap", output)
        values = [t._value() for t in found]
    spread = _spread(out_dims, output, "out_dims")
    made = []
    for t, v, low, d in zip(found, values, level.lower(values), spread):
        made.append(_outside(level, t, v, low, d))
    level.finish()
    return refilled(output, made)


def _outside(level: Level, t: Tensor, v: TracedValue, low: TracedValue, d: int | None) -> Tensor:
    parent: Any = level.parent
    if d is None:
        if v in level.batched:
            raise ArgumentError(
                f"{_where()}: out_dims is None for an output of type {v.type} that differs from example to "
                f"example; give the dimension it shall have"
            )
        return level.tensor(low) if v.trace is level else t
    rank = v.type.rank + 1
    d = _dim(d, rank, "out_dims", f"{v.type} and the mapped dimension")
    made: Any = low
    if v not in level.batched:
        made = parent.emit(REGISTRY["expand"], (low,), {"shape": (level.size, *v.type.shape)})
    return level.tensor(moved(parent, made, 0, d))
