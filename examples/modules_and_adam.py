"""The small network of two layers with modules, a loss function and Adam: plain, and compiled.

python examples/modules_and_adam.py
"""

import tracegrad
import tracegrad.nn.functional as F
from tracegrad import nn, optim

epochs = 200


def setup():
    """Data, model and optimiser, the same at every call."""
    tracegrad.manual_seed(0)
    x = tracegrad.randn(100, 3)
    y = x[:, 0:1] * 0.2 - x[:, 1:2] * 1.3 - x[:, 2:3] * 0.5 + tracegrad.randn(100, 1)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
    return x, y, model, optim.Adam(model.parameters(), lr=0.08)


x, y, model, optimizer = setup()


def step():
    loss = F.mse_loss(model(x), y, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


print("--- a step at a time")
for epoch in range(1, epochs + 1):
    loss = step()
    if epoch % 10 == 0:
        print("Epoch: ", epoch, f"  Loss:  {loss.item():.7g}")

# The very same function, compiled: forward, backward and Adam's update are one native function, which runs
# 200 times without coming back to Python.
x, y, model, optimizer = setup()
compiled = tracegrad.compile(step)
losses = compiled.repeat(epochs)
print("--- compiled")
for epoch in range(10, epochs + 1, 10):
    print("Epoch: ", epoch, f"  Loss:  {losses[epoch - 1].item():.7g}")
