"""What the emulator of CUDA finds: each kind of fault is put into a program and must be reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_programs import one
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc
from tracegrad.backends.cuda.emit import emit
from tracegrad.backends.cuda.emulate import EmulationError, emulate
from tracegrad.backends.cuda.traffic import table
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
            "for b in 1 block { alloc shared s: f32[64] for t in 32 thread { s[t] = x[t] } barrier\n"
            "for t in 32 thread { alloc register a: f32[4] matrices.x4 a[0] = s[t] y[t] = a[0] } }",
            "a row of matrices at .*, which is not aligned",
        ),
        (
            "for b in 1 block { for t in 64 thread { alloc local a: f32[4]\n"
            "for i in 4 serial { a[i] = x[t] }\n"
            "y[t] = a[t] } }",
            "is outside of its array",
        ),
    ],
    ids=["write", "read", "threads", "blocks", "barrier", "phase", "unwritten", "matrices", "local"],
)
def test_the_emulator_finds(body: str, why: str) -> None:
    head = "input x: f32[64]\n  output y: f32[64]\n  returns y"
    p = parse_program(f'program "p" {{ {head} kernel "k" "c" flops=0 bytes=0 {{ {body} }} }}')
    with pytest.raises(EmulationError, match=why):
        emulate(p, checked=True).call([np.ones(64, np.float32)])


@needs_gxx
def test_vectors_that_are_not_aligned_are_found() -> None:
    """The text says that four neighbours are one access; here they begin one element too late."""
    body = "for t in 8 thread { for v in 4 vector { y[4*t + v] = x[4*t + v] } }"
    unit = emit(one(f"for b in 1 block {{ {body} }}"))
    text = unit.text.replace("pack_at<4>(x + t * 4)", "pack_at<4>(x + t * 4 + 1)")
    assert text != unit.text
    with pytest.raises(EmulationError, match=r"reads 16 bytes at .*, which are not aligned"):
        emulate(replace(unit, text=text), checked=True).call([np.ones(64, np.float32)])


TRAFFIC = """for b in 1 block {{ alloc shared s: f32[1056]
  for t in 32 thread {{
    for i in 32 serial {{ s[{0}] = x[{1}] }}
    barrier
    y[t] = s[{2}]
  }}
}}"""


@needs_gxx
@pytest.mark.parametrize(
    ("places", "conflicts", "sectors", "least"),
    [
        (("32*i + t", "t", "t"), 1.0, 1.0, 4),  # neighbours
        (("32*t + i", "2*t", "t"), 32.0, 2.0, 4),  # all in one bank; every other element
        (("33*t + i", "8*(t % 8)", "t"), 1.0, 8.0, 1),  # padded; a sector for each element
        (("2*t", "0*t", "2*t"), 2.0, 1.0, 1),  # two words of each bank; one element for all
    ],
)
def test_conflicts_and_sectors_are_counted(
    places: tuple[str, str, str], conflicts: float, sectors: float, least: int
) -> None:
    run = emulate(one(TRAFFIC.format(*places)), counted=True)
    run.call([np.ones(64, np.float32)])
    found = {(t.shared, t.write): t for t in run.traffic()}
    write, read = found[True, True], found[False, False]
    assert write.ratio == conflicts == write.worst and write.requests == 32
    assert read.ratio == sectors and read.least == 32 * least
    line = run.unit.text.splitlines()[write.line - 1]
    assert "s[" in line and " = x[" in line
    shown = table(run.traffic(), text=run.unit.text)
    assert ("s[" in shown) == (conflicts > 1 or sectors > 1)


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
