"""`DataLoader`: batches of a dataset in a sampler's order, made here or by worker processes (workers.py)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...tracer.callers import warn
from ...tracer.library import ArgumentError, ArgumentTypeError
from ...tracer.random import Generator
from .collate import default_collate, default_convert, pinned_batch
from .dataset import Dataset, IterableDataset, sized
from .fetch import Fetcher
from .sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler, drawn_seed

if TYPE_CHECKING:
    from .workers import WorkerPool

T = TypeVar("T")
_FIXED = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


class Forever(Sampler[None]):
    """The indices of a stream, which needs none."""

    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None)


class DataLoader(Generic[T]):
    """Iterates over a dataset in batches.

    Args:
        dataset: samples by index, or an `IterableDataset`.
        batch_size: samples per batch; None gives samples one by one, uncollated.
        shuffle: another random order each time.
        sampler: gives the indices; instead of `shuffle`.
        batch_sampler: gives lists of indices; instead of `batch_size`, `shuffle`, `sampler` and `drop_last`.
        num_workers: processes that make batches ahead; 0 makes them here, when they are asked for.
        collate_fn: makes a batch of a list of samples; `default_collate` if None.
        pin_memory: batches are put in pinned memory, from which `.to("cuda", non_blocking=True)` copies
            beside the program; where there is no GPU it changes nothing.
        pin_memory_device: taken for compatibility; pinned memory is for all GPUs.
        drop_last: leave out a last batch that is not full.
        timeout: seconds to wait for a worker's batch; 0 waits for ever.
        worker_init_fn: called in each worker with its number, after its generators are seeded.
        multiprocessing_context: how workers start: a name or a context of `multiprocessing`; its default if
            None.
        generator: where orders and workers' seeds are drawn from; the default one if None.
        prefetch_factor: batches each worker makes ahead; 2 if None.
        persistent_workers: keep the workers, and their copies of the dataset, from one pass to the next.
        in_order: give batches in the sampler's order; False gives them as they come.

    Raises:
        TracegradError: options that exclude each other, or bad values.
    """

    _ready = False

    def __init__(
        self, dataset: Dataset[T], batch_size: int | None = 1, shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None, batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0, collate_fn: Callable[[Any], Any] | None = None, pin_memory: bool = False,
        drop_last: bool = False, timeout: float = 0, worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: Any = None, generator: Generator | None = None, *,
        prefetch_factor: int | None = None, persistent_workers: bool = False, pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:  # fmt: skip
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise ArgumentError(f"DataLoader: num_workers must be an integer >= 0, got {num_workers!r}")
        if timeout < 0:
            raise ArgumentError(f"DataLoader: timeout must be >= 0 seconds, got {timeout}")
        if num_workers == 0:
            for name, given in (
                ("prefetch_factor", prefetch_factor is not None),
                ("persistent_workers", persistent_workers),
                ("multiprocessing_context", multiprocessing_context is not None),
                ("timeout", timeout > 0),
            ):
                if given:
                    raise ArgumentError(f"DataLoader: {name} is for workers; pass num_workers > 0 with it")
        elif prefetch_factor is not None and prefetch_factor < 1:
            raise ArgumentError(f"DataLoader: prefetch_factor must be at least 1, got {prefetch_factor}")
        self._stream = isinstance(dataset, IterableDataset)
        if self._stream:
            for name, order in (("shuffle", shuffle), ("sampler", sampler), ("batch_sampler", batch_sampler)):
                if order is not None and order is not False:
                    raise ArgumentError(
                        f"DataLoader: an IterableDataset has an order of its own; leave out {name}"
                    )
        if sampler is not None and shuffle:
            raise ArgumentError("DataLoader: give either sampler or shuffle, not both")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ArgumentError(
                    "DataLoader: batch_sampler stands instead of batch_size, shuffle, sampler and drop_last; "
                    "leave them out"
                )
            batch_size = None
        elif batch_size is None and drop_last:
            raise ArgumentError("DataLoader: drop_last is about batches; with batch_size=None there are none")
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = 2 if num_workers and prefetch_factor is None else prefetch_factor
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.in_order = in_order
        if sampler is None:
            if self._stream:
                sampler = Forever()
            elif shuffle:
                sampler = RandomSampler(dataset, generator=generator)
            else:
                sampler = SequentialSampler(dataset)
        if batch_size is not None and batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.generator = generator
        batched = batch_sampler is not None
        self.collate_fn = collate_fn or (default_collate if batched else default_convert)
        self.persistent_workers = persistent_workers
        self._pool: WorkerPool | None = None
        self._length_told: int | None = None
        if num_workers > (cpus := _cpus()):
            warn(
                f"DataLoader: {num_workers} workers are more than the {cpus} processors there are; they will "
                f"slow each other down"
            )
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._ready and name in _FIXED:
            raise ArgumentError(f"DataLoader: {name} can't be changed; make another DataLoader")
        if name == "multiprocessing_context" and value is not None:
            value = _context(value)
        super().__setattr__(name, value)

    @property
    def indices(self) -> Iterable[Any]:
        """What the dataset is asked for, one entry per batch."""
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def __iter__(self) -> Iterator[Any]:
        pool = self._pool
        if pool is not None and not pool.closed:
            return Batches(self, pool.begin(iter(self.indices)))
        # PyTorch draws this seed whether or not there are workers, and before the sampler draws its own.
        indices, seed = iter(self.indices), drawn_seed(self.generator)
        if self.num_workers == 0:
            batched = self.batch_sampler is not None
            fetcher = Fetcher(self.dataset, batched, self.collate_fn, self.drop_last)
            return Batches(self, map(fetcher.fetch, indices))
        from .workers import WorkerPool  # loads multiprocessing and what it needs

        pool = WorkerPool(self, seed)
        if self.persistent_workers:
            self._pool = pool
        return Batches(self, pool.begin(indices))

    def __len__(self) -> int:
        """Batches of one pass. Of a stream it is what the stream's own length says."""
        if not self._stream:
            return sized(self.indices, "DataLoader")
        n = self._length_told = sized(self.dataset, "DataLoader")
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class Batches:
    """One pass over a loader."""

    def __init__(self, loader: DataLoader[Any], batches: Iterator[Any]) -> None:
        self._loader = loader
        self._batches = batches
        self._given = 0

    def __iter__(self) -> Batches:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._given += 1
        told = self._loader._length_told
        if told is not None and self._given > told:
            hint = "; each worker iterates over a copy: give it its part" if self._loader.num_workers else ""
            warn(
                f"DataLoader: the length of {type(self._loader.dataset).__name__} is {told}, but "
                f"{self._given} batches were made{hint}"
            )
        return pinned_batch(batch) if self._loader.pin_memory else batch


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context(value: Any) -> Any:
    import multiprocessing
    from multiprocessing.context import BaseContext

    if isinstance(value, str):
        known = multiprocessing.get_all_start_methods()
        if value not in known:
            raise ArgumentError(f"DataLoader: multiprocessing_context must be one of {known}, got {value!r}")
        return multiprocessing.get_context(value)
    if not isinstance(value, BaseContext):
        raise ArgumentTypeError(
            f"DataLoader: multiprocessing_context must be a name or a context, got {type(value).__name__}"
        )
    return value
