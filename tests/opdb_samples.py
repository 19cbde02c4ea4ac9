"""PyTorch's operator database seen from here: which operators are in scope, and a sample's arguments as ours.
Used by opdb.py, which compares."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import tracegrad
from torch.testing._internal.common_methods_invocations import op_db

#: Names of the public API (torch.*, torch.nn.functional.*) that the database has under other names, or as
#: methods only.
METHODS_IN_SCOPE = {"bfloat16", "bool", "double", "float", "half", "int", "long", "short", "unfold"}

#: What a user may hit that we do not do, with the reason. A sample that needs it counts as passed over, and
#: an operator all of whose samples do counts as failing.
SKIPPED_KWARGS = {"generator"}


def full_name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def in_scope(names: set[str]) -> list[Any]:
    """The operators whose name or an alias is one of `names` (`cat`, `nn.functional.pad`)."""
    out = []
    for op in op_db:
        spelled = {op.name, *(a.name for a in op.aliases)}
        if not {torch.float32, torch.int64, torch.bool} & op.supported_dtypes("cpu"):
            continue  # complex numbers alone
        if spelled & names or {f"nn.functional.{s}" for s in spelled} & names:
            out.append(op)
    return out


class Untranslatable(Exception):
    """A sample that uses what is out of scope (complex numbers, generators)."""


def ours(x: Any, dtype_only: bool = False) -> Any:
    """A PyTorch value as ours: tensors by their contents, dtypes and formats by name, containers inside
    out."""
    if isinstance(x, torch.Tensor):
        if x.is_complex() or x.layout is not torch.strided or x.is_quantized:
            raise Untranslatable(f"a tensor of {x.dtype}, {x.layout}")
        if x.dtype is torch.bfloat16:
            made = tracegrad.tensor(x.detach().float().numpy()).to(tracegrad.bfloat16)
        else:
            made = tracegrad.tensor(x.detach().numpy().copy())
        return made.requires_grad_() if x.requires_grad else made
    if isinstance(x, torch.dtype):
        name = str(x).removeprefix("torch.")
        if not hasattr(tracegrad, name):
            raise Untranslatable(str(x))
        return getattr(tracegrad, name)
    if isinstance(x, (torch.memory_format, torch.layout)):
        return getattr(tracegrad, str(x).removeprefix("torch."))
    if isinstance(x, torch.device):
        return tracegrad.device(str(x))
    if isinstance(x, torch.Generator):
        raise Untranslatable("a generator")
    if isinstance(x, torch.Size):
        return tracegrad.Size(x)
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return type(x)(ours(v) for v in x)
    if isinstance(x, dict):
        return {k: ours(v) for k, v in x.items()}
    if isinstance(x, slice):
        return slice(ours(x.start), ours(x.stop), ours(x.step))
    if isinstance(x, complex):
        raise Untranslatable("a complex number")
    if isinstance(x, types.FunctionType) and x.__module__ != "torch.nn.functional":
        return rebound(x)
    if isinstance(x, functools.partial):
        return functools.partial(ours(x.func), *ours(x.args), **ours(x.keywords))
    if isinstance(x, torch.nn.Module):
        return getattr(tracegrad.nn, type(x).__name__)()
    if callable(x) and getattr(x, "__module__", "").startswith("torch"):
        found = named(getattr(x, "__name__", ""))
        if found is not None:
            return found
    return x


def rebound(f: types.FunctionType) -> Callable[..., Any]:
    """A Python function of the database with our package in the place of `torch`."""
    scope = {
        **f.__globals__, "torch": tracegrad, "F": tracegrad.nn.functional, "wrapper_set_seed": with_seed,
    }  # fmt: skip
    cells = None
    if f.__closure__:
        cells = tuple(types.CellType(ours(c.cell_contents)) for c in f.__closure__)
    made = types.FunctionType(f.__code__, scope, f.__name__, f.__defaults__, cells)
    made.__kwdefaults__ = f.__kwdefaults__
    return made


def with_seed(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """PyTorch's `wrapper_set_seed`, for our generator."""
    tracegrad.manual_seed(42)
    return f(*args, **kwargs)


def named(name: str) -> Any:
    """Our function of that (dotted) name: in the package, in nn.functional, or a method; None if there is
    none."""
    parts = name.split(".")
    for start in (tracegrad, tracegrad.nn.functional, tracegrad.Tensor):
        found: Any = start
        for p in parts:
            found = getattr(found, p, None)
        if callable(found):
            return found
    return None


def function_of(op: Any) -> Any:
    """Our function for an operator."""
    theirs = op.op
    if isinstance(theirs, types.FunctionType) and not theirs.__module__.startswith("torch.nn.functional"):
        if theirs.__module__.startswith("torch.testing"):
            return rebound(theirs)
    if op.name in METHODS_IN_SCOPE:
        return getattr(tracegrad.Tensor, op.name, None)
    return named(op.name)


def carried(sample: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if SKIPPED_KWARGS & sample.kwargs.keys():
        raise Untranslatable("a generator")
    return (
        ours(sample.input),
        tuple(ours(a) for a in sample.args),
        {k: ours(v) for k, v in sample.kwargs.items()},
    )
