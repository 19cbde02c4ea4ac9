"""`tracegrad.nn.modules`: PyTorch's path to the hooks of all modules (`nn.modules.module`)."""

from . import module_hooks as module
from .module import Module

__all__ = ["Module", "module"]
