"""Messages between a loader and its workers: pickled, with large arrays in files that live in memory.

The sender writes all large arrays of a message to one file in a directory of the loader's (in `/dev/shm`
where there is one), the receiver maps it and removes its name at once: the arrays are then seen without a
copy, and the memory goes when they do. Where the file can't be written, the arrays travel in the message.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from typing import Any

_ALIGN = 64
_SMALL = 1 << 12  # arrays up to this size are part of the pickle
_WORTH_A_FILE = 1 << 16


def make_directory() -> str:
    """A new directory for messages' files."""
    shm = "/dev/shm"
    where = shm if os.path.isdir(shm) and os.access(shm, os.W_OK) else None
    return tempfile.mkdtemp(prefix="tracegrad-loader-", dir=where)


def pack(message: Any, directory: str) -> bytes:
    """A message as bytes for a pipe."""
    arrays: list[memoryview] = []

    def outside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= _SMALL:
            return True
        arrays.append(raw)
        return False

    body = pickle.dumps(message, protocol=5, buffer_callback=outside)
    sizes = [a.nbytes for a in arrays]
    name = _written(arrays, directory) if sum(sizes) >= _WORTH_A_FILE else None
    return pickle.dumps((name, sizes, [] if name else [bytes(a) for a in arrays], body), protocol=5)


def unpack(data: bytes) -> Any:
    """The message that `pack` made these bytes of."""
    name, sizes, arrays, body = pickle.loads(data)
    if name is None:
        return pickle.loads(body, buffers=[bytearray(a) for a in arrays])
    with open(name, "r+b") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0))
    os.unlink(name)
    buffers, start = [], 0
    for size in sizes:
        buffers.append(memory[start : start + size])
        start += -(-size // _ALIGN) * _ALIGN
    return pickle.loads(body, buffers=buffers)


def _written(arrays: list[memoryview], directory: str) -> str | None:
    """The name of a new file with the arrays; None if there is no room for it."""
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(dir=directory)
        with open(descriptor, "wb", buffering=0) as file:
            for a in arrays:
                rest = a
                while rest.nbytes:
                    rest = rest[file.write(rest) or 0 :]
                file.write(bytes(-a.nbytes % _ALIGN))
        return name
    except OSError:
        if name:
            os.unlink(name)
        return None
