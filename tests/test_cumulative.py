"""Cumulative ops: schedules for every layout and machine, gradients where elements are zero or infinite,
functions and methods."""

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
from tracegrad.ir.dtypes import DType, bfloat16, bool_, float16, float32, float64, int32, int64, uint8
from tracegrad.ir.errors import TracegradError
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered, host_machine

SCANS = ["cumsum", "cumprod", "logcumsumexp", "cumargmax", "cumargmin", "recurrence"]
SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0]


def scan_graph(name: str, dtype: DType, shape: tuple[int, ...], dim: int, turned: bool = False) -> Graph:
    """The op on inputs, or on what is computed of them and reaches it transposed."""
    graph = Graph(name)
    b = Builder(graph)
    values: list[Any] = []
    for k in range(2 if name == "recurrence" else 1):
        v: Any = graph.add_input(Type(dtype, shape[::-1] if turned else shape), f"x{k}")
        if turned:
            v = b.permute(b.mul(v, v) if dtype.kind != "b" else v, dims=tuple(range(len(shape)))[::-1])
        values.append(v)
    out = getattr(b, name)(*values, dim=dim)
    graph.outputs = [b.neg(out) if turned else out]
    return graph


def draw(rng: np.random.Generator, t: Type, special: bool) -> np.ndarray:
    if t.dtype.kind == "f":
        a = rng.uniform(-1.5, 1.5, t.shape)
        if special and a.size:
            a.reshape(-1)[rng.integers(0, a.size, 1 + a.size // 8)] = rng.choice(SPECIAL, 1 + a.size // 8)
    elif t.dtype.kind == "b":
        a = rng.integers(0, 2, t.shape)
    else:
        a = rng.integers(0 if t.dtype.kind == "u" else -4, 4, t.shape)
    return np.asarray(a).astype(t.dtype.numpy)


SHAPES = st.lists(st.sampled_from([1, 2, 3, 5, 7, 16, 17, 33, 40]), min_size=1, max_size=3).filter(
    lambda s: np.prod(s) <= 3000
)


@settings(max_examples=60)
@given(st.sampled_from(SCANS), SHAPES, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 3))
def test_loops_agree_with_the_interpreter(
    name: str, shape: list[int], dim: int, turned: bool, special: bool, machine: int
) -> None:
    rng = np.random.default_rng(len(shape) + dim)
    graph = scan_graph(name, float32, tuple(shape), dim % len(shape), turned)
    check(graph, [draw(rng, v.type, special) for v in graph.inputs], MACHINES[machine])


def native(graph: Graph, arrays: list[np.ndarray], threads: int) -> list[np.ndarray]:
    machine = replace(host_machine(), threads=threads, parallel_cycles=100)
    buffers = [copy_of(a, v.type.dtype) for a, v in zip(arrays, graph.inputs)]
    made = Executable(Lowered(graph, machine))(buffers)
    return [m.array.copy() for m in made]


@pytest.mark.parametrize("dtype", [float32, float64, float16, bfloat16, int64, int32, uint8, bool_])
@pytest.mark.parametrize("name", SCANS)
def test_native_agrees_for_any_number_of_threads(name: str, dtype: DType) -> None:
    """One program of several shapes; the same with one thread and with two."""
    takes = {"f"} if name in ("logcumsumexp", "recurrence") else set("fiu")
    takes |= {"b"} if name.startswith("cumarg") else set()
    if dtype.kind not in takes:
        pytest.skip("not an operand of this op")
    rng = np.random.default_rng(3)
    graph = Graph(name)
    b = Builder(graph)
    arrays: list[np.ndarray] = []
    for shape, dim in (((400, 33), 0), ((400, 33), 1), ((3, 5, 67), 1), ((70,), 0), ((90, 2), 0)):
        values = [graph.add_input(Type(dtype, shape)) for _ in range(2 if name == "recurrence" else 1)]
        arrays += [draw(rng, v.type, shape[0] != 400) for v in values]
        graph.outputs.append(getattr(b, name)(*values, dim=dim))
    want, _ = evaluate(graph, arrays)
    one, two = native(graph, arrays, 1), native(graph, arrays, 2)
    for w, a, c in zip(want, one, two):
        if dtype.kind == "f":
            a, c, w = (x.astype(np.float64) for x in (a, c, w))
        np.testing.assert_array_equal(a, c)
        if dtype.kind != "f" or name.startswith("cumarg"):
            np.testing.assert_array_equal(a, w)
        else:
            tolerance = 2e-6 if dtype.bits >= 32 else 4e-2
            np.testing.assert_allclose(a, w, rtol=tolerance, atol=tolerance)


def test_what_leads_to_a_scan_is_fused_into_it() -> None:
    graph = scan_graph("cumsum", float32, (6, 50), 1, turned=True)
    graph.outputs = [graph.outputs[0].node.operands[0]]
    program = schedule(optimize(graph), AVX512)
    assert len(program.kernels) == 1 and not program.arena_bytes


@pytest.mark.parametrize("machine", [AVX512, AVX2, SMALL])
def test_the_code_does_not_grow_with_the_size(machine: Any) -> None:
    machine = replace(machine, threads=2)
    for dim in (0, 1):
        sizes = [
            len(str(schedule(scan_graph("cumsum", float32, shape, dim), machine)).splitlines())
            for shape in ((640, 640), (6400, 6400))
        ]
        assert sizes[0] == sizes[1]


def test_a_sum_of_many_floats_is_accurate() -> None:
    x = np.full(1_000_000, 0.1, np.float32)
    graph = scan_graph("cumsum", float32, x.shape, 0)
    (got,) = native(graph, [x], 1)
    np.testing.assert_allclose(got, np.cumsum(x, dtype=np.float64), rtol=1e-7)


# --- gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "logcumsumexp", "recurrence", "cummax"])
def test_second_derivative(name: str) -> None:
    op = REGISTRY[name]
    for s in [s for s in op.samples() if s.smooth][:3]:
        check_second(op, s)


def test_the_gradient_of_a_product_with_zeros() -> None:
    x = tg.tensor([[2.0, 0.0, 3.0, 0.0, 5.0], [1.0, 2.0, 0.0, 4.0, 5.0]], requires_grad=True)
    weights = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0], np.float32)
    (tg.cumprod(x, 1) * tg.from_numpy(weights)).sum().backward()
    a = x.detach().numpy()
    want = np.zeros_like(a)
    for i in range(5):
        others = np.where(np.arange(5) == i, 1, a)
        want[:, i] = (np.cumprod(others, 1) * weights)[:, i:].sum(1)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), want)


def test_the_gradient_of_a_log_sum_has_no_overflow() -> None:
    x = tg.tensor([800.0, -800.0, 0.0, 801.0], requires_grad=True)
    tg.logcumsumexp(x, 0).sum().backward()
    e = np.exp(-1.0)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [3 + e / (1 + e), 0, 0, 1 / (1 + e)], rtol=1e-4)


def test_a_gradient_to_any_order() -> None:
    """The third derivative of x1 x2 x3 x4 by x1, x2, x3 is x4."""
    x = tg.tensor([0.0, 0.0, 2.0, 7.0], requires_grad=True, dtype=tg.float64)
    y = tg.cumprod(x, 0)[3]
    for i in range(3):
        (g,) = tg.autograd.grad(y, x, create_graph=True)
        y = g[i]
    assert y.item() == 7.0


# --- functions --------------------------------------------------------------------------------------


def test_dtypes_and_arguments() -> None:
    x = tg.tensor([[1, 2, 3], [4, 5, 6]], dtype=tg.int32)
    assert tg.cumsum(x, -1).tolist() == [[1, 3, 6], [4, 9, 15]]
    assert tg.cumsum(x, 0).dtype is tg.int64 and x.cumprod(dim=1).dtype is tg.int64
    assert tg.cumsum(x, 0, dtype=tg.float64).dtype is tg.float64
    assert tg.cumsum(x > 2, 1).tolist() == [[0, 0, 1], [1, 2, 3]]
    out = tg.empty(2, 3, dtype=tg.int64)
    assert tg.cumsum(x, 1, out=out) is out and out.tolist() == [[1, 3, 6], [4, 9, 15]]
    assert tg.cumsum(tg.tensor(2.5), 0).item() == 2.5
    assert tg.cumsum(tg.zeros(0, 3), 0).shape == (0, 3)


def test_in_place() -> None:
    x = tg.tensor([1.0, 2.0, 3.0])
    y = x[1:]
    assert y.cumsum_(0) is y and x.tolist() == [1, 2, 5]
    x.cumprod_(0)
    assert x.tolist() == [1, 2, 10] and y.tolist() == [2, 10]


def test_extrema_name_their_results() -> None:
    r = tg.cummax(tg.tensor([1.0, 3.0, 3.0, 2.0, float("nan"), 5.0]), 0)
    assert r.indices.tolist() == [0, 1, 2, 2, 4, 4]
    np.testing.assert_array_equal(r.values.numpy(), [1, 3, 3, 3, np.nan, np.nan])
    values, indices = tg.cummin(tg.tensor([[3, 1, 1], [0, 2, 0]]), dim=1)
    assert values.tolist() == [[3, 1, 1], [0, 0, 0]] and indices.tolist() == [[0, 1, 2], [0, 0, 2]]
    assert "return_types.cummax" in repr(r)


def test_compiled_training_through_scans() -> None:
    """Lazy and compiled give the same loss and gradient."""
    data = tg.from_numpy(np.random.default_rng(0).uniform(0.1, 1, (4, 9)).astype(np.float32))

    def loss_of(w: Any) -> Any:
        x = data * w
        products = (tg.cumsum(x, 1) * tg.cumprod(x, 0)).sum()
        return products + tg.logcumsumexp(x, 1).mean() + x.cummax(1)[0].sum()

    def gradient(w: Any) -> Any:
        loss = loss_of(w)
        (g,) = tg.autograd.grad(loss, w)
        return loss, g

    w = tg.ones(9, requires_grad=True)
    plain = gradient(w)
    compiled = tg.compile(gradient)
    for _ in range(2):
        for a, c in zip(plain, compiled(w)):
            np.testing.assert_allclose(c.detach().numpy(), a.detach().numpy(), rtol=2e-6)


@pytest.mark.parametrize("name", ["cumsum", "argsort", "scatter"])
def test_a_result_that_is_given_out_and_kept_as_state(name: str) -> None:
    """Two buffers are written: the output and the updated input."""
    state = tg.zeros(20, dtype=tg.int64)
    makers: dict[str, Any] = {
        "cumsum": lambda x: tg.cumsum(x, 0),
        "argsort": tg.argsort,
        "scatter": lambda x: tg.scatter(tg.zeros(20, dtype=tg.int64), 0, x % 20, x),
    }

    @tg.compile
    def step(x: Any) -> Any:
        made = makers[name](x)
        state.copy_(made)
        return made

    x = tg.from_numpy(np.random.default_rng(0).permutation(60)[:20])
    for _ in range(2):
        assert step(x).tolist() == state.tolist() == makers[name](x).tolist()


def test_differences_and_integrals() -> None:
    y = np.random.default_rng(1).uniform(-1, 1, (3, 6)).astype(np.float32)
    t, x = tg.from_numpy(y), np.sort(np.random.default_rng(2).uniform(0, 5, 6)).astype(np.float32)
    for n in range(8):
        np.testing.assert_allclose(tg.diff(t, n).numpy(), np.diff(y, n), atol=1e-6)
    np.testing.assert_allclose(
        tg.diff(t, dim=0, prepend=tg.zeros(1, 6), append=tg.ones(2, 6)).numpy(),
        np.diff(y, axis=0, prepend=np.zeros((1, 6), np.float32), append=np.ones((2, 6), np.float32)),
        atol=1e-6,
    )
    assert tg.diff(tg.tensor([True, False, False])).tolist() == [True, False]
    np.testing.assert_allclose(tg.trapezoid(t, dx=0.5).numpy(), np.trapezoid(y, dx=0.5), rtol=1e-5)
    np.testing.assert_allclose(tg.trapz(t, tg.from_numpy(x)).numpy(), np.trapezoid(y, x), rtol=1e-5)
    np.testing.assert_allclose(
        tg.cumulative_trapezoid(t, tg.from_numpy(x))[:, -1].numpy(), np.trapezoid(y, x), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: tg.cumsum(x, 2), "out of range"),
        (lambda x: tg.cumsum(x, 1.0), "dim must be an integer"),
        (lambda x: tg.logcumsumexp(x.long(), 0), "floating-point"),
        (lambda x: tg.cumsum([1, 2], 0), "must be a tensor"),
        (lambda x: tg.diff(x, n=-1), "must not be negative"),
        (lambda x: tg.diff(tg.tensor(1.0)), "at least one dimension"),
        (lambda x: tg.trapezoid(x, x, dx=1), "x or dx"),
        (lambda x: tg.cummax(tg.zeros(2, 3), -3), "out of range"),
    ],
)
def test_errors_say_what_was_expected(call: Any, words: str) -> None:
    with pytest.raises(TracegradError, match=words):
        call(tg.zeros(3, 4))


# --- against PyTorch --------------------------------------------------------------------------------

CASES = [
    (name, shape, dim)
    for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
    for shape, dim in (
        ((5,), 0),
        ((4, 6), 1),
        ((4, 6), -2),
        ((2, 3, 5), 1),
        ((), 0),
        ((0, 3), 0),
        ((3, 0), 1),
    )
]


@pytest.mark.peer
@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize(("name", "shape", "dim"), CASES)
def test_peer(name: str, shape: tuple[int, ...], dim: int, special: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    for dtype in (float64, float32, int64, int32, uint8, bool_):
        a = draw(rng, Type(dtype, shape), special)
        theirs, ours = torch.from_numpy(a), tg.from_numpy(a)
        try:
            want = getattr(torch, name)(theirs, dim)
        except (RuntimeError, NotImplementedError):
            with pytest.raises(TracegradError):
                getattr(tg, name)(ours, dim)
            continue
        got = getattr(tg, name)(ours, dim)
        for g, w in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
            assert str(g.dtype).split(".")[1] == str(w.dtype).split(".")[1]
            np.testing.assert_allclose(g.numpy(), w.numpy(), rtol=2e-6 if dtype is float32 else 1e-12)
        if dtype is float64 and (a.ndim or not special):
            check_gradient(torch, name, a, dim, special)


def check_gradient(torch: Any, name: str, a: np.ndarray, dim: int, special: bool) -> None:
    """First and second derivatives; the second where all is finite."""
    weights = np.random.default_rng(6).standard_normal(a.shape)
    found = []
    for T in (torch, tg):
        x = T.from_numpy(a.copy()).requires_grad_()
        w = T.from_numpy(weights).requires_grad_()
        y = getattr(T, name)(x, dim)
        y = y[0] if isinstance(y, tuple) else y
        (g,) = T.autograd.grad((y * w).sum(), x, create_graph=True)
        both = [g.detach().numpy()]
        if a.size and a.ndim and not special and name not in ("cummax", "cummin", "cumsum"):
            second = T.autograd.grad((g * g).sum(), (x, w))
            both += [s.numpy() for s in second]
        found.append(both)
    if special and name != "cummax" and name != "cummin" and name != "cumsum":
        # PyTorch divides by the elements, so where one is not finite its gradients are NaN more often.
        known = np.isfinite(found[0][0])
        found = [[np.where(known, g, 0) for g in both] for both in found]
    for g, w in zip(found[1], found[0]):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-9)
