"""Anomaly mode: a backward looks for the first gradient that is NaN, and says which line's operation made
it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.errors import GradError
from ..ir.graph import Node
from .callers import warn
from .hooks import Callbacks
from .recording import STATE, LazyTrace


class _Mode:
    on = False
    check_nan = True


def enabled() -> bool:
    """Whether backward looks for NaN."""
    return _Mode.on


class Checks(Callbacks):
    """The callbacks of a walk that checks what it computed. Contents are looked at once, after the walk."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made: list[tuple[Node, list[Any]]] = []

    def on_node(self, node: Node, outs: Any, run: Any) -> Any:
        found = list(super().on_node(node, outs, run))
        self.made.append((node, [None if g is None else self.show(g) for g in found]))
        return found

    def finish(self, found: dict[Any, Any]) -> None:
        super().finish(found)
        if not _Mode.check_nan or not isinstance(self.trace, LazyTrace):
            return  # inside a compiled function gradients have no contents yet
        for node, tensors in self.made:
            for k, t in enumerate(tensors):
                if t is not None and np.isnan(t.detach()._array().astype(np.float64)).any():
                    raise GradError(
                        f"{node.op.grad_fn_name(node)} returned NaN as gradient {k} of "
                        f"{node.op.name}({', '.join(str(v.type) for v in node.operands)}) at {node.loc}; "
                        f"look at "
                        f"the operands there, or register a hook to see what came in"
                    )


class set_detect_anomaly:
    """Switches anomaly mode; as a context manager, back at the end.

    In ordinary code a backward that makes a NaN then raises a GradError with the line of the forward
    operation. Inside compiled functions nothing is checked.

    Args:
        mode: whether it is on.
        check_nan: False lets NaN pass.
    """

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self._before = (_Mode.on, _Mode.check_nan)
        _Mode.on, _Mode.check_nan = mode, check_nan

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: Any) -> None:
        _Mode.on, _Mode.check_nan = self._before


class detect_anomaly(set_detect_anomaly):
    """Anomaly mode for a block; see `set_detect_anomaly`."""

    def __init__(self, check_nan: bool = True) -> None:
        super().__init__(True, check_nan)
        if STATE.trace is STATE.lazy:
            warn("anomaly detection keeps every gradient and slows backward down; use it for debugging only")


def is_anomaly_enabled() -> bool:
    """Whether anomaly mode is on."""
    return _Mode.on


def is_anomaly_check_nan_enabled() -> bool:
    """Whether anomaly mode looks for NaN."""
    return _Mode.check_nan
