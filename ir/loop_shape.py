"""The shape of a kernel: what it does, whatever its buffers and variables are called. Code generators use it to
make one function of the kernels that equal layers of a model become.
"""

from __future__ import annotations

from typing import Any

from .expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var
from .loops import Alloc, Buffer, For, If, Kernel, Let, Stmt, Store, While


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
        stack = [root]
        while stack:
            x = stack[-1]
            if id(x) in numbers:
                stack.pop()
                continue
            if type(x) is Load:
                args = x.index if x.mask is None else (*x.index, x.mask)
                if x.other is not None:
                    args = (*args, x.other)
            else:
                if type(x) is LaneReduce:
                    self._define(x.var)
                args = x.args
            todo = [a for a in args if id(a) not in numbers]
            if todo:
                stack += reversed(todo)
                continue
            stack.pop()
            self._keep.append(x)  # or another could get its id
            key = self._node(x, [numbers[id(a)] for a in args])
            numbers[id(x)] = self._nodes.setdefault(key, len(self._nodes))
        return numbers[id(root)]

    def _node(self, x: Expr, args: list[int]) -> tuple[Any, ...]:
        if isinstance(x, Prim):
            return (x.name, *args)
        if isinstance(x, Load):
            extra = (x.mask is None, x.other is None, len(x.index))
            return ("load", self._buffer(x.buffer), extra, *args)
        if isinstance(x, Const):
            return ("const", x.dtype.name, repr(x.value))
        if isinstance(x, Var):
            if x not in self._symbols:
                self.variables.append(x)
            return ("var", self._define(x))
        if isinstance(x, Local):
            return ("local", self._define(x))
        if isinstance(x, Cast):
            return ("bits" if x.bits else "cast", x.dtype.name, *args)
        assert isinstance(x, LaneReduce), type(x)
        return ("lanes", x.name, self._define(x.var), x.var.extent, *args)
