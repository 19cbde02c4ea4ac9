"""Losses of class scores: nll_loss and cross_entropy. Classes are dimension 1, or 0 of a vector.

Targets are class indices `[N, d...]`, or for cross_entropy probabilities of the input's shape; an
optional third operand weights the classes. With `reduction="mean"` index targets divide by the sum of
the weights of the targets, as PyTorch's.
"""

from __future__ import annotations

from typing import Any

from ..errors import DTypeError, OpError
from ..op import Sample
from ..types import Type
from .loss import check_reduction, reduced
from .records import I64, check_float, check_same_dtype, composite, f32, i64, integer_maker, widen


def class_axis(x: Type) -> int:
    return 0 if x.rank == 1 else 1


def _infer(x: Type, target: Type, w: Type | None, reduction: str, probabilities: bool) -> Type:
    check_float(x)
    check_reduction(reduction)
    if x.rank == 0:
        raise OpError("expected scores [C], [N, C] or [N, C, d...], got a scalar")
    c = class_axis(x)
    rows = (*x.shape[:c], *x.shape[c + 1 :])
    if target.dtype.kind == "f" and probabilities:
        check_same_dtype(x, target)
        if target.shape != x.shape:
            raise OpError(f"expected target probabilities of the input's shape {list(x.shape)}, got {target}")
    elif target.dtype.kind not in "iu":
        raise DTypeError(f"expected integer targets, got {target}")
    elif target.shape != rows:
        raise OpError(f"expected targets of shape {list(rows)}, got {target}")
    if w is not None:
        check_same_dtype(x, w)
        if w.shape != (x.shape[c],):
            raise OpError(f"expected one weight for each of {x.shape[c]} classes, got {w}")
    return Type(x.dtype, rows if reduction == "none" else ())


def _nll_infer(
    x: Type, target: Type, weight: Type | None = None, *, reduction: str = "mean", ignore_index: int = -100
) -> Type:
    return _infer(x, target, weight, reduction, False)


class _Rows:
    """What index targets say about every row: `valid`, class `index` (0 where ignored) and `weight`
    (None: 1)."""

    def __init__(self, b: Any, t: Any, w: Any, ignore_index: int) -> None:
        t = b.cast_to(t, I64)
        self.b = b
        self.valid = b.ne(t, b.const(ignore_index, t))
        self.index = b.where(self.valid, t, b.const(0, t))
        # Class weights are constants: a composite of these parts must not give them a gradient.
        self.weight = None if w is None else b.take(b.detach(w), self.index, dim=0)

    def masked(self, x: Any) -> Any:
        return self.b.where(self.valid, x, self.b.const(0, x))

    def weighted(self, x: Any) -> Any:
        return x if self.weight is None else self.b.mul(x, self.weight)

    def total(self, dtype: Any) -> Any:
        """The weights of the rows that count, summed."""
        b = self.b
        each = b.cast_to(self.valid, dtype) if self.weight is None else self.masked(self.weight)
        return b.sum(each, axes=tuple(range(each.type.rank)))

    def picked(self, x: Any) -> Any:
        """Each row's element of the target class."""
        b, c = self.b, class_axis(x.type)
        shape = self.index.type.shape
        i = b.reshape(self.index, shape=(*shape[:c], 1, *shape[c:]))
        return b.reshape(b.gather(x, i, dim=c), shape=shape)

    def one_hot(self, x: Type) -> Any:
        """Where the target class is, as bool of the scores' shape."""
        b, c = self.b, class_axis(x)
        shape = self.index.type.shape
        return b.eq(
            b.reshape(self.index, shape=(*shape[:c], 1, *shape[c:])), b.iota(shape=x.shape, dim=c, dtype=I64)
        )

    def scale(self, g: Any, reduction: str) -> Any:
        """The gradient of each row's own loss."""
        b = self.b
        if reduction == "mean":
            g = b.div(g, self.total(g.type.dtype))
        return b.where(self.valid, g, b.const(0, g))


def _along_classes(b: Any, v: Any, x: Type) -> Any:
    """A value per row as one that broadcasts over the classes."""
    c, shape = class_axis(x), v.type.shape
    return b.reshape(v, shape=(*shape[:c], 1, *shape[c:]))


def _per_class(b: Any, w: Any, x: Type) -> Any:
    """A value per class as one that broadcasts over the rows."""
    c = class_axis(x)
    return b.reshape(w, shape=tuple(n if d == c else 1 for d, n in enumerate(x.shape)))


def _finish(b: Any, each: Any, rows: _Rows, reduction: str, dtype: Any) -> Any:
    if reduction == "mean":
        total = b.sum(each, axes=tuple(range(each.type.rank)))
        return b.cast_to(b.div(total, rows.total(each.type.dtype)), dtype)
    return b.cast_to(reduced(b, each, reduction), dtype)


def _nll(b: Any, x: Any, t: Any, w: Any = None, *, reduction: str = "mean", ignore_index: int = -100) -> Any:
    wide = widen(b, x)
    rows = _Rows(b, t, None if w is None else widen(b, w), ignore_index)
    each = rows.masked(rows.weighted(b.neg(rows.picked(wide))))
    return _finish(b, each, rows, reduction, x.type.dtype)


def _nll_grad(b: Any, n: Any, g: Any) -> Any:
    x = n.type(0)
    rows = _Rows(b, n[1], n[2] if len(n) == 3 else None, n.attr("ignore_index"))
    scale = b.neg(rows.weighted(rows.scale(g, n.attr("reduction"))))
    made = b.where(rows.one_hot(x), _along_classes(b, scale, x), b.const(0, g))
    return (made, None, None)[: len(n)]


def _name(node: Any) -> str:
    return "NllLoss2DBackward0" if node.operands[0].type.rank > 2 else "NllLossBackward0"


def _samples(classes: int, **extra: Any) -> list[Sample]:
    make = integer_maker(None, (0, classes), None)
    ignoring = integer_maker(None, (-1, classes), None)

    def weigh(rng: Any, types: tuple[Type, ...]) -> list[Any]:
        x, t, w = ignoring(rng, types)
        return [x, t, (abs(w) + 0.5).astype(w.dtype)]

    c = classes
    return [
        Sample((f32(6, c), i64(6)), {**extra}, make=make),
        Sample((f32(6, c), i64(6)), {**extra, "reduction": "sum"}, make=make),
        Sample((f32(2, c, 3), i64(2, 3)), {**extra, "reduction": "none"}, make=make),
        Sample((f32(12, c), i64(12), f32(c)), {**extra, "ignore_index": -1}, make=weigh),
        Sample((f32(c), i64()), {**extra}, make=make),
        Sample((f32(0, c), i64(0)), {**extra, "reduction": "sum"}, make=make),
    ]


composite(
    "nll_loss",
    _nll_infer,
    _nll,
    _nll_grad,
    samples=lambda: _samples(4),
    grad_name=_name,
    doc="Minus the log-probability of the target class, weighted.",
)


def _cross_entropy_infer(
    x: Type,
    target: Type,
    weight: Type | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Type:
    if not 0.0 <= label_smoothing <= 1.0:
        raise OpError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    return _infer(x, target, weight, reduction, True)


def _cross_entropy(
    b: Any,
    x: Any,
    t: Any,
    w: Any = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    dtype, c, eps = x.type.dtype, class_axis(x.type), label_smoothing
    x = widen(b, x)
    w = None if w is None else b.detach(widen(b, w))
    lp = b.log_softmax(x, dim=c)
    if t.type.dtype.kind == "f":
        q = _soft_target(b, widen(b, t), w, x.type, eps)
        each = b.neg(b.sum(b.mul(q, lp), axes=(c,)))
        if reduction == "mean":
            total = b.sum(each, axes=tuple(range(each.type.rank)))
            return b.cast_to(b.div(total, b.const(each.type.numel, total)), dtype)
        return b.cast_to(reduced(b, each, reduction), dtype)
    rows = _Rows(b, t, w, ignore_index)
    each = rows.weighted(b.neg(rows.picked(lp)))
    if eps:
        spread = b.neg(b.sum(lp if w is None else b.mul(lp, _per_class(b, w, x.type)), axes=(c,)))
        each = b.add(b.mul(each, b.const(1 - eps, x)), b.mul(spread, b.const(eps / x.type.shape[c], x)))
    return _finish(b, rows.masked(each), rows, reduction, dtype)


def _soft_target(b: Any, t: Any, w: Any, x: Type, eps: float) -> Any:
    """Smoothed probabilities times class weights."""
    if eps:
        t = b.add(b.mul(t, b.const(1 - eps, t)), b.const(eps / x.shape[class_axis(x)], t))
    return t if w is None else b.mul(t, _per_class(b, w, x))


def _cross_entropy_grad(b: Any, n: Any, g: Any) -> Any:
    """With q the (smoothed, weighted) target and p the softmax: (p * sum(q) - q), times each row's scale."""
    x, t, dtype = widen(b, n[0]), n[1], n.type(0)
    w = widen(b, n[2]) if len(n) == 3 else None
    c, eps, reduction, g = class_axis(x.type), n.attr("label_smoothing"), n.attr("reduction"), widen(b, g)
    lp = lambda: b.log_softmax(x, dim=c)  # noqa: E731
    if t.type.dtype.kind == "f":
        each = b.div(g, b.const(dtype.numel // max(dtype.shape[c], 1), g)) if reduction == "mean" else g
        scale = each if reduction != "none" else _along_classes(b, each, x.type)

        def scores() -> Any:
            q = _soft_target(b, widen(b, t), w, x.type, eps)
            return b.mul(b.sub(b.mul(b.exp(lp()), b.sum(q, axes=(c,), keepdim=True)), q), scale)

        def target() -> Any:
            made = b.mul(b.mul(b.neg(lp()), scale), b.const(1 - eps, g))
            return made if w is None else b.mul(made, _per_class(b, w, x.type))

        return (scores, target, None)[: len(n)]
    rows = _Rows(b, t, w, n.attr("ignore_index"))
    scale = _along_classes(b, rows.scale(g, reduction), x.type)
    hot, p = b.cast_to(rows.one_hot(x.type), x.type.dtype), b.exp(lp())
    if w is None and not eps:
        return (b.mul(b.sub(p, hot), scale), None)
    q = hot if rows.weight is None else b.mul(hot, _along_classes(b, rows.weight, x.type))
    total = b.const(1, x) if rows.weight is None else _along_classes(b, rows.weight, x.type)
    if eps:
        classes = x.type.shape[c]
        q, total = b.mul(q, b.const(1 - eps, x)), b.mul(total, b.const(1 - eps, x))
        flat, all_flat = b.const(eps / classes, x), b.const(eps, x)
        if w is not None:
            flat = b.mul(_per_class(b, w, x.type), flat)
            all_flat = b.mul(b.sum(w, axes=(0,)), b.const(eps / classes, x))
        q, total = b.add(q, flat), b.add(total, all_flat)
    return (b.mul(b.sub(b.mul(p, total), q), scale), None, None)[: len(n)]


composite(
    "cross_entropy",
    _cross_entropy_infer,
    _cross_entropy,
    _cross_entropy_grad,
    samples=lambda: [
        *_samples(5),
        *_samples(3, label_smoothing=0.2)[:4],
        Sample((f32(4, 5), f32(4, 5)), {}, (0.1, 1)),
        Sample((f32(2, 5, 3), f32(2, 5, 3), f32(5)), {"reduction": "none", "label_smoothing": 0.1}, (0.1, 1)),
        Sample((f32(4, 5), f32(4, 5), f32(5)), {"reduction": "sum"}, (0.1, 1)),
    ],
    grad_name=lambda node: (
        "DivBackward1"
        if node.operands[1].type.dtype.kind == "f"
        else "AddBackward0"
        if node.attrs.get("label_smoothing")
        else _name(node)
    ),
    doc="nll_loss of log_softmax(x), with smoothed labels or target probabilities.",
)
