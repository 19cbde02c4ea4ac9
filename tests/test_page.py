"""The HTML page of a program, read back with an HTML parser: complete, self-contained, well-formed, and what
it says of stages, lines, passes, kernels and memory is so. Also `Lowered.cost()` and `Lowered.memory()`
behind its tables."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tracegrad.ir.errors import TracegradError
from tracegrad.ir.parser import parse_graph
from tracegrad.runtime import page_graph, page_text
from tracegrad.runtime.executable import LISTENERS, STAGES, Lowered
from tracegrad.runtime.page import page_html, write_page
from tracegrad.runtime.report import count, size

SOURCE = '''"""A script
whose text has <tags> & ampersands."""
h = relu(x @ w)  # "quoted" < text
loss = (h * h).sum()
w -= 0.1 * gradient
'''

GRAPH = """
graph step(%x: f32[8,4], %w: f32[4,3]) {
  %0: f32[8,3] = contract %x, %w {spec='mk,kn->mn'}  # PATH:3
  %h: f32[8,3] = relu %0  # PATH:3
  %1: f32[8,3] = mul %h, %h  # PATH:4
  %loss: f32[] = sum %1 {axes=(0, 1)}  # PATH:4
  // backward
  %2: f32[] = constant {value=2.0, dtype=f32}  # PATH:4
  %3: f32[8,3] = mul %h, %2  # PATH:4
  %4: f32[4,3] = contract %x, %3 {spec='mk,mn->kn'}  # PATH:3
  // update
  %5: f32[] = constant {value=0.1, dtype=f32}  # PATH:5
  %6: f32[4,3] = mul %4, %5  # PATH:5
  %7: f32[4,3] = sub %w, %6  # PATH:5
  update %w = %7
  return %loss
}
"""

VOID = {"meta", "link", "br", "path", "rect"}


class Element:
    def __init__(self, tag: str, attrs: dict[str, str], parent: Element | None) -> None:
        self.tag, self.attrs, self.parent = tag, attrs, parent
        self.children: list[Any] = []

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag: str = "", **attrs: str) -> list[Element]:
        """Descendants of that tag whose attributes contain these words."""
        out = []
        for c in self.children:
            if isinstance(c, Element):
                wanted = all(
                    v in c.attrs.get(k.rstrip("_").replace("_", "-"), "").split(" ") for k, v in attrs.items()
                )
                if wanted and tag in ("", c.tag):
                    out.append(c)
                out += c.all(tag, **attrs)
        return out


class Reader(HTMLParser):
    """Builds the tree; fails where a tag is closed that isn't open."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        e = Element(tag, {k: v or "" for k, v in attrs}, self.at)
        self.at.children.append(e)
        if tag not in VOID:
            self.at = e

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {k: v or "" for k, v in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert tag == self.at.tag, f"</{tag}> closes <{self.at.tag}> at {self.getpos()}"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def read(html: str) -> Element:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.at is reader.root, f"<{reader.at.tag}> is never closed"
    return reader.root


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    script = tmp_path_factory.mktemp("page") / "script.py"
    script.write_text(SOURCE, encoding="utf-8")
    return Lowered(parse_graph(GRAPH.replace("PATH", str(script))))


@pytest.fixture(scope="module")
def html(lowered: Lowered) -> str:
    return page_html([lowered])


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return read(html)


def stage(page: Element, name: str) -> Element:
    found = [s for s in page.all("div", class_="stage") if s.attrs["data-stage"] == name]
    assert len(found) == 1, f"{len(found)} stages {name}"
    return found[0]


def stage_text(page: Element, name: str) -> str:
    lines = [line.text.replace("\u200b", "") for line in stage(page, name).all("i", class_="l")]
    return "\n".join(lines) + "\n"


def test_nothing_is_loaded_from_elsewhere(html: str, page: Element) -> None:
    assert not [
        e.tag
        for e in page.all()
        if e.tag in ("link", "img", "iframe") or "src" in e.attrs or "href" in e.attrs
    ]
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", html)


def test_stages_hold_their_texts(page: Element, lowered: Lowered) -> None:
    for name in STAGES:
        assert stage_text(page, name).rstrip("\n") == lowered.as_text(name).rstrip("\n"), name


def test_both_panes_offer_every_stage(page: Element) -> None:
    stages = sorted(s.attrs["data-stage"] for s in page.all("div", class_="stage"))
    panes = page.all("div", class_="pane")
    assert len(panes) == 2 and {"python", *STAGES} <= set(stages)
    for pane in panes:
        assert sorted(b.attrs["data-stage"] for b in pane.all("button")) == stages
        assert pane.attrs["data-stage"] in stages
    assert panes[0].attrs["data-stage"] != panes[1].attrs["data-stage"]


def test_python_is_shown_and_its_used_lines_marked(page: Element) -> None:
    python = stage(page, "python")
    used = [re.sub(r"^\s*\d+ ", "", line.text) for line in python.all("i", class_="used")]
    assert used == SOURCE.splitlines()[2:5]
    assert "whose text has <tags> & ampersands" in python.text


def number_of(page: Element, line: int) -> str:
    """The page's number of a line of the script."""
    for e in stage(page, "python").all("i", class_="used"):
        if e.text.split()[0] == str(line):
            return e.attrs["data-l"]
    raise AssertionError(f"line {line} is not marked")


@pytest.mark.parametrize("line", [3, 4, 5])
def test_a_users_line_is_found_in_every_stage(page: Element, line: int) -> None:
    n = number_of(page, line)
    graph = stage(page, "graph").all("i", data_l=n)
    assert [e.text.rsplit(":", 1)[1] for e in graph] == [str(line)] * len(graph) and graph
    for name in ("optimized", "loops", "llvm", "asm"):
        assert stage(page, name).all("i", data_l=n), f"line {line} is nowhere in {name}"
    assert page.all("g", data_l=n), "nor in the drawing"


def test_kernels_are_marked_in_loops_llvm_and_assembly(page: Element, lowered: Lowered) -> None:
    outlined = 0  # LLVM puts small kernels into their caller
    for i, kernel in enumerate(lowered.loops.kernels):
        loops = stage(page, "loops").all("i", data_k=str(i))
        assert kernel.name in loops[0].text and loops[-1].text == "  }"
        llvm = stage(page, "llvm").all("i", data_k=str(i))
        assert llvm[0].text.startswith("define ") and f"@k{i}_" in llvm[0].text and llvm[-1].text == "}"
        asm = stage(page, "asm").all("i", data_k=str(i))
        assert bool(asm) == any(re.match(rf"_?k{i}_", t) for t in lowered.as_text("asm").splitlines())
        assert not asm or re.match(rf"_?k{i}_", asm[0].text)
        outlined += bool(asm)
        lines = {str(n) for n in loops[0].attrs["data-l"].split()}
        assert len(lines) == len(set(kernel.locs))
    assert outlined


def test_ops_carry_their_phase(page: Element) -> None:
    graph = stage(page, "graph")
    for phase, ops in {
        "forward": 4,
        "backward": 3,
        "update": 3 + 1,
    }.items():  # and the line `update %w = ...`
        assert len(graph.all("i", class_=phase)) == ops, phase


def rows(page: Element, title: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    section = page.all("section")[0].children
    at = next(
        i for i, e in enumerate(section) if isinstance(e, Element) and e.tag == "h2" and e.text == title
    )
    table = next(e for e in section[at + 1 :] if e.all("table"))
    return [[c.text for c in tr.all("td")] for tr in table.all("tbody")[0].all("tr")]


def test_pass_table(page: Element, lowered: Lowered) -> None:
    table = rows(page, "Passes")
    assert [r[0] for r in table] == [r.name for r in lowered.records]
    assert [int(r[3]) for r in table] == [len(r.graph.nodes) for r in lowered.records]
    assert [r[2] for r in table[1:]] == [r[3] for r in table[:-1]]
    fired = {name: n for r in lowered.records for name, n in r.rules_fired.items()}
    for name, n in fired.items():
        assert any(f"{name} {n}×" in r[4] for r in table)


def test_kernel_table(page: Element, lowered: Lowered) -> None:
    table = rows(page, "Kernels")
    assert [r[:2] for r in table] == [[k.name, k.comment] for k in lowered.loops.kernels]
    assert [r[2] for r in table] == [count(k.flops) for k in lowered.loops.kernels]


def test_memory_table(page: Element, lowered: Lowered) -> None:
    memory = lowered.memory()
    table = {r[0]: int(r[2]) for r in rows(page, "Memory")}
    assert (
        table["inputs"] == memory.inputs and table["arena"] == memory.arena and table["peak"] == memory.peak
    )


def test_memory_is_what_the_program_holds(lowered: Lowered) -> None:
    memory = lowered.memory()
    assert (memory.inputs, memory.state, memory.outputs) == (8 * 4 * 4, 4 * 3 * 4, 4)
    assert memory.arena == lowered.loops.arena_bytes == lowered.native.arena_bytes
    assert memory.arena <= memory.unplanned + 64 * len(lowered.loops.temps)
    assert memory.peak == memory.inputs + memory.state + memory.outputs + memory.arena + memory.constants
    assert size(memory.peak) in str(memory)


def test_cost_counts_the_contractions(lowered: Lowered) -> None:
    cost = lowered.cost()
    assert cost.flops == sum(k.flops for k in lowered.loops.kernels)
    # Two contractions of 8*4*3 multiply-adds, and a few elementwise operations on 24 elements each.
    assert 2 * 2 * 8 * 4 * 3 <= cost.flops <= 2 * 2 * 8 * 4 * 3 + 12 * 24
    assert cost.bytes_moved >= 8 * 4 * 4 + 2 * 4 * 3 * 4 + 4
    assert f"{len(cost.kernels)} kernel" in str(cost)
    assert all(k.intensity == k.flops / k.bytes_moved for k in cost.kernels)


# --- the drawing --------------------------------------------------------------------------------------


def boxes_of(svg: Element) -> list[tuple[str, float, float, float, float]]:
    """(first line, left, top, right, bottom) of every box."""
    out = []
    for g in svg.all("g", class_="box"):
        r = g.all("rect")[0].attrs
        x, y, w, h = (float(r[k]) for k in ("x", "y", "width", "height"))
        out.append((g.all("text")[0].text, x, y, x + w, y + h))
    return out


def test_drawing_shows_every_op_and_edge(page: Element, lowered: Lowered) -> None:
    graph = lowered.optimized
    svg = page.all("svg")[0]
    ops = [n for n in graph.nodes if n.op.name != "constant"]
    titles = [b[0] for b in boxes_of(svg)]
    assert len(titles) == len(ops) + 2 + 1 + 1  # inputs, the output, the update
    for name in ("x", "w", "return 0", "update w"):
        assert titles.count(name) == 1
    for node in ops:
        assert any(t.split(" ")[0] == node.op.name for t in titles)
    assert any(t.startswith("mul") and t.endswith("0.1") for t in titles), (
        "constants are written into their readers"
    )
    edges = {(o, n) for n in ops for o in n.operands if o.node is None or o.node.op.name != "constant"}
    assert len(svg.all("path", class_="edge")) == len(edges) + 2


def no_overlaps(svg: Element) -> None:
    _, _, width, height = (float(x) for x in svg.attrs["viewbox"].split())
    boxes = boxes_of(svg)
    for i, (name, x0, y0, x1, y1) in enumerate(boxes):
        assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height, f"{name} is outside"
        for other, u0, v0, u1, v1 in boxes[i + 1 :]:
            assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0, f"{name} lies on {other}"


def test_boxes_do_not_overlap(page: Element) -> None:
    no_overlaps(page.all("svg")[0])


def test_a_tangled_graph_is_laid_out_downwards() -> None:
    """Each op reads two earlier ones, far and near: long edges everywhere."""
    ops = ["graph g(%a: f32[4], %b: f32[4]) {", "  %v0: f32[4] = add %a, %b", "  %v1: f32[4] = mul %a, %b"]
    for i in range(2, 40):
        ops.append(f"  %v{i}: f32[4] = add %v{i - 1}, %v{(i * 7) % (i - 1)}")
    ops += ["  return %v39, %v20", "}"]
    svg = read(page_graph.draw(parse_graph("\n".join(ops)), page_text.Lines())).all("svg")[0]
    no_overlaps(svg)
    assert len(boxes_of(svg)) == 40 + 2 + 2
    for path in svg.all("path", class_="edge"):
        ys = [
            float(p)
            for p in re.findall(
                r"(?:^M[\d.-]+ |C[\d.-]+ [\d.-]+ [\d.-]+ [\d.-]+ [\d.-]+ )([\d.]+)", path.attrs["d"]
            )
        ]
        assert ys == sorted(ys) and len(ys) >= 2


def test_crossings_are_counted_and_avoided() -> None:
    a, b, c, d = (page_graph._Box(t) for t in "abcd")
    for upper, lower in ((a, d), (b, c)):
        upper.below.append(lower)
        lower.above.append(upper)
    layers = [[a, b], [c, d]]
    assert page_graph._crossings(layers) == 1
    page_graph._order(layers)
    assert page_graph._crossings(layers) == 0


def test_spreading_keeps_order_and_gaps() -> None:
    boxes = [page_graph._Box("x" * n) for n in (1, 20, 5, 8)]
    got = page_graph._spread(boxes, [100.0, 0.0, 0.0, 500.0])
    for (p, x), (q, y) in zip(zip(boxes, got), zip(boxes[1:], got[1:])):
        assert y - x >= (p.width + q.width) / 2 + page_graph._GAP_X - 1e-6
    assert got[3] == 500.0  # nothing in its way


def test_too_many_ops_are_not_drawn() -> None:
    n = page_graph.MAX_BOXES + 5
    ops = "\n".join(f"  %v{i}: f32[2] = neg %{f'v{i - 1}' if i else 'x'}" for i in range(n))
    drawing = page_graph.draw(
        parse_graph(f"graph g(%x: f32[2]) {{\n{ops}\n  return %v{n - 1}\n}}"), page_text.Lines()
    )
    assert "svg" not in drawing and "too many to draw" in drawing


def test_a_graph_without_ops_has_a_page() -> None:
    nothing = Lowered(parse_graph("graph nothing() {\n  return\n}"))
    assert "Nothing to draw" in read(page_html([nothing])).text
    through = Lowered(parse_graph("graph same(%x: f32[2]) {\n  return %x\n}"))
    assert [b[0] for b in boxes_of(read(page_html([through])).all("svg")[0])] == ["x", "return 0"]


# --- files --------------------------------------------------------------------------------------


def test_show_writes_a_page(
    lowered: Lowered, html: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lowered.show(tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html" and path.read_text(encoding="utf-8") == html
    other = lowered.show()
    assert other.name == "step.html" and other.read_text(encoding="utf-8") == html
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert capsys.readouterr() == ("", "")
    other.unlink()
    other.parent.rmdir()


def test_a_page_that_fails_leaves_the_old_one(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_page(lowered, path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_several_programs_have_a_menu(lowered: Lowered) -> None:
    other = Lowered(parse_graph("graph other(%x: f32[2]) {\n  %y: f32[2] = exp %x\n  return %y\n}"))
    page = read(page_html([lowered, other]))
    sections = page.all("section")
    assert [s.attrs["id"] for s in sections] == ["p0", "p1"]
    assert [("on" in s.attrs["class"].split()) for s in sections] == [True, False]
    assert [o.attrs["value"] for o in page.all("select")[0].all("option")] == ["p0", "p1"]


def test_a_stage_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Lowered(parse_graph("graph g(%x: f32[2]) {\n  %y: f32[2] = exp %x\n  return %y\n}"))

    def fail(*_: Any) -> None:
        raise TracegradError("no <room> for it")

    monkeypatch.setattr("tracegrad.backends.schedule.schedule", fail)
    page = read(page_html([program]))
    for name in ("loops", "llvm", "asm"):
        assert stage_text(page, name) == "this stage failed: no <room> for it\n"
    assert "exp" in stage_text(page, "optimized")


def test_listeners_see_every_program() -> None:
    seen: list[Lowered] = []
    LISTENERS.append(seen.append)
    try:
        made = Lowered(parse_graph("graph g(%x: f32[2]) {\n  return %x\n}"))
    finally:
        LISTENERS.remove(seen.append)
    Lowered(made.graph)
    assert seen == [made]


def test_triple_quoted_strings_are_coloured_over_lines() -> None:
    lines = page_text._painted_python(
        ['x = """a', "for b", 'c""" + y', "'''one line''' # for", "for d in e:"]
    )
    assert lines[0] == 'x = <b class=str>"""a</b>' and lines[1] == "<b class=str>for b</b>"
    assert lines[2] == '<b class=str>c"""</b> + y'
    assert lines[3] == "<b class=str>'''one line'''</b> <b class=com># for</b>"
    assert lines[4].startswith("<b class=key>for</b>")


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5 GiB")])
def test_sizes(n: int, text: str) -> None:
    assert size(n) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0"), (999, "999"), (1_500, "1.5 k"), (26_200_000, "26.2 M")])
def test_counts(n: int, text: str) -> None:
    assert count(n) == text
