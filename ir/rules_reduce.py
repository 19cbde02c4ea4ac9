"""Rewrite rules of reductions and contractions. Both take the permutes around them into their axes and specs,
lose what was broadcast into them, and give way to elementwise ops where nothing is left to add.

Sums and contractions start from +0, so a rule that takes away the adding adds +0. None merges what f16 or
bf16 round, and may overflow, in between.
"""

from __future__ import annotations

from math import prod

from .graph import Node, Value
from .ops.contraction import parse_spec
from .pattern import splat
from .rewrite import Rewriter, attr, rule
from .rules_movement import attr_of
from .rules_scalar import held, is_float, wrapped
from .types import LETTERS, Shape

Ints = tuple[int, ...]
_REDUCTIONS = ("sum", "prod", "amax", "amin", "any", "all")


def _each(pattern: str) -> list[str]:
    """`pattern` for every reduction that takes axes."""
    return [pattern.replace("reduce", name) for name in _REDUCTIONS]


def _reduce(b: Rewriter, n: Node, x: Value, axes: Ints, keepdim: bool = False) -> Value:
    """The reduction `n` does, of `x`, over other axes."""
    attrs = {"axes": axes, "keepdim": True} if keepdim else {"axes": axes}
    made = b.emit(n.op, (x,), attrs)
    assert isinstance(made, Value)
    return made


def _shaped(b: Rewriter, x: Value, shape: Shape) -> Value:
    return x if x.type.shape == shape else b.reshape(x, shape=shape)


def _plus_zero(b: Rewriter, x: Value) -> Value:
    return b.add(x, b.const(0, x)) if is_float(x) else x


def _rounds_late(v: Value) -> bool:
    """Whether its results are rounded coarser than its sums: f16 and bf16."""
    return is_float(v) and v.type.dtype.bits == 16


# --- reductions ---------------------------------------------------------------------------------------------


@rule(*_each("reduce(x)"))
def reduce_ones(b: Rewriter, n: Node, x: Value) -> Value | None:
    """sum(x) over dimensions of size 1 --> reshape(x) + 0; max(x) --> reshape(x)"""
    if any(x.type.shape[a] != 1 for a in n.attrs["axes"]):
        return None
    out = _shaped(b, x, n.results[0].type.shape)
    return _plus_zero(b, out) if n.op.name == "sum" else out


@rule(*_each("reduce(r := reduce(x))"))
def reduce_reduce(b: Rewriter, n: Node, r: Value, x: Value) -> Value | None:
    """sum(sum(x)) --> sum(x)"""
    if n.op.name in ("sum", "prod") and _rounds_late(x):
        return None
    assert r.node is not None
    inner, kept = attr_of(r, "axes"), attr(r.node, "keepdim")
    dims = [d for d in range(x.type.rank) if kept or d not in inner]
    axes = tuple(sorted({*inner, *(dims[a] for a in n.attrs["axes"])}))
    keepdim = attr(n, "keepdim")
    if kept == keepdim:
        return _reduce(b, n, x, axes, keepdim)
    return _shaped(b, _reduce(b, n, x, axes), n.results[0].type.shape)


@rule(*_each("reduce(p := permute(x))"))
def reduce_permute(b: Rewriter, n: Node, p: Value, x: Value) -> Value:
    """sum(permute(x)) --> permute(sum(x))"""
    dims, axes = attr_of(p, "dims"), n.attrs["axes"]
    inner = tuple(sorted(dims[a] for a in axes))
    if attr(n, "keepdim"):
        return b.permute(_reduce(b, n, x, inner, True), dims=dims)
    left = [d for d in range(x.type.rank) if d not in inner]
    return b.permute(
        _reduce(b, n, x, inner), dims=tuple(left.index(d) for a, d in enumerate(dims) if a not in axes)
    )


def _groups(source: Shape, out: Shape) -> list[tuple[range, range]]:
    """The shortest runs of dimensions of `source` and `out` with equal numbers of elements; none may be 0."""
    runs = []
    i = j = 0
    while i < len(source) or j < len(out):
        a, c, na, nc = i, j, 1, 1
        while not (na == nc and (a > i or c > j)):
            if (na <= nc and a < len(source)) or c == len(out):
                na *= source[a]
                a += 1
            else:
                nc *= out[c]
                c += 1
        runs.append((range(i, a), range(j, c)))
        i, j = a, c
    return runs


@rule(*_each("reduce(r := reshape(x))"))
def reduce_reshape(b: Rewriter, n: Node, r: Value, x: Value) -> Value | None:
    """sum(reshape(x)) --> reshape(sum(x)), where the reshape groups or splits dimensions that go or stay
    together"""
    if x.type.numel == 0:
        return None
    axes: list[int] = []
    wide = r.type.shape
    for inner, outer in _groups(x.type.shape, wide):
        gone = {d in n.attrs["axes"] for d in outer if wide[d] != 1}
        if len(gone) > 1:
            return None
        if gone == {True}:
            axes += inner
    if not axes:
        return None
    return _shaped(b, _reduce(b, n, x, tuple(axes)), n.results[0].type.shape)


@rule(*_each("reduce(e := expand(x))"))
def reduce_expand(b: Rewriter, n: Node, e: Value, x: Value) -> Value | None:
    """sum(expand(x)) --> x * size + 0; max(expand(x)) --> x, along what was expanded"""
    wide, dtype = e.type.shape, x.type.dtype
    padded = (1,) * (len(wide) - x.type.rank) + x.type.shape
    repeated = [a for a in n.attrs["axes"] if padded[a] == 1 and wide[a] != 1]
    times = prod(wide[a] for a in repeated)
    if not repeated or times == 0 or n.op.name == "prod":
        return None
    if is_float(x) and held(times, dtype) != times:
        return None
    kept = [d for d in range(len(wide)) if d not in repeated]
    small = _shaped(b, x, tuple(padded[d] for d in kept))
    rest = tuple(kept.index(a) for a in n.attrs["axes"] if a not in repeated)
    if rest:
        if n.op.name == "sum" and _rounds_late(x):
            return None
        small = _reduce(b, n, b.fit(small, tuple(wide[d] for d in kept)), rest)
    if n.op.name == "sum":
        small = b.mul(small, b.const(times if is_float(x) else wrapped(times, dtype), x))
        small = _plus_zero(b, small) if not rest else small
    out = n.results[0].type.shape
    if rest or small.type.numel == n.results[0].type.numel:
        return _shaped(b, small, out)
    # What was expanded and not reduced is expanded again.
    ones = iter([padded[d] for d in kept if d not in n.attrs["axes"]])
    gone = set(n.attrs["axes"])
    keepdim = attr(n, "keepdim")
    shape = [1 if d in gone else next(ones) for d in range(len(wide)) if keepdim or d not in gone]
    return b.expand(_shaped(b, small, tuple(shape)), shape=out)


@rule("sum(m := mul(x, y))")
def sum_of_products(b: Rewriter, n: Node, m: Value, x: Value, y: Value) -> Value | None:
    """sum(x[m,1,k] * y[1,n,k]) --> contract(x[m,k], y[n,k]): a matrix product written by broadcasting"""
    rank, axes = m.type.rank, n.attrs["axes"]
    if _rounds_late(x) or not b.only_use(m) or m.type.numel == 0 or rank > len(LETTERS):
        return None
    parts = []
    for v in (x, y):
        padded = (1,) * (rank - v.type.rank) + v.type.shape
        parts.append("".join(LETTERS[d] for d in range(rank) if padded[d] != 1))
    xs, ys = parts
    out = "".join(LETTERS[d] for d in range(rank) if m.type.shape[d] != 1 and d not in axes)
    both, left, right = set(xs) & set(ys), set(xs) - set(ys), set(ys) - set(xs)
    if not left or not right or not (left | right) <= set(out) or both <= set(out):
        return None
    small = [_shaped(b, v, tuple(k for k in v.type.shape if k != 1)) for v in (x, y)]
    return _shaped(b, b.contract(*small, spec=f"{xs},{ys}->{out}"), n.results[0].type.shape)


# --- contractions -------------------------------------------------------------------------------------------


@rule("contract(p := permute(x), y)", "contract(y, p := permute(x))")
def contract_permute(b: Rewriter, n: Node, p: Value, x: Value, y: Value) -> Value:
    """contract(permute(x), y) --> contract(x, y)"""
    first = n.operands[0] is p
    xs, ys, out = parse_spec(n.attrs["spec"])
    letters = xs if first else ys
    moved = "".join(letters[d] for d in _inverse(attr_of(p, "dims")))
    if first:
        return b.contract(x, y, spec=f"{moved},{ys}->{out}")
    return b.contract(y, x, spec=f"{xs},{moved}->{out}")


def _inverse(dims: Ints) -> Ints:
    return tuple(sorted(range(len(dims)), key=dims.__getitem__))


@rule("permute(c := contract(x, y))")
def permute_contract(b: Rewriter, n: Node, c: Value, x: Value, y: Value) -> Value | None:
    """permute(contract(x, y)) --> contract(x, y)"""
    if not b.only_use(c):
        return None
    operands, _, out = str(attr_of(c, "spec")).partition("->")
    return b.contract(x, y, spec=f"{operands}->{''.join(out[d] for d in n.attrs['dims'])}")


def _with_ones(shape: Shape, letters: str, kept: str) -> Shape:
    """`shape`, of `letters`, with 1 for the letters not `kept`."""
    return tuple(n if c in kept else 1 for c, n in zip(letters, shape))


@rule("contract(x, y)")
def contract_ones(b: Rewriter, n: Node, x: Value, y: Value) -> Value | None:
    """contract(x[m,1], y[1,n]) --> contract(x[m], y[n])"""
    xs, ys, _ = parse_spec(n.attrs["spec"])
    if 1 not in x.type.shape and 1 not in y.type.shape:
        return None
    ones = {c for s, v in ((xs, x), (ys, y)) for c, k in zip(s, v.type.shape) if k == 1}
    small = [_shaped(b, v, tuple(k for k in v.type.shape if k != 1)) for v in (x, y)]
    spec = "".join(c for c in n.attrs["spec"] if c not in ones)
    return _shaped(b, b.contract(*small, spec=spec), n.results[0].type.shape)


@rule("contract(x, y)")
def contract_outer(b: Rewriter, n: Node, x: Value, y: Value) -> Value | None:
    """contract(x, y) of "m,n->mn" --> reshape(x) * y + 0: nothing to add up"""
    xs, ys, out = parse_spec(n.attrs["spec"])
    if any(c not in out for c in xs):
        return None
    sides = []
    for letters, v in ((xs, x), (ys, y)):
        order = [letters.index(c) for c in out if c in letters]
        v = b.permute(v, dims=tuple(order))
        sizes = iter(v.type.shape)
        sides.append(_shaped(b, v, tuple(next(sizes) if c in letters else 1 for c in out)))
    return _plus_zero(b, b.mul(*sides))


def _drop_expanded(b: Rewriter, n: Node, e: Value, x: Value, y: Value, summed: bool) -> Value | None:
    """`contract` without the letters along which `e = expand(x)` repeats. A letter to be summed over needs
    the other operand's sum, which is the same only up to overflow: those go if `summed`."""
    if n.results[0].type.numel == 0 or e.type.numel == 0:
        return None
    first = n.operands[0] is e
    xs, ys, out = parse_spec(n.attrs["spec"])
    if not first:
        xs, ys = ys, xs
    padded = (1,) * (e.type.rank - x.type.rank) + x.type.shape
    gone = {c for c, k, w in zip(xs, padded, e.type.shape) if k == 1 and w != 1 and (summed or c in out)}
    if not gone:
        return None
    left = "".join(c for c in xs if c not in gone)
    # Letters of `left` may still be repeated, when their sum has to stay.
    small = _shaped(b, x, tuple(k for c, k in zip(xs, padded) if c in left))
    small = b.fit(small, tuple(w for c, w in zip(xs, e.type.shape) if c in left))
    axes = tuple(i for i, c in enumerate(ys) if c in gone and c not in out)
    if axes:
        y = b.sum(y, axes=axes)
        ys = "".join(c for i, c in enumerate(ys) if i not in axes)
    kept = "".join(c for c in out if c in left or c in ys)
    spec = f"{left},{ys}->{kept}" if first else f"{ys},{left}->{kept}"
    made = b.contract(small, y, spec=spec) if first else b.contract(y, small, spec=spec)
    shape = n.results[0].type.shape
    return b.fit(_shaped(b, made, _with_ones(shape, out, kept)), shape)


@rule("contract(e := expand(x), y)", "contract(y, e := expand(x))")
def contract_expand(b: Rewriter, n: Node, e: Value, x: Value, y: Value) -> Value | None:
    """contract(expand(x), y) --> expand(contract(x, y)); with ones, or integers, --> expand(sum(y))"""
    exact = not is_float(x) or (splat(x) in (1, -1) and not _rounds_late(x))
    return _drop_expanded(b, n, e, x, y, exact)


@rule("contract(e := expand(x), y)", "contract(y, e := expand(x))", fast=True)
def contract_expand_sum(b: Rewriter, n: Node, e: Value, x: Value, y: Value) -> Value | None:
    """contract(expand(x), y) --> expand(x * sum(y))"""
    return None if _rounds_late(x) else _drop_expanded(b, n, e, x, y, True)
