"""`python -m benchmarks [WORKLOAD ...] [--against torch,jax]`: steps of each contender timed in turn.

Every contender runs in a process of its own; blocks of steps alternate A B C A B C ..., so that a machine
that changes speed changes it for all. The table gives minimum and median time of a step, the ratio of the
best peer's to ours, the time from process start to the third step, and peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from .workloads import WORKLOADS


class Contender:
    """A worker process."""

    def __init__(self, workload: str, name: str, threads: int, env: dict[str, str]) -> None:
        self.name = name
        self.times: list[float] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", workload, name, str(threads), str(time.time())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if len(line) != 2:
            raise SystemExit(f"{name} failed on {workload}; its message is above")
        self.start = float(line[1])

    def ask(self, text: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


def measure(workload: str, names: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Figures of one workload, by contender."""
    threads = WORKLOADS[workload].threads
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "TRACEGRAD_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode; so shall ours
        running = [Contender(workload, n, threads, env) for n in names]
        blocks = {}
        for c in running:
            one = max(float(c.ask("200")), 1e-8)
            blocks[c.name] = max(int(seconds / one), 1)
        for _ in range(rounds):
            for c in running:
                c.times.append(float(c.ask(str(blocks[c.name]))))
        out = {}
        for c in running:
            memory = int(c.ask("end")) / 1024
            c.process.wait()
            out[c.name] = {
                "min_us": min(c.times) * 1e6,
                "median_us": statistics.median(c.times) * 1e6,
                "third_step_s": c.start,
                "memory_mb": memory,
            }
        return out


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; default all")
    parser.add_argument("--against", default="torch,jax", help="peers, of torch, torch.compile, jax")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a timed block")
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()
    peers = [p for p in args.against.split(",") if p and importlib.util.find_spec(p.split(".")[0])]
    everything = {}
    for name in args.workloads or list(WORKLOADS):
        contenders = [c for c in WORKLOADS[name].contenders if c.startswith("tracegrad") or c in peers]
        figures = everything[name] = measure(name, contenders, args.rounds, args.seconds)
        best = min((f["median_us"] for n, f in figures.items() if not n.startswith("tracegrad")), default=0.0)
        print(f"\n{name} ({WORKLOADS[name].threads} thread)")
        print(f"{'':18}{'min us':>10}{'median us':>11}{'best peer/it':>14}{'3rd step s':>12}{'MB':>7}")
        for n, f in figures.items():
            print(
                f"{n:18}{f['min_us']:10.2f}{f['median_us']:11.2f}{best / f['median_us']:14.2f}"
                f"{f['third_step_s']:12.2f}{f['memory_mb']:7.0f}"
            )
    if args.json:
        with open(args.json, "w") as f:
            json.dump(everything, f, indent=1)


if __name__ == "__main__":
    main()
