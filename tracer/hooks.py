"""Hooks: what users want called while gradients are computed.

A hook on a tensor belongs to the value the tensor had when it was set, so that a later write in place does
not move it; one on a leaf belongs to the leaf, whose value the optimiser replaces. `retain_grad` follows
the tensor. Used by tensor.py, meta.py (nodes) and by the walks in autograd.py and func/.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..ir.errors import GradError
from ..ir.graph import Node
from .values import Storage, TracedValue, history

#: Tables of hooks that are not empty. A walk back looks for hooks only if there are any.
LIVE: weakref.WeakSet[HookTable] = weakref.WeakSet()
_TABLES: Any = getattr(LIVE, "data", LIVE)  # what is in it, for each backward to ask whether that is anything
#: Tensors that keep their gradient though they are no leaves.
RETAINING: list[weakref.ref[Any]] = []
_COUNT = itertools.count()


class HookTable(dict[int, Callable[..., Any]]):
    """Hooks by number, in the order they were set."""

    __slots__ = ("__weakref__",)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class HookHandle:
    """What registering a hook gives: `remove()` takes it off again. Also a context manager."""

    def __init__(self, hooks: HookTable, hook: Callable[..., Any]) -> None:
        if not callable(hook):
            raise GradError(f"a hook must be callable, got {type(hook).__name__}: {hook!r:.60}")
        self._hooks = hooks
        self.id = next(_COUNT)
        hooks[self.id] = hook
        LIVE.add(hooks)

    def remove(self) -> None:
        """Takes the hook off; a second call does nothing."""
        self._hooks.pop(self.id, None)
        if not self._hooks:
            LIVE.discard(self._hooks)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.remove()


class ValueHooks:
    """The hooks of one value: on its gradient, and on the node it is the first result of."""

    __slots__ = ("after", "before", "gradient")

    def __init__(self) -> None:
        self.gradient = HookTable()
        self.before = HookTable()
        self.after = HookTable()


def hooks_of_value(value: Any) -> ValueHooks | None:
    """The hooks of a value, None where there are none."""
    return getattr(value, "hooks", None)


def own_hooks(value: TracedValue) -> ValueHooks:
    """The hooks of a value, to add to."""
    found = hooks_of_value(value)
    if found is None:
        found = value.hooks = ValueHooks()
    return found


def retain(t: Any) -> None:
    """Notes that a tensor keeps its gradient."""
    RETAINING[:] = [*(r for r in RETAINING if r() is not None and r() is not t), weakref.ref(t)]


def active() -> bool:
    """Whether a walk back may have anything to call."""
    if RETAINING and all(r() is None for r in RETAINING):
        RETAINING.clear()
    return bool(_TABLES or RETAINING)


def concern(values: Iterable[TracedValue | None]) -> bool:
    """Whether a walk back through a program of these values may have anything to call."""
    if not active():
        return False
    retained = _retained()
    for v in values:
        if v is None:
            continue
        leaf = v.leaf() if v.leaf is not None else None
        if v.requires_grad and v.leaf is None and v.trace is None:
            return True  # the graph goes on outside the program
        if v in retained or hooks_of_value(v) is not None or (leaf is not None and leaf._hooks):
            return True
    return False


def _retained() -> dict[Any, Any]:
    """The values that such tensors hold now, as far as a graph can know them."""
    alive = [t for t in (r() for r in RETAINING) if t is not None]
    held = ((t._storage.value if t._view is None else t._cached, t) for t in alive)
    return {history(v): t for v, t in held if v is not None and v.requires_grad}


class Callbacks:
    """What one walk back calls, made at its start.

    Args:
        trace: where it is recorded.
        show: makes a tensor of a gradient.
        add: adds a gradient to a tensor's `.grad`.
        many: leaves that the graph knows by several values; their hooks run when all is summed.
    """

    def __init__(
        self, trace: Any, show: Callable[[Any], Any], add: Callable[[Any, Any], None], many: set[Any]
    ) -> None:
        self.trace, self.show, self.add, self.many = trace, show, add, many
        self.retained = _retained()
        self.kept: list[Any] = []
        self.raw: dict[Any, Any] = {}
        self.walked: set[Node] = set()

    def arguments(self) -> dict[str, Any]:
        """What the walk takes."""
        return {"on_grad": self.on_grad, "on_node": self.on_node, "keep": self.keep}

    def finish(self, found: dict[Any, Any]) -> None:
        """Called after the walk. Of a value between the roots and others that are asked for, what is given is
        the gradient that came in, as PyTorch has it: its hooks change what flows on."""
        found.update((v, g) for v, g in self.raw.items() if v in found and v.node in self.walked)

    def on_grad(self, v: Any, g: Any) -> Any:
        """The gradient of `v`, after its hooks."""
        if v.leaf is not None:
            leaf = v.leaf()
            return g if leaf is None or id(leaf) in self.many else self.of_leaf(leaf, g)
        self.raw[v] = g
        hooks = hooks_of_value(v)
        if hooks is not None and hooks.gradient:
            g = self.run(hooks.gradient, g)
        t = self.retained.get(v)
        if t is not None and t.requires_grad:
            self.add(t, g)
        return g

    def of_leaf(self, leaf: Any, g: Any) -> Any:
        """The gradient of a leaf, after its hooks."""
        return self.run(leaf._hooks, g) if leaf._hooks else g

    def run(self, hooks: HookTable, g: Any) -> Any:
        """The gradient after hooks that may replace it."""
        for hook in list(hooks.values()):
            new = hook(self.show(g))
            if new is not None:
                g = _checked(hook, new, g)
        return g

    def on_node(self, node: Node, outs: Any, run: Callable[[Any], Any]) -> Any:
        """The gradients of a node's operands, after its hooks."""
        self.walked.add(node)
        hooks = hooks_of_value(node.results[0])
        if hooks is None or not (hooks.before or hooks.after):
            return run(outs)
        shown = self._tensors(outs)
        for hook in list(hooks.before.values()):
            new = hook(shown)
            if new is not None:
                shown = _tuple(hook, new, shown)
        outs = tuple([g if t is None else _checked(hooks, t, g) for t, g in zip(shown, outs)])
        found = run(outs)
        inputs = self._tensors(found)
        for hook in list(hooks.after.values()):
            new = hook(inputs, shown)
            if new is not None:
                inputs = _tuple(hook, new, inputs)
        return [None if t is None else t._value() for t in inputs]

    def _tensors(self, values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple([None if g is None else self.show(g) for g in values])

    def keep(self, g: Any) -> None:
        """Holds a gradient: a hook that looks at one ends the pending program."""
        owner = g.storage() if g.storage is not None else None
        if g.buffer is None and (owner is None or owner.value is not g):
            self.kept.append(Storage(g))


def _checked(hook: Any, new: Any, g: Any) -> Any:
    value = getattr(new, "_value", lambda: None)()
    if value is None:
        raise GradError(
            f"a gradient hook must return a tensor or None, got {type(new).__name__}: {new!r:.60}"
        )
    if g is not None and value.type != g.type:
        raise GradError(f"a gradient hook replaced a gradient of type {g.type} by one of type {value.type}")
    return value


def _tuple(hook: Any, new: Any, old: tuple[Any, ...]) -> tuple[Any, ...]:
    new = new if isinstance(new, (tuple, list)) else (new,)
    if len(new) != len(old):
        raise GradError(f"a hook of a node replaced {len(old)} gradients by {len(new)}; return one for each")
    return tuple(new)
