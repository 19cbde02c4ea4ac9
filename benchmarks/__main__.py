"""`python -m benchmarks [WORKLOAD ...] [--against torch,jax]`: steps of each contender timed in turn.

Every contender runs in a process of its own; blocks of steps alternate A B C A B C ..., so that a machine
that changes speed changes it for all. The table gives minimum and median time of a step, the best peer's time
over each, the least time from process start to the third step (cold caches, then warm; several processes of
each, in turn too), peak memory, and how long the step would take at the machine's measured peak of arithmetic
and of memory traffic.

With several numbers of threads (`--threads 1,2`) ours runs with each of them, in turn, and the table shows
that more threads are not slower.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from math import exp, log
from pathlib import Path

from .floor import Machine
from .record import OURS, Workload
from .workloads import WORKLOADS

Figures = dict[str, dict[str, float]]
#: what takes so many seconds to start is started once
LONG_START = 10.0


class Contender:
    """A worker process; `key` is what its figures are filed under."""

    def __init__(self, workload: str, name: str, threads: int, env: dict[str, str], key: str = "") -> None:
        self.key = key or name
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
        """Sends a line, gives the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def end(self) -> tuple[float, dict[str, int]]:
        """(peak memory in MiB, what the compiler counts)."""
        peak, _, counts = self.ask("end").partition(" ")
        self.process.wait()
        return int(peak) / 1024, json.loads(counts)

    def stop(self) -> float:
        """Ends it at once; gives the seconds from process start to the third step."""
        self.process.kill()
        self.process.wait()
        return self.start


def surroundings(cache: str) -> dict[str, str]:
    """Environment of workers whose caches are in a directory."""
    env = {
        **os.environ,
        "TRACEGRAD_CACHE_DIR": cache,
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "JAX_PLATFORMS": "cpu",
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode; so shall ours
    return env


def in_turn(running: list[Contender], rounds: int, seconds: float) -> Figures:
    """Times blocks of steps of all, one after the other, and ends them: figures by key."""
    blocks = {}
    for c in running:
        one = max(float(c.ask("1")), float(c.ask(str(max(int(0.02 / float(c.ask("1"))), 1)))), 1e-8)
        blocks[c.key] = max(int(seconds / one), 1)
    for _ in range(rounds):
        for c in running:
            c.times.append(float(c.ask(str(blocks[c.key]))))
    out: Figures = {}
    for c in running:
        memory, counts = c.end()
        out[c.key] = {
            "min_us": min(c.times) * 1e6,
            "median_us": statistics.median(c.times) * 1e6,
            "memory_mb": memory,
            **counts,
        }
    return out


def measure(
    w: Workload, names: list[str], threads: int, rounds: int, seconds: float, starts: int
) -> Figures:
    """Figures of one workload, by contender."""
    with tempfile.TemporaryDirectory() as folder:
        env = {n: surroundings(f"{folder}/{n}") for n in names}
        cold: dict[str, list[float]] = {n: [] for n in names}
        warm: dict[str, list[float]] = {n: [] for n in names}
        for k in range(starts):
            for n in names:
                if k == 0 or cold[n][0] < LONG_START:
                    shutil.rmtree(f"{folder}/{n}", ignore_errors=True)
                    cold[n].append(Contender(w.name, n, threads, env[n]).stop())
        for k in range(starts):
            for n in names:
                if k == 0 or warm[n][0] < LONG_START:
                    warm[n].append(Contender(w.name, n, threads, env[n]).stop())
        out = in_turn([Contender(w.name, n, threads, env[n]) for n in names], rounds, seconds)
        for n in names:
            for kind, found in (("cold", cold[n]), ("warm", warm[n])):
                out[n] |= {f"{kind}_s": min(found), f"{kind}_median_s": statistics.median(found)}
        return out


def measure_threads(w: Workload, names: list[str], counts: list[int], rounds: int, seconds: float) -> Figures:
    """Figures of one workload by contender and number of threads: `name@threads`."""
    with tempfile.TemporaryDirectory() as cache:
        env = surroundings(cache)
        each = [(n, t) for n in names for t in counts]
        return in_turn([Contender(w.name, n, t, env, f"{n}@{t}") for n, t in each], rounds, seconds)


def best_peer(figures: Figures, key: str) -> float:
    """The smallest of a figure among those that are not ours; nan without peers."""
    return min((f[key] for n, f in figures.items() if n not in OURS), default=float("nan"))


def show(w: Workload, figures: Figures, threads: int) -> None:
    """Prints one workload's table."""
    print(f"\n{w.name} ({threads} thread{'s' * (threads > 1)})")
    print(
        f"{'':18}{'min us':>11}{'median us':>11}{'peer/it min':>12}{'median':>8}"
        f"{'cold s':>8}{'warm s':>8}{'MB':>7}"
    )
    for n, f in figures.items():
        ratios = [best_peer(figures, k) / f[k] for k in ("min_us", "median_us")]
        print(
            f"{n:18}{f['min_us']:11.2f}{f['median_us']:11.2f}{ratios[0]:12.2f}{ratios[1]:8.2f}"
            f"{f['cold_s']:8.2f}{f['warm_s']:8.2f}{f['memory_mb']:7.0f}"
        )
    ours = figures.get("tracegrad")
    if ours and "floor_us" in ours:
        print(
            f"{'floor':18}{ours['floor_us']:11.2f}   {ours['arithmetic_us']:.2f} of arithmetic, "
            f"{ours['traffic_us']:.2f} of traffic; we reach {ours['floor_us'] / ours['min_us']:.0%}"
        )


def show_threads(w: Workload, figures: Figures, counts: list[int]) -> None:
    """Prints one workload's times by number of threads."""
    print(f"\n{w.name:32}" + "".join(f"{t} thread{'s' * (t > 1):17}" for t in counts))
    for n in dict.fromkeys(key.partition("@")[0] for key in figures):
        found = [figures[f"{n}@{t}"] for t in counts]
        cells = "".join(f"{f['min_us']:11.2f}{f['median_us']:11.2f}   " for f in found)
        print(f"  {n:28}{cells}{found[0]['min_us'] / found[-1]['min_us']:6.2f} times as fast")


def put_floors(everything: dict[str, Figures], threads: dict[str, int], machine: Machine) -> None:
    """Adds the floors, by the best that was measured until now, to the figures of ours."""
    for name, figures in everything.items():
        ours = figures.get("tracegrad")
        if ours and "flops" in ours:
            ours["arithmetic_us"], ours["traffic_us"] = machine.floor(
                threads[name], WORKLOADS[name].flops or ours["flops"], int(ours["bytes"])
            )
            ours["floor_us"] = max(ours["arithmetic_us"], ours["traffic_us"])


def summary(everything: dict[str, Figures]) -> None:
    """Prints the geometric mean and the worst ratio of every family."""
    for family in dict.fromkeys(w.family for w in WORKLOADS.values() if w.family):
        ratios = {
            n: best_peer(f, "min_us") / f["tracegrad"]["min_us"]
            for n, f in everything.items()
            if WORKLOADS[n].family == family and len(f) > 1
        }
        if ratios:
            mean = exp(sum(map(log, ratios.values())) / len(ratios))
            worst = min(ratios, key=ratios.__getitem__)
            print(
                f"\n{family}: geometric mean {mean:.2f} of {len(ratios)}, worst {ratios[worst]:.2f} ({worst})"
            )


def plot(everything: dict[str, Figures], path: str) -> None:
    """Bars of the best peer's time over ours, one a workload."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        (n, best_peer(f, "median_us") / f["tracegrad"]["median_us"])
        for n, f in everything.items()
        if len(f) > 1
    ]
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(rows) + 1.2), layout="constrained")
    axes.barh([n for n, _ in rows], [r for _, r in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="best peer's time / ours (median)")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "workloads", nargs="*", help=f"names or patterns of {', '.join(WORKLOADS)}; default all"
    )
    parser.add_argument("--against", default="torch,jax", help="peers, of torch, torch.compile, jax")
    parser.add_argument("--only", default=",".join(OURS), help="which of ours")
    parser.add_argument(
        "--threads",
        default="",
        help="a number, or several of them to compare; default: what each workload says",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a timed block")
    parser.add_argument("--starts", type=int, default=3, help="processes started cold, and as many warm")
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--plot", help="also draw the ratios here (PNG; needs matplotlib)")
    args = parser.parse_args()
    peers = {p for p in args.against.split(",") if p and importlib.util.find_spec(p.split(".")[0])}
    wanted = [n for p in args.workloads or ["*"] for n in WORKLOADS if fnmatch.fnmatch(n, p)]
    if not wanted:
        raise SystemExit(
            f"no workload is called {' or '.join(args.workloads)}; there are {', '.join(WORKLOADS)}"
        )
    names = list(dict.fromkeys(wanted))
    counts = [int(t) for t in args.threads.split(",") if t]
    if len(counts) > 1:
        compare_threads(names, args.only.split(","), counts, args)
        return
    machine = Machine()
    everything: dict[str, Figures] = {}
    threads = {}
    for name in names:
        w = WORKLOADS[name]
        threads[name] = counts[0] if counts else w.threads
        running = [c for c in w.contenders if c in peers or c in args.only.split(",")]
        everything[name] = measure(w, running, threads[name], args.rounds, args.seconds, max(args.starts, 1))
        ours = everything[name].get("tracegrad", {})
        for _ in range(5 if "bytes" in ours else 0):
            machine.measure(threads[name], int(ours["bytes"]))
            put_floors(everything, threads, machine)
            if ours["floor_us"] <= ours["min_us"]:
                break  # else the machine was busy when it was measured
        show(w, everything[name], threads[name])
        write(everything, args.json)
    summary(everything)
    if args.plot:
        plot(everything, args.plot)


def compare_threads(names: list[str], ours: list[str], counts: list[int], args: argparse.Namespace) -> None:
    """Measures and prints workloads with several numbers of threads."""
    everything: dict[str, Figures] = {}
    for name in names:
        w = WORKLOADS[name]
        running = [c for c in w.contenders if c in ours]
        everything[name] = measure_threads(w, running, counts, args.rounds, args.seconds)
        show_threads(w, everything[name], counts)
        write(everything, args.json)
    slower = [
        f"{name} ({key.partition('@')[0]}, {figures[key]['min_us'] / most['min_us']:.2f})"
        for name, figures in everything.items()
        for key, most in ((k, figures[f"{k.partition('@')[0]}@{counts[-1]}"]) for k in figures)
        if key.endswith(f"@{counts[0]}") and figures[key]["min_us"] < most["min_us"]
    ]
    print(f"\nslower on {counts[-1]} threads than on {counts[0]}: {', '.join(slower) or 'none'}")


def write(everything: dict[str, Figures], path: str | None) -> None:
    """Keeps the figures."""
    if path:
        Path(path).write_text(json.dumps(everything, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
