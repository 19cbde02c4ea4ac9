"""The op records against PyTorch: values and gradients, infinities, NaN, signed zeros and kinks included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad.ir.ops  # noqa: F401
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY
from tracegrad.ir.types import Type

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.peer

INF, NAN = float("inf"), float("nan")
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        3.0,
        -3.0,
        1.5,
        -2.5,
        6.0,
        1e-3,
        20.5,
        -20.5,
        100.0,
        -100.0,
        1e30,
        INF,
        -INF,
        NAN,
    ],
    np.float32,
)
rng = np.random.default_rng(0)
POINTS = np.concatenate([SPECIAL, rng.uniform(-4, 4, 50).astype(np.float32)])
PAIR = tuple(m.reshape(-1).copy() for m in np.meshgrid(SPECIAL, SPECIAL))


def ours(
    name: str, arrays: list[np.ndarray], attrs: dict[str, Any]
) -> tuple[list[np.ndarray], list[Any], str]:
    """(results, gradients of the sum of the first by float operand, grad_fn name)."""
    graph = Graph()
    b = Builder(graph)
    inputs = []
    for a in arrays:
        dtype = dtypes.from_numpy(a.dtype)
        assert dtype is not None
        inputs.append(graph.add_input(Type(dtype, a.shape)))
    made = b.emit(REGISTRY[name], tuple(inputs), attrs)
    graph.outputs = list(made) if isinstance(made, tuple) else [made]
    node, n, grads = graph.nodes[-1], len(graph.outputs), {}
    out = graph.outputs[0]
    if out.type.dtype.kind == "f" and node.op.differentiable:
        seed = b.full(shape=out.type.shape, value=1.0, dtype=out.type.dtype)
        grads = backward(b, {out: seed}, [v for v in inputs if v.type.dtype.kind == "f"])
    graph.outputs += grads.values()
    results = evaluate(graph, arrays)[0]
    found = dict(zip(grads, results[n:]))
    return results[:n], [found.get(v) for v in inputs], node.op.grad_fn_name(node)


def theirs(
    f: Callable[..., Any], arrays: list[np.ndarray], grads: bool
) -> tuple[list[np.ndarray], list[Any], str]:
    tensors = [torch.from_numpy(a.copy()) for a in arrays]
    for t in tensors:
        t.requires_grad_(t.is_floating_point())
    made = f(*tensors)
    outs = list(made) if isinstance(made, (tuple, list)) else [made]
    name = type(outs[0].grad_fn).__name__ if outs[0].requires_grad else ""
    if outs[0].requires_grad and grads:
        outs[0].sum().backward()
    found = [None if t.grad is None else t.grad.numpy(force=True) for t in tensors]
    return [o.detach().numpy() for o in outs], found, name


def compare(
    name: str,
    f: Callable[..., Any],
    arrays: list[np.ndarray],
    attrs: dict[str, Any] | None = None,
    *,
    rtol: float = 3e-6,
    atol: float = 1e-6,
    signs: bool = True,
    grads: bool = True,
    grad_name: bool = True,
) -> None:
    got, got_grads, got_name = ours(name, arrays, attrs or {})
    want, want_grads, want_name = theirs(f, arrays, grads)
    assert len(got) >= len(want)
    for g, w in zip(got, want):
        assert g.dtype == w.dtype
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)
        if signs and w.dtype.kind == "f":
            zero = (w == 0) & (g == 0)
            np.testing.assert_array_equal(np.signbit(g[zero]), np.signbit(w[zero]))
    if not grads:
        return
    if want_name and grad_name:
        assert got_name == want_name
    for k, (g, w) in enumerate(zip(got_grads, want_grads)):
        if w is not None:
            assert g is not None, f"no gradient of operand {k}"
            np.testing.assert_allclose(
                g, w, rtol=rtol * 10, atol=atol * 10, err_msg=f"gradient of operand {k}"
            )


UNARY = """
abs neg sign sgn sqrt rsqrt reciprocal square exp exp2 expm1 log log2 log10 log1p sin cos tan asin
acos atan sinh cosh tanh asinh acosh atanh sigmoid erf erfc floor ceil trunc round frac isnan isinf
isfinite isposinf isneginf signbit logical_not nan_to_num logit deg2rad rad2deg sinc relu
"""


@pytest.mark.parametrize("name", UNARY.split())
def test_unary(name: str) -> None:
    with np.errstate(all="ignore"):
        compare(name, getattr(torch, name), [POINTS])


ACTIVATIONS: list[tuple[str, dict[str, Any], Callable[..., Any]]] = [
    ("relu", {}, F.relu),
    ("relu6", {}, F.relu6),
    ("leaky_relu", {"negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    ("elu", {"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    ("celu", {"alpha": 0.7}, lambda x: F.celu(x, 0.7)),
    ("selu", {}, F.selu),
    ("gelu", {}, F.gelu),
    ("gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("silu", {}, F.silu),
    ("mish", {}, F.mish),
    ("softplus", {}, F.softplus),
    ("softplus", {"beta": 3.0, "threshold": 4.0}, lambda x: F.softplus(x, 3.0, 4.0)),
    ("logsigmoid", {}, F.logsigmoid),
    ("hardtanh", {"min_val": -2.0, "max_val": 3.0}, lambda x: F.hardtanh(x, -2, 3)),
    ("hardsigmoid", {}, F.hardsigmoid),
    ("hardswish", {}, F.hardswish),
    ("softsign", {}, F.softsign),
    ("tanhshrink", {}, F.tanhshrink),
    ("hardshrink", {}, F.hardshrink),
    ("softshrink", {"lambd": 1.0}, lambda x: F.softshrink(x, 1.0)),
    ("threshold", {"threshold": 0.5, "value": 7.0}, lambda x: F.threshold(x, 0.5, 7.0)),
    ("clamp", {"min": -1, "max": 2}, lambda x: torch.clamp(x, -1, 2)),
    ("clamp", {"min": 0.5}, lambda x: torch.clamp(x, min=0.5)),
    ("clamp", {"max": 0.5}, lambda x: torch.clamp(x, max=0.5)),
    ("round", {"decimals": 1}, lambda x: torch.round(x, decimals=1)),
    ("logit", {"eps": 0.1}, lambda x: torch.logit(x, 0.1)),
    ("nan_to_num", {"nan": 1.0, "posinf": 2.0}, lambda x: torch.nan_to_num(x, 1.0, 2.0)),
    *(
        ("pow_scalar", {"exponent": e}, lambda x, e=e: torch.pow(x, e))
        for e in (0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5, -3, 4)
    ),
]


#: At infinity these have the limit here, NaN in PyTorch.
OWN_LIMITS = {"gelu", "softsign"}


@pytest.mark.parametrize(("name", "attrs", "f"), ACTIVATIONS, ids=[f"{n}-{a}" for n, a, _ in ACTIVATIONS])
def test_attributes(name: str, attrs: dict[str, Any], f: Callable[..., Any]) -> None:
    points = POINTS[np.isfinite(POINTS)] if name in OWN_LIMITS else POINTS
    # The sign of a zero softshrink makes depends on the position in PyTorch.
    loose = 1e-5 if name == "gelu" else 1e-6  # PyTorch's is the less accurate
    compare(name, f, [points], attrs, atol=loose, signs=name != "softshrink")


BINARY: list[tuple[str, Callable[..., Any]]] = [
    *(
        (n, getattr(torch, n))
        for n in "add sub mul div pow maximum minimum fmod remainder floor_divide atan2".split()
    ),
    *(
        (n, getattr(torch, n))
        for n in "hypot logaddexp logaddexp2 copysign eq ne lt le gt ge heaviside xlogy".split()
    ),
    *((n, getattr(torch, n)) for n in "logical_and logical_or logical_xor".split()),
    ("trunc_divide", lambda x, y: torch.div(x, y, rounding_mode="trunc")),
    ("floor_divide", lambda x, y: torch.div(x, y, rounding_mode="floor")),
    ("clamp_min", lambda x, y: torch.clamp(x, min=y)),
    ("clamp_max", lambda x, y: torch.clamp(x, max=y)),
    ("ldexp", torch.ldexp),
]


#: What PyTorch does not differentiate.
NO_GRADIENT = {torch.floor_divide, torch.heaviside}


@pytest.mark.parametrize(("name", "f"), BINARY, ids=[n for n, _ in BINARY])
def test_binary(name: str, f: Callable[..., Any]) -> None:
    compare(name, f, list(PAIR), grads=f not in NO_GRADIENT)


INTEGER = (
    "add sub mul maximum minimum fmod remainder floor_divide bitwise_and bitwise_or bitwise_xor gcd lcm eq lt"
)


@pytest.mark.parametrize("name", [*INTEGER.split(), "bitwise_left_shift", "bitwise_right_shift", "pow"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8, np.uint8])
def test_integers(name: str, dtype: Any) -> None:
    x = rng.integers(-9, 10, 60).astype(dtype)
    y = rng.integers(1, 9, 60).astype(dtype)
    if name == "bitwise_left_shift" or name == "bitwise_right_shift":
        y = rng.integers(0, 6, 60).astype(dtype)
    elif name != "pow" and dtype is not np.uint8:
        y[::3] *= -1
    compare(name, getattr(torch, name), [x, y])


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


X, Y, W, B3 = normal(4, 5), normal(4, 5), normal(3, 5), normal(3)
P = 1 / (1 + np.exp(-X))
T = np.array([1, 4, 0, 2])
CUBE = normal(2, 3, 4)
ZEROS = np.array([[1, 0, 2, 3], [0, 0, 1, 2], [2, 3, 4, 5]], np.float32)
TIES = np.array([[1, 3, 3], [2, 2, 2], [5, 1, 5]], np.float32)

COMPOSITES: list[tuple[str, list[np.ndarray], dict[str, Any], Callable[..., Any]]] = [
    ("sum", [X], {"axes": (0, 1)}, torch.sum),
    ("sum", [X], {"axes": (1,), "keepdim": True}, lambda x: x.sum(1, keepdim=True)),
    ("mean", [X], {"axes": (0, 1)}, torch.mean),
    ("mean", [X], {"axes": (0,)}, lambda x: x.mean(0)),
    ("prod", [ZEROS], {"axes": (1,)}, lambda x: x.prod(1)),
    ("prod", [ZEROS[:1]], {"axes": (0, 1)}, torch.prod),
    ("amax", [TIES], {"axes": (1,)}, lambda x: x.amax(1)),
    ("amin", [TIES], {"axes": (0,)}, lambda x: x.amin(0)),
    ("max_dim", [TIES], {"dim": 1}, lambda x: x.max(1)),
    ("min_dim", [X], {"dim": 0, "keepdim": True}, lambda x: x.min(0, keepdim=True)),
    ("var", [X], {"axes": (1,)}, lambda x: x.var(1)),
    ("std", [X], {"axes": (0, 1), "correction": 0}, lambda x: x.std(correction=0)),
    ("std", [np.ones((2, 3), np.float32)], {"axes": (1,)}, lambda x: x.std(1)),
    *(
        ("norm", [ZEROS], {"p": p, "axes": (1,)}, lambda x, p=p: torch.linalg.vector_norm(x, p, 1))
        for p in (2.0, 1.0, 0.0, 3.0, 1.5, INF, -INF)
    ),
    ("norm", [np.zeros((2, 3), np.float32)], {"axes": (1,)}, lambda x: torch.linalg.vector_norm(x, 2, 1)),
    ("logsumexp", [X * 50], {"axes": (1,)}, lambda x: x.logsumexp(1)),
    ("softmax", [X * 50], {"dim": 1}, lambda x: x.softmax(1)),
    ("log_softmax", [X * 50], {"dim": 0}, lambda x: x.log_softmax(0)),
    ("glu", [normal(3, 4)], {}, F.glu),
    ("cosine_similarity", [X, Y], {}, F.cosine_similarity),
    *(
        (n, [X, Y], {"reduction": r}, lambda x, y, n=n, r=r: getattr(F, n)(x, y, reduction=r))
        for n in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
        for r in ("none", "mean", "sum")
    ),
    ("smooth_l1_loss", [X, Y], {"beta": 0.3}, lambda x, y: F.smooth_l1_loss(x, y, beta=0.3)),
    ("huber_loss", [X, Y], {"delta": 0.3}, lambda x, y: F.huber_loss(x, y, delta=0.3)),
    ("binary_cross_entropy", [P, P[::-1].copy()], {}, F.binary_cross_entropy),
    (
        "binary_cross_entropy",
        [np.array([0.0, 1.0, 0.0, 1.0], np.float32), np.array([0.0, 1.0, 1.0, 0.0], np.float32)],
        {"reduction": "none"},
        lambda x, y: F.binary_cross_entropy(x, y.detach(), reduction="none"),
    ),
    ("binary_cross_entropy_with_logits", [X * 60, P], {}, F.binary_cross_entropy_with_logits),
    (
        "binary_cross_entropy_with_logits",
        [X, P, np.abs(Y), np.abs(Y[0])],
        {"reduction": "sum", "weighted": True, "pos_weighted": True},
        lambda x, y, w, p: F.binary_cross_entropy_with_logits(
            x, y, w.detach(), reduction="sum", pos_weight=p.detach()
        ),
    ),
    (
        "kl_div",
        [np.log(P), P],
        {"reduction": "batchmean"},
        lambda x, y: F.kl_div(x, y, reduction="batchmean"),
    ),
    (
        "kl_div",
        [X, Y],
        {"log_target": True, "reduction": "sum"},
        lambda x, y: F.kl_div(x, y, reduction="sum", log_target=True),
    ),
    ("nll_loss", [X, T], {}, F.nll_loss),
    ("cross_entropy", [X, T], {}, F.cross_entropy),
    ("cross_entropy", [X, T], {"ignore_index": 4}, lambda x, t: F.cross_entropy(x, t, ignore_index=4)),
    (
        "cross_entropy",
        [X, T],
        {"label_smoothing": 0.1, "ignore_index": 4},
        lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1, ignore_index=4),
    ),
    (
        "cross_entropy",
        [X, T, np.abs(Y[0])],
        {"label_smoothing": 0.1},
        lambda x, t, w: F.cross_entropy(x, t, w.detach(), label_smoothing=0.1),
    ),
    (
        "cross_entropy",
        [X, T, np.abs(Y[0])],
        {"reduction": "none"},
        lambda x, t, w: F.cross_entropy(x, t, w.detach(), reduction="none"),
    ),
    ("cross_entropy", [CUBE, np.array([[0, 1, 2, 1], [2, 2, 0, 1]])], {}, F.cross_entropy),
    ("cross_entropy", [X[0], T[0:1].reshape(())], {}, F.cross_entropy),
    (
        "cross_entropy",
        [X, P],
        {"label_smoothing": 0.2},
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.2),
    ),
    ("layer_norm", [X, Y[0], X[1]], {"normalized_shape": (5,)}, lambda x, w, b: F.layer_norm(x, (5,), w, b)),
    ("rms_norm", [X, Y[0]], {"normalized_shape": (5,)}, lambda x, w: F.rms_norm(x, (5,), w)),
    (
        "group_norm",
        [normal(2, 4, 3), normal(4), normal(4)],
        {"num_groups": 2},
        lambda x, w, b: F.group_norm(x, 2, w, b),
    ),
    ("batch_norm", [X, Y[0], X[1]], {}, lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
    ("batch_norm", [CUBE], {}, lambda x: F.batch_norm(x, None, None, training=True)),
    (
        "batch_norm_eval",
        [X, Y[0], P[0], Y[1], X[1]],
        {},
        lambda x, m, v, w, b: F.batch_norm(x, m.detach(), v.detach(), w, b),
    ),
    ("linear", [X, W, B3], {}, F.linear),
    ("linear", [X, W], {}, F.linear),
    ("linear", [normal(2, 4, 5), W, B3], {}, F.linear),
    ("linear", [normal(5), W], {}, F.linear),
    ("matmul", [CUBE, normal(4, 2)], {}, torch.matmul),
    ("matmul", [normal(4), normal(4)], {}, torch.matmul),
    ("matmul", [normal(4), normal(4, 2)], {}, torch.matmul),
    ("matmul", [normal(3, 4), normal(4)], {}, torch.matmul),
    ("matmul", [normal(1, 2, 3, 4), normal(5, 1, 4, 2)], {}, torch.matmul),
    ("mm", [normal(3, 4), normal(4, 2)], {}, torch.mm),
    ("bmm", [normal(2, 3, 4), normal(2, 4, 2)], {}, torch.bmm),
    ("outer", [normal(3), normal(4)], {}, torch.outer),
    (
        "addmm",
        [normal(3), normal(2, 4), normal(4, 3)],
        {"beta": 0.5, "alpha": 2},
        lambda c, x, y: torch.addmm(c, x, y, beta=0.5, alpha=2),
    ),
    (
        "scaled_dot_product_attention",
        [CUBE, CUBE + 1, CUBE - 1],
        {"is_causal": True},
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    (
        "embedding",
        [X, np.array([[0, 3], [3, 1]])],
        {"padding_idx": 1},
        lambda w, i: F.embedding(i, w, padding_idx=1),
    ),
    ("gather", [X, np.array([[0, 0], [4, 2]])], {"dim": 1}, lambda x, i: x.gather(1, i)),
    ("take", [X, np.array([1, 1, 3])], {"dim": 0}, lambda x, i: x.index_select(0, i)),
    (
        "scatter",
        [X, np.array([[0, 3], [4, 2]]), normal(2, 2)],
        {"dim": 1},
        lambda x, i, s: x.scatter(1, i, s),
    ),
    (
        "scatter",
        [X, np.array([[0, 0], [4, 2]]), normal(2, 2)],
        {"dim": 1, "reduce": "add"},
        lambda x, i, s: x.scatter_add(1, i, s),
    ),
    *(
        (
            "scatter",
            [TIES, np.array([[0, 0, 1]] * 3), TIES * k],
            {"dim": 1, "reduce": r},
            lambda x, i, s, r=r: x.scatter_reduce(1, i, s, r),
        )
        for r in ("amax", "amin", "prod")
        for k in (1, 0)
    ),
    (
        "scatter",
        [ZEROS, np.array([[0, 0, 1, 1]] * 3), ZEROS],
        {"dim": 1, "reduce": "prod"},
        lambda x, i, s: x.scatter_reduce(1, i, s, "prod"),
    ),
    (
        "index_add",
        [X, np.array([1, 1]), normal(2, 5)],
        {"dim": 0, "alpha": 2},
        lambda x, i, s: x.index_add(0, i, s, alpha=2),
    ),
    ("view", [CUBE], {"shape": (6, 4)}, lambda x: x.view(6, 4)),
    ("permute", [CUBE], {"dims": (2, 0, 1)}, lambda x: x.permute(2, 0, 1)),
    ("transpose", [CUBE], {"dim0": 0, "dim1": 2}, lambda x: x.transpose(0, 2)),
    ("t", [X], {}, torch.t),
    ("unsqueeze", [X], {"dim": 1}, lambda x: x.unsqueeze(1)),
    ("squeeze", [normal(1, 3, 1)], {}, torch.squeeze),
    ("squeeze", [normal(1, 3, 1)], {"dims": 0}, lambda x: x.squeeze(0)),
    ("select", [X], {"dim": 1, "index": -1}, lambda x: x.select(1, -1)),
    ("narrow", [X], {"dim": 1, "start": 1, "length": 2}, lambda x: x.narrow(1, 1, 2)),
    ("slice", [X], {"start": (0, 1), "stop": (4, 5), "step": (1, 2)}, lambda x: x[:, 1::2]),
    ("expand", [normal(3, 1)], {"shape": (2, 3, 4)}, lambda x: x.expand(2, 3, 4)),
    ("diagonal", [CUBE], {"offset": 1, "dim1": 1, "dim2": 2}, lambda x: x.diagonal(1, 1, 2)),
    ("diag_embed", [X], {}, torch.diag_embed),
    ("roll", [X], {"shifts": (1, 2), "dims": (0, 1)}, lambda x: x.roll((1, 2), (0, 1))),
    ("repeat", [X], {"repeats": (2, 1, 3)}, lambda x: x.repeat(2, 1, 3)),
    ("flip", [X], {"dims": (1,)}, lambda x: x.flip(1)),
    ("concat", [X, Y], {"dim": 1}, lambda x, y: torch.cat([x, y], 1)),
    ("stack", [X, Y], {"dim": 1}, lambda x, y: torch.stack([x, y], 1)),
    ("split", [X], {"sizes": (1, 4), "dim": 1}, lambda x: x.split_with_sizes((1, 4), 1)),
    ("unbind", [X], {"dim": 1}, lambda x: x.unbind(1)),
    ("tril", [X], {"diagonal": 1}, lambda x: x.tril(1)),
    ("pad", [X], {"low": (0, 1), "high": (0, 2), "value": 2.0}, lambda x: F.pad(x, (1, 2), value=2.0)),
    ("addcmul", [X, Y, P], {"value": 2}, lambda x, y, z: torch.addcmul(x, y, z, value=2)),
    ("addcdiv", [X, Y, P], {"value": 2}, lambda x, y, z: torch.addcdiv(x, y, z, value=2)),
    ("lerp", [X, Y, P], {}, torch.lerp),
    ("prelu", [X, normal(1)], {}, F.prelu),
    ("linspace", [], {"start": -1.0, "end": 2.0, "n": 7}, lambda: torch.linspace(-1, 2, 7)),
    (
        "arange",
        [],
        {"n": 10, "start": 0.1, "step": 0.1, "dtype": dtypes.float32},
        lambda: torch.arange(0.1, 1.05, 0.1),
    ),
]
#: Where PyTorch's name depends on how it happens to compute the function.
OTHER_NAMES = {"scaled_dot_product_attention", "split", "slice"}


@pytest.mark.parametrize(
    ("name", "arrays", "attrs", "f"),
    COMPOSITES,
    ids=[f"{n}-{i}" for i, (n, *_) in enumerate(COMPOSITES)],
)
def test_composite(name: str, arrays: list[np.ndarray], attrs: dict[str, Any], f: Callable[..., Any]) -> None:
    compare(name, f, arrays, attrs, rtol=2e-5, atol=2e-6, signs=False, grad_name=name not in OTHER_NAMES)
