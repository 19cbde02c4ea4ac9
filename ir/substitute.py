"""Replacing nodes of expressions. Schedulers move loop bodies with it."""

from __future__ import annotations

from . import dtypes
from .expr import Const, Expr, Local, Prim, Var, index_add, index_div, index_mod, index_mul

_INDEX_OPS = ("add", "mul", "floordiv", "mod")


Memo = dict[int, tuple["Expr", "Expr"]]


def substitute(e: Expr, env: dict[Expr, Expr], memo: Memo | None = None) -> Expr:
    """`e` with the given nodes (by identity) replaced; index sums are simplified again. `memo`: a dictionary,
    empty at first, for all expressions that the same is replaced in: what they share is then done once."""
    done: Memo = {} if memo is None else memo

    def go(x: Expr) -> Expr:
        new = env.get(x)
        if new is not None:
            return new
        kind = type(x)
        if kind is Const or kind is Var or kind is Local:
            return x
        known = done.get(id(x))
        if known is not None:
            return known[1]
        old = x.args
        args = tuple([go(a) for a in old])
        if all([a is b for a, b in zip(args, old)]):
            new = x
        elif isinstance(x, Prim) and x.dtype is dtypes.int64 and x.name in _INDEX_OPS:
            new = _reindex(x.name, args)
        else:
            new = x.rebuild(args)
        done[id(x)] = x, new  # with x, or another could get its id
        return new

    return go(e)


def _reindex(name: str, args: tuple[Expr, ...]) -> Expr:
    a, b = args
    if name == "add":
        return index_add(a, b)
    if isinstance(b, Const):
        k = int(b.value)
        if name == "mul":
            return index_mul(a, k)
        if k > 0:
            return index_div(a, k) if name == "floordiv" else index_mod(a, k)
    return Prim(name, args, dtypes.int64)
