"""`python -m benchmarks.gpu [WORKLOAD ...] [--write docs/gpu.md]`: training steps and kernels on this
machine's GPU, Tracegrad against PyTorch, torch.compile and JAX, and against what the GPU can do at most.

Every contender runs in a process of its own; blocks of steps alternate A B C A B C ... A step's time is that
of a block by the wall clock, the wait for the GPU at its end included, over its steps. The first values of
Tracegrad and PyTorch, which draw the same numbers, must agree.

Without a GPU: `TRACEGRAD_CUDA=emulate python -m benchmarks.gpu --tiny` runs Tracegrad's on the emulated one,
and `--tiny --device cpu` all contenders on the CPU. Their times mean nothing; the tables say where they are
from.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .workloads import WORKLOADS, GpuWorkload

CONTENDERS = ("tracegrad", "torch.eager", "torch.compile", "jax")
MARKS = "<!-- times: written by python -m benchmarks.gpu -->", "<!-- /times -->"

Figures = dict[str, dict[str, Any]]


class Worker:
    """A contender's process.

    Attributes:
        failed: what it said, if it can't run here.
    """

    def __init__(self, workload: str, name: str, size: str, device: str, env: dict[str, str]) -> None:
        self.name = name
        self.times: list[float] = []
        words = [
            sys.executable,
            "-m",
            "benchmarks.gpu.worker",
            workload,
            name,
            size,
            device,
            str(time.time()),
        ]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env
        )
        self.failed = ""
        self.ready: dict[str, Any] = {}

    def begin(self) -> None:
        """Waits until it has set up. (All set up at once; they are timed in turn.)"""
        word, _, rest = self._line().partition(" ")
        if word == "ready":
            self.ready = json.loads(rest)
        else:
            self.failed = self._complaint()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def _complaint(self) -> str:
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else f"it ended with {self.process.returncode}"

    def ask(self, text: str) -> str:
        """Sends a line, gives the answer; says what went wrong if there is none."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._line()
        if not answer:
            self.failed = self._complaint()
        return answer


def measure(w: GpuWorkload, names: Sequence[str], args: Any) -> Figures:
    """Figures of one workload, by contender; `failed` where there are none."""
    with tempfile.TemporaryDirectory() as cache:
        env = {
            **os.environ,
            "TRACEGRAD_CACHE_DIR": f"{cache}/tracegrad/objects",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # others have memory on this GPU, too
        }
        if args.device == "cpu":
            env["JAX_PLATFORMS"] = "cpu"
        size = "tiny" if args.tiny else "full"
        started = [Worker(w.name, n, size, args.device, env) for n in names]
        for c in started:
            c.begin()
        out: Figures = {c.name: {"failed": c.failed} for c in started if c.failed}
        running = [c for c in started if not c.failed]
        blocks: dict[str, int] = {}
        for c in running:
            one = float(c.ask("2") or "inf")
            blocks[c.name] = max(int(args.seconds / max(one, 1e-9)), 1)
        for _ in range(args.rounds):
            for c in running:
                if not c.failed:
                    c.times.append(float(c.ask(str(blocks[c.name])) or "inf"))
        for c in running:
            said = "" if c.failed else c.ask("end")
            out[c.name] = {"failed": c.failed} if c.failed else {
                "min_us": min(c.times) * 1e6, "median_us": statistics.median(c.times) * 1e6, **c.ready,
                **json.loads(said),
            }  # fmt: skip
        return {n: out[n] for n in names}


def agreement(figures: Figures) -> float | None:
    """How far our first values are from PyTorch's, relative to the largest; None without either."""
    try:
        ours, theirs = figures["tracegrad"]["first"], figures["torch.eager"]["first"]
    except KeyError:
        return None
    return max(abs(a - b) for a, b in zip(ours, theirs)) / max(max(map(abs, theirs)), 1e-30)


def row(w: GpuWorkload, figures: Figures, ceiling: dict[str, Any]) -> list[str]:
    """One workload's cells."""
    ours = figures.get("tracegrad", {})
    cells = [w.name, w.peak]
    if "min_us" not in ours:
        return [*cells, "fails", *[""] * 7]
    us = ours["min_us"]
    cells.append(f"{us:.4g}")
    for peer in CONTENDERS[1:]:
        f = figures.get(peer, {})
        cells.append(f"{f['min_us'] / us:.2f}" if "min_us" in f else "")
    flops, traffic = ours.get("flops", 0), ours.get("bytes", 0)
    peak, bandwidth = ceiling.get(w.peak), ceiling.get("bandwidth")
    cells.append(f"{flops / us * 1e6 / peak:.0%}" if peak else "")
    cells.append(f"{traffic / us * 1e6 / bandwidth:.0%}" if bandwidth else "")
    kernels = ours.get("kernels", [])
    cells.append(str(len(kernels)) if kernels else "")
    far = agreement(figures)
    cells.append("" if far is None else f"{far:.0e}")
    return cells


HEAD = [
    "workload", "arithmetic", "us", "PyTorch", "torch.compile", "JAX", "of peak", "of bandwidth", "kernels",
    "differs",
]  # fmt: skip


def report(found: dict[str, Figures], ceiling: dict[str, Any], about: str) -> str:
    """The Markdown that docs/gpu.md holds."""
    lines = [about, "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for name, figures in found.items():
        lines.append("| " + " | ".join(row(WORKLOADS[name], figures, ceiling)) + " |")
    numbers = [f"{k} {v / 1e12:.4g} TFLOP/s" for k, v in ceiling.items() if k in ("f32", "tf32", "bf16")]
    if "bandwidth" in ceiling:
        numbers.append(f"{ceiling['bandwidth'] / 1e12:.3g} TB/s")
    lines += [
        "",
        "*us*: the least time of a step. The next three: theirs over ours; more than 1 is in our favour.",
        "*of peak*, *of bandwidth*: operations of the step, and bytes it must move (inputs, state twice,",
        f"outputs), over its time and what the GPU reaches ({ceiling.get('from', 'not known')}):",
        f"{', '.join(numbers) or 'not known'}. *differs*: the first values from PyTorch's.",
    ]
    failed = [
        f"- {name}: {c}: {f['failed'][:200]}"
        for name, figures in found.items() for c, f in figures.items() if f.get("failed")
    ]  # fmt: skip
    return "\n".join([*lines, *(["", "Not measured:", "", *failed] if failed else [])])


def slowest(figures: Figures, most: int) -> str:
    """Our kernels that take longest, one by one."""
    kernels = figures.get("tracegrad", {}).get("kernels", [])
    total = sum(us for _, _, us in kernels) or 1.0
    lines = [f"  {len(kernels)} kernels, {total:.4g} us one by one"]
    for name, comment, us in sorted(kernels, key=lambda k: -k[2])[:most]:
        lines.append(f"  {us:9.4g} us {us / total:5.0%}  {name}: {comment[:90]}")
    return "\n".join(lines)


def about(args: Any, names: Sequence[str]) -> str:
    """Where and when, and what was compared."""
    if args.device == "cpu":
        where = "the CPU, which says nothing of a GPU"
    else:
        import tracegrad as tg
        from tracegrad.runtime import cuda_driver as low

        major, minor = tg.cuda.get_device_capability()
        version = "{}.{}".format(*low.driver_version())
        where = f"{tg.cuda.get_device_name()}, sm_{major}{minor}, driver for CUDA {version}"
        if getattr(low.driver(), "emulated", False):
            where += ", which says nothing of a GPU"
    versions = []
    for package in ("torch", "jax", "nvidia-cuda-nvrtc"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    tiny = " Tiny sizes." if args.tiny else ""
    return f"{datetime.date.today()}; {where}; {', '.join(versions)}.{tiny}"


def write(path: Path, text: str) -> None:
    """Puts the text between the marks of a file; at its end if there are none."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    block = f"{MARKS[0]}\n\n{text}\n\n{MARKS[1]}"
    start, end = old.find(MARKS[0]), old.find(MARKS[1])
    new = (
        old[:start] + block + old[end + len(MARKS[1]) :]
        if 0 <= start < end
        else f"{old.rstrip()}\n\n{block}\n"
    )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(new.lstrip("\n"), encoding="utf-8")
    os.replace(temporary, path)


def ceiling_of(args: Any) -> dict[str, Any]:
    """What the GPU reaches at most, found in a process of its own; nothing for the CPU."""
    if args.device == "cpu":
        return {}
    words = [sys.executable, "-m", "benchmarks.gpu.ceiling"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "workloads", nargs="*", help=f"names or patterns of {', '.join(WORKLOADS)}; default all"
    )
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a timed block")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--kernels", type=int, default=0, help="also print so many of our slowest kernels")
    parser.add_argument("--json", help="also add the figures to this file; the table has all that are in it")
    parser.add_argument("--write", help="also put the table between the marks of this file (docs/gpu.md)")
    args = parser.parse_args(argv)
    wanted = [n for p in args.workloads or ["*"] for n in WORKLOADS if fnmatch.fnmatch(n, p)]
    names = [
        c for c in CONTENDERS if c in args.contenders.split(",") and importlib.util.find_spec(c.split(".")[0])
    ]
    if not wanted or not names:
        raise SystemExit(
            f"nothing to measure; workloads: {', '.join(WORKLOADS)}; contenders: {', '.join(CONTENDERS)}"
        )
    if args.device == "cuda":
        import tracegrad as tg

        if not tg.cuda.is_available():
            raise SystemExit(f"no GPU can be used: {tg.cuda.why_not()}")
    ceiling = ceiling_of(args)
    title = about(args, names)
    found: dict[str, Figures] = {}
    if args.json and Path(args.json).exists():  # what other calls have measured
        found = json.loads(Path(args.json).read_text(encoding="utf-8"))["found"]
    for name in dict.fromkeys(wanted):
        found[name] = measure(WORKLOADS[name], names, args)
        print(" | ".join(row(WORKLOADS[name], found[name], ceiling)), flush=True)
        if args.kernels:
            print(slowest(found[name], args.kernels), flush=True)
        if args.json:
            Path(args.json).write_text(
                json.dumps({"ceiling": ceiling, "found": found}, indent=1), encoding="utf-8"
            )
        if args.write:  # after each, so that what was measured is kept
            write(Path(args.write), report(found, ceiling, title))
    print("\n" + report(found, ceiling, title))


if __name__ == "__main__":
    main()
