"""The lazy trace: program boundaries, the trie's cache, what a flush keeps, failures."""

from collections.abc import Iterator

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.tracer import lazy
from tracegrad.tracer.recording import STATE, LazyTrace


@pytest.fixture
def trace() -> Iterator[LazyTrace]:
    """A fresh lazy trace for this thread."""
    old_lazy, old_trace = STATE.lazy, STATE.trace
    STATE.lazy = STATE.trace = LazyTrace(lazy.run_pending)
    yield STATE.lazy
    STATE.lazy, STATE.trace = old_lazy, old_trace


def programs(trace: LazyTrace) -> list[lazy.LazyProgram]:
    found, stack = [], [trace.root]
    while stack:
        node = stack.pop()
        found.extend((node.programs or {}).values())
        stack.extend(node.children.values())
    return [p for p in found if p.output_slots]


def train(steps: int, every: int = 0) -> tuple[list[float], tg.Tensor]:
    w = tg.tensor([1.0, -1.0], requires_grad=True)
    x = tg.tensor([0.5, 2.0])
    losses = []
    for i in range(steps):
        loss = ((w * x - 1) ** 2).sum()
        if every and i % every == 0:
            losses.append(loss.item())
        w.grad = None
        loss.backward()
        with tg.no_grad():
            w.sub_(0.1 * w.grad)
    return losses, w


def test_a_training_loop_is_one_program_per_iteration(trace: LazyTrace) -> None:
    _, w = train(20)
    values = w.tolist()
    found = programs(trace)
    assert max(p.runs for p in found) >= 18
    assert sum(p.runs for p in found) <= 22
    ref = np.array([1.0, -1.0])
    for _ in range(20):
        ref = ref - 0.1 * 2 * (ref * [0.5, 2] - 1) * [0.5, 2]
    assert values == pytest.approx(ref.tolist(), rel=1e-5)


def test_reading_the_loss_now_and_then_does_not_change_results(trace: LazyTrace) -> None:
    _, a = train(13)
    losses, b = train(13, every=3)
    assert a.tolist() == pytest.approx(b.tolist(), rel=1e-6)
    assert len(losses) == 5 and losses == sorted(losses, reverse=True)


def test_first_sight_is_interpreted_second_compiled(
    trace: LazyTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEGRAD_LAZY", raising=False)
    x = tg.tensor([1.0, 2.0])
    for run in range(3):
        assert (x * 3 + 1).tolist() == [4, 7]
        (p,) = programs(trace)
        assert p.runs == run + 1 and (p.executable is None) == (run == 0)


def test_what_takes_long_to_interpret_is_compiled_at_first_sight(
    trace: LazyTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEGRAD_LAZY", raising=False)
    lstm, x = tg.nn.LSTM(4, 4), tg.ones(400, 1, 4)
    with tg.no_grad():
        whole = lstm(x)[0].numpy()
        parts = np.concatenate([lstm(x[:1])[0].numpy()])
    assert np.allclose(whole[:1], parts, atol=1e-6)
    compiled = {len(p.graph.nodes): p.executable is not None for p in programs(trace) if p.dear}
    assert set(compiled.values()) == {True}


def test_replaying_an_optimiser_step_leads_to_the_same_program(trace: LazyTrace) -> None:
    tg.manual_seed(0)
    model = tg.nn.Sequential(*[tg.nn.Linear(4, 4) for _ in range(5)])
    optimizer = tg.optim.AdamW(model.parameters(), lr=0.01)
    x = tg.randn(3, 4)
    x.sum().item()
    for _ in range(7):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        loss.item()
    runs = sorted(p.runs for p in programs(trace) if p.updates)
    assert runs == [7]


def test_dead_values_are_not_computed(trace: LazyTrace) -> None:
    x = tg.tensor([1.0, 2.0])
    dead = x.exp()
    y = x + 1
    del dead
    y.tolist()
    (p,) = programs(trace)
    assert [n.op.name for n in p.graph.nodes] == ["constant", "add"]


def test_a_number_that_changes_recompiles_once(trace: LazyTrace) -> None:
    x = tg.tensor([1.0, 2.0])
    for epoch in range(6):
        assert (x * (0.1 * epoch)).tolist() == pytest.approx([0.1 * epoch, 0.2 * epoch])
    assert len(programs(trace)) == 2


def test_a_failed_run_leaves_tensors_as_they_were(trace: LazyTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    x = tg.tensor([1.0, 2.0])
    x.tolist()
    x.add_(1)

    def fail(*args: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as m:
        m.setattr(trace, "_run", fail)
        with pytest.raises(MemoryError):
            x.tolist()
    assert x.tolist() == [1, 2]


def test_user_lines_are_recorded(trace: LazyTrace) -> None:
    x = tg.tensor([1.0])
    y = x * 2
    assert y._value().node is not None
    loc = y._value().node.loc
    assert loc is not None and loc.file.endswith("test_lazy.py")


def test_graph_ops_inside_the_walk_have_phase_backward(trace: LazyTrace) -> None:
    w = tg.tensor([2.0], requires_grad=True)
    (w * w).sum().backward()
    phases = [n.phase for n in trace.nodes]
    assert phases[0] == "forward" and phases[-1] == "backward"
    assert w.grad is not None and w.grad.tolist() == [4]


def test_many_parameters_are_recorded_in_one_order(trace: LazyTrace) -> None:
    tg.manual_seed(0)
    model = tg.nn.Sequential(*[tg.nn.Linear(4, 4) for _ in range(4)])
    optimizer = tg.optim.SGD(model.parameters(), lr=0.01)
    x = tg.randn(3, 4)
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        loss.item()
    assert sorted(p.runs for p in programs(trace))[-1] >= 10


def steps_of(model: tg.nn.Module, x: tg.Tensor, count: int) -> None:
    opt = tg.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(count):
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        loss.item()


def test_a_loop_is_one_program_from_its_first_step(trace: LazyTrace) -> None:
    """Neither what made the parameters nor a forward that nobody used is left in the first step or keeps
    parameters from being updated in place."""
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[tg.nn.Module] = [
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
    ]
    model, x = nn.Sequential(*layers, nn.Flatten()), tg.randn(2, 2, 3, 3)
    assert len(model(x)) == 2
    steps_of(model, x, 3)
    updating = [p for p in programs(trace) if len(p.updates) > len(list(model.parameters()))]
    assert [p.runs for p in updating] == [3]


def test_a_training_step_that_is_slow_to_interpret_is_compiled_at_first_sight(
    trace: LazyTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEGRAD_LAZY", raising=False)
    for seconds, expected in ((0.01, False), (0.1, True)):
        monkeypatch.setattr(lazy, "_interpreting", lambda graph, seconds=seconds: seconds)
        monkeypatch.setattr(lazy, "_compiling", lambda graph: 0.5)
        trace.root = type(trace.root)(None)
        trace._reset()
        steps_of(tg.nn.Linear(3, 2), tg.ones(1, 3), 1)
        assert [p.dear for p in programs(trace) if p.updates] == [expected]


def test_slow_programs_are_looked_up_in_the_cache_before_they_are_interpreted(
    trace: LazyTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACEGRAD_LAZY", raising=False)
    monkeypatch.setattr(lazy, "_LOOKED_UP", 0)
    x = tg.tensor([1.0, 2.5])
    for _ in range(2):  # interpreted, then compiled, which leaves it in the cache
        assert (x * 3 + 1.75).tolist() == [4.75, 9.25]
    monkeypatch.setattr(lazy, "interpret", lambda *a: pytest.fail("it was interpreted"))
    trace.root = type(trace.root)(None)
    trace._reset()
    assert (x * 3 + 1.75).tolist() == [4.75, 9.25]


def test_what_composites_compute_for_results_that_nobody_wants_is_not_interpreted(trace: LazyTrace) -> None:
    x = tg.ones(4)
    for _ in range(3):
        x = tg.nn.functional.dropout(x.exp(), 0.5)
    del x
    tg.nn.functional.dropout(tg.ones(2), 0.5).tolist()  # ends the program, after four draws
    (p,) = programs(trace)
    names = [node.op.name for node in p.graph.nodes]
    assert "exp" not in names and names.count("dropout") == 1
    tg.manual_seed(1)
    masks = [tg.nn.functional.dropout(tg.ones(64), 0.5) for _ in range(3)]
    last = masks[2].tolist()
    tg.manual_seed(1)
    for _ in range(2):
        tg.nn.functional.dropout(tg.ones(64).sin(), 0.5)
    assert tg.nn.functional.dropout(tg.ones(64), 0.5).tolist() == last


def test_numbers_stay_with_a_graph_that_saved_nothing_else(trace: LazyTrace) -> None:
    x = tg.ones(3, requires_grad=True)
    for k in range(4):
        x.grad = None
        loss = ((5 + k) * x).sum()
        loss.backward()
        loss.item()  # the program ends; its nodes are made when somebody looks
        loss.backward()
        assert x.grad.tolist() == [10 + 2 * k] * 3
    scalars = [[v for v in p.graph.outputs if not v.type.shape] for p in programs(trace) if p.history]
    assert {len(found) for found in scalars} == {1}  # the loss; the number needs no memory


@pytest.mark.parametrize("number", [2, 2.0, -0.0, float("nan")])
def test_a_number_beside_a_tensor_is_what_it_always_was(trace: LazyTrace, number: float) -> None:
    x, n, a = tg.tensor([3.0, -0.5]), tg.tensor([3, -1]), np.float32([3, -0.5])
    for _ in range(3):  # new, met before, compiled
        with np.errstate(all="ignore"):
            for ours, theirs in (
                (x + number, a + np.float32(number)),
                (number - x, np.float32(number) - a),
                (x / number, a / np.float32(number)),
            ):
                np.testing.assert_array_equal(ours.numpy(), theirs)
        assert (x < number).tolist() == (a < number).tolist()
        assert (n * number).dtype is (tg.float32 if isinstance(number, float) else tg.int64)


def test_constant_arrays_are_there_for_a_second_gradient_after_a_read() -> None:
    """The divisors of a pool whose last windows are cut are an array; numbers alone are known anyway."""
    x = tg.rand(1, 6, 6, requires_grad=True)
    out = tg.nn.functional.avg_pool2d(x * 1, 3, 2, ceil_mode=True, count_include_pad=False) ** 3
    (first,) = tg.autograd.grad(out.sum(), [x], create_graph=True)
    assert first.detach().numpy().shape == (1, 6, 6)
    (second,) = tg.autograd.grad(first.sum(), [x])
    again = tg.nn.functional.avg_pool2d(x * 1, 3, 2, ceil_mode=True, count_include_pad=False) ** 3
    (unread,) = tg.autograd.grad(again.sum(), [x], create_graph=True)
    (expected,) = tg.autograd.grad(unread.sum(), [x])
    assert np.allclose(second.numpy(), expected.numpy(), rtol=1e-5) and second.abs().sum().item() > 0
