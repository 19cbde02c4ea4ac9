"""Learning-rate schedulers: rates against PyTorch, saving, and driving compiled steps."""

from __future__ import annotations

from typing import Any

import pytest
import tracegrad as tg
from tracegrad import optim
from tracegrad.ir.errors import TracegradError
from tracegrad.optim import lr_scheduler as sched


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


def params(n: int = 2) -> list[Any]:
    return [tg.ones(2).requires_grad_() for _ in range(n)]


SCHEDULES: dict[str, Any] = {
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda e: 0.9**e),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, [lambda e: 0.9, lambda e: 0.8]),
    "StepLR": lambda s, o: s.StepLR(o, 3),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [2, 5, 5]),
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda s, o: s.LinearLR(o, 0.25, 0.9, 6),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 5, 0.01),
    "WarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.1, 1.0, 4, 3, mode="triangular2"),
    "CyclicLR-exp": lambda s, o: s.CyclicLR(o, [0.1, 0.2], 1.0, 4, mode="exp_range", gamma=0.9),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 1.0, 20),
    "OneCycleLR-3": lambda s, o: s.OneCycleLR(o, [1.0, 2.0], epochs=4, steps_per_epoch=5, three_phase=True,
                                              anneal_strategy="linear"),
    "SequentialLR": lambda s, o: s.SequentialLR(o, [s.ConstantLR(o, 0.1, 3), s.ExponentialLR(o, 0.9)], [4]),
    "Chained": lambda s, o: s.ChainedScheduler([s.ConstantLR(o, 0.1, 3), s.ExponentialLR(o, 0.9)], o),
}  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_like_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")

    def rates(lib: Any) -> list[Any]:
        a, b = (lib.ones(1).requires_grad_() for _ in range(2))
        o = lib.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.3}], lr=0.5, momentum=0.9)
        s = SCHEDULES[name](lib.optim.lr_scheduler, o)
        out = []
        for _ in range(18):
            out.append(
                (
                    *s.get_last_lr(),
                    *(g["lr"] for g in o.param_groups),
                    *(g["momentum"] for g in o.param_groups),
                )
            )
            o.step()
            s.step()
        return out

    assert rates(tg) == rates(torch)


@pytest.mark.peer
@pytest.mark.parametrize(
    "options", [{}, {"mode": "max", "threshold_mode": "abs"}, {"cooldown": 2, "min_lr": 0.05}]
)
def test_plateau_like_pytorch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")

    def rates(lib: Any) -> list[float]:
        o = lib.optim.SGD([lib.ones(1).requires_grad_()], lr=0.5)
        s = lib.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5, **options)
        out = []
        for v in (3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 0.5, 9.0):
            s.step(lib.tensor(v))
            out.append(o.param_groups[0]["lr"])
        return out

    assert rates(tg) == rates(torch)


def test_schedules_save_load_and_resume() -> None:
    def fresh() -> tuple[Any, Any]:
        o = optim.SGD(params(1), lr=0.5)
        return o, sched.CosineAnnealingLR(o, 7)

    o, s = fresh()
    for _ in range(4):
        o.step()
        s.step()
    o2, s2 = fresh()
    o2.load_state_dict(o.state_dict())
    s2.load_state_dict(s.state_dict())
    for x, y in ((o, s), (o2, s2)):
        x.step()
        y.step()
    assert s2.get_last_lr() == s.get_last_lr() and s2.last_epoch == 5
    resumed = sched.ExponentialLR(o2, 0.5, last_epoch=4)
    assert resumed.last_epoch == 5
    with pytest.raises(TracegradError, match="initial_lr"):
        sched.ExponentialLR(optim.SGD(params(1), lr=0.5), 0.5, last_epoch=4)


def test_schedule_drives_a_compiled_step_without_new_traces() -> None:
    def losses(compiled: bool) -> tuple[list[float], Any]:
        _, o, step = problem(tg, "Adam", {"lr": 0.01})
        s = sched.OneCycleLR(o, 0.1, 12)  # moves betas too
        step = tg.compile(step) if compiled else step
        out = []
        for _ in range(10):
            out.append(step().item())
            s.step()
        return out, step

    lazy, (compiled, step) = losses(False)[0], losses(True)
    assert compiled == pytest.approx(lazy, rel=1e-5)
    assert sum(map(len, step.specializations.values())) == 1


def test_bad_schedules() -> None:
    o = optim.SGD(params(1), lr=0.5)
    for make, message in (
        (lambda: sched.StepLR(3, 1), "takes an Optimizer"),
        (lambda: sched.ConstantLR(o, 2.0), "factor"),
        (lambda: sched.LinearLR(o, 0.0), "start_factor"),
        (lambda: sched.LambdaLR(o, [abs, abs]), "2 values for 1"),
        (lambda: sched.OneCycleLR(o, 1.0), "total_steps"),
        (lambda: sched.CyclicLR(o, 0.1, 1.0, mode="up"), "mode"),
        (lambda: sched.ReduceLROnPlateau(o, mode="low"), "mode"),
        (lambda: sched.SequentialLR(o, [sched.StepLR(o, 1)], [1]), "milestones"),
        (lambda: sched.CyclicLR(optim.Adagrad(params(1)), 0.1, 1.0), "neither momentum nor betas"),
    ):
        with pytest.raises(TracegradError, match=message):
            make()
    s = sched.StepLR(o, 1)
    with pytest.warns(UserWarning, match="before optimizer.step"):
        s.step()
