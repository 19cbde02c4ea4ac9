"""Rewrite rules of movement ops. They cancel, merge, and move towards the users of elementwise ops and
reductions, where they meet others to cancel with; numbers and broadcast operands lose theirs, because scalar
ops broadcast by themselves.
"""

from __future__ import annotations

import math
from itertools import pairwise

from .graph import Node, Value
from .pattern import splat
from .rewrite import Rewriter, attr, rule
from .types import Shape

Ints = tuple[int, ...]
#: movement of a concatenation of up to so many parts becomes movement of the parts
FEW_PARTS = 8


def op_of(v: Value) -> str:
    """The name of the op that makes `v`, `""` for inputs."""
    return v.node.op.name if v.node is not None else ""


def source_of(v: Value) -> Value:
    """The first operand of the op that makes `v`."""
    assert v.node is not None
    return v.node.operands[0]


def attr_of(v: Value, name: str) -> Ints:
    """An attribute of the op that makes `v`."""
    assert v.node is not None
    return attr(v.node, name)


def without_ones(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)


def same_number(a: float | None, b: float | None) -> bool:
    """Equal with the sign of zero; NaN equals NaN."""
    if a is None or b is None:
        return False
    return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)


# --- numbers and broadcasting -------------------------------------------------------------------------------


@rule("reshape(C)", "permute(C)", "slice(C)", "flip(C)", "expand(C)")
def move_number(b: Rewriter, n: Node, C: Value) -> Value | None:
    """move(c) --> expand(c), of a number c"""
    if n.op.name == "expand" and C.type.rank == 0:
        return None
    value = splat(C)
    assert value is not None
    return b.const(value, C)


@rule("any_scalar(x, ...)", some=("expand", "reshape"))
def strip_expand(b: Rewriter, n: Node) -> Value | None:
    """op(x, expand(y)) --> op(x, y); op(expand(x), c) --> expand(op(x, c))"""
    stripped = False
    operands = []
    for v in n.operands:
        name = op_of(v)
        if name == "expand" or (name == "reshape" and _adds_leading_ones(v)):
            v = source_of(v)
            stripped = True
        operands.append(v)
    if not stripped:
        return None
    return b.again(n, operands)


def _adds_leading_ones(v: Value) -> bool:
    inner, outer = source_of(v).type.shape, v.type.shape
    extra = len(outer) - len(inner)
    return extra > 0 and outer[extra:] == inner


@rule("expand(x)")
def expand_nothing(b: Rewriter, n: Node, x: Value) -> Value | None:
    """expand(x) to its own shape --> x; with more ones only --> reshape(x)"""
    shape = n.results[0].type.shape
    if shape == x.type.shape:
        return x
    if splat(x) is not None:  # a number is expanded to every shape, a one-element one too
        return None
    return b.reshape(x, shape=shape) if n.results[0].type.numel == x.type.numel else None


@rule("expand(expand(x))")
def expand_expand(b: Rewriter, n: Node, x: Value) -> Value:
    """expand(expand(x)) --> expand(x)"""
    return b.expand(x, shape=n.attrs["shape"])


@rule("expand(r := reshape(x))")
def expand_reshape(b: Rewriter, n: Node, r: Value, x: Value) -> Value | None:
    """expand(reshape(x)) --> expand(x), where the reshape adds leading ones"""
    return b.expand(x, shape=n.attrs["shape"]) if _adds_leading_ones(r) else None


@rule("permute(e := expand(x))")
def permute_expand(b: Rewriter, n: Node, e: Value, x: Value) -> Value:
    """permute(expand(x)) --> expand(permute(x))"""
    extra = e.type.rank - x.type.rank
    if extra:
        x = b.reshape(x, shape=(1,) * extra + x.type.shape)
    return b.expand(b.permute(x, dims=n.attrs["dims"]), shape=n.results[0].type.shape)


@rule("slice(e := expand(x))")
def slice_expand(b: Rewriter, n: Node, e: Value, x: Value) -> Value:
    """slice(expand(x)) --> expand(slice(x))"""
    extra, shape = e.type.rank - x.type.rank, n.results[0].type.shape
    start, stop, step = (list(n.attrs[k][extra:]) for k in ("start", "stop", "step"))
    for d, size in enumerate(x.type.shape):
        if size == 1:
            start[d], stop[d], step[d] = 0, 1, 1
    return b.expand(b.slice(x, start=tuple(start), stop=tuple(stop), step=tuple(step)), shape=shape)


@rule("reshape(e := expand(x))")
def reshape_expand(b: Rewriter, n: Node, e: Value, x: Value) -> Value | None:
    """reshape(expand(x)) --> expand(reshape(x)), where the reshape adds or drops ones"""
    wide, shape = e.type.shape, n.results[0].type.shape
    if without_ones(wide) != without_ones(shape) or e.type.numel == 0:
        return None
    padded = (1,) * (len(wide) - x.type.rank) + x.type.shape
    kept = iter([m for m, w in zip(padded, wide) if w != 1])
    return b.expand(b.reshape(x, shape=tuple(1 if n == 1 else next(kept) for n in shape)), shape=shape)


# --- towards the users of elementwise ops -------------------------------------------------------------------


@rule("any_scalar(x, ...)", some=("permute",))
def permute_below(b: Rewriter, n: Node) -> Value | None:
    """op(permute(x), permute(y)) --> permute(op(x, y)), with one order"""
    dims: Ints | None = None
    operands = []
    for v in n.operands:
        if op_of(v) == "permute" and dims in (None, attr_of(v, "dims")):
            dims = attr_of(v, "dims")
            v = source_of(v)
        elif v.type.rank:
            return None
        operands.append(v)
    if dims is None:
        return None
    return b.permute(b.again(n, operands), dims=dims)


@rule("any_scalar(x, ...)", some=("reshape",))
def reshape_below(b: Rewriter, n: Node) -> Value | None:
    """op(reshape(x), reshape(y)) --> reshape(op(x, y)), from one shape to one shape"""
    inner: Shape | None = None
    outer = n.results[0].type.shape
    operands = []
    for v in n.operands:
        if op_of(v) == "reshape" and v.type.shape == outer:
            v = source_of(v)
            if inner not in (None, v.type.shape):
                return None
            inner = v.type.shape
        elif v.type.rank:
            return None
        operands.append(v)
    if inner is None:
        return None
    return b.reshape(b.again(n, operands), shape=outer)


# --- reshape and permute ------------------------------------------------------------------------------------


@rule("reshape(x)")
def reshape_same(b: Rewriter, n: Node, x: Value) -> Value | None:
    """reshape(x) to its own shape --> x"""
    return x if n.results[0].type.shape == x.type.shape else None


@rule("reshape(reshape(x))")
def reshape_reshape(b: Rewriter, n: Node, x: Value) -> Value:
    """reshape(reshape(x)) --> reshape(x)"""
    return b.reshape(x, shape=n.attrs["shape"])


@rule("permute(x)")
def permute_same(b: Rewriter, n: Node, x: Value) -> Value | None:
    """permute(x) in its own order --> x"""
    return x if n.attrs["dims"] == tuple(range(x.type.rank)) else None


@rule("permute(p := permute(x))")
def permute_permute(b: Rewriter, n: Node, p: Value, x: Value) -> Value:
    """permute(permute(x)) --> permute(x)"""
    inner = attr_of(p, "dims")
    return b.permute(x, dims=tuple(inner[d] for d in n.attrs["dims"]))


@rule("permute(x)")
def permute_ones(b: Rewriter, n: Node, x: Value) -> Value | None:
    """permute(x) --> reshape(x), where only dimensions of size 1 move"""
    big = [d for d in n.attrs["dims"] if x.type.shape[d] != 1]
    return b.reshape(x, shape=n.results[0].type.shape) if all(i < j for i, j in pairwise(big)) else None


@rule("reshape(p := permute(x))")
def reshape_permute_ones(b: Rewriter, n: Node, p: Value, x: Value) -> Value | None:
    """reshape(permute(x)) --> permute(reshape(x)), where the reshape drops ones"""
    dims, shape = attr_of(p, "dims"), n.results[0].type.shape
    if without_ones(shape) != shape or without_ones(x.type.shape) == x.type.shape:
        return None
    if without_ones(p.type.shape) != shape:
        return None
    kept = [d for d in range(x.type.rank) if x.type.shape[d] != 1]
    small = b.reshape(x, shape=tuple(x.type.shape[d] for d in kept))
    return b.permute(small, dims=tuple(kept.index(d) for d in dims if d in kept))


# --- slice, pad, flip, concat -------------------------------------------------------------------------------


@rule("slice(x)")
def slice_all(b: Rewriter, n: Node, x: Value) -> Value | None:
    """x[:] --> x"""
    return x if n.results[0].type.shape == x.type.shape else None


@rule("slice(s := slice(x))")
def slice_slice(b: Rewriter, n: Node, s: Value, x: Value) -> Value:
    """x[a:b:c][d:e:f] --> x[g:h:i]"""
    start, stop, step = [], [], []
    shape = n.results[0].type.shape
    for d, (a, lo, c, f) in enumerate(
        zip(attr_of(s, "start"), n.attrs["start"], attr_of(s, "step"), n.attrs["step"])
    ):
        start.append(min(a + lo * c, x.type.shape[d]))
        step.append(c * f)
        stop.append(start[-1] + (shape[d] - 1) * c * f + 1 if shape[d] else start[-1])
    return b.slice(x, start=tuple(start), stop=tuple(stop), step=tuple(step))


@rule("pad(x)")
def pad_nothing(b: Rewriter, n: Node, x: Value) -> Value | None:
    """pad(x) by nothing --> x"""
    return x if n.results[0].type.shape == x.type.shape else None


@rule("pad(C)")
def pad_number(b: Rewriter, n: Node, C: Value) -> Value | None:
    """pad(expand(c), c) --> expand(c)"""
    value = attr(n, "value")
    return b.const(value, C) if same_number(splat(C), value) else None


@rule("pad(p := pad(x))")
def pad_pad(b: Rewriter, n: Node, p: Value, x: Value) -> Value | None:
    """pad(pad(x)) --> pad(x), with one value"""
    assert p.node is not None
    value = attr(n, "value")
    if not same_number(value, attr(p.node, "value")):
        return None
    low, high = (tuple(i + j for i, j in zip(n.attrs[k], attr_of(p, k))) for k in ("low", "high"))
    return b.pad(x, low=low, high=high, value=value)


@rule("slice(p := pad(x))")
def slice_pad(b: Rewriter, n: Node, p: Value, x: Value) -> Value | None:
    """slice(pad(x)) --> slice(x), where nothing padded is left"""
    low = attr_of(p, "low")
    start = tuple(a - lo for a, lo in zip(n.attrs["start"], low))
    stop = tuple(a - lo for a, lo in zip(n.attrs["stop"], low))
    if any(a < 0 or z > size for a, z, size in zip(start, stop, x.type.shape)):
        return None
    return b.slice(x, start=start, stop=stop, step=n.attrs["step"])


@rule("flip(x)")
def flip_nothing(b: Rewriter, n: Node, x: Value) -> Value | None:
    """flip(x) along no or one-element dimensions --> x"""
    return x if all(x.type.shape[d] == 1 for d in n.attrs["dims"]) else None


@rule("flip(f := flip(x))")
def flip_flip(b: Rewriter, n: Node, f: Value, x: Value) -> Value:
    """flip(flip(x)) --> x, but for dimensions flipped once"""
    return b.flip(x, dims=tuple(sorted(set(n.attrs["dims"]) ^ set(attr_of(f, "dims")))))


@rule("concat(x)")
def concat_one(b: Rewriter, x: Value) -> Value:
    """concat(x) --> x"""
    return x


@rule("concat(x, ...)")
def concat_empty(b: Rewriter, n: Node) -> Value | None:
    """concat(x, empty) --> x"""
    dim = n.attrs["dim"]
    kept = [v for v in n.operands if v.type.shape[dim]]
    return b.concat(*kept, dim=dim) if kept and len(kept) < len(n.operands) else None


@rule("concat(x, ...)")
def concat_concat(b: Rewriter, n: Node) -> Value | None:
    """concat(x, concat(y, z)) --> concat(x, y, z), along one dimension"""
    dim, operands = n.attrs["dim"], []
    for v in n.operands:
        if op_of(v) == "concat" and attr_of(v, "dim") == dim:
            assert v.node is not None
            operands += v.node.operands
        else:
            operands.append(v)
    return b.concat(*operands, dim=dim) if len(operands) > len(n.operands) else None


@rule("concat(x, y, ...)")
def concat_numbers(b: Rewriter, n: Node, x: Value) -> Value | None:
    """concat(expand(c), expand(c)) --> expand(c)"""
    c = splat(x)
    if c is None or not all(same_number(c, splat(v)) for v in n.operands):
        return None
    return b.const(c, x)


@rule("concat(x, y, ...)")
def concat_slices(b: Rewriter, n: Node) -> Value | None:
    """concat(x[a:b], x[b:c]) --> x[a:c]"""
    dim = n.attrs["dim"]
    out: list[Value] = []
    for v in n.operands:
        joined = _joined(b, out[-1], v, dim) if out else None
        if joined is None:
            out.append(v)
        else:
            out[-1] = joined
    return b.concat(*out, dim=dim) if len(out) < len(n.operands) else None


def _joined(b: Rewriter, x: Value, y: Value, dim: int) -> Value | None:
    """Two slices of one value that follow each other along `dim`, as one."""
    if op_of(x) != "slice" or op_of(y) != "slice" or source_of(x) is not source_of(y):
        return None
    start, stop, step = (attr_of(x, k) for k in ("start", "stop", "step"))
    start2, stop2 = attr_of(y, "start"), attr_of(y, "stop")
    if any(k != 1 for k in (*step, *attr_of(y, "step"))) or stop[dim] != start2[dim]:
        return None
    if any((start[d], stop[d]) != (start2[d], stop2[d]) for d in range(len(start)) if d != dim):
        return None
    return b.slice(source_of(x), start=start, stop=(*stop[:dim], stop2[dim], *stop[dim + 1 :]), step=step)


@rule("permute(c := concat(...))")
def permute_concat(b: Rewriter, n: Node, c: Value) -> Value | None:
    """permute(concat(x, y)) --> concat(permute(x), permute(y)), where nobody else reads the first"""
    assert c.node is not None
    if not b.only_use(c) or len(c.node.operands) > FEW_PARTS:
        return None
    dims = n.attrs["dims"]
    parts = [b.permute(v, dims=dims) for v in c.node.operands]
    return b.concat(*parts, dim=dims.index(attr(c.node, "dim")))


@rule("reshape(c := concat(...))")
def reshape_concat(b: Rewriter, n: Node, c: Value) -> Value | None:
    """reshape(concat(x, y)) --> concat(reshape(x), reshape(y)), where nobody else reads the first"""
    assert c.node is not None
    if not b.only_use(c) or len(c.node.operands) > FEW_PARTS:
        return None
    shape, d = n.results[0].type.shape, attr(c.node, "dim")
    outer = math.prod(c.type.shape[:d])
    for e in range(len(shape)):
        unit = math.prod(shape[e + 1 :])  # elements of a part in one step of dimension e
        sizes = [math.prod(v.type.shape[d:]) for v in c.node.operands]
        if unit and math.prod(shape[:e]) == outer and not any(size % unit for size in sizes):
            parts = [
                b.reshape(v, shape=(*shape[:e], size // unit, *shape[e + 1 :]))
                for v, size in zip(c.node.operands, sizes)
            ]
            return b.concat(*parts, dim=e)
    return None


@rule("slice(c := concat(...))")
def slice_concat(b: Rewriter, n: Node, c: Value) -> Value | None:
    """concat(x, y)[a:b] --> x[a:b], where it lies in one operand"""
    assert c.node is not None
    dim = c.node.attrs["dim"]
    start, stop = n.attrs["start"], n.attrs["stop"]
    at = 0
    for v in c.node.operands:
        size = v.type.shape[dim]
        if at <= start[dim] and stop[dim] <= at + size:
            return b.slice(
                v,
                start=(*start[:dim], start[dim] - at, *start[dim + 1 :]),
                stop=(*stop[:dim], stop[dim] - at, *stop[dim + 1 :]),
                step=n.attrs["step"],
            )
        at += size
    return None


# --- slice_put ----------------------------------------------------------------------------------------------

_RANGE = ("start", "stop", "step")


def _same_range(n: Node, v: Value) -> bool:
    assert v.node is not None
    return all(n.attrs[k] == v.node.attrs[k] for k in _RANGE)


@rule("slice_put(base, new)")
def put_all(b: Rewriter, base: Value, new: Value) -> Value | None:
    """base[:] = new --> new; base[empty] = new --> base"""
    if new.type.shape == base.type.shape:
        return new
    return base if new.type.numel == 0 else None


@rule("slice_put(s := slice_put(base, old), new)")
def put_put(b: Rewriter, n: Node, s: Value, base: Value, new: Value) -> Value | None:
    """base[r] = old; [r] = new --> base[r] = new"""
    return b.slice_put(base, new, **n.attrs) if _same_range(n, s) else None


@rule("slice_put(base, s := slice(base))")
def put_back(b: Rewriter, n: Node, s: Value, base: Value) -> Value | None:
    """base[r] = base[r] --> base"""
    return base if _same_range(n, s) else None


@rule("slice(p := slice_put(base, new))")
def slice_put_slice(b: Rewriter, n: Node, p: Value, base: Value, new: Value) -> Value | None:
    """(base[r] = new)[r] --> new; (base[r] = new)[s] --> base[s], where s is apart from r"""
    if _same_range(n, p):
        return new
    lo, hi = attr_of(p, "start"), attr_of(p, "stop")
    if any(z <= s or e <= a for s, e, a, z in zip(n.attrs["start"], n.attrs["stop"], lo, hi)):
        return b.slice(base, **n.attrs)
    return None


@rule("slice_put(C, new)")
def put_into_number(b: Rewriter, n: Node, C: Value, new: Value) -> Value | None:
    """expand(c)[a:b] = new --> pad(new, c)"""
    if any(k != 1 for k in n.attrs["step"]):
        return None
    high = tuple(size - z for size, z in zip(C.type.shape, n.attrs["stop"]))
    return b.pad(new, low=n.attrs["start"], high=high, value=splat(C))


@rule("add(p := pad(x), q := pad(y))")
def add_pads(b: Rewriter, p: Value, q: Value) -> Value | None:
    """pad(x, 0) + pad(y, 0) --> pad(concat(x + 0, y + 0), 0), side by side: gradients of slices

    Adding +0 keeps what the sum makes of -0.
    """
    return _side_by_side(b, p, q)


@rule("add(s := add(r, p := pad(x)), q := pad(y))", "add(s := add(p := pad(x), r), q := pad(y))")
def add_pads_later(b: Rewriter, s: Value, r: Value, p: Value, q: Value) -> Value | None:
    """(r + pad(x, 0)) + pad(y, 0) --> r + pad(concat(x + 0, y + 0), 0), side by side

    No element has more than one of x and y, so nothing is rounded in another order.
    """
    both = _side_by_side(b, p, q) if b.only_use(s) else None
    return None if both is None else b.add(r, both)


def _side_by_side(b: Rewriter, p: Value, q: Value) -> Value | None:
    """The sum of two values padded with zeros, as one padded value, if they are neighbours."""
    if p.type != q.type:
        return None
    if attr_of(p, "low") > attr_of(q, "low"):
        p, q = q, p
    assert p.node is not None and q.node is not None
    if any(not same_number(attr(m, "value"), 0.0) for m in (p.node, q.node)):
        return None
    x, y = source_of(p), source_of(q)
    low, low2, high, high2 = attr_of(p, "low"), attr_of(q, "low"), attr_of(p, "high"), attr_of(q, "high")
    apart = [d for d in range(p.type.rank) if (low[d], x.type.shape[d]) != (low2[d], y.type.shape[d])]
    if len(apart) != 1:
        return None
    d = apart[0]
    if low[d] + x.type.shape[d] != low2[d]:
        return None
    zero = b.const(0, x)
    both = b.concat(b.add(x, zero), b.add(y, zero), dim=d)
    return b.pad(both, low=low, high=(*high[:d], high2[d], *high[d + 1 :]), value=0.0)
