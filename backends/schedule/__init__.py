"""The scheduler: an optimised graph becomes a `LoopProgram`. `schedule(graph, machine)` is all there is to
call.

In order: plan.py decides what is computed where (groups.py, row_group.py, other_groups.py, contract.py; their
elements are pulled through index maps by elements.py); placement.py gives every stored value its buffer and
the groups their order; pointwise.py and rows.py write their loops with the help of nests.py and scopes.py;
blockwise.py joins kernels over the same blocks; backends/memory.py lays out the arena. Regions of control
flow are planned and placed in the same way, as part of the group of their node (control.py); control_steps.py
puts their kernels into loops and branches.
"""

from __future__ import annotations

from math import prod

from ...ir.expr import Load
from ...ir.graph import Graph, Value
from ...ir.loops import Buffer, Kernel, LoopProgram, Step, Stmt
from ..machine import MachineModel
from ..memory import plan as plan_memory
from .blockwise import in_blocks
from .contract import ContractGroup
from .contract_loops import emit_contract
from .contract_operands import Packed
from .control import ControlGroup
from .control_steps import Ahead, control_steps, settle
from .cumulative import CumulativeGroup, emit_cumulative
from .elements import letter_sizes
from .groups import Group, PointwiseGroup, domain_var
from .indexing import forget
from .joined import JoinedGroup
from .nests import StoreSpec
from .other_groups import ScatterGroup, TinyGroup
from .padded import padded_once
from .placement import Placement
from .plan import MOST_PARTS, Planner
from .pointwise import emit_pointwise, emit_tiny, flat_nest
from .prepare import in_few_parts
from .row_group import RowGroup
from .rows import emit_rows
from .scatter import emit_scatter
from .shared_loops import share_rows
from .sort import SortGroup, emit_sort

__all__ = ["schedule"]


def schedule(graph: Graph, machine: MachineModel | None = None) -> LoopProgram:
    """Loops that compute the graph's outputs and write its updates in place.

    Args:
        graph: scalar and kernel ops only (composites expanded).
        machine: the CPU to schedule for; the default is a 256-bit single-threaded one.

    :raises OpError: an op that has no schedule.
    """
    machine = machine or MachineModel()
    graph, padded = padded_once(in_few_parts(graph, MOST_PARTS))
    plan = Planner(graph, machine)
    plan.padded = padded
    plan.run()
    placement = Placement(plan)
    program = LoopProgram(graph.name, plan.inputs, placement.outputs)
    program.updated = [plan.input_buffer(i) for i, v in plan.updates.items() if v.type.numel]
    _, steps = _steps(placement, machine)
    program.steps = in_blocks(share_rows(steps, machine), machine)
    for n, kernel in enumerate(program.kernels):
        kernel.name = f"k{n}_{kernel.name}" if kernel.name else f"k{n}"
    program.temps = list(plan.constants)
    program.flushes = graph.trains
    plan_memory(program)
    forget()
    # The plan and its groups know each other and hold most of what was made on the way: the collector would
    # look through all of that to find out that it is garbage.
    for x in (*plan.groups, plan.number, plan):
        vars(x).clear()
    return program


def _steps(placement: Placement, machine: MachineModel) -> tuple[list[Ahead], list[Step]]:
    """What a plan runs, in order; and of a loop's body, what is done once before the loop."""
    ahead: list[Ahead] = []
    steps: list[Step] = []
    for group in placement.order:
        if isinstance(group, ControlGroup):
            moved, made = control_steps(group, placement, lambda region: _steps(region, machine))
            if placement.plan.frame is None:
                settle(made)
            ahead += moved
            steps += made
            continue
        packed: list[Packed] = []
        body = _emit(group, placement, machine, packed)
        for p in packed:
            moved_bytes = p.source.nbytes + p.panel.nbytes
            kernel = Kernel("pack", p.body, f"pack {p.source.name}", (), 0, moved_bytes)
            ahead.append(Ahead(kernel, p.source))
        if body:
            steps.append(describe(group, body, placement))
    for target, source in placement.copies:
        f = domain_var("i", target.size)
        spec: StoreSpec = (target, f, Load(source, (f,)))
        body = flat_nest({}, [spec], f, target.size, machine, placement.place, placement.plan.number)
        steps.append(Kernel("", body, f"copy to {target.name}", (), 0, 2 * target.nbytes))
    return ahead, steps


def _emit(group: Group, placement: Placement, machine: MachineModel, packed: list[Packed]) -> list[Stmt]:
    """The statements of a group; `packed` gets what is packed for a whole loop."""
    number = placement.plan.number
    targets = placement.targets[group.id]
    if isinstance(group, JoinedGroup):
        return []
    if isinstance(group, TinyGroup):
        return emit_tiny(group, machine, placement.place, number, targets)
    if isinstance(group, ScatterGroup):
        return emit_scatter(group, [b for b, _ in targets], machine, placement.place, number)
    if isinstance(group, CumulativeGroup):
        return emit_cumulative(group, [b for b, _ in targets], machine, placement.place, number)
    if isinstance(group, SortGroup):
        return emit_sort(group, [b for b, _ in targets], machine, placement.place, number)
    specs: list[StoreSpec] = [(b, *spec) for b, v in targets for spec in group.store_specs(v)]
    if isinstance(group, ContractGroup):
        return emit_contract(group, specs, machine, placement.place, number, packed)
    if isinstance(group, RowGroup):
        return emit_rows(group, specs, machine, placement.place, number)
    assert isinstance(group, PointwiseGroup)
    return emit_pointwise(group, specs, machine, placement.place, number)


def describe(group: Group, body: list[Stmt], placement: Placement) -> Kernel:
    plan = placement.plan
    names: list[str] = []
    locs = []
    flops = 0
    for node in placement.nodes(group):
        if node.op.name not in names:
            names.append(node.op.name)
        if node.loc is not None and node.loc not in locs:
            locs.append(node.loc)
        flops += _flops(node.results[0], plan)
    written = [placement.place(b) for b, _ in placement.targets[group.id]]
    read = [placement.place(b) for b in plan.reads.get(group, ())]
    moved = sum(b.nbytes for b in dict.fromkeys(written)) + sum(b.nbytes for b in dict.fromkeys(read))
    comment = "+".join(names[:8]) + ("+..." if len(names) > 8 else "")
    return Kernel(names[0] if names else group.kind, body, comment, tuple(locs), flops, moved)


def _flops(v: Value, plan: Planner) -> int:
    node = v.node
    assert node is not None
    if node.op.kernel == "contract":
        return 2 * prod(letter_sizes(node).values())
    if node.op.kernel == "reduce":
        return node.operands[0].type.numel
    return v.type.numel if node.op.scalar is not None else 0
