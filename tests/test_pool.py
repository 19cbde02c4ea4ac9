"""Pools, padding, interpolation and their layers: against PyTorch, and native code against the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from conv_cases import POOLS, RESAMPLED, arrays, compiled, function, run
from test_conv import close, ids

F = tg.nn.functional
CASES = [*POOLS, *RESAMPLED]


@pytest.mark.peer
@pytest.mark.parametrize(("name", "shapes", "attrs"), CASES, ids=ids(CASES))
def test_pool_like_pytorch(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    data = arrays(shapes)
    got, want = (run(lib, function(lib, name, attrs), data) for lib in (tg, torch))
    close(got, want)


@pytest.mark.parametrize(("name", "shapes", "attrs"), CASES, ids=ids(CASES))
def test_native_pool(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    """Compiled in f32 against the interpreter in f64."""
    data = arrays(shapes, 1)
    f = function(tg, name, attrs)
    close(compiled(f, data), run(tg, f, data), rtol=2e-5, atol=2e-5)
