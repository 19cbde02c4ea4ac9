"""Helpers that make op records, so that a row of a table says an op. Used by the families in this folder
only.

`unary`, `binary`, `ternary` and `elementwise` make scalar ops whose attributes are the keyword-only
parameters of the lambda; `composite` makes ops that decompose. Shape helpers shared by several families
are here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import dtypes
from ..dtypes import DType
from ..errors import DTypeError, IndexOutOfRange, OpError
from ..op import Op, Sample, attributes_of, register
from ..types import Shape, Type, broadcast_shapes

KIND_NAMES = {"f": "floating-point", "i": "signed integer", "u": "unsigned integer", "b": "bool"}
ALL = "fiub"
NUMERIC = "fiu"
INTEGRAL = "iub"

F32, F64, F16, I64, I32, U8, BOOL = (
    dtypes.float32,
    dtypes.float64,
    dtypes.float16,
    dtypes.int64,
    dtypes.int32,
    dtypes.uint8,
    dtypes.bool_,
)


def f32(*shape: int) -> Type:
    """Shorthand for samples."""
    return Type(F32, shape)


def i64(*shape: int) -> Type:
    return Type(I64, shape)


def i32(*shape: int) -> Type:
    return Type(I32, shape)


def boolean(*shape: int) -> Type:
    return Type(BOOL, shape)


def check_kind(dtype: DType, kinds: str) -> None:
    if dtype.kind not in kinds:
        wanted = ", ".join(KIND_NAMES[k] for k in kinds)
        raise DTypeError(f"expected operands of {wanted} type, got {dtype.name}; cast first")


def check_float(*types: Type) -> None:
    for t in types:
        check_kind(t.dtype, "f")


def check_same_dtype(*types: Type) -> None:
    for t in types:
        if t.dtype is not types[0].dtype:
            raise DTypeError(
                f"expected operands of one dtype, got {types[0].dtype.name} and {t.dtype.name}; cast one"
            )


def check_rank(t: Type, rank: int, what: str) -> None:
    if t.rank != rank:
        raise OpError(f"expected {what} of {rank} dimensions, got {t}")


def check_dim(dim: int, rank: int) -> None:
    """Kernel ops take normalised dimensions only, so that equal programs have equal text."""
    if not isinstance(dim, int) or not 0 <= dim < rank:
        raise IndexOutOfRange(f"dimension {dim} is out of range [0, {rank})")


def check_axes(axes: tuple[int, ...], rank: int) -> None:
    if not isinstance(axes, tuple):
        raise OpError(f"axes must be a tuple of ints, got {axes!r}")
    for a in axes:
        check_dim(a, rank)
    if len(set(axes)) != len(axes):
        raise OpError(f"axes {axes} has a dimension twice")


def any_axis(dim: int, rank: int) -> tuple[int, ...]:
    """`dim`, negative allowed, as axes to reduce over: `()` for a scalar, which PyTorch lets one reduce
    over 0."""
    r = max(rank, 1)
    if not -r <= dim < r:
        raise IndexOutOfRange(f"dimension {dim} is out of range [{-r}, {r - 1}]")
    return (dim % r,) if rank else ()


def keepdim_shape(shape: Shape, axes: Iterable[int]) -> Shape:
    """`shape` with `axes` of size 1."""
    axes = set(axes)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def reduced_shape(shape: Shape, axes: Iterable[int], keepdim: bool) -> Shape:
    axes = set(axes)
    return keepdim_shape(shape, axes) if keepdim else tuple(n for i, n in enumerate(shape) if i not in axes)


def spread(b: Any, g: Any, shape: Shape, axes: tuple[int, ...], keepdim: bool) -> Any:
    """A reduction's result as a tensor that broadcasts against its operand: reduced axes come back as
    size 1."""
    return g if keepdim else b.reshape(g, shape=keepdim_shape(shape, axes))


def spread_full(b: Any, g: Any, shape: Shape, axes: tuple[int, ...], keepdim: bool) -> Any:
    """`spread`, expanded to the operand's whole shape."""
    g = spread(b, g, shape, axes, keepdim)
    return g if g.type.shape == shape else b.expand(g, shape=shape)


def widen(b: Any, x: Any) -> Any:
    """`x` in the type arithmetic is done in: composites on f16/bf16 compute in f32 and round once, as
    PyTorch's."""
    return b.cast_to(x, dtypes.opmath(x.type.dtype))


def zeros_like(b: Any, x: Any) -> Any:
    """A zero tensor of `x`'s type."""
    return b.full(shape=x.type.shape, value=0.0, dtype=x.type.dtype)


def is_zero(v: Any) -> bool:
    """Whether `v` is known to be zero as made by `zeros_like`: gradients of results nobody used."""
    return v.node is not None and v.node.op.name == "full" and not v.node.attrs["value"]


def with_attributes(infer: Callable[..., Any], scalar: Callable[..., Any], arity: int) -> Callable[..., Any]:
    """`infer(*types)` of a scalar op, checked to have `arity` operands and the attributes of its lambda."""
    allowed = attributes_of(scalar)
    required = [n for n, d in allowed.items() if d is inspect.Parameter.empty]

    def checked(*types: Type, **attrs: Any) -> Any:
        if len(types) != arity:
            raise TypeError(f"got {len(types)} operands")
        for name in attrs:
            if name not in allowed:
                raise TypeError(f"got an unknown attribute {name!r}")
        for name in required:
            if name not in attrs:
                raise TypeError(f"attribute {name!r} is missing")
        return infer(*types)

    checked.attributes = allowed
    checked.described_by = scalar
    return checked


def _infer1(kinds: str, result: DType | None) -> Callable[..., Type]:
    def infer(x: Type) -> Type:
        if x.dtype.kind not in kinds:
            check_kind(x.dtype, kinds)
        return x if result is None or x.dtype is result else Type(result, x.shape)

    return infer


def _infer2(kinds: str, result: DType | None) -> Callable[..., Type]:
    def infer(x: Type, y: Type) -> Type:
        if x.dtype is not y.dtype:
            check_same_dtype(x, y)
        if x.dtype.kind not in kinds:
            check_kind(x.dtype, kinds)
        if result is None:
            if x.shape == y.shape or not y.shape:
                return x
            if not x.shape:
                return y
            return Type(x.dtype, broadcast_shapes(x.shape, y.shape))
        return Type(result, broadcast_shapes(x.shape, y.shape))

    return infer


def _infer_n(kinds: str, result: DType | None) -> Callable[..., Type]:
    def infer(*types: Type) -> Type:
        check_same_dtype(*types)
        check_kind(types[0].dtype, kinds)
        return Type(result or types[0].dtype, broadcast_shapes(*(t.shape for t in types)))

    return infer


_SHAPES: dict[int, tuple[tuple[Shape, ...], ...]] = {
    1: (((3, 5),), ((),), ((0, 4),), ((7, 1),)),
    2: (((4, 3), (3,)), ((5,), ()), ((2, 1, 3), (4, 1)), ((0, 3), (1, 3)), ((7,), (7,)), ((), ())),
    3: (((4, 3), (3,), ()), ((5,), (5,), (5,)), ((2, 1), (3,), (2, 3)), ((0, 2), (2,), (1, 2))),
}


def shaped_samples(
    arity: int, kinds: str, domain: Any, attrs: tuple[dict[str, Any], ...], smooth: bool
) -> list[Sample]:
    """Instances of an elementwise op: broadcasting, scalars, empty and odd sizes, and other dtypes it
    takes."""
    out: list[Sample] = []
    for k, a in enumerate(attrs):
        if "f" in kinds:
            for shapes in _SHAPES[arity] if k == 0 else _SHAPES[arity][:1]:
                out.append(Sample(tuple(Type(F32, s) for s in shapes), a, domain, smooth=smooth))
        for kind, d in (("i", I64), ("i", I32), ("u", U8), ("b", BOOL)):
            if kind in kinds:
                out.append(Sample(tuple(Type(d, s) for s in _SHAPES[arity][0]), a, (-5, 9), smooth=False))
    return out


def elementwise(
    name: str,
    scalar: Callable[..., Any],
    grad: Callable[..., tuple[Any, ...]] | None = None,
    *,
    kinds: str = "f",
    result: DType | None = None,
    grad_name: str | Callable[[Any], str] = "",
    domain: Any = (-2.0, 2.0),
    smooth: bool = True,
    attrs: tuple[dict[str, Any], ...] = ({},),
    infer: Callable[..., Any] | None = None,
    samples: Callable[[], Iterable[Sample]] | None = None,
    differentiable: bool | None = None,
    batch: Callable[..., Any] | None = None,
    doc: str = "",
) -> Op:
    """A scalar op. `kinds` are the dtype kinds it takes, `result` its dtype where not the operands',
    `attrs` the attribute sets its samples use. Without `grad` it is not differentiable."""
    arity = scalar.__code__.co_argcount - 1
    if infer is None:
        base = {1: _infer1, 2: _infer2}.get(arity, _infer_n)(kinds, result)
        plain = arity <= 2 and not scalar.__code__.co_kwonlyargcount
        infer = base if plain else with_attributes(base, scalar, arity)
    return register(
        Op(
            name,
            infer,
            scalar=scalar,
            grad=grad,
            grad_name=grad_name,
            differentiable=grad is not None if differentiable is None else differentiable,
            samples=samples
            or (lambda: shaped_samples(arity, kinds, domain, attrs, smooth and grad is not None)),
            batch=batch,
            doc=doc,
        )
    )


def unary(
    name: str, scalar: Callable[..., Any], grad: Callable[..., Any] | None = None, **options: Any
) -> Op:
    """A one-operand scalar op; `grad(b, n, g)` gives the operand's gradient itself."""
    rule = None if grad is None else (lambda b, n, g: (grad(b, n, g),))
    return elementwise(name, scalar, rule, **options)


binary = elementwise


def composite(
    name: str,
    infer: Callable[..., Any],
    decompose: Callable[..., Any],
    grad: Callable[..., tuple[Any, ...]] | None = None,
    *,
    samples: Callable[[], Iterable[Sample]] = tuple,
    grad_name: str | Callable[[Any], str] = "",
    differentiable: bool = True,
    unview: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    batch: Callable[..., Any] | None = None,
    doc: str = "",
) -> Op:
    """An op that decomposes; without `grad` its decomposition is differentiated."""
    return register(
        Op(
            name,
            infer,
            decompose=decompose,
            grad=grad,
            samples=samples,
            grad_name=grad_name,
            differentiable=differentiable,
            unview=unview,
            jvp=jvp,
            batch=batch,
            doc=doc,
        )
    )


def accumulate(x: np.ndarray) -> np.ndarray:
    """f16 and bf16 as f32, for kernels that accumulate."""
    d = dtypes.from_numpy(x.dtype)
    assert d is not None
    return x if dtypes.opmath(d) is d else x.astype(np.float32)


def integer_maker(*ranges: tuple[int, int] | None) -> Callable[..., list[np.ndarray]]:
    """A `Sample.make`: operand k drawn from integers in `ranges[k]`, or normally distributed where None."""

    def make(rng: Any, types: tuple[Type, ...]) -> list[np.ndarray]:
        out = []
        for r, t in zip(ranges, types):
            draw = rng.standard_normal(t.shape) if r is None else rng.integers(r[0], r[1], t.shape)
            out.append(np.asarray(draw).astype(t.dtype.numpy))
        return out

    return make
