"""Modules, parameters, containers, hooks, saving and loading; modules under `compile`; bad input."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import TracegradError
from tracegrad.nn import functional as F

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
        m.register_forward_hook(3)


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
            m.load_state_dict(broken)
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
