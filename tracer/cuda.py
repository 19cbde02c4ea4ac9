"""`tracegrad.cuda`: what GPUs there are, how much of their memory is used, their streams (cuda_streams.py)
and their random numbers.

    x = tracegrad.randn(8, 4, device="cuda")     # or x.to("cuda"), x.cuda(), model.to("cuda")
    tracegrad.cuda.synchronize()

Questions have answers without a GPU too; what needs one says what is missing. With `TRACEGRAD_CUDA=emulate`
in the environment there is an emulated one (runtime/cuda_emulated.py). Importing this loads nothing of CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..runtime import cuda_driver as low
from ..runtime import cuda_memory as memory
from ..runtime import cuda_streams as streams
from ..runtime.cuda_driver import CudaError, OutOfMemoryError, set_current, why_not
from .cuda_streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    number_of,
    set_stream,
    stream,
    submit,
)
from .generator import Generator, default_generator, generator_on
from .tensor import Tensor

__all__ = [
    "CudaError", "Event", "OutOfMemoryError", "Stream", "StreamContext", "current_device", "current_stream",
    "default_stream", "device", "device_count", "device_of", "empty_cache", "get_arch_list",
    "get_device_capability", "get_device_name", "get_device_properties", "get_rng_state", "get_rng_state_all",
    "init", "initial_seed", "is_available", "is_bf16_supported", "is_initialized", "manual_seed",
    "manual_seed_all", "max_memory_allocated", "max_memory_reserved", "mem_get_info", "memory_allocated",
    "memory_reserved", "memory_stats", "memory_summary", "reset_accumulated_memory_stats",
    "reset_max_memory_allocated", "reset_peak_memory_stats", "seed", "seed_all", "set_device",
    "set_rng_state", "set_rng_state_all", "set_stream", "stream", "synchronize", "why_not",
]  # fmt: skip


def is_available() -> bool:
    """Whether programs can run on a GPU here; `why_not()` says what is missing."""
    return why_not() is None


def is_initialized() -> bool:
    """Whether a GPU was used already."""
    return low.is_started()


def init() -> None:
    """Starts the driver, which the first use does too. Raises CudaError without one."""
    low.driver()


def device_count() -> int:
    """How many GPUs there are; 0 without a driver."""
    return low.count()


def current_device() -> int:
    """The number of the GPU that `"cuda"` means. Raises CudaError without one."""
    low.driver()
    return low.current()


def set_device(device: Any) -> None:
    """Says which GPU `"cuda"` means from now on. Raises CudaError if there is no such GPU."""
    set_current(number_of(device))


class device:
    """Inside, `"cuda"` means this GPU. Takes a number, a name or a device."""

    def __init__(self, device: Any) -> None:
        self.index = number_of(device)
        self._before = 0

    def __enter__(self) -> device:
        self._before = low.current()
        set_current(self.index)
        return self

    def __exit__(self, *exc: Any) -> None:
        set_current(self._before)


class device_of(device):
    """Inside, `"cuda"` means the GPU that a tensor is on; a tensor of the CPU changes nothing."""

    def __init__(self, obj: Tensor) -> None:
        super().__init__(obj.get_device() if obj.is_cuda else low.current())

    def __enter__(self) -> device:
        return super().__enter__() if low.is_started() else self

    def __exit__(self, *exc: Any) -> None:
        if low.is_started():
            super().__exit__(*exc)


class Properties(NamedTuple):
    """What `get_device_properties` gives."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    L2_cache_size: int
    warp_size: int = 32


def get_device_name(device: Any = None) -> str:
    """A GPU's name. Raises CudaError without one."""
    return low.name(number_of(device))


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """A GPU's compute capability, such as (9, 0). Raises CudaError without one."""
    return low.capability(number_of(device))


def get_device_properties(device: Any = None) -> Properties:
    """Name, capability, bytes of memory and of the cache, number of multiprocessors. Raises CudaError without
    a GPU."""
    n = number_of(device)
    return Properties(
        low.name(n), *low.capability(n), low.memory(n)[1], low.multiprocessors(n),
        low.attribute("L2_CACHE_SIZE", n),
    )  # fmt: skip


def get_arch_list() -> list[str]:
    """The architectures that programs are written for; later GPUs run them, too."""
    return [f"sm_{major}{minor}" for major, minor in low.CAPABILITIES] if is_available() else []


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current GPU computes with bfloat16; those before sm_80 do so by way of f32."""
    return is_available() and (including_emulation or low.capability(low.current()) >= (8, 0))


def synchronize(device: Any = None) -> None:
    """Waits for all work on a GPU, pending ordinary code included. Raises CudaError without one."""
    n = number_of(device)
    low.use(n)
    submit()
    streams.stream(n).synchronize()


# --- memory -------------------------------------------------------------------------------------------------


def memory_allocated(device: Any = None) -> int:
    """Bytes in use by tensors and programs; 0 if the GPU was never used."""
    pool = memory.known_pool(number_of(device))
    return pool.allocated if pool else 0


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that were in use since the start, or `reset_peak_memory_stats`."""
    pool = memory.known_pool(number_of(device))
    return pool.peak if pool else 0


def memory_reserved(device: Any = None) -> int:
    """Bytes held of the GPU, idle ones included."""
    pool = memory.known_pool(number_of(device))
    return pool.reserved if pool else 0


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that were held since the start, or `reset_peak_memory_stats`."""
    pool = memory.known_pool(number_of(device))
    return pool.peak_reserved if pool else 0


def reset_peak_memory_stats(device: Any = None) -> None:
    """Starts `max_memory_allocated` and `max_memory_reserved` anew."""
    pool = memory.known_pool(number_of(device))
    if pool:
        pool.peak, pool.peak_reserved = pool.allocated, pool.reserved


def reset_max_memory_allocated(device: Any = None) -> None:
    """Starts the peaks anew."""
    reset_peak_memory_stats(device)


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Starts anew what `memory_stats` counts."""
    pool = memory.known_pool(number_of(device))
    if pool:
        pool.taken, pool.given_back, pool.retries, pool.failed = pool.taken - pool.given_back, 0, 0, 0


def memory_stats(device: Any = None) -> dict[str, int]:
    """What is counted, under PyTorch's keys: bytes that are in use, that were asked for, that are held of the
    GPU; how many blocks were handed out and came back; how often there was no room at first, and none at
    last.
    """
    pool = memory.known_pool(number_of(device)) or memory.Pool(0)
    return {
        "active_bytes.all.current": pool.allocated,
        "active_bytes.all.peak": pool.peak,
        "allocated_bytes.all.current": pool.allocated,
        "allocated_bytes.all.peak": pool.peak,
        "allocation.all.allocated": pool.taken,
        "allocation.all.current": pool.taken - pool.given_back,
        "allocation.all.freed": pool.given_back,
        "inactive_split_bytes.all.current": 0,
        "num_alloc_retries": pool.retries,
        "num_device_alloc": pool.made,
        "num_ooms": pool.failed,
        "requested_bytes.all.current": pool.asked,
        "reserved_bytes.all.current": pool.reserved,
        "reserved_bytes.all.peak": pool.peak_reserved,
    }


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """The same as a table to read."""
    n = number_of(device)
    s = memory_stats(n)
    rows = [
        ("in use", s["allocated_bytes.all.current"], s["allocated_bytes.all.peak"]),
        ("asked for", s["requested_bytes.all.current"], None),
        ("held of the GPU", s["reserved_bytes.all.current"], s["reserved_bytes.all.peak"]),
    ]
    lines = [f"memory of GPU {n}", f"{'':18}{'now':>12}{'most':>12}"]
    for name, now, most in rows:
        lines.append(f"{name:18}{_size(now):>12}{'' if most is None else _size(most):>12}")
    if not abbreviated:
        pinned = low.state().host_pool
        lines += [
            f"{'pinned by the host':18}{_size(pinned.reserved if pinned else 0):>12}",
            f"{s['allocation.all.current']} blocks in use, {s['allocation.all.allocated']} handed out, "
            f"{s['num_device_alloc']} of them new",
            f"out of memory {s['num_ooms']} times, saved by idle memory "
            f"{s['num_alloc_retries'] - s['num_ooms']} times",
        ]
    return "\n".join(lines)


def _size(n: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024 * 10:
            return f"{n} {unit}"
        n = -(-n // 1024)
    return f"{n} GiB"


def empty_cache() -> None:
    """Gives idle memory back to the driver, and what is pinned and idle to the system."""
    for pool in memory.known_pools():
        pool.empty()
    if low.state().host_pool is not None:
        low.state().host_pool.empty()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of a GPU. Raises CudaError without one."""
    return low.memory(number_of(device))


# --- random numbers -----------------------------------------------------------------------------------------


def _generator(device: Any) -> Generator:
    n = number_of(device)
    low.use(n)
    return generator_on(f"cuda:{n}")


def manual_seed(seed: int) -> None:
    """Seeds what programs draw on the current GPU; does nothing where there is none, as PyTorch. (Random
    tensors of ordinary code are the CPU's, by `tracegrad.manual_seed`, wherever they are put.)"""
    if is_available():
        _generator(None).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seeds what programs draw on all GPUs."""
    for n in range(device_count()):
        _generator(n).manual_seed(seed)


def seed() -> None:
    """Seeds what programs draw on the current GPU from the system."""
    if is_available():
        _generator(None).seed()


def seed_all() -> None:
    """Seeds what programs draw on all GPUs from the system."""
    for n in range(device_count()):
        _generator(n).seed()


def initial_seed() -> int:
    """The seed of what programs draw on the current GPU."""
    return _generator(None).initial_seed() if is_available() else default_generator.initial_seed()


def get_rng_state(device: Any = None) -> Tensor:
    """The state of what programs draw on a GPU. Raises CudaError without one."""
    return _generator(device).get_state()


def set_rng_state(new_state: Tensor, device: Any = None) -> None:
    """Restores a state from `get_rng_state`. Raises CudaError without a GPU."""
    _generator(device).set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """The states of what programs draw, of every GPU."""
    return [get_rng_state(n) for n in range(device_count())]


def set_rng_state_all(new_states: Iterable[Tensor]) -> None:
    """Restores states from `get_rng_state_all`."""
    for n, state in enumerate(new_states):
        set_rng_state(state, n)
