"""Initialisers: they fill a tensor in place from PyTorch's generator, so equal seeds give PyTorch's numbers.

Sources: Glorot and Bengio (2010), xavier; He et al. (2015), kaiming; Saxe et al. (2013), orthogonal; Martens
(2010), sparse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..tracer import mt19937
from ..tracer.arguments import check_names
from ..tracer.callers import warn
from ..tracer.grad_mode import no_grad
from ..tracer.library import ArgumentError, overwrite
from ..tracer.random import fill, generator_of
from ..tracer.tensor import Tensor

_GAINS = {"sigmoid": 1.0, "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 0.75}
_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the scale of activations through a layer followed by `nonlinearity`.

    Args:
        nonlinearity: `linear`, `conv1d` ..., `sigmoid`, `tanh`, `relu`, `leaky_relu` or `selu`.
        param: the negative slope of `leaky_relu`, 0.01 if None.
    """
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, (int, float)):
            raise ArgumentError(f"calculate_gain(): the negative slope must be a number, got {param!r}")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        known = ", ".join((*_LINEAR, *_GAINS, "leaky_relu"))
        raise ArgumentError(f"calculate_gain(): unknown nonlinearity {nonlinearity!r}; there are {known}")
    return _GAINS[nonlinearity]


def _write(tensor: Tensor, array: Any) -> Tensor:
    with no_grad():
        return overwrite(tensor, array)


def _draw_uniform(tensor: Tensor, a: float, b: float, generator: Any) -> Tensor:
    with no_grad():
        return fill(tensor, "uniform", generator, a, b)


def _draw_normal(tensor: Tensor, mean: float, std: float, generator: Any) -> Tensor:
    with no_grad():
        return fill(tensor, "normal", generator, mean, std)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Fills with samples of U[a, b)."""
    return _draw_uniform(tensor, a, b, generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Fills with samples of N(mean, std^2)."""
    return _draw_normal(tensor, mean, std, generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Any = None,
) -> Tensor:
    """Fills with samples of N(mean, std^2) limited to [a, b], by rejection."""
    if mean < a - 2 * std or mean > b + 2 * std:
        warn(
            f"trunc_normal_(): the mean {mean} is more than two standard deviations outside [{a}, {b}]; the "
            f"samples "
            f"may not follow the distribution"
        )

    def cdf(x: float) -> float:
        return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0

    likely = cdf((b - mean) / std) - cdf((a - mean) / std) > 0.3
    draw = _reject_normal if likely else _reject_uniform
    return _write(
        tensor, draw(generator_of(generator), tuple(tensor.shape), tensor.dtype.numpy, mean, std, a, b)
    )


def _reject_normal(engine: Any, shape: Any, d: Any, mean: float, std: float, a: float, b: float) -> Any:
    """Draws again whatever fell outside."""
    low, high = d.type(a), d.type(b)
    made = mt19937.normal(engine, shape, d, mean, std)
    while True:
        outside = (made < low) | (made > high)
        if not outside.any():
            return made
        made = np.where(outside, mt19937.normal(engine, shape, d, mean, std), made)


def _reject_uniform(engine: Any, shape: Any, d: Any, mean: float, std: float, a: float, b: float) -> Any:
    """Uniform candidates, each accepted as often as its density is below the highest one of the interval."""
    peak = -0.5 * ((max(a, min(mean, b)) - mean) / std) ** 2

    def candidates() -> tuple[Any, Any]:
        x = mt19937.uniform(engine, shape, d, a, b)
        with np.errstate(divide="ignore"):
            level = np.log(mt19937.uniform(engine, shape, d, 0.0, 1.0))
        z = (x - d.type(mean)) / d.type(std)
        return x, level > z * z * d.type(-0.5) - d.type(peak)

    made, pending = candidates()
    while pending.any():
        x, rejected = candidates()
        made = np.where(pending, x, made)
        pending &= rejected
    return made


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fills with one number."""
    return _write(tensor, np.full(tuple(tensor.shape), val, tensor.dtype.numpy))


def ones_(tensor: Tensor) -> Tensor:
    """Fills with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fills with zeros."""
    return constant_(tensor, 0.0)


def eye_(tensor: Tensor) -> Tensor:
    """Makes a matrix the identity."""
    if tensor.dim() != 2:
        raise ArgumentError(f"eye_() fills matrices, got a tensor of type {tensor._value().type}")
    return _write(tensor, np.eye(*tensor.shape, dtype=tensor.dtype.numpy))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Makes a convolution kernel `[out, in, ...]` of 1 to 3 spatial dimensions the identity of its
    channels."""
    if not 3 <= tensor.dim() <= 5:
        raise ArgumentError(f"dirac_() fills tensors of 3 to 5 dimensions, got {tensor._value().type}")
    shape = tuple(tensor.shape)
    if shape[0] % groups:
        raise ArgumentError(f"dirac_(): {shape[0]} output channels can't be divided into {groups} groups")
    array = np.zeros(shape, tensor.dtype.numpy)
    per_group = shape[0] // groups
    centre = tuple(n // 2 for n in shape[2:])
    for g in range(groups):
        for d in range(min(per_group, shape[1])):
            array[(g * per_group + d, d, *centre)] = 1
    return _write(tensor, array)


def _fans(tensor: Tensor, what: str) -> tuple[int, int]:
    """Numbers of inputs and outputs of one unit of `[out, in, ...]`."""
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise ArgumentError(
            f"{what}() needs at least 2 dimensions (out, in, ...), got {tensor._value().type}"
        )
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    return _fans(tensor, "init")


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fills with U[-a, a), a = gain * sqrt(6 / (fan_in + fan_out))."""
    fan_in, fan_out = _fans(tensor, "xavier_uniform_")
    a = math.sqrt(3.0) * (gain * math.sqrt(2.0 / float(fan_in + fan_out)))
    return _draw_uniform(tensor, -a, a, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fills with N(0, std^2), std = gain * sqrt(2 / (fan_in + fan_out))."""
    fan_in, fan_out = _fans(tensor, "xavier_normal_")
    return _draw_normal(tensor, 0.0, gain * math.sqrt(2.0 / float(fan_in + fan_out)), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str, what: str) -> float:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"{what}(): mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(tensor, what)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _nothing_to_fill(tensor: Tensor, what: str) -> bool:
    if 0 in tuple(tensor.shape):
        warn(f"{what}(): a tensor of shape {list(tensor.shape)} has no elements to fill")
        return True
    return False


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Fills with U[-bound, bound), bound = gain * sqrt(3 / fan).

    Args:
        tensor: `[out, in, ...]`.
        a: negative slope of the leaky ReLU that follows.
        mode: `"fan_in"` keeps the scale of activations, `"fan_out"` that of gradients.
        nonlinearity: what follows, see `calculate_gain`.
    """
    if _nothing_to_fill(tensor, "kaiming_uniform_"):
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_uniform_")
    return _draw_uniform(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Fills with N(0, std^2), std = gain / sqrt(fan); arguments as in `kaiming_uniform_`."""
    if _nothing_to_fill(tensor, "kaiming_normal_"):
        return tensor
    return _draw_normal(
        tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity, "kaiming_normal_"), generator
    )


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Any = None) -> Tensor:
    """Makes `[rows, ...]`, as a matrix, orthonormal in its smaller dimension, times `gain`."""
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise ArgumentError(f"orthogonal_() needs at least 2 dimensions, got {tensor._value().type}")
    if 0 in shape:
        return tensor
    rows, columns = shape[0], math.prod(shape[1:])
    flat = mt19937.normal(generator_of(generator), (rows, columns), tensor.dtype.numpy, 0.0, 1.0)
    q, r = np.linalg.qr(flat.T if rows < columns else flat)
    q = q * np.sign(np.diag(r))  # makes the decomposition unique, and so the distribution uniform
    q = q.T if rows < columns else q
    return _write(tensor, np.ascontiguousarray(q.reshape(shape) * gain).astype(tensor.dtype.numpy))


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Any = None) -> Tensor:
    """Fills a matrix with N(0, std^2), then zeroes the fraction `sparsity` of each column."""
    if tensor.dim() != 2:
        raise ArgumentError(f"sparse_() fills matrices, got a tensor of type {tensor._value().type}")
    rows, columns = tuple(tensor.shape)
    engine = generator_of(generator)
    array = mt19937.normal(engine, (rows, columns), tensor.dtype.numpy, 0.0, std)
    zeros = math.ceil(sparsity * rows)
    for column in range(columns):
        # The row permutation is the global generator's even where `generator` is given, as in PyTorch.
        array[mt19937.randperm(generator_of(None), rows)[:zeros], column] = 0
    return _write(tensor, array)


check_names(globals(), [n for n in globals() if n.endswith("_") and n[0] != "_"] + ["calculate_gain"])
