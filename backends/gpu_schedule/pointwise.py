"""Elementwise kernels: one position of the flat domain for each thread, or 2 or 4 neighbours as a vector
where that makes wide accesses; large ones in a loop over the grid. Copies and straight-line code too. Used by
gpu_schedule/__init__.py.

    for block { for thread { if i < count { for v in 4 vector { out[4*i + v] = ... } } } }

What is read across memory (transposes) goes through tiles in shared memory.
"""

from __future__ import annotations

from math import prod

from ...ir.dataclass import dataclass
from ...ir.expr import Expr, Load, Local, Var, index_add, stride_of
from ...ir.loops import Barrier, Buffer, Stmt, Store
from ..machine import MachineModel
from ..schedule.crossing import crossing
from ..schedule.indexing import unravel
from ..schedule.nests import Split, StoreSpec, less, loads_of, needed_exprs, resplit
from ..schedule.other_groups import TinyGroup
from ..schedule.pointwise import emit_tiny
from ..schedule.scopes import Lowering, Scope
from .launch import Launch, Target, both, close, define_parts, flat_launch, index_let, single_thread

#: what is left of the CPU's schedules: one lane, one thread
SCALAR = MachineModel(vector_bytes=1, masked_memory=False)
#: vectors pay once there are about so many threads for each multiprocessor
PER_SM = 512
#: side of a tile that is transposed in shared memory, rows of threads in it, loads that are
TILE, TILE_ROWS, MOST_CROSSED = 32, 8, 3


def flat_kernel(
    bindings: dict[Local, Expr], specs: list[StoreSpec], flat: Expr, n: int, target: Target
) -> list[Stmt]:
    """`specs` for every value of `flat` in [0, n)."""
    exprs = needed_exprs(bindings, [e for _, i, v in specs for e in (i, v)])
    split = Split.of(flat, n, exprs)
    bindings, specs = resplit(bindings, specs, [split])
    crossed = crossed_loads(bindings, specs, split)
    if crossed is not None:
        return transposing_kernel(bindings, specs, split, crossed, target)
    lanes = vector_width(bindings, specs, split, n, target)
    low = Lowering(bindings, target.number, target.place)
    k, scope, at = flat_launch(low, n // lanes, gpu=target.gpu)
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


@dataclass
class Crossed:
    """Loads of elements that are neighbours along `across`, a dimension of the split other than the last."""

    across: int
    loads: list[Load]


def crossed_loads(bindings: dict[Local, Expr], specs: list[StoreSpec], split: Split) -> Crossed | None:
    """What is read across memory, where both dimensions are long enough for tiles."""
    loads = loads_of(needed_exprs(bindings, [v for _, _, v in specs]))
    across = crossing(split, loads)
    if across is None or min(split.sizes[across], split.sizes[-1]) < TILE // 2:
        return None
    var, last = split.vars[across], split.vars[-1]
    assert isinstance(var, Var) and isinstance(last, Var)
    found: dict[int, Load] = {}
    for x in loads:
        far = stride_of(x.index[0], last)
        if stride_of(x.index[0], var) == 1 and far is not None and abs(far) > 4 and x.mask is None:
            found.setdefault(id(x), x)
    if not 0 < len(found) <= MOST_CROSSED or any(stride_of(i, last) != 1 for _, i, _ in specs):
        return None
    return Crossed(across, list(found.values()))


def transposing_kernel(
    bindings: dict[Local, Expr], specs: list[StoreSpec], split: Split, crossed: Crossed, target: Target
) -> list[Stmt]:
    """Square tiles: what lies across is read in the order of memory into shared memory first (padded, so that
    a column has no two elements in one bank)."""
    low = Lowering(bindings, target.number, target.place)
    across, k = split.vars[crossed.across], crossed.across
    last, n, m = split.vars[-1], split.sizes[-1], split.sizes[k]
    rest = [
        (v, s) for i, (v, s) in enumerate(zip(split.vars, split.sizes)) if i not in (k, len(split.vars) - 1)
    ]
    count = prod(s for _, s in rest)
    blocks = [("bz", count), ("by", -(-m // TILE)), ("bx", -(-n // TILE))]
    launch = Launch(low, blocks, [("ty", TILE_ROWS), ("tx", TILE)])
    scope, (bz, by, bx), (ty, tx) = launch.scope, launch.blocks, launch.threads
    define_parts(scope, [v for v, _ in rest], [s for _, s in rest], bz)
    different = list({target.number(x): x for x in crossed.loads}.values())
    shared = [launch.shared(f"{e.buffer.name}_tile", e.dtype, TILE * (TILE + 1)) for e in different]

    def rows(first: Expr, second: Expr, size: int, other: int) -> tuple[Scope, Expr, Expr, Expr]:
        """A loop over a tile's rows: the scope, the row, and where row and column are in memory."""
        j = Var("j", TILE // TILE_ROWS)
        loop = scope.loop(j, j.extent, "unroll")
        row = index_add(ty, j * TILE_ROWS)
        a, b = index_add(first * TILE, row), index_add(second * TILE, tx)
        cond = both(less(a, size) if size % TILE else None, less(b, other) if other % TILE else None)
        return (loop if cond is None else loop.branch(cond)), row, a, b

    loop, row, a, b = rows(bx, by, n, m)
    loop.define(last, index_let(loop, "r", a, n))
    loop.define(across, index_let(loop, "c", b, m))
    for tile, value in zip(shared, loop.roots(list(different))):
        loop.stmts.append(Store(tile, (index_add(row * (TILE + 1), tx),), value))
    close(loop, scope)
    scope.stmts.append(Barrier())
    loop, row, a, b = rows(by, bx, m, n)
    loop.define(across, index_let(loop, "r", a, m))
    loop.define(last, index_let(loop, "c", b, n))
    for e, tile in zip(different, shared):
        value = loop.let(Load(tile, (index_add(tx * (TILE + 1), row),)), f"{e.buffer.name}_")
        loop.memo[target.number(e)] = value
    loop.stores(specs)
    close(loop, scope)
    return launch.finish()


def copy_kernel(target: Target, to: Buffer, source: Buffer, f: Expr) -> list[Stmt]:
    """All elements of a buffer to another one."""
    return flat_kernel({}, [(to, f, Load(source, (f,)))], f, to.size, target)


def tiny_kernel(group: TinyGroup, targets: list[tuple], target: Target) -> list[Stmt]:
    """Straight-line code, in one thread."""
    body = emit_tiny(group, SCALAR, target.place, target.number, targets)
    return single_thread(body) if body else []
