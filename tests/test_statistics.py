"""Reductions that leave NaN out or give two results, counts, histograms and covariance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import TracegradError

NAN, INF = float("nan"), float("inf")


def test_sums_and_means_without_nan() -> None:
    x = tg.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN]], requires_grad=True)
    assert tg.nansum(x).item() == 4 and tg.nansum(x, 1).tolist() == [4, 0]
    assert tg.nanmean(x).item() == 2 and x.nanmean(0, keepdim=True).tolist()[0][::2] == [1, 3]
    assert tg.nanmean(x, 1).isnan().tolist() == [False, True]
    tg.nansum(x, 1).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert tg.nansum(tg.tensor([True, True])).dtype is tg.int64


def test_two_results() -> None:
    x = tg.tensor([[3.0, 1.0], [2.0, 5.0]], requires_grad=True)
    r = tg.aminmax(x, dim=1)
    assert r.min.tolist() == [1, 2] and r.max.tolist() == [3, 5]
    low, high = x.aminmax()
    (high - low).backward()
    assert x.grad is not None and x.grad.tolist() == [[0, -1], [0, 1]]
    std, mean = tg.std_mean(x, 1)
    var, again = tg.var_mean(x, dim=1, correction=0, keepdim=True)
    np.testing.assert_allclose(std.tolist(), [2**0.5, 3 / 2**0.5], rtol=1e-6)
    assert var.tolist() == [[1.0], [2.25]] and mean.tolist() == [2, 3.5] == again.reshape(-1).tolist()
    assert "StdMeanBackward0" in repr(std.grad_fn)


def test_counts() -> None:
    x = tg.tensor([[0, 1, 2], [0, 0, NAN]])
    assert tg.count_nonzero(x).item() == 3 and x.count_nonzero(dim=0).tolist() == [0, 1, 2]
    assert x.count_nonzero((0, 1)).dtype is tg.int64
    i = tg.tensor([1, 1, 4])
    assert tg.bincount(i).tolist() == [0, 2, 0, 0, 1]
    assert i.bincount(minlength=7).tolist() == [0, 2, 0, 0, 1, 0, 0]
    assert tg.bincount(i, tg.tensor([0.5, 1.0, 2.0])).tolist() == [0, 1.5, 0, 0, 2]
    assert tg.bincount(tg.zeros(0, dtype=tg.int64)).shape == (0,)


def test_histograms() -> None:
    x = np.random.default_rng(0).uniform(-2, 3, 500).astype(np.float32)
    np.testing.assert_array_equal(tg.histc(tg.from_numpy(x), 7).numpy(), np.histogram(x, 7)[0])
    want = np.histogram(x, 5, (-1, 2))[0]
    np.testing.assert_array_equal(tg.histc(tg.from_numpy(x), 5, -1, 2).numpy(), want)
    assert tg.histc(tg.tensor([NAN, 1.0, 1.0, 2.0]), 2, 0, 2).tolist() == [0, 3]
    assert tg.histc(tg.tensor([3.0, 3.0]), 3).tolist() == [0, 2, 0]


def test_numbers_for_what_is_none() -> None:
    x = tg.tensor([NAN, INF, -INF, 2.0])
    assert tg.nan_to_num(x, 1.0, 5.0, -5.0).tolist() == [1, 5, -5, 2]
    largest = float(np.finfo(np.float32).max)
    assert x.nan_to_num().tolist() == [0, largest, -largest, 2]
    assert x.nan_to_num_(nan=3.0) is x and x.tolist()[0] == 3
    assert tg.nan_to_num(tg.tensor([1, 2])).tolist() == [1, 2]


def test_covariance() -> None:
    x = np.random.default_rng(1).standard_normal((3, 8))
    t = tg.from_numpy(x)
    f, a = np.array([1, 2, 1, 1, 3, 1, 1, 1]), np.linspace(0.1, 1, 8)
    fw, aw = tg.from_numpy(f), tg.from_numpy(a)
    np.testing.assert_allclose(tg.cov(t).numpy(), np.cov(x), rtol=1e-10)
    np.testing.assert_allclose(tg.cov(t, correction=0).numpy(), np.cov(x, ddof=0), rtol=1e-10)
    weighted = tg.cov(t, fweights=fw, aweights=aw)
    np.testing.assert_allclose(weighted.numpy(), np.cov(x, fweights=f, aweights=a), rtol=1e-10)
    np.testing.assert_allclose(tg.corrcoef(t).numpy(), np.corrcoef(x), rtol=1e-10)
    np.testing.assert_allclose(tg.cov(t[0]).item(), np.cov(x[0]), rtol=1e-10)
    assert tg.corrcoef(t[0]).item() == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: tg.nanmean(x.long()), "floating-point"),
        (lambda x: tg.bincount(x), "vector of integers"),
        (lambda x: tg.bincount(tg.tensor([-1])), "must not be negative"),
        (lambda x: tg.bincount(tg.tensor([1]), tg.ones(2)), "input's shape"),
        (lambda x: tg.histc(x, 0), "bins must be positive"),
        (lambda x: tg.histc(x, 3, 2, 1), "max must not be less"),
        (lambda x: tg.histc(x.int()), "floating-point"),
        (lambda x: tg.cov(tg.zeros(1, 2, 3)), "at most two"),
        (lambda x: tg.cov(x, fweights=tg.ones(4)), "4 integers"),
        (lambda x: tg.aminmax(tg.zeros(0)), "empty"),
        (lambda x: tg.count_nonzero(x, 3), "out of range"),
    ],
)
def test_errors_say_what_was_expected(call: Any, words: str) -> None:
    with pytest.raises(TracegradError, match=words):
        call(tg.zeros(3, 4))


#: expressions in x
PEER = """
T.nansum(x)
T.nansum(x, 1)
T.nansum(x, (0, 1), True)
T.nanmean(x)
T.nanmean(x, 0, True)
T.count_nonzero(x)
T.count_nonzero(x, 1)
T.count_nonzero(x, dim=(0, 1))
T.aminmax(x)
T.aminmax(x, dim=1, keepdim=True)
T.std_mean(x)
T.std_mean(x, 1)
T.std_mean(x, dim=(0, 1), correction=0, keepdim=True)
T.var_mean(x, False)
T.var_mean(x, 0, True, True)
T.nan_to_num(x)
T.nan_to_num(x, nan=2.5, posinf=7.0, neginf=-7.0)
x.clone().nan_to_num_(1.0)
T.diff(x)
T.diff(x, 2, 0)
T.diff(x, dim=0, prepend=x[:1], append=x)
T.trapezoid(x)
T.trapezoid(x, dx=0.3, dim=0)
T.trapezoid(x, T.arange(5, dtype=x.dtype) ** 2)
T.trapz(x, x * 2, dim=0)
T.cumulative_trapezoid(x, dim=0)
T.cumulative_trapezoid(x, x + 1)
T.histc(x, 4, -2, 2)
T.histc(x[:, 0], 3, 1, 1)
T.cov(x)
T.cov(x, correction=0)
T.cov(x[0])
T.cov(x, fweights=T.tensor([1, 2, 0, 4, 1]), aweights=T.tensor([0.5, 1.0, 2.0, 0.1, 1.0]).to(x.dtype))
T.corrcoef(x)
T.corrcoef(x[0])
""".strip().splitlines()


@pytest.mark.peer
@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("source", PEER)
def test_peer(source: str, special: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    for name in ("float64", "float32", "int64", "uint8", "bool"):
        a = rng.uniform(0 if name in ("uint8", "bool") else -3, 3, (4, 5)).round(1).astype(name)
        if special and a.dtype.kind == "f":
            # PyTorch's running mean makes NaN of infinities where a sum does not.
            infinite = (NAN, NAN) if "_mean(" in source else (INF, -INF)
            a.reshape(-1)[[3, 7, 8, 12]] = NAN, *infinite, 0
        with np.errstate(all="ignore"):
            try:
                want = eval(source, {"T": torch, "x": torch.from_numpy(a)})
            except (RuntimeError, NotImplementedError, TypeError):
                continue
        got = eval(source, {"T": tg, "x": tg.from_numpy(a)})
        many = isinstance(want, tuple)
        pairs = list(zip(got, want, strict=True)) if many else [(got, want)]
        for g, w in pairs:
            assert str(g.dtype).split(".")[1] == str(w.dtype).split(".")[1]
            assert tuple(g.shape) == tuple(w.shape)
            tolerance = 1e-10 if name == "float64" else 2e-5
            np.testing.assert_allclose(g.numpy(), w.numpy(), rtol=tolerance, atol=tolerance)
        if name == "float64" and not special and pairs[0][1].dtype.is_floating_point:
            gradients(torch, source, a)


def gradients(torch: Any, source: str, a: np.ndarray) -> None:
    found = []
    for T in (torch, tg):
        x = T.from_numpy(a.copy()).requires_grad_()
        r = eval(source, {"T": T, "x": x})
        r = r if isinstance(r, tuple) else (r,)
        if not r[0].requires_grad:
            return
        rng = np.random.default_rng(1)
        total = sum((o * T.from_numpy(rng.standard_normal(tuple(o.shape)))).sum() for o in r)
        (g,) = T.autograd.grad(total, x)
        found.append(g.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-10)
