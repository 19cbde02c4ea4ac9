"""A transformer of two layers: width 128, 4 heads, 64 places, batch 16, AdamW."""

from __future__ import annotations

from typing import Any

from .. import in_jax
from ..record import Step, Workload
from .block import block_class

WIDTH, HEADS, TIME, BATCH, LAYERS, LETTERS = 128, 4, 64, 16, 2, 96


def _model(tg: Any) -> Step:
    tg.manual_seed(0)
    nn, F = tg.nn, tg.nn.functional
    block = block_class(tg, WIDTH, HEADS)
    letter, place = nn.Embedding(LETTERS, WIDTH), nn.Embedding(TIME, WIDTH)
    blocks, norm = nn.Sequential(*(block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH)
    head = nn.Linear(WIDTH, LETTERS)
    x, y = tg.randint(LETTERS, (BATCH, TIME)), tg.randint(LETTERS, (BATCH, TIME))
    places = tg.arange(TIME)
    parts = nn.ModuleList([letter, place, blocks, norm, head])
    opt = tg.optim.AdamW(parts.parameters(), lr=1e-3)

    def step() -> Any:
        opt.zero_grad()
        logits = head(norm(blocks(letter(x) + place(places))))
        loss = F.cross_entropy(logits.view(-1, LETTERS), y.view(-1))
        loss.backward()
        opt.step()
        return loss

    return step


def _jax() -> Step:
    import jax
    import jax.numpy as jnp

    keys = in_jax.Keys()

    def linear(a: int, b: int) -> Any:
        return keys(a, b, scale=a**-0.5), jnp.zeros(b)

    def scales() -> Any:
        return jnp.ones(WIDTH), jnp.zeros(WIDTH)  # arrays of their own: they are donated

    def block() -> Any:
        return {
            "norm1": scales(), "norm2": scales(), "qkv": linear(WIDTH, 3 * WIDTH),
            "out": linear(WIDTH, WIDTH), "up": linear(WIDTH, 4 * WIDTH), "down": linear(4 * WIDTH, WIDTH),
        }  # fmt: skip

    params = {
        "letter": keys(LETTERS, WIDTH), "place": keys(TIME, WIDTH),
        "blocks": [block() for _ in range(LAYERS)],
        "norm": scales(), "head": linear(WIDTH, LETTERS),
    }  # fmt: skip

    def norm(x: Any, p: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[0] + p[1]

    def attend(x: Any, p: Any) -> Any:
        parts = (x @ p["qkv"][0] + p["qkv"][1]).reshape(BATCH, TIME, 3, HEADS, WIDTH // HEADS)
        q, k, v = jnp.moveaxis(parts, (2, 3), (0, 2))
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones((TIME, TIME), bool)), scores, -jnp.inf)
        y = jnp.einsum("bhqk,bhkd->bqhd", jax.nn.softmax(scores), v).reshape(BATCH, TIME, WIDTH)
        return y @ p["out"][0] + p["out"][1]

    def loss(p: Any, x: Any, y: Any) -> Any:
        h = p["letter"][x] + p["place"]
        for b in p["blocks"]:
            h = h + attend(norm(h, b["norm1"]), b)
            up = jax.nn.gelu(norm(h, b["norm2"]) @ b["up"][0] + b["up"][1], approximate=False)
            h = h + up @ b["down"][0] + b["down"][1]
        logits = norm(h, p["norm"]) @ p["head"][0] + p["head"][1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], 2).mean()

    data = keys.integers(LETTERS, BATCH, TIME), keys.integers(LETTERS, BATCH, TIME)
    return in_jax.train(params, loss, in_jax.adam(1e-3, 0.01), *data)


TRANSFORMERS = (Workload("transformer-adamw", _model, _jax),)
