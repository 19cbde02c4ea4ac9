"""Elementwise kernels: one position of the flat domain for each thread, or 2 or 4 neighbours as a vector where
that makes wide accesses. Copies and straight-line code too. Used by gpu_schedule/__init__.py.

    for block { for thread { if i < count { for v in 4 vector { out[4*i + v] = ... } } } }
"""

from __future__ import annotations

from ...ir.expr import Expr, Load, Local, Var, index_add, stride_of
from ...ir.loops import Buffer, Stmt
from ..machine import MachineModel
from ..schedule.indexing import unravel
from ..schedule.nests import Split, StoreSpec, loads_of, needed_exprs, resplit
from ..schedule.other_groups import TinyGroup
from ..schedule.pointwise import emit_tiny
from ..schedule.scopes import Lowering
from .launch import Target, close, flat_launch, index_let, single_thread

#: what is left of the CPU's schedules: one lane, one thread
SCALAR = MachineModel(vector_bytes=1, masked_memory=False)
#: vectors pay once there are about so many threads for each multiprocessor
PER_SM = 512


def flat_kernel(
    bindings: dict[Local, Expr], specs: list[StoreSpec], flat: Expr, n: int, target: Target
) -> list[Stmt]:
    """`specs` for every value of `flat` in [0, n)."""
    exprs = needed_exprs(bindings, [e for _, i, v in specs for e in (i, v)])
    split = Split.of(flat, n, exprs)
    bindings, specs = resplit(bindings, specs, [split])
    lanes = vector_width(bindings, specs, split, n, target)
    low = Lowering(bindings, target.number, target.place)
    k, scope, at = flat_launch(low, n // lanes)
    sizes = [*split.sizes[:-1], split.sizes[-1] // lanes]
    last = split.vars[-1]
    parts = unravel(at, tuple(sizes))
    for var, size, part in zip(split.vars[:-1], sizes, parts):
        if isinstance(var, Var):
            scope.define(var, index_let(scope, var.name, part, size))
    inner = scope
    if isinstance(last, Var):
        part = index_let(scope, last.name, parts[-1], sizes[-1])
        if lanes > 1:
            lane = Var("v", lanes)
            inner = scope.loop(lane, lanes, "vector")
            part = index_add(part * lanes, lane)
        inner.define(last, part)
    inner.stores(specs)
    close(inner, k.scope)
    return k.finish()


def vector_width(
    bindings: dict[Local, Expr], specs: list[StoreSpec], split: Split, n: int, target: Target
) -> int:
    """Lanes of each thread: as many as make 16 bytes, where memory is mostly met in order."""
    last = split.vars[-1]
    if not isinstance(last, Var):
        return 1
    loads = loads_of(needed_exprs(bindings, [v for _, _, v in specs]))
    size = max(b.dtype.itemsize for b in (*[b for b, _, _ in specs], *[x.buffer for x in loads]))
    strides = [stride_of(x.index[0], last) for x in loads]
    wide = sum(s == 1 for s in strides)
    if any(stride_of(i, last) != 1 for _, i, _ in specs) or any(s not in (0, 1) for s in strides):
        if wide < sum(s != 0 for s in strides):
            return 1
    for lanes in (4, 2):
        enough = n // lanes >= PER_SM * target.gpu.sms
        if lanes * size <= 16 and split.sizes[-1] % lanes == 0 and enough:
            return lanes
    return 1


def copy_kernel(target: Target, to: Buffer, source: Buffer, f: Expr) -> list[Stmt]:
    """All elements of a buffer to another one."""
    return flat_kernel({}, [(to, f, Load(source, (f,)))], f, to.size, target)


def tiny_kernel(group: TinyGroup, targets: list[tuple], target: Target) -> list[Stmt]:
    """Straight-line code, in one thread."""
    body = emit_tiny(group, SCALAR, target.place, target.number, targets)
    return single_thread(body) if body else []
