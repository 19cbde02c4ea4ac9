"""Recurrent cells and networks, packed sequences: lengths, states, compile time; numbers like PyTorch's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.nn.utils import rnn as U


def close(a: Any, b: Any, rtol: float = 5e-5, atol: float = 1e-5) -> None:
    if isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            close(x, y, rtol, atol)
    else:
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=rtol, atol=atol)


# --- packed sequences ---


def test_packing() -> None:
    sequences = [tg.tensor([1.0, 2, 3]), tg.tensor([4.0, 5]), tg.tensor([6.0])]
    packed = U.pack_sequence(sequences)
    assert packed.data.tolist() == [1, 4, 6, 2, 5, 3] and packed.batch_sizes.tolist() == [3, 2, 1]
    assert packed.sorted_indices is None
    padded, lengths = U.pad_packed_sequence(packed, batch_first=True, padding_value=-1, total_length=4)
    assert padded.tolist() == [[1, 2, 3, -1], [4, 5, -1, -1], [6, -1, -1, -1]]
    assert lengths.tolist() == [3, 2, 1]
    assert [s.tolist() for s in U.unpack_sequence(packed)] == [s.tolist() for s in sequences]
    mixed = U.pack_sequence(sequences[::-1], enforce_sorted=False)
    assert mixed.data.tolist() == packed.data.tolist() and mixed.sorted_indices.tolist() == [2, 1, 0]
    assert [s.tolist() for s in U.unpack_sequence(mixed)] == [s.tolist() for s in sequences[::-1]]
    double = packed.double()
    assert double.data.dtype is tg.float64 and double.batch_sizes is packed.batch_sizes
    data, sizes, *_ = packed
    assert U.PackedSequence(data, sizes).sizes == [3, 2, 1]
    left = U.pad_sequence(sequences, batch_first=True, padding_side="left")
    assert left.tolist() == [[1, 2, 3], [0, 4, 5], [0, 0, 6]]
    assert U.pad_sequence(sequences).shape == (3, 3)
    assert U.invert_permutation(tg.tensor([2, 0, 1])).tolist() == [1, 2, 0]
    assert [s.tolist() for s in U.unpad_sequence(left.flip(1), [3, 2, 1], True)] == [[3, 2, 1], [5, 4], [6]]


def test_packing_errors() -> None:
    x = tg.zeros(4, 3, 2)
    for make, text in [
        (lambda: U.pack_padded_sequence(x, [4, 3]), "2 lengths"),
        (lambda: U.pack_padded_sequence(x, [5, 3, 1]), "from 1 to 4"),
        (lambda: U.pack_padded_sequence(x, [4, 3, 0]), "from 1 to 4"),
        (lambda: U.pack_padded_sequence(x, [1, 3, 2]), "enforce_sorted=False"),
        (lambda: U.pad_packed_sequence(U.pack_padded_sequence(x, [3, 2, 1]), total_length=2), "at least"),
        (lambda: U.pad_sequence([]), "at least one"),
        (lambda: U.pad_sequence([tg.zeros(2, 3), tg.zeros(2, 4)]), "first dimension only"),
        (lambda: U.pad_sequence([tg.zeros(2)], padding_side="top"), "padding_side"),
    ]:
        with pytest.raises(tg.TracegradError, match=text):
            make()


# --- networks ---


def test_network_is_its_cells() -> None:
    tg.manual_seed(0)
    for net, cell in ((tg.nn.LSTM, tg.nn.LSTMCell), (tg.nn.GRU, tg.nn.GRUCell), (tg.nn.RNN, tg.nn.RNNCell)):
        whole, one = net(3, 4), cell(3, 4)
        one.load_state_dict({k: whole.state_dict()[f"{k}_l0"] for k in one.state_dict()})
        x = tg.randn(5, 2, 3)
        out, end = whole(x)
        state, steps = None, []
        for t in range(5):
            state = one(x[t], state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        close(out, tg.stack(steps))
        close([e[0] for e in end] if isinstance(end, tuple) else [end[0]],
              list(state) if isinstance(state, tuple) else [state])  # fmt: skip


def test_padding_does_not_matter() -> None:
    tg.manual_seed(0)
    m = tg.nn.GRU(3, 4, num_layers=2, bidirectional=True)
    sequences = [tg.randn(n, 3) for n in (2, 5, 3)]
    packed, end = m(U.pack_sequence(sequences, enforce_sorted=False))
    rows = U.unpack_sequence(packed)
    for k, s in enumerate(sequences):
        alone, alone_end = m(s)
        close(rows[k], alone)
        close(end[:, k], alone_end)


def test_program_does_not_grow_with_the_sequence() -> None:
    m = tg.nn.LSTM(3, 4)
    optimizer = tg.optim.SGD(m.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = (m(x)[0] ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    sizes = [tg.compile(step).lower(tg.randn(n, 2, 3)).as_text("loops").count("\n") for n in (8, 64, 512)]
    assert max(sizes) <= 1.2 * min(sizes)


def test_compiled_steps_are_those_of_ordinary_code() -> None:
    tg.manual_seed(0)
    x = tg.randn(6, 4, 3)
    m = tg.nn.LSTM(3, 5, 2, bidirectional=True)
    start = {k: v.clone() for k, v in m.state_dict().items()}

    def train(wrap: Any) -> list[float]:
        m.load_state_dict(start)
        optimizer = tg.optim.Adam(m.parameters(), lr=0.05)

        def step() -> Any:
            optimizer.zero_grad()
            out, (h, _) = m(U.pack_padded_sequence(x, [6, 4, 4, 1]))
            loss = (out.data**2).mean() + h[-1].sum()
            loss.backward()
            optimizer.step()
            return loss

        run = wrap(step)
        return [float(run()) for _ in range(6)]

    np.testing.assert_allclose(train(lambda f: f), train(tg.compile), rtol=1e-4)


def test_double_backward() -> None:
    tg.manual_seed(0)
    m = tg.nn.GRU(2, 3).double()
    x = tg.randn(4, 1, 2, dtype=tg.float64).requires_grad_()

    def penalty(x: Any) -> Any:
        (g,) = tg.autograd.grad((m(x)[0] ** 3).sum(), x, create_graph=True)
        return (g**2).sum()

    (second,) = tg.autograd.grad(penalty(x), x)
    v = tg.randn(4, 1, 2, dtype=tg.float64)
    e = 1e-5
    more, less = (penalty((x + s * v).detach().requires_grad_()).item() for s in (e, -e))
    np.testing.assert_allclose((second * v).sum().item(), (more - less) / (2 * e), rtol=1e-6)


def test_dropout_is_between_layers_and_in_training() -> None:
    with pytest.warns(UserWarning, match="between layers"):
        tg.nn.RNN(2, 3, dropout=0.5)
    m = tg.nn.RNN(2, 3, num_layers=2, dropout=0.5)
    x = tg.randn(4, 1, 2)
    assert not np.allclose(m(x)[0].detach().numpy(), m(x)[0].detach().numpy(), atol=0.01)
    m.eval()
    close(m(x)[0], m(x)[0])


def test_errors() -> None:
    n = tg.nn
    x, m = tg.zeros(4, 2, 3), tg.nn.LSTM(3, 5)
    for make, text in [
        (lambda: n.LSTM(3, 4, proj_size=4), "proj_size"),
        (lambda: n.GRU(3, 0), "hidden_size must be positive"),
        (lambda: n.GRU(3, 4, dropout=2), "dropout"),
        (lambda: n.RNN(3, 4, nonlinearity="sin"), "nonlinearity"),
        (lambda: n.RNNCell(3, 4, nonlinearity="sin")(x[0]), "nonlinearity"),
        (lambda: m(tg.zeros(4, 2, 4)), "3 features"),
        (lambda: m(x.double()), r"convert one of them with \.to"),
        (lambda: m(x, (tg.zeros(1, 2, 5), tg.zeros(1, 3, 5))), r"a state hx of \[1, 2, 5\], \[1, 2, 5\]"),
        (lambda: m(x, tg.zeros(1, 2, 5)), "expected a state"),
        (lambda: n.GRUCell(3, 4)(tg.zeros(2, 5)), r"\[N, 3\]"),
        (lambda: n.GRUCell(3, 4)(tg.zeros(2, 3), tg.zeros(3, 4)), "expected a state"),
    ]:
        with pytest.raises(tg.TracegradError, match=text):
            make()


# --- against PyTorch ---


@pytest.mark.peer
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [2, 5, 1, 3]])
def test_packing_like_pytorch(lengths: list[int]) -> None:
    torch = pytest.importorskip("torch")
    made = []
    for lib, u in ((tg, U), (torch, torch.nn.utils.rnn)):
        g = np.random.default_rng(0)
        rows = [lib.from_numpy(g.normal(size=(n, 2)).astype(np.float32)).requires_grad_() for n in lengths]
        packed = u.pack_sequence(rows, enforce_sorted=lengths[0] == 5)
        padded, back = u.pad_packed_sequence(packed, batch_first=True, padding_value=-1, total_length=6)
        (padded**2).sum().backward()
        more = [] if packed.sorted_indices is None else [packed.sorted_indices, packed.unsorted_indices]
        made.append([
            packed.data, packed.batch_sizes, padded, back, u.pad_sequence(rows, True, 3.0, "left"), *more,
            *[s.grad for s in rows], *u.unpack_sequence(packed),
        ])  # fmt: skip
    close(*made)


@pytest.mark.peer
@pytest.mark.parametrize("name, options", [
    ("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("LSTMCell", {}), ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
])  # fmt: skip
def test_cells_like_pytorch(name: str, options: Any) -> None:
    torch = pytest.importorskip("torch")
    made: list[Any] = []
    for lib in (tg, torch):
        lib.manual_seed(0)
        m = getattr(lib.nn, name)(3, 4, **options)
        x = lib.from_numpy(np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)).requires_grad_()
        end = m(x, m(x))
        parts = end if isinstance(end, tuple) else (end,)
        sum((t * t).sum() for t in parts).backward()
        alone = m(x[0])
        alone = alone if isinstance(alone, tuple) else (alone,)
        grads = [p.grad for p in m.parameters()]
        made.append((repr(m), [*parts, *alone, x.grad, *m.state_dict().values(), *grads]))
    assert made[0][0] == made[1][0]
    close(made[0][1], made[1][1])


NETS: list[Any] = [
    (name, options)
    for name in ("RNN", "LSTM", "GRU")
    for options in (
        {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True},
        {"num_layers": 2, "proj_size": 2, "bidirectional": True},
        {"nonlinearity": "relu", "batch_first": True},
    )
    if not (("proj_size" in options and name != "LSTM") or ("nonlinearity" in options and name != "RNN"))
]  # fmt: skip


def _network(lib: Any, u: Any, name: str, options: Any, kind: str, given: bool) -> tuple[Any, Any]:
    lib.manual_seed(0)
    m = getattr(lib.nn, name)(3, 4, **options)
    g = np.random.default_rng(0)

    def made(*shape: int) -> Any:
        return lib.from_numpy(g.normal(size=shape).astype(np.float32)).requires_grad_()

    first = options.get("batch_first", False)
    x = made(6, 3) if kind == "one" else made(4, 6, 3) if first else made(6, 4, 3)
    layers = m.num_layers * (2 if m.bidirectional else 1)
    shape = (layers,) if kind == "one" else (layers, 4)
    h, c = made(*shape, getattr(m, "proj_size", 0) or 4), made(*shape, 4)
    start = ((h, c) if name == "LSTM" else h) if given else None
    lengths = {"packed": [6, 4, 4, 1], "unsorted": [2, 6, 1, 5]}.get(kind)
    data = x
    if lengths:
        data = u.pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=kind == "packed")
    out, end = m(data, start)
    if lengths:
        out = u.pad_packed_sequence(out, batch_first=first)[0]
    ends = end if isinstance(end, tuple) else (end,)
    ((out * out).sum() + sum((t**3).sum() for t in ends)).backward()
    grads = [x.grad, *([h.grad] if given else []), *[p.grad for p in m.parameters()]]
    return (repr(m), list(m.state_dict())), [out, *ends, *grads, *m.state_dict().values()]


@pytest.mark.peer
@pytest.mark.parametrize("name, options", NETS)
@pytest.mark.parametrize("mode", ["interpret", "compile"])
def test_networks_like_pytorch(name: str, options: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TRACEGRAD_LAZY", mode)
    kinds = [("batch", True), ("one", False), ("packed", False), ("unsorted", True)]
    for kind, given in kinds if mode == "interpret" else [kinds[0], kinds[3]]:
        names, mine = _network(tg, U, name, options, kind, given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            their_names, theirs = _network(torch, torch.nn.utils.rnn, name, options, kind, given)
        assert names == their_names
        close(mine, theirs)
