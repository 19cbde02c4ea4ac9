"""NVIDIA's driver by way of the package cuda-bindings: what devices there are, calls and their errors. Memory
(cuda_memory.py) and streams (cuda_streams.py) build on it. Importing it loads nothing of CUDA; `driver()`
does, or says what is missing.

With `TRACEGRAD_CUDA=emulate` in the environment an emulated device takes the driver's place
(runtime/cuda_emulated.py), and with `TRACEGRAD_CUDA=off` there is none.

Written against the driver API's documentation; docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from ..ir.errors import TracegradError

#: what a process says that inherited a started driver, which can't be used there
_FORKED = (
    "it was used before this process was forked, and a driver does not survive that: start processes that "
    "use it by 'spawn' (multiprocessing.set_start_method), or use it first in the child"
)
#: compute capabilities that programs are written for
CAPABILITIES = ((7, 5), (8, 0), (9, 0))
#: errors of work that was given to the GPU earlier
_LATE = (
    "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_ECC_UNCORRECTABLE",
)  # fmt: skip


class CudaError(TracegradError, RuntimeError):
    """No GPU can be used, or one failed."""


class OutOfMemoryError(CudaError):
    """The GPU has no room left; nothing was changed."""


class State:
    """What is loaded once per process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.driver: Any = None
        self.reason: str | None = None
        self.count = 0
        self.current = 0
        self.contexts: dict[int, Any] = {}
        #: what cuda_memory.py and cuda_streams.py keep for each device
        self.pools: dict[int, Any] = {}
        self.streams: dict[int, Any] = {}
        self.host_pool: Any = None


def why_not() -> str | None:
    """What is missing to use a GPU; None if nothing is."""
    with _STATE.lock:
        if _STATE.driver is None and _STATE.reason is None:
            _STATE.reason = _load()
        return _STATE.reason


def _load() -> str | None:
    mode = os.environ.get("TRACEGRAD_CUDA", "")
    if mode == "emulate":
        from . import cuda_emulated

        _STATE.driver, missing = cuda_emulated.load()
        _STATE.count = 0 if missing else _STATE.driver.devices
        return missing
    if mode == "off":
        return "TRACEGRAD_CUDA=off in the environment"
    if mode:
        return f"TRACEGRAD_CUDA must be 'emulate' or 'off', not {mode!r}"
    try:
        from cuda.bindings import driver  # type: ignore[import-not-found]
    except ImportError:
        return "the package cuda-bindings is not installed: pip install 'tracegrad[cuda]'"
    try:
        (status,) = driver.cuInit(0)
        if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
            return "NVIDIA's driver sees no GPU"
        if status != driver.CUresult.CUDA_SUCCESS:
            return f"NVIDIA's driver does not start: {said(driver, status)}"
        status, count = driver.cuDeviceGetCount()
    except Exception as e:  # the package's loader has errors of its own kinds
        return f"NVIDIA's driver is not installed ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
    if status != driver.CUresult.CUDA_SUCCESS or not count:
        return "NVIDIA's driver sees no GPU"
    _STATE.driver, _STATE.count = driver, count
    return None


def _after_fork() -> None:
    """In a forked child: the parent's contexts and memory are nothing here, and its locks may be held."""
    global _STATE
    if _STATE.driver is not None:
        _STATE = State()
        _STATE.reason = _FORKED


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def driver() -> Any:
    """The module `cuda.bindings.driver`, started.

    Raises:
        CudaError: saying what is missing.
    """
    reason = why_not()
    if reason is not None:
        raise CudaError(f"no GPU can be used: {reason}")
    return _STATE.driver


def call(name: str, *args: Any) -> Any:
    """A function of the driver; its result without the status (a tuple if there are several).

    Raises:
        OutOfMemoryError, CudaError: by the status.
    """
    d = _STATE.driver
    if d is None:
        d = driver()
    status, *out = getattr(d, name)(*args)
    if status != d.CUresult.CUDA_SUCCESS:
        kind = OutOfMemoryError if status == d.CUresult.CUDA_ERROR_OUT_OF_MEMORY else CudaError
        raise kind(f"{name}: {said(d, status)}")
    return out[0] if len(out) == 1 else tuple(out) if out else None


def said(d: Any, status: Any) -> str:
    """A status in words. A driver that is newer than the package has statuses that it has no name for."""
    code = getattr(status, "name", str(status))
    _, text = d.cuGetErrorString(status)
    words = text.decode() if isinstance(text, bytes) else str(text or "unknown error")
    late = ""
    if code in _LATE:
        late = "; it may come from work before this: CUDA_LAUNCH_BLOCKING=1 in the environment says which"
    return f"{words} ({code}){late}"


def use(device: int = 0) -> Any:
    """Makes a device's primary context current on this thread; gives it.

    Raises:
        CudaError: no such device.
    """
    driver()
    if not 0 <= device < _STATE.count:
        raise CudaError(f"no GPU number {device}: there are {_STATE.count}")
    with _STATE.lock:
        context = _STATE.contexts.get(device)
        if context is None:
            context = call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", device))
            _STATE.contexts[device] = context
    call("cuCtxSetCurrent", context)
    return context


def current() -> int:
    """The number of the GPU that `"cuda"` means."""
    return _STATE.current


def is_started() -> bool:
    """Whether a device was used."""
    return bool(_STATE.contexts)


def memory(device: int = 0) -> tuple[int, int]:
    """(free, total) bytes. Raises CudaError without a device."""
    use(device)
    free, total = call("cuMemGetInfo")
    return int(free), int(total)


def attribute(name: str, device: int = 0) -> int:
    """One of the driver's numbers of a GPU, `L2_CACHE_SIZE` say."""
    kind = getattr(driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", kind, call("cuDeviceGet", device)))


def multiprocessors(device: int = 0) -> int:
    """How many multiprocessors a GPU has."""
    return attribute("MULTIPROCESSOR_COUNT", device)


def set_current(device: int) -> None:
    """Says which GPU `"cuda"` means from now on. Raises CudaError where there is no such device."""
    use(device)
    _STATE.current = device


def driver_version() -> tuple[int, int]:
    """The newest CUDA that the driver is for, such as (13, 0)."""
    number = int(call("cuDriverGetVersion"))
    return number // 1000, number % 1000 // 10


def count() -> int:
    """GPUs that can be used; 0 without a driver."""
    return 0 if why_not() else _STATE.count


def capability(device: int = 0) -> tuple[int, int]:
    """Compute capability, such as (9, 0)."""
    return attribute("COMPUTE_CAPABILITY_MAJOR", device), attribute("COMPUTE_CAPABILITY_MINOR", device)


def name(device: int = 0) -> str:
    """The GPU's name."""
    raw = call("cuDeviceGetName", 128, call("cuDeviceGet", device))
    return bytes(raw).split(b"\0")[0].decode(errors="replace")


_STATE = State()


def state() -> State:
    """What this process has loaded."""
    return _STATE


def swap(new: State) -> State:
    """Puts another state in the place of the process's, which it gives."""
    global _STATE
    old, _STATE = _STATE, new
    return old
