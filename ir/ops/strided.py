"""`as_strided`: any arithmetic of places in the memory of a tensor, as reading and writing at computed
positions."""

from __future__ import annotations

from typing import Any

from ..errors import OpError
from ..op import Sample
from ..types import Type
from .records import I64, composite, f32

Ints = tuple[int, ...]


def _as_strided(x: Type, *, size: Ints, stride: Ints, offset: int = 0) -> Type:
    if len(size) != len(stride) or any(n < 0 for n in size) or any(s < 0 for s in stride) or offset < 0:
        raise OpError(f"expected as many sizes as strides, none negative, got {size}, {stride} and {offset}")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if 0 not in size and last >= x.numel:
        raise OpError(f"size {size} and stride {stride} from {offset} reach place {last} of {x.numel}")
    return Type(x.dtype, size)


def _places(b: Any, size: Ints, stride: Ints, offset: int) -> Any:
    """The place in memory of each element."""
    at = b.full(shape=size, value=offset, dtype=I64)
    for d, s in enumerate(stride):
        if s and size[d] != 1:
            at = b.add(at, b.mul(b.iota(shape=size, dim=d, dtype=I64), b.const(s, I64)))
    return at


def _overlaps(size: Ints, stride: Ints) -> bool:
    """Whether two elements may share a place: some stride is within the reach of the smaller ones."""
    reach = 0
    for s, n in sorted((s, n) for s, n in zip(stride, size) if n > 1):
        if s <= reach:
            return True
        reach += (n - 1) * s
    return False


def _unview(b: Any, base: Any, new: Any, *, size: Ints, stride: Ints, offset: int = 0) -> Any:
    if _overlaps(size, stride):
        raise OpError("can't write through a view whose elements share memory; clone() it first")
    return b.put(base, _places(b, size, stride, offset), new)


composite(
    "as_strided",
    _as_strided,
    lambda b, x, *, size, stride, offset=0: b.take_flat(x, _places(b, size, stride, offset)),
    samples=lambda: [
        Sample((f32(3, 4),), {"size": (2, 2), "stride": (4, 1), "offset": 1}),
        Sample((f32(7),), {"size": (2, 3), "stride": (1, 2)}),
        Sample((f32(6),), {"size": (0, 3), "stride": (1, 1)}),
        Sample((f32(),), {"size": (), "stride": ()}),
    ],
    unview=_unview,
    doc="The elements at offset + sum of index * stride in memory.",
)
