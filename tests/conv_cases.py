"""Tables of convolutions, pools, pads and interpolations, and the runs that tests compare. Used by
test_conv.py and test_pool.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tracegrad as tg

Case = tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]


def arrays(shapes: tuple[tuple[int, ...], ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def as_list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (tuple, list)) else [out]


def run(lib: Any, f: Callable[..., Any], data: list[np.ndarray], order: int = 1) -> list[np.ndarray]:
    """Results, gradients of a weighted sum of the first, and with order 2 those of a function of the
    gradients."""
    tensors = [lib.tensor(a.tolist(), dtype=lib.float64).requires_grad_() for a in data]
    outs = as_list(f(*tensors))
    made = [o.detach().numpy() for o in outs]
    if order == 0:
        return made
    weight = np.cos(np.arange(made[0].size)).reshape(made[0].shape)
    total = (outs[0] * lib.tensor(weight.tolist(), dtype=lib.float64).reshape(made[0].shape)).sum()
    grads = lib.autograd.grad(total, tensors, create_graph=order > 1)
    made += [g.detach().numpy() for g in grads]
    if order > 1:
        twice = lib.autograd.grad(sum((g * g).sum() for g in grads), tensors, allow_unused=True)
        made += [g.detach().numpy() for g in twice if g is not None]  # a bias has none
    return made


def compiled(f: Callable[..., Any], data: list[np.ndarray]) -> list[np.ndarray]:
    """Results and gradients of native code, in f32."""
    tensors = [tg.tensor(a.tolist()).reshape(a.shape).requires_grad_() for a in data]

    def step(*xs: Any) -> Any:
        outs = as_list(f(*xs))
        n = outs[0].numel()
        weight = tg.arange(n).to(tg.float32).cos().reshape(outs[0].shape)
        grads = tg.autograd.grad((outs[0] * weight).sum(), xs)
        return [*outs, *grads]

    return [o.detach().numpy() for o in tg.compile(step)(*tensors)]


def function(lib: Any, name: str, attrs: dict[str, Any]) -> Callable[..., Any]:
    f = getattr(lib.nn.functional, name)
    return lambda *xs: f(*xs, **attrs)


#: name, shapes of input, weight (and bias), arguments
CONVS: list[Case] = [
    ("conv1d", ((2, 3, 9), (4, 3, 3), (4,)), {}),
    ("conv1d", ((3, 9), (4, 3, 3), (4,)), {"padding": 2, "dilation": 2}),
    ("conv1d", ((2, 4, 11), (6, 2, 4)), {"stride": 3, "padding": 1, "groups": 2}),
    ("conv1d", ((2, 3, 9), (4, 3, 4), (4,)), {"padding": "same"}),
    ("conv1d", ((2, 3, 9), (4, 3, 4), (4,)), {"padding": "same", "dilation": 3}),
    ("conv2d", ((2, 3, 7, 8), (4, 3, 3, 3), (4,)), {"padding": 1}),
    ("conv2d", ((2, 3, 7, 8), (4, 3, 3, 2)), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    ("conv2d", ((2, 3, 8, 8), (4, 3, 3, 3), (4,)), {"stride": 2, "padding": 1}),
    ("conv2d", ((2, 3, 9, 9), (4, 3, 3, 3), (4,)), {"stride": 2, "dilation": 2}),
    ("conv2d", ((2, 3, 8, 8), (4, 3, 2, 2), (4,)), {"stride": 2}),
    ("conv2d", ((2, 3, 9, 10), (4, 3, 2, 2), (4,)), {"stride": 3}),
    ("conv2d", ((1, 3, 16, 17), (2, 3, 7, 7), (2,)), {"stride": 4, "padding": 3}),
    ("conv2d", ((2, 4, 6, 6), (4, 1, 3, 3), (4,)), {"padding": 1, "groups": 4}),
    ("conv2d", ((2, 4, 6, 6), (8, 1, 3, 3)), {"stride": 2, "padding": 1, "groups": 4}),
    ("conv2d", ((2, 6, 5, 5), (4, 3, 3, 3), (4,)), {"groups": 2, "padding": "valid"}),
    ("conv2d", ((2, 5, 4, 6), (3, 5, 1, 1), (3,)), {}),
    ("conv2d", ((2, 5, 5, 6), (3, 5, 1, 1), (3,)), {"stride": 2, "padding": 1}),
    ("conv2d", ((3, 7, 8), (4, 3, 3, 3), (4,)), {"padding": "same"}),
    ("conv2d", ((2, 2, 3, 3), (3, 2, 3, 3), (3,)), {}),
    ("conv3d", ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), (3,)), {"stride": (1, 2, 1), "padding": 1}),
    ("conv3d", ((1, 4, 3, 4, 3), (2, 2, 2, 2, 2)), {"groups": 2, "dilation": (1, 2, 1)}),
    ("conv_transpose1d", ((2, 3, 5), (3, 4, 3), (4,)), {}),
    ("conv_transpose1d", ((2, 3, 5), (3, 4, 3)), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_transpose1d", ((2, 3, 5), (3, 2, 3)), {"padding": 3, "dilation": 2}),
    ("conv_transpose1d", ((2, 3, 5), (3, 2, 3)), {"stride": 2, "dilation": 3, "output_padding": 2}),
    ("conv_transpose2d", ((2, 4, 3, 4), (4, 3, 3, 2), (6,)), {"stride": 2, "groups": 2, "padding": (1, 0)}),
    ("conv_transpose2d", ((2, 4, 3, 3), (4, 3, 4, 4), (3,)), {"stride": 2, "padding": 1}),
    ("conv_transpose2d", ((4, 3, 3), (4, 3, 2, 2), (3,)), {"stride": 2}),
    (
        "conv_transpose2d",
        ((2, 2, 3, 3), (2, 3, 3, 3)),
        {"stride": 3, "output_padding": (2, 1), "dilation": 2},
    ),
    (
        "conv_transpose3d",
        ((1, 2, 2, 3, 2), (2, 2, 2, 2, 3), (2,)),
        {"stride": (1, 2, 1), "padding": (0, 1, 1)},
    ),
]

#: name, shape of the input, arguments
POOLS: list[Case] = [
    ("max_pool1d", ((2, 3, 9),), {"kernel_size": 2}),
    ("max_pool1d", ((3, 9),), {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}),
    ("max_pool2d", ((2, 3, 8, 6),), {"kernel_size": 2, "return_indices": True}),
    ("max_pool2d", ((2, 3, 8, 9),), {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}),
    ("max_pool2d", ((3, 8, 9),), {"kernel_size": (3, 2), "stride": (1, 3), "dilation": (2, 1)}),
    (
        "max_pool2d",
        ((2, 2, 7, 8),),
        {"kernel_size": 3, "stride": 2, "ceil_mode": True, "return_indices": True},
    ),
    ("max_pool2d", ((1, 2, 5, 5),), {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("max_pool3d", ((1, 2, 4, 6, 5),), {"kernel_size": 2, "return_indices": True}),
    ("max_pool3d", ((2, 4, 6, 5),), {"kernel_size": (2, 3, 2), "stride": 1, "padding": (1, 1, 0)}),
    ("avg_pool1d", ((2, 3, 9),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg_pool1d", ((3, 9),), {"kernel_size": (4,), "count_include_pad": False, "padding": (2,)}),
    ("avg_pool2d", ((2, 3, 8, 6),), {"kernel_size": 2}),
    ("avg_pool2d", ((2, 7, 8),), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    (
        "avg_pool2d",
        ((1, 2, 7, 8),),
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ),
    ("avg_pool2d", ((1, 2, 7, 8),), {"kernel_size": (3, 2), "stride": (1, 2), "divisor_override": 5}),
    ("avg_pool3d", ((1, 2, 4, 6, 5),), {"kernel_size": 2, "padding": (1, 0, 1), "stride": (2, 1, 2)}),
    ("adaptive_avg_pool1d", ((2, 3, 9),), {"output_size": 4}),
    ("adaptive_avg_pool2d", ((2, 3, 8, 6),), {"output_size": (4, 3)}),
    ("adaptive_avg_pool2d", ((2, 3, 7, 5),), {"output_size": (3, None)}),
    ("adaptive_avg_pool2d", ((3, 7, 5),), {"output_size": 1}),
    ("adaptive_avg_pool2d", ((1, 3, 4, 5),), {"output_size": (7, 2)}),
    ("adaptive_avg_pool3d", ((1, 2, 4, 5, 3),), {"output_size": (2, 3, 2)}),
    ("adaptive_max_pool1d", ((2, 3, 9),), {"output_size": 4, "return_indices": True}),
    ("adaptive_max_pool2d", ((2, 3, 8, 6),), {"output_size": (4, 3), "return_indices": True}),
    ("adaptive_max_pool2d", ((3, 7, 5),), {"output_size": (3, None), "return_indices": True}),
    ("adaptive_max_pool3d", ((1, 2, 4, 5, 3),), {"output_size": (2, 3, 2), "return_indices": True}),
    ("lp_pool1d", ((2, 3, 9),), {"norm_type": 2, "kernel_size": 3}),
    ("lp_pool2d", ((2, 3, 8, 6),), {"norm_type": 4.0, "kernel_size": (2, 3), "stride": 2}),
    ("lp_pool3d", ((1, 2, 4, 4, 4),), {"norm_type": 2, "kernel_size": 2, "ceil_mode": True}),
]

#: the same, for padding, interpolation, unfold and rearrangement
RESAMPLED: list[Case] = [
    ("pad", ((2, 3, 4),), {"pad": (1, 2)}),
    ("pad", ((2, 3, 4),), {"pad": (1, -2, 0, 3), "value": 1.5}),
    ("pad", ((2, 3, 4),), {"pad": (-1, -1, 2, 0, 1, 1)}),
    ("pad", ((2, 3, 4),), {"pad": (2, 3), "mode": "reflect"}),
    ("pad", ((2, 3, 4, 5),), {"pad": (1, 4, 2, 0), "mode": "reflect"}),
    ("pad", ((2, 3, 3, 4, 5),), {"pad": (1, 2, 2, 1, 0, 2), "mode": "reflect"}),
    ("pad", ((3, 4),), {"pad": (5, 1), "mode": "replicate"}),
    ("pad", ((3, 4, 5),), {"pad": (5, 1, 0, 2), "mode": "replicate"}),
    ("pad", ((2, 3, 3, 4, 5),), {"pad": (1, 2, 2, 1, 0, 2), "mode": "replicate"}),
    ("pad", ((2, 3, 4),), {"pad": (4, 1), "mode": "circular"}),
    ("pad", ((2, 3, 4, 5),), {"pad": (1, 4, 2, 0), "mode": "circular"}),
    ("pad", ((2, 2, 3, 4, 5),), {"pad": (1, 2, 2, 1, 0, 2), "mode": "circular"}),
    ("pad", ((2, 3, 5),), {"pad": (-1, 2), "mode": "replicate"}),
    ("pad", ((2, 3, 6),), {"pad": (2, -1), "mode": "circular"}),
    (
        "unfold",
        ((2, 3, 5, 6),),
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
    ),
    ("unfold", ((3, 5, 6),), {"kernel_size": 3}),
    ("fold", ((2, 12, 20),), {"output_size": (5, 6), "kernel_size": 2}),
    ("fold", ((18, 6),), {"output_size": (4, 5), "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1}),
    ("pixel_shuffle", ((2, 8, 2, 3),), {"upscale_factor": 2}),
    ("pixel_unshuffle", ((1, 2, 4, 6),), {"downscale_factor": 2}),
    ("channel_shuffle", ((2, 6, 3, 2),), {"groups": 3}),
    ("interpolate", ((2, 3, 5),), {"size": 8}),
    ("interpolate", ((2, 3, 5, 4),), {"scale_factor": 2}),
    ("interpolate", ((2, 3, 5, 4),), {"scale_factor": (1.7, 0.6)}),
    ("interpolate", ((2, 3, 5, 4),), {"size": (3, 9), "mode": "nearest-exact"}),
    ("interpolate", ((1, 2, 3, 4, 3),), {"scale_factor": 2.0, "mode": "nearest"}),
    ("interpolate", ((2, 3, 5),), {"size": 8, "mode": "linear"}),
    ("interpolate", ((2, 3, 5),), {"scale_factor": 1.6, "mode": "linear", "align_corners": True}),
    ("interpolate", ((2, 3, 5, 4),), {"size": (8, 3), "mode": "bilinear"}),
    ("interpolate", ((2, 3, 5, 4),), {"size": (8, 7), "mode": "bilinear", "align_corners": True}),
    ("interpolate", ((2, 3, 5, 4),), {"scale_factor": 2.3, "mode": "bilinear"}),
    (
        "interpolate",
        ((2, 3, 5, 4),),
        {"scale_factor": 2.3, "mode": "bilinear", "recompute_scale_factor": True},
    ),
    ("interpolate", ((1, 2, 9, 8),), {"size": (4, 3), "mode": "bilinear", "antialias": True}),
    ("interpolate", ((1, 2, 5, 6),), {"size": (9, 4), "mode": "bicubic"}),
    ("interpolate", ((1, 2, 5, 6),), {"size": (9, 8), "mode": "bicubic", "align_corners": True}),
    ("interpolate", ((1, 2, 9, 8),), {"size": (4, 11), "mode": "bicubic", "antialias": True}),
    ("interpolate", ((1, 2, 3, 4, 3),), {"scale_factor": (2, 1.5, 1), "mode": "trilinear"}),
    ("interpolate", ((2, 3, 5, 4),), {"size": (3, 2), "mode": "area"}),
    ("interpolate", ((2, 3, 5, 4),), {"scale_factor": 1.5, "mode": "area"}),
]
