"""One contender on the GPU in a process of its own: sets up, then times blocks of steps on command.

Talks in lines: prints `ready` and JSON (seconds to the third step, the first values); then for every `<n>` on
standard input prints the seconds that one of n steps took, the wait for the GPU at the end included; `end`
makes it print JSON of what it counted, and ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .workloads import WORKLOADS, GpuWorkload


class Contender:
    """How a library is used: `step`, and what waits for all it did."""

    step: Callable[[], Any]

    def wait(self, last: Any) -> None:
        """Returns when all steps are done."""
        raise NotImplementedError

    def memory(self) -> int:
        """The most bytes of the GPU that were in use."""
        return 0

    def counts(self) -> dict[str, Any]:
        """What else is known of the step."""
        return {}


class OfJax(Contender):
    def __init__(self, w: GpuWorkload, sizes: dict[str, int], device: str) -> None:
        import jax

        assert w.jax is not None
        here = jax.devices()[0].platform
        if (here == "cpu") != (device == "cpu"):
            raise SystemExit(f"JAX's device is {here}, not {device}")
        jax.config.update(
            "jax_default_matmul_precision", {"high": "tensorfloat32"}.get(w.precision, "highest")
        )
        if w.dtype == "bfloat16":
            jax.config.update("jax_default_matmul_precision", "default")
        self.jax = jax
        self.step = w.jax(sizes, w.dtype)

    def wait(self, last: Any) -> None:
        self.jax.block_until_ready(last)

    def memory(self) -> int:
        return (self.jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


class OfTorch(Contender):
    """Tracegrad and PyTorch, by the same code."""

    def __init__(self, name: str, w: GpuWorkload, sizes: dict[str, int], device: str) -> None:
        library, _, mode = name.partition(".")
        self.ours = library == "tracegrad"
        if self.ours:
            import tracegrad as module
        else:
            import torch as module
            import torch.nn.functional

            module.backends.cudnn.allow_tf32 = w.precision != "highest"
            module.backends.cudnn.benchmark = True
        module.set_float32_matmul_precision(w.precision)
        if device == "cuda" and not module.cuda.is_available():
            raise SystemExit(f"{library} sees no GPU")
        self.module = module
        self.on_gpu = device == "cuda"
        step = w.build(module, device, sizes, w.dtype)
        self.step = module.compile(step) if mode != "eager" else step

    def wait(self, last: Any) -> None:
        if self.on_gpu:
            self.module.cuda.synchronize()
        elif last is not None:
            last.sum().item()

    def memory(self) -> int:
        return self.module.cuda.max_memory_allocated() if self.on_gpu else 0

    def counts(self) -> dict[str, Any]:
        if not self.ours or not hasattr(self.step, "lower"):
            return {}
        lowered: Any = self.step.lower()  # type: ignore[attr-defined]
        memory = lowered.memory()
        out: dict[str, Any] = {
            "flops": lowered.cost().flops,
            "bytes": memory.inputs + 2 * memory.state + memory.outputs,
        }
        if self.on_gpu:
            from tracegrad.runtime.cuda import kernel_times

            self.step()
            with kernel_times() as times:
                self.step()
            out["kernels"] = [[k.name, k.comment, us] for k, us in times]
        return out


def values(contender: Contender, n: int = 3) -> list[float]:
    """The first results: losses, or an element."""
    out = []
    for _ in range(n):
        got = contender.step()
        out.append(float(getattr(got, "detach", lambda got=got: got)().reshape(-1)[0]))
    return out


def main() -> None:
    """`python -m benchmarks.gpu.worker WORKLOAD CONTENDER full|tiny cuda|cpu START`."""
    workload, name, size, device, start = sys.argv[1:6]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    w = WORKLOADS[workload]
    sizes = w.sizes if size == "full" else w.tiny
    contender = OfJax(w, sizes, device) if name == "jax" else OfTorch(name, w, sizes, device)
    first = values(contender)
    ready = {"start_s": time.time() - float(start), "first": first}
    print("ready", json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        n = int(line)
        contender.wait(contender.step())
        t = time.perf_counter()
        last = None
        for _ in range(n):
            last = contender.step()
        contender.wait(last)
        print(f"{(time.perf_counter() - t) / n:.9f}", file=out, flush=True)
    print(json.dumps({"memory": contender.memory(), **contender.counts()}), file=out, flush=True)


if __name__ == "__main__":
    main()
