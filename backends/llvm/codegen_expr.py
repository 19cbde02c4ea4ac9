"""Scalar expressions of the loop IR to LLVM IR: primitives, conversions and lane reductions, on scalars or
vectors.

What does not depend on the lane number stays scalar and is widened where a vector meets it. i64 expressions
go through codegen_index, loads through codegen_memory, elementary functions through codegen_math.

Meaning follows ir/scalar.py: integers wrap, division by zero gives 0, comparisons with NaN are false but for
`ne`, minimum and maximum propagate NaN and order -0 below +0. Multiplication and addition round separately,
except in accumulations into `register` buffers, where the target may fuse them.
"""

from __future__ import annotations

import numpy as np

from ...ir.dtypes import DType, bool_, float32, float64, int64
from ...ir.expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var
from ...ir.scalar import PRIMITIVES
from .codegen_cast import CastWriter
from .codegen_index import LANE, SIGNED, UNSIGNED
from .codegen_math import math_function
from .codegen_text import Module, Val, constant, vector_text
from .target import CompileError

_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and_": "and",
    "or_": "or",
    "xor": "xor",
    "shl": "shl",
}
_COMPARE = frozenset(SIGNED)
_ORDERED = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_FLOAT_UNARY = {
    "abs": "fabs",
    "floor": "floor",
    "ceil": "ceil",
    "trunc": "trunc",
    "round": "roundeven",
    "sqrt": "sqrt",
}
_DEEP = 60
_INDEX = frozenset(("add", "sub", "mul", "neg", "floordiv", "mod"))


class Product:
    """A named product that nobody has needed as a value yet.

    Attributes:
        a, b: the factors.
    """

    __slots__ = ("a", "b")

    def __init__(self, a: Val, b: Val) -> None:
        self.a = a
        self.b = b


class ExprWriter(CastWriter):
    """Adds the evaluation of expressions."""

    _nesting = 0

    def __init__(self, module: Module) -> None:
        super().__init__(module)
        self._constants: dict[Expr, Val] = {}

    def value(self, e: Expr) -> Val:
        """The value of an expression in the current loops; each node once per statement."""
        got = self.memo.get(e)
        if got is None:
            kind = type(e)
            if kind is Local:
                return self._local(e)
            if kind is Const:
                got = self._constants.get(e)
                if got is None:
                    got = self._constants[e] = constant(e.value, e.dtype)  # type: ignore[attr-defined]
                return got
            if self._nesting > _DEEP:
                self._operands_first(e)
            self._nesting += 1
            got = self.memo[e] = self._compute(e)
            self._nesting -= 1
        return got

    def _operands_first(self, e: Expr) -> None:
        """Fused chains can be longer than Python's stack is deep: evaluates what `e` is made of, innermost
        first."""
        memo = self.memo
        stack = [e]
        while stack:
            x = stack[-1]
            todo = [
                a for a in x.args if isinstance(a, (Prim, Cast)) and a.dtype is not int64 and a not in memo
            ]
            if todo and isinstance(x, (Prim, Cast)):
                stack += todo
            else:
                stack.pop()
                if x is not e and x not in memo:
                    memo[x] = self._compute(x)

    def _compute(self, e: Expr) -> Val:
        if isinstance(e, Prim):
            if e.dtype is int64 and e.name in _INDEX:
                if self._is_linear(e):
                    return self.index_value(e)
            elif e.name in _COMPARE and e.args[0].dtype is int64:
                return self._compare_i64(e)
            return self.primitive(e.name, [self.value(a) for a in e.args])
        if isinstance(e, Load):
            if e.buffer in self.held:
                return self._masked_register(e, self.load_register(e.buffer, e.index))
            return self.load_element(e.buffer, e.index, e.mask, e.other)
        if isinstance(e, Cast):
            narrow = e.x.dtype is int64 and not e.bits and not isinstance(e.x, (Load, Local))
            return self.convert(self.narrow_value(e.x) if narrow else self.value(e.x), e.dtype, e.bits)
        if isinstance(e, Var):
            return self.index_value(e)
        if isinstance(e, LaneReduce):
            return self._lane_reduce(e)
        raise CompileError(f"no code for expression {type(e).__name__}")

    def _local(self, e: Expr) -> Val:
        bound = self.env[e]
        if type(bound) is Product:
            bound = self.env[e] = self.primitive("mul", [bound.a, bound.b])
        return bound

    def _masked_register(self, e: Load, v: Val) -> Val:
        if e.mask is None:
            return v
        return self.select(
            self.value(e.mask), v, constant(0, e.dtype) if e.other is None else self.value(e.other)
        )

    def _is_linear(self, e: Prim) -> bool:
        """Not an atom of its own linear form, unless that is a division codegen_index knows."""
        if e.name in ("floordiv", "mod"):
            k = e.args[1]
            return isinstance(k, Const) and k.value > 0
        return e.name != "mul" or any(isinstance(a, Const) for a in e.args)

    def _compare_i64(self, e: Prim) -> Val:
        a, b = e.args
        got = self.compare_index(e.name, a, b)
        if got is not None:
            return got
        x, y = self.narrow_value(a), self.narrow_value(b)
        if x.dtype is not y.dtype:
            if y.const is not None and y.dtype is int64 and -(1 << 31) <= y.const < 1 << 31:
                y = Val(y.ref, x.dtype, 0, y.const)
            elif x.const is not None and x.dtype is int64 and -(1 << 31) <= x.const < 1 << 31:
                x = Val(x.ref, y.dtype, 0, x.const)
            else:
                x, y = self.widened(x), self.widened(y)
        return self.primitive(e.name, [x, y])

    # --- primitives -----------------------------------------------------------------------------------------

    def primitive(self, name: str, args: list[Val]) -> Val:
        """One primitive of ir/scalar.py on values."""
        if name == "select":
            return self.select(*args)
        if len(args) == 2 and args[0].dtype is bool_:
            short = self._shortcut(name, args[0], args[1])
            if short is not None:
                return short
            if name == "and_":
                return self.conjunction(*args)
        dtype = args[0].dtype
        if dtype.kind == "f":
            if dtype.bits == 16:  # the scheduler widens; this is for hand-written programs
                out = self.primitive(name, [self.convert(a, float32) for a in args])
                return out if out.dtype is bool_ else self.convert(out, dtype)
            return self._float(name, dtype, args)
        if all(a.const is not None for a in args):
            with np.errstate(all="ignore"):
                out = PRIMITIVES[name].numpy(*[np.asarray(a.const, dtype.numpy) for a in args])
            return constant(out.item(), bool_ if PRIMITIVES[name].result == "bool" else dtype)
        return self._integer(name, dtype, args)

    def _shortcut(self, name: str, a: Val, b: Val) -> Val | None:
        """Conditions with a known side."""
        if name in ("and_", "minimum", "or_", "maximum"):
            neutral = name in ("and_", "minimum")
            for x, y in ((a, b), (b, a)):
                if x.const is not None:
                    return y if x.const is neutral else x
        return None

    def _lanes(self, args: list[Val]) -> int:
        lanes = 0
        for a in args:
            if a.lanes > lanes:
                lanes = a.lanes
        return lanes

    def _float(self, name: str, dtype: DType, args: list[Val]) -> Val:
        lanes = self._lanes(args)
        element = "float" if dtype is float32 else "double"
        ty = vector_text(element, lanes)
        refs = [a.ref if a.lanes == lanes else self.use(a, lanes) for a in args]
        verb = _FLOAT_BINARY.get(name)
        if verb is not None:
            x, y = refs
            return Val(self.pure(f"{verb} {ty} {x}, {y}", x, y, costly=verb == "fdiv"), dtype, lanes)
        if name in _COMPARE:
            x, y = refs
            return Val(self.pure(f"fcmp {_ORDERED[name]} {ty} {x}, {y}", x, y), bool_, lanes)
        if name == "neg":
            return Val(self.pure(f"fneg {ty} {refs[0]}", refs[0]), dtype, lanes)
        if name in _FLOAT_UNARY:
            return Val(self.call(_FLOAT_UNARY[name], element, lanes, refs, name == "sqrt"), dtype, lanes)
        if name in ("minimum", "maximum"):
            return Val(self.call(name, element, lanes, refs), dtype, lanes)
        function = math_function(self.module, name, element, lanes, self.module.fma)
        text = ", ".join(f"{ty} {r}" for r in refs)
        return Val(self.pure(f"call {ty} {function}({text})", *refs, costly=True), dtype, lanes)

    def call(self, name: str, element: str, lanes: int, refs: list[str], costly: bool = False) -> str:
        """A call of an LLVM intrinsic whose operands have one type."""
        ty = vector_text(element, lanes)
        function = self.module.intrinsic(name, element, lanes, len(refs))
        return self.pure(
            f"call {ty} {function}({', '.join([f'{ty} {r}' for r in refs])})", *refs, costly=costly
        )

    def _integer(self, name: str, dtype: DType, args: list[Val]) -> Val:
        """Integers and bool."""
        lanes = self._lanes(args)
        element = "i1" if dtype is bool_ else f"i{dtype.bits}"
        ty = vector_text(element, lanes)
        refs = [a.ref if a.lanes == lanes else self.use(a, lanes) for a in args]
        x = refs[0]
        y = refs[1] if len(refs) > 1 else ""
        verb = _INT_BINARY.get(name)
        if verb is not None:
            return Val(self.pure(f"{verb} {ty} {x}, {y}", x, y), dtype, lanes)
        if name in _COMPARE:
            predicate = (SIGNED if dtype.kind == "i" else UNSIGNED)[name]
            return Val(self.pure(f"icmp {predicate} {ty} {x}, {y}", x, y), bool_, lanes)
        if name in ("minimum", "maximum"):
            if dtype is bool_:
                return Val(
                    self.pure(f"{'and' if name == 'minimum' else 'or'} {ty} {x}, {y}", x, y), dtype, lanes
                )
            function = ("s" if dtype.kind == "i" else "u") + name[:3]
            return Val(self.call(function, element, lanes, refs), dtype, lanes)
        if name == "shr":
            return Val(
                self.pure(f"{'ashr' if dtype.kind == 'i' else 'lshr'} {ty} {x}, {y}", x, y), dtype, lanes
            )
        if name == "neg":
            return Val(self.pure(f"sub {ty} {_zero(lanes)}, {x}", x), dtype, lanes)
        if name == "not_":
            ones = self.splat("true" if dtype is bool_ else "-1", element, lanes, True) if lanes else "-1"
            return Val(self.pure(f"xor {ty} {x}, {ones}", x), dtype, lanes)
        if name == "abs":
            if dtype.kind == "u":
                return Val(x, dtype, lanes)
            function = self.module.intrinsic("abs", element, lanes, 1)
            declared = f"declare {ty} {function}({ty})"
            self.module.declares.pop(declared, None)
            self.module.declares[f"declare {ty} {function}({ty}, i1)"] = None
            return Val(self.pure(f"call {ty} {function}({ty} {x}, i1 false)", x), dtype, lanes)
        if name in ("floordiv", "mod"):
            return Val(self._divide_integers(name, dtype, lanes, ty, args, x, y), dtype, lanes)
        if name == "mulhi":
            wide = vector_text("i64", lanes)
            a, b = (self.pure(f"zext {ty} {r} to {wide}", r) for r in (x, y))
            product = self.pure(f"mul {wide} {a}, {b}", a, b)
            count = self.splat("32", "i64", lanes, True) if lanes else "32"
            high = self.pure(f"lshr {wide} {product}, {count}", product)
            return Val(self.pure(f"trunc {wide} {high} to {ty}", high), dtype, lanes)
        raise CompileError(f"primitive {name} does not take {dtype.name}")

    def _divide_integers(
        self, name: str, dtype: DType, lanes: int, ty: str, args: list[Val], x: str, y: str
    ) -> str:
        """Rounding down; by zero gives 0. The one overflow, minimum // -1, wraps to itself."""
        known = args[1].const
        if known == 0:
            return _zero(lanes)
        flag = vector_text("i1", lanes)
        zero = _zero(lanes)
        bad = ""
        one = self.use(constant(1, dtype), lanes)
        if known is None:
            bad = self.pure(f"icmp eq {ty} {y}, {zero}", y)
            y = self.pure(f"select {flag} {bad}, {ty} {one}, {ty} {y}", bad, y)
        if dtype.kind == "u":
            out = self.pure(f"{'udiv' if name == 'floordiv' else 'urem'} {ty} {x}, {y}", x, y, costly=True)
        else:
            minus = self.use(constant(-1, dtype), lanes)
            if known is None or known == -1:
                lowest = self.use(constant(-(1 << (dtype.bits - 1)), dtype), lanes)
                a = self.pure(f"icmp eq {ty} {x}, {lowest}", x)
                b = self.pure(f"icmp eq {ty} {y}, {minus}", y)
                over = self.pure(f"and {flag} {a}, {b}", a, b)
                y = self.pure(f"select {flag} {over}, {ty} {one}, {ty} {y}", over, y)
            q = self.pure(f"sdiv {ty} {x}, {y}", x, y, costly=True)
            back = self.pure(f"mul {ty} {q}, {y}", q, y)
            r = self.pure(f"sub {ty} {x}, {back}", x, back)
            inexact = self.pure(f"icmp ne {ty} {r}, {zero}", r)
            signs = self.pure(f"xor {ty} {r}, {y}", r, y)
            apart = self.pure(f"icmp slt {ty} {signs}, {zero}", signs)
            fix = self.pure(f"and {flag} {inexact}, {apart}", inexact, apart)
            if name == "floordiv":
                step = self.pure(f"sext {flag} {fix} to {ty}", fix)
                out = self.pure(f"add {ty} {q}, {step}", q, step)
            else:
                step = self.pure(f"select {flag} {fix}, {ty} {y}, {ty} {zero}", fix, y)
                out = self.pure(f"add {ty} {r}, {step}", r, step)
        if bad:
            out = self.pure(f"select {flag} {bad}, {ty} {zero}, {ty} {out}", bad, out)
        return out

    # --- accumulation ---------------------------------------------------------------------------------------

    def named(self, e: Expr) -> Val | Product:
        """The value of a `Let`. A product waits: an accumulation that uses it fuses it, and nothing else may
        be left."""
        if isinstance(e, Prim) and e.name == "mul" and e.dtype.kind == "f" and e.dtype.bits > 16:
            a, b = map(self.value, e.args)
            return Product(a, b)
        return self.value(e)

    def _product(self, e: Expr) -> tuple[Val, Val] | None:
        """The factors, if `e` is a product, or the name of one."""
        if isinstance(e, Prim) and e.name == "mul":
            a, b = map(self.value, e.args)
            return a, b
        if isinstance(e, Local):
            bound = self.env[e]
            if type(bound) is Product:
                return bound.a, bound.b
        return None

    def accumulated(self, e: Expr) -> Val:
        """The value stored to an accumulator: sums of products may be fused."""
        if not (isinstance(e, Prim) and e.name == "add" and e.dtype.kind == "f" and e.dtype.bits > 16):
            return self.value(e)
        chain: list[tuple[Val, Val]] = []  # factors of each step, outermost sum first
        rest: Expr = e
        while isinstance(rest, Prim) and rest.name == "add":
            a, b = rest.args
            factors = self._product(b)
            if factors is None:
                factors = self._product(a)
                a = b
            if factors is None:
                break
            chain.append(factors)
            rest = a
        total = self.value(rest)
        element = "float" if e.dtype is float32 else "double"
        for x, y in reversed(chain):
            lanes = max(x.lanes, y.lanes, total.lanes)
            ty = vector_text(element, lanes)
            function = self.module.intrinsic("fmuladd", element, lanes, 3)
            a, b, c = self.use(x, lanes), self.use(y, lanes), self.use(total, lanes)
            ref = self.pure(f"call {ty} {function}({ty} {a}, {ty} {b}, {ty} {c})", a, b, c)
            total = Val(ref, e.dtype, lanes)
        return total

    def _lane_reduce(self, e: LaneReduce) -> Val:
        """Halving: lane i with lane i + half, until one is left."""
        n = e.var.extent
        if n & (n - 1):
            raise CompileError(f"lane reduction over {n} lanes: expected a power of two")
        outer = self.lanes, self.memo, self.mask
        self.lanes, self.memo, self.mask = (n if n > 1 else 0), {}, None
        self.env[e.var] = LANE if n > 1 else 0
        v = self.value(e.x)
        if n > 1:
            v = Val(self.use(v, n), v.dtype, n)
        self.lanes, self.memo, self.mask = outer
        del self.env[e.var]
        if n >= 4 and e.name in ("minimum", "maximum") and v.dtype in (float32, float64):
            return self._extreme_lane(v, e.name == "maximum")
        while n > 1:
            half = n // 2
            low, high = (self._half(v, range(i, i + half)) for i in (0, half))
            v = self.primitive(e.name, [low, high])
            n = half
        return v

    def _extreme_lane(self, v: Val, largest: bool) -> Val:
        """The least or largest lane of floats as that of integers in the same order, which are quicker to
        compare: NaN and the signs of zeros take six instructions for two floats. Lanes that are NaN are
        looked for beside it."""
        width = v.dtype.bits
        element, n, ty = f"i{width}", v.lanes, vector_text(f"i{width}", v.lanes)
        bits = self.pure(f"bitcast {v.type} {v.ref} to {ty}", v.ref)
        ordered = self._in_order(bits, ty, width, n)
        function = f"@llvm.vector.reduce.s{'max' if largest else 'min'}.v{n}{element}"
        self.module.declares[f"declare {element} {function}({ty})"] = None
        most = self.pure(f"call {element} {function}({ty} {ordered})", ordered)
        most = self._in_order(most, element, width, 0)
        scalar = "float" if v.dtype is float32 else "double"
        most = self.pure(f"bitcast {element} {most} to {scalar}", most)
        unordered = self.pure(f"fcmp uno {v.type} {v.ref}, zeroinitializer", v.ref)
        any_of = f"@llvm.vector.reduce.or.v{n}i1"
        self.module.declares[f"declare i1 {any_of}(<{n} x i1>)"] = None
        some = self.pure(f"call i1 {any_of}(<{n} x i1> {unordered})", unordered)
        nan = "0x7FF8000000000000"
        return Val(self.pure(f"select i1 {some}, {scalar} {nan}, {scalar} {most}", some, most), v.dtype)

    def _in_order(self, bits: str, ty: str, width: int, lanes: int) -> str:
        """Bits of floats as integers of the same order, -0 below 0; and back again."""
        element = f"i{width}"
        shift, rest = (
            self.splat(str(c), element, lanes, True) if lanes else str(c)
            for c in (width - 1, (1 << (width - 1)) - 1)
        )
        sign = self.pure(f"ashr {ty} {bits}, {shift}", bits)
        flip = self.pure(f"and {ty} {sign}, {rest}", sign)
        return self.pure(f"xor {ty} {bits}, {flip}", bits, flip)

    def _half(self, v: Val, picks: range) -> Val:
        if len(picks) == 1:
            return Val(self.pure(f"extractelement {v.type} {v.ref}, i64 {picks[0]}", v.ref), v.dtype)
        mask = ", ".join(f"i32 {i}" for i in picks)
        ref = self.pure(
            f"shufflevector {v.type} {v.ref}, {v.type} poison, <{len(picks)} x i32> <{mask}>", v.ref
        )
        return Val(ref, v.dtype, len(picks))


def _zero(lanes: int) -> str:
    return "zeroinitializer" if lanes else "0"
