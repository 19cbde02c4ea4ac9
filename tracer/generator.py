"""`Generator`: the random state of a thread of numbers, in two parts.

- *mt19937* (tracer/mt19937.py) is PyTorch's CPU generator: what ordinary code draws (`rand`, `normal_`, the
  initialisers, the DataLoader's order), with PyTorch's bits for PyTorch's seed.
- *Philox* (ir/ops/random.py) is what programs draw: the masks of dropout everywhere, and every draw inside a
  compiled function. Its state is a small tensor that each draw advances in place, so compiled functions
  capture it like a buffer of a module, and `repeat(n)` advances it natively.

Both start from one seed. Used by tracer/random.py, `nn` and `utils`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from operator import index
from typing import Any

import numpy as np

from ..ir import dtypes
from ..ir.errors import TraceError
from ..ir.op import REGISTRY
from ..runtime.buffers import copy_of
from . import mt19937
from .devices import resolved
from .level import Level
from .library import ArgumentError, ArgumentTypeError, overwrite
from .recording import STATE, outside_traces, recording_into
from .tensor import Tensor, concrete, device, ready
from .trace import Trace

#: bytes of PyTorch's own state; ours has Philox's two numbers behind them
_MT_BYTES, _PHILOX_BYTES = 5056, 16


class Generator:
    """A random number generator, of PyTorch's CPU numbers where code runs as it is written, whatever the
    device; that is where programs draw.

    Attributes:
        place: the device's name; None for the CPU.
        engine: the mt19937 part.
        philox: `i64[2]`, seed and number of draws so far, of the Philox part.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.place = resolved(device)
        self.engine = mt19937.MT19937()
        self.lock = threading.RLock()
        with outside_traces():
            self.philox = concrete(copy_of(self._start(), dtypes.int64).on(self.place))

    def _start(self) -> np.ndarray:
        """Philox's state right after seeding."""
        return np.array([self.engine.initial_seed() & (1 << 64) - 1, 0], np.uint64).view(np.int64)

    @property
    def device(self) -> device:
        return device(self.place or "cpu")

    def manual_seed(self, seed: int) -> Generator:
        """Restarts both streams from a seed, any int of 64 bits. Inside a compiled function: at each call,
        and the Philox stream alone."""
        seed = _checked_seed(seed)
        if in_program():
            start = np.array([int(seed) & (1 << 64) - 1, 0], np.uint64).view(np.int64)
            overwrite(self.philox, start)
            return self
        with self.lock:
            self.engine.manual_seed(seed)
            overwrite(self.philox, self._start())
        return self

    def seed(self) -> int:
        """Restarts both streams from a seed taken from the system, and gives it."""
        _outside("seed()")
        with self.lock:
            made = self.engine.seed()
            overwrite(self.philox, self._start())
        return made

    def initial_seed(self) -> int:
        """The seed the streams were started with."""
        return self.engine.initial_seed()

    def get_state(self) -> Tensor:
        """The whole state as a uint8 tensor: PyTorch's 5056 bytes, then seed and number of draws of
        Philox."""
        _outside("get_state()")
        with self.lock:
            tail = np.ascontiguousarray(self.philox.detach()._array()).view(np.uint8)
            data = np.concatenate([self.engine.get_state(), tail])
        return concrete(copy_of(data, dtypes.uint8))

    def set_state(self, state: Tensor) -> None:
        """Restores a state from `get_state`, or one from PyTorch: then Philox starts from its seed.

        Raises TracegradError, and changes nothing, if it is neither.
        """
        _outside("set_state()")
        if not isinstance(state, Tensor) or state.dtype is not dtypes.uint8:
            got = state._value().type if isinstance(state, Tensor) else type(state).__name__
            raise ArgumentTypeError(f"set_state() takes a uint8 tensor from get_state(), got {got}")
        data = np.array(state.detach().numpy(), np.uint8)
        whole = data.shape == (_MT_BYTES + _PHILOX_BYTES,)
        with self.lock:
            self.engine.set_state(data[:_MT_BYTES] if whole else data)
            overwrite(self.philox, data[_MT_BYTES:].view(np.int64) if whole else self._start())

    def clone_state(self) -> Generator:
        """A new generator in the same state."""
        made = Generator(self.place or "cpu")
        made.set_state(self.get_state())
        return made

    __copy__ = clone_state

    def __deepcopy__(self, memo: dict[int, Any]) -> Generator:
        return self.clone_state()

    def __reduce__(self) -> Any:
        return _rebuild, (self.get_state().numpy(),)

    def __repr__(self) -> str:
        return f"<tracegrad.Generator, seed {self.initial_seed()}>"


def _checked_seed(seed: Any) -> int:
    try:
        number = index(seed)
    except TypeError:
        if not (isinstance(seed, (float, Tensor)) and int(seed) == seed):
            raise ArgumentTypeError(f"manual_seed(): the seed must be an integer, got {seed!r:.60}") from None
        number = int(seed)
    if not -(1 << 63) <= number < 1 << 64:
        raise ArgumentError(f"manual_seed(): seed {number} is outside [-2**63, 2**64)")
    return number


def _rebuild(state: np.ndarray) -> Generator:
    made = Generator()
    made.set_state(concrete(copy_of(state, dtypes.uint8)))
    return made


def _outside(what: str) -> None:
    if _levels()[1] is not STATE.lazy:
        raise TraceError(
            f"{what} of a generator inside a compiled function: the state is only known when the function "
            f"runs; "
            f"call it outside"
        )


default_generator = Generator()


def _levels() -> tuple[list[Level], Trace]:
    """The transformations that are at work, outermost first, and the trace outside of them all."""
    levels: list[Level] = []
    trace = STATE.trace
    while isinstance(trace, Level):
        levels.append(trace)
        trace = trace.parent
    return levels[::-1], trace


def in_program() -> bool:
    """Whether random functions draw from Philox: in a function that is being compiled, or under `vmap`."""
    levels, base = _levels()
    return base is not STATE.lazy or any(level.size is not None for level in levels)


def draw(name: str, *tensors: Tensor, generator: Generator | None = None, **attrs: Any) -> Any:
    """Records the random op `name` (ir/ops/random.py) on tensors and the generator's Philox state, and moves
    that on by one draw. Gives the op's result.

    Under `vmap(..., randomness="different")` every element of the batch has a draw of its own.
    """
    g = generator or default_generator
    trace: Any = STATE.trace
    if generator is None and tensors and (place := tensors[0]._storage.value.type.device) is not None:
        g = generator_on(place)
    if trace.walked_back:
        ready(trace, *tensors)
    with g.lock:
        trace.note_state(g.philox, {"rng_state": g.philox})
        state = _state_inside(g) if isinstance(trace, Level) else g.philox._value()
        out, after = trace.emit(REGISTRY[name], (*[t._value() for t in tensors], state), attrs)
        if not isinstance(trace, Level):
            g.philox._storage.put(after)
    return Tensor(out)


def _state_inside(g: Generator) -> Any:
    """The state as a value of the innermost transformation, moved on outside of them all."""
    levels, base = _levels()
    for level in levels:
        if level.size is not None and level.randomness == "error":
            raise TraceError(
                "a random function under vmap(): say whether all elements of the batch get the same numbers, "
                "randomness='same', or each its own, randomness='different'"
            )
    apart = [level for level in levels if level.size is not None and level.randomness == "different"]
    sizes = tuple(level.size or 0 for level in apart)
    with recording_into(base):
        b: Any = base
        state = g.philox._value()
        first = b.iota(shape=(2,), dim=0, dtype=dtypes.int64)
        g.philox._storage.put(b.add(state, b.mul(first, b.const(prod(sizes), dtypes.int64))))
        if sizes:
            number = b.reshape(b.iota(shape=(prod(sizes),), dim=0, dtype=dtypes.int64), shape=(*sizes, 1))
            state = b.add(state, b.mul(number, first))
    for level in levels:
        different = level in apart
        shape = state.type.shape[1:] if different else state.type.shape
        made = level.input(state.type.with_shape(shape), False)
        level.bind(made, state)
        if different:
            level.batched.add(made)
        state = made
    return state


#: the default generators of devices, made when they are first drawn from
_ON_DEVICES: dict[str, Generator] = {}


def generator_on(place: str) -> Generator:
    """The default generator of a device, which starts from the default generator's seed."""
    found = _ON_DEVICES.get(place)
    if found is None:
        with outside_traces():
            found = _ON_DEVICES[place] = Generator(place)
            found.manual_seed(default_generator.initial_seed())
    return found


def generator_of(generator: Generator | None) -> mt19937.MT19937:
    """The mt19937 engine to draw from. Drawing from it inside a compiled function would bake one draw into
    it: an error."""
    if _levels()[1] is not STATE.lazy:
        raise TraceError(
            "drawing PyTorch's random numbers (an initialiser, a shuffle) inside a compiled function would "
            "repeat the same numbers at every call; draw them outside and pass them in, or use rand(), "
            "normal_() and the like, which draw anew at every call"
        )
    return (generator or default_generator).engine


def manual_seed(seed: int) -> Generator:
    """Seeds the default generator, and those of GPUs; the same seed gives PyTorch's numbers."""
    for g in _ON_DEVICES.values():
        g.manual_seed(seed)
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seeds the default generator from the system."""
    return default_generator.seed()


def initial_seed() -> int:
    """The default generator's seed."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The default generator's state."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Restores the default generator's state."""
    default_generator.set_state(new_state)


@contextmanager
def fork_rng(devices: Any = None, enabled: bool = True, device_type: Any = None) -> Iterator[None]:
    """The default generator is, afterwards, in the state it was in before."""
    if not enabled:
        yield
        return
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
