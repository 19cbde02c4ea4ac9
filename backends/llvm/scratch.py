"""Memory that kernels take while they run stays with the process. Called by engine.py when code is loaded.

A kernel that packs an operand takes some hundred KiB with `malloc` and gives them back. The C library of
Linux returns so large a block to the system at once, and the next kernel's pages are made anew, one fault
each: 90 faults, and more time than the product, for 64 x 1000 by 1000 x 100.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# mallopt's names of its parameters, from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Smaller blocks come from the heap, which keeps so much of what is free at its end.
_BLOCK, _KEPT = 8 << 20, 32 << 20


@functools.cache
def keep_scratch() -> bool:
    """Has the C library keep memory of a kernel's size; False where it is another library, or where the
    environment says how it shall be."""
    set_already = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in set_already):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _BLOCK) and mallopt(_TRIM_THRESHOLD, _KEPT))
