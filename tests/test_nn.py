"""Modules, layers, losses, initialisers: against PyTorch where it is installed, and what must hold without
it."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import TracegradError
from tracegrad.nn import functional as F


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


# --- modules ---


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.scale = nn.Parameter(tg.ones(3))
        self.register_buffer("seen", tg.zeros(3))
        self.register_buffer("scratch", tg.zeros(1), persistent=False)
        self.register_parameter("absent", None)
        self.tied = self.linear
        self.note = "a plain attribute"

    def forward(self, x: Any) -> Any:
        return self.linear(x) * self.scale


def test_names() -> None:
    m = Model()
    assert [k for k, _ in m.named_parameters()] == ["scale", "linear.weight", "linear.bias"]
    assert [k for k, _ in m.named_parameters(remove_duplicate=False)][-2:] == ["tied.weight", "tied.bias"]
    assert [k for k, _ in m.named_buffers()] == ["seen", "scratch"]
    assert [k for k, _ in m.named_modules()] == ["", "linear"]
    assert list(m.state_dict()) == [
        "scale", "seen", "linear.weight", "linear.bias", "tied.weight", "tied.bias",
    ]  # fmt: skip
    assert list(m.children()) == [m.linear] and len(list(m.parameters(recurse=False))) == 1
    assert m.get_parameter("linear.weight") is m.linear.weight and m.get_buffer("seen") is m.seen
    assert m.get_submodule("") is m and "scale" in dir(m) and "linear" in dir(m)
    for lookup in (
        lambda: m.get_submodule("linear.inner"),
        lambda: m.get_parameter("absent"),
        lambda: m.missing,
    ):
        with pytest.raises(AttributeError):
            lookup()


def test_attributes_change_kind_and_refuse_nonsense() -> None:
    m = Model()
    m.scale = None
    assert m.scale is None and "scale" not in dict(m.named_parameters())
    m.scale = nn.Parameter(tg.zeros(3))
    m.note = nn.Parameter(tg.zeros(1))
    assert "note" in dict(m.named_parameters()) and "note" not in m.__dict__
    m.seen = tg.ones(3)
    assert dict(m.named_buffers())["seen"].tolist() == [1, 1, 1]
    m.memory = nn.Buffer(tg.ones(2), persistent=False)
    assert "memory" in dict(m.named_buffers()) and "memory" not in m.state_dict()
    assert isinstance(m.memory, nn.Buffer) and not isinstance(m.seen, nn.Buffer)
    del m.tied, m.memory
    assert not hasattr(m, "tied") and not hasattr(m, "memory")
    for action, message in (
        (lambda: setattr(m, "scale", tg.ones(3)), "assign an nn.Parameter"),
        (lambda: setattr(m, "linear", 3), "assign an nn.Module"),
        (lambda: setattr(m, "seen", 3), "assign a tensor"),
        (lambda: m.register_parameter("w", tg.ones(1)), "Parameter or None"),
        (lambda: m.register_parameter("a.b", None), "dot"),
        (lambda: m.register_buffer("", None), "empty"),
        (lambda: m.register_buffer("forward", None), "already has"),
        (lambda: m.add_module("x", 3), "nn.Module"),
        (lambda: m.train(3), "bool"),
        (lambda: nn.Parameter(tg.ones(2, dtype=tg.int64)), "floating-point"),
        (lambda: nn.Parameter([1.0]), "takes a tensor"),
        (lambda: nn.ReLU(3, 4), "ReLU"),
        (lambda: m.to(tg.int64), "floating-point"),
    ):
        with pytest.raises(TracegradError, match=message):
            action()

    class Forgot(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(1, 1)

    with pytest.raises(TracegradError, match="super"):
        Forgot()
    with pytest.raises(NotImplementedError, match="no forward"):
        nn.Module()()


def test_parameters_are_leaves_of_their_own() -> None:
    data = tg.tensor([1.0, 2.0])
    p = nn.Parameter(data)
    assert p.requires_grad and p.is_leaf and not data.requires_grad
    (p * data).sum().backward()
    assert p.grad.tolist() == [1, 2]
    with tg.no_grad():
        p.add_(1)
    assert p.tolist() == [2, 3] and data.tolist() == [1, 2]
    frozen = nn.Parameter(tg.arange(3), requires_grad=False)
    assert frozen.dtype is tg.int64 and isinstance(frozen, tg.Tensor)
    for made in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert (
            isinstance(made, nn.Parameter)
            and made.requires_grad
            and made.tolist() == [2, 3]
            and made is not p
        )


def test_modes_and_conversions() -> None:
    m = Model()
    assert m.training and m.eval() is m and not m.linear.training and m.train().linear.training
    weight = m.linear.weight
    m(tg.ones(1, 2)).sum().backward()
    m.double()
    assert (
        m.linear.weight is weight and weight.dtype is tg.float64 and weight.is_leaf and weight.requires_grad
    )
    assert weight.grad.dtype is tg.float64 and m.seen.dtype is tg.float64
    assert m(tg.ones(1, 2, dtype=tg.float64)).dtype is tg.float64
    m.zero_grad()
    assert weight.grad is None
    assert m.to("cpu").float().scale.dtype is tg.float32
    m.requires_grad_(False)
    assert not m(tg.ones(1, 2)).requires_grad
    counted: list[str] = []
    m.apply(lambda x: counted.append(type(x).__name__))
    assert counted == ["Linear", "Model"]


def test_hooks() -> None:
    m = nn.Identity()
    seen: list[Any] = []
    handles = [
        m.register_forward_pre_hook(lambda mod, args: (args[0] + 1,)),
        m.register_forward_hook(lambda mod, args, out: out * 2),
        m.register_forward_hook(
            lambda mod, args, kwargs, out: seen.append(kwargs), with_kwargs=True, prepend=True
        ),
    ]
    assert m(tg.tensor(3.0)).item() == 8 and seen == [{}]
    for h in handles:
        h.remove()
        h.remove()
    assert m(tg.tensor(3.0)).item() == 3
    with m.register_forward_hook(lambda mod, args, out: 7):
        assert m(3) == 7
    assert m(3) == 3
    with pytest.raises(TracegradError, match="callable"):
        m.register_forward_hook(3)  # type: ignore[arg-type]


def test_saving_and_loading() -> None:
    a, b = Model(), Model()
    state = a.state_dict()
    assert b.load_state_dict(state) == ([], []) and str(b.load_state_dict(state)).startswith("<All keys")
    assert b.linear.weight.tolist() == a.linear.weight.tolist()
    with tg.no_grad():
        a.scale.mul_(3)
    assert state["scale"].tolist() == [3, 3, 3] and b.scale.tolist() == [
        1,
        1,
        1,
    ]  # shared with a, copied to b
    partial = {"scale": tg.zeros(3), "more": tg.zeros(1)}
    keys = b.load_state_dict(partial, strict=False)
    assert (keys.unexpected_keys == [] and keys.missing_keys == []) or keys.unexpected_keys == ["more"]
    assert b.scale.tolist() == [0, 0, 0]
    old = b.scale
    b.load_state_dict({**state, "scale": tg.ones(3, dtype=tg.float64)}, assign=True)
    assert b.scale is not old and b.scale.dtype is tg.float64 and b.scale.requires_grad


def test_a_failed_load_leaves_the_module_as_it_was() -> None:
    m = Model()
    before = {k: t.tolist() for k, t in m.state_dict().items()}
    ones = {k: tg.ones(*t.shape) for k, t in m.state_dict().items()}
    for broken, message in (
        ({**ones, "linear.bias": tg.ones(4)}, r"linear.bias: the state has \[4\], the module \[3\]"),
        ({k: t for k, t in ones.items() if k != "scale"}, "missing in the state: 'scale'"),
        ({**ones, "linear.extra": tg.ones(1)}, "unexpected keys in the state: 'linear.extra'"),
        ({**ones, "scale": 3}, "must be a tensor"),
        (3, "takes a dict"),
    ):
        with pytest.raises(TracegradError, match=message):
            m.load_state_dict(broken)  # type: ignore[arg-type]
        assert {k: t.tolist() for k, t in m.state_dict().items()} == before


def test_containers() -> None:
    s = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    s.append(nn.Linear(2, 3)).insert(1, nn.Tanh())
    assert [type(m).__name__ for m in s] == ["Linear", "Tanh", "ReLU", "Linear"] and len(s) == 4
    assert s(tg.ones(5, 1)).shape == (5, 3) and len(s[1:3]) == 2 and s[-1] is s[3]
    del s[1]
    s[1] = nn.Sigmoid()
    assert list(dict(s.named_children())) == ["0", "1", "2"] and type(s.pop(1)).__name__ == "Sigmoid"
    assert len(s + nn.Sequential(nn.ReLU())) == 3 and len(s * 2) == 4
    with pytest.raises(IndexError, match="out of range"):
        s[7]
    items = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    items += [nn.ReLU()]
    assert "(0-2): 3 x Linear" in repr(items) and len(list(items.parameters())) == 6 and items[-1] is items[3]
    named = nn.ModuleDict({"a": nn.ReLU()})
    named.update([("b", nn.Linear(1, 1))])
    assert list(named) == ["a", "b"] and "a" in named and named.pop("a") is not None and len(named) == 1
    many = nn.ParameterList([tg.ones(1), nn.Parameter(tg.zeros(2))])
    many.append(tg.ones(3))
    assert len(many) == 3 and all(isinstance(p, nn.Parameter) for p in many) and many[-1].shape == (3,)
    by_name = nn.ParameterDict({"x": tg.ones(2)})
    by_name["y"] = tg.ones(1)
    assert (
        list(by_name.keys()) == ["x", "y"]
        and len(list(by_name.parameters())) == 2
        and by_name.get("z") is None
    )


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


def test_vectors_of_parameters() -> None:
    m = nn.Linear(2, 3)
    v = nn.utils.parameters_to_vector(m.parameters())
    assert v.shape == (9,) and v.requires_grad
    nn.utils.vector_to_parameters(tg.arange(9).float(), m.parameters())
    assert (
        m.weight.tolist() == [[0, 1], [2, 3], [4, 5]]
        and m.bias.tolist() == [6, 7, 8]
        and m.weight.requires_grad
    )
    with pytest.raises(TracegradError, match="at least 9"):
        nn.utils.vector_to_parameters(tg.ones(4), m.parameters())
    m.weight.grad = tg.full((3, 2), math.nan)
    with pytest.raises(TracegradError, match="can't be clipped"):
        nn.utils.clip_grad_norm_(m.parameters(), 1.0, error_if_nonfinite=True)


# --- under compile ---


def test_compiled_module_follows_mode_and_replaced_parameters() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(tg.ones(2))

        def forward(self, x: Any) -> Any:
            return x * self.w * (10 if self.training else 1)

    m = Twice()
    f = tg.compile(m)
    x = tg.ones(2)
    assert f(x).tolist() == [10, 10]
    m.eval()
    assert f(x).tolist() == [1, 1]
    m.w = nn.Parameter(tg.ones(2) * 3)
    assert f(x).tolist() == [3, 3]
    with tg.no_grad():
        m.w.mul_(2)
    assert f(x).tolist() == [6, 6]
    m.load_state_dict({"w": tg.tensor([1.0, 2.0])})
    assert f(x).tolist() == [1, 2]
    handle = m.register_forward_hook(lambda mod, args, out: -out)
    assert f(x).tolist() == [-1, -2]
    handle.remove()
    assert f(x).tolist() == [1, 2]
    m.double()
    assert f(x.double()).dtype is tg.float64


def test_a_training_loop_of_modules_is_the_same_lazily_and_compiled() -> None:
    def losses(compiled: bool) -> list[float]:
        tg.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))
        x, y = tg.randn(20, 4), tg.randint(0, 3, (20,))
        optimizer = tg.optim.AdamW(model.parameters(), lr=0.01)

        def step() -> Any:
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss

        step = tg.compile(step) if compiled else step
        return [step().item() for _ in range(5)]

    lazy = losses(False)
    assert losses(True) == pytest.approx(lazy, rel=1e-5) and lazy[-1] < lazy[0]


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Linear(3, 2)(tg.ones(4, 5)), "linear"),
        (lambda: nn.Linear(3, 2)(tg.ones(4, 3, dtype=tg.float64)), "dtype"),
        (lambda: F.cross_entropy(tg.ones(2, 3), tg.ones(3, dtype=tg.int64)), r"targets of shape \[2\]"),
        (lambda: F.mse_loss(tg.ones(2), tg.ones(2), reduction="avg"), "reduction"),
        (lambda: F.binary_cross_entropy(tg.ones(2), tg.ones(3)), "shape"),
        (lambda: F.prelu(tg.ones(2, 3), tg.ones(2)), "1 or 3 elements"),
        (lambda: F.relu(3.0), "must be a tensor"),
        (lambda: F.leaky_relu(tg.ones(1), slope=1), "slope"),
        (lambda: F.layer_norm(tg.ones(2, 3), (4,)), r"ends in dimensions \[4\]"),
        (lambda: F.multi_margin_loss(tg.ones(2, 3), tg.zeros(2).long(), p=3), "p must be"),
        (lambda: F.one_hot(tg.ones(2)), "integer"),
        (lambda: nn.init.kaiming_uniform_(tg.ones(3)), "at least 2 dimensions"),
        (lambda: nn.init.calculate_gain("sine"), "unknown nonlinearity"),
        (lambda: nn.GroupNorm(3, 4), "groups"),
        (lambda: nn.Hardtanh(1.0, 0.0), "min_val"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(TracegradError, match=message):
        call()


def test_warnings() -> None:
    with pytest.warns(UserWarning, match="broadcast"):
        F.mse_loss(tg.ones(3, 1), tg.ones(3))
    with pytest.warns(UserWarning, match="dim="):
        F.softmax(tg.ones(3, 1))
    with pytest.warns(UserWarning, match="reduction"):
        assert nn.MSELoss(size_average=False).reduction == "sum"
