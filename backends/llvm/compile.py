"""Loop programs to native code: `compile_program`. Called by the runtime, and by tests.

    native = compile_program(program)
    native.run_address        # void run(ptr table), see codegen_program

Object code is cached on disk under the program's text, so a warm start generates no LLVM IR at all.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from ...ir.loop_text import print_program
from ...ir.loops import LoopProgram
from .codegen_program import generate, generate_parts
from .engine import Engine, NativeModule, Opt, default_engine
from .pool import get_num_threads, parallel_for_address
from .target import Target


class NativeProgram:
    """A compiled LoopProgram. Its addresses are valid while this object lives.

    Attributes:
        program: what was compiled.
        module: the loaded code.
        run_address: `void run(ptr table)`.
        repeat_address: `void repeat(ptr table, i64 n)`.
        arena_bytes: size of the workspace to pass in the table, 64-byte aligned.
        threads: it has parallel loops that may use the pool.
    """

    def __init__(self, program: LoopProgram, module: NativeModule, threads: bool, target: Target) -> None:
        self.program = program
        self.module = module
        self.target = target
        self.threads = threads
        self.arena_bytes = program.arena_bytes
        self.run_address = module.address("run")
        self.repeat_address = module.address("repeat")

    @property
    def from_cache(self) -> bool:
        """It was loaded from disk, not compiled."""
        return self.module.from_cache

    def llvm_ir(self) -> str:
        """The generated LLVM IR, before LLVM's passes, as one module."""
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


def compile_program(
    program: LoopProgram,
    target: Target | None = None,
    threads: bool = True,
    use_cache: bool = True,
    opt: Opt = "fast",
) -> NativeProgram:
    """Native code for a loop program.

    - `target`: default the host.
    - `threads`: parallel loops may use the thread pool.
    - `use_cache`: look for object code on disk, and leave it there.
    - `opt`: see `Engine.compile`.

    :raises CompileError: statements or buffers that only GPUs have.
    """
    engine = _engine(target, use_cache)

    def texts() -> Iterator[str]:
        return generate_parts(program, engine.target, threads)

    key = f"loops threads={threads}\n{print_program(program)}" if use_cache else "-"
    module = engine.compile(texts, key=key, opt=opt, jobs=get_num_threads())
    return NativeProgram(program, module, threads, engine.target)


@functools.lru_cache(maxsize=8)
def _engine(target: Target | None, use_cache: bool) -> Engine:
    if target is None and use_cache:
        return default_engine()
    return Engine(target, "default" if use_cache else None)
