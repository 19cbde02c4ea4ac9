"""The CPU generator against values recorded from PyTorch 2.13 (x86-64), and its own contracts."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from tracegrad.backends.llvm.box_muller import available, box_muller
from tracegrad.ir.errors import DTypeError, TracegradError
from tracegrad.tracer import mt19937 as mt
from tracegrad.tracer import mt19937_engine as engine
from tracegrad.tracer import mt19937_math as mm

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def digest(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]


def values(x: np.ndarray) -> list[str]:
    return [float(v).hex() for v in x]


def floats(*texts: str) -> list[str]:
    return [float.fromhex(t).hex() for t in texts]


# dtype: rows of size, uniform_(-0.3, 1.7), then normal_(0.7, 1.3), then the state; seeded with 1234 + size
RECORDED = {
    "float16": [
        (1, "048829be62631e23", "86f4f6885b5eda14", "33aa61b2bfbc6abf"),
        (15, "e3a42a4960a5d729", "6f44d7f86c3343a5", "be569a30607b8ee3"),
        (16, "66e7f956059a421c", "fd89d2e39d102a54", "fb8e6b4858fb13bf"),
        (17, "cd62c0457e959de6", "66492ea5ab864046", "dc7f26260293a806"),
        (31, "b461b0f876e84cfa", "0712b4c2e649dade", "6d50fac250cde3bc"),
        (1000, "17d162030caee0c3", "f03a2df79bce222c", "6a31ce236f73124b"),
    ],
    "bfloat16": [
        (1, "ae72a8ce277a9e7a", "3b9de4efdd6cb380", "33aa61b2bfbc6abf"),
        (15, "1404e761b9b5f235", "02e75015cd773c0a", "be569a30607b8ee3"),
        (16, "be2578611720e744", "c93b3d0e6598c128", "fb8e6b4858fb13bf"),
        (17, "cce954a71890c9b9", "1ee97b72a35c8caf", "dc7f26260293a806"),
        (31, "59d1e87ea5a8aeb3", "0e4ec40ac697de9e", "6d50fac250cde3bc"),
        (1000, "fa353cfcf7047941", "4da07bab33f0c2d5", "6a31ce236f73124b"),
    ],
    "float32": [
        (1, "d6191f04751ed9e0", "a403386bda762462", "33aa61b2bfbc6abf"),
        (15, "2f07e8bb1d4ae9bf", "251f64516796773a", "be569a30607b8ee3"),
        (16, "e8e237b9782af125", "57a742d97f4c05cd", "fb8e6b4858fb13bf"),
        (17, "0caae8a8101a8a2e", "06b1e113083cb5b4", "ea257890208dcc08"),
        (31, "03ff07da4c9cc9b7", "543cccb96846c7c5", "581f5ca1f4e09ecc"),
        (1000, "179e70a9e768ca4e", "8ffecdfb48c280af", "41d65f6706aa1d95"),
    ],
}


@pytest.mark.parametrize("dtype", RECORDED)
def test_uniform_then_normal(dtype: str) -> None:
    for n, uniform, normal, state in RECORDED[dtype]:
        gen = mt.MT19937(1234 + n)
        assert digest(mt.uniform(gen, n, DTYPES[dtype], -0.3, 1.7)) == uniform, n
        samples = mt.normal(gen, n, DTYPES[dtype], 0.7, 1.3)
        if n >= 16:  # smaller sizes go through the C library, whose last bit may differ between platforms
            assert digest(samples) == normal, n
            assert digest(gen.get_state()) == state, n


def test_uniform_of_each_width() -> None:
    assert values(mt.uniform(mt.MT19937(0), 4)) == floats(
        "0x1.fc2abp-2", "0x1.89545ep-1", "0x1.6a675p-4", "0x1.0e66p-3"
    )
    assert values(mt.uniform(mt.MT19937(0), 3, np.float64)) == floats(
        "0x1.f0aac97c4aa2fp-1", "0x1.6a675d821ccc0p-1", "0x1.d6687b744a5f6p-2"
    )
    assert values(mt.uniform(mt.MT19937(0), 4, np.float16)) == floats(
        "0x1.fc4p-2", "0x1.894p-1", "0x1.6a8p-4", "0x1.0e8p-3"
    )
    assert values(mt.uniform(mt.MT19937(0), 4, ml_dtypes.bfloat16)) == floats(
        "0x1.fcp-2", "0x1.8ap-1", "0x1.6ap-4", "0x1.0ep-3"
    )


def test_scalar_normal_keeps_the_second_sample() -> None:
    gen = mt.MT19937(0)
    first, second = mt.normal(gen, 5), mt.normal(gen, 2)
    expected = [1.54099607, -0.293428898, -2.17878938, 0.568431258, -1.08452237, -1.39859545, 0.403346837]
    np.testing.assert_allclose(np.concatenate([first, second]), expected, rtol=3e-7)
    kept = gen.normal_sample  # seven samples of four pairs
    assert kept is not None and mt.normal(gen, 0).size == 0 and gen.normal_sample == kept
    before = gen.get_state()[:5016]
    assert mt.normal(gen, 1, np.float64).tolist() == [kept] and gen.normal_sample is None
    np.testing.assert_array_equal(gen.get_state()[:5016], before)  # nothing was drawn for it
    mt.normal(gen, 1)
    assert gen.normal_sample is not None
    gen.manual_seed(0)
    assert gen.normal_sample is None


def test_block_normal() -> None:
    assert values(mt.normal(mt.MT19937(0), 16)) == floats(
        "-0x1.20370ap+0", "-0x1.270114p+0", "-0x1.0097acp-2", "-0x1.bc4abap-2", "0x1.b28a2ap-1",
        "0x1.624f06p-1", "-0x1.4398dap-2", "-0x1.0ebf82p+1", "0x1.4a027p-2", "-0x1.4369e8p+0",
        "0x1.6661fep-2", "0x1.3b8776p-2", "0x1.eadeeep-4", "0x1.3cd726p+0", "0x1.1de51cp+0", "-0x1.fa6cf8p-3",
    )  # fmt: skip
    assert values(mt.normal(mt.MT19937(0), 17)[-3:]) == floats(
        "0x1.e48138p-1", "-0x1.aff666p-1", "0x1.dd186p-1"
    )
    wide = mt.normal(mt.MT19937(0), 17, np.float64)[:3]
    expected = [
        float.fromhex(t) for t in ("-0x1.27bb92e9262dcp+1", "-0x1.443c91ccf2402p-1", "-0x1.42cbf54f08f8ep+0")
    ]
    np.testing.assert_allclose(wide, expected, rtol=1e-15)


def test_a_training_scripts_opening() -> None:
    gen = mt.MT19937(0)
    assert digest(mt.normal(gen, (64, 1000))) == "e2219430cce911a3"
    assert digest(mt.normal(gen, (64, 10))) == "67fff765b11dbe2e"
    recorded = [("b4dab0adffd02dd6", "2d95ac9b7956fda7"), ("334ab3e5782783d1", "376283a319bd1937")]
    for (fan_in, fan_out), (weight, bias) in zip(((1000, 100), (100, 10)), recorded):
        bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(fan_in))
        assert digest(mt.uniform(gen, (fan_out, fan_in), np.float32, -bound, bound)) == weight
        edge = 1 / math.sqrt(fan_in)
        assert digest(mt.uniform(gen, fan_out, np.float32, -edge, edge)) == bias
    assert digest(gen.get_state()) == "fa1b660a6dd0abbb"


def test_integers() -> None:
    gen = mt.MT19937(42)
    assert mt.randint(gen, 0, 100, 8).tolist() == [42, 67, 76, 14, 26, 35, 20, 24]
    assert mt.randint(gen, 0, 2**40, 2).tolist() == [440001501305, 902372521174]
    assert mt.randint(gen, -(2**63), 2**63 - 1, 2).tolist() == [-8151918526507952694, 6754757701360545140]
    gen = mt.MT19937(1)
    assert mt.random(gen, 3).tolist() == [7692698082559361259, 4064269471072392264, 2109959069025161]
    assert mt.random(gen, 3, np.int32).tolist() == [1298508491, 2143362693, 630311759]
    assert mt.random(gen, 3, np.uint8).tolist() == [192, 144, 129]
    assert mt.random(gen, 3, np.float32).tolist() == [11452317, 5119460, 7776917]
    assert mt.random(gen, 6, np.bool_).tolist() == [False, False, True, False, False, False]


def test_seeds() -> None:
    for seed, unsigned, draws in (
        (-1, 2**64 - 1, [944547, 147746, 125964]),
        (2**63, 2**63, [985772, 305711, 435829]),
        (5489, 5489, [113500, 958198, 129774]),
    ):
        gen = mt.MT19937(seed)
        assert gen.initial_seed() == unsigned
        assert mt.randint(gen, 0, 2**20, 3).tolist() == draws
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(TracegradError, match="outside"):
            mt.MT19937().manual_seed(seed)
    gen = mt.MT19937()
    assert gen.seed() == gen.initial_seed() != gen.seed()


def test_discrete_distributions() -> None:
    gen = mt.MT19937(42)
    assert mt.randperm(gen, 12).tolist() == [6, 8, 1, 7, 0, 2, 10, 11, 4, 3, 5, 9]
    gen.manual_seed(42)
    assert mt.bernoulli(gen, 0.3, 16).tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    expected = [0] * 13 + [1, 0, 0]
    assert mt.bernoulli(gen, np.full(16, 0.3, np.float32)).tolist() == expected
    gen.manual_seed(42)
    assert mt.geometric(gen, 6, np.float32, 0.2).tolist() == [13, 13, 10, 14, 3, 4]
    gen.manual_seed(42)
    weights = np.arange(1, 6, dtype=np.float32)
    assert mt.multinomial(gen, weights, 8, True).tolist() == [0, 0, 1, 0, 3, 3, 4, 4]
    assert mt.multinomial(gen, weights, 5).tolist() == [2, 1, 0, 3, 4]


def test_continuous_distributions() -> None:
    for sample, expected in (
        (
            mt.exponential(mt.MT19937(42), 3, np.float32, 2.0),
            ("0x1.ead0ccp-6", "0x1.0a2468p-5", "0x1.0e2a62p-4"),
        ),
        (
            mt.log_normal(mt.MT19937(42), 3, np.float32, 0.0, 0.5),
            ("0x1.2eefb2p+0", "0x1.1107b6p+0", "0x1.1fd752p+0"),
        ),
        (mt.cauchy(mt.MT19937(42), 3), ("-0x1.5a6632p+2", "-0x1.3f98ccp+2", "-0x1.38f1a4p+1")),
    ):
        np.testing.assert_allclose(sample, [float.fromhex(t) for t in expected], rtol=2e-7)


def test_large_randperm_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside-out shuffle, against a direct transcription of its definition; sizes past one chunk."""
    monkeypatch.setattr(mt, "_RANDPERM_SMALL", 5)
    monkeypatch.setattr(mt, "_CHUNK", 7)
    reference = mt.MT19937(3)
    expected: list[int] = []
    for i in range(50):
        j = reference.random64() % (i + 1)
        expected.append(i)
        expected[i], expected[j] = expected[j], i
    gen = mt.MT19937(3)
    assert mt.randperm(gen, 50).tolist() == expected and sorted(expected) == list(range(50))
    assert gen.random() == reference.random()


def test_draws_do_not_depend_on_how_they_are_split() -> None:
    whole = mt.MT19937(9).words(70_000)
    gen = mt.MT19937(9)
    sizes = [1, 623, 624, 625, 0, 3, 50_000, 1248]
    parts = np.concatenate([gen.words(n) for n in sizes])
    np.testing.assert_array_equal(parts, whole[: len(parts)])
    single = mt.MT19937(9)
    assert [single.random() for _ in range(3)] == whole[:3].tolist()
    assert single.random64() == int(whole[3]) << 32 | int(whole[4])


@pytest.mark.parametrize("n", [624, 5000, 70_000])
def test_native_words_continue_others(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (0, 1, 623, 624, 1000):
        ours, native = mt.MT19937(4), mt.MT19937(4)
        for gen in (ours, native):
            gen.words(before)
        monkeypatch.setattr(engine, "NATIVE", 1 << 60)
        expected = ours.words(n)
        monkeypatch.setattr(engine, "NATIVE", 1)
        np.testing.assert_array_equal(native.words(n), expected)
        monkeypatch.undo()
        np.testing.assert_array_equal(native.get_state(), ours.get_state())
        assert native.random() == ours.random()


def test_words_are_those_of_numpys_engine() -> None:
    key = np.random.MT19937()
    key.state = {"bit_generator": "MT19937", "state": {"key": mt.MT19937(11)._state, "pos": 624}}
    gen = mt.MT19937(11)
    gen.expect(engine.NATIVE)
    np.testing.assert_array_equal(gen.words(100_000), key.random_raw(100_000).astype(np.uint32))


@pytest.mark.parametrize("low, high", [
    (0.0, 1.0), (-0.3, 0.3), (1.0, 1.0), (5.0, 5.0000005), (-1e38, 2e38), (1e8, 1e8 + 64), (0.1, 0.7),
    (0.0, 1e-38),
])  # fmt: skip
def test_large_uniforms_do_not_depend_on_who_makes_them(
    low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = mt.NATIVE + 21
    native = mt.MT19937(5)
    got = mt.uniform(native, n, np.float32, low, high)
    monkeypatch.setattr(mt, "NATIVE", 1 << 62)
    plain = mt.MT19937(5)
    np.testing.assert_array_equal(
        got.view(np.int32), mt.uniform(plain, n, np.float32, low, high).view(np.int32)
    )
    assert native.get_state().tobytes() == plain.get_state().tobytes()


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.3, 0.02), (-5.0, 1e-38), (0.0, 0.0)])
def test_native_normals_are_numpys(mean: float, std: float) -> None:
    words = mt.MT19937(3).words(1 << 12)
    words[:64] &= 0xFF000000  # uniforms of 0
    words[16:48] |= 0xFFFFFF  # and the largest below 1
    got = np.empty(words.size, np.float32)
    if not available():
        pytest.skip("this processor does not fuse multiply-add")
    box_muller(words, mean, std, got)
    u = (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
    want = mm.box_muller32(u.reshape(-1, 2, 8), mean, std).reshape(-1)
    np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_large_normals_do_not_depend_on_who_makes_them(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    n = mt.NATIVE + 21
    native = mt.MT19937(5)
    got = mt.normal(native, n, dtype, 1.0, 2.0)
    monkeypatch.setattr(mt, "NATIVE", 1 << 62)
    plain = mt.MT19937(5)
    np.testing.assert_array_equal(got, mt.normal(plain, n, dtype, 1.0, 2.0))
    assert native.get_state().tobytes() == plain.get_state().tobytes()


def test_state_round_trips() -> None:
    gen = mt.MT19937(3)
    mt.normal(gen, 7)
    saved = gen.get_state()
    assert saved.dtype == np.uint8 and saved.shape == (5056,)
    twins = [gen.clone(), copy.copy(gen), copy.deepcopy(gen), pickle.loads(pickle.dumps(gen)), mt.MT19937()]
    twins[-1].set_state(saved)
    expected = mt.normal(gen, 40).tolist(), mt.normal(gen, 3).tolist()
    for twin in twins:
        np.testing.assert_array_equal(twin.get_state(), saved)
        assert (mt.normal(twin, 40).tolist(), mt.normal(twin, 3).tolist()) == expected
    fresh = mt.MT19937(8)
    other = fresh.clone()
    assert other.random() == fresh.random() and other.initial_seed() == 8


def test_bad_states_change_nothing() -> None:
    gen = mt.MT19937(3)
    before = gen.get_state()
    broken = before.copy()
    broken[8:12] = 0  # left
    for state in (before[:-1], before.astype(np.int64), broken, np.zeros(5056, np.uint8)):
        with pytest.raises(TracegradError, match="set_state"):
            gen.set_state(state)
    np.testing.assert_array_equal(gen.get_state(), before)


def test_errors_draw_nothing() -> None:
    gen = mt.MT19937(3)
    before = gen.get_state()
    weights = np.array([1.0, 2.0])
    for call in (
        lambda: mt.uniform(gen, 3, np.float32, 1.0, 0.0),
        lambda: mt.uniform(gen, 3, np.float16, 0.0, 1e6),
        lambda: mt.uniform(gen, 3, np.float32, 0.0, math.nan),
        lambda: mt.uniform(gen, (2, -1)),
        lambda: mt.normal(gen, 3, std=-1.0),
        lambda: mt.exponential(gen, 3, lambd=0.0),
        lambda: mt.geometric(gen, 3, p=1.0),
        lambda: mt.randint(gen, 5, 5, 3),
        lambda: mt.randint(gen, 0, 300, 3, np.uint8),
        lambda: mt.randint(gen, 0, 2**63 + 1, 3),
        lambda: mt.randint(gen, 0, 10**6, 3, np.float16),
        lambda: mt.randperm(gen, -1),
        lambda: mt.randperm(gen, 129, np.int8),
        lambda: mt.randperm(gen, 2050, np.float16),
        lambda: mt.bernoulli(gen, 1.5, 3),
        lambda: mt.bernoulli(gen, np.array([0.5, math.nan])),
        lambda: mt.multinomial(gen, weights, 3),
        lambda: mt.multinomial(gen, -weights, 1),
        lambda: mt.multinomial(gen, weights * 0, 1, True),
        lambda: mt.multinomial(gen, weights * math.inf, 1, True),
    ):
        with pytest.raises(TracegradError):
            call()
    for call in (
        lambda: mt.uniform(gen, 3, np.int64),
        lambda: mt.normal(gen, 3, np.complex64),
        lambda: mt.randint(gen, 0, 2, 3, np.complex64),
        lambda: mt.random(gen, 3, np.uint32),
        lambda: mt.bernoulli(gen, np.array([1, 0])),
    ):
        with pytest.raises(DTypeError):
            call()
    np.testing.assert_array_equal(gen.get_state(), before)


def test_fused_multiply_add_is_correctly_rounded() -> None:
    """Against exact rational arithmetic, on operands that cancel or fall near rounding boundaries."""
    rng = np.random.default_rng(0)
    for b, c in ((1.3, 0.7), (-2.5, 1e-3), (1 + 2**-52, -1.0), (1e10, -1e10), (3.0, 2.0**-60)):
        a = np.concatenate([rng.standard_normal(300), 1 + rng.integers(0, 64, 100) * 2.0**-52])
        exact = [float(Fraction(x) * Fraction(b) + Fraction(c)) for x in a.tolist()]
        np.testing.assert_array_equal(mm.fma64(a, b, c), exact)
    # 1 + 2**-24 is the middle of two float32 values; what is added next to it decides, and float64 loses it
    one = np.ones(3)
    tiny = np.array([0.0, 2.0**-80, -(2.0**-80)])
    middle = np.float64(1 + 2.0**-12)
    a, b = np.full(3, middle), np.full(3, middle)  # (1 + 2**-12)**2 = 1 + 2**-11 + 2**-24: a middle
    got = mm.fma32(a, b, tiny)
    low = 1 + 2.0**-11
    np.testing.assert_array_equal(got, [low, low + 2.0**-23, low] * one)


def test_float32_functions_are_accurate() -> None:
    x = np.random.default_rng(1).integers(1, 1 << 24, 20_000) * 2.0**-24
    np.testing.assert_allclose(mm.log32(x), np.log(x), rtol=2e-7)
    theta = (x * 2 * np.pi).astype(np.float32).astype(np.float64)
    s, c = mm.sincos32(theta)
    np.testing.assert_allclose(s, np.sin(theta), atol=1e-7)
    np.testing.assert_allclose(c, np.cos(theta), atol=1e-7)


def test_uniform_never_returns_its_upper_bound() -> None:
    for dtype in DTYPES.values():
        x = mt.uniform(mt.MT19937(5), 40_000, dtype, 1.0, 1.5).astype(np.float64)
        assert x.min() >= 1.0 and x.max() < 1.5
