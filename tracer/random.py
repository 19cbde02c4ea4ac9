"""Random tensors from PyTorch's CPU generator (tracer/mt19937.py): same seed, same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.dtypes import DType
from ..ir.errors import TraceError
from ..runtime.buffers import copy_of
from . import mt19937
from .creation import shape_of
from .operands import get_default_dtype
from .recording import STATE
from .tensor import Tensor, concrete, device


class Generator:
    """A PyTorch-compatible random number generator on the CPU."""

    def __init__(self, device: Any = "cpu") -> None:
        self.engine = mt19937.MT19937()

    @property
    def device(self) -> device:
        return device("cpu")

    def manual_seed(self, seed: int) -> Generator:
        """Restarts the stream from a seed."""
        self.engine.manual_seed(seed)
        return self

    def seed(self) -> int:
        """Restarts the stream from a seed taken from the system, and gives it."""
        return self.engine.seed()

    def initial_seed(self) -> int:
        """The seed the stream was started with."""
        return self.engine.initial_seed()

    def get_state(self) -> Tensor:
        """The whole state as a uint8 tensor, in PyTorch's layout."""
        return concrete(copy_of(self.engine.get_state(), dtypes.uint8))

    def set_state(self, state: Tensor) -> None:
        """Restores a state from `get_state` (or from PyTorch)."""
        self.engine.set_state(np.array(state.detach().numpy(), np.uint8))


default_generator = Generator()


def generator_of(generator: Generator | None) -> mt19937.MT19937:
    """The engine to draw from. Drawing inside a compiled function would bake one draw into it: an error."""
    if STATE.trace is not STATE.lazy:
        raise TraceError(
            "drawing random numbers inside a compiled function would repeat the same numbers at every call; "
            "draw them outside and pass them in"
        )
    return (generator or default_generator).engine


def manual_seed(seed: int) -> Generator:
    """Seeds the default generator; the same seed gives PyTorch's numbers."""
    return default_generator.manual_seed(int(seed))


def seed() -> int:
    """Seeds the default generator from the system."""
    return default_generator.seed()


def initial_seed() -> int:
    """The default generator's seed."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The default generator's state."""
    return default_generator.get_state()


def set_rng_state(state: Tensor) -> None:
    """Restores the default generator's state."""
    default_generator.set_state(state)


def _made(array: np.ndarray, dtype: DType, requires_grad: bool) -> Tensor:
    t = concrete(copy_of(array, dtype))
    return t.requires_grad_() if requires_grad else t


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Samples of U[0, 1)."""
    d = dtype or get_default_dtype()
    return _made(mt19937.uniform(generator_of(generator), shape_of(size), d.numpy), d, requires_grad)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Samples of the standard normal distribution."""
    d = dtype or get_default_dtype()
    return _made(mt19937.normal(generator_of(generator), shape_of(size), d.numpy), d, requires_grad)


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Integers of [low, high), i64 unless a dtype is given; `randint(high, size)` starts at 0."""
    if size is None:
        low, high, size = 0, low, high
    d = dtype or dtypes.int64
    array = mt19937.randint(generator_of(generator), int(low), int(high), shape_of((size,)), d.numpy)
    return _made(array, d, requires_grad)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A random permutation of 0 .. n-1."""
    d = dtype or dtypes.int64
    return _made(mt19937.randperm(generator_of(generator), n, d.numpy), d, requires_grad)


def rand_like(input: Tensor, *, dtype: DType | None = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """U[0, 1) samples of `input`'s shape."""
    return rand(*input.shape, dtype=dtype or input.dtype, requires_grad=requires_grad)


def randn_like(input: Tensor, *, dtype: DType | None = None, requires_grad: bool = False, **_: Any) -> Tensor:
    """Standard normal samples of `input`'s shape."""
    return randn(*input.shape, dtype=dtype or input.dtype, requires_grad=requires_grad)


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """Ones with the probabilities in `input`, else zeros."""
    p = input.detach()._array()
    return _made(mt19937.bernoulli(generator_of(generator), p, dtype=input.dtype.numpy), input.dtype, False)


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the (unnormalised) probabilities of each row."""
    p = input.detach()._array()
    return _made(
        mt19937.multinomial(generator_of(generator), p, num_samples, replacement), dtypes.int64, False
    )
