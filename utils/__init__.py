"""`tracegrad.utils`: data loading (`utils.data`), saving and loading."""

from . import data as data
from .serialization import load, save

__all__ = ["data", "load", "save"]
