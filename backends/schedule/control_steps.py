"""Steps of control flow: regions' kernels put into loops and branches, what needs doing once put in front of
a loop, and views resolved. Used by schedule/__init__.py only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...ir.dataclass import dataclass
from ...ir.expr import Const, Expr, Load, index_add
from ...ir.loops import (
    Branch,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Repeat,
    Rotation,
    Step,
    Stmt,
    Store,
    While,
    WhileStep,
    walk_steps,
)
from .control import ControlGroup, RegionPlacement, View, real
from .indexing import ZERO, ravel
from .placement import Placement


@dataclass
class Ahead:
    """A kernel to run once before a loop, since all it reads is `source`, which the loop leaves alone."""

    kernel: Kernel
    source: Buffer


#: writes the steps of a plan, and what may be moved in front of the loop around it
Emit = Callable[[Placement], tuple[list[Ahead], list[Step]]]


def control_steps(group: ControlGroup, placement: Placement, emit: Emit) -> tuple[list[Ahead], list[Step]]:
    """The steps of one control-flow node; (for the loop around, here)."""
    made = [emit(region) for region in group.regions]
    reuse = placement.plan.reuse
    ahead: list[Ahead] = []
    steps: list[Step] = []
    for moved, _ in made:
        for a in moved:
            # What the loop reads of a fixed operand may be fixed for the loop around it too.
            source = a.source.base if isinstance(a.source, View) else a.source
            if source in reuse:
                ahead.append(Ahead(a.kernel, source))
            else:
                steps.append(a.kernel)
    name = group.node.op.name
    if name == "cond":
        (_, then), (_, other) = made
        cond = whole(placement, group.cond, steps)
        steps.append(Branch(cond, then, other))
    elif name == "while":
        (_, test), (_, body) = made
        assert group.cond is not None
        gives = tuple([(settled(placement, a), settled(placement, b)) for a, b in group.gives])
        rotate = _rotations(group.regions[1])
        steps.append(WhileStep(test, group.cond, body, group.node.attrs.get("max_trips"), rotate, gives))
    elif made:
        ((_, body),) = made
        assert group.var is not None
        reverse = bool(group.node.attrs.get("reverse", False))
        steps.append(Repeat(group.var, group.var.extent, body, reverse, _rotations(group.regions[0])))
    return ahead, steps


def settled(placement: Placement, b: Buffer) -> Buffer:
    """The memory of a carried value: a whole buffer."""
    found, start = real(placement.place(b))
    assert start is None, b
    return found


def _rotations(region: RegionPlacement) -> tuple[Rotation, ...]:
    return tuple([tuple([settled(region, b) for b in names]) for names in region.rotate])


def whole(placement: Placement, b: Buffer | None, steps: list[Step]) -> Buffer:
    """A buffer that holds just the condition `b`: itself, or a copy of the element it is."""
    assert b is not None
    found, start = real(placement.place(b))
    if start is None and found.size == 1 and found.space != "const":
        return found
    copy = Buffer("taken", b.dtype, (), "arena")
    body: list[Stmt] = [Store(copy, (ZERO,), Load(found, (start or Const(0),)))]
    steps.append(Kernel("copy", body, f"copy of {b.name}", (), 0, 2 * b.dtype.itemsize))
    return copy


# --- views --------------------------------------------------------------------------------------------------


def settle(steps: Iterable[Step]) -> None:
    """Replaces views by the buffers they are parts of, everywhere."""
    for s in walk_steps(steps):
        if isinstance(s, Kernel):
            _Settler().block(s.body)


class _Settler:
    """One kernel; what is shared stays shared."""

    def __init__(self) -> None:
        self.memo: dict[int, Expr] = {}
        self.keep: list[Expr] = []

    def block(self, body: list[Stmt]) -> None:
        for s in body:
            if isinstance(s, Store):
                index = tuple([self.expr(i) for i in s.index])
                s.value = self.expr(s.value)
                s.mask = None if s.mask is None else self.expr(s.mask)
                s.buffer, s.index = self.access(s.buffer, index)
            elif isinstance(s, Prefetch):
                s.buffer, s.index = self.access(s.buffer, tuple([self.expr(i) for i in s.index]))
            elif isinstance(s, Let):
                s.value = self.expr(s.value)
            elif isinstance(s, (If, While)):
                s.cond = self.expr(s.cond)
                self.block(s.body)
            elif isinstance(s, For):
                self.block(s.body)

    @staticmethod
    def access(b: Buffer, index: tuple[Expr, ...]) -> tuple[Buffer, tuple[Expr, ...]]:
        found, start = real(b)
        if found is b:
            return b, index
        flat = index[0] if len(index) == 1 else ravel(index, b.shape)
        return found, (flat if start is None else index_add(flat, start),)

    def expr(self, e: Expr) -> Expr:
        got = self.memo.get(id(e))
        if got is None:
            args = e.args
            new = tuple([self.expr(a) for a in args])
            got = e if all(a is b for a, b in zip(args, new)) else e.rebuild(new)
            if isinstance(got, Load):
                buffer, index = self.access(got.buffer, got.index)
                if buffer is not got.buffer:
                    got = Load(buffer, index, got.mask, got.other)
            self.memo[id(e)] = got
            self.keep.append(e)
        return got
