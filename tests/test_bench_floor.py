"""The floors of benchmarks: what a program has to move, and loops that do nothing but multiply or move."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tracegrad

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def floor() -> Any:
    """benchmarks/floor.py, which is no part of the package."""
    module = ModuleType("floor")
    sys.modules["floor"] = module
    text = (ROOT / "benchmarks" / "floor.py").read_text(encoding="utf-8")
    exec(compile(text, "floor.py", "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def loops(floor: Any) -> Any:
    return floor.Loops()


def moved(floor: Any, f: Callable[..., Any], *args: tracegrad.Tensor) -> int:
    return floor.traffic(tracegrad.compile(f).lower(*args).loops)


def test_inputs_are_read_and_outputs_written_once(floor: Any) -> None:
    a, b = tracegrad.randn(60, 70), tracegrad.randn(70, 80)
    assert moved(floor, lambda a, b: a @ b, a, b) == 4 * (60 * 70 + 70 * 80 + 60 * 80)
    assert moved(floor, lambda a: (a.exp() - a).sum(), a) == 4 * (60 * 70 + 1)
    assert moved(floor, lambda a: a.softmax(1), a) == 4 * 2 * 60 * 70


def test_state_is_read_and_written(floor: Any) -> None:
    w = tracegrad.randn(1000)

    def step() -> None:
        w.mul_(0.5)

    def reset() -> None:
        w.zero_()

    assert moved(floor, step) == 8000
    assert moved(floor, reset) == 4000


def test_of_a_gathered_table_what_is_named(floor: Any) -> None:
    w, i = tracegrad.randn(10000, 16), tracegrad.randint(10000, (50,))
    assert moved(floor, lambda w, i: w[i], w, i) == 50 * 8 + 2 * 50 * 16 * 4


def test_loops_read_their_slices(floor: Any) -> None:
    cell = tracegrad.nn.GRU(4, 8)
    x = tracegrad.randn(20, 5, 4)
    weights = sum(p.numel() for p in cell.parameters())
    least = 4 * (20 * 5 * 4 + weights + 20 * 5 * 8)
    assert least <= moved(floor, lambda x: cell(x)[0], x) <= least + 4 * 2 * 5 * 8


def test_multiply_adds_stay_in_registers(loops: Any) -> None:
    text = loops.assembly
    body = re.search(r"^arithmetic:(.*?)^\S+:.*?\n(.*?)^\s+j", text, re.S | re.M)
    assert body is not None
    if loops.size == 64:
        assert len(re.findall(r"vfmadd\w+ps\s+%zmm", body[2])) == loops.accumulators
        assert "(%r" not in body[2]


@pytest.mark.parametrize("n", [1, 3])
def test_arithmetic_is_done(loops: Any, n: int) -> None:
    lanes = loops.lanes * loops.accumulators
    room = (ctypes.c_float * lanes)(*[0.5] * lanes)
    loops.arithmetic(room, n)
    expected = 0.5
    for _ in range(n):
        expected = expected * 0.5 + 0.5
    assert list(room) == [expected] * lanes


def test_memory_is_moved(loops: Any) -> None:
    n = 16 * 8 * loops.size
    raw = np.zeros(3 * n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    a, b, c = (raw[start + k * n : start + (k + 1) * n].view(np.float32) for k in range(3))
    b[:], c[:] = np.arange(n // 4), 1
    address = [x.ctypes.data for x in (a, b, c)]
    for name in ("copy", "streamed"):
        a[:] = 0
        loops.moving[name](*address, n, 1)
        assert (a == b).all()
    loops.moving["add"](*address, n, 2)
    assert (a == b + 1).all()
    loops.moving["fill"](*address, n, 1)
    assert not a.any()
    for name, total in (("read", 16 * 1), ("streams", 16 * 3)):
        for x in (a, b, c):
            x[:] = 1
        loops.moving[name](*address, n, 1)
        assert (a[: loops.lanes] == total).all() and (a[loops.lanes :] == 1).all()


def test_the_best_of_all_measurements_counts(floor: Any) -> None:
    machine = floor.Machine()
    machine._flops = {1: 10e9, 2: 8e9}
    machine._bandwidth = {(1, 4096): 2e9, (2, 4096): 4e9, (2, 8192): 1e9}
    assert machine.floor(2, 20e3, 4096) == pytest.approx((2.0, 1.024))
    assert machine.floor(1, 20e3, 4096) == pytest.approx((2.0, 2.048))


def test_it_measures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.floor", "2", "100000"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.fullmatch(r'\{"flops": [\d.]+, "bandwidth": [\d.]+\}\n', done.stdout)


def bench(folder: Path, *args: str) -> tuple[str, dict[str, Any]]:
    """What a run of the benchmarks prints, and its figures."""
    path = folder / "figures.json"
    given = [
        "--against",
        "",
        "--only",
        "tracegrad",
        "--rounds",
        "2",
        "--seconds",
        "0.002",
        "--json",
        str(path),
    ]
    command = [sys.executable, "-m", "benchmarks", *args, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_a_table_with_floor(tmp_path: Path) -> None:
    text, figures = bench(tmp_path, "matmul-32x32x32")
    (ours,) = figures["matmul-32x32x32"].values()
    assert ours["bytes"] == 3 * 32 * 32 * 4 and ours["flops"] == 2 * 32**3
    assert 0 < ours["floor_us"] == max(ours["arithmetic_us"], ours["traffic_us"])
    for kind in ("cold", "warm"):
        assert 0 < ours[f"{kind}_s"] <= ours[f"{kind}_median_s"]
    assert ours["memory_mb"] > 1
    assert re.search(r"^floor .*; we reach \d+%$", text, re.M)


def test_a_table_by_threads(tmp_path: Path) -> None:
    text, figures = bench(tmp_path, "matmul-64x64x64", "--threads", "1,2")
    assert set(figures["matmul-64x64x64"]) == {"tracegrad@1", "tracegrad@2"}
    assert re.search(r"^  tracegrad .* times as fast$", text, re.M)
    assert re.search(
        r"^slower on 2 threads than on 1: (none|matmul-64x64x64 \(tracegrad, 0\.\d\d\))$", text, re.M
    )
