"""Causal attention in blocks of rows: what one block gives, without the scores that the mask would hide."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.ops import attention
from tracegrad.ir.passes import optimize

F = tg.nn.functional


def dense(q: tg.Tensor, k: tg.Tensor, v: tg.Tensor) -> tg.Tensor:
    """By the formula, with all scores."""
    keep = tg.tril(tg.ones(q.shape[-2], k.shape[-2])).bool()
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~keep, -math.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (13, 13), (15, 6), (6, 15), (3, 3), (40, 40)])
def test_blocks_give_what_all_scores_do(
    rows: int, columns: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK_ROWS", 2)
    tg.manual_seed(rows)
    shapes = (2, 3, rows, 4), (2, 3, columns, 4), (2, 3, columns, 5)
    inputs = [tg.randn(*s, dtype=tg.float64, requires_grad=True) for s in shapes]
    weight = tg.randn(2, 3, rows, 5, dtype=tg.float64)

    def step(f: Callable[..., tg.Tensor]) -> list[tg.Tensor]:
        out = f(*inputs)
        return [out, *tg.autograd.grad((out * weight).sum(), inputs)]

    def blocks(q: tg.Tensor, k: tg.Tensor, v: tg.Tensor) -> tg.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    got = (tg.compile(step) if compiled else step)(blocks)
    for a, b in zip(got, step(dense), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-11, atol=1e-13)


def test_what_later_keys_hold_does_not_matter() -> None:
    q, k, v = (tg.randn(1, 512, 8) for _ in range(3))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :256].numpy()
    k[:, 256:], v[:, 256:] = math.nan, math.inf
    got = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, :256].numpy()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("rows", "blocks"), [(511, 1), (512, 2), (1024, 4), (5000, 8)])
def test_long_ones_never_make_hidden_blocks(rows: int, blocks: int) -> None:
    q = tg.zeros(2, rows, 8)
    graph = tg.trace(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))(q)
    made = [n.results[0].type.numel // 2 for n in optimize(graph).nodes if n.op.name == "exp"]
    cuts = [rows * i // blocks for i in range(blocks + 1)]
    assert made == [(b - a) * b for a, b in pairwise(cuts)]
    assert sum(made) <= rows * rows * (blocks + 1) / (2 * blocks) * 1.01
