"""What PyTorch's scripts name around tensors: memory formats and layouts, limits of number types, threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.dtypes import DType, bfloat16
from ..ir.errors import DTypeError
from ..runtime.precision import get_float32_matmul_precision, set_float32_matmul_precision
from .operands import get_default_dtype


class _Named:
    """A constant that is its name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"tracegrad.{self._name}"


class memory_format(_Named):
    """In which order elements lie; here row-major, always. Functions take one and change nothing by it."""

    __slots__ = ()


class layout(_Named):
    """How elements are stored; here dense (`strided`), always."""

    __slots__ = ()


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")
strided = layout("strided")


class finfo:
    """Limits of a floating-point type: `bits`, `eps`, `max`, `min`, `tiny` (`smallest_normal`), `resolution`.

    Args:
        type: a floating-point dtype; the default one if left out.
    """

    def __init__(self, type: DType | None = None) -> None:
        dtype = type or get_default_dtype()
        if not isinstance(dtype, DType) or dtype.kind != "f":
            raise DTypeError(f"finfo() takes a floating-point dtype, got {dtype!r}; use iinfo() for integers")
        if dtype is bfloat16:
            import ml_dtypes

            info: Any = ml_dtypes.finfo(dtype.numpy)
        else:
            info = np.finfo(dtype.numpy)
        self.dtype = dtype.torch_name
        self.bits = dtype.bits
        self.eps = float(info.eps)
        self.max = float(info.max)
        self.min = float(info.min)
        self.tiny = self.smallest_normal = float(info.tiny)
        self.resolution = 10.0**-info.precision

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
            f"smallest_normal={self.tiny:g}, tiny={self.tiny:g}, dtype={self.dtype})"
        )


class iinfo:
    """Limits of an integer type: `bits`, `max`, `min`.

    Args:
        type: an integer dtype.
    """

    def __init__(self, type: DType) -> None:
        if not isinstance(type, DType) or type.kind not in "iu":
            raise DTypeError(f"iinfo() takes an integer dtype, got {type!r}; use finfo() for floats")
        info = np.iinfo(type.numpy)
        self.dtype = type.torch_name
        self.bits = type.bits
        self.max = int(info.max)
        self.min = int(info.min)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min:g}, max={self.max:g}, dtype={self.dtype})"


def get_num_threads() -> int:
    """How many threads parallel loops use, the caller's included."""
    from ..backends.llvm import pool

    return pool.get_num_threads()


def set_num_threads(n: int) -> None:
    """Sets how many threads parallel loops use from now on. Raises ValueError unless it is positive."""
    from ..backends.llvm import pool

    pool.set_num_threads(n)


#: Constants and functions of the public API, by name.
PUBLIC: dict[str, Any] = {
    c.__name__: c for c in (
        memory_format, layout, finfo, iinfo, get_num_threads, set_num_threads, get_float32_matmul_precision,
        set_float32_matmul_precision,
    )
}  # fmt: skip
PUBLIC |= {c._name: c for c in (contiguous_format, preserve_format, channels_last, channels_last_3d, strided)}

__all__ = ["PUBLIC", "finfo", "iinfo", "layout", "memory_format"]
