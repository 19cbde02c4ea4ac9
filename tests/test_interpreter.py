"""The interpreter: inputs, outputs and updates of graphs, rounding, wide evaluation, errors for bad input."""

from __future__ import annotations

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import IndexOutOfRange, OpError, TracegradError, VerifyError
from tracegrad.ir.graph import Graph, Location
from tracegrad.ir.interpreter import decomposition, evaluate
from tracegrad.ir.op import Op
from tracegrad.ir.special import erf, erfc
from tracegrad.ir.types import Type

F32, F64 = dtypes.float32, dtypes.float64


def graph_of(*types: Type) -> tuple[Graph, Builder]:
    graph = Graph()
    for t in types:
        graph.add_input(t)
    return graph, Builder(graph)


def test_outputs_then_updates() -> None:
    """A loss out, a new weight as update; an output may be an input or given twice."""
    graph, b = graph_of(Type(F32, (3,)), Type(F32, (3,)))
    w, x = graph.inputs
    loss = b.sum(b.mul(w, x), axes=(0,))
    graph.outputs = [loss, x, loss]
    graph.updates = {w: b.sub(w, x)}
    outs, updates = evaluate(graph, [np.array([1, 2, 3], np.float32), np.array([1, 1, 2], np.float32)])
    assert [o.tolist() for o in outs] == [9.0, [1, 1, 2], 9.0]
    assert [u.tolist() for u in updates] == [[0, 1, 1]]


def test_inputs_are_not_written() -> None:
    graph, b = graph_of(Type(F32, (4,)), Type(F32, (2,)))
    base, new = graph.inputs
    graph.outputs = [b.slice_put(base, new, start=(1,), stop=(3,), step=(1,))]
    array = np.zeros(4, np.float32)
    out = evaluate(graph, [array, np.ones(2, np.float32)])[0][0]
    assert array.tolist() == [0, 0, 0, 0]
    assert out.tolist() == [0, 1, 1, 0]


def test_values_are_released_after_their_last_use() -> None:
    """A chain over arrays of 8 MB needs a few of them at once, not all."""
    import tracemalloc

    graph, b = graph_of(Type(F32, (1 << 21,)))
    x = graph.inputs[0]
    for _ in range(20):
        x = b.neg(x)
    graph.outputs = [x]
    array = np.ones(1 << 21, np.float32)
    tracemalloc.start()
    evaluate(graph, [array])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * array.nbytes


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16])
def test_half_precision_rounds_once_per_op(dtype: dtypes.DType) -> None:
    """gelu is computed in f32 and rounded once; a sum is accumulated in f32."""
    graph, b = graph_of(Type(dtype, (1000,)))
    (x,) = graph.inputs
    graph.outputs = [b.gelu(x), b.sum(x, axes=(0,)), b.mean(x, axes=(0,)), b.softmax(x, dim=0)]
    array = np.random.default_rng(0).uniform(0, 2, 1000).astype(dtype.numpy)
    exact = array.astype(np.float64)
    outs = evaluate(graph, [array])[0]
    gelu = 0.5 * exact * (1 + erf(exact / np.sqrt(2)))
    ulp = {"f16": 2.0**-11, "bf16": 2.0**-8}[dtype.name]
    np.testing.assert_allclose(outs[0].astype(np.float64), gelu, rtol=ulp * 1.001)
    np.testing.assert_allclose(float(outs[1]), exact.sum(), rtol=ulp * 1.001)
    np.testing.assert_allclose(float(outs[2]), exact.mean(), rtol=ulp * 1.001)
    e = np.exp(exact - exact.max())
    np.testing.assert_allclose(outs[3].astype(np.float64), e / e.sum(), rtol=ulp * 1.01, atol=1e-7)


def test_wide_evaluation_holds_f32_in_f64() -> None:
    """Constants, casts and decomposed ops are wide too; other types stay."""
    graph, b = graph_of(Type(F32, (2,)), Type(dtypes.int64, (2,)))
    x, i = graph.inputs
    third = b.add(b.div(x, b.const(3, x)), b.const(0.1, x))
    graph.outputs = [
        third,
        b.cast(i, dtype=F32),
        b.cast(third, dtype=dtypes.float16),
        b.mean(third, axes=(0,)),
    ]
    array = np.array([1.0, 2.0], np.float32)
    outs = evaluate(graph, [array, np.array([1, (1 << 40) + 1])], dtype=F64)[0]
    assert [o.dtype for o in outs] == [np.float64, np.float64, np.float16, np.float64]
    np.testing.assert_allclose(outs[0], [1 / 3 + 0.1, 2 / 3 + 0.1], rtol=1e-15)
    assert outs[1][1] == (1 << 40) + 1
    np.testing.assert_allclose(outs[3], 0.6, rtol=1e-15)
    wide_inputs = evaluate(graph, [array.astype(np.float64), np.array([1, 2])], dtype=F64)[0]
    np.testing.assert_array_equal(wide_inputs[0], outs[0])


def test_signed_zero_constants_stay_apart() -> None:
    """The cache of decompositions keeps attributes apart that are equal but mean different things."""
    graph, b = graph_of()
    graph.outputs = [
        b.full(shape=(1,), value=0.0, dtype=F32),
        b.full(shape=(1,), value=-0.0, dtype=F32),
    ]
    plus, minus = evaluate(graph, [])[0]
    assert not np.signbit(plus[0])
    assert np.signbit(minus[0])


def test_decompositions_are_cached() -> None:
    graph, b = graph_of(Type(F32, (2, 3)))
    b.softmax(graph.inputs[0], dim=1)
    b.softmax(graph.inputs[0], dim=1)
    b.softmax(graph.inputs[0], dim=0)
    first, second, other = (decomposition(n) for n in graph.nodes)
    assert first is second
    assert first is not other


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([], "takes 1 inputs, got 0"),
        ([np.zeros((2, 3), np.float64)], r"is f32\[2,3\], got float64\[2, 3\]"),
        ([np.zeros((3, 2), np.float32)], r"got float32\[3, 2\]"),
        ([[["a", "b"]]], "got <U1"),
    ],
)
def test_arrays_that_do_not_fit(arrays: list, words: str) -> None:
    graph, b = graph_of(Type(F32, (2, 3)))
    graph.outputs = [b.neg(graph.inputs[0])]
    with pytest.raises(OpError, match=words):
        evaluate(graph, arrays)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16])
def test_only_f64_is_wide(dtype: dtypes.DType) -> None:
    with pytest.raises(TracegradError, match="float64"):
        evaluate(Graph(), [], dtype=dtype)


@pytest.mark.parametrize(
    ("name", "index"), [("take", 5), ("take", -6), ("gather", 7), ("index", 5), ("scatter", 9)]
)
def test_index_out_of_range_names_op_line_and_index(name: str, index: int) -> None:
    graph, b = graph_of(Type(F32, (5,)), Type(dtypes.int64, (1,)), Type(F32, (1,)))
    x, i, v = graph.inputs
    b.loc = Location("/home/me/model.py", 12)
    calls = {
        "take": lambda: b.take(x, i, dim=0),
        "gather": lambda: b.gather(x, i, dim=0),
        "index": lambda: b.index(x, i, dims=(0,)),
        "scatter": lambda: b.scatter(x, i, v, dim=0),
    }
    graph.outputs = [calls[name]()]
    arrays = [np.zeros(5, np.float32), np.array([index]), np.zeros(1, np.float32)]
    with pytest.raises(
        IndexOutOfRange, match=rf"{name}\(f32\[5\], .*model\.py:12.*index {index} is out of range"
    ) as e:
        evaluate(graph, arrays)
    assert isinstance(e.value, IndexError)


def test_records_that_lie_are_caught() -> None:
    """An op whose NumPy meaning or decomposition has another type than `infer` says is reported by name."""
    wrong_shape = Op("wrong_shape", lambda x: x, kernel="movement", numpy=lambda x: x[:1])
    wrong_dtype = Op("wrong_dtype", lambda x: x, kernel="movement", numpy=lambda x: x.astype(np.float64))
    wrong_graph = Op("wrong_graph", lambda x: x, decompose=lambda b, x: b.sum(x, axes=(0,)))
    meaningless = Op("meaningless", lambda x: x, kernel="window")
    for op, words in (
        (wrong_shape, "gave shape"),
        (wrong_dtype, "gave float64"),
        (wrong_graph, "decomposes to"),
    ):
        graph, b = graph_of(Type(F32, (3,)))
        b.emit(op, (graph.inputs[0],), {})
        with pytest.raises(VerifyError, match=f"{op.name} {words}"):
            evaluate(graph, [np.zeros(3, np.float32)])
    graph, b = graph_of(Type(F32, (3,)))
    b.emit(meaningless, (graph.inputs[0],), {})
    with pytest.raises(OpError, match="no NumPy meaning"):
        evaluate(graph, [np.zeros(3, np.float32)])


def test_no_warnings_from_numpy(recwarn: pytest.WarningsRecorder) -> None:
    graph, b = graph_of(Type(F32, (2,)))
    (x,) = graph.inputs
    graph.outputs = [
        b.log(x),
        b.div(x, x),
        b.cast(b.log(x), dtype=dtypes.int32),
        b.exp(b.exp(b.exp(b.exp(x)))),
    ]
    evaluate(graph, [np.array([0.0, 5.0], np.float32)])
    assert not recwarn.list


# --- special functions ----------------------------------------------------------------------------


def test_erf_and_erfc() -> None:
    x = np.array([[-np.inf, -3.0, -0.0], [1e-300, 0.5, np.inf]])
    np.testing.assert_allclose(erf(x) + erfc(x), 1, rtol=1e-15)
    assert np.signbit(erf(x)[0, 2])
    np.testing.assert_allclose(erfc(np.array(20.0)), 5.395865611607901e-176, rtol=1e-13)
    assert np.isnan(erf(np.array([np.nan]))).all()
    assert erf(np.array([0.5], np.float32)).dtype == np.float32
    assert erf(np.zeros((0, 3))).shape == (0, 3)
