"""LLVM code for expressions: every primitive and conversion, every dtype, scalar and in vectors of many
widths."""

from __future__ import annotations

import numpy as np
import pytest
from codegen_tools import assert_same, elementwise, targets
from tracegrad.backends.llvm.compile import compile_program
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.expr import EXPR_SCALAR, Cast, Const, LaneReduce, Load, Prim, Var
from tracegrad.ir.loops import Buffer, For, Kernel, LoopProgram, Store
from tracegrad.ir.scalar import PRIMITIVES, numpy_cast

TARGETS = targets()
WORK = [d for d in dtypes.ALL if not (d.kind == "f" and d.bits == 16)]
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
EXACT = (
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "abs",
    "minimum",
    "maximum",
    "floor",
    "ceil",
    "trunc",
    "round",
    "sqrt",
    "fmod",
)
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    np.inf,
    -np.inf,
    np.nan,
    1e-40,
    3e38,
    -3e38,
    7.0,
    -3.0,
]


def values(dtype: DType, seed: int) -> np.ndarray:
    """33 values, the awkward ones among them."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        special = np.array(SPECIAL)
        return rng.permutation(np.concatenate([special, rng.uniform(-3, 3, 33 - special.size)])).astype(
            dtype.numpy
        )
    if dtype.kind == "b":
        return rng.integers(0, 2, 33).astype(bool)
    info = np.iinfo(dtype.numpy)
    special = np.array([info.min, info.max, 0, 1, 2, info.max - 1, info.min + 1], dtype.numpy)
    special = np.concatenate(
        [special, np.array([-1, -2] if dtype.kind == "i" else [3, 4]).astype(dtype.numpy)]
    )
    rest = rng.integers(0 if dtype.kind == "u" else -20, 20, 33 - special.size).astype(dtype.numpy)
    return rng.permutation(np.concatenate([special, rest]))


CASES = [
    (name, d)
    for name, p in PRIMITIVES.items()
    for d in WORK
    if d.kind in p.kinds and (name != "mulhi" or d is dtypes.uint32)
]


@pytest.mark.parametrize("name,dtype", CASES, ids=lambda x: x if isinstance(x, str) else x.name)
def test_primitives(name: str, dtype: DType) -> None:
    p = PRIMITIVES[name]
    args = [values(dtype, i) for i in range(p.arity)]
    kinds = [dtype] * p.arity
    if p.result == "select":
        args[0], kinds[0] = values(dtypes.bool_, 9), dtypes.bool_
    if name in ("shl", "shr"):
        args[1] = (np.arange(33) % dtype.bits).astype(dtype.numpy)
    if name in ("acosh", "pow", "log", "sqrt"):  # mostly defined values; the odd NaN is among them
        args[0] = np.abs(args[0])
    with np.errstate(all="ignore"):
        want = np.asarray(np.where(*args) if p.result == "select" else p.numpy(*args))
    out = dtypes.bool_ if p.result == "bool" else dtype
    want = want.astype(out.numpy)
    for lanes in (0, 11, 16):
        prog = elementwise(kinds, out, lambda *x: EXPR_SCALAR.prim(name, *x), 33, lanes)
        (got,) = compile_program(prog, use_cache=False).call(args)
        if name in ("minimum", "maximum") and dtype.kind == "f":
            zero = (args[0] == 0) & (args[1] == 0)  # NumPy takes either zero
            sign = (
                np.signbit(args[0]) | np.signbit(args[1])
                if name == "minimum"
                else (np.signbit(args[0]) & np.signbit(args[1]))
            )
            want = np.where(zero, np.where(sign, -0.0, 0.0), want).astype(want.dtype)
        assert_same(
            got, want, 0 if name in EXACT or dtype.kind != "f" else 8, f"{name} {dtype} lanes={lanes}"
        )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("lanes", [0, 5, 16])
def test_conversions(target: str, lanes: int) -> None:
    """Every dtype to every other in one program, on values that don't fit, NaN and ties."""
    n = 33
    inputs, outputs, body, want, arrays = [], [], [], [], []
    i = Var("i", n)
    lane = Var("l", max(lanes, 1))
    at = i + lane if lanes else i
    mask = Prim("lt", (at, Const(n)), dtypes.bool_) if lanes else None
    for a in dtypes.ALL:
        x = Buffer(f"x_{a.name}", a, (n,), "input")
        inputs.append(x)
        array = values(a, 1)
        if a.kind == "f":
            ties = np.array(
                [
                    2049.0,
                    2051.0,
                    65519.0,
                    65520.0,
                    6e-8,
                    3e-8,
                    1e-7,
                    1.00390625,
                    9.3e18,
                    -9.3e18,
                    3e9,
                    -3e9,
                    300.5,
                ]
            )
            array[: ties.size] = ties.astype(a.numpy)
        arrays.append(array)
        for b in dtypes.ALL:
            y = Buffer(f"y_{a.name}_{b.name}", b, (n,), "output")
            outputs.append(y)
            body.append(Store(y, (at,), Cast(Load(x, (at,), mask, Const(0, a)), b), mask))
            with np.errstate(all="ignore"):
                source = array.astype(np.float32) if b.kind == "f" and b.bits == 16 else array
                want.append(numpy_cast(source, b))
    inner = [For(lane, lanes, "vector", body)] if lanes else body
    prog = LoopProgram(
        "casts", inputs, outputs, [], [], [Kernel("k", [For(i, n, "serial", inner, max(lanes, 1))])]
    )
    got = compile_program(prog, TARGETS[target], use_cache=False).call(arrays)
    for b, g, w in zip(outputs, got, want):
        assert_same(g, w, what=b.name)


@pytest.mark.parametrize("lanes", [0, 16])
def test_reinterpretation(lanes: int) -> None:
    pairs = [
        (dtypes.float32, dtypes.uint32),
        (dtypes.int32, dtypes.float32),
        (dtypes.float64, dtypes.int64),
        (dtypes.float16, dtypes.int16),
        (dtypes.bfloat16, dtypes.int16),
        (dtypes.uint64, dtypes.float64),
        (dtypes.int8, dtypes.uint8),
    ]
    for a, b in pairs:
        x = values(a, 3)
        prog = elementwise([a], b, lambda e, b=b: Cast(e, b, bits=True), 33, lanes)
        (got,) = compile_program(prog, use_cache=False).call([x])
        np.testing.assert_array_equal(got.view(np.uint8), x.view(np.uint8), err_msg=f"{a.name} {b.name}")


def test_half_round_trip_without_instructions() -> None:
    """All 65536 halves to f32 and back in integer arithmetic."""
    if "sse2" not in TARGETS:
        pytest.skip("only x86 has targets without half conversions")
    bits = np.arange(65536, dtype=np.uint16)
    for half in (dtypes.float16, dtypes.bfloat16):
        x = bits.view(half.numpy)
        up = elementwise([half], dtypes.float32, lambda e: Cast(e, dtypes.float32), 65536, 8)
        (wide,) = compile_program(up, TARGETS["sse2"], use_cache=False).call([x])
        assert_same(wide, x.astype(np.float32))
        down = elementwise([dtypes.float32], half, lambda e, h=half: Cast(e, h), 65536, 8)
        (back,) = compile_program(down, TARGETS["sse2"], use_cache=False).call([wide])
        assert_same(back, x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("half", [dtypes.float16, dtypes.bfloat16], ids=lambda d: d.name)
def test_halves_round_to_nearest_even(target: str, half: DType) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 40000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    scaled = (rng.uniform(-1, 1, 25536) * 10.0 ** rng.integers(-8, 5, 25536)).astype(np.float32)
    x = np.concatenate([x, scaled])
    prog = elementwise([dtypes.float32], half, lambda e: Cast(e, half), x.size, 16)
    (got,) = compile_program(prog, TARGETS[target], use_cache=False).call([x])
    with np.errstate(all="ignore"):
        assert_same(got, x.astype(half.numpy))


@pytest.mark.parametrize("lanes", range(1, 33))
def test_every_vector_width(lanes: int) -> None:
    """Arithmetic, a function, a comparison and a selection, 70 elements long, the last vector masked."""
    f32 = dtypes.float32

    def make(a, b):
        s = EXPR_SCALAR
        return s.select(s.lt(a, b), s.add(s.exp(a), b), s.mul(a, s.const(0.5, f32)))

    prog = elementwise([f32, f32], f32, make, 70, lanes)
    rng = np.random.default_rng(lanes)
    a, b = (rng.uniform(-2, 2, 70).astype(np.float32) for _ in range(2))
    (got,) = compile_program(prog, use_cache=False).call([a, b])
    assert_same(got, np.where(a < b, np.exp(a) + b, a * np.float32(0.5)), 4)


@pytest.mark.parametrize("name", ["add", "mul", "minimum", "maximum", "and_", "or_"])
@pytest.mark.parametrize("n", [1, 2, 16, 32])
def test_lane_reductions_halve(name: str, n: int) -> None:
    """The tree is part of the meaning: rounding shows it."""
    dtype = dtypes.int32 if name in ("and_", "or_") else dtypes.float32
    x, y = Buffer("x", dtype, (n,), "input"), Buffer("y", dtype, (1,), "output")
    lane = Var("l", n)
    reduced = LaneReduce(name, lane, Load(x, (lane,)))
    prog = LoopProgram("reduce", [x], [y], [], [], [Kernel("k", [Store(y, (Const(0),), reduced)])])
    rng = np.random.default_rng(n)
    a = (
        rng.integers(0, 1 << 20, n).astype(np.int32)
        if dtype.kind == "i"
        else rng.uniform(0.5, 2, n).astype(np.float32)
    )
    want = a
    while want.size > 1:
        half = want.size // 2
        want = PRIMITIVES[name].numpy(want[:half], want[half:])
    (got,) = compile_program(prog, use_cache=False).call([a])
    assert_same(got, want)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64])
@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_the_extreme_lane_of_floats(dtype: DType, n: int) -> None:
    """NaN of either sign in any lane, infinities, zeros of both signs, subnormals."""
    kinds = [(0.0, -0.0), (-0.0, 0.0), (np.inf, -np.inf), (1e-45, -1e-45), (-1.0, -2.0), (3.0, 2.0)]
    rows = [np.resize(np.array(k), n) for k in kinds]
    rows += [np.where(np.arange(n) == i, nan, 1.0) for i in range(n) for nan in (np.nan, -np.nan)]
    data = np.array(rows).astype(dtype.numpy)
    x = Buffer("x", dtype, data.shape, "input")
    least, most = (Buffer(b, dtype, (len(rows),), "output") for b in ("least", "most"))
    i, lane = Var("i", len(rows)), Var("l", n)
    body: list = [
        Store(b, (i,), LaneReduce(name, lane, Load(x, (i, lane))))
        for b, name in ((least, "minimum"), (most, "maximum"))
    ]
    kernel = Kernel("k", [For(i, len(rows), "serial", body)])
    prog = LoopProgram("extreme", [x], [least, most], [], [], [kernel])
    low, high = compile_program(prog, use_cache=False).call([data])
    tiny = np.copysign(1e-300, data.astype(np.float64))  # stands for zeros, which sort does not order
    ordered = np.sort(np.where(data == 0, tiny, data), axis=1)
    for got, want in ((low, ordered[:, 0]), (high, ordered[:, -1])):
        want = np.where(np.abs(want) == 1e-300, np.copysign(0.0, want), want)
        assert_same(got, np.where(np.isnan(data).any(axis=1), np.nan, want).astype(dtype.numpy))


def test_products_are_fused_in_accumulators_only() -> None:
    """x*x + y rounds twice in a store to memory, and once (where the target can) in an accumulator."""
    f32 = dtypes.float32
    prog = elementwise([f32, f32], f32, lambda a, b: EXPR_SCALAR.add(EXPR_SCALAR.mul(a, a), b), 33, 11)
    x = np.full(33, 1 + 2.0**-12, np.float32)
    y = np.full(33, -(1 + 2.0**-11), np.float32)
    (got,) = compile_program(prog, use_cache=False).call([x, y])
    np.testing.assert_array_equal(got, np.zeros(33, np.float32))
    if TARGETS["host"].has_fma:
        acc = Buffer("acc", f32, (16,), "register")
        from tracegrad.ir.loops import Alloc

        xs, ys = (Buffer(n, f32, (33,), "input") for n in "xy")
        out = Buffer("o", f32, (16,), "output")
        l1, l2, l3 = Var("a", 16), Var("b", 16), Var("c", 16)
        body = [
            Alloc(acc),
            For(l1, 16, "vector", [Store(acc, (l1,), Load(ys, (l1,)))]),
            For(
                l2,
                16,
                "vector",
                [
                    Store(
                        acc,
                        (l2,),
                        EXPR_SCALAR.add(Load(acc, (l2,)), EXPR_SCALAR.mul(Load(xs, (l2,)), Load(xs, (l2,)))),
                    )
                ],
            ),
            For(l3, 16, "vector", [Store(out, (l3,), Load(acc, (l3,)))]),
        ]
        prog = LoopProgram("fused", [xs, ys], [out], [], [], [Kernel("k", body)])
        (got,) = compile_program(prog, use_cache=False).call([x, y])
        np.testing.assert_array_equal(got, np.full(16, 2.0**-24, np.float32))


def test_long_chains_do_not_recurse() -> None:
    f32 = dtypes.float32

    def make(a):
        for _ in range(3000):
            a = EXPR_SCALAR.add(a, EXPR_SCALAR.const(1.0, f32))
        return a

    prog = elementwise([f32], f32, make, 16, 16)
    from tracegrad.backends.llvm.codegen_program import generate

    assert generate(prog, TARGETS["host"]).count("fadd") == 3000
