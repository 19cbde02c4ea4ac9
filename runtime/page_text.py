"""Stage texts as HTML lines for the page: light colouring, and which user lines and kernel each line belongs
to.

Called by runtime/page.py only. Every line becomes one element `<i class="l" data-l="3 7" data-k="2">`:
`data-l` numbers the user's lines, `data-k` the kernel, so that the page can light up what belongs together
with one style rule."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape

from ..ir.graph import Graph, Location
from ..ir.loops import Kernel, LoopProgram
from ..ir.text import print_graph

_MAX_LINES = 40_000
_MAX_COLOURED = 12_000
_WHOLE_FILE = 300
_AROUND = 8

Painter = Callable[[str], str]


def _painter(**kinds: str) -> Painter:
    """Wraps what each pattern matches in `<b class=kind>`; earlier patterns win."""
    pattern = re.compile("|".join(f"(?P<{kind}>{regex})" for kind, regex in kinds.items()))

    def paint(line: str) -> str:
        out, end = [], 0
        for m in pattern.finditer(line):
            if m.end() == m.start():
                continue
            out.append(escape(line[end : m.start()], quote=False))
            out.append(f"<b class={m.lastgroup}>{escape(m.group(), quote=False)}</b>")
            end = m.end()
        out.append(escape(line[end:], quote=False))
        return "".join(out)

    return paint


_NUMBER = r"(?<![\w.%@])-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|0x[0-9a-fA-F]+|inf|nan)\b"
_TYPE = r"\b(?:bool|bf16|[fiu](?:8|16|32|64))(?:\[[\d,]*\])?(?![\w(])"
_STRING = r"\"[^\"]*\"|'[^']*'"

paint_graph = _painter(
    com=r"(?://|\s#).*$",
    key=r"\b(?:graph|return|update)\b",
    op=r"(?<== )[a-z_]\w*",
    val=r"%[\w.]+",
    typ=_TYPE,
    str=_STRING,
    num=_NUMBER,
)
paint_loops = _painter(
    str=_STRING,
    key=r"\b(?:program|kernel|repeat|branch|else|do|rotate|gives|for"
    r"|in|step|let|if|while|alloc|barrier|input|output|arena|const|returns"
    r"|updates|serial|parallel|vector|unroll|register|local|reduce|arena_bytes|flops|bytes)\b",
    typ=_TYPE,
    num=_NUMBER,
)
paint_llvm = _painter(
    com=r";.*$",
    str=_STRING,
    op=r"(?<== )[a-z]\w*|(?<=^  )(?:store|br|ret|call|tail|switch|unreachable)\b",
    key=r"\b(?:define|declare|internal|constant|attributes|label|void|align|noalias|readonly|nocapture)\b",
    val=r"[%@][\w.$-]+",
    typ=r"<\d+ x \w+>|\b(?:i\d+|ptr|float|double|half|bfloat)\b",
    num=_NUMBER,
)
paint_asm = _painter(
    com=r"(?:#|//).*$",
    str=_STRING,
    key=r"^[\w.$]+:|^\s+\.\w+",
    op=r"(?<=^\t)[a-z]\w*",
    val=r"%\w+(?:\s*\{[^}]*\})*",
    num=r"\$-?\w+",
)
paint_python = _painter(
    str=r'"{3}.*?"{3}|\'{3}.*?\'{3}|' + _STRING,
    com=r"#.*$",
    key=r"\b(?:def|class|return|for|in|while|if|elif|else|with|as|import|from|not"
    r"|and|or|is|None|True|False|lambda|yield|try|except|finally|raise|assert|del|pass|global|nonlocal)\b",
    op=r"^\s*@[\w.]+",
    num=_NUMBER,
)


class Lines:
    """Numbers of the user's lines, and what is written on them.

    Attributes:
        numbers: location -> number, in the order they were met.
    """

    def __init__(self) -> None:
        self.numbers: dict[Location, int] = {}

    def number(self, loc: Location) -> int:
        """The location's number."""
        return self.numbers.setdefault(loc, len(self.numbers))

    def attribute(self, locs: Iterable[Location], kernel: int | None = None) -> str:
        """` data-l="..." data-k="..."` for an element that belongs to these lines, or nothing."""
        numbers = " ".join(str(n) for n in sorted({self.number(loc) for loc in locs}))
        text = f' data-l="{numbers}"' if numbers else ""
        return text if kernel is None else f'{text} data-k="{kernel}"'


def line(html: str, attribute: str = "", kind: str = "") -> str:
    """One line of a stage."""
    cls = f"l {kind}" if kind else "l"
    return f'<i class="{cls}"{attribute}>{html or "&#8203;"}</i>'


_LOCATION = re.compile(r"^(.*?\S)(\s+# )(.+):(\d+)$")
_PHASE = re.compile(r"^\s*// (forward|backward|update)$")


def graph_lines(graph: Graph, lines: Lines) -> list[str]:
    """A graph's text; ops carry their phase as a class."""
    out = []
    phase = "forward"
    for text in print_graph(graph, full_paths=True).splitlines():
        m = _PHASE.match(text)
        if m:
            phase = m.group(1)
        m = _LOCATION.match(text)
        attribute = ""
        if m:
            loc = Location(m.group(3), int(m.group(4)))
            attribute = lines.attribute([loc])
            text = f"{m.group(1)}{m.group(2)}{loc}"
        kind = "update" if text.startswith("  update ") else phase if " = " in text else ""
        out.append(line(paint_graph(text), attribute, kind))
    return out


def loop_lines(program: LoopProgram, lines: Lines) -> list[str]:
    """A loop program's text; all lines of a kernel belong to the kernel's locations."""
    kernels = program.kernels
    at, end = -1, ""

    def attributes(text: str) -> str:
        nonlocal at, end
        inside = bool(end)
        word = text.lstrip()
        if word.startswith('kernel "'):
            at, end, inside = at + 1, f"{text[: len(text) - len(word)]}}}", True
        elif text == end:
            end = ""
        return lines.attribute(kernels[at].locs, at) if inside else ""

    return _plain(str(program), paint_loops, attributes)


_DEFINED = re.compile(r"^define [^@]*@k(\d+)_")
_LABEL = re.compile(r"^([A-Za-z_$][\w.$]*):")
_KERNEL_LABEL = re.compile(r"^_?k(\d+)_")


def llvm_lines(text: str, program: LoopProgram, lines: Lines) -> list[str]:
    """LLVM IR; functions of kernels belong to the kernels' locations."""
    kernels = program.kernels
    at: int | None = None

    def attributes(text: str) -> str:
        nonlocal at
        m = _DEFINED.match(text)
        if m:
            at = int(m.group(1))
        found = "" if at is None else _kernel_attribute(at, kernels, lines)
        if text == "}":
            at = None
        return found

    return _plain(text, paint_llvm, attributes)


def asm_lines(text: str, program: LoopProgram, lines: Lines) -> list[str]:
    """Assembly; what follows a kernel's label belongs to the kernel's locations."""
    kernels = program.kernels
    at: int | None = None

    def attributes(text: str) -> str:
        nonlocal at
        m = _LABEL.match(text)
        if m and not text.startswith(".L"):
            k = _KERNEL_LABEL.match(m.group(1))
            at = int(k.group(1)) if k else None
        return "" if at is None else _kernel_attribute(at, kernels, lines)

    return _plain(text, paint_asm, attributes)


def _kernel_attribute(k: int, kernels: list[Kernel], lines: Lines) -> str:
    return lines.attribute(kernels[k].locs, k) if k < len(kernels) else ""


def _plain(text: str, paint: Painter, attributes: Callable[[str], str]) -> list[str]:
    texts = text.splitlines()
    left_out = len(texts) - _MAX_LINES
    if len(texts) > _MAX_COLOURED:
        paint = _no_colour
    out = [line(paint(t), attributes(t)) for t in texts[:_MAX_LINES]]
    if left_out > 0:
        out.append(line(f"{left_out} more lines; as_text() has them all", kind="note"))
    return out


def _no_colour(text: str) -> str:
    return escape(text, quote=False)


def source_lines(lines: Lines) -> list[str]:
    """The user's files around the lines that were compiled; whole files where they are short."""
    by_file: dict[str, list[Location]] = {}
    for loc in lines.numbers:
        by_file.setdefault(loc.file, []).append(loc)
    out: list[str] = []
    for file, locs in by_file.items():
        texts = [t.rstrip("\n") for t in linecache.getlines(file)]
        if not texts:
            continue
        used = {loc.line: loc for loc in locs}
        out.append(line(escape(file), kind="note"))
        painted = _painted_python(texts)
        last = 0
        for n in _shown(len(texts), used):
            if n > last + 1 and last:
                out.append(line("...", kind="note"))
            last = n
            attribute = lines.attribute([used[n]]) if n in used else ""
            gutter = f"<b class=gut>{n:>4} </b>"
            out.append(line(gutter + painted[n - 1], attribute, "used" if n in used else ""))
    return out


def _painted_python(texts: list[str]) -> list[str]:
    """Coloured lines of a file; strings in triple quotes go over several."""
    out = []
    quotes = ""
    for t in texts:
        if quotes:
            inside, found, after = t.partition(quotes)
            quotes = "" if found else quotes
            out.append(f"<b class=str>{escape(inside + found, quote=False)}</b>{paint_python(after)}")
            continue
        m = _TRIPLE.search(t)
        if m is None:
            out.append(paint_python(t))
            continue
        quotes = m.group("open")
        rest = escape(t[m.start("open") :], quote=False)
        out.append(f"{paint_python(t[: m.start('open')])}<b class=str>{rest}</b>")
    return out


#: Triple quotes that the line opens and does not close, after no comment and no other string.
_TRIPLE = re.compile(
    r"""^(?:[^#"']|"(?!"")[^"]*"|'(?!'')[^']*'|\"{3}.*?\"{3}|'{3}.*?'{3})*?"""
    r"""(?P<open>\"{3}|'{3})(?!.*(?P=open))"""
)


def _shown(total: int, used: Iterable[int]) -> Iterator[int]:
    wanted = set(used)
    for n in range(1, total + 1):
        if total <= _WHOLE_FILE or any(abs(n - u) <= _AROUND for u in wanted):
            yield n
