"""Calls as scripts have them, here and in PyTorch: the same results, and where PyTorch raises, an error that
the same `except` catches. Each case is statements and an expression over `T`, one module or the other."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import tracegrad

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

#: Built-in kinds of errors that scripts catch.
CAUGHT = (IndexError, TypeError, ValueError, AttributeError)

X = "x = T.arange(12.0).reshape(3, 4)"
C = "c = T.arange(24.0).reshape(2, 3, 4)"

INDICES = """
x[[[0, 1], [1, 2]]]
x[[T.tensor(0), T.tensor(1)]]
x[[T.tensor([0, 1]), T.tensor([1, 2])]]
x[[0, slice(None)]]
x[[slice(0, 1), 0]]
x[[None, 0]]
x[[0, 1]]
x[[True, False, True]]
x[range(2)]
x[range(3), range(3)]
x[np.array([0, 1]), 1]
x[T.tensor(1, dtype=T.uint8)]
x[T.tensor([0, 1]), T.tensor([1, 2, 3])]
x[T.tensor([3])]
x[1.0]
x[::-1]
x[0, 0, 0]
x.masked_select(T.tensor([True, False, True, False]))
x.masked_select(T.tensor([1, 0, 1, 0]))
5 in x
x[0] in x
"a" in x
None in x
""".strip().splitlines()

WRITES = """
x[T.tensor([True, False, True])] = 5.0
x[:, T.tensor([True, False, True, False])] = 5
x[T.tensor([True, False, True])] = T.tensor([7.0])
x[T.tensor([True, False, True])] = T.ones(2, 4)
x[T.tensor([True, False])] = 0.0
x[..., T.tensor([True, False, True, False])] = 0.5
x[(T.tensor([True, False, True]),)] = 1.0
x[x > 5] = 0.25
x[x > 5] += 1
x.t()[T.tensor([True, False, False, True])] = -1.0
x[range(3), range(3)] = -1.0
x += [1, 2]
x += "a"
del x[0]
x.apply_(lambda v: v * v)
x.map_(T.ones(4), lambda a, b: a + b)
copy.copy(x)[0] = 9.0
""".strip().splitlines()

CALLS = """
T.ones(2, 3).max(1)
repr(T.tensor([3.0, 1.0]).max(0))
repr(T.tensor([3.0, 1.0]).min(0))
T.zeros(0, 3).max(0)
T.zeros(0, 3).amax(0)
T.zeros(0).argmax()
T.zeros(0, 3).kthvalue(1, 0)
T.zeros(0, 3).quantile(0.5, 1)
T.zeros(0, 3).chunk(2)
T.ones(2, 3).all(dim=[])
T.norm(T.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=0, dtype=T.float64)
T.bincount(T.tensor([1, 2], dtype=T.uint8))
T.zeros(3).masked_scatter(T.tensor([True, False, True]), T.tensor([1.0]))
T.ldexp(T.tensor([-2.5, 3.0], dtype=T.float16), T.tensor([2, 3]))
T.ldexp(T.tensor([1e-30, 1.0]), T.tensor([130, -140]))
T.tensor([True, False]) ** True
T.ones(4, 2).split(split_size=2)
T.ones(2, 3).swapaxes(axis0=0, axis1=1)
T.concatenate([T.ones(2), T.ones(1)], axis=0)
T.ones(2, 3, 4).H
T.tensor([T.tensor(1), T.tensor(2.0)])
T.tensor([T.tensor(1), 2])
T.tensor([T.tensor(1.0, dtype=T.float64), 2])
T.FloatTensor([1, 2])
T.LongTensor([1, 2])
isinstance(T.ones(2), T.FloatTensor)
isinstance(T.ones(2).long(), T.FloatTensor)
T.ones(2).type(T.LongTensor)
T.ones(2).type("torch.LongTensor")
T.ones(2).to(float)
T.ones(2).new([1, 2])
T.ones(2).output_nr
int(T.tensor([1, 2]))
float(T.tensor([1.0, 2.0]))
[10, 20, 30][T.tensor(True)]
[10, 20, 30][T.tensor([0, 1])]
(1,) + T.Size([2])
type((1,) + T.Size([2])) is T.Size
copy.copy(T.ones(2, requires_grad=True)).is_leaf
type(copy.copy(T.nn.Parameter(T.ones(2)))).__name__
""".strip().splitlines()


def shown(v: Any) -> Any:
    """A result as plain values."""
    if isinstance(v, (torch.Tensor, tracegrad.Tensor)):
        return (str(v.dtype).partition(".")[2], tuple(v.shape), v.requires_grad, v.detach().tolist())
    if isinstance(v, (list, tuple)):
        return [type(v).__name__, *map(shown, v)]
    return v.replace("tracegrad.", "torch.") if isinstance(v, str) else v


def outcome(T: Any, source: str) -> Any:
    env = {"T": T, "np": np, "math": math, "copy": copy}
    *statements, last = source.split("; ")
    try:
        exec("\n".join(statements), env)
        return shown(eval(last, env))
    except Exception as e:
        return e


def check(source: str) -> None:
    want, got = outcome(torch, source), outcome(tracegrad, source)
    if isinstance(want, Exception):
        assert isinstance(got, (*CAUGHT, RuntimeError)), f"PyTorch raises {want!r}, got {got!r}"
        for kind in CAUGHT:
            assert not isinstance(want, kind) or isinstance(got, kind), (
                f"PyTorch raises {want!r}, got {got!r}"
            )
    else:
        assert not isinstance(got, Exception), f"PyTorch gives {want}, got {got!r}"
        assert got == want


@pytest.mark.parametrize("index", INDICES)
def test_indices(index: str) -> None:
    check(f"{X}; {index}")


@pytest.mark.parametrize("statement", WRITES)
def test_writes(statement: str) -> None:
    check(f"{X}; w = x[1:]; {statement}; (x, w)")


@pytest.mark.parametrize("call", CALLS)
def test_calls(call: str) -> None:
    check(call)


def test_masks_write_under_compile() -> None:
    def f(T: Any, x: Any, rows: Any, columns: Any) -> Any:
        x = x.clone()
        x[rows] = 5.0
        x[:, columns] = T.tensor(7.0)
        x[x > 6] = 0.0
        return x

    def given(T: Any) -> Any:
        return (
            T.arange(12.0).reshape(3, 4),
            T.tensor([True, False, True]),
            T.tensor([True, False, False, True]),
        )

    compiled = tracegrad.compile(lambda *a: f(tracegrad, *a))
    assert compiled(*given(tracegrad)).tolist() == f(torch, *given(torch)).tolist()
