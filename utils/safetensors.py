"""The safetensors file format: tensors by name and a dictionary of strings. Only serialization.py uses it.

A file is the length of a header (8 bytes, little-endian), the header (JSON: for each name the dtype, the
shape, and where its bytes begin and end in the rest of the file; under `__metadata__` the strings), and the
contents, row-major, without gaps. Reading trusts nothing: a file that is cut off, or whose header does not
describe exactly the bytes that follow, is an error. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from ..ir.errors import TracegradError

_NAMES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}  # fmt: skip
_OF = {dtype: name for name, dtype in _NAMES.items()}
_LARGEST_HEADER = 100_000_000  # the format's own limit
_ALIGN = 8


class FileError(TracegradError, ValueError):
    """A file that can't be read: another format, cut off, or damaged."""


def dtype_name(dtype: np.dtype) -> str | None:
    """The format's name of a dtype; None if it has none."""
    return _OF.get(dtype)


def write(file: IO[bytes], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays under their names. Wide dtypes come first, so that all contents are aligned."""
    names = sorted(tensors, key=lambda n: -tensors[n].dtype.itemsize)  # stable: else in the given order
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for name in names:
        a = tensors[name]
        offsets = [place, place + a.nbytes]
        header[name] = {"dtype": _OF[a.dtype], "shape": list(a.shape), "data_offsets": offsets}
        place += a.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        a = np.ascontiguousarray(tensors[name])
        file.write(memoryview(a.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]


def read(file: IO[bytes], what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, each in memory of its own, and the metadata. Raises FileError."""
    size = _size(file)
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(_LARGEST_HEADER, max(size - 8, 0)):
        raise FileError(f"{what} is no safetensors file, or is cut off: its header can't be there")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        if not isinstance(header, dict):
            raise ValueError("it is not a dictionary")
        metadata = header.pop("__metadata__", None) or {}
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata are not strings")
        entries = [_entry(name, e) for name, e in header.items()]
    except (ValueError, RecursionError, AttributeError) as e:
        raise FileError(
            f"{what} is no safetensors file, or is damaged: its header does not parse ({e})"
        ) from None
    end = 0
    for name, dtype, shape, first, last in sorted(entries, key=lambda e: e[3:]):
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise FileError(f"{what} is damaged: tensor {name!r} is not where its header says")
        end = last
    if end != size - 8 - length:
        there = size - 8 - length
        raise FileError(f"{what} is cut off or damaged: its tensors have {end} bytes, the file {there}")
    base = file.tell()
    arrays: dict[str, np.ndarray] = {}
    for name, dtype, shape, first, last in entries:
        file.seek(base + first)
        arrays[name] = _contents(file, dtype, shape, last - first, what)
    file.seek(base + end)
    return arrays, metadata


def _contents(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], nbytes: int, what: str) -> np.ndarray:
    raw = np.empty(nbytes, np.uint8)
    view, done = memoryview(raw), 0  # type: ignore[arg-type]
    readinto = getattr(file, "readinto", None)
    while done < nbytes:
        if readinto is not None:
            got = readinto(view[done:]) or 0
        else:
            part = file.read(nbytes - done)
            got = len(part)
            view[done : done + got] = part
        if not got:
            raise FileError(f"{what} ended while it was read")
        done += got
    array = raw.view(dtype).reshape(shape)
    if dtype == np.bool_ and (raw > 1).any():
        raise FileError(f"{what} is damaged: a bool tensor holds other bytes than 0 and 1")
    return array


def _entry(name: str, entry: Any) -> tuple[str, np.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} is not dtype, shape and data_offsets")
    dtype = _NAMES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{name!r} is of dtype {entry['dtype']!r}, for which there is no tensor here")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the offsets of {name!r} are no numbers")
    return name, dtype, tuple(shape), offsets[0], offsets[1]


def _counts(x: Any) -> bool:
    return isinstance(x, list) and all(type(n) is int and n >= 0 for n in x)


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name appears twice")
    return made


def _size(file: IO[bytes]) -> int:
    here = file.tell()
    size = file.seek(0, 2) - here
    file.seek(here)
    return size
