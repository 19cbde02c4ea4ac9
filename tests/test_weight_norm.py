"""Parametrised tensors and hooks of modules: what they compute, how they train compiled, PyTorch's order of
calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn

P = nn.utils.parametrize


def a(t: Any) -> np.ndarray:
    return t.detach().numpy().copy()


# --- weight norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_keeps_the_weight_and_splits_it(dim: int | None) -> None:
    m = nn.Linear(3, 4)
    w = a(m.weight)
    assert nn.utils.weight_norm(m, dim=dim) is m
    assert sorted(m.state_dict()) == ["bias", "weight_g", "weight_v"] and repr(m) == repr(nn.Linear(3, 4))
    assert isinstance(m, nn.Linear)
    np.testing.assert_allclose(a(m.weight), w, rtol=1e-6)
    with tg.no_grad():
        m.weight_g.mul_(2)
    np.testing.assert_allclose(a(m.weight), 2 * w, rtol=1e-6)
    nn.utils.remove_weight_norm(m)
    assert (
        type(m) is nn.Linear
        and isinstance(m.weight, nn.Parameter)
        and list(m.state_dict()) == ["bias", "weight"]
    )
    np.testing.assert_allclose(a(m.weight), 2 * w, rtol=1e-6)
    with pytest.raises(ValueError, match="no weight normalisation"):
        nn.utils.remove_weight_norm(m)


@pytest.mark.parametrize("form", ["old", "new", "spectral"])
def test_compiled_training_is_the_same(form: str) -> None:
    def losses(compile_: bool) -> list[float]:
        tg.manual_seed(0)
        m = nn.Linear(3, 4)
        u = nn.utils
        {
            "old": u.weight_norm,
            "new": u.parametrizations.weight_norm,
            "spectral": u.parametrizations.spectral_norm,
        }[form](m)
        opt, x = tg.optim.SGD(m.parameters(), lr=0.1), tg.randn(5, 3)

        def step() -> Any:
            opt.zero_grad()
            loss = (m(x) ** 2).sum()
            loss.backward()
            opt.step()
            return loss

        run = tg.compile(step) if compile_ else step
        return [run().item() for _ in range(4)]

    lazy = losses(False)
    np.testing.assert_allclose(losses(True), lazy, rtol=1e-5)
    assert lazy[-1] < lazy[0]


def test_states_of_the_old_form_load_into_the_new() -> None:
    old, new = nn.utils.weight_norm(nn.Linear(3, 2)), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    new.load_state_dict(old.state_dict())
    np.testing.assert_array_equal(a(new.weight), a(old.weight))


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    tg.manual_seed(0)
    m = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5), n_power_iterations=30)
    m(tg.ones(1, 6))
    m.eval()
    before = a(m.weight)
    assert np.linalg.svd(before)[1][0] == pytest.approx(1, rel=1e-3)
    np.testing.assert_array_equal(a(m.weight), before)


class Symmetric(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.triu() + x.triu(1).transpose(-1, -2)

    def right_inverse(self, x: Any) -> Any:
        return x.triu()


class Scaled(nn.Module):
    def forward(self, x: Any) -> Any:
        return 2 * x

    def right_inverse(self, x: Any) -> Any:
        return x / 2


def test_parametrizations_chain_and_are_removed() -> None:
    m = nn.Linear(3, 3)
    assert not P.is_parametrized(m)
    parameter = m.weight
    P.register_parametrization(m, "weight", Symmetric())
    assert P.is_parametrized(m, "weight") and not P.is_parametrized(m, "bias")
    assert m.parametrizations.weight.original is parameter
    P.register_parametrization(m, "weight", Scaled())
    m.weight = tg.full((3, 3), 6.0)
    np.testing.assert_array_equal(a(m.weight), np.full((3, 3), 6.0))
    np.testing.assert_array_equal(a(parameter), np.triu(np.full((3, 3), 3.0)))
    assert "ParametrizedLinear" in repr(m) and P.type_before_parametrizations(m) is nn.Linear
    twin = copy.deepcopy(m)
    with tg.no_grad():
        twin.parametrizations.weight.original.zero_()
    assert a(m.weight).sum() == 54
    with P.cached():
        assert m.weight is m.weight
    (m.weight * tg.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]])).sum().backward()
    assert a(parameter.grad)[0, 1] == 2
    P.remove_parametrizations(m, "weight")
    assert type(m) is nn.Linear and m.weight is parameter and a(parameter).sum() == 54


def test_parametrizations_of_buffers_and_errors() -> None:
    m = nn.Module()
    m.register_buffer("b", tg.ones(2, 2))
    P.register_parametrization(m, "b", Scaled())
    assert list(m.state_dict()) == ["parametrizations.b.original"]
    P.remove_parametrizations(m, "b", leave_parametrized=False)
    np.testing.assert_array_equal(a(m.b), np.full((2, 2), 0.5))

    class Sum(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.sum()

    with pytest.raises(ValueError, match=r"keep dtype and shape.*f32\[\] of f32\[2,2\]"):
        P.register_parametrization(m, "b", Sum())
    with pytest.raises(ValueError, match="no parameter, buffer"):
        P.register_parametrization(m, "c", Scaled())
    with pytest.raises(ValueError, match="no parametrised tensor"):
        P.remove_parametrizations(m, "b")
    wn = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="leave_parametrized"):
        P.remove_parametrizations(wn, "weight", leave_parametrized=False)


# --- hooks --------------------------------------------------------------------------------------------------


def hooked(lib: Any) -> list[Any]:
    """What hooks see, in order, and the gradients they leave."""
    lib.manual_seed(0)
    n = lib.nn
    m = n.Sequential(n.Linear(3, 4), n.Tanh(), n.Linear(4, 2))
    every = n.modules.module
    log: list[Any] = []

    def shown(gs: Any) -> list[Any]:
        return [None if g is None else np.round(a(g), 4).tolist() for g in gs]

    def note(what: str) -> Callable[..., None]:
        return lambda module, *gs: log.append((what, type(module).__name__, *map(shown, gs)))

    m[1].register_full_backward_hook(note("after"))
    m[0].register_full_backward_hook(note("after"))
    m[2].register_full_backward_hook(lambda module, gi, go: (gi[0] * 2,))
    m[2].register_full_backward_pre_hook(lambda module, go: (go[0] * 3,))
    m[1].register_full_backward_pre_hook(note("before"))
    handles = [
        every.register_module_forward_pre_hook(
            lambda module, args: log.append(("pre", type(module).__name__))
        ),
        every.register_module_forward_hook(
            lambda module, args, out: log.append(("out", type(module).__name__))
        ),
        every.register_module_full_backward_hook(note("all after")),
        every.register_module_full_backward_pre_hook(note("all before")),
        every.register_module_parameter_registration_hook(lambda module, k, p: log.append(("parameter", k))),
    ]
    n.Linear(1, 1)
    m(lib.ones(2, 3)).sum().backward()
    for h in handles:
        h.remove()
    x = lib.ones(2, 3).requires_grad_(True)
    y = m(x)
    y.sum().backward()
    log.append(y.grad_fn.name())
    return [*log, *shown([x.grad, *(p.grad for p in m.parameters())])]


def test_backward_hooks() -> None:
    m = nn.Linear(2, 2, bias=False)
    seen: list[Any] = []
    handle = m.register_full_backward_hook(lambda module, gi, go: seen.append((gi, go)))
    x = tg.ones(1, 2, requires_grad=True)
    m(x).sum().backward()
    ((gi, go),) = seen
    np.testing.assert_array_equal(a(go[0]), np.ones((1, 2)))
    np.testing.assert_allclose(a(gi[0]), a(m.weight).sum(0, keepdims=True), rtol=1e-6)
    handle.remove()
    m(x).sum().backward()
    with tg.no_grad():
        m(x)
    assert len(seen) == 1
    m.register_full_backward_hook(lambda module, gi, go: (gi[0], gi[0]))
    with pytest.raises(TypeError, match="replaced 1 gradients by 2"):
        m(x).sum().backward()


def test_hooks_are_part_of_compiled_steps() -> None:
    """A hook's arithmetic is compiled; adding and removing it is seen."""
    m = nn.Linear(3, 1, bias=False)
    x = tg.ones(1, 3, requires_grad=True)

    @tg.compile
    def step(x: Any) -> Any:
        return tg.autograd.grad(m(x).sum(), x)[0]

    plain = a(step(x))
    handle = m.register_full_backward_hook(lambda module, gi, go: (gi[0] * 10,))
    np.testing.assert_allclose(a(step(x)), 10 * plain, rtol=1e-6)
    handle.remove()
    np.testing.assert_allclose(a(step(x)), plain, rtol=1e-6)
    every = nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 5)
    np.testing.assert_allclose(a(step(x)), 5 * plain, rtol=1e-6)
    every.remove()
    np.testing.assert_allclose(a(step(x)), plain, rtol=1e-6)


def test_registration_and_state_hooks() -> None:
    every = nn.modules.module
    handles = [
        every.register_module_parameter_registration_hook(
            lambda module, name, p: nn.Parameter(p.detach() * 0)
        ),
        every.register_module_buffer_registration_hook(lambda module, name, b: b + 1),
        every.register_module_module_registration_hook(lambda module, name, m: nn.Identity()),
    ]
    m = nn.Module()
    m.w = nn.Parameter(tg.ones(2))
    m.register_buffer("b", tg.zeros(2))
    m.child = nn.Linear(1, 1)
    for h in handles:
        h.remove()
    assert a(m.w).sum() == 0 and a(m.b).sum() == 2 and isinstance(m.child, nn.Identity)
    m._register_load_state_dict_pre_hook(lambda state, prefix, *rest: state.pop(f"{prefix}extra", None))
    m._register_state_dict_hook(lambda module, state, prefix, meta: state.update({f"{prefix}extra": 1}))
    state = m.state_dict()
    assert state["extra"] == 1
    m.load_state_dict(state)


def test_uninitialised_parameters_are_an_error() -> None:
    for cls in (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer):
        with pytest.raises(TypeError, match="needs a shape"):
            cls()


# --- against PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.peer
def test_hooks_like_pytorch() -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = hooked(torch)
    assert hooked(tg) == wanted


def trained(lib: Any, form: str, dim: int | None, conv: bool) -> Any:
    lib.manual_seed(0)
    m = lib.nn.Conv1d(3, 4, 2) if conv else lib.nn.Linear(3, 4)
    x = lib.randn(2, 3, 6) if conv else lib.randn(5, 3)
    u = lib.nn.utils
    if form == "spectral":
        u.parametrizations.spectral_norm(m)
    else:
        (u.weight_norm if form == "old" else u.parametrizations.weight_norm)(m, dim=dim)
    text = [repr(m), list(m.state_dict()), [k for k, _ in m.named_parameters()]]
    opt, losses = lib.optim.SGD(m.parameters(), lr=0.1), []
    for _ in range(3):
        opt.zero_grad()
        loss = (m(x) ** 2).sum()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    m(x)
    text.append(m.weight.grad_fn.name())
    weight = a(m.weight)
    if form == "old":
        u.remove_weight_norm(m)
    else:
        u.parametrize.remove_parametrizations(m, "weight")
    return [*text, repr(m), list(m.state_dict())], [np.array(losses), weight, a(m(x))]


@pytest.mark.peer
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(
    ("form", "dim"), [(f, d) for f in ("old", "new") for d in (0, 1, None)] + [("spectral", 0)]
)
def test_weight_norms_like_pytorch(form: str, dim: int | None, conv: bool, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch.nn.utils.parametrizations")
    monkeypatch.setenv("TRACEGRAD_LAZY", "interpret")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text, numbers = trained(torch, form, dim, conv)
    mine, got = trained(tg, form, dim, conv)
    assert mine == text
    for x, y in zip(got, numbers):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)
