"""Replacing nodes of expressions. Schedulers move loop bodies with it."""

from __future__ import annotations

from collections.abc import Callable

from . import dtypes
from .expr import (
    Const,
    Expr,
    Load,
    Prim,
    index_add,
    index_div,
    index_mod,
    index_mul,
    index_sum,
    terms,
)

_INDEX_OPS = ("add", "mul", "floordiv", "mod")


Memo = dict[int, tuple["Expr", "Expr"]]


def substitute(
    e: Expr, env: dict[Expr, Expr], memo: Memo | None = None, load: Callable[[Load], Expr] | None = None
) -> Expr:
    """`e` with the given nodes (by identity) replaced; index sums are simplified again. `memo`: a dictionary,
    empty at first, for all expressions that the same is replaced in: what they share is then done once.
    `load`: what becomes of loads, when that is done."""
    return _substituted(e, env, {} if memo is None else memo, load)


def _substituted(x: Expr, env: dict[Expr, Expr], done: Memo, load: Callable[[Load], Expr] | None) -> Expr:
    new = env.get(x)
    if new is not None:
        return new
    old = x.args
    if not old and type(x) is not Load:
        return x
    known = done.get(id(x))
    if known is not None:
        return known[1]
    if type(x) is Prim and x.name == "add" and x.dtype is dtypes.int64:
        items, const = terms(x)  # at once: the sums on the way are nobody's
        parts = [(_substituted(a, env, done, load), n) for a, n in items]
        same = all([a is b for (a, _), (b, _) in zip(parts, items)])
        new = x if same else index_sum(parts, const)
        done[id(x)] = x, new
        return new
    args = tuple([_substituted(a, env, done, load) for a in old])
    new = x
    for a, b in zip(args, old):
        if a is not b:
            if type(x) is Prim and x.dtype is dtypes.int64 and x.name in _INDEX_OPS:
                new = _reindex(x.name, args)
            else:
                new = x.rebuild(args)
            break
    if load is not None and type(new) is Load:
        new = load(new)
    done[id(x)] = x, new  # with x, or another could get its id
    return new


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
