"""Nested containers of tensors: flattening arguments and results of compiled functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.errors import TraceError
from ..runtime.buffers import copy_of
from .tensor import Number, Tensor
from .values import TracedValue


class PartlyTraced:
    """A kind of tuple of which Python must know a part (`PackedSequence`)."""

    __slots__ = ()

    def fixed_part(self) -> Any:
        """What compiled functions are specialised for; hashable."""
        raise NotImplementedError

    def traced_part(self) -> tuple[Any, ...]:
        """What compiled functions take as arguments."""
        raise NotImplementedError

    def with_traced(self, part: tuple[Any, ...]) -> Any:
        """The same with another traced part."""
        raise NotImplementedError


def flatten(tree: Any, leaves: list[Tensor]) -> Any:
    """Appends the tensors of `tree` to `leaves`; gives a hashable description of everything else.

    Tuples, lists, dicts, named tuples and dataclasses are descended into; other objects stand for themselves.
    """
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return Number if tree.__class__ is Number else Tensor
    if isinstance(tree, (tuple, list)):
        if isinstance(tree, PartlyTraced):
            return (type(tree), tree.fixed_part(), flatten(tree.traced_part(), leaves))
        return (type(tree), tuple([flatten(x, leaves) for x in tree]))
    if isinstance(tree, dict):
        return (type(tree), tuple([(k, flatten(v, leaves)) for k, v in tree.items()]))
    if isinstance(tree, float):  # 0.0 and -0.0 are equal, and NaN is not itself
        return (type(tree), tree.hex())
    if is_record(tree):
        count = len(leaves)
        try:
            return (type(tree), tuple([(k, flatten(v, leaves)) for k, v in _fields(tree).items()]))
        except TraceError:
            del leaves[count:]
            return Same(tree)
    try:
        hash(tree)
    except TypeError:
        if isinstance(tree, (np.ndarray, set, bytearray)):
            raise TraceError(
                f"an argument of type {type(tree).__name__} would be baked into the compiled function, "
                f"and later changes of it go unseen; pass a tensor (tracegrad.as_tensor(x)), a tuple or "
                f"a frozenset"
            ) from None
        return Same(tree)
    return (type(tree), tree)


class Same:
    """An object without a hash as a key: equal to itself alone, and kept alive so that its id stays its
    own.
    """

    __slots__ = ("object",)

    def __init__(self, object: Any) -> None:
        self.object = object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.object is self.object

    def __hash__(self) -> int:
        return id(self.object)


def numbers_as_tensors(tree: Any, found: list[Tensor]) -> Any:
    """The same containers with Python floats as `Number`s, which are appended to `found`."""
    if tree.__class__ is float:
        buffer = copy_of(np.asarray(tree), dtypes.float64)
        found.append(Number(TracedValue(buffer.type, None, 0, None, buffer)))
        return found[-1]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return tree
    if isinstance(tree, (tuple, list)):
        return type(tree)([numbers_as_tensors(x, found) for x in tree])
    if isinstance(tree, dict):
        return {k: numbers_as_tensors(v, found) for k, v in tree.items()}
    return tree


def is_record(tree: Any) -> bool:
    """Whether it is an instance of a dataclass."""
    return hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type)


def map_tensors(tree: Any, fn: Callable[[Tensor], Any], leaf: type = Tensor) -> Any:
    """The same containers with every tensor (or other leaf) replaced."""
    if isinstance(tree, leaf):
        return fn(tree)
    if isinstance(tree, PartlyTraced):
        return tree.with_traced(map_tensors(tree.traced_part(), fn, leaf))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[map_tensors(x, fn, leaf) for x in tree])
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_tensors(x, fn, leaf) for x in tree])
    if tree.__class__ is dict:
        return {k: map_tensors(v, fn, leaf) for k, v in tree.items()}
    if isinstance(tree, dict):
        out = copy.copy(tree)
        out.update((k, map_tensors(v, fn, leaf)) for k, v in tree.items())
        return out
    if is_record(tree):
        new = {k: map_tensors(v, fn, leaf) for k, v in _fields(tree).items()}
        if all(v is getattr(tree, k) for k, v in new.items()):
            return tree
        out = copy.copy(tree)
        for k, v in new.items():
            object.__setattr__(out, k, v)  # it may be frozen
        return out
    return tree


def _fields(tree: Any) -> dict[str, Any]:
    return {k: getattr(tree, k) for k in tree.__dataclass_fields__ if hasattr(tree, k)}
