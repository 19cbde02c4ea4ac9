"""Lines of CUDA C++ made tidy: unused names dropped, long lists wrapped. Used by emit_kernel."""

from __future__ import annotations

import re

_DECLARATION = re.compile(r"^( *)(\w[\w ]*) (\w+);$")
_DEFINITION = re.compile(r"^( *)const [\w ]+ (\w+) = ")


def without_unused(lines: list[str]) -> list[str]:
    """The lines without definitions of names that nothing uses (conditions that folded, sums that an fma took
    in), and with variables initialised where they are declared."""
    out: list[str] = []  # backwards
    for line in reversed(lines):
        m = _DEFINITION.match(line)
        if m and not _used_later(out, len(m.group(1)), m.group(2)):
            continue
        d = _DECLARATION.match(line)
        if d and out and out[-1].startswith(f"{d.group(1)}{d.group(3)} = "):
            line = f"{d.group(1)}{d.group(2)} {out.pop().lstrip()}"
        out.append(line)
    return out[::-1]


def _used_later(later: list[str], pad: int, name: str) -> bool:
    """Whether a name occurs before its block ends. `later` is backwards."""
    word = re.compile(rf"\b{name}\b")
    for line in reversed(later):
        if line.startswith("#"):
            continue
        if len(line) - len(line.lstrip(" ")) < pad:
            return False
        if word.search(line):
            return True
    return False


def wrapped(head: str, parts: list[str], tail: str, indent: int) -> str:
    """A list in parentheses on lines of at most 100 columns."""
    lines, line = [], head
    for i, part in enumerate(parts):
        piece = part + (", " if i < len(parts) - 1 else "")
        if len(line) + len(piece) > 100 and line.strip():
            lines.append(line.rstrip())
            line = " " * min(indent, 8)
        line += piece
    lines.append(line + tail)
    return "\n".join(lines)
