"""Tracegrad: PyTorch's API on a compiler whose insides anyone can read. The public names, and nothing
else.
"""

import gc as _gc
import sys as _sys
from typing import TYPE_CHECKING

# Modules make many objects that all stay; looking through them for garbage is a seventh of the time.
_collecting = _gc.isenabled()
_gc.disable()

# First, since Python 3.11 and later keep their frames in blocks of 16 KB: where NumPy's modules, nested in
# ours, reach the end of a block, each call there gets and gives back another, in all a tenth of the import.
import numpy as _numpy

from . import ir as ir
from .ir import ops as _ops
from .ir.collector import settle as _settle
from .ir.dtypes import (
    DType as dtype,
)
from .ir.dtypes import (
    bfloat16,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
)
from .ir.dtypes import (
    bool_ as bool,
)
from .ir.errors import TracegradError
from .ir.late import late as _late
from .tracer import autograd_api as autograd
from .tracer import cuda as cuda
from .tracer import func as func
from .tracer import public as _public
from .tracer import random as random
from .tracer.compile import compile, trace
from .tracer.control import cond, map, scan, while_loop
from .tracer.creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    scalar_tensor,
    tensor,
    zeros,
    zeros_like,
)
from .tracer.func import vmap
from .tracer.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from .tracer.operands import get_default_dtype, result_type, set_default_dtype
from .tracer.random import (
    Generator,
    bernoulli,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)
from .tracer.tensor import Size, Tensor, device

if TYPE_CHECKING:
    from . import nn as nn
    from . import optim as optim
    from . import utils as utils
    from .nn.functional import (
        adaptive_avg_pool1d,
        alpha_dropout,
        avg_pool1d,
        channel_shuffle,
        conv1d,
        conv2d,
        conv3d,
        conv_tbc,
        conv_transpose1d,
        conv_transpose2d,
        conv_transpose3d,
        dropout,
        max_pool1d,
        max_pool1d_with_indices,
        max_pool2d,
        max_pool3d,
        pixel_shuffle,
        pixel_unshuffle,
        rrelu,
        rrelu_,
    )
    from .tracer.export_cuda import export_cuda
    from .tracer.printing import get_printoptions, set_printoptions
    from .utils.serialization import load, save
else:
    __getattr__, __dir__ = _late(
        globals(),
        {
            ".": "nn optim utils",
            ".nn.functional": """
                adaptive_avg_pool1d alpha_dropout avg_pool1d channel_shuffle conv1d conv2d conv3d conv_tbc
                conv_transpose1d conv_transpose2d conv_transpose3d dropout max_pool1d
                max_pool1d_with_indices max_pool2d max_pool3d pixel_shuffle pixel_unshuffle rrelu rrelu_""",
            ".tracer.export_cuda": "export_cuda",
            ".tracer.printing": "get_printoptions set_printoptions",
            ".utils.serialization": "load save",
        },
    )

__version__ = "0.1.0"
float = float32
double = float64
half = float16
long = int64
int = int32
short = int16
globals().update(_public.PUBLIC)

# They live in tracer/ and runtime/, but `from tracegrad.func import grad` must find them.
_sys.modules.update({f"{__name__}.{_m.__name__.rpartition('.')[2]}": _m for _m in (cuda, func, random)})
_sys.modules[f"{__name__}.autograd"] = autograd
_sys.modules[f"{__name__}.autograd.function"] = autograd.function
_sys.modules[f"{__name__}.autograd.functional"] = autograd.functional
_sys.modules[f"{__name__}.autograd.forward_ad"] = autograd.forward_ad
if _collecting:
    _settle()
    _gc.enable()
