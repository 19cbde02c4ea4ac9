"""Pools of `nn.functional`: max, average, power mean, adaptive, and max unpooling. Import them from there."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ..ir.errors import OpError
from ..ir.op import REGISTRY
from ..tracer.library import ArgumentError
from ..tracer.making import apply
from ..tracer.operands import tensor_operand
from ..tracer.tensor import Tensor
from .functional_conv import Ints, ints

T = Any


def _input(input: Any, n: int, what: str) -> Tensor:
    tensor_operand(input, f"{what}(): input")
    if input.dim() not in (n + 1, n + 2):
        raise OpError(
            f"{what}(): expected {n + 1}D (unbatched) or {n + 2}D (batched) input, got {input._value().type}"
        )
    return input


def _strides(stride: Any, size: Ints, n: int, what: str) -> Ints:
    empty = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    return size if empty else ints(stride, n, f"{what}(): stride")


def _max_pool(n: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    name = f"max_pool{n}d"

    def with_indices(
        input: T, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        size = ints(kernel_size, n, f"{name}(): kernel_size")
        return apply(
            REGISTRY["max_pool"],
            _input(input, n, name),
            size=size,
            stride=_strides(stride, size, n, name),
            padding=ints(padding, n, f"{name}(): padding"),
            dilation=ints(dilation, n, f"{name}(): dilation"),
            ceil_mode=bool(ceil_mode),
        )[:2]

    def fn(
        input: T, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        found = with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
        return found if return_indices else found[0]

    fn.__name__ = fn.__qualname__ = name
    with_indices.__name__ = with_indices.__qualname__ = f"{name}_with_indices"
    fn.__doc__ = f"""The largest element of each window of `[N, C, S...]` or `[C, S...]`, {n} spatial sizes S.

    Args:
        stride: the kernel's size if None.
        padding: elements of -inf on either side, at most half the kernel.
        ceil_mode: whether a last window may stick out.
        return_indices: also give the i64 positions, flat over the spatial dimensions, for `max_unpool{n}d`.
    """
    with_indices.__doc__ = f"`{name}` with its positions: (maxima, i64 positions)."
    return fn, with_indices


max_pool1d, max_pool1d_with_indices = _max_pool(1)
max_pool2d, max_pool2d_with_indices = _max_pool(2)
max_pool3d, max_pool3d_with_indices = _max_pool(3)


def _avg(
    input: T, n: int, size: Any, stride: Any, padding: Any, ceil_mode: bool, with_pad: bool, divisor: Any
) -> Tensor:
    what = f"avg_pool{n}d"
    if isinstance(input, Tensor) and input.dtype.kind in "iu":  # integers are divided towards zero
        exact: Any = _avg(input.double(), n, size, stride, padding, ceil_mode, with_pad, divisor)
        return exact.to(input.dtype)
    taps = ints(size, n, f"{what}(): kernel_size")
    return apply(
        REGISTRY["avg_pool"],
        _input(input, n, what),
        size=taps,
        stride=_strides(stride, taps, n, what),
        padding=ints(padding, n, f"{what}(): padding"),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(with_pad),
        divisor_override=divisor,
    )


def avg_pool1d(
    input: T, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """The mean of each window of `[N, C, L]` or `[C, L]`; arguments as in `avg_pool2d`."""
    return _avg(input, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def _avg_pool(n: int) -> Callable[..., Tensor]:
    def fn(
        input: T, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        return _avg(input, n, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    fn.__name__ = fn.__qualname__ = f"avg_pool{n}d"
    fn.__doc__ = f"""The mean of each window of `[N, C, S...]` or `[C, S...]`, {n} spatial sizes S.

    Args:
        stride: the kernel's size if None.
        padding: zeros on either side, at most half the kernel.
        ceil_mode: whether a last window may stick out.
        count_include_pad: whether padding counts among a window's elements.
        divisor_override: divides the sum instead of the number of elements.
    """
    return fn


avg_pool2d, avg_pool3d = _avg_pool(2), _avg_pool(3)


def _sizes(output_size: Any, input: Tensor, n: int, what: str) -> Ints:
    """Output sizes; None keeps the input's."""
    given = (output_size,) * n if output_size is None or isinstance(output_size, int) else tuple(output_size)
    if len(given) == 1:
        given *= n
    if len(given) != n:
        raise ArgumentError(f"{what}(): output_size must be an int or {n} (or None), got {output_size!r}")
    return tuple(int(m) if k is None else int(k) for k, m in zip(given, input.shape[-n:]))


def _adaptive_avg(n: int) -> Callable[..., Tensor]:
    name = f"adaptive_avg_pool{n}d"

    def fn(input: T, output_size: Any) -> Tensor:
        _input(input, n, name)
        return apply(REGISTRY["adaptive_avg_pool"], input, size=_sizes(output_size, input, n, name))

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""Means over `output_size` windows that cover `[N, C, S...]` (or `[C, S...]`), {n} spatial
    sizes S, as evenly as they can; None keeps a size."""
    return fn


def _adaptive_max(n: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    name = f"adaptive_max_pool{n}d"

    def with_indices(input: T, output_size: Any, return_indices: bool = False) -> tuple[Tensor, Tensor]:
        _input(input, n, name)
        return apply(REGISTRY["adaptive_max_pool"], input, size=_sizes(output_size, input, n, name))

    def fn(input: T, output_size: Any, return_indices: bool = False) -> Any:
        found = with_indices(input, output_size)
        return found if return_indices else found[0]

    fn.__name__ = fn.__qualname__ = name
    with_indices.__name__ = with_indices.__qualname__ = f"{name}_with_indices"
    fn.__doc__ = f"""The largest elements of `output_size` windows that cover `[N, C, S...]` (or `[C,
    S...]`), {n} spatial sizes S, as evenly as they can; with `return_indices` also the flat positions."""
    with_indices.__doc__ = f"`{name}` with its positions: (maxima, i64 positions)."
    return fn, with_indices


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (_adaptive_avg(n) for n in (1, 2, 3))
adaptive_max_pool1d, adaptive_max_pool1d_with_indices = _adaptive_max(1)
adaptive_max_pool2d, adaptive_max_pool2d_with_indices = _adaptive_max(2)
adaptive_max_pool3d, adaptive_max_pool3d_with_indices = _adaptive_max(3)


def _lp_pool(n: int) -> Callable[..., Tensor]:
    name = f"lp_pool{n}d"

    def fn(
        input: T, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        taps = ints(kernel_size, n, f"{name}(): kernel_size")
        _input(input, n, name)
        powered: Any = input.pow(norm_type)
        mean: Any = _avg(powered, n, taps, stride, 0, ceil_mode, True, None)
        # The sign keeps what odd powers of negative sums are, less their power.
        return (mean.sign() * mean.abs().relu()).mul(prod(taps)).pow(1.0 / norm_type)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""The `norm_type`-th root of the sum of `norm_type`-th powers over each window of
    `[N, C, S...]` or `[C, S...]`, {n} spatial sizes S."""
    return fn


lp_pool1d, lp_pool2d, lp_pool3d = (_lp_pool(n) for n in (1, 2, 3))


def _unpooled_size(input: Tensor, size: Ints, stride: Ints, padding: Ints, given: Any, what: str) -> Ints:
    n = len(size)
    default = tuple((m - 1) * s + k - 2 * p for m, s, k, p in zip(input.shape[-n:], stride, size, padding))
    if given is None:
        return default
    found = tuple(int(v) for v in given)
    if len(found) == n + 2 or len(found) == n + 1:
        found = found[-n:]
    if len(found) != n:
        raise ArgumentError(
            f"{what}(): output_size should be a sequence containing {n} or {n + 2} elements, got {given!r}"
        )
    for d, (v, m, s) in enumerate(zip(found, default, stride)):
        if not m - s < v < m + s:
            raise ArgumentError(
                f"{what}(): invalid output_size {list(found)} (dimension {d} must be between "
                f"{m - s} and {m + s})"
            )
    return found


def _max_unpool(n: int) -> Callable[..., Tensor]:
    name = f"max_unpool{n}d"

    def fn(
        input: T, indices: T, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
    ) -> Tensor:
        _input(input, n, name)
        taps = ints(kernel_size, n, f"{name}(): kernel_size")
        step = _strides(stride, taps, n, name)
        pad = ints(padding, n, f"{name}(): padding")
        size = _unpooled_size(input, taps, step, pad, output_size, name)
        return apply(REGISTRY["max_unpool"], input, tensor_operand(indices, f"{name}(): indices"), size=size)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""A partial inverse of `max_pool{n}d`: zeros, with the elements at their positions.

    Args:
        indices: i64, of the input's shape, as `max_pool{n}d(..., return_indices=True)` gives them.
        output_size: spatial sizes of the result, where several would pool to the input's.
    """
    return fn


max_unpool1d, max_unpool2d, max_unpool3d = (_max_unpool(n) for n in (1, 2, 3))
