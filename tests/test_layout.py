"""The rules of the house, held against the tree: who imports whom, what is shipped, how long files are.

Everything here reads sources and counts; nothing is timed. Exceptions from a rule are listed below with their
reasons, and one that nothing needs any more fails too.
"""

from __future__ import annotations

import ast
import fnmatch
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ir", "backends", "runtime", "tracer", "nn", "optim", "utils", "trainer")
#: A room may import itself and what its level is above. nn, optim and utils don't know each other.
LEVEL = {
    "ir": 0,
    "backends": 1,
    "runtime": 2,
    "tracer": 3,
    "nn": 4,
    "optim": 4,
    "utils": 4,
    "trainer": 5,
    "": 6,
    "__main__": 7,
}

#: Imports of our own modules inside functions: (module, function or *, module imported) and why.
#: First those that would be cycles at the top, which is checked; then those that save time at import.
LATE_FOR_A_CYCLE: dict[tuple[str, str, str], str] = {
    ("ir.graph", "Graph.__str__", "ir.text"): "printing is built on graphs",
    ("ir.loops", "LoopProgram.__str__", "ir.loop_text"): "printing is built on loop programs",
    ("ir.expr", "Expr.__str__", "ir.loop_text"): "printing is built on expressions",
    ("tracer.tensor", "Tensor.__repr__", "tracer.printing"): "printing needs the default dtype",
    ("tracer.recording", "ThreadState.__init__", "tracer.lazy"): "a thread's trace needs a way to run",
    ("runtime.buffers", "Buffer.on", "runtime.cuda_buffers"): "memory of GPUs is built on that of the CPU",
    ("runtime.cuda_driver", "_load", "runtime.cuda_emulated"): "the emulated device has the driver's errors",
}
LATE_FOR_TIME: dict[tuple[str, str, str], str] = {
    ("ir.scalar", "*", "ir.special"): "a long table, for erf in the interpreter alone",
    ("runtime.executable", "*", "*"): "what compiles, or runs on GPUs, is loaded when it is needed",
    (
        "backends.llvm.codegen_math",
        "_function_text",
        "backends.llvm.math",
    ): "built with llvmlite.ir, slow to load; most small programs need none of it",
    ("backends.llvm.native", "*", "backends.llvm.codegen_program"): "the same",
    ("tracer.environment", "*", "backends.llvm.pool"): "the same",
    ("tracer.mt19937", "*", "*"): "native code, for large random tensors only",
    ("tracer.mt19937_engine", "_native_twist", "backends.llvm.twister"): "the same",
    ("utils.data.loader", "DataLoader.__iter__", "utils.data.workers"): "multiprocessing, for workers only",
    ("runtime.cuda_lowered", "CudaLowered.compile", "runtime.cuda"): "only for GPUs",
    ("tracer.devices", "*", "runtime.cuda_buffers"): "only for GPUs",
    ("tracer.placed_lazy", "PlacedRuns.run", "runtime.cuda"): "only for GPUs",
    ("tracer.placed_program", "PlacedSpecialization.placed", "runtime.cuda"): "only for GPUs",
    ("tracer.export_cuda", "*", "*"): "only for GPUs",
}
LATE = {**LATE_FOR_A_CYCLE, **LATE_FOR_TIME}

#: Packages of others that may be imported inside functions, and why.
LATE_PACKAGES = {
    "ml_dtypes": "bfloat16 in NumPy, which few programs need",
    "llvmlite": "loads a library of 170 MB, and nothing needs it before the first compilation",
    "platformdirs": "needed once, and only where no directory was named",
    "networkx": "the graph viewer's layout only",
    "matplotlib": "optional: plots",
    "safetensors": "optional: the reference reader and writer of the format",
    "cuda": "optional: running on a GPU",
    "IPython": "optional: notebooks",
    "tqdm": "optional: progress bars",
}

@dataclass(frozen=True)
class Import:
    """One name imported by one statement.

    Attributes:
        target: our module as `ir.graph`, "" for the package itself; or another package's name.
        ours: whether it is a module of this package.
        relative: whether it was written with dots.
        function: the function around the statement (`Graph.__str__`), "" at module level.
        typing: only for the type checker (under `if TYPE_CHECKING`).
    """

    target: str
    ours: bool
    relative: bool
    function: str
    typing: bool
    line: int


@cache
def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name, without `tracegrad`."""
    out = {"": ROOT / "__init__.py"}
    if (ROOT / "__main__.py").exists():
        out["__main__"] = ROOT / "__main__.py"
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def others() -> list[Path]:
    """Python files that are not shipped."""
    return sorted(p for d in ("tests", "examples", "benchmarks", "docs") for p in (ROOT / d).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _walk(
    node: ast.AST, scope: tuple[str, ...], in_function: bool, typing: bool
) -> Iterator[tuple[Any, str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, ".".join(scope) if in_function else "", typing
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _walk(child, (*scope, child.name), True, typing)
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, (*scope, child.name), in_function, typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(ast.Module(child.body, []), scope, in_function, True)
            yield from _walk(ast.Module(child.orelse, []), scope, in_function, typing)
        else:
            yield from _walk(child, scope, in_function, typing)


def imports_of(module: str, path: Path, names: frozenset[str]) -> list[Import]:
    """The imports of one file. `names` are our modules: `from ..ir import dtypes` imports `ir.dtypes`."""
    out: list[Import] = []
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [p for p in package if p]
    for node, function, typing in _walk(tree(path), (), False, False):

        def found(target: str, ours: bool, relative: bool) -> None:
            out.append(Import(target, ours, relative, function, typing, node.lineno))  # noqa: B023

        if isinstance(node, ast.Import):
            for alias in node.names:
                ours = alias.name.split(".")[0] == "tracegrad"
                found(alias.name.partition(".")[2] if ours else alias.name, ours, False)
            continue
        name = node.module or ""
        if node.level == 0 and name.split(".")[0] != "tracegrad":
            found(name, False, False)
            continue
        if node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *(name.split(".") if name else [])])
        else:
            base = name.partition(".")[2]
        for alias in node.names:
            inner = f"{base}.{alias.name}" if base else alias.name
            found(inner if inner in names else base, True, node.level > 0)
    return out


@cache
def imports() -> dict[str, list[Import]]:
    names = frozenset(sources())
    return {m: imports_of(m, p, names) for m, p in sources().items()}


def room_of(module: str) -> str:
    return module.split(".")[0]


def against_the_direction(module: str, target: str) -> bool:
    mine, its = room_of(module), room_of(target)
    return mine != its and LEVEL[its] >= LEVEL[mine]


def test_imports_go_one_way() -> None:
    wrong = [
        f"{module}:{i.line} imports {i.target or 'the package itself'}"
        for module, found in imports().items()
        for i in found
        if i.ours and against_the_direction(module, i.target)
    ]
    assert not wrong, (
        "against ir <- backends <- runtime <- tracer <- nn, optim, utils <- trainer:\n" + "\n".join(wrong)
    )


def test_imports_name_modules_that_exist() -> None:
    names = sources()
    wrong = [
        f"{m}:{i.line} {i.target}"
        for m, found in imports().items()
        for i in found
        if i.ours and i.target not in names
    ]
    assert not wrong, wrong


def test_imports_of_our_own_are_relative() -> None:
    wrong = [f"{m}:{i.line}" for m, found in imports().items() for i in found if i.ours and not i.relative]
    assert not wrong, wrong


def cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """A cycle of the graph as the modules on it, or None."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = []

        def enter(m: str) -> None:
            path.append(m)  # noqa: B023 - called at once
            stack.append((m, iter(sorted(edges.get(m, ())))))  # noqa: B023

        if start not in done:
            enter(start)
        while stack:
            m, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                path.pop()
                done.add(m)
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                enter(following)
    return None


def test_no_import_cycles() -> None:
    edges = {
        m: {i.target for i in found if i.ours and not i.function and not i.typing and i.target != m}
        for m, found in imports().items()
    }
    found = cycle(edges)
    assert found is None, " -> ".join(found or ())


def reaches(edges: dict[str, set[str]], start: str, end: str) -> bool:
    seen, stack = {start}, [start]
    while stack:
        found = edges.get(stack.pop(), set()) - seen
        seen |= found
        stack.extend(found)
    return end in seen


def test_late_imports_are_known() -> None:
    late = {
        (m, i.function, i.target) for m, found in imports().items() for i in found if i.ours and i.function
    }
    used: set[tuple[str, str, str]] = set()
    unknown = []
    for m, function, target in sorted(late):
        keys = {(m, function, target), (m, "*", target), (m, function, "*"), (m, "*", "*")} & LATE.keys()
        used |= keys
        if not keys:
            unknown.append(f"{m}.{function} imports {target}")
    assert not unknown, "\n".join(["inside functions; move to the top, or give a reason in LATE:", *unknown])
    assert not LATE.keys() - used, f"LATE lists what is not there any more: {sorted(LATE.keys() - used)}"


def test_late_imports_against_cycles_are_needed() -> None:
    edges = {m: {i.target for i in found if i.ours and not i.typing} for m, found in imports().items()}
    for m, function, target in LATE_FOR_A_CYCLE:
        assert reaches(edges, target, m), f"{m}.{function} can import {target} at the top"


def test_late_imports_of_other_packages_have_a_reason() -> None:
    wrong = [
        f"{m}:{i.line} {i.target}"
        for m, found in imports().items()
        for i in found
        if i.function and not i.ours and room_of(i.target) not in LATE_PACKAGES
        and room_of(i.target) not in sys.stdlib_module_names
    ]  # fmt: skip
    assert not wrong, wrong


def test_only_declared_packages_are_imported() -> None:
    project = pyproject()["project"]
    declared = {d.split(">=")[0].split("[")[0].strip() for d in project["dependencies"]}
    wrong = [
        f"{m}:{i.line} {i.target}"
        for m, found in imports().items()
        for i in found
        if not i.ours and not i.function and not i.typing
        and room_of(i.target) not in sys.stdlib_module_names and room_of(i.target) not in declared
    ]  # fmt: skip
    assert not wrong, f"imported at module level but no dependency: {wrong}"


def test_the_checks_see_what_they_should() -> None:
    """The rules above on a file that breaks them."""
    text = """
from __future__ import annotations
import os, tracegrad.ir
from typing import TYPE_CHECKING
from .. import dtypes
from ..ir.graph import Graph
from . import other
if TYPE_CHECKING:
    from .lazy import Lazy
class A:
    def f(self):
        from .printing import show
        try:
            import networkx
        except ImportError: pass
"""
    path = Path("memory/tracer/file.py")
    module = ast.parse(text)
    names = frozenset({"", "ir", "ir.graph", "tracer", "tracer.other", "tracer.lazy", "tracer.printing"})
    real = tree
    globals()["tree"] = lambda _: module
    try:
        found = imports_of("tracer.file", path, names)
    finally:
        globals()["tree"] = real
    ours = [(i.target, i.relative, i.function, i.typing) for i in found if i.ours]
    assert ours == [
        ("ir", False, "", False),
        ("", True, "", False),
        ("ir.graph", True, "", False),
        ("tracer.other", True, "", False),
        ("tracer.lazy", True, "", True),
        ("tracer.printing", True, "A.f", False),
    ]
    assert ("networkx", "A.f") in [(i.target, i.function) for i in found]
    assert against_the_direction("ir.graph", "tracer.tensor") and against_the_direction(
        "nn.linear", "optim.sgd"
    )
    assert against_the_direction("ir.graph", "") and not against_the_direction("trainer.fit", "nn.linear")
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


# --- what is shipped ---------------------------------------------------------------------------------------


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_in_pyproject_are_those_of_the_tree() -> None:
    listed = pyproject()["tool"]["setuptools"]["packages"]
    there = {".".join(("tracegrad", *p.parent.relative_to(ROOT).parts)) for p in sources().values()}
    assert sorted(listed) == sorted(there)
    for name in listed:
        folder = ROOT.joinpath(*name.split(".")[1:])
        assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py"


def test_scripts_exist() -> None:
    for name, target in pyproject()["project"]["scripts"].items():
        module, _, function = target.removeprefix("tracegrad.").partition(":")
        assert module in sources(), f"script {name}: there is no {module}"
        defined = [n.name for n in tree(sources()[module]).body if isinstance(n, ast.FunctionDef)]
        assert function in defined, f"script {name}: {module} has no {function}()"


def test_no_python_file_is_outside_the_rooms() -> None:
    known = {*ROOMS, "tests", "examples", "benchmarks", "docs", "build", "dist"}
    stray = [p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in known and list(p.glob("*.py"))]
    assert not [s for s in stray if not s.startswith(".")], stray


def test_data_files_are_shipped() -> None:
    data = pyproject()["tool"]["setuptools"]["package-data"]
    missing = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if not path.is_file() or path.suffix in (".py", ".pyc") or path.name.startswith("."):
                continue
            package = ".".join(("tracegrad", *path.parent.relative_to(ROOT).parts))
            if not any(fnmatch.fnmatch(path.name, pattern) for pattern in data.get(package, ())):
                missing.append(str(path.relative_to(ROOT)))
    assert not missing, f"not in package-data: {missing}"
    assert "py.typed" in data["tracegrad"] and (ROOT / "py.typed").exists()


def test_ci_runs_what_the_readme_says() -> None:
    """The script takes the command that sets up and tests from the README, so it must be there, once."""
    lines = [line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    setup = [line for line in lines if line.startswith("python3 -m venv .venv ") and "-m pytest" in line]
    assert len(setup) == 1, "README.md should have one line that makes .venv, installs and runs the tests"
    assert "-e '.[dev]'" in setup[0] and "not peer" in setup[0]


def test_type_checker_sees_every_room() -> None:
    included = pyproject()["tool"]["pyright"]["include"]
    missing = {room_of(m) for m in sources()} - {name.removesuffix(".py") for name in included} - {""}
    assert not missing, f"not in [tool.pyright] include: {missing}"


# --- files ------------------------------------------------------------------------------------------------


def every_file() -> list[Path]:
    return [*sources().values(), *others()]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_at_most_500_lines() -> None:
    long = {
        relative(p): n for p in every_file() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long, f"split these by concept: {long}"


def test_lines_are_at_most_110_columns() -> None:
    wide = [
        f"{relative(p)}:{k}"
        for p in every_file()
        for k, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 110
    ]
    assert not wide, f"{len(wide)} lines: {wide[:20]}"


def test_every_module_says_what_lives_there() -> None:
    without = [relative(p) for p in every_file() if not (ast.get_docstring(tree(p)) or "").strip()]
    assert not without, f"no docstring: {without}"
