"""The mt19937 engine as PyTorch's CPU `Generator` runs it: seeding, state bytes, cached normal sample.

The sampling algorithms on top of it are in `tracer.mt19937`, which re-exports `MT19937` for everyone else.
Source: M. Matsumoto, T. Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998), with the 2002 initialisation.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import TracegradError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_N, _M = 624, 397
_U32, _U64 = np.uint32, np.uint64
#: words, of all draws together, from which native code pays, which loads the compiler
NATIVE = 1 << 17

_STATE = np.dtype({
    "names": ["seed", "left", "seeded", "next", "state", "normal", "has_normal", "normal32", "has_normal32"],
    "formats": ["<u8", "<i4", "<i4", "<u8", ("<u8", _N), "<f8", "<i4", "<f4", "u1"],
    "offsets": [0, 8, 12, 16, 24, 5024, 5040, 5048, 5052],
    "itemsize": 5056,
})  # fmt: skip


class MT19937:
    """The 32-bit Mersenne Twister as PyTorch's CPU `Generator` runs it.

    Not safe to share between threads inside one draw unless `lock` is held; the sampling functions hold it.
    """

    def __init__(self, seed: int = 5489):
        self.lock = threading.RLock()
        self._state = np.zeros(_N, _U32)
        self._tempered: np.ndarray | None = None
        self._seed = 0
        self._left = 1  # words left before the next twist, plus one
        self._next = 0
        self._expected = 0
        self.normal_sample: float | None = None  # second half of the last scalar Box-Muller pair
        self.normal_sample32: float | None = None  # never used on CPU, kept for state exchange
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> MT19937:
        """Restart from `seed`, in [-2**63, 2**64); negative ones wrap modulo 2**64. Others raise."""
        seed = int(seed)
        if not -(1 << 63) <= seed < 1 << 64:
            raise TracegradError(f"manual_seed: seed {seed} is outside [-2**63, 2**64)")
        with self.lock:
            self._seed = seed & 0xFFFFFFFFFFFFFFFF
            word = seed & 0xFFFFFFFF
            words = [word]
            for j in range(1, _N):
                word = (1812433253 * (word ^ (word >> 30)) + j) & 0xFFFFFFFF
                words.append(word)
            self._state = np.array(words, _U32)
            self._tempered = None
            self._left, self._next = 1, 0
            self.normal_sample = self.normal_sample32 = None
        return self

    def initial_seed(self) -> int:
        """The seed of the last `manual_seed`, `seed` or `set_state`, in [0, 2**64)."""
        return self._seed

    def seed(self) -> int:
        """Restart from a seed taken from the operating system, and return it."""
        self.manual_seed(int.from_bytes(os.urandom(8), "little"))
        return self._seed

    def random(self) -> int:
        """One 32-bit draw."""
        return int(self.words(1)[0])

    def random64(self) -> int:
        """One 64-bit draw: two words, the first one high."""
        return int(self.words64(1)[0])

    def words(self, n: int) -> np.ndarray:
        """The next `n` 32-bit draws as uint32[n]."""
        with self.lock:
            have = self._left - 1
            if n <= have:
                return self._take(n).copy()
            many = n >= _N and self.expect(n) >= NATIVE
            out = np.empty(n, _U32)
            out[:have] = self._take(have)
            filled = have
            while filled < n:
                blocks = min((n - filled + _N - 1) // _N, 64)
                raw, tempered = np.empty((blocks + 1, _N), _U32), np.empty((blocks, _N), _U32)
                raw[0] = self._state
                if not (many and _native_twist(raw, tempered)):
                    for row in range(blocks):
                        _twist(raw[row], raw[row + 1])
                    tempered = _temper(raw[1:])
                part = min(n - filled, blocks * _N)
                out[filled : filled + part] = tempered.reshape(-1)[:part]
                filled += part
                self._state, self._tempered = raw[-1].copy(), tempered[-1].copy()
                self._next = part - (blocks - 1) * _N
                self._left = _N + 1 - self._next
            return out

    def expect(self, n: int) -> int:
        """Tells that `n` words are about to be drawn, perhaps in parts; gives how many it was told of."""
        self._expected += n
        return self._expected

    def words64(self, n: int) -> np.ndarray:
        """The next `n` 64-bit draws as uint64[n]."""
        pairs = self.words(2 * n).reshape(n, 2).astype(_U64)
        return (pairs[:, 0] << _U64(32)) | pairs[:, 1]

    def get_state(self) -> np.ndarray:
        """The state as uint8[5056], byte for byte `torch.get_rng_state()` (little-endian)."""
        with self.lock:
            record = np.zeros((), _STATE)
            record["seed"], record["left"], record["seeded"] = self._seed, self._left, 1
            record["next"], record["state"] = self._next, self._state
            if self.normal_sample is not None:
                record["normal"], record["has_normal"] = self.normal_sample, 1
            if self.normal_sample32 is not None:
                record["normal32"], record["has_normal32"] = self.normal_sample32, 1
            return np.frombuffer(record.tobytes(), np.uint8).copy()

    def set_state(self, state: ArrayLike) -> None:
        """Take over a state of `get_state` or `torch.get_rng_state()`.

        Raises TracegradError, and changes nothing, if it is not one.
        """
        data = np.asarray(state)
        if data.dtype != np.uint8 or data.shape != (_STATE.itemsize,):
            raise TracegradError(
                f"set_state: expected uint8[{_STATE.itemsize}], got {data.dtype}{list(data.shape)}"
            )
        record = np.frombuffer(data.tobytes(), _STATE)[0]
        left, following = int(record["left"]), int(record["next"])
        consistent = left + following == _N + 1 or (left == 1 and following <= _N)
        if not record["seeded"] or not 0 < left <= _N or not consistent:
            raise TracegradError("set_state: these bytes are not a valid mt19937 state")
        with self.lock:
            self._seed, self._left, self._next = int(record["seed"]), left, following
            self._state = record["state"].astype(_U32)
            self._tempered = None
            self.normal_sample = float(record["normal"]) if record["has_normal"] else None
            self.normal_sample32 = float(record["normal32"]) if record["has_normal32"] else None

    def clone(self) -> MT19937:
        """An independent generator in the same state."""
        twin = MT19937.__new__(MT19937)
        twin.__setstate__(self.__getstate__())
        return twin

    __copy__ = clone

    def __deepcopy__(self, memo: dict) -> MT19937:
        return self.clone()

    def __getstate__(self) -> np.ndarray:
        return self.get_state()

    def __setstate__(self, state: np.ndarray) -> None:
        self.lock = threading.RLock()
        self._expected = 0
        self.set_state(state)

    def _take(self, n: int) -> np.ndarray:
        if self._tempered is None:
            self._tempered = _temper(self._state)
        part = self._tempered[self._next : self._next + n]
        self._next += n
        self._left -= n
        return part


def _native_twist(raw: np.ndarray, tempered: np.ndarray) -> bool:
    from ..backends.llvm.twister import twist

    return twist(raw, tempered)


def _twist(state: np.ndarray, out: np.ndarray) -> None:
    """Write the 624 words after `state`, in three vector steps as later words read earlier ones."""
    t = (state[:-1] & _U32(0x80000000)) | (state[1:] & _U32(0x7FFFFFFF))
    t >>= _U32(1)
    t ^= (state[1:] & _U32(1)) * _U32(0x9908B0DF)
    split = _N - _M
    np.bitwise_xor(state[_M:], t[:split], out=out[:split])
    np.bitwise_xor(out[:split], t[split : 2 * split], out=out[split : 2 * split])
    np.bitwise_xor(out[split : _M - 1], t[2 * split :], out=out[2 * split : _N - 1])
    first, last = int(out[0]), int(state[-1])
    mixed = ((last & 0x80000000) | (first & 0x7FFFFFFF)) >> 1
    out[-1] = int(out[_M - 1]) ^ mixed ^ (0x9908B0DF if first & 1 else 0)


def _temper(words: np.ndarray) -> np.ndarray:
    y = words ^ (words >> _U32(11))
    y ^= (y << _U32(7)) & _U32(0x9D2C5680)
    y ^= (y << _U32(15)) & _U32(0xEFC60000)
    y ^= y >> _U32(18)
    return y
