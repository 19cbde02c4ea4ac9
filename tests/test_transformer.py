"""Attention and transformer layers: shapes, masks, errors; weights, outputs and gradients like PyTorch's."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.nn import functional as F


def close(a: Any, b: Any, rtol: float = 2e-5, atol: float = 3e-6) -> None:
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=rtol, atol=atol)


def test_weights_are_probabilities_and_masks_hold() -> None:
    tg.manual_seed(0)
    m = tg.nn.MultiheadAttention(8, 2, batch_first=True)
    x = tg.randn(3, 5, 8)
    mask = tg.nn.Transformer.generate_square_subsequent_mask(5)
    out, w = m(x, x, x, attn_mask=mask)
    assert out.shape == (3, 5, 8) and w.shape == (3, 5, 5)
    np.testing.assert_allclose(w.sum(-1).detach().numpy(), 1, rtol=1e-5)
    assert (w.detach().numpy()[:, np.triu(np.ones((5, 5), bool), 1)] == 0).all()
    padding = tg.tensor([[False] * 3 + [True] * 2] * 3)
    _, w = m(x, x, x, key_padding_mask=padding, average_attn_weights=False)
    assert w.shape == (3, 2, 5, 5) and (w[..., 3:] == 0).all()
    changed = x.clone()
    changed[:, 3:] = 100.0
    a, b = (m(x, y, y, key_padding_mask=padding, need_weights=False)[0] for y in (x, changed))
    close(a, b)
    # With the hint the mask itself is not read.
    close(m(x, x, x, attn_mask=mask, need_weights=False)[0],
          m(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)[0])  # fmt: skip


def test_compiled_training_of_an_encoder() -> None:
    tg.manual_seed(0)
    layer = tg.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = tg.nn.Sequential(tg.nn.TransformerEncoder(layer, 2), tg.nn.Linear(8, 1))
    x = tg.randn(4, 6, 8)
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def train(wrap: Any) -> list[float]:
        model.load_state_dict(start)
        optimizer = tg.optim.Adam(model.parameters(), lr=0.01)

        def step() -> Any:
            optimizer.zero_grad()
            loss = ((model(x) - x.sum(-1, keepdim=True)) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss

        run = wrap(step)
        return [float(run()) for _ in range(15)]

    plain, compiled = train(lambda f: f), train(tg.compile)
    np.testing.assert_allclose(plain, compiled, rtol=1e-4)
    assert plain[-1] < 0.7 * plain[0]


def test_dropout_acts_in_training_only() -> None:
    tg.manual_seed(0)
    model = tg.nn.Transformer(8, 2, 1, 1, 16, dropout=0.5)
    src, tgt = tg.randn(3, 2, 8), tg.randn(4, 2, 8)
    assert not np.allclose(model(src, tgt).detach().numpy(), model(src, tgt).detach().numpy(), atol=0.1)
    model.eval()
    close(model(src, tgt), model(src, tgt))


def test_attention_with_dropout_and_grouped_heads() -> None:
    tg.manual_seed(0)
    q, k = tg.randn(2, 4, 3, 8), tg.randn(2, 2, 5, 8)
    grouped = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    each = k.repeat_interleave(2, 1)
    close(grouped, F.scaled_dot_product_attention(q, each, each))
    ones = tg.ones(2, 2, 5, 8)
    dropped = F.scaled_dot_product_attention(q[:, :2], k, ones, dropout_p=0.5).detach().numpy()
    assert (dropped != 1).any() and 0.6 < dropped.mean() < 1.4
    mask = tg.tensor([[True] * 5, [False] * 5, [True] * 5])
    out = F.scaled_dot_product_attention(q[:, :2], k, k, mask, dropout_p=1e-9)
    close(out, F.scaled_dot_product_attention(q[:, :2], k, k, mask))
    with pytest.raises(tg.TracegradError, match="multiple of the others"):
        F.scaled_dot_product_attention(q, tg.randn(2, 3, 5, 8), k, enable_gqa=True)


def test_errors() -> None:
    n = tg.nn
    x = tg.randn(4, 2, 8)
    m = n.MultiheadAttention(8, 2)
    for make, text in [
        (lambda: n.MultiheadAttention(8, 3), "multiple of num_heads"),
        (lambda: m(x, x[:, :, :4], x), "one shape"),
        (lambda: m(x[0, 0], x, x), "2 or 3 dimensions"),
        (lambda: m(x[..., :4], x, x), "8 features"),
        (lambda: m(x, x, x, attn_mask=tg.zeros(3, 4)), r"attn_mask must be of shape \[4, 4\] or \[4, 4, 4\]"),
        (lambda: m(x, x, x, key_padding_mask=tg.zeros(2, 3)), r"\[2, 4\]"),
        (lambda: m(x, x, x, attn_mask=tg.zeros(4, 4, dtype=tg.int64)), "bool or floats"),
        (lambda: m(x, x, x, is_causal=True), "generate_square_subsequent_mask"),
        (lambda: n.TransformerEncoderLayer(8, 2, activation="swish"), "activation"),
        (lambda: n.Transformer(8, 2, 1, 1, 8)(x, x[:, :1]), "one batch size"),
        (lambda: n.Transformer(8, 2, 1, 1, 8)(x, x[..., :4]), "8 features"),
    ]:
        with pytest.raises(tg.TracegradError, match=text):
            make()


# --- against PyTorch ---


def _attention(lib: Any, options: Any, same: str, masks: str, weights: bool, batched: bool) -> list[Any]:
    lib.manual_seed(0)
    m = lib.nn.MultiheadAttention(8, 2, **options)
    g = np.random.default_rng(0)

    def made(n: int, e: int) -> Any:
        a = g.normal(size=(n, 3, e)).astype(np.float32)
        if not batched:
            a = a[:, 0]
        elif options.get("batch_first"):
            a = np.ascontiguousarray(a.swapaxes(0, 1))
        return lib.from_numpy(a.copy()).requires_grad_()

    q = made(4, 8)
    k = q if same == "qkv" else made(5, options.get("kdim", 8))
    v = k if same != "none" else made(5, options.get("vdim", 8))
    keys, batch = (4 if same == "qkv" else 5), (3 if batched else 1)
    held = g.random((4, keys)) < 0.3
    padding = g.random((batch, keys)) < 0.3
    held[:, 0] = padding[:, 0] = False
    given: dict[str, Any] = {}
    if "bool" in masks:
        given["attn_mask"] = lib.from_numpy(held)
    if masks == "float":
        given["attn_mask"] = lib.from_numpy(g.normal(size=(4, keys)).astype(np.float32))
    if masks == "heads":
        given["attn_mask"] = lib.from_numpy(g.normal(size=(batch * 2, 4, keys)).astype(np.float32))
    if "padding" in masks:
        given["key_padding_mask"] = lib.from_numpy(padding if batched else padding[0])
    out, w = m(q, k, v, need_weights=weights, average_attn_weights=masks != "bool", **given)
    (out * out).sum().backward()
    made_from = [*m.state_dict().values(), *[p.grad for p in m.parameters()]]
    names: Any = (repr(m), list(m.state_dict()))
    return [names, out, q.grad, *made_from] + ([w] if weights else [])


ATTENTIONS: list[Any] = [
    {}, {"bias": False}, {"add_bias_kv": True, "batch_first": True}, {"add_zero_attn": True},
    {"kdim": 6, "vdim": 5},
]  # fmt: skip
CASES = [
    (options, same, masks, weights, batched)
    for options, same, masks, weights, batched in itertools.product(
        ATTENTIONS,
        ("qkv", "kv", "none"),
        ("", "bool", "float", "heads", "padding", "bool padding"),
        (True, False),
        (True, False),
    )
    if (same == "none" or "kdim" not in options) and (batched or masks in ("", "bool padding"))
]


@pytest.mark.peer
@pytest.mark.parametrize("part", range(8))
def test_attention_like_pytorch(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRACEGRAD_LAZY", "interpret")  # each case is another program
    for case in CASES[part::8]:
        (names, *mine), (their_names, *theirs) = (_attention(lib, *case) for lib in (tg, torch))
        assert names == their_names and len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            close(a, b)


def _transformer(lib: Any, kind: str, norm_first: bool, activation: str) -> list[Any]:
    lib.manual_seed(1)
    n = lib.nn
    options: Any = {"dim_feedforward": 16, "dropout": 0.0, "activation": activation}
    options |= {"norm_first": norm_first, "batch_first": norm_first}
    g = np.random.default_rng(0)
    arrays = [g.normal(size=(4, 4, 8)).astype(np.float32) for _ in range(2)]
    x, y = (lib.from_numpy(a).requires_grad_() for a in arrays)
    mask = n.Transformer.generate_square_subsequent_mask(4)
    padding = g.random((4, 4)) < 0.3
    padding[:, 0] = False
    padding = lib.from_numpy(padding)
    if kind == "encoder":
        m = n.TransformerEncoder(n.TransformerEncoderLayer(8, 2, **options), 2, n.LayerNorm(8))
        out = m(x, mask, padding)
    elif kind == "decoder":
        m = n.TransformerDecoder(n.TransformerDecoderLayer(8, 2, **options), 2)
        out = m(x, y, mask, tgt_is_causal=True, memory_key_padding_mask=padding)
    else:
        m = n.Transformer(8, 2, 2, 1, **options)
        out = m(x, y, tgt_mask=mask, src_key_padding_mask=padding)
    (out * out).sum().backward()
    names: Any = (repr(m), list(m.state_dict()))
    return [names, out, x.grad, *m.state_dict().values(), *[p.grad for p in m.parameters()]]


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("norm_first, activation", [(False, "relu"), (True, "gelu")])
def test_transformers_like_pytorch(kind: str, norm_first: bool, activation: str) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _transformer(torch, kind, norm_first, activation)
    for mode in ("interpret", "compile"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRACEGRAD_LAZY", mode)
            mine = _transformer(tg, kind, norm_first, activation)
        assert mine[0] == theirs[0]
        for a, b in zip(mine[1:], theirs[1:]):
            close(a, b, 2e-4, 2e-5)
