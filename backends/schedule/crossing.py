"""Tiles for elementwise nests that read across memory (transposes): two dimensions in blocks, so that the
lines one block touches stay in the cache until they are used up. Used by pointwise.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Const, Expr, Load, Var, index_add, stride_of
from ..machine import MachineModel
from .nests import Split, less, power_of_two
from .scopes import Scope
from .tiles import splits


def crossing(split: Split, loads: list[Load]) -> int | None:
    """The dimension, other than the last, along which a load of far-apart elements would run through
    memory."""
    *others, last = split.vars
    votes = [0] * len(others)
    for x in loads:
        far = stride_of(x.index[0], last) if isinstance(last, Var) else 0
        if far is None or abs(far) <= 4:
            continue
        for k, var in enumerate(others):
            if isinstance(var, Var) and abs(stride_of(x.index[0], var) or 0) == 1 and split.sizes[k] >= 8:
                votes[k] += 1
    best = max(range(len(votes)), key=votes.__getitem__, default=None)
    return best if best is not None and votes[best] and split.sizes[-1] >= 8 else None


def transposing_tiles(
    scope: Scope,
    split: Split,
    across: int,
    machine: MachineModel,
    parallel: bool,
    body: Callable[[Scope], None],
) -> None:
    """Square-ish tiles of two dimensions, so that each cache line of a transposed operand is used up while
    it is there. Eight lines at a time: lines a power of two apart share few places in the cache."""
    low = scope.lowering
    var, last = split.vars[across], split.vars[-1]
    assert isinstance(var, Var) and isinstance(last, Var)
    lanes = min(8, machine.lanes(4))
    start = 0
    for count, size in splits(split.sizes[across], 16):
        here = parallel and count >= 4
        rows, at = tile_loop(scope, f"{last.name}t", start, count, size, "parallel" if here else "serial")
        if here:
            low.floor = rows.depth
        from_ = 0
        for n, width in splits(split.sizes[-1], lanes):
            cols, base = tile_loop(rows, f"{last.name}t", from_, n, width, "serial")
            i = Var(var.name, size)
            line = cols.loop(i, size, "serial")
            line.define(var, index_add(at, i))
            tail = line.inline()
            shifted_block(tail, last, base, width, lanes, machine, body)
            tail.close()
            line.close()
            cols.close()
            from_ += n * width
        rows.close()
        low.floor = 0 if here else low.floor
        start += count * size


def tile_loop(scope: Scope, name: str, start: int, count: int, size: int, kind: str) -> tuple[Scope, Expr]:
    """A loop over `count` tiles from `start` on, and where its tile starts."""
    if count == 1:
        return scope.inline(), Const(start)
    v = Var(name, count * size)
    return scope.loop(v, count * size, kind, size), index_add(v, Const(start))


def shifted_block(
    scope: Scope,
    var: Var,
    base: Expr,
    n: int,
    lanes: int,
    machine: MachineModel,
    body: Callable[[Scope], None],
) -> None:
    """`body` for n <= lanes values of `var` from `base` on."""
    wide = power_of_two(n)
    if n > 1 and (wide == n or machine.masked_memory):
        lane = Var(f"{var.name}v", wide)
        mask = less(lane, n) if wide > n else None
        inner = scope.loop(lane, wide, "vector", mask=mask, masked=var if mask is not None else None)
        inner.define(var, index_add(base, lane))
    else:
        one = Var(var.name, n)
        inner = scope.loop(one, n, "serial")
        inner.define(var, index_add(base, one))
    body(inner)
    inner.close()
