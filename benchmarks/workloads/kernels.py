"""Single kernels: pointwise chains, softmax cross entropy, embedding bags, matrix products and convolutions
of many shapes. The products and convolutions run on one thread each."""

from __future__ import annotations

from typing import Any

from .. import in_jax
from ..record import Build, Step, Workload


def _chain_of(x: Any, exp: Any, tanh: Any, sqrt: Any, sin: Any) -> Any:
    y = x * 0.5 + 0.25
    y = y * y - x
    y = tanh(y) + sin(x)
    return (sqrt(y * y + 1) * exp(-y)).mean()


def _chain(tg: Any) -> Step:
    tg.manual_seed(0)
    x = tg.randn(4_000_000)
    return lambda: _chain_of(x, tg.exp, tg.tanh, tg.sqrt, tg.sin)


def _chain_jax() -> Step:
    import jax.numpy as jnp

    return in_jax.run(lambda x: _chain_of(x, jnp.exp, jnp.tanh, jnp.sqrt, jnp.sin), in_jax.Keys()(4_000_000))


def _softmax(tg: Any) -> Step:
    tg.manual_seed(0)
    x, y = tg.randn(4096, 4096, requires_grad=True), tg.randint(4096, (4096,))

    def step() -> Any:
        x.grad = None
        loss = tg.nn.functional.cross_entropy(x, y)
        loss.backward()
        return loss, x.grad

    return step


def _softmax_jax() -> Step:
    import jax
    import jax.numpy as jnp

    def loss(x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    keys = in_jax.Keys()
    return in_jax.run(jax.value_and_grad(loss), keys(4096, 4096), keys.integers(4096, 4096))


def _bag(tg: Any) -> Step:
    tg.manual_seed(0)
    bag = tg.nn.EmbeddingBag(20_000, 64, mode="sum")
    index, offsets = tg.randint(20_000, (8192,)), tg.arange(0, 8192, 16)
    g = tg.randn(512, 64)

    def step() -> Any:
        bag.zero_grad()
        out = bag(index, offsets)
        out.backward(g)
        return out, bag.weight.grad

    return step


def _bag_jax() -> Step:
    import jax
    import jax.numpy as jnp

    keys = in_jax.Keys()

    def f(w: Any, index: Any, g: Any) -> Any:
        segments = jnp.arange(8192) // 16
        out, pull = jax.vjp(lambda w: jax.ops.segment_sum(w[index], segments, 512), w)
        return out, pull(g)

    return in_jax.run(f, keys(20_000, 64), keys.integers(20_000, 8192), keys(512, 64))


#: m, k, n: square, tall, thin and odd
PRODUCTS = (
    (32, 32, 32), (64, 64, 64), (100, 100, 100), (128, 128, 128), (192, 192, 192), (256, 256, 256),
    (384, 384, 384), (512, 512, 512), (768, 768, 768), (1024, 1024, 1024), (33, 65, 129), (127, 255, 63),
    (1000, 100, 10), (64, 1000, 100), (256, 784, 1024), (1024, 784, 256), (2048, 64, 64), (64, 2048, 64),
    (64, 64, 2048), (4096, 16, 16), (16, 4096, 16), (1, 1024, 1024), (8, 1024, 1024), (1024, 1024, 1),
    (1024, 1024, 8), (317, 211, 503), (1024, 128, 384), (1024, 128, 512), (1024, 512, 128), (31, 1023, 31),
)  # fmt: skip


def _product(m: int, k: int, n: int) -> Build:
    def build(tg: Any) -> Step:
        tg.manual_seed(0)
        a, b = tg.randn(m, k), tg.randn(k, n)
        return lambda: a @ b

    return build


#: name, batch, channels in and out, height, kernel, stride, padding, groups: ResNet-18 and MobileNet
CONVOLUTIONS = (
    ("stem7", 1, 3, 64, 224, 7, 2, 3, 1), ("r64", 4, 64, 64, 56, 3, 1, 1, 1),
    ("r64b1", 1, 64, 64, 56, 3, 1, 1, 1),
    ("r64-128s2", 4, 64, 128, 56, 3, 2, 1, 1), ("r64-128p", 4, 64, 128, 56, 1, 2, 0, 1),
    ("r128", 4, 128, 128, 28, 3, 1, 1, 1), ("r128-256s2", 4, 128, 256, 28, 3, 2, 1, 1),
    ("r128-256p", 4, 128, 256, 28, 1, 2, 0, 1), ("r256", 4, 256, 256, 14, 3, 1, 1, 1),
    ("r256-512s2", 4, 256, 512, 14, 3, 2, 1, 1), ("r512", 4, 512, 512, 7, 3, 1, 1, 1),
    ("m-stem", 4, 3, 32, 112, 3, 2, 1, 1), ("m32dw", 4, 32, 32, 56, 3, 1, 1, 32),
    ("m32-64", 4, 32, 64, 56, 1, 1, 0, 1), ("m64dws2", 4, 64, 64, 56, 3, 2, 1, 64),
    ("m128dw", 4, 128, 128, 28, 3, 1, 1, 128), ("m128-256", 4, 128, 256, 28, 1, 1, 0, 1),
    ("m256dw", 4, 256, 256, 14, 3, 1, 1, 256), ("m512-512", 4, 512, 512, 14, 1, 1, 0, 1),
    ("m512dw5", 4, 512, 512, 14, 5, 1, 2, 512),
)  # fmt: skip


def _convolution(b: int, c: int, o: int, size: int, k: int, stride: int, padding: int, groups: int) -> Build:
    def build(tg: Any) -> Step:
        tg.manual_seed(0)
        conv = tg.nn.functional.conv2d
        x = tg.randn(b, c, size, size, requires_grad=True)
        w = tg.randn(o, c // groups, k, k, requires_grad=True)
        g = tg.randn(conv(x, w, None, stride, padding, 1, groups).shape)

        def step() -> Any:
            x.grad = w.grad = None
            y = conv(x, w, None, stride, padding, 1, groups)
            y.backward(g)
            return y, x.grad, w.grad

        return step

    return build


KERNELS = (
    Workload("pointwise-chain", _chain, _chain_jax),
    Workload("softmax-cross-entropy", _softmax, _softmax_jax, lazy=False),
    Workload("embedding-bag", _bag, _bag_jax, lazy=False),
    *(
        Workload(
            f"matmul-{m}x{k}x{n}",
            _product(m, k, n),
            lazy=False,
            threads=1,
            family="matmul",
            flops=2 * m * k * n,
        )
        for m, k, n in PRODUCTS
    ),
    *(
        Workload(f"conv-{name}", _convolution(*given), lazy=False, threads=1, family="conv")
        for name, *given in CONVOLUTIONS
    ),
)
