"""Every way to compute a contraction, whatever the cost model would choose: random specs, windows, sizes
(odd, 1), tiles, panels and blocks. All ways but dot products add up in one order, so that they agree to the
bit; and with float64 sums they agree with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_graphs import build, f32
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.target import host_target
from tracegrad.backends.machine import AVX2, AVX512, SMALL, MachineModel
from tracegrad.backends.schedule import contract, schedule
from tracegrad.backends.schedule.tiles import Problem, Strategy, choose, cover
from tracegrad.ir.builder import Builder
from tracegrad.ir.graph import Graph
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.loops import If, statements
from tracegrad.ir.passes import optimize

MACHINE = AVX512 if host_target().vector_bytes == 64 else AVX2
SIZES = st.integers(1, 40)


def product(spec: str, sizes: dict[str, int], epilogue: bool) -> Graph:
    x, y = spec.split("->")[0].split(",")
    out = spec.split("->")[1]

    def body(b: Any, x: Any, y: Any, bias: Any) -> Any:
        c = b.contract(x, y, spec=spec)
        return b.relu(b.add(c, bias)) if epilogue else c

    shapes = ([sizes[c] for c in letters] for letters in (x, y, out[-1:]))
    return build("c", dict(zip(("x", "y", "bias"), (f32(*s) for s in shapes))), body)


def convolution(kind: str, sizes: dict[str, int], epilogue: bool) -> Graph:
    """A convolution, or a gradient of it, as a contraction over windows."""
    n, c, o, k = 1 + sizes["b"] % 3, sizes["c"] % 7 + 1, sizes["n"], 1 + sizes["k"] % 3
    h, w = sizes["m"] % 9 + 1, sizes["l"] + 1
    specs = {
        "forward": "ocuv,ncuvxy->noxy",
        "weight": "noxy,ncuvxy->ocuv",
        "small": "ocuv,ncuvxy->onxy",
    }
    other = (n, o, h, w) if kind == "weight" else (o, c, k, k)

    def body(b: Any, x: Any, y: Any) -> Any:
        seen = b.windows(x, size=(k, k), stride=(1, 1), dilation=(1, 1))
        out = b.contract(y, seen, spec=specs[kind])
        return b.relu(out) if epilogue else out

    return build("c", {"x": f32(n, c, h + k - 1, w + k - 1), "y": f32(*other)}, body)


def run(graph: Graph, way: Strategy, arrays: list[np.ndarray], machine: MachineModel) -> list[np.ndarray]:
    """Results with every contraction done in this way where it can be, else as the model says."""

    def chosen(p: Problem, machine: MachineModel) -> Strategy:
        q = p.swapped() if way.swap else p
        flat = way.flat and q.flat_n is not None
        pack_b = way.pack_b or flat or q.bn != 1
        kc = max(1, min(way.kc, q.K))
        nc = way.nc * way.nr * way.lanes if pack_b or len(q.inner) == 1 else 0
        if nc > (q.flat_n.size if flat and q.flat_n is not None else q.N):
            nc = 0
        mr = min(way.mr, q.M)
        merge = min(way.merge, len(q.m_others)) if not way.pack_a else 0
        if merge:
            mr = q.M * max(1, min(way.mr // q.M, q.m_others[merge - 1]))
        ahead, lanes = way.ahead, way.lanes
        return Strategy(
            way.swap, False, mr, way.nr, lanes, way.pack_a, pack_b, kc, 1.0, False, flat, nc, merge, ahead
        )

    held = contract._choose
    contract._choose = chosen if way.kc else choose
    try:
        program = schedule(graph, machine)
    finally:
        contract._choose = held
    verify_program(program)
    return compile_program(program, use_cache=False).call(arrays)


WAYS = st.builds(
    Strategy,
    swap=st.booleans(),
    dot=st.just(False),
    mr=st.integers(1, 20),
    nr=st.integers(1, 4),
    lanes=st.just(MACHINE.lanes(4)),
    pack_a=st.booleans(),
    pack_b=st.booleans(),
    kc=st.sampled_from([1, 7, 16, 48, 10_000]),
    cycles=st.just(1.0),
    spread=st.just(False),
    flat=st.booleans(),
    nc=st.sampled_from([0, 1, 2]),
    merge=st.integers(0, 2),
    ahead=st.booleans(),
)
#: the model's own choice is used where kc is 0
PLAIN = Strategy(False, False, 1, 1, MACHINE.lanes(4), False, False, 10_000, 1.0)


@settings(max_examples=40)
@given(
    st.sampled_from(["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->nm", "bmk,bkn->bmn", "mkl,cnkl->cmn"]),
    st.fixed_dictionaries(dict.fromkeys("mnklbc", SIZES)),
    st.booleans(),
    WAYS,
)
def test_products(spec: str, sizes: dict[str, int], epilogue: bool, way: Strategy) -> None:
    sizes["b"], sizes["c"] = sizes["b"] % 3 + 1, sizes["c"] % 4 + 2
    _check(product(spec, sizes, epilogue), way)


@settings(max_examples=40)
@given(
    st.sampled_from(["forward", "weight", "small"]),
    st.fixed_dictionaries(dict.fromkeys("mnklbc", SIZES)),
    st.booleans(),
    WAYS,
)
def test_windows(kind: str, sizes: dict[str, int], epilogue: bool, way: Strategy) -> None:
    _check(convolution(kind, sizes, epilogue), way)


def _check(graph: Graph, way: Strategy) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype("f") for v in graph.inputs]
    plain, got = (run(graph, w, arrays, MACHINE) for w in (PLAIN, way))
    for x, y in zip(plain, got):
        assert np.array_equal(x, y)
    (own,) = run(graph, Strategy(False, False, 1, 1, 1, False, False, 0, 1.0), arrays, MACHINE)
    np.testing.assert_allclose(own, plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("kind", ["forward", "weight"])
def test_the_number_of_threads_changes_no_bit(threads: int, kind: str) -> None:
    sizes = {"b": 2, "c": 6, "n": 70, "k": 2, "m": 8, "l": 19}
    graph = convolution(kind, sizes, True)
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(v.type.shape).astype("f") for v in graph.inputs]
    found = []
    for t in (1, threads):
        machine = MachineModel(
            MACHINE.vector_bytes, MACHINE.vector_registers, True, t, 1 << 14, 1 << 16, 1000, 64
        )
        found.append(compile_program(schedule(graph, machine), use_cache=False).call(arrays))
    assert all(np.array_equal(x, y) for x, y in zip(*found))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("spec", ["km,kn->mn", "mk,nk->mn", "mk,kn->mn"])
@pytest.mark.parametrize("sizes", [(70, 130, 90), (260, 33, 200), (9, 700, 300)])
def test_threads_share_products_and_packing(threads: int, spec: str, sizes: tuple[int, int, int]) -> None:
    """With small caches everything is packed, and packing is shared too: no bit depends on who does it."""
    graph = product(spec, dict(zip("mnk", sizes)), True)
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(v.type.shape).astype("f") for v in graph.inputs]
    found = []
    for t in (1, threads):
        machine = MachineModel(
            MACHINE.vector_bytes, MACHINE.vector_registers, True, t, 1 << 13, 1 << 16, 1000, 64
        )
        program = schedule(graph, machine)
        verify_program(program)
        found.append(compile_program(program, use_cache=False).call(arrays))
    x, y, bias = (a.astype(np.float64) for a in arrays)
    want = np.einsum(spec, x, y) + bias
    np.testing.assert_allclose(found[0][0], np.maximum(want, 0), rtol=1e-4, atol=1e-3)
    assert np.array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize("machine", [MACHINE, SMALL])
@pytest.mark.parametrize("m", [50, 75, 51])
def test_rows_in_two_tiles_are_updated_once(m: int, machine: MachineModel) -> None:
    """Where the last tile of rows begins in the one before, what is written over its old values, here a
    weight and its momentum, must not be updated twice."""
    lanes = machine.lanes(4)
    way = Strategy(False, False, 13 if m != 51 else 4, 1, lanes, False, False, 40, 1.0)
    assert cover(m, way.mr) == [(-(-m // way.mr), way.mr)]
    graph = Graph("g")
    b = Builder(graph)
    names = {"x": f32(40, m), "g": f32(40, 2 * lanes), "w": f32(m, 2 * lanes), "v": f32(m, 2 * lanes)}
    x, g, w, v = (graph.add_input(t, n) for n, t in names.items())
    moved = b.add(b.mul(v, b.const(0.9)), b.contract(x, g, spec="km,kn->mn"))
    graph.outputs = []
    graph.updates = {w: b.sub(w, b.mul(moved, b.const(0.1))), v: moved}
    with contract.fixed(way):
        program = schedule(optimize(graph), machine)
    verify_program(program)
    assert len(program.kernels) == 1 and any(isinstance(s, If) for s in statements(program.kernels[0].body))
    rng = np.random.default_rng(3)
    a = [rng.standard_normal(t.shape).astype("f") for t in names.values()]
    moved_, want = 0.9 * a[3] + a[0].T @ a[1], a[2].copy()
    want -= 0.1 * moved_
    compile_program(program, use_cache=False).call(a)
    np.testing.assert_allclose(a[2], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(a[3], moved_, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 3000), st.integers(1, 60), st.booleans())
def test_tiles_cover_all(n: int, tile: int, again: bool) -> None:
    tiles = cover(n, tile, again)
    size = sum(count * width for count, width in tiles)
    assert size >= n and all(width <= n for _, width in tiles)
    if size > n:
        assert again and len(tiles) == 1 and 25 * (size - n) <= n
