"""Contractions on tensor cores, and copies made ahead: what the schedule makes of them, in the interpreter of
the loop IR and under emulation with all accesses checked, and that nvcc takes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from cuda_tools import near
from schedule_graphs import build
from tracegrad.backends.cuda import emulate as emulation
from tracegrad.backends.cuda import nvcc
from tracegrad.backends.cuda.emit import CudaUnit, emit
from tracegrad.backends.cuda.emulate import emulate
from tracegrad.backends.cuda.traffic import table
from tracegrad.backends.gpu_schedule import schedule_gpu
from tracegrad.backends.machine import SM_75, SM_80, GpuModel
from tracegrad.ir.dtypes import BY_NAME, DType, float32
from tracegrad.ir.errors import VerifyError
from tracegrad.ir.graph import Graph
from tracegrad.ir.grid_interpreter import rounded
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_text import parse_program, print_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type
from tracegrad.runtime.cuda_lowered import CudaLowered

needs_gxx = pytest.mark.skipif(not emulation.available(), reason="emulating CUDA takes g++")
needs_nvcc = pytest.mark.skipif(not nvcc.available(), reason="nvcc is not installed")

HIGH = replace(SM_80, matmul_precision="high")
#: few multiprocessors: large tiles; many: sums in parts
MACHINES = {"few": replace(HIGH, sms=2), "many": replace(HIGH, sms=64)}
SPECS = ["mk,kn->mn", "mk,nk->nm", "km,kn->mn", "bmk,bnk->bmn"]
SIZES = {"even": (128, 64, 96), "ragged": (70, 36, 72), "odd": (67, 35, 130)}


def contraction(spec: str, size: tuple[int, int, int], dtype: DType) -> Graph:
    """With an epilogue in f32."""
    sizes = {**dict(zip("mnk", size)), "b": 2}
    operands, out = spec.split("->")
    x, y = operands.split(",")
    types = {n: Type(dtype, tuple(sizes[c] for c in s)) for n, s in (("x", x), ("y", y))}
    types["w"] = Type(dtype, (sizes[out[-1]],))
    graph = build("c", types, lambda b, x, y, w: b.relu(b.add(b.contract(x, y, spec=spec), w)))
    return optimize(graph)


def arrays_of(graph: Graph, exact: bool = True) -> list[np.ndarray]:
    """Numbers that bf16 holds, or any."""
    rng = np.random.default_rng(4)
    if exact:
        return [(rng.integers(-8, 9, v.type.shape) / 8).astype(v.type.dtype.numpy) for v in graph.inputs]
    return [rng.normal(size=v.type.shape).astype(v.type.dtype.numpy) for v in graph.inputs]


def units() -> tuple[CudaUnit, list[tuple[str, Graph]]]:
    """Everything once, in one unit."""
    graphs: list[tuple[str, Graph]] = []
    programs = []
    for k, (machine, spec, name) in enumerate((m, s, n) for m in MACHINES for s in SPECS for n in SIZES):
        kind = ("f32", "f16", "bf16")[k % 3]
        graph = contraction(spec, SIZES[name], BY_NAME[kind])
        graphs.append((f"{kind} {spec} {name} {machine}", graph))
        programs.append(schedule_gpu(graph, MACHINES[machine]))
    return emit(programs, "contractions"), graphs


def test_schedules_mean_the_contraction() -> None:
    unit, graphs = units()
    for program, (name, graph) in zip(unit.programs, graphs):
        verify_program(program)
        text = print_program(program)
        assert print_program(parse_program(text)) == text
        assert "mma." in text, name
        arrays = arrays_of(graph)
        for g, w in zip(run_program(program, [a.copy() for a in arrays]), evaluate(graph, arrays)[0]):
            near(g, np.asarray(w), name, 1e-5 if g.dtype == np.float32 else 1e-2)


@needs_gxx
def test_they_run_under_emulation() -> None:
    unit, graphs = units()
    run = emulate(unit, counted=True)
    for i, (name, graph) in enumerate(graphs):
        arrays = arrays_of(graph)
        (got,), (want,) = run.call([a.copy() for a in arrays], i), evaluate(graph, arrays)[0]
        near(got, np.asarray(want), name, 1e-5 if got.dtype == np.float32 else 1e-2)
    # Narrow copies of rows that are not aligned may meet in a bank.
    whole = [t for t in run.traffic() if t.shared and (not t.write or t.bytes == 16)]
    conflicts = [t for t in whole if t.cost > t.least]
    assert not conflicts, table(conflicts, text=unit.text)


@needs_gxx
def test_where_tensor_cores_do_not_take_a_type_lanes_do() -> None:
    """What an architecture without them runs: the factors go round by shuffles."""
    graphs = [contraction("mk,nk->nm", SIZES["even"], BY_NAME[kind]) for kind in ("f32", "f16", "bf16")]
    unit = emit([schedule_gpu(g, MACHINES["few"]) for g in graphs])
    run = emulate(replace(unit, text="#define EMULATED_LANES\n" + unit.text), checked=True)
    for i, graph in enumerate(graphs):
        arrays = arrays_of(graph)
        (got,), (want,) = run.call([a.copy() for a in arrays], i), evaluate(graph, arrays)[0]
        near(got, np.asarray(want), graph.name, 1e-5 if got.dtype == np.float32 else 1e-2)


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80"])
def test_nvcc_takes_them(architecture: str) -> None:
    """One text for all architectures, also where tensor cores take none of its types."""
    unit = units()[0]
    nvcc.check(unit.text if architecture == "sm_80" else emit(unit.programs[:3]).text, architecture)


def test_large_products_are_deeply_pipelined() -> None:
    """More shared memory than a block has without asking; warps of 64 x 64 sums."""
    graph = contraction("mk,nk->mn", (1024, 1024, 512), BY_NAME["bf16"])
    program = schedule_gpu(graph, SM_80)
    verify_program(program)
    text = print_program(program)
    assert "barrier copies 2" in text and "matrices.x4" in text and "batch" in text
    assert print_program(parse_program(text)) == text
    unit = emit(program)
    (function,) = unit.functions
    assert function.dynamic_bytes == function.shared_bytes == 4 * (128 + 128) * 32 * 2
    launch = f"LAUNCH_SHARED(k0_contract, dim3(8, 8), dim3(128), {function.dynamic_bytes}, stream"
    assert launch in unit.text


@needs_gxx
def test_sums_in_parts() -> None:
    """Few sums of many terms each: parts by tensor cores, and a warp for each sum that adds them up."""
    graph = contraction("km,kn->mn", (32, 16, 4096), BY_NAME["bf16"])
    program = schedule_gpu(graph, replace(SM_80, sms=64))
    first, last = (print_program(program).partition('kernel "k1')[i] for i in (0, 2))
    assert "mma.bf16" in first and "part" in first and "warp.add" in last
    arrays = arrays_of(graph)
    (got,) = emulate(program, checked=True).call([a.copy() for a in arrays])
    near(got, np.asarray(evaluate(graph, arrays)[0][0]), "parts", 1e-2)


@needs_gxx
@pytest.mark.parametrize("spec", ["mk,nk->mn", "km,kn->mn"])
def test_a_large_tile_under_emulation(spec: str) -> None:
    graph = contraction(spec, (128, 256, 224), BY_NAME["bf16"])
    unit = emit(schedule_gpu(graph, replace(SM_80, sms=1)))
    assert unit.functions[0].dynamic_bytes > 48 << 10
    run = emulate(unit, counted=True)
    arrays = arrays_of(graph)
    (got,), (want,) = run.call([a.copy() for a in arrays]), evaluate(graph, arrays)[0]
    near(got, np.asarray(want), spec, 1e-2)
    assert all(t.cost == t.least for t in run.traffic() if t.shared or not t.write)


def test_factors_are_rounded_to_tf32_where_that_is_allowed() -> None:
    graph = contraction("mk,kn->mn", (128, 64, 96), float32)
    x, y, w = arrays_of(graph, exact=False)
    exact = np.maximum(x.astype(np.float64) @ y + w, 0)
    short = np.maximum(rounded(x, "tf32").astype(np.float64) @ rounded(y, "tf32") + w, 0)
    (got,) = run_program(schedule_gpu(graph, HIGH), [x, y, w])
    assert np.abs(got - short).max() < 1e-5 < 1e-4 < np.abs(got - exact).max()
    (got,) = run_program(schedule_gpu(graph, SM_80), [x, y, w])
    assert np.abs(got - exact).max() < 5e-5


def test_rounding_to_tf32() -> None:
    x = np.array([1, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, np.inf, -np.inf, np.nan, 0.0, 3e38], np.float32)
    want = np.array([1, 1 + 2**-10, 1, -1 - 2**-10, np.inf, -np.inf, np.nan, 0.0, x[-1]], np.float32)
    want[-1] = (x[-1:].view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32)[0]
    np.testing.assert_array_equal(rounded(x, "tf32"), want)


@pytest.mark.parametrize(
    ("machine", "dtype", "mma", "ahead"),
    [
        (SM_80, "f32", "", True), (HIGH, "f32", "mma.tf32", True), (HIGH, "f64", "", True),
        (SM_80, "bf16", "mma.bf16", True), (SM_80, "f16", "mma.f16", True),
        (SM_75, "f16", "mma.f16", False), (SM_75, "bf16", "", False),
        (replace(SM_75, matmul_precision="high"), "f32", "", False),
    ],
)  # fmt: skip
def test_which_unit_computes_what(machine: GpuModel, dtype: str, mma: str, ahead: bool) -> None:
    """Tensor cores take halves always, f32 if the precision allows it, and f16 alone before sm_80."""
    text = print_program(schedule_gpu(contraction("mk,kn->mn", (128, 64, 96), BY_NAME[dtype]), machine))
    assert (mma in text) if mma else ("mma." not in text)
    assert ("copy " in text and "barrier copies" in text) == ahead


@needs_gxx
def test_a_convolution_on_tensor_cores() -> None:
    def body(b: Any, x: Any, w: Any) -> Any:
        return b.relu(b.convolution(x, w, stride=(1, 1), padding=(1, 1), dilation=(1, 1)))

    types = {"x": Type(float32, (4, 8, 16, 16)), "w": Type(float32, (16, 8, 3, 3))}
    graph = optimize(build("conv", types, body))
    program = schedule_gpu(graph, HIGH)
    assert "mma.tf32" in print_program(program)
    arrays = arrays_of(graph)
    want = np.asarray(evaluate(graph, arrays)[0][0])
    near(emulate(program, checked=True).call([a.copy() for a in arrays])[0], want, "conv", 1e-5)


def test_the_setting_has_pytorchs_name_and_holds_for_what_is_lowered_next() -> None:
    assert tg.get_float32_matmul_precision() == "highest"
    step = tg.compile(lambda x, y: x @ y, name="product")
    x, y = tg.ones(128, 96), tg.ones(96, 64)
    try:
        tg.set_float32_matmul_precision("high")
        assert "mma_tf32(acc" in step.lower(x, y, backend="cuda").as_text()
        tg.set_float32_matmul_precision("highest")
        assert "mma_tf32" not in step.lower(x, y, backend="cuda").as_text()
        with pytest.raises(ValueError, match=r"set_float32_matmul_precision\('low'\): expected 'highest'"):
            tg.set_float32_matmul_precision("low")
    finally:
        tg.set_float32_matmul_precision("highest")


@needs_gxx
def test_a_training_step_with_tf32_is_near_the_cpus() -> None:
    """Gradients of two layers, on tensor cores forward and backward."""
    tg.manual_seed(0)
    model = tg.nn.Sequential(tg.nn.Linear(64, 96), tg.nn.Tanh(), tg.nn.Linear(96, 64))

    @tg.compile
    def step(x: tg.Tensor, y: tg.Tensor) -> list[tg.Tensor]:
        loss = tg.nn.functional.mse_loss(model(x), y)
        return [loss, *tg.autograd.grad(loss, list(model.parameters()))]

    x, y = tg.randn(128, 64), tg.randn(128, 64)
    lowered = step.lower(x, y)
    cuda = CudaLowered(lowered, precision="high")
    assert cuda.as_text("loops").count("mma.tf32") >= 3
    inputs = [np.asarray(p.detach().numpy()) for p in model.parameters()]
    arrays = {a.shape: a for a in (*inputs, x.numpy())}
    given = [y.numpy() if v.name == "y" else arrays[v.type.shape] for v in lowered.graph.inputs]
    got = cuda.emulated(checked=True).call([a.copy() for a in given])
    want, _ = evaluate(lowered.graph, given)
    for g, w in zip(got, want, strict=True):
        near(g, np.asarray(w), "tf32", 5e-3)


WARP = """program "p" {{
  input x: f32[64]
  output y: f32[64]
  returns y
  kernel "k" "" flops=0 bytes=0 {{ for b in 1 block {{
    alloc shared s: f32[64]
    for t in 32 thread {{
      alloc register c: f32[4]
      alloc register a: f32[4]
      alloc register h: f16[4]
      for i in 4 unroll {{ c[i] = f32:0.0 a[i] = x[t] }}
      {0}
    }}
  }} }}
}}"""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("mma.tf32 c[0], a[0], h[0]", "mma.tf32 of h"),
        ("mma.f16 c[0], a[0], h[0]", "mma.f16 of a"),
        ("mma.tf32 s[0], a[0], a[0]", "mma.tf32 of s"),
        ("copy s[t] = a[0]", "a copy ahead to s is not from global to shared memory"),
        ("copy y[t] = x[t]", "a copy ahead to y is not from global to shared memory"),
        ("copy s[t] = x[t] if t < 3", "a copy ahead to s is not from global to shared memory"),
    ],
)
def test_their_form_is_verified(line: str, why: str) -> None:
    verify_program(parse_program(WARP.format("mma.tf32 c[0], a[0], a[0] copy s[t] = x[t]")))
    with pytest.raises(VerifyError, match=why):
        verify_program(parse_program(WARP.format(line)))


def test_some_threads_of_a_warp_have_no_product() -> None:
    program = parse_program(WARP.format("if t < 16 { mma.tf32 c[0], a[0], a[0] }"))
    with pytest.raises(VerifyError, match="some threads of a warp only"):
        run_program(program, [np.zeros(64, np.float32)])
