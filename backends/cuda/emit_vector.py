"""Which loads and stores of a vector loop are one wide access of up to 16 bytes. Used by emit_kernel."""

from __future__ import annotations

from math import gcd

from ...ir.expr import Const, Expr, Load, Local, Prim, Var, terms, walk
from ...ir.loops import Buffer, For, Let, Store, expressions, statements
from .emit_expr import flat_index


def wide_accesses(s: For, steps: dict[Expr, int]) -> tuple[dict[Load, Expr], dict[Store, Expr]]:
    """The loads and stores of a vector loop's own statements that are one aligned run of elements, with
    their first index. Loads move before the loop and stores behind it, so nothing between may touch
    what they touch."""
    loads: dict[Load, Expr] = {}
    stores: dict[Store, Expr] = {}
    own = {x.local for x in s.body if isinstance(x, Let)}
    written: set[Buffer] = set()
    deep = [x for x in s.body if isinstance(x, For)]
    inner = {b.buffer for f in deep for b in statements(f.body) if isinstance(b, Store)}
    count: dict[Buffer, int] = {}
    for x in s.body:
        if isinstance(x, Store):
            count[x.buffer] = count.get(x.buffer, 0) + 1
    for at, x in enumerate(s.body):
        for root in expressions(x):
            for e in walk(root):
                if isinstance(e, Load) and e not in loads and e.buffer not in written | inner:
                    base = _wide(s, steps, e.buffer, e.index, e.mask, own)
                    if base is not None and not _mentions(e.other, s.var, own):
                        loads[e] = base
        if isinstance(x, Store):
            later = [e for y in s.body[at + 1 :] for r in expressions(y) for e in walk(r)]
            read = any(isinstance(e, Load) and e.buffer is x.buffer for e in later)
            base = _wide(s, steps, x.buffer, x.index, x.mask, own)
            if base is not None and not read and not deep:
                stores[x] = base
            written.add(x.buffer)
    # Several of one buffer are disjoint or the same run; among others the order of lanes would matter.
    kept = {x.buffer: sum(y.buffer is x.buffer for y in stores) for x in stores}
    return loads, {x: base for x, base in stores.items() if kept[x.buffer] == count[x.buffer]}


def wide_copy(s: For, x: Store, steps: dict[Expr, int]) -> tuple[Expr, Load] | None:
    """Where the first lane of a copy ahead goes, and its load; None unless both sides are aligned runs."""
    assert isinstance(x.value, Load)
    value = x.value
    to = _wide(s, steps, x.buffer, x.index, None, set())
    source = _wide(s, steps, value.buffer, value.index, value.mask, set())
    if to is None or source is None:
        return None
    return to, Load(value.buffer, (source,), value.mask, value.other)


def _wide(
    s: For, steps: dict[Expr, int], b: Buffer, index: tuple[Expr, ...], mask: Expr | None, own: set[Local]
) -> Expr | None:
    """The index of the first lane, if all lanes are an aligned run of at most 16 bytes."""
    n = s.extent
    if n & (n - 1) or n * b.dtype.itemsize > 16 or _mentions(mask, s.var, own):
        return None
    if b.space in ("register", "const", "local") or (b.space == "shared" and b.nbytes % 16):
        return None
    items, const = terms(flat_index(b, index))
    rest: list[tuple[Expr, int]] = []
    for atom, k in items:
        if atom is s.var:
            if k != 1:
                return None
            continue
        if _mentions(atom, s.var, own) or any(isinstance(x, Load) for x in walk(atom)):
            return None
        if k * divisor(atom, steps) % n:
            return None
        rest.append((atom, k))
    if len(rest) == len(items) or const % n:
        return None
    out: Expr = Const(const)
    for atom, k in rest:
        out = atom * k + out
    return out


def divisor(e: Expr, steps: dict[Expr, int]) -> int:
    """A number that divides every value of an index, as far as one sees; 0 of the constant 0.

    Args:
        steps: of loop variables and named values, such a number.
    """
    if isinstance(e, Const):
        return abs(int(e.value))
    if isinstance(e, (Var, Local)):
        return steps.get(e, 1)
    if not isinstance(e, Prim) or not e.args or e.dtype.kind not in "iu":
        return 1
    first = divisor(e.args[0], steps)
    if e.name in ("add", "sub", "mod"):
        return gcd(first, divisor(e.args[1], steps))
    if e.name == "mul":
        return first * divisor(e.args[1], steps)
    if e.name == "floordiv" and isinstance(e.args[1], Const):
        k = int(e.args[1].value)
        return first // k if k > 0 and first % k == 0 else 1
    return 1


def _mentions(e: Expr | None, var: Var, own: set[Local]) -> bool:
    return e is not None and any(x is var or x in own for x in walk(e))
