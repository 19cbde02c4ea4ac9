"""Makes layer classes from rows of a table: a function, its parameters and what `repr` shows of them. Used by
activation.py and loss.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..tracer.library import ArgumentTypeError
from .module import Module

REQUIRED = inspect.Parameter.empty


def layer(
    name: str,
    function: Callable[..., Any],
    parameters: dict[str, Any],
    *,
    inputs: int = 1,
    shows: str = "",
    buffers: tuple[str, ...] = (),
    unstored: tuple[str, ...] = (),
    keyword_only: bool = False,
    setup: Callable[[Any], None] | None = None,
    base: type[Module] = Module,
    module: str = "",
) -> type[Any]:
    """A Module class whose `forward(*inputs)` is `function(*inputs, **parameters)`.

    Args:
        name: the class's name.
        function: from `nn.functional`.
        parameters: names and defaults of `__init__`'s arguments, kept as attributes (`REQUIRED`: no default).
        inputs: how many tensors `forward` takes.
        shows: names of the attributes in `repr`; `=` before one shows its value alone, `?` shows it only if
            true.
        buffers: parameters that are tensors, registered as buffers.
        unstored: parameters that are neither kept nor passed on (`setup` has used them).
        keyword_only: whether arguments must be named.
        setup: called with the new module before the attributes are final; may check and change them.
    """
    kind = inspect.Parameter.KEYWORD_ONLY if keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(k, kind, default=d) for k, d in parameters.items()])
    passed = tuple(p for p in parameters if p not in unstored)
    shown = shows.split()

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        Module.__init__(self)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as e:
            raise ArgumentTypeError(f"{name}{signature}: {e}") from None
        bound.apply_defaults()
        for key, value in bound.arguments.items():
            if key in buffers:
                self.register_buffer(key, value)
            else:
                setattr(self, key, value)
        if setup is not None:
            setup(self)
        for key in unstored:
            del self.__dict__[key]

    def forward(self: Any, *args: Any) -> Any:
        if len(args) != inputs:
            raise ArgumentTypeError(f"{name} takes {inputs} tensor{'s' * (inputs != 1)}, got {len(args)}")
        return function(*args, **{p: getattr(self, p) for p in passed})

    def extra_repr(self: Any) -> str:
        parts = []
        for field in shown:
            value = getattr(self, field.lstrip("=?"))
            if field[0] == "=":
                parts.append(str(value))
            elif field[0] != "?" or value:
                parts.append(f"{field.lstrip('?')}={value!r}")
        return ", ".join(parts)

    made = type(
        name,
        (base,),
        {
            "__init__": __init__,
            "__doc__": f"`functional.{function.__name__}` as a module: {function.__doc__}",
            "__module__": module,
            "__signature__": signature,
            "forward": forward,
            "extra_repr": extra_repr,
        },
    )
    return made
