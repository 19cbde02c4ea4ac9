"""Loop programs to native code: `compile_program`. Called by the runtime, and by tests.

    native = compile_program(program)
    native.run_address        # void run(ptr table), see codegen_program

Object code is cached on disk, under the program's text or a key that the caller has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...ir.loop_text import print_program
from ...ir.loops import For, LoopProgram, statements
from .codegen_program import generate_parts
from .engine import Opt
from .native import NativeProgram, engine_for
from .pool import get_num_threads
from .target import Target

__all__ = ["NativeProgram", "compile_program"]


def compile_program(
    program: LoopProgram,
    target: Target | None = None,
    threads: bool = True,
    use_cache: bool = True,
    opt: Opt = "fast",
    key: str | None = None,
    make: Callable[[], LoopProgram] | None = None,
) -> NativeProgram:
    """Native code for a loop program.

    - `target`: default the host.
    - `threads`: parallel loops may use the thread pool.
    - `use_cache`: look for object code on disk, and leave it there.
    - `opt`: see `Engine.compile`.
    - `key`: what `load_program` shall find it by; default a text of the whole program.
    - `make`: gives the program again, for those who want to look at it; without, it is kept for them.

    :raises CompileError: statements or buffers that only GPUs have.
    """
    engine = engine_for(target, use_cache)
    make = make or (lambda: program)
    first = [program]

    def texts() -> Iterator[str]:
        return generate_parts(first.pop() if first else make(), engine.target, threads)

    if key is None:
        key = f"loops threads={threads}\n{print_program(program)}" if use_cache else "-"
    loops = (s for k in program.kernels for s in statements(k.body))
    parallel = any(isinstance(s, For) and s.kind == "parallel" for s in loops)
    facts = (program.arena_bytes, int(parallel))
    module = engine.compile(texts, key=key, opt=opt, jobs=get_num_threads(), facts=facts, trusted=True)
    first.clear()
    return NativeProgram(module, make, threads, engine.target)
