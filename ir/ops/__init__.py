"""All op records; importing this package registers them in `tracegrad.ir.op.REGISTRY`."""

from . import (  # noqa: F401
    activation,
    attention,
    classification,
    contraction,
    elementwise,
    functions,
    identity,
    indexing,
    logic,
    loss,
    movement,
    normalization,
    reduction,
    source,
    statistics,
    views,
)
