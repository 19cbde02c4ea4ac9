"""Which tiles a contraction is computed in: a small cost model in units of one multiply-add of one
multiprocessor. Used by contract.py."""

from __future__ import annotations

from dataclasses import dataclass

from ..machine import GpuModel

#: below so many multiply-adds a thread for each element is as good
SMALL = 1 << 17
#: cost of writing and reading a partial sum once, in multiply-adds
PARTIAL = 24.0
#: of starting another kernel
KERNEL = 1 << 18


@dataclass(frozen=True)
class Tile:
    """A block computes `bm` x `bn` elements from `bk` terms at a time; each thread `tm` x `tn` of them.

    Attributes:
        speed: share of the peak that it reaches when everything fits.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    speed: float

    @property
    def rows(self) -> int:
        """Threads along m."""
        return self.bm // self.tm

    @property
    def cols(self) -> int:
        return self.bn // self.tn

    @property
    def threads(self) -> int:
        return self.rows * self.cols

    def shared(self, itemsize: int, buffers: int = 2) -> int:
        """Bytes of shared memory."""
        return buffers * self.bk * (self.bm + self.bn + 2 * PAD) * itemsize


#: elements between rows of a tile in shared memory, against bank conflicts
PAD = 4

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


def choose(m: int, n: int, k: int, batch: int, itemsize: int, gpu: GpuModel) -> tuple[Tile | None, int]:
    """The tile, or None for a thread for each element; and in how many parts k is cut."""
    if m * n * k * batch < SMALL or k < 4:
        return None, 1
    best: tuple[float, Tile, int] | None = None
    for tile in TILES:
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
