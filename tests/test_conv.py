"""Convolutions: their windows, their sums over windows, layers; against PyTorch, and native code against the
interpreter."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from conv_cases import CONVS, Case, arrays, compiled, function, run
from tracegrad.backends.machine import AVX2, AVX512, SMALL, MachineModel
from tracegrad.backends.schedule import schedule
from tracegrad.backends.schedule.contract import ContractGroup
from tracegrad.backends.schedule.plan import Planner
from tracegrad.backends.schedule.tiles import Strategy
from tracegrad.ir.builder import Builder
from tracegrad.ir.dtypes import float32
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.loop_interpreter import run_program
from tracegrad.ir.loop_verifier import verify_program
from tracegrad.ir.passes import optimize
from tracegrad.ir.types import Type

F = tg.nn.functional


def ids(cases: list[Case]) -> list[str]:
    return [f"{name}-{k}" for k, (name, _, _) in enumerate(cases)]


def close(got: list[np.ndarray], want: list[np.ndarray], rtol: float = 1e-9, atol: float = 1e-9) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)


@pytest.mark.peer
@pytest.mark.parametrize(("name", "shapes", "attrs"), CONVS, ids=ids(CONVS))
def test_convolution_like_pytorch(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    """Values, gradients and second derivatives."""
    torch = pytest.importorskip("torch")
    data = arrays(shapes)
    got, want = (run(lib, function(lib, name, attrs), data, order=2) for lib in (tg, torch))
    close(got, want)


@pytest.mark.parametrize(("name", "shapes", "attrs"), CONVS, ids=ids(CONVS))
def test_native_convolution(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    """Compiled in f32 against the interpreter in f64."""
    data = arrays(shapes, 1)
    f = function(tg, name, attrs)
    close(compiled(f, data), run(tg, f, data), rtol=2e-5, atol=2e-5)


LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv1d", (4, 6, 3), {"padding": "same", "groups": 2}, (2, 4, 7)),
    ("Conv1d", (4, 6, 4), {"padding": "same", "padding_mode": "circular"}, (2, 4, 7)),
    ("Conv2d", (3, 4, 3), {}, (2, 3, 6, 7)),
    (
        "Conv2d",
        (3, 4, (3, 2)),
        {"stride": (2, 1), "padding": (1, 0), "dilation": 2, "bias": False},
        (3, 7, 6),
    ),
    ("Conv2d", (3, 4, 3), {"padding": 2, "padding_mode": "reflect"}, (2, 3, 6, 7)),
    ("Conv2d", (3, 4, 3), {"padding": (0, 2), "padding_mode": "replicate", "stride": 2}, (2, 3, 6, 7)),
    ("Conv3d", (2, 4, 2), {"groups": 2, "padding": "valid"}, (2, 2, 3, 4, 4)),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 5)),
    ("ConvTranspose2d", (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": (1, 0)}, (2, 3, 4, 5)),
    ("ConvTranspose3d", (2, 3, 2), {"dilation": 2, "bias": False}, (1, 2, 2, 3, 2)),
    ("Unfold", (2,), {"stride": 2, "padding": 1}, (2, 3, 5, 6)),
    ("Fold", ((4, 5), 2), {}, (2, 8, 12)),
]


@pytest.mark.peer
@pytest.mark.parametrize(("name", "args", "kwargs", "shape"), LAYERS, ids=[c[0] for c in LAYERS])
def test_layer_like_pytorch(name: str, args: Any, kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Text, parameters from the same seed, results, and the name of the gradient's function."""
    torch = pytest.importorskip("torch")
    (data,) = arrays((shape,))
    made = []
    for lib in (tg, torch):
        lib.manual_seed(5)
        layer = getattr(lib.nn, name)(*args, **kwargs)
        x = lib.tensor(data.tolist()).requires_grad_()
        out = layer(x)
        state = {k: v.detach().numpy() for k, v in layer.state_dict().items()}
        made.append((repr(layer), type(out.grad_fn).__name__, state, out.detach().numpy()))
    (text, _, state, out), (text2, _, state2, out2) = made
    assert text == text2
    assert list(state) == list(state2)
    for k in state:
        np.testing.assert_array_equal(state[k], state2[k])
    np.testing.assert_allclose(out, out2, rtol=1e-5, atol=1e-5)


def test_gradient_functions_have_pytorchs_names() -> None:
    x = tg.randn(2, 3, 6, 6, requires_grad=True)
    w = tg.randn(4, 3, 3, 3, requires_grad=True)
    assert F.conv2d(x, w).grad_fn.name() == "ConvolutionBackward0"
    assert F.conv_transpose2d(x, w.transpose(0, 1)).grad_fn.name() == "ConvolutionBackward0"
    assert F.unfold(x, 2).grad_fn.name() == "Im2ColBackward0"
    assert F.fold(F.unfold(x, 2), 6, 2).grad_fn.name() == "Col2ImBackward0"
    assert x.unfold(2, 3, 1).grad_fn.name() == "UnfoldBackward0"


@pytest.mark.peer
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv_tbc_like_pytorch(kernel: int) -> None:
    torch = pytest.importorskip("torch")
    data = arrays(((6, 2, 3), (kernel, 3, 4), (4,)))
    close(*(run(lib, lambda x, w, b, lib=lib: lib.conv_tbc(x, w, b, 1), data) for lib in (tg, torch)))


@pytest.mark.peer
def test_output_size_of_transposed_convolutions() -> None:
    torch = pytest.importorskip("torch")
    for lib in (tg, torch):
        layer = lib.nn.ConvTranspose2d(2, 3, 3, stride=3, padding=1)
        x = lib.zeros(1, 2, 4, 4)
        for size in ([10, 12], (1, 3, 11, 10)):
            assert tuple(layer(x, output_size=size).shape[2:]) == tuple(size)[-2:]
        with pytest.raises(ValueError, match="valid sizes range"):
            layer(x, output_size=(9, 10))


def test_convolutions_of_other_types() -> None:
    x, w = (a.round() for a in arrays(((1, 2, 5, 5), (3, 2, 3, 3))))
    exact = F.conv2d(tg.tensor(x.tolist()), tg.tensor(w.tolist())).numpy()
    for dtype in (tg.float64, tg.float16, tg.bfloat16, tg.int64):
        made = F.conv2d(tg.tensor(x.tolist()).to(dtype), tg.tensor(w.tolist()).to(dtype))
        assert made.dtype is dtype
        np.testing.assert_array_equal(made.to(tg.float32).numpy(), exact)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    """Bits of a large convolution and its gradients, against those of the first run."""
    from tracegrad.backends.llvm import pool

    before = pool.get_num_threads()
    data = arrays(((4, 16, 20, 20), (32, 16, 3, 3), (32,)))
    try:
        pool.set_num_threads(threads)
        made = compiled(lambda x, w, b: F.conv2d(x, w, b, padding=1), data)
        made += compiled(lambda x, w, b: F.conv2d(x, w, b, stride=2), data)
    finally:
        pool.set_num_threads(before)
    first = _FIRST.setdefault("bits", made)
    for a, b in zip(made, first):
        np.testing.assert_array_equal(a, b)


_FIRST: dict[str, list[np.ndarray]] = {}


def test_graphs_keep_convolutions_whole() -> None:
    """One op each for the result and the two gradients, until decomposition."""

    def step(x: Any, w: Any, b: Any) -> Any:
        loss = F.conv2d(x, w, b).sum()
        return loss, *tg.autograd.grad(loss, (x, w, b))

    tensors = [tg.tensor(a.tolist()).requires_grad_() for a in arrays(((2, 3, 6, 6), (4, 3, 3, 3), (4,)))]
    names = [n.op.name for n in tg.trace(step)(*tensors).nodes]
    assert {n: names.count(n) for n in set(names) if n.startswith("conv")} == {
        "convolution": 1,
        "convolution_input_grad": 1,
        "convolution_weight_grad": 1,
    }


def test_windows_need_no_buffer() -> None:
    """A padded convolution stores the padded input, and its columns nowhere."""
    x, w = tg.randn(2, 8, 32, 32), tg.randn(16, 8, 3, 3)
    loops = tg.compile(lambda x, w: F.conv2d(x, w, padding=1)).lower(x, w).loops
    sizes = [np.prod(b.shape) for b in loops.temps if b.space == "arena"]
    assert sum(sizes) <= 2 * 8 * 34 * 34 + 16 * 8 * 9 * 2


def test_unfold_is_a_view() -> None:
    x = tg.arange(12.0).reshape(3, 4)
    y = x.unfold(1, 2, 2)
    assert tuple(y.shape) == (3, 2, 2) and y.stride() == (4, 2, 1)
    y.mul_(-1)
    assert x.tolist() == [[-4.0 * i - j for j in range(4)] for i in range(3)]
    windows = tg.arange(5.0).unfold(0, 3, 1)
    assert windows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    with pytest.raises(RuntimeError, match="overlapping"):
        windows.add_(1)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda x, w: F.conv2d(x, w[:, :2]), RuntimeError, r"takes inputs of 2 channels, got f32\[2,3,6,6\]"),
    (
        lambda x, w: F.conv2d(x[:, :, :2], w),
        RuntimeError,
        r"kernel \[3, 3\].* is larger than the padded input",
    ),
    (lambda x, w: F.conv2d(x, w, groups=2), RuntimeError, "takes inputs of 6 channels"),
    (lambda x, w: F.conv2d(x, w[:3, :1], groups=2), RuntimeError, "can't be divided into groups=2"),
    (lambda x, w: F.conv2d(x, w, tg.zeros(3)), RuntimeError, r"expected a bias of shape \[4\]"),
    (lambda x, w: F.conv2d(x, w, stride=0), RuntimeError, "must be positive"),
    (lambda x, w: F.conv2d(x, w, padding=-1), RuntimeError, "padding must be >= 0"),
    (
        lambda x, w: F.conv2d(x[0, 0], w),
        RuntimeError,
        r"3D \(unbatched\) or 4D \(batched\) input, got f32\[6,6\]",
    ),
    (lambda x, w: F.conv2d(x, w.double()), RuntimeError, "one dtype"),
    (lambda x, w: F.conv2d(x, w, stride=(1, 2, 3)), ValueError, "an int or 2 ints"),
    (lambda x, w: F.conv2d(x, w, padding="full"), ValueError, "'same' or 'valid'"),
    (lambda x, w: F.conv2d(x, w, padding="same", stride=2), ValueError, "not supported for strided"),
    (lambda x, w: F.conv1d(x, w), RuntimeError, "conv1d.*2D"),
    (lambda x, w: F.conv_transpose2d(x, w), RuntimeError, "takes inputs of 4 channels"),
    (lambda x, w: F.conv_transpose2d(w, w[:3], output_padding=1), RuntimeError, "output_padding must be"),
    (lambda x, w: F.conv_transpose2d(w, w[:3], padding=3), RuntimeError, "the result would have spatial"),
    (lambda x, w: F.unfold(x, 7), RuntimeError, "larger than the padded input"),
    (lambda x, w: F.fold(x[0], 6, 2), RuntimeError, "taps do not divide"),
    (lambda x, w: x.unfold(1, 4, 1), RuntimeError, "maximum size"),
    (lambda x, w: tg.nn.Conv2d(3, 4, 3, groups=2), ValueError, "in_channels 3 must be divisible by groups 2"),
    (lambda x, w: tg.nn.Conv2d(3, 4, 3, padding_mode="zero"), ValueError, "padding_mode"),
    (
        lambda x, w: tg.nn.ConvTranspose2d(3, 4, 3, padding_mode="reflect"),
        ValueError,
        "only padding_mode='zeros'",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), BAD)
def test_bad_convolutions_say_what_is_wrong(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call(tg.zeros(2, 3, 6, 6), tg.zeros(4, 3, 3, 3))


def test_errors_name_the_op_and_the_line() -> None:
    with pytest.raises(
        RuntimeError, match=r"convolution\(f32\[2,3,6,6\], f32\[4,2,3,3\]\) at test_conv.py:\d+"
    ):
        F.conv2d(tg.zeros(2, 3, 6, 6), tg.zeros(4, 2, 3, 3))


def scheduled(
    machine: MachineModel, shapes: tuple[tuple[int, ...], tuple[int, ...]], attrs: dict[str, Any]
) -> list[Strategy]:
    """Checks the loops of a convolution and its gradients in the loop interpreter; how they are tiled."""
    graph = Graph("conv")
    b = Builder(graph)
    x, w = (graph.add_input(Type(float32, s)) for s in shapes)
    out = b.convolution(x, w, **attrs)
    g = graph.add_input(out.type)
    graph.outputs = [
        out,
        b.convolution_input_grad(g, w, size=shapes[0][2:], **attrs),
        b.convolution_weight_grad(x, g, taps=shapes[1][2:], **attrs),
    ]
    data = [a.round(1) for a in arrays((*shapes, out.type.shape))]
    program = schedule(optimize(graph), machine)
    verify_program(program)
    found = run_program(program, data)
    for a, e in zip(found, evaluate(graph, data)[0], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)
    plan = Planner(optimize(graph), machine)
    plan.run()
    return [g.strategy for g in plan.groups if isinstance(g, ContractGroup)]


MACHINES = [SMALL, AVX2, AVX512, dataclasses.replace(AVX512, threads=2, parallel_cycles=10)]


@pytest.mark.parametrize("machine", MACHINES, ids=["small", "avx2", "avx512", "parallel"])
@pytest.mark.parametrize("width", [3, 7, 16, 19])
def test_loops_of_convolutions(machine: MachineModel, width: int) -> None:
    """Rows shorter than, as long as, and longer than vectors; steps of 1 and 2; groups."""
    plain = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    shapes = ((2, 3, 5, width), (6, 3, 3, 3))
    strategies = scheduled(machine, shapes, plain)
    if machine.masked_memory and width == 7:
        assert any(s.spread for s in strategies)
    scheduled(machine, ((2, 4, 5, width), (6, 2, 3, 2)), {**plain, "stride": (2, 2), "groups": 2})


def padded(kept: bool = False, through_product: bool = False) -> Graph:
    """The gradient of 2x2 pooling and ReLU, which an input gradient wants padded, a weight gradient and a
    bias gradient as it is. With `kept` it is given out too; with `through_product` a product's last step
    computes it."""
    graph = Graph("padded")
    b = Builder(graph)
    x, g, w, y = (
        graph.add_input(Type(float32, s))
        for s in ((2, 4, 8, 12), (2, 4, 4, 6), (4, 3, 3, 3), (2, 3, 3, 3, 8, 12))
    )
    wide = b.reshape(g, shape=(2, 4, 4, 1, 6, 1))
    spread = b.reshape(b.expand(wide, shape=(2, 4, 4, 2, 6, 2)), shape=(2, 4, 8, 12))
    if through_product:
        mixed = graph.add_input(Type(float32, (4, 4)))
        spread = b.contract(mixed, spread, spec="oc,ncxy->noxy")
    zero = b.constant(value=0.0, dtype=float32)
    v = b.where(b.le(x, zero), zero, spread)
    p = b.pad(v, low=(0, 0, 2, 2), high=(0, 0, 2, 2), value=0.0)
    windows = b.windows(p, size=(3, 3), stride=(1, 1), dilation=(1, 1))
    graph.outputs = [
        b.contract(w, windows, spec="ocuv,nouvxy->ncxy"),
        b.contract(v, y, spec="noxy,ncuvxy->ocuv"),
        b.sum(v, axes=(0, 2, 3)),
        *([v] if kept else []),
    ]
    return graph


@pytest.mark.parametrize("machine", MACHINES, ids=["small", "avx2", "avx512", "parallel"])
@pytest.mark.parametrize("how", [{}, {"kept": True}, {"through_product": True}], ids=["", "kept", "product"])
def test_a_gradient_is_written_with_its_border_once(machine: MachineModel, how: dict[str, bool]) -> None:
    graph = padded(**how)
    data = [a.round(1) for a in arrays([v.type.shape for v in graph.inputs])]
    program = schedule(optimize(graph), machine)
    verify_program(program)
    for a, e in zip(run_program(program, data), evaluate(graph, data)[0], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)
    whole = [t.name for t in program.temps if t.name in ("pad", "where")]
    assert sorted(whole) == (["pad", "where"] if how.get("through_product") else ["pad"])
    sums = [k for k in program.kernels if "sum" in k.comment]
    assert how or "pad" in sums[0].comment  # the bias gradient is summed where the gradient is computed
