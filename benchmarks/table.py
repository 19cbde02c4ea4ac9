"""`python -m benchmarks.table FILE.json [...]`: what `--json` wrote as the Markdown tables of README.md.

Times are never printed, only ratios within a run: the best peer's over ours, minimum and median.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

OURS = "tracegrad"
HEAD = (
    "workload", "best peer", "one call", "repeated", "ordinary code, to PyTorch", "start", "warm", "memory",
    "of the floor",
)  # fmt: skip


def _best(found: dict[str, dict[str, Any]]) -> tuple[str, float, float]:
    peers = {k: v for k, v in found.items() if not k.startswith(OURS)}
    name = min(peers, key=lambda k: peers[k]["min_us"])
    return name, peers[name]["min_us"], min(v["median_us"] for v in peers.values())


def _ratio(found: dict[str, dict[str, Any]], ours: str, least: float, median: float) -> str:
    if ours not in found:
        return ""
    return f"{least / found[ours]['min_us']:.3g}, {median / found[ours]['median_us']:.3g}"


def _part(found: dict[str, dict[str, Any]], key: str) -> str:
    if "torch" not in found:
        return ""
    return f"{found[OURS][key] / found['torch'][key]:.2f}"


def _start(found: dict[str, dict[str, Any]], kind: str) -> str:
    """Of starts of a kind, ours over PyTorch's: of minima, of medians."""
    parts = [_part(found, f"{kind}_s"), _part(found, f"{kind}_median_s")]
    return ", ".join(filter(None, parts))


def row(name: str, found: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """One workload's cells."""
    peer, least, median = _best(found)
    eager = found.get("torch")
    lazy = _ratio(found, f"{OURS}.lazy", eager["min_us"], eager["median_us"]) if eager else ""
    return (
        name, peer, _ratio(found, OURS, least, median), _ratio(found, f"{OURS}.repeat", least, median), lazy,
        _start(found, "cold"), _start(found, "warm"), _part(found, "memory_mb"), reached(found[OURS]),
    )  # fmt: skip


def reached(ours: dict[str, Any]) -> str:
    """The floor over our time."""
    return f"{ours['floor_us'] / ours['min_us']:.2g}" if "floor_us" in ours else ""


def by_threads(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of figures that were measured with several numbers of threads: the time on the fewest over the
    time on the most, of minima and medians."""
    rows = []
    for name, found in results.items():
        for ours in dict.fromkeys(k.partition("@")[0] for k in found):
            counts = sorted(int(k.partition("@")[2]) for k in found if k.startswith(f"{ours}@"))
            few, many = found[f"{ours}@{counts[0]}"], found[f"{ours}@{counts[-1]}"]
            ratios = [few[key] / many[key] for key in ("min_us", "median_us")]
            rows.append((name, ours, f"{counts[-1]}", "{:.3g}, {:.3g}".format(*ratios)))
    return rows


def family(name: str, results: dict[str, Any]) -> str:
    """The geometric mean and the least ratio of workloads of one kind."""
    ratios = {k: _best(v)[1] / v[OURS]["min_us"] for k, v in results.items()}
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    least = min(ratios, key=ratios.__getitem__)
    worst = f"least {ratios[least]:.2f} (`{least}`)"
    return f"- {name}, {len(ratios)} shapes: geometric mean {mean:.2f}, {worst}."


def show(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints a Markdown table."""
    for cells in (head, None, *rows):
        print("|---" * len(head) + "|" if cells is None else "| " + " | ".join(cells) + " |")


def main(paths: list[str]) -> None:
    results: dict[str, Any] = {}
    for p in paths:
        results |= json.loads(Path(p).read_text(encoding="utf-8"))
    several = {k: v for k, v in results.items() if any("@" in key for key in v)}
    if several:
        show(("workload", "mode", "threads", "times as fast as with the fewest"), by_threads(several))
        results = {k: v for k, v in results.items() if k not in several}
        if not results:
            return
        print()
    kinds = {k: {n: r for n, r in results.items() if n.startswith(f"{k}-")} for k in ("matmul", "conv")}
    single = {n: f for n, f in results.items() if not any(n in of for of in kinds.values())}
    if single:
        show(HEAD, [row(n, f) for n, f in single.items()])
        print()
    for kind, of in kinds.items():
        if of:
            print(family(kind, of))


if __name__ == "__main__":
    main(sys.argv[1:])
