"""A whole LoopProgram to LLVM modules: buffers to pointers, a function per kernel, and the two entry points.
The control flow between kernels is in codegen_control.

Kernels that differ only in which buffers they work on, as those of equal layers, are one function. Programs
of some length become several modules, so that several threads can compile them.

    void run(ptr table)                 one execution
    void repeat(ptr table, i64 n)       n executions; output pointers advance by their byte size after each

`table` is an array of 64-bit slots: the inputs' pointers, the outputs' pointers, the arena's, and the address
of `tg_parallel_for` (0: run serially). An output that the program does not write itself (an input, or the
same buffer as an earlier output) is copied to its slot's pointer at the end of a run, unless that is null.
`repeat` does not change the table. Called by compile.py.

Programs that train have zeros in place of subnormal numbers on x86, which would take a hundred times as long:
the running means of what has no gradient any more fade into those, and stay there. The caller's modes are as
they were when a run ends.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ...ir.loop_shape import Shape
from ...ir.loops import Buffer, Kernel, LoopProgram, control_buffers, walk_steps
from .codegen import SPREAD, Kernels, KernelWriter
from .codegen_control import Call, StepWriter, alignments
from .codegen_memory import zeros_global
from .codegen_registers import Scan
from .codegen_text import Place
from .target import CompileError, Target

# Kernels with less text than this are inlined into `run`: LLVM's fixed cost per function, some 0.3 ms, is
# most of theirs.
_INLINE_CHARACTERS = 8000
# A module of its own costs some 2 ms; text of this length some 60. The first ones are smaller, so that the
# other threads have something to do soon.
_PART_CHARACTERS = 100_000
_FIRST_CHARACTERS = 30_000
# The tasks of a parallel loop by the pool, or one after the other where there is none.
_SPREAD_TEXT = f"""define hidden void {SPREAD}(ptr %task, ptr %context, i64 %n, i64 %pool) #0 {{
entry:
  %alone = icmp eq i64 %pool, 0
  br i1 %alone, label %loop, label %spread
spread:
  %target = inttoptr i64 %pool to ptr
  tail call void %target(ptr %task, ptr %context, i64 %n)
  ret void
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void %task(ptr %context, i64 %i)
  %next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}"""
_MEMMOVE = "declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)"
# Zeros for subnormal operands (1 << 6) and results (1 << 15), and the modes as they were.
_FLUSHING = """define internal i32 @flush() #0 {
  %slot = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %slot)
  %modes = load i32, ptr %slot, align 4
  %flushing = or i32 %modes, 32832
  store i32 %flushing, ptr %slot, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %slot)
  ret i32 %modes
}
define internal void @restore(i32 %modes) #0 {
  %slot = alloca i32, align 4
  store i32 %modes, ptr %slot, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %slot)
  ret void
}
define void @run(ptr %table) #0 {
  %modes = call i32 @flush()
  call void @execute(ptr %table)
  call void @restore(i32 %modes)
  ret void
}"""


def generate(program: LoopProgram, target: Target, threads: bool = True) -> str:
    """LLVM IR text for a program, as one module.

    - `threads`: parallel loops may use the pool; without, the module never refers to it.

    :raises CompileError: the program has parts that only GPUs have.
    """
    (text,) = _Program(program, target, threads).parts(None)
    return text


def generate_parts(program: LoopProgram, target: Target, threads: bool = True) -> Iterator[str]:
    """As `generate`, the texts of modules to be linked together, made one by one. The last one has the entry
    points."""
    return _Program(program, target, threads).parts(_PART_CHARACTERS)


class _Program:
    def __init__(self, program: LoopProgram, target: Target, threads: bool) -> None:
        self.program = program
        self.f16 = target.has_fma or target.arch == "aarch64"  # every x86 with FMA converts halves
        self.fma = target.has_fma
        self.vector_bytes = target.vector_bytes
        self.threads = threads
        # `run`'s body is a function that nothing is moved into or out of, where it runs in other modes.
        self.flushes = program.flushes and target.arch == "x86_64"
        self.body = "execute" if self.flushes else "run"
        self.numbers = itertools.count(2)
        self.module = self._module()
        self.attributes = f"attributes #0 = {{ nounwind {target.attribute_text()} }}"
        self.aligned = alignments(program.steps, _alignment)
        self.slots: dict[Buffer, int] = {}
        for i, b in enumerate([*program.inputs, *program.outputs]):
            self.slots.setdefault(b, i)
        self.arena_slot = len(program.inputs) + len(program.outputs)

    def _module(self) -> Kernels:
        return Kernels(self.fma, self.f16, self.vector_bytes, "#0", self.threads, self.numbers)

    def parts(self, size: int | None) -> Iterator[str]:
        """The modules' texts, each of about `size` characters (None: one module)."""
        functions: dict[Any, str] = {}
        uses: Counter[str] = Counter()
        calls: dict[Kernel, Call] = {}
        main, part = self.module, self._module()
        short: list[tuple[str, Kernel, str, str, Kernels]] = []
        inside: list[str] = []  # functions of the part, as others declare them
        linkage = "internal" if size is None else "hidden"
        waiting, enough = 0, _FIRST_CHARACTERS
        # The first part is made of the first kernels, before others are looked at: threads wait for it.
        for i, k in enumerate(self.program.kernels):
            shape = Shape(k)
            key = self._key(shape)
            name = functions.get(key)
            if name is None:
                name = functions[key] = f"k{i}_{_plain(k.name)}"
                module = self._module()
                parameters, text, small = self._kernel(k, shape, name, module)
                if small:
                    short.append((name, k, parameters, text, module))
                else:
                    text = f"define {linkage} void @{name}({parameters}) #0{text}"
                    module.functions.append(_described(k, text))
                    part.absorb(module)
                    inside.append(f"declare hidden void @{name}({parameters})")
                    waiting += sum(map(len, module.functions))
            uses[name] += 1
            calls[k] = (name, [b for b in shape.buffers if b.space != "const"], shape.variables)
            if size is not None and waiting > min(enough, size):
                enough *= 2
                main.declares.update(dict.fromkeys(inside))
                main.spread |= part.spread
                if part.spread:
                    part.declares[f"declare hidden void {SPREAD}(ptr, ptr, i64, i64)"] = None
                yield self._text(part)
                part, inside, waiting = self._module(), [], 0
        for name, k, parameters, text, module in short:
            kind = "alwaysinline #0" if uses[name] == 1 else "#0"
            module.functions.append(_described(k, f"define internal void @{name}({parameters}) {kind}{text}"))
            main.absorb(module)
        main.absorb(part)
        main.functions.append(self._run(calls))
        if self.flushes:
            main.functions.append(_FLUSHING)
            for name in ("stmxcsr", "ldmxcsr"):
                main.declares[f"declare void @llvm.x86.sse.{name}(ptr)"] = None
        main.functions.append(self._repeat())
        if main.spread:
            main.functions.append(_SPREAD_TEXT)
        yield self._text(main)

    def _text(self, module: Kernels) -> str:
        if module.zeros:
            module.globals[zeros_global()] = None
        header = f"; program {_plain(self.program.name)}\n"
        return f"{header}{module.text()}\n{self.attributes}\n"

    # --- kernels --------------------------------------------------------------------------------------------

    def _key(self, shape: Shape) -> Any:
        """Equal for kernels that can be one function: also what is known of their pointers is the same."""
        groups, _ = overlap_groups(shape.buffers)
        numbers: dict[int, int] = {}
        known = [
            (self._align(b), numbers.setdefault(groups.get(b, 0), len(numbers)))
            for b in shape.buffers
            if b.space != "const"
        ]
        return shape.key, tuple(known)

    def _kernel(self, kernel: Kernel, shape: Shape, name: str, module: Kernels) -> tuple[str, str, bool]:
        """A kernel's parameters, the body of its function, and whether that is short."""
        writer = KernelWriter(module, name, "%pool")
        groups, writer.noalias = overlap_groups(shape.buffers)
        parameters: list[str] = []
        for b in shape.buffers:
            place = self._place(b, groups, module)
            if b.space != "const":
                place = place._replace(ref=writer.fresh(f"{_plain(b.name)}."))
                parameters.append(f"ptr {writer.pointer_attributes(b, place)}{place.ref}")
            writer.env[b] = place
        for v in shape.variables:
            ref = writer.env[v] = writer.fresh(f"{_plain(v.name)}.")
            writer.ranges[ref] = (0, max(v.extent - 1, 0))
            parameters.append(f"i64 {ref}")
        writer.held = Scan(module.nodes, writer.linear, writer.can_vectorize).run(kernel.body)
        writer.block(kernel.body)
        text = writer.function_text("")
        small = len(text) < _INLINE_CHARACTERS and not writer.entry
        return ", ".join([*parameters, "i64 %pool"]), text, small

    def _place(self, b: Buffer, groups: dict[Buffer, int], module: Kernels) -> Place:
        if b.space == "const":
            return Place(self._constant(b, module), -1 - len(module.globals), 64, b.dtype, b.shape)
        if b.space not in ("arena", "input", "output") or (b.space != "arena" and b not in self.slots):
            raise CompileError(f"buffer {b.name} ({b.space}) is not among the program's inputs and outputs")
        return Place("", groups[b], self._align(b), b.dtype, b.shape)

    def _align(self, b: Buffer) -> int:
        return self.aligned.get(b) or _alignment(b)

    def _constant(self, b: Buffer, module: Kernels) -> str:
        name = f"@c.{_plain(b.name)}"
        data = "".join(f"\\{x:02X}" for x in b.data)
        value = f'c"{data}"' if any(b.data) else "zeroinitializer"
        module.globals[f"{name} = internal constant [{len(b.data)} x i8] {value}, align 64"] = None
        return name

    # --- entry points ---------------------------------------------------------------------------------------

    def _run(self, calls: dict[Kernel, Call]) -> str:
        kind = ("internal ", " noinline") if self.flushes else ("", "")
        lines = [f"define {kind[0]}void @{self.body}(ptr %table){kind[1]} #0 {{", "entry:"]
        pointers: dict[Buffer, str] = {}

        def slot(i: int, ty: str = "ptr") -> str:
            lines.append(f"  %slot{i} = getelementptr i64, ptr %table, i64 {i}")
            lines.append(f"  %in{i} = load {ty}, ptr %slot{i}, align 8")
            return f"%in{i}"

        arena = ""
        used: dict[Buffer, None] = {}
        for s in walk_steps(self.program.steps):
            used.update(dict.fromkeys(calls[s][1] if isinstance(s, Kernel) else control_buffers(s)))
        for b in used:
            if b.space == "arena":
                arena = arena or slot(self.arena_slot)
                name = f"%arena.{len(pointers)}"
                lines.append(f"  {name} = getelementptr i8, ptr {arena}, i64 {b.offset}")
                pointers[b] = name
            else:
                pointers[b] = slot(self.slots[b])
        pool = slot(self.arena_slot + 1, "i64") if self.module.threads else "0"
        writer = StepWriter(lines, pointers, calls, pool)
        writer.steps(self.program.steps)
        if writer.copies:
            self.module.declares[_MEMMOVE] = None
        lines += self._copies(pointers)
        return "\n".join([*lines, "  ret void", "}"])

    def _copies(self, pointers: dict[Buffer, str]) -> list[str]:
        """Outputs that are something else's buffer."""
        lines: list[str] = []
        first = len(self.program.inputs)
        for i, b in enumerate(self.program.outputs):
            at = first + i
            if self.slots.get(b) == at and b.space == "output":
                continue
            source = pointers.get(b)
            if source is None:
                if b.space == "arena":
                    lines += [
                        f"  %arena.o{i} = getelementptr i64, ptr %table, i64 {self.arena_slot}",
                        f"  %arena.p{i} = load ptr, ptr %arena.o{i}, align 8",
                        f"  %from{i} = getelementptr i8, ptr %arena.p{i}, i64 {b.offset}",
                    ]
                elif b.space == "const":
                    constant = self._constant(b, self.module)
                    lines.append(f"  %from{i} = getelementptr i8, ptr {constant}, i64 0")
                else:
                    lines += [
                        f"  %at{i} = getelementptr i64, ptr %table, i64 {self.slots[b]}",
                        f"  %from{i} = load ptr, ptr %at{i}, align 8",
                    ]
                source = f"%from{i}"
            lines += [
                f"  %out{i} = getelementptr i64, ptr %table, i64 {at}",
                f"  %to{i} = load ptr, ptr %out{i}, align 8",
                f"  %none{i} = icmp eq ptr %to{i}, null",
                f"  br i1 %none{i}, label %copied{i}, label %copy{i}",
                f"copy{i}:",
                f"  call void @llvm.memmove.p0.p0.i64(ptr %to{i}, ptr {source}, i64 {b.nbytes}, i1 false)",
                f"  br label %copied{i}",
                f"copied{i}:",
            ]
            self.module.declares[_MEMMOVE] = None
        return lines

    def _repeat(self) -> str:
        count = self.arena_slot + 2
        size = count * 8
        self.module.declares["declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"] = None
        advance: list[str] = []
        for i, b in enumerate(self.program.outputs, len(self.program.inputs)):
            if b.nbytes:
                advance += [
                    f"  %s{i} = getelementptr i64, ptr %slots, i64 {i}",
                    f"  %p{i} = load i64, ptr %s{i}, align 8",
                    f"  %n{i} = add i64 %p{i}, {b.nbytes}",
                    f"  %z{i} = icmp eq i64 %p{i}, 0",
                    f"  %q{i} = select i1 %z{i}, i64 0, i64 %n{i}",
                    f"  store i64 %q{i}, ptr %s{i}, align 8",
                ]
        return "\n".join(
            [
                "define void @repeat(ptr %table, i64 %n) #0 {",
                "entry:",
                f"  %slots = alloca [{count} x i64], align 64",
                f"  call void @llvm.memcpy.p0.p0.i64(ptr %slots, ptr align 8 %table, i64 {size}, i1 false)",
                *["  %modes = call i32 @flush()"] * self.flushes,
                "  %some = icmp sgt i64 %n, 0",
                "  br i1 %some, label %loop, label %exit",
                "loop:",
                "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
                f"  call void @{self.body}(ptr %slots)",
                *advance,
                "  %next = add nuw nsw i64 %i, 1",
                "  %more = icmp slt i64 %next, %n",
                "  br i1 %more, label %loop, label %exit",
                "exit:",
                *["  call void @restore(i32 %modes)"] * self.flushes,
                "  ret void",
                "}",
            ]
        )


def overlap_groups(buffers: Iterable[Buffer]) -> tuple[dict[Buffer, int], frozenset[int]]:
    """(group of each buffer that all kernels see, groups of one buffer).

    Two buffers of different groups never share memory: inputs and outputs are separate, arena buffers are in
    one group with all whose bytes they overlap, directly or through others.
    """
    groups: dict[Buffer, int] = {}
    count: dict[int, int] = {}
    numbers = itertools.count(1)
    arena: list[Buffer] = []
    for b in buffers:
        if b in groups or b.space in ("local", "register", "shared", "const"):
            continue
        if b.space == "arena":
            groups[b] = 0
            arena.append(b)
        else:
            g = groups[b] = next(numbers)
            count[g] = 1
    end, g = -1, 0
    for b in sorted(arena, key=lambda b: b.offset):
        if b.offset >= end:
            g = next(numbers)
        end = max(end, b.offset + b.nbytes)
        groups[b] = g
        count[g] = count.get(g, 0) + 1
    return groups, frozenset(g for g, n in count.items() if n == 1)


def _alignment(b: Buffer) -> int:
    """What is known of the address of a buffer's own memory."""
    return 64 if b.space == "arena" else b.dtype.itemsize


def _described(kernel: Kernel, text: str) -> str:
    """A function under comments that say what it computes."""
    lines = [f"; {_plain_line(kernel.comment)}"] if kernel.comment else []
    if kernel.locs:
        lines.append("; " + _plain_line(", ".join(map(str, kernel.locs))))
    return "\n".join([*lines, text])


def _plain(name: str) -> str:
    """Letters LLVM takes in a name."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)


def _plain_line(text: str) -> str:
    return " ".join(text.split())
