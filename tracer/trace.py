"""What records operations: `Trace`, a Builder whose nodes hold `TracedValue`s, with what its kinds override.
Ordinary code is recorded by recording.py, compiled functions by compile_trace.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from ..ir import dtypes
from ..ir.builder import Builder, infer_or_explain
from ..ir.dtypes import DType
from ..ir.graph import Graph, Location, Node, Value
from ..ir.op import Op
from ..ir.types import Type
from ..runtime.buffers import Buffer
from .callers import user_location
from .placement import TO_DEVICE, infer_placed
from .values import Storage, TracedValue


class Trace(Builder):
    """A program being recorded.

    Attributes:
        nodes: recorded nodes in order.
        handles: storages that were given values of this trace.
        grad_enabled: whether results of ops on values that require grad require it too.
        overlong: the program is long enough; it ends where the next user operation begins.
        walked_back: a backward that made no new graph has been recorded; see `ready` in tensor.py.
        transformed: a derivative of a function (tracer/func) has been recorded.
        loading: samples are being read one by one: indices are never the same again, so indexing by an int
            is done at once instead of recorded.
    """

    loading = False

    #: the name of the transformation whose function must not call `backward`
    forbids_backward = ""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.handles: list[weakref.ref[Storage]] = []
        self.grad_enabled = True
        self.walked_back = False
        self.overlong = False
        self.transformed = False
        self.loc: Location | None = None
        self.phase = "forward"

    def emit(
        self, op: Op, operands: tuple[Any, ...], attrs: dict[str, Any], regions: tuple[Graph, ...] = ()
    ) -> Any:
        """Records one op on values; gives its `TracedValue`, or a tuple of them."""
        raise NotImplementedError  # pragma: no cover - abstract

    def own(self, value: Any) -> Any:
        """What this trace knows a value by."""
        return value

    def flush(self) -> None:
        """Ends the pending program, where there is such a thing."""

    def wrote(self, storage: Storage, old: TracedValue) -> None:
        """Called after an in-place write to a storage that held `old`."""

    def flagged(self, value: TracedValue) -> None:
        """Called when a pending value's `requires_grad` became another than its op gave it."""

    def read_grad(self, tensor: Any, grad: Any) -> Any:
        """Called when `tensor.grad` is read; gives what the reader sees."""
        return grad

    def write_grad(self, tensor: Any) -> None:
        """Called before `tensor.grad` is assigned."""

    def hyperparameter(self, owner: dict[str, Any], key: str) -> Any:
        """A number that schedulers change (a learning rate): itself, or under `compile` a scalar read at each
        call.
        """
        return owner[key]

    def guard_module(self, module: Any, state: Any) -> None:
        """Called when a module is used, with what of it a trace relies on."""

    def note_state(self, owner: Any, state: dict[str, Any]) -> None:
        """Names the tensors of an optimiser's state of `owner` in dumps."""

    def mark(self, key: Any) -> None:
        """A step that is no op but changes what the program keeps (a freed graph)."""

    def particular(self, value: TracedValue, attrs: dict[str, Any]) -> None:
        """Says that the attributes of the op that made a value, though equal to others', are its own."""

    def literal(self, value: Any, dtype: DType) -> TracedValue:
        """A Python number as a scalar value."""
        raise NotImplementedError  # pragma: no cover - abstract

    def const(self, value: Any, like: Value | DType = dtypes.float32) -> Value:
        dtype = like if isinstance(like, DType) else like.type.dtype
        return self.literal(value, dtype)

    def materialize(self, value: TracedValue) -> Buffer:
        """The contents of a value, running what is pending."""
        raise NotImplementedError  # pragma: no cover - abstract

    def _append(
        self,
        op: Op,
        operands: tuple[Any, ...],
        attrs: dict[str, Any],
        types: Sequence[Type],
        grads: Sequence[bool],
        loc: Location | None,
        regions: tuple[Graph, ...] = (),
    ) -> Any:
        node = Node(op, operands, attrs, loc, self._phase(), regions)
        self.nodes.append(node)
        if len(types) == 1:
            value = TracedValue(types[0], node, 0, self, None, grads[0])
            node.results = (value,)
            return value
        node.results = results = tuple(
            TracedValue(t, node, i, self, None, g) for i, (t, g) in enumerate(zip(types, grads))
        )
        return results

    def _phase(self) -> str:
        if self.walked_back and not self.grad_enabled and self.phase == "forward":
            return "update"  # what is done without gradients after a backward is done to parameters
        return self.phase

    def _infer(
        self,
        op: Op,
        operands: tuple[Any, ...],
        attrs: dict[str, Any],
        regions: tuple[Graph, ...] = (),
    ) -> tuple[tuple[Type, ...], tuple[bool, ...], Location | None]:
        loc = self.loc or user_location()
        if op is TO_DEVICE or any([v.type.device is not None for v in operands]):
            types = infer_placed(op, operands, attrs, loc, regions)
        else:
            types = infer_or_explain(op, operands, attrs, loc, regions)
        grad = self.grad_enabled and op.differentiable and any(v.requires_grad for v in operands)
        return types, tuple(grad and t.dtype.kind == "f" for t in types), loc
