"""The steps of workloads.py in plain JAX, as a careful JAX user writes them: jitted whole, buffers donated.
They don't wait for their results; who times them does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import in_jax
from ..record import Step

Sizes = dict[str, int]


def _cast(tree: Any, dtype: str) -> Any:
    import jax
    import jax.numpy as jnp

    wanted = jnp.dtype(dtype)
    return jax.tree.map(lambda a: a.astype(wanted) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _train(params: Any, loss: Callable[..., Any], lr: float, *data: Any) -> Step:
    """As `in_jax.train`, with AdamW, without waiting."""
    import jax

    init, update = in_jax.adam(lr, 0.01)

    def body(p: Any, s: Any, *d: Any) -> Any:
        value, g = jax.value_and_grad(loss)(p, *d)
        new, s = update(p, g, s)
        return jax.tree.map(lambda a, b: a.astype(b.dtype), new, p), s, value

    jitted = jax.jit(body, donate_argnums=(0, 1))
    state = [params, init(params)]

    def step() -> Any:
        state[0], state[1], value = jitted(state[0], state[1], *data)
        return value

    return step


def _linear(keys: Any, a: int, b: int) -> Any:
    import jax.numpy as jnp

    return keys(a, b, scale=a**-0.5), jnp.zeros(b)


def _cross_entropy(logits: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), y[..., None], -1).mean()


def mlp(s: Sizes, dtype: str) -> Step:
    import jax

    keys = in_jax.Keys()
    n = s["width"]
    params = _cast([_linear(keys, s["inputs"], n), _linear(keys, n, n), _linear(keys, n, 10)], dtype)

    def loss(p: Any, x: Any, y: Any) -> Any:
        for w, b in p[:-1]:
            x = jax.nn.relu(x @ w + b)
        return _cross_entropy(x @ p[-1][0] + p[-1][1], y)

    data = _cast((keys(s["batch"], s["inputs"]), keys.integers(10, s["batch"])), dtype)
    return _train(params, loss, 1e-3, *data)


def convnet(s: Sizes, dtype: str) -> Step:
    import jax
    import jax.numpy as jnp
    from jax import lax

    keys = in_jax.Keys()
    c, side = s["channels"], ((s["side"] - 4) // 2) ** 2
    params = _cast(
        {
            "c1": (keys(c, 1, 3, 3, scale=1 / 3), jnp.zeros(c)),
            "c2": (keys(2 * c, c, 3, 3, scale=(9 * c) ** -0.5), jnp.zeros(2 * c)),
            "l1": _linear(keys, 2 * c * side, 4 * c), "l2": _linear(keys, 4 * c, 10),
        },
        dtype,
    )  # fmt: skip

    def conv(x: Any, w: Any, b: Any) -> Any:
        how = ("NCHW", "OIHW", "NCHW")
        out = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=how)
        return jax.nn.relu(out + b[:, None, None])

    def loss(p: Any, x: Any, y: Any) -> Any:
        x = conv(conv(x, *p["c1"]), *p["c2"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID").reshape(len(x), -1)
        x = jax.nn.relu(x @ p["l1"][0] + p["l1"][1])
        return _cross_entropy(x @ p["l2"][0] + p["l2"][1], y)

    data = _cast((keys(s["batch"], 1, s["side"], s["side"]), keys.integers(10, s["batch"])), dtype)
    return _train(params, loss, 1e-3, *data)


def _block(keys: Any, width: int) -> Any:
    import jax.numpy as jnp

    def scales() -> Any:
        return jnp.ones(width), jnp.zeros(width)

    return {
        "norm1": scales(), "norm2": scales(), "qkv": _linear(keys, width, 3 * width),
        "out": _linear(keys, width, width), "up": _linear(keys, width, 4 * width),
        "down": _linear(keys, 4 * width, width),
    }  # fmt: skip


def _norm(x: Any, p: Any) -> Any:
    import jax

    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[0] + p[1]


def _through(x: Any, p: Any, heads: int) -> Any:
    """One block; attention is JAX's own function."""
    import jax
    import jax.numpy as jnp

    batch, time, width = x.shape
    h = _norm(x, p["norm1"])
    parts = (h @ p["qkv"][0] + p["qkv"][1]).reshape(batch, time, 3, heads, width // heads)
    q, k, v = jnp.moveaxis(parts, 2, 0)
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, time, width)
    x = x + y @ p["out"][0] + p["out"][1]
    up = jax.nn.gelu(_norm(x, p["norm2"]) @ p["up"][0] + p["up"][1], approximate=False)
    return x + up @ p["down"][0] + p["down"][1]


def transformer(s: Sizes, dtype: str) -> Step:
    import jax.numpy as jnp

    keys = in_jax.Keys()
    width, letters = s["width"], s["letters"]
    params = _cast(
        {
            "letter": keys(letters, width), "place": keys(s["time"], width),
            "blocks": [_block(keys, width) for _ in range(s["layers"])],
            "norm": (jnp.ones(width), jnp.zeros(width)), "head": _linear(keys, width, letters),
        },
        dtype,
    )  # fmt: skip

    def loss(p: Any, x: Any, y: Any) -> Any:
        h = p["letter"][x] + p["place"]
        for b in p["blocks"]:
            h = _through(h, b, s["heads"])
        return _cross_entropy(_norm(h, p["norm"]) @ p["head"][0] + p["head"][1], y)

    shape = s["batch"], s["time"]
    return _train(params, loss, 1e-3, keys.integers(letters, *shape), keys.integers(letters, *shape))


def gpt2_block(s: Sizes, dtype: str) -> Step:
    import jax.numpy as jnp

    keys = in_jax.Keys()
    params = _cast(_block(keys, s["width"]), dtype)

    def loss(p: Any, x: Any) -> Any:
        return (_through(x, p, s["heads"]).astype(jnp.float32) ** 2).mean()

    return _train(params, loss, 1e-4, _cast(keys(s["batch"], s["time"], s["width"]), dtype))


def _run(f: Callable[..., Any], *data: Any) -> Step:
    import jax

    jitted = jax.jit(f)
    return lambda: jitted(*data)


def matmul(s: Sizes, dtype: str) -> Step:
    keys = in_jax.Keys()
    return _run(lambda a, b: a @ b, *_cast((keys(s["n"], s["n"]), keys(s["n"], s["n"])), dtype))


def softmax(s: Sizes, dtype: str) -> Step:
    import jax

    return _run(lambda x: jax.nn.softmax(x, -1), _cast(in_jax.Keys()(s["rows"], s["columns"]), dtype))


def gelu_chain(s: Sizes, dtype: str) -> Step:
    import jax

    keys = in_jax.Keys()

    def chain(x: Any, y: Any) -> Any:
        return jax.nn.gelu(x * 2 + y, approximate=False) * jax.nn.sigmoid(y)

    return _run(chain, *_cast((keys(s["n"]), keys(s["n"])), dtype))
