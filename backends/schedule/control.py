"""Groups around regions: `scan`, `while` and `cond`. A region is planned like a graph of its own, whose
inputs and outputs are views of the buffers around it: a step of a scan reads its slice where the whole
operand is, and writes its row of a stacked result in place.

Carried values are inputs that are updated. Where the group that computes the new value may write over the old
one, it does; else the two buffers change places after every turn (`Rotation`), and so do values that are only
passed on from one carried name to the next. The steps are written by control_steps.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir import dtypes
from ...ir.dataclass import dataclass, field
from ...ir.expr import Expr, Var, index_add, index_mul
from ...ir.graph import Graph, Node, Value
from ...ir.loops import Buffer
from .elements import NotFusable
from .groups import Group
from .placement import Placement

if TYPE_CHECKING:
    from .plan import Planner

#: how often the body of a loop is thought to run whose turns are not known
TURNS = 8


class View(Buffer):
    """Part of a buffer of the plan around, from element `start` on (None: from the first). Only while
    scheduling; `real` says what it is in the end."""

    __slots__ = ("base", "plan", "start")

    def __init__(
        self, name: str, shape: tuple[int, ...], base: Buffer, plan: Planner, start: Expr | None = None
    ) -> None:
        super().__init__(name, base.dtype, shape, "view")
        self.base = base
        self.plan = plan
        self.start = start


def real(b: Buffer) -> tuple[Buffer, Expr | None]:
    """The buffer that a view is a part of, and where it starts there."""
    start: Expr | None = None
    while isinstance(b, View):
        if b.start is not None:
            start = b.start if start is None else index_add(start, b.start)
        assert b.plan.placement is not None
        b = b.plan.placement.place(b.base)
    return b, start


@dataclass
class Frame:
    """How a region is tied to what is around it.

    Attributes:
        outer: the plan around.
        inputs: for each input of the region its memory.
        carries: (input, its new value).
        outlets: (value, where it goes).
        turns: how often the region runs, roughly.
        sources: inputs that are known constants, and those.
        fixed: inputs that are the same in every turn.
        moved: carried inputs that take over the value, and the memory, of another one.
        targets: the outlets, with copies of what is not computed in the region.
    """

    outer: Planner
    inputs: list[Buffer]
    carries: list[tuple[Value, Value]] = field(default_factory=list)
    outlets: list[tuple[Value, Buffer]] = field(default_factory=list)
    turns: int = 1
    sources: dict[Value, Value] = field(default_factory=dict)
    fixed: list[Buffer] = field(default_factory=list)
    moved: dict[Value, Value] = field(default_factory=dict)
    targets: list[tuple[Value, Buffer]] = field(default_factory=list)

    def reuse(self) -> dict[Buffer, int]:
        """For inputs that stay the same, how often a kernel of the region finds them so."""
        if self.turns <= 1:
            return {}
        around = self.outer.reuse
        return {b: self.turns * around.get(b.base, 1) for b in self.fixed if isinstance(b, View)}


class RegionPlacement(Placement):
    """Buffers of a region.

    Attributes:
        rotate: buffers that change places after every turn, as in the loop IR.
    """

    def __init__(self, plan: Planner, frame: Frame) -> None:
        self.frame = frame
        self.rotate: list[tuple[Buffer, ...]] = []
        super().__init__(plan)

    def name_outputs(self) -> list[Buffer]:
        return []

    def place_updates(self) -> None:
        plan, frame = self.plan, self.frame
        placed: set[Value] = set()
        for v, target in frame.targets:
            if not v.type.numel:
                continue
            b, home = plan.buffer(v), plan.home[v]
            if v not in placed and not home.owns(b):
                placed.add(v)
                self.same[b] = target
            else:
                self.also(v, target)
        moved = set(frame.moved.values())
        fresh: dict[Value, Buffer] = {}
        for i, v in plan.updates.items():
            if not v.type.numel:
                continue
            target, home, b = plan.input_buffer(i), plan.home[v], plan.buffer(v)
            if i in moved:
                fresh[i] = self.beside(v) if v in placed else b
            elif v in placed and not home.multi:
                self.copies.append((target, b))
            elif not self.in_place(target, v, home):
                fresh[i] = self.beside(v) if v in placed else b
            elif v in placed:
                self.targets[home.id].append((target, v))
            else:
                self.same[b] = target
        self.pinned.update(fresh.values())
        self.rotations(fresh)

    def also(self, v: Value, target: Buffer) -> None:
        """Stores `v` a second time."""
        home = self.plan.home[v]
        if home.multi:
            self.targets[home.id].append((target, v))
        else:
            self.copies.append((target, self.plan.buffer(v)))

    def beside(self, v: Value) -> Buffer:
        """A buffer of its own for a value that is stored elsewhere too."""
        b = Buffer(v.name or "carried", v.type.dtype, v.type.shape, "arena")
        self.also(v, b)
        return b

    def rotations(self, fresh: dict[Value, Buffer]) -> None:
        """Each name takes the memory of what holds its next value; what is left over goes to the fresh
        buffer."""
        frame = self.frame
        taker = {j: i for i, j in frame.moved.items() if i.type.numel}
        seen: set[Value] = set()

        def path(i: Value | None) -> list[Buffer]:
            names: list[Buffer] = []
            while i is not None and i not in seen:
                seen.add(i)
                names.append(self.plan.input_buffer(i))
                i = taker.get(i)
            return names

        for i, b in fresh.items():
            self.rotate.append((*reversed(path(i)), b))
        for i in taker:
            names = path(i)
            if names:
                self.rotate.append(tuple(reversed(names)))


class ControlGroup(Group):
    """One control-flow node, its regions planned.

    Attributes:
        node, operands: the node, and its operands with copies in place of what may not be written over.
        results: the buffers of the node's results.
        var: of a scan, the step.
        cond: what decides about the next turn, or which branch is taken.
        regions: the regions' placements.
        gives: of a while loop, (result, carried name) pairs to copy at its end.
    """

    kind = "control"

    def __init__(self, plan: Planner, id: int, node: Node) -> None:
        super().__init__(plan, id)
        self.node = node
        self.operands = plan.operands.get(node, node.operands)
        self.regions: list[RegionPlacement] = []
        self.results: list[Buffer] = []
        self.gives: list[tuple[Buffer, Buffer]] = []
        self.var: Var | None = None
        self.cond: Buffer | None = None
        self.own_buffers: set[Buffer] = set()

    def canonical(self, v: Value) -> tuple[Expr, ...] | None:
        return None

    def try_join(self, v: Value) -> bool:
        return False

    def own(self, v: Value, index: tuple[Expr, ...], mask: Expr | None) -> Expr | None:
        raise NotFusable("result of control flow")  # pragma: no cover - results are stored, and loaded

    def owns(self, b: Buffer) -> bool:
        return b in self.own_buffers

    def take(self) -> None:
        """Plans the regions; the results get their buffers."""
        name = self.node.op.name
        memory = [self.inlet(o) for o in self.operands]
        getattr(self, f"take_{name}")(memory)
        plan = self.plan
        for v, b in zip(self.node.results, self.results):
            self.members.append(v)
            plan.home[v] = self
            plan.buffers[v] = b
            plan.stored.add(v)

    # --- operands

    def inlet(self, o: Value) -> Buffer:
        """Where an operand is stored; a reshape of a stored value is where that is."""
        plan = self.plan
        while (
            o.node is not None and o.node.op.name == "reshape" and o not in plan.home and not self.starts(o)
        ):
            o = o.node.operands[0]
        if o.type.numel == 0:
            return plan.buffer(o)
        source = self.number(o)
        if source is not None:
            return plan.const_buffer(source)
        if o.node is not None:
            if o not in plan.home:
                plan.ensure_home(o)
            plan.demand(o)
            plan.add_dependence(self, plan.home[o])
        plan.read(self, o)
        return plan.buffer(o)

    def number(self, o: Value) -> Value | None:
        """The constant that an operand of one element is, if it is one."""
        o = self.plan.sources.get(o, o)
        known = o.node is not None and o.node.op.name == "constant" and o.type.numel == 1
        return o if known else None

    def starts(self, o: Value) -> bool:
        """Whether it is where a carried value starts: memory that is written to."""
        return any(o is x for x in self.operands[: self.node.attrs.get("carry", 0)])

    def view(self, v: Value, base: Buffer, start: Expr | None = None) -> View:
        return View(v.name or base.name, v.type.shape, base, self.plan, start)

    def region(self, graph: Graph, frame: Frame) -> RegionPlacement:
        """Plans a region."""
        plan = self.plan.inner(graph, frame)
        plan.run()
        placed = RegionPlacement(plan, frame)
        self.regions.append(placed)
        return placed

    def frame(self, graph: Graph, memory: list[Buffer], turns: int, changing: int) -> Frame:
        """A frame with the operands as they are; all but the first `changing` ones stay what they are."""
        inputs: list[Buffer] = [self.view(v, b) for v, b in zip(graph.inputs, memory)]
        frame = Frame(self.plan, inputs, turns=turns, fixed=inputs[changing:])
        operands = self.operands[len(self.operands) - len(inputs) :]
        for v, o in list(zip(graph.inputs, operands))[changing:]:
            source = self.number(o)
            if source is not None:
                frame.sources[v] = source
        return frame

    def buffer(self, v: Value, name: str) -> Buffer:
        return Buffer(v.name or name, v.type.dtype, v.type.shape, "arena")

    # --- the three ops

    def take_scan(self, memory: list[Buffer]) -> None:
        attrs, (body,) = self.node.attrs, self.node.regions
        length, carry, xs = attrs["length"], attrs.get("carry", 0), attrs.get("xs", 0)
        carried = memory[:carry]
        self.own_buffers.update(carried)
        ys = [self.buffer(v, "ys") for v in self.node.results[carry:]]
        self.results = [*carried, *ys]
        if not length:
            return
        self.var = Var("t", length)
        frame = self.frame(body, memory, length, carry + xs)
        for k in range(carry, carry + xs):
            v = body.inputs[k]
            frame.inputs[k] = self.view(v, memory[k], index_mul(self.var, v.type.numel))
        frame.carries = list(zip(body.inputs, body.outputs[:carry]))
        for v, y, result in zip(body.outputs[carry:], ys, self.node.results[carry:]):
            if self.plan.uses.get(result):
                start = index_mul(self.var, v.type.numel)
                frame.outlets.append((v, View(y.name, v.type.shape, y, self.plan, start)))
        placed = self.region(body, frame)
        for names in placed.rotate:
            for k, b in enumerate(names):
                if isinstance(b, View):  # a carried name: its value ends up where the rotation then stands
                    last = names[(k + length) % len(names)]
                    at = self.carried(body, placed, b)
                    self.results[at] = last.base if isinstance(last, View) else last
        self.own_buffers.update(self.results[:carry])

    @staticmethod
    def carried(body: Graph, placed: RegionPlacement, b: Buffer) -> int:
        """Which carried value a name of a rotation is."""
        return next(k for k, v in enumerate(body.inputs) if placed.plan.input_buffer(v) is b)

    def take_while(self, memory: list[Buffer]) -> None:
        attrs, (test, body) = self.node.attrs, self.node.regions
        carry = attrs["carry"]
        most = attrs.get("max_trips")
        carried = memory[:carry]
        self.own_buffers.update(carried)
        self.results = list(carried)
        turns = TURNS if most is None else most
        self.cond = Buffer("more", dtypes.bool_, (), "arena")
        frame = self.frame(test, memory, turns, carry)
        frame.outlets = [(test.outputs[0], self.view(test.outputs[0], self.cond))]
        self.region(test, frame)
        frame = self.frame(body, memory, turns, carry)
        frame.carries = list(zip(body.inputs, body.outputs))
        placed = self.region(body, frame)
        for names in placed.rotate:
            for b in names:
                if isinstance(b, View):
                    k = self.carried(body, placed, b)
                    self.results[k] = self.buffer(self.node.results[k], "result")
                    self.gives.append((self.results[k], b.base))
        self.own_buffers.update(self.results)

    def take_cond(self, memory: list[Buffer]) -> None:
        self.cond, *operands = memory
        self.results = [self.buffer(v, "result") for v in self.node.results]
        for graph in self.node.regions:
            frame = self.frame(graph, operands, 1, 0)
            for v, b, result in zip(graph.outputs, self.results, self.node.results):
                if self.plan.uses.get(result):
                    frame.outlets.append((v, self.view(v, b)))
            self.region(graph, frame)


__all__ = ["ControlGroup", "Frame", "RegionPlacement", "View", "real"]
