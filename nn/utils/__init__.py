"""`tracegrad.nn.utils`: clipping gradients, parameters as one vector, parametrised weights."""

from typing import TYPE_CHECKING

from ...ir.late import late as _late
from ...tracer.arguments import check_names as _check_names

if TYPE_CHECKING:
    from . import parametrizations as parametrizations
    from . import parametrize as parametrize
    from . import rnn as rnn
    from .clip_grad import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
    from .convert_parameters import parameters_to_vector, vector_to_parameters
    from .spectral_norm import remove_spectral_norm, spectral_norm
    from .weight_norm import remove_weight_norm, weight_norm
else:
    __getattr__, __dir__ = _late(
        globals(),
        {
            ".": "parametrizations parametrize rnn",
            ".clip_grad": "clip_grad_norm_ clip_grad_value_ clip_grads_with_norm_ get_total_norm",
            ".convert_parameters": "parameters_to_vector vector_to_parameters",
            ".spectral_norm": "remove_spectral_norm spectral_norm",
            ".weight_norm": "remove_weight_norm weight_norm",
        },
        lambda name: _check_names(globals(), [name]),
    )

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "parameters_to_vector",
    "parametrizations",
    "parametrize",
    "remove_spectral_norm",
    "remove_weight_norm",
    "rnn",
    "spectral_norm",
    "vector_to_parameters",
    "weight_norm",
]
