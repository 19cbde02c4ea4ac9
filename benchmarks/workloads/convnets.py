"""Convolutional nets: LeNet's shape, the Tiny ImageNet net of the project's seeds, one residual block."""

from __future__ import annotations

import itertools
from typing import Any

from .. import in_jax
from ..record import Step, Workload


def _train(tg: Any, model: Any, opt: Any, x: Any, y: Any) -> Step:
    def step() -> Any:
        opt.zero_grad()
        loss = tg.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return step


def _lenet(tg: Any) -> Step:
    tg.manual_seed(0)
    nn = tg.nn
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    opt = tg.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return _train(tg, model, opt, tg.randn(32, 1, 28, 28), tg.randint(10, (32,)))


def _conv(x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0) -> Any:
    from jax import lax

    pads = [(padding, padding)] * 2
    out = lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return out + b[:, None, None]


def _max_pool(x: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def _cross_entropy(logits: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def _lenet_jax() -> Step:
    import jax
    import jax.numpy as jnp

    keys = in_jax.Keys()
    params = {
        "c1": (keys(32, 1, 3, 3, scale=1 / 3), jnp.zeros(32)),
        "c2": (keys(64, 32, 3, 3, scale=1 / 17), jnp.zeros(64)),
        "l1": (keys(9216, 128, scale=1 / 96), jnp.zeros(128)),
        "l2": (keys(128, 10, scale=1 / 11), jnp.zeros(10)),
    }

    def loss(p: Any, x: Any, y: Any) -> Any:
        x = jax.nn.relu(_conv(x, *p["c1"]))
        x = _max_pool(jax.nn.relu(_conv(x, *p["c2"]))).reshape(len(x), -1)
        x = jax.nn.relu(x @ p["l1"][0] + p["l1"][1])
        return _cross_entropy(x @ p["l2"][0] + p["l2"][1], y)

    return in_jax.train(params, loss, in_jax.sgd(0.01, 0.9), keys(32, 1, 28, 28), keys.integers(10, 32))


WIDTHS = (3, 64, 128, 256, 512, 1024)


def _tiny_imagenet(tg: Any) -> Step:
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[Any] = []
    for a, b in itertools.pairwise(WIDTHS):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 200))
    opt = tg.optim.Adam(model.parameters(), lr=1e-3)
    return _train(tg, model, opt, tg.randn(4, 3, 64, 64), tg.randint(200, (4,)))


def _batch_norm(x: Any, weight: Any, bias: Any) -> Any:
    from jax import lax

    mean = x.mean((0, 2, 3), keepdims=True)
    centred = x - mean
    scale = lax.rsqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    return centred * scale * weight[:, None, None] + bias[:, None, None]


def _tiny_imagenet_jax() -> Step:
    import jax
    import jax.numpy as jnp

    keys = in_jax.Keys()
    convs = [
        (keys(b, a, 3, 3, scale=(9 * a) ** -0.5), jnp.zeros(b), jnp.ones(b), jnp.zeros(b))
        for a, b in itertools.pairwise(WIDTHS)
    ]
    params = convs, (keys(4096, 200, scale=1 / 64), jnp.zeros(200))

    def loss(p: Any, x: Any, y: Any) -> Any:
        for w, b, scale, shift in p[0]:
            x = _max_pool(jax.nn.relu(_batch_norm(_conv(x, w, b, padding=1), scale, shift)))
        return _cross_entropy(x.reshape(len(x), -1) @ p[1][0] + p[1][1], y)

    return in_jax.train(params, loss, in_jax.adam(1e-3), keys(4, 3, 64, 64), keys.integers(200, 4))


def _residual(tg: Any) -> Step:
    """Batch norm, ReLU and a residual sum, forward and backward."""
    tg.manual_seed(0)
    norm = tg.nn.BatchNorm2d(64)
    x = tg.randn(32, 64, 28, 28, requires_grad=True)
    g = tg.randn(32, 64, 28, 28)

    def step() -> Any:
        norm.zero_grad()
        x.grad = None
        y = tg.relu(norm(x) + x)
        y.backward(g)
        return y, x.grad

    return step


def _residual_jax() -> Step:
    import jax
    import jax.numpy as jnp

    keys = in_jax.Keys()

    def f(x: Any, w: Any, b: Any, g: Any) -> Any:
        y, pull = jax.vjp(lambda x, w, b: jax.nn.relu(_batch_norm(x, w, b) + x), x, w, b)
        return y, pull(g)

    return in_jax.run(f, keys(32, 64, 28, 28), jnp.ones(64), jnp.zeros(64), keys(32, 64, 28, 28))


CONVNETS = (
    Workload("lenet-sgd", _lenet, _lenet_jax),
    Workload("tiny-imagenet-adam", _tiny_imagenet, _tiny_imagenet_jax),
    Workload("batch-norm-residual", _residual, _residual_jax, lazy=False),
)
