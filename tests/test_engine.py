"""The native engine: targets, compilation, loading, and the object cache under bad conditions."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import llvmlite.binding as binding
import llvmlite.ir as llvm_ir
import pytest
from tracegrad.backends.llvm import cache as cache_module
from tracegrad.backends.llvm.cache import CachedObject, ObjectCache, default_cache, object_key
from tracegrad.backends.llvm.engine import Engine, default_engine
from tracegrad.backends.llvm.target import CompileError, Target, host_target
from tracegrad.ir.errors import TracegradError

SCALE = """
declare float @fmodf(float, float)
define void @scale(ptr %p, i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %at = getelementptr float, ptr %p, i64 %i
  %x = load float, ptr %at, align 4
  %y = fmul float %x, 2.5
  %z = call float @fmodf(float %y, float 7.0)
  store float %z, ptr %at, align 4
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret void
}
"""


def constant(value: int, name: str = "f") -> str:
    return f"define i64 @{name}() {{\n  ret i64 {value}\n}}\n"


def call(module, name: str = "f") -> int:
    return module.function(name, ctypes.c_int64)()


@pytest.fixture
def store(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "objects")


def test_host_target_matches_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEGRAD_CPU", raising=False)
    monkeypatch.delenv("TRACEGRAD_VECTOR_BYTES", raising=False)
    target = host_target()
    features = binding.get_host_cpu_features()
    if target.arch == "x86_64":
        assert target.has_fma == bool(features.get("fma"))
        assert (target.vector_bytes == 64) == bool(features.get("avx512f") and features.get("avx512vl"))
        assert target.num_vector_registers == (32 if target.vector_bytes == 64 else 16)
    assert target.lanes(4) * 4 == target.vector_bytes
    assert target.lanes(1000) == 1


def test_fingerprints_differ_by_every_field() -> None:
    base = Target("a", "x86_64-unknown-linux-gnu", "+avx", 32, 16, True)
    others = [Target("b", base.triple, base.features, 32, 16, True),
              Target("a", base.triple, "+avx2", 32, 16, True),
              Target("a", base.triple, base.features, 16, 16, True),
              Target("a", base.triple, base.features, 32, 32, True),
              Target("a", base.triple, base.features, 32, 16, False)]
    assert len({target.fingerprint() for target in (base, *others)}) == 6
    assert base.fingerprint() == Target("a", base.triple, "+avx", 32, 16, True).fingerprint()


def test_vector_bytes_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEGRAD_CPU", raising=False)
    monkeypatch.setenv("TRACEGRAD_VECTOR_BYTES", "16")
    target = host_target()
    assert target.vector_bytes == 16
    if target.arch == "x86_64":
        assert target.function_attributes["prefer-vector-width"] == "128"
    monkeypatch.setenv("TRACEGRAD_VECTOR_BYTES", "24")
    with pytest.raises(CompileError, match="TRACEGRAD_VECTOR_BYTES=24"):
        host_target()


@pytest.mark.skipif(not binding.get_process_triple().startswith("x86_64"), reason="names of x86 CPUs")
@pytest.mark.parametrize("name, width, registers, fma", [
    ("x86-64", 16, 16, False), ("sandybridge", 32, 16, False), ("haswell", 32, 16, True),
    ("x86-64-v4", 64, 32, True), ("icelake-server", 64, 32, True)])
def test_cpu_override(monkeypatch: pytest.MonkeyPatch, name: str, width: int, registers: int,
                      fma: bool) -> None:
    monkeypatch.delenv("TRACEGRAD_VECTOR_BYTES", raising=False)
    monkeypatch.setenv("TRACEGRAD_CPU", name)
    target = host_target()
    assert (target.name, target.vector_bytes, target.num_vector_registers, target.has_fma) == (
        name, width, registers, fma)


def test_unknown_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_CPU", "no-such-cpu")
    with pytest.raises(CompileError, match="TRACEGRAD_CPU=no-such-cpu"):
        host_target()


@pytest.mark.skipif(host_target().vector_bytes != 64, reason="needs AVX-512")
def test_wide_vectors_are_not_split() -> None:
    text = f"""
    define void @add(ptr %p) #0 {{
      %a = load <16 x float>, ptr %p, align 64
      %b = fadd <16 x float> %a, %a
      store <16 x float> %b, ptr %p, align 64
      ret void
    }}
    attributes #0 = {{ {host_target().attribute_text()} }}
    """
    assembly = Engine(cache=None).compile(text).assembly()
    assert "%zmm" in assembly and "%ymm" not in assembly


@pytest.mark.parametrize("opt", ["quick", "fast", "full"])
def test_compiled_code_runs_and_finds_libm(opt) -> None:
    module = Engine(cache=None).compile(SCALE, opt=opt)
    data = (ctypes.c_float * 5)(1.0, 2.0, 3.0, 4.0, -3.0)
    module.function("scale", None, ctypes.c_void_p, ctypes.c_int64)(data, 5)
    assert list(data) == [2.5, 5.0, 0.5, 3.0, -0.5]
    assert module.symbols == ("scale",)
    assert not module.from_cache


def test_llvmlite_modules_are_accepted() -> None:
    module = llvm_ir.Module()
    i64 = llvm_ir.IntType(64)
    function = llvm_ir.Function(module, llvm_ir.FunctionType(i64, [i64]), "triple")
    builder = llvm_ir.IRBuilder(function.append_basic_block())
    builder.ret(builder.mul(function.args[0], llvm_ir.Constant(i64, 3)))
    native = Engine(cache=None).compile(module)
    assert native.function("triple", ctypes.c_int64, ctypes.c_int64)(14) == 42


def test_views_are_made_on_demand() -> None:
    slow = ("define i64 @f(i64 %x) {\n %p = alloca i64\n store i64 %x, ptr %p\n"
            " %y = load i64, ptr %p\n ret i64 %y\n}")
    made: list[int] = []

    def source() -> str:
        made.append(1)
        return slow

    module = Engine(cache=None).compile(source, key="k")
    assert len(made) == 1
    assert "alloca" not in module.optimized_ir() and "alloca" in module.source_ir()
    assert "ret" in module.assembly()
    assert len(made) == 4


def test_always_inlined_helpers_disappear() -> None:
    text = """
    define internal i64 @help(i64 %x) alwaysinline {
      %y = add i64 %x, 1
      ret i64 %y
    }
    define i64 @f() {
      %y = call i64 @help(i64 41)
      ret i64 %y
    }
    """
    for opt in ("quick", "fast", "full"):
        module = Engine(cache=None).compile(text, opt=opt)
        assert call(module) == 42
        assert "call" not in module.optimized_ir()


def test_imports_resolve_by_address() -> None:
    callback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda x: x + 1)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    text = "declare i64 @mine(i64)\ndefine i64 @f() {\n %x = call i64 @mine(i64 6)\n ret i64 %x\n}"
    assert call(Engine(cache=None).compile(text, imports={"mine": address or 0})) == 7


def test_bad_input_is_an_error_of_ours() -> None:
    engine = Engine(cache=None)
    with pytest.raises(CompileError, match="invalid LLVM IR"):
        engine.compile("define i64 @f() { nonsense }")
    with pytest.raises(CompileError, match="invalid LLVM IR"):  # parses, but does not verify
        engine.compile("define i64 @f(i1 %c) {\nentry:\n br i1 %c, label %a, label %b\n"
                       "a:\n %x = add i64 1, 2\n br label %b\nb:\n ret i64 %x\n}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEGRAD_VERIFY", "1")
        with pytest.raises(CompileError, match="invalid LLVM IR"):
            engine.compile("define i64 @f() {\nentry:\n br label %a\na:\n ret i32 1\n}", trusted=True)
    with pytest.raises(CompileError, match="no_such_symbol"):
        engine.compile("declare void @no_such_symbol()\n"
                       "define void @f() {\n call void @no_such_symbol()\n ret void\n}")
    with pytest.raises(CompileError, match="'g'"):
        engine.compile(constant(1)).address("g")
    with pytest.raises(CompileError, match="opt='turbo'"):
        engine.compile(constant(1), opt="turbo")
    assert issubclass(CompileError, TracegradError)
    assert call(engine.compile(constant(5))) == 5  # an error leaves the engine usable


def test_equal_symbols_in_many_modules_do_not_clash() -> None:
    engine = Engine(cache=None)
    modules = [engine.compile(constant(i)) for i in range(70)]
    assert [call(module) for module in modules] == list(range(70))


def _mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return True
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_code_is_unmapped_with_its_module() -> None:
    engine = Engine(cache=None)
    keep, drop = engine.compile(constant(1)), engine.compile(constant(2))
    function = drop.function("f", ctypes.c_int64)
    address = drop.address("f")
    del drop
    gc.collect()
    assert _mapped(address) and function() == 2  # the callable holds its module
    del function
    gc.collect()
    assert not _mapped(address)
    assert _mapped(keep.address("f")) and call(keep) == 1
    del engine
    gc.collect()
    assert call(keep) == 1


def test_threads_compile_at_once() -> None:
    engine = Engine(cache=None)
    results: dict[int, int] = {}

    def work(start: int) -> None:
        for i in range(start, start + 10):
            results[i] = call(engine.compile(constant(i)))

    threads = [threading.Thread(target=work, args=(10 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i for i in range(40)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_compile() -> None:
    engine = default_engine()
    before = engine.compile(constant(77))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            good = call(before) == 77 and call(engine.compile(constant(78))) == 78
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_importing_the_engine_loads_no_llvm() -> None:
    code = ("import sys, tracegrad.backends.llvm.engine, tracegrad.backends.llvm.pool\n"
            "assert not any(name.startswith('llvmlite') for name in sys.modules), 'llvmlite was imported'")
    subprocess.run([sys.executable, "-c", code], check=True)


# the cache


def test_a_hit_needs_no_ir(store: ObjectCache) -> None:
    first = Engine(cache=store)
    assert first.load_cached("key") is None
    assert call(first.compile(constant(9), key="key")) == 9

    def never() -> str:
        raise AssertionError("the IR was built")

    second = Engine(cache=store)
    hit = second.load_cached("key", ir=never)
    assert hit is not None and hit.from_cache and call(hit) == 9
    assert second.compile(never, key="key").from_cache
    with pytest.raises(CompileError, match="TRACEGRAD_CACHE=0"):
        unknown = second.load_cached("key")
        assert unknown is not None
        unknown.assembly()


def test_keys_hold_pipeline_and_target(store: ObjectCache) -> None:
    engine = Engine(cache=store)
    engine.compile(constant(9), key="key")
    assert engine.load_cached("key", opt="full") is None
    host = host_target()
    other = Target(host.name, host.triple, host.features, 16, 7, host.has_fma)
    assert Engine(other, cache=store).load_cached("key") is None
    assert object_key("ab", "c") != object_key("a", "bc")


def test_ir_is_its_own_key(store: ObjectCache) -> None:
    assert not Engine(cache=store).compile(SCALE).from_cache
    assert Engine(cache=store).compile(SCALE).from_cache
    assert not Engine(cache=store).compile(SCALE.replace("2.5", "1.5")).from_cache


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage", "magic"])
def test_corruption_costs_one_compilation(store: ObjectCache, damage: str) -> None:
    Engine(cache=store).compile(constant(9), key="key")
    (path,) = store.directory.glob("*.tgo")
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-100] ^= 1
    elif damage == "magic":
        data[0] ^= 1
    else:
        data = bytearray(b"" if damage == "empty" else os.urandom(3000))
    path.write_bytes(bytes(data))
    with pytest.warns(RuntimeWarning, match="corrupt") as caught:
        module = Engine(cache=store).compile(constant(9), key="key")
        assert not module.from_cache and call(module) == 9
    assert len(caught) == 1
    assert Engine(cache=store).compile(constant(9), key="key").from_cache


def test_valid_file_with_a_broken_object_is_recompiled(store: ObjectCache) -> None:
    engine = Engine(cache=store)
    engine.compile(constant(9), key="key")
    (path,) = store.directory.glob("*.tgo")
    store.store(path.stem, CachedObject(("f",), (b"not an object",)))
    assert call(engine.compile(constant(9), key="key")) == 9


def test_full_disk(store: ObjectCache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fdopen", lambda handle, mode: Full(real(handle, mode)))
    engine = Engine(cache=store)
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        assert call(engine.compile(constant(3))) == 3
        assert call(engine.compile(constant(4))) == 4
    assert len(caught) == 1
    assert list(store.directory.iterdir()) == []


def test_unusable_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="cannot"):
        assert call(Engine(cache=ObjectCache(tmp_path / "file" / "deeper")).compile(constant(3))) == 3
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.warns(RuntimeWarning, match="cannot write"):
            assert call(Engine(cache=ObjectCache(locked)).compile(constant(3))) == 3


def test_trimming_drops_the_least_recently_used(tmp_path: Path) -> None:
    store = ObjectCache(tmp_path, limit=10_000)
    now = time.time()
    for i in range(20):
        store.store(f"k{i:02}", CachedObject(("f",), (bytes(950),)))
        os.utime(store.path(f"k{i:02}"), (now - 1000 + i, now - 1000 + i))
    assert store.load("k00") is not None  # a hit makes it recent
    (tmp_path / ".tmp-old").write_bytes(b"x")
    os.utime(tmp_path / ".tmp-old", (now - 1e5, now - 1e5))
    (tmp_path / ".tmp-new").write_bytes(b"x")
    store.trim()
    names = {path.stem for path in tmp_path.glob("*.tgo")}
    assert "k00" in names and "k19" in names and "k01" not in names
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tgo")) <= 9_000
    assert not (tmp_path / ".tmp-old").exists() and (tmp_path / ".tmp-new").exists()


def test_environment_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEGRAD_CACHE", raising=False)
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "here"))
    monkeypatch.setenv("TRACEGRAD_CACHE_MB", "2")
    found = default_cache()
    assert found is not None and found.directory == tmp_path / "here" and found.limit == 2 << 20
    Engine().compile(constant(1))
    assert len(list((tmp_path / "here").glob("*.tgo"))) == 1
    monkeypatch.setenv("TRACEGRAD_CACHE", "0")
    assert default_cache() is None
    assert not Engine().compile(constant(1)).from_cache


_WRITER = """
import ctypes, sys
from tracegrad.backends.llvm.cache import CachedObject, ObjectCache
from tracegrad.backends.llvm.engine import Engine
store = ObjectCache(sys.argv[1])
engine = Engine(cache=store)
for turn in range(8):
    for i in range(8):
        text = f"define i64 @f() {{ ret i64 {i} }}"
        module = engine.compile(text)
        assert module.function("f", ctypes.c_int64)() == i
        store.store(engine._object_key(f"again{i}", "fast"), CachedObject(module.symbols, module.objects))
        hit = engine.load_cached(f"again{i}")
        assert hit is not None and hit.function("f", ctypes.c_int64)() == i
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-W", "error", "-c", _WRITER, str(tmp_path)])
               for _ in range(2)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 16 and all(name.endswith(".tgo") for name in names)
