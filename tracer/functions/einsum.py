"""`einsum` of any expression: ellipses, diagonals, sizes that broadcast, sublists, any number of operands.

What is parsed here becomes one op with an explicit result (ir/ops/linear_algebra.py), which chooses the order
of contraction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir.errors import OpError
from ...ir.op import REGISTRY
from ...ir.types import LETTERS
from ..recording import STATE
from ..tensor import Tensor
from .linear import same_dtype

FUNCTIONS: dict[str, Callable[..., Any]] = {}
_LETTERS = LETTERS.swapcase()


def _sublists(args: tuple[Any, ...]) -> tuple[str, list[Any]]:
    """`einsum(x, [0, 1], y, [1, 2], [0, 2])` as an equation and operands."""

    def spelled(indices: Any) -> str:
        out = []
        for i in indices:
            if i is Ellipsis:
                out.append("...")
            elif isinstance(i, int) and 0 <= i < 52:
                out.append(_LETTERS[i])
            else:
                raise OpError(f"einsum(): a subscript must be ... or an integer in [0, 52), got {i!r}")
        return "".join(out)

    operands = [args[k] for k in range(0, len(args) - 1, 2)]
    parts = [spelled(args[k]) for k in range(1, len(args), 2)]
    equation = ",".join(parts)
    if len(args) % 2:
        equation += "->" + spelled(args[-1])
    return equation, operands


def _subscripts(text: str, equation: str) -> tuple[str, str | None]:
    """Letters before and after an ellipsis; None after it where there is none."""
    head, dots, tail = text.partition("...")
    if any(c not in LETTERS for c in head + tail):
        raise OpError(f"einsum(): {equation!r}: subscripts are letters and one ..., got {text!r}")
    return head, tail if dots else None


def expand_equation(equation: str, ranks: list[int]) -> str:
    """The equation with letters for what its ellipses stand for, and with an explicit result: `"ab,bc->ac"`.

    Raises OpError where it does not fit operands of the given ranks.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = [_subscripts(p, equation) for p in left.split(",")]
    if len(parts) != len(ranks):
        raise OpError(f"einsum(): {equation!r} has subscripts for {len(parts)} operands, got {len(ranks)}")
    wide = 0
    for k, ((head, tail), rank) in enumerate(zip(parts, ranks)):
        named = len(head) + len(tail or "")
        if rank < named or (tail is None and rank != named):
            raise OpError(
                f"einsum(): {equation!r}: the subscripts of operand {k} do not fit its {rank} dimensions"
            )
        wide = max(wide, rank - named if tail is not None else 0)
    used = set(text)
    free = [c for c in _LETTERS if c not in used][:wide]
    if len(free) < wide:
        raise OpError(f"einsum(): {equation!r} has more dimensions than there are letters")
    dots = "".join(free)

    def filled(head: str, tail: str | None, count: int) -> str:
        return head if tail is None else head + dots[wide - count :] + tail

    operands = [filled(h, t, rank - len(h) - len(t or "")) for (h, t), rank in zip(parts, ranks)]
    everything = "".join(h + (t or "") for h, t in parts)
    if arrow:
        out = filled(*_subscripts(right, equation), wide)
    else:
        out = dots + "".join(c for c in sorted(set(everything)) if everything.count(c) == 1)
    for c in out:
        if out.count(c) > 1:
            raise OpError(f"einsum(): {equation!r} has {c!r} twice in the result")
        if c not in dots and c not in everything:
            raise OpError(f"einsum(): {equation!r} has {c!r} in the result only")
    return ",".join(operands) + "->" + out


def einsum(*args: Any) -> Tensor:
    """Sums of products in Einstein's notation: `einsum("bik,bkj->bij", x, y)`.

    A letter names a dimension; letters that the result lacks are summed over. A letter twice in one operand
    takes its diagonal, `...` stands for any dimensions, which broadcast, and without `->` the result has the
    letters that occur once, in alphabetical order. `einsum(x, [0, 1], y, [1, 2], [0, 2])` spells letters as
    numbers.
    """
    if not args:
        raise OpError("einsum(): expected an equation and operands")
    if isinstance(args[0], str):
        equation, operands = args[0], list(args[1:])
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = list(operands[0])
    else:
        equation, operands = _sublists(args)
    if not operands:
        raise OpError("einsum(): expected at least one operand")
    values = same_dtype("einsum", *operands)
    spec = expand_equation(equation, [v.type.rank for v in values])
    return Tensor(STATE.trace.emit(REGISTRY["einsum"], values, {"spec": spec}))


FUNCTIONS["einsum"] = einsum
