"""`tracegrad.cuda.Stream` and `Event`, as PyTorch has them.

All work on a GPU goes through one stream of its own. A program is one CUDA graph already, in which what can
go side by side does; so streams are names for that one order, and whatever waits for another stream's work
waits for nothing more. Events are real: points in that order, with the device's clock.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from ..runtime import cuda_streams as low
from ..runtime.cuda_driver import CudaError, current
from .meta import device as Device
from .recording import STATE

__all__ = [
    "Event", "Stream", "StreamContext", "current_stream", "default_stream", "set_stream", "stream",
]  # fmt: skip


def number_of(device: Any) -> int:
    """A device as PyTorch's functions take it: None, a number, `"cuda:1"` or a device object."""
    if device is None:
        return current()
    if isinstance(device, int):
        return device
    d = Device(device)
    if d.type != "cuda":
        raise ValueError(f"expected a GPU, such as 'cuda:0', got {str(device)!r}")
    return current() if d.index is None else d.index


def submit() -> None:
    """Gives the device what was recorded so far. (Inside a function that is being compiled there is nothing
    to give.)"""
    if STATE.trace is STATE.lazy:
        STATE.lazy.flush()


class Stream:
    """An order of work on a GPU.

    Args:
        device: which; the current one if None.
        priority: taken for compatibility.

    Raises CudaError without a GPU.
    """

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        unknown = kwargs.keys() - {"stream_id", "stream_ptr", "device_index", "device_type"}
        if unknown:
            raise TypeError(f"Stream() takes device and priority, not {', '.join(sorted(unknown))}")
        self._low = low.stream(number_of(device))
        self.device = Device("cuda", self._low.device)
        self.priority = priority
        self._before: list[Any] = []

    @property
    def device_index(self) -> int:
        """The number of the GPU."""
        return self._low.device

    @property
    def cuda_stream(self) -> int:
        """The driver's handle."""
        return int(self._low.handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol (its version, the handle) by which other packages, NVIDIA's cuda-core for one, put
        their work behind ours. It does not run what is pending: `synchronize` or `record_event` first."""
        return 0, self.cuda_stream

    def synchronize(self) -> None:
        """Waits for all work of the stream, pending ordinary code included."""
        submit()
        self._low.synchronize()

    def query(self) -> bool:
        """Whether all work of the stream is done."""
        submit()
        return self._low.idle()

    def record_event(self, event: Event | None = None) -> Event:
        """An event (a new one if None) behind all work so far."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Work from here on follows the event; in one order it does."""

    def wait_stream(self, stream: Stream) -> None:
        """Work from here on follows another stream's; in one order it does."""

    def __enter__(self) -> Stream:
        self._before.append(_current().get(self.device_index))
        set_stream(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._before.pop()
        if before is None:
            _current().pop(self.device_index, None)
        else:
            set_stream(before)

    def __repr__(self) -> str:
        return f"<tracegrad.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class Event:
    """A point in a stream's work.

    Args:
        enable_timing: `elapsed_time` can be asked for.
        blocking: who waits for it sleeps.
        interprocess: not to be had.
    """

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess:
            raise CudaError("Event(): there are no events that several processes share")
        self.enable_timing = enable_timing
        self.blocking = blocking
        self._low: low.Event | None = None

    def record(self, stream: Stream | None = None) -> None:
        """It stands behind all work so far, pending ordinary code included. Raises CudaError without a
        GPU."""
        submit()
        order = (current_stream() if stream is None else stream)._low
        if self._low is None or self._low.device != order.device:
            self._low = low.Event(order, self.enable_timing, self.blocking)
        self._low.record(order)

    def wait(self, stream: Stream | None = None) -> None:
        """Work of the stream from here on follows this; in one order it does."""

    def query(self) -> bool:
        """Whether all work before it is done; True if it was never recorded."""
        return self._low is None or self._low.done()

    def synchronize(self) -> None:
        """Waits until all work before it is done."""
        if self._low is not None:
            self._low.wait()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to another, on the device's clock.

        Raises:
            CudaError: one was not recorded, not for timing, or is still to come.
        """
        start, end = self._low, end_event._low
        if not (self.enable_timing and end_event.enable_timing):
            raise CudaError("elapsed_time(): both events must be made with enable_timing=True")
        if start is None or end is None:
            raise CudaError("elapsed_time(): both events must be recorded first")
        if not (start.done() and end.done()):
            raise CudaError("elapsed_time(): work before the events is not done; call synchronize() first")
        return start.elapsed(end)

    def __repr__(self) -> str:
        return "<tracegrad.cuda.Event>" if self._low else "<tracegrad.cuda.Event uninitialized>"


_LOCAL = threading.local()


def _current() -> dict[int, Stream]:
    """This thread's streams, by device, where it has chosen any."""
    try:
        return _LOCAL.streams
    except AttributeError:
        _LOCAL.streams = {}
        return _LOCAL.streams


def current_stream(device: Any = None) -> Stream:
    """The stream that work on a GPU goes to. Raises CudaError without one."""
    n = number_of(device)
    return _current().get(n) or Stream(n)


def default_stream(device: Any = None) -> Stream:
    """A GPU's one stream. Raises CudaError without a GPU."""
    return Stream(number_of(device))


def set_stream(stream: Stream | None) -> None:
    """Makes a stream current on this thread; None changes nothing."""
    if stream is not None:
        _current()[stream.device_index] = stream


class StreamContext:
    """Inside, a stream is current; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> StreamContext:
        if self.stream is not None:
            self.stream.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.stream is not None:
            self.stream.__exit__(None, None, None)


def stream(stream: Stream | None) -> StreamContext:
    """`with tracegrad.cuda.stream(s):`"""
    return StreamContext(stream)
