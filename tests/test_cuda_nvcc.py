"""nvcc and NVRTC take units without a warning, and what each kernel takes of the GPU is read back."""

from __future__ import annotations

import pytest
from cuda_programs import (
    AXPY,
    TOTAL,
    TURNS,
    conversion_program,
    primitive_cases,
    program,
)
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc, nvrtc
from tracegrad.backends.cuda.emit import emit
from tracegrad.backends.cuda.nvcc import NvccError, Resources, parse_resources

needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
needs_nvcc = pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")


@needs_nvcc
def test_nvcc_takes_all_primitives_and_conversions_without_a_warning() -> None:
    programs = [primitive_cases()[0], conversion_program()[0], program(AXPY), program(TOTAL), program(TURNS)]
    nvcc.check(emit(programs).text)


@needs_nvcc
def test_nvcc_builds_the_host_part_too(tmp_path) -> None:
    nvcc.compile_library(emit([program(AXPY), program(TURNS)]).text, tmp_path / "unit.so", "sm_90")
    assert (tmp_path / "unit.so").stat().st_size > 0


@needs_nvcc
def test_resources_are_read_back() -> None:
    code, found = nvcc.compile_cubin(emit(program(TOTAL)).text, "sm_80")
    assert code[:4] == b"\x7fELF" and list(found) == ["k0_sum"]
    assert found["k0_sum"].shared == 16 and found["k0_sum"].registers > 0
    assert nvcc.compile_cubin(emit(program(TOTAL)).text, "sm_80") == (code, found)  # from the cache


@needs_nvcc
def test_a_warning_is_an_error() -> None:
    with pytest.raises(NvccError, match="never referenced"):
        nvcc.check("__global__ void k() { int unused; }\n")


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(NvccError, match="no architecture 'sm_10'; there are sm_75"):
        nvcc.check("", "sm_10")


def test_the_report_of_ptxas_is_read() -> None:
    report = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1' for 'sm_80'
ptxas info    : Function properties for k1
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'k0' for 'sm_80'
ptxas info    : Function properties for k0
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Function properties for __internal_accurate_pow
    64 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
    assert parse_resources(report) == {"k1": Resources(255, 4096, 20, 16), "k0": Resources(10, 0, 0, 0)}
    assert str(Resources(255, 4096, 20, 16)) == "255 registers, 4096 bytes shared, 20 bytes spilled"


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC (the extra [cuda]) is not installed")
def test_nvrtc_compiles_the_device_part() -> None:
    text = emit(program(TOTAL)).device_text
    assert nvrtc.compile_cubin(text, "sm_80")[:4] == b"\x7fELF"
    found = nvrtc.resources(text, "sm_80")
    assert list(found) == ["k0_sum"] and found["k0_sum"].shared == 16 and found["k0_sum"].registers > 0
