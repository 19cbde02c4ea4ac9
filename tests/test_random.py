"""Random numbers inside programs: Philox's known answers, distributions within bounds that a right generator
misses once in 10^7 runs, and the state of generators."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import TraceError
from tracegrad.ir.graph import Graph
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.ops.random import philox4x32
from tracegrad.ir.scalar import NUMPY_SCALAR
from tracegrad.ir.types import Type
from tracegrad.runtime.buffers import copy_of
from tracegrad.runtime.executable import Executable, Lowered
from tracegrad.tracer.random import draw

F = nn.functional
#: deviations allowed, in standard errors
SIGMAS = 5.4


@pytest.fixture(autouse=True)
def seeded() -> Any:
    state = tg.get_rng_state()
    tg.manual_seed(1234)
    yield
    tg.set_rng_state(state)


def a(t: Any) -> np.ndarray:
    return t.detach().numpy().copy()


# --- the generator ------------------------------------------------------------------------------------------

#: counter, key, result: philox4x32 with 10 rounds of Random123's kat_vectors (Salmon et al. 2011)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_numbers(counter: Any, key: Any, words: Any) -> None:
    def elements(numbers: Any) -> Any:
        return tuple(np.array([n], np.uint32) for n in numbers)

    made = philox4x32(NUMPY_SCALAR, elements(counter), elements(key))
    assert tuple(int(w[0]) for w in made) == words


def bits_graph(shape: tuple[int, ...], words: int = 1) -> Graph:
    graph = Graph("bits")
    b = Builder(graph)
    state = graph.add_input(Type(dtypes.int64, (2,)))
    graph.outputs = [b.random_int(state, shape=shape, low=0, high=1 << (32 * words))[0]]
    return graph


def test_the_op_gives_all_words_of_the_counters_in_order() -> None:
    """Seed and number of the draw are key and counter; 16 counters lie side by side, word after word."""
    seed, use = 0x299F31D0A4093822, 0x0370734413198A2E
    (got,), _ = evaluate(bits_graph((100,)), [np.array([seed, use])])
    c = np.arange(32, dtype=np.uint32)
    rest = [np.array([n], np.uint32) for n in (0, 0x13198A2E, 0x03707344)]
    key = [np.array([n], np.uint32) for n in (0xA4093822, 0x299F31D0)]
    with np.errstate(over="ignore"):
        made = philox4x32(NUMPY_SCALAR, (c, *rest), tuple(key))
    wanted = np.stack(made).reshape(4, 2, 16).transpose(1, 0, 2).reshape(-1)[:100]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (65,), (3, 50), (4, 64), (2, 3, 32)])
def test_native_bits_are_the_interpreters(shape: tuple[int, ...]) -> None:
    for words in (1, 2):
        graph = bits_graph(shape, words)
        state = np.array([-7, 3])
        (wanted,), _ = evaluate(graph, [state])
        (got,) = Executable(Lowered(graph))([copy_of(state, dtypes.int64)])
        np.testing.assert_array_equal(got.array, wanted)


def test_the_rounds_are_vector_code() -> None:
    """No multiplication of single numbers in a long loop: those of the counters are by vectors."""
    x = tg.ones(64 * 64)
    text = tg.compile(lambda x: F.dropout(x, 0.3)).lower(x).as_text("llvm")
    wide = [line for line in text.splitlines() if " mul <" in line]
    assert len(wide) >= 20
    loops = tg.compile(lambda x: F.dropout(x, 0.3)).lower(x).as_text("loops")
    assert loops.count('kernel "') == 2  # the masked copy, and the two numbers of the state
    assert "vector" in loops


# --- statistics ---------------------------------------------------------------------------------------------


def near_mean(x: np.ndarray, mean: float, std: float) -> None:
    assert abs(x.mean() - mean) <= SIGMAS * std / math.sqrt(x.size)


def compiled(fn: Callable[[], Any]) -> np.ndarray:
    return a(tg.compile(fn)()).astype(np.float64)


N = 200_000


UNIFORM_MOMENTS = {"float32": tg.float32, "float64": tg.float64}


@pytest.mark.parametrize("dtype", UNIFORM_MOMENTS.values(), ids=UNIFORM_MOMENTS)
def test_uniform_and_normal_numbers(dtype: Any) -> None:
    u = compiled(lambda: tg.rand(N, dtype=dtype))
    assert u.min() >= 0 and u.max() < 1
    near_mean(u, 0.5, math.sqrt(1 / 12))
    near_mean((u - 0.5) ** 2, 1 / 12, math.sqrt(1 / 180))
    counts = np.histogram(u, 64, (0, 1))[0]
    chi2 = ((counts - N / 64) ** 2 / (N / 64)).sum()
    assert chi2 < 63 + SIGMAS * math.sqrt(2 * 63)
    z = compiled(lambda: tg.randn(N, dtype=dtype))
    near_mean(z, 0, 1)
    near_mean(z**2, 1, math.sqrt(2))
    near_mean(z**4, 3, math.sqrt(96))
    near_mean(z > 3, 0.0013498980316300933, math.sqrt(0.00135))


SAMPLERS: dict[str, tuple[Callable[[], Any], float, float]] = {
    "exponential": (lambda: tg.empty(N).exponential_(2.0), 0.5, 0.5),
    "log_normal": (lambda: tg.empty(N).log_normal_(0.0, 0.5).log(), 0.0, 0.5),
    "geometric": (lambda: tg.empty(N).geometric_(0.25), 4.0, math.sqrt(12)),
    "cauchy_sign": (lambda: (tg.empty(N).cauchy_() > 1).float(), 0.25, math.sqrt(0.1875)),
    "bernoulli_number": (lambda: tg.empty(N).bernoulli_(0.3), 0.3, math.sqrt(0.21)),
    "bernoulli_tensor": (lambda: tg.bernoulli(tg.full((N,), 0.3)), 0.3, math.sqrt(0.21)),
    "randint": (lambda: tg.randint(-3, 8, (N,)), 2.0, math.sqrt(10)),
    "randint_wide": (lambda: (tg.randint(0, 3 << 40, (N,)) / (3 << 40)), 0.5, math.sqrt(1 / 12)),
    "random_u8": (lambda: tg.zeros(N, dtype=tg.uint8).random_(), 127.5, math.sqrt((256**2 - 1) / 12)),
    "normal_tensors": (lambda: tg.normal(tg.full((N,), 3.0), tg.full((N,), 2.0)), 3.0, 2.0),
    "uniform_": (lambda: tg.empty(N).uniform_(-1, 3), 1.0, 4 / math.sqrt(12)),
    "bfloat16": (lambda: tg.rand(N, dtype=tg.bfloat16).float(), 0.5 - 2**-9, math.sqrt(1 / 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_in_compiled_functions(name: str) -> None:
    make, mean, std = SAMPLERS[name]
    near_mean(compiled(make), mean, std)


def test_multinomial_in_compiled_functions() -> None:
    p = tg.tensor([0.1, 0.0, 0.6, 0.3])
    many = compiled(lambda: tg.multinomial(p, 20_000, replacement=True))
    for k, share in enumerate([0.1, 0.0, 0.6, 0.3]):
        near_mean(many == k, share, math.sqrt(share * (1 - share)))
    few = compiled(lambda: tg.multinomial(tg.ones(50, 4), 3))
    assert all(len(set(row)) == 3 for row in few)
    order = compiled(lambda: tg.randperm(100))
    assert sorted(order) == list(range(100)) and list(order) != sorted(order)


# --- state --------------------------------------------------------------------------------------------------


def test_seeds_and_states_reproduce() -> None:
    step = tg.compile(lambda: tg.rand(5))

    def numbers() -> list[bytes]:
        return [
            a(t).tobytes() for t in (F.dropout(tg.ones(50), 0.5), step(), tg.rand(4), tg.randn(3), step())
        ]

    tg.manual_seed(3)
    first = numbers()
    state = tg.get_rng_state()
    second = numbers()
    assert first != second
    tg.set_rng_state(state)
    assert numbers() == second
    tg.manual_seed(3)
    assert numbers() == first
    with tg.random.fork_rng():
        numbers()
    assert numbers() == second
    assert tg.initial_seed() == 3


def test_generators_of_ones_own() -> None:
    g = tg.Generator().manual_seed(8)
    default = tg.get_rng_state()
    f = tg.compile(lambda: tg.rand(6, generator=g))
    first, second = a(f()), a(f())
    twin = tg.Generator()
    twin.set_state(g.get_state())
    third = a(f())
    assert len({x.tobytes() for x in (first, second, third)}) == 3
    h = tg.compile(lambda: tg.rand(6, generator=twin))
    np.testing.assert_array_equal(a(h()), third)
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g)), g.clone_state()):
        np.testing.assert_array_equal(a(other.get_state()), a(g.get_state()))
    g.manual_seed(8)
    np.testing.assert_array_equal(a(f()), first)
    np.testing.assert_array_equal(a(tg.get_rng_state()), a(default))
    assert isinstance(g.seed(), int) and g.initial_seed() != 8
    with pytest.raises(tg.TracegradError, match="uint8"):
        g.set_state(tg.ones(3))
    with pytest.raises(tg.TracegradError):
        g.set_state(tg.zeros(7, dtype=tg.uint8))


def test_pytorchs_own_state_is_taken() -> None:
    """The first 5056 bytes are PyTorch's; Philox then starts from that seed."""
    tg.manual_seed(77)
    wanted = a(tg.rand(5))
    state = tg.Generator().manual_seed(77).get_state()
    assert tuple(state.shape) == (5072,)
    tg.set_rng_state(state[:5056].clone())
    np.testing.assert_array_equal(a(tg.rand(5)), wanted)
    mask = a(F.dropout(tg.ones(80), 0.5))
    tg.manual_seed(77)
    np.testing.assert_array_equal(a(F.dropout(tg.ones(80), 0.5)), mask)


def test_what_compiled_functions_cannot_draw() -> None:
    with pytest.raises(TraceError, match="compiled function"):
        tg.compile(lambda: nn.init.trunc_normal_(tg.empty(3)))()
    with pytest.raises(TraceError, match="get_state"):
        tg.compile(lambda: tg.get_rng_state())()


def test_seeding_inside_a_compiled_function_restarts_at_each_call() -> None:
    def f() -> Any:
        tg.manual_seed(11)
        return tg.rand(4)

    native = tg.compile(f)
    np.testing.assert_array_equal(a(native()), a(native()))


def test_a_failed_trace_leaves_the_state() -> None:
    before = tg.get_rng_state()

    def f() -> Any:
        tg.rand(3)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        tg.compile(f)()
    np.testing.assert_array_equal(a(tg.get_rng_state()), a(before))


def test_draws_reject_bad_parameters() -> None:
    for fn in (
        lambda: tg.empty(3).exponential_(-1.0),
        lambda: tg.empty(3).geometric_(1.5),
        lambda: tg.empty(3).normal_(0, -1),
        lambda: tg.randint(3, 3, (2,)),
        lambda: tg.empty(3).bernoulli_(2.0),
        lambda: tg.multinomial(tg.ones(3), 4),
    ):
        for run in (fn, tg.compile(fn)):
            with pytest.raises(tg.TracegradError):
                run()


def test_threads_never_draw_the_same() -> None:
    masks: list[bytes] = []

    def work() -> None:
        for _ in range(10):
            masks.append(a(F.dropout(tg.ones(64), 0.5)).tobytes())

    tg.manual_seed(0)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(masks)) == len(masks) == 40
    assert tg.default_generator.philox.tolist() == [0, 40]


def test_draw_advances_by_one() -> None:
    tg.manual_seed(-2)
    draw("dropout", tg.ones(3), p=0.5)
    draw("random_normal", shape=(3,), dtype=dtypes.float32)
    assert tg.default_generator.philox.tolist() == [-2, 2]


# --- against PyTorch ----------------------------------------------------------------------------------------


@pytest.mark.peer
def test_eager_numbers_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    results = []
    for lib in (tg, torch):
        lib.manual_seed(21)
        m, s = lib.rand(20), lib.rand(20)
        got = [
            lib.empty(20).bernoulli_(0.3), lib.empty(7).exponential_(1.5), lib.empty(7).geometric_(0.2),
            lib.empty(7).log_normal_(), lib.empty(7).cauchy_(), lib.empty(7).uniform_(2, 3),
            lib.empty(7).random_(), lib.empty(7).random_(5), lib.empty(7).random_(-3, 9),
            lib.normal(m, s), lib.normal(m, 2.0), lib.normal(1.0, s), lib.normal(1.0, 2.0, (17,)),
            lib.randint_like(m, 4), lib.randint_like(m, 2, 7), lib.rand_like(m), lib.bernoulli(m),
            lib.bernoulli(m, 0.7), m.multinomial(5), lib.empty(20).bernoulli_(m),
            lib.rand(3, dtype=lib.float64),
            lib.nn.functional.gumbel_softmax(m), lib.randperm(9),
        ]  # fmt: skip
        results.append(got)
    for mine, theirs in zip(*results):
        assert str(mine.dtype).partition(".")[2] == str(theirs.dtype).partition(".")[2]
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.peer
def test_a_state_from_pytorch() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    torch.randn(3)
    tg.set_rng_state(tg.from_numpy(torch.get_rng_state().numpy()))
    np.testing.assert_array_equal(a(tg.rand(5)), torch.rand(5).numpy())
    torch.set_rng_state(torch.from_numpy(a(tg.get_rng_state())[:5056]))
    np.testing.assert_array_equal(a(tg.rand(5)), torch.rand(5).numpy())
