"""The errors users see. Every one names the op, the operand types, the user's line and what to do about
it.
"""

from __future__ import annotations


class TracegradError(RuntimeError):
    """Base of all errors raised for bad input. A RuntimeError, as PyTorch's are."""


class OpError(TracegradError):
    """Operands or attributes an op does not take. Raised by `infer` without a location; whoever records adds
    it.
    """


class DTypeError(OpError, TypeError, NotImplementedError):
    """Operands of element types that an op does not take. PyTorch raises one or the other built-in error."""


class IndexOutOfRange(OpError, IndexError):
    """A dimension or an index outside its range."""


class IndexKindError(DTypeError, IndexError):
    """Something that can't be an index: of a float type, a string, a dict."""


class DeviceError(OpError, TypeError):
    """Tensors on different devices where one is needed, or on one that something can't be done on."""


class GradError(TracegradError):
    """Differentiation asked for where it has no meaning (no graph, freed graph, integer leaf)."""


class TraceError(TracegradError):
    """Python did something with a traced tensor that can't be traced (a branch on its value, `.item()`)."""


class SizeError(TraceError, ValueError):
    """A tensor of several elements where one number is wanted."""


class ParseError(TracegradError):
    """Malformed IR text; the message holds line, column and a caret."""


class VerifyError(TracegradError):
    """A graph or loop program that breaks the IR's rules: a bug in a pass, or a hand-edited file."""
