"""The host part of a unit: an `extern "C"` function that launches a program's kernels in order. Used by emit.

Control flow around kernels becomes C++ control flow: counted loops, loops and branches on a bool that is read
back from the device (they wait for the stream), buffers that change places by swapping pointers.
"""

from __future__ import annotations

import itertools

from ...ir.expr import Var
from ...ir.loop_text import used_buffers
from ...ir.loops import (
    Branch,
    Buffer,
    Kernel,
    LoopProgram,
    Repeat,
    Rotation,
    Step,
    WhileStep,
    control_buffers,
    walk_steps,
)
from .emit_names import EmitError, Names
from .emit_text import UnitState


class HostWriter:
    """Writes the entry of one program."""

    def __init__(
        self, program: LoopProgram, entry: str, workspace: str, names: Names, unit: UnitState, launches: dict
    ) -> None:
        self.program = program
        self.entry = entry
        self.workspace = workspace
        self.names = Names(names)
        self.unit = unit
        self.launches = launches
        self.lines: list[str] = []
        self.pad = "  "

    def write(self) -> str:
        """Its text."""
        p = self.program
        slots: dict[Buffer, int] = {}
        extra: list[tuple[int, Buffer]] = []
        for i, b in enumerate([*p.inputs, *p.outputs]):
            if b in slots:
                extra.append((i, b))
            else:
                slots[b] = i
        self._all_written(p)
        passed = self._passed()
        used = {*passed, *(b for _, b in extra)}
        arena = [b for b in passed if b.space == "arena"]
        rotated = {
            b for s in walk_steps(p.steps) if isinstance(s, (Repeat, WhileStep)) for r in s.rotate for b in r
        }
        self._describe(slots, extra)
        self.line(
            f'extern "C" int {self.entry}(void* const* buffers, void* workspace, cudaStream_t stream) {{'
        )
        written = self._written()
        rows: list[tuple[str, str]] = []
        for b, i in slots.items():
            if b in used and b.size:
                rows.append((self._pointer(b, f"buffers[{i}]", written, rotated), f"{b.type}"))
        if not slots or not rows:
            self.line("(void)buffers;")
        if arena:
            self.line("char* const arena = static_cast<char*>(workspace);")
        else:
            self.line("(void)workspace;")
        for b in arena:
            rows.append(
                (
                    self._pointer(b, f"arena + {b.offset}" if b.offset else "arena", written, rotated),
                    f"{b.type}",
                )
            )
        width = min(max((len(a) for a, _ in rows), default=0), 84)
        for text, note in rows:
            self.line(f"{text:<{width}}  // {note}")
        if rows:
            self.lines.append("")
        self.steps(p.steps)
        for i, b in extra:
            if b.nbytes:
                self.copy(f"buffers[{i}]", self.names.get(b), b.nbytes)
        if not any(isinstance(s, Kernel) for s in walk_steps(p.steps)) and not extra:
            self.line("(void)stream;")
        self.line("return static_cast<int>(cudaGetLastError());")
        self.lines.append("}\n")
        head = self.lines[: self._body_at]
        body = self.lines[self._body_at :]
        return "\n".join([line[2:] if line.startswith("  ") else line for line in head] + body)

    _body_at = 0

    def _passed(self) -> list[Buffer]:
        """What is passed to kernels, or named by control flow: kernels may do without a buffer that the
        schedule has them load."""
        found: dict[Buffer, None] = {}
        for s in walk_steps(self.program.steps):
            for b in self.launches[s].arguments if isinstance(s, Kernel) else control_buffers(s):
                if isinstance(b, Buffer):
                    found.setdefault(b)
        return [b for b in used_buffers(self.program) if b in found]

    def _all_written(self, p: LoopProgram) -> None:
        for s in walk_steps(p.steps):
            if not isinstance(s, Kernel):
                continue
            if s not in self.launches:
                raise EmitError(f"kernel {s.name} was not written")

    def _describe(self, slots: dict[Buffer, int], extra: list[tuple[int, Buffer]]) -> None:
        """The size of the workspace as a constant, and a comment that says what to pass."""
        p = self.program
        updated = set(p.updated)
        self.line(f'extern "C" {{ extern const unsigned long long {self.workspace}; }}')
        self.line(f"const unsigned long long {self.workspace} = {p.arena_bytes}ull;  // bytes")
        self.lines.append("")
        self.line(f"// Runs {p.name} once. buffers: device addresses, 16-byte aligned, of")
        for i, b in enumerate([*p.inputs, *p.outputs]):
            if i >= 200:
                self.line(f"//   and {len(p.inputs) + len(p.outputs) - i} more")
                break
            what = "in" if i < len(p.inputs) else "out"
            what = "in, out" if b in updated else what
            self.line(f"//   [{i}] {self.names.get(b)}: {b.type} {what}")
        self.line(f"// workspace: {self.workspace} bytes, 256-byte aligned. Gives a cudaError_t.")
        self._body_at = len(self.lines) + 1

    def _written(self) -> set[Buffer]:
        out: set[Buffer] = set()
        for launch in self.launches.values():
            out |= {
                b for b, w in zip(launch.arguments, launch.function.written) if w and isinstance(b, Buffer)
            }
        for s in walk_steps(self.program.steps):
            if isinstance(s, WhileStep):
                out |= {target for target, _ in s.results}
        return out

    def _pointer(self, b: Buffer, source: str, written: set[Buffer], rotated: set[Buffer]) -> str:
        c = self.unit.c_type(b.dtype)
        const = "const " if b not in written and b not in rotated else ""
        cast = "reinterpret_cast" if source.startswith("arena") else "static_cast"
        fixed = "" if b in rotated else " const"
        return f"{const}{c}*{fixed} {self.names.get(b)} = {cast}<{const}{c}*>({source});"

    def line(self, text: str) -> None:
        self.lines.append(self.pad + text)

    # --- steps ----------------------------------------------------------------------------------------------

    def steps(self, steps: list[Step]) -> None:
        """Steps in order."""
        for s in steps:
            if isinstance(s, Kernel):
                self.launch(s)
            elif isinstance(s, Repeat):
                self.repeat(s)
            elif isinstance(s, WhileStep):
                self.loop(s)
            else:
                assert isinstance(s, Branch), type(s)
                taken = self.condition(s.cond)
                self.open(f"if ({taken})")
                self.steps(s.then)
                if s.other:
                    self.pad = self.pad[:-2]
                    self.open("} else")
                    self.steps(s.other)
                self.close()

    def launch(self, k: Kernel) -> None:
        """One kernel on the stream."""
        made = self.launches[k]
        f = made.function
        if 0 in f.grid:
            return
        arguments = [
            "nullptr" if isinstance(x, Buffer) and not x.size else self.names.get(x) for x in made.arguments
        ]
        text = f"LAUNCH({f.name}, {_dim3(f.grid)}, {_dim3(f.block)}, stream"
        if f.dynamic_bytes:
            text = f"LAUNCH_SHARED({f.name}, {_dim3(f.grid)}, {_dim3(f.block)}, {f.dynamic_bytes}, stream"
        line = self.pad + text
        for a in arguments:
            if len(line) + len(a) > 100:
                self.lines.append(line + ",")
                line = self.pad + " " * 7 + a
            else:
                line += f", {a}"
        self.lines.append(line + ");")

    def open(self, head: str) -> None:
        self.line(f"{head} {{")
        self.pad += "  "

    def close(self) -> None:
        self.pad = self.pad[:-2]
        self.line("}")

    def repeat(self, s: Repeat) -> None:
        """A counted loop."""
        if s.extent < 1:
            return
        own = self.keep(s.rotate)
        var = self.variable(s.var)
        kind = "int" if s.extent < 1 << 31 else "long long"
        if s.reverse:
            self.open(f"for ({kind} {var} = {s.extent - 1}; {var} >= 0; --{var})")
        else:
            self.open(f"for ({kind} {var} = 0; {var} < {s.extent}; ++{var})")
        self.steps(s.body)
        self.rotate(s.rotate)
        self.close()
        self.restore(own)

    def variable(self, v: Var) -> str:
        return self.names.get(v)

    def loop(self, s: WhileStep) -> None:
        """Tests, then the body, until the test fails."""
        own = self.keep(s.rotate)
        trips = self.names.fresh("trips") if s.most is not None else ""
        if trips:
            self.open(f"for (long long {trips} = 0;; ++{trips})")
        else:
            self.open("for (;;)")
        self.steps(s.test)
        more = self.condition(s.cond)
        self.line(f"if (!{more}{f' || {trips} == {s.most}' if trips else ''}) break;")
        self.steps(s.body)
        self.rotate(s.rotate)
        self.close()
        for target, name in s.results:
            if target.nbytes and target is not name:
                self.copy(self.names.get(target), self.names.get(name), name.nbytes)
        self.restore(own)

    def condition(self, cond: Buffer) -> str:
        """A bool of the device, read when everything before it is done."""
        name = self.names.fresh(f"{cond.name}_now")
        self.line(f"bool {name} = false;")
        self.line(
            f"cudaMemcpyAsync(&{name}, {self.names.get(cond)}, sizeof({name}), cudaMemcpyDeviceToHost, "
            f"stream);"
        )
        self.line("cudaStreamSynchronize(stream);")
        return name

    def copy(self, target: str, source: str, nbytes: int) -> None:
        self.line(f"cudaMemcpyAsync({target}, {source}, {nbytes}, cudaMemcpyDeviceToDevice, stream);")

    # --- buffers that change places -------------------------------------------------------------------------

    def keep(self, rotations: tuple[Rotation, ...]) -> list[tuple[str, str]]:
        """Remembers where the rotated names point."""
        own = []
        for names in rotations:
            for b in names:
                saved = self.names.fresh(f"{b.name}_own")
                self.line(f"{self.unit.c_type(b.dtype)}* const {saved} = {self.names.get(b)};")
                own.append((self.names.get(b), saved))
        return own

    def rotate(self, rotations: tuple[Rotation, ...]) -> None:
        """Each name takes the place of the next, the last that of the first."""
        for names in rotations:
            texts = [self.names.get(b) for b in names]
            first = self.names.fresh(f"{names[0].name}_first")
            self.line(f"{self.unit.c_type(names[0].dtype)}* const {first} = {texts[0]};")
            for a, b in itertools.pairwise(texts):
                self.line(f"{a} = {b};")
            self.line(f"{texts[-1]} = {first};")

    def restore(self, own: list[tuple[str, str]]) -> None:
        for name, saved in own:
            self.line(f"{name} = {saved};")


def _dim3(sizes: tuple[int, int, int]) -> str:
    n = 3 if sizes[2] > 1 else 2 if sizes[1] > 1 else 1
    return f"dim3({', '.join(map(str, sizes[:n]))})"
