"""The block that every transformer here is made of. Imported by the workloads, of CPU and GPU."""

from __future__ import annotations

from typing import Any


def block_class(tg: Any, width: int, heads: int, dropout: float = 0.0) -> Any:
    """A module class of `tg` (tracegrad or torch): normalisation before causal attention and before an MLP
    of four times the width, both added to their input (Radford et al. 2019).

    dropout: of attention weights, and after the MLP.
    """
    nn, F = tg.nn, tg.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            batch, time = x.shape[:2]
            parts = self.qkv(self.norm1(x)).view(batch, time, 3, heads, width // heads)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
            x = x + self.out(y.transpose(1, 2).reshape(batch, time, width))
            y = self.down(F.gelu(self.up(self.norm2(x))))
            return x + (F.dropout(y, dropout) if dropout else y)

    return Block
