"""Samplers: in which order a `DataLoader` takes samples. They draw from the generator exactly what PyTorch's
draw, so the same seed gives the same order and leaves the same random numbers for what follows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ...ir.dtypes import float64
from ...tracer import mt19937
from ...tracer.creation import as_tensor
from ...tracer.library import ArgumentError, ArgumentTypeError, MissingForward
from ...tracer.random import Generator, generator_of
from ...tracer.tensor import Tensor
from .dataset import sized

T_co = TypeVar("T_co", covariant=True)
_DRAWN_AT_ONCE = 32  # indices with replacement, in PyTorch too: it decides how the generator is used


class Sampler(Generic[T_co]):
    """Base of samplers. Subclasses define `__iter__()`, which gives indices or lists of them, and mostly
    `__len__()`."""

    def __iter__(self) -> Iterator[T_co]:
        raise MissingForward(f"{type(self).__name__} has no __iter__(); define it in the class")


def _count(who: str, n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n <= 0:
        raise ArgumentError(f"{who}: num_samples must be a positive integer, got {n!r}")
    return n


def drawn_seed(generator: Generator | None) -> int:
    """A seed for another generator: one 64-bit draw."""
    return int(mt19937.random(generator_of(generator), ()))


class SequentialSampler(Sampler[int]):
    """0, 1, 2, ..."""

    def __init__(self, data_source: Any) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return sized(self.data_source, "SequentialSampler")


class RandomSampler(Sampler[int]):
    """Indices in random order.

    Args:
        data_source: something with a length.
        replacement: draw each index independently.
        num_samples: how many to give; the length if None. Without replacement more than the length are given
            as one permutation after another.
        generator: where to draw from; if None, each pass seeds one of its own from the default generator.
    """

    def __init__(
        self, data_source: Any, replacement: bool = False, num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(replacement, bool):
            raise ArgumentTypeError(f"RandomSampler: replacement must be a bool, got {replacement!r}")
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator
        _count("RandomSampler", self.num_samples)

    @property
    def num_samples(self) -> int:
        if self._num_samples is None:
            return sized(self.data_source, "RandomSampler")
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        n, wanted = sized(self.data_source, "RandomSampler"), self.num_samples
        generator = self.generator
        if generator is None:
            generator = Generator().manual_seed(drawn_seed(None))
        engine = generator.engine
        if self.replacement:
            for start in range(0, wanted, _DRAWN_AT_ONCE):
                size = min(_DRAWN_AT_ONCE, wanted - start)
                yield from mt19937.randint(engine, 0, n, (size,)).tolist()
            return
        for _ in range(wanted // n):
            yield from mt19937.randperm(engine, n).tolist()
        # PyTorch draws a permutation for the rest even where there is none.
        yield from mt19937.randperm(engine, n).tolist()[: wanted % n]

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """Given indices in random order.

    Args:
        indices: what to give.
        generator: where to draw from; the default one if None.
    """

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        for i in mt19937.randperm(generator_of(self.generator), len(self.indices)).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """Indices drawn with probabilities proportional to weights.

    Args:
        weights: one non-negative number per index.
        num_samples: how many to draw.
        replacement: whether an index may come more than once.
        generator: where to draw from; the default one if None.
    """

    def __init__(
        self, weights: Any, num_samples: int, replacement: bool = True, generator: Generator | None = None
    ) -> None:
        _count("WeightedRandomSampler", num_samples)
        if not isinstance(replacement, bool):
            raise ArgumentError(f"WeightedRandomSampler: replacement must be a bool, got {replacement!r}")
        self.weights: Tensor = as_tensor(weights, dtype=float64)
        if self.weights.dim() != 1:
            raise ArgumentError(
                f"WeightedRandomSampler: weights must be a vector, got shape {list(self.weights.shape)}"
            )
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        weights = np.asarray(self.weights.detach().numpy(), np.float64)
        engine = generator_of(self.generator)
        yield from mt19937.multinomial(engine, weights, self.num_samples, self.replacement).tolist()

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of `batch_size` indices of another sampler; the last may be shorter, or is left out.

    Args:
        sampler: gives indices; any iterable.
        batch_size: how many make a batch.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size <= 0:
            raise ArgumentError(f"BatchSampler: batch_size must be a positive integer, got {batch_size!r}")
        if not isinstance(drop_last, bool):
            raise ArgumentError(f"BatchSampler: drop_last must be a bool, got {drop_last!r}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if len(batch) < self.batch_size and self.drop_last:
                return
            yield batch

    def __len__(self) -> int:
        n = sized(self.sampler, "BatchSampler")
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
