"""The CPU generator against PyTorch: equal bits and equal state over shapes, seeds, dtypes, mixed calls."""

from __future__ import annotations

import math
import random as pyrandom

import ml_dtypes
import numpy as np
import pytest
from tracegrad.tracer import mt19937 as mt

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

SHAPES = [(0,), (), (1,), (15,), (16,), (17,), (31,), (1000,), (64, 10), (3, 0, 2), (7, 5, 3)]
SEEDS = [0, 42, -1, 2**63 + 12345]
FLOATS = {
    "float16": (np.float16, torch.float16),
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
    "float32": (np.float32, torch.float32),
    "float64": (np.float64, torch.float64),
}
INTS = {
    name: (getattr(np, name), getattr(torch, name)) for name in ("uint8", "int8", "int16", "int32", "int64")
}
ALL = {**FLOATS, **INTS, "bool": (np.bool_, torch.bool)}


def bits(x) -> np.ndarray:
    """The raw bytes of a NumPy array or a torch tensor, as unsigned integers of its element size."""
    if isinstance(x, torch.Tensor):
        size = x.element_size()
        x = (
            x.contiguous()
            .reshape(-1)
            .view(getattr(torch, {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[size]))
        )
        return x.numpy().view(f"u{size}")
    return np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")


def same(ours: np.ndarray, theirs, gen: mt.MT19937) -> None:
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_array_equal(bits(ours), bits(theirs))
    np.testing.assert_array_equal(gen.get_state(), torch.get_rng_state().numpy())


def pair(seed: int) -> mt.MT19937:
    torch.manual_seed(seed)
    return mt.MT19937(seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_real_distributions(dtype: str, seed: int) -> None:
    ours, theirs = FLOATS[dtype]
    gen = pair(seed)
    assert gen.initial_seed() == torch.initial_seed()
    for shape in SHAPES:
        same(mt.uniform(gen, shape, ours), torch.rand(shape, dtype=theirs), gen)
        same(mt.normal(gen, shape, ours), torch.randn(shape, dtype=theirs), gen)
        t = torch.empty(shape, dtype=theirs)
        same(mt.uniform(gen, shape, ours, -0.3, 1.7), t.uniform_(-0.3, 1.7), gen)
        same(mt.uniform(gen, shape, ours, 2.0, 2.0), t.uniform_(2.0, 2.0), gen)
        same(mt.normal(gen, shape, ours, 0.7, 1.3), t.normal_(0.7, 1.3), gen)
        same(mt.normal(gen, shape, ours, 0.0, 0.02), t.normal_(0.0, 0.02), gen)
        same(mt.normal(gen, shape, ours, 1.0, 0.0), t.normal_(1.0, 0.0), gen)
        same(mt.exponential(gen, shape, ours, 1.7), t.exponential_(1.7), gen)
        same(mt.log_normal(gen, shape, ours, 0.1, 0.4), t.log_normal_(0.1, 0.4), gen)
        same(mt.cauchy(gen, shape, ours, 0.1, 0.4), t.cauchy_(0.1, 0.4), gen)
        same(mt.geometric(gen, shape, ours, 0.3), t.geometric_(0.3), gen)


def test_large_normal_and_uniform() -> None:
    gen = pair(7)
    same(mt.normal(gen, 1_000_003), torch.randn(1_000_003), gen)
    same(mt.uniform(gen, 300_001, np.float32, -0.1, 0.3), torch.empty(300_001).uniform_(-0.1, 0.3), gen)
    d = torch.empty(30_001, dtype=torch.float64)
    same(mt.uniform(gen, 30_001, np.float64, -0.1, 0.3), d.uniform_(-0.1, 0.3), gen)
    same(mt.normal(gen, 30_001, np.float64, 5.0, 0.3), d.normal_(5.0, 0.3), gen)
    h = torch.empty(70_001, dtype=torch.bfloat16)
    same(mt.uniform(gen, 70_001, ml_dtypes.bfloat16, 0.0, 3.0), h.uniform_(0.0, 3.0), gen)


def test_non_contiguous_normal() -> None:
    gen = pair(3)
    t = torch.empty(8, 9).t()[:, ::2]
    t.normal_(0.5, 2.0)
    # PyTorch walks this tensor in memory order, so the transposed view holds the samples in drawing order.
    ours = mt.normal(gen, (4, 9), np.float32, 0.5, 2.0, contiguous=False)
    same(ours, t.t(), gen)


@pytest.mark.parametrize("dtype", ALL)
def test_integers(dtype: str) -> None:
    ours, theirs = ALL[dtype]
    gen = pair(11)
    for shape in SHAPES:
        t = torch.empty(shape, dtype=theirs)
        same(mt.random(gen, shape, ours), t.random_(), gen)
        high = 2 if dtype == "bool" else 100
        same(mt.randint(gen, 0, high, shape, ours), t.random_(0, high), gen)
        same(mt.randint(gen, 0, high, shape, ours), torch.randint(high, shape, dtype=theirs), gen)
        same(mt.randint(gen, 1, None, shape, ours), t.random_(1, None), gen)
        if dtype in ("int8", "int16", "int32", "int64", *FLOATS):
            same(mt.randint(gen, -7, 93, shape, ours), t.random_(-7, 93), gen)


@pytest.mark.parametrize("low, high", [
    (0, 2**28 - 1), (0, 2**28), (-5, 2**31), (0, 2**32), (0, 2**32 + 1), (-(2**40), 2**40),
    (-(2**63), 2**63 - 1), (2**63 - 3, 2**63 - 1), (0, 1),
])  # fmt: skip
def test_wide_ranges(low: int, high: int) -> None:
    gen = pair(5)
    same(mt.randint(gen, low, high, 1001), torch.randint(low, high, (1001,)), gen)
    t = torch.empty(17, dtype=torch.int64)
    same(mt.randint(gen, -(2**63), None, 17), t.random_(-(2**63), None), gen)
    same(mt.randint(gen, -(2**63) + 1, None, 17), t.random_(-(2**63) + 1, None), gen)


@pytest.mark.filterwarnings("ignore:.*out of bounds")
def test_float_ranges_move_to_representable_bounds() -> None:
    gen = pair(9)
    cases = [
        ("float16", 0, 65504), ("float16", -4097, 4097), ("float16", 2049, 5000), ("bfloat16", 0, 1000),
        ("bfloat16", -777, 777), ("float32", 0, 2**24 + 1), ("float32", 2**25 + 1, 2**26 + 3),
        ("float32", -(2**40) + 1, 2**40 - 1), ("float64", 0, 2**60 - 1), ("float32", 0, 2**63 - 1),
    ]  # fmt: skip
    for dtype, low, high in cases:
        ours, theirs = FLOATS[dtype]
        same(mt.randint(gen, low, high, 501, ours), torch.empty(501, dtype=theirs).random_(low, high), gen)


def test_randperm() -> None:
    gen = pair(0)
    for n in (0, 1, 2, 15, 1000, 20_000):
        same(mt.randperm(gen, n), torch.randperm(n), gen)
    for dtype, n in (("int8", 128), ("uint8", 256), ("int16", 500), ("int32", 500), ("float16", 2049),
                     ("bfloat16", 257), ("float32", 500), ("float64", 500)):  # fmt: skip
        ours, theirs = ALL[dtype]
        same(mt.randperm(gen, n, ours), torch.randperm(n, dtype=theirs), gen)


@pytest.mark.parametrize("dtype", ALL)
def test_bernoulli(dtype: str) -> None:
    ours, theirs = ALL[dtype]
    gen = pair(21)
    for shape in SHAPES:
        t = torch.empty(shape, dtype=theirs)
        for p in (0.0, 0.3, 0.5, 1.0):
            same(mt.bernoulli(gen, p, shape, ours), t.bernoulli_(p), gen)
        for pn, pt in FLOATS.values():
            probs = np.random.default_rng(1).random(shape).astype(np.float32).astype(pn)
            q = torch.from_numpy(probs.astype(np.float64)).to(pt)
            same(mt.bernoulli(gen, np.asarray(probs), dtype=ours), t.bernoulli_(q), gen)


@pytest.mark.parametrize("dtype", FLOATS)
def test_multinomial(dtype: str) -> None:
    ours, theirs = FLOATS[dtype]
    gen = pair(33)
    for shape, samples in (((10,), 5), ((3, 7), 4), ((4, 1000), 30), ((5, 3), 1), ((1,), 1)):
        probs = np.random.default_rng(2).random(shape).astype(ours)
        q = torch.from_numpy(probs.astype(np.float64)).to(theirs)
        same(mt.multinomial(gen, probs, samples, True), torch.multinomial(q, samples, True), gen)
        same(mt.multinomial(gen, probs, 1), torch.multinomial(q, 1), gen)
        if dtype in ("float32", "float64"):  # half types have equal ratios, whose order PyTorch leaves open
            same(mt.multinomial(gen, probs, samples), torch.multinomial(q, samples), gen)
    zeros = np.array([0, 0, 1, 0, 2, 0], ours)
    q = torch.from_numpy(zeros.astype(np.float64)).to(theirs)
    same(mt.multinomial(gen, zeros, 50, True), torch.multinomial(q, 50, True), gen)
    same(mt.multinomial(gen, zeros, 2), torch.multinomial(q, 2), gen)


@pytest.mark.parametrize("seed", range(4))
def test_interleaved_calls(seed: int) -> None:
    choose = pyrandom.Random(seed)
    gen = pair(seed)
    names = list(FLOATS)
    for _ in range(150):
        ours, theirs = FLOATS[choose.choice(names)]
        n = choose.choice([0, 1, 2, 3, 7, 15, 16, 17, 33, 623, 624, 625, 1249])
        kind = choose.randrange(6)
        if kind == 0:
            same(mt.uniform(gen, n, ours), torch.rand(n, dtype=theirs), gen)
        elif kind <= 2:
            same(mt.normal(gen, n, ours), torch.randn(n, dtype=theirs), gen)
        elif kind == 3:
            same(mt.randint(gen, 0, 10, n), torch.randint(10, (n,)), gen)
        elif kind == 4:
            same(mt.randperm(gen, n), torch.randperm(n), gen)
        else:
            same(mt.bernoulli(gen, 0.4, n), torch.empty(n).bernoulli_(0.4), gen)


def test_states_are_exchanged_both_ways() -> None:
    gen = pair(8)
    mt.normal(gen, 7)  # leaves a cached sample behind
    mt.uniform(gen, 700)
    torch.set_rng_state(torch.from_numpy(gen.get_state()))
    same(mt.normal(gen, 5), torch.randn(5), gen)
    torch.randn(9)
    torch.rand(1000)
    gen.set_state(torch.get_rng_state().numpy())
    same(mt.normal(gen, 3), torch.randn(3), gen)
    same(mt.normal(gen, 1000), torch.randn(1000), gen)
    assert gen.initial_seed() == torch.initial_seed()


def test_a_training_scripts_opening() -> None:
    """Seed, data, targets, then the initialisers of two linear layers: PyTorch's values throughout."""
    gen = pair(0)
    same(mt.normal(gen, (64, 1000)), torch.randn(64, 1000), gen)
    same(mt.normal(gen, (64, 10)), torch.randn(64, 10), gen)
    for fan_in, fan_out in ((1000, 100), (100, 10)):
        layer = torch.nn.Linear(fan_in, fan_out)
        # kaiming_uniform_ with a = sqrt(5), computed in the order the initialiser computes it
        bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(fan_in))
        weight = mt.uniform(gen, (fan_out, fan_in), np.float32, -bound, bound)
        edge = 1 / math.sqrt(fan_in)
        bias = mt.uniform(gen, (fan_out,), np.float32, -edge, edge)
        same(weight, layer.weight.detach(), gen)
        same(bias, layer.bias.detach(), gen)
    state = gen.get_state()
    torch.set_rng_state(torch.from_numpy(state))
    same(mt.randperm(gen, 640), torch.randperm(640), gen)
