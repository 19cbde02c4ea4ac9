"""What goes into and comes out of bodies: nested containers of tensors and numbers, compared and shown
with their types. Used by tracer/control.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..ir.dtypes import DType
from ..ir.errors import DTypeError, OpError
from ..ir.types import Type
from .callers import user_location
from .operands import number_dtype
from .recording import STATE
from .region import Body
from .tensor import Tensor
from .trace import Trace
from .values import TracedValue

NUMBERS = (bool, int, float, np.generic)
_LEAVES = (Tensor, *NUMBERS)
_RANK = {"b": 0, "i": 1, "u": 1, "f": 2}


def leaves_of(tree: Any, where: str) -> list[Any]:
    """Tensors and numbers of nested containers, in order."""
    if isinstance(tree, _LEAVES):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [leaf for x in tree for leaf in leaves_of(x, where)]
    if isinstance(tree, dict):
        return [leaf for x in tree.values() for leaf in leaves_of(x, where)]
    if tree is None:
        return []
    raise DTypeError(
        f"{user_location()}: {where} must be tensors or numbers, in tuples, lists and dicts, got "
        f"{type(tree).__name__}: {tree!r:.60}"
    )


def rebuilt(tree: Any, leaves: Iterable[Any]) -> Any:
    """The containers of `tree` around other leaves."""
    return _refilled(tree, iter(leaves))


def _refilled(tree: Any, given: Iterator[Any]) -> Any:
    if isinstance(tree, _LEAVES):
        return next(given)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_refilled(x, given) for x in tree])
    if isinstance(tree, (tuple, list)):
        return type(tree)([_refilled(x, given) for x in tree])
    if isinstance(tree, dict):
        return {k: _refilled(v, given) for k, v in tree.items()}
    return tree


def structure_of(tree: Any) -> Any:
    """The containers of a tree, as something to compare and to show."""
    if isinstance(tree, _LEAVES):
        return "*"
    if isinstance(tree, (tuple, list)):
        return (type(tree).__name__, tuple([structure_of(x) for x in tree]))
    if isinstance(tree, dict):
        return ("dict", tuple([(k, structure_of(v)) for k, v in tree.items()]))
    return None


def shown(tree: Any) -> str:
    """The tree with types for leaves."""
    if isinstance(tree, Tensor):
        return str(tree._value().type)
    if isinstance(tree, NUMBERS):
        return f"{tree!r}, a Python number"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k!r}: {shown(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        inside = ", ".join(shown(x) for x in tree)
        return f"[{inside}]" if isinstance(tree, list) else f"({inside}{',' if len(tree) == 1 else ''})"
    return repr(tree)


def as_tensor(trace: Trace, x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    value = x.item() if isinstance(x, np.generic) else x
    return Tensor(trace.literal(value, number_dtype(x)))


def _fits(x: Any, dtype: DType) -> bool:
    """Whether a Python number is one of a dtype, without losing its category."""
    return _RANK[number_dtype(x).kind] <= _RANK[dtype.kind]


def where_is(fn: Any) -> str:
    """` (body at model.py:7)` for messages."""
    code = getattr(fn, "__code__", None) or getattr(getattr(fn, "forward", None), "__code__", None)
    if code is None:
        return ""
    file = code.co_filename.rsplit("/", 1)[-1]
    return f" ({getattr(fn, '__name__', 'it')} is at {file}:{code.co_firstlineno})"


def parameter_names(fn: Any, arguments: Sequence[Any]) -> list[str | None]:
    """For each leaf of a body's arguments the name of the parameter it is in, numbered where that has
    several; for the dumps."""
    code = getattr(fn, "__code__", None)
    own = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    out: list[str | None] = []
    for i, argument in enumerate(arguments):
        leaves = leaves_of(argument, "")
        name = own[i].strip("_") if len(own) == len(arguments) else ""
        out += [(name if len(leaves) == 1 else f"{name}{j}") if name else None for j in range(len(leaves))]
    return out


def results_of(name: str, fn: Any, out: Any, like: Any, what: str) -> list[TracedValue]:
    """The values of what a body gave, which must be of the types of `like`. Called while its trace is
    open."""
    trace = STATE.trace
    given, wanted = leaves_of(out, f"results of {name}"), leaves_of(like, "")
    same = structure_of(out) == structure_of(like)
    if same:
        values = []
        for x, t in zip(given, wanted):
            to = t._value().type
            if not isinstance(x, Tensor) and to.shape == () and _fits(x, to.dtype):
                x = Tensor(trace.literal(x.item() if isinstance(x, np.generic) else x, to.dtype))
            values.append(trace.own(x._value()) if isinstance(x, Tensor) else None)
        if all(v is not None and _alike(v.type, t._value().type) for v, t in zip(values, wanted)):
            return values
    raise OpError(
        f"{name} at {user_location()}: {what} {shown(like)}, but the function gives {shown(out)}"
        f"{where_is(fn)}; both must have the same structure, dtypes and shapes (use .to(dtype), "
        f".expand(...) or a tensor)"
    )


def _alike(a: Type, b: Type) -> bool:
    """Whether two types are equal but for the device, which the op's operands decide."""
    return a.dtype is b.dtype and a.shape == b.shape


def agree(trees: list[Any], bodies: list[Body], fns: tuple[Any, Any]) -> None:
    """Makes numbers in results tensors of what the other branch has there; raises where types differ."""
    then, other = bodies
    pairs = list(zip(then.outputs, other.outputs))
    ok = structure_of(trees[0]) == structure_of(trees[1])
    for i, (x, y) in enumerate(pairs if ok else ()):
        for body, mine, yours in ((then, x, y), (other, y, x)):
            if not isinstance(mine, TracedValue):
                known = isinstance(yours, TracedValue)
                dtype = yours.type.dtype if known else _wider(mine, yours)
                if not _fits(mine, dtype) or (known and yours.type.shape):
                    ok = False
                    continue
                body.outputs[i] = body.trace.literal(_plain(mine), dtype)
        ok = ok and _alike(then.outputs[i].type, other.outputs[i].type)
        if not ok:
            break
    if not ok:
        left = f"{_typed(trees[0], then.outputs)}{where_is(fns[0])}"
        right = f"{_typed(trees[1], other.outputs)}{where_is(fns[1])}"
        raise OpError(
            f"cond at {user_location()}: true_fn gives {left}, false_fn gives {right}; both must give the "
            f"same structure, dtypes and shapes"
        )


def _typed(tree: Any, outputs: Sequence[Any]) -> str:
    given = iter(outputs)

    def leaf(tree: Any) -> str:
        if isinstance(tree, _LEAVES):
            v = next(given)
            return str(v.type) if isinstance(v, TracedValue) else f"{v!r}, a Python number"
        if isinstance(tree, dict):
            return "{" + ", ".join(f"{k!r}: {leaf(v)}" for k, v in tree.items()) + "}"
        if isinstance(tree, (tuple, list)):
            return "(" + ", ".join(leaf(x) for x in tree) + ("," if len(tree) == 1 else "") + ")"
        return repr(tree)

    return leaf(tree)


def _plain(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else x


def _wider(x: Any, y: Any) -> DType:
    a, b = number_dtype(x), number_dtype(y)
    return a if _RANK[a.kind] >= _RANK[b.kind] else b
