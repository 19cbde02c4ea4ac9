"""What the tracer adds to the IR's values, and the cells that tensors keep them in.

A `TracedValue` is an SSA value that may also hold its contents. A `Storage` is PyTorch's storage made
functional: the cell whose current value an in-place write replaces, shared by a tensor and its views.
"""

from __future__ import annotations

import weakref
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from ..ir.dtypes import float32
from ..ir.graph import Node, Value
from ..ir.types import Type
from ..runtime.buffers import Buffer

if TYPE_CHECKING:
    from .trace import Trace


class TracedValue(Value):
    """A value that was recorded or is concrete.

    Attributes:
        buffer: contents, or None while pending (and for values nobody needed).
        trace: the trace it is pending in, or None.
        requires_grad: whether gradients flow to it.
        leaf: weak reference to the leaf Tensor whose `.grad` its gradient adds to, or None.
        storage: weak reference to the storage it was put in, or None.
        freed: its node's saved values are gone (`backward` ran without `retain_graph`); `SPENT` if it ran and
            the node had saved none, so that it can run again.
        hooks: what users want called with its gradient (tracer/hooks.py); not set where there are none.
    """

    __slots__ = ("buffer", "freed", "hooks", "leaf", "requires_grad", "storage", "trace")

    hooks: Any

    def __init__(
        self,
        type: Type,
        node: Node | None = None,
        index: int = 0,
        trace: Trace | None = None,
        buffer: Buffer | None = None,
        requires_grad: bool = False,
    ) -> None:
        self.type = type
        self.node = node
        self.index = index
        self.name = None
        self.trace = trace
        self.buffer = buffer
        self.requires_grad = requires_grad
        self.leaf: weakref.ref[Any] | None = None
        self.storage: weakref.ref[Any] | None = None
        self.freed: Any = False

    @property
    def known(self) -> Buffer | None:
        """Contents that can be looked at without waiting for a device; None if there are none."""
        return self.buffer if self.type.device is None else None


class Pending(TracedValue):
    """A value of a lazy trace. Its `node` is made when it is first asked for.

    Attributes:
        past: of a value that outlives its program, where its node comes from and its slot (tracer/past.py);
            None where there is none.

    Made by `pending`.
    """

    __slots__ = ("past",)

    past: Any

    def __getattr__(self, name: str) -> Any:
        if name == "past":
            return None
        if name != "node":
            raise AttributeError(name)
        trace: Any = self.trace
        if trace is not None:
            trace.fill()
        elif (past := self.past) is not None:
            past[0].recall(past[1], self)
        else:  # the program has ended, and nobody asked
            self.node = None
        return self.node


def has_node(value: Any) -> bool:
    """Whether a value's node was made, or looked for in vain."""
    try:
        object.__getattribute__(value, "node")
    except AttributeError:
        return False
    return True


def history(value: TracedValue) -> TracedValue:
    """The value whose gradient is `value`'s: itself, or what it was before writes autograd did not see."""
    while (
        value.leaf is None
        and value.node is not None
        and value.node.op.name == "rebind"
        and value.node.operands
    ):
        value = value.node.operands[0]  # type: ignore[assignment]
    return value


#: See `TracedValue.freed`.
SPENT = 2


def without_contents(node: Node) -> None:
    """Lets go of the memory of a node's operands where only gradients' paths are still needed: of leaves,
    which have new contents by now, and of constants but for numbers."""
    operands: Any = node.operands
    node.operands = tuple([ghost(v) if v.node is None and (v.leaf or v.type.shape) else v for v in operands])


def ghost(v: TracedValue) -> TracedValue:
    """A value without contents that stands for another where gradients pass."""
    out = TracedValue(v.type, None, v.index, None, None, v.requires_grad)
    out.leaf = v.leaf
    return out


def let_go(node: Node) -> None:
    """Drops what a node holds: its operands (where its `grad_fn` name depends on their types, those stay) and
    its results, one of which may hold it."""
    node.results = ()
    node.operands = tuple([Value(v.type) for v in node.operands]) if callable(node.op.grad_name) else ()


#: Things that are alive and make gradients depend on Python: a walk back must be walked each time.
OPAQUE: weakref.WeakSet[Any] = weakref.WeakSet()

#: Counts replacements of storages' values.
REPLACED = [0]


def _alone() -> int:
    """What `getrefcount` gives for a value that only a local variable holds; interpreters differ."""
    value = TracedValue(Type(float32, ()))
    return getrefcount(value)


ALONE = _alone()


class Storage:
    """The cell of one tensor and all its views.

    Attributes:
        value: current contents of the base tensor.
        version: counts in-place writes; views compare it with theirs.
        leaf: weak reference to the leaf tensor that requires grad and lives here, or None.
        shared: memory that is visible outside (a NumPy array made from or for it), or None; writes end up
            there.
        native: compiled functions overwrite the memory of `value` in place.
    """

    __slots__ = ("__weakref__", "leaf", "native", "ref", "shared", "value", "version")

    def __init__(self, value: TracedValue) -> None:
        self.value = value
        self.version = 0
        self.leaf: weakref.ref[Any] | None = None
        self.shared: Buffer | None = None
        self.native = False
        self.ref: weakref.ref[Any] = weakref.ref(self)
        value.storage = self.ref
        trace = value.trace
        if trace is not None:
            trace.handles.append(self.ref)

    def hold(self, value: TracedValue) -> None:
        """Replaces the current value. Nothing else may: compiled functions look at storages only when
        this was called anywhere since they last did."""
        self.value = value
        REPLACED[0] += 1

    def claim(self) -> None:
        """Called before native code overwrites the contents: what recorded graphs saved must not change."""
        if not self.native:
            self.native = True
            self.part()

    def part(self) -> None:
        """Leaves the current value, with a copy of the contents, to the graphs that saved it, if any did."""
        old = self.value
        if old.buffer is None:
            return
        new = TracedValue(old.type, old.node, old.index, None, old.buffer, old.requires_grad)
        new.leaf, new.storage = old.leaf, self.ref
        self.hold(new)
        if getrefcount(old) > ALONE:
            old.buffer = old.buffer.copy()

    def put(self, value: TracedValue) -> None:
        """Replaces the contents by a freshly recorded value; a leaf stays the leaf it was."""
        if self.leaf is not None:
            value.requires_grad = True
            value.leaf = self.leaf
        old = self.value
        self.value = value
        REPLACED[0] += 1
        self.version += 1
        value.storage = self.ref
        trace = value.trace
        if trace is not None:
            trace.handles.append(self.ref)
            trace.wrote(self, old)


_NEW: Any = object.__new__


def pending(type: Type, trace: Trace, requires_grad: bool) -> Pending:
    """`Pending(...)`, in less time."""
    value = _NEW(Pending)
    value.type = type
    value.index = 0
    value.name = None
    value.trace = trace
    value.buffer = None
    value.requires_grad = requires_grad
    value.leaf = None
    value.storage = None
    value.freed = False
    return value


def storage_of(value: TracedValue) -> Storage:
    """`Storage(value)`, in half the time: it is done for every operation."""
    storage = _NEW(Storage)
    storage.value = value
    storage.version = 0
    storage.leaf = None
    storage.shared = None
    storage.native = False
    storage.ref = value.storage = ref = weakref.ref(storage)
    trace = value.trace
    if trace is not None:
        trace.handles.append(ref)
    return storage
