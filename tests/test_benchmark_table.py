"""The tables that benchmarks/README.md shows are made of the figures that were measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def times(least: float, median: float, **more: float) -> dict[str, float]:
    starts = {"cold_s": 1.0, "cold_median_s": 1.5, "warm_s": 1.0, "warm_median_s": 1.0}
    return {"min_us": least, "median_us": median, "memory_mb": 100.0, **starts, **more}


def table(measured: dict[str, Any], folder: Path) -> list[str]:
    """The lines that figures become."""
    path = folder / "figures.json"
    path.write_text(json.dumps(measured), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.table", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_ratios_are_those_of_the_best_peer(tmp_path: Path) -> None:
    measured = {
        "net": {
            "tracegrad": times(10, 20, cold_s=0.5, warm_s=0.4, floor_us=4),
            "tracegrad.lazy": times(40, 80),
            "torch": times(60, 160, cold_s=2.0, cold_median_s=3.0, memory_mb=400.0),
            "jax": times(30, 50),
        },
        "matmul-2x2x2": {"tracegrad": times(10, 10), "torch": times(20, 20)},
        "matmul-3x3x3": {"tracegrad": times(10, 10), "torch": times(5, 5)},
    }
    lines = table(measured, tmp_path)
    assert lines[2] == "| net | jax | 3, 2.5 |  | 1.5, 2 | 0.25, 0.50 | 0.40, 1.00 | 0.25 | 0.4 |"
    assert lines[-1] == "- matmul, 2 shapes: geometric mean 1.00, least 0.50 (`matmul-3x3x3`)."
    assert not any("matmul-2x2x2" in line for line in lines)


def test_times_by_number_of_threads(tmp_path: Path) -> None:
    measured = {
        "net": {
            "tracegrad@1": times(10, 20), "tracegrad@2": times(8, 40),
            "tracegrad.lazy@1": times(30, 30), "tracegrad.lazy@2": times(20, 20),
        },
    }  # fmt: skip
    lines = table(measured, tmp_path)
    assert lines[2:] == ["| net | tracegrad | 2 | 1.25, 0.5 |", "| net | tracegrad.lazy | 2 | 1.5, 1.5 |"]
