"""Attention of `nn.functional`, with and without the projections around it. Import them from there."""

from __future__ import annotations

import math
from typing import Any

from ..ir.dtypes import bool_
from ..ir.op import REGISTRY
from ..tracer.creation import ones, zeros
from ..tracer.library import ArgumentError, ArgumentTypeError
from ..tracer.making import apply
from ..tracer.methods import FUNCTIONS
from ..tracer.operands import tensor_operand
from ..tracer.tensor import Tensor
from .functional_activation import softmax
from .functional_norm import linear
from .functional_random import dropout

T = Any
_NAME = "multi_head_attention_forward()"


def scaled_dot_product_attention(
    query: T, key: T, value: T, attn_mask: T = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query @ key.T * scale + mask) @ value (Vaswani et al. 2017).

    Args:
        query: `[..., L, E]`.
        key: `[..., S, E]`.
        value: `[..., S, F]`.
        attn_mask: added to the scores, or a bool mask that is True where to attend; broadcasts to `[..., L,
            S]`.
        dropout_p: share of the weights that are dropped, whether or not anything is in training.
        is_causal: attend to no later position; then there is no `attn_mask`.
        scale: 1 / sqrt(E) if None.
        enable_gqa: key and value may have fewer heads (the dimension before the last two) than query, a
            divisor of its number; each serves as many heads in a row (Ainslie et al. 2023).
    """
    name = "scaled_dot_product_attention()"
    q, k, v = [tensor_operand(t, f"{name}: operand") for t in (query, key, value)]
    if enable_gqa:
        k, v = _shared_heads(name, q, k), _shared_heads(name, q, v)
    if not dropout_p:
        more = () if attn_mask is None else (attn_mask,)
        op = REGISTRY["scaled_dot_product_attention"]
        return apply(op, q, k, v, *more, is_causal=is_causal, scale=scale)
    if is_causal and attn_mask is not None:
        raise ArgumentError(f"{name}: expected attn_mask or is_causal, got both")
    scores = FUNCTIONS["matmul"](q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-2, -1))
    if is_causal:
        attn_mask = FUNCTIONS["tril"](ones(tuple(scores.shape[-2:]), dtype=bool_))
    if attn_mask is not None and attn_mask.dtype is not bool_:
        return FUNCTIONS["matmul"](dropout(softmax(scores + attn_mask, -1), dropout_p), v)
    if attn_mask is not None:  # a row with nothing to attend to gives zeros, and no NaN on the way
        scores = scores.masked_fill(attn_mask.any(-1, keepdim=True) & ~attn_mask, -math.inf)
    p = softmax(scores, -1)
    if attn_mask is not None:
        p = p.masked_fill(~attn_mask, 0.0)
    return FUNCTIONS["matmul"](dropout(p, dropout_p), v)


def _shared_heads(name: str, q: T, x: T) -> T:
    """Keys or values with each head repeated for the query heads it serves."""
    if q.dim() < 3 or x.dim() < 3 or q.shape[-3] % x.shape[-3]:
        raise ArgumentError(
            f"{name}: with enable_gqa the query's heads must be a multiple of the others', got "
            f"{q._value().type} and {x._value().type}"
        )
    *lead, h, s, e = x.shape
    times = q.shape[-3] // h
    return x.unsqueeze(-3).expand(*lead, h, times, s, e).reshape(*lead, h * times, s, e)


def float_mask(mask: T, dtype: Any, name: str) -> T:
    """A mask to add to scores: a bool one, True where not to attend, becomes 0 and -inf."""
    if mask is None or mask.dtype is dtype:
        return mask
    if mask.dtype.kind == "b":
        none: Any = zeros(tuple(mask.shape), dtype=dtype)
        return none.masked_fill(mask, -math.inf)
    if mask.dtype.kind != "f":
        raise ArgumentTypeError(f"{_NAME}: {name} must be of bool or floats, got {mask._value().type}")
    return mask.to(dtype)


def _check(condition: bool, text: str, *tensors: T) -> None:
    if not condition:
        types = ", ".join(str(t._value().type) for t in tensors)
        raise ArgumentError(f"{_NAME}: {text}" + (f", got {types}" if tensors else ""))


def _project(q: T, k: T, v: T, weight: T, bias: T) -> tuple[T, ...]:
    """Queries, keys and values by one weight: one product where they are the same tensor."""
    E = q.shape[-1]
    if k is v and q is k:
        return linear(q, weight, bias).chunk(3, -1)
    if k is v:
        w_q, w_kv = weight.split([E, 2 * E])
        b_q, b_kv = (None, None) if bias is None else bias.split([E, 2 * E])
        return linear(q, w_q, b_q), *linear(k, w_kv, b_kv).chunk(2, -1)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return tuple([linear(x, w, b) for x, w, b in zip((q, k, v), weight.chunk(3), biases)])


def _one_more(mask: T, n: int = 1) -> T:
    """A mask for `n` more keys, which all may be attended."""
    if mask is None:
        return None
    more = zeros((*mask.shape[:-1], n), dtype=mask.dtype)
    return FUNCTIONS["cat"]([mask, more], -1)


def multi_head_attention_forward(
    query: T, key: T, value: T, embed_dim_to_check: int, num_heads: int, in_proj_weight: T, in_proj_bias: T,
    bias_k: T, bias_v: T, add_zero_attn: bool, dropout_p: float, out_proj_weight: T, out_proj_bias: T,
    training: bool = True, key_padding_mask: T = None, need_weights: bool = True, attn_mask: T = None,
    use_separate_proj_weight: bool = False, q_proj_weight: T = None, k_proj_weight: T = None,
    v_proj_weight: T = None, static_k: T = None, static_v: T = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of several heads, with the projections around it (Vaswani et al. 2017).

    Args:
        query: `[L, N, E]`, or `[L, E]` without a batch; so all of the following.
        key, value: `[S, N, E]`; with separate weights their last dimensions may be others.
        embed_dim_to_check: E.
        num_heads: H, a divisor of E.
        in_proj_weight: `[3 E, E]`, for query, key and value; or else `q_proj_weight` `[E, E]` and so on.
        in_proj_bias: `[3 E]` or None.
        bias_k, bias_v: `[1, 1, E]`, a key and value that all sequences get at their end; or None.
        add_zero_attn: sequences get a key and value of zeros.
        dropout_p: share of the weights that are dropped in training.
        key_padding_mask: `[N, S]`, True where not to attend, or added to the scores.
        need_weights: give the weights too.
        attn_mask: `[L, S]` or `[N H, L, S]`, like `key_padding_mask`.
        static_k, static_v: `[N H, S, E / H]`, instead of projected ones.
        average_attn_weights: give the weights' mean over heads.
        is_causal: `attn_mask` is the causal one (a hint; it must be given).

    Returns:
        `[L, N, E]` and the weights, `[N, L, S]` or `[N, H, L, S]`, or None.
    """
    for name, t in (("query", query), ("key", key), ("value", value)):
        tensor_operand(t, f"{_NAME}: {name}")
    ranks = {query.dim(), key.dim(), value.dim()}
    _check(ranks in ({2}, {3}), "expected query, key and value of 2 or 3 dimensions", query, key, value)
    batched = ranks == {3}
    if not batched:
        one = query.unsqueeze(1)
        # Which of them are the same tensor decides how they are projected.
        k = one if key is query else key.unsqueeze(1)
        value = k if value is key else value.unsqueeze(1)
        query, key = one, k
        if key_padding_mask is not None:
            _check(key_padding_mask.dim() == 1, "without a batch key_padding_mask is [S]", key_padding_mask)
            key_padding_mask = key_padding_mask.unsqueeze(0)
    L, N, E = query.shape
    S, dtype, d = key.shape[0], query.dtype, E // num_heads
    _check(embed_dim_to_check == E, f"expected {embed_dim_to_check} features", query)
    _check(d * num_heads == E, f"{E} features can't be split among {num_heads} heads")
    if is_causal and attn_mask is None:
        raise ArgumentError(
            f"{_NAME}: is_causal is a hint about attn_mask and needs it; make it with "
            f"Transformer.generate_square_subsequent_mask(L)"
        )
    padding = float_mask(key_padding_mask, dtype, "key_padding_mask")
    # The causal mask need not be read where nothing else is added to it.
    causal = is_causal and padding is None and not need_weights
    mask = None if causal else float_mask(attn_mask, dtype, "attn_mask")
    if use_separate_proj_weight:
        _check(key.shape[:2] == value.shape[:2], "key and value must have one length and batch", key, value)
        if q_proj_weight is None or k_proj_weight is None or v_proj_weight is None:
            raise ArgumentError(f"{_NAME}: use_separate_proj_weight needs q_, k_ and v_proj_weight")
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = [linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]
    else:
        _check(key.shape == value.shape, "key and value must have one shape", key, value)
        if in_proj_weight is None:
            raise ArgumentError(f"{_NAME}: in_proj_weight is None without use_separate_proj_weight")
        q, k, v = _project(query, key, value, in_proj_weight, in_proj_bias)
    if mask is not None:
        shapes = ((L, S), (N * num_heads, L, S))
        fits = tuple(mask.shape) in shapes
        _check(fits, f"attn_mask must be of shape {list(shapes[0])} or {list(shapes[1])}", mask)
        mask = mask.unsqueeze(0) if mask.dim() == 2 else mask
    if bias_k is not None or bias_v is not None:
        if bias_k is None or bias_v is None or static_k is not None or static_v is not None:
            raise ArgumentError(f"{_NAME}: bias_k and bias_v go together, and not with static_k or static_v")
        k = FUNCTIONS["cat"]([k, bias_k.expand(1, N, E)])
        v = FUNCTIONS["cat"]([v, bias_v.expand(1, N, E)])
        mask, padding = _one_more(mask), _one_more(padding)

    def heads(x: T, static: T, name: str) -> T:
        if static is None:
            return x.reshape(x.shape[0], N * num_heads, d).transpose(0, 1)
        fits = static.dim() == 3 and static.shape[0] == N * num_heads and static.shape[2] == d
        _check(fits, f"{name} must be of shape [{N * num_heads}, S, {d}]", static)
        return static

    q, k, v = heads(q, None, ""), heads(k, static_k, "static_k"), heads(v, static_v, "static_v")
    if add_zero_attn:
        zero = zeros((N * num_heads, 1, d), dtype=dtype)
        k, v = FUNCTIONS["cat"]([k, zero], 1), FUNCTIONS["cat"]([v, zero], 1)
        mask, padding = _one_more(mask), _one_more(padding)
    S = k.shape[1]
    if padding is not None:
        _check(tuple(padding.shape) == (N, S), f"key_padding_mask must be of shape {[N, S]}", padding)
        padding = padding.reshape(N, 1, 1, S).expand(N, num_heads, 1, S).reshape(N * num_heads, 1, S)
        mask = padding if mask is None else mask + padding
    dropped = dropout_p if training else 0.0
    weights = None
    if need_weights:
        out, weights = _weighted(q, k, v, mask, dropped)
        weights = weights.reshape(N, num_heads, L, S)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        q, k, v = [x.reshape(N, num_heads, x.shape[1], d) for x in (q, k, v)]
        if mask is not None:
            mask = mask.unsqueeze(0) if mask.shape[0] == 1 else mask.reshape(N, num_heads, -1, S)
        out = scaled_dot_product_attention(q, k, v, mask, dropped, causal)
        out = out.reshape(N * num_heads, L, d)
    out = linear(out.transpose(0, 1).reshape(L, N, E), out_proj_weight, out_proj_bias)
    if not batched:
        out = out.squeeze(1)
        weights = None if weights is None else weights.squeeze(0)
    return out, weights


def _weighted(q: T, k: T, v: T, mask: T, dropped: float) -> tuple[T, T]:
    """`[B, L, d]` and the weights `[B, L, S]`."""
    scores = FUNCTIONS["bmm"](q * math.sqrt(1.0 / q.shape[-1]), k.transpose(1, 2))
    p = softmax(scores if mask is None else mask + scores, -1)
    if dropped > 0.0:
        p = dropout(p, dropped)
    return FUNCTIONS["bmm"](p, v), p
