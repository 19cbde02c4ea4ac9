"""An LSTM learns to continue sine waves, fitted by LBFGS on all waves at once.

    python examples/sine_lstm.py [--steps N] [--eager]

Prints the loss of every LBFGS step and the error of a forecast of waves not seen. One step is up to ten
evaluations of loss and gradient, all in one native call when compiled.
"""

import argparse
import math

import tracegrad as torch
from tracegrad import nn


def waves(count, length, seed):
    """`count` sine waves of period 25 with random phases: [count, length]."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(count, 1, generator=generator) * 25.0
    return torch.sin((torch.arange(length).unsqueeze(0) + phase) * (2 * math.pi / 25.0))


class Forecaster(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        """The next value after each of x [batch, time]."""
        states, _ = self.lstm(x.unsqueeze(-1))
        return self.head(states).squeeze(-1)


def train(steps=8, compiled=True, length=60):
    """The loss at the start of every step, and the mean squared error on new waves."""
    torch.manual_seed(0)
    data = waves(16, length + 1, seed=1)
    inputs, targets = data[:, :-1], data[:, 1:]
    model = Forecaster()
    loss_fn = nn.MSELoss()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.8, max_iter=10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        return loss

    def step():
        return optimizer.step(closure)

    if compiled:
        step = torch.compile(step)
    losses = [step().item() for _ in range(steps)]
    with torch.no_grad():
        fresh = waves(8, length + 1, seed=2)
        error = loss_fn(model(fresh[:, :-1]), fresh[:, 1:]).item()
    return losses, error


def main():
    parser = argparse.ArgumentParser(description="Fit an LSTM to sine waves with LBFGS.")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--eager", action="store_true", help="do not compile the step")
    args = parser.parse_args()
    losses, error = train(args.steps, not args.eager)
    for i, loss in enumerate(losses):
        print(f"step {i}: loss {loss:.6f}")
    print(f"mean squared error on new waves: {error:.6f}")


if __name__ == "__main__":
    main()
