"""Worker processes of a `DataLoader`: who makes which batch, and what happens when one fails or dies.

Each worker has a pipe of its own and there are no locks, so a worker may be killed at any moment without
leaving another, or the loader, waiting. A worker ends when the loader's end of its pipe closes, which also
happens when the loader's process dies.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from ...ir.dataclass import dataclass
from ...ir.errors import TracegradError
from ...tracer.environment import set_num_threads
from ...tracer.random import manual_seed
from ...tracer.recording import STATE
from .fetch import Fetcher, WorkerInfo, become_worker
from .transport import make_directory, pack, unpack

#: Seconds that a worker has to finish its batch when it is no longer wanted.
PATIENCE = 5.0


class WorkerError(TracegradError, RuntimeError):
    """A worker died, took too long, or raised an error that can't be raised again here."""


#: The loader's ends of all pipes. A forked worker closes those it inherits: an end counts as closed when
#: everyone has closed it.
_ENDS: weakref.WeakSet[Any] = weakref.WeakSet()


# --- in the worker ------------------------------------------------------------------------------------------


@dataclass
class Job:
    """What a worker is started with."""

    id: int
    count: int
    base_seed: int
    dataset: Any
    batched: bool
    collate_fn: Any
    drop_last: bool
    init_fn: Any
    directory: str


@dataclass
class Failure:
    """An exception of a worker, as it travels."""

    kind: Any
    text: str


class _Quoted(str):
    """A KeyError shows the repr of its message, which should keep its lines."""

    def __repr__(self) -> str:
        return str(self)


def _failure(where: str) -> Failure:
    kind = sys.exc_info()[0]
    text = f"{kind.__name__ if kind else 'an error'} {where}\n{traceback.format_exc()}"
    try:
        pickle.dumps(kind)
    except Exception:
        kind = None
    return Failure(kind, text)


def _raise(failure: Failure) -> None:
    try:
        error = failure.kind(_Quoted(failure.text) if failure.kind is KeyError else failure.text)
    except Exception:  # its constructor wants something else
        error = WorkerError(failure.text)
    raise error


class _Outbox:
    """Sends from a thread, so that a worker always comes back to reading what it is told."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.ready = threading.Condition()
        self.waiting: deque[bytes | None] = deque()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def put(self, data: bytes | None) -> None:
        with self.ready:
            self.waiting.append(data)
            self.ready.notify()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            while True:
                with self.ready:
                    while not self.waiting:
                        self.ready.wait()
                    data = self.waiting.popleft()
                if data is None:
                    return
                self.pipe.send_bytes(data)


def _seed_all(job: Job) -> int:
    seed = job.base_seed + job.id
    random.seed(seed)
    manual_seed(seed)
    entropy = [job.id, job.base_seed & 0xFFFFFFFF, job.base_seed >> 32, 0]
    np.random.seed(np.random.SeedSequence(entropy).generate_state(4))
    return seed


def run_worker(job: Job, pipe: Any) -> None:
    """A worker's life."""
    for end in list(_ENDS):
        end.close()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loader, which then ends us
    set_num_threads(1)  # workers are parallel to each other
    become_worker(WorkerInfo(job.id, job.count, _seed_all(job), job.dataset))
    outbox = _Outbox(pipe)
    try:
        _serve(job, pipe, outbox)
    except (EOFError, OSError):  # the loader is gone, or wants no more
        parent = multiprocessing.parent_process()
        if parent is None or not parent.is_alive():
            shutil.rmtree(job.directory, ignore_errors=True)
    outbox.put(None)
    outbox.thread.join(PATIENCE)


def _serve(job: Job, pipe: Any, outbox: _Outbox) -> None:
    fetcher: Fetcher | None = None
    broken: Failure | None = None
    place = f"in DataLoader worker {job.id} (pid {os.getpid()})"
    try:
        if job.init_fn is not None:
            job.init_fn(job.id)
    except Exception:
        broken = _failure(f"in worker_init_fn, {place}")
    todo: deque[Any] = deque()
    ended = False
    current = None
    while True:
        # Reading all there is before working shows at once that the loader has closed its end.
        while not todo or pipe.poll(0):
            todo.append(unpack(pipe.recv_bytes()))
        while todo[0][0] != todo[-1][0]:
            todo.popleft()  # a new pass has begun
        turn, number, index = todo.popleft()
        kind, result = "batch", None
        try:
            if turn != current:
                current, ended, fetcher = turn, False, None
            if broken is not None:
                kind, result = "error", broken
            elif ended:
                kind = "end"
            else:
                if fetcher is None:
                    fetcher = Fetcher(job.dataset, job.batched, job.collate_fn, job.drop_last)
                result = fetcher.fetch(index)
        except StopIteration:
            if fetcher is not None and fetcher.stream is not None:
                kind, ended = "end", True
            else:
                kind, result = "error", _failure(f"{place}, index {index!r:.200}")
        except Exception:
            kind, result = "error", _failure(f"{place}, index {index!r:.200}")
        try:
            data = pack((turn, number, kind, result), job.directory)
        except Exception:
            failure = _failure(f"when sending a batch from {place.removeprefix('in ')}, index {index!r:.200}")
            data = pack((turn, number, "error", failure), job.directory)
        outbox.put(data)
        del result, data


# --- in the loader ------------------------------------------------------------------------------------------


class _Worker:
    """A worker as the loader sees it."""

    def __init__(self, context: Any, job: Job) -> None:
        self.id = job.id
        self.pipe, theirs = context.Pipe()
        _ENDS.add(self.pipe)
        self.process = context.Process(target=run_worker, args=(job, theirs), daemon=True)
        try:
            self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    def died(self) -> WorkerError:
        """The error for a worker that is gone."""
        self.process.join(1)
        code = self.process.exitcode
        if code is None:
            how = "closed its pipe"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += " (the system does so when memory is short)"
        else:
            how = f"exited with code {code}"
        return WorkerError(
            f"DataLoader worker {self.id} (pid {self.process.pid}) {how}; num_workers=0 runs the same code "
            f"in this process"
        )


def _end(workers: list[_Worker], directory: str, owner: int, patience: float = PATIENCE) -> None:
    if os.getpid() != owner:
        return
    for w in workers:
        w.pipe.close()
    deadline = time.monotonic() + patience
    for w in workers:
        w.process.join(max(0.0, deadline - time.monotonic()))
    for stop in ("terminate", "kill"):
        for w in workers:
            if w.process.is_alive():
                getattr(w.process, stop)()
                w.process.join(1)
    shutil.rmtree(directory, ignore_errors=True)


class WorkerPool:
    """The workers of one loader.

    Args:
        loader: the `DataLoader`.
        seed: worker k's generators start with `seed + k`.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        context = loader.multiprocessing_context or multiprocessing.get_context()
        STATE.lazy.flush()  # or every worker would compute what is pending
        self.ahead = loader.prefetch_factor * loader.num_workers
        self.timeout = loader.timeout or None
        self.in_order = loader.in_order
        self.keep = loader.persistent_workers
        self.workers: list[_Worker] = []
        self.turn = 0
        directory = make_directory()
        self._close = weakref.finalize(self, _end, self.workers, directory, os.getpid())
        try:
            for k in range(loader.num_workers):
                job = Job(
                    k, loader.num_workers, seed, loader.dataset, loader.batch_sampler is not None,
                    loader.collate_fn, loader.drop_last, loader.worker_init_fn, directory,
                )  # fmt: skip
                self.workers.append(_Worker(context, job))
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return not self._close.alive

    def close(self, patience: float = PATIENCE) -> None:
        """Ends the workers, which have some seconds to finish what they are doing. It is lost."""
        found = self._close.detach()
        if found is not None:
            _end(*found[2], patience=patience)

    def begin(self, indices: Iterator[Any]) -> Iterator[Any]:
        """One pass: batches for the indices. A pass that was begun before ends."""
        self.turn += 1
        return Pass(self, indices)


class Pass:
    """Batches of one pass over the data, in order."""

    def __init__(self, pool: WorkerPool, indices: Iterator[Any]) -> None:
        self.pool = pool
        self.turn = pool.turn
        self.indices = indices
        self.owner: dict[int, int] = {}  # batches asked for and not yet handled: which worker makes them
        self.arrived: dict[int, tuple[str, Any]] = {}
        self.active = [True] * len(pool.workers)
        self.order = itertools.cycle(range(len(pool.workers)))
        self.asked = 0
        for _ in range(pool.ahead):
            self._ask()

    def __iter__(self) -> Pass:
        return self

    def _ask(self) -> None:
        """Gives the next index to the next worker that still has data."""
        if not any(self.active):
            return
        try:
            index = next(self.indices)
        except StopIteration:
            return
        k = next(k for k in self.order if self.active[k])
        worker = self.pool.workers[k]
        try:
            worker.pipe.send_bytes(pickle.dumps((None, [], [], pickle.dumps((self.turn, self.asked, index)))))
        except OSError:
            error = worker.died()
            self.pool.close()
            raise error from None
        self.owner[self.asked] = k
        self.asked += 1

    def __next__(self) -> Any:
        pool = self.pool
        while True:
            if self.turn != pool.turn:
                raise StopIteration  # another pass over the same workers has begun
            if not self.owner:
                if not pool.keep:
                    pool.close()
                raise StopIteration
            if pool.closed:
                raise WorkerError("the workers of this DataLoader have ended; start a new pass over it")
            first = next(iter(self.owner))
            if not pool.in_order and self.arrived:
                first = next(iter(self.arrived))
            if first not in self.arrived:
                self._receive()
                continue
            kind, result = self.arrived.pop(first)
            k = self.owner.pop(first)
            if kind == "end" and self.active[k]:
                self.active[k] = False
                for number in [n for n, w in self.owner.items() if w == k]:
                    del self.owner[number]
                    self.arrived.pop(number, None)
            self._ask()
            if kind == "error":
                _raise(result)
            if kind == "batch":
                return result

    def _receive(self) -> None:
        """Waits until some worker sends, or dies."""
        pool = self.pool
        try:
            busy = [pool.workers[k] for k in sorted(set(self.owner.values()))]
            of: dict[Any, _Worker] = {w.pipe: w for w in busy} | {w.process.sentinel: w for w in busy}
            ready: list[Any] = wait(list(of), pool.timeout)
            if not ready:
                raise WorkerError(
                    f"DataLoader: no batch came within the timeout of {pool.timeout} seconds; raise timeout, "
                    f"or see with num_workers=0 what takes so long"
                )
            for w in dict.fromkeys(of[r] for r in ready):
                try:
                    if not w.pipe.poll(0):
                        raise EOFError
                    turn, number, kind, result = unpack(w.pipe.recv_bytes())
                except (EOFError, OSError):
                    raise w.died() from None
                if turn == self.turn and number in self.owner:
                    self.arrived[number] = (kind, result)
        except BaseException:
            pool.close(0)  # Ctrl-C may have come between two halves of a message
            raise
