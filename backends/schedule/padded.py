"""Values that a contraction wants with zeros around them are written so, and once: who else reads them finds
them within their borders.

    v = where(m, x, 0);  p = pad v;  a = contract windows(p), w;  b = contract v, y;  c = sum v
    -->
    p = pad where(m, x, 0);  a = contract windows(p), w;  b = contract slice(p), y;  c = sum p

Called by schedule/__init__.py before anything is planned.
"""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.op import REGISTRY

#: what is padded to more than so many times its size is better copied: its work would be done for zeros too
MOST_LARGER = 2


def padded_once(graph: Graph) -> tuple[Graph, set[Value]]:
    """The graph with such values read from what is padded, and what that is; itself where there is none.
    Regions are left alone."""
    if not any(n.op.name == "pad" for n in graph.nodes):
        return graph, set()
    users: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for o in dict.fromkeys(node.operands):
            users.setdefault(o, []).append(node)
    kept = {*graph.outputs, *graph.updates.values()}
    order = {n: k for k, n in enumerate(graph.nodes)}
    pads: dict[Value, Node] = {}
    for node in graph.nodes:
        if node.op.name == "pad" and node.operands[0] not in kept and _suits(node, users, order):
            pads[node.operands[0]] = node
    return _rewritten(graph, pads) if pads else (graph, set())


def _suits(pad: Node, users: dict[Value, list[Node]], order: dict[Node, int]) -> bool:
    """Whether all that is read of an elementwise value is its padded form, or could be."""
    v, p = pad.operands[0], pad.results[0]
    zero = pad.attrs.get("value", 0.0) == 0 and v.type.dtype.kind == "f"
    if not zero or v.node is None or v.node.op.scalar is None or p.type.numel > MOST_LARGER * v.type.numel:
        return False
    others = [n for n in users[v] if n is not pad]
    if not others or not _contracted(p, users):
        return False
    return all(_sums(n, pad) or _reads(n, users) for n in others) and _elementwise(v, order)


def _reads(node: Node, users: dict[Value, list[Node]]) -> bool:
    if node.op.kernel == "contract":
        return True
    moves = node.op.kernel == "movement" and len(node.operands) == 1 and node.op.name != "pad"
    return moves and _contracted(node.results[0], users)


def _contracted(v: Value, users: dict[Value, list[Node]]) -> bool:
    """Whether only contractions read `v`, as it is or moved."""
    found = users.get(v, [])
    return bool(found) and all(_reads(n, users) for n in found)


def _sums(node: Node, pad: Node) -> bool:
    """Whether a sum goes over all dimensions that get borders."""
    if node.op.name != "sum":
        return False
    low, high = pad.attrs["low"], pad.attrs["high"]
    return all(d in node.attrs["axes"] for d, ends in enumerate(zip(low, high)) if any(ends))


def _elementwise(v: Value, order: dict[Node, int]) -> bool:
    """Whether the last thing that `v` waits for is no product of its size, which would compute it at once,
    nor a reduction over as much, in whose rows it would be computed."""
    stack, seen, last = [v], {v}, None
    while stack:
        node = stack.pop().node
        if node is None or node.op.kernel == "source":
            continue
        if node.op.scalar is None and node.op.kernel != "movement":
            if last is None or order[node] > order[last]:
                last = node
            continue
        new = [o for o in node.operands if o not in seen]
        seen.update(new)
        stack += new
    if last is None:
        return True
    read = () if last.op.kernel == "contract" else last.operands
    return 2 * max(x.type.numel for x in (*read, *last.results)) <= v.type.numel


def _rewritten(graph: Graph, pads: dict[Value, Node]) -> tuple[Graph, set[Value]]:
    out = Graph(graph.name)
    moved = set(pads.values())
    env: dict[Value, Value] = {}
    within: dict[Value, Value] = {}

    def emit(node: Node, operands: tuple[Value, ...]) -> None:
        if operands != node.operands:
            copy = node.over(operands)
            env.update(zip(node.results, copy.results))
            node = copy
        out.nodes.append(node)

    def read(o: Value, node: Node) -> Value:
        pad = pads.get(o)
        if pad is None:
            return env.get(o, o)
        p = env.get(pad.results[0], pad.results[0])
        if node.op.name == "sum":
            return p
        if o not in within:
            low = pad.attrs["low"]
            ends = {"start": low, "stop": tuple([a + n for a, n in zip(low, o.type.shape)])}
            part = Node(REGISTRY["slice"], (p,), {**ends, "step": (1,) * len(low)}, pad.loc, pad.phase)
            part.results = (Value(o.type, part),)
            out.nodes.append(part)
            within[o] = part.results[0]
        return within[o]

    for node in graph.nodes:
        if node in moved:
            continue
        emit(node, tuple([read(o, node) for o in node.operands]))
        for v in node.results:
            if v in pads:
                emit(pads[v], (env.get(v, v),))
    out.inputs = graph.inputs
    out.outputs = [env.get(v, v) for v in graph.outputs]
    out.updates = {k: env.get(v, v) for k, v in graph.updates.items()}
    return out, {env.get(n.results[0], n.results[0]) for n in moved}
