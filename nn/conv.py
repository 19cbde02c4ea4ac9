"""Convolution layers: Conv1d to 3d, ConvTranspose1d to 3d; Unfold and Fold."""

from __future__ import annotations

import math
from typing import Any

from ..tracer.creation import empty
from ..tracer.library import ArgumentError
from ..tracer.tensor import Tensor
from . import functional as F
from . import init
from .functional_conv import ints
from .module import Module
from .parameter import Parameter
from .record import REQUIRED, layer

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """What all convolutions share: parameters, checks, `repr`. Subclasses say how many spatial dimensions."""

    _n = 0
    _transposed = False

    def _make(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
        output_padding: Any, groups: int, bias: bool, padding_mode: str, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        name, n = type(self).__name__, self._n
        if groups <= 0:
            raise ArgumentError(f"{name}: groups must be a positive integer, got {groups}")
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ArgumentError(f"{name}: {what} {channels} must be divisible by groups {groups}")
        if padding_mode not in _PADDING_MODES:
            raise ArgumentError(f"{name}: padding_mode must be one of {_PADDING_MODES}, got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = ints(kernel_size, n, f"{name}: kernel_size")
        self.stride = ints(stride, n, f"{name}: stride")
        self.padding = padding if isinstance(padding, str) else ints(padding, n, f"{name}: padding")
        self.dilation = ints(dilation, n, f"{name}: dilation")
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ArgumentError(f"{name}: padding must be ints, 'same' or 'valid', got {padding!r}")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ArgumentError(f"{name}: padding='same' is not supported for strided convolutions")
        self.transposed = self._transposed
        self.output_padding = ints(output_padding, n, f"{name}: output_padding")
        self.groups = groups
        self.padding_mode = padding_mode
        self._around = self._amounts()
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        self.weight = Parameter(empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _amounts(self) -> tuple[int, ...]:
        """The padding as `functional.pad` takes it, for the modes that are not zeros."""
        if isinstance(self.padding, tuple):
            sides = [(p, p) for p in self.padding]
        elif self.padding == "same":
            total = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation)]
            sides = [(t // 2, t - t // 2) for t in total]
        else:
            sides = [(0, 0)] * self._n
        return tuple(v for side in reversed(sides) for v in side)

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init._calculate_fan_in_and_fan_out(self.weight)
            if fan_in:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        n = self._n
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        for name, usual in (
            ("padding", (0,) * n), ("dilation", (1,) * n), ("output_padding", (0,) * n), ("groups", 1),
        ):  # fmt: skip
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        text += ", bias=False" if self.bias is None else ""
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"


class _Conv(_ConvNd):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros",
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 0, groups, bias, padding_mode,
            device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Any, bias: Any) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._around, mode=self.padding_mode)
            padding = 0
        conv = getattr(F, f"conv{self._n}d")
        return conv(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _ConvTranspose(_ConvNd):
    _transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, bias: bool = True, dilation: Any = 1,
        padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if padding_mode != "zeros":
            raise ArgumentError(f"{type(self).__name__}: only padding_mode='zeros', got {padding_mode!r}")
        self._make(
            in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        more = self.output_padding if output_size is None else self._padding_for(input, output_size)
        conv = getattr(F, f"conv_transpose{self._n}d")
        return conv(
            input, self.weight, self.bias, self.stride, self.padding, more, self.groups, self.dilation
        )

    def _padding_for(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        """The output_padding that makes the result's spatial size `output_size`."""
        n, name = self._n, type(self).__name__
        wanted = tuple(int(v) for v in output_size)
        other = input.dim() - n
        if len(wanted) == other + n:
            wanted = wanted[other:]
        if len(wanted) != n:
            raise ArgumentError(
                f"{name}: for {input.dim()}D input, output_size must have {n} or {other + n} "
                f"elements, got {wanted}"
            )
        least = tuple(
            (m - 1) * s - 2 * p + d * (k - 1) + 1
            for m, s, p, d, k in zip(
                input.shape[other:], self.stride, self.padding, self.dilation, self.kernel_size
            )
        )
        most = tuple(m + s - 1 for m, s in zip(least, self.stride))
        if any(not lo <= w <= hi for lo, w, hi in zip(least, wanted, most)):
            raise ArgumentError(
                f"{name}: requested an output size of {wanted}, but valid sizes range from {least} to {most} "
                f"(for an input of {tuple(input.shape[other:])})"
            )
        return tuple(w - lo for w, lo in zip(wanted, least))


_CONV_DOC = """A convolution over {n} spatial dimension{s} of `[N, C, S...]` or `[C, S...]`, plus a bias.

    Args:
        stride, padding, dilation: one int for all dimensions, or one each; padding also "same" or "valid".
        groups: channels in this many groups, each on its own.
        padding_mode: zeros, reflect, replicate or circular.

    Attributes:
        weight: `[out_channels, in_channels / groups, K...]`, drawn from U(-b, b), b = 1 / sqrt(fan_in).
        bias: `[out_channels]` from the same distribution, or None.
    """
_TRANSPOSE_DOC = """The transpose of a convolution over {n} spatial dimension{s}, of `[N, C, S...]` or
    `[C, S...]`, plus a bias.

    Args:
        stride, padding, dilation: of the convolution that this is the transpose of.
        output_padding: elements added at the end of each dimension; `forward(input, output_size)` works it
            out.
        groups: channels in this many groups, each on its own.

    Attributes:
        weight: `[in_channels, out_channels / groups, K...]`, drawn from U(-b, b), b = 1 / sqrt(fan_in).
        bias: `[out_channels]` from the same distribution, or None.
    """


def _class(base: type[Any], name: str, n: int, doc: str) -> Any:
    text = doc.format(n=n, s="s" * (n > 1))
    return type(f"{name}{n}d", (base,), {"_n": n, "__doc__": text, "__module__": __name__})


Conv1d, Conv2d, Conv3d = (_class(_Conv, "Conv", n, _CONV_DOC) for n in (1, 2, 3))
ConvTranspose1d, ConvTranspose2d, ConvTranspose3d = (
    _class(_ConvTranspose, "ConvTranspose", n, _TRANSPOSE_DOC) for n in (1, 2, 3)
)

_WINDOW: dict[str, Any] = {"kernel_size": REQUIRED, "dilation": 1, "padding": 0, "stride": 1}
_SHOWN = "kernel_size dilation padding stride"
Unfold: Any = layer("Unfold", F.unfold, _WINDOW, shows=_SHOWN, module=__name__)
Fold: Any = layer(
    "Fold", F.fold, {"output_size": REQUIRED, **_WINDOW}, shows=f"output_size {_SHOWN}", module=__name__
)
