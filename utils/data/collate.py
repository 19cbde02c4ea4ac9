"""How samples become a batch: `default_collate` stacks, `default_convert` only makes tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from ...ir.dtypes import float64
from ...ir.types import Type
from ...runtime.buffers import empty
from ...tracer.creation import as_tensor, tensor
from ...tracer.library import ArgumentError, ArgumentTypeError
from ...tracer.methods import FUNCTIONS
from ...tracer.recording import STATE
from ...tracer.tensor import Tensor, concrete


def _rebuilt(like: Any, entries: Any) -> Any:
    """A mapping or sequence of `like`'s type with new entries; a plain dict or list where it can't be made.
    """
    mapping = isinstance(like, Mapping)
    try:
        if isinstance(like, (MutableMapping, MutableSequence)):
            # A copy keeps what else the object holds (a default factory, attributes).
            made: Any = copy.copy(like)
            for key, value in entries.items() if mapping else enumerate(entries):
                made[key] = value
            return made
        kind: Any = type(like)
        return kind(entries)
    except TypeError:
        return entries


def default_convert(data: Any) -> Any:
    """NumPy arrays and scalars in nested mappings and sequences as tensors; everything else as it is."""
    if isinstance(data, Tensor):
        return data
    if isinstance(data, (np.ndarray, np.generic)):
        return data if data.dtype.kind in "SUO" else as_tensor(data)
    if isinstance(data, Mapping):
        return _rebuilt(data, {k: default_convert(data[k]) for k in data})
    if isinstance(data, tuple):
        entries = [default_convert(d) for d in data]
        return type(data)(*entries) if hasattr(data, "_fields") else entries
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _rebuilt(data, [default_convert(d) for d in data])
    return data


def pinned_batch(data: Any) -> Any:
    """Tensors in nested mappings and sequences in pinned memory, and what has a `pin_memory()` of its own;
    everything else as it is."""
    if isinstance(data, Tensor):
        return data if data.is_cuda else data.pin_memory()
    if isinstance(data, (str, bytes)):
        return data
    if isinstance(data, Mapping):
        return _rebuilt(data, {k: pinned_batch(data[k]) for k in data})
    if isinstance(data, tuple):
        entries = [pinned_batch(d) for d in data]
        return type(data)(*entries) if hasattr(data, "_fields") else type(data)(entries)
    if isinstance(data, Sequence):
        return _rebuilt(data, [pinned_batch(d) for d in data])
    return data.pin_memory() if hasattr(data, "pin_memory") else data


def default_collate(batch: Any) -> Any:
    """Samples of one structure as one structure of batches.

    Args:
        batch: samples: tensors and arrays of one shape (stacked), numbers (tensors of i64, f64, bool or their
            NumPy dtype), strings (a list), or mappings, named tuples and sequences of these.

    Raises:
        TracegradError: samples of another type, or that don't fit each other.
    """
    return collate(batch, collate_fn_map=default_collate_fn_map)


def collate(batch: Any, *, collate_fn_map: Mapping[Any, Callable[..., Any]] | None = None) -> Any:
    """`default_collate` with functions of one's own for some types: `{type: f(batch, collate_fn_map=...)}`.
    """
    first = batch[0]
    for kind, function in (collate_fn_map or {}).items():
        if type(first) is kind:
            return function(batch, collate_fn_map=collate_fn_map)
    for kind, function in (collate_fn_map or {}).items():
        if isinstance(first, kind):
            return function(batch, collate_fn_map=collate_fn_map)
    if isinstance(first, Mapping):
        for sample in batch:
            missing = [k for k in first if k not in sample]
            if missing:
                raise ArgumentError(f"default_collate(): a sample of the batch has no entry {missing[0]!r}")
        entries = {k: collate([s[k] for s in batch], collate_fn_map=collate_fn_map) for k in first}
        return _rebuilt(first, entries)
    if isinstance(first, Sequence):
        sizes = {len(s) for s in batch}
        if len(sizes) > 1:
            raise ArgumentError(
                f"default_collate(): samples of one batch must have one length, got {sorted(sizes)}; pad "
                f"them or pass a collate_fn"
            )
        columns = [collate(column, collate_fn_map=collate_fn_map) for column in zip(*batch)]
        if isinstance(first, tuple):
            return type(first)(*columns) if hasattr(first, "_fields") else columns
        return _rebuilt(first, columns)
    raise ArgumentTypeError(
        f"default_collate(): a sample holds {type(first).__name__}, of which no batch can be made (tensors, "
        f"arrays, numbers, strings, mappings and sequences can); pass a collate_fn"
    )


def _stack(batch: Any, *, collate_fn_map: Any = None) -> Tensor:
    shapes = {tuple(t.shape) for t in batch}
    if len(shapes) > 1:
        shown = ", ".join(str(list(s)) for s in sorted(shapes))
        raise ArgumentError(
            f"default_collate(): tensors of one batch must have one shape, got {shown}; pad them, or pass a "
            f"collate_fn"
        )
    values = [t._value() for t in batch]
    dtype = values[0].type.dtype
    if STATE.trace is not STATE.lazy or any(
        v.known is None or v.requires_grad or v.type.dtype is not dtype for v in values
    ):
        return FUNCTIONS["stack"](list(batch), 0)
    arrays = [v.buffer.array for v in values if v.buffer is not None]
    out = empty(Type(dtype, (len(arrays), *arrays[0].shape)))
    np.stack(arrays, out=out.array)
    return concrete(out)


def _stack_arrays(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if batch[0].dtype.kind in "SUO":
        raise ArgumentTypeError(
            f"default_collate(): no tensor can be made of an array of {batch[0].dtype}; pass a collate_fn"
        )
    return collate([as_tensor(a) for a in batch], collate_fn_map=collate_fn_map)


#: How `default_collate` treats samples that are no mappings and no sequences; may be extended.
default_collate_fn_map: dict[Any, Callable[..., Any]] = {
    Tensor: _stack,
    np.ndarray: _stack_arrays,
    (np.bool_, np.number, np.object_): lambda batch, collate_fn_map=None: as_tensor(np.array(batch)),
    float: lambda batch, collate_fn_map=None: tensor(list(batch), dtype=float64),
    int: lambda batch, collate_fn_map=None: tensor(list(batch)),
    str: lambda batch, collate_fn_map=None: batch,
    bytes: lambda batch, collate_fn_map=None: batch,
}
