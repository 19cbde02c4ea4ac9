"""Python's garbage collector, out of the way while modules are loaded and programs traced and compiled.

Anyone may use it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No collections of cycles meanwhile. A compilation makes many objects that all stay; looking through
    them again and again is a quarter of its time, and frees nothing. So it is with modules."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def settle() -> None:
    """Counts all objects there are among the old ones, which the collector rarely looks through: for when
    many have been made that stay, as with modules. It would look through them twice to find that out."""
    if not gc.get_freeze_count():  # or who froze some would lose that
        gc.freeze()
        gc.unfreeze()
