"""The Tensor API held against PyTorch, expression by expression: values, dtypes, shapes, and error or not.

Every case is Python source that is run twice, with `T` the package and `x`, `i`, ... its tensors.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import TracegradError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

#: What may be raised where PyTorch raises.
OURS = (TracegradError, TypeError, ValueError, AttributeError, IndexError)
#: PyTorch's errors where there is no need for one: kernels it lacks, and writes that would race there.
KINDER = (
    "not implemented for", "Index put requires", "does not support bool input",
    "tensors used as indices must be", "refer to a single memory location", "cannot compute the inf norm",
    "addcdiv is no longer supported",
    "masked_fill_ only supports boolean masks", "only support floating point and complex", "identity",
)  # fmt: skip
DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()


def names(T: Any) -> dict[str, Any]:
    """What the cases are written in."""
    return {
        "T": T,
        "math": math,
        "np": np,
        "x": T.arange(12).reshape(3, 4),
        "f": T.arange(12).reshape(3, 4) * 0.5 - 2.0,
        "c": T.arange(24).reshape(2, 3, 4).float(),
        "v": T.tensor([3.0, -1.5, 0.0, 2.5]),
        "i": T.tensor([7, -7, 3, -3]),
        "j": T.tensor([2, 2, -2, -2]),
        "b": T.tensor([True, False, True, False]),
        "s": T.tensor(2.5),
        "k": T.tensor(3),
        "e": T.zeros(0, 3),
        "e1": T.zeros(0),
        "m": T.tensor([[True, False, True, False]] * 3),
    }


def outcome(T: Any, source: str) -> Any:
    """The value of an expression, or of `r` after statements; the exception if it raises."""
    env = names(T)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ";" in source or source.startswith("r = "):
                exec(source.replace("; ", "\n"), env)
                return plain(env["r"])
            return plain(eval(source, env))
    except Exception as e:
        return e


def plain(v: Any) -> Any:
    """A result as comparable data: tensors as (dtype name, shape, array)."""
    if isinstance(v, tg.Tensor):
        a = v.detach().float() if v.dtype is tg.bfloat16 else v.detach()
        return ("tensor", v.dtype.torch_name, tuple(v.shape), np.array(a.numpy()))
    if isinstance(v, torch.Tensor):
        a = v.detach().float() if v.dtype is torch.bfloat16 else v.detach()
        return ("tensor", str(v.dtype).removeprefix("torch."), tuple(v.shape), np.array(a.numpy()))
    if isinstance(v, np.ndarray):
        return ("array", str(v.dtype), v.shape, v)
    if isinstance(v, (tg.dtype, torch.dtype)):
        return str(v).split(".")[1]
    if isinstance(v, (tuple, list)):
        return [type(v).__name__ if type(v) in (tuple, list) else "tuple", *map(plain, v)]
    if isinstance(v, str):
        return v.replace("tracegrad.", "torch.")
    return v


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        if a[1:3] != b[1:3]:
            return False
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-12}.get(a[1], 3e-6)
        return np.allclose(a[3], b[3], rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6) or (a != a and b != b)
    return type(a) is type(b) and a == b


def check(source: str) -> None:
    want, got = outcome(torch, source), outcome(tg, source)
    if isinstance(want, Exception):
        if any(text in str(want) for text in KINDER):
            return
        assert isinstance(got, OURS), f"{source}: PyTorch raises {want!r}, got {got!r}"
        return
    if isinstance(got, Exception):
        raise AssertionError(f"{source}: PyTorch gives {want}, got {got!r}") from got
    assert same(want, got), f"{source}: PyTorch gives {want}, got {got}"


VALUES = ["9.0", "T.tensor(9.0)", "T.tensor([9.0])", "k", "region * 2 + 1", "region[..., :1]", "T.zeros(7)"]


def cases(section: str) -> list[str]:
    """The cases of one section of tests/data/tensor_peer.txt."""
    text = (Path(__file__).parent / "data" / "tensor_peer.txt").read_text(encoding="utf-8")
    found = text.split(f"[{section}]\n")[1].split("\n\n[")[0]
    return [line for line in found.split("\n") if line]


@pytest.mark.parametrize("source", cases("creation"))
def test_creation(source: str) -> None:
    check(source)


@pytest.mark.parametrize("source", cases("arithmetic"))
def test_arithmetic(source: str) -> None:
    check(source)


@pytest.mark.parametrize("source", cases("inplace"))
def test_inplace(source: str) -> None:
    check(source)


@pytest.mark.parametrize("index", cases("indexes"))
def test_indexing(index: str) -> None:
    check(f"f[{index}]")


@pytest.mark.parametrize("index", cases("indexes_3d"))
def test_indexing_in_three_dimensions(index: str) -> None:
    check(f"c[{index}]")
    check(f"c.transpose(0, 1).transpose(0, 1)[{index}]")


@pytest.mark.parametrize(
    "index", [("f", i) for i in cases("indexes")] + [("c", i) for i in cases("indexes_3d")], ids=str
)
def test_setitem(index: tuple[str, str]) -> None:
    base, at = index
    for value in VALUES:
        if at in ("False", "T.tensor(False)", "[]") and value == "T.zeros(7)":
            continue  # nothing is written, so PyTorch doesn't look at the shape
        check(f"region = {base}[{at}]; {base}[{at}] = {value}; r = {base}")
        check(f"w = {base}.transpose(-1, -2); region = {base}[{at}]; {base}[{at}] = {value}; r = w")


@pytest.mark.parametrize("source", cases("views"))
def test_views(source: str) -> None:
    check(source)


@pytest.mark.parametrize("operand", ["x", "f", "m", "e", "f.half()", "x.to(T.uint8)"])
@pytest.mark.parametrize("source", cases("reductions"))
def test_reductions(source: str, operand: str) -> None:
    check(source.replace("{x}", operand))


@pytest.mark.parametrize("source", cases("reductions"))
def test_reductions_of_vectors_and_scalars(source: str) -> None:
    for operand in ("v", "s", "e1", "c"):
        check(source.replace("{x}", operand))


@pytest.mark.parametrize("source", cases("conversion"))
def test_conversion(source: str) -> None:
    check(source)


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_promotion(a: str, b: str) -> None:
    for op in "+ * / // % ** < == & -".split():
        left, right = f"T.tensor([1, 3], dtype=T.{a})", f"T.tensor([2, 1], dtype=T.{b})"
        zero_d = f"T.tensor(2, dtype=T.{b})"
        check(f"{left} {op} {right}")
        check(f"{left} {op} {zero_d}")
        check(f"{zero_d} {op} {left}")
        check(f"T.tensor(1, dtype=T.{a}) {op} {zero_d}")
    check(f"{left}.add_({right})")
    check(f"{left}.mul_({zero_d})")
    check(f"{left}.div_({right})")
    check(f"T.where(T.tensor([True, False]), {left}, {right})")
    check(f"T.cat([{left}, {right}])")
    check(f"{left}.to(T.{b})")
    check(f"w = {left}; w[0] = {zero_d}; r = w")
    check(f"w = {left}; w[:] = {right}; r = w")
    check(f"w = {left}; w[T.tensor([0])] = {right}[:1]; r = w")
    check(f"T.maximum({left}, {right})")


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("number", ["True", "2", "-1", "2.5"])
def test_promotion_with_numbers(a: str, number: str) -> None:
    left = f"T.tensor([1, 3], dtype=T.{a})"
    for op in "+ * / // % ** < == & -".split():
        if (a, number, op) == ("bool", "True", "**"):
            continue  # numbers only
        check(f"{left} {op} {number}")
        check(f"{number} {op} {left}")
        check(f"T.tensor(3, dtype=T.{a}) {op} {number}")
    check(f"{left}.add_({number})")
    check(f"{left}.fill_({number})")
    check(f"{left}.clamp({number})")
    check(f"w = {left}; w[0] = {number}; r = w")
