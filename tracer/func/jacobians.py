"""Whole Jacobians and Hessians: one vjp or jvp, run on a batch of unit vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..creation import arange, zeros
from ..tensor import Tensor
from .batching import vmap
from .transforms import (
    Numbers,
    argument_numbers,
    linearized,
    output_tensors,
    refilled,
    tensors_of,
    vjp,
)


def _unit_vectors(t: Tensor) -> Tensor:
    """[numel, *shape]: all tensors of `t`'s shape with a single 1."""
    n = t.numel()
    index = arange(n)
    return (index[:, None] == index).to(t.dtype).reshape(n, *t.shape)


def _bases(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """For each tensor the unit vectors of it, with zeros for the others."""
    bases = []
    for k, t in enumerate(tensors):
        n = t.numel()
        bases.append(
            [_unit_vectors(u) if j == k else zeros(n, *u.shape, dtype=u.dtype) for j, u in enumerate(tensors)]
        )
    return bases


def _bound(
    func: Callable[..., Any], name: str, argnums: Any, args: Any, kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    """`func` as a function of the chosen arguments, and these."""
    numbers = argument_numbers(name, argnums, len(args))

    def chosen(*primals: Any) -> Any:
        given = list(args)
        for n, p in zip(numbers, primals):
            given[n] = p
        return func(*given, **kwargs)

    return chosen, tuple(args[n] for n in numbers)


def _of_argnums(argnums: Any, per_primal: tuple[Any, ...]) -> Any:
    return per_primal if isinstance(argnums, tuple) else per_primal[0]


def jacrev(
    func: Callable[..., Any],
    argnums: int | Numbers = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """A function that gives the Jacobian of `func` by reverse mode: best where outputs are fewer than inputs.

    Args:
        func: takes and returns tensors, in any containers; with `has_aux` a pair of that and anything.
        argnums: the positional arguments to differentiate with respect to.
        chunk_size: at most so many rows at a time.

    Returns (from the function): for each output tensor, for each argument of a tuple `argnums`, for each
    tensor of it, a tensor of shape `[*output.shape, *input.shape]`.
    """

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        chosen, primals = _bound(func, "jacrev", argnums, args, kwargs)
        got = vjp(chosen, *primals, has_aux=has_aux)
        output, back = got[0], got[1]
        outputs = tensors_of(output)
        leaves = tensors_of(primals)
        blocks = []
        for t, basis in zip(outputs, _bases(outputs)):
            if t.numel() == 0:
                rows = [zeros((*t.shape, *p.shape), dtype=p.dtype) for p in leaves]
            else:
                made = vmap(lambda *c: back(refilled(output, c)), chunk_size=chunk_size)(*basis)
                rows = [r.reshape((*t.shape, *p.shape)) for r, p in zip(tensors_of(made), leaves)]
            blocks.append(_of_argnums(argnums, refilled(primals, rows)))
        result = refilled(output, blocks)
        return (result, got[2]) if has_aux else result

    return wrapper


def jacfwd(
    func: Callable[..., Any],
    argnums: int | Numbers = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
) -> Callable[..., Any]:
    """A function that gives the Jacobian of `func` by forward mode: best where inputs are fewer than outputs.
    Takes and gives what `jacrev` does."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        chosen, primals = _bound(func, "jacfwd", argnums, args, kwargs)
        got = linearized("jacfwd", chosen, primals, has_aux)
        output, forward = got[0], got[1]
        outputs = output_tensors("jacfwd", output)
        leaves = tensors_of(primals)
        columns: list[list[Tensor]] = [[] for _ in outputs]
        for p, basis in zip(leaves, _bases(leaves)):
            if p.numel() == 0:
                for column, t in zip(columns, outputs):
                    column.append(zeros((*t.shape, *p.shape), dtype=t.dtype))
                continue
            push = vmap(lambda *d: forward(*refilled(primals, d)), out_dims=-1, randomness=randomness)
            for column, t, made in zip(columns, outputs, tensors_of(push(*basis))):
                column.append(made.reshape((*t.shape, *p.shape)))
        blocks = [_of_argnums(argnums, refilled(primals, column)) for column in columns]
        result = refilled(output, blocks)
        return (result, got[2]) if has_aux else result

    return wrapper


def hessian(func: Callable[..., Any], argnums: int | Numbers = 0) -> Callable[..., Any]:
    """A function that gives the second derivatives of `func`: forward over reverse mode. For an output of
    shape `o` and arguments of shapes `p` and `q`, blocks `[*o, *p, *q]`."""
    return jacfwd(jacrev(func, argnums), argnums)
