"""`MultiheadAttention`."""

from __future__ import annotations

from typing import Any

from ..tracer.creation import empty
from ..tracer.library import ArgumentError
from ..tracer.tensor import Tensor
from . import init
from .functional_attention import multi_head_attention_forward
from .linear import Linear
from .module import Module
from .parameter import Parameter


class NonDynamicallyQuantizableLinear(Linear):
    """A `Linear` under the name that PyTorch prints for it."""


class MultiheadAttention(Module):
    """Attention of several heads, with the projections around it (Vaswani et al. 2017).

    Args:
        embed_dim: features E of queries and outputs.
        num_heads: H, a divisor of E.
        dropout: share of the weights that are dropped in training.
        bias: whether the projections have biases.
        add_bias_kv: whether sequences get a learned key and value at their end.
        add_zero_attn: whether they get one of zeros.
        kdim, vdim: features of keys and values; E if None.
        batch_first: whether the batch is the first dimension instead of the second.

    Attributes:
        in_proj_weight: `[3 E, E]`; None if kdim or vdim is not E, and then there are `q_proj_weight`
            `[E, E]`, `k_proj_weight` `[E, kdim]` and `v_proj_weight` `[E, vdim]`.
        in_proj_bias: `[3 E]` or None.
        out_proj: a `Linear` of E to E features.
        bias_k, bias_v: `[1, 1, E]` or None.
    """

    bias_k: Any
    bias_v: Any

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True,
        add_bias_kv: bool = False, add_zero_attn: bool = False, kdim: int | None = None,
        vdim: int | None = None, batch_first: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ArgumentError(
                f"MultiheadAttention: embed_dim must be a positive multiple of num_heads, got {embed_dim} "
                f"and {num_heads}"
            )
        super().__init__()
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == embed_dim == self.vdim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.head_dim = embed_dim // num_heads

        def made(there: bool, *shape: int) -> Parameter | None:
            return Parameter(empty(shape, device=device, dtype=dtype)) if there else None

        E, one = embed_dim, self._qkv_same_embed_dim
        sizes = {"q": E, "k": self.kdim, "v": self.vdim}
        if one:
            self.register_parameter("in_proj_weight", made(True, 3 * E, E))
        for name, size in sizes.items():
            self.register_parameter(f"{name}_proj_weight", made(not one, E, size))
        if not one:
            self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", made(bias, 3 * E))
        self.out_proj = NonDynamicallyQuantizableLinear(E, E, bias=bias, device=device, dtype=dtype)
        self.bias_k, self.bias_v = made(add_bias_kv, 1, 1, E), made(add_bias_kv, 1, 1, E)
        self.add_zero_attn = add_zero_attn
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            init.constant_(self.in_proj_bias, 0.0)
            init.constant_(self.out_proj.bias, 0.0)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                init.xavier_normal_(bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """See `nn.functional.multi_head_attention_forward` for shapes; with `batch_first` queries, keys and
        values are `[N, L, E]`."""
        swap = self.batch_first and query.dim() == 3
        if swap:
            given = (query, key, value)
            turned = {id(t): t.transpose(0, 1) for t in given}
            query, key, value = (turned[id(t)] for t in given)
        out, weights = multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias,
            self.bias_k, self.bias_v, self.add_zero_attn, self.dropout, self.out_proj.weight,
            self.out_proj.bias, training=self.training, key_padding_mask=key_padding_mask,
            need_weights=need_weights, attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim, q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight, v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
        return (out.transpose(0, 1) if swap else out), weights
