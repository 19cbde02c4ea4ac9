"""The eight training scripts of `examples/`: undecorated and compiled give one loss curve, which goes where
it should; and with `tracegrad` replaced by `torch`, PyTorch draws the same curve from the same seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Script:
    """An example, how its `train` is called here, and what is known of its losses.

    Attributes:
        short: arguments of a run of `steps` losses or a few more.
        steps: how many losses are compared: rounding errors grow from step to step.
        falls_to: the last loss of the short run is below this share of the first.
    """

    name: str
    short: dict[str, int]
    steps: int = 20
    falls_to: float = 1.0
    needs: str = ""

    def __str__(self) -> str:
        return self.name


SCRIPTS = (
    Script("digits_convnet", {"epochs": 1}, 10, 0.5, "sklearn"),
    Script("sine_lstm", {"steps": 4}, 4, 0.05),
    Script("char_gpt", {"steps": 20}, 20, 0.9),
    Script("vae", {"epochs": 1}, 20, 0.9, "sklearn"),
    Script("gan", {"steps": 20}, 20),
    Script("graph_attention", {"steps": 20}, 20, 0.3),
    Script("reinforce", {"batches": 3}, 3),
    Script("gradient_penalty", {"steps": 20}, 20, 0.9),
)


def load(name: str, library: str = "tracegrad") -> dict[str, Any]:
    """The example's names, its imports of us replaced by those of another library."""
    path = EXAMPLES / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    if library != "tracegrad":
        text = text.replace("import tracegrad as torch", f"import {library} as torch")
        text = re.sub(r"\b(import|from) tracegrad\b", rf"\1 {library}", text)
    names: dict[str, Any] = {"__name__": name, "__file__": str(path)}
    exec(compile(text, str(path), "exec"), names)
    return names


def losses(script: Script, library: str, compiled: bool) -> np.ndarray:
    made = load(script.name, library)["train"](**script.short, compiled=compiled)
    curve = made if script.name == "gradient_penalty" else made[0]
    return np.array(curve, np.float64).reshape(len(curve), -1)[: script.steps]


@pytest.fixture(autouse=True)
def its_packages(request: pytest.FixtureRequest) -> None:
    script = request.node.callspec.params["script"]
    if script.needs:
        pytest.importorskip(script.needs)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_lazy_and_compiled_are_one(script: Script) -> None:
    lazy, compiled = (losses(script, "tracegrad", c) for c in (False, True))
    assert np.isfinite(lazy).all() and len(lazy) == script.steps
    np.testing.assert_allclose(lazy, compiled, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(lazy[:3], compiled[:3], rtol=2e-5, atol=1e-6)
    assert lazy[-1, 0] < script.falls_to * abs(lazy[0, 0]) + 1e-9 or script.falls_to == 1.0


@pytest.mark.peer
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_the_twin_in_pytorch(script: Script) -> None:
    pytest.importorskip("torch")
    theirs, ours = losses(script, "torch", False), losses(script, "tracegrad", True)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=2e-5, atol=1e-6)
