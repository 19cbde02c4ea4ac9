"""Control flow on traced values: `cond`, `while_loop`, `scan` and `map`. Bodies are traced once, into
regions of one op, whatever their length and whichever branch is taken.

Bodies may read tensors from around them (they get gradients), write them in place (the state is carried from
step to step and written back), call modules, and contain control flow themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..ir.errors import DTypeError, OpError
from ..ir.grad_control import bounded, carries_grad, with_saves
from ..ir.graph import Graph
from ..ir.op import REGISTRY
from ..ir.types import normalize_axis, placed_type
from .callers import user_location
from .control_tree import (
    NUMBERS,
    agree,
    as_tensor,
    leaves_of,
    parameter_names,
    rebuilt,
    results_of,
    shown,
    where_is,
)
from .recording import STATE
from .region import Body, RegionTrace
from .tensor import Tensor
from .trace import Trace
from .values import Storage, TracedValue

__all__ = ["FUNCTIONS", "cond", "map", "scan", "while_loop"]

# --- putting an op together ---------------------------------------------------------------------------------


def _as_tensors(trace: Trace, tree: Any, where: str) -> Any:
    """The tree with tensors for numbers."""
    return rebuilt(tree, [as_tensor(trace, x) for x in leaves_of(tree, where)])


def _begin() -> Trace:
    """The trace to record in. Once a body is being traced nothing can end the pending program."""
    trace = STATE.trace
    if trace.walked_back and (trace.overlong or trace.grad_enabled):
        trace.flush()
    return trace


def _written(bodies: Sequence[Body]) -> dict[Storage, TracedValue]:
    """Storages that any body wrote and their values before."""
    out: dict[Storage, TracedValue] = {}
    for body in bodies:
        for storage, old in body.trace.written.items():
            out.setdefault(storage, old)
    return out


def _captured(bodies: Sequence[Body], but: Iterable[TracedValue]) -> list[TracedValue]:
    """What the bodies read from outside."""
    found = dict.fromkeys(v for body in bodies for v in body.trace.captured)
    for v in but:
        found.pop(v, None)
    return list(found)


def _finals(body: Body, states: dict[Storage, TracedValue]) -> list[TracedValue]:
    """The values of the written storages when the body ends."""
    return [body.trace.finals.get(s) or body.trace.own(old) for s, old in states.items()]


def _used(graphs: Sequence[Graph], first: int) -> list[int]:
    """Positions of inputs of the regions that any of them reads, from `first` on."""
    keep = []
    for i in range(first, len(graphs[0].inputs)):
        for g in graphs:
            v = g.inputs[i]
            if v in g.outputs or any(v in node.operands for node in g.nodes):
                keep.append(i)
                break
    return keep


def _pruned(graphs: Sequence[Graph], keep: Sequence[int]) -> None:
    for g in graphs:
        g.inputs = [g.inputs[i] for i in keep]
        for i, v in enumerate(g.inputs):
            v.index = i


def _emit(
    trace: Trace, name: str, operands: Sequence[Any], attrs: dict[str, Any], graphs: Sequence[Graph]
) -> list[TracedValue]:
    """Records the op; gives its results, those that backward alone reads not included."""
    regions = tuple(graphs)
    needs = [v.requires_grad for v in operands]
    flows: list[bool] = []
    if any(needs) and trace.grad_enabled:
        types = [placed_type(v.type, None) for v in operands]
        if name == "while" and attrs.get("max_trips") is not None:
            name, (regions, attrs) = "scan", bounded(regions, attrs, types)
        flows = carries_grad(name, attrs, regions, needs)
        if name != "while":
            regions = with_saves(name, types, attrs, regions, tuple(needs))
    made = trace.emit(REGISTRY[name], tuple(operands), attrs, regions)
    results = list(made) if isinstance(made, tuple) else [made]
    for v, flag in zip(results, flows):
        v.requires_grad = v.requires_grad and flag
    return results


def _write_back(states: dict[Storage, TracedValue], results: Sequence[TracedValue]) -> None:
    for storage, value in zip(states, results):
        storage.put(value)


def _names(body: Body, tensors: Iterable[str]) -> dict[Any, str]:
    return dict(zip(body.inputs, tensors))


# --- the functions ------------------------------------------------------------------------------------------


def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    """`true_fn(*operands)` where `pred` holds, else `false_fn(*operands)` (`torch.cond`). Only one runs.

    Args:
        pred: a tensor of one element; with a Python bool the function is simply called.
        operands: a tuple or list of tensors or nested containers of them.

    Returns:
        What the functions return, nested containers of tensors of the same structure and types in both.

    Raises:
        OpError: the functions' results differ in structure, dtype or shape.
    """
    operands = tuple(operands) if isinstance(operands, (tuple, list)) else (operands,)
    if isinstance(pred, (bool, int, float)):
        return true_fn(*operands) if pred else false_fn(*operands)
    if not isinstance(pred, Tensor):
        raise DTypeError(
            f"cond at {user_location()}: pred must be a tensor or a bool, got {type(pred).__name__}"
        )
    if pred.numel() != 1:
        raise OpError(
            f"cond at {user_location()}: pred is {pred._value().type}, expected one element; reduce it with "
            f".any() or .all(), or choose element by element with tracegrad.where"
        )
    trace = _begin()
    test = _truth(trace, pred)
    given = [as_tensor(trace, x) for x in leaves_of(operands, "operands of cond")]
    values = [t._value() for t in given]
    bodies: list[Body] = []
    trees: list[Any] = []
    for fn in (true_fn, false_fn):
        inner = RegionTrace(trace, "tracegrad.cond")
        body = Body(inner, [inner.input(v.type, v.requires_grad) for v in values])
        trees.append(inner.run(lambda fn=fn, body=body: _branch(fn, operands, body)))
        bodies.append(body)
    agree(trees, bodies, (true_fn, false_fn))
    states = _written(bodies)
    consts = _captured(bodies, states.values())
    graphs = []
    for body, name, fn in zip(bodies, ("then", "else"), (true_fn, false_fn)):
        inputs = [*body.inputs, *(body.bound(v) for v in (*states.values(), *consts))]
        outputs = [*body.outputs, *_finals_or_inputs(body, states, inputs[len(values) :])]
        names = parameter_names(fn, operands)
        graphs.append(body.trace.graph(inputs, outputs, dict(zip(body.inputs, names))))
        graphs[-1].name = name
    operands_ = [*values, *states.values(), *consts]
    keep = _used(graphs, 0)
    _pruned(graphs, keep)
    n = len(bodies[0].outputs)
    if not n and not states:
        return trees[0]
    made = _emit(trace, "cond", [test, *(operands_[i] for i in keep)], {}, graphs)
    _write_back(states, made[n : n + len(states)])
    return rebuilt(trees[0], [Tensor(v) for v in made[:n]])


def _truth(trace: Trace, pred: Tensor) -> TracedValue:
    """A tensor of one element as bool[]."""
    v: Any = pred._value()
    if v.type.dtype.kind != "b":
        v = trace.emit(REGISTRY["ne"], (v, trace.literal(0, v.type.dtype)), {})
    return v if not v.type.shape else trace.emit(REGISTRY["reshape"], (v,), {"shape": ()})


def _branch(fn: Callable[..., Any], operands: Any, body: Body) -> Any:
    out = fn(*rebuilt(operands, [Tensor(v) for v in body.inputs]))
    leaves = leaves_of(out, "results of cond's functions")
    body.outputs = [
        body.trace.own(x._value()) if isinstance(x, Tensor) else x
        for x in leaves
    ]
    return out


def _finals_or_inputs(
    body: Body, states: dict[Storage, TracedValue], inputs: Sequence[TracedValue]
) -> list[TracedValue]:
    """What each written storage holds at the end of this body: what it wrote, or what came in."""
    return [body.trace.finals.get(s) or v for s, v in zip(states, inputs)]


def while_loop(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    carried_inputs: Any,
    max_trips: int | None = None,
) -> Any:
    """Runs `carried = body_fn(*carried)` for as long as `cond_fn(*carried)` holds
    (`torch._higher_order_ops.while_loop`).

    Args:
        cond_fn: gives a tensor of one element. It must not write anything in place.
        body_fn: gives the new carried values, of the same structure and types.
        carried_inputs: a tuple or list of tensors, numbers, or nested containers of them.
        max_trips: run at most so often. With it gradients flow through the loop; every step up to it then
            takes memory.

    Returns:
        The last carried values, a tuple.
    """
    trace = _begin()
    if not isinstance(carried_inputs, (tuple, list)):
        carried_inputs = (carried_inputs,)
    first = _as_tensors(trace, carried_inputs, "carried_inputs")
    values = [t._value() for t in leaves_of(first, "")]
    if not values:
        raise OpError(f"while_loop at {user_location()}: carried_inputs has no tensor, so nothing can change")
    if max_trips is not None and (not isinstance(max_trips, int) or max_trips < 0):
        raise OpError(f"while_loop at {user_location()}: max_trips must be an int >= 0, got {max_trips!r}")
    bodies: list[Body] = []
    for fn, run in ((cond_fn, _run_test), (body_fn, _run_body)):
        inner = RegionTrace(trace, "tracegrad.while_loop")
        body = Body(inner, [inner.input(v.type, inner.grad_enabled) for v in values])
        inner.run(lambda fn=fn, run=run, body=body: run(fn, first, body))
        bodies.append(body)
    if bodies[0].trace.written:
        raise OpError(
            f"while_loop at {user_location()}: cond_fn writes a tensor in place{where_is(cond_fn)}; it runs "
            f"once more than the body, so write in body_fn"
        )
    states = _written(bodies)
    consts = _captured(bodies, states.values())
    graphs = []
    for body, name, fn in zip(bodies, ("test", "body"), (cond_fn, body_fn)):
        inputs = [*body.inputs, *(body.bound(v) for v in (*states.values(), *consts))]
        outputs = body.outputs if name == "test" else [*body.outputs, *_finals(body, states)]
        names = parameter_names(fn, first)
        graphs.append(body.trace.graph(inputs, outputs, dict(zip(body.inputs, names))))
        graphs[-1].name = name
    k = len(values) + len(states)
    keep = [*range(k), *_used(graphs, k)]
    _pruned(graphs, keep)
    operands = [*values, *states.values(), *consts]
    attrs: dict[str, Any] = {"carry": k}
    if max_trips is not None:
        attrs["max_trips"] = max_trips
    made = _emit(trace, "while", [operands[i] for i in keep], attrs, graphs)
    _write_back(states, made[len(values) : k])
    return tuple(rebuilt(first, [Tensor(v) for v in made[: len(values)]]))


def _run_test(fn: Callable[..., Any], first: Any, body: Body) -> None:
    out = fn(*rebuilt(first, [Tensor(v) for v in body.inputs]))
    out = as_tensor(body.trace, out) if isinstance(out, NUMBERS) else out
    if not isinstance(out, Tensor) or out.numel() != 1:
        raise OpError(
            f"while_loop at {user_location()}: cond_fn gives {shown(out)}{where_is(fn)}, expected a tensor "
            f"of one element"
        )
    body.outputs = [_truth(body.trace, out)]


def _run_body(fn: Callable[..., Any], first: Any, body: Body) -> None:
    out = fn(*rebuilt(first, [Tensor(v) for v in body.inputs]))
    if not isinstance(out, (tuple, list)):
        out = (out,)
    body.outputs = results_of("while_loop", fn, type(first)(out), first, "the carried values are")


def scan(
    combine_fn: Callable[..., Any],
    init: Any,
    xs: Any = None,
    *,
    dim: int = 0,
    reverse: bool = False,
    length: int | None = None,
) -> tuple[Any, Any]:
    """A loop over slices: `carry, y = combine_fn(carry, x)` for each (`torch._higher_order_ops.scan`).

    `combine_fn` is traced once, so a long scan costs no more to compile than a short one, and gradients flow
    through it.

    Args:
        combine_fn: gives (new carry, y); the carry keeps its structure and types, y is any tree of tensors.
        init: the first carry: tensors or numbers, in nested containers; may be None.
        xs: tensors of one size along `dim`, in nested containers; None with `length`.
        dim: the dimension of `xs` that is stepped along; the slices don't have it.
        reverse: begin at the last slice. Each y is stored where its x was.

    Returns:
        (last carry, ys): each y stacked along a new first dimension.
    """
    return _scan(combine_fn, init, xs, dim, reverse, length, "body")


def _scan(
    combine_fn: Callable[..., Any],
    init: Any,
    xs: Any,
    dim: int,
    reverse: bool,
    length: int | None,
    name: str,
) -> tuple[Any, Any]:
    """`scan`; its region is called `name`."""
    trace = _begin()
    first = _as_tensors(trace, init, "init of scan")
    carried = [t._value() for t in leaves_of(first, "")]
    stacks = [_stack(t, dim) for t in leaves_of(xs, "xs of scan")]
    sizes = {t.shape[0] for t in stacks} | ({length} if length is not None else set())
    if len(sizes) != 1:
        given = [str(t._value().type) for t in leaves_of(xs, "")]
        given += [f"length={length}"] if length is not None else []
        raise OpError(
            f"scan at {user_location()}: xs must have one size along dim={dim}, got "
            f"{', '.join(given) or 'no tensor; pass length=n'}"
        )
    (n,) = sizes
    values = [t._value() for t in stacks]
    inner = RegionTrace(trace, "tracegrad.scan")
    body = Body(
        inner,
        [
            *(inner.input(v.type, inner.grad_enabled) for v in carried),
            *(inner.input(v.type.with_shape(v.type.shape[1:]), v.requires_grad) for v in values),
        ],
    )
    ys = inner.run(lambda: _step(combine_fn, first, xs, body, len(carried)))
    states = _written([body])
    consts = _captured([body], states.values())
    k = len(carried)
    inputs = [
        *body.inputs[:k],
        *(body.bound(v) for v in states.values()),
        *body.inputs[k:],
        *(body.bound(v) for v in consts),
    ]
    outputs = [*body.outputs[:k], *_finals(body, states), *body.outputs[k:]]
    names = parameter_names(combine_fn, (first, rebuilt(xs, stacks)))
    graph = inner.graph(inputs, outputs, dict(zip(body.inputs, names)))
    graph.name = name
    operands = [*carried, *states.values(), *values, *consts]
    explicit = k + len(states) + len(values)
    keep = [*range(explicit), *_used([graph], explicit)]
    _pruned([graph], keep)
    attrs: dict[str, Any] = {"length": n, "carry": k + len(states), "xs": len(values)}
    if reverse:
        attrs["reverse"] = True
    if not outputs:
        return first, ys
    made = _emit(trace, "scan", [operands[i] for i in keep], attrs, [graph])
    k_all = k + len(states)
    _write_back(states, made[k:k_all])
    last = rebuilt(first, [Tensor(v) for v in made[:k]])
    return last, rebuilt(ys, [Tensor(v) for v in made[k_all : len(outputs)]])


def _stack(t: Any, dim: int) -> Tensor:
    if not isinstance(t, Tensor) or t.dim() == 0:
        raise OpError(
            f"scan at {user_location()}: xs are tensors with a dimension to step along, got {shown(t)}; what "
            f"does not change from step to step is read from around the function"
        )
    d = normalize_axis(dim, t.dim())
    return t if d == 0 else t.permute(d, *(i for i in range(t.dim()) if i != d))


def _step(fn: Callable[..., Any], first: Any, xs: Any, body: Body, k: int) -> Any:
    carry = rebuilt(first, [Tensor(v) for v in body.inputs[:k]])
    x = rebuilt(xs, [Tensor(v) for v in body.inputs[k:]])
    out = fn(carry, x)
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise OpError(
            f"scan at {user_location()}: combine_fn must give a pair (carry, y), got {shown(out)}"
            f"{where_is(fn)}"
        )
    values = results_of("scan", fn, out[0], first, "the carry is")
    ys = rebuilt(out[1], [as_tensor(body.trace, y) for y in leaves_of(out[1], "ys of scan")])
    body.outputs = [*values, *(body.trace.own(y._value()) for y in leaves_of(ys, ""))]
    return ys


def map(f: Callable[..., Any], xs: Any, *args: Any) -> Any:
    """`f(x, *args)` for each slice `x` of `xs` along its first dimension, stacked
    (`torch._higher_order_ops.map`).

    Args:
        f: gives a tensor or a nested container of them.
        xs: tensors of one size in their first dimension, in nested containers.
        args: passed on as they are.
    """
    return _scan(lambda _, x: (None, f(x, *args)), None, xs, 0, False, None, "map")[1]


FUNCTIONS: dict[str, Callable[..., Any]] = {"cond": cond, "while_loop": while_loop, "scan": scan, "map": map}
