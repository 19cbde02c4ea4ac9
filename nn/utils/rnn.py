"""`tracegrad.nn.utils.rnn`: sequences of different lengths, padded or packed.

A packed batch holds for each time step the elements of the sequences that are that long, longest first, one
step after another. Lengths are Python's: they decide shapes, so inside compiled functions they must not be
results of traced operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...ir.dtypes import int64
from ...tracer.arguments import check_names
from ...tracer.creation import arange, tensor, zeros
from ...tracer.devices import on_device
from ...tracer.library import ArgumentError, ArgumentTypeError, device_name
from ...tracer.methods import FUNCTIONS
from ...tracer.recording import outside_traces
from ...tracer.tensor import Tensor
from ...tracer.tree import PartlyTraced


class _Fields(NamedTuple):
    data: Any
    batch_sizes: Any
    sorted_indices: Any
    unsorted_indices: Any


class PackedSequence(_Fields, PartlyTraced):
    """A packed batch of sequences. Made by `pack_padded_sequence` and `pack_sequence`.

    Attributes:
        data: `[total length, ...]`, step after step.
        batch_sizes: i64 `[T]`: how many sequences each step has.
        sorted_indices: the batch's order by length, or None if it came in that order.
        unsorted_indices: the order that undoes it.
    """

    _sizes: list[int] | None

    def __new__(
        cls, data: Any, batch_sizes: Any = None, sorted_indices: Any = None, unsorted_indices: Any = None
    ) -> PackedSequence:
        if batch_sizes is None:
            if not isinstance(data, (list, tuple)) or len(data) != 2:
                raise ArgumentTypeError("PackedSequence takes data and batch_sizes; see pack_sequence()")
            data, batch_sizes = data
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        made = super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)
        made._sizes = None
        return made

    @property
    def sizes(self) -> list[int]:
        """`batch_sizes` as Python numbers."""
        if self._sizes is None:
            self._sizes = [int(n) for n in self.batch_sizes.tolist()]
        return self._sizes

    def _with(self, data: Any) -> PackedSequence:
        """Other data in the same order."""
        made = type(self)(data, self.batch_sizes, self.sorted_indices, self.unsorted_indices)
        made._sizes = self._sizes
        return made

    def fixed_part(self) -> tuple[int, ...]:
        """What compiled functions are specialised for: `batch_sizes` decide shapes."""
        return tuple(self.sizes)

    def traced_part(self) -> tuple[Any, ...]:
        """What compiled functions take as arguments."""
        return (self.data, self.sorted_indices, self.unsorted_indices)

    def with_traced(self, part: tuple[Any, ...]) -> PackedSequence:
        """The same batch sizes with other tensors."""
        made = type(self)(part[0], self.batch_sizes, part[1], part[2])
        made._sizes = self.sizes
        return made

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The same with `data` in another dtype, or on another device."""
        data = self.data.to(*args, **kwargs)
        return self if data is self.data else self._with(data)

    def cpu(self) -> PackedSequence:
        """The same with `data` on the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> PackedSequence:
        """The same with `data` on a GPU. Raises DTypeError where there is none."""
        return self.to("cuda" if device is None else device)

    def pin_memory(self) -> PackedSequence:
        """The same with `data` in pinned memory."""
        data = self.data.pin_memory()
        return self if data is self.data else self._with(data)

    def is_pinned(self) -> bool:
        """Whether `data` is in pinned memory."""
        return self.data.is_pinned()

    @property
    def is_cuda(self) -> bool:
        return self.data.is_cuda


def _converter(name: str) -> Any:
    def method(self: PackedSequence) -> PackedSequence:
        return self._with(getattr(self.data, name)())

    method.__name__ = name
    method.__doc__ = f"The same with `data.{name}()`."
    return method


for _name in ("double", "float", "half", "long", "int", "short", "char", "byte"):
    setattr(PackedSequence, _name, _converter(_name))


def invert_permutation(permutation: Any) -> Any:
    """The indices that undo a permutation; None for None."""
    if permutation is None:
        return None
    n = permutation.shape[0]
    return FUNCTIONS["scatter"](zeros(n, dtype=permutation.dtype), 0, permutation, arange(n))


def _lengths_of(lengths: Any, who: str) -> np.ndarray:
    if isinstance(lengths, Tensor):
        lengths = lengths.tolist()
    found = np.asarray(lengths)
    if found.ndim != 1 or found.dtype.kind not in "iuf" or not found.size:
        raise ArgumentError(f"{who}: lengths must be numbers, one per sequence, got {lengths!r:.60}")
    return found.astype(np.int64)


class Layout:
    """Where the elements of a packed batch are in the padded one, `[T, B, ...]`.

    Args:
        sizes: how many sequences each step has.
        total: T, at least as long as the longest sequence.
    """

    def __init__(self, sizes: Sequence[int], total: int | None = None) -> None:
        self.T = len(sizes) if total is None else total
        self.B = sizes[0] if len(sizes) else 0
        counts = np.zeros(self.T, np.int64)
        counts[: len(sizes)] = sizes
        self.there = np.arange(self.B) < counts[:, None]

    @property
    def lengths(self) -> np.ndarray:
        """How long each sequence is."""
        return self.there.sum(0)

    def mask(self, rank: int) -> Any:
        """bool `[T, B, 1, ...]` of a rank: whether there is an element."""
        return tensor(self.there.reshape(self.T, self.B, *(1,) * (rank - 2)))

    def pack(self, padded: Any) -> Any:
        """`[T, B, ...]` packed."""
        flat = padded.reshape(self.T * self.B, *padded.shape[2:])
        return flat.index_select(0, tensor(np.flatnonzero(self.there)))

    def pad(self, data: Any, value: Any = None) -> Any:
        """Packed data as `[T, B, ...]`; with a `value` where there is no element, else with anything."""
        rank = np.cumsum(self.there.reshape(-1)) - 1
        where = np.where(self.there.reshape(-1), rank, 0)
        out = data.index_select(0, tensor(where)).reshape(self.T, self.B, *data.shape[1:])
        if value is None:
            return out
        return out.masked_fill(on_device(self.mask(out.dim()), device_name(out)).logical_not(), value)


def pack_padded_sequence(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Packs a padded batch.

    Args:
        input: `[T, B, ...]`, or `[B, T, ...]` with `batch_first`.
        lengths: of the sequences, from 1 to T.
        batch_first: see `input`.
        enforce_sorted: the sequences come longest first; else they are sorted here.

    Raises:
        TracegradError: lengths that don't fit the input, or are not sorted though they should be.
    """
    who = "pack_padded_sequence()"
    sizes = _lengths_of(lengths, who)
    if batch_first:
        input = input.transpose(0, 1)
    if input.dim() < 2 or len(sizes) != input.shape[1]:
        raise ArgumentError(f"{who}: {len(sizes)} lengths for an input of shape {list(input.shape)}")
    if sizes.min() < 1 or sizes.max() > input.shape[0]:
        raise ArgumentError(f"{who}: lengths must be from 1 to {input.shape[0]}, got {sizes.tolist()}")
    order = None
    if not enforce_sorted:
        index = np.argsort(-sizes, kind="stable")
        sizes = sizes[index]
        order = tensor(index)
        input = input.index_select(1, order)
    elif (np.diff(sizes) > 0).any():
        raise ArgumentError(
            f"{who}: sequences must come longest first, got lengths {sizes.tolist()}; sort them, or pass "
            f"enforce_sorted=False"
        )
    counts = [int((sizes > t).sum()) for t in range(int(sizes[0]))]
    layout = Layout(counts)
    undo = None if order is None else tensor(np.argsort(index))
    with outside_traces():  # batch sizes decide shapes: numbers, also in compiled functions
        batch_sizes = tensor(counts, dtype=int64)
    made = PackedSequence(layout.pack(input[: layout.T]), batch_sizes, order, undo)
    made._sizes = counts
    return made


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """The padded batch `[T, B, ...]` (or `[B, T, ...]`) of a packed one, and the lengths, i64 `[B]`.

    Args:
        padding_value: what is put where there is no element.
        total_length: T; the longest sequence's length if None.
    """
    sizes = sequence.sizes
    if total_length is not None and total_length < len(sizes):
        raise ArgumentError(
            f"pad_packed_sequence(): total_length must be at least the longest sequence's {len(sizes)}, got "
            f"{total_length}"
        )
    layout = Layout(sizes, total_length)
    out, lengths = layout.pad(sequence.data, padding_value), tensor(layout.lengths)
    undo = sequence.unsorted_indices
    if undo is not None:
        out, lengths = out.index_select(1, undo), lengths.index_select(0, undo)
    return (out.transpose(0, 1) if batch_first else out), lengths


def pad_sequence(
    sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Any:
    """Sequences `[length, ...]` as `[T, B, ...]` (or `[B, T, ...]`), T the longest one's length.

    Args:
        padding_value: what is put where there is no element.
        padding_side: `"right"` or `"left"`.
    """
    if not isinstance(sequences, Iterable):
        raise ArgumentTypeError(f"pad_sequence() takes tensors, got {type(sequences).__name__}")
    found: list[Any] = list(sequences)
    if not found or any(not isinstance(s, Tensor) or not s.dim() for s in found):
        raise ArgumentTypeError("pad_sequence() takes tensors, at least one, each with a dimension to pad")
    if padding_side not in ("left", "right"):
        raise ArgumentError(f"pad_sequence(): padding_side must be 'left' or 'right', got {padding_side!r}")
    rest = tuple(found[0].shape[1:])
    for s in found:
        if tuple(s.shape[1:]) != rest:
            raise ArgumentError(
                f"pad_sequence(): sequences must differ in the first dimension only, got shapes "
                f"{list(found[0].shape)} and {list(s.shape)}"
            )
    T = max(s.shape[0] for s in found)
    out = []
    for s in found:
        n = T - s.shape[0]
        if n:
            more = s.new_full((n, *rest), padding_value)
            s = FUNCTIONS["cat"]([more, s] if padding_side == "left" else [s, more])
        out.append(s)
    return FUNCTIONS["stack"](out, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Any, lengths: Any, batch_first: bool = False) -> list[Any]:
    """The sequences of a padded batch, each without its padding."""
    rows = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    found = _lengths_of(lengths, "unpad_sequence()").tolist()
    return [row[:n] for row, n in zip(rows.unbind(0), found)]


def pack_sequence(sequences: Any, enforce_sorted: bool = True) -> PackedSequence:
    """Packs sequences `[length, ...]`, which come longest first unless `enforce_sorted` is False."""
    found = list(sequences)
    lengths = [s.shape[0] for s in found]
    return pack_padded_sequence(pad_sequence(found), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Any]:
    """The sequences of a packed batch."""
    rows, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(rows, lengths, batch_first=True)


__all__ = [
    "PackedSequence", "invert_permutation", "pack_padded_sequence", "pack_sequence", "pad_packed_sequence",
    "pad_sequence", "unpack_sequence", "unpad_sequence",
]  # fmt: skip

check_names(globals(), __all__)
