"""Optimisers: formulas against PyTorch, lazily, compiled and repeated; groups, state, hooks,
errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn, optim
from tracegrad.ir.errors import TracegradError
from tracegrad.optim import lr_scheduler as sched

# The loss falls by a little in 20 steps of each.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.5, "nesterov": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.01}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.01}),
    ("Adadelta", {"weight_decay": 0.01}),
    ("Adamax", {"weight_decay": 0.01}),
    ("NAdam", {"weight_decay": 0.01}),
    ("NAdam", {"weight_decay": 0.01, "decoupled_weight_decay": True}),
    ("RAdam", {"weight_decay": 0.01}),
    ("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("ASGD", {"t0": 5, "weight_decay": 0.01}),
    ("Rprop", {}),
]
IDS = [f"{n}-{'-'.join(k)}" for n, k in CASES]


def problem(lib: Any, name: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A model, its optimiser and a training step of one library."""
    lib.manual_seed(0)
    model = lib.nn.Sequential(lib.nn.Linear(3, 8), lib.nn.Tanh(), lib.nn.Linear(8, 2))
    x, y = lib.randn(10, 3), lib.randn(10, 2)
    optimizer = getattr(lib.optim, name)(model.parameters(), **options)

    def step() -> Any:
        optimizer.zero_grad()
        loss = lib.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step


@pytest.mark.peer
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_like_pytorch(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    model, optimizer, step = problem(tg, name, options)
    reference, theirs, their_step = problem(torch, name, options)
    losses, expected = ([s().item() for _ in range(20)] for s in (step, their_step))
    assert losses == pytest.approx(expected, rel=1e-5)
    for p, q in zip(model.parameters(), reference.parameters()):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert repr(optimizer) == repr(theirs)
    mine, want = optimizer.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == want["param_groups"]
    assert {k: list(v) for k, v in mine["state"].items()} == {k: list(v) for k, v in want["state"].items()}
    for i, entries in want["state"].items():
        for key, t in entries.items():
            scale = 1e-5 * max(1.0, float(t.abs().max()))  # a centred variance cancels
            np.testing.assert_allclose(
                mine["state"][i][key].numpy(), t.numpy(), rtol=1e-5, atol=scale, err_msg=key
            )


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_compiled_and_repeated_like_lazy(name: str, options: dict[str, Any]) -> None:
    _, _, step = problem(tg, name, options)
    losses = [step().item() for _ in range(6)]
    assert len(set(losses)) == 6
    _, optimizer, step = problem(tg, name, options)
    compiled = tg.compile(step)
    assert [compiled().item() for _ in range(6)] == pytest.approx(losses, rel=1e-5)
    assert sum(map(len, compiled.specializations.values())) == 1
    if "step" in optimizer.state_dict()["state"].get(0, {}):
        assert optimizer.state_dict()["state"][0]["step"].item() == 6
    _, _, step = problem(tg, name, options)
    assert tg.compile(step).repeat(6).tolist() == pytest.approx(losses, rel=1e-5)


def test_update_phase_and_one_bias_correction() -> None:
    _, _, step = problem(tg, "Adam", {})
    graph = tg.compile(step).lower().graph
    phases = {n.phase for n in graph.nodes}
    assert {"forward", "backward", "update"} <= phases
    assert sum(n.op.name == "pow" for n in graph.nodes) == 2  # shared by the four parameters
    # 4 parameters, 2 running means of each, one step count
    assert len(graph.updates) == 13


# --- hyper-parameters under compile -------------------------------------------------------------------------


def test_learning_rate_and_what_changes_are_read_at_each_call() -> None:
    def losses(compiled: bool) -> tuple[list[float], Any]:
        _, optimizer, step = problem(tg, "SGD", {"lr": 0.05, "momentum": 0.9})
        step = tg.compile(step) if compiled else step
        out = []
        for i in range(8):
            optimizer.param_groups[0]["lr"] = 0.05 / (i + 1)
            if i >= 3:
                optimizer.param_groups[0]["momentum"] = 0.9 - 0.05 * i
            out.append(step().item())
        return out, step

    lazy, (compiled, step) = losses(False)[0], losses(True)
    assert compiled == pytest.approx(lazy, rel=1e-5)
    # lr is a runtime scalar from the start, momentum once it was seen to change
    assert sum(map(len, step.specializations.values())) == 2


def test_switching_weight_decay_on_traces_again() -> None:
    w = tg.ones(2).requires_grad_()
    optimizer = optim.SGD([w], lr=0.5)

    @tg.compile
    def step() -> None:
        w.grad = tg.zeros(2)
        optimizer.step()

    step()
    assert w.tolist() == [1, 1]
    optimizer.param_groups[0]["weight_decay"] = 1.0
    step()
    assert w.tolist() == [0.5, 0.5]
    optimizer.param_groups[0]["weight_decay"] = 0
    step()
    assert w.tolist() == [0.5, 0.5]


def test_new_groups_and_loaded_state_under_compile() -> None:
    a, b = (tg.ones(2).requires_grad_() for _ in range(2))
    optimizer = optim.SGD([a], lr=0.5, momentum=0.5)

    @tg.compile
    def step() -> None:
        optimizer.zero_grad()
        (a + b).sum().backward()
        optimizer.step()

    step()
    assert a.tolist() == [0.5, 0.5] and b.tolist() == [1, 1]
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.add_param_group({"params": b, "lr": 1.0})
    b.grad = None
    step()
    assert a.tolist() == [-0.25, -0.25] and b.tolist() == [0, 0]
    other = optim.SGD([a], lr=0.5, momentum=0.5)
    other.load_state_dict(saved)
    assert other.state_dict()["state"][0]["momentum_buffer"].tolist() == [1, 1]


def test_tensor_learning_rate() -> None:
    w = tg.ones(1).requires_grad_()
    optimizer = optim.SGD([w], lr=tg.tensor(0.5))
    schedule = sched.StepLR(optimizer, 1, gamma=0.5)

    @tg.compile
    def step() -> None:
        w.grad = tg.ones(1)
        optimizer.step()

    step()
    schedule.step()
    step()
    assert w.item() == 0.25


# --- parameters without gradients ---------------------------------------------------------------------------


def test_parameters_that_rest_keep_their_step_count() -> None:
    a, b = (tg.ones(3).requires_grad_() for _ in range(2))
    optimizer = optim.Adam([a, b], lr=0.1)
    for use_b in (True, False, False, True):
        optimizer.zero_grad()
        ((a * 2).sum() + (b.sum() if use_b else 0)).backward()
        optimizer.step()
    state = optimizer.state_dict()["state"]
    assert state[0]["step"].item() == 4 and state[1]["step"].item() == 2

    expected = optim.Adam([c := tg.ones(3).requires_grad_()], lr=0.1)
    for _ in range(2):
        c.grad = tg.ones(3)
        expected.step()
    assert b.tolist() == pytest.approx(c.tolist())


def test_parameters_that_rest_under_compile() -> None:
    def train(compiled: bool) -> list[list[float]]:
        a, b = (tg.ones(3).requires_grad_() for _ in range(2))
        optimizer = optim.Adam([a, b], lr=0.1)

        def both() -> None:
            optimizer.zero_grad()
            (a * b).sum().backward()
            optimizer.step()

        def one() -> None:
            optimizer.zero_grad()
            (a * 2).sum().backward()
            optimizer.step()

        f, g = (tg.compile(both), tg.compile(one)) if compiled else (both, one)
        for call in (f, f, g, g, f, g):
            call()
        return [a.tolist(), b.tolist(), [s["step"].item() for s in optimizer.state_dict()["state"].values()]]

    lazy, compiled = train(False), train(True)
    assert compiled[2] == lazy[2] == [6, 3]
    assert compiled[0] == pytest.approx(lazy[0]) and compiled[1] == pytest.approx(lazy[1])


def test_zero_grad() -> None:
    w = tg.ones(2).requires_grad_()
    optimizer = optim.SGD([w], lr=1.0)
    (w * 3).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert w.grad is not None and w.grad.tolist() == [0, 0]
    optimizer.zero_grad()
    assert w.grad is None
    optimizer.step()  # nothing to do
    assert w.tolist() == [1, 1]


def test_f64_f16_and_0d_parameters() -> None:
    for dtype in (tg.float64, tg.float16):
        w = tg.tensor(2.0, dtype=dtype, requires_grad=True)
        optimizer = optim.Adam([w], lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            (w * w).backward()
            optimizer.step()
        assert w.dtype is dtype and optimizer.state[w]["exp_avg"].dtype is dtype
        assert w.item() == pytest.approx(0.5, abs=0.1)


# --- groups, saving, hooks, errors --------------------------------------------------------------------------


def params(n: int = 2) -> list[Any]:
    return [tg.ones(2).requires_grad_() for _ in range(n)]


def test_groups_and_repr() -> None:
    a, b, c = params(3)
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 0.5}], lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": [c], "momentum": 0})
    assert [(g["lr"], g["momentum"]) for g in optimizer.param_groups] == [(0.1, 0.9), (0.5, 0.9), (0.1, 0)]
    for p in (a, b, c):
        p.grad = tg.ones(2)
    optimizer.step()
    assert [p[0].item() for p in (a, b, c)] == pytest.approx([0.9, 0.5, 0.9])
    assert "Parameter Group 2\n    dampening: 0\n" in repr(optimizer)
    named = optim.SGD(nn.Linear(2, 1).named_parameters(), lr=0.1)
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.SGD(params()[0], lr=0.1), "got one tensor"),
        (lambda: optim.SGD([], lr=0.1), "no parameters"),
        (lambda: optim.SGD([1.0], lr=0.1), "must be tensors"),
        (lambda: optim.SGD([params()[0] * 2], lr=0.1), "computed from others"),
        (lambda: optim.SGD([{"lr": 1.0}], lr=0.1), "needs 'params'"),
        (lambda: optim.SGD([{"params": set(params())}], lr=0.1), "order"),
        (lambda: optim.SGD(params(), lr=-0.1), "lr must be >= 0"),
        (lambda: optim.SGD(params(), lr=0.1, nesterov=True), "nesterov"),
        (lambda: optim.Adam(params(), betas=(1.0, 0.9)), r"betas\[0\]"),
        (lambda: optim.Adam(params(), eps=math.nan), "eps must be"),
        (lambda: optim.Rprop(params(), etas=(1.5, 2.0)), "etas"),
        (lambda: optim.Adadelta(params(), rho=2.0), "rho"),
        (lambda: optim.Adam(params(), differentiable=True), "differentiable"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(TracegradError, match=message):
        make()


def test_bad_groups_leave_the_optimizer_as_it_was() -> None:
    a, b = params()
    optimizer = optim.Adam([a])
    for group, message in (
        ([b], "must be a dict"),
        ({"params": [b, a]}, "more than one group"),
        ({"params": [b], "lr": -1.0}, "lr"),
        ({"params": [b * 2]}, "computed from others"),
        ({"params": 3}, "'params' must be"),
    ):
        with pytest.raises(TracegradError, match=message):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["params"] == [a]
    with pytest.warns(UserWarning, match="twice"):
        optimizer.add_param_group({"params": [b, b]})


def test_save_and_load_continue_alike() -> None:
    model, optimizer, step = problem(tg, "Adam", {"amsgrad": True})
    for _ in range(3):
        step()
    saved = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(model.state_dict())
    expected = [step().item() for _ in range(3)]
    model2, optimizer2, step2 = problem(tg, "Adam", {"lr": 5.0})
    model2.load_state_dict(weights)
    optimizer2.load_state_dict(saved)
    assert [step2().item() for _ in range(3)] == pytest.approx(expected, rel=1e-6)
    assert optimizer2.param_groups[0]["lr"] == 1e-3 and optimizer2.param_groups[0]["amsgrad"]
    steps = {id(s["step"]) for s in optimizer2.state.values()}
    assert len(steps) == 1  # one count again for all
    assert saved["state"][0]["step"].item() == 3  # the loaded tensors were copied


def test_bad_state_leaves_the_optimizer_as_it_was() -> None:
    _, optimizer, step = problem(tg, "Adam", {})
    step()
    before = copy.deepcopy(optimizer.state_dict())
    good = optimizer.state_dict()
    for broken, message in (
        ([], "takes a dict"),
        ({"state": {}}, "takes a dict"),
        ({**good, "param_groups": good["param_groups"] * 2}, "2 parameter groups"),
        ({**good, "param_groups": [{**good["param_groups"][0], "params": [0]}]}, "1 parameters"),
        ({**good, "state": {0: {"exp_avg": tg.zeros(7)}}}, "exp_avg"),
    ):
        with pytest.raises(TracegradError, match=message):
            optimizer.load_state_dict(broken)
        after = optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert after["state"][0]["exp_avg"].tolist() == before["state"][0]["exp_avg"].tolist()


def test_closure_and_hooks() -> None:
    w = tg.tensor([2.0], requires_grad=True)
    optimizer = optim.SGD([w], lr=0.25)
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append("before")),
        optimizer.register_step_post_hook(lambda o, a, k: seen.append("after")),
        optimizer.register_state_dict_post_hook(lambda o, d: {**d, "extra": 1}),
    ]

    @tg.no_grad
    def step() -> Any:
        def closure() -> Any:
            optimizer.zero_grad()
            loss = (w * w).sum()
            loss.backward()
            return loss

        return optimizer.step(closure)

    assert step().item() == 4 and w.item() == 1 and seen == ["before", "after"]
    assert optimizer.state_dict()["extra"] == 1
    for h in handles:
        h.remove()
    step()
    assert seen == ["before", "after"] and "extra" not in optimizer.state_dict()


def test_an_optimizer_of_ones_own() -> None:
    class Signed(optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        @tg.no_grad
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.grad.sign())
                    self.state[p]["n"] = self.state[p].get("n", 0) + 1

    w = tg.ones(2).requires_grad_()
    optimizer = Signed([w], 0.5)
    (w * tg.tensor([3.0, -2.0])).sum().backward()
    optimizer.step()
    assert w.tolist() == [0.5, 1.5] and optimizer.state_dict()["state"] == {0: {"n": 1}}
    with pytest.raises(NotImplementedError, match="no step"):
        optim.Optimizer([w], {}).step()


def test_memory_seen_by_numpy_follows_the_updates() -> None:
    model, optimizer, step = problem(tg, "Adam", {})
    weight = model[0].weight.detach().numpy()
    step()
    state = optimizer.state[model[0].weight]["exp_avg"].numpy()
    before = weight.copy(), state.copy()
    step()
    assert (weight != before[0]).all() and (state != before[1]).all()
    assert (weight == model[0].weight.detach().numpy()).all()
    _, _, other = problem(tg, "Adam", {})
    expected = [other().item() for _ in range(4)]
    assert [step().item() for _ in range(2)] == pytest.approx(expected[2:], rel=1e-6)
