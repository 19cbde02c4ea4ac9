"""Data loading against PyTorch: orders, random numbers left to others, seeds of workers, batches."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.utils import data as D


def _orders(lib: Any, U: Any, workers: int) -> list[Any]:
    lib.manual_seed(7)
    data = U.TensorDataset(lib.arange(53), lib.randn(53, 3))
    out: list[Any] = []
    for options in (
        {"shuffle": True, "batch_size": 10}, {"batch_size": 7, "drop_last": True},
        {"shuffle": True, "batch_size": None},
        {"sampler": U.WeightedRandomSampler([1.0, 2, 3, 4] * 10, 50), "batch_size": 8},
        {"sampler": U.WeightedRandomSampler([1.0, 2, 3, 4] * 10, 30, False), "batch_size": 8},
        {"sampler": U.RandomSampler(data, True, 70), "batch_size": 9},
        {"sampler": U.SubsetRandomSampler(range(5, 40)), "batch_size": 9},
        {"sampler": U.RandomSampler(data, False, 120), "batch_size": 9},
    ):  # fmt: skip
        loader = U.DataLoader(data, num_workers=workers, **options)
        for _ in range(2):
            out += [np.asarray(part) for batch in loader for part in batch]
            out.append(np.asarray(lib.rand(2)))
    own = U.DataLoader(data, shuffle=True, batch_size=9, generator=lib.Generator().manual_seed(3))
    out += [np.asarray(batch[0]) for _ in range(2) for batch in own]
    out += [np.array(part.indices) for part in U.random_split(data, [0.5, 0.3, 0.2])]
    return [*out, np.asarray(lib.rand(3))]


@pytest.mark.peer
@pytest.mark.parametrize("workers", [0, 2])
def test_orders_and_random_numbers_like_pytorch(workers: int) -> None:
    torch = pytest.importorskip("torch")
    mine, theirs = _orders(tg, D, workers), _orders(torch, torch.utils.data, workers)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs):
        assert np.array_equal(a, b)


class Seeds(D.IterableDataset):
    """What the generators of a worker give."""

    def __init__(self, lib: Any) -> None:
        self.lib = lib

    def __iter__(self) -> Any:
        yield from (random.random(), float(np.random.rand()), float(self.lib.rand(1)))


@pytest.mark.peer
def test_seeds_of_workers_like_pytorch() -> None:
    torch = pytest.importorskip("torch")

    class Theirs(torch.utils.data.IterableDataset):
        __init__, __iter__ = Seeds.__init__, Seeds.__iter__

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(4)
        theirs = list(torch.utils.data.DataLoader(Theirs(torch), batch_size=None, num_workers=2))
    tg.manual_seed(4)
    assert list(D.DataLoader(Seeds(tg), batch_size=None, num_workers=2)) == theirs


@pytest.mark.peer
def test_collation_like_pytorch() -> None:
    torch = pytest.importorskip("torch")
    samples = [
        {"a": np.float32(k), "b": (k, [1.5, np.arange(2) + k]), "c": "x", "d": k > 0} for k in range(3)
    ]
    mine, theirs = D.default_collate(samples), torch.utils.data.default_collate(samples)
    assert list(mine) == list(theirs) and mine["c"] == theirs["c"]
    for a, b in [(mine["a"], theirs["a"]), (mine["b"][0], theirs["b"][0]), (mine["d"], theirs["d"]),
                 *zip(mine["b"][1], theirs["b"][1])]:  # fmt: skip
        assert str(a.dtype).split(".")[-1] == str(b.dtype).split(".")[-1] and a.tolist() == b.tolist()
    assert type(mine["b"]) is type(theirs["b"])
