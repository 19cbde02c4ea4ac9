"""A network of 1000 inputs, 100 hidden units and 10 outputs learns 64 random points by heart in 500 steps.

    python examples/wide_net.py [--out DIR]

Prints the loss of every step and leaves in DIR (default `out`) a plot of them and a page with all stages of
the compiled step. The seed is PyTorch's, and so are the numbers.
"""

import argparse
import time
from pathlib import Path

import tracegrad
from tracegrad import nn

tracegrad.manual_seed(0)
x = tracegrad.randn(64, 1000)
y = tracegrad.randn(64, 10)
model = nn.Sequential(nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 10))
loss_fn = nn.MSELoss(reduction="sum")
learning_rate = 1e-4


@tracegrad.compile
def step():
    y_pred = model(x)
    loss = loss_fn(y_pred, y)
    model.zero_grad()
    loss.backward()
    with tracegrad.no_grad():
        for param in model.parameters():
            param.data -= learning_rate * param.grad
    return loss


def plot(losses, path):
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install 'tracegrad[plot]' brings matplotlib")
        return
    matplotlib.use("Agg")  # to a file, on any machine
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.semilogy(range(1, len(losses) + 1), losses)
    axes.set(xlabel="step", ylabel="sum of squared errors", title="1000-100-10 net, 64 points")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    print("wrote", path)


def main():
    parser = argparse.ArgumentParser(description="Train the 1000-100-10 net.")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="where the plot and the page go (default out)"
    )
    out = parser.parse_args().out
    lowered = step.lower()
    begin = time.perf_counter()
    losses = step.repeat(500).tolist()
    seconds = time.perf_counter() - begin
    for t, loss in enumerate(losses, 1):
        print(f"{t:<4} {loss:.3g}")
    print(f"500 steps in {seconds:.2f} s, compilation included")
    out.mkdir(parents=True, exist_ok=True)
    plot(losses, out / "wide_net_loss.png")
    print("wrote", lowered.show(out / "wide_net.html"))


if __name__ == "__main__":
    main()
