"""Fully connected nets, and the Rosenbrock descent: where dispatch costs more than arithmetic."""

from __future__ import annotations

import itertools
from typing import Any

from .. import in_jax
from ..record import Build, Step, Workload


def _mlp(sizes: tuple[int, ...], batch: int, optimizer: str, lr: float, classes: bool) -> Build:
    def build(tg: Any) -> Step:
        tg.manual_seed(0)
        nn = tg.nn
        layers: list[Any] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        x = tg.randn(batch, sizes[0])
        y = tg.randint(sizes[-1], (batch,)) if classes else tg.randn(batch, sizes[-1])
        opt = getattr(tg.optim, optimizer)(model.parameters(), lr=lr)

        def step() -> Any:
            opt.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y) if classes else ((model(x) - y) ** 2).sum()
            loss.backward()
            opt.step()
            return loss

        return step

    return build


def _mlp_jax(sizes: tuple[int, ...], batch: int, optimizer: str, lr: float, classes: bool) -> Any:
    def build() -> Step:
        import jax
        import jax.numpy as jnp

        keys = in_jax.Keys()
        params = [(keys(b, a, scale=a**-0.5), jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]
        x = keys(batch, sizes[0])
        y = keys.integers(sizes[-1], batch) if classes else keys(batch, sizes[-1])

        def loss(p: Any, x: Any, y: Any) -> Any:
            for w, b in p[:-1]:
                x = jax.nn.relu(x @ w.T + b)
            x = x @ p[-1][0].T + p[-1][1]
            if classes:
                return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()
            return ((x - y) ** 2).sum()

        return in_jax.train(params, loss, in_jax.adam(lr) if optimizer == "Adam" else in_jax.sgd(lr), x, y)

    return build


def _net(
    name: str, sizes: tuple[int, ...], batch: int, optimizer: str, lr: float, classes: bool, **more: Any
) -> Workload:
    given = (sizes, batch, optimizer, lr, classes)
    return Workload(name, _mlp(*given), _mlp_jax(*given), **more)


def _rosenbrock(tg: Any) -> Step:
    x = tg.tensor([-1.0, 1.0], requires_grad=True)

    def step() -> Any:
        value = (1 - x[0]) ** 2 + 5 * (x[1] - x[0] ** 2) ** 2
        x.grad = None
        value.backward()
        with tg.no_grad():
            x.sub_(0.01 * x.grad)
        return value

    return step


def _rosenbrock_jax() -> Step:
    import jax.numpy as jnp

    def value(x: Any) -> Any:
        return (1 - x[0]) ** 2 + 5 * (x[1] - x[0] ** 2) ** 2

    return in_jax.train(jnp.array([-1.0, 1.0]), value, in_jax.sgd(0.01))


NETS = (
    _net("net-3-32-1-adam", (3, 32, 1), 100, "Adam", 0.08, False, repeat=100),
    Workload("rosenbrock", _rosenbrock, _rosenbrock_jax, repeat=1000),
    _net("net-1000-100-10-sgd", (1000, 100, 10), 64, "SGD", 1e-4, False, repeat=100),
    _net("mlp-784-1024-1024-10-adam", (784, 1024, 1024, 10), 256, "Adam", 1e-3, True),
)
