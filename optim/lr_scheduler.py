"""`tracegrad.optim.lr_scheduler`: learning-rate schedulers under PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir.late import late as _late
from ..tracer.arguments import check_names

if TYPE_CHECKING:
    from .lr_base import (
        ConstantLR,
        CosineAnnealingLR,
        ExponentialLR,
        LambdaLR,
        LinearLR,
        LRScheduler,
        MultiplicativeLR,
        MultiStepLR,
        PolynomialLR,
        StepLR,
    )  # fmt: skip
    from .lr_combined import ChainedScheduler, ReduceLROnPlateau, SequentialLR
    from .lr_cycles import CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR
else:
    __getattr__, __dir__ = _late(
        globals(),
        {
            ".lr_base": """
                ConstantLR CosineAnnealingLR ExponentialLR LambdaLR LinearLR LRScheduler MultiplicativeLR
                MultiStepLR PolynomialLR StepLR""",
            ".lr_combined": "ChainedScheduler ReduceLROnPlateau SequentialLR",
            ".lr_cycles": "CosineAnnealingWarmRestarts CyclicLR OneCycleLR",
        },
        lambda name: check_names(globals(), [name], "step", "load_state_dict"),
    )

__all__ = [
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR",
    "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR",
    "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
]  # fmt: skip
