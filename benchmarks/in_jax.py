"""Training steps in plain JAX: `train` turns parameters and a loss into a jitted step with an optimiser, as a
careful JAX user writes it (buffers donated, optimiser fused into the step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Params = Any


def sgd(lr: float, momentum: float = 0.0) -> tuple[Any, Any]:
    """(init, update) of stochastic gradient descent."""
    import jax

    def init(p: Params) -> Any:
        return jax.tree.map(lambda a: a * 0, p) if momentum else ()

    def update(p: Params, g: Params, s: Any) -> tuple[Params, Any]:
        if momentum:
            s = g = jax.tree.map(lambda m, b: momentum * m + b, s, g)
        return jax.tree.map(lambda a, b: a - lr * b, p, g), s

    return init, update


def adam(lr: float, weight_decay: float = 0.0) -> tuple[Any, Any]:
    """(init, update) of Adam, with decoupled decay if any."""
    import jax
    import jax.numpy as jnp

    def init(p: Params) -> Any:
        return jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p), jnp.float32(0)

    def update(p: Params, g: Params, s: Any) -> tuple[Params, Any]:
        m, v, t = s
        t = t + 1
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        p = jax.tree.map(
            lambda a, b, c: a * (1 - lr * weight_decay) - lr * (b / c1) / (jnp.sqrt(c / c2) + 1e-8), p, m, v
        )
        return p, (m, v, t)

    return init, update


def train(params: Params, loss: Callable[..., Any], optimizer: tuple[Any, Any], *data: Any) -> Any:
    """A step that trains `params` on `loss(params, *data)` and waits for the loss."""
    import jax

    init, update = optimizer

    def body(p: Params, s: Any, *d: Any) -> Any:
        value, g = jax.value_and_grad(loss)(p, *d)
        p, s = update(p, g, s)
        return p, s, value

    jitted = jax.jit(body, donate_argnums=(0, 1))
    state = [params, init(params)]

    def step() -> Any:
        state[0], state[1], value = jitted(state[0], state[1], *data)
        return value.block_until_ready()

    return step


def run(f: Callable[..., Any], *data: Any) -> Any:
    """A step that calls the jitted `f` and waits for all it returns."""
    import jax

    jitted = jax.jit(f)
    return lambda: jax.block_until_ready(jitted(*data))


class Keys:
    """Random arrays from one seed: `keys(64, 10, scale=0.1)`."""

    def __init__(self, seed: int = 0) -> None:
        import jax

        self.key = jax.random.PRNGKey(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Any:
        import jax

        self.key, use = jax.random.split(self.key)
        return jax.random.normal(use, shape) * scale

    def integers(self, high: int, *shape: int) -> Any:
        """Integers below `high`."""
        import jax

        self.key, use = jax.random.split(self.key)
        return jax.random.randint(use, shape, 0, high)
