"""Loss layers: a table. A row is a class of `nn.functional`'s loss with the same arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..tracer.callers import warn
from ..tracer.library import ArgumentError
from . import functional as F
from . import record
from .module import Module


class CosineSimilarity(Module):
    """`functional.cosine_similarity` as a module."""

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x1: Any, x2: Any) -> Any:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(Module):
    """`functional.pairwise_distance` as a module."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        super().__init__()
        if isinstance(p, str):
            raise ArgumentError(f"PairwiseDistance: p must be a number, got {p!r}")
        self.norm = p
        self.eps = eps
        self.keepdim = keepdim

    def forward(self, x1: Any, x2: Any) -> Any:
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


def _old_reduction(m: Any) -> None:
    """PyTorch's old `size_average` and `reduce` as a `reduction`."""
    if m.size_average is None and m.reduce is None:
        return
    warn("size_average and reduce are deprecated; pass reduction=")
    m.reduction = "none" if m.reduce is False else "sum" if m.size_average is False else "mean"


def _default_distance(m: Any) -> None:
    if m.distance_function is None:
        m.distance_function = PairwiseDistance()


_OLD: dict[str, Any] = {"size_average": None, "reduce": None}
_PLAIN: dict[str, Any] = {**_OLD, "reduction": "mean"}
_new = partial(record.layer, inputs=2, module=__name__)
_loss = partial(_new, unstored=("size_average", "reduce"), setup=_old_reduction)
_W = ("weight",)

MSELoss: Any = _loss("MSELoss", F.mse_loss, _PLAIN)
L1Loss: Any = _loss("L1Loss", F.l1_loss, _PLAIN)
SmoothL1Loss: Any = _loss("SmoothL1Loss", F.smooth_l1_loss, {**_PLAIN, "beta": 1.0})
HuberLoss: Any = _new("HuberLoss", F.huber_loss, {"reduction": "mean", "delta": 1.0})
BCELoss: Any = _loss("BCELoss", F.binary_cross_entropy, {"weight": None, **_PLAIN}, buffers=_W)
BCEWithLogitsLoss: Any = _loss(
    "BCEWithLogitsLoss", F.binary_cross_entropy_with_logits, {"weight": None, **_PLAIN, "pos_weight": None},
    buffers=("weight", "pos_weight"),
)  # fmt: skip
NLLLoss: Any = _loss(
    "NLLLoss", F.nll_loss,
    {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean"},
    buffers=_W,
)  # fmt: skip
CrossEntropyLoss: Any = _loss(
    "CrossEntropyLoss", F.cross_entropy,
    {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean",
     "label_smoothing": 0.0}, buffers=_W,
)  # fmt: skip
KLDivLoss: Any = _loss("KLDivLoss", F.kl_div, {**_PLAIN, "log_target": False})
PoissonNLLLoss: Any = _loss(
    "PoissonNLLLoss", F.poisson_nll_loss,
    {"log_input": True, "full": False, "size_average": None, "eps": 1e-8, "reduce": None,
    "reduction": "mean"},
)  # fmt: skip
GaussianNLLLoss: Any = _new(
    "GaussianNLLLoss", F.gaussian_nll_loss, {"full": False, "eps": 1e-6, "reduction": "mean"}, inputs=3,
    keyword_only=True,
)  # fmt: skip
HingeEmbeddingLoss: Any = _loss("HingeEmbeddingLoss", F.hinge_embedding_loss, {"margin": 1.0, **_PLAIN})
CosineEmbeddingLoss: Any = _loss(
    "CosineEmbeddingLoss", F.cosine_embedding_loss, {"margin": 0.0, **_PLAIN}, inputs=3
)
SoftMarginLoss: Any = _loss("SoftMarginLoss", F.soft_margin_loss, _PLAIN)
MarginRankingLoss: Any = _loss(
    "MarginRankingLoss", F.margin_ranking_loss, {"margin": 0.0, **_PLAIN}, inputs=3
)
MultiMarginLoss: Any = _loss(
    "MultiMarginLoss", F.multi_margin_loss, {"p": 1, "margin": 1.0, "weight": None, **_PLAIN}, buffers=_W
)
MultiLabelMarginLoss: Any = _loss("MultiLabelMarginLoss", F.multilabel_margin_loss, _PLAIN)
MultiLabelSoftMarginLoss: Any = _loss(
    "MultiLabelSoftMarginLoss", F.multilabel_soft_margin_loss, {"weight": None, **_PLAIN}, buffers=_W
)
TripletMarginLoss: Any = _loss(
    "TripletMarginLoss", F.triplet_margin_loss, {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False,
    **_PLAIN}, inputs=3,
)  # fmt: skip
TripletMarginWithDistanceLoss: Any = _new(
    "TripletMarginWithDistanceLoss", F.triplet_margin_with_distance_loss,
    {"distance_function": None, "margin": 1.0, "swap": False, "reduction": "mean"}, inputs=3,
    keyword_only=True, setup=_default_distance,
)  # fmt: skip

__all__ = [
    "BCELoss", "BCEWithLogitsLoss", "CosineEmbeddingLoss", "CosineSimilarity", "CrossEntropyLoss",
    "GaussianNLLLoss", "HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss",
    "MarginRankingLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss",
    "PairwiseDistance", "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss", "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]  # fmt: skip
