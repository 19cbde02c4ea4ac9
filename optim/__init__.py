"""`tracegrad.optim`: optimisers and learning-rate schedulers under PyTorch's names."""

from typing import TYPE_CHECKING

from ..ir.late import late as _late
from ..tracer.arguments import check_names as _check_names

if TYPE_CHECKING:
    from . import lr_scheduler as lr_scheduler
    from .adam import Adam, AdamW
    from .adam_variants import Adamax, NAdam, RAdam
    from .adaptive import Adadelta, Adagrad, RMSprop
    from .averaging import ASGD, Rprop
    from .lbfgs import LBFGS
    from .optimizer import Optimizer
    from .sgd import SGD
else:
    __getattr__, __dir__ = _late(
        globals(),
        {
            ".": "lr_scheduler",
            ".adam": "Adam AdamW",
            ".adam_variants": "Adamax NAdam RAdam",
            ".adaptive": "Adadelta Adagrad RMSprop",
            ".averaging": "ASGD Rprop",
            ".lbfgs": "LBFGS",
            ".optimizer": "Optimizer",
            ".sgd": "SGD",
        },
        lambda name: _check_names(globals(), [name], "load_state_dict", "add_param_group", "step"),
    )

__all__ = [
    "ASGD", "LBFGS", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "RAdam",
    "RMSprop", "Rprop", "lr_scheduler",
]  # fmt: skip
