"""What a call of an `autograd.Function` is in a program: a node whose results are the outputs, and whose
rules for gradients, tangents and batches run what the class defines. Used by function.py only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..ir.batch import BatchNode
from ..ir.errors import GradError
from ..ir.forward import derive, inline
from ..ir.grad import GradNode
from ..ir.graph import Node, Value
from ..ir.op import REGISTRY, Op
from ..ir.ops.records import is_zero
from ..ir.types import Type
from .callers import user_location
from .level import Level
from .library import ArgumentTypeError
from .recording import recording_into
from .tensor import Tensor
from .trace import Trace
from .values import OPAQUE

ALIAS = REGISTRY["alias"]


class FunctionCtx:
    """What `forward` leaves for `backward`. Any attribute may be set on it."""

    needs_input_grad: tuple[bool, ...] = ()

    def __init__(self) -> None:
        self._saved: tuple[Any, ...] = ()
        self._saved_forward: tuple[Any, ...] | None = None
        self._reading: tuple[Any, ...] | None = None
        self._dirty: tuple[Any, ...] = ()
        self._constant: tuple[Any, ...] = ()
        self._materialize = True
        self._positions: tuple[int, tuple[int, ...]] | None = None

    def save_for_backward(self, *tensors: Any) -> None:
        """Keeps tensors (inputs, outputs or others; None may be among them) for `saved_tensors`."""
        for t in tensors:
            if t is not None and not isinstance(t, Tensor):
                raise ArgumentTypeError(
                    f"save_for_backward(): expected tensors, got {type(t).__name__}: {t!r:.60}; keep other "
                    f"things as attributes of ctx"
                )
        self._saved = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """The same for `jvp`."""
        self._saved_forward = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What was saved, in `backward`, `jvp` and after `forward`."""
        return self._saved if self._reading is None else self._reading

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Says which inputs `forward` wrote in place; they must be returned."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Says which outputs have no gradient."""
        self._constant = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether gradients that are zero come to `backward` as tensors of zeros (the default) or None."""
        self._materialize = bool(value)


class Call:
    """One call of a function, as the attribute of its node. Equal calls are recorded alike.

    Attributes:
        args: for each argument the number of its operand, None for what is no tensor.
        outputs: how many results.
        saved: for each saved tensor (kind, number): `operand`, `result`, or `none`.
        batch: for a call on batches, innermost first, their size and which operands have them.
    """

    def __init__(self, cls: Any, ctx: FunctionCtx, args: Any, outputs: int, saved: Any, forward: Any) -> None:
        self.cls, self.ctx, self.args, self.outputs = cls, ctx, args, outputs
        self.saved, self.forward = saved, forward
        self.batch: tuple[tuple[int, tuple[bool, ...]], ...] = ()
        self._key = (cls, args, outputs, saved, forward, ctx._materialize, ctx.needs_input_grad)
        OPAQUE.add(ctx)

    def batched(self, size: int, flags: tuple[bool, ...]) -> Call:
        out = Call(self.cls, self.ctx, self.args, self.outputs, self.saved, self.forward)
        out.batch = (*self.batch, (size, flags))
        out._key = (*self._key, out.batch)
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<call of {self.cls.__name__}>"


def missing(fn: Any) -> Any:
    """Marks a method of the base class that subclasses may define."""
    fn.missing = True
    return fn


def is_missing(fn: Any) -> bool:
    """Whether a subclass left it so."""
    return getattr(fn, "missing", False)


def _seen(trace: Trace, value: Any) -> Tensor:
    """A tensor that shows a recorded value: the tensor it is in, if that still holds it."""
    leaf = value.leaf() if value.leaf is not None else None
    if leaf is not None and leaf._view is None and leaf._storage.value is value:
        return leaf
    return Tensor(trace.emit(ALIAS, (value,), {}))


def _within(
    b: Any, values: Sequence[Any], types: Sequence[Type], fn: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """`fn(trace, values)`, which gives values or None, recorded into `b`, which may be a plain builder."""
    if isinstance(b, Trace):
        with recording_into(b):
            return fn(b, list(values))
    level = Level("backward", grad=True, parent=b)
    given: list[Any] = []
    for v, t in zip(values, types):
        if v is None:
            given.append(None)
            continue
        made = level.input(t, t.dtype.kind == "f")
        level.outside[made] = v
        given.append(made)
    with level:
        out = fn(level, given)
    rest = iter(level.lower([v for v in out if v is not None]))
    level.finish()
    return [None if v is None else next(rest) for v in out]


def _gradients(b: Any, n: GradNode, *grads: Value | None) -> tuple[Any, ...]:
    """The gradient rule of a call's node: runs `backward`."""
    call: Call = n.attrs["call"]
    outs, count = call.outputs, len(n)
    flowing = [None if g is None or (not call.ctx._materialize and is_zero(g)) else g for g in grads]
    values = [*flowing, *(n[k] for k in range(count)), *n.outs]
    types = [v.type for v in (*n.outs, *(n[k] for k in range(count)), *n.outs)]

    made = _within(b, values, types, lambda trace, given: _of_batch(call, call.batch, trace, given))
    return (*([None] * outs), *made, *([None] * (count - outs - len(made))))


def _of_batch(call: Call, batch: Any, trace: Any, given: list[Any]) -> list[Any]:
    """`backward` on gradients, operands and results: of a call on a batch that of one example, lowered by
    it."""
    outs = call.outputs
    if not batch:
        return _run_backward(call, trace, given[:outs], given[outs:-outs], given[-outs:])
    *rest, (size, operand_flags) = batch
    flags = [*([True] * outs), *operand_flags, *([True] * outs)]
    level = Level("vmap", size, parent=trace)
    inner: list[Any] = []
    for v, flag in zip(given, flags):
        if v is None:
            inner.append(None)
            continue
        made = level.input(v.type.with_shape(v.type.shape[1:]) if flag else v.type, v.requires_grad)
        level.bind(made, v)
        if flag:
            level.batched.add(made)
        inner.append(made)
    with level:
        found = _of_batch(call, rest, level, inner)
    result: list[Any] = []
    for flag, v in zip(operand_flags[outs:], found):
        if v is None:
            result.append(None)
            continue
        (low,) = level.lower([v])
        if v not in level.batched:
            low = trace.expand(low, shape=(size, *v.type.shape))
        result.append(low if flag else trace.sum(low, axes=(0,)))  # what all examples share gets the sum
    level.finish()
    return result


def _run_backward(
    call: Call, trace: Any, grads: Sequence[Any], operands: Sequence[Any], results: Sequence[Any]
) -> list[Any]:
    """The gradients of the operands that are arguments, as values, from `backward` of the class."""
    ctx, cls = call.ctx, call.cls
    shown: list[Any] = []
    for g, r in zip(grads, results):
        if g is None and ctx._materialize:
            zero = trace.literal(0, r.type.dtype)
            g = trace.expand(zero, shape=r.type.shape) if r.type.shape else zero
        shown.append(None if g is None else Tensor(trace.emit(ALIAS, (g,), {})))
    count, places = ctx._positions or (len(shown), range(len(shown)))
    at = dict(zip(places, shown))  # what forward gave beside tensors has no gradient
    given = [at.get(i) for i in range(count)]
    made = _with_saved(ctx, trace, call.saved, operands, results, lambda: cls.backward(ctx, *given))
    made = list(made) if isinstance(made, (tuple, list)) else [made]
    while len(made) > len(call.args) and made[-1] is None:
        made.pop()
    if len(made) != len(call.args):
        raise GradError(
            f"{cls.__name__}.backward() at {user_location()} gave {len(made)} gradients, forward has "
            f"{len(call.args)} arguments; return one for each, None where there is none"
        )
    out: list[Any] = [None] * sum(k is not None for k in call.args)
    for i, (place, g) in enumerate(zip(call.args, made)):
        if g is None:
            continue
        if place is None or not isinstance(g, Tensor):
            raise GradError(
                f"{cls.__name__}.backward() gave {type(g).__name__} as gradient {i}; expected "
                f"{'None, for an argument that is no tensor' if place is None else 'a tensor or None'}"
            )
        value = trace.own(g._value())
        want = operands[place].type
        if value.type.shape != want.shape and want.dtype.kind == "f":
            _check_shape(cls, i, value.type, want)
        out[place - call.outputs] = value
    return out


def _check_shape(cls: Any, i: int, got: Type, want: Type) -> None:
    extra = got.rank - want.rank
    if extra < 0 or any(n not in (1, m) for n, m in zip(want.shape, got.shape[extra:])):
        raise GradError(
            f"{cls.__name__}.backward() gave a gradient of type {got} for argument {i} of type {want}"
        )


def _with_saved(
    ctx: FunctionCtx, trace: Any, saved: Any, operands: Sequence[Any], results: Sequence[Any], fn: Any
) -> Any:
    shown = []
    for kind, k in saved:
        shown.append(
            None if kind == "none" else _seen(trace, (operands if kind == "operand" else results)[k])
        )
    ctx._reading = tuple(shown)
    try:
        return fn()
    finally:
        ctx._reading = None


def _tangents(b: Any, n: GradNode, *tangents: Value | None) -> tuple[Any, ...]:
    """Forward mode of a call's node: `jvp` where the class has one, else `backward` transposed."""
    call: Call = n.attrs["call"]
    outs, cls = call.outputs, call.cls
    if is_missing(cls.jvp) or call.batch:
        if is_missing(cls.backward):  # what forward did moves as it moves
            return tuple(tangents[:outs])
        needs = tuple(k >= outs and t is not None for k, t in enumerate(tangents))
        if not any(needs):
            return (None,) * outs
        graph, numbers = derive(n.node, needs)
        given = [t for t, need in zip(tangents, needs) if need and t is not None]
        made = inline(b, graph, [*n.node.operands, *n.outs, *given])
        return tuple(None if k is None else made[k] for k in numbers)
    values = [*tangents, *(n[k] for k in range(len(n))), *n.outs]
    types = [v.type for v in (*n.node.operands, *n.node.operands, *n.outs)]

    def run(trace: Any, given: list[Any]) -> list[Any]:
        moves, operands, results = given[: len(n)], given[len(n) : 2 * len(n)], given[2 * len(n) :]
        shown = [
            None if k is None or moves[k] is None else Tensor(trace.emit(ALIAS, (moves[k],), {}))
            for k in call.args
        ]
        saved = call.saved if call.forward is None else call.forward
        made = _with_saved(call.ctx, trace, saved, operands, results, lambda: cls.jvp(call.ctx, *shown))
        made = list(made) if isinstance(made, (tuple, list)) else [made]
        if len(made) != outs:
            raise GradError(f"{cls.__name__}.jvp() gave {len(made)} tangents, forward gives {outs} outputs")
        return [None if t is None else trace.own(t._value()) for t in made]

    return tuple(_within(b, values, types, run))


def _batched(b: Any, n: BatchNode) -> Any:
    """A call's node on a batch: the outputs are batched already, and so will their gradients be."""
    call: Call = n.attrs["call"]
    outs = call.outputs
    operands = [n.full(i) if i < outs else n.operands[i] for i in range(len(n))]
    flags = (*([True] * outs), *n.flags[outs:])
    return n.again(*operands, call=call.batched(n.size, flags))


def _reads(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    call: Call = node.attrs["call"]
    both = [*call.saved, *(call.forward or ())]
    return (
        tuple(sorted({k for kind, k in both if kind == "operand"})),
        tuple(sorted({k for kind, k in both if kind == "result"})),
    )


@functools.cache
def op_of(cls: Any) -> Op:
    def infer(*types: Type, call: Any) -> Any:
        return types[: call.outputs]

    def parts(b: Any, *operands: Value, call: Any) -> Any:
        return operands[: call.outputs] if call.outputs > 1 else operands[0]

    return Op(
        cls.__name__,
        infer,
        decompose=parts,
        grad=_gradients,
        jvp=_tangents,
        batch=_batched,
        reads=_reads,
        grad_name=f"{cls.__name__}Backward",
    )
