"""`tracegrad.autograd.forward_ad`: forward mode on dual tensors. A `dual_level` is a level
(tracer/level.py) that ordinary code records into until it ends; what lives on then is handed to the trace
outside."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ir.forward import push_forward
from .level import Level
from .library import ArgumentError, ArgumentTypeError
from .recording import STATE, recording_into
from .tensor import Tensor

__all__ = [
    "UnpackedDualTensor",
    "dual_level",
    "enter_dual_level",
    "exit_dual_level",
    "make_dual",
    "unpack_dual",
]


class UnpackedDualTensor(NamedTuple):
    """A dual tensor's parts; the tangent is None for a tensor that does not depend on one."""

    primal: Tensor
    tangent: Tensor | None


class _DualLevel(Level):
    def __init__(self) -> None:
        super().__init__("dual_level")
        self.tangents: dict[Any, Any] = {}

    def adopt(self) -> None:
        """Hands tensors that are alive to the trace outside."""
        for ref in self.handles:
            storage = ref()
            if storage is not None and storage.value.trace is self and storage not in self.written:
                storage.hold(self.free(self.lower([storage.value])[0]))
                storage.value.storage = storage.ref
                self.parent.handles.append(storage.ref)
                storage.version += 1


def _current() -> _DualLevel:
    trace: Any = STATE.trace
    while isinstance(trace, Level):
        if isinstance(trace, _DualLevel):
            return trace
        trace = trace.parent
    raise ArgumentError("dual tensors exist inside `with forward_ad.dual_level():` only")


class dual_level:
    """The block in which dual tensors exist."""

    def __enter__(self) -> dual_level:
        trace: Any = STATE.trace
        while isinstance(trace, Level):
            if isinstance(trace, _DualLevel):
                raise ArgumentError("dual levels can't be nested; use tracegrad.func.jvp")
            trace = trace.parent
        self._level = _DualLevel()
        self._level.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        level = self._level
        level.__exit__(*exc)
        level.adopt()
        level.finish()


_ENTERED: list[dual_level] = []


def enter_dual_level() -> int:
    """Begins a dual level; gives its number, 0."""
    _ENTERED.append(dual_level().__enter__())
    return 0


def exit_dual_level(*, level: int | None = None) -> None:
    """Ends the dual level."""
    if not _ENTERED:
        raise ArgumentError("exit_dual_level() without enter_dual_level()")
    _ENTERED.pop().__exit__(None, None, None)


def make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    """A tensor with `tensor`'s contents that changes along `tangent`, of the same shape."""
    at = _current()
    if not isinstance(tensor, Tensor) or not isinstance(tangent, Tensor):
        raise ArgumentTypeError("make_dual(): expected two tensors")
    if tensor.dtype.kind != "f" or tuple(tensor.shape) != tuple(tangent.shape):
        raise ArgumentError(
            f"make_dual(): expected floating-point tensors of one shape, got {tensor._value().type} and "
            f"{tangent._value().type}"
        )
    trace: Any = at
    with recording_into(at):
        if at.owns(tensor):
            made = trace.alias(tensor._value())
            fresh = Tensor(made)
        else:
            fresh = at.stand_in(tensor)
            made = fresh._storage.value
        at.tangents[made] = trace.cast_to(tangent._value(), made.type.dtype)
    return fresh


def unpack_dual(tensor: Tensor, *, level: int | None = None) -> UnpackedDualTensor:
    """The primal and the tangent of a tensor, neither of them dual."""
    at = _current()
    with recording_into(at):
        value = tensor._value()
        if value.trace is not at:
            return UnpackedDualTensor(tensor, None)
        (moved,) = push_forward(at, at.nodes, [value], at.tangents)
    primal = at.tensor(at.lower([value])[0])
    return UnpackedDualTensor(primal, None if moved is None else at.tensor(at.lower([moved])[0]))
