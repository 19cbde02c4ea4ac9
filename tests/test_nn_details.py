"""Corners of layers, packed sequences, parametrised weights and optimisers that scripts do meet."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import TracegradError
from tracegrad.nn.utils import rnn
from tracegrad.tracer import creation, devices

F = nn.functional
LR = tg.optim.lr_scheduler


def a(t: Any) -> np.ndarray:
    return t.detach().numpy().copy()


def test_nothing_leaves_running_statistics_as_they_were() -> None:
    for layer, shape in ((nn.BatchNorm1d(3), (0, 3)), (nn.BatchNorm2d(3, momentum=None), (0, 3, 2, 2))):
        out = layer(tg.zeros(*shape))
        assert tuple(out.shape) == shape and layer.num_batches_tracked.item() == 1
        assert a(layer.running_mean).tolist() == [0, 0, 0] and a(layer.running_var).tolist() == [1, 1, 1]


def test_packing_inside_a_compiled_function() -> None:
    """Lengths may be a tensor written out in the function; batch sizes of a result are numbers outside."""
    lstm = nn.LSTM(3, 4, bidirectional=True)
    x = tg.randn(5, 3, 3)

    def run(x: Any) -> Any:
        packed = rnn.pack_padded_sequence(x, tg.tensor([3, 5, 1]), enforce_sorted=False)
        out, (h, _) = lstm(packed)
        return out, rnn.pad_packed_sequence(out)[0], h

    plain, compiled = run(x), tg.compile(run)(x)
    assert compiled[0].batch_sizes.tolist() == plain[0].batch_sizes.tolist() == [3, 2, 2, 1, 1]
    for one, other in zip((plain[0].data, *plain[1:]), (compiled[0].data, *compiled[1:])):
        np.testing.assert_allclose(a(one), a(other), atol=1e-6)
    again = rnn.pad_packed_sequence(compiled[0])[0]
    np.testing.assert_allclose(a(again), a(plain[1]), atol=1e-6)


def test_tensors_written_out_are_known_where_a_gpu_has_been_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "USED", [True])
    monkeypatch.setattr(creation, "USED", devices.USED)
    doubled = tg.compile(lambda x: x * tg.tensor([1.0, 2.0]).tolist()[1])
    assert doubled(tg.ones(2)).tolist() == [2, 2]


def test_what_is_only_known_when_it_runs_still_says_so_in_a_compiled_function() -> None:
    with pytest.raises(TracegradError, match="is needed while"):
        tg.compile(lambda n: rnn.pack_padded_sequence(tg.ones(5, 3, 2), n).data)(tg.tensor([5, 3, 1]))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_copies_of_computed_weights_are_their_own(norm: Any) -> None:
    m = norm(nn.Linear(3, 4)).eval()
    x = tg.randn(2, 3)
    before = a(m(x))
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        np.testing.assert_allclose(a(other(x)), before, rtol=1e-6)
        getattr(nn.utils, f"remove_{norm.__name__}")(other)
        assert type(other) is nn.Linear and sorted(other.state_dict()) == ["bias", "weight"]
        with tg.no_grad():
            other.weight.zero_()
        np.testing.assert_allclose(a(m(x)), before, rtol=1e-6)
    with pytest.raises(TracegradError, match="normalis"):
        getattr(nn.utils, f"remove_{norm.__name__}")(nn.Linear(3, 4))


def test_two_computed_weights_of_one_module() -> None:
    lstm = nn.LSTM(3, 2)
    x = tg.randn(4, 3)
    want = a(lstm(x)[0])
    nn.utils.weight_norm(lstm, "weight_hh_l0")
    nn.utils.weight_norm(lstm, "weight_ih_l0")
    np.testing.assert_allclose(a(lstm(x)[0]), want, rtol=1e-5, atol=1e-6)
    nn.utils.remove_weight_norm(lstm, "weight_hh_l0")
    assert "weight_ih_l0_g" in lstm.state_dict() and "weight_hh_l0_g" not in lstm.state_dict()
    np.testing.assert_allclose(a(lstm(x)[0]), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_freezing_and_modes_between_steps(compiled: bool) -> None:
    """What a step relies on may change between calls; each call does what the flags now say."""
    tg.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    sgd = tg.optim.SGD(model.parameters(), 0.1)

    def body(x: Any) -> Any:
        sgd.zero_grad()
        loss = model(x).pow(2).sum()
        loss.backward()
        sgd.step()
        return loss.detach()

    step = tg.compile(body) if compiled else body
    x = tg.linspace(-1, 1, 15).view(5, 3)
    kept = []
    for change in ("", "freeze", "eval", "train", "thaw"):
        if change in ("freeze", "thaw"):
            model[0].requires_grad_(change == "thaw")
        elif change:
            model.train(change == "train")
        before = {k: a(v) for k, v in model.state_dict().items()}
        step(x)
        kept.append(sorted(k for k, v in model.state_dict().items() if (a(v) == before[k]).all()))
    stats = ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    first = ["0.bias", "0.weight"]
    assert [[k for k in names if k in stats] for names in kept] == [[], [], stats, [], []]
    assert [set(first) <= set(names) for names in kept] == [False, True, True, True, False]


def adversaries(compiled: bool) -> Any:
    """Losses of steps that switch gradients and mode of one network off and on again."""
    tg.manual_seed(0)
    make, judge = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizers = [tg.optim.SGD(m.parameters(), 0.1) for m in (make, judge)]

    def body(x: Any) -> Any:
        losses = []
        for optimizer, frozen in zip(optimizers, (True, False)):
            judge.requires_grad_(not frozen)
            judge.train(not frozen)
            optimizer.zero_grad()
            made = make(x) if frozen else make(x).detach()
            loss = judge(made).pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    step = tg.compile(body) if compiled else body
    x = tg.linspace(-1, 1, 15).view(5, 3)
    seen = []
    for _ in range(3):
        judge.eval()
        judge.requires_grad_(False)
        seen.append([v.item() for v in step(x)])
        assert judge.training and judge[1].training and all(p.requires_grad for p in judge.parameters())
    assert judge[1].num_batches_tracked.item() == 3
    return seen


def test_freezing_and_modes_inside_a_step() -> None:
    np.testing.assert_allclose(adversaries(True), adversaries(False), rtol=1e-5)


def test_a_frozen_copy_of_anothers_tensors() -> None:
    """What is loaded from memory that others own is copied at once, not when it is first used."""

    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def detach(self) -> Foreign:
            return self

        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
            return self.array.__dlpack__(*args, **kwargs)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    memory = np.ones((2, 2), np.float32)
    p = tg.zeros(2, 2).requires_grad_()
    adam = tg.optim.Adam([p])
    state = {"step": 1, "exp_avg": Foreign(memory), "exp_avg_sq": Foreign(memory)}
    groups = [{**adam.state_dict()["param_groups"][0], "lr": Foreign(np.array(0.5, np.float32))}]
    adam.load_state_dict({"state": {0: state}, "param_groups": groups})
    layer = nn.Linear(2, 2, bias=False)
    layer.load_state_dict({"weight": Foreign(memory)})
    memory[:] = 7
    assert a(adam.state[p]["exp_avg"]).tolist() == [[1, 1], [1, 1]]
    assert a(layer.weight).tolist() == [[1, 1], [1, 1]]
    assert adam.param_groups[0]["lr"].item() == 0.5


def test_parameter_dicts_are_dicts() -> None:
    d = nn.ParameterDict({"x": tg.ones(2)})
    d.setdefault("y", tg.zeros(1))
    other = d.copy()
    assert other["x"] is d["x"] and d.popitem()[0] == "y" and list(d) == ["x"] and list(other) == ["x", "y"]


def test_text_of_groups_is_pytorchs() -> None:
    sgd = tg.optim.SGD([{"params": [tg.ones(1)]}, {"params": [tg.ones(2)], "lr": 0.5}], lr=0.1)
    assert "    weight_decay: 0\n\nParameter Group 1\n    dampening: 0\n" in repr(sgd)


def test_multiplicative_rate_starts_as_it_is() -> None:
    sgd = tg.optim.SGD([tg.ones(1)], lr=1.0)
    schedule = LR.MultiplicativeLR(sgd, lambda epoch: 0.5)
    assert sgd.param_groups[0]["lr"] == 1.0
    with pytest.warns(UserWarning, match="deprecated"):
        sgd.step()
        schedule.step(0)
    assert sgd.param_groups[0]["lr"] == 0.5


X = tg.ones(2, 3, 4, 4)
ROWS = tg.ones(2, 3)
BAD: list[tuple[Any, str]] = [
    (lambda: nn.LSTM(3, 4)(tg.zeros(0, 2, 3)), r"LSTM.*at least one step, got f32\[0,2,3\]"),
    (lambda: F.leaky_relu(X, "x"), "negative_slope must be a number, got str: 'x'"),
    (lambda: nn.Softplus(beta=None)(X), "beta must be a number, got NoneType"),
    (lambda: F.layer_norm(X, (4,), eps="x"), r"layer_norm.*eps must be a number, got str: 'x'"),
    (lambda: nn.GroupNorm(3, 3, eps=None)(X), r"group_norm.*eps must be a number, got NoneType"),
    (lambda: nn.BatchNorm2d(3, eps="x")(X), r"batch_norm.*eps must be a number, got str: 'x'"),
    (lambda: nn.Unflatten(1, (2, 2))(tg.ones(0, 3)), r"\[2, 2\] don't multiply up to 3"),
    (lambda: nn.utils.spectral_norm(nn.ReLU()), "no parameter 'weight'"),
    (lambda: nn.utils.spectral_norm(nn.Linear(2, 2), n_power_iterations=0), "n_power_iterations must be >="),
    (lambda: tg.optim.Adam([tg.ones(1)], foreach=True, fused=True), "foreach and fused can't both be True"),
    (lambda: tg.optim.Adam([tg.ones(1)], betas=0.9), "betas"),
]


#: Wrong for their values, which are known in ordinary code.
BAD_VALUES: list[tuple[Any, str]] = [
    (lambda: F.cross_entropy(ROWS, tg.tensor([[0], [3]]).view(-1)), r"i64\[2\]\).*target 3 is not one of 3"),
    (lambda: F.nll_loss(ROWS, tg.tensor([0, -3]).detach()), r"target -3 is not one of 3"),
    (lambda: F.multi_margin_loss(ROWS, tg.tensor([0, 3])), r"multi_margin_loss.*3 is not one of"),
    (lambda: F.multilabel_margin_loss(ROWS, tg.tensor([[0, 9, -1]] * 2)), "9 is not one of"),
    (lambda: F.multilabel_margin_loss(ROWS, tg.tensor([[0, -2, -1]] * 2)), "-2 is not one of"),
    (lambda: F.gaussian_nll_loss(ROWS, ROWS, tg.tensor([[-1.0, 0.0, 1.0]] * 2)), "var f32.*must not be neg"),
]
CASES = [(*case, compiled) for case in BAD for compiled in (False, True)]
CASES += [(*case, False) for case in BAD_VALUES]


@pytest.mark.parametrize(("call", "message", "compiled"), CASES)
def test_bad_input_is_an_error_that_says_what(call: Any, message: str, compiled: bool) -> None:
    with pytest.raises(TracegradError, match=message) as caught:
        tg.compile(lambda: call())() if compiled else call()
    if not compiled:
        assert "test_nn_details.py" in str(caught.value)
