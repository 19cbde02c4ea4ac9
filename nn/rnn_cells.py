"""One step of recurrent networks: the formulas, and `RNNCell`, `LSTMCell`, `GRUCell`. Whole sequences are in
rnn.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..tracer.creation import empty, zeros
from ..tracer.library import ArgumentError
from ..tracer.methods import FUNCTIONS
from ..tracer.tensor import Tensor
from . import init
from .functional_activation import relu, sigmoid, tanh
from .functional_norm import linear
from .module import Module
from .parameter import Parameter

Step = Callable[[Any, tuple[Any, ...], Callable[[Any], Any]], tuple[Any, ...]]

# Each takes the gates that the input gives, the state, and a function from h to the gates that it gives; and
# gives the new state, of which h is the first part.


def rnn_step(activation: Callable[[Any], Any]) -> Step:
    """`h' = activation(x + h)` (Elman 1990)."""
    return lambda x, state, recurrent: (activation(x + recurrent(state[0])),)


def lstm_step(x: Any, state: tuple[Any, ...], recurrent: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Gates i, f, g, o (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""
    h, c = state
    i, f, g, o = (x + recurrent(h)).chunk(4, -1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru_step(x: Any, state: tuple[Any, ...], recurrent: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Gates r, z, n (Cho et al. 2014), the reset gate after the product as in cuDNN."""
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = recurrent(h).chunk(3, -1)
    n = tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return (n + sigmoid(x_z + h_z) * (h - n),)


#: For each mode: how many gates, and the step.
MODES: dict[str, tuple[int, Step]] = {
    "RNN_TANH": (1, rnn_step(tanh)),
    "RNN_RELU": (1, rnn_step(relu)),
    "LSTM": (4, lstm_step),
    "GRU": (3, gru_step),
}


def draw(module: Any, hidden_size: int) -> None:
    """All parameters from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))."""
    bound = 1 / math.sqrt(hidden_size) if hidden_size > 0 else 0
    for p in module.parameters():
        init.uniform_(p, -bound, bound)


class RNNCellBase(Module):
    """What the cells share.

    Attributes:
        weight_ih: `[G H, I]`, for G gates, H hidden and I input features.
        weight_hh: `[G H, H]`.
        bias_ih, bias_hh: `[G H]` or None.
    """

    _mode: str

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        wide = num_chunks * hidden_size
        for name, shape in (("weight_ih", (wide, input_size)), ("weight_hh", (wide, hidden_size))):
            self.register_parameter(name, Parameter(empty(shape, device=device, dtype=dtype)))
        for name in ("bias_ih", "bias_hh"):
            made = Parameter(empty(wide, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        draw(self, self.hidden_size)

    def extra_repr(self) -> str:
        more = [] if self.bias is True else [f"bias={self.bias}"]
        nonlinearity = getattr(self, "nonlinearity", "tanh")
        more += [] if nonlinearity == "tanh" else [f"nonlinearity={nonlinearity}"]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *more])

    def _step(self, input: Any, state: Any, parts: int) -> tuple[Any, ...]:
        who = type(self).__name__
        rank = input.dim()
        if rank not in (1, 2) or input.shape[-1] != self.input_size:
            raise ArgumentError(
                f"{who}: expected an input [N, {self.input_size}] or [{self.input_size}], got "
                f"{input._value().type}"
            )
        shape = (*input.shape[:-1], self.hidden_size)
        if state is None:
            state = tuple([zeros(shape, dtype=input.dtype)] * parts)
        if len(state) != parts or any(tuple(s.shape) != shape for s in state):
            got = ", ".join(str(s._value().type) for s in state)
            raise ArgumentError(f"{who}: expected a state of {parts} x {list(shape)}, got {got}")
        if rank == 1:
            input, state = input.unsqueeze(0), tuple([s.unsqueeze(0) for s in state])
        x = linear(input, self.weight_ih, self.bias_ih)
        out = MODES[self._mode][1](x, state, lambda h: linear(h, self.weight_hh, self.bias_hh))
        return tuple([s.squeeze(0) for s in out]) if rank == 1 else out


class RNNCell(RNNCellBase):
    """`h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`, or with `relu`.

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        bias: whether there are biases.
        nonlinearity: `"tanh"` or `"relu"`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Input `[N, I]` and state `[N, H]` (or without N; zeros if None) give the new state."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise ArgumentError(f"RNNCell: nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")
        self.__dict__["_mode"] = f"RNN_{self.nonlinearity.upper()}"
        return self._step(input, None if hx is None else (hx,), 1)[0]


class LSTMCell(RNNCellBase):
    """One step of an LSTM (Hochreiter and Schmidhuber 1997).

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        bias: whether there are biases.
    """

    _mode = "LSTM"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Input `[N, I]` and state `(h, c)` of `[N, H]` (or without N; zeros if None) give the new `(h, c)`.
        """
        h, c = self._step(input, hx, 2)
        return h, c


class GRUCell(RNNCellBase):
    """One step of a gated recurrent unit (Cho et al. 2014).

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        bias: whether there are biases.
    """

    _mode = "GRU"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Input `[N, I]` and state `[N, H]` (or without N; zeros if None) give the new state."""
        return self._step(input, None if hx is None else (hx,), 1)[0]


def where_there(mask: Any, new: tuple[Any, ...], old: tuple[Any, ...]) -> tuple[Any, ...]:
    """The new state of sequences that have this step, the old one of those that ended."""
    return tuple([FUNCTIONS["where"](mask, a, b) for a, b in zip(new, old)])
