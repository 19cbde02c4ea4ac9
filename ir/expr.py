"""Scalar expressions of the loop IR: what one element is computed from. Immutable DAGs, built by `ExprScalar`
(so an op's lambda yields them unchanged) and by Python operators on index expressions.

Index expressions are i64 and simplify as they are built: constants fold, sums and products flatten into a
canonical affine form, and `//` and `%` vanish where the ranges of loop variables allow (`(4*i + j) // 4 -->
i` for `j` in [0, 4)). That is how reshapes, permutes and slices cost nothing after scheduling.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from . import dtypes
from .dtypes import DType
from .scalar import PRIMITIVES, ScalarBuilder

if TYPE_CHECKING:
    from .loops import Buffer


class Expr:
    """Base of all expressions. `dtype` is the element type, `args` are the sub-expressions; index arithmetic
    operators work on i64 ones."""

    __slots__ = ("dtype",)
    dtype: DType
    args: tuple[Expr, ...] = ()

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

    __slots__ = ("args", "buffer", "index", "mask", "other")

    def __init__(
        self, buffer: Buffer, index: tuple[Expr, ...], mask: Expr | None = None, other: Expr | None = None
    ) -> None:
        self.buffer = buffer
        self.index = index
        self.mask = mask
        self.other = other
        self.dtype = buffer.dtype
        self.args = index if mask is None else (*index, mask, other or _zero(buffer.dtype))

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        n = len(self.index)
        mask, other = (args[n], args[n + 1]) if len(args) > n else (None, None)
        return Load(self.buffer, args[:n], mask, other)


@cache
def _zero(dtype: DType) -> Const:
    """The one zero of a dtype."""
    return Const(0, dtype)


class Prim(Expr):
    """A scalar primitive (ir/scalar.py) of sub-expressions."""

    __slots__ = ("_is_index", "_terms", "args", "name")

    def __init__(self, name: str, args: tuple[Expr, ...], dtype: DType) -> None:
        self.name = name
        self.args = args
        self.dtype = dtype
        self._terms: tuple[list[tuple[Expr, int]], int] | None = None  # see `terms`
        self._is_index: bool | None = None  # see `is_index`

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return Prim(self.name, args, self.dtype)


class Cast(Expr):
    """Value conversion, or with `bits` a reinterpretation of the bit pattern."""

    __slots__ = ("args", "bits", "x")

    def __init__(self, x: Expr, dtype: DType, bits: bool = False) -> None:
        self.x = x
        self.args = (x,)
        self.dtype = dtype
        self.bits = bits

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return Cast(args[0], self.dtype, self.bits)


class LaneReduce(Expr):
    """Combines `x` over `var` in `[0, var.extent)` (a power of two) pairwise: lane i with lane i + half,
    halving. `name` is a primitive: add, mul, minimum, maximum, and_, or_. Ends a vector accumulator."""

    __slots__ = ("args", "name", "var", "x")

    def __init__(self, name: str, var: Var, x: Expr) -> None:
        self.name = name
        self.var = var
        self.x = x
        self.args = (x,)
        self.dtype = x.dtype

    def rebuild(self, args: tuple[Expr, ...]) -> Expr:
        return LaneReduce(self.name, self.var, args[0])


class WarpReduce(Expr):
    """Combines `x` over the 32 consecutive threads of a GPU warp (the innermost thread loop is fastest), as a
    butterfly: lane i with lane i ^ 16, ... i ^ 1; all lanes get the result. `name` is as for `LaneReduce`.
    The block has a multiple of 32 threads or a smaller power of two; all threads of a warp must reach it."""

    __slots__ = ("args", "name", "x")

    def __init__(self, name: str, x: Expr) -> None:
        self.name = name
        self.x = x
        self.args = (x,)
        self.dtype = x.dtype

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


#: what is kept of sums, quotients and remainders: lowering asks for the same ones of the same objects again
_REMEMBERED = 1 << 13


@lru_cache(maxsize=1 << 10)
def index_const(n: int) -> Const:
    """An i64 literal, the same object for equal ones."""
    return Const(int(n))


def as_index(x: Expr | int) -> Expr:
    return x if isinstance(x, Expr) else index_const(int(x))


def forget_arithmetic() -> None:
    """Lets go of the expressions that index arithmetic remembers: for who has made many."""
    for f in (index_add, index_mul, index_div, index_mod):
        f.cache_clear()


def terms(e: Expr) -> tuple[list[tuple[Expr, int]], int]:
    """`e` as a sum: [(atom, coefficient)] and a constant; atoms are not sums or constant multiples. The list
    is shared: don't change it."""
    if type(e) is Const:
        return [], int(e.value)
    if type(e) is not Prim:
        return [(e, 1)], 0
    got = e._terms
    if got is None:
        a = e.args
        if e.name == "add":
            out, const = terms(a[0])
            more, c = terms(a[1])
            got = _merge(out, more), const + c
        elif e.name == "mul" and type(a[1]) is Const:
            k = int(a[1].value)
            inner, c = terms(a[0])
            got = [(t, n * k) for t, n in inner], c * k
        else:
            return [(e, 1)], 0  # not kept: what knows itself is left to the collector
        e._terms = got
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


def _merge(items: list[tuple[Expr, int]], more: list[tuple[Expr, int]]) -> list[tuple[Expr, int]]:
    """Two sums as one: equal atoms together; those whose coefficients cancel are gone. In each the atoms
    differ."""
    if not items or not more:
        return items or more
    out = items.copy()
    cancelled = False
    for term in more:
        atom, n = term
        kind = type(atom)
        for i, (a, m) in enumerate(items):
            if a is atom or (type(a) is kind and kind is not Var and same(a, atom)):
                out[i] = (a, m + n)
                cancelled |= m + n == 0
                break
        else:
            out.append(term)
    return [t for t in out if t[1]] if cancelled else out


def from_terms(items: list[tuple[Expr, int]], const: int) -> Expr:
    """The canonical sum: larger coefficients first, the constant last."""
    if not items:
        return index_const(const)
    count = len(items)
    if count > 2:
        items = sorted(items, key=lambda t: -abs(t[1]))
    elif count == 2 and abs(items[0][1]) < abs(items[1][1]):
        items = [items[1], items[0]]
    i64 = dtypes.int64
    first, n = items[0]
    out = first if n == 1 else Prim("mul", (first, index_const(n)), i64)
    for k in range(1, count):
        atom, n = items[k]
        out = Prim("add", (out, atom if n == 1 else Prim("mul", (atom, index_const(n)), i64)), i64)
    if const:
        out = Prim("add", (out, index_const(const)), i64)
    if out is not first:
        assert type(out) is Prim
        out._terms = (items, const)
    return out


@lru_cache(maxsize=_REMEMBERED)
def index_add(a: Expr, b: Expr) -> Expr:
    if type(b) is Const and b.value == 0:
        return a
    if type(a) is Const and a.value == 0:
        return b
    x, c = terms(a)
    y, d = terms(b)
    return _sum(_merge(x, y), c + d)


def index_sum(parts: list[tuple[Expr, int]], const: int) -> Expr:
    """All parts times their factors, and a constant."""
    items: list[tuple[Expr, int]] = []
    for e, n in parts:
        more, c = terms(e)
        items = _merge(items, more if n == 1 else [(t, k * n) for t, k in more])
        const += c * n
    return _sum(items, const)


def _sum(items: list[tuple[Expr, int]], const: int) -> Expr:
    for t, _ in items if len(items) > 1 else ():
        if type(t) is Prim and t.name == "mod":
            items = _recombine(items)
            break
    return from_terms(items, const)


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
                return _recombine(_merge(rest, [(t, c * n) for t, c in parts]))
    return items


@lru_cache(maxsize=_REMEMBERED)
def index_mul(a: Expr, k: int) -> Expr:
    if k == 0:
        return index_const(0)
    if k == 1:
        return a
    x, c = terms(a)
    return from_terms([(t, n * k) for t, n in x], c * k)


def bounds(e: Expr) -> tuple[int, int] | None:
    """Inclusive range of an index expression, or None if unknown."""
    kind = type(e)
    if kind is Var or kind is Local:
        extent = e.extent  # type: ignore[attr-defined]
        return None if extent is None else (0, max(extent - 1, 0))
    if isinstance(e, Const):
        return int(e.value), int(e.value)
    if isinstance(e, Prim) and e.name in ("add", "mul", "floordiv", "mod"):
        x, y = e.args
        if e.name == "add":
            a, b = bounds(x), bounds(y)
            return (a[0] + b[0], a[1] + b[1]) if a and b else None
        if isinstance(y, Const):
            k = int(y.value)
            if e.name == "mod":
                return 0, k - 1
            a = bounds(x)
            if a is None:
                return None
            low, high = (a[0] * k, a[1] * k) if e.name == "mul" else (a[0] // k, a[1] // k)
            return (low, high) if low <= high else (high, low)
    return None


@lru_cache(maxsize=_REMEMBERED)
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
        inner = Prim("floordiv", (rest, index_const(k)), dtypes.int64)
    return index_add(from_terms(whole, c // k), inner)


def _const(e: Expr) -> int:
    """The value of a divisor: always a constant in index arithmetic."""
    assert isinstance(e, Const)
    return int(e.value)


@lru_cache(maxsize=_REMEMBERED)
def index_mod(a: Expr, k: int) -> Expr:
    """Remainder by a positive constant: multiples of k vanish."""
    if k == 1:
        return index_const(0)
    items, c = terms(a)
    rest = from_terms([(t, n) for t, n in items if n % k != 0], c % k)
    r = bounds(rest)
    if r is not None and r[0] >= 0 and r[1] < k:
        return rest
    if isinstance(rest, Prim) and rest.name == "mod" and _const(rest.args[1]) % k == 0:
        return index_mod(rest.args[0], k)  # (a % m) % k --> a % k where k divides m
    return Prim("mod", (rest, index_const(k)), dtypes.int64)


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every distinct node of the expressions, one after the other, parents before children."""
    seen: set[int] = set()
    out: list[Expr] = []
    for root in roots:
        stack = [root]
        while stack:
            x = stack.pop()
            key = id(x)
            if key not in seen:
                seen.add(key)
                out.append(x)
                stack += x.args
    return iter(out)


def mentions(e: Expr, var: Expr) -> bool:
    """Whether `var` is a node of `e`."""
    if e is var:
        return True
    seen: set[int] = set()
    stack = list(e.args)
    while stack:
        x = stack.pop()
        if x is var:
            return True
        if x.args and id(x) not in seen:
            seen.add(id(x))
            stack += x.args
    return False


def stride_of(e: Expr, var: Expr) -> int | None:
    """How far index `e` moves when `var` moves by one: 0 if it does not occur, None if not affine in it."""
    total = 0
    for atom, n in terms(e)[0]:
        if atom is var:
            total += n
        elif atom.args and mentions(atom, var):
            return None
    return total
