"""What compiled functions see of Python around them: gradients and attributes that were replaced, variables
of closures and modules, arguments that share memory, containers of tensors."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from typing import Any

import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import TraceError

SCALE = 2.0
CONFIG = {"scale": 1.0}


def _scaled(x: tg.Tensor) -> tg.Tensor:
    return x * SCALE


def _programs(f: Any) -> int:
    return sum(len(found) for found in f.specializations.values())


def _train(compiled: bool, whole: bool) -> list[list[float]]:
    """Six batches, a step after every second; `whole`: the optimiser's step is what is compiled."""
    tg.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = tg.optim.Adam(model.parameters(), 0.1)
    batches = [tg.randn(3, 2) for _ in range(6)]

    def micro(x: tg.Tensor) -> None:
        model(x).pow(2).mean().backward()

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    if compiled:
        micro, step = (micro, tg.compile(step)) if whole else (tg.compile(micro), step)
    for i, x in enumerate(batches):
        micro(x)
        if i % 2:
            step()
    if compiled:
        assert _programs(step if whole else micro) <= 2
    return [p.flatten().tolist() for p in model.parameters()]


@pytest.mark.parametrize("whole", [False, True])
def test_gradients_accumulate_over_calls_and_after_zero_grad(whole: bool) -> None:
    for got, want in zip(_train(True, whole), _train(False, whole)):
        assert got == pytest.approx(want, rel=1e-5)


def test_a_gradient_that_was_replaced_is_added_to() -> None:
    w = tg.ones(2, requires_grad=True)

    @tg.compile
    def f(w: tg.Tensor) -> None:
        (w * w).sum().backward()

    f(w)
    f(w)
    assert w.grad.tolist() == [4, 4]
    w.grad = tg.tensor([10.0, 20.0])
    f(w)
    assert w.grad.tolist() == [12, 22]
    w.grad = None
    f(w)
    v = tg.ones(2, requires_grad=True)
    f(v)
    assert w.grad.tolist() == v.grad.tolist() == [2, 2] and _programs(f) == 2


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", tg.zeros(()))
        self.h: Any = None
        self.scale = 1.0
        self.unread = 0

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        self.count = self.count + 1
        self.h = (x, x * 0) if self.h is None else (self.h[0] + x, self.h[1] + self.count)
        return self.h[0] * self.scale


def test_attributes_that_forward_sets_are_set_by_each_call() -> None:
    m, ref = Stateful(), Stateful()
    f = tg.compile(m)
    before = []
    for i in range(5):
        x = tg.full((2,), float(i))
        assert f(x).tolist() == ref(x).tolist()
        before.append(m.h[0])
    assert [h.tolist()[0] for h in before] == [0, 1, 3, 6, 10]  # what was there before stays what it was
    assert m.h[1].tolist() == ref.h[1].tolist() and m.count.item() == 5 and _programs(f) == 2
    m.h = ref.h = None
    assert f(tg.ones(2)).tolist() == ref(tg.ones(2)).tolist() and m.h[0].tolist() == [1, 1]
    assert f.repeat(3, tg.ones(2))[:, 0].tolist() == [2, 3, 4] and m.count.item() == 9


def test_attributes_are_as_they_were_after_an_error() -> None:
    m = Stateful()

    @tg.compile
    def f(x: tg.Tensor) -> None:
        m(x)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        f(tg.ones(2))
    assert m.h is None and m.count.item() == 0


def test_attributes_that_are_read_are_looked_at() -> None:
    m = Stateful()
    f, g = tg.compile(m), tg.compile(lambda: m.h[0] * 3)
    f(tg.ones(2))
    assert g().tolist() == [3, 3]
    f(tg.ones(2))
    assert g().tolist() == [6, 6]
    n = _programs(f)
    m.unread = 5
    m.h = (tg.zeros(2), tg.zeros(2))
    assert f(tg.ones(2)).tolist() == [1, 1] and g().tolist() == [3, 3] and _programs(f) == n
    m.scale = 10.0
    assert f(tg.ones(2)).tolist() == [20, 20] and _programs(f) == n + 1


def test_objects_that_are_no_modules_have_attributes_too() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.average = tg.zeros(())
            self.last: Any = None
            self.weight = 0.5
            self.steps = 0

        def mixed(self, loss: tg.Tensor) -> tg.Tensor:
            return self.average * (1 - self.weight) + loss * self.weight

        @tg.compile
        def step(self, x: tg.Tensor) -> tg.Tensor:
            self.average = self.mixed(x.sum())
            self.last = {"x": [x + 1]}
            return self.average

    t = Trainer()
    for want in (1.0, 1.5, 1.75):
        assert t.step(tg.ones(2)).item() == t.average.item() == want
        t.steps += 1
    t.weight = 1.0
    assert t.step(tg.ones(2)).item() == 2 and t.last["x"][0].tolist() == [2, 2]
    assert _programs(Trainer.step) == 3  # with nothing in `last`, with something, with another weight


def test_variables_around_a_function_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    k, w = 2.0, tg.ones(2)

    @tg.compile
    def f() -> tg.Tensor:
        return _scaled(w) * k * CONFIG["scale"]

    assert f().tolist() == f().tolist() == [4, 4]
    k = 3.0
    assert f().tolist() == [6, 6]
    n = _programs(f)
    w = tg.zeros(2)  # another tensor of the type takes the place
    assert f().tolist() == [0, 0] and _programs(f) == n
    w.add_(1)
    monkeypatch.setitem(CONFIG, "scale", 2.0)
    assert f().tolist() == [12, 12]
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    assert f().tolist() == [6, 6]
    w = tg.ones(3)
    assert f().tolist() == [6, 6, 6]


def test_one_of_two_names_of_a_tensor_can_be_given_to_another() -> None:
    a = b = tg.ones(2)
    f = tg.compile(lambda: a * 2 + b)
    assert f().tolist() == [3, 3]
    a = tg.zeros(2)
    assert f().tolist() == [1, 1]
    b = tg.zeros(2)
    assert f().tolist() == [0, 0]


def test_a_model_that_is_made_again_is_another_model() -> None:
    m = nn.Linear(2, 2)
    f = tg.compile(lambda x: nn.functional.linear(m(x), m.weight))
    x = tg.ones(1, 2)
    for _ in range(2):
        want = nn.functional.linear(m(x), m.weight)
        assert f(x).flatten().tolist() == pytest.approx(want.flatten().tolist())
        m = nn.Linear(2, 2)
    m.weight = nn.Parameter(tg.zeros(2, 2))
    assert f(x).tolist() == [[0, 0]]


def test_what_makes_many_programs_is_named() -> None:
    k = 0
    f, g = tg.compile(lambda x: x * k), tg.compile(lambda x, n: x * n)
    with pytest.warns(UserWarning, match=r"9th time .* 'k' changed from 7 to 8.*as an argument"):
        for k in range(9):
            assert f(tg.ones(1)).item() == k
    with pytest.warns(UserWarning, match=r"32 different kinds of arguments \(last: f32\[1\]\)"):
        for i in range(33):
            g(tg.ones(1), i)


def test_a_number_that_only_the_trace_changes_is_named() -> None:
    m = Stateful()

    def f(x: tg.Tensor) -> tg.Tensor:
        m.unread += 1
        return m(x)

    with pytest.warns(UserWarning, match=r"Stateful.unread was set to 1 while 'f' was being compiled"):
        tg.compile(f)(tg.ones(2))


def test_arguments_that_share_memory() -> None:
    @tg.compile
    def f(a: tg.Tensor, b: tg.Tensor) -> tg.Tensor:
        a.add_(1)
        return a * b

    x = tg.ones(3, 4)
    assert f(x[0], x[0].clone()).tolist() == [2] * 4
    assert f(x[1], x[2]).tolist() == [2] * 4 and f(x[:, 0], x[:, 1]).tolist() == [6, 6, 2]
    y = tg.ones(2)
    assert f(y, y).tolist() == [4, 4] and y.tolist() == [2, 2]
    with pytest.raises(TraceError, match=r"argument 0, of type f32\[3\], .*1 sees the same memory"):
        f(x[0, 1:], x[0, :3])


@dataclasses.dataclass(frozen=True)
class Batch:
    x: Any
    n: int = 3


def test_records_and_kinds_of_dicts_come_out_as_they_are() -> None:
    @tg.compile
    def f(b: Batch, d: Any) -> Any:
        return dataclasses.replace(b, x=b.x * b.n), type(d)((k, v * 2) for k, v in d.items())

    b, d = f(Batch(tg.ones(2)), collections.OrderedDict(a=tg.ones(1)))
    assert type(b) is Batch and b.x.tolist() == [3, 3] and type(d) is collections.OrderedDict
    assert f(Batch(b.x, 4), d)[0].x.tolist() == [12, 12] and d["a"].tolist() == [2]


def test_a_compiled_module_is_the_module() -> None:
    m = nn.Dropout(0.5)
    f = tg.compile(m, mode="max-autotune", fullgraph=True, dynamic=False, backend="inductor")
    f.eval()
    f.note = 3
    assert f.training is m.training is False and m.note == 3 and f(tg.ones(4)).tolist() == [1] * 4
    m.train()
    assert f.training and tg.compile(m, disable=True) is m
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.p = 0.0
        assert f(tg.ones(4)).tolist() == [1] * 4
