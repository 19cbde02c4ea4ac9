"""Grad modes: `no_grad` and its kin, which say whether operations record for gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from .recording import STATE
from .trace import Trace


class _GradMode:
    """Context manager and decorator that sets whether operations record for gradients."""

    enabled = False

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self._saved: list[tuple[Trace, bool]] = []
        self._function = function
        if function is not None:
            functools.update_wrapper(self, function)

    def __enter__(self) -> None:
        trace = STATE.trace
        self._saved.append((trace, trace.grad_enabled))
        trace.grad_enabled = self.enabled

    def __exit__(self, *exc: Any) -> None:
        trace, old = self._saved[-1]
        trace.grad_enabled = old
        self._saved.pop()  # (a call, at whose end an interrupt may come)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is not None:  # @no_grad without parentheses
            with type(self)():
                return self._function(*args, **kwargs)
        function = args[0]
        if inspect.isgeneratorfunction(function):
            return self._generator(function)

        @functools.wraps(function)
        def wrapped(*a: Any, **k: Any) -> Any:
            trace = STATE.trace  # of the calling thread: nothing of the call is kept in `self`
            before, trace.grad_enabled = trace.grad_enabled, self.enabled
            try:
                return function(*a, **k)
            finally:
                trace.grad_enabled = before

        return wrapped

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A generator that runs in this mode, and gives its caller the caller's."""

        @functools.wraps(function)
        def wrapped(*a: Any, **k: Any) -> Iterator[Any]:
            running, sent, error = function(*a, **k), None, None
            while True:
                trace = STATE.trace
                before, trace.grad_enabled = trace.grad_enabled, self.enabled
                try:
                    made = running.send(sent) if error is None else running.throw(error)
                except StopIteration as end:
                    return end.value
                finally:
                    trace.grad_enabled = before
                error = None
                try:
                    sent = yield made
                except GeneratorExit:
                    running.close()
                    raise
                except BaseException as e:
                    error = e

        return wrapped


class no_grad(_GradMode):
    """Operations inside don't record for gradients. Also a decorator."""


class inference_mode(_GradMode):
    """The same as `no_grad` here."""

    def __init__(self, mode: Any = True) -> None:
        super().__init__(mode if callable(mode) else None)
        self.enabled = not mode if isinstance(mode, bool) else False


class enable_grad(_GradMode):
    """Operations inside record for gradients. Also a decorator."""

    enabled = True


class set_grad_enabled(_GradMode):
    """Sets the grad mode at once; as a context manager, restores it at the end."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.enabled = mode
        self._before = STATE.trace.grad_enabled
        STATE.trace.grad_enabled = mode

    def __enter__(self) -> None:
        self._saved.append((STATE.trace, self._before))
        STATE.trace.grad_enabled = self.enabled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        STATE.trace.grad_enabled = self._before  # as a decorator it sets the mode in the function alone
        return super().__call__(*args, **kwargs)


def is_grad_enabled() -> bool:
    """Whether operations record for gradients now."""
    return STATE.trace.grad_enabled
