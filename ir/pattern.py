"""The pattern language of rewrite rules: op calls in Python's syntax, matched against the operand tree of a
node.

    mul(x, 1)                  `x` binds any value; a number matches a constant of that value, broadcast or
    not maximum(x, x)              a name twice must be the same value twice pow(x, C)                  a name
    in capitals binds a value that is one number everywhere (`splat`) permute(p := permute(x))   `:=` binds
    the result of an inner op concat(...)                any operands; `concat(x, ...)` at least one
    any_scalar(...)            any op of a class: any_scalar, any_movement, any_reduce

Commutative ops match with their operands in either order. Only ir/rewrite.py uses this file; rules only write
patterns.
"""

from __future__ import annotations

import ast
import math

from .graph import Value

#: Ops whose two operands may be exchanged.
COMMUTATIVE = frozenset(
    ("add", "mul", "eq", "ne", "maximum", "minimum", "logical_and", "logical_or", "logical_xor",
     "bitwise_and", "bitwise_or", "bitwise_xor")
)  # fmt: skip

_SPLAT_KEEPERS = frozenset(("expand", "reshape", "permute", "slice", "flip"))


def splat(v: Value) -> float | int | bool | None:
    """The number that every element of `v` is known to be, or None."""
    node = v.node
    while node is not None and node.op.name in _SPLAT_KEEPERS:
        node = node.operands[0].node
    if node is None or node.op.name not in ("constant", "full"):
        return None
    value = node.attrs["value"]
    if type(value) is tuple or v.type.numel == 0:
        return None
    kind = v.type.dtype.kind
    return float(value) if kind == "f" else bool(value) if kind == "b" else int(value)


class Wild:
    """Any value, or with `constant` a splat; the same name the same value."""

    __slots__ = ("constant", "name")

    def __init__(self, name: str, constant: bool) -> None:
        self.name = name
        self.constant = constant


class Number:
    """A splat of this value. A zero matches only a zero of its sign, an integer's zero both."""

    __slots__ = ("value",)

    def __init__(self, value: float | int | bool) -> None:
        self.value = value

    def matches(self, v: Value) -> bool:
        got = splat(v)
        if got is None or got != self.value or isinstance(self.value, bool) != isinstance(got, bool):
            return False
        return got != 0 or not isinstance(got, float) or math.copysign(1, got) == math.copysign(1, self.value)


class Call:
    """An op with these operands; `rest` allows more. `first` is what is checked before anything is bound: the
    op names that operands must have (None: anything)."""

    __slots__ = ("args", "bind", "first", "op", "rest")

    def __init__(self, op: str, args: tuple[Pattern, ...], rest: bool, bind: str | None) -> None:
        self.op = op
        self.args = args
        self.rest = rest
        self.bind = bind
        self.first = tuple((i, a.op) for i, a in enumerate(args) if isinstance(a, Call))

    def match_operands(self, operands: tuple[Value, ...], env: dict[str, Value]) -> bool:
        """Matches `operands` and binds names in `env`; what a failed match has bound is meaningless."""
        n = len(self.args)
        if len(operands) != n and (not self.rest or len(operands) < n):
            return False
        for i, name in self.first:
            node = operands[i].node
            if node is None or node.op.name != name:
                return False
        for a, v in zip(self.args, operands):
            if isinstance(a, Wild):
                if a.constant and splat(v) is None:
                    return False
                if env.setdefault(a.name, v) is not v:
                    return False
            elif isinstance(a, Number):
                if not a.matches(v):
                    return False
            else:
                assert v.node is not None
                if not a.match_operands(v.node.operands, env):
                    return False
                if a.bind is not None:
                    env[a.bind] = v
        return True


Pattern = Wild | Number | Call


def parse_pattern(text: str) -> list[Call]:
    """Every form of `text` with the operands of commutative ops in either order."""
    tree = ast.parse(text, mode="eval").body
    out = [p for p in _forms(tree, text) if isinstance(p, Call)]
    if not out:
        raise ValueError(f"pattern {text!r} is not an op call")
    return out


def _forms(e: ast.expr, text: str, bind: str | None = None) -> list[Pattern]:
    if isinstance(e, ast.NamedExpr):
        return _forms(e.value, text, e.target.id)
    if isinstance(e, ast.Name):
        return [Wild(e.id, e.id.isupper())]
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub) and isinstance(e.operand, ast.Constant):
        return [Number(-e.operand.value)]  # type: ignore[operator]
    if isinstance(e, ast.Constant) and isinstance(e.value, (int, float)):
        return [Number(e.value)]
    if not isinstance(e, ast.Call) or not isinstance(e.func, ast.Name) or e.keywords:
        raise ValueError(f"pattern {text!r}: a pattern is names, numbers and op calls")
    rest = bool(e.args) and isinstance(e.args[-1], ast.Constant) and e.args[-1].value is Ellipsis
    plain = e.args[:-1] if rest else e.args
    rows: list[tuple[Pattern, ...]] = [()]
    for a in plain:
        rows = [(*row, p) for row in rows for p in _forms(a, text)]
    if e.func.id in COMMUTATIVE and len(plain) == 2 and ast.dump(plain[0]) != ast.dump(plain[1]):
        rows += [(row[1], row[0]) for row in rows if not _alike(row[0], row[1])]
    return [Call(e.func.id, row, rest, bind) for row in rows]


def _alike(a: Pattern, b: Pattern) -> bool:
    """Two plain names: exchanging them matches nothing new."""
    return isinstance(a, Wild) and isinstance(b, Wild) and not a.constant and not b.constant
