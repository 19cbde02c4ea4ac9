"""All op records; importing this package registers them in `tracegrad.ir.op.REGISTRY`."""

from . import (  # noqa: F401
    activation,
    contraction,
    elementwise,
    functions,
    identity,
    indexing,
    logic,
    loss,
    movement,
    reduction,
    source,
    statistics,
    views,
)
