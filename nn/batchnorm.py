"""Normalisation layers with statistics of channels: BatchNorm, InstanceNorm, LocalResponseNorm."""

from __future__ import annotations

from typing import Any

from ..ir import dtypes
from ..tracer.creation import ones, tensor, zeros
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentError
from . import functional as F
from . import init
from .module import Module
from .norm import _Affine


class _Normalization(_Affine):
    """A layer with optional parameters and optional running statistics per channel.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: the weight of a batch in the running statistics; None for the plain average of all batches.
        affine: whether there are a weight and a bias, `[C]`.
        track_running_stats: whether there are running statistics, for evaluation mode.
        bias: whether there is a bias (only with a weight).
    """

    _version = 2
    _dims: tuple[int, ...]

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self._make((num_features,), self.affine, self.affine and bias, device, dtype)
        stats: dict[str, Any] = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
        if self.track_running_stats:
            stats["running_mean"] = zeros(num_features, device=device, dtype=dtype)
            stats["running_var"] = ones(num_features, device=device, dtype=dtype)
            stats["num_batches_tracked"] = tensor(0, dtype=dtypes.int64)
        for name, t in stats.items():
            self.register_buffer(name, t)

    def reset_running_stats(self) -> None:
        """Sets the running mean to 0, the variance to 1 and the number of batches to 0."""
        if self.track_running_stats:
            with no_grad():
                init.zeros_(self.running_mean)
                init.ones_(self.running_var)
                self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Resets the running statistics, the weight to ones and the bias to zeros."""
        self.reset_running_stats()
        if self.affine:
            super().reset_parameters()

    def _check_input_dim(self, input: Any) -> None:
        if input.dim() not in self._dims:
            wanted = " or ".join(map(str, self._dims))
            raise ArgumentError(
                f"{type(self).__name__}: expected an input of {wanted} dimensions, got {input._value().type}"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        key = prefix + "num_batches_tracked"
        if self.num_batches_tracked is not None and (local_metadata.get("version") or 0) < 2:
            if key not in state_dict:  # states of PyTorch before 0.4.1 have none
                state_dict[key] = self.num_batches_tracked.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_Normalization):
    """Each channel standardised over the batch in training mode, or by the running statistics in evaluation
    mode, then an affine map per channel (Ioffe and Szegedy 2015).

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: the weight of a batch in the running statistics; None for the plain average of all batches.
        affine: whether there are a weight and a bias, `[C]`.
        track_running_stats: whether there are running statistics; without, the batch's are used always.
        bias: whether there is a bias (only with a weight).

    Attributes:
        running_mean, running_var: `[C]` buffers, the latter of unbiased estimates.
        num_batches_tracked: i64 buffer.
    """

    def forward(self, input: Any) -> Any:
        self._check_input_dim(input)
        moving = self.training and self.track_running_stats
        momentum: Any = 0.0 if self.momentum is None else self.momentum
        if moving and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / self.num_batches_tracked.to(self.running_mean.dtype)
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        keep = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if keep else None,
            self.running_var if keep else None,
            self.weight,
            self.bias,
            by_batch,
            momentum,
            self.eps,
        )


class _InstanceNorm(_Normalization):
    """Each channel of each sample standardised (Ulyanov et al. 2017); in evaluation mode by running
    statistics, if there are any.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: the weight of a batch in the running statistics.
        affine: whether there are a weight and a bias, `[C]`.
        track_running_stats: whether there are running statistics.
        bias: whether there is a bias (only with a weight).
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = False,
        track_running_stats: bool = False, device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def forward(self, input: Any) -> Any:
        self._check_input_dim(input)
        lone = input.dim() == self._dims[0]  # without a batch dimension
        channels = input.shape[0 if lone else 1]
        if channels != self.num_features and (self.affine or self.track_running_stats):
            raise ArgumentError(
                f"{type(self).__name__}: expected {self.num_features} channels, got {input._value().type}"
            )
        out = F.instance_norm(
            input.unsqueeze(0) if lone else input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )
        return out.squeeze(0) if lone else out


def _layer(name: str, base: type[Any], dims: tuple[int, ...]) -> Any:
    return type(name, (base,), {"_dims": dims, "__doc__": base.__doc__, "__module__": __name__})


BatchNorm1d: Any = _layer("BatchNorm1d", _BatchNorm, (2, 3))
BatchNorm2d: Any = _layer("BatchNorm2d", _BatchNorm, (4,))
BatchNorm3d: Any = _layer("BatchNorm3d", _BatchNorm, (5,))
InstanceNorm1d: Any = _layer("InstanceNorm1d", _InstanceNorm, (2, 3))
InstanceNorm2d: Any = _layer("InstanceNorm2d", _InstanceNorm, (3, 4))
InstanceNorm3d: Any = _layer("InstanceNorm3d", _InstanceNorm, (4, 5))


class LocalResponseNorm(Module):
    """Each element normalised by its neighbours in the channel dimension (Krizhevsky et al. 2012).

    Args:
        size: channels in a neighbourhood.
        alpha, beta, k: see `functional.local_response_norm`.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, input: Any) -> Any:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
