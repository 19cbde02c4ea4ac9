"""Datasets, samplers, collation and the loader, with and without worker processes."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.utils import data as D
from tracegrad.utils.data import transport

Pair = namedtuple("Pair", "x y")


class Squares(D.Dataset):
    def __init__(self, n: int = 10) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return tg.tensor([float(i * i)]), i


class Stream(D.IterableDataset):
    """0 .. n-1, shared out among workers."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        info = D.get_worker_info()
        step = (info.id, info.num_workers) if info else (0, 1)
        return iter(range(step[0], self.n, step[1]))


class Failing(Squares):
    def __getitem__(self, i: int) -> Any:
        if i == 5:
            raise KeyError("five is missing")
        return i


class Dying(Squares):
    def __getitem__(self, i: int) -> Any:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return i


class Large(Squares):
    def __getitem__(self, i: int) -> Any:
        return np.full((200, 100), i, np.float32), tg.full((300, 10), i)


def listed(loader: Any) -> list[Any]:
    return [b.tolist() if isinstance(b, tg.Tensor) else b for b in loader]


# --- datasets ---


def test_datasets() -> None:
    x, y = tg.arange(6).reshape(6, 1), tg.arange(6) * 10
    both = D.TensorDataset(x, y)
    assert len(both) == 6 and [t.tolist() for t in both[2]] == [[2], 20]
    assert [t.tolist() for t in both[1:3]] == [[[1], [2]], [10, 20]]
    more = both + both
    assert isinstance(more, D.ConcatDataset) and len(more) == 12 and more.cumulative_sizes == [6, 12]
    assert more[7][1].item() == 10 and more[-1][1].item() == 50
    part = D.Subset(both, [4, 1])
    assert len(part) == 2 and part[0][1].item() == 40 and part[[0, 1]][1].tolist() == [40, 10]
    stacked = D.StackDataset(a=both, b=Squares(6))
    assert len(stacked) == 6 and stacked[2]["b"][1] == 2
    assert [s["b"][1] for s in stacked.__getitems__([3, 1])] == [3, 1]
    assert D.StackDataset(both, Squares(6))[1][1][1] == 1
    chain = Stream(3) + Stream(2)
    assert isinstance(chain, D.ChainDataset) and list(chain) == [0, 1, 2, 0, 1]


def test_dataset_errors() -> None:
    for make, text in [
        (lambda: D.TensorDataset(tg.ones(2), tg.ones(3)), "one size of the first dimension"),
        (lambda: D.TensorDataset(), "at least one tensor"),
        (lambda: D.TensorDataset(np.ones(3)), "as_tensor"),
        (lambda: D.ConcatDataset([]), "at least one dataset"),
        (lambda: D.ConcatDataset([Stream(3)]), "ChainDataset"),
        (lambda: D.StackDataset(), "none"),
        (lambda: D.StackDataset(Squares(2), Squares(3)), "one length"),
        (lambda: D.random_split(Squares(10), [3, 4]), "sum to 7"),
        (lambda: D.random_split(Squares(10), [1.2, -0.2]), "between 0 and 1"),
        (lambda: D.RandomSampler(Squares(0)), "positive"),
        (lambda: D.WeightedRandomSampler([[1.0]], 2), "vector"),
        (lambda: D.BatchSampler(range(3), 0, False), "batch_size"),
        (lambda: len(D.DataLoader(Stream(3))), "has no length"),
        (lambda: D.DataLoader(Stream(3), shuffle=True), "order of its own"),
        (lambda: D.DataLoader(Squares(), shuffle=True, sampler=range(3)), "not both"),
        (lambda: D.DataLoader(Squares(), batch_size=2, batch_sampler=[[1]]), "stands instead"),
        (lambda: D.DataLoader(Squares(), batch_size=None, drop_last=True), "drop_last"),
        (lambda: D.DataLoader(Squares(), num_workers=-1), "num_workers"),
        (lambda: D.DataLoader(Squares(), prefetch_factor=2), "num_workers > 0"),
        (lambda: D.DataLoader(Squares(), num_workers=1, multiprocessing_context="no"), "must be one of"),
    ]:
        with pytest.raises(tg.TracegradError, match=text):
            make()
    with pytest.raises(tg.TracegradError, match="can't be changed"):
        D.DataLoader(Squares()).batch_size = 3


def test_random_split() -> None:
    tg.manual_seed(0)
    a, b, c = D.random_split(Squares(10), [0.5, 0.3, 0.25 - 0.05])
    assert [len(s) for s in (a, b, c)] == [5, 3, 2]
    assert sorted([*a.indices, *b.indices, *c.indices]) == list(range(10))
    assert [len(s) for s in D.random_split(Squares(10), [1 / 3] * 3)] == [4, 3, 3]
    with pytest.warns(UserWarning, match="part 1 .* is empty"):
        D.random_split(Squares(1), [0.5, 0.5])


# --- collation ---


def test_default_collate() -> None:
    c = D.default_collate
    assert c([1, 2]).tolist() == [1, 2] and c([1, 2]).dtype is tg.int64
    assert c([1.0, 2.5]).dtype is tg.float64 and c([True, False]).dtype is tg.bool
    assert c([np.float32(1), np.float32(2)]).dtype is tg.float32
    assert c(["a", "b"]) == ["a", "b"] and c([b"a"]) == [b"a"]
    assert c([np.ones(2, np.int32), np.zeros(2, np.int32)]).tolist() == [[1, 1], [0, 0]]
    assert c([tg.ones(2), tg.zeros(2)]).tolist() == [[1, 1], [0, 0]]
    out = c([Pair(1, {"k": [2, 3]}), Pair(4, {"k": [5, 6]})])
    assert type(out) is Pair and out.x.tolist() == [1, 4]
    assert [t.tolist() for t in out.y["k"]] == [[2, 5], [3, 6]]
    assert isinstance(c([(1, 2)]), list) and type(c([OrderedDict(a=1)])) is OrderedDict
    grown: Any = defaultdict(list, a=1)
    assert c([grown]).default_factory is list
    x = tg.ones(2, requires_grad=True)
    c([x, x]).sum().backward()
    assert x.grad.tolist() == [2, 2]
    for bad, text in [
        ([tg.ones(2), tg.ones(3)], "one shape"), ([[1], [1, 2]], "one length"), ([object()], "holds object"),
        ([{"a": 1}, {"b": 1}], "no entry 'a'"), ([np.array(["x"])], "no tensor"),
    ]:  # fmt: skip
        with pytest.raises(tg.TracegradError, match=text):
            c(bad)


def test_default_convert() -> None:
    out = D.default_convert({"a": np.arange(2), "b": (np.ones(1), "s"), "c": Pair(np.int64(3), None)})
    assert out["a"].tolist() == [0, 1] and isinstance(out["b"], list) and out["b"][1] == "s"
    assert type(out["c"]) is Pair and out["c"].x.item() == 3 and out["c"].y is None
    assert D.default_convert(7) == 7


# --- the loader in this process ---


def test_batches_in_order() -> None:
    loader = D.DataLoader(D.TensorDataset(tg.arange(7)), batch_size=3)
    assert len(loader) == 3 and [b[0].tolist() for b in loader] == [[0, 1, 2], [3, 4, 5], [6]]
    assert listed(D.DataLoader(range(7), batch_size=3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    assert listed(D.DataLoader(range(3), batch_size=None)) == [0, 1, 2]
    assert listed(D.DataLoader(range(5), batch_sampler=[[4, 1], [0]])) == [[4, 1], [0]]
    assert listed(D.DataLoader(range(4), batch_size=2, collate_fn=sum)) == [1, 5]
    assert listed(D.DataLoader(Stream(5), batch_size=2)) == [[0, 1], [2, 3], [4]]
    assert listed(D.DataLoader(Stream(5), batch_size=2, drop_last=True)) == [[0, 1], [2, 3]]
    part = D.Subset(D.TensorDataset(tg.arange(7) * 2), [5, 3, 1])
    assert [b[0].tolist() for b in D.DataLoader(part, batch_size=2)] == [[10, 6], [2]]


def test_shuffled_epochs_differ_and_repeat_with_the_seed() -> None:
    loader = D.DataLoader(range(20), batch_size=20, shuffle=True)
    tg.manual_seed(3)
    first, second = next(iter(loader)).tolist(), next(iter(loader)).tolist()
    assert sorted(first) == list(range(20)) and first != second
    tg.manual_seed(3)
    assert next(iter(loader)).tolist() == first
    own = [tg.Generator().manual_seed(1) for _ in range(2)]
    a, b = (listed(D.DataLoader(range(20), shuffle=True, generator=g)) for g in own)
    assert a == b


def test_views_of_a_loaded_tensor_share_memory_and_see_writes() -> None:
    """Samples are rows read without recording; they are still views."""
    x = tg.zeros(4, 2)

    class Writes(D.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            row = x[i]
            row += i
            return row * 2

    assert listed(D.DataLoader(Writes(), batch_size=4)) == [[[2 * i] * 2 for i in range(4)]]
    assert x.tolist() == [[i] * 2 for i in range(4)]
    with pytest.raises(tg.TracegradError, match="out of bounds"):
        list(D.DataLoader(D.Subset(D.TensorDataset(x), [9])))


def test_random_reads_do_not_fill_the_memory_or_the_compiler() -> None:
    x = tg.randn(50, 3)

    class Rows(D.Dataset):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, i: int) -> Any:
            return x[i] * 2

    from tracegrad.runtime import executable

    made: list[Any] = []
    executable.LISTENERS.append(made.append)
    try:
        for _ in range(8):
            for batch in D.DataLoader(Rows(), batch_size=5, shuffle=True):
                assert batch.shape == (5, 3)
    finally:
        executable.LISTENERS.remove(made.append)
    assert len(made) <= 1  # one program, whatever the indices


def test_training_on_batches() -> None:
    tg.manual_seed(0)
    x = tg.randn(64, 3)
    loader = D.DataLoader(D.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16, shuffle=True)
    model = tg.nn.Linear(3, 1)
    optimizer = tg.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        for a, b in loader:
            optimizer.zero_grad()
            loss = ((model(a) - b) ** 2).mean()
            loss.backward()
            optimizer.step()
    assert loss.item() < 1e-3


# --- workers ---


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches(context: str) -> None:
    tg.manual_seed(0)
    plain = [(x.tolist(), i.tolist()) for x, i in D.DataLoader(Squares(23), batch_size=4, shuffle=True)]
    tg.manual_seed(0)
    loader = D.DataLoader(
        Squares(23), batch_size=4, shuffle=True, num_workers=2, multiprocessing_context=context
    )
    assert [(x.tolist(), i.tolist()) for x, i in loader] == plain
    after = tg.rand(1).item()
    tg.manual_seed(0)
    list(D.DataLoader(range(9), shuffle=True))
    assert tg.rand(1).item() == after


def test_large_batches_come_through_shared_memory() -> None:
    loader = D.DataLoader(Large(6), batch_size=2, num_workers=2)
    kept = list(loader)
    for k, (a, b) in enumerate(kept):
        assert (a.numpy() == np.array([2 * k, 2 * k + 1])[:, None, None]).all() and a.shape == (2, 200, 100)
        a += 1  # the memory is ours
        assert b[1].tolist() == [[2 * k + 1] * 10] * 300 and a[0, 0, 0].item() == 2 * k + 1


def test_transport(tmp_path: Any, monkeypatch: Any) -> None:
    message = {"a": np.arange(50_000), "b": [np.ones(10), np.zeros((0, 3))], "c": tg.ones(40, 40)}
    for room in (True, False):
        if not room:
            monkeypatch.setattr(transport, "_written", lambda arrays, directory: None)
        back = transport.unpack(transport.pack(message, str(tmp_path)))
        assert (back["a"] == message["a"]).all() and back["b"][1].shape == (0, 3) and back["c"].sum() == 1600
        back["a"][0] = 7
        assert not list(tmp_path.iterdir())


def test_streams_are_shared_out() -> None:
    loader = D.DataLoader(Stream(11), batch_size=2, num_workers=2)
    expected = [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9]]
    assert listed(loader) == expected and listed(loader) == expected


def test_workers_know_themselves_and_are_seeded() -> None:
    class Who(D.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            info = D.get_worker_info()
            numbers = (random.random(), float(np.random.rand()), tg.rand(1).item())
            return info.id, info.num_workers, info.seed, os.getpid(), info.dataset is self, numbers, LABEL

    def label(k: int) -> None:
        global LABEL
        LABEL = f"worker {k}"

    assert D.get_worker_info() is None
    tg.manual_seed(5)
    seen = list(D.DataLoader(Who(), batch_size=None, num_workers=2, worker_init_fn=label))
    assert [s[0] for s in seen] == [0, 1, 0, 1] and {s[1] for s in seen} == {2}
    pids = {s[3] for s in seen}
    assert seen[1][2] == seen[0][2] + 1 and os.getpid() not in pids and len(pids) == 2
    assert all(s[4] for s in seen) and seen[1][6] == "worker 1"
    drawn = list(itertools.chain.from_iterable(s[5] for s in seen))
    assert len(set(drawn)) == 12
    tg.manual_seed(5)
    again = list(D.DataLoader(Who(), batch_size=None, num_workers=2, worker_init_fn=label))
    assert list(itertools.chain.from_iterable(s[5] for s in again)) == drawn


LABEL = ""


def test_persistent_workers() -> None:
    class Pids(Squares):
        def __getitem__(self, i: int) -> Any:
            return os.getpid()

    loader = D.DataLoader(Pids(6), batch_size=None, num_workers=2, persistent_workers=True)
    begun = iter(loader)
    first = next(begun)
    a, b = set(loader), set(loader)
    assert a == b and first in a and len(a) == 2
    assert list(begun) == []  # its workers went on to another pass
    again = D.DataLoader(Pids(6), batch_size=None, num_workers=2)
    assert not set(again) & set(again)


def test_errors_of_workers_are_raised_here() -> None:
    loader = D.DataLoader(Failing(8), batch_size=2, num_workers=2)
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1] and next(batches).tolist() == [2, 3]
    with pytest.raises(KeyError, match=r"in DataLoader worker 0 .*index \[4, 5\](.|\n)*five is missing"):
        next(batches)
    assert next(batches).tolist() == [6, 7]  # the others are not lost

    def unpicklable(batch: Any) -> Any:
        return lambda: batch

    with pytest.raises(Exception, match="when sending a batch"):
        list(D.DataLoader(Squares(2), num_workers=1, collate_fn=unpicklable))

    def broken(k: int) -> None:
        raise ValueError("no start")

    with pytest.raises(ValueError, match=r"worker_init_fn(.|\n)*no start"):
        list(D.DataLoader(Squares(2), num_workers=1, worker_init_fn=broken))


def test_a_killed_worker_is_an_error() -> None:
    with pytest.raises(tg.TracegradError, match=r"worker \d .*killed by SIGKILL"):
        list(D.DataLoader(Dying(8), batch_size=2, num_workers=2))

    class Leaving(Squares):
        def __getitem__(self, i: int) -> Any:
            os._exit(3)

    with pytest.raises(tg.TracegradError, match="exited with code 3"):
        list(D.DataLoader(Leaving(4), num_workers=1))


def test_timeout() -> None:
    class Sleeping(Squares):
        def __getitem__(self, i: int) -> Any:
            signal.pause()

    with pytest.raises(tg.TracegradError, match=r"timeout of 0\.2 seconds"):
        list(D.DataLoader(Sleeping(4), num_workers=1, timeout=0.2))


def test_breaking_off_ends_the_workers() -> None:
    loader = D.DataLoader(Large(50), batch_size=1, num_workers=2)
    batches = iter(loader)
    next(batches)
    pool = batches._batches.pool
    processes = [w.process for w in pool.workers]
    directory = pool._close.peek()[2][1]
    assert all(p.is_alive() for p in processes) and os.path.isdir(directory)
    del batches, pool
    assert not any(p.is_alive() for p in processes) and not os.path.exists(directory)


def test_ctrl_c_leaves_no_process(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # (shells' background jobs ignore it)
        import tracegrad as tg
        from tracegrad.utils import data as D
        class Slow(D.Dataset):
            def __len__(self): return 100
            def __getitem__(self, i):
                if i: signal.pause()
                return os.getpid()
        batches = iter(D.DataLoader(Slow(), batch_size=None, num_workers=2))
        print(next(batches), batches._batches.pool._close.peek()[2][1], flush=True)
        next(batches)
        """)
    )
    run = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    pid, directory = run.stdout.readline().split()
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and run.returncode != 0
    assert not os.path.exists(directory)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_more_batches_than_the_stream_said() -> None:
    class Lying(Stream):
        def __len__(self) -> int:
            return 1

    loader = D.DataLoader(Lying(3))
    assert len(loader) == 1
    with pytest.warns(UserWarning, match="the length of Lying is 1"):
        list(loader)
