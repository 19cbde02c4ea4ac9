"""Embedding layers: Embedding, EmbeddingBag."""

from __future__ import annotations

from typing import Any

from ..tracer.creation import empty
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentError
from ..tracer.tensor import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter


class _Table(Module):
    """A weight `[num_embeddings, embedding_dim]` from N(0, 1), or one that is given."""

    def _make(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, weight: Any, freeze: bool,
        device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(
                    f"{type(self).__name__}: padding_idx must be in [{-num_embeddings}, {num_embeddings}), "
                    f"got {padding_idx}"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        if weight is None:
            shape = (num_embeddings, embedding_dim)
            self.weight = Parameter(empty(shape, device=device, dtype=dtype), requires_grad=not freeze)
            self.reset_parameters()
            return
        if tuple(weight.shape) != (num_embeddings, embedding_dim):
            raise ArgumentError(
                f"{type(self).__name__}: the given weight must be [{num_embeddings}, {embedding_dim}], got "
                f"{weight._value().type}"
            )
        self.weight = Parameter(weight, requires_grad=not freeze)

    def reset_parameters(self) -> None:
        """Draws a new weight from N(0, 1); the padding row is zero."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx].fill_(0)

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, *args: Any, **kwargs: Any) -> Any:
        """A layer with a copy of a given weight `[count, size]`; further arguments as PyTorch's."""
        if not isinstance(embeddings, Tensor) or embeddings.dim() != 2:
            got = embeddings._value().type if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise ArgumentError(
                f"{cls.__name__}.from_pretrained(): expected a weight [count, size], got {got}"
            )
        return cls._pretrained(embeddings, freeze, *args, **kwargs)

    @classmethod
    def _pretrained(cls, embeddings: Tensor, freeze: bool, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # pragma: no cover - abstract


class Embedding(_Table):
    """Rows of a trained table (`functional.embedding`).

    Args:
        num_embeddings: rows.
        embedding_dim: their size.
        padding_idx: a row that starts as zero and gets no gradient.
        max_norm: rows that are looked up are scaled, in place, to at most this `norm_type`-norm.
        scale_grad_by_freq: gradients of a row are divided by how often it is looked up.
        sparse: no difference; gradients are dense.

    Attributes:
        weight: `[num_embeddings, embedding_dim]`, from N(0, 1).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
        max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
        sparse: bool = False, _weight: Tensor | None = None, _freeze: bool = False, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self._make(num_embeddings, embedding_dim, padding_idx, _weight, _freeze, device, dtype)
        self.sparse = sparse

    @classmethod
    def _pretrained(
        cls, embeddings: Tensor, freeze: bool, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Any:  # fmt: skip
        options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        count, size = embeddings.shape
        return cls(count, size, *options, _weight=embeddings, _freeze=freeze)

    def forward(self, input: Tensor) -> Tensor:
        options = (self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
        return F.embedding(input, self.weight, *options)

    def extra_repr(self) -> str:
        shown = f"{self.num_embeddings}, {self.embedding_dim}"
        for name, default in (
            ("padding_idx", None), ("max_norm", None), ("norm_type", 2), ("scale_grad_by_freq", False),
            ("sparse", False),
        ):  # fmt: skip
            if getattr(self, name) != default:
                shown += f", {name}={getattr(self, name)}"
        return shown


class EmbeddingBag(_Table):
    """Sums, means or maxima of rows of a trained table (`functional.embedding_bag`).

    Args:
        num_embeddings: rows.
        embedding_dim: their size.
        mode: `sum`, `mean` or `max`.
        include_last_offset: offsets have one more entry, the end of the last bag.
        padding_idx: a row that counts for nothing.
        max_norm, norm_type, scale_grad_by_freq, sparse: as in `Embedding`.

    Attributes:
        weight: `[num_embeddings, embedding_dim]`, from N(0, 1).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, max_norm: float | None = None, norm_type: float = 2.0,
        scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
        _weight: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self._make(num_embeddings, embedding_dim, padding_idx, _weight, False, device, dtype)
        self.mode = mode
        self.sparse = sparse
        self.include_last_offset = include_last_offset

    @classmethod
    def _pretrained(
        cls, embeddings: Tensor, freeze: bool, max_norm: float | None = None, norm_type: float = 2.0,
        scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
        include_last_offset: bool = False, padding_idx: int | None = None,
    ) -> Any:  # fmt: skip
        count, size = embeddings.shape
        options = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings, include_last_offset)
        made = cls(count, size, *options, padding_idx)
        made.weight.requires_grad_(not freeze)
        return made

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        return F.embedding_bag(
            input, self.weight, offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.mode,
            self.sparse, per_sample_weights, self.include_last_offset, self.padding_idx,
        )  # fmt: skip

    def extra_repr(self) -> str:
        shown = f"{self.num_embeddings}, {self.embedding_dim}"
        for name, default in (("max_norm", None), ("norm_type", 2), ("scale_grad_by_freq", False)):
            if getattr(self, name) != default:
                shown += f", {name}={getattr(self, name)}"
        shown += f", mode={self.mode!r}"
        return shown if self.padding_idx is None else f"{shown}, padding_idx={self.padding_idx}"
