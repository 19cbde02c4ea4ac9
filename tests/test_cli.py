"""The command line as a user meets it: what each command prints where, its exit codes, and that wrong use
gives a sentence, never a traceback. Commands run in processes of their own, but for long lists of wrong
uses."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tracegrad.__main__ import main
from tracegrad.ir.parser import parse_graph

SCRIPT = """\
import sys
import tracegrad

w = tracegrad.full((3, 2), 0.5)


@tracegrad.compile
def forward(x):
    return (x @ w).relu()


@tracegrad.compile
def shrink():
    w.mul_(0.5)


print("arguments:", sys.argv[1:], __name__)
print(forward(tracegrad.ones(4, 3)).sum().item())
shrink()
"""

PROGRAM = """\
graph scaled(%x: f32[2,3], %state: f32[3], %i: i64[2]) {
  %twice: f32[2,3] = add %x, %x   # model.py:3
  %y: f32[2,3] = mul %twice, %state   # model.py:4
  %picked: f32[2] = take %state, %i {dim=0}   # model.py:5
  %new: f32[3] = add %state, %state   # model.py:6
  update %state = %new
  return %y, %picked
}
"""


def tracegrad(
    *words: str, cwd: Path, stdin: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracegrad", *words],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def inside(*words: str) -> subprocess.CompletedProcess[str]:
    """The same in this process and directory, without the time a start takes."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as e:  # argparse
            code = e.code
    return subprocess.CompletedProcess(words, int(code or 0), out.getvalue(), err.getvalue())


def refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    """It exited with `code`, printed nothing to stdout, and on stderr a message with these parts."""
    assert done.returncode == code, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, f"{part!r} is not in {done.stderr!r}"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "scaled.ir"
    path.write_text(PROGRAM)
    return path


# --- show --------------------------------------------------------------------------------------


def test_show_prints_every_program_and_passes_arguments_on(script: Path, tmp_path: Path) -> None:
    done = tracegrad("show", "model.py", "--", "one", "--stage", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "arguments: ['one', '--stage'] __main__\n12.0\n"
    heads = re.findall(r"^// === (\w+)\((.*)\) -> (.*)$", done.stdout, re.M)
    assert heads == [
        ("forward", "f32[4,3], f32[3,2]", "f32[4,2]"),
        ("shrink", "f32[3,2]", "nothing, updates 1"),
    ]
    assert re.findall(r"^// --- (\w+)$", done.stdout, re.M) == ["optimized"] * 2
    assert "contract" in done.stdout and "# model.py:9" in done.stdout


def test_show_one_function_in_all_stages(script: Path, tmp_path: Path) -> None:
    done = tracegrad("show", "model.py:forward", "--stage", "all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^// --- (\w+)\n", done.stdout, flags=re.M)
    stages = dict(zip(parts[1::2], parts[2::2]))
    assert list(stages) == ["graph", "optimized", "loops", "llvm", "asm"] and "shrink" not in done.stdout
    assert " = matmul " in stages["graph"] and " = contract " in stages["optimized"]
    assert stages["loops"].startswith('program "forward"')
    assert "define void @run(ptr" in stages["llvm"] and re.search(r"^_?run:", stages["asm"], re.M)


def test_what_show_prints_can_be_run(script: Path, tmp_path: Path) -> None:
    shown = tracegrad("show", "model.py:forward", "--stage", "graph", cwd=tmp_path).stdout
    assert parse_graph(shown).name == "forward"
    (tmp_path / "forward.ir").write_text(shown)
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    graph = parse_graph(shown)
    np.save(tmp_path / "w.npy", np.full((3, 2), 0.25, np.float32))
    inputs = [f"--input={v.name}={f}" for v, f in zip(graph.inputs, ("x.npy", "w.npy"))]
    done = tracegrad("run", "forward.ir", *inputs, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("0.7500") == 8, done


def test_show_writes_a_page(script: Path, tmp_path: Path) -> None:
    done = tracegrad("show", "model.py", "--html", "out/page.html", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "" and "wrote out/page.html" in done.stderr
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert page.count('<section class="program') == 2 and "model.py:9" in page


def test_show_scripts_next_to_their_modules(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "helper.py").write_text("scale = 3.0\n")
    (folder / "main.py").write_text(
        "import helper, tracegrad\nf = tracegrad.compile(lambda x: x * helper.scale, "
        "name='f')\nf(tracegrad.ones(2))\n"
    )
    done = tracegrad("show", "a:b/main.py", cwd=tmp_path)
    assert done.returncode == 0 and "// === f(" in done.stdout, done


def test_show_what_is_not_there(script: Path, tmp_path: Path) -> None:
    refused(tracegrad("show", "nothing.py", cwd=tmp_path), "no such file: nothing.py")
    refused(inside("show", str(tmp_path)), "is a directory")
    done = tracegrad("show", "model.py:backward", cwd=tmp_path)
    refused(done, "compiled no function 'backward'; it compiled forward, shrink")
    (tmp_path / "plain.py").write_text("import tracegrad\n")
    refused(tracegrad("show", "plain.py", cwd=tmp_path), "plain.py compiled nothing", "@tracegrad.compile")


def test_show_a_script_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import tracegrad\n\ndef broken():\n    return tracegrad.ones(2, 3) @ tracegrad.ones(4, "
        "5)\n\nbroken()\n"
    )
    done = tracegrad("show", "bad.py", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "bad.py raised an exception:" in done.stderr and "matmul" in done.stderr
    files = re.findall(r'File "(.*?)", line (\d+)', done.stderr)
    assert [(Path(f).name, n) for f, n in files] == [("bad.py", "6"), ("bad.py", "4")]  # none of ours


def test_show_what_was_compiled_before_the_failure(script: Path, tmp_path: Path) -> None:
    script.write_text(SCRIPT + "\nsys.exit('enough')\n")
    done = tracegrad("show", "model.py:shrink", cwd=tmp_path)
    assert done.returncode == 1 and "// === shrink(" in done.stdout and "exited with enough" in done.stderr
    script.write_text(SCRIPT + "\nsys.exit(0)\n")
    assert tracegrad("show", "model.py:shrink", cwd=tmp_path).returncode == 0
    script.write_text("def f(:\n")
    done = tracegrad("show", "model.py", cwd=tmp_path)
    assert done.returncode == 1 and "SyntaxError" in done.stderr and "runpy" not in done.stderr


# --- run --------------------------------------------------------------------------------------


def given(folder: Path, **arrays: np.ndarray) -> list[str]:
    out = []
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        out += ["--input", f"{name}={name}.npy"]
    return out


INPUTS = {
    "x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "state": np.array([1, 10, 100], np.float32),
    "i": np.array([2, 0]),
}
PRINTED = """\
%y: f32[2,3] =
tensor([[   0.,   20.,  400.],
        [   6.,   80., 1000.]])
%picked: f32[2] = tensor([100.,   1.])
new %state: f32[3] = tensor([  2.,  20., 200.])
"""


@pytest.mark.parametrize("how", [(), ("--interpret",)])
def test_run_on_given_inputs(program: Path, tmp_path: Path, how: tuple[str, ...]) -> None:
    done = tracegrad("run", "scaled.ir", *given(tmp_path, **INPUTS), *how, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, PRINTED, "")
    assert np.array_equal(np.load(tmp_path / "state.npy"), INPUTS["state"]), (
        "the file given is no one's to change"
    )


def test_run_from_stdin_with_other_dtypes(tmp_path: Path) -> None:
    inputs = given(tmp_path, x=np.arange(3), flag=np.array(True))
    text = (
        "graph g(%x: f64[3], %flag: bool[]) {\n  %0: f64[3] = neg %x\n  %1: f64[3] = where %flag, %0, %x\n"
        "  return %1, %flag\n}\n"
    )
    done = tracegrad("run", "-", *inputs, cwd=tmp_path, stdin=text)
    assert done.stdout == (
        "output 0: f64[3] = tensor([-0., -1., -2.], dtype=tracegrad.float64)\n%flag: bool[] = tensor(True)\n"
    ), done


def test_run_compares_native_with_interpreted(program: Path, tmp_path: Path) -> None:
    done = tracegrad("run", "scaled.ir", "--compare", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done
    found = re.findall(r"^(\S+|new \S+): greatest difference (\S+), relative (\S+)$", done.stdout, re.M)
    assert [label for label, _, _ in found] == ["%y", "%picked", "new %state"]
    assert all(float(d) < 1e-5 and float(r) < 1e-5 for _, d, r in found)


def test_random_inputs_follow_the_seed(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, again, other = (inside("run", "scaled.ir", "--seed", s).stdout for s in "112")
    assert first == again != other
    x = given(tmp_path, x=INPUTS["x"])
    assert (
        inside("run", "scaled.ir", "--seed", "1", *x).stdout.split("%picked")[1]
        == (first.split("%picked")[1])
    ), "one input given leaves the others as they were"


def test_run_prints_stages_first(program: Path, tmp_path: Path) -> None:
    done = tracegrad("run", "scaled.ir", "--stage", "optimized", "--stage", "loops", cwd=tmp_path)
    order = [
        done.stdout.index(t)
        for t in ("// --- optimized", "// --- loops", 'program "scaled"', "%picked: f32[2] = tensor")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "add %x, %x ",
            "ad %x, %x ",
            ["line 2, column 22: no op named 'ad'", "did you mean", " " * 23 + "^^\n"],
        ),
        ("%twice: f32[2,3] =", "%twice: f32[2,4] =", ["line 2, column 11", "add gives f32[2,3]", "^^^^^^^^"]),
        ("mul %twice, %state", "mul %twice, %stat", ["line 3", "%stat is not defined", "^^^^^"]),
        ("return", "retrun", ["line 7, column 3", "^^^^^^"]),
    ],
)
def test_malformed_programs(program: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in PROGRAM
    program.write_text(PROGRAM.replace(old, new, 1))
    refused(inside("run", str(program)), "scaled.ir: line", *parts)


def test_files_that_are_no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tracegrad("run", "none.ir", cwd=tmp_path), "cannot read none.ir: No such file")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.ir").write_bytes(b"\xff\xfe\x00")
    refused(inside("run", "bytes.ir"), "cannot read bytes.ir: it is no text")
    (tmp_path / "empty.ir").write_text("")
    refused(inside("run", "empty.ir"), "line 1", "expected 'graph'")


def test_inputs_that_do_not_fit(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "wide.npy", np.zeros((2, 4), np.float32))
    np.save(tmp_path / "half.npy", np.array([0.5, 1.5]))
    np.savez(tmp_path / "many.npz", a=np.zeros(2))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("1 2 3")
    for words, parts in {
        "x": ["expected NAME=FILE.npy"],
        "z=wide.npy": ["scaled has no input 'z'; it has x, state, i"],
        "x=none.npy": ["cannot read none.npy: No such file"],
        "x=wide.npy": ["input x is f32[2,3], but wide.npy holds float32[2, 4]"],
        "i=half.npy": ["input i is i64[2], but half.npy holds float64[2]"],
        "x=many.npz": ["many.npz is an archive"],
        "x=pickle.npy": ["cannot read pickle.npy: not a .npy file"],
        "x=text.npy": ["cannot read text.npy: not a .npy file"],
    }.items():
        refused(inside("run", "scaled.ir", "--input", words), *parts)


def test_a_program_that_fails_when_it_runs(program: Path, tmp_path: Path) -> None:
    inputs = given(tmp_path, i=np.array([0, 7]))
    refused(
        tracegrad("run", "scaled.ir", "--interpret", *inputs, cwd=tmp_path), "error:", "out of range", code=1
    )


# --- env, and use in general
# --------------------------------------------------------------------------------------


def test_env(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = tracegrad("env", cwd=tmp_path, TRACEGRAD_CACHE_DIR=str(cache), TRACEGRAD_NUM_THREADS="1")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert rows["python"].startswith(sys.version.split()[0]) and rows["numpy"] == np.__version__
    assert re.fullmatch(r"\d+\.\d+\.\S+, LLVM \d+\.\d+\.\d+", rows["llvmlite"])
    assert re.match(r"(128|256|512) bits", rows["vectors"]) and rows["threads"].startswith("1 of ")
    assert rows["cache"] == f"{cache}: 0 objects, 0 B of 512 MiB"
    assert rows["TRACEGRAD_CACHE_DIR"] == str(cache) and rows["TRACEGRAD_NUM_THREADS"] == "1"


def test_env_counts_what_is_cached(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"TRACEGRAD_CACHE_DIR": str(tmp_path / "cache")}
    assert tracegrad("run", "scaled.ir", cwd=tmp_path, **cache).returncode == 0
    rows = dict(
        line.split(maxsplit=1) for line in tracegrad("env", cwd=tmp_path, **cache).stdout.splitlines()
    )
    objects = list((tmp_path / "cache").glob("*.tgo"))
    assert objects and f": {len(objects)} objects, " in rows["cache"]
    monkeypatch.setenv("TRACEGRAD_CACHE", "0")
    assert re.search(r"^cache +off$", inside("env").stdout, re.M)


def test_env_with_a_setting_that_makes_no_sense(tmp_path: Path) -> None:
    done = tracegrad("env", cwd=tmp_path, TRACEGRAD_NUM_THREADS="many")
    refused(done, "TRACEGRAD_NUM_THREADS=many", code=1)


def test_wrong_words(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tracegrad(cwd=tmp_path), "usage:")
    monkeypatch.chdir(tmp_path)
    refused(inside("shwo"), "invalid choice: 'shwo'")
    refused(inside("run", "scaled.ir", "--stage", "asmm"), "invalid choice: 'asmm'")
    refused(inside("run", "scaled.ir", "--", "x"), "only `show` passes arguments on")
    refused(inside("run", "scaled.ir", "--seed", "-1"), "a seed is not negative")


def test_a_reader_that_has_had_enough(program: Path, tmp_path: Path) -> None:
    """As `tracegrad run ... | head -1` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tracegrad", "run", "scaled.ir", "--stage", "asm"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


def test_the_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("tracegrad")
    if not command.exists():
        pytest.skip("the package is on the path, not installed")
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and re.fullmatch(r"tracegrad \d+\.\d+\.\d+\n", done.stdout)
