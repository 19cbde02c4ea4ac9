"""`autograd.Function`: operations whose gradient users write.

`apply` records what `forward` does as ordinary operations, and then one node (function_rules.py), whose
results are the outputs and whose gradient rule runs `backward`: with the trace's own operations, so it is
compiled, batched and differentiated again like everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from ..ir.errors import GradError
from ..ir.grad import GradNode
from ..ir.op import Op
from .callers import user_location
from .function_rules import ALIAS, Call, FunctionCtx, is_missing, missing, op_of
from .level import Level
from .library import ArgumentTypeError, MissingForward
from .recording import STATE, recording_into
from .tensor import Tensor, ready
from .values import TracedValue

__all__ = ["Function", "FunctionCtx", "VmapInfo", "once_differentiable"]


class VmapInfo(NamedTuple):
    """What a `vmap` staticmethod gets first."""

    batch_size: int
    randomness: str


class Function:
    """Base of operations with a gradient of their own (PyTorch's `autograd.Function`).

    Subclasses define the static methods `forward(ctx, *args)`, or `forward(*args)` and
    `setup_context(ctx, inputs, output)`, and `backward(ctx, *grads)`, which gives one gradient per argument
    of `forward`; for forward mode optionally `jvp(ctx, *tangents)`; and for batching optionally `vmap(info,
    in_dims, *args)`, without which the recorded operations are batched. Called by `apply`.
    """

    generate_vmap_rule = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise ArgumentTypeError(f"{name} is not instantiated; call {name}.apply(...)")

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """What the operation computes."""
        raise MissingForward("a Function defines a static method forward(ctx, *args)")

    @staticmethod
    @missing
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Saves what `backward` needs, where `forward` has no `ctx`."""
        raise NotImplementedError("setup_context is not defined")

    @staticmethod
    @missing
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The gradients of the arguments, from those of the outputs."""
        raise MissingForward(
            "backward() through a Function that defines no static method backward(ctx, *grads)"
        )

    vjp = backward

    @staticmethod
    @missing
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        """The tangents of the outputs, from those of the arguments."""
        raise NotImplementedError("jvp is not defined")

    @staticmethod
    @missing
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
        if not is_missing(cls.vmap) and isinstance(trace, Level) and trace.size is not None:
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
    separate = not is_missing(cls.setup_context)
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
        return made  # nothing that a gradient could come back from
    ctx._positions = (len(outs), tuple(numbers))
    recorded = (trace.grad_enabled and any(ctx.needs_input_grad)) or isinstance(trace, Level)
    if recorded:
        results = _record(cls, ctx, trace, args, values, [outs[i] for i in numbers])
    else:
        ids = {id(a) for a in args if isinstance(a, Tensor)} - {id(t) for t in ctx._dirty}
        results = [
            Tensor(trace.emit(ALIAS, (outs[i]._value(),), {})) if id(outs[i]) in ids else outs[i]
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
    call = Call(cls, ctx, arguments, len(raw), saved, forward)
    constant = tuple(result_of[id(t)] for t in ctx._constant if id(t) in result_of)
    call._key = (*call._key, constant)  # type: ignore[assignment]
    ctx._saved, ctx._saved_forward = (), None  # the node holds them
    made = trace.emit(op_of(cls), tuple(operands), {"call": call})
    trace.particular(made[0] if isinstance(made, tuple) else made, {"call": call})
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
