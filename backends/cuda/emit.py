"""A loop program as one CUDA translation unit: `emit(program) -> CudaUnit`. Called by the runtime, by export
and by tests.

    unit = emit(program)
    unit.text            // the .cu file: helpers, constants, kernels, extern "C" int <name>(buffers, ...)

The text needs nothing but CUDA's own headers and compiles with nvcc, with NVRTC (which leaves out the host
part) and, under emulate.h, with g++. It is a function of the program alone.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence

import numpy as np

from ...ir.dataclass import dataclass, field
from ...ir.expr import Load, Var, walk
from ...ir.graph import Location
from ...ir.loop_text import used_buffers
from ...ir.loops import Buffer, Kernel, LoopProgram, expressions, statements
from .emit_host import HostWriter
from .emit_kernel import Emitted, KernelWriter
from .emit_math import HELPERS
from .emit_names import EmitError, Names
from .emit_text import UnitState

_LAUNCH = """
#ifndef LAUNCH
#define LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif"""
_LAUNCH_SHARED = """
#ifndef LAUNCH_SHARED  // with more shared memory than a block has without asking
#define LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \\
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); \\
  kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__)
#endif"""


@dataclass
class Launch:
    """One kernel of a program as a function and its arguments (buffers, and variables of loops around it)."""

    function: Emitted
    arguments: list[Buffer | Var]


@dataclass
class CudaUnit:
    """A translation unit.

    Attributes:
        text: the .cu file.
        programs: what it was made from; `entries` are the names of their host functions.
        launches: how each kernel of theirs is launched.
        functions: the `__global__` functions, in order.
        slots: of each program, the names of its inputs, then outputs.
        device_text: the part that NVRTC compiles.
        workspaces: of each program, the name of the constant that is its workspace's size.
    """

    text: str
    device_text: str
    programs: list[LoopProgram]
    entries: list[str]
    launches: dict[Kernel, Launch] = field(default_factory=dict)
    functions: list[Emitted] = field(default_factory=list)
    slots: list[list[str]] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=list)


def emit(program: LoopProgram | Sequence[LoopProgram], title: str = "") -> CudaUnit:
    """The CUDA text of one program, or of several that share a unit.

    :raises EmitError: a kernel that has no CUDA form, by name.
    """
    programs = [program] if isinstance(program, LoopProgram) else list(program)
    return _Unit(programs, title).write()


class _Unit:
    def __init__(self, programs: list[LoopProgram], title: str) -> None:
        self.programs = programs
        self.title = title
        self.state = UnitState()
        self.names = Names()
        self.entries = [self.names.fresh(f"run_{p.name}") for p in programs]
        self.workspaces = [self.names.fresh(f"{entry}_workspace") for entry in self.entries]
        self.launches: dict[Kernel, Launch] = {}
        self.functions: list[Emitted] = []
        self.made: dict[object, tuple[Emitted, list[Buffer | Var]]] = {}  # by neutral text and grid
        self.constants: list[str] = []

    def write(self) -> CudaUnit:
        bodies: list[str] = []
        hosts: list[str] = []
        slots: list[list[str]] = []
        for p, entry, workspace in zip(self.programs, self.entries, self.workspaces):
            inner = Names(self.names)
            self._constants(p, inner)
            for b in (*p.inputs, *p.outputs, *used_buffers(p)):
                if b.space in ("input", "output", "arena"):
                    inner.get(b)
            for k in p.kernels:
                bodies += self._kernel(k, inner, p)
            slots.append([inner.get(b) for b in (*p.inputs, *p.outputs)])
            hosts.append(HostWriter(p, entry, workspace, inner, self.state, self.launches).write())
        helpers = [
            text.lstrip("\n") + ("" if text.startswith("#") else "\n")
            for name, text in HELPERS.items()
            if name in self.state.needs
        ]
        helpers += [text.lstrip("\n") + "\n" for text in self.state.warps.values()]
        includes = []
        if self.state.half:
            includes.append("#include <cuda_fp16.h>")
        if self.state.bfloat:
            includes.append("#include <cuda_bf16.h>")
        device = "\n".join([*includes, *([""] if includes else []), *helpers, *self.constants, *bodies])
        head = self._head()
        launch = _LAUNCH + (_LAUNCH_SHARED if any(f.dynamic_bytes for f in self.functions) else "")
        host = "\n".join(
            ["#ifndef __CUDACC_RTC__  // the host part", launch.lstrip("\n"), "", *hosts, "#endif"]
        )
        return CudaUnit(
            f"{head}\n{device}\n{host}\n", device + "\n", self.programs, self.entries, self.launches,
            self.functions, slots, self.workspaces,
        )  # fmt: skip

    def _head(self) -> str:
        names = ", ".join(self.title or p.name for p in self.programs[:4])
        more = "" if len(self.programs) < 5 else f" and {len(self.programs) - 4} more"
        count = len(self.functions)
        return f"// {names}{more}: {count} kernel{'s' * (count != 1)}, written by Tracegrad.\n"

    # --- kernels --------------------------------------------------------------------------------------------

    def _kernel(self, k: Kernel, names: Names, p: LoopProgram) -> list[str]:
        """The definition, unless an equal kernel is there already: then that is launched again."""
        try:
            return self._written(k, names)
        except EmitError as e:
            lines = ", ".join(map(str, k.locs[:3]))
            raise EmitError(f"{k.comment or k.name}{f' at {lines}' if lines else ''}: {e}") from None

    def _written(self, k: Kernel, names: Names) -> list[str]:
        neutral = _Numbers()
        neutral.of.update((b, names.get(b)) for b in _const_buffers([k]))
        writer = KernelWriter(self.state, neutral, k, "k")
        own = writer.free
        for x in own:
            neutral.get(x)
        sketch = writer.write()
        key = sketch.text, sketch.grid, tuple(x.nbytes if isinstance(x, Buffer) else x.extent for x in own)
        known = self.made.get(key)
        if known is not None:
            function, theirs = known
            mine = dict(zip(theirs, own))
            self.launches[k] = Launch(function, [mine[x] for x in function.parameters])
            return []
        name = self.names.fresh(k.name or f"k{len(self.functions)}")
        names.taken.add(name)
        emitted = KernelWriter(self.state, Names(names), k, name).write()
        self.made[key] = emitted, own
        self.functions.append(emitted)
        self.launches[k] = Launch(emitted, emitted.parameters)
        return [self._comment(k), emitted.text, ""]

    def _comment(self, k: Kernel) -> str:
        lines = [f"// {k.comment}"] if k.comment else []
        lines += [f"//   {_shown(loc)}" for loc in k.locs[:6]]
        if len(k.locs) > 6:
            lines.append(f"//   and {len(k.locs) - 6} more lines")
        return "\n".join(lines) if lines else f"// {k.name}"

    # --- constants ------------------------------------------------------------------------------------------

    def _constants(self, p: LoopProgram, names: Names) -> None:
        """Arrays of baked data. What has no literal (halves, infinities) is written as bits."""
        for b in _const_buffers(p.kernels):
            self.names.taken.add(names.define(b, b.name))
            c = self.state.c_type(b.dtype)
            data = np.frombuffer(b.data, b.dtype.numpy)
            exact = b.dtype.kind != "f" or (b.dtype.bits > 16 and bool(np.isfinite(data).all()))
            name = names.get(b)
            if exact:
                self.constants.append(
                    _array(c, name, [self.state.literal(v, b.dtype) for v in data.tolist()])
                )
                continue
            bits = {16: "unsigned short", 32: "unsigned int", 64: "unsigned long long"}[b.dtype.bits]
            raw = np.frombuffer(b.data, f"u{b.dtype.itemsize}")
            suffix = {16: "", 32: "u", 64: "ull"}[b.dtype.bits]
            whole = self.names.fresh(f"{name}_bits")
            names.taken.add(whole)
            self.constants.append(_array(bits, whole, [f"0x{v:x}{suffix}" for v in raw.tolist()]))
            names.of[b] = f"reinterpret_cast<const {c}*>({whole})"


def _array(c: str, name: str, values: list[str]) -> str:
    lines, line = [], "  "
    for v in values or ["0"]:
        if len(line) + len(v) > 98:
            lines.append(line.rstrip())
            line = "  "
        line += v + ", "
    lines.append(line.rstrip(", "))
    return f"__device__ const {c} {name}[{max(len(values), 1)}] = {{\n" + "\n".join(lines) + "\n};\n"


class _Numbers(Names):
    """Numbers for names: kernels that differ in names alone have one text."""

    def fresh(self, wish: str) -> str:
        name = f"n{len(self.taken)}"
        self.taken.add(name)
        return name


def _const_buffers(kernels: Sequence[Kernel]) -> list[Buffer]:
    found: dict[Buffer, None] = {}
    for k in kernels:
        for s in statements(k.body):
            for root in expressions(s):
                for e in walk(root):
                    if isinstance(e, Load) and e.buffer.space == "const":
                        found.setdefault(e.buffer)
    return list(found)


def _shown(loc: Location) -> str:
    """A line of the user's program, with its text where the file is still there."""
    source = linecache.getline(loc.file, loc.line).strip()
    source = source.replace("\\", "/")  # a backslash at the end would continue the comment
    return f"{loc}" + (f"  {source[:90]}" if source else "")
