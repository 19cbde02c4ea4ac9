"""The way to a GPU, without one: NVIDIA's driver and NVRTC as `cuda.bindings` gives them (fake_bindings.py),
what is compiled for which GPU, and the cache. And, where the package is installed, the package itself over a
driver that g++ built (data/fake_libcuda.cpp), and NVRTC, which needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import test_cuda_train as training
import tracegrad as tg
from fake_bindings import Fake, FakeNvrtc, bindings
from test_cuda_device import close
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvrtc
from tracegrad.runtime.cuda import architecture_of
from tracegrad.runtime.cuda_emulated_driver import CUresult, EmulatedDriver
from tracegrad.tracer import generator

HERE = Path(__file__).resolve().parent
needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating takes g++")


@pytest.fixture(autouse=True)
def of_their_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Generators of a device must not outlive it; nor must answers about what is installed."""
    monkeypatch.setattr(generator, "_ON_DEVICES", {})
    monkeypatch.delenv("TRACEGRAD_CUDA", raising=False)
    yield


def architectures(fake: Fake) -> list[str]:
    """What NVRTC was asked for."""
    return [o.partition("=")[2] for options in fake.nvrtc.options for o in options if "architecture" in o]


# --- the fake package ---------------------------------------------------------------------------------------


@needs_gxx
def test_training_by_the_driver_and_nvrtc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "objects"))
    want, cpu, _ = training.train("mlp", "cpu", True)
    with bindings() as fake:
        assert tg.cuda.is_available() and not hasattr(fake.driver, "emulated")
        got, model, _ = training.train("mlp", "cuda", True)
        close(got, want)
        for a, b in zip(model.parameters(), cpu.parameters()):
            close(a.tolist(), b.tolist())
        assert (
            set(architectures(fake)) == {"sm_80"}
            and " ".join(fake.nvrtc.options[0]).count("--std=c++17") == 1
        )
        x = tg.ones(4, pin_memory=True).to("cuda", non_blocking=True)
        assert x.is_cuda and x.to("cpu", non_blocking=True).tolist() == [1] * 4
        del model, x, a
    assert b" "[:1] == b"\x20" and bytes(1) == b"\0"  # NVRTC writes to bytes; not to those that all share


@needs_gxx
@pytest.mark.parametrize(
    ("capability", "wanted", "scheduled"),
    [
        ((7, 5), "sm_75", "sm_75"),
        ((8, 0), "sm_80", "sm_80"),
        ((8, 6), "sm_86", "sm_80"),
        ((9, 0), "sm_90", "sm_90"),
        ((12, 0), "compute_90", "sm_90"),
    ],
)
def test_code_is_for_the_gpu_that_is_there(
    capability: tuple[int, int], wanted: str, scheduled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs run no machine code of another major number; what NVRTC does not know yet gets PTX."""
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "objects"))
    with bindings(capability) as fake:
        assert architecture_of(0) == scheduled
        x = tg.randn(5, 3)
        step = tg.compile(lambda x: x.exp().sum(0))
        close(step(x.to("cuda")).tolist(), step(x).tolist())
        assert architectures(fake) == [wanted]
        if capability >= (8, 0):  # a lowering for another GPU than that, too
            run = step.lower(x, backend="cuda").compile()
            close(run([x.numpy()])[0], step(x).tolist())
            assert architectures(fake)[-1] == wanted.replace(
                "90", "80" if wanted.startswith("compute") else "90"
            )


@needs_gxx
def test_older_gpus_are_refused_in_words() -> None:
    with (
        bindings((7, 0)) as fake,
        pytest.raises(tg.cuda.CudaError, match="GPU 0 is an sm_70; programs need sm_75"),
    ):
        tg.compile(lambda x: x + 1)(tg.ones(3, device="cuda"))
    assert not fake.nvrtc.options
    with bindings((7, 5)), pytest.raises(tg.cuda.CudaError, match="compiled for sm_80; GPU 0 is an sm_75"):
        tg.compile(lambda x: x + 1).lower(tg.ones(3), backend="cuda").compile()


def test_what_is_missing_is_said() -> None:
    with bindings() as fake:
        fake.driver.absent = True
        assert tg.cuda.why_not() == "NVIDIA's driver sees no GPU" and tg.cuda.device_count() == 0
        with pytest.raises(TypeError, match="is not available here: NVIDIA's driver sees no GPU"):
            tg.ones(3).to("cuda")


@needs_gxx
def test_a_driver_older_than_nvrtc_is_said_so() -> None:
    with bindings() as fake:
        fake.driver.version = 12040
        with pytest.raises(tg.cuda.CudaError, match=r"NVRTC 13\.0.* for CUDA 12\.4.*tracegrad\[cuda12\]"):
            tg.compile(lambda x: x * 5)(tg.ones(3, device="cuda"))


@needs_gxx
def test_compiled_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By source, options, architecture and version; what is corrupt is compiled again."""
    folder = tmp_path / "objects"
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(folder))
    text = 'extern "C" __global__ void k(float* x) { x[0] = 1; }\n'
    with bindings() as fake:
        first = nvrtc.compile_cubin(text, "sm_80")
        assert nvrtc.compile_cubin(text, "sm_80") == first and len(fake.nvrtc.options) == 1
        (entry,) = folder.glob("*.tgo")
        nvrtc.compile_cubin(text, "sm_90")
        nvrtc.compile_ptx(text, "compute_80")
        nvrtc.compile_cubin(text + " ", "sm_80")
        assert len(fake.nvrtc.options) == 4
        fake.nvrtc.version = (13, 1)
        nvrtc.compile_cubin(text, "sm_80")
        assert len(fake.nvrtc.options) == 5
        fake.nvrtc.version = (13, 0)
        entry.write_bytes(entry.read_bytes()[:-3] + b"abc")
        with pytest.warns(RuntimeWarning, match="corrupt and will be made again"):
            assert nvrtc.compile_cubin(text, "sm_80") == first
        assert len(fake.nvrtc.options) == 6 and nvrtc.compile_cubin(text, "sm_80") == first
        assert len(fake.nvrtc.options) == 6
        monkeypatch.setenv("TRACEGRAD_CACHE", "0")
        nvrtc.compile_cubin(text, "sm_80")
        assert len(fake.nvrtc.options) == 7


@needs_gxx
@pytest.mark.parametrize("said", [b"unit.cu(3): error: no such thing", b"unit.cu(3): warning: unused"])
def test_what_nvrtc_says_against_a_unit_is_an_error(said: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "objects"))
    with bindings() as fake:
        fake.nvrtc.log = said
        with pytest.raises(nvrtc.NvrtcError, match=re.escape(said.decode())):
            nvrtc.compile_cubin('extern "C" __global__ void q(float* x) { x[0] = 2; }\n', "sm_80")
    assert not list((tmp_path / "objects").glob("*.tgo"))


@needs_gxx
def test_what_kernels_take_is_read_from_nvrtc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine without a toolkit, too; once compiled, it is kept with the code."""
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "objects"))
    with bindings() as fake:
        lowered = tg.compile(lambda x: (x @ x).softmax(-1)).lower(tg.randn(9, 9), backend="cuda")
        cost = lowered.cost()
        assert len(cost.resources) == len(cost.kernels) > 0
        assert {str(r) for r in cost.resources} == {"40 registers, 4096 bytes shared, 16 bytes spilled"}
        assert f"{cost.kernels[0].name}: 40 registers" in str(cost)
        assert lowered.cost().resources == cost.resources and lowered.cubin()
        assert len(fake.nvrtc.options) == 1


# --- the package itself -------------------------------------------------------------------------------------


def _parameters(function: Any, name: str) -> list[str]:
    """The names that a function of the package says it takes."""
    said = re.match(rf"{name}\((.*)\)", function.__doc__.strip().splitlines()[0])
    assert said, name
    plain = re.sub(r"\[[^\[\]]*(\[[^\]]*\][^\[\]]*)*\]", "", said.group(1))  # types with commas in them
    return [p.split(":")[0].split()[-1].lstrip("*") for p in plain.split(",") if p.strip()]


@pytest.mark.parametrize(("module", "mine"), [("driver", EmulatedDriver), ("nvrtc", FakeNvrtc)])
def test_the_fakes_have_the_packages_functions(module: str, mine: Any) -> None:
    """Names of functions, of their parameters, and of the constants that are used."""
    real = pytest.importorskip(f"cuda.bindings.{module}")
    names = [n for n, f in vars(mine).items() if isinstance(f, FunctionType) and not n.startswith("_")]
    assert len(names) > 9
    for name in names:
        code = getattr(getattr(mine, name), "__wrapped__", getattr(mine, name)).__code__
        assert _parameters(getattr(real, name), name) == list(code.co_varnames[1 : code.co_argcount]), name


def test_the_fakes_have_the_packages_constants() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    for status in CUresult:
        assert getattr(real.CUresult, status.name).value == status.value
    for group in ("CUdevice_attribute", "CUfunction_attribute", "CUstream_flags", "CUstreamCaptureMode"):
        for member in getattr(EmulatedDriver, group):
            assert getattr(getattr(real, group), member.name).value == member.value


_REAL = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import tracegrad as tg
import tracegrad.runtime.cuda as runtime
from tracegrad.backends.cuda import nvrtc
from tracegrad.runtime import cuda_emulated, cuda_lowered
import test_cuda_train as training
from test_cuda_device import close

assert tg.cuda.is_available(), tg.cuda.why_not()
assert tg.cuda.get_device_name() == "a fake GPU" and tg.cuda.get_device_capability() == (8, 0)
original = cuda_lowered.CudaLowered.code
made = []

def code(self, capability):
    if nvrtc.available():  # the true machine code; the fake driver runs a library in its place
        made.append(original(self, capability))
        assert made[-1][:4] == b"\\x7fELF"
    return cuda_emulated.image(self.unit) + b"\\0"

cuda_lowered.CudaLowered.code = code
for compiled in (False, True):
    want = training.train("mlp", "cpu", compiled)[0]
    close(training.train("mlp", "cuda", compiled)[0], want)
training.test_control_flow_on_a_device()
x = tg.randn(300, pin_memory=True)
y = x.to("cuda", non_blocking=True)
a, b = tg.cuda.Event(enable_timing=True), tg.cuda.Event(enable_timing=True)
a.record()
z = (y * 2).sum(); z.item()
b.record(); b.synchronize()
assert a.elapsed_time(b) > 0 and tg.cuda.current_stream().cuda_stream
close(y.to("cpu", non_blocking=True).tolist(), x.tolist())
try:
    tg.empty(1 << 40, device="cuda")
except tg.cuda.OutOfMemoryError as e:
    assert "asked for 4398046511104 bytes" in str(e)
else:
    raise AssertionError
assert tg.cuda.memory_allocated() > 0 and tg.cuda.mem_get_info()[1] == 1 << 30
tg.cuda.empty_cache()
assert b" "[0] == 32
print("fine", len(made))
"""


@needs_gxx
@pytest.mark.skipif(sys.platform != "linux", reason="the fake driver is built for Linux")
def test_the_package_over_a_fake_driver(tmp_path: Path) -> None:
    """The package packs the arguments itself; the driver below looks at them."""
    pytest.importorskip("cuda.bindings.driver")
    library = tmp_path / "libcuda.so.1"
    words = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([*words, str(HERE / "data" / "fake_libcuda.cpp"), "-o", str(library), "-ldl"], check=True)
    env = {k: v for k, v in os.environ.items() if k != "TRACEGRAD_CUDA"}
    env["LD_LIBRARY_PATH"] = os.pathsep.join([str(tmp_path), env.get("LD_LIBRARY_PATH", "")])
    words = [sys.executable, "-c", _REAL.format(tests=str(HERE))]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("fine") and not done.stderr, done.stderr
    env["FAKE_CUDA_NONE"] = "1"
    words = [sys.executable, "-c", "import tracegrad as tg; print(tg.cuda.why_not())"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "NVIDIA's driver sees no GPU"


def test_nvrtc_takes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves, whose headers come from a package; machine code and PTX, also for other GPUs."""
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "objects"))
    if not nvrtc.available():
        pytest.skip("NVRTC is not installed")
    x = tg.randn(16, 16)
    lowered = tg.compile(lambda x: (x.half() @ x.half().T).softmax(-1).bfloat16()).lower(x, backend="cuda")
    for capability in ((8, 0), (8, 6), (9, 0)):
        code = lowered.code(capability)
        assert code[:4] == b"\x7fELF" and code == lowered.code(capability)
    ptx = lowered.code((19, 7))
    assert b".target sm_80" in ptx and ptx.endswith(b"\0")
    assert len(list((tmp_path / "objects").glob("*.tgo"))) == 4
    assert np.frombuffer(b" ", np.uint8)[0] == 32


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_without_nvrtc_nvcc_writes_ptx_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    lowered = tg.compile(lambda x: x.exp()).lower(tg.ones(5), backend="cuda")
    assert lowered.code((8, 0))[:4] == b"\x7fELF"
    ptx = lowered.code((9, 0))
    assert b".target sm_80" in ptx and ptx.endswith(b"\0")
