"""Runs a LoopProgram with NumPy, slowly: `run_program(program, arrays)`. The reference that code generators
are held to, and the way to tell a wrong schedule from wrong machine code.

Kernels are translated to Python source, one line or so per statement. A `vector` loop's variable is the array
of its lanes, so statements run as they would in SIMD registers. Every access is checked against its buffer's
bounds; arena buffers really share one block of memory, so a bad memory plan gives wrong results here too.
Kernels for GPUs run in ir/grid_interpreter.py, which also finds races.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import dtypes
from .dtypes import DType
from .expr import Cast, Const, Expr, LaneReduce, Load, Local, Prim, Var
from .grid_interpreter import run_grid
from .loops import (
    Alloc,
    Barrier,
    Branch,
    Buffer,
    For,
    If,
    Kernel,
    Let,
    LoopProgram,
    Prefetch,
    Repeat,
    Rotation,
    Step,
    Stmt,
    Store,
    While,
    WhileStep,
    expressions,
    grid_of,
)
from .scalar import NUMPY_SCALAR, PRIMITIVES, numpy_cast

#: primitives that Python's operators do on index values and NumPy scalars alike
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "and_": "&", "or_": "|", "xor": "^"}


def run_program(
    program: LoopProgram, arrays: Sequence[np.ndarray], *, reverse_parallel: bool = False
) -> list[np.ndarray]:
    """Outputs of the program on `arrays`, one per input.

    Inputs in `program.updated` are overwritten in place, so they must be writable, C-contiguous arrays of the
    right dtype. With `reverse_parallel`, parallel loops run backwards: a correct program gives the same
    result.

    :raises ValueError: arrays that do not fit the inputs. :raises IndexError: an access outside a buffer.
    """
    if len(arrays) != len(program.inputs):
        raise ValueError(f"{program.name} takes {len(program.inputs)} arrays, given {len(arrays)}")
    memory: dict[int, np.ndarray] = {}
    for b, a in zip(program.inputs, arrays):
        if a.dtype != b.dtype.numpy or tuple(a.shape) != b.shape:
            raise ValueError(f"input {b.name} takes {b.type}, given {a.dtype}{list(a.shape)}")
        if any(b is u for u in program.updated) and not (a.flags.c_contiguous and a.flags.writeable):
            raise ValueError(f"input {b.name} is updated in place: its array must be contiguous and writable")
        memory[id(b)] = np.ascontiguousarray(a).reshape(-1)
    for b in program.outputs:
        if id(b) not in memory:
            memory[id(b)] = np.zeros(b.size, b.dtype.numpy)
    arena = np.zeros(program.arena_bytes, np.uint8)
    arena[:] = 0xA5  # nothing may rely on zeroed memory

    def place(b: Buffer) -> np.ndarray:
        got = memory.get(id(b))
        if got is None:
            if b.space == "const":
                got = np.frombuffer(b.data, b.dtype.numpy)
            elif b.space == "arena":
                if b.offset + b.nbytes > arena.nbytes:
                    raise IndexError(f"arena buffer {b.name} ends past the arena's {arena.nbytes} bytes")
                got = arena[b.offset : b.offset + b.nbytes].view(b.dtype.numpy)
            else:
                raise ValueError(f"buffer {b.name} ({b.space}) is not in scope")
            memory[id(b)] = got
        return got

    with np.errstate(all="ignore"):
        _Runner(memory, place, reverse_parallel).run(program.steps)
    return [memory[id(b)].reshape(b.shape) for b in program.outputs]


class _Runner:
    """Runs steps; each kernel is translated once."""

    def __init__(
        self, memory: dict[int, np.ndarray], place: Callable[[Buffer], np.ndarray], reverse: bool
    ) -> None:
        self.memory = memory
        self.place = place
        self.reverse = reverse
        self.turns: dict[Var, int] = {}
        self.functions: dict[Kernel, tuple[Callable[..., None], list[Buffer], list[Var]]] = {}

    def run(self, steps: list[Step]) -> None:
        for s in steps:
            if isinstance(s, Kernel):
                self.kernel(s)
            elif isinstance(s, Repeat):
                own = self.named(s.rotate)
                for i in reversed(range(s.extent)) if s.reverse else range(s.extent):
                    self.turns[s.var] = i
                    self.run(s.body)
                    self.rotated(s.rotate)
                self.memory.update(own)
            elif isinstance(s, WhileStep):
                self.loop(s)
            else:
                assert isinstance(s, Branch), type(s)
                self.run(s.then if self.place(s.cond)[0] else s.other)

    def kernel(self, k: Kernel) -> None:
        if grid_of(k.body) is not None:
            run_grid(k, self.place, self.turns)
            return
        made = self.functions.get(k)
        if made is None:
            translated = _Translator(self.reverse)
            function = translated.kernel(k, list(self.turns))
            made = self.functions[k] = function, translated.buffers, list(self.turns)
        function, buffers, turns = made
        function(*(self.place(b) for b in buffers), *(self.turns[v] for v in turns))

    def loop(self, s: WhileStep) -> None:
        own = self.named(s.rotate)
        trips = 0
        while True:
            self.run(s.test)
            if not self.place(s.cond)[0] or trips == s.most:
                break
            self.run(s.body)
            self.rotated(s.rotate)
            trips += 1
        results = [(self.place(target), self.place(name).copy()) for target, name in s.results]
        self.memory.update(own)
        for target, value in results:
            target[:] = value

    def named(self, rotations: tuple[Rotation, ...]) -> dict[int, np.ndarray]:
        return {id(b): self.place(b) for names in rotations for b in names}

    def rotated(self, rotations: tuple[Rotation, ...]) -> None:
        for names in rotations:
            held = [self.place(b) for b in names]
            for b, data in zip(names, [*held[1:], held[0]]):
                self.memory[id(b)] = data


# --- what the generated source calls ------------------------------------------------------------------------


def _check(index: Any, name: str, size: int, mask: Any = True) -> Any:
    bad = np.logical_and((np.asarray(index) < 0) | (np.asarray(index) >= size), mask)
    if np.any(bad):
        raise IndexError(f"index {index} is outside {name} of {size} elements")
    return index


def _load(data: np.ndarray, index: Any, mask: Any, other: Any, name: str) -> Any:
    _check(index, name, data.size, mask)
    if data.size == 0:
        return other
    values = data[np.where(mask, index, 0)]
    return np.where(mask, values, other).astype(data.dtype)[()]


def _store(data: np.ndarray, index: Any, value: Any, mask: Any, name: str) -> None:
    _check(index, name, data.size, mask)
    index, value, mask = np.broadcast_arrays(index, value, mask)
    data[index[mask]] = value[mask]


def _distinct(data: np.ndarray, index: Any, value: Any, name: str) -> None:
    _check(index, name, data.size)
    data[index] = value


def _cast(x: Any, dtype: DType) -> Any:
    return numpy_cast(np.asarray(x), dtype)[()]


def _bits(x: Any, dtype: DType) -> Any:
    return NUMPY_SCALAR.bitcast(np.asarray(x), dtype)[()]


def _prim(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return np.asarray(NUMPY_SCALAR.prim(name, *(np.asarray(a) for a in args)))[()]

    return call


def _lanes(name: str, x: Any, n: int) -> Any:
    """Pairwise halving, the order that generated code uses too."""
    values = np.broadcast_to(np.asarray(x), (n,))
    while n > 1:
        n //= 2
        values = np.asarray(NUMPY_SCALAR.prim(name, values[:n], values[n : 2 * n]))
    return values[0]


class _Translator:
    """Python source of one kernel."""

    def __init__(self, reverse_parallel: bool) -> None:
        self.reverse = reverse_parallel
        self.lines: list[str] = []
        self.names: dict[int, str] = {}
        self.keep: list[Any] = []
        self.buffers: list[Buffer] = []
        self.scope: dict[str, Any] = {
            "np": np, "_check": _check, "_load": _load, "_store": _store, "_put": _distinct, "_cast": _cast,
            "_bits": _bits, "_lanes": _lanes,
        }  # fmt: skip
        self.scope.update({f"p_{name}": _prim(name) for name in PRIMITIVES})

    def kernel(self, k: Kernel, turns: list[Var]) -> Callable[..., None]:
        """A function of the buffers it uses (`self.buffers`), then of the variables of the loops around
        it."""
        variables = [self.fresh(v, "i") for v in turns]
        self.block(k.body, "  ")
        params = ", ".join([*(self.names[id(b)] for b in self.buffers), *variables])
        source = "\n".join([f"def run({params}):", *(self.lines or ["  pass"])])
        exec(compile(source, f"<kernel {k.name}>", "exec"), self.scope)
        return self.scope["run"]

    def fresh(self, x: Any, prefix: str) -> str:
        name = f"{prefix}{len(self.keep)}"
        self.names[id(x)] = name
        self.keep.append(x)
        return name

    def shared(self, value: Any) -> str:
        name = f"k{len(self.keep)}"
        self.keep.append(value)
        self.scope[name] = value
        return name

    def buffer(self, b: Buffer) -> str:
        name = self.names.get(id(b))
        if name is None:
            name = self.fresh(b, "b")
            self.buffers.append(b)
        return name

    def block(self, body: list[Stmt], pad: str) -> None:
        if not body:
            self.lines.append(pad + "pass")
        for s in body:
            env = self.common(s, pad)
            if isinstance(s, Let):
                value = self.expr(s.value, env)
                self.lines.append(f"{pad}{self.fresh(s.local, 't')} = {value}")
            elif isinstance(s, Store):
                name, index = self.buffer(s.buffer), self.flat(s.buffer, s.index, env)
                value = self.expr(s.value, env)
                if s.mask is None:
                    self.lines.append(f"{pad}_put({name}, {index}, {value}, {s.buffer.name!r})")
                else:
                    mask = self.expr(s.mask, env)
                    self.lines.append(f"{pad}_store({name}, {index}, {value}, {mask}, {s.buffer.name!r})")
            elif isinstance(s, Alloc):
                dtype = self.shared(s.buffer.dtype.numpy)
                # Filled with a pattern: a read before a write shows.
                line = f"np.full({s.buffer.nbytes}, 0x5A, np.uint8).view({dtype})"
                self.lines.append(f"{pad}{self.fresh(s.buffer, 'b')} = {line}")
            elif isinstance(s, For):
                self.loop(s, pad)
            elif isinstance(s, If):
                self.lines.append(f"{pad}if {self.expr(s.cond, env)}:")
                self.block(s.body, pad + "  ")
            elif isinstance(s, While):
                self.lines.append(f"{pad}while True:")
                inner = self.common(s, pad + "  ")
                self.lines.append(f"{pad}  if not {self.expr(s.cond, inner)}: break")
                self.block(s.body, pad + "  ")
            elif not isinstance(s, (Barrier, Prefetch)):
                raise TypeError(f"unknown statement {type(s).__name__}")

    def loop(self, s: For, pad: str) -> None:
        var = self.fresh(s.var, "i")
        if s.kind == "vector":
            if s.step != 1:
                raise ValueError(f"vector loop over {s.var.name} has step {s.step}")
            self.lines.append(f"{pad}{var} = np.arange({s.extent})")
            self.block(s.body, pad)
            return
        counts = f"range(0, {s.extent}, {s.step})"
        if s.kind == "parallel" and self.reverse:
            counts = f"reversed({counts})"
        self.lines.append(f"{pad}for {var} in {counts}:")
        self.block(s.body, pad + "  ")

    def flat(self, b: Buffer, index: tuple[Expr, ...], env: dict[int, str]) -> str:
        if len(index) == 1:
            return self.expr(index[0], env)
        if len(index) != len(b.shape):
            raise ValueError(f"{b.name} has {len(b.shape)} dimensions, indexed with {len(index)}")
        out = "0"
        for n, i in zip(b.shape, index):
            out = f"({out})*{n} + {self.expr(i, env)}"
        return f"({out})"

    def common(self, s: Stmt, pad: str) -> dict[int, str]:
        """Temporaries for the DAG nodes that a statement uses twice; children come first."""
        env: dict[int, str] = {}
        if isinstance(s, While) and not pad:
            return env
        count: dict[int, int] = {}
        order: list[Expr] = []
        stack: list[tuple[Expr, bool]] = [(e, False) for e in expressions(s)]
        while stack:
            e, visited = stack.pop()
            if visited:
                order.append(e)
                continue
            count[id(e)] = count.get(id(e), 0) + 1
            if count[id(e)] == 1:
                stack.append((e, True))
                if not isinstance(e, LaneReduce):
                    stack.extend((a, False) for a in e.args)
        for e in order:
            if count[id(e)] > 1 and isinstance(e, (Prim, Load, Cast)):
                text = self.expr(e, env)
                name = self.fresh(e, "c")
                self.lines.append(f"{pad}{name} = {text}")
                env[id(e)] = name
        return env

    def expr(self, e: Expr, env: dict[int, str]) -> str:
        got = env.get(id(e))
        if got is not None:
            return got
        if isinstance(e, Const):
            if e.dtype is dtypes.int64:
                return f"({int(e.value)})"
            return self.shared(np.asarray(e.value).astype(e.dtype.numpy)[()])
        if isinstance(e, (Var, Local)):
            return self.names[id(e)]
        if isinstance(e, Load):
            name, index = self.buffer(e.buffer), self.flat(e.buffer, e.index, env)
            if e.mask is not None:
                other = self.expr(e.other if e.other is not None else Const(0, e.dtype), env)
                return f"_load({name}, {index}, {self.expr(e.mask, env)}, {other}, {e.buffer.name!r})"
            return f"{name}[_check({index}, {e.buffer.name!r}, {e.buffer.size})]"
        if isinstance(e, Cast):
            return f"{'_bits' if e.bits else '_cast'}({self.expr(e.x, env)}, {self.shared(e.dtype)})"
        if isinstance(e, LaneReduce):
            var = self.fresh(e.var, "i")
            self.scope[var] = np.arange(e.var.extent)
            return f"_lanes({e.name!r}, {self.expr(e.x, env)}, {e.var.extent})"
        assert isinstance(e, Prim), type(e)
        args = [self.expr(a, env) for a in e.args]
        if e.name in _OPERATORS and e.args[0].dtype.kind != "b":
            return f"({args[0]} {_OPERATORS[e.name]} {args[1]})"
        if (
            e.dtype is dtypes.int64
            and e.name in ("floordiv", "mod")
            and isinstance(e.args[1], Const)
            and e.args[1].value
        ):
            return f"({args[0]} {'//' if e.name == 'floordiv' else '%'} {args[1]})"
        return f"p_{e.name}({', '.join(args)})"
