"""The workloads, one function per contender: each gives a callable that runs one step, and how many steps a
call is.

`ours` and `torch` read alike on purpose. Nothing is timed here (worker.py does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Step = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """One workload.

    Attributes:
        contenders: name -> function that sets up and gives (step, steps per call).
        threads: threads every contender gets.
        flops: of one step, for the floor; 0 where dispatch dominates.
    """

    name: str
    contenders: dict[str, Callable[[], tuple[Step, int]]]
    threads: int = 1
    flops: int = 0


def _module_step(
    tg: Any, sizes: tuple[int, int, int], batch: int, adam: bool, compiled: bool
) -> tuple[Any, Any]:
    tg.manual_seed(0)
    x, y = tg.randn(batch, sizes[0]), tg.randn(batch, sizes[2])
    nn = tg.nn
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2]))
    params = list(model.parameters())
    opt = tg.optim.Adam(params, lr=0.08) if adam else tg.optim.SGD(params, lr=1e-4)

    def step() -> Any:
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).sum()
        loss.backward()
        opt.step()
        return loss

    return step, model


def _ours(sizes: tuple[int, int, int], batch: int, adam: bool, mode: str) -> tuple[Step, int]:
    import tracegrad as tg

    step, _ = _module_step(tg, sizes, batch, adam, True)
    if mode == "lazy":
        return lambda: step().item(), 1
    compiled = tg.compile(step)
    if mode == "repeat":
        return lambda: compiled.repeat(100), 100
    return compiled, 1


def _torch(sizes: tuple[int, int, int], batch: int, adam: bool, mode: str) -> tuple[Step, int]:
    import torch

    step, _ = _module_step(torch, sizes, batch, adam, False)
    if mode == "compile":
        step = torch.compile(step)
    return step, 1


def _jax(sizes: tuple[int, int, int], batch: int, adam: bool) -> tuple[Step, int]:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    x, y = jax.random.normal(keys[0], (batch, sizes[0])), jax.random.normal(keys[1], (batch, sizes[2]))
    params = [
        jax.random.normal(keys[2], (sizes[1], sizes[0])) / sizes[0] ** 0.5,
        jnp.zeros(sizes[1]),
        jax.random.normal(keys[3], (sizes[2], sizes[1])) / sizes[1] ** 0.5,
        jnp.zeros(sizes[2]),
    ]

    def loss_of(p: Any) -> Any:
        h = jax.nn.relu(x @ p[0].T + p[1])
        return (((h @ p[2].T + p[3]) - y) ** 2).sum()

    def sgd(p: Any, s: Any) -> Any:
        loss, g = jax.value_and_grad(loss_of)(p)
        return [a - 1e-4 * b for a, b in zip(p, g)], s, loss

    def adam_step(p: Any, s: Any) -> Any:
        m, v, t = s
        loss, g = jax.value_and_grad(loss_of)(p)
        t = t + 1
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g)]
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        p = [a - 0.08 * (b / c1) / (jnp.sqrt(c / c2) + 1e-8) for a, b, c in zip(p, m, v)]
        return p, (m, v, t), loss

    jitted = jax.jit(adam_step if adam else sgd, donate_argnums=(0, 1))
    zeros = [jnp.zeros_like(p) for p in params]
    state = [params, (zeros, [jnp.zeros_like(p) for p in params], jnp.float32(0))]

    def step() -> Any:
        state[0], state[1], loss = jitted(state[0], state[1])
        loss.block_until_ready()
        return loss

    return step, 1


def _net(name: str, sizes: tuple[int, int, int], batch: int, adam: bool) -> Workload:
    return Workload(
        name,
        {
            "tracegrad": lambda: _ours(sizes, batch, adam, "call"),
            "tracegrad.repeat": lambda: _ours(sizes, batch, adam, "repeat"),
            "tracegrad.lazy": lambda: _ours(sizes, batch, adam, "lazy"),
            "torch": lambda: _torch(sizes, batch, adam, "eager"),
            "jax": lambda: _jax(sizes, batch, adam),
            "torch.compile": lambda: _torch(sizes, batch, adam, "compile"),
        },
    )


def _matmul(n: int) -> Workload:
    def ours() -> tuple[Step, int]:
        import tracegrad as tg

        tg.manual_seed(0)
        a, b = tg.randn(n, n), tg.randn(n, n)
        return tg.compile(lambda: a @ b), 1

    def torch_() -> tuple[Step, int]:
        import torch

        a, b = torch.randn(n, n), torch.randn(n, n)
        return (lambda: a @ b), 1

    def jax_() -> tuple[Step, int]:
        import jax

        a = jax.random.normal(jax.random.PRNGKey(0), (n, n))
        f = jax.jit(lambda x, y: x @ y)
        return (lambda: f(a, a).block_until_ready()), 1

    return Workload(f"matmul-{n}", {"tracegrad": ours, "torch": torch_, "jax": jax_}, flops=2 * n**3)


def _rosenbrock() -> Workload:
    def body(tg: Any) -> Step:
        x = tg.tensor([-1.0, 1.0], requires_grad=True)

        def step() -> Any:
            value = (1 - x[0]) ** 2 + 5 * (x[1] - x[0] ** 2) ** 2
            x.grad = None
            value.backward()
            with tg.no_grad():
                x.sub_(0.01 * x.grad)
            return value

        return step

    def ours() -> tuple[Step, int]:
        import tracegrad as tg

        return tg.compile(body(tg)), 1

    def repeated() -> tuple[Step, int]:
        import tracegrad as tg

        step = tg.compile(body(tg))
        return (lambda: step.repeat(1000)), 1000

    def torch_() -> tuple[Step, int]:
        import torch

        return body(torch), 1

    def jax_() -> tuple[Step, int]:
        import jax
        import jax.numpy as jnp

        def f(x: Any) -> Any:
            return (1 - x[0]) ** 2 + 5 * (x[1] - x[0] ** 2) ** 2

        @jax.jit
        def update(x: Any) -> Any:
            v, g = jax.value_and_grad(f)(x)
            return v, x - 0.01 * g

        state = [jnp.array([-1.0, 1.0])]

        def step() -> Any:
            v, state[0] = update(state[0])
            v.block_until_ready()

        return step, 1

    return Workload(
        "rosenbrock", {"tracegrad": ours, "tracegrad.repeat": repeated, "torch": torch_, "jax": jax_}
    )


WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        _net("net-3-32-1-adam", (3, 32, 1), 100, True),
        _net("net-1000-100-10-sgd", (1000, 100, 10), 64, False),
        _rosenbrock(),
        _matmul(512),
    )
}
