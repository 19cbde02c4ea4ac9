"""`tracegrad.optim`: optimisers and learning-rate schedulers under PyTorch's names."""

from ..tracer.arguments import check_names as _check_names
from . import lr_scheduler as lr_scheduler
from .adam import Adam, AdamW
from .adam_variants import Adamax, NAdam, RAdam
from .adaptive import Adadelta, Adagrad, RMSprop
from .averaging import ASGD, Rprop
from .lbfgs import LBFGS
from .optimizer import Optimizer
from .sgd import SGD

__all__ = [
    "ASGD", "LBFGS", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam",
    "RMSprop", "Rprop", "lr_scheduler",
]  # fmt: skip

_check_names(globals(), __all__, "load_state_dict", "add_param_group", "step")
