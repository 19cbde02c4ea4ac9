"""LSTM and GRU: 16 inputs, 64 hidden units, 50 steps, batch 32."""

from __future__ import annotations

from typing import Any

from .. import in_jax
from ..record import Build, Step, Workload

INPUTS, HIDDEN, TIME, BATCH = 16, 64, 50, 32


def _model(kind: str) -> Build:
    def build(tg: Any) -> Step:
        tg.manual_seed(0)
        nn = tg.nn
        layer, head = getattr(nn, kind)(INPUTS, HIDDEN), nn.Linear(HIDDEN, 1)
        x, y = tg.randn(TIME, BATCH, INPUTS), tg.randn(TIME, BATCH, 1)
        opt = tg.optim.Adam([*layer.parameters(), *head.parameters()], lr=1e-3)

        def step() -> Any:
            opt.zero_grad()
            loss = nn.functional.mse_loss(head(layer(x)[0]), y)
            loss.backward()
            opt.step()
            return loss

        return step

    return build


def _lstm_cell(jax: Any, state: Any, gates: Any, w: Any, b: Any) -> Any:
    h, c = state
    i, f, g, o = jax.numpy.split(gates + h @ w.T + b, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
    return (h, c), h


def _gru_cell(jax: Any, h: Any, gates: Any, w: Any, b: Any) -> Any:
    r, z, n = jax.numpy.split(gates, 3, axis=-1)
    hr, hz, hn = jax.numpy.split(h @ w.T + b, 3, axis=-1)
    r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
    n = jax.numpy.tanh(n + r * hn)
    h = (1 - z) * n + z * h
    return h, h


def _jax(kind: str) -> Any:
    def build() -> Step:
        import jax
        import jax.numpy as jnp

        keys = in_jax.Keys()
        rows = (4 if kind == "LSTM" else 3) * HIDDEN
        params = [
            keys(rows, INPUTS, scale=0.1), jnp.zeros(rows), keys(rows, HIDDEN, scale=0.1), jnp.zeros(rows),
            keys(1, HIDDEN, scale=0.1), jnp.zeros(1),
        ]  # fmt: skip
        cell = _lstm_cell if kind == "LSTM" else _gru_cell

        def loss(p: Any, x: Any, y: Any) -> Any:
            zero = jnp.zeros((BATCH, HIDDEN))
            first = (zero, zero) if kind == "LSTM" else zero
            _, hs = jax.lax.scan(lambda s, g: cell(jax, s, g, p[2], p[3]), first, x @ p[0].T + p[1])
            return ((hs @ p[4].T + p[5] - y) ** 2).mean()

        data = keys(TIME, BATCH, INPUTS), keys(TIME, BATCH, 1)
        return in_jax.train(params, loss, in_jax.adam(1e-3), *data)

    return build


RECURRENT = tuple(Workload(k.lower(), _model(k), _jax(k)) for k in ("LSTM", "GRU"))
