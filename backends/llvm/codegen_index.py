"""Index arithmetic of the code generator: i64 expressions as sums over loop variables, split into a scalar
part and what changes from lane to lane. Used by codegen_memory (addresses) and codegen_expr (comparisons,
conversions).

Addresses must be cheap: the scalar part is computed once per loop that changes it, constants end up in the
instruction's displacement, and divisions by constants are kept away from lanes wherever the lanes of a vector
provably share the quotient. What is left is done in 32-bit lanes where the values fit.
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

from ...ir.dtypes import DType, bool_, int32, int64
from ...ir.expr import Cast, Const, Expr, Prim, terms
from .codegen_text import Module, Val, Writer, constant, wrap

Linear = tuple[int, tuple[tuple[Expr, int], ...]]
Range = tuple[int, int]

LANE = object()  # what the variable of the open vector loop is bound to
_I32: Range = (-(1 << 31), (1 << 31) - 1)
_SUMS = frozenset(("add", "sub", "neg", "mul"))


class Split(NamedTuple):
    """An i64 expression in the current loops: `const + sum(ref * k) + lane * stride + sum(vector * k)`."""

    const: int
    terms: list[tuple[str, int]]
    stride: int
    vectors: list[tuple[Val, int]]


class IndexWriter(Writer):
    """Adds index expressions to a writer.

    Attributes:
        env: bindings of loop variables (an int, an SSA name, or LANE), of locals (values), and of buffers
            (places).
        lanes: vector length of the open vector loop, 0 outside of one.
        ranges: inclusive bounds of SSA names and of index-valued locals.
        memo: values of expressions of the current statement.
        patterns: lanes of vectors that are known here, by their text.
        multiples: numbers that divide SSA names.
        never: lanes of masks that are not set, whatever happens, by their text.
    """

    def __init__(self, module: Module) -> None:
        super().__init__(module)
        self.env: dict[Any, Any] = {}
        self.lanes = 0
        self.ranges: dict[Any, Range] = {}
        self.memo: dict[Expr, Val] = {}
        self.patterns: dict[str, tuple[int, ...]] = {}
        self.multiples: dict[str, int] = {}
        self.never: dict[str, frozenset[int]] = {}
        self._linear: dict[Expr, Linear] = {}

    def value(self, e: Expr) -> Val:
        """The value of any expression (codegen_expr)."""
        raise NotImplementedError  # pragma: no cover - abstract

    def linear(self, e: Expr) -> Linear:
        """An i64 expression as a constant and a sum of atoms, before any binding; remembered."""
        got = self._linear.get(e)
        if got is None:
            items, const = terms(e)
            if any([type(a) is Prim and a.name in _SUMS for a, _ in items]):  # data, not index arithmetic
                total: dict[Expr, int] = {}
                const = self._collect(e, 1, total)
                items = list(total.items())
            got = self._linear[e] = const, tuple([x for x in items if x[1]])
        return got

    def _collect(self, e: Expr, k: int, total: dict[Expr, int]) -> int:
        if isinstance(e, Const):
            return k * int(e.value)
        if isinstance(e, Prim):
            name, args = e.name, e.args
            if name == "add":
                return self._collect(args[0], k, total) + self._collect(args[1], k, total)
            if name == "sub":
                return self._collect(args[0], k, total) + self._collect(args[1], -k, total)
            if name == "neg":
                return self._collect(args[0], -k, total)
            if name == "mul":
                for x, c in (args, args[::-1]):
                    if isinstance(c, Const):
                        return self._collect(x, k * int(c.value), total)
        total[e] = total.get(e, 0) + k
        return 0

    # --- with the current bindings --------------------------------------------------------------------------

    def split(self, linear: Linear) -> Split:
        """Binds the atoms of a linear form."""
        const, atoms = linear
        terms: list[tuple[str, int]] = []
        vectors: list[tuple[Val, int]] = []
        stride = 0
        env = self.env
        for atom, k in atoms:
            bound = env.get(atom)
            if type(bound) is int:
                const += k * bound
            elif type(bound) is str:
                terms.append((bound, k))
            elif bound is LANE:
                stride += k
            else:
                c, more, s, vs = self._atom(atom)
                const += k * c
                terms += [(r, n * k) for r, n in more]
                stride += k * s
                vectors += [(v, n * k) for v, n in vs]
        return Split(const, terms, stride, vectors)

    def _atom(self, e: Expr) -> Split:
        if isinstance(e, Prim) and e.name in ("floordiv", "mod"):
            k = e.args[1]
            if isinstance(k, Const) and k.value > 0:
                return self._divide(e, int(k.value))
        if isinstance(e, Cast) and e.x.dtype is int32:
            v = self.value(e.x)  # lanes stay 32 bits wide
            if not v.lanes:
                v = self.value(e)
        else:
            v = self.value(e)
        if v.const is not None:
            return Split(int(v.const), [], 0, [])
        if v.lanes:
            return Split(0, [], 0, [(v, 1)])
        return Split(0, [(v.ref, 1)], 0, [])

    def _divide(self, e: Prim, k: int) -> Split:
        """`x // k` or `x % k` for a constant k > 0."""
        s = self.split(self.linear(e.args[0]))
        quotient = e.name == "floordiv"
        if not s.vectors:
            if not s.terms and not s.stride:
                return Split(s.const // k if quotient else s.const % k, [], 0, [])
            # A multiple of g plus r + lane * stride in [0, g): that part neither changes the quotient nor
            # wraps.
            g = gcd(k, *self._steps(s))
            r = s.const % g
            last = r + s.stride * max(self.lanes - 1, 0)
            if g > 1 and 0 <= last < g:
                low = Split(0 if quotient else r, [], 0 if quotient else s.stride, [])
                high = self._divide_scalar(s._replace(const=s.const - r, stride=0), k, quotient)
                return Split(low.const + high.const, high.terms, low.stride, [])
            if not s.stride:
                return self._divide_scalar(s, k, quotient)
        lanes = self.pattern_of(s)
        if lanes is not None and all(n % k == 0 for n in self._steps(s)):
            return self._divide_known(s, lanes, k, quotient)
        return Split(0, [], 0, [(self._divide_vector(s, k, quotient), 1)])

    def _divide_known(self, s: Split, lanes: tuple[int, ...], k: int, quotient: bool) -> Split:
        """Of multiples of k plus numbers that are known lane by lane."""
        found = [s.const + x for x in lanes]
        pattern = self.known([x // k if quotient else x % k for x in found])
        terms: list[tuple[str, int]] = []
        for ref, n in s.terms if quotient else ():
            if n % k:
                whole = self.pure(f"sdiv exact i64 {self.scale(ref, n)}, {k}", self.scale(ref, n))
                low, high = self.ranges.get(ref, (0, -1))
                if low <= high:
                    self.ranges[whole] = (min(low * n, high * n) // k, max(low * n, high * n) // k)
                terms.append((whole, 1))
            else:
                terms.append((ref, n // k))
        return Split(0, terms, 0, [(pattern, 1)])

    def _steps(self, s: Split) -> list[int]:
        """What divides each scalar term."""
        return [n * self.multiples.get(ref, 1) for ref, n in s.terms]

    def known(self, numbers: list[int]) -> Val:
        """A vector of these numbers, 32 bits each."""
        text = f"<{', '.join([f'i32 {x}' for x in numbers])}>"
        self.patterns[text] = tuple(numbers)
        self.ranges[text] = (min(numbers), max(numbers))
        return Val(text, int32, len(numbers))

    def pattern_of(self, s: Split) -> tuple[int, ...] | None:
        """What the lanes of a split add to its scalar part, where that is known."""
        out = [lane * s.stride for lane in range(self.lanes)]
        for v, k in s.vectors:
            lanes = self.patterns.get(v.ref)
            if lanes is None or len(lanes) != self.lanes:
                return None
            out = [x + k * y for x, y in zip(out, lanes)]
        return tuple(out)

    def _divide_scalar(self, s: Split, k: int, quotient: bool) -> Split:
        if not s.terms:
            return Split(s.const // k if quotient else s.const % k, [], 0, [])
        low, high = self.range_of(s) or (-(1 << 63), (1 << 63) - 1)
        if low // k == high // k:  # one quotient for the whole range
            q = low // k
            return Split(q, [], 0, []) if quotient else s._replace(const=s.const - q * k)
        x = self.sum_i64(s.terms, s.const).ref
        ref = self._floor(x, k, quotient, "i64", str(k), low >= 0)
        self.ranges[ref] = (low // k, high // k) if quotient else (0, k - 1)
        return Split(0, [(ref, 1)], 0, [])

    def _divide_vector(self, s: Split, k: int, quotient: bool) -> Val:
        r = self.range_of(s)
        x = self.vector_of(s, r)
        element = "i64" if x.dtype is int64 else "i32"
        divisor = self.splat(str(k), element, self.lanes, const=True)
        ref = self._floor(
            x.ref, k, quotient, f"<{self.lanes} x {element}>", divisor, r is not None and r[0] >= 0
        )
        if r is not None:
            self.ranges[ref] = (r[0] // k, r[1] // k) if quotient else (0, k - 1)
        return Val(ref, x.dtype, self.lanes)

    def _floor(self, x: str, k: int, quotient: bool, ty: str, divisor: str, positive: bool) -> str:
        """Floor division or remainder by a constant, of one type."""
        if positive:
            return self.pure(f"{'udiv' if quotient else 'urem'} {ty} {x}, {divisor}", x)
        if k & (k - 1) == 0:
            vector = ty[0] == "<"
            n = k.bit_length() - 1 if quotient else k - 1
            count = self.splat(str(n), ty.split()[2][:-1], self.lanes, const=True) if vector else str(n)
            return self.pure(f"{'ashr' if quotient else 'and'} {ty} {x}, {count}", x)
        r = self.pure(f"srem {ty} {x}, {divisor}", x)
        bits = 64 if "i64" in ty else 32
        if ty[0] == "<":
            shift = self.splat(str(bits - 1), f"i{bits}", self.lanes, const=True)
        else:
            shift = str(bits - 1)
        sign = self.pure(f"ashr {ty} {r}, {shift}", r)
        fix = self.pure(f"and {ty} {sign}, {divisor}", sign)
        mod = self.pure(f"add {ty} {r}, {fix}", r, fix)
        if not quotient:
            return mod
        whole = self.pure(f"sub {ty} {x}, {mod}", x, mod)
        return self.pure(f"sdiv exact {ty} {whole}, {divisor}", whole)

    # --- ranges ---------------------------------------------------------------------------------------------

    def range_of(self, s: Split) -> Range | None:
        """Inclusive bounds of a split, over all lanes; None if unknown."""
        low = high = s.const
        parts: list[tuple[Range | None, int]] = [(self.ranges.get(ref), k) for ref, k in s.terms]
        parts += [(self.ranges.get(v.ref) or _dtype_range(v.dtype), k) for v, k in s.vectors]
        if s.stride:
            parts.append(((0, self.lanes - 1), s.stride))
        for r, k in parts:
            if r is None:
                return None
            a, b = r[0] * k, r[1] * k
            low += min(a, b)
            high += max(a, b)
        return low, high

    # --- values ---------------------------------------------------------------------------------------------

    def index_value(self, e: Expr) -> Val:
        """An i64 expression as an i64 value."""
        s = self.split(self.linear(e))
        if not s.stride and not s.vectors:
            v = self.sum_i64(s.terms, s.const)
            if v.const is None and v.ref not in self.ranges:
                r = self.range_of(s)
                if r is not None:
                    self.ranges[v.ref] = r
            return v
        return self.widened(self.vector_of(s, self.range_of(s)))

    def narrow_value(self, e: Expr) -> Val:
        """Like `index_value`, but in i32 lanes where the values fit."""
        s = self.split(self.linear(e))
        if not s.stride and not s.vectors:
            return self.sum_i64(s.terms, s.const)
        return self.vector_of(s, self.range_of(s))

    def vector_of(self, s: Split, r: Range | None) -> Val:
        """The lanes of a split: i32 where the range (of the sum and of every part) allows, else i64."""
        narrow = r is not None and _inside(r)
        scalar = s._replace(stride=0, vectors=[])
        if narrow:
            narrow = _inside(self.range_of(scalar)) and all(
                _inside(self.range_of(Split(0, [], 0, [part]))) for part in s.vectors
            )
        element, dtype = ("i32", int32) if narrow else ("i64", int64)
        ty = f"<{self.lanes} x {element}>"
        total = ""
        for v, k in s.vectors:
            x = self._resize(v, dtype)
            if k != 1:
                x = self.pure(f"mul {ty} {x}, {self.splat(str(k), element, self.lanes, const=True)}", x)
            total = self.pure(f"add {ty} {total}, {x}", total, x) if total else x
        if s.stride:
            iota = self.iota(self.lanes, element, s.stride)
            total = self.pure(f"add {ty} {total}, {iota}", total) if total else iota
        base = self.sum_i64(s.terms, s.const)
        if base.const != 0:
            ref = base.ref
            if narrow and base.const is None:
                ref = self.pure(f"trunc i64 {ref} to i32", ref)
            splat = self.splat(ref, element, self.lanes, base.const is not None)
            total = self.pure(f"add {ty} {splat}, {total}", splat, total)
        if r is not None and total[0] == "%":
            self.ranges[total] = r
        return Val(total, dtype, self.lanes)

    def widened(self, v: Val) -> Val:
        """An i32 or i64 index value as i64."""
        if v.dtype is int64:
            return v
        ref = self._resize(v, int64)
        if v.ref in self.ranges:
            self.ranges[ref] = self.ranges[v.ref]
        return Val(ref, int64, v.lanes)

    def _resize(self, v: Val, dtype: DType) -> str:
        if v.dtype is dtype:
            return v.ref
        verb = "sext" if dtype is int64 else "trunc"
        return self.pure(f"{verb} {v.type} {v.ref} to <{v.lanes} x i{dtype.bits}>", v.ref)

    def compare_index(self, op: str, a: Expr, b: Expr) -> Val | None:
        """`a op b` of i64 expressions: a literal where the ranges decide, one vector comparison against a
        scalar where only the lane number varies; None where nothing better than comparing values is known."""
        ka, xa = self.linear(a)
        kb, xb = self.linear(b)
        s = self.split((ka - kb, (*xa, *[(x, -k) for x, k in xb])))
        r = self.range_of(_merged(s))
        if r is not None:
            truth = _decide(op, r)
            if truth is not None:
                return constant(truth, bool_)
        if s.vectors or not s.stride or r is None or not _inside(r):
            return None
        rest = Split(s.const, s.terms, 0, [])
        if not _inside(self.range_of(rest)):
            return None
        limit = self.sum_i64([(ref, -k) for ref, k in s.terms], -s.const)  # lane * stride op limit
        ref = limit.ref
        if limit.const is None:
            ref = self.pure(f"trunc i64 {ref} to i32", ref)
        else:
            ref = str(wrap(int(limit.const), 32))
        bound = self.splat(ref, "i32", self.lanes, limit.const is not None)
        ty = f"<{self.lanes} x i32>"
        iota = self.iota(self.lanes, "i32", s.stride)
        got = Val(self.pure(f"icmp {SIGNED[op]} {ty} {iota}, {bound}", bound), bool_, self.lanes)
        if limit.const is not None:
            steps = [lane * s.stride - limit.const for lane in range(self.lanes)]
            self.never[got.ref] = frozenset([n for n, d in enumerate(steps) if not _decide(op, (d, d))])
        return got


SIGNED = {"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"}
UNSIGNED = {"eq": "eq", "ne": "ne", "lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge"}


def _inside(r: Range | None) -> bool:
    return r is not None and r[0] >= _I32[0] and r[1] <= _I32[1]


def _dtype_range(dtype: DType) -> Range | None:
    return _I32 if dtype is int32 else None


def _merged(s: Split) -> Split:
    """Terms over the same name added up, for a tight range."""
    total: dict[str, int] = {}
    for ref, k in s.terms:
        total[ref] = total.get(ref, 0) + k
    return s._replace(terms=list(total.items()))


def _decide(op: str, r: Range) -> bool | None:
    """The truth of `d op 0` for every d in the range, or None if it varies."""
    low, high = r
    if op in ("lt", "ge"):
        truth = True if high < 0 else False if low >= 0 else None
        return truth if op == "lt" or truth is None else not truth
    if op in ("le", "gt"):
        truth = True if high <= 0 else False if low > 0 else None
        return truth if op == "le" or truth is None else not truth
    truth = True if low == high == 0 else False if low > 0 or high < 0 else None
    return truth if op == "eq" or truth is None else not truth
