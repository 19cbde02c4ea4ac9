"""Element types of tensors, and PyTorch's promotion between them. Anyone may use it; nothing here knows of
shapes.

In the IR and its text a dtype goes by its short name (`f32`); users see PyTorch's (`tracegrad.float32`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DTypeError


class DType:
    """One element type. There is exactly one instance of each, so `is` and `==` agree.

    Attributes:
        name: short name in the IR's text, such as `f32`.
        torch_name: PyTorch's name, such as `float32`.
        kind: `"f"` float, `"i"` signed, `"u"` unsigned, `"b"` bool.
        bits: storage width in bits (8 for bool).
        numpy: the NumPy dtype of buffers holding it.
    """

    __slots__ = ("bits", "is_floating_point", "itemsize", "kind", "name", "numpy", "torch_name")

    def __init__(self, name: str, torch_name: str, kind: str, bits: int, numpy: Any) -> None:
        self.name = name
        self.torch_name = torch_name
        self.kind = kind
        self.bits = bits
        self.itemsize = bits // 8
        self.is_floating_point = kind == "f"
        if numpy is not None:
            self.numpy = np.dtype(numpy)

    if not TYPE_CHECKING:  # to which any name would be fine

        def __getattr__(self, name: str) -> Any:
            """`numpy` of bfloat16, when first asked for: few programs do, and to load it takes a while."""
            if name != "numpy":
                raise AttributeError(f"a dtype has no attribute {name!r}", name=name, obj=self)
            import ml_dtypes

            self.numpy = np.dtype(ml_dtypes.bfloat16)
            _BY_NUMPY[self.numpy] = self
            return self.numpy

    def __repr__(self) -> str:
        return f"tracegrad.{self.torch_name}"

    def __str__(self) -> str:
        return f"tracegrad.{self.torch_name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_by_name, (self.name,))

    def number(self, x: Any) -> Any:
        """A Python number as an element: a float, a bool, or an int wrapped to the type's range.

        Raises DTypeError for infinities and NaN where integers are wanted.
        """
        if self.kind == "f":
            return float(x)
        if self.kind == "b":
            return bool(x)
        try:
            n = int(x) & ((1 << self.bits) - 1)
        except (OverflowError, ValueError):
            raise DTypeError(f"{x!r} can't be an element of a tensor of {self}") from None
        return n - (1 << self.bits) if self.kind == "i" and n >> (self.bits - 1) else n

    @property
    def is_signed(self) -> bool:
        return self.kind in "fi"

    @property
    def is_complex(self) -> bool:
        return False


def _by_name(name: str) -> DType:
    return BY_NAME[name]


float64 = DType("f64", "float64", "f", 64, np.float64)
float32 = DType("f32", "float32", "f", 32, np.float32)
float16 = DType("f16", "float16", "f", 16, np.float16)
bfloat16 = DType("bf16", "bfloat16", "f", 16, None)
int64 = DType("i64", "int64", "i", 64, np.int64)
int32 = DType("i32", "int32", "i", 32, np.int32)
int16 = DType("i16", "int16", "i", 16, np.int16)
int8 = DType("i8", "int8", "i", 8, np.int8)
uint8 = DType("u8", "uint8", "u", 8, np.uint8)
bool_ = DType("bool", "bool", "b", 8, np.bool_)
# Bits of random streams and hashes only; users never get tensors of these.
uint32 = DType("u32", "uint32", "u", 32, np.uint32)
uint64 = DType("u64", "uint64", "u", 64, np.uint64)

ALL = (float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, bool_, uint32, uint64)
BY_NAME: dict[str, DType] = {d.name: d for d in ALL}
_BY_NUMPY: dict[np.dtype, DType] = {d.numpy: d for d in ALL if d is not bfloat16}


def from_numpy(dtype: Any) -> DType | None:
    """The DType of a NumPy dtype, or None where there is none (complex, strings, objects)."""
    wanted = np.dtype(dtype)
    found = _BY_NUMPY.get(wanted)
    return bfloat16 if found is None and wanted == bfloat16.numpy else found


def opmath(dtype: DType) -> DType:
    """The type elementwise arithmetic is done in: f32 for f16 and bf16, else the type itself."""
    return float32 if dtype.kind == "f" and dtype.bits == 16 else dtype


_INT_RANK = {"i8": 1, "i16": 2, "i32": 3, "i64": 4}


def promote(a: DType, b: DType) -> DType:
    """PyTorch's `promote_types`: the smallest type both convert to, floats winning over integers.

    u8 with a signed integer gives the next wider signed one; f16 with bf16 gives f32.
    """
    if a is b:
        return a
    if a.kind == "b":
        return b
    if b.kind == "b":
        return a
    if a.kind == "f" and b.kind == "f":
        if a.bits == b.bits:
            return float32
        return a if a.bits > b.bits else b
    if a.kind == "f":
        return a
    if b.kind == "f":
        return b
    if a.kind == b.kind:
        return a if a.bits > b.bits else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    return {8: int16, 16: int32, 32: int64, 64: int64}[unsigned.bits]
