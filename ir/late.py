"""Names of a module that are loaded when somebody first asks for them (PEP 562): most programs use a few of
two hundred layers, optimisers and loaders. For the package's `__init__.py` and those of its libraries.

Beside it stand the same imports for type checkers, under `if TYPE_CHECKING`; tests/test_import.py holds the
two against each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .collector import collector_paused


def late(
    namespace: dict[str, Any], places: dict[str, str], made: Callable[[str], None] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module.

    Args:
        namespace: the module's `globals()`.
        places: names by the module, relative to the package, that has them: `{".linear": "Linear Bilinear"}`;
            under `"."` those that are modules themselves.
        made: called with a name that has just been put into the namespace.
    """
    where = {name: module for module, names in places.items() for name in names.split()}
    package = namespace["__spec__"].parent

    def __getattr__(name: str) -> Any:
        module = where.get(name)
        if module is None:
            here = namespace["__name__"]
            error = f"module {here!r} has no attribute {name!r}"
            raise AttributeError(error, name=name, obj=sys.modules[here])
        with collector_paused():
            if module == ".":
                namespace[name] = import_module(f".{name}", package)
            else:
                namespace[name] = getattr(import_module(module, package), name)
        if made is not None:
            made(name)
        return namespace[name]

    def __dir__() -> list[str]:
        return sorted({*namespace, *where})

    return __getattr__, __dir__
