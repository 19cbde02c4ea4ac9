"""The memory planner: buffers alive together never overlap, dead ones give their place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tracegrad.backends.memory import ALIGNMENT, lifetimes, plan
from tracegrad.ir import dtypes
from tracegrad.ir.expr import Const, Load
from tracegrad.ir.loops import Buffer, Kernel, LoopProgram, Store


def program(sizes: list[int], lives: list[tuple[int, int]], kernels: int) -> LoopProgram:
    """Buffer b is written in kernel lives[b][0] and read up to lives[b][1]."""
    out = Buffer("y", dtypes.float32, (1,), "output")
    buffers = [Buffer(f"t{i}", dtypes.float32, (n,), "arena") for i, n in enumerate(sizes)]
    zero = (Const(0),)
    p = LoopProgram("p", [], [out])
    for k in range(kernels):
        body = [
            Store(b, zero, Const(0.0, dtypes.float32)) for b, (first, _) in zip(buffers, lives) if first == k
        ]
        body += [
            Store(out, zero, Load(b, zero)) for b, (first, last) in zip(buffers, lives) if first < k <= last
        ]
        p.steps.append(Kernel(f"k{k}", list(body)))
    return p


LIVES = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 300), min_size=n, max_size=n),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)).map(lambda t: (t[0], min(t[0] + t[1], 9))),
                 min_size=n, max_size=n),
    )
)  # fmt: skip


@given(LIVES)
def test_buffers_alive_together_never_overlap(case: tuple[list[int], list[tuple[int, int]]]) -> None:
    sizes, lives = case
    p = program(sizes, lives, 10)
    size = plan(p)
    found = lifetimes(p)
    assert {x.buffer.name: (x.first, x.last) for x in found} == {f"t{i}": t for i, t in enumerate(lives)}
    assert (
        size
        == p.arena_bytes
        == max(-(-(x.buffer.offset + x.buffer.nbytes) // ALIGNMENT) for x in found) * ALIGNMENT
    )
    for i, a in enumerate(found):
        assert a.buffer.offset % ALIGNMENT == 0
        for b in found[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = (
                a.buffer.offset + a.buffer.nbytes <= b.buffer.offset
                or b.buffer.offset + b.buffer.nbytes <= a.buffer.offset
            )
            assert apart or not together
    most = max(
        sum(-(-x.buffer.nbytes // ALIGNMENT) for x in found if x.first <= k <= x.last) for k in range(10)
    )
    assert most * ALIGNMENT <= size <= sum(-(-n * 4 // ALIGNMENT) * ALIGNMENT for n in sizes)


def test_a_chain_of_temporaries_takes_two_places() -> None:
    p = program([1000] * 6, [(i, i + 1) for i in range(6)], 7)
    assert plan(p) == 2 * 4032
    assert [b.name for b in p.temps] == [f"t{i}" for i in range(6)]


def test_a_gap_of_the_right_size_is_used() -> None:
    p = program([160, 16, 160, 16], [(0, 3), (0, 1), (0, 3), (2, 3)], 4)
    assert plan(p) == 640 + 640 + 64


def test_planning_again_changes_nothing() -> None:
    p = program([10, 20, 30], [(0, 2), (1, 3), (3, 4)], 5)
    first = plan(p), [b.offset for b in p.temps]
    assert (plan(p), [b.offset for b in p.temps]) == first
