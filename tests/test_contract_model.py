"""What the cost model of contractions chooses, by kind of shape, each measured against its rivals."""

from __future__ import annotations

import pytest
from schedule_graphs import build, f32
from tracegrad.backends.machine import AVX512, MachineModel
from tracegrad.backends.schedule import contract as groups
from tracegrad.backends.schedule import schedule
from tracegrad.backends.schedule.tiles import Problem, Strategy, choose, rows_first


def chosen(
    a: str, b: str, m: int, k: int, n: int, machine: MachineModel = AVX512
) -> tuple[Problem, Strategy]:
    """The problem as the scheduler states it, and its way."""
    found: list[tuple[Problem, Strategy]] = []

    def look(p: Problem, machine: MachineModel) -> Strategy:
        way = choose(p, machine)
        found.append((p, way))
        return way

    sizes = {"m": m, "n": n, "k": k}
    shapes = {"x": f32(*[sizes[c] for c in a]), "y": f32(*[sizes[c] for c in b])}
    graph = build("c", shapes, lambda g, x, y: g.contract(x, y, spec=f"{a},{b}->mn"))
    with groups.tuned(look):
        schedule(graph, machine)
    return found[0]


@pytest.mark.parametrize("m,k,n", [(256, 784, 1024), (250, 1000, 900), (1024, 512, 512), (100, 2048, 2000)])
def test_rows_along_k_are_packed_by_turning(m: int, k: int, n: int) -> None:
    """x @ w.T with much work: dot products would read all of w again for every few rows."""
    _, way = chosen("mk", "nk", m, k, n)
    assert not way.dot and way.pack_b and way.mr * way.nr >= 20


@pytest.mark.parametrize("m,k,n", [(256, 1024, 10), (100, 300, 4)])
def test_few_columns_along_k_are_dot_products(m: int, k: int, n: int) -> None:
    _, way = chosen("mk", "nk", m, k, n)
    assert way.dot


@pytest.mark.parametrize("m,k,n", [(8, 1024, 1024), (4, 2048, 1000), (7, 3000, 640), (16, 900, 2048)])
def test_few_rows_stream_along_memory(m: int, k: int, n: int) -> None:
    """B is used so few times that packing does not pay, and read along its rows, a few at a time."""
    _, way = chosen("mk", "kn", m, k, n)
    assert not (way.pack_a or way.pack_b or way.swap) and way.kc <= 64 and way.nc >= 256


@pytest.mark.parametrize("m,k,n", [(96, 1024, 128), (128, 1024, 128), (120, 900, 192), (384, 1024, 128)])
def test_small_weight_gradients_take_k_in_blocks(m: int, k: int, n: int) -> None:
    """Many rows of two narrow matrices: a block of both stays in the first cache, nothing is packed."""
    _, way = chosen("km", "kn", m, k, n)
    assert not (way.pack_a or way.pack_b) and 0 < way.kc <= 64


@pytest.mark.parametrize("m,k,n", [(1024, 256, 1024), (784, 250, 1000), (512, 512, 512)])
def test_large_weight_gradients_pack_both(m: int, k: int, n: int) -> None:
    _, way = chosen("km", "kn", m, k, n)
    assert way.pack_a and way.pack_b


@pytest.mark.parametrize("a,b", [("mk", "kn"), ("mk", "nk"), ("km", "kn")])
@pytest.mark.parametrize("m,k,n", [(256, 784, 1024), (1024, 128, 384), (384, 1024, 128), (64, 64, 2048)])
def test_two_threads_have_something_to_share(a: str, b: str, m: int, k: int, n: int) -> None:
    """With two threads the same order of summation, and twice as many blocks where there were too few."""
    _, one = chosen(a, b, m, k, n)
    p, two = chosen(a, b, m, k, n, MachineModel(64, 32, True, 2, 48 << 10, 1280 << 10, 50_000, 64))
    assert one.dot == two.dot
    q = p.swapped() if two.swap else p
    width = two.nc or two.nr * two.lanes
    assert q.N // width >= 2 or (not two.nc and q.M // two.mr >= 4)


@pytest.mark.parametrize("size", [32, 64, 100, 256, 317, 512, 768, 1024])
def test_tiles_fill_the_registers(size: int) -> None:
    _, way = chosen("mk", "kn", size, size, size)
    assert 20 <= way.mr * way.nr <= 28


@pytest.mark.parametrize("m,k,n", [(128, 32, 9216), (256, 24, 4100), (100, 40, 8000)])
def test_large_results_are_made_row_after_row(m: int, k: int, n: int) -> None:
    """Gradients of wide weights by small batches: a tile of columns for all rows would go to another page of
    the result, and of what an update reads, for every row."""
    p, way = chosen("km", "kn", m, k, n)
    assert way.nc or rows_first(way.pack_b and way.kc >= p.K, p.K * p.N * p.itemsize, AVX512)


@pytest.mark.parametrize("m,k,n", [(32, 128, 9216), (32, 128, 9000), (64, 200, 4000)])
def test_far_rows_of_few_products_are_fetched_ahead(m: int, k: int, n: int) -> None:
    _, way = chosen("mk", "kn", m, k, n)
    assert way.ahead and not way.pack_b and way.kc == k


@pytest.mark.parametrize("m,k,n", [(128, 1024, 512), (48, 4096, 512), (96, 3072, 768)])
def test_the_next_rows_of_a_far_block_are_fetched_ahead(m: int, k: int, n: int) -> None:
    """By many tiles of rows; few would do little else, and near rows need nobody to fetch them."""
    _, way = chosen("km", "kn", m, k, n)
    assert way.ahead and not way.pack_b and way.kc < k and way.nc
    assert not chosen("km", "kn", 8, k, n)[1].ahead and not chosen("km", "kn", m, 300, 128)[1].ahead
