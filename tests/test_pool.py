"""Pools, padding, interpolation and their layers: against PyTorch, and native code against the
interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from conv_cases import POOLS, RESAMPLED, arrays, as_list, compiled, function, run
from test_conv import close, ids

F = tg.nn.functional
CASES = [*POOLS, *RESAMPLED]


@pytest.mark.peer
@pytest.mark.parametrize(("name", "shapes", "attrs"), CASES, ids=ids(CASES))
def test_pool_like_pytorch(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    data = arrays(shapes)
    got, want = (run(lib, function(lib, name, attrs), data) for lib in (tg, torch))
    close(got, want)


@pytest.mark.parametrize(("name", "shapes", "attrs"), CASES, ids=ids(CASES))
def test_native_pool(name: str, shapes: Any, attrs: dict[str, Any]) -> None:
    """Compiled in f32 against the interpreter in f64."""
    data = arrays(shapes, 1)
    f = function(tg, name, attrs)
    close(compiled(f, data), run(tg, f, data), rtol=2e-5, atol=2e-5)


LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("MaxPool1d", (2,), {}, (2, 3, 8)),
    ("MaxPool2d", (3, 2), {"padding": 1, "ceil_mode": True}, (2, 3, 8, 7)),
    ("MaxPool2d", ((3, 2),), {"dilation": (1, 2), "return_indices": True}, (3, 8, 7)),
    ("MaxPool3d", (2,), {"stride": (1, 2, 2)}, (1, 2, 4, 4, 4)),
    ("AvgPool1d", (3,), {"stride": 2, "padding": 1}, (2, 3, 8)),
    ("AvgPool2d", (2,), {"count_include_pad": False, "padding": 1}, (2, 3, 8, 7)),
    ("AvgPool3d", ((2, 1, 2),), {"divisor_override": 3}, (1, 2, 4, 4, 4)),
    ("LPPool1d", (2, 3), {}, (2, 3, 8)),
    ("LPPool2d", (2, 2), {"stride": 1}, (2, 3, 8, 7)),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 3, 8)),
    ("AdaptiveAvgPool2d", ((None, 3),), {}, (2, 3, 8, 7)),
    ("AdaptiveAvgPool3d", (1,), {}, (1, 2, 4, 4, 4)),
    ("AdaptiveMaxPool1d", (3,), {}, (2, 3, 8)),
    ("AdaptiveMaxPool2d", ((4, 3),), {"return_indices": True}, (2, 3, 8, 7)),
    ("AdaptiveMaxPool3d", (2,), {}, (1, 2, 4, 4, 4)),
    ("ConstantPad1d", (2, 1.5), {}, (2, 3, 4)),
    ("ConstantPad2d", ((1, 0, -1, 2), 0.5), {}, (2, 3, 4)),
    ("ConstantPad3d", (1, 2), {}, (2, 3, 4, 2)),
    ("ZeroPad1d", (1,), {}, (2, 3, 4)),
    ("ZeroPad2d", ((1, 2, 0, 1),), {}, (2, 3, 4)),
    ("ZeroPad3d", (1,), {}, (2, 3, 4, 2)),
    ("ReflectionPad1d", ((3, 1),), {}, (2, 3, 4)),
    ("ReflectionPad2d", (2,), {}, (2, 3, 4)),
    ("ReflectionPad3d", (1,), {}, (2, 3, 4, 2)),
    ("ReplicationPad1d", (2,), {}, (2, 3, 4)),
    ("ReplicationPad2d", ((5, 0, 1, 2),), {}, (2, 3, 4)),
    ("ReplicationPad3d", (1,), {}, (2, 3, 4, 2)),
    ("CircularPad1d", (2,), {}, (2, 3, 4)),
    ("CircularPad2d", ((3, 0, 1, 2),), {}, (2, 3, 4)),
    ("CircularPad3d", (1,), {}, (2, 3, 4, 2)),
    ("Upsample", (), {"scale_factor": 2}, (1, 2, 3, 4)),
    ("Upsample", ((5, 3),), {"mode": "bilinear", "align_corners": True}, (1, 2, 3, 4)),
    ("Upsample", (), {"scale_factor": (1.5, 2.0), "mode": "bicubic"}, (1, 2, 3, 4)),
    ("UpsamplingNearest2d", (7,), {}, (1, 2, 3, 4)),
    ("UpsamplingBilinear2d", (), {"scale_factor": 2}, (1, 2, 3, 4)),
    ("PixelShuffle", (2,), {}, (1, 8, 3, 4)),
    ("PixelUnshuffle", (2,), {}, (1, 2, 4, 6)),
    ("ChannelShuffle", (2,), {}, (1, 4, 3)),
]


@pytest.mark.peer
@pytest.mark.parametrize(("name", "args", "kwargs", "shape"), LAYERS, ids=[c[0] for c in LAYERS])
def test_layer_like_pytorch(name: str, args: Any, kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Text, results and their types."""
    torch = pytest.importorskip("torch")
    (data,) = arrays((shape,))
    made = []
    for lib in (tg, torch):
        layer = getattr(lib.nn, name)(*args, **kwargs)
        outs = as_list(layer(lib.tensor(data.tolist())))
        made.append((repr(layer), [o.numpy() for o in outs]))
    assert made[0][0] == made[1][0]
    for a, b in zip(made[0][1], made[1][1], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("n", [1, 2, 3])
def test_unpooling_like_pytorch(n: int) -> None:
    torch = pytest.importorskip("torch")
    (data,) = arrays(((2, 2, *(6, 8, 4)[:n]),))
    made = []
    for lib in (tg, torch):

        def f(x: Any, lib: Any = lib) -> Any:
            pool = getattr(lib.nn, f"MaxPool{n}d")(2, stride=2, return_indices=True)
            unpool = getattr(lib.nn, f"MaxUnpool{n}d")(2, stride=2)
            values, at = pool(x)
            size = [m + (d == 0) for d, m in enumerate(x.shape[2:])]
            return unpool(values * values, at) + 0, unpool(values, at, output_size=size)

        made.append(run(lib, f, [data]))
        assert repr(getattr(lib.nn, f"MaxUnpool{n}d")(2)) == repr(getattr(torch.nn, f"MaxUnpool{n}d")(2))
    close(*made)


@pytest.mark.peer
@pytest.mark.parametrize(("name", "args"), [("max_pool2d", (3, 2, 1)), ("adaptive_max_pool2d", (2,))])
def test_extrema_of_special_values_like_pytorch(name: str, args: tuple[int, ...]) -> None:
    """Ties, -inf everywhere and NaN: values, positions, gradients."""
    torch = pytest.importorskip("torch")
    inf, nan = float("inf"), float("nan")
    data = np.zeros((1, 3, 5, 5), np.float32)
    data[0, 1] = -inf
    data[0, 2, 2, 3] = nan
    data[0, 2, 0, 0] = inf
    made = []
    for lib in (tg, torch):
        x = lib.tensor(data.tolist()).requires_grad_()
        values, at = getattr(lib.nn.functional, name)(x, *args, return_indices=True)
        values[:, :2].sum().backward()
        made.append((values.detach().numpy(), at.numpy()[:, :2], x.grad.numpy()))
    for a, b in zip(*made):
        np.testing.assert_array_equal(a, b)


@pytest.mark.peer
def test_second_derivatives_of_pools() -> None:
    torch = pytest.importorskip("torch")
    data = arrays(((1, 2, 6, 7),))
    for name, attrs in (
        ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("adaptive_avg_pool2d", {"output_size": (4, 3)}),
        ("interpolate", {"size": (9, 4), "mode": "bicubic"}),
        ("pad", {"pad": (2, 1, 1, 2), "mode": "reflect"}),
    ):

        def squared(lib: Any, name: str = name, attrs: dict[str, Any] = attrs) -> Any:
            f = function(lib, name, attrs)
            return lambda x: f(x) ** 3

        close(*(run(lib, squared(lib), data, order=2) for lib in (tg, torch)))


def test_pools_of_integers() -> None:
    x = tg.tensor([[3, -5, 2, -9, -7, -8]])
    assert F.max_pool1d(x, 2, padding=1, stride=2).tolist() == [[3, 2, -7, -8]]
    assert F.avg_pool1d(x, 2).tolist() == [[-1, -3, -7]]  # towards zero
    assert F.pad(x, (1, 1), value=4).tolist() == [[4, 3, -5, 2, -9, -7, -8, 4]]
    assert F.interpolate(x.unsqueeze(0), scale_factor=0.5).tolist() == [[[3, 2, -7]]]


def test_compiled_pools_of_half_types() -> None:
    (data,) = arrays(((2, 3, 8, 8),))
    for dtype in (tg.float16, tg.bfloat16):
        x = tg.tensor(data.tolist()).to(dtype)
        f = lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2)  # noqa: E731
        assert f(x).dtype is dtype
        np.testing.assert_array_equal(tg.compile(f)(x).to(tg.float32).numpy(), f(x).to(tg.float32).numpy())


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda x: F.max_pool2d(x, 2, padding=2), RuntimeError, "at most half of the kernel"),
    (lambda x: F.max_pool2d(x, 9), RuntimeError, r"kernel \[9, 9\].* does not fit the input \[5, 6\]"),
    (lambda x: F.max_pool2d(x[0, 0], 2), RuntimeError, r"3D \(unbatched\) or 4D"),
    (lambda x: F.max_pool2d(x, (1, 2, 3)), ValueError, "an int or 2 ints"),
    (lambda x: F.avg_pool2d(x, 2, divisor_override=0), RuntimeError, "must not be zero"),
    (lambda x: F.adaptive_avg_pool2d(x.long(), 2), RuntimeError, "floating-point"),
    (lambda x: F.avg_pool2d(x[:, :0], 2), RuntimeError, "not empty"),
    (lambda x: F.adaptive_avg_pool2d(x, (1, 2, 3)), ValueError, "output_size must be"),
    (lambda x: F.adaptive_max_pool2d(x, -1), RuntimeError, "output size must be"),
    (lambda x: F.max_unpool2d(x, x, 2), RuntimeError, "integer indices"),
    (lambda x: F.max_unpool2d(x, x.long(), 2, output_size=(3, 3)), ValueError, "must be between"),
    (lambda x: F.pad(x, (1,)), ValueError, "divisible by 2"),
    (lambda x: F.pad(x, (1,) * 10), ValueError, "at most two amounts"),
    (lambda x: F.pad(x, (-9, 1)), RuntimeError, "leaves nothing"),
    (lambda x: F.pad(x, (6, 0), mode="reflect"), RuntimeError, "non-constant padding"),
    (lambda x: F.pad(x[0], (6, 0), mode="reflect"), RuntimeError, "can be at most 5"),
    (lambda x: F.pad(x[0], (7, 0), mode="circular"), RuntimeError, "can be at most 6"),
    (lambda x: F.pad(x[0], (1, 0), mode="wrap"), ValueError, "unrecognised padding mode"),
    (lambda x: F.pad(x[0], (1, 0), mode="reflect", value=1.0), ValueError, "doesn't take in value"),
    (lambda x: F.interpolate(x), ValueError, "exactly one of size and scale_factor"),
    (lambda x: F.interpolate(x, 3, mode="linear"), ValueError, "needs 3D input; use bilinear"),
    (lambda x: F.interpolate(x, 3, align_corners=True), ValueError, "align_corners option"),
    (lambda x: F.interpolate(x, 3, antialias=True), ValueError, "antialias is for"),
    (lambda x: F.interpolate(x, (1, 2, 3)), ValueError, "size must be a number or 2"),
    (lambda x: F.interpolate(x, scale_factor=0.01), RuntimeError, "greater than 0"),
    (lambda x: F.interpolate(x.long(), 3, mode="bilinear"), RuntimeError, "floating-point"),
    (lambda x: F.pixel_shuffle(x, 2), RuntimeError, "divisible by the square"),
    (lambda x: F.pixel_unshuffle(x, 4), RuntimeError, "divisible by a factor"),
    (lambda x: F.channel_shuffle(x, 2), RuntimeError, "divisible by groups=2"),
    (lambda x: tg.nn.ZeroPad2d((1, 2)), ValueError, "an int or 4 ints"),
]


@pytest.mark.parametrize(("call", "kind", "words"), BAD)
def test_bad_pools_say_what_is_wrong(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call(tg.zeros(2, 3, 5, 6))


def test_upsample_warns_of_its_new_name() -> None:
    with pytest.warns(UserWarning, match="interpolate"):
        assert tuple(F.upsample(tg.zeros(1, 1, 2, 2), scale_factor=2).shape) == (1, 1, 4, 4)
