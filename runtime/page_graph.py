"""A drawing of a graph's dataflow as SVG: ops in layers from inputs down to outputs, after Sugiyama, Tagawa
and Toda ("Methods for visual understanding of hierarchical system structures", 1981): longest-path layers,
dummy nodes on long edges, barycentre sweeps against crossings, then positions by averaging over neighbours.

Called by runtime/page.py only. networkx finds the layers and is loaded only here.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise

from ..ir.dataclass import dataclass, field
from ..ir.graph import Graph, Node, Value
from ..ir.text import format_attrs, print_node
from .page_text import Lines

#: more boxes than this are no drawing any more
MAX_BOXES = 900
_SWEEPS = 12
_HEIGHT, _GAP_X, _GAP_Y = 38, 18, 34
_CHARACTER = 7.4


@dataclass(eq=False)
class _Box:
    """A box, or (`title == ""`) a bend of a long edge.

    Attributes:
        title, detail: the two lines of text.
        kind: CSS class: `input`, `output`, `state` or a phase.
        attribute: `data-l` of the op's line.
        tip: text shown on hovering.
    """

    title: str
    detail: str = ""
    kind: str = ""
    attribute: str = ""
    tip: str = ""
    layer: int = 0
    x: float = 0.0
    above: list[_Box] = field(default_factory=list)
    below: list[_Box] = field(default_factory=list)

    @property
    def width(self) -> float:
        if not self.title:
            return 6.0
        return max(54.0, _CHARACTER * max(len(self.title), len(self.detail)) + 16)


def draw(graph: Graph, lines: Lines, name: str = "graph") -> str:
    """The graph as an `<svg>` element; a sentence instead where it is too large to be read.

    `name` tells the drawings on one page apart.
    """
    boxes, edges = _boxes(graph, lines)
    if len(boxes) > MAX_BOXES:
        return f"<p class=note>{len(boxes)} ops are too many to draw; the texts have them all.</p>"
    if not boxes:
        return "<p class=note>Nothing to draw: the graph has no ops.</p>"
    _assign_layers(boxes, edges)
    layers, chains = _with_bends(boxes, edges)
    _order(layers)
    _place(layers)
    return _svg(layers, chains, name)


# --- what is drawn --------------------------------------------------------------------------------------


def _boxes(graph: Graph, lines: Lines) -> tuple[list[_Box], list[tuple[_Box, _Box, str]]]:
    """Boxes of inputs, ops and outputs, and edges with the type that flows. Constants are written into their
    readers."""
    made: dict[Value, _Box] = {}
    edges: dict[tuple[_Box, _Box], str] = {}
    boxes: list[_Box] = []

    def box(title: str, detail: str, kind: str, attribute: str = "", tip: str = "") -> _Box:
        b = _Box(_short(title, 34), _short(detail, 34), kind, attribute, tip)
        boxes.append(b)
        return b

    read = {v for n in graph.nodes for v in n.operands} | set(graph.live_outs())
    for i, v in enumerate(graph.inputs):
        if v in read:
            kind = "state" if v in graph.updates else "input"
            made[v] = box(v.name or f"input {i}", str(v.type), kind, tip=f"{kind} {v.name or i}: {v.type}")
    for node in graph.nodes:
        if _is_constant(node) and not any(v in graph.live_outs() for v in node.results):
            continue
        detail = ", ".join(str(v.type) for v in node.results)
        # A contraction's spec tells it from the next one.
        words = [node.op.name, *([node.attrs["spec"]] if "spec" in node.attrs else [])]
        title = " ".join([*words, *(_number(v.node) for v in node.operands if _is_constant(v.node))])
        attribute = lines.attribute([node.loc]) if node.loc is not None else ""
        b = box(title, detail, node.phase, attribute, print_node(node))
        for v in node.results:
            made[v] = b
        for v in node.operands:
            if v in made:
                edges[made[v], b] = str(v.type)
    for i, v in enumerate(graph.outputs):
        if v in made:
            target = box(f"return {i}", str(v.type), "output", tip=f"output {i}: {v.type}")
            edges[made[v], target] = str(v.type)
    for old, new in graph.updates.items():
        if new in made:
            target = box(
                f"update {old.name or old.index}", str(old.type), "state", tip=f"new value of {old.name}"
            )
            edges[made[new], target] = str(new.type)
    return boxes, [(a, b, t) for (a, b), t in edges.items()]


def _is_constant(node: Node | None) -> bool:
    return node is not None and node.op.name == "constant"


def _number(node: Node | None) -> str:
    assert node is not None
    value = node.attrs.get("value")
    return f"{value:.6g}" if isinstance(value, (int, float)) else format_attrs(node)


def _short(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


# --- where it is drawn --------------------------------------------------------------------------------------


def _assign_layers(boxes: list[_Box], edges: list[tuple[_Box, _Box, str]]) -> None:
    """Longest path from the inputs; then inputs move down to just above their first reader."""
    import networkx as nx  # slow to load

    g = nx.DiGraph()
    g.add_nodes_from(boxes)
    g.add_edges_from((a, b) for a, b, _ in edges)
    for i, generation in enumerate(nx.topological_generations(g)):
        for b in generation:
            b.layer = i
    for b in boxes:
        if not g.in_degree(b) and g.out_degree(b):
            b.layer = min(reader.layer for reader in g.successors(b)) - 1


def _with_bends(
    boxes: list[_Box], edges: list[tuple[_Box, _Box, str]]
) -> tuple[list[list[_Box]], list[tuple[list[_Box], str]]]:
    """Layers that include a bend for every layer an edge passes, and each edge as the chain of boxes it
    visits."""
    low = min(b.layer for b in boxes)
    layers: list[list[_Box]] = [[] for _ in range(max(b.layer for b in boxes) - low + 1)]
    for b in boxes:
        b.layer -= low
        layers[b.layer].append(b)
    chains = []
    for a, b, label in edges:
        chain = [a]
        for i in range(a.layer + 1, b.layer):
            bend = _Box("", layer=i)
            layers[i].append(bend)
            chain.append(bend)
        chain.append(b)
        for upper, lower in pairwise(chain):
            upper.below.append(lower)
            lower.above.append(upper)
        chains.append((chain, label))
    return layers, chains


def _order(layers: list[list[_Box]]) -> None:
    """Sorts every layer by the mean position of its neighbours, sweeping down and up; keeps the best order
    met."""

    def number() -> None:
        for layer in layers:
            for i, b in enumerate(layer):
                b.x = float(i)

    number()
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else layers[::-1]:
            mean = {b: _mean(b.above if down else b.below, b.x) for b in layer}
            layer.sort(key=lambda b: mean[b])
            for i, b in enumerate(layer):
                b.x = float(i)
        n = _crossings(layers)
        if n < fewest:
            best, fewest = [list(layer) for layer in layers], n
    layers[:] = best
    number()


def _mean(neighbours: list[_Box], default: float) -> float:
    return sum(b.x for b in neighbours) / len(neighbours) if neighbours else default


def _crossings(layers: list[list[_Box]]) -> int:
    """Pairs of edges that cross, counted with a Fenwick tree over the lower layer's places."""
    total = 0
    for upper, lower in pairwise(layers):
        place = {b: i for i, b in enumerate(lower)}
        tree = [0] * (len(lower) + 1)
        seen = 0
        for b in upper:
            ends = sorted(place[t] for t in b.below)
            for e in ends:
                i, before = e + 1, 0
                while i:
                    before += tree[i]
                    i &= i - 1
                total += seen - before
            for e in ends:
                i = e + 1
                while i < len(tree):
                    tree[i] += 1
                    i += i & -i
                seen += 1
    return total


def _place(layers: list[list[_Box]]) -> None:
    """Centres `x`: each box as near to the mean of its neighbours as its layer's order and spacing allow."""
    for layer in layers:
        at = 0.0
        for b in layer:
            b.x = at + b.width / 2
            at += b.width + _GAP_X
    for sweep in range(_SWEEPS * 2):
        down = sweep % 2 == 0
        for layer in layers if down else layers[::-1]:
            wanted = [_mean(b.above if down else b.below, b.x) for b in layer]
            for b, x in zip(layer, _spread(layer, wanted)):
                b.x = x
    left = min(b.x - b.width / 2 for layer in layers for b in layer)
    for layer in layers:
        for b in layer:
            b.x -= left - 10


def _spread(layer: list[_Box], wanted: list[float]) -> list[float]:
    """Positions nearest to `wanted` (least squares) that keep the order and the gaps: pool adjacent
    violators."""
    offsets, at = [], 0.0
    for i, b in enumerate(layer):
        if i:
            at += (layer[i - 1].width + b.width) / 2 + _GAP_X
        offsets.append(at)
    blocks: list[list[float]] = []  # mean, count
    for w, o in zip(wanted, offsets):
        blocks.append([w - o, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            m, n = blocks.pop()
            k, c = blocks[-1]
            blocks[-1] = [(m * n + k * c) / (n + c), n + c]
    shifts = [m for m, n in blocks for _ in range(int(n))]
    return [s + o for s, o in zip(shifts, offsets)]


# --- the picture --------------------------------------------------------------------------------------


def _svg(layers: list[list[_Box]], chains: list[tuple[list[_Box], str]], name: str) -> str:
    width = max(b.x + b.width / 2 for layer in layers for b in layer) + 10
    height = len(layers) * (_HEIGHT + _GAP_Y) - _GAP_Y + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="dataflow" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="dataflow">',
        f'<defs><marker id="tip-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto"><path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>',
    ]
    for chain, label in chains:
        out.append(
            f'<path class="edge" d="{_curve(chain)}" marker-end="url(#tip-{name})">'
            f"<title>{escape(label)}</title></path>"
        )
    for b in (b for layer in layers for b in layer if b.title):
        x, y = b.x - b.width / 2, _top(b)
        out.append(
            f'<g class="box l {b.kind}"{b.attribute}><title>{escape(b.tip)}</title>'
            f'<rect x="{x:.1f}" y="{y}" width="{b.width:.1f}" height="{_HEIGHT}" rx="6"/>'
            f'<text x="{b.x:.1f}" y="{y + 16}" class="name">{escape(b.title)}</text>'
            f'<text x="{b.x:.1f}" y="{y + 30}" class="type">{escape(b.detail)}</text></g>'
        )
    out.append("</svg>")
    return "".join(out)


def _top(b: _Box) -> int:
    return 10 + b.layer * (_HEIGHT + _GAP_Y)


def _curve(chain: list[_Box]) -> str:
    """A smooth path from the bottom of the first box through the bends to the top of the last."""
    path = f"M{chain[0].x:.1f} {_top(chain[0]) + _HEIGHT}"
    for a, b in pairwise(chain):
        y0, y1 = _top(a) + _HEIGHT, _top(b)
        mid = (y0 + y1) / 2
        path += f"C{a.x:.1f} {mid:.1f} {b.x:.1f} {mid:.1f} {b.x:.1f} {y1}"
        if not b.title:
            path += f"V{y1 + _HEIGHT}"
    return path
