"""Tensors from nothing: constants, index tensors and what is composed of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import DType
from ..errors import OpError
from ..op import Op, Sample, register
from ..types import Shape, Type
from .records import BOOL, F32, F64, I64, check_dim, check_kind, composite, f32


def _check_shape(shape: Any) -> None:
    if not isinstance(shape, tuple) or any(not isinstance(n, int) or n < 0 for n in shape):
        raise OpError(f"shape must be a tuple of sizes >= 0, got {shape!r}")


def _constant(*, value: Any, dtype: DType, shape: Shape = ()) -> Type:
    if shape != ():
        _check_shape(shape)
    t = Type(dtype, shape)
    if shape == ():
        if isinstance(value, tuple):
            raise OpError(f"a scalar constant takes one Python number, got a tuple of {len(value)}")
    elif not isinstance(value, tuple) or len(value) != t.numel:
        raise OpError(f"value must be a flat tuple of {t.numel} numbers for {t}, got {value!r}")
    return t


def _constant_numpy(*, value: Any, dtype: DType, shape: Shape = ()) -> np.ndarray:
    if dtype.kind in "iub" or shape == ():
        out = np.asarray(value, dtype=None if dtype.kind == "f" else dtype.numpy)
    else:
        out = np.asarray(value, dtype=np.float64)
    return out.astype(dtype.numpy).reshape(shape)


register(
    Op(
        "constant",
        _constant,
        kernel="source",
        numpy=_constant_numpy,
        differentiable=False,
        samples=lambda: [
            Sample((), {"value": 1.5, "dtype": F32}),
            Sample((), {"value": (1, 2, 3, 4, 5, 6), "dtype": I64, "shape": (2, 3)}),
            Sample((), {"value": (), "dtype": F32, "shape": (0, 2)}),
            Sample((), {"value": True, "dtype": BOOL}),
        ],
        doc="A literal tensor: one number, or a flat row-major tuple of them.",
    )
)


def _iota(*, shape: Shape, dim: int, dtype: DType) -> Type:
    _check_shape(shape)
    check_dim(dim, len(shape))
    check_kind(dtype, "fiu")
    return Type(dtype, shape)


def _iota_numpy(*, shape: Shape, dim: int, dtype: DType) -> np.ndarray:
    line = np.arange(shape[dim]).astype(dtype.numpy)
    return np.ascontiguousarray(
        np.broadcast_to(line.reshape([-1 if i == dim else 1 for i in range(len(shape))]), shape)
    )


register(
    Op(
        "iota",
        _iota,
        kernel="source",
        numpy=_iota_numpy,
        differentiable=False,
        samples=lambda: [
            Sample((), {"shape": (5,), "dim": 0, "dtype": I64}),
            Sample((), {"shape": (2, 3), "dim": 1, "dtype": F32}),
            Sample((), {"shape": (0, 3), "dim": 0, "dtype": I64}),
        ],
        doc="The position along dimension `dim`.",
    )
)


def _full(*, shape: Shape, value: float, dtype: DType) -> Type:
    _check_shape(shape)
    if isinstance(value, tuple):
        raise OpError("full takes one number; a constant takes several")
    return Type(dtype, shape)


composite(
    "full",
    _full,
    lambda b, *, shape, value, dtype: b.expand(b.const(value, dtype), shape=shape),
    differentiable=False,
    samples=lambda: [
        Sample((), {"shape": (2, 3), "value": 0.5, "dtype": F32}),
        Sample((), {"shape": (), "value": 3, "dtype": I64}),
        Sample((), {"shape": (0,), "value": True, "dtype": BOOL}),
    ],
    doc="One number, everywhere.",
)


def _arange(*, n: int, start: float = 0, step: float = 1, dtype: DType = I64) -> Type:
    if n < 0:
        raise OpError(f"n must be >= 0, got {n}")
    check_kind(dtype, "fiu")
    return Type(dtype, (n,))


def _arange_of(b: Any, *, n: int, start: float = 0, step: float = 1, dtype: DType = I64) -> Any:
    # PyTorch evaluates start + i*step in f64 and rounds once.
    d = F64 if dtype.kind == "f" else I64
    i = b.iota(shape=(n,), dim=0, dtype=d)
    if step != 1:
        i = b.mul(i, b.const(step, d))
    if start != 0:
        i = b.add(i, b.const(start, d))
    return b.cast_to(i, dtype)


composite(
    "arange",
    _arange,
    _arange_of,
    differentiable=False,
    samples=lambda: [
        Sample((), {"n": 5}),
        Sample((), {"n": 4, "start": 0.5, "step": 0.1, "dtype": F32}),
        Sample((), {"n": 0, "start": 2}),
    ],
    doc="`start + step * i` for i in [0, n).",
)


def _linspace(*, start: float, end: float, n: int, dtype: DType = F32) -> Type:
    return _arange(n=n, dtype=dtype)


def _linspace_of(b: Any, *, start: float, end: float, n: int, dtype: DType = F32) -> Any:
    # Counted from both ends, as PyTorch does, so that the last element is exactly `end`.
    d = dtype if dtype.kind == "f" and dtype.bits >= 32 else F64
    if n == 1:
        return b.full(shape=(1,), value=start, dtype=dtype)
    step = b.const((end - start) / max(n - 1, 1), d)
    i = b.iota(shape=(n,), dim=0, dtype=d)
    rising = b.add(b.mul(step, i), b.const(start, d))
    falling = b.sub(b.const(end, d), b.mul(step, b.sub(b.const(n - 1, d), i)))
    return b.cast_to(b.where(b.lt(i, b.const(n // 2, d)), rising, falling), dtype)


composite(
    "linspace",
    _linspace,
    _linspace_of,
    differentiable=False,
    samples=lambda: [
        Sample((), {"start": 0.0, "end": 1.0, "n": 7}),
        Sample((), {"start": 3.0, "end": -1.0, "n": 1}),
        Sample((), {"start": 3.0, "end": -1.0, "n": 0}),
    ],
    doc="`n` numbers from `start` to `end`, both included.",
)


def _eye(*, n: int, m: int, dtype: DType = F32) -> Type:
    _check_shape((n, m))
    return Type(dtype, (n, m))


def _eye_of(b: Any, *, n: int, m: int, dtype: DType = F32) -> Any:
    hit = b.eq(b.iota(shape=(n, m), dim=0, dtype=I64), b.iota(shape=(n, m), dim=1, dtype=I64))
    return b.cast_to(hit, dtype)


composite(
    "eye",
    _eye,
    _eye_of,
    differentiable=False,
    samples=lambda: [Sample((), {"n": 3, "m": 4}), Sample((), {"n": 2, "m": 0, "dtype": I64})],
    doc="Ones on the main diagonal, zeros elsewhere.",
)


def _triangle_infer(x: Type, *, diagonal: int = 0) -> Type:
    if x.rank < 2:
        raise OpError(f"expected at least 2 dimensions, got {x}")
    return x


def _triangle(compare: str) -> Any:
    def decompose(b: Any, x: Any, *, diagonal: int = 0) -> Any:
        n, m = x.type.shape[-2:]
        row = b.iota(shape=(n, m), dim=0, dtype=I64)
        col = b.iota(shape=(n, m), dim=1, dtype=I64)
        keep = getattr(b, compare)(b.sub(col, row), b.const(diagonal, I64))
        return b.where(keep, x, b.const(0, x))

    return decompose


for _name, _compare in (("tril", "le"), ("triu", "ge")):
    composite(
        _name,
        _triangle_infer,
        _triangle(_compare),
        (lambda name: lambda b, n, g: (getattr(b, name)(g, diagonal=n.attr("diagonal")),))(_name),
        samples=lambda: [
            Sample((f32(4, 4),)),
            Sample((f32(2, 3, 5),), {"diagonal": 1}),
            Sample((f32(5, 3),), {"diagonal": -2}),
            Sample((f32(0, 3),)),
        ],
        doc=f"The matrix with the other triangle zeroed ({_name}).",
    )
