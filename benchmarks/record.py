"""What a workload is. `workloads/` makes them, worker.py runs one contender,
__main__.py all in turn."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: one step of work; what it returns is ready when it returns, or is made so by `wait`
Step = Callable[[], Any]
#: sets a workload up in a PyTorch-like module (tracegrad or torch) and gives its step, undecorated
Build = Callable[[Any], Step]

OURS = ("tracegrad", "tracegrad.repeat", "tracegrad.lazy")
PEERS = ("torch", "torch.compile", "jax")


@dataclass(frozen=True)
class Workload:
    """One workload, written once for everything with PyTorch's API and once for JAX.

    Attributes:
        build: see `Build`; the step ends in `backward()` and an optimiser step where it trains.
        jax: sets up and gives the jitted step, which waits for its result.
        repeat: steps of one native `repeat` call; 0: not measured.
        lazy: whether the undecorated step is measured too (it must return a tensor with `.item()`).
        threads: what every contender gets unless the command line says otherwise.
        family: workloads of one family are also summed up by their geometric mean.
        flops: of one step; 0: taken from the lowered step's own count.
    """

    name: str
    build: Build
    jax: Callable[[], Step] | None = None
    repeat: int = 0
    lazy: bool = True
    threads: int = 2
    family: str = ""
    flops: int = 0

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of all that can run it."""
        without = {
            *(() if self.repeat else ("tracegrad.repeat",)),
            *(() if self.lazy else ("tracegrad.lazy",)),
            *(() if self.jax else ("jax",)),
        }
        return tuple(n for n in (*OURS, *PEERS) if n not in without)

    def start(self, contender: str) -> tuple[Step, int]:
        """Sets a contender up; gives its step and how many steps one call of it is."""
        if contender == "jax":
            assert self.jax is not None
            return self.jax(), 1
        library, _, mode = contender.partition(".")
        module = importlib.import_module(library)
        importlib.import_module(f"{library}.nn.functional")
        step = self.build(module)
        if mode == "lazy":
            return (lambda: step().item()), 1
        if contender == "torch":
            return step, 1
        compiled = module.compile(step)
        if mode == "repeat":
            return (lambda: compiled.repeat(self.repeat)), self.repeat
        return compiled, 1
