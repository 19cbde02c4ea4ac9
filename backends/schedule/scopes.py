"""Nested blocks of statements under construction, and the lowering of a group's expressions into them.

A group's bindings are written over its flat domain variables. Loops are opened as scopes, each giving domain
variables their values in terms of loop variables. `Scope.lower` then makes an expression valid in a scope:
what does not depend on the inner loops becomes a `let` of the outermost block that knows all it needs, what
is used twice is named once. Used by the emitters of this folder only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...ir import dtypes
from ...ir.expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var
from ...ir.loops import Alloc, Buffer, For, If, Let, Stmt, Store, While
from ...ir.substitute import substitute
from .indexing import Numbering, is_index

_NOTHING: frozenset[Expr] = frozenset()
_LEAVES = frozenset((Const, Var, Local))


class Lowering:
    """What the scopes of one kernel share.

    Attributes:
        bindings: the group's locals and what they stand for.
        place: the buffer to use for a buffer (values written in place live in another one).
        floor: depth of the outermost block that may hold lets (inside the parallel loop, if there is one).
    """

    def __init__(
        self, bindings: dict[Local, Expr], number: Numbering, place: Callable[[Buffer], Buffer]
    ) -> None:
        self.bindings = bindings
        self.locals = list(bindings)
        self.order = {local: i for i, local in enumerate(self.locals)}
        self.freed = 0
        self.number = number
        self.place = place
        self.floor = 0
        self.depth_of: dict[Expr, int] = {}  # of domain variables and anchors, while they have a value
        self.free_memo: dict[Expr, frozenset[Expr]] = {}
        self.uses: dict[int, int] = {}
        self.counted: set[int] = set()
        self.rooted: set[int] = set()

    def free(self, e: Expr) -> frozenset[Expr]:
        """The domain variables and anchors that `e` depends on."""
        if isinstance(e, Local):
            # Definitions first, so that long chains of bindings do not recurse.
            last = self.order.get(e, -1)
            while self.freed <= last:
                self.freed += 1
                self._free(self.locals[self.freed - 1])
        return self._free(e)

    def _free(self, e: Expr) -> frozenset[Expr]:
        got = self.free_memo.get(e)
        if got is None:
            kind = type(e)
            if kind is Local and e in self.bindings:
                got = self._free(self.bindings[e])  # type: ignore[index]
            elif kind is Var or kind is Local:
                got = frozenset((e,))
            else:
                got = _NOTHING
                for a in e.args:
                    more = self._free(a)
                    if not more <= got:
                        got = got | more if got else more
            self.free_memo[e] = got
        return got

    def level(self, e: Expr) -> int:
        """The depth of the outermost scope that knows everything `e` depends on."""
        depth = self.depth_of
        level = self.floor
        for x in self.free(e):
            level = max(level, depth[x])
        return level

    def needed(self, roots: Iterable[Expr], known: Callable[[Expr], bool]) -> list[Local]:
        """The bindings that `roots` use, definitions first, leaving out what is known already."""
        found: set[Local] = set()
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            e = stack.pop()
            if id(e) in seen or is_index(e):
                continue
            seen.add(id(e))
            if type(e) is Local:
                if e in self.bindings and e not in found and not known(e):
                    found.add(e)
                    stack.append(self.bindings[e])
            else:
                stack += [a for a in e.args if a.args or type(a) is Local]
        return sorted(found, key=self.order.__getitem__)

    def count(self, roots: Iterable[Expr]) -> None:
        """Counts how often each node of the given expressions is used, so that shared ones get names."""
        stack = list(roots)
        for e in stack:
            n = self.number(e)
            if n not in self.rooted:
                self.rooted.add(n)
                self.uses[n] = self.uses.get(n, 0) + 1
        while stack:
            e = stack.pop()
            n = self.number(e)
            if n in self.counted:
                continue
            self.counted.add(n)
            for a in e.args:
                if is_index(a) or (not a.args and type(a) in _LEAVES):
                    continue
                m = self.number(a)
                self.uses[m] = self.uses.get(m, 0) + 1
                stack.append(a)


class Scope:
    """One block.

    Attributes:
        stmts: its statements so far.
        depth: how many loops are around it.
        env: values of domain variables set by this scope's loop.
        mask: where set, a condition that masks stores, and loads that depend on any of `masked`.
    """

    def __init__(
        self,
        lowering: Lowering,
        parent: Scope | None = None,
        mask: Expr | None = None,
        masked: Expr | tuple[Expr, ...] | None = None,
    ) -> None:
        self.lowering = lowering
        self.parent = parent
        self.depth = 0 if parent is None else parent.depth + 1
        self.stmts: list[Stmt] = []
        self.header: For | If | While | None = None
        self.env: dict[Expr, Expr] = {}
        self.memo: dict[int, Expr] = {}
        self.mask = mask
        self.masked = frozenset(masked if isinstance(masked, tuple) else () if masked is None else (masked,))

    # loops

    def loop(
        self,
        var: Var,
        extent: int,
        kind: str,
        step: int = 1,
        mask: Expr | None = None,
        masked: Expr | tuple[Expr, ...] | None = None,
    ) -> Scope:
        """Opens a loop; its For is appended by `close`, after whatever lowering inside it hoists to here."""
        inner = Scope(self.lowering, self, mask, masked)
        inner.header = For(var, extent, kind, inner.stmts, step)
        return inner

    def inline(self) -> Scope:
        """A scope without a loop: domain variables get values, statements go to this block."""
        inner = Scope(self.lowering, self)
        inner.stmts = self.stmts
        inner.header = None
        return inner

    def branch(self, cond: Expr) -> Scope:
        """Opens an `if`."""
        inner = Scope(self.lowering, self)
        inner.header = If(cond, inner.stmts)
        return inner

    def close(self) -> None:
        assert self.parent is not None
        if self.stmts and self.header is not None:
            self.parent.stmts.append(self.header)
        depth_of = self.lowering.depth_of
        for x in [x for x, d in depth_of.items() if d >= self.depth]:
            del depth_of[x]

    def close_to(self, outer: Scope) -> None:
        """Closes this scope and those around it, up to `outer`, which stays open."""
        scope = self
        while scope is not outer:
            scope.close()
            assert scope.parent is not None
            scope = scope.parent

    def define(self, var: Expr, value: Expr) -> None:
        """Gives a domain variable its value in this scope."""
        if isinstance(var, Var):
            self.env[var] = value
            self.lowering.depth_of[var] = self.depth
            self.memo[self.lowering.number(var)] = value

    def anchor(self, local: Local, value: Expr) -> None:
        """Gives the result of a reduction its value."""
        self.lowering.depth_of[local] = self.depth
        self.memo[self.lowering.number(local)] = value

    def alloc(self, name: str, dtype: dtypes.DType, size: int, space: str) -> Buffer:
        b = Buffer(name, dtype, (size,), space)
        self.stmts.append(Alloc(b))
        return b

    def let(self, value: Expr, name: str) -> Local:
        local = Local(name, value.dtype)
        self.stmts.append(Let(local, value))
        return local

    # lowering

    def find(self, n: int) -> Expr | None:
        s: Scope | None = self
        while s is not None:
            got = s.memo.get(n)
            if got is not None:
                return got
            s = s.parent
        return None

    def known(self, e: Expr) -> bool:
        return self.find(self.lowering.number(e)) is not None

    def roots(self, exprs: list[Expr]) -> list[Expr]:
        """Lowers several expressions that together are all this block computes."""
        low = self.lowering
        needed = low.needed(exprs, self.known)
        low.count([*(low.bindings[n] for n in needed), *exprs])
        for local in needed:
            self.lower(local)
        return [self.lower(e) for e in exprs]

    def lower(self, e: Expr) -> Expr:
        if isinstance(e, Const):
            return e
        low = self.lowering
        n = low.number(e)
        got = self.find(n)
        if got is not None:
            return got
        target = self
        hoisted = False
        if not is_index(e):
            level = low.level(e)
            while target.depth > level and target.parent is not None:
                target = target.parent
                hoisted = True
        out = target.build(e, hoisted)
        target.memo[n] = out
        return out

    def build(self, e: Expr, named: bool) -> Expr:
        """`e` over this scope's variables; with `named` (or where it is used twice) as a local."""
        low = self.lowering
        if isinstance(e, Local):
            value = low.bindings.get(e)
            assert value is not None, f"{e.name} has no value here"
            out = self.lower(value)
            return out if isinstance(out, (Const, Local)) else self.let(out, e.name)
        if is_index(e):
            env: dict[Expr, Expr] = {}
            for x in low.free(e):
                value = self.find(low.number(x))
                assert value is not None, f"{x} has no value here"
                env[x] = value
            return substitute(e, env)
        shared = named or low.uses.get(low.number(e), 0) > 1
        if isinstance(e, Load):
            out = self.load(e)
        else:
            assert isinstance(e, (Prim, Cast, LaneReduce)), type(e)
            out = e.rebuild(tuple(self.lower(a) for a in e.args))
            if isinstance(out, Prim) and out.dtype is dtypes.int64 and is_index(out):
                out = substitute(out, {})
                shared = False
        return self.let(out, _name(e)) if shared else out

    def load(self, e: Load) -> Expr:
        index = tuple(self.lower(i) for i in e.index)
        mask = None if e.mask is None else self.lower(e.mask)
        other = None if e.other is None else self.lower(e.other)
        s: Scope | None = self
        free = self.lowering.free(e)
        while s is not None:
            if s.mask is not None and not s.masked.isdisjoint(free):
                mask = s.mask if mask is None else Prim("and_", (mask, s.mask), dtypes.bool_)
            s = s.parent
        return Load(self.lowering.place(e.buffer), index, mask, other if mask is not None else None)

    def stores(self, specs: list[tuple[Buffer, Expr, Expr]], condition: Expr | None = None) -> None:
        """Writes (buffer, flat index, value); all values are computed before the first is written."""
        low = self.lowering
        extra = [] if condition is None else [condition]
        made = self.roots([*(value for _, _, value in specs), *(index for _, index, _ in specs), *extra])
        n = len(specs)
        values = made[:n]
        if n == 1 and self.stmts:
            last = self.stmts[-1]
            if isinstance(last, Let) and last.local is values[0] and specs[0][2] is not last.local:
                # The one value stored needs no name.
                self.stmts.pop()
                self.memo.pop(low.number(specs[0][2]), None)
                values = [last.value]
        if n > 1:
            values = [
                v if isinstance(v, (Const, Local)) else self.let(v, b.name)
                for v, (b, _, _) in zip(values, specs)
            ]
        where = made[2 * n] if extra else None
        s: Scope | None = self
        while s is not None:
            if s.mask is not None:
                where = s.mask if where is None else Prim("and_", (where, s.mask), dtypes.bool_)
            s = s.parent
        for (buffer, _, _), index, value in zip(specs, made[n : 2 * n], values):
            self.stmts.append(Store(low.place(buffer), (index,), value, where))


def _name(e: Expr) -> str:
    if isinstance(e, Load):
        return f"{e.buffer.name}_"
    return e.name.strip("_") if isinstance(e, Prim) else "t"
