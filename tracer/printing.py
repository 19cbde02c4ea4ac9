"""How tensors print: character for character as PyTorch prints them.

`Tensor.__repr__` calls `tensor_repr`; users reach `set_printoptions` and `get_printoptions` under the
package's name. `format_array` is the pure part: an array and the options in, text out.

Three decisions shape the text, and each is made once for the whole tensor:
- which elements show: all of them, or beyond `threshold` only `edgeitems` at both ends of every dimension;
- the style of numbers (`Style`): integral floats as `1.`, fixed point, or scientific when the magnitudes of
  the shown elements are far apart or extreme;
- the column width: that of the widest shown element (of floats: finite and nonzero), which also decides how
  many fit on a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..ir.dataclass import dataclass, replace
from ..ir.dtypes import DType, bool_, int64
from ..ir.errors import TraceError
from .operands import get_default_dtype


@dataclass(frozen=True)
class PrintOptions:
    """What `set_printoptions` sets; the meaning of each field is explained there."""

    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_PROFILES = {
    "default": PrintOptions(),
    "short": PrintOptions(precision=2, edgeitems=2),
    "full": PrintOptions(threshold=math.inf),
}
_current = PrintOptions()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Changes how tensors print. What is left None stays as it is, except `sci_mode`.

    Args:
        precision: digits after the point of floats (4 at first).
        threshold: tensors of more elements than this are abbreviated with `...` (1000).
        edgeitems: how many elements an abbreviated dimension shows at each end (3).
        linewidth: columns after which lines are broken (80).
        profile: `"default"`, `"short"` or `"full"`: sets the four above, before the other arguments do.
        sci_mode: scientific notation always (True), never (False) or where the magnitudes ask for it (None).

    Raises:
        ValueError: for a profile that there isn't.
    """
    global _current
    if profile is not None and profile not in _PROFILES:
        raise ValueError(f"set_printoptions(): no profile {profile!r}; there are {', '.join(_PROFILES)}")
    given = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems, "linewidth": linewidth}
    base = _current if profile is None else _PROFILES[profile]
    _current = replace(base, sci_mode=sci_mode, **{k: v for k, v in given.items() if v is not None})


def get_printoptions() -> dict[str, Any]:
    """The options in force, as a dictionary that `set_printoptions` takes as keyword arguments."""
    return dict(vars(_current))


@contextmanager
def printoptions(**options: Any) -> Iterator[None]:
    """Inside the `with` block, tensors print as after `set_printoptions(**options)`."""
    global _current
    before = _current
    set_printoptions(**options)
    try:
        yield
    finally:
        _current = before


def tensor_repr(t: Any) -> str:
    """The text of a tensor. One that is being compiled has no contents yet: `tensor(<traced f32[3,4]>)`."""
    cls = type(t).__name__
    prefix = "tensor(" if cls in ("Tensor", "Parameter") else f"{cls}("
    try:
        array = t._array()
    except TraceError:
        extents = ",".join(map(str, t.shape))
        return f"{prefix}<traced {t.dtype.name}[{extents}]>)"
    grad_fn = t.grad_fn
    suffixes = []
    if t.is_cuda:
        suffixes.append(f"device='{t.device}'")
    if grad_fn is not None:
        suffixes.append(f"grad_fn=<{grad_fn.name()}>")
    elif t.requires_grad:
        suffixes.append("requires_grad=True")
    return format_array(array, t.dtype, suffixes=suffixes, prefix=prefix)


def format_array(array: np.ndarray, dtype: DType, *, suffixes: list[str], prefix: str = "tensor(") -> str:
    """The text of `array` (any shape) as a tensor of type `dtype`.

    Size and dtype are named where the elements don't tell them; then come `suffixes`, such as
    `requires_grad=True`.
    """
    options = _current
    default = get_default_dtype()
    facts = []
    if array.size == 0:
        body = "[]"
        if array.ndim != 1:
            facts.append(f"size={array.shape}")
        if dtype is not default:
            facts.append(f"dtype={dtype}")
    else:
        # float64 holds every shorter float exactly, but not 2**63 - 1: integers keep their type.
        exact = array.astype(np.float64) if dtype.is_floating_point else array
        body = _Layout(exact, dtype, options).text(exact, len(prefix))
        if options.edgeitems == 0:
            facts.append(f"size={array.shape}")
        if dtype not in (default, int64, bool_):
            facts.append(f"dtype={dtype}")
    return _append(prefix + body, [*facts, *suffixes], len(prefix), options.linewidth)


def _append(text: str, suffixes: list[str], indent: int, linewidth: int) -> str:
    """Adds `, suffix` for each and the closing bracket, on a new line where one would not fit.

    Lines break where PyTorch breaks them, so that texts differ in the package's name alone: its shorter name
    is what counts, and a column or two more than there are.
    """
    column = len(text) - text.rfind("\n") + 1
    for suffix in suffixes:
        length = len(suffix.replace("tracegrad.", "torch."))
        if column + length + 2 > linewidth:
            text += ",\n" + " " * indent + suffix
            column = indent + length
        else:
            text += ", " + suffix
            column += length + 2
    return text + ")"


class Style:
    """How the numbers of one tensor are written, and in how many columns.

    Attributes:
        spec: format specification of one number (without a width).
        point: appended to finite numbers, so that integral floats show that they are floats.
        width: columns of the widest number that counts: zeros, NaN and infinities don't.
    """

    __slots__ = ("point", "spec", "width")

    def __init__(self, shown: np.ndarray, floating: bool, options: PrintOptions) -> None:
        self.spec, self.point = "", ""
        if not floating:
            self.width = max([1, *(len(str(v)) for v in shown.ravel().tolist())])
            return
        counted = shown[np.isfinite(shown) & (shown != 0)]
        integral = bool((counted == np.ceil(counted)).all())
        if counted.size and _scientific(np.abs(counted), options):
            self.spec = f".{options.precision}e"
        elif integral:
            self.spec, self.point = ".0f", "."
        else:
            self.spec = f".{options.precision}f"
        self.width = max([1, *(len(self._number(v)) for v in counted.tolist())])

    def _number(self, v: Any) -> str:
        text = format(v, self.spec)
        return text + self.point if self.point and math.isfinite(v) else text

    def __call__(self, v: Any) -> str:
        """One element, right-aligned in the column."""
        return (self._number(v) if self.spec else str(v)).rjust(self.width)


def _scientific(magnitudes: np.ndarray, options: PrintOptions) -> bool:
    if options.sci_mode is not None:
        return options.sci_mode
    low, high = float(magnitudes.min()), float(magnitudes.max())
    return high / low > 1000.0 or high > 1.0e8 or low < 1.0e-4


class _Layout:
    """Brackets, commas, line breaks and dots of one tensor."""

    def __init__(self, array: np.ndarray, dtype: DType, options: PrintOptions) -> None:
        self.edge = options.edgeitems if array.size > options.threshold else None
        self.linewidth = options.linewidth
        self.style = Style(self._shown(array), dtype.is_floating_point, options)

    def _shown(self, array: np.ndarray) -> np.ndarray:
        """The elements that decide the style."""
        edge = self.edge
        if edge is None:
            return array
        if edge == 0:  # nothing shows; PyTorch then lets all elements of a vector count, and none of a matrix
            return array if array.ndim <= 1 else array[:0]
        for axis, extent in enumerate(array.shape):
            if extent > 2 * edge:
                array = np.take(array, [*range(edge), *range(extent - edge, extent)], axis)
        return array

    def _pick(self, extent: int) -> tuple[range, range] | None:
        """Indices before and after the dots, or None where a dimension is shown whole."""
        edge = self.edge
        if edge is None or extent <= 2 * edge:
            return None
        return range(edge), range(extent - edge, extent)

    def text(self, array: np.ndarray, indent: int) -> str:
        """The bracketed elements; continuation lines start at column `indent` + 1."""
        if array.ndim == 0:
            return self.style(array.item())
        picked = self._pick(array.shape[0])
        if array.ndim == 1:
            return self._vector(array, picked, indent)
        if picked is None:
            rows = [self.text(row, indent + 1) for row in array]
        else:
            before, after = ([self.text(array[i], indent + 1) for i in side] for side in picked)
            rows = [*before, "...", *after]
        gap = "," + "\n" * (array.ndim - 1) + " " * (indent + 1)
        return "[" + gap.join(rows) + "]"

    def _vector(self, array: np.ndarray, picked: tuple[range, range] | None, indent: int) -> str:
        style = self.style
        if picked is None:
            items = [style(v) for v in array.tolist()]
        else:
            before, after = ([style(v) for v in array[side.start : side.stop].tolist()] for side in picked)
            items = [*before, " ..." if self.edge else "...", *after]
        per_line = max(1, (self.linewidth - indent) // (style.width + 2))
        lines = [", ".join(items[i : i + per_line]) for i in range(0, len(items), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
