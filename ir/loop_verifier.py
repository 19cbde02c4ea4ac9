"""Checks a LoopProgram against the rules of the loop IR: `verify_program(program)`. Runs in tests and under
`TRACEGRAD_VERIFY=1`; a failure is a bug in the scheduler or in a hand-edited file.

Rules, besides dtypes and scoping:
- `parallel` loops stand outermost in their kernel;
- a `vector` loop has step 1 and holds only `let`, stores and unrolled loops; it does not nest in another;
- register buffers are indexed by constants, unrolled and vector variables only;
- const and plain input buffers are not stored to, and every arena buffer lies inside the arena;
- `program.updated` are inputs;
- copies made ahead are loads from global memory, stored to shared memory; operands of an mma are registers,
  and matrices come from shared memory;
- a kernel for a GPU keeps to the form that ir/loops.py describes: block loops, thread loops of the same
  extents (at most 1024 threads), shared buffers directly in the block, barriers that all threads reach;
- conditions of control flow are single bools; buffers that rotate or are copied have one type, none rotates
  twice in a loop, and all are the program's to write.
"""

from __future__ import annotations

from math import prod

from . import dtypes
from .errors import VerifyError
from .expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var, WarpReduce
from .loops import (
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
    blocks_of,
    grid_of,
    statements,
    thread_extents,
)
from .scalar import PRIMITIVES

_REDUCERS = ("add", "mul", "minimum", "maximum", "and_", "or_", "xor")


def verify_program(program: LoopProgram) -> None:
    """:raises VerifyError: naming the kernel and the rule broken."""
    for b in program.updated:
        if not any(b is i for i in program.inputs):
            raise VerifyError(f"{program.name}: updated buffer {b.name} is not an input")
    for b in program.temps:
        _check_buffer(program, b)
    _check_steps(program, program.steps, {})


def _check_steps(program: LoopProgram, steps: list[Step], outer: dict[Var, str]) -> None:
    for s in steps:
        inner = outer
        if isinstance(s, Kernel):
            _Checker(program, s, outer).run()
        elif isinstance(s, Repeat):
            if s.extent != s.var.extent or s.extent < 0 or s.var in outer:
                raise VerifyError(f"{program.name}: repeat over {s.var.name} in {s.extent}")
            _check_rotations(program, s.rotate)
            inner = {**outer, s.var: "step"}
        elif isinstance(s, (WhileStep, Branch)):
            if s.cond.dtype is not dtypes.bool_ or s.cond.size != 1:
                raise VerifyError(f"{program.name}: the condition {s.cond!r} is not one bool")
            if isinstance(s, WhileStep):
                _check_rotations(program, s.rotate)
                _check_tuples(program, s.results, "copied")
        else:
            raise VerifyError(f"{program.name}: unknown step {type(s).__name__}")
        for block in blocks_of(s):
            _check_steps(program, block, inner)


def _check_rotations(program: LoopProgram, rotations: tuple[tuple[Buffer, ...], ...]) -> None:
    _check_tuples(program, rotations, "rotated")
    names = [b for names in rotations for b in names]
    if len(set(names)) != len(names):
        raise VerifyError(f"{program.name}: a buffer rotates twice")


def _check_tuples(program: LoopProgram, tuples: tuple[tuple[Buffer, ...], ...], what: str) -> None:
    for names in tuples:
        for b in names:
            if b.space not in ("arena", "output"):
                raise VerifyError(f"{program.name}: {b!r} is {what}")
            if b.dtype is not names[0].dtype or b.nbytes != names[0].nbytes:
                raise VerifyError(f"{program.name}: {b!r} is {what} with {names[0]!r}")


def _check_buffer(program: LoopProgram, b: Buffer) -> None:
    if b.space not in SPACES:
        raise VerifyError(f"{program.name}: buffer {b.name} is in unknown space {b.space!r}")
    if b.space == "arena" and not (b.offset >= 0 and b.offset + b.nbytes <= program.arena_bytes):
        raise VerifyError(
            f"{program.name}: {b.name} at {b.offset} does not fit {program.arena_bytes} arena bytes"
        )
    if b.space == "arena" and b.offset % b.dtype.itemsize:
        raise VerifyError(f"{program.name}: {b.name} at {b.offset} is not aligned")
    if b.space == "const" and len(b.data) != b.nbytes:
        raise VerifyError(f"{program.name}: constant {b.name} has {len(b.data)} bytes for {b.type}")


class _Checker:
    def __init__(self, program: LoopProgram, kernel: Kernel, outer: dict[Var, str]) -> None:
        self.program = program
        self.kernel = kernel
        self.kinds = dict(outer)
        self.locals: set[Local] = set()
        self.allocated: set[Buffer] = set()
        self.checked: set[int] = set()
        self.outer = {id(b) for b in (*program.inputs, *program.outputs)}
        self.writable = {id(b) for b in (*program.updated, *program.outputs)}
        self.writable -= {id(b) for b in program.inputs if not any(b is u for u in program.updated)}

    def fail(self, message: str) -> VerifyError:
        return VerifyError(f"{self.program.name}, kernel {self.kernel.name}: {message}")

    def run(self) -> None:
        self.block(self.kernel.body, (), top=True)
        self.grid()

    def grid(self) -> None:
        """The form of a GPU kernel."""
        found = grid_of(self.kernel.body)
        kinds = [s.kind for s in statements(self.kernel.body) if isinstance(s, For)]
        if found is None:
            if "block" in kinds or "thread" in kinds:
                raise self.fail("block loops stand outermost, alone, and thread loops in them")
            return
        loops, body = found
        if len(loops) > 3 or kinds.count("block") != len(loops) or any(f.step != 1 for f in loops):
            raise self.fail("a kernel has 1 to 3 block loops of step 1, around all else")
        if any(f.extent > 65535 for f in loops[:-1]):
            raise self.fail("only the innermost block loop may exceed 65535")
        extents = thread_extents(body)
        if not 1 <= len(extents) <= 3 or not 1 <= prod(extents) <= 1024:
            raise self.fail(f"a block has 1 to 1024 threads in 1 to 3 loops, not {extents}")
        self.threads(body, extents, 0, True)

    def threads(self, body: list[Stmt], extents: tuple[int, ...], depth: int, together: bool) -> None:
        """`together`: all threads of the block run `body`."""
        for s in body:
            if isinstance(s, For) and s.kind == "thread":
                if depth >= len(extents) or s.extent != extents[depth] or s.step != 1 or not together:
                    raise self.fail(f"thread loop over {s.var.name} does not fit the loops {extents}")
                self.threads(s.body, extents, depth + 1, together)
            elif isinstance(s, Barrier) and not together:
                raise self.fail("a barrier stands where not all threads may come")
            elif isinstance(s, Alloc) and s.buffer.space == "shared" and depth:
                raise self.fail(f"shared {s.buffer.name} is not allocated directly in the block")
            elif isinstance(s, (For, If, While)):
                self.threads(s.body, extents, depth, together and isinstance(s, For))
            elif not isinstance(s, (Barrier, Alloc)) and depth != len(extents):
                raise self.fail(f"{type(s).__name__} stands outside the thread loops")

    def block(self, body: list[Stmt], loops: tuple[For, ...], top: bool = False) -> None:
        locals_, allocated = set(self.locals), set(self.allocated)
        in_vector = any(f.kind == "vector" for f in loops)
        for s in body:
            if in_vector and not (isinstance(s, (Let, Store)) or (isinstance(s, For) and s.kind == "unroll")):
                raise self.fail(f"{type(s).__name__} inside a vector loop")
            if isinstance(s, Let):
                self.expr(s.value)
                if s.value.dtype is not s.local.dtype:
                    raise self.fail(f"let {s.local.name}: {s.local.dtype.name} of a {s.value.dtype.name}")
                self.locals.add(s.local)
                self.checked.clear()
            elif isinstance(s, Store):
                self.store(s)
            elif isinstance(s, Alloc):
                if s.buffer.space not in ("local", "shared", "register"):
                    raise self.fail(f"alloc of {s.buffer!r}")
                self.allocated.add(s.buffer)
            elif isinstance(s, For):
                self.loop(s, loops, top)
            elif isinstance(s, (If, While)):
                self.expr(s.cond)
                if s.cond.dtype is not dtypes.bool_:
                    raise self.fail(f"condition is {s.cond.dtype.name}")
                self.block(s.body, loops)
            elif isinstance(s, Mma):
                self.mma(s)
            elif isinstance(s, Matrices):
                self.matrices(s)
            elif isinstance(s, Prefetch):
                for e in s.index:
                    self.expr(e)
                self.access(s.buffer, s.index)
            elif not isinstance(s, (Barrier, Batch)):
                raise self.fail(f"unknown statement {type(s).__name__}")
        self.locals, self.allocated = locals_, allocated
        self.checked.clear()

    def loop(self, s: For, loops: tuple[For, ...], top: bool) -> None:
        if s.extent != s.var.extent or s.step < 1:
            raise self.fail(
                f"loop over {s.var.name}: extent {s.extent} (its variable {s.var.extent}), step {s.step}"
            )
        if s.var in self.kinds:
            raise self.fail(f"variable {s.var.name} is bound twice")
        if s.kind == "parallel" and not top:
            raise self.fail(f"parallel loop over {s.var.name} is not outermost")
        if s.kind == "vector" and s.step != 1:
            raise self.fail(f"vector loop over {s.var.name} has step {s.step}")
        if s.kind == "vector" and any(f.kind == "vector" for f in loops):
            raise self.fail(f"vector loop over {s.var.name} is inside another")
        self.kinds[s.var] = s.kind
        self.checked.clear()
        self.block(s.body, (*loops, s))
        del self.kinds[s.var]

    def store(self, s: Store) -> None:
        for e in s.index:
            self.expr(e)
        self.expr(s.value)
        if s.mask is not None:
            self.expr(s.mask)
            if s.mask.dtype is not dtypes.bool_:
                raise self.fail(f"mask of a store to {s.buffer.name} is {s.mask.dtype.name}")
        if s.value.dtype is not s.buffer.dtype:
            raise self.fail(f"store of {s.value.dtype.name} to {s.buffer!r}")
        if s.buffer.space == "const" or (s.buffer.space == "input" and id(s.buffer) not in self.writable):
            raise self.fail(f"store to {s.buffer!r}")
        outside = isinstance(s.value, Load) and s.value.buffer.space in ("input", "output", "arena", "const")
        if s.ahead and (not outside or s.buffer.space != "shared" or s.mask is not None):
            raise self.fail(f"a copy ahead to {s.buffer.name} is not from global to shared memory")
        self.access(s.buffer, s.index)

    def mma(self, s: Mma) -> None:
        depth = MMA_DEPTH[s.kind]
        given = dtypes.float32 if s.kind == "tf32" else dtypes.BY_NAME[s.kind]
        parts = ((s.sums, s.sums_at, dtypes.float32, 4), (s.a, s.a_at, given, depth // 2),
                 (s.b, s.b_at, given, depth // 4))  # fmt: skip
        for b, at, dtype, count in parts:
            if b.dtype is not dtype or b.space != "register" or b.size % count:
                raise self.fail(f"mma.{s.kind} of {b!r}")
            self.expr(at)
            self.access(b, (at,))

    def matrices(self, s: Matrices) -> None:
        whole = s.source.size * s.source.dtype.itemsize % 16 == 0 and s.source.space == "shared"
        each = 4 // max(s.source.dtype.itemsize, 1)
        fits = s.to.space == "register" and s.to.size % (s.count * max(each, 1)) == 0
        if s.source.dtype is not s.to.dtype or not whole or not fits or not each or (s.turned and each != 2):
            raise self.fail(f"matrices of {s.source!r} to {s.to!r}")
        for b, at in ((s.to, s.to_at), (s.source, s.source_at)):
            self.expr(at)
            self.access(b, (at,))

    def access(self, b: Buffer, index: tuple[Expr, ...]) -> None:
        if len(index) not in (1, len(b.shape)):
            raise self.fail(f"{b!r} indexed with {len(index)} expressions")
        if b.space in ("local", "shared", "register"):
            if b not in self.allocated:
                raise self.fail(f"{b!r} is used where it is not allocated")
        elif b.space in ("input", "output"):
            if id(b) not in self.outer:
                raise self.fail(f"{b!r} is not a buffer of the program")
        else:
            _check_buffer(self.program, b)
        if b.space == "register":
            for e in index:
                for x in _nodes(e):
                    if isinstance(x, Var) and self.kinds.get(x, "vector") not in ("unroll", "vector"):
                        raise self.fail(f"register {b.name} is indexed by {self.kinds[x]} variable {x.name}")
                    if isinstance(x, (Load, Local)):
                        raise self.fail(f"register {b.name} is indexed by a run-time value")

    def expr(self, root: Expr, bound: frozenset[Var] = frozenset()) -> None:
        stack = [root]
        while stack:
            e = stack.pop()
            if id(e) in self.checked and not bound:
                continue
            self.checked.add(id(e))
            if isinstance(e, WarpReduce):
                if e.name not in _REDUCERS or "thread" not in self.kinds.values():
                    raise self.fail(f"warp.{e.name} outside thread loops, or not of {', '.join(_REDUCERS)}")
                stack.append(e.x)
                continue
            if isinstance(e, LaneReduce):
                n = e.var.extent
                if e.name not in _REDUCERS or n < 1 or n & (n - 1):
                    raise self.fail(f"reduce.{e.name} over {n} lanes")
                self.expr(e.x, bound | {e.var})
                continue
            self.one(e, bound)
            stack.extend(e.args)

    def one(self, e: Expr, bound: frozenset[Var]) -> None:
        if isinstance(e, Var):
            if e not in self.kinds and e not in bound:
                raise self.fail(f"variable {e.name} is not in scope")
        elif isinstance(e, Local):
            if e not in self.locals:
                raise self.fail(f"local {e.name} is not in scope")
        elif isinstance(e, Load):
            if any(i.dtype is not dtypes.int64 for i in e.index):
                raise self.fail(f"index of {e.buffer.name} is not i64")
            if e.mask is not None and e.mask.dtype is not dtypes.bool_:
                raise self.fail(f"mask of a load from {e.buffer.name} is {e.mask.dtype.name}")
            if e.other is not None and e.other.dtype is not e.dtype:
                raise self.fail(
                    f"load from {e.buffer.name} gives {e.dtype.name}, otherwise {e.other.dtype.name}"
                )
            self.access(e.buffer, e.index)
        elif isinstance(e, Prim):
            self.prim(e)
        elif not isinstance(e, (Const, Cast)):
            raise self.fail(f"unknown expression {type(e).__name__}")

    def prim(self, e: Prim) -> None:
        p = PRIMITIVES.get(e.name)
        if p is None or len(e.args) != p.arity:
            raise self.fail(f"{e.name} of {len(e.args)} operands")
        args = e.args[1:] if p.result == "select" else e.args
        if any(a.dtype is not args[0].dtype for a in args):
            raise self.fail(f"{e.name} of {', '.join(a.dtype.name for a in e.args)}")
        if p.result == "select" and e.args[0].dtype is not dtypes.bool_:
            raise self.fail(f"select by a {e.args[0].dtype.name}")
        if args[0].dtype.kind not in p.kinds:
            raise self.fail(f"{e.name} does not take {args[0].dtype.name}")
        if e.dtype is not (dtypes.bool_ if p.result == "bool" else args[0].dtype):
            raise self.fail(f"{e.name} of {args[0].dtype.name} gives {e.dtype.name}")


def _nodes(e: Expr) -> list[Expr]:
    out, stack = [], [e]
    while stack:
        x = stack.pop()
        out.append(x)
        stack.extend(x.args)
    return out
