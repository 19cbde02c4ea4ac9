"""The autograd API: `backward` and `grad`. The walk itself is ir/grad.py, run on recorded nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..ir.dtypes import float32
from ..ir.errors import GradError
from ..ir.grad import backward as walk_back
from ..ir.grad import reads
from ..ir.op import REGISTRY
from ..ir.types import Type
from . import anomaly
from .hooks import Callbacks, active, concern
from .library import ArgumentError
from .making import of_value, pass_number
from .placement import TO_DEVICE
from .recording import STATE, LazyTrace
from .tensor import Tensor
from .trace import Trace
from .values import OPAQUE, SPENT, TracedValue, history, let_go, without_contents

_LOSS = Type(float32, ())


def _stops(v: Any) -> bool:
    return v.leaf is not None or not v.requires_grad


def _explore(roots: Sequence[TracedValue]) -> tuple[list[TracedValue], list[Any]]:
    """The leaves the roots depend on, in order of discovery, and the nodes between. Raises where a graph is
    freed.
    """
    leaves: list[TracedValue] = []
    nodes: list[Any] = []
    seen: set[Any] = set()
    stack: list[Any] = list(reversed(roots))
    while stack:
        v = stack.pop()
        if v.leaf is not None:
            if v not in seen:
                seen.add(v)
                leaves.append(v)
            continue
        node = v.node
        if v.freed is True and v.requires_grad:
            made = f"{node.op.name} (made at {node.loc})" if node is not None else f"a {v.type} tensor"
            raise GradError(
                f"backward through {made} a second time: what it saved was freed "
                f"by the first; pass retain_graph=True to the first backward, or compute the forward again"
            )
        if not v.requires_grad or node is None or node in seen:
            continue
        seen.add(node)
        nodes.append(node)
        stack.extend(reversed(node.operands))
    return leaves, nodes


def _seed(trace: Trace, root: Tensor, value: TracedValue, gradient: Any) -> Any:
    if gradient is None:
        if value.type.numel != 1:
            raise GradError(
                f"gradients can be created implicitly only for scalars; this tensor is "
                f"{value.type}: pass `gradient`"
            )
        one: Any = trace.literal(1.0, value.type.dtype)
        if value.type.device is not None:
            one = trace.emit(TO_DEVICE, (one,), {"device": value.type.device, "source": None})
        return (
            trace.emit(REGISTRY["expand"], (one,), {"shape": value.type.shape}) if value.type.shape else one
        )
    g = gradient._value()
    if g.type.shape != value.type.shape:
        raise GradError(f"a gradient of type {g.type} given for a tensor of type {value.type}")
    return trace.cast_to(g, value.type.dtype)


def _run(
    tensors: Sequence[Tensor],
    gradients: Sequence[Any],
    keep: bool,
    create_graph: bool,
    wrt: Sequence[Tensor] | None,
) -> tuple[list[TracedValue], dict[Any, Any]]:
    """The leaves that were reached, and the gradients found by value."""
    trace = STATE.trace
    values = [t._value() for t in tensors]
    for t, v in zip(tensors, values):
        if not v.requires_grad:
            raise GradError(
                f"backward() of a tensor of type {v.type} that does not require grad and has no grad_fn: no "
                f"operand of its computation had requires_grad=True, or it was made under no_grad()"
            )
        if not isinstance(t, Tensor):
            raise GradError("backward() takes tensors")
    if (
        wrt is None
        and not create_graph
        and isinstance(trace, LazyTrace)
        and not trace.outside
        and all([v in trace.slots for v in values])
        and not _runs_python(trace)
    ):
        return _replayed(trace, tensors, values, gradients, keep)
    calls = active() or anomaly.enabled()
    leaves, nodes = _explore(values)
    targets = leaves if wrt is None else [v for t in wrt for v in _values_of(t, leaves)]
    callbacks = callbacks_of(trace, create_graph, leaves) if calls else None
    with _walking(trace, create_graph):
        seeds = _seeds(trace, tensors, values, gradients)
        if callbacks is None:
            found = walk_back(trace, seeds, targets, stop=_stops)
        else:
            found = walk_back(trace, seeds, targets, stop=_stops, **callbacks.arguments())
            for t in (v.leaf() for v in targets if v.leaf is not None):
                if t is not None and id(t) in callbacks.many:
                    callbacks.many.discard(id(t))
                    _hook_sum(trace, t, leaves, found, callbacks)
            callbacks.finish(found)
    if not keep:
        release(trace, *_results(nodes), values)
    return leaves, found


def callbacks_of(trace: Trace, create_graph: bool, leaves: Sequence[TracedValue]) -> Callbacks:
    """What a walk back in which hooks may run calls."""
    owners = [id(v.leaf()) for v in leaves if v.leaf is not None]
    many = {k for k in owners if owners.count(k) > 1}
    show = lambda g: Tensor(_owned(trace, g))  # noqa: E731
    made = anomaly.Checks if anomaly.enabled() else Callbacks
    return made(trace, show, lambda t, g: _accumulate(trace, t, g, create_graph), many)


def _hook_sum(
    trace: Any, t: Tensor, leaves: Sequence[TracedValue], found: dict[Any, Any], calls: Callbacks
) -> None:
    """Runs the hooks of a leaf that the graph knows by several values, on the sum of their gradients."""
    values = [v for v in _values_of(t, leaves) if v in found]
    if values and t._hooks:
        total = found[values[0]]
        for v in values[1:]:
            total = trace.add(total, found.pop(v))
        found[values[0]] = calls.of_leaf(t, total)


def _results(nodes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Of walked nodes the results of those that saved something, and of those that can be walked again."""
    saved: list[Any] = []
    free: list[Any] = []
    for node in nodes:
        needs = tuple([v.requires_grad for v in node.operands])
        operands, results = reads(node, needs)
        kept = results or any(needs[i] or node.operands[i].type.shape for i in operands)  # numbers may stay
        (saved if kept else free).extend(node.results)
    return saved, free


class _walking:
    """Inside, the ops of a walk back are recorded."""

    __slots__ = ("_new", "_old", "_trace")

    def __init__(self, trace: Trace, create_graph: bool) -> None:
        self._trace = trace
        self._new = create_graph
        self._old = (trace.grad_enabled, trace.walked_back, trace.phase)

    def __enter__(self) -> None:
        trace = self._trace
        trace.grad_enabled, trace.walked_back, trace.phase = self._new, False, "backward"

    def __exit__(self, *exc: Any) -> None:
        trace = self._trace
        trace.grad_enabled, trace.walked_back, trace.phase = self._old


def _runs_python(trace: LazyTrace) -> bool:
    """Whether a walk back through the pending program may call what users wrote."""
    if anomaly.enabled() or (trace.own_attrs and OPAQUE):
        return True
    return concern(trace.values)


def _seeds(
    trace: Trace, tensors: Sequence[Tensor], values: Sequence[TracedValue], gradients: Sequence[Any]
) -> dict[Any, Any]:
    if len(values) == 1 and gradients[0] is None and values[0].type == _LOSS:
        return {values[0]: trace.literal(1.0, _LOSS.dtype)}  # (what follows is for every kind)
    seeds: dict[Any, Any] = {}
    for t, v, g in zip(tensors, values, gradients):
        s = _seed(trace, t, v, g)
        seeds[v] = trace.add(seeds[v], s) if v in seeds else s
    return seeds


def _replayed(
    trace: LazyTrace,
    tensors: Sequence[Tensor],
    values: Sequence[TracedValue],
    gradients: Sequence[Any],
    keep: bool,
) -> tuple[list[TracedValue], dict[Any, Any]]:
    """The plain walk of ordinary code to all leaves, as a segment: a graph that is wholly of the pending
    program is walked once and for all."""
    old = trace.grad_enabled, trace.walked_back, trace.phase
    trace.grad_enabled, trace.walked_back, trace.phase = False, False, "backward"
    try:
        given = _seeds(trace, tensors, values, gradients)
        seen = (*given, *given.values())
        made, (n, end) = trace.segment(("backward", keep), seen, _walk, trace, values, given, keep)
    finally:
        trace.grad_enabled, trace.walked_back, trace.phase = old
    leaves = made[:n]
    if not keep:
        _free(made[2 * n : end], made[end:])
    return leaves, {v: g for v, g in zip(leaves, made[n : 2 * n]) if g is not None}


def _walk(
    trace: LazyTrace, values: Sequence[TracedValue], given: dict[Any, Any], keep: bool
) -> tuple[list[Any], tuple[int, int]]:
    leaves, nodes = _explore(values)
    found = walk_back(trace, given, leaves, stop=_stops)
    saved, free = _results(nodes)
    if not keep:
        _mark_freed(trace, values)
    return [*leaves, *map(found.get, leaves), *saved, *free], (len(leaves), 2 * len(leaves) + len(saved))


def _values_of(t: Tensor, leaves: Sequence[TracedValue]) -> list[TracedValue]:
    """What a graph knows `t` by: its value, or of a leaf every value it had when the graph read it."""
    value = history(STATE.trace.own(t._value()))
    if value.leaf is None:
        return [value]
    return [v for v in leaves if v.leaf is value.leaf] or [value]


def _gradient(trace: Any, t: Tensor, leaves: Sequence[TracedValue], found: dict[Any, Any]) -> Any:
    """The gradient found for `t`, or None."""
    total = None
    for v in _values_of(t, leaves):
        if v in found:
            total = found[v] if total is None else trace.add(total, found[v])
    return total


def release(trace: Any, saved: Sequence[Any], free: Sequence[Any], roots: Sequence[Any]) -> None:
    """Frees what walked nodes kept for backward: of those with the results `saved` all, so that they can't be
    walked again; those with the results `free` need no more than the way to their operands."""
    _mark_freed(trace, roots)
    _free(saved, free)


def _mark_freed(trace: Any, roots: Sequence[Any]) -> None:
    slots = getattr(trace, "slots", {})
    trace.mark(("backward", tuple([slots.get(r, -1) for r in roots])))


def _free(saved: Sequence[Any], free: Sequence[Any]) -> None:
    for r in saved:
        r.freed = True
        if r.trace is None and r.node is not None:
            let_go(r.node)
    for r in free:
        r.freed = SPENT
        if r.trace is None and r.index == 0:
            without_contents(r.node)


def _owned(trace: Trace, g: Any) -> Any:
    """`g` as a value no storage holds yet."""
    return g if g.storage is None and g.trace is trace else trace.emit(REGISTRY["alias"], (g,), {})


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Adds gradients to `.grad` of the leaves that `tensors` depend on (PyTorch's `autograd.backward`).

    Args:
        tensors: one tensor or a sequence, each a scalar unless its entry of `grad_tensors` is given.
        grad_tensors: gradients to start with, of the tensors' shapes.
        retain_graph: keep what was saved, so that backward can run again; default `create_graph`.
        create_graph: record the backward computation, for higher derivatives.
        inputs: only these leaves get gradients.
    """
    if STATE.trace.forbids_backward:
        raise GradError(
            f"backward() inside a function under {STATE.trace.forbids_backward}() would leave gradients "
            f"of it in tensors outside; use tracegrad.func.grad, or tracegrad.autograd.grad, and return them"
        )
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if grad_tensors is None:
        grad_tensors = [None] * len(tensors)
    elif isinstance(grad_tensors, Tensor):
        grad_tensors = [grad_tensors]
    keep = create_graph if retain_graph is None else retain_graph
    wrt = None
    if inputs is not None:
        inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        wrt = inputs
    leaves, found = _run(tensors, list(grad_tensors), keep, create_graph, wrt)
    trace = STATE.trace
    before = trace.grad_enabled, trace.phase
    trace.grad_enabled, trace.phase = create_graph, "backward"
    lazy, hooks = trace.__class__ is LazyTrace, active()
    try:
        for t, g in _totals(trace, wrt, leaves, found):
            if lazy and t._grad is None and g.storage is None and g.trace is trace and _beside(t, g):
                t._grad = of_value(g)  # what `_accumulate` comes to, for most
            else:
                _accumulate(trace, t, g, create_graph)
            if hooks:
                for hook in list(t.__dict__.get("_post_accumulate_grad_hooks", {}).values()):
                    hook(t)
    finally:
        trace.grad_enabled, trace.phase = before
    if not create_graph:
        trace.walked_back = True


def backward_again(t: Tensor) -> bool:
    """`t.backward()` of a loss of ordinary code that was walked back from this place of the trie before, onto
    leaves without gradients; False where it is something else, and nothing was done."""
    trace: Any = STATE.trace
    if trace.__class__ is not LazyTrace or trace.outside or trace.own_attrs or t._view is not None:
        return False
    value = t._storage.value
    one = trace.at_node.next
    if not value.requires_grad or one.key is not float32 or one.segments is None:
        return False
    slot = trace.slots.get(value)
    known = one.segments.get((_PLAIN, (slot, one.slot), False, "backward"))
    if known is None or value.type != _LOSS or active() or anomaly.enabled():
        return False
    n, end = known.note
    values = trace.values
    leaves: list[Any] = [v.leaf if (v := values[s]) is not None else None for s in known.outputs[:n]]
    tensors: list[Any] = [leaf() if leaf is not None else None for leaf in leaves]
    if len({id(leaf) for leaf in leaves}) != n or any([t is None or t._grad is not None for t in tensors]):
        return False
    pass_number(trace, one, 1.0)
    made = known.replay(trace)
    _free(made[2 * n : end], made[end:])
    before = trace.grad_enabled, trace.phase
    trace.grad_enabled, trace.phase = False, "backward"
    try:
        for leaf, g in zip(tensors, made[n : 2 * n]):
            if g is None:
                continue
            if g.storage is None and g.trace is trace and _beside(leaf, g):
                leaf._grad = of_value(g)  # what `_accumulate` comes to, for most
            else:
                _accumulate(trace, leaf, g, False)
    finally:
        trace.grad_enabled, trace.phase = before
    trace.walked_back = True
    return True


#: what says that a walk back frees its graph, in the key of its segment
_PLAIN = ("backward", False)


def _totals(
    trace: Any, wrt: Sequence[Tensor] | None, leaves: Sequence[TracedValue], found: dict[Any, Any]
) -> Iterator[tuple[Tensor, Any]]:
    """The tensors that get gradients, each with the sum of those of its values."""
    if wrt is not None:
        for t in {id(t): t for t in wrt}.values():
            g = _gradient(trace, t, leaves, found)
            if g is not None:
                yield t, g
        return
    if len({id(v.leaf) for v in leaves}) == len(leaves):  # each leaf was read in one state only
        for v in leaves:
            t = v.leaf() if v in found and v.leaf is not None else None
            if t is not None:
                yield t, found[v]
        return
    values: dict[int, list[TracedValue]] = {}
    for v in leaves:
        if v in found:
            values.setdefault(id(v.leaf), []).append(v)
    for first, *more in values.values():
        t = first.leaf() if first.leaf is not None else None
        if t is not None:
            g = found[first]
            for v in more:
                g = trace.add(g, found[v])
            yield t, g


def _beside(t: Tensor, g: Any) -> bool:
    return g.type.device is t._storage.value.type.device


def _accumulate(trace: Trace, t: Tensor, g: Any, create_graph: bool) -> None:
    old = t.grad
    where = t._storage.value.type.device
    if g.type.device is not where and g.type.device != where:  # zeros, or another rule's constants
        g = trace.emit(TO_DEVICE, (g,), {"device": where, "source": g.type.device})
    if old is None:
        trace.write_grad(t)
        t._grad = Tensor(_owned(trace, g))
    elif create_graph:
        t.grad = Tensor(trace.add(old._value(), g))
    else:
        old._put(trace.add(old._value(), g))


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Gradients of `outputs` with respect to `inputs`, without touching `.grad` (PyTorch's `autograd.grad`).

    Returns:
        One tensor per input; None for inputs the outputs don't depend on, if `allow_unused`.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif isinstance(grad_outputs, Tensor):
        grad_outputs = [grad_outputs]
    for t in inputs:
        if not t.requires_grad:
            raise GradError(
                f"grad() with respect to a tensor of type {t._value().type} that does not require grad"
            )
    if materialize_grads and allow_unused is False:
        raise ArgumentError("grad(): materialize_grads=True implies allow_unused; leave that out")
    keep = create_graph if retain_graph is None else retain_graph
    leaves, found = _run(outputs, list(grad_outputs), keep, create_graph, inputs)
    trace = STATE.trace
    if not create_graph:
        trace.walked_back = True
    result: list[Any] = []
    for i, t in enumerate(inputs):
        g = _gradient(trace, t, leaves, found)
        if g is not None:
            result.append(Tensor(_owned(trace, g)))
        elif materialize_grads:
            zero = trace.literal(0.0, t.dtype)
            result.append(Tensor(trace.emit(REGISTRY["expand"], (zero,), {"shape": tuple(t.shape)})))
        elif allow_unused:
            result.append(None)
        else:
            raise GradError(
                f"grad(): input {i} of type {t._value().type} was not used in computing the outputs; "
                f"pass allow_unused=True to get None for it"
            )
    return tuple(result)
