"""Gradients of control flow. Used by the records in ir/ops/control.py and by the tracer, which records a scan
with what its backward will read.

A region is differentiated by the ordinary walk on a copy of it. Of the graph that gives, what does not depend
on the incoming gradients is *primal*: the forward region and what rules computed from it alone. What the rest
reads of that must come from somewhere: from operands, from results that exist, from cheap ops on those
(ir/partition.py decides), and what then is missing from a second run of the op, with more results. Where the
tracer recorded these results in the first place (`with_saves`) nothing is missing; elsewhere `merge_equal`
makes one op of the two.

    forward   h' = f(h, x, w), y                    results: last h, ys, saves
    backward  reversed, carries the gradient of h and of w: (gh, gw) -> (gh', gw + ...), gives the
    gradients of x
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .builder import Builder
from .dataclass import dataclass
from .errors import GradError
from .grad import backward, vjp
from .graph import Graph, Node, Value, toposort
from .op import REGISTRY
from .partition import cut
from .regions import Key, build, dependent, inline, part, structure

Flags = tuple[bool, ...]


def _is_zero(v: Value | None) -> bool:
    if v is None:
        return True
    return v.node is not None and v.node.op.name == "full" and not v.node.attrs["value"]


def _floats(values: Sequence[Value]) -> list[bool]:
    return [v.type.dtype.kind == "f" for v in values]


def _zeros(b: Any, v: Value) -> Value:
    kind = v.type.dtype.kind
    return b.full(shape=v.type.shape, value=0.0 if kind == "f" else kind != "b" and 0, dtype=v.type.dtype)


# --- one region ---------------------------------------------------------------------------------------------


def active(region: Graph, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs gradients flow through to the inputs that want them."""
    found = {v for v, flag in zip(region.inputs, inputs) if flag}
    for node in region.nodes:
        if node.op.differentiable and any(v in found for v in node.operands):
            found.update(r for r in node.results if r.type.dtype.kind == "f")
    return [v in found for v in region.outputs]


def useful(region: Graph, seeded: Sequence[bool]) -> list[bool]:
    """Which inputs gradients of the seeded outputs reach."""
    found = {v for v, flag in zip(region.outputs, seeded) if flag}
    for node in reversed(region.nodes):
        if node.op.differentiable and any(r in found for r in node.results):
            found.update(v for v in node.operands if v.type.dtype.kind == "f")
    return [v in found for v in region.inputs]


@dataclass
class Reversed:
    """A region's backward, taken apart.

    Attributes:
        forward: the region, with what the backward reads among its outputs; its own outputs come first.
        reads: inputs of the region that the backward reads.
        saves: outputs of `forward` that it reads.
        found: for each wanted input, whether it has a gradient.
        graph: the backward, on the inputs read, the outputs read, and the gradients of the seeded outputs.
    """

    forward: Graph
    reads: list[int]
    saves: list[int]
    found: list[bool]
    graph: Graph


_REVERSED: dict[Key, Reversed] = {}


def reverse(region: Graph, seeded: Flags, wanted: Flags, steps: int, carried: int) -> Reversed:
    """The backward of a region.

    Args:
        seeded: outputs that have gradients.
        wanted: inputs whose gradients are asked for.
        steps: how many inputs, the first, are other ones at each step.
        carried: how many of these inputs, and of the outputs, the next step overwrites; the backward has
            the others.
    """
    lines = tuple([node.loc for node in region.nodes])
    key = (structure(region), lines, seeded, wanted, steps, carried)
    known = _REVERSED.get(key)
    if known is None:
        if len(_REVERSED) >= 1024:
            _REVERSED.clear()
        known = _REVERSED[key] = _reverse(region, seeded, wanted, steps, carried)
    return known


def _reverse(region: Graph, seeded: Flags, wanted: Flags, steps: int, carried: int) -> Reversed:
    whole = Graph(region.name)
    b = Builder(whole)
    inputs = [whole.add_input(v.type) for v in region.inputs]
    outs = inline(b, region, inputs)
    roots_of = [v for v, flag in zip(outs, seeded) if flag]
    seeds = [Value(v.type) for v in roots_of]
    given: dict[Value, Value] = {}
    with b.at(None, "backward"):
        for v, seed in zip(roots_of, seeds):
            given[v] = b.add(given[v], seed) if v in given else seed
        targets = [v for v, flag in zip(inputs, wanted) if flag]
        grads = backward(b, given, targets)
    roots = [grads[v] for v in targets if v in grads]
    bound = dependent(whole, seeds)
    primal = {*inputs, *(r for n in whole.nodes for r in n.results)} - bound
    live = set(toposort(roots))
    reads = [v for n in whole.nodes if n in live and n.results[0] in bound for v in n.operands if v in primal]
    reads += [v for v in roots if v in primal]
    sources = inputs[carried:]
    stored = [v for v in outs[carried:] if v not in sources]
    saves = cut(whole, reads, {*sources, *stored}, primal, primal - dependent(whole, inputs[:steps]))
    kept = list(dict.fromkeys((*saves, *stored)))
    graph = part(whole, [*sources, *kept, *seeds], roots)
    used = {v for n in graph.nodes for v in n.operands} | set(graph.outputs)
    read = [i for i, v in enumerate(graph.inputs) if v in used and i < len(sources)]
    saved = [i for i in range(len(kept)) if graph.inputs[len(sources) + i] in used]
    forward_outs = list(outs)
    places = []
    for i in saved:
        if kept[i] not in forward_outs[carried:]:
            forward_outs.append(kept[i])
        places.append(forward_outs.index(kept[i], carried))
    ends = range(len(sources) + len(kept), len(graph.inputs))
    graph.inputs = [graph.inputs[i] for i in (*read, *(len(sources) + i for i in saved), *ends)]
    for i, v in enumerate(graph.inputs):
        v.index = i
    forward = part(whole, inputs, forward_outs, region.name)
    return Reversed(forward, [carried + i for i in read], places, [v in grads for v in targets], graph)


# --- cond ---------------------------------------------------------------------------------------------------


def cond_grad(b: Any, n: Any, *grads: Value) -> tuple[Any, ...]:
    """A cond of the branches' backwards."""
    node: Node = n.node
    plan = _cond_plan(node, n.needs, grads)
    if plan is None:
        return (None,) * len(node.operands)
    seeded, wanted, halves, forward = plan
    outs = list(node.results)
    if forward is not None:
        made = b.emit(node.op, node.operands, node.attrs, forward)
        outs = list(made) if isinstance(made, tuple) else [made]
    own = len(node.results)
    extra = own
    operands: list[Value] = [node.operands[0]]
    spans: list[list[int]] = []  # where each half's inputs are among the operands of the backward's regions
    place: dict[Value, int] = {}

    def at(v: Value) -> int:
        if v not in place:
            place[v] = len(operands) - 1
            operands.append(v)
        return place[v]

    for half in halves:
        span = [at(node.operands[1 + i]) for i in half.reads]
        for i in half.saves:
            span.append(at(outs[i if i < own else extra + i - own]))
        extra += len(half.forward.outputs) - own
        spans.append(span)
    seeds = [at(g) for g, flag in zip(grads, seeded) if flag]
    found = [any(flags) for flags in zip(*(half.found for half in halves))]
    targets = [v for v, flag in zip(node.operands[1:], wanted) if flag]
    if not any(found):
        return (None,) * len(node.operands)
    regions = []
    for half, span in zip(halves, spans):

        def back(bb: Any, inputs: list[Value], half: Reversed = half, span: list[int] = span) -> list[Value]:
            made = iter(inline(bb, half.graph, [inputs[i] for i in (*span, *seeds)]))
            entries = [next(made) if flag else None for flag in half.found]
            return [_zeros(bb, t) if e is None else e for e, t, flag in zip(entries, targets, found) if flag]

        name = node.regions[len(regions)].name
        regions.append(build(name, [v.type for v in operands[1:]], back, "backward"))
    made = b.emit(node.op, tuple(operands), node.attrs, tuple(regions))
    entries = iter(made if isinstance(made, tuple) else (made,))
    got = iter([next(entries) if flag else None for flag in found])
    return (None, *(next(got) if flag else None for flag in wanted))


def _cond_plan(node: Node, needs: Flags, grads: Sequence[Value | None]) -> Any:
    """(outputs with gradients, operands that want them, both branches reversed, the branches with saves)."""
    wanted = needs[1:]
    ok = [any(flags) for flags in zip(*(active(r, wanted) for r in node.regions))]
    seeded = tuple([flag and not _is_zero(g) for flag, g in zip(ok, grads)])
    if not any(seeded) or not any(wanted):
        return None
    halves = [reverse(r, seeded, wanted, 0, 0) for r in node.regions]
    return seeded, wanted, halves, _cond_forward(node, halves)


def _cond_forward(node: Node, halves: Sequence[Reversed]) -> tuple[Graph, ...] | None:
    """Both branches with the saves of both, zeros for the other's; None where there are none."""
    own = len(node.results)
    extras = [half.forward.outputs[own:] for half in halves]
    if not any(extras):
        return None
    types = [v.type for v in node.operands[1:]]

    def branch(k: int) -> Graph:
        def run(b: Any, inputs: list[Value]) -> list[Value]:
            outs = inline(b, halves[k].forward, inputs)
            rows = [outs[own:] if j == k else [_zeros(b, v) for v in extras[j]] for j in range(len(halves))]
            return [*outs[:own], *(v for row in rows for v in row)]

        made = build(node.regions[k].name, types, run)
        for v, other in zip(made.inputs, node.regions[k].inputs):
            v.name = other.name
        return made

    return tuple(branch(k) for k in range(len(halves)))


# --- scan ---------------------------------------------------------------------------------------------------


@dataclass
class _ScanPlan:
    carried: list[int]  # of the carried values, those whose gradients the backward carries
    seeded: Flags
    wanted: Flags
    back: Reversed


def _scan_plan(node: Node, needs: Flags, nonzero: Sequence[bool]) -> _ScanPlan | None:
    (body,) = node.regions
    k = node.attrs.get("carry", 0)
    floats = _floats(node.operands)
    wanted = [flag and is_float for flag, is_float in zip(needs, floats)]
    while True:
        outs = active(body, wanted)
        grown = [*(w or o for w, o in zip(wanted[:k], outs)), *wanted[k:]]
        if grown == wanted:
            break
        wanted = grown
    seeded = [flag and o for flag, o in zip(nonzero, outs)]
    while True:
        reached = useful(body, seeded)
        grown = [*(s or (r and w) for s, r, w in zip(seeded, reached, wanted[:k])), *seeded[k:]]
        if grown == seeded:
            break
        seeded = grown
    wanted = [*(w and s for w, s in zip(wanted[:k], seeded)), *wanted[k:]]
    if not any(seeded) or not any(wanted):
        return None
    seeded[:k] = wanted[:k]
    back = reverse(body, tuple(seeded), tuple(wanted), k + node.attrs.get("xs", 0), k)
    return _ScanPlan([i for i in range(k) if wanted[i]], tuple(seeded), tuple(wanted), back)


def scan_grad(b: Any, n: Any, *grads: Value) -> tuple[Any, ...]:
    """A scan in the other direction over the saves and the gradients of the ys."""
    node: Node = n.node
    plan = _scan_plan(node, n.needs, [not _is_zero(g) for g in grads])
    if plan is None:
        return (None,) * len(node.operands)
    back = plan.back
    k, m, length = node.attrs.get("carry", 0), node.attrs.get("xs", 0), node.attrs["length"]
    outs = list(node.results)
    if len(back.forward.outputs) > len(outs):
        made = b.emit(node.op, node.operands, node.attrs, (back.forward,))
        outs = list(made) if isinstance(made, tuple) else [made]
    targets = [i for i, flag in enumerate(plan.wanted) if flag]
    found = [i for i, flag in zip(targets, back.found) if flag]
    carried = plan.carried
    consts = [i for i in found if i >= k + m]
    slices = [i for i in found if k <= i < k + m]
    seeds = [j for j, flag in enumerate(plan.seeded) if flag and j >= k]

    if not carried and not found:
        return (None,) * len(node.operands)
    inits = [grads[i] if not _is_zero(grads[i]) else _zeros(b, node.operands[i]) for i in carried]
    totals = [_zeros(b, node.operands[i]) for i in consts]
    read_xs = [i for i in back.reads if i < k + m]
    read_consts = [i for i in back.reads if i >= k + m]
    stacks = [
        *(grads[j] for j in seeds),
        *(node.operands[i] for i in read_xs),
        *(outs[j] for j in back.saves),
    ]
    operands = (*inits, *totals, *stacks, *(node.operands[i] for i in read_consts))
    n_carry = len(inits) + len(totals)
    types = [v.type for v in operands[:n_carry]]
    types += [v.type.with_shape(v.type.shape[1:]) for v in stacks]
    types += [v.type for v in operands[n_carry + len(stacks) :]]

    def step(bb: Any, inputs: list[Value]) -> list[Value]:
        rest = iter(inputs)
        flowing = {i: next(rest) for i in carried}
        sums = {i: next(rest) for i in consts}
        flowing.update({j: next(rest) for j in seeds})
        values = {i: next(rest) for i in read_xs}
        kept = [next(rest) for _ in back.saves]
        values.update({i: next(rest) for i in read_consts})
        seeded = [flowing[j] for j, flag in enumerate(plan.seeded) if flag]
        made = inline(bb, back.graph, [*(values[i] for i in back.reads), *kept, *seeded])
        gave = dict(zip(found, made))
        return [
            *(gave[i] if i in gave else _zeros(bb, node.operands[i]) for i in carried),
            *(bb.add(sums[i], gave[i]) for i in consts),
            *(gave[i] for i in slices),
        ]

    attrs = {"length": length, "carry": n_carry, "xs": len(stacks)}
    if not node.attrs.get("reverse", False):
        attrs["reverse"] = True
    made = b.emit(node.op, operands, attrs, (build(node.regions[0].name, types, step, "backward"),))
    results = iter(made if isinstance(made, tuple) else (made,))
    by_operand = {i: next(results) for i in (*carried, *consts, *slices)}
    return tuple([by_operand.get(i) if need else None for i, need in enumerate(n.needs)])


# --- while --------------------------------------------------------------------------------------------------


def while_grad(b: Any, n: Any, *grads: Value) -> tuple[Any, ...]:
    """That of the scan over `max_trips` steps which stops carried its values when the test fails."""
    node: Node = n.node
    if node.attrs.get("max_trips") is None:
        raise GradError(
            f"while({', '.join(str(v.type) for v in node.operands)}) at {node.loc} has no gradient, because "
            f"nothing says how often it runs at most; give while_loop(..., max_trips=N), use scan, or "
            f"detach() its operands if no gradient is wanted"
        )
    regions, attrs = bounded(node.regions, node.attrs, [v.type for v in node.operands])
    made = b.emit(REGISTRY["scan"], node.operands, attrs, regions)
    first = made[0] if isinstance(made, tuple) else made
    return tuple(vjp(b, first.node, n.needs, grads))


def bounded(
    regions: tuple[Graph, ...], attrs: dict[str, Any], types: Sequence[Any]
) -> tuple[tuple[Graph, ...], dict[str, Any]]:
    """A while with a bound as a scan: (its regions, its attributes). Where the test fails values stay as they
    are, so that it fails from then on."""
    test, body = regions
    k = attrs["carry"]

    def step(b: Any, inputs: list[Value]) -> list[Value]:
        go = inline(b, test, inputs)[0]
        inner = [v.type for v in inputs]
        stay = build("else", inner, lambda bb, xs: xs[:k])
        made = b.emit(REGISTRY["cond"], (go, *inputs), {}, (body, stay))
        return list(made) if isinstance(made, tuple) else [made]

    return (build("while", types, step),), {"length": attrs["max_trips"], "carry": k}


# --- for the tracer -----------------------------------------------------------------------------------------


def carries_grad(
    name: str, attrs: dict[str, Any], regions: tuple[Graph, ...], needs: Sequence[bool]
) -> list[bool]:
    """Which results gradients flow through to the operands that want them."""
    if name == "cond":
        return [any(flags) for flags in zip(*(active(r, needs[1:]) for r in regions))]
    body = regions[-1]
    k, wanted = attrs.get("carry", 0), list(needs)
    while True:
        outs = active(body, wanted)
        grown = [*(w or o for w, o in zip(wanted[:k], outs)), *wanted[k:]]
        if grown == wanted:
            return [*wanted[:k], *outs[k:]]
        wanted = grown


def with_saves(
    name: str, types: Sequence[Any], attrs: dict[str, Any], regions: tuple[Graph, ...], needs: Flags
) -> tuple[Graph, ...]:
    """The regions of a cond or scan with everything its backward will read among their outputs, so that
    it runs once. `needs` says which operands require grad."""
    op = REGISTRY[name]
    dry = Node(op, tuple([Value(t) for t in types]), attrs, None, "forward", regions)
    dry.results = tuple(
        [Value(t, dry, i) for i, t in enumerate(op.infer_types(tuple(types), attrs, regions))]
    )
    if name == "cond":
        plan = _cond_plan(dry, needs, dry.results)
        return plan[3] or regions if plan is not None else regions
    found = _scan_plan(dry, needs, _floats(dry.results))
    return (_named(found.back.forward, regions[0]),) if found is not None else regions


def _named(region: Graph, like: Graph) -> Graph:
    """A copy whose inputs have the names of another region's."""
    out = part(region, region.inputs, region.outputs)
    for v, other in zip(out.inputs, like.inputs):
        v.name = other.name
    return out
