"""Python's garbage collector, out of the way while a program is traced and compiled. Used by executables and
by `compile`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No collections of cycles meanwhile. A compilation makes many objects that all stay; looking through
    them again and again is a quarter of its time, and frees nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
