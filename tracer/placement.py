"""Where recorded values live. A value's type says its device (`PlacedType`); the results of an op are where
its operands are, and a graph is compiled for a device as a whole. Used by the traces and tracer/devices.py.

On the CPU, numbers (0-d tensors) and what is computed from nothing but constants go with any device; other
tensors of the CPU don't.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..ir.builder import infer_or_explain
from ..ir.errors import DeviceError
from ..ir.graph import Graph, Location, Value
from ..ir.op import Op
from ..ir.types import Type, placed_type


def _moved(x: Type, *, device: str | None, source: str | None) -> Type:
    return placed_type(x, device)


#: x on another device. It is in no graph: a program copies what comes and goes (lazy.py, specialization.py).
TO_DEVICE = Op(
    "to_device",
    _moved,
    decompose=lambda b, x, device, source: b.alias(x),
    grad=lambda b, n, g: (
        b.emit(TO_DEVICE, (g,), {"device": n.attrs["source"], "source": n.attrs["device"]}),
    ),
    grad_name="ToCopyBackward0",
    reads=lambda node: ((), ()),
)


#: ops whose indices may be on the CPU, and how many operands are before them
_INDICES = {"index": 1, "index_put": 2, "take": 1}


def infer_placed(
    op: Op,
    operands: tuple[Any, ...],
    attrs: dict[str, Any],
    loc: Location | None,
    regions: tuple[Graph, ...] = (),
) -> tuple[Type, ...]:
    """Result types of an op some of whose operands are not on the CPU.

    Raises:
        DeviceError: operands on different devices, by type, place and line.
        OpError: as `infer_or_explain`.
    """
    plain = tuple([Value(placed_type(v.type, None)) for v in operands])
    types = infer_or_explain(op, plain, attrs, loc, regions)
    if op is TO_DEVICE:
        return types
    fixed = operands[: _INDICES[op.name]] if op.name in _INDICES else operands
    (first, *others) = dict.fromkeys(v.type.device for v in operands if v.type.device is not None)
    if others or any(v.type.device is None and v.type.shape and not floating(v) for v in fixed):
        raise _mismatch(op, operands, loc)
    return tuple([placed_type(t, first) for t in types])


def _mismatch(op: Op, operands: Sequence[Any], loc: Location | None) -> DeviceError:
    fixed = [(i, v.type) for i, v in enumerate(operands) if v.type.device is not None or not floating(v)]
    there = [(i, t) for i, t in fixed if t.device is not None]
    j, b = next((j, t) for j, t in fixed if t.device != there[0][1].device and (t.shape or t.device))
    i, a = min(there, key=lambda x: (x[1].dtype is not b.dtype, x[0]))
    shown = " and ".join(
        f"operand {k} is {placed_type(t, None)} on {t.device or 'cpu'}" for k, t in sorted([(i, a), (j, b)])
    )
    where = f" at {loc}" if loc is not None else ""
    return DeviceError(
        f"{op.name}({', '.join(str(v.type) for v in operands)}){where}: expected all tensors to be on the "
        f"same device, but {shown}; move one of them with .to({a.device!r})"
    )


def floating(value: Any) -> bool:
    """Whether a value is computed from numbers alone, so that any device may compute it. Inputs of a body or
    of a function that is being transformed may be: where they are from, that is looked at."""
    seen: set[Any] = set()
    stack = [value]
    while stack:
        v = stack.pop()
        node = v.node if getattr(v, "buffer", None) is None else None
        if node is None or node.op is TO_DEVICE:
            inner = node is None and getattr(v.trace, "parent", None) is not None
            if (v.type.shape and not inner) or v.type.device is not None:
                return False
        elif node not in seen:
            seen.add(node)
            stack.extend(node.operands)
    return True


def most_on(types: Iterable[Type]) -> str | None:
    """The GPU that most bytes of values of these types are on: None if none are on any."""
    found: dict[str, int] = {}
    for t in types:
        if t.device is not None:
            found[t.device] = found.get(t.device, 0) + t.nbytes
    return max(found, key=found.__getitem__) if found else None


def device_of(types: Iterable[Type], name: str) -> str | None:
    """The device that a program with inputs and outputs of these types runs on: None for the CPU.

    Raises DeviceError if they are on several GPUs.
    """
    found = dict.fromkeys(t.device for t in types if t.device is not None)
    if len(found) > 1:
        raise DeviceError(f"{name}: a program runs on one GPU, and its tensors are on {', '.join(found)}")
    return next(iter(found), None)
