"""Sorting: every method on every machine, dtype and layout; order of equals and of NaN; selection, quantiles,
unique elements, binary search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import check_second
from test_schedule import AVX2, AVX512, MACHINES, SMALL, check
from tracegrad.backends.schedule import schedule
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import ALL, DType, float32, float64, from_numpy, int8, int64
from tracegrad.ir.errors import TraceError, TracegradError
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loops import statements
from tracegrad.ir.op import REGISTRY
from tracegrad.ir.types import Type
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered, host_machine

NAN = float("nan")
SPECIAL = [NAN, -NAN, float("inf"), float("-inf"), 0.0, -0.0]


def draw(rng: np.random.Generator, t: Type) -> np.ndarray:
    """Many equals; floats with NaN of both signs, infinities and both zeros."""
    if t.dtype.kind == "f":
        a = np.round(rng.uniform(-3, 3, t.shape), rng.integers(0, 3))
        if a.size:
            n = 1 + a.size // 6
            a.reshape(-1)[rng.integers(0, a.size, n)] = rng.choice(SPECIAL, n)
        return np.asarray(a).astype(t.dtype.numpy)
    if t.dtype.kind == "b":
        return np.asarray(rng.random(t.shape) < 0.5)
    info = np.iinfo(t.dtype.numpy)
    wide = rng.integers(info.min, info.max, t.shape, dtype=np.int64 if info.bits < 64 else t.dtype.numpy)
    near = rng.integers(0 if t.dtype.kind == "u" else -3, 4, t.shape)
    return np.where(rng.random(t.shape) < 0.5, wide, near).astype(t.dtype.numpy)


def sort_graph(dtype: DType, shape: tuple[int, ...], op: str, **attrs: Any) -> Graph:
    graph = Graph(op)
    b = Builder(graph)
    x = graph.add_input(Type(dtype, shape), "x")
    graph.outputs = [getattr(b, op)(x, **attrs)]
    return graph


# --- loops ------------------------------------------------------------------------------------------

SIZES = [1, 2, 3, 5, 7, 8, 16, 17, 31, 100, 129, 150]


@settings(max_examples=30)
@given(
    st.sampled_from([float32, float64, int64, int8]),
    st.sampled_from(SIZES),
    st.sampled_from([(1, 1), (1, 3), (4, 1), (2, 3)]),
    st.booleans(),
    st.integers(0, 40),
    st.integers(0, 3),
)
def test_loops_agree_with_the_interpreter(
    dtype: DType, n: int, around: tuple[int, int], descending: bool, k: int, machine: int
) -> None:
    shape = (around[0], n, around[1])
    if k and k <= n:
        graph = sort_graph(dtype, shape, "argtopk", dim=1, k=k, largest=descending)
    else:
        graph = sort_graph(dtype, shape, "argsort", dim=1, descending=descending)
    x = draw(np.random.default_rng(n + k), graph.inputs[0].type)
    check(graph, [x], MACHINES[machine])


def test_what_leads_to_a_sort_is_fused_into_it() -> None:
    graph = Graph("fused")
    b: Any = Builder(graph)
    x = graph.add_input(Type(float32, (30, 6)), "x")
    y = b.permute(b.abs(b.sub(x, b.const(1.0, x))), dims=(1, 0))
    graph.outputs = [b.argsort(y, dim=1)]
    program = check(graph, [draw(np.random.default_rng(0), x.type)])
    assert len(program.kernels) == 1 and not program.arena_bytes


@pytest.mark.parametrize("machine", [AVX512, AVX2, SMALL])
def test_the_code_does_not_grow_with_the_size(machine: Any) -> None:
    def length(n: int) -> int:
        program = schedule(sort_graph(float32, (4, n), "argsort", dim=1), machine)
        return sum(1 for k in program.kernels for _ in statements(k.body))

    assert length(1 << 10) == length(1 << 20)
    assert length(64) == length(128)


def native(graph: Graph, arrays: list[np.ndarray], threads: int) -> list[np.ndarray]:
    machine = replace(host_machine(), threads=threads, parallel_cycles=100)
    buffers = [copy_of(a, v.type.dtype) for a, v in zip(arrays, graph.inputs)]
    return [m.array.copy() for m in Executable(Lowered(graph, machine))(buffers)]


@pytest.mark.parametrize("dtype", ALL)
def test_native_agrees_for_any_number_of_threads(dtype: DType) -> None:
    """Counting, radix and selection in one program, with one thread and with two."""
    rng = np.random.default_rng(1)
    graph = Graph("sorts")
    b: Any = Builder(graph)
    arrays: list[np.ndarray] = []
    for shape, dim in (((50, 11), 1), ((11, 50), 0), ((9, 700), 1), ((3000,), 0), ((3, 200, 5), 1)):
        x = graph.add_input(Type(dtype, shape))
        arrays.append(draw(rng, x.type))
        graph.outputs += [b.argsort(x, dim=dim), b.argsort(x, dim=dim, descending=True)]
        graph.outputs += [b.argtopk(x, dim=dim, k=5), b.argtopk(x, dim=dim, k=3, largest=False)]
    want, _ = evaluate(graph, arrays)
    one, two = native(graph, arrays, 1), native(graph, arrays, 2)
    for w, a, c in zip(want, one, two):
        np.testing.assert_array_equal(a, w)
        np.testing.assert_array_equal(c, w)


@pytest.mark.parametrize("pattern", ["ascending", "descending", "equal", "two", "low byte", "high byte"])
@pytest.mark.parametrize("n", [128, 129, 1000])
def test_patterns(pattern: str, n: int) -> None:
    """Data whose bytes are mostly equal, and the worst for selection."""
    k = np.arange(n)
    x = {
        "ascending": k,
        "descending": -k,
        "equal": 0 * k + 7,
        "two": k % 2 - 1,
        "low byte": 7 * k % 256,
        "high byte": (7 * k % 100) << 56,
    }[pattern].astype(np.int64)
    graph = Graph("patterns")
    b: Any = Builder(graph)
    v = graph.add_input(Type(int64, (n,)))
    graph.outputs = [b.argsort(v, dim=0), b.argtopk(v, dim=0, k=9), b.argtopk(v, dim=0, k=64, largest=False)]
    for got, want in zip(native(graph, [x], 1), evaluate(graph, [x])[0]):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["sort", "topk", "kthvalue", "median_dim"])
def test_second_derivative(name: str) -> None:
    op = REGISTRY[name]
    for s in [s for s in op.samples() if s.smooth][:3]:
        check_second(op, s)


# --- functions --------------------------------------------------------------------------------------


def test_order_of_equals_and_of_nan() -> None:
    x = tg.tensor([1.0, NAN, -0.0, 0.0, 1.0, float("-inf"), NAN])
    up, down = tg.sort(x), tg.sort(x, descending=True)
    assert up.indices.tolist() == [5, 2, 3, 0, 4, 1, 6]
    assert down.indices.tolist() == [1, 6, 0, 4, 2, 3, 5]
    assert x.argsort().tolist() == up.indices.tolist() and x.msort().isnan().tolist()[-2:] == [True, True]
    assert tg.topk(x, 3).indices.tolist() == [1, 6, 0]
    assert tg.topk(x, 2, largest=False).values.tolist() == [float("-inf"), 0.0]


def test_dimensions_and_tensors_without_any() -> None:
    x = tg.tensor([[3, 1, 2], [9, 8, 7]])
    assert tg.sort(x, 0, True).values.tolist() == [[9, 8, 7], [3, 1, 2]]
    assert tg.sort(x, dim=-1, stable=True)[0].tolist() == [[1, 2, 3], [7, 8, 9]]
    for name in ("sort", "median", "mode", "kthvalue"):
        args = (1,) if name == "kthvalue" else ()
        r = getattr(tg, name)(tg.tensor(5.0), *args, dim=-1)
        assert [t.item() for t in r] == [5.0, 0] and r.values.shape == ()
    assert tg.sort(tg.zeros(2, 0)).indices.shape == (2, 0)
    assert tg.topk(x, 0).values.shape == (2, 0)


def test_names_of_gradient_functions() -> None:
    x = tg.tensor([3.0, 1.0, 2.0], requires_grad=True)
    made = {
        "SortBackward0": x.sort()[0], "TopkBackward0": x.topk(2).values, "ModeBackward0": x.mode().values,
        "KthvalueBackward0": x.kthvalue(2).values, "MedianBackward1": x.median(0).values,
        "MedianBackward0": x.median(), "NanmedianBackward0": x.nanmedian(),
    }  # fmt: skip
    for name, t in made.items():
        assert name in repr(t.grad_fn)
    assert x.argsort().grad_fn is None


def test_gradients_go_where_the_elements_came_from() -> None:
    x = tg.tensor([[3.0, 1.0, 2.0, 2.0]], requires_grad=True)
    (x.sort(descending=True).values * tg.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1, 1000, 10, 100]]
    x.grad = None
    x.median().backward()
    assert x.grad.tolist() == [[0, 0, 0.5, 0.5]]


def test_compiled_and_lazy_agree() -> None:
    x = tg.from_numpy(np.random.default_rng(0).standard_normal((5, 90)).astype(np.float32))

    def f(x: Any) -> Any:
        x = x.detach().requires_grad_()
        top = x.topk(4, 1)
        out = x.sort(1)[0][:, ::9].sum() + top.values.prod(1).sum() + x.median() + x.quantile(0.3, 1).sum()
        (g,) = tg.autograd.grad(out, x)
        return out, g, top.indices, x.mode(1), tg.searchsorted(x.sort(1)[0], x), tg.histc(x, 9)

    lazy, compiled = f(x), tg.compile(f)
    for _ in range(2):
        got = compiled(x)
        for a, c in zip([*lazy[:3], *lazy[3], *lazy[4:]], [*got[:3], *got[3], *got[4:]]):
            np.testing.assert_allclose(c.detach().numpy(), a.detach().numpy(), rtol=1e-5)
        assert got[3].indices is got[3][1]


def test_sizes_that_are_data_need_the_values() -> None:
    for f in (tg.unique, tg.unique_consecutive, tg.bincount):
        with pytest.raises(TraceError, match="decided by the values"):
            tg.compile(f)(tg.tensor([1, 2, 2]))


def test_unique() -> None:
    x = tg.tensor([[3, 1, 3], [2, 1, 3], [3, 1, 3]])
    assert tg.unique(x).tolist() == [1, 2, 3]
    values, inverse, counts = tg.unique(x, return_inverse=True, return_counts=True)
    assert values[inverse].tolist() == x.tolist() and counts.tolist() == [3, 1, 5]
    rows, counts = x.unique(return_counts=True, dim=0)
    assert rows.tolist() == [[2, 1, 3], [3, 1, 3]] and counts.tolist() == [1, 2]
    values, inverse, counts = tg.unique_consecutive(
        tg.tensor([1, 1, 2, 2, 1]), return_inverse=True, return_counts=True
    )
    assert [t.tolist() for t in (values, inverse, counts)] == [[1, 2, 1], [0, 0, 1, 1, 2], [2, 2, 1]]
    assert tg.unique_consecutive(x, dim=0).shape == (3, 3)
    assert tg.unique_consecutive(tg.zeros(0)).shape == (0,)
    assert tg.unique(tg.tensor([NAN, NAN])).shape == (2,)


@given(st.lists(st.integers(-5, 5), max_size=40), st.lists(st.integers(-7, 7), max_size=9), st.booleans())
def test_searchsorted_is_numpys(seq: list[int], values: list[int], right: bool) -> None:
    a, v = np.sort(np.array(seq, np.int64)), np.array(values, np.int64)
    got = tg.searchsorted(tg.from_numpy(a), tg.from_numpy(v), right=right)
    np.testing.assert_array_equal(got.numpy(), np.searchsorted(a, v, "right" if right else "left"))


def test_binary_search_arguments() -> None:
    edges = tg.tensor([1.0, 3.0, 5.0])
    x = tg.tensor([[0.0, 1.0], [3.5, NAN]])
    assert tg.bucketize(x, edges).tolist() == [[0, 0], [2, 3]]
    assert tg.bucketize(x, edges, right=True).tolist() == [[0, 1], [2, 3]]
    assert tg.bucketize(4, edges).item() == 2
    unknown = tg.tensor([1.0, 3.0, NAN, NAN, NAN, NAN])
    for right in (False, True):  # NaN is last, whatever the way
        assert tg.bucketize(tg.tensor([2.0, 9.0, NAN]), unknown, right=right).tolist() == [1, 2, 6]
    assert tg.searchsorted(edges, x, out_int32=True).dtype is tg.int32
    mixed = tg.tensor([5.0, 1.0, 3.0])
    order = mixed.argsort()
    assert tg.searchsorted(mixed, x, sorter=order, side="right").tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: tg.sort(x, 2), "out of range"),
        (lambda x: tg.topk(x, 5), "k = 5 is not in"),
        (lambda x: tg.topk(x, 1.5), "k must be an integer"),
        (lambda x: tg.kthvalue(x, 0), "k = 0 is not in"),
        (lambda x: tg.median(x > 0), "bools have no median"),
        (lambda x: tg.median(tg.zeros(2, 0), 1), "empty"),
        (lambda x: tg.mode(tg.zeros(0, 2), 0), "empty"),
        (lambda x: tg.quantile(x, 1.5), r"\[0, 1\]"),
        (lambda x: tg.quantile(x, 0.5, interpolation="cubic"), "one of linear"),
        (lambda x: tg.quantile(x.long(), 0.5), "f32 or f64"),
        (lambda x: tg.quantile(x, tg.tensor([0.5], dtype=tg.float64)), "of input's type"),
        (lambda x: tg.searchsorted(x, tg.zeros(2, 1)), "sorted sequence"),
        (lambda x: tg.searchsorted(x[0], x, side="middle"), "'left' or 'right'"),
        (lambda x: tg.searchsorted(x[0], x, right=True, side="left"), "contradicts"),
        (lambda x: tg.searchsorted(x[0], x, sorter=tg.arange(3)), "sequence's shape"),
        (lambda x: tg.bucketize(x, x), "one dimension"),
        (lambda x: tg.argsort([3, 1]), "must be a tensor"),
    ],
)
def test_errors_say_what_was_expected(call: Any, words: str) -> None:
    with pytest.raises(TracegradError, match=words):
        call(tg.zeros(3, 4))


# --- against PyTorch --------------------------------------------------------------------------------

#: expressions in x; where torch leaves the index open, only values are compared
PEER = """
T.sort(x, stable=True, dim={d})
T.sort(x, dim={d}, descending=True, stable=True)
T.argsort(x, dim={d}, stable=True)
T.msort(x)
T.topk(x, 2, {d}).values
T.topk(x, 2, {d}, largest=False).values
T.kthvalue(x, 2, {d}).values
T.kthvalue(x, 1, {d}, True).values
T.median(x, {d}).values
T.median(x, {d}, keepdim=True).values
T.nanmedian(x, {d}).values
T.median(x)
T.nanmedian(x)
T.mode(x, {d}).values
T.mode(x, {d}, keepdim=True).values
T.quantile(x, 0.37)
T.quantile(x, 0.37, {d}, True)
T.quantile(x, T.tensor([0.0, 0.25, 1.0], dtype=x.dtype), dim={d})
T.quantile(x, T.tensor([0.1], dtype=x.dtype), dim={d}, keepdim=True)
T.nanquantile(x, 0.61, {d})
T.nanquantile(x, T.tensor([0.3, 0.5], dtype=x.dtype))
T.quantile(x, 0.4, {d}, interpolation="lower")
T.quantile(x, 0.4, {d}, interpolation="higher")
T.quantile(x, 0.5, {d}, interpolation="nearest")
T.quantile(x, 0.4, {d}, interpolation="midpoint")
T.unique(x)
T.unique(x, return_inverse=True, return_counts=True)
T.unique(x, return_counts=True, dim={d})
T.unique_consecutive(x, return_inverse=True, return_counts=True)
T.unique_consecutive(x, return_inverse=True, return_counts=True, dim={d})
T.searchsorted(T.msort(x), x[:2]) if x.dim() == 1 else T.bucketize(x, T.arange(3, dtype=x.dtype))
T.searchsorted(T.sort(x, -1)[0], x, right=True)
T.searchsorted(T.sort(x.reshape(-1))[0], 1.5)
""".strip().splitlines()


def parts(r: Any) -> list[Any]:
    return list(r) if isinstance(r, tuple) else [r]


SHAPES = [((7,), 0), ((4, 5), 1), ((3, 6, 2), -2), ((2, 40), 1)]


@pytest.mark.peer
@pytest.mark.parametrize("source", PEER)
def test_peer(source: str) -> None:
    """Each program once, so that nothing waits for the compiler."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    for k, name in enumerate(("float32", "float64", "int64", "int32", "uint8", "bool")):
        for j, (shape, dim) in enumerate(SHAPES):
            dtype = from_numpy(np.dtype(name))
            assert dtype is not None
            a = draw(rng, Type(dtype, shape))
            if (k + j) % 3 == 0:
                a = np.round(rng.uniform(-4, 9, shape)).astype(a.dtype)
            if a.dtype.kind == "f" and any(w in source for w in ("unique", "mode", "search", "bucket")):
                a = np.nan_to_num(a)  # what PyTorch makes of NaN there depends on the way it takes
            compare(torch, source.format(d=dim), a)


def compare(torch: Any, source: str, a: np.ndarray) -> None:
    try:
        want = parts(eval(source, {"T": torch, "x": torch.from_numpy(a)}))
    except (RuntimeError, NotImplementedError):
        return  # bools mostly, which sort here
    got = parts(eval(source, {"T": tg, "x": tg.from_numpy(a)}))
    for g, w in zip(got, want, strict=True):
        assert str(g.dtype).split(".")[1] == str(w.dtype).split(".")[1], source
        assert tuple(g.shape) == tuple(w.shape), source
        np.testing.assert_allclose(g.numpy(), w.numpy(), rtol=1e-6, err_msg=f"{source} of {a!r}")
    if "unique" in source or not a.size or not np.isfinite(a).all():
        return
    if a.dtype == np.float64 and got[0].dtype is tg.float64:
        gradients = []
        for T in (torch, tg):
            x = T.from_numpy(a.copy()).requires_grad_()
            first = parts(eval(source, {"T": T, "x": x}))[0]
            if not first.requires_grad:
                return
            w = T.from_numpy(np.random.default_rng(8).standard_normal(tuple(first.shape)))
            (g,) = T.autograd.grad((first * w).sum(), x)
            gradients.append(g.numpy())
        if len(np.unique(a)) == a.size or "median(x)" in source or "stable" in source:
            np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-9, atol=1e-12, err_msg=source)


@pytest.mark.peer
def test_peer_gradients_without_ties() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    for source in PEER:
        for shape, dim in SHAPES[1:3]:
            compare(torch, source.format(d=dim), rng.permutation(np.prod(shape)).reshape(shape) * 0.5)
