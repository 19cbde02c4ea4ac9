"""What is measured on a GPU: steps written once for everything with PyTorch's API, and once for JAX.

Weights and data are made on the CPU, where Tracegrad draws PyTorch's numbers, and moved: so both must print
the same losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..record import Step
from ..workloads.block import block_class
from . import jax_steps


@dataclass(frozen=True)
class GpuWorkload:
    """One workload.

    Attributes:
        build: (module, device, sizes) to a step, undecorated.
        jax: (sizes, dtype) to a jitted step that does not wait for its result; None: not measured.
        sizes, tiny: of the real one; of one that the emulated device does in seconds.
        dtype: of weights and data: `float32` or `bfloat16`.
        precision: of products of f32: `highest`, or `high` (tf32).
        peak: the kind of arithmetic whose peak bounds it: `f32`, `tf32` or `bf16`.
    """

    name: str
    build: Callable[[Any, Any, dict[str, int], str], Step]
    jax: Callable[[dict[str, int], str], Step] | None
    sizes: dict[str, int]
    tiny: dict[str, int]
    dtype: str = "float32"
    precision: str = "highest"

    @property
    def peak(self) -> str:
        return {"bfloat16": "bf16"}.get(self.dtype) or {"highest": "f32", "high": "tf32"}[self.precision]


def _train(tg: Any, device: Any, dtype: str, model: Any, loss: Any, data: tuple[Any, ...], lr: float) -> Step:
    """A step of AdamW on `loss(model, *data)`, on a device."""
    wanted = getattr(tg, dtype)
    model = model.to(device, wanted)
    data = tuple([d.to(device, wanted) if d.is_floating_point() else d.to(device) for d in data])
    optimizer = tg.optim.AdamW(model.parameters(), lr=lr)

    def step() -> Any:
        optimizer.zero_grad()
        value = loss(model, *data)
        value.backward()
        optimizer.step()
        return value

    return step


def _mlp(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    nn = tg.nn
    model = nn.Sequential(
        nn.Linear(s["inputs"], s["width"]), nn.ReLU(), nn.Linear(s["width"], s["width"]), nn.ReLU(),
        nn.Linear(s["width"], 10),
    )  # fmt: skip
    data = tg.randn(s["batch"], s["inputs"]), tg.randint(10, (s["batch"],))

    def loss(m: Any, x: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(m(x), y)

    return _train(tg, device, dtype, model, loss, data, 1e-3)


def _convnet(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    nn, c = tg.nn, s["channels"]
    side = ((s["side"] - 4) // 2) ** 2
    model = nn.Sequential(
        nn.Conv2d(1, c, 3), nn.ReLU(), nn.Conv2d(c, 2 * c, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2 * c * side, 4 * c), nn.ReLU(), nn.Linear(4 * c, 10),
    )  # fmt: skip
    data = tg.randn(s["batch"], 1, s["side"], s["side"]), tg.randint(10, (s["batch"],))

    def loss(m: Any, x: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(m(x), y)

    return _train(tg, device, dtype, model, loss, data, 1e-3)


def _transformer(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    nn, width, letters = tg.nn, s["width"], s["letters"]
    block = block_class(tg, width, s["heads"])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(s["time"], width)
            self.blocks = nn.Sequential(*(block() for _ in range(s["layers"])))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.blocks(self.letter(x) + self.place.weight)))

    model = Model()
    shape = s["batch"], s["time"]
    data = tg.randint(letters, shape), tg.randint(letters, shape)

    def loss(m: Any, x: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(m(x).view(-1, letters), y.view(-1))

    return _train(tg, device, dtype, model, loss, data, 1e-3)


def _gpt2_block(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    model = block_class(tg, s["width"], s["heads"])()
    data = (tg.randn(s["batch"], s["time"], s["width"]),)
    return _train(tg, device, dtype, model, lambda m, x: (m(x).float() ** 2).mean(), data, 1e-4)


def _matmul(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    x, w = (tg.randn(n, n).to(device, getattr(tg, dtype)) for n in (s["n"], s["n"]))
    return lambda: x @ w


def _softmax(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    x = tg.randn(s["rows"], s["columns"]).to(device, getattr(tg, dtype))
    return lambda: tg.softmax(x, -1)


def _gelu_chain(tg: Any, device: Any, s: dict[str, int], dtype: str) -> Step:
    tg.manual_seed(0)
    x, y = (tg.randn(s["n"]).to(device, getattr(tg, dtype)) for _ in range(2))
    gelu = tg.nn.functional.gelu
    return lambda: gelu(x * 2 + y) * y.sigmoid()


_MLP = GpuWorkload(
    "mlp", _mlp, jax_steps.mlp,
    {"inputs": 784, "width": 1024, "batch": 256}, {"inputs": 12, "width": 16, "batch": 8},
)  # fmt: skip
_CONVNET = GpuWorkload(
    "convnet", _convnet, jax_steps.convnet,
    {"channels": 32, "side": 28, "batch": 256}, {"channels": 2, "side": 8, "batch": 2},
)  # fmt: skip
_TRANSFORMER = GpuWorkload(
    "transformer", _transformer, jax_steps.transformer,
    {"width": 128, "heads": 4, "time": 64, "batch": 16, "layers": 2, "letters": 96},
    {"width": 8, "heads": 2, "time": 4, "batch": 2, "layers": 1, "letters": 7},
)  # fmt: skip
_BLOCK = GpuWorkload(
    "gpt2-block", _gpt2_block, jax_steps.gpt2_block,
    {"width": 768, "heads": 12, "time": 1024, "batch": 8}, {"width": 8, "heads": 2, "time": 4, "batch": 2},
)  # fmt: skip
_PRODUCT = GpuWorkload("matmul-4096", _matmul, jax_steps.matmul, {"n": 4096}, {"n": 16})


def _variants(w: GpuWorkload, tf32: bool = True, bf16: bool = True) -> list[GpuWorkload]:
    out = [w]
    if tf32:
        out.append(replace(w, name=f"{w.name}-tf32", precision="high"))
    if bf16:
        out.append(replace(w, name=f"{w.name}-bf16", dtype="bfloat16"))
    return out


_ALL = [
    *_variants(_MLP, bf16=False), *_variants(_CONVNET, bf16=False), *_variants(_TRANSFORMER, bf16=False),
    *_variants(_BLOCK), *_variants(_PRODUCT),
    replace(_PRODUCT, name="matmul-8192-bf16", dtype="bfloat16", sizes={"n": 8192}),
    GpuWorkload(
        "softmax", _softmax, jax_steps.softmax,
        {"rows": 16384, "columns": 4096}, {"rows": 4, "columns": 64},
    ),
    GpuWorkload("gelu-chain", _gelu_chain, jax_steps.gelu_chain, {"n": 1 << 26}, {"n": 1 << 8}),
]  # fmt: skip
WORKLOADS: dict[str, GpuWorkload] = {w.name: w for w in _ALL}
