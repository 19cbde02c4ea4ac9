"""The LLVM vector math library against wider arithmetic: error bounds, special values, lane counts.

Each function is compiled into a loop over arrays. References are NumPy in f64 (for f32) and in long double
(for f64, where the platform's is wider), `math.erf` and `math.erfc` where NumPy has none.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from tracegrad.backends.llvm import math as vm

TWO_ARGS = ("pow", "atan2", "fmod")
WIDE_LONG_DOUBLE = np.finfo(np.longdouble).nmant > 60
NAN, INF = math.nan, math.inf


@functools.cache
def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )


_engines: list[llvm.ExecutionEngine] = []  # code must outlive the functions that point into it


@functools.cache
def compiled(name: str, dtype: type, lanes: int, fma: bool = True) -> Callable[..., np.ndarray]:
    """`name` as a function of arrays, `lanes` elements at a time (0: LLVM scalars)."""
    elem: ir.Type = ir.FloatType() if dtype is np.float32 else ir.DoubleType()
    type_ = ir.VectorType(elem, lanes) if lanes else elem
    pointer, i64 = ir.PointerType(elem), ir.IntType(64)
    arity = 2 if name in TWO_ARGS else 1
    module = ir.Module()
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * (arity + 1) + [i64]), "loop")
    entry = fn.append_basic_block()
    body = fn.append_basic_block()
    done = fn.append_basic_block()
    b = ir.IRBuilder(entry)
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(i64)
    i.add_incoming(ir.Constant(i64, 0), entry)

    def at(p: Any) -> Any:
        return b.bitcast(b.gep(p, [i], source_etype=elem), ir.PointerType(type_))

    align = 4 if dtype is np.float32 else 8
    args = [b.load(at(p), align=align) for p in fn.args[:arity]]
    b.store(vm.emit(b, name, *args, fma=fma), at(fn.args[arity]), align=align)
    following = b.add(i, ir.Constant(i64, max(lanes, 1)))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, fn.args[-1]), body, done)
    b.position_at_end(done)
    b.ret_void()

    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, _machine())
    engine.finalize_object()
    _engines.append(engine)
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (arity + 1), ctypes.c_int64)
    call = signature(engine.get_function_address("loop"))

    def run(*arrays: np.ndarray) -> np.ndarray:
        count = len(arrays[0])
        padded = -(-count // max(lanes, 1)) * max(lanes, 1)
        ins = [np.ascontiguousarray(np.resize(a.astype(dtype), padded)) for a in arrays]
        out = np.empty(padded, dtype)
        call(*(a.ctypes.data for a in ins), out.ctypes.data, padded)
        return out[:count]

    return run


def _each(fn: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.array([fn(float(v)) for v in x], x.dtype)


REFERENCE: dict[str, Callable[..., np.ndarray]] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
    "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "pow": np.power,
    "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "erf": _each(math.erf), "erfc": _each(math.erfc), "fmod": np.fmod,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip

# where a function does something: (low, high) sampled evenly besides samples over all exponents
INTERVALS: dict[str, list[tuple[float, float]]] = {
    "exp": [(-110, 95), (-760, 720), (-1, 1)],
    "exp2": [(-160, 135), (-1080, 1030), (-1, 1)],
    "expm1": [(-40, 90), (-1, 1), (80, 715)],
    "sigmoid": [(-110, 40), (-750, 40), (-2, 2)],
    "sinh": [(-92, 92), (-712, 712), (-2, 2)],
    "cosh": [(-92, 92), (-712, 712), (-2, 2)],
    "tanh": [(-12, 12), (-24, 24), (-1, 1)],
    "log": [(0.5, 2), (0, 100)],
    "log2": [(0.5, 2), (0, 100)],
    "log10": [(0.5, 2), (0, 2000)],
    "log1p": [(-1, 1), (-0.01, 0.01), (0, 100)],
    "asinh": [(-10, 10), (-1, 1)],
    "acosh": [(0.9, 3), (1, 1.001), (1, 1e9)],
    "atanh": [(-1.01, 1.01), (0.99, 1)],
    "sin": [(-10, 10), (-1e5, 1e5), (-1e9, 1e9)],
    "cos": [(-10, 10), (-1e5, 1e5), (-1e9, 1e9)],
    "tan": [(-10, 10), (-1e5, 1e5), (-1e9, 1e9)],
    "asin": [(-1.01, 1.01), (0.49, 0.51)],
    "acos": [(-1.01, 1.01), (0.49, 0.51), (0.999, 1)],
    "atan": [(-5, 5), (-0.5, 0.5)],
    "erf": [(-6, 6), (-1, 1)],
    "erfc": [(-6, 28), (-1, 1), (9, 10.5)],
}

SPECIAL = [
    0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 0.25, 1.5, -1.5, 10.0, 1000.0,
    -1000.0, 1e-45, -1e-45, 1e-40, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1e30, -1e30, 16777216.0,
    16777215.0, -16777217.0, 5e-324, -5e-324, 1e-310, 2.2250738585072014e-308, 1.7976931348623157e308,
    -1.7976931348623157e308, 1e300, 9007199254740991.0, 9007199254740993.0, 88.72283, 88.72284, -87.33655,
    -103.97208, -103.97209, 709.782712893384, 709.7827128933841, -745.1332191019411, -745.1332191019412,
    89.41599, 710.4758600739439, 6.2831853, 1e22,
]  # fmt: skip


def everywhere(rng: np.random.Generator, dtype: type, count: int) -> np.ndarray:
    """Random bit patterns: all exponents alike, both signs, subnormals, a few NaNs."""
    if dtype is np.float32:
        return rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    return rng.integers(0, 2**64, count, dtype=np.uint64).view(np.float64)


def samples(name: str, dtype: type, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng([count, *name.encode()])
    with np.errstate(over="ignore"):
        special = np.array(SPECIAL, dtype)
    if name in TWO_ARGS:
        x, y = (everywhere(rng, dtype, count) for _ in range(2))
        near = rng.uniform(0.3, 3, (4, count)).astype(dtype)
        if name == "pow":  # log-uniform results up to and beyond both limits
            base = np.abs(x[: count // 2])
            limit = 160 if dtype is np.float32 else 1100
            with np.errstate(all="ignore"):
                power = (rng.uniform(-limit, limit, len(base)) / np.log2(base)).astype(dtype)
            power[::4] = np.rint(power[::4])
            base[::4] = np.copysign(base[::4], -1)
            one = 1 + rng.uniform(-1, 1, count) * 2.0 ** rng.uniform(-23, -1, count)
            with np.errstate(all="ignore"):
                large = rng.uniform(-limit, limit, count) / np.log2(one.astype(dtype))
            x = np.concatenate([x, base, one.astype(dtype)])
            y = np.concatenate([y, power, large.astype(dtype)])
        else:  # also ratios near one
            scale = np.ldexp(dtype(1), rng.integers(-100, 100, count)).astype(dtype)
            x, y = np.concatenate([x, near[0] * scale]), np.concatenate([y, near[1] * scale])
        small = np.arange(-6, 7).astype(dtype) / 2
        grid = np.meshgrid(np.concatenate([special, small]), np.concatenate([special, small]))
        columns = zip([x, near[2], grid[0].ravel()], [y, near[3], grid[1].ravel()])
        return [np.concatenate(part) for part in zip(*columns)]
    parts = [special, everywhere(rng, dtype, count // 2)]
    parts += [rng.uniform(low, high, count // 4).astype(dtype) for low, high in INTERVALS[name]]
    if name in ("sin", "cos", "tan"):  # the floats next to zeros and poles
        k = np.concatenate([np.arange(1, 20000), rng.integers(1, 2**28, count // 8)])
        parts += [(k * (np.longdouble(np.pi) / 2)).astype(dtype)]
    return [np.concatenate(parts)]


def reference(name: str, dtype: type, arrays: list[np.ndarray]) -> np.ndarray:
    wide = np.float64 if dtype is np.float32 or name in ("erf", "erfc") else np.longdouble
    with np.errstate(all="ignore"):
        return REFERENCE[name](*(a.astype(wide) for a in arrays))


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units of the last place of `want`; inf counts as the next power of two, NaNs must
    agree."""
    dtype = got.dtype.type
    info = np.finfo(dtype)
    top = np.ldexp(np.longdouble(1), info.maxexp)
    with np.errstate(all="ignore"):
        exact = np.clip(want.astype(np.longdouble), -top, top)
        mine = np.clip(got.astype(np.longdouble), -top, top)
        exponent = np.frexp(exact)[1] - 1
        unit = np.ldexp(np.longdouble(1), np.clip(exponent, info.minexp, info.maxexp - 1) - info.nmant)
        error = np.abs(mine - exact) / unit
    error = np.where(np.isnan(got) | np.isnan(want), INF, error)
    return np.where(np.isnan(got) & np.isnan(want), 0, error).astype(np.float64)


def measure(name: str, dtype: type, lanes: int, fma: bool, count: int) -> float:
    """The largest error found; fails on wrong NaNs, infinities and signs."""
    arrays = samples(name, dtype, count)
    got, want = compiled(name, dtype, lanes, fma)(*arrays), reference(name, dtype, arrays)
    error = ulp_error(got, want)
    worst = int(np.argmax(error))
    shown = f"{name}({', '.join(repr(a[worst]) for a in arrays)}) = {got[worst]!r}, not {want[worst]!r}"
    assert error[worst] < 1000, shown
    number = ~np.isnan(want)
    wrong = number & (np.signbit(got) != np.signbit(want))
    assert not wrong.any(), f"{name}: sign at {[a[wrong][:5] for a in arrays]}: {got[wrong][:5]}"
    bound = vm.ULP[name][0 if dtype is np.float32 else 1]
    print(f"{name:8} {np.dtype(dtype).name} lanes {lanes} fma {fma}: {error[worst]:.3f} ulp")
    assert error[worst] <= bound, f"{error[worst]:.2f} ulp: {shown}"
    return float(error[worst])


@pytest.mark.parametrize("name", vm.MATH)
def test_f32_error(name: str) -> None:
    slow = name in ("erf", "erfc")
    assert measure(name, np.float32, 16, True, 200_000 if slow else 1_000_000) > 0 or name == "fmod"


@pytest.mark.parametrize("name", vm.MATH)
def test_f64_error(name: str) -> None:
    if not WIDE_LONG_DOUBLE and name not in ("erf", "erfc"):
        pytest.skip("no wider long double here")
    measure(name, np.float64, 8, True, 100_000)


@pytest.mark.parametrize("name", vm.MATH)
def test_without_fma(name: str) -> None:
    measure(name, np.float32, 8, False, 50_000)
    if WIDE_LONG_DOUBLE or name in ("erf", "erfc"):
        measure(name, np.float64, 4, False, 20_000)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", vm.MATH)
def test_lane_count_does_not_matter(name: str, dtype: type) -> None:
    arrays = samples(name, dtype, 2000)
    wide = compiled(name, dtype, 16 if dtype is np.float32 else 8)(*arrays)
    for lanes in (4, 1, 0):
        np.testing.assert_array_equal(compiled(name, dtype, lanes)(*arrays), wide)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lanes", [0, 4])
def test_exact_values(dtype: type, lanes: int) -> None:
    def check(name: str, *pairs: tuple[float, float]) -> None:
        got = compiled(name, dtype, lanes)(np.array([p[0] for p in pairs], dtype))
        want = np.array([p[1] for p in pairs], dtype)
        np.testing.assert_array_equal(got, want, name)
        np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0], name)

    for name in ("sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "expm1", "log1p", "erf"):
        check(name, (0.0, 0.0), (-0.0, -0.0), (NAN, NAN))
    for name in ("sin", "cos", "tan", "asin", "acos", "atanh"):
        check(name, (INF, NAN), (-INF, NAN))
    for name in ("tanh", "erf"):
        check(name, (INF, 1.0), (-INF, -1.0), (30.0, 1.0), (-30.0, -1.0))
    check("exp", (0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (NAN, NAN), (1e9, INF), (-1e9, 0.0))
    check("exp2", *((float(k), 2.0**k) for k in range(-126, 128)), (NAN, NAN), (INF, INF), (-INF, 0.0))
    check("expm1", (-INF, -1.0), (INF, INF), (-1e9, -1.0))
    check("sigmoid", (0.0, 0.5), (INF, 1.0), (-INF, 0.0), (NAN, NAN), (100.0, 1.0))
    check("log", (1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (-INF, NAN), (NAN, NAN))
    check("log2", *((2.0**k, float(k)) for k in range(-149, 128)), (-1e-40, NAN), (0.0, -INF))
    check("log10", *((10.0**k, float(k)) for k in range(11)), (-1.0, NAN), (0.0, -INF))
    check("log1p", (-1.0, -INF), (-2.0, NAN), (INF, INF), (-INF, NAN))
    check("cos", (0.0, 1.0), (-0.0, 1.0), (NAN, NAN))
    check("cosh", (0.0, 1.0), (INF, INF), (-INF, INF), (NAN, NAN))
    check("erfc", (0.0, 1.0), (INF, 0.0), (-INF, 2.0), (NAN, NAN))
    check("acos", (1.0, 0.0), (-1.0, math.pi), (1.5, NAN), (NAN, NAN))
    check("acosh", (1.0, 0.0), (0.5, NAN), (-1e30, NAN), (INF, INF), (-INF, NAN))
    check("atanh", (1.0, INF), (-1.0, -INF), (2.0, NAN))
    check("atan", (INF, math.pi / 2), (-INF, -math.pi / 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sin", "cos", "tanh", "erf", "sigmoid"])
def test_results_stay_within_one(name: str, dtype: type) -> None:
    """sqrt(1 - sin**2), log(sigmoid) and the like must not see a value past 1."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.uniform(-45, 45, 200_000), np.arange(-100, 100) * (np.pi / 2)])
    y = compiled(name, dtype, 4)(x)
    assert np.abs(y).max() <= 1
    assert np.abs(y).max() > 0.9999


def test_power_specials() -> None:
    cases = [
        (NAN, 0.0, 1.0), (1.0, NAN, 1.0), (-1.0, INF, 1.0), (-1.0, -INF, 1.0), (0.0, -1.0, INF), (-0.0, -1.0,
        -INF), (-0.0, -2.0, INF), (-0.0, 3.0, -0.0), (-0.0, 0.5, 0.0), (-8.0, 1 / 3, NAN), (-2.0, 3.0, -8.0),
        (-2.0, 2.0, 4.0), (0.5, INF, 0.0), (0.5, -INF, INF), (2.0, INF, INF), (2.0, -INF, 0.0), (INF, -1.0,
        0.0), (-INF, 3.0, -INF), (-INF, -3.0, -0.0), (-INF, 0.5, INF), (INF, 0.0, 1.0), (0.0, 0.0, 1.0), (3.0,
        4.0, 81.0), (10.0, -1.0, 0.1),
    ]  # fmt: skip
    for dtype in (np.float32, np.float64):
        x, y, want = (np.array(column, dtype) for column in zip(*cases))
        got = compiled("pow", dtype, 4)(x, y)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])


@pytest.mark.parametrize("fma", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fmod_is_exact(dtype: type, fma: bool) -> None:
    x, y = samples("fmod", dtype, 30_000)
    with np.errstate(all="ignore"):
        want = np.fmod(x, y)
    got = compiled("fmod", dtype, 4, fma)(x, y)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])


def test_bad_arguments_are_refused() -> None:
    type_ = ir.FunctionType(ir.VoidType(), [ir.FloatType(), ir.DoubleType(), ir.IntType(32)])
    fn = ir.Function(ir.Module(), type_, "f")
    b = ir.IRBuilder(fn.append_basic_block())
    with pytest.raises(TypeError, match="different types"):
        vm.emit(b, "pow", fn.args[0], fn.args[1])
    with pytest.raises(TypeError, match="i32"):
        vm.emit(b, "exp", fn.args[2])
    with pytest.raises(KeyError):
        vm.emit(b, "gamma", fn.args[0])
