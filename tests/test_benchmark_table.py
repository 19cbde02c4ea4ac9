"""The tables that benchmarks/README.md shows are made of the figures that were measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def times(least: float, median: float, **more: float) -> dict[str, float]:
    return {"min_us": least, "median_us": median, "cold_s": 1.0, "warm_s": 1.0, "memory_mb": 100.0, **more}


def test_ratios_are_those_of_the_best_peer(tmp_path: Path) -> None:
    measured = {
        "net": {
            "tracegrad": times(10, 20, cold_s=0.5),
            "tracegrad.lazy": times(40, 80),
            "torch": times(60, 160, cold_s=2.0, memory_mb=400.0),
            "jax": times(30, 50),
        },
        "matmul-2x2x2": {"tracegrad": times(10, 10), "torch": times(20, 20)},
        "matmul-3x3x3": {"tracegrad": times(10, 10), "torch": times(5, 5)},
    }
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(measured), encoding="utf-8")
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.table", str(path)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[2] == "| net | jax | 3, 2.5 |  | 1.5, 2 | 0.25 | 0.25 |"
    assert lines[-1] == "- matmul, 2 shapes: geometric mean 1.00, least 0.50 (`matmul-3x3x3`)."
    assert "matmul-2x2x2" not in done.stdout
