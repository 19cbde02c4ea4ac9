"""Register-tiled matrix products written in the loop IR: right answers, and machine code that keeps the tile
in registers with one fused multiply-add per vector and step."""

from __future__ import annotations

import re

import numpy as np
import pytest
from codegen_tools import program, targets, x86
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.target import Target, host_target
from tracegrad.ir.loops import LoopProgram

TARGETS = targets()
ON_X86 = pytest.mark.skipif(host_target().arch != "x86_64", reason="reads x86 assembly")


def matmul(
    m: int,
    n: int,
    k: int,
    rows: int,
    cols: int,
    lanes: int,
    unroll: int,
    packed_a: bool,
    dtype: str = "f32",
    block: int = 0,
    parallel: bool = False,
) -> LoopProgram:
    """c = a @ b in tiles of rows x cols: b packed into panels of `cols`, a packed or read where it is, the
    last row tile smaller, k in blocks of `block` with partial sums kept in c. n is a multiple of cols, k of
    block, block of unroll."""
    block = block or k
    full, rest = divmod(m, rows)
    panels, vectors = n // cols, cols // lanes
    size = 8 if dtype == "f64" else 4
    bytes_b = -(-n * k * size // 64) * 64

    def tile(count: int, row: str, index: str) -> str:
        each = f"for m in {count} unroll {{ for v in {vectors} unroll {{ for l in {lanes} vector {{"
        at = f"{row} + m, n*{cols} + v*{lanes} + l"
        a = f"ap[{index}*{count * k} + (kb + k + u)*{count} + m]" if packed_a else f"a[{row} + m, kb + k + u]"
        return f"""
          alloc register acc: {dtype}[{count},{cols}]
          {each} acc[m, v*{lanes} + l] = c[{at} ? kb > 0 : {dtype}:0.0] }} }} }}
          for k in {block} step {unroll} serial {{ for u in {unroll} unroll {{ {each}
            acc[m, v*{lanes} + l] = acc[m, v*{lanes} + l] + {a} * bp[n, kb + k + u, v*{lanes} + l]
          }} }} }} }} }}
          {each} c[{at}] = acc[m, v*{lanes} + l] }} }} }}
        """

    pack_a = (
        f"""
        for i in {full} serial {{ for k in {k} serial {{ for m in {rows} unroll {{
          ap[i*{rows * k} + k*{rows} + m] = a[i*{rows} + m, k]
        }} }} }}
        for k in {k} serial {{ for m in {rest} unroll {{
          ap[{full * rows * k} + k*{rest} + m] = a[{full * rows} + m, k]
        }} }}"""
        if packed_a
        else ""
    )
    rest_tile = f"for _ in 1 serial {{ {tile(rest, str(full * rows), str(full * rows) + '//' + str(rest))} }}"
    if packed_a and rest:
        rest_tile = rest_tile.replace(f"{full * rows}//{rest}*{rest * k}", str(full * rows * k))
    p = program(f"""
      input a: {dtype}[{m},{k}]
      input b: {dtype}[{k},{n}]
      output c: {dtype}[{m},{n}]
      arena bp: {dtype}[{panels},{k},{cols}] @ 0
      arena ap: {dtype}[{m * k}] @ {bytes_b}
      returns c
      arena_bytes {bytes_b + m * k * size}
      kernel {{
        for n in {panels} serial {{ for k in {k} serial {{
        for v in {vectors} unroll {{ for l in {lanes} vector {{
          bp[n, k, v*{lanes} + l] = b[k, n*{cols} + v*{lanes} + l]
        }} }} }} }}
        {pack_a}
      }}
      kernel {{
        for n in {panels} {"parallel" if parallel else "serial"} {{ for kb in {k} step {block} serial {{
          for i in {full} serial {{ {tile(rows, f"i*{rows}", "i")} }}
          {rest_tile if rest else ""}
        }} }}
      }}""")
    return p


def hot_loop(assembly: str) -> list[str]:
    """The instructions of the basic block with most fused multiply-adds."""
    blocks = re.split(r"^\.?L?[\w.]+:.*$", assembly, flags=re.MULTILINE)
    best = max(blocks, key=lambda b: b.count("vfmadd"))
    lines = [
        line.strip() for line in best.splitlines() if line.strip() and not line.strip().startswith((".", "#"))
    ]
    jump = next(i for i, line in enumerate(lines) if line.startswith("j"))
    return lines[: jump + 1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("packed_a", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("parallel", [False, True])
def test_tiled_matmul(target: str, packed_a: bool, dtype: str, parallel: bool) -> None:
    p = matmul(33, 64, 48, 14, 32, 16 if dtype == "f32" else 8, 4, packed_a, dtype, 24, parallel)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(x.shape).astype(x.dtype.numpy) for x in p.inputs)
    (c,) = compile_program(p, TARGETS[target], use_cache=False).call([a, b])
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-4, atol=1e-4)


AVX512 = ("skylake-avx512", 64, 32, True)
AVX2 = ("haswell", 32, 16, True)


@ON_X86
@pytest.mark.parametrize(
    "machine,rows,cols,lanes,packed_a",
    [
        (AVX512, 14, 32, 16, True),
        (AVX512, 12, 32, 16, False),
        (AVX512, 8, 48, 16, False),
        (AVX512, 6, 64, 16, True),
        (AVX512, 6, 64, 16, False),
        (AVX2, 6, 16, 8, True),
        (AVX2, 6, 16, 8, False),
        (AVX2, 4, 24, 8, False),
    ],
)
def test_the_tile_stays_in_registers(
    machine: tuple, rows: int, cols: int, lanes: int, packed_a: bool
) -> None:
    """In the loop over k: rows * cols / lanes accumulators, each in its own register; as many multiply-adds
    per step; b loaded once per step; nothing spilled."""
    unroll, vectors = 4, cols // lanes
    p = matmul(rows * 3, cols * 2, 64, rows, cols, lanes, unroll, packed_a)
    loop = hot_loop(compile_program(p, x86(*machine), use_cache=False).assembly())
    register = "zmm" if machine is AVX512 else "ymm"
    fused = [line for line in loop if line.startswith("vfmadd")]
    assert len(fused) == rows * vectors * unroll
    assert len({line.rsplit("%", 1)[1] for line in fused}) == rows * vectors
    assert all(f"%{register}" in line for line in fused)
    assert not any("rsp" in line for line in loop)
    assert not any(re.match(r"v?mov\w+\s+%[xyz]mm", line) for line in loop)  # no stores, no copies
    loads = sum(bool(re.match(r"v\w+\s+.*\(", line)) for line in loop)
    # a: a broadcast per row and step, or folded into each of the row's multiply-adds
    assert unroll * (vectors + rows) <= loads <= unroll * (vectors + rows * vectors)
    assert len(loop) <= len(fused) + loads + 6


@ON_X86
def test_a_smaller_target_is_respected() -> None:
    """No 512-bit register and no mask register in code for a CPU without them."""
    p = matmul(14, 32, 16, 14, 32, 16, 4, False)
    text = compile_program(p, x86(*AVX2), use_cache=False).assembly()
    assert "zmm" not in text and "%k1" not in text and "vfmadd" in text
    text = compile_program(
        p, Target("x86-64", x86(*AVX2).triple, "", 16, 16, False), use_cache=False
    ).assembly()
    assert "ymm" not in text and "vfmadd" not in text and "mulps" in text
