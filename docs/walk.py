"""Writes docs/walk.md: one training step at every stage, with real dumps. Run `python docs/walk.py` after a
change of the compiler; tests/test_docs.py says when the page no longer shows what the code does."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

os.environ["TRACEGRAD_VECTOR_BYTES"] = "32"  # the page is the same on every machine
os.environ["TRACEGRAD_NUM_THREADS"] = "1"

import tracegrad as tg
from tracegrad import nn

PAGE = Path(__file__).with_name("walk.md")


def lowered_step() -> Any:
    """The step that the page follows: a 3-16-1 net, squared error, plain gradient descent."""
    tg.manual_seed(0)
    x, y = tg.randn(100, 3), tg.randn(100, 1)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = tg.optim.SGD(model.parameters(), lr=0.01)

    @tg.compile
    def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step.lower(x, y)


def kernel(loops: str, number: int) -> str:
    """One kernel of a loop program's text."""
    found = re.search(rf'(  kernel "k{number}_.*?\n  }}\n)', loops, re.S)
    assert found, f"no kernel {number}"
    return found.group(1)


def sections() -> dict[str, str]:
    """Stage -> text, as the page quotes it."""
    lowered = lowered_step()
    loops = lowered.as_text("loops")
    head = loops[: loops.index("  kernel ")]
    return {
        "graph": lowered.as_text("graph"),
        "optimized": lowered.as_text("optimized"),
        "loops": head + kernel(loops, 0) + "  ...\n}\n",
    }


def page() -> str:
    """The whole page."""
    s = sections()
    passes = "\n".join(
        f"| {r.name} | {', '.join(f'{k} x{n}' for k, n in sorted(r.rules_fired.items())) or '-'} |"
        for r in _records()
    )
    return TEXT.format(**s, passes=passes)


def _records() -> list[Any]:
    lowered = lowered_step()
    _ = lowered.optimized
    return lowered.records


TEXT = """# A training step, stage by stage

This page is written by `python docs/walk.py`; every dump is real. The step is

```python
x, y = tg.randn(100, 3), tg.randn(100, 1)
model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = tg.optim.SGD(model.parameters(), lr=0.01)

@tg.compile
def step(x, y):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss
```

and its stages are what `step.lower(x, y).as_text(stage)` gives.

## graph: as traced

One line per op, with the user's line. The parameters were not arguments: they are state, named after the
modules that hold them, and the `update` lines at the end say what they become. The learning rate is an input
too, so a scheduler can change it without recompilation. Below `// backward` is what `loss.backward()` added:
ordinary ops.

```
{graph}```

## optimized: after the passes

The passes run in one visible order (`ir/passes.py`). Composite ops are expanded (`linear` becomes `contract`
and `add`), transposes disappear into the letters of contractions, the gradient's seed of one vanishes.

| pass | rules that fired |
|---|---|
{passes}

```
{optimized}```

## loops: scheduled

The scheduler turned the graph into a few loop nests; here are the buffers and the first kernel: the first
layer, with bias and ReLU fused into the contraction's epilogue. `vector` loops are SIMD operations, `unroll`
loops are replicated, `register` buffers live in registers. Intermediates have fixed places (`@`) in one
arena.

```
{loops}```

## llvm and asm

`as_text("llvm")` is the LLVM IR that the code generator wrote from these loops, with explicit vectors of the
machine's width; `as_text("asm")` the machine code that ran. Both depend on the machine and are not quoted
here. `python -m tracegrad show SCRIPT --stage asm` prints them for any script.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
