"""The order of work on a GPU: its one stream, events in it, and CUDA graphs of it. Used by cuda.py,
cuda_buffers.py and the tracer.

Everything that runs on a device goes through one stream, so that memory can be handed out again as soon as
nobody holds it, and no result is read before it is there.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import cuda_driver as low
from .cuda_driver import CudaError, call, driver, use

_TIMELESS = 2  # CU_EVENT_DISABLE_TIMING
_BLOCKING = 1  # CU_EVENT_BLOCKING_SYNC


class Event:
    """A point in a stream's work.

    Args:
        stream: of the device that it is for.
        timed: `elapsed` can be asked for.
        blocking: who waits for it sleeps, rather than turns in a loop.
    """

    #: none until it is made, which may fail
    handle: Any = None

    def __init__(self, stream: Stream, timed: bool = False, blocking: bool = False) -> None:
        self.device = stream.device
        use(self.device)
        self.handle = call("cuEventCreate", (0 if timed else _TIMELESS) | (_BLOCKING if blocking else 0))

    def record(self, stream: Stream) -> None:
        """It stands behind all work of the stream so far."""
        with stream.lock:
            use(stream.device)
            call("cuEventRecord", self.handle, stream.handle)

    def done(self) -> bool:
        """Whether all work before it is done."""
        use(self.device)
        d = driver()
        (status,) = d.cuEventQuery(self.handle)
        if status == d.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if status != d.CUresult.CUDA_SUCCESS:
            raise CudaError(f"cuEventQuery: {low.said(d, status)}")
        return True

    def wait(self) -> None:
        """Waits until all work before it is done."""
        use(self.device)
        call("cuEventSynchronize", self.handle)

    def elapsed(self, end: Event) -> float:
        """Milliseconds from here to another event, on the device's clock."""
        use(self.device)
        return float(call("cuEventElapsedTime", self.handle, end.handle))

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.handle is None or ending():  # the driver ends with the process
            return
        try:
            use(self.device)
            call("cuEventDestroy", self.handle)
        except CudaError:
            pass  # a forked process has no driver: the event is its parent's


class Stream:
    """An order of work on a device, and CUDA graphs of it. Safe to use from several threads.

    Attributes:
        lock: held by who captures, and by each call.
    """

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.retired: list[tuple[str, Any]] = []
        use(device)
        self.handle = call("cuStreamCreate", int(driver().CUstream_flags.CU_STREAM_NON_BLOCKING))

    def _do(self, name: str, *args: Any) -> Any:
        with self.lock:
            use(self.device)
            return call(name, *args)

    def upload(self, ptr: int, source: int, nbytes: int) -> None:
        """Copies from the host, whose memory must stay as it is until the stream is done with it."""
        if nbytes:
            self._do("cuMemcpyHtoDAsync", ptr, source, nbytes, self.handle)

    def download(self, target: int, ptr: int, nbytes: int) -> None:
        """Copies to the host; done when the stream is."""
        if nbytes:
            self._do("cuMemcpyDtoHAsync", target, ptr, nbytes, self.handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copies on the device."""
        if nbytes:
            self._do("cuMemcpyDtoDAsync", target, source, nbytes, self.handle)

    def read_bool(self, ptr: int) -> bool:
        """A bool, when all before it is done."""
        value = ctypes.c_uint8()
        self.download(ctypes.addressof(value), ptr, 1)
        self.synchronize()
        return bool(value.value)

    def launch(
        self,
        function: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        values: list[int],
        kinds: list[Any],
        shared: int = 0,
    ) -> None:
        """One kernel. `shared`: bytes of shared memory besides what it declares."""
        packed = (tuple(values), tuple(kinds)) if values else 0
        self._do("cuLaunchKernel", function, *grid, *block, shared, self.handle, packed, 0)

    def synchronize(self) -> None:
        """Waits for all work of the stream."""
        self._do("cuStreamSynchronize", self.handle)  # which would break a capture of another thread

    def idle(self) -> bool:
        """Whether all work of the stream is done."""
        d = driver()
        with self.lock:
            use(self.device)
            (status,) = d.cuStreamQuery(self.handle)
        if status not in (d.CUresult.CUDA_SUCCESS, d.CUresult.CUDA_ERROR_NOT_READY):
            raise CudaError(f"cuStreamQuery: {low.said(d, status)}")
        return status == d.CUresult.CUDA_SUCCESS

    # --- graphs

    def begin_capture(self) -> None:
        """From here on work is noted down, not done. Hold the lock. What other code of this thread asks the
        driver for meanwhile (a destructor, say) does not break the capture."""
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        call("cuStreamBeginCapture", self.handle, mode)

    def end_capture(self) -> Any:
        """What was noted down, ready for `replay`."""
        graph = call("cuStreamEndCapture", self.handle)
        try:
            return call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def drop_capture(self) -> None:
        """Ends a capture that failed."""
        d = driver()
        status, graph = d.cuStreamEndCapture(self.handle)
        if status == d.CUresult.CUDA_SUCCESS and graph is not None:
            d.cuGraphDestroy(graph)

    def replay(self, graph: Any) -> None:
        """Runs a captured graph."""
        self._do("cuGraphLaunch", graph, self.handle)

    # --- what is to be freed

    def retire(self, name: str, handle: Any) -> None:
        """Says that `name(handle)` is to be called when nothing is captured and the stream is done with it.
        For destructors, which run on any thread, at any time."""
        self.retired.append((name, handle))

    def tidy(self) -> None:
        """Frees what was retired."""
        if self.retired:
            with self.lock:
                retired, self.retired = self.retired, []
                self.synchronize()
                for name, handle in retired:
                    call(name, handle)


def stream(device: int = 0) -> Stream:
    """The one stream of a device: what follows in it may reuse the memory of what is before."""
    state = low.state()
    found = state.streams.get(device)
    if found is None:
        with state.lock:
            found = state.streams.get(device)
            if found is None:
                found = state.streams[device] = Stream(device)
    return found
