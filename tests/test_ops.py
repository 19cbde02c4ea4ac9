"""Tests derived from the op registry: every record's shapes, gradient, second derivative and errors, on
its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401 - registers the ops
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, OpError, TracegradError
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.interpreter import decomposition, evaluate, run_node
from tracegrad.ir.op import REGISTRY, Op, Sample
from tracegrad.ir.types import Type

CASES = [(op, s, i) for op in REGISTRY.values() for i, s in enumerate(op.samples())]
IDS = [f"{op.name}-{i}" for op, _, i in CASES]
SMOOTH = [(op, s, i) for op, s, i in CASES if s.smooth and op.differentiable]
SMOOTH_IDS = [f"{op.name}-{i}" for op, _, i in SMOOTH]


def as_dtype(types: tuple[Type, ...], dtype: DType) -> tuple[Type, ...]:
    return tuple(t.with_dtype(dtype) if t.dtype is dtypes.float32 else t for t in types)


def draw(s: Sample, types: tuple[Type, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if s.make is not None:
        return s.make(rng, types)
    out = []
    for k, t in enumerate(types):
        lo, hi = s.domain[k] if isinstance(s.domain[0], tuple) else s.domain
        if t.dtype.kind == "f":
            a = rng.uniform(lo, hi, t.shape)
        elif t.dtype.kind == "b":
            a = rng.random(t.shape) < 0.5
        else:
            a = rng.integers(max(int(lo), 0) if t.dtype.kind == "u" else int(lo), int(hi) + 1, t.shape)
        out.append(np.asarray(a).astype(t.dtype.numpy))
    return out


def program(
    op: Op, types: tuple[Type, ...], attrs: dict[str, Any], s: Sample | None = None
) -> tuple[Graph, Builder, list[Value]]:
    """A graph of one op over its operands as inputs."""
    graph = Graph(op.name)
    b = Builder(graph)
    inputs = [graph.add_input(t) for t in types]
    made = b.emit(op, tuple(inputs), attrs, s.regions_for(types) if s is not None else ())
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    return graph, b, inputs


def floats(values: list[Value]) -> list[Value]:
    return [v for v in values if v.type.dtype.kind == "f"]


def test_every_op_has_samples() -> None:
    assert [op.name for op in REGISTRY.values() if not list(op.samples())] == []


def test_every_op_is_described() -> None:
    assert [op.name for op in REGISTRY.values() if not op.doc] == []


@pytest.mark.parametrize(("op", "s", "i"), CASES, ids=IDS)
def test_inferred_type_is_what_runs(op: Op, s: Sample, i: int) -> None:
    for dtype in (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16):
        types = as_dtype(s.types, dtype)
        if dtype is not dtypes.float32 and (types == s.types or op.name == "bitcast"):
            continue
        graph, _, _ = program(op, types, s.attrs, s)
        out, updates = evaluate(graph, draw(s, types))
        assert updates == []
        for v, a in zip(graph.outputs, out):
            assert a.shape == v.type.shape
            assert a.dtype == v.type.dtype.numpy


@pytest.mark.parametrize(("op", "s", "i"), CASES, ids=IDS)
def test_wide_evaluation_agrees(op: Op, s: Sample, i: int) -> None:
    """f32 with its roundings is near the same program in f64."""
    if op.name == "bitcast" or any(a is dtypes.float32 and op.name == "cast" for a in s.attrs.values()):
        pytest.skip("bits of another type")
    graph, _, _ = program(op, s.types, s.attrs, s)
    arrays = draw(s, s.types)
    near, _ = evaluate(graph, arrays)
    exact, _ = evaluate(graph, arrays, dtype=dtypes.float64)
    for v, a, e in zip(graph.outputs, near, exact):
        if v.type.dtype is dtypes.float32:
            assert e.dtype == np.float64
        np.testing.assert_allclose(
            a.astype(np.float64),
            e.astype(np.float64),
            rtol=1e-5,
            atol=1e-5 if v.type.dtype.bits > 16 else 1e-2,
        )


def directional(op: Op, s: Sample, seed: int) -> tuple[float, float]:
    """(<gradient, direction> by the rules, the same by central differences), in f64."""
    types = as_dtype(s.types, dtypes.float64)
    graph, b, inputs = program(op, types, s.attrs, s)
    arrays = draw(s, types, seed)
    rng = np.random.default_rng(seed + 1)
    outs = floats(graph.outputs)
    seeds = {v: graph.add_input(v.type) for v in outs}
    weights = [rng.standard_normal(v.type.shape) for v in outs]
    wrt = floats(inputs)
    grads = backward(b, seeds, wrt)
    directions = {v: rng.standard_normal(v.type.shape) for v in wrt}
    forward = list(graph.outputs)
    graph.outputs = [grads[v] for v in wrt if v in grads]
    for v, g in zip([v for v in wrt if v in grads], graph.outputs):
        assert g.type == v.type
    found, _ = evaluate(graph, [*arrays, *weights])
    slope = sum(float(np.sum(g * directions[v])) for v, g in zip([v for v in wrt if v in grads], found))

    plain, _, _ = program(op, types, s.attrs, s)
    eps = 1e-6

    def value(sign: float) -> float:
        moved = [
            a + sign * eps * directions[v] if v in directions and v in grads else a
            for v, a in zip(inputs, arrays)
        ]
        made, _ = evaluate(plain, moved)
        kept = [a for v, a in zip(forward, made) if v.type.dtype.kind == "f"]
        return sum(float(np.sum(a * w)) for a, w in zip(kept, weights))

    return slope, (value(1) - value(-1)) / (2 * eps)


@pytest.mark.parametrize(("op", "s", "i"), SMOOTH, ids=SMOOTH_IDS)
def test_gradient_is_the_slope(op: Op, s: Sample, i: int) -> None:
    if op.name == "cast" and s.attrs["dtype"].bits < 64:
        pytest.skip("a step too small for the type")
    for seed in (0, 10):
        slope, measured = directional(op, s, seed)
        assert slope == pytest.approx(measured, rel=2e-5, abs=2e-6)


def test_gradients_reach_every_float_operand() -> None:
    """Ops whose operands are all floats give each of them a gradient, but for the ones listed."""
    constant = {
        "nll_loss": {2},
        "cross_entropy": {2},
    }
    for op, s, _ in SMOOTH:
        graph, b, inputs = program(op, s.types, s.attrs, s)
        seeds = {v: graph.add_input(v.type) for v in floats(graph.outputs)}
        if not seeds:
            continue
        found = backward(b, seeds, floats(inputs))
        for k, v in enumerate(inputs):
            if v.type.dtype.kind == "f" and v.type.numel and k not in constant.get(op.name, ()):
                assert v in found, f"{op.name} operand {k}"


# Ops whose second derivative is taken too: one of every way a rule is written.
TWICE = """
mul div pow pow_scalar exp log sin tanh sigmoid sqrt rsqrt reciprocal erf gelu silu softplus mish
elu atan2 logaddexp hypot addcdiv lerp sum mean prod var std norm logsumexp softmax log_softmax
contract matmul linear layer_norm rms_norm group_norm batch_norm batch_norm_eval mse_loss
binary_cross_entropy_with_logits cross_entropy kl_div take gather index index_put scatter slice
slice_put pad concat permute expand reshape diagonal scaled_dot_product_attention glu
cosine_similarity embedding cond while scan
convolution convolution_input_grad convolution_weight_grad windows windows_sum window_terms
max_pool avg_pool adaptive_avg_pool adaptive_max_pool upsample pad_around
"""


@pytest.mark.parametrize("name", TWICE.split())
def test_second_derivative(name: str) -> None:
    """The gradient of <gradient, v> is the slope of that function."""
    op = REGISTRY[name]
    for s in [s for s in op.samples() if s.smooth][:3]:
        check_second(op, s)


def check_second(op: Op, s: Sample) -> None:
    types = as_dtype(s.types, dtypes.float64)
    arrays = draw(s, types, 3)
    graph, b, inputs = program(op, types, s.attrs, s)
    rng = np.random.default_rng(5)
    wrt = floats(inputs)
    ones = {v: graph.add_input(v.type) for v in floats(graph.outputs)}
    weights = [rng.standard_normal(v.type.shape) for v in ones]
    first = backward(b, ones, wrt)
    vectors = {v: graph.add_input(v.type) for v in first}
    values = [rng.standard_normal(v.type.shape) for v in first]
    wrt = [v for v in wrt if v in first]
    product = {first[v]: vectors[v] for v in first}
    second = backward(b, product, wrt)
    graph.outputs = [first[v] for v in first] + [second[v] for v in second]
    directions = {v: rng.standard_normal(v.type.shape) for v in second}

    def run(sign: float) -> list[np.ndarray]:
        eps = 1e-6
        moved = [a + sign * eps * directions[v] if v in directions else a for v, a in zip(inputs, arrays)]
        return evaluate(graph, [*moved, *weights, *values])[0]

    n = len(first)
    slope = sum(float(np.sum(h * directions[v])) for v, h in zip(second, run(0)[n:]))
    up, down = (sum(float(np.sum(g * v)) for g, v in zip(run(k)[:n], values)) for k in (1, -1))
    assert slope == pytest.approx((up - down) / 2e-6, rel=5e-5, abs=5e-6)


@pytest.mark.parametrize("name", [op.name for op in REGISTRY.values() if op.decompose is not None])
def test_decomposition_has_the_inferred_type(name: str) -> None:
    """...and consists of ops that end in scalar and kernel ops."""

    def check(node: Node, depth: int) -> None:
        assert depth < 10
        for inner in decomposition(node).nodes:
            if inner.op.decompose is not None:
                check(inner, depth + 1)

    for s in REGISTRY[name].samples():
        for dtype in (dtypes.float32, dtypes.bfloat16):
            graph, _, _ = program(REGISTRY[name], as_dtype(s.types, dtype), s.attrs, s)
            check(graph.nodes[0], 0)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in REGISTRY if n != "backward_hook"])  # which takes anything
def test_wrong_operand_count_names_the_op(name: str) -> None:
    op = REGISTRY[name]
    s = next(iter(op.samples()))
    graph = Graph()
    b = Builder(graph)
    extra = [graph.add_input(Type(dtypes.float32, (2, 9, 1, 3 + k))) for k in range(7)]
    with pytest.raises(OpError) as e:
        b.emit(op, tuple(extra), s.attrs)
    assert str(e.value).startswith(f"{name}(f32[2,9,1,3], ")
    if s.types:
        with pytest.raises(OpError) as e:
            b.emit(op, (), s.attrs)
        assert str(e.value).startswith(f"{name}(")
    assert graph.nodes == []


@pytest.mark.parametrize("name", list(REGISTRY))
def test_unknown_attribute_names_the_op(name: str) -> None:
    op = REGISTRY[name]
    s = next(iter(op.samples()))
    graph = Graph()
    inputs = tuple(graph.add_input(t) for t in s.types)
    with pytest.raises(OpError, match="no_such_attribute") as e:
        Builder(graph).emit(
            op, inputs, {**s.attrs, "no_such_attribute": 1}, s.regions_for(s.types)
        )
    assert name in str(e.value)
    assert op.usage in str(e.value)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda b, f, i: b.add(f, i), DTypeError, "one dtype, got f32 and i64"),
        (lambda b, f, i: b.sqrt(i), DTypeError, "floating-point"),
        (lambda b, f, i: b.bitwise_and(f, f), DTypeError, "integer"),
        (lambda b, f, i: b.where(f, f, f), DTypeError, "bool condition"),
        (lambda b, f, i: b.add(f, b.reshape(f, shape=(4, 3))), OpError, "do not broadcast"),
        (lambda b, f, i: b.reshape(f, shape=(5,)), OpError, "has 12"),
        (lambda b, f, i: b.permute(f, dims=(0,)), OpError, "each of the 2"),
        (lambda b, f, i: b.permute(f, dims=(0, 0)), OpError, "twice"),
        (lambda b, f, i: b.expand(f, shape=(3, 5)), OpError, "only size 1"),
        (lambda b, f, i: b.slice(f, start=(0, 0), stop=(3, 9), step=(1, 1)), OpError, "0:9:1"),
        (lambda b, f, i: b.sum(f, axes=(2,)), IndexError, "out of range"),
        (lambda b, f, i: b.sum(f), OpError, "axes"),
        (
            lambda b, f, i: b.amax(b.full(shape=(0,), value=0.0, dtype=dtypes.float32), axes=(0,)),
            OpError,
            "empty",
        ),
        (lambda b, f, i: b.mm(f, f), OpError, "inner dimensions differ: 4 of"),
        (lambda b, f, i: b.matmul(f, f), OpError, "inner dimensions differ"),
        (lambda b, f, i: b.contract(f, f, spec="mk,kn->mn"), OpError, "'k'"),
        (lambda b, f, i: b.contract(f, f, spec="mk,mk->z"), OpError, "in the result only"),
        (lambda b, f, i: b.contract(f, f, spec="ab,cb->ab"), OpError, "sum over it first"),
        (lambda b, f, i: b.linear(f, f, b.sum(f, axes=(0,))), OpError, "expected a bias of shape"),
        (lambda b, f, i: b.concat(f, i, dim=0), DTypeError, "one dtype"),
        (lambda b, f, i: b.concat(f, b.t(f), dim=0), OpError, "equal shapes but for dimension 0"),
        (lambda b, f, i: b.take(f, f, dim=0), DTypeError, "integer indices"),
        (lambda b, f, i: b.cross_entropy(f, f, reduction="avg"), OpError, "one of none, mean, sum"),
        (lambda b, f, i: b.cross_entropy(f, i), OpError, "expected targets of shape \\[3\\]"),
        (lambda b, f, i: b.gelu(f, approximate="fast"), OpError, "'none' or 'tanh'"),
        (lambda b, f, i: b.layer_norm(f, normalized_shape=(3,)), OpError, "ends in dimensions"),
        (lambda b, f, i: b.pow_scalar(i, exponent=-1), OpError, "cast it to float"),
        (lambda b, f, i: b.select(f, dim=0, index=3), IndexError, "index 3 is out of range"),
        (lambda b, f, i: b.summ(f), AttributeError, "did you mean"),
    ],
)
def test_error_says_what_was_expected(call: Any, kind: type[Exception], words: str) -> None:
    graph = Graph()
    f = graph.add_input(Type(dtypes.float32, (3, 4)))
    i = graph.add_input(Type(dtypes.int64, (3, 4)))
    with pytest.raises(kind, match=words) as e:
        call(Builder(graph), f, i)
    if kind is not AttributeError:
        assert isinstance(e.value, TracegradError)
        assert "[" in str(e.value)  # operand types


# --- meaning, against plain NumPy -----------------------------------------------------------------


def run(name: str, *arrays: Any, **attrs: Any) -> np.ndarray:
    values = [np.asarray(a) for a in arrays]
    types = tuple(Type(dtypes.from_numpy(a.dtype) or dtypes.float32, a.shape) for a in values)
    graph, _, _ = program(REGISTRY[name], types, attrs)
    return run_node(graph.nodes[0], values)[0]


RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, 5))
Y = RNG.standard_normal((3, 5))


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize(
    ("name", "args", "attrs", "expected"),
    [
        ("mean", (X,), {"axes": (1,)}, X.mean(1)),
        ("var", (X,), {"axes": (0,)}, X.var(0, ddof=1)),
        ("std", (X,), {"axes": (0, 1), "correction": 0}, X.std()),
        ("norm", (X,), {"axes": (1,), "p": 3.0}, (np.abs(X) ** 3).sum(1) ** (1 / 3)),
        ("norm", (X,), {"axes": (1,), "p": float("-inf")}, np.abs(X).min(1)),
        ("logsumexp", (X,), {"axes": (1,)}, np.log(np.exp(X).sum(1))),
        ("softmax", (X,), {"dim": 0}, _softmax(X, 0)),
        ("log_softmax", (X,), {"dim": -1}, np.log(_softmax(X, 1))),
        ("mse_loss", (X, Y), {}, ((X - Y) ** 2).mean()),
        ("l1_loss", (X, Y), {"reduction": "sum"}, np.abs(X - Y).sum()),
        ("cross_entropy", (X, np.array([0, 4, 2])), {}, -np.log(_softmax(X, 1))[range(3), [0, 4, 2]].mean()),
        (
            "cross_entropy",
            (X, np.array([0, -100, 2])),
            {},
            -np.log(_softmax(X, 1))[[0, 2], [0, 2]].mean(),
        ),
        ("matmul", (X, Y.T), {}, X @ Y.T),
        ("linear", (X, Y, Y[:, 0]), {}, X @ Y.T + Y[:, 0]),
        ("addmm", (Y[:, :3], X, Y.T), {"beta": 0.5, "alpha": 2.0}, 0.5 * Y[:, :3] + 2 * X @ Y.T),
        (
            "layer_norm",
            (X,),
            {"normalized_shape": (5,)},
            (X - X.mean(1)[:, None]) / np.sqrt(X.var(1) + 1e-5)[:, None],
        ),
        ("batch_norm", (X,), {}, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)),
        ("tril", (X,), {"diagonal": 1}, np.tril(X, 1)),
        ("diagonal", (X,), {"offset": 1}, np.diagonal(X, 1)),
        ("diag_embed", (X[0],), {"offset": -1}, np.diag(X[0], -1)),
        ("roll", (X,), {"shifts": (1, -2), "dims": (0, 1)}, np.roll(X, (1, -2), (0, 1))),
        ("repeat", (X,), {"repeats": (2, 1, 3)}, np.tile(X, (2, 1, 3))),
        ("repeat_interleave", (X,), {"repeats": 2, "dim": 1}, np.repeat(X, 2, 1)),
        ("stack", (X, Y), {"dim": 1}, np.stack([X, Y], 1)),
        ("eye", (), {"n": 3, "m": 4}, np.eye(3, 4)),
        ("linspace", (), {"start": 0.0, "end": 2.0, "n": 5}, np.linspace(0, 2, 5)),
        ("arange", (), {"n": 4, "start": 1, "step": 3}, np.arange(1, 13, 3)),
        ("one_hot", (np.array([2, 0]),), {"num_classes": 3}, np.eye(3)[[2, 0]]),
        ("bincount", (np.array([2, 0, 2]),), {"size": 4}, np.bincount([2, 0, 2], minlength=4)),
        ("gcd", (np.array([12, -18, 0, 7]), np.array([18, 12, 5, 0])), {}, [6, 6, 5, 7]),
        ("lcm", (np.array([4, -6, 0]), np.array([6, 4, 5])), {}, [12, 12, 0]),
        ("floor_divide", (np.array([7, -7, 7, -7, 5]), np.array([2, 2, -2, -2, 0])), {}, [3, -4, -4, 3, 0]),
        ("trunc_divide", (np.array([7, -7, 7, -7, 6]), np.array([2, 2, -2, -2, -3])), {}, [3, -3, -3, 3, -2]),
        ("remainder", (np.array([7, -7, 7, -7]), np.array([3, 3, -3, -3])), {}, [1, 2, -2, -1]),
        ("fmod", (np.array([7, -7, 7, -7]), np.array([3, 3, -3, -3])), {}, [1, -1, 1, -1]),
        (
            "pow",
            (np.array([2, -2, 3, 1, -1, 5]), np.array([10, 3, 0, -4, -3, -1])),
            {},
            [1024, -8, 1, 1, -1, 0],
        ),
        ("bitwise_left_shift", (np.array([1, 1, -1]), np.array([3, 64, -1])), {}, [8, 0, 0]),
        ("bitwise_right_shift", (np.array([-8, -8, 8]), np.array([1, 70, 64])), {}, [-4, -1, 0]),
        ("argmax", (np.array([1.0, np.nan, 3.0, np.nan]),), {"dim": 0}, 1),
        ("argmin", (np.array([2.0, 1.0, 1.0]),), {"dim": 0}, 1),
        ("add", (np.array([True, False]), np.array([True, True])), {}, [True, True]),
        ("mul", (np.array([True, False]), np.array([True, True])), {}, [True, False]),
        ("scatter", (np.zeros(3), np.array([0, 0, 2]), np.ones(3)), {"dim": 0, "reduce": "add"}, [2, 0, 1]),
        ("scatter", (np.zeros(3), np.array([1, 1]), np.array([4.0, 5.0])), {"dim": 0}, [0, 5, 0]),
        ("index", (X, np.array([0, -1]), np.array([1, 2])), {"dims": (0, 1)}, X[[0, -1], [1, 2]]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_meaning(name: str, args: tuple[Any, ...], attrs: dict[str, Any], expected: Any) -> None:
    got = run(name, *args, **attrs)
    assert got.shape == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)


def test_attention_ignores_masked_keys_and_rows_without_any() -> None:
    q, k, v = (RNG.standard_normal((4, 3)) for _ in range(3))
    mask = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], bool)
    got = run("scaled_dot_product_attention", q, k, v, mask)
    scores = q @ k.T / np.sqrt(3)
    for row in (0, 2, 3):
        keys = mask[row]
        np.testing.assert_allclose(got[row], _softmax(scores[row, keys], 0) @ v[keys])
    np.testing.assert_array_equal(got[1], 0)


# --- structure of the records ---------------------------------------------------------------------


def pieces(
    op: Op, types: tuple[Type, ...], out: Type, arrays: list[np.ndarray], index: tuple[int, ...], attrs: Any
) -> Any:
    """The element `pull` says the result has at `index`, index expressions evaluated by hand."""
    from tracegrad.ir import expr
    from tracegrad.ir.expr import Cast, Const, Expr, Prim
    from tracegrad.ir.scalar import PRIMITIVES

    def value(e: Expr) -> Any:
        if isinstance(e, Const):
            return np.asarray(e.value)
        if isinstance(e, Cast):
            return value(e.x).astype(e.dtype.numpy)
        assert isinstance(e, Prim), e
        return PRIMITIVES[e.name].numpy(*(value(a) for a in e.args))

    def read(k: int, at: tuple[Expr, ...]) -> Expr:
        return expr.Const(int(arrays[k][tuple(int(value(i)) for i in at)]), types[k].dtype)

    assert op.pull is not None
    for p in op.pull(tuple(expr.as_index(i) for i in index), types, out, read, **attrs):
        if p.where is None or value(p.where):
            return arrays[p.operand][tuple(int(value(i)) for i in p.index)]
    return np.asarray(attrs.get("value", 0)).astype(out.dtype.numpy)


@pytest.mark.parametrize("name", [op.name for op in REGISTRY.values() if op.pull is not None])
def test_pull_agrees_with_numpy(name: str) -> None:
    op = REGISTRY[name]
    for s in op.samples():
        arrays = draw(s, s.types)
        graph, _, _ = program(op, s.types, s.attrs, s)
        (made,) = evaluate(graph, arrays)[0]
        for index in np.ndindex(made.shape):
            assert pieces(op, s.types, graph.outputs[0].type, arrays, index, s.attrs) == made[index]


@pytest.mark.parametrize(
    "name", [op.name for op in REGISTRY.values() if op.unview is not None and op.name != "expand"]
)
def test_unview_puts_the_view_back(name: str) -> None:
    """Reading the view from the written base gives what was written; writing the view itself changes
    nothing."""
    op = REGISTRY[name]
    for s in op.samples():
        graph, b, (base,) = program(op, s.types, s.attrs, s)
        view = graph.outputs[0]
        new = graph.add_input(view.type)
        assert op.unview is not None
        written = op.unview(b, base, new, **s.attrs)
        assert written.type == base.type
        seen: Any = b.emit(op, (written,), s.attrs)
        graph.outputs = [seen, op.unview(b, base, view, **s.attrs)]
        arrays = [
            *draw(s, s.types),
            np.random.default_rng(1).standard_normal(view.type.shape).astype(np.float32),
        ]
        again, same = evaluate(graph, arrays)[0]
        np.testing.assert_array_equal(again, arrays[1])
        np.testing.assert_array_equal(same, arrays[0])


def test_expanded_tensors_are_not_written_through() -> None:
    graph, b, (base,) = program(REGISTRY["expand"], (Type(dtypes.float32, (1,)),), {"shape": (3,)})
    unview = REGISTRY["expand"].unview
    assert unview is not None
    with pytest.raises(OpError, match="clone"):
        unview(b, base, graph.outputs[0], shape=(3,))
