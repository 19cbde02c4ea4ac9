"""What `import tracegrad` loads, and the names that are loaded when they are first asked for: that the lists
of these agree, and that they are there. Nothing is timed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest
from test_layout import room_of, sources, tree

#: What `import tracegrad` must not load: slow, optional, or of no use before something is asked for.
NOT_AT_IMPORT = [
    *("torch", "jax", "scipy", "matplotlib", "networkx", "llvmlite", "platformdirs", "safetensors"),
    *("ml_dtypes", "dataclasses", "difflib", "fractions", "hashlib", "json", "string", "subprocess"),
    *("tracegrad.nn", "tracegrad.optim", "tracegrad.utils", "tracegrad.backends.llvm"),
    *("hypothesis", "pytest", "setuptools", "pip", "pkg_resources"),
    *("numpy.random", "numpy.testing", "numpy.f2py", "numpy.distutils"),
    *(
        "unittest",
        "doctest",
        "pydoc",
        "lib2to3",
        "distutils",
        "tkinter",
        "curses",
        "sqlite3",
        "multiprocessing",
    ),
    *("http", "urllib.request", "ssl", "email", "xml", "asyncio", "webbrowser", "socketserver"),
]


def late_names(module: ast.Module) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(module, name) as the type checker sees them, and as `late` has them, of one `__init__.py`."""
    shown: set[tuple[str, str]] = set()
    loaded: set[tuple[str, str]] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for i in (n for n in node.body if isinstance(n, ast.ImportFrom)):
                shown |= {("." * i.level + (i.module or ""), a.name) for a in i.names}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_late":
            places = ast.literal_eval(node.args[1])
            loaded |= {(module, name) for module, names in places.items() for name in names.split()}
    return shown, loaded


LATE_MODULES = sorted(m for m, p in sources().items() if " = _late(" in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", LATE_MODULES)
def test_late_names_are_those_that_type_checkers_see(module: str) -> None:
    shown, loaded = late_names(tree(sources()[module]))
    assert loaded and shown == loaded, f"not in both lists of {module}: {sorted(shown ^ loaded)}"


@pytest.mark.parametrize("module", LATE_MODULES)
def test_late_names_are_there(module: str) -> None:
    """Each is found, listed by dir() before that, and loaded once; what isn't there is an error as ever."""
    name = f"tracegrad.{module}".rstrip(".")
    names = sorted(name for _, name in late_names(tree(sources()[module]))[1])
    code = f"""
import {name} as m
assert set({names}) <= set(dir(m))
for name in {names}:
    assert getattr(m, name) is vars(m)[name], name
assert not hasattr(m, "no_such_name")
try:
    m.no_such_name
except AttributeError as e:
    assert "{name}" in str(e) and e.name == "no_such_name" and e.obj is m
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the cost of an import ----------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """What `import tracegrad` loads beyond NumPy."""
    return loaded_by("import tracegrad") - loaded_by("import numpy")


def test_import_leaves_out_what_is_slow(loaded: set[str]) -> None:
    heavy = [m for m in sorted(loaded) if any(m == h or m.startswith(h + ".") for h in NOT_AT_IMPORT)]
    assert not heavy, heavy


def test_import_loads_few_modules_of_others(loaded: set[str]) -> None:
    theirs = sorted(m for m in loaded if room_of(m) != "tracegrad")
    assert len(theirs) <= 20, theirs


def test_numpy_is_imported_before_the_package_nests() -> None:
    """From deeper down, NumPy's modules run where Python's block of frames ends (see `__init__.py`)."""
    code = """
import sys

class Depth:
    def find_spec(self, name, path=None, target=None):
        frame, depth = sys._getframe(), 0
        while frame := frame.f_back:
            depth += "importlib" not in frame.f_code.co_filename
        found.setdefault(name, depth)

found = {}
sys.meta_path.insert(0, Depth())
import tracegrad
print(found["tracegrad"], found["numpy"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    package, numpy = map(int, run.stdout.split())
    assert numpy == package + 1


def test_import_does_not_need_what_is_optional() -> None:
    optional = ["networkx", "matplotlib", "safetensors", "torch", "jax"]
    loaded_by(f"import sys\nsys.modules.update(dict.fromkeys({optional}))\nimport tracegrad")
