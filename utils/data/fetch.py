"""Getting the samples of one batch and collating them, in the loader's process or in a worker, and what a
worker knows of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...ir.dataclass import dataclass
from ...tracer.lazy import run_pending
from ...tracer.recording import STATE, LazyTrace
from ...tracer.trie import TrieNode
from .collate import default_collate
from .dataset import IterableDataset, samples_of


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker knows of itself.

    Attributes:
        id: from 0 to `num_workers` - 1.
        num_workers: how many there are.
        seed: what its generators were seeded with.
        dataset: its copy of the dataset.
    """

    id: int
    num_workers: int
    seed: int
    dataset: Any


_INFO: list[WorkerInfo] = []

def get_worker_info() -> WorkerInfo | None:
    """In a worker process, what it knows of itself; None anywhere else."""
    return _INFO[-1] if _INFO else None


def become_worker(info: WorkerInfo) -> None:
    """Called once in a worker process."""
    _INFO.append(info)


class DataTrace(LazyTrace):
    """The pending program of data loading. Indices differ from batch to batch, and so do the programs that
    read samples: what is known of them is forgotten before it fills the memory."""

    MOST = 20_000
    interpreted = 50
    loading = True

    def __init__(self) -> None:
        super().__init__(run_pending)
        self.grown = 0

    def _grow(self, key: Any, place: TrieNode) -> TrieNode:
        self.grown += 1
        return super()._grow(key, place)

    def forget(self) -> None:
        """Called where nothing is pending."""
        if self.grown > self.MOST:
            self.grown = 0
            self.root = TrieNode(None)
            self._reset()


class Fetcher:
    """Makes batches of a dataset.

    Args:
        dataset: where samples come from.
        batched: whether an index is a list of indices.
        collate_fn: makes a batch of a list of samples, or converts one sample.
        drop_last: leave out what a stream's end leaves of a batch.
    """

    def __init__(self, dataset: Any, batched: bool, collate_fn: Callable[..., Any], drop_last: bool) -> None:
        self.dataset = dataset
        self.batched = batched
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.trace = DataTrace()
        self.stream: Iterator[Any] | None = None
        self.ended = False
        if isinstance(dataset, IterableDataset):
            with self.own_trace():
                self.stream = iter(dataset)

    @contextmanager
    def own_trace(self) -> Iterator[None]:
        """What is recorded inside does not mix with the user's pending program. Under `compile` it does."""
        old = STATE.lazy
        if STATE.trace is not old:
            yield
            return
        trace = self.trace
        trace.grad_enabled = old.grad_enabled
        STATE.lazy = STATE.trace = trace
        try:
            yield
            trace.flush()
        finally:
            STATE.lazy = STATE.trace = old
            if not trace.values:
                trace.forget()

    def fetch(self, index: Any) -> Any:
        """The batch (or sample) at an index. Raises StopIteration where a stream ends."""
        with self.own_trace():
            if self.stream is not None:
                return self.collate_fn(self._from_stream(index))
            if not self.batched:
                return self.collate_fn(self.dataset[index])
            if self.collate_fn is default_collate and hasattr(self.dataset, "gathered"):
                made = self.dataset.gathered(index)
                if made is not None:
                    return made
            return self.collate_fn(samples_of(self.dataset, index))

    def _from_stream(self, index: Any) -> Any:
        stream = self.stream
        assert stream is not None
        if not self.batched:
            return next(stream)
        samples: list[Any] = []
        while not self.ended and len(samples) < len(index):
            try:
                samples.append(next(stream))
            except StopIteration:
                self.ended = True
        if not samples or (self.drop_last and len(samples) < len(index)):
            raise StopIteration
        return samples
