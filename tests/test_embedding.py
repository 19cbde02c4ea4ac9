"""Embeddings and bags: gradients, norms in place, offsets that change between calls, errors, PyTorch's
numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import nn

F = nn.functional
TABLE = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
FLAT = np.array([1, 3, 3, 0, 2, 1, 4])


def a(t: Any) -> np.ndarray:
    return t.detach().numpy().copy()


def table() -> Any:
    return tg.tensor(TABLE, requires_grad=True)


def bags(rows: list[list[int]], mode: str, pad: int | None = None) -> np.ndarray:
    """Each bag on its own."""
    out = []
    for row in rows:
        kept = TABLE[[i for i in row if i != pad]].astype(np.float64)
        out.append(
            {"sum": kept.sum, "mean": kept.mean, "max": kept.max}[mode](0) if len(kept) else np.zeros(3)
        )
    return np.array(out)


def test_padding_and_frequencies() -> None:
    w = table()
    i = tg.tensor([[1, 3, 3], [0, 2, 1]])
    F.embedding(i, w, padding_idx=-2).sum().backward()
    np.testing.assert_array_equal(a(w.grad)[:, 0], [1, 2, 1, 0, 0])
    w = table()
    F.embedding(i, w, scale_grad_by_freq=True, sparse=True).sum().backward()
    np.testing.assert_array_equal(a(w.grad)[:, 0], [1, 1, 1, 1, 0])


@pytest.mark.parametrize("compile_", [False, True])
def test_max_norm_scales_rows_in_place(compile_: bool) -> None:
    w = table()
    i = tg.tensor([1, 3, 3])
    look = (
        tg.compile(lambda i: F.embedding(i, w, max_norm=0.5))
        if compile_
        else lambda i: F.embedding(i, w, max_norm=0.5)
    )
    y = look(i)
    norms = np.linalg.norm(a(w), axis=1)
    assert (norms[[1, 3]] <= 0.5 + 1e-6).all()
    np.testing.assert_array_equal(a(w)[[0, 2, 4]], TABLE[[0, 2, 4]])
    np.testing.assert_array_equal(a(y), a(w)[[1, 3, 3]])
    assert look(tg.zeros(0, dtype=tg.int64)).shape == (0, 3)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_equal_length(mode: str) -> None:
    rows = [[1, 3, 3], [0, 2, 1]]
    for pad in (None, 3):
        got = F.embedding_bag(tg.tensor(rows), table(), mode=mode, padding_idx=pad)
        np.testing.assert_allclose(a(got), bags(rows, mode, pad), rtol=1e-6)
    empty = F.embedding_bag(tg.zeros(2, 0, dtype=tg.int64), table(), mode=mode)
    np.testing.assert_array_equal(a(empty), np.zeros((2, 3)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_offsets_may_change_between_native_calls(mode: str) -> None:
    w = table()
    look = tg.compile(lambda i, o: F.embedding_bag(i, w, o, mode=mode))
    for offsets in ([0, 2, 5], [0, 0, 7], [0, 1, 1]):
        ends = [*offsets[1:], 7]
        wanted = bags([list(FLAT[s:e]) for s, e in zip(offsets, ends)], mode)
        np.testing.assert_allclose(a(look(tg.tensor(FLAT), tg.tensor(offsets))), wanted, rtol=1e-6)
    assert len(look.specializations) == 1 and sum(map(len, look.specializations.values())) == 1
    last = F.embedding_bag(tg.tensor(FLAT), w, tg.tensor([0, 2, 5, 7]), mode=mode, include_last_offset=True)
    wanted = bags([list(FLAT[:2]), list(FLAT[2:5]), list(FLAT[5:])], mode)
    np.testing.assert_allclose(a(last), wanted, rtol=1e-6)


def test_weights_of_single_indices_have_gradients() -> None:
    w = table()
    p = tg.tensor(np.linspace(1, 2, 7), dtype=tg.float32, requires_grad=True)
    y = F.embedding_bag(tg.tensor(FLAT), w, tg.tensor([0, 4]), mode="sum", per_sample_weights=p)
    y.sum().backward()
    np.testing.assert_allclose(a(p.grad), TABLE[FLAT].sum(1), rtol=1e-5)
    wanted = np.zeros(5)
    np.add.at(wanted, FLAT, np.linspace(1, 2, 7))
    np.testing.assert_allclose(a(w.grad)[:, 0], wanted, rtol=1e-6)


def test_bag_gradients_scale_by_frequency() -> None:
    w = table()
    F.embedding_bag(
        tg.tensor(FLAT), w, tg.tensor([0, 4]), mode="sum", scale_grad_by_freq=True
    ).sum().backward()
    np.testing.assert_allclose(a(w.grad), np.ones((5, 3)))


def test_a_compiled_step_trains_a_table() -> None:
    tg.manual_seed(0)
    m = nn.EmbeddingBag(50, 8, mode="mean")
    head = nn.Linear(8, 2)
    opt = tg.optim.Adagrad([*m.parameters(), *head.parameters()], lr=0.1)
    i, o, y = tg.randint(0, 50, (40,)), tg.arange(0, 40, 4), tg.randint(0, 2, (10,))

    @tg.compile
    def step() -> Any:
        opt.zero_grad()
        loss = F.cross_entropy(head(m(i, o)), y)
        loss.backward()
        opt.step()
        return loss

    losses = a(step.repeat(30))
    assert losses[-1] < 0.2 * losses[0]


def test_bad_input_is_named() -> None:
    w = table()
    with pytest.raises(IndexError, match="7 is out of bounds"):
        F.embedding(tg.tensor([7]), w)
    with pytest.raises(ValueError, match=r"int64 or int32, got f32\[1\]"):
        F.embedding(tg.tensor([1.0]), w)
    with pytest.raises(ValueError, match="padding_idx"):
        nn.Embedding(3, 2, padding_idx=5)
    flat = tg.tensor(FLAT)
    for offsets, words in (([1, 2], "start at 0"), ([0, 9], "at most at the input's length 7")):
        with pytest.raises(ValueError, match=words):
            F.embedding_bag(flat, w, tg.tensor(offsets))
    with pytest.raises(ValueError, match=r"\[n\] with offsets"):
        F.embedding_bag(flat, w)
    with pytest.raises(ValueError, match="leave out offsets"):
        F.embedding_bag(flat.reshape(1, 7), w, tg.tensor([0]))
    with pytest.raises(ValueError, match="mode 'sum' only"):
        F.embedding_bag(flat, w, tg.tensor([0]), mode="max", per_sample_weights=tg.ones(7))
    with pytest.raises(ValueError, match="'sum', 'mean' or 'max'"):
        F.embedding_bag(flat, w, tg.tensor([0]), mode="min")


def test_from_pretrained() -> None:
    m = nn.Embedding.from_pretrained(tg.tensor(TABLE), padding_idx=1)
    assert not m.weight.requires_grad and m.padding_idx == 1
    np.testing.assert_array_equal(a(m.weight), TABLE)
    b = nn.EmbeddingBag.from_pretrained(tg.tensor(TABLE), freeze=False, mode="max", include_last_offset=True)
    assert b.weight.requires_grad and b.mode == "max" and b.include_last_offset
    with pytest.raises(ValueError, match=r"\[count, size\]"):
        nn.Embedding.from_pretrained(tg.ones(3))


# --- against PyTorch ----------------------------------------------------------------------------------------


def run(lib: Any, make: Any, inputs: list[Any], compile_: bool) -> Any:
    lib.manual_seed(1)
    m = make(lib.nn)
    start = a(m.weight)
    tensors = [None if i is None else lib.tensor(i) for i in inputs]
    scales = [t.requires_grad_() for t in tensors if t is not None and t.is_floating_point()]

    def step(*args: Any) -> Any:
        y = m(*args)
        (y * y).sum().backward()
        return y

    native = tg.compile(step, keep_grads=True) if compile_ else step
    y = native(*tensors)
    return repr(m), [a(t) for t in (y, m.weight.grad, m.weight, *(s.grad for s in scales))] + [start]


CASES: dict[str, tuple[Any, list[Any]]] = {}
SQUARE = np.array([[1, 3, 3], [0, 2, 1]])
for _name, _options in {
    "plain": {}, "padding": {"padding_idx": -2}, "frequency": {"scale_grad_by_freq": True},
    "norm": {"max_norm": 0.5, "norm_type": 1.0, "padding_idx": 3, "sparse": False},
}.items():  # fmt: skip
    CASES[f"embedding_{_name}"] = ((lambda o: lambda nn: nn.Embedding(5, 4, **o))(_options), [SQUARE])
for _mode in ("sum", "mean", "max"):
    for _name, _options in {"plain": {}, "padding": {"padding_idx": 3}, "norm": {"max_norm": 1.0}}.items():
        _make = (lambda m, o: lambda nn: nn.EmbeddingBag(5, 4, mode=m, **o))(_mode, _options)
        CASES[f"{_mode}_{_name}"] = (_make, [SQUARE])
        CASES[f"{_mode}_{_name}_offsets"] = (_make, [FLAT, np.array([0, 2, 2, 5])])
    _make = (lambda m: lambda nn: nn.EmbeddingBag(5, 4, mode=m, include_last_offset=True))(_mode)
    CASES[f"{_mode}_last"] = (_make, [FLAT, np.array([0, 3, 7])])
_SCALES = np.random.default_rng(1).normal(size=7).astype(np.float32)
CASES["weights"] = (
    lambda nn: nn.EmbeddingBag(5, 4, mode="sum", padding_idx=1),
    [FLAT, np.array([0, 2]), _SCALES],
)


@pytest.mark.peer
@pytest.mark.parametrize("name", CASES)
def test_layers_like_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRACEGRAD_LAZY", "interpret")
    make, inputs = CASES[name]
    text, wanted = run(torch, make, inputs, False)
    for compile_ in (False, True) if name.startswith(("embedding", "max_padding", "weights")) else (False,):
        mine, got = run(tg, make, inputs, compile_)
        assert mine == text
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
