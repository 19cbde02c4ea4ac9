"""The command line, `tracegrad` or `python -m tracegrad`:

    tracegrad show SCRIPT[:FUNCTION] [--stage STAGE ...] [--html FILE] [-- ARGUMENTS]
    tracegrad run FILE.ir [--input NAME=FILE.npy ...] [--seed N] [--interpret | --compare] [--stage STAGE ...]
    tracegrad env

Exit codes: 0, 1 where a script or a program failed or a comparison found NaN against a number, 2 for wrong
use: no such file, malformed IR, inputs that don't fit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .backends.llvm.cache import default_cache
from .backends.llvm.pool import available_cpus, get_num_threads
from .backends.llvm.target import host_target, llvm
from .ir.errors import ParseError, TracegradError
from .ir.graph import Graph, Value
from .ir.interpreter import evaluate
from .ir.parser import parse_graph
from .ir.verifier import verify
from .runtime.buffers import Buffer, copy_of, from_array
from .runtime.executable import LISTENERS, STAGES, Executable, Lowered
from .runtime.page import write_page
from .runtime.report import size
from .tracer.tensor import concrete


class UserError(Exception):
    """Wrong use; its text is all that is printed.

    Attributes:
        code: exit code.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    rest: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at + 1 :]
    options = _parser().parse_args(words)
    try:
        if rest and options.command is not _show:
            raise UserError("only `show` passes arguments on after `--`")
        options.arguments = rest
        code = options.command(options)
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"tracegrad: {e}", file=sys.stderr)
        return e.code
    except TracegradError as e:
        print(f"tracegrad: error: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tracegrad", description="See and run what Tracegrad compiles.")
    parser.add_argument("--version", action="version", version=f"tracegrad {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def stages(p: argparse.ArgumentParser, what: str) -> None:
        p.add_argument(
            "--stage",
            action="append",
            choices=[*STAGES, "cuda", "all"],
            metavar="STAGE",
            help=f"{what}: {', '.join(STAGES)}, cuda or all (of the CPU); may be repeated",
        )

    show = commands.add_parser(
        "show",
        help="run a script and print what it compiled",
        description="Runs a Python script and prints the stages of every program that was compiled meanwhile."
        " What the script itself prints goes to stderr. Arguments after `--` are the script's.",
    )
    show.add_argument(
        "script", metavar="SCRIPT[:FUNCTION]", help="a Python file, and which compiled function to show"
    )
    stages(show, "stages to print (default optimized)")
    show.add_argument(
        "--html", metavar="FILE", help="write the stages as a page instead, unless --stage is given too"
    )
    show.set_defaults(command=_show)

    run = commands.add_parser(
        "run",
        help="run a program from an IR file",
        description="Parses a graph's text, runs it natively and prints its outputs. Inputs that are not "
        "given are random: normal for floats, small non-negative integers, coin tosses.",
    )
    run.add_argument("file", metavar="FILE.ir", help="a graph as text; - reads stdin")
    run.add_argument(
        "--input", action="append", default=[], metavar="NAME=FILE.npy", help="an input's contents"
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="for random inputs (default 0)")
    how = run.add_mutually_exclusive_group()
    how.add_argument("--interpret", action="store_true", help="run on the NumPy interpreter")
    how.add_argument("--compare", action="store_true", help="run both ways and print the greatest difference")
    stages(run, "stages to print first")
    run.set_defaults(command=_run)

    env = commands.add_parser("env", help="print versions, target, threads and cache")
    env.set_defaults(command=_env)
    return parser


def _chosen(options: argparse.Namespace, default: tuple[str, ...]) -> tuple[str, ...]:
    asked = options.stage or default
    return STAGES if "all" in asked else tuple(dict.fromkeys(asked))


# --- show --------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> int:
    script, function = _split(options.script)
    programs: list[Lowered] = []
    LISTENERS.append(programs.append)
    try:
        failed = _run_script(script, options.arguments)
    finally:
        LISTENERS.remove(programs.append)
    names = list(dict.fromkeys(p.graph.name for p in programs))
    shown = [p for p in programs if function is None or p.graph.name == function]
    if not shown:
        if function is not None and names:
            missing = f"{script} compiled no function {function!r}; it compiled {', '.join(names)}"
        else:
            missing = (
                f"{script} compiled nothing: decorate a function with @tracegrad.compile and call it. Code "
                "outside of them is interpreted when met first; TRACEGRAD_LAZY=compile compiles that, too"
            )
        if failed:
            return 1
        raise UserError(missing)
    if options.html:
        try:
            path = write_page(shown, options.html)
        except OSError as e:
            raise UserError(f"cannot write {options.html}: {e.strerror or e}") from None
        print(f"wrote {path}", file=sys.stderr)
    if options.stage or not options.html:
        for p in shown:
            _print_stages(p, _chosen(options, ("optimized",)))
    return int(failed)


def _split(text: str) -> tuple[str, str | None]:
    """`SCRIPT[:FUNCTION]` in its parts; a file whose name has a colon is found as itself."""
    script, colon, function = text.rpartition(":")
    if os.path.exists(text) or not colon or not function.isidentifier():
        script, function = text, ""
    if not os.path.exists(script):
        raise UserError(f"no such file: {script}")
    if os.path.isdir(script):
        raise UserError(f"{script} is a directory, not a Python file")
    return script, function or None


def _run_script(script: str, arguments: list[str]) -> bool:
    """Runs a script as `python script arguments`, its stdout going to stderr. Whether it failed (said on
    stderr)."""
    saved = sys.argv, sys.path[:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as e:
        if e.code in (None, 0):
            return False
        print(f"tracegrad: {script} exited with {e.code}", file=sys.stderr)
        return True
    except KeyboardInterrupt:
        print(f"tracegrad: {script} was interrupted", file=sys.stderr)
        return True
    except Exception as e:
        print(f"tracegrad: {script} raised an exception:", file=sys.stderr)
        sys.stderr.writelines(_users_part(e))
        return True
    finally:
        sys.argv, sys.path[:] = saved
    return False


def _users_part(error: Exception) -> Iterator[str]:
    """The exception's text with the frames of the script only: not ours around it, nor the package's
    inside."""
    inside = str(Path(__file__).resolve().parent / "examples")
    package = str(Path(__file__).resolve().parent) + os.sep

    def foreign(file: str) -> bool:
        return file.startswith("<frozen") or (file.startswith(package) and not file.startswith(inside))

    frames = [f for f in traceback.extract_tb(error.__traceback__) if not foreign(f.filename)]
    yield from traceback.format_list(frames)
    yield from traceback.format_exception_only(type(error), error)


def _print_stages(lowered: Lowered, stages: Sequence[str]) -> None:
    graph = lowered.graph
    types = ", ".join(str(v.type) for v in graph.inputs)
    results = ", ".join(str(v.type) for v in graph.outputs) or "nothing"
    updates = f", updates {len(graph.updates)}" if graph.updates else ""
    # As comments of the IR, so that a stage that is a graph can be redirected to a file and run.
    print(f"// === {graph.name}({types}) -> {results}{updates}")
    for stage in stages:
        text = lowered.as_text(stage)
        print(f"// --- {stage}")
        print(text.rstrip("\n"), end="\n\n")


# --- run --------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    graph = _read_graph(options.file)
    inputs = _inputs(graph, options.input, options.seed)
    lowered = Lowered(graph)
    if options.stage:
        _print_stages(lowered, _chosen(options, ()))
    made: dict[str, list[np.ndarray]] = {}
    if options.interpret or options.compare:
        outputs, updates = evaluate(graph, inputs)
        made["interpreted"] = [*outputs, *updates]
    if not options.interpret:
        made["native"] = _native(lowered, inputs)
    results = made.get("native", made.get("interpreted", []))
    for (label, type), array in zip(_labels(graph), results):
        buffer = copy_of(array, type.dtype)
        shown = repr(concrete(buffer))
        print(f"{label}: {type} =", shown, sep="\n" if "\n" in shown else " ")
    return _compare(graph, made["native"], made["interpreted"]) if options.compare else 0


def _read_graph(name: str) -> Graph:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UserError(f"cannot read {name}: {reason}") from None
    try:
        graph = parse_graph(text)
        verify(graph)
    except ParseError as e:
        raise UserError(f"{name}: {e}") from None
    except TracegradError as e:
        raise UserError(f"{name} is no valid program: {e}") from None
    return graph


def _name(v: Value) -> str:
    return v.name or str(v.index)


def _inputs(graph: Graph, given: Sequence[str], seed: int) -> list[np.ndarray]:
    """One array per input: those given as NAME=FILE.npy, the others random."""
    if seed < 0:
        raise UserError(f"--seed {seed}: a seed is not negative")
    by_name = {_name(v): v for v in graph.inputs}
    files: dict[Value, str] = {}
    for item in given:
        name, equals, file = item.partition("=")
        name = name.removeprefix("%")
        if not equals or not file:
            raise UserError(f"--input {item}: expected NAME=FILE.npy")
        if name not in by_name:
            raise UserError(
                f"--input {item}: {graph.name} has no input {name!r}; it has {', '.join(by_name) or 'none'}"
            )
        files[by_name[name]] = file
    rng = np.random.default_rng(seed)
    drawn = {
        v: _random(graph, v, rng) for v in graph.inputs
    }  # all, so that giving one leaves the others as they were
    return [_load(v, files[v]) if v in files else drawn[v] for v in graph.inputs]


def _load(v: Value, file: str) -> np.ndarray:
    t = v.type
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "not a .npy file"
        raise UserError(f"cannot read {file}: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{file} is an archive of arrays; give one array as .npy")
    same_kind = np.can_cast(array.dtype, t.dtype.numpy, "same_kind") or array.dtype.kind == t.dtype.kind
    if array.shape != t.shape or not same_kind:
        raise UserError(f"input {_name(v)} is {t}, but {file} holds {array.dtype}{list(array.shape)}")
    return np.ascontiguousarray(array.astype(t.dtype.numpy)).reshape(t.shape)


def _random(graph: Graph, v: Value, rng: np.random.Generator) -> np.ndarray:
    """Random contents of an input; integers stay within what they index."""
    dtype, shape = v.type.dtype, v.type.shape
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype.numpy)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype.numpy)
    bound = 10
    for node in graph.nodes:
        if v in node.operands[1:] and node.operands[0].type.shape:
            bound = min(bound, *node.operands[0].type.shape)
    return np.asarray(rng.integers(0, max(bound, 1), shape)).astype(dtype.numpy)


def _native(lowered: Lowered, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs, then the new contents of updated inputs; `inputs` stay as they are."""
    graph = lowered.graph
    buffers: list[Buffer] = [
        copy_of(a, v.type.dtype) if v in graph.updates else from_array(a)
        for v, a in zip(graph.inputs, inputs)
    ]
    outputs = Executable(lowered)(buffers)
    by_value = dict(zip(graph.inputs, buffers))
    return [b.array for b in [*outputs, *(by_value[v] for v in graph.updates)]]


def _labels(graph: Graph) -> list[tuple[str, Any]]:
    """What each result is called, and its type: outputs, then updated inputs."""
    seen: dict[str, int] = {}
    out = []
    for i, v in enumerate(graph.outputs):
        label = f"%{v.name}" if v.name else f"output {i}"
        seen[label] = seen.get(label, 0) + 1
        out.append((label if seen[label] == 1 else f"output {i}", v.type))
    return out + [(f"new %{_name(v)}", v.type) for v in graph.updates]


def _compare(graph: Graph, native: list[np.ndarray], interpreted: list[np.ndarray]) -> int:
    """Prints each result's greatest difference; 1 where one has NaN and the other a number, or infinities
    differ."""
    code = 0
    for (label, _), a, b in zip(_labels(graph), native, interpreted):
        x, y = a.astype(np.float64), b.astype(np.float64)
        equal = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(all="ignore"):
            difference = np.where(equal, 0.0, np.abs(x - y))
            scale = np.where(equal, 1.0, np.maximum(np.abs(x), np.abs(y)))
            worst = float(np.max(difference, initial=0.0))
            relative = float(np.max(difference / scale, initial=0.0))
        print(f"{label}: greatest difference {worst:.3g}, relative {relative:.3g}")
        if not np.isfinite(worst):
            code = 1
    return code


# --- env --------------------------------------------------------------------------------------


def _env(options: argparse.Namespace) -> int:
    import llvmlite  # slow to load

    target = host_target()
    cache = default_cache()
    flags = [f[1:] for f in target.features.split(",") if f.startswith("+")]
    known = (
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512vl",
        "avx512bw",
        "avx512bf16",
        "avx512fp16",
        "amx-tile",
        "neon",
        "fp16",
        "fullfp16",
        "bf16",
        "dotprod",
        "sve",
        "sve2",
    )
    notable = [f for f in known if f in flags]
    rows = [
        ("tracegrad", f"{__version__} in {Path(__file__).resolve().parent}"),
        (
            "python",
            f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})",
        ),
        ("numpy", np.__version__),
        ("llvmlite", f"{llvmlite.__version__}, LLVM {'.'.join(map(str, llvm().llvm_version_info))}"),
        ("target", f"{target.name}, {target.triple}"),
        (
            "vectors",
            f"{target.vector_bytes * 8} bits, {target.num_vector_registers} registers"
            + (", fused multiply-add" if target.has_fma else ""),
        ),
        ("features", f"{' '.join(notable) or 'none of note'} ({len(flags)} in all)"),
        ("threads", f"{get_num_threads()} of {available_cpus()} CPUs"),
        ("cache", "off" if cache is None else _cache_text(cache.directory, cache.limit)),
    ]
    rows += [(k, v) for k, v in sorted(os.environ.items()) if k.startswith("TRACEGRAD_")]
    width = max(len(k) for k, _ in rows)
    for k, v in rows:
        print(f"{k:<{width}}  {v}")
    return 0


def _cache_text(directory: Path, limit: int) -> str:
    sizes = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.endswith(".tgo"):
                    sizes.append(entry.stat().st_size)
    return f"{directory}: {len(sizes)} objects, {size(sum(sizes))} of {size(limit)}"


if __name__ == "__main__":
    sys.exit(main())
