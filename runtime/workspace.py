"""Workspaces of programs. A large one belongs to nobody for long: a program that needs one takes it from a
program that is not running. Executables and compiled functions call it.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numpy as np

from ..ir.dtypes import uint8
from ..ir.errors import OpError
from ..ir.types import Type
from .buffers import ALIGN, Buffer, empty, from_array

#: Workspaces of so many bytes are lent: what programs do with them takes a thousand times as long.
LENT = 4 << 20

_lenders: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def lend(owner: Any) -> None:
    """Makes the workspaces of an owner's idle calls (`_idle`, a list of things with an `arena`) available to
    others. A call whose workspace went is gone from the list, and its owner makes a new one."""
    with _lock:
        _lenders.add(owner)


def workspace(nbytes: int) -> Buffer:
    """Memory for the intermediates of one call, of at least so many bytes. OpError where there is none."""
    if nbytes < LENT:
        return empty(Type(uint8, (nbytes,)))
    with _lock:
        lenders = list(_lenders)
    for owner in lenders:
        try:
            arena = owner._idle.pop().arena
        except IndexError:  # it is running, or has never run
            continue
        # A smaller one is let go of: its program will use the one made now.
        if arena is not None and arena.type.nbytes >= nbytes:
            return arena
    # Not from the recycled blocks, which would stay when it is let go of.
    try:
        raw = np.empty(nbytes + ALIGN, np.uint8)
    except (MemoryError, ValueError):
        raise OpError(f"not enough memory for a workspace of {nbytes} bytes") from None
    start = -raw.__array_interface__["data"][0] % ALIGN
    return from_array(raw[start : start + nbytes])
