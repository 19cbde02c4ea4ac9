"""Which tiles a contraction is computed in: a small cost model in units of one multiply-add of one
multiprocessor. Used by contract.py."""

from __future__ import annotations

from ...ir import dtypes
from ...ir.dataclass import dataclass, replace
from ...ir.dtypes import DType
from ...ir.loops import MMA_DEPTH
from ..machine import GpuModel

#: below so many multiply-adds a thread for each element is as good
SMALL = 1 << 17
#: cost of writing and reading a partial sum once, in multiply-adds: where the cache holds them all, or not
PARTIAL, PARTIAL_FAR = 24.0, 56.0
#: threads that keep a multiprocessor busy: with fewer it waits for memory; with tensor cores
BUSY, BUSY_MMA = 256, 128
#: of starting another kernel
KERNEL = 1 << 18
#: the first compute capability whose tensor cores take tf32 and bf16, and that copies ahead
TENSOR_CORES = AHEAD = (8, 0)
#: the first whose tensor cores take f16
HALF_CORES = (7, 5)
#: of shared memory, what every GPU since sm_80 gives a block that opts in (some give more)
MOST_SHARED = 99 << 10


@dataclass(frozen=True)
class Tile:
    """A block computes `bm` x `bn` elements from `bk` terms at a time; each thread `tm` x `tn` of them, or,
    on tensor cores, each warp.

    Attributes:
        speed: share of the peak of FP32 that it reaches when everything fits.
        stages: strips in shared memory: one is used, the others are on their way.
        mma: how tensor cores take the operands (a key of `MMA_DEPTH`); "" without them.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    speed: float
    mma: str = ""
    stages: int = 2

    @property
    def rows(self) -> int:
        """Threads (or warps) along m."""
        return self.bm // self.tm

    @property
    def cols(self) -> int:
        return self.bn // self.tn

    @property
    def threads(self) -> int:
        return self.rows * self.cols * (32 if self.mma else 1)

    def pad(self, itemsize: int) -> int:
        """Elements between rows of a strip that has a row for each term, against bank conflicts."""
        return max(8, 16 // itemsize) if self.mma else 4

    def shared(self, itemsize: int) -> int:
        """Bytes of shared memory, however the strips lie."""
        return self.stages * self.bk * (self.bm + self.bn + 2 * self.pad(itemsize)) * itemsize


#: the largest takes at most 128 registers, so that a multiprocessor has two blocks of it
TILES = (
    Tile(128, 128, 8, 8, 8, 1.0, stages=4),
    Tile(128, 64, 16, 8, 4, 0.85, stages=3),
    Tile(64, 128, 16, 4, 8, 0.85, stages=3),
    Tile(64, 64, 16, 4, 4, 0.7, stages=3),
    Tile(128, 32, 8, 8, 4, 0.6, stages=4),
    Tile(32, 128, 8, 4, 8, 0.6, stages=4),
    Tile(64, 64, 8, 4, 4, 0.6, stages=4),
    Tile(32, 32, 16, 2, 4, 0.4, stages=4),
    Tile(16, 64, 16, 2, 4, 0.35, stages=4),
    Tile(64, 16, 16, 4, 2, 0.35, stages=4),
    Tile(16, 16, 16, 2, 4, 0.2, stages=4),
)

#: for tensor cores, with 16 terms; the speed is a multiple of that of the largest tile above. Warps of
#: 64 x 64 load the least from shared memory for each product.
MMA_TILES = (
    Tile(128, 256, 16, 64, 64, 5.5, stages=3),
    Tile(128, 128, 16, 64, 64, 5.2, stages=4),
    Tile(128, 128, 16, 64, 32, 5.0, stages=3),
    Tile(128, 64, 16, 64, 32, 4.0, stages=4),
    Tile(64, 128, 16, 32, 64, 4.0, stages=4),
    Tile(64, 64, 16, 32, 32, 3.0, stages=4),
    Tile(128, 32, 16, 32, 32, 2.5, stages=4),
    Tile(32, 128, 16, 32, 32, 2.5, stages=4),
    Tile(32, 64, 16, 16, 32, 2.0, stages=4),
    Tile(32, 32, 16, 16, 16, 1.2, stages=4),
)


def mma_kind(a: DType, b: DType, acc: DType, gpu: GpuModel) -> str:
    """How tensor cores may take these operands; "" if they may not."""
    least = HALF_CORES if a is dtypes.float16 else TENSOR_CORES
    if gpu.capability < least or a is not b or acc is not dtypes.float32:
        return ""
    if a is dtypes.float32:
        return "" if gpu.matmul_precision == "highest" else "tf32"
    return a.name if a.name in MMA_DEPTH else ""


def choose(
    m: int, n: int, k: int, batch: int, operands: tuple[DType, DType], acc: DType, gpu: GpuModel
) -> tuple[Tile | None, int]:
    """The tile, or None for a thread for each element; and in how many parts k is cut."""
    if m * n * k * batch < SMALL or k < 4:
        return None, 1
    kind = mma_kind(*operands, acc, gpu)
    found = TILES
    if kind:
        deep = MMA_DEPTH[kind] // 8  # halves take half the room, and twice the terms
        found = (*(replace(t, mma=kind, bk=t.bk * deep, speed=t.speed * deep) for t in MMA_TILES), *TILES)
    best: tuple[float, Tile, int] | None = None
    for tile in found:
        itemsize = operands[0].itemsize if tile.mma else acc.itemsize
        if gpu.capability < AHEAD:
            tile = replace(tile, stages=2)
        most = max(gpu.shared_bytes, min(gpu.shared_bytes_most, MOST_SHARED))
        room = most if tile.mma else gpu.shared_bytes
        while tile.stages > 2 and tile.shared(itemsize) > room:
            tile = replace(tile, stages=tile.stages - 1)
        if tile.shared(itemsize) > room or tile.threads % gpu.warp:
            continue
        tiles = -(-m // tile.bm) * -(-n // tile.bn) * batch
        for split in (1, 2, 4, 8, 16, 32, 64, 128):
            if split > 1 and (k // split < 4 * tile.bk or tiles * split > 8 * gpu.sms):
                break
            depth = -(-k // split)
            each = -(-tiles * split // gpu.sms)
            busy = min(1.0, each * tile.threads / (BUSY_MMA if tile.mma else BUSY))
            cost = each * tile.bm * tile.bn * depth / (tile.speed * busy)
            if split > 1:
                sums = m * n * batch * split
                near = sums * acc.itemsize <= gpu.l2_bytes // 2
                cost += KERNEL + (PARTIAL if near else PARTIAL_FAR) * sums / gpu.sms
            if best is None or cost < best[0]:
                best = cost, tile, split
    return (None, 1) if best is None else (best[1], best[2])
