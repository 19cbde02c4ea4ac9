"""The loop IR as text: `print_program`, `print_expr` and `parse_program`. print(parse(text)) == text.

    program step {
      input x: f32[100,3]
      output y: f32[100]
      arena t0: f32[100] @ 0
      const c0: f32[2] = 0000803f00000040
      returns y
      updates x
      kernel k0 "sum+relu" model.py:7 flops=300 bytes=1600 {
        for i in 100 step 16 parallel {
          for l in 16 vector {
            let a: f32 = x[3*i + l ? i + l < 100 : f32:0.0]
            t0[i + l] = maximum(a, f32:0.0) if i + l < 100
          }
        }
      }
      repeat t in 50 rotate (h, h_new) {
        kernel k1 ...
      }
    }

Around kernels there may be `repeat t in 50 reverse rotate (a, b) { }`, `while done most 10 rotate (a, b)
gives (r, a) { test } do { body }` and `branch c { } else { }` (see ir/loops.py). Literals carry their dtype
(`f32:0.5`), bare integers are i64. `f32(e)` converts, `bits.u32(e)` reinterprets, `reduce.add(l in 16: e)`
combines lanes, `warp.add(e)` the threads of a GPU warp. `copy s[i] = x[j]` is a copy made ahead, which
`barrier copies` waits for (`barrier copies 1` not for the last `batch`), `mma.tf32 c[i], a[j], b[k]` a
product of small matrices by a warp, whose shares `matrices.x4 a[i] = s[j]` loads (`t4`: turned). Used by
dumps, the CLI and tests.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from . import dtypes
from .expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var, WarpReduce
from .late import late as _late
from .loops import (
    LOOP_KINDS,
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
    Rotation,
    Step,
    Stmt,
    Store,
    While,
    WhileStep,
    control_buffers,
    expressions,
    statements,
    walk_steps,
)

if TYPE_CHECKING:
    from .loop_parser import parse_program
else:
    __getattr__, __dir__ = _late(globals(), {".loop_parser": "parse_program"})

__all__ = ["parse_program", "print_expr", "print_program", "used_buffers"]

#: binary primitives with an infix form: name -> (symbol, precedence)
INFIX = {
    "or_": ("|", 1), "xor": ("^", 2), "and_": ("&", 3),
    "eq": ("==", 4), "ne": ("!=", 4), "lt": ("<", 4), "le": ("<=", 4), "gt": (">", 4), "ge": (">=", 4),
    "shl": ("<<", 5), "shr": (">>", 5), "add": ("+", 6), "sub": ("-", 6),
    "mul": ("*", 7), "div": ("/", 7), "floordiv": ("//", 7), "mod": ("%", 7),
}  # fmt: skip
#: precedence of unary minus and ~, above every infix operator
_UNARY = 8


# --- printing -----------------------------------------------------------------------------------------------


class _Names:
    """Unique names of loop variables, locals and buffers."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self.taken: set[str] = set()
        self.keep: list[Any] = []

    def get(self, x: Var | Local | Buffer) -> str:
        name = self.of.get(id(x))
        return name if name is not None else self.define(x)

    def define(self, x: Var | Local | Buffer) -> str:
        base = re.sub(r"\W", "_", x.name) or "v"
        if base[0].isdigit() or base in _RESERVED:
            base = "_" + base
        name, n = base, 1
        while name in self.taken:
            name, n = f"{base}_{n}", n + 1
        self.taken.add(name)
        self.of[id(x)] = name
        self.keep.append(x)
        return name


_RESERVED = {
    "for", "in", "step", "let", "if", "while", "alloc", "barrier", "true", "false", "kernel", "program",
    "reduce", "warp", "bits", "returns", "updates", "flushes", *dtypes.BY_NAME, *LOOP_KINDS, *SPACES,
}  # fmt: skip


def _literal(c: Const) -> str:
    if c.dtype is dtypes.int64:
        return str(int(c.value))
    if c.dtype.kind == "b":
        return "true" if c.value else "false"
    if c.dtype.kind == "f":
        v = float(c.value)
        return f"{c.dtype.name}:{'nan' if math.isnan(v) else repr(v)}"
    return f"{c.dtype.name}:{int(c.value)}"


def _expr(e: Expr, names: _Names, level: int = 0) -> str:
    if isinstance(e, Const):
        text = _literal(e)
        return f"({text})" if level > 7 and text.startswith("-") else text
    if isinstance(e, (Var, Local)):
        return names.get(e)
    if isinstance(e, Load):
        index = ", ".join(_expr(i, names) for i in e.index)
        if e.mask is None:
            return f"{names.get(e.buffer)}[{index}]"
        other = e.other if e.other is not None else Const(0, e.dtype)
        return f"{names.get(e.buffer)}[{index} ? {_expr(e.mask, names)} : {_expr(other, names)}]"
    if isinstance(e, Cast):
        return f"{'bits.' if e.bits else ''}{e.dtype.name}({_expr(e.x, names)})"
    if isinstance(e, LaneReduce):
        inner = names.define(e.var) if id(e.var) not in names.of else names.get(e.var)
        return f"reduce.{e.name}({inner} in {e.var.extent}: {_expr(e.x, names)})"
    if isinstance(e, WarpReduce):
        return f"warp.{e.name}({_expr(e.x, names)})"
    assert isinstance(e, Prim), type(e)
    if e.name in INFIX:
        symbol, mine = INFIX[e.name]
        a, b = e.args
        if e.name == "mul" and e.dtype is dtypes.int64 and isinstance(b, Const) and not isinstance(a, Const):
            a, b = b, a
        # Comparisons do not chain: both sides bind tighter.
        left = _expr(a, names, mine + 1 if mine == 4 else mine)
        text = (
            f"{left} {symbol} {_expr(b, names, mine + 1)}"
            if mine < 7 or symbol != "*"
            else (f"{left}*{_expr(b, names, mine + 1)}")
        )
        return f"({text})" if mine < level else text
    if e.name in ("neg", "not_"):
        text = f"{'-' if e.name == 'neg' else '~'}{_expr(e.args[0], names, _UNARY + 1)}"
        return f"({text})" if level > _UNARY else text
    return f"{e.name}({', '.join(_expr(a, names) for a in e.args)})"


def print_expr(e: Expr) -> str:
    """One expression; variables by their own names."""
    return _expr(e, _Names())


def _buffer_line(b: Buffer, names: _Names) -> str:
    text = f"{b.space} {names.get(b)}: {b.type}"
    if b.space == "arena":
        text += f" @ {b.offset}"
    if b.space == "const":
        text += f" = {b.data.hex() or 'empty'}"
    return text


def _block(body: list[Stmt], names: _Names, indent: str, out: list[str]) -> None:
    for s in body:
        if isinstance(s, For):
            step = f" step {s.step}" if s.step != 1 else ""
            out.append(f"{indent}for {names.define(s.var)} in {s.extent}{step} {s.kind} {{")
        elif isinstance(s, Store):
            index = ", ".join(_expr(i, names) for i in s.index)
            mask = f" if {_expr(s.mask, names)}" if s.mask is not None else ""
            ahead = "copy " if s.ahead else ""
            out.append(f"{indent}{ahead}{names.get(s.buffer)}[{index}] = {_expr(s.value, names)}{mask}")
        elif isinstance(s, Let):
            value = _expr(s.value, names)
            out.append(f"{indent}let {names.define(s.local)}: {s.local.dtype.name} = {value}")
        elif isinstance(s, Alloc):
            out.append(f"{indent}alloc {s.buffer.space} {names.define(s.buffer)}: {s.buffer.type}")
        elif isinstance(s, If):
            out.append(f"{indent}if {_expr(s.cond, names)} {{")
        elif isinstance(s, While):
            out.append(f"{indent}while {_expr(s.cond, names)} {{")
        elif isinstance(s, Barrier):
            left = f" {s.left}" if s.left else ""
            out.append(f"{indent}barrier{' copies' * s.copies}{left}")
        elif isinstance(s, Batch):
            out.append(f"{indent}batch")
        elif isinstance(s, Matrices):
            parts = ((s.to, s.to_at), (s.source, s.source_at))
            shown = " = ".join(f"{names.get(b)}[{_expr(at, names)}]" for b, at in parts)
            out.append(f"{indent}matrices.{'t' if s.turned else 'x'}{s.count} {shown}")
        elif isinstance(s, Prefetch):
            index = ", ".join(_expr(i, names) for i in s.index)
            out.append(f"{indent}prefetch {'write ' * s.write}{names.get(s.buffer)}[{index}]")
        elif isinstance(s, Mma):
            parts = ((s.sums, s.sums_at), (s.a, s.a_at), (s.b, s.b_at))
            shown = ", ".join(f"{names.get(b)}[{_expr(at, names)}]" for b, at in parts)
            out.append(f"{indent}mma.{s.kind} {shown}")
        else:
            raise TypeError(f"unknown statement {type(s).__name__}")
        if isinstance(s, (For, If, While)):
            _block(s.body, names, indent + "  ", out)
            out.append(f"{indent}}}")


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def print_program(program: LoopProgram) -> str:
    """The whole program; ends with a newline."""
    names = _Names()
    out = [f"program {_quote(program.name)} {{"]
    listed: set[int] = set()
    for b in [*program.inputs, *program.outputs, *program.temps]:
        if id(b) not in listed:
            listed.add(id(b))
            names.define(b)
            out.append("  " + _buffer_line(b, names))
    for b in used_buffers(program):  # hand-made programs may not list their constants
        if id(b) not in listed and b.space in ("arena", "const"):
            listed.add(id(b))
            names.define(b)
            out.append("  " + _buffer_line(b, names))
    if program.outputs:
        out.append("  returns " + ", ".join(names.get(b) for b in program.outputs))
    if program.updated:
        out.append("  updates " + ", ".join(names.get(b) for b in program.updated))
    if program.arena_bytes:
        out.append(f"  arena_bytes {program.arena_bytes}")
    if program.flushes:
        out.append("  flushes")
    _steps(program.steps, names, "  ", out)
    out.append("}")
    return "\n".join(out) + "\n"


def _steps(steps: list[Step], names: _Names, indent: str, out: list[str]) -> None:
    inner = indent + "  "
    for s in steps:
        outside = set(names.taken)
        if isinstance(s, Kernel):
            locs = "".join(f" {_quote(str(loc))}" for loc in s.locs)
            cost = f"flops={s.flops} bytes={s.bytes_moved}"
            out.append(f"{indent}kernel {_quote(s.name)} {_quote(s.comment)}{locs} {cost} {{")
            _block(s.body, names, inner, out)
        elif isinstance(s, Repeat):
            reverse = " reverse" if s.reverse else ""
            head = f"repeat {names.define(s.var)} in {s.extent}{reverse}"
            out.append(f"{indent}{head}{_tuples('rotate', s.rotate, names)} {{")
            _steps(s.body, names, inner, out)
        elif isinstance(s, WhileStep):
            most = "" if s.most is None else f" most {s.most}"
            turns = _tuples("rotate", s.rotate, names) + _tuples("gives", s.results, names)
            out.append(f"{indent}while {names.get(s.cond)}{most}{turns} {{")
            _steps(s.test, names, inner, out)
            out.append(f"{indent}}} do {{")
            _steps(s.body, names, inner, out)
        else:
            assert isinstance(s, Branch), type(s)
            out.append(f"{indent}branch {names.get(s.cond)} {{")
            _steps(s.then, names, inner, out)
            out.append(f"{indent}}} else {{")
            _steps(s.other, names, inner, out)
        names.taken = outside  # names are free again after the step
        out.append(f"{indent}}}")


def _tuples(word: str, tuples: tuple[Rotation, ...], names: _Names) -> str:
    return "".join(f" {word} ({', '.join(map(names.get, t))})" for t in tuples)


def used_buffers(program: LoopProgram) -> list[Buffer]:
    """Every buffer that a step touches, in order of first use."""
    seen: dict[int, Buffer] = {}
    done: set[int] = set()
    for step in walk_steps(program.steps):
        for b in control_buffers(step):
            seen.setdefault(id(b), b)
        for s in statements(step.body) if isinstance(step, Kernel) else ():
            if isinstance(s, Store):
                seen.setdefault(id(s.buffer), s.buffer)
            stack = list(expressions(s))
            while stack:
                x = stack.pop()
                if id(x) in done:
                    continue
                done.add(id(x))
                if isinstance(x, Load):
                    seen.setdefault(id(x.buffer), x.buffer)
                stack.extend(x.args)
    return list(seen.values())
