"""One contender in a process of its own: sets up, then times blocks of steps on command.

Talks in lines: prints `ready <seconds to the third step>`, then for every `<n>` on standard input prints the
seconds that one of n steps took; `end` makes it print its peak memory in KiB and what its lowered step
counts, and ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


def cost_of(step: Any) -> dict[str, int]:
    """What the compiler counts of one step: operations, the bytes that must move, and its workspace."""
    if not hasattr(step, "lower"):
        return {}
    from .floor import traffic  # when the start has been timed

    lowered = step.lower()
    return {
        "flops": lowered.cost().flops,
        "bytes": traffic(lowered.loops),
        "arena": lowered.memory().arena,
    }


def main() -> None:
    """`python -m benchmarks.worker WORKLOAD CONTENDER THREADS START`."""
    workload, contender, threads, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRACEGRAD_NUM_THREADS"):
        os.environ[variable] = str(threads)
    # XLA heeds no setting of its own, so all are held to the same processors.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from .workloads import WORKLOADS

    step, per_call = WORKLOADS[workload].start(contender)
    if contender.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
    for _ in range(3):
        step()
    print(f"ready {time.time() - start:.6f}", file=out, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        n = max(int(line) // per_call, 1)
        t = time.perf_counter()
        for _ in range(n):
            step()
        print(f"{(time.perf_counter() - t) / (n * per_call):.9f}", file=out, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak, json.dumps(cost_of(step)), file=out, flush=True)


if __name__ == "__main__":
    main()
