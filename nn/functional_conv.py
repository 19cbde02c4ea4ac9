"""Convolutions and windows of `nn.functional`: conv, conv_transpose, unfold, fold. Import them from
there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.errors import DTypeError, OpError
from ..ir.op import REGISTRY
from ..tracer.library import ArgumentError
from ..tracer.making import apply
from ..tracer.operands import tensor_operand
from ..tracer.tensor import Tensor

T = Any
Ints = tuple[int, ...]


def ints(value: Any, n: int, what: str) -> Ints:
    """`value`, one int for all or one each, as `n` ints."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,) * n
    items: Any = value
    try:
        found = tuple([int(v) for v in items])
    except (TypeError, ValueError):
        raise ArgumentError(f"{what} must be an int or {n} ints, got {value!r}") from None
    if len(found) == 1:
        return found * n
    if len(found) != n:
        raise ArgumentError(f"{what} must be an int or {n} ints, got {value!r}")
    return found


def batched(input: Tensor, n: int, what: str) -> tuple[Tensor, bool]:
    """`input` as [N, C, S...] with n spatial dimensions, and whether the N was there."""
    tensor_operand(input, f"{what}(): input")
    rank = input.dim()
    if rank not in (n + 1, n + 2):
        raise OpError(
            f"{what}(): expected {n + 1}D (unbatched) or {n + 2}D (batched) input, got {input._value().type}"
        )
    return (input, True) if rank == n + 2 else (input.unsqueeze(0), False)


def _operands(what: str, *tensors: T) -> tuple[Tensor, ...]:
    given = tuple(tensor_operand(t, f"{what}(): operand") for t in tensors if t is not None)
    if any(t.dtype is not given[0].dtype for t in given):
        types = ", ".join(str(t._value().type) for t in given)
        raise DTypeError(f"{what}({types}): operands must have one dtype; convert with .to(dtype)")
    return given


def _same_padding(input: Tensor, taps: Ints, stride: Ints, dilation: Ints, what: str) -> tuple[Tensor, Ints]:
    """What makes the result as large as the input. An odd total has its extra element after."""
    if any(s != 1 for s in stride):
        raise ArgumentError(f"{what}(): padding='same' is not supported for strided convolutions")
    total = [d * (k - 1) for k, d in zip(taps, dilation)]
    if any(t % 2 for t in total):
        more = [v for t in reversed(total) for v in (0, t % 2)]
        lead = input.dim() - len(total)
        high = (*(0,) * lead, *reversed(more[1::2]))
        input = apply(REGISTRY["pad"], input, low=(0,) * input.dim(), high=high, value=0)
    return input, tuple(t // 2 for t in total)


def _conv(n: int) -> Callable[..., Tensor]:
    name = f"conv{n}d"

    def fn(
        input: T, weight: T, bias: T = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:  # fmt: skip
        x, had_batch = batched(input, n, name)
        tensor_operand(weight, f"{name}(): weight")
        step, gap = ints(stride, n, f"{name}(): stride"), ints(dilation, n, f"{name}(): dilation")
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ArgumentError(f"{name}(): padding must be ints, 'same' or 'valid', got {padding!r}")
            pad = (0,) * n
            if padding == "same":
                x, pad = _same_padding(x, tuple(weight.shape[2:]), step, gap, name)
        else:
            pad = ints(padding, n, f"{name}(): padding")
        attrs = {"stride": step, "padding": pad, "dilation": gap, "groups": groups}
        out = apply(REGISTRY["convolution"], *_operands(name, x, weight, bias), **attrs)
        return out if had_batch else out.squeeze(0)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""A convolution over {n} dimension{"s" * (n > 1)}.

    Args:
        input: `[N, C, S...]` or `[C, S...]` with {n} spatial sizes S.
        weight: `[O, C / groups, K...]`.
        bias: `[O]` or None.
        padding: zeros on either side, or "same" (the result has the input's size) or "valid" (none).

    Returns:
        `[N, O, P...]`, `P = (S + 2 * padding - dilation * (K - 1) - 1) // stride + 1`.
    """
    return fn


def _conv_transpose(n: int) -> Callable[..., Tensor]:
    name = f"conv_transpose{n}d"

    def fn(
        input: T, weight: T, bias: T = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, dilation: Any = 1,
    ) -> Tensor:  # fmt: skip
        x, had_batch = batched(input, n, name)
        attrs: dict[str, Any] = {
            "stride": ints(stride, n, f"{name}(): stride"),
            "padding": ints(padding, n, f"{name}(): padding"),
            "dilation": ints(dilation, n, f"{name}(): dilation"),
            "transposed": True,
            "output_padding": ints(output_padding, n, f"{name}(): output_padding"),
            "groups": groups,
        }
        out = apply(REGISTRY["convolution"], *_operands(name, x, weight, bias), **attrs)
        return out if had_batch else out.squeeze(0)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"""The transpose of a convolution over {n} dimension{"s" * (n > 1)}, its gradient by the
    input.

    Args:
        input: `[N, C, S...]` or `[C, S...]` with {n} spatial sizes S.
        weight: `[C, O / groups, K...]`.
        bias: `[O]` or None.
        output_padding: elements added at the end of each dimension, fewer than stride or dilation.

    Returns:
        `[N, O, P...]`, `P = (S - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1`.
    """
    return fn


conv1d, conv2d, conv3d = (_conv(n) for n in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_conv_transpose(n) for n in (1, 2, 3))


def conv_tbc(input: T, weight: T, bias: T, pad: int = 0) -> Tensor:
    """A convolution over the first dimension.

    Args:
        input: `[T, N, C]`.
        weight: `[K, C, O]`.
        bias: `[O]`.
        pad: zeros before and after.

    Returns:
        `[T + 2 * pad - K + 1, N, O]`.
    """
    x, w, b = _operands("conv_tbc", input, weight, bias)
    if x.dim() != 3 or w.dim() != 3:
        raise OpError(
            f"conv_tbc(): expected an input [T, N, C] and a weight [K, C, O], got {x._value().type} and "
            f"{w._value().type}"
        )
    out: Any = conv1d(x.permute(1, 2, 0), w.permute(2, 1, 0), b, padding=pad)
    return out.permute(2, 0, 1)


def unfold(input: T, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """The windows of `[N, C, H, W]` (or `[C, H, W]`) as columns `[N, C * taps, places]`."""
    x, had_batch = batched(input, 2, "unfold")
    out = apply(
        REGISTRY["im2col"],
        x,
        size=ints(kernel_size, 2, "unfold(): kernel_size"),
        dilation=ints(dilation, 2, "unfold(): dilation"),
        padding=ints(padding, 2, "unfold(): padding"),
        stride=ints(stride, 2, "unfold(): stride"),
    )
    return out if had_batch else out.squeeze(0)


def fold(
    input: T, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """Columns `[N, C * taps, places]` (or without N) summed up into `[N, C, H, W]`: the transpose of
    `unfold`."""
    tensor_operand(input, "fold(): input")
    if input.dim() not in (2, 3):
        raise OpError(f"fold(): expected a 2D (unbatched) or 3D (batched) input, got {input._value().type}")
    return apply(
        REGISTRY["col2im"],
        input,
        output=ints(output_size, 2, "fold(): output_size"),
        size=ints(kernel_size, 2, "fold(): kernel_size"),
        dilation=ints(dilation, 2, "fold(): dilation"),
        padding=ints(padding, 2, "fold(): padding"),
        stride=ints(stride, 2, "fold(): stride"),
    )
