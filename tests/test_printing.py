"""Tensors print as PyTorch's: literal texts, and PyTorch itself over many arrays where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tracegrad.ir import dtypes
from tracegrad.ir.errors import TraceError
from tracegrad.tracer import printing
from tracegrad.tracer.printing import (
    format_array,
    get_printoptions,
    printoptions,
    set_printoptions,
    tensor_repr,
)


@pytest.fixture(autouse=True)
def fresh_options() -> Iterator[None]:
    with printoptions():
        yield


def show(values: Any, dtype: dtypes.DType = dtypes.float32, *suffixes: str) -> str:
    return format_array(np.asarray(values, dtype.numpy), dtype, suffixes=list(suffixes))


@pytest.mark.parametrize(
    ("values", "dtype", "text"),
    [
        (1.5, dtypes.float32, "tensor(1.5000)"),
        (2, dtypes.float32, "tensor(2.)"),
        (2, dtypes.int64, "tensor(2)"),
        (True, dtypes.bool_, "tensor(True)"),
        ([True, False], dtypes.bool_, "tensor([ True, False])"),
        ([1, -20, 3], dtypes.int64, "tensor([  1, -20,   3])"),
        ([1, 2], dtypes.int32, "tensor([1, 2], dtype=tracegrad.int32)"),
        ([1.0, 2.0], dtypes.float64, "tensor([1., 2.], dtype=tracegrad.float64)"),
        ([1.0, 2.5], dtypes.bfloat16, "tensor([1.0000, 2.5000], dtype=tracegrad.bfloat16)"),
        ([-(2**63), 2**63 - 1], dtypes.int64, "tensor([-9223372036854775808,  9223372036854775807])"),
        ([0.1, float("nan"), float("inf")], dtypes.float32, "tensor([0.1000,    nan,    inf])"),
        ([1.0, float("nan"), -0.0], dtypes.float32, "tensor([1., nan, -0.])"),
        ([1e-5, 1.0], dtypes.float32, "tensor([1.0000e-05, 1.0000e+00])"),
        ([1000.5, 1.0], dtypes.float32, "tensor([1.0005e+03, 1.0000e+00])"),
        ([1000.0, 1.0], dtypes.float32, "tensor([1000.,    1.])"),
        ([], dtypes.float32, "tensor([])"),
        ([], dtypes.int64, "tensor([], dtype=tracegrad.int64)"),
        (np.zeros((0, 3)), dtypes.float32, "tensor([], size=(0, 3))"),
        ([[1, 2], [3, 4]], dtypes.int64, "tensor([[1, 2],\n        [3, 4]])"),
        ([[[1]], [[2]]], dtypes.int64, "tensor([[[1]],\n\n        [[2]]])"),
    ],
)
def test_texts(values: Any, dtype: dtypes.DType, text: str) -> None:
    assert show(values, dtype) == text


def test_long_tensors_show_their_ends() -> None:
    assert show(np.arange(1000), dtypes.int64).count(",") == 999
    assert show(np.arange(1001), dtypes.int64) == "tensor([   0,    1,    2,  ...,  998,  999, 1000])"
    text = show(np.ones((40, 40)))
    row = "[1., 1., 1.,  ..., 1., 1., 1.]"
    assert text == "tensor([" + ",\n        ".join([row] * 3 + ["..."] + [row] * 3) + "])"


def test_lines_break_at_the_line_width() -> None:
    text = show(np.arange(60), dtypes.int64)
    assert text.split("\n")[1].startswith("        18, 19")
    assert max(map(len, text.split("\n"))) <= 80
    set_printoptions(linewidth=20)
    assert show([1.5, 2.5, 3.5], dtypes.float32) == "tensor([1.5000,\n        2.5000,\n        3.5000])"


def test_suffixes_follow_or_go_on_a_new_line() -> None:
    assert show([1.0], dtypes.float32, "requires_grad=True") == "tensor([1.], requires_grad=True)"
    text = show(np.full(8, 0.5), dtypes.float64, "grad_fn=<MulBackward0>")
    assert text.endswith("0.5000],\n       dtype=tracegrad.float64, grad_fn=<MulBackward0>)")


def test_options() -> None:
    before = get_printoptions()
    assert before == {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80, "sci_mode": None}
    with printoptions(precision=2, sci_mode=True):
        assert show([1.5]) == "tensor([1.50e+00])"
        set_printoptions(profile="full")
        assert "..." not in show(np.ones(2000))
        assert get_printoptions()["precision"] == 4 and get_printoptions()["sci_mode"] is None
    assert get_printoptions() == before
    set_printoptions(profile="short", precision=3)
    assert (get_printoptions()["precision"], get_printoptions()["edgeitems"]) == (3, 2)
    with pytest.raises(ValueError, match=r"'wide'.*default, short, full"):
        set_printoptions(profile="wide")
    assert get_printoptions()["edgeitems"] == 2


class _Node:
    def name(self) -> str:
        return "MulBackward0"


class Tensor:
    """What printing needs of a tensor."""

    is_cuda = False

    def __init__(
        self, values: Any, requires_grad: bool = False, grad_fn: Any = None, traced: bool = False
    ) -> None:
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape
        self.dtype = dtypes.float32
        self.requires_grad = requires_grad
        self.grad_fn = grad_fn
        self.traced = traced

    def _array(self) -> np.ndarray:
        if self.traced:
            raise TraceError("no contents yet")
        return self.values


class Velocity(Tensor):
    pass


def test_tensor_repr() -> None:
    assert tensor_repr(Tensor([1.0])) == "tensor([1.])"
    assert tensor_repr(Tensor([1.0], requires_grad=True)) == "tensor([1.], requires_grad=True)"
    assert tensor_repr(Tensor([1.0], True, _Node())) == "tensor([1.], grad_fn=<MulBackward0>)"
    assert tensor_repr(Velocity([[1.0], [2.0]])) == "Velocity([[1.],\n          [2.]])"


def test_traced_tensors_print_their_type() -> None:
    assert tensor_repr(Tensor(np.zeros((3, 4)), traced=True)) == "tensor(<traced f32[3,4]>)"
    assert tensor_repr(Tensor(0.0, traced=True)) == "tensor(<traced f32[]>)"


# --- against PyTorch ----------------------------------------------------------------------------------------

SHAPES = [(), (1,), (7,), (30,), (1001,), (0,), (2, 0), (3, 4), (2, 40), (5, 300), (40, 2, 20), (1, 1, 1, 2)]
SHAPES.append((6, 7, 8, 9))
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"precision": 2, "linewidth": 47},
    {"profile": "short", "threshold": 5},
    {"edgeitems": 1, "threshold": 0},
    {"edgeitems": 0, "threshold": 10},
    {"sci_mode": True},
    {"sci_mode": False, "precision": 0},
]


def _arrays(dtype: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Values of many magnitudes and kinds."""
    d: Any = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(len(shape) * 100 + sum(shape))
    if dtype == "bool":
        yield rng.integers(0, 2, shape).astype(bool)
        return
    if d.kind in "iu":
        info = np.iinfo(d)
        yield rng.integers(0, 10, shape).astype(d)
        yield rng.integers(info.min, info.max, shape, dtype=d, endpoint=True)
        return
    normal = rng.standard_normal(shape)
    with np.errstate(over="ignore"):
        for scale in (1.0, 0.01, 1e-6, 300.0, 1e9):
            yield (normal * scale).astype(d)
        yield (10.0 ** (normal * 3)).astype(d)
        yield np.round(normal * 20).astype(d)
        yield np.round(normal * 1e5).astype(d)
    special = rng.choice([0.0, -0.0, 1.0, 0.25, np.nan, np.inf, -np.inf], shape)
    yield np.asarray(special).astype(d)
    yield np.asarray(np.where(np.isfinite(special), 0.0, special)).astype(d)
    yield np.full(shape, float(ml_dtypes.finfo(d).smallest_subnormal)).astype(d)


def _torch_tensor(torch: Any, array: np.ndarray, dtype: str) -> Any:
    if dtype == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


@pytest.mark.peer
@pytest.mark.parametrize("options", OPTIONS, ids=[",".join(o) or "default" for o in OPTIONS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_text_as_pytorch(dtype: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    ours = getattr(dtypes, "bool_" if dtype == "bool" else dtype)
    with printoptions(**options), torch._tensor_str.printoptions(**options):
        assert get_printoptions() == torch._tensor_str.get_printoptions()
        for shape in SHAPES:
            for array in _arrays(dtype, shape):
                theirs = repr(_torch_tensor(torch, array, dtype)).replace("torch.", "tracegrad.")
                assert format_array(array, ours, suffixes=[]) == theirs


@pytest.mark.peer
def test_same_suffixes_as_pytorch() -> None:
    torch = pytest.importorskip("torch")
    for n in range(1, 40):
        for dtype in (dtypes.float32, dtypes.float64):
            values = np.linspace(0.5, 2.5, n).astype(dtype.numpy)
            leaf = torch.from_numpy(values).requires_grad_()
            for theirs, suffix in ((leaf, "requires_grad=True"), (leaf * 1.0, "grad_fn=<MulBackward0>")):
                text = repr(theirs).replace("torch.", "tracegrad.")
                assert format_array(values, dtype, suffixes=[suffix]) == text


@pytest.mark.peer
def test_default_dtype_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(printing, "get_default_dtype", lambda: dtypes.float64)
    torch.set_default_dtype(torch.float64)
    try:
        for values in (np.ones(2, np.float32), np.ones(2), np.zeros((0, 2)), np.zeros(0, np.float32)):
            ours = getattr(dtypes, values.dtype.name)
            theirs = repr(torch.from_numpy(values)).replace("torch.", "tracegrad.")
            assert format_array(values, ours, suffixes=[]) == theirs
    finally:
        torch.set_default_dtype(torch.float32)
