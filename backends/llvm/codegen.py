"""Statements of the loop IR to LLVM IR: loops, branches, scratch buffers, parallel loops. One `KernelWriter`
writes one function; codegen_program makes them. See codegen_text for how text is put in place, codegen_expr
for expressions.

- serial: a counted loop, or nothing where it runs once or never.
- unroll: the body again and again, the variable a constant; so indices of `register` buffers become constants
  and LLVM keeps the buffers in registers.
- vector: the body once, values being vectors; a loop that LLVM IR vectors can't express (another vector loop
  or a data-dependent loop inside) runs serially instead.
- parallel: the body becomes a function over a range of iterations, cut into tasks by shape alone, so that
  results do not depend on the number of threads. Without a pool, one task follows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ...ir.expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var
from ...ir.loops import (
    Alloc,
    Buffer,
    For,
    If,
    Let,
    Prefetch,
    Stmt,
    Store,
    While,
    expressions,
    statements,
)
from .codegen_expr import ExprWriter, Product
from .codegen_index import LANE
from .codegen_text import LOOP_LINES, Module, Place, Region, Val, hint_of, memory_type
from .target import CompileError

STACK_BYTES, _STACK_TOTAL = 1 << 16, 1 << 18  # larger scratch comes from the heap
_MAX_TASKS = 128
_ALIGN = 64
#: runs tasks: void (ptr task, ptr context, i64 tasks, i64 pool)
SPREAD = "@tg.spread"
_PLAIN = frozenset((Prim, Const, Cast))


class Kernels(Module):
    """A module in the making, with what functions of one program share.

    Attributes:
        attributes: text of the attribute group of every function, such as `#0`.
        threads: parallel loops may use the pool.
        scratch_group: last number given to a group of one scratch buffer.
        numbers: gives numbers of metadata, one counter for all modules of a program.
        spread: the function that runs tasks is called.
    """

    def __init__(
        self,
        fma: bool,
        f16: bool,
        vector_bytes: int,
        attributes: str,
        threads: bool,
        numbers: Iterator[int],
    ) -> None:
        super().__init__(fma, f16, vector_bytes)
        self.attributes = attributes
        self.threads = threads
        self.numbers = numbers
        self.spread = False
        self.scratch_group = 1 << 20
        self.stores: dict[For | While, frozenset[Buffer]] = {}
        self.vectorizable: dict[For, bool] = {}
        self._nodes: dict[Stmt, list[Expr]] = {}

    def absorb(self, other: Kernels) -> None:
        super().absorb(other)
        self.spread |= other.spread

    def scopes(self, count: int) -> list[str]:
        """Metadata, ready to append, of accesses through `count` pointers of one function each of which
        nobody else has; and of all other accesses in it. As if each were a `noalias` parameter."""
        names = [f"!{next(self.numbers)}" for _ in range(count)]
        out: list[str] = []
        for x in (*names, ""):
            others = ", ".join([y for y in names if y != x])
            text = ""
            if x:
                own = f"!{next(self.numbers)}"
                self.metadata += [f"{x} = distinct !{{{x}, !1}}", f"{own} = !{{{x}}}"]
                text = f", !alias.scope {own}"
            if others:
                rest = f"!{next(self.numbers)}"
                self.metadata.append(f"{rest} = !{{{others}}}")
                text += f", !noalias {rest}"
            out.append(text)
        return out

    def nodes(self, s: Stmt) -> list[Expr]:
        """The variables, locals, loads and lane reductions in what a statement itself evaluates."""
        got = self._nodes.get(s)
        if got is None:
            got = self._nodes[s] = []
            seen: set[int] = set()
            stack = list(expressions(s))[::-1]
            while stack:
                x = stack.pop()
                if id(x) not in seen:
                    seen.add(id(x))
                    if type(x) not in _PLAIN:
                        got.append(x)
                    stack += x.args
        return got

    def stored(self, s: For | While) -> frozenset[Buffer]:
        """The buffers that a loop writes to."""
        got = self.stores.get(s)
        if got is None:
            found: set[Buffer] = set()
            for x in s.body:
                if isinstance(x, Store):
                    found.add(x.buffer)
                elif isinstance(x, (For, While)):
                    found |= self.stored(x)
                elif isinstance(x, If):
                    found |= {y.buffer for y in statements(x.body) if isinstance(y, Store)}
            got = self.stores[s] = frozenset(found)
        return got


class KernelWriter(ExprWriter):
    """Writes statements into one function.

    Attributes:
        name: of the kernel, for the names of functions made on the way.
        pool: name of the address of the thread pool (an i64, 0: none), or "" in a function that must not
            use it.
        noalias: groups of a single buffer, whose pointers alias nothing.
        apart: see `Place`, of the function's own scratch.
    """

    module: Kernels

    def __init__(self, module: Kernels, name: str, pool: str = "") -> None:
        super().__init__(module)
        self.name = name
        self.pool = self.opaque = pool
        self.noalias: frozenset[int] = frozenset()
        self.apart = ""
        self._scratch: dict[Alloc, Place] = {}
        self._groups: dict[Buffer, int] = {}
        self._stack = 0
        self._fresh: list[tuple[str, dict[tuple[str, str], None]]] = []

    def block(self, body: Iterable[Stmt]) -> None:
        """Statements in order."""
        for s in body:
            self.memo = {}
            write = _WRITE.get(type(s))
            if write is None:
                raise CompileError(f"{type(s).__name__.lower()} statements exist on GPUs only")
            write(self, s)

    def _store(self, s: Store) -> None:
        if s.buffer.space == "register":
            value = self.accumulated(s.value)
            if s.buffer in self.held:
                self.store_register(s.buffer, s.index, value)
                return
        else:
            value = self.value(s.value)
        condition = self.both(self.mask, None if s.mask is None else self.value(s.mask))
        self.store_element(s.buffer, s.index, value, condition)

    def _prefetch(self, s: Prefetch) -> None:
        at = self.address(s.buffer, s.index)
        self.module.declares["declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"] = None
        self.regions[-1].lines.append(
            f"  call void @llvm.prefetch.p0(ptr {at.ref}, i32 {int(s.write)}, i32 3, i32 1)"
        )

    def _let(self, s: Let) -> None:
        self.env[s.local] = self.named(s.value)

    def function_text(self, header: str) -> str:
        for marker, slots in self._fresh:
            self.later[marker] = [f"  store {ty} poison, ptr {ref}" for ref, ty in slots]
        return super().function_text(header)

    # --- loops ----------------------------------------------------------------------------------------------

    def _for(self, s: For) -> None:
        trips = -(-s.extent // s.step)
        if trips <= 0:
            return
        kind = s.kind
        if kind in ("block", "thread"):
            raise CompileError(f"a {kind} loop is for GPUs only")
        if trips == 1:
            self.env[s.var] = 0
            self.block(s.body)
        elif kind == "unroll":
            for i in range(0, s.extent, s.step):
                self.env[s.var] = i
                self.block(s.body)
        elif kind == "vector" and not self.lanes and s.step == 1 and self.can_vectorize(s):
            self._vector(s)
        elif kind == "parallel" and self.pool and self.module.threads and not self.lanes:
            self._parallel(s, trips)
        else:
            self._serial(s, "0", str(trips * s.step), (0, (trips - 1) * s.step))
        self.env.pop(s.var, None)

    def can_vectorize(self, s: For) -> bool:
        """The vector loop can be one operation per statement."""
        got = self.module.vectorizable.get(s)
        if got is None:
            got = self.module.vectorizable[s] = self._fits_lanes(s)
        return got

    def _fits_lanes(self, s: For) -> bool:
        for x in statements(s.body):
            if isinstance(x, While) or (
                isinstance(x, For) and x.kind in ("vector", "parallel") and x.extent > 1
            ):
                return False
            if any(isinstance(e, LaneReduce) for e in self.module.nodes(x)):
                return False
        return True

    def _vector(self, s: For) -> None:
        self.lanes = s.extent
        self.env[s.var] = LANE
        self.block(s.body)
        self.lanes = 0
        self.mask = None

    def _serial(self, s: For, start: str, stop: str, span: tuple[int, int]) -> None:
        """A loop that runs at least once; the variable goes from `start` in steps to below `stop`."""
        region = self._open(s)
        self.enter_frame(self.module.stored(s))
        name = self.fresh(hint_of(s.var.name))
        head = region.block
        self.depth[name] = len(self.regions) - 1
        self.ranges[name] = span
        self.multiples[name] = s.step
        self.env[s.var] = name
        self.block(s.body)
        carried = self.end_body()
        self.regions.pop()
        outer = self.regions[-1]
        phis = self.leave_frame(carried, lambda: outer.block, region.block)
        after, following = self.fresh("next"), self.label("done")
        test = self.fresh("more")
        outer.lines += [
            f"  br label %{head}",
            f"{head}:",
            f"  {name} = phi i64 [ {start}, %{outer.block} ], [ {after}, %{region.block} ]",
            *phis,
            *region.lines,
            f"  {after} = add nuw nsw i64 {name}, {s.step}",
            f"  {test} = icmp slt i64 {after}, {stop}",
            f"  br i1 {test}, label %{head}, label %{following}",
            f"{following}:",
        ]
        outer.block = following

    def _open(self, s: For | While, conditional: bool = False) -> Region:
        """Enters a loop's body."""
        groups = frozenset([self.env[b].group for b in self.module.stored(s) if b in self.env])
        # Buffers that come into scope inside have no group yet; nothing outside can have loaded from them.
        self.forget(groups)
        inner = frozenset(b for b in self.module.stored(s) if b not in self.env)
        region = Region(self.label("loop"), groups | frozenset(self._group(b) for b in inner), conditional)
        self.regions.append(region)
        return region

    def _while(self, s: While) -> None:
        region = self._open(s, conditional=True)
        head = region.block
        condition = self.value(s.cond)
        body, following = self.label("body"), self.label("done")
        region.lines += [f"  br i1 {condition.ref}, label %{body}, label %{following}", f"{body}:"]
        region.block = body
        self.block(s.body)
        self.regions.pop()
        outer = self.regions[-1]
        outer.lines += [
            f"  br label %{head}",
            f"{head}:",
            *region.lines,
            f"  br label %{head}",
            f"{following}:",
        ]
        outer.block = following
        self.forget(region.stores)

    def _if(self, s: If) -> None:
        condition = self.value(s.cond)
        if condition.const is not None:
            if condition.const:
                self.block(s.body)
            return
        if condition.lanes:
            old = self.mask
            self.mask = self.both(old, condition)
            self.block(s.body)
            self.mask = old
            return
        region = Region(self.label("then"), conditional=True)
        self.regions.append(region)
        head = region.block
        self.block(s.body)
        self.regions.pop()
        outer = self.regions[-1]
        following = self.label("end")
        outer.lines += [
            f"  br i1 {condition.ref}, label %{head}, label %{following}",
            f"{head}:",
            *region.lines,
            f"  br label %{following}",
            f"{following}:",
        ]
        outer.block = following

    # --- scratch --------------------------------------------------------------------------------------------

    def _group(self, buffer: Buffer) -> int:
        got = self._groups.get(buffer)
        if got is None:
            self.module.scratch_group += 1
            got = self._groups[buffer] = self.module.scratch_group
        return got

    def _alloc(self, s: Alloc) -> None:
        """Memory of this function; a statement that runs again gets the same. Inside a vector loop, one per
        lane."""
        if s.buffer in self.held:
            self.begin_registers(s.buffer)
            return
        place = self._scratch.get(s)
        lanes = max(self.lanes, 1)
        if place is None or place.lanes != lanes:
            b = s.buffer
            if b.space == "shared":
                raise CompileError("shared buffers exist on GPUs only")
            private = next((v for v, bound in self.env.items() if bound is LANE), None)
            count = max(b.size, 1) * lanes
            size = count * b.dtype.itemsize
            ref = self.fresh(hint_of(b.name))
            if b.space == "register" or (size <= STACK_BYTES and self._stack + size <= _STACK_TOTAL):
                self._stack += size
                self.entry.append(f"  {ref} = alloca [{count} x {memory_type(b.dtype)}], align {_ALIGN}")
            else:
                self._heap(ref, size)
            slots = {} if b.space == "register" else None
            place = Place(ref, self._group(b), _ALIGN, b.dtype, b.shape, private, lanes, slots, self.apart)
            self._scratch[s] = place
        self.env[s.buffer] = place
        if place.slots is not None and len(self.regions) > 1:
            # Says that contents don't survive, or LLVM keeps old accumulators in registers around the loop.
            marker = f"  ; {self.label(s.buffer.name)}"
            self.line(marker[2:])
            self._fresh.append((marker, place.slots))

    def _heap(self, ref: str, size: int) -> None:
        self.module.declares["declare noalias ptr @malloc(i64)"] = None
        self.module.declares["declare void @free(ptr)"] = None
        block, address, up = self.fresh("block"), self.fresh("address"), self.fresh("aligned")
        self.entry += [
            f"  {block} = call ptr @malloc(i64 {size + _ALIGN})",
            f"  {address} = ptrtoint ptr {block} to i64",
            f"  {up} = add i64 {address}, {_ALIGN - 1}",
            f"  {up}.down = and i64 {up}, {-_ALIGN}",
            f"  {ref} = inttoptr i64 {up}.down to ptr",
        ]
        self.exits.append(f"  call void @free(ptr {block})")

    # --- parallel loops -------------------------------------------------------------------------------------

    def _parallel(self, s: For, trips: int) -> None:
        """The body as a function over a chunk of iterations, a task, that the pool calls."""
        chunk = -(-trips // _MAX_TASKS)
        tasks = -(-trips // chunk)
        self.module.names += 1
        name = f"@{self.name}.{hint_of(s.var.name)}{self.module.names}.task"
        inner = KernelWriter(self.module, self.name)
        inner.noalias, inner.held, inner.opaque = self.noalias, self.held, "%task"
        inner.regions[0].limit = LOOP_LINES
        captured = self._captured(s, inner)
        inner.chunk(s, trips, chunk)
        self.module.functions.append(
            inner.function_text(
                f"define internal void {name}(ptr %context, i64 %task) {self.module.attributes}"
            )
        )
        context = self.fresh("context")
        self.entry.append(f"  {context} = alloca [{max(len(captured), 1)} x i64], align 16")
        lines = self.regions[-1].lines
        for i, (ty, ref) in enumerate(captured):
            slot = context
            if i:
                slot = self.fresh("slot")
                lines.append(f"  {slot} = getelementptr i64, ptr {context}, i64 {i}")
            lines.append(f"  store {ty} {ref}, ptr {slot}, align 8")
        self.module.spread = True
        lines.append(f"  call void {SPREAD}(ptr {name}, ptr {context}, i64 {tasks}, i64 {self.pool})")
        self.forget([self.env[b].group for b in self.module.stored(s) if b in self.env])

    def chunk(self, s: For, trips: int, chunk: int) -> None:
        """The iterations of task number `%task`."""
        start = self.pure(f"mul i64 %task, {chunk * s.step}") if chunk * s.step > 1 else "%task"
        span = (0, (trips - 1) * s.step)
        if chunk == 1:
            self.ranges[start], self.multiples[start] = span, s.step
            self.env[s.var] = start
            self.block(s.body)
            return
        stop = self.pure(f"add nuw nsw i64 {start}, {chunk * s.step}")
        if trips % chunk:
            over = self.pure(f"icmp sgt i64 {stop}, {trips * s.step}")
            stop = self.pure(f"select i1 {over}, i64 {trips * s.step}, i64 {stop}")
        self._serial(s, start, stop, span)

    def _captured(self, s: For, inner: KernelWriter) -> list[tuple[str, str]]:
        """Binds in `inner`, a task, what the loop reads from around it and a task finds in its context; the
        type and the name here of each."""
        captured: list[tuple[str, str]] = []
        alone: list[Buffer] = []
        shared: list[Buffer] = []
        for symbol in _free(s, self.module.nodes):
            bound = self.env.get(symbol)
            if isinstance(bound, Product):
                assert isinstance(symbol, Local)
                bound = self.value(symbol)
            if isinstance(bound, Place) and bound.ref[0] != "@":
                ty, ref = "ptr", bound.ref
                assert isinstance(symbol, Buffer)
                (alone if self._alone(symbol, bound) else shared).append(symbol)
            elif isinstance(bound, Val) and bound.const is None:
                ty, ref = bound.type, bound.ref
            elif isinstance(bound, str):
                ty, ref = "i64", bound
            else:
                if bound is not None:
                    inner.env[symbol] = bound
                continue
            number, slot = len(captured), "%context"
            if number:
                slot = inner.pure(f"getelementptr i64, ptr %context, i64 {number}")
            name = inner.pure(f"load {ty}, ptr {slot}, align 8", hint=hint_of(symbol.name))
            if isinstance(bound, Place):
                inner.env[symbol] = bound._replace(ref=name)
            else:
                inner.env[symbol] = name if isinstance(bound, str) else Val(name, bound.dtype, bound.lanes)
            captured.append((ty, ref))
            if ref in self.ranges:
                inner.ranges[name] = self.ranges[ref]
            if ref in self.multiples:
                inner.multiples[name] = self.multiples[ref]
        *own, inner.apart = self.module.scopes(len(alone))
        for b, apart in zip((*alone, *shared), (*own, *[inner.apart] * len(shared))):
            inner.env[b] = inner.env[b]._replace(apart=apart)
        return captured

    def _alone(self, buffer: Buffer, place: Place) -> bool:
        """No other buffer of the program can overlap it."""
        return place.group in self.noalias or buffer.space in ("local", "register")

    def pointer_attributes(self, buffer: Buffer, place: Place) -> str:
        """Attributes of a pointer parameter: noalias where no other buffer of the program can overlap."""
        alone = "noalias " if self._alone(buffer, place) else ""
        return f"{alone}align {place.align} " if place.align > 1 else alone


def _free(s: For, nodes: Callable[[Stmt], list[Expr]]) -> Iterator[Var | Local | Buffer]:
    """Variables, locals and buffers that occur in a loop, in order, each once."""
    seen: set[int] = set()
    for x in statements(s.body):
        found: list[Var | Local | Buffer] = [x.buffer] if isinstance(x, (Store, Prefetch)) else []
        for e in nodes(x):
            if type(e) is Var or type(e) is Local:
                found.append(e)
            elif type(e) is Load:
                found.append(e.buffer)
        for item in found:
            if id(item) not in seen:
                seen.add(id(item))
                yield item


_WRITE: dict[type, Callable[..., None]] = {
    Store: KernelWriter._store,
    For: KernelWriter._for,
    Let: KernelWriter._let,
    If: KernelWriter._if,
    While: KernelWriter._while,
    Alloc: KernelWriter._alloc,
    Prefetch: KernelWriter._prefetch,
}
