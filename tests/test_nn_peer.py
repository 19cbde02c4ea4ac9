"""Layers, losses and initialisers against PyTorch: names, text, numbers and gradients."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import tracegrad as tg


def numpy(t: Any) -> np.ndarray:
    return t.detach().numpy()


def libraries() -> list[Any]:
    return [tg, pytest.importorskip("torch")]


def close(a: Any, b: Any, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(numpy(a), numpy(b), rtol=rtol, atol=atol)


def net(lib: Any) -> Any:
    lib.manual_seed(0)
    n = lib.nn
    return n.Sequential(
        OrderedDict(
            first=n.Linear(3, 4),
            act=n.LeakyReLU(0.2),
            block=n.Sequential(n.Linear(4, 4, bias=False), n.Tanh(), n.LayerNorm(4)),
            last=n.Bilinear(2, 3, 2),
        )
    )


# --- against PyTorch: names, text, numbers ---


@pytest.mark.peer
def test_inits_text_and_state_like_pytorch() -> None:
    mine, theirs = (net(lib) for lib in libraries())
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for p, q in zip(mine.parameters(), theirs.parameters()):
        assert (numpy(p) == numpy(q)).all()
    assert repr(mine.first.weight) == repr(theirs.first.weight)
    assert [k for k, _ in mine.named_modules()] == [k for k, _ in theirs.named_modules()]
    assert mine.state_dict()._metadata == theirs.state_dict()._metadata


INITS: dict[str, Any] = {
    "uniform": lambda i, t: i.uniform_(t, -1, 2),
    "normal": lambda i, t: i.normal_(t, 1, 2),
    "trunc_normal": lambda i, t: i.trunc_normal_(t, 0.1, 1.5),
    "trunc_normal_tail": lambda i, t: i.trunc_normal_(t, 0.0, 1.0, 1.2, 2.0),
    "constant": lambda i, t: i.constant_(t, 0.3),
    "ones": lambda i, t: i.ones_(t),
    "zeros": lambda i, t: i.zeros_(t),
    "xavier_uniform": lambda i, t: i.xavier_uniform_(t, 2.0),
    "xavier_normal": lambda i, t: i.xavier_normal_(t),
    "kaiming_uniform": lambda i, t: i.kaiming_uniform_(t, 0.1, "fan_out"),
    "kaiming_normal": lambda i, t: i.kaiming_normal_(t, nonlinearity="relu"),
}
MATRIX_INITS: dict[str, Any] = {
    "eye": lambda i, t: i.eye_(t),
    "sparse": lambda i, t: i.sparse_(t, 0.3),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", [*INITS, *MATRIX_INITS])
def test_inits_bit_for_bit(name: str) -> None:
    made = []
    for lib in libraries():
        lib.manual_seed(3)
        for shape in ((6, 5), (20, 30)) if name in MATRIX_INITS else ((6, 5), (20, 30), (4, 3, 3, 3)):
            t = lib.empty(*shape, requires_grad=True)
            assert {**INITS, **MATRIX_INITS}[name](lib.nn.init, t) is t and t.requires_grad
            made.append(numpy(t))
    half = len(made) // 2
    for a, b in zip(made[:half], made[half:]):
        if name == "trunc_normal_tail":  # logarithms of two libraries
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            assert (a == b).all()


@pytest.mark.peer
def test_other_inits() -> None:
    made = []
    for lib in libraries():
        lib.manual_seed(3)
        i = lib.nn.init
        made.append([numpy(i.orthogonal_(lib.empty(*s), 2.0)) for s in ((4, 7), (7, 4), (5, 2, 2))])
        made[-1] += [numpy(i.dirac_(lib.empty(*s), g)) for s, g in (((4, 2, 3), 2), ((3, 4, 3, 3), 1))]
        made[-1] += [i.calculate_gain(n) for n in ("linear", "conv2d", "tanh", "relu", "selu", "leaky_relu")]
        made[-1] += [i.calculate_gain("leaky_relu", 0.5)]
    for a, b in zip(*made):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


ACTIVATIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("ReLU", (), {}), ("ReLU", (), {"inplace": True}), ("LeakyReLU", (), {}), ("LeakyReLU", (0.3, True), {}),
    ("ELU", (0.7,), {}), ("CELU", (), {"alpha": 0.7}), ("SELU", (), {}), ("GELU", (), {}),
    ("GELU", ("tanh",), {}), ("SiLU", (), {}), ("Mish", (), {}), ("Softplus", (2, 1.5), {}), ("Sigmoid", (),
    {}), ("Tanh", (), {}), ("Hardtanh", (-0.5, 1.5), {}), ("ReLU6", (), {}), ("Hardswish", (), {}),
    ("Hardsigmoid", (), {}), ("Softsign", (), {}), ("Tanhshrink", (), {}), ("Hardshrink", (0.3,), {}),
    ("Softshrink", (), {}), ("Threshold", (0.1, 20), {}), ("LogSigmoid", (), {}), ("GLU", (1,), {}),
    ("Softmax", (), {"dim": 1}), ("LogSoftmax", (-1,), {}), ("Softmin", (1,), {}), ("PReLU", (4,), {}),
    ("PReLU", (), {"init": 0.1}), ("LayerNorm", ((4, 2),), {}), ("LayerNorm", ((4, 2), 1e-3, False), {}),
    ("LayerNorm", ((4, 2),), {"bias": False}), ("RMSNorm", ((4, 2),), {}), ("RMSNorm", ((4, 2), 1e-3, False),
    {}), ("GroupNorm", (2, 4), {}), ("Flatten", (), {}), ("Unflatten", (1, (2, -1)), {}), ("Identity", (3,),
    {"a": 1}), ("Softmax2d", (), {}),
]  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize(("name", "args", "kwargs"), ACTIVATIONS, ids=lambda v: str(v))
def test_layers_like_pytorch(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    results = []
    for lib in libraries():
        lib.manual_seed(1)
        layer = getattr(lib.nn, name)(*args, **kwargs)
        x = (lib.randn(3, 4, 2) * 3).requires_grad_()
        y = layer(x + 0 if kwargs.get("inplace") or True in args else x)
        (y * lib.randn(*y.shape)).sum().backward()
        results.append(
            (repr(layer), list(layer.state_dict()), [y, x.grad, *(p.grad for p in layer.parameters())])
        )
    (text, keys, mine), (their_text, their_keys, theirs) = results
    assert text == their_text and keys == their_keys
    for a, b in zip(mine, theirs):
        close(a, b)


def uniform(lib: Any, *shape: int) -> Any:
    return lib.rand(*shape)


def signs(lib: Any, *shape: int) -> Any:
    return (lib.rand(*shape) > 0.5).float() * 2 - 1


def classes(lib: Any, *shape: int) -> Any:
    return lib.randint(0, 4, shape)


def normal(lib: Any, *shape: int) -> Any:
    return lib.randn(*shape)


X = (5, 4)
#: name, arguments, draws of the targets (or further inputs) with their shapes
LOSSES: list[tuple[str, dict[str, Any], list[tuple[Any, tuple[int, ...]]]]] = [
    ("MSELoss", {}, [(normal, X)]),
    ("L1Loss", {}, [(normal, X)]),
    ("SmoothL1Loss", {"beta": 0.5}, [(normal, X)]),
    ("HuberLoss", {"delta": 0.5}, [(normal, X)]),
    ("BCEWithLogitsLoss", {}, [(uniform, X)]),
    ("BCEWithLogitsLoss", {"weight": 4, "pos_weight": 4}, [(uniform, X)]),
    ("NLLLoss", {"weight": 4, "ignore_index": 2}, [(classes, (5,))]),
    ("CrossEntropyLoss", {}, [(classes, (5,))]),
    ("CrossEntropyLoss", {"weight": 4, "ignore_index": 1, "label_smoothing": 0.1}, [(classes, (5,))]),
    ("CrossEntropyLoss", {"label_smoothing": 0.2}, [(uniform, X)]),
    ("KLDivLoss", {}, [(uniform, X)]),
    ("KLDivLoss", {"log_target": True}, [(normal, X)]),
    ("PoissonNLLLoss", {"full": True}, [(lambda lib, *s: lib.rand(*s) * 4, X)]),
    ("GaussianNLLLoss", {"full": True}, [(normal, X), (uniform, X)]),
    ("GaussianNLLLoss", {"eps": 0.5}, [(normal, X), (uniform, (5, 1))]),
    ("HingeEmbeddingLoss", {"margin": 0.7}, [(signs, X)]),
    ("CosineEmbeddingLoss", {"margin": 0.2}, [(normal, X), (signs, (5,))]),
    ("SoftMarginLoss", {}, [(signs, X)]),
    ("MarginRankingLoss", {"margin": 0.3}, [(normal, X), (signs, X)]),
    ("MultiMarginLoss", {"p": 2, "weight": 4}, [(classes, (5,))]),
    ("MultiMarginLoss", {"margin": 0.5}, [(classes, (5,))]),
    ("MultiLabelMarginLoss", {}, [(lambda lib, *s: lib.tensor([[3, 0, -1, 1], [-1, 2, 1, 0], [1, 2, 3, 0],
                                                              [2, -1, 2, -1], [0, 1, -1, 3]]), X)]),
    ("MultiLabelSoftMarginLoss", {"weight": 4}, [(uniform, X)]),
    ("TripletMarginLoss", {"p": 3, "swap": True}, [(normal, X), (normal, X)]),
    ("TripletMarginWithDistanceLoss", {"margin": 0.5}, [(normal, X), (normal, X)]),
]  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options", "draws"), LOSSES, ids=lambda v: v if isinstance(v, str) else "")
def test_losses_like_pytorch(name: str, options: dict[str, Any], draws: Any, reduction: str) -> None:
    results = []
    for lib in libraries():
        lib.manual_seed(2)
        x = lib.randn(*X).requires_grad_()
        rest = [draw(lib, *shape) for draw, shape in draws]
        more = {k: lib.rand(v) if "weight" in k else v for k, v in options.items()}
        loss = getattr(lib.nn, name)(reduction=reduction, **more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = loss(x, *rest)
        y.sum().backward()
        results.append((repr(loss), list(loss.state_dict()), y, x.grad))
    (text, keys, y, g), (their_text, their_keys, their_y, their_g) = results
    assert text == their_text and keys == their_keys and tuple(y.shape) == tuple(their_y.shape)
    close(y, their_y)
    close(g, their_g)


@pytest.mark.peer
def test_bce_and_functions_like_pytorch() -> None:
    def values(lib: Any) -> list[Any]:
        f = lib.nn.functional
        lib.manual_seed(4)
        p, y, w = lib.rand(5, 4), lib.rand(5, 4), lib.rand(4)
        a, b = lib.randn(2, 3, 4), lib.randn(2, 3, 4)
        return [
            f.binary_cross_entropy(p, y), f.binary_cross_entropy(p, y, w, reduction="none"),
            f.mse_loss(a, b, weight=lib.rand(2, 3, 4)), f.l1_loss(a, b, reduction="sum", weight=lib.rand(2,
            3, 4)), f.huber_loss(a, b, weight=lib.rand(2, 3, 4)), f.kl_div(a, b.exp(), reduction="batchmean"),
            f.normalize(a), f.normalize(a, 1, -1), f.cosine_similarity(a, b), f.pairwise_distance(a, b, 1.0),
            f.one_hot(lib.tensor([0, 2, 1]), 4), f.one_hot(lib.tensor([[0, 2]])),
            f.bilinear(a, b, lib.randn(5, 4, 4), lib.randn(5)), f.group_norm(lib.randn(2, 4, 3), 2,
            lib.rand(4)), f.layer_norm(a, (4,), bias=lib.randn(4)), f.softmax(a, 1, dtype=lib.float64),
            f.relu(lib.tensor([-1, 2])), f.scaled_dot_product_attention(a, b, b),
            f.scaled_dot_product_attention(a, b, b, is_causal=True), f.linear(a, lib.randn(3, 4)),
            f.threshold(a, 0.1, 0.5), f.mse_loss(a, b.double()),
        ]  # fmt: skip

    mine, theirs = (values(lib) for lib in libraries())
    for i, (a, b) in enumerate(zip(mine, theirs)):
        assert str(a.dtype).split(".")[1] == str(b.dtype).split(".")[1], i
        close(a, b)


@pytest.mark.peer
def test_gradient_clipping_like_pytorch() -> None:
    def clipped(lib: Any, how: Any) -> list[Any]:
        model = net(lib)
        (model.first(lib.ones(2, 3)) ** 2).sum().backward()
        total = how(lib.nn.utils, list(model.parameters()))
        return [*([] if total is None else [total]), *(p.grad for p in model.first.parameters())]

    for how in (
        lambda u, p: u.clip_grad_norm_(p, 0.5),
        lambda u, p: u.clip_grad_norm_(p, 100.0, 1),
        lambda u, p: u.clip_grad_norm_(p, 0.5, math.inf),
        lambda u, p: u.clip_grad_value_(p, 0.1),
    ):
        for a, b in zip(*(clipped(lib, how) for lib in libraries())):
            close(a, b)


@pytest.mark.peer
def test_containers_print_like_pytorch() -> None:
    def text(lib: Any) -> list[str]:
        n = lib.nn
        return [
            repr(n.ModuleList([n.Linear(1, 1), n.Linear(1, 1), n.Sequential(n.ReLU()), n.ReLU()])),
            repr(n.ModuleDict({"a": n.ReLU(), "b": n.Sequential(n.ReLU())})),
            repr(n.ModuleList()),
            repr(n.Sequential()),
            repr(n.ParameterList([lib.ones(2, 3), n.Parameter(lib.ones(1))])),
        ]

    mine, theirs = (text(lib) for lib in libraries())
    assert mine == [t.replace("torch.", "tracegrad.") for t in theirs]
