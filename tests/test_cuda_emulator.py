"""What the emulator of CUDA finds: each kind of fault is put into a program and must be reported."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_programs import one
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc
from tracegrad.backends.cuda.emit import emit
from tracegrad.backends.cuda.emulate import EmulationError, emulate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program

needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
needs_nvcc = pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")


@needs_gxx
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("for b in 1 block { for t in 65 thread { y[t] = f32:1.0 } }", "outside of the kernel's buffers"),
        ("for b in 1 block { for t in 64 thread { y[t] = x[t + 1] } }", "outside of the kernel's buffers"),
        ("for b in 1 block { for t in 64 thread { y[t // 2] = x[t] } }", "race"),
        ("for b in 2 block { for t in 32 thread { y[t] = x[t] } }", "race with thread 0 of block 0"),
        (
            "for b in 1 block { alloc shared s: f32[64]\n"
            "for t in 64 thread { s[t] = x[t] y[t] = s[63 - t] } }",
            "reads shared memory that was not written|race",
        ),
        (
            "for b in 1 block { alloc shared s: f32[64] for t in 64 thread { s[t] = x[t] } barrier\n"
            "for t in 64 thread { y[t] = s[63 - t] s[t] = f32:0.0 } }",
            "race",
        ),
        (
            "for b in 1 block { alloc shared s: f32[64] for t in 32 thread { s[t] = x[t] } barrier\n"
            "for t in 32 thread { y[t] = s[t + 1] } }",
            "shared memory that was not written",
        ),
        (
            "for b in 1 block { for t in 64 thread { alloc local a: f32[4]\n"
            "for i in 4 serial { a[i] = x[t] }\n"
            "y[t] = a[t] } }",
            "is outside of its array",
        ),
    ],
    ids=["write", "read", "threads", "blocks", "barrier", "phase", "unwritten", "local"],
)
def test_the_emulator_finds(body: str, why: str) -> None:
    head = "input x: f32[64]\n  output y: f32[64]\n  returns y"
    p = parse_program(f'program "p" {{ {head} kernel "k" "c" flops=0 bytes=0 {{ {body} }} }}')
    with pytest.raises(EmulationError, match=why):
        emulate(p, checked=True).call([np.ones(64, np.float32)])


@needs_gxx
def test_after_a_finding_the_next_call_starts_anew() -> None:
    p = one("for b in 1 block { for t in 64 thread { y[t] = x[i64(x[t])] } }")
    run = emulate(p, checked=True)
    with pytest.raises(EmulationError, match="kernel k, block 0, thread 0: reads 4 bytes"):
        run.call([np.full(64, 99, np.float32)])
    (got,) = run.call([np.zeros(64, np.float32)])
    assert not got.any()


@needs_gxx
def test_text_that_does_not_compile_is_reported() -> None:
    with pytest.raises(EmulationError, match="g\\+\\+ failed"):
        emulation.build("extern int x = y;")


COPIES = """for b in 2 block {{
  alloc shared s: f32[64]
  for t in 16 thread {{
    for v in 4 vector {{ copy s[4*t + v] = x[{0}*t + v ? t < 15 : f32:0.0] }}
    {1}
    y[32*b + t] = s[{2}]
    {3}
  }}
}}"""


@needs_gxx
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_copies_ahead(checked: bool) -> None:
    """Zeros where the mask says so; the last of the copies is such a one."""
    p = one(COPIES.format(4, "barrier copies", "63 - t", ""))
    x = np.arange(64, dtype=np.float32)
    assert "copy_ahead<16>(s + t * 4, x + t * 4, t < 15);" in emit(p).text
    for run in (lambda a: emulate(p, checked).call(a), lambda a: run_program(p, a)):
        (y,) = run([x])
        assert y[:16].tolist() == y[32:48].tolist() == [0.0] * 4 + list(range(59, 47, -1))


@needs_gxx
@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((4, "barrier", "63 - t", ""), "reads shared memory at .* that a copy of thread 15 is on its way to"),
        ((4, "", "4*t", ""), "that a copy of thread 0 is on its way to"),
        ((4, "barrier copies", "63 - t", "copy s[t + 48] = x[t]"), "race: writes shared|is on its way to"),
        ((8, "barrier copies", "t", ""), "reads 16 bytes outside of the kernel's buffers"),
    ],
    ids=["no wait", "own", "too soon", "outside"],
)
def test_faults_of_copies_ahead_are_found(words: tuple, why: str) -> None:
    p = one(COPIES.format(*words))
    with pytest.raises(EmulationError, match=why):
        emulate(p, checked=True).call([np.ones(64, np.float32)])
