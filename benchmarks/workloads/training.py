"""The training step that the models in vision.py and others.py share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..record import Step


def train(tg: Any, model: Any, loss: Callable[[], Any]) -> Step:
    """A step of AdamW on what `loss` gives."""
    opt = tg.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> Any:
        opt.zero_grad()
        out = loss()
        out.backward()
        opt.step()
        return out

    return step


def classify(tg: Any, model: Any, classes: int, *inputs: Any) -> Step:
    """Cross entropy against random classes, one for every row of logits."""
    rows = len(model(*inputs))
    target = tg.randint(0, classes, (rows,))
    return train(tg, model, lambda: tg.nn.functional.cross_entropy(model(*inputs), target))


def regress(tg: Any, model: Any, shape: tuple[int, ...], *inputs: Any) -> Step:
    """Mean squared error against random values."""
    target = tg.randn(*shape)
    return train(tg, model, lambda: tg.nn.functional.mse_loss(model(*inputs), target))
