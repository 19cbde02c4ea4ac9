"""Recurrent networks over sequences: `RNN`, `LSTM`, `GRU`.

A layer is one product for the input of all steps, and a `scan` over steps for the rest, which is traced once:
neither the program nor the time to compile it grows with the sequence.
"""

from __future__ import annotations

from typing import Any

from ..tracer.callers import warn
from ..tracer.control import scan
from ..tracer.creation import empty, zeros
from ..tracer.devices import on_device
from ..tracer.library import ArgumentError, ArgumentTypeError, device_name, recorded_once
from ..tracer.methods import FUNCTIONS
from .functional_norm import linear
from .functional_random import dropout
from .module import Module
from .parameter import Parameter
from .rnn_cells import MODES, draw, where_there
from .utils.rnn import Layout, PackedSequence


class RNNBase(Module):
    """What `RNN`, `LSTM` and `GRU` share.

    Args:
        mode: `"RNN_TANH"`, `"RNN_RELU"`, `"LSTM"` or `"GRU"`.
        input_size: features I of the input.
        hidden_size: features H of the state.
        num_layers: how many layers, each of which reads the one before.
        bias: whether there are biases.
        batch_first: inputs and outputs are `[N, T, ...]` instead of `[T, N, ...]`.
        dropout: share of elements dropped in training between layers.
        bidirectional: each layer runs in both directions, and gives both side by side.
        proj_size: of an LSTM: project h to that many features; 0 for no projection.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}, weight_hr_l{k}: parameters of layer k;
            with `_reverse` appended those of the other direction.
    """

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        who = type(self).__name__
        if mode not in MODES:
            raise ArgumentError(f"{who}: mode must be one of {', '.join(MODES)}, got {mode!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ArgumentError(f"{who}: dropout must be a number in [0, 1], got {dropout!r}")
        for name, flag in (("bias", bias), ("batch_first", batch_first)):
            if not isinstance(flag, bool):
                raise ArgumentTypeError(f"{who}: {name} must be a bool, got {flag!r}")
        for name, n in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(n, int):
                raise ArgumentTypeError(f"{who}: {name} must be an int, got {n!r}")
            if n <= 0:
                raise ArgumentError(f"{who}: {name} must be positive, got {n}")
        if not 0 <= proj_size < hidden_size:
            raise ArgumentError(f"{who}: proj_size must be 0 or less than hidden_size, got {proj_size}")
        if dropout > 0 and num_layers == 1:
            warn(f"{who}: dropout={dropout} is applied between layers, and there is one layer")
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        wide, out = MODES[mode][0] * hidden_size, proj_size or hidden_size
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            for suffix in self._directions:
                size = input_size if layer == 0 else out * len(self._directions)
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (wide, size), "weight_hh": (wide, out)}
                if bias:
                    shapes |= {"bias_ih": (wide,), "bias_hh": (wide,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                names = {f"{name}_l{layer}{suffix}": shape for name, shape in shapes.items()}
                for name, shape in names.items():
                    setattr(self, name, Parameter(empty(shape, device=device, dtype=dtype)))
                self._all_weights.append(list(names))
        self.reset_parameters()

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @property
    def all_weights(self) -> list[list[Any]]:
        """The parameters, a list for each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        draw(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Nothing: there is no layout in memory that is better than another."""

    def extra_repr(self) -> str:
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0,
                    "bidirectional": False}  # fmt: skip
        more = [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join([str(self.input_size), str(self.hidden_size), *more])

    # --- running

    @property
    def _state_sizes(self) -> tuple[int, ...]:
        """Features of the parts of the state."""
        h = self.proj_size or self.hidden_size
        return (h, self.hidden_size) if self.mode == "LSTM" else (h,)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Runs over sequences.

        Args:
            input: `[T, N, I]` (`[N, T, I]` with `batch_first`), `[T, I]`, or a `PackedSequence`.
            hx: the state at the start, `[layers * directions, N, H]` (no N if the input has none), for an
                LSTM a pair `(h, c)`; zeros if None.

        Returns:
            The output of the last layer, like the input but with H features for each direction, and the state
            at the end, like `hx`.
        """
        layout, mask = None, None
        batched = True
        packed: Any = input if isinstance(input, PackedSequence) else None
        if packed is not None:
            layout = Layout(packed.sizes)
            self._check_input(packed.data, (2,))
            x = layout.pad(packed.data)
            mask = None if layout.there.all() else on_device(layout.mask(3), device_name(x))
        else:
            x: Any = input
            self._check_input(x, (2, 3))
            batched = x.dim() == 3
            x = x if batched else x.unsqueeze(1)
            if batched and self.batch_first:
                x = x.transpose(0, 1)
        state = self._start(hx, x, batched)
        if packed is not None and packed.sorted_indices is not None and hx is not None:
            state = tuple([s.index_select(1, packed.sorted_indices) for s in state])
        out, last = self._layers(x, state, mask)
        if packed is not None and layout is not None:
            out = packed._with(layout.pack(out))
            if packed.unsorted_indices is not None:
                last = tuple([s.index_select(1, packed.unsorted_indices) for s in last])
        elif not batched:
            out, last = out.squeeze(1), tuple([s.squeeze(1) for s in last])
        elif self.batch_first:
            out = out.transpose(0, 1)
        return out, (last if self.mode == "LSTM" else last[0])

    def _check_input(self, x: Any, ranks: tuple[int, ...]) -> None:
        who, weight = type(self).__name__, self.weight_ih_l0
        if x.dim() not in ranks or x.shape[-1] != self.input_size:
            ends = f"{self.input_size} features in the last dimension"
            raise ArgumentError(f"{who}: expected {' or '.join(map(str, ranks))} dimensions and {ends}, got "
                                f"{x._value().type}")  # fmt: skip
        if not x.numel() and not x.shape[1 if self.batch_first and x.dim() == 3 else 0]:
            raise ArgumentError(f"{who}: expected a sequence of at least one step, got {x._value().type}")
        if x.dtype is not weight.dtype:
            raise ArgumentTypeError(
                f"{who}: the input is {x._value().type}, the weights are {weight.dtype.name}; convert one of "
                f"them with .to(dtype)"
            )

    def _start(self, hx: Any, x: Any, batched: bool) -> tuple[Any, ...]:
        """The state at the start, `[layers * directions, N, ...]` for each part."""
        n = self.num_layers * len(self._directions)
        shapes = [(n, x.shape[1], size) for size in self._state_sizes]
        if hx is None:
            return tuple([zeros(shape, dtype=x.dtype) for shape in shapes])
        state = tuple(hx) if self.mode == "LSTM" and isinstance(hx, (tuple, list)) else (hx,)
        if not batched:
            shapes = [(n, size) for _, _, size in shapes]
        if [tuple(s.shape) for s in state] != shapes:
            got = ", ".join(str(s._value().type) for s in state)
            expected = ", ".join(str(list(s)) for s in shapes)
            raise ArgumentError(f"{type(self).__name__}: expected a state hx of {expected}, got {got}")
        return state if batched else tuple([s.unsqueeze(1) for s in state])

    def _layers(self, x: Any, state: tuple[Any, ...], mask: Any) -> tuple[Any, tuple[Any, ...]]:
        ends: list[tuple[Any, ...]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = dropout(x, self.dropout, self.training)
            outs = []
            for direction in range(len(self._directions)):
                k = len(ends)
                start, weights = tuple([s[k] for s in state]), self.all_weights[k]
                out, end = self._run(x, start, weights, mask, direction == 1)
                outs.append(out)
                ends.append(end)
            x = outs[0] if len(outs) == 1 else FUNCTIONS["cat"](outs, -1)
        return x, tuple([FUNCTIONS["stack"](list(parts), 0) for parts in zip(*ends)])

    def _run(
        self, x: Any, state: tuple[Any, ...], weights: list[Any], mask: Any, reverse: bool
    ) -> tuple[Any, tuple[Any, ...]]:
        """One layer in one direction: `[T, N, H]` and the state at the end."""
        given = [x, *state, *weights, *(() if mask is None else (mask,))]
        key = ("rnn", self.mode, len(state), len(weights), self.bias, bool(self.proj_size), reverse)
        out, *end = recorded_once(key, given, lambda: self._scanned(x, state, weights, mask, reverse))
        return out, tuple(end)

    def _scanned(
        self, x: Any, state: tuple[Any, ...], weights: list[Any], mask: Any, reverse: bool
    ) -> tuple[Any, ...]:
        w_ih, w_hh, *more = weights
        b_ih, b_hh = more[:2] if self.bias else (None, None)
        project = more[-1] if self.proj_size else None
        formula = MODES[self.mode][1]
        if b_hh is not None and self.mode != "GRU":
            b_ih, b_hh = b_ih + b_hh, None  # both are added to the same sums

        def step(carry: tuple[Any, ...], xs: tuple[Any, ...]) -> Any:
            new = formula(xs[0], carry, lambda h: linear(h, w_hh, b_hh))
            if project is not None:
                new = (linear(new[0], project), *new[1:])
            if mask is not None:
                new = where_there(xs[1], new, carry)
            return new, new[0]

        gates = linear(x, w_ih, b_ih)
        end, out = scan(step, state, (gates,) if mask is None else (gates, mask), reverse=reverse)
        return out, *end


class RNN(RNNBase):
    """Layers of `h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`, or with `relu` (Elman 1990).

    Args:
        input_size, hidden_size, num_layers: see `RNNBase`, as for what follows `nonlinearity`.
        nonlinearity: `"tanh"` or `"relu"`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        if nonlinearity not in ("tanh", "relu"):
            raise ArgumentError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Layers of long short-term memory (Hochreiter and Schmidhuber 1997); with `proj_size` projected ones
    (Sak et al. 2014). Arguments: see `RNNBase`."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype,
        )  # fmt: skip


class GRU(RNNBase):
    """Layers of gated recurrent units (Cho et al. 2014). Arguments: see `RNNBase`."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device,
            dtype,
        )  # fmt: skip
