"""The planner: decides for every value of a graph where it is computed and whether it is stored. Graph in,
groups out.

Nodes are visited once, in order. A reduction opens or joins a row group, a value of a few elements joins
straight-line code, an elementwise op joins the group its operands come from where its index fits, and
otherwise floats: it is computed inside whatever reads it, as movement ops always are. What a group reads of
another group is stored by that one, unless it is as cheap to compute again. A group that has taken on much
work takes no more, so that the cost of compiling grows with the program and not faster. Dependences between
groups are kept as bit masks, so that a join never makes a cycle.

Used by schedule/__init__.py.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from math import prod
from typing import Any

from ...ir.errors import OpError
from ...ir.expr import Expr, Load
from ...ir.graph import Graph, Node, Value
from ...ir.loops import Buffer
from ..machine import MachineModel
from .choices import CHEAP, again, moving_cost, narrow_part
from .contract import ContractGroup, affine_source, row_major
from .control import ControlGroup, Frame
from .cumulative import CumulativeGroup
from .elements import NotFusable, letter_sizes, scalar_cost, split_spec
from .groups import Group, PointwiseGroup, ReduceSpec
from .indexing import Numbering, ravel
from .joined import join_parts
from .other_groups import ScatterGroup, TinyGroup
from .placement import Placement
from .prepare import count_uses, prepare
from .row_group import RowGroup
from .sort import SortGroup

#: values of at most this many elements become locals of straight-line code
TINY = 16
#: tiny reductions unroll at most this many elements
TINY_REDUCE = 32
#: cycles to write out an element of windows and to read it again, where that stays in the caches and not
COLUMN, FAR_COLUMN = 0.5, 1.5
#: values that one elementwise group stores
MOST_STORED = 16
#: a concatenation of up to so many parts, each in runs of at least so many elements, is written part by part
MOST_PARTS, RUN = 8, 16
#: one of more parts is written before it is read: who reads it would look through all parts for each element
PULLED_PARTS = 4
#: longest chain of floating values
MAX_DEPTH = 24
#: how many of the last groups a value that needs a home looks at
LOOK_BACK = 128


class Planner:
    """See the module docstring. After `run`, `groups` holds the groups and `buffers` what they store."""

    #: what a contraction becomes, and values of a few elements; other targets have their own
    contract_group: type[ContractGroup] = ContractGroup
    tiny_group: type[TinyGroup] = TinyGroup
    #: values that are written down before they are read (padded.py)
    padded: Set[Value] = frozenset()

    def __init__(self, graph: Graph, machine: MachineModel, frame: Frame | None = None) -> None:
        self.graph = graph
        self.machine = machine
        self.frame = frame  # of a region
        self.placement: Placement | None = None
        self.number = Numbering()
        self.groups: list[Group] = []
        self.anc: list[int] = []
        self.needed = 0  # the groups that others depend on
        self.home: dict[Value, Group] = {}
        self.reach: dict[Value, int] = {}
        self.depth: dict[Value, int] = {}
        self.costs: dict[Value, float] = {}
        self.stored: set[Value] = set()
        self.buffers: dict[Value, Buffer] = {}
        self.readers: dict[Buffer, list[Group]] = {}
        self.constants: list[Buffer] = []
        self.const_buffers: dict[Value, Buffer] = {}
        self.inputs: list[Buffer] = [
            Buffer(v.name or f"in{i}", v.type.dtype, v.type.shape, "input")
            for i, v in enumerate(graph.inputs)
        ]
        #: region inputs that are constants; how often ones that stay the same are read by the loop
        self.sources: dict[Value, Value] = {}
        self.reuse: dict[Buffer, int] = {}
        if frame is not None:
            self.inputs, self.sources, self.reuse = frame.inputs, frame.sources, frame.reuse()
            self.constants = frame.outer.constants
        self.buffers.update(zip(graph.inputs, self.inputs))
        self.updates: dict[Value, Value] = {}
        self.outputs: list[Value] = []
        self.live: set[Value] = set()
        self.operands: dict[Node, tuple[Value, ...]] = {}  # of control flow, with copies of what it changes
        self.nodes = prepare(self)
        self.uses: dict[Value, int] = {}

    def run(self) -> None:
        self.uses = count_uses(self)
        for node in self.nodes:
            self.visit(node)

    def inner(self, graph: Graph, frame: Frame) -> Planner:
        """The planner of a region."""
        return Planner(graph, self.machine, frame)

    # --- dependences

    def new_group(self, cls: type, *args: Any) -> Any:
        group = cls(self, len(self.groups), *args)
        self.groups.append(group)
        self.anc.append(0)
        return group

    def depends(self, g: Group, on: Group) -> bool:
        return bool(self.anc[g.id] >> on.id & 1)

    def add_dependence(self, g: Group, on: Group) -> None:
        mask = self.anc[on.id] | 1 << on.id
        if g is on or mask & ~self.anc[g.id] == 0:
            return
        self.needed |= mask
        bit = 1 << g.id
        if not self.needed & bit:
            self.anc[g.id] |= mask
            return
        for i, a in enumerate(self.anc):
            if i == g.id or a & bit:
                self.anc[i] = a | mask

    def closure(self, homes: int) -> int:
        out, rest = homes, homes
        while rest:
            low = rest & -rest
            out |= self.anc[low.bit_length() - 1]
            rest ^= low
        return out

    def of_mask(self, homes: int) -> list[Group]:
        """The groups of a mask, latest first."""
        out = []
        while homes:
            i = homes.bit_length() - 1
            out.append(self.groups[i])
            homes ^= 1 << i
        return out

    def read(self, group: Group, v: Value) -> None:
        readers = self.readers.setdefault(self.buffers[v], [])
        if group not in readers:
            readers.append(group)

    @cached_property
    def reads(self) -> dict[Group, list[Buffer]]:
        """What each group reads; to be asked for when the groups are final."""
        found: dict[Group, list[Buffer]] = {}
        for b, readers in self.readers.items():
            for g in readers:
                found.setdefault(g, []).append(b)
        return found

    # --- storage

    def input_buffer(self, v: Value) -> Buffer:
        return self.buffers[v]

    def const_buffer(self, v: Value) -> Buffer:
        got = self.const_buffers.get(v)
        if got is None:
            node = v.node
            assert node is not None and node.op.numpy is not None
            data = node.op.numpy(**node.attrs)
            got = Buffer(
                v.name or f"c{len(self.constants)}", v.type.dtype, v.type.shape, "const", data=data.tobytes()
            )
            self.const_buffers[v] = got
            self.constants.append(got)
        return got

    def buffer(self, v: Value) -> Buffer:
        got = self.buffers.get(v)
        if got is None:
            name = v.name or (v.node.op.name if v.node is not None else "v")
            got = self.buffers[v] = Buffer(name, v.type.dtype, v.type.shape, "arena")
        return got

    def demand(self, v: Value) -> None:
        """`v` will be stored by its group."""
        if v not in self.stored:
            self.stored.add(v)
            self.buffer(v)
            self.home[v].stored.append(v)

    def ensure_home(self, v: Value) -> None:
        """Gives a floating value a group, so that it can be stored."""
        if v.node is not None and v not in self.home:
            if not (self.is_tiny(v.node) and self.home_tiny(v)):
                self.home_pointwise(v)

    def reference(
        self, v: Value, home: Group, group: Group, index: tuple[Expr, ...], mask: Expr | None
    ) -> Expr | None:
        """The element of a value that lives in another group: a load, or None to compute it again."""
        if v not in self.stored and again(self, v):
            return None
        if self.depends(home, group):
            raise NotFusable("cycle")
        group.pending.append(v)
        return Load(self.buffer(v), (ravel(index, v.type.shape),), mask)

    # --- costs

    def inline_cost(self, v: Value) -> float:
        """Cycles per element of computing `v` from values that have a home, or inputs."""
        got = self.costs.get(v)
        if got is None:
            node = v.node
            if node is None or node.op.kernel == "source":
                got = 0.0
            else:
                got = scalar_cost(node) if node.op.scalar is not None else moving_cost(node)
                got += sum(0.0 if o in self.home else self.inline_cost(o) for o in node.operands)
            self.costs[v] = got
        return got

    # --- visiting

    def visit(self, node: Node) -> None:
        op = node.op
        v = node.results[0]
        if op.decompose is not None:
            raise OpError(f"{op.name} at {node.loc} is a composite; expand it before scheduling")
        if op.kernel == "control":
            group = self.new_group(ControlGroup, node)
            group.take()
            self.reach.update((r, 1 << group.id) for r in node.results)
            return
        self.reach[v] = 0
        for o in node.operands:
            self.reach[v] |= self.reach_of(o)
        if v.type.numel == 0:
            if v in self.live:
                self.buffer(v)
            return
        if op.scalar is not None or op.pull is not None or op.kernel == "source" or self.is_trivial(node):
            self.visit_inline(node, v)
        elif op.kernel == "reduce":
            self.visit_reduce(node, v)
        elif op.kernel == "contract":
            self.visit_contract(node, v)
        elif op.kernel == "scatter":
            self.new_group(ScatterGroup).take(node)
        elif op.kernel == "scan":
            self.new_group(CumulativeGroup).take(node)
        elif op.kernel == "sort":
            self.new_group(SortGroup).take(node)
        else:
            raise OpError(f"{op.name} at {node.loc} (kernel class {op.kernel}) has no schedule yet")
        if v in self.home:
            self.reach[v] = 1 << self.home[v].id

    def reach_of(self, v: Value) -> int:
        home = self.home.get(v)
        return self.reach.get(v, 0) if home is None else 1 << home.id

    def is_trivial(self, node: Node) -> bool:
        """Reductions of nothing or of single elements, and products without a sum."""
        if node.op.kernel == "reduce":
            return ReduceSpec.of(node).R <= 1
        if node.op.kernel == "contract":
            sizes = letter_sizes(node)
            a, _, out = split_spec(node)
            return prod(sizes[c] for c in a if c not in out) <= 1
        return False

    def is_tiny(self, node: Node) -> bool:
        v = node.results[0]
        if not 1 <= v.type.numel <= TINY:
            return False
        kernel = node.op.kernel
        if kernel == "reduce":
            return node.operands[0].type.numel <= TINY_REDUCE
        if kernel == "contract":
            return prod(letter_sizes(node).values()) <= 2 * TINY_REDUCE
        if kernel == "source":
            return v in self.live
        return node.op.scalar is not None

    def visit_inline(self, node: Node, v: Value) -> None:
        """Scalar ops, movement, gathers, constants."""
        depths = [self.depth.get(o, 0) for o in node.operands if o not in self.home]
        self.depth[v] = 1 + max(depths, default=0)
        many = node.op.name == "concat" and len(node.operands) > PULLED_PARTS
        must = v in self.live or self.depth[v] > MAX_DEPTH or many
        if node.op.scalar is None and not must and node.op.kernel not in ("reduce", "contract"):
            return
        cost = self.inline_cost(v)
        shared = cost > CHEAP and self.uses.get(v, 0) > 1
        part = narrow_part(self, node, cost) if shared and not must else None
        if part is not None:
            self.visit_shared(part)
            self.costs.pop(v)
            self.reach[v] |= self.reach[part]
            return
        must, homes = must or shared, self.reach[v]
        if must and self.home_concat(node, v):
            return
        if not homes and not must and not (v.type.numel <= TINY and cost > CHEAP):
            return
        want = self.closure(homes) if v.type.numel <= TINY and v in self.live and self.uses[v] == 1 else 0
        for g in self.of_mask(homes):
            # A number that ends here must not make a group wait for what the group can do without.
            if not g.full and not want & ~(self.anc[g.id] | 1 << g.id) and g.try_join(v):
                return
        if v.type.numel <= TINY and (cost > CHEAP or must or self.is_tiny(node)) and self.home_tiny(v):
            return
        if must or (self.uses.get(v, 0) > 1 and cost > CHEAP):
            self.home_pointwise(v)

    def visit_shared(self, v: Value) -> None:
        """Gives a floating value a group: one that its operands come from, if its index fits there."""
        if not any(not g.full and g.try_join(v) for g in self.of_mask(self.reach[v])):
            self.home_pointwise(v)
        self.reach[v] = 1 << self.home[v].id

    def home_tiny(self, v: Value) -> bool:
        want = self.closure(self.reach[v])
        more = any(g.full for g in self.of_mask(self.reach[v]))  # what v belongs to goes on elsewhere
        for g in self.groups[: -LOOK_BACK - 1 : -1]:
            if not isinstance(g, TinyGroup) or g.full:
                continue
            has, needs = self.anc[g.id] | 1 << g.id, want | 1 << g.id
            if (has == needs or (more and has | needs == has)) and g.try_join(v):
                return True
        group = self.new_group(self.tiny_group)
        if not group.try_join(v):  # it reads a reduction here at a place that is data
            del self.groups[-1], self.anc[-1]
            return False
        return True

    def home_concat(self, node: Node, v: Value) -> bool:
        """A concatenation is written by who computes its parts, else, of equal parts, by a group."""
        if join_parts(self, node):
            return True
        parts = node.operands
        shape = parts[0].type.shape if parts else ()
        if node.op.name != "concat" or any(o.type.shape != shape for o in parts):
            return False
        # Runs of less than a vector are better gathered than written in pieces.
        if not 2 <= len(parts) <= MOST_PARTS or prod(shape[node.attrs["dim"] :]) < RUN:
            return False
        want = self.closure(self.reach[v])
        for g in self.groups[: -LOOK_BACK - 1 : -1]:
            if self.may_join(g, prod(shape), want) and isinstance(g, PointwiseGroup) and g.try_concat(node):
                return True
        group = self.new_group(PointwiseGroup, prod(shape))
        if not group.try_concat(node):
            del self.groups[-1], self.anc[-1]
            return False
        return True

    def may_join(self, g: Group, n: int, want: int, copy: bool = False) -> bool:
        """Whether an elementwise group of n elements may take what depends on `want` (on any, for a copy)."""
        return (
            isinstance(g, PointwiseGroup)
            and g.n == n
            and (copy or self.anc[g.id] & ~want == 0)
            and not self.depends_any(want, g)
            and len(g.stored) < MOST_STORED
            and not g.full
        )

    def home_pointwise(self, v: Value) -> None:
        """In a group of its size that depends on the same (any, for a copy none waits for), or a new one."""
        if v.node is not None and self.home_concat(v.node, v):
            return
        want = self.closure(self.reach[v])
        copy = v.node is not None and v.node.op.name == "reshape" and v in self.live and self.uses[v] <= 1
        for g in self.groups[: -LOOK_BACK - 1 : -1]:
            if self.may_join(g, v.type.numel, want, copy) and g.try_join(v):
                return
        group = self.new_group(PointwiseGroup, v.type.numel)
        joined = group.try_join(v)
        assert joined, v

    def depends_any(self, homes: int, g: Group) -> bool:
        """Whether a group of the mask, which is a closure, needs `g` (other than being it)."""
        if not homes >> g.id & 1:
            return False
        rest = homes & ~(1 << g.id)
        while rest:
            low = rest & -rest
            if self.anc[low.bit_length() - 1] >> g.id & 1:
                return True
            rest ^= low
        return False

    def visit_reduce(self, node: Node, v: Value) -> None:
        if self.is_tiny(node) and self.visit_tiny(v):
            return
        spec = ReduceSpec.of(node)
        for g in self.of_mask(self.reach[v]):
            if g.full:
                continue
            if isinstance(g, RowGroup) and g.try_reduce(node):
                return
            if isinstance(g, PointwiseGroup) and g.n == spec.O * spec.R:
                row = self.upgrade(g, spec)
                if row is not None and row.try_reduce(node):
                    return
        want = self.closure(self.reach[v])
        for g in self.groups[: -LOOK_BACK - 1 : -1]:
            if (
                isinstance(g, RowGroup)
                and not g.full
                and g.signature == (spec.shape, spec.axes)
                and self.anc[g.id] == want
                and g.try_reduce(node)
            ):
                return
        group = self.new_group(RowGroup, spec.O, spec.R)
        joined = group.try_reduce(node)
        assert joined, node

    def visit_tiny(self, v: Value) -> bool:
        for g in self.of_mask(self.reach[v]):
            if isinstance(g, TinyGroup) and not g.full and g.try_join(v):
                return True
        return self.home_tiny(v)

    def upgrade(self, g: PointwiseGroup, spec: ReduceSpec) -> RowGroup | None:
        """The pointwise group as a row group, so that a reduction can join what it reads."""
        row = RowGroup(self, g.id, spec.O, spec.R)
        row.set_layout(spec)
        saved = dict(self.home)
        self.groups[g.id] = row
        for v in g.members:
            del self.home[v]
        for v in g.members:
            if not row.try_join(v):
                self.home = saved
                self.groups[g.id] = g
                return None
        row.stored = g.stored
        for readers in self.readers.values():
            if g in readers:
                readers[:] = dict.fromkeys([row if r is g else r for r in readers])
        return row

    def visit_contract(self, node: Node, v: Value) -> None:
        if self.is_tiny(node) and self.visit_tiny(v):
            return
        a, b, out = split_spec(node)
        sizes = letter_sizes(node)
        inner = prod(sizes[c] for c in a if c not in out)
        rows = prod(sizes[c] for c in out if c not in b)
        cols = prod(sizes[c] for c in out if c not in a)
        if rows > 1 and cols > 1:
            self.contract_tiles(node)
            return
        group = self.new_group(RowGroup, v.type.numel, inner)
        joined = group.try_contract(node)
        assert joined, node

    def contract_tiles(self, node: Node) -> None:
        """A group of its own; operands that are not stored somewhere in a simple layout are stored first."""
        for base, _ in self.contract_sources(node):
            if base.node is not None and base.node.op.kernel != "source":
                self.ensure_home(base)
                self.demand(base)
        group = self.new_group(self.contract_group, node)
        try:
            group.take()
        except NotFusable:
            del self.groups[-1], self.anc[-1]
            for o in node.operands:
                if o.node is not None and o not in self.home:
                    self.home_pointwise(o)
                if o in self.home:
                    self.demand(o)
            self.new_group(self.contract_group, node).take()

    def contract_sources(self, node: Node) -> tuple[tuple[Value, tuple[int, ...]], ...]:
        """What the operands of a contraction are loaded from, and their strides there. Windows are met where
        they are, unless short rows or steps make that slower than writing them out (im2col)."""
        found = tuple(affine_source(o, self.home) for o in node.operands)
        for k, (o, (base, _)) in enumerate(zip(node.operands, found)):
            if o.type.numel < 2 * base.type.numel or o.type.nbytes > 16 * self.machine.l2_bytes:
                continue
            other = tuple((o, row_major(o.type.shape)) if i == k else f for i, f in enumerate(found))
            apart, whole = (ContractGroup(self, -1, node).estimate(f) for f in (found, other))
            near = o.type.nbytes <= 4 * self.machine.l2_bytes
            if whole + (COLUMN if near else FAR_COLUMN) * o.type.numel < apart:
                found = other
        return found
