"""Machine code of the contractions that the scheduler makes, read without a stopwatch: in the loop over k
every accumulator has its own register, nothing is spilled, and there are no more loads than needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from codegen_tools import x86
from schedule_graphs import build, f32
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.target import host_target
from tracegrad.backends.machine import AVX2, AVX512, MachineModel
from tracegrad.backends.schedule import contract as groups
from tracegrad.backends.schedule import schedule, tiles
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.loop_text import print_program
from tracegrad.ir.loops import For, LoopProgram, Prefetch, Stmt

pytestmark = pytest.mark.skipif(host_target().arch != "x86_64", reason="reads x86 assembly")

TARGETS = {
    "avx512": (AVX512, ("skylake-avx512", 64, 32, True)),
    "avx2": (AVX2, ("haswell", 32, 16, True)),
}
PRODUCTS = {
    "nn": "mk,kn->mn",
    "nt": "mk,nk->mn",
    "tn": "km,kn->mn",
    "result turned": "mk,kn->nm",
    "several k": "mkl,kln->mn",
}


def product(spec: str, m: int, n: int, k: int) -> Graph:
    sizes = {"m": m, "n": n, "k": k, "l": 3}
    x, y = spec.split("->")[0].split(",")
    return build(
        "c",
        {"x": f32(*[sizes[c] for c in x]), "y": f32(*[sizes[c] for c in y])},
        lambda b, x, y: b.contract(x, y, spec=spec),
    )


def hot_loops(assembly: str) -> list[list[str]]:
    """The instructions of every innermost loop with fused multiply-adds of vectors, most of these first."""
    found = []
    for block in re.split(r"^\.?L?[\w.]+:.*$", assembly, flags=re.MULTILINE):
        lines = [x.strip() for x in block.splitlines() if x.strip() and not x.strip().startswith((".", "#"))]
        end = next((i for i, line in enumerate(lines) if line.startswith("j")), None)
        lines = lines if end is None else lines[: end + 1]
        if sum(bool(re.match(r"vfmadd.*[yz]mm", line)) for line in lines) > 1:
            found.append(lines)
    return sorted(found, key=lambda lines: -sum(line.startswith("vfmadd") for line in lines))


def memory(line: str) -> bool:
    return re.match(r"v\w+\s+.*\(", line) is not None


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", PRODUCTS)
@pytest.mark.parametrize("m,n,k", [(97, 211, 96), (64, 64, 300), (250, 24, 65)])
def test_tiles_stay_in_registers(target: str, layout: str, m: int, n: int, k: int) -> None:
    machine, cpu = TARGETS[target]
    program = schedule(product(PRODUCTS[layout], m, n, k), machine)
    loops = hot_loops(compile_program(program, x86(*cpu), use_cache=False).assembly())
    assert loops
    for lines in loops:
        assert not any("rsp" in line and "mm" in line for line in lines)
        assert not any(re.match(r"vmov\w+\s+%[yz]mm\d+, .*\(", line) for line in lines)  # no stores


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "result turned"])
@pytest.mark.parametrize("shape", [0, 1, 2, 3])
def test_every_multiply_add_counts(
    target: str, layout: str, shape: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed B: each step is rows x vectors fused multiply-adds, `vectors` loads of B, and one broadcast
    for each row (or one folded into each multiply-add)."""
    machine, cpu = TARGETS[target]
    wide = target == "avx512"
    mr, nr = (((14, 2), (9, 3), (6, 4), (8, 3)) if wide else ((6, 2), (4, 3), (3, 3), (7, 1)))[shape]
    lanes = machine.lanes(4)
    chosen = tiles.Strategy(False, False, mr, nr, lanes, False, True, 96, 1.0)

    def choose(p: tiles.Problem, machine: MachineModel) -> tiles.Strategy:
        return chosen

    monkeypatch.setattr(groups, "_choose", choose)
    graph = product(PRODUCTS[layout], 10 * mr, 4 * nr * lanes, 96)
    text = compile_program(schedule(graph, machine), x86(*cpu), use_cache=False).assembly()
    lines = hot_loops(text)[0]
    fused = [line for line in lines if line.startswith("vfmadd")]
    assert len(fused) % (mr * nr) == 0
    steps = len(fused) // (mr * nr)
    assert len({line.rsplit("%", 1)[1] for line in fused}) == mr * nr
    loads = sum(map(memory, lines))
    assert steps * (mr + nr) <= loads <= steps * (nr + mr * nr)
    assert len(lines) <= len(fused) + loads + 12
    assert not any("rsp" in line and "mm" in line for line in lines)


@pytest.mark.parametrize("target", TARGETS)
def test_squares_are_turned_by_shuffles(target: str) -> None:
    """Packing an operand that lies across takes no gathers and no element by element copies."""
    machine, cpu = TARGETS[target]
    program = schedule(product("mk,nk->mn", 128, 256, 256), machine)
    text = compile_program(program, x86(*cpu), use_cache=False).assembly()
    assert "gather" not in text and "vinsertps" not in text and "vextractps" not in text
    assert len(re.findall(r"vunpck|vperm|vshuf|vinsertf|vmovddup|vmovsldup|vblend", text)) >= machine.lanes(4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("nr", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("pack_a", [False, True])
def test_largest_tiles_do_not_spill(
    target: str, nr: int, pack_a: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles that the model may choose, with all the accumulators that there are registers for."""
    machine, cpu = TARGETS[target]
    lanes, mr = machine.lanes(4), (machine.vector_registers - 1 - nr) // nr
    while pack_a and not tiles.room_for_packed_a(mr, nr, machine.vector_registers):
        mr -= 1
    chosen = tiles.Strategy(False, False, mr, nr, lanes, pack_a, True, 200, 1.0)
    monkeypatch.setattr(groups, "_choose", lambda p, machine: chosen)
    graph = product(PRODUCTS["tn"], 5 * mr, 2 * nr * lanes, 200)
    text = compile_program(schedule(graph, machine), x86(*cpu), use_cache=False).assembly()
    lines = hot_loops(text)[0] if mr * nr > 1 else []
    assert not any("rsp" in line and "mm" in line for line in lines)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["nn", "tn"])
def test_blocks_in_place_stay_in_registers(
    target: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of k read where they are: partial sums move at the ends of a block only."""
    machine, cpu = TARGETS[target]
    mr, nr = (6, 4) if target == "avx512" else (4, 3)
    lanes = machine.lanes(4)
    chosen = tiles.Strategy(False, False, mr, nr, lanes, False, False, 64, 1.0, nc=4 * nr * lanes)
    monkeypatch.setattr(groups, "_choose", lambda p, machine: chosen)
    graph = product(PRODUCTS[layout], 10 * mr, 4 * nr * lanes, 256)
    text = compile_program(schedule(graph, machine), x86(*cpu), use_cache=False).assembly()
    lines = hot_loops(text)[0]
    fused = [line for line in lines if line.startswith("vfmadd")]
    assert len({line.rsplit("%", 1)[1] for line in fused}) == mr * nr
    assert not any("rsp" in line and "mm" in line for line in lines)
    assert not any(re.match(r"vmov\w+\s+%[yz]mm\d+, .*\(", line) for line in lines)
    assert "panel" not in print_program(schedule(graph, machine))


def test_what_an_epilogue_reads_is_prefetched() -> None:
    """Large parameters that an update reads come while the product is computed: the lines of a row of the
    tile before its share of the steps over k, and none between these steps."""
    machine, cpu = TARGETS["avx512"]

    def body(b, x, g, w, m):
        first = b.contract(x, g, spec="km,kn->mn")
        moment = b.add(b.mul(m, b.const(0.9)), first)
        return [], {w: b.sub(w, b.mul(moment, b.const(0.1))), m: moment}

    def program(rows: int) -> LoopProgram:
        shapes = {"x": f32(256, rows), "g": f32(256, 256), "w": f32(rows, 256), "m": f32(rows, 256)}
        return schedule(build("c", shapes, body), machine)

    large, small = program(256), program(20)
    text = compile_program(large, x86(*cpu), use_cache=False).assembly()
    assert len(re.findall(r"prefetch\w*\s", text)) >= 4
    assert not any("prefetch" in line for lines in hot_loops(text) for line in lines)
    assert "prefetch" not in compile_program(small, x86(*cpu), use_cache=False).assembly()

    def shares(body: list[Stmt]) -> Iterator[For]:
        """Loops over rows that prefetch and then do some steps."""
        for s in body:
            if isinstance(s, For):
                kinds = [type(x) for x in s.body]
                if Prefetch in kinds and For in kinds[kinds.index(Prefetch) :]:
                    yield s
                yield from shares(s.body)

    (found, *_) = [s for k in large.kernels for s in shares(k.body)]
    lines = [s for s in found.body if isinstance(s, Prefetch)]
    (steps,) = [s for s in found.body if isinstance(s, For)]
    assert found.extent in (4, 6, 8, 9, 14) and steps.extent == 256 // found.extent
    assert len(lines) % 2 == 0 and {p.buffer.name for p in lines} == {"w", "m"}


@pytest.mark.parametrize("target", TARGETS)
def test_rows_of_a_region_are_turned_together(target: str) -> None:
    """Pixels of channels: tiles of a few pixels write whole vectors, and no store is of part of a square but
    the last one's, although no tile has as many rows as a square."""
    machine, cpu = TARGETS[target]

    def body(b, x, w):
        seen = b.windows(x, size=(3, 3), stride=(1, 1), dilation=(1, 1))
        return b.relu(b.contract(w, seen, spec="ocuv,ncuvxy->noxy"))

    graph = build("c", {"x": f32(2, 64, 26, 26), "w": f32(64, 64, 3, 3)}, body)
    program = schedule(graph, machine)
    loops = print_program(program)
    assert "sums" in loops and loops.count("square:") == 1 and " if " not in loops
    text = compile_program(program, x86(*cpu), use_cache=False).assembly()
    partly = r"vmov\w+\s+%[yz]mm\d+, .*\{%k|vmaskmov\w+\s+%ymm"
    assert "scatter" not in text and not re.search(partly, text)
    lines = hot_loops(text)[0]
    assert not any("rsp" in line and "mm" in line for line in lines)


def test_taps_of_weight_gradients_share_vectors() -> None:
    """Three taps are too few rows for a tile: it takes those of several channels, and loads a vector of the
    gradient for all of them, where it is, without spills."""
    machine, cpu = TARGETS["avx512"]

    def body(b, x, g):
        seen = b.windows(x, size=(3, 3), stride=(1, 1), dilation=(1, 1))
        return b.contract(g, seen, spec="noxy,ncuvxy->ocuv")

    graph = build("c", {"x": f32(4, 64, 26, 26), "g": f32(4, 64, 24, 24)}, body)
    lines = hot_loops(compile_program(schedule(graph, machine), x86(*cpu), use_cache=False).assembly())[0]
    fused = [line for line in lines if line.startswith("vfmadd")]
    assert len({line.rsplit("%", 1)[1] for line in fused}) >= 18
    assert sum(map(memory, lines)) <= len(fused) * 5 // 9
    assert not any("rsp" in line and "mm" in line for line in lines)


def test_rows_of_the_next_columns_come_ahead() -> None:
    """Few rows times a far matrix, read where it is: of every row of it, which is a page away, what the next
    tile needs is prefetched once, by one of the tiles of rows, between the steps."""
    machine, cpu = TARGETS["avx512"]
    rows, steps, columns = 24, 120, 9000
    program = schedule(product(PRODUCTS["nn"], rows, columns, steps), machine)
    loops = print_program(program)
    fetched = [line for line in loops.splitlines() if "prefetch" in line]
    assert fetched and "partial" not in loops and "panel" not in loops
    text = compile_program(program, x86(*cpu), use_cache=False).assembly()
    lines = hot_loops(text)[0]
    assert len({line.rsplit("%", 1)[1] for line in lines if line.startswith("vfmadd")}) >= 18
    assert not any(("rsp" in line and "mm" in line) or "prefetch" in line for line in lines)
    assert "prefetch" in text
    few = print_program(schedule(product(PRODUCTS["nn"], rows, 512, steps), machine))
    assert "prefetch" not in few


def windows(spec: str, n: int, c: int, o: int, size: int, k: int = 3) -> Graph:
    """A convolution, or the gradient of its weights, of images whose windows are `size` by `size`."""
    other = f32(o, c, k, k) if spec.startswith("oc") else f32(n, o, size, size)

    def body(b: Any, x: Value, y: Value) -> Value:
        return b.contract(y, b.windows(x, size=(k, k), stride=(1, 1), dilation=(1, 1)), spec=spec)

    return build("c", {"x": f32(n, c, size + k - 1, size + k - 1), "y": other}, body)


@pytest.mark.parametrize(
    ("spec", "channels", "size", "k"),
    [
        ("ocuv,ncuvxy->noxy", 32, 24, 3),
        ("ocuv,ncuvxy->noxy", 32, 26, 3),
        ("ocuv,ncuvxy->noxy", 16, 26, 3),
        ("ocuv,ncuvxy->noxy", 32, 26, 5),
        ("noxy,ncuvxy->ocuv", 32, 24, 3),
        ("noxy,ncuvxy->ocuv", 32, 30, 3),
    ],
)
def test_pixels_are_loaded_once_for_several_taps(spec: str, channels: int, size: int, k: int) -> None:
    """What one row needs with a tap is what its neighbour needs with the next: taken together, loads are far
    fewer than one for two multiply-adds, and nothing is spilled."""
    machine, cpu = TARGETS["avx512"]
    program = schedule(windows(spec, 4, 32, channels, size, k), machine)
    lines = hot_loops(compile_program(program, x86(*cpu), use_cache=False).assembly())[0]
    fused = [line for line in lines if line.startswith("vfmadd")]
    assert len(fused) >= 36
    assert sum(map(memory, lines)) <= len(fused) * 0.46
    assert not any("rsp" in line and "mm" in line for line in lines)


def test_images_results_and_blocks_come_ahead() -> None:
    """Of many images, a tile fetches a line of the next one, where the sums of the last block of k will go
    and, for a gradient of weights, what will be packed next. Of few images it fetches nothing."""
    machine, _ = TARGETS["avx512"]
    forward, weight = "ocuv,ncuvxy->noxy", "noxy,ncuvxy->ocuv"

    def fetched(spec: str, images: int) -> list[str]:
        text = print_program(schedule(windows(spec, images, 32, 64, 24), machine))
        return [line.strip() for line in text.splitlines() if "prefetch" in line]

    lines = fetched(forward, 32)
    assert sum(line.startswith("prefetch x[") for line in lines) == 1
    assert any(line.startswith("prefetch write") for line in lines)
    assert any(line.startswith("prefetch y[") for line in fetched(weight, 32))
    assert not fetched(forward, 2) and not fetched(weight, 2)
