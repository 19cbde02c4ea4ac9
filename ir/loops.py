"""The loop IR: scheduled loop nests over buffers, shared by the LLVM and CUDA targets.

A `LoopProgram` is the lowered form of one graph: buffers and a sequence of steps, kernels and control flow
around kernels (`Repeat`, `WhileStep`, `Branch`). Schedulers build it, the code generators and the loop
interpreter read it. Statements execute in order; each evaluates its expressions when it is reached, a DAG
node used twice in one statement once.

A kernel for a GPU is one nest of 1 to 3 `block` loops, and nothing beside it. Directly in the innermost one
stand the `Alloc`s of shared buffers, and nests of 1 to 3 `thread` loops, all of the same extents. Every
thread runs all of that body; a thread loop just gives it its coordinates, of which the innermost loop's is
the one that neighbours differ in (x), as with block loops (only that one may exceed 65535). `register` and
`local` buffers are one per thread wherever they are allocated. A `Barrier` stands between thread loops or in
one, there also in serial loops, but not where threads may differ in whether they reach it (`If`, `While`).
Kernels that run one after another see each other's writes; within a kernel, threads see what others of their
block wrote before a barrier (copies made ahead: before one that waits for copies). Of memory, no thread reads
or writes what another one writes between two barriers, or what any thread of another block writes at all.
Vector loops are 2, 4 or 8 wide: one wide access to memory, where that is contiguous and aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from .dataclass import dataclass, field
from .dtypes import DType
from .expr import Expr, Local, Var
from .graph import Location
from .types import Type

#: input: given by the caller; output: made for the caller; arena: a place in the program's one workspace;
#: const: baked data; local: scratch of one thread (stack or heap, cache-resident); shared: one GPU block's;
#: register: scratch whose indices are constants once unrolled and vector loops are expanded (accumulators).
SPACES = ("input", "output", "arena", "const", "local", "shared", "register")
#: serial: in order; parallel: iterations independent, spread over threads (only outermost in a kernel);
#: vector: one SIMD operation per statement, iterations independent; unroll: replicated; block/thread: GPU
#: axes.
LOOP_KINDS = ("serial", "parallel", "vector", "unroll", "block", "thread")


class Buffer:
    """Named memory of one dtype. Row-major; `shape` is for reading (indices may also be flat).

    Attributes:
        offset: byte offset in the arena (space `arena`), set by the memory planner.
        data: bytes of a `const` buffer.
    """

    __slots__ = ("data", "dtype", "name", "offset", "shape", "space")

    def __init__(
        self, name: str, dtype: DType, shape: Iterable[int], space: str, offset: int = 0, data: bytes = b""
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = tuple(shape)
        self.space = space
        self.offset = offset
        self.data = data

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def type(self) -> Type:
        return Type(self.dtype, self.shape)

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype.name}[{','.join(map(str, self.shape))}] {self.space}"


class Stmt:
    """Base of statements."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class For(Stmt):
    """`for var in 0, step, 2*step, ... < extent`. For `vector` loops step is 1 and extent is the lane count.

    `var.extent` equals `extent` (its range bound).
    """

    var: Var
    extent: int
    kind: str
    body: list[Stmt]
    step: int = 1


@dataclass(eq=False, slots=True)
class Store(Stmt):
    """`buffer[index] = value`, skipped where `mask` is false.

    Attributes:
        ahead: the value, a load from global memory, goes to shared memory while the thread goes on. It is
            there after the next barrier that waits for copies; until then nothing else may touch the place.
    """

    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr
    mask: Expr | None = None
    ahead: bool = False


@dataclass(eq=False, slots=True)
class Prefetch(Stmt):
    """Has the line of `buffer[index]` brought near, to be read or, with `write`, to be written. It changes
    nothing."""

    buffer: Buffer
    index: tuple[Expr, ...]
    write: bool = False


@dataclass(eq=False, slots=True)
class Let(Stmt):
    """Names a value for the rest of the block."""

    local: Local
    value: Expr


@dataclass(eq=False, slots=True)
class Alloc(Stmt):
    """Brings a local, shared or register buffer into scope, contents undefined."""

    buffer: Buffer


@dataclass(eq=False, slots=True)
class If(Stmt):
    """Runs `body` where the scalar bool `cond` holds."""

    cond: Expr
    body: list[Stmt]


@dataclass(eq=False, slots=True)
class While(Stmt):
    """Runs `body`, then repeats it while `cond` (evaluated after it, over buffers) holds, from a first
    test of `cond` before the first run."""

    cond: Expr
    body: list[Stmt]


@dataclass(eq=False, slots=True)
class Barrier(Stmt):
    """All threads of a GPU block arrive before any goes on; with `copies`, what they copied ahead did too,
    but for their last `left` batches."""

    copies: bool = False
    left: int = 0


@dataclass(eq=False, slots=True)
class Batch(Stmt):
    """Ends a batch of copies ahead: those that a thread made since its last one. It may be empty."""


#: terms that one `Mma` adds up, by kind: the type that its operands are rounded to
MMA_DEPTH = {"tf32": 8, "f16": 16, "bf16": 16}


@dataclass(eq=False, slots=True)
class Mma(Stmt):
    """`sums += a b`: 16 x 8 sums in f32 of 16 x depth and depth x 8 operands, by the 32 threads of a warp, as
    PTX's `mma.sync.m16n8k8` (tf32) and `m16n8k16` (f16, bf16). Each thread has a share of the three, in
    register buffers from the given places on, in this order; thread t of the warp, q = t % 4, r = t // 4:

        sums: rows r, r, r + 8, r + 8; columns 2q, 2q + 1, 2q, 2q + 1
        a, depth 8: rows r, r + 8, r, r + 8; terms q, q, q + 4, q + 4
        a, depth 16: rows r, r, r + 8, r + 8, and again; terms 2q, 2q + 1, 2q, 2q + 1, then those + 8
        b, depth 8: terms q, q + 4; depth 16: terms 2q, 2q + 1, 2q + 8, 2q + 9; column r
    """

    kind: str
    sums: Buffer
    sums_at: Expr
    a: Buffer
    a_at: Expr
    b: Buffer
    b_at: Expr


@dataclass(eq=False, slots=True)
class Matrices(Stmt):
    """Brings 8 x 8 matrices of 16 bits, or 8 x 4 of 32, from shared memory to registers, by the 32 threads of
    a warp, as PTX's `ldmatrix`. Thread t names where row t % 8 of matrix t // 8 begins, 16 bytes of memory,
    aligned. It gets of every matrix 4 bytes, one after the other: of row t // 4 those from byte 4 * (t % 4)
    on, or `turned` (16 bits only) elements t // 4 of rows 2 (t % 4) and 2 (t % 4) + 1. So the shares of `Mma`
    are made.

    Attributes:
        count: 1, 2 or 4 matrices; threads from 8 * `count` on name nothing.
        to, to_at: registers, from a place on.
        source, source_at: shared memory.
    """

    count: int
    turned: bool
    to: Buffer
    to_at: Expr
    source: Buffer
    source_at: Expr


@dataclass(eq=False, slots=True)
class Kernel:
    """One loop nest (or a short sequence that shares locals), run to its end before the next kernel starts.

    Attributes:
        comment: the graph ops it computes, for dumps.
        locs: the user's lines they came from.
        flops, bytes_moved: static cost, for `.cost()`.
    """

    name: str
    body: list[Stmt]
    comment: str = ""
    locs: tuple[Location, ...] = ()
    flops: int = 0
    bytes_moved: int = 0


#: Buffers that change places after every turn of a loop: each name takes the memory of the next, the last
#: that of the first. After the loop every name has its own memory again.
Rotation = tuple[Buffer, ...]


@dataclass(eq=False, slots=True)
class Repeat:
    """Runs `body` with `var` = 0, 1, ... extent - 1, or downwards with `reverse`. Kernels may use `var`.

    Attributes:
        rotate: disjoint; the scheduler knows from the number of turns where values end up.
    """

    var: Var
    extent: int
    body: list[Step]
    reverse: bool = False
    rotate: tuple[Rotation, ...] = ()


@dataclass(eq=False, slots=True)
class WhileStep:
    """Runs `test`, and while `cond` (one bool, written by it) holds, `body` and `test` again.

    Attributes:
        most: the body runs at most so many times.
        rotate: buffers that change places after every turn.
        results: (target, name): after the last turn the target gets a copy of what the name holds then.
    """

    test: list[Step]
    cond: Buffer
    body: list[Step]
    most: int | None = None
    rotate: tuple[Rotation, ...] = ()
    results: tuple[tuple[Buffer, Buffer], ...] = ()


@dataclass(eq=False, slots=True)
class Branch:
    """Runs `then` where `cond` (one bool) holds, else `other`."""

    cond: Buffer
    then: list[Step]
    other: list[Step]


Step = Kernel | Repeat | WhileStep | Branch


def blocks_of(step: Step) -> tuple[list[Step], ...]:
    """The lists of steps inside a step, in the order they are written down."""
    if isinstance(step, Repeat):
        return (step.body,)
    if isinstance(step, WhileStep):
        return (step.test, step.body)
    if isinstance(step, Branch):
        return (step.then, step.other)
    return ()


def walk_steps(steps: Iterable[Step]) -> Iterator[Step]:
    """Every step, those inside after the one around them."""
    for s in steps:
        yield s
        for block in blocks_of(s):
            yield from walk_steps(block)


def control_buffers(step: Step) -> tuple[Buffer, ...]:
    """The buffers that a step itself names: conditions, rotations, results."""
    if isinstance(step, Repeat):
        return tuple([b for names in step.rotate for b in names])
    if isinstance(step, WhileStep):
        copied = [b for pair in step.results for b in pair]
        return (step.cond, *[b for names in step.rotate for b in names], *copied)
    return (step.cond,) if isinstance(step, Branch) else ()


@dataclass(eq=False, slots=True)
class LoopProgram:
    """A lowered graph.

    Attributes:
        steps: what runs, in order; `kernels` are all kernels in it, in the order they are written down.
        inputs: buffers in the order of the graph's inputs.
        outputs: buffers in the order of the graph's outputs; an output that is an input, or another output,
            is the same Buffer object (the executable copies).
        updated: inputs that the program overwrites with their new value, in place.
        arena_bytes: size of the workspace all `arena` buffers are placed in.
        flushes: subnormal numbers are zeros in it, where the processor is slow with them.
    """

    name: str
    inputs: list[Buffer] = field(default_factory=list)
    outputs: list[Buffer] = field(default_factory=list)
    updated: list[Buffer] = field(default_factory=list)
    temps: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    arena_bytes: int = 0
    flushes: bool = False

    @property
    def kernels(self) -> list[Kernel]:
        """All kernels, wherever they are."""
        return [s for s in walk_steps(self.steps) if isinstance(s, Kernel)]

    def __str__(self) -> str:
        from .loop_text import print_program

        return print_program(self)


def statements(body: list[Stmt]) -> Iterator[Stmt]:
    """Every statement of a block, nested ones after their parent."""
    out: list[Stmt] = []
    _gather(body, out)
    return iter(out)


def _gather(body: list[Stmt], out: list[Stmt]) -> None:
    for s in body:
        out.append(s)
        kind = type(s)
        if kind is For or kind is If or kind is While:
            _gather(s.body, out)  # type: ignore[attr-defined]


def grid_of(body: list[Stmt]) -> tuple[list[For], list[Stmt]] | None:
    """The block loops of a GPU kernel and what a block runs; None for a kernel of the CPU."""
    loops: list[For] = []
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "block":
        loops.append(body[0])
        body = body[0].body
    return (loops, body) if loops else None


def thread_extents(body: list[Stmt]) -> tuple[int, ...]:
    """The extents of a block's first nest of thread loops, outermost first."""
    out: list[int] = []
    for s in statements(body):
        if isinstance(s, For) and s.kind == "thread":
            out.append(s.extent)
            if not (s.body and isinstance(s.body[0], For) and s.body[0].kind == "thread"):
                break
    return tuple(out)


def expressions(s: Stmt) -> tuple[Expr, ...]:
    """The expressions a statement itself evaluates. (`Matrices` reads memory besides.)"""
    if isinstance(s, Store):
        return (*s.index, s.value) if s.mask is None else (*s.index, s.value, s.mask)
    if isinstance(s, Let):
        return (s.value,)
    if isinstance(s, For):
        return ()
    if isinstance(s, Prefetch):
        return s.index
    if isinstance(s, (If, While)):
        return (s.cond,)
    if isinstance(s, Mma):
        return s.sums_at, s.a_at, s.b_at
    if isinstance(s, Matrices):
        return s.to_at, s.source_at
    return ()
