"""What a GPU can do at most: measured by PyTorch (cuBLAS products, a copy) where it sees the GPU, else
computed from what the driver says of the chip. `python -m benchmarks.gpu.ceiling` prints it as JSON."""

from __future__ import annotations

import json
import time
from typing import Any

#: operations that a multiprocessor does in a cycle, a multiply-add being two, from NVIDIA's programming guide
PER_CYCLE = {
    (7, 5): {"f32": 128, "tf32": 128, "bf16": 128}, (8, 0): {"f32": 128, "tf32": 1024, "bf16": 2048},
    (8, 6): {"f32": 256, "tf32": 256, "bf16": 512}, (8, 9): {"f32": 256, "tf32": 512, "bf16": 1024},
    (9, 0): {"f32": 256, "tf32": 2048, "bf16": 4096},
}  # fmt: skip


def of_the_chip() -> dict[str, Any]:
    """Operations and bytes a second by the driver's numbers; without a figure for kinds it does not know."""
    import tracegrad as tg
    from tracegrad.runtime import cuda_driver as low

    hertz = 1e3 * low.attribute("CLOCK_RATE")
    rates = PER_CYCLE.get(tg.cuda.get_device_capability(), {})
    width = low.attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8
    return {
        "from": "the driver's clocks",
        **{kind: hertz * low.multiprocessors() * n for kind, n in rates.items()},
        "bandwidth": 2e3 * low.attribute("MEMORY_CLOCK_RATE") * width,
    }


def by_torch(n: int = 8192, nbytes: int = 2 << 30) -> dict[str, Any]:
    """The best of several: 2 n^3 / seconds of a product, bytes read and written / seconds of a copy."""
    import torch

    def seconds(step: Any) -> float:
        for _ in range(3):
            step()
        best = float("inf")
        for _ in range(5):
            torch.cuda.synchronize()
            t = time.perf_counter()
            for _ in range(4):
                step()
            torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - t) / 4)
        return best

    out: dict[str, Any] = {
        "from": f"PyTorch {torch.__version__}: products of {n} x {n}, a copy of {nbytes} bytes"
    }
    for kind, dtype, precision in (
        ("f32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        out[kind] = 2 * n**3 / seconds(lambda a=a, b=b: a @ b)
    x = torch.empty(nbytes // 4, device="cuda")
    y = torch.empty_like(x)
    out["bandwidth"] = 2 * nbytes / seconds(lambda: y.copy_(x))
    return out


def main() -> None:
    """Prints it."""
    found = None
    try:
        import torch

        if torch.cuda.is_available():
            found = by_torch()
    except ImportError:
        pass
    print(json.dumps(found or of_the_chip()))


if __name__ == "__main__":
    main()
