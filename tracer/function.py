"""`autograd.Function`: operations whose gradient users write.

`apply` records what `forward` does as ordinary operations, and then one node, whose results are the outputs
and whose gradient rule runs `backward`: with the trace's own operations, so it is compiled, batched and
differentiated again like everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..ir.batch import BatchNode
from ..ir.errors import GradError
from ..ir.forward import derive, inline
from ..ir.grad import GradNode
from ..ir.graph import Node, Value
from ..ir.op import REGISTRY, Op
from ..ir.ops.records import is_zero
from ..ir.types import Type
from .level import Level
from .library import ArgumentTypeError
from .recording import STATE, Trace, recording_into, user_location
from .tensor import Tensor, ready
from .values import OPAQUE, TracedValue

_ALIAS = REGISTRY["alias"]


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


class VmapInfo(NamedTuple):
    """What a `vmap` staticmethod gets first."""

    batch_size: int
    randomness: str


class _Call:
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

    def batched(self, size: int, flags: tuple[bool, ...]) -> _Call:
        out = _Call(self.cls, self.ctx, self.args, self.outputs, self.saved, self.forward)
        out.batch = (*self.batch, (size, flags))
        out._key = (*self._key, out.batch)  # type: ignore[assignment]
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<call of {self.cls.__name__}>"


def _seen(trace: Trace, value: Any) -> Tensor:
    """A tensor that shows a recorded value: the tensor it is in, if that still holds it."""
    leaf = value.leaf() if value.leaf is not None else None
    if leaf is not None and leaf._view is None and leaf._storage.value is value:
        return leaf
    return Tensor(trace.emit(_ALIAS, (value,), {}))


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
    call: _Call = n.attrs["call"]
    outs, count = call.outputs, len(n)
    flowing = [None if g is None or (not call.ctx._materialize and is_zero(g)) else g for g in grads]
    values = [*flowing, *(n[k] for k in range(count)), *n.outs]
    types = [v.type for v in (*n.outs, *(n[k] for k in range(count)), *n.outs)]

    made = _within(b, values, types, lambda trace, given: _of_batch(call, call.batch, trace, given))
    return (*([None] * outs), *made, *([None] * (count - outs - len(made))))


def _of_batch(call: _Call, batch: Any, trace: Any, given: list[Any]) -> list[Any]:
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
    call: _Call, trace: Any, grads: Sequence[Any], operands: Sequence[Any], results: Sequence[Any]
) -> list[Any]:
    """The gradients of the operands that are arguments, as values, from `backward` of the class."""
    ctx, cls = call.ctx, call.cls
    shown: list[Any] = []
    for g, r in zip(grads, results):
        if g is None and ctx._materialize:
            zero = trace.literal(0, r.type.dtype)
            g = trace.expand(zero, shape=r.type.shape) if r.type.shape else zero
        shown.append(None if g is None else Tensor(trace.emit(_ALIAS, (g,), {})))
    made = _with_saved(ctx, trace, call.saved, operands, results, lambda: cls.backward(ctx, *shown))
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
    call: _Call = n.attrs["call"]
    outs, cls = call.outputs, call.cls
    if cls.jvp is Function.jvp or call.batch:
        if cls.backward is Function.backward:  # what forward did moves as it moves
            return tuple(tangents[:outs])
        needs = tuple(k >= outs and t is not None for k, t in enumerate(tangents))
        if not any(needs):
            return (None,) * outs
        graph, numbers = derive(n.node, needs)
        given = [t for t, need in zip(tangents, needs) if need]
        made = inline(b, graph, [*n.node.operands, *n.outs, *given])
        return tuple(None if k is None else made[k] for k in numbers)
    values = [*tangents, *(n[k] for k in range(len(n))), *n.outs]
    types = [v.type for v in (*n.node.operands, *n.node.operands, *n.outs)]

    def run(trace: Any, given: list[Any]) -> list[Any]:
        moves, operands, results = given[: len(n)], given[len(n) : 2 * len(n)], given[2 * len(n) :]
        shown = [
            None if k is None or moves[k] is None else Tensor(trace.emit(_ALIAS, (moves[k],), {}))
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
    call: _Call = n.attrs["call"]
    outs = call.outputs
    operands = [n.full(i) if i < outs else n.operands[i] for i in range(len(n))]
    flags = (*([True] * outs), *n.flags[outs:])
    return n.again(*operands, call=call.batched(n.size, flags))


def _reads(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    call: _Call = node.attrs["call"]
    both = [*call.saved, *(call.forward or ())]
    return (
        tuple(sorted({k for kind, k in both if kind == "operand"})),
        tuple(sorted({k for kind, k in both if kind == "result"})),
    )


@functools.cache
def _op_of(cls: Any) -> Op:
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


class Function:
    """Base of operations with a gradient of their own (PyTorch's `autograd.Function`).

    Subclasses define the static methods `forward(ctx, *args)`, or `forward(*args)` and
    `setup_context(ctx, inputs, output)`, and `backward(ctx, *grads)`, which gives one gradient per argument
    of `forward`; for forward mode optionally `jvp(ctx, *tangents)`; and for batching optionally `vmap(info,
    in_dims, *args)`, without which the recorded operations are batched. Called by `apply`.
    """

    generate_vmap_rule = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{type(self).__name__} is not instantiated; call {type(self).__name__}.apply(...)")

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """What the operation computes."""
        raise NotImplementedError("a Function defines a static method forward(ctx, *args)")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Saves what `backward` needs, where `forward` has no `ctx`."""
        raise NotImplementedError("setup_context is not defined")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The gradients of the arguments, from those of the outputs."""
        raise NotImplementedError(
            "backward() through a Function that defines no static method backward(ctx, *grads)"
        )

    vjp = backward

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        """The tangents of the outputs, from those of the arguments."""
        raise NotImplementedError("jvp is not defined")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """(outputs, their batch dimensions) on a batch."""
        raise NotImplementedError("vmap is not defined")

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Runs `forward`, and records that its gradient is `backward`."""
        trace = STATE.trace
        tensors = [a for a in args if isinstance(a, Tensor)]
        if trace.walked_back:
            ready(trace, *tensors)
        if cls.vmap is not Function.vmap and isinstance(trace, Level) and trace.size is not None:
            level = trace
            level.lower([trace.own(t._value()) for t in tensors])
            if any(t._value() in level.batched for t in tensors):
                return _apply_vmap(cls, level, args)
        return _apply(cls, trace, args, kwargs)


def _apply_vmap(cls: Any, level: Level, args: tuple[Any, ...]) -> Any:
    """A call under vmap of a class that says how it is batched."""
    values = {id(a): a._value() for a in args if isinstance(a, Tensor)}
    with recording_into(level.parent):
        outside: list[Any] = []
        dims: list[Any] = []
        for a in args:
            if not isinstance(a, Tensor):
                outside.append(a)
                dims.append(None)
                continue
            value = values[id(a)]
            outside.append(level.tensor(level.lower([value])[0]))
            dims.append(0 if value in level.batched else None)
        made, out_dims = cls.vmap(VmapInfo(level.size or 0, level.randomness), tuple(dims), *outside)
    single = not isinstance(made, (tuple, list))
    outs = [made] if single else list(made)
    places = [out_dims] * len(outs) if not isinstance(out_dims, (tuple, list)) else list(out_dims)
    result = [t if d is None else level.example_of(t, d % t.dim()) for t, d in zip(outs, places)]
    return result[0] if single else tuple(result)


def _apply(cls: Any, trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    separate = cls.setup_context is not Function.setup_context
    values = {i: trace.own(a._value()) for i, a in enumerate(args) if isinstance(a, Tensor)}
    ctx = type(f"{cls.__name__}Backward", (FunctionCtx,), {})()
    ctx.needs_input_grad = tuple(i in values and values[i].requires_grad for i in range(len(args)))
    enabled, trace.grad_enabled = trace.grad_enabled, False
    try:
        made = cls.forward(*args, **kwargs) if separate else cls.forward(ctx, *args, **kwargs)
        if separate:
            cls.setup_context(ctx, args, made)
    finally:
        trace.grad_enabled = enabled
    single = not isinstance(made, (tuple, list))
    outs: list[Any] = [made] if single else list(made)
    numbers = [i for i, t in enumerate(outs) if isinstance(t, Tensor)]
    if not numbers:
        raise ArgumentTypeError(f"{cls.__name__}.forward() at {user_location()} returned no tensor")
    recorded = (trace.grad_enabled and any(ctx.needs_input_grad)) or isinstance(trace, Level)
    if recorded:
        results = _record(cls, ctx, trace, args, values, [outs[i] for i in numbers])
    else:
        ids = {id(a) for a in args if isinstance(a, Tensor)} - {id(t) for t in ctx._dirty}
        results = [
            Tensor(trace.emit(_ALIAS, (outs[i]._value(),), {})) if id(outs[i]) in ids else outs[i]
            for i in numbers
        ]
    for i, t in zip(numbers, results):
        outs[i] = t
    return outs[0] if single else tuple(outs)


def _record(
    cls: Any, ctx: FunctionCtx, trace: Any, args: tuple[Any, ...], values: dict[int, Any], outs: list[Any]
) -> list[Tensor]:
    """The node of a call, and the tensors that hold its results."""
    raw = [trace.own(t._value()) for t in outs]
    operands: list[Any] = [*raw, *values.values()]
    place = {i: len(raw) + k for k, i in enumerate(values)}
    number_of = {id(args[i]): place[i] for i in values}
    result_of = {id(t): k for k, t in enumerate(outs)}

    def noted(tensors: Any) -> tuple[tuple[str, int], ...]:
        found = []
        for t in tensors:
            if t is None:
                found.append(("none", 0))
            elif id(t) in result_of:
                found.append(("result", result_of[id(t)]))
            elif id(t) in number_of:
                found.append(("operand", number_of[id(t)]))
            else:
                found.append(("operand", len(operands)))
                operands.append(trace.own(t._value()))
        return tuple(found)

    saved = noted(ctx._saved)
    forward = None if ctx._saved_forward is None else noted(ctx._saved_forward)
    arguments = tuple(place.get(i) for i in range(len(args)))
    call = _Call(cls, ctx, arguments, len(raw), saved, forward)
    constant = tuple(result_of[id(t)] for t in ctx._constant if id(t) in result_of)
    call._key = (*call._key, constant)  # type: ignore[assignment]
    ctx._saved, ctx._saved_forward = (), None  # the node holds them
    made = trace.emit(_op_of(cls), tuple(operands), {"call": call})
    results: list[TracedValue] = list(made) if isinstance(made, tuple) else [made]
    out = []
    dirty = {id(t) for t in ctx._dirty}
    ctx._dirty = ctx._constant = ()
    for k, (t, r) in enumerate(zip(outs, results)):
        if k in constant:
            r.requires_grad = False
        if id(t) in dirty:
            if t._storage.leaf is not None:
                raise GradError(
                    f"{cls.__name__}.forward() at {user_location()} writes a leaf that requires grad in "
                    f"place; "
                    f"pass a clone()"
                )
            out.append(t._put(r))
        else:
            out.append(Tensor(r))
    return out


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """For a `backward` that can't be differentiated itself: a gradient through it is an error."""

    @functools.wraps(fn)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        trace: Any = STATE.trace
        enabled, trace.grad_enabled = trace.grad_enabled, False
        try:
            made = fn(ctx, *grads)
        finally:
            trace.grad_enabled = enabled
        depends = [
            t._value() for t in (*grads, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad
        ]
        if not enabled or not depends:
            return made

        def guarded(t: Any) -> Any:
            if not isinstance(t, Tensor) or t.dtype.kind != "f":
                return t
            return Tensor(trace.emit(_ONCE, (t._value(), *depends), {}))

        return tuple(guarded(t) for t in made) if isinstance(made, (tuple, list)) else guarded(made)

    return wrapper


def _no_second(b: Any, n: GradNode, g: Any) -> Any:
    raise GradError(
        "trying to differentiate twice a Function whose backward is marked with @once_differentiable; "
        "write its "
        "backward with differentiable operations and take the mark off"
    )


_ONCE = Op(
    "once_differentiable",
    lambda x, *others: x,
    decompose=lambda b, x, *others: x,
    grad=_no_second,
    reads=lambda node: ((), ()),
    grad_name="NotDifferentiableBackward",
)
