"""Convolutions: their windows, their sums over windows, layers; against PyTorch, and native code against the
interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from conv_cases import CONVS, Case, arrays, compiled, function, run

F = tg.nn.functional


def ids(cases: list[Case]) -> list[str]:
    return [f"{name}-{k}" for k, (name, _, _) in enumerate(cases)]


def close(got: list[np.ndarray], want: list[np.ndarray], rtol: float = 1e-9, atol: float = 1e-9) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)


@pytest.mark.peer
@pytest.mark.parametrize(("name", "shapes", "attrs"), CONVS, ids=ids(CONVS))
def test_convolution_like_pytorch(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    """Values, gradients and second derivatives."""
    torch = pytest.importorskip("torch")
    data = arrays(shapes)
    got, want = (run(lib, function(lib, name, attrs), data, order=2) for lib in (tg, torch))
    close(got, want)


@pytest.mark.parametrize(("name", "shapes", "attrs"), CONVS, ids=ids(CONVS))
def test_native_convolution(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    """Compiled in f32 against the interpreter in f64."""
    data = arrays(shapes, 1)
    f = function(tg, name, attrs)
    close(compiled(f, data), run(tg, f, data), rtol=2e-5, atol=2e-5)
