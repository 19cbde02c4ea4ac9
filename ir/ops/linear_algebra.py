"""Composites over matrices and vectors: einsum of any expression, trace, cross and Kronecker products,
pairwise distances, block-diagonal matrices."""

from __future__ import annotations

from itertools import combinations
from math import prod
from typing import Any

from ..errors import OpError
from ..op import Sample
from ..types import Shape, Type, broadcast_shapes
from .records import (
    F64,
    I64,
    NUMERIC,
    check_float,
    check_kind,
    check_rank,
    check_same_dtype,
    composite,
    f32,
    i64,
)
from .views import axis

# --- einsum ---------------------------------------------------------------------------------------


def _parts(spec: str) -> tuple[list[str], str]:
    operands, arrow, out = spec.partition("->")
    if not arrow or not all(c.isalpha() or c in "," for c in operands + out):
        raise OpError(f'spec must look like "ij,jk->ik", got {spec!r}')
    return operands.split(","), out


def _sizes(parts: list[str], shapes: list[Shape], spec: str) -> dict[str, int]:
    """The extent of every letter; extents of 1 stretch."""
    sizes: dict[str, int] = {}
    for k, (letters, shape) in enumerate(zip(parts, shapes)):
        if len(letters) != len(shape):
            raise OpError(f"{spec!r} gives operand {k} {len(letters)} dimensions, it has {len(shape)}")
        for c, n in zip(letters, shape):
            old = sizes.setdefault(c, n)
            if old != n and 1 not in (old, n):
                raise OpError(f"dimension {c!r} of {spec!r} is {old} in one place and {n} in another")
            sizes[c] = n if old == 1 else old
    return sizes


def _einsum_infer(*xs: Type, spec: str) -> Type:
    if not xs:
        raise OpError("expected at least one operand")
    check_same_dtype(*xs)
    check_kind(xs[0].dtype, NUMERIC)
    parts, out = _parts(spec)
    if len(parts) != len(xs):
        raise OpError(f"{spec!r} names {len(parts)} operands, there are {len(xs)}")
    if len(set(out)) != len(out):
        raise OpError(f"{spec!r} has a letter twice in the result")
    sizes = _sizes(parts, [x.shape for x in xs], spec)
    missing = [c for c in out if c not in sizes]
    if missing:
        raise OpError(f"{spec!r} has {missing[0]!r} in the result only")
    return Type(xs[0].dtype, (sizes[c] for c in out))


def _prepared(b: Any, x: Any, letters: str, sizes: dict[str, int], needed: set[str]) -> tuple[Any, str]:
    """An operand without repeated letters, stretched extents, and letters nobody else needs."""
    for c in dict.fromkeys(letters):
        while letters.count(c) > 1:
            i = letters.index(c)
            j = letters.index(c, i + 1)
            x = b.diagonal(x, offset=0, dim1=i, dim2=j)
            letters = letters[:i] + letters[i + 1 : j] + letters[j + 1 :] + c
    kept = [d for d, c in enumerate(letters) if x.type.shape[d] != 1 or (sizes[c] == 1 and c in needed)]
    if len(kept) < len(letters):
        x = b.reshape(x, shape=tuple(x.type.shape[d] for d in kept))
        letters = "".join(letters[d] for d in kept)
    gone = tuple(d for d, c in enumerate(letters) if c not in needed)
    if gone:
        x = b.sum(x, axes=gone)
        letters = "".join(c for c in letters if c in needed)
    return x, letters


def _product(b: Any, x: Any, xs: str, y: Any, ys: str, keep: str) -> tuple[Any, str]:
    """The product of two operands with what is not in `keep` summed away."""
    if all(c in keep for c in xs + ys):
        out = "".join(c for c in keep if c in xs or c in ys)
        return b.mul(_spread(b, x, xs, out), _spread(b, y, ys, out)), out
    out = "".join(c for c in keep if c in xs or c in ys)
    return b.contract(x, y, spec=f"{xs},{ys}->{out}"), out


def _spread(b: Any, x: Any, letters: str, out: str) -> Any:
    """`x` with its dimensions in the order of `out` and extents of 1 where it has none."""
    order = tuple(letters.index(c) for c in out if c in letters)
    if order != tuple(range(len(order))):
        x = b.permute(x, dims=order)
    extent = dict(zip((c for c in out if c in letters), x.type.shape))
    shape = tuple(extent.get(c, 1) for c in out)
    return x if shape == x.type.shape else b.reshape(x, shape=shape)


def contraction_order(parts: list[str], sizes: dict[str, int], out: str) -> list[tuple[int, int]]:
    """Which two operands to contract at each step (their result is appended to the rest), greedily: the pair
    whose contraction takes the fewest multiplications, less what the two results' sizes save."""
    left = list(parts)
    order: list[tuple[int, int]] = []
    while len(left) > 1:
        best: tuple[float, int, int] | None = None
        for i, j in combinations(range(len(left)), 2):
            both = set(left[i]) | set(left[j])
            others = set(out).union(*(left[k] for k in range(len(left)) if k not in (i, j)))
            made = prod(sizes[c] for c in both & others)
            work = prod(sizes[c] for c in both)
            before = prod(sizes[c] for c in left[i]) + prod(sizes[c] for c in left[j])
            cost = work + made - before
            if best is None or cost < best[0]:
                best = (cost, i, j)
        assert best is not None
        _, i, j = best
        others = set(out).union(*(left[k] for k in range(len(left)) if k not in (i, j)))
        made_letters = "".join(c for c in dict.fromkeys(left[i] + left[j]) if c in others)
        left = [p for k, p in enumerate(left) if k not in (i, j)] + [made_letters]
        order.append((i, j))
    return order


def _einsum(b: Any, *xs: Any, spec: str) -> Any:
    parts, out = _parts(spec)
    sizes = _sizes(parts, [x.type.shape for x in xs], spec)
    terms: list[tuple[Any, str]] = []
    for k, (x, letters) in enumerate(zip(xs, parts)):
        needed = set(out).union(*(p for j, p in enumerate(parts) if j != k))
        terms.append(_prepared(b, x, letters, sizes, needed))
    # What stretched away may have left a letter to one operand alone.
    for k, (x, letters) in enumerate(terms):
        needed = set(out).union(*(p for j, (_, p) in enumerate(terms) if j != k))
        terms[k] = _prepared(b, x, letters, sizes, needed)
    for i, j in contraction_order([p for _, p in terms], sizes, out):
        (x, xl), (y, yl) = terms[i], terms[j]
        rest = [t for k, t in enumerate(terms) if k not in (i, j)]
        later = set(out).union(*(p for _, p in rest))
        keep = "".join(c for c in dict.fromkeys(out + xl + yl) if c in later)
        terms = [*rest, _product(b, x, xl, y, yl, keep)]
    x, letters = terms[0]
    return _spread(b, x, letters, out)


composite(
    "einsum",
    _einsum_infer,
    _einsum,
    grad_name="ViewBackward0",
    samples=lambda: [
        Sample((f32(3, 4), f32(4, 5)), {"spec": "ij,jk->ik"}),
        Sample((f32(4, 4),), {"spec": "ii->"}),
        Sample((f32(4, 4, 2),), {"spec": "iij->ji"}),
        Sample((f32(2, 3), f32(3, 4), f32(4, 5)), {"spec": "ab,bc,cd->ad"}),
        Sample((f32(2, 3), f32(4), f32(2, 3)), {"spec": "ab,c,ab->bc"}),
        Sample((f32(1, 3), f32(2, 3)), {"spec": "ab,ab->b"}),
        Sample((f32(2, 3), f32(2, 5)), {"spec": "ab,cd->bd"}),
        Sample((f32(3), f32(3)), {"spec": "i,i->i"}),
        Sample((f32(),), {"spec": "->"}),
        Sample((f32(0, 3), f32(3, 2)), {"spec": "ij,jk->ik"}),
        Sample((i64(3, 4), i64(4, 2)), {"spec": "mk,kn->nm"}, (-4, 4), smooth=False),
    ],
    doc="Products of elements with equal letters, summed over the letters not in the result.",
)

# --- trace, cross, kron, block_diag -----------------------------------------------------------------


def _trace(x: Type) -> Type:
    check_kind(x.dtype, NUMERIC)
    check_rank(x, 2, "a matrix")
    return Type(x.dtype, ())


composite(
    "trace",
    _trace,
    lambda b, x: b.sum(b.diagonal(x), axes=(0,)),
    samples=lambda: [Sample((f32(3, 3),)), Sample((f32(2, 4),)), Sample((f32(0, 3),))],
    doc="The sum of the diagonal.",
)


def _cross_infer(x: Type, y: Type, *, dim: int = -1) -> Type:
    check_same_dtype(x, y)
    check_kind(x.dtype, NUMERIC)
    if x.rank != y.rank:
        raise OpError(f"expected operands of as many dimensions, got {x} and {y}")
    d = axis(dim, x.rank)
    if x.rank == 0 or x.shape[d] != 3 or y.shape[d] != 3:
        raise OpError(f"dimension {dim} must have size 3 in both operands, got {x} and {y}")
    return Type(x.dtype, broadcast_shapes(x.shape, y.shape))


def _cross(b: Any, x: Any, y: Any, *, dim: int = -1) -> Any:
    def turned(v: Any, by: int) -> Any:
        return b.roll(v, shifts=(by,), dims=(dim,))

    return b.sub(b.mul(turned(x, -1), turned(y, -2)), b.mul(turned(x, -2), turned(y, -1)))


composite(
    "cross",
    _cross_infer,
    _cross,
    lambda b, n, g: (
        lambda: b.cross(n[1], g, dim=n.attr("dim")),
        lambda: b.cross(g, n[0], dim=n.attr("dim")),
    ),
    grad_name="LinalgCrossBackward0",
    samples=lambda: [
        Sample((f32(4, 3), f32(4, 3))),
        Sample((f32(3, 2), f32(3, 1)), {"dim": 0}),
        Sample((f32(0, 3), f32(0, 3))),
    ],
    doc="The cross product of vectors of 3 along `dim`.",
)


def _aligned(x: Type, y: Type) -> tuple[Shape, Shape]:
    rank = max(x.rank, y.rank)
    return (1,) * (rank - x.rank) + x.shape, (1,) * (rank - y.rank) + y.shape


def _kron_infer(x: Type, y: Type) -> Type:
    check_same_dtype(x, y)
    xs, ys = _aligned(x, y)
    return Type(x.dtype, (n * m for n, m in zip(xs, ys)))


def _kron(b: Any, x: Any, y: Any) -> Any:
    xs, ys = _aligned(x.type, y.type)
    left = b.reshape(x, shape=tuple(k for n in xs for k in (n, 1)))
    right = b.reshape(y, shape=tuple(k for m in ys for k in (1, m)))
    return b.reshape(b.mul(left, right), shape=_kron_infer(x.type, y.type).shape)


composite(
    "kron",
    _kron_infer,
    _kron,
    grad_name="UnsafeViewBackward0",
    samples=lambda: [
        Sample((f32(2, 3), f32(4, 2))),
        Sample((f32(3), f32(2, 2))),
        Sample((f32(), f32(2))),
    ],
    doc="The Kronecker product: y scaled by each element of x, side by side.",
)


def _block_infer(*xs: Type) -> Type:
    if not xs:
        raise OpError("expected at least one operand")
    check_same_dtype(*xs)
    for x in xs:
        check_rank(x, 2, "matrices")
    return Type(xs[0].dtype, (sum(x.shape[0] for x in xs), sum(x.shape[1] for x in xs)))


def _block_diag(b: Any, *xs: Any) -> Any:
    width, at, rows = sum(x.type.shape[1] for x in xs), 0, []
    for x in xs:
        m = x.type.shape[1]
        rows.append(b.pad(x, low=(0, at), high=(0, width - at - m), value=0))
        at += m
    return b.concat(*rows, dim=0)


composite(
    "block_diag",
    _block_infer,
    _block_diag,
    samples=lambda: [
        Sample((f32(2, 3), f32(1, 1), f32(2, 2))),
        Sample((f32(2, 2),)),
        Sample((f32(0, 2), f32(2, 1))),
    ],
    doc="A matrix with the operands along its diagonal.",
)

# --- distances --------------------------------------------------------------------------------------


def _lengths(b: Any, x: Any, p: float) -> Any:
    """The p-norm over the last dimension, 0 where that is empty."""
    if x.type.shape[-1] == 0:
        return b.full(shape=x.type.shape[:-1], value=0.0, dtype=x.type.dtype)
    return b.norm(x, p=p, axes=(x.type.rank - 1,))


def _cdist_infer(x: Type, y: Type, *, p: float = 2.0) -> Type:
    check_same_dtype(x, y)
    check_float(x)
    if x.rank < 2 or y.rank < 2 or x.shape[-1] != y.shape[-1]:
        raise OpError(f"expected points [..., P, M] and [..., R, M], got {x} and {y}")
    if p < 0:
        raise OpError(f"p must not be negative, got {p}")
    return Type(x.dtype, (*broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2]))


composite(
    "cdist",
    _cdist_infer,
    lambda b, x, y, *, p=2.0: _lengths(b, b.sub(b.unsqueeze(x, dim=-2), b.unsqueeze(y, dim=-3)), p),
    samples=lambda: [
        Sample((f32(3, 4), f32(5, 4))),
        Sample((f32(2, 3, 4), f32(5, 4)), {"p": 1.0}),
        Sample((f32(3, 4), f32(5, 4)), {"p": 3.0}),
        Sample((f32(3, 4), f32(5, 4)), {"p": float("inf")}),
        Sample((f32(3, 0), f32(2, 0))),
    ],
    doc="The p-norm of every difference between a row of x and a row of y.",
)


def _pdist_infer(x: Type, *, p: float = 2.0) -> Type:
    check_float(x)
    check_rank(x, 2, "points [N, M]")
    n = x.shape[0]
    return Type(x.dtype, (n * (n - 1) // 2,))


def _pdist(b: Any, x: Any, *, p: float = 2.0) -> Any:
    """Pair k of (i, j), i < j in rows of the upper triangle: the pairs before row i are i*n - i*(i+1)/2 -
    ..., a quadratic in i, whose root rounded down is i."""
    n = x.type.shape[0]
    k = b.iota(shape=(n * (n - 1) // 2,), dim=0, dtype=I64)
    half = b.const(n - 0.5, F64)
    inside = b.sub(b.mul(half, half), b.add(b.mul(b.cast_to(k, F64), b.const(2, F64)), b.const(1, F64)))
    i = b.cast_to(b.sub(half, b.sqrt(inside)), I64)
    one = b.const(1, I64)
    before = b.sub(b.mul(i, b.const(n, I64)), b.floor_divide(b.mul(i, b.add(i, one)), b.const(2, I64)))
    j = b.add(b.add(b.sub(k, before), i), one)
    return _lengths(b, b.sub(b.take(x, i, dim=0), b.take(x, j, dim=0)), p)


composite(
    "pdist",
    _pdist_infer,
    _pdist,
    samples=lambda: [Sample((f32(5, 3),)), Sample((f32(4, 2),), {"p": 1.0}), Sample((f32(1, 3),))],
    doc="The p-norm of the difference of every two rows, in the order of the upper triangle.",
)
