"""The bridge from generated text to the vector math library: each elementary function, once per type and
module, as an internal function that is always inlined. Used by codegen_expr.

The library builds llvmlite.ir objects; their text is made once per process and reused.
"""

from __future__ import annotations

import functools
import re

from .codegen_text import BRANCH_WEIGHTS, Module, suffix
from .target import CompileError

_ARGUMENT = re.compile(r' %"[^"]*"')
_PROFILE = re.compile(r",\s*!prof !\d+")


def math_function(module: Module, name: str, element: str, lanes: int, fma: bool) -> str:
    """The name of a function `name(x, ...)` of float or double lanes, defined in the module from now on."""
    symbol = f"@tg.{name}.{suffix(element, lanes)}"
    if symbol not in module.math:
        definition, declares = _function_text(name, element, lanes, fma)
        module.math[symbol] = definition
        module.declares.update(dict.fromkeys(declares))
    return symbol


@functools.lru_cache(maxsize=512)
def _function_text(name: str, element: str, lanes: int, fma: bool) -> tuple[str, tuple[str, ...]]:
    """(definition, declarations it needs)."""
    from llvmlite import ir  # slow to import, and most tiny programs need none of it

    from .math import MATH, emit

    if name not in MATH:
        raise CompileError(f"no code for primitive {name} of floats")
    scalar = ir.FloatType() if element == "float" else ir.DoubleType()
    ty = ir.VectorType(scalar, lanes) if lanes else scalar
    module = ir.Module()
    arity = 2 if name in ("pow", "atan2", "fmod") else 1
    function = ir.Function(module, ir.FunctionType(ty, [ty] * arity), f"tg.{name}.{suffix(element, lanes)}")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    builder.ret(emit(builder, name, *function.args, fma=fma))
    body, declares = [], []
    text = str(module)
    weight = ", !prof !0" if BRANCH_WEIGHTS in text else ""
    for line in text.splitlines():
        if line.startswith("declare "):
            declares.append(_ARGUMENT.sub("", line).replace('"', ""))  # spelt as the code generator does
        elif line.startswith(("define ", "  ", "{", "}")) or line.endswith(":"):
            body.append(_PROFILE.sub(weight, line))
    text = "\n".join(body)
    # llvmlite writes the brace on a line of its own
    return text.replace("\n{\n", " alwaysinline #0 {\n", 1), tuple(declares)
