"""Tensor types: a dtype and a static shape, written `f32[64,1000]`. The currency of `infer` functions."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from operator import index

from .dtypes import DType
from .errors import DTypeError, IndexOutOfRange, OpError

Shape = tuple[int, ...]

#: What specs of contractions and of einsum name dimensions with.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Type:
    """An immutable tensor type.

    Attributes:
        dtype: element type.
        shape: static dimensions, each >= 0; `()` is a scalar.
        device: None, which is the CPU; see PlacedType.
    """

    __slots__ = ("_hash", "dtype", "numel", "shape")

    device: str | None = None

    def __init__(self, dtype: DType, shape: Iterable[int]) -> None:
        self.dtype = dtype
        self.shape: Shape = tuple(shape)
        self.numel: int = prod(self.shape)
        self._hash = hash((dtype.name, self.shape))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def with_shape(self, shape: Iterable[int]) -> Type:
        return Type(self.dtype, shape)

    def with_dtype(self, dtype: DType) -> Type:
        return Type(dtype, self.shape)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Type) and self.dtype is other.dtype and self.shape == other.shape

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


class PlacedType(Type):
    """The type of a tensor that is not on the CPU, written `f32[64,1000]@cuda:0`. The tracer's values have
    such types; graphs, which are compiled for a device as a whole, don't.

    Attributes:
        device: its name, with a number.
    """

    __slots__ = ("device",)

    def __init__(self, dtype: DType, shape: Iterable[int], device: str) -> None:
        super().__init__(dtype, shape)
        self.device: str = device
        self._hash = hash((self._hash, device))

    def with_shape(self, shape: Iterable[int]) -> Type:
        return PlacedType(self.dtype, shape, self.device)

    def with_dtype(self, dtype: DType) -> Type:
        return PlacedType(dtype, self.shape, self.device)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PlacedType)
            and self.dtype is other.dtype
            and self.shape == other.shape
            and self.device == other.device
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"{super().__repr__()}@{self.device}"


def placed_type(t: Type, device: str | None) -> Type:
    """The same type on a device; on the CPU for None."""
    if t.device is device or t.device == device:
        return t
    return Type(t.dtype, t.shape) if device is None else PlacedType(t.dtype, t.shape, device)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """NumPy's broadcasting of shapes. Raises OpError naming the dimension that does not fit."""
    if not shapes:
        return ()
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    rank = max(len(s) for s in shapes)
    out = [1] * rank
    for s in shapes:
        for i, n in enumerate(s, rank - len(s)):
            if n == 1 or n == out[i]:
                continue
            if out[i] != 1:
                raise OpError(
                    f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast: "
                    f"{out[i]} against {n} at dimension {i - rank}"
                )
            out[i] = n
    return tuple(out)


def normalize_axis(axis: int, rank: int) -> int:
    """`axis` in `[-rank, rank)` as a non-negative one; a scalar counts as rank 1, as in PyTorch."""
    r = max(rank, 1)
    if axis.__class__ is not int:
        try:
            axis = index(axis)
        except TypeError:
            raise DTypeError(f"a dimension is an integer, got {axis!r:.60}") from None
    if not -r <= axis < r:
        raise IndexOutOfRange(f"dimension {axis} is out of range [{-r}, {r - 1}]")
    return axis + r if axis < 0 else axis
