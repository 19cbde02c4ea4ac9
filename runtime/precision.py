"""How exact contractions of f32 must be: PyTorch's setting. Read where a graph is lowered for a GPU; set by
users of the package."""

from __future__ import annotations

from ..ir.errors import TracegradError

PRECISIONS = ("highest", "high", "medium")
_now = ["highest"]


class PrecisionError(TracegradError, ValueError):
    """A name of no precision."""


def set_float32_matmul_precision(precision: str) -> None:
    """Allows contractions and convolutions of f32 to round their factors, on GPUs whose tensor cores then
    take them; sums stay in f32. Holds for what is compiled afterwards, and changes nothing on the CPU.

    - `"highest"`: no rounding (the default).
    - `"high"`, `"medium"`: to tf32, which has 10 bits of mantissa.

    Raises ValueError for other names.
    """
    if precision not in PRECISIONS:
        raise PrecisionError(
            f"set_float32_matmul_precision({precision!r}): expected {', '.join(map(repr, PRECISIONS))}"
        )
    _now[0] = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` set last."""
    return _now[0]
