"""`tracegrad.utils`: data loading (`utils.data`), saving and loading."""

from typing import TYPE_CHECKING

from ..ir.late import late as _late

if TYPE_CHECKING:
    from . import data as data
    from .serialization import load, save
else:
    __getattr__, __dir__ = _late(
        globals(),
        {
            ".": "data",
            ".serialization": "load save",
        },
    )

__all__ = ["data", "load", "save"]
