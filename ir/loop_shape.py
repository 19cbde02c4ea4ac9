"""The shape of a kernel: what it does, whatever its buffers and variables are called. Code generators use it
to make one function of the kernels that equal layers of a model become.
"""

from __future__ import annotations

from typing import Any

from .expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var
from .loops import Alloc, Buffer, For, If, Kernel, Let, Prefetch, Stmt, Store, While


class Shape:
    """A kernel with numbers for names, in the order of definition or first use.

    Attributes:
        key: equal for kernels that do the same with buffers of equal types. Hashable.
        buffers: those the kernel does not bring into scope itself; kernels of one key have them in one order.
        variables: likewise the variables of loops around the kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.buffers: list[Buffer] = []
        self.variables: list[Var] = []
        self._symbols: dict[Any, int] = {}
        self._numbers: dict[int, int] = {}
        self._nodes: dict[tuple[Any, ...], int] = {}
        self._keep: list[Expr] = []
        self._lines: list[tuple[Any, ...]] = []
        self._block(kernel.body)
        types = tuple([(b.dtype.name, b.shape, b.data) for b in self.buffers])
        extents = tuple([v.extent for v in self.variables])
        self.key = (types, extents, tuple(self._lines), tuple(self._nodes))

    def _block(self, body: list[Stmt]) -> None:
        line = self._lines.append
        for s in body:
            if isinstance(s, For):
                line(("for", self._define(s.var), s.extent, s.kind, s.step))
            elif isinstance(s, Store):
                mask = None if s.mask is None else self._number(s.mask)
                index = [self._number(e) for e in s.index]
                line(("store", self._buffer(s.buffer), mask, self._number(s.value), *index))
            elif isinstance(s, Prefetch):
                line(("prefetch", self._buffer(s.buffer), s.write, *[self._number(e) for e in s.index]))
            elif isinstance(s, Let):
                value = self._number(s.value)
                line(("let", self._define(s.local), s.local.dtype.name, value))
            elif isinstance(s, Alloc):
                b = s.buffer
                line(("alloc", self._define(b), b.space, b.dtype.name, b.shape))
            elif isinstance(s, (If, While)):
                line((type(s).__name__, self._number(s.cond)))
            else:
                line((type(s).__name__,))
            if isinstance(s, (For, If, While)):
                self._block(s.body)
                line(("end",))

    def _define(self, x: Var | Local | Buffer) -> int:
        return self._symbols.setdefault(x, len(self._symbols))

    def _buffer(self, b: Buffer) -> int:
        if b not in self._symbols:
            self.buffers.append(b)
        return self._define(b)

    def _number(self, root: Expr) -> int:
        """The number of an expression: equal expressions have equal ones. Not recursive: fused chains can be
        longer than Python's stack is deep."""
        numbers = self._numbers
        got = numbers.get(id(root))
        if got is not None:
            return got
        nodes = self._nodes
        stack = [root]
        while stack:
            x = stack[-1]
            if id(x) in numbers:
                stack.pop()
                continue
            prim = type(x) is Prim
            operands = x.args if prim else _operands(x)
            waiting = [a for a in operands if id(a) not in numbers and type(a) not in _LEAVES]
            if waiting:
                if not prim:
                    self._head(x)  # its buffer, or the variable it brings, comes before what is inside
                stack += waiting
                continue
            stack.pop()
            key: list[Any] = [x.name] if prim else self._head(x)
            for a in operands:
                n = numbers.get(id(a))
                if n is None:
                    self._keep.append(a)
                    n = numbers[id(a)] = nodes.setdefault(tuple(self._head(a)), len(nodes))
                key.append(n)
            self._keep.append(x)  # or another could get its id
            numbers[id(x)] = nodes.setdefault(tuple(key), len(nodes))
        return numbers[id(root)]

    def _head(self, x: Any) -> list[Any]:
        """What tells an expression from others with the same operands."""
        kind = type(x)
        if kind is Prim:
            return [x.name]
        if kind is Const:
            value = x.value
            return ["const", x.dtype.name, value if type(value) is int else repr(value)]
        if kind is Load:
            return ["load", self._buffer(x.buffer), x.mask is None, x.other is None, len(x.index)]
        if kind is Var:
            if x not in self._symbols:
                self.variables.append(x)
            return ["var", self._define(x)]
        if kind is Local:
            return ["local", self._define(x)]
        if kind is Cast:
            return ["bits" if x.bits else "cast", x.dtype.name]
        if kind is LaneReduce:
            return ["lanes", x.name, self._define(x.var), x.var.extent]
        return [type(x).__name__, id(x)]  # what other targets have: like nothing else


_LEAVES = frozenset((Const, Var, Local))


def _operands(x: Expr) -> tuple[Expr, ...]:
    if type(x) is Load:  # its `args` make a new constant each time
        masked = () if x.mask is None else (x.mask,)
        return (*x.index, *masked, *(() if x.other is None else (x.other,)))
    return x.args
