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

from ...ir.expr import Expr, LaneReduce, Load, Local, Var, walk
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
from .codegen_text import Module, Place, Region, Val, hint_of, memory_type
from .target import CompileError

STACK_BYTES = 1 << 16  # larger scratch comes from the heap
_STACK_TOTAL = 1 << 18
_MAX_TASKS = 128
_ALIGN = 64


class Kernels(Module):
    """A module in the making, with what functions of one program share.

    Attributes:
        attributes: text of the attribute group of every function, such as `#0`.
        threads: parallel loops may use the pool.
        scratch_group: last number given to a group of one scratch buffer.
    """

    def __init__(self, fma: bool, f16: bool, vector_bytes: int, attributes: str, threads: bool) -> None:
        super().__init__(fma, f16, vector_bytes)
        self.attributes = attributes
        self.threads = threads
        self.scratch_group = 1 << 20
        self.stores: dict[For | While, frozenset[Buffer]] = {}
        self.vectorizable: dict[For, bool] = {}
        self._nodes: dict[Stmt, list[Expr]] = {}

    def nodes(self, s: Stmt) -> list[Expr]:
        """Every node of the expressions that a statement itself evaluates."""
        got = self._nodes.get(s)
        if got is None:
            got = self._nodes[s] = [e for root in expressions(s) for e in walk(root)]
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
    """

    module: Kernels

    def __init__(self, module: Kernels, name: str, pool: str = "") -> None:
        super().__init__(module)
        self.name = name
        self.pool = self.opaque = pool
        self.noalias: frozenset[int] = frozenset()
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
        else:
            value = self.value(s.value)
        condition = self.both(self.mask, None if s.mask is None else self.value(s.mask))
        if s.buffer in self.held:
            self.store_register(s.buffer, s.index, value)
            return
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
            place = Place(ref, self._group(b), _ALIGN, b.dtype, b.shape, private, lanes, slots)
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
        """The body as a function over iterations [from, to), called by tasks, or once without a pool."""
        chunk = -(-trips // _MAX_TASKS)
        tasks = -(-trips // chunk)
        self.module.names += 1
        name = f"{self.name}.{hint_of(s.var.name)}{self.module.names}"
        inner = KernelWriter(self.module, self.name)
        captured, header = self._captured(s, inner)
        inner.noalias, inner.held = self.noalias, self.held
        start, stop = inner.fresh("from"), inner.fresh("to")
        inner.opaque = "%task"
        inner._serial(s, start, stop, (0, (trips - 1) * s.step))
        signature = ", ".join([*header, f"i64 {start}", f"i64 {stop}", "i64 %task"])
        body = inner.function_text(
            f"define internal void @{name}.body({signature}) alwaysinline {self.module.attributes}"
        )
        self.module.functions += [body, self._task(name, captured, trips, chunk, s.step)]

        context = self.fresh("context")
        self.entry.append(f"  {context} = alloca [{max(len(captured), 1)} x i64], align 16")
        lines: list[str] = []
        for i, (ty, ref, _) in enumerate(captured):
            slot = self.fresh("slot")
            lines += [
                f"  {slot} = getelementptr i64, ptr {context}, i64 {i}",
                f"  store {ty} {ref}, ptr {slot}, align 8",
            ]
        spread, alone, following = self.label("spread"), self.label("alone"), self.label("joined")
        target, task, after, test = (self.fresh(x) for x in ("pool", "task", "next", "more"))
        has_pool = self.pure(f"icmp ne i64 {self.pool}, 0", self.pool)
        region = self.regions[-1]
        region.lines += [
            *lines,
            f"  br i1 {has_pool}, label %{spread}, label %{alone}",
            f"{spread}:",
            f"  {target} = inttoptr i64 {self.pool} to ptr",
            f"  call void {target}(ptr @{name}.task, ptr {context}, i64 {tasks})",
            f"  br label %{following}",
            f"{alone}:",
            f"  {task} = phi i64 [ 0, %{region.block} ], [ {after}, %{alone} ]",
            f"  call void @{name}.task(ptr {context}, i64 {task})",
            f"  {after} = add nuw nsw i64 {task}, 1",
            f"  {test} = icmp slt i64 {after}, {tasks}",
            f"  br i1 {test}, label %{alone}, label %{following}",
            f"{following}:",
        ]
        region.block = following
        self.forget([self.env[b].group for b in self.module.stored(s) if b in self.env])

    def _captured(self, s: For, inner: KernelWriter) -> tuple[list[tuple[str, str, str]], list[str]]:
        """Binds in `inner` what the loop reads from around it; (type, name here, name there) of each, and
        the parameters."""
        captured: list[tuple[str, str, str]] = []
        header: list[str] = []
        for symbol in _free(s, self.module.nodes):
            bound = self.env.get(symbol)
            if isinstance(bound, Product):
                assert isinstance(symbol, Local)
                bound = self.value(symbol)
            parameter = inner.fresh(hint_of(symbol.name))
            ty, ref, attributes = "", "", ""
            if isinstance(bound, Place) and bound.ref[0] != "@":
                assert isinstance(symbol, Buffer)
                ty, ref, attributes = "ptr", bound.ref, self.pointer_attributes(symbol, bound)
                bound = bound._replace(ref=parameter)
            elif isinstance(bound, Val) and bound.const is None:
                ty, ref = bound.type, bound.ref
                bound = Val(parameter, bound.dtype, bound.lanes)
            elif isinstance(bound, str):
                ty, ref, bound = "i64", bound, parameter
            if bound is not None:
                inner.env[symbol] = bound
            if ty:
                captured.append((ty, ref, parameter))
                header.append(f"{ty} {attributes}{parameter}")
                if ref in self.ranges:
                    inner.ranges[parameter] = self.ranges[ref]
                if ref in self.multiples:
                    inner.multiples[parameter] = self.multiples[ref]
        return captured, header

    def _task(
        self, name: str, captured: list[tuple[str, str, str]], trips: int, chunk: int, step: int
    ) -> str:
        """What the pool calls: unpacks the context and runs one chunk. The body is a function of its own,
        inlined here, so that its pointers can be noalias."""
        lines = [f"define internal void @{name}.task(ptr %context, i64 %task) {self.module.attributes} {{"]
        arguments = []
        for i, (ty, _, _) in enumerate(captured):
            lines += [
                f"  %s{i} = getelementptr i64, ptr %context, i64 {i}",
                f"  %a{i} = load {ty}, ptr %s{i}, align 8",
            ]
            arguments.append(f"{ty} %a{i}")
        lines.append(f"  %from = mul i64 %task, {chunk * step}")
        if trips % chunk:
            lines += [
                f"  %end = add i64 %from, {chunk * step}",
                f"  %over = icmp sgt i64 %end, {trips * step}",
                f"  %to = select i1 %over, i64 {trips * step}, i64 %end",
            ]
        else:
            lines.append(f"  %to = add i64 %from, {chunk * step}")
        arguments += ["i64 %from", "i64 %to", "i64 %task"]
        lines += [f"  call void @{name}.body({', '.join(arguments)})", "  ret void", "}"]
        return "\n".join(lines)

    def pointer_attributes(self, buffer: Buffer, place: Place) -> str:
        """Attributes of a pointer parameter: noalias where no other buffer of the program can overlap."""
        alone = "noalias " if place.group in self.noalias or buffer.space in ("local", "register") else ""
        return f"{alone}align {place.align} " if place.align > 1 else alone


def _free(s: For, nodes: Callable[[Stmt], list[Expr]]) -> Iterator[Var | Local | Buffer]:
    """Variables, locals and buffers that occur in a loop, in order, each once."""
    seen: set[int] = set()
    for x in statements(s.body):
        found: list[Var | Local | Buffer] = [x.buffer] if isinstance(x, (Store, Prefetch)) else []
        for e in nodes(x):
            if isinstance(e, (Var, Local)):
                found.append(e)
            elif isinstance(e, Load):
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
