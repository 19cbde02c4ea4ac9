"""Programs as one HTML file that needs nothing else: every stage's text, the pass table, memory, kernels and
a drawing of the dataflow. Resting the mouse on a line lights up everything that came from the same line of
the user's Python; a click pins it and scrolls the other pane there.

`Lowered.show` and the command line call it. `page_text` colours the texts, `page_graph` draws, `page_assets`
holds style and script.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import TracegradError
from ..ir.graph import PHASES, Graph
from . import page_text as text
from .page_assets import SCRIPT, STYLE
from .page_graph import draw
from .report import Cost, Memory, count, size

if TYPE_CHECKING:
    from .executable import Lowered


def write_page(lowered: Lowered | Sequence[Lowered], path: str | os.PathLike[str]) -> Path:
    """Writes a page for one program, or for several with a menu to choose from; gives the path.

    The file is written under another name and renamed, so that a page that exists stays whole.

    Raises:
        OSError: the file can't be written.
    """
    programs = list(lowered) if isinstance(lowered, Sequence) else [lowered]
    path = Path(path)
    html = page_html(programs)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def show(lowered: Lowered, path: str | os.PathLike[str] | None = None, open_browser: bool = False) -> Path:
    """`write_page`, by default to a new temporary file, and on request into the browser."""
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="tracegrad-")) / f"{lowered.graph.name}.html"
    written = write_page(lowered, path)
    if open_browser:
        webbrowser.open(written.resolve().as_uri())
    return written


def page_html(programs: Sequence[Lowered]) -> str:
    """The page's text."""
    names = [p.graph.name for p in programs]
    title = ", ".join(dict.fromkeys(names)) or "no programs"
    menu = ""
    if len(programs) > 1:
        options = "".join(
            f'<option value="p{i}">{escape(p.graph.name)} ({i + 1} of {len(programs)}, '
            f"{len(p.graph.nodes)} ops)</option>"
            for i, p in enumerate(programs)
        )
        menu = f'<select id="choice" aria-label="program">{options}</select>'
    body = "".join(_program(p, i) for i, p in enumerate(programs))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)} - Tracegrad</title>"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<header><h1>{escape(title)}<small>compiled by Tracegrad</small></h1>{menu}</header>"
        f"<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- one program --------------------------------------------------------------------------------------


def _program(lowered: Lowered, index: int) -> str:
    lines = text.Lines()
    stages = _stages(lowered, lines)
    drawing = draw(lowered.optimized, lines, f"p{index}")
    source = text.source_lines(lines)
    if source:
        stages = {"python": source, **stages}
    parts = [_cards(lowered), _panes(stages), _LEGEND]
    parts += ["<h2>Dataflow of the optimised graph</h2>", f'<div class="drawing">{drawing}</div>']
    parts += ["<h2>Passes</h2>", _passes(lowered)]
    with contextlib.suppress(TracegradError):  # said in the stage's own tab
        cost, memory = lowered.cost(), lowered.memory()
        parts += ["<h2>Kernels</h2>", _kernels(cost, lines), "<h2>Memory</h2>", _memory(memory)]
    on = " on" if index == 0 else ""
    return f'<section class="program{on}" id="p{index}">{"".join(parts)}</section>'


_LEGEND = (
    '<p class="legend">'
    + "".join(f'<i class="{p}">{p}</i>' for p in PHASES)
    + "Rest on a line to light up what came from the same line of Python, click to pin it and to scroll the "
    "other pane there, Escape to let go.</p>"
)


def _stages(lowered: Lowered, lines: text.Lines) -> dict[str, list[str]]:
    """Lines of every stage by name; a stage that can't be made says why."""
    out: dict[str, list[str]] = {"graph": text.graph_lines(lowered.graph, lines)}
    final = lowered.optimized
    shown: Graph = lowered.graph
    for i, record in enumerate(lowered.records):
        if record.graph is not shown and record.graph is not final:
            out[f"{i}: {record.name}"] = text.graph_lines(record.graph, lines)
            shown = record.graph
    out["optimized"] = text.graph_lines(final, lines)

    def stage(name: str, make: Callable[[], list[str]]) -> None:
        try:
            out[name] = make()
        except TracegradError as e:
            out[name] = [text.line(escape(t), kind="note") for t in f"this stage failed: {e}".splitlines()]

    stage("loops", lambda: text.loop_lines(lowered.loops, lines))
    if lowered.backend == "cuda":
        stage("cuda", lambda: [text.line(escape(t)) for t in lowered.as_text("cuda").splitlines()])
        return out
    stage("llvm", lambda: text.llvm_lines(lowered.as_text("llvm"), lowered.loops, lines))
    stage("asm", lambda: text.asm_lines(lowered.as_text("asm"), lowered.loops, lines))
    return out


def _panes(stages: dict[str, list[str]]) -> str:
    left = "python" if "python" in stages else "graph"
    chosen = (left, "optimized")
    buttons = "".join(f'<button data-stage="{escape(s)}">{escape(s)}</button>' for s in stages)
    bodies = ["", ""]
    for name, content in stages.items():
        at = 0 if name == left else 1
        bodies[at] += f'<div class="stage" data-stage="{escape(name)}" tabindex="0">{"".join(content)}</div>'
    panes = "".join(
        f'<div class="pane" data-stage="{c}"><div class="tabs">{buttons}</div>{b}</div>'
        for c, b in zip(chosen, bodies)
    )
    return f'<div class="panes">{panes}</div>'


def _cards(lowered: Lowered) -> str:
    cards = [
        (f"{len(lowered.graph.nodes)}", "ops traced"),
        (f"{len(lowered.optimized.nodes)}", "ops optimised"),
        (f"{sum(r.seconds for r in lowered.records) * 1e3:.1f} ms", "in passes"),
    ]
    with contextlib.suppress(TracegradError):
        cost, memory = lowered.cost(), lowered.memory()
        cards += [
            (f"{len(cost.kernels)}", "kernels"),
            (count(cost.flops), "operations"),
            (size(cost.bytes_moved), "moved"),
            (size(memory.arena), "arena"),
            (size(memory.peak), "peak memory"),
        ]
    body = "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in cards)
    return f'<div class="cards">{body}</div>'


def _table(head: Iterable[tuple[str, bool]], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Columns (name, is a number); rows (attributes of the row, cells as HTML)."""
    columns = list(head)
    cls = ["".join(' class="n"' if number else "") for _, number in columns]
    out = "".join(f"<th{c}>{escape(name)}</th>" for c, (name, _) in zip(cls, columns))
    body = "".join(
        f"<tr{attribute}>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(cls, cells)) + "</tr>"
        for attribute, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{out}</tr></thead><tbody>{body}</tbody></table></div>'


def _passes(lowered: Lowered) -> str:
    rows = []
    before = len(lowered.graph.nodes)
    for record in lowered.records:
        after = len(record.graph.nodes)
        rules = ", ".join(f"{escape(n)} {k}&times;" for n, k in record.rules_fired.most_common())
        cells = [
            escape(record.name),
            f"{record.seconds * 1e3:.2f}",
            str(before),
            str(after),
            f"<code>{rules}</code>",
        ]
        rows.append(("", cells))
        before = after
    head = [("pass", False), ("ms", True), ("ops before", True), ("after", True), ("rules fired", False)]
    return _table(head, rows)


def _kernels(cost: Cost, lines: text.Lines) -> str:
    rows = []
    for i, k in enumerate(cost.kernels):
        where = ", ".join(dict.fromkeys(escape(str(loc)) for loc in k.locs))
        cells = [
            escape(k.name) + (f" &times;{k.runs}" if k.runs != 1 else ""),
            f"<code>{escape(k.comment)}</code>",
            count(k.flops),
            size(k.bytes_moved),
            f"{k.intensity:.2f}",
            where,
        ]
        rows.append((lines.attribute(k.locs, i), cells))
    head = [
        ("kernel", False),
        ("computes", False),
        ("operations", True),
        ("moved", True),
        ("operations/byte", True),
        ("from", False),
    ]
    return _table(head, rows)


def _memory(memory: Memory) -> str:
    kinds = [
        ("inputs", memory.inputs),
        ("state", memory.state),
        ("outputs", memory.outputs),
        ("arena", memory.arena),
        ("constants", memory.constants),
    ]
    peak = max(memory.peak, 1)
    bar = "".join(
        f'<div class="m{i}" style="flex:{n / peak:.4f}"></div>' for i, (_, n) in enumerate(kinds) if n
    )
    notes = {
        "inputs": "only read",
        "state": "updated in place",
        "arena": f"{size(memory.unplanned)} without sharing",
        "outputs": "made for the caller",
        "constants": "part of the code",
    }
    rows = [
        ("", [f'<span class="key-square m{i}"></span>{name}', size(n), str(n), escape(notes[name])])
        for i, (name, n) in enumerate(kinds)
    ]
    rows.append(
        (
            "",
            ["<b>peak</b>", f"<b>{size(memory.peak)}</b>", str(memory.peak), "all of it, known before a run"],
        )
    )
    return f'<div class="bar">{bar}</div>' + _table(
        [("", False), ("", True), ("bytes", True), ("", False)], rows
    )
