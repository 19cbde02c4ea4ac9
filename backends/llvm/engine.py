"""LLVM IR in, callable addresses out: optimise, emit an object, cache it, load it into this process.

The code generator and the pool call `Engine.compile`; executables hold the `NativeModule` they get, which
keeps the code mapped for as long as it lives. Nothing here knows how the IR came to be.

Objects are loaded by LLVM's JITLink (one contiguous mapping per module, so the small code model always
reaches; errors are reported where the older loader aborts the process). A linker instance is shared by a few
modules and freed with the last of them.

A program may come as several texts, its parts: LLVM modules that refer to each other, optimised and emitted
by several threads and linked together. What they become does not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from . import parts
from .cache import CachedObject, ObjectCache, build_id, default_cache, object_key
from .scratch import keep_scratch
from .target import CompileError, Target, host_target, llvm

Opt = Literal["quick", "fast", "full"]
# LLVM IR text, an `llvmlite.ir.Module`, or a function that makes either (kept instead of the text, for lazy
# views) or that gives an iterator of texts, the parts of one program.
Source = str | Any | Callable[[], Any]

# A linker costs 160 KB; a module unloaded before its linker leaves 9 KB until that dies.
_MODULES_PER_LINKER = 32
_lock = threading.RLock()  # one program is compiled at a time, and none while the process forks
_names = itertools.count()
_PUBLIC = re.compile(r"^define (?!internal |hidden )", re.MULTILINE)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class NativeModule:
    """Loaded native code. Addresses are valid while this object lives; its memory is unmapped when it dies.

    - `symbols`: names of the external functions and globals that the module defines.
    - `objects`: the object files it was loaded from.
    - `from_cache`: it was read from disk, not compiled.
    - `facts`: the numbers it was compiled with.
    """

    def __init__(self, entry: CachedObject, addresses: dict[str, int], handles: tuple[Any, ...],
                 source: Source | None, target: Target, opt: Opt, from_cache: bool):
        self.symbols = entry.symbols
        self.objects = entry.objects
        self.facts = entry.facts
        self.from_cache = from_cache
        self._addresses = addresses
        self._handles = handles
        self._source = source
        self._target = target
        self._opt: Opt = opt

    def address(self, symbol: str) -> int:
        """The address of an external symbol.

        :raises CompileError: the module defines no such symbol.
        """
        try:
            return self._addresses[symbol]
        except KeyError:
            known = ", ".join(self.symbols) or "nothing"
            raise CompileError(f"no symbol {symbol!r} in this native module; it defines {known}") from None

    def function(self, symbol: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
        """A ctypes callable for a symbol, without the GIL while it runs. It keeps this module alive."""
        function = ctypes.CFUNCTYPE(restype, *argtypes)(self.address(symbol))
        function._tracegrad_module = self  # type: ignore[attr-defined]
        return function

    def source_ir(self) -> str:
        """The LLVM IR as it was given, parts one after the other.

        :raises CompileError: the module came from the cache and nobody said how to make its IR.
        """
        return "\n".join(self._texts())

    def _texts(self) -> Iterator[str]:
        if self._source is None:
            raise CompileError("this module was loaded from the object cache without its LLVM IR; "
                               "set TRACEGRAD_CACHE=0 to see it")
        return _texts(self._source)

    def optimized_ir(self) -> str:
        """The LLVM IR after the passes, made again on each call (compilation is deterministic)."""
        with _lock:
            machine = _machine(self._target, self._opt)
            made = [_optimized(x, machine, self._target, self._opt) for x in self._texts()]
            return "\n".join(map(str, made))

    def assembly(self) -> str:
        """The assembly text, made again on each call (compilation is deterministic)."""
        with _lock:
            machine = _machine(self._target, self._opt)
            made = [_optimized(x, machine, self._target, self._opt) for x in self._texts()]
            with _flags():
                return "\n".join([machine.emit_assembly(module) for module in made])


class Engine:
    """Compiles and loads for one target.

    - `target`: default the host (or what the environment overrides it with).
    - `cache`: an `ObjectCache`, None for none, or "default" for what the environment asks for at each call.
    """

    def __init__(self, target: Target | None = None,
                 cache: ObjectCache | Literal["default"] | None = "default"):
        self._target = target
        self._cache = cache
        self._linker: Any = None
        self._linked = 0

    @property
    def target(self) -> Target:
        """The target, found on first use (LLVM is loaded then)."""
        if self._target is None:
            with _lock:
                self._target = host_target()
        return self._target

    def compile(self, ir: Source, *, key: str | None = None, opt: Opt = "fast",
                imports: Mapping[str, int] | None = None, jobs: int = 1,
                facts: tuple[int, ...] = (), trusted: bool = False) -> NativeModule:
        """Native code for LLVM IR, from the cache where it has it.

        - `key`: what identifies the content (any string); default the IR text itself. Target, pipeline,
          versions and our own sources are always part of the real key.
        - `opt`: "fast" cleans up what a code generator that writes explicit vectors leaves; "full" adds
          scalar and loop optimisation (value numbering, loop-invariant code motion) for two to three times
          the time. "quick" is "fast" with instructions and registers chosen in one go: a fifth of the time,
          for code on scalars that waits more than it computes.
        - `imports`: addresses of symbols that the process does not export. Symbols of libc, libm and every
          loaded library resolve by themselves.
        - `jobs`: threads that compile the parts of a program. Of several parts, the last one's symbols are
          the program's; the others' are for each other.
        - `facts`: numbers to keep with the code, for who finds it by `load_cached`.
        - `trusted`: the IR is our own code generator's; what it is made of is then verified in tests and with
          `TRACEGRAD_VERIFY=1` only.

        :raises CompileError: invalid IR, or a symbol that nothing defines.
        """
        if not callable(ir) and not isinstance(ir, str):
            ir = str(ir)  # an llvmlite module can change later and is large; its text is neither
        if key is None:
            key = object_key("ir", *_texts(ir))
        found = self.load_cached(key, opt=opt, ir=ir, imports=imports)
        if found is not None:
            return found
        target = self.target

        verify = not trusted or os.environ.get("TRACEGRAD_VERIFY") == "1"
        machines: list[Any] = []  # one per thread: a new one looks at all features of the CPU again

        def work(text: str) -> tuple[tuple[str, ...], bytes]:
            try:
                machine = machines.pop()
            except IndexError:
                machine = _machine(target, opt)
            module = _optimized(text, machine, target, opt, verify)
            code = parts.emit(machine, module)
            machines.append(machine)
            public = not trusted or _PUBLIC.search(text)
            return _defined_symbols(module) if public else (), code

        keep_scratch()
        with _lock:
            with _flags():
                made = parts.each(_texts(ir), work, jobs)
            entry = CachedObject(made[-1][0], tuple([code for _, code in made]), facts)
            native = self._load(entry, imports, ir, opt, from_cache=False)
        cache = self._current_cache()
        if cache is not None:  # only what could be loaded is kept
            cache.store(self._object_key(key, opt), entry)
        return native

    def load_cached(self, key: str, *, opt: Opt = "fast", ir: Source | None = None,
                    imports: Mapping[str, int] | None = None) -> NativeModule | None:
        """The module stored under a content key, or None. No IR is built, parsed or optimised.

        - `ir`: how to make the IR should someone ask to see it; normally a function.
        """
        cache = self._current_cache()
        if cache is None:
            return None
        entry = cache.load(self._object_key(key, opt))
        if entry is None:
            return None
        try:
            source = ir if ir is None or callable(ir) or isinstance(ir, str) else str(ir)
            return self._load(entry, imports, source, opt, from_cache=True)
        except CompileError:
            return None  # a library it was linked against is gone; compiling again says so properly

    def _current_cache(self) -> ObjectCache | None:
        return default_cache() if isinstance(self._cache, str) else self._cache

    def _object_key(self, key: str, opt: Opt) -> str:
        return object_key(key, opt, self.target.fingerprint(), _llvmlite_version(), build_id())

    def _load(self, entry: CachedObject, imports: Mapping[str, int] | None, source: Source | None, opt: Opt,
              *, from_cache: bool) -> NativeModule:
        """Maps an object and resolves its symbols."""
        binding = llvm()
        keep_scratch()
        with _lock:
            if self._linker is None or self._linked >= _MODULES_PER_LINKER:
                self._linker = binding.create_lljit_compiler(self.target.machine(), use_jit_link=True,
                                                             suppress_errors=True)
                self._linked = 0
            builder = binding.JITLibraryBuilder()
            for code in entry.objects:
                builder.add_object_img(code)
            builder.add_current_process()
            for name, address in (imports or {}).items():
                builder.import_symbol(name, address)
            for name in entry.symbols:
                builder.export_symbol(name)
            self._linked += 1
            try:
                tracker = builder.link(self._linker, f"module{next(_names)}")
            except RuntimeError as error:
                raise CompileError(f"native code cannot be loaded: {error}; undefined here: "
                                   f"{_undefined(source, self.target, imports)}") from None
            addresses = {name: tracker[name] for name in entry.symbols}
            # The tracker unmaps the code when it dies; its linker must outlive it.
            handles = (tracker, self._linker)
            return NativeModule(entry, addresses, handles, source, self.target, opt, from_cache)


@functools.lru_cache(maxsize=1)
def default_engine() -> Engine:
    """The engine of the host with the cache of the environment, one for the process."""
    return Engine()


@functools.lru_cache(maxsize=1)
def _llvmlite_version() -> str:
    import llvmlite  # here for the same reason as in target.py

    return llvmlite.__version__


def _texts(source: Source) -> Iterator[str]:
    made = source() if callable(source) else source
    return made if isinstance(made, Iterator) else iter([made if isinstance(made, str) else str(made)])


def _machine(target: Target, opt: Opt) -> Any:
    return target.machine(0 if opt == "quick" else 2)


def _parse(text: str, machine: Any, target: Target, verify: bool = True) -> Any:
    """A module in a context of its own, with the layout of a machine."""
    binding = llvm()
    module = None
    try:
        module = parts.parse(text, binding.create_context())
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        if verify:
            module.verify()
    except RuntimeError as error:
        if module is not None:
            module.close()  # not left to whatever order the traceback's frames are collected in
        raise CompileError(f"invalid LLVM IR: {str(error).strip()}") from None
    return module


def _optimized(text: str, machine: Any, target: Target, opt: Opt, verify: bool = True) -> Any:
    """The module after the passes of `opt`."""
    if opt not in ("quick", "fast", "full"):
        raise CompileError(f"opt={opt!r}: expected 'quick', 'fast' or 'full'")
    module = _parse(text, machine, target, verify)
    binding = llvm()
    tuning = binding.create_pipeline_tuning_options(2)
    # The code generator writes vectors, unrolls and fuses by itself; LLVM's heuristics would only undo its
    # choices.
    tuning.loop_vectorization = tuning.slp_vectorization = False
    tuning.loop_unrolling = tuning.loop_interleaving = False
    builder = binding.create_pass_builder(machine, tuning)
    passes = binding.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    if opt != "full":
        passes.add_sroa_pass()
    parts.run_passes(passes, module, builder)
    if opt == "full":
        scalar = builder.getFunctionPassManager()
        for function in module.functions:
            if not function.is_declaration:
                scalar.run(function, builder)
    return module


@contextlib.contextmanager
def _flags() -> Iterator[None]:
    """Loop strength reduction off while machine code is made: addresses come as the code generator wants
    them, measurements find no gain, and it is a quarter of the time. LLVM has one set of flags for the
    process, so the flag is put back for others (numba).
    """
    binding = llvm()
    binding.set_option("", "-disable-lsr=1")
    try:
        yield
    finally:
        binding.set_option("", "-disable-lsr=0")


def _defined_symbols(module: Any) -> tuple[str, ...]:
    """Names that other modules or Python can look up."""
    values = itertools.chain(module.functions, module.global_variables)
    return tuple(value.name for value in values
                 if not value.is_declaration and value.linkage.name in ("external", "weak_odr", "weak_any")
                 and value.visibility.name == "default")


def _undefined(source: Source | None, target: Target, imports: Mapping[str, int] | None) -> str:
    """Declared functions that no library of this process has: LLVM does not say which symbol it missed."""
    if source is None:
        return "unknown"
    binding = llvm()
    machine = target.machine()
    modules = [_parse(text, machine, target) for text in _texts(source)]
    defined = {function.name for module in modules for function in module.functions
               if not function.is_declaration}
    names = dict.fromkeys(function.name for module in modules for function in module.functions
                          if function.name not in defined and not function.name.startswith("llvm.")
                          and function.name not in (imports or {})
                          and binding.address_of_symbol(function.name) is None)
    return ", ".join(names) or "a support function that LLVM calls by itself"
