"""Modules as functions of their parameters: `functional_call` and `stack_module_state`. Modules are in a room
above this one; what is relied on are their tables of parameters, buffers and submodules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..functions.shaping import stack
from ..library import ArgumentError, ArgumentTypeError
from ..recording import STATE
from ..tensor import Tensor

Place = tuple[dict[str, Any], str]


def _places(module: Any) -> dict[str, Place]:
    """Every dotted name of a parameter or buffer, with the table that holds it; shared modules under all
    their names."""
    found: dict[str, Place] = {}
    stack: list[tuple[str, Any]] = [("", module)]
    while stack:
        prefix, m = stack.pop()
        for table in (m._parameters, m._buffers):
            for name, t in table.items():
                if t is not None:
                    found[prefix + name] = (table, name)
        stack.extend((f"{prefix}{name}.", child) for name, child in m._modules.items() if child is not None)
    return found


def _replacements(
    module: Any, given: dict[str, Any], tie_weights: bool, strict: bool
) -> list[tuple[Place, Any]]:
    places = _places(module)
    unknown = [name for name in given if name not in places]
    missing = [name for name in places if name not in given]
    if not strict:  # what the module lacks is not looked at
        given, unknown = {name: t for name, t in given.items() if name in places}, []
    if tie_weights:
        cells: dict[int, list[str]] = {}
        for name, (table, key) in places.items():
            cells.setdefault(id(table[key]), []).append(name)
        for names in cells.values():
            values = {id(given[n]): given[n] for n in names if n in given}
            if len(values) > 1:
                raise ArgumentError(
                    f"functional_call(): {', '.join(names)} are one tensor, and are given {len(values)} "
                    f"different "
                    f"ones; give one of them, or pass tie_weights=False"
                )
            for value in values.values():
                given = {**given, **{n: value for n in names}}
        missing = [name for name in missing if name not in given]
    if strict and (unknown or missing):
        parts = []
        if unknown:
            parts.append(f"{', '.join(unknown)} not in the module")
        if missing:
            parts.append(f"{', '.join(missing)} not given")
        raise ArgumentError(
            f"functional_call(): names that do not fit {type(module).__name__}: {'; '.join(parts)}. It has "
            f"{', '.join(places) or 'no parameters and buffers'}"
        )
    out = []
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"functional_call(): {name} must be a tensor, got {type(value).__name__}: {value!r:.60}"
            )
        out.append((places[name], value))
    return out


@contextmanager
def _replaced(module: Any, replacements: Sequence[tuple[Place, Any]]) -> Iterator[None]:
    trace = STATE.trace
    if trace is not STATE.lazy:
        # A compiled function relies on the modules as they are outside this call.
        todo = [module]
        while todo:
            m = todo.pop()
            trace.guard_module(m, m._trace_state())
            todo.extend(child for child in m._modules.values() if child is not None)
    old = [(table, key, table[key]) for (table, key), _ in replacements]
    try:
        for (table, key), value in replacements:
            table[key] = value
        yield
    finally:
        for table, key, value in old:
            table[key] = value


def functional_call(
    module: Any,
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Calls a module with other tensors in the place of its parameters and buffers.

    Args:
        parameter_and_buffer_dicts: names as in `named_parameters()` and their tensors; a dict, or several.
            What the module writes into a buffer ends up in the given tensor.
        args: positional arguments: a tuple, or the only one.
        kwargs: keyword arguments.
        tie_weights: what is one tensor under several names is replaced under all.
        strict: every parameter and buffer must be given.

    Raises:
        ArgumentError: names the module does not have.
    """
    dicts = parameter_and_buffer_dicts
    if isinstance(dicts, (tuple, list)):
        given: dict[str, Any] = {}
        for d in dicts:
            for name, value in d.items():
                if name in given:
                    raise ArgumentError(f"functional_call(): {name} is in two of the dicts")
                given[name] = value
    elif isinstance(dicts, dict):
        given = dict(dicts)
    else:
        raise ArgumentTypeError(
            f"functional_call(): expected a dict of names and tensors, or a tuple of them, got "
            f"{type(dicts).__name__}"
        )
    positional = () if args is None else args if isinstance(args, tuple) else (args,)
    with _replaced(module, _replacements(module, given, tie_weights, strict)):
        return module(*positional, **(kwargs or {}))


def stack_module_state(models: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and the buffers of several models of one class, each stacked along a new first
    dimension: what `vmap` takes for an ensemble. The stacked parameters are leaves."""
    models = list(models)
    if not models:
        raise ArgumentError("stack_module_state(): expected at least one model")
    if len({m.training for m in models}) > 1:
        raise ArgumentError("stack_module_state(): some models are in training mode and some are not")
    if len({type(m) for m in models}) > 1:
        names = ", ".join(sorted({type(m).__name__ for m in models}))
        raise ArgumentError(f"stack_module_state(): expected models of one class, got {names}")

    def stacked(tables: list[dict[str, Any]]) -> dict[str, Any]:
        out = {}
        for name, first in tables[0].items():
            column = [table[name] for table in tables]
            flags = {t.requires_grad for t in column}
            if len(flags) > 1:
                raise ArgumentError(
                    f"stack_module_state(): {name} requires grad in some of the models and not in others"
                )
            out[name] = stack([t.detach() for t in column]).requires_grad_(first.requires_grad)
        return out

    return (
        stacked([dict(m.named_parameters()) for m in models]),
        stacked([dict(m.named_buffers()) for m in models]),
    )
