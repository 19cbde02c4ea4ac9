"""Every public name of PyTorch's that we promise is there (`data/public_names.txt`), and takes the arguments
that it takes in PyTorch, by the same names and with the same defaults."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import tracegrad

NAMES = (Path(__file__).parent / "data" / "public_names.txt").read_text(encoding="utf-8").split()

#: Where we take other arguments than PyTorch, and why.
OTHERWISE = {
    "autograd.backward": "grad_variables is deprecated there",
    "autograd.grad": "only_inputs is deprecated there",
    "cdist": "compute_mode chooses between roundings; there is one here",
    "dtype": "made by nobody",
    "enable_grad": "the name of an argument nobody names",
    "load": "pickles are not loaded",
    "meshgrid": "PyTorch warns that its default will become 'ij', which it is",
    "nn.Hardtanh": "min_value and max_value are deprecated there",
    "no_grad": "a decorator without parentheses",
    "norm": "out= and dtype= are of the C function",
    "save": "pickles are not written",
    "tensordot": "out= is taken by all functions",
    "utils.data.random_split": "the default generators are two objects",
}


def find(root: Any, name: str) -> Any:
    found = root
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("family", sorted({n.rpartition(".")[0] for n in NAMES}))
def test_names_exist(family: str) -> None:
    if family:
        importlib.import_module(f"tracegrad.{family}")
    for name in NAMES:
        if name.rpartition(".")[0] == family:
            assert find(tracegrad, name) is not None, name


def parameters(f: Any) -> list[tuple[str, str]] | None:
    """Names and defaults; None where they are not to be had (C functions, `*args`)."""
    try:
        given = [p for p in inspect.signature(f).parameters.values() if p.name != "self"]
    except (TypeError, ValueError):
        return None
    if {p.kind for p in given} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return None
    defaults = ("a function" if callable(p.default) else str(p.default) for p in given)
    return [(p.name, d.replace("torch.", "tracegrad.")) for p, d in zip(given, defaults)]


@pytest.mark.peer
def test_arguments_and_defaults_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    compared, wrong = 0, []
    for name in NAMES:
        theirs = parameters(find(torch, name))
        if theirs is None or name in OTHERWISE:
            continue
        ours = parameters(find(tracegrad, name))
        compared += 1
        if ours != theirs and ours is not None:
            wrong.append((name, [p for p in theirs if p not in ours], [p for p in ours if p not in theirs]))
    print(f"{compared} signatures compared")
    assert compared > 230 and not wrong
