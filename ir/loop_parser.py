"""The parser of the loop IR's text; its grammar is described in ir/loop_text.py, through which everyone
uses it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

from . import dtypes
from .expr import EXPR_SCALAR, Cast, Const, Expr, LaneReduce, Load, Local, Var, WarpReduce, bounds
from .graph import Location
from .loop_text import INFIX
from .loop_tokens import Tokens
from .loops import (
    LOOP_KINDS,
    MMA_DEPTH,
    SPACES,
    Alloc,
    Barrier,
    Batch,
    Branch,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    LoopProgram,
    Matrices,
    Mma,
    Prefetch,
    Repeat,
    Step,
    Stmt,
    Store,
    While,
    WhileStep,
)
from .scalar import PRIMITIVES

_BY_SYMBOL = {symbol: (name, level) for name, (symbol, level) in INFIX.items()}
_UNARY = 8

_HEX = re.compile(r"[0-9a-f]+|empty")


class _Parser(Tokens):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.scopes: list[dict[str, Any]] = [{}]

    # scopes

    def lookup(self, name: str, want: Any, what: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                if isinstance(scope[name], want):
                    return scope[name]
                break
        raise self.error(f"no {what} named {name!r} here")

    # types and buffers

    def dtype(self) -> dtypes.DType:
        if self.token not in dtypes.BY_NAME:
            raise self.error(f"expected a dtype ({', '.join(dtypes.BY_NAME)}), found {self.token!r}")
        d = dtypes.BY_NAME[self.token]
        self.advance()
        return d

    def buffer(self, space: str) -> Buffer:
        name = self.name()
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        shape: list[int] = []
        while self.token != "]":
            shape.append(self.integer())
            if not self.accept(","):
                break
        self.expect("]")
        b = Buffer(name, dtype, shape, space)
        if name in self.scopes[-1]:
            raise self.error(f"{name!r} is defined twice")
        self.scopes[-1][name] = b
        return b

    # expressions

    def expr(self, level: int = 0) -> Expr:
        left = self.unary()
        while self.kind == "op" and self.token in _BY_SYMBOL:
            prim, mine = _BY_SYMBOL[self.token]
            if mine < level:
                break
            self.advance()
            left = self.prim(prim, (left, self.expr(mine + 1)))
        return left

    def unary(self) -> Expr:
        if self.token == "-" and self.kind == "op":
            self.advance()
            if self.kind == "number":
                return Const(-self.integer())
            return self.prim("neg", (self.expr(_UNARY),))
        if self.accept("~"):
            return self.prim("not_", (self.expr(_UNARY),))
        return self.atom()

    def prim(self, name: str, args: tuple[Expr, ...]) -> Expr:
        p = PRIMITIVES[name]
        if len(args) != p.arity:
            raise self.error(f"{name} takes {p.arity} operands, found {len(args)}")
        same = args[1:] if p.result == "select" else args
        if any(a.dtype is not same[0].dtype for a in same):
            raise self.error(f"{name} of {', '.join(a.dtype.name for a in args)}")
        if p.result == "select" and args[0].dtype is not dtypes.bool_:
            raise self.error(f"select takes a bool first, found {args[0].dtype.name}")
        if name == "mul" and args[0].dtype is dtypes.int64 and isinstance(args[0], Const):
            args = (args[1], args[0])
        return EXPR_SCALAR.prim(name, *args)

    def arguments(self) -> tuple[Expr, ...]:
        self.expect("(")
        args: list[Expr] = []
        while self.token != ")":
            args.append(self.expr())
            if not self.accept(","):
                break
        self.expect(")")
        return tuple(args)

    def atom(self) -> Expr:
        if self.accept("("):
            e = self.expr()
            self.expect(")")
            return e
        if self.kind == "number":
            return Const(self.integer())
        word = self.name()
        if word in ("true", "false"):
            return Const(word == "true", dtypes.bool_)
        if word in dtypes.BY_NAME:
            dtype = dtypes.BY_NAME[word]
            return self.literal(dtype) if self.accept(":") else Cast(self.one_argument(), dtype)
        if word == "bits":
            self.expect(".")
            dtype = self.dtype()
            return Cast(self.one_argument(), dtype, bits=True)
        if word == "reduce":
            return self.lane_reduce()
        if word == "warp" and self.token == ".":
            self.advance()
            return WarpReduce(self.name(), self.one_argument())
        if word in PRIMITIVES and self.token == "(":
            return self.prim(word, self.arguments())
        if self.token == "[":
            return self.load(self.lookup(word, Buffer, "buffer"))
        return self.lookup(word, (Var, Local), "variable or local")

    def one_argument(self) -> Expr:
        args = self.arguments()
        if len(args) != 1:
            raise self.error(f"a conversion takes one operand, found {len(args)}")
        return args[0]

    def literal(self, dtype: dtypes.DType) -> Const:
        sign = -1 if self.accept("-") else 1
        token = self.token
        if not (self.kind == "number" or token in ("inf", "nan")):
            raise self.error(f"expected a number, found {token!r}")
        if dtype.kind != "f" and not token.isdigit():
            raise self.error(f"expected an integer of {dtype.name}, found {token!r}")
        self.advance()
        return Const(sign * (float(token) if dtype.kind == "f" else int(token)), dtype)

    def index(self) -> tuple[Expr, ...]:
        out = [self.expr()]
        while self.accept(","):
            out.append(self.expr())
        return tuple(out)

    def load(self, buffer: Buffer) -> Expr:
        self.expect("[")
        index = self.index()
        mask = other = None
        if self.accept("?"):
            mask = self.expr()
            self.expect(":")
            other = self.expr()
        self.expect("]")
        return Load(buffer, index, mask, other)

    def lane_reduce(self) -> Expr:
        self.expect(".")
        name = self.name()
        self.expect("(")
        lane = self.name()
        self.expect("in")
        var = Var(lane, self.integer())
        self.expect(":")
        self.scopes.append({lane: var})
        x = self.expr()
        self.scopes.pop()
        self.expect(")")
        return LaneReduce(name, var, x)

    # statements

    def block(self) -> list[Stmt]:
        self.expect("{")
        self.scopes.append({})
        out: list[Stmt] = []
        while self.token != "}" or self.kind == "string":
            if self.kind == "end":
                raise self.error("expected '}'")
            out.append(self.statement())
        self.advance()
        self.scopes.pop()
        return out

    def statement(self) -> Stmt:
        word = self.name()
        if word == "for":
            return self.loop()
        if word == "let":
            local = Local(self.name(), dtypes.int64)
            self.expect(":")
            local.dtype = self.dtype()
            self.expect("=")
            value = self.expr()
            known = bounds(value) if value.dtype is dtypes.int64 else None
            local.extent = known[1] + 1 if known is not None and known[0] >= 0 else None
            self.scopes[-1][local.name] = local
            return Let(local, value)
        if word == "alloc":
            return Alloc(self.buffer(self.name()))
        if word == "if":
            return If(self.expr(), self.block())
        if word == "while":
            return While(self.expr(), self.block())
        if word == "barrier":
            copies = self.same_line() and self.accept("copies")
            left = self.integer() if copies and self.kind == "number" and self.same_line() else 0
            return Barrier(copies, left)
        if word == "batch" and self.token != "[":
            return Batch()
        if word == "matrices" and self.accept("."):
            return self.matrices()
        if word == "mma" and self.accept("."):
            return self.mma()
        if word == "prefetch" and self.token != "[":
            word = self.name()
            write = word == "write" and self.token != "["
            return Prefetch(*self.place(self.name() if write else word), write)
        ahead = word == "copy" and self.token != "["
        if ahead:
            word = self.name()
        buffer, index = self.place(word)
        self.expect("=")
        value = self.expr()
        masked = self.same_line() and self.accept("if")
        return Store(buffer, index, value, self.expr() if masked else None, ahead)

    def place(self, word: str) -> tuple[Buffer, tuple[Expr, ...]]:
        """The element of a buffer, whose name was read."""
        buffer = self.lookup(word, Buffer, "buffer")
        self.expect("[")
        index = self.index()
        self.expect("]")
        return buffer, index

    def matrices(self) -> Matrices:
        kind = self.name()
        if kind[:1] not in "xt" or kind[1:] not in ("1", "2", "4"):
            raise self.error(f"expected a kind of matrices (x1 to x4, t1 to t4), found {kind!r}")
        to, (i,) = self.place(self.name())
        self.expect("=")
        source, (j,) = self.place(self.name())
        return Matrices(int(kind[1:]), kind[0] == "t", to, i, source, j)

    def mma(self) -> Mma:
        kind = self.name()
        if kind not in MMA_DEPTH:
            raise self.error(f"expected a kind of mma ({', '.join(MMA_DEPTH)}), found {kind!r}")
        parts: list[tuple[Buffer, tuple[Expr, ...]]] = []
        for k in range(3):
            if k:
                self.expect(",")
            parts.append(self.place(self.name()))
        (sums, (i,)), (a, (j,)), (b, (k,)) = parts
        return Mma(kind, sums, i, a, j, b, k)

    def loop(self) -> For:
        name = self.name()
        self.expect("in")
        extent = self.integer()
        step = self.integer() if self.accept("step") else 1
        kind = self.name()
        if kind not in LOOP_KINDS:
            raise self.error(f"expected a loop kind ({', '.join(LOOP_KINDS)}), found {kind!r}")
        var = Var(name, extent)
        self.scopes.append({name: var})
        body = self.block()
        self.scopes.pop()
        return For(var, extent, kind, body, step)

    # programs

    def program(self) -> LoopProgram:
        self.expect("program")
        p = LoopProgram(self.string())
        self.expect("{")
        while not self.accept("}"):
            word = self.name()
            if word in self.steps:
                p.steps.append(self.steps[word](self))
            elif word == "returns":
                p.outputs = self.buffer_list()
            elif word == "updates":
                p.updated = self.buffer_list()
            elif word == "arena_bytes":
                p.arena_bytes = self.integer()
            elif word == "flushes":
                p.flushes = True
            elif word in SPACES:
                self.declare(p, word)
            else:
                raise self.error(f"expected a buffer space or a step, found {word!r}")
        if self.kind != "end":
            raise self.error(f"unexpected {self.token!r} after the program")
        return p

    def declare(self, p: LoopProgram, space: str) -> None:
        b = self.buffer(space)
        if space == "input":
            p.inputs.append(b)
        elif space != "output":
            p.temps.append(b)
        if space == "arena":
            self.expect("@")
            b.offset = self.integer()
        if space == "const":
            if self.token != "=":
                raise self.error("expected '='")
            while self.text[self.at] in " \t":
                self.at += 1
            self.start = self.at
            m = _HEX.match(self.text, self.at)
            if m is None:
                raise self.error("expected the constant's bytes in hexadecimal")
            b.data = b"" if m.group() == "empty" else bytes.fromhex(m.group())
            if len(b.data) != b.nbytes:
                raise self.error(f"{b.name} holds {b.nbytes} bytes, found {len(b.data)}")
            self.at = m.end()
            self.advance()

    def buffer_list(self) -> list[Buffer]:
        out = [self.lookup(self.name(), Buffer, "buffer")]
        while self.accept(","):
            out.append(self.lookup(self.name(), Buffer, "buffer"))
        return out

    def kernel(self) -> Kernel:
        name, comment = self.string(), self.string()
        locs: list[Location] = []
        while self.kind == "string":
            file, _, line = self.string().rpartition(":")
            locs.append(Location(file, int(line) if line.isdigit() else 0))
        fields = []
        for word in ("flops", "bytes"):
            self.expect(word)
            self.expect("=")
            fields.append(self.integer())
        return Kernel(name, self.block(), comment, tuple(locs), fields[0], fields[1])

    # control flow around kernels

    def step_block(self) -> list[Step]:
        self.expect("{")
        out: list[Step] = []
        while not self.accept("}"):
            word = self.name()
            if word not in self.steps:
                raise self.error(f"expected a step ({', '.join(self.steps)}), found {word!r}")
            out.append(self.steps[word](self))
        return out

    def buffer_tuples(self, word: str) -> tuple[tuple[Buffer, ...], ...]:
        out = []
        while self.accept(word):
            self.expect("(")
            out.append(tuple(self.buffer_list()))
            self.expect(")")
        return tuple(out)

    def repeat(self) -> Repeat:
        name = self.name()
        self.expect("in")
        var = Var(name, self.integer())
        reverse = self.accept("reverse")
        rotate = self.buffer_tuples("rotate")
        self.scopes.append({name: var})
        body = self.step_block()
        self.scopes.pop()
        return Repeat(var, var.extent, body, reverse, rotate)

    def while_step(self) -> WhileStep:
        cond = self.lookup(self.name(), Buffer, "buffer")
        most = self.integer() if self.accept("most") else None
        rotate, results = self.buffer_tuples("rotate"), self.buffer_tuples("gives")
        if any(len(r) != 2 for r in results):
            raise self.error("gives takes a target and a name")
        test = self.step_block()
        self.expect("do")
        return WhileStep(test, cond, self.step_block(), most, rotate, tuple((a, b) for a, b in results))

    def branch(self) -> Branch:
        cond = self.lookup(self.name(), Buffer, "buffer")
        then = self.step_block()
        self.expect("else")
        return Branch(cond, then, self.step_block())

    steps: ClassVar[dict[str, Callable[..., Step]]] = {
        "kernel": kernel,
        "repeat": repeat,
        "while": while_step,
        "branch": branch,
    }


def parse_program(text: str) -> LoopProgram:
    """The program a text describes. Raises ParseError with line, column and a caret."""
    return _Parser(text).program()
