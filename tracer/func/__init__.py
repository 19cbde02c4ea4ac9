"""`tracegrad.func`: transformations of functions, with the names and signatures of `torch.func`. They nest in
each other, in compiled functions and in control flow."""

from ..arguments import check_names as _check_names
from .batching import vmap
from .jacobians import hessian, jacfwd, jacrev
from .modules import functional_call, stack_module_state
from .transforms import grad, grad_and_value, jvp, linearize, vjp

__all__ = [
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "stack_module_state",
    "vjp",
    "vmap",
]

_check_names(globals(), __all__)
