"""`tracegrad.cuda`: what GPUs there are, how much of their memory is used, and their random numbers.

    x = tracegrad.randn(8, 4, device="cuda")     # or x.to("cuda"), x.cuda(), model.to("cuda")
    tracegrad.cuda.synchronize()

Questions have answers without a GPU too; what needs one says what is missing. With `TRACEGRAD_CUDA=emulate`
in the environment there is an emulated one (runtime/cuda_emulated.py). Importing this loads nothing of CUDA.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..runtime import cuda_driver as low
from ..runtime.cuda_driver import CudaError, OutOfMemoryError, set_current, why_not
from .generator import Generator, default_generator, generator_on
from .meta import device as Device
from .tensor import Tensor

__all__ = [
    "CudaError", "OutOfMemoryError", "current_device", "device", "device_count", "empty_cache",
    "get_device_capability", "get_device_name", "get_device_properties", "get_rng_state", "init",
    "initial_seed", "is_available", "is_initialized", "manual_seed", "manual_seed_all",
    "max_memory_allocated", "max_memory_reserved", "mem_get_info", "memory_allocated", "memory_reserved",
    "memory_stats", "reset_peak_memory_stats", "seed", "set_device", "set_rng_state", "synchronize",
    "why_not",
]  # fmt: skip


def _number(device: Any) -> int:
    """A device as PyTorch's functions take it: None, a number, `"cuda:1"` or a device object."""
    if device is None:
        return low.current()
    if isinstance(device, int):
        return device
    d = Device(device)
    if d.type != "cuda":
        raise ValueError(f"expected a GPU, such as 'cuda:0', got {str(device)!r}")
    return low.current() if d.index is None else d.index


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
    set_current(_number(device))


class device:
    """Inside, `"cuda"` means this GPU. Takes a number, a name or a device."""

    def __init__(self, device: Any) -> None:
        self.index = _number(device)
        self._before = 0

    def __enter__(self) -> device:
        self._before = low.current()
        set_current(self.index)
        return self

    def __exit__(self, *exc: Any) -> None:
        set_current(self._before)


class Properties(NamedTuple):
    """What `get_device_properties` gives."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int


def get_device_name(device: Any = None) -> str:
    """A GPU's name. Raises CudaError without one."""
    return low.name(_number(device))


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """A GPU's compute capability, such as (9, 0). Raises CudaError without one."""
    return low.capability(_number(device))


def get_device_properties(device: Any = None) -> Properties:
    """Name, capability, bytes of memory and number of multiprocessors. Raises CudaError without a GPU."""
    n = _number(device)
    return Properties(low.name(n), *low.capability(n), low.memory(n)[1], low.multiprocessors(n))


def synchronize(device: Any = None) -> None:
    """Waits for all work on a GPU. Raises CudaError without one."""
    low.use(_number(device))
    low.call("cuCtxSynchronize")


# --- memory -------------------------------------------------------------------------------------------------


def memory_allocated(device: Any = None) -> int:
    """Bytes in use by tensors and programs; 0 if the GPU was never used."""
    pool = low.known_pool(_number(device))
    return pool.allocated if pool else 0


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that were in use since the start, or `reset_peak_memory_stats`."""
    pool = low.known_pool(_number(device))
    return pool.peak if pool else 0


def memory_reserved(device: Any = None) -> int:
    """Bytes held of the GPU, idle ones included."""
    pool = low.known_pool(_number(device))
    return pool.reserved if pool else 0


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that were held since the start, or `reset_peak_memory_stats`."""
    pool = low.known_pool(_number(device))
    return pool.peak_reserved if pool else 0


def reset_peak_memory_stats(device: Any = None) -> None:
    """Starts `max_memory_allocated` and `max_memory_reserved` anew."""
    pool = low.known_pool(_number(device))
    if pool:
        pool.peak, pool.peak_reserved = pool.allocated, pool.reserved


def memory_stats(device: Any = None) -> dict[str, int]:
    """The four numbers above under PyTorch's keys."""
    return {
        "allocated_bytes.all.current": memory_allocated(device),
        "allocated_bytes.all.peak": max_memory_allocated(device),
        "reserved_bytes.all.current": memory_reserved(device),
        "reserved_bytes.all.peak": max_memory_reserved(device),
    }


def empty_cache() -> None:
    """Gives idle memory back to the driver."""
    for pool in low.known_pools():
        pool.empty()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of a GPU. Raises CudaError without one."""
    return low.memory(_number(device))


# --- random numbers -----------------------------------------------------------------------------------------


def _generator(device: Any) -> Generator:
    n = _number(device)
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


def initial_seed() -> int:
    """The seed of what programs draw on the current GPU."""
    return _generator(None).initial_seed() if is_available() else default_generator.initial_seed()


def get_rng_state(device: Any = None) -> Tensor:
    """The state of what programs draw on a GPU. Raises CudaError without one."""
    return _generator(device).get_state()


def set_rng_state(new_state: Tensor, device: Any = None) -> None:
    """Restores a state from `get_rng_state`. Raises CudaError without a GPU."""
    _generator(device).set_state(new_state)
