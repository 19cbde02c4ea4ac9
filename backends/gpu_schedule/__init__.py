"""The scheduler for GPUs: an optimised graph becomes a `LoopProgram` of kernels with `block` and `thread`
loops (their form is described in ir/loops.py). `schedule_gpu(graph, machine)` is all there is to call.

What is computed where is decided as for the CPU (schedule/plan.py and placement.py): the same groups, index
maps and buffers. Each kind of group has its emitter here: pointwise.py, rows.py, contract.py, scatter.py,
cumulative.py, sort.py; launch.py is what they share. A group may be several kernels, since those of a GPU
wait for one another only where one ends; small ones that need not wait are joined (merge.py), and those of
one block that follow one another (chain.py). Control flow stays around kernels, as on the CPU.
"""

from __future__ import annotations

from ...ir.graph import Graph
from ...ir.loops import Kernel, LoopProgram, Step, Stmt, grid_of, walk_steps
from ..machine import GpuModel
from ..memory import plan as plan_memory
from ..schedule import describe
from ..schedule.control import ControlGroup
from ..schedule.control_steps import Ahead, control_steps, settle
from ..schedule.cumulative import CumulativeGroup
from ..schedule.groups import Group, PointwiseGroup, domain_var
from ..schedule.nests import StoreSpec
from ..schedule.other_groups import ScatterGroup, TinyGroup
from ..schedule.placement import Placement
from ..schedule.row_group import RowGroup
from ..schedule.sort import SortGroup
from .chain import chain
from .contract import contract_kernels
from .cumulative import cumulative_kernels
from .launch import Target, single_thread
from .merge import merge
from .plan import GpuContractGroup, GpuPlanner
from .pointwise import copy_kernel, flat_kernel, tiny_kernel
from .rows import row_kernels
from .scatter import scatter_kernels
from .sort import sort_kernels

__all__ = ["schedule_gpu"]


def schedule_gpu(graph: Graph, machine: GpuModel | None = None) -> LoopProgram:
    """Kernels that compute the graph's outputs and write its updates in place.

    Args:
        graph: scalar and kernel ops only (composites expanded).
        machine: the GPU to schedule for.

    :raises OpError: an op that has no schedule.
    """
    machine = machine or GpuModel()
    plan = GpuPlanner(graph, machine)
    plan.run()
    placement = Placement(plan)
    program = LoopProgram(graph.name, plan.inputs, placement.outputs)
    program.updated = [plan.input_buffer(i) for i, v in plan.updates.items() if v.type.numel]
    _, steps = _steps(placement, machine)
    program.steps = chain(merge(steps, machine))
    for n, kernel in enumerate(program.kernels):
        kernel.name = f"k{n}_{kernel.name}" if kernel.name else f"k{n}"
    program.temps = list(plan.constants)
    plan_memory(program)
    return program


def _steps(placement: Placement, machine: GpuModel) -> tuple[list[Ahead], list[Step]]:
    """What a plan runs, in order; and of a loop's body, what is done once before the loop."""
    ahead: list[Ahead] = []
    steps: list[Step] = []
    target = Target(machine, placement.place, placement.plan.number)
    for group in placement.order:
        if isinstance(group, ControlGroup):
            moved, made = control_steps(group, placement, lambda region: _steps(region, machine))
            for s in walk_steps(made):
                if isinstance(s, Kernel) and grid_of(s.body) is None:
                    s.body = single_thread(s.body)
            if placement.plan.frame is None:
                settle(made)
            ahead += moved
            steps += made
            continue
        bodies = [b for b in _emit(group, placement, target) if b]
        for n, body in enumerate(bodies):
            kernel = describe(group, body, placement)
            if len(bodies) > 1:
                kernel.comment = f"{kernel.comment} ({n + 1} of {len(bodies)})"
                kernel.flops //= len(bodies)
                kernel.bytes_moved //= len(bodies)
            steps.append(kernel)
    for to, source in placement.copies:
        body = copy_kernel(target, to, source, domain_var("i", to.size))
        steps.append(Kernel("", body, f"copy to {to.name}", (), 0, 2 * to.nbytes))
    return ahead, steps


def _emit(group: Group, placement: Placement, target: Target) -> list[list[Stmt]]:
    """The kernels of a group."""
    targets = placement.targets[group.id]
    buffers = [b for b, _ in targets]
    if isinstance(group, TinyGroup):
        return [tiny_kernel(group, targets, target)]
    if isinstance(group, ScatterGroup):
        return scatter_kernels(group, buffers, target)
    if isinstance(group, CumulativeGroup):
        return cumulative_kernels(group, buffers, target)
    if isinstance(group, SortGroup):
        return sort_kernels(group, buffers, target)
    specs: list[StoreSpec] = [(b, *spec) for b, v in targets for spec in group.store_specs(v)]
    if isinstance(group, GpuContractGroup):
        return contract_kernels(group, specs, target)
    if isinstance(group, RowGroup):
        return row_kernels(group, specs, target)
    assert isinstance(group, PointwiseGroup)
    return [flat_kernel(group.elements.bindings, specs, group.f, group.n, target)]
