"""The pass over control flow: ops with regions get smaller, or go. It applies the rewrites of `REWRITES`
in turn until none fires; each is one function, counted by its name in dumps like a rule, and has golden
tests (tests/test_control_passes.py).

    merge_equal       two loops over the same operands --> one loop
    prune_cond        dead, equal and forwarded results, dead, equal and constant operands --> gone
    prune_loop        the same of scan and while; equal carried values --> one; unchanged ones --> operands
    choose_branch     cond on a constant --> the branch
    unroll_one        scan of length 1 --> its body
    hoist_invariants, hoist_projections, hoist_sums, sink_outputs: see ir/pass_hoist.py

A rewrite is `f(b, node, operands, used) -> replacements | None`: `b` builds the new graph around the
node, `used` says which results anyone reads; replacements of unused results may be None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .builder import Builder
from .graph import Graph, Node, Value, toposort
from .pass_hoist import hoist_invariants, hoist_projections, hoist_sums, sink_outputs
from .pattern import COMMUTATIVE, splat
from .regions import exact, graft, structure, unshared
from .rewrite import Rewriter

if TYPE_CHECKING:
    from .passes import PassOptions

Results = list[Value | None] | None
Rewrite = Callable[[Builder, Node, tuple[Value, ...], list[bool]], Results]

_MOST_ROUNDS = 12
#: Constants of at most so many elements are copied into the regions that read them.
_SMALL = 64


def control(graph: Graph, options: PassOptions | None = None) -> Graph:
    """Simplifies ops with regions: what is dead, doubled, constant, or better done once outside of a loop."""
    if not any(node.regions for node in graph.nodes):
        return graph
    for _ in range(_MOST_ROUNDS):
        before = graph
        graph = _counted(merge_equal(graph), graph, "merge_equal", options)
        for rewrite in REWRITES:
            graph = _counted(apply(graph, rewrite), graph, rewrite.__name__, options)
        if graph is before:
            break
    return unshared(graph)


def _counted(after: Graph, before: Graph, name: str, options: PassOptions | None) -> Graph:
    if after is not before and options is not None:
        options.fired[name] += 1
    return after


def apply(graph: Graph, rewrite: Rewrite) -> Graph:
    """One rewrite offered every op with regions; the graph itself where none took it."""
    out = Graph(graph.name)
    out.inputs = graph.inputs
    b = Builder(out)
    env: dict[Value, Value] = {}
    read = {v for node in graph.nodes for v in node.operands} | set(graph.live_outs())
    changed = False
    for node in graph.nodes:
        operands = tuple([env.get(v, v) for v in node.operands])
        if node.regions:
            b.loc, b.phase = node.loc, node.phase
            before = len(out.nodes)
            made = rewrite(b, node, operands, [r in read for r in node.results])
            if made is not None:
                changed = True
                fresh = set(out.nodes[before:])
                for old, new in zip(node.results, made, strict=True):
                    if new is not None:
                        env[old] = new
                        if new.node in fresh and new.name is None:
                            new.name = old.name
                continue
        if operands != node.operands:
            copy = node.over(operands)
            env.update(zip(node.results, copy.results))
            node = copy
        out.nodes.append(node)
    if not changed:
        return graph
    out.outputs = [env.get(v, v) for v in graph.outputs]
    out.updates = {k: env.get(v, v) for k, v in graph.updates.items()}
    live = set(toposort(out.live_outs()))
    out.nodes = [node for node in out.nodes if node in live]
    return out


# --- merging ------------------------------------------------------------------------------------------------


def merge_equal(graph: Graph) -> Graph:
    """Conds, and scans, over the same operands --> one, with the results of both."""
    groups: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.op.name in ("cond", "scan"):
            key = (node.op, node.operands, tuple(sorted(node.attrs.items())))
            groups.setdefault(key, []).append(node)
    doubled = [group for group in groups.values() if len(group) > 1]
    if not doubled:
        return graph
    first = {group[0]: group for group in doubled}
    out = Graph(graph.name)
    out.inputs = graph.inputs
    b = Builder(out)
    env: dict[Value, Value] = {}
    gone = {node for group in doubled for node in group[1:]}
    for node in graph.nodes:
        if node in gone:
            continue
        operands = tuple([env.get(v, v) for v in node.operands])
        if node in first:
            b.loc, b.phase = node.loc, node.phase
            olds = [r for n in first[node] for r in n.results]
            for old, new in zip(olds, _joined(b, first[node], operands)):
                env[old] = new
                new.name = new.name or old.name
            continue
        if operands != node.operands:
            copy = node.over(operands)
            env.update(zip(node.results, copy.results))
            node = copy
        out.nodes.append(node)
    out.outputs = [env.get(v, v) for v in graph.outputs]
    out.updates = {k: env.get(v, v) for k, v in graph.updates.items()}
    # What reads the results can be equal now, loops among them.
    return Rewriter(out).run()


def _joined(b: Builder, nodes: Sequence[Node], operands: tuple[Value, ...]) -> list[Value]:
    """One op for several over the same operands; the results of each in turn."""
    op, attrs = nodes[0].op, nodes[0].attrs
    k = attrs.get("carry", 0) if op.name == "scan" else 0
    n = len(nodes)
    regions = []
    for which, region in enumerate(nodes[0].regions):
        out = Graph(region.name)
        carried = [[out.add_input(v.type, v.name) for v in region.inputs[:k]] for _ in nodes]
        rest = [out.add_input(v.type, v.name) for v in region.inputs[k:]]
        outs = []
        for node, mine in zip(nodes, carried):
            other = node.regions[which]
            env = dict(zip(other.inputs, [*mine, *rest]))
            graft(out, other.nodes, env)
            outs.append([env[v] for v in other.outputs])
        out.outputs = [v for row in outs for v in row[:k]] + [v for row in outs for v in row[k:]]
        regions.append(Rewriter(out).run())
    if k:
        attrs = {**attrs, "carry": k * n}
    made: Any = b.emit(op, (*operands[:k] * n, *operands[k:]), attrs, tuple(regions))
    made = made if isinstance(made, tuple) else (made,)
    ys = iter(made[k * n :])
    return [
        v
        for i, node in enumerate(nodes)
        for v in (*made[k * i : k * (i + 1)], *(next(ys) for _ in node.results[k:]))
    ]


# --- what regions and their inputs come down to -------------------------------------------------------------


def _source(v: Value) -> list[Node] | None:
    """The nodes that make a constant worth copying into a region, or None."""
    nodes = toposort([v])
    if len(nodes) > 4 or any(
        n.op.kernel not in ("source", "movement") and n.op.name != "full" for n in nodes
    ):
        return None
    if not nodes or any(n.op.name == "iota" for n in nodes):
        return None
    if splat(v) is None and (nodes[-1].op.name != "constant" or v.type.numel > _SMALL):
        return None
    return nodes


def _copy_in(out: Graph, nodes: Sequence[Node], v: Value) -> Value:
    env: dict[Value, Value] = {}
    graft(out, nodes, env)
    return env[v]


def _reaches(region: Graph, roots: Sequence[Value]) -> set[Value]:
    """The values of a region that `roots` depend on, roots included."""
    found = set(roots)
    for node in reversed(region.nodes):
        if any(r in found for r in node.results):
            found.update(node.operands)
    return found


class _Inputs:
    """What the inputs of an op's regions become: `alias` another input, `sunk` a constant made inside."""

    def __init__(self, operands: Sequence[Value], first: int) -> None:
        self.alias: dict[int, int] = {}
        self.sunk: dict[int, list[Node]] = {}
        self.operands = operands
        self.first = first

    def look_at(self, positions: range, sink: bool = True) -> None:
        """Equal operands among these positions, and constants."""
        seen: dict[Value, int] = {}
        for i in positions:
            v = self.operands[self.first + i]
            nodes = _source(v) if sink else None
            if nodes is not None:
                self.sunk[i] = nodes
            elif v in seen:
                self.alias[i] = seen[v]
            else:
                seen[v] = i

    def stands_for(self, i: int) -> int:
        return self.alias.get(i, i)

    def respell(self, region: Graph, order: Sequence[int], outs: Sequence[Value]) -> Graph:
        """The region with these of its inputs, in this order, and these outputs."""
        out = Graph(region.name)
        env: dict[Value, Value] = {}
        for i in order:
            v = region.inputs[i]
            env[v] = out.add_input(v.type, v.name)
        for i, nodes in self.sunk.items():
            env[region.inputs[i]] = _copy_in(out, nodes, self.operands[self.first + i])
        for i, j in self.alias.items():
            if region.inputs[j] in env:
                env[region.inputs[i]] = env[region.inputs[j]]
        needed = _reaches(region, outs)
        graft(out, (n for n in region.nodes if any(r in needed for r in n.results)), env)
        out.outputs = [env[v] for v in outs]
        live = set(toposort(out.outputs))
        out.nodes = [n for n in out.nodes if n in live]
        return out


# --- cond ---------------------------------------------------------------------------------------------------


def choose_branch(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """cond True, x (f) (g) --> f(x)"""
    if node.op.name != "cond":
        return None
    test = splat(operands[0])
    if test is None:
        return None
    region = node.regions[0 if test else 1]
    return _inlined(b, region, operands[1:])


def _inlined(b: Builder, region: Graph, operands: Sequence[Value]) -> list[Value | None]:
    env = dict(zip(region.inputs, operands))
    graft(b.graph, region.nodes, env)
    return [env[v] for v in region.outputs]


def prune_cond(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """cond p, x, x, y (a, b -> a+b, c) --> cond p, x"""
    if node.op.name != "cond":
        return None
    n = len(operands) - 1
    inputs = _Inputs(operands, 1)
    inputs.look_at(range(n))
    regions = node.regions
    results: list[Value | None] = [None] * len(used)
    same: dict[Any, int] = {}  # what both branches give -> the first result that is it
    copies: dict[int, int] = {}
    kept = []
    for j, flag in enumerate(used):
        if not flag:
            continue
        pair = tuple([_known(r, r.outputs[j], inputs) for r in regions])
        if isinstance(pair[0], int) and pair[0] == pair[1]:
            results[j] = operands[1 + pair[0]]
        elif pair in same:
            copies[j] = same[pair]
        else:
            same[pair] = j
            kept.append(j)
    outs = [[r.outputs[j] for j in kept] for r in regions]
    needed = [_reaches(r, o) for r, o in zip(regions, outs)]
    live = {inputs.stands_for(i) for i in range(n) if any(r.inputs[i] in s for r, s in zip(regions, needed))}
    order = [i for i in range(n) if i in live and i not in inputs.sunk and i not in inputs.alias]
    if len(order) == n and len(kept) == len(used):
        return None
    if kept:
        new = tuple(inputs.respell(r, order, o) for r, o in zip(regions, outs))
        made: Any = b.emit(node.op, (operands[0], *(operands[1 + i] for i in order)), node.attrs, new)
        for j, v in zip(kept, made if isinstance(made, tuple) else (made,)):
            results[j] = v
    for j, first in copies.items():
        results[j] = results[first]
    return results


def _known(region: Graph, v: Value, inputs: _Inputs) -> Any:
    """An output by what it is: the position of an input, or itself."""
    if v.node is None:
        i = inputs.stands_for(v.index)
        return v if i in inputs.sunk else i
    return v


# --- loops --------------------------------------------------------------------------------------------------


def _expanded_slice(v: Value) -> Value | None:
    """What each slice along the first dimension of `v` expands, if they are all the same by the look of
    it."""
    node = v.node
    if node is None or node.op.name != "expand" or v.type.shape[0] == 1:
        return None
    source = node.operands[0]
    return source if source.type.rank < v.type.rank or source.type.shape[0] == 1 else None


def _slice_of(b: Builder, source: Value, v: Value) -> Value:
    shape = v.type.shape[1:]
    if source.type.rank == v.type.rank:
        source = b.reshape(source, shape=source.type.shape[1:])
    return source if source.type.shape == shape else b.expand(source, shape=shape)


def _equal_carries(
    body: Graph, carried: Sequence[int], operands: Sequence[Value], alias: dict[int, int]
) -> None:
    """Adds to `alias` carried values that begin equal and stay so."""
    leader: dict[int, int] = {}
    starts: dict[Any, int] = {}
    for i in carried:
        v = operands[i]
        value = splat(v)
        leader[i] = starts.setdefault((exact(value), v.type) if value is not None else v, i)
    if all(i == j for i, j in leader.items()):
        return
    while True:
        numbers: dict[Any, int] = {}
        of: dict[Value, int] = {}

        def number(key: Any, numbers: dict[Any, int] = numbers) -> int:
            return numbers.setdefault(key, len(numbers))

        for i, v in enumerate(body.inputs):
            of[v] = number(("input", leader.get(i, alias.get(i, i))))
        for node in body.nodes:
            parts = [of[v] for v in node.operands]
            if node.op.name in COMMUTATIVE:
                parts.sort()
            attrs = tuple([(name, exact(value)) for name, value in node.attrs.items()])
            key = number((node.op, tuple(parts), attrs, tuple(map(structure, node.regions))))
            for r in node.results:
                of[r] = number((key, r.index))
        groups: dict[Any, int] = {}
        split = {i: groups.setdefault((leader[i], of[body.outputs[i]]), i) for i in carried}
        if split == leader:
            break
        leader = split
    alias.update((i, j) for i, j in leader.items() if i != j)


def prune_loop(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """scan of dead, equal, constant or unchanged carried values, xs, operands and ys --> scan without"""
    if node.op.name not in ("scan", "while"):
        return None
    k, m = node.attrs.get("carry", 0), node.attrs.get("xs", 0)
    n = len(operands)
    body = node.regions[-1]
    inputs = _Inputs(operands, 0)
    inputs.look_at(range(k + m, n))
    inputs.look_at(range(k, k + m), sink=False)
    position = {v: i for i, v in enumerate(body.inputs)}

    def known(v: Value) -> int:
        """The input that a value of the body is, or -1."""
        return inputs.stands_for(position[v]) if v in position else -1

    # Carried values that stay what they are.
    fixed: set[int] = set()
    for i in range(k):
        j = known(body.outputs[i])
        if j == i or (j >= k + m and j not in inputs.sunk and operands[j] is operands[i]):
            fixed.add(i)
    _equal_carries(body, [i for i in range(k) if i not in fixed], operands, inputs.alias)
    # xs whose slices are all the same.
    constant: dict[int, Value] = {}
    for i in range(k, k + m):
        source = _expanded_slice(operands[i]) if i not in inputs.alias else None
        if source is not None:
            constant[i] = source
    results: list[Value | None] = [None] * len(used)
    kept: list[int] = []
    copies: dict[int, int] = {}
    first: dict[Value, int] = {}
    length = node.attrs.get("length", 0)
    for j in range(k, len(used)):
        if not used[j]:
            continue
        v = body.outputs[j]
        i = known(v)
        if k <= i < k + m:
            results[j] = operands[i]
        elif (i >= k + m and i not in inputs.sunk) or i in fixed:
            results[j] = b.expand(operands[i], shape=(length, *v.type.shape))
        elif v in first:
            copies[j] = first[v]
        else:
            first[v] = j
            kept.append(j)
    # What is needed for the results that are left.
    roots = [body.outputs[j] for j in kept]
    carried = {inputs.stands_for(i) for i in range(k) if used[i] and i not in fixed}
    asked = set(carried)
    if node.op.name == "while":
        reads = _reaches(node.regions[0], node.regions[0].outputs)
        asked |= {inputs.stands_for(i) for i, v in enumerate(node.regions[0].inputs) if v in reads}
        if asked.isdisjoint(range(k)) and not any(used):
            return None
    while True:
        live = _reaches(body, [*roots, *(body.outputs[i] for i in range(k) if i in asked)])
        grown = asked | {inputs.stands_for(i) for i, v in enumerate(body.inputs) if v in live}
        if grown == asked:
            break
        asked = grown
    order_carry = [i for i in range(k) if i in asked and i not in fixed and i not in inputs.alias]
    order_xs = [i for i in range(k, k + m) if i in asked and i not in constant and i not in inputs.alias]
    rest = [*(i for i in range(k) if i in fixed), *constant, *range(k + m, n)]
    order_rest = [i for i in rest if i in asked and i not in inputs.sunk and i not in inputs.alias]
    same = len(order_carry) == k and len(order_xs) == m and len(order_rest) == n - k - m
    if same and len(kept) == len(used) - k:
        return None
    if node.op.name == "while" and not order_carry:
        return None  # its test never changes: endless, or never begun; both stay as they are
    order = [*order_carry, *order_xs, *order_rest]
    given = [_slice_of(b, constant[i], operands[i]) if i in constant else operands[i] for i in order]
    ends = [body.outputs[i] for i in order_carry]
    if ends or kept:
        attrs = {**node.attrs, "carry": len(order_carry)}
        if node.op.name == "scan":
            attrs["xs"] = len(order_xs)
        regions = [inputs.respell(body, order, [*ends, *(body.outputs[j] for j in kept)])]
        if node.op.name == "while":
            test = node.regions[0]
            regions.insert(0, inputs.respell(test, order, test.outputs))
        made: Any = b.emit(node.op, tuple(given), attrs, tuple(regions))
        made = made if isinstance(made, tuple) else (made,)
        for j, v in zip([*order_carry, *kept], made):
            results[j] = v
    for i in range(k):
        if i in fixed:
            results[i] = operands[i]
        elif i in inputs.alias:
            results[i] = results[inputs.stands_for(i)]
    for j, i in copies.items():
        results[j] = results[i]
    return results


def unroll_one(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """scan c, x {length=1} (f) --> f(c, x[0])"""
    attrs = node.attrs
    if node.op.name == "while":
        return list(operands[: attrs["carry"]]) if attrs.get("max_trips") == 0 else None
    if node.op.name != "scan" or attrs["length"] > 1:
        return None
    k, m = attrs.get("carry", 0), attrs.get("xs", 0)
    if attrs["length"] == 0:
        empty = [
            b.expand(b.const(r.type.dtype.kind == "f" and 0.0, r), shape=r.type.shape)
            for r in node.results[k:]
        ]
        return [*operands[:k], *empty]
    slices = [b.reshape(v, shape=v.type.shape[1:]) for v in operands[k : k + m]]
    made = _inlined(b, node.regions[0], [*operands[:k], *slices, *operands[k + m :]])
    return [v if i < k or v is None else b.reshape(v, shape=(1, *v.type.shape)) for i, v in enumerate(made)]


REWRITES: tuple[Rewrite, ...] = (
    choose_branch,
    unroll_one,
    prune_cond,
    prune_loop,
    hoist_invariants,
    hoist_projections,
    hoist_sums,
    sink_outputs,
)
