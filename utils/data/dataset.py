"""Datasets: what a `DataLoader` reads from, and ways to combine and split them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ...ir.errors import IndexOutOfRange
from ...runtime.buffers import copy_of
from ...tracer import mt19937
from ...tracer.callers import warn
from ...tracer.library import ArgumentError, ArgumentTypeError, MissingForward, device_name
from ...tracer.random import Generator, default_generator, generator_of
from ...tracer.recording import STATE
from ...tracer.tensor import Tensor, concrete

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    """Base of datasets with samples by index. Subclasses define `__getitem__(index)` and mostly `__len__()`;
    one that is faster with many indices at once also defines `__getitems__(indices)`, which gives a list of
    samples.
    """

    def __getitem__(self, index: Any) -> T_co:
        raise MissingForward(f"{type(self).__name__} has no __getitem__(); define it in the class")

    def __add__(self, other: Dataset[Any]) -> ConcatDataset:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co]):
    """Base of datasets that are streams. Subclasses define `__iter__()`. With worker processes each iterates
    over a copy: `get_worker_info()` tells it which part to give."""

    def __iter__(self) -> Iterator[T_co]:
        raise MissingForward(f"{type(self).__name__} has no __iter__(); define it in the class")

    def __add__(self, other: Dataset[Any]) -> Any:
        return ChainDataset([self, other])


def sized(dataset: Any, who: str) -> int:
    """`len(dataset)`, or an error that says who needed it."""
    try:
        return len(dataset)
    except TypeError:
        raise ArgumentTypeError(
            f"{who}: {type(dataset).__name__} has no length; define __len__() in it"
        ) from None


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples `(t[i] for t in tensors)`.

    Args:
        tensors: of one size of the first dimension.
    """

    def __init__(self, *tensors: Tensor) -> None:
        for t in tensors:
            if not isinstance(t, Tensor):
                raise ArgumentTypeError(
                    f"TensorDataset takes tensors, got {type(t).__name__}; convert with tracegrad.as_tensor()"
                )
        if not tensors:
            raise ArgumentError("TensorDataset needs at least one tensor")
        if any(t.dim() == 0 for t in tensors) or len({t.shape[0] for t in tensors}) > 1:
            shapes = ", ".join(str(list(t.shape)) for t in tensors)
            raise ArgumentError(
                f"TensorDataset: the tensors must have one size of the first dimension, got shapes {shapes}"
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple([t[index] for t in self.tensors])

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def gathered(self, indices: Sequence[int]) -> list[Tensor] | None:
        """`default_collate([self[i] for i in indices])` without the samples between; None if gradients flow
        or a subclass has samples of its own."""
        if type(self).__getitem__ is not TensorDataset.__getitem__ or STATE.trace is not STATE.lazy:
            return None
        if not indices or any(t.requires_grad for t in self.tensors):
            return None
        where = np.asarray(indices)
        if where.dtype.kind != "i" or where.ndim != 1:
            return None
        n = len(self)
        if where.min() < -n or where.max() >= n:
            return None  # the ordinary way says which index
        return [concrete(copy_of(t._array()[where], t.dtype).on(device_name(t))) for t in self.tensors]


class StackDataset(Dataset[Any]):
    """Samples that hold one sample of each dataset: a tuple, or a dict if they are given by name.

    Args:
        args, kwargs: datasets of one length, positional or by name.
    """

    datasets: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if bool(args) == bool(kwargs):
            raise ArgumentError(
                "StackDataset takes datasets either by position (samples are tuples) or by name (dicts), got "
                + ("both" if args else "none")
            )
        self.datasets = args or kwargs
        lengths = [sized(d, "StackDataset") for d in args or kwargs.values()]
        if len(set(lengths)) > 1:
            raise ArgumentError(f"StackDataset: the datasets must have one length, got {lengths}")
        self._length = lengths[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self.datasets, dict):
            return {k: d[index] for k, d in self.datasets.items()}
        return tuple([d[index] for d in self.datasets])

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        named = isinstance(self.datasets, dict)
        columns = [samples_of(d, indices) for d in (self.datasets.values() if named else self.datasets)]
        if named:
            return [dict(zip(self.datasets, row)) for row in zip(*columns)]
        return list(zip(*columns))

    def __len__(self) -> int:
        return self._length


def samples_of(dataset: Any, indices: Sequence[Any]) -> list[Any]:
    """The samples at the indices, by `__getitems__` where the dataset has it."""
    many = getattr(dataset, "__getitems__", None)
    if not many:
        return [dataset[i] for i in indices]
    samples = many(indices)
    if len(samples) != len(indices):
        raise ArgumentError(
            f"{type(dataset).__name__}.__getitems__ gave {len(samples)} samples for {len(indices)} indices"
        )
    return samples


class ConcatDataset(Dataset[Any]):
    """Datasets one after another.

    Args:
        datasets: at least one, none of them iterable-style.
    """

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ArgumentError("ConcatDataset needs at least one dataset")
        if any(isinstance(d, IterableDataset) for d in self.datasets):
            raise ArgumentTypeError("ConcatDataset takes no IterableDataset; use ChainDataset for streams")
        lengths = [sized(d, "ConcatDataset") for d in self.datasets]
        self.cumulative_sizes = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: Any) -> Any:
        n = len(self)
        if index < -n:
            raise ArgumentError(f"ConcatDataset: index {index} is out of range for {n} samples")
        if index < 0:
            index += n
        k = bisect.bisect_right(self.cumulative_sizes, index)
        if k == len(self.datasets):
            raise IndexOutOfRange(f"ConcatDataset: index {index} is out of range for {n} samples")
        return self.datasets[k][index - (self.cumulative_sizes[k - 1] if k else 0)]


class ChainDataset(IterableDataset[Any]):
    """Streams one after another.

    Args:
        datasets: iterable-style datasets.
    """

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = datasets

    def _streams(self) -> Iterator[Any]:
        for d in self.datasets:
            if not isinstance(d, IterableDataset):
                raise ArgumentTypeError(f"ChainDataset takes IterableDatasets, got {type(d).__name__}")
            yield d

    def __iter__(self) -> Iterator[Any]:
        for d in self._streams():
            yield from d

    def __len__(self) -> int:
        return sum(sized(d, "ChainDataset") for d in self._streams())


class Subset(Dataset[T_co]):
    """The samples of a dataset at some indices.

    Args:
        dataset: samples by index.
        indices: which of them, in this order.
    """

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[Any]) -> None:
        own = type(self)
        if own.__getitem__ is not Subset.__getitem__ and own.__getitems__ is Subset.__getitems__:
            raise NotImplementedError(
                f"{own.__name__} defines __getitem__ but not __getitems__, which loaders call; add "
                f"`def __getitems__(self, indices): return [self[i] for i in indices]`"
            )
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        return samples_of(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)

    def gathered(self, indices: Sequence[int]) -> list[Tensor] | None:
        """See `TensorDataset.gathered`."""
        inner = getattr(self.dataset, "gathered", None)
        if inner is None or type(self).__getitems__ is not Subset.__getitems__:
            return None
        return inner([self.indices[i] for i in indices])


def random_split(
    dataset: Dataset[Any], lengths: Sequence[int | float], generator: Generator | None = default_generator
) -> list[Subset[Any]]:
    """The dataset cut at random into parts that don't overlap.

    Args:
        dataset: samples by index.
        lengths: sizes of the parts, or fractions that sum to 1; what rounding leaves over goes to the first
            parts, one each.
        generator: where the permutation is drawn from.

    Raises:
        TracegradError: the lengths don't sum to the dataset's, or a fraction is not in [0, 1].
    """
    n = sized(dataset, "random_split()")
    total = sum(lengths)
    sizes: list[Any] = list(lengths)
    if total <= 1 and math.isclose(total, 1):
        for i, part in enumerate(sizes):
            if not 0 <= part <= 1:
                raise ArgumentError(f"random_split(): fraction {i} must be between 0 and 1, got {part}")
        sizes = [math.floor(n * part) for part in sizes]
        for i in range(n - sum(sizes)):
            sizes[i % len(sizes)] += 1
        for i, size in enumerate(sizes):
            if size == 0:
                warn(f"random_split(): part {i} of {n} samples is empty")
    if sum(sizes) != n:
        raise ArgumentError(
            f"random_split(): lengths {sizes} sum to {sum(sizes)}, but the dataset has {n} samples"
        )
    order = mt19937.randperm(generator_of(generator), n).tolist()
    ends = itertools.accumulate(sizes)
    return [Subset(dataset, order[end - size : end]) for end, size in zip(ends, sizes)]
