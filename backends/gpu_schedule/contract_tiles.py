"""Which tiles a contraction is computed in: a small cost model in units of one multiply-add of one
multiprocessor. Used by contract.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir import dtypes
from ...ir.dtypes import DType
from ...ir.loops import MMA_DEPTH
from ..machine import GpuModel

#: below so many multiply-adds a thread for each element is as good
SMALL = 1 << 17
#: cost of writing and reading a partial sum once, in multiply-adds
PARTIAL = 24.0
#: of starting another kernel
KERNEL = 1 << 18
#: the first compute capability whose tensor cores take tf32 and bf16
TENSOR_CORES = (8, 0)


@dataclass(frozen=True)
class Tile:
    """A block computes `bm` x `bn` elements from `bk` terms at a time; each thread `tm` x `tn` of them, or,
    on tensor cores, each warp.

    Attributes:
        speed: share of the peak of FP32 that it reaches when everything fits.
        mma: how tensor cores take the operands (a key of `MMA_DEPTH`); "" without them.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    speed: float
    mma: str = ""

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

    def pad(self, rows: bool, itemsize: int) -> int:
        """Elements between rows of a strip in shared memory, against bank conflicts: for mma, 4 words to a
        row of terms, so that the 8 x 4 places of a warp's loads are in 32 banks, and 8 else."""
        if not self.mma:
            return 4
        return 16 // itemsize if rows else max(8, 16 // itemsize)

    def shared(self, itemsize: int, buffers: int = 2) -> int:
        """Bytes of shared memory, however the strips lie."""
        most = max(
            self.bk * (self.bm + self.bn + 2 * self.pad(False, itemsize)),
            (self.bm + self.bn) * (self.bk + self.pad(True, itemsize)) if self.mma else 0,
        )
        return buffers * most * itemsize


TILES = (
    Tile(128, 128, 16, 8, 8, 1.0),
    Tile(128, 128, 8, 8, 8, 0.9),
    Tile(128, 64, 16, 8, 4, 0.85),
    Tile(64, 128, 16, 4, 8, 0.85),
    Tile(64, 64, 16, 4, 4, 0.7),
    Tile(64, 64, 8, 4, 4, 0.6),
    Tile(32, 32, 16, 2, 4, 0.4),
    Tile(16, 64, 16, 2, 4, 0.35),
    Tile(64, 16, 16, 4, 2, 0.35),
    Tile(16, 16, 16, 2, 4, 0.2),
)

#: for tensor cores, with 16 terms; the speed is a multiple of that of the largest tile above
MMA_TILES = (
    Tile(128, 128, 16, 64, 32, 5.0),
    Tile(128, 64, 16, 64, 16, 4.0),
    Tile(64, 128, 16, 32, 32, 4.0),
    Tile(64, 64, 16, 32, 32, 3.0),
    Tile(32, 64, 16, 16, 32, 2.0),
    Tile(32, 32, 16, 16, 16, 1.2),
)


def mma_kind(a: DType, b: DType, acc: DType, gpu: GpuModel) -> str:
    """How tensor cores may take these operands; "" if they may not."""
    if gpu.capability < TENSOR_CORES or a is not b or acc is not dtypes.float32:
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
        if tile.shared(itemsize) > gpu.shared_bytes or tile.threads % gpu.warp:
            continue
        tiles = -(-m // tile.bm) * -(-n // tile.bn) * batch
        for split in (1, 2, 4, 8, 16, 32, 64):
            if split > 1 and (k // split < 4 * tile.bk or tiles * split > 4 * gpu.sms):
                break
            depth = -(-k // split)
            waves = -(-tiles * split // gpu.sms)
            cost = waves * tile.bm * tile.bn * depth / tile.speed
            if split > 1:
                cost += KERNEL + PARTIAL * m * n * batch * split / gpu.sms
            if best is None or cost < best[0]:
                best = cost, tile, split
    return (None, 1) if best is None else (best[1], best[2])
