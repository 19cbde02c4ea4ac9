"""Scalar expressions of the loop IR: what one element is computed from. Immutable DAGs, built by `ExprScalar`
(so an op's lambda yields them unchanged) and by Python operators on index expressions.

Index expressions are i64 and simplify as they are built: constants fold, sums and products flatten into a
canonical affine form, and `//` and `%` vanish where the ranges of loop variables allow (`(4*i + j) // 4 -->
i` for `j` in [0, 4)). That is how reshapes, permutes and slices cost nothing after scheduling.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from . import dtypes
from .dtypes import DType
from .scalar import PRIMITIVES, ScalarBuilder

if TYPE_CHECKING:
    from .loops import Buffer


class Expr:
    """Base of all expressions. `dtype` is the element type; index arithmetic operators work on i64 ones."""

    __slots__ = ("dtype",)
    dtype: DType

    @property
    def args(self) -> tuple[Expr, ...]:
        """Sub-expressions."""
        return ()

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        """The same node over other sub-expressions."""
        return self

    def __add__(self, other: Expr | int) -> Expr:
        return index_add(self, as_index(other))

    __radd__ = __add__

    def __sub__(self, other: Expr | int) -> Expr:
        return index_add(self, index_mul(as_index(other), -1))

    def __rsub__(self, other: Expr | int) -> Expr:
        return index_add(as_index(other), index_mul(self, -1))

    def __mul__(self, other: int) -> Expr:
        return index_mul(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Expr:
        return index_div(self, other)

    def __mod__(self, other: int) -> Expr:
        return index_mod(self, other)

    def __str__(self) -> str:
        from .loop_text import print_expr

        return print_expr(self)


class Const(Expr):
    """A literal of any dtype."""

    __slots__ = ("value",)

    def __init__(self, value: Any, dtype: DType = dtypes.int64) -> None:
        self.value = value
        self.dtype = dtype


class Var(Expr):
    """A loop variable: i64 in `[0, extent)` (times the loop's step). Identity is the object."""

    __slots__ = ("extent", "name")

    def __init__(self, name: str, extent: int) -> None:
        self.name = name
        self.extent = extent
        self.dtype = dtypes.int64


class Local(Expr):
    """The value a `Let` statement named; single assignment, visible in the rest of its block. With `extent`
    it is an i64 known to lie in `[0, extent)`, as a loop variable does."""

    __slots__ = ("extent", "name")

    def __init__(self, name: str, dtype: DType, extent: int | None = None) -> None:
        self.name = name
        self.dtype = dtype
        self.extent = extent


class Load(Expr):
    """`buffer[index]`; where `mask` is false nothing is read and the value is `other`.

    `index` has one entry per buffer dimension (row-major), or a single flat one.
    """

    __slots__ = ("buffer", "index", "mask", "other")

    def __init__(
        self, buffer: Buffer, index: tuple[Expr, ...], mask: Expr | None = None, other: Expr | None = None
    ) -> None:
        self.buffer = buffer
        self.index = index
        self.mask = mask
        self.other = other
        self.dtype = buffer.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        extra = () if self.mask is None else (self.mask, self.other or _zero(self.dtype))
        return (*self.index, *extra)

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        n = len(self.index)
        mask, other = (args[n], args[n + 1]) if len(args) > n else (None, None)
        return Load(self.buffer, args[:n], mask, other)


@cache
def _zero(dtype: DType) -> Const:
    """The one zero of a dtype: sub-expressions of a node are the same objects whenever they are asked for."""
    return Const(0, dtype)


class Prim(Expr):
    """A scalar primitive (ir/scalar.py) of sub-expressions."""

    __slots__ = ("_args", "_terms", "name")

    def __init__(self, name: str, args: tuple[Expr, ...], dtype: DType) -> None:
        self.name = name
        self._args = args
        self.dtype = dtype
        self._terms: tuple[list[tuple[Expr, int]], int] | None = None  # see `terms`

    @property
    def args(self) -> tuple[Expr, ...]:
        return self._args

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return Prim(self.name, args, self.dtype)


class Cast(Expr):
    """Value conversion, or with `bits` a reinterpretation of the bit pattern."""

    __slots__ = ("bits", "x")

    def __init__(self, x: Expr, dtype: DType, bits: bool = False) -> None:
        self.x = x
        self.dtype = dtype
        self.bits = bits

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.x,)

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return Cast(args[0], self.dtype, self.bits)


class LaneReduce(Expr):
    """Combines `x` over `var` in `[0, var.extent)` (a power of two) pairwise: lane i with lane i + half,
    halving. `name` is a primitive: add, mul, minimum, maximum, and_, or_. Ends a vector accumulator."""

    __slots__ = ("name", "var", "x")

    def __init__(self, name: str, var: Var, x: Expr) -> None:
        self.name = name
        self.var = var
        self.x = x
        self.dtype = x.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.x,)

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return LaneReduce(self.name, self.var, args[0])


class WarpReduce(Expr):
    """Combines `x` over the 32 consecutive threads of a GPU warp (the innermost thread loop is fastest), as a
    butterfly: lane i with lane i ^ 16, ... i ^ 1; all lanes get the result. `name` is as for `LaneReduce`.
    The block has a multiple of 32 threads or a smaller power of two; all threads of a warp must reach it."""

    __slots__ = ("name", "x")

    def __init__(self, name: str, x: Expr) -> None:
        self.name = name
        self.x = x
        self.dtype = x.dtype

    @property
    def args(self) -> tuple[Expr, ...]:
        return (self.x,)

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return WarpReduce(self.name, args[0])


class ExprScalar(ScalarBuilder):
    """Builds expressions, so that `op.scalar` gives the loop IR's form of an op."""

    def prim(self, name: str, *args: Any) -> Expr:
        p = PRIMITIVES[name]
        if p.result == "bool":
            dtype = dtypes.bool_
        else:
            dtype = args[1].dtype if p.result == "select" else args[0].dtype
        return Prim(name, args, dtype)

    def const(self, value: Any, like: Any) -> Expr:
        dtype = like if isinstance(like, DType) else like.dtype
        return Const(value, dtype)

    def cast(self, x: Expr, dtype: DType) -> Expr:
        return x if x.dtype is dtype else Cast(x, dtype)

    def bitcast(self, x: Expr, dtype: DType) -> Expr:
        return x if x.dtype is dtype else Cast(x, dtype, bits=True)

    def dtype_of(self, x: Expr) -> DType:
        return x.dtype


EXPR_SCALAR = ExprScalar()


# --- index arithmetic ---------------------------------------------------------------------------------------


def as_index(x: Expr | int) -> Expr:
    return x if isinstance(x, Expr) else Const(int(x))


def terms(e: Expr) -> tuple[list[tuple[Expr, int]], int]:
    """`e` as a sum: [(atom, coefficient)] and a constant; atoms are not sums or constant multiples. The list
    is shared: don't change it."""
    if type(e) is Const:
        return [], int(e.value)
    if type(e) is not Prim:
        return [(e, 1)], 0
    got = e._terms
    if got is None:
        a = e._args
        found: list[tuple[Expr, int]]
        if e.name == "add":
            out, const = terms(a[0])
            more, c = terms(a[1])
            found, total = _merge(out + more), const + c
        elif e.name == "mul" and type(a[1]) is Const:
            k = int(a[1].value)
            inner, c = terms(a[0])
            found, total = [(t, n * k) for t, n in inner], c * k
        else:
            found, total = list[tuple[Expr, int]]([(e, 1)]), 0
        got = e._terms = found, total
    return got


def same(a: Expr, b: Expr) -> bool:
    """Structural equality."""
    if a is b:
        return True
    if type(a) is not type(b) or a.dtype is not b.dtype:
        return False
    if isinstance(a, Const):
        assert isinstance(b, Const)
        return a.value == b.value
    if isinstance(a, (Var, Local)):
        return False
    if isinstance(a, Prim) and a.name != b.name:  # type: ignore[attr-defined]
        return False
    if isinstance(a, Load) and a.buffer is not b.buffer:  # type: ignore[attr-defined]
        return False
    if isinstance(a, Cast) and a.bits != b.bits:  # type: ignore[attr-defined]
        return False
    if isinstance(a, LaneReduce) and (a.name, a.var) != (b.name, b.var):  # type: ignore[attr-defined]
        return False
    if isinstance(a, WarpReduce) and a.name != b.name:  # type: ignore[attr-defined]
        return False
    return len(a.args) == len(b.args) and all(same(x, y) for x, y in zip(a.args, b.args))


def _merge(items: list[tuple[Expr, int]]) -> list[tuple[Expr, int]]:
    """Equal atoms together; those whose coefficients cancel are gone."""
    out: list[tuple[Expr, int]] = []
    for atom, n in items:
        for i, (a, m) in enumerate(out):
            if a is atom or (type(a) is type(atom) and type(a) is not Var and same(a, atom)):
                out[i] = (a, m + n)
                break
        else:
            out.append((atom, n))
    return [t for t in out if t[1]]


def _size(term: tuple[Expr, int]) -> int:
    return -abs(term[1])


def from_terms(items: list[tuple[Expr, int]], const: int) -> Expr:
    """The canonical sum: larger coefficients first, the constant last."""
    if not items:
        return Const(const)
    if len(items) > 1:
        items = sorted(items, key=_size)
    out: Expr | None = None
    for atom, n in items:
        term = atom if n == 1 else Prim("mul", (atom, Const(n)), dtypes.int64)
        out = term if out is None else Prim("add", (out, term), dtypes.int64)
    assert out is not None
    if const:
        out = Prim("add", (out, Const(const)), dtypes.int64)
    if type(out) is Prim and out is not items[0][0]:
        out._terms = (items, const)
    return out


def index_add(a: Expr, b: Expr) -> Expr:
    if type(b) is Const and b.value == 0:
        return a
    if type(a) is Const and a.value == 0:
        return b
    x, c = terms(a)
    y, d = terms(b)
    items = _merge(x + y) if x and y else x or y
    if len(items) > 1:
        for t, _ in items:
            if type(t) is Prim and t.name == "mod":
                items = _recombine(items)
                break
    return from_terms(items, c + d)


def _recombine(items: list[tuple[Expr, int]]) -> list[tuple[Expr, int]]:
    """`k*(e // k) + e % k --> e` and `k*((e // k) % m) + e % k --> e % (k*m)`, at any common multiple: a
    flat index split up and put together is itself."""
    for i, (atom, n) in enumerate(items):
        if not (isinstance(atom, Prim) and atom.name == "mod" and isinstance(atom.args[1], Const)):
            continue
        base, k = atom.args[0], int(atom.args[1].value)
        quotient = index_div(base, k)
        for j, (other, m) in enumerate(items):
            if m != n * k:
                continue
            whole = base
            if isinstance(other, Prim) and other.name == "mod" and same(other.args[0], quotient):
                whole = index_mod(base, k * _const(other.args[1]))
            elif not same(other, quotient):
                continue
            rest = [t for p, t in enumerate(items) if p not in (i, j)]
            parts, const = terms(whole)
            if const == 0:
                return _recombine(_merge(rest + [(t, c * n) for t, c in parts]))
    return items


def index_mul(a: Expr, k: int) -> Expr:
    if k == 0:
        return Const(0)
    if k == 1:
        return a
    x, c = terms(a)
    return from_terms([(t, n * k) for t, n in x], c * k)


def bounds(e: Expr) -> tuple[int, int] | None:
    """Inclusive range of an index expression, or None if unknown."""
    if isinstance(e, Const):
        return int(e.value), int(e.value)
    if isinstance(e, (Var, Local)):
        return None if e.extent is None else (0, max(e.extent - 1, 0))
    if isinstance(e, Prim):
        if e.name == "add":
            a, b = bounds(e.args[0]), bounds(e.args[1])
            return (a[0] + b[0], a[1] + b[1]) if a and b else None
        if e.name == "mul" and isinstance(e.args[1], Const):
            a, k = bounds(e.args[0]), int(e.args[1].value)
            return (min(a[0] * k, a[1] * k), max(a[0] * k, a[1] * k)) if a else None
        if e.name == "floordiv" and isinstance(e.args[1], Const):
            a, k = bounds(e.args[0]), int(e.args[1].value)
            return (a[0] // k, a[1] // k) if a else None
        if e.name == "mod" and isinstance(e.args[1], Const):
            return 0, int(e.args[1].value) - 1
    return None


def index_div(a: Expr, k: int) -> Expr:
    """Floor division by a positive constant: multiples of k leave the quotient, what stays is dropped if
    in [0, k)."""
    if k == 1:
        return a
    items, c = terms(a)
    whole = [(t, n // k) for t, n in items if n % k == 0]
    rest = from_terms([(t, n) for t, n in items if n % k != 0], c % k)
    r = bounds(rest)
    if r is not None and r[0] >= 0 and r[1] < k:
        return from_terms(whole, c // k)
    if isinstance(rest, Prim) and rest.name == "floordiv" and isinstance(rest.args[1], Const):
        inner = index_div(rest.args[0], k * int(rest.args[1].value))  # (a // m) // k --> a // (m*k)
    else:
        inner = Prim("floordiv", (rest, Const(k)), dtypes.int64)
    return index_add(from_terms(whole, c // k), inner)


def _const(e: Expr) -> int:
    """The value of a divisor: always a constant in index arithmetic."""
    assert isinstance(e, Const)
    return int(e.value)


def index_mod(a: Expr, k: int) -> Expr:
    """Remainder by a positive constant: multiples of k vanish."""
    if k == 1:
        return Const(0)
    items, c = terms(a)
    rest = from_terms([(t, n) for t, n in items if n % k != 0], c % k)
    r = bounds(rest)
    if r is not None and r[0] >= 0 and r[1] < k:
        return rest
    if isinstance(rest, Prim) and rest.name == "mod" and _const(rest.args[1]) % k == 0:
        return index_mod(rest.args[0], k)  # (a % m) % k --> a % k where k divides m
    return Prim("mod", (rest, Const(k)), dtypes.int64)


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct node of the DAG, parents before children."""
    seen: set[int] = set()
    stack = [e]
    while stack:
        x = stack.pop()
        key = id(x)
        if key not in seen:
            seen.add(key)
            yield x
            kind = type(x)
            if kind is Prim:
                stack += x._args  # type: ignore[attr-defined]
            elif kind is not Const and kind is not Var and kind is not Local:
                stack += x.args


def stride_of(e: Expr, var: Var) -> int | None:
    """How far index `e` moves when `var` moves by one: 0 if it does not occur, None if not affine in it."""
    total = 0
    for atom, n in terms(e)[0]:
        if atom is var:
            total += n
        elif any(x is var for x in walk(atom)):
            return None
    return total
