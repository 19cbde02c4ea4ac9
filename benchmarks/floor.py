"""The physical floor of a step: how fast this machine multiplies and moves, measured now."""

from __future__ import annotations

import os
import subprocess
import sys

#: prints the best of several: 2 n^3 / seconds of a matrix product, bytes / seconds of reading and writing
_PROBE = """
import time
import numpy as np
a = np.ones((1536, 1536), np.float32)
x, y = np.ones(1 << 25, np.float32), np.empty(1 << 25, np.float32)
flops = bandwidth = 0.0
for _ in range(6):
    t = time.perf_counter(); a @ a; flops = max(flops, 2 * 1536**3 / (time.perf_counter() - t))
    t = time.perf_counter(); np.copyto(y, x); t = time.perf_counter() - t
    bandwidth = max(bandwidth, 2 * x.nbytes / t)
print(flops, bandwidth)
"""


class Machine:
    """Measured on first use for each number of threads."""

    def __init__(self) -> None:
        self.measured: dict[int, tuple[float, float]] = {}

    def _of(self, threads: int) -> tuple[float, float]:
        if threads not in self.measured:
            env = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                [sys.executable, "-c", _PROBE], env=env, capture_output=True, text=True, check=True
            )
            flops, bandwidth = map(float, done.stdout.split())
            self.measured[threads] = flops, bandwidth
        return self.measured[threads]

    def flops(self, threads: int) -> float:
        """Operations a second of NumPy's matrix product, a multiply-add being two."""
        return self._of(threads)[0]

    def bandwidth(self, threads: int) -> float:
        """Bytes a second of a large copy on one thread, read and written; threads share it."""
        return self._of(1)[1]
