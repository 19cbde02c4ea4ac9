"""One tensor as the bytes of a safetensors file, and back: what pickles and copies of tensors hold, so that
nothing in them can be executed."""

from __future__ import annotations

import numpy as np

from ..ir import dtypes
from ..ir.errors import OpError
from .buffers import Buffer, copy_of

_NAMES = {
    "F64": dtypes.float64, "F32": dtypes.float32, "F16": dtypes.float16, "BF16": dtypes.bfloat16,
    "I64": dtypes.int64, "I32": dtypes.int32, "I16": dtypes.int16, "I8": dtypes.int8, "U8": dtypes.uint8,
    "BOOL": dtypes.bool_,
}  # fmt: skip


def to_bytes(buffer: Buffer) -> bytes:
    """One tensor as the bytes of a safetensors file: the header's length, the header in JSON, the
    contents."""
    import json

    t = buffer.type
    name = next(n for n, d in _NAMES.items() if d is t.dtype)
    entry = {"dtype": name, "shape": list(t.shape), "data_offsets": [0, t.nbytes]}
    header = json.dumps({"tensor": entry}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + buffer.array.tobytes()


def from_bytes(data: bytes) -> Buffer:
    """The contents of the one tensor of a safetensors file. Raises OpError where it is malformed."""
    import json

    try:
        size = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + size])["tensor"]
        dtype, shape = _NAMES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
        first, last = entry["data_offsets"]
        array = np.frombuffer(data[8 + size + first : 8 + size + last], dtype.numpy).reshape(shape)
    except (KeyError, ValueError, TypeError, IndexError) as e:
        raise OpError(f"not the bytes of a tensor: {e}") from None
    return copy_of(array, dtype)
