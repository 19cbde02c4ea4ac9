"""Where stored values live: outputs, inputs written in place, arena buffers shared with values that die.
Decides the order of the groups too, since an update in place must come after every reader of the old value.

Used by schedule/__init__.py only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.expr import Expr, Load
from ...ir.graph import Node, Value
from ...ir.loops import Buffer
from .contract import ContractGroup
from .groups import Group, PointwiseGroup
from .nests import loads_of, needed_exprs
from .other_groups import ScatterGroup, TinyGroup
from .row_group import RowGroup

if TYPE_CHECKING:
    from .plan import Planner


#: how many sums may go before a product, at most
LOOK_AHEAD = 4


class Placement:
    """Buffers of everything stored.

    Attributes:
        targets: for each group (by id), the (buffer, value) pairs it stores.
        order: the groups in the order they run.
        copies: (input buffer, temporary) pairs to copy at the very end.
        outputs: the program's output buffers.
    """

    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        plan.placement = self
        self.pinned: set[Buffer] = set()  # keep their memory to themselves
        self.same: dict[Buffer, Buffer] = {}
        self.targets: dict[int, list[tuple[Buffer, Value]]] = {}
        self.copies: list[tuple[Buffer, Buffer]] = []
        self.loads_memo: dict[int, list[Load]] = {}
        self.exprs_memo: dict[int, list[Expr]] = {}
        self.position = {n: k for k, n in enumerate(plan.nodes)}
        self.outputs = self.name_outputs()
        for g in plan.groups:
            self.targets[g.id] = [(plan.buffer(v), v) for v in self.written(g)]
        self.place_updates()
        self.order = self.sorted_groups()
        self.share_dying()

    def place(self, b: Buffer) -> Buffer:
        while b in self.same:
            b = self.same[b]
        return b

    def name_outputs(self) -> list[Buffer]:
        out: list[Buffer] = []
        for v in self.plan.outputs:
            b = self.plan.buffer(v)
            if v.node is not None and b.space == "arena":
                b.space = "output"
            out.append(b)
        return out

    # --- updates of inputs

    def place_updates(self) -> None:
        plan = self.plan
        for i, v in plan.updates.items():
            if v.type.numel == 0:
                continue
            target, home, b = plan.input_buffer(i), plan.home[v], plan.buffer(v)
            if not self.in_place(target, v, home) or (b.space == "output" and not home.multi):
                self.copies.append((target, b))
            elif b.space == "output":
                self.targets[home.id].append((target, v))
            else:
                self.same[b] = target

    def in_place(self, target: Buffer, v: Value, home: Group) -> bool:
        """Whether `home` may write `v` over `target`: all others read it earlier, `home` itself just where
        it writes."""
        plan = self.plan
        if home.owns(plan.buffer(v)):
            return False
        readers = plan.readers.get(target, [])
        if any(r is not home and plan.depends(r, home) for r in readers):
            return False
        if any(r is home for r in readers) and not self.safe(home, target, v):
            return False
        before = list(plan.anc)
        for r in readers:
            if r is not home:
                if plan.depends(r, home):  # through an edge just added
                    plan.anc[:] = before
                    return False
                plan.add_dependence(home, r)
        return True

    @staticmethod
    def written(g: Group) -> list[Value]:
        """What the group stores, parts of others' values too."""
        return [*g.stored, *g.shares] if isinstance(g, ContractGroup) else g.stored

    def exprs(self, g: Group) -> list[Expr]:
        """Everything the group evaluates."""
        got = self.exprs_memo.get(g.id)
        if got is None:
            roots: list[Expr] = list(g.roots())
            for v in self.written(g):
                for spec in g.store_specs(v):
                    roots += spec
            got = self.exprs_memo[g.id] = needed_exprs(g.elements.bindings, roots)
        return got

    def loads(self, g: Group) -> list[Load]:
        got = self.loads_memo.get(g.id)
        if got is None:
            got = self.loads_memo[g.id] = loads_of(self.exprs(g))
        return got

    def nodes(self, g: Group) -> list[Node]:
        """The graph's nodes computed by the group, in order."""
        used = {id(e) for e in self.exprs(g)}
        own = {id(v.node): v.node for v in g.members if v.node is not None and v.node.op.scalar is None}
        found = {id(n): n for local, n in g.elements.origin.items()
                 if id(g.elements.bindings.get(local)) in used}  # fmt: skip
        found.update(own)
        return sorted(found.values(), key=lambda n: self.position.get(n, len(self.position)))

    def safe(self, g: Group, b: Buffer, v: Value) -> bool:
        """Whether writing `v` over `b` in group `g` disturbs no read of `b` there: each is at the place
        written, in the iteration that writes it. (Blocks read all they need before they write.)"""
        if isinstance(g, TinyGroup):
            return True
        if isinstance(g, ScatterGroup):
            # The base stays where it is; nothing else may come from there.
            loads = [x for x in self.loads(g) if self.place(x.buffer) is b]
            number = self.plan.number
            return len(loads) == 1 and loads[0] is g.base and number(loads[0].index[0]) == number(g.f)
        if isinstance(g, ContractGroup) and any(self.place(x) is b for x in g.buffers):
            return False  # tiles still to come read it
        if not isinstance(g, (PointwiseGroup, RowGroup, ContractGroup)):
            return False
        if len(g.store_specs(v)) != 1:
            return False
        number = self.plan.number
        at = number(g.store_spec(v)[0])
        mine = [x for x in self.loads(g) if self.place(x.buffer) is b]
        if any(len(x.index) != 1 or number(x.index[0]) != at for x in mine):
            return False
        if isinstance(g, RowGroup) and v.type.numel != g.O:
            # The pass that stores must be the last that reads: true of a store that waits for every
            # reduction.
            last = max((g.stage_of(r.element) for r in g.reductions), default=0)
            return g.stage_of(g.store_spec(v)[1]) > last
        return True

    # --- order and reuse

    def sorted_groups(self) -> list[Group]:
        """Dependences first; otherwise as created, but what only sums up goes before a product of which
        nothing is read either: what it reads (the gradient that both are made of) has just been written."""
        plan = self.plan
        done = 0
        order: list[Group] = []
        rest = list(plan.groups)
        sums = [g for g in rest if isinstance(g, RowGroup) and self.is_last(g)]
        while rest:
            for k, g in enumerate(rest):
                if plan.anc[g.id] & ~done == 0:
                    if sums and isinstance(g, ContractGroup) and self.is_last(g):
                        ready = [x for x in sums[:LOOK_AHEAD] if plan.anc[x.id] & ~done == 0]
                        if ready:
                            g = ready[0]
                            k = rest.index(g)
                    if sums and isinstance(g, RowGroup) and g in sums:
                        sums.remove(g)
                    order.append(g)
                    done |= 1 << g.id
                    del rest[k]
                    break
            else:
                raise AssertionError("groups depend on one another in a cycle")
        return order

    def is_last(self, g: Group) -> bool:
        """Whether all that the group stores leaves the program."""
        targets = self.targets[g.id]
        return bool(targets) and all(self.place(b).space != "arena" for b, _ in targets)

    def share_dying(self) -> None:
        """Elementwise results take the place of an operand of their size that nobody reads later."""
        plan = self.plan
        position = {g.id: k for k, g in enumerate(self.order)}
        last: dict[Buffer, int] = {}
        for b, readers in plan.readers.items():
            root = self.place(b)
            last[root] = max([last.get(root, -1), *(position[r.id] for r in readers)])
        for b in (*(source for _, source in self.copies), *self.pinned):
            last[self.place(b)] = len(self.order)
        for g in self.order:
            if not isinstance(g, PointwiseGroup):
                continue
            taken: set[Buffer] = set()
            for b, v in self.targets[g.id]:
                if self.place(b) is not b or b.space != "arena" or b in self.pinned:
                    continue
                for x in self.loads(g):
                    old = self.place(x.buffer)
                    if (
                        old.space == "arena"
                        and old not in taken
                        and last.get(old) == position[g.id]
                        and old.dtype is b.dtype
                        and old.size == b.size
                        and self.safe(g, old, v)
                    ):
                        self.same[b] = old
                        taken.add(old)
                        last[old] = max(last.get(b, -1), position[g.id])
                        break
