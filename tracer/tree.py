"""Nested containers of tensors: flattening arguments and results of compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tensor import Tensor


def flatten(tree: Any, leaves: list[Tensor]) -> Any:
    """Appends the tensors of `tree` to `leaves`; gives a hashable description of everything else.

    Tuples, lists, dicts and named tuples are descended into; other objects stand for themselves.
    """
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return Tensor
    if isinstance(tree, (tuple, list)):
        return (type(tree), tuple([flatten(x, leaves) for x in tree]))
    if isinstance(tree, dict):
        return (dict, tuple([(k, flatten(v, leaves)) for k, v in tree.items()]))
    try:
        hash(tree)
    except TypeError:
        return (id, id(tree))
    return (type(tree), tree)


def map_tensors(tree: Any, fn: Callable[[Tensor], Any]) -> Any:
    """The same containers with every tensor replaced."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[map_tensors(x, fn) for x in tree])
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_tensors(x, fn) for x in tree])
    if isinstance(tree, dict):
        return {k: map_tensors(v, fn) for k, v in tree.items()}
    return tree
