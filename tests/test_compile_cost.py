"""What compiling costs, by counting: equal layers share code, work grows linearly with depth, and parts of a
program compiled by several threads are what one thread makes of them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from codegen_tools import program
from tracegrad.backends.llvm import parts
from tracegrad.backends.llvm.codegen_program import generate, generate_parts
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.backends.llvm.engine import Engine
from tracegrad.backends.llvm.target import CompileError, host_target
from tracegrad.ir import expr
from tracegrad.ir.collector import collector_paused
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_shape import Shape

TARGET = host_target()

TWICE = """
  input x: f32[20]
  input w: f32[20]
  output y: f32[20]
  output z: f32[20]
  output t: f32[20]
  returns y, z, t
  arena_bytes 128
  kernel { for i in 20 serial {
    let a: f32 = x[i]*w[i]
    t[i] = a + a
  } }
  kernel { for j in 20 serial {
    let b: f32 = t[j]*t[j]
    y[j] = b + b
  } }
  kernel { for k in 20 serial {
    let c: f32 = w[k]*x[k]
    z[k] = c + c
  } }
"""


def functions(text: str) -> list[str]:
    return [line.split("@")[1].split("(")[0] for line in text.split("\n") if line.startswith("define ")]


def test_kernels_of_one_shape_are_one_function() -> None:
    p = program(TWICE)
    one, two, three = [Shape(k) for k in p.kernels]
    assert one.key == three.key and [b.name for b in three.buffers] == ["x", "w", "z"]
    assert one.key != two.key  # it reads one buffer twice
    assert functions(generate(p, TARGET)) == ["k0_k", "k1_k", "run", "repeat"]
    arrays = [np.linspace(-1, 1, 20, dtype=np.float32), np.linspace(2, 3, 20, dtype=np.float32)]
    for got, want in zip(compile_program(p, use_cache=False).call(arrays), run_program(p, arrays)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "change",
    [
        ("w[k]*x[k]", "w[k]*x[19 - k]"),
        ("c + c", "c + f32:1.0"),
        ("c + c", "c - c"),
        ("for k in 20 serial", "for k in 20 unroll"),
        ("for k in 20 serial", "for k in 19 serial"),
        ("input w: f32[20]", "arena w: f32[20] @ 0"),  # its address is a multiple of 64
        ("output z: f32[20]", "output z: f32[21]"),
    ],
)
def test_kernels_that_differ_do_not_share(change: tuple[str, str]) -> None:
    p = program(TWICE.replace(*change))
    assert len(functions(generate(p, TARGET))) == 5


def test_kernels_whose_buffers_overlap_do_not_share() -> None:
    """Both copy, one within a buffer's bytes: its reads and writes keep their order."""
    p = program("""
      input x: f32[32]
      output y: f32[16]
      arena a: f32[16] @ 0
      arena b: f32[16] @ 64
      arena c: f32[32] @ 0
      returns y
      arena_bytes 128
      kernel {
        for i in 32 serial { c[i] = x[i] }
      }
      kernel {
        for i in 16 serial { a[i] = b[i] + f32:1.0 }
      }
      kernel {
        for i in 16 serial { a[i] = c[i] + f32:1.0 }
      }
      kernel {
        for i in 16 serial { y[i] = a[i] }
      }
    """)
    x = np.arange(32, dtype=np.float32)
    assert len({Shape(k).key for k in p.kernels}) == 4
    np.testing.assert_array_equal(compile_program(p, use_cache=False).call([x])[0], x[16:] + 2)


def test_loops_around_kernels_are_arguments() -> None:
    """The same kernel in two loops, over different variables."""
    p = program("""
      input x: f32[6,5]
      output y: f32[6,5]
      output z: f32[6,5]
      returns y, z
      repeat t in 6 {
        kernel {
          for i in 5 serial { y[t, i] = x[t, i] + f32:1.0 }
        }
      }
      repeat u in 6 reverse {
        kernel {
          for i in 5 serial { z[u, i] = y[u, i] + f32:1.0 }
        }
      }
    """)
    assert functions(generate(p, TARGET)) == ["k0_k", "run", "repeat"]
    x = np.arange(30, dtype=np.float32).reshape(6, 5)
    for got, add in zip(compile_program(p, use_cache=False).call([x]), (1, 2)):
        np.testing.assert_array_equal(got, x + np.float32(add))


def _deep(layers: int) -> Any:
    """A training step of a deep network; its loop program, and how many expressions scheduling made."""
    tg.manual_seed(0)
    nn = tg.nn
    blocks: list[Any] = []
    for _ in range(layers):
        blocks += [nn.Linear(24, 24), nn.LayerNorm(24), nn.GELU()]
    net = nn.Sequential(*blocks, nn.Linear(24, 5))
    x, y = tg.randn(16, 24), tg.randint(5, (16,))
    optimizer = tg.optim.AdamW(net.parameters())

    @tg.compile
    def step() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_depth_costs_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the layers: at most 2.2 times the graph, the scheduler's expressions and visits, and hardly more
    code."""
    made = [0]
    real = expr.Prim.__init__

    def count(self: Any, *args: Any) -> None:
        made[0] += 1
        real(self, *args)

    monkeypatch.setattr(expr.Prim, "__init__", count)
    costs = []
    for layers in (4, 8):
        made[0] = 0
        lowered = _deep(layers).lower()
        program = lowered.loops
        text = "".join(generate_parts(program, TARGET))
        nodes = sum(len(r.graph.nodes) for r in lowered.records)
        costs.append((len(lowered.graph.nodes), nodes, made[0], len(program.kernels), len(text)))
    (nodes, passes, exprs, kernels, text), twice = costs[0], costs[1]
    assert twice[0] <= 2.2 * nodes and twice[1] <= 2.2 * passes
    assert twice[2] <= 2.2 * exprs and twice[3] <= 2.2 * kernels
    assert twice[4] <= 1.25 * text


def test_parts_are_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in many modules does what it does in one, whatever the number of threads that compile it."""
    monkeypatch.setattr("tracegrad.backends.llvm.codegen_program._INLINE_CHARACTERS", 0)
    monkeypatch.setattr("tracegrad.backends.llvm.codegen_program._PART_CHARACTERS", 1000)
    loops = _deep(2).lower().loops
    texts = list(generate_parts(loops, TARGET))
    assert len(texts) > 5 and "define void @run" in texts[-1]
    whole = Engine(cache=None).compile(generate(loops, TARGET))
    one, three = [Engine(cache=None).compile(lambda: iter(texts), key="k", jobs=n) for n in (1, 3)]
    assert one.objects == three.objects and len(one.objects) == len(texts)
    assert one.symbols == three.symbols == whole.symbols == ("run", "repeat")
    rng = np.random.default_rng(0)
    results = []
    for module in (whole, one, three):
        native = compile_program(loops, use_cache=False)
        native.run_address = module.address("run")
        arrays = [
            rng.integers(0, 4, b.shape).astype(b.dtype.numpy)
            if b.dtype.kind != "f"
            else np.full(b.shape, 0.25, b.dtype.numpy)
            for b in loops.inputs
        ]
        rng = np.random.default_rng(0)
        results.append([*native.call(arrays), *arrays])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_failing_part_is_reported() -> None:
    texts = [f"define void @f{i}() {{ ret void }}" for i in range(5)]
    texts[2] = "define nonsense"
    with pytest.raises(CompileError, match="invalid LLVM IR"):
        Engine(cache=None).compile(lambda: iter(texts), key="k", jobs=3)

    def broken() -> Iterator[str]:
        yield from texts[:2]
        raise CompileError("cannot go on")

    with pytest.raises(CompileError, match="cannot go on"):
        Engine(cache=None).compile(broken, key="k", jobs=3)
    assert parts.each(iter("abc"), str.upper, 4) == ["A", "B", "C"]


def test_the_longest_part_that_waits_goes_first() -> None:
    """And Python's lock changes hands soon until all are done, or one failed."""
    order: list[str] = []
    intervals: list[float] = []

    def work(text: str) -> int:
        order.append(text)
        intervals.append(sys.getswitchinterval())
        return len(text)

    before = sys.getswitchinterval()
    assert parts.each(iter(["bb", "a", "dddd", "ccc"]), work, jobs=1) == [2, 1, 4, 3]
    assert order == ["dddd", "ccc", "bb", "a"]
    assert max(intervals) < before == sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError):
        parts.each(iter(["a", "b"]), lambda text: 1 // 0, jobs=2)
    assert sys.getswitchinterval() == before


def test_the_collector_is_only_paused() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
        _ = 1 // 0
    assert gc.isenabled()
    tg.compile(lambda: tg.ones(3) * 2)()
    assert gc.isenabled()
