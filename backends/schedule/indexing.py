"""Index arithmetic of schedules: flat positions, canonical numbers for expressions, and splits of a flat
domain.

Used by the other files of this folder only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

from ...ir import dtypes
from ...ir.accesses import is_index as is_index
from ...ir.expr import (
    Cast,
    Const,
    Expr,
    LaneReduce,
    Load,
    Local,
    Prim,
    Var,
    WarpReduce,
    forget_arithmetic,
    from_terms,
    index_div,
    index_mod,
    index_sum,
    terms,
)

ZERO = Const(0)
ONE = Const(1)


@lru_cache(maxsize=1 << 12)
def ravel(index: tuple[Expr, ...], shape: tuple[int, ...]) -> Expr:
    """The row-major position of `index` in `shape`."""
    if len(index) == 1:
        return index[0]
    parts: list[tuple[Expr, int]] = []
    stride = 1
    for i, n in zip(reversed(index), reversed(shape)):
        if n != 1:
            parts.append((i, stride))
            stride *= n
    return index_sum(parts, 0)


@lru_cache(maxsize=1 << 12)
def unravel(flat: Expr, shape: tuple[int, ...]) -> tuple[Expr, ...]:
    """The index in `shape` of a row-major position."""
    out: list[Expr] = []
    stride = prod(shape)
    leading = True
    for n in shape:
        stride //= max(n, 1)
        if n == 1:
            out.append(ZERO)
            continue
        i = index_div(flat, stride) if stride else ZERO
        out.append(i if leading or n == 0 else index_mod(i, n))
        leading = False
    return tuple(out)


def forget() -> None:
    """Lets go of the expressions that index arithmetic remembers."""
    ravel.cache_clear()
    unravel.cache_clear()
    forget_arithmetic()


def broadcast_index(index: tuple[Expr, ...], shape: tuple[int, ...]) -> tuple[Expr, ...]:
    """Where a broadcast operand of `shape` is read for the result's `index`."""
    tail = index[len(index) - len(shape) :]
    if 1 not in shape:
        return tail
    return tuple(ZERO if n == 1 else i for n, i in zip(shape, tail))


class Numbering:
    """Numbers expressions so that structurally equal ones get equal numbers. Keeps what it numbered alive."""

    def __init__(self) -> None:
        self.known: dict[Expr, int] = {}
        self.by_key: dict[tuple[Any, ...], int] = {}

    def __call__(self, e: Expr) -> int:
        known = self.known
        got = known.get(e)
        if got is not None:
            return got
        if type(e) is Prim:
            args = e.args
            if len(args) == 2:  # much the most
                a, b = args
                x, y = known.get(a), known.get(b)
                key: tuple[Any, ...] = (e.name, self(a) if x is None else x, self(b) if y is None else y)
            else:
                key = (e.name, *[self(a) for a in args])
        elif isinstance(e, Const):
            key = ("c", e.value if e.dtype is dtypes.int64 else repr(e.value), e.dtype.name)
        elif isinstance(e, (Var, Local)):
            key = ("v", id(e))
        elif isinstance(e, Load):
            key = ("load", id(e.buffer), len(e.index), *[self(a) for a in e.args])
        elif isinstance(e, Cast):
            key = ("bits" if e.bits else "cast", e.dtype.name, self(e.x))
        elif isinstance(e, WarpReduce):
            key = ("warp", e.name, self(e.x))
        else:
            assert isinstance(e, LaneReduce)
            key = ("lanes", e.name, id(e.var), self(e.x))
        number = self.by_key.setdefault(key, len(self.by_key))
        known[e] = number
        return number

    def index(self, index: Iterable[Expr]) -> tuple[int, ...]:
        return tuple([self(e) for e in index])


def divisors(e: Expr, var: Var, found: set[int]) -> None:
    """Adds the k at which a quotient or remainder divides the flat variable `var`, if it does: `(f // 6) % 4`
    divides at 24."""
    a, b = e.args
    if isinstance(b, Const):
        scale = _scale(a, var)
        if scale is not None:
            found.add(scale * int(b.value))


def _scale(e: Expr, var: Var) -> int | None:
    """k where `e` counts multiples of k of `var`: 1 for itself, 6 for `f // 6`, 6 for `(f // 6) % 4`."""
    if isinstance(e, Prim) and e.name == "floordiv" and isinstance(e.args[1], Const):
        inner = _scale(e.args[0], var)
        return None if inner is None else inner * int(e.args[1].value)
    if isinstance(e, Prim) and e.name == "mod" and isinstance(e.args[1], Const):
        return _scale(e.args[0], var)
    found = None
    for atom, n in terms(e)[0]:
        if atom is var:
            found = 1 if abs(n) == 1 else None
        elif not isinstance(atom, Var):
            return None
    return found


def chain(candidates: set[int], extent: int) -> list[int]:
    """The finest split of `extent` by candidates that divide one another: sizes, outermost first."""
    cuts = [1]
    for k in sorted(candidates):
        if 1 < k < extent and k % cuts[-1] == 0 and extent % k == 0:
            cuts.append(k)
    cuts.append(extent)
    return [b // a for a, b in itertools.pairwise(cuts)][::-1]


def split_flat(parts: list[Expr], sizes: list[int]) -> Expr:
    """The flat position of the parts of a split."""
    items: list[tuple[Expr, int]] = []
    const = 0
    stride = 1
    for p, n in zip(reversed(parts), reversed(sizes)):
        more, c = terms(p)
        items += [(t, k * stride) for t, k in more]
        const += c * stride
        stride *= n
    return from_terms(items, const)
