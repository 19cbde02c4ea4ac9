"""What accesses to memory would cost on a GPU, as the emulator counts them: `Emulated.traffic()` gives one
record for each place in the text that reads or writes, `table` shows them. For finding bank conflicts and
accesses that are not coalesced where there is no GPU; nothing here says how long anything takes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ...ir.dataclass import dataclass


@dataclass(frozen=True)
class Traffic:
    """The accesses of one place in the text, over all warps and turns of loops.

    Attributes:
        kernel: its name.
        line: the line of the unit; 0 if it is not known.
        shared: whether shared memory is accessed; global memory else.
        write: whether it is written.
        bytes: of each lane's access.
        requests: accesses of a warp.
        cost: shared memory: turns that the banks take; global memory: sectors of 32 bytes that are moved.
        least: what the same bytes take at best.
        worst: the largest ratio of the two of any request.
    """

    kernel: str
    line: int
    shared: bool
    write: bool
    bytes: int
    requests: int
    cost: int
    least: int
    worst: float

    @property
    def ratio(self) -> float:
        """How many times the least cost it is; 1.0 without conflicts, or when coalesced."""
        return self.cost / max(self.least, 1)


def parse(report: str, library: Path) -> list[Traffic]:
    """The emulator's report, with lines of the unit's text."""
    rows = [line.split() for line in report.splitlines()]
    lines = _lines([int(r[1]) for r in rows], library)
    return [
        Traffic(r[0], at, r[2] == "1", r[3] == "1", int(r[4]), int(r[5]), int(r[6]), int(r[7]), float(r[8]))
        for r, at in zip(rows, lines)
    ]


def _lines(places: list[int], library: Path) -> list[int]:
    """The kernels' lines that machine code comes from: of inlined functions, where they are called."""
    if not places:
        return []
    words = [hex(p - 1) for p in places]
    try:
        done = subprocess.run(
            ["addr2line", "-a", "-i", "-e", str(library), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return [0] * len(places)
    out: list[int] = []
    for chunk in re.split(r"^0x[0-9a-f]+\n", done.stdout, flags=re.M)[1:]:
        found = re.findall(r"unit\.cu:(\d+)", chunk)
        out.append(int(found[-1]) if found else 0)
    return out


def table(found: Iterable[Traffic], above: float = 1.0, text: str = "") -> str:
    """The places whose cost is more than `above` times the least, costliest first.

    Args:
        text: the unit, to show its lines.
    """
    source = text.splitlines()
    rows = sorted((t for t in found if t.ratio > above), key=lambda t: t.least - t.cost)
    out = [f"{'kernel':<24} {'line':>5}  {'access':<13} bytes {'requests':>9} {'ratio':>6} {'worst':>6}"]
    for t in rows:
        what = f"{'shared' if t.shared else 'global'} {'write' if t.write else 'read'}"
        shown = f"  {source[t.line - 1].strip()[:90]}" if 0 < t.line <= len(source) else ""
        out.append(
            f"{t.kernel:<24} {t.line:>5}  {what:<13} {t.bytes:>5} {t.requests:>9} {t.ratio:>6.2f} "
            f"{t.worst:>6.2f}{shown}"
        )
    return "\n".join(out)
