"""One kernel of the loop IR as a `__global__` function. Used by emit.

How loops are placed:
- the outermost nest of `block` loops is the grid, its innermost loop blockIdx.x (a CPU schedule's `parallel`
  loop is a grid of one-thread blocks); a kernel without one is a single block;
- inside it, nests of `thread` loops are the block, their innermost loop threadIdx.x; the largest nest gives
  the block's shape, a smaller one is guarded. What stands outside of them is done by every thread, but for
  stores to shared and global memory, which the first thread does;
- buffers in `shared` are one per block, all others one per thread.
"""

from __future__ import annotations

from math import prod

from ...ir.dataclass import dataclass
from ...ir.dtypes import int64
from ...ir.expr import Const, Expr, Load, Var
from ...ir.loops import (
    Alloc,
    Barrier,
    Batch,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    Matrices,
    Mma,
    Stmt,
    Store,
    While,
    statements,
)
from .emit_expr import ExprWriter, flat_index
from .emit_lines import without_unused, wrapped
from .emit_names import EmitError, Names
from .emit_survey import Survey, nest, thread_nests, trips
from .emit_text import Text, UnitState, fits
from .emit_vector import wide_accesses, wide_copy

_AXES = ("x", "y", "z")
_MAX_THREADS = 1024
_MAX_STATIC = 48 << 10
_MAX_SHARED = 227 << 10
_MAX_GRID = 65535
_MAX_PARAMETER_BYTES = 32_764


@dataclass
class Emitted:
    """A kernel as text, and how to launch it.

    Attributes:
        name: of the function.
        grid, block: extents of x, y and z.
        parameters: buffers and loop variables, in the order of the arguments.
        written: of each parameter, whether the kernel stores to it.
        text: the definition.
        shared_bytes: shared memory of one block; `dynamic_bytes`: of it, what the launch asks for.
    """

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: list[Buffer | Var]
    written: list[bool]
    text: str
    shared_bytes: int
    dynamic_bytes: int = 0


class KernelWriter(ExprWriter):
    """Writes the statements of one kernel."""

    def __init__(self, unit: UnitState, names: Names, kernel: Kernel, name: str) -> None:
        super().__init__(unit, names)
        self.kernel = kernel
        self.name = name
        self.inside = False  # a thread loop
        self.guarded = False  # one that some threads skip
        self.alone = False  # the kernel has one nest of thread loops, and nothing after it
        self.dims: list[int] = []
        self.shared_bytes = self.dynamic_bytes = 0
        self.scopes: list[set[str]] = []
        found = Survey(kernel)
        self.used, self.dead, self.own, self.free = found.used, found.dead, found.own, found.free
        self.loaded, self.stored = found.loaded, found.stored
        self.flat, self.plain, self.steps = found.flat, found.plain, found.steps

    # --- the function ---------------------------------------------------------------------------------------

    def write(self) -> Emitted:
        """The whole kernel."""
        body = self.kernel.body
        blocks: list[For] = []
        if len(body) == 1 and isinstance(body[0], For):
            if body[0].kind == "parallel":
                blocks, body = [body[0]], body[0].body
            else:
                blocks, body = nest(body[0], ("block",))
        if any(isinstance(s, For) and s.kind == "block" for s in statements(body)):
            raise EmitError(f"kernel {self.name}: a block loop is not part of the outermost nest")
        nests = list(thread_nests(body))
        best = max(nests, key=lambda n: (prod(map(trips, n)), len(n)), default=[])
        self.dims = [trips(f) for f in reversed(best)] or [1]
        self.threads = prod(self.dims)
        if self.threads > _MAX_THREADS or len(self.dims) > 3:
            raise EmitError(f"kernel {self.name}: {self.dims} threads in {len(self.dims)} dimensions")
        self.alone = (
            len(nests) == 1 and bool(body) and isinstance(body[-1], For) and body[-1].kind == "thread"
        )
        parameters = self._parameters()
        grid = self._grid(blocks)
        self._shared(body)
        self.block_body(body)
        self.lines = without_unused(self.lines)
        bounds = f"__launch_bounds__({self.threads}{self._blocks(body)}) "
        head = f'extern "C" __global__ void {bounds}{self.name}('
        text = wrapped(head, parameters, ") {", len('extern "C" __global__ void '))
        shape = (*self.dims, 1, 1)
        written = [isinstance(x, Buffer) and x in self.stored for x in self.free]
        return Emitted(
            self.name, grid, (shape[0], shape[1], shape[2]), self.free, written,
            "\n".join([text, *self.lines, "}"]), self.shared_bytes, self.dynamic_bytes,
        )  # fmt: skip

    def _parameters(self) -> list[str]:
        out = []
        for x in self.free:
            if isinstance(x, Var):
                out.append(f"const {'int' if fits((0, x.extent)) else 'long long'} {self.names.get(x)}")
                continue
            if x.space in ("shared", "local", "register"):
                raise EmitError(f"kernel {self.name}: {x!r} is not allocated")
            const = "" if x in self.stored else "const "
            out.append(f"{const}{self.unit.c_type(x.dtype)}* __restrict__ {self.names.get(x)}")
        if 8 * len(out) > _MAX_PARAMETER_BYTES:
            raise EmitError(f"kernel {self.name} takes {len(out)} buffers: more than a launch can pass")
        return out

    def _grid(self, blocks: list[For]) -> tuple[int, int, int]:
        """Binds the block loops' variables."""
        counts = [trips(f) for f in reversed(blocks)]
        if len(counts) > 3 or any(n > _MAX_GRID for n in counts[1:]):
            rest = "blockIdx.x"
            for at, f in enumerate(reversed(blocks)):
                last = at == len(blocks) - 1
                here = rest if last else f"{rest} % {counts[at]}u"
                self._bind(f, f"({here})" if not last and f.step != 1 else here)
                rest = f"{rest} / {counts[at]}u"
            return prod(counts), 1, 1
        for axis, f in reversed(list(zip(_AXES, reversed(blocks)))):
            self._bind(f, f"blockIdx.{axis}")
        sizes = [*counts, 1, 1, 1]
        return sizes[0], sizes[1], sizes[2]

    def _blocks(self, body: list[Stmt]) -> str:
        """How many blocks a multiprocessor is to have room for, if that is said: 512 threads of 128
        registers. Where sums are most of these, the compiler would else take a few more for addresses, and
        half of the registers would lie idle."""
        held = [s.buffer for s in statements(body) if isinstance(s, Alloc) and s.buffer.space == "register"]
        words = sum(-(-b.nbytes // 4) for b in held if b in self.loaded or b in self.stored)
        return f", {512 // self.threads}" if 128 <= self.threads <= 256 and 64 <= words <= 96 else ""

    def _shared(self, body: list[Stmt]) -> None:
        """Where a block's buffers take more than it has without asking, they are parts of one array."""
        found = [s.buffer for s in statements(body) if isinstance(s, Alloc) and s.buffer.space == "shared"]
        total = sum(-(-b.nbytes // 16) * 16 for b in found if b in self.loaded or b in self.stored)
        if total > _MAX_SHARED:
            raise EmitError(f"kernel {self.name} takes {total} bytes of shared memory")
        if total > _MAX_STATIC:
            self.dynamic_bytes = total
            self.flat.update(found)
            self.unit.need("DYNAMIC_SHARED")
            self.line(f"DYNAMIC_SHARED({total});")

    def _bind(self, f: For, source: str) -> None:
        if f.var not in self.used:
            return
        kind = "int" if fits((0, f.extent)) else "long long"
        name = self.names.define(f.var, f.var.name)
        times = f" * {f.step}" if f.step != 1 else ""
        self.lines.append(f"{self.pad}const {kind} {name} = {source}{times};")

    # --- statements of a block ------------------------------------------------------------------------------

    def block_body(self, body: list[Stmt]) -> None:
        """Statements in order."""
        for s in body:
            if s in self.dead:
                continue
            if isinstance(s, For) and s.kind == "thread" and not self.inside:
                self.thread_nest(s)
            elif isinstance(s, For):
                self.loop(s)
            elif isinstance(s, Alloc):
                self.alloc(s.buffer)
            elif isinstance(s, Let):
                self.let(s)
            elif isinstance(s, Store):
                self.store(s)
            elif isinstance(s, If):
                self.prepare([s.cond])
                self.open(f"if ({self.value(s.cond).text})")
                self.block_body(s.body)
                self.close()
            elif isinstance(s, While):
                self.repeat_while(s)
            elif isinstance(s, Barrier):
                if self.guarded:
                    raise EmitError(f"kernel {self.name}: a barrier that some threads don't reach")
                if s.copies:
                    waits = f"copies_done_but<{s.left}>" if s.left else "copies_done"
                    self.unit.need(waits.partition("<")[0])
                    self.line(f"{waits}();")
                if self.threads > 1:
                    self.line("__syncthreads();")
            elif isinstance(s, Mma):
                self.mma(s)
            elif isinstance(s, Matrices):
                self.matrices(s)
            elif isinstance(s, Batch):
                self.line(f"{self.unit.need('copies_batched')}();")
            else:
                raise EmitError(f"kernel {self.name}: unknown statement {type(s).__name__}")

    def mma(self, s: Mma) -> None:
        parts = ((s.sums, s.sums_at), (s.a, s.a_at), (s.b, s.b_at))
        self.prepare((), [at for _, at in parts])
        shown = ", ".join(self._address(b, at) for b, at in parts)
        self.unit.need("mma_by_lanes")
        self.line(f"{self.unit.need(f'mma_{s.kind}')}({shown});")

    def matrices(self, s: Matrices) -> None:
        self.prepare((), (s.to_at, s.source_at))
        shown = f"{self._address(s.to, s.to_at)}, {self._address(s.source, s.source_at)}"
        name = self.unit.need(f"matrices_{'t' if s.turned else 'x'}{s.count}")
        self.line(f"{name}({shown});")

    def line(self, text: str) -> None:
        self.lines.append(self.pad + text)

    def open(self, head: str) -> None:
        self.line(f"{head} {{" if head else "{")
        self.pad += "  "
        self.scopes.append(set(self.names.taken))

    def close(self) -> None:
        self.pad = self.pad[:-2]
        self.line("}")
        self.names.taken = self.scopes.pop()

    def thread_nest(self, s: For) -> None:
        """A nest of thread loops: its variables are the thread's place."""
        loops, body = nest(s, ("thread",))
        counts = [trips(f) for f in reversed(loops)]
        guards: list[str] = []
        braces = not self.alone
        if braces:
            self.open("")
        if counts == self.dims:
            sources = [f"threadIdx.{axis}" for axis in _AXES[: len(counts)]]
        else:  # a smaller nest, over the threads in their order
            number = _linear(self.dims)
            if prod(counts) != self.threads:
                guards.append(f"{number} < {prod(counts)}")
            sources, rest = [], number if " " not in number else f"({number})"
            for at, n in enumerate(counts):
                sources.append(rest if at == len(counts) - 1 else f"{rest} % {n}")
                rest = f"{rest} / {n}"
        if guards:
            self.open(f"if ({' && '.join(guards)})")
        for f, source in reversed(list(zip(reversed(loops), sources))):
            self._bind(f, f"({source})" if f.step != 1 and " " in source else source)
        self.inside, self.guarded = True, bool(guards)
        self.block_body(body)
        self.inside = self.guarded = False
        if guards:
            self.close()
        if braces:
            self.close()

    def loop(self, s: For) -> None:
        """A loop that runs in the thread."""
        if s.kind in ("block", "thread"):
            raise EmitError(f"kernel {self.name}: {s.kind} loop over {s.var.name} inside a thread loop")
        if s.extent < 1:
            return
        if s.kind == "vector" and s.extent > 1 and self._vector(s):
            return
        outside = set(self.names.taken)
        name = self.names.define(s.var, s.var.name)
        if s.kind in ("unroll", "vector") and trips(s) > 1:
            self.lines.append("#pragma unroll")
        elif s.kind == "serial" and self.only_starts(s):
            self.lines.append("#pragma unroll 1")
        kind = "int" if fits((0, s.extent + s.step)) else "long long"
        step = f"++{name}" if s.step == 1 else f"{name} += {s.step}"
        self.open(f"for ({kind} {name} = 0; {name} < {s.extent}; {step})")
        self.block_body(s.body)
        self.close()
        self.names.taken = outside

    @staticmethod
    def only_starts(s: For) -> bool:
        """Whether a loop does nothing but start copies: unrolled, it would keep an address for each of them
        in a register, and gain nothing."""
        inner = list(statements(s.body))
        return any(isinstance(x, Store) and x.ahead for x in inner) and not any(
            isinstance(x, Barrier) for x in inner
        )

    def alloc(self, b: Buffer) -> None:
        if b not in self.loaded and b not in self.stored:
            return  # nothing reads it
        if b.space == "shared" and self.inside:
            raise EmitError(f"kernel {self.name}: shared buffer {b.name} inside a thread loop")
        name = self.names.define(b, b.name)
        c = self.unit.c_type(b.dtype)
        if b.space == "shared":
            at = self.shared_bytes
            self.shared_bytes += -(-b.nbytes // 16) * 16
            if self.dynamic_bytes:
                place = f"dynamic_shared + {at}" if at else "dynamic_shared"
                self.line(f"{c}* const {name} = reinterpret_cast<{c}*>({place});")
                return
        if b in self.plain:
            self.line(f"{c} {name};")
            return
        sizes = f"[{b.size}]" if b in self.flat or not b.shape else "".join(f"[{n}]" for n in b.shape)
        aligned = "__align__(16) " if b.space != "register" and b.nbytes % 16 == 0 else ""
        self.line(f"{'__shared__ ' if b.space == 'shared' else ''}{aligned}{c} {name}{sizes};")

    def let(self, s: Let) -> None:
        if s.local not in self.used:
            return
        self.prepare([s.value], own_line=True)
        v = self.value(s.value)
        wide = s.local.dtype is int64 and v.wide
        c = self.unit.c_type(s.local.dtype) if s.local.dtype is not int64 or wide else "int"
        name = self.names.define(s.local, s.local.name)
        self.line(f"const {c} {name} = {v.text};")
        self.locals_[s.local] = Text(name, bounds=v.bounds, wide=wide)

    def store(self, s: Store, target: str | None = None) -> None:
        """`target`: written instead of the buffer's element."""
        if s.ahead:
            self.copy(s, s.index, s.value, 1)
            return
        index = () if target else self._store_index(s)
        values = [s.value] if s.mask is None else [s.value, s.mask]
        self.prepare(values, index)
        summed = s.buffer.space == "register"
        value = (self.accumulated(s.value) if summed else self.value(s.value)).text
        place = target or (
            self.reference(s.buffer, s.index) if s.buffer in self.own else self._place(s, index)
        )
        guards = []
        if not self.inside and self.threads > 1 and s.buffer.space not in ("local", "register"):
            guards.append(f"{_linear(self.dims)} == 0")
        if s.mask is not None:
            mask = self.value(s.mask)
            guards.append(mask.text if not guards else mask.at(7))
        added = value.removeprefix(f"{place} + ")
        plain = added != value and not any(x in added for x in (" + ", " - ", " ? "))
        text = f"{place} += {added};" if plain else f"{place} = {value};"
        if not guards:
            self.line(text)
        elif len(text) + len(guards[-1]) < 90:
            self.line(f"if ({' && '.join(guards)}) {text}")
        else:
            self.open(f"if ({' && '.join(guards)})")
            self.line(text)
            self.close()

    def copy(self, s: Store, index: tuple[Expr, ...], value: Expr, lanes: int) -> None:
        """A copy ahead of some neighbours. Where its mask is false they become zero."""
        assert isinstance(value, Load)
        to, source = flat_index(s.buffer, index), flat_index(value.buffer, value.index)
        zero = value.other is None or (isinstance(value.other, Const) and value.other.value == 0)
        size = lanes * s.buffer.dtype.itemsize
        if not zero or size not in (4, 8, 16):
            raise EmitError(f"kernel {self.name}: {size} bytes for {s.buffer.name} can't be copied ahead")
        self.prepare(() if value.mask is None else (value.mask,), (to, source))
        shown = f"{self._address(s.buffer, to)}, {self._address(value.buffer, source)}"
        if value.mask is not None:
            shown += f", {self.value(value.mask).text}"
        self.line(f"{self.unit.need('copy_ahead')}<{size}>({shown});")

    def _store_index(self, s: Store) -> tuple[Expr, ...]:
        return s.index if s.buffer in self.own else (flat_index(s.buffer, s.index),)

    def _place(self, s: Store, index: tuple[Expr, ...]) -> str:
        return f"{self.names.get(s.buffer)}[{self.value(index[0]).text}]"

    def repeat_while(self, s: While) -> None:
        before = len(self.lines)
        self.pad += "  "
        self.prepare([s.cond])
        cond = self.value(s.cond)
        self.pad = self.pad[:-2]
        made = self.lines[before:]
        del self.lines[before:]
        if made:
            self.open("while (true)")
            self.lines += made
            self.line(f"if (!{cond.at(11)}) break;")
        else:
            self.open(f"while ({cond.text})")
        self.block_body(s.body)
        self.close()

    # --- vectors --------------------------------------------------------------------------------------------

    def _vector(self, s: For) -> bool:
        """A vector loop whose accesses to neighbouring elements are each one wide load or store. False if
        there are none: then it is an ordinary loop."""
        if not self.inside and self.threads > 1:
            return False
        if len(s.body) == 1 and isinstance(s.body[0], Store) and s.body[0].ahead:
            self._copies(s, s.body[0])
            return True
        loads, stores = wide_accesses(s, self.steps)
        if not loads and not stores:
            return False
        n = s.extent
        self.unit.need("Pack")
        for load, base in loads.items():
            self.prepare([] if load.mask is None else [load.mask], [base])
            kind = f"Pack<{self.unit.c_type(load.dtype)}, {n}>"
            name = self.names.fresh(f"{load.buffer.name}_v")
            source = f"pack_at<{n}>({self._address(load.buffer, base)})"
            if load.mask is None:
                self.line(f"const {kind} {name} = {source};")
            else:
                self.line(f"{kind} {name} = {{}};")
                self.line(f"if ({self.value(load.mask).text}) {name} = {source};")
            self.packs[load] = Text(name)
        results: list[tuple[Store, Expr, str]] = []
        for store, base in stores.items():
            name = self.names.fresh(f"{store.buffer.name}_v")
            self.line(f"Pack<{self.unit.c_type(store.buffer.dtype)}, {n}> {name};")
            results.append((store, base, name))
        var = self.names.define(s.var, s.var.name)
        for load in loads:
            lane = Text(f"{self.packs[load].text}.lane[{var}]")
            zero = isinstance(load.other, Const) and load.other.value == 0
            if load.mask is not None and load.other is not None and not zero:
                self.prepare([load.mask, load.other])
                mask, other = self.value(load.mask), self.value(load.other)
                lane = Text(f"{mask.at(7)} ? {lane.text} : {other.at(2)}", 1)
            self.packs[load] = lane
        self.lines.append("#pragma unroll")
        self.open(f"for (int {var} = 0; {var} < {n}; ++{var})")
        held = {store: name for store, _, name in results}
        for x in s.body:
            if isinstance(x, Store) and x in held:
                self.store(Store(x.buffer, (), x.value), f"{held[x]}.lane[{var}]")
            else:
                self.block_body([x])
        self.close()
        for store, base, name in results:
            self.prepare([] if store.mask is None else [store.mask], [base])
            text = f"pack_at<{n}>({self._address(store.buffer, base)}) = {name};"
            self.line(text if store.mask is None else f"if ({self.value(store.mask).text}) {text}")
        for load in loads:
            del self.packs[load]
        return True

    def _copies(self, s: For, x: Store) -> None:
        """All lanes of a copy ahead at once."""
        found = wide_copy(s, x, self.steps)
        if found is None:
            raise EmitError(f"kernel {self.name}: {x.buffer.name} is not copied in aligned runs")
        to, value = found
        self.copy(x, (to,), value, s.extent)

    def _address(self, b: Buffer, base: Expr) -> str:
        name = self.names.get(b)
        at = self.value(base)
        if b in self.own:
            deep = 0 if b in self.flat else max(len(b.shape) - 1, 0)
            name = f"&{name}{'[0]' * deep}[0]" if deep else name
        return name if at.text == "0" else f"{name} + {at.at(9)}"


def _linear(dims: list[int]) -> str:
    """The number of a thread in its block."""
    text = "threadIdx.x"
    if len(dims) > 1:
        text = f"threadIdx.y * {dims[0]} + {text}"
    if len(dims) > 2:
        text = f"threadIdx.z * {dims[0] * dims[1]} + {text}"
    return text
