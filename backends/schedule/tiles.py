"""How to compute one contraction: which operand gives the vectors, the register tile, what is packed. A small
cost model in cycles compares the ways. Used by contract.py and contract_loops.py.

Tiles follow the outer-product scheme of GotoBLAS (Goto, van de Geijn, "Anatomy of high-performance matrix
multiplication", ACM TOMS 34, 2008): an MR x NR block of C stays in registers while k runs, a row of B is
loaded as vectors, elements of A are broadcast.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod

from ...ir.dataclass import replace
from ..machine import MachineModel
from .ways import Problem, Strategy, shared

#: cycles per element to copy an operand into panels: along memory, across it (squares turned in registers),
#: element by element; and more where it does not fit the second cache
COPY, TURN, GATHER, COPY_FAR = 0.35, 0.45, 1.4, 0.65
#: cycles per multiply-add of vectors where two can begin at once, and per load of vectors this wide
PER_FMA, PER_LOAD = 1.04, 1.04
#: a tile of few vectors, whose loads and multiply-adds are about as many, takes this part longer, at most
SMALL = 0.08
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
#: cycles to begin to bring a line, between multiply-adds
BRING = 1.0
#: tiles of rows that share in bringing a block, at least: fewer would do little else
TILES = 8
#: and how much longer all takes where A is columns, whose lines the rows of B push out of the first cache
PUSHED = 1.08
#: or where A comes from beyond the second cache and the result goes to scattered places
SCATTERED = 1.12
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
#: among tiles of about one size, up to so many times the least time, the way with the least code is taken
SLOWER = 1.02
#: threads with one block each wait for the slowest; of several, who is disturbed takes fewer
WAITING = 1.1
#: of so many rows or columns one may be computed twice, for tiles of one size
TWICE = 25


def choose(p: Problem, machine: MachineModel) -> Strategy:
    """The cheapest way by the model."""
    return _best(_candidates(p, machine), p, machine)


def contenders(p: Problem, machine: MachineModel, most: int) -> list[Strategy]:
    """The model's choice, and after it the best of every other kind and the next best of all, up to `most`:
    what is worth measuring. All add up in one order, as ways of one number of threads and another must."""
    found = _candidates(p, machine)
    best = _best(found, p, machine)
    out = [best]
    sides = p, p.swapped()
    by_time = sorted(
        (s for s in found if s != best), key=lambda s: s.cycles * _share(sides[s.swap], s, machine)
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


def _candidates(p: Problem, machine: MachineModel) -> list[Strategy]:
    """The ways that add up in the order that is cheapest. Threads have no say in that, but may choose among
    them."""
    found = _ways(p, replace(machine, threads=1))
    best = min(found, key=lambda s: s.cycles)
    if best.dot:
        return [best]
    return [s for s in found if not s.dot and (machine.threads > 1 or not s.halved)]


@lru_cache(maxsize=4)  # the same problem comes next for another number of threads
def _ways(p: Problem, machine: MachineModel) -> list[Strategy]:
    found: list[Strategy] = []
    for swap in (False, True):
        q = p.swapped() if swap else p
        found += _outer(q, swap, machine)
        if q.n_rows > 1 and q.bn == 1 and q.cn == 1 and machine.lanes(q.itemsize) >= q.N:
            if machine.masked_memory:
                found += _outer(q, swap, machine, spread=True)
        if q.flat_n is not None:
            found += [replace(s, flat=True) for s in _outer(_as_flat(q), swap, machine, run=q.flat_n.run)]
        if q.M <= FEW and q.m_others:
            found += _merged(q, swap, machine)
    if p.ak == p.bk == 1 and 2 * machine.lanes(p.itemsize) <= p.K:
        q = p if p.cn == 1 or p.cm != 1 else p.swapped()
        found.append(_dot(q, q is not p, machine))
    return found


def _best(found: list[Strategy], p: Problem, machine: MachineModel) -> Strategy:
    sides = p, p.swapped()
    most = SLOWER * machine.threads * min(s.cycles for s in found)  # threads save no more than that
    times = [
        (s.cycles * _share(sides[s.swap], s, machine), k, s) for k, s in enumerate(found) if s.cycles <= most
    ]
    least, _, best = min(times)
    # Smaller tiles load more for what they multiply, which caches may not give.
    few = _average(p, best) * 7 / 8
    same = [x for x in times if x[0] <= SLOWER * least and _average(p, x[2]) >= few]
    return min(same, key=lambda x: (_code(p, x[2]), x[0]))[2]


def _share(q: Problem, s: Strategy, machine: MachineModel) -> float:
    """The part of the time that is left where threads share the outermost loop."""
    if s.cycles < machine.parallel_cycles:
        return 1.0
    columns = q.flat_n.size if s.flat and q.flat_n is not None else q.N
    outer = (q.each_b if s.nc else q.batch) * q.N // columns
    width = s.nc or (s.nr if s.dot else s.nr * s.lanes)
    # What is left of the tiles is done by one thread.
    count, size, extent = (outer, 1, outer) if outer > 1 else (columns // width, width, columns)
    if not s.nc and count < 4 and q.M // s.mr > count:
        count, size, extent = q.M // s.mr, s.mr, q.M
    if count < 2:
        return 1.0
    late = WAITING if s.nc and count < 2 * machine.threads else 1.0
    return late * (-(-count // machine.threads) * size + extent - count * size) / extent


def cover(n: int, tile: int, again: bool = True) -> list[tuple[int, int]]:
    """(how many, size) of the tiles that cover n. With `again` the last tile may begin earlier, where the one
    before has been, so that all are whole and there is one code: if little is computed twice by that."""
    count = -(-n // tile)
    if again and count > 1 and TWICE * (count * tile - n) <= n:
        return [(count, tile)]
    return splits(n, tile)


def splits(n: int, tile: int) -> list[tuple[int, int]]:
    """(how many, size) of the blocks that cover n: whole tiles and what is left."""
    out = [(n // tile, tile)] if n >= tile else []
    return [*out, (1, n % tile)] if n % tile else out


def _outer(
    p: Problem, swap: bool, machine: MachineModel, spread: bool = False, run: int = 1, beside: int = 0
) -> list[Strategy]:
    lanes = machine.lanes(p.itemsize)
    per_fma = PER_FMA / max(1.0, machine.flops_per_cycle / (2 * machine.lanes(4)))
    per_load = PER_LOAD * machine.vector_bytes / 64
    M, N, K, itemsize, l1, half_l2 = p.M, p.N, p.K, p.itemsize, machine.l1_bytes, machine.l2_bytes // 2
    vectors = p.n_rows if spread else -(-N // lanes)
    batch = p.batch // p.n_rows if spread else p.batch
    far_a, far_b = (beside or M) * K * itemsize > half_l2, K * N * itemsize > half_l2
    far_c = RESULT if M * N * itemsize > half_l2 else 0.0
    strided = p.cn != 1
    if strided and p.cm == 1 and machine.masked_memory:
        # Rows of a region are turned together, in squares.
        rows = M * prod(p.m_others)
        store, store_row = TURNED * (lanes * -(-rows // lanes) / rows) + far_c, SCATTER * lanes
    else:
        store = store_row = SCATTER * lanes if strided else far_c
    out: list[Strategy] = []
    registers = machine.vector_registers
    full = registers * 3 / 4
    # Rows so far apart that they share one of 64 sets of the first cache, or two, or four...
    ways = (l1 // 4096 - 2) * (4096 // gcd(p.am * itemsize, 4096) if p.ak == 1 else M)
    for nr in range(1, min(vectors, 6) + 1):
        most = max(1, (registers - 1 - nr) // nr)
        if nr == 1 and vectors > 3 and registers >= 16 and not p.windows_b:
            continue  # a load for every multiply-add
        width, column_tiles, across = nr * lanes, -(-vectors // nr), cover(vectors, nr)
        k_block = _k_block(p, width, machine)
        by_use: dict[tuple[int, int], list[tuple[bool, float, float, int, int, bool, bool]]] = {}
        least = most * 2 // 3 if 4 * most < M else most - 8  # many tiles: small ones are no better a fit
        for mr in {*range(max(1, least), min(most, M) + 1), min(M, most)}:
            row_tiles = -(-M // mr)
            kc = K if row_tiles * (p.batch // p.each_b) < 6 else k_block
            use = kc, min(row_tiles, 2 if row_tiles < TILES else TILES)
            if use not in by_use:
                by_use[use] = (
                    [(False, 0.0, 0.0, kc, 0, False, False)]
                    if spread
                    else _b_ways(p, row_tiles, width, kc, machine, run)
                )
            tiles: list[tuple[int, int, int, float, float, float]] = []
            for count_m, m in cover(M, mr):
                for count_n, n in across:
                    u = shared(m, n, beside or m, p.k_last, registers) if p.windows_a and p.am == p.ak else 1
                    step = max(m * n * per_fma, ((m + u - 1) / u + n) * per_load, 4.0)
                    step *= 1 + min(SMALL, max(0.0, 1 - m * n / full) / 4)
                    once = PER_VECTOR * m * n + 12 + (store if m > 1 else store_row) * m * n
                    tiles.append((count_m * count_n, m, n, step, COLLIDE * m if m > ways else 0.0, once))
            # What reads a row of tiles from end to end goes to as many lines of the result, a page apart.
            apart = far_c and column_tiles > 1 and not strided
            for pack_b, cost_b, extra, kc, nc, ahead, halved in by_use[use]:
                cycles = 0.0
                blocks = -(-K // kc)
                down = rows_first(pack_b and blocks == 1, K * N * itemsize, machine)
                in_place = nc and not pack_b
                jump = JUMP if apart and not nc and not down else 0.0
                partial = PARTIAL if M * nc * itemsize <= l1 else PARTIAL_FAR
                # Columns until the next tile of rows, of a block: all that is packed, and what from.
                again = nc if in_place else 2 * nc if row_tiles < 4 else 0
                near = l1 // (kc * itemsize) if pack_b or row_tiles > 1 else N + width
                inside = half_l2 // (kc * itemsize * lanes) if pack_b else nr
                for count, m, n, step, collide, once in tiles:
                    step += 0.3 + extra * n
                    if (again or n * lanes) > near:
                        step = (step if step > L2_VECTOR * n else L2_VECTOR * n) + FROM_L2 * n
                    if n > inside:
                        step += FROM_L3 * n
                    if in_place:
                        once += (blocks - 1) * (partial * m * n + 12)
                    cycles += count * ((step + collide) * K + once + jump * m)
                if not pack_b and far_b and not spread and not ahead and not p.windows_b:
                    line = STREAM if nc or p.bk <= width else JUMP
                    line *= 1.0 if kc <= STREAMS else 1.3
                    cycles += line * K * N * itemsize / 64
                if ahead:
                    lines = K * N * itemsize / 64
                    pages = 0.0 if nc else JUMP * K * column_tiles
                    cycles = max(cycles + BRING * lines, STREAM * lines + pages)
                total = batch * cycles + p.each_b * cost_b
                passes = -(-vectors * lanes // nc) if nc else column_tiles
                for pack_a, cost_a in _a_ways(p, mr, width, batch, passes, kc, machine):
                    if (pack_a or p.am == 1) and not room_for_packed_a(mr, nr, registers):
                        continue
                    if pack_a and ahead:  # LLVM would load the elements of A first, and spill
                        continue
                    slow = PUSHED if ahead and nc and p.am == 1 else SCATTERED if far_a and strided else 1.0
                    out.append(
                        Strategy(
                            swap, False, mr, nr, lanes, pack_a, pack_b, kc, (total + cost_a) * slow, spread,
                            nc=nc, ahead=ahead, halved=halved,
                        )
                    )  # fmt: skip
    return out


def _done(p: Problem, s: Strategy) -> tuple[Problem, int]:
    """The problem as `s` does it, and how many vectors its columns are."""
    q = p.swapped() if s.swap else p
    q = _as_flat(q) if s.flat else _as_merged(q, s.merge) if s.merge else q
    return q, q.n_rows if s.spread else -(-q.N // s.lanes)


def _average(p: Problem, s: Strategy) -> float:
    """Vectors of a tile, on average."""
    q, vectors = _done(p, s)
    return q.M / -(-q.M // s.mr) * vectors / -(-vectors // s.nr)


def _code(p: Problem, s: Strategy) -> int:
    """Instructions of the tiles of every size, and of what packs."""
    q, vectors = _done(p, s)
    each = 5 + 3 * (s.kc < q.K)
    rows, columns = cover(q.M, s.mr), cover(vectors, s.nr)
    tiles = sum(each * m * n + 4 * m + 2 * n + 30 for _, m in rows for _, n in columns)
    packs = [(s.pack_a, q.am), (s.pack_b, q.bn)]
    return tiles + sum(30 if along == 1 else 90 for packed, along in packs if packed)


def rows_first(packed: bool, b_bytes: int, machine: MachineModel) -> bool:
    """Whether the loop over rows is around that over columns: all of B stays in the second cache, packed, and
    A is read from memory only once."""
    return packed and b_bytes <= machine.l2_bytes * 7 // 8


def room_for_packed_a(mr: int, nr: int, registers: int) -> bool:
    """Whether the tile leaves registers for elements of A that lie side by side: LLVM may broadcast some of
    them ahead, and would spill accumulators for it."""
    return nr < 5 or mr * nr + nr < registers - 2


def _as_flat(p: Problem) -> Problem:
    """All columns as one dimension. B is packed whatever its layout is."""
    f = p.flat_n
    assert f is not None
    return replace(
        p, N=f.size, batch=p.batch * p.N // f.size, each_b=max(1, p.each_b * p.N // f.size), bn=0,
        cn=f.stride or 2, windows_b=False, n_rows=1, flat_n=None,
    )  # fmt: skip


def _as_merged(p: Problem, which: int) -> Problem:
    """Rows of another dimension, numbered from 1, among those of the last."""
    size = p.m_others[which - 1]
    return replace(
        p, M=p.M * size, batch=p.batch // size, m_rows=1, each_a=max(1, p.each_a // size), flat_m=None
    )


def _merged(p: Problem, swap: bool, machine: MachineModel) -> list[Strategy]:
    """The ways with tiles of few rows times some of another dimension: all that the last has of each. So the
    vectors of B are loaded for more multiply-adds."""
    out: list[Strategy] = []
    for k, size in enumerate(p.m_others, 1):
        if size not in p.m_others[: k - 1]:
            found = _outer(_as_merged(p, k), swap, machine, beside=p.M)
            out += [replace(s, merge=k) for s in found if s.mr % p.M == 0 and s.mr > p.M and not s.pack_a]
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
) -> list[tuple[bool, float, float, int, int, bool, bool]]:
    """Ways to read B: whether rows of it are copied into panels, what that costs, what every vector of B
    costs beyond a load, blocks of k and of columns, whether the next tile's are brought ahead, and whether
    the blocks of columns are half as large as they could be."""
    size = p.K * p.N
    far = COPY_FAR if size * p.itemsize > machine.l2_bytes // 2 else 0.0
    nc = _n_block(p, width, kc, machine)
    if p.bn != 1:
        per = packing(p.bk, run, p.k_last, machine.lanes(p.itemsize)) + far
        per += COPY * (p.bn * p.itemsize % 4096 == 0)  # rows of a square fall into few cache sets
        found = [(True, (per * size + 20) / p.reuse_b, 0.0, kc, nc, False, False)]
        if nc == p.N and nc % (2 * width) == 0:
            found.append((True, (per * size + 20) / p.reuse_b, 0.0, kc, nc // 2, False, True))
        return found
    line = machine.vector_bytes
    crossing = p.bk * p.itemsize % line != 0  # vectors that begin anywhere are in two lines each
    if p.windows_b:  # a panel would be many times as large as what it is packed from
        return [(False, 0.0, CROSSING * crossing, kc, 0, False, False)]
    # Rows a page apart fall into few cache sets and cost a TLB entry each.
    big = p.K * (width * p.itemsize + line * crossing) > machine.l1_bytes * 2 // 3
    collide = p.bk * p.itemsize % 1024 == 0 and p.K >= 64
    extra = CROSSING * crossing + APART * ((big and p.bk > width) * (1 + crossing) + collide)
    found = [
        (True, ((COPY + far) * size + 20) / p.reuse_b, 0.0, kc, nc, False, False),
        (False, 0.0, extra, kc, 0, False, False),
    ]
    if len(p.inner) > 1 or p.bk <= width:
        return found
    panel = p.K * width * p.itemsize
    far_off = size * p.itemsize > 2 * machine.l2_bytes and p.each_b == p.batch
    if far_off and row_tiles > 1 and 4 * width <= p.N and 6 * panel <= 5 * machine.l1_bytes:
        # Two panels, and what has the same place in the second cache. With fewer rows the result's places are
        # most of those to go to.
        if 16 * (65536 // gcd(p.bk * p.itemsize, 65536)) >= 2 * p.K >= 6 * STREAMS:
            found.append((False, 0.0, CROSSING * crossing + APART / 2, kc, 0, True, False))
    # A few rows at a time, along memory, as far as a block of the result stays in the second cache. Many
    # tiles of rows can each bring some lines of the next block's.
    room = min(machine.l2_bytes // 4 // (p.M * p.itemsize), 1056)
    tiles = -(-p.N // width)
    blocks = -(-tiles // max(1, room // width))
    many = row_tiles >= TILES and size * p.itemsize > machine.l2_bytes // 2 and p.each_b == p.batch
    for rows in (STREAMS, 2 * STREAMS):
        for count in {blocks, -(-blocks // 2) * 2}:
            nc = -(-tiles // count) * width
            if 2 * rows <= p.K and nc >= min(p.N // 2, 64):
                ahead = many and nc >= min(p.N // 2, 256)
                scattered = collide and nc * p.itemsize < 4096 and not (ahead and p.bk * p.itemsize < 4096)
                extra = 3 * CROSSING * crossing + APART / 2 * scattered
                found.append((False, 0.0, extra, rows, nc, ahead, count != blocks))
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


def _k_block(p: Problem, width: int, machine: MachineModel) -> int:
    """How much of k at a time where a panel of B is used often: one of about the first cache's size."""
    best = max(64, machine.l2_bytes // 4 // (width * p.itemsize))
    if p.windows_a and p.reuse_b == 1 and _n_block(p, width, p.K, machine) == 0:
        # Lines of A come again for the tiles beside and below: they and a block of B should stay in the first
        # cache until then.
        lines = 64 * (p.M * p.am * p.itemsize // 64 + 2) // max(p.k_last, 1)
        best = max(64, machine.l1_bytes // (width * p.itemsize + lines))
    if best * 3 // 2 >= p.K:
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
    found = [
        _dot_tile(p, swap, machine, mr, nr)
        for nr in range(1, min(5, p.N) + 1)
        for mr in range(1, min(p.M, (machine.vector_registers - 1 - nr) // nr, 6) + 1)
    ]
    least = min(s.cycles for s, _ in found)
    return min((x for x in found if x[0].cycles <= SLOWER * least), key=lambda x: x[1])[0]


def _dot_tile(p: Problem, swap: bool, machine: MachineModel, mr: int, nr: int) -> tuple[Strategy, int]:
    """Tiles of one size, and their instructions."""
    per_fma = PER_FMA / max(1.0, machine.flops_per_cycle / (2 * machine.lanes(4)))
    per_load = PER_LOAD * machine.vector_bytes / 64
    lanes = machine.lanes(p.itemsize)
    last = p.k_last or p.K
    rows = p.K // max(last, 1)
    steps = rows * -(-last // lanes)
    # All of B is read for every row of tiles.
    size = p.N * p.K * p.itemsize
    line = 0.0 if size <= machine.l1_bytes // 2 else LINE_L2 if size <= machine.l2_bytes // 2 else STREAM
    size_a = p.M * p.K * p.itemsize
    cycles = STREAM * size_a / 64 if size_a > machine.l2_bytes // 2 else 0.0
    code = 0
    for count_m, m in cover(p.M, mr):
        cycles += count_m * line * size / 64
        for count_n, n in cover(p.N, nr):
            step = max(m * n * per_fma, (m + n) * per_load, 4.0)
            once = m * n * 6 + 20 + (PER_ROW * rows if rows > 1 else 0)
            cycles += count_m * count_n * (step * steps + once)
            code += 18 * m * n + 30
    return Strategy(swap, True, mr, nr, lanes, False, False, p.K, cycles * p.batch), code
