"""The benchmarks for GPUs: their steps are what they say on the CPU, and the tables are made of the
figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tracegrad as tg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tracegrad.backends.cuda import emulate as emulation  # noqa: E402

from benchmarks.gpu import __main__ as bench  # noqa: E402
from benchmarks.gpu.worker import OfTorch, values  # noqa: E402
from benchmarks.gpu.workloads import WORKLOADS  # noqa: E402


@pytest.mark.peer
@pytest.mark.parametrize(
    "name", ["mlp", "convnet", "transformer", "gpt2-block-bf16", "matmul-4096-tf32", "gelu-chain"]
)
def test_steps_are_pytorchs(name: str) -> None:
    """With the same weights and data, the first values are the same."""
    pytest.importorskip("torch")
    w = WORKLOADS[name]
    try:
        found = {c: {"first": values(OfTorch(c, w, w.tiny, "cpu"))} for c in ("tracegrad", "torch.eager")}
    finally:
        tg.set_float32_matmul_precision("highest")
    far = bench.agreement(found)
    assert far is not None and far < (1e-2 if w.dtype == "bfloat16" else 1e-4), found


@pytest.mark.peer
@pytest.mark.parametrize("name", ["mlp", "convnet", "transformer", "gpt2-block-bf16", "softmax"])
def test_steps_in_jax_train(name: str) -> None:
    pytest.importorskip("jax")
    w = WORKLOADS[name]
    assert w.jax is not None
    step = w.jax(w.tiny, w.dtype)
    got = [float(step().reshape(-1)[0]) for _ in range(6)]
    if name == "softmax":
        assert 0 < got[0] < 1
    else:
        assert got[-1] < got[0]


def _figures(us: float, **more: Any) -> dict[str, Any]:
    return {"min_us": us, "median_us": us, "first": [2.0, 1.0], **more}


def test_rows_are_ratios_and_fractions() -> None:
    ceiling = {"from": "a test", "f32": 1e12, "bandwidth": 1e9}
    kernels = [["k", "mul", 7.0], ["j", "sum", 3.0]]
    figures = {
        "tracegrad": _figures(10.0, flops=4_000_000, bytes=2_000, kernels=kernels),
        "torch.eager": {**_figures(25.0), "first": [2.0, 1.02]}, "torch.compile": _figures(5.0),
        "jax": {"failed": "JAX's device is cpu, not cuda"},
    }  # fmt: skip
    cells = bench.row(WORKLOADS["mlp"], figures, ceiling)
    assert cells == ["mlp", "f32", "10", "2.50", "0.50", "", "40%", "20%", "2", "1e-02"]
    text = bench.report({"mlp": figures}, ceiling, "2026; a GPU")
    assert (
        "| mlp | f32 | 10 | 2.50 |" in text
        and "- mlp: jax: JAX's device is cpu" in text
        and "0.001 TB/s" in text
    )
    assert bench.slowest(figures, 1).splitlines()[1].split()[:3] == ["7", "us", "70%"]
    gone = bench.row(WORKLOADS["mlp"], {"tracegrad": {"failed": "x"}}, ceiling)
    assert gone[2] == "fails" and len(gone) == len(bench.HEAD) == len(cells)


def test_the_table_is_put_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(
        "# GPUs\n\nBefore.\n\n" + bench.MARKS[0] + "\n\nold\n\n" + bench.MARKS[1] + "\n\nAfter.\n"
    )
    bench.write(page, "new")
    assert page.read_text() == f"# GPUs\n\nBefore.\n\n{bench.MARKS[0]}\n\nnew\n\n{bench.MARKS[1]}\n\nAfter.\n"
    page.write_text("# GPUs\n")
    bench.write(page, "new")
    assert page.read_text() == f"# GPUs\n\n{bench.MARKS[0]}\n\nnew\n\n{bench.MARKS[1]}\n"
    assert all(m in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") for m in bench.MARKS)


@pytest.mark.skipif(not emulation.available(), reason="emulating takes g++")
def test_the_command_runs_on_the_emulated_device(tmp_path: Path) -> None:
    env = {**os.environ, "TRACEGRAD_CUDA": "emulate"}
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "mlp",
        "--tiny",
        "--contenders",
        "tracegrad",
        "--rounds",
        "2",
    ]
    words += [
        "--seconds",
        "0.001",
        "--kernels",
        "2",
        "--json",
        "f.json",
        "--write",
        str(tmp_path / "page.md"),
    ]
    words[words.index("f.json")] = str(tmp_path / "f.json")
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    ours = found["found"]["mlp"]["tracegrad"]
    assert ours["min_us"] > 0 and ours["flops"] > 0 and ours["bytes"] > 0 and ours["memory"] > 0
    assert len(ours["kernels"]) > 3 and all(us >= 0 for _, _, us in ours["kernels"])
    assert "emulated GPU" in (tmp_path / "page.md").read_text() and "us one by one" in done.stdout
    env["TRACEGRAD_CUDA"] = "off"
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no GPU can be used: TRACEGRAD_CUDA=off" in done.stderr
