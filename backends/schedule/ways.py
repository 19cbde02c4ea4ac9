"""One contraction in numbers, and a way to compute it: what tiles.py chooses among. Used by it, contract*.py
and the tuner.
"""

from __future__ import annotations

from ...ir.dataclass import dataclass


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
        ahead: rows of B are fetched, meanwhile, for the next block or the next tile of columns.
        halved: `nc` is half of what it could be, so that threads have a block each.
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
    halved: bool = False


def shared(mr: int, nr: int, rows: int, steps: int, registers: int) -> int:
    """How many of `steps` to take together where rows need the elements of A that others need at the next,
    as neighbouring pixels and taps do, and loads are what a tile of mr x nr vectors waits for. Of the tile's
    rows so many, `rows`, are neighbours. Rows of B for all steps have to be in registers. LLVM would keep
    elements for steps left over, and from one run of rows to the next where no loop is between."""
    if min(mr, rows) < 2 or 9 * (mr + nr) <= 4 * mr * nr:
        return 1
    room = (registers - 2) // nr - mr
    most = min(room, steps - (mr > rows))
    return next((u for u in (3, 2, 5, 7) if u <= most and steps % u == 0), 1)
