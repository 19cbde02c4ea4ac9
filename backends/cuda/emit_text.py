"""What the CUDA emitter's parts share: texts of expressions with what is known of them, and what the kernels
of one unit need. Used by emit_prims, emit_expr, emit_kernel, emit_host and emit."""

from __future__ import annotations

from typing import NamedTuple

from ...ir import dtypes
from ...ir.dataclass import dataclass, field
from ...ir.dtypes import DType
from .emit_math import HELPERS
from .emit_names import C_TYPES, literal

# Binding strength of operators; what is not arithmetic, comparison or `?:` is parenthesised where mixed.
ATOM, UNARY, MUL, ADD, SHIFT, COMPARE, AND, XOR, OR, ALL, ANY, CHOICE = range(12, 0, -1)
LAST_INT = (1 << 31) - 1
Bounds = tuple[int, int] | None


class Text(NamedTuple):
    """A C++ expression.

    Attributes:
        level: how strongly its outermost operator binds.
        bounds: of an integer, if known.
        wide: an i64 that C++ has as `long long`; else as `int`.
    """

    text: str
    level: int = ATOM
    bounds: Bounds = None
    wide: bool = True

    def at(self, level: int) -> str:
        """As an operand of an operator that binds this strongly."""
        return self.text if self.level >= level else f"({self.text})"


@dataclass
class UnitState:
    """What the kernels of one unit share.

    Attributes:
        needs: helper functions that are used.
        warps: texts of warp reductions by name.
        half, bfloat: whether the types occur.
    """

    needs: set[str] = field(default_factory=set)
    warps: dict[str, str] = field(default_factory=dict)
    half: bool = False
    bfloat: bool = False

    def need(self, name: str) -> str:
        """Notes that a helper is used; gives its name."""
        assert name in HELPERS, name
        self.needs.add(name)
        return name

    def c_type(self, dtype: DType) -> str:
        """C++ name of an element type."""
        self.half |= dtype is dtypes.float16
        self.bfloat |= dtype is dtypes.bfloat16
        return C_TYPES[dtype]

    def literal(self, value: object, dtype: DType) -> str:
        return literal(value, dtype, self.need)


def fits(b: Bounds) -> bool:
    """Whether every value is an `int`."""
    return b is not None and b[0] >= -LAST_INT - 1 and b[1] <= LAST_INT
