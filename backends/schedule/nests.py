"""Loop nests around blocks: splitting flat domains into loops, vector loops with masked or scalar tails,
parallel outer loops. Used by the emitters of this folder only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod

from ...ir import dtypes
from ...ir.accesses import is_index, loads_of
from ...ir.dataclass import dataclass
from ...ir.expr import Const, Expr, Load, Local, Prim, Var, index_add, stride_of, walk
from ...ir.loops import Buffer
from ...ir.substitute import Memo, substitute
from ..machine import MachineModel
from .indexing import ZERO, chain, divisors, split_flat
from .scopes import Lowering, Scope

#: innermost loops of so few turns are none: lanes that know their quotients and remainders do better
FOLDED, LANES = (2, 4), 16
#: (buffer, flat index, value)
StoreSpec = tuple[Buffer, Expr, Expr]


@dataclass
class Split:
    """A flat domain variable as several: `sizes` outermost first, one variable each (a constant where the
    size is 1)."""

    flat: Expr
    vars: list[Expr]
    sizes: list[int]

    @classmethod
    def of(cls, flat: Expr, extent: int, exprs: list[Expr], extra: tuple[int, ...] = ()) -> Split:
        """The split that the divisions in `exprs` ask for."""
        if not isinstance(flat, Var):
            return cls(flat, [ZERO], [extent])
        found: set[int] = set(extra)
        for e in divisions(exprs):
            divisors(e, flat, found)
        sizes = chain(found, extent)
        if sizes[-1] in FOLDED:
            while len(sizes) > 1 and power_of_two(sizes[-1]) == sizes[-1] < LANES:
                sizes[-2:] = [sizes[-2] * sizes[-1]]
        if len(sizes) == 1:
            return cls(flat, [flat], sizes)
        names = [f"{flat.name}{k}" for k in range(len(sizes))]
        return cls(flat, [Var(n, s) if s != 1 else ZERO for n, s in zip(names, sizes)], sizes)

    @property
    def changed(self) -> bool:
        return len(self.sizes) > 1

    def value(self) -> Expr:
        return split_flat(self.vars, self.sizes)


def resplit(
    bindings: dict[Local, Expr], specs: list[StoreSpec], splits: list[Split]
) -> tuple[dict[Local, Expr], list[StoreSpec]]:
    """Bindings and stores over the variables of the splits."""
    env: dict[Expr, Expr] = {s.flat: s.value() for s in splits if s.changed}
    if not env:
        return bindings, specs
    memo: Memo = {}
    return (
        {local: substitute(e, env, memo) for local, e in bindings.items()},
        [(b, substitute(i, env, memo), substitute(v, env, memo)) for b, i, v in specs],
    )


def needed_exprs(bindings: dict[Local, Expr], roots: list[Expr]) -> list[Expr]:
    """`roots` and every binding they use."""
    out, stack = list(roots), list(roots)
    seen: set[int] = set()
    while stack:
        inner = [stack.pop()]
        while inner:
            x = inner.pop()
            if id(x) in seen or is_index(x):
                continue
            seen.add(id(x))
            inner += x.args
            value = bindings.get(x) if type(x) is Local else None
            if value is not None:
                out.append(value)
                stack.append(value)
    return out


def divisions(exprs: list[Expr]) -> list[Expr]:
    """Every quotient and remainder in `exprs`."""
    return [x for x in walk(*exprs) if type(x) is Prim and x.name in ("floordiv", "mod")]


def lanes_for(machine: MachineModel, dtypes_: list[dtypes.DType]) -> int:
    """Lanes of a vector loop over elements of these types: whole registers of the narrowest one from 32
    bits up."""
    sizes = (
        [max(4, d.itemsize) for d in dtypes_ if d.kind == "f"] or [max(4, d.itemsize) for d in dtypes_] or [4]
    )
    return machine.lanes(min(sizes))


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()


def less(a: Expr, n: int) -> Expr:
    return Prim("lt", (a, Const(n)), dtypes.bool_)


def vector_blocks(
    scope: Scope,
    var: Expr,
    start: int,
    stop: int,
    lanes: int,
    machine: MachineModel,
    body: Callable[[Scope], None],
) -> None:
    """`body` for every value of `var` in [start, stop): whole vectors, then a masked vector or a scalar
    loop."""
    n = stop - start
    if n <= 0:
        return
    if not isinstance(var, Var):
        body(scope)
        return
    whole = n // lanes * lanes if lanes > 1 else 0
    base: Expr = ZERO
    if whole:
        outer = scope
        if whole > lanes:
            v = Var(var.name, whole)
            outer = scope.loop(v, whole, "serial", lanes)
            base = v
        lane = Var(f"{var.name}v", lanes)
        inner = outer.loop(lane, lanes, "vector")
        inner.define(var, index_add(index_add(base, lane), Const(start)))
        body(inner)
        inner.close()
        if outer is not scope:
            outer.close()
    tail_block(scope, var, start + whole, stop, lanes, machine, body)


def tail_block(
    scope: Scope,
    var: Var,
    start: int,
    stop: int,
    lanes: int,
    machine: MachineModel,
    body: Callable[[Scope], None],
) -> None:
    """`body` for fewer values than a vector holds."""
    n = stop - start
    if n <= 0:
        return
    wide = min(power_of_two(n), max(lanes, 1))
    if n == 1:
        inner = scope.inline()
        inner.define(var, Const(start))
        body(inner)
        inner.close()
        return
    if wide == n or (machine.masked_memory and lanes > 1):
        lane = Var(f"{var.name}v", wide)
        mask = less(lane, n) if wide > n else None
        inner = scope.loop(lane, wide, "vector", mask=mask, masked=var if mask is not None else None)
        inner.define(var, index_add(lane, Const(start)))
        body(inner)
        inner.close()
        return
    v = Var(var.name, n)
    inner = scope.loop(v, n, "serial")
    inner.define(var, index_add(v, Const(start)))
    body(inner)
    inner.close()


def strides(loads: list[Load], var: Expr) -> list[int | None]:
    """How far each load moves with `var`; 1 too where it moves by known quotients and remainders of it."""
    if not isinstance(var, Var):
        return [0] * len(loads)
    known: dict[Expr, int | None] = {}
    out: list[int | None] = []
    for x in loads:
        index = x.index[0]
        if index not in known:
            stride = stride_of(index, var)
            known[index] = 1 if stride is None and _folded(index, var) else stride
        out.append(known[index])
    return out


def _folded(e: Expr, var: Var) -> bool:
    """Whether an index moves within a vector's length, by quotients and remainders of the lane."""
    try:
        lanes = [_at(e, var, k) for k in range(LANES)]
    except TypeError:
        return False
    return max(lanes) - min(lanes) < LANES


def _at(e: Expr, var: Var, value: int) -> int:
    """An index where `var` has the value and all other variables are 0; TypeError where it is data."""
    if isinstance(e, Const):
        return int(e.value)
    if isinstance(e, Var):
        return value if e is var else 0
    if not is_index(e):
        raise TypeError
    assert isinstance(e, Prim)
    a, b = (_at(x, var, value) for x in e.args)
    return _INDEX[e.name](a, b)


_INDEX = {"add": operator.add, "mul": operator.mul, "floordiv": operator.floordiv, "mod": operator.mod}


def fixed(split: Split) -> int:
    return prod(split.sizes)


__all__ = [
    "Lowering", "Split", "StoreSpec", "lanes_for", "less", "loads_of", "needed_exprs", "power_of_two",
    "resplit",
    "strides", "tail_block", "vector_blocks",
]  # fmt: skip
