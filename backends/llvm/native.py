"""Native programs: what a compiled `LoopProgram` is to those who run it. `compile_program` (compile.py) makes
them, `load_program` finds one that was made before. Nothing here schedules or generates code, so that a warm
start need not even load what does.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .engine import Engine, NativeModule, default_engine
from .pool import parallel_for_address
from .target import Target

if TYPE_CHECKING:
    from ...ir.loops import LoopProgram


class NativeProgram:
    """A compiled LoopProgram. Its addresses are valid while this object lives.

    Args:
        module: the loaded code.
        make: gives what was compiled, when somebody asks.
        threads: it may use the pool.

    Attributes:
        run_address: `void run(ptr table)`, see codegen_program.
        repeat_address: `void repeat(ptr table, i64 n)`.
        arena_bytes: size of the workspace to pass in the table, 64-byte aligned.
        parallel: it has parallel loops.
    """

    def __init__(
        self, module: NativeModule, make: Callable[[], LoopProgram], threads: bool, target: Target
    ) -> None:
        self.module = module
        self.target = target
        self.threads = threads
        self.arena_bytes, self.parallel = module.facts
        self.run_address = module.address("run")
        self.repeat_address = module.address("repeat")
        self._make = make

    @cached_property
    def program(self) -> LoopProgram:
        """What was compiled."""
        return self._make()

    @property
    def from_cache(self) -> bool:
        """It was loaded from disk, not compiled."""
        return self.module.from_cache

    def llvm_ir(self) -> str:
        """The generated LLVM IR, before LLVM's passes, as one module."""
        from .codegen_program import generate  # large, and no use to a warm start

        return generate(self.program, self.target, self.threads)

    def assembly(self) -> str:
        """The machine code as assembly text, of all modules it was compiled as."""
        return self.module.assembly()

    def call(
        self,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray] | None = None,
        *,
        repeat: int | None = None,
        serial: bool = False,
    ) -> list[np.ndarray]:
        """Runs on arrays and gives the outputs (new arrays unless given). A convenience: the runtime builds
        tables once.

        inputs: one C-contiguous array per input; those in `program.updated` are overwritten.
        repeat: run that many times; outputs then have that many as their first dimension.
        serial: don't use threads.
        :raises ValueError: arrays that don't fit the program.
        """
        p = self.program
        lead = () if repeat is None else (repeat,)
        if outputs is None:
            outputs = [np.empty(lead + b.shape, b.dtype.numpy) for b in p.outputs]
        for b, a, shape in [
            *((b, a, b.shape) for b, a in zip(p.inputs, inputs, strict=True)),
            *((b, a, lead + b.shape) for b, a in zip(p.outputs, outputs, strict=True)),
        ]:
            if a.dtype != b.dtype.numpy or a.shape != shape or not a.flags.c_contiguous:
                raise ValueError(
                    f"{p.name}: {b.name} takes a contiguous {b.dtype.name}{list(shape)}, "
                    f"given {a.dtype}{list(a.shape)}"
                )
        arena = np.empty(self.arena_bytes + 64, np.uint8)
        start = arena.ctypes.data
        pool = parallel_for_address() if self.threads and not serial else 0
        pointers = [a.ctypes.data for a in (*inputs, *outputs)]
        table = (ctypes.c_int64 * (len(pointers) + 2))(*pointers, start + -start % 64, pool)
        if repeat is None:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.run_address)(ctypes.addressof(table))
        else:
            function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self.repeat_address)
            function(ctypes.addressof(table), repeat)
        return list(outputs)


def load_program(
    key: str, make: Callable[[], LoopProgram], target: Target | None = None, threads: bool = True
) -> NativeProgram | None:
    """What `compile_program` left in the cache under a key, or None. `make` gives the loop program, for those
    who want to look at it."""
    engine = engine_for(target, True)

    def texts() -> Iterator[str]:
        from .codegen_program import generate_parts

        return generate_parts(make(), engine.target, threads)

    module = engine.load_cached(key, ir=texts)
    return None if module is None else NativeProgram(module, make, threads, engine.target)


@functools.lru_cache(maxsize=8)
def engine_for(target: Target | None, use_cache: bool) -> Engine:
    """The engine of a target, with or without the cache; one for the process."""
    if target is None and use_cache:
        return default_engine()
    return Engine(target, "default" if use_cache else None)
