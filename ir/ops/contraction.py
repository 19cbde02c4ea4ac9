"""Contractions of two operands, and PyTorch's matrix products as composites of them.

`contract {spec="bmk,kn->bmn"}` is einsum over letters: each letter of an operand is in the other one or
in the result, none twice in one operand. The set is closed under differentiation: both gradients of a
contraction are contractions.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .. import batch_rules
from ..errors import OpError
from ..op import Op, Sample, register
from ..types import LETTERS, Shape, Type, broadcast_shapes
from .records import NUMERIC, accumulate, check_kind, check_rank, check_same_dtype, composite, f32, i64


@lru_cache(maxsize=4096)
def parse_spec(spec: str) -> tuple[str, str, str]:
    """`"mk,kn->mn"` as `("mk", "kn", "mn")`. Raises OpError where it breaks the rules above."""
    operands, arrow, out = spec.partition("->")
    parts = operands.split(",")
    if not arrow or len(parts) != 2 or not all(c in LETTERS for p in (*parts, out) for c in p):
        raise OpError(f'spec must look like "mk,kn->mn", got {spec!r}')
    x, y = parts
    for part in (x, y, out):
        if len(set(part)) != len(part):
            raise OpError(f"spec {spec!r} has a letter twice in {part!r}; take the diagonal first")
    for letter in out:
        if letter not in x and letter not in y:
            raise OpError(f"spec {spec!r} has {letter!r} in the result only")
    for part, other in ((x, y), (y, x)):
        for letter in part:
            if letter not in other and letter not in out:
                raise OpError(f"spec {spec!r} has {letter!r} in {part!r} only; sum over it first")
    return x, y, out


def _contract_infer(x: Type, y: Type, *, spec: str) -> Type:
    check_same_dtype(x, y)
    check_kind(x.dtype, NUMERIC)
    a, b, out = parse_spec(spec)
    sizes: dict[str, int] = {}
    for letters, t, which in ((a, x, "first"), (b, y, "second")):
        if len(letters) != t.rank:
            raise OpError(
                f"spec {spec!r} gives the {which} operand {len(letters)} dimensions, it has {t.rank}"
            )
        for letter, n in zip(letters, t.shape):
            if sizes.setdefault(letter, n) != n:
                raise OpError(
                    f"dimension {letter!r} of {spec!r} is {sizes[letter]} in one operand and {n} in the other"
                )
    return Type(x.dtype, (sizes[c] for c in out))


def _contract_numpy(x: np.ndarray, y: np.ndarray, *, spec: str) -> np.ndarray:
    """As one matmul: dimensions grouped into batch, rows, contracted and columns."""
    a, b, out = parse_spec(spec)
    sizes = {**dict(zip(a, x.shape)), **dict(zip(b, y.shape))}
    batch = [c for c in out if c in a and c in b]
    rows = [c for c in out if c not in b]
    cols = [c for c in out if c not in a]
    inner = [c for c in a if c not in out]

    def size(letters: list[str]) -> int:
        return prod(sizes[c] for c in letters)

    left = accumulate(x).transpose([a.index(c) for c in batch + rows + inner])
    right = accumulate(y).transpose([b.index(c) for c in batch + inner + cols])
    left = left.reshape(size(batch), size(rows), size(inner))
    right = right.reshape(size(batch), size(inner), size(cols))
    made = np.matmul(left, right).reshape([sizes[c] for c in batch + rows + cols])
    order = batch + rows + cols
    return made.transpose([order.index(c) for c in out]).astype(x.dtype, copy=False)


def _contract_grad(b: Any, n: Any, g: Any) -> Any:
    x, y, out = parse_spec(n.attrs["spec"])
    return (
        lambda: b.contract(g, n[1], spec=f"{out},{y}->{x}"),
        lambda: b.contract(g, n[0], spec=f"{out},{x}->{y}"),
    )


register(
    Op(
        "contract",
        _contract_infer,
        kernel="contract",
        numpy=_contract_numpy,
        grad=_contract_grad,
        batch=batch_rules.contract,
        grad_name="MmBackward0",
        samples=lambda: [
            Sample((f32(3, 4), f32(4, 5)), {"spec": "mk,kn->mn"}),
            Sample((f32(3, 4), f32(5, 4)), {"spec": "mk,nk->nm"}),
            Sample((f32(2, 3, 4), f32(4, 5)), {"spec": "bmk,kn->bmn"}),
            Sample((f32(2, 3, 4), f32(2, 4, 5)), {"spec": "bmk,bkn->bmn"}),
            Sample((f32(7), f32(7)), {"spec": "k,k->"}),
            Sample((f32(3), f32(4)), {"spec": "m,n->mn"}),
            Sample((f32(3), f32(3)), {"spec": "b,b->b"}),
            Sample((f32(), f32(3)), {"spec": ",n->n"}),
            Sample((f32(2, 3, 4, 5), f32(3, 6, 5)), {"spec": "abcd,bed->eacb"}),
            Sample((f32(3, 0), f32(0, 2)), {"spec": "mk,kn->mn"}),
            Sample((f32(0, 3), f32(3, 2)), {"spec": "mk,kn->mn"}),
            Sample((i64(3, 4), i64(4, 2)), {"spec": "mk,kn->mn"}, (-4, 4), smooth=False),
        ],
        doc="Products of elements with equal letters, summed over the letters not in the result.",
    )
)

# --- matrix products ------------------------------------------------------------------------------


def _matched(n: int, m: int, x: Type, y: Type) -> None:
    if n != m:
        raise OpError(f"inner dimensions differ: {n} of {x} against {m} of {y}")


def _product(ranks: tuple[int, int], spec: str) -> Any:
    a, b, out = parse_spec(spec)

    def infer(x: Type, y: Type) -> Type:
        check_same_dtype(x, y)
        check_kind(x.dtype, NUMERIC)
        check_rank(x, ranks[0], "a first operand")
        check_rank(y, ranks[1], "a second operand")
        sizes = dict(zip(a, x.shape))
        for letter, n in zip(b, y.shape):
            if sizes.setdefault(letter, n) != n:
                kind = "inner" if letter not in out else "batch"
                raise OpError(f"{kind} dimensions differ: {sizes[letter]} of {x} against {n} of {y}")
        return Type(x.dtype, (sizes[c] for c in out))

    return infer


def _same_as(spec: str) -> dict[str, Any]:
    return {
        "decompose": lambda b, x, y: b.contract(x, y, spec=spec),
        "grad": lambda b, n, g: _contract_grad(b, _WithSpec(n, spec), g),
    }


class _WithSpec:
    """A grad node seen as one of `contract`."""

    def __init__(self, n: Any, spec: str) -> None:
        self.n, self.attrs = n, {"spec": spec}

    def __getitem__(self, i: int) -> Any:
        return self.n[i]


for _name, _ranks, _spec, _shapes in (
    ("mm", (2, 2), "mk,kn->mn", [((3, 4), (4, 5)), ((1, 1), (1, 1)), ((0, 4), (4, 2)), ((2, 0), (0, 3))]),
    ("bmm", (3, 3), "bmk,bkn->bmn", [((2, 3, 4), (2, 4, 5)), ((1, 3, 1), (1, 1, 2)), ((0, 3, 4), (0, 4, 5))]),
    ("mv", (2, 1), "mk,k->m", [((3, 4), (4,)), ((0, 4), (4,))]),
    ("dot", (1, 1), "k,k->", [((5,), (5,)), ((0,), (0,)), ((1,), (1,))]),
    ("outer", (1, 1), "m,n->mn", [((3,), (4,)), ((0,), (4,)), ((1,), (1,))]),
):
    composite(
        _name,
        _product(_ranks, _spec),
        samples=(lambda shapes: lambda: [Sample((f32(*s), f32(*t))) for s, t in shapes])(_shapes),
        grad_name="MulBackward0" if _name == "outer" else "",
        doc=f"The product {_spec}.",
        **_same_as(_spec),
    )


def _lead(x: Type, y: Type) -> Shape:
    return broadcast_shapes(x.shape[:-2] if x.rank > 2 else (), y.shape[:-2] if y.rank > 2 else ())


def _matmul_infer(x: Type, y: Type) -> Type:
    check_same_dtype(x, y)
    check_kind(x.dtype, NUMERIC)
    if x.rank == 0 or y.rank == 0:
        raise OpError("expected operands of at least 1 dimension; multiply by a scalar with *")
    _matched(x.shape[-1], y.shape[-2] if y.rank > 1 else y.shape[0], x, y)
    tail = (*(x.shape[-2:-1] if x.rank > 1 else ()), *(y.shape[-1:] if y.rank > 1 else ()))
    return Type(x.dtype, (*_lead(x, y), *tail))


def _matmul(b: Any, x: Any, y: Any) -> Any:
    """Batch dimensions of size 1 are dropped from the operand, so that nothing is ever expanded."""
    lead = _lead(x.type, y.type)
    names = LETTERS[26:][: len(lead)]

    def batch(v: Any) -> tuple[Any, str]:
        shape = v.type.shape
        if len(shape) <= 2:
            return v, ""
        mine = shape[:-2]
        at = len(lead) - len(mine)
        kept = [i for i, n in enumerate(mine) if n != 1 or lead[at + i] == 1]
        if len(kept) < len(mine):
            v = b.reshape(v, shape=(*(mine[i] for i in kept), *shape[-2:]))
        return v, "".join(names[at + i] for i in kept)

    xs, xb = batch(x)
    ys, yb = batch(y)
    # A batch dimension of size 1 on both sides stays in both; one that an operand lacks is the other's alone.
    m = "m" if x.type.rank > 1 else ""
    n = "n" if y.type.rank > 1 else ""
    return b.contract(xs, ys, spec=f"{xb}{m}k,{yb}k{n}->{names}{m}{n}")


def _matmul_name(node: Any) -> str:
    ranks = tuple(v.type.rank for v in node.operands)
    known = {(1, 1): "DotBackward0", (2, 1): "MvBackward0", (1, 2): "SqueezeBackward4", (2, 2): "MmBackward0"}
    return known.get(ranks, "UnsafeViewBackward0")


composite(
    "matmul",
    _matmul_infer,
    _matmul,
    grad_name=_matmul_name,
    samples=lambda: [
        Sample((f32(*s), f32(*t)))
        for s, t in [
            ((3,), (3,)),
            ((2, 3), (3,)),
            ((3,), (3, 2)),
            ((2, 3), (3, 4)),
            ((5, 2, 3), (3, 4)),
            ((5, 2, 3), (5, 3, 4)),
            ((5, 1, 2, 3), (4, 3, 2)),
            ((1, 2, 3), (4, 3, 2)),
            ((3,), (2, 3, 4)),
            ((2, 3, 4), (4,)),
            ((1, 2, 3), (1, 3, 2)),
            ((0, 2, 3), (3, 4)),
            ((2, 0), (0, 3)),
        ]
    ],
    doc="PyTorch's matmul: vectors, matrices and batches that broadcast.",
)

# --- linear and addmm -----------------------------------------------------------------------------


def _linear_infer(x: Type, w: Type, bias: Type | None = None) -> Type:
    types = (x, w) if bias is None else (x, w, bias)
    check_same_dtype(*types)
    check_kind(x.dtype, NUMERIC)
    if x.rank == 0 or w.rank not in (1, 2):
        raise OpError(f"expected an input [..., in] and a weight [out, in], got {x} and {w}")
    if x.shape[-1] != w.shape[-1]:
        raise OpError(f"the input's last dimension is {x.shape[-1]}, the weight {w} takes {w.shape[-1]}")
    out = (*x.shape[:-1], *w.shape[:-1])
    if bias is not None and bias.shape not in (w.shape[:-1], ()):
        raise OpError(f"expected a bias of shape {list(w.shape[:-1])}, got {bias}")
    return Type(x.dtype, out)


def _linear_letters(x: Type, w: Type) -> tuple[str, str, str]:
    lead = LETTERS[26:][: x.rank - 1]
    o = "o" * (w.rank - 1)
    return f"{lead}i", f"{o}i", f"{lead}{o}"


def _linear(b: Any, x: Any, w: Any, bias: Any = None) -> Any:
    xs, ws, out = _linear_letters(x.type, w.type)
    made = b.contract(x, w, spec=f"{xs},{ws}->{out}")
    return made if bias is None else b.add(made, bias)


def _linear_grad(b: Any, n: Any, g: Any) -> Any:
    xs, ws, out = _linear_letters(n.type(0), n.type(1))
    rules: list[Any] = [
        lambda: b.contract(g, n[1], spec=f"{out},{ws}->{xs}"),
        lambda: b.contract(g, n[0], spec=f"{out},{xs}->{ws}"),
        g,
    ]
    return tuple(rules[: len(n)])


def _linear_name(node: Any) -> str:
    ranks = [v.type.rank for v in node.operands]
    if ranks[1] == 2 and ranks[0] == 2:
        return "AddmmBackward0" if len(ranks) == 3 else "MmBackward0"
    if len(ranks) == 3:
        return "ViewBackward0"
    return "UnsafeViewBackward0" if ranks[0] > 2 else "SqueezeBackward4"


composite(
    "linear",
    _linear_infer,
    _linear,
    _linear_grad,
    grad_name=_linear_name,
    batch=batch_rules.leading,
    samples=lambda: [
        Sample((f32(4, 3), f32(5, 3), f32(5))),
        Sample((f32(4, 3), f32(5, 3))),
        Sample((f32(3), f32(5, 3), f32(5))),
        Sample((f32(2, 4, 3), f32(1, 3), f32(1))),
        Sample((f32(0, 3), f32(5, 3), f32(5))),
    ],
    doc="x @ w.T + bias.",
)


def _addmm_infer(c: Type, x: Type, y: Type, *, beta: float = 1, alpha: float = 1) -> Type:
    check_same_dtype(c, x, y)
    out = _matmul_infer(x, y)
    if broadcast_shapes(c.shape, out.shape) != out.shape:
        raise OpError(f"the added {c} does not broadcast to the product's shape {list(out.shape)}")
    return out


def _addmm(b: Any, c: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    made = b.matmul(x, y)
    if alpha != 1:
        made = b.mul(made, b.const(alpha, made))
    if beta == 0:  # NaN in what is ignored must not spread
        return made
    return b.add(c if beta == 1 else b.mul(c, b.const(beta, c)), made)


for _name, _shapes in (
    ("addmm", ((2, 3), (2, 4), (4, 3))),
    ("baddbmm", ((2, 1, 3), (2, 5, 4), (2, 4, 3))),
    ("addmv", ((3,), (3, 4), (4,))),
):
    composite(
        _name,
        _addmm_infer,
        _addmm,
        samples=(
            lambda shapes: (
                lambda: [
                    Sample(tuple(f32(*s) for s in shapes)),
                    Sample(tuple(f32(*s) for s in shapes), {"beta": 0.5, "alpha": -2.0}),
                    Sample((f32(), *(f32(*s) for s in shapes[1:]))),
                ]
            )
        )(_shapes),
        doc="beta * c + alpha * (x @ y).",
    )
