"""What expressions read, and which of them are mere address arithmetic. For schedulers and the memory
planner; nothing here knows of loops.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import dtypes
from .expr import Const, Expr, Load, Local, Prim, Var

_LEAVES = frozenset((Const, Local, Var))


def is_index(e: Expr) -> bool:
    """Whether `e` is address arithmetic on loop variables: always cheap, never worth a name."""
    if e.dtype is not dtypes.int64:
        return False
    if type(e) is not Prim:
        return type(e) is Const or type(e) is Var
    got = e._is_index
    if got is None:
        got = e.name in ("add", "mul", "floordiv", "mod") and is_index(e.args[0]) and is_index(e.args[1])
        e._is_index = got
    return got


def loads_of(exprs: Iterable[Expr], seen: set[int] | None = None) -> list[Load]:
    """Every load in `exprs`, the same object once. `seen`: a set, empty at first, for several calls that
    together are to give each once."""
    seen = set() if seen is None else seen
    out: list[Load] = []
    stack = list(exprs)[::-1]
    while stack:
        e = stack.pop()
        kind = type(e)
        if kind in _LEAVES or id(e) in seen or (kind is Prim and is_index(e)):
            continue
        seen.add(id(e))
        if isinstance(e, Load):
            out.append(e)
        stack += e.args
    return out
