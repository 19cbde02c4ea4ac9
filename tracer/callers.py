"""Whose code is running: the user's line, of which errors and dumps speak, and what is of this package. Used
by everything in tracer/, mostly through recording.py.
"""

from __future__ import annotations

import os
import sys
import warnings

from ..ir.graph import Location

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROOMS = ("ir", "backends", "runtime", "tracer", "nn", "optim", "utils", "trainer")
_OURS = tuple(os.path.join(_ROOT, r) for r in (*(r + os.sep for r in _ROOMS), "__init__.py", "__main__.py"))


def is_ours(file: str) -> bool:
    """Whether a source file is of this package (not a test or an example of it)."""
    return file.startswith(_OURS)


def called_by_user(*through: str) -> bool:
    """Whether the first caller that is in none of these files of tracer/ is not of this package."""
    frame = sys._getframe(1)
    while frame is not None:
        folder, _, name = frame.f_code.co_filename.rpartition(os.sep)
        if name not in through or not folder.endswith("tracer"):
            return not is_ours(frame.f_code.co_filename)
        frame = frame.f_back
    return True


def user_location() -> Location | None:
    """File and line of the innermost frame that isn't ours."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            return Location(file, frame.f_lineno)
        frame = frame.f_back
    return None


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that shows the user's line, however deep below it this is called."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and is_ours(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
