"""The examples, each run as a newcomer runs it, print what the documents they come from print; and the 500
losses of the wide net, written down in `data/seed003_losses.txt`, come out of every way to run its step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tracegrad
from tracegrad import nn

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LOSSES = [
    line.split() for line in (Path(__file__).parent / "data" / "seed003_losses.txt").read_text().splitlines()
]

#: Runs a script as if packages were not installed.
WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name: str, *words: str, cwd: Path, missing: tuple[str, ...] = ("torch", "jax")) -> str:
    """What an example prints, run from another directory and without PyTorch and JAX."""
    code = WITHOUT.format(missing=missing, argv=[str(EXAMPLES / f"{name}.py"), *words])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", text)]


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert {p.stem for p in EXAMPLES.glob("*.py")} == tested | {name for name, *_ in SCRIPTS}


#: The training scripts of test_scripts.py: arguments of a short run, what its last line looks like, what it
#: needs.
SCRIPTS = (
    ("digits_convnet", "--epochs 1", r"accuracy on 297 digits held back: 0\.[5-9]\d+", "sklearn"),
    ("sine_lstm", "--steps 3", r"mean squared error on new waves: 0\.00\d+", ""),
    ("char_gpt", "--steps 10 --eager", r"A test [\s\S]{60}", ""),
    ("vae", "--epochs 1", r"([ .:oO@]{8}\n?){8}", "sklearn"),
    ("gan", "--steps 20", r"mean distance to the nearest spot: \d\.\d+", ""),
    ("graph_attention", "--eager", r"(2[89]|3\d) of 34 members sorted right", ""),
    ("reinforce", "--batches 4", r"batches 0 to 9: \d+\.\d of 100 steps", ""),
    ("gradient_penalty", "--steps 20", r"estimated distance, mean .*: -?\d\.\d+ \(true: 3\)", ""),
)


@pytest.mark.parametrize(("name", "words", "ending", "needs"), SCRIPTS, ids=[s[0] for s in SCRIPTS])
def test_scripts_run(tmp_path: Path, name: str, words: str, ending: str, needs: str) -> None:
    if needs:
        pytest.importorskip(needs)
    text = run(name, *words.split(), cwd=tmp_path)
    assert re.search(ending + r"\s*\Z", text), text


def test_autograd_walk(tmp_path: Path) -> None:
    assert (
        run("autograd_walk", cwd=tmp_path).split()
        == """
        y.grad_fn is MeanBackward0
        x.grad = tensor([[0.2500, 0.2500], [0.2500, 0.2500]])
        from out back to its leaves:
          MeanBackward0
            MulBackward0
              PowBackward0
                MulBackward0
                  AccumulateGrad
                  AddBackward0
                    AccumulateGrad
        z.grad = tensor([[0.2500, 0.2500], [0.2500, 0.2500]])
        y.grad = tensor([[4.6500, 4.6500], [4.6500, 4.6500]])
        x2.grad = tensor(18.6000)
        x1.grad = tensor([[14.4150, 14.4150], [14.4150, 14.4150]])
        f(2, 2) = tensor([-3.4000], grad_fn=<SubBackward0>)
        df/dx1 = tensor([0.8000])
        df/dx2 = tensor([0.8000])
    """.split()
    )


#: The document's numbers: iteration, value, gradient.
ROSENBROCK = """
400 0.009619333 -0.04347242 -0.08254051
500 0.003990697 -0.02652063 -0.05206227
600 0.001719962 -0.01683905 -0.03373682
700 0.0007584976 -0.01095017 -0.02221584
800 0.0003393509 -0.007221781 -0.01477957
900 0.0001532408 -0.004811743 -0.009894371
1000 6.962555e-05 -0.003222887 -0.006653666
"""


def test_rosenbrock(tmp_path: Path) -> None:
    parts = run("rosenbrock", cwd=tmp_path).split("--- ")[1:]
    assert [p.split("\n")[0] for p in parts] == ["a step at a time", "compiled"]
    for part in parts:
        path, end = part.split("end point:")
        table = np.reshape(numbers(path), (10, 4))
        # Seven digits are printed; the last may depend on whether the CPU has fused multiply-add.
        assert table[3:] == pytest.approx(np.reshape(numbers(ROSENBROCK), (7, 4)), rel=2e-6)
        assert list(table[:, 0]) == list(range(100, 1001, 100))
        assert end.strip() == "tensor([0.9918, 0.9830], requires_grad=True)"


def small_data() -> tuple[np.ndarray, np.ndarray]:
    """What both small examples learn, in f64."""
    tracegrad.manual_seed(0)
    x = tracegrad.randn(100, 3).numpy().astype(np.float64)
    noise = tracegrad.randn(100, 1).numpy().astype(np.float64)
    return x, x[:, :1] * 0.2 - x[:, 1:2] * 1.3 - x[:, 2:3] * 0.5 + noise


def losses_by_hand(mean: bool) -> list[float]:
    """The two-layer net in NumPy and f64, its gradients derived by hand."""
    x, y = small_data()
    w1, w2 = (tracegrad.randn(*s).numpy().astype(np.float64) for s in ((3, 32), (32, 1)))
    b1, b2 = np.zeros((1, 32)), np.zeros((1, 1))
    out = []
    for _ in range(200):
        a = x @ w1 + b1
        h = np.maximum(a, 0)
        error = h @ w2 + b2 - y
        out.append(float((error**2).mean() if mean else (error**2).sum()))
        d = 2 * error / (len(y) if mean else 1)
        da = (d @ w2.T) * (a > 0)
        for weight, grad in ((w1, x.T @ da), (w2, h.T @ d), (b1, da.sum(0)), (b2, d.sum(0))):
            weight -= 1e-4 * grad
    return out


def epochs_of(part: str) -> tuple[list[int], list[float]]:
    table = np.reshape(numbers(part), (-1, 2))
    return [int(e) for e in table[:, 0]], list(table[:, 1])


def test_two_layer_net(tmp_path: Path) -> None:
    parts = run("two_layer_net", cwd=tmp_path).split("--- ")[1:]
    assert len(parts) == 2
    for part, mean in zip(parts, (False, True)):
        epochs, losses = epochs_of(part)
        assert epochs == list(range(10, 201, 10))
        assert losses == pytest.approx(losses_by_hand(mean)[9::10], rel=2e-5)


def test_modules_and_adam(tmp_path: Path) -> None:
    """At this learning rate a rounding error grows a hundred thousandfold in 150 epochs (PyTorch's f32 and
    f64 differ by half at the end), so numbers are compared for as long as they mean something."""
    exact = adam_by_hand()[9:100:10]
    parts = run("modules_and_adam", cwd=tmp_path).split("--- ")[1:]
    assert [p.split("\n")[0] for p in parts] == ["a step at a time", "compiled"]
    for part in parts:
        epochs, losses = epochs_of(part)
        assert epochs == list(range(10, 201, 10))
        assert losses[:8] == pytest.approx(exact[:8], rel=2e-5) and losses[:10] == pytest.approx(
            exact, rel=2e-3
        )
        assert min(losses[15:]) < 50 < losses[0]


def adam_by_hand() -> list[float]:
    """The same net from the default inits, with Adam (Kingma and Ba 2015, algorithm 1) in NumPy and f64."""
    x, y = small_data()
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
    weights = [p.detach().numpy().astype(np.float64) for p in model.parameters()]
    m, v = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    out = []
    for t in range(1, 201):
        w1, b1, w2, b2 = weights
        a = x @ w1.T + b1
        h = np.maximum(a, 0)
        error = h @ w2.T + b2 - y
        out.append(float((error**2).sum()))
        d = 2 * error
        da = (d @ w2) * (a > 0)
        for i, g in enumerate((da.T @ x, da.sum(0), d.T @ h, d.sum(0))):
            m[i] += (1 - 0.9) * (g - m[i])
            v[i] += (1 - 0.999) * (g * g - v[i])
            weights[i] -= 0.08 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    return out


# --- the wide net --------------------------------------------------------------------------------------


def same_losses(rows: list[list[str]]) -> None:
    """The table's losses, to three digits. By the last steps sums in another order have moved a loss by 2e-4
    of itself (PyTorch's are 1.3e-4 from those in f64), so that a few of 500 may round to the next digit.

    Which of the losses nearest to where the third digit changes cross it is chance: added up in f64, all 500
    are the table's. In f32, terms one after the other move three (steps 208, 436, 443). Partial sums of some
    terms, each from zero and then added in order, move two (443, 484) if of 512 terms, one if of 384, 256 or
    64, and none if of 128 or 32; so no length of partial sums is right because it is more exact.
    """
    assert [t for t, _ in rows] == [t for t, _ in LOSSES]
    other = [(float(a), float(b)) for (_, a), (_, b) in zip(rows, LOSSES) if a != b]
    assert len(other) <= 5 and all(abs(a / b - 1) < 0.0101 for a, b in other), other
    assert rows[:200] == LOSSES[:200]


def test_wide_net(tmp_path: Path) -> None:
    text = run("wide_net", cwd=tmp_path)
    same_losses([line.split() for line in text.splitlines()[:500]])
    assert re.fullmatch(r"500 steps in \d+\.\d\d s, .*", text.splitlines()[500])
    plot, page = tmp_path / "out" / "wide_net_loss.png", tmp_path / "out" / "wide_net.html"
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 5000
    html = page.read_text(encoding="utf-8")
    assert "wide_net.py:" in html and html.count('class="box ') > 20
    assert f"wrote {Path('out') / 'wide_net.html'}" in text


def test_wide_net_without_matplotlib(tmp_path: Path) -> None:
    text = run("wide_net", "--out", str(tmp_path / "a" / "b"), cwd=tmp_path, missing=("matplotlib",))
    same_losses([line.split() for line in text.splitlines()[:500]])
    assert "pip install 'tracegrad[plot]'" in text
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["wide_net.html"]


@pytest.mark.parametrize("compiled", [False, True])
def test_wide_net_a_step_at_a_time(compiled: bool) -> None:
    """Not in the example: the same step called 500 times from Python, plain and compiled."""
    tracegrad.manual_seed(0)
    x, y = tracegrad.randn(64, 1000), tracegrad.randn(64, 10)
    model = nn.Sequential(nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 10))
    loss_fn = nn.MSELoss(reduction="sum")

    def step() -> tracegrad.Tensor:
        loss = loss_fn(model(x), y)
        model.zero_grad()
        loss.backward()
        with tracegrad.no_grad():
            for param in model.parameters():
                param.data -= 1e-4 * param.grad
        return loss

    call = tracegrad.compile(step) if compiled else step
    same_losses([[str(t), f"{call().item():.3g}"] for t in range(1, 501)])


# --- against PyTorch --------------------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.parametrize("name", ["autograd_walk", "two_layer_net"])
def test_examples_are_pytorch_programs(name: str, tmp_path: Path) -> None:
    """With another import they run under PyTorch, and print the same."""
    pytest.importorskip("torch")
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    script = tmp_path / "with_torch.py"
    script.write_text(text.replace("import tracegrad", "import torch as tracegrad"))
    theirs = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    ours = run(name, cwd=tmp_path)
    words = re.compile(r"[A-Za-z]\w+|[(\[\]=<>)]")
    assert words.findall(ours) == words.findall(theirs.replace("torch::autograd::", ""))
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-5)
