"""How to compute one contraction: which operand gives the vectors, the register tile, what is packed. A small
cost model in cycles compares the ways. Used by contract.py and contract_loops.py.

Tiles follow the outer-product scheme of GotoBLAS (Goto, van de Geijn, "Anatomy of high-performance matrix
multiplication", ACM TOMS 34, 2008): an MR x NR block of C stays in registers while k runs, a row of B is
loaded as vectors, elements of A are broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

from ..machine import MachineModel

#: cycles per element to copy an operand into panels: along memory, across it (squares turned in registers),
#: element by element; and more where it does not fit the second cache
COPY, TURN, GATHER, COPY_FAR = 0.35, 0.45, 1.4, 0.65
#: cycles per multiply-add of vectors where two can begin at once, and per load of vectors this wide
PER_FMA, PER_LOAD = 1.04, 1.0
#: cycles more per vector that begins anywhere and so is in two lines
CROSSING = 0.35
#: cycles more per vector of B that comes from the second cache, as all do where a panel exceeds the first
FROM_L2 = 0.15
#: and where panels exceed the second
FROM_L3 = 2.0
#: and where B is read in place, has rows apart from each other, and more of them than the first cache holds
APART = 1.0
#: cycles to bring a line from beyond the second cache: one after the other in memory, or each on another page
STREAM, JUMP = 6.0, 16.0
#: and from the second where nothing hides it
LINE_L2 = 1.0
#: cycles per vector that the second cache gives at most
L2_VECTOR = 2.2
#: cycles per vector of partial sums kept in memory between blocks of k: in the first cache, beyond
PARTIAL, PARTIAL_FAR = 3.0, 4.0
#: cycles more per element of A where a tile's rows fall into too few sets of the first cache to stay there
COLLIDE = 0.6
#: and where every step of k needs another line of A, and these are more than the first cache holds
FAR = 3.0
#: cycles of a vector store to scattered places, per lane; of keeping a row and turning it with others
SCATTER, TURNED = 5.0, 7.0
#: and for every line of the result that is not in the second cache
RESULT = 8.0
#: cycles to begin another row of dot products, where k is not contiguous as a whole
PER_ROW = 20.0
#: cycles for a tile's prologue and epilogue, per accumulator
PER_VECTOR = 3.0
#: rows that are too few for a tile
FEW = 4
#: rows of B in a block that is read in place, at least: as many streams as the hardware follows
STREAMS = 32


@dataclass(frozen=True)
class Flat:
    """Dimensions taken as one.

    Attributes:
        size: of all.
        stride: in the result, 0 where it is not constant.
        run: elements in a row that are neighbours in the operand.
    """

    size: int
    stride: int
    run: int


@dataclass(frozen=True)
class Problem:
    """C[m, n] = sum_k A[m, k] B[k, n], repeated `batch` times; strides in elements, None where not constant.

    `each_a` and `each_b` say how many matrices the operand is in the repetitions that have rows and columns
    in common; `reuse_a` and `reuse_b` how often it is used in other runs: packing is paid for once.
    `k_last` is the extent of the contracted dimension that the strides are of, the innermost of `inner`.
    `m_rows` and `n_rows` are extents of dimensions among the `batch` ones that only A, only B has: m and n
    are their rows. `windows_a` and `windows_b` say that an operand's elements lie in memory once but are met
    several times, as the windows of a convolution are. `flat_m` and `flat_n` describe all rows, all columns
    as one dimension, where they are several. `m_others` and `n_others` are the extents of all other
    dimensions of rows, of columns, outermost first.
    """

    M: int
    N: int
    K: int
    batch: int
    am: int
    ak: int
    bk: int
    bn: int
    cm: int
    cn: int
    itemsize: int
    inner: tuple[int, ...] = ()
    reuse_a: int = 1
    reuse_b: int = 1
    k_last: int = 0
    m_rows: int = 1
    n_rows: int = 1
    windows_a: bool = False
    windows_b: bool = False
    each_a: int = 1
    each_b: int = 1
    flat_m: Flat | None = None
    flat_n: Flat | None = None
    m_others: tuple[int, ...] = ()
    n_others: tuple[int, ...] = ()

    def swapped(self) -> Problem:
        """The same with the operands' roles exchanged."""
        return Problem(
            self.N, self.M, self.K, self.batch, self.bn, self.bk, self.ak, self.am, self.cn, self.cm,
            self.itemsize, inner=self.inner, reuse_a=self.reuse_b, reuse_b=self.reuse_a,
            k_last=self.k_last, m_rows=self.n_rows, n_rows=self.m_rows, windows_a=self.windows_b,
            windows_b=self.windows_a, each_a=self.each_b, each_b=self.each_a, flat_m=self.flat_n,
            flat_n=self.flat_m, m_others=self.n_others, n_others=self.m_others,
        )  # fmt: skip


@dataclass(frozen=True)
class Strategy:
    """A way to do it.

    Attributes:
        swap: A and B exchange roles.
        dot: vectors run along k (both operands contiguous there) and are summed up at the end.
        mr, nr: rows and columns of the register tile; columns in elements for `dot`, in vectors otherwise.
        lanes: of vectors.
        pack_a, pack_b: the operand is copied into panels first.
        kc: k in blocks of this many, partial sums kept in memory.
        spread: every vector of the tile is another short row of columns, filled up with idle lanes.
        flat: all dimensions of the columns are one, told apart while B is packed.
        nc: B is used in blocks of this many columns (and `kc` rows), each packed before, if it is; 0: as a
            whole.
        ahead: while a tile of columns is computed, the next one's rows of B are fetched.
        merge: the number, from 1, of the dimension of rows that is one with the last in the tiles; 0: none.
        cycles: estimate.
    """

    swap: bool
    dot: bool
    mr: int
    nr: int
    lanes: int
    pack_a: bool
    pack_b: bool
    kc: int
    cycles: float
    spread: bool = False
    flat: bool = False
    nc: int = 0
    merge: int = 0
    ahead: bool = False


def choose(p: Problem, machine: MachineModel) -> Strategy:
    """The cheapest way by the model."""
    return _best(_ways(p, machine), p, machine)


def contenders(p: Problem, machine: MachineModel, most: int) -> list[Strategy]:
    """The model's choice, and after it the best of every other kind and the next best of all, up to `most`:
    what is worth measuring. All add up in one order, as ways of one number of threads and another must."""
    found = _ways(p, machine)
    best = _best(found, p, machine)
    if best.dot:
        return [best]
    out = [best]
    by_time = sorted(
        (s for s in found if not s.dot and s != best), key=lambda s: s.cycles * _share(p, s, machine)
    )
    kinds = {_kind(best)}
    for s in by_time:
        if _kind(s) not in kinds and s.cycles < 2 * best.cycles:
            kinds.add(_kind(s))
            out.append(s)
    out[most // 2 + 1 :] = []
    return (out + [s for s in by_time if s not in out])[:most]


def _kind(s: Strategy) -> tuple[bool | int, ...]:
    return s.swap, s.pack_a, s.pack_b, s.nc > 0, s.kc, s.spread, s.flat, s.merge, s.ahead


def _ways(p: Problem, machine: MachineModel) -> list[Strategy]:
    found: list[Strategy] = []
    for swap in (False, True):
        q = p.swapped() if swap else p
        found += _outer(q, swap, machine)
        if q.n_rows > 1 and q.bn == 1 and q.cn == 1 and machine.lanes(q.itemsize) >= q.N:
            if machine.masked_memory:
                found += _outer(q, swap, machine, spread=True)
        if q.flat_n is not None:
            found += _flat(q, swap, machine)
        if q.M <= FEW and q.m_others:
            found += _merged(q, swap, machine)
    if p.ak == p.bk == 1 and 2 * machine.lanes(p.itemsize) <= p.K:
        q = p if p.cn == 1 or p.cm != 1 else p.swapped()
        found.append(_dot(q, q is not p, machine))
    return found


def _best(found: list[Strategy], p: Problem, machine: MachineModel) -> Strategy:
    best = min(found, key=lambda s: s.cycles)
    if best.dot or machine.threads == 1:
        return best
    # All other ways add up in the same order: they may be chosen by the number of threads.
    return min((s for s in found if not s.dot), key=lambda s: s.cycles * _share(p, s, machine))


def _share(p: Problem, s: Strategy, machine: MachineModel) -> float:
    """The part of the time that is left where threads share the outermost loop."""
    if s.cycles < machine.parallel_cycles:
        return 1.0
    q = p.swapped() if s.swap else p
    columns = q.flat_n.size if s.flat and q.flat_n is not None else q.N
    outer = (q.each_b if s.nc else q.batch) * q.N // columns
    width = s.nc or (s.nr if s.dot else s.nr * s.lanes)
    # What is left of the tiles is done by one thread.
    count, size, extent = (outer, 1, outer) if outer > 1 else (columns // width, width, columns)
    if not s.nc and count < 4 and q.M // s.mr > count:
        count, size, extent = q.M // s.mr, s.mr, q.M
    if count < 2:
        return 1.0
    return (-(-count // machine.threads) * size + extent - count * size) / extent


def splits(n: int, tile: int) -> list[tuple[int, int]]:
    """(how many, size) of the blocks that cover n: whole tiles and what is left."""
    out = [(n // tile, tile)] if n >= tile else []
    return [*out, (1, n % tile)] if n % tile else out


def _outer(
    p: Problem, swap: bool, machine: MachineModel, spread: bool = False, run: int = 1
) -> list[Strategy]:
    lanes = machine.lanes(p.itemsize)
    per_fma = PER_FMA / max(1.0, machine.flops_per_cycle / (2 * machine.lanes(4)))
    per_load = PER_LOAD * machine.vector_bytes / 64
    vectors = p.n_rows if spread else -(-p.N // lanes)
    batch = p.batch // p.n_rows if spread else p.batch
    strided_store = p.cn != 1
    far_b = p.K * p.N * p.itemsize > machine.l2_bytes // 2
    far_c = RESULT if p.M * p.N * p.itemsize > machine.l2_bytes // 2 else 0.0
    # Rows of a region are turned together, in squares.
    rows = p.M * prod(p.m_others)
    filled = lanes * -(-rows // lanes) / rows
    out: list[Strategy] = []
    registers = machine.vector_registers
    # Rows so far apart that they share one of 64 sets of the first cache, or two, or four...
    ways = (machine.l1_bytes // 4096 - 2) * (4096 // gcd(p.am * p.itemsize, 4096) if p.ak == 1 else p.M)
    for nr in range(1, min(vectors, 6) + 1):
        most = max(1, (registers - 1 - nr) // nr)
        if nr == 1 and vectors > 3 and registers >= 16 and not p.windows_b:
            continue  # a load for every multiply-add
        least = most * 2 // 3 if 4 * most < p.M else most - 8  # many tiles: small ones are no better a fit
        for mr in {*range(max(1, least), min(most, p.M) + 1), min(p.M, most)}:
            if mr < 1 or mr > p.M:
                continue
            row_tiles, column_tiles = -(-p.M // mr), -(-vectors // nr)
            kc = _k_block(p, row_tiles, nr * lanes, machine)
            ways_b = [(False, 0.0, 0.0, kc, 0, False)]
            if not spread:
                ways_b = _b_ways(p, row_tiles, nr * lanes, kc, machine, run)
            for pack_b, cost_b, extra, kc, nc, ahead in ways_b:
                cycles = 0.0
                blocks = -(-p.K // kc)
                down = rows_first(pack_b and blocks == 1, p.K * p.N * p.itemsize, machine)
                for count_m, m in splits(p.M, mr):
                    for count_n, n in splits(vectors, nr):
                        step = max(m * n * per_fma, (m + n) * per_load, 4.0) + 0.3 + extra * n
                        again = nc if nc and not pack_b else n * lanes  # columns until the next tile of rows
                        if pack_b and nc and row_tiles < 4:
                            again = 2 * nc  # all that is packed, and what from
                        if kc * again * p.itemsize > machine.l1_bytes and (pack_b or row_tiles > 1):
                            step = max(step, L2_VECTOR * n) + FROM_L2 * n
                        if pack_b and kc * n * lanes * p.itemsize > machine.l2_bytes // 2:
                            step += FROM_L3 * n
                        if m > ways:
                            step += COLLIDE * m
                        once = PER_VECTOR * m * n + 12
                        if strided_store and p.cm == 1 and m > 1 and machine.masked_memory:
                            once += (TURNED * filled + far_c) * m * n
                        elif strided_store:
                            once += SCATTER * lanes * m * n
                        else:
                            once += far_c * m * n
                            if far_c and not nc and column_tiles > 1 and not down:
                                once += JUMP * m  # rows of the result a page apart
                        if not pack_b and nc:
                            inside = p.M * nc * p.itemsize <= machine.l1_bytes
                            once += (blocks - 1) * ((PARTIAL if inside else PARTIAL_FAR) * m * n + 12)
                        cycles += count_m * count_n * (step * p.K + once)
                    if not pack_b and far_b and not spread and not ahead and not p.windows_b:
                        line = STREAM if nc or p.bk <= nr * lanes else JUMP
                        line *= 1.0 if kc <= STREAMS else 1.3
                        cycles += line * count_m / row_tiles * p.K * p.N * p.itemsize / 64
                if ahead:
                    lines = p.K * p.N * p.itemsize / 64
                    cycles = max(cycles, STREAM * lines + JUMP * p.K * column_tiles)
                total = batch * cycles + p.each_b * cost_b
                passes = -(-vectors * lanes // nc) if nc else column_tiles
                for pack_a, cost_a in _a_ways(p, mr, nr * lanes, batch, passes, kc, machine):
                    if (pack_a or p.am == 1) and not room_for_packed_a(mr, nr, registers):
                        continue
                    cycles = total + cost_a
                    out.append(
                        Strategy(
                            swap, False, mr, nr, lanes, pack_a, pack_b, kc, cycles, spread, nc=nc, ahead=ahead
                        )
                    )
    return out


def rows_first(packed: bool, b_bytes: int, machine: MachineModel) -> bool:
    """Whether the loop over rows is around that over columns: all of B stays in the second cache, packed, and
    A is read from memory only once."""
    return packed and b_bytes <= machine.l2_bytes * 7 // 8


def room_for_packed_a(mr: int, nr: int, registers: int) -> bool:
    """Whether the tile leaves registers for elements of A that lie side by side: LLVM may broadcast some of
    them ahead, and would spill accumulators for it."""
    return nr < 5 or mr * nr + nr < registers - 2


def _flat(p: Problem, swap: bool, machine: MachineModel) -> list[Strategy]:
    """The ways with all columns as one dimension. B is packed whatever its layout is."""
    f = p.flat_n
    assert f is not None
    batch = p.batch * p.N // f.size
    one = replace(
        p, N=f.size, batch=batch, each_b=max(1, p.each_b * p.N // f.size), bn=0,
        cn=f.stride or 2, windows_b=False, n_rows=1, flat_n=None,
    )  # fmt: skip
    return [replace(s, flat=True) for s in _outer(one, swap, machine, run=f.run)]


def _merged(p: Problem, swap: bool, machine: MachineModel) -> list[Strategy]:
    """The ways with tiles of few rows times some of another dimension: all that the last has of each. So the
    vectors of B are loaded for more multiply-adds."""
    out: list[Strategy] = []
    for k, size in enumerate(p.m_others, 1):
        if size in p.m_others[: k - 1]:
            continue
        one = replace(
            p, M=p.M * size, batch=p.batch // size, m_rows=1, each_a=max(1, p.each_a // size), flat_m=None
        )
        found = [s for s in _outer(one, swap, machine) if s.mr % p.M == 0 and s.mr > p.M and not s.pack_a]
        out += [replace(s, merge=k) for s in found]
    return out


def packing(bk: int, run: int, k_last: int, lanes: int) -> float:
    """Cycles per element to pack an operand with runs of `run` neighbours among its rows (columns)."""
    if run >= lanes and run % lanes == 0:
        return COPY
    if bk == 1 and 2 * k_last >= lanes:
        return TURN * lanes * -(-k_last // lanes) / k_last
    return GATHER


def _b_ways(
    p: Problem, row_tiles: int, width: int, kc: int, machine: MachineModel, run: int
) -> list[tuple[bool, float, float, int, int, bool]]:
    """Ways to read B: whether rows of it are copied into panels, what that costs, what every vector of B
    costs beyond a load, blocks of k and of columns, and whether the next tile's are brought ahead."""
    size = p.K * p.N
    far = COPY_FAR if size * p.itemsize > machine.l2_bytes // 2 else 0.0
    nc = _n_block(p, width, kc, machine)
    if p.bn != 1:
        per = packing(p.bk, run, p.k_last, machine.lanes(p.itemsize)) + far
        per += COPY * (p.bn * p.itemsize % 4096 == 0)  # rows of a square fall into few cache sets
        return [(True, (per * size + 20) / p.reuse_b, 0.0, kc, nc, False)]
    line = machine.vector_bytes
    crossing = p.bk * p.itemsize % line != 0  # vectors that begin anywhere are in two lines each
    if p.windows_b:  # a panel would be many times as large as what it is packed from
        return [(False, 0.0, CROSSING * crossing, kc, 0, False)]
    # Rows a page apart fall into few cache sets and cost a TLB entry each.
    big = p.K * (width * p.itemsize + line * crossing) > machine.l1_bytes * 2 // 3
    collide = p.bk * p.itemsize % 1024 == 0 and p.K >= 64
    extra = CROSSING * crossing + APART * ((big and p.bk > width) * (1 + crossing) + collide)
    found = [
        (True, ((COPY + far) * size + 20) / p.reuse_b, 0.0, kc, nc, False),
        (False, 0.0, extra, kc, 0, False),
    ]
    if len(p.inner) > 1 or p.bk <= width:
        return found
    panel = p.K * width * p.itemsize
    far_off = size * p.itemsize > 2 * machine.l2_bytes and p.each_b == p.batch
    if far_off and row_tiles > 1 and 4 * width <= p.N and 6 * panel <= 5 * machine.l1_bytes:
        # Two panels, and what has the same place in the second cache. With fewer rows the result's places are
        # most of those to go to.
        if 16 * (65536 // gcd(p.bk * p.itemsize, 65536)) >= 2 * p.K >= 6 * STREAMS:
            found.append((False, 0.0, CROSSING * crossing + APART / 2, kc, 0, True))
    # A few rows at a time, along memory, as far as a block of the result stays in the second cache.
    room = min(machine.l2_bytes // 4 // (p.M * p.itemsize), 1056)
    most = -(-p.N // width) * width if room >= p.N else max(1, room // width) * width
    for rows in (STREAMS, 2 * STREAMS):
        for nc in {most, -(-min(most, p.N) // 2 // width) * width} if machine.threads > 1 else {most}:
            if 2 * rows <= p.K and nc >= min(p.N // 2, 64):
                cost = 3 * CROSSING * crossing + APART / 2 * (collide and nc * p.itemsize < 4096)
                found.append((False, 0.0, cost, rows, nc, False))
    return found


def _a_ways(
    p: Problem, mr: int, width: int, batch: int, passes: int, kc: int, machine: MachineModel
) -> list[tuple[bool, float]]:
    """Ways to read A, whose elements are broadcast: where they are, or copied into panels. Few rows side by
    side do in any layout. Columns, of which every step of k needs another line, do if those of a block of k
    stay in the first cache from tile to tile."""
    size = p.M * p.K
    far = size * p.itemsize > machine.l2_bytes // 2
    stream = STREAM * passes * batch * size * p.itemsize / 64 if far else 0.0
    stride = p.ak * p.itemsize
    if far and p.am != 1 and p.k_last < 16 and p.k_last < p.K:
        # Short runs along k, each at a place of its own: nothing fetches their lines ahead.
        lines = -(-p.M // mr) + p.M * min(1.0, p.am * p.itemsize / 64)
        stream = JUMP * p.K / p.k_last * lines * -(-p.N // width) * batch
    if p.am != 1 or stride < 128 or kc < 32:
        return [(False, stream)]
    kept = kc * (64 + width * p.itemsize) <= machine.l1_bytes and kc <= 8 * (4096 // gcd(stride, 4096))
    kept_l2 = kc * 64 <= machine.l2_bytes // 4 and kc <= 16 * (65536 // gcd(stride, 65536))
    row_tiles, column_tiles = -(-p.M // mr), -(-p.N // width)
    cost = 0.0 if kept else FAR * column_tiles * row_tiles * p.K
    if far and not (kept and kc < p.K):
        cost += JUMP * passes * (size * p.itemsize / 64 if kept_l2 else row_tiles * p.K)
    elif far:
        cost += stream / batch
    copy = (2 * COPY + COPY_FAR / 2 * far) * size + 20
    return [(False, cost * batch), (True, p.each_a * copy / p.reuse_a + stream)]


def _n_block(p: Problem, width: int, kc: int, machine: MachineModel) -> int:
    """How many columns to pack at a time, 0 for all: as many whole tiles as half the second cache holds, or
    fewer where A is near and reading it again costs little; and as many in every block."""
    if p.reuse_b > 1 or p.K * p.N * p.itemsize <= machine.l2_bytes // 4:
        return 0
    a = p.M * p.K * p.itemsize
    room = machine.l2_bytes // 2
    if a <= machine.l1_bytes // 2:
        room = machine.l1_bytes
    elif a <= machine.l2_bytes // 2:
        room = machine.l2_bytes // 8
    most = max(1, room // (kc * width * p.itemsize))
    tiles = p.N // width
    return next((t for t in range(min(most, tiles), 0, -1) if tiles % t == 0), 1) * width


def _k_block(p: Problem, row_tiles: int, width: int, machine: MachineModel) -> int:
    """How much of k at a time: a panel of B of about the first cache's size, if it is used often; else all
    of it."""
    best = max(64, machine.l2_bytes // 4 // (width * p.itemsize))
    if p.windows_a and p.reuse_b == 1 and _n_block(p, width, p.K, machine) == 0:
        # Lines of A come again for the tiles beside and below: they and a block of B should stay in the first
        # cache until then.
        lines = 64 * (p.M * p.am * p.itemsize // 64 + 2) // max(p.k_last, 1)
        best = max(64, machine.l1_bytes // (width * p.itemsize + lines))
    if row_tiles * (p.batch // p.each_b) < 6 or best * 3 // 2 >= p.K:
        return p.K
    tail = p.K
    for n in p.inner:
        tail //= n
        if tail <= best:
            most = best // tail
            count = -(-n // most)
            return tail * next((n // c for c in range(count, 2 * count) if n % c == 0), -(-n // count))
    return p.K


def _dot(p: Problem, swap: bool, machine: MachineModel) -> Strategy:
    per_fma = PER_FMA / max(1.0, machine.flops_per_cycle / (2 * machine.lanes(4)))
    per_load = PER_LOAD * machine.vector_bytes / 64
    lanes = machine.lanes(p.itemsize)
    nr = min(4, p.N)
    mr = max(1, min(p.M, (machine.vector_registers - 1 - nr) // nr, 6))
    last = p.k_last or p.K
    rows = p.K // max(last, 1)
    steps = rows * -(-last // lanes)
    # All of B is read for every row of tiles.
    size = p.N * p.K * p.itemsize
    line = 0.0 if size <= machine.l1_bytes // 2 else LINE_L2 if size <= machine.l2_bytes // 2 else STREAM
    size_a = p.M * p.K * p.itemsize
    cycles = STREAM * size_a / 64 if size_a > machine.l2_bytes // 2 else 0.0
    for count_m, m in splits(p.M, mr):
        cycles += count_m * line * size / 64
        for count_n, n in splits(p.N, nr):
            step = max(m * n * per_fma, (m + n) * per_load, 4.0)
            once = m * n * 6 + 20 + (PER_ROW * rows if rows > 1 else 0)
            cycles += count_m * count_n * (step * steps + once)
    return Strategy(swap, True, mr, nr, lanes, False, False, p.K, cycles * p.batch)
